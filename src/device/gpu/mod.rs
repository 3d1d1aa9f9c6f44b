//! GPUs: the driver's seam, and the runtime above it.

pub(crate) mod cache;
mod disk;
pub(crate) mod driver;
pub(crate) mod faults;
pub(crate) mod memory;
pub(crate) mod program;
pub(crate) mod queue;
pub(crate) mod readback;
pub(crate) mod runtime;
pub(crate) mod translate;

pub(crate) use program::Program;
pub(crate) use runtime::Gpu;
