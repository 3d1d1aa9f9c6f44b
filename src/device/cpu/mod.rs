//! The CPU: fused kernels by a tile interpreter, matrix products by packed micro-kernels.

mod compile;
mod exec;
mod faults;
mod gemm;
mod isa;
mod memory;
mod program;
mod scatter;
pub(crate) mod threads;
mod tile;
mod walk;
mod worker;

pub use memory::{HostAlloc, HostMemory};

pub(crate) use faults::Fault;
pub(crate) use program::Program;

use super::{BufferPool, DeviceInfo, PoolConfig, Storage};
use crate::dtype::Element;
use crate::graph::Scalar;
use exec::Launch;
use faults::Faults;
use isa::Isa;
use std::sync::{Mutex, PoisonError};

/// The CPU device's state.
pub(crate) struct CpuDevice {
    pool: BufferPool<HostAlloc>,
    /// Key and position of the random stream.
    random: Mutex<(u64, u64)>,
}

/// Rough instructions from which on a part of a launch is worth several threads.
const LARGE_PART: usize = 8 * exec::PARALLEL_WORK;

/// Seed of a process that sets none.
const DEFAULT_SEED: u64 = 0x7465_6e73_6f72;

impl CpuDevice {
    pub fn new() -> Self {
        let memory = memory::physical_memory();
        let config = PoolConfig {
            max_cached_bytes: memory.map_or(PoolConfig::default().max_cached_bytes, |bytes| bytes / 4),
            ..PoolConfig::default()
        };
        CpuDevice { pool: BufferPool::new(HostAlloc, config), random: Mutex::new((DEFAULT_SEED, 0)) }
    }

    pub fn pool(&self) -> &BufferPool<HostAlloc> {
        &self.pool
    }

    pub fn seed(&self, seed: u64) {
        self.set_random_state((seed, 0));
    }

    pub fn random_state(&self) -> (u64, u64) {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_random_state(&self, state: (u64, u64)) {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub fn reserve_random(&self, n: usize) -> (u64, u64) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let at = *random;
        random.1 = random.1.wrapping_add(n.next_multiple_of(4) as u64);
        at
    }

    pub fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "cpu".into(),
            model: cpu_model(),
            memory: memory::physical_memory(),
            threads: threads::count(),
            simd: Isa::detect().name(),
            missing: missing(Isa::detect()),
        }
    }
}

/// The instruction set that programs are compiled for.
pub(crate) fn isa() -> Isa {
    Isa::detect()
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_string())
}

fn missing(isa: Isa) -> Vec<String> {
    let mut missing = Vec::new();
    if cfg!(target_arch = "x86_64") {
        if isa < Isa::Avx2 {
            missing.push("AVX2: vector loops run on 128-bit SSE2 (the processor lacks it, or TL_ISA lowers it)".into());
        } else if isa < Isa::Avx512 {
            missing
                .push("AVX-512: vector loops run on 256-bit AVX2 (the processor lacks it, or TL_ISA lowers it)".into());
        }
        if !isa.has_bf16_dot() {
            missing.push("AVX512-BF16: bf16 products run at the speed of f32".into());
        }
    }
    missing
}

/// Runs programs that do not depend on one another, each over the buffers of the nodes that it names,
/// in its order.
///
/// # Errors
/// An index that was out of range.
pub(crate) fn launch(parts: &[(&Program, Vec<&Storage>)], params: &[Scalar]) -> Result<(), Fault> {
    let run = |part: usize| {
        let (program, buffers) = &parts[part];
        let pointers: Vec<*mut u8> = buffers.iter().map(|storage| storage.raw().as_ptr()).collect();
        // SAFETY: the engine, the only caller, hands over a plan's buffers: each of its node's size, written
        // before it is read since the plan orders its launches, and written over an input only where the
        // program was compiled for it and no other part reads that. The engine's lock keeps other
        // evaluations out, and what is written is in no tensor's hands yet, or of a leaf that no tensor
        // can reach.
        unsafe { Launch::new(program, &pointers, params) }.run()
    };
    if parts.len() == 1 {
        return run(0);
    }
    let faults = Faults::default();
    let run = |part: usize| run(part).unwrap_or_else(|fault| faults.report(fault));
    // Large parts share the threads inside; small ones are shared among them.
    let (large, small): (Vec<usize>, Vec<usize>) = (0..parts.len()).partition(|&i| parts[i].0.work() > LARGE_PART);
    large.into_iter().for_each(run);
    let work: usize = small.iter().map(|&i| parts[i].0.work()).sum();
    threads::for_each(small.len(), work > exec::PARALLEL_WORK, &|i| run(small[i]));
    faults.first()
}

/// Copies host values into fresh memory.
pub(crate) fn upload<T: Element>(storage: &mut Storage, values: &[T]) {
    let bytes = std::mem::size_of_val(values);
    debug_assert!(bytes <= storage.len());
    // SAFETY: `storage` is exclusive and holds at least `bytes` bytes; a tensor's `Element`s are
    // plain data whose bytes are what memory holds, and the two cannot overlap.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), storage.raw_mut().as_ptr(), bytes) };
}

/// Reads `n` elements at `start`, `start + step`, ... of a realized buffer.
pub(crate) fn download<T: Element>(storage: &Storage, start: isize, step: isize, out: &mut [T]) {
    let last = start + step * (out.len() as isize - 1).max(0);
    let elements = (storage.len() / size_of::<T>()) as isize;
    debug_assert!(out.is_empty() || (start.min(last) >= 0 && start.max(last) < elements));
    // SAFETY: the buffer is realized, so all its elements are initialised, of type T by its dtype (a
    // bool is stored as 0 or 1), and nobody writes it while this reference is held; the range was
    // checked by whoever made the view, and is asserted above.
    unsafe {
        let source = storage.raw().as_ptr().cast::<T>().offset(start);
        if step == 1 {
            std::ptr::copy_nonoverlapping(source, out.as_mut_ptr(), out.len());
        } else {
            out.iter_mut().enumerate().for_each(|(i, slot)| *slot = *source.offset(i as isize * step));
        }
    }
}
