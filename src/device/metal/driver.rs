//! The driver: one device, its memory and its kernels. What is sent to it: `queue.rs`.

use super::queue::Commands;
use crate::codegen::{Chip, Class, Machine};
use crate::device::gpu::driver::{
    Address, Batch, Dispatch, Driver, DriverResult, Function, Limits, Mark, Ticket, Transfer, Unified,
};
use crate::device::gpu::progress::Progress;
use crate::device::gpu::translate::fingerprint;
use crate::device::{DeviceInfo, lock, macos};
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2::sel;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLBuffer, MTLCompileOptions, MTLComputePipelineState, MTLCopyAllDevices, MTLDevice, MTLGPUFamily,
    MTLLanguageVersion, MTLLibrary, MTLMathFloatingPointFunctions, MTLMathMode, MTLResourceOptions,
};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

// Without it, a program that shows nothing is given no Metal device.
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

/// A Metal object of a protocol.
pub(super) type Object<P> = Retained<ProtocolObject<P>>;

/// The least that has bfloat, and all that the shaders need.
const LANGUAGE: MTLLanguageVersion = MTLLanguageVersion::Version3_1;

/// Before each source. f32 arithmetic is what it says: a multiplication and an addition are two roundings.
const HEAD: &str = "#pragma METAL fp contract(off)\n#pragma clang fp contract(off)\n#line 1\n";

/// Bytes of a page, to which imported memory is aligned.
const PAGE: usize = 16 << 10;

/// Bytes of arguments that travel with a dispatch.
const ARGUMENT_BYTES: usize = 4096;

/// Libraries that are kept, for sources of several kernels; kernels keep theirs themselves.
const MAX_LIBRARIES: usize = 64;

/// Looking again and again for this long costs less than to be woken.
const SPIN: Duration = Duration::from_micros(50);

/// See `Device::set_cpu_threshold`. Two cores of an EPYC take 3 to 50 us for maps, rows and products of that cost, and
/// 150 to 280 us for gathers (2026-11-23); a commit and its wait some 150 us, by figures that others have measured.
const CPU_THRESHOLD: usize = 128 << 10;

/// The generations that there are, the newest first: the feature set, its chips, its number.
const FAMILIES: [(MTLGPUFamily, &str, u8); 4] = [
    (MTLGPUFamily::Apple10, "Apple10 (M5)", 10),
    (MTLGPUFamily::Apple9, "Apple9 (M3, M4)", 9),
    (MTLGPUFamily::Apple8, "Apple8 (M2)", 8),
    (MTLGPUFamily::Apple7, "Apple7 (M1)", 7),
];

/// An Apple GPU.
pub(crate) struct Metal {
    ordinal: usize,
    device: Object<dyn MTLDevice>,
    model: String,
    /// As in [`FAMILIES`].
    family: (&'static str, u8),
    class: Class,
    memory: Memory,
    libraries: Mutex<VecDeque<(u64, Object<dyn MTLLibrary>)>>,
    functions: Mutex<Vec<Arc<Object<dyn MTLComputePipelineState>>>>,
    commands: Mutex<Commands>,
    progress: Arc<Progress>,
}

/// The allocations, by the addresses that kernels know them by.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<u64, Allocation>>);

/// A buffer of Metal's, which counts how many hold it.
#[derive(Clone)]
pub(super) struct Allocation {
    pub buffer: Object<dyn MTLBuffer>,
    bytes: usize,
}

// SAFETY: Metal's buffers are objects that any thread may use; what is in them is ordered by the runtime above.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Memory {
    /// `None` if another allocation has its address, which an import of what is imported already might get.
    fn insert(&self, buffer: Object<dyn MTLBuffer>, bytes: usize) -> Option<Address> {
        let address = buffer.gpuAddress();
        let mut memory = lock(&self.0);
        if memory.contains_key(&address) {
            return None;
        }
        memory.insert(address, Allocation { buffer, bytes });
        Some(Address(address))
    }

    fn remove(&self, address: Address) -> Option<Allocation> {
        lock(&self.0).remove(&address.0)
    }

    /// The allocation that an address lies in, and how far.
    pub fn find(&self, address: Address) -> DriverResult<(Allocation, usize)> {
        let memory = lock(&self.0);
        let found = memory.range(..=address.0).next_back();
        let found = found.map(|(start, allocation)| (allocation, (address.0 - start) as usize));
        match found.filter(|(allocation, offset)| *offset < allocation.bytes) {
            Some((allocation, offset)) => Ok((allocation.clone(), offset)),
            None => Err(format!("{:#x} is no address of this device", address.0)),
        }
    }
}

impl Metal {
    /// Opens a device.
    ///
    /// # Errors
    /// No such device; one that is no Apple GPU, or a system that is too old.
    pub fn open(ordinal: usize) -> DriverResult<Arc<dyn Driver>> {
        autoreleasepool(|_| Ok(Arc::new(Metal::new(ordinal)?) as Arc<dyn Driver>))
    }

