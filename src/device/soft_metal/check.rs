//! The checker: what running kernels touch, held against what they may.

use super::fault::{Fault, FaultKind};
use super::shadow::{Clock, Conflict, LANES, Shadow, Stamp};

/// Bytes of threadgroup memory that a kernel may declare.
pub(super) const THREADGROUP_BYTES: usize = 32 << 10;
/// Bytes that belong to nobody, before and between pieces of threadgroup memory.
const THREADGROUP_GUARD: usize = 1 << 10;
/// Declarations of threadgroup memory in a kernel, at most.
const DECLARATIONS: usize = 32;
/// Findings of a dispatch that are kept: one of a kind for each place in the code.
const KEPT: usize = 16;

const DEVICE: usize = 0;
const THREADGROUP: usize = 1;

/// One access, as the hooks report it.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub address: usize,
    pub bytes: usize,
    pub writes: bool,
    pub atomic: bool,
    /// Whether the compiler relies on the address being a multiple of the size.
    pub aligned: bool,
    /// Where the call to the checker returns to.
    pub caller: usize,
}

/// What the kernel did cannot be gone on with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Abandoned;

/// A piece of device memory that a dispatch bound.
pub(super) struct Region {
    pub start: usize,
    pub bytes: usize,
    pub shadow: Shadow,
    /// How messages call it.
    pub name: String,
    pub loaded: u64,
    pub stored: u64,
}

/// All that is known while a kernel runs.
pub(super) struct Checker {
    pub kernel: String,
    pub regions: Vec<Region>,
    /// The region of the last access, where the next one probably goes, too.
    recent: usize,
    /// Memory that needs no more than bounds: the kernel's constants, its arguments, the runtime's slots for exchanges.
    pub quiet: [(usize, usize); 3],
    clocks: [Clock; 2],
    pub group: u32,
    pub thread: u32,
    threadgroup: Vec<u128>,
    threadgroup_shadow: Shadow,
    /// Offsets and sizes of what the kernel declared, in order.
    declared: Vec<(usize, usize)>,
    pub faults: Vec<Fault>,
}

