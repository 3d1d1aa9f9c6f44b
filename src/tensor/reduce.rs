//! Reductions. Sums are f32 sums for f16 and bf16, rounded once; integers sum to i64.

use super::{Dim, IntoDims, Tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::ops::Reduction;
use crate::shape::Dims;

macro_rules! reductions { ($(
    $(#[doc = $doc:literal])* $name:ident $keep:ident $all:ident |$x:ident, $dims:ident, $kept:ident| $body:expr;
)+) => { impl Tensor { $(
    $(#[doc = $doc])*
    ///
    /// Over one dimension, several (`[0, 2]`) or all (`()`), which are dropped.
    ///
    /// # Errors
    /// No such dimension; a dtype that the op is not defined for.
    #[track_caller]
    pub fn $name(&self, dims: impl IntoDims) -> Result<Tensor> {
        let ($x, $dims, $kept) = (self, &dims.of_shape(self.shape(), stringify!($name))?, false);
        $body
    }

    $(#[doc = $doc])*
    ///
    /// The dimensions stay, with size 1.
    ///
    /// # Errors
    /// No such dimension; a dtype that the op is not defined for.
    #[track_caller]
    pub fn $keep(&self, dims: impl IntoDims) -> Result<Tensor> {
        let ($x, $dims, $kept) = (self, &dims.of_shape(self.shape(), stringify!($name))?, true);
        $body
    }

    $(#[doc = $doc])*
    ///
    /// Over all dimensions, to a scalar.
    ///
    /// # Errors
    /// A dtype that the op is not defined for.
    #[track_caller]
    pub fn $all(&self) -> Result<Tensor> {
        self.$name(())
    }
)+ } } }
reductions! {
    /// Sum; i64 for integers and bool.
    sum sum_keepdim sum_all |x, dims, keep| x.reduce(Reduction::Sum, dims, keep);
    /// Product; i64 for integers and bool.
    prod prod_keepdim prod_all |x, dims, keep| x.reduce(Reduction::Prod, dims, keep);
    /// Arithmetic mean, of floats; NaN of nothing.
    mean mean_keepdim mean_all |x, dims, keep| {
        x.needs_float("mean")?;
        x.wide_mean(dims, keep)?.to_dtype(x.dtype())
    };
    /// Largest element; NaN if any is.
    max max_keepdim max_all |x, dims, keep| x.reduce(Reduction::Max, dims, keep);
    /// Smallest element; NaN if any is.
    min min_keepdim min_all |x, dims, keep| x.reduce(Reduction::Min, dims, keep);
    /// Unbiased variance (divided by n - 1), of floats.
    var var_keepdim var_all |x, dims, keep| x.variance("var", dims, keep, 1)?.to_dtype(x.dtype());
    /// Square root of the unbiased variance, of floats.
    std std_keepdim std_all |x, dims, keep| x.deviation(dims, keep)?.to_dtype(x.dtype());
}

impl Tensor {
    /// Position of the first largest element (or first NaN) along a dimension, as i64.
    ///
    /// # Errors
    /// No such dimension, or no elements along it.
    #[track_caller]
    pub fn argmax(&self, dim: impl Dim) -> Result<Tensor> {
        self.arg(Reduction::ArgMax, dim, false)
    }

    /// [`Tensor::argmax`] with the dimension kept, with size 1.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn argmax_keepdim(&self, dim: impl Dim) -> Result<Tensor> {
        self.arg(Reduction::ArgMax, dim, true)
    }

    /// Position of the first smallest element (or first NaN) along a dimension, as i64.
    ///
    /// # Errors
    /// No such dimension, or no elements along it.
    #[track_caller]
    pub fn argmin(&self, dim: impl Dim) -> Result<Tensor> {
        self.arg(Reduction::ArgMin, dim, false)
    }

    /// [`Tensor::argmin`] with the dimension kept, with size 1.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn argmin_keepdim(&self, dim: impl Dim) -> Result<Tensor> {
        self.arg(Reduction::ArgMin, dim, true)
    }

    /// Variance divided by `n - correction`: 1 gives the unbiased estimate, 0 the plain mean square.
    /// Two sums over rows, the second of squared distances to the mean, so nothing cancels.
    ///
    /// # Errors
    /// No such dimension; a dtype that is no float.
    #[track_caller]
    pub fn var_with(&self, dims: impl IntoDims, correction: usize) -> Result<Tensor> {
        let dims = dims.of_shape(self.shape(), "var")?;
        self.variance("var", &dims, false, correction)?.to_dtype(self.dtype())
    }

    #[track_caller]
    fn arg(&self, op: Reduction, dim: impl Dim, keep: bool) -> Result<Tensor> {
        let dim = dim.of(self.shape(), op.name())?;
        self.reduce(op, &Dims::from_slice(&[dim]).unwrap_or_default(), keep)
    }

    /// Mean in the compute dtype: a sum of f16 may exceed what f16 holds.
    #[track_caller]
    pub(super) fn wide_mean(&self, dims: &Dims<usize>, keep: bool) -> Result<Tensor> {
        let count: usize = dims.iter().map(|&d| self.dims()[d]).product();
        self.widened()?.reduce(Reduction::Sum, dims, keep)? / count as f64
    }

    /// Variance in the compute dtype.
    #[track_caller]
    pub(super) fn variance(
        &self,
        op: &'static str,
        dims: &Dims<usize>,
        keep: bool,
        correction: usize,
    ) -> Result<Tensor> {
        self.needs_float(op)?;
        let wide = self.widened()?;
        let distance = (&wide - &wide.wide_mean(dims, true)?)?;
        let count: usize = dims.iter().map(|&d| self.dims()[d]).product();
        let divisor = count as f64 - correction as f64;
        distance.sqr()?.reduce(Reduction::Sum, dims, keep)? / divisor.max(0.0)
    }

    /// Standard deviation in the compute dtype; where it is 0, its gradient is taken to be 0 too.
    #[track_caller]
    fn deviation(&self, dims: &Dims<usize>, keep: bool) -> Result<Tensor> {
        let variance = self.variance("std", dims, keep, 1)?;
        let none = variance.eq(0.0)?;
        none.where_cond(0.0, none.where_cond(1.0, &variance)?.sqrt()?)
    }

    /// Records a reduction; what needs none is answered at once.
    #[track_caller]
    pub(crate) fn reduce(&self, op: Reduction, dims: &Dims<usize>, keep: bool) -> Result<Tensor> {
        let shape = self.shape().reduced(dims, keep);
        let folds: usize = dims.iter().map(|&d| self.dims()[d]).product();
        let sums = matches!(op, Reduction::Sum | Reduction::Prod);
        if folds == 0 && !sums && shape.numel() > 0 {
            return Err(Error::shape(op.name(), self.shape(), "no elements along the reduced dimensions"));
        }
        let dtype = match op {
            _ if op.is_arg() => DType::I64,
            _ if sums => self.dtype().sum(),
            _ => self.dtype(),
        };
        if folds == 0 || shape.numel() == 0 {
            return Tensor::full(shape, if op == Reduction::Prod { 1.0 } else { 0.0 }, dtype, self.device());
        }
        if folds == 1 {
            return match op.is_arg() {
                true => Tensor::zeros(shape, dtype, self.device()),
                false => self.to_dtype(dtype)?.reshape(shape),
            };
        }
        let input = if op.is_arg() { self.clone() } else { self.to_dtype(dtype)? };
        // A dimension of size 1 is folded by leaving it out.
        let axes = dims.iter().fold(0u8, |axes, &d| axes | 1 << d);
        Tensor::record(Op::Reduce { op, axes }, &[&input], shape, dtype, self.device())
    }
}
