//! The host's C++ compiler as the kernels' compiler, and libraries of kernels brought into the process.

use super::hooks::{Context, RUNTIME, Runtime};
use crate::device::gpu::translate::{Target, fingerprint, translate};
use std::ffi::{OsString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

const PRELUDE: &str = include_str!("../../../shaders/prelude/host.h");
const MATRIX: &str =
    concat!(include_str!("../../../shaders/prelude/matrix.h"), include_str!("../../../shaders/prelude/host_matrix.h"));
const HOOKS: &str = include_str!("../../../shaders/prelude/host_hooks.cpp");

/// What messages call a kernel's source.
const SOURCE: &str = "kernel.metal";

/// What kernels are compiled with. Checked code is compiled for the thread sanitizer, whose calls our own hooks
/// answer; what merges, splits or moves accesses is switched off. A small kernel takes 70 ms (g++ 12, 2026-11).
const KERNEL_FLAGS: [&str; 9] = [
    "-O1",
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-g1",
    "-pipe",
    "-shared",
    "-nostdlib",
    "-lm",
];

/// Keeps vectors in one piece; clang has no such flag.
const GCC_FLAGS: [&str; 1] = ["-fno-tree-sra"];

const COMMON_FLAGS: [&str; 9] = [
    "-std=c++17",
    "-fPIC",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-asynchronous-unwind-tables",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
];

/// A folder for the compiler's files, and the compiled hooks in it.
pub(super) struct Compiler {
    program: OsString,
    /// What it says of itself.
    version: String,
    folder: PathBuf,
    serial: AtomicU64,
}

/// What folders' names start with; the process and a serial number follow.
const FOLDER: &str = "tensorlogic-soft-";

/// Removes the folders of processes that have ended without dropping their devices, as they do with static ones.
fn sweep() {
    let ended = |name: &str| {
        let process = name.strip_prefix(FOLDER).and_then(|rest| rest.split('-').next());
        process.is_some_and(|id| Path::new("/proc/self").exists() && !Path::new("/proc").join(id).exists())
    };
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(ended) {
            // Another process may be at it, too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Compiler {
    pub fn new() -> Result<Compiler, String> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        sweep();
        let folder = std::env::temp_dir().join(format!("{FOLDER}{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let program = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let asked = Command::new(&program).arg("--version").output();
        let asked = asked.map_err(|e| format!("{}, the C++ compiler: {e}", program.to_string_lossy()))?;
        let version = String::from_utf8_lossy(&asked.stdout).lines().next().unwrap_or_default().to_string();
        let compiler = Compiler { program, version, folder, serial: AtomicU64::new(0) };
        let source = compiler.write("hooks.cpp", [PRELUDE, HOOKS].concat().as_bytes())?;
        compiler.run(&["-O2", "-c"], &[&source], &compiler.folder.join("hooks.o"))?;
        Ok(compiler)
    }

    /// The compiler's name, as the key of a cache has it.
    pub fn name(&self) -> String {
        let texts = [fingerprint(PRELUDE), fingerprint(MATRIX), fingerprint(HOOKS)];
        format!("soft-metal {} {texts:x?} {KERNEL_FLAGS:?}", self.version)
    }

    /// The shared library of a source in Metal Shading Language.
    pub fn compile(&self, source: &str) -> Result<Vec<u8>, String> {
        // Not for the others, which would pay for it.
        let matrix = if source.contains("simdgroup_matrix") || source.contains("8x8") { MATRIX } else { "" };
        let text = format!("{PRELUDE}{matrix}#line 1 \"{SOURCE}\"\n{}", translate(source, Target::Host)?);
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let input = self.write(&format!("{serial}.cpp"), text.as_bytes())?;
        let output = self.folder.join(format!("{serial}.out"));
        let result = self.run(&KERNEL_FLAGS, &[&input, &self.folder.join("hooks.o")], &output);
        // Left behind only if the process ends in between.
        let _ = std::fs::remove_file(&input);
        result?;
        let binary = std::fs::read(&output).map_err(|e| format!("{}: {e}", output.display()));
        let _ = std::fs::remove_file(&output);
        binary
    }

    /// Brings a compiled library into the process, and finds a kernel in it.
    pub fn load(&self, binary: &[u8], name: &str) -> Result<Kernel, String> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.write(&format!("{serial}.so"), binary)?;
        Kernel::open(path, name).map_err(|reason| format!("kernel {name}: {reason}"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    fn run(&self, flags: &[&str], inputs: &[&Path], output: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        if !self.version.contains("clang") {
            command.args(GCC_FLAGS);
        }
        command.args(COMMON_FLAGS).args(inputs).args(flags).arg("-o").arg(output);
        let run = command.output().map_err(|e| format!("{}: {e}", self.program.to_string_lossy()))?;
        if !run.status.success() {
            return Err(String::from_utf8_lossy(&run.stderr).into_owned());
        }
        Ok(())
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        // Temporary files: nothing depends on their going.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A kernel in the process.
pub(super) struct Kernel {
    entry: unsafe extern "C" fn(*const Context),
    /// Whether threads wait for one another or share memory; if not, they can run one after another.
    pub cooperative: bool,
    /// The addresses between which the library lies.
    pub image: (usize, usize),
    path: PathBuf,
    _library: libloading::Library,
}

impl Kernel {
    fn open(path: PathBuf, name: &str) -> Result<Kernel, String> {
        let text = |e: libloading::Error| e.to_string();
        // SAFETY: the library comes from `Compiler::compile` (the caller of `load` vouches for its bytes), and has no
        // initialisers but the sanitizer's, which does nothing.
        let library = unsafe { libloading::Library::new(&path) }.map_err(text)?;
        let symbol = format!("tl_entry_{name}");
        // SAFETY: `TL_ENTRY` of shaders/prelude/host.h gives what has this name this type. The library stays loaded
        // as long as the kernel is there.
        let entry = *unsafe { library.get::<unsafe extern "C" fn(*const Context)>(&symbol) }.map_err(text)?;
        // SAFETY: `tl_start` of shaders/prelude/host_hooks.cpp has this type.
        let start =
            *unsafe { library.get::<unsafe extern "C" fn(*const Runtime, *mut [*const c_void; 2])>("tl_start") }
                .map_err(text)?;
        let mut image = [std::ptr::null(); 2];
        // SAFETY: it keeps the address of a static, and writes two pointers.
        unsafe { start(&RUNTIME, &mut image) };
        let has = |symbol: &str| {
            // SAFETY: only whether the symbol is there is asked.
            unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
        };
        let cooperative = ["tl_barrier", "tl_exchange", "tl_threadgroup"].into_iter().any(has);
        Ok(Kernel { entry, cooperative, image: (image[0] as usize, image[1] as usize), path, _library: library })
    }

    /// The line of the source that a call returns to, if the tool that knows is there: `kernel.metal:12`.
    pub fn line(&self, caller: usize) -> Option<String> {
        let call = caller.checked_sub(self.image.0 + 1)?;
        let run =
            Command::new("addr2line").args(["-i", "-e"]).arg(&self.path).arg(format!("{call:#x}")).output().ok()?;
        let frames = String::from_utf8_lossy(&run.stdout).into_owned();
        let line = frames.lines().find_map(|frame| frame.split('/').next_back().filter(|f| f.starts_with(SOURCE)))?;
        Some(line.split(' ').next()?.into())
    }

    /// Runs the kernel for one thread.
    ///
    /// # Safety
    /// The context's buffers and arguments are there, or the hooks keep the kernel from touching them.
    pub unsafe fn run(&self, context: &Context) {
        // SAFETY: the caller's promise.
        unsafe { (self.entry)(context) }
    }
}
