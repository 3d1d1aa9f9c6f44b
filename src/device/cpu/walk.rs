//! Moving between strided memory and tiles.

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

    /// Position of step `at`, counted in row-major order.
    pub fn position(&self, at: usize) -> isize {
        if let ([_], [stride]) = (&*self.extents, &*self.strides) {
            return at as isize * stride;
        }
        position(at, &self.extents, &self.strides)
    }

    /// Calls `visit` for stretches that cover steps `start .. start + n`.
    fn runs(&self, start: usize, n: usize, mut visit: impl FnMut(Run)) {
        let Some((&row, &stride)) = self.extents.last().zip(self.strides.last()) else {
            // No loops: n is 1.
            return visit(Run { at: 0, position: 0, stride: 0, len: n });
        };
        if self.extents.len() == 1 {
            return visit(Run { at: 0, position: start as isize * stride, stride, len: n });
        }
        let mut at = 0;
        while at < n {
            let inside = (start + at) % row;
            let len = (row - inside).min(n - at);
            visit(Run { at, position: self.position(start + at), stride, len });
            at += len;
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
    let (from, to) = (dtype.size(), super::tile::class(dtype).size());
    walk.runs(start, n, |run| {
        // SAFETY: runs stay within the walk and the tile, by the caller's promise.
        unsafe {
            let (out, source) = (tile.add(run.at * to), memory.offset(run.position * from as isize));
            match (run.stride, convert) {
                (1, Some(convert)) => convert(out, [source; 3], run.len),
                (1, None) => std::ptr::copy_nonoverlapping(source, out, run.len * from),
                _ => load_strided(out, source, dtype, convert, run.stride, run.len),
            }
        }
    });
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
    /// The part of `within`, counted from step `at` on, in which the coordinate is in `0..limit`.
    fn inside(&self, at: usize, within: Range<isize>) -> Range<isize> {
        let first = self.start + self.walk.position(at);
        let limit = self.limit as isize;
        match self.walk.strides.last().copied().unwrap_or(0) {
            0 if (0..limit).contains(&first) => within,
            0 => 0..0,
            // first + i * step >= 0 and < limit.
            step if step > 0 => within.start.max((-first + step - 1).div_euclid(step))
                ..within.end.min((limit - first + step - 1).div_euclid(step)),
            step => within.start.max((first - limit).div_euclid(-step) + 1)..within.end.min(first.div_euclid(-step) + 1),
        }
    }
}

/// Fills a tile with `n` elements where all guards hold, else with zeros.
///
/// # Safety
/// As for [`load`], of the positions where the guards hold; `walk` and the guards' walk the same
/// loops.
pub unsafe fn load_padded<'a>(
    tile: *mut u8,
    memory: *const u8,
    (dtype, convert): (DType, Option<TileFn>),
    walk: &Walk,
    guards: impl Iterator<Item = Guarded<'a>> + Clone,
    start: usize,
    n: usize,
) {
    let (from, to) = (dtype.size(), super::tile::class(dtype).size());
    walk.runs(start, n, |run| {
        let all = 0..run.len as isize;
        let inside = guards.clone().fold(all, |within, guard| guard.inside(start + run.at, within));
        let len = (inside.end - inside.start).max(0) as usize;
        let first = if len == 0 { run.len } else { inside.start as usize };
        // SAFETY: runs stay within the tile, and what is read within the walk where the guards hold.
        unsafe {
            let out = tile.add(run.at * to);
            out.write_bytes(0, first * to);
            if len > 0 {
                let source = memory.wrapping_offset((run.position + inside.start * run.stride) * from as isize);
                let target = out.add(first * to);
                match (run.stride, convert) {
                    (1, Some(convert)) => convert(target, [source; 3], len),
                    (1, None) => std::ptr::copy_nonoverlapping(source, target, len * from),
                    _ => load_strided(target, source, dtype, convert, run.stride, len),
                }
                out.add((first + len) * to).write_bytes(0, (run.len - first - len) * to);
            }
        }
    });
}

/// # Safety
/// As for [`load`], for one run.
unsafe fn load_strided(
    out: *mut u8,
    source: *const u8,
    dtype: DType,
    convert: Option<TileFn>,
    stride: isize,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (convert, dtype.size()) {
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
    let (to, from) = (dtype.size(), super::tile::class(dtype).size());
    walk.runs(start, n, |run| {
        // SAFETY: runs stay within the walk and the tile, by the caller's promise.
        unsafe {
            let (target, source) = (memory.offset(run.position * to as isize), tile.add(run.at * from));
            match (run.stride, convert) {
                (1, Some(convert)) => convert(target, [source; 3], run.len),
                // A copy in place: there is nothing to do.
                (1, None) if std::ptr::eq(source, target) => {}
                (1, None) => std::ptr::copy_nonoverlapping(source, target, run.len * to),
                (stride, Some(convert)) => {
                    let step = stride * to as isize;
                    (0..run.len).for_each(|i| convert(target.offset(i as isize * step), [source.add(i * from); 3], 1));
                }
                (stride, None) => {
                    let step = stride * to as isize;
                    (0..run.len).for_each(|i| {
                        std::ptr::copy_nonoverlapping(source.add(i * from), target.offset(i as isize * step), to);
                    });
                }
            }
        }
    });
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
