//! The seam: what a GPU driver does. Everything that can live above it does, in this folder.
//!
//! A driver has one queue. What is asked of it runs in the order of the calls as far as its effects
//! can tell, except that dispatches with no [`Driver::barrier`] between them may overlap. Calls come
//! from one thread at a time (the runtime's lock), but for those whose comment says otherwise.

use crate::codegen::{Machine, TENSOR_MAP, TensorMap};
use crate::device::DeviceInfo;
use std::ptr::NonNull;
use std::time::Duration;

/// Where a piece of device memory lies, as its driver understands it. An address that the driver gave
/// out plus a byte offset inside that allocation is an address, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address(pub u64);

/// A kernel that is ready to run. Never given back: the runtime's cache bounds how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Function(pub u64);

/// Names the work up to a commit: a driver's first commit is 1, the next one 2, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Ticket(pub u64);

/// A point in the queue whose time the device notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark(pub u64);

/// What kernels and the runtime have to keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub machine: Machine,
    /// Where nothing starts before it is committed: what the runtime commits without being asked.
    pub batch: Option<Batch>,
    /// Whether dispatches run one after another anyway, so that nothing has to be found out to keep them in order.
    pub in_order: bool,
    /// Operations and bytes up to which a graph that somebody waits for is computed by the host: see
    /// `Device::set_cpu_threshold`. For [`Transfer::Unified`] only.
    pub cpu_threshold: usize,
    /// Whether compiled kernels are worth keeping on disk.
    pub keeps_binaries: bool,
    /// Whether what computes products is checked when it is first needed (`selfcheck`).
    pub self_check: bool,
}

/// When a batch of dispatches is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Batch {
    pub dispatches: usize,
    /// What the device does in a microsecond, about and rather less: systems with a watchdog kill batches that take
    /// seconds, with all that is in them.
    pub bytes_per_microsecond: f64,
    pub operations_per_microsecond: f64,
}

/// One run of a kernel. Groups and threads are counted along one to three dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dispatch<'a> {
    pub function: Function,
    /// The kernel's name, for messages.
    pub name: &'a str,
    pub groups: [u32; 3],
    /// Threads of a group: at most [`Machine::threads`], a multiple of 32, along one dimension.
    pub threads: u32,
    /// Bytes of threadgroup memory beyond what the kernel declares; 0 where [`Machine::dispatch_bytes`] is.
    pub block_bytes: u32,
    /// Bound at `[[buffer(0)]]` and up.
    pub buffers: &'a [Address],
    /// The kernel's `constant Args&`, bound behind the buffers; empty if it has none.
    pub args: &'a [u8],
    /// Memory that the kernel reaches through addresses inside `args`.
    #[cfg_attr(not(feature = "soft-metal"), allow(dead_code))] // CUDA's kernels reach all memory
    pub indirect: &'a [Address],
}

/// What a library's matrix product does to its sums before it stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Activation {
    None,
    Relu,
    /// The tanh form.
    Gelu,
}

/// A piece of a list of work.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work<'a> {
    Dispatch(Dispatch<'a>),
    /// One that [`Driver::takes_product`].
    Product(LibraryProduct),
}

/// A list that a driver has prepared.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct List(pub u64);

/// A batch of matrix products for a vendor's library: `out = activation(a b + bias)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LibraryProduct {
    /// Of `a` and `b`: f16, bf16 or f32; sums are f32.
    pub dtype: crate::DType,
    pub out_dtype: crate::DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    pub a: Matrix,
    pub b: Matrix,
    /// Row-major, dense.
    pub out: Matrix,
    /// `n` values of `out_dtype`, added to each row.
    pub bias: Option<Address>,
    pub activation: Activation,
    /// Where `a b + bias` goes, too, as `out` lies; beside a GELU.
    pub before: Option<Address>,
}

/// One operand of a product; strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Matrix {
    pub address: Address,
    pub row_stride: isize,
    pub col_stride: isize,
    pub batch_stride: isize,
}

/// What a dispatch moved between device memory and its threads: every load and store, not only first ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The kernel's name.
    pub name: String,
    /// Of each allocation that the dispatch was given.
    pub allocations: Vec<AllocationTraffic>,
}

/// What a dispatch moved from and to one allocation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationTraffic {
    /// Size of the allocation.
    pub bytes: u64,
    /// Bytes loaded.
    pub loaded: u64,
    /// Bytes stored.
    pub stored: u64,
}

