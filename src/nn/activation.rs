//! Activations as layers, for [`super::Sequential`]. Each is the op of its name.

use super::{Layer, Module};
use crate::error::Result;
use crate::tensor::Tensor;

macro_rules! activations { ($($(#[doc = $doc:literal])* $Name:ident |$x:ident| $y:expr;)+) => {$(
    $(#[doc = $doc])*
    #[derive(Clone, Copy, Debug, Default, Module)]
    pub struct $Name {}

    impl Layer for $Name {
        fn forward(&self, $x: &Tensor) -> Result<Tensor> {
            $y
        }
    }
)+} }
activations! {
    /// [`Tensor::relu`].
    Relu |x| x.relu();
    /// [`Tensor::gelu`], the tanh form.
    Gelu |x| x.gelu();
    /// [`Tensor::gelu_erf`], the exact form.
    GeluErf |x| x.gelu_erf();
    /// [`Tensor::silu`].
    Silu |x| x.silu();
    /// [`Tensor::tanh`].
    Tanh |x| x.tanh();
    /// [`Tensor::sigmoid`].
    Sigmoid |x| x.sigmoid();
    /// [`Tensor::softplus`].
    Softplus |x| x.softplus();
    /// [`Tensor::mish`].
    Mish |x| x.mish();
    /// [`Tensor::elu`] with alpha 1.
    Elu |x| x.elu(1.0);
    /// [`Tensor::leaky_relu`] with slope 0.01.
    LeakyRelu |x| x.leaky_relu(0.01);
}
