//! What the benchmark and the performance test share: timing, inputs, and the table they print.
#![allow(dead_code)] // the benchmark and the test each use a part

pub mod cases;
pub mod gpu;
pub mod host;
pub mod transfer;

use std::hint::black_box;
use std::time::{Duration, Instant};
use tensorlogic::{DType, Device, Result};

/// How long a row may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Time given to the runs that are not counted.
    pub warm_up: Duration,
    /// Time given to the runs that are.
    pub measured: Duration,
    /// Runs that are counted at most.
    pub runs: usize,
}

impl Limits {
    /// A third of a second a row: the figures of the benchmark.
    pub const FULL: Limits =
        Limits { warm_up: Duration::from_millis(50), measured: Duration::from_millis(300), runs: 2000 };
    /// A few milliseconds a row: shows that the rows run, not how fast.
    pub const QUICK: Limits = Limits { warm_up: Duration::ZERO, measured: Duration::from_millis(10), runs: 20 };
}

/// Wall times of one call, in seconds.
pub struct Times {
    pub avg: f64,
    pub min: f64,
    pub max: f64,
    pub median: f64,
}

/// One line of the table.
pub struct Row {
    pub operation: String,
    pub size: String,
    pub dtype: DType,
    pub times: Times,
    /// Arithmetic operations of one call; 0 where it is about bytes only.
    pub flops: usize,
    /// Bytes that one call reads and writes.
    pub bytes: usize,
}

impl Row {
    /// The names of the columns.
    pub fn header() -> String {
        let units = ["avg ms", "min ms", "max ms", "GFLOPS", "GB/s"].map(|unit| format!("{unit:>10}"));
        format!("{:<28}{:<18}{:<6}{}", "operation", "size", "dtype", units.concat())
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Times { avg, min, max, .. } = self.times;
        let rate = |amount: usize| if amount == 0 { "-".into() } else { format!("{:.2}", amount as f64 / avg / 1e9) };
        write!(f, "{:<28}{:<18}{:<6}", self.operation, self.size, self.dtype.name())?;
        write!(f, "{:>10.4}{:>10.4}{:>10.4}", avg * 1e3, min * 1e3, max * 1e3)?;
        write!(f, "{:>10}{:>10}", rate(self.flops), rate(self.bytes))
    }
}

/// Times `work`, which is given the number of the run, so that it can rotate its inputs.
pub fn measure<T>(limits: Limits, mut work: impl FnMut(usize) -> Result<T>) -> Result<Times> {
    let mut run = 0;
    let mut timed = || -> Result<f64> {
        let start = Instant::now();
        black_box(work(run)?);
        run += 1;
        Ok(start.elapsed().as_secs_f64())
    };
    let start = Instant::now();
    for _ in 0..3 {
        timed()?;
    }
    while start.elapsed() < limits.warm_up {
        timed()?;
    }
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < 3 || (start.elapsed() < limits.measured && seconds.len() < limits.runs) {
        seconds.push(timed()?);
    }
    Ok(Times::of(seconds))
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Times {
        seconds.sort_by(f64::total_cmp);
        let n = seconds.len();
        Times {
            avg: seconds.iter().sum::<f64>() / n as f64,
            min: seconds[0],
            max: seconds[n - 1],
            median: seconds[n / 2],
        }
    }
}

/// What the rows were measured on.
pub fn machine(device: &Device) -> String {
    let info = device.info();
    let model = info.model.unwrap_or_else(|| "unknown model".into());
    format!("{}: {model}, {} threads, {}", info.name, info.threads, info.simd)
}

/// A number of elements: `1K`, `100K`, `1M`.
pub fn count(n: usize) -> String {
    match n {
        1_000_000.. if n.is_multiple_of(1_000_000) => format!("{}M", n / 1_000_000),
        1000.. if n.is_multiple_of(1000) => format!("{}K", n / 1000),
        _ => n.to_string(),
    }
}
