//! NVIDIA GPUs: the driver behind [`crate::device::gpu::driver::Driver`]. Built everywhere; the libraries
//! are looked for at run time, so that a machine without them gets an error instead.
mod api;
mod compile;
mod cublaslt;
mod driver;
mod event;
mod graph;
mod launch;
mod staging;
#[cfg(test)]
mod tests;

pub(crate) use driver::Cuda;
