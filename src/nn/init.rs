//! Starting values of parameters. `fan_in` and `fan_out` are the inputs and outputs that a weight
//! `[outputs, inputs, ..]` connects, window sizes included.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{IntoShape, Shape};
use crate::tensor::Tensor;

/// Uniform in `-bound .. bound`.
///
/// # Errors
/// A dtype that is no float; too many elements.
pub fn uniform(shape: impl IntoShape, bound: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    let unit = Tensor::rand(shape, dtype.compute(), device)?;
    ((unit * (2.0 * bound))? - bound)?.to_dtype(dtype)
}

/// Normal with this standard deviation.
///
/// # Errors
/// A dtype that is no float; too many elements.
pub fn normal(shape: impl IntoShape, std: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    (Tensor::randn(shape, dtype.compute(), device)? * std)?.to_dtype(dtype)
}

/// Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16).
///
/// # Errors
/// A shape of fewer than two dimensions; a dtype that is no float.
pub fn xavier_uniform(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into_shape()?;
    let (fan_in, fan_out) = fans("xavier_uniform", &shape)?;
    uniform(shape, (6.0 / (fan_in + fan_out)).sqrt(), dtype, device)
}

/// Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010).
///
/// # Errors
/// A shape of fewer than two dimensions; a dtype that is no float.
pub fn xavier_normal(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into_shape()?;
    let (fan_in, fan_out) = fans("xavier_normal", &shape)?;
    normal(shape, (2.0 / (fan_in + fan_out)).sqrt(), dtype, device)
}

/// Uniform with variance 2 / fan_in, for rectifiers (He et al. 2015, eq. 10).
///
/// # Errors
/// A shape of fewer than two dimensions; a dtype that is no float.
pub fn kaiming_uniform(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into_shape()?;
    let (fan_in, _) = fans("kaiming_uniform", &shape)?;
    uniform(shape, (6.0 / fan_in).sqrt(), dtype, device)
}

/// Normal with variance 2 / fan_in, for rectifiers (He et al. 2015, eq. 10).
///
/// # Errors
/// A shape of fewer than two dimensions; a dtype that is no float.
pub fn kaiming_normal(shape: impl IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into_shape()?;
    let (fan_in, _) = fans("kaiming_normal", &shape)?;
    normal(shape, (2.0 / fan_in).sqrt(), dtype, device)
}

fn fans(op: &'static str, shape: &Shape) -> Result<(f64, f64)> {
    let [outputs, inputs, window @ ..] = shape.dims() else {
        return Err(Error::shape(op, shape, "a weight [outputs, inputs, ..] is wanted; use uniform or normal"));
    };
    let window: usize = window.iter().product();
    Ok(((inputs * window).max(1) as f64, (outputs * window).max(1) as f64))
}
