//! Layer 5: where the compiler meets the device. Snapshot, verify, plan, compile, run.

use crate::device::cpu;
use crate::device::gpu::faults::{FaultSite, Watch};
use crate::device::gpu::program::Bindings;
use crate::device::gpu::{self, Gpu, queue};
use crate::device::{Device, Kind, Storage};
use crate::error::{Error, Result};
use crate::graph::{self, NodeRef, Snapshot};
use crate::schedule::{self, Options, Plan, Report, Source};
use rustc_hash::{FxHashMap, FxHashSet};
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
    /// What GPUs were asked to run: a kernel may take several dispatches.
    pub dispatches: u64,
}

/// A plan made ready to run.
struct Compiled {
    programs: Programs,
    plan: Plan,
}

/// The launches of a plan, as its device runs them.
enum Programs {
    /// As in the plan: launches of parts.
    Cpu(Vec<Vec<cpu::Program>>),
    Gpu {
        launches: Vec<gpu::Program>,
        /// Whether any reads indices.
        can_fault: bool,
    },
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
    Counters { plans_cached: engine.plans.len() as u64, dispatches: queue::dispatches(), ..engine.counters }
}

/// Kernels that this thread's evaluations have run.
pub(crate) fn kernels_of_thread() -> u64 {
    KERNELS.get()
}

/// Computes the elements of `roots`, in one plan a device. On the CPU they are there when it returns; on
/// a GPU they will be, for whatever is asked of it later.
///
/// # Errors
/// An index out of range, memory that cannot be had. The roots then stay pending: nothing that they
/// need is lost. On a GPU an index out of range shows when elements are read.
pub(crate) fn evaluate(roots: &[NodeRef]) -> Result<()> {
    let mut devices: Vec<&Device> = Vec::new();
    for root in roots.iter().filter(|root| root.depth() > 0) {
        if !devices.contains(&&root.device) {
            devices.push(&root.device);
        }
    }
    devices.into_iter().try_for_each(|device| evaluate_on(device, roots))
}

