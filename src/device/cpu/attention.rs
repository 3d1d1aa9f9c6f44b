//! Scaled dot product attention, a block of queries and a block of keys at a time, so that scores never leave the cache
//! (Dao 2023, "FlashAttention-2", algorithms 1 and 2). Everything is computed in f32.
//!
//! Results do not depend on the number of threads: a block of queries, or for gradients the heads that share keys, is
//! the work of one.

use super::gemm::{Blocks, Mat};
use super::isa::Isa;
use super::threads;
use crate::dtype::DType;
use crate::graph::AttentionPart;
use crate::ops::math::Real;
use crate::schedule::{Attention, Strided};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::cell::RefCell;

/// Queries, and keys, of a block.
const BLOCK: usize = 64;

/// Where the operands and outputs are, in the order of [`Attention::inputs`] and of its parts.
pub struct Buffers {
    pub inputs: Vec<*const u8>,
    pub outputs: Vec<*mut u8>,
}

// SAFETY: jobs write disjoint parts of the outputs and only read the inputs.
unsafe impl Sync for Buffers {}

thread_local! {
    /// What a job works in: allocated once, as fresh pages would cost more than the arithmetic.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Computes the outputs.
///
/// # Safety
/// The buffers are those that `attention` describes, initialised but for the outputs, which nobody else uses; the
/// machine has the instruction set.
pub unsafe fn run(attention: &Attention, buffers: &Buffers, isa: Isa) {
    let job = Job { a: attention, buffers, blocks: Blocks::new(isa, attention.dtype), rows: rows(isa) };
    let parallel = attention.operations() > 1 << 18;
    let heads = attention.batch * attention.heads;
    if attention.backward.is_none() {
        let blocks = attention.queries.div_ceil(BLOCK);
        // The longest first: of causal attention the last block sees the most keys.
        threads::for_each(heads * blocks, parallel, &|i| job.forward(i % heads, blocks - 1 - i / heads));
    } else {
        threads::for_each(attention.batch * attention.kv_heads, parallel, &|i| job.backward(i));
    }
}

/// The functions over rows of scores, compiled for an instruction set.
#[derive(Clone, Copy)]
struct Rows {
    /// Makes the scores of a row weights, and returns how what was summed before shrinks.
    soften: unsafe fn(&mut [f32], &mut f32, &mut f32) -> f32,
    /// Multiplies a row.
    scale: unsafe fn(&mut [f32], f32),
    /// From a row's scores and the products with the gradient: its weights, and the gradient of its scores.
    derive: unsafe fn(&mut [f32], &mut [f32], Derived),
}

/// What the gradient of a row of scores depends on.
#[derive(Clone, Copy)]
struct Derived {
    sum: f32,
    product: f32,
    scale: f32,
}

/// Lanes that a row is folded in.
const LANES: usize = 8;

#[inline(always)]
fn fold(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    lanes.into_iter().reduce(f).unwrap_or(start)
}

#[inline(always)]
unsafe fn soften(row: &mut [f32], most: &mut f32, sum: &mut f32) -> f32 {
    let next = fold(row, *most, |a, b| if b > a { b } else { a });
    // A row that has seen no key yet has weights of zero.
    let base = if next == f32::NEG_INFINITY { 0.0 } else { next };
    let shrink = Real::exp(*most - base);
    row.iter_mut().for_each(|x| *x = Real::exp(*x - base));
    *sum = *sum * shrink + fold(row, 0.0, |a, b| a + b);
    *most = next;
    shrink
}

#[inline(always)]
unsafe fn scale(row: &mut [f32], factor: f32) {
    row.iter_mut().for_each(|x| *x *= factor);
}

#[inline(always)]
unsafe fn derive(weights: &mut [f32], products: &mut [f32], d: Derived) {
    for (weight, product) in weights.iter_mut().zip(products) {
        // Queries that see no key have a sum of minus infinity, and weights of zero.
        *weight = if d.sum == f32::NEG_INFINITY { 0.0 } else { Real::exp(*weight - d.sum) };
        *product = *weight * (*product - d.product) * d.scale;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Derived;

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn soften(row: &mut [f32], most: &mut f32, sum: &mut f32) -> f32 {
        // SAFETY: it needs nothing else.
        unsafe { super::soften(row, most, sum) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn scale(row: &mut [f32], factor: f32) {
        // SAFETY: it needs nothing else.
        unsafe { super::scale(row, factor) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn derive(weights: &mut [f32], products: &mut [f32], d: Derived) {
        // SAFETY: it needs nothing else.
        unsafe { super::derive(weights, products, d) }
    }
}

fn rows(isa: Isa) -> Rows {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => Rows { soften: avx2::soften, scale: avx2::scale, derive: avx2::derive },
        _ => Rows { soften, scale, derive },
    }
}

/// A matrix of an operand: positions by width.
#[derive(Clone, Copy)]
struct Matrix(Mat);

impl Matrix {
    /// From this row on.
    fn from(self, row: usize) -> Mat {
        let Mat { ptr, dtype, row_stride, col_stride } = self.0;
        Mat {
            ptr: ptr.wrapping_offset(row as isize * row_stride * dtype.size() as isize),
            dtype,
            row_stride,
            col_stride,
        }
    }

    /// Transposed, from this row on.
    fn across(self, row: usize) -> Mat {
        let mat = self.from(row);
        Mat { row_stride: mat.col_stride, col_stride: mat.row_stride, ..mat }
    }
}

/// Scratch of f32, `rows` apart by `stride`.
fn wide(scratch: &[f32], stride: usize, transposed: bool) -> Mat {
    let (row_stride, col_stride) = if transposed { (1, stride as isize) } else { (stride as isize, 1) };
    Mat { ptr: scratch.as_ptr().cast(), dtype: DType::F32, row_stride, col_stride }
}

struct Job<'a> {
    a: &'a Attention,
    buffers: &'a Buffers,
    blocks: Blocks,
    rows: Rows,
}

impl Job<'_> {
    /// The matrix of a batch and head.
    fn matrix(&self, input: usize, operand: &Strided, batch: usize, head: usize) -> Matrix {
        let s = operand.strides;
        let at = operand.offset + batch as isize * s[0] + head as isize * s[2];
        let ptr = self.buffers.inputs[input].wrapping_offset(at * operand.dtype.size() as isize);
        Matrix(Mat { ptr, dtype: operand.dtype, row_stride: s[1], col_stride: s[3] })
    }

    /// Keys that query `i` sees.
    fn visible(&self, i: usize) -> usize {
        let Attention { queries, keys, causal, .. } = *self.a;
        if causal { (i + 1 + keys).saturating_sub(queries) } else { keys }
    }

    /// Makes products of queries from `first` on and keys from `start` on scores: scaled, masked, and minus infinity
    /// for keys that a query does not see.
    fn score(
        &self,
        scores: &mut [f32],
        stride: usize,
        (batch, head): (usize, usize),
        [first, rows]: [usize; 2],
        [start, n]: [usize; 2],
    ) {
        for (r, row) in scores.chunks_mut(stride).take(rows).enumerate() {
            let row = &mut row[..n];
            // SAFETY: the machine has the instruction set of the function.
            unsafe { (self.rows.scale)(row, self.a.scale) };
            if let Some(mask) = &self.a.mask {
                let at = position_of(mask, [batch, head, first + r, start]);
                for (i, x) in row.iter_mut().enumerate() {
                    // SAFETY: an element of the mask, which the verifier found to broadcast to all scores.
                    *x += unsafe { read(self.buffers.inputs[3], mask.dtype, at + i as isize * mask.strides[3]) };
                }
            }
            row[self.visible(first + r).saturating_sub(start).min(n)..].fill(f32::NEG_INFINITY);
        }
    }

    /// A block of queries of a head.
    fn forward(&self, head: usize, block: usize) {
        let a = self.a;
        let (batch, head) = (head / a.heads, head % a.heads);
        let kv = head / (a.heads / a.kv_heads);
        let first = block * BLOCK;
        let rows = BLOCK.min(a.queries - first);
        let b = &self.blocks;
        let (tall, deep, wide_row) = (b.whole_rows(rows), b.whole_columns(BLOCK), b.whole_columns(a.width));
        let [q, k, v] =
            [(0, &a.q, head), (1, &a.k, kv), (2, &a.v, kv)].map(|(i, side, head)| self.matrix(i, side, batch, head));
        let sizes =
            [tall * a.width, deep * a.width.max(1), wide_row * BLOCK, tall * deep, tall * BLOCK, tall * wide_row];
        with_scratch(sizes, |[left, keys, values, scores, weights, out]| {
            let (mut most, mut sums) = ([f32::NEG_INFINITY; BLOCK], [0f32; BLOCK]);
            out.fill(0.0);
            // SAFETY: blocks inside the operands; the machine has the instruction set.
            unsafe { b.left(q.from(first), rows, a.width, left) };
            for start in (0..self.visible(first + rows - 1)).step_by(BLOCK) {
                let n = BLOCK.min(a.keys - start);
                // SAFETY: as above.
                unsafe {
                    b.right(k.across(start), a.width, n, keys);
                    b.multiply((rows, n, a.width), (left, keys), scores, deep, true);
                }
                self.score(scores, deep, (batch, head), [first, rows], [start, n]);
                for r in 0..rows {
                    // SAFETY: the machine has the instruction set of the functions.
                    unsafe {
                        let shrink = (self.rows.soften)(&mut scores[r * deep..][..n], &mut most[r], &mut sums[r]);
                        (self.rows.scale)(&mut out[r * wide_row..][..a.width], shrink);
                    }
                }
                // SAFETY: as above; the weights are scratch.
                unsafe {
                    b.left(wide(scores, deep, false), rows, n, weights);
                    b.right(v.from(start), n, a.width, values);
                    b.multiply((rows, a.width, n), (weights, values), out, wide_row, false);
                }
            }
            for r in 0..rows {
                let row = &mut out[r * wide_row..][..a.width];
                let sum = if sums[r] == 0.0 { 1.0 } else { sums[r] };
                row.iter_mut().for_each(|x| *x /= sum);
                let place = a.row([batch, first + r, head], a.queries, a.heads);
                self.store(AttentionPart::Output, place * a.width, row);
                let place = (batch * a.queries + first + r) * a.heads + head;
                self.store(AttentionPart::Sums, place, &[most[r] + sums[r].ln()]);
            }
        });
    }

    /// The gradients of the heads that share keys.
    fn backward(&self, job: usize) {
        let a = self.a;
        let (batch, kv) = (job / a.kv_heads, job % a.kv_heads);
        let group = a.heads / a.kv_heads;
        let b = &self.blocks;
        let Some(backward) = &a.backward else { return };
        let (tall, deep, wide_row) = (b.whole_rows(BLOCK), b.whole_columns(BLOCK), b.whole_columns(a.width));
        let (query_blocks, key_blocks) = (a.queries.div_ceil(BLOCK), a.keys.div_ceil(BLOCK));
        let (left, right) = (tall * a.width, wide_row * BLOCK);
        let sums_at = 3 + usize::from(a.mask.is_some());
        let [k, v] = [(1, &a.k), (2, &a.v)].map(|(i, side)| self.matrix(i, side, batch, kv));
        let all_keys = key_blocks * tall * wide_row;
        let sizes = [
            query_blocks * 2 * (left + right), // q and the output's gradient, packed from both sides
            2 * deep * a.width + right,        // k and v across, k
            2 * tall * deep,                   // weights, and the gradient of scores
            3 * tall * BLOCK,                  // those packed
            query_blocks * tall * wide_row,    // the gradient of q
            2 * all_keys,                      // of k and v
        ];
        with_scratch(sizes, |[packed, keys, scores, weights, of_q, of_keys]| {
            let (of_k, of_v) = of_keys.split_at_mut(all_keys);
            of_k.fill(0.0);
            of_v.fill(0.0);
            let (k_across, keys) = keys.split_at_mut(deep * a.width);
            let (v_across, k_along) = keys.split_at_mut(deep * a.width);
            let (scores, products) = scores.split_at_mut(tall * deep);
            let (weights_t, weights) = weights.split_at_mut(tall * BLOCK);
            let (slopes_t, slopes) = weights.split_at_mut(tall * BLOCK);
            for head in kv * group..(kv + 1) * group {
                let q = self.matrix(0, &a.q, batch, head);
                let g = self.matrix(sums_at, &backward.gradient, batch, head);
                of_q.fill(0.0);
                for (block, packed) in packed.chunks_mut(2 * (left + right)).enumerate() {
                    let (first, n) = (block * BLOCK, BLOCK.min(a.queries - block * BLOCK));
                    let (lefts, rights) = packed.split_at_mut(2 * left);
                    // SAFETY: blocks inside the operands; the machine has the instruction set.
                    unsafe {
                        b.left(q.from(first), n, a.width, &mut lefts[..left]);
                        b.left(g.from(first), n, a.width, &mut lefts[left..]);
                        b.right(q.from(first), n, a.width, &mut rights[..right]);
                        b.right(g.from(first), n, a.width, &mut rights[right..]);
                    }
                }
                for (key_block, start) in (0..a.keys).step_by(BLOCK).enumerate() {
                    let n = BLOCK.min(a.keys - start);
                    // SAFETY: as above.
                    unsafe {
                        b.right(k.across(start), a.width, n, k_across);
                        b.right(v.across(start), a.width, n, v_across);
                        b.right(k.from(start), n, a.width, k_along);
                    }
                    for (block, packed) in packed.chunks(2 * (left + right)).enumerate() {
                        let (first, rows) = (block * BLOCK, BLOCK.min(a.queries - block * BLOCK));
                        if self.visible(first + rows - 1) <= start {
                            continue;
                        }
                        let (lefts, rights) = packed.split_at(2 * left);
                        // SAFETY: as above.
                        unsafe {
                            b.multiply((rows, n, a.width), (&lefts[..left], k_across), scores, deep, true);
                            b.multiply((rows, n, a.width), (&lefts[left..], v_across), products, deep, true);
                        }
                        self.score(scores, deep, (batch, head), [first, rows], [start, n]);
                        for r in 0..rows {
                            let number = |input: usize, side: &Strided| {
                                let at = position_of(side, [batch, first + r, head]);
                                // SAFETY: an element of the operand.
                                unsafe { read(self.buffers.inputs[input], side.dtype, at) }
                            };
                            let (sum, product) =
                                (number(sums_at + 1, &backward.sums), number(sums_at + 2, &backward.products));
                            let row = r * deep..r * deep + n;
                            let derived = Derived { sum, product, scale: a.scale };
                            // SAFETY: the machine has the instruction set of the function.
                            unsafe { (self.rows.derive)(&mut scores[row.clone()], &mut products[row], derived) };
                        }
                        // SAFETY: as above; weights and slopes are scratch.
                        unsafe {
                            let to = &mut of_v[key_block * tall * wide_row..];
                            b.left(wide(scores, deep, true), n, rows, weights_t);
                            b.multiply((n, a.width, rows), (weights_t, &rights[right..]), to, wide_row, false);
                            let to = &mut of_k[key_block * tall * wide_row..];
                            b.left(wide(products, deep, true), n, rows, slopes_t);
                            b.multiply((n, a.width, rows), (slopes_t, &rights[..right]), to, wide_row, false);
                            let to = &mut of_q[block * tall * wide_row..];
                            b.left(wide(products, deep, false), rows, n, slopes);
                            b.multiply((rows, a.width, n), (slopes, k_along), to, wide_row, false);
                        }
                    }
                }
                for i in 0..a.queries {
                    let row = &of_q[(i / BLOCK * tall + i % BLOCK) * wide_row..][..a.width];
                    let place = a.row([batch, i, head], a.queries, a.heads);
                    self.store(AttentionPart::Query, place * a.width, row);
                }
            }
            for i in 0..a.keys {
                let at = (i / BLOCK * tall + i % BLOCK) * wide_row;
                let place = a.row([batch, i, kv], a.keys, a.kv_heads) * a.width;
                self.store(AttentionPart::Key, place, &of_k[at..][..a.width]);
                self.store(AttentionPart::Value, place, &of_v[at..][..a.width]);
            }
        });
    }

    /// Stores elements of a result from this position on, if it is asked for.
    fn store(&self, part: AttentionPart, at: usize, row: &[f32]) {
        let Some(output) = self.a.output(part) else { return };
        let to = self.buffers.outputs[output];
        let dtype = if part == AttentionPart::Sums { DType::F32 } else { self.a.dtype };
        // SAFETY: these elements of the output are this job's.
        unsafe {
            match dtype {
                DType::F16 => {
                    std::slice::from_raw_parts_mut(to.cast::<f16>().add(at), row.len()).convert_from_f32_slice(row)
                }
                DType::BF16 => {
                    std::slice::from_raw_parts_mut(to.cast::<bf16>().add(at), row.len()).convert_from_f32_slice(row)
                }
                _ => std::slice::from_raw_parts_mut(to.cast::<f32>().add(at), row.len()).copy_from_slice(row),
            }
        }
    }
}

fn position_of<const N: usize>(side: &Strided, at: [usize; N]) -> isize {
    side.offset + at.iter().zip(side.strides.iter()).map(|(&i, stride)| i as isize * stride).sum::<isize>()
}

/// # Safety
/// There is such an element.
unsafe fn read(from: *const u8, dtype: DType, at: isize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => from.cast::<f16>().offset(at).read().to_f32(),
            DType::BF16 => from.cast::<bf16>().offset(at).read().to_f32(),
            _ => from.cast::<f32>().offset(at).read(),
        }
    }
}

/// Slices of these lengths of this thread's scratch; what is in them is unspecified.
fn with_scratch<const N: usize>(sizes: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let total = sizes.iter().sum();
        if scratch.len() < total {
            *scratch = vec![0.0; total];
        }
        let mut rest = &mut scratch[..];
        work(sizes.map(|size| {
            let (slice, more) = std::mem::take(&mut rest).split_at_mut(size);
            rest = more;
            slice
        }));
    });
}
