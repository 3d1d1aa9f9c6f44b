//! Mixed precision: narrow products, f32 parameters, and a loss scale that looks after itself.

use crate::autograd::{Gradients, Scaled, no_grad};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, autocast};

const OP: &str = "MixedPrecision::backward";

/// Where the loss scale starts.
const START: f64 = 65536.0;
/// Steps with finite gradients after which it doubles.
const PATIENCE: f64 = 2000.0;
/// What it never exceeds: gradients of the loss itself are f32.
const LARGEST: f64 = 16_777_216.0;

/// Trains f32 parameters with products in f16 or bf16, in one line:
///
/// ```
/// # use tensorlogic::nn::{Layer, Linear, Module};
/// # use tensorlogic::optim::{AdamW, MixedPrecision, Optimizer};
/// # use tensorlogic::{DType, Device, Tensor};
/// # let device = Device::cpu();
/// # let model = Linear::new(8, 4, DType::F32, &device)?;
/// # let (x, y) = (Tensor::randn((16, 8), DType::F32, &device)?, Tensor::zeros(16, DType::I64, &device)?);
/// # let mut optimizer = Optimizer::new(AdamW::default(), model.parameters(), 1e-3)?;
/// let mut precision = MixedPrecision::new(DType::F16, &device)?;
/// let (loss, gradients) = precision.backward(|| model.forward(&x)?.cross_entropy(&y))?;
/// optimizer.step(gradients)?;
/// # assert!(loss.item::<f32>()?.is_finite() && precision.loss_scale()? == 65536.0);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
///
/// In f16, gradients below 6e-8 would vanish. So the loss is scaled, and the optimiser divides by the scale
/// again. Where the gradients' norm is not finite, the step is skipped and the scale halved; after 2,000 steps that
/// went well it doubles (Micikevicius et al. 2018, section 3.2). All of that is decided on the device.
pub struct MixedPrecision {
    dtype: DType,
    /// Of f16: scale, steps since it changed, steps skipped, whether the last step was taken (1 or 0).
    state: Option<Tensor>,
}

impl MixedPrecision {
    /// Products in `dtype`; f32 switches mixed precision off.
    ///
    /// # Errors
    /// A dtype that is neither f16, bf16 nor f32.
    pub fn new(dtype: DType, device: &Device) -> Result<MixedPrecision> {
        autocast(dtype, || Ok(()))?;
        let state = || Tensor::from_slice(&[START as f32, 0.0, 0.0, 1.0], 4, device);
        Ok(MixedPrecision { dtype, state: (dtype == DType::F16).then(state).transpose()? })
    }

    /// The loss that `forward` gives, and the gradients for [`crate::optim::Optimizer::step`].
    ///
    /// # Errors
    /// What `forward` and [`Tensor::backward`] return; a loss of several elements.
    pub fn backward(&mut self, forward: impl FnOnce() -> Result<Tensor>) -> Result<(Tensor, Gradients)> {
        let scale = self.scale()?;
        let (loss, gradients) = self.part(1, scale.as_ref(), forward)?;
        self.scaled(scale, loss, gradients)
    }

    /// What the loss is multiplied by, a scalar; `None` for 1.
    fn scale(&self) -> Result<Option<Tensor>> {
        self.state.as_ref().map(|state| entry(state, 0)).transpose()
    }

    /// One of `count` parts of a loss, and its gradients, which are scaled.
    fn part(
        &self,
        count: usize,
        scale: Option<&Tensor>,
        forward: impl FnOnce() -> Result<Tensor>,
    ) -> Result<(Tensor, Gradients)> {
        let mut loss = autocast(self.dtype, forward)?;
        if loss.numel() != 1 {
            return Err(Error::shape(OP, loss.shape(), "the loss must be a scalar"));
        }
        if count > 1 {
            loss = (loss / count as f64)?;
        }
        let gradients = match scale {
            Some(scale) => loss.backward_with(&scale.to_dtype(loss.dtype())?.reshape(loss.shape())?)?,
            None => loss.backward()?,
        };
        Ok((loss, gradients))
    }

