//! The one error type of the library.

use crate::dtype::DType;
use crate::shape::Shape;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the op, the values and what would be right.
///
/// Shapes, dtypes and devices are checked when a call is made, although execution is lazy; only
/// what depends on data (an index out of range) or on the machine (memory) surfaces at evaluation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes do not go together.
    #[error("{op}: {reason}: {lhs} and {rhs}")]
    ShapeMismatch {
        /// The op that was called.
        op: &'static str,
        /// Shape of the left operand.
        lhs: Box<Shape>,
        /// Shape of the right operand.
        rhs: Box<Shape>,
        /// What the op needs.
        reason: String,
    },
    /// One shape is not what the op can take.
    #[error("{op}: {reason}, shape {shape}")]
    InvalidShape {
        /// The op that was called.
        op: &'static str,
        /// The offending shape.
        shape: Box<Shape>,
        /// What is wrong with it.
        reason: String,
    },
    /// Two operands have different dtypes.
    #[error("{op}: operands are {lhs} and {rhs}; convert one with to_dtype(DType::{rhs:?})")]
    DTypeMismatch {
        /// The op that was called.
        op: &'static str,
        /// Dtype of the left operand.
        lhs: DType,
        /// Dtype of the right operand.
        rhs: DType,
    },
    /// The op is not defined for this dtype.
    #[error("{op}: not defined for {dtype}; {hint}")]
    UnsupportedDType {
        /// The op that was called.
        op: &'static str,
        /// The offending dtype.
        dtype: DType,
        /// What would work.
        hint: String,
    },
    /// Two operands live on different devices.
    #[error("{op}: operands are on {lhs} and {rhs}; move one with to_device")]
    DeviceMismatch {
        /// The op that was called.
        op: &'static str,
        /// Device of the left operand.
        lhs: String,
        /// Device of the right operand.
        rhs: String,
    },
    /// A dimension does not exist.
    #[error("{op}: dimension {dim} is out of range for rank {rank} (shape {shape})")]
    DimOutOfRange {
        /// The op that was called.
        op: &'static str,
        /// The dimension asked for.
        dim: isize,
        /// The rank there is.
        rank: usize,
        /// The tensor's shape.
        shape: Box<Shape>,
    },
    /// An index read from a tensor was outside the dimension it indexes.
    #[error("{op}: index {index} is out of range for a dimension of size {size} (called at {site})")]
    IndexOutOfRange {
        /// The op that was called.
        op: &'static str,
        /// The first offending value.
        index: i64,
        /// Size of the indexed dimension.
        size: usize,
        /// Source position of the call.
        site: String,
    },
    /// An argument is not acceptable.
    #[error("{op}: {reason}")]
    InvalidArgument {
        /// The op that was called.
        op: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Memory could not be had.
    #[error("out of memory on {device}: {requested} bytes asked for, {in_use} in use, {}", limit_text(*.limit))]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        requested: usize,
        /// Bytes in use.
        in_use: usize,
        /// The limit in force, `usize::MAX` for none.
        limit: usize,
    },
    /// A device that is not there, or not built in.
    #[error("{device} is not available: {reason}")]
    DeviceUnavailable {
        /// The device asked for.
        device: String,
        /// Why, and what would help.
        reason: String,
    },
    /// A kernel that a device's compiler did not take.
    #[error("{device}: the kernel {kernel} does not compile: {reason}")]
    Compile {
        /// The device.
        device: String,
        /// The kernel.
        kernel: String,
        /// What the compiler says.
        reason: String,
    },
    /// A device that failed at its work.
    #[error("{device}: {op} failed: {reason}")]
    DeviceFailed {
        /// The device.
        device: String,
        /// What it was doing.
        op: &'static str,
        /// What the system below says.
        reason: String,
    },
    /// A gradient that does not exist.
    #[error("{op}: {reason}")]
    NoGradient {
        /// What was called, or the op on the way that has no gradient.
        op: &'static str,
        /// Why, and what would help.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{op}: {path}: {reason}")]
    Io {
        /// The call.
        op: &'static str,
        /// The file.
        path: String,
        /// What the system or the format says.
        reason: String,
    },
    /// A bug in this library: an invariant did not hold.
    #[error("internal error in {place}: {reason}; please report it")]
    Internal {
        /// Where.
        place: &'static str,
        /// Which invariant.
        reason: String,
    },
}

fn limit_text(limit: usize) -> String {
    if limit == usize::MAX { "no limit set".into() } else { format!("limit {limit}") }
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub(crate) fn arg(op: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidArgument { op, reason: reason.into() }
    }

    /// An [`Error::InvalidShape`].
    pub(crate) fn shape(op: &'static str, shape: &Shape, reason: impl Into<String>) -> Self {
        Error::InvalidShape { op, shape: Box::new(*shape), reason: reason.into() }
    }

    /// An [`Error::ShapeMismatch`].
    pub(crate) fn shapes(op: &'static str, lhs: &Shape, rhs: &Shape, reason: impl Into<String>) -> Self {
        Error::ShapeMismatch { op, lhs: Box::new(*lhs), rhs: Box::new(*rhs), reason: reason.into() }
    }

    /// An [`Error::UnsupportedDType`].
    pub(crate) fn dtype(op: &'static str, dtype: DType, hint: impl Into<String>) -> Self {
        Error::UnsupportedDType { op, dtype, hint: hint.into() }
    }

    /// An [`Error::Internal`].
    pub(crate) fn internal(place: &'static str, reason: impl Into<String>) -> Self {
        Error::Internal { place, reason: reason.into() }
    }
}
