//! The oracle: arrays of exact values, the ops on them in f64 and i128, and how close a tensor must come.

use half::{bf16, f16};
use std::fmt::Display;
use std::ops::Range;
use tensorlogic::testing::{Elementwise, Sort};
use tensorlogic::{DType, Device, Element, Result, Tensor};

/// Makes tests of functions that take a device: each runs on every device of this machine.
macro_rules! on_every_device {
    ($($name:ident),+ $(,)?) => {
        mod on_every_device {
            $(
                #[test]
                fn $name() {
                    $crate::oracle::devices().iter().for_each(|device| $crate::oracle::Outcome::check(super::$name(device)));
                }
            )+
        }
    };
}
pub(crate) use on_every_device;

/// What a test on a device may return.
pub(crate) trait Outcome {
    fn check(self);
}

impl Outcome for () {
    fn check(self) {}
}

impl Outcome for tensorlogic::Result<()> {
    fn check(self) {
        self.unwrap();
    }
}

/// Every device there is, or those that the environment's `TL_DEVICES` lists by name.
pub(crate) fn devices() -> Vec<tensorlogic::Device> {
    let mut devices = tensorlogic::Device::enumerate();
    let is_there = |name: &str| devices.iter().any(|device| device.name() == name);
    assert!(is_there("soft-metal") || cfg!(not(feature = "soft-metal")), "soft Metal is built in, but does not open");
    if let Ok(names) = std::env::var("TL_DEVICES") {
        // A test on a device that is not there would pass.
        names.split(',').for_each(|name| assert!(is_there(name), "there is no device {name}"));
        devices.retain(|device| names.split(',').any(|name| name == device.name()));
    }
    // What is tested is the device, not the CPU beside it.
    devices.iter().for_each(|device| device.set_cpu_threshold(0));
    devices
}

/// How many of the cases that `all` counts a device has time for: `some` where it is simulated.
pub(crate) fn budget<T>(device: &Device, all: T, some: T) -> T {
    if device.name() == "soft-metal" { some } else { all }
}

/// The seeds of random programs: those of the environment's `TL_FUZZ_SEEDS`, `from..to`, or else `default`.
pub(crate) fn seeds(default: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("TL_FUZZ_SEEDS") else { return default };
    let parts = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parts.expect("TL_FUZZ_SEEDS is from..to")
}

/// How to run the program of a seed alone.
pub(crate) fn rerun(device: &Device, seed: u64) -> String {
    format!("seed {seed} on {device} (TL_DEVICES={device} TL_FUZZ_SEEDS={seed}..{})", seed + 1)
}

/// Calls a generic function with the Rust type of a dtype.
macro_rules! with_type {
    (array_of($dtype:expr), $f:ident($($arg:expr),*)) => {
        match $dtype {
            DType::F16 => $f::<f16>($($arg),*),
            DType::BF16 => $f::<bf16>($($arg),*),
            DType::F32 => $f::<f32>($($arg),*),
            DType::F64 => $f::<f64>($($arg),*),
            DType::I64 => $f::<i64>($($arg),*),
            DType::I32 => $f::<i32>($($arg),*),
            DType::U32 => $f::<u32>($($arg),*),
            DType::U8 => $f::<u8>($($arg),*),
            DType::Bool => $f::<bool>($($arg),*),
        }
    };
}
/// The dtypes that a device has, of those that `wanted` selects.
pub fn dtypes(device: &Device, wanted: impl Fn(DType) -> bool) -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(move |&dtype| device.supports(dtype) && wanted(dtype))
}

/// What an element is, exactly: the values of every dtype are among these. Truth is 0 or 1.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Float(f64),
    Int(i64),
}

impl Value {
    pub fn float(self) -> f64 {
        match self {
            Value::Float(x) => x,
            Value::Int(i) => i as f64,
        }
    }

    pub fn int(self) -> i128 {
        match self {
            Value::Float(x) => panic!("{x} is no integer"),
            Value::Int(i) => i.into(),
        }
    }

    /// The value as `dtype` holds it: floats rounded, integers wrapped.
    pub fn stored(self, dtype: DType) -> Value {
        match self {
            Value::Float(x) => Value::Float(round(x, dtype)),
            Value::Int(i) => wrapped(i.into(), dtype),
        }
    }

