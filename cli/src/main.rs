//! `tl`: what TensorLogic can say for itself on the command line.

mod devices;
mod doctor;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The command-line program of TensorLogic
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the devices of this machine, what they lack, and why others are not available
    Devices,
    /// Check and time devices; prints a report to paste into an issue, and fails if a check fails
    Doctor(doctor::Options),
    /// Measure tensor operations: times by three clocks, rates, kernels; compare and draw runs
    Bench(tensorlogic_bench::Options),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Devices => {
            print!("{}", devices::report());
            ExitCode::SUCCESS
        }
        Command::Doctor(options) => doctor::run(&options),
        Command::Bench(options) => tensorlogic_bench::run(&options),
    }
}
