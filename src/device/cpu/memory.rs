//! Host memory for the buffer pool.

use crate::device::buffer_pool::RawAlloc;
use crate::error::Result;
use std::alloc::Layout;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// Alignment of every allocation: a cache line, and the widest vector there is.
const ALIGN: usize = 64;
/// The size of a transparent huge page (x86-64, and AArch64 with 4 KiB pages).
const HUGE_PAGE: usize = 2 << 20;
/// The size of a page of Apple's processors: allocations from four pages on start at one and, being of a size class,
/// end at one, so that a GPU can import them.
const APPLE_PAGE: usize = 16 << 10;
const PAGES: usize = 4 * APPLE_PAGE;
/// Allocations from this size on ask for huge pages: two pages, so that alignment wastes little.
/// To touch 64 MiB for the first time takes 7 ms with them and 44 ms without (Linux 6.18 in a
/// virtual machine, November 2026); to fill it again takes 4.
const HUGE_FROM: usize = 2 * HUGE_PAGE;

/// Allocates host memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostAlloc;

impl RawAlloc for HostAlloc {
    type Raw = HostMemory;

    fn alloc(&self, bytes: usize, zeroed: bool) -> Option<HostMemory> {
        let mut memory = HostMemory::new(bytes)?;
        if zeroed {
            memory.zero(bytes);
        }
        Some(memory)
    }

    fn zero(&self, raw: &mut HostMemory, bytes: usize) -> Result<()> {
        raw.zero(bytes);
        Ok(())
    }

    fn device_name(&self) -> String {
        "cpu".into()
    }
}

/// A range of host memory with unspecified contents; an owned one is aligned to 64 bytes.
#[derive(Debug)]
pub struct HostMemory {
    ptr: NonNull<u8>,
    bytes: usize,
    owned: bool,
}

// SAFETY: the memory is not bound to the thread that allocated it.
unsafe impl Send for HostMemory {}
// SAFETY: a shared `HostMemory` only hands out its address; what is done with that is argued where
// it is dereferenced.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `std::alloc::alloc_zeroed` is not used: above the default alignment it is `alloc` and a
    /// `memset`, and the `memset` has to come after the request for huge pages.
    fn new(bytes: usize) -> Option<Self> {
        let layout = layout(bytes)?;
        if bytes == 0 {
            let dangling = std::ptr::without_provenance_mut(ALIGN);
            return NonNull::new(dangling).map(|ptr| HostMemory { ptr, bytes, owned: true });
        }
        // SAFETY: the size is not zero.
        let ptr = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
        if layout.align() == HUGE_PAGE {
            advise_huge_pages(ptr, bytes);
        }
        Some(HostMemory { ptr, bytes, owned: true })
    }

    /// `bytes` bytes that are somebody else's, at an address aligned to 64.
    ///
    /// # Safety
    /// They stay there, and are initialised, while this lives.
    pub(crate) unsafe fn borrowed(ptr: NonNull<u8>, bytes: usize) -> HostMemory {
        HostMemory { ptr, bytes, owned: false }
    }

    /// The same memory, for as long as this is there.
    pub(crate) fn view(&self) -> HostView<'_> {
        HostView { ptr: self.ptr, owner: PhantomData }
    }

    /// Sets the first `bytes` bytes to zero.
    pub(super) fn zero(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "zeroing {bytes} of {} bytes", self.bytes);
        // SAFETY: the range lies within the allocation, which `self` owns and is borrowed exclusively.
        unsafe { self.ptr.write_bytes(0, bytes) }
    }

    /// The first byte; dangling, but aligned, if there are no bytes. Valid for reads of what has
    /// been written and for writes, while `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    /// They are within [`HostMemory::bytes`] and have been written, and nobody writes them while
    /// the slice lives.
    pub unsafe fn slice(&self, len: usize) -> &[u8] {
        debug_assert!(len <= self.bytes);
        // SAFETY: in range, initialised and unchanging by the caller's promise; alive by the borrow.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), len) }
    }

    /// The first `len` bytes, to be changed.
    ///
    /// # Safety
    /// They are within [`HostMemory::bytes`] and have been written, and nobody else reads or writes
    /// them, through a pointer that was had before, while the slice lives.
    pub unsafe fn slice_mut(&mut self, len: usize) -> &mut [u8] {
        debug_assert!(len <= self.bytes);
        // SAFETY: in range, initialised and unaliased by the caller's promise; alive by the borrow.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), len) }
    }
}

