//! Views of every kind, alone and chained: what they read, and what ops make of them; joining and parting.

use crate::oracle::{
    Array, Value, assert_close, assert_equal, dtypes, evaluate, indices, on_every_device, position, sum_slack, wrapped,
};
use View::*;
use tensorlogic::testing::Elementwise;
use tensorlogic::{DType, Device, Result, Tensor};

on_every_device! {
    views_read_the_right_elements,
    views_of_results_read_the_right_elements,
    ops_take_views,
    reductions_take_views,
    reshape_infers_a_size,
    flatten_joins_dimensions,
    elements_are_read_in_every_form,
    transposes_share_a_launch,
    parts_join,
    equal_shapes_stack,
    parts_split,
    zeros_surround,
    windows_slide,
    impossible_views_are_refused,
}

/// A view: what is done to a tensor, and to an array of the oracle.
#[derive(Clone, Copy, Debug)]
enum View {
    Reshape(&'static [usize]),
    Permute(&'static [usize]),
    /// Dimension, start, length.
    Narrow(usize, usize, usize),
    /// Dimension, start, end, step.
    Slice(usize, usize, usize, isize),
    /// Dimension, index.
    Select(usize, usize),
    Expand(&'static [usize]),
    Squeeze(usize),
    Unsqueeze(usize),
    Transpose(usize, usize),
}

impl View {
    fn of_tensor(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Reshape(dims) => x.reshape(dims),
            Permute(order) => x.permute(order),
            Narrow(dim, start, len) => x.narrow(dim, start, len),
            Slice(dim, start, end, step) => x.slice(dim, start..end, step),
            Select(dim, index) => x.select(dim, index),
            Expand(dims) => x.expand(dims),
            Squeeze(dim) => x.squeeze(dim),
            Unsqueeze(dim) => x.unsqueeze(dim as isize),
            Transpose(a, b) => x.transpose(a, b),
        }
    }

    fn of_array(self, x: &Array) -> Array {
        let resized = |dim: usize, size: usize| {
            let mut dims = x.dims.clone();
            dims[dim] = size;
            dims
        };
        let moved = |index: &[usize], dim: usize, to: usize| {
            let mut source = index.to_vec();
            source[dim] = to;
            source
        };
        let order = |a: usize, b: usize| {
            let mut order: Vec<usize> = (0..x.dims.len()).collect();
            order.swap(a, b);
            order
        };
        let permuted = |order: &[usize]| {
            let dims: Vec<usize> = order.iter().map(|&d| x.dims[d]).collect();
            x.pick(&dims, |index| {
                (0..order.len()).map(|d| index[order.iter().position(|&o| o == d).unwrap()]).collect()
            })
        };
        let reshaped = |dims: Vec<usize>| Array::new(x.dtype, &dims, x.values.clone());
        match self {
            Reshape(dims) => reshaped(dims.to_vec()),
            Permute(order) => permuted(order),
            Transpose(a, b) => permuted(&order(a, b)),
            Narrow(dim, start, len) => x.pick(&resized(dim, len), |index| moved(index, dim, start + index[dim])),
            Slice(dim, start, end, step) => {
                let all: Vec<usize> = (start..end).collect();
                let steps = all.iter().copied().step_by(step.unsigned_abs());
                let back = all.iter().rev().copied().step_by(step.unsigned_abs());
                let kept: Vec<usize> = if step > 0 { steps.collect() } else { back.collect() };
                x.pick(&resized(dim, kept.len()), |index| moved(index, dim, kept[index[dim]]))
            }
            Select(dim, at) => Squeeze(dim).of_array(&Narrow(dim, at, 1).of_array(x)),
            Expand(dims) => x.broadcast(dims),
            Squeeze(dim) => {
                reshaped(x.dims.iter().enumerate().filter(|&(d, &n)| d != dim || n != 1).map(|(_, &n)| n).collect())
            }
            Unsqueeze(dim) => reshaped([&x.dims[..dim], &[1], &x.dims[dim..]].concat()),
        }
    }
}

/// Chains of views of a tensor.
const CHAINS: [(&[usize], &[View]); 32] = [
    (&[], &[]),
    (&[], &[Unsqueeze(0), Expand(&[7])]),
    (&[0], &[Reshape(&[3, 0])]),
    (&[3, 0], &[Transpose(0, 1)]),
    (&[37], &[Slice(0, 0, 37, -1)]),
    (&[37], &[Slice(0, 3, 30, 4)]),
    (&[37], &[Slice(0, 3, 30, -4), Slice(0, 1, 6, -2)]),
    (&[37], &[Narrow(0, 5, 0)]),
    (&[2050], &[Slice(0, 1, 2050, 2)]),
    (&[2050], &[Slice(0, 0, 2050, -1), Narrow(0, 1, 1500)]),
    (&[1], &[Expand(&[1030])]),
    (&[5, 7], &[]),
    (&[5, 7], &[Transpose(0, 1)]),
    (&[5, 7], &[Transpose(0, 1), Reshape(&[35])]),
    (&[5, 7], &[Transpose(0, 1), Reshape(&[5, 7])]),
    (&[5, 7], &[Narrow(1, 2, 3)]),
    (&[5, 7], &[Narrow(1, 2, 3), Reshape(&[15])]),
    (&[5, 7], &[Select(0, 3)]),
    (&[5, 7], &[Select(1, 6), Select(0, 2)]),
    (&[5, 1], &[Expand(&[5, 9]), Reshape(&[45])]),
    (&[7], &[Expand(&[5, 7]), Slice(1, 0, 7, -2), Transpose(0, 1)]),
    (&[33, 70], &[Transpose(0, 1)]),
    (&[70, 33], &[Slice(0, 0, 70, -3), Slice(1, 1, 33, 5)]),
    (&[1, 6, 1], &[Squeeze(0), Squeeze(1), Squeeze(0)]),
    (&[2, 3, 4], &[Permute(&[2, 0, 1]), Select(1, 1), Unsqueeze(2)]),
    (&[2, 3, 4], &[Reshape(&[6, 4]), Transpose(0, 1), Reshape(&[2, 2, 6])]),
    (&[2, 3, 4, 5], &[Permute(&[3, 1, 0, 2])]),
    (&[2, 3, 4, 5], &[Permute(&[0, 2, 1, 3]), Reshape(&[8, 15])]),
    (&[2, 3, 4, 5], &[Permute(&[3, 1, 0, 2]), Narrow(0, 1, 3), Slice(3, 0, 4, -2), Reshape(&[9, 4])]),
    (&[3, 1, 5], &[Expand(&[2, 3, 4, 5]), Permute(&[1, 3, 0, 2]), Select(2, 1)]),
    (&[9, 11, 13], &[Slice(2, 0, 13, -1), Slice(0, 0, 9, 2), Reshape(&[5, 143])]),
    (&[2, 2, 2, 2, 2, 2, 2, 2], &[Permute(&[7, 0, 6, 1, 5, 2, 4, 3]), Slice(3, 0, 2, -1), Reshape(&[16, 16])]),
];

/// The views of a tensor and of an array, one after another.
fn viewed(x: &Tensor, array: &Array, chain: &[View]) -> (Result<Tensor>, Array) {
    let tensor = chain.iter().try_fold(x.clone(), |x, view| view.of_tensor(&x));
    (tensor, chain.iter().fold(array.clone(), |x, view| view.of_array(&x)))
}

/// An op on every element of an array.
fn mapped(op: Elementwise, x: &Array) -> Array {
    let of = |&v: &Value| evaluate(op, &[v], x.dtype).stored(x.dtype);
    Array::new(x.dtype, &x.dims, x.values.iter().map(of).collect())
}

fn views_read_the_right_elements(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        for (dims, chain) in CHAINS {
            let array = Array::wild(dtype, dims, 11);
            let (got, want) = viewed(&array.upload(device), &array, chain);
            let what = format!("{dtype} {dims:?} {chain:?}");
            assert_equal(format!("contiguous copy of {what}"), got.clone().and_then(|x| x.contiguous()), &want);
            assert_equal(what, got, &want);
        }
    }
}

fn views_of_results_read_the_right_elements(device: &Device) {
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        for (dims, chain) in CHAINS {
            let array = Array::wild(dtype, dims, 12);
            let negated = array.upload(device).neg().unwrap();
            let (got, want) = viewed(&negated, &mapped(Elementwise::Neg, &array), chain);
            assert_equal(format!("{dtype} -{dims:?} {chain:?}"), got, &want);
        }
    }
}

