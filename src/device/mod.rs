//! Layer 1: devices. `trait`s and handles here; one folder a kind below.

pub mod buffer_pool;
pub mod cpu;
pub(crate) mod cuda;
pub(crate) mod gpu;
#[cfg(feature = "soft-metal")]
pub(crate) mod soft_metal;

pub use buffer_pool::{BufferPool, BufferPoolStats, PoolConfig};

use crate::error::{Error, Result};
use cpu::CpuDevice;
use std::sync::{Arc, LazyLock};

/// The memory of one tensor.
pub(crate) type Storage = buffer_pool::Buffer<cpu::HostAlloc>;

/// Where tensors live and are computed. Cheap to clone.
///
/// There is one CPU device a process; its buffers come from a pool whose statistics are
/// [`Device::buffer_pool_stats`].
#[derive(Clone)]
pub struct Device(Arc<CpuDevice>);

static CPU: LazyLock<Device> = LazyLock::new(|| Device(Arc::new(CpuDevice::new())));

impl Device {
    /// The CPU: always there.
    pub fn cpu() -> Device {
        CPU.clone()
    }

    /// An Apple GPU.
    ///
    /// # Errors
    /// Always, for now: the Metal driver is not written yet.
    pub fn metal(ordinal: usize) -> Result<Device> {
        let reason = if cfg!(target_os = "macos") {
            "this version has no Metal driver yet; use Device::cpu()"
        } else {
            "Metal exists on macOS only; use Device::cpu()"
        };
        Err(Error::DeviceUnavailable { device: format!("metal:{ordinal}"), reason: reason.into() })
    }

    /// An NVIDIA GPU.
    ///
    /// # Errors
    /// Always, for now: the CUDA driver is not written yet.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        let reason = "this version has no CUDA driver yet; use Device::cpu()";
        Err(Error::DeviceUnavailable { device: format!("cuda:{ordinal}"), reason: reason.into() })
    }

    /// The fastest device there is.
    pub fn best() -> Device {
        Device::cpu()
    }

    /// Every device there is.
    pub fn enumerate() -> Vec<Device> {
        vec![Device::cpu()]
    }

    /// `cpu`, as messages have it.
    pub fn name(&self) -> &'static str {
        "cpu"
    }

    /// What the device is and can do.
    pub fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    /// Waits until everything that was submitted has run, and reports what failed.
    ///
    /// # Errors
    /// None on the CPU, where an evaluation returns when it is done.
    pub fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// The pool that every op's buffers come from.
    pub fn buffer_pool(&self) -> &BufferPool<cpu::HostAlloc> {
        self.0.pool()
    }

    /// What the pool has done so far. The reuse rate is `reuse_count / allocation_count`.
    pub fn buffer_pool_stats(&self) -> BufferPoolStats {
        self.0.pool().stats()
    }

    /// Bytes in use, cached and at the peak; the same counters as [`Device::buffer_pool_stats`].
    pub fn memory_stats(&self) -> BufferPoolStats {
        self.buffer_pool_stats()
    }

    /// Frees every cached buffer; returns the bytes freed.
    pub fn empty_cache(&self) -> usize {
        self.0.pool().shrink_to_fit()
    }

    /// Limits the bytes in use; `None` lifts the limit.
    pub fn set_memory_limit(&self, bytes: Option<usize>) {
        self.0.pool().set_memory_limit(bytes);
    }

    /// Seeds the random numbers of tensors made on this device from now on.
    pub fn seed(&self, seed: u64) {
        self.0.seed(seed);
    }

    /// Where the random stream stands: its key and position, to be saved in a checkpoint.
    pub fn random_state(&self) -> (u64, u64) {
        self.0.random_state()
    }

    /// Puts the random stream where [`Device::random_state`] found it.
    pub fn set_random_state(&self, state: (u64, u64)) {
        self.0.set_random_state(state);
    }

    /// A stretch of the device's random stream for `n` numbers: key and offset.
    pub(crate) fn reserve_random(&self, n: usize) -> (u64, u64) {
        self.0.reserve_random(n)
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:1`, `metal` or `metal:0`.
    fn from_str(name: &str) -> Result<Device> {
        let unknown = || Error::arg("Device", format!("no device is called {name:?}; use cpu, cuda:0 or metal:0"));
        let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
        let ordinal: usize = ordinal.parse().map_err(|_| unknown())?;
        match kind {
            "cpu" if ordinal == 0 => Ok(Device::cpu()),
            "cuda" => Device::cuda(ordinal),
            "metal" => Device::metal(ordinal),
            _ => Err(unknown()),
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a device is: for people to read.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// `cpu`.
    pub name: String,
    /// Processor or GPU, if it says so.
    pub model: Option<String>,
    /// Bytes of memory, if known.
    pub memory: Option<usize>,
    /// Threads that kernels run on.
    pub threads: usize,
    /// Instruction set of the kernels: `plain`, `neon`, `avx2` or `avx512`.
    pub simd: &'static str,
    /// What this machine or build lacks that would make it faster, and why.
    pub missing: Vec<String>,
}
