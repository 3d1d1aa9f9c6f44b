//! Reading through indices. An index out of range is an error at evaluation, which names the call.

use super::{Dim, Tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Op, is_recording};
use crate::shape::Shape;

impl Tensor {
    /// The slices of dimension `dim` that a vector of indices names, in its order:
    /// `out[.., i, ..] = self[.., index[i], ..]`.
    ///
    /// # Errors
    /// An index that is no integer vector; at evaluation, an index out of range.
    #[track_caller]
    pub fn index_select(&self, dim: impl Dim, index: &Tensor) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "index_select")?;
        self.selected("index_select", dim, index)
    }

    #[track_caller]
    fn selected(&self, op: &'static str, dim: usize, index: &Tensor) -> Result<Tensor> {
        if index.rank() != 1 {
            return Err(Error::shape(op, index.shape(), "the index must be a vector"));
        }
        let mut out = self.dims().to_vec();
        out[dim] = index.numel();
        let mut along = vec![1; self.rank()];
        along[dim] = index.numel();
        self.gathered(op, dim, &index.reshape(along)?, Shape::new(&out)?)
    }

    /// `out[.., i, ..] = self[.., index[.., i, ..], ..]` along `dim`: an index an element.
    ///
    /// # Errors
    /// An index of another rank, larger than `self` in another dimension, or no integers; at
    /// evaluation, an index out of range.
    #[track_caller]
    pub fn gather(&self, dim: impl Dim, index: &Tensor) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "gather")?;
        let fits = |i: usize| i == dim || index.dims()[i] <= self.dims()[i];
        if index.rank() != self.rank() || !(0..self.rank()).all(fits) {
            let reason = format!("the index may exceed the tensor in dimension {dim} only");
            return Err(Error::shapes("gather", self.shape(), index.shape(), reason));
        }
        self.gathered("gather", dim, index, *index.shape())
    }

    /// The rows of this table `[entries, width]` that `ids` name: `[.., width]`.
    ///
    /// # Errors
    /// A table that is no matrix, ids that are no integers; at evaluation, an id out of range.
    #[track_caller]
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        if self.rank() != 2 {
            return Err(Error::shape("embedding", self.shape(), "the table must be a matrix [entries, width]"));
        }
        let mut shape = ids.dims().to_vec();
        shape.push(self.dims()[1]);
        let shape = Shape::new(&shape)?;
        self.selected("embedding", 0, &ids.flatten_all()?)?.reshape(shape)
    }

    /// `self` with `source` added along `dim` where `index` says: `out[.., index[.., i, ..], ..] +=
    /// source[.., i, ..]`, in the order of i.
    ///
    /// # Errors
    /// Sources and indices of different shapes, or larger than `self` in another dimension; dtypes that
    /// differ; indices that are no integers; at evaluation, an index out of range.
    #[track_caller]
    pub fn scatter_add(&self, dim: impl Dim, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        let op = "scatter_add";
        let dim = dim.of(self.shape(), op)?;
        if index.shape() != source.shape() {
            return Err(Error::shapes(op, index.shape(), source.shape(), "an index for each element is wanted"));
        }
        let fits = |i: usize| i == dim || source.dims()[i] <= self.dims()[i];
        if source.rank() != self.rank() || !(0..self.rank()).all(fits) {
            let reason = format!("the source may exceed the tensor in dimension {dim} only");
            return Err(Error::shapes(op, self.shape(), source.shape(), reason));
        }
        self.same_dtype(op, source)?;
        self.with_sums(source.widened()?.scattered(op, dim, index, *self.shape())?)
    }

    /// `self` with the slices of `source` along `dim` added to those that a vector of indices names.
    ///
    /// # Errors
    /// An index that is no integer vector with an entry a slice; shapes that differ elsewhere; dtypes
    /// that differ; at evaluation, an index out of range.
    #[track_caller]
    pub fn index_add(&self, dim: impl Dim, index: &Tensor, source: &Tensor) -> Result<Tensor> {
        let op = "index_add";
        let dim = dim.of(self.shape(), op)?;
        let fits = |i: usize| source.dims()[i] == if i == dim { index.numel() } else { self.dims()[i] };
        if index.rank() != 1 || source.rank() != self.rank() || !(0..self.rank()).all(fits) {
            let reason = format!("the source must have the tensor's shape, and {} slices", index.numel());
            return Err(Error::shapes(op, self.shape(), source.shape(), reason));
        }
        self.same_dtype(op, source)?;
        let mut along = vec![1; self.rank()];
        along[dim] = index.numel();
        self.with_sums(source.widened()?.scattered(op, dim, &index.reshape(along)?, *self.shape())?)
    }

    #[track_caller]
    fn with_sums(&self, sums: Tensor) -> Result<Tensor> {
        (self.widened()? + sums)?.to_dtype(self.dtype())
    }

    /// Zeros of `shape` to which this tensor's elements are added along `dim` where `index`, which
    /// broadcasts to it, says. In the compute dtype.
    #[track_caller]
    pub(crate) fn scattered(&self, op: &'static str, dim: usize, index: &Tensor, shape: Shape) -> Result<Tensor> {
        self.same_device(op, index)?;
        index.needs_index(op)?;
        if self.dtype() == DType::Bool {
            return Err(Error::dtype(op, DType::Bool, "convert with to_dtype(DType::U8)"));
        }
        if self.numel() == 0 {
            return Tensor::zeros(shape, self.dtype(), self.device());
        }
        if shape.numel() == 0 {
            return Err(Error::shape(op, &shape, "there is nothing to add to"));
        }
        Tensor::record(Op::Scatter { axis: dim as u8, name: op }, &[self, index], shape, self.dtype(), self.device())
    }

    #[track_caller]
    pub(crate) fn gathered(&self, op: &'static str, dim: usize, index: &Tensor, shape: Shape) -> Result<Tensor> {
        self.same_device(op, index)?;
        index.needs_index(op)?;
        if shape.numel() > 0 && self.numel() == 0 {
            return Err(Error::shape(op, self.shape(), "there is nothing to index"));
        }
        Tensor::record(Op::Gather { axis: dim as u8, name: op }, &[self, index], shape, self.dtype(), self.device())
    }

    /// This tensor with `new` in the place of its rows from `start` on along `dim`, written over it where nobody else has
    /// it. `None` if there is no such op: gradients may follow, or rows do not begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// Shapes that do not fit; dtypes or devices that differ.
    #[track_caller]
    pub(crate) fn updated(&self, new: &Tensor, dim: usize, start: usize) -> Result<Option<Tensor>> {
        const OP: &str = "update";
        self.same_dtype(OP, new)?;
        self.same_device(OP, new)?;
        let fits =
            |i: usize| if i == dim { start + new.dims()[i] <= self.dims()[i] } else { new.dims()[i] == self.dims()[i] };
        if new.rank() != self.rank() || !(0..self.rank()).all(fits) {
            return Err(Error::shapes(OP, self.shape(), new.shape(), format!("rows from {start} on along {dim}")));
        }
        let row = self.dims()[dim + 1..].iter().product::<usize>() * self.dtype().size();
        let tracked = [self, new].into_iter().any(|x| x.is_tracked() && is_recording());
        if tracked || !row.is_multiple_of(16) || new.numel() == 0 {
            return Ok(None);
        }
        let op = Op::Update { axis: dim as u8, start };
        Tensor::record(op, &[self, new], *self.shape(), self.dtype(), self.device()).map(Some)
    }

    /// The indices themselves, checked against `limit` when they are computed.
    #[track_caller]
    pub(super) fn bounded(&self, op: &'static str, limit: usize) -> Result<Tensor> {
        self.needs_index(op)?;
        Tensor::record(Op::Bound { limit, name: op }, &[self], *self.shape(), self.dtype(), self.device())
    }

    fn needs_index(&self, op: &'static str) -> Result<()> {
        if self.dtype().is_int() {
            return Ok(());
        }
        Err(Error::dtype(op, self.dtype(), "indices must be integers; convert with to_dtype(DType::I64)"))
    }
}
