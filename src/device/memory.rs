//! The memory of any device, behind one type of pool.

use super::buffer_pool::{Buffer, BufferPool, RawAlloc};
use super::cpu::{HostAlloc, HostMemory};
use super::gpu::driver::Address;
use super::gpu::faults::Verdict;
use super::gpu::memory::{GpuAlloc, GpuMemory};
use super::gpu::queue::{Bound, Queue};
use super::lock;
use crate::error::{Error, Result};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Allocates the memory of one device.
pub struct DeviceAlloc(Alloc);

enum Alloc {
    Host(HostAlloc),
    Gpu(GpuAlloc),
}

/// An owned piece of a device's memory.
pub struct DeviceMemory(Memory);

enum Memory {
    Host(HostMemory),
    Gpu(GpuMemory),
    /// Memory of a GPU, which the host reads.
    Seen(HostMemory, Arc<Storage>),
}

impl DeviceAlloc {
    pub(crate) fn host() -> Self {
        DeviceAlloc(Alloc::Host(HostAlloc))
    }

    pub(crate) fn gpu(alloc: GpuAlloc) -> Self {
        DeviceAlloc(Alloc::Gpu(alloc))
    }
}

impl RawAlloc for DeviceAlloc {
    type Raw = DeviceMemory;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Option<DeviceMemory> {
        Some(DeviceMemory(match &self.0 {
            Alloc::Host(alloc) => Memory::Host(alloc.alloc(bytes, zeroed)?),
            Alloc::Gpu(alloc) => Memory::Gpu(alloc.alloc(bytes, zeroed)?),
        }))
    }

    fn zero(&self, raw: &mut DeviceMemory, bytes: usize) -> Result<()> {
        match (&self.0, &mut raw.0) {
            (Alloc::Host(alloc), Memory::Host(memory)) => alloc.zero(memory, bytes),
            (Alloc::Gpu(alloc), Memory::Gpu(memory)) => alloc.zero(memory, bytes),
            _ => Err(Error::internal("device::memory", "memory of another device")),
        }
    }

    fn is_idle(&self, raw: &DeviceMemory) -> bool {
        match (&self.0, &raw.0) {
            (Alloc::Gpu(alloc), Memory::Gpu(memory)) => alloc.is_idle(memory),
            _ => true,
        }
    }

    fn is_pressed(&self) -> bool {
        match &self.0 {
            Alloc::Host(alloc) => alloc.is_pressed(),
            Alloc::Gpu(alloc) => alloc.is_pressed(),
        }
    }

    fn reclaim(&self) -> bool {
        match &self.0 {
            Alloc::Host(alloc) => alloc.reclaim(),
            Alloc::Gpu(alloc) => alloc.reclaim(),
        }
    }

    fn device_name(&self) -> String {
        match &self.0 {
            Alloc::Host(alloc) => alloc.device_name(),
            Alloc::Gpu(alloc) => alloc.device_name(),
        }
    }
}

/// The memory of one tensor.
#[derive(Debug)]
pub(crate) struct Storage {
    buffer: Buffer<DeviceAlloc>,
    /// On a GPU: what the evaluation that wrote it came to, where that could go wrong.
    verdict: Mutex<Option<Arc<Verdict>>>,
}

