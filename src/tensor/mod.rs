//! Layer 6: the user's type. Calls check shapes and dtypes and record a node; nothing is computed
//! until elements are read.

mod attention;
mod autocast;
mod conv;
mod create;
mod display;
mod elementwise;
mod index;
mod loss;
mod matmul;
mod norm;
mod operand;
mod operators;
mod read;
mod reduce;
mod rotary;
mod view;

pub use attention::AttentionOptions;
pub(crate) use attention::{
    backward as attention_backward, composed as composed_attention, gradient as attention_gradient,
};
pub use autocast::autocast;
pub(crate) use autocast::{full_precision, operand as autocast_operand};
pub use conv::ConvOptions;
pub use operand::{Dim, IntoDims, Operand};
pub use read::Readback;
pub use rotary::RotaryLayout;

use crate::device::{Device, Storage};
use crate::dtype::DType;
use crate::engine::{self, Purpose};
use crate::error::{Error, Result};
use crate::graph::{Inputs, Node, NodeRef, Op};
use crate::schedule::Report;
use crate::shape::Shape;
use std::panic::Location;
use std::sync::Arc;

/// Pending ops on one path after which the path is evaluated without being asked: bounds the memory
/// of a loop that never reads. It counts a node's own ancestors only, so it falls on the same node
/// in every run.
const MAX_DEPTH: u32 = 4096;

/// A tensor: a shape, a dtype, a device, and elements that are computed when they are read.
///
/// Cloning is cheap and shares the elements, which never change. Every op takes views of any strides
/// and broadcasts as NumPy does. Ops return `Result`, so that shapes and dtypes are checked where the
/// call stands:
///
/// ```
/// use tensorlogic::{DType, Device, Tensor};
/// let device = Device::best();
/// let a = Tensor::from_vec(vec![1f32, -2.0, 3.0, -4.0], (2, 2), &device)?;
/// let b = Tensor::ones((2, 2), DType::F32, &device)?;
/// let c = (&a + &b)?.relu()?; // one kernel, when it is read
/// assert_eq!(c.to_vec2::<f32>()?, [[2.0, 0.0], [4.0, 0.0]]);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor(pub(crate) NodeRef);

impl Tensor {
    /// The sizes of the dimensions.
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The sizes of the dimensions, as a slice.
    pub fn dims(&self) -> &[usize] {
        self.0.shape.dims()
    }

    /// Size of one dimension; negative numbers count from the end.
    ///
    /// # Errors
    /// No such dimension.
    pub fn dim(&self, dim: impl Dim) -> Result<usize> {
        Ok(self.dims()[dim.of(self.shape(), "dim")?])
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.shape.rank()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.0.shape.numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where the tensor lives.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Computes the elements now, if they are not there yet. Reading does so by itself.
    ///
    /// # Errors
    /// What can only fail with data at hand: an index out of range, memory that cannot be had.
    pub fn eval(&self) -> Result<()> {
        engine::request(std::slice::from_ref(&self.0))
    }

    /// What evaluating this tensor would run: each kernel with its ops, bytes and operations, and why
    /// the edges between kernels did not fuse. Runs nothing.
    ///
    /// # Errors
    /// A graph that cannot be planned, which would be a bug.
    pub fn explain(&self) -> Result<Explanation> {
        engine::report(std::slice::from_ref(&self.0)).map(Explanation)
    }

    /// Records an op. Tensors without elements are never pending.
    #[track_caller]
    fn record(op: Op, inputs: &[&Tensor], shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let site = Location::caller();
        device.needs_support(op.name(), dtype)?;
        if shape.numel() == 0 {
            return Tensor::empty(shape, dtype, device);
        }
        let mut nodes = Inputs::new();
        inputs.iter().for_each(|input| nodes.push(input.0.clone()));
        let tensor = Tensor(Node::pending(op, nodes, &shape, dtype, device, site));
        if tensor.0.depth() >= MAX_DEPTH {
            engine::evaluate(std::slice::from_ref(&tensor.0), Purpose::Later)?;
        }
        Ok(tensor)
    }

    /// A realized tensor of no elements.
    #[track_caller]
    fn empty(shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let storage = Arc::new(Storage::new(device.buffer_pool(), 0)?);
        Ok(Tensor(Node::realized(storage, &shape, dtype, device, Location::caller())))
    }

    pub(crate) fn same_device(&self, op: &'static str, other: &Tensor) -> Result<()> {
        if self.device() == other.device() {
            return Ok(());
        }
        Err(Error::DeviceMismatch { op, lhs: self.device().to_string(), rhs: other.device().to_string() })
    }

    pub(crate) fn same_dtype(&self, op: &'static str, other: &Tensor) -> Result<()> {
        if self.dtype() == other.dtype() {
            return Ok(());
        }
        Err(Error::DTypeMismatch { op, lhs: self.dtype(), rhs: other.dtype() })
    }

    fn needs_float(&self, op: &'static str) -> Result<()> {
        if self.dtype().is_float() {
            return Ok(());
        }
        Err(Error::dtype(op, self.dtype(), "convert with to_dtype(DType::F32)"))
    }
}

/// Computes several tensors in one plan, which shares what they have in common.
///
/// # Errors
/// As [`Tensor::eval`].
pub fn eval(tensors: &[&Tensor]) -> Result<()> {
    let nodes: Vec<NodeRef> = tensors.iter().map(|t| t.0.clone()).collect();
    engine::request(&nodes)
}

/// The account that [`Tensor::explain`] gives; print it.
#[derive(Clone, Debug)]
pub struct Explanation(Report);

impl Explanation {
    /// The number of kernels.
    pub fn kernels(&self) -> usize {
        self.0.kernels.len()
    }

    /// Bytes that the kernels read and write, each buffer once a kernel.
    pub fn bytes(&self) -> usize {
        self.0.kernels.iter().map(|k| k.bytes_read + k.bytes_written).sum()
    }

    /// Arithmetic operations of all kernels, a transcendental function counted as eight.
    pub fn flops(&self) -> usize {
        self.0.kernels.iter().map(|k| k.flops).sum()
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

pub(crate) fn explain(tensors: &[&Tensor]) -> Result<Explanation> {
    let nodes: Vec<NodeRef> = tensors.iter().map(|t| t.0.clone()).collect();
    engine::report(&nodes).map(Explanation)
}
