//! One GPU: memory, kernels, queue and faults above a driver.

use super::cache::Kernels;
use super::disk::Disk;
use super::driver::{Address, Driver, Function, LibraryProduct, Limits, Mark, Ticket, Traffic};
use super::faults::{Faults, Verdict, Watch};
use super::memory::{GpuAlloc, GpuMemory};
use super::queue::{Bound, Launch, Prepared, Queue};
use super::selfcheck::Checks;
use super::tuning::Tuning;
use crate::codegen::{TENSOR_MAP, TensorMap};
use crate::device::cpu::{HostMemory, HostView};
use crate::device::memory::{DeviceAlloc, Storage};
use crate::device::random::RandomStream;
use crate::device::{BufferPool, DeviceInfo, PoolConfig};
use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes from which on memory is imported rather than copied: below, an allocation costs more than a copy.
const IMPORT_BYTES: usize = 256 << 10;

static GPUS: AtomicUsize = AtomicUsize::new(0);

/// A GPU.
pub(crate) struct Gpu {
    pub name: String,
    /// No other device of this process, alive or not, has it; the CPU has 0.
    pub id: usize,
    pub pool: BufferPool<DeviceAlloc>,
    pub random: RandomStream,
    /// See `Device::set_cpu_threshold`.
    pub cpu_threshold: AtomicUsize,
    pub(super) checks: Checks,
    pub(crate) tuning: Tuning,
    queue: Arc<Queue>,
    kernels: Kernels,
    faults: Faults,
}

impl Gpu {
    pub fn new(driver: Arc<dyn Driver>) -> Gpu {
        Gpu::with_cache(driver, Disk::of_user())
    }

    /// With the compiled kernels of a folder, or of none.
    pub fn with_cache(driver: Arc<dyn Driver>, disk: Option<Disk>) -> Gpu {
        let queue = Arc::new(Queue::new(driver.clone()));
        let limits = queue.limits();
        let set = std::env::var("TL_CPU_THRESHOLD").ok().and_then(|text| text.parse().ok());
        let cpu_threshold = queue.unified().map_or(0, |_| set.unwrap_or(limits.cpu_threshold));
        let default = PoolConfig::default();
        let half = driver.memory().map(|bytes| bytes / 2);
        let config = PoolConfig { max_cached_bytes: half.unwrap_or(default.max_cached_bytes), ..default };
        Gpu {
            name: driver.name(),
            id: GPUS.fetch_add(1, Ordering::Relaxed) + 1,
            pool: BufferPool::new(DeviceAlloc::gpu(GpuAlloc(queue.clone())), config),
            random: RandomStream::new(),
            cpu_threshold: cpu_threshold.into(),
            checks: Checks::new(queue.limits()),
            tuning: Tuning::new(),
            queue,
            kernels: Kernels::new(driver, disk),
            faults: Faults::default(),
        }
    }

    pub fn info(&self) -> DeviceInfo {
        self.queue.driver().info()
    }

    pub fn limits(&self) -> &Limits {
        self.queue.limits()
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Its kernels, and what is kept beside them.
    pub(super) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Something to be prepared for a list of work.
    pub fn prepared(&self) -> Prepared {
        Prepared::new(self.queue.clone())
    }

    /// Whether there is a vendor's library that multiplies matrices.
    pub fn has_library(&self) -> bool {
        self.queue.driver().has_library()
    }

    /// The kernel `name` of a Metal source, compiled if it was not yet.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn function(&self, source: &str, name: &str) -> Result<Function> {
        self.kernels.function(source, name)
    }

    /// The tensor map of an operand in a buffer.
    ///
    /// # Errors
    /// [`Error::DeviceFailed`].
    pub fn tensor_map(&self, address: Address, map: &TensorMap) -> Result<[u8; TENSOR_MAP]> {
        let failed = |reason| Error::DeviceFailed { device: self.name.clone(), op: "describing an operand", reason };
        self.queue.driver().tensor_map(address, map).map_err(failed)
    }

    /// Threads that a group of a kernel may have.
    pub fn max_threads(&self, function: Function) -> u32 {
        self.queue.driver().max_threads(function)
    }

