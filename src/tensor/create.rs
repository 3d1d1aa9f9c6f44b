//! Making tensors.

use super::Tensor;
use crate::device::{Device, MetalBuffer};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::graph::{Node, Op, Random, Scalar};
use crate::shape::{IntoShape, Shape};
use std::panic::Location;
use std::sync::Arc;

impl Tensor {
    /// A tensor of host values in row-major order.
    ///
    /// # Errors
    /// A shape that does not hold exactly as many elements; out of memory.
    #[track_caller]
    pub fn from_slice<T: Element>(values: &[T], shape: impl IntoShape, device: &Device) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if shape.numel() != values.len() {
            let reason = format!("{} values given, {} wanted", values.len(), shape.numel());
            return Err(Error::shape("from_slice", &shape, reason));
        }
        device.needs_support("from_slice", T::DTYPE)?;
        let node = Node::realized(Arc::new(device.upload(values)?), &shape, T::DTYPE, device, Location::caller());
        Ok(Tensor(node))
    }

    /// A tensor of host values in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    #[track_caller]
    pub fn from_vec<T: Element>(values: Vec<T>, shape: impl IntoShape, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&values, shape, device)
    }

    /// A tensor of the bytes in a buffer of `device`, in row-major order, without a copy.
    ///
    /// # Errors
    /// Fewer bytes than the shape takes; a buffer of another device; `bool`, of which not every byte is a value.
    #[track_caller]
    pub fn from_buffer(buffer: MetalBuffer, shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if dtype == DType::Bool {
            return Err(Error::dtype("from_buffer", dtype, "use DType::U8, and compare with 0"));
        }
        device.needs_support("from_buffer", dtype)?;
        let wanted = shape.numel().checked_mul(dtype.size());
        if wanted.is_none_or(|bytes| bytes > buffer.len()) {
            let reason = format!("the buffer holds {} bytes, too few for {dtype}", buffer.len());
            return Err(Error::shape("from_buffer", &shape, reason));
        }
        if !device.owns(&buffer.0) {
            return Err(Error::arg("from_buffer", format!("the buffer is none of {device}")));
        }
        let node = Node::realized(Arc::new(buffer.0), &shape, dtype, device, Location::caller());
        Ok(Tensor(node))
    }

    /// A tensor of rank 0.
    ///
    /// # Errors
    /// Out of memory.
    #[track_caller]
    pub fn scalar<T: Element>(value: T, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&[value], (), device)
    }

    /// Every element `value`. Costs no memory until it is read.
    ///
    /// # Errors
    /// A shape with too many elements; a value that the dtype cannot hold.
    #[track_caller]
    pub fn full(shape: impl IntoShape, value: impl Into<f64>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        let value = match dtype {
            DType::F16 => half::f16::from_f64(value.into()).to_f64(),
            DType::BF16 => half::bf16::from_f64(value.into()).to_f64(),
            _ => value.into(),
        };
        let scalar = Tensor::from_scalar(Scalar::Float(value), "full", dtype, device)?;
        if shape.numel() == 0 {
            return Tensor::empty(shape, dtype, device);
        }
        scalar.expand(shape)
    }

    /// Zeros.
    ///
    /// # Errors
    /// A shape with too many elements.
    #[track_caller]
    pub fn zeros(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::full(shape, 0.0, dtype, device)
    }

    /// Ones (true, for bool).
    ///
    /// # Errors
    /// A shape with too many elements.
    #[track_caller]
    pub fn ones(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::full(shape, 1.0, dtype, device)
    }

    /// Zeros of this tensor's shape, dtype and device.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn zeros_like(&self) -> Result<Tensor> {
        Tensor::zeros(self.shape(), self.dtype(), self.device())
    }

    /// Ones of this tensor's shape, dtype and device.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn ones_like(&self) -> Result<Tensor> {
        Tensor::ones(self.shape(), self.dtype(), self.device())
    }

    /// The identity matrix `[n, n]`.
    ///
    /// # Errors
    /// Too many elements.
    #[track_caller]
    pub fn eye(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        Shape::new(&[n, n])?;
        let index = Tensor::iota(n, device)?;
        index.unsqueeze(1)?.eq(&index)?.to_dtype(dtype)
    }

    /// `start, start + 1, ...` up to, not including, `end`.
    ///
    /// # Errors
    /// Bounds that are not finite; too many elements.
    #[track_caller]
    pub fn arange<T: Number>(start: T, end: T, device: &Device) -> Result<Tensor> {
        Tensor::arange_step(start, end, T::from_f64(1.0), device)
    }

    /// `start, start + step, ...` up to, not including, `end`.
    ///
    /// # Errors
    /// A step of 0, bounds that are not finite, too many elements.
    #[track_caller]
    pub fn arange_step<T: Number>(start: T, end: T, step: T, device: &Device) -> Result<Tensor> {
        let count = T::steps(start, end, step).ok_or_else(|| {
            Error::arg("arange", format!("from {start:?} to {end:?} in steps of {step:?} never ends"))
        })?;
        let shape = Shape::new(&[count])?;
        let mut values = host_vec(count)?;
        values.iter_mut().enumerate().for_each(|(i, v)| *v = T::at(start, step, i));
        Tensor::from_vec(values, shape, device)
    }

    /// `count` values evenly spaced from `start` to `end`, both included.
    ///
    /// # Errors
    /// A dtype that is no float, bounds that are not finite.
    #[track_caller]
    pub fn linspace(start: f64, end: f64, count: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        if !dtype.is_float() {
            return Err(Error::dtype("linspace", dtype, "use a float dtype, or arange"));
        }
        if !start.is_finite() || !end.is_finite() {
            return Err(Error::arg("linspace", format!("bounds must be finite, not {start} and {end}")));
        }
        let last = count.saturating_sub(1).max(1) as f64;
        // From both ends, so that both are exact.
        let at = |i: usize| {
            let t = i as f64 / last;
            if t < 0.5 { start + (end - start) * t } else { end - (end - start) * (1.0 - t) }
        };
        let mut values = host_vec(Shape::new(&[count])?.numel())?;
        values.iter_mut().enumerate().for_each(|(i, v)| *v = at(i));
        // Only the CPU has f64.
        Tensor::from_vec(values, count, &Device::cpu())?.to_dtype(dtype)?.to_device(device)
    }

    /// Uniform random numbers in [0, 1), from the device's stream.
    ///
    /// # Errors
    /// A dtype that is no float; too many elements.
    #[track_caller]
    pub fn rand(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
        let uniform = Tensor::random("rand", Random::Uniform, shape.into_shape()?, dtype, device)?;
        // Rounding to a narrow type would reach 1: keep only as many bits as it holds.
        let steps: f64 = match dtype {
            DType::F16 => 2048.0,
            DType::BF16 => 256.0,
            _ => return uniform.to_dtype(dtype),
        };
        ((uniform * steps)?.floor()? / steps)?.to_dtype(dtype)
    }

    /// Standard normal random numbers, from the device's stream.
    ///
    /// # Errors
    /// A dtype that is no float; too many elements.
    #[track_caller]
    pub fn randn(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::random("randn", Random::Normal, shape.into_shape()?, dtype, device)?.to_dtype(dtype)
    }

    /// `0, 1, ..., n - 1` as i64, computed where it is used.
    #[track_caller]
    pub(crate) fn iota(n: usize, device: &Device) -> Result<Tensor> {
        Tensor::record(Op::Iota, &[], Shape::new(&[n])?, DType::I64, device)
    }

    #[track_caller]
    fn random(op: &'static str, kind: Random, shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        if !dtype.is_float() {
            return Err(Error::dtype(op, dtype, "random numbers are floats; scale and convert them"));
        }
        let (key, offset) = device.reserve_random(shape.numel());
        Tensor::record(Op::Random { kind, key, offset }, &[], shape, DType::F32, device)
    }
}

