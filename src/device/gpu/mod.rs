//! GPUs: the driver's seam, and the runtime above it.
#![allow(dead_code)] // until programs and drivers stand

pub(crate) mod cache;
mod disk;
pub(crate) mod driver;
pub(crate) mod faults;
pub(crate) mod memory;
pub(crate) mod program;
pub(crate) mod queue;
pub(crate) mod readback;
pub(crate) mod runtime;

pub(crate) use program::Program;
pub(crate) use runtime::Gpu;
