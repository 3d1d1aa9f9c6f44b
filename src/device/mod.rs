//! Layer 1: devices. `trait`s and handles here; one folder a kind below.

pub mod buffer_pool;
pub mod cpu;
pub(crate) mod cuda;
pub(crate) mod gpu;
#[cfg(target_os = "macos")]
mod macos;
pub(crate) mod memory;
pub mod metal;
mod random;
#[cfg(feature = "soft-metal")]
pub(crate) mod soft_metal;

pub use buffer_pool::{BufferPool, BufferPoolStats, PoolConfig};
pub use memory::DeviceAlloc;
pub(crate) use memory::Storage;
pub use metal::{MetalBuffer, MetalDevice};

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use cpu::CpuDevice;
use gpu::Gpu;
use gpu::driver::Driver;
use random::RandomStream;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where tensors live and are computed. Cheap to clone.
///
/// There is one CPU device a process, and one of each GPU; a device's buffers come from a pool whose
/// statistics are [`Device::buffer_pool_stats`]. On a GPU an evaluation returns when it is recorded:
/// reading elements waits for it, and so does [`Device::synchronize`].
#[derive(Clone)]
pub struct Device(pub(crate) Kind);

/// What a device is.
#[derive(Clone)]
pub(crate) enum Kind {
    Cpu(Arc<CpuDevice>),
    Gpu(Arc<Gpu>),
}

static CPU: LazyLock<Device> = LazyLock::new(|| Device(Kind::Cpu(Arc::new(CpuDevice::new()))));

/// The GPUs that have been opened, by name.
static GPUS: Mutex<BTreeMap<String, Device>> = Mutex::new(BTreeMap::new());

impl Device {
    /// The CPU: always there.
    pub fn cpu() -> Device {
        CPU.clone()
    }

    /// An Apple GPU: M1 or newer, with macOS 14 or newer.
    ///
    /// # Errors
    /// No such GPU, or not on macOS.
    pub fn metal(ordinal: usize) -> Result<Device> {
        #[cfg(target_os = "macos")]
        let driver =
            || metal::Metal::open(ordinal).map_err(|reason| format!("{reason}; without it, use Device::cpu()"));
        #[cfg(not(target_os = "macos"))]
        let driver = || Err("Metal exists on macOS only; use Device::cpu()".into());
        Device::open(format!("metal:{ordinal}"), driver)
    }

