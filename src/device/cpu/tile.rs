//! Loops over one tile of values: one function an op, a type and an instruction set.
//!
//! A body is written once, generically, in plain Rust; each [`Simd`] type inlines it into functions
//! compiled for its instruction set, where LLVM turns it into vector code. Nothing here contracts or
//! reorders arithmetic, so all sets give the same bits.

use super::isa::Isa;
use crate::dtype::DType;
use crate::for_each_elementwise;
use crate::graph::Random;
use crate::ops::math::{Narrow, Real, normal_pair, philox4x32, uniform01};
use crate::ops::table::{CmpFn, Int, IntFn, LogicFn, RealFn, TestFn, functor};
use crate::ops::{Elementwise, Reduction};
use half::{bf16, f16};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Computes `n` elements at the first pointer from `n` elements at each of the others.
///
/// # Safety
/// Used operands point to `n` initialised elements of the function's types, the first pointer to room
/// for as many that overlaps none of them; all are aligned. The machine has the instruction set.
pub type TileFn = unsafe fn(*mut u8, [*const u8; 3], usize);

/// Lanes that a fold keeps apart; fixed, so that the order of additions is the same on every machine.
const LANES: usize = 64;

macro_rules! simd { ($(#[$doc:meta])* $name:ident, $($(#[$attribute:meta])+)?) => {
    $(#[$doc])*
    struct $name;
    impl Simd for $name {
        $($(#[$attribute])+)?
        unsafe fn real<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: the caller keeps the promises of `TileFn`.
            unsafe { map::<R, R>(O::ARITY, out, x, n, |v| O::call(v)) }
        }
        $($(#[$attribute])+)?
        unsafe fn int<O: IntFn, I: Int>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<I, I>(O::ARITY, out, x, n, |v| O::call(v)) }
        }
        $($(#[$attribute])+)?
        unsafe fn logic<O: LogicFn>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<u8, u8>(O::ARITY, out, x, n, |v| O::call(v)) }
        }
        $($(#[$attribute])+)?
        unsafe fn cmp<O: CmpFn, T: PartialOrd + Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<T, u8>(2, out, x, n, |v| O::call(v[0], v[1]) as u8) }
        }
        $($(#[$attribute])+)?
        unsafe fn test<O: TestFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<R, u8>(1, out, x, n, |v| O::call(v[0]) as u8) }
        }
        $($(#[$attribute])+)?
        unsafe fn select<T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above; the condition is a tile of u8.
            unsafe { select_body::<T>(out, x, n) }
        }
        $($(#[$attribute])+)?
        unsafe fn convert<A: Copy, B: Convert<A>>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<A, B>(1, out, x, n, |v| B::convert(v[0])) }
        }
        $($(#[$attribute])+)?
        unsafe fn fold<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with room for one element at `out`.
            unsafe { fold_body::<F, T>(out, x, n) }
        }
        $($(#[$attribute])+)?
        unsafe fn accumulate<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with `n` initialised elements at `out`.
            unsafe { accumulate_body::<F, T>(out, x, n) }
        }
        $($(#[$attribute])+)?
        unsafe fn random<const NORMAL: bool>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above: operands are tiles of i64: index, key, offset.
            unsafe { random_body::<NORMAL>(out, x, n) }
        }
    }
} }

/// One instruction set's copies of the loops.
trait Simd {
    unsafe fn real<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn int<O: IntFn, I: Int>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn logic<O: LogicFn>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn cmp<O: CmpFn, T: PartialOrd + Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn test<O: TestFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn select<T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn convert<A: Copy, B: Convert<A>>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn fold<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn accumulate<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn random<const NORMAL: bool>(out: *mut u8, x: [*const u8; 3], n: usize);
}

simd!(/// What the target guarantees: SSE2, NEON.
    Plain,);
#[cfg(target_arch = "x86_64")]
simd!(/// AVX2.
    Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
simd!(/// AVX-512.
    Avx512, #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]);

/// # Safety
/// As for [`TileFn`], with `arity` operands of `A` and a result of `B`.
#[inline(always)]
unsafe fn map<A: Copy, B>(arity: usize, out: *mut u8, x: [*const u8; 3], n: usize, f: impl Fn([A; 3]) -> B) {
    // SAFETY: the caller's promise; unused operands are never touched.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<B>(), n);
        let tile = |i: usize| from_raw_parts(x[i].cast::<A>(), n);
        match arity {
            1 => {
                let a = tile(0);
                (0..n).for_each(|i| out[i] = f([a[i]; 3]));
            }
            2 => {
                let (a, b) = (tile(0), tile(1));
                (0..n).for_each(|i| out[i] = f([a[i], b[i], b[i]]));
            }
            _ => {
                let (a, b, c) = (tile(0), tile(1), tile(2));
                (0..n).for_each(|i| out[i] = f([a[i], b[i], c[i]]));
            }
        }
    }
}

/// # Safety
/// As for [`TileFn`], the first operand of u8.
#[inline(always)]
unsafe fn select_body<T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<T>(), n);
        let cond = from_raw_parts(x[0], n);
        let (then, other) = (from_raw_parts(x[1].cast::<T>(), n), from_raw_parts(x[2].cast::<T>(), n));
        for i in 0..n {
            let (then, other) = (then[i], other[i]);
            out[i] = if cond[i] != 0 { then } else { other };
        }
    }
}

/// # Safety
/// As for [`TileFn`], on i64 tiles, to f32. Key and offset are the same in every lane.
#[inline(always)]
unsafe fn random_body<const NORMAL: bool>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise; `n` is at least 1.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<f32>(), n);
        let index = from_raw_parts(x[0].cast::<u64>(), n);
        let (key, offset) = (*x[1].cast::<u64>(), *x[2].cast::<u64>());
        let key = [key as u32, (key >> 32) as u32];
        for i in 0..n {
            out[i] = random_element::<NORMAL>(key, index[i].wrapping_add(offset));
        }
    }
}

/// Element `at` of a stream: a Philox block gives four uniforms, or two pairs of normals.
#[inline(always)]
fn random_element<const NORMAL: bool>(key: [u32; 2], at: u64) -> f32 {
    let block = at >> 2;
    let words = philox4x32([block as u32, (block >> 32) as u32, NORMAL as u32, 0], key);
    let lane = (at & 3) as u32;
    let (low, high) = if lane < 2 { (words[0], words[1]) } else { (words[2], words[3]) };
    if NORMAL {
        let (even, odd) = normal_pair(low, high);
        if lane & 1 == 0 { even } else { odd }
    } else {
        uniform01(if lane & 1 == 0 { low } else { high })
    }
}

/// Conversion between the types that tiles hold, and from and to what memory holds.
trait Convert<A> {
    fn convert(x: A) -> Self;
}

macro_rules! convert_as {
    ($($a:ty => $($b:ty)+;)+) => {$($(
        impl Convert<$a> for $b {
            #[inline(always)]
            fn convert(x: $a) -> Self { x as $b }
        }
    )+)+};
}
convert_as! {
    f32 => f32 f64 i64 i32 u32 u8;
    f64 => f32 f64 i64 i32 u32 u8;
    i64 => f32 f64 i64 i32 u32 u8;
    i32 => f32 f64 i64 i32 u32 u8;
    u32 => f32 f64 i64 i32 u32 u8;
    u8 => f32 f64 i64 i32 u32 u8;
}

/// A truth value, as a tile holds it.
#[repr(transparent)]
struct Truth(#[allow(dead_code)] u8);

macro_rules! convert_truth {
    ($($a:ty)+) => {$(
        impl Convert<$a> for Truth {
            #[inline(always)]
            fn convert(x: $a) -> Self { Truth((x != 0 as $a) as u8) }
        }
    )+};
}
convert_truth!(f32 f64 i64 i32 u32 u8);

/// An f32 rounded to the precision of `N`.
#[repr(transparent)]
struct Rounded<N>(#[allow(dead_code)] f32, std::marker::PhantomData<N>);

impl Convert<f32> for Rounded<f16> {
    #[inline(always)]
    fn convert(x: f32) -> Self {
        Rounded(f32_of_f16(f16_of_f32(x)), std::marker::PhantomData)
    }
}

impl Convert<f32> for Rounded<bf16> {
    #[inline(always)]
    fn convert(x: f32) -> Self {
        Rounded(f32::from_bits((bf16_of_f32(x) as u32) << 16), std::marker::PhantomData)
    }
}

/// An f32 on the way from a wider type to a narrower one: rounded to odd, which keeps the next rounding
/// from being a second one (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
#[repr(transparent)]
struct Odd(#[allow(dead_code)] f32);

/// `near`, which is `x` rounded to nearest, turned into `x` rounded to odd.
#[inline(always)]
fn to_odd(near: f32, exact: bool, beyond: bool) -> Odd {
    let towards_zero = near.to_bits().wrapping_sub(beyond as u32);
    Odd(if exact { near } else { f32::from_bits(towards_zero | 1) })
}

impl Convert<f64> for Odd {
    #[inline(always)]
    fn convert(x: f64) -> Self {
        let near = x as f32;
        to_odd(near, near as f64 == x, (near as f64).abs() > x.abs())
    }
}

macro_rules! odd_from_integers {
    ($($t:ty)+) => {$(
        impl Convert<$t> for Odd {
            #[inline(always)]
            fn convert(x: $t) -> Self {
                let (near, exact) = (x as f32, x as i128);
                to_odd(near, near as i128 == exact, (near as i128).abs() > exact.abs())
            }
        }
    )+};
}
odd_from_integers!(i64 i32 u32);

/// The bits of an f16 in memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct F16Bits(u16);

/// The bits of a bf16 in memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16Bits(u16);

impl Convert<F16Bits> for f32 {
    #[inline(always)]
    fn convert(x: F16Bits) -> f32 {
        f32_of_f16(x.0)
    }
}

impl Convert<f32> for F16Bits {
    #[inline(always)]
    fn convert(x: f32) -> Self {
        F16Bits(f16_of_f32(x))
    }
}

impl Convert<Bf16Bits> for f32 {
    #[inline(always)]
    fn convert(x: Bf16Bits) -> f32 {
        f32::from_bits((x.0 as u32) << 16)
    }
}

impl Convert<f32> for Bf16Bits {
    #[inline(always)]
    fn convert(x: f32) -> Self {
        Bf16Bits(bf16_of_f32(x))
    }
}

/// To bf16, to nearest even; NaN becomes the quiet NaN.
#[inline(always)]
fn bf16_of_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
}

/// To f16, to nearest even, without branches; vectorises where there is no instruction for it.
///
/// Normals: the exponent is rebiased and half a unit added in integers. Below 2^-14 adding 0.5 in f32
/// leaves the wanted bits, rounded, at the bottom of the sum.
#[inline(always)]
fn f16_of_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let nan = 0x7e00 | (magnitude >> 13 & 0x1ff);
    let finite = if magnitude < 113 << 23 { small } else { normal };
    let bounded = if magnitude >= 0x4780_0000 { 0x7c00 } else { finite };
    sign | (if magnitude > 0x7f80_0000 { nan } else { bounded }) as u16
}

/// From f16, exactly, without branches.
#[inline(always)]
fn f32_of_f16(h: u16) -> f32 {
    let sign = (h as u32 & 0x8000) << 16;
    let magnitude = h as u32 & 0x7fff;
    // Shifted into place the value is 2^112 too small; the product also normalises subnormals.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = magnitude << 13 | 0x7f80_0000;
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { scaled.to_bits() })
}

/// How a reduction combines two values of `T`.
trait Fold<T> {
    fn empty() -> T;
    fn both(a: T, b: T) -> T;
}

struct Sum;
struct Prod;
struct Max;
struct Min;

macro_rules! folds {
    ($($t:ty, $low:expr, $high:expr, $add:ident $mul:ident $max:ident $min:ident;)+) => {$(
        impl Fold<$t> for Sum {
            #[inline(always)]
            fn empty() -> $t { 0 as $t }
            #[inline(always)]
            fn both(a: $t, b: $t) -> $t { a.$add(b) }
        }
        impl Fold<$t> for Prod {
            #[inline(always)]
            fn empty() -> $t { 1 as $t }
            #[inline(always)]
            fn both(a: $t, b: $t) -> $t { a.$mul(b) }
        }
        impl Fold<$t> for Max {
            #[inline(always)]
            fn empty() -> $t { $low }
            #[inline(always)]
            fn both(a: $t, b: $t) -> $t { a.$max(b) }
        }
        impl Fold<$t> for Min {
            #[inline(always)]
            fn empty() -> $t { $high }
            #[inline(always)]
            fn both(a: $t, b: $t) -> $t { a.$min(b) }
        }
    )+};
}
use std::ops::{Add as _, Mul as _};
folds! {
    f32, f32::NEG_INFINITY, f32::INFINITY, add mul max_nan min_nan;
    f64, f64::NEG_INFINITY, f64::INFINITY, add mul max_nan min_nan;
    i64, i64::MIN, i64::MAX, wrapping_add wrapping_mul max min;
    i32, i32::MIN, i32::MAX, wrapping_add wrapping_mul max min;
    u32, 0, u32::MAX, wrapping_add wrapping_mul max min;
    u8, 0, u8::MAX, wrapping_add wrapping_mul max min;
}

/// # Safety
/// As for [`TileFn`], with room for one element at `out`.
#[inline(always)]
unsafe fn fold_body<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise.
    let (out, x) = unsafe { (&mut *out.cast::<T>(), from_raw_parts(x[0].cast::<T>(), n)) };
    // With a length that LLVM does not know, these are loops, which vectorise; 64 locals it would take
    // apart and shuffle, at ten times the cost.
    let count = std::hint::black_box(LANES);
    let mut lanes = [F::empty(); LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        take::<F, T>(&mut lanes[..count], &chunk[..count]);
    }
    let rest = chunks.remainder();
    take::<F, T>(&mut lanes[..rest.len()], rest);
    let mut width = count;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        take::<F, T>(low, &high[..width]);
    }
    *out = lanes[0];
}

