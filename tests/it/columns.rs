//! Folds along the first axis, whose columns lie side by side: sizes around packets, segments and groups of threads.

use crate::oracle::{Array, assert_equal, on_every_device};
use tensorlogic::{DType, Device, Result, Tensor, eval};

on_every_device! {
    sizes_around_packets_and_segments,
    columns_of_parts_of_a_matrix,
    columns_of_a_batch,
    values_beside_the_folds,
    several_folds_of_what_is_stored,
    what_is_not_finite_stays_in_its_column,
    positions_are_the_first_ones,
}

/// Whole numbers from -6 to 6: their sums are exact in f32, in any order.
fn whole(i: usize) -> f64 {
    (i * 7919 % 104_729 % 13) as f64 - 6.0
}

fn matrix(dtype: DType, rows: usize, columns: usize) -> Array {
    let value = |i: usize| if dtype == DType::U8 { whole(i) + 6.0 } else { whole(i) };
    if dtype.is_float() {
        Array::floats(dtype, &[rows, columns], (0..rows * columns).map(value))
    } else {
        Array::ints(dtype, &[rows, columns], (0..rows * columns).map(|i| value(i) as i64))
    }
}

/// A number a column: what `f` makes of the column's elements.
fn columns(x: &Array, dtype: DType, f: impl Fn(&[f64]) -> f64) -> Array {
    let [rows, columns] = x.dims[..] else { panic!("a matrix") };
    let of_column = |c: usize| f(&(0..rows).map(|r| x.values[r * columns + c].float()).collect::<Vec<_>>());
    let all = (0..columns).map(of_column);
    if dtype.is_float() {
        Array::floats(dtype, &[columns], all)
    } else {
        Array::ints(dtype, &[columns], all.map(|x| x as i64))
    }
}

fn sum(column: &[f64]) -> f64 {
    column.iter().sum()
}

fn sizes_around_packets_and_segments(device: &Device) {
    for dtype in [DType::F16, DType::F32, DType::U8, DType::I64] {
        for rows in [1, 31, 32, 33, 256, 257, 271, 273, 1030] {
            for width in [31, 32, 33, 34, 36, 40, 63, 64, 65, 256, 264, 516] {
                let x = matrix(dtype, rows, width);
                let what = format!("{dtype} {rows}x{width}");
                assert_equal(format!("sum of {what}"), x.upload(device).sum(0), &columns(&x, dtype.sum(), sum));
            }
        }
    }
}

/// Parts that begin and lie where packets would be aligned, and where not.
fn columns_of_parts_of_a_matrix(device: &Device) {
    for (rows, columns_of_all) in [(300, 80), (300, 81), (40, 84)] {
        let all = matrix(DType::F16, rows + 3, columns_of_all);
        let stored = all.upload(device);
        for (row, column, width) in [(0, 8, 64), (1, 8, 48), (3, 1, 64), (2, 4, 40), (0, 2, 33), (1, 6, 50)] {
            let part = all.pick(&[rows, width], |at| vec![row + at[0], column + at[1]]);
            let got = stored.narrow(0, row, rows).and_then(|x| x.narrow(1, column, width)?.sum(0));
            let what = format!("{rows}x{width} at {row}, {column} of {columns_of_all} columns");
            assert_equal(what, got, &columns(&part, DType::F16, sum));
        }
    }
}

fn columns_of_a_batch(device: &Device) {
    let (batch, rows, width) = (5, 70, 24);
    let x = matrix(DType::F16, batch * rows, width);
    let want = (0..batch * width).map(|i| {
        let (b, c) = (i / width, i % width);
        (0..rows).map(|r| x.values[(b * rows + r) * width + c].float()).sum()
    });
    let got = x.upload(device).reshape((batch, rows, width)).and_then(|x| x.sum(1));
    assert_equal("a batch", got, &Array::floats(DType::F16, &[batch, width], want));
}

/// A number a column that is read by the elements and by what follows the fold.
fn values_beside_the_folds(device: &Device) {
    for (rows, width) in [(40, 64), (700, 264), (700, 41)] {
        let (x, y) = (matrix(DType::F16, rows, width), matrix(DType::F16, rows + 1, width));
        let shift = Array::floats(DType::F16, &[width], (0..width).map(whole));
        let each = Array::floats(DType::F16, &[rows, 1], (0..rows).map(|i| whole(i + 5)));
        let want = (0..width).map(|c| {
            let at = |x: &Array, r: usize| x.values[r * width + c].float();
            let shift = shift.values[c].float();
            let terms = (0..rows).map(|r| (at(&x, r) - shift) * at(&y, r + 1) + each.values[r].float());
            terms.sum::<f64>() / 64.0 + shift
        });
        let want = Array::floats(DType::F16, &[width], want);
        let got = || -> Result<Tensor> {
            let (x, y, shift) = (x.upload(device), y.upload(device).narrow(0, 1, rows)?, shift.upload(device));
            let terms = (((x - &shift)? * y)? + each.upload(device))?;
            (terms.sum(0)? / 64.0)? + shift
        };
        assert_equal(format!("{rows}x{width}"), got(), &want);
    }
}

fn several_folds_of_what_is_stored(device: &Device) {
    for (rows, width) in [(50, 48), (600, 40), (600, 37)] {
        let x = matrix(DType::F16, rows, width);
        let stored = x.upload(device);
        let doubled = (&stored * 2.0).unwrap();
        let (sums, most) = (doubled.sum(0).unwrap(), doubled.max(0).unwrap());
        eval(&[&doubled, &sums, &most]).unwrap();
        let what = format!("{rows}x{width}");
        assert_equal(format!("{what}, stored"), Ok(doubled), &x.map(|x| 2.0 * x));
        assert_equal(format!("{what}, sums"), Ok(sums), &columns(&x, DType::F16, |c| 2.0 * sum(c)));
        let largest = |c: &[f64]| 2.0 * c.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert_equal(format!("{what}, largest"), Ok(most), &columns(&x, DType::F16, largest));
    }
}

fn what_is_not_finite_stays_in_its_column(device: &Device) {
    for (rows, width) in [(33, 40), (500, 64)] {
        let mut values: Vec<f64> = (0..rows * width).map(whole).collect();
        for (row, column, value) in [(0, 3, f64::INFINITY), (rows - 1, 9, f64::NAN), (7, 39, f64::NEG_INFINITY)] {
            values[row * width + column] = value;
        }
        let x = Array::floats(DType::F16, &[rows, width], values);
        assert_equal("sum", x.upload(device).sum(0), &columns(&x, DType::F16, sum));
        let largest = |c: &[f64]| {
            c.iter().copied().fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
        };
        assert_equal("max", x.upload(device).max(0), &columns(&x, DType::F16, largest));
    }
}

fn positions_are_the_first_ones(device: &Device) {
    for dtype in [DType::F16, DType::I32] {
        for (rows, width) in [(33, 40), (700, 64), (700, 65)] {
            let x = matrix(dtype, rows, width);
            let first =
                |column: &[f64]| (1..column.len()).fold(0, |best, i| if column[i] > column[best] { i } else { best });
            assert_equal(
                format!("{dtype} {rows}x{width}"),
                x.upload(device).argmax(0),
                &columns(&x, DType::I64, |c| first(c) as f64),
            );
        }
    }
}
