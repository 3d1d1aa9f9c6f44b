//! The runtime above the driver, over memory that host and device share: who waits for what, and what is not copied.

use crate::device::gpu::Gpu;
use crate::device::gpu::runtime::bound;
use crate::device::soft_metal::SoftMetal;
use crate::device::{Device, Kind, MetalBuffer, MetalDevice, Storage, lock};
use crate::testing::{dispatches_of_thread, kernels_of_thread};
use crate::{DType, Error, Readback, Result, Tensor, eval};
use std::sync::Arc;

/// A device of the test's own.
fn device() -> Device {
    Device(Kind::Gpu(Arc::new(Gpu::new(SoftMetal::new().unwrap()))))
}

/// Dispatches and kernels of this thread while `work` runs.
fn counted<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let before = (dispatches_of_thread(), kernels_of_thread());
    let result = work();
    (result, dispatches_of_thread() - before.0, kernels_of_thread() - before.1)
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 - 3.0).collect()
}

/// Dispatches that keep the device busy for a while: what is asked for later comes behind them.
fn keep_busy(device: &Device) -> Result<()> {
    let mut x = Tensor::from_slice(&ramp(50_000), 50_000, device)?;
    for _ in 0..20 {
        x = x.tanh()?;
        x.eval()?;
    }
    Ok(())
}

fn storage(tensor: &Tensor) -> Arc<Storage> {
    tensor.eval().unwrap();
    tensor.0.storage().unwrap()
}

fn address(tensor: &Tensor) -> usize {
    storage(tensor).address().unwrap().0 as usize
}

#[test]
fn the_host_waits_for_what_is_in_its_way() -> Result<()> {
    let driver = SoftMetal::new().unwrap();
    let gpu = Arc::new(Gpu::new(driver.clone()));
    let device = Device(Kind::Gpu(gpu.clone()));
    let (queue, bound) = (gpu.queue(), |tensor: &Tensor, writes| bound(&storage(tensor), writes).unwrap());
    let x = Tensor::from_slice(&ramp(64), 64, &device)?;
    let due = |tensor: &Tensor, writes| queue.due([bound(tensor, writes)].into_iter());
    assert_eq!((due(&x, true)?, queue.is_idle(bound(&x, true).address)), (None, true));
    // No dispatch ends while this is held.
    let hold = lock(&driver.shared.traffic);
    let y = (&x + 1.0)?;
    y.eval()?;
    let ticket = due(&x, true)?.expect("it is read");
    assert_eq!((due(&x, false)?, due(&y, false)?, due(&y, true)?), (None, Some(ticket), Some(ticket)));
    assert!(!queue.is_idle(bound(&x, true).address));
    drop(hold);
    queue.wait(ticket)?;
    assert!(queue.is_idle(bound(&x, true).address) && queue.is_idle(bound(&y, true).address));
    // What the host writes next is not in use, though it was freed last.
    let busy = Storage::new(&gpu.pool, 256)?;
    let freed = busy.address().unwrap();
    let hold = lock(&driver.shared.traffic);
    let z = Tensor::from_buffer(MetalBuffer(busy), 64, DType::F32, &device)?;
    (&z + 1.0)?.eval()?;
    drop(z);
    assert_ne!(bound(&Tensor::from_slice(&ramp(64), 64, &device)?, false).address, freed);
    drop(hold);
    device.synchronize()
}

