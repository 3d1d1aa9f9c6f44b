//! A pool of device buffers, generic over how a device allocates.
//!
//! Fresh memory costs more than most kernels: a page fault a page on the host, a driver call on a
//! GPU. A freed buffer is therefore kept, and handed to the next request of its size class. Classes
//! are a quarter of an octave apart, so that a batch that is one row shorter still finds its
//! buffers, while no buffer is over 1.25 times what was asked (above the smallest class).
//!
//! The lock covers bookkeeping only. Whatever takes time (allocating, zeroing, freeing) runs after
//! it is released; memory that is being allocated counts against the limit as pending meanwhile.

use crate::error::{Error, Result};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The smallest size class, in bytes: a cache line.
const MIN_CLASS: usize = 64;

/// How raw memory is had: one implementation a device. Memory is given back by dropping it.
pub trait RawAlloc: Send + Sync + 'static {
    /// A handle that owns its memory.
    type Raw: Send + Sync;

    /// `bytes` of memory, all zero if `zeroed`; `None` when there is none to be had. For 0 bytes it
    /// returns a handle without memory.
    fn alloc(&self, bytes: usize, zeroed: bool) -> Option<Self::Raw>;

    /// Sets the first `bytes` of `raw` to zero.
    ///
    /// # Errors
    /// A device that fails.
    fn zero(&self, raw: &mut Self::Raw, bytes: usize) -> Result<()>;

    /// Whether nothing that was asked for uses the memory any more.
    fn is_idle(&self, raw: &Self::Raw) -> bool {
        let _ = raw;
        true
    }

    /// Whether the system is short of memory: nothing is then kept that fresh memory could take the place of.
    fn is_pressed(&self) -> bool {
        false
    }

    /// Waits until what was freed is free; `false` where that is so at once. An allocation that failed
    /// is tried again after it.
    fn reclaim(&self) -> bool {
        false
    }

    /// The device as error messages call it.
    fn device_name(&self) -> String;
}

/// What a pool may keep, and how much its device may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Free buffers kept of one size class.
    pub max_buffers_per_size: usize,
    /// Bytes kept in free buffers.
    pub max_cached_bytes: usize,
    /// Bytes in use and cached together; `usize::MAX` for no limit.
    pub memory_limit: usize,
    /// Whether freed buffers are kept at all.
    pub enabled: bool,
}

impl Default for PoolConfig {
    /// Up to 4 GiB of free buffers and no limit. The count is a backstop, since the bytes have a cap
    /// of their own: GPT-2's parameters, gradients and Adam moments hold about 300 vectors of one
    /// size, most of which a cap of 32 would allocate anew whenever a step replaces them.
    fn default() -> Self {
        PoolConfig { max_buffers_per_size: 1024, max_cached_bytes: 4 << 30, memory_limit: usize::MAX, enabled: true }
    }
}

/// Counters of a pool. Bytes are those of whole size classes: the memory that is really held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BufferPoolStats {
    /// Requests, whether served or not.
    pub allocation_count: u64,
    /// Requests served by a cached buffer.
    pub reuse_count: u64,
    /// Bytes of the buffers that users hold.
    pub bytes_in_use: usize,
    /// Bytes of the free buffers that the pool keeps.
    pub bytes_cached: usize,
    /// The largest `bytes_in_use` since the pool was made or the peak was reset.
    pub peak_bytes: usize,
    /// Free buffers that the pool keeps.
    pub buffers_cached: usize,
    /// Cached buffers freed to keep to the configuration, or because the device ran out of memory.
    pub evicted_count: u64,
}

/// A pool of buffers; clones share it.
pub struct BufferPool<A: RawAlloc> {
    shared: Arc<Shared<A>>,
}

impl<A: RawAlloc> BufferPool<A> {
    /// An empty pool over `alloc`.
    pub fn new(alloc: A, config: PoolConfig) -> Self {
        let books = Books {
            free: FxHashMap::default(),
            config,
            stats: BufferPoolStats::default(),
            pending_bytes: 0,
            released: 0,
        };
        BufferPool { shared: Arc::new(Shared { alloc, books: Mutex::new(books) }) }
    }

    /// A buffer of at least `bytes` bytes with unspecified contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the limit, or the device, has no room even with an empty cache.
    pub fn get_uninit(&self, bytes: usize) -> Result<Buffer<A>> {
        let (buffer, _) = self.get(bytes, false)?;
        Ok(buffer)
    }

