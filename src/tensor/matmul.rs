//! Matrix products.

use super::{Tensor, autocast, full_precision};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::shape::{Dims, Shape};

impl Tensor {
    /// Matrix product `[.., m, k] x [.., k, n] -> [.., m, n]`. Batch dimensions broadcast; a vector
    /// on the left is a row, one on the right a column, and their dimension is dropped again. Views are
    /// read by their strides, without copies. f16 and bf16 are summed in f32.
    ///
    /// # Errors
    /// Scalars, inner sizes that differ, batch dimensions that do not broadcast, different dtypes, bool.
    #[track_caller]
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        if autocast::is_on() {
            let (a, b) = (autocast::operand(self)?, autocast::operand(other)?);
            return full_precision(|| a.matmul(&b));
        }
        self.same_device("matmul", other)?;
        self.same_dtype("matmul", other)?;
        if self.dtype() == DType::Bool {
            return Err(Error::dtype("matmul", DType::Bool, "convert with to_dtype(DType::U8)"));
        }
        if self.rank() == 0 || other.rank() == 0 {
            return Err(Error::shapes("matmul", self.shape(), other.shape(), "a scalar is no matrix; use mul"));
        }
        let (left, right) = (self.rank().saturating_sub(1), other.rank().saturating_sub(2));
        let (k, k_other) = (self.dims()[left], other.dims()[right]);
        if k != k_other {
            let reason = format!("inner sizes {k} and {k_other} differ");
            return Err(Error::shapes("matmul", self.shape(), other.shape(), reason));
        }
        if self.rank() == 1 {
            let row = self.unsqueeze(0)?.matmul(other)?;
            let at = row.rank() as isize - if other.rank() == 1 { 1 } else { 2 };
            return row.squeeze(at);
        }
        if other.rank() == 1 {
            return self.matmul(&other.unsqueeze(1)?)?.squeeze(-1);
        }
        let shape = product_shape(self.shape(), other.shape())?;
        if k == 0 && shape.numel() > 0 {
            return Tensor::zeros(shape, self.dtype(), self.device());
        }
        Tensor::record(Op::Matmul, &[self, other], shape, self.dtype(), self.device())
    }
}

/// The shape of the product of matrices whose inner sizes agree.
fn product_shape(a: &Shape, b: &Shape) -> Result<Shape> {
    let split = |s: &Shape| -> (Shape, [usize; 2]) {
        let (batch, matrix) = s.dims().split_at(s.rank() - 2);
        (Shape::new(batch).unwrap_or_default(), [matrix[0], matrix[1]])
    };
    let ((a_batch, [m, _]), (b_batch, [_, n])) = (split(a), split(b));
    let batch = Shape::broadcast("matmul", &a_batch, &b_batch)
        .map_err(|_| Error::shapes("matmul", a, b, "batch dimensions do not broadcast"))?;
    let mut dims: Dims<usize> = Dims::from_slice(batch.dims()).unwrap_or_default();
    let fits = dims.insert(batch.rank(), m) && dims.insert(batch.rank() + 1, n);
    if !fits {
        return Err(Error::shapes("matmul", a, b, "too many dimensions"));
    }
    Shape::new(&dims)
}
