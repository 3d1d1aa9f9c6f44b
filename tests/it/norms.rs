//! Softmax, normalisations and losses.

use crate::oracle::{Array, Value, assert_close, dtypes, indices, on_every_device, slack, total, unit};
use half::f16;
use tensorlogic::{DType, Device, Result, Tensor};

on_every_device! {
    softmaxes,
    softmax_of_extremes,
    long_narrow_softmax_sums_to_one,
    layer_norms,
    rms_norms,
    cross_entropies,
    squared_errors,
    operands_are_checked,
}

/// What a function makes of each row along a dimension; rows keep their length, or shrink to one element.
fn along(x: &Array, dim: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let (len, inner): (usize, usize) = (x.dims[dim], x.dims[dim + 1..].iter().product());
    let mut out = vec![0.0; x.values.len()];
    for (at, _) in indices(&x.dims).enumerate().filter(|(_, index)| index[dim] == 0) {
        let row: Vec<f64> = (0..len).map(|i| x.values[at + i * inner].float()).collect();
        f(&row).into_iter().enumerate().for_each(|(i, y)| out[at + i * inner] = y);
    }
    out
}

/// The largest element, and the logarithm of the sum of exp(x - largest).
fn log_total(row: &[f64]) -> (f64, f64) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (largest, total(row.iter().map(|x| (x - largest).exp())).ln())
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let (largest, rest) = log_total(row);
    row.iter().map(|x| x - largest - rest).collect()
}

fn logsumexp(row: &[f64]) -> Vec<f64> {
    let (largest, rest) = log_total(row);
    vec![largest + rest]
}

/// Exact values, not rounded yet.
fn exact(dtype: DType, dims: &[usize], values: &[f64]) -> Array {
    Array::new(dtype, dims, values.iter().map(|&x| Value::Float(x)).collect())
}

/// Fails unless a tensor is near these values: what is relative to each, and a part of `scale`.
fn assert_near(what: &str, got: Result<Tensor>, want: &Array, scale: f64) {
    let allowed = |i: usize| slack(want.values[i].float(), want.dtype) + 8.0 * unit(want.dtype) * scale;
    assert_close(what, got, want, allowed);
}

fn softmaxes(device: &Device) {
    const SHAPES: [&[usize]; 10] =
        [&[1], &[1025], &[5, 33], &[4, 1025], &[1025, 4], &[2, 20_000], &[3, 7, 5], &[2, 3, 4, 65], &[0, 3], &[3, 0]];
    for dtype in dtypes(device, DType::is_float) {
        for dims in SHAPES {
            let x = Array::tame(dtype, dims, 61).map(|x| 3.0 * x);
            let tensor = x.upload(device);
            for dim in 0..dims.len() {
                let what = |name| format!("{name} of {dtype} {dims:?} along {dim}");
                let log = along(&x, dim, log_softmax);
                let portions: Vec<f64> = log.iter().map(|x| x.exp()).collect();
                // Its argument, up to 12 plus ln of the length, rounds.
                assert_close(what("softmax"), tensor.softmax(dim), &exact(dtype, dims, &portions), |i| {
                    2.0 * slack(portions[i], dtype) + 16.0 * unit(dtype) * portions[i]
                });
                assert_near(&what("log_softmax"), tensor.log_softmax(dim), &exact(dtype, dims, &log), 12.0);
                if dims[dim] == 0 {
                    continue;
                }
                let mut reduced = dims.to_vec();
                reduced.remove(dim);
                let totals = along(&x, dim, logsumexp);
                let firsts: Vec<f64> =
                    indices(dims).zip(totals).filter(|(index, _)| index[dim] == 0).map(|(_, total)| total).collect();
                assert_near(&what("logsumexp"), tensor.logsumexp(dim), &exact(dtype, &reduced, &firsts), 12.0);
            }
        }
    }
}

fn softmax_of_extremes(device: &Device) {
    const MASKED: f64 = f64::NEG_INFINITY;
    /// A power of two, which every float dtype holds, and whose exponential none does.
    const FAR: f64 = 16384.0;
    /// Logits, and their softmax.
    const ROWS: [([f64; 4], [f64; 4]); 6] = [
        ([FAR; 4], [0.25; 4]),
        ([-FAR; 4], [0.25; 4]),
        ([FAR, FAR, -FAR, 0.0], [0.5, 0.5, 0.0, 0.0]),
        ([MASKED, 1.0, MASKED, 1.0], [0.0, 0.5, 0.0, 0.5]),
        ([MASKED; 4], [f64::NAN; 4]),
        ([f64::NAN, 1.0, 2.0, 3.0], [f64::NAN; 4]),
    ];
    for dtype in dtypes(device, DType::is_float) {
        for (row, want) in ROWS {
            let logits = Array::floats(dtype, &[4], row);
            let log = if want[0].is_nan() { want.to_vec() } else { along(&logits, 0, log_softmax) };
            let x = logits.upload(device);
            assert_near(&format!("softmax of {dtype} {row:?}"), x.softmax(0), &exact(dtype, &[4], &want), 0.0);
            assert_near(&format!("log_softmax of {dtype} {row:?}"), x.log_softmax(0), &exact(dtype, &[4], &log), 0.0);
        }
    }
}