impl Checker {
    pub fn new() -> Checker {
        let bytes = THREADGROUP_BYTES + (DECLARATIONS + 1) * THREADGROUP_GUARD;
        Checker {
            kernel: String::new(),
            regions: Vec::new(),
            recent: 0,
            quiet: [(0, 0); 3],
            clocks: std::array::from_fn(|_| Clock { phase: 1, ..Clock::default() }),
            group: 0,
            thread: 0,
            threadgroup: vec![u128::MAX; bytes / 16],
            threadgroup_shadow: Shadow::new(bytes),
            declared: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// What comes is ordered behind all that was.
    pub fn start_phase(&mut self) {
        self.clocks[DEVICE].phase = self.clocks[DEVICE].interval + 1;
    }

    pub fn start_dispatch(&mut self, kernel: &str) {
        self.kernel = kernel.into();
        self.recent = 0;
        self.declared.clear();
    }

    pub fn start_group(&mut self, group: u32) {
        self.group = group;
        for clock in &mut self.clocks {
            clock.start_group();
        }
        self.clocks[THREADGROUP].phase = self.clocks[THREADGROUP].group;
        let used = self.declared.last().map_or(0, |(offset, bytes)| (offset + bytes).div_ceil(16));
        self.threadgroup[..used].fill(u128::MAX);
    }

    /// All threads of the group have come to a barrier; `flags` says for which classes of memory.
    pub fn pass_barrier(&mut self, flags: u32) {
        for (class, clock) in self.clocks.iter_mut().enumerate() {
            clock.interval += flags >> class & 1;
        }
    }

    pub fn pass_simdgroup_barrier(&mut self, simdgroup: usize, flags: u32) {
        for (class, clock) in self.clocks.iter_mut().enumerate() {
            clock.simd[simdgroup] = clock.simd[simdgroup].wrapping_add((flags >> class & 1) as u16);
        }
    }

    /// The memory of a kernel's declaration of threadgroup memory.
    pub fn declare(&mut self, index: usize, bytes: usize) -> Result<*mut u8, Abandoned> {
        if index == self.declared.len() {
            let used: usize = self.declared.iter().map(|(_, bytes)| bytes.next_multiple_of(16)).sum();
            if index == DECLARATIONS || used + bytes > THREADGROUP_BYTES {
                let detail = format!("{} bytes of threadgroup memory, of {THREADGROUP_BYTES}", used + bytes);
                return Err(self.fault(FaultKind::Limit, detail));
            }
            let end = self.declared.last().map_or(0, |(offset, bytes)| (offset + bytes).next_multiple_of(16));
            let start = end + THREADGROUP_GUARD;
            self.threadgroup[start / 16..(start + bytes).div_ceil(16)].fill(u128::MAX);
            self.declared.push((start, bytes));
        }
        let (offset, _) = self.declared[index];
        Ok(self.threadgroup.as_mut_ptr().cast::<u8>().wrapping_add(offset))
    }

    /// Looks at an access before it happens.
    pub fn access(&mut self, access: Access) -> Result<(), Abandoned> {
        let Access { address, bytes, writes, atomic, aligned, caller: _ } = access;
        if aligned && bytes >= 8 && address % bytes != 0 {
            return Err(self.fault_at(
                FaultKind::Misaligned,
                format!("{} at {address:#x}", describe(access)),
                access.caller,
            ));
        }
        let holds = |region: &Region| {
            address.wrapping_sub(region.start) <= region.bytes.wrapping_sub(bytes) && bytes <= region.bytes
        };
        let found = match self.regions.get(self.recent) {
            Some(region) if holds(region) => Some(self.recent),
            _ => self.regions.iter().position(holds),
        };
        if let Some(index) = found {
            self.recent = index;
            let region = &mut self.regions[index];
            *(if writes { &mut region.stored } else { &mut region.loaded }) += bytes as u64;
            let offset = address - region.start;
            let clock = &self.clocks[DEVICE];
            if let Some(conflict) =
                region.shadow.access(offset, bytes, writes, clock, clock.stamp(self.thread, atomic), false)
            {
                let place = format!("{} + {offset}", region.name);
                self.conflict(conflict, access, &place, DEVICE);
            }
            return Ok(());
        }
        let block = self.threadgroup.as_ptr().addr();
        if address.wrapping_sub(block) < self.threadgroup.len() * 16 {
            return self.threadgroup_access(access, address - block);
        }
        if self.quiet.iter().any(|&(start, end)| start <= address && address + bytes <= end) {
            return Ok(());
        }
        Err(self.stray(access))
    }

    fn threadgroup_access(&mut self, access: Access, offset: usize) -> Result<(), Abandoned> {
        let Access { bytes, writes, atomic, .. } = access;
        let index = self.declared.iter().rposition(|&(start, _)| start <= offset).unwrap_or(0);
        let (start, size) = self.declared.get(index).copied().unwrap_or_default();
        let place = || format!("threadgroup declaration {index} + {}", offset as isize - start as isize);
        if offset < start || offset + bytes > start + size {
            let detail = format!("{} at {}, of {size} bytes", describe(access), place());
            return Err(self.fault_at(FaultKind::OutOfBounds, detail, access.caller));
        }
        let clock = &self.clocks[THREADGROUP];
        if let Some(conflict) =
            self.threadgroup_shadow.access(offset, bytes, writes, clock, clock.stamp(self.thread, atomic), true)
        {
            self.conflict(conflict, access, &place(), THREADGROUP);
        }
        Ok(())
    }

    /// An access to memory that nobody gave the kernel.
    fn stray(&mut self, access: Access) -> Abandoned {
        let distance = |r: &Region| {
            let before = r.start.saturating_sub(access.address);
            before.max((access.address + access.bytes).saturating_sub(r.start + r.bytes))
        };
        let nearest = self.regions.iter().min_by_key(|r| distance(r)).filter(|r| distance(r) <= super::memory::GUARD);
        match nearest {
            Some(region) => {
                let offset = access.address as isize - region.start as isize;
                let detail = format!("{} at {} + {offset}, of {} bytes", describe(access), region.name, region.bytes);
                self.fault_at(FaultKind::OutOfBounds, detail, access.caller)
            }
            None => {
                let detail = format!("{} at {:#x}, which is not bound", describe(access), access.address);
                self.fault_at(FaultKind::Unbound, detail, access.caller)
            }
        }
    }

    fn conflict(&mut self, conflict: Conflict, access: Access, place: &str, class: usize) {
        let what = describe(access);
        match conflict {
            Conflict::With(before, wrote) => {
                let verb = if wrote { "wrote" } else { "read" };
                let who = self.who(before, class);
                let detail = format!("{what} at {place}, which {who} {verb}, in no order");
                self.fault_at(FaultKind::Race, detail, access.caller);
            }
            Conflict::Unwritten => {
                let detail = format!("{what} at {place}, which nobody wrote");
                self.fault_at(FaultKind::Uninitialised, detail, access.caller);
            }
        }
    }

    fn who(&self, stamp: Stamp, class: usize) -> String {
        let group = if stamp.interval() < self.clocks[class].group { " of another group" } else { "" };
        format!("thread {}{group}", stamp.thread())
    }

    /// Notes a finding that no access of the kernel's makes.
    pub fn fault(&mut self, kind: FaultKind, detail: String) -> Abandoned {
        self.fault_at(kind, detail, 0)
    }

    fn fault_at(&mut self, kind: FaultKind, detail: String, caller: usize) -> Abandoned {
        let is_new = !self.faults.iter().any(|f| f.kind == kind && f.caller == caller);
        if self.faults.len() < KEPT && is_new {
            let (group, thread) = (self.group, self.thread);
            let detail = format!("{detail} (group {group}, thread {thread}, simdgroup {})", thread / LANES);
            self.faults.push(Fault { kind, kernel: self.kernel.clone(), detail, caller });
        }
        Abandoned
    }
}

fn describe(access: Access) -> String {
    let atomic = if access.atomic { "atomic " } else { "" };
    format!("{atomic}{} of {} bytes", if access.writes { "store" } else { "load" }, access.bytes)
}