impl Storage {
    /// `bytes` bytes with unspecified contents.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(pool: &BufferPool<DeviceAlloc>, bytes: usize) -> Result<Storage> {
        Ok(Storage { buffer: pool.get_uninit(bytes)?, verdict: Mutex::new(None) })
    }

    /// `bytes` bytes of zeros.
    ///
    /// # Errors
    /// Out of memory; a device that fails.
    pub fn zeroed(pool: &BufferPool<DeviceAlloc>, bytes: usize) -> Result<Storage> {
        Ok(Storage { buffer: pool.get_zeroed(bytes)?, verdict: Mutex::new(None) })
    }

    /// `bytes` bytes with unspecified contents that nothing on the device uses.
    ///
    /// # Errors
    /// Out of memory.
    pub fn idle(pool: &BufferPool<DeviceAlloc>, bytes: usize) -> Result<Storage> {
        Ok(Storage { buffer: pool.get_idle(bytes)?, verdict: Mutex::new(None) })
    }

    /// `bytes` bytes, zeros if `zeroed`, that never were in the pool and never will be.
    ///
    /// # Errors
    /// Out of memory.
    pub fn unpooled(pool: &BufferPool<DeviceAlloc>, bytes: usize, zeroed: bool) -> Result<Storage> {
        Ok(Storage { buffer: pool.get_unpooled(bytes, zeroed)?, verdict: Mutex::new(None) })
    }

    /// The first `bytes` bytes of memory of a GPU that it has imported.
    pub fn imported(pool: &BufferPool<DeviceAlloc>, memory: GpuMemory, bytes: usize) -> Storage {
        Storage { buffer: pool.adopt(DeviceMemory(Memory::Gpu(memory)), bytes), verdict: Mutex::new(None) }
    }

    /// The memory of a GPU's storage, for the host.
    pub fn seen(pool: &BufferPool<DeviceAlloc>, memory: HostMemory, of: Arc<Storage>) -> Storage {
        let bytes = of.len();
        Storage { buffer: pool.adopt(DeviceMemory(Memory::Seen(memory, of)), bytes), verdict: Mutex::new(None) }
    }

    /// Whether others see the memory, too, so that nothing may be written over what it holds.
    pub fn is_shared(&self) -> bool {
        match &self.buffer.raw().0 {
            Memory::Host(_) => false,
            Memory::Gpu(memory) => memory.owner().is_some(),
            Memory::Seen(..) => true,
        }
    }

    /// The host's storage that a GPU has imported as this one.
    pub fn imported_from(&self) -> Option<&Arc<Storage>> {
        match &self.buffer.raw().0 {
            Memory::Gpu(memory) => memory.owner(),
            _ => None,
        }
    }

    /// The GPU's storage that the host sees as this one.
    pub fn seen_of(&self) -> Option<&Arc<Storage>> {
        match &self.buffer.raw().0 {
            Memory::Seen(_, storage) => Some(storage),
            _ => None,
        }
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The memory, which is the host's.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is not.
    pub fn host(&self) -> Result<&HostMemory> {
        match &self.buffer.raw().0 {
            Memory::Host(memory) | Memory::Seen(memory, _) => Ok(memory),
            Memory::Gpu(_) => Err(Error::internal("device::memory", "the host was handed a GPU's memory")),
        }
    }

    /// The memory, which is the host's, exclusively.
    ///
    /// # Errors
    /// As [`Storage::host`].
    pub fn host_mut(&mut self) -> Result<&mut HostMemory> {
        match &mut self.buffer.raw_mut().0 {
            Memory::Host(memory) => Ok(memory),
            _ => Err(Error::internal("device::memory", "the host was handed a GPU's memory")),
        }
    }

    /// Where it lies, if that is on a GPU.
    pub fn address(&self) -> Option<Address> {
        match &self.buffer.raw().0 {
            Memory::Gpu(memory) => Some(memory.address()),
            _ => None,
        }
    }

    /// The queue of the GPU that shares this memory with the host, if one does.
    pub fn unified(&self) -> Option<&Queue> {
        match &self.buffer.raw().0 {
            Memory::Gpu(memory) => Some(memory.queue()).filter(|queue| queue.unified().is_some()),
            _ => None,
        }
    }

    /// The bytes, which a GPU shares with the host.
    ///
    /// # Errors
    /// A device that fails; [`Error::Internal`] for other memory.
    pub fn bytes(&self) -> Result<&[u8]> {
        let start = self.host_start(false)?;
        // SAFETY: the memory is there with these bytes, initialised as any that such a device gives out, while the
        // storage is. Nothing on the device writes them, and nobody else does while they are borrowed: the storage is
        // one's own until it becomes a tensor's.
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len()) })
    }

    /// The bytes, which a GPU shares with the host, to be changed.
    ///
    /// # Errors
    /// As [`Storage::bytes`].
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let start = self.host_start(true)?;
        // SAFETY: as above, and `self` is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.len()) })
    }

    fn host_start(&self, writes: bool) -> Result<NonNull<u8>> {
        let apart = || Error::internal("device::memory", "the memory is not shared with the host");
        if self.len() == 0 {
            return Ok(NonNull::dangling());
        }
        let (queue, address) = self.unified().zip(self.address()).ok_or_else(apart)?;
        queue.host(Bound { address, bytes: self.len(), writes })?.ok_or_else(apart)
    }

    /// What the evaluation that wrote it came to; `None` if nothing could go wrong.
    pub fn verdict(&self) -> Option<Arc<Verdict>> {
        lock(&self.verdict).clone()
    }

    /// Says which evaluation wrote it.
    pub fn set_verdict(&self, verdict: Option<Arc<Verdict>>) {
        *lock(&self.verdict) = verdict;
    }
}
