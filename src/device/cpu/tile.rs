//! Loops over one tile of values: one function an op, a type and an instruction set.
//!
//! A body is written once, generically, in plain Rust; each [`Simd`] type inlines it into functions
//! compiled for its instruction set, where LLVM turns it into vector code. Nothing here contracts or
//! reorders arithmetic, so all sets give the same bits.

mod convert;
mod f16c;
mod fold;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(not(target_arch = "x86_64"))]
mod registers {
    pub(super) fn fold(_: super::Isa, _: super::Reduction, _: super::DType) -> Option<super::TileFn> {
        None
    }
}

pub use fold::{ArgFn, ArgMergeFn, arg_fns, best_layout};

use super::isa::Isa;
use crate::dtype::DType;
use crate::for_each_elementwise;
use crate::graph::Random;
use crate::ops::math::{Narrow, Real, normal_pair, philox4x32, uniform01};
use crate::ops::table::{CmpFn, Int, IntFn, LogicFn, RealFn, TestFn, functor};
use crate::ops::{Elementwise, Reduction};
use convert::{Bf16Bits, Convert, F16Bits, Odd, Rounded, Truth};
use fold::{Fold, Max, Min, Prod, Sum, accumulate_body, fold_body};
use half::{bf16, f16};
use narrow::{Single, Stored, stored_body};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// Computes `n` elements at the first pointer from `n` elements at each of the others.
///
/// # Safety
/// Used operands point to `n` initialised elements of the function's types, the first pointer to room
/// for as many that overlaps none of them; all are aligned. The machine has the instruction set.
pub type TileFn = unsafe fn(*mut u8, [*const u8; 3], usize);

/// Lanes that a fold keeps apart; fixed, so that the order of additions is the same on every machine.
const LANES: usize = 64;

