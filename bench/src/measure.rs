//! The clocks.

use crate::cases::{Case, Mode, Work};
use crate::results::{Clock, Measured, Spread};
use crate::training::Training;
use std::hint::black_box;
use std::time::Instant;
use tensorlogic::testing::{device_time, kernels_of_thread, no_fusion};
use tensorlogic::{DType, Device, Result, Tensor, capture};

/// How long a case may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// For each clock, warm-up apart.
    pub seconds: f64,
    /// Calls of a batch, and sets of inputs, at most.
    pub calls: usize,
    /// Bytes of inputs that take turns, and of outputs that a batch keeps, where a few of them are no more.
    pub bytes: [usize; 2],
}

/// Calls of a batch, sets of inputs, and samples of a clock, at least.
const FEWEST: usize = 4;
const MOST_SAMPLES: usize = 2000;
/// Batches that are timed at most.
const MOST_BATCHES: usize = 25;
/// Calls of a captured step, bytes of their inputs, and runs of the step that follow one another.
const CAPTURED_CALLS: usize = 50;
const CAPTURED_BYTES: usize = 256 << 20;
const CAPTURED_RUNS: usize = 8;

impl Limits {
    /// About a second a case.
    pub fn full(device: &Device) -> Limits {
        let memory = device.info().memory.unwrap_or(8 << 30);
        Limits { seconds: 0.25, calls: 200, bytes: [(memory / 24).min(2 << 30), (memory / 12).min(8 << 30)] }
    }

    /// A few milliseconds a case: shows that cases run, and roughly how fast.
    pub const QUICK: Limits = Limits { seconds: 0.01, calls: 20, bytes: [32 << 20, 32 << 20] };

    /// Whether a device's memory holds the inputs of a case several times, and its results.
    pub fn fit(&self, case: &Case, device: &Device) -> bool {
        device.info().memory.is_none_or(|memory| 2 * FEWEST * case.input_bytes() <= memory)
    }
}

/// Seconds of `work`, again and again, after a fifth of the time that does not count.
pub fn samples(seconds: f64, most: usize, mut work: impl FnMut() -> Result<f64>) -> Result<Spread> {
    let start = Instant::now();
    work()?;
    while start.elapsed().as_secs_f64() < seconds / 5.0 {
        work()?;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < FEWEST || (times.len() < most && start.elapsed().as_secs_f64() < seconds) {
        times.push(work()?);
    }
    Ok(Spread::of(times))
}

/// Work that keeps a GPU busy while the host records a batch.
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

/// Records the call of this number; `None` where nothing is left to evaluate.
type Record = Box<dyn FnMut(usize) -> Result<Option<Tensor>>>;

/// Runs a captured step on the inputs of this number.
type Step = Box<dyn FnMut(usize) -> Result<()>>;

/// A case with its inputs.
struct Ready<'a> {
    device: &'a Device,
    record: Record,
    run: usize,
}