fn long_narrow_softmax_sums_to_one(device: &Device) {
    const LEN: usize = 65_536;
    let x = Array::tame(DType::F16, &[4, LEN], 62).upload(device);
    let rows = x.softmax(1).unwrap().to_vec2::<f16>().unwrap();
    for row in rows {
        let total: f64 = row.iter().map(|p| p.to_f64()).sum();
        assert!((total - 1.0).abs() < 1e-3, "{total}");
    }
}

/// Rows of as many elements as the weight has, normalised as `f` says, times weight plus bias.
fn normalised(x: &Array, [weight, bias]: [&Array; 2], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let float = |x: &Array| x.values.iter().map(|v| v.float()).collect::<Vec<f64>>();
    let (weight, bias) = (float(weight), float(bias));
    let affine = |row: &[f64]| f(row).into_iter().enumerate().map(|(i, y)| y * weight[i] + bias[i]).collect::<Vec<_>>();
    float(x).chunks(weight.len()).flat_map(affine).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    total(values) / count
}

/// Shapes of an input, and how many of its last dimensions are normalised.
const NORMS: [(&[usize], usize); 8] = [
    (&[1, 8], 1),
    (&[5, 33], 1),
    (&[3, 1025], 1),
    (&[2, 17_000], 1),
    (&[300, 20], 1),
    (&[2, 3, 40], 1),
    (&[4, 6, 11], 2),
    (&[70], 1),
];
const EPS: f64 = 1e-5;

fn layer_norms(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for (dims, last) in NORMS {
            let tail = &dims[dims.len() - last..];
            let [x, weight, bias] =
                [(dims, 63), (tail, 64), (tail, 65)].map(|(dims, seed)| Array::tame(dtype, dims, seed));
            let none = bias.map(|_| 0.0);
            let centred = |row: &[f64]| {
                let mean = mean(row.iter().copied());
                let variance = self::mean(row.iter().map(|x| (x - mean).powi(2)));
                row.iter().map(|x| (x - mean) / (variance + EPS).sqrt()).collect()
            };
            let [tensor, w, b] = [&x, &weight, &bias].map(|x| x.upload(device));
            let what = format!("layer_norm of {dtype} {dims:?} over {last}");
            let want = |bias: &Array| exact(dtype, dims, &normalised(&x, [&weight, bias], centred));
            // Distances to the mean round relative to 2, and are scaled by weights up to 2.
            assert_near(&what, tensor.layer_norm(&w, Some(&b), EPS), &want(&bias), 4.0);
            assert_near(&format!("{what}, no bias"), tensor.layer_norm(&w, None, EPS), &want(&none), 4.0);
        }
    }
}

fn rms_norms(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for (dims, last) in NORMS {
            let tail = &dims[dims.len() - last..];
            let [x, weight] = [(dims, 66), (tail, 67)].map(|(dims, seed)| Array::tame(dtype, dims, seed));
            let scaled = |row: &[f64]| {
                let square = mean(row.iter().map(|x| x * x));
                row.iter().map(|x| x / (square + EPS).sqrt()).collect()
            };
            let want = exact(dtype, dims, &normalised(&x, [&weight, &weight.map(|_| 0.0)], scaled));
            let got = x.upload(device).rms_norm(&weight.upload(device), EPS);
            assert_near(&format!("rms_norm of {dtype} {dims:?} over {last}"), got, &want, 0.0);
        }
    }
    // Squares that f16 does not hold.
    let large = Tensor::full([1, 64], 3000.0, DType::F16, device).unwrap();
    let unit_weight = Tensor::ones(64, DType::F16, device).unwrap();
    assert_eq!(large.rms_norm(&unit_weight, 0.0).unwrap().to_vec::<f16>().unwrap(), [f16::ONE; 64]);
}