    /// Whether these are the same bits, but that any NaN is any other.
    fn is(self, other: Value) -> bool {
        match (self, other) {
            (Value::Float(x), Value::Float(y)) => x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
            (Value::Int(i), Value::Int(j)) => i == j,
            _ => false,
        }
    }

    /// Whether this, an element of `dtype`, rounds from within `slack` of `exact`.
    fn is_near(self, exact: Value, slack: f64, dtype: DType) -> bool {
        let (Value::Float(got), Value::Float(exact)) = (self, exact) else { return self.is(exact) };
        if exact.is_nan() || exact.is_infinite() {
            return got.is_nan() && exact.is_nan() || got == exact;
        }
        (round(exact - slack, dtype)..=round(exact + slack, dtype)).contains(&got)
    }
}

/// An integer modulo 2^bits of `dtype`.
pub fn wrapped(i: i128, dtype: DType) -> Value {
    Value::Int(match dtype {
        DType::I64 => i as i64,
        DType::I32 => i as i32 as i64,
        DType::U32 => i as u32 as i64,
        DType::U8 => i as u8 as i64,
        DType::Bool => (i != 0) as i64,
        _ => panic!("{dtype} holds no integers"),
    })
}

/// The float of `dtype` nearest to `x`, ties to even.
pub fn round(x: f64, dtype: DType) -> f64 {
    let (fraction_bits, least_exponent) = match dtype {
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        DType::F32 => return x as f32 as f64,
        _ => return x,
    };
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = 2f64.powi(libm::ilogb(x).max(least_exponent) - fraction_bits);
    let rounded = (x / unit).round_ties_even() * unit;
    if rounded.abs() > largest(dtype) { f64::INFINITY.copysign(x) } else { rounded }
}

/// The largest finite value of a float dtype.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 65504.0,
        DType::BF16 => bf16::MAX.to_f64(),
        DType::F32 => f32::MAX.into(),
        _ => f64::MAX,
    }
}

/// The least and the largest value of an integer dtype or bool.
pub fn limits(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::I64 => (i64::MIN, i64::MAX),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        _ => (0, 1),
    }
}

/// Unit roundoff of the type that `dtype` is computed in.
pub fn unit(dtype: DType) -> f64 {
    if dtype == DType::F64 { 2f64.powi(-53) } else { 2f64.powi(-24) }
}

/// How far a function's value may lie from the exact one before it is rounded to `dtype`. That rounding is
/// allowed for by [`assert_close`], so an op that is exact or rounds once needs no slack at all.
///
/// f16 and bf16 functions are computed to half a unit in the last place of f16, 2^-12, and to 2^-25 where
/// f16 is subnormal; f32 functions to 4 units; f64 functions are the C library's, composed.
pub fn slack(exact: f64, dtype: DType) -> f64 {
    let (relative, absolute) = match dtype {
        DType::F16 | DType::BF16 => (2f64.powi(-12), 2f64.powi(-25)),
        DType::F32 => (2f64.powi(-21), 2f64.powi(-147)),
        _ => (1e-14, 2f64.powi(-1070)),
    };
    exact.abs() * relative + absolute
}

/// How far a sum of terms of this total magnitude may lie from the exact one. Sums are blocked, so that
/// their error does not grow with their length.
pub fn sum_slack(magnitude: f64, dtype: DType) -> f64 {
    4.0 * unit(dtype) * magnitude
}

/// The sum of many terms, by Kahan's method (1965): more exact than what is tested against it.
pub fn total(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for term in terms {
        let term = term - lost;
        let next: f64 = sum + term;
        (sum, lost) = (next, next - sum - term);
    }
    sum
}

/// Splitmix64 (Steele, Lea and Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `lo .. hi`.
    fn between(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * (self.bits() >> 11) as f64 / 2f64.powi(53)
    }

    /// A number without surprises: in -2 .. 2, or an integer of one digit.
    fn tame(&mut self, dtype: DType) -> Value {
        if dtype.is_float() {
            return Value::Float(self.between(-2.0, 2.0)).stored(dtype);
        }
        let (least, largest) = limits(dtype);
        Value::Int(self.between(least.max(-9) as f64, largest.min(9) as f64 + 1.0).floor() as i64)
    }

    /// Every fourth one special; else a tame one, or one of any magnitude.
    fn wild(&mut self, dtype: DType) -> Value {
        let special = specials(dtype);
        match self.bits() % 4 {
            0 => special[self.bits() as usize % special.len()],
            1 | 2 => self.tame(dtype),
            _ if dtype.is_float() => {
                let magnitude = self.between(-20.0, 20.0).exp2();
                Value::Float(if self.bits().is_multiple_of(2) { magnitude } else { -magnitude }).stored(dtype)
            }
            _ => wrapped(self.bits().into(), dtype),
        }
    }
}