    fn new(ordinal: usize) -> DriverResult<Metal> {
        let devices = MTLCopyAllDevices();
        let count = devices.count();
        let device = devices.into_iter().nth(ordinal);
        let device = device.ok_or_else(|| format!("there is no Metal device {ordinal}; the system knows {count}"))?;
        let model = device.name().to_string();
        let family = FAMILIES.iter().find(|(family, ..)| device.supportsFamily(*family));
        let &(_, name, number) = family.ok_or_else(|| format!("{model} is no Apple GPU of family 7 (M1) or newer"))?;
        if !device.hasUnifiedMemory() {
            return Err(format!("{model} has memory of its own"));
        }
        probe_language(&device)?;
        // The last letter of the architecture's name: g for base and Pro chips, s for Max, d for Ultra.
        let class = match device.architecture().name().to_string().chars().last() {
            Some('s' | 'd') => Class::Max,
            _ => Class::Base,
        };
        let progress = Arc::new(Progress::spinning(SPIN));
        Ok(Metal {
            ordinal,
            model,
            family: (name, number),
            class,
            memory: Memory::default(),
            libraries: Mutex::default(),
            functions: Mutex::default(),
            commands: Mutex::new(Commands::new(&device, progress.clone())?),
            progress,
            device,
        })
    }

    /// The library of a source; compiled if it is not at hand.
    fn library(&self, source: &str) -> DriverResult<Object<dyn MTLLibrary>> {
        let mut hasher = DefaultHasher::new();
        source.hash(&mut hasher);
        let key = hasher.finish();
        if let Some((_, library)) = lock(&self.libraries).iter().find(|(known, _)| *known == key) {
            return Ok(library.clone());
        }
        let library = compile(&self.device, source)?;
        let mut libraries = lock(&self.libraries);
        libraries.truncate(MAX_LIBRARIES - 1);
        libraries.push_front((key, library.clone()));
        Ok(library)
    }

    fn pipeline(&self, function: Function) -> DriverResult<Arc<Object<dyn MTLComputePipelineState>>> {
        lock(&self.functions).get(function.0 as usize).cloned().ok_or_else(|| "no such function".into())
    }
}

/// Compiles without fast math, in which compilers assume that there is no NaN, reorder sums, and take `exp` lightly.
fn compile(device: &ProtocolObject<dyn MTLDevice>, source: &str) -> DriverResult<Object<dyn MTLLibrary>> {
    let options = MTLCompileOptions::new();
    options.setLanguageVersion(LANGUAGE);
    if options.respondsToSelector(sel!(setMathMode:)) {
        options.setMathMode(MTLMathMode::Safe);
        options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
    } else {
        #[expect(deprecated, reason = "what systems before macOS 15 have")]
        options.setFastMathEnabled(false);
    }
    let source = NSString::from_str(&[HEAD, source].concat());
    let compiled = device.newLibraryWithSource_options_error(&source, Some(&options));
    compiled.map_err(|error| error.localizedDescription().to_string())
}

/// Whether the system's compiler knows the language.
fn probe_language(device: &ProtocolObject<dyn MTLDevice>) -> DriverResult<()> {
    let old = |reason: String| format!("the kernels need Metal 3.1 (macOS 14): {reason}");
    let version = macos::text(c"kern.osproductversion").unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 14 {
        return Err(old(format!("this is macOS {version}")));
    }
    let probe = "#include <metal_stdlib>\nusing namespace metal;\n\
                 kernel void probe(device bfloat* x [[buffer(0)]]) { x[0] = bfloat(0.0f); }";
    compile(device, probe).map(drop).map_err(old)
}

