//! Trains a small network on real handwritten digits, or classifies them by their nearest neighbour.
//!
//! `cargo run --release --example digits -- --dtype bf16`

mod data;
mod neighbours;
mod train;

use clap::Parser;
use data::{Digits, HELD_OUT};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::Instant;
use tensorlogic::{DType, Device, Result, testing};
use train::Settings;

/// Handwritten digits: trains a network of three layers
#[derive(Parser)]
struct Arguments {
    /// Type of the matrix products: f32, bf16 or f16 (parameters are f32)
    #[arg(long, default_value = "f32", value_parser = float)]
    dtype: DType,
    /// cpu, cuda or metal, with an ordinal if there are several (cuda:1); the fastest there is by default
    #[arg(long)]
    device: Option<Device>,
    /// Seed of the shuffle, the starting weights and the order of the batches
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Times that every image is seen
    #[arg(long, default_value_t = Settings::default().epochs, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Draw the loss curve into this file (SVG)
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Classify by the nearest neighbour instead, over five shuffles
    #[arg(long)]
    neighbours: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.clone().unwrap_or_else(Device::best);
    if arguments.neighbours { neighbours(&arguments, &device) } else { network(&arguments, &device) }
}

fn network(arguments: &Arguments, device: &Device) -> Result<()> {
    let Arguments { dtype, seed, epochs, .. } = *arguments;
    let digits = Digits::load(DType::F32, device)?;
    let (count, known) = (digits.len(), digits.len() - HELD_OUT);
    println!("{count} images: {known} to learn from, {HELD_OUT} held out; products in {dtype} on {device}");

    let start = Instant::now();
    let bar = ProgressBar::new(epochs);
    let style = ProgressStyle::with_template("{bar:40} epoch {pos}/{len}, loss {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let settings = Settings { dtype, seed, epochs, ..Settings::default() };
    let outcome = train::train(&digits, &settings, |epoch, loss| {
        bar.set_message(format!("{loss:.4}"));
        bar.set_position(epoch + 1);
    })?;
    bar.finish_and_clear();

    let last = outcome.losses.last().copied().unwrap_or(f32::NAN);
    println!("{epochs} epochs in {:.2} s, loss {last:.4}", start.elapsed().as_secs_f64());
    if let Some(path) = &arguments.plot {
        match plot(path, &outcome.losses) {
            Ok(()) => println!("loss curve: {}", path.display()),
            Err(error) => eprintln!("no loss curve: {}: {error}", path.display()),
        }
    }
    println!("test accuracy: {:.3}", outcome.accuracy);
    println!("kernels a step: {}", outcome.kernels_a_step);
    report_pool(device);
    Ok(())
}

fn neighbours(arguments: &Arguments, device: &Device) -> Result<()> {
    let digits = Digits::load(arguments.dtype, device)?;
    println!("{} images, {HELD_OUT} held out, {} on {device}", digits.len(), arguments.dtype);
    let (start, before) = (Instant::now(), testing::counters().kernels);
    let mut total = 0.0;
    for shuffle in 0..5 {
        let accuracy = neighbours::accuracy(&digits, arguments.seed.wrapping_add(shuffle))?;
        println!("shuffle {shuffle}: accuracy {accuracy:.3}");
        total += accuracy;
    }
    println!("test accuracy: {:.3}", total / 5.0);
    let kernels = testing::counters().kernels - before;
    println!("{kernels} kernels in {:.3} s", start.elapsed().as_secs_f64());
    report_pool(device);
    Ok(())
}

fn report_pool(device: &Device) {
    let stats = device.buffer_pool_stats();
    let rate = 100.0 * stats.reuse_count as f64 / stats.allocation_count as f64;
    println!("peak memory: {:.1} MB", stats.peak_bytes as f64 / 1e6);
    println!("buffer pool: {} allocations, {} reused ({rate:.1}%)", stats.allocation_count, stats.reuse_count);
}

/// Draws the mean loss of each epoch.
fn plot(path: &std::path::Path, losses: &[f32]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    use plotters::prelude::*;
    if path.extension().is_none_or(|e| e != "svg") {
        return Err("only SVG can be drawn; name the file .svg".into());
    }
    // For the extents of letters; the file names the family only.
    let known = plotters::style::register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    known.map_err(|_| "no font")?;
    let top = losses.iter().copied().fold(0f32, f32::max).max(1e-6) * 1.05;
    let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Training loss", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(1..losses.len().max(2), 0f32..top)?;
    chart.configure_mesh().x_desc("epoch").y_desc("mean cross entropy").light_line_style(WHITE).draw()?;
    chart.draw_series(LineSeries::new(losses.iter().enumerate().map(|(i, &l)| (i + 1, l)), BLUE.stroke_width(2)))?;
    area.present()?;
    Ok(())
}

/// A dtype that products can have.
fn float(name: &str) -> std::result::Result<DType, String> {
    match name.parse::<DType>() {
        Ok(dtype @ (DType::F32 | DType::BF16 | DType::F16)) => Ok(dtype),
        _ => Err("use f32, bf16 or f16".into()),
    }
}
