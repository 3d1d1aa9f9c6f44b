//! Indices out of range on a GPU.
//!
//! Work on a GPU is recorded long before it runs, so a kernel that reads an index cannot report it to its
//! caller. Each evaluation that may find one gets a *record*: four words of device memory, zero at
//! first. The kernel that finds an index out of range puts its tag there. Whoever reads from the device
//! reads the records too ([`Faults::check`]), and the evaluation's [`Verdict`] is known. Storages point
//! at the verdict of the evaluation that wrote them, so reading them fails, now and later. Evaluations
//! that read such a storage have a verdict of their own, which follows.
//!
//! A record: word 0 is set by the first to find a fault; words 1 and 2 are the index, low half first; word
//! 3 is its tag. See `shaders/gather.metal`.

use super::driver::Address;
use super::queue::{Bound, Queue};
use crate::device::buffer_pool::BufferPool;
use crate::device::lock;
use crate::device::memory::{DeviceAlloc, Storage};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of a record, and from one to the next: a cache line apart, as the host may clear one while others are written.
pub(crate) const RECORD: usize = 16;
const PITCH: usize = 128;

/// Evaluations that may fault and are not known to be well; one more waits for the device.
const MAX_RECORDS: usize = 1024;

/// Evaluations without a verdict after which the device is waited for.
const MAX_PENDING: usize = 8192;

/// Faults kept for [`Faults::take_unreported`].
const MAX_FOUND: usize = 64;

/// A place in the user's program that reads indices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultSite {
    pub op: &'static str,
    pub site: &'static Location<'static>,
    /// The size of the dimension.
    pub limit: usize,
}

impl FaultSite {
    /// That an index was not below the limit.
    pub fn error(&self, index: i64) -> Error {
        Error::IndexOutOfRange { op: self.op, index, size: self.limit, site: self.site.to_string() }
    }
}

/// What an evaluation came to.
#[derive(Debug)]
pub(crate) struct Verdict(OnceLock<Result<(), Arc<Found>>>);

/// A fault, and whether anyone was told.
#[derive(Debug)]
struct Found {
    error: Error,
    reported: AtomicBool,
}

impl Verdict {
    /// Whether it is known.
    pub fn is_settled(&self) -> bool {
        self.0.get().is_some()
    }

    /// The fault, if it is known that there was one.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`].
    pub fn get(&self) -> Result<()> {
        match self.0.get() {
            Some(Err(found)) => {
                found.reported.store(true, Ordering::Relaxed);
                Err(found.error.clone())
            }
            _ => Ok(()),
        }
    }
}

/// An evaluation that is being recorded, and whose verdict will have to be found.
pub(crate) struct Watch {
    record: Option<(u32, Address)>,
    sites: RefCell<Vec<FaultSite>>,
    /// Verdicts of what it reads.
    parents: Vec<Arc<Verdict>>,
    verdict: Arc<Verdict>,
}

impl Watch {
    /// The fault record that kernels are bound to. It says that nothing is written: several kernels may
    /// use it at once.
    pub fn record(&self) -> Option<Bound> {
        self.record.map(|(_, address)| Bound { address, bytes: RECORD, writes: false })
    }

    /// What a kernel writes to the record when the index at this site is out of range; never 0.
    pub fn tag(&self, site: FaultSite) -> u32 {
        let mut sites = self.sites.borrow_mut();
        sites.push(site);
        sites.len() as u32
    }
}

/// A recorded evaluation without a verdict.
struct Pending {
    record: Option<u32>,
    sites: Vec<FaultSite>,
    parents: Vec<Arc<Verdict>>,
    verdict: Arc<Verdict>,
}

/// The faults of one device.
#[derive(Default)]
pub(crate) struct Faults {
    records: OnceLock<Storage>,
    state: Mutex<State>,
    /// Held by who settles verdicts, from reading the records on.
    checking: Mutex<()>,
}

#[derive(Default)]
struct State {
    taken: Vec<bool>,
    /// In the order of the queue.
    pending: Vec<Pending>,
    found: Vec<Arc<Found>>,
}