impl Driver for Metal {
    fn name(&self) -> String {
        format!("metal:{}", self.ordinal)
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: Driver::name(self),
            model: Some(self.model.clone()),
            memory: self.memory(),
            threads: self.limits().machine.parallel_groups * 256,
            simd: self.family.0,
            missing: Vec::new(),
        }
    }

    fn limits(&self) -> Limits {
        // Metal does not tell how many cores there are.
        let cores = match self.class {
            Class::Base => 10,
            Class::Max => 32,
        };
        let machine = Machine {
            threads: self.device.maxThreadsPerThreadgroup().width.min(1024),
            threadgroup_bytes: self.device.maxThreadgroupMemoryLength(),
            dispatch_bytes: 0,
            buffers: 31,
            argument_bytes: ARGUMENT_BYTES,
            grid: u32::MAX as usize,
            parallel_groups: cores * 4,
            matrix_units: true,
            tensor_maps: false,
            chip: Chip::Apple { family: self.family.1, class: self.class },
            product: None,
        };
        // Less than an M1's, of which every other chip has more.
        let batch = Batch { dispatches: 256, bytes_per_microsecond: 5e4, operations_per_microsecond: 1e6 };
        let cpu_threshold = CPU_THRESHOLD;
        // The system keeps compiled kernels itself.
        Limits { machine, batch: Some(batch), in_order: false, cpu_threshold, keeps_binaries: false, self_check: true }
    }

    /// What the device can use without swapping.
    fn memory(&self) -> Option<usize> {
        usize::try_from(self.device.recommendedMaxWorkingSetSize()).ok()
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        autoreleasepool(|_| {
            let buffer = self.device.newBufferWithLength_options(bytes.max(1), options())?;
            self.memory.insert(buffer, bytes)
        })
    }

    fn free(&self, address: Address, _bytes: usize) {
        autoreleasepool(|_| drop(self.memory.remove(address)));
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer::Unified(self)
    }

    fn is_pressed(&self) -> bool {
        // 1: all is well; 2: a warning; 4: critical.
        let level = macos::number(c"kern.memorystatus_vm_pressure_level");
        level > Some(1) || self.device.currentAllocatedSize() as u64 > self.device.recommendedMaxWorkingSetSize()
    }

    fn compiler(&self) -> String {
        // The compiler comes with the system.
        let build = macos::text(c"kern.osversion").unwrap_or_default();
        format!("Metal 3.1 of {build}, safe and precise, {:016x}, {}, {}", fingerprint(HEAD), self.model, self.family.0)
    }

    /// The source itself: Metal has no compiled form to hand out but in files, and keeps one for the next process.
    fn compile(&self, source: &str) -> DriverResult<Vec<u8>> {
        autoreleasepool(|_| self.library(source))?;
        Ok(source.as_bytes().to_vec())
    }

    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function> {
        let source = std::str::from_utf8(binary).map_err(|_| "this is no source")?;
        autoreleasepool(|_| {
            let function = self.library(source)?.newFunctionWithName(&NSString::from_str(name));
            let function = function.ok_or_else(|| format!("the source has no kernel {name}"))?;
            let pipeline = self.device.newComputePipelineStateWithFunction_error(&function);
            let pipeline = pipeline.map_err(|error| format!("{name}: {}", error.localizedDescription()))?;
            if pipeline.threadExecutionWidth() != 32 {
                return Err(format!("{name}: simdgroups of {} threads, not 32", pipeline.threadExecutionWidth()));
            }
            let mut functions = lock(&self.functions);
            functions.push(Arc::new(pipeline));
            Ok(Function(functions.len() as u64 - 1))
        })
    }

    fn max_threads(&self, function: Function) -> u32 {
        self.pipeline(function).map_or(0, |pipeline| pipeline.maxTotalThreadsPerThreadgroup() as u32)
    }

    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()> {
        let pipeline = self.pipeline(dispatch.function)?;
        autoreleasepool(|_| lock(&self.commands).dispatch(&pipeline, dispatch, &self.memory))
    }

    fn barrier(&self) {
        autoreleasepool(|_| lock(&self.commands).barrier());
    }

    fn commit(&self) -> DriverResult<Ticket> {
        autoreleasepool(|_| lock(&self.commands).commit())
    }

    fn is_done(&self, ticket: Ticket) -> bool {
        self.progress.is_done(ticket)
    }

    /// A failure stays: nobody knows which results are whole.
    fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        self.progress.wait(ticket)
    }

    fn mark(&self) -> DriverResult<Mark> {
        autoreleasepool(|_| lock(&self.commands).mark())
    }

    fn elapsed(&self, from: Mark, to: Mark) -> DriverResult<Duration> {
        autoreleasepool(|_| lock(&self.commands).elapsed(from, to))
    }
}

/// Memory that the host sees, and in which Metal looks for no hazards: the runtime does.
fn options() -> MTLResourceOptions {
    MTLResourceOptions::StorageModeShared | MTLResourceOptions::HazardTrackingModeUntracked
}

impl Unified for Metal {
    fn host(&self, address: Address, bytes: usize, _writes: bool) -> DriverResult<NonNull<u8>> {
        let (allocation, offset) = self.memory.find(address)?;
        if bytes > allocation.bytes - offset {
            return Err(format!("{bytes} bytes at {:#x} are more than there are", address.0));
        }
        // SAFETY: the offset is inside the buffer.
        Ok(unsafe { allocation.buffer.contents().cast::<u8>().add(offset) })
    }

    fn page(&self) -> usize {
        PAGE
    }

    fn import(&self, host: NonNull<u8>, bytes: usize) -> Option<Address> {
        // SAFETY: the bytes are the caller's, whole pages, and stay until `free`; nobody is told when that comes.
        let buffer = autoreleasepool(|_| unsafe {
            let device = &self.device;
            device.newBufferWithBytesNoCopy_length_options_deallocator(host.cast(), bytes, options(), None)
        })?;
        self.memory.insert(buffer, bytes)
    }
}

impl Drop for Metal {
    fn drop(&mut self) {
        // Command buffers do not keep what they use.
        if let Ok(ticket) = self.commit() {
            let _ = self.progress.wait(ticket);
        }
    }
}
