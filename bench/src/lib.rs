//! The benchmark of TensorLogic, behind `cargo bench --bench metal_performance` and `tl bench`.
//!
//! A case is timed by four clocks, over random inputs that take turns past the caches:
//!
//! - *device*: on a GPU its own clock, around a batch of calls that it runs without waiting for the host; on the CPU
//!   the evaluation of an op that is recorded already.
//! - *captured*: a captured step of up to 50 calls on different inputs, again and again.
//!   Calls that are alike and do not depend on one another become one launch there.
//! - *amortised*: up to 200 calls on different inputs one after another, outputs kept, and one wait.
//! - *synchronised*: a call and a wait, its output dropped.
//!
//! FLOP and bytes are those of the plan ([`tensorlogic::Tensor::explain`]): a transcendental function counts as eight,
//! and a buffer once a kernel.

pub mod cases;
mod ceilings;
mod compare;
mod document;
mod host;
pub mod machine;
pub mod measure;
mod options;
mod plots;
pub mod results;
mod table;
pub mod training;

pub use compare::{Comparison, compare};
pub use document::document;
pub use options::{Options, run};
pub use results::Results;

/// What a failed run reports.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
