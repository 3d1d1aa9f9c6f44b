//! Every elementwise op on every dtype that it takes, conversions, and compositions of elementwise ops.

use crate::oracle::{
    Array, Value, assert_close, assert_equal, dtypes, evaluate, gives, limits, on_every_device, slack, specials, takes,
    unit, wrapped,
};
use tensorlogic::testing::{Elementwise, Sort};
use tensorlogic::{DType, Device, Result, Tensor};

on_every_device! {
    every_op_at_every_size,
    operands_broadcast,
    numbers_stand_on_either_side,
    numbers_take_the_tensors_dtype,
    operands_of_other_dtypes_are_refused,
    conversions,
    compositions,
}

/// Around the lanes of a vector (32), a tile (1024) and a segment (16384), and several of those.
const SIZES: [usize; 12] = [0, 1, 31, 32, 33, 1023, 1024, 1025, 16383, 16384, 16385, 100_000];

/// Calls the method of an op.
pub(crate) fn apply(op: Elementwise, operands: &[Tensor]) -> Result<Tensor> {
    use Elementwise::*;
    let [a, b, c] = [0, 1, 2].map(|i| operands.get(i).unwrap_or(&operands[0]));
    match op {
        Add => a.add(b),
        Sub => a.sub(b),
        Mul => a.mul(b),
        Div => a.div(b),
        Rem => a.rem(b),
        Pow => a.pow(b),
        Maximum => a.maximum(b),
        Minimum => a.minimum(b),
        Clamp => a.clamp(b, c),
        Neg => a.neg(),
        Abs => a.abs(),
        Sign => a.sign(),
        Sqr => a.sqr(),
        Relu => a.relu(),
        Recip => a.recip(),
        Sqrt => a.sqrt(),
        Rsqrt => a.rsqrt(),
        Exp => a.exp(),
        Exp2 => a.exp2(),
        Expm1 => a.expm1(),
        Ln => a.ln(),
        Log2 => a.log2(),
        Log10 => a.log10(),
        Log1p => a.log1p(),
        Sin => a.sin(),
        Cos => a.cos(),
        Tan => a.tan(),
        Tanh => a.tanh(),
        Erf => a.erf(),
        Sigmoid => a.sigmoid(),
        Softplus => a.softplus(),
        Silu => a.silu(),
        Gelu => a.gelu(),
        GeluErf => a.gelu_erf(),
        Elu => a.elu(b),
        LeakyRelu => a.leaky_relu(b),
        Floor => a.floor(),
        Ceil => a.ceil(),
        Round => a.round(),
        Trunc => a.trunc(),
        Eq => a.eq(b),
        Ne => a.ne(b),
        Lt => a.lt(b),
        Le => a.le(b),
        Gt => a.gt(b),
        Ge => a.ge(b),
        IsNan => a.is_nan(),
        IsInf => a.is_inf(),
        IsFinite => a.is_finite(),
        And => a.and(b),
        Or => a.or(b),
        Xor => a.xor(b),
        Not => a.not(),
        Select => a.where_cond(b, c),
    }
}

/// The dtypes of an op's operands.
fn operand_dtypes(op: Elementwise, dtype: DType) -> Vec<DType> {
    let first = if op == Elementwise::Select { DType::Bool } else { dtype };
    std::iter::once(first).chain(std::iter::repeat_n(dtype, op.arity() - 1)).collect()
}

/// What an op makes of arrays of one shape.
fn expected(op: Elementwise, operands: &[Array]) -> Array {
    let last = &operands[operands.len() - 1];
    let at = |i: usize| evaluate(op, &operands.iter().map(|x| x.values[i]).collect::<Vec<_>>(), last.dtype);
    Array::new(gives(op, last.dtype), &last.dims, (0..last.values.len()).map(at).collect())
}

