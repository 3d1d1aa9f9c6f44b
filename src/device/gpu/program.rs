//! What a plan's launches become on a GPU.

use super::driver::Function;
use super::faults::{FaultSite, Watch};
use super::runtime::Gpu;
use crate::device::memory::Storage;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Scalar;
use crate::schedule;
use std::sync::Arc;

/// One launch of a plan.
pub(crate) struct Program {
    _functions: Vec<Function>,
}

/// What a run of programs works on.
pub(crate) struct Bindings<'a> {
    /// The memory of a node.
    pub storage: &'a dyn Fn(u32) -> Result<&'a Arc<Storage>>,
    /// The plan's scalar inputs.
    pub params: &'a [Scalar],
    /// Where a node's index that is not below a limit is reported.
    pub site: &'a dyn Fn(u32, usize) -> FaultSite,
    /// There, if the plan reads indices.
    pub watch: Option<&'a Watch>,
}

impl Program {
    /// The programs of a plan's launches; all their kernels are ready to run.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn compile(gpu: &Gpu, _: &[Vec<schedule::Part>], _: &dyn Fn(u32) -> DType) -> Result<Vec<Program>> {
        Err(Error::DeviceUnavailable { device: gpu.name.clone(), reason: "its kernels are not written yet".into() })
    }

    /// Submits the launch.
    ///
    /// # Errors
    /// A device that fails.
    pub fn run(&self, gpu: &Gpu, _: &Bindings) -> Result<()> {
        Err(Error::DeviceUnavailable { device: gpu.name.clone(), reason: "its kernels are not written yet".into() })
    }
}
