//! Layers one after another.

use super::{Item, Layer, Module, Path};
use crate::error::Result;
use crate::tensor::Tensor;

/// Layers, each of which takes what the one before gives. Parameters are named by position: `0.weight`.
///
/// ```
/// use tensorlogic::nn::{Layer, Linear, Relu, Sequential};
/// use tensorlogic::{DType, Device, Tensor};
/// let (dtype, device) = (DType::F32, Device::cpu());
/// let model = Sequential::new()
///     .with(Linear::new(64, 32, dtype, &device)?)
///     .with(Relu {})
///     .with(Linear::new(32, 10, dtype, &device)?);
/// assert_eq!(model.forward(&Tensor::zeros((5, 64), dtype, &device)?)?.dims(), [5, 10]);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Box<dyn Layer + Send + Sync>>,
}

impl Sequential {
    /// No layers yet: the identity.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// With one more layer at the end.
    #[must_use]
    pub fn with(mut self, layer: impl Layer + Send + Sync + 'static) -> Sequential {
        self.layers.push(Box::new(layer));
        self
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl Module for Sequential {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        self.layers.visit(path, visitor);
    }
}

impl Layer for Sequential {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))
    }
}
