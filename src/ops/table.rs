//! The op table: one row an elementwise op, from which every layer derives what it needs.
//!
//! A row reads `Variant name(operands) Sort Rounding { msl, cpu, int, grad }`:
//! - `msl`: the Metal text of the functor in f32, over its operand names; helpers named `tl_*` live
//!   in `shaders/functors.metal`.
//! - `cpu`: the same value in Rust, written once for f32, its narrow form and f64 ([`Real`]); `int`
//!   the wrapping integer form ([`Int`]), where there is one.
//! - `grad`: given the gradient `g` of the result `y`, the gradient of each operand, over [`Expr`].
//!   A row without it has no gradient, which is an error when one is asked for.
//!
//! [`Sort`] says which dtypes the row takes and gives; [`Rounding`] what it means for f16 and bf16
//! values that a fused kernel still holds in f32.

use super::math::Real;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Which dtypes an elementwise op takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sort {
    /// Floats to the same float.
    Float,
    /// Floats or integers to the same dtype.
    Num,
    /// Two of any dtype to bool.
    Cmp,
    /// A float to bool.
    Test,
    /// Bools to bool.
    Logic,
    /// A bool and two of any one dtype, to that dtype.
    Select,
}

/// How an op treats narrow values that are held in f32, not yet rounded to their dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The result needs rounding.
    Rounds,
    /// Representable operands give a representable result: `-x`, `relu(x)`.
    Exact,
    /// Discontinuous: operands are rounded first, so that fusion cannot change a decision.
    Decides,
}

/// Wrapping integer arithmetic, in which the `int` column is written.
pub trait Int: Copy + Ord {
    /// 0 or 1.
    fn of(x: u8) -> Self;
    /// Wrapping sum.
    fn add(self, o: Self) -> Self;
    /// Wrapping difference.
    fn sub(self, o: Self) -> Self;
    /// Wrapping product.
    fn mul(self, o: Self) -> Self;
    /// Quotient rounded towards zero; 0 for a zero divisor; wrapping for MIN / -1.
    fn div(self, o: Self) -> Self;
    /// Remainder with the sign of the dividend; 0 for a zero divisor.
    fn rem(self, o: Self) -> Self;
    /// Power by squaring, wrapping; negative exponents give the quotient 1 / x^-y as [`Int::div`] would.
    fn pow(self, o: Self) -> Self {
        let (one, zero) = (Self::of(1), Self::of(0));
        if o < zero {
            return match self {
                x if x == one => one,
                x if x == zero.sub(one) => [one, x][(o.rem(Self::of(2)) != zero) as usize],
                _ => zero,
            };
        }
        let (mut base, mut exponent, mut power) = (self, o, one);
        while exponent > zero {
            if exponent.rem(Self::of(2)) != zero {
                power = power.mul(base);
            }
            base = base.mul(base);
            exponent = exponent.div(Self::of(2));
        }
        power
    }
}

macro_rules! int {
    ($($t:ty)+) => {$(
        impl Int for $t {
            #[inline(always)]
            fn of(x: u8) -> Self { x as $t }
            #[inline(always)]
            fn add(self, o: Self) -> Self { self.wrapping_add(o) }
            #[inline(always)]
            fn sub(self, o: Self) -> Self { self.wrapping_sub(o) }
            #[inline(always)]
            fn mul(self, o: Self) -> Self { self.wrapping_mul(o) }
            #[inline(always)]
            fn div(self, o: Self) -> Self { if o == 0 { 0 } else { self.wrapping_div(o) } }
            #[inline(always)]
            fn rem(self, o: Self) -> Self { if o == 0 { 0 } else { self.wrapping_rem(o) } }
        }
    )+};
}
int!(i64 i32 u32 u8);

