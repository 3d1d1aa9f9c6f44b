//! The functions of NVIDIA's libraries that this crate calls: the CUDA driver, NVRTC and cuBLASLt.
//! They are looked up when first needed and never linked. Handles are addresses, and travel as `usize`.

use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::LazyLock;

/// A call that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub code: c_int,
    /// The call, and what the library says of the code.
    pub text: String,
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        failure.text
    }
}

/// `CUDA_ERROR_NOT_READY`: not an error, but the answer "not yet".
pub(super) const NOT_READY: c_int = 600;

/// A library as a table of functions that return a status, 0 for success, and a method for each that
/// turns anything else into a [`Failure`].
macro_rules! library {
    ($(#[$doc:meta])* $table:ident { $($symbol:ident($($argument:ident: $ty:ty),*);)* }
     texts { $($text:ident;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)] // the names in the libraries
        pub(super) struct $table {
            $($symbol: unsafe extern "system" fn($($ty),*) -> c_int,)*
            $($text: unsafe extern "system" fn(c_int) -> *const c_char,)*
            _library: Library,
        }

        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl $table {
            fn bind(library: Library) -> Result<$table, String> {
                Ok($table {
                    // SAFETY: the types are those of the library's headers.
                    $($symbol: unsafe { symbol(&library, stringify!($symbol)) }?,)*
                    // SAFETY: as above.
                    $($text: unsafe { symbol(&library, stringify!($text)) }?,)*
                    _library: library,
                })
            }

            $(
                #[allow(dead_code)] // not all are called by way of this
                /// # Safety
                /// As the library's reference says of the function of this name: pointers are valid for
                /// what it reads and writes, handles are alive.
                pub unsafe fn $symbol(&self, $($argument: $ty),*) -> Result<(), Failure> {
                    // SAFETY: the caller's.
                    match unsafe { (self.$symbol)($($argument),*) } {
                        0 => Ok(()),
                        code => Err(self.failure(stringify!($symbol), code)),
                    }
                }
            )*
        }
    };
}

library! {
    /// The CUDA driver.
    Driver {
        cuInit(flags: c_uint);
        cuDriverGetVersion(version: *mut c_int);
        cuDeviceGetCount(count: *mut c_int);
        cuDeviceGet(device: *mut c_int, ordinal: c_int);
        cuDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int);
        cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
        cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
        cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int);
        cuMemPoolTrimTo(pool: usize, keep: usize);
        cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int);
        cuDevicePrimaryCtxRelease_v2(device: c_int);
        cuCtxSetCurrent(context: usize);
        cuStreamCreate(stream: *mut usize, flags: c_uint);
        cuStreamSynchronize(stream: usize);
        cuStreamDestroy_v2(stream: usize);
        cuEventCreate(event: *mut usize, flags: c_uint);
        cuEventRecord(event: usize, stream: usize);
        cuEventQuery(event: usize);
        cuEventSynchronize(event: usize);
        cuEventElapsedTime(milliseconds: *mut f32, from: usize, to: usize);
        cuEventDestroy_v2(event: usize);
        cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize);
        cuMemFreeAsync(address: u64, stream: usize);
        cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint);
        cuMemFreeHost(memory: *mut c_void);
        cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize);
        cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize);
        cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize);
        cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: usize);
        cuModuleLoadData(module: *mut usize, image: *const c_void);
        cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char);
        cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize);
        cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int);
        cuTensorMapEncodeTiled(map: *mut c_void, dtype: c_int, rank: c_uint, address: u64, sizes: *const u64,
            strides: *const u64, boxes: *const c_uint, steps: *const c_uint, interleave: c_int, swizzle: c_int,
            promotion: c_int, fill: c_int);
        cuLaunchKernel(function: usize, groups_x: c_uint, groups_y: c_uint, groups_z: c_uint,
            threads_x: c_uint, threads_y: c_uint, threads_z: c_uint, shared_bytes: c_uint, stream: usize,
            parameters: *const *const c_void, extra: *const *const c_void);
        cuGraphCreate(graph: *mut usize, flags: c_uint);
        cuGraphDestroy(graph: usize);
        cuGraphAddKernelNode_v2(node: *mut usize, graph: usize, after: *const usize, count: usize,
            parameters: *const KernelNode);
        cuGraphAddChildGraphNode(node: *mut usize, graph: usize, after: *const usize, count: usize, child: usize);
        cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, flags: u64);
        cuGraphExecKernelNodeSetParams_v2(exec: usize, node: usize, parameters: *const KernelNode);
        cuGraphExecChildGraphNodeSetParams(exec: usize, node: usize, child: usize);
        cuGraphExecDestroy(exec: usize);
        cuGraphLaunch(exec: usize, stream: usize);
        cuStreamBeginCapture_v2(stream: usize, mode: c_int);
        cuStreamEndCapture(stream: usize, graph: *mut usize);
        cuGetErrorName(code: c_int, text: *mut *const c_char);
        cuGetErrorString(code: c_int, text: *mut *const c_char);
    }
    texts {}
}

