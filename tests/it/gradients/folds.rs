//! Reductions, softmax, norms and losses.

use super::{Case, numbers, spread};
use crate::oracle::Array;
use tensorlogic::{DType, Result, Tensor};

type Fold = fn(&Tensor, &[usize]) -> Result<Tensor>;

/// A name, the reduction, the same with dimensions kept, and whether it is smooth.
const FOLDS: [(&str, Fold, Fold, bool); 7] = [
    ("sum", |x, dims| x.sum(dims), |x, dims| x.sum_keepdim(dims), true),
    ("prod", |x, dims| x.prod(dims), |x, dims| x.prod_keepdim(dims), true),
    ("mean", |x, dims| x.mean(dims), |x, dims| x.mean_keepdim(dims), true),
    ("max", |x, dims| x.max(dims), |x, dims| x.max_keepdim(dims), false),
    ("min", |x, dims| x.min(dims), |x, dims| x.min_keepdim(dims), false),
    ("var", |x, dims| x.var(dims), |x, dims| x.var_keepdim(dims), true),
    ("std", |x, dims| x.std(dims), |x, dims| x.std_keepdim(dims), true),
];

fn reductions() -> impl Iterator<Item = Case> {
    const DIMS: [&[usize]; 7] = [&[0], &[1], &[2], &[0, 1], &[0, 2], &[1, 2], &[0, 1, 2]];
    FOLDS.into_iter().flat_map(|(name, dropped, kept, smooth)| {
        DIMS.into_iter().enumerate().map(move |(i, dims)| {
            let fold = if i % 2 == 0 { dropped } else { kept };
            let case =
                Case::new(format!("{name} over {dims:?}"), [numbers(&[3, 4, 2], 2)], move |x| fold(&x[0], dims)?.sin());
            if smooth { case } else { case.rough() }
        })
    })
}

/// Reductions of views and of what other ops made, and values at which rules could divide by zero.
fn special_reductions() -> Vec<Case> {
    let with_zeros =
        Array::floats(DType::F64, &[4, 3], [0.0, 1.5, -2.0, 0.0, 0.0, 3.0, 0.5, -1.0, 1.25, 0.0, 0.0, 0.0]);
    let with_ties = Array::floats(DType::F64, &[2, 4], [1.0, 3.0, -1.0, 3.0, 0.5, 0.25, 0.25, 2.0]);
    vec![
        Case::new("prod with zeros", [with_zeros.clone()], |x| x[0].prod(1)),
        Case::new("prod of columns with zeros", [with_zeros.clone()], |x| x[0].prod(0)?.exp()),
        Case::new("prod of all with zeros", [with_zeros], |x| x[0].prod_all()),
        Case::new("prod of many", [spread(&[2, 13], 1, 0.5, 1.5)], |x| x[0].prod(1)),
        Case::new("prod of a view", [numbers(&[3, 4], 2)], |x| x[0].slice(0, .., -2)?.t()?.prod(0)),
        // Between two, a central difference is half the gradient of either: what they share.
        Case::new("max with ties", [with_ties.clone()], |x| x[0].max(1)).rough(),
        Case::new("min with ties", [with_ties.clone()], |x| x[0].min_keepdim(1)).rough(),
        Case::new("maximum with ties", [with_ties.clone()], |x| x[0].maximum(3.0)).rough(),
        Case::new("minimum with ties", [with_ties], |x| x[0].narrow(1, 1, 2)?.minimum(&x[0].narrow(1, 2, 2)?)).rough(),
        Case::new("variance without correction", [numbers(&[3, 5], 1)], |x| x[0].var_with(1, 0)),
        Case::new("sum of a broadcast product", [numbers(&[3, 1], 1), numbers(&[4], 2)], |x| {
            (&x[0] * &x[1])?.sin()?.sum(0)
        }),
        Case::new("sum of squared differences", [numbers(&[3, 4], 1), numbers(&[4], 2)], |x| {
            (&x[0] - &x[1])?.sqr()?.sum(1)?.sqrt()
        }),
        Case::new("sum of windows", [numbers(&[9], 1)], |x| x[0].unfold(0, 4, 1)?.sin()?.sum(1)?.sqr()),
        Case::new("max of windows", [numbers(&[2, 9], 1)], |x| x[0].unfold(1, 3, 2)?.max(-1)).rough(),
        Case::new("sum over a dimension of size 1", [numbers(&[3, 1], 1)], |x| x[0].sum(1)?.exp()),
        Case::new("mean and its distances", [numbers(&[3, 4], 1)], |x| {
            (&x[0] - x[0].mean_keepdim(1)?)?.abs()?.mean_all()
        })
        .rough(),
        Case::new("reduction of a reduction", [numbers(&[3, 4, 2], 1)], |x| x[0].exp()?.sum(1)?.ln()?.mean(0)),
    ]
}

