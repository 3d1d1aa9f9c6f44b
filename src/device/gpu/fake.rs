//! A driver for tests of what lies above: runs a few kernels at once, and writes down what it is asked.

use super::driver::{
    Address, Batch, Copies, Dispatch, Driver, DriverResult, Function, Limits, List, Mark, Ticket, Transfer, Work,
};
use super::runtime::Gpu;
use crate::codegen::{Chip, Machine};
use crate::device::{Device, DeviceInfo, Kind};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Addresses: the number of the allocation above, the offset below.
const OFFSET_BITS: u32 = 32;

/// The kernels are `fill` (buffer 0 with the first byte of the arguments), `copy` (buffer 0 to 1) and `fault` (index
/// 7 in the record at buffer 0, the tag from the arguments); others do nothing.
#[derive(Default)]
pub(crate) struct Fake {
    batch: usize,
    /// Bytes of memory that there are; 0 for no limit.
    room: usize,
    compiler: String,
    /// What the next calls of `elapsed` say.
    times: Mutex<VecDeque<Duration>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: BTreeMap<u64, Vec<u8>>,
    allocations: u64,
    /// Given back when somebody waits.
    freed: Vec<u64>,
    functions: Vec<String>,
    log: Vec<String>,
    compiled: usize,
    tickets: u64,
    done: u64,
}

impl Fake {
    pub fn new() -> Arc<Fake> {
        Arc::default()
    }

    pub fn with(batch: usize, room: usize, compiler: &str) -> Arc<Fake> {
        Arc::new(Fake { batch, room, compiler: compiler.into(), ..Fake::default() })
    }

    /// A device of this driver.
    pub fn device(self: &Arc<Fake>) -> Device {
        Device(Kind::Gpu(Arc::new(Gpu::with_cache(self.clone(), None))))
    }

    /// What was asked for since the last call: names of kernels and calls, `|` for a barrier.
    pub fn log(&self) -> String {
        std::mem::take(&mut self.state().log).join(" ")
    }

    /// Sets what the next measurements say, in microseconds; all others say 5.
    pub fn script(&self, times: impl IntoIterator<Item = u64>) {
        *self.times.lock().unwrap() = times.into_iter().map(Duration::from_micros).collect();
    }

    /// How many sources were compiled.
    pub fn compiled(&self) -> usize {
        self.state().compiled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn note(&mut self, what: &str) {
        self.log.push(what.into());
    }

    fn bytes(&mut self, at: Address) -> &mut [u8] {
        let offset = at.0 as u32 as usize;
        &mut self.memory.get_mut(&(at.0 >> OFFSET_BITS)).expect("an address of live memory")[offset..]
    }

    fn pass(&mut self, ticket: u64) {
        self.done = self.done.max(ticket);
        for allocation in std::mem::take(&mut self.freed) {
            self.memory.remove(&allocation);
        }
    }
}

impl Driver for Fake {
    fn name(&self) -> String {
        "fake".into()
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "fake".into(), model: None, memory: None, threads: 1, simd: "none", missing: vec![] }
    }

    fn limits(&self) -> Limits {
        let machine = Machine {
            threads: 1024,
            dispatch_bytes: 0,
            threadgroup_bytes: 32 << 10,
            buffers: 31,
            argument_bytes: 4096,
            grid: 65_535,
            parallel_groups: 1,
            matrix_units: false,
            tensor_maps: false,
            chip: Chip::Other,
            product: None,
        };
        let batch = (self.batch > 0).then_some(Batch {
            dispatches: self.batch,
            bytes_per_microsecond: 1e6,
            operations_per_microsecond: 1e6,
        });
        Limits { machine, batch, in_order: false, cpu_threshold: 0, keeps_binaries: true, self_check: false }
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        let mut state = self.state();
        let live: usize = state.memory.values().map(Vec::len).sum();
        if self.room > 0 && live + bytes > self.room {
            return None;
        }
        state.allocations += 1;
        let allocation = state.allocations;
        state.memory.insert(allocation, vec![0xAA; bytes]);
        Some(Address(allocation << OFFSET_BITS))
    }

