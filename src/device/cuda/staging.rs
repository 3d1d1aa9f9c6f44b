//! Copies between the host and the device, by way of pinned memory: the device fetches one chunk while the
//! host fills the next.

use super::api::{Driver, Failure};
use super::event::Event;
use crate::device::cpu::threads;
use crate::device::gpu::driver::Address;
use std::collections::VecDeque;

const CHUNK: usize = 4 << 20;
const CHUNKS: usize = 8;
/// Bytes that a thread copies at a time; less than two of them are not worth a second thread.
const SHARE: usize = 256 << 10;

/// A ring of pinned chunks. Copies fill the current chunk from its beginning, so that many small ones
/// share it; when it is full an event is recorded, for which the ring waits when it comes around.
pub(super) struct Staging {
    driver: &'static Driver,
    stream: usize,
    memory: *mut u8,
    events: Vec<Event>,
    current: usize,
    /// Bytes of the current chunk.
    used: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Staging {}

impl Staging {
    /// For a stream of the current context.
    pub fn new(driver: &'static Driver, stream: usize) -> Result<Staging, Failure> {
        let events = (0..CHUNKS).map(|_| Event::new(driver, false)).collect::<Result<_, _>>()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: a place for a pointer.
        unsafe { driver.cuMemHostAlloc(&raw mut memory, CHUNKS * CHUNK, 0) }?;
        Ok(Staging { driver, stream, memory: memory.cast(), events, current: 0, used: 0 })
    }

    /// Copies to the device. When it returns, `bytes` may change.
    pub fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        let mut to = to.0;
        for piece in bytes.chunks(CHUNK) {
            let chunk = self.reserve(piece.len())?;
            // SAFETY: `reserve` gives as many bytes, which no copy in flight touches.
            unsafe { copy(piece.as_ptr(), chunk, piece.len()) };
            // SAFETY: the chunk's bytes stay as they are until the copy has run; `to` is the caller's.
            unsafe { self.driver.cuMemcpyHtoDAsync_v2(to, chunk.cast(), piece.len(), self.stream) }?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies from the device, and waits for it.
    pub fn read(&mut self, from: Address, out: &mut [u8]) -> Result<(), Failure> {
        // Pieces on their way, each in a chunk of its own: all but the last fill theirs.
        let mut pending: VecDeque<(usize, *mut u8, &mut [u8])> = VecDeque::with_capacity(CHUNKS);
        let mut from = from.0;
        for piece in out.chunks_mut(CHUNK) {
            if pending.len() == CHUNKS - 1 {
                self.receive(pending.pop_front())?;
            }
            let chunk = self.reserve(piece.len())?;
            // SAFETY: `reserve` gives as many bytes, which nobody touches until the event is reached.
            unsafe { self.driver.cuMemcpyDtoHAsync_v2(chunk.cast(), from, piece.len(), self.stream) }?;
            self.events[self.current].record(self.stream)?;
            from += piece.len() as u64;
            pending.push_back((self.current, chunk, piece));
        }
        while !pending.is_empty() {
            self.receive(pending.pop_front())?;
        }
        Ok(())
    }

    /// Takes a piece out of its chunk.
    fn receive(&self, piece: Option<(usize, *mut u8, &mut [u8])>) -> Result<(), Failure> {
        let Some((index, chunk, out)) = piece else { return Ok(()) };
        self.events[index].wait()?;
        // SAFETY: the device has written the chunk; `out` is exclusive.
        unsafe { copy(chunk, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Room for `bytes` bytes, at most a chunk, that the device is done with.
    fn reserve(&mut self, bytes: usize) -> Result<*mut u8, Failure> {
        if self.used + bytes > CHUNK {
            self.events[self.current].record(self.stream)?;
            self.current = (self.current + 1) % CHUNKS;
            self.used = 0;
            // An event that was never recorded counts as reached.
            self.events[self.current].wait()?;
        }
        let at = self.current * CHUNK + self.used;
        self.used += bytes.next_multiple_of(256);
        // SAFETY: `at + bytes` is at most the chunk's end.
        Ok(unsafe { self.memory.add(at) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: the stream is alive, and done with the memory before that goes.
        let _ = unsafe { self.driver.cuStreamSynchronize(self.stream) };
        // SAFETY: the memory came from cuMemHostAlloc, and nobody uses it again.
        let _ = unsafe { self.driver.cuMemFreeHost(self.memory.cast()) };
    }
}

/// Copies on the host, large pieces with several threads.
///
/// # Safety
/// Both are `bytes` bytes that do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    let (from, to) = (from as usize, to as usize);
    threads::for_each(bytes.div_ceil(SHARE), bytes >= 2 * SHARE, &|job| {
        let start = job * SHARE;
        let length = SHARE.min(bytes - start);
        // SAFETY: the caller's, and the jobs' stretches are distinct.
        unsafe { std::ptr::copy_nonoverlapping((from + start) as *const u8, (to + start) as *mut u8, length) };
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn copies_are_whole() {
        for length in [0, 1, super::SHARE, 2 * super::SHARE - 1, 5 * super::SHARE + 3] {
            let from: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
            let mut to = vec![0; length];
            // SAFETY: two vectors of one length.
            unsafe { super::copy(from.as_ptr(), to.as_mut_ptr(), length) };
            assert!(from == to, "{length}");
        }
    }
}