fn losses() -> Vec<Case> {
    let (x, other) = (|| numbers(&[3, 5], 1), || numbers(&[3, 5], 2));
    let loss = |name: &str, f: fn(&Tensor, &Tensor) -> Result<Tensor>| {
        Case::new(name, [x(), other()], move |x| f(&x[0], &x[1]))
    };
    let classes = |name: &str, f: fn(&Tensor, &Tensor) -> Result<Tensor>| {
        Case::new(name, [x()], move |x| f(&x[0], &Tensor::from_vec(vec![4i64, 0, 2], 3, x[0].device())?))
    };
    vec![
        classes("cross_entropy", |x, t| x.cross_entropy(t)),
        classes("cross_entropy, smoothed", |x, t| x.cross_entropy_smoothed(t, 0.3)),
        classes("nll_loss", |x, t| x.log_softmax(1)?.nll_loss(t)),
        Case::new("cross_entropy of a product", [x(), numbers(&[5, 4], 2)], |x| {
            x[0].matmul(&x[1])?.cross_entropy(&Tensor::from_vec(vec![3u8, 0, 0], 3, x[0].device())?)
        }),
        loss("mse_loss", |x, t| x.mse_loss(t)),
        loss("l1_loss", |x, t| x.l1_loss(t)).rough(),
        loss("smooth_l1_loss", |x, t| x.smooth_l1_loss(t, 0.7)).rough(),
        loss("bce_with_logits", |x, t| x.bce_with_logits(&t.sigmoid()?)),
        Case::new("mse_loss of a broadcast target", [x(), numbers(&[5], 2)], |x| x[0].mse_loss(&x[1])),
        Case::new("mse_loss that widens its input", [numbers(&[3, 1], 1), numbers(&[4], 2)], |x| x[0].mse_loss(&x[1])),
    ]
}

fn pools() -> Vec<Case> {
    let pool =
        |name: &str, f: fn(&Tensor) -> Result<Tensor>| Case::new(name, [numbers(&[2, 5, 6], 3)], move |x| f(&x[0]));
    vec![
        pool("max_pool2d", |x| x.max_pool2d(2, 2)).rough(),
        pool("max_pool2d of windows that overlap", |x| x.max_pool2d(3, 1)).rough(),
        pool("max_pool2d of a result", |x| x.tanh()?.max_pool2d(2, 3)?.exp()).rough(),
        pool("avg_pool2d", |x| x.avg_pool2d(2, 2)?.sqr()),
        pool("avg_pool2d of windows that overlap", |x| x.t()?.avg_pool2d(3, 2)?.sqr()),
    ]
}

fn norms() -> Vec<Case> {
    let x = numbers(&[3, 5], 1);
    let cube = numbers(&[2, 3, 4], 1);
    let along = |name: &str, dim: i32, f: fn(&Tensor, i32) -> Result<Tensor>| {
        Case::new(format!("{name} along {dim}"), [numbers(&[2, 3, 4], 1)], move |x| f(&x[0], dim))
    };
    let mut list: Vec<Case> = (0..3)
        .flat_map(|dim| {
            [
                along("softmax", dim, |x, dim| x.softmax(dim)),
                along("log_softmax", dim, |x, dim| x.log_softmax(dim)),
                along("logsumexp", dim, |x, dim| x.logsumexp(dim)),
            ]
        })
        .collect();
    list.extend([
        Case::new("softmax of a view", [x.clone()], |x| x[0].t()?.slice(0, .., -1)?.softmax(1)),
        Case::new("softmax of a masked part", [x.clone()], |x| {
            x[0].gt(1.0)?.where_cond(f64::NEG_INFINITY, &x[0])?.softmax(1)
        })
        .rough(),
        Case::new("layer_norm", [x.clone(), numbers(&[5], 2), numbers(&[5], 3)], |x| {
            x[0].layer_norm(&x[1], Some(&x[2]), 1e-3)
        }),
        Case::new("layer_norm without bias over two dimensions", [cube.clone(), numbers(&[3, 4], 2)], |x| {
            x[0].layer_norm(&x[1], None, 1e-3)
        }),
        Case::new("layer_norm of a sum", [x.clone(), numbers(&[3, 5], 4), numbers(&[5], 2), numbers(&[5], 3)], |x| {
            (&x[0] + &x[1])?.layer_norm(&x[2], Some(&x[3]), 1e-3)?.gelu()
        }),
        Case::new("rms_norm", [x.clone(), numbers(&[5], 2)], |x| x[0].rms_norm(&x[1], 1e-3)),
        Case::new("rms_norm of a transpose", [x.clone(), numbers(&[3], 2)], |x| x[0].t()?.rms_norm(&x[1], 1e-3)),
    ]);
    list
}

pub fn cases() -> Vec<Case> {
    reductions().chain(special_reductions()).chain(norms()).chain(losses()).chain(pools()).collect()
}
