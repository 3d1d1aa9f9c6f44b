//! Normalisation layers.

use super::{Layer, Module};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::IntoShape;
use crate::tensor::Tensor;

/// [`Tensor::layer_norm`] with a learned scale and shift.
#[derive(Clone, Debug, Module)]
pub struct LayerNorm {
    /// Scale, of the shape of the last dimensions.
    pub weight: Var,
    /// Shift, of the same shape.
    pub bias: Option<Var>,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Over the last dimensions, which have this shape; eps is 1e-5.
    ///
    /// # Errors
    /// A dtype that is no float; out of memory.
    pub fn new(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<LayerNorm> {
        let shape = shape.into_shape()?;
        let weight = Var::new(&Tensor::ones(shape, dtype, device)?)?;
        let bias = Some(Var::new(&Tensor::zeros(shape, dtype, device)?)?);
        Ok(LayerNorm { weight, bias, eps: 1e-5 })
    }
}

impl Layer for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Var::tensor);
        x.layer_norm(&self.weight.tensor(), bias.as_ref(), self.eps)
    }
}

/// [`Tensor::rms_norm`] with a learned scale.
#[derive(Clone, Debug, Module)]
pub struct RmsNorm {
    /// Scale, of the shape of the last dimensions.
    pub weight: Var,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// Over the last dimensions, which have this shape; eps is 1e-6.
    ///
    /// # Errors
    /// A dtype that is no float; out of memory.
    pub fn new(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: Var::new(&Tensor::ones(shape, dtype, device)?)?, eps: 1e-6 })
    }
}

impl Layer for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(&self.weight.tensor(), self.eps)
    }
}
