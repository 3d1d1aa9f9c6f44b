//! What ops cost the host: recording them, and evaluating a graph whose plan is known.

use std::hint::black_box;
use std::time::{Duration, Instant};
use tensorlogic::{DType, Device, Result, Tensor};

/// Ops of a chain: four kernels, and far from being evaluated for its length.
const CHAIN: u32 = 1000;
/// Chains that are timed; the fastest counts.
const CHAINS: usize = 50;

/// Lines of text: nanoseconds an op, the best of several chains over 16 elements.
pub fn lines(device: &Device) -> Result<Vec<String>> {
    let x = Tensor::randn(16, DType::F32, device)?;
    x.eval()?;
    let (unary, evaluated) = chains(&x, |y| y.relu())?;
    let (numbers, _) = chains(&x, |y| y * 0.999)?;
    let each = |time: Duration| format!("{:.0} ns", time.as_nanos() as f64 / CHAIN as f64);
    Ok(vec![
        format!("record a unary op               {}", each(unary)),
        format!("record an op with a number      {}", each(numbers)),
        format!("evaluate a known chain, a node  {}", each(evaluated)),
    ])
}

/// The shortest time to record a chain of `op`, and the shortest to evaluate it.
fn chains(x: &Tensor, op: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Duration, Duration)> {
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..CHAINS {
        let start = Instant::now();
        let mut y = op(x)?;
        for _ in 1..CHAIN {
            y = op(&y)?;
        }
        let recorded = start.elapsed();
        black_box(&y).eval()?;
        best = (best.0.min(recorded), best.1.min(start.elapsed() - recorded));
    }
    Ok(best)
}
