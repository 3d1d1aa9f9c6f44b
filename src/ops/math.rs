//! Scalar real arithmetic: the CPU form of every elementwise op is written once, over [`Real`].
//!
//! The f32 functions here are straight-line code: no branch, no table, no call, so that a loop over
//! a slice that inlines one is vectorised for whatever instruction set the surrounding function
//! enables. `std`'s functions are calls into the C library, one element at a time. (Rounding to an integer is
//! `std`'s: one instruction everywhere but on x86 before SSE4.1, where it is a call.)
//!
//! Two forms exist. `f32` is within three units in the last place. [`Narrow`] computes in f32 too,
//! but only as exactly as an f16 or bf16 result can show, with shorter polynomials.
//!
//! Products and sums are never contracted: `a * b + c` rounds twice on every machine, so that the
//! SSE2, AVX2, AVX-512 and NEON forms of a kernel give the same bits. The exception is
//! [`Real::fma`], by name.
//!
//! Each polynomial is a minimax fit (Remez exchange in 40 digits, coefficients then rounded to f32);
//! its comment states interval, degree and error of the rounded polynomial in exact arithmetic.

// Coefficients are written as the f32 they are, with all of its digits.
#![allow(clippy::excessive_precision)]

use std::f32::consts::{LN_2, LOG2_E, LOG10_2, LOG10_E, SQRT_2, TAU};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Real arithmetic on one scalar.
///
/// Every function maps NaN to NaN and follows IEEE 754 (section 9.2) at infinities and poles.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The constant `x`, rounded to this type.
    fn c(x: f64) -> Self;
    /// e^x.
    fn exp(self) -> Self;
    /// 2^x.
    fn exp2(self) -> Self;
    /// e^x - 1, without cancellation near 0.
    fn expm1(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Logarithm to base 2; exact at powers of two.
    fn log2(self) -> Self;
    /// Logarithm to base 10.
    fn log10(self) -> Self;
    /// ln(1 + x), without cancellation near 0.
    fn log1p(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// 1 / (1 + e^-x), relatively accurate for negative `x` too.
    fn sigmoid(self) -> Self;
    /// ln(1 + e^x).
    fn softplus(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): the tanh form of GELU (Hendrycks and Gimpel,
    /// "Gaussian error linear units", 2016), as x * sigmoid, so that negative `x` keep relative accuracy.
    /// NaN at -infinity, as in the formula.
    #[inline(always)]
    fn gelu_tanh(self) -> Self {
        self * gelu_argument(self, 1.0).sigmoid()
    }
    /// (1 + erf(x / sqrt 2)) / 2: the distribution function of the standard normal. The narrow form is the
    /// f32 one: an operand multiplies it, which would magnify its error where it is nearly 0.
    #[inline(always)]
    fn normal_cdf(self) -> Self {
        Self::c(0.5) * (Self::c(1.0) + (self * Self::c(std::f64::consts::FRAC_1_SQRT_2)).erf())
    }
    /// Sine of an angle in radians.
    fn sin(self) -> Self;
    /// Cosine of an angle in radians.
    fn cos(self) -> Self;
    /// Tangent of an angle in radians.
    fn tan(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Largest integer not above `self`.
    fn floor(self) -> Self;
    /// Smallest integer not below `self`.
    fn ceil(self) -> Self;
    /// Nearest integer, ties to even (unlike `f32::round`).
    fn round(self) -> Self;
    /// Integer part.
    fn trunc(self) -> Self;
    /// `self` to the power `y`, with the special cases of C's `pow`.
    fn powf(self, y: Self) -> Self;
    /// Remainder of the truncated quotient: C's `fmod`, with the sign of `self`.
    fn rem(self, o: Self) -> Self;
    /// Magnitude of `self`, sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// Whether this is a NaN.
    fn is_nan(self) -> bool;
    /// `a * b + c`, rounded once. A call into the C library where the target has no such instruction.
    fn fma(a: Self, b: Self, c: Self) -> Self;

    /// `1 / self`.
    #[inline(always)]
    fn recip(self) -> Self {
        Self::c(1.0) / self
    }

    /// `1 / sqrt(self)`, both steps correctly rounded: no approximate instruction, whose bits
    /// would differ between makers of CPUs.
    #[inline(always)]
    fn rsqrt(self) -> Self {
        self.sqrt().recip()
    }

    /// `a` if `cond`, else `b`.
    #[inline(always)]
    fn select(cond: bool, a: Self, b: Self) -> Self {
        if cond { a } else { b }
    }

    /// The larger, or NaN if either is (`f32::max` would drop the NaN).
    #[inline(always)]
    fn max_nan(self, o: Self) -> Self {
        // False for a NaN in `o`, which is therefore taken; a NaN in `self` needs the second line.
        let larger = Self::select(self > o, self, o);
        Self::select(self.is_nan(), self, larger)
    }

    /// The smaller, or NaN if either is.
    #[inline(always)]
    fn min_nan(self, o: Self) -> Self {
        let smaller = Self::select(self < o, self, o);
        Self::select(self.is_nan(), self, smaller)
    }

    /// -1, 0 or 1 by sign; zeros and NaN map to themselves.
    #[inline(always)]
    fn sign(self) -> Self {
        let negative_or_self = Self::select(self < Self::c(0.0), Self::c(-1.0), self);
        Self::select(self > Self::c(0.0), Self::c(1.0), negative_or_self)
    }
}

/// `scale` times twice the argument of the tanh in GELU.
#[inline(always)]
fn gelu_argument<T: Real>(x: T, scale: f64) -> T {
    const SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;
    x * (T::c(scale * SLOPE) + T::c(scale * SLOPE * 0.044_715) * (x * x))
}

/// An f32 computed only as exactly as f16 and bf16 results need.
///
/// The bound is half a unit in the last place of f16 before the final rounding: 2^-12 relative where
/// the result is a normal f16, 2^-25 absolute below. Functions that are cheap anyway are those of `f32`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Narrow(pub f32);

/// 1.5 * 2^23: adding it to an |x| < 2^22 leaves x, rounded to an integer (ties to even), in the low
/// bits of the sum. Unlike `round`, that is one addition on every instruction set; and unlike
/// `as i32`, reading the integer back saturates nothing.
const ROUNDER: f32 = 12_582_912.0;

/// ln 2 = LN2_HI + LN2_LO; LN2_HI has nine bits, so that its product with an exponent is exact (Cody and
/// Waite, Software Manual for the Elementary Functions, 1980, chapter 6).
const LN2_HI: f32 = 0.693_359_375;
const LN2_LO: f32 = -2.121_944_4e-4;

/// log10 2 in two parts, likewise.
const LOG10_2_HI: f32 = 0.300_781_25;
const LOG10_2_LO: f32 = 2.487_456_7e-4;

/// `x` limited to `lo..=hi`; NaN stays. One `maxps` and one `minps`, as the constants are compared
/// first: those instructions return their second operand if either is a NaN.
#[inline(always)]
fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if lo > x { lo } else { x };
    if hi < x { hi } else { x }
}

/// The polynomial with coefficients `c`, the constant term first, by Horner's rule.
///
/// A long one is split into even and odd powers, side by side: one more product, but half the chain of
/// dependent operations, and it is the length of the chain that a loop of these waits for.
#[inline(always)]
fn poly<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let z = x * x;
    match N {
        ..5 => horner(x, c, N - 1, 1),
        _ if N.is_multiple_of(2) => horner(z, c, N - 1, 2) * x + horner(z, c, N - 2, 2),
        _ => horner(z, c, N - 1, 2) + horner(z, c, N - 2, 2) * x,
    }
}

/// Horner's rule over `c[last]`, `c[last - step]` and so on down.
#[inline(always)]
fn horner<const N: usize>(x: f32, c: [f32; N], last: usize, step: usize) -> f32 {
    let (mut sum, mut i) = (c[last], last);
    while i >= step {
        i -= step;
        sum = sum * x + c[i];
    }
    sum
}

/// The integer n nearest to `x`, and 2^(n - lag): in range for n - lag in -126..=127, 0 for -127 and
/// infinity for 128.
#[inline(always)]
fn split(x: f32, lag: f32) -> (f32, f32) {
    let rounder = ROUNDER + 127.0 - lag;
    let shifted = x + rounder;
    // The low bits now hold n - lag + 127, the biased exponent of 2^(n - lag).
    (shifted - rounder, f32::from_bits(shifted.to_bits() << 23))
}

/// The integer n nearest to `x`, and 2^n in two factors, neither of which leaves the normal range for n in
/// -252..=254: products that overflow or are subnormal then come out right, rounded once.
#[inline(always)]
fn split_wide(x: f32) -> (f32, f32, f32) {
    const BIASED: f32 = ROUNDER + 254.0;
    let shifted = x + BIASED;
    let bits = shifted.to_bits();
    let half = bits >> 1;
    (shifted - BIASED, f32::from_bits(half << 23), f32::from_bits((bits - half) << 23))
}

/// `x - n * ln 2`, to the precision of the difference.
#[inline(always)]
fn sub_ln2(x: f32, n: f32) -> f32 {
    x - n * LN2_HI - n * LN2_LO
}

/// e^r - 1 for |r| <= ln(2) / 2: r + r^2 * P(r), P of degree 4, relative error 1.4e-8.
#[inline(always)]
fn expm1_reduced(r: f32) -> f32 {
    const P: [f32; 5] = [0.499_999_970, 0.166_665_390, 0.041_667_748_2, 0.008_367_084_90, 0.001_383_779_92];
    r + r * r * poly(r, P)
}

/// e^x for an `x` that is NaN or at most 89; 0 from -104 down.
#[inline(always)]
fn exp_below(x: f32) -> f32 {
    let x = if -104.0 > x { -104.0 } else { x };
    let (n, s1, s2) = split_wide(x * LOG2_E);
    (expm1_reduced(sub_ln2(x, n)) + 1.0) * s1 * s2
}

/// 2^r for |r| <= 1/2: 1 + r * P(r), P of degree 5, relative error 1.3e-8.
#[inline(always)]
fn exp2_reduced(r: f32) -> f32 {
    const P: [f32; 6] = [LN_2, 0.240_225_941, 0.055_503_662_7, 0.009_625_445_12, 0.001_338_792_73, 1.333_249_24e-4];
    r * poly(r, P) + 1.0
}

/// h * coth(h) for |h| <= ln(2) / 4: degree 2 in h^2, relative error 2.2e-9.
///
/// e^2h is (q + h) / (q - h) for this q, so that a function which divides by an exponential anyway
/// needs no other approximation.
#[inline(always)]
fn h_coth_h(h: f32) -> f32 {
    poly(h * h, [1.0, 0.333_332_509, -0.022_133_702_4])
}

/// A positive normal `x` as 2^k * m with m in [sqrt(1/2), sqrt(2)): k << 23, and m.
#[inline(always)]
fn split_exponent(x: f32) -> (u32, f32) {
    const SQRT_HALF_BITS: u32 = (SQRT_2 / 2.0).to_bits();
    let k = x.to_bits().wrapping_sub(SQRT_HALF_BITS) & 0xff80_0000;
    (k, f32::from_bits(x.to_bits().wrapping_sub(k)))
}

/// The integer that was shifted into the exponent field.
#[inline(always)]
fn exponent_to_f32(k: u32) -> f32 {
    (k as i32 >> 23) as f32
}

/// As [`split_exponent`], for positive subnormals too, with k as an f32 and m - 1, which is exact.
#[inline(always)]
fn split_log(x: f32) -> (f32, f32) {
    let tiny = x < f32::MIN_POSITIVE;
    let (k, m) = split_exponent(if tiny { x * 8_388_608.0 } else { x });
    (exponent_to_f32(k) - if tiny { 23.0 } else { 0.0 }, m - 1.0)
}

/// As [`split_log`], for 1 + x: that sum (rounded), k and m - 1.
#[inline(always)]
fn split_log1p(x: f32) -> (f32, f32, f32) {
    let u = x + 1.0;
    let (k, m) = split_exponent(u);
    // 2^-k * (1 + x) - 1, summed so that what `u` rounded away of x is kept. From 2^24 on that is nothing,
    // and 2^-k may be subnormal.
    let s = f32::from_bits(1.0_f32.to_bits().wrapping_sub(k));
    let f = if x < 16_777_216.0 { x * s + (s - 1.0) } else { m - 1.0 };
    (u, exponent_to_f32(k), f)
}

/// ln(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2)]: f^3 * P(f) - f^2 / 2, P of degree 7, error 6.4e-9
/// relative to ln(1 + f).
#[inline(always)]
fn ln_tail(f: f32) -> f32 {
    const P: [f32; 8] = [
        0.333_333_313,
        -0.250_008_225,
        0.200_012_356,
        -0.166_233_018,
        0.142_015_040,
        -0.131_605_014,
        0.127_636_582,
        -0.076_363_183_6,
    ];
    let f2 = f * f;
    f * f2 * poly(f, P) - 0.5 * f2
}

/// `r`, the logarithm of a positive finite `x`, or what the logarithm of another `x` is.
#[inline(always)]
fn log_special(x: f32, r: f32) -> f32 {
    let r = if x < f32::INFINITY { r } else { x };
    let pole = if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    if x > 0.0 { r } else { pole }
}

/// `scale * ln(x)`, where `scale * ln(2)` is `hi + lo`.
#[inline(always)]
fn log(x: f32, scale: f32, hi: f32, lo: f32) -> f32 {
    let (k, f) = split_log(x);
    log_special(x, k * hi + (k * lo + (ln_tail(f) + f) * scale))
}

/// ln(1 + x) for x in 0..=1.
#[inline(always)]
fn log1p_unit(x: f32) -> f32 {
    let high = x > SQRT_2 - 1.0;
    let f = if high { 0.5 * x - 0.5 } else { x };
    ln_tail(f) + f + if high { LN_2 } else { 0.0 }
}

/// erf(x) / x - 1 as a function of z = x^2 in 0..=1: degree 6, error 4.7e-9 relative to erf(x) / x.
#[inline(always)]
fn erf_ratio(z: f32) -> f32 {
    const P: [f32; 7] = [
        0.128_379_166,
        -0.376_126_260,
        0.112_835_854,
        -0.026_853_811_0,
        0.005_188_327_75,
        -8.010_193_71e-4,
        7.853_860_73e-5,
    ];
    poly(z, P)
}

/// 1 - erf(x) for x in 1..=3.95: 2^P(x), P of degree 6, absolute error 5.0e-9.
#[inline(always)]
fn erfc_above_one(x: f32) -> f32 {
    const P: [f32; 7] = [
        -5.103_090_66e-4,
        -1.625_975_01,
        -0.920_765_042,
        -0.148_651_496,
        0.031_458_422_5,
        -0.004_240_956_16,
        2.677_266_31e-4,
    ];
    let y = poly(x, P);
    let (n, s) = split(y, 0.0);
    exp2_reduced(y - n) * s
}

/// `r`, but `x` where |x| is so small that an odd function of slope 1 is the identity: keeps
/// -0, and subnormals that lost bits on the way.
#[inline(always)]
fn identity_near_zero(x: f32, r: f32) -> f32 {
    if x.abs() < 1e-30 { x } else { r }
}

/// The functions of [`Real`] that `std`'s floats have, with the same meaning.
macro_rules! std_functions {
    () => {
        #[inline(always)]
        fn sqrt(self) -> Self {
            self.sqrt()
        }
        #[inline(always)]
        fn abs(self) -> Self {
            self.abs()
        }
        #[inline(always)]
        fn floor(self) -> Self {
            self.floor()
        }
        #[inline(always)]
        fn ceil(self) -> Self {
            self.ceil()
        }
        #[inline(always)]
        fn round(self) -> Self {
            self.round_ties_even()
        }
        #[inline(always)]
        fn trunc(self) -> Self {
            self.trunc()
        }
        #[inline(always)]
        fn rem(self, o: Self) -> Self {
            self % o
        }
        #[inline(always)]
        fn copysign(self, sign: Self) -> Self {
            self.copysign(sign)
        }
        #[inline(always)]
        fn is_nan(self) -> bool {
            self.is_nan()
        }
        #[inline(always)]
        fn fma(a: Self, b: Self, c: Self) -> Self {
            a.mul_add(b, c)
        }
    };
}

impl Real for f32 {
    std_functions!();

    #[inline(always)]
    fn c(x: f64) -> Self {
        x as f32
    }

    #[inline(always)]
    fn exp(self) -> Self {
        exp_below(if 89.0 < self { 89.0 } else { self })
    }

    #[inline(always)]
    fn exp2(self) -> Self {
        let x = clamp(self, -151.0, 129.0);
        let (n, s1, s2) = split_wide(x);
        exp2_reduced(x - n) * s1 * s2
    }

    #[inline(always)]
    fn expm1(self) -> Self {
        let x = clamp(self, -20.0, 89.0);
        // Half of 2^n, as 2^128 is no f32.
        let (n, s) = split(x * LOG2_E, 1.0);
        let half = s * expm1_reduced(sub_ln2(x, n)) + (s - 0.5);
        identity_near_zero(self, half + half)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        log(self, 1.0, LN2_HI, LN2_LO)
    }

    #[inline(always)]
    fn log2(self) -> Self {
        log(self, LOG2_E, 1.0, 0.0)
    }

    #[inline(always)]
    fn log10(self) -> Self {
        log(self, LOG10_E, LOG10_2_HI, LOG10_2_LO)
    }

    #[inline(always)]
    fn log1p(self) -> Self {
        let (u, k, f) = split_log1p(self);
        let r = k * LN2_HI + (k * LN2_LO + ln_tail(f) + f);
        identity_near_zero(self, log_special(u, r))
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        // e^2x is a / b with a = 2^n * (q + h) and b = q - h, and tanh x = (a - b) / (a + b). For small x
        // the difference is multiplied out by the powers of two, so that nothing cancels; for
        // larger ones the form 1 - 2b / (a + b) leaves the error of the quotient below the result.
        let x = self.abs();
        let x = if 10.0 < x { 10.0 } else { x };
        let (n, s) = split(x * (2.0 * LOG2_E), 0.0);
        let h = x - n * (0.5 * LN2_HI) - n * (0.5 * LN2_LO);
        let q = h_coth_h(h);
        let (a, b) = (s * (q + h), q - h);
        let small = s < 4.0;
        let numerator = if small { (s - 1.0) * q + (s + 1.0) * h } else { -2.0 * b };
        let quotient = numerator / (a + b);
        (if small { quotient } else { 1.0 + quotient }).copysign(self)
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        // With e = e^-|x| = a / b, the result is 1 / (1 + e) or e / (1 + e): no overflow on either side.
        let x = -self.abs();
        let x = if -104.0 > x { -104.0 } else { x };
        let (n, s1, s2) = split_wide(x * LOG2_E);
        let h = 0.5 * sub_ln2(x, n);
        let q = h_coth_h(h);
        let (a, b) = ((q + h) * s1 * s2, q - h);
        (if self < 0.0 { a } else { b }) / (a + b)
    }

    #[inline(always)]
    fn softplus(self) -> Self {
        let positive = if 0.0 > self { 0.0 } else { self };
        positive + log1p_unit(exp_below(-self.abs()))
    }

    #[inline(always)]
    fn erf(self) -> Self {
        // From 3.95 on the result rounds to 1.
        let x = self.abs();
        let x = if 3.95 < x { 3.95 } else { x };
        // Both are computed, as a loop of vectors cannot branch on an element.
        let (small, large) = (x + x * erf_ratio(x * x), 1.0 - erfc_above_one(x));
        (if x < 1.0 { small } else { large }).copysign(self)
    }

    // The argument reduction of these needs more than f32 has, and they are rare in tensor programs:
    // f64 and one rounding, an element at a time.

    #[inline(always)]
    fn sin(self) -> Self {
        f64::from(self).sin() as f32
    }

    #[inline(always)]
    fn cos(self) -> Self {
        f64::from(self).cos() as f32
    }

    #[inline(always)]
    fn tan(self) -> Self {
        f64::from(self).tan() as f32
    }

    #[inline(always)]
    fn powf(self, y: Self) -> Self {
        f64::from(self).powf(f64::from(y)) as f32
    }
}

impl Real for f64 {
    std_functions!();

    #[inline(always)]
    fn c(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn exp2(self) -> Self {
        self.exp2()
    }

    #[inline(always)]
    fn expm1(self) -> Self {
        self.exp_m1()
    }

    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    fn log2(self) -> Self {
        self.log2()
    }

    #[inline(always)]
    fn log10(self) -> Self {
        self.log10()
    }

    #[inline(always)]
    fn log1p(self) -> Self {
        self.ln_1p()
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        self.tanh()
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        let e = (-self.abs()).exp();
        (if self < 0.0 { e } else { 1.0 }) / (1.0 + e)
    }

    #[inline(always)]
    fn softplus(self) -> Self {
        self.max_nan(0.0) + (-self.abs()).exp().ln_1p()
    }

    #[inline(always)]
    fn erf(self) -> Self {
        libm::erf(self)
    }

    #[inline(always)]
    fn sin(self) -> Self {
        self.sin()
    }

    #[inline(always)]
    fn cos(self) -> Self {
        self.cos()
    }

    #[inline(always)]
    fn tan(self) -> Self {
        self.tan()
    }

    #[inline(always)]
    fn powf(self, y: Self) -> Self {
        self.powf(y)
    }
}

impl Add for Narrow {
    type Output = Self;
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self(self.0 + o.0)
    }
}

impl Sub for Narrow {
    type Output = Self;
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self(self.0 - o.0)
    }
}

