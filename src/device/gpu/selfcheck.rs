//! What computes products is held to a slow kernel when a process first needs it, so that a miscompiled kernel is an
//! error and not a wrong answer.
//!
//! What is checked is a body of `shaders/matmul.metal` in one choice of tiles, for one dtype and one layout of the
//! operands: sizes, strides and what follows the sums are arguments, or another kernel's. A check costs a compilation,
//! and one more a dtype for the slow kernel; that it passed is kept on disk beside the compiled kernels.

use super::disk::hash;
use super::driver::Limits;
use super::program::Kernels;
use super::runtime::Gpu;
use super::sample::Sample;
use crate::codegen::{Choice, Layout, Tile};
use crate::device::lock;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::schedule::Gemm;
use rustc_hash::FxHashSet;
use std::sync::Mutex;

/// What has been checked on a GPU.
pub(crate) struct Checks {
    on: bool,
    /// By the hash of the source.
    passed: Mutex<FxHashSet<u128>>,
}

impl Checks {
    /// `TL_SELFCHECK=0` and `1` overrule the driver.
    pub fn new(limits: &Limits) -> Checks {
        let on = match std::env::var("TL_SELFCHECK").as_deref() {
            Ok("0") => false,
            Ok("1") => true,
            _ => limits.self_check,
        };
        Checks { on, passed: Mutex::default() }
    }
}

/// A check that is due.
pub(super) struct Check {
    /// Of the source that it checks.
    pub key: u128,
    choice: Choice,
    /// Small products, and what computes them: as chosen, and slowly.
    pairs: Vec<(Sample, [Kernels; 2])>,
}

/// The check of what computes a product, unless it has passed.
pub(super) fn due(gpu: &Gpu, gemm: &Gemm, choice: Choice) -> Option<Check> {
    if !gpu.checks.on {
        return None;
    }
    let machine = &gpu.limits().machine;
    let pair = |sample: Sample| (sample, [choice, Choice::Slow].map(|choice| sample.kernels(machine, choice)));
    let pairs: Vec<_> = samples(gemm, choice).into_iter().map(pair).collect();
    let (source, _) = *pairs.first()?.1[0].entries().first()?;
    let key = hash(source);
    if lock(&gpu.checks.passed).contains(&key) {
        return None;
    }
    if gpu.kernels().kept(&name(key)).is_some() {
        lock(&gpu.checks.passed).insert(key);
        return None;
    }
    Some(Check { key, choice, pairs })
}

/// Where a check that has passed is kept.
fn name(key: u128) -> String {
    format!("self-check {key:032x}")
}

/// Ragged products of more than one tile, over more than two steps along k. A strided operand is walked in either
/// order.
fn samples(gemm: &Gemm, choice: Choice) -> Vec<Sample> {
    let dtype = gemm.dtype;
    let mut layouts = Layout::of(gemm);
    let few = |few: usize, few_are_rows: bool, many: usize| if few_are_rows { [few, many] } else { [many, few] };
    let ([m, n], k) = match choice {
        Choice::Units(Tile { rows, columns, depth, .. }) => ([rows + 3, columns + 5], 2 * depth + 3),
        Choice::Simt { side, depth } => {
            // Its text is the same for all layouts.
            layouts = [Layout::Strided; 2];
            ([side + 3, side + 5], 2 * depth + 3)
        }
        Choice::GemvDepth { few: exact, few_are_rows, lines } => {
            (few(exact, few_are_rows, 4 * lines + 3), 64 * 16 / dtype.size() + 5)
        }
        Choice::GemvLines { few: exact, few_are_rows } => (few(exact, few_are_rows, 37), 133),
        Choice::Slow => ([17, 18], 5),
    };
    let sample = |by_line| Sample { dtype, m, n, k, batch: 1, layouts, by_line };
    match choice {
        Choice::GemvLines { few_are_rows, .. } => vec![sample([!few_are_rows, few_are_rows])],
        _ if layouts.contains(&Layout::Strided) => vec![sample([true, false]), sample([false, true])],
        _ => vec![sample([false; 2])],
    }
}

impl Check {
    /// The kernels that it needs, as the runtime prepares them.
    pub fn entries(&self) -> Vec<(&str, &str)> {
        self.pairs.iter().flat_map(|(_, kernels)| kernels.iter().flat_map(Kernels::entries)).collect()
    }

    /// # Errors
    /// [`Error::DeviceFailed`] that says where the results differ; as any kernel.
    pub fn run(self, gpu: &Gpu) -> Result<()> {
        for (sample, [fast, slow]) in self.pairs {
            let [got, want] = [result(gpu, &sample, fast)?, result(gpu, &sample, slow)?];
            if let Some((at, got, want)) = difference(&sample, &got, &want) {
                let (choice, Sample { dtype, m, n, k, layouts: [a, b], .. }) = (self.choice, sample);
                let reason = format!(
                    "matmul {dtype} [{m}, {k}] x [{k}, {n}], {choice}, {a:?} by {b:?}, computes {got} at ({}, {}) where \
                     a slow kernel computes {want}; the kernel is not used. Please report it, with the device and its \
                     system; TL_SELFCHECK=0 goes on without the check, at your own risk",
                    at / n,
                    at % n
                );
                return Err(Error::DeviceFailed { device: gpu.name.clone(), op: "self-check", reason });
            }
        }
        gpu.kernels().keep(&name(self.key), b"passed");
        lock(&gpu.checks.passed).insert(self.key);
        Ok(())
    }
}

fn result(gpu: &Gpu, sample: &Sample, mut kernels: Kernels) -> Result<Vec<u8>> {
    kernels.load(gpu)?;
    let memory = sample.upload(gpu)?;
    memory.run(gpu, &kernels)?;
    memory.result(gpu)
}

/// The first element in which two results differ by more than they may, and what it is in both.
///
/// Floats are at most 1, so k of them in any order, rounded or cut off, are summed to within k 2^-23 k, and both
/// results may be off by that. A term is at least 1/4, more than that for every k here. Integers are exact.
fn difference(sample: &Sample, got: &[u8], want: &[u8]) -> Option<(usize, String, String)> {
    let (dtype, k) = (sample.out_dtype(), sample.k as f32);
    let size = dtype.size();
    let float = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
    let same = |x: &[u8], y: &[u8]| match dtype {
        DType::F32 => (float(x) - float(y)).abs() <= 2.0 * k * k * f32::EPSILON,
        _ => x == y,
    };
    let text = |x: &[u8]| match dtype {
        DType::F32 => float(x).to_string(),
        _ => x.iter().rev().fold("0x".to_string(), |text, byte| format!("{text}{byte:02x}")),
    };
    let pairs = || got.chunks_exact(size).zip(want.chunks_exact(size));
    let at = pairs().position(|(x, y)| !same(x, y))?;
    pairs().nth(at).map(|(x, y)| (at, text(x), text(y)))
}