/// The algebra in which gradient rules are written: tensors when differentiating, f64 in tests.
pub trait Expr:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Add<f64, Output = Self>
    + Sub<f64, Output = Self>
    + Mul<f64, Output = Self>
{
    /// A constant.
    fn lit(self, value: f64) -> Self;
    /// Any unary row.
    fn unary(self, op: Elementwise) -> Self;
    /// `self` to the power `o`.
    fn pow(self, o: Self) -> Self;
    /// `then` where `self > o`, else `other`.
    fn if_gt(self, o: Self, then: Self, other: Self) -> Self;
    /// `then` where `self == o`, else `other`.
    fn if_eq(self, o: Self, then: Self, other: Self) -> Self;
    /// `then` where `self`, a truth value, holds, else `other`.
    fn choose(self, then: Self, other: Self) -> Self;
}

const SQRT_2_OVER_PI_2: f64 = 1.595_769_121_605_730_7; // 2 sqrt(2 / pi)
const GELU_CUBIC: f64 = 0.044_715;

/// Derivative of [`Elementwise::Gelu`]; Hendrycks and Gimpel 2016, eq. 2, in its sigmoid form.
fn gelu_slope<E: Expr>(x: E) -> E {
    let s = ((x * x * GELU_CUBIC + 1.0) * x * SQRT_2_OVER_PI_2).unary(Elementwise::Sigmoid);
    let inner = (x * x * (3.0 * GELU_CUBIC) + 1.0) * SQRT_2_OVER_PI_2;
    s + x * s * (-s + 1.0) * inner
}

/// Derivative of [`Elementwise::GeluErf`]: the normal distribution function plus x times its density.
fn gelu_erf_slope<E: Expr>(x: E) -> E {
    let cdf = ((x * std::f64::consts::FRAC_1_SQRT_2).unary(Elementwise::Erf) + 1.0) * 0.5;
    let pdf = (x * x * -0.5).unary(Elementwise::Exp) * 0.398_942_280_401_432_7;
    cdf + x * pdf
}

