//! The memory of the device: host memory, poisoned, with room around each allocation that belongs to nobody.

use std::alloc::Layout;
use std::collections::BTreeMap;

/// Bytes before and behind an allocation, at least.
pub(super) const GUARD: usize = 64 << 10;

/// The live allocations, by the address they start at.
#[derive(Default)]
pub(super) struct Memory {
    live: BTreeMap<usize, Allocation>,
}

#[derive(Clone, Copy)]
struct Allocation {
    bytes: usize,
    /// Whether it is the host's, without guards.
    imported: bool,
}

impl Memory {
    /// The layout behind an allocation of `bytes` bytes, and the guard's size. Guards are never touched, so that they
    /// cost address space only; they grow with the allocation, as do the strides with which kernels miss.
    fn layout(bytes: usize) -> Option<(Layout, usize)> {
        let guard = GUARD + bytes.next_multiple_of(256).min(64 << 20);
        let size = bytes.checked_add(2 * guard)?;
        Some((Layout::from_size_align(size, 256).ok()?, guard))
    }

    /// `None` when there is no such memory.
    pub fn alloc(&mut self, bytes: usize) -> Option<usize> {
        let (layout, guard) = Memory::layout(bytes)?;
        // SAFETY: the layout has a size, as the guard has one.
        let block = unsafe { std::alloc::alloc(layout) };
        if block.is_null() {
            return None;
        }
        // SAFETY: `guard + bytes` bytes are inside the block.
        let start = unsafe { block.add(guard) };
        // SAFETY: as above; nobody else knows of the block yet.
        unsafe { start.write_bytes(0xff, bytes) };
        self.live.insert(start.expose_provenance(), Allocation { bytes, imported: false });
        Some(start.expose_provenance())
    }

    /// Takes memory of the host's in; `false` if a part of it is in already.
    pub fn import(&mut self, start: usize, bytes: usize) -> bool {
        let before = self.live.range(..start + bytes).next_back();
        if before.is_some_and(|(other, allocation)| other + allocation.bytes > start) {
            return false;
        }
        self.live.insert(start, Allocation { bytes, imported: true });
        true
    }

    /// Gives an allocation back. Whether there was one that starts there and has this size.
    pub fn free(&mut self, start: usize, bytes: usize) -> bool {
        let Some(&Allocation { imported, .. }) = self.live.get(&start).filter(|a| a.bytes == bytes) else {
            return false;
        };
        self.live.remove(&start);
        if imported {
            return true;
        }
        let (layout, guard) = Memory::layout(bytes).expect("it was allocated");
        // SAFETY: `alloc` got the block with this layout, and it is no longer in the map.
        unsafe { std::alloc::dealloc(std::ptr::with_exposed_provenance_mut::<u8>(start).sub(guard), layout) };
        true
    }

    /// The live allocation that an address lies in: its start and size.
    pub fn find(&self, address: usize) -> Option<(usize, usize)> {
        let (&start, &Allocation { bytes, .. }) = self.live.range(..=address).next_back()?;
        (address - start < bytes || address == start).then_some((start, bytes))
    }

    /// Whether `bytes` bytes at an address lie in one live allocation.
    pub fn holds(&self, address: usize, bytes: usize) -> bool {
        self.find(address).is_some_and(|(start, size)| bytes <= size - (address - start))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        while let Some((&start, allocation)) = self.live.first_key_value() {
            self.free(start, allocation.bytes);
        }
    }
}
