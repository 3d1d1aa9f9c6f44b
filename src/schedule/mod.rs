//! Layer 3: from a graph to kernels. No device is known here: the plan is the same for all.

mod access;
mod explain;
mod group;
pub(crate) mod kernel;
mod lower;
mod plan;
mod saved;

pub(crate) use access::collapse;
pub(crate) use explain::Report;
pub(crate) use kernel::Level;
pub(crate) use kernel::{
    Attention, Gemm, Guard, Kernel, Operand, Output, Reach, Scatter, Shift, Strided, Value, ValueOp,
};
pub(crate) use plan::{Options, Part, Plan, Source, op_weight, plan};