    /// A buffer whose first `bytes` bytes are zero.
    ///
    /// # Errors
    /// As [`BufferPool::get_uninit`]; a device that fails.
    pub fn get_zeroed(&self, bytes: usize) -> Result<Buffer<A>> {
        let (mut buffer, reused) = self.get(bytes, true)?;
        if reused {
            self.shared.alloc.zero(buffer.raw_mut(), bytes)?;
        }
        Ok(buffer)
    }

    /// A buffer of at least `bytes` bytes with unspecified contents that nothing on the device uses any more: the one
    /// that was freed first, or else fresh memory.
    ///
    /// # Errors
    /// As [`BufferPool::get_uninit`].
    pub fn get_idle(&self, bytes: usize) -> Result<Buffer<A>> {
        let class = size_class(bytes);
        let alloc = &self.shared.alloc;
        let cached = self.shared.with_books(|books| books.take_oldest(class, |raw| alloc.is_idle(raw)));
        let (buffer, _) = self.provide(bytes, class, cached, false)?;
        Ok(buffer)
    }

    /// A buffer of fresh memory, which is given back rather than kept when it is dropped. Counters and limit leave it out.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the device has no room.
    pub(crate) fn get_unpooled(&self, bytes: usize, zeroed: bool) -> Result<Buffer<A>> {
        let raw = self.shared.fresh(bytes, zeroed).ok_or_else(|| self.out_of_memory(bytes))?;
        Ok(self.adopt(raw, bytes))
    }

    /// A buffer of memory that was had elsewhere; when it is dropped, the memory is given back rather than kept.
    pub(crate) fn adopt(&self, raw: A::Raw, bytes: usize) -> Buffer<A> {
        Buffer { raw: Some(raw), len: bytes, capacity: 0, home: Arc::clone(&self.shared) }
    }

    /// The counters, all of one moment.
    pub fn stats(&self) -> BufferPoolStats {
        self.shared.with_books(|books| books.stats)
    }

    /// The settings in force.
    pub fn config(&self) -> PoolConfig {
        self.shared.with_books(|books| books.config)
    }

    /// Counts the peak from now on.
    pub fn reset_peak(&self) {
        self.shared.with_books(|books| books.stats.peak_bytes = books.stats.bytes_in_use);
    }

    /// Keeps at most `n` free buffers of a size class; frees the oldest of those beyond.
    pub fn set_max_buffers_per_size(&self, n: usize) {
        self.reconfigure(|config| config.max_buffers_per_size = n);
    }

    /// Keeps at most `n` bytes of free buffers; frees the oldest of those beyond.
    pub fn set_max_cached_bytes(&self, n: usize) {
        self.reconfigure(|config| config.max_cached_bytes = n);
    }

    /// Bounds the bytes in use and cached together. Buffers in use stay; requests that would exceed
    /// the limit fail.
    pub fn set_memory_limit(&self, bytes: Option<usize>) {
        self.reconfigure(|config| config.memory_limit = bytes.unwrap_or(usize::MAX));
    }

    /// Turns the keeping of freed buffers on or off; off frees those that are kept.
    pub fn set_enabled(&self, enabled: bool) {
        self.reconfigure(|config| config.enabled = enabled);
    }

    /// Frees every cached buffer; returns how many bytes that were.
    pub fn shrink_to_fit(&self) -> usize {
        let (bytes, freed) = self.shared.with_books(|books| (books.stats.bytes_cached, books.clear()));
        drop(freed);
        bytes
    }

    fn reconfigure(&self, change: impl FnOnce(&mut PoolConfig)) {
        let evicted = self.shared.with_books(|books| {
            change(&mut books.config);
            books.enforce()
        });
        drop(evicted);
    }

    /// A buffer, and whether it comes from the cache (and so is dirty).
    fn get(&self, bytes: usize, zeroed: bool) -> Result<(Buffer<A>, bool)> {
        let class = size_class(bytes);
        let cached = self.shared.with_books(|books| books.take(class));
        self.provide(bytes, class, cached, zeroed)
    }

