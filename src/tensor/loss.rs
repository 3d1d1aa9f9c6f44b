//! Losses: means over all elements or rows, scalars in the compute dtype (f32 for f16 and bf16).

use super::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::shape::Shape;

impl Tensor {
    /// Mean negative log-likelihood of integer `targets` `[rows]` under the softmax of these logits
    /// `[rows, classes]`; a scalar in the compute dtype (f32 for f16 and bf16).
    ///
    /// # Errors
    /// Shapes that do not fit, targets that are no integers; at evaluation, a target that is no class.
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        self.cross_entropy_smoothed(targets, 0.0)
    }

    /// [`Tensor::cross_entropy`] against targets of which a share `smoothing` is spread over all classes
    /// (Szegedy et al. 2016, section 7).
    ///
    /// # Errors
    /// As there; a share outside 0 ..= 1.
    #[track_caller]
    pub fn cross_entropy_smoothed(&self, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
        let op = "cross_entropy";
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::arg(op, format!("smoothing {smoothing}; it must be between 0 and 1")));
        }
        let classes = self.rows_and_targets(op, "logits", targets)?;
        if self.numel() == 0 {
            return Tensor::full((), f64::NAN, self.dtype().compute(), self.device());
        }
        if smoothing == 0.0 && self.is_product() {
            // It is in memory, so that nothing has to be computed for the elements that are wanted.
            let [largest, _, total] = self.shifted_and_total(op, 1)?;
            let target = targets.to_dtype(DType::I64)?.unsqueeze(1)?;
            let wanted = self.gathered(op, 1, &target, *target.shape())?.widened()?;
            return ((wanted - largest)? - total)?.mean_all()?.neg();
        }
        let log_p = self.wide_log_softmax(op, 1)?;
        let likelihood = log_p.picked(op, targets, classes)?.mean_all()?;
        if smoothing == 0.0 {
            return likelihood.neg();
        }
        let spread = log_p.mean_all()?;
        (likelihood * -(1.0 - smoothing))? - (spread * smoothing)?
    }

    /// Mean of minus these log-probabilities `[rows, classes]` at integer `targets` `[rows]`.
    ///
    /// # Errors
    /// Shapes that do not fit, targets that are no integers; at evaluation, a target that is no class.
    #[track_caller]
    pub fn nll_loss(&self, targets: &Tensor) -> Result<Tensor> {
        let op = "nll_loss";
        let classes = self.rows_and_targets(op, "log-probabilities", targets)?;
        if self.numel() == 0 {
            return Tensor::full((), f64::NAN, self.dtype().compute(), self.device());
        }
        self.widened()?.picked(op, targets, classes)?.mean_all()?.neg()
    }

    /// Mean of the squared differences.
    ///
    /// # Errors
    /// Shapes that do not broadcast; dtypes that differ or are no floats.
    #[track_caller]
    pub fn mse_loss(&self, target: &Tensor) -> Result<Tensor> {
        self.difference("mse_loss", target)?.sqr()?.mean_all()
    }

    /// Mean of the absolute differences.
    ///
    /// # Errors
    /// As [`Tensor::mse_loss`].
    #[track_caller]
    pub fn l1_loss(&self, target: &Tensor) -> Result<Tensor> {
        self.difference("l1_loss", target)?.abs()?.mean_all()
    }

    /// Mean of d^2 / (2 beta) where the difference |d| < beta, else |d| - beta / 2 (Girshick 2015, eq. 3).
    ///
    /// # Errors
    /// As [`Tensor::mse_loss`]; a beta that is not positive.
    #[track_caller]
    pub fn smooth_l1_loss(&self, target: &Tensor, beta: f64) -> Result<Tensor> {
        if beta.is_nan() || beta <= 0.0 {
            return Err(Error::arg("smooth_l1_loss", format!("beta {beta}; it must be positive")));
        }
        let d = self.difference("smooth_l1_loss", target)?;
        let size = d.abs()?;
        let near = (d.sqr()? * (0.5 / beta))?;
        size.lt(beta)?.where_cond(near, (size - 0.5 * beta)?)?.mean_all()
    }

    /// Mean binary cross entropy of probabilities `target` against the logistic function of these logits,
    /// computed without overflow: max(x, 0) - x t + ln(1 + exp(-|x|)).
    ///
    /// # Errors
    /// As [`Tensor::mse_loss`].
    #[track_caller]
    pub fn bce_with_logits(&self, target: &Tensor) -> Result<Tensor> {
        self.comparable("bce_with_logits", target)?;
        let (x, t) = (self.widened()?, target.widened()?);
        // softplus(x) is max(x, 0) + ln(1 + exp(-|x|)), and smooth.
        (x.softplus()? - (&x * &t)?)?.mean_all()
    }

    #[track_caller]
    fn comparable(&self, op: &'static str, target: &Tensor) -> Result<()> {
        self.needs_float(op)?;
        self.same_device(op, target)?;
        self.same_dtype(op, target)?;
        Shape::broadcast(op, self.shape(), target.shape()).map(|_| ())
    }

    /// `self - target` in the compute dtype.
    #[track_caller]
    fn difference(&self, op: &'static str, target: &Tensor) -> Result<Tensor> {
        self.comparable(op, target)?;
        self.widened()? - target.widened()?
    }

    /// Checks `[rows, classes]` beside `[rows]`; the number of classes.
    fn rows_and_targets(&self, op: &'static str, name: &str, targets: &Tensor) -> Result<usize> {
        self.needs_float(op)?;
        if self.rank() != 2 || targets.dims() != &self.dims()[..1] {
            let reason = format!("{name} must be [rows, classes] and targets [rows]");
            return Err(Error::shapes(op, self.shape(), targets.shape(), reason));
        }
        self.same_device(op, targets)?;
        Ok(self.dims()[1])
    }

    /// Whether it is a matrix product as it stands, or a view of one.
    fn is_product(&self) -> bool {
        let mut node = self.0.clone();
        while let Op::View(_) = node.op {
            let Some(base) = node.state().inputs.first().cloned() else { return false };
            node = base;
        }
        matches!(node.op, Op::Matmul)
    }

    /// The element of each row that its target names, by a comparison instead of a gather: what is still
    /// being computed need not be stored.
    #[track_caller]
    fn picked(&self, op: &'static str, targets: &Tensor, classes: usize) -> Result<Tensor> {
        let class = Tensor::iota(classes, self.device())?;
        let target = targets.bounded(op, classes)?.to_dtype(DType::I64)?.unsqueeze(1)?;
        class.eq(&target)?.where_cond(self, 0.0)?.sum(1)
    }
}