#[test]
fn small_graphs_that_are_read_run_on_the_cpu() -> Result<()> {
    let device = device();
    assert_eq!(device.cpu_threshold(), 0);
    device.set_cpu_threshold(20_000);
    let x = Tensor::from_slice(&ramp(1000), 1000, &device)?;
    let double: Vec<f32> = ramp(1000).iter().map(|x| (2.0 * x).max(0.0)).collect();

    let (read, dispatches, kernels) = counted(|| (&x * 2.0)?.relu()?.to_vec::<f32>());
    assert_eq!((read?, dispatches, kernels), (double.clone(), 0, 1), "a map of 8,000 bytes and 2,000 operations");

    let y = (&x * 2.0)?.relu()?;
    let (evaluated, dispatches, _) = counted(|| y.eval());
    assert_eq!((evaluated, dispatches), (Ok(()), 1), "nobody waits");
    // What the CPU reads is waited for, and nothing else.
    keep_busy(&device)?;
    let (read, dispatches, _) = counted(|| (&y + 1.0)?.to_vec::<f32>());
    assert_eq!((read?[4..6].to_vec(), dispatches), (vec![3.0, 5.0], 0));

    // A leaf that dies is written over.
    let (read, dispatches, _) = counted(|| (y + 1.0)?.to_vec::<f32>());
    assert_eq!((read?[4..6].to_vec(), dispatches), (vec![3.0, 5.0], 0));

    let (_, dispatches, _) = counted(|| Tensor::ones((100, 100), DType::F32, &device)?.exp()?.to_vec::<f32>());
    assert_eq!(dispatches, 1, "a graph of 120,000");
    device.set_cpu_threshold(0);
    let (read, dispatches, _) = counted(|| (&x * 2.0)?.relu()?.to_vec::<f32>());
    assert_eq!((read?, dispatches), (double, 1));
    Ok(())
}

#[test]
fn the_cpu_reports_faults_at_once_and_those_it_inherits() -> Result<()> {
    let device = device();
    let x = Tensor::from_slice(&ramp(8), 8, &device)?;
    let wrong = Tensor::from_slice(&[1i64, 9], 2, &device)?;
    let on_gpu = x.index_select(0, &wrong)?;
    on_gpu.eval()?;
    device.set_cpu_threshold(10_000);
    let is_fault = |result: Result<Vec<f32>>| matches!(result, Err(Error::IndexOutOfRange { index: 9, size: 8, .. }));
    let (result, dispatches, _) = counted(|| x.index_select(0, &wrong)?.to_vec::<f32>());
    assert!(is_fault(result) && dispatches == 0);
    assert!(is_fault((&on_gpu + 1.0)?.to_vec()));
    Ok(())
}

#[test]
fn memory_in_use_is_not_written_over() -> Result<()> {
    let device = device();
    let (mut waits, mut results) = (Vec::new(), Vec::new());
    for i in 0..50 {
        let x = Tensor::from_slice(&ramp(4096), 4096, &device)?;
        let y = (&x + i as f64)?;
        y.eval()?;
        // While the device has not come to it yet, the memory of `x` is free for others.
        drop(x);
        waits.push(y.to_vec_async::<f32>()?);
        results.push((i, (y * 1.0)?)); // over `y`, if it may
    }
    for (i, wait) in waits.into_iter().enumerate() {
        assert_eq!(wait.wait()?[3..5], [i as f32, i as f32 + 1.0]);
    }
    for (i, result) in results {
        assert_eq!(result.to_vec::<f32>()?[3], i as f32);
    }
    Ok(())
}

#[test]
fn memory_goes_back_when_the_device_is_done_with_it() -> Result<()> {
    let device = device();
    device.buffer_pool().set_enabled(false);
    for _ in 0..20 {
        let x = Tensor::from_slice(&ramp(5000), 5000, &device)?;
        (x.exp()? + &x)?.eval()?;
    }
    device.synchronize() // tells of what was freed too early
}

#[test]
fn tensors_cross_without_a_copy() -> Result<()> {
    let device = device();
    const N: usize = 1 << 18;
    let host = Tensor::from_slice(&ramp(N), N, &Device::cpu())?;
    let there = host.to_device(&device)?;
    assert_eq!(address(&there), storage(&host).host()?.as_ptr() as usize);
    assert_eq!(device.memory_stats().bytes_in_use, 0);
    keep_busy(&device)?;
    // Nobody else holds `there`: a plan would write over it, were it not the host's.
    let sum = (there + 1.0)?;
    sum.eval()?;
    device.synchronize()?;
    assert_eq!(host.to_vec::<f32>()?[..2], [-3.0, -2.0]);

    let back = sum.to_device(&Device::cpu())?;
    assert_eq!(storage(&back).host()?.as_ptr() as usize, address(&sum));
    drop(sum);
    let other = (&back * 2.0)?;
    assert_eq!((other.to_vec::<f32>()?[0], back.to_vec::<f32>()?[0]), (-4.0, -2.0));
    let (first, last) = ((back + 1.0)?, Tensor::from_slice(&ramp(N), N, &device)?);
    assert_eq!((first.to_vec::<f32>()?[0], last.to_vec::<f32>()?[0]), (-1.0, -3.0));
    device.synchronize()
}