impl Mul for Narrow {
    type Output = Self;
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Self(self.0 * o.0)
    }
}

impl Div for Narrow {
    type Output = Self;
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        Self(self.0 / o.0)
    }
}

impl Neg for Narrow {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

/// 2^x within 7.5e-5; 0 from x = -125.5 down.
#[inline(always)]
fn exp2_narrow(x: f32) -> f32 {
    let x = clamp(x, -126.0, 129.0);
    // Half of 2^n, as 2^128 is no f32; the other factor of 2 is in the coefficients, which are
    // those of 2^(r + 1) for |r| <= 1/2: degree 3, relative error 7.5e-5.
    let (n, s) = split(x, 1.0);
    s * poly(x - n, [1.999_856_11, 1.386_521_82, 0.485_222_787, 0.110_344_917])
}

/// 1 / (1 + 2^y) within 3e-6; 0 above 127.5.
#[inline(always)]
fn inverse_1p_exp2(y: f32) -> f32 {
    let y = clamp(y, -127.0, 128.0);
    let (n, s) = split(y, 0.0);
    let r = y - n;
    // 2^r is (q + r) / (q - r), where q = r * coth(r * ln(2) / 2): degree 1 in r^2 for |r| <= 1/2,
    // relative error 2.6e-6.
    let q = poly(r * r, [2.885_397_43, 0.115_291_431]);
    let b = q - r;
    b / (b + s * (q + r))
}

/// `scale * ln(x)` within 2^-14.
#[inline(always)]
fn log_narrow(x: f32, scale: f32, scale_ln2: f32) -> f32 {
    let (k, f) = split_log(x);
    log_special(x, k * scale_ln2 + ln_1p_narrow(f) * scale)
}

/// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)]: f * P(f), P of degree 4, relative error 5.2e-5.
#[inline(always)]
fn ln_1p_narrow(f: f32) -> f32 {
    f * poly(f, [0.999_966_145, -0.499_418_765, 0.336_327_881, -0.271_623_224, 0.178_168_371])
}

/// Functions of [`Narrow`] that are those of `f32`.
macro_rules! as_f32 {
    ($($name:ident),*) => {
        $(
            #[inline(always)]
            fn $name(self) -> Self {
                Self(Real::$name(self.0))
            }
        )*
    };
}

impl Real for Narrow {
    as_f32!(sin, cos, tan, sqrt, abs, floor, ceil, round, trunc);