/// Combines `x` into `lanes`, of the same length.
#[inline(always)]
fn take<F: Fold<T>, T: Copy>(lanes: &mut [T], x: &[T]) {
    for (lane, &v) in lanes.iter_mut().zip(x) {
        *lane = F::both(*lane, v);
    }
}

/// # Safety
/// As for [`TileFn`], with `n` initialised elements at `out`.
#[inline(always)]
unsafe fn accumulate_body<F: Fold<T>, T: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise.
    let (out, x) = unsafe { (from_raw_parts_mut(out.cast::<T>(), n), from_raw_parts(x[0].cast::<T>(), n)) };
    take::<F, T>(out, x);
}

/// The best value so far and where it stood; what an arg-reduction keeps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Best<T> {
    value: T,
    index: i64,
}

/// Bytes from one `Best` to the next, for values of `class`, and where the index stands in it.
pub fn best_layout(class: DType) -> (usize, usize) {
    debug_assert!(class.size() <= 8);
    (16, 8)
}

/// Takes `n` values at `base`, `base + step`, ... into the `Best`s at `state`: all into the first one
/// (`step` 1), or each into its own (`step` 0). `fresh` states hold nothing yet.
///
/// # Safety
/// `values` points to `n` initialised elements of the function's type, `state` to one or `n` `Best`s.
pub type ArgFn = unsafe fn(state: *mut u8, values: *const u8, n: usize, base: i64, step: i64, fresh: bool);

