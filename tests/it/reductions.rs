//! Every reduction over every set of axes, on every dtype.

use crate::oracle::{
    Array, Value, assert_close, assert_equal, dtypes, on_every_device, sum_slack, total, unit, wrapped,
};
use half::f16;
use std::cmp::Ordering;
use tensorlogic::{DType, Device, Result, Tensor};

on_every_device! {
    sums_over_every_set_of_axes,
    products_over_every_set_of_axes,
    means_over_every_set_of_axes,
    extremes_over_every_set_of_axes,
    variances_over_every_set_of_axes,
    positions_along_every_axis,
    variance_with_corrections,
    long_narrow_sums_are_exact,
    sums_keep_infinities_and_nan,
    far_from_zero_variance_is_accurate,
    axes_are_checked,
    nothing_has_no_largest_element,
}

/// A result that may lie within `slack` of a value before it is rounded.
struct Want {
    value: Value,
    slack: f64,
}

impl Want {
    fn exact(value: Value) -> Want {
        Want { value, slack: 0.0 }
    }

    fn near(x: f64, slack: f64) -> Want {
        Want { value: Value::Float(x), slack }
    }
}

/// A reduction: its two methods (dimensions dropped, dimensions kept), and what it makes of a row.
struct Reduction {
    name: &'static str,
    drop: fn(&Tensor, &[usize]) -> Result<Tensor>,
    keep: fn(&Tensor, &[usize]) -> Result<Tensor>,
    takes: fn(DType) -> bool,
    gives: fn(DType) -> DType,
    inputs: fn(DType, &[usize]) -> Array,
    of_nothing: bool,
    of_row: fn(&[Value], DType) -> Want,
}

const REDUCTIONS: [Reduction; 7] = [
    Reduction {
        name: "sum",
        drop: |x, dims| x.sum(dims),
        keep: |x, dims| x.sum_keepdim(dims),
        takes: |_| true,
        gives: DType::sum,
        inputs: |dtype, dims| Array::tame(dtype, dims, 21),
        of_nothing: true,
        of_row: |row, dtype| match dtype.is_float() {
            true => Want::near(sum(row, |x| x), sum_slack(sum(row, f64::abs), dtype)),
            false => Want::exact(wrapped(row.iter().map(|v| v.int()).sum(), DType::I64)),
        },
    },
    Reduction {
        name: "prod",
        drop: |x, dims| x.prod(dims),
        keep: |x, dims| x.prod_keepdim(dims),
        takes: |_| true,
        gives: DType::sum,
        inputs: near_one,
        of_nothing: true,
        of_row: |row, dtype| match dtype.is_float() {
            true => {
                let product: f64 = row.iter().map(|v| v.float()).product();
                // Each product rounds.
                Want::near(product, unit(dtype) * row.len() as f64 * product.abs())
            }
            false => {
                Want::exact(wrapped(row.iter().fold(1i128, |product, v| product.wrapping_mul(v.int())), DType::I64))
            }
        },
    },
    Reduction {
        name: "mean",
        drop: |x, dims| x.mean(dims),
        keep: |x, dims| x.mean_keepdim(dims),
        takes: DType::is_float,
        gives: |dtype| dtype,
        inputs: |dtype, dims| Array::tame(dtype, dims, 22),
        of_nothing: true,
        of_row: |row, dtype| {
            let count = row.len() as f64;
            Want::near(sum(row, |x| x) / count, sum_slack(sum(row, f64::abs) / count, dtype))
        },
    },
    Reduction {
        name: "max",
        drop: |x, dims| x.max(dims),
        keep: |x, dims| x.max_keepdim(dims),
        takes: |_| true,
        gives: |dtype| dtype,
        inputs: |dtype, dims| Array::wild(dtype, dims, 23),
        of_nothing: false,
        of_row: |row, _| Want::exact(row[first(row, Ordering::Greater)]),
    },
    Reduction {
        name: "min",
        drop: |x, dims| x.min(dims),
        keep: |x, dims| x.min_keepdim(dims),
        takes: |_| true,
        gives: |dtype| dtype,
        inputs: without_nan,
        of_nothing: false,
        of_row: |row, _| Want::exact(row[first(row, Ordering::Less)]),
    },
    Reduction {
        name: "var",
        drop: |x, dims| x.var(dims),
        keep: |x, dims| x.var_keepdim(dims),
        takes: DType::is_float,
        gives: |dtype| dtype,
        inputs: |dtype, dims| Array::tame(dtype, dims, 25),
        of_nothing: true,
        of_row: |row, dtype| {
            let variance = variance(row, 1.0);
            Want::near(variance, variance_slack(variance, dtype))
        },
    },
    Reduction {
        name: "std",
        drop: |x, dims| x.std(dims),
        keep: |x, dims| x.std_keepdim(dims),
        takes: DType::is_float,
        gives: |dtype| dtype,
        inputs: |dtype, dims| Array::tame(dtype, dims, 26),
        of_nothing: true,
        of_row: |row, dtype| {
            let deviation = variance(row, 1.0).sqrt();
            Want::near(deviation, unit(dtype) * (16.0 * deviation + 8.0))
        },
    },
];

