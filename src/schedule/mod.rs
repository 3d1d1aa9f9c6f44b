//! Layer 3: from a graph to kernels. No device is known here: the plan is the same for all.

mod access;
mod explain;
pub(crate) mod kernel;
mod lower;
mod plan;

pub(crate) use access::collapse;
pub(crate) use explain::Report;
pub(crate) use kernel::Level;
pub(crate) use kernel::{Gemm, Kernel, Operand, Output, Reach, Value, ValueOp};
pub(crate) use plan::{Options, Plan, Source, Step, op_weight, plan};