impl Ready<'_> {
    fn record(&mut self) -> Result<Option<Tensor>> {
        self.run += 1;
        (self.record)(self.run)
    }

    fn call(&mut self) -> Result<Option<Tensor>> {
        let result = self.record()?;
        result.iter().try_for_each(Tensor::eval)?;
        Ok(black_box(result))
    }

    fn batch(&mut self, calls: usize) -> Result<Vec<Option<Tensor>>> {
        (0..calls).map(|_| self.call()).collect()
    }

    /// Seconds of a call that is waited for.
    fn synchronised(&mut self) -> Result<f64> {
        let start = Instant::now();
        let _result = self.call()?;
        self.device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of a call, one of many; and until the last was recorded.
    fn amortised(&mut self, calls: usize) -> Result<[f64; 2]> {
        self.device.synchronize()?;
        let start = Instant::now();
        let _outputs = self.batch(calls)?;
        let recorded = start.elapsed().as_secs_f64();
        self.device.synchronize()?;
        Ok([start.elapsed().as_secs_f64() / calls as f64, recorded])
    }

    /// Seconds of a call on the device, one of many that it does not wait for.
    fn on_device(&mut self, calls: usize, recorded: f64, busy: &Busy) -> Result<f64> {
        self.device.synchronize()?;
        busy.occupy(1.5 * recorded)?;
        let device = self.device.clone();
        let (outputs, time) = device_time(&device, || self.batch(calls))?;
        outputs?;
        Ok(time.as_secs_f64() / calls as f64)
    }

    /// Seconds of an evaluation, what it evaluates being recorded already.
    fn evaluated(&mut self) -> Result<f64> {
        let result = self.record()?;
        let start = Instant::now();
        result.iter().try_for_each(Tensor::eval)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Case {
    /// Measures the case; `busy` on GPUs.
    ///
    /// # Errors
    /// A device that fails, or has too little memory.
    pub fn measure(&self, device: &Device, busy: Option<&Busy>, limits: Limits) -> Result<Measured> {
        device.buffer_pool().set_enabled(self.mode != Mode::Unpooled);
        let measured = match self.mode {
            Mode::Unfused => no_fusion(|| self.measured(device, busy, limits)),
            _ => self.measured(device, busy, limits),
        };
        device.buffer_pool().set_enabled(true);
        measured
    }

    fn measured(&self, device: &Device, busy: Option<&Busy>, limits: Limits) -> Result<Measured> {
        let mut measured = Measured::of(self);
        if let Work::Host(cost) = self.work {
            let spread = samples(limits.seconds, 200, cost.timer(device)?)?;
            measured.times.insert(Clock::Host, spread);
            return Ok(measured);
        }
        measured.sets = (limits.bytes[0] / self.input_bytes()).clamp(FEWEST, limits.calls);
        let mut ready = Ready { device, record: self.ready(device, &mut measured)?, run: 0 };
        ready.call()?;
        let before = kernels_of_thread();
        let first = ready.call()?;
        measured.kernels = kernels_of_thread() - before;
        let output = first.map_or(0, |x| x.numel() * x.dtype().size());

        let synchronised = samples(limits.seconds, MOST_SAMPLES, || ready.synchronised())?;
        let fitting = (limits.bytes[1] / output.max(1)).min((limits.seconds * 1e6 / synchronised.median) as usize);
        measured.calls = fitting.clamp(FEWEST, limits.calls);
        let mut recorded = 0.0;
        let amortised = samples(limits.seconds, MOST_BATCHES, || {
            let [each, until] = ready.amortised(measured.calls)?;
            recorded = until;
            Ok(each)
        })?;
        let on_device = match busy {
            Some(busy) if !matches!(self.work, Work::Upload | Work::Download) => {
                Some(samples(limits.seconds, MOST_BATCHES, || ready.on_device(measured.calls, recorded, busy))?)
            }
            None if self.work.is_op() => Some(samples(limits.seconds, MOST_SAMPLES, || ready.evaluated())?),
            _ => None,
        };
        let captured = self.captured(device)?.map(|(calls, mut run)| {
            let runs = CAPTURED_RUNS.min((limits.seconds * 1e6 / (synchronised.median * calls as f64)) as usize).max(1);
            samples(limits.seconds, MOST_BATCHES, || {
                device.synchronize()?;
                let start = Instant::now();
                (0..runs).try_for_each(&mut run)?;
                device.synchronize()?;
                Ok(start.elapsed().as_secs_f64() / (runs * calls) as f64)
            })
        });
        measured.times = [(Clock::Amortised, amortised), (Clock::Synchronised, synchronised)].into();
        measured.times.extend(on_device.map(|spread| (Clock::Device, spread)));
        measured.times.extend(captured.transpose()?.map(|spread| (Clock::Captured, spread)));
        Ok(measured)
    }

    /// A captured step, and how many calls it has; `None` where few of them have a place.
    fn captured(&self, device: &Device) -> Result<Option<(usize, Step)>> {
        match self.work {
            Work::Op(call) => {
                let calls = (CAPTURED_BYTES / self.input_bytes()).min(CAPTURED_CALLS);
                if calls < FEWEST {
                    return Ok(None);
                }
                let (inputs, width) = (self.inputs(calls, device)?.concat(), self.shapes.len());
                let mut step = capture(move |x: &[Tensor]| x.chunks(width).map(call).collect::<Result<Vec<_>>>());
                let run = move |_| step.run(&inputs.iter().collect::<Vec<_>>()).map(drop);
                Ok(Some((calls, Box::new(run))))
            }
            Work::Training(batch) => {
                let mut step = Training::new(batch, self.dtype, device)?.captured();
                Ok(Some((1, Box::new(move |run| step(run).map(drop)))))
            }
            _ => Ok(None),
        }
    }

    /// Makes the inputs, and says what a call moves and computes.
    fn ready(&self, device: &Device, measured: &mut Measured) -> Result<Record> {
        let (sets, bytes) = (measured.sets, self.input_bytes());
        Ok(match self.work {
            Work::Op(call) => {
                let inputs = self.inputs(sets, device)?;
                let result = call(&inputs[0])?;
                let plan = result.explain()?;
                (measured.bytes, measured.flops) = (plan.bytes(), plan.flops());
                measured.written = result.numel() * result.dtype().size();
                Box::new(move |run| call(&inputs[run % sets]).map(Some))
            }
            Work::Training(batch) => {
                let mut training = Training::new(batch, self.dtype, device)?;
                measured.flops = Training::flops(batch);
                Box::new(move |run| training.step(run).map(Some))
            }
            Work::Upload => {
                let inputs = self.inputs(sets.min(16), &Device::cpu())?;
                let host = inputs.iter().map(|set| set[0].to_vec::<f32>()).collect::<Result<Vec<_>>>()?;
                let (shape, device) = (self.shapes[0].clone(), device.clone());
                (measured.bytes, measured.written, measured.sets) = (bytes, bytes, host.len());
                Box::new(move |run| Tensor::from_slice(&host[run % host.len()], &shape, &device).map(Some))
            }
            Work::Download => {
                let inputs = self.inputs(sets.min(16), device)?;
                let mut host = vec![1f32; self.shapes[0].iter().product()];
                (measured.bytes, measured.sets) = (bytes, inputs.len());
                Box::new(move |run| inputs[run % inputs.len()][0].copy_to_slice(&mut host).map(|()| None))
            }
            Work::Host(_) => Box::new(|_| Ok(None)),
        })
    }
}