/// Around a vector's lanes, a tile and a segment, along rows and along columns.
const SHAPES: [&[usize]; 35] = [
    &[],
    &[0],
    &[1],
    &[31],
    &[32],
    &[33],
    &[1023],
    &[1024],
    &[1025],
    &[16383],
    &[16384],
    &[16385],
    &[100_000],
    &[1, 100_000],
    &[3, 40_000],
    &[40_000, 3],
    &[7, 1025],
    &[1025, 7],
    &[3, 0],
    &[0, 3],
    &[63, 64],
    &[64, 63],
    &[64, 64],
    &[65, 65],
    &[200, 10],
    &[10, 200],
    &[1, 1],
    &[1, 5, 1],
    &[130, 5, 9],
    &[5, 130, 9],
    &[2, 3, 1100],
    &[3, 0, 2],
    &[4, 3, 5, 6],
    &[2, 1, 33, 3],
    &[2, 3, 2, 3, 2, 3],
];

/// The sum of a function of the elements.
fn sum(row: &[Value], f: impl Fn(f64) -> f64) -> f64 {
    total(row.iter().map(|v| f(v.float())))
}

/// The sum of the squared distances to the mean, divided by the count less `correction`.
fn variance(row: &[Value], correction: f64) -> f64 {
    let mean = sum(row, |x| x) / row.len() as f64;
    sum(row, |x| (x - mean).powi(2)) / (row.len() as f64 - correction).max(0.0)
}

/// How far the variance of tame numbers may be off: each distance to the mean rounds relative to numbers up to 2.
fn variance_slack(variance: f64, dtype: DType) -> f64 {
    unit(dtype) * (16.0 * variance + 8.0 * variance.sqrt())
}

/// The position of the first element that is `Greater` (or `Less`) than all before it, or of the first NaN.
fn first(row: &[Value], wanted: Ordering) -> usize {
    let order = |a: Value, b: Value| match (a, b) {
        (Value::Int(i), Value::Int(j)) => Some(i.cmp(&j)),
        _ => a.float().partial_cmp(&b.float()),
    };
    let better = |best: usize, i: usize| if order(row[i], row[best]) == Some(wanted) { i } else { best };
    row.iter().position(|v| v.float().is_nan()).unwrap_or_else(|| (1..row.len()).fold(0, better))
}

/// Floats whose product stays moderate; integers, whose product wraps.
fn near_one(dtype: DType, dims: &[usize]) -> Array {
    let tame = Array::tame(dtype, dims, 27);
    if !dtype.is_float() {
        return tame;
    }
    // Signs alternate at random.
    tame.map(|x| x.signum() + x / 1024.0)
}

/// [`Array::wild`], but that NaN is 3.
fn without_nan(dtype: DType, dims: &[usize]) -> Array {
    let wild = Array::wild(dtype, dims, 28);
    if dtype.is_float() { wild.map(|x| if x.is_nan() { 3.0 } else { x }) } else { wild }
}

/// Every set of axes of a rank but the empty one; that too for rank 0.
fn sets_of_axes(rank: usize) -> impl Iterator<Item = Vec<usize>> {
    (rank.min(1)..1 << rank).map(move |set| (0..rank).filter(|axis| set >> axis & 1 == 1).collect())
}

/// The shape that is left, with the axes at size 1, and the elements that each of its elements is made of.
fn rows(x: &Array, axes: &[usize]) -> (Vec<usize>, Vec<Vec<Value>>) {
    let kept: Vec<usize> = (0..x.dims.len()).map(|d| if axes.contains(&d) { 1 } else { x.dims[d] }).collect();
    let mut rows = vec![Vec::new(); kept.iter().product()];
    for (at, &value) in x.values.iter().enumerate() {
        // The index is peeled off `at` from the last dimension on; the axes do not count.
        let (_, _, row) = x.dims.iter().zip(&kept).rfold((at, 1, 0), |(at, stride, row), (&size, &kept)| {
            (at / size, stride * kept, row + at % size % kept * stride)
        });
        rows[row].push(value);
    }
    (kept, rows)
}