    #[inline(always)]
    fn c(x: f64) -> Self {
        Self(x as f32)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        Self(exp2_narrow(self.0 * LOG2_E))
    }

    #[inline(always)]
    fn exp2(self) -> Self {
        Self(exp2_narrow(self.0))
    }

    #[inline(always)]
    fn expm1(self) -> Self {
        let x = clamp(self.0, -20.0, 89.0);
        let (n, s) = split(x * LOG2_E, 1.0);
        let r = x - n * LN_2;
        // (e^r - 1) / r for |r| <= ln(2) / 2: degree 3, relative error 1.5e-5.
        let q = r * poly(r, [0.999_985_039, 0.500_012_577, 0.167_668_432, 0.041_666_589_7]);
        let half = s * q + (s - 0.5);
        Self(half + half)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        Self(log_narrow(self.0, 1.0, LN_2))
    }

    #[inline(always)]
    fn log2(self) -> Self {
        Self(log_narrow(self.0, LOG2_E, 1.0))
    }

    #[inline(always)]
    fn log10(self) -> Self {
        Self(log_narrow(self.0, LOG10_E, LOG10_2))
    }

    #[inline(always)]
    fn log1p(self) -> Self {
        let (u, k, f) = split_log1p(self.0);
        Self(log_special(u, k * LN_2 + ln_1p_narrow(f)))
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        // x * P(x^2) / Q(x^2) for |x| <= 4.6: degrees 2 and 2, relative error 3.3e-5. There tanh
        // is within 2^-12 of 1.
        let x = clamp(self.0, -4.6, 4.6);
        let z = x * x;
        let p = poly(z, [0.999_967_933, 0.103_624_754, 7.095_839_25e-4]);
        let q = poly(z, [1.0, 0.436_747_223, 0.013_197_060_7]);
        Self(x * p / q)
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self(inverse_1p_exp2(self.0 * -LOG2_E))
    }

