//! Every choice of what computes products, on soft Metal, and compilers that compile products wrongly.

use super::super::driver::{Address, Dispatch, DriverResult, Limits, Mark, Ticket, Transfer};
use super::*;
use crate::codegen::{Chip, Choice, Class, Machine, Tile};
use crate::device::soft_metal::SoftMetal;
use crate::device::{Device, DeviceInfo, Kind, lock};
use crate::dtype::DType;
use std::sync::Mutex;
use std::time::Duration;

/// Soft Metal with limits of its own, and a compiler that replaces a piece of each text first.
struct Altered {
    inner: Arc<SoftMetal>,
    limits: Limits,
    edit: [&'static str; 2],
    /// Sources that were compiled, and names of what was dispatched.
    compiled: Mutex<Vec<String>>,
    dispatched: Mutex<Vec<String>>,
    /// What the next calls of `elapsed` say, in microseconds.
    times: Mutex<Vec<u64>>,
}

impl Altered {
    fn new(limits: impl FnOnce(Limits) -> Limits, edit: [&'static str; 2]) -> Arc<Altered> {
        let inner = SoftMetal::new().unwrap();
        let limits = limits(inner.limits());
        let (compiled, dispatched, times) = Default::default();
        Arc::new(Altered { inner, limits, edit, compiled, dispatched, times })
    }

    /// Computes all products in one way, unchecked.
    fn by(choice: Choice) -> Device {
        Altered::new(|limits| with(limits, false, |machine| machine.product = Some(choice)), ["", ""]).device(None)
    }

    fn device(self: Arc<Altered>, folder: Option<&Folder>) -> Device {
        let disk = folder.map(|folder| Disk::new(folder.0.clone()));
        Device(Kind::Gpu(Arc::new(Gpu::with_cache(self, disk))))
    }
}

fn with(limits: Limits, self_check: bool, change: impl FnOnce(&mut Machine)) -> Limits {
    let mut limits = Limits { self_check, ..limits };
    change(&mut limits.machine);
    limits
}

impl Driver for Altered {
    fn name(&self) -> String {
        "altered".into()
    }

    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        self.inner.alloc(bytes)
    }

    fn free(&self, address: Address, bytes: usize) {
        self.inner.free(address, bytes)
    }

    fn compiler(&self) -> String {
        self.inner.compiler()
    }

    fn compile(&self, source: &str) -> DriverResult<Vec<u8>> {
        lock(&self.compiled).push(source.into());
        let [from, to] = self.edit;
        self.inner.compile(&if from.is_empty() { source.into() } else { source.replace(from, to) })
    }

    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function> {
        self.inner.load(binary, name)
    }

    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()> {
        lock(&self.dispatched).push(dispatch.name.into());
        self.inner.dispatch(dispatch)
    }

    fn barrier(&self) {
        self.inner.barrier()
    }

    fn transfer(&self) -> Transfer<'_> {
        self.inner.transfer()
    }

    fn commit(&self) -> DriverResult<Ticket> {
        self.inner.commit()
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.inner.is_done(ticket)
    }

    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        self.inner.wait(ticket)
    }

    fn mark(&self) -> DriverResult<Mark> {
        self.inner.mark()
    }

    fn elapsed(&self, from: Mark, to: Mark) -> DriverResult<Duration> {
        let time = self.inner.elapsed(from, to)?;
        let mut times = lock(&self.times);
        Ok(if times.is_empty() { time } else { Duration::from_micros(times.remove(0)) })
    }
}

/// How an operand is held: its lines are rows of a or columns of b.
#[derive(Clone, Copy, Debug)]
enum Held {
    /// Contiguous along k, lines aligned.
    Depth,
    /// Contiguous across k, lines aligned.
    Lines,
    /// Every other element of unaligned lines.
    Apart,
    /// Contiguous across k, unaligned.
    Unaligned,
}
use Held::{Apart, Depth, Lines, Unaligned};

/// Eighths from -1 to 1, so that sums are exact in f32; integers for integers.
fn number(i: usize, j: usize, dtype: DType) -> f64 {
    let eighths = ((i * 7 + j * 13 + i * j) % 17) as f64 - 8.0;
    if dtype.is_float() { eighths / 8.0 } else { eighths + 8.0 }
}

/// A matrix of `lines` by `k`, `number(line, depth + salt)`, with NaN (99) around it.
fn matrix(device: &Device, dtype: DType, held: Held, lines: usize, k: usize, salt: usize) -> Result<crate::Tensor> {
    let (rows, columns) = match held {
        Depth => (lines, k.next_multiple_of(16)),
        Lines => (k, lines.next_multiple_of(16)),
        Apart => (lines, 2 * k + 1),
        Unaligned => (k, lines | 1),
    };
    let at = |row: usize, column: usize| match held {
        Depth => (row, column),
        Lines | Unaligned => (column, row),
        Apart if column.is_multiple_of(2) => (row, column / 2),
        Apart => (lines, k),
    };
    let place = |i: usize| Some(at(i / columns, i % columns)).filter(|&(line, depth)| line < lines && depth < k);
    let outside = if dtype.is_float() { f64::NAN } else { 99.0 };
    let value = |i| place(i).map_or(outside, |(line, depth)| number(line, depth + salt, dtype));
    let values: Vec<f64> = (0..rows * columns).map(value).collect();
    let whole = crate::Tensor::from_vec(values, [rows, columns], &Device::cpu())?.to_dtype(dtype)?.to_device(device)?;
    match held {
        Depth => whole.narrow(1, 0, k),
        Lines | Unaligned => whole.narrow(1, 0, lines)?.t(),
        Apart => whole.slice(1, ..2 * k, 2),
    }
}