    fn free(&self, address: Address, _: usize) {
        self.state().freed.push(address.0 >> OFFSET_BITS);
    }

    fn has_lists(&self) -> bool {
        true
    }

    /// Notes how much there is, and whether it is the first time.
    fn run_list(&self, list: &mut Option<List>, work: &[Work]) -> DriverResult<()> {
        let what = if list.is_some() { "list" } else { "new list" };
        list.get_or_insert(List(0));
        self.state().note(&format!("{what} of {}", work.len()));
        Ok(())
    }

    fn drop_list(&self, _: List) {
        self.state().note("dropped");
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer::Copies(self)
    }

    fn compiler(&self) -> String {
        self.compiler.clone()
    }

    fn compile(&self, source: &str) -> DriverResult<Vec<u8>> {
        if source.contains("#error") {
            return Err("line 1: #error".into());
        }
        self.state().compiled += 1;
        Ok(source.as_bytes().to_vec())
    }

    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function> {
        if !String::from_utf8_lossy(binary).contains(name) {
            return Err(format!("no kernel {name}"));
        }
        let mut state = self.state();
        state.functions.push(name.into());
        Ok(Function(state.functions.len() as u64 - 1))
    }

    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()> {
        let mut state = self.state();
        let name = state.functions.get(dispatch.function.0 as usize).cloned().unwrap_or_else(|| dispatch.name.into());
        match &name[..] {
            "fill" => state.bytes(dispatch.buffers[0]).fill(dispatch.args[0]),
            "copy" => {
                let from = state.bytes(dispatch.buffers[0]).to_vec();
                state.bytes(dispatch.buffers[1])[..from.len()].copy_from_slice(&from);
            }
            "fault" => {
                let record = &mut state.bytes(dispatch.buffers[0])[..16];
                if record[0] == 0 {
                    record[0] = 1;
                    record[4..12].copy_from_slice(&7i64.to_le_bytes());
                    record[12..].copy_from_slice(dispatch.args);
                }
            }
            _ => {}
        }
        state.note(&name);
        Ok(())
    }

    fn barrier(&self) {
        self.state().note("|");
    }

    fn commit(&self) -> DriverResult<Ticket> {
        let mut state = self.state();
        state.tickets += 1;
        state.note("commit");
        Ok(Ticket(state.tickets))
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.state().done >= ticket.0
    }

    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        let mut state = self.state();
        assert!(ticket.0 <= state.tickets, "a ticket of the future");
        state.pass(ticket.0);
        Ok(())
    }

    fn mark(&self) -> DriverResult<Mark> {
        self.state().note("mark");
        Ok(Mark(0))
    }

    fn elapsed(&self, _: Mark, _: Mark) -> DriverResult<Duration> {
        Ok(self.times.lock().unwrap().pop_front().unwrap_or(Duration::from_micros(5)))
    }
}

impl Copies for Fake {
    fn write(&self, to: Address, bytes: &[u8]) -> DriverResult<()> {
        let mut state = self.state();
        state.bytes(to)[..bytes.len()].copy_from_slice(bytes);
        state.note("write");
        Ok(())
    }

    fn read(&self, from: Address, out: &mut [u8]) -> DriverResult<()> {
        let mut state = self.state();
        out.copy_from_slice(&state.bytes(from)[..out.len()]);
        state.note("read");
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> DriverResult<()> {
        let mut state = self.state();
        let copied = state.bytes(from)[..bytes].to_vec();
        state.bytes(to)[..bytes].copy_from_slice(&copied);
        state.note("copies");
        Ok(())
    }

    fn zero(&self, to: Address, bytes: usize) -> DriverResult<()> {
        let mut state = self.state();
        state.bytes(to)[..bytes].fill(0);
        state.note("zero");
        Ok(())
    }
}
