//! The look-up table.

use super::{Layer, Module, init};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// A learned vector for each of a number of ids: integers `[..]` to `[.., width]`.
#[derive(Clone, Debug, Module)]
pub struct Embedding {
    /// `[entries, width]`.
    pub weight: Var,
}

impl Embedding {
    /// With standard normal vectors.
    ///
    /// # Errors
    /// A dtype that is no float; out of memory.
    pub fn new(entries: usize, width: usize, dtype: DType, device: &Device) -> Result<Embedding> {
        Ok(Embedding { weight: Var::new(&init::normal((entries, width), 1.0, dtype, device)?)? })
    }
}

impl Layer for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.tensor().embedding(ids)
    }
}