    /// Compiles those of a list of (source, name) that are not compiled yet, in parallel.
    ///
    /// # Errors
    /// [`Error::Compile`].
    pub fn prepare(&self, list: &[(&str, &str)]) -> Result<()> {
        self.kernels.prepare(list)
    }

    /// Runs a kernel behind what it depends on, some time.
    ///
    /// # Errors
    /// A device that fails.
    pub fn submit(&self, launch: &Launch) -> Result<()> {
        self.queue.submit(launch)
    }

    /// Multiplies by the vendor's library, over the allocations `buffers`; `false` if it does not.
    ///
    /// # Errors
    /// A device that fails.
    pub fn library_product(&self, product: &LibraryProduct, buffers: &[Bound]) -> Result<bool> {
        self.queue.library_product(product, buffers)
    }

    /// Copies `bytes` bytes of `from`, from `offset` on, to the start of `to`.
    ///
    /// # Errors
    /// A device that fails.
    pub fn copy(&self, from: &Storage, offset: usize, to: &Storage, bytes: usize) -> Result<()> {
        debug_assert!(offset + bytes <= from.len() && bytes <= to.len());
        self.queue.copy(address(from)?, offset, address(to)?, bytes)
    }

    /// Host bytes in device memory.
    ///
    /// # Errors
    /// Out of memory; a device that fails.
    pub fn upload(&self, bytes: &[u8]) -> Result<Storage> {
        // What the host writes itself must not be in use.
        let storage = match self.queue.unified() {
            Some(_) => Storage::idle(&self.pool, bytes.len())?,
            None => Storage::new(&self.pool, bytes.len())?,
        };
        if !bytes.is_empty() {
            self.queue.write(address(&storage)?, bytes)?;
        }
        Ok(storage)
    }

    /// Memory of the host as this device's, without a copy; `None` where it is too small, does not lie on pages, or the
    /// device has memory of its own.
    ///
    /// # Errors
    /// [`Error::Internal`] for memory that is not the host's.
    pub fn import(&self, storage: &Arc<Storage>) -> Result<Option<Arc<Storage>>> {
        // What came from here goes back as what it was.
        if let Some(own) =
            storage.seen_of().filter(|own| own.unified().is_some_and(|queue| ptr::eq(queue, &*self.queue)))
        {
            return Ok(Some(own.clone()));
        }
        let Some(unified) = self.queue.unified().filter(|_| storage.len() >= IMPORT_BYTES) else { return Ok(None) };
        let host = storage.host()?;
        let (start, bytes) = (host.as_ptr(), storage.len().next_multiple_of(unified.page()));
        if start.addr() % unified.page() != 0 || bytes > host.bytes() {
            return Ok(None);
        }
        let imported = NonNull::new(start).and_then(|start| unified.import(start, bytes));
        Ok(imported.map(|address| {
            let memory = GpuMemory::new(self.queue.clone(), address, bytes, Some(storage.clone()));
            Arc::new(Storage::imported(&self.pool, memory, storage.len()))
        }))
    }

