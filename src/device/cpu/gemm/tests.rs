use super::*;
use crate::dtype::Element;
use half::{bf16, f16};
use std::sync::Mutex;

/// A matrix in a larger buffer of `S`, `[rows, cols]` with the strides of `layout`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Rows,
    Cols,
    /// Rows with gaps between the elements.
    Spread,
    /// Rows, last element first.
    Reversed,
    /// One row for all.
    Repeated,
    /// One element for all.
    Constant,
}

const LAYOUTS: [Layout; 6] =
    [Layout::Rows, Layout::Cols, Layout::Spread, Layout::Reversed, Layout::Repeated, Layout::Constant];

impl Layout {
    /// Elements needed, row stride, column stride and where element (0, 0) is.
    fn place(self, rows: usize, cols: usize) -> (usize, isize, isize, isize) {
        let (r, c) = (rows as isize, cols as isize);
        match self {
            Layout::Rows => (rows * cols, c, 1, 0),
            Layout::Cols => (rows * cols, 1, r, 0),
            Layout::Spread => (rows * cols * 3, c * 3, 3, 1),
            Layout::Reversed => (rows * cols, -c, -1, r * c - 1),
            Layout::Repeated => (cols, 0, 1, 0),
            Layout::Constant => (1, 0, 0, 0),
        }
    }
}

/// Operand elements that can be made from small integers.
trait Value: Element {
    /// What products are summed in.
    type Sum: Accumulator + PartialEq + std::fmt::Debug;
    fn from_small(v: i32) -> Self;
    fn sum_to_f64(sum: Self::Sum) -> f64;
}

macro_rules! values {
    ($($t:ty, $sum:ty, |$v:ident| $make:expr;)+) => {$(
        impl Value for $t {
            type Sum = $sum;
            fn from_small($v: i32) -> Self {
                $make
            }
            fn sum_to_f64(sum: $sum) -> f64 {
                sum as f64
            }
        }
    )+};
}

values! {
    f16, f32, |v| f16::from_f32(v as f32 / 4.0);
    bf16, f32, |v| bf16::from_f32(v as f32 / 4.0);
    f32, f32, |v| v as f32 / 4.0;
    f64, f64, |v| v as f64 / 4.0;
    i64, i64, |v| v as i64;
    i32, i32, |v| v;
    u32, u32, |v| v.unsigned_abs();
    u8, u8, |v| v.unsigned_abs() as u8;
}

/// The instruction sets that this machine can run.
fn isas() -> impl Iterator<Item = Isa> {
    [Isa::Plain, Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::detect())
}

/// `n` small integers, -8 to 8, from a fixed sequence; sums of their products are exact in f32.
fn values<S: Value>(n: usize, seed: u64) -> Vec<S> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        S::from_small((state >> 33) as i32 % 17 - 8)
    };
    (0..n).map(next).collect()
}

/// Operands of a batch of products, as the test sees them.
struct Case<S> {
    size: [usize; 3],
    a: Vec<S>,
    b: Vec<S>,
    strides: [isize; 4],
    a_offsets: Vec<isize>,
    b_offsets: Vec<isize>,
}

impl<S: Value> Case<S> {
    fn new(size: [usize; 3], layouts: [Layout; 2], batch: usize) -> Self {
        let [m, n, k] = size;
        let (a_size, a_row, a_col, a_start) = layouts[0].place(m, k);
        let (b_size, b_row, b_col, b_start) = layouts[1].place(k, n);
        Case {
            size,
            a: values(a_size * batch, 1 + m as u64),
            b: values(b_size * batch, 1000 + n as u64),
            strides: [a_row, a_col, b_row, b_col],
            a_offsets: (0..batch).map(|i| (i * a_size) as isize + a_start).collect(),
            // Every other pair has the B of the pair before.
            b_offsets: (0..batch).map(|i| (i / 2 * b_size) as isize + b_start).collect(),
        }
    }