#[test]
fn what_comes_back_is_what_it_was() -> Result<()> {
    let device = device();
    let host = Tensor::from_slice(&ramp(1 << 18), 1 << 18, &Device::cpu())?;
    let there = host.to_device(&device)?;
    assert!(Arc::ptr_eq(&storage(&there.to_device(&Device::cpu())?), &storage(&host)));
    let made = (&there + 1.0)?;
    let mut x = made.clone();
    for _ in 0..1000 {
        x = x.to_device(&Device::cpu())?.to_device(&device)?;
    }
    assert!(Arc::ptr_eq(&storage(&x), &storage(&made)));
    // Two tensors have it, so that neither is written over.
    let (a, b) = ((x + 1.0)?, (made + 2.0)?);
    assert_eq!((a.to_vec::<f32>()?[0], b.to_vec::<f32>()?[0]), (-1.0, 0.0));
    Ok(())
}

#[test]
fn what_is_small_or_a_part_is_copied() -> Result<()> {
    let device = device();
    for (n, narrow) in [(1 << 10, false), (1 << 18, true)] {
        let host = Tensor::from_slice(&ramp(n), n, &Device::cpu())?;
        let part = if narrow { host.narrow(0, 1, n - 1)? } else { host.clone() };
        let there = part.to_device(&device)?;
        assert_ne!(address(&there), storage(&host).host()?.as_ptr() as usize);
        assert_eq!(there.to_vec::<f32>()?, part.to_vec::<f32>()?);
    }
    Ok(())
}

#[test]
fn buffers_are_written_in_place() -> Result<()> {
    let device = MetalDevice::try_from(device())?;
    let pooled = MetalBuffer::new_uninit_pooled(device.buffer_pool(), 1 << 16)?;
    let fresh = MetalBuffer::new_uninit(device.metal_device(), 1 << 16)?;
    assert_eq!((pooled.len(), fresh.len(), device.memory_stats().bytes_in_use), (1 << 16, 1 << 16, 1 << 16));
    drop((pooled, fresh));
    assert_eq!(device.memory_stats().bytes_cached, 1 << 16);
    for zeros in
        [MetalBuffer::new_zeros_pooled(device.buffer_pool(), 99)?, MetalBuffer::new_zeros(device.metal_device(), 99)?]
    {
        assert_eq!(zeros.contents()?, [0; 99]);
    }
    assert!(MetalBuffer::new_zeros(&device, 0)?.contents()?.is_empty());

    let mut buffer = MetalBuffer::new_uninit_pooled(device.buffer_pool(), 12)?;
    buffer.contents_mut()?.copy_from_slice(&[1.0f32, 2.0, 3.0].map(f32::to_ne_bytes).concat());
    let tensor = Tensor::from_buffer(buffer, 3, DType::F32, &device)?;
    assert_eq!((tensor + 1.0)?.to_vec::<f32>()?, [2.0, 3.0, 4.0]);
    Ok(())
}

#[test]
fn buffers_that_do_not_fit_are_refused() -> Result<()> {
    let (device, other) = (device(), device());
    let cpu = Device::cpu();
    let buffer = || MetalBuffer::new_zeros_pooled(device.buffer_pool(), 12);
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert!(message(Tensor::from_buffer(buffer()?, 4, DType::F32, &device)).contains("12 bytes"));
    assert!(message(Tensor::from_buffer(buffer()?, 3, DType::F32, &other)).contains("none of"));
    assert!(message(Tensor::from_buffer(buffer()?, 3, DType::F32, &cpu)).contains("none of cpu"));
    assert!(message(Tensor::from_buffer(buffer()?, 3, DType::Bool, &device)).contains("U8"));
    assert!(MetalBuffer::new_uninit_pooled(cpu.buffer_pool(), 8).unwrap_err().to_string().contains("Metal"));
    assert!(MetalBuffer::new_uninit(&cpu, 8).is_err() && MetalDevice::try_from(cpu).is_err());
    Ok(())
}

