//! What a run measured, as it is saved.

use crate::Outcome;
use crate::cases::{Case, Work};
use crate::machine::Machine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the files; another one is not read.
const FORMAT: u32 = 1;

/// A run on one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The version of the file.
    pub format: u32,
    /// Where and when.
    pub machine: Machine,
    /// The best rates found: `read`, `write` and `copy` in GB/s, `matmul f16` and its like in GFLOPS.
    pub ceilings: BTreeMap<String, f64>,
    /// Bytes that a case has to move for its rate to count as one of memory, not of caches.
    pub uncached_bytes: usize,
    /// In the order of the table.
    pub cases: Vec<Measured>,
}

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The device's own, of a call among others; on the CPU that of the evaluation.
    Device,
    /// The host's, of a call in a captured step, of many that are run again and again.
    Captured,
    /// The host's, of a call among others.
    Amortised,
    /// The host's, of a call and a wait.
    Synchronised,
    /// The host's, of what it does itself.
    Host,
}

impl Clock {
    /// Those of an op and of a step, in the order of tables.
    pub const OF_CALLS: [Clock; 4] = [Clock::Device, Clock::Captured, Clock::Amortised, Clock::Synchronised];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Device => "device",
            Clock::Captured => "captured",
            Clock::Amortised => "amortised",
            Clock::Synchronised => "synchronised",
            Clock::Host => "host",
        }
    }
}

/// Times of one call, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The shortest.
    pub min: f64,
    /// A tenth took less.
    pub p10: f64,
    /// Half took less.
    pub median: f64,
    /// A tenth took longer.
    pub p90: f64,
    /// How many were timed: calls, or batches of them.
    pub runs: usize,
}

impl Spread {
    /// Of times in seconds, at least one.
    pub fn of(mut seconds: Vec<f64>) -> Spread {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize] * 1e6;
        Spread { min: at(0.0), p10: at(0.1), median: at(0.5), p90: at(0.9), runs: seconds.len() }
    }

    /// Half the distance of the tenths, relative to the median.
    pub fn noise(&self) -> f64 {
        (self.p90 - self.p10) / (2.0 * self.median)
    }
}

/// What came of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// As of the case.
    pub group: String,
    /// As of the case.
    pub operation: String,
    /// As of the case.
    pub size: String,
    /// As of the case.
    pub dtype: String,
    /// `normal`, `unfused` or `no pool`.
    pub mode: String,
    /// As of the case.
    pub shapes: Vec<Vec<usize>>,
    /// Kernels of a call.
    pub kernels: u64,
    /// Bytes that a call reads and writes, by its plan.
    pub bytes: usize,
    /// Of those, bytes of the result.
    pub written: usize,
    /// Arithmetic operations of a call, by its plan; of a training step, those of its products.
    pub flops: usize,
    /// Calls of a batch.
    pub calls: usize,
    /// Sets of inputs that take turns.
    pub sets: usize,
    /// By clock.
    pub times: BTreeMap<Clock, Spread>,
    /// The ceiling that it stands under.
    pub ceiling: Option<String>,
    /// The time that the ceiling allows, over the time that it took.
    pub fraction: Option<f64>,
    /// What went wrong, instead.
    pub error: Option<String>,
}

impl Measured {
    /// Of a case that is not measured yet.
    pub(crate) fn of(case: &Case) -> Measured {
        Measured {
            group: case.group.into(),
            operation: case.operation.into(),
            size: case.size.clone(),
            dtype: case.dtype.name().into(),
            mode: case.mode.name().into(),
            shapes: case.shapes.clone(),
            kernels: 0,
            bytes: 0,
            written: 0,
            flops: 0,
            calls: 0,
            sets: 0,
            times: BTreeMap::new(),
            ceiling: None,
            fraction: None,
            error: None,
        }
    }

    /// What tells cases apart.
    pub fn key(&self) -> [&str; 5] {
        [&self.group, &self.operation, &self.size, &self.dtype, &self.mode]
    }

