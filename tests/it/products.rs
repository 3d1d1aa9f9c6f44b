//! Matrix products: every dtype, sizes around the kernel's tiles, views as operands, and what is fused to them.

use crate::oracle::{Array, Value, assert_close, dtypes, on_every_device, slack, sum_slack, unit, wrapped};
use tensorlogic::{Activation, DType, Device, Result, Tensor};

on_every_device! {
    sizes,
    batches_broadcast,
    views_multiply,
    vectors_multiply,
    epilogues,
    special_values_multiply,
    relu_of_a_large_product,
    operands_are_checked,
}

/// Rows, inner size, columns.
const SIZES: [[usize; 3]; 24] = [
    [0, 3, 2],
    [3, 0, 2],
    [3, 2, 0],
    [1, 1, 1],
    [2, 2, 2],
    [1, 5, 31],
    [31, 5, 1],
    [5, 1, 33],
    [1, 130, 1],
    [1, 100, 64],
    [64, 100, 1],
    [2, 64, 100],
    [5, 33, 5],
    [31, 31, 31],
    [33, 64, 31],
    [64, 64, 64],
    [64, 33, 2],
    [100, 2, 100],
    [130, 31, 33],
    [33, 130, 64],
    [100, 64, 130],
    [130, 130, 130],
    [7, 1000, 9],
    [1, 3000, 70],
];

/// The product of two arrays of equal rank and batch, and that of their magnitudes.
fn product(a: &Array, b: &Array) -> (Array, Vec<f64>) {
    let rank = a.dims.len();
    let [m, k, n] = [a.dims[rank - 2], a.dims[rank - 1], b.dims[rank - 1]];
    let dims = [&a.dims[..rank - 1], &[n]].concat();
    let (mut values, mut magnitudes) = (Vec::new(), Vec::new());
    for at in 0..dims.iter().product() {
        let (batch, row, column) = (at / (m * n), at / n % m, at % n);
        let terms = || (0..k).map(|i| (a.values[(batch * m + row) * k + i], b.values[(batch * k + i) * n + column]));
        magnitudes.push(terms().map(|(a, b)| (a.float() * b.float()).abs()).sum());
        values.push(match a.dtype.is_float() {
            true => Value::Float(terms().map(|(a, b)| a.float() * b.float()).sum()),
            false => wrapped(terms().fold(0i128, |sum, (a, b)| sum.wrapping_add(a.int() * b.int())), a.dtype),
        });
    }
    (Array::new(a.dtype, &dims, values), magnitudes)
}

/// Checks the product of two tensors, which hold what `a` and `b` do.
fn check(what: &str, got: Result<Tensor>, a: &Array, b: &Array) {
    let (want, magnitudes) = product(a, b);
    assert_close(what, got, &want, |i| sum_slack(magnitudes[i], want.dtype));
}

fn sizes(device: &Device) {
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        for [m, k, n] in SIZES {
            let inputs: fn(DType, &[usize], u64) -> Array = if dtype.is_int() { Array::wild } else { Array::tame };
            let (a, b) = (inputs(dtype, &[m, k], 41), inputs(dtype, &[k, n], 42));
            check(&format!("{dtype} [{m}, {k}, {n}]"), a.upload(device).matmul(&b.upload(device)), &a, &b);
        }
    }
}

fn batches_broadcast(device: &Device) {
    const BATCHES: [(&[usize], &[usize], &[usize]); 9] = [
        (&[3], &[3], &[3]),
        (&[1], &[3], &[3]),
        (&[3], &[], &[3]),
        (&[], &[3], &[3]),
        (&[2, 1], &[4], &[2, 4]),
        (&[2, 3], &[2, 3], &[2, 3]),
        (&[2, 1, 2], &[3, 1], &[2, 3, 2]),
        (&[0], &[1], &[0]),
        (&[1, 1], &[1], &[1, 1]),
    ];
    for dtype in [DType::F32, DType::F16, DType::I32] {
        for ([m, k, n], (a_batch, b_batch, batch)) in
            [[5, 33, 7], [1, 64, 40], [66, 3, 2]].into_iter().flat_map(|size| BATCHES.map(|batches| (size, batches)))
        {
            let a = Array::tame(dtype, &[a_batch, &[m, k]].concat(), 43);
            let b = Array::tame(dtype, &[b_batch, &[k, n]].concat(), 44);
            let got = a.upload(device).matmul(&b.upload(device));
            let [all_a, all_b] = [a.broadcast(&[batch, &[m, k]].concat()), b.broadcast(&[batch, &[k, n]].concat())];
            check(&format!("{dtype} {:?} x {:?}", a.dims, b.dims), got, &all_a, &all_b);
        }
    }
}

