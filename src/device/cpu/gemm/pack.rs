//! Packing: from operands of any dtype and strides to the panels that the micro-kernels read.
//!
//! A panel holds `W` lanes (rows of A or columns of B) as `[step][lane]`, in the type that sums are
//! kept in, padded with zeros to whole panels. One step is one value of k, or a pair of them.

use super::simd::{Lanes, Octet, Scalar, prefetch};
use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// How many rows ahead memory is asked for when rows are read in pieces, which the hardware does not
/// foresee.
pub const PREFETCH: isize = 8;

/// A part of an operand: `lanes` vectors of `k` values, strides in elements.
#[derive(Clone, Copy)]
pub struct View {
    pub ptr: *const u8,
    pub lanes: usize,
    pub lane_stride: isize,
    pub k: usize,
    pub k_stride: isize,
}

/// A type of operand elements, and how they become panel slots in vectors `O`.
///
/// # Safety
///
/// The methods need the instruction set of `O`, and the elements that they are said to read.
pub trait Storage<O: Octet>: Copy {
    /// How many consecutive values of k share a slot.
    const FOLD: usize = 1;

    /// One slot: `live` values (1 to `FOLD`) that lie `k_stride` apart.
    unsafe fn slot(p: *const Self, k_stride: isize, live: usize) -> O::Scalar;

    /// Eight consecutive steps of one lane, whose values of k are neighbours in memory.
    unsafe fn steps(p: *const Self) -> O;

    /// One step of eight lanes that are neighbours in memory.
    #[inline(always)]
    unsafe fn lanes(p: *const Self, _k_stride: isize) -> O {
        // SAFETY: with one value to a slot, eight lanes are the same eight elements as eight steps.
        unsafe { Self::steps(p) }
    }
}

impl<T: Scalar> Storage<Lanes<T>> for T {
    #[inline(always)]
    unsafe fn slot(p: *const T, _k_stride: isize, _live: usize) -> T {
        // SAFETY: the caller vouches for one element at `p`.
        unsafe { p.read() }
    }

    #[inline(always)]
    unsafe fn steps(p: *const T) -> Lanes<T> {
        // SAFETY: the caller vouches for eight elements at `p`.
        unsafe { p.cast::<[T; 8]>().read() }.into()
    }
}

macro_rules! half_storage {
    ($($t:ident)+) => {$(
        impl Storage<Lanes<f32>> for $t {
            #[inline(always)]
            unsafe fn slot(p: *const $t, _k_stride: isize, _live: usize) -> f32 {
                // SAFETY: the caller vouches for one element at `p`.
                unsafe { p.read() }.to_f32()
            }

            #[inline(always)]
            unsafe fn steps(p: *const $t) -> Lanes<f32> {
                // SAFETY: the caller vouches for eight elements at `p`.
                unsafe { p.cast::<[$t; 8]>().read() }.map($t::to_f32).into()
            }
        }
    )+};
}

half_storage!(f16 bf16);

#[cfg(target_arch = "x86_64")]
impl Storage<__m256> for f32 {
    #[inline(always)]
    unsafe fn slot(p: *const f32, _k_stride: isize, _live: usize) -> f32 {
        // SAFETY: the caller vouches for one element at `p`.
        unsafe { p.read() }
    }