/// The roots on one device.
fn evaluate_on(device: &Device, roots: &[NodeRef]) -> Result<()> {
    let options = Options { fuse: FUSE.get() };
    loop {
        // One evaluation at a time: plans may overwrite buffers that no other graph can see.
        let mut engine = engine();
        let mut pending: Vec<NodeRef> = Vec::with_capacity(roots.len());
        for root in roots.iter().filter(|root| root.depth() > 0 && root.device == *device) {
            if !pending.iter().any(|p| Arc::ptr_eq(p, root)) {
                pending.push(root.clone());
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        let mut snapshot = Snapshot::of(&pending, options.fuse);
        // Plans are the same on all devices; programs are not.
        snapshot.key.push(device.id() as u64);
        drop(pending);
        if let Some(compiled) = engine.find(&snapshot.key) {
            let launches = compiled.plan.steps.len() as u64;
            engine.counters.evaluations += 1;
            engine.counters.kernels += launches;
            KERNELS.set(KERNELS.get() + launches);
            return run(&compiled, &snapshot, device);
        }
        // Compilers take their time: others go on meanwhile. What they evaluate may change this graph, so it is
        // looked at again.
        drop(engine);
        let compiled = Arc::new(compile(&snapshot, device, &options)?);
        self::engine().keep(snapshot.key, compiled);
    }
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

fn compile(snapshot: &Snapshot, device: &Device, options: &Options) -> Result<Compiled> {
    let plan = plan(snapshot, options)?;
    log_plan(&plan);
    let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
    let programs = match &device.0 {
        Kind::Cpu(_) => {
            let program =
                |part: &schedule::Part| cpu::Program::compile(&part.kernel, &part.in_place, &dtype, cpu::isa());
            let steps = plan.steps.iter().map(|step| step.iter().map(program).collect());
            Programs::Cpu(steps.collect::<Result<_>>()?)
        }
        Kind::Gpu(gpu) => Programs::Gpu {
            launches: gpu::Program::compile(gpu, &plan.steps, &dtype)?,
            can_fault: plan.steps.iter().flatten().any(|part| part.kernel.can_fault()),
        },
    };
    Ok(Compiled { programs, plan })
}

fn log_plan(plan: &Plan) {
    static LOG: LazyLock<bool> = LazyLock::new(|| std::env::var("TL_LOG").is_ok_and(|v| v.contains("plan")));
    if *LOG {
        eprint!("tensorlogic plan: {}", plan.report);
    }
}

impl Engine {
    fn find(&mut self, key: &[u64]) -> Option<Arc<Compiled>> {
        self.tick += 1;
        let (compiled, used) = self.plans.get_mut(key)?;
        *used = self.tick;
        Some(compiled.clone())
    }

    fn keep(&mut self, key: Vec<u64>, compiled: Arc<Compiled>) {
        self.counters.plans += 1;
        if self.plans.len() >= MAX_PLANS {
            let oldest = self.plans.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.plans.remove(&key));
        }
        self.tick += 1;
        self.plans.insert(key, (compiled, self.tick));
    }
}

fn run(compiled: &Compiled, snapshot: &Snapshot, device: &Device) -> Result<()> {
    let plan = &compiled.plan;
    // All memory first: from here on nothing can fail but an index, and plans with indices overwrite
    // no leaf.
    let slots = allocate(device, &plan.slots)?;
    let mut memory: Memory =
        Memory(snapshot.entries.iter().map(|e| if e.realized { e.node.storage() } else { None }).collect());
    match (&compiled.programs, &device.0) {
        (Programs::Cpu(programs), _) => run_on_cpu(plan, programs, snapshot, &slots, &mut memory)?,
        (Programs::Gpu { launches, can_fault }, Kind::Gpu(gpu)) => {
            let watch = gpu.watch(*can_fault, memory.0.iter().flatten().map(Arc::as_ref))?;
            let run = run_on_gpu(gpu, plan, launches, snapshot, &slots, &mut memory, watch.as_ref());
            let verdict = watch.map(|watch| gpu.finish(watch));
            run?;
            let suspects = if verdict.is_some() { suspects(plan, snapshot, &memory) } else { FxHashSet::default() };
            for &node in plan.kept.iter().chain(plan.shared.iter().map(|(_, base)| base)) {
                memory.of(node)?.set_verdict(verdict.clone().filter(|_| suspects.contains(&node)));
            }
        }
        _ => return Err(Error::internal("engine::run", "a plan of another device")),
    }
    for &node in &plan.kept {
        if let Some(storage) = memory.0[node as usize].clone() {
            snapshot.entries[node as usize].node.realize(storage);
        }
    }
    for &(root, base) in &plan.shared {
        if let Some(storage) = memory.0[base as usize].clone() {
            snapshot.entries[root as usize].node.realize(storage);
        }
    }
    Ok(())
}

/// What a plan computes with indices that it reads, or from what an evaluation without a verdict yet wrote.
fn suspects(plan: &Plan, snapshot: &Snapshot, memory: &Memory) -> FxHashSet<u32> {
    let open = |node: &u32| {
        let entry = &snapshot.entries[*node as usize];
        entry.realized && memory.0[*node as usize].as_ref().is_some_and(|storage| storage.verdict().is_some())
    };
    let mut suspects: FxHashSet<u32> = (0..snapshot.entries.len() as u32).filter(open).collect();
    for kernel in plan.steps.iter().flatten().map(|part| &part.kernel) {
        if kernel.can_fault() || kernel.reads().iter().any(|node| suspects.contains(node)) {
            suspects.extend(kernel.outputs.iter().map(|output| output.node));
        }
    }
    suspects
}

/// The memory of each node, once it has some.
struct Memory(Vec<Option<Arc<Storage>>>);

impl Memory {
    fn of(&self, node: u32) -> Result<&Arc<Storage>> {
        let missing = || Error::internal("engine::run", format!("node {node} has no memory"));
        self.0[node as usize].as_ref().ok_or_else(missing)
    }

    /// Gives the outputs of a launch theirs.
    fn provide(&mut self, step: &[schedule::Part], slots: &[Arc<Storage>]) {
        for &(node, source) in step.iter().flat_map(|part| &part.outputs) {
            self.0[node as usize] = match source {
                Source::Slot(slot) => Some(slots[slot as usize].clone()),
                Source::Leaf(leaf) => self.0[leaf as usize].clone(),
            };
        }
    }
}

fn run_on_cpu(
    plan: &Plan,
    programs: &[Vec<cpu::Program>],
    snapshot: &Snapshot,
    slots: &[Arc<Storage>],
    memory: &mut Memory,
) -> Result<()> {
    let params = snapshot.params();
    for (step, programs) in plan.steps.iter().zip(programs) {
        memory.provide(step, slots);
        let buffers = |program: &cpu::Program| {
            program.buffers.iter().map(|&node| memory.of(node)?.host()).collect::<Result<Vec<_>>>()
        };
        let parts = programs.iter().map(|p| Ok((p, buffers(p)?))).collect::<Result<Vec<_>>>()?;
        cpu::launch(&parts, &params)
            .map_err(|fault| fault_site(snapshot, fault.node, fault.limit).error(fault.index))?;
    }
    Ok(())
}

fn run_on_gpu(
    gpu: &Gpu,
    plan: &Plan,
    launches: &[gpu::Program],
    snapshot: &Snapshot,
    slots: &[Arc<Storage>],
    memory: &mut Memory,
    watch: Option<&Watch>,
) -> Result<()> {
    let params = snapshot.params();
    let site = |node: u32, limit: usize| fault_site(snapshot, node, limit);
    let reserved = launches.iter().map(|launch| launch.reserve(gpu)).collect::<Result<Vec<_>>>()?;
    for ((step, launch), reserved) in plan.steps.iter().zip(launches).zip(reserved) {
        memory.provide(step, slots);
        drop(reserved);
        let storage = |node: u32| memory.of(node);
        launch.run(gpu, &Bindings { storage: &storage, params: &params, site: &site, watch })?;
    }
    Ok(())
}

fn allocate(device: &Device, sizes: &[usize]) -> Result<Vec<Arc<Storage>>> {
    sizes.iter().map(|&bytes| Ok(Arc::new(Storage::new(device.buffer_pool(), bytes)?))).collect()
}

/// Where a node's index that is not below a limit was asked for.
fn fault_site(snapshot: &Snapshot, node: u32, limit: usize) -> FaultSite {
    let node = &snapshot.entries[node as usize].node;
    FaultSite { op: node.op.name(), site: node.site, limit }
}