/// A tensor that holds the elements of a matrix in its own way.
type Reading = (&'static str, fn(&Array, &Device) -> Result<Tensor>);

/// Ways to hold a matrix other than row by row.
const READINGS: [Reading; 6] = [
    ("contiguous", |x, device| Ok(x.upload(device))),
    ("transposed", |x, device| turned(x).upload(device).t()),
    ("amid a larger one", |x, device| {
        let (rows, columns) = (x.dims[0], x.dims[1]);
        let pad = |rows, columns| Tensor::full([rows, columns], 7.0, x.dtype, device);
        let wide = Tensor::cat(&[pad(rows, 3)?, x.upload(device), pad(rows, 2)?], 1)?;
        let whole = Tensor::cat(&[pad(1, columns + 5)?, wide], 0)?;
        whole.eval()?;
        whole.narrow(0, 1, rows)?.narrow(1, 3, columns)
    }),
    ("every other element", |x, device| {
        let x = x.upload(device);
        let doubled = Tensor::stack(&[&x, &x.zeros_like()?], 2)?.flatten(1, 2)?;
        doubled.eval()?;
        doubled.slice(1, .., 2)
    }),
    ("backwards", |x, device| {
        let (rows, columns) = (x.dims[0], x.dims[1]);
        let back = x.pick(&x.dims, |index| vec![rows - 1 - index[0], columns - 1 - index[1]]);
        back.upload(device).slice(0, .., -1)?.slice(1, .., -1)
    }),
    ("computed", |x, device| x.map(|v| -v).upload(device).neg()),
];

fn turned(x: &Array) -> Array {
    x.pick(&[x.dims[1], x.dims[0]], |index| vec![index[1], index[0]])
}

fn views_multiply(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for [m, k, n] in [[1, 40, 9], [9, 40, 1], [7, 5, 3], [65, 34, 50]] {
            let (a, b) = (Array::tame(dtype, &[m, k], 45), Array::tame(dtype, &[k, n], 46));
            for (a_name, read_a) in READINGS {
                for (b_name, read_b) in READINGS {
                    let got = read_a(&a, device).and_then(|a| a.matmul(&read_b(&b, device)?));
                    check(&format!("{dtype} {:?} {a_name} x {:?} {b_name}", a.dims, b.dims), got, &a, &b);
                }
            }
            // A row and a column, repeated without copies.
            let (row, column) = (Array::tame(dtype, &[1, k], 47), Array::tame(dtype, &[k, 1], 48));
            let repeated =
                row.upload(device).expand([m, k]).and_then(|a| a.matmul(&column.upload(device).expand([k, n])?));
            check(&format!("{dtype} repeated"), repeated, &row.broadcast(&[m, k]), &column.broadcast(&[k, n]));
        }
    }
}

fn vectors_multiply(device: &Device) {
    /// Shapes of the operands, of these as matrices, and of the product.
    const SHAPES: [[&[usize]; 5]; 6] = [
        [&[70], &[70], &[1, 70], &[70, 1], &[]],
        [&[5], &[5, 33], &[1, 5], &[5, 33], &[33]],
        [&[33, 5], &[5], &[33, 5], &[5, 1], &[33]],
        [&[4, 3, 5], &[5], &[4, 3, 5], &[4, 5, 1], &[4, 3]],
        [&[5], &[4, 5, 3], &[4, 1, 5], &[4, 5, 3], &[4, 3]],
        [&[0], &[0], &[1, 0], &[0, 1], &[]],
    ];
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        for [left, right, left_matrix, right_matrix, result] in SHAPES {
            let (a, b) = (Array::tame(dtype, left, 49), Array::tame(dtype, right, 50));
            let as_matrix = |x: &Array, dims: &[usize]| {
                let whole = dims.iter().product::<usize>() == x.values.len();
                let last = &dims[dims.len() - 2..];
                let matrix = Array::new(x.dtype, if whole { dims } else { last }, x.values.clone());
                matrix.broadcast(dims)
            };
            let (mut want, magnitudes) = product(&as_matrix(&a, left_matrix), &as_matrix(&b, right_matrix));
            want.dims = result.to_vec();
            let got = a.upload(device).matmul(&b.upload(device));
            assert_close(format!("{dtype} {left:?} x {right:?}"), got, &want, |i| sum_slack(magnitudes[i], dtype));
        }
    }
}

