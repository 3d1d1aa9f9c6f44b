//! Horizontal fusion: kernels that are alike go in one launch.
//!
//! Alike are kernels that one piece of code can run over a table of buffers, extents, strides and
//! scalars: the same values, dtypes and loops, whatever the sizes. An optimiser step over 150
//! parameters is one launch, and so are the bias gradients of all layers.

use super::kernel::{Kernel, Reach, ValueOp};
use crate::dtype::DType;
use rustc_hash::FxHashMap;

/// A kernel that reads fewer temporary bytes than this may wait for others that are alike: they live
/// longer for it. Larger kernels gain little from a shared launch.
const SMALL_BYTES: usize = 1 << 20;

/// Which kernels a kernel may share a launch with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    /// Equal for kernels that are alike.
    pub id: usize,
    /// Whether it waits for others.
    pub patient: bool,
}

/// For each kernel, its group, if another kernel is like it.
pub(super) fn memberships(
    kernels: &[Kernel],
    temporary_bytes: &dyn Fn(u32) -> usize,
    dtype: &dyn Fn(u32) -> DType,
) -> Vec<Option<Membership>> {
    let mut ids: FxHashMap<Vec<u64>, usize> = FxHashMap::default();
    let mut counts: Vec<usize> = Vec::new();
    let of_kernel: Vec<Option<usize>> = kernels
        .iter()
        .map(|kernel| {
            let id = *ids.entry(skeleton(kernel, dtype)?).or_insert(counts.len());
            counts.resize(counts.len().max(id + 1), 0);
            counts[id] += 1;
            Some(id)
        })
        .collect();
    let member = |(kernel, id): (&Kernel, Option<usize>)| {
        let id = id.filter(|&id| counts[id] > 1)?;
        let bytes: usize = kernel.reads().into_iter().map(temporary_bytes).sum();
        Some(Membership { id, patient: bytes < SMALL_BYTES })
    };
    kernels.iter().zip(of_kernel).map(member).collect()
}

/// What kernels that are alike have in common; `None` for kinds that run alone.
fn skeleton(kernel: &Kernel, dtype: &dyn Fn(u32) -> DType) -> Option<Vec<u64>> {
    if kernel.is_apart() {
        return None;
    }
    let mut key = vec![kernel.outer.len() as u64, kernel.inner.len() as u64, kernel.values.len() as u64];
    let mut buffers: Vec<u32> = Vec::new();
    for value in &kernel.values {
        key.extend([value.dtype as u64, value.level as u64]);
        let (tag, words): (u64, [u64; 4]) = match value.op {
            ValueOp::Load { node, reach } => (0, [buffer(node, &mut buffers), dtype(node) as u64, pattern(&reach), 0]),
            // Guards are data of their own; few kernels have them.
            ValueOp::Padded { .. } | ValueOp::Gather { .. } => return None,
            ValueOp::Index { reach } => (1, [pattern(&reach), 0, 0, 0]),
            ValueOp::Scalar { .. } => (2, [0; 4]),
            ValueOp::Random { kind, index, .. } => (3, [kind as u64, index as u64, 0, 0]),
            ValueOp::Elementwise { op, operands } => {
                (4, [op as u64, operands[0] as u64, operands[1] as u64, operands[2] as u64])
            }
            ValueOp::Cast { value } => (5, [value as u64, 0, 0, 0]),
            ValueOp::Round { value } => (6, [value as u64, 0, 0, 0]),
            ValueOp::Bound { value, .. } => (7, [value as u64, 0, 0, 0]),
            ValueOp::Reduce { op, value } => (8, [op as u64, value as u64, 0, 0]),
            ValueOp::Finish { op, value } => (9, [op as u64, value as u64, 0, 0]),
            ValueOp::Accumulator => return None,
        };
        key.push(tag);
        key.extend(words);
    }
    for output in &kernel.outputs {
        key.extend([output.value as u64, output.dtype as u64, pattern(&output.reach)]);
    }
    Some(key)
}

/// Position of a node among the kernel's buffers, in order of appearance.
fn buffer(node: u32, buffers: &mut Vec<u32>) -> u64 {
    let at = buffers.iter().position(|&b| b == node).unwrap_or_else(|| {
        buffers.push(node);
        buffers.len() - 1
    });
    at as u64
}

/// Which loops move through the memory, and in which of them it is read straight on.
fn pattern(reach: &Reach) -> u64 {
    let of =
        |strides: &[isize]| strides.iter().fold(1u64, |bits, &s| bits << 2 | (s != 0) as u64 | ((s == 1) as u64) << 1);
    of(&reach.outer) << 20 | of(&reach.inner)
}