/// Calls `$with!` with every row of the table.
#[macro_export]
#[doc(hidden)]
macro_rules! for_each_elementwise { ($with:ident) => { $with! {
    /// Sum.
    Add add(a, b) Num Rounds { msl: "tl_add(a, b)", cpu: a + b, int: a.add(b), grad: |g, y| [g, g] }
    /// Difference.
    Sub sub(a, b) Num Rounds { msl: "tl_sub(a, b)", cpu: a - b, int: a.sub(b), grad: |g, y| [g, -g] }
    /// Product.
    Mul mul(a, b) Num Rounds { msl: "tl_mul(a, b)", cpu: a * b, int: a.mul(b), grad: |g, y| [g * b, g * a] }
    /// Quotient. Integers round towards zero, and a zero divisor gives 0.
    Div div(a, b) Num Rounds { msl: "tl_div(a, b)", cpu: a / b, int: a.div(b), grad: |g, y| [g / b, -(g * y / b)] }
    /// Remainder with the sign of the dividend. An integer zero divisor gives 0.
    Rem rem(a, b) Num Decides { msl: "tl_rem(a, b)", cpu: a.rem(b), int: a.rem(b),
        grad: |g, y| [g, -(g * (a / b).unary(Elementwise::Trunc))] }
    /// Power. The gradient of the exponent is 0 where the base is 0.
    Pow pow(a, b) Num Rounds { msl: "tl_pow(a, b)", cpu: a.powf(b), int: a.pow(b),
        grad: |g, y| [b.if_eq(b.lit(0.0), g.lit(0.0), g * b * a.pow(b - 1.0)), a.if_eq(a.lit(0.0), a.lit(0.0), g * y * a.unary(Elementwise::Ln))] }
    /// The larger; NaN if either is. Ties share the gradient.
    Maximum maximum(a, b) Num Decides { msl: "tl_max(a, b)", cpu: a.max_nan(b), int: a.max(b),
        grad: |g, y| [a.if_gt(b, g, a.if_eq(b, g * 0.5, g.lit(0.0))), b.if_gt(a, g, a.if_eq(b, g * 0.5, g.lit(0.0)))] }
    /// The smaller; NaN if either is. Ties share the gradient.
    Minimum minimum(a, b) Num Decides { msl: "tl_min(a, b)", cpu: a.min_nan(b), int: a.min(b),
        grad: |g, y| [b.if_gt(a, g, a.if_eq(b, g * 0.5, g.lit(0.0))), a.if_gt(b, g, a.if_eq(b, g * 0.5, g.lit(0.0)))] }
    /// `x` limited to `lo ..= hi`; `hi` wins where they cross. NaN stays NaN.
    Clamp clamp(x, lo, hi) Num Decides { msl: "tl_min(tl_max(x, lo), hi)", cpu: x.max_nan(lo).min_nan(hi), int: x.max(lo).min(hi),
        grad: |g, y| [lo.if_gt(x, g.lit(0.0), x.if_gt(hi, g.lit(0.0), g)),
                      lo.if_gt(hi, g.lit(0.0), lo.if_gt(x, g, g.lit(0.0))),
                      lo.if_gt(hi, g, x.if_gt(hi, g, g.lit(0.0)))] }
    /// Negation.
    Neg neg(x) Num Exact { msl: "tl_neg(x)", cpu: -x, int: I::of(0).sub(x), grad: |g, y| [-g] }
    /// Absolute value.
    Abs abs(x) Num Exact { msl: "tl_abs(x)", cpu: x.abs(), int: if x < I::of(0) { I::of(0).sub(x) } else { x },
        grad: |g, y| [g * x.unary(Elementwise::Sign)] }
    /// -1, 0 or 1; NaN for NaN.
    Sign sign(x) Num Decides { msl: "tl_sign(x)", cpu: x.sign(),
        int: if x < I::of(0) { I::of(0).sub(I::of(1)) } else { I::of((x > I::of(0)) as u8) }, grad: |g, y| [g.lit(0.0)] }
    /// Square.
    Sqr sqr(x) Num Rounds { msl: "tl_mul(x, x)", cpu: x * x, int: x.mul(x), grad: |g, y| [g * x * 2.0] }
    /// Rectifier: max(x, 0); NaN stays NaN.
    Relu relu(x) Num Exact { msl: "tl_relu(x)", cpu: R::select(x < R::c(0.0), R::c(0.0), x), int: x.max(I::of(0)),
        grad: |g, y| [y.if_gt(y.lit(0.0), g, g.lit(0.0))] }
    /// Reciprocal.
    Recip recip(x) Float Rounds { msl: "1.0f / x", cpu: R::c(1.0) / x, grad: |g, y| [-(g * y * y)] }
    /// Square root.
    Sqrt sqrt(x) Float Rounds { msl: "sqrt(x)", cpu: x.sqrt(), grad: |g, y| [g * 0.5 / y] }
    /// 1 / sqrt(x).
    Rsqrt rsqrt(x) Float Rounds { msl: "1.0f / sqrt(x)", cpu: x.rsqrt(), grad: |g, y| [g * y * y * y * -0.5] }
    /// Natural exponential.
    Exp exp(x) Float Rounds { msl: "exp(x)", cpu: x.exp(), grad: |g, y| [g * y] }
    /// 2 to the power x.
    Exp2 exp2(x) Float Rounds { msl: "exp2(x)", cpu: x.exp2(), grad: |g, y| [g * y * std::f64::consts::LN_2] }
    /// exp(x) - 1, accurate near 0.
    Expm1 expm1(x) Float Rounds { msl: "tl_expm1(x)", cpu: x.expm1(), grad: |g, y| [g * (y + 1.0)] }
    /// Natural logarithm.
    Ln ln(x) Float Rounds { msl: "log(x)", cpu: x.ln(), grad: |g, y| [g / x] }
    /// Logarithm to base 2.
    Log2 log2(x) Float Rounds { msl: "log2(x)", cpu: x.log2(), grad: |g, y| [g / (x * std::f64::consts::LN_2)] }
    /// Logarithm to base 10.
    Log10 log10(x) Float Rounds { msl: "log10(x)", cpu: x.log10(), grad: |g, y| [g / (x * std::f64::consts::LN_10)] }
    /// ln(1 + x), accurate near 0.
    Log1p log1p(x) Float Rounds { msl: "tl_log1p(x)", cpu: x.log1p(), grad: |g, y| [g / (x + 1.0)] }
    /// Sine.
    Sin sin(x) Float Rounds { msl: "sin(x)", cpu: x.sin(), grad: |g, y| [g * x.unary(Elementwise::Cos)] }
    /// Cosine.
    Cos cos(x) Float Rounds { msl: "cos(x)", cpu: x.cos(), grad: |g, y| [-(g * x.unary(Elementwise::Sin))] }
    /// Tangent.
    Tan tan(x) Float Rounds { msl: "tan(x)", cpu: x.tan(), grad: |g, y| [g * (y * y + 1.0)] }
    /// Hyperbolic tangent.
    Tanh tanh(x) Float Rounds { msl: "tl_tanh(x)", cpu: x.tanh(), grad: |g, y| [g * (-(y * y) + 1.0)] }
    /// Error function.
    Erf erf(x) Float Rounds { msl: "tl_erf(x)", cpu: x.erf(),
        grad: |g, y| [g * (-(x * x)).unary(Elementwise::Exp) * std::f64::consts::FRAC_2_SQRT_PI] }
    /// Logistic function 1 / (1 + exp(-x)).
    Sigmoid sigmoid(x) Float Rounds { msl: "tl_sigmoid(x)", cpu: x.sigmoid(), grad: |g, y| [g * y * (-y + 1.0)] }
    /// ln(1 + exp(x)).
    Softplus softplus(x) Float Rounds { msl: "tl_softplus(x)", cpu: x.softplus(), grad: |g, y| [g * x.unary(Elementwise::Sigmoid)] }
    /// x sigmoid(x).
    Silu silu(x) Float Rounds { msl: "x * tl_sigmoid(x)", cpu: x * x.sigmoid(), grad: |g, y| [{
        let s = x.unary(Elementwise::Sigmoid);
        g * (s + y * (-s + 1.0))
    }] }
    /// GELU in its tanh form: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), Hendrycks and Gimpel 2016.
    Gelu gelu(x) Float Rounds { msl: "x * tl_sigmoid((x * x * 0.044715f + 1.0f) * x * 1.5957691f)",
        cpu: x.gelu_tanh(),
        grad: |g, y| [g * gelu_slope(x)] }
    /// GELU in its exact form: x (1 + erf(x / sqrt 2)) / 2.
    GeluErf gelu_erf(x) Float Rounds { msl: "x * 0.5f * (1.0f + tl_erf(x * 0.70710678f))", cpu: x * x.normal_cdf(),
        grad: |g, y| [g * gelu_erf_slope(x)] }
    /// x where x > 0, else alpha (exp(x) - 1).
    Elu elu(x, alpha) Float Rounds { msl: "x > 0.0f ? x : alpha * tl_expm1(x)",
        cpu: R::select(x > R::c(0.0), x, alpha * x.expm1()),
        grad: |g, y| [x.if_gt(x.lit(0.0), g, g * (y + alpha)), x.if_gt(x.lit(0.0), g.lit(0.0), g * x.unary(Elementwise::Expm1))] }
    /// x where x > 0, else slope x.
    LeakyRelu leaky_relu(x, slope) Float Rounds { msl: "x > 0.0f ? x : slope * x",
        cpu: R::select(x > R::c(0.0), x, slope * x),
        grad: |g, y| [x.if_gt(x.lit(0.0), g, g * slope), x.if_gt(x.lit(0.0), g.lit(0.0), g * x)] }
    /// Largest integer not above x.
    Floor floor(x) Float Decides { msl: "floor(x)", cpu: x.floor(), grad: |g, y| [g.lit(0.0)] }
    /// Smallest integer not below x.
    Ceil ceil(x) Float Decides { msl: "ceil(x)", cpu: x.ceil(), grad: |g, y| [g.lit(0.0)] }
    /// Nearest integer, ties to even.
    Round round(x) Float Decides { msl: "rint(x)", cpu: x.round(), grad: |g, y| [g.lit(0.0)] }
    /// Integer part.
    Trunc trunc(x) Float Decides { msl: "trunc(x)", cpu: x.trunc(), grad: |g, y| [g.lit(0.0)] }
    /// True where equal; NaN equals nothing.
    Eq eq(a, b) Cmp Decides { msl: "a == b", cpu: a == b }
    /// True where different.
    Ne ne(a, b) Cmp Decides { msl: "a != b", cpu: a != b }
    /// True where a < b.
    Lt lt(a, b) Cmp Decides { msl: "a < b", cpu: a < b }
    /// True where a <= b.
    Le le(a, b) Cmp Decides { msl: "a <= b", cpu: a <= b }
    /// True where a > b.
    Gt gt(a, b) Cmp Decides { msl: "a > b", cpu: a > b }
    /// True where a >= b.
    Ge ge(a, b) Cmp Decides { msl: "a >= b", cpu: a >= b }
    /// True where x is NaN.
    IsNan is_nan(x) Test Decides { msl: "isnan(x)", cpu: x.is_nan() }
    /// True where x is infinite.
    IsInf is_inf(x) Test Decides { msl: "isinf(x)", cpu: x.abs() == R::c(f64::INFINITY) }
    /// True where x is neither NaN nor infinite.
    IsFinite is_finite(x) Test Decides { msl: "isfinite(x)", cpu: x.abs() < R::c(f64::INFINITY) }
    /// Both hold.
    And and(a, b) Logic Decides { msl: "a & b", cpu: a & b }
    /// At least one holds.
    Or or(a, b) Logic Decides { msl: "a | b", cpu: a | b }
    /// Exactly one holds.
    Xor xor(a, b) Logic Decides { msl: "a ^ b", cpu: a ^ b }
    /// Does not hold.
    Not not(a) Logic Decides { msl: "a ^ 1", cpu: a ^ 1 }
    /// `then` where `cond` holds, else `other`.
    Select where_cond(cond, then, other) Select Exact { msl: "cond ? then : other", cpu: if cond != 0 { then } else { other },
        grad: |g, y| [g.lit(0.0), cond.choose(g, g.lit(0.0)), cond.choose(g.lit(0.0), g)] }
} } }

