//! Folds: sums, products, extremes and their positions.

use super::LANES;
use super::convert::Convert;
use crate::dtype::DType;
use crate::ops::Reduction;
use std::ops::{Add, Mul};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// How a reduction combines two values of `T`.
pub(super) trait Fold<T> {
    fn empty() -> T;
    fn both(a: T, b: T) -> T;
}

/// The larger of two floats, or NaN. Neither arm is an operand: LLVM would turn the store of a lane that
/// may keep its value into a masked one, which is six times slower.
macro_rules! float_extreme {
    ($($name:ident $t:ty: $method:ident;)+) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t) -> $t {
            if a.is_nan() | b.is_nan() { <$t>::NAN } else { a.$method(b) }
        }
    )+};
}
float_extreme! {
    larger_f32 f32: max;
    smaller_f32 f32: min;
    larger_f64 f64: max;
    smaller_f64 f64: min;
}

pub(super) struct Sum;
pub(super) struct Prod;
pub(super) struct Max;
pub(super) struct Min;

macro_rules! folds {
    ($($t:ty, $low:expr, $high:expr, $add:path, $mul:path, $max:path, $min:path;)+) => {$(
        folds!(one $t, Sum, 0 as $t, $add);
        folds!(one $t, Prod, 1 as $t, $mul);
        folds!(one $t, Max, $low, $max);
        folds!(one $t, Min, $high, $min);
    )+};
    (one $t:ty, $name:ident, $empty:expr, $both:path) => {
        impl Fold<$t> for $name {
            #[inline(always)]
            fn empty() -> $t { $empty }
            #[inline(always)]
            fn both(a: $t, b: $t) -> $t { $both(a, b) }
        }
    };
}
folds! {
    f32, f32::NEG_INFINITY, f32::INFINITY, Add::add, Mul::mul, larger_f32, smaller_f32;
    f64, f64::NEG_INFINITY, f64::INFINITY, Add::add, Mul::mul, larger_f64, smaller_f64;
    i64, i64::MIN, i64::MAX, i64::wrapping_add, i64::wrapping_mul, Ord::max, Ord::min;
    i32, i32::MIN, i32::MAX, i32::wrapping_add, i32::wrapping_mul, Ord::max, Ord::min;
    u32, 0, u32::MAX, u32::wrapping_add, u32::wrapping_mul, Ord::max, Ord::min;
    u8, 0, u8::MAX, u8::wrapping_add, u8::wrapping_mul, Ord::max, Ord::min;
}

/// # Safety
/// As for [`TileFn`], with room for one element at `out`.
#[inline(always)]
pub(super) unsafe fn fold_body<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(out: *mut u8, x: [*const u8; 3], n: usize) {
    // SAFETY: the caller's promise.
    let (out, x) = unsafe { (&mut *out.cast::<T>(), from_raw_parts(x[0].cast::<A>(), n)) };
    // With a length that LLVM does not know, these are loops, which vectorise; 64 locals it would take
    // apart and shuffle, at ten times the cost.
    let count = std::hint::black_box(LANES);
    let mut lanes = [F::empty(); LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        take::<F, T, A>(&mut lanes[..count], &chunk[..count]);
    }
    let rest = chunks.remainder();
    take::<F, T, A>(&mut lanes[..rest.len()], rest);
    let mut width = count;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(&high[..width]).for_each(|(lane, &v)| *lane = F::both(*lane, v));
    }
    *out = lanes[0];
}

/// Combines `x` into `lanes`, of the same length.
#[inline(always)]
pub(super) fn take<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(lanes: &mut [T], x: &[A]) {
    for (lane, &v) in lanes.iter_mut().zip(x) {
        *lane = F::both(*lane, T::convert(v));
    }
}

/// # Safety
/// As for [`TileFn`], with `n` initialised elements at `out`.
#[inline(always)]
pub(super) unsafe fn accumulate_body<F: Fold<T>, T: Copy + Convert<A>, A: Copy>(
    out: *mut u8,
    x: [*const u8; 3],
    n: usize,
) {
    // SAFETY: the caller's promise.
    let (out, x) = unsafe { (from_raw_parts_mut(out.cast::<T>(), n), from_raw_parts(x[0].cast::<A>(), n)) };
    take::<F, T, A>(out, x);
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
pub(super) unsafe fn arg<T: PartialOrd + Copy, const MAX: bool>(
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
pub(super) unsafe fn arg_merge<T: PartialOrd + Copy, const MAX: bool>(state: *mut u8, later: *const u8) {
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

#[cfg(test)]
mod tests {
    use crate::device::cpu::isa::Isa;
    use crate::device::cpu::tile::fold;
    use crate::dtype::DType;
    use crate::ops::Reduction;

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
