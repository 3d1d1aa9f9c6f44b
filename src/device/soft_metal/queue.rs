//! The queue: what was asked for runs on a thread of its own, in order, as a GPU's would.

use super::check::Region;
use super::compile::Kernel;
use super::fault::{Fault, FaultKind};
use super::hooks::STATE;
use super::memory::Memory;
use super::run::{Launch, Runner};
use super::shadow::Shadow;
use super::{HostAction, HostUse, Shared};
use crate::device::gpu::driver::{AllocationTraffic, Ticket, Traffic};
use crate::device::lock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// A dispatch that owns what it names.
pub(super) struct Work {
    pub kernel: Arc<Kernel>,
    pub name: String,
    pub groups: [u32; 3],
    pub threads: u32,
    pub buffers: Vec<usize>,
    pub args: Vec<u8>,
    pub indirect: Vec<usize>,
}

pub(super) enum Command {
    Dispatch(Work),
    Barrier,
    Free { address: usize, bytes: usize },
    Mark(u64),
    Commit(u64),
}

/// Runs commands until nobody can send any more.
pub(super) fn serve(commands: Receiver<Command>, shared: &Shared, seed: u64) {
    let _ended = Ended(shared);
    let args = vec![0; 3 * ARGS_GUARD];
    let mut queue = Queue { shared, runner: Runner::new(seed), shadows: HashMap::new(), args, at: 0 };
    for command in commands {
        queue.at += 1;
        lock(&shared.host).retain(|host| host.asked >= queue.at);
        queue.execute(command);
    }
}

/// Lets go of whoever waits when the queue's thread ends, which before its time it does by a panic only.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.progress.fail("the queue's thread panicked".into());
        }
        self.0.progress.end();
    }
}

struct Queue<'a> {
    shared: &'a Shared,
    runner: Runner,
    /// Of each allocation that a dispatch has bound, by its start.
    shadows: HashMap<usize, Shadow>,
    /// The arguments of a dispatch, between words that belong to nobody.
    args: Vec<u128>,
    /// The number of the command that runs.
    at: u64,
}

/// Words before and behind arguments.
const ARGS_GUARD: usize = 1024;

