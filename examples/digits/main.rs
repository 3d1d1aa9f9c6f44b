//! Classifies real handwritten digits by their nearest neighbour: one matrix product, a fused
//! expression over it, an argmin and a gather.
//!
//! `cargo run --release --example digits -- --dtype bf16`

mod neighbours;

use clap::Parser;
use neighbours::{Digits, HELD_OUT};
use std::time::Instant;
use tensorlogic::{DType, Device, Result, testing};

/// Nearest-neighbour classification of the UCI digits
#[derive(Parser)]
struct Arguments {
    /// Type that the images are stored and multiplied in: f16, bf16, f32 or f64
    #[arg(long, default_value = "f32", value_parser = float)]
    dtype: DType,
    /// Seed of the first shuffle; each further one takes the next
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Ways to divide the images into known and held out
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    shuffles: u64,
}

fn main() -> Result<()> {
    let Arguments { dtype, seed, shuffles } = Arguments::parse();
    let device = Device::best();
    let digits = Digits::load(dtype, &device)?;
    println!("{} images, {HELD_OUT} held out, {dtype} on {device}", digits.len());

    let (start, before) = (Instant::now(), testing::counters().kernels);
    let mut total = 0.0;
    for shuffle in 0..shuffles {
        let accuracy = digits.accuracy(seed.wrapping_add(shuffle))?;
        println!("shuffle {shuffle}: accuracy {accuracy:.3}");
        total += accuracy;
    }
    println!("mean accuracy: {:.3}", total / shuffles as f32);

    let kernels = testing::counters().kernels - before;
    println!("{kernels} kernels in {:.3} s", start.elapsed().as_secs_f64());
    report_pool(&device);
    Ok(())
}

fn report_pool(device: &Device) {
    let stats = device.buffer_pool_stats();
    let rate = 100.0 * stats.reuse_count as f64 / stats.allocation_count as f64;
    println!(
        "buffer pool: {} allocations, {} reused ({rate:.1}%), peak {:.1} MB",
        stats.allocation_count,
        stats.reuse_count,
        stats.peak_bytes as f64 / 1e6
    );
}

/// A float dtype by its name.
fn float(name: &str) -> Result<DType, String> {
    match name.parse::<DType>() {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err("use f16, bf16, f32 or f64".into()),
    }
}
