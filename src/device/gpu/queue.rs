//! The queue of one GPU: which dispatches have to wait for which, when work is sent off, and when the host may touch
//! memory that it shares with the device.
//!
//! Memory is told apart by allocation. A dispatch that writes what was read or written since the last
//! barrier, or reads what was written, comes behind a new one. Everything else may overlap. Where memory is unified,
//! each allocation has the tickets of the last work that reads and writes it: the host waits for those, and memory is
//! freed after them.

use super::driver::{
    Address, Dispatch, Driver, DriverResult, Function, LibraryProduct, Limits, List, Mark, Ticket, Transfer, Unified,
    Work,
};
use crate::device::lock;
use crate::device::memory::Storage;
use crate::error::{Error, Result};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes of bound buffers after which work is sent off, however few the dispatches: they take longer
/// than the next ones take to record.
const BATCH_BYTES: usize = 256 << 20;

/// Estimated time of the device's after which work is sent off.
const BATCH_MICROSECONDS: f64 = 100_000.0;

static DISPATCHES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DISPATCHES_OF_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// What all GPUs were asked to run so far.
pub(crate) fn dispatches() -> u64 {
    DISPATCHES.load(Ordering::Relaxed)
}

/// What this thread asked GPUs to run so far.
pub(crate) fn dispatches_of_thread() -> u64 {
    DISPATCHES_OF_THREAD.get()
}

/// A whole allocation that a launch is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub address: Address,
    pub bytes: usize,
    pub writes: bool,
}

/// One run of a kernel, as [`Dispatch`] has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub function: Function,
    pub name: &'a str,
    pub groups: [u32; 3],
    pub threads: u32,
    pub block_bytes: u32,
    pub buffers: &'a [Bound],
    pub args: &'a [u8],
    pub indirect: &'a [Bound],
    /// Arithmetic operations, about.
    pub operations: f64,
}

/// Work that is gathered, to run as one.
#[derive(Default)]
pub(crate) struct WorkList<'a> {
    items: Vec<Item<'a>>,
    /// Memory that is free once the work is in the queue.
    pub held: Vec<Storage>,
}

struct Item<'a> {
    piece: Piece<'a>,
    buffers: SmallVec<[Bound; 8]>,
    indirect: SmallVec<[Bound; 4]>,
    operations: f64,
}

enum Piece<'a> {
    Launch {
        function: Function,
        name: &'a str,
        groups: [u32; 3],
        threads: u32,
        block_bytes: u32,
        args: SmallVec<[u8; 256]>,
    },
    Product(LibraryProduct),
}

impl<'a> WorkList<'a> {
    pub fn launch(&mut self, name: &'a str, launch: &Launch) {
        let &Launch { function, groups, threads, block_bytes, buffers, args, indirect, operations, .. } = launch;
        let piece = Piece::Launch { function, name, groups, threads, block_bytes, args: SmallVec::from_slice(args) };
        let (buffers, indirect) = (SmallVec::from_slice(buffers), SmallVec::from_slice(indirect));
        self.items.push(Item { piece, buffers, indirect, operations });
    }

    pub fn product(&mut self, product: &LibraryProduct, buffers: &[Bound]) {
        let (piece, operations) = (Piece::Product(*product), operations(product));
        self.items.push(Item { piece, buffers: SmallVec::from_slice(buffers), indirect: SmallVec::new(), operations });
    }
}

/// What a driver has prepared for a list of work.
pub(crate) struct Prepared {
    queue: Arc<Queue>,
    list: Mutex<Option<List>>,
}

impl Prepared {
    pub fn new(queue: Arc<Queue>) -> Prepared {
        Prepared { queue, list: Mutex::default() }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(list) = lock(&self.list).take() {
            self.queue.driver.drop_list(list);
        }
    }
}

fn operations(product: &LibraryProduct) -> f64 {
    let LibraryProduct { m, n, k, batch, .. } = *product;
    2.0 * [m, n, k, batch].map(|size| size as f64).iter().product::<f64>()
}

/// What keeps the host's memory in place that a device has imported.
pub(crate) type Owner = Option<Arc<Storage>>;

