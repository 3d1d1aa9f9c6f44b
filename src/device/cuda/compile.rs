//! From a kernel's source to a cubin, by NVRTC. Needs no GPU.

use super::api::Nvrtc;
use crate::device::gpu::translate::{Target, translate};
use std::ffi::{CString, c_char, c_int};

/// The names of `<metal_stdlib>`, its matrices last: reading those costs no time that could be measured.
pub(super) const PRELUDE: &str = concat!(
    include_str!("../../../shaders/prelude/cuda.h"),
    include_str!("../../../shaders/prelude/matrix.h"),
    include_str!("../../../shaders/prelude/cuda_matrix.h"),
    include_str!("../../../shaders/prelude/cuda_attention.h"),
    include_str!("../../../shaders/prelude/cuda_hopper.h")
);

/// NVRTC.
pub(super) struct Compiler {
    nvrtc: Nvrtc,
    /// Major and minor.
    version: (c_int, c_int),
}

impl Compiler {
    /// Opens NVRTC of the CUDA version `newest` or older.
    pub fn open(newest: u32) -> Result<Compiler, String> {
        let nvrtc = Nvrtc::open(newest)?;
        let mut version = (0, 0);
        // SAFETY: places for two numbers.
        unsafe { nvrtc.nvrtcVersion(&raw mut version.0, &raw mut version.1) }?;
        Ok(Compiler { nvrtc, version })
    }

    /// `nvrtc 13.0`.
    pub fn name(&self) -> String {
        format!("nvrtc {}.{}", self.version.0, self.version.1)
    }

    /// Compiles Metal Shading Language for a chip, `sm_90a` for example.
    pub fn compile_for(&self, source: &str, chip: &str) -> Result<Vec<u8>, String> {
        let text = CString::new(cuda_text(source)?).map_err(|_| "a kernel's source holds a zero byte")?;
        let program = Program::new(&self.nvrtc, &text)?;
        let chip = format!("-arch={chip}");
        // Contraction is by `fma` only. Denormals, division and square roots are exact by default.
        let options = ["-std=c++17", "-default-device", "-fmad=false", "-w", &chip];
        program.compile(&options).map_err(|e| format!("{} for {chip}: {e}", self.name()))?;
        program.cubin()
    }
}

/// Preludes and the translated source; the compiler's messages count the source's lines.
fn cuda_text(source: &str) -> Result<String, String> {
    Ok(format!("{PRELUDE}\n#line 1 \"kernel.metal\"\n{}", translate(source, Target::Cuda)?))
}

/// A program of NVRTC's; gone when dropped.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: usize,
}

impl<'a> Program<'a> {
    fn new(nvrtc: &'a Nvrtc, text: &CString) -> Result<Self, String> {
        let (mut handle, none) = (0, std::ptr::null());
        // SAFETY: `text` and the name end in zeros and are copied; there are no headers.
        unsafe { nvrtc.nvrtcCreateProgram(&raw mut handle, text.as_ptr(), c"kernel.metal".as_ptr(), 0, none, none) }?;
        Ok(Program { nvrtc, handle })
    }

    /// What goes wrong comes with the compiler's log.
    fn compile(&self, options: &[&str]) -> Result<(), String> {
        let options: Vec<CString> = options.iter().filter_map(|&option| CString::new(option).ok()).collect();
        let list: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(list.len()).expect("a few");
        // SAFETY: the program is alive; `list` holds `count` strings that end in zeros.
        let compiled = unsafe { self.nvrtc.nvrtcCompileProgram(self.handle, count, list.as_ptr()) };
        compiled.map_err(|failure| format!("{}\n{}", failure.text, self.log()))
    }

    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is alive; a place for a number.
        if unsafe { self.nvrtc.nvrtcGetProgramLogSize(self.handle, &raw mut bytes) }.is_err() {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: the log has the size that was asked for.
        if unsafe { self.nvrtc.nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast()) }.is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is alive; a place for a number.
        unsafe { self.nvrtc.nvrtcGetCUBINSize(self.handle, &raw mut bytes) }?;
        let mut image = vec![0u8; bytes];
        // SAFETY: the image has the size that was asked for.
        unsafe { self.nvrtc.nvrtcGetCUBIN(self.handle, image.as_mut_ptr().cast()) }?;
        Ok(image)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and nobody uses it again.
        let _ = unsafe { self.nvrtc.nvrtcDestroyProgram(&raw mut self.handle) };
    }
}
