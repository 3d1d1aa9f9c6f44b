//! f16 conversion by the F16C and AVX-512 instructions, which LLVM does not find in the portable form.

use super::convert::F16Bits;
use super::*;

pub fn load(isa: Isa) -> TileFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::load_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::load_avx2,
        _ => Plain::convert::<F16Bits, f32>,
    }
}

pub fn store(isa: Isa) -> TileFn {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::store_avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::store_avx2,
        _ => Plain::convert::<f32, F16Bits>,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    macro_rules! conversions {
        ($features:literal $lanes:literal $load:ident |$out:ident, $h:ident| $widen:expr; $store:ident |$to:ident, $v:ident| $narrow:expr;) => {
            /// # Safety
            /// As for [`TileFn`], from f16 to f32.
            #[target_feature(enable = $features)]
            pub unsafe fn $load(out: *mut u8, x: [*const u8; 3], n: usize) {
                let whole = n / $lanes * $lanes;
                for i in (0..whole).step_by($lanes) {
                    // SAFETY: i + lanes <= n, and the caller's promise.
                    unsafe {
                        let ($out, $h) = (out.add(4 * i).cast(), x[0].add(2 * i).cast());
                        $widen;
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
            #[target_feature(enable = $features)]
            pub unsafe fn $store(out: *mut u8, x: [*const u8; 3], n: usize) {
                let whole = n / $lanes * $lanes;
                for i in (0..whole).step_by($lanes) {
                    // SAFETY: i + lanes <= n, and the caller's promise.
                    unsafe {
                        let ($to, $v) = (out.add(2 * i).cast(), x[0].add(4 * i).cast());
                        $narrow;
                    }
                }
                // SAFETY: the rest of the same tiles.
                unsafe {
                    let rest = [x[0].add(4 * whole), x[1], x[2]];
                    map::<f32, F16Bits>(1, out.add(2 * whole), rest, n - whole, |v| F16Bits::convert(v[0]));
                }
            }
        };
    }

    conversions! {
        "avx2,fma,f16c" 8
        load_avx2 |out, h| _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(h)));
        store_avx2 |to, v| _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(v)));
    }

    conversions! {
        "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c" 16
        load_avx512 |out, h| _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm256_loadu_si256(h)));
        store_avx512 |to, v| _mm256_storeu_si256(to, _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(v)));
    }
}