/// [`slack`] of a function; none for an op that is exact or rounds once.
fn op_slack(op: Elementwise, operands: &[Value], exact: Value, dtype: DType) -> f64 {
    use Elementwise::*;
    let rounds_once = op.sort() != Sort::Float || matches!(op, Recip | Sqrt | LeakyRelu | Floor | Ceil | Round | Trunc);
    if rounds_once && op != Pow {
        return 0.0;
    }
    let (exact, [x, last]) = (exact.float(), [operands[0], operands[operands.len() - 1]].map(|v| v.float().abs()));
    slack(exact, dtype)
        + match op {
            // A function times an operand: so is its error. Where x is larger, the function is 0 or 1.
            Silu => slack(0.0, dtype) * x.min(128.0),
            Gelu => 8.0 * unit(dtype) * x.min(16.0),    // of the cubic argument
            GeluErf => slack(0.5, dtype) * x.min(16.0), // 1 + erf cancels
            Elu if operands[0].float() <= 0.0 => slack(0.0, dtype) * last,
            _ => 0.0,
        }
}

/// Compares an op on `operands` with the oracle's on `repeated`: the same, broadcast to one shape.
fn check(op: Elementwise, operands: &[Array], repeated: &[Array], device: &Device) {
    let dtype = operands[operands.len() - 1].dtype;
    let tensors: Vec<Tensor> = operands.iter().map(|x| x.upload(device)).collect();
    let want = expected(op, repeated);
    let at = |i: usize| repeated.iter().map(|x| x.values[i]).collect::<Vec<_>>();
    let shown: Vec<_> = operands.iter().map(|x| &x.dims).collect();
    assert_close(format!("{op:?} {dtype} {shown:?}"), apply(op, &tensors), &want, |i| {
        op_slack(op, &at(i), want.values[i], dtype)
    });
}

fn every_op_at_every_size(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        let random = |dtype, seed| Array::wild(dtype, &[SIZES[SIZES.len() - 1]], seed);
        let (values, truths) = ([1, 2, 3].map(|seed| random(dtype, seed)), random(DType::Bool, 4));
        for &op in Elementwise::ALL.iter().filter(|&&op| takes(op, dtype)) {
            for n in SIZES {
                let mut operands: Vec<Array> = values[..op.arity()].iter().map(|x| x.first(n)).collect();
                if op == Elementwise::Select {
                    operands[0] = truths.first(n);
                }
                check(op, &operands, &operands, device);
            }
        }
    }
}

fn operands_broadcast(device: &Device) {
    const SHAPES: [[&[usize]; 3]; 6] = [
        [&[], &[], &[]],
        [&[1], &[40], &[]],
        [&[70], &[33, 1], &[1, 1]],
        [&[5, 1, 9], &[3, 1], &[9]],
        [&[2, 3, 4, 5], &[3, 1, 5], &[2, 1, 4, 1]],
        [&[0, 4], &[1, 4], &[1]],
    ];
    for &op in Elementwise::ALL.iter().filter(|op| op.arity() > 1) {
        let dtype = if takes(op, DType::F32) { DType::F32 } else { DType::Bool };
        for dims in SHAPES {
            let random = |(seed, dtype)| Array::wild(dtype, dims[seed], seed as u64);
            let operands: Vec<Array> = operand_dtypes(op, dtype).into_iter().enumerate().map(random).collect();
            let shared = operands[1..].iter().fold(operands[0].dims.clone(), |all, x| joined(&all, &x.dims));
            let repeated: Vec<Array> = operands.iter().map(|x| x.broadcast(&shared)).collect();
            check(op, &operands, &repeated, device);
        }
    }
}

/// The shape that two shapes broadcast to.
fn joined(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    (0..rank).map(|i| if size(a, i) == 1 { size(b, i) } else { size(a, i) }).collect()
}

/// An operator with a number to its right, and with one to its left.
type Sided = (Elementwise, fn(&Tensor, i64) -> Result<Tensor>, fn(i64, &Tensor) -> Result<Tensor>);