    #[inline(always)]
    fn gelu_tanh(self) -> Self {
        // The factor from e to 2 is in the constants: a tenth less time.
        Self(self.0 * inverse_1p_exp2(gelu_argument(self.0, -std::f64::consts::LOG2_E)))
    }

    #[inline(always)]
    fn normal_cdf(self) -> Self {
        Self(self.0.normal_cdf())
    }

    #[inline(always)]
    fn softplus(self) -> Self {
        let x = self.0;
        let e = exp2_narrow(x.abs() * -LOG2_E);
        // ln(1 + e) / e for e in 0..=1: degree 4, relative error 5.7e-5.
        let p = poly(e, [0.999_943_256, -0.496_976_942, 0.306_295_782, -0.157_417_655, 0.041_341_871]);
        Self(e * p + if 0.0 > x { 0.0 } else { x })
    }

    #[inline(always)]
    fn erf(self) -> Self {
        // erf(x) / x for |x| <= 2.8: degree 7 in x^2, relative error 5.3e-5. There erf is within
        // 2^-12 of 1.
        const P: [f32; 8] = [
            1.128_319_50,
            -0.375_238_240,
            0.110_507_742,
            -0.024_401_594_0,
            0.003_860_072_93,
            -4.058_912_90e-4,
            2.498_216_60e-5,
            -6.730_047_06e-7,
        ];
        let x = clamp(self.0, -2.8, 2.8);
        Self(x * poly(x * x, P))
    }

