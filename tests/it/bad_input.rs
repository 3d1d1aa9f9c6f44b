//! Bad and odd calls: each gives an error whose message names the op, the values and what is wrong, or
//! NumPy's answer. None panics.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tensorlogic::{DType, Device, Error, Result, Shape, Tensor};

/// What a call must come to.
enum Want {
    /// An error whose message contains each of these.
    Refused(&'static [&'static str]),
    /// This, as [`Settle`] writes it.
    Gives(&'static str),
}

/// The outcome of a call as text; tensors are computed.
trait Settle {
    fn settle(self) -> Result<String>;
}

impl Settle for Result<Tensor> {
    /// Sizes, dtype and elements: `[2] f32 [1.0, 2.0]`.
    fn settle(self) -> Result<String> {
        let tensor = self?;
        let values = tensor.to_dtype(DType::F64)?.to_vec::<f64>()?;
        Ok(format!("{:?} {} {values:?}", tensor.dims(), tensor.dtype()))
    }
}

impl Settle for Result<Vec<Tensor>> {
    fn settle(self) -> Result<String> {
        let parts: Vec<String> = self?.into_iter().map(|t| Ok(t).settle()).collect::<Result<_>>()?;
        Ok(parts.join(", "))
    }
}

macro_rules! settle_as_printed {
    ($($t:ty),+) => {$(
        impl Settle for Result<$t> {
            fn settle(self) -> Result<String> {
                self.map(|value| format!("{value:?}"))
            }
        }
    )+};
}
settle_as_printed!((), f32, i64, usize, Vec<f32>, Vec<i64>, Vec<Vec<f32>>, DType, Device, Shape, String);

/// The failures among rows `call => Refused(words)` or `call => Gives(text)`.
macro_rules! failures {
    ($($call:expr => $want:ident($($text:tt)+);)+) => {
        [$(failure(stringify!($call), || $call.settle(), Want::$want(failures!(@$want $($text)+)))),+]
            .into_iter()
            .flatten()
            .collect::<Vec<String>>()
    };
    (@Refused $($word:literal),+) => { &[$($word),+] };
    (@Gives $text:literal) => { $text };
}

fn failure(call: &str, run: impl FnOnce() -> Result<String>, want: Want) -> Option<String> {
    let Ok(outcome) = catch_unwind(AssertUnwindSafe(run)) else {
        return Some(format!("{call}: panics"));
    };
    match (outcome, want) {
        (Ok(got), Want::Gives(text)) if got == text => None,
        (Err(error), Want::Refused(words)) if words.iter().all(|word| error.to_string().contains(word)) => None,
        (got, Want::Gives(text)) => Some(differs(call, got, text)),
        (got, Want::Refused(words)) => Some(differs(call, got, words)),
    }
}

fn differs(call: &str, got: Result<String, Error>, want: impl Debug) -> String {
    let got = got.unwrap_or_else(|error| format!("error: {error}"));
    format!("{call}\n     got {got}\n    want {want:?}")
}

fn cpu() -> Device {
    Device::cpu()
}

/// 0, 1, 2, ... as f32.
fn floats(dims: &[usize]) -> Tensor {
    let count = dims.iter().product();
    Tensor::from_vec((0..count).map(|i: usize| i as f32).collect(), dims, &cpu()).unwrap()
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, values.len(), &cpu()).unwrap()
}

fn bools(values: &[bool]) -> Tensor {
    Tensor::from_slice(values, values.len(), &cpu()).unwrap()
}

#[test]
fn every_bad_call_is_an_error_and_every_odd_one_has_numpys_answer() {
    let failures = [
        creation(),
        huge(),
        operands(),
        dtypes(),
        numbers(),
        shapes(),
        slices(),
        joints(),
        reductions(),
        products(),
        normalisations(),
        indices(),
        reads(),
        names(),
    ]
    .concat();
    assert!(failures.is_empty(), "{} calls fail:\n{}", failures.len(), failures.join("\n"));
}