    fn run(&self, isa: Isa) -> Vec<S::Sum> {
        let ([m, n, k], [a_row, a_col, b_row, b_col]) = (self.size, self.strides);
        let mat =
            |ptr: *const S, row_stride, col_stride| Mat { ptr: ptr.cast(), dtype: S::DTYPE, row_stride, col_stride };
        let g = Gemm {
            m,
            n,
            k,
            a: mat(self.a.as_ptr(), a_row, a_col),
            b: mat(self.b.as_ptr(), b_row, b_col),
            a_offsets: &self.a_offsets,
            b_offsets: &self.b_offsets,
            isa,
            ahead: None,
        };
        let out = Mutex::new(vec![None; self.a_offsets.len() * m * n]);
        let sink = |batch: usize, row: usize, col: usize, sums: &mut [S::Sum]| {
            assert!(batch < self.a_offsets.len() && row < m && col + sums.len() <= n);
            let start = (batch * m + row) * n + col;
            for (slot, &sum) in out.lock().unwrap()[start..].iter_mut().zip(sums.iter()) {
                assert_eq!(slot.replace(sum), None, "a sum came twice");
            }
        };
        // SAFETY: the buffers were sized for the strides and offsets, and the machine has `isa`.
        unsafe { gemm(&g, &sink) };
        out.into_inner().unwrap().into_iter().map(|sum| sum.expect("every sum comes")).collect()
    }

    /// The same by definition.
    fn naive(&self) -> Vec<f64> {
        let ([m, n, k], [a_row, a_col, b_row, b_col]) = (self.size, self.strides);
        let mut out = Vec::new();
        for (&a_start, &b_start) in self.a_offsets.iter().zip(&self.b_offsets) {
            for (i, j) in (0..m as isize).flat_map(|i| (0..n as isize).map(move |j| (i, j))) {
                let term = |p: isize| {
                    let a = self.a[(a_start + i * a_row + p * a_col) as usize];
                    a.to_f64() * self.b[(b_start + p * b_row + j * b_col) as usize].to_f64()
                };
                out.push((0..k as isize).map(term).sum());
            }
        }
        out
    }

    /// Compares, exactly: the values are such that no sum rounds.
    fn check(&self, isa: Isa) {
        let wrap = |v: f64| if S::DTYPE == DType::U8 { v.rem_euclid(256.0) } else { v };
        let (got, want) = (self.run(isa), self.naive());
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let (got, want) = (S::sum_to_f64(got), wrap(want));
            assert_eq!(got, want, "{:?} {:?} {} sum {i}", self.size, self.strides, isa.name());
        }
    }
}

fn check_sizes<S: Value>() {
    const SIZES: [[usize; 3]; 18] = [
        [0, 5, 5],
        [5, 0, 5],
        [5, 5, 0],
        [300, 2, 0],
        [1, 1, 1],
        [1, 70, 9],
        [4, 33, 37],
        [70, 3, 35],
        [5, 5, 1],
        [5, 15, 8],
        [6, 16, 17],
        [7, 17, 33],
        [8, 8, 8],
        [12, 32, 40],
        [13, 33, 2],
        [33, 31, 100],
        [101, 130, 23],
        [37, 45, 601],
    ];
    for size in SIZES {
        for layouts in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| [a, b])) {
            isas().for_each(|isa| Case::<S>::new(size, layouts, 1).check(isa));
        }
    }
}

#[test]
fn every_size_and_layout_f16() {
    check_sizes::<f16>();
}

#[test]
fn every_size_and_layout_bf16() {
    check_sizes::<bf16>();
}

#[test]
fn every_size_and_layout_f32() {
    check_sizes::<f32>();
}

#[test]
fn every_size_and_layout_f64() {
    check_sizes::<f64>();
}

#[test]
fn every_size_and_layout_ints() {
    check_sizes::<i64>();
    check_sizes::<i32>();
    check_sizes::<u32>();
    check_sizes::<u8>();
}

#[test]
fn batches_with_offsets() {
    for (size, batch) in [([8, 8, 8], 50), ([3, 40, 20], 5), ([130, 70, 40], 7), ([200, 20, 300], 4)] {
        for isa in isas() {
            for layouts in
                [[Layout::Rows, Layout::Rows], [Layout::Cols, Layout::Reversed], [Layout::Repeated, Layout::Cols]]
            {
                Case::<f32>::new(size, layouts, batch).check(isa);
                Case::<bf16>::new(size, layouts, batch).check(isa);
                Case::<i32>::new(size, layouts, batch).check(isa);
            }
        }
    }
}

