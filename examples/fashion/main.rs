//! Trains a small convolutional network on the 60,000 images of Fashion-MNIST, with checkpoints.
//!
//! `apt-get install dataset-fashion-mnist`, then `cargo run --release --example fashion`. Stop it at any time:
//! `--resume` goes on to the very same bits.

mod data;
mod model;

use clap::Parser;
use data::Fashion;
use indicatif::{ProgressBar, ProgressStyle};
use model::Training;
use std::path::PathBuf;
use std::time::Instant;
use tensorlogic::data::{DataLoader, Dataset};
use tensorlogic::{DType, Device, Result};

/// Fashion-MNIST: trains a small convolutional network
#[derive(Parser)]
struct Arguments {
    /// Folder of the data set's .gz files
    #[arg(long, default_value = "/usr/share/datasets/fashion-mnist")]
    data: PathBuf,
    /// Type of the matrix products: f32, bf16 or f16 (parameters are f32)
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// cpu, cuda or metal, with an ordinal if there are several (cuda:1); the fastest there is by default
    #[arg(long)]
    device: Option<Device>,
    /// Seed of the starting weights and the order of the images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Times that every image is seen
    #[arg(long, default_value_t = 4)]
    epochs: u64,
    /// Images a step
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Where checkpoints go
    #[arg(long, default_value = "fashion.safetensors")]
    checkpoint: PathBuf,
    /// Steps from one checkpoint to the next
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
    /// Go on from the checkpoint
    #[arg(long)]
    resume: bool,
    /// Stop after this many steps in all, with a checkpoint
    #[arg(long)]
    stop_after: Option<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.clone().unwrap_or_else(Device::best);
    let train = Fashion::load(&arguments.data, "train", &device)?;
    println!("{} images to learn from; products in {} on {device}", train.len(), arguments.dtype);
    let loader = DataLoader::new(train, arguments.batch)?.shuffle(arguments.seed);
    let each = loader.len() as u64;
    let steps = each * arguments.epochs;
    let mut training = Training::new(arguments.dtype, arguments.seed, steps, &device)?;
    if arguments.resume {
        training.load(&arguments.checkpoint)?;
        println!("going on after step {}", training.done);
    }

    let (start, end) = (Instant::now(), arguments.stop_after.unwrap_or(steps).min(steps));
    let bar = ProgressBar::new(end).with_position(training.done);
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}, loss {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    while training.done < end {
        for batch in loader.epoch_from(training.done / each, (training.done % each) as usize) {
            let loss = training.step(&batch?)?;
            bar.set_position(training.done);
            bar.set_message(format!("{:.3}", loss.item::<f32>()?));
            if training.done.is_multiple_of(arguments.save_every) || training.done == end {
                training.save(&arguments.checkpoint)?;
            }
            if training.done == end {
                break;
            }
        }
    }
    bar.finish_and_clear();

    println!("{} steps; {:.1} s", training.done, start.elapsed().as_secs_f64());
    println!("checkpoint: {}", arguments.checkpoint.display());
    println!("fingerprint of the parameters: {:016x}", training.fingerprint()?);
    let test = DataLoader::new(Fashion::load(&arguments.data, "t10k", &device)?, 500)?;
    println!("test accuracy: {:.3}", training.accuracy(&test)?);
    let stats = device.buffer_pool_stats();
    println!("peak memory: {:.1} MB", stats.peak_bytes as f64 / 1e6);
    Ok(())
}