fn ops_take_views(device: &Device) {
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        for (dims, chain) in CHAINS {
            let array = Array::wild(dtype, dims, 13);
            let (left, wanted_left) = viewed(&array.upload(device), &array, chain);
            let right = Array::wild(dtype, &wanted_left.dims, 14);
            let pairs = wanted_left.values.iter().zip(&right.values);
            let sums = pairs.map(|(&a, &b)| evaluate(Elementwise::Add, &[a, b], dtype)).collect();
            let want = Array::new(dtype, &right.dims, sums);
            let what = format!("{dtype} {dims:?} {chain:?}");
            let left = left.unwrap();
            assert_close(format!("{what} + a tensor"), left.add(right.upload(device)), &want, |_| 0.0);
            assert_equal(format!("-({what})"), left.neg(), &mapped(Elementwise::Neg, &wanted_left));
        }
    }
}

fn reductions_take_views(device: &Device) {
    for dtype in [DType::F32, DType::F16, DType::I32] {
        for (dims, chain) in CHAINS {
            let array = Array::tame(dtype, dims, 15);
            let (got, viewed) = viewed(&array.upload(device), &array, chain);
            let got = got.unwrap();
            for dim in 0..viewed.dims.len() {
                let (want, magnitudes) = sums(&viewed, dim);
                let slack = |i: usize| if dtype.is_float() { sum_slack(magnitudes[i], dtype) } else { 0.0 };
                assert_close(format!("sum over {dim} of {dtype} {dims:?} {chain:?}"), got.sum(dim), &want, slack);
            }
        }
    }
}

