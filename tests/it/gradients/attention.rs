//! Attention: one node in narrow dtypes and f32, ordinary ops in f64 and for second derivatives.

use super::{Case, assert_none, gradients, named, numbers, off, slope, values, variables};
use crate::oracle::{on_every_device, unit};
use tensorlogic::{AttentionOptions, DType, Device, Result, Tensor};

on_every_device! { second_derivatives_of_the_node }

/// Queries `[batch, heads, queries, width]`, keys and values `[batch, kv heads, keys, width]`.
fn case(
    name: &str,
    [queries, keys]: [[usize; 4]; 2],
    function: impl Fn(&[Tensor], &AttentionOptions) -> Result<Tensor> + 'static,
) -> Case {
    let inputs = [numbers(&queries, 1), numbers(&keys, 2), numbers(&keys, 3)];
    Case::new(format!("attention, {name}"), inputs, move |x| function(x, &AttentionOptions::default()))
}

fn attend(x: &[Tensor], options: &AttentionOptions) -> Result<Tensor> {
    x[0].scaled_dot_product_attention(&x[1], &x[2], options)
}

fn causal(x: &[Tensor], options: &AttentionOptions) -> Result<Tensor> {
    attend(x, &AttentionOptions { causal: true, ..*options })
}

pub fn cases() -> Vec<Case> {
    const SMALL: [usize; 4] = [1, 2, 3, 4];
    let masked = |name: &str, sizes, mask: fn(&Tensor) -> Result<Tensor>| {
        case(name, sizes, move |x, options| attend(x, &AttentionOptions { mask: Some(&mask(&x[0])?), ..*options }))
    };
    let whole = [numbers(&[2, 4, 12], 1)];
    vec![
        case("plain", [SMALL, SMALL], attend),
        case("causal", [[2, 1, 4, 2], [2, 1, 4, 2]], causal),
        case("causal, few queries", [[1, 2, 2, 4], [1, 2, 5, 4]], causal),
        // The first two see nothing.
        case("causal, few keys", [[1, 1, 5, 4], [1, 1, 3, 4]], causal),
        case("one query", [[1, 4, 1, 4], [1, 2, 5, 4]], causal),
        case("shared keys", [[1, 4, 3, 2], [1, 2, 3, 2]], attend),
        case("shared keys, causal, scaled", [[1, 4, 3, 2], [1, 1, 4, 2]], |x, options| {
            causal(x, &AttentionOptions { scale: Some(0.25), ..*options })
        }),
        masked("numbers as mask", [SMALL, [1, 2, 5, 4]], |q| {
            let mask = numbers(&[2, 3, 5], 7).stored(q.dtype());
            Ok(mask.upload(q.device()))
        }),
        masked("bools as mask", [SMALL, [1, 2, 5, 4]], |q| {
            Tensor::from_slice(&[true, true, false, true, false], 5, q.device())?.expand((3, 5))
        }),
        Case::new("attention, parts of one tensor", whole, |x| {
            let heads = x[0].reshape((2, 4, 3, 2, 2))?;
            let part = |i: usize| heads.select(2, i)?.transpose(1, 2);
            let y = causal(&[part(0)?, part(1)?, part(2)?], &AttentionOptions::default())?;
            y.transpose(1, 2)?.reshape((2, 4, 4))?.tanh()
        }),
        Case::new("attention to itself", [numbers(&[1, 1, 3, 4], 1)], |x| {
            let y = attend(&[x[0].clone(), x[0].clone(), x[0].clone()], &AttentionOptions::default())?;
            y * &x[0]
        }),
        Case::new("attention with a tracked mask", [numbers(&SMALL, 1), numbers(&[3, 3], 2)], |x| {
            let options = AttentionOptions { mask: Some(&x[1]), ..AttentionOptions::default() };
            let keys = numbers(&SMALL, 3).stored(x[0].dtype()).upload(x[0].device());
            attend(&[x[0].clone(), keys.clone(), keys], &options)
        }),
    ]
}

/// f64 takes ordinary ops from the start: here they follow the kernels.
fn second_derivatives_of_the_node(device: &Device) {
    let failure = |case: &Case| -> Result<Option<String>> {
        let of = |dtype, device: &Device| {
            let vars = variables(&case.inputs, dtype, device)?;
            gradients(&slope(case, &values(&vars))?, &vars)
        };
        let want = of(DType::F64, &Device::cpu())?;
        // A few dozen roundings, one an op.
        Ok(off(&case.name, &of(DType::F32, device)?, &want, 64.0 * unit(DType::F32), 0.0))
    };
    assert_none(cases().iter().filter_map(|case| named(failure, case)).collect());
}
