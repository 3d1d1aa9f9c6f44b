//! Layer 1: what the ops are. No device and no graph is known here.

pub mod fused;
pub mod math;
pub mod table;

pub use fused::Activation;
pub use table::{Elementwise, Expr, Reduction, Rounding, Sort};
