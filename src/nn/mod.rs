//! Layers: structs of variables, with named parameters, training and evaluation modes, saving and
//! loading.
//!
//! A model is an ordinary struct. `#[derive(Module)]` finds the parameters in its fields; what it computes
//! is a method of your own, or [`Layer::forward`] where the model maps one tensor to one.
//!
//! ```
//! use tensorlogic::nn::{Layer, Linear, Module};
//! use tensorlogic::{DType, Device, Result, Tensor};
//!
//! #[derive(Module)]
//! struct Classifier {
//!     hidden: Linear,
//!     output: Linear,
//! }
//!
//! impl Layer for Classifier {
//!     fn forward(&self, x: &Tensor) -> Result<Tensor> {
//!         self.output.forward(&self.hidden.forward(x)?.relu()?)
//!     }
//! }
//!
//! let (dtype, device) = (DType::F32, Device::cpu());
//! let model = Classifier {
//!     hidden: Linear::new(64, 32, dtype, &device)?,
//!     output: Linear::new(32, 10, dtype, &device)?,
//! };
//! let names: Vec<String> = model.named_parameters().into_iter().map(|(name, _)| name).collect();
//! assert_eq!(names, ["hidden.weight", "hidden.bias", "output.weight", "output.bias"]);
//! assert_eq!(model.forward(&Tensor::zeros((5, 64), dtype, &device)?)?.dims(), [5, 10]);
//! # Ok::<(), tensorlogic::Error>(())
//! ```

mod activation;
mod attention;
mod cache;
mod conv;
mod dropout;
mod embedding;
pub mod init;
mod linear;
mod norm;
mod rotary;
mod sequential;
mod transformer;

pub use activation::{Elu, Gelu, GeluErf, LeakyRelu, Mish, Relu, Sigmoid, Silu, Softplus, Tanh};
pub use attention::{MultiHeadAttention, MultiHeadAttentionOptions};
pub use cache::KvCache;
pub use conv::{AvgPool2d, Conv2d, Flatten, MaxPool2d};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::RotaryEmbedding;
pub use sequential::Sequential;
pub use tensorlogic_derive::Module;
pub use transformer::{TransformerBlock, TransformerOptions};

use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io;
use crate::tensor::{Tensor, eval};
use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a parameter stands in a model: the names of the fields on the way to it.
#[derive(Clone, Debug, Default)]
pub struct Path(Vec<String>);

impl Path {
    /// Goes into a field.
    pub fn push(&mut self, name: impl Into<String>) {
        self.0.push(name.into());
    }

