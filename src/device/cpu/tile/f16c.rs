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

/// The bits of an f16 in memory, in the loops of instruction sets that convert them.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Half(u16);

/// The bits of a bf16 in memory, in the same loops.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Brain(u16);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::convert::bf16_of_f32;
    use super::*;
    use std::arch::x86_64::*;

    impl Convert<Half> for f32 {
        #[inline(always)]
        fn convert(x: Half) -> f32 {
            // SAFETY: the type is used in the loops of AVX2 and AVX-512 alone, which have F16C. In a loop these
            // become the vector instruction.
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(x.0)))) }
        }
    }

    impl Stored for Half {
        #[inline(always)]
        unsafe fn load(p: *const Half) -> [f32; 8] {
            // SAFETY: the caller's promise; a vector of eight f32 and an array of them are the same 32 bytes.
            unsafe { std::mem::transmute(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut Half, values: [f32; 8]) {
            // SAFETY: as above.
            unsafe {
                let narrow =
                    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(std::mem::transmute::<[f32; 8], __m256>(values));
                _mm_storeu_si128(p.cast(), narrow);
            }
        }
        #[inline(always)]
        fn widen(self) -> f32 {
            f32::convert(self)
        }
        #[inline(always)]
        fn narrow(x: f32) -> Half {
            // SAFETY: as for the conversion the other way.
            Half(unsafe { _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(x))) } as u16)
        }
    }

    impl Convert<Brain> for f32 {
        #[inline(always)]
        fn convert(x: Brain) -> f32 {
            f32::from_bits(u32::from(x.0) << 16)
        }
    }

    impl Stored for Brain {
        #[inline(always)]
        unsafe fn load(p: *const Brain) -> [f32; 8] {
            // SAFETY: as above.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                std::mem::transmute(_mm256_slli_epi32::<16>(bits))
            }
        }
        /// [`bf16_of_f32`], eight at once.
        #[inline(always)]
        unsafe fn store(p: *mut Brain, values: [f32; 8]) {
            // SAFETY: as above.
            unsafe {
                let bits: __m256i = std::mem::transmute(values);
                let x: __m256 = std::mem::transmute(values);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let wide = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                let narrow = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
                _mm_storeu_si128(p.cast(), narrow);
            }
        }
        #[inline(always)]
        fn widen(self) -> f32 {
            f32::convert(self)
        }
        #[inline(always)]
        fn narrow(x: f32) -> Brain {
            Brain(bf16_of_f32(x))
        }
    }

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