fn creation() -> Vec<String> {
    failures! {
        Tensor::from_slice(&[1f32, 2.0], (2, 2), &cpu()) => Refused("from_slice", "2 values", "4", "[2, 2]");
        Tensor::from_slice::<f32>(&[], (3, 0), &cpu()) => Gives("[3, 0] f32 []");
        Tensor::zeros([1; 9], DType::F32, &cpu()) => Refused("9 dimensions", "at most 8");
        Tensor::zeros((0, 3), DType::I32, &cpu()) => Gives("[0, 3] i32 []");
        Tensor::full(2, f64::NAN, DType::F32, &cpu()) => Gives("[2] f32 [NaN, NaN]");
        Tensor::full(2, f64::NAN, DType::I64, &cpu()) => Refused("full", "NaN", "i64");
        Tensor::full(2, 300, DType::U8, &cpu()) => Refused("full", "300", "u8");
        Tensor::full(2, -1, DType::U32, &cpu()) => Refused("full", "-1", "u32");
        Tensor::full((), 2, DType::Bool, &cpu()) => Refused("full", "2", "bool");
        Tensor::full((), 1e9, DType::F16, &cpu()) => Gives("[] f16 [inf]");
        Tensor::eye(0, DType::F32, &cpu()) => Gives("[0, 0] f32 []");
        Tensor::eye(2, DType::Bool, &cpu()) => Gives("[2, 2] bool [1.0, 0.0, 0.0, 1.0]");
        Tensor::arange_step(0, 5, 0, &cpu()) => Refused("arange", "0 to 5", "steps of 0");
        Tensor::arange(0.0, f64::INFINITY, &cpu()) => Refused("arange", "inf");
        Tensor::arange(f32::NAN, 1.0, &cpu()) => Refused("arange", "NaN");
        Tensor::arange(5i64, 0, &cpu()) => Gives("[0] i64 []");
        Tensor::arange_step(5i32, 0, -2, &cpu()) => Gives("[3] i32 [5.0, 3.0, 1.0]");
        Tensor::linspace(0.0, 1.0, 5, DType::I64, &cpu()) => Refused("linspace", "i64", "float");
        Tensor::linspace(0.0, f64::INFINITY, 5, DType::F32, &cpu()) => Refused("linspace", "finite", "inf");
        Tensor::linspace(2.0, 1.0, 1, DType::F32, &cpu()) => Gives("[1] f32 [2.0]");
        Tensor::linspace(0.0, 1.0, 0, DType::F32, &cpu()) => Gives("[0] f32 []");
        Tensor::rand(3, DType::I64, &cpu()) => Refused("rand", "i64", "float");
        Tensor::randn((2, 0), DType::F16, &cpu()) => Gives("[2, 0] f16 []");
        Tensor::randn(3, DType::Bool, &cpu()) => Refused("randn", "bool", "float");
    }
}

fn huge() -> Vec<String> {
    let half = 1usize << 40;
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &cpu()).unwrap();
    failures! {
        Tensor::zeros((usize::MAX, 2), DType::F32, &cpu()) => Refused("too many elements", "18446744073709551615");
        Tensor::zeros((usize::MAX, 0, 2), DType::F32, &cpu()) => Refused("too many elements");
        Tensor::eye(usize::MAX, DType::F32, &cpu()) => Refused("too many elements");
        Tensor::arange(0i64, i64::MAX, &cpu()) => Refused("too many elements");
        Tensor::arange(0i64, 1 << 45, &cpu()) => Refused("out of memory");
        Tensor::linspace(0.0, 1.0, 1 << 45, DType::F32, &cpu()) => Refused("out of memory");
        zeros(&[1 << 45]).to_vec::<f32>() => Refused("out of memory");
        zeros(&[half, 1]).add(zeros(&[1, half])) => Refused("too many elements");
        zeros(&[half, 1]).matmul(&zeros(&[1, half])) => Refused("too many elements");
        floats(&[2]).expand((half, 64, 2))?.exp()?.eval() => Refused("out of memory", "cpu", "bytes");
        zeros(&[half]).sum_all().map(|t| t.dims().len()) => Gives("0");
        zeros(&[half]).select(0, half - 1) => Gives("[] f32 [0.0]");
        floats(&[2]).expand((half, half, 2)) => Refused("too many elements");
        floats(&[1]).reshape_infer(&[isize::MAX, isize::MAX, -1]) => Refused("reshape");
        floats(&[4]).narrow(0, usize::MAX, 2) => Refused("narrow", "size 4");
        floats(&[4]).slice(0, ..=usize::MAX, 1) => Refused("slice");
        floats(&[4]).split(usize::MAX, 0) => Gives("[4] f32 [0.0, 1.0, 2.0, 3.0]");
        floats(&[2]).chunk(usize::MAX, 0) => Gives("[1] f32 [0.0], [1] f32 [1.0]");
    }
}

