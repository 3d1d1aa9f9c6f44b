//! Trains a small GPT-2 on the characters of a text, and lets it write.
//!
//! `cargo run --release --example gpt -- --text FILE`. Stop it at any time: `--resume` goes on to the very same bits, and
//! where all steps are done, only writes. A text: `apt-get install bible-kjv`, then
//! `bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' > bible.txt`. `--bench` measures with random weights.

mod bench;
mod model;
mod plot;
mod record;
mod sample;
mod text;
mod train;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use model::Sizes;
use record::Record;
use sample::{Sampling, generate};
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;
use tensorlogic::data::DataLoader;
use tensorlogic::{DType, Device, Error, Result, Tensor, capture};
use text::{Corpus, Stretches};
use train::{Settings, Training};

/// Batches of the text that was held out, each time that its loss is told.
const VALIDATION: usize = 8;

/// GPT-2: trains on the characters of a text, and writes
#[derive(Parser)]
struct Arguments {
    /// The text, UTF-8
    #[arg(long, required_unless_present = "bench")]
    text: Option<PathBuf>,
    /// Type of the matrix products: f32, bf16 or f16 (parameters are f32)
    #[arg(long, default_value = "f32")]
    precision: DType,
    /// cpu, cuda or metal, with an ordinal if there are several (cuda:1); the fastest there is by default
    #[arg(long)]
    device: Option<Device>,
    /// Seed of the starting weights, the order of the text, and what is written
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of the whole training
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Rows of a batch, or of each of its parts
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Parts of a batch, computed one after another
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    accumulate: u64,
    /// Characters that the model sees
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(2..))]
    context: u64,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 192)]
    width: usize,
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// Share of what each layer adds that is dropped in training
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Where checkpoints go
    #[arg(long, default_value = "gpt.safetensors")]
    checkpoint: PathBuf,
    /// Steps from one checkpoint, and one look at the text held out, to the next
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
    /// Go on from the checkpoint
    #[arg(long)]
    resume: bool,
    /// Stop after this many steps in all, with a checkpoint
    #[arg(long)]
    stop_after: Option<u64>,
    /// Draw the loss curve into this file (SVG)
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Keep the starting weights, all batches and losses in this file, for tools/gpt_torch.py --follow
    #[arg(long, conflicts_with = "resume")]
    record: Option<PathBuf>,
    /// What the model goes on from when it writes
    #[arg(long, default_value = "And ")]
    prompt: String,
    /// Characters that it writes
    #[arg(long, default_value_t = 400)]
    tokens: usize,
    /// Divides the logits; 0 takes the most likely character
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw from this many of the most likely characters; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from the most likely characters, up to this probability in all
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Measure with random weights: GPT-2 with 124 million parameters, 8 rows of 1,024 tokens
    #[arg(long)]
    bench: bool,
    /// Measure a size for a CPU: 6 layers, 384 wide, context 256
    #[arg(long, requires = "bench")]
    small: bool,
    /// Also print the times of the kernels on the device
    #[arg(long, requires = "bench")]
    kernels: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.clone().unwrap_or_else(Device::best);
    match &arguments.text {
        Some(text) if !arguments.bench => train_and_write(&arguments, &Corpus::load(text)?, &device),
        _ => {
            let sizes = if arguments.small { Sizes::small() } else { Sizes::gpt2() };
            bench::bench(sizes, arguments.batch as usize, arguments.precision, &device, arguments.kernels)
        }
    }
}

