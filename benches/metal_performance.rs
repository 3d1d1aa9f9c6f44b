//! The benchmark: `cargo bench --bench metal_performance [-- WORD...]`, rows whose operation, size or
//! dtype contains a word, or all. It measures the best device there is, or that of `--device`.
//!
//! A call is timed from the recording of its ops to the end of their kernels. With `--json` on a GPU there are
//! three times: the device's own, that of a call among many, and that of a call and a wait. Inputs are random and
//! take turns. FLOP and bytes are those of the plan ([`Tensor::explain`]): a transcendental function
//! counts as eight, and a buffer once a kernel.
//!
//! [`Tensor::explain`]: tensorlogic::Tensor::explain

mod common;

use clap::Parser;
use common::cases::{self, Case, Mode};
use common::gpu::Busy;
use common::{Limits, Row, machine, transfer};
use std::path::{Path, PathBuf};
use tensorlogic::{DType, Device, Result};

/// Measures latency, arithmetic and bandwidth of the tensor operations
#[derive(Parser)]
struct Arguments {
    /// Print the rows whose operation, size or dtype contains one of these words
    words: Vec<String>,
    /// Measure the cases that tools/compare_torch.py compares, and write them to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// cpu, cuda or metal, with an ordinal if there are several (cuda:1); the fastest there is by default
    #[arg(long)]
    device: Option<Device>,
    /// What `cargo bench` passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Tensor sizes of the elementwise table.
const COUNTS: [usize; 3] = [1000, 100_000, 1_000_000];

fn main() -> Outcome {
    let arguments = Arguments::parse();
    let device = arguments.device.clone().unwrap_or_else(Device::best);
    println!("{}", machine(&device));
    match &arguments.json {
        Some(file) if device == Device::cpu() => measure_anchors(&arguments, &device, file),
        Some(file) => measure_gpu_anchors(&arguments, &device, file),
        None => Ok(measure_all(&arguments, &device)?),
    }
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

/// Writes the anchor cases of a CPU as JSON: `[{"operation", "dtype", "shapes", "us"}, ...]`.
fn measure_anchors(arguments: &Arguments, device: &Device, file: &Path) -> Outcome {
    println!("{}", Row::header());
    let mut objects = Vec::new();
    for case in cases::anchors().iter().filter(|case| arguments.wants(&case.key())) {
        let row = case.row(Mode::Normal, device, Limits::FULL)?;
        println!("{row}");
        objects.push(object(case, &format!(r#""us": {:.2}"#, row.times.median * 1e6)));
    }
    Ok(write_objects(file, &objects)?)
}

/// Writes the anchor cases of a GPU as JSON, after each: the same with `device_us`, `amortised_us`,
/// `synchronised_us`, `calls` and `sets`, or with `error`.
fn measure_gpu_anchors(arguments: &Arguments, device: &Device, file: &Path) -> Outcome {
    let busy = Busy::new(device)?;
    println!("{:<40}{:>12}{:>14}{:>14}", "case", "device us", "amortised us", "synchron. us");
    let mut objects = Vec::new();
    for case in cases::gpu_anchors().iter().filter(|case| arguments.wants(&case.key())) {
        objects.push(match case.gpu_times(device, &busy) {
            Ok(times) => {
                let [on_device, amortised, synchronised] =
                    [times.device, times.amortised, times.synchronised].map(|seconds| seconds * 1e6);
                println!("{:<40}{on_device:>12.2}{amortised:>14.2}{synchronised:>14.2}", case.key());
                let us = format!(r#""device_us": {on_device:.3}, "amortised_us": {amortised:.3}, "#);
                let (calls, sets) = (times.calls, times.sets);
                let rest = format!(r#""synchronised_us": {synchronised:.3}, "calls": {calls}, "sets": {sets}"#);
                object(case, &(us + &rest))
            }
            Err(error) => {
                println!("{:<40}{error}", case.key());
                object(
                    case,
                    &format!(r#""error": {:?}"#, error.to_string().replace(|c: char| !c.is_ascii_graphic(), " ")),
                )
            }
        });
        write_objects(file, &objects)?;
        device.empty_cache();
    }
    Ok(())
}

fn object(case: &Case, results: &str) -> String {
    let Case { operation, dtype, shapes, .. } = case;
    format!(r#"{{"operation": "{operation}", "dtype": "{dtype}", "shapes": {shapes:?}, {results}}}"#)
}

fn write_objects(file: &Path, objects: &[String]) -> std::io::Result<()> {
    std::fs::write(file, format!("[\n{}\n]\n", objects.join(",\n")))
}