impl Queue<'_> {
    fn execute(&mut self, command: Command) {
        match command {
            Command::Dispatch(work) => self.dispatch(&work),
            Command::Barrier => STATE.with_borrow_mut(|s| s.checker.start_phase()),
            Command::Free { address, bytes } => {
                self.shadows.remove(&address);
                if !self.shared.memory().free(address, bytes) {
                    self.fault("free", FaultKind::Unbound, format!("no allocation of {bytes} bytes at {address:#x}"));
                }
            }
            Command::Mark(mark) => {
                lock(&self.shared.marks).insert(mark, Instant::now());
            }
            Command::Commit(ticket) => self.shared.progress.pass(Ticket(ticket)),
        }
    }

    fn fault(&self, what: &str, kind: FaultKind, detail: String) {
        self.shared.report(vec![Fault { kind, kernel: format!("({what})"), detail, caller: 0 }]);
    }

    /// What the host did with memory of this dispatch after it was asked for and before it had run.
    fn host_faults(&self, work: &Work, regions: &[Region]) -> Vec<Fault> {
        let uses = lock(&self.shared.host);
        let mut faults = Vec::new();
        for region in regions {
            let bound = work.buffers.iter().chain(&work.indirect);
            let mut bound = bound.filter(|&&a| a >= region.start && a - region.start < region.bytes);
            let overlaps = |host: &HostUse, a: usize| match a == region.start {
                true => host.start >= a && host.start < a + region.bytes,
                false => a >= host.start && a < host.start + host.bytes,
            };
            let conflicts = |what| match what {
                HostAction::Reads => region.stored > 0,
                HostAction::Writes => region.stored + region.loaded > 0,
                HostAction::Frees => true,
            };
            let found = bound.find_map(|&a| uses.iter().find(|host| conflicts(host.what) && overlaps(host, a)));
            faults.extend(found.map(|host| Fault {
                kind: FaultKind::Race,
                kernel: work.name.clone(),
                detail: format!("the host {:?} {} before the kernel has run", host.what, region.name),
                caller: 0,
            }));
        }
        faults
    }

    /// Binds the allocations that a dispatch names. `None` if there is one that is not there.
    fn bind(&mut self, work: &Work) -> Option<Vec<Region>> {
        let mut regions: Vec<Region> = Vec::new();
        let named = work.buffers.iter().enumerate().map(|(n, &a)| (format!("buffer {n}"), a));
        let indirect = work.indirect.iter().enumerate().map(|(n, &a)| (format!("indirect {n}"), a));
        let mut missing = Vec::new();
        let memory = self.shared.memory();
        for (name, address) in named.chain(indirect) {
            match memory.find(address) {
                Some((start, _)) if regions.iter().any(|r| r.start == start) => {}
                Some((start, bytes)) => {
                    let shadow = self.shadows.remove(&start).unwrap_or_else(|| Shadow::new(bytes));
                    regions.push(Region { start, bytes, shadow, name, loaded: 0, stored: 0 });
                }
                None => missing.push(Fault {
                    kind: FaultKind::Unbound,
                    kernel: work.name.clone(),
                    detail: format!("{name} at {address:#x} is no live allocation"),
                    caller: 0,
                }),
            }
        }
        drop(memory);
        if missing.is_empty() {
            return Some(regions);
        }
        self.shadows.extend(regions.into_iter().map(|r| (r.start, r.shadow)));
        self.shared.report(missing);
        None
    }

    fn dispatch(&mut self, work: &Work) {
        let Some(regions) = self.bind(work) else {
            return;
        };
        let args = &mut self.args[ARGS_GUARD..];
        for (word, bytes) in args.iter_mut().zip(work.args.chunks(16)) {
            let mut full = [0; 16];
            full[..bytes.len()].copy_from_slice(bytes);
            *word = u128::from_ne_bytes(full);
        }
        let launch = Launch {
            kernel: &work.kernel,
            groups: work.groups,
            threads: work.threads,
            buffers: &work.buffers,
            args,
            args_bytes: work.args.len(),
        };
        STATE.with_borrow_mut(|s| {
            s.checker.start_dispatch(&work.name);
            s.checker.regions = regions;
        });
        if let Err(reason) = self.runner.run(&launch) {
            self.fault(&work.name, FaultKind::Limit, reason);
        }
        let (regions, mut faults) =
            STATE.with_borrow_mut(|s| (std::mem::take(&mut s.checker.regions), std::mem::take(&mut s.checker.faults)));
        for fault in &mut faults {
            if let Some(line) = work.kernel.line(fault.caller) {
                fault.detail += &format!(", {line}");
            }
        }
        faults.extend(self.host_faults(work, &regions));
        self.count(work, &regions);
        self.shadows.extend(regions.into_iter().map(|r| (r.start, r.shadow)));
        self.shared.report(faults);
    }

    /// Notes the traffic of a dispatch, if somebody asked for it.
    fn count(&self, work: &Work, regions: &[Region]) {
        if let Some(list) = &mut *lock(&self.shared.traffic) {
            let moved = |r: &Region| AllocationTraffic { bytes: r.bytes as u64, loaded: r.loaded, stored: r.stored };
            list.push(Traffic { name: work.name.clone(), allocations: regions.iter().map(moved).collect() });
        }
    }
}

impl Shared {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Notes findings: for whoever waits next, and for the record.
    fn report(&self, faults: Vec<Fault>) {
        if let Some(first) = faults.first() {
            let more = if faults.len() > 1 { format!(" (and {} more)", faults.len() - 1) } else { String::new() };
            self.progress.fail(format!("{first}{more}"));
            lock(&self.faults).extend(faults);
        }
    }
}
