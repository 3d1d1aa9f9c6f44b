//! A GPU's memory for the buffer pool.

use super::driver::Address;
use super::queue::{Bound, Queue};
use crate::device::buffer_pool::RawAlloc;
use crate::error::Result;
use std::sync::Arc;

/// Allocates the memory of one GPU.
pub(crate) struct GpuAlloc(pub Arc<Queue>);

/// An owned range of a GPU's memory, with unspecified contents.
pub(crate) struct GpuMemory {
    queue: Arc<Queue>,
    address: Address,
    bytes: usize,
}

impl GpuMemory {
    pub fn address(&self) -> Address {
        self.address
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.queue.driver().free(self.address, self.bytes);
        }
    }
}

impl RawAlloc for GpuAlloc {
    type Raw = GpuMemory;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Option<GpuMemory> {
        let address = if bytes == 0 { Address(0) } else { self.0.driver().alloc(bytes)? };
        let mut memory = GpuMemory { queue: self.0.clone(), address, bytes };
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

    fn reclaim(&self) -> bool {
        self.0.drain().is_ok()
    }

    fn device_name(&self) -> String {
        self.0.driver().name()
    }
}