/// CPU form of a [`Sort::Float`] or [`Sort::Num`] row.
pub(crate) trait RealFn {
    const ARITY: usize;
    fn call<R: Real>(operands: [R; 3]) -> R;
}

/// CPU form of a [`Sort::Num`] row on integers.
pub(crate) trait IntFn {
    const ARITY: usize;
    fn call<I: Int>(operands: [I; 3]) -> I;
}

/// CPU form of a [`Sort::Cmp`] row.
pub(crate) trait CmpFn {
    fn call<T: PartialOrd + Copy>(a: T, b: T) -> bool;
}

/// CPU form of a [`Sort::Test`] row.
pub(crate) trait TestFn {
    fn call<R: Real>(x: R) -> bool;
}

/// CPU form of a [`Sort::Logic`] row, on 0 and 1.
pub(crate) trait LogicFn {
    const ARITY: usize;
    fn call(operands: [u8; 3]) -> u8;
}

macro_rules! count {
    ($($a:ident)+) => { [$(stringify!($a)),+].len() };
}

macro_rules! form {
    (Float $V:ident ($($a:ident),+) $cpu:expr) => {
        impl RealFn for functor::$V {
            const ARITY: usize = count!($($a)+);
            #[inline(always)]
            fn call<R: Real>(operands: [R; 3]) -> R { bind!(operands; $($a),+); $cpu }
        }
    };
    (Num $V:ident ($($a:ident),+) $cpu:expr, $int:expr) => {
        form!(Float $V ($($a),+) $cpu);
        impl IntFn for functor::$V {
            const ARITY: usize = count!($($a)+);
            #[inline(always)]
            fn call<I: Int>(operands: [I; 3]) -> I { bind!(operands; $($a),+); $int }
        }
    };
    (Cmp $V:ident ($a:ident, $b:ident) $cpu:expr) => {
        impl CmpFn for functor::$V {
            #[inline(always)]
            fn call<T: PartialOrd + Copy>($a: T, $b: T) -> bool { $cpu }
        }
    };
    (Test $V:ident ($a:ident) $cpu:expr) => {
        impl TestFn for functor::$V {
            #[inline(always)]
            fn call<R: Real>($a: R) -> bool { $cpu }
        }
    };
    (Logic $V:ident ($($a:ident),+) $cpu:expr) => {
        impl LogicFn for functor::$V {
            const ARITY: usize = count!($($a)+);
            #[inline(always)]
            fn call(operands: [u8; 3]) -> u8 { bind!(operands; $($a),+); $cpu }
        }
    };
    (Select $V:ident ($($a:ident),+) $cpu:expr) => {};
}