/// The sums over a dimension, and those of the magnitudes.
fn sums(x: &Array, dim: usize) -> (Array, Vec<f64>) {
    let mut dims = x.dims.clone();
    dims.remove(dim);
    let count = dims.iter().product();
    let (mut sums, mut magnitudes) = (vec![0.0; count], vec![0.0; count]);
    for (mut index, value) in indices(&x.dims).zip(&x.values) {
        index.remove(dim);
        let at = position(&dims, &index);
        sums[at] += value.float();
        magnitudes[at] += value.float().abs();
    }
    let value = |&sum: &f64| if x.dtype.is_float() { Value::Float(sum) } else { wrapped(sum as i128, DType::I64) };
    (Array::new(x.dtype.sum(), &dims, sums.iter().map(value).collect()), magnitudes)
}

fn reshape_infers_a_size(device: &Device) {
    let x = Tensor::zeros([4, 6], DType::U8, device).unwrap();
    let none = Tensor::zeros([0, 6], DType::U8, device).unwrap();
    let dims = |x: &Tensor, sizes: &[isize]| x.reshape_infer(sizes).map(|x| x.dims().to_vec()).ok();
    assert_eq!(dims(&x, &[-1]), Some(vec![24]));
    assert_eq!(dims(&x, &[3, -1, 2]), Some(vec![3, 4, 2]));
    assert_eq!(dims(&x, &[2, 12]), Some(vec![2, 12]));
    assert_eq!(dims(&none, &[-1, 3]), Some(vec![0, 3]));
    for bad in [&[-1, -1][..], &[5, -1], &[-2, 12], &[0, -1], &[25]] {
        assert_eq!(dims(&x, bad), None, "{bad:?}");
    }
}

fn flatten_joins_dimensions(device: &Device) {
    let x = Tensor::zeros([2, 3, 4], DType::U8, device).unwrap();
    assert_eq!(x.flatten(0, 1).unwrap().dims(), [6, 4]);
    assert_eq!(x.flatten(-2, -1).unwrap().dims(), [2, 12]);
    assert_eq!(x.flatten(1, 1).unwrap().dims(), [2, 3, 4]);
    assert_eq!(x.flatten_all().unwrap().dims(), [24]);
    assert!(x.flatten(2, 1).is_err());
}