/// A shape without some of its dimensions.
fn without(dims: &[usize], axes: &[usize]) -> Vec<usize> {
    (0..dims.len()).filter(|d| !axes.contains(d)).map(|d| dims[d]).collect()
}

fn sums_over_every_set_of_axes(device: &Device) {
    reductions_over_every_set_of_axes(&["sum"], device);
}

fn products_over_every_set_of_axes(device: &Device) {
    reductions_over_every_set_of_axes(&["prod"], device);
}

fn means_over_every_set_of_axes(device: &Device) {
    reductions_over_every_set_of_axes(&["mean"], device);
}

fn extremes_over_every_set_of_axes(device: &Device) {
    reductions_over_every_set_of_axes(&["max", "min"], device);
}

fn variances_over_every_set_of_axes(device: &Device) {
    reductions_over_every_set_of_axes(&["var", "std"], device);
}

/// In several tests, which several threads or processes can run.
fn reductions_over_every_set_of_axes(names: &[&str], device: &Device) {
    for reduction in REDUCTIONS.iter().filter(|reduction| names.contains(&reduction.name)) {
        for dtype in dtypes(device, reduction.takes) {
            for dims in SHAPES {
                let x = (reduction.inputs)(dtype, dims);
                let tensor = x.upload(device);
                for axes in sets_of_axes(dims.len()) {
                    let (kept, rows) = rows(&x, &axes);
                    let what = format!("{} of {dtype} {dims:?} over {axes:?}", reduction.name);
                    let (dropped, same) = ((reduction.drop)(&tensor, &axes), (reduction.keep)(&tensor, &axes));
                    if !reduction.of_nothing && rows.iter().any(Vec::is_empty) {
                        assert!(dropped.is_err() && same.is_err(), "{what}");
                        continue;
                    }
                    let wants: Vec<Want> = rows.iter().map(|row| (reduction.of_row)(row, dtype)).collect();
                    let values: Vec<Value> = wants.iter().map(|want| want.value).collect();
                    let array = |dims: &[usize]| Array::new((reduction.gives)(dtype), dims, values.clone());
                    assert_close(&what, dropped, &array(&without(dims, &axes)), |i| wants[i].slack);
                    assert_close(format!("{what}, kept"), same, &array(&kept), |i| wants[i].slack);
                }
            }
        }
    }
}

fn positions_along_every_axis(device: &Device) {
    type Position = (&'static str, [fn(&Tensor, usize) -> Result<Tensor>; 2], Ordering);
    const POSITIONS: [Position; 2] = [
        ("argmax", [|x, dim| x.argmax(dim), |x, dim| x.argmax_keepdim(dim)], Ordering::Greater),
        ("argmin", [|x, dim| x.argmin(dim), |x, dim| x.argmin_keepdim(dim)], Ordering::Less),
    ];
    /// Whole numbers: many ties.
    fn ties(dtype: DType, dims: &[usize]) -> Array {
        let tame = Array::tame(dtype, dims, 29);
        if dtype.is_float() { tame.map(f64::round) } else { tame }
    }
    const INPUTS: [fn(DType, &[usize]) -> Array; 3] = [ties, without_nan, |dtype, dims| Array::wild(dtype, dims, 30)];
    for dtype in dtypes(device, |_| true) {
        for (dims, inputs) in SHAPES.into_iter().flat_map(|dims| INPUTS.map(|inputs| (dims, inputs))) {
            let x = inputs(dtype, dims);
            let tensor = x.upload(device);
            for dim in 0..dims.len() {
                let (kept, rows) = rows(&x, &[dim]);
                for (name, [drop, keep], best) in POSITIONS {
                    let what = format!("{name} of {dtype} {dims:?} along {dim}");
                    let (dropped, same) = (drop(&tensor, dim), keep(&tensor, dim));
                    if rows.iter().any(Vec::is_empty) {
                        assert!(dropped.is_err() && same.is_err(), "{what}");
                        continue;
                    }
                    let firsts: Vec<i64> = rows.iter().map(|row| first(row, best) as i64).collect();
                    let want = |dims: &[usize]| Array::ints(DType::I64, dims, firsts.iter().copied());
                    assert_equal(&what, dropped, &want(&without(dims, &[dim])));
                    assert_equal(format!("{what}, kept"), same, &want(&kept));
                }
            }
        }
    }
}

fn variance_with_corrections(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        let x = Array::tame(dtype, &[5, 20], 31);
        for correction in [0, 1, 2, 20, 21] {
            let (_, rows) = rows(&x, &[1]);
            let wants: Vec<f64> = rows.iter().map(|row| variance(row, correction as f64)).collect();
            let want = Array::new(dtype, &[5], wants.iter().map(|&x| Value::Float(x)).collect());
            let got = x.upload(device).var_with(1, correction);
            assert_close(format!("{dtype}, less {correction}"), got, &want, |i| variance_slack(wants[i], dtype));
        }
    }
}