macro_rules! bind {
    ($from:ident; $a:ident) => {
        let [$a, ..] = $from;
    };
    ($from:ident; $a:ident, $b:ident) => {
        let [$a, $b, _] = $from;
    };
    ($from:ident; $a:ident, $b:ident, $c:ident) => {
        let [$a, $b, $c] = $from;
    };
}

macro_rules! rule {
    ($xs:ident $gy:ident $operand:ident ($($a:ident),+)) => { None };
    ($xs:ident $gy:ident $operand:ident ($($a:ident),+) |$g:ident, $y:ident| [$($dv:expr),+]) => {{
        bind!($xs; $($a),+);
        let ($g, $y) = $gy;
        let _ = ($y, $($a),+);
        let rules: [&dyn Fn() -> E; count!($($a)+)] = [$(&|| $dv),+];
        Some(rules[$operand]())
    }};
}

macro_rules! define_table { ($(
    $(#[doc = $doc:literal])* $V:ident $f:ident($($a:ident),+) $sort:ident $rounding:ident {
        msl: $msl:literal, cpu: $cpu:expr $(, int: $int:expr)? $(, grad: |$g:ident, $y:ident| [$($dv:expr),+ $(,)?])?
    }
)+) => {
    /// An elementwise op: a row of the table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[repr(u8)]
    pub enum Elementwise { $($(#[doc = $doc])* $V),+ }

    impl Elementwise {
        /// Every row.
        pub const ALL: &'static [Elementwise] = &[$(Elementwise::$V),+];

        /// The op's name, as the method of `Tensor` has it.
        pub const fn name(self) -> &'static str {
            match self { $(Elementwise::$V => stringify!($f)),+ }
        }

        /// Names of the operands, as the Metal text uses them.
        pub const fn operands(self) -> &'static [&'static str] {
            match self { $(Elementwise::$V => &[$(stringify!($a)),+]),+ }
        }

        /// Metal text of the functor.
        pub const fn msl(self) -> &'static str {
            match self { $(Elementwise::$V => $msl),+ }
        }

        /// Metal text of the functor where its result is rounded to f16 or bf16: within half a unit of f16's before.
        pub const fn msl_narrow(self) -> &'static str {
            match self {
                Elementwise::Exp => "tl_fast_exp2(x * 1.44269504f)",
                Elementwise::Exp2 => "tl_fast_exp2(x)",
                Elementwise::Tanh => "tl_tanh_narrow(x)",
                Elementwise::Sigmoid => "tl_sigmoid_narrow(x)",
                Elementwise::Silu => "x * tl_sigmoid_narrow(x)",
                Elementwise::Gelu => "x * tl_sigmoid_narrow((x * x * 0.044715f + 1.0f) * x * 1.5957691f)",
                _ => self.msl(),
            }
        }

        /// Whether the narrow text is off by no more than a few of f32's last bits.
        pub const fn is_near(self) -> bool {
            matches!(self, Elementwise::Exp | Elementwise::Exp2)
        }

        /// Which dtypes it takes and gives.
        pub const fn sort(self) -> Sort {
            match self { $(Elementwise::$V => Sort::$sort),+ }
        }

        /// What it means for unrounded narrow values.
        pub const fn rounding(self) -> Rounding {
            match self { $(Elementwise::$V => Rounding::$rounding),+ }
        }

        /// What the op does, from its doc comment.
        pub const fn summary(self) -> &'static str {
            match self { $(Elementwise::$V => concat!($($doc),*)),+ }
        }

        /// Gradient of operand number `operand` of `xs` (filled up with any value), given the gradient and
        /// value of the result; `None` where the op has no gradient rule.
        pub fn gradient<E: Expr>(self, xs: [E; 3], gy: (E, E), operand: usize) -> Option<E> {
            match self { $(Elementwise::$V => rule!(xs gy operand ($($a),+) $(|$g, $y| [$($dv),+])?)),+ }
        }
    }

    /// A unit type a row, on which its CPU forms are implemented.
    #[allow(dead_code)] // a selection is built into each device
    pub(crate) mod functor {
        $(pub struct $V;)+
    }
    $(form!($sort $V ($($a),+) $cpu $(, $int)?);)+
} }
for_each_elementwise!(define_table);