fn elements_are_read_in_every_form(device: &Device) {
    let x = Tensor::arange(0i32, 24, device).unwrap().reshape([2, 3, 4]).unwrap();
    let turned = x.permute([2, 0, 1]).unwrap();
    let at = |i: i32, j: i32, k: i32| j * 12 + k * 4 + i;
    let row = |i, j| [at(i, j, 0), at(i, j, 1), at(i, j, 2)];
    assert_eq!(turned.to_vec3::<i32>().unwrap(), [0, 1, 2, 3].map(|i| [row(i, 0), row(i, 1)]));
    assert_eq!(turned.select(0, 3).unwrap().to_vec2::<i32>().unwrap(), [row(3, 0), row(3, 1)]);
    assert_eq!(turned.select(0, 3).unwrap().select(0, 1).unwrap().to_vec1::<i32>().unwrap(), row(3, 1));
    assert_eq!(
        turned.narrow(0, 1, 1).unwrap().narrow(1, 1, 1).unwrap().narrow(2, 2, 1).unwrap().item::<i32>().unwrap(),
        21
    );
    assert_eq!(x.flatten_all().unwrap().select(0, 5).unwrap().to_vec0::<i32>().unwrap(), 5);

    let mut all = [0; 24];
    turned.copy_to_slice(&mut all).unwrap();
    assert_eq!(all[..6], [row(0, 0), row(0, 1)].concat());
    assert!(turned.copy_to_slice(&mut all[1..]).is_err(), "too short a slice");
    assert!(turned.to_vec::<f32>().is_err(), "another type");
    assert!(turned.to_vec2::<i32>().is_err() && turned.to_vec0::<i32>().is_err(), "another rank");
    assert!(turned.item::<i32>().is_err(), "several elements");
}

/// Arrays one after another along a dimension.
fn joined(parts: &[Array], dim: usize) -> Array {
    let mut dims = parts[0].dims.clone();
    dims[dim] = parts.iter().map(|part| part.dims[dim]).sum();
    let value = |mut index: Vec<usize>| {
        let mut rest = parts.iter();
        let mut part = rest.next().unwrap();
        while index[dim] >= part.dims[dim] {
            index[dim] -= part.dims[dim];
            part = rest.next().unwrap();
        }
        part.values[position(&part.dims, &index)]
    };
    Array::new(parts[0].dtype, &dims, indices(&dims).map(value).collect())
}

/// Some fill one row of tiles, some several.
fn transposes_share_a_launch(device: &Device) {
    let arrays = [[50, 100], [100, 200], [200, 70], [33, 500]].map(|dims| Array::wild(DType::F16, &dims, 3));
    let turned = arrays.each_ref().map(|array| -array.upload(device).t().unwrap());
    tensorlogic::eval(&turned.each_ref().map(|result| result.as_ref().unwrap())).unwrap();
    for (array, got) in arrays.iter().zip(turned) {
        let [rows, columns] = array.dims[..] else { panic!("a matrix") };
        let at = |i: usize| Value::Float(-array.values[i % rows * columns + i / rows].float());
        let want = Array::new(DType::F16, &[columns, rows], (0..rows * columns).map(at).collect());
        assert_equal(format!("{rows} by {columns}"), got, &want);
    }
}

fn parts_join(device: &Device) {
    const PARTS: [(&[&[usize]], usize); 9] = [
        (&[&[3]], 0),
        (&[&[3], &[0], &[1030]], 0),
        (&[&[0], &[0]], 0),
        (&[&[0, 4], &[2, 4], &[5, 4]], 0),
        (&[&[33, 2], &[33, 70], &[33, 0], &[33, 1]], 1),
        (&[&[2, 3, 4], &[2, 1, 4]], 1),
        (&[&[2, 0, 4], &[2, 0, 4]], 1),
        (&[&[2, 3, 4], &[2, 3, 4], &[2, 3, 7]], 2),
        (&[[1].as_slice(); 40], 0),
    ];
    for dtype in dtypes(device, |_| true) {
        for (shapes, dim) in PARTS {
            let random = |(seed, dims): (usize, &&[usize])| Array::wild(dtype, dims, seed as u64);
            let arrays: Vec<Array> = shapes.iter().enumerate().map(random).collect();
            let tensors: Vec<Tensor> = arrays.iter().map(|x| x.upload(device)).collect();
            let what = format!("{dtype} {shapes:?} along {dim}");
            let want = joined(&arrays, dim);
            assert_equal(&what, Tensor::cat(&tensors, dim), &want);

            let turn = |x: &Tensor| x.t().and_then(|x| x.contiguous()).and_then(|x| x.t());
            let turned: Vec<Tensor> = tensors.iter().map(|x| turn(x).unwrap()).collect();
            assert_equal(format!("views of {what}"), Tensor::cat(&turned, dim), &want);

            if dtype != DType::Bool {
                let results: Vec<Tensor> = tensors.iter().map(|x| x.neg().unwrap()).collect();
                let negated = Tensor::cat(&results, dim).and_then(|x| x.neg());
                assert_equal(format!("results of {what}"), negated, &want);
            }
        }
    }
}