    /// Goes back out of it.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// The names, joined by dots.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

/// What a model holds.
pub enum Item<'a> {
    /// A trainable tensor.
    Parameter(&'a Var),
    /// Whether a layer behaves as in training.
    Mode(&'a Mode),
}

/// Whether a layer behaves as in training; at first it does.
#[derive(Debug)]
pub struct Mode(AtomicBool);

impl Default for Mode {
    fn default() -> Self {
        Mode(AtomicBool::new(true))
    }
}

impl Mode {
    /// Whether the layer is in training.
    pub fn is_training(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Switches to training or evaluation.
    pub fn set_training(&self, training: bool) {
        self.0.store(training, Ordering::Relaxed);
    }
}

/// Something that holds parameters: a layer, a model. Derive it.
pub trait Module {
    /// Shows `visitor` everything inside, in the order of the fields; `path` is where this module stands.
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>));

    /// The parameters with their names, in the order of the fields. One that is held in several places
    /// has an entry for each.
    fn named_parameters(&self) -> Vec<(String, Var)> {
        let mut list = Vec::new();
        self.visit(&mut Path::default(), &mut |path, item| {
            if let Item::Parameter(var) = item {
                list.push((path.name(), var.clone()));
            }
        });
        list
    }

    /// The parameters, each once: what an optimiser takes.
    fn parameters(&self) -> Vec<Var> {
        let mut list: Vec<Var> = Vec::new();
        for (_, var) in self.named_parameters() {
            if !list.contains(&var) {
                list.push(var);
            }
        }
        list
    }

    /// How many numbers the parameters hold.
    fn parameter_count(&self) -> usize {
        self.parameters().iter().map(Var::numel).sum()
    }

    /// Switches every layer inside to training (`true`, how they start) or evaluation.
    fn set_training(&self, training: bool) {
        self.visit(&mut Path::default(), &mut |_, item| {
            if let Item::Mode(mode) = item {
                mode.set_training(training);
            }
        });
    }

    /// Converts all parameters, which are computed now: a model of narrow weights for inference. An optimiser that was made
    /// before holds state of the old dtype.
    ///
    /// ```
    /// use tensorlogic::nn::{Layer, Linear, Module};
    /// use tensorlogic::{DType, Device, Tensor};
    /// let model = Linear::new(8, 4, DType::F32, &Device::cpu())?;
    /// model.to_dtype(DType::F16)?;
    /// assert_eq!(model.forward(&Tensor::ones((2, 8), DType::F16, &Device::cpu())?)?.dtype(), DType::F16);
    /// # Ok::<(), tensorlogic::Error>(())
    /// ```
    ///
    /// # Errors
    /// A dtype that is no float; what evaluation reports.
    fn to_dtype(&self, dtype: DType) -> Result<()> {
        if !dtype.is_float() {
            return Err(Error::dtype("Module::to_dtype", dtype, "parameters are floats"));
        }
        let parameters = self.parameters();
        let values = parameters.iter().map(|var| var.tensor().detach().to_dtype(dtype));
        let values = values.collect::<Result<Vec<_>>>()?;
        eval(&values.iter().collect::<Vec<_>>())?;
        parameters.iter().zip(&values).for_each(|(var, value)| var.replace(value));
        Ok(())
    }

    /// The values of all parameters by name.
    fn state(&self) -> BTreeMap<String, Tensor> {
        self.named_parameters().into_iter().map(|(name, var)| (name, var.tensor().detach())).collect()
    }

    /// Sets every parameter from `state`, which must name them all and nothing else. Either all are set
    /// or none.
    ///
    /// # Errors
    /// A name that is missing or unknown; another shape or dtype.
    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let parameters = self.named_parameters();
        let old = |(name, var): &(String, Var)| (name.clone(), var.tensor());
        let values = io::matching(("the model", "parameter"), &parameters.iter().map(old).collect::<Vec<_>>(), state)?;
        parameters.iter().zip(values).try_for_each(|((_, var), value)| var.set(&value))
    }

    /// Writes the parameters to a safetensors file. A crash on the way leaves the file as it was.
    ///
    /// # Errors
    /// What the system says; what evaluation reports.
    fn save(&self, path: impl AsRef<FilePath>) -> Result<()>
    where
        Self: Sized,
    {
        io::save_safetensors(path, &self.state(), &BTreeMap::new())
    }

    /// Reads the parameters from a safetensors file.
    ///
    /// # Errors
    /// What the system says; a file that is none of this model: see [`Module::load_state`].
    fn load(&self, path: impl AsRef<FilePath>) -> Result<()>
    where
        Self: Sized,
    {
        self.load_state(&io::load_safetensors(path, &Device::cpu())?.tensors)
    }
}

/// A module that maps a tensor to a tensor.
pub trait Layer: Module {
    /// What it computes.
    ///
    /// # Errors
    /// An input that it cannot take.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

impl Module for Var {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        visitor(path, Item::Parameter(self));
    }
}

impl Module for Mode {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        visitor(path, Item::Mode(self));
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        (**self).visit(path, visitor);
    }
}

impl<M: Module> Module for Option<M> {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        self.iter().for_each(|module| module.visit(path, visitor));
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
        for (i, module) in self.iter().enumerate() {
            path.push(i.to_string());
            module.visit(path, visitor);
            path.pop();
        }
    }
}

macro_rules! no_parameters {
    ($($t:ty)+) => {$(
        impl Module for $t {
            fn visit<'a>(&'a self, _: &mut Path, _: &mut dyn FnMut(&Path, Item<'a>)) {}
        }
    )+};
}
no_parameters!(() bool usize u64 i64 f32 f64 String crate::tensor::ConvOptions);

macro_rules! tuple {
    ($($M:ident $i:tt),+) => {
        impl<$($M: Module),+> Module for ($($M,)+) {
            fn visit<'a>(&'a self, path: &mut Path, visitor: &mut dyn FnMut(&Path, Item<'a>)) {
                $(
                    path.push(stringify!($i));
                    self.$i.visit(path, visitor);
                    path.pop();
                )+
            }
        }
    };
}
tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
