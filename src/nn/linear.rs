//! The fully connected layer.

use super::{Layer, Module, init};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, autocast_operand};

/// x W^T + b: `[.., inputs]` to `[.., outputs]`.
#[derive(Clone, Debug, Module)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Var,
    /// `[outputs]`.
    pub bias: Option<Var>,
}

impl Linear {
    /// With weight and bias uniform in ±1/sqrt(inputs).
    ///
    /// # Errors
    /// A dtype that is no float; out of memory.
    pub fn new(inputs: usize, outputs: usize, dtype: DType, device: &Device) -> Result<Linear> {
        let mut linear = Linear::without_bias(inputs, outputs, dtype, device)?;
        linear.bias = Some(Var::new(&init::uniform(outputs, bound(inputs), dtype, device)?)?);
        Ok(linear)
    }

    /// With the weight alone.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn without_bias(inputs: usize, outputs: usize, dtype: DType, device: &Device) -> Result<Linear> {
        let weight = Var::new(&init::uniform((outputs, inputs), bound(inputs), dtype, device)?)?;
        Ok(Linear { weight, bias: None })
    }

    /// With given values: a weight `[outputs, inputs]`, and a bias `[outputs]`.
    ///
    /// # Errors
    /// Shapes that do not fit; dtypes that are no floats.
    pub fn from_tensors(weight: &Tensor, bias: Option<&Tensor>) -> Result<Linear> {
        let fits = weight.rank() == 2 && bias.is_none_or(|b| b.dims() == &weight.dims()[..1]);
        if !fits {
            let reason = "the weight must be [outputs, inputs] and the bias [outputs]";
            return Err(Error::shape("Linear", weight.shape(), reason));
        }
        Ok(Linear { weight: Var::new(weight)?, bias: bias.map(Var::new).transpose()? })
    }
}

/// Keeps the variance of the inputs at a third, as is usual for this layer.
fn bound(inputs: usize) -> f64 {
    1.0 / (inputs.max(1) as f64).sqrt()
}

impl Layer for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Converted before it is transposed: the copy then lies as the weight does.
        let weight = autocast_operand(&self.weight.tensor())?;
        let product = x.matmul(&weight.t()?)?;
        match &self.bias {
            Some(bias) => &product + &bias.tensor().to_dtype(product.dtype())?,
            None => Ok(product),
        }
    }
}