/// Multiplies on a device, with a bias and without, and holds both to exact sums.
fn multiply(device: &Device, dtype: DType, held: [Held; 2], [m, n, k]: [usize; 3]) -> Result<()> {
    let a = matrix(device, dtype, held[0], m, k, 0)?;
    let b = matrix(device, dtype, held[1], n, k, 3)?.t()?;
    let bias: Vec<f64> = (0..n).map(|j| number(1, j, dtype)).collect();
    let bias_there = crate::Tensor::from_vec(bias.clone(), [n], &Device::cpu())?.to_dtype(dtype)?.to_device(device)?;
    let product = a.matmul(&b)?;
    let biased = product.add(&bias_there)?;
    // One kernel stores both.
    crate::eval(&[&product, &biased])?;
    for (tensor, bias) in [(product, vec![0.0; n]), (biased, bias)] {
        let got = tensor.to_device(&Device::cpu())?.to_dtype(DType::F64)?.to_vec::<f64>()?;
        for (at, got) in got.into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let sum: f64 = (0..k).map(|l| number(i, l, dtype) * number(j, l + 3, dtype)).sum();
            let (want, unit) = (sum + bias[j], [0.0, 2f64.powi(-10), 2f64.powi(-7)]);
            let slack =
                want.abs() * unit[[DType::F16, DType::BF16].iter().position(|d| *d == dtype).map_or(0, |i| i + 1)];
            assert!((got - want).abs() <= slack, "{dtype} {held:?} at ({i}, {j}): {got}, exactly {want}");
        }
    }
    Ok(())
}

const HELD: [[Held; 2]; 6] =
    [[Depth, Lines], [Depth, Depth], [Lines, Lines], [Lines, Depth], [Apart, Unaligned], [Unaligned, Apart]];

/// A ragged product of more than a tile and more than two steps along k.
fn ragged(rows: usize, columns: usize, depth: usize) -> [usize; 3] {
    [rows + 3, columns + 5, 2 * depth + 3]
}

const fn tile(rows: usize, columns: usize, depth: usize, side_m: usize, side_n: usize, stages: usize) -> Tile {
    Tile { rows, columns, depth, side_m, side_n, stages }
}

/// Every tile of the table and of the candidates that fits in 32 KiB.
const TILES: [Tile; 8] = [
    tile(64, 64, 32, 2, 2, 1),
    tile(64, 64, 32, 2, 2, 2),
    tile(64, 64, 16, 2, 2, 1),
    tile(64, 64, 16, 1, 2, 1),
    tile(64, 32, 32, 2, 2, 1),
    tile(48, 48, 24, 2, 2, 1),
    tile(32, 32, 16, 2, 2, 1),
    tile(128, 128, 32, 2, 4, 1),
];

#[test]
fn matrix_units_multiply_in_every_tile() -> Result<()> {
    for tile in TILES {
        let device = Altered::by(Choice::Units(tile));
        let size = ragged(tile.rows, tile.columns, tile.depth);
        for (i, held) in HELD.into_iter().enumerate() {
            // The dtype changes no more than conversions: every layout has one, every tile both.
            multiply(&device, if i % 2 == 0 { DType::F16 } else { DType::BF16 }, held, size)?;
        }
    }
    Ok(())
}

#[test]
fn arithmetic_units_and_the_slow_kernel_multiply() -> Result<()> {
    let all = [DType::F32, DType::F16, DType::BF16, DType::I32];
    let simt = |side, depth| Choice::Simt { side, depth };
    let choices = [(simt(64, 16), 64, 16, &all[..]), (simt(128, 8), 128, 8, &all), (Choice::Slow, 16, 16, &all)];
    let wide = (simt(64, 8), 64, 8, &[DType::F32, DType::I64][..]);
    for (choice, side, depth, dtypes) in choices.into_iter().chain([wide]) {
        let device = Altered::by(choice);
        for (&dtype, held) in dtypes.iter().flat_map(|dtype| HELD.map(|held| (dtype, held))) {
            multiply(&device, dtype, held, ragged(side, side, depth))?;
        }
    }
    Ok(())
}

#[test]
fn every_candidate_is_tested() {
    for chip in [Chip::Other, Chip::Nvidia, Chip::Apple { family: 7, class: Class::Base }] {
        let machine = Machine { chip, product: None, ..SoftMetal::new().unwrap().limits().machine };
        let layouts = [crate::codegen::Layout::Depth; 2];
        let sample =
            |dtype| super::super::sample::Sample { dtype, m: 99, n: 99, k: 99, batch: 1, layouts, by_line: [false; 2] };
        for choice in Choice::candidates(&sample(DType::F16).gemm(), &machine) {
            assert!(matches!(choice, Choice::Units(tile) if TILES.contains(&tile)), "{chip:?} {choice}");
        }
    }
}