#[test]
fn a_device_that_ends_waits_for_its_work() -> Result<()> {
    let device = device();
    // The host's memory of what a device computed outlives the device.
    let kept = (Tensor::from_slice(&ramp(1 << 18), 1 << 18, &device)? + 1.0)?.to_device(&Device::cpu())?;
    keep_busy(&device)?;
    drop(device);
    assert_eq!((kept.to_vec::<f32>()?[0], storage(&kept).host()?.bytes()), (-2.0, 1 << 20));
    Ok(())
}

/// Operations of a program, one thread's share of [`OPERATIONS`].
const OPERATIONS: usize = 10_000;
const THREADS: usize = 8;

/// Random numbers that follow from a seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }
}

/// Runs random operations, uploads and readbacks among them; every bit that was read.
fn run_program(device: &Device, seed: u64, operations: usize) -> Result<Vec<u32>> {
    const ROWS: usize = 12;
    const COLUMNS: usize = 20;
    let mut rng = Rng(seed);
    let upload = |rng: &mut Rng| Tensor::from_slice(&rng.floats(ROWS * COLUMNS), (ROWS, COLUMNS), device);
    let mut tensors = vec![upload(&mut rng)?, upload(&mut rng)?];
    let weight = Tensor::from_slice(&rng.floats(COLUMNS * COLUMNS), (COLUMNS, COLUMNS), device)?;
    let mut pending: Vec<Readback<f32>> = Vec::new();
    let mut bits = Vec::new();
    for _ in 0..operations {
        let (a, b) = (tensors[rng.below(tensors.len())].clone(), tensors[rng.below(tensors.len())].clone());
        let made = match rng.below(12) {
            0 | 1 => upload(&mut rng)?,
            2 => (&a + &b)?.tanh()?,
            3 => (&a * (rng.below(9) as f64 - 4.0))?.relu()?,
            4 => a.matmul(&weight)?.tanh()?,
            5 => (&a - &a.mean_keepdim(-1)?)?,
            6 => a.t()?.contiguous()?.reshape((ROWS, COLUMNS))?,
            7 => {
                let rows: Vec<i64> = (0..ROWS).map(|_| rng.below(ROWS) as i64).collect();
                a.index_select(0, &Tensor::from_slice(&rows, ROWS, device)?)?
            }
            8 => {
                let fault = a.index_select(0, &Tensor::from_slice(&[ROWS as i64], 1, device)?)?;
                fault.eval()?;
                assert!(matches!(fault.to_vec::<f32>(), Err(Error::IndexOutOfRange { .. })));
                continue;
            }
            9 => {
                pending.push(a.to_vec_async()?);
                a
            }
            10 => a.to_device(&Device::cpu())?.to_device(device)?,
            _ => {
                bits.extend(a.to_vec::<f32>()?.into_iter().map(f32::to_bits));
                a
            }
        };
        eval(&[&made])?;
        tensors.push(made);
        if tensors.len() > 6 {
            tensors.swap_remove(rng.below(6));
        }
        if pending.len() > 4 {
            bits.extend(pending.remove(rng.below(4)).wait()?.into_iter().map(f32::to_bits));
        }
    }
    Ok(bits)
}

/// Whether threads that share a device read the same bits as each of them alone.
fn threads_read_what_one_reads(threshold: usize, operations: usize) -> Result<()> {
    let device = device();
    device.set_cpu_threshold(threshold);
    let share = operations / THREADS;
    let alone = (0..THREADS as u64).map(|seed| run_program(&device, seed, share)).collect::<Result<Vec<_>>>()?;
    let together: Vec<_> = std::thread::scope(|scope| {
        let start = |seed: u64| {
            let device = &device;
            scope.spawn(move || run_program(device, seed, share))
        };
        let threads: Vec<_> = (0..THREADS as u64).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (seed, (alone, together)) in alone.into_iter().zip(together).enumerate() {
        assert!(alone == together?, "the program of seed {seed}");
    }
    device.synchronize()
}

#[test]
fn threads_read_the_bits_that_one_reads() -> Result<()> {
    threads_read_what_one_reads(0, OPERATIONS)
}

#[test]
fn so_they_do_where_the_cpu_takes_small_graphs() -> Result<()> {
    threads_read_what_one_reads(50_000, OPERATIONS / 4)
}