    /// The time that rates are of: the device's, else that of a call and a wait, which on the CPU is a call.
    pub fn time(&self) -> Option<&Spread> {
        self.times.get(&Clock::Device).or(self.times.get(&Clock::Synchronised)).or(self.times.values().next())
    }

    /// Arithmetic operations a nanosecond.
    pub fn gflops(&self) -> Option<f64> {
        self.rate(self.flops)
    }

    /// Bytes a nanosecond.
    pub fn gb_s(&self) -> Option<f64> {
        self.rate(self.bytes)
    }

    fn rate(&self, amount: usize) -> Option<f64> {
        (amount > 0).then_some(())?;
        self.time().map(|time| amount as f64 / time.median / 1e3)
    }

    /// Whether it has a matrix product.
    fn is_product(&self) -> bool {
        self.operation.contains("matmul") || self.group == "training"
    }

    /// What its bytes mostly do: `read`, `write`, or both, `copy`.
    fn traffic(&self) -> &'static str {
        match self.written {
            written if 8 * written < self.bytes => "read",
            written if 8 * (self.bytes - written) < self.bytes => "write",
            _ => "copy",
        }
    }
}

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(machine: Machine, ceilings: BTreeMap<String, f64>, uncached_bytes: usize) -> Results {
        Results { format: FORMAT, machine, ceilings, uncached_bytes, cases: Vec::new() }
    }

    /// Raises ceilings that a case has gone through, and holds every case against its own.
    pub(crate) fn settle(&mut self) {
        for case in self.cases.iter().filter(|case| case.mode == "normal" && case.group != "transfers") {
            let memory =
                (case.bytes >= self.uncached_bytes).then(|| case.gb_s().map(|rate| (case.traffic().into(), rate)));
            let product = case.is_product().then(|| case.gflops().map(|rate| (format!("matmul {}", case.dtype), rate)));
            for (name, rate) in [memory.flatten(), product.flatten()].into_iter().flatten() {
                self.ceilings.entry(name).and_modify(|best| *best = best.max(rate));
            }
        }
        for case in &mut self.cases {
            let product = format!("matmul {}", case.dtype);
            let bound = |name: &str, amount: usize| {
                let rate = self.ceilings.get(name).filter(|_| amount > 0)?;
                Some((amount as f64 / rate / 1e3, name.to_string()))
            };
            let memory = bound(case.traffic(), case.bytes).filter(|_| case.group != "transfers");
            let arithmetic = bound(&product, case.flops).filter(|_| case.is_product());
            let highest = [memory, arithmetic].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0));
            if let (Some((us, name)), Some(time)) = (highest, case.time()) {
                (case.fraction, case.ceiling) = (Some(us / time.median), Some(name));
            }
        }
    }

    /// The cases of a group, in order.
    pub fn group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Measured> {
        self.cases.iter().filter(move |case| case.group == group && case.error.is_none())
    }

    /// Cases fused, and the same unfused.
    pub(crate) fn fusion(&self) -> impl Iterator<Item = (&Measured, &Measured)> {
        self.pairs("fusion", "unfused")
    }

    /// The cases of a group as users run them, and in another mode.
    pub(crate) fn pairs(
        &self,
        group: &'static str,
        mode: &'static str,
    ) -> impl Iterator<Item = (&Measured, &Measured)> {
        self.group(group).filter(|case| case.mode == "normal").filter_map(move |case| {
            let same = |other: &&Measured| other.key()[..4] == case.key()[..4] && other.mode == mode;
            Some((case, self.group(group).find(same)?))
        })
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that is not a bug.
    pub fn to_json(&self) -> Outcome<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads what `--save` wrote.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of ours.
    pub fn load(file: &Path) -> Outcome<Results> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
        let mut results: Results = serde_json::from_str(&text).map_err(|error| named(&error))?;
        if results.format != FORMAT {
            return Err(named(&format!("format {}, not {FORMAT}", results.format)).into());
        }
        // Of a run that was cut off.
        results.settle();
        Ok(results)
    }
}

impl Work {
    /// Whether the result is a tensor that was recorded, so that recording can be told from computing.
    pub(crate) fn is_op(self) -> bool {
        matches!(self, Work::Op(_))
    }
}
