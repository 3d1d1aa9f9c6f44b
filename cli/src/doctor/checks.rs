//! What is checked: results against plain f64 arithmetic, errors, threads, training, memory.

use std::fmt;
use tensorlogic::optim::{Optimizer, Sgd};
use tensorlogic::testing::dispatches_of_thread;
use tensorlogic::{DType, Device, Error, Tensor, Var};

/// Why a check did not pass.
pub enum Verdict {
    Failed(String),
    /// It cannot be done on this device.
    Skipped(String),
}

type Outcome = Result<(), Verdict>;

/// A line of the report.
pub struct Check {
    pub name: String,
    pub run: Box<dyn Fn(&Device) -> Outcome>,
}

impl Check {
    pub fn new(name: impl Into<String>, run: impl Fn(&Device) -> Outcome + 'static) -> Check {
        Check { name: name.into(), run: Box::new(run) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Failed(why) => write!(f, "FAILED: {why}"),
            Verdict::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

impl From<Error> for Verdict {
    fn from(error: Error) -> Verdict {
        Verdict::Failed(error.to_string())
    }
}

/// Every check, in the order of what rests on what.
pub fn all() -> Vec<Check> {
    let mut list: Vec<Check> =
        DType::ALL.map(|dtype| Check::new(format!("maps {dtype}"), move |device| maps(dtype, device))).into();
    list.push(Check::new("long chain", long_chain));
    list.push(Check::new("strided views", strided_views));
    list.push(Check::new("sums of ragged rows", row_sums));
    list.push(Check::new("softmax of ragged rows", softmax));
    list.push(Check::new("column sums", column_sums));
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        list.push(Check::new(format!("matmul {dtype}"), move |device| products(dtype, device)));
    }
    list.push(Check::new("index out of range", index_out_of_range));
    list.push(Check::new("threads", threads));
    list.push(Check::new("training step", training_step));
    list.push(Check::new("buffer pool", buffer_pool));
    list.push(Check::new("small graphs on the CPU", small_graphs));
    list
}

/// Where device and CPU share their memory, the CPU computes what is small, over what the device has written.
fn small_graphs(device: &Device) -> Outcome {
    let before = device.cpu_threshold();
    device.set_cpu_threshold(1 << 17);
    if device.cpu_threshold() == 0 {
        return Err(Verdict::Skipped("its memory is its own".into()));
    }
    let check = || {
        let (x, values) = input(&[1000], DType::F32, 40, (-2.0, 2.0), device)?;
        let double = (&x * 2.0)?;
        double.eval()?;
        let asked = dispatches_of_thread();
        let want: Vec<f64> = values.iter().map(|v| (2.0 * v).tanh()).collect();
        compare(&double.tanh()?, &want, |_| 1e-6)?;
        match dispatches_of_thread() - asked {
            0 => Ok(()),
            n => Err(Verdict::Failed(format!("{n} dispatches"))),
        }
    };
    let outcome = check();
    device.set_cpu_threshold(before);
    outcome
}

/// `n` numbers from `low` to `high` that look random, the same each time (SplitMix64).
fn noise(n: usize, seed: u64, low: f64, high: f64) -> Vec<f64> {
    let number = |i: usize| {
        let mut z = (seed << 32 | i as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * (high - low)
    };
    (0..n).map(number).collect()
}

/// Noise as a tensor, and as it was rounded to the dtype.
fn input(
    shape: &[usize],
    dtype: DType,
    seed: u64,
    range: (f64, f64),
    device: &Device,
) -> Result<(Tensor, Vec<f64>), Error> {
    let values = noise(shape.iter().product(), seed, range.0, range.1);
    let tensor = Tensor::from_slice(&values, shape, &Device::cpu())?.to_dtype(dtype)?;
    Ok((tensor.to_device(device)?, elements(&tensor)?))
}

fn elements(tensor: &Tensor) -> Result<Vec<f64>, Error> {
    tensor.to_device(&Device::cpu())?.to_dtype(DType::F64)?.to_vec()
}

/// The largest error of rounding to a dtype, relative to the number.
fn rounding(dtype: DType) -> f64 {
    let bits = match dtype {
        DType::F16 => 11,
        DType::BF16 => 8,
        DType::F32 => 24,
        DType::F64 => 53,
        _ => return 0.0,
    };
    0.5f64.powi(bits)
}

/// Whether elements are within `tolerance` of what they should be.
fn compare(tensor: &Tensor, want: &[f64], tolerance: impl Fn(f64) -> f64) -> Outcome {
    let got = elements(tensor)?;
    if got.len() != want.len() {
        return Err(Verdict::Failed(format!("{} elements instead of {}", got.len(), want.len())));
    }
    let wrong =
        |i: &usize| (got[*i] - want[*i]).abs().partial_cmp(&tolerance(want[*i])).is_none_or(|order| order.is_gt());
    let wrong: Vec<usize> = (0..got.len()).filter(wrong).collect();
    let Some(&i) = wrong.first() else { return Ok(()) };
    let (bad, all) = (wrong.len(), got.len());
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    Err(Verdict::Failed(format!("{dtype} {shape}: {bad} of {all} wrong; [{i}] is {} instead of {}", got[i], want[i])))
}

fn maps(dtype: DType, device: &Device) -> Outcome {
    if !device.supports(dtype) {
        return Err(Verdict::Skipped(format!("{device} has no {dtype}")));
    }
    // No integer overflows.
    let range = if dtype == DType::Bool { (0.0, 2.0) } else { (1.0, 10.0) };
    for n in [1, 31, 1000, 65_537] {
        let (a, x) = input(&[n], dtype, 1, range, device)?;
        let (b, y) = input(&[n], dtype, 2, range, device)?;
        let pairs = || x.iter().zip(&y);
        if dtype == DType::Bool {
            let want: Vec<f64> = pairs().map(|(x, y)| f64::from(x != y)).collect();
            compare(&a.xor(&b)?, &want, |_| 0.0)?;
            continue;
        }
        let want: Vec<f64> = pairs().map(|(x, y)| x * y + x - x.max(*y)).collect();
        // A narrow result is rounded once, a wide one three times; no step is above 100.
        let tolerance = |want: f64| 2.0 * want * rounding(dtype) + 300.0 * rounding(dtype).min(rounding(DType::F32));
        compare(&a.mul(&b)?.add(&a)?.sub(&a.maximum(&b)?)?, &want, tolerance)?;
        if dtype.is_float() {
            let want: Vec<f64> = pairs().map(|(x, y)| x.sqrt() / y).collect();
            compare(&a.sqrt()?.div(&b)?, &want, |want| 8.0 * want * rounding(dtype))?;
        }
    }
    Ok(())
}

fn long_chain(device: &Device) -> Outcome {
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh());
    let (start, values) = input(&[999, 17], DType::F32, 3, (-3.0, 3.0), device)?;
    let mut x = start;
    let mut want = values;
    for i in 0..20 {
        x = if i % 2 == 0 { x.mul(1.5)?.sub(0.25)?.tanh()? } else { x.add(1.0)?.gelu()? };
        want.iter_mut().for_each(|x| *x = if i % 2 == 0 { (*x * 1.5 - 0.25).tanh() } else { gelu(*x + 1.0) });
    }
    compare(&x, &want, |_| 1e-4)
}

fn strided_views(device: &Device) -> Outcome {
    let (x, values) = input(&[41, 50], DType::F32, 4, (-1.0, 1.0), device)?;
    // [13, 49], then [49, 13].
    let view = x.slice(0, 1..40, 3)?.slice(1, 1.., 1)?.slice(0, .., -1)?.t()?;
    let want: Vec<f64> =
        (0..49).flat_map(|j| (0..13).map(move |i| (i, j))).map(|(i, j)| values[(37 - 3 * i) * 50 + 1 + j]).collect();
    compare(&view.contiguous()?, &want, |_| 0.0)?;
    let sums: Vec<f64> = (0..49 * 13).map(|at| f64::from(want[at] as f32 + want[at / 13 * 13] as f32)).collect();
    compare(&view.add(&view.narrow(1, 0, 1)?)?, &sums, |_| 0.0)
}

/// Rows and columns that fit no group of threads.
const RAGGED: [[usize; 2]; 6] = [[1, 1], [7, 1], [5, 33], [130, 70], [3, 1000], [2, 5001]];

fn row_sums(device: &Device) -> Outcome {
    for [rows, columns] in RAGGED {
        let (x, values) = input(&[rows, columns], DType::F32, 5, (-1.0, 1.0), device)?;
        let want: Vec<f64> = values.chunks(columns).map(|row| row.iter().sum()).collect();
        compare(&x.sum(1)?, &want, |_| 1e-6 * columns as f64)?;
    }
    Ok(())
}

fn column_sums(device: &Device) -> Outcome {
    for [columns, rows] in RAGGED {
        let (x, values) = input(&[rows, columns], DType::F32, 6, (-1.0, 1.0), device)?;
        let want: Vec<f64> = (0..columns).map(|j| values.iter().skip(j).step_by(columns).sum()).collect();
        compare(&x.sum(0)?, &want, |_| 1e-6 * rows as f64)?;
    }
    Ok(())
}

fn softmax(device: &Device) -> Outcome {
    for dtype in [DType::F32, DType::F16] {
        for [rows, columns] in RAGGED {
            let (x, values) = input(&[rows, columns], dtype, 7, (-5.0, 5.0), device)?;
            let mut want = Vec::new();
            for row in values.chunks(columns) {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                want.extend(row.iter().map(|x| x.exp() / sum));
            }
            // The smallest numbers of f16 are 2^-24 apart.
            compare(&x.softmax(1)?, &want, |want| 4.0 * rounding(dtype) * want + 1e-5 * want + 6e-8)?;
        }
    }
    Ok(())
}

fn products(dtype: DType, device: &Device) -> Outcome {
    for [m, k, n] in [[33, 65, 97], [1, 1000, 777], [130, 70, 515]] {
        let (a, left) = input(&[m, k], dtype, 8, (-1.0, 1.0), device)?;
        let (b, right) = input(&[k, n], dtype, 9, (-1.0, 1.0), device)?;
        let mut want = vec![0.0; m * n];
        for (row, sums) in left.chunks(k).zip(want.chunks_mut(n)) {
            for (x, line) in row.iter().zip(right.chunks(n)) {
                sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
            }
        }
        compare(&a.matmul(&b)?, &want, |want| 2.0 * rounding(dtype) * want.abs() + 1e-6 * k as f64)?;
    }
    Ok(())
}

fn index_out_of_range(device: &Device) -> Outcome {
    let (table, values) = input(&[10, 4], DType::F32, 10, (-1.0, 1.0), device)?;
    let rows = |ids: [i64; 3]| table.index_select(0, &Tensor::from_slice(&ids, 3, device)?);
    let want: Vec<f64> = [9, 0, 3].iter().flat_map(|&row| &values[row * 4..][..4]).copied().collect();
    compare(&rows([9, 0, 3])?, &want, |_| 0.0)?;
    match rows([0, 10, 3])?.to_vec::<f32>() {
        Err(Error::IndexOutOfRange { index: 10, size: 10, .. }) => {}
        Err(other) => return Err(Verdict::Failed(format!("the error was: {other}"))),
        Ok(_) => return Err(Verdict::Failed("index 10 of 10 rows was no error".into())),
    }
    // The device goes on.
    compare(&rows([9, 0, 3])?, &want, |_| 0.0)
}

/// Threads that write, compute and read at once get the bits that one gets.
fn threads(device: &Device) -> Outcome {
    let work = |seed: u64| -> Result<Vec<u32>, Error> {
        let mut bits = Vec::new();
        for round in 0..6 {
            let (x, _) = input(&[64, 64 + round as usize], DType::F32, 100 * seed + round, (-1.0, 1.0), device)?;
            let y = x.matmul(&x.t()?)?.softmax(1)?.add(&x.sum_keepdim(1)?)?;
            bits.extend(y.to_vec::<f32>()?.into_iter().map(f32::to_bits));
        }
        Ok(bits)
    };
    let alone: Vec<Vec<u32>> = (0..8).map(work).collect::<Result<_, _>>()?;
    let together: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..8).map(|seed| scope.spawn(move || work(seed))).collect();
        running.into_iter().map(|thread| thread.join()).collect()
    });
    for (seed, (alone, result)) in alone.iter().zip(together).enumerate() {
        let got = result.map_err(|_| Verdict::Failed(format!("thread {seed} panicked")))??;
        if got != *alone {
            return Err(Verdict::Failed(format!("thread {seed} of 8 got other bits than alone")));
        }
    }
    Ok(())
}

