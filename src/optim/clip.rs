//! Gradient clipping.

use crate::autograd::{Gradients, no_grad};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

impl Gradients {
    /// Scales all gradients together so that their norm, over all elements, is at most `max`; the norm
    /// before, a scalar. Nothing is computed yet.
    ///
    /// # Errors
    /// A limit that is not positive; no gradients.
    pub fn clip_norm(&mut self, max: f64) -> Result<Tensor> {
        if max.is_nan() || max <= 0.0 {
            return Err(Error::arg("clip_norm", format!("limit {max}; it must be positive")));
        }
        no_grad(|| {
            let mut norm = self.square_sums()?.sum_all()?.sqrt()?;
            if let Some(scaled) = &self.scaled {
                norm = (norm * &scaled.inverse)?;
            }
            let scale = ((&norm + 1e-6)?.recip()? * max)?.minimum(1.0)?;
            for gradient in self.ordered_mut() {
                let dtype = gradient.dtype();
                *gradient = (gradient.widened()? * &scale)?.to_dtype(dtype)?;
            }
            self.square_sums = None;
            Ok(norm)
        })
    }

    /// The sum of the squares of each gradient, `[gradients]`, in the compute dtype: one node for all who ask.
    pub(crate) fn square_sums(&mut self) -> Result<Tensor> {
        if let Some(sums) = &self.square_sums {
            return Ok(sums.clone());
        }
        let square = |g: &mut Tensor| g.widened()?.sqr()?.sum_all()?.reshape(1);
        let squares = self.ordered_mut().into_iter().map(square).collect::<Result<Vec<_>>>()?;
        if squares.is_empty() {
            return Err(Error::arg("Gradients", "no gradients"));
        }
        let sums = Tensor::cat(&squares, 0)?;
        self.square_sums = Some(sums.clone());
        Ok(sums)
    }
}
