//! Softmax and normalisations: compositions, which the planner makes one kernel each. Narrow
//! inputs are computed in f32 throughout and rounded once, at the end.

use super::{Dim, Tensor, autocast};
use crate::error::{Error, Result};
use crate::ops::Reduction;
use crate::shape::Dims;

impl Tensor {
    /// exp(x) / sum(exp(x)) along a dimension, by differences to the largest element.
    ///
    /// # Errors
    /// No such dimension; a dtype that is no float.
    #[track_caller]
    pub fn softmax(&self, dim: impl Dim) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "softmax")?;
        let [_, shifted] = self.shifted("softmax", dim)?;
        let exps = shifted.exp()?;
        let total = exps.sum_keepdim(dim)?;
        (exps / total)?.to_dtype(self.dtype())
    }

    /// Logarithm of [`Tensor::softmax`], without its cancellation.
    ///
    /// # Errors
    /// No such dimension; a dtype that is no float.
    #[track_caller]
    pub fn log_softmax(&self, dim: impl Dim) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "log_softmax")?;
        self.wide_log_softmax("log_softmax", dim)?.to_dtype(self.dtype())
    }

    #[track_caller]
    pub(super) fn wide_log_softmax(&self, op: &'static str, dim: usize) -> Result<Tensor> {
        let [_, shifted, total] = self.shifted_and_total(op, dim)?;
        shifted - total
    }

    /// Along `dim` and in the compute dtype: the largest element, differences to it, and the logarithm of the sum of their
    /// exponentials.
    #[track_caller]
    pub(super) fn shifted_and_total(&self, op: &'static str, dim: usize) -> Result<[Tensor; 3]> {
        let [largest, shifted] = self.shifted(op, dim)?;
        let total = shifted.exp()?.sum_keepdim(dim)?.ln()?;
        Ok([largest, shifted, total])
    }

    /// The largest element along `dim`, and x minus that, in the compute dtype.
    #[track_caller]
    fn shifted(&self, op: &'static str, dim: usize) -> Result<[Tensor; 2]> {
        self.needs_float(op)?;
        let wide = self.widened()?;
        if self.numel() == 0 {
            return Ok([wide.clone(), wide]);
        }
        // Whatever is subtracted cancels, so no gradient flows through it.
        let largest = wide.detach().max_keepdim(dim)?;
        let shifted = (wide - &largest)?;
        Ok([largest, shifted])
    }

    /// Layer normalisation over the last dimensions, as many as `weight` has: (x - mean) /
    /// sqrt(var + eps) * weight + bias, with the biased variance (Ba et al. 2016).
    ///
    /// # Errors
    /// A weight or bias whose shape is not that of the last dimensions; dtypes that differ or are no
    /// floats.
    #[track_caller]
    pub fn layer_norm(&self, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let dims = self.norm_dims("layer_norm", weight)?;
        let wide = self.widened()?;
        let centred = (&wide - &wide.wide_mean(&dims, true)?)?;
        let scale = (centred.sqr()?.wide_mean(&dims, true)? + eps)?.rsqrt()?;
        let scaled = ((centred * scale)? * weight.widened()?)?;
        let Some(bias) = bias else { return scaled.to_dtype(self.dtype()) };
        self.same_or_wide("layer_norm", bias)?;
        if bias.shape() != weight.shape() {
            return Err(Error::shapes("layer_norm", weight.shape(), bias.shape(), "weight and bias differ in shape"));
        }
        (scaled + bias.widened()?)?.to_dtype(self.dtype())
    }

    /// Root-mean-square normalisation over the last dimensions, as many as `weight` has:
    /// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    ///
    /// # Errors
    /// A weight whose shape is not that of the last dimensions; dtypes that differ or are no floats.
    #[track_caller]
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let dims = self.norm_dims("rms_norm", weight)?;
        let wide = self.widened()?;
        let scale = (wide.sqr()?.wide_mean(&dims, true)? + eps)?.rsqrt()?;
        ((wide * scale)? * weight.widened()?)?.to_dtype(self.dtype())
    }

    /// Checks the dtype of a weight; under autocast it may also be f32.
    fn same_or_wide(&self, op: &'static str, weight: &Tensor) -> Result<()> {
        let wide = autocast::is_on() && weight.dtype() == self.dtype().compute();
        if wide { Ok(()) } else { self.same_dtype(op, weight) }
    }

    /// The last dimensions, whose shape must be `weight`'s.
    fn norm_dims(&self, op: &'static str, weight: &Tensor) -> Result<Dims<usize>> {
        self.needs_float(op)?;
        self.same_or_wide(op, weight)?;
        let lead = self.rank().checked_sub(weight.rank()).filter(|&lead| &self.dims()[lead..] == weight.dims());
        match lead {
            Some(lead) if weight.rank() > 0 => {
                let dims: Vec<usize> = (lead..self.rank()).collect();
                Ok(Dims::from_slice(&dims).unwrap_or_default())
            }
            _ => Err(Error::shapes(
                op,
                self.shape(),
                weight.shape(),
                "the weight must have the shape of the last dimensions",
            )),
        }
    }

    /// log(sum(exp(x))) along a dimension, which is dropped.
    ///
    /// # Errors
    /// No such dimension, or no elements along it; a dtype that is no float.
    #[track_caller]
    pub fn logsumexp(&self, dim: impl Dim) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "logsumexp")?;
        self.needs_float("logsumexp")?;
        if self.dims()[dim] == 0 {
            return Err(Error::shape("logsumexp", self.shape(), "no elements along the dimension"));
        }
        let along = Dims::from_slice(&[dim]).unwrap_or_default();
        let wide = self.widened()?;
        // Whatever is subtracted is added again, so no gradient flows through it.
        let largest = wide.detach().reduce(Reduction::Max, &along, true)?;
        let total = (&wide - &largest)?.exp()?.sum(dim)?.ln()?;
        (total + largest.squeeze(dim)?)?.to_dtype(self.dtype())
    }
}
