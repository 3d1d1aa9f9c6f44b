//! The benchmark: `cargo bench --bench metal_performance [-- WORD...]`, rows whose operation, size or
//! dtype contains a word, or all. On a machine without Metal it measures the best device there is.
//!
//! A call is timed from the recording of its ops to the end of their kernels. Inputs are random and
//! take turns. FLOP and bytes are those of the plan ([`Tensor::explain`]): a transcendental function
//! counts as eight, and a buffer once a kernel.
//!
//! [`Tensor::explain`]: tensorlogic::Tensor::explain

mod common;

use clap::Parser;
use common::cases::{self, Case, Mode};
use common::{Limits, Row, machine, transfer};
use std::fmt::Write;
use std::path::PathBuf;
use tensorlogic::{DType, Device, Result};

/// Measures latency, arithmetic and bandwidth of the tensor operations
#[derive(Parser)]
struct Arguments {
    /// Print the rows whose operation, size or dtype contains one of these words
    words: Vec<String>,
    /// Measure the cases that tools/compare_torch.py compares, and write them to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What `cargo bench` passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Tensor sizes of the elementwise table.
const COUNTS: [usize; 3] = [1000, 100_000, 1_000_000];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = Device::best();
    println!("{}", machine(&device));
    match &arguments.json {
        Some(file) => std::fs::write(file, measure_anchors(&arguments, &device)?)?,
        None => measure_all(&arguments, &device)?,
    }
    Ok(())
}

impl Arguments {
    fn wants(&self, key: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| key.contains(word.as_str()))
    }
}

fn measure_all(arguments: &Arguments, device: &Device) -> Result<()> {
    let dtypes = [DType::F32, DType::F16];
    let all = |make: fn(DType) -> Vec<Case>| dtypes.into_iter().flat_map(make).collect::<Vec<_>>();
    let products = [DType::F32, DType::F16, DType::BF16].into_iter();
    let products = products.flat_map(|dtype| [64, 128, 256, 512, 1024].map(|n| cases::matmul(n, dtype))).collect();
    let elementwise = all(|dtype| COUNTS.into_iter().flat_map(|n| cases::elementwise(n, dtype)).collect());
    section("Matrix products", products, &[Mode::Normal], arguments, device)?;
    section("Elementwise and sum", elementwise, &[Mode::Normal], arguments, device)?;
    transfers(arguments, device)?;
    let fusible = all(|dtype| cases::fusible(1_000_000, 512, dtype));
    section("Fused and unfused", fusible, &[Mode::Normal, Mode::Unfused], arguments, device)?;
    let pooled =
        all(|dtype| COUNTS.into_iter().flat_map(|n| cases::elementwise(n, dtype).into_iter().take(1)).collect());
    section("Buffer pool on and off", pooled, &[Mode::Normal, Mode::Unpooled], arguments, device)?;
    if arguments.wants("host cost") {
        println!("\nHost");
        common::host::lines(device)?.iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// Prints the wanted cases in each mode, under a title.
fn section(title: &str, cases: Vec<Case>, modes: &[Mode], arguments: &Arguments, device: &Device) -> Result<()> {
    let wanted: Vec<Case> = cases.into_iter().filter(|case| arguments.wants(&case.key())).collect();
    if !wanted.is_empty() {
        println!("\n{title}\n{}", Row::header());
    }
    for case in wanted {
        for &mode in modes {
            println!("{}", case.row(mode, device, Limits::FULL)?);
        }
    }
    Ok(())
}

fn transfers(arguments: &Arguments, device: &Device) -> Result<()> {
    if !arguments.wants("host to device to host") {
        return Ok(());
    }
    println!("\nTransfers\n{}", Row::header());
    for n in [102_000, 1_000_000, 16_000_000] {
        for row in transfer::rows(n, device, Limits::FULL)? {
            println!("{row}");
        }
    }
    Ok(())
}

/// The anchor cases as JSON: `[{"operation", "dtype", "shapes", "us"}, ...]`.
fn measure_anchors(arguments: &Arguments, device: &Device) -> Result<String> {
    println!("{}", Row::header());
    let mut objects = Vec::new();
    for case in cases::anchors().iter().filter(|case| arguments.wants(&case.key())) {
        let row = case.row(Mode::Normal, device, Limits::FULL)?;
        println!("{row}");
        let (dtype, shapes, us) = (case.dtype, &case.shapes, row.times.median * 1e6);
        let mut object = format!(r#"{{"operation": "{}", "dtype": "{dtype}", "#, case.operation);
        let _ = write!(object, r#""shapes": {shapes:?}, "us": {us:.2}}}"#);
        objects.push(object);
    }
    Ok(format!("[\n{}\n]\n", objects.join(",\n")))
}
