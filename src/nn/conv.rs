//! Convolution and pooling over images `[batch, channels, height, width]`.

use super::{Layer, Module, init};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{ConvOptions, Tensor};

/// [`Tensor::conv2d`] with learned windows: `[batch, inputs, height, width]` to `[batch, outputs, ..]`.
#[derive(Clone, Debug, Module)]
pub struct Conv2d {
    /// `[outputs, inputs / groups, window height, window width]`.
    pub weight: Var,
    /// `[outputs]`.
    pub bias: Option<Var>,
    options: ConvOptions,
}

impl Conv2d {
    /// With windows of `size` x `size`; weight and bias are uniform in ±1/sqrt(inputs a window).
    ///
    /// # Errors
    /// Groups that do not divide the channels; a dtype that is no float; out of memory.
    pub fn new(
        inputs: usize,
        outputs: usize,
        size: usize,
        options: ConvOptions,
        dtype: DType,
        device: &Device,
    ) -> Result<Conv2d> {
        let groups = options.groups;
        if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            let reason = format!("{groups} groups do not divide {inputs} inputs and {outputs} outputs");
            return Err(Error::arg("Conv2d", reason));
        }
        let inputs = inputs / groups;
        let bound = 1.0 / ((inputs * size * size).max(1) as f64).sqrt();
        let weight = Var::new(&init::uniform((outputs, inputs, size, size), bound, dtype, device)?)?;
        let bias = Some(Var::new(&init::uniform(outputs, bound, dtype, device)?)?);
        Ok(Conv2d { weight, bias, options })
    }
}

impl Layer for Conv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.conv2d(&self.weight.tensor(), &self.options)?;
        match &self.bias {
            Some(bias) => &y + &bias.tensor().to_dtype(y.dtype())?.reshape((bias.numel(), 1, 1))?,
            None => Ok(y),
        }
    }
}

/// [`Tensor::max_pool2d`] with windows that do not overlap.
#[derive(Clone, Copy, Debug, Module)]
pub struct MaxPool2d {
    /// Height and width of a window.
    pub size: usize,
}

impl Layer for MaxPool2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.max_pool2d(self.size, self.size)
    }
}

/// [`Tensor::avg_pool2d`] with windows that do not overlap.
#[derive(Clone, Copy, Debug, Module)]
pub struct AvgPool2d {
    /// Height and width of a window.
    pub size: usize,
}

impl Layer for AvgPool2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.avg_pool2d(self.size, self.size)
    }
}

/// All dimensions but the first in one: `[batch, ..]` to `[batch, features]`.
#[derive(Clone, Copy, Debug, Default, Module)]
pub struct Flatten {}

impl Layer for Flatten {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.rank() < 2 { x.unsqueeze(-1) } else { x.flatten(1, -1) }
    }
}