    /// The gradients of the whole loss, with what decides whether their step is taken.
    fn scaled(&mut self, scale: Option<Tensor>, loss: Tensor, mut gradients: Gradients) -> Result<(Tensor, Gradients)> {
        if let (Some(state), Some(scale)) = (&self.state, scale) {
            let next = no_grad(|| next_state(state, &mut gradients))?;
            gradients.scaled =
                Some(Scaled { inverse: scale.recip()?, finite: entry(&next, 3)?.gt(0.0)?, skipped: entry(&next, 2)? });
            gradients.together.push(next.clone());
            self.state = Some(next);
        }
        Ok((loss, gradients))
    }

    /// [`MixedPrecision::backward`] of the mean of several losses, `forward(0)` to `forward(count - 1)`: the gradients of
    /// a batch in as many parts. Each part is computed before the next is recorded, so that memory is that of one part
    /// and the gradients; in a captured step they are one plan.
    ///
    /// # Errors
    /// As there; a count of 0.
    pub fn backward_each(
        &mut self,
        count: usize,
        mut forward: impl FnMut(usize) -> Result<Tensor>,
    ) -> Result<(Tensor, Gradients)> {
        let scale = self.scale()?;
        let mut sum: Option<(Tensor, Gradients)> = None;
        for part in 0..count {
            let (loss, gradients) = self.part(count, scale.as_ref(), || forward(part))?;
            let (mean, mut all) = match sum {
                Some((mean, mut all)) => {
                    all.add(gradients)?;
                    (no_grad(|| mean + loss)?, all)
                }
                None => (loss, gradients),
            };
            all.together = vec![mean.clone()];
            if part + 1 < count {
                all.eval()?;
            }
            sum = Some((mean, all));
        }
        let (loss, gradients) = sum.ok_or_else(|| Error::arg(OP, "no micro-batches"))?;
        self.scaled(scale, loss, gradients)
    }

    /// The loss scale: 1 but for f16.
    ///
    /// # Errors
    /// What evaluation reports.
    pub fn loss_scale(&self) -> Result<f32> {
        self.state.as_ref().map_or(Ok(1.0), |state| entry(state, 0)?.item())
    }

    /// How many steps were skipped for gradients that were not finite.
    ///
    /// # Errors
    /// What evaluation reports.
    pub fn skipped_steps(&self) -> Result<u64> {
        self.state.as_ref().map_or(Ok(0), |state| Ok(entry(state, 2)?.item::<f32>()? as u64))
    }

    /// What has to be saved to go on later; `None` if there is nothing.
    pub fn state(&self) -> Option<&Tensor> {
        self.state.as_ref()
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// A state of another dtype of mixed precision.
    pub fn load_state(&mut self, state: Option<&Tensor>) -> Result<()> {
        let fits = match (&self.state, state) {
            (Some(own), Some(new)) => own.shape() == new.shape() && own.dtype() == new.dtype(),
            (own, new) => own.is_none() && new.is_none(),
        };
        if !fits {
            return Err(Error::arg("MixedPrecision::load_state", "the state is one of another precision"));
        }
        self.state = state.cloned();
        Ok(())
    }
}

/// A number of the state, as a scalar.
fn entry(state: &Tensor, i: usize) -> Result<Tensor> {
    state.select(0, i)
}

/// The state after a step along these gradients.
fn next_state(state: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
    // What a clip by the norm asks for, too. Squares of f16 cannot overflow in f32.
    let sums = gradients.square_sums()?.to_dtype(DType::F32)?;
    // A row of all sums for each entry of the state, so that one kernel folds them and updates it.
    let finite = sums.expand((4, sums.numel()))?.sum(1)?.is_finite()?;
    let [scale, good, skipped] = [0, 1, 2].map(|i| entry(state, i));
    let (scale, good, skipped) = (scale?, good?, skipped?);
    let rises = (&good + 1.0)?.ge(PATIENCE)?;
    let next_scale =
        finite.where_cond(rises.where_cond((&scale * 2.0)?.minimum(LARGEST)?, &scale)?, (&scale * 0.5)?)?;
    let next_good = finite.where_cond(rises.where_cond(0.0, (&good + 1.0)?)?, 0.0)?;
    let next_skipped = finite.where_cond(&skipped, (&skipped + 1.0)?)?;
    let taken = finite.to_dtype(DType::F32)?;
    let at = Tensor::iota(4, state.device())?;
    let last = at.eq(2)?.where_cond(next_skipped, taken)?;
    at.eq(0)?.where_cond(next_scale, at.eq(1)?.where_cond(next_good, last)?)
}
