//! A GPU in software, for tests: runs the Metal kernels as C++ on the host, checks every access that they make, and
//! counts their traffic.
//!
//! What it finds: races between threads, groups and dispatches, accesses out of bounds and to memory that a dispatch
//! did not bind or that was freed, reads of threadgroup memory that nobody wrote, barriers and simdgroup operations
//! that not all threads reach, misaligned vectors, and limits exceeded. What it does not model: Apple's compiler, its
//! arithmetic (subnormals, the last bits of `exp`), and speed.

mod check;
mod compile;
mod fault;
mod hooks;
mod memory;
mod queue;
mod run;
mod shadow;
#[cfg(test)]
mod tests;

pub(crate) use fault::{Fault, FaultKind};

use super::gpu::driver::{
    Address, Batch, Dispatch, Driver, DriverResult, Function, Limits, List, Mark, Ticket, Traffic, Transfer, Unified,
    Work,
};
use super::gpu::progress::Progress;
use crate::codegen::{Chip, Machine};
use crate::device::{DeviceInfo, lock};
use compile::{Compiler, Kernel};
use memory::Memory;
use queue::Command;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MACHINE: Machine = Machine {
    threads: 1024,
    threadgroup_bytes: check::THREADGROUP_BYTES,
    dispatch_bytes: 0,
    buffers: 31,
    argument_bytes: 4096,
    grid: 65_535,
    parallel_groups: 8,
    matrix_units: true,
    tensor_maps: false,
    chip: Chip::Other,
    product: None,
};
/// As a GPU has it. Batches are small: nothing is gained by large ones here.
const BATCH: Batch = Batch { dispatches: 64, bytes_per_microsecond: 1e5, operations_per_microsecond: 1e6 };
/// As Apple's processors have it.
const PAGE: usize = 16 << 10;

/// What the queue's thread and the others share.
#[derive(Default)]
struct Shared {
    memory: Mutex<Memory>,
    progress: Progress,
    marks: Mutex<HashMap<u64, Instant>>,
    /// All that was found.
    faults: Mutex<Vec<Fault>>,
    /// What the host did with memory while commands were under way.
    host: Mutex<Vec<HostUse>>,
    /// There while somebody counts.
    traffic: Mutex<Option<Vec<Traffic>>>,
}

/// What the host did with a range of addresses.
struct HostUse {
    start: usize,
    bytes: usize,
    what: HostAction,
    /// Commands that had been asked for.
    asked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostAction {
    Reads,
    Writes,
    Frees,
}

/// What goes in at the queue's front.
struct Front {
    /// `None` only while the driver goes.
    commands: Option<Sender<Command>>,
    asked: u64,
    tickets: u64,
    marks: u64,
}

/// The driver.
pub(crate) struct SoftMetal {
    compiler: Compiler,
    kernels: Mutex<Vec<Arc<Kernel>>>,
    front: Mutex<Front>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl SoftMetal {
    /// A device of its own. The order in which threads run follows from the environment variable `TL_SOFT_SEED`.
    ///
    /// # Errors
    /// If there is no C++ compiler (`$CXX`, else `c++`).
    pub fn new() -> Result<Arc<SoftMetal>, String> {
        let seed = std::env::var("TL_SOFT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let compiler = Compiler::new()?;
        let shared = Arc::new(Shared::default());
        let (commands, queue) = channel();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("soft-metal".into())
            .spawn(move || queue::serve(queue, &theirs, seed))
            .map_err(|e| e.to_string())?;
        let front = Mutex::new(Front { commands: Some(commands), asked: 0, tickets: 0, marks: 0 });
        Ok(Arc::new(SoftMetal { compiler, kernels: Mutex::default(), front, shared, thread: Some(thread) }))
    }

    /// Takes the record of all that was found so far. `wait` and `read` report it, too.
    #[cfg(test)]
    pub fn take_faults(&self) -> Vec<Fault> {
        self.shared.progress.take_failure();
        std::mem::take(&mut lock(&self.shared.faults))
    }

    fn send(&self, command: Command) -> DriverResult<()> {
        let mut front = lock(&self.front);
        front.asked += 1;
        let sent = front.commands.as_ref().map(|commands| commands.send(command));
        sent.and_then(Result::ok).ok_or_else(|| "the queue's thread has ended".into())
    }

    /// Notes that the host uses memory, for the queue's thread to see whether it was in the way.
    fn note_host(&self, start: usize, bytes: usize, what: HostAction) {
        let front = lock(&self.front);
        lock(&self.shared.host).push(HostUse { start, bytes, what, asked: front.asked });
    }

    fn limit(&self, name: &str, detail: String) -> DriverResult<()> {
        let fault = Fault { kind: FaultKind::Limit, kernel: name.into(), detail, caller: 0 };
        let text = fault.to_string();
        lock(&self.shared.faults).push(fault);
        Err(text)
    }
}

impl Drop for SoftMetal {
    fn drop(&mut self) {
        lock(&self.front).commands = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said so.
            let _ = thread.join();
        }
    }
}

impl Driver for SoftMetal {
    fn name(&self) -> String {
        "soft-metal".into()
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: self.name(),
            model: Some("the host, checking every access".into()),
            memory: None,
            threads: 1,
            simd: "plain",
            missing: Vec::new(),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            machine: MACHINE,
            batch: Some(BATCH),
            in_order: false,
            cpu_threshold: 0,
            keeps_binaries: true,
            self_check: true,
        }
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        lock(&self.shared.memory).alloc(bytes).map(|address| Address(address as u64))
    }