/// Mistakes of a compiler: what is computed, and a piece of text that changes.
const MISTAKES: [(DType, [usize; 3], [&str; 2]); 4] = [
    (DType::F16, [70, 70, 40], ["uint steps = (shape.k + DEPTH - 1) / DEPTH", "uint steps = shape.k / DEPTH"]),
    (DType::F32, [70, 70, 40], ["k < shape.k; k += DEPTH, turn", "k + DEPTH < shape.k; k += DEPTH, turn"]),
    (DType::F32, [2, 70, 41], ["if (whole + lane < shape.k)", "if (whole + lane < shape.k / 2)"]),
    (DType::I32, [70, 70, 40], ["d < DEPTH; d++", "d < DEPTH - uint(group.x); d++"]),
];

fn compute(device: &Device, dtype: DType, [m, n, k]: [usize; 3]) -> Result<()> {
    multiply(device, dtype, [Depth, Depth], [m, n, k])
}

#[test]
fn a_miscompiled_product_is_an_error() {
    for (dtype, size, edit) in MISTAKES {
        let driver = Altered::new(|limits| limits, edit);
        let device = driver.clone().device(None);
        for _ in 0..2 {
            let error = compute(&device, dtype, size).unwrap_err();
            assert!(matches!(error, Error::DeviceFailed { op: "self-check", .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("where a slow kernel computes") && text.contains("TL_SELFCHECK=0"), "{text}");
        }
        // The mistake is one: unchecked, it shows in the result.
        let unchecked = Altered::new(|limits| with(limits, false, |_| {}), edit).device(None);
        assert!(std::panic::catch_unwind(|| compute(&unchecked, dtype, size)).is_err(), "{edit:?}");
    }
}

#[test]
fn a_check_is_made_once() -> Result<()> {
    let folder = Folder::new("self-check");
    // Dispatches of a first product, of one of another size, and sources compiled for both.
    let run = || -> Result<[usize; 3]> {
        let driver = Altered::new(|limits| limits, ["", ""]);
        let device = driver.clone().device(Some(&folder));
        let dispatches = |size| compute(&device, DType::F16, size).map(|()| lock(&driver.dispatched).drain(..).count());
        let (first, second) = (dispatches([70, 71, 40])?, dispatches([99, 80, 50])?);
        Ok([first, second, lock(&driver.compiled).len()])
    };
    // The chosen tile and the slow kernel, then the product; three sources.
    assert_eq!(run()?, [3, 1, 3]);
    assert_eq!(run()?, [1, 1, 0], "a second process finds all on disk");
    // Once a plan, too.
    let driver = Altered::new(|limits| limits, ["", ""]);
    let device = driver.clone().device(None);
    let x = matrix(&device, DType::F16, Depth, 48, 48, 0)?;
    x.matmul(&x)?.matmul(&x)?.eval()?;
    assert_eq!(lock(&driver.dispatched).len(), 4);
    Ok(())
}

#[test]
fn samples_lie_as_they_should() {
    use super::super::sample::Sample;
    use crate::codegen::Layout;
    let all = [Layout::Depth, Layout::Lines, Layout::Strided];
    for dtype in [DType::F16, DType::F32, DType::I64, DType::U8] {
        for (a, b) in all.iter().flat_map(|a| all.map(|b| (*a, b))) {
            for (by_line, batch) in [([true, false], 1), ([false, true], 3)] {
                let sample = Sample { dtype, m: 37, n: 5, k: 21, batch, layouts: [a, b], by_line };
                assert_eq!(Layout::of(&sample.gemm()), [a, b], "{sample:?}");
            }
        }
    }
}

#[test]
fn a_measured_tile_multiplies() -> Result<()> {
    let chip = Chip::Apple { family: 8, class: Class::Base };
    let driver = Altered::new(|limits| with(limits, false, |machine| machine.chip = chip), ["", ""]);
    // The third of the candidates is fastest.
    *lock(&driver.times) = [9, 9, 1, 9, 9, 9, 9].iter().flat_map(|&time| [time; 5]).collect();
    let device = driver.clone().device(None);
    device.set_tuning(true);
    compute(&device, DType::F16, [70, 70, 40])?;
    let last = lock(&driver.compiled).pop().unwrap_or_default();
    assert!(last.contains("64, 64, 16, 1, 2, 1>"), "{last}");
    // A plan that was made stays; a new one without tuning goes by the table.
    device.set_tuning(false);
    compute(&device, DType::F16, [71, 70, 40])?;
    let last = lock(&driver.compiled).pop().unwrap_or_default();
    assert!(last.contains("32, 32, 16, 2, 2, 1>") || last.contains("48, 48, 24, 2, 2, 1>"), "{last}");
    Ok(())
}