    /// An NVIDIA GPU. Needs its driver and NVRTC, which are looked for when this is called first; cuBLASLt
    /// multiplies large matrices where it is installed.
    ///
    /// # Errors
    /// No such GPU, or no driver or NVRTC: which, and where they were looked for.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::open(format!("cuda:{ordinal}"), || match cuda::Cuda::new(ordinal) {
            Ok(driver) => Ok(driver),
            Err(reason) => Err(format!("{reason}; without CUDA, use Device::cpu()")),
        })
    }

    /// A GPU in software, for tests: runs the Metal kernels on the host and checks every access.
    ///
    /// # Errors
    /// No C++ compiler (`c++`, or what the environment's `CXX` names).
    #[cfg(feature = "soft-metal")]
    pub fn soft_metal() -> Result<Device> {
        Device::open("soft-metal".into(), || soft_metal::SoftMetal::new().map(|driver| driver as Arc<dyn Driver>))
    }

    /// The GPU of a name, opened once a process.
    fn open(name: String, driver: impl FnOnce() -> Result<Arc<dyn Driver>, String>) -> Result<Device> {
        let mut gpus = lock(&GPUS);
        if let Some(device) = gpus.get(&name) {
            return Ok(device.clone());
        }
        let driver = driver().map_err(|reason| Error::DeviceUnavailable { device: name.clone(), reason })?;
        let device = Device(Kind::Gpu(Arc::new(Gpu::new(driver))));
        gpus.insert(name, device.clone());
        Ok(device)
    }

    /// The fastest device there is.
    pub fn best() -> Device {
        Device::metal(0).or_else(|_| Device::cuda(0)).unwrap_or_else(|_| Device::cpu())
    }

    /// Every device there is.
    pub fn enumerate() -> Vec<Device> {
        let mut devices = vec![Device::cpu()];
        devices.extend((0..).map_while(|ordinal| Device::metal(ordinal).ok()));
        devices.extend((0..).map_while(|ordinal| Device::cuda(ordinal).ok()));
        #[cfg(feature = "soft-metal")]
        devices.extend(Device::soft_metal());
        devices
    }

    /// `cpu`, `metal:0` or `cuda:0`, as messages have it.
    pub fn name(&self) -> &str {
        match &self.0 {
            Kind::Cpu(_) => "cpu",
            Kind::Gpu(gpu) => &gpu.name,
        }
    }

    /// Whether tensors of this dtype exist here: f64 is the CPU's alone.
    pub fn supports(&self, dtype: DType) -> bool {
        dtype != DType::F64 || matches!(self.0, Kind::Cpu(_))
    }

    /// Refuses a dtype that does not exist here.
    pub(crate) fn needs_support(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.supports(dtype) {
            return Ok(());
        }
        Err(Error::dtype(op, dtype, format!("{self} has no {dtype}; use DType::F32 there, or Device::cpu()")))
    }

    /// Tells devices apart.
    pub(crate) fn id(&self) -> usize {
        match &self.0 {
            Kind::Cpu(_) => 0,
            Kind::Gpu(gpu) => gpu.id,
        }
    }

    /// What the device is and can do.
    pub fn info(&self) -> DeviceInfo {
        match &self.0 {
            Kind::Cpu(cpu) => cpu.info(),
            Kind::Gpu(gpu) => gpu.info(),
        }
    }

    /// Waits until everything that was submitted has run, and reports what failed.
    ///
    /// # Errors
    /// An index out of range that no read has reported; a device that fails. None on the CPU, where an
    /// evaluation returns when it is done.
    pub fn synchronize(&self) -> Result<()> {
        match &self.0 {
            Kind::Cpu(_) => Ok(()),
            Kind::Gpu(gpu) => gpu.synchronize(),
        }
    }

    /// The pool that every op's buffers come from.
    pub fn buffer_pool(&self) -> &BufferPool<DeviceAlloc> {
        match &self.0 {
            Kind::Cpu(cpu) => &cpu.pool,
            Kind::Gpu(gpu) => &gpu.pool,
        }
    }

    /// What the pool has done so far. The reuse rate is `reuse_count / allocation_count`.
    pub fn buffer_pool_stats(&self) -> BufferPoolStats {
        self.buffer_pool().stats()
    }

    /// Bytes in use, cached and at the peak; the same counters as [`Device::buffer_pool_stats`].
    pub fn memory_stats(&self) -> BufferPoolStats {
        self.buffer_pool_stats()
    }

    /// Frees every cached buffer, waiting for a GPU that still uses some; returns the bytes freed.
    pub fn empty_cache(&self) -> usize {
        let bytes = self.buffer_pool().shrink_to_fit();
        if let Kind::Gpu(gpu) = &self.0 {
            // What fails is told to whoever reads.
            let _ = gpu.queue().drain();
        }
        bytes
    }

    /// Limits the bytes in use; `None` lifts the limit.
    pub fn set_memory_limit(&self, bytes: Option<usize>) {
        self.buffer_pool().set_memory_limit(bytes);
    }

    /// Has graphs of up to `cost` computed by the CPU, where that is possible and somebody waits for them: the GPU and
    /// the CPU share their memory, and elements are being read. A kernel costs the bytes that it reads and writes and its
    /// arithmetic operations, a transcendental function counted as eight. To have a GPU begin and to wait for it takes
    /// longer than small graphs do; by default that is 131,072 on Metal. 0 keeps everything on the GPU.
    /// `TL_CPU_THRESHOLD` sets it from outside; `TL_LOG=plan` says where a plan runs.
    ///
    /// Results of the two may differ in the last bits. Which one computes a graph follows from the graph, from which of its
    /// parts are held and from whether it is read or only evaluated; how busy the GPU is does not count. Without effect on
    /// other devices.
    pub fn set_cpu_threshold(&self, cost: usize) {
        if let Kind::Gpu(gpu) = &self.0
            && gpu.queue().unified().is_some()
        {
            gpu.cpu_threshold.store(cost, Ordering::Relaxed);
        }
    }

    /// What [`Device::set_cpu_threshold`] set; 0 on devices where it has no effect.
    pub fn cpu_threshold(&self) -> usize {
        match &self.0 {
            Kind::Cpu(_) => 0,
            Kind::Gpu(gpu) => gpu.cpu_threshold.load(Ordering::Relaxed),
        }
    }

    /// Whether matrix products of plans made from now on use measured tiles, on a GPU: off by default, unless the
    /// environment variable `TL_TUNE` is 1. Nothing changes on the CPU.
    ///
    /// When it is on, the first plan with a product of some size runs it in a few tile shapes on scratch memory and
    /// takes the fastest. The choice is kept with the compiled kernels (in `TL_CACHE_DIR`; remove the folder to measure
    /// again), for this device and compiler.
    ///
    /// Tile shapes add a sum's terms in different orders, so the last bits of an f32, f16 or bf16 product may differ
    /// from those without tuning, and between machines that measured differently; with one choice they are the same
    /// each time. Plans that were made before keep their tiles.
    pub fn set_tuning(&self, on: bool) {
        match &self.0 {
            Kind::Cpu(_) => {}
            Kind::Gpu(gpu) => gpu.tuning.set(on),
        }
    }

    fn random(&self) -> &RandomStream {
        match &self.0 {
            Kind::Cpu(cpu) => &cpu.random,
            Kind::Gpu(gpu) => &gpu.random,
        }
    }

    /// Seeds the random numbers of tensors made on this device from now on.
    pub fn seed(&self, seed: u64) {
        self.random().set_state((seed, 0));
    }

    /// Where the random stream stands: its key and position, to be saved in a checkpoint.
    pub fn random_state(&self) -> (u64, u64) {
        self.random().state()
    }

    /// Puts the random stream where [`Device::random_state`] found it.
    pub fn set_random_state(&self, state: (u64, u64)) {
        self.random().set_state(state);
    }

    /// A stretch of the device's random stream for `n` numbers: key and offset.
    pub(crate) fn reserve_random(&self, n: usize) -> (u64, u64) {
        self.random().reserve(n)
    }

    /// Host values in fresh memory.
    pub(crate) fn upload<T: Element>(&self, values: &[T]) -> Result<Storage> {
        let bytes = bytes_of(values);
        match &self.0 {
            Kind::Gpu(gpu) => gpu.upload(bytes),
            Kind::Cpu(cpu) => {
                let mut storage = Storage::new(&cpu.pool, bytes.len())?;
                cpu::upload(&mut storage, bytes)?;
                Ok(storage)
            }
        }
    }

    /// Whether a storage that is shared with the host lies on this device.
    pub(crate) fn owns(&self, storage: &Storage) -> bool {
        match (&self.0, storage.unified()) {
            (Kind::Gpu(gpu), Some(queue)) => std::ptr::eq(gpu.queue(), queue),
            _ => false,
        }
    }

    /// A copy, in memory of this device, of `bytes` bytes of realized memory of another, from `offset` on.
    /// Between the CPU and a GPU with unified memory it is the same memory, if it is all of it.
    pub(crate) fn bring(
        &self,
        from: &Device,
        storage: &Arc<Storage>,
        offset: usize,
        bytes: usize,
    ) -> Result<Arc<Storage>> {
        let whole = offset == 0 && bytes == storage.len();
        match (&from.0, &self.0) {
            (Kind::Cpu(_), Kind::Gpu(to)) => {
                let imported = if whole { to.import(storage)? } else { None };
                let upload = || to.upload(&cpu::bytes(storage)?[offset..offset + bytes]).map(Arc::new);
                imported.map_or_else(upload, Ok)
            }
            (Kind::Cpu(_), Kind::Cpu(_)) => self.upload(&cpu::bytes(storage)?[offset..offset + bytes]).map(Arc::new),
            (Kind::Gpu(from), Kind::Gpu(to)) => {
                let mut host = vec![0; bytes];
                from.download(storage, offset, &mut host)?;
                to.upload(&host).map(Arc::new)
            }
            (Kind::Gpu(from), Kind::Cpu(to)) => {
                if whole && let Some(seen) = from.export(storage, &to.pool)? {
                    return Ok(seen);
                }
                let mut copy = Storage::new(&to.pool, bytes)?;
                cpu::fill(&mut copy, |out| from.download(storage, offset, out))?;
                Ok(Arc::new(copy))
            }
        }
    }

    /// What `work` submits, and how long the device takes for it.
    pub(crate) fn timed<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Duration)> {
        match &self.0 {
            Kind::Gpu(gpu) => gpu.timed(work),
            Kind::Cpu(_) => {
                let start = Instant::now();
                let result = work();
                Ok((result, start.elapsed()))
            }
        }
    }

    /// What `work` submits, and how long the device takes for each dispatch.
    pub(crate) fn profile<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<(String, Duration)>)> {
        match &self.0 {
            Kind::Gpu(gpu) => gpu.profile(work),
            Kind::Cpu(_) => Err(Error::arg("profile", "the CPU does not tell the times of kernels; use a GPU")),
        }
    }

    /// What `work` submits, and what it moves.
    pub(crate) fn traffic<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<gpu::driver::Traffic>)> {
        let counted = match &self.0 {
            Kind::Gpu(gpu) => gpu.traffic(work)?,
            Kind::Cpu(_) => None,
        };
        counted.ok_or_else(|| Error::arg("traffic", format!("{self} does not count its loads and stores")))
    }
}

