//! Layer 5: where the compiler meets the device. Snapshot, verify, plan, compile, run.

use crate::device::cpu::{self, Fault, Program};
use crate::device::{Device, Storage};
use crate::error::{Error, Result};
use crate::graph::{self, NodeRef, Snapshot};
use crate::schedule::{self, Options, Plan, Report, Source};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Plans that are kept; the least recently used goes first.
const MAX_PLANS: usize = 1024;

/// What evaluations have done since the process began. For tests and benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Evaluations that had something to compute.
    pub evaluations: u64,
    /// Kernels that ran.
    pub kernels: u64,
    /// Plans that were made, rather than found.
    pub plans: u64,
    /// Plans that are kept.
    pub plans_cached: u64,
}

/// A plan made ready to run.
struct Compiled {
    /// As in the plan: launches of parts.
    programs: Vec<Vec<Program>>,
    plan: Plan,
}

#[derive(Default)]
struct Engine {
    plans: FxHashMap<Vec<u64>, (Arc<Compiled>, u64)>,
    tick: u64,
    counters: Counters,
}

static ENGINE: LazyLock<Mutex<Engine>> = LazyLock::new(Mutex::default);

thread_local! {
    static FUSE: Cell<bool> = const { Cell::new(true) };
    static KERNELS: Cell<u64> = const { Cell::new(0) };
}

fn engine() -> MutexGuard<'static, Engine> {
    ENGINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` with every op of this thread's evaluations as a kernel of its own.
pub(crate) fn without_fusion<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FUSE.set(self.0);
        }
    }
    let _restore = Restore(FUSE.replace(false));
    work()
}

/// The counters of all devices.
pub(crate) fn counters() -> Counters {
    let engine = engine();
    Counters { plans_cached: engine.plans.len() as u64, ..engine.counters }
}

/// Kernels that this thread's evaluations have run.
pub(crate) fn kernels_of_thread() -> u64 {
    KERNELS.get()
}

/// Computes the elements of `roots`, in one plan. Returns when they are there.
///
/// # Errors
/// An index out of range, memory that cannot be had. The roots then stay pending: nothing that they
/// need is lost.
pub(crate) fn evaluate(roots: &[NodeRef]) -> Result<()> {
    if roots.iter().all(|root| root.depth() == 0) {
        return Ok(());
    }
    // One evaluation at a time: plans may overwrite buffers that no other graph can see.
    let mut engine = engine();
    let mut pending: Vec<NodeRef> = Vec::with_capacity(roots.len());
    for root in roots.iter().filter(|root| root.depth() > 0) {
        if !pending.iter().any(|p| Arc::ptr_eq(p, root)) {
            pending.push(root.clone());
        }
    }
    if pending.is_empty() {
        return Ok(());
    }
    let snapshot = Snapshot::of(&pending, FUSE.get());
    drop(pending);
    let compiled = engine.compiled(&snapshot)?;
    engine.counters.evaluations += 1;
    engine.counters.kernels += compiled.programs.len() as u64;
    KERNELS.set(KERNELS.get() + compiled.programs.len() as u64);
    run(&compiled, &snapshot)
}

/// The report of the plan that would compute `roots`.
pub(crate) fn report(roots: &[NodeRef]) -> Result<Report> {
    let pending: Vec<NodeRef> = roots.iter().filter(|root| root.depth() > 0).cloned().collect();
    if pending.is_empty() {
        return Ok(Report::default());
    }
    let _engine = engine();
    let snapshot = Snapshot::of(&pending, FUSE.get());
    Ok(plan(&snapshot, &Options { fuse: FUSE.get() })?.report)
}

/// The passes, in order.
fn plan(snapshot: &Snapshot, options: &Options) -> Result<Plan> {
    graph::verify(snapshot)?;
    schedule::plan(snapshot, options)
}

fn compile(snapshot: &Snapshot, options: &Options) -> Result<Compiled> {
    let plan = plan(snapshot, options)?;
    log_plan(&plan);
    let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
    let program = |part: &schedule::Part| Program::compile(&part.kernel, &part.in_place, &dtype, cpu::isa());
    let programs = plan.steps.iter().map(|step| step.iter().map(program).collect()).collect::<Result<_>>()?;
    Ok(Compiled { programs, plan })
}

fn log_plan(plan: &Plan) {
    static LOG: LazyLock<bool> = LazyLock::new(|| std::env::var("TL_LOG").is_ok_and(|v| v.contains("plan")));
    if *LOG {
        eprint!("tensorlogic plan: {}", plan.report);
    }
}

impl Engine {
    fn compiled(&mut self, snapshot: &Snapshot) -> Result<Arc<Compiled>> {
        self.tick += 1;
        if let Some((compiled, used)) = self.plans.get_mut(&snapshot.key) {
            *used = self.tick;
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(compile(snapshot, &Options { fuse: FUSE.get() })?);
        self.counters.plans += 1;
        if self.plans.len() >= MAX_PLANS {
            let oldest = self.plans.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.plans.remove(&key));
        }
        self.plans.insert(snapshot.key.clone(), (compiled.clone(), self.tick));
        Ok(compiled)
    }
}

fn run(compiled: &Compiled, snapshot: &Snapshot) -> Result<()> {
    let Some(device) = snapshot.entries.first().map(|e| e.node.device.clone()) else { return Ok(()) };
    let plan = &compiled.plan;
    // All memory first: from here on nothing can fail but an index, and plans with indices overwrite
    // no leaf.
    let slots = allocate(&device, &plan.slots)?;
    let mut storage: Vec<Option<Arc<Storage>>> =
        snapshot.entries.iter().map(|e| if e.realized { e.node.storage() } else { None }).collect();
    let params = snapshot.params();
    for (step, programs) in plan.steps.iter().zip(&compiled.programs) {
        for &(node, source) in step.iter().flat_map(|part| &part.outputs) {
            storage[node as usize] = match source {
                Source::Slot(slot) => Some(slots[slot as usize].clone()),
                Source::Leaf(leaf) => storage[leaf as usize].clone(),
            };
        }
        let memory = |node: &u32| {
            let missing = || Error::internal("engine::run", format!("node {node} has no memory"));
            storage[*node as usize].as_deref().ok_or_else(missing)
        };
        let buffers = |program: &Program| program.buffers.iter().map(memory).collect::<Result<Vec<_>>>();
        let parts = programs.iter().map(|p| Ok((p, buffers(p)?))).collect::<Result<Vec<_>>>()?;
        cpu::launch(&parts, &params).map_err(|fault| out_of_range(&fault, snapshot))?;
    }
    for &node in &plan.kept {
        if let Some(storage) = storage[node as usize].clone() {
            snapshot.entries[node as usize].node.realize(storage);
        }
    }
    for &(root, base) in &plan.shared {
        if let Some(storage) = storage[base as usize].clone() {
            snapshot.entries[root as usize].node.realize(storage);
        }
    }
    Ok(())
}

fn allocate(device: &Device, sizes: &[usize]) -> Result<Vec<Arc<Storage>>> {
    sizes.iter().map(|&bytes| Ok(Arc::new(device.buffer_pool().get_uninit(bytes)?))).collect()
}

fn out_of_range(fault: &Fault, snapshot: &Snapshot) -> Error {
    let node = &snapshot.entries[fault.node as usize].node;
    Error::IndexOutOfRange { op: node.op.name(), index: fault.index, size: fault.limit, site: node.site.to_string() }
}
