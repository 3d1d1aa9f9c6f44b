//! Dropout.

use super::{Layer, Mode, Module};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// In training, sets each element to 0 with probability `p` and divides the others by 1 - p (Srivastava et
/// al. 2014); in evaluation, nothing. The draws come from the device's random stream; none are stored.
#[derive(Debug, Module)]
pub struct Dropout {
    p: f64,
    mode: Mode,
}

impl Dropout {
    /// With probability `p` of dropping an element.
    ///
    /// # Errors
    /// A probability outside 0 .. 1.
    pub fn new(p: f64) -> Result<Dropout> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::arg("Dropout", format!("probability {p}; it must be at least 0 and less than 1")));
        }
        Ok(Dropout { p, mode: Mode::default() })
    }
}

impl Layer for Dropout {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !self.mode.is_training() || self.p == 0.0 {
            return Ok(x.clone());
        }
        let stays = Tensor::rand(x.shape(), DType::F32, x.device())?.ge(self.p)?;
        stays.where_cond((x * (1.0 / (1.0 - self.p)))?, 0.0)
    }
}