/// How the host gets at a device's memory.
pub(crate) enum Transfer<'a> {
    /// By copies in the queue's order.
    Copies(&'a dyn Copies),
    /// It is the host's memory, too.
    #[cfg_attr(not(any(target_os = "macos", feature = "soft-metal")), allow(dead_code))]
    Unified(&'a dyn Unified),
}

/// Copies between the host and a device, and inside it.
pub(crate) trait Copies {
    /// Copies host bytes to the device, in queue order. When it returns, `bytes` may change.
    fn write(&self, to: Address, bytes: &[u8]) -> DriverResult<()>;

    /// Copies device memory to the host, in queue order, and waits for it.
    fn read(&self, from: Address, out: &mut [u8]) -> DriverResult<()>;

    /// Copies `bytes` bytes from one piece of device memory to another, which it does not overlap.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> DriverResult<()>;

    /// Sets `bytes` bytes to zero.
    fn zero(&self, to: Address, bytes: usize) -> DriverResult<()>;
}

/// Memory that the device shares with the host. Calls come from any thread.
pub(crate) trait Unified: Sync {
    /// Where the host finds `bytes` bytes of an allocation. Whoever asks has seen to it that no work that was asked for
    /// writes them, nor, if the host `writes` them, reads them.
    fn host(&self, address: Address, bytes: usize, writes: bool) -> DriverResult<NonNull<u8>>;

    /// Bytes that imported memory is aligned to, and its size a multiple of.
    fn page(&self) -> usize;

    /// Makes `bytes` bytes of the host's memory an allocation of the device, without a copy; `None` if that cannot be.
    /// They stay where they are until it is freed.
    fn import(&self, host: NonNull<u8>, bytes: usize) -> Option<Address>;
}

/// Why a driver could not do something, in the words of the system below it.
pub(crate) type DriverResult<T> = Result<T, String>;

/// A GPU, or what stands in for one.
pub(crate) trait Driver: Send + Sync {
    /// `cuda:0`, for example.
    fn name(&self) -> String;

    fn info(&self) -> DeviceInfo;

    fn limits(&self) -> Limits;

    /// Bytes of memory, if known.
    fn memory(&self) -> Option<usize> {
        None
    }

    /// Memory of at least `bytes` bytes, aligned to 256, with unspecified contents; `None` when there is
    /// none to be had. From any thread.
    fn alloc(&self, bytes: usize) -> Option<Address>;

    /// Takes memory back. Where transfers are copies: once all work that was asked for before has run; where memory is
    /// unified, none of it is in use any more. From any thread.
    fn free(&self, address: Address, bytes: usize);

    /// How the host gets at the memory.
    fn transfer(&self) -> Transfer<'_>;

    /// Whether the system is short of memory, and asks for what is not needed. From any thread.
    fn is_pressed(&self) -> bool {
        false
    }

    /// Which compiler, and for which chip: part of the key of what is cached on disk.
    fn compiler(&self) -> String;

    /// Compiles Metal Shading Language to what [`Driver::load`] takes. From any thread, several at once.
    ///
    /// # Errors
    /// What the compiler says.
    fn compile(&self, source: &str) -> DriverResult<Vec<u8>>;

    /// Makes the kernel `name` of a compiled source ready. From any thread.
    fn load(&self, binary: &[u8], name: &str) -> DriverResult<Function>;

    /// Threads that a group of this kernel may have: registers can make them fewer than the device's.
    fn max_threads(&self, function: Function) -> u32 {
        let _ = function;
        self.limits().machine.threads as u32
    }

    /// The tensor map of an operand whose buffer begins at `address`, where [`Machine::tensor_maps`] is.
    fn tensor_map(&self, address: Address, map: &TensorMap) -> DriverResult<[u8; TENSOR_MAP]> {
        Err(format!("there are no tensor maps here, for {map:?} at {address:?}"))
    }

    /// Runs a kernel, some time.
    fn dispatch(&self, dispatch: &Dispatch) -> DriverResult<()>;

    /// What is asked for from here on sees the effects of all that was asked for before.
    fn barrier(&self);

    /// Sends off what has been asked for. The ticket names it.
    fn commit(&self) -> DriverResult<Ticket>;

    /// Whether all work up to the ticket has run. From any thread.
    fn is_done(&self, ticket: Ticket) -> bool;

    /// Waits until all work up to the ticket has run. From any thread, while others submit.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn wait(&self, ticket: Ticket) -> DriverResult<()>;

    /// Notes the time at this point of the queue.
    fn mark(&self) -> DriverResult<Mark>;

    /// The device's time between two marks, once both have passed. Gives the marks back.
    fn elapsed(&self, from: Mark, to: Mark) -> DriverResult<Duration>;

    /// Counts what dispatches move from here on; `false` where that cannot be told.
    fn start_traffic(&self) -> bool {
        false
    }

    /// What was counted since, of each dispatch that has run; counting ends.
    fn take_traffic(&self) -> Vec<Traffic> {
        Vec::new()
    }

    /// Whether there is a vendor's library that multiplies matrices.
    fn has_library(&self) -> bool {
        false
    }

    /// Whether the vendor's library multiplies this.
    fn takes_product(&self, product: &LibraryProduct) -> bool {
        let _ = product;
        false
    }

    /// Whether there is a faster way to run a list of work again than piece by piece.
    fn has_lists(&self) -> bool {
        false
    }

    /// Runs a list of work, one piece after the other. It is prepared the first time, and runs faster from then on while
    /// it differs from what `list` was before in addresses and arguments alone; otherwise it is prepared anew.
    fn run_list(&self, list: &mut Option<List>, work: &[Work]) -> DriverResult<()> {
        let _ = (list, work);
        Err("this driver has no lists".into())
    }

    /// Takes a list back. From any thread.
    fn drop_list(&self, list: List) {
        let _ = list;
    }

    /// Multiplies by the vendor's library; `false` if there is none, or none for this product.
    fn library_product(&self, product: &LibraryProduct) -> DriverResult<bool> {
        let _ = product;
        Ok(false)
    }
}