    #[inline(always)]
    fn powf(self, y: Self) -> Self {
        Self(Real::powf(self.0, y.0))
    }

    #[inline(always)]
    fn rem(self, o: Self) -> Self {
        Self(self.0 % o.0)
    }

    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        Self(self.0.copysign(sign.0))
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.0.is_nan()
    }

    #[inline(always)]
    fn fma(a: Self, b: Self, c: Self) -> Self {
        Self(a.0.mul_add(b.0, c.0))
    }
}

/// Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
/// SC 2011): four random words from a counter and a key, by ten rounds of a Feistel network.
///
/// A counter-based generator has no state, so that element i of a tensor gets the same number
/// whichever thread, device or vector lane computes it.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    // The key schedule's Weyl increments: the golden ratio, and sqrt(3) - 1.
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A number in [0, 1) from random bits: the top 24, which an f32 holds exactly.
#[inline(always)]
pub fn uniform01(u: u32) -> f32 {
    // By way of i32: x86 below AVX-512 converts no u32.
    (u >> 8) as i32 as f32 * (1.0 / 16_777_216.0)
}

/// Two independent standard normal numbers from two random words (Box and Muller, "A note on the
/// generation of random normal deviates", 1958).
///
/// Only f32 products, sums, one square root and integer operations, so that another device that computes
/// the same gets the same numbers, but for its rounding. The largest magnitude is
/// sqrt(2 ln 2^24) = 5.77.
#[inline(always)]
pub fn normal_pair(u1: u32, u2: u32) -> (f32, f32) {
    // In (0, 1], for the logarithm.
    let u = ((u1 >> 8) + 1) as i32 as f32 * (1.0 / 16_777_216.0);
    let (k, m) = split_exponent(u);
    let (k, f) = (exponent_to_f32(k), m - 1.0);
    let ln = k * LN2_HI + (k * LN2_LO + ln_tail(f) + f);
    let radius = (ln * -2.0).sqrt();
    let (sin, cos) = sin_cos_turns(u2);
    (radius * cos, radius * sin)
}

