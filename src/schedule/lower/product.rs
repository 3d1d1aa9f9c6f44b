//! A matrix product's operands: which buffers, and by which strides.

use super::Lowering;
use crate::schedule::access::collapse;
use crate::schedule::kernel::{Gemm, Operand};
use crate::shape::{Dims, Strides};

impl Lowering<'_, '_> {
    pub(super) fn product(&self, node: u32) -> Gemm {
        let entry = self.entry(node);
        let (a, b) = (entry.inputs[0], entry.inputs[1]);
        let dims = entry.node.shape.dims();
        let rank = dims.len();
        let (m, n) = (dims[rank - 2], dims[rank - 1]);
        let k = self.shape(a).dims()[self.shape(a).rank() - 1];
        let mut extents = Dims::from_slice(&dims[..rank - 1]).unwrap_or_default(); // batch.., m
        let side = |input: u32| -> (u32, Strides, isize) {
            let base = self.stored_base(input).unwrap_or(input);
            let (strides, offset) = self.strided(input, base);
            (base, strides, offset)
        };
        let ((a_node, a_dims, a_offset), (b_node, b_dims, b_offset)) = (side(a), side(b));
        // Strides over the result's batch dimensions: 0 where an operand repeats.
        let batch = |input: u32, strides: &Strides, last: isize| -> Strides {
            let shape = self.shape(input);
            let mut over = Strides::filled(rank - 1, 0);
            let lead = rank - shape.rank();
            for i in 0..shape.rank() - 2 {
                over[lead + i] = if shape.dims()[i] == 1 { 0 } else { strides[i] };
            }
            over[rank - 2] = last;
            over
        };
        let mut a_over = batch(a, &a_dims, a_dims[a_dims.len() - 2]);
        let mut b_over = batch(b, &b_dims, 0);
        let shared = b_over.iter().all(|&s| s == 0);
        if shared {
            // One right-hand side for all: rows of the whole batch are rows of one product.
            merge_batch(&mut extents, &mut a_over, &mut b_over);
        }
        let last = extents.len() - 1;
        let rows = extents.remove(last);
        let row_stride = a_over.remove(last);
        b_over.remove(last);
        debug_assert!(shared || rows == m);
        let a =
            Operand { node: a_node, row_stride, col_stride: a_dims[a_dims.len() - 1], batch: a_over, offset: a_offset };
        let b = Operand {
            node: b_node,
            row_stride: b_dims[b_dims.len() - 2],
            col_stride: b_dims[b_dims.len() - 1],
            batch: b_over,
            offset: b_offset,
        };
        Gemm { m: rows, n, k, dtype: entry.node.dtype, batch: extents, a, b }
    }
}

/// Merges batch dimensions into the rows of the left operand, where its strides allow all of them.
fn merge_batch(extents: &mut Dims<usize>, a: &mut Strides, b: &mut Strides) {
    let (mut merged, mut a_merged, mut b_merged) = (*extents, *a, *b);
    collapse(&mut merged, &mut [&mut a_merged, &mut b_merged]);
    if merged.len() == 1 {
        (*extents, *a, *b) = (merged, a_merged, b_merged);
    }
}
