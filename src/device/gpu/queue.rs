//! The queue of one GPU: which dispatches have to wait for which, and when work is sent off.
//!
//! Memory is told apart by allocation. A dispatch that writes what was read or written since the last
//! barrier, or reads what was written, comes behind a new one. Everything else may overlap.

use super::driver::{Address, Dispatch, Driver, DriverResult, Function, LibraryProduct, Limits, Mark, Ticket};
use crate::device::lock;
use crate::error::{Error, Result};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Bytes of bound buffers after which work is sent off, however few the dispatches: they take longer
/// than the next ones take to record.
const BATCH_BYTES: usize = 256 << 20;

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
    pub buffers: &'a [Bound],
    pub args: &'a [u8],
    pub indirect: &'a [Bound],
}

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
    /// Since the last commit.
    dispatches: usize,
    bytes: usize,
    /// Commits since the queue was last waited for, up to a batch's worth of them.
    commits: u32,
    /// The last commit, and whether anything came after it.
    ticket: Ticket,
    dirty: bool,
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
        let hazard = |b: &Bound| state.written.contains(&b.address) || (b.writes && state.read.contains(&b.address));
        if buffers.clone().any(hazard) {
            self.driver.barrier();
            state.read.clear();
            state.written.clear();
        }
        for buffer in buffers {
            let set = if buffer.writes { &mut state.written } else { &mut state.read };
            set.insert(buffer.address);
        }
        state.dirty = true;
    }

    /// Counts a dispatch over `bytes` bytes, and sends off what there is when that is due.
    fn dispatched(&self, state: &mut State, bytes: usize) -> Result<()> {
        DISPATCHES.fetch_add(1, Ordering::Relaxed);
        DISPATCHES_OF_THREAD.set(DISPATCHES_OF_THREAD.get() + 1);
        state.dispatches += 1;
        state.bytes = state.bytes.saturating_add(bytes);
        // An idle device starts at the first dispatch; from there on batches grow.
        let batch = self.limits.batch.min(1 << state.commits.min(16));
        if self.limits.batch > 0 && (state.dispatches >= batch || state.bytes >= BATCH_BYTES) {
            self.commit_in(state)?;
            state.commits += 1;
        }
        Ok(())
    }

    fn commit_in(&self, state: &mut State) -> Result<Ticket> {
        if state.dirty {
            state.ticket = self.failed("commit", self.driver.commit())?;
            (state.dirty, state.dispatches, state.bytes) = (false, 0, 0);
        }
        Ok(state.ticket)
    }

    /// Runs a kernel behind what it depends on.
    ///
    /// # Errors
    /// A device that fails.
    pub fn submit(&self, launch: &Launch) -> Result<()> {
        let (buffers, indirect): (SmallVec<[Address; 8]>, SmallVec<[Address; 8]>) =
            (addresses(launch.buffers).collect(), addresses(launch.indirect).collect());
        let Launch { function, name, groups, threads, args, .. } = *launch;
        let dispatch = Dispatch { function, name, groups, threads, buffers: &buffers, args, indirect: &indirect };
        let all = launch.buffers.iter().chain(launch.indirect);
        let mut state = self.state();
        self.order(&mut state, all.clone());
        self.failed("dispatch", self.driver.dispatch(&dispatch))?;
        self.dispatched(&mut state, all.map(|b| b.bytes).sum())
    }

    /// Multiplies by the vendor's library, over the allocations `buffers`; `false` if it does not.
    ///
    /// # Errors
    /// A device that fails.
    pub fn library_product(&self, product: &LibraryProduct, buffers: &[Bound]) -> Result<bool> {
        let mut state = self.state();
        self.order(&mut state, buffers.iter());
        let done = self.failed("matrix product", self.driver.library_product(product))?;
        if done {
            self.dispatched(&mut state, buffers.iter().map(|b| b.bytes).sum())?;
        }
        Ok(done)
    }

    /// Copies `bytes` bytes from offset `offset` of one allocation to the start of another.
    ///
    /// # Errors
    /// A device that fails.
    pub fn copy(&self, from: Address, offset: usize, to: Address, bytes: usize) -> Result<()> {
        let mut state = self.state();
        let ends = [Bound { address: from, bytes, writes: false }, Bound { address: to, bytes, writes: true }];
        self.order(&mut state, ends.iter());
        self.failed("copy", self.driver.copy(from.at(offset), to, bytes))
    }

    /// Sets an allocation to zero.
    ///
    /// # Errors
    /// A device that fails.
    pub fn zero(&self, to: Bound) -> Result<()> {
        let mut state = self.state();
        self.order(&mut state, [to].iter());
        self.failed("zero", self.driver.zero(to.address, to.bytes))
    }

    /// Copies host bytes to the start of an allocation.
    ///
    /// # Errors
    /// A device that fails.
    pub fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        self.order(&mut state, [Bound { address: to, bytes: bytes.len(), writes: true }].iter());
        self.failed("write", self.driver.write(to, bytes))
    }

    /// Copies from offset `offset` of an allocation to the host, when all that was asked for has run.
    ///
    /// # Errors
    /// A device that fails.
    pub fn read(&self, from: Address, offset: usize, out: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        self.order(&mut state, [Bound { address: from, bytes: out.len(), writes: false }].iter());
        self.failed("read", self.driver.read(from.at(offset), out))
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
        self.failed("wait", self.driver.wait(ticket))?;
        let mut state = self.state();
        if state.ticket == ticket && !state.dirty {
            state.commits = 0;
        }
        Ok(())
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
        let mut state = self.state();
        self.driver.barrier();
        state.read.clear();
        state.written.clear();
        state.dirty = true;
        self.failed("mark", self.driver.mark())
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

fn addresses(buffers: &[Bound]) -> impl Iterator<Item = Address> {
    buffers.iter().map(|b| b.address)
}

impl Address {
    /// The address `offset` bytes further.
    pub fn at(self, offset: usize) -> Address {
        Address(self.0 + offset as u64)
    }
}
