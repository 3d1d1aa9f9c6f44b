//! Layer 5: where the compiler meets the device. Snapshot, verify, plan, compile, run.

use crate::device::cpu;
use crate::device::gpu::driver::Ticket;
use crate::device::gpu::faults::{FaultSite, Verdict, Watch};
use crate::device::gpu::program::Bindings;
use crate::device::gpu::queue::{Bound, Prepared, WorkList};
use crate::device::gpu::runtime::bound;
use crate::device::gpu::{self, Gpu, queue};
use crate::device::{Device, Kind, Storage, logs};
use crate::error::{Error, Result};
use crate::graph::{self, NodeRef, Snapshot};
use crate::schedule::{self, Options, Plan, Report, Source};
use crate::scope;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

/// Launches of a plan, and runs before, from which on it is run as a list: to prepare one takes as long as some runs.
const LIST_LAUNCHES: usize = 3;
const LIST_RUNS: u32 = 2;

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

/// A plan, made ready to run where it has been asked for.
struct Compiled {
    plan: Plan,
    /// As in the plan: launches of parts.
    cpu: OnceLock<Vec<Vec<cpu::Program>>>,
    gpu: OnceLock<Vec<gpu::Program>>,
    /// How often it ran on a GPU, and what is prepared for the next time.
    gpu_runs: AtomicU32,
    prepared: OnceLock<Prepared>,
    flows: Vec<Flow>,
    /// Whether any launch reads indices.
    can_fault: bool,
}

/// What a kernel reads and writes.
struct Flow {
    can_fault: bool,
    reads: Vec<u32>,
    outputs: Vec<u32>,
}

/// What an evaluation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The results are needed some time.
    Later,
    /// Somebody waits for the results.
    Reading,
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
    static GATHERED: RefCell<Option<Vec<NodeRef>>> = const { RefCell::new(None) };
}