fn cross_entropies(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for [rows, classes] in [[1, 1], [1, 10], [40, 7], [5, 1025], [1030, 3]] {
            let logits = Array::tame(dtype, &[rows, classes], 68).map(|x| 4.0 * x);
            let class = |row: usize| row * 7 % classes;
            let log = along(&logits, 1, log_softmax);
            let want = mean((0..rows).map(|row| -log[row * classes + class(row)]));
            let wide = dtype.compute();
            for index in [DType::I64, DType::I32, DType::U32, DType::U8] {
                let targets = Array::ints(index, &[rows], (0..rows).map(|row| class(row).min(255) as i64));
                if class(rows - 1) > 255 || classes > 255 && index == DType::U8 {
                    continue;
                }
                let got = logits.upload(device).cross_entropy(&targets.upload(device));
                assert_near(&format!("{dtype} [{rows}, {classes}] by {index}"), got, &exact(wide, &[], &[want]), 16.0);
            }
        }
    }
    let logits = Tensor::zeros([2, 3], DType::F32, device).unwrap();
    for bad in [3, -1] {
        let targets = Tensor::from_vec(vec![0i64, bad], 2, device).unwrap();
        let loss = logits.cross_entropy(&targets).unwrap();
        assert!(loss.item::<f32>().is_err(), "class {bad} of 3");
    }
}

fn squared_errors(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for dims in [&[][..], &[33], &[5, 1025], &[40, 3]] {
            let [x, target] = [69, 70].map(|seed| Array::tame(dtype, dims, seed));
            let squares = x.values.iter().zip(&target.values).map(|(a, b)| (a.float() - b.float()).powi(2));
            let want = mean(squares);
            let got = x.upload(device).mse_loss(&target.upload(device));
            assert_near(&format!("{dtype} {dims:?}"), got, &exact(dtype.compute(), &[], &[want]), want);
        }
    }
}

fn operands_are_checked(device: &Device) {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, device).unwrap();
    let (x, whole) = (zeros(&[2, 3], DType::F32), zeros(&[2, 3], DType::I64));
    let (weight, other, short) = (zeros(&[3], DType::F32), zeros(&[3], DType::F16), zeros(&[2], DType::F32));
    assert!(x.softmax(2).is_err() && whole.softmax(0).is_err() && whole.logsumexp(0).is_err());
    assert!(x.layer_norm(&short, None, EPS).is_err() && x.layer_norm(&weight, Some(&short), EPS).is_err());
    assert!(
        x.layer_norm(&other, None, EPS).is_err()
            && x.rms_norm(&other, EPS).is_err()
            && x.rms_norm(&short, EPS).is_err()
    );
    assert!(x.cross_entropy(&zeros(&[2], DType::F32)).is_err(), "targets that are floats");
    assert!(x.cross_entropy(&zeros(&[3], DType::I64)).is_err(), "targets of another length");
    assert!(x.mse_loss(&zeros(&[2, 3], DType::F16)).is_err() && whole.mse_loss(&whole).is_err());
}

#[test]
fn short_rows_computed_together_have_the_bits_of_rows_alone() -> Result<()> {
    type Call = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;
    const CALLS: [(&str, Call); 8] = [
        ("softmax", |x, _, _| x.softmax(1)),
        ("layer norm", |x, row, _| x.layer_norm(row, Some(row), 1e-5)),
        ("rms norm", |x, row, _| x.rms_norm(row, 1e-5)),
        ("sum", |x, _, _| x.sum_keepdim(1)),
        ("sum of what a row scales", |x, _, column| (x * column)?.sum_keepdim(1)),
        ("what is one a row comes first", |x, row, column| (column - x)?.mul(row)? / x.exp()?.sum_keepdim(1)?),
        ("sums of sums", |x, _, _| (x - x.sum_keepdim(1)?)?.sqr()?.sum_keepdim(1)? + 1.0),
        ("choices", |x, row, column| x.gt(column)?.where_cond(x, row)? - x.max_keepdim(1)?),
    ];
    let cpu = Device::cpu();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        for (rows, width) in [(131, 256), (200, 100), (1030, 64), (129, 512)] {
            let wide = Tensor::randn((rows, width + 40), dtype, &cpu)?;
            let (row, column) = (Tensor::randn(width, dtype, &cpu)?, Tensor::randn((rows, 1), dtype, &cpu)?);
            let straight = wide.narrow(1, 0, width)?.contiguous()?;
            [&wide, &row, &column, &straight].into_iter().try_for_each(Tensor::eval)?;
            for (x, layout) in [(straight, "straight"), (wide.narrow(1, 8, width)?, "strided")] {
                for (name, call) in CALLS {
                    let bits = |x: &Tensor| x.to_dtype(DType::F64)?.to_vec::<f64>();
                    let together = bits(&call(&x, &row, &column)?)?;
                    // So few that each is computed by itself.
                    let mut alone = Vec::new();
                    for first in (0..rows).step_by(100) {
                        let n = 100.min(rows - first);
                        alone.extend(bits(&call(&x.narrow(0, first, n)?, &row, &column.narrow(0, first, n)?)?)?);
                    }
                    let same = alone.iter().zip(&together).all(|(x, y)| x.to_bits() == y.to_bits());
                    assert!(same && alone.len() == together.len(), "{name} {dtype} {rows}x{width} {layout}");
                }
            }
        }
    }
    Ok(())
}