fn train_and_write(arguments: &Arguments, corpus: &Corpus, device: &Device) -> Result<()> {
    let &Arguments { precision: dtype, seed, steps, layers, width, heads, .. } = arguments;
    let context = arguments.context as usize;
    let sizes = Sizes { vocabulary: corpus.vocabulary.len(), context, layers, width, heads };
    let (learning_rate, dropout, accumulate) =
        (arguments.learning_rate, arguments.dropout, arguments.accumulate as usize);
    let settings = Settings { seed, learning_rate, dropout, accumulate, ..Settings::new(sizes, dtype, steps) };
    let training = RefCell::new(Training::new(settings, device)?);
    let rows = arguments.batch as usize * accumulate;
    let loader = DataLoader::new(Stretches::new(&corpus.train, context, device), rows)?.shuffle(seed).drop_last(true);
    let held_out = DataLoader::new(Stretches::new(&corpus.held_out, context, device), arguments.batch as usize)?;
    let each = loader.len() as u64;
    if each == 0 || held_out.is_empty() {
        let reason = format!("{} characters are too few for {rows} rows of {context}", corpus.train.len());
        return Err(Error::InvalidArgument { op: "gpt", reason });
    }
    let (known, characters) = (corpus.train.len(), corpus.vocabulary.characters());
    println!("{known} characters to learn from, {} held out, {} different", corpus.held_out.len(), sizes.vocabulary);
    let count = tensorlogic::nn::Module::parameter_count(&training.borrow().gpt);
    println!("{:.2} million parameters; products in {dtype} on {device}", count as f64 / 1e6);
    if arguments.resume {
        training.borrow_mut().load(&arguments.checkpoint, &characters)?;
        println!("going on after step {}", training.borrow().done);
    }

    let mut record = arguments.record.as_ref().map(|_| Record::new(&training.borrow().gpt));
    let (start, end) = (Instant::now(), arguments.stop_after.unwrap_or(steps).min(steps));
    let (mut done, first) = (training.borrow().done, training.borrow().done);
    let bar = ProgressBar::new(end).with_position(done);
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}, {msg}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let work = |inputs: &[Tensor]| training.borrow_mut().step(&inputs[0], &inputs[1]);
    let mut captured = capture(work);
    while done < end {
        for batch in loader.epoch_from(done / each, (done % each) as usize) {
            let (ids, targets) = batch?;
            if let Some(record) = &mut record {
                record.add(&ids, &targets)?;
            }
            // As one plan, the parts of a batch would be in memory together.
            let loss = match accumulate {
                1 => captured.run(&[&ids, &targets])?,
                _ => work(&[ids, targets])?,
            };
            let loss = loss.item::<f32>()?;
            done += 1;
            training.borrow_mut().losses.push(loss);
            bar.set_position(done);
            if done.is_multiple_of(arguments.save_every) || done == end {
                let of_held_out = training.borrow().loss_of(&held_out, VALIDATION)?;
                training.borrow_mut().held_out.push([done as f32, of_held_out]);
                training.borrow().save(&arguments.checkpoint, &characters)?;
                bar.suspend(|| println!("step {done}: loss {loss:.3}, held out {of_held_out:.3}"));
            }
            bar.set_message(format!("loss {loss:.3}"));
            if done == end {
                break;
            }
        }
    }
    bar.finish_and_clear();

    let training = training.borrow();
    if done > first {
        let seconds = start.elapsed().as_secs_f64();
        let rate = (done - first) as f64 * (rows * context) as f64 / seconds;
        println!(
            "{done} steps; {seconds:.1} s, {rate:.0} characters/s; checkpoint: {}",
            arguments.checkpoint.display()
        );
    }
    println!("fingerprint of the parameters: {:016x}", training.fingerprint()?);
    if let (Some(path), Some(record)) = (&arguments.record, &record) {
        record.save(path, &settings, &training.losses)?;
        println!("record: {}", path.display());
    }
    if let Some(path) = &arguments.plot {
        match plot::plot(path, &training.losses, &training.held_out) {
            Ok(()) => println!("loss curve: {}", path.display()),
            Err(error) => eprintln!("no loss curve: {}: {error}", path.display()),
        }
    }
    println!("peak memory: {:.1} MB", device.buffer_pool_stats().peak_bytes as f64 / 1e6);

    let prompt = corpus.vocabulary.encode(&arguments.prompt);
    if arguments.tokens > 0 && !prompt.is_empty() {
        let &Arguments { temperature, top_k, top_p, .. } = arguments;
        let sampling = Sampling { temperature, top_k, top_p };
        let start = Instant::now();
        let written = generate(&training.gpt, &prompt, arguments.tokens, &sampling, (dtype, seed), device)?;
        let rate = written.len() as f64 / start.elapsed().as_secs_f64();
        println!("\n{}{}\n", arguments.prompt, corpus.vocabulary.decode(&written));
        println!("{} characters, {rate:.0} a second", written.len());
    }
    Ok(())
}