fn equal_shapes_stack(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        let arrays = [1, 2, 3].map(|seed| Array::wild(dtype, &[4, 5], seed));
        let tensors = arrays.each_ref().map(|x| x.upload(device));
        for dim in 0..3 {
            let raised = arrays.each_ref().map(|x| Unsqueeze(dim).of_array(x));
            let want = joined(&raised, dim);
            assert_equal(format!("{dtype} {dim}"), Tensor::stack(&tensors, dim as isize), &want);
            assert_equal(format!("{dtype} {dim} from the end"), Tensor::stack(&tensors, dim as isize - 3), &want);
        }
    }
    let [a, b] = [[2, 3], [3, 2]].map(|dims| Tensor::zeros(dims, DType::F32, device).unwrap());
    assert!(Tensor::stack(&[&a, &b], 0).is_err() && Tensor::stack::<Tensor>(&[], 0).is_err());
}

fn parts_split(device: &Device) {
    let x = Array::wild(DType::F16, &[4, 10], 16);
    let tensor = x.upload(device);
    let check = |what: &str, parts: Result<Vec<Tensor>>, dim: usize, sizes: &[usize]| {
        let parts = parts.unwrap();
        assert_eq!(parts.iter().map(|part| part.dims()[dim]).collect::<Vec<_>>(), sizes, "{what}");
        let mut start = 0;
        for part in parts {
            let len = part.dims()[dim];
            assert_equal(what, Ok(part), &Narrow(dim, start, len).of_array(&x));
            start += len;
        }
    };
    check("split(3, 1)", tensor.split(3, 1), 1, &[3, 3, 3, 1]);
    check("split(5, -1)", tensor.split(5, -1), 1, &[5, 5]);
    check("split(9, 0)", tensor.split(9, 0), 0, &[4]);
    check("chunk(3, 1)", tensor.chunk(3, 1), 1, &[4, 4, 2]);
    check("chunk(7, 0)", tensor.chunk(7, 0), 0, &[1, 1, 1, 1]);
    assert!(tensor.split(0, 0).is_err() && tensor.chunk(0, 0).is_err() && tensor.split(1, 2).is_err());

    let none = Tensor::zeros([0, 3], DType::F16, device).unwrap();
    assert_eq!(none.split(2, 0).unwrap().iter().map(Tensor::dims).collect::<Vec<_>>(), [[0, 3]]);
    assert_eq!(none.chunk(2, 0).unwrap().len(), 1);
}

/// Padding, alone, of views and results, and seen through views and folds.
fn zeros_surround(device: &Device) {
    type Sides = &'static [(usize, usize)];
    const CASES: [(&[usize], Sides); 8] = [
        (&[5], &[(2, 3)]),
        (&[1], &[(0, 1030)]),
        (&[33], &[(31, 0)]),
        (&[4, 3], &[(1, 2), (0, 0)]),
        (&[4, 3], &[(0, 1), (3, 2)]),
        (&[2, 3, 31], &[(1, 1), (0, 0), (1, 2)]),
        (&[2, 2, 2, 2], &[(1, 0), (0, 1), (1, 1), (2, 0)]),
        (&[3, 0], &[(1, 1), (2, 2)]),
    ];
    for dtype in dtypes(device, |_| true) {
        for (dims, padding) in CASES {
            let x = Array::wild(dtype, dims, 91);
            let size = |i: usize| dims[i] + padding[i].0 + padding[i].1;
            let shape: Vec<usize> = (0..dims.len()).map(size).collect();
            let zero = if dtype.is_float() { Value::Float(0.0) } else { Value::Int(0) };
            let value = |at: Vec<usize>| {
                let inside = at.iter().zip(padding).map(|(&i, &(before, _))| i.wrapping_sub(before));
                let inside: Vec<usize> = inside.collect();
                let holds = inside.iter().zip(dims).all(|(&i, &size)| i < size);
                if holds { x.values[position(dims, &inside)] } else { zero }
            };
            let want = Array::new(dtype, &shape, indices(&shape).map(value).collect());
            let what = |how: &str| format!("{dtype} {dims:?} in {padding:?}{how}");
            let tensor = x.upload(device);
            assert_equal(what(""), tensor.pad(padding), &want);
            let turned = tensor.t().and_then(|x| x.contiguous()?.t()?.pad(padding));
            assert_equal(what(", of a view"), turned, &want);
            let backwards = tensor.pad(padding).and_then(|x| x.slice(-1, .., -1)?.contiguous()?.slice(-1, .., -1));
            assert_equal(what(", read backwards"), backwards, &want);
            if dtype.is_float() {
                let computed = tensor.neg().and_then(|x| x.pad(padding)?.neg()?.abs()).and_then(|x| x.max_all());
                assert_equal(what(", folded"), computed, &evaluated_max(&want));
            }
        }
    }
    let x = Tensor::zeros((2, 3), DType::F32, device).unwrap();
    let message = x.pad(&[(1, 1)]).unwrap_err().to_string();
    assert!(message.contains("1 pairs of padding"), "{message}");
    assert!(x.pad(&[(usize::MAX, 1), (0, 0)]).is_err());
}