fn numbers_stand_on_either_side(device: &Device) {
    const OPERATORS: [Sided; 5] = [
        (Elementwise::Add, |x, n| x + n, |n, x| n + x),
        (Elementwise::Sub, |x, n| x - n, |n, x| n - x),
        (Elementwise::Mul, |x, n| x * n, |n, x| n * x),
        (Elementwise::Div, |x, n| x / n, |n, x| n / x),
        (Elementwise::Rem, |x, n| x % n, |n, x| n % x),
    ];
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        let x = Array::wild(dtype, &[100], 5);
        let constant = |n: i64| if dtype.is_float() { Value::Float(n as f64) } else { Value::Int(n) };
        for (op, number_right, number_left) in OPERATORS {
            for n in [0, 1, 3] {
                let same = Array::new(dtype, &x.dims, vec![constant(n); 100]);
                let what = |side| format!("{op:?} {dtype} with {n} on the {side}");
                let tensor = x.upload(device);
                let (right, left) = (number_right(&tensor, n), number_left(n, &tensor));
                assert_close(what("right"), right, &expected(op, &[x.clone(), same.clone()]), |_| 0.0);
                assert_close(what("left"), left, &expected(op, &[same, x.clone()]), |_| 0.0);
            }
        }
    }
}

fn numbers_take_the_tensors_dtype(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        let x = Tensor::ones(2, dtype, device).unwrap();
        let fits = |number: f64| x.eq(number).is_ok();
        let (least, largest) = limits(dtype);
        assert_eq!(fits(0.5), dtype.is_float(), "{dtype}");
        assert_eq!(fits(f64::NAN), dtype.is_float(), "{dtype}");
        for n in [-1, 2, 256, 1 << 31, 1 << 32] {
            assert_eq!(fits(n as f64), dtype.is_float() || (least..=largest).contains(&n), "{dtype} {n}");
            assert_eq!(fits(n as f64), x.eq(n).is_ok(), "{dtype} {n}");
        }
    }
}

fn operands_of_other_dtypes_are_refused(device: &Device) {
    let ones = |dtype| Tensor::ones(3, dtype, device).unwrap();
    for &op in Elementwise::ALL {
        for dtype in dtypes(device, |_| true) {
            let mut operands: Vec<Tensor> = operand_dtypes(op, dtype).into_iter().map(ones).collect();
            assert_eq!(apply(op, &operands).is_ok(), takes(op, dtype), "{op:?} {dtype}");
            let last = op.arity() - 1;
            operands[last] = ones(if dtype == DType::F32 { DType::F16 } else { DType::F32 });
            let alone = last == 0 && takes(op, operands[0].dtype());
            assert_eq!(apply(op, &operands).is_ok(), alone, "{op:?} {dtype} and another");
        }
    }
}

fn conversions(device: &Device) {
    for from in dtypes(device, |_| true) {
        let edges = if from.is_float() { float_edges(from) } else { integer_edges(from) };
        let random = Array::wild(from, &[1025], 6).values;
        let values: Vec<Value> = edges.into_iter().chain(specials(from)).chain(random).collect();
        let x = Array::new(from, &[values.len()], values);
        for to in dtypes(device, |_| true) {
            let want = Array::new(to, &x.dims, x.values.iter().map(|&v| converted(v, to)).collect());
            for (i, &value) in x.values.iter().enumerate().take(60) {
                let single = Array::new(from, &[], vec![value]).upload(device).to_dtype(to);
                assert_equal(format!("{value:?} {from} to {to}"), single, &Array::new(to, &[], vec![want.values[i]]));
            }
            assert_equal(format!("{from} to {to}"), x.upload(device).to_dtype(to), &want);
        }
    }
}

/// A value converted: rounded to nearest even; truncated and saturated to integers (NaN gives 0), which
/// wrap among themselves; anything but 0 is true.
fn converted(value: Value, to: DType) -> Value {
    match value {
        Value::Float(x) if to == DType::Bool => Value::Int((x != 0.0) as i64),
        Value::Float(x) if !to.is_float() => {
            let (least, largest) = limits(to);
            Value::Int((x as i128).clamp(least.into(), largest.into()) as i64)
        }
        Value::Int(i) if to == DType::F64 => Value::Float(i as f64),
        Value::Int(i) if to.is_float() => Value::Float(rounded_to_odd(i)).stored(to),
        other => other.stored(to),
    }
}