    /// What the cache had, or else fresh memory.
    fn provide(&self, bytes: usize, class: usize, cached: Option<A::Raw>, zeroed: bool) -> Result<(Buffer<A>, bool)> {
        let reused = cached.is_some();
        let raw = cached.or_else(|| self.shared.allocate(class, zeroed)).ok_or_else(|| self.out_of_memory(bytes))?;
        let home = Arc::clone(&self.shared);
        Ok((Buffer { raw: Some(raw), len: bytes, capacity: class, home }, reused))
    }

    fn out_of_memory(&self, requested: usize) -> Error {
        let (in_use, limit) = self.shared.with_books(|books| (books.stats.bytes_in_use, books.config.memory_limit));
        Error::OutOfMemory { device: self.shared.alloc.device_name(), requested, in_use, limit }
    }
}

impl<A: RawAlloc> Clone for BufferPool<A> {
    fn clone(&self) -> Self {
        BufferPool { shared: Arc::clone(&self.shared) }
    }
}

impl<A: RawAlloc> fmt::Debug for BufferPool<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("config", &self.config()).field("stats", &self.stats()).finish()
    }
}

/// Memory on loan from a [`BufferPool`]: it goes back when the buffer is dropped.
pub struct Buffer<A: RawAlloc> {
    /// `None` only within `drop`.
    raw: Option<A::Raw>,
    len: usize,
    capacity: usize,
    home: Arc<Shared<A>>,
}

impl<A: RawAlloc> Buffer<A> {
    /// Bytes that were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it was asked for with 0 bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that there are: the size of the class.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The device's handle.
    pub fn raw(&self) -> &A::Raw {
        self.raw.as_ref().expect("only drop takes the memory")
    }

    /// The device's handle, exclusively.
    pub fn raw_mut(&mut self) -> &mut A::Raw {
        self.raw.as_mut().expect("only drop takes the memory")
    }
}

impl<A: RawAlloc> Drop for Buffer<A> {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            let freed = self.home.with_books(|books| books.release(self.capacity, raw));
            drop(freed);
        }
    }
}

impl<A: RawAlloc> fmt::Debug for Buffer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

struct Shared<A: RawAlloc> {
    alloc: A,
    books: Mutex<Books<A::Raw>>,
}

impl<A: RawAlloc> Shared<A> {
    /// Runs `f` under the lock. Memory to be freed is returned by `f`, so that it is dropped after
    /// the lock is. A poisoned lock is entered: no bookkeeping panics half way.
    fn with_books<T>(&self, f: impl FnOnce(&mut Books<A::Raw>) -> T) -> T {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut books)
    }

    /// Fresh memory of a class, at the cost of cached buffers where the limit or the device demands.
    fn allocate(&self, class: usize, zeroed: bool) -> Option<A::Raw> {
        let pressed = self.alloc.is_pressed();
        let evicted = self.with_books(|books| books.reserve(class, pressed))?;
        drop(evicted);
        let raw = self.fresh(class, zeroed);
        self.with_books(|books| books.settle(class, raw.is_some()));
        raw
    }

    /// Memory of the device's, at the cost of the cache where it has no other.
    fn fresh(&self, bytes: usize, zeroed: bool) -> Option<A::Raw> {
        self.alloc.alloc(bytes, zeroed).or_else(|| {
            let evicted = self.with_books(|books| books.evict_down_to(0));
            drop(evicted);
            let raw = self.alloc.alloc(bytes, zeroed);
            if raw.is_none() && self.alloc.reclaim() { self.alloc.alloc(bytes, zeroed) } else { raw }
        })
    }
}

struct Free<R> {
    raw: R,
    /// The value of [`Books::released`] when it came back: the smaller, the older.
    age: u64,
}

/// The bookkeeping. Buffers that a method frees are returned to the caller, to be dropped unlocked.
struct Books<R> {
    /// By class: the front is the oldest; reuse takes the back, which caches may still hold.
    free: FxHashMap<usize, VecDeque<Free<R>>>,
    config: PoolConfig,
    stats: BufferPoolStats,
    /// Bytes of allocations that are under way.
    pending_bytes: usize,
    /// Buffers that came back so far.
    released: u64,
}

impl<R> Books<R> {
    /// Counts a request, and serves it from the cache if that has a buffer of the class.
    fn take(&mut self, class: usize) -> Option<R> {
        self.stats.allocation_count += 1;
        let raw = self.free.get_mut(&class)?.pop_back()?.raw;
        self.reuse(class);
        Some(raw)
    }