impl Elementwise {
    /// The number of operands.
    pub const fn arity(self) -> usize {
        self.operands().len()
    }

    /// What the gradient rule of an operand reads: bit i is operand i, bit 3 the result.
    pub fn gradient_reads(self, operand: usize) -> u8 {
        let reads = self.gradient([Reads(1), Reads(2), Reads(4)], (Reads(0), Reads(8)), operand);
        reads.map_or(0, |Reads(bits)| bits)
    }
}

/// An expression that stands for the values it is computed from.
#[derive(Clone, Copy)]
struct Reads(u8);

impl Reads {
    fn and(self, o: Reads) -> Reads {
        Reads(self.0 | o.0)
    }
}

impl Expr for Reads {
    fn lit(self, _: f64) -> Self {
        Reads(0)
    }
    fn unary(self, _: Elementwise) -> Self {
        self
    }
    fn pow(self, o: Self) -> Self {
        self + o
    }
    fn if_gt(self, o: Self, then: Self, other: Self) -> Self {
        self + o + then + other
    }
    fn if_eq(self, o: Self, then: Self, other: Self) -> Self {
        self + o + then + other
    }
    fn choose(self, then: Self, other: Self) -> Self {
        self + then + other
    }
}

macro_rules! reads_both {
    ($($Trait:ident $f:ident)+) => {$(
        impl $Trait for Reads {
            type Output = Reads;
            fn $f(self, o: Reads) -> Reads { self.and(o) }
        }
    )+};
}
macro_rules! reads_one {
    ($($Trait:ident $f:ident)+) => {$(
        impl $Trait<f64> for Reads {
            type Output = Reads;
            fn $f(self, _: f64) -> Reads { self }
        }
    )+};
}
reads_both!(Add add Sub sub Mul mul Div div);
reads_one!(Add add Sub sub Mul mul);
impl Neg for Reads {
    type Output = Reads;
    fn neg(self) -> Reads {
        self
    }
}