/// # Safety
/// As for [`ArgFn`].
unsafe fn arg<T: PartialOrd + Copy, const MAX: bool>(
    state: *mut u8,
    values: *const u8,
    n: usize,
    base: i64,
    step: i64,
    fresh: bool,
) {
    let beats = |x: T, best: T| {
        let ordered = if MAX { x > best } else { x < best };
        #[allow(clippy::eq_op)]
        let (x_nan, best_nan) = (x != x, best != best);
        (ordered || x_nan) && !best_nan
    };
    for i in 0..n {
        // SAFETY: the caller's promise; with step 1 there is one state, with step 0 there are `n`.
        unsafe {
            let state = &mut *state.cast::<Best<T>>().add(if step == 0 { i } else { 0 });
            let (value, index) = (*values.cast::<T>().add(i), base + step * i as i64);
            if (fresh && step * i as i64 == 0) || beats(value, state.value) {
                *state = Best { value, index };
            }
        }
    }
}

/// Merges the second `Best` into the first, which stands before it.
///
/// # Safety
/// Both point to initialised `Best`s of the same type.
pub type ArgMergeFn = unsafe fn(state: *mut u8, later: *const u8);

/// # Safety
/// As for [`ArgMergeFn`].
unsafe fn arg_merge<T: PartialOrd + Copy, const MAX: bool>(state: *mut u8, later: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let later = *later.cast::<Best<T>>();
        arg::<T, MAX>(state, (&raw const later.value).cast(), 1, later.index, 1, false);
    }
}

