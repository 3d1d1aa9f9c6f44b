//! `tl`: what TensorLogic can say for itself on the command line.

mod devices;

use clap::{Parser, Subcommand};

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
}

fn main() {
    match Arguments::parse().command {
        Command::Devices => print!("{}", devices::report()),
    }
}
