//! Every row of the op table that has a gradient, and compositions; operands broadcast and are views.

use super::{Case, numbers, spread};
use crate::ops::apply;
use crate::oracle::Array;
use tensorlogic::testing::{Elementwise, Sort};
use tensorlogic::{DType, Result, Tensor};

/// Where an operand of an op is taken from, so that no kink or pole is near.
fn domain(op: Elementwise, operand: usize) -> (f64, f64) {
    use Elementwise::*;
    match (op, operand) {
        (Sqrt | Rsqrt | Recip | Ln | Log2 | Log10, _) | (Pow, 0) | (Div, 1) => (0.4, 2.5),
        (Log1p, _) => (-0.6, 2.0),
        (Tan, _) => (-1.2, 1.2),
        (Rem, 0) => (-2.9, -2.1),
        (Rem, 1) => (0.98, 1.04),
        (Clamp, 1) => (-1.5, -0.2),
        (Clamp, 2) => (0.2, 1.5),
        (LeakyRelu, 1) => (0.1, 0.5),
        (Elu, 1) => (0.5, 1.5),
        _ => (-2.0, 2.0),
    }
}

fn is_smooth(op: Elementwise) -> bool {
    use Elementwise::*;
    !matches!(op, Rem | Maximum | Minimum | Clamp | Abs | Sign | Relu | Elu | LeakyRelu | Floor | Ceil | Round | Trunc)
}

/// Shapes of up to three operands that broadcast to `[4, 6]`.
const SHAPES: [[&[usize]; 3]; 5] = [
    [&[4, 6], &[4, 6], &[4, 6]],
    [&[4, 6], &[6], &[4, 1]],
    [&[4, 1], &[4, 6], &[1, 1]],
    [&[6], &[4, 1], &[4, 6]],
    [&[], &[1, 6], &[4, 6]],
];

/// A view of a tensor: other ones for operands 0, 1 and 2.
fn viewed(operand: usize, x: &Tensor) -> Result<Tensor> {
    match operand {
        0 => x.t(),
        1 => x.slice(0, .., -1)?.narrow(1, 1, 4),
        _ => x.slice(1, .., 2)?.unsqueeze(0)?.expand((2, 6, 4))?.select(0, 1),
    }
}

/// The op on all operands; the condition of a choice is made here.
fn call(op: Elementwise, xs: &[Tensor]) -> Result<Tensor> {
    if op != Elementwise::Select {
        return apply(op, xs);
    }
    let numbers = Array::tame(DType::F32, &[4, 6], 5).upload(xs[0].device());
    let condition = if xs[0].dims() == [6, 4] { numbers.t()?.gt(0.0)? } else { numbers.gt(0.0)? };
    condition.where_cond(&xs[0], &xs[1])
}

fn rows() -> impl Iterator<Item = Case> {
    let differentiable = |op: &&Elementwise| matches!(op.sort(), Sort::Float | Sort::Num | Sort::Select);
    Elementwise::ALL.iter().filter(differentiable).flat_map(|&op| {
        let first = (op == Elementwise::Select) as usize;
        let count = op.arity() - first;
        let operand = move |dims: &[usize], i: usize| {
            let (lo, hi) = domain(op, i + first);
            spread(dims, i as u64 + 1, lo, hi)
        };
        let kind = move |case: Case| if is_smooth(op) { case } else { case.rough() };
        let shapes = SHAPES.into_iter().take(if count == 1 { 1 } else { SHAPES.len() });
        let plain = shapes.map(move |shapes| {
            let inputs = (0..count).map(|i| operand(shapes[i], i));
            kind(Case::new(format!("{op:?} of {:?}", &shapes[..count]), inputs, move |xs| call(op, xs)))
        });
        let inputs = (0..count).map(|i| operand([&[4, 6][..], &[6, 6], &[6, 8]][i], i));
        let views = Case::new(format!("{op:?} of views"), inputs, move |xs| {
            let views = xs.iter().enumerate().map(|(i, x)| viewed(i, x)).collect::<Result<Vec<_>>>()?;
            call(op, &views)
        });
        plain.chain([kind(views)]).collect::<Vec<_>>()
    })
}

fn compositions() -> Vec<Case> {
    let unary =
        |name: &str, f: fn(&Tensor) -> Result<Tensor>| Case::new(name, [numbers(&[4, 5], 3)], move |x| f(&x[0]));
    vec![
        unary("relu6", Tensor::relu6).rough(),
        unary("hardsigmoid", Tensor::hardsigmoid).rough(),
        unary("hardswish", Tensor::hardswish).rough(),
        unary("mish", Tensor::mish),
        unary("softsign", Tensor::softsign).rough(),
        unary("selu", Tensor::selu).rough(),
        unary("x * x", |x| x * x),
        unary("x used five times", |x| (((x * x)? + x)? / (x.sqr()? + 1.0)?)? * x),
        unary("numbers on either side", |x| ((1.0 - x)? * 2.0)? / (3.0 + x.sqr()?)?),
        unary("integer power", |x| x.pow(3.0)),
        unary("choice by a comparison", |x| x.gt(0.3)?.where_cond(&x.sqr()?, &(x * 3.0)?)).rough(),
        unary("choice of a number", |x| x.lt(0.3)?.where_cond(x.sin()?, 0.5)).rough(),
        Case::new("affine", [numbers(&[3, 4], 1), numbers(&[4], 2), numbers(&[3, 1], 3)], |x| {
            x[0].fused_affine(&x[1], &x[2])
        }),
        Case::new("add and relu", [numbers(&[3, 4], 1), numbers(&[4], 2)], |x| x[0].fused_add_relu(&x[1])).rough(),
        Case::new("mul and relu", [numbers(&[3, 4], 1), numbers(&[4], 2)], |x| x[0].fused_mul_relu(&x[1])).rough(),
    ]
}

pub fn cases() -> Vec<Case> {
    rows().chain(compositions()).collect()
}
