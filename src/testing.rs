//! What tests and benchmarks ask of the engine.

use crate::device::{Device, gpu};
use crate::engine;
use crate::error::Result;
use crate::tensor::{self, Explanation, Tensor};
use std::time::Duration;

pub use crate::device::gpu::driver::{AllocationTraffic, Traffic};
pub use crate::engine::Counters;
pub use crate::ops::{Elementwise, Reduction, Rounding, Sort};

/// The kernels that evaluating these tensors together would run.
///
/// # Errors
/// A graph that cannot be planned, which would be a bug.
pub fn kernel_count(tensors: &[&Tensor]) -> Result<usize> {
    Ok(explain(tensors)?.kernels())
}

/// What evaluating these tensors together would run, as [`Tensor::explain`] shows it for one.
///
/// # Errors
/// As there.
pub fn explain(tensors: &[&Tensor]) -> Result<Explanation> {
    tensor::explain(tensors)
}

/// Runs `work` with every op that this thread evaluates as a kernel of its own.
pub fn no_fusion<T>(work: impl FnOnce() -> T) -> T {
    engine::without_fusion(work)
}

/// What has been evaluated in this process so far.
pub fn counters() -> Counters {
    engine::counters()
}

/// Kernels that evaluations on this thread have run so far, whatever other threads do.
pub fn kernels_of_thread() -> u64 {
    engine::kernels_of_thread()
}

/// Dispatches that this thread has asked GPUs for so far, whatever other threads do.
pub fn dispatches_of_thread() -> u64 {
    gpu::queue::dispatches_of_thread()
}

/// Runs `work` and tells the device's time for what it evaluates: on a GPU that of its own clock, on the CPU
/// that of the call.
///
/// # Errors
/// A device that fails.
pub fn device_time<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(T, Duration)> {
    device.timed(work)
}

/// Runs `work` and tells the device's time for each dispatch of what is evaluated meanwhile, by name and in order. They
/// run one by one, so that their sum is more than the time of all of them together.
///
/// # Errors
/// The CPU, which does not tell them; a device that fails.
pub fn profile<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(T, Vec<(String, Duration)>)> {
    device.profile(work)
}

/// Runs `work` and tells what the dispatches of what it evaluates move, and those of other threads meanwhile. Only
/// soft Metal counts that.
///
/// # Errors
/// A device that does not count; one that fails.
pub fn traffic<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(T, Vec<Traffic>)> {
    device.traffic(work)
}
