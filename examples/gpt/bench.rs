//! Times of a model with random weights.

use super::model::{Gpt, Sizes};
use super::train::{Settings, Training};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tensorlogic::nn::{Layer, Module};
use tensorlogic::{DType, Device, Result, Tensor, capture, no_grad, testing};

/// Runs that are timed, behind those that plan and compile.
const RUNS: usize = 20;
const WARM_UP: usize = 4;

impl Sizes {
    /// GPT-2 with 124 million parameters; its vocabulary of 50,257 is padded to a multiple of 128.
    pub fn gpt2() -> Sizes {
        Sizes { vocabulary: 50_304, context: 1024, layers: 12, width: 768, heads: 12 }
    }

    /// For a CPU.
    pub fn small() -> Sizes {
        Sizes { vocabulary: 128, context: 256, layers: 6, width: 384, heads: 6 }
    }
}

/// Prints times: of a training step of f32 parameters and products in `dtype`, and, with all of the model in `dtype`, of a
/// forward pass of `batch` rows, one of a token, and decoding with a cache; with `kernels`, also where the time of each goes
/// on the device.
pub fn bench(sizes: Sizes, batch: usize, dtype: DType, device: &Device, kernels: bool) -> Result<()> {
    let Sizes { vocabulary, context, layers, width, heads } = sizes;
    println!("{layers} layers, {width} wide, {heads} heads, vocabulary {vocabulary}; products in {dtype} on {device}");
    let ids = |rows: usize, columns: usize| {
        let ids: Vec<u32> = (0..rows * columns).map(|i| ((i * 7919) % vocabulary) as u32).collect();
        Tensor::from_vec(ids, (rows, columns), device)
    };
    let tokens = |seconds: f64| (batch * context) as f64 / seconds;
    let (x, y) = (ids(batch, context)?, ids(batch, context)?);

    {
        let mut training = Training::new(Settings::new(sizes, dtype, 1000), device)?;
        println!("{:.1} million parameters", training.gpt.parameter_count() as f64 / 1e6);
        let start = Instant::now();
        let mut step = capture(|inputs: &[Tensor]| training.step(&inputs[0], &inputs[1]));
        step.run(&[&x, &y])?.item::<f32>()?;
        println!("first training step: {:.2} s", start.elapsed().as_secs_f64());
        let times = times(device, || step.run(&[&x, &y]).map(drop))?;
        println!("training step {batch}x{context}: {times}, {:.0} tokens/s", tokens(times.amortised));
        let before = testing::kernels_of_thread();
        step.run(&[&x, &y])?;
        println!("kernels a step: {}", testing::kernels_of_thread() - before);
        println!("peak memory: {:.2} GB", device.buffer_pool_stats().peak_bytes as f64 / 1e9);
        if kernels {
            table(device, || step.run(&[&x, &y]).map(drop))?;
        }
    }

    let gpt = Gpt::new(sizes, 0.0, device)?;
    gpt.set_training(false);
    gpt.to_dtype(dtype)?;
    let mut forward = capture(|inputs: &[Tensor]| no_grad(|| gpt.forward(&inputs[0])));
    let whole = times(device, || forward.run(&[&x]).map(drop))?;
    println!("forward {batch}x{context}: {whole}, {:.0} tokens/s", tokens(whole.amortised));
    if kernels {
        table(device, || forward.run(&[&x]).map(drop))?;
    }
    drop(forward);

    let one = ids(1, 1)?;
    let mut forward = capture(|inputs: &[Tensor]| no_grad(|| gpt.forward(&inputs[0])));
    println!("forward 1x1: {}", times(device, || forward.run(&[&one]).map(drop))?);
    if kernels {
        table(device, || forward.run(&[&one]).map(drop))?;
    }
    drop(forward);

    let mut cache = gpt.cache(1, dtype, device)?;
    let mut step = capture(|inputs: &[Tensor]| {
        let logits = no_grad(|| gpt.next(&inputs[0], &mut cache))?;
        logits.argmax(1)?.unsqueeze(1)
    });
    let mut id = step.run(&[&one.to_dtype(DType::I64)?])?;
    let mut next = || -> Result<Tensor> {
        id = step.run(&[&id])?;
        id.reshape(1)
    };
    (0..WARM_UP).try_for_each(|_| next().map(drop))?;
    let count = (context - 1 - WARM_UP).min(512) / 2;
    let rate = |start: Instant| count as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let ids = (0..count).map(|_| next()).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&ids, 0)?.to_vec1::<i64>()?;
    let together = rate(start);
    let start = Instant::now();
    (0..count).try_for_each(|_| next()?.to_vec1::<i64>().map(drop))?;
    println!(
        "decoding with a cache: {together:.0} tokens/s, read together; {:.0}, each read before the next",
        rate(start)
    );
    if kernels {
        table(device, || next().map(drop))?;
    }
    Ok(())
}

/// Seconds of a run: of runs one after another with one wait, and the median of runs with a wait each.
struct Times {
    amortised: f64,
    synchronised: f64,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [amortised, synchronised] = [self.amortised, self.synchronised].map(|seconds| match seconds < 1e-3 {
            true => format!("{:.1} us", seconds * 1e6),
            false => format!("{:.2} ms", seconds * 1e3),
        });
        write!(f, "{amortised} ({synchronised} with a wait each)")
    }
}

fn times(device: &Device, mut run: impl FnMut() -> Result<()>) -> Result<Times> {
    let mut timed = |count: usize| -> Result<f64> {
        let start = Instant::now();
        (0..count).try_for_each(|_| run())?;
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / count as f64)
    };
    let first = (0..WARM_UP).map(|_| timed(1)).collect::<Result<Vec<_>>>()?;
    // Where a run takes long, fewer will do.
    let runs = if first[WARM_UP - 1] > 1.0 { 3 } else { RUNS };
    let mut alone = (0..runs).map(|_| timed(1)).collect::<Result<Vec<_>>>()?;
    alone.sort_by(f64::total_cmp);
    Ok(Times { synchronised: alone[runs / 2], amortised: timed(runs)? })
}

/// Prints how often each kernel of a run goes, and how long it takes in all by the device's clock.
fn table(device: &Device, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let (result, times) = testing::profile(device, run)?;
    result?;
    let mut sums: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
    for (name, time) in times {
        let sum = sums.entry(name).or_default();
        *sum = (sum.0 + 1, sum.1 + time);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|&(_, (_, time))| std::cmp::Reverse(time));
    let all: Duration = sums.iter().map(|&(_, (_, time))| time).sum();
    println!("  {:>8.1} us in all", all.as_secs_f64() * 1e6);
    for (name, (count, time)) in sums {
        println!("  {:>8.1} us  {count:>4} x {name}", time.as_secs_f64() * 1e6);
    }
    Ok(())
}
