//! Conversions between what tiles hold, and from and to what memory holds.

use half::{bf16, f16};

/// Conversion between the types that tiles hold, and from and to what memory holds.
pub(super) trait Convert<A> {
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
pub(super) struct Truth(#[allow(dead_code)] u8);

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
pub(super) struct Rounded<N>(#[allow(dead_code)] f32, std::marker::PhantomData<N>);

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
pub(super) struct Odd(#[allow(dead_code)] f32);

/// `near`, which is `x` rounded to nearest, turned into `x` rounded to odd.
#[inline(always)]
pub(super) fn to_odd(near: f32, exact: bool, beyond: bool) -> Odd {
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
pub(super) struct F16Bits(u16);

/// The bits of a bf16 in memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16Bits(u16);

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
pub(super) fn bf16_of_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { (bits >> 16 | 0x40) as u16 } else { rounded as u16 }
}

/// To f16, to nearest even, without branches; vectorises where there is no instruction for it.
///
/// Normals: the exponent is rebiased and half a unit added in integers. Below 2^-14 adding 0.5 in f32
/// leaves the wanted bits, rounded, at the bottom of the sum.
#[inline(always)]
pub(super) fn f16_of_f32(x: f32) -> u16 {
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
pub(super) fn f32_of_f16(h: u16) -> f32 {
    let sign = (h as u32 & 0x8000) << 16;
    let magnitude = h as u32 & 0x7fff;
    // Shifted into place the value is 2^112 too small; the product also normalises subnormals.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = magnitude << 13 | 0x7f80_0000;
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { scaled.to_bits() })
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
}
