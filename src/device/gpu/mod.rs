//! GPUs: the driver's seam, and the runtime above it.

pub(crate) mod cache;
mod disk;
pub(crate) mod driver;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod faults;
pub(crate) mod memory;
pub(crate) mod program;
#[cfg(any(target_os = "macos", feature = "soft-metal"))]
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod readback;
pub(crate) mod runtime;
mod sample;
pub(crate) mod selfcheck;
#[cfg(test)]
mod tests;
pub(crate) mod translate;
pub(crate) mod tuning;

pub(crate) use program::Program;
pub(crate) use runtime::Gpu;
