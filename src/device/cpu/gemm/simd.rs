//! The vector types that the kernels are generic over.
//!
//! Every method is `#[inline(always)]`, so that the intrinsics end up inside the kernel that carries
//! the `#[target_feature]`; called from anywhere else they would be real calls, or undefined.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A type that products are summed in.
pub trait Scalar: Copy + Default + Send + Sync + 'static {
    /// `self * x + y`, fused where that is one instruction; wrapping for integers.
    fn mul_add(self, x: Self, y: Self) -> Self;

    /// `self + x`, wrapping for integers.
    fn plus(self, x: Self) -> Self;
}

macro_rules! float_scalar {
    ($($t:ident)+) => {$(
        impl Scalar for $t {
            #[inline(always)]
            fn mul_add(self, x: Self, y: Self) -> Self {
                // Without the instruction a fused multiply-add is a call into libm.
                let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
                if fused { $t::mul_add(self, x, y) } else { self * x + y }
            }

            #[inline(always)]
            fn plus(self, x: Self) -> Self {
                self + x
            }
        }
    )+};
}

macro_rules! int_scalar {
    ($($t:ident)+) => {$(
        impl Scalar for $t {
            #[inline(always)]
            fn mul_add(self, x: Self, y: Self) -> Self {
                self.wrapping_mul(x).wrapping_add(y)
            }

            #[inline(always)]
            fn plus(self, x: Self) -> Self {
                self.wrapping_add(x)
            }
        }
    )+};
}

float_scalar!(f32 f64);
int_scalar!(i64 i32 u32 u8);

/// Asks for the cache line at `p`, which may be any address.
#[inline(always)]
pub fn prefetch<T>(p: *const T) {
    ask_for::<T, false>(p);
}

/// As [`prefetch`], but to the second-level cache, for what is read a little later.
#[inline(always)]
pub fn prefetch_far<T>(p: *const T) {
    ask_for::<T, true>(p);
}

