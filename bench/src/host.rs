//! What ops cost the host: recording them, and evaluating a graph whose plan is known.

use std::hint::black_box;
use std::time::Instant;
use tensorlogic::{DType, Device, Result, Tensor};

/// Ops of a chain: four kernels, and far from being evaluated for its length.
const CHAIN: u32 = 1000;

/// What is timed, for each op of a chain over 16 elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Recording a unary op.
    RecordUnary,
    /// Recording an op with a number, which is two nodes.
    RecordNumber,
    /// Evaluating a chain whose plan is known: key, look-up and its kernels.
    PlanHit,
}

impl Cost {
    /// All of them.
    pub const ALL: [Cost; 3] = [Cost::RecordUnary, Cost::RecordNumber, Cost::PlanHit];

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Cost::RecordUnary => "record a unary op",
            Cost::RecordNumber => "record an op with a number",
            Cost::PlanHit => "plan hit, a node",
        }
    }

    /// Seconds an op, one chain after another.
    ///
    /// # Errors
    /// A device that fails.
    pub fn timer(self, device: &Device) -> Result<impl FnMut() -> Result<f64>> {
        let x = Tensor::randn(16, DType::F32, device)?;
        x.eval()?;
        Ok(move || {
            let start = Instant::now();
            let mut y = x.clone();
            for _ in 0..CHAIN {
                y = if self == Cost::RecordNumber { (&y * 0.999)? } else { y.relu()? };
            }
            let recorded = start.elapsed();
            black_box(&y).eval()?;
            let time = if self == Cost::PlanHit { start.elapsed() - recorded } else { recorded };
            y.device().synchronize()?;
            Ok(time.as_secs_f64() / f64::from(CHAIN))
        })
    }
}