/// Enters a lock though it may be poisoned: what panics under it leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the environment's `TL_LOG` asks for this: `plan`, `source`.
pub(crate) fn logs(what: &str) -> bool {
    static LOG: LazyLock<String> = LazyLock::new(|| std::env::var("TL_LOG").unwrap_or_default());
    LOG.contains(what)
}

/// Elements as the bytes that memory holds.
pub(crate) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element`s are plain data without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Has `write` put the bytes of elements in their place. They are those of a realized tensor of dtype
/// `T::DTYPE`, where a bool is 0 or 1.
pub(crate) fn read_bytes<T: Element>(out: &mut [T], write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    // SAFETY: `Element`s are plain data without padding, and any bytes are a value of them but for bools, for
    // which the caller, one of this crate, vouches.
    write(unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), size_of_val(out)) })
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:1`, `metal` or `metal:0`; `soft-metal` or `soft` where that is built in.
    fn from_str(name: &str) -> Result<Device> {
        let unknown = || Error::arg("Device", format!("no device is called {name:?}; use cpu, cuda:0 or metal:0"));
        let (kind, ordinal) = name.split_once(':').unwrap_or((name, "0"));
        let ordinal: usize = ordinal.parse().map_err(|_| unknown())?;
        match kind {
            "cpu" if ordinal == 0 => Ok(Device::cpu()),
            "cuda" => Device::cuda(ordinal),
            "metal" => Device::metal(ordinal),
            #[cfg(feature = "soft-metal")]
            "soft" | "soft-metal" if ordinal == 0 => Device::soft_metal(),
            _ => Err(unknown()),
        }
    }
}

/// What panics above a device leaves it whole: all that changes is behind locks or atomic.
impl std::panic::UnwindSafe for Device {}
impl std::panic::RefUnwindSafe for Device {}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
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
    /// `cpu`, `metal:0` or `cuda:0`.
    pub name: String,
    /// Processor or GPU, if it says so.
    pub model: Option<String>,
    /// Bytes of memory, if known.
    pub memory: Option<usize>,
    /// Threads that kernels run on; of a GPU, those that it can hold at once.
    pub threads: usize,
    /// Instruction set of the kernels: `plain`, `neon`, `avx2` or `avx512`; of a GPU, its generation.
    pub simd: &'static str,
    /// What this machine or build lacks that would make it faster, and why.
    pub missing: Vec<String>,
}