/// The largest of the absolute values; NaN if any is.
fn evaluated_max(x: &Array) -> Array {
    let larger = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    Array::floats(x.dtype, &[], [x.values.iter().map(|v| v.float().abs()).fold(0.0, larger)])
}

/// Sliding windows, of tensors and of views, in one dimension and in two.
fn windows_slide(device: &Device) {
    const CASES: [(&[usize], usize, usize, usize); 7] = [
        (&[7], 0, 3, 1),
        (&[7], 0, 7, 2),
        (&[33], 0, 2, 5),
        (&[4, 9], 1, 4, 2),
        (&[9, 4], 0, 4, 3),
        (&[2, 31, 3], 1, 5, 1),
        (&[1040], 0, 3, 1),
    ];
    for dtype in dtypes(device, |_| true) {
        for (dims, dim, size, step) in CASES {
            let x = Array::wild(dtype, dims, 92);
            let mut shape = dims.to_vec();
            shape[dim] = (dims[dim] - size) / step + 1;
            shape.push(size);
            let want = x.pick(&shape, |at| {
                let mut source = at[..dims.len()].to_vec();
                source[dim] = at[dim] * step + at[dims.len()];
                source
            });
            let what = |how: &str| format!("windows of {size} every {step} along {dim} of {dtype} {dims:?}{how}");
            let tensor = x.upload(device);
            assert_equal(what(""), tensor.unfold(dim, size, step), &want);
            let turned = tensor.t().and_then(|x| x.contiguous()?.t()?.unfold(dim, size, step)?.contiguous());
            assert_equal(what(", of a view, copied"), turned, &want);
        }
    }
    let x = Tensor::arange(0f32, 35.0, device).unwrap().reshape((5, 7)).unwrap();
    let sums = x.unfold(0, 2, 1).unwrap().unfold(1, 3, 2).unwrap().sum([-2, -1]).unwrap().to_vec2::<f32>().unwrap();
    let sum =
        |i: usize, j: usize| (0..2).flat_map(|r| (0..3).map(move |c| (7 * (i + r) + 2 * j + c) as f32)).sum::<f32>();
    let want: Vec<Vec<f32>> = (0..4).map(|i| (0..3).map(|j| sum(i, j)).collect()).collect();
    assert_eq!(sums, want);
    for (size, step) in [(0, 1), (1, 0), (8, 1)] {
        assert!(x.unfold(1, size, step).is_err(), "{size} every {step}");
    }
}

fn impossible_views_are_refused(device: &Device) {
    const IMPOSSIBLE: [View; 15] = [
        Reshape(&[5, 6]),
        Permute(&[0, 0, 1]),
        Permute(&[0, 1]),
        Permute(&[0, 1, 3]),
        Narrow(0, 1, 2),
        Narrow(3, 0, 1),
        Narrow(1, usize::MAX, 2),
        Slice(1, 0, 4, 1),
        Slice(1, 0, 3, 0),
        Select(1, 3),
        Expand(&[2, 3, 5]),
        Expand(&[3, 4]),
        Squeeze(3),
        Unsqueeze(4),
        Transpose(0, 3),
    ];
    let x = Tensor::zeros([2, 3, 4], DType::F32, device).unwrap();
    for view in IMPOSSIBLE {
        assert!(view.of_tensor(&x).is_err(), "{view:?}");
    }
    let cat = |dims: [&[usize]; 2]| Tensor::cat(&dims.map(|d| Tensor::zeros(d, DType::F32, device).unwrap()), 0);
    assert!(cat([&[2, 3], &[2, 4]]).is_err() && cat([&[2, 3], &[2]]).is_err());
}
