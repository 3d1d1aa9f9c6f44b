//! Copies between the host's vectors and tensors.

use super::{Limits, Row, count, measure};
use tensorlogic::{DType, Device, Result, Tensor};

/// Vectors that take turns, so that no run reads what the last one left in the cache.
const ROTATED: usize = 4;

/// Both directions, for `n` elements of f32.
pub fn rows(n: usize, device: &Device, limits: Limits) -> Result<[Row; 2]> {
    let tensors: Vec<Tensor> = (0..ROTATED).map(|_| Tensor::randn(n, DType::F32, device)).collect::<Result<_>>()?;
    let host: Vec<Vec<f32>> = tensors.iter().map(Tensor::to_vec).collect::<Result<_>>()?;
    let mut out = vec![0f32; n];
    let up = measure(limits, |run| {
        let tensor = Tensor::from_slice(&host[run % ROTATED], n, device)?;
        device.synchronize()?;
        Ok(tensor)
    })?;
    let down = measure(limits, |run| tensors[run % ROTATED].copy_to_slice(&mut out))?;
    let row = |operation: &str, times| Row {
        operation: operation.into(),
        size: count(n),
        dtype: DType::F32,
        times,
        flops: 0,
        bytes: n * DType::F32.size(),
    };
    Ok([row("host to device", up), row("device to host", down)])
}