#[inline(always)]
fn ask_for<T, const FAR: bool>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of an address that is not mapped does nothing.
    unsafe {
        if FAR { _mm_prefetch::<_MM_HINT_T1>(p.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A vector of [`Scalar`]s.
///
/// # Safety
///
/// The methods need the instruction set that the type belongs to; pointers are to `LANES` scalars
/// (one for `splat`), of any alignment that the scalar allows.
pub trait Simd: Copy {
    /// The type of a lane.
    type Scalar: Scalar;
    /// How many lanes.
    const LANES: usize;

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `*p`.
    unsafe fn splat(p: *const Self::Scalar) -> Self;
    /// The lanes at `p`.
    unsafe fn load(p: *const Self::Scalar) -> Self;
    /// Writes the lanes to `p`.
    unsafe fn store(self, p: *mut Self::Scalar);
    /// `self * x + y`.
    unsafe fn mul_add(self, x: Self, y: Self) -> Self;
    /// `self + x`.
    unsafe fn plus(self, x: Self) -> Self;
}

/// Eight lanes: the vectors that packing and thin products work in. Both are bound by memory, so
/// there is nothing to gain from wider ones.
///
/// # Safety
///
/// As for [`Simd`].
pub trait Octet: Simd {
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8];

    /// Writes the first `n <= 8` lanes to `p`.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut Self::Scalar, n: usize) {
        let mut lanes = [Self::Scalar::default(); 8];
        // SAFETY: `lanes` holds eight scalars, and the caller has room for `n` of them at `p`. The
        // widths of tiles are spelled out to be copied in registers, not by a call.
        unsafe {
            self.store(lanes.as_mut_ptr());
            match n {
                8 => self.store(p),
                6 => p.copy_from_nonoverlapping(lanes.as_ptr(), 6),
                4 => p.copy_from_nonoverlapping(lanes.as_ptr(), 4),
                _ => p.copy_from_nonoverlapping(lanes.as_ptr(), n),
            }
        }
    }
}

/// A vector in plain Rust, for the compiler to vectorise with what the target (or the kernel around
/// it) has.
#[derive(Clone, Copy)]
pub struct Lanes<T>([T; 8]);

impl<T: Scalar> Simd for Lanes<T> {
    type Scalar = T;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Lanes([T::default(); 8])
    }

    #[inline(always)]
    unsafe fn splat(p: *const T) -> Self {
        // SAFETY: the caller vouches for one scalar at `p`.
        Lanes([unsafe { p.read() }; 8])
    }

    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        // SAFETY: the caller vouches for eight scalars at `p`.
        Lanes(unsafe { p.cast::<[T; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut T) {
        // SAFETY: the caller vouches for room for eight scalars at `p`.
        unsafe { p.cast::<[T; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, y: Self) -> Self {
        let mut sum = y;
        for i in 0..8 {
            sum.0[i] = self.0[i].mul_add(x.0[i], y.0[i]);
        }
        sum
    }

    #[inline(always)]
    unsafe fn plus(self, x: Self) -> Self {
        let mut sum = self;
        for i in 0..8 {
            sum.0[i] = self.0[i].plus(x.0[i]);
        }
        sum
    }
}

impl<T: Scalar> Octet for Lanes<T> {
    #[inline(always)]
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8] {
        let mut columns = rows;
        for (i, column) in columns.iter_mut().enumerate() {
            for (lane, row) in column.0.iter_mut().zip(&rows) {
                *lane = row.0[i];
            }
        }
        columns
    }
}

impl<T> From<[T; 8]> for Lanes<T> {
    #[inline(always)]
    fn from(lanes: [T; 8]) -> Self {
        Lanes(lanes)
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_simd {
    ($(
        $v:ident, $t:ident, $n:literal,
        $zero:ident, $set1:ident, $load:ident, $store:ident, $fma:ident, $add:ident;
    )+) => {$(
        impl Simd for $v {
            type Scalar = $t;
            const LANES: usize = $n;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $zero() }
            }

            #[inline(always)]
            unsafe fn splat(p: *const $t) -> Self {
                // SAFETY: the caller vouches for the instruction set and for one scalar at `p`.
                unsafe { $set1(p.read()) }
            }

            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self {
                // SAFETY: the caller vouches for the instruction set and for the lanes at `p`.
                unsafe { $load(p) }
            }

            #[inline(always)]
            unsafe fn store(self, p: *mut $t) {
                // SAFETY: the caller vouches for the instruction set and for the room at `p`.
                unsafe { $store(p, self) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, x: Self, y: Self) -> Self {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $fma(self, x, y) }
            }

            #[inline(always)]
            unsafe fn plus(self, x: Self) -> Self {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $add(self, x) }
            }
        }
    )+};
}

#[cfg(target_arch = "x86_64")]
x86_simd! {
    __m256, f32, 8,
        _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps;
    __m256d, f64, 4,
        _mm256_setzero_pd, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_fmadd_pd, _mm256_add_pd;
    __m512, f32, 16,
        _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps;
    __m512d, f64, 8,
        _mm512_setzero_pd, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_fmadd_pd, _mm512_add_pd;
}

#[cfg(target_arch = "x86_64")]
impl Octet for __m256 {
    #[inline(always)]
    unsafe fn transpose(r: [Self; 8]) -> [Self; 8] {
        // SAFETY: the caller vouches for AVX2; the shuffles touch registers only.
        unsafe {
            let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
            let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
            let (e, f) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
            let (g, h) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
            let (p, q) = (_mm256_shuffle_ps::<0x44>(a, c), _mm256_shuffle_ps::<0xee>(a, c));
            let (s, t) = (_mm256_shuffle_ps::<0x44>(b, d), _mm256_shuffle_ps::<0xee>(b, d));
            let (u, v) = (_mm256_shuffle_ps::<0x44>(e, g), _mm256_shuffle_ps::<0xee>(e, g));
            let (w, x) = (_mm256_shuffle_ps::<0x44>(f, h), _mm256_shuffle_ps::<0xee>(f, h));
            [
                _mm256_permute2f128_ps::<0x20>(p, u),
                _mm256_permute2f128_ps::<0x20>(q, v),
                _mm256_permute2f128_ps::<0x20>(s, w),
                _mm256_permute2f128_ps::<0x20>(t, x),
                _mm256_permute2f128_ps::<0x31>(p, u),
                _mm256_permute2f128_ps::<0x31>(q, v),
                _mm256_permute2f128_ps::<0x31>(s, w),
                _mm256_permute2f128_ps::<0x31>(t, x),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        // SAFETY: the caller vouches for AVX2 and for room for `n` lanes at `p`; each arm writes no more.
        unsafe {
            match n {
                8 => self.store(p),
                4 => _mm_storeu_ps(p, _mm256_castps256_ps128(self)),
                6 => {
                    _mm_storeu_ps(p, _mm256_castps256_ps128(self));
                    _mm_storel_epi64(p.add(4).cast(), _mm_castps_si128(_mm256_extractf128_ps::<1>(self)));
                }
                _ => {
                    let mut lanes = [0.0; 8];
                    self.store(lanes.as_mut_ptr());
                    p.copy_from_nonoverlapping(lanes.as_ptr(), n);
                }
            }
        }
    }
}

/// Sixteen f32 sums, or sixteen pairs of bf16 factors in the same bits.
///
/// A product of two pairs adds both products to the sum in one instruction, which treats subnormal
/// operands and sums as zero.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Bf16Dot(__m512);

#[cfg(target_arch = "x86_64")]
impl Simd for Bf16Dot {
    type Scalar = f32;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Bf16Dot(unsafe { __m512::zero() })
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512 and for one pair at `p`. The pair is read as an
        // integer because an f32 load might quiet what looks like a signalling NaN.
        Bf16Dot(unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(p.cast::<i32>().read())) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512 and for sixteen lanes at `p`.
        Bf16Dot(unsafe { __m512::load(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for AVX-512 and for room for sixteen lanes at `p`.
        unsafe { self.0.store(p) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, x: Self, y: Self) -> Self {
        // SAFETY: the caller vouches for AVX512-BF16; __m512 and __m512bh are the same 64 bytes.
        unsafe {
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(self.0), std::mem::transmute::<__m512, __m512bh>(x.0));
            Bf16Dot(_mm512_dpbf16_ps(y.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn plus(self, x: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Bf16Dot(unsafe { self.0.plus(x.0) })
    }
}
