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
fn apply(op: Elementwise, operands: &[Tensor]) -> Result<Tensor> {
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
    // A function times an operand: so is its error. Beyond 16 the function is 0 or 1 in any dtype's eyes.
    let factor = match op {
        Silu | Gelu | GeluErf => operands[0].float().abs().min(16.0),
        Elu => operands[1].float().abs().max(1.0),
        _ => 1.0,
    };
    let cancelled = match op {
        Gelu => 8.0 * unit(dtype), // in its cubic argument
        GeluErf => slack(1.0, dtype) / 2.0, // in 1 + erf
        _ => 0.0,
    };
    slack(exact.float(), dtype) + factor * (slack(0.0, dtype) + cancelled)
}

fn check(op: Elementwise, operands: &[Array], shapes: &[Array], device: &Device) {
    let dtype = operands[operands.len() - 1].dtype;
    let tensors: Vec<Tensor> = operands.iter().map(|x| x.upload(device)).collect();
    let want = expected(op, shapes);
    let at = |i: usize| shapes.iter().map(|x| x.values[i]).collect::<Vec<_>>();
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
    const SHAPES: [([&[usize]; 3], &[usize]); 6] = [
        ([&[], &[], &[]], &[]),
        ([&[1], &[40], &[]], &[40]),
        ([&[70], &[33, 1], &[1, 1]], &[33, 70]),
        ([&[5, 1, 9], &[3, 1], &[9]], &[5, 3, 9]),
        ([&[2, 3, 4, 5], &[3, 1, 5], &[2, 1, 4, 1]], &[2, 3, 4, 5]),
        ([&[0, 4], &[1, 4], &[1]], &[0, 4]),
    ];
    for &op in Elementwise::ALL.iter().filter(|op| op.arity() > 1) {
        let dtype = if takes(op, DType::F32) { DType::F32 } else { DType::Bool };
        for (dims, result) in SHAPES {
            let like = |i: usize, d| Array::wild(d, dims[i], i as u64);
            let operands: Vec<Array> =
                operand_dtypes(op, dtype).into_iter().enumerate().map(|(i, d)| like(i, d)).collect();
            let shared = operands[1..].iter().fold(operands[0].dims.clone(), |all, x| joined(&all, &x.dims));
            assert!(op.arity() < 3 || shared == result);
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