/// A driver, and what was asked of it.
pub(crate) struct Queue {
    driver: Arc<dyn Driver>,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Allocations read and written since the last barrier.
    read: FxHashSet<Address>,
    written: FxHashSet<Address>,
    /// Since the last commit; the time is estimated.
    dispatches: usize,
    bytes: usize,
    microseconds: f64,
    /// Commits since the device was last found idle, up to a batch's worth of them.
    commits: u32,
    /// The last commit, and whether anything came after it.
    ticket: Ticket,
    dirty: bool,
    /// Of each allocation that work was given, where memory is unified.
    uses: FxHashMap<Address, Use>,
    retired: Vec<Retired>,
    /// The dispatches since somebody began to take their times.
    profile: Option<Vec<Profiled>>,
}

/// The last work that reads and writes an allocation; the ticket 0, which has passed, where nothing did.
#[derive(Clone, Copy, Default)]
struct Use {
    read: Ticket,
    written: Ticket,
}

impl Use {
    fn last(self) -> Ticket {
        self.read.max(self.written)
    }
}

/// An allocation to be freed once a ticket has passed.
struct Retired {
    ticket: Ticket,
    address: Address,
    bytes: usize,
    owner: Owner,
}

/// A dispatch between two marks.
struct Profiled {
    /// `None` if it came to nothing.
    name: Option<String>,
    from: Mark,
    to: Mark,
}

impl Queue {
    pub fn new(driver: Arc<dyn Driver>) -> Queue {
        let limits = driver.limits();
        // What a driver does by itself at the start counts.
        Queue { driver, limits, state: Mutex::new(State { dirty: true, ..State::default() }) }
    }

    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A driver's failure as an error.
    pub fn failed<T>(&self, op: &'static str, result: DriverResult<T>) -> Result<T> {
        result.map_err(|reason| Error::DeviceFailed { device: self.driver.name(), op, reason })
    }