fn operands() -> Vec<String> {
    let (x, y) = (floats(&[2, 3]), floats(&[2, 1]));
    failures! {
        &x + &floats(&[4, 5]) => Refused("add", "[2, 3]", "[4, 5]", "3 and 5");
        &x * &floats(&[2]) => Refused("mul", "[2, 3]", "[2]");
        &x - &y => Gives("[2, 3] f32 [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]");
        &x + &floats(&[0]) => Refused("add", "[2, 3]", "[0]");
        &floats(&[0, 3]) + &floats(&[1]) => Gives("[0, 3] f32 []");
        &floats(&[1]) + &floats(&[1, 0]) => Gives("[1, 0] f32 []");
        &x + &ints(&[1, 2, 3]) => Refused("add", "f32", "i64", "to_dtype");
        x.maximum(ints(&[1])) => Refused("maximum", "f32", "i64");
        x.eq(ints(&[1, 2, 3])) => Refused("eq", "f32", "i64");
        x.clamp(floats(&[4]), 1.0) => Refused("clamp", "[2, 3]", "[4]");
        x.gt(0.5)?.where_cond(&x, ints(&[1, 2, 3])) => Refused("where_cond", "f32", "i64");
        x.where_cond(&x, &x) => Refused("where_cond", "f32", "bool");
        x.gt(0.5)?.where_cond(1.0, 2.0) => Refused("where_cond", "both branches are numbers");
        bools(&[true, false]).where_cond(&x, 0.0) => Refused("where_cond", "[2]", "[2, 3]");
        x.mse_loss(&floats(&[5])) => Refused("mse_loss", "[2, 3]", "[5]");
        x.fused_affine(&y, &floats(&[7])) => Refused("add", "[2, 3]", "[7]");
    }
}

fn dtypes() -> Vec<String> {
    let (whole, truth) = (ints(&[-1, 300]), bools(&[true, false]));
    let odd = Tensor::from_slice(&[f32::NAN, f32::INFINITY, -1.5, 300.0], 4, &cpu()).unwrap();
    failures! {
        whole.exp() => Refused("exp", "i64", "to_dtype");
        whole.softmax(0) => Refused("softmax", "i64", "to_dtype");
        whole.mean_all() => Refused("mean", "i64", "to_dtype");
        whole.var(0) => Refused("var", "i64", "to_dtype");
        whole.is_nan() => Refused("is_nan", "i64");
        whole.and(&whole) => Refused("and", "i64", "bool");
        &truth + &truth => Refused("add", "bool", "to_dtype");
        truth.sum_all() => Gives("[] i64 [1.0]");
        truth.max(0) => Gives("[] bool [1.0]");
        odd.not() => Refused("not", "f32", "bool");
        odd.to_dtype(DType::U8) => Gives("[4] u8 [0.0, 255.0, 0.0, 255.0]");
        odd.to_dtype(DType::Bool) => Gives("[4] bool [1.0, 1.0, 1.0, 1.0]");
        odd.to_dtype(DType::I32) => Gives("[4] i32 [0.0, 2147483647.0, -1.0, 300.0]");
        whole.to_dtype(DType::U8) => Gives("[2] u8 [255.0, 44.0]");
        "f16".parse::<DType>() => Gives("F16");
        "float32".parse::<DType>() => Refused("float32", "f16, bf16, f32, f64");
        "".parse::<DType>() => Refused("\"\"", "f16");
    }
}

