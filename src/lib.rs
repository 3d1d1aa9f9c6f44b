//! TensorLogic: a tensor engine. You write ordinary tensor code; it runs as few, fused, deterministic
//! kernels.
//!
//! Calls record a graph. When elements are read, the graph is planned (ops become kernels), and the
//! plan is kept for the next graph of the same structure. f16 and bf16 are stored narrow, computed in
//! f32 and rounded once. [`Tensor::explain`] shows what would run.
//!
//! ```
//! use tensorlogic::{DType, Device, Tensor};
//! let device = Device::best();
//! let x = Tensor::randn((128, 64), DType::F16, &device)?;
//! let w = Tensor::ones(64, DType::F16, &device)?;
//! let y = (&x + &x)?.layer_norm(&w, None, 1e-5)?;
//! assert_eq!(y.explain()?.kernels(), 1);
//! println!("{y}");
//! # Ok::<(), tensorlogic::Error>(())
//! ```

// The derive macro names this crate as its users do.
extern crate self as tensorlogic;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod autograd;
pub mod capture;
mod codegen;
pub mod data;
pub mod device;
pub mod dtype;
mod engine;
pub mod error;
mod graph;
pub mod io;
pub mod nn;
pub mod ops;
pub mod optim;
mod schedule;
mod scope;
pub mod shape;
pub mod tensor;
pub mod testing;

pub use autograd::{Gradients, Var, checkpoint, grad, grad_with, no_grad};
pub use capture::{Captured, capture};
pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use ops::Activation;
pub use shape::{IntoShape, Shape};
pub use tensor::{AttentionOptions, ConvOptions, Readback, RotaryLayout, Tensor, autocast, eval};
