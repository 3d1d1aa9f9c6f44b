//! What a GPU takes for an op: on the device, amortised over many calls, and with a wait after each.

use super::cases::Case;
use super::{Limits, measure};
use std::time::{Duration, Instant};
use tensorlogic::testing::device_time;
use tensorlogic::{DType, Device, Result, Tensor};

/// Bytes of the inputs that take turns, and of the outputs that a batch keeps, where a few of them are no more.
const INPUT_BYTES: usize = 2 << 30;
const OUTPUT_BYTES: usize = 8 << 30;
/// Calls of a batch at most; large ones stop at the seconds.
const CALLS: usize = 200;
const FEWEST_CALLS: usize = 8;
const SECONDS: f64 = 0.1;
/// Batches that are timed; the median counts.
const ROUNDS: usize = 5;
const SYNCHRONISED: Limits =
    Limits { warm_up: Duration::from_millis(20), measured: Duration::from_millis(100), runs: 500 };

/// Times of one call, in seconds.
pub struct GpuTimes {
    /// By the device's clock, of a batch that it runs without waiting for the host.
    pub device: f64,
    /// Of a batch of calls, recorded one by one and waited for once.
    pub amortised: f64,
    /// Of a call that is waited for.
    pub synchronised: f64,
    /// Calls of a batch.
    pub calls: usize,
    /// Sets of inputs that take turns in it.
    pub sets: usize,
}

/// Work that keeps the device busy while the host records a batch.
pub struct Busy {
    x: Tensor,
    seconds: f64,
}

impl Busy {
    /// An op long enough that recording it takes no time beside it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn new(device: &Device) -> Result<Busy> {
        let mut n = 1 << 10;
        loop {
            let x = Tensor::randn(n, DType::F16, device)?;
            x.eval()?;
            let mut busy = Busy { x, seconds: 0.0 };
            for _ in 0..2 {
                device.synchronize()?;
                let start = Instant::now();
                busy.x.relu()?.eval()?;
                device.synchronize()?;
                busy.seconds = start.elapsed().as_secs_f64();
            }
            if busy.seconds > 2e-4 || n >= 1 << 28 {
                return Ok(busy);
            }
            n *= 4;
        }
    }

    fn occupy(&self, seconds: f64) -> Result<()> {
        (0..(seconds / self.seconds).ceil() as usize).try_for_each(|_| self.x.relu()?.eval())
    }
}

impl Case {
    /// Measures the case on a GPU.
    ///
    /// # Errors
    /// A device that fails, or has too little memory.
    pub fn gpu_times(&self, device: &Device, busy: &Busy) -> Result<GpuTimes> {
        let count = (INPUT_BYTES / self.input_bytes()).clamp(2, CALLS);
        let sets = (0..count).map(|_| self.inputs(device)).collect::<Result<Vec<_>>>()?;
        let call = |run: usize| {
            let result = (self.call)(&sets[run % count])?;
            result.eval()?;
            Ok(result)
        };
        let first: Tensor = call(0)?;
        let output_bytes = first.numel() * first.dtype().size();
        let synchronised = measure(SYNCHRONISED, |run| {
            let result = call(run)?;
            device.synchronize()?;
            Ok(result)
        })?;
        let synchronised = synchronised.median;

        let most = (OUTPUT_BYTES / output_bytes).min((SECONDS / synchronised) as usize);
        let calls = most.clamp(FEWEST_CALLS, CALLS);
        let batch = || (0..calls).map(call).collect::<Result<Vec<Tensor>>>();
        let (mut amortised, mut on_device) = (Vec::new(), Vec::new());
        // The first batch finds its memory.
        drop(batch()?);
        for _ in 0..ROUNDS {
            device.synchronize()?;
            let start = Instant::now();
            let outputs = batch()?;
            let recorded = start.elapsed().as_secs_f64();
            device.synchronize()?;
            amortised.push(start.elapsed().as_secs_f64());
            drop(outputs);

            busy.occupy(1.5 * recorded)?;
            let (outputs, time) = device_time(device, batch)?;
            outputs?;
            on_device.push(time.as_secs_f64());
        }
        let each = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] / calls as f64
        };
        Ok(GpuTimes { device: each(on_device), amortised: each(amortised), synchronised, calls, sets: count })
    }
}
