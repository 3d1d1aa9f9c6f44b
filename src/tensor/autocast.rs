//! Mixed precision: matrix products in a narrow dtype, everything that loses by it in f32.

use super::Tensor;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::scope;
use std::cell::Cell;

thread_local! {
    static NARROW: Cell<Option<DType>> = const { Cell::new(None) };
}

/// Runs `work` with matrix products of floats computed in `dtype` (f16 or bf16; f32 switches it off) on
/// this thread.
///
/// Products and convolutions convert their operands; elementwise ops on two float dtypes convert the
/// narrower; norms take f32 weights beside narrow inputs. Sums, softmax, norms and losses compute in f32
/// anyway. f64 stays f64. What is recorded counts, not when it is computed.
///
/// ```
/// use tensorlogic::{DType, Device, Tensor, autocast};
/// let a = Tensor::ones((4, 8), DType::F32, &Device::cpu())?;
/// let product = autocast(DType::BF16, || a.matmul(&a.t()?))?;
/// assert_eq!(product.dtype(), DType::BF16);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
///
/// # Errors
/// A dtype that is neither f16, bf16 nor f32; what `work` returns.
pub fn autocast<T>(dtype: DType, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match dtype {
        DType::F16 | DType::BF16 => with_narrow(Some(dtype), work),
        DType::F32 => with_narrow(None, work),
        _ => Err(Error::dtype("autocast", dtype, "use f16, bf16, or f32 to switch it off")),
    }
}

/// Runs `work` without [`autocast`].
pub(crate) fn full_precision<T>(work: impl FnOnce() -> T) -> T {
    with_narrow(None, work)
}

fn with_narrow<T>(dtype: Option<DType>, work: impl FnOnce() -> T) -> T {
    scope::with(&NARROW, dtype, work)
}

/// Whether dtypes are converted on this thread.
pub(crate) fn is_on() -> bool {
    NARROW.get().is_some()
}

/// A product's operand in the dtype that products have on this thread.
#[track_caller]
pub(crate) fn operand(x: &Tensor) -> Result<Tensor> {
    match NARROW.get() {
        Some(narrow) if x.dtype().is_float() && x.dtype() != DType::F64 => x.to_dtype(narrow),
        _ => Ok(x.clone()),
    }
}

/// The dtype that float operands of an elementwise op share: the widest, where dtypes are converted.
pub(crate) fn common(dtypes: impl Iterator<Item = DType> + Clone) -> Option<DType> {
    let differ = || dtypes.clone().any(|d| Some(d) != dtypes.clone().next());
    if !is_on() || !dtypes.clone().all(DType::is_float) || !differ() {
        return None;
    }
    // f16 and bf16 have only f32 in common.
    Some(if dtypes.clone().any(|d| d == DType::F64) { DType::F64 } else { DType::F32 })
}