macro_rules! simd { ($(#[$doc:meta])* $name:ident, $half:ty, $brain:ty, $($(#[$attribute:meta])+)?) => {
    $(#[$doc])*
    struct $name;
    impl Simd for $name {
        type Half = $half;
        type Brain = $brain;
        $($(#[$attribute])+)?
        unsafe fn real<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: the caller keeps the promises of `TileFn`.
            unsafe { map::<R, R>(O::ARITY, out, x, n, |v| O::call(v)) }
        }
        $($(#[$attribute])+)?
        unsafe fn real_by_one<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with one element at the second operand.
            unsafe {
                let one = *x[1].cast::<R>();
                map::<R, R>(1, out, x, n, |[a, ..]| O::call([a, one, one]))
            }
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
        unsafe fn select<T: Bits>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above; the condition is a tile of u8.
            unsafe { select_body::<T>(out, x, n) }
        }
        $($(#[$attribute])+)?
        unsafe fn convert<A: Copy, B: Convert<A>>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above.
            unsafe { map::<A, B>(1, out, x, n, |v| B::convert(v[0])) }
        }
        $($(#[$attribute])+)?
        unsafe fn stored<O: RealFn, R: Single, A: Stored, B: Stored, C: Stored>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above; the types are of this set.
            unsafe { stored_body::<O, R, A, B, C>(out, x, n, None) }
        }
        $($(#[$attribute])+)?
        unsafe fn stored_by_one<O: RealFn, A: Stored, C: Stored>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with one f32 at the second operand.
            unsafe { stored_body::<O, f32, A, f32, C>(out, x, n, Some(*x[1].cast())) }
        }
        $($(#[$attribute])+)?
        unsafe fn fold<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with room for one element at `out`.
            unsafe { fold_body::<F, T, A>(out, x, n) }
        }
        $($(#[$attribute])+)?
        unsafe fn accumulate<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
            // SAFETY: as above, with `n` initialised elements at `out`.
            unsafe { accumulate_body::<F, T, A>(out, x, n) }
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
    /// How its loops read f16.
    type Half: Stored;
    /// How its loops read bf16.
    type Brain: Stored;
    unsafe fn real<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn real_by_one<O: RealFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn int<O: IntFn, I: Int>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn logic<O: LogicFn>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn cmp<O: CmpFn, T: PartialOrd + Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn test<O: TestFn, R: Real>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn select<T: Bits>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn convert<A: Copy, B: Convert<A>>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn stored<O: RealFn, R: Single, A: Stored, B: Stored, C: Stored>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn stored_by_one<O: RealFn, A: Stored, C: Stored>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn fold<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn accumulate<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(out: *mut u8, x: [*const u8; 3], n: usize);
    unsafe fn random<const NORMAL: bool>(out: *mut u8, x: [*const u8; 3], n: usize);
}

simd!(/// What the target guarantees: SSE2, NEON.
    Plain, F16Bits, Bf16Bits,);
#[cfg(target_arch = "x86_64")]
simd!(/// AVX2.
    Avx2, f16c::Half, f16c::Brain, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
simd!(/// AVX-512.
    Avx512, f16c::Half, f16c::Brain, #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]);

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

/// An element as bits.
trait Bits: Copy {
    /// `then` where the condition is not 0. Both are read: a choice LLVM would turn into loads of the chosen one alone,
    /// which branch or are masked, at ten times the cost.
    fn either(cond: u8, then: Self, other: Self) -> Self;
}

macro_rules! bits {
    ($($t:ty)+) => {$(
        impl Bits for $t {
            #[inline(always)]
            fn either(cond: u8, then: $t, other: $t) -> $t {
                other ^ ((then ^ other) & (0 as $t).wrapping_sub((cond != 0) as $t))
            }
        }
    )+};
}
bits!(u8 u32 u64);

/// # Safety
/// As for [`TileFn`], the first operand of u8.
#[inline(always)]
unsafe fn select_body<T: Bits>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<T>(), n);
        let cond = from_raw_parts(x[0], n);
        let (then, other) = (from_raw_parts(x[1].cast::<T>(), n), from_raw_parts(x[2].cast::<T>(), n));
        (0..n).for_each(|i| out[i] = T::either(cond[i], then[i], other[i]));
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

pub mod narrow;

/// The loop of an elementwise op over operands of `dtype` (of the branches, for a selection).
pub fn elementwise(isa: Isa, op: Elementwise, dtype: DType) -> Option<TileFn> {
    on!(isa, S => row::<S>(op, dtype))
}

/// The loop of a binary op on floats whose second operand is one element, the same for the whole tile.
/// `None` for other ops and dtypes.
pub fn elementwise_by_one(isa: Isa, op: Elementwise, dtype: DType) -> Option<TileFn> {
    macro_rules! binary {
        ($S:ident: $($V:ident)+) => {
            match (op, dtype.held()) {
                $(
                    (Elementwise::$V, DType::F32) => Some($S::real_by_one::<functor::$V, f32> as TileFn),
                    (Elementwise::$V, DType::F64) => Some($S::real_by_one::<functor::$V, f64> as TileFn),
                )+
                _ => None,
            }
        };
    }
    on!(isa, S => binary!(S: Add Sub Mul Div Maximum Minimum))
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
        match $dtype.held() {
            DType::F32 => Some($S::real::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::real::<functor::$V, f64> as TileFn),
            DType::I64 => Some($S::int::<functor::$V, i64> as TileFn),
            DType::I32 => Some($S::int::<functor::$V, i32> as TileFn),
            DType::U32 => Some($S::int::<functor::$V, u32> as TileFn),
            _ => Some($S::int::<functor::$V, u8> as TileFn),
        }
    };
    (Cmp $V:ident $S:ident $dtype:ident) => {
        match $dtype.held() {
            DType::F32 => Some($S::cmp::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::cmp::<functor::$V, f64> as TileFn),
            DType::I64 => Some($S::cmp::<functor::$V, i64> as TileFn),
            DType::I32 => Some($S::cmp::<functor::$V, i32> as TileFn),
            DType::U32 => Some($S::cmp::<functor::$V, u32> as TileFn),
            _ => Some($S::cmp::<functor::$V, u8> as TileFn),
        }
    };
    (Test $V:ident $S:ident $dtype:ident) => {
        match $dtype.held() {
            DType::F32 => Some($S::test::<functor::$V, f32> as TileFn),
            DType::F64 => Some($S::test::<functor::$V, f64> as TileFn),
            _ => None,
        }
    };
    (Logic $V:ident $S:ident $dtype:ident) => {
        Some($S::logic::<functor::$V> as TileFn)
    };
    (Select $V:ident $S:ident $dtype:ident) => {
        match $dtype.held().size() {
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
    let same = from.held() == to.held() && (to != DType::Bool || from == DType::Bool);
    if to.is_narrow() {
        match from {
            DType::F64 => return Some(on!(isa, S => S::convert::<f64, Odd>)),
            DType::I64 => return Some(on!(isa, S => S::convert::<i64, Odd>)),
            DType::I32 => return Some(on!(isa, S => S::convert::<i32, Odd>)),
            DType::U32 => return Some(on!(isa, S => S::convert::<u32, Odd>)),
            _ => {}
        }
    }
    let fns = on!(isa, S => match from.held() {
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
    fn of<S: Simd, T: Copy + Convert<T>>(op: Reduction) -> (TileFn, TileFn)
    where
        Sum: Fold<T>,
        Prod: Fold<T>,
        Max: Fold<T>,
        Min: Fold<T>,
    {
        match op {
            Reduction::Sum => (S::fold::<Sum, T, T>, S::accumulate::<Sum, T, T>),
            Reduction::Prod => (S::fold::<Prod, T, T>, S::accumulate::<Prod, T, T>),
            Reduction::Max | Reduction::ArgMax => (S::fold::<Max, T, T>, S::accumulate::<Max, T, T>),
            Reduction::Min | Reduction::ArgMin => (S::fold::<Min, T, T>, S::accumulate::<Min, T, T>),
        }
    }
    on!(isa, S => match class {
        DType::F64 => of::<S, f64>(op),
        DType::I64 => of::<S, i64>(op),
        DType::I32 => of::<S, i32>(op),
        DType::U32 => of::<S, u32>(op),
        DType::U8 | DType::Bool => of::<S, u8>(op),
        _ => match (of::<S, f32>(op), registers::fold(isa, op, DType::F32)) {
            ((_, accumulate), Some(fold)) => (fold, accumulate),
            (loops, None) => loops,
        },
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
