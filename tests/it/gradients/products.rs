//! Matrix products: batches, vectors, operands that are views or results, epilogues; convolutions.

use super::{Case, numbers};
use tensorlogic::{Activation, ConvOptions, Tensor};

/// Shapes of products.
const SHAPES: [(&[usize], &[usize]); 18] = [
    (&[3, 4], &[4, 2]),
    (&[1, 4], &[4, 1]),
    (&[3, 1], &[1, 2]),
    (&[2, 3, 4], &[2, 4, 2]),
    (&[2, 3, 4], &[4, 2]),
    (&[3, 4], &[2, 4, 2]),
    (&[1, 3, 4], &[4, 2]),
    (&[3, 4], &[1, 4, 2]),
    (&[2, 3, 4], &[1, 4, 2]),
    (&[1, 3, 4], &[2, 4, 2]),
    (&[2, 1, 3, 4], &[1, 3, 4, 2]),
    (&[2, 1, 3, 4], &[3, 4, 2]),
    (&[2, 2, 2, 3], &[3, 2]),
    (&[4], &[4]),
    (&[4], &[4, 3]),
    (&[3, 4], &[4]),
    (&[2, 3, 4], &[4]),
    (&[4], &[2, 4, 3]),
];

fn convolutions() -> impl Iterator<Item = Case> {
    let plain = ConvOptions::default();
    let options = [
        (plain, [1, 2, 2, 2]),
        (ConvOptions { padding: 1, ..plain }, [2, 2, 3, 2]),
        (ConvOptions { stride: 2, padding: 1, ..plain }, [1, 2, 3, 3]),
        (ConvOptions { dilation: 2, padding: 1, ..plain }, [2, 2, 2, 2]),
        (ConvOptions { stride: 3, ..plain }, [1, 2, 1, 2]),
        (ConvOptions { groups: 2, padding: 1, ..plain }, [4, 1, 2, 2]),
        (ConvOptions { groups: 2, stride: 2, ..plain }, [2, 1, 3, 2]),
    ];
    options.into_iter().map(|(options, weight)| {
        let inputs = [numbers(&[2, 2, 4, 5], 1), numbers(&weight, 2)];
        Case::new(format!("{options:?}, weight {weight:?}"), inputs, move |x| x[0].conv2d(&x[1], &options))
    })
}

pub fn cases() -> Vec<Case> {
    let plain = SHAPES
        .iter()
        .map(|(a, b)| Case::new(format!("{a:?} x {b:?}"), [numbers(a, 1), numbers(b, 2)], |x| x[0].matmul(&x[1])));
    let (a, b) = (|| numbers(&[3, 4], 1), || numbers(&[4, 5], 2));
    let special = vec![
        Case::new("transposed x transposed", [a(), numbers(&[2, 3], 2)], |x| x[0].t()?.matmul(&x[1].t()?)),
        Case::new("steps x reversal", [numbers(&[3, 8], 1), b()], |x| {
            x[0].slice(1, .., 2)?.matmul(&x[1].slice(0, .., -1)?.slice(1, .., -2)?)
        }),
        Case::new("expanded x permuted", [numbers(&[1, 4], 1), numbers(&[4, 2, 3], 2)], |x| {
            x[0].expand((2, 3, 4))?.matmul(&x[1].permute([1, 0, 2])?)
        }),
        Case::new("windows x matrix", [numbers(&[2, 7], 1), numbers(&[3, 2], 2)], |x| {
            x[0].unfold(1, 3, 2)?.matmul(&x[1])
        }),
        Case::new("matrix x windows", [numbers(&[2, 3], 1), numbers(&[6], 2)], |x| x[0].matmul(&x[1].unfold(0, 4, 1)?)),
        Case::new("x x^T", [a()], |x| x[0].matmul(&x[0].t()?)),
        Case::new("x^3", [numbers(&[3, 3], 1)], |x| x[0].matmul(&x[0])?.matmul(&x[0])),
        Case::new("bias and gelu", [a(), b(), numbers(&[5], 3)], |x| (x[0].matmul(&x[1])? + &x[2])?.gelu()),
        Case::new("bias by row", [a(), b(), numbers(&[3, 1], 3)], |x| (x[0].matmul(&x[1])? * &x[2])?.tanh()),
        Case::new("explicit relu", [a(), b()], |x| x[0].matmul_with_activation(&x[1], Activation::ReLU)).rough(),
        Case::new("explicit gelu", [a(), b()], |x| x[0].matmul_with_activation(&x[1], Activation::GELU)),
        Case::new("of results", [a(), b()], |x| x[0].tanh()?.matmul(&x[1].sigmoid()?)?.sqr()),
        Case::new("two layers", [a(), b(), numbers(&[5, 2], 3)], |x| {
            (x[0].matmul(&x[1])? * 0.3)?.tanh()?.matmul(&x[2])?.sigmoid()
        }),
        Case::new("attention", [numbers(&[2, 3, 4], 1), numbers(&[2, 3, 4], 2), numbers(&[2, 3, 4], 3)], |x| {
            let scores = (x[0].matmul(&x[1].t()?)? * 0.5)?;
            scores.softmax(-1)?.matmul(&x[2])
        }),
        Case::new("both operands from one projection", [a(), numbers(&[4, 8], 2)], |x| {
            let parts = x[0].matmul(&x[1])?.chunk(2, 1)?;
            (parts[0].matmul(&parts[1].t()?)? * 0.1)?.tanh()
        }),
        Case::new("rows of a batch by heads", [numbers(&[2, 3, 4], 1), numbers(&[4, 4], 2)], |x| {
            let heads = |x: &Tensor| x.reshape((2, 3, 2, 2))?.transpose(1, 2);
            let y = x[0].matmul(&x[1])?;
            heads(&y)?.matmul(&heads(&x[0])?.t()?)?.transpose(1, 2)?.reshape((2, 18))
        }),
        Case::new("outer product with a view of itself", [numbers(&[4], 1)], |x| {
            x[0].unsqueeze(1)?.matmul(&x[0].slice(0, .., -1)?.unsqueeze(0)?)
        }),
    ];
    plain.chain(special).chain(convolutions()).collect()
}
