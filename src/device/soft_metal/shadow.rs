//! What is remembered of each piece of memory: who touched it last, and when, so as to see whether a new access is
//! in order.

/// Threads of a simdgroup.
pub(super) const LANES: u32 = 32;

/// How many things have happened, for one class of memory (device or threadgroup).
///
/// Intervals are numbered through: a group starts a new one, and so does each barrier for this class of memory.
/// Groups run one after the other, so that numbers tell what was before what.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// Accesses from before this interval are over: a barrier between dispatches came since.
    pub phase: u32,
    /// The interval that the current group started with.
    pub group: u32,
    pub interval: u32,
    /// Simdgroup barriers so far, of each simdgroup.
    pub simd: [u16; 32],
}

impl Clock {
    pub fn start_group(&mut self) {
        self.interval += 1;
        self.group = self.interval;
    }

    /// The moment, for an access by a thread.
    pub fn stamp(&self, thread: u32, atomic: bool) -> Stamp {
        let simd = u64::from(self.simd[(thread / LANES) as usize]);
        Stamp(u64::from(self.interval) << 32 | simd << 16 | u64::from(atomic) << 15 | u64::from(thread))
    }

    /// Whether nothing orders an access before one at `now`, by this clock's time.
    pub fn is_concurrent(&self, before: Stamp, now: Stamp) -> bool {
        let interval = before.interval();
        if interval < self.phase {
            return false;
        }
        if interval != self.interval {
            return interval < self.group;
        }
        let ordered_by_simdgroup = before.thread() / LANES == now.thread() / LANES && before.simd() != now.simd();
        before.thread() != now.thread() && !ordered_by_simdgroup
    }
}

/// An access: interval, simdgroup barriers, whether atomic, thread. Zero is none: intervals count from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    pub fn interval(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn thread(self) -> u32 {
        self.0 as u32 & 0x7fff
    }

    fn simd(self) -> u16 {
        (self.0 >> 16) as u16
    }

    fn is_atomic(self) -> bool {
        self.0 >> 15 & 1 == 1
    }
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Not in order with an earlier access, which wrote (`true`) or read.
    With(Stamp, bool),
    /// Nobody has written it in this group.
    Unwritten,
}

/// The last write; the last read; the last read by another thread than that; the last read by another group.
type Cell = [u64; 4];
const WRITE: usize = 0;
const READ: usize = 1;
const READ_BEFORE: usize = 2;
const READ_GROUP: usize = 3;

/// The cells of a stretch of memory. One cell stands for four bytes, until something smaller is accessed.
#[derive(Default)]
pub(super) struct Shadow {
    /// The logarithm of the bytes that a cell stands for.
    shift: u32,
    cells: Vec<Cell>,
}

impl Shadow {
    pub fn new(bytes: usize) -> Shadow {
        // Zeros come from the system untouched: only what is used costs memory.
        Shadow { shift: 2, cells: vec![[0; 4]; bytes.div_ceil(4)] }
    }

    /// Makes cells small enough for boundaries at `offsets` (their bits, put together).
    fn refine(&mut self, offsets: usize) {
        let shift = offsets.trailing_zeros().min(self.shift);
        if shift < self.shift {
            let copies = 1 << (self.shift - shift);
            self.cells = self.cells.iter().flat_map(|&cell| std::iter::repeat_n(cell, copies)).collect();
            self.shift = shift;
        }
    }

    /// Notes an access at the moment `now`, and says what is wrong with it. `initialised` asks that the bytes were written before they
    /// are read, in this group.
    pub fn access(
        &mut self,
        offset: usize,
        bytes: usize,
        writes: bool,
        clock: &Clock,
        now: Stamp,
        initialised: bool,
    ) -> Option<Conflict> {
        if (offset | bytes) & ((1 << self.shift) - 1) != 0 {
            self.refine(offset | bytes);
        }
        let is_fine = |before: Stamp| !clock.is_concurrent(before, now) || before.is_atomic() && now.is_atomic();
        let mut found = None;
        for cell in &mut self.cells[offset >> self.shift..(offset + bytes) >> self.shift] {
            let write = Stamp(cell[WRITE]);
            if !is_fine(write) {
                found = Some(Conflict::With(write, true));
            } else if writes {
                let reads = [READ, READ_BEFORE, READ_GROUP].map(|slot| Stamp(cell[slot]));
                let concurrent = reads.into_iter().find(|&read| !is_fine(read));
                found = concurrent.map(|read| Conflict::With(read, false)).or(found);
            } else if initialised && write.interval() < clock.group {
                found = Some(Conflict::Unwritten);
            }
            if writes {
                cell[WRITE] = now.0;
            } else {
                let last = Stamp(cell[READ]);
                if last.interval() < clock.group {
                    cell[READ_GROUP] = cell[READ];
                } else if last.thread() != now.thread() {
                    cell[READ_BEFORE] = cell[READ];
                }
                cell[READ] = now.0;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_become_as_small_as_accesses() {
        let mut shadow = Shadow::new(64);
        let mut clock = Clock { phase: 1, ..Clock::default() };
        clock.start_group();
        let mut write =
            |offset, bytes, thread| shadow.access(offset, bytes, true, &clock, clock.stamp(thread, false), false);
        assert_eq!(write(0, 16, 0), None);
        assert_eq!(write(16, 2, 1), None);
        assert_eq!(write(18, 1, 2), None);
        assert_eq!(write(19, 1, 3), None);
        assert!(matches!(write(19, 1, 4), Some(Conflict::With(before, true)) if before.thread() == 3));
        assert!(matches!(write(14, 2, 1), Some(Conflict::With(before, true)) if before.thread() == 0));
    }
}