fn numbers() -> Vec<String> {
    let (whole, byte) = (ints(&[7, i64::MIN]), Tensor::from_slice(&[200u8, 3], 2, &cpu()).unwrap());
    failures! {
        &whole * 0.5 => Refused("mul", "0.5", "i64", "to_dtype");
        &whole + 1.0 => Gives("[2] i64 [8.0, -9.223372036854776e18]");
        &byte + 256 => Refused("add", "256", "u8");
        &byte - 1.0 => Gives("[2] u8 [199.0, 2.0]");
        1.5 - &byte => Refused("sub", "1.5", "u8");
        byte.eq(-1) => Refused("eq", "-1", "u8");
        &whole / 0 => Gives("[2] i64 [0.0, 0.0]");
        &whole % 0 => Gives("[2] i64 [0.0, 0.0]");
        &whole / -1 => Gives("[2] i64 [-7.0, -9.223372036854776e18]");
        &byte + &byte => Gives("[2] u8 [144.0, 6.0]");
        whole.pow(-1) => Gives("[2] i64 [0.0, 0.0]");
        &floats(&[2]) / 0.0 => Gives("[2] f32 [NaN, inf]");
        &floats(&[2]) * 1e300 => Gives("[2] f32 [NaN, inf]");
        bools(&[true]).eq(2) => Refused("eq", "2", "bool");
        floats(&[1]).elu(f64::NAN) => Gives("[1] f32 [NaN]");
    }
}

fn shapes() -> Vec<String> {
    let (x, deep) = (floats(&[2, 3]), Tensor::zeros([1; 8], DType::F32, &cpu()).unwrap());
    failures! {
        x.reshape((4, 2)) => Refused("reshape", "6 elements", "[2, 3]", "[4, 2]");
        x.reshape(()) => Refused("reshape", "6 elements");
        x.reshape_infer(&[-1, 4]) => Refused("reshape", "[-1, 4]", "[2, 3]");
        x.reshape_infer(&[-1, -1]) => Refused("reshape", "at most one", "-1");
        x.reshape_infer(&[-2, 3]) => Refused("reshape", "-2");
        floats(&[0, 3]).reshape_infer(&[-1, 3]) => Gives("[0, 3] f32 []");
        floats(&[0, 3]).reshape_infer(&[0, -1]) => Refused("reshape", "-1");
        floats(&[0, 3]).reshape((5, 0)) => Gives("[5, 0] f32 []");
        x.permute([0, 0]) => Refused("permute", "[0, 0]", "every dimension once");
        x.permute([1]) => Refused("permute", "[1]", "[2, 3]");
        x.permute([0, 2]) => Refused("permute", "dimension 2", "rank 2");
        x.transpose(0, 2) => Refused("transpose", "dimension 2", "rank 2");
        x.transpose(-3, 0) => Refused("transpose", "dimension -3", "rank 2");
        floats(&[3]).t() => Gives("[3] f32 [0.0, 1.0, 2.0]");
        x.squeeze(0) => Gives("[2, 3] f32 [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]");
        x.squeeze(2) => Refused("squeeze", "dimension 2");
        x.unsqueeze(4) => Refused("unsqueeze", "dimension 4", "rank 2");
        deep.unsqueeze(0) => Refused("9 dimensions", "at most 8");
        x.expand((2, 4)) => Refused("expand", "[2, 3]", "[2, 4]");
        x.expand(3) => Refused("expand", "[2, 3]", "[3]");
        floats(&[1, 3]).expand((0, 3)) => Gives("[0, 3] f32 []");
        x.flatten(1, 0) => Refused("flatten", "dimension 0", "before 1");
        x.dim(2) => Refused("dim", "dimension 2", "[2, 3]");
        floats(&[]).transpose(0, 0) => Refused("transpose", "rank 0");
        Shape::new(&[2; 9]) => Refused("9 dimensions", "at most 8");
    }
}

