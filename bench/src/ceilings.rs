//! What the device can do at best: the rates that cases are held against.

use crate::cases;
use crate::measure::samples;
use std::collections::BTreeMap;
use std::time::Instant;
use tensorlogic::testing::device_time;
use tensorlogic::{DType, Device, Result, Tensor};

/// Elements of f32: more than a processor's caches hold.
const LOOP: usize = 32 << 20;

/// The best rates of plain kernels over large arrays, and on the CPU of plain loops: bytes a nanosecond for `read`,
/// `write` and `copy`; operations a nanosecond for `matmul` in each dtype.
///
/// # Errors
/// A device that fails.
pub fn measure(device: &Device, dtypes: &[DType], quick: bool) -> Result<BTreeMap<String, f64>> {
    let cpu = device.name() == "cpu";
    let seconds = if quick { 0.02 } else { 0.2 };
    let n = if quick {
        1 << 20
    } else if cpu {
        LOOP
    } else {
        128 << 20
    };
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    let mut found = |name: &str, rate: f64| {
        let entry = best.entry(name.into()).or_default();
        *entry = entry.max(rate);
    };
    let [a, b] = [0; 2].map(|_| computed(Tensor::randn(n, DType::F32, device)));
    let (a, b) = (a?, b?);
    let array = 4 * n;
    let arrays = |count: usize, call: &dyn Fn() -> Result<Tensor>| {
        let time = fastest(device, seconds, call)?;
        Ok((count * array) as f64 / time / 1e9)
    };
    found("read", arrays(1, &|| a.sum_all())?);
    found("read", arrays(2, &|| (&a - &b)?.sqr()?.sum_all())?);
    found("write", arrays(1, &|| Tensor::full(n, 0.5, DType::F32, device)?.contiguous())?);
    found("copy", arrays(2, &|| a.relu())?);
    found("copy", arrays(3, &|| &a + &b)?);
    if cpu && !quick {
        drop((a, b));
        loops(device.info().threads, seconds)?.into_iter().for_each(|(name, rate)| found(name, rate));
    }
    let sides: &[usize] = if quick {
        &[256]
    } else if cpu {
        &[1024, 2048]
    } else {
        &[4096, 8192]
    };
    for &dtype in dtypes.iter().filter(|dtype| dtype.is_float() && **dtype != DType::F64) {
        for &side in sides {
            let case = cases::matmul(side, dtype);
            let inputs = case.inputs(1, device)?;
            let time = fastest(device, seconds, &|| inputs[0][0].matmul(&inputs[0][1]))?;
            found(&format!("matmul {dtype}"), 2.0 * (side as f64).powi(3) / time / 1e9);
        }
    }
    Ok(best)
}

fn computed(tensor: Result<Tensor>) -> Result<Tensor> {
    let tensor = tensor?;
    tensor.eval()?;
    Ok(tensor)
}

/// The device's shortest time for a call, in seconds.
fn fastest(device: &Device, seconds: f64, call: &dyn Fn() -> Result<Tensor>) -> Result<f64> {
    let spread = samples(seconds, 100, || {
        let (result, time) = device_time(device, || computed(call()))?;
        result.map(|_| time.as_secs_f64())
    })?;
    Ok(spread.min / 1e6)
}

/// Rates of the standard library's own fills and copies and of a sum, a share of an array a thread.
fn loops(threads: usize, seconds: f64) -> Result<[(&'static str, f64); 3]> {
    let (from, mut to) = (vec![1u64; LOOP / 2], vec![2u64; LOOP / 2]);
    let share = from.len().div_ceil(threads);
    let mut rate = |arrays: usize, work: fn(&[u64], &mut [u64])| {
        let spread = samples(seconds, 100, || {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
                    scope.spawn(move || work(from, to));
                }
            });
            Ok(start.elapsed().as_secs_f64())
        })?;
        Ok((arrays * 4 * LOOP) as f64 / spread.min / 1e3)
    };
    Ok([
        ("read", rate(1, |from, to| to[0] = from.iter().fold(0, |sum, x| sum ^ x))?),
        ("write", rate(1, |_, to| to.fill(std::hint::black_box(3)))?),
        ("copy", rate(2, |from, to| to.copy_from_slice(from))?),
    ])
}

/// Bytes that a case must move to count as one of memory.
pub fn uncached_bytes(device: &Device) -> usize {
    if device.name() == "cpu" { 96 << 20 } else { 256 << 20 }
}
