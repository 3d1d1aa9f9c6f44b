//! Sums by index: what gathers become in a backward pass. Each output element adds its terms in the
//! order of the source, whatever the threads: these share the columns, never the terms of one.

use super::faults::{Fault, Faults, read_index};
use super::threads;
use crate::dtype::DType;
use crate::schedule::Scatter;
use crate::shape::{Dims, position};

/// Columns that one job takes.
const COLUMNS: usize = 64;
/// Elements from which on the work is shared.
const PARALLEL: usize = 1 << 14;

/// Zeros `out` and adds the source to it, but for what an index out of range would add.
///
/// # Safety
/// The buffers are those that `scatter` describes, initialised but for `out`, which nobody else uses.
pub unsafe fn run(scatter: &Scatter, source: *const u8, index: *const u8, out: *mut u8, faults: &Faults) {
    let (elements, dtype) = (Addresses { source, index, out }, scatter.source.dtype);
    // SAFETY: the caller's promise, in the dtype's type.
    unsafe {
        match dtype {
            DType::F64 => add_up::<f64>(scatter, elements, faults, |a, b| a + b),
            DType::I64 => add_up::<i64>(scatter, elements, faults, i64::wrapping_add),
            DType::I32 => add_up::<i32>(scatter, elements, faults, i32::wrapping_add),
            DType::U32 => add_up::<u32>(scatter, elements, faults, u32::wrapping_add),
            DType::U8 | DType::Bool => add_up::<u8>(scatter, elements, faults, u8::wrapping_add),
            _ => add_up::<f32>(scatter, elements, faults, |a, b| a + b),
        }
    }
}

#[derive(Clone, Copy)]
struct Addresses {
    source: *const u8,
    index: *const u8,
    out: *mut u8,
}

// SAFETY: jobs write disjoint columns of the output and only read the rest.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Addresses {
    fn source<T>(&self) -> *const T {
        self.source.cast()
    }

    fn index(&self) -> *const u8 {
        self.index
    }

    fn out<T>(&self) -> *mut T {
        self.out.cast()
    }
}

/// # Safety
/// As for [`run`]; T is the type of the source's dtype.
unsafe fn add_up<T: Copy>(scatter: &Scatter, at: Addresses, faults: &Faults, add: fn(T, T) -> T) {
    let Scatter { extents, axis, source, index, out, limit, node, .. } = scatter;
    let (mut loops, mut from, mut by, mut to) = (*extents, source.strides, index.strides, *out);
    let (terms, from_step, by_step, to_step) =
        (loops.remove(*axis), from.remove(*axis), by.remove(*axis), to.remove(*axis));
    // The last loop makes the columns, the others the rows.
    let last = loops.len().checked_sub(1);
    let take = |list: &mut Dims<isize>| last.map_or(0, |at| list.remove(at));
    let (from_column, by_column, to_column) = (take(&mut from), take(&mut by), take(&mut to));
    let columns = last.map_or(1, |at| loops.remove(at));
    let rows: usize = loops.iter().product();
    let stretches = columns.div_ceil(COLUMNS);
    // SAFETY: zero bytes are zero in every type; the output is as large as its outermost stride says.
    unsafe { zero::<T>(scatter, at) };
    threads::for_each(rows * stretches, extents.iter().product::<usize>() > PARALLEL, &|job| {
        let (row, first) = (job / stretches, job % stretches * COLUMNS);
        let end = (first + COLUMNS).min(columns);
        let start = [&from, &by, &to].map(|strides| position(row, &loops, strides));
        for term in 0..terms as isize {
            for column in first as isize..end as isize {
                // SAFETY: positions of the operands' own elements; an index is used once it is found below
                // the limit.
                unsafe {
                    let by_at = index.offset + start[1] + term * by_step + column * by_column;
                    let i = read_index(at.index(), index.dtype, by_at);
                    if !(0..*limit as i64).contains(&i) {
                        faults.report(Fault { index: i, limit: *limit, node: *node });
                        continue;
                    }
                    let from_at = source.offset + start[0] + term * from_step + column * from_column;
                    let to_at = start[2] + i as isize * to_step + column * to_column;
                    let slot = at.out::<T>().offset(to_at);
                    *slot = add(*slot, *at.source::<T>().offset(from_at));
                }
            }
        }
    });
}

/// # Safety
/// As for [`run`].
unsafe fn zero<T>(scatter: &Scatter, at: Addresses) {
    const BLOCK: usize = 1 << 20;
    let bytes = scatter.out_len * size_of::<T>();
    threads::for_each(bytes.div_ceil(BLOCK), bytes > BLOCK, &|block| {
        // SAFETY: blocks lie inside the output and do not overlap.
        unsafe { at.out::<u8>().add(block * BLOCK).write_bytes(0, BLOCK.min(bytes - block * BLOCK)) };
    });
}
