//! Products of blocks that fit the caches, for kernels that do more than a product with them. Sums are f32.

use super::kernels::{Accumulator, Kernel};
use super::pack::View;
use super::{Isa, Mat};
use crate::dtype::DType;

/// The kernels for blocks of operands of one dtype, and of f32.
#[derive(Clone, Copy)]
pub struct Blocks {
    stored: Kernel<f32>,
    wide: Kernel<f32>,
}

impl Blocks {
    /// For f16, bf16 and f32.
    pub fn new(isa: Isa, dtype: DType) -> Blocks {
        // Pairs of bf16 do not go with panels of f32.
        let isa = if dtype == DType::BF16 && isa.has_bf16_dot() { Isa::Avx2 } else { isa };
        Blocks { stored: f32::kernel(isa, dtype), wide: f32::kernel(isa, DType::F32) }
    }

    /// `rows` rounded up to whole tiles.
    pub fn whole_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.wide.mr)
    }

    /// `columns` rounded up to whole tiles.
    pub fn whole_columns(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.wide.nr)
    }

    /// Packs a left operand, `rows` by `depth`, of the dtype or of f32.
    ///
    /// # Safety
    /// The elements are readable; `to` has [`Blocks::whole_rows`] times `depth` elements; the machine has the
    /// instruction set.
    pub unsafe fn left(&self, from: Mat, rows: usize, depth: usize, to: &mut [f32]) {
        assert!(to.len() >= self.whole_rows(rows) * depth);
        let (lane_stride, k_stride) = (from.row_stride, from.col_stride);
        let view = View { ptr: from.ptr, lanes: rows, lane_stride, k: depth, k_stride };
        // SAFETY: the caller's promise, and the length above.
        unsafe { (self.of(from.dtype).pack_a)(&view, to.as_mut_ptr()) }
    }

    /// Packs a right operand, `depth` by `columns`, of the dtype or of f32.
    ///
    /// # Safety
    /// As for [`Blocks::left`], with [`Blocks::whole_columns`] times `depth` elements.
    pub unsafe fn right(&self, from: Mat, depth: usize, columns: usize, to: &mut [f32]) {
        assert!(to.len() >= self.whole_columns(columns) * depth);
        let (lane_stride, k_stride) = (from.col_stride, from.row_stride);
        let view = View { ptr: from.ptr, lanes: columns, lane_stride, k: depth, k_stride };
        // SAFETY: the caller's promise, and the length above.
        unsafe { (self.of(from.dtype).pack_b)(&view, to.as_mut_ptr()) }
    }

    fn of(&self, dtype: DType) -> &Kernel<f32> {
        if dtype == DType::F32 { &self.wide } else { &self.stored }
    }

    /// The product of packed operands, `rows` by `columns`, in whole tiles: added to `out`, whose rows are `stride`
    /// apart, or stored there.
    ///
    /// # Safety
    /// The machine has the instruction set.
    pub unsafe fn multiply(
        &self,
        (rows, columns, depth): (usize, usize, usize),
        (left, right): (&[f32], &[f32]),
        out: &mut [f32],
        stride: usize,
        overwrite: bool,
    ) {
        let (mr, nr) = (self.wide.mr, self.wide.nr);
        let (rows, columns) = (self.whole_rows(rows), self.whole_columns(columns));
        assert!(left.len() >= rows * depth && right.len() >= columns * depth);
        assert!(stride >= columns && out.len() >= rows.saturating_sub(1) * stride + columns);
        for column in (0..columns).step_by(nr) {
            for row in (0..rows).step_by(mr) {
                // SAFETY: panels and tiles of these sizes are inside the slices, by the lengths above.
                unsafe {
                    let (a, b) = (left.as_ptr().add(row * depth), right.as_ptr().add(column * depth));
                    (self.wide.tile)(depth, a, b, out.as_mut_ptr().add(row * stride + column), stride, overwrite);
                }
            }
        }
    }
}
