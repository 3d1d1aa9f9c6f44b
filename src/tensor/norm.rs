//! Softmax, normalisations and losses: compositions, which the planner makes one kernel each. Narrow
//! inputs are computed in f32 throughout and rounded once, at the end.

use super::{Dim, Tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Reduction;
use crate::shape::{Dims, Shape};

impl Tensor {
    /// exp(x) / sum(exp(x)) along a dimension, by differences to the largest element.
    ///
    /// # Errors
    /// No such dimension; a dtype that is no float.
    #[track_caller]
    pub fn softmax(&self, dim: impl Dim) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "softmax")?;
        let exps = self.shifted("softmax", dim)?.exp()?;
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
    fn wide_log_softmax(&self, op: &'static str, dim: usize) -> Result<Tensor> {
        let shifted = self.shifted(op, dim)?;
        let total = shifted.exp()?.sum_keepdim(dim)?.ln()?;
        shifted - total
    }

    /// x minus its largest element along `dim`, in the compute dtype.
    #[track_caller]
    fn shifted(&self, op: &'static str, dim: usize) -> Result<Tensor> {
        self.needs_float(op)?;
        if self.numel() == 0 {
            return self.widened();
        }
        let wide = self.widened()?;
        // Whatever is subtracted cancels, so no gradient flows through it.
        let largest = wide.detach().max_keepdim(dim)?;
        wide - largest
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
        self.same_dtype("layer_norm", bias)?;
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

    /// The last dimensions, whose shape must be `weight`'s.
    fn norm_dims(&self, op: &'static str, weight: &Tensor) -> Result<Dims<usize>> {
        self.needs_float(op)?;
        self.same_dtype(op, weight)?;
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

    /// Mean negative log-likelihood of integer `targets` `[rows]` under the softmax of these logits
    /// `[rows, classes]`; a scalar in the compute dtype (f32 for f16 and bf16).
    ///
    /// # Errors
    /// Shapes that do not fit, targets that are no integers; at evaluation, a target that is no class.
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        let op = "cross_entropy";
        if self.rank() != 2 || targets.dims() != &self.dims()[..1] {
            let reason = "logits must be [rows, classes] and targets [rows]";
            return Err(Error::shapes(op, self.shape(), targets.shape(), reason));
        }
        self.same_device(op, targets)?;
        let classes = self.dims()[1];
        if self.numel() == 0 {
            self.needs_float(op)?;
            return Tensor::full((), f64::NAN, self.dtype().compute(), self.device());
        }
        let log_p = self.wide_log_softmax(op, 1)?;
        let class = Tensor::iota(classes, self.device())?;
        let target = targets.bounded(op, classes)?.to_dtype(DType::I64)?.unsqueeze(1)?;
        // A comparison instead of a gather: logits that are still being computed need not be stored.
        let picked = class.eq(&target)?.where_cond(&log_p, 0.0)?.sum(1)?;
        picked.mean_all()?.neg()
    }

    /// Mean of the squared differences, a scalar in the compute dtype (f32 for f16 and bf16).
    ///
    /// # Errors
    /// Shapes that do not broadcast; dtypes that differ or are no floats.
    #[track_caller]
    pub fn mse_loss(&self, target: &Tensor) -> Result<Tensor> {
        self.needs_float("mse_loss")?;
        self.same_dtype("mse_loss", target)?;
        Shape::broadcast("mse_loss", self.shape(), target.shape())?;
        let difference = (self.widened()? - target.widened()?)?;
        difference.sqr()?.mean_all()
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
