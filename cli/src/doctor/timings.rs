//! What is timed: latencies, bandwidths and matrix products, each the median of several runs over random inputs.

use std::time::{Duration, Instant};
use tensorlogic::{DType, Device, Result, Tensor, testing};
use tensorlogic_bench::measure::samples;

/// A measurement in words.
type Measure = dyn Fn(&Device) -> Result<String>;

/// A line of the report.
pub struct Timing {
    pub name: String,
    pub run: Box<Measure>,
}

impl Timing {
    fn new(name: impl Into<String>, run: impl Fn(&Device) -> Result<String> + 'static) -> Timing {
        let run = move |device: &Device| match device.name() {
            "soft-metal" => Ok("skipped: a GPU in software".into()),
            _ => run(device),
        };
        Timing { name: name.into(), run: Box::new(run) }
    }
}

/// Launches between two waits, when their cost is shared.
const LAUNCHES: u32 = 200;

/// Every timing; `quick` takes smaller sizes and less time.
pub fn all(quick: bool) -> Vec<Timing> {
    let limit = Duration::from_millis(if quick { 100 } else { 500 });
    let most = if quick { 4 << 20 } else { 64 << 20 };
    let sides: &[usize] = if quick { &[1024] } else { &[1024, 2048] };
    let mut list = vec![
        Timing::new("launch and wait", move |device| launch(device, 1, limit)),
        Timing::new("launch, of many", move |device| launch(device, LAUNCHES, limit)),
        Timing::new("f16 add", move |device| addition(device, most, limit)),
    ];
    list.extend(sides.iter().map(|&n| Timing::new(format!("f16 matmul {n}"), move |device| product(device, n, limit))));
    list.push(Timing::new("upload", move |device| upload(device, most / 4, limit)));
    list.push(Timing::new("download", move |device| download(device, most / 4, limit)));
    list
}

/// Additions to 64 elements, `count` of them and a wait.
fn launch(device: &Device, count: u32, limit: Duration) -> Result<String> {
    let x = random(64, DType::F32, device)?;
    let time = median(limit, || {
        let start = Instant::now();
        for _ in 0..count {
            x.add(&x)?.eval()?;
        }
        device.synchronize()?;
        Ok(start.elapsed() / count)
    })?;
    Ok(format!("{:.2} us", time.as_secs_f64() * 1e6))
}

/// Adds two tensors: a buffer is moved three times. `most` elements, or as many as a sixteenth of the memory holds.
fn addition(device: &Device, most: usize, limit: Duration) -> Result<String> {
    let fitting = device.info().memory.unwrap_or(1 << 30) / 16 / (3 * DType::F16.size());
    let n = most.min(fitting.next_power_of_two() / 2);
    let (a, b) = (random(n, DType::F16, device)?, random(n, DType::F16, device)?);
    let time = median(limit, || computed(device, || a.add(&b)))?;
    Ok(format!("{} of {} Mi elements", rate(3 * n * DType::F16.size(), time), n >> 20))
}

fn product(device: &Device, n: usize, limit: Duration) -> Result<String> {
    let (a, b) = (random((n, n), DType::F16, device)?, random((n, n), DType::F16, device)?);
    let time = median(limit, || computed(device, || a.matmul(&b)))?;
    Ok(format!("{:.3} TFLOPS", 2.0 * (n as f64).powi(3) / time.as_secs_f64() / 1e12))
}

fn upload(device: &Device, n: usize, limit: Duration) -> Result<String> {
    let host: Vec<f32> = random(n, DType::F32, &Device::cpu())?.to_vec()?;
    let time = median(limit, || {
        let start = Instant::now();
        let _tensor = Tensor::from_slice(&host, n, device)?;
        device.synchronize()?;
        Ok(start.elapsed())
    })?;
    Ok(format!("{} of {} MiB", rate(4 * n, time), n >> 18))
}

fn download(device: &Device, n: usize, limit: Duration) -> Result<String> {
    let tensor = random(n, DType::F32, device)?;
    let mut host = vec![1.0f32; n];
    let time = median(limit, || {
        let start = Instant::now();
        tensor.copy_to_slice(&mut host)?;
        Ok(start.elapsed())
    })?;
    Ok(format!("{} of {} MiB", rate(4 * n, time), n >> 18))
}

/// A random tensor, computed.
fn random(shape: impl tensorlogic::IntoShape, dtype: DType, device: &Device) -> Result<Tensor> {
    let tensor = Tensor::rand(shape, dtype, device)?;
    tensor.eval()?;
    device.synchronize()?;
    Ok(tensor)
}

/// The device's time for a tensor.
fn computed(device: &Device, make: impl FnOnce() -> Result<Tensor>) -> Result<Duration> {
    // The tensor is dropped behind the timing.
    let (tensor, time) = testing::device_time(device, || make().and_then(|tensor| tensor.eval().map(|()| tensor)))?;
    tensor.map(|_| time)
}

/// The median of runs, as many as `limit` has room for, up to 200.
fn median(limit: Duration, mut run: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let spread = samples(limit.as_secs_f64(), 200, || Ok(run()?.as_secs_f64()))?;
    Ok(Duration::from_secs_f64(spread.median / 1e6))
}

fn rate(bytes: usize, time: Duration) -> String {
    format!("{:.1} GB/s", bytes as f64 / time.as_secs_f64() / 1e9)
}
