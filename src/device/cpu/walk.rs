//! Moving between strided memory and tiles.

use super::gemm::prefetch;
use super::tile::TileFn;
use crate::dtype::DType;
use crate::shape::{Dims, Strides, position};
use std::ops::Range;

/// A loop nest walked in row-major order over strided memory.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    extents: Dims<usize>,
    strides: Strides,
}

/// A stretch of a [`Walk`] with one stride.
struct Run {
    /// Elements already walked.
    at: usize,
    /// Position in memory.
    position: isize,
    stride: isize,
    len: usize,
}

impl Walk {
    /// A walk over `extents` with `strides`, loops merged where memory allows.
    pub fn new(extents: &Dims<usize>, strides: &Strides) -> Walk {
        let (mut extents, mut strides) = (*extents, *strides);
        crate::schedule::collapse(&mut extents, &mut [&mut strides]);
        Walk { extents, strides }
    }

    /// A walk over exactly these loops.
    pub fn plain(extents: &Dims<usize>, strides: &Strides) -> Walk {
        Walk { extents: *extents, strides: *strides }
    }

    /// Whether it reads memory straight on.
    pub fn is_contiguous(&self) -> bool {
        self.extents.is_empty() || (self.extents.len() == 1 && self.strides[0] == 1)
    }

    /// From one position to the next, if that is the same for all.
    pub fn stride(&self) -> Option<isize> {
        match &*self.strides {
            [] => Some(0),
            [stride] => Some(*stride),
            _ => None,
        }
    }

    /// Position of step `at`, counted in row-major order.
    pub fn position(&self, at: usize) -> isize {
        if let ([_], [stride]) = (&*self.extents, &*self.strides) {
            return at as isize * stride;
        }
        position(at, &self.extents, &self.strides)
    }

    /// Calls `visit` for stretches that cover steps `start .. start + n`.
    fn runs(&self, start: usize, n: usize, mut visit: impl FnMut(Run)) {
        let stride = self.strides.last().copied().unwrap_or(0);
        stretches(&self.extents, [&self.strides], start, n, |at, [position], len| {
            visit(Run { at, position, stride, len });
        });
    }
}

/// Walks a loop nest from step `start` on, `n` steps: calls `visit` for each stretch of its last loop with
/// the number of steps before it, the positions by each of the strides, and its length. Positions are
/// carried along, as divisions for each stretch would cost more than a short one.
#[inline(always)]
fn stretches<const N: usize>(
    extents: &Dims<usize>,
    strides: [&Strides; N],
    start: usize,
    n: usize,
    mut visit: impl FnMut(usize, [isize; N], usize),
) {
    let Some((last, &row)) = extents.len().checked_sub(1).zip(extents.last()) else {
        // No loops: n is 1.
        return visit(0, [0; N], n);
    };
    if last == 0 {
        return visit(0, strides.map(|s| start as isize * s[0]), n);
    }
    let mut index = *extents;
    let mut rest = start;
    for (i, &extent) in index.iter_mut().zip(extents.iter()).rev() {
        *i = rest % extent;
        rest /= extent;
    }
    let mut positions = strides.map(|s| (0..last).map(|i| index[i] as isize * s[i]).sum::<isize>());
    let (mut at, mut inside) = (0, index[last]);
    while at < n {
        let len = (row - inside).min(n - at);
        let mut here = positions;
        (0..N).for_each(|k| here[k] += inside as isize * strides[k][last]);
        visit(at, here, len);
        at += len;
        inside = 0;
        for i in (0..last).rev() {
            index[i] += 1;
            (0..N).for_each(|k| positions[k] += strides[k][i]);
            if index[i] < extents[i] {
                break;
            }
            index[i] = 0;
            (0..N).for_each(|k| positions[k] -= strides[k][i] * extents[i] as isize);
        }
    }
}

/// Fills a tile with `n` elements of `dtype` from `memory`, along `walk` from step `start` on.
///
/// # Safety
/// Every position that the walk visits lies in initialised memory at `memory`; `tile` has room for
/// `n` elements of the dtype's tile class and overlaps none of it.
pub unsafe fn load(
    tile: *mut u8,
    memory: *const u8,
    dtype: DType,
    convert: Option<TileFn>,
    walk: &Walk,
    start: usize,
    n: usize,
) {
    let (from, to) = (dtype.size(), dtype.held().size());
    walk.runs(start, n, |run| {
        // SAFETY: runs stay within the walk and the tile, by the caller's promise.
        unsafe {
            let (out, source) = (tile.add(run.at * to), memory.offset(run.position * from as isize));
            load_run(out, source, dtype, convert, run.stride, run.len);
        }
    });
}