/// Sine and cosine of the angle of `turns` / 2^32 full turns.
#[inline(always)]
fn sin_cos_turns(turns: u32) -> (f32, f32) {
    // The nearest quarter turn, and what is left: at most an eighth either way.
    let quarter = turns.wrapping_add(1 << 29) >> 30;
    let r = turns.wrapping_sub(quarter << 30) as i32 as f32 * (1.0 / 4_294_967_296.0);
    let z = r * r;
    // sin(2 pi r) / r: degree 3 in r^2, relative error 3.4e-8; cos(2 pi r): degree 3, error 4.0e-8.
    let s = r * poly(z, [TAU, -41.341_663_4, 81.592_353_8, -75.393_562_3]);
    let c = poly(z, [1.0, -19.739_162_4, 64.922_210_7, -83.617_912_3]);
    let odd = quarter & 1 != 0;
    let (sin, cos) = if odd { (c, s) } else { (s, c) };
    // The sign bits: sine is negative in quarters 2 and 3, cosine in 1 and 2.
    let sin_sign = (quarter & 2) << 30;
    let cos_sign = (quarter.wrapping_add(1) & 2) << 30;
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// A function in its three forms, and the error of the f32 form in units in the last place.
    struct Case {
        name: &'static str,
        precise: fn(f32) -> f32,
        narrow: fn(Narrow) -> Narrow,
        exact: fn(f64) -> f64,
        max_ulps: f64,
    }

    macro_rules! cases {
        ($($name:ident: $max_ulps:literal,)*) => {
            [$(Case {
                name: stringify!($name),
                precise: Real::$name,
                narrow: Real::$name,
                exact: Real::$name,
                max_ulps: $max_ulps,
            }),*]
        };
    }

    /// The bounds are those measured over every 29th f32, rounded up to a tenth.
    const CASES: [Case; 11] = cases![
        exp: 1.1,
        exp2: 1.4,
        expm1: 1.8,
        ln: 0.9,
        log2: 1.9,
        log10: 1.9,
        log1p: 1.5,
        tanh: 2.9,
        sigmoid: 2.4,
        softplus: 1.8,
        erf: 1.3,
    ];

    /// A sample of all f32, both infinities, NaNs and subnormals included.
    fn sample() -> impl Iterator<Item = f32> {
        let edges = [0.0, 1.0, SQRT_2, 88.72283, 88.72284, 103.97, 128.0, 149.5, 1e-45, f32::MAX, f32::INFINITY];
        let dense = (0..=u32::MAX).step_by(9973).map(f32::from_bits);
        dense.chain(edges).chain(edges.map(|x| -x)).chain([f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)])
    }

    /// The error of `got` in units in the last place of `exact`, with infinity for 2^128.
    fn ulps(got: f32, exact: f64) -> f64 {
        if got.is_nan() || exact.is_nan() {
            return if got.is_nan() && exact.is_nan() { 0.0 } else { f64::INFINITY };
        }
        let limit = 2f64.powi(128);
        let exponent = ((exact.abs().to_bits() >> 52) as i32 - 1023).clamp(-126, 127);
        (f64::from(got).clamp(-limit, limit) - exact.clamp(-limit, limit)).abs() / 2f64.powi(exponent - 23)
    }

    /// The error of `got` as a part of what [`Narrow`] allows.
    fn narrow_error(got: Narrow, exact: f64) -> f64 {
        if got.is_nan() || exact.is_nan() || exact as f32 == got.0 {
            return if got.is_nan() == exact.is_nan() { 0.0 } else { f64::INFINITY };
        }
        // What bf16 rounds to infinity is infinity.
        if bf16::from_f64(exact).is_infinite() && bf16::from_f32(got.0) == bf16::from_f64(exact) {
            return 0.0;
        }
        let allowed = if exact.abs() < 2f64.powi(-14) { 2f64.powi(-25) } else { exact.abs() * 2f64.powi(-12) };
        (f64::from(got.0) - exact).abs() / allowed
    }

    #[test]
    fn f32_functions_are_within_their_ulps() {
        for case in &CASES {
            for x in sample() {
                let (got, exact) = ((case.precise)(x), (case.exact)(f64::from(x)));
                let error = ulps(got, exact);
                assert!(error <= case.max_ulps, "{}({x:e}) = {got:e}, not {exact:e}: {error} ulp", case.name);
            }
        }
    }

    #[test]
    fn narrow_functions_are_within_half_an_f16_ulp() {
        let halves = (0..=u16::MAX).flat_map(|i| [f16::from_bits(i).to_f32(), bf16::from_bits(i).to_f32()]);
        let inputs: Vec<f32> = halves.chain(sample()).collect();
        for case in &CASES {
            for &x in &inputs {
                let (got, exact) = ((case.narrow)(Narrow(x)), (case.exact)(f64::from(x)));
                let error = narrow_error(got, exact);
                assert!(error <= 0.72, "{}({x:e}) = {got:?}, not {exact:e}: {error} of the bound", case.name);
            }
        }
    }

    #[test]
    fn limits_are_exact() {
        for case in &CASES {
            for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY] {
                let want = (case.exact)(f64::from(x)) as f32;
                let (precise, narrow) = ((case.precise)(x), (case.narrow)(Narrow(x)).0);
                if want.is_nan() {
                    assert!(precise.is_nan() && narrow.is_nan(), "{}({x})", case.name);
                } else {
                    assert_eq!(precise.to_bits(), want.to_bits(), "{}({x}) = {precise}", case.name);
                    assert_eq!(f16::from_f32(narrow), f16::from_f32(want), "{}({x}) = {narrow}", case.name);
                }
            }
        }
    }

    #[test]
    fn log2_of_powers_of_two_is_exact() {
        for k in -149..128 {
            let x = 2f64.powi(k) as f32;
            assert_eq!(Real::log2(x), k as f32);
            assert_eq!(Real::log2(Narrow(x)).0, k as f32);
            assert_eq!(Real::exp2(k as f32), x);
        }
    }

    #[test]
    fn saturation_is_exact() {
        for x in [10.0, 20.0, 1e4, f32::MAX] {
            assert_eq!((Real::tanh(x), Real::tanh(-x)), (1.0, -1.0));
            assert_eq!((Real::erf(x), Real::erf(-x)), (1.0, -1.0));
            assert_eq!(Real::softplus(20.0 * x), 20.0 * x);
            assert_eq!(Real::sigmoid(20.0 * x), 1.0);
        }
        assert_eq!(Real::sigmoid(-105.0f32), 0.0);
        assert!(Real::exp(-103.0f32) > 0.0 && Real::exp(-105.0f32) == 0.0);
    }

    #[test]
    fn gelu_tanh_follows_the_formula() {
        let formula = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * Real::sigmoid(2.0 * u)
        };
        for x in sample().filter(|x| x.is_finite() && x.abs() < 1e6) {
            let exact = formula(f64::from(x));
            let error = (f64::from(x.gelu_tanh()) - exact).abs();
            assert!(error <= 3e-7 * f64::from(x.abs()) + 1e-44, "gelu({x}): {error}");
            assert!(narrow_error(Narrow(x).gelu_tanh(), exact) < 0.72, "narrow gelu({x})");
        }
        assert_eq!(f32::INFINITY.gelu_tanh(), f32::INFINITY);
    }

    #[test]
    fn maximum_and_minimum_keep_nan() {
        assert_eq!((1f32.max_nan(2.0), 1f32.min_nan(2.0)), (2.0, 1.0));
        assert_eq!((2f64.max_nan(1.0), 2f64.min_nan(1.0)), (2.0, 1.0));
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN)] {
            assert!(a.max_nan(b).is_nan() && a.min_nan(b).is_nan());
        }
    }

    #[test]
    fn sign_keeps_zero_and_nan() {
        assert_eq!((3f32.sign(), (-3f32).sign(), 0f32.sign()), (1.0, -1.0, 0.0));
        assert!((-0f32).sign().is_sign_negative() && f32::NAN.sign().is_nan());
    }

    #[test]
    fn rounding_and_remainder_follow_ieee() {
        assert_eq!([0.5f32, 1.5, 2.5, -0.5].map(<f32 as Real>::round), [0.0, 2.0, 2.0, -0.0]);
        assert_eq!((Real::rem(-7f32, 3.0), Real::rem(7f32, -3.0)), (-1.0, 1.0));
        assert_eq!((4f32.rsqrt(), 4f32.recip()), (0.5, 0.25));
        assert_eq!(Real::powf(-2f32, 3.0), -8.0);
    }

    /// The known answers that come with Random123, the authors' implementation (kat_vectors).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let answer = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox4x32(pi, [0xa409_3822, 0x299f_31d0]), answer);
    }

    #[test]
    fn uniform_numbers_are_in_the_unit_interval() {
        assert_eq!((uniform01(0), uniform01(1 << 31)), (0.0, 0.5));
        assert_eq!(uniform01(u32::MAX), 1.0 - f32::EPSILON / 2.0);
    }

    #[test]
    fn normal_pairs_follow_box_and_muller() {
        for i in 0..100_000 {
            let [u1, u2, edge, _] = philox4x32([i, 0, 0, 0], [7, 7]);
            // Every eighth is taken close to 1 or to 0, where the logarithm needs care.
            let u1 = if i % 8 == 0 { (edge >> 12).wrapping_neg() } else { u1 >> (i % 25) };
            let radius = (-2.0 * (f64::from((u1 >> 8) + 1) / 2f64.powi(24)).ln()).sqrt();
            let angle = f64::from(u2) / 2f64.powi(32) * std::f64::consts::TAU;
            let (a, b) = normal_pair(u1, u2);
            let error = (f64::from(a) - radius * angle.cos()).abs().max((f64::from(b) - radius * angle.sin()).abs());
            assert!(error <= 3e-7 * radius, "{u1:#x} {u2:#x}: {error}");
        }
        assert_eq!(normal_pair(u32::MAX, 0).0, 0.0);
    }

    #[test]
    fn normal_numbers_have_the_moments() {
        const PAIRS: u32 = 1 << 19;
        let mut sums = [0.0; 5];
        for i in 0..PAIRS {
            let [u1, u2, ..] = philox4x32([i, 0, 0, 0], [1, 0]);
            let (a, b) = normal_pair(u1, u2);
            let (a, b) = (f64::from(a), f64::from(b));
            for (power, sum) in (1..=4).zip(&mut sums) {
                *sum += a.powi(power) + b.powi(power);
            }
            sums[4] += 2.0 * a * b;
        }
        // Four standard deviations of the mean of the n-th power: sqrt(E x^2n - (E x^n)^2) / 1000 each.
        let wants = [(0.0, 1.0), (1.0, 1.42), (0.0, 3.88), (3.0, 9.8), (0.0, 1.42)];
        for (sum, (want, deviation)) in sums.iter().zip(wants) {
            let mean = sum / f64::from(2 * PAIRS);
            assert!((mean - want).abs() < 4.0 * deviation / 1000.0, "{mean} for {want}");
        }
    }
}
