//! Folds of f32 whose lanes stay in registers: what LLVM makes of a loop over lanes loads and stores them for each
//! chunk, which takes four times as long. The tree is that of [`fold_body`].

use super::convert::Bf16Bits;
use super::f16c::Half;
use super::*;
use std::arch::x86_64::*;

/// A register full of f32.
///
/// # Safety
/// The methods need the type's instruction set, and a register's elements at pointers.
trait Register: Copy {
    const WIDTH: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const Half) -> Self;
    unsafe fn load_bf16(p: *const Bf16Bits) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn sum(self, o: Self) -> Self;
    /// NaN if either is; of equal ones the first.
    unsafe fn larger(self, o: Self) -> Self;
    /// NaN if either is; of equal ones the first.
    unsafe fn smaller(self, o: Self) -> Self;
}

macro_rules! register {
    ($V:ident $width:literal: $splat:ident $load:ident $store:ident $add:ident;
        |$p:ident| $f16:expr; |$q:ident| $bf16:expr; |$a:ident, $b:ident, $r:ident| $or_nan:expr; $max:ident $min:ident) => {
        impl Register for $V {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn load_f16($p: *const Half) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $f16 }
            }
            #[inline(always)]
            unsafe fn load_bf16($q: *const Bf16Bits) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $bf16 }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { $store(p, self) }
            }
            #[inline(always)]
            unsafe fn sum(self, o: Self) -> Self {
                // SAFETY: the caller's promise.
                unsafe { $add(self, o) }
            }
            #[inline(always)]
            unsafe fn larger(self, o: Self) -> Self {
                // SAFETY: the caller's promise. Of equal operands the instruction takes its second.
                unsafe {
                    let ($a, $b, $r) = (self, o, $max(o, self));
                    $or_nan
                }
            }
            #[inline(always)]
            unsafe fn smaller(self, o: Self) -> Self {
                // SAFETY: as above.
                unsafe {
                    let ($a, $b, $r) = (self, o, $min(o, self));
                    $or_nan
                }
            }
        }
    };
}

register! {
    __m256 8: _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps;
    |p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
    |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))));
    |a, b, r| _mm256_blendv_ps(r, _mm256_set1_ps(f32::NAN), _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
    _mm256_max_ps _mm256_min_ps
}
register! {
    __m512 16: _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps;
    |p| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
    |p| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))));
    |a, b, r| _mm512_mask_mov_ps(r, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b), _mm512_set1_ps(f32::NAN));
    _mm512_max_ps _mm512_min_ps
}

/// An element that registers are loaded from.
trait Element: Copy {
    /// # Safety
    /// As for [`Register`].
    unsafe fn load<V: Register>(p: *const Self) -> V;
}

macro_rules! elements {
    ($($t:ty: $load:ident;)+) => {$(
        impl Element for $t {
            #[inline(always)]
            unsafe fn load<V: Register>(p: *const $t) -> V {
                // SAFETY: the caller's promise.
                unsafe { V::$load(p) }
            }
        }
    )+};
}
elements! { f32: load; Half: load_f16; Bf16Bits: load_bf16; }

/// A fold of registers, lane by lane.
trait Wide: Fold<f32> {
    /// # Safety
    /// As for [`Register`].
    unsafe fn wide<V: Register>(a: V, b: V) -> V;
}

macro_rules! wide {
    ($($fold:ident: $both:ident;)+) => {$(
        impl Wide for $fold {
            #[inline(always)]
            unsafe fn wide<V: Register>(a: V, b: V) -> V {
                // SAFETY: the caller's promise.
                unsafe { a.$both(b) }
            }
        }
    )+};
}
wide! { Sum: sum; Max: larger; Min: smaller; }

/// # Safety
/// As for [`TileFn`], with room for one element at `out`; the register's instruction set.
#[inline(always)]
unsafe fn body<V: Register, F: Wide, A: Element>(out: *mut u8, x: [*const u8; 3], n: usize)
where
    f32: Convert<A>,
{
    let x = x[0].cast::<A>();
    let whole = n / LANES * LANES;
    let mut lanes = [F::empty(); LANES];
    // SAFETY: the caller's promise; registers are loaded from whole chunks and stored to all lanes.
    unsafe {
        // Eight of AVX2 are all lanes; of AVX-512 half of them are not used.
        let mut registers = [V::splat(F::empty()); LANES / 8];
        let count = LANES / V::WIDTH;
        for chunk in (0..whole).step_by(LANES) {
            for (i, register) in registers[..count].iter_mut().enumerate() {
                *register = F::wide(*register, A::load(x.add(chunk + i * V::WIDTH)));
            }
        }
        for (i, register) in registers[..count].iter().enumerate() {
            register.store(lanes.as_mut_ptr().add(i * V::WIDTH));
        }
        for (i, lane) in lanes[..n - whole].iter_mut().enumerate() {
            *lane = F::both(*lane, f32::convert(*x.add(whole + i)));
        }
        let mut width = LANES / 2;
        while width >= V::WIDTH {
            for i in (0..width).step_by(V::WIDTH) {
                let (low, high) = (V::load(lanes.as_ptr().add(i)), V::load(lanes.as_ptr().add(width + i)));
                F::wide(low, high).store(lanes.as_mut_ptr().add(i));
            }
            width /= 2;
        }
        while width > 0 {
            (0..width).for_each(|i| lanes[i] = F::both(lanes[i], lanes[width + i]));
            width /= 2;
        }
        *out.cast() = lanes[0];
    }
}

macro_rules! fold_for {
    ($($name:ident $V:ident $features:literal;)+) => {$(
        #[target_feature(enable = $features)]
        unsafe fn $name<F: Wide, A: Element>(out: *mut u8, x: [*const u8; 3], n: usize)
        where
            f32: Convert<A>,
        {
            // SAFETY: the same contract.
            unsafe { body::<$V, F, A>(out, x, n) }
        }
    )+};
}
fold_for! {
    avx2 __m256 "avx2,fma,f16c";
    avx512 __m512 "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c";
}

/// The loop that folds a tile of f32, or memory of a narrow `dtype`, to one f32.
pub(super) fn fold(isa: Isa, op: Reduction, dtype: DType) -> Option<TileFn> {
    macro_rules! of {
        ($A:ty) => {
            match (isa, op) {
                (Isa::Avx2, Reduction::Sum) => Some(avx2::<Sum, $A> as TileFn),
                (Isa::Avx2, Reduction::Max) => Some(avx2::<Max, $A> as TileFn),
                (Isa::Avx2, Reduction::Min) => Some(avx2::<Min, $A> as TileFn),
                (Isa::Avx512, Reduction::Sum) => Some(avx512::<Sum, $A> as TileFn),
                (Isa::Avx512, Reduction::Max) => Some(avx512::<Max, $A> as TileFn),
                (Isa::Avx512, Reduction::Min) => Some(avx512::<Min, $A> as TileFn),
                _ => None,
            }
        };
    }
    match dtype {
        DType::F32 => of!(f32),
        DType::F16 => of!(Half),
        DType::BF16 => of!(Bf16Bits),
        _ => None,
    }
}