/// Fills a tile with `n` elements, each `index * stride` further than [`load`] would find it.
///
/// # Safety
/// As for [`load`], of the positions so moved; there are `n` indices.
pub unsafe fn load_indexed(
    tile: *mut u8,
    memory: *const u8,
    (dtype, convert): (DType, Option<TileFn>),
    walk: &Walk,
    start: usize,
    (indices, stride): (&[i64], isize),
) {
    let (from, to) = (dtype.size(), dtype.held().size());
    walk.runs(start, indices.len(), |run| {
        let indices = &indices[run.at..run.at + run.len];
        let first = indices[0];
        // Without an early end, so that it vectorises.
        let alike = indices.iter().fold(0, |different, index| different | (index ^ first)) == 0;
        // SAFETY: runs stay within the walk and the tile, by the caller's promise.
        unsafe {
            let (out, source) = (tile.add(run.at * to), memory.offset(run.position * from as isize));
            if alike {
                let source = source.offset(first as isize * stride * from as isize);
                return load_run(out, source, dtype, convert, run.stride, run.len);
            }
            match (convert, from) {
                (Some(convert), _) => {
                    let mut narrow = [0u16; STRETCH];
                    for (piece, indices) in indices.chunks(STRETCH).enumerate() {
                        let at = piece * STRETCH;
                        let source = source.offset(at as isize * run.stride * 2);
                        pick::<u16>(narrow.as_mut_ptr().cast(), source, run.stride, indices, stride);
                        convert(out.add(at * to), [narrow.as_ptr().cast(); 3], indices.len());
                    }
                }
                (None, 8) => pick::<u64>(out, source, run.stride, indices, stride),
                (None, 4) => pick::<u32>(out, source, run.stride, indices, stride),
                (None, _) => pick::<u8>(out, source, run.stride, indices, stride),
            }
        }
    });
}

/// # Safety
/// `source` can be read at every step, moved by its index times `along`, and `out` written as often.
unsafe fn pick<T: Copy>(out: *mut u8, source: *const u8, step: isize, indices: &[i64], along: isize) {
    let (out, source) = (out.cast::<T>(), source.cast::<T>());
    for (i, &index) in indices.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *out.add(i) = *source.offset(i as isize * step + index as isize * along) };
    }
}

/// A coordinate along a walk's loops, and its limit.
#[derive(Clone, Copy)]
pub struct Guarded<'a> {
    /// The coordinate's steps along the same loops, none merged.
    pub walk: &'a Walk,
    /// The coordinate where these loops begin.
    pub start: isize,
    pub limit: usize,
}

impl Guarded<'_> {
    /// The part of `within`, counted from where the coordinate is `first`, in which it is in `0..limit`.
    #[inline(always)]
    fn inside(&self, first: isize, within: Range<isize>) -> Range<isize> {
        let limit = self.limit as isize;
        match self.walk.strides.last().copied().unwrap_or(0) {
            0 if (0..limit).contains(&first) => within,
            0 => 0..0,
            1 => within.start.max(-first)..within.end.min(limit - first),
            // first + i * step >= 0 and < limit.
            step if step > 0 => {
                within.start.max((-first + step - 1).div_euclid(step))
                    ..within.end.min((limit - first + step - 1).div_euclid(step))
            }
            step => {
                within.start.max((first - limit).div_euclid(-step) + 1)..within.end.min(first.div_euclid(-step) + 1)
            }
        }
    }
}