    /// Keeps what comes next behind what it depends on.
    fn order<'a>(&self, state: &mut State, buffers: impl Iterator<Item = &'a Bound> + Clone) {
        state.dirty = true;
        if self.limits.in_order {
            return;
        }
        let hazard = |b: &Bound| state.written.contains(&b.address) || (b.writes && state.read.contains(&b.address));
        if buffers.clone().any(hazard) {
            self.driver.barrier();
            state.read.clear();
            state.written.clear();
        }
        let next = Ticket(state.ticket.0 + 1);
        let unified = self.unified().is_some();
        for buffer in buffers {
            let set = if buffer.writes { &mut state.written } else { &mut state.read };
            set.insert(buffer.address);
            if unified {
                let used = state.uses.entry(buffer.address).or_default();
                *(if buffer.writes { &mut used.written } else { &mut used.read }) = next;
            }
        }
    }

    /// Counts a dispatch, and sends off what there is when that is due.
    fn dispatched(&self, state: &mut State, bytes: usize, operations: f64) -> Result<()> {
        DISPATCHES.fetch_add(1, Ordering::Relaxed);
        DISPATCHES_OF_THREAD.set(DISPATCHES_OF_THREAD.get() + 1);
        let Some(batch) = self.limits.batch else { return Ok(()) };
        if self.driver.is_done(state.ticket) {
            state.commits = 0;
        }
        state.dispatches += 1;
        state.bytes = state.bytes.saturating_add(bytes);
        state.microseconds +=
            (bytes as f64 / batch.bytes_per_microsecond).max(operations / batch.operations_per_microsecond);
        // An idle device starts at the first dispatch; from there on batches grow.
        let many = state.dispatches >= batch.dispatches.min(1 << state.commits.min(16));
        if many || state.bytes >= BATCH_BYTES || state.microseconds >= BATCH_MICROSECONDS {
            self.commit_in(state)?;
            state.commits += 1;
        }
        Ok(())
    }

    fn commit_in(&self, state: &mut State) -> Result<Ticket> {
        if state.dirty {
            let ticket = self.failed("commit", self.driver.commit())?;
            debug_assert_eq!(ticket.0, state.ticket.0 + 1);
            state.ticket = ticket;
            (state.dirty, state.dispatches, state.bytes, state.microseconds) = (false, 0, 0, 0.0);
        }
        Ok(state.ticket)
    }

    /// The memory that the host shares with the device, if it does.
    pub fn unified(&self) -> Option<&dyn Unified> {
        match self.driver.transfer() {
            Transfer::Unified(unified) => Some(unified),
            Transfer::Copies(_) => None,
        }
    }

    /// The last work that keeps the host from reading allocations, or from writing those that are bound for writing; it
    /// is sent off. `None` where nothing ever did.
    ///
    /// # Errors
    /// A device that fails.
    pub fn due(&self, buffers: impl Iterator<Item = Bound>) -> Result<Option<Ticket>> {
        let mut state = self.state();
        let last = |b: Bound| {
            let used = state.uses.get(&b.address)?;
            Some(if b.writes { used.last() } else { used.written })
        };
        let ticket = buffers.filter_map(last).max().filter(|ticket| ticket.0 > 0);
        // Whoever waits has the device go on meanwhile.
        if ticket.is_some_and(|ticket| !self.driver.is_done(ticket)) {
            self.commit_in(&mut state)?;
        }
        Ok(ticket)
    }

    /// Where the host may read an allocation, or write it, from an offset on: waits until nothing is in the way.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn settled(&self, unified: &dyn Unified, bound: Bound, offset: usize) -> Result<NonNull<u8>> {
        if let Some(ticket) = self.due([bound].into_iter())? {
            self.wait(ticket)?;
        }
        self.failed("host access", unified.host(bound.address.at(offset), bound.bytes, bound.writes))
    }

    /// Where the host finds an allocation, once nothing keeps it from reading it, or from writing it if it is bound for
    /// writing; `None` where the device has memory of its own.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn host(&self, bound: Bound) -> Result<Option<NonNull<u8>>> {
        self.unified().map(|unified| self.settled(unified, bound, 0)).transpose()
    }

    /// Whether the host may write an allocation at once.
    pub fn is_idle(&self, address: Address) -> bool {
        let used = self.state().uses.get(&address).copied().unwrap_or_default();
        self.driver.is_done(used.last())
    }

    /// Takes an allocation back, and lets go of its owner, when nothing uses it any more.
    pub fn free(&self, address: Address, bytes: usize, owner: Owner) {
        if self.unified().is_none() {
            self.driver.free(address, bytes);
            return;
        }
        let mut state = self.state();
        let used = state.uses.remove(&address).unwrap_or_default();
        let ticket = used.last();
        if owner.is_some() && ticket > state.ticket {
            // Others' memory is not to wait for more work; a device that fails says so to whoever waits.
            let _ = self.commit_in(&mut state);
        }
        state.retired.push(Retired { ticket, address, bytes, owner });
        let owners = self.collect(&mut state);
        drop(state);
        drop(owners);
    }

    /// Frees what nothing uses any more. Owners are to be let go of when the lock is released.
    fn collect(&self, state: &mut State) -> Vec<Owner> {
        let is_free = |retired: &mut Retired| self.driver.is_done(retired.ticket);
        let free = state.retired.extract_if(.., is_free).map(|retired| {
            self.driver.free(retired.address, retired.bytes);
            retired.owner
        });
        free.collect()
    }

    /// Runs a kernel behind what it depends on.
    ///
    /// # Errors
    /// A device that fails.
    pub fn submit(&self, launch: &Launch) -> Result<()> {
        let (buffers, indirect): (SmallVec<[Address; 8]>, SmallVec<[Address; 8]>) =
            (addresses(launch.buffers).collect(), addresses(launch.indirect).collect());
        let Launch { function, name, groups, threads, block_bytes, args, operations, .. } = *launch;
        let (buffers, indirect) = (&buffers[..], &indirect[..]);
        let dispatch = Dispatch { function, name, groups, threads, block_bytes, buffers, args, indirect };
        let all = launch.buffers.iter().chain(launch.indirect);
        let mut state = self.state();
        self.order(&mut state, all.clone());
        self.profiled(&mut state, name, || self.driver.dispatch(&dispatch).map(|()| true))?;
        self.dispatched(&mut state, all.map(|b| b.bytes).sum(), operations)
    }

    /// Asks for a dispatch, between two marks if times are taken. `work` says whether there is one.
    fn profiled(&self, state: &mut State, name: &str, work: impl FnOnce() -> DriverResult<bool>) -> Result<bool> {
        if state.profile.is_none() {
            return self.failed("dispatch", work());
        }
        let from = self.mark_in(state)?;
        let done = self.failed("dispatch", work());
        let to = self.mark_in(state)?;
        let name = if done == Ok(true) { Some(name.into()) } else { None };
        state.profile.iter_mut().for_each(|list| list.push(Profiled { name: name.clone(), from, to }));
        done
    }

    /// Multiplies by the vendor's library, over the allocations `buffers`; `false` if it does not.
    ///
    /// # Errors
    /// A device that fails.
    pub fn library_product(&self, product: &LibraryProduct, buffers: &[Bound]) -> Result<bool> {
        let mut state = self.state();
        self.order(&mut state, buffers.iter());
        let done = self.profiled(&mut state, "library_product", || self.driver.library_product(product))?;
        if done {
            self.dispatched(&mut state, buffers.iter().map(|b| b.bytes).sum(), operations(product))?;
        }
        Ok(done)
    }

    /// Whether a list of work runs faster than its pieces, and nobody takes their times.
    pub fn has_lists(&self) -> bool {
        self.driver.has_lists() && self.state().profile.is_none()
    }

    /// Runs a list of work, for which something was prepared before, if it is not the first time. Nothing overlaps in it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn submit_list(&self, prepared: &Prepared, work: &WorkList) -> Result<()> {
        let mut list = lock(&prepared.list);
        type Addresses = SmallVec<[Address; 8]>;
        let of = |item: &Item| -> [Addresses; 2] {
            [addresses(&item.buffers).collect(), addresses(&item.indirect).collect()]
        };
        let addresses: Vec<[Addresses; 2]> = work.items.iter().map(of).collect();
        let mut pieces: SmallVec<[Work; 16]> = SmallVec::with_capacity(work.items.len());
        for (item, [buffers, indirect]) in work.items.iter().zip(&addresses) {
            pieces.push(match &item.piece {
                Piece::Product(product) => Work::Product(*product),
                Piece::Launch { function, name, groups, threads, block_bytes, args } => Work::Dispatch(Dispatch {
                    function: *function,
                    name,
                    groups: *groups,
                    threads: *threads,
                    block_bytes: *block_bytes,
                    buffers,
                    args,
                    indirect,
                }),
            });
        }
        let mut state = self.state();
        self.order(&mut state, work.items.iter().flat_map(|item| item.buffers.iter().chain(&item.indirect)));
        self.failed("dispatch", self.driver.run_list(&mut list, &pieces))?;
        for item in &work.items {
            let bytes = item.buffers.iter().chain(&item.indirect).map(|b| b.bytes).sum();
            self.dispatched(&mut state, bytes, item.operations)?;
        }
        Ok(())
    }

    /// Copies `bytes` bytes from offset `offset` of one allocation to the start of another.
    ///
    /// # Errors
    /// A device that fails.
    pub fn copy(&self, from: Address, offset: usize, to: Address, bytes: usize) -> Result<()> {
        let [source, target] = [(from, false), (to, true)].map(|(address, writes)| Bound { address, bytes, writes });
        match self.driver.transfer() {
            Transfer::Copies(copies) => {
                let mut state = self.state();
                self.order(&mut state, [source, target].iter());
                self.failed("copy", copies.copy(from.at(offset), to, bytes))
            }
            Transfer::Unified(_) => Err(Error::internal("gpu::queue", "memory that is shared need not be copied")),
        }
    }

    /// Sets an allocation to zero.
    ///
    /// # Errors
    /// A device that fails.
    pub fn zero(&self, to: Bound) -> Result<()> {
        match self.driver.transfer() {
            Transfer::Copies(copies) => {
                let mut state = self.state();
                self.order(&mut state, [to].iter());
                self.failed("zero", copies.zero(to.address, to.bytes))
            }
            Transfer::Unified(unified) => {
                let host = self.settled(unified, to, 0)?;
                // SAFETY: it is there with that many bytes, by the driver; nothing on the device uses it, by `settled`,
                // and nobody else has it, by the caller.
                unsafe { host.write_bytes(0, to.bytes) };
                Ok(())
            }
        }
    }

    /// Copies host bytes to the start of an allocation.
    ///
    /// # Errors
    /// A device that fails.
    pub fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let target = Bound { address: to, bytes: bytes.len(), writes: true };
        match self.driver.transfer() {
            Transfer::Copies(copies) => {
                let mut state = self.state();
                self.order(&mut state, [target].iter());
                self.failed("write", copies.write(to, bytes))
            }
            Transfer::Unified(unified) => {
                let host = self.settled(unified, target, 0)?;
                // SAFETY: as in `zero`; the bytes are the caller's, and not the device's.
                unsafe { host.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
                Ok(())
            }
        }
    }

    /// Copies from offset `offset` of an allocation to the host, when what was asked for and writes it has run. Others
    /// may submit meanwhile.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn read(&self, from: Address, offset: usize, out: &mut [u8]) -> Result<()> {
        let source = Bound { address: from, bytes: out.len(), writes: false };
        match self.driver.transfer() {
            Transfer::Copies(copies) => {
                self.drain()?;
                let mut state = self.state();
                self.order(&mut state, [source].iter());
                self.failed("read", copies.read(from.at(offset), out))
            }
            Transfer::Unified(unified) => {
                let host = self.settled(unified, source, offset)?;
                // SAFETY: it is there with that many bytes, by the driver; nothing on the device writes it, by
                // `settled`, and nothing new will while somebody reads it, by the caller. `out` is the caller's.
                unsafe { host.copy_to_nonoverlapping(NonNull::from(&mut *out).cast(), out.len()) };
                Ok(())
            }
        }
    }

    /// Sends off what there is. The ticket names it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn commit(&self) -> Result<Ticket> {
        self.commit_in(&mut self.state())
    }

    /// Waits for a commit; others may submit meanwhile.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn wait(&self, ticket: Ticket) -> Result<()> {
        let waited = self.failed("wait", self.driver.wait(ticket));
        let mut state = self.state();
        let owners = self.collect(&mut state);
        drop(state);
        drop(owners);
        waited
    }

    /// Waits until all that was asked for has run.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn drain(&self) -> Result<()> {
        let ticket = self.commit()?;
        self.wait(ticket)
    }

    /// Notes the device's time, once what was asked for has run.
    ///
    /// # Errors
    /// A device that fails.
    pub fn mark(&self) -> Result<Mark> {
        self.mark_in(&mut self.state())
    }

    fn mark_in(&self, state: &mut State) -> Result<Mark> {
        self.driver.barrier();
        state.read.clear();
        state.written.clear();
        state.dirty = true;
        self.failed("mark", self.driver.mark())
    }

    /// Takes the time of each dispatch from here on; they no longer overlap.
    pub fn start_profile(&self) {
        self.state().profile.get_or_insert_default();
    }

    /// The names and times of the dispatches since then, in order; ends it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn take_profile(&self) -> Result<Vec<(String, Duration)>> {
        let list = self.state().profile.take().unwrap_or_default();
        // All marks are given back, whatever becomes of the first.
        let times: Vec<_> = list.into_iter().map(|p| (p.name, self.elapsed(p.from, p.to))).collect();
        times.into_iter().filter_map(|(name, time)| name.map(|name| Ok((name, time?)))).collect()
    }

    /// The device's time between two marks.
    ///
    /// # Errors
    /// A device that fails.
    pub fn elapsed(&self, from: Mark, to: Mark) -> Result<Duration> {
        self.drain()?;
        let _state = self.state();
        self.failed("elapsed", self.driver.elapsed(from, to))
    }
}

impl Drop for Queue {
    /// Others' memory is in use until then.
    fn drop(&mut self) {
        if self.unified().is_some() {
            let _ = self.drain();
        }
    }
}

fn addresses(buffers: &[Bound]) -> impl Iterator<Item = Address> {
    buffers.iter().map(|b| b.address)
}

impl Address {
    /// The address `offset` bytes further.
    pub fn at(self, offset: usize) -> Address {
        Address(self.0 + offset as u64)
    }
}