    #[inline(always)]
    unsafe fn steps(p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for AVX2 and for eight elements at `p`.
        unsafe { _mm256_loadu_ps(p) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Storage<__m256> for f16 {
    #[inline(always)]
    unsafe fn slot(p: *const f16, _k_stride: isize, _live: usize) -> f32 {
        // SAFETY: the caller vouches for F16C and for one element at `p`.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(p.cast::<u16>().read())))) }
    }

    #[inline(always)]
    unsafe fn steps(p: *const f16) -> __m256 {
        // SAFETY: the caller vouches for F16C and for eight elements at `p`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Storage<__m256> for bf16 {
    #[inline(always)]
    unsafe fn slot(p: *const bf16, _k_stride: isize, _live: usize) -> f32 {
        // SAFETY: the caller vouches for one element at `p`.
        f32::from_bits(u32::from(unsafe { p.cast::<u16>().read() }) << 16)
    }

    #[inline(always)]
    unsafe fn steps(p: *const bf16) -> __m256 {
        // SAFETY: the caller vouches for AVX2 and for eight elements at `p`.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
}

/// A bf16 that is packed unconverted, two values of k to a slot (the first in the low half).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Paired(u16);

#[cfg(target_arch = "x86_64")]
impl Storage<__m256> for Paired {
    const FOLD: usize = 2;

    #[inline(always)]
    unsafe fn slot(p: *const Paired, k_stride: isize, live: usize) -> f32 {
        // SAFETY: the caller vouches for `live` elements at `p`, `k_stride` apart.
        let (low, high) = unsafe { (p.read().0, if live == 2 { p.offset(k_stride).read().0 } else { 0 }) };
        f32::from_bits(u32::from(low) | u32::from(high) << 16)
    }

    #[inline(always)]
    unsafe fn steps(p: *const Paired) -> __m256 {
        // SAFETY: the caller vouches for AVX2 and for eight pairs at `p`.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn lanes(p: *const Paired, k_stride: isize) -> __m256 {
        // SAFETY: the caller vouches for AVX2 and for eight elements at `p` and at the next value of k.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.offset(k_stride).cast()));
            _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_slli_epi32::<16>(high)))
        }
    }
}

/// Packs `view` into panels of `W` lanes at `out`, one after another.
///
/// # Safety
///
/// The instruction set of `O`; every element of `view` readable as `S`; `out` has room for
/// `lanes.next_multiple_of(W) * k.div_ceil(FOLD)` slots.
#[inline(always)]
pub unsafe fn pack<O: Octet, S: Storage<O>, const W: usize>(view: &View, out: *mut O::Scalar) {
    // SAFETY: what the caller vouches for is what each of the three needs.
    unsafe {
        match (view.lane_stride, view.k_stride) {
            (1, _) => by_lanes::<O, S, W>(view, out),
            (_, 1) => by_steps::<O, S, W>(view, out),
            _ => by_slots::<O, S, W>(view, 0, out),
        }
    }
}

/// Lanes are neighbours: whole rows of memory are read in order and dealt out to the panels.
#[inline(always)]
unsafe fn by_lanes<O: Octet, S: Storage<O>, const W: usize>(view: &View, out: *mut O::Scalar) {
    let src = view.ptr.cast::<S>();
    let steps = view.k.div_ceil(S::FOLD);
    let whole = view.k / S::FOLD;
    for step in 0..whole {
        for first in (0..view.lanes).step_by(W) {
            for group in 0..W.div_ceil(8) {
                let at = group * 8;
                let (width, left) = ((W - at).min(8), view.lanes.saturating_sub(first + at));
                // SAFETY: `src` is read at lanes below `lanes` only, eight at once where eight are
                // left; panel `first / W` starts at slot `first * steps`, and the slots written are
                // those of `step` in it.
                unsafe {
                    let p = src.offset((step * S::FOLD) as isize * view.k_stride).wrapping_add(first + at);
                    let slots = out.add(first * steps + step * W + at);
                    prefetch(p.wrapping_offset(view.k_stride.wrapping_mul(PREFETCH)));
                    if left >= 8 {
                        S::lanes(p, view.k_stride).store_first(slots, width);
                        continue;
                    }
                    for i in 0..width {
                        let live = i < left;
                        slots.add(i).write(if live {
                            S::slot(p.add(i), view.k_stride, S::FOLD)
                        } else {
                            O::Scalar::default()
                        });
                    }
                }
            }
        }
    }
    // SAFETY: as for this function; a last step that is not full goes slot by slot.
    unsafe { by_slots::<O, S, W>(view, whole, out) }
}

/// Values of k are neighbours: squares of eight lanes by eight steps are transposed in registers.
#[inline(always)]
unsafe fn by_steps<O: Octet, S: Storage<O>, const W: usize>(view: &View, out: *mut O::Scalar) {
    let src = view.ptr.cast::<S>();
    let steps = view.k.div_ceil(S::FOLD);
    let whole = view.k / S::FOLD / 8 * 8;
    for first in (0..view.lanes).step_by(W) {
        for group in 0..W.div_ceil(8) {
            let at = group * 8;
            let width = (W - at).min(8);
            let live = width.min(view.lanes.saturating_sub(first + at));
            for step in (0..whole).step_by(8) {
                // SAFETY: `live` lanes from `first + at` on are below `lanes`, and eight whole steps
                // from `step` on are below `k`; the slots are those of the same lanes and steps.
                unsafe {
                    let mut rows = [O::zero(); 8];
                    for (i, row) in rows.iter_mut().enumerate() {
                        // Not `take(live)`: a loop of a fixed length is unrolled, and `rows` stays in registers.
                        if i < live {
                            let lane = src.offset((first + at + i) as isize * view.lane_stride);
                            *row = S::steps(lane.add(step * S::FOLD));
                        }
                    }
                    let slots = out.add(first * steps + step * W + at);
                    for (i, column) in O::transpose(rows).into_iter().enumerate() {
                        column.store_first(slots.add(i * W), width);
                    }
                }
            }
        }
    }
    // SAFETY: as for this function; the steps left over go slot by slot.
    unsafe { by_slots::<O, S, W>(view, whole, out) }
}

/// Any strides, from step `start` on.
#[inline(always)]
unsafe fn by_slots<O: Octet, S: Storage<O>, const W: usize>(view: &View, start: usize, out: *mut O::Scalar) {
    let src = view.ptr.cast::<S>();
    let steps = view.k.div_ceil(S::FOLD);
    for first in (0..view.lanes).step_by(W) {
        for step in start..steps {
            let live = S::FOLD.min(view.k - step * S::FOLD);
            for i in 0..W {
                // SAFETY: lanes at or over `lanes` are not read, nor values of k at or over `k`; the
                // slot is that of the same lane and step.
                unsafe {
                    let slot = out.add(first * steps + step * W + i);
                    if first + i < view.lanes {
                        let lane = src.offset((first + i) as isize * view.lane_stride);
                        let p = lane.offset((step * S::FOLD) as isize * view.k_stride);
                        slot.write(S::slot(p, view.k_stride, live));
                    } else {
                        slot.write(O::Scalar::default());
                    }
                }
            }
        }
    }
}