/// Host memory for `n` values, which may be more than there is.
pub(super) fn host_vec<T: Element>(n: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| Error::OutOfMemory {
        device: "host".into(),
        requested: n.saturating_mul(size_of::<T>()),
        in_use: 0,
        limit: usize::MAX,
    })?;
    values.resize(n, T::default());
    Ok(values)
}

/// Element types that count: all but bool.
pub trait Number: Element {
    /// The nearest value.
    fn from_f64(x: f64) -> Self;

    /// How many of `start, start + step, ...` stand before `end`; `None` where that never ends. Computed in
    /// f64 for floats, exactly for integers.
    fn steps(start: Self, end: Self, step: Self) -> Option<usize>;

    /// `start + i * step`.
    fn at(start: Self, step: Self, i: usize) -> Self;
}

macro_rules! float_number {
    ($($t:ty => |$x:ident| $e:expr;)+) => {$(
        impl Number for $t {
            fn from_f64($x: f64) -> Self { $e }
            fn steps(start: Self, end: Self, step: Self) -> Option<usize> {
                let count = ((end.to_f64() - start.to_f64()) / step.to_f64()).ceil();
                (step.to_f64() != 0.0 && count.is_finite()).then_some(count.max(0.0) as usize)
            }
            fn at(start: Self, step: Self, i: usize) -> Self {
                Self::from_f64(start.to_f64() + i as f64 * step.to_f64())
            }
        }
    )+};
}
float_number! {
    half::f16 => |x| half::f16::from_f64(x);
    half::bf16 => |x| half::bf16::from_f64(x);
    f32 => |x| x as f32;
    f64 => |x| x;
}

macro_rules! integer_number {
    ($($t:ty)+) => {$(
        impl Number for $t {
            fn from_f64(x: f64) -> Self { x as $t }
            fn steps(start: Self, end: Self, step: Self) -> Option<usize> {
                let (from, to, by) = (start as i128, end as i128, step as i128);
                match by.signum() {
                    0 => None,
                    sign => usize::try_from(((to - from) * sign).max(0).unsigned_abs().div_ceil(by.unsigned_abs())).ok(),
                }
            }
            fn at(start: Self, step: Self, i: usize) -> Self { (start as i128 + i as i128 * step as i128) as $t }
        }
    )+};
}
integer_number!(i64 i32 u32 u8);
