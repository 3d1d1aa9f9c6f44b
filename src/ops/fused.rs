//! The explicit fused calls. Each records the ops it is named after, and the planner makes them one
//! kernel, as it would without being asked; what the calls add is that tests hold them to it.

use crate::error::Result;
use crate::tensor::Tensor;

/// What follows a matrix product in [`Tensor::matmul_with_activation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// max(x, 0).
    ReLU,
    /// GELU in its tanh form.
    GELU,
}

impl Tensor {
    /// relu(self + other), one kernel. Operands broadcast.
    ///
    /// # Errors
    /// Shapes that do not broadcast, dtypes that differ.
    #[track_caller]
    pub fn fused_add_relu(&self, other: &Tensor) -> Result<Tensor> {
        self.add(other)?.relu()
    }

    /// relu(self * other), one kernel. Operands broadcast.
    ///
    /// # Errors
    /// Shapes that do not broadcast, dtypes that differ.
    #[track_caller]
    pub fn fused_mul_relu(&self, other: &Tensor) -> Result<Tensor> {
        self.mul(other)?.relu()
    }

    /// self * scale + bias, one kernel. Operands broadcast.
    ///
    /// # Errors
    /// Shapes that do not broadcast, dtypes that differ.
    #[track_caller]
    pub fn fused_affine(&self, scale: &Tensor, bias: &Tensor) -> Result<Tensor> {
        self.mul(scale)?.add(bias)
    }

    /// activation(self x other), one kernel.
    ///
    /// ```
    /// use tensorlogic::{Activation, DType, Device, Tensor};
    /// let device = Device::best();
    /// let a = Tensor::randn((64, 32), DType::F16, &device)?;
    /// let b = Tensor::randn((32, 16), DType::F16, &device)?;
    /// tensorlogic::eval(&[&a, &b])?; // or drawing them would be two more kernels
    /// let result = a.matmul_with_activation(&b, Activation::ReLU)?;
    /// assert_eq!(result.explain()?.kernels(), 1);
    /// # Ok::<(), tensorlogic::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tensor::matmul`]; an activation of integers.
    #[track_caller]
    pub fn matmul_with_activation(&self, other: &Tensor, activation: Activation) -> Result<Tensor> {
        let product = self.matmul(other)?;
        match activation {
            Activation::None => Ok(product),
            Activation::ReLU => product.relu(),
            Activation::GELU => product.gelu(),
        }
    }
}