/// The functions of an arg-reduction over values of `class`.
pub fn arg_fns(op: Reduction, class: DType) -> (ArgFn, ArgMergeFn) {
    macro_rules! of {
        ($t:ty) => {
            match op {
                Reduction::ArgMax => (arg::<$t, true> as ArgFn, arg_merge::<$t, true> as ArgMergeFn),
                _ => (arg::<$t, false> as ArgFn, arg_merge::<$t, false> as ArgMergeFn),
            }
        };
    }
    match class {
        DType::F64 => of!(f64),
        DType::I64 => of!(i64),
        DType::I32 => of!(i32),
        DType::U32 => of!(u32),
        DType::U8 | DType::Bool => of!(u8),
        _ => of!(f32),
    }
}

/// The type that a tile of `dtype` holds: f32 for f16 and bf16, u8 for bool.
pub fn class(dtype: DType) -> DType {
    match dtype {
        DType::Bool => DType::U8,
        other => other.compute(),
    }
}

/// Chooses an instruction set's function.
macro_rules! on {
    ($isa:expr, $S:ident => $e:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                type $S = Avx512;
                $e
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $S = Avx2;
                $e
            }
            _ => {
                type $S = Plain;
                $e
            }
        }
    };
}

/// The loop of an elementwise op over operands of `dtype` (of the branches, for a selection).
pub fn elementwise(isa: Isa, op: Elementwise, dtype: DType) -> Option<TileFn> {
    on!(isa, S => row::<S>(op, dtype))
}

