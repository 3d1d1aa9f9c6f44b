//! Reading from a GPU while it goes on.

use super::driver::Ticket;
use super::runtime::{Gpu, bound};
use crate::device::memory::Storage;
use crate::error::Result;
use std::sync::Arc;

/// What will be read once a ticket has passed.
pub(crate) struct Pending {
    gpu: Arc<Gpu>,
    storage: Arc<Storage>,
    offset: usize,
    ticket: Option<Ticket>,
}

impl Pending {
    /// Asks for `bytes` bytes of `storage` from `offset` on. Where memory is unified, `storage` itself is held, which
    /// keeps plans from writing over it; otherwise a copy is made when the queue comes to it.
    ///
    /// # Errors
    /// Out of memory; a device that fails.
    pub fn new(gpu: &Arc<Gpu>, storage: Arc<Storage>, offset: usize, bytes: usize) -> Result<Pending> {
        let queue = gpu.queue();
        if queue.unified().is_some() {
            let ticket = queue.due([bound(&storage, false)?].into_iter())?;
            return Ok(Pending { gpu: gpu.clone(), storage, offset, ticket });
        }
        let copy = Arc::new(Storage::new(&gpu.pool, bytes)?);
        gpu.copy(&storage, offset, &copy, bytes)?;
        copy.set_verdict(storage.verdict());
        Ok(Pending { gpu: gpu.clone(), storage: copy, offset: 0, ticket: Some(gpu.commit()?) })
    }

    /// Whether the device has got there.
    pub fn is_ready(&self) -> bool {
        self.ticket.is_none_or(|ticket| self.gpu.queue().driver().is_done(ticket))
    }

    /// Waits for the device, and reads.
    ///
    /// # Errors
    /// A fault of what was read; a device that fails.
    pub fn wait(self, out: &mut [u8]) -> Result<()> {
        if let Some(ticket) = self.ticket {
            self.gpu.queue().wait(ticket)?;
        }
        self.gpu.download(&self.storage, self.offset, out)
    }
}
