//! A GPU's memory for the buffer pool.

use super::driver::Address;
use super::queue::{Bound, Owner, Queue};
use crate::device::buffer_pool::RawAlloc;
use crate::device::memory::Storage;
use crate::error::Result;
use std::sync::Arc;

/// Allocates the memory of one GPU.
pub(crate) struct GpuAlloc(pub Arc<Queue>);

/// An owned range of a GPU's memory, with unspecified contents.
pub(crate) struct GpuMemory {
    queue: Arc<Queue>,
    address: Address,
    bytes: usize,
    owner: Owner,
}

impl GpuMemory {
    /// Memory that the queue's driver has allocated, or imported from `owner`.
    pub fn new(queue: Arc<Queue>, address: Address, bytes: usize, owner: Owner) -> GpuMemory {
        GpuMemory { queue, address, bytes, owner }
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whose it is, if it is somebody else's, and so not to be written.
    pub fn owner(&self) -> Option<&Arc<Storage>> {
        self.owner.as_ref()
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.queue.free(self.address, self.bytes, self.owner.take());
        }
    }
}

impl RawAlloc for GpuAlloc {
    type Raw = GpuMemory;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Option<GpuMemory> {
        let address = if bytes == 0 { Address(0) } else { self.0.driver().alloc(bytes)? };
        let mut memory = GpuMemory::new(self.0.clone(), address, bytes, None);
        if zeroed {
            self.zero(&mut memory, bytes).ok()?;
        }
        Some(memory)
    }

    /// In the order of the queue.
    fn zero(&self, raw: &mut GpuMemory, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.0.zero(Bound { address: raw.address, bytes, writes: true })
    }

    fn is_idle(&self, raw: &GpuMemory) -> bool {
        self.0.is_idle(raw.address)
    }

    fn is_pressed(&self) -> bool {
        self.0.driver().is_pressed()
    }

    fn reclaim(&self) -> bool {
        self.0.drain().is_ok()
    }

    fn device_name(&self) -> String {
        self.0.driver().name()
    }
}
