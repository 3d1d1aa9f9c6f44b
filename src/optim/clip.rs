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
            let inverse = self.scaled.as_ref().map(|s| s.inverse.clone());
            let mut gradients = self.ordered_mut();
            let square = |g: &&mut Tensor| g.widened()?.sqr()?.sum_all()?.reshape(1);
            let squares = gradients.iter().map(square).collect::<Result<Vec<_>>>()?;
            if squares.is_empty() {
                return Err(Error::arg("clip_norm", "no gradients"));
            }
            let mut norm = Tensor::cat(&squares, 0)?.sum_all()?.sqrt()?;
            if let Some(inverse) = inverse {
                norm = (norm * inverse)?;
            }
            let scale = ((&norm + 1e-6)?.recip()? * max)?.minimum(1.0)?;
            for gradient in &mut gradients {
                let dtype = gradient.dtype();
                **gradient = (gradient.widened()? * &scale)?.to_dtype(dtype)?;
            }
            Ok(norm)
        })
    }
}