/// How a reduction combines the elements along its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reduction {
    /// Sum; 0 when empty.
    Sum,
    /// Product; 1 when empty.
    Prod,
    /// Largest element, NaN if any is.
    Max,
    /// Smallest element, NaN if any is.
    Min,
    /// Index of the first largest element (or first NaN), as i64.
    ArgMax,
    /// Index of the first smallest element (or first NaN), as i64.
    ArgMin,
}

impl Reduction {
    /// The op's name.
    pub const fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Prod => "prod",
            Reduction::Max => "max",
            Reduction::Min => "min",
            Reduction::ArgMax => "argmax",
            Reduction::ArgMin => "argmin",
        }
    }

    /// Whether its operand is rounded to its dtype first.
    pub const fn decides(self) -> bool {
        !matches!(self, Reduction::Sum | Reduction::Prod)
    }

    /// Whether it gives positions instead of values.
    pub const fn is_arg(self) -> bool {
        matches!(self, Reduction::ArgMax | Reduction::ArgMin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Expr for f64 {
        fn lit(self, value: f64) -> f64 {
            value
        }
        fn unary(self, op: Elementwise) -> f64 {
            value(op, [self, 0.0, 0.0])
        }
        fn pow(self, o: f64) -> f64 {
            self.powf(o)
        }
        fn if_gt(self, o: f64, then: f64, other: f64) -> f64 {
            if self > o { then } else { other }
        }
        fn if_eq(self, o: f64, then: f64, other: f64) -> f64 {
            if self == o { then } else { other }
        }
        fn choose(self, then: f64, other: f64) -> f64 {
            if self != 0.0 { then } else { other }
        }
    }

    macro_rules! value_of { ($(
        $(#[doc = $doc:literal])* $V:ident $f:ident($($a:ident),+) $sort:ident $rounding:ident { $($rest:tt)* }
    )+) => {
        fn value(op: Elementwise, xs: [f64; 3]) -> f64 {
            match op { $(Elementwise::$V => evaluate!($sort $V xs)),+ }
        }
    } }
    macro_rules! evaluate {
        (Float $V:ident $xs:ident) => {
            <functor::$V as RealFn>::call($xs)
        };
        (Num $V:ident $xs:ident) => {
            <functor::$V as RealFn>::call($xs)
        };
        (Select $V:ident $xs:ident) => {
            if $xs[0] != 0.0 { $xs[1] } else { $xs[2] }
        };
        ($sort:ident $V:ident $xs:ident) => {
            unreachable!("{} has no gradient", stringify!($V))
        };
    }
    for_each_elementwise!(value_of);

    /// Every gradient rule against central differences in f64, at points away from kinks.
    #[test]
    fn gradient_rules_agree_with_finite_differences() {
        let points = [[0.7, 1.3, 2.1], [1.9, 0.4, 0.9], [0.31, 2.6, 1.7], [2.4, 1.1, 0.2]];
        let mut checked = 0;
        for &op in Elementwise::ALL {
            for xs in points {
                let y = match op.sort() {
                    Sort::Float | Sort::Num | Sort::Select => value(op, xs),
                    _ => 0.0,
                };
                for i in (op == Elementwise::Select) as usize..op.arity() {
                    let Some(got) = op.gradient(xs, (1.5, y), i) else { continue };
                    let h = 1e-6;
                    let (mut up, mut down) = (xs, xs);
                    up[i] += h;
                    down[i] -= h;
                    let want = 1.5 * (value(op, up) - value(op, down)) / (2.0 * h);
                    assert!(
                        (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                        "{} operand {i} at {xs:?}: {got} {want}",
                        op.name()
                    );
                    checked += 1;
                }
            }
        }
        assert!(checked > 150, "{checked}");
    }

    #[test]
    fn every_differentiable_sort_has_a_rule() {
        for &op in Elementwise::ALL {
            let has_rule = op.gradient([1.0; 3], (1.0, 1.0), 0).is_some();
            let wants_rule = matches!(op.sort(), Sort::Float | Sort::Num | Sort::Select);
            assert_eq!(has_rule, wants_rule, "{}", op.name());
        }
    }

    #[test]
    fn rules_say_what_they_read() {
        let reads = |op: Elementwise, operand| op.gradient_reads(operand);
        assert_eq!((reads(Elementwise::Add, 0), reads(Elementwise::Mul, 0), reads(Elementwise::Mul, 1)), (0, 2, 1));
        assert_eq!((reads(Elementwise::Relu, 0), reads(Elementwise::Gelu, 0), reads(Elementwise::Exp, 0)), (8, 1, 8));
        assert_eq!((reads(Elementwise::Div, 1), reads(Elementwise::Select, 1)), (2 | 8, 1));
    }

    #[test]
    fn integer_division_and_power_are_total() {
        assert_eq!(Int::div(7, 0), 0);
        assert_eq!(Int::rem(7, 0), 0);
        assert_eq!(Int::div(i32::MIN, -1), i32::MIN);
        assert_eq!(Int::pow(3i64, 5), 243);
        assert_eq!((Int::pow(-1i32, -3), Int::pow(2i32, -1), Int::pow(1i32, -9)), (-1, 0, 1));
        assert_eq!(Int::pow(2u8, 9), 0);
    }
}
