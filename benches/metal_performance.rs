//! The benchmark: `cargo bench --bench metal_performance [-- WORD...]`; `-- --help` tells the rest. `tl bench` is the
//! same.

use clap::Parser;
use std::process::ExitCode;
use tensorlogic_bench::{Options, run};

/// Measures the tensor operations: times by three clocks, arithmetic, bandwidth, kernels
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// What `cargo bench` passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    run(&Arguments::parse().options)
}