fn slices() -> Vec<String> {
    let (x, empty) = (floats(&[4]), floats(&[0, 3]));
    let (start, end) = (2, 1);
    failures! {
        x.narrow(0, 3, 2) => Refused("narrow", "2 elements from 3", "size 4");
        x.narrow(0, 4, 0) => Gives("[0] f32 []");
        x.narrow(1, 0, 1) => Refused("narrow", "dimension 1", "rank 1");
        x.slice(0, start..end, 1) => Refused("slice", "2..1");
        x.slice(0, 1..5, 1) => Refused("slice", "1..5", "size 4");
        x.slice(0, .., 0) => Refused("slice", "step 0");
        x.slice(0, .., -3) => Gives("[2] f32 [3.0, 0.0]");
        x.slice(0, 1..4, 9) => Gives("[1] f32 [1.0]");
        x.slice(0, 4.., -1) => Gives("[0] f32 []");
        x.slice(0, .., isize::MIN) => Gives("[1] f32 [3.0]");
        x.select(0, 4) => Refused("select", "index 4", "size 4");
        floats(&[]).select(0, 0) => Refused("select", "rank 0");
        empty.select(0, 0) => Refused("select", "index 0");
        empty.select(1, 2) => Gives("[0] f32 []");
        x.split(0, 0) => Refused("split", "size 0");
        empty.split(2, 0) => Gives("[0, 3] f32 []");
        x.chunk(0, 0) => Refused("chunk", "0 pieces");
        x.split(2, 1) => Refused("split", "dimension 1");
    }
}

fn joints() -> Vec<String> {
    let (x, empty) = (floats(&[1, 2]), floats(&[0, 2]));
    let none: [Tensor; 0] = [];
    failures! {
        Tensor::cat(&none, 0) => Refused("cat", "empty list");
        Tensor::stack(&none, 0) => Refused("stack", "empty list");
        Tensor::cat(&[&x, &floats(&[1, 3])], 0) => Refused("cat", "[1, 2]", "[1, 3]");
        Tensor::cat(&[&x, &floats(&[2])], 0) => Refused("cat", "[1, 2]", "[2]");
        Tensor::cat(&[&floats(&[1]), &ints(&[1])], 0) => Refused("cat", "f32", "i64");
        Tensor::cat(&[&x, &x], 2) => Refused("cat", "dimension 2", "rank 2");
        Tensor::cat(&[floats(&[]), floats(&[])], 0) => Refused("cat", "rank 0");
        Tensor::cat(&[&empty, &x, &empty], 0) => Gives("[1, 2] f32 [0.0, 1.0]");
        Tensor::cat(&[&empty, &empty], 0) => Gives("[0, 2] f32 []");
        Tensor::stack(&[&x, &empty], 0) => Refused("stack", "[1, 2]", "[0, 2]");
        Tensor::stack(&[&x, &x], 4) => Refused("stack", "dimension 4", "rank 2");
        Tensor::stack(&[floats(&[]), floats(&[])], 0) => Gives("[2] f32 [0.0, 0.0]");
    }
}