/// Zeros, ties, the least and largest magnitudes, infinities and NaN of a dtype.
pub fn specials(dtype: DType) -> Vec<Value> {
    if !dtype.is_float() {
        let (least, largest) = limits(dtype);
        return [0, 1, -1, 2, 7, least, largest, least + 1].map(|i| wrapped(i.into(), dtype)).to_vec();
    }
    let (normal, subnormal) = match dtype {
        DType::F16 => (2f64.powi(-14), 2f64.powi(-24)),
        DType::BF16 => (2f64.powi(-126), 2f64.powi(-133)),
        DType::F32 => (2f64.powi(-126), 2f64.powi(-149)),
        _ => (f64::MIN_POSITIVE, f64::from_bits(1)),
    };
    let positive = [0.0, 0.5, 1.0, 1.5, 2.5, 5.0, normal, subnormal, largest(dtype), f64::INFINITY];
    let negative = positive.map(|x| -x);
    positive.into_iter().chain(negative).chain([f64::NAN]).map(Value::Float).collect()
}

/// A tensor's elements on the host, in row-major order.
#[derive(Clone, Debug)]
pub struct Array {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub values: Vec<Value>,
}

impl Array {
    pub fn new(dtype: DType, dims: &[usize], values: Vec<Value>) -> Array {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        Array { dtype, dims: dims.to_vec(), values }
    }

    pub fn floats(dtype: DType, dims: &[usize], values: impl IntoIterator<Item = f64>) -> Array {
        Array::new(dtype, dims, values.into_iter().map(|x| Value::Float(x).stored(dtype)).collect())
    }

    pub fn ints(dtype: DType, dims: &[usize], values: impl IntoIterator<Item = i64>) -> Array {
        Array::new(dtype, dims, values.into_iter().map(Value::Int).collect())
    }

    /// Numbers without surprises, for ops whose tolerance needs moderate operands.
    pub fn tame(dtype: DType, dims: &[usize], seed: u64) -> Array {
        let mut rng = Rng(seed);
        Array::new(dtype, dims, (0..dims.iter().product()).map(|_| rng.tame(dtype)).collect())
    }

    /// Numbers of every magnitude, zeros, infinities and NaN among them.
    pub fn wild(dtype: DType, dims: &[usize], seed: u64) -> Array {
        let mut rng = Rng(seed);
        Array::new(dtype, dims, (0..dims.iter().product()).map(|_| rng.wild(dtype)).collect())
    }

    /// The floats as `dtype` holds them.
    pub fn stored(&self, dtype: DType) -> Array {
        Array::floats(dtype, &self.dims, self.values.iter().map(|v| v.float()))
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array::floats(self.dtype, &self.dims, self.values.iter().map(|v| f(v.float())))
    }

    /// The first `n` values, as a vector.
    pub fn first(&self, n: usize) -> Array {
        Array::new(self.dtype, &[n], self.values[..n].to_vec())
    }

    /// An array of shape `dims` whose element at an index is the element of this one at `source(index)`.
    pub fn pick(&self, dims: &[usize], source: impl Fn(&[usize]) -> Vec<usize>) -> Array {
        let at = |index: Vec<usize>| self.values[position(&self.dims, &source(&index))];
        Array::new(self.dtype, dims, indices(dims).map(at).collect())
    }

    /// Repeated to a shape that this one broadcasts to.
    pub fn broadcast(&self, dims: &[usize]) -> Array {
        let lead = dims.len() - self.dims.len();
        self.pick(dims, |index| self.dims.iter().zip(&index[lead..]).map(|(&size, &i)| i.min(size - 1)).collect())
    }

    pub fn upload(&self, device: &Device) -> Tensor {
        fn typed<T: Host>(array: &Array, device: &Device) -> Tensor {
            let values: Vec<T> = array.values.iter().map(|&v| T::of(v)).collect();
            Tensor::from_vec(values, &array.dims, device).expect("values that fill their shape")
        }
        with_type!(array_of(self.dtype), typed(self, device))
    }

