//! The driver: one context, one stream.

use super::api::{self, Failure};
use super::compile::{Compiler, PRELUDE};
use super::cublaslt::{CublasLt, WORKSPACE};
use super::event::{Event, Tickets};
use super::graph::{Capture, Graph};
use super::launch::{ARGUMENT_BYTES, PARAMETERS, with_parameters};
use super::staging::Staging;
use crate::codegen::{Chip, Machine, TENSOR_MAP, TensorMap};
use crate::device::gpu::driver::{
    Address, Copies, Dispatch, Driver, DriverResult, Function, LibraryProduct, Limits, List, Mark, Ticket, Transfer,
    Work,
};
use crate::device::gpu::translate::fingerprint;
use crate::device::{DeviceInfo, lock};
use crate::dtype::DType;
use rustc_hash::FxHashMap;
use std::ffi::{CStr, CString, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

// Values from cuda.h.
const STREAM_NON_BLOCKING: u32 = 1;
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const MEMORY_POOLS_SUPPORTED: c_int = 115;
const OPT_IN_SHARED_BYTES: c_int = 97;
const FUNCTION_MAX_THREADS: c_int = 0;
const FUNCTION_SHARED_BYTES: c_int = 1;
const FUNCTION_MAX_DYNAMIC_SHARED_BYTES: c_int = 8;
const FUNCTION_REGISTERS: c_int = 4;

/// Groups along the second and third dimension.
const MAX_GROUPS: u32 = 65_535;

/// An NVIDIA GPU.
pub(crate) struct Cuda {
    ordinal: usize,
    model: String,
    /// `sm_90a`.
    chip: &'static str,
    memory: usize,
    multiprocessors: usize,
    dispatch_bytes: usize,
    pool: usize,
    compiler: Compiler,
    tickets: Tickets,
    marks: Mutex<Marks>,
    /// By hash; one binary may hold several kernels.
    modules: Mutex<FxHashMap<u64, usize>>,
    /// Made when first needed: pinning memory takes a while.
    staging: Mutex<Option<Staging>>,
    /// Likewise.
    library: Mutex<Option<Result<CublasLt, String>>>,
    graphs: Mutex<Graphs>,
    stream: Stream,
    context: Context,
}

/// Prepared lists, by number.
#[derive(Default)]
struct Graphs {
    last: u64,
    live: FxHashMap<u64, Graph>,
    /// Takes what is captured; made when first needed.
    stream: Option<Stream>,
}

#[derive(Default)]
struct Marks {
    last: u64,
    events: FxHashMap<u64, Event>,
    spare: Vec<Event>,
}

/// The primary context of a device; given back when dropped.
struct Context {
    driver: &'static api::Driver,
    device: c_int,
    handle: usize,
}

impl Context {
    fn new(driver: &'static api::Driver, device: c_int) -> Result<Context, Failure> {
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { driver.cuDevicePrimaryCtxRetain(&raw mut handle, device) }?;
        Ok(Context { driver, device, handle })
    }

    /// Makes this the calling thread's context, in which most calls work.
    fn enter(&self) -> Result<&'static api::Driver, Failure> {
        // Each time: another library may have changed it on this thread.
        // SAFETY: the context is alive.
        unsafe { self.driver.cuCtxSetCurrent(self.handle) }?;
        Ok(self.driver)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once. Everything made in it is gone, but for modules, which go with it.
        let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

struct Stream {
    driver: &'static api::Driver,
    handle: usize,
}

impl Stream {
    /// A stream of the current context.
    fn new(driver: &'static api::Driver) -> Result<Stream, Failure> {
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { driver.cuStreamCreate(&raw mut handle, STREAM_NON_BLOCKING) }?;
        Ok(Stream { driver, handle })
    }

    fn wait(&self) -> Result<(), Failure> {
        // SAFETY: the stream is alive.
        unsafe { self.driver.cuStreamSynchronize(self.handle) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is alive, and nobody uses it again; its work still runs.
        let _ = unsafe { self.driver.cuStreamDestroy_v2(self.handle) };
    }
}

/// What there is to know of a device without a context.
fn attribute(driver: &api::Driver, attribute: c_int, device: c_int) -> Result<u32, Failure> {
    let mut value = 0;
    // SAFETY: a place for a number.
    unsafe { driver.cuDeviceGetAttribute(&raw mut value, attribute, device) }?;
    Ok(value.unsigned_abs())
}

/// The device of an ordinal, if there is one.
fn device(driver: &api::Driver, ordinal: usize) -> Result<c_int, String> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: a place for a number.
    unsafe { driver.cuDeviceGetCount(&raw mut count) }?;
    match c_int::try_from(ordinal) {
        Ok(ordinal) if ordinal < count => {
            // SAFETY: a place for a number.
            unsafe { driver.cuDeviceGet(&raw mut device, ordinal) }?;
            Ok(device)
        }
        _ => Err(format!("there is no CUDA device {ordinal}; the driver knows {count}")),
    }
}

fn model(driver: &api::Driver, device: c_int) -> Result<String, Failure> {
    let mut name = [0u8; 256];
    // SAFETY: a place for 256 bytes.
    unsafe { driver.cuDeviceGetName(name.as_mut_ptr().cast(), 256, device) }?;
    Ok(CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

/// The chip whose kernels fetch by tensor maps.
const HOPPER: &str = "sm_90a";

/// The chip as NVRTC calls it. `a`: with the instructions that only this generation has.
fn chip(major: u32, minor: u32) -> String {
    format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" })
}

impl Cuda {
    /// Opens a device.
    ///
    /// # Errors
    /// What is missing: the driver, the device, its abilities, or NVRTC.
    #[allow(clippy::new_ret_no_self)] // the type stays in here
    pub(crate) fn new(ordinal: usize) -> DriverResult<Arc<dyn Driver>> {
        Ok(Arc::new(Cuda::open(ordinal)?))
    }

    fn open(ordinal: usize) -> DriverResult<Cuda> {
        let driver = api::Driver::get()?;
        let device = device(driver, ordinal)?;
        let (major, minor) =
            (attribute(driver, CAPABILITY_MAJOR, device)?, attribute(driver, CAPABILITY_MINOR, device)?);
        let model = model(driver, device)?;
        if major < 8 {
            return Err(format!("{model} has compute capability {major}.{minor}; 8.0 is the least that works"));
        }
        if attribute(driver, MEMORY_POOLS_SUPPORTED, device)? == 0 {
            return Err(format!("{model}: the driver has no memory pools here"));
        }
        let compiler = Compiler::open(driver.cuda_version()?)?;
        let (mut memory, mut pool) = (0, 0);
        // SAFETY: a place for a number.
        unsafe { driver.cuDeviceTotalMem_v2(&raw mut memory, device) }?;
        // SAFETY: a place for a handle.
        unsafe { driver.cuDeviceGetDefaultMemPool(&raw mut pool, device) }?;
        let context = Context::new(driver, device)?;
        context.enter()?;
        Ok(Cuda {
            ordinal,
            model,
            chip: chip(major, minor).leak(), // a few bytes a device
            memory,
            multiprocessors: attribute(driver, MULTIPROCESSORS, device)? as usize,
            dispatch_bytes: attribute(driver, OPT_IN_SHARED_BYTES, device)? as usize,
            pool,
            compiler,
            tickets: Tickets::default(),
            marks: Mutex::default(),
            modules: Mutex::default(),
            staging: Mutex::default(),
            library: Mutex::default(),
            graphs: Mutex::default(),
            stream: Stream::new(driver)?,
            context,
        })
    }

    fn try_alloc(&self, bytes: usize) -> Result<Address, Failure> {
        let driver = self.context.enter()?;
        let mut address = 0;
        // SAFETY: a place for an address.
        unsafe { driver.cuMemAllocAsync(&raw mut address, bytes.max(1), self.stream.handle) }?;
        Ok(Address(address))
    }

    /// Gives memory that is free back to the system, once it really is.
    fn trim(&self) -> Result<(), Failure> {
        self.stream.wait()?;
        // SAFETY: the pool is the device's own.
        unsafe { self.context.driver.cuMemPoolTrimTo(self.pool, 0) }
    }

    /// The module of a binary; loaded once.
    fn module(&self, binary: &[u8]) -> DriverResult<usize> {
        if !binary.starts_with(b"\x7fELF") {
            return Err("this is no cubin".into());
        }
        let mut hasher = DefaultHasher::new();
        binary.hash(&mut hasher);
        let key = hasher.finish();
        let mut modules = lock(&self.modules);
        if let Some(&module) = modules.get(&key) {
            return Ok(module);
        }
        let mut module = 0;
        // SAFETY: a cubin as `compile` made it, which says how long it is; copied before this returns.
        unsafe { self.context.enter()?.cuModuleLoadData(&raw mut module, binary.as_ptr().cast()) }?;
        modules.insert(key, module);
        Ok(module)
    }

    /// Says what may be wrong with a dispatch that the driver refused.
    fn explain(&self, dispatch: &Dispatch, failure: Failure) -> String {
        let Dispatch { function, name, groups, threads, .. } = dispatch;
        let registers = self.function_attribute(*function, FUNCTION_REGISTERS).unwrap_or(0);
        format!("{name}, {groups:?} groups of {threads} threads with {registers} registers each: {}", failure.text)
    }

    fn function_attribute(&self, function: Function, attribute: c_int) -> Result<u32, Failure> {
        let mut value = 0;
        // SAFETY: the function is loaded; a place for a number.
        unsafe { self.context.enter()?.cuFuncGetAttribute(&raw mut value, attribute, function.0 as usize) }?;
        Ok(value.unsigned_abs())
    }

    /// Does something with the staging memory.
    fn stage(&self, job: impl FnOnce(&mut Staging) -> Result<(), Failure>) -> DriverResult<()> {
        let driver = self.context.enter()?;
        let mut staging = lock(&self.staging);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(driver, self.stream.handle)?),
        };
        Ok(job(staging)?)
    }

    fn open_library(&self) -> DriverResult<CublasLt> {
        let api = api::CublasLt::get()?;
        self.context.enter()?;
        let workspace = self.try_alloc(WORKSPACE)?;
        Ok(CublasLt::new(api, workspace)?)
    }
}

/// Whether a dispatch is within the limits.
fn check(dispatch: &Dispatch) -> DriverResult<()> {
    let &Dispatch { name, groups: [x, y, z], buffers, args, .. } = dispatch;
    let count = buffers.len() + usize::from(!args.is_empty());
    if count > PARAMETERS || args.len() > ARGUMENT_BYTES || y > MAX_GROUPS || z > MAX_GROUPS {
        let bytes = args.len();
        return Err(format!(
            "{name}: {count} buffers, {bytes} bytes of arguments and {x} x {y} x {z} groups are too many"
        ));
    }
    Ok(())
}

impl Driver for Cuda {
    fn name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    fn info(&self) -> DeviceInfo {
        let missing = lock(&self.library).get_or_insert_with(|| self.open_library()).as_ref().err().cloned();
        DeviceInfo {
            name: Driver::name(self),
            model: Some(self.model.clone()),
            memory: self.memory(),
            threads: self.multiprocessors,
            simd: self.chip,
            missing: missing.map(|reason| format!("matrix products by cuBLASLt: {reason}")).into_iter().collect(),
        }
    }

    fn limits(&self) -> Limits {
        let machine = Machine {
            threads: 1024,
            threadgroup_bytes: 48 << 10,
            dispatch_bytes: self.dispatch_bytes,
            buffers: PARAMETERS,
            argument_bytes: ARGUMENT_BYTES,
            grid: MAX_GROUPS as usize,
            parallel_groups: self.multiprocessors * 8,
            matrix_units: true,
            tensor_maps: self.chip == HOPPER,
            chip: Chip::Nvidia,
            product: None,
        };
        // NVRTC takes long for a kernel; what it makes of ours has been tested, and TL_SELFCHECK=1 checks it all the same.
        Limits { machine, batch: None, in_order: true, cpu_threshold: 0, keeps_binaries: true, self_check: false }
    }

    fn memory(&self) -> Option<usize> {
        Some(self.memory)
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        self.try_alloc(bytes).or_else(|_| self.trim().and_then(|()| self.try_alloc(bytes))).ok()
    }

    fn free(&self, address: Address, _bytes: usize) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: the address came from cuMemAllocAsync. It is free when the stream gets there, behind
            // all work that was asked for before. After a failure of the device nothing can be done.
            let _ = unsafe { driver.cuMemFreeAsync(address.0, self.stream.handle) };
        }
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer::Copies(self)
    }

    fn max_threads(&self, function: Function) -> u32 {
        self.function_attribute(function, FUNCTION_MAX_THREADS).unwrap_or(0)
    }

    fn compiler(&self) -> String {
        format!("{} {} {:016x}", self.compiler.name(), self.chip, fingerprint(PRELUDE))
    }

    fn compile(&self, source: &str) -> DriverResult<Vec<u8>> {
        self.compiler.compile_for(source, self.chip)
    }

    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function> {
        let module = self.module(binary).map_err(|e| format!("{name}: {e}"))?;
        let symbol = CString::new(name).map_err(|_| "a kernel's name holds a zero byte")?;
        let mut function = 0;
        // SAFETY: the module is loaded and stays; a place for a handle.
        unsafe { self.context.enter()?.cuModuleGetFunction(&raw mut function, module, symbol.as_ptr()) }
            .map_err(|failure| format!("{name}: {}", failure.text))?;
        let function = Function(function as u64);
        // What a launch may ask for without this is less than there is.
        let dynamic = self.dispatch_bytes as u32 - self.function_attribute(function, FUNCTION_SHARED_BYTES)?;
        let (attribute, value) = (FUNCTION_MAX_DYNAMIC_SHARED_BYTES, dynamic as c_int);
        // SAFETY: the function is loaded.
        unsafe { self.context.enter()?.cuFuncSetAttribute(function.0 as usize, attribute, value) }?;
        Ok(function)
    }

    fn tensor_map(&self, address: Address, map: &TensorMap) -> DriverResult<[u8; TENSOR_MAP]> {
        // As the driver's header numbers them.
        const FLOAT16: c_int = 6;
        const BFLOAT16: c_int = 9;
        const NOT_INTERLEAVED: c_int = 0;
        const SWIZZLE_128: c_int = 3;
        const PROMOTE_128: c_int = 2;
        const ZEROS_OUTSIDE: c_int = 0;
        #[repr(align(64))]
        struct Aligned([u8; TENSOR_MAP]);

        let mut bytes = Aligned([0; TENSOR_MAP]);
        let dtype = if map.dtype == DType::BF16 { BFLOAT16 } else { FLOAT16 };
        let (boxes, steps) = ([64, 1, 64, 1], [1; 4]);
        // SAFETY: a place for a map, aligned; four sizes, boxes and steps, and three strides.
        unsafe {
            self.context.enter()?.cuTensorMapEncodeTiled(
                bytes.0.as_mut_ptr().cast(),
                dtype,
                4,
                address.0 + map.offset,
                map.sizes.as_ptr(),
                map.strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                NOT_INTERLEAVED,
                SWIZZLE_128,
                PROMOTE_128,
                ZEROS_OUTSIDE,
            )
        }?;
        Ok(bytes.0)
    }

    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()> {
        let &Dispatch { function, groups: [x, y, z], threads, block_bytes, .. } = dispatch;
        check(dispatch)?;
        let launched = with_parameters(dispatch, |list| {
            let (stream, none) = (self.stream.handle, std::ptr::null());
            let driver = self.context.enter()?;
            // SAFETY: the function is loaded; each parameter points to its value, which is copied before this returns.
            // What the kernel does with its buffers is its own and the caller's affair.
            unsafe {
                driver.cuLaunchKernel(function.0 as usize, x, y, z, threads, 1, 1, block_bytes, stream, list, none)
            }
        });
        launched.map_err(|failure| self.explain(dispatch, failure))
    }

    /// Nothing: a stream runs one thing after the other.
    fn barrier(&self) {}

    fn commit(&self) -> DriverResult<Ticket> {
        Ok(self.tickets.commit(self.context.enter()?, self.stream.handle)?)
    }

    /// True after a failure, too: nothing more will run, and `wait` says why.
    fn is_done(&self, ticket: Ticket) -> bool {
        self.context.enter().and_then(|_| self.tickets.is_done(ticket)).unwrap_or(true)
    }

    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        self.context.enter()?;
        self.tickets.wait(ticket)
    }

    fn mark(&self) -> DriverResult<Mark> {
        let driver = self.context.enter()?;
        let mut marks = lock(&self.marks);
        let event = match marks.spare.pop() {
            Some(event) => event,
            None => Event::new(driver, true)?,
        };
        event.record(self.stream.handle)?;
        marks.last += 1;
        let mark = marks.last;
        marks.events.insert(mark, event);
        Ok(Mark(mark))
    }

    fn elapsed(&self, from: Mark, to: Mark) -> DriverResult<Duration> {
        self.context.enter()?;
        let mut marks = lock(&self.marks);
        let (Some(start), Some(end)) = (marks.events.remove(&from.0), marks.events.remove(&to.0)) else {
            return Err(format!("marks {} and {}: one is not in use", from.0, to.0));
        };
        end.wait()?;
        let milliseconds = start.milliseconds_to(&end)?;
        marks.spare.extend([start, end]);
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn has_library(&self) -> bool {
        lock(&self.library).get_or_insert_with(|| self.open_library()).is_ok()
    }

    fn takes_product(&self, product: &LibraryProduct) -> bool {
        let mut library = lock(&self.library);
        let library = library.get_or_insert_with(|| self.open_library());
        library.as_mut().is_ok_and(|library| self.context.enter().and_then(|_| library.takes(product)).unwrap_or(false))
    }

    fn has_lists(&self) -> bool {
        true
    }

    fn run_list(&self, list: &mut Option<List>, work: &[Work]) -> DriverResult<()> {
        let driver = self.context.enter()?;
        for item in work {
            if let Work::Dispatch(dispatch) = item {
                check(dispatch)?;
            }
        }
        let mut graphs = lock(&self.graphs);
        let Graphs { last, live, stream } = &mut *graphs;
        let stream = match stream {
            Some(stream) => stream,
            none => none.insert(Stream::new(driver)?),
        };
        let mut product = |product: &LibraryProduct, stream: usize| match &mut *lock(&self.library) {
            Some(Ok(library)) => library.run(product, stream),
            _ => Ok(false),
        };
        let mut capture = Capture { driver, stream: stream.handle, product: &mut product };
        let known = list.as_ref().and_then(|list| live.get_mut(&list.0)).filter(|graph| graph.fits(work));
        let graph = match known {
            Some(graph) => graph,
            None => {
                let graph = Graph::new(work, &mut capture)?;
                let List(id) = list.get_or_insert_with(|| {
                    *last += 1;
                    List(*last)
                });
                live.insert(*id, graph);
                live.get_mut(id).ok_or("a graph is missing")?
            }
        };
        Ok(graph.run(work, &mut capture, self.stream.handle)?)
    }

    fn drop_list(&self, list: List) {
        let graph = lock(&self.graphs).live.remove(&list.0);
        if self.context.enter().is_ok() {
            drop(graph);
        }
    }

    fn library_product(&self, product: &LibraryProduct) -> DriverResult<bool> {
        let mut library = lock(&self.library);
        match library.get_or_insert_with(|| self.open_library()) {
            Ok(library) => {
                self.context.enter()?;
                Ok(library.run(product, self.stream.handle)?)
            }
            Err(_) => Ok(false), // `info` tells
        }
    }
}

impl Copies for Cuda {
    fn write(&self, to: Address, bytes: &[u8]) -> DriverResult<()> {
        self.stage(|staging| staging.write(to, bytes))
    }

    fn read(&self, from: Address, out: &mut [u8]) -> DriverResult<()> {
        self.stage(|staging| staging.read(from, out))
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> DriverResult<()> {
        // SAFETY: both are device memory of as many bytes, by the caller.
        Ok(unsafe { self.context.enter()?.cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream.handle) }?)
    }

    fn zero(&self, to: Address, bytes: usize) -> DriverResult<()> {
        // SAFETY: device memory of as many bytes, by the caller.
        Ok(unsafe { self.context.enter()?.cuMemsetD8Async(to.0, 0, bytes, self.stream.handle) }?)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What is dropped now may be in use until then.
        let _ = self.context.enter().and_then(|_| self.stream.wait());
        lock(&self.graphs).live.clear();
        if let Some(Ok(library)) = lock(&self.library).take() {
            self.free(library.workspace(), WORKSPACE);
        }
    }
}