impl Faults {
    /// Begins an evaluation that reads `inputs`; `None` if nothing can go wrong with it.
    ///
    /// # Errors
    /// A fault that is known of what it reads; out of memory; a device that fails.
    pub fn watch<'a>(
        &self,
        queue: &Queue,
        pool: &BufferPool<DeviceAlloc>,
        can_fault: bool,
        inputs: impl Iterator<Item = &'a Storage>,
    ) -> Result<Option<Watch>> {
        if lock(&self.state).pending.len() >= MAX_PENDING {
            self.check(queue)?;
        }
        let mut parents: Vec<Arc<Verdict>> = Vec::new();
        for verdict in inputs.filter_map(Storage::verdict) {
            verdict.get()?;
            if !verdict.is_settled() && !parents.iter().any(|p| Arc::ptr_eq(p, &verdict)) {
                parents.push(verdict);
            }
        }
        if !can_fault && parents.is_empty() {
            return Ok(None);
        }
        let record = if can_fault { Some(self.take_record(queue, pool)?) } else { None };
        let verdict = Arc::new(Verdict(OnceLock::new()));
        Ok(Some(Watch { record, sites: RefCell::default(), parents, verdict }))
    }

    /// Ends what [`Faults::watch`] began, when all its dispatches are in the queue. What it wrote is to
    /// point at the verdict.
    pub fn finish(&self, watch: Watch) -> Arc<Verdict> {
        let Watch { record, sites, parents, verdict } = watch;
        let record = record.map(|(slot, _)| slot);
        let pending = Pending { record, sites: sites.into_inner(), parents, verdict: verdict.clone() };
        lock(&self.state).pending.push(pending);
        verdict
    }

    fn records(&self, pool: &BufferPool<DeviceAlloc>) -> Result<Address> {
        if self.records.get().is_none() {
            let fresh = Storage::zeroed(pool, (MAX_RECORDS + 1) * PITCH)?;
            let _ = self.records.set(fresh);
        }
        let address = self.records.get().and_then(Storage::address);
        address.ok_or_else(|| Error::internal("gpu::faults", "the records are not on the device"))
    }

    fn take_record(&self, queue: &Queue, pool: &BufferPool<DeviceAlloc>) -> Result<(u32, Address)> {
        let base = self.records(pool)?;
        if !self.has_free_record() {
            self.check(queue)?;
        }
        let mut state = lock(&self.state);
        let slot = state.taken.iter().position(|taken| !taken).unwrap_or(state.taken.len());
        if slot >= MAX_RECORDS {
            return Err(Error::internal("gpu::faults", format!("{MAX_RECORDS} evaluations are being recorded")));
        }
        if slot == state.taken.len() {
            state.taken.push(false);
        }
        state.taken[slot] = true;
        Ok((slot as u32, record_at(base, slot as u32)))
    }

    fn has_free_record(&self) -> bool {
        let state = lock(&self.state);
        state.taken.len() < MAX_RECORDS || state.taken.contains(&false)
    }

    /// Waits for the device, and settles the verdicts of all evaluations that have been recorded.
    ///
    /// # Errors
    /// A device that fails. Faults are no errors here.
    pub fn check(&self, queue: &Queue) -> Result<()> {
        let _checking = lock(&self.checking);
        let (pending, extent) = {
            let mut state = lock(&self.state);
            let pending = std::mem::take(&mut state.pending);
            let extent = pending.iter().filter_map(|p| p.record).max().map_or(0, |slot| slot as usize + 1);
            (pending, extent)
        };
        let mut bytes = vec![0; extent * PITCH];
        if let Some(address) = self.records.get().and_then(Storage::address).filter(|_| extent > 0) {
            let read = queue.drain().and_then(|()| match queue.unified() {
                None => queue.read(address, PITCH, &mut bytes),
                // Others may be recording: only what belongs to these evaluations is read.
                Some(_) => pending.iter().filter_map(|p| p.record).try_for_each(|slot| {
                    let record = &mut bytes[slot as usize * PITCH..][..RECORD];
                    queue.read(record_at(address, slot), 0, record)
                }),
            });
            if read.is_err() {
                // Nothing is known of them yet; others may have come meanwhile.
                lock(&self.state).pending.splice(..0, pending);
                return read;
            }
        }
        let (records, _) = bytes.as_chunks::<PITCH>();
        let settled = pending.into_iter().map(|pending| {
            let record = pending.record.map(|slot| (slot, records[slot as usize]));
            self.settle(queue, pending, record)
        });
        settled.fold(Ok(()), Result::and)
    }

    fn settle(&self, queue: &Queue, pending: Pending, record: Option<(u32, [u8; PITCH])>) -> Result<()> {
        let own = record.and_then(|(_, record)| fault(&record, &pending.sites)).map(|error| {
            let found = Arc::new(Found { error, reported: AtomicBool::new(false) });
            let mut state = lock(&self.state);
            state.found.retain(|found| !found.reported.load(Ordering::Relaxed));
            if state.found.len() < MAX_FOUND {
                state.found.push(found.clone());
            }
            found
        });
        let inherited = || pending.parents.iter().find_map(|parent| parent.0.get()?.as_ref().err().cloned());
        let cleared = match (&own, record) {
            (Some(_), Some((slot, _))) => self.clear(queue, slot),
            _ => Ok(()),
        };
        let _ = pending.verdict.0.set(own.or_else(inherited).map_or(Ok(()), Err));
        if let Some((slot, _)) = record {
            lock(&self.state).taken[slot as usize] = false;
        }
        cleared
    }

    fn clear(&self, queue: &Queue, slot: u32) -> Result<()> {
        let Some(base) = self.records.get().and_then(Storage::address) else { return Ok(()) };
        // Kernels bind a record by its own address, and by that they are ordered.
        queue.zero(Bound { address: record_at(base, slot), bytes: RECORD, writes: true })
    }

    /// The first fault that nobody was told of.
    ///
    /// # Errors
    /// That fault.
    pub fn take_unreported(&self) -> Result<()> {
        let found = std::mem::take(&mut lock(&self.state).found);
        match found.iter().find(|found| !found.reported.swap(true, Ordering::Relaxed)) {
            Some(found) => Err(found.error.clone()),
            None => Ok(()),
        }
    }
}

/// Where a record lies. The first place is nobody's: the address of all records is not that of one.
fn record_at(base: Address, slot: u32) -> Address {
    base.at((slot as usize + 1) * PITCH)
}

/// What a record says.
fn fault(record: &[u8; PITCH], sites: &[FaultSite]) -> Option<Error> {
    let (words, _) = record.as_chunks::<4>();
    let [any, low, high, tag] = [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]));
    if any == 0 {
        return None;
    }
    let index = ((high as u64) << 32 | low as u64) as i64;
    Some(match (tag as usize).checked_sub(1).and_then(|i| sites.get(i)) {
        Some(site) => site.error(index),
        None => Error::internal("gpu::faults", format!("a kernel noted a fault of tag {tag}, which it was not given")),
    })
}
