//! NVIDIA GPUs: the driver behind [`crate::device::gpu::driver::Driver`]. Built everywhere; the libraries
//! are looked for at run time, so that a machine without them gets an error instead.
#![allow(dead_code)] // until the runtime stands

mod api;
mod compile;
mod cublaslt;
mod driver;
mod event;
mod staging;
#[cfg(test)]
mod tests;

#[allow(unused_imports)] // until the runtime stands
pub(crate) use driver::Cuda;