macro_rules! rows { ($(
    $(#[doc = $doc:literal])* $V:ident $f:ident($($a:ident),+) $sort:ident $rounding:ident { $($rest:tt)* }
)+) => {
    fn row<S: Simd>(op: Elementwise, dtype: DType) -> Option<TileFn> {
        match op { $(Elementwise::$V => arm!($sort $V S dtype)),+ }
    }
} }

macro_rules! arm {
    (Float $V:ident $S:ident $dtype:ident) => {
        match $dtype {
            DType::F16 | DType::BF16 => Some($S::real::<functor::$V, Narrow> as TileFn),
            DType::F32 => Some($S::real::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::real::<functor::$V, f64> as TileFn),
            _ => None,
        }
    };
    (Num $V:ident $S:ident $dtype:ident) => {
        match class($dtype) {
            DType::F32 => Some($S::real::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::real::<functor::$V, f64> as TileFn),
            DType::I64 => Some($S::int::<functor::$V, i64> as TileFn),
            DType::I32 => Some($S::int::<functor::$V, i32> as TileFn),
            DType::U32 => Some($S::int::<functor::$V, u32> as TileFn),
            _ => Some($S::int::<functor::$V, u8> as TileFn),
        }
    };
    (Cmp $V:ident $S:ident $dtype:ident) => {
        match class($dtype) {
            DType::F32 => Some($S::cmp::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::cmp::<functor::$V, f64> as TileFn),
            DType::I64 => Some($S::cmp::<functor::$V, i64> as TileFn),
            DType::I32 => Some($S::cmp::<functor::$V, i32> as TileFn),
            DType::U32 => Some($S::cmp::<functor::$V, u32> as TileFn),
            _ => Some($S::cmp::<functor::$V, u8> as TileFn),
        }
    };
    (Test $V:ident $S:ident $dtype:ident) => {
        match class($dtype) {
            DType::F32 => Some($S::test::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::test::<functor::$V, f64> as TileFn),
            _ => None,
        }
    };
    (Logic $V:ident $S:ident $dtype:ident) => {
        Some($S::logic::<functor::$V> as TileFn)
    };
    (Select $V:ident $S:ident $dtype:ident) => {
        match class($dtype).size() {
            8 => Some($S::select::<u64> as TileFn),
            4 => Some($S::select::<u32> as TileFn),
            _ => Some($S::select::<u8> as TileFn),
        }
    };
}
for_each_elementwise!(rows);

/// The loop that converts a tile of `from` to a tile of `to`; `None` where both are held alike.
pub fn cast(isa: Isa, from: DType, to: DType) -> Option<TileFn> {
    fn to_class<S: Simd, A>(to: DType) -> TileFn
    where
        A: Copy,
        f32: Convert<A>,
        f64: Convert<A>,
        i64: Convert<A>,
        i32: Convert<A>,
        u32: Convert<A>,
        u8: Convert<A>,
        Truth: Convert<A>,
    {
        match to {
            DType::F64 => S::convert::<A, f64>,
            DType::I64 => S::convert::<A, i64>,
            DType::I32 => S::convert::<A, i32>,
            DType::U32 => S::convert::<A, u32>,
            DType::U8 => S::convert::<A, u8>,
            DType::Bool => S::convert::<A, Truth>,
            _ => S::convert::<A, f32>,
        }
    }
    let same = class(from) == class(to) && (to != DType::Bool || from == DType::Bool);
    if to.is_narrow() {
        match from {
            DType::F64 => return Some(on!(isa, S => S::convert::<f64, Odd>)),
            DType::I64 => return Some(on!(isa, S => S::convert::<i64, Odd>)),
            DType::I32 => return Some(on!(isa, S => S::convert::<i32, Odd>)),
            DType::U32 => return Some(on!(isa, S => S::convert::<u32, Odd>)),
            _ => {}
        }
    }
    let fns = on!(isa, S => match class(from) {
        DType::F64 => to_class::<S, f64>(to),
        DType::I64 => to_class::<S, i64>(to),
        DType::I32 => to_class::<S, i32>(to),
        DType::U32 => to_class::<S, u32>(to),
        DType::U8 => to_class::<S, u8>(to),
        _ => to_class::<S, f32>(to),
    });
    (!same).then_some(fns)
}

/// The loop that rounds a tile of f32 to the precision of `dtype`.
pub fn round(isa: Isa, dtype: DType) -> TileFn {
    match dtype {
        DType::F16 => on!(isa, S => S::convert::<f32, Rounded<f16>>),
        _ => on!(isa, S => S::convert::<f32, Rounded<bf16>>),
    }
}

/// The loop from memory of `dtype` to a tile; `None` where a tile holds the same.
pub fn load(isa: Isa, dtype: DType) -> Option<TileFn> {
    match dtype {
        DType::F16 => Some(f16c::load(isa)),
        DType::BF16 => Some(on!(isa, S => S::convert::<Bf16Bits, f32>)),
        _ => None,
    }
}

/// The loop from a tile to memory of `dtype`; `None` where memory holds the same.
pub fn store(isa: Isa, dtype: DType) -> Option<TileFn> {
    match dtype {
        DType::F16 => Some(f16c::store(isa)),
        DType::BF16 => Some(on!(isa, S => S::convert::<f32, Bf16Bits>)),
        _ => None,
    }
}

/// The two loops of a reduction over values of `class`: one folds a tile to one value (none give the
/// neutral element), one takes each of `n` values into one of `n` accumulators.
pub fn fold(isa: Isa, op: Reduction, class: DType) -> (TileFn, TileFn) {
    fn of<S: Simd, T: Copy>(op: Reduction) -> (TileFn, TileFn)
    where
        Sum: Fold<T>,
        Prod: Fold<T>,
        Max: Fold<T>,
        Min: Fold<T>,
    {
        match op {
            Reduction::Sum => (S::fold::<Sum, T>, S::accumulate::<Sum, T>),
            Reduction::Prod => (S::fold::<Prod, T>, S::accumulate::<Prod, T>),
            Reduction::Max | Reduction::ArgMax => (S::fold::<Max, T>, S::accumulate::<Max, T>),
            Reduction::Min | Reduction::ArgMin => (S::fold::<Min, T>, S::accumulate::<Min, T>),
        }
    }
    on!(isa, S => match class {
        DType::F64 => of::<S, f64>(op),
        DType::I64 => of::<S, i64>(op),
        DType::I32 => of::<S, i32>(op),
        DType::U32 => of::<S, u32>(op),
        DType::U8 | DType::Bool => of::<S, u8>(op),
        _ => of::<S, f32>(op),
    })
}

/// What a fold gives for nothing, in the first bytes.
pub fn neutral(fold: TileFn) -> [u8; 8] {
    let mut value = 0u64;
    let place = (&raw mut value).cast::<u8>();
    // SAFETY: room for one element of any class, and nothing is read.
    unsafe { fold(place, [place.cast_const(); 3], 0) };
    value.to_ne_bytes()
}

/// The loop of a random distribution; operands are i64 tiles of index, key and offset.
pub fn random(isa: Isa, kind: Random) -> TileFn {
    match kind {
        Random::Uniform => on!(isa, S => S::random::<false>),
        Random::Normal => on!(isa, S => S::random::<true>),
    }
}

/// f16 conversion by the F16C instructions, which LLVM does not find in the portable form.
mod f16c {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_conversions_agree_with_the_half_crate() {
        for bits in 0..=u16::MAX {
            let exact = f16::from_bits(bits).to_f32();
            assert!(f32_of_f16(bits).to_bits() == exact.to_bits() || exact.is_nan(), "{bits:#x}");
            for x in
                [exact, f32::from_bits(exact.to_bits() + 0x1000), f32::from_bits(exact.to_bits().wrapping_add(0xfff))]
            {
                let want = f16::from_f32(x);
                assert!(f16_of_f32(x) == want.to_bits() || want.is_nan(), "{x:e}");
                assert_eq!(f16::from_bits(f16_of_f32(x)).is_nan(), x.is_nan());
                let want = bf16::from_f32(x);
                assert!(bf16_of_f32(x) == want.to_bits() || want.is_nan(), "{x:e}");
            }
        }
    }

    #[test]
    fn folds_propagate_nan_and_keep_their_order() {
        let mut x = [1.0f32; 100];
        x[77] = f32::NAN;
        for isa in [Isa::Plain, Isa::detect()] {
            for op in [Reduction::Sum, Reduction::Max, Reduction::Min, Reduction::Prod] {
                let mut out = 0.0f32;
                // SAFETY: pointers to 100 elements and to one; the set is the machine's.
                unsafe { fold(isa, op, DType::F32).0((&raw mut out).cast(), [x.as_ptr().cast(); 3], 100) };
                assert!(out.is_nan(), "{op:?} {isa:?}");
            }
        }
    }
}