    pub fn read(tensor: &Tensor) -> Result<Array> {
        fn typed<T: Host>(tensor: &Tensor) -> Result<Array> {
            let values = tensor.to_vec::<T>()?.into_iter().map(T::value).collect();
            Ok(Array::new(T::DTYPE, tensor.dims(), values))
        }
        with_type!(array_of(tensor.dtype()), typed(tensor))
    }
}

/// An element type's values.
trait Host: Element {
    fn value(self) -> Value;
    /// The element of a value that it can hold.
    fn of(value: Value) -> Self;
}

macro_rules! host {
    ($($t:ty: |$x:ident| $value:expr, |$v:ident| $of:expr;)+) => {$(
        impl Host for $t {
            fn value(self) -> Value {
                let $x = self;
                $value
            }
            fn of($v: Value) -> Self {
                $of
            }
        }
    )+};
}
host! {
    f16: |x| Value::Float(x.to_f64()), |v| f16::from_f64(v.float());
    bf16: |x| Value::Float(x.to_f64()), |v| bf16::from_f64(v.float());
    f32: |x| Value::Float(x.into()), |v| v.float() as f32;
    f64: |x| Value::Float(x), |v| v.float();
    i64: |x| Value::Int(x), |v| v.int() as i64;
    i32: |x| Value::Int(x.into()), |v| v.int() as i32;
    u32: |x| Value::Int(x.into()), |v| v.int() as u32;
    u8: |x| Value::Int(x.into()), |v| v.int() as u8;
    bool: |x| Value::Int(x.into()), |v| v.int() != 0;
}

/// Every index of a shape, in row-major order.
pub fn indices(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let count: usize = dims.iter().product();
    let index_of = move |mut at: usize| {
        let mut index = vec![0; dims.len()];
        for (i, &size) in index.iter_mut().zip(dims).rev() {
            (*i, at) = (at % size, at / size);
        }
        index
    };
    (0..count).map(index_of)
}

/// Where an index stands in row-major order.
pub fn position(dims: &[usize], index: &[usize]) -> usize {
    assert_eq!(dims.len(), index.len());
    dims.iter().zip(index).fold(0, |at, (&size, &i)| at * size + i)
}

/// Fails unless `got` has the shape, dtype and bits of `want`.
pub fn assert_equal(what: impl Display, got: Result<Tensor>, want: &Array) {
    assert_each(what, got, want, |_, got, want| got.is(want));
}

/// Fails unless `got` has the shape and dtype of `want`, and each element is the rounded form of a value
/// within `slack(i)` of the exact one.
pub fn assert_close(what: impl Display, got: Result<Tensor>, want: &Array, slack: impl Fn(usize) -> f64) {
    assert_each(what, got, want, |i, got, exact| got.is_near(exact, slack(i), want.dtype));
}