fn epilogues(device: &Device) {
    type Epilogue = (&'static str, fn(&[Tensor; 4]) -> Result<Tensor>, fn(f64, f64, f64) -> f64);
    /// What is computed of two matrices, a bias and a residual; and the same of an element of their product.
    const EPILOGUES: [Epilogue; 7] = [
        ("bias", |[a, b, bias, _]| a.matmul(b)?.add(bias), |x, bias, _| x + bias),
        ("bias, relu", |[a, b, bias, _]| a.matmul(b)?.add(bias)?.relu(), |x, bias, _| (x + bias).max(0.0)),
        ("bias, gelu", |[a, b, bias, _]| a.matmul(b)?.add(bias)?.gelu(), |x, bias, _| gelu(x + bias)),
        ("residual", |[a, b, _, residual]| residual.add(a.matmul(b)?), |x, _, residual| residual + x),
        (
            "all",
            |[a, b, bias, residual]| a.matmul(b)?.add(bias)?.gelu()?.add(residual),
            |x, bias, r| gelu(x + bias) + r,
        ),
        ("relu", |[a, b, ..]| a.matmul_with_activation(b, Activation::ReLU), |x, _, _| x.max(0.0)),
        ("gelu", |[a, b, ..]| a.matmul_with_activation(b, Activation::GELU), |x, _, _| gelu(x)),
    ];
    for dtype in dtypes(device, DType::is_float) {
        for [m, k, n] in [[1, 40, 70], [5, 33, 7], [66, 70, 130], [33, 0, 5]] {
            let shapes: [&[usize]; 4] = [&[m, k], &[k, n], &[n], &[m, n]];
            let arrays = [0, 1, 2, 3].map(|i| Array::tame(dtype, shapes[i], 51 + i as u64));
            let tensors = arrays.each_ref().map(|x| x.upload(device));
            let [a, b, bias, residual] = &arrays;
            let (sums, magnitudes) = product(a, b);
            let bias = bias.broadcast(&[m, n]);
            for (name, fused, exact) in EPILOGUES {
                let at = |i: usize| [&sums, &bias, residual].map(|x| x.values[i].float());
                let values = (0..m * n).map(at).map(|[x, bias, r]| Value::Float(exact(x, bias, r)));
                let want = Array::new(dtype, &[m, n], values.collect());
                assert_close(format!("{name} {dtype} [{m}, {k}, {n}]"), fused(&tensors), &want, |i| {
                    // gelu is steeper than 1, by little.
                    let total: f64 = at(i).iter().map(|x| x.abs()).sum();
                    2.0 * sum_slack(magnitudes[i] + total, dtype) + slack(total, dtype)
                });
            }
        }
    }
}

fn gelu(x: f64) -> f64 {
    x / (1.0 + (-(8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).exp())
}

fn special_values_multiply(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for [m, k, n] in [[1, 20, 5], [40, 70, 33]] {
            let mut a = Array::tame(dtype, &[m, k], 55);
            a.values[0] = Value::Float(f64::NAN);
            a.values[m * k - 1] = Value::Float(f64::INFINITY);
            let b = Array::tame(dtype, &[k, n], 56);
            check(&format!("{dtype} with NaN and infinity"), a.upload(device).matmul(&b.upload(device)), &a, &b);
        }
        // Beyond what f16 holds, on the way.
        let (a, b) =
            (Array::floats(dtype, &[1, 3], [300.0, -300.0, 1.0]), Array::floats(dtype, &[3, 1], [300.0, 300.0, 2.0]));
        let (want, exact) = (Array::floats(dtype, &[1, 1], [2.0]), |_| 90_000.0 * unit(dtype));
        assert_close(format!("{dtype} cancels"), a.upload(device).matmul(&b.upload(device)), &want, exact);
    }
}

/// Large enough for a library's product, where there is one, with the relu in place behind it.
fn relu_of_a_large_product(device: &Device) {
    let [m, k, n] = [520, 512, 1024];
    if device.to_string().starts_with("soft") {
        return; // minutes, for what smaller sizes show as well
    }
    let (row, column) = (|i: usize| (i % 5) as f64 - 2.0, |j: usize| (j % 7) as f64 - 3.0);
    for dtype in dtypes(device, DType::is_float) {
        // Sums of k equal terms, exact in every dtype; and a row of NaN.
        let mut a = Array::floats(dtype, &[m, k], (0..m * k).map(|i| row(i / k)));
        a.values[3 * k + 5] = Value::Float(f64::NAN);
        let b = Array::floats(dtype, &[k, n], (0..k * n).map(|i| column(i % n) / k as f64));
        let bias = Array::floats(dtype, &[n], (0..n).map(|j| (j % 3) as f64 - 1.0));
        let relu = |bias: bool| {
            let of = move |i: usize| row(i / n) * column(i % n) + if bias { (i % n % 3) as f64 - 1.0 } else { 0.0 };
            let value = move |i: usize| if i / n == 3 { f64::NAN } else { of(i).max(0.0) };
            Array::floats(dtype, &[m, n], (0..m * n).map(value))
        };
        let (a, b, bias) = (a.upload(device), b.upload(device), bias.upload(device));
        let product = a.matmul(&b).unwrap();
        assert_close(format!("{dtype} relu"), product.relu(), &relu(false), |_| 0.0);
        let biased = product.add(&bias).and_then(|x| x.relu());
        assert_close(format!("{dtype} relu of a sum"), biased, &relu(true), |_| 0.0);
    }
}

fn operands_are_checked(device: &Device) {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, device).unwrap();
    let refused = |a: &[usize], b: &[usize]| zeros(a, DType::F32).matmul(&zeros(b, DType::F32)).is_err();
    assert!(refused(&[2, 3], &[2, 3]), "inner sizes");
    assert!(refused(&[2, 2, 3], &[3, 3, 2]), "batches");
    assert!(refused(&[], &[2, 2]) && refused(&[2], &[]), "scalars");
    assert!(refused(&[3], &[2]), "vectors");
    assert!(zeros(&[2, 2], DType::F32).matmul(&zeros(&[2, 2], DType::F16)).is_err(), "dtypes");
    assert!(zeros(&[2, 2], DType::Bool).matmul(&zeros(&[2, 2], DType::Bool)).is_err(), "bool");
}