/// Constant operands keep the buffers small; every sum of a batch element is the same.
#[test]
fn operands_beyond_a_wave() {
    // By columns; not even one panel; several matrices, a few of them at once.
    for (size, batch) in [([100, 200, 40_000], 1), ([100, 5, 300_000], 1), ([100, 48, 50_000], 6)] {
        let case = Case::<f32>::new(size, [Layout::Repeated, Layout::Constant], batch);
        let got = case.run(Isa::detect());
        let one = Case { size: [1, 1, size[2]], ..case };
        for (sums, want) in got.chunks_exact(size[0] * size[1]).zip(one.naive()) {
            assert!(sums.iter().all(|&sum| f64::from(sum) == want), "{size:?}");
        }
    }
}

#[test]
fn integers_wrap() {
    let big = Case::<i32> {
        size: [6, 6, 3],
        a: vec![i32::MAX; 18],
        b: vec![i32::MAX; 18],
        strides: [3, 1, 6, 1],
        a_offsets: vec![0],
        b_offsets: vec![0],
    };
    let want = i32::MAX.wrapping_mul(i32::MAX).wrapping_mul(3);
    isas().for_each(|isa| assert!(big.run(isa).iter().all(|&sum| sum == want)));
}

/// Random values, where the order of the sums shows.
fn rounding_case(size: [usize; 3], layouts: [Layout; 2], batch: usize) -> Case<f32> {
    let mut case = Case::<f32>::new(size, layouts, batch);
    for (i, v) in case.a.iter_mut().chain(&mut case.b).enumerate() {
        *v = *v * 0.123 + (i % 101) as f32 * 0.0137;
    }
    case
}

#[test]
fn close_to_f64_when_sums_round() {
    for (size, layouts) in [([130, 140, 700], [Layout::Rows; 2]), ([2, 300, 5000], [Layout::Rows, Layout::Cols])] {
        let case = rounding_case(size, layouts, 1);
        for isa in isas() {
            for (got, want) in case.run(isa).into_iter().zip(case.naive()) {
                assert!((f64::from(got) - want).abs() <= 1e-5 * want.abs().max(100.0), "{got} {want}");
            }
        }
    }
}

#[test]
fn same_bits_on_one_thread_and_on_many() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (size, batch) in [([200, 300, 520], 1), ([2, 900, 700], 3), ([900, 2, 700], 1), ([64, 64, 64], 20)] {
        let case = rounding_case(size, [Layout::Rows; 2], batch);
        for isa in isas() {
            // A job that runs in a rayon worker keeps its work to itself.
            let alone = one.install(|| case.run(isa));
            let together = case.run(isa);
            assert!(alone.iter().zip(&together).all(|(x, y)| x.to_bits() == y.to_bits()), "{size:?}");
        }
    }
}

#[test]
fn nan_stays_in_its_row_and_column() {
    for size in [[7, 18, 9], [2, 18, 40], [18, 2, 40]] {
        let [m, n, k] = size;
        for isa in isas() {
            let mut case = Case::<f16>::new(size, [Layout::Rows; 2], 1);
            case.a[k] = f16::NAN;
            case.b[n - 1] = f16::INFINITY;
            for (i, sum) in case.run(isa).into_iter().enumerate() {
                let (row, col) = (i / n, i % n);
                assert_eq!(row == 1, sum.is_nan() && (row == 1 || col != n - 1), "{m}x{n} at {row},{col}");
            }
        }
    }
}

/// A sink may compute a product itself.
#[test]
fn a_sink_may_call_back() {
    let (outer, inner) =
        (Case::<f32>::new([9, 20, 30], [Layout::Rows; 2], 1), Case::<f32>::new([8, 8, 8], [Layout::Rows; 2], 1));
    let want = outer.naive();
    let mat = |ptr: *const f32, row_stride| Mat { ptr: ptr.cast(), dtype: DType::F32, row_stride, col_stride: 1 };
    let (m, n, k, isa) = (9, 20, 30, Isa::detect());
    let (a, b) = (mat(outer.a.as_ptr(), 30), mat(outer.b.as_ptr(), 20));
    let g = Gemm { m, n, k, a, b, a_offsets: &[0], b_offsets: &[0], isa, ahead: None };
    let sink = |_: usize, row: usize, col: usize, sums: &mut [f32]| {
        inner.check(isa);
        assert!(sums.iter().zip(&want[row * n + col..]).all(|(&got, &want)| f64::from(got) == want));
    };
    // SAFETY: the operands are 9 x 30 and 30 x 20, row by row, and the machine has `isa`.
    unsafe { gemm(&g, &sink) };
}