fn engine() -> MutexGuard<'static, Engine> {
    ENGINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` with every op of this thread's evaluations as a kernel of its own.
pub(crate) fn without_fusion<T>(work: impl FnOnce() -> T) -> T {
    scope::with(&FUSE, false, work)
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

/// Runs `work`, which asks for evaluations; those come together as the roots that it gives beside its result. Inside
/// another such call there are none: they are the other's.
pub(crate) fn gather<T>(work: impl FnOnce() -> T) -> (T, Vec<NodeRef>) {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            GATHERED.set(None);
        }
    }
    if GATHERED.with_borrow(Option::is_some) {
        return (work(), Vec::new());
    }
    let _restore = Restore;
    GATHERED.set(Some(Vec::new()));
    let result = work();
    (result, GATHERED.take().unwrap_or_default())
}

/// Asks for the elements of `roots`: they are computed now, or with all that [`gather`] gathers.
///
/// # Errors
/// As [`evaluate`].
pub(crate) fn request(roots: &[NodeRef]) -> Result<()> {
    let gathered = |list: &mut Option<Vec<NodeRef>>| list.as_mut().map(|list| list.extend_from_slice(roots)).is_some();
    if GATHERED.with_borrow_mut(gathered) { Ok(()) } else { evaluate(roots, Purpose::Later) }
}

/// Computes the elements of `roots`, in one plan a device. On the CPU they are there when it returns; on
/// a GPU they will be, for whatever is asked of it later.
///
/// # Errors
/// An index out of range, memory that cannot be had. The roots then stay pending: nothing that they
/// need is lost. On a GPU an index out of range shows when elements are read.
pub(crate) fn evaluate(roots: &[NodeRef], purpose: Purpose) -> Result<()> {
    evaluate_in(roots, purpose, None)
}

/// As [`evaluate`], in memory that stays for the next time.
///
/// # Errors
/// As there.
pub(crate) fn evaluate_in(roots: &[NodeRef], purpose: Purpose, mut workspace: Option<&mut Workspace>) -> Result<()> {
    let mut devices: SmallVec<[&Device; 2]> = SmallVec::new();
    for root in roots.iter().filter(|root| root.depth() > 0) {
        if !devices.contains(&&root.device) {
            devices.push(&root.device);
        }
    }
    devices.into_iter().try_for_each(|device| evaluate_on(device, roots, purpose, workspace.as_deref_mut()))
}

/// The roots on one device.
fn evaluate_on(
    device: &Device,
    roots: &[NodeRef],
    purpose: Purpose,
    mut workspace: Option<&mut Workspace>,
) -> Result<()> {
    let options = Options { fuse: FUSE.get() };
    loop {
        // One evaluation at a time: plans may overwrite buffers that no other graph can see.
        let mut engine = engine();
        let here = |root: &&NodeRef| root.depth() > 0 && root.device == *device;
        let mut pending: SmallVec<[NodeRef; 4]> = SmallVec::new();
        let mut seen = FxHashSet::default();
        for root in roots.iter().filter(here) {
            if roots.len() == 1 || seen.insert(root.id()) {
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
        // Compilers take their time, and so may a GPU: others go on meanwhile. What they evaluate may change this
        // graph, so it is looked at again.
        let Some(compiled) = engine.find(&snapshot.key) else {
            drop(engine);
            let compiled = Compiled::new(plan(&snapshot, &options)?);
            compiled.prepare(compiled.place(device, purpose), &snapshot)?;
            self::engine().keep(std::mem::take(&mut snapshot.key).into_vec(), Arc::new(compiled));
            continue;
        };
        let place = compiled.place(device, purpose);
        if !compiled.is_prepared(place) {
            drop(engine);
            compiled.prepare(place, &snapshot)?;
            continue;
        }
        if let Place::Cpu(Some(gpu)) = place
            && let Some(obstacle) = obstacle(gpu, &compiled.flows, &snapshot)?
        {
            drop((engine, snapshot));
            match obstacle {
                Obstacle::Work(ticket) => gpu.queue().wait(ticket)?,
                Obstacle::Verdict(verdict) => gpu.judge(Some(&verdict))?,
            }
            continue;
        }
        let launches = compiled.plan.steps.len() as u64;
        engine.counters.evaluations += 1;
        engine.counters.kernels += launches;
        KERNELS.set(KERNELS.get() + launches);
        let room = workspace.take().map(|workspace| workspace.room(&compiled));
        return run(&compiled, &snapshot, device, place, room);
    }
}

/// Memory for what plans compute on the way, and what a GPU has prepared for them: the same every time.
#[derive(Default)]
pub(crate) struct Workspace {
    /// The one that was used last comes first.
    rooms: Vec<Room>,
}

/// What a [`Workspace`] has for one plan.
struct Room {
    compiled: Arc<Compiled>,
    /// For each of the plan's slots, whether it holds nothing beyond a run; and its memory, if so, once there was one.
    passing: Vec<bool>,
    slots: Vec<Option<Arc<Storage>>>,
    prepared: OnceLock<Prepared>,
}

impl Workspace {
    /// Plans that take turns, at most.
    const ROOMS: usize = 4;

    fn room(&mut self, compiled: &Arc<Compiled>) -> &mut Room {
        let found = self.rooms.iter().position(|room| Arc::ptr_eq(&room.compiled, compiled));
        let room = match found {
            Some(at) => self.rooms.remove(at),
            None => {
                self.rooms.truncate(Workspace::ROOMS - 1);
                Room::new(compiled.clone())
            }
        };
        self.rooms.insert(0, room);
        &mut self.rooms[0]
    }
}

impl Room {
    fn new(compiled: Arc<Compiled>) -> Room {
        let plan = &compiled.plan;
        let lasts = |node: u32| plan.kept.contains(&node) || plan.shared.iter().any(|&(_, base)| base == node);
        let mut passing = vec![true; plan.slots.len()];
        for &(node, source) in plan.steps.iter().flatten().flat_map(|part| &part.outputs) {
            if let Source::Slot(slot) = source {
                passing[slot as usize] &= !lasts(node);
            }
        }
        Room { slots: vec![None; passing.len()], passing, prepared: OnceLock::new(), compiled }
    }
}

/// Where a plan runs.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// On the CPU; in memory that it shares with a GPU, if there is one: see [`Device::set_cpu_threshold`].
    Cpu(Option<&'a Gpu>),
    Gpu(&'a Gpu),
}

impl Compiled {
    fn new(plan: Plan) -> Compiled {
        let flow = |part: &schedule::Part| Flow {
            can_fault: part.kernel.can_fault(),
            reads: part.kernel.reads(),
            outputs: part.kernel.outputs.iter().map(|output| output.node).collect(),
        };
        let flows: Vec<Flow> = plan.steps.iter().flatten().map(flow).collect();
        let can_fault = flows.iter().any(|flow| flow.can_fault);
        Compiled {
            plan,
            cpu: OnceLock::new(),
            gpu: OnceLock::new(),
            gpu_runs: AtomicU32::new(0),
            prepared: OnceLock::new(),
            flows,
            can_fault,
        }
    }

    fn place<'a>(&self, device: &'a Device, purpose: Purpose) -> Place<'a> {
        match &device.0 {
            Kind::Cpu(_) => Place::Cpu(None),
            Kind::Gpu(gpu) => {
                let threshold = device.cpu_threshold();
                let small = purpose == Purpose::Reading && threshold > 0 && self.plan.report.cost() <= threshold;
                if small { Place::Cpu(Some(gpu)) } else { Place::Gpu(gpu) }
            }
        }
    }

    fn is_prepared(&self, place: Place) -> bool {
        match place {
            Place::Cpu(_) => self.cpu.get().is_some(),
            Place::Gpu(_) => self.gpu.get().is_some(),
        }
    }

    /// Compiles what runs there.
    fn prepare(&self, place: Place, snapshot: &Snapshot) -> Result<()> {
        let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
        log_plan(&self.plan, place);
        match place {
            Place::Gpu(gpu) => {
                let programs = gpu::Program::compile(gpu, &self.plan.steps, &dtype)?;
                let _ = self.gpu.set(programs);
            }
            Place::Cpu(_) => {
                let program =
                    |part: &schedule::Part| cpu::Program::compile(&part.kernel, &part.in_place, &dtype, cpu::isa());
                let steps = self.plan.steps.iter().map(|step| step.iter().map(program).collect());
                let _ = self.cpu.set(steps.collect::<Result<_>>()?);
            }
        }
        Ok(())
    }
}

/// What keeps the host from what a plan reads.
enum Obstacle {
    /// Work of the GPU.
    Work(Ticket),
    /// That nobody knows yet what the evaluation came to that wrote it.
    Verdict(Arc<Verdict>),
}

/// # Errors
/// A fault that is known of what the plan reads; a device that fails.
fn obstacle(gpu: &Gpu, flows: &[Flow], snapshot: &Snapshot) -> Result<Option<Obstacle>> {
    let reads: FxHashSet<u32> = flows.iter().flat_map(|flow| flow.reads.iter().copied()).collect();
    let inputs = reads.into_iter().map(|node| &snapshot.entries[node as usize]).filter(|entry| entry.realized);
    let mut memory: Vec<Bound> = Vec::new();
    for entry in inputs {
        let Some(storage) = entry.node.storage() else { continue };
        if let Some(verdict) = storage.verdict() {
            verdict.get()?;
            if !verdict.is_settled() {
                return Ok(Some(Obstacle::Verdict(verdict)));
            }
        }
        memory.push(bound(&storage, entry.donatable)?);
    }
    let ticket = gpu.queue().due(memory.into_iter())?;
    Ok(ticket.filter(|&ticket| !gpu.queue().driver().is_done(ticket)).map(Obstacle::Work))
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

fn log_plan(plan: &Plan, place: Place) {
    if logs("plan") {
        let cost = plan.report.cost();
        match place {
            Place::Cpu(None) => eprint!("tensorlogic plan: {}", plan.report),
            Place::Gpu(gpu) => eprint!("tensorlogic plan on {}, cost {cost}: {}", gpu.name, plan.report),
            Place::Cpu(Some(gpu)) => {
                eprint!("tensorlogic plan of {} on the CPU, cost {cost} (TL_CPU_THRESHOLD): {}", gpu.name, plan.report)
            }
        }
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

fn run(
    compiled: &Compiled,
    snapshot: &Snapshot,
    device: &Device,
    place: Place,
    mut room: Option<&mut Room>,
) -> Result<()> {
    let plan = &compiled.plan;
    // All memory first: from here on nothing can fail but an index, and plans with indices overwrite
    // no leaf.
    let slots = allocate(device, plan, place, room.as_deref_mut())?;
    let mut memory: Memory =
        Memory(snapshot.entries.iter().map(|e| if e.realized { e.node.storage() } else { None }).collect());
    match place {
        Place::Cpu(shared) => {
            let programs = compiled.cpu.get().ok_or_else(unprepared)?;
            run_on_cpu(plan, programs, snapshot, &slots, &mut memory, shared)?;
        }
        Place::Gpu(gpu) => {
            let watch = gpu.watch(compiled.can_fault, memory.0.iter().flatten().map(Arc::as_ref))?;
            let prepared = room.map(|room| &room.prepared);
            let run = run_on_gpu(gpu, compiled, snapshot, &slots, &mut memory, watch.as_ref(), prepared);
            let verdict = watch.map(|watch| gpu.finish(watch));
            run?;
            let suspects = verdict.as_ref().map(|_| suspects(&compiled.flows, snapshot, &memory));
            for &node in plan.kept.iter().chain(plan.shared.iter().map(|(_, base)| base)) {
                let suspect = suspects.as_ref().is_some_and(|suspects| suspects[node as usize]);
                memory.of(node)?.set_verdict(verdict.as_ref().filter(|_| suspect).cloned());
            }
        }
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

fn unprepared() -> Error {
    Error::internal("engine::run", "a plan that is not prepared")
}

/// For each node, whether a plan computes it with indices that it reads, or from what an evaluation without a verdict
/// yet wrote.
fn suspects(flows: &[Flow], snapshot: &Snapshot, memory: &Memory) -> Vec<bool> {
    let open = |storage: &Option<Arc<Storage>>| storage.as_ref().is_some_and(|storage| storage.verdict().is_some());
    let mut suspects: Vec<bool> =
        snapshot.entries.iter().zip(&memory.0).map(|(entry, storage)| entry.realized && open(storage)).collect();
    for flow in flows {
        if flow.can_fault || flow.reads.iter().any(|&node| suspects[node as usize]) {
            flow.outputs.iter().for_each(|&node| suspects[node as usize] = true);
        }
    }
    suspects
}

/// The memory of each node, once it has some.
struct Memory(SmallVec<[Option<Arc<Storage>>; 8]>);

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

/// With `shared`, in memory of that GPU.
fn run_on_cpu(
    plan: &Plan,
    programs: &[Vec<cpu::Program>],
    snapshot: &Snapshot,
    slots: &[Arc<Storage>],
    memory: &mut Memory,
    shared: Option<&Gpu>,
) -> Result<()> {
    let params = snapshot.params();
    plan.steps.iter().for_each(|step| memory.provide(step, slots));
    // A GPU that fails does so before anything is written over.
    let mut launches = Vec::with_capacity(programs.len());
    for (step, programs) in plan.steps.iter().zip(programs) {
        let view = |node: u32| match shared {
            None => Ok(memory.of(node)?.host()?.view()),
            Some(gpu) => {
                let writes = step.iter().any(|part| part.outputs.iter().any(|&(output, _)| output == node));
                let view = gpu.host_view(memory.of(node)?, writes)?;
                view.ok_or_else(|| Error::internal("engine::run", "a GPU with memory of its own"))
            }
        };
        let views = |program: &cpu::Program, part: &schedule::Part| {
            let output = part.kernel.outputs.first();
            let shift = part.kernel.shift.as_ref().zip(output.map(|output| (output.node, output.dtype.size())));
            let shifted = |&node: &u32| match shift {
                Some((shift, (output, size))) if output == node => {
                    let rows = params[shift.param as usize].both().1 as usize;
                    Ok(view(node)?.from(rows * shift.stride as usize * size))
                }
                _ => view(node),
            };
            program.buffers.iter().map(shifted).collect::<Result<Vec<_>>>()
        };
        let parts = programs.iter().zip(step).map(|(program, part)| Ok((program, views(program, part)?)));
        launches.push(parts.collect::<Result<Vec<_>>>()?);
    }
    let fault = |fault: cpu::Fault| fault_site(snapshot, fault.node, fault.limit).error(fault.index);
    launches.iter().try_for_each(|parts| cpu::launch(parts, &params).map_err(fault))
}

fn run_on_gpu(
    gpu: &Gpu,
    compiled: &Compiled,
    snapshot: &Snapshot,
    slots: &[Arc<Storage>],
    memory: &mut Memory,
    watch: Option<&Watch>,
    prepared: Option<&OnceLock<Prepared>>,
) -> Result<()> {
    let params = snapshot.params();
    let site = |node: u32, limit: usize| fault_site(snapshot, node, limit);
    let plan = &compiled.plan;
    let launches = compiled.gpu.get().ok_or_else(unprepared)?;
    // What runs again and again is worth preparing.
    let again = compiled.gpu_runs.fetch_add(1, Ordering::Relaxed) >= LIST_RUNS || prepared.is_some();
    let gathers = again && launches.len() >= LIST_LAUNCHES && gpu.queue().has_lists();
    let list = RefCell::new(WorkList::default());
    let reserved = launches.iter().map(|launch| launch.reserve(gpu)).collect::<Result<SmallVec<[_; 4]>>>()?;
    for ((step, launch), reserved) in plan.steps.iter().zip(launches).zip(reserved) {
        memory.provide(step, slots);
        drop(reserved);
        let storage = |node: u32| memory.of(node);
        let list = gathers.then_some(&list);
        launch.run(gpu, &Bindings { storage: &storage, params: &params, site: &site, watch, list })?;
    }
    if gathers {
        let prepared = prepared.unwrap_or(&compiled.prepared).get_or_init(|| gpu.prepared());
        gpu.queue().submit_list(prepared, &list.into_inner())?;
    }
    Ok(())
}

/// The memory of a plan's slots; of those that hold nothing beyond the run, what the room has.
fn allocate(
    device: &Device,
    plan: &Plan,
    place: Place,
    mut room: Option<&mut Room>,
) -> Result<SmallVec<[Arc<Storage>; 4]>> {
    let pool = device.buffer_pool();
    let storage = |bytes| match place {
        // What the host writes must not be in use.
        Place::Cpu(Some(_)) => Storage::idle(pool, bytes),
        Place::Cpu(None) | Place::Gpu(_) => Storage::new(pool, bytes),
    };
    let slot = |(i, &bytes): (usize, &usize)| {
        let fresh = || Ok(Arc::new(storage(bytes)?));
        match room.as_deref_mut().filter(|room| room.passing[i]).map(|room| &mut room.slots[i]) {
            None => fresh(),
            Some(Some(storage)) => Ok(storage.clone()),
            Some(place) => Ok(place.insert(fresh()?).clone()),
        }
    };
    plan.slots.iter().enumerate().map(slot).collect()
}

/// Where a node's index that is not below a limit was asked for.
fn fault_site(snapshot: &Snapshot, node: u32, limit: usize) -> FaultSite {
    let node = &snapshot.entries[node as usize].node;
    FaultSite { op: node.op.name(), site: node.site, limit }
}
