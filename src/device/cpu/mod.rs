//! The CPU: fused kernels by a tile interpreter, matrix products by packed micro-kernels.

mod attention;
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

pub(crate) use memory::HostView;
pub use memory::{HostAlloc, HostMemory};

pub(crate) use faults::Fault;
pub(crate) use program::Program;

use super::memory::{DeviceAlloc, Storage};
use super::random::RandomStream;
use super::{BufferPool, DeviceInfo, PoolConfig};
use crate::dtype::Element;
use crate::error::Result;
use crate::graph::Scalar;
use exec::Launch;
use faults::Faults;
use isa::Isa;

/// The CPU device's state.
pub(crate) struct CpuDevice {
    pub pool: BufferPool<DeviceAlloc>,
    pub random: RandomStream,
}

/// Rough instructions from which on a part of a launch is worth several threads.
const LARGE_PART: usize = 8 * exec::PARALLEL_WORK;

impl CpuDevice {
    pub fn new() -> Self {
        let memory = memory::physical_memory();
        let config = PoolConfig {
            max_cached_bytes: memory.map_or(PoolConfig::default().max_cached_bytes, |bytes| bytes / 4),
            ..PoolConfig::default()
        };
        CpuDevice { pool: BufferPool::new(DeviceAlloc::host(), config), random: RandomStream::new() }
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

#[cfg(target_os = "macos")]
fn cpu_model() -> Option<String> {
    crate::device::macos::text(c"machdep.cpu.brand_string")
}

#[cfg(not(target_os = "macos"))]
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
pub(crate) fn launch(parts: &[(&Program, Vec<HostView>)], params: &[Scalar]) -> Result<(), Fault> {
    let run = |part: usize| {
        let (program, buffers) = &parts[part];
        let pointers: Vec<*mut u8> = buffers.iter().map(|memory| memory.ptr.as_ptr()).collect();
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

/// The memory of a realized buffer as bytes.
///
/// # Errors
/// [`crate::Error::Internal`] for memory that is not the host's.
pub(crate) fn bytes(storage: &Storage) -> Result<&[u8]> {
    // SAFETY: the buffer is realized, so all its bytes are written, and nobody writes them while this
    // reference is held.
    Ok(unsafe { storage.host()?.slice(storage.len()) })
}

/// Has `write` fill fresh memory.
///
/// # Errors
/// As [`bytes`], and of `write`.
pub(crate) fn fill(storage: &mut Storage, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let len = storage.len();
    let memory = storage.host_mut()?;
    memory.zero(len);
    // SAFETY: the bytes have just been written, and `storage` is exclusive.
    write(unsafe { memory.slice_mut(len) })
}

/// Copies host bytes into fresh memory.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn upload(storage: &mut Storage, bytes: &[u8]) -> Result<()> {
    debug_assert!(bytes.len() <= storage.len());
    let memory = storage.host_mut()?;
    // SAFETY: `storage` is exclusive and holds at least that many bytes, and the two cannot overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.as_ptr(), bytes.len()) };
    Ok(())
}

/// Reads `n` elements at `start`, `start + step`, ... of a realized buffer.
///
/// # Errors
/// As [`bytes`].
pub(crate) fn download<T: Element>(storage: &Storage, start: isize, step: isize, out: &mut [T]) -> Result<()> {
    let memory = storage.host()?;
    let last = start + step * (out.len() as isize - 1).max(0);
    let elements = (storage.len() / size_of::<T>()) as isize;
    debug_assert!(out.is_empty() || (start.min(last) >= 0 && start.max(last) < elements));
    // SAFETY: the buffer is realized, so all its elements are initialised, of type T by its dtype (a
    // bool is stored as 0 or 1), and nobody writes it while this reference is held; the range was
    // checked by whoever made the view, and is asserted above.
    unsafe {
        let source = memory.as_ptr().cast::<T>().offset(start);
        if step == 1 {
            std::ptr::copy_nonoverlapping(source, out.as_mut_ptr(), out.len());
        } else {
            out.iter_mut().enumerate().for_each(|(i, slot)| *slot = *source.offset(i as isize * step));
        }
    }
    Ok(())
}