library! {
    /// The compiler of CUDA C++.
    Nvrtc {
        nvrtcVersion(major: *mut c_int, minor: *mut c_int);
        nvrtcCreateProgram(program: *mut usize, source: *const c_char, name: *const c_char, headers: c_int,
            texts: *const *const c_char, names: *const *const c_char);
        nvrtcCompileProgram(program: usize, options: c_int, list: *const *const c_char);
        nvrtcGetProgramLogSize(program: usize, bytes: *mut usize);
        nvrtcGetProgramLog(program: usize, log: *mut c_char);
        nvrtcGetCUBINSize(program: usize, bytes: *mut usize);
        nvrtcGetCUBIN(program: usize, image: *mut c_char);
        nvrtcDestroyProgram(program: *mut usize);
    }
    texts { nvrtcGetErrorString; }
}

library! {
    /// Matrix products by NVIDIA.
    CublasLt {
        cublasLtCreate(handle: *mut usize);
        cublasLtDestroy(handle: usize);
        cublasLtMatmulDescCreate(product: *mut usize, compute: c_int, scale: c_int);
        cublasLtMatmulDescDestroy(product: usize);
        cublasLtMatmulDescSetAttribute(product: usize, attribute: c_int, value: *const c_void, bytes: usize);
        cublasLtMatrixLayoutCreate(layout: *mut usize, ty: c_int, rows: u64, columns: u64, stride: i64);
        cublasLtMatrixLayoutDestroy(layout: usize);
        cublasLtMatrixLayoutSetAttribute(layout: usize, attribute: c_int, value: *const c_void, bytes: usize);
        cublasLtMatmulPreferenceCreate(preference: *mut usize);
        cublasLtMatmulPreferenceDestroy(preference: usize);
        cublasLtMatmulPreferenceSetAttribute(preference: usize, attribute: c_int, value: *const c_void,
            bytes: usize);
        cublasLtMatmulAlgoGetHeuristic(handle: usize, product: usize, a: usize, b: usize, c: usize, d: usize,
            preference: usize, asked: c_int, results: *mut Heuristic, found: *mut c_int);
        cublasLtMatmul(handle: usize, product: usize, alpha: *const c_void, a: u64, a_layout: usize, b: u64,
            b_layout: usize, beta: *const c_void, c: u64, c_layout: usize, d: u64, d_layout: usize,
            algorithm: *const [u64; 8], workspace: u64, workspace_bytes: usize, stream: usize);
    }
    texts { cublasLtGetStatusString; }
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub(super) struct KernelNode {
    pub function: usize,
    pub groups: [c_uint; 3],
    pub threads: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub parameters: *const *const c_void,
    pub extra: *const *const c_void,
    pub kernel: usize,
    pub context: usize,
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Heuristic {
    pub algorithm: [u64; 8],
    pub workspace_bytes: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

impl Driver {
    /// The driver, initialised; looked for once a process.
    pub fn get() -> Result<&'static Driver, String> {
        static DRIVER: LazyLock<Result<Driver, String>> = LazyLock::new(|| {
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            let driver = Driver::bind(open("NVIDIA's driver", None, &[name.into()])?)?;
            // SAFETY: has no pointers.
            unsafe { driver.cuInit(0) }?;
            Ok(driver)
        });
        DRIVER.as_ref().map_err(Clone::clone)
    }

    /// The major version of CUDA that the driver can run.
    pub fn cuda_version(&self) -> Result<u32, Failure> {
        let mut version = 0;
        // SAFETY: a place for a number.
        unsafe { self.cuDriverGetVersion(&raw mut version) }?;
        Ok(version.unsigned_abs() / 1000)
    }

    fn failure(&self, call: &str, code: c_int) -> Failure {
        let text = |function: unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: `text` is a place for a pointer, which is left alone or becomes one to a constant.
            unsafe { function(code, &raw mut text) };
            // SAFETY: see above.
            unsafe { owned(text) }
        };
        let (name, text) = (text(self.cuGetErrorName), text(self.cuGetErrorString));
        Failure { code, text: format!("{call}: {name} ({text})") }
    }
}

impl Nvrtc {
    /// Looks for NVRTC of the CUDA version `newest` or older, so that its code is not too new for the
    /// driver. `TL_NVRTC` names the file instead.
    pub fn open(newest: u32) -> Result<Nvrtc, String> {
        let name =
            |major| if cfg!(windows) { format!("nvrtc64_{major}0_0.dll") } else { format!("libnvrtc.so.{major}") };
        Nvrtc::bind(open("NVRTC", Some("TL_NVRTC"), &names(newest, &name))?)
    }

    fn failure(&self, call: &str, code: c_int) -> Failure {
        // SAFETY: takes any code and returns a constant.
        let text = unsafe { owned((self.nvrtcGetErrorString)(code)) };
        Failure { code, text: format!("{call}: {text}") }
    }
}

impl CublasLt {
    /// The cuBLASLt that suits the driver, looked for once a process. `TL_CUBLASLT` names the file instead.
    pub fn get() -> Result<&'static CublasLt, String> {
        static LIBRARY: LazyLock<Result<CublasLt, String>> = LazyLock::new(|| {
            let newest = Driver::get()?.cuda_version()?;
            let name = |major| {
                if cfg!(windows) { format!("cublasLt64_{major}.dll") } else { format!("libcublasLt.so.{major}") }
            };
            CublasLt::bind(open("cuBLASLt", Some("TL_CUBLASLT"), &names(newest, &name))?)
        });
        LIBRARY.as_ref().map_err(Clone::clone)
    }

    fn failure(&self, call: &str, code: c_int) -> Failure {
        // SAFETY: takes any code and returns a constant.
        let text = unsafe { owned((self.cublasLtGetStatusString)(code)) };
        Failure { code, text: format!("{call}: {text}") }
    }
}