/// Fills a tile with `n` elements where all guards hold, else with zeros.
///
/// # Safety
/// As for [`load`], of the positions where the guards hold; `walk` and the guards' walk the same
/// loops.
pub unsafe fn load_padded(
    tile: *mut u8,
    memory: *const u8,
    (dtype, convert): (DType, Option<TileFn>),
    walk: &Walk,
    guards: &[Guarded],
    start: usize,
    n: usize,
) {
    let (from, to) = (dtype.size(), dtype.held().size());
    let stride = walk.strides.last().copied().unwrap_or(0);
    let fill = |at: usize, position: isize, inside: Range<isize>, steps: usize| {
        let len = (inside.end - inside.start).max(0) as usize;
        let first = if len == 0 { steps } else { inside.start as usize };
        // SAFETY: runs stay within the tile, and what is read within the walk where the guards hold.
        unsafe {
            let out = tile.add(at * to);
            out.write_bytes(0, first * to);
            if len > 0 {
                let source = memory.wrapping_offset((position + inside.start * stride) * from as isize);
                let target = out.add(first * to);
                load_run(target, source, dtype, convert, stride, len);
                out.add((first + len) * to).write_bytes(0, (steps - first - len) * to);
            }
        }
    };
    // An image has two guards; more are walked one by one.
    match guards {
        [one] => stretches(&walk.extents, [&walk.strides, &one.walk.strides], start, n, |at, [p, a], len| {
            fill(at, p, one.inside(one.start + a, 0..len as isize), len);
        }),
        [one, two] => {
            let strides = [&walk.strides, &one.walk.strides, &two.walk.strides];
            stretches(&walk.extents, strides, start, n, |at, [p, a, b], len| {
                fill(at, p, two.inside(two.start + b, one.inside(one.start + a, 0..len as isize)), len);
            });
        }
        _ => stretches(&walk.extents, [&walk.strides], start, n, |at, [p], len| {
            let inside = |within, guard: &Guarded| guard.inside(guard.start + guard.walk.position(start + at), within);
            fill(at, p, guards.iter().fold(0..len as isize, inside), len);
        }),
    }
}

/// # Safety
/// As for [`load`], for one run.
unsafe fn load_run(out: *mut u8, source: *const u8, dtype: DType, convert: Option<TileFn>, stride: isize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match (convert, dtype.size()) {
            (Some(convert), _) if stride == 1 => convert(out, [source; 3], n),
            (None, size) if stride == 1 => std::ptr::copy_nonoverlapping(source, out, n * size),
            (Some(convert), _) => {
                // Narrow values are gathered as they are, then converted together.
                let mut gathered = [0u16; STRETCH];
                for first in (0..n).step_by(STRETCH) {
                    let len = STRETCH.min(n - first);
                    let from = source.offset(first as isize * stride * 2);
                    gather::<u16>(gathered.as_mut_ptr().cast(), from, stride, len);
                    convert(out.add(first * 4), [gathered.as_ptr().cast(); 3], len);
                }
            }
            (None, 8) => gather::<u64>(out, source, stride, n),
            (None, 4) => gather::<u32>(out, source, stride, n),
            (None, _) => gather::<u8>(out, source, stride, n),
        }
    }
}

/// A block of rows of a loop nest whose last loop walks memory in large steps, as it lies in a panel.
#[derive(Clone, Copy)]
pub struct Panel {
    /// The first row.
    pub row: usize,
    pub rows: usize,
    /// Steps of the last loop.
    pub row_len: usize,
    /// The first step in each row, and how many.
    pub first: usize,
    pub n: usize,
    /// Elements from a row of the panel to the next.
    pub stride: usize,
}

/// Copies a block of rows to a panel, in the order in which they lie in memory: neighbouring rows together.
///
/// # Safety
/// Every position of the block lies in initialised memory at `memory`; `panel` has room for the rows, of `size`
/// bytes an element.
pub unsafe fn load_panel(panel: *mut u8, memory: *const u8, size: usize, walk: &Walk, block: Panel) {
    let position = |row: usize| walk.position(row * block.row_len + block.first);
    let step = walk.strides.last().copied().unwrap_or(0);
    let mut row = 0;
    while row < block.rows {
        let first = position(block.row + row);
        let neighbours = (row + 1..block.rows).take_while(|r| position(block.row + r) == first + (r - row) as isize);
        let rows = 1 + neighbours.count();
        // SAFETY: the rows are the block's, which the caller vouches for.
        unsafe {
            let (out, source) = (panel.add(row * block.stride * size), memory.offset(first * size as isize));
            match size {
                8 => turn::<u64>(out, source, step, rows, block),
                4 => turn::<u32>(out, source, step, rows, block),
                2 => turn::<u16>(out, source, step, rows, block),
                _ => turn::<u8>(out, source, step, rows, block),
            }
        }
        row += rows;
    }
}

