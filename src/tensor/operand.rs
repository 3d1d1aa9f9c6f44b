//! What ops accept beside a tensor: numbers, and ways to name dimensions.

use super::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Node, Op, Scalar};
use crate::shape::{Dims, Shape};
use std::panic::Location;

/// A second operand: a tensor, or a number that takes the first one's dtype.
pub trait Operand {
    /// The operand as a tensor on `like`'s device; a number in `like`'s dtype.
    ///
    /// # Errors
    /// A number that `like`'s dtype cannot hold: 0.5 beside integers.
    fn operand(self, op: &'static str, like: &Tensor) -> Result<Tensor>;

    /// The tensor, if it is one.
    fn as_tensor(&self) -> Option<&Tensor>;
}

impl Operand for &Tensor {
    fn operand(self, _: &'static str, _: &Tensor) -> Result<Tensor> {
        Ok(self.clone())
    }
    fn as_tensor(&self) -> Option<&Tensor> {
        Some(self)
    }
}

impl Operand for Tensor {
    fn operand(self, _: &'static str, _: &Tensor) -> Result<Tensor> {
        Ok(self)
    }
    fn as_tensor(&self) -> Option<&Tensor> {
        Some(self)
    }
}

macro_rules! number_operand {
    ($($t:ty => $make:expr;)+) => {$(
        impl Operand for $t {
            #[track_caller]
            fn operand(self, op: &'static str, like: &Tensor) -> Result<Tensor> {
                scalar($make(self), op, like)
            }
            fn as_tensor(&self) -> Option<&Tensor> {
                None
            }
        }
    )+};
}
number_operand! {
    f64 => Scalar::Float;
    f32 => |x: f32| Scalar::Float(x as f64);
    i64 => Scalar::Int;
    i32 => |x: i32| Scalar::Int(x as i64);
    u32 => |x: u32| Scalar::Int(x as i64);
    u8 => |x: u8| Scalar::Int(x as i64);
    bool => |x: bool| Scalar::Int(x as i64);
}

/// A number as a tensor of rank 0 with the dtype and device of `like`.
#[track_caller]
fn scalar(value: Scalar, op: &'static str, like: &Tensor) -> Result<Tensor> {
    Tensor::from_scalar(value, op, like.dtype(), like.device())
}

impl Tensor {
    /// A constant of rank 0.
    #[track_caller]
    pub(crate) fn from_scalar(
        value: Scalar,
        op: &'static str,
        dtype: DType,
        device: &crate::device::Device,
    ) -> Result<Tensor> {
        device.needs_support(op, dtype)?;
        let value = fit(value, op, dtype)?;
        let node =
            Node::pending(Op::Scalar(value), Default::default(), &Shape::scalar(), dtype, device, Location::caller());
        Ok(Tensor(node))
    }
}

/// The number as `dtype` holds it: a float, or an integer in range.
fn fit(value: Scalar, op: &'static str, dtype: DType) -> Result<Scalar> {
    let float = match value {
        Scalar::Float(x) => x,
        Scalar::Int(i) => i as f64,
    };
    if dtype.is_float() {
        return Ok(Scalar::Float(float));
    }
    let int = match value {
        Scalar::Int(i) => Some(i),
        Scalar::Float(x) if x.fract() == 0.0 && x.abs() < 9.2e18 => Some(x as i64),
        Scalar::Float(_) => None,
    };
    let range = match dtype {
        DType::U8 => 0..=u8::MAX as i64,
        DType::I32 => i32::MIN as i64..=i32::MAX as i64,
        DType::U32 => 0..=u32::MAX as i64,
        DType::Bool => 0..=1,
        _ => i64::MIN..=i64::MAX,
    };
    int.filter(|i| range.contains(i)).map(Scalar::Int).ok_or_else(|| {
        Error::arg(op, format!("the number {float} is no {dtype}; convert the tensor with to_dtype(DType::F32)"))
    })
}

/// A dimension: an integer, counted from the end when negative.
pub trait Dim {
    /// The dimension's position in `shape`.
    ///
    /// # Errors
    /// No such dimension.
    fn of(self, shape: &Shape, op: &'static str) -> Result<usize>;
}

/// The dimensions that a reduction runs over: one, several (`[0, 2]`), or all (`()`).
pub trait IntoDims {
    /// The positions in `shape`, ascending.
    ///
    /// # Errors
    /// A dimension that does not exist, or stands there twice.
    fn of_shape(self, shape: &Shape, op: &'static str) -> Result<Dims<usize>>;
}

macro_rules! integer_dim {
    ($($t:ty)+) => {$(
        impl Dim for $t {
            fn of(self, shape: &Shape, op: &'static str) -> Result<usize> {
                shape.dim(op, isize::try_from(self).unwrap_or(isize::MAX))
            }
        }
        impl IntoDims for $t {
            fn of_shape(self, shape: &Shape, op: &'static str) -> Result<Dims<usize>> {
                several(&[self], shape, op)
            }
        }
        impl<const N: usize> IntoDims for [$t; N] {
            fn of_shape(self, shape: &Shape, op: &'static str) -> Result<Dims<usize>> {
                several(&self, shape, op)
            }
        }
        impl IntoDims for &[$t] {
            fn of_shape(self, shape: &Shape, op: &'static str) -> Result<Dims<usize>> {
                several(self, shape, op)
            }
        }
    )+};
}
integer_dim!(i32 isize usize);

impl IntoDims for () {
    fn of_shape(self, shape: &Shape, _: &'static str) -> Result<Dims<usize>> {
        let all: Vec<usize> = (0..shape.rank()).collect();
        Ok(Dims::from_slice(&all).unwrap_or_default())
    }
}

fn several<D: Dim + Copy>(dims: &[D], shape: &Shape, op: &'static str) -> Result<Dims<usize>> {
    let mut list = dims.iter().map(|d| d.of(shape, op)).collect::<Result<Vec<usize>>>()?;
    list.sort_unstable();
    if list.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::shape(op, shape, format!("dimension {list:?} named twice")));
    }
    Dims::from_slice(&list).ok_or_else(|| Error::shape(op, shape, "more dimensions than the tensor has"))
}