/// File names for the versions of CUDA that this crate knows, the newest first.
fn names(newest: u32, name: &dyn Fn(u32) -> String) -> Vec<String> {
    [13, 12].into_iter().filter(|&major| major <= newest).map(name).collect()
}

/// # Safety
/// `text` is null or ends in a zero.
unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `T` is the type of the function of this name.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's; the table that the function goes to keeps the library.
    let found = unsafe { library.get::<T>(name) };
    found.map(|symbol| *symbol).map_err(|e| format!("{name} is not in the library that was found: {e}"))
}

/// Opens the first file there is: the one that `variable` names, or else one of `names` where the system
/// looks for libraries or in a CUDA installation.
fn open(what: &str, variable: Option<&str>, names: &[String]) -> Result<Library, String> {
    let variable_set = variable.and_then(std::env::var_os).map(PathBuf::from);
    let folders = match &variable_set {
        Some(_) => vec![],
        None => installations(),
    };
    let files = match variable_set {
        Some(file) => vec![file],
        None => names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).collect(),
    };
    let mut reason = String::new();
    for file in &files {
        load_neighbours(file);
        // SAFETY: initialisers of NVIDIA's libraries have no preconditions; they are never unloaded while
        // a table of their functions is alive.
        match unsafe { Library::new(file) } {
            Ok(library) => return Ok(library),
            // What the user named, and what exists but does not load, deserves its reason.
            Err(e) if files.len() == 1 || file.exists() => reason = format!(": {e}"),
            Err(_) => {}
        }
    }
    let looked: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let advice = variable.map(|name| format!("; {name} can name the file")).unwrap_or_default();
    Err(format!("{what} was not found (looked for {}){reason}{advice}", looked.join(", ")))
}

/// Where libraries are looked for: an empty path, which leaves it to the system, and installations.
fn installations() -> Vec<PathBuf> {
    let below = if cfg!(windows) { "bin" } else { "lib64" };
    let set =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(|root| PathBuf::from(root).join(below));
    let usual = if cfg!(unix) { Some(PathBuf::from("/usr/local/cuda/lib64")) } else { None };
    std::iter::once(PathBuf::new()).chain(set).chain(usual).collect()
}

/// NVRTC opens its `libnvrtc-builtins` by name alone, which fails in a folder that the system does not
/// search; if it is open already, it is found.
fn load_neighbours(file: &std::path::Path) {
    let is_nvrtc = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so"));
    let entries = file.parent().filter(|_| is_nvrtc).and_then(|folder| std::fs::read_dir(folder).ok());
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            // SAFETY: the library holds tables only.
            if let Ok(library) = unsafe { Library::new(entry.path()) } {
                std::mem::forget(library); // stays open, like NVRTC
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_words() {
        let error = open("NVRTC", None, &["libtl-no-such.so.7".into()]).unwrap_err();
        assert!(error.contains("NVRTC was not found") && error.contains("libtl-no-such.so.7"), "{error}");
    }

    #[test]
    fn a_missing_symbol_is_an_error_with_words() {
        // Any library will do.
        let name = if cfg!(windows) { "kernel32.dll" } else { "libc.so.6" };
        let Ok(library) = open("the C library", None, &[name.into()]) else { return };
        let error = Nvrtc::bind(library).err().unwrap();
        assert!(error.contains("nvrtcVersion is not in the library"), "{error}");
    }

    #[test]
    fn no_version_is_newer_than_the_driver() {
        let name = |major| format!("lib.so.{major}");
        assert_eq!(names(12, &name), ["lib.so.12"]);
        assert_eq!(names(13, &name), ["lib.so.13", "lib.so.12"]);
    }
}