fn long_narrow_sums_are_exact(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        let ones = Tensor::ones(100_000, dtype, device).unwrap();
        let stored = Array::floats(dtype, &[100_000], vec![1.0; 100_000]).upload(device);
        for x in [ones, stored] {
            let wide = x.to_dtype(DType::F32).and_then(|x| x.sum_all());
            assert_eq!(wide.unwrap().item::<f32>().unwrap(), 100_000.0, "{dtype}");
            // Not 2048 or 256, where adding 1 in the narrow type stops.
            let narrow = x.narrow(0, 0, 50_000).and_then(|x| x.sum_all());
            assert_equal(format!("{dtype} sum"), narrow, &Array::floats(dtype, &[], [50_000.0]));
            assert_equal(format!("{dtype} mean"), x.mean_all(), &Array::floats(dtype, &[], [1.0]));
        }
    }
    let large = Tensor::full(4, 60_000.0, DType::F16, device).unwrap();
    assert_eq!(large.sum_all().unwrap().item::<f16>().unwrap(), f16::INFINITY);
    assert_eq!(large.mean_all().unwrap().item::<f16>().unwrap(), f16::from_f32(60_000.0));
}

fn sums_keep_infinities_and_nan(device: &Device) {
    const SPECIAL: [(&[f64], f64); 5] = [
        (&[f64::INFINITY], f64::INFINITY),
        (&[f64::NEG_INFINITY], f64::NEG_INFINITY),
        (&[f64::INFINITY, f64::INFINITY], f64::INFINITY),
        (&[f64::INFINITY, f64::NEG_INFINITY], f64::NAN),
        (&[f64::NAN], f64::NAN),
    ];
    for dtype in dtypes(device, DType::is_float) {
        for len in [2, 33, 1025, 20_000] {
            for (special, want) in SPECIAL {
                let mut values = vec![1.0; len];
                values[len - special.len()..].copy_from_slice(special);
                values.rotate_left(len / 3);
                let x = Array::floats(dtype, &[len], values).upload(device);
                let what = format!("{special:?} among {len} of {dtype}");
                assert_equal(format!("sum of {what}"), x.sum(0), &Array::floats(dtype, &[], [want]));
                assert_equal(format!("mean of {what}"), x.mean(0), &Array::floats(dtype, &[], [want]));
            }
        }
    }
}

fn far_from_zero_variance_is_accurate(device: &Device) {
    let values: Vec<f32> = (0..30_000).map(|i| 10_000.0 + (i % 3) as f32).collect();
    let x = Tensor::from_vec(values, 30_000, device).unwrap();
    // Values 0, 1, 2 in equal parts: 2/3, times n / (n - 1).
    let want = 2.0 / 3.0 * 30_000.0 / 29_999.0;
    let got = f64::from(x.var_all().unwrap().item::<f32>().unwrap());
    assert!((got - want).abs() < 1e-5 * want, "{got}, not {want}");
}

fn axes_are_checked(device: &Device) {
    let x = Tensor::ones([2, 3, 4], DType::F32, device).unwrap();
    assert_eq!(x.sum([-1, 0]).unwrap().dims(), [3]);
    assert_eq!(x.sum_keepdim(-2).unwrap().dims(), [2, 1, 4]);
    assert_eq!(x.sum(()).unwrap().item::<f32>().unwrap(), 24.0);
    assert!(x.sum(3).is_err() && x.sum(-4).is_err() && x.sum([0, -3]).is_err() && x.argmax(3).is_err());
    let whole = Tensor::ones(3, DType::I64, device).unwrap();
    assert!(whole.mean(0).is_err() && whole.var(0).is_err() && whole.std(0).is_err());
}

fn nothing_has_no_largest_element(device: &Device) {
    let none = Tensor::zeros([0, 3], DType::F32, device).unwrap();
    assert!(none.max(0).is_err() && none.min_all().is_err() && none.argmax(0).is_err());
    assert_eq!(none.max(1).unwrap().dims(), [0]);
    assert_eq!(none.argmin_keepdim(1).unwrap().dims(), [0, 1]);
    assert!(none.mean_all().unwrap().item::<f32>().unwrap().is_nan());
}
