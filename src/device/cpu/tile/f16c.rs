//! f16 conversion by the F16C instructions, which LLVM does not find in the portable form.

use super::convert::F16Bits;
use super::*;

pub fn load(isa: Isa) -> TileFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => x86::load,
        _ => Plain::convert::<F16Bits, f32>,
    }
}

pub fn store(isa: Isa) -> TileFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => x86::store,
        _ => Plain::convert::<f32, F16Bits>,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// # Safety
    /// As for [`TileFn`], from f16 to f32.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn load(out: *mut u8, x: [*const u8; 3], n: usize) {
        let whole = n / 8 * 8;
        for i in (0..whole).step_by(8) {
            // SAFETY: i + 8 <= n, and the caller's promise.
            unsafe {
                let h = _mm_loadu_si128(x[0].add(2 * i).cast());
                _mm256_storeu_ps(out.add(4 * i).cast(), _mm256_cvtph_ps(h));
            }
        }
        // SAFETY: the rest of the same tiles.
        unsafe {
            let rest = [x[0].add(2 * whole), x[1], x[2]];
            map::<F16Bits, f32>(1, out.add(4 * whole), rest, n - whole, |v| f32::convert(v[0]));
        }
    }

    /// # Safety
    /// As for [`TileFn`], from f32 to f16.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn store(out: *mut u8, x: [*const u8; 3], n: usize) {
        let whole = n / 8 * 8;
        for i in (0..whole).step_by(8) {
            // SAFETY: i + 8 <= n, and the caller's promise.
            unsafe {
                let v = _mm256_loadu_ps(x[0].add(4 * i).cast());
                _mm_storeu_si128(out.add(2 * i).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
            }
        }
        // SAFETY: the rest of the same tiles.
        unsafe {
            let rest = [x[0].add(4 * whole), x[1], x[2]];
            map::<f32, F16Bits>(1, out.add(2 * whole), rest, n - whole, |v| F16Bits::convert(v[0]));
        }
    }
}