/// # Safety
/// As for [`load_panel`], for `rows` that are neighbours in memory.
unsafe fn turn<T: Copy>(out: *mut u8, source: *const u8, step: isize, rows: usize, block: Panel) {
    let (out, source) = (out.cast::<T>(), source.cast::<T>());
    for i in 0..block.n {
        let source = source.wrapping_offset(i as isize * step);
        let ahead = source.wrapping_offset(PREFETCH * step);
        (0..rows).step_by(64 / size_of::<T>()).for_each(|row| prefetch(ahead.wrapping_add(row)));
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe { *out.add(row * block.stride + i) = *source.add(row) };
        }
    }
}

/// Steps of a walk across memory that are asked for ahead: the hardware does not foresee them.
const PREFETCH: isize = 8;

/// Narrow values that are gathered before they are converted.
const STRETCH: usize = 256;

/// # Safety
/// `source` can be read at every step, `out` written `n` times.
unsafe fn gather<T: Copy>(out: *mut u8, source: *const u8, stride: isize, n: usize) {
    let (out, source) = (out.cast::<T>(), source.cast::<T>());
    // SAFETY: the caller's promise.
    unsafe {
        if stride == 0 {
            let value = *source;
            (0..n).for_each(|i| *out.add(i) = value);
        } else {
            (0..n).for_each(|i| *out.add(i) = *source.offset(i as isize * stride));
        }
    }
}

/// # Safety
/// `source` can be read `n` times, `out` written at every step.
unsafe fn scatter<T: Copy>(out: *mut u8, source: *const u8, stride: isize, n: usize) {
    let (out, source) = (out.cast::<T>(), source.cast::<T>());
    // SAFETY: the caller's promise.
    unsafe { (0..n).for_each(|i| *out.offset(i as isize * stride) = *source.add(i)) };
}

/// Writes a tile's `n` elements to `memory` of `dtype`, along `walk` from step `start` on.
///
/// # Safety
/// Every position that the walk visits can be written, by this thread alone; `tile` holds `n`
/// initialised elements of the dtype's tile class and overlaps none of it.
pub unsafe fn store(
    memory: *mut u8,
    tile: *const u8,
    dtype: DType,
    convert: Option<TileFn>,
    walk: &Walk,
    start: usize,
    n: usize,
) {
    let (to, from) = (dtype.size(), dtype.held().size());
    walk.runs(start, n, |run| {
        // SAFETY: runs stay within the walk and the tile, by the caller's promise.
        unsafe {
            let (target, source) = (memory.offset(run.position * to as isize), tile.add(run.at * from));
            match (run.stride, convert) {
                (1, _) => store_straight(target, source, dtype, convert, run.len),
                (stride, Some(convert)) => {
                    // Converted together, then scattered as they are.
                    let mut narrow = [0u16; STRETCH];
                    for first in (0..run.len).step_by(STRETCH) {
                        let len = STRETCH.min(run.len - first);
                        convert(narrow.as_mut_ptr().cast(), [source.add(first * from); 3], len);
                        let target = target.offset(first as isize * stride * to as isize);
                        scatter::<u16>(target, narrow.as_ptr().cast(), stride, len);
                    }
                }
                (stride, None) => match to {
                    8 => scatter::<u64>(target, source, stride, run.len),
                    4 => scatter::<u32>(target, source, stride, run.len),
                    _ => scatter::<u8>(target, source, stride, run.len),
                },
            }
        }
    });
}

/// Writes a tile's `n` elements side by side to `target`.
///
/// # Safety
/// As for [`store`]; both may be the same memory.
pub unsafe fn store_straight(target: *mut u8, source: *const u8, dtype: DType, convert: Option<TileFn>, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match convert {
            Some(convert) => convert(target, [source; 3], n),
            // A copy in place: there is nothing to do.
            None if std::ptr::eq(source, target) => {}
            None => std::ptr::copy_nonoverlapping(source, target, n * dtype.size()),
        }
    }
}

/// Fills an i64 tile with the positions themselves.
///
/// # Safety
/// `tile` has room for `n` i64.
pub unsafe fn positions(tile: *mut u8, offset: isize, walk: &Walk, start: usize, n: usize) {
    walk.runs(start, n, |run| {
        // SAFETY: runs stay within the tile.
        let out = unsafe { std::slice::from_raw_parts_mut(tile.cast::<i64>().add(run.at), run.len) };
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = (offset + run.position + i as isize * run.stride) as i64;
        }
    });
}