    /// As [`Books::take`], but the buffer that came back first, and only if it will do.
    fn take_oldest(&mut self, class: usize, will_do: impl FnOnce(&R) -> bool) -> Option<R> {
        self.stats.allocation_count += 1;
        let queue = self.free.get_mut(&class)?;
        if !will_do(&queue.front()?.raw) {
            return None;
        }
        let raw = queue.pop_front()?.raw;
        self.reuse(class);
        Some(raw)
    }

    fn reuse(&mut self, class: usize) {
        self.stats.reuse_count += 1;
        self.uncached(class);
        self.in_use(class);
    }

    /// Makes room under the limit for an allocation; `None` if the buffers in use leave none. No
    /// allocator goes beyond `isize::MAX`, and with that as a limit no sum of bytes overflows.
    fn reserve(&mut self, class: usize, pressed: bool) -> Option<Vec<R>> {
        let limit = self.config.memory_limit.min(isize::MAX as usize);
        let committed = self.stats.bytes_in_use.checked_add(self.pending_bytes)?.checked_add(class)?;
        if committed > limit {
            return None;
        }
        self.pending_bytes += class;
        Some(self.evict_down_to(if pressed { 0 } else { self.cache_room() }))
    }

    /// Ends what [`Books::reserve`] began.
    fn settle(&mut self, class: usize, allocated: bool) {
        self.pending_bytes -= class;
        if allocated {
            self.in_use(class);
        }
    }

    /// Takes a buffer back. One that the cache has no room for goes straight through: it would
    /// otherwise push out everything else first.
    fn release(&mut self, class: usize, raw: R) -> Vec<R> {
        self.stats.bytes_in_use -= class;
        let room = self.cache_room();
        if class == 0 || class > room || self.config.max_buffers_per_size == 0 {
            return vec![raw];
        }
        self.released += 1;
        let queue = self.free.entry(class).or_default();
        queue.push_back(Free { raw, age: self.released });
        let crowded = queue.len() > self.config.max_buffers_per_size;
        self.stats.bytes_cached += class;
        self.stats.buffers_cached += 1;
        let mut evicted = self.evict_down_to(room);
        if crowded {
            evicted.extend(self.evict_from(class));
        }
        evicted
    }

    /// Applies a changed configuration to what is cached.
    fn enforce(&mut self) -> Vec<R> {
        let mut evicted = self.evict_down_to(self.cache_room());
        let classes: Vec<usize> = self.free.keys().copied().collect();
        for class in classes {
            while self.free[&class].len() > self.config.max_buffers_per_size {
                evicted.extend(self.evict_from(class));
            }
        }
        evicted
    }

    /// Bytes that free buffers may take up now.
    fn cache_room(&self) -> usize {
        let limit = self.config.memory_limit.saturating_sub(self.stats.bytes_in_use + self.pending_bytes);
        if self.config.enabled { limit.min(self.config.max_cached_bytes) } else { 0 }
    }

    fn evict_down_to(&mut self, bytes: usize) -> Vec<R> {
        let mut evicted = Vec::new();
        while self.stats.bytes_cached > bytes
            && let Some(class) = self.oldest_class()
        {
            evicted.extend(self.evict_from(class));
        }
        evicted
    }

    /// The class of the oldest free buffer. A scan of the classes, of which there are tens: cheap
    /// beside the freeing that follows.
    fn oldest_class(&self) -> Option<usize> {
        let fronts = self.free.iter().filter_map(|(&class, queue)| Some((queue.front()?.age, class)));
        fronts.min().map(|(_, class)| class)
    }

    fn evict_from(&mut self, class: usize) -> Option<R> {
        let raw = self.free.get_mut(&class)?.pop_front()?.raw;
        self.stats.evicted_count += 1;
        self.uncached(class);
        Some(raw)
    }

    fn clear(&mut self) -> Vec<R> {
        self.stats.bytes_cached = 0;
        self.stats.buffers_cached = 0;
        std::mem::take(&mut self.free).into_values().flatten().map(|free| free.raw).collect()
    }

    fn uncached(&mut self, class: usize) {
        self.stats.bytes_cached -= class;
        self.stats.buffers_cached -= 1;
    }

    fn in_use(&mut self, class: usize) {
        self.stats.bytes_in_use += class;
        self.stats.peak_bytes = self.stats.peak_bytes.max(self.stats.bytes_in_use);
    }
}