fn reductions() -> Vec<String> {
    let (x, empty) = (floats(&[2, 3]), floats(&[0, 3]));
    let odd = Tensor::from_slice(&[1f32, f32::NAN, 3.0, f32::NAN], 4, &cpu()).unwrap();
    failures! {
        x.sum(2) => Refused("sum", "dimension 2", "rank 2", "[2, 3]");
        x.sum(-3) => Refused("sum", "dimension -3");
        x.sum([0, 0]) => Refused("sum", "[0, 0]", "twice");
        x.sum([0, -2]) => Refused("sum", "twice");
        x.sum(&[][..] as &[usize]) => Gives("[2, 3] f32 [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]");
        empty.sum(0) => Gives("[3] f32 [0.0, 0.0, 0.0]");
        empty.sum(1) => Gives("[0] f32 []");
        empty.prod_all() => Gives("[] f32 [1.0]");
        empty.mean_all() => Gives("[] f32 [NaN]");
        empty.max(0) => Refused("max", "no elements", "[0, 3]");
        empty.max(1) => Gives("[0] f32 []");
        empty.argmin(0) => Refused("argmin", "no elements");
        empty.var(0) => Gives("[3] f32 [NaN, NaN, NaN]");
        floats(&[1]).std(0) => Gives("[] f32 [NaN]");
        floats(&[2]).var_with(0, 3) => Gives("[] f32 [inf]");
        floats(&[]).sum_all() => Gives("[] f32 [0.0]");
        floats(&[]).argmax(0) => Refused("argmax", "rank 0");
        odd.max_all() => Gives("[] f32 [NaN]");
        odd.argmin(0) => Gives("[] i64 [1.0]");
        ints(&[i64::MAX, 1]).sum_all() => Gives("[] i64 [-9.223372036854776e18]");
    }
}

fn products() -> Vec<String> {
    let x = floats(&[2, 3]);
    failures! {
        x.matmul(&x) => Refused("matmul", "3 and 2", "[2, 3]");
        x.matmul(&floats(&[])) => Refused("matmul", "scalar", "[]");
        x.matmul(&floats(&[2])) => Refused("matmul", "[2, 3]", "[2]");
        x.matmul(&x.t()?.to_dtype(DType::F16)?) => Refused("matmul", "f32", "f16");
        bools(&[true]).matmul(&bools(&[true])) => Refused("matmul", "bool", "to_dtype");
        floats(&[2, 2, 2]).matmul(&floats(&[3, 2, 2])) => Refused("matmul", "batch", "[2, 2, 2]", "[3, 2, 2]");
        floats(&[2, 0]).matmul(&floats(&[0, 2])) => Gives("[2, 2] f32 [0.0, 0.0, 0.0, 0.0]");
        floats(&[0, 3]).matmul(&floats(&[3, 2])) => Gives("[0, 2] f32 []");
        floats(&[0]).matmul(&floats(&[0])) => Gives("[] f32 [0.0]");
        floats(&[3]).matmul(&floats(&[3])) => Gives("[] f32 [5.0]");
        floats(&[0, 2, 3]).matmul(&floats(&[1, 3, 2])) => Gives("[0, 2, 2] f32 []");
    }
}

fn normalisations() -> Vec<String> {
    let (x, empty, one) = (floats(&[2, 3]), floats(&[0, 3]), floats(&[3]));
    failures! {
        x.softmax(2) => Refused("softmax", "dimension 2");
        empty.softmax(0) => Gives("[0, 3] f32 []");
        empty.logsumexp(0) => Refused("logsumexp", "no elements");
        x.layer_norm(&floats(&[2]), None, 1e-5) => Refused("layer_norm", "[2, 3]", "[2]", "last dimensions");
        x.layer_norm(&floats(&[]), None, 1e-5) => Refused("layer_norm", "last dimensions");
        x.layer_norm(&one, Some(&floats(&[2])), 1e-5) => Refused("layer_norm", "[3]", "[2]", "bias");
        x.layer_norm(&ints(&[1, 2, 3]), None, 1e-5) => Refused("layer_norm", "f32", "i64");
        x.rms_norm(&floats(&[5, 2, 3]), 1e-5) => Refused("rms_norm", "[5, 2, 3]");
        empty.layer_norm(&one, None, 1e-5) => Gives("[0, 3] f32 []");
        x.cross_entropy(&ints(&[0, 3])) => Refused("cross_entropy", "3", "size 3");
        x.cross_entropy(&ints(&[-1, 0])) => Refused("cross_entropy", "-1", "size 3");
        x.cross_entropy(&floats(&[2])) => Refused("cross_entropy", "f32", "integers");
        x.cross_entropy(&ints(&[0])) => Refused("cross_entropy", "[2, 3]", "[1]", "[rows, classes]");
        one.cross_entropy(&ints(&[0])) => Refused("cross_entropy", "[rows, classes]");
        empty.cross_entropy(&ints(&[])) => Gives("[] f32 [NaN]");
    }
}