/// `i` in f64, its last bit set where bits were lost, so that rounding it again rounds as if once.
fn rounded_to_odd(i: i64) -> f64 {
    if i.unsigned_abs() < 1 << 53 {
        return i as f64;
    }
    let lost = i & 0x7ff != 0;
    (i & !0x7ff | (lost as i64) << 11) as f64
}

/// Where rounding to another float, or to an integer, turns from one value to the next.
fn float_edges(dtype: DType) -> Vec<Value> {
    let tiny = 2f64.powi(-40);
    let ties = [2f64.powi(-11), 2f64.powi(-8), 2f64.powi(-24), 3.0 * 2f64.powi(-11)].map(|half| 1.0 + half);
    let near = ties.into_iter().flat_map(|x| [x - tiny, x, x + tiny]);
    let large = [255.5, 256.0, 65519.0, 65519.999, 65520.0, 2147483647.0, 2147483648.0, 4294967296.0, 1e10, 9.3e18];
    let small = [0.9, 2f64.powi(-25), 2f64.powi(-25) * (1.0 + tiny), 2f64.powi(-134), 1e-46, 1e300];
    let positive = near.chain(large).chain(small);
    positive.flat_map(|x| [x, -x]).map(|x| Value::Float(x).stored(dtype)).collect()
}

/// Integers between two floats, and those around a power of two.
fn integer_edges(dtype: DType) -> Vec<Value> {
    let around = |n: i64| [n - 1, n, n + 1];
    let powers = [8, 11, 12, 16, 24, 25, 31, 32, 53, 54, 62].into_iter().flat_map(|bits| around(1 << bits));
    let ties = [(1 << 24) + (1 << 16), (1 << 62) + (1 << 38), (1 << 61) + (1 << 53)].into_iter().flat_map(around);
    powers.chain(ties).flat_map(|i| [i, -i]).map(|i| wrapped(i.into(), dtype)).collect()
}

fn compositions(device: &Device) {
    type Composition = (&'static str, fn(&Tensor) -> Result<Tensor>, fn(f64) -> f64);
    const COMPOSITIONS: [Composition; 7] = [
        ("relu6", Tensor::relu6, |x| x.clamp(0.0, 6.0)),
        ("hardsigmoid", Tensor::hardsigmoid, |x| (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        ("hardswish", Tensor::hardswish, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        ("mish", Tensor::mish, |x| x * x.exp().ln_1p().tanh()),
        ("softsign", Tensor::softsign, |x| x / (1.0 + x.abs())),
        ("selu", Tensor::selu, |x| 1.0507009873554805 * if x > 0.0 { x } else { 1.6732632423543772 * x.exp_m1() }),
        ("sum of squares", |x| (x.sqr()? + x.sqr()?)?.sqrt(), |x| 2f64.sqrt() * x.abs()),
    ];
    for dtype in dtypes(device, DType::is_float) {
        // Each of up to four steps may round.
        let rounding = match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            _ => unit(dtype),
        };
        let x = Array::tame(dtype, &[2000], 7).map(|x| 4.0 * x);
        for (name, on_tensor, on_real) in COMPOSITIONS {
            // What `map` would round must stay exact.
            let exact = x.values.iter().map(|v| Value::Float(on_real(v.float()))).collect();
            let want = Array::new(dtype, &x.dims, exact);
            assert_close(format!("{name} {dtype}"), on_tensor(&x.upload(device)), &want, |i| {
                let exact = want.values[i].float();
                4.0 * rounding * (exact.abs() + x.values[i].float().abs().min(1.0)) + slack(exact, dtype)
            });
        }
    }
}