/// The capacity that serves a request: the next of four steps an octave, at least [`MIN_CLASS`];
/// 0 for 0. Saturates, since no allocator serves a size near `usize::MAX`.
fn size_class(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let bytes = bytes.max(MIN_CLASS);
    let step = 1 << (bytes.ilog2() - 2);
    bytes.checked_next_multiple_of(step).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    /// A device of `room` bytes that counts what it gave out.
    #[derive(Clone)]
    struct Mock(Arc<Device>);

    #[derive(Default)]
    struct Device {
        room: usize,
        live: AtomicUsize,
        calls: AtomicUsize,
        pressed: AtomicBool,
    }

    /// The first byte of memory that the device still uses.
    const BUSY: u8 = 0xBB;

    struct MockRaw {
        bytes: Vec<u8>,
        device: Arc<Device>,
    }

    impl Drop for MockRaw {
        fn drop(&mut self) {
            self.device.live.fetch_sub(self.bytes.len(), SeqCst);
        }
    }

    impl RawAlloc for Mock {
        type Raw = MockRaw;

        fn alloc(&self, bytes: usize, zeroed: bool) -> Option<MockRaw> {
            self.0.calls.fetch_add(1, SeqCst);
            let fits = |live: usize| live.checked_add(bytes).filter(|&total| total <= self.0.room);
            self.0.live.fetch_update(SeqCst, SeqCst, fits).ok()?;
            Some(MockRaw { bytes: vec![if zeroed { 0 } else { 0xAA }; bytes], device: Arc::clone(&self.0) })
        }

        fn zero(&self, raw: &mut MockRaw, bytes: usize) -> Result<()> {
            raw.bytes[..bytes].fill(0);
            Ok(())
        }

        fn is_idle(&self, raw: &MockRaw) -> bool {
            raw.bytes[0] != BUSY
        }

        fn is_pressed(&self) -> bool {
            self.0.pressed.load(SeqCst)
        }

        fn device_name(&self) -> String {
            "mock".into()
        }
    }

    fn pool_of(room: usize, config: PoolConfig) -> (BufferPool<Mock>, Arc<Device>) {
        let device = Arc::new(Device { room, ..Device::default() });
        (BufferPool::new(Mock(Arc::clone(&device)), config), device)
    }

    fn pool() -> (BufferPool<Mock>, Arc<Device>) {
        pool_of(1 << 30, PoolConfig::default())
    }

    /// Has one buffer of each size come and go, all live at once, freed in the order given.
    fn cycle(pool: &BufferPool<Mock>, sizes: &[usize]) {
        let held: Vec<_> = sizes.iter().map(|&bytes| pool.get_uninit(bytes).unwrap()).collect();
        drop(held);
    }

    #[test]
    fn classes_are_tight_and_monotonic() {
        assert_eq!([0, 1, 64, 65, 100, 1025, 1280].map(size_class), [0, 64, 64, 80, 112, 1280, 1280]);
        let mut last = 0;
        for bytes in (64..20_000).chain([1 << 20, (1 << 20) + 1, 3_000_000_001]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class <= bytes + bytes / 4, "{bytes} -> {class}");
            assert!(class >= last && size_class(class) == class);
            last = class;
        }
        assert_eq!(size_class(usize::MAX), usize::MAX);
    }

    #[test]
    fn a_freed_buffer_serves_its_class_only() {
        let (pool, device) = pool();
        cycle(&pool, &[1000]);
        let same = pool.get_uninit(900).unwrap();
        assert_eq!((same.len(), same.capacity(), device.calls.load(SeqCst)), (900, 1024, 1));
        drop(same);
        let smaller = pool.get_uninit(400).unwrap();
        assert!(smaller.capacity() <= 2 * smaller.len());
        assert_eq!(device.calls.load(SeqCst), 2);
    }

    #[test]
    fn stats_are_exact() {
        let (pool, device) = pool();
        cycle(&pool, &[1024, 2048]);
        let held = pool.get_uninit(1024).unwrap();
        let expected = BufferPoolStats {
            allocation_count: 3,
            reuse_count: 1,
            bytes_in_use: 1024,
            bytes_cached: 2048,
            peak_bytes: 3072,
            buffers_cached: 1,
            evicted_count: 0,
        };
        assert_eq!(pool.stats(), expected);
        assert_eq!(device.live.load(SeqCst), 3072);
        pool.reset_peak();
        assert_eq!(pool.stats().peak_bytes, 1024);
        drop(held);
        assert_eq!(pool.shrink_to_fit(), 3072);
        assert_eq!((pool.stats().bytes_cached, pool.stats().buffers_cached, device.live.load(SeqCst)), (0, 0, 0));
    }

    #[test]
    fn a_dirty_buffer_is_zeroed() {
        let (pool, _) = pool();
        let mut dirty = pool.get_uninit(128).unwrap();
        dirty.raw_mut().bytes.fill(7);
        drop(dirty);
        let clean = pool.get_zeroed(120).unwrap();
        assert_eq!(pool.stats().reuse_count, 1);
        assert!(clean.raw().bytes[..120].iter().all(|&b| b == 0));
        assert!(pool.get_zeroed(120).unwrap().raw().bytes.iter().all(|&b| b == 0));
    }

    #[test]
    fn the_oldest_goes_first() {
        let config = PoolConfig { max_cached_bytes: 4096, ..PoolConfig::default() };
        let (pool, device) = pool_of(1 << 20, config);
        cycle(&pool, &[1024, 2048, 1024, 512]);
        assert_eq!((pool.stats().bytes_cached, pool.stats().evicted_count), (3584, 1));
        pool.set_max_cached_bytes(1536);
        assert_eq!((pool.stats().bytes_cached, pool.stats().buffers_cached), (1536, 2));
        let calls = device.calls.load(SeqCst);
        cycle(&pool, &[1024, 512]);
        assert_eq!(device.calls.load(SeqCst), calls);
    }

    #[test]
    fn what_exceeds_the_cap_alone_evicts_nothing() {
        let (pool, device) = pool_of(1 << 20, PoolConfig { max_cached_bytes: 4096, ..PoolConfig::default() });
        cycle(&pool, &[1024, 8192]);
        assert_eq!((pool.stats().bytes_cached, pool.stats().evicted_count), (1024, 0));
        assert_eq!(device.live.load(SeqCst), 1024);
    }

    #[test]
    fn a_class_has_a_count_of_its_own() {
        let (pool, device) = pool_of(1 << 20, PoolConfig { max_buffers_per_size: 2, ..PoolConfig::default() });
        cycle(&pool, &[256, 256, 256, 512]);
        assert_eq!((pool.stats().buffers_cached, pool.stats().evicted_count), (3, 1));
        pool.set_max_buffers_per_size(1);
        assert_eq!((pool.stats().buffers_cached, pool.stats().evicted_count), (2, 2));
        pool.set_max_buffers_per_size(0);
        cycle(&pool, &[256]);
        assert_eq!((pool.stats().buffers_cached, device.live.load(SeqCst)), (0, 0));
    }

    #[test]
    fn the_limit_counts_the_cache_but_can_use_it() {
        let (pool, device) = pool_of(1 << 20, PoolConfig { memory_limit: 4096, ..PoolConfig::default() });
        cycle(&pool, &[2048, 1024]);
        let large = pool.get_uninit(4096).unwrap();
        assert_eq!((device.live.load(SeqCst), pool.stats().evicted_count), (4096, 2));
        let refused = pool.get_uninit(1).unwrap_err();
        let expected = Error::OutOfMemory { device: "mock".into(), requested: 1, in_use: 4096, limit: 4096 };
        assert_eq!(refused, expected);
        pool.set_memory_limit(Some(1024));
        drop(large);
        assert_eq!(pool.stats().bytes_cached, 0);
        pool.set_memory_limit(None);
        assert!(pool.get_uninit(100_000).is_ok());
    }

    #[test]
    fn a_full_device_gets_its_cache_back() {
        let (pool, device) = pool_of(4096, PoolConfig::default());
        cycle(&pool, &[1024, 2048]);
        let held = pool.get_uninit(4096).unwrap();
        assert_eq!((pool.stats().bytes_cached, device.live.load(SeqCst)), (0, 4096));
        assert!(matches!(pool.get_zeroed(64), Err(Error::OutOfMemory { requested: 64, limit: usize::MAX, .. })));
        assert!(pool.get_uninit(usize::MAX).is_err());
        drop(held);
        assert_eq!((pool.stats().bytes_in_use, pool.stats().peak_bytes), (0, 4096));
        assert!(pool.get_uninit(4096).is_ok());
    }

    #[test]
    fn a_system_short_of_memory_gets_the_cache() {
        let (pool, device) = pool();
        drop((pool.get_uninit(100).unwrap(), pool.get_uninit(5000).unwrap()));
        device.pressed.store(true, SeqCst);
        // What the cache serves costs nobody anything.
        drop(pool.get_uninit(100).unwrap());
        assert_eq!(pool.stats().buffers_cached, 2);
        let other = pool.get_uninit(1000).unwrap();
        assert_eq!((pool.stats().buffers_cached, device.live.load(SeqCst)), (0, other.capacity()));
    }

    #[test]
    fn idle_memory_is_the_oldest_or_fresh() {
        let (pool, device) = pool();
        let [mut first, second, third] = [0; 3].map(|_| pool.get_uninit(100).unwrap());
        first.raw_mut().bytes[1] = 1;
        drop(first);
        drop(second);
        drop(third);
        let mut taken = pool.get_idle(100).unwrap();
        assert_eq!((taken.raw().bytes[1], device.calls.load(SeqCst)), (1, 3));
        taken.raw_mut().bytes[0] = BUSY;
        let (next, last) = (pool.get_idle(100).unwrap(), pool.get_idle(100).unwrap());
        assert_eq!(device.calls.load(SeqCst), 3);
        drop(taken);
        let fresh = pool.get_idle(100).unwrap();
        assert_eq!((fresh.raw().bytes[0], device.calls.load(SeqCst)), (0xAA, 4));
        let stats = pool.stats();
        assert_eq!((stats.allocation_count, stats.reuse_count, stats.buffers_cached), (7, 3, 1));
        drop((next, last));
    }

    #[test]
    fn what_bypasses_the_pool_does_not_come_back_to_it() {
        let (pool, device) = pool();
        let buffer = pool.get_unpooled(100, true).unwrap();
        assert_eq!((buffer.len(), buffer.raw().bytes.clone(), pool.stats().bytes_in_use), (100, vec![0; 100], 0));
        drop(buffer);
        assert_eq!((device.live.load(SeqCst), pool.stats()), (0, BufferPoolStats::default()));
    }

    #[test]
    fn a_disabled_pool_keeps_nothing() {
        let (pool, device) = pool();
        cycle(&pool, &[1024]);
        pool.set_enabled(false);
        assert_eq!(device.live.load(SeqCst), 0);
        cycle(&pool, &[1024]);
        let stats = pool.stats();
        assert_eq!((stats.allocation_count, stats.reuse_count, stats.bytes_cached), (2, 0, 0));
        assert_eq!((device.calls.load(SeqCst), device.live.load(SeqCst)), (2, 0));
    }

    #[test]
    fn nothing_is_a_legal_request() {
        let (pool, device) = pool_of(0, PoolConfig { memory_limit: 0, ..PoolConfig::default() });
        let empty = pool.get_zeroed(0).unwrap();
        assert!(empty.is_empty() && empty.capacity() == 0);
        drop(empty);
        let expected = BufferPoolStats { allocation_count: 1, ..BufferPoolStats::default() };
        assert_eq!((pool.stats(), device.live.load(SeqCst)), (expected, 0));
    }

    #[test]
    fn a_buffer_outlives_the_handle_to_its_pool() {
        let (pool, device) = pool();
        let buffer = pool.get_uninit(512).unwrap();
        drop(pool);
        assert_eq!(buffer.raw().bytes.len(), 512);
        drop(buffer);
        assert_eq!(device.live.load(SeqCst), 0);
    }

    #[test]
    fn threads_share_a_pool_within_its_limit() {
        let (pool, device) = pool_of(1 << 16, PoolConfig { memory_limit: 1 << 16, ..PoolConfig::default() });
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for i in 0..500 {
                        let mut buffer = pool.get_zeroed(64 << ((i + thread) % 8)).unwrap();
                        assert!(buffer.raw().bytes[..buffer.len()].iter().all(|&b| b == 0));
                        buffer.raw_mut().bytes.fill(thread as u8 + 1);
                    }
                });
            }
        });
        let stats = pool.stats();
        assert_eq!((stats.allocation_count, stats.bytes_in_use), (2000, 0));
        assert_eq!(stats.bytes_cached, device.live.load(SeqCst));
        assert_eq!(stats.reuse_count + device.calls.load(SeqCst) as u64, 2000);
    }
}