/// Memory that the host sees, and that something else owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostView<'a> {
    pub ptr: NonNull<u8>,
    pub owner: PhantomData<&'a ()>,
}

impl HostView<'_> {
    /// From a byte inside on.
    pub fn from(self, bytes: usize) -> Self {
        // An address only: whoever reads or writes there knows how much follows.
        let ptr = self.ptr.map_addr(|at| at.saturating_add(bytes));
        HostView { ptr, ..self }
    }
}

// SAFETY: as for `HostMemory`.
unsafe impl Send for HostView<'_> {}
// SAFETY: as for `HostMemory`.
unsafe impl Sync for HostView<'_> {}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(layout) = layout(self.bytes).filter(|layout| self.owned && layout.size() > 0) {
            // SAFETY: `new` allocated it with this very layout, and nobody frees it but this drop.
            unsafe { std::alloc::dealloc(self.as_ptr(), layout) }
        }
    }
}

/// The layout of an allocation, a function of its size alone; `None` if no address space holds it.
fn layout(bytes: usize) -> Option<Layout> {
    let align = match bytes {
        HUGE_FROM.. if cfg!(target_os = "linux") => HUGE_PAGE,
        0..PAGES => ALIGN,
        _ => APPLE_PAGE,
    };
    Layout::from_size_align(bytes, align).ok()
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(ptr: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    // SAFETY: the range is one live allocation that starts at a page, and the advice changes how it
    // is backed, not what it holds. A kernel without huge pages refuses it, which does no harm.
    unsafe { madvise(ptr.as_ptr().cast(), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

/// Bytes of memory that the machine has, where the system tells.
#[cfg(target_os = "linux")]
pub fn physical_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes of memory that the machine has, where the system tells.
#[cfg(target_os = "macos")]
pub fn physical_memory() -> Option<usize> {
    crate::device::macos::number(c"hw.memsize").and_then(|bytes| usize::try_from(bytes).ok())
}

/// Bytes of memory that the machine has, where the system tells.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn physical_memory() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zeroed() {
        for bytes in [1, 63, 64, 4096, HUGE_FROM - 1, HUGE_FROM, HUGE_FROM + 12_345] {
            let memory = HostAlloc.alloc(bytes, true).unwrap();
            assert_eq!((memory.bytes(), memory.as_ptr() as usize % ALIGN), (bytes, 0));
            // SAFETY: all of it was zeroed, and nobody else knows of it.
            assert!(unsafe { memory.slice(bytes) }.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn zero_clears_exactly_what_it_is_asked_to() {
        let mut memory = HostAlloc.alloc(256, true).unwrap();
        // SAFETY: it was zeroed, and nobody else knows of it.
        unsafe { memory.slice_mut(256) }.fill(7);
        HostAlloc.zero(&mut memory, 100).unwrap();
        // SAFETY: as above.
        let bytes = unsafe { memory.slice(256) };
        assert!(bytes[..100].iter().all(|&b| b == 0) && bytes[100..].iter().all(|&b| b == 7));
    }

    #[test]
    fn extremes_do_not_allocate() {
        let nothing = HostAlloc.alloc(0, true).unwrap();
        assert_eq!((nothing.bytes(), nothing.as_ptr() as usize % ALIGN), (0, 0));
        assert!(HostAlloc.alloc(usize::MAX, false).is_none());
        assert!(HostAlloc.alloc(isize::MAX as usize / 2, false).is_none());
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn the_machine_has_memory() {
        assert!(physical_memory().unwrap() > 64 << 20);
    }
}