    fn free(&self, address: Address, bytes: usize) {
        self.note_host(address.0 as usize, bytes, HostAction::Frees);
        // Once the queue's thread has ended, memory goes with the device.
        let _ = self.send(Command::Free { address: address.0 as usize, bytes });
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer::Unified(self)
    }

    fn compiler(&self) -> String {
        self.compiler.name()
    }

    fn compile(&self, source: &str) -> DriverResult<Vec<u8>> {
        self.compiler.compile(source)
    }

    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function> {
        let kernel = Arc::new(self.compiler.load(binary, name)?);
        let mut kernels = lock(&self.kernels);
        kernels.push(kernel);
        Ok(Function(kernels.len() as u64 - 1))
    }

    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()> {
        let &Dispatch { function, name, groups, threads, buffers, args, indirect, .. } = dispatch;
        if threads == 0 || threads as usize > MACHINE.threads || threads % shadow::LANES != 0 {
            return self.limit(name, format!("{threads} threads: a multiple of 32 up to {}", MACHINE.threads));
        }
        let bound = buffers.len() + usize::from(!args.is_empty());
        if bound > MACHINE.buffers {
            return self.limit(name, format!("{bound} buffers, of at most {}", MACHINE.buffers));
        }
        if args.len() > MACHINE.argument_bytes {
            return self
                .limit(name, format!("{} bytes of arguments, of at most {}", args.len(), MACHINE.argument_bytes));
        }
        let kernel = lock(&self.kernels).get(function.0 as usize).cloned().ok_or("no such function")?;
        let addresses = |list: &[Address]| list.iter().map(|a| a.0 as usize).collect();
        self.send(Command::Dispatch(queue::Work {
            kernel,
            name: name.into(),
            groups,
            threads,
            buffers: addresses(buffers),
            args: args.to_vec(),
            indirect: addresses(indirect),
        }))
    }

    fn barrier(&self) {
        // Nothing is left to be put in order once the queue's thread has ended.
        let _ = self.send(Command::Barrier);
    }

    fn commit(&self) -> DriverResult<Ticket> {
        let mut front = lock(&self.front);
        front.tickets += 1;
        let ticket = front.tickets;
        drop(front);
        self.send(Command::Commit(ticket))?;
        Ok(Ticket(ticket))
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.shared.progress.is_done(ticket)
    }

    /// What was found is reported once: the device goes on.
    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        let result = self.shared.progress.wait(ticket);
        self.shared.progress.take_failure();
        result
    }

    fn mark(&self) -> DriverResult<Mark> {
        let mut front = lock(&self.front);
        front.marks += 1;
        let mark = front.marks;
        drop(front);
        self.send(Command::Mark(mark))?;
        Ok(Mark(mark))
    }

    fn elapsed(&self, from: Mark, to: Mark) -> DriverResult<Duration> {
        let mut marks = lock(&self.shared.marks);
        match (marks.remove(&from.0), marks.remove(&to.0)) {
            (Some(start), Some(end)) => Ok(end.saturating_duration_since(start)),
            _ => Err(format!("marks {} and {} have not both passed", from.0, to.0)),
        }
    }

    fn has_lists(&self) -> bool {
        true
    }

    /// Nothing is prepared: what gathers lists is to be tested.
    fn run_list(&self, list: &mut Option<List>, work: &[Work]) -> DriverResult<()> {
        list.get_or_insert(List(0));
        work.iter().try_for_each(|piece| match piece {
            Work::Dispatch(dispatch) => {
                self.barrier();
                self.dispatch(dispatch)
            }
            Work::Product(_) => Err("there is no library".into()),
        })
    }

    fn start_traffic(&self) -> bool {
        *lock(&self.shared.traffic) = Some(Vec::new());
        true
    }

    fn take_traffic(&self) -> Vec<Traffic> {
        lock(&self.shared.traffic).take().unwrap_or_default()
    }
}

impl Unified for SoftMetal {
    fn host(&self, address: Address, bytes: usize, writes: bool) -> DriverResult<NonNull<u8>> {
        let start = address.0 as usize;
        if !lock(&self.shared.memory).holds(start, bytes) {
            return Err(format!("{bytes} bytes at {start:#x} belong to no allocation"));
        }
        self.note_host(start, bytes, if writes { HostAction::Writes } else { HostAction::Reads });
        NonNull::new(std::ptr::with_exposed_provenance_mut(start)).ok_or_else(|| "an address of 0".into())
    }

    fn page(&self) -> usize {
        PAGE
    }

    fn import(&self, host: NonNull<u8>, bytes: usize) -> Option<Address> {
        let start = host.as_ptr().expose_provenance();
        lock(&self.shared.memory).import(start, bytes).then_some(Address(start as u64))
    }
}