fn assert_each(what: impl Display, got: Result<Tensor>, want: &Array, holds: impl Fn(usize, Value, Value) -> bool) {
    let got = got.and_then(|tensor| Array::read(&tensor)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((got.dtype, &got.dims), (want.dtype, &want.dims), "{what}");
    for (i, (&g, &w)) in got.values.iter().zip(&want.values).enumerate() {
        assert!(holds(i, g, w), "{what}: element {i} of {:?} is {g:?}, not {w:?}", got.dims);
    }
}

/// The dtypes that an op takes (for `where_cond`: those of its branches).
pub fn takes(op: Elementwise, dtype: DType) -> bool {
    match op.sort() {
        Sort::Float | Sort::Test => dtype.is_float(),
        Sort::Num => dtype != DType::Bool,
        Sort::Cmp | Sort::Select => true,
        Sort::Logic => dtype == DType::Bool,
    }
}

/// The dtype of an op's result, given that of its (last) operand.
pub fn gives(op: Elementwise, dtype: DType) -> DType {
    match op.sort() {
        Sort::Cmp | Sort::Test | Sort::Logic => DType::Bool,
        Sort::Float | Sort::Num | Sort::Select => dtype,
    }
}

/// An elementwise op on values of `dtype`; floats are not rounded yet.
pub fn evaluate(op: Elementwise, xs: &[Value], dtype: DType) -> Value {
    if op == Elementwise::Select {
        return if xs[0].int() != 0 { xs[1] } else { xs[2] };
    }
    let third = |i: usize| xs.get(i).copied().unwrap_or(xs[0]);
    let xs = [xs[0], third(1), third(2)];
    match gives(op, dtype) {
        to if dtype.is_float() && to.is_float() => Value::Float(real(op, xs.map(Value::float))),
        to if dtype.is_float() => wrapped(real(op, xs.map(Value::float)) as i128, to),
        to => wrapped(integer(op, xs.map(Value::int)), to),
    }
}

/// An elementwise op in f64; truth is 0 or 1.
fn real(op: Elementwise, [a, b, c]: [f64; 3]) -> f64 {
    use Elementwise::*;
    let truth = |holds: bool| holds as u8 as f64;
    let larger = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    let smaller = |a: f64, b: f64| -larger(-a, -b);
    let logistic = |x: f64| if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) };
    match op {
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a / b,
        Rem => a % b,
        Pow => a.powf(b),
        Maximum => larger(a, b),
        Minimum => smaller(a, b),
        Clamp => smaller(larger(a, b), c),
        Neg => -a,
        Abs => a.abs(),
        Sign => {
            if a == 0.0 || a.is_nan() {
                a
            } else {
                a.signum()
            }
        }
        Sqr => a * a,
        Relu => larger(a, 0.0),
        Recip => 1.0 / a,
        Sqrt => a.sqrt(),
        Rsqrt => 1.0 / a.sqrt(),
        Exp => a.exp(),
        Exp2 => a.exp2(),
        Expm1 => a.exp_m1(),
        Ln => a.ln(),
        Log2 => a.log2(),
        Log10 => a.log10(),
        Log1p => a.ln_1p(),
        Sin => a.sin(),
        Cos => a.cos(),
        Tan => a.tan(),
        Tanh => a.tanh(),
        Erf => libm::erf(a),
        Sigmoid => logistic(a),
        Softplus => larger(a, 0.0) + (-a.abs()).exp().ln_1p(),
        Silu => a * logistic(a),
        // 1 + tanh(u) = 2 / (1 + exp(-2 u)), without cancellation.
        Gelu => a * logistic((8.0 / std::f64::consts::PI).sqrt() * (a + 0.044715 * a.powi(3))),
        GeluErf => 0.5 * a * libm::erfc(-a / 2f64.sqrt()),
        Elu => {
            if a > 0.0 {
                a
            } else {
                b * a.exp_m1()
            }
        }
        LeakyRelu => {
            if a > 0.0 {
                a
            } else {
                b * a
            }
        }
        Floor => a.floor(),
        Ceil => a.ceil(),
        Round => a.round_ties_even(),
        Trunc => a.trunc(),
        Eq => truth(a == b),
        Ne => truth(a != b),
        Lt => truth(a < b),
        Le => truth(a <= b),
        Gt => truth(a > b),
        Ge => truth(a >= b),
        IsNan => truth(a.is_nan()),
        IsInf => truth(a.is_infinite()),
        IsFinite => truth(a.is_finite()),
        And | Or | Xor | Not | Select => panic!("{op:?} is not defined for floats"),
    }
}

/// An elementwise op on integers, not wrapped yet; 0 for a zero divisor.
fn integer(op: Elementwise, [a, b, c]: [i128; 3]) -> i128 {
    use Elementwise::*;
    match op {
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a.checked_div(b).unwrap_or(0),
        Rem => a.checked_rem(b).unwrap_or(0),
        Pow => power(a, b),
        Maximum => a.max(b),
        Minimum => a.min(b),
        Clamp => a.max(b).min(c),
        Neg => -a,
        Abs => a.abs(),
        Sign => a.signum(),
        Sqr => a * a,
        Relu => a.max(0),
        Eq => (a == b).into(),
        Ne => (a != b).into(),
        Lt => (a < b).into(),
        Le => (a <= b).into(),
        Gt => (a > b).into(),
        Ge => (a >= b).into(),
        And => a & b,
        Or => a | b,
        Xor => a ^ b,
        Not => 1 - a,
        _ => panic!("{op:?} is not defined for integers"),
    }
}

/// `a` to the power `b` modulo 2^128; for negative `b` the quotient 1 / a^-b, rounded towards zero.
fn power(a: i128, b: i128) -> i128 {
    match a {
        _ if b >= 0 => (0..64).rev().fold(1i128, |power, bit| {
            let square = power.wrapping_mul(power);
            if b >> bit & 1 == 1 { square.wrapping_mul(a) } else { square }
        }),
        1 => 1,
        -1 => 1 - 2 * (b & 1),
        _ => 0,
    }
}