fn training_step(device: &Device) -> Outcome {
    let (x, _) = input(&[64, 10], DType::F32, 11, (-1.0, 1.0), device)?;
    let (y, _) = input(&[64, 3], DType::F32, 12, (-1.0, 1.0), device)?;
    let weight = Var::new(&input(&[10, 3], DType::F32, 13, (-1.0, 1.0), device)?.0)?;
    let mut optimizer = Optimizer::new(Sgd::default(), vec![weight.clone()], 0.1)?;
    let mut losses = Vec::new();
    for _ in 0..3 {
        let loss = x.matmul(&weight.tensor())?.tanh()?.mse_loss(&y)?;
        optimizer.step(loss.backward()?)?;
        losses.push(loss.item::<f32>()?);
    }
    if losses.windows(2).all(|pair| pair[1] < pair[0]) {
        return Ok(());
    }
    Err(Verdict::Failed(format!("losses {losses:?} do not fall")))
}

fn buffer_pool(device: &Device) -> Outcome {
    let expect = |holds: bool, what: &str| {
        let stats = device.buffer_pool_stats();
        if holds { Ok(()) } else { Err(Verdict::Failed(format!("{what}: {stats:?}"))) }
    };
    device.synchronize()?;
    let bytes = 1 << 20;
    let before = device.buffer_pool_stats();
    let tensor = Tensor::from_slice(
        &noise(bytes / 4, 14, 0.0, 1.0).iter().map(|&x| x as f32).collect::<Vec<_>>(),
        bytes / 4,
        device,
    )?;
    tensor.eval()?;
    let held = device.buffer_pool_stats();
    expect(held.bytes_in_use >= before.bytes_in_use + bytes, "a tensor of 1 MiB is not in use")?;
    expect(held.allocation_count > before.allocation_count, "nothing was allocated")?;
    drop(tensor);
    device.synchronize()?;
    let after = device.buffer_pool_stats();
    expect(after.bytes_in_use == before.bytes_in_use, "what was dropped is still in use")?;
    expect(after.peak_bytes >= held.bytes_in_use && after.reuse_count <= after.allocation_count, "counters disagree")?;
    device.empty_cache();
    expect(device.buffer_pool_stats().bytes_cached == 0, "the emptied cache holds bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_said() {
        let compared = |values: &[f32], want: &[f64]| {
            let tensor = Tensor::from_slice(values, values.len(), &Device::cpu()).unwrap();
            compare(&tensor, want, |_| 0.1).map_or_else(|verdict| verdict.to_string(), |()| "ok".into())
        };
        assert_eq!(compared(&[1.0, 2.05], &[1.0, 2.0]), "ok");
        assert_eq!(compared(&[1.0, 3.0], &[1.0, 2.0]), "FAILED: f32 [2]: 1 of 2 wrong; [1] is 3 instead of 2");
        assert_eq!(compared(&[f32::NAN], &[1.0]), "FAILED: f32 [1]: 1 of 1 wrong; [0] is NaN instead of 1");
        assert_eq!(compared(&[1.0], &[1.0, 2.0]), "FAILED: 1 elements instead of 2");
    }
}