fn indices() -> Vec<String> {
    let (x, empty) = (floats(&[2, 3]), floats(&[0, 3]));
    failures! {
        x.index_select(0, &ints(&[0, 2])) => Refused("index_select", "index 2", "size 2", "bad_input.rs");
        x.index_select(0, &ints(&[-1])) => Refused("index_select", "index -1", "size 2");
        x.index_select(2, &ints(&[0])) => Refused("index_select", "dimension 2");
        x.index_select(0, &floats(&[1])) => Refused("index_select", "f32", "integers", "to_dtype");
        x.index_select(0, &ints(&[0]).unsqueeze(0)?) => Refused("index_select", "vector", "[1, 1]");
        x.index_select(1, &ints(&[])) => Gives("[2, 0] f32 []");
        empty.index_select(0, &ints(&[0])) => Refused("index_select", "nothing", "[0, 3]");
        empty.index_select(1, &ints(&[5])) => Gives("[0, 1] f32 []");
        x.gather(0, &ints(&[0])) => Refused("gather", "[2, 3]", "[1]");
        x.gather(1, &ints(&[3, 0]).unsqueeze(1)?) => Refused("gather", "index 3", "size 3");
        x.gather(0, &ints(&[0, 0, 0, 0]).unsqueeze(0)?) => Refused("gather", "[2, 3]", "[1, 4]", "dimension 0");
        x.embedding(&ints(&[2])) => Refused("index 2", "size 2", "embedding");
        floats(&[3]).embedding(&ints(&[0])) => Refused("embedding", "matrix", "[3]");
        x.embedding(&bools(&[true])) => Refused("bool", "integers");
    }
}

fn reads() -> Vec<String> {
    let x = floats(&[2, 3]);
    let mut short = [0f32; 5];
    failures! {
        x.to_vec::<i64>() => Refused("to_vec", "f32", "to_dtype(DType::I64)");
        x.item::<f32>() => Refused("item", "6 elements", "[2, 3]");
        floats(&[0]).item::<f32>() => Refused("item", "0 elements");
        floats(&[1, 1]).item::<f32>() => Gives("0.0");
        x.to_vec1::<f32>() => Refused("to_vec1", "rank 2", "1");
        x.to_vec0::<f32>() => Refused("to_vec0", "rank 2", "0");
        floats(&[2, 0]).to_vec2::<f32>() => Gives("[[], []]");
        x.copy_to_slice(&mut short) => Refused("copy_to_slice", "5", "6");
        x.sum(0)?.to_vec::<i64>() => Refused("to_vec", "f32", "I64");
        ints(&[1]).item::<i64>() => Gives("1");
        Ok::<_, Error>(floats(&[0, 3]).to_string()) => Gives("\"tensor([], dtype=f32, shape=[0, 3])\"");
        Ok::<_, Error>(floats(&[]).to_string()) => Gives("\"tensor(0., dtype=f32)\"");
        Ok::<_, Error>(floats(&[2]).select(0, 1)?.to_string()) => Gives("\"tensor(1., dtype=f32)\"");
    }
}

/// Devices that this version does not have.
fn names() -> Vec<String> {
    failures! {
        Device::metal(0) => Refused("metal:0", "Metal", "Device::cpu()");
        Device::cuda(7) => Refused("cuda:7", "CUDA", "Device::cpu()");
        floats(&[1]).to_device(&cpu()) => Gives("[1] f32 [0.0]");
    }
}
