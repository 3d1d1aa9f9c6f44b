//! Measured choices of what computes a product, for users who ask for them; else the table of `codegen::choice` decides.

use super::program::Kernels;
use super::runtime::Gpu;
use super::sample::{Memory, Sample};
use super::selfcheck;
use crate::codegen::{Choice, Layout};
use crate::device::{lock, logs};
use crate::error::Result;
use crate::schedule::Gemm;
use rustc_hash::FxHashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sizes beyond which a product is measured as one of this size, which has tiles for every core.
const MAX_SIZE: usize = 4096;
/// Elements of an operand or the result; batches are cut to that.
const MAX_ELEMENTS: usize = 1 << 24;
/// Runs, of which the fastest counts.
const RUNS: usize = 5;

/// What was measured on a GPU.
pub(crate) struct Tuning {
    on: AtomicBool,
    /// By what `name` says of a product.
    chosen: Mutex<FxHashMap<String, Choice>>,
}

impl Tuning {
    /// On if the environment's `TL_TUNE` is 1.
    pub fn new() -> Tuning {
        let on = std::env::var("TL_TUNE").is_ok_and(|v| v == "1");
        Tuning { on: AtomicBool::new(on), chosen: Mutex::default() }
    }

    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }
}

/// What computes a product fastest: measured now, or before. `None` where tuning is off or there is nothing to choose.
pub(super) fn choice(gpu: &Gpu, gemm: &Gemm) -> Option<Choice> {
    if !gpu.tuning.on.load(Ordering::Relaxed) {
        return None;
    }
    let candidates = Choice::candidates(gemm, &gpu.limits().machine);
    if candidates.len() < 2 {
        return None;
    }
    let name = name(gpu, gemm);
    if let Some(&choice) = lock(&gpu.tuning.chosen).get(&name) {
        return Some(choice);
    }
    let kept = gpu.kernels().kept(&name);
    let kept = kept.and_then(|text| candidates.iter().copied().find(|choice| choice.to_string().as_bytes() == text));
    let choice = match kept {
        Some(choice) => choice,
        None => {
            let choice = measure(gpu, gemm, &candidates, &name)?;
            gpu.kernels().keep(&name, choice.to_string().as_bytes());
            choice
        }
    };
    // If two threads have measured, the first one's counts for both.
    Some(*lock(&gpu.tuning.chosen).entry(name).or_insert(choice))
}

/// What a choice is kept under; the compiler and its chip go with it.
pub(super) fn name(gpu: &Gpu, gemm: &Gemm) -> String {
    let Gemm { m, n, k, dtype, .. } = gemm;
    let (chip, [a, b]) = (gpu.limits().machine.chip, Layout::of(gemm));
    format!("tuning {chip:?}: {dtype} [{m}, {k}] x [{k}, {n}], {} of them, {a:?} by {b:?}", gemm.products())
}

/// The candidate with the least time of the device. Those that fail, in a self-check or otherwise, are out of question.
fn measure(gpu: &Gpu, gemm: &Gemm, candidates: &[Choice], name: &str) -> Option<Choice> {
    let sample = sample(gemm);
    let memory = sample.upload(gpu).ok()?;
    let mut best: Option<(Duration, Choice)> = None;
    let mut log = String::new();
    for &choice in candidates {
        match time(gpu, gemm, &sample, &memory, choice) {
            Ok(time) => {
                log += &format!("; {choice}: {:.1} us", time.as_secs_f64() * 1e6);
                if best.is_none_or(|(least, _)| time < least) {
                    best = Some((time, choice));
                }
            }
            Err(error) => log += &format!("; {choice}: {error}"),
        }
    }
    let (_, choice) = best?;
    if logs("plan") {
        eprintln!("tensorlogic {name}: {choice}{log}");
    }
    Some(choice)
}

/// The product as it is measured.
fn sample(gemm: &Gemm) -> Sample {
    let [m, n, k] = [gemm.m, gemm.n, gemm.k].map(|size| size.clamp(1, MAX_SIZE));
    let largest = (m * n).max(m * k).max(n * k);
    let batch = gemm.products().clamp(1, (MAX_ELEMENTS / largest).max(1));
    let by_line = [gemm.a.row_stride == 1, gemm.b.col_stride == 1];
    Sample { dtype: gemm.dtype, m, n, k, batch, layouts: Layout::of(gemm), by_line }
}

fn time(gpu: &Gpu, gemm: &Gemm, sample: &Sample, memory: &Memory, choice: Choice) -> Result<Duration> {
    let mut kernels: Kernels = sample.kernels(&gpu.limits().machine, choice);
    let check = selfcheck::due(gpu, gemm, choice);
    gpu.prepare(&[kernels.entries(), check.iter().flat_map(selfcheck::Check::entries).collect()].concat())?;
    check.map_or(Ok(()), |check| check.run(gpu))?;
    kernels.load(gpu)?;
    memory.run(gpu, &kernels)?;
    let mut least = Duration::MAX;
    for _ in 0..RUNS {
        let (run, time) = gpu.timed(|| memory.run(gpu, &kernels))?;
        run?;
        least = least.min(time);
    }
    Ok(least)
}
