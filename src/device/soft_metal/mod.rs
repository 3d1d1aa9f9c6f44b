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

use super::gpu::driver::{Address, Dispatch, Driver, DriverResult, Function, Limits, Mark, Ticket, Traffic};
use crate::codegen::{Chip, Machine};
use crate::device::{DeviceInfo, lock};
use compile::{Compiler, Kernel};
use memory::Memory;
use queue::{Command, Work};
use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MACHINE: Machine = Machine {
    threads: 1024,
    threadgroup_bytes: check::THREADGROUP_BYTES,
    buffers: 31,
    argument_bytes: 4096,
    grid: 65_535,
    parallel_groups: 8,
    matrix_units: true,
    chip: Chip::Other,
    product: None,
};
/// Dispatches of a batch.
const BATCH: usize = 64;

/// What the queue's thread and the others share.
#[derive(Default)]
struct Shared {
    memory: Mutex<Memory>,
    progress: Mutex<Progress>,
    /// Told of each change of `progress`.
    moved: Condvar,
    /// There while somebody counts.
    traffic: Mutex<Option<Vec<Traffic>>>,
}

#[derive(Default)]
struct Progress {
    /// The last ticket whose work has run.
    done: u64,
    marks: HashMap<u64, Instant>,
    /// What went wrong since somebody last waited.
    error: Option<String>,
    /// All that was found.
    faults: Vec<Fault>,
}

/// What goes in at the queue's front.
struct Front {
    /// `None` only while the driver goes.
    commands: Option<Sender<Command>>,
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
        let front = Mutex::new(Front { commands: Some(commands), tickets: 0, marks: 0 });
        Ok(Arc::new(SoftMetal { compiler, kernels: Mutex::default(), front, shared, thread: Some(thread) }))
    }

    /// Takes the record of all that was found so far. `wait` and `read` report it, too.
    #[cfg(test)]
    pub fn take_faults(&self) -> Vec<Fault> {
        let mut progress = lock(&self.shared.progress);
        progress.error = None;
        std::mem::take(&mut progress.faults)
    }

    fn send(&self, command: Command) -> DriverResult<()> {
        let front = lock(&self.front);
        let sent = front.commands.as_ref().map(|commands| commands.send(command));
        sent.and_then(Result::ok).ok_or_else(|| "the queue's thread has ended".into())
    }

    fn limit(&self, name: &str, detail: String) -> DriverResult<()> {
        let fault = Fault { kind: FaultKind::Limit, kernel: name.into(), detail, caller: 0 };
        let text = fault.to_string();
        lock(&self.shared.progress).faults.push(fault);
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
        Limits { machine: MACHINE, batch: BATCH, self_check: true }
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        lock(&self.shared.memory).alloc(bytes).map(|address| Address(address as u64))
    }

    fn free(&self, address: Address, bytes: usize) {
        // Once the queue's thread has ended, memory goes with the device.
        let _ = self.send(Command::Free { address: address.0 as usize, bytes });
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
        let &Dispatch { function, name, groups, threads, buffers, args, indirect } = dispatch;
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
        self.send(Command::Dispatch(Work {
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

    fn write(&self, to: Address, bytes: &[u8]) -> DriverResult<()> {
        self.send(Command::Write { to: to.0 as usize, bytes: bytes.to_vec() })
    }

    fn read(&self, from: Address, out: &mut [u8]) -> DriverResult<()> {
        let (into, data) = channel();
        self.send(Command::Read { from: from.0 as usize, bytes: out.len(), into })?;
        let ticket = self.commit()?;
        self.wait(ticket)?;
        let data = data.recv().map_err(|_| "there was nothing to read".to_string())?;
        out.copy_from_slice(&data);
        // Whatever is asked for now comes after what was waited for.
        self.barrier();
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> DriverResult<()> {
        self.send(Command::Copy { from: from.0 as usize, to: to.0 as usize, bytes })
    }

    fn zero(&self, to: Address, bytes: usize) -> DriverResult<()> {
        self.send(Command::Zero { to: to.0 as usize, bytes })
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
        lock(&self.shared.progress).done >= ticket.0
    }

    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        let mut progress = lock(&self.shared.progress);
        while progress.done < ticket.0 {
            progress = self.shared.moved.wait(progress).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        progress.error.take().map_or(Ok(()), Err)
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
        let mut progress = lock(&self.shared.progress);
        loop {
            if let (Some(&start), Some(&end)) = (progress.marks.get(&from.0), progress.marks.get(&to.0)) {
                progress.marks.remove(&from.0);
                progress.marks.remove(&to.0);
                return Ok(end.saturating_duration_since(start));
            }
            if progress.done == u64::MAX {
                return Err("the queue's thread has ended".into());
            }
            progress = self.shared.moved.wait(progress).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn start_traffic(&self) -> bool {
        *lock(&self.shared.traffic) = Some(Vec::new());
        true
    }

    fn take_traffic(&self) -> Vec<Traffic> {
        lock(&self.shared.traffic).take().unwrap_or_default()
    }
}
