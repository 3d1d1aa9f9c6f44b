//! Reading from a GPU while it goes on.

use super::driver::Ticket;
use super::faults::Verdict;
use super::runtime::Gpu;
use crate::device::memory::Storage;
use crate::error::Result;
use std::sync::Arc;

/// A copy of device memory, made when the queue came to it.
pub(crate) struct Pending {
    gpu: Arc<Gpu>,
    copy: Storage,
    verdict: Option<Arc<Verdict>>,
    ticket: Ticket,
}

impl Pending {
    /// Asks for `bytes` bytes of `storage` from `offset` on.
    ///
    /// # Errors
    /// Out of memory; a device that fails.
    pub fn new(gpu: &Arc<Gpu>, storage: &Storage, offset: usize, bytes: usize) -> Result<Pending> {
        let copy = Storage::new(&gpu.pool, bytes)?;
        gpu.copy(storage, offset, &copy, bytes)?;
        Ok(Pending { gpu: gpu.clone(), copy, verdict: storage.verdict(), ticket: gpu.commit()? })
    }

    /// Whether the device has got there.
    pub fn is_ready(&self) -> bool {
        self.gpu.queue().driver().is_done(self.ticket)
    }

    /// Waits for the device, and reads.
    ///
    /// # Errors
    /// A fault of what was read; a device that fails.
    pub fn wait(self, out: &mut [u8]) -> Result<()> {
        self.gpu.fetch(self.ticket, &self.copy, 0, out)?;
        self.gpu.judge(self.verdict.as_deref())
    }
}
