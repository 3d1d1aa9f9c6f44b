//! Views, joins, padding, and reading and adding through indices.

use super::{Case, numbers};
use tensorlogic::{DType, Result, Tensor};

/// A case of one input, whose views are squared, so that each element matters by its value.
fn view(name: &str, dims: &[usize], f: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Case {
    Case::new(name, [numbers(dims, 4)], move |x| f(&x[0])?.sqr())
}

/// The indices as a tensor on another's device.
fn index(like: &Tensor, indices: &[i64], dims: &[usize]) -> Result<Tensor> {
    Tensor::from_slice(indices, dims, like.device())
}

fn views() -> Vec<Case> {
    vec![
        view("reshape", &[4, 6], |x| x.reshape((3, 8))),
        view("reshape of a transpose", &[4, 6], |x| x.t()?.reshape((3, 8))),
        view("permute", &[2, 3, 4], |x| x.permute([2, 0, 1])),
        view("transpose", &[2, 3, 4], |x| x.transpose(0, 1)),
        view("narrow", &[4, 6], |x| x.narrow(1, 2, 3)),
        view("step", &[4, 7], |x| x.slice(1, 1..6, 2)),
        view("step back", &[4, 7], |x| x.slice(1, 1..6, -2)),
        view("reversal", &[4, 6], |x| x.slice(0, .., -1)),
        view("steps both ways", &[5, 7], |x| x.slice(0, .., -2)?.slice(1, 1.., 3)),
        view("expand", &[3, 1], |x| x.expand((2, 3, 4))),
        view("expand of a scalar", &[], |x| x.expand((2, 3))),
        view("expand of a part", &[4, 3], |x| x.narrow(0, 1, 1)?.expand((5, 3))),
        view("unsqueeze and squeeze", &[4, 3], |x| x.unsqueeze(1)?.unsqueeze(-1)?.squeeze(1)),
        view("select", &[4, 3, 2], |x| x.select(1, 2)),
        view("select and select", &[4, 3, 2], |x| x.select(0, 3)?.select(1, 1)),
        view("flatten", &[2, 3, 4], |x| x.transpose(0, 2)?.flatten(0, 1)),
        view("contiguous", &[4, 6], |x| x.t()?.contiguous()?.reshape((8, 3))),
        view("unfold", &[7], |x| x.unfold(0, 3, 1)),
        view("unfold in steps", &[2, 9], |x| x.unfold(1, 4, 2)),
        view("unfold apart", &[2, 9], |x| x.unfold(1, 2, 4)),
        view("unfold twice", &[5, 6], |x| x.unfold(0, 3, 1)?.unfold(1, 2, 2)),
        view("unfold the same dimension twice", &[10], |x| x.unfold(0, 4, 2)?.unfold(0, 2, 1)),
        view("unfold of a reversal", &[8], |x| x.slice(0, .., -1)?.unfold(0, 3, 2)),
        view("unfold of a transpose", &[4, 6], |x| x.t()?.unfold(0, 4, 1)?.permute([2, 0, 1])),
        view("reshape of an unfold", &[3, 6], |x| x.unfold(1, 3, 1)?.reshape((6, 6))),
        view("unfold, expanded", &[6], |x| x.unfold(0, 2, 1)?.expand((3, 5, 2))),
        view("diagonal", &[4, 4], |x| x.reshape(16)?.slice(0, .., 5)),
        view("antidiagonal", &[4, 4], |x| x.reshape(16)?.slice(0, 3..13, -3)),
        view("band", &[4, 5], |x| x.reshape(20)?.narrow(0, 3, 13)?.slice(0, .., 4)),
        view("steps over rows that do not divide", &[5, 7], |x| x.reshape(35)?.slice(0, 2..33, 4)),
        view("part of a part", &[6, 5], |x| x.narrow(0, 1, 4)?.t()?.slice(1, .., -1)?.narrow(0, 1, 3)?.slice(1, .., 2)),
        view("steps in five dimensions", &[3, 2, 3, 2, 2], |x| {
            x.slice(0, .., 2)?.slice(2, .., -2)?.permute([4, 2, 0, 3, 1])?.narrow(0, 1, 1)
        }),
        view("rank 8", &[2, 1, 2, 1, 2, 1, 2, 2], |x| {
            x.permute([7, 1, 2, 3, 4, 6, 5, 0])?.narrow(0, 1, 1)?.select(2, 0)
        }),
        view("pieces", &[5, 3], |x| {
            let pieces = x.split(2, 0)?;
            pieces[0].mul(&pieces[1])? + &pieces[2].sin()?
        }),
        view("chunks", &[2, 6], |x| {
            let [a, b, c]: [Tensor; 3] = x.chunk(3, 1)?.try_into().expect("three chunks");
            a.mul(&b.tanh()?)?.add(&c.t()?)
        }),
    ]
}

fn joins() -> Vec<Case> {
    let [a, b, c] = [numbers(&[2, 3], 1), numbers(&[2, 2], 2), numbers(&[2, 1], 3)];
    vec![
        Case::new("cat", [a.clone(), b.clone(), c], |x| Tensor::cat(x, 1)?.sqr()),
        Case::new("cat of views and results", [a.clone(), b.clone()], |x| {
            Tensor::cat(&[x[0].t()?, x[1].sin()?, x[1].t()?.exp()?, x[0].t()?.slice(0, .., -1)?], 0)?.sqr()
        }),
        Case::new("cat of a tensor with itself", [a.clone()], |x| Tensor::cat(&[&x[0], &x[0]], 0)?.sqr()),
        Case::new("cat with a constant", [a.clone()], |x| Tensor::cat(&[&x[0], &x[0].ones_like()?], 1)?.sqr()),
        Case::new("stack", [a.clone(), numbers(&[2, 3], 5)], |x| Tensor::stack(x, -1)?.sqr()),
        Case::new("stack in front", [a.clone(), numbers(&[2, 3], 5)], |x| Tensor::stack(x, 0)?.t()?.sqr()),
        Case::new("pad", [a.clone()], |x| (x[0].pad(&[(1, 0), (2, 1)])? + 1.0)?.sqr()),
        Case::new("pad of a view", [a.clone()], |x| (x[0].t()?.slice(0, .., -1)?.pad(&[(0, 2), (1, 0)])? + 1.0)?.sqr()),
        Case::new("pad of a result", [a.clone()], |x| (x[0].sin()?.pad(&[(0, 0), (1, 1)])? - 1.0)?.exp()),
        Case::new("pad, windows, product", [a, numbers(&[3, 2], 6)], |x| {
            x[0].pad(&[(0, 0), (1, 1)])?.unfold(1, 3, 1)?.matmul(&x[1])
        }),
    ]
}

fn through_indices() -> Vec<Case> {
    let x = numbers(&[4, 3], 1);
    let source = numbers(&[3, 3], 2);
    vec![
        Case::new("gather", [x.clone()], |x| x[0].gather(0, &index(&x[0], &[1, 3, 1, 0, 0, 1], &[2, 3])?)?.sqr()),
        Case::new("gather of fewer", [x.clone()], |x| x[0].gather(1, &index(&x[0], &[2, 2, 0, 1], &[2, 2])?)?.sqr()),
        Case::new("gather of a view", [x.clone()], |x| {
            x[0].t()?.slice(0, .., -1)?.gather(0, &index(&x[0], &[1, 1, 2, 0], &[1, 4])?)?.sqr()
        }),
        Case::new("gather of a result", [x.clone()], |x| {
            x[0].tanh()?.gather(0, &index(&x[0], &[3, 3, 3], &[1, 3])?)?.exp()
        }),
        Case::new("index_select", [x.clone()], |x| x[0].index_select(0, &index(&x[0], &[3, 0, 3, 3], &[4])?)?.sqr()),
        Case::new("index_select of columns", [x.clone()], |x| {
            x[0].sin()?.index_select(1, &index(&x[0], &[2, 2], &[2])?)?.sqr()
        }),
        Case::new("embedding", [x.clone()], |x| x[0].embedding(&index(&x[0], &[1, 2, 1, 0, 1, 1], &[2, 3])?)?.sqr()),
        Case::new("scatter_add", [x.clone(), source.clone()], |x| {
            x[0].scatter_add(0, &index(&x[0], &[0, 3, 1, 0, 3, 2, 0, 0, 2], &[3, 3])?, &x[1])?.sqr()
        }),
        Case::new("scatter_add of fewer", [x.clone(), numbers(&[2, 5], 3)], |x| {
            x[0].scatter_add(1, &index(&x[0], &[0, 2, 2, 1, 0, 1, 1, 1, 0, 2], &[2, 5])?, &x[1])?.sqr()
        }),
        Case::new("scatter_add of views", [x.clone(), source.clone()], |x| {
            let indices = index(&x[0], &[0, 1, 1, 2, 2, 2, 0, 0, 1], &[3, 3])?.t()?;
            x[0].t()?.scatter_add(0, &indices, &x[1].slice(0, .., -1)?.t()?)?.sqr()
        }),
        Case::new("index_add", [x.clone(), source.clone()], |x| {
            x[0].index_add(0, &index(&x[0], &[2, 0, 2], &[3])?, &x[1])?.sqr()
        }),
        Case::new("index_add of results to columns", [x, numbers(&[2, 4], 4)], |x| {
            x[0].sin()?.index_add(1, &index(&x[0], &[1, 1], &[2])?, &x[1].t()?.tanh()?)?.sqr()
        }),
    ]
}

fn conversions() -> Vec<Case> {
    vec![
        // What is f32 in between is exact there.
        view("there and back", &[3, 4], |x| (x.to_dtype(DType::F32)? * 4.0)?.t()?.to_dtype(x.dtype())).rough(),
        view("a conversion's view", &[3, 4], |x| x.to_dtype(DType::F32)?.slice(1, .., -2)?.to_dtype(x.dtype())).rough(),
    ]
}

pub fn cases() -> Vec<Case> {
    [views(), joins(), through_indices(), conversions()].into_iter().flatten().collect()
}