    /// The memory of a storage for the host, once nothing keeps it from reading it, or from writing it if it `writes`;
    /// `None` where the device has memory of its own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn host_view<'a>(&self, storage: &'a Storage, writes: bool) -> Result<Option<HostView<'a>>> {
        Ok(self.queue.host(bound(storage, writes)?)?.map(|ptr| HostView { ptr, owner: PhantomData }))
    }

    /// A storage as one of the host's in `pool`, without a copy, once it has been written; `None` where the device has
    /// memory of its own.
    ///
    /// # Errors
    /// A fault of the evaluation that wrote it; a device that fails.
    pub fn export(&self, storage: &Arc<Storage>, pool: &BufferPool<DeviceAlloc>) -> Result<Option<Arc<Storage>>> {
        if let Some(owner) = storage.imported_from() {
            return Ok(Some(owner.clone()));
        }
        let Some(ptr) = self.queue.host(bound(storage, false)?)? else { return Ok(None) };
        self.judge(storage.verdict().as_deref())?;
        // SAFETY: the bytes have been written; they stay as long as the storage, which the new one holds.
        let memory = unsafe { HostMemory::borrowed(ptr, storage.len()) };
        Ok(Some(Arc::new(Storage::seen(pool, memory, storage.clone()))))
    }

    /// Reads bytes of a storage from `offset` on, when what writes them has run.
    ///
    /// # Errors
    /// A fault of the evaluation that wrote them; a device that fails.
    pub fn download(&self, storage: &Storage, offset: usize, out: &mut [u8]) -> Result<()> {
        debug_assert!(offset + out.len() <= storage.len());
        if out.is_empty() {
            return Ok(());
        }
        self.queue.read(address(storage)?, offset, out)?;
        self.judge(storage.verdict().as_deref())
    }

    /// Finds a verdict.
    ///
    /// # Errors
    /// The fault, if there was one; a device that fails.
    pub fn judge(&self, verdict: Option<&Verdict>) -> Result<()> {
        let Some(verdict) = verdict else { return Ok(()) };
        if !verdict.is_settled() {
            self.faults.check(&self.queue)?;
        }
        verdict.get()
    }

    /// Begins an evaluation that reads `inputs`: see [`Faults::watch`].
    ///
    /// # Errors
    /// As there.
    pub fn watch<'a>(&self, can_fault: bool, inputs: impl Iterator<Item = &'a Storage>) -> Result<Option<Watch>> {
        self.faults.watch(&self.queue, &self.pool, can_fault, inputs)
    }

    /// Ends an evaluation: see [`Faults::finish`].
    pub fn finish(&self, watch: Watch) -> Arc<Verdict> {
        self.faults.finish(watch)
    }

    /// Sends off what there is.
    ///
    /// # Errors
    /// A device that fails.
    pub fn commit(&self) -> Result<Ticket> {
        self.queue.commit()
    }

    /// Waits until everything has run.
    ///
    /// # Errors
    /// A fault that nobody was told of; a device that fails.
    pub fn synchronize(&self) -> Result<()> {
        self.queue.drain()?;
        self.faults.check(&self.queue)?;
        self.faults.take_unreported()
    }

    /// What `work` submits, and the device's time for it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn timed<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Duration)> {
        let span = Span { queue: &self.queue, from: Some(self.queue.mark()?) };
        let result = work();
        Ok((result, span.end()?))
    }

    /// What `work` submits, and the device's time for each dispatch, by name and in order.
    ///
    /// # Errors
    /// A device that fails.
    pub fn profile<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<(String, Duration)>)> {
        self.queue.start_profile();
        let profile = Profile(&self.queue);
        let result = work();
        Ok((result, profile.0.take_profile()?))
    }

    /// What `work` submits, and what it moves; `None` where the driver cannot tell.
    ///
    /// # Errors
    /// A device that fails.
    pub fn traffic<T>(&self, work: impl FnOnce() -> T) -> Result<Option<(T, Vec<Traffic>)>> {
        self.queue.drain()?;
        if !self.queue.driver().start_traffic() {
            return Ok(None);
        }
        let result = work();
        self.queue.drain()?;
        Ok(Some((result, self.queue.driver().take_traffic())))
    }
}

/// Work that is timed; its marks are given back also if it panics.
struct Span<'a> {
    queue: &'a Queue,
    from: Option<Mark>,
}

impl Span<'_> {
    fn end(mut self) -> Result<Duration> {
        self.close().unwrap_or(Ok(Duration::ZERO))
    }

    fn close(&mut self) -> Option<Result<Duration>> {
        let from = self.from.take()?;
        Some(self.queue.mark().and_then(|to| self.queue.elapsed(from, to)))
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// Ends a profile also if the work panics.
struct Profile<'a>(&'a Queue);

impl Drop for Profile<'_> {
    fn drop(&mut self) {
        let _ = self.0.take_profile();
    }
}

/// Where a storage lies, which is on a GPU.
///
/// # Errors
/// [`Error::Internal`] if it is not.
pub(crate) fn address(storage: &Storage) -> Result<Address> {
    storage.address().ok_or_else(|| Error::internal("gpu::runtime", "a GPU was handed the host's memory"))
}

/// A storage as a launch takes it.
///
/// # Errors
/// As [`address`].
pub(crate) fn bound(storage: &Storage, writes: bool) -> Result<Bound> {
    Ok(Bound { address: address(storage)?, bytes: storage.len(), writes })
}
