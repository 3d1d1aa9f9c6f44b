//! Programs: straight-line tensor code as data, and how the engine runs it.

use super::rng::Rng;
use half::{bf16, f16};
use tensorlogic::{DType, Device, Result, Tensor};

/// One line of a program. A `usize` is the number of an earlier line, unless a name says otherwise.
#[derive(Clone, Debug)]
pub enum Step {
    Leaf { shape: Vec<usize>, dtype: DType, values: Values, seed: u64 },
    Full { shape: Vec<usize>, dtype: DType, value: f64 },
    Unary(Unary, usize),
    Binary(Binary, usize, Arg),
    Clamp(usize, f64, f64),
    Where(usize, usize, Arg),
    Cast(usize, DType),
    Permute(usize, Vec<usize>),
    Slice { of: usize, dim: usize, start: usize, end: usize, by: isize },
    Select { of: usize, dim: usize, index: usize },
    Reshape(usize, Vec<usize>),
    Expand(usize, Vec<usize>),
    Reduce { op: Fold, of: usize, dims: Vec<usize>, keep: bool },
    Softmax { of: usize, dim: usize },
    LayerNorm { of: usize, weight: usize, bias: Option<usize> },
    RmsNorm { of: usize, weight: usize },
    Matmul(usize, usize),
    IndexSelect { of: usize, dim: usize, index: usize },
    Gather { of: usize, dim: usize, index: usize },
    Cat(Vec<usize>, usize),
    Stack(Vec<usize>, usize),
}

/// What a leaf holds.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Multiples of 1/8: sums and products of few are exact.
    Grid,
    /// Any number in -2..2.
    Rough,
    /// Within a sixteenth of 1.
    NearOne,
    /// Integers in 0..limit.
    Index(usize),
}

/// A second operand.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Line(usize),
    Number(f64),
}

/// A reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fold {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    Var,
    LogSumExp,
    ArgMax,
    ArgMin,
}

macro_rules! unary { ($($V:ident $method:ident $ulps:expr, |$x:ident| $f:expr;)+) => {
    /// A row of the op table with one operand.
    #[derive(Clone, Copy, Debug)]
    pub enum Unary { $($V),+ }
    impl Unary {
        pub const ALL: &[Unary] = &[$(Unary::$V),+];
        /// The value in f64.
        pub fn call(self, x: f64) -> f64 { match self { $(Unary::$V => { let $x = x; $f })+ } }
        /// Units in the last place by which the engine may miss it; 0 where it is exact or rounded correctly.
        pub fn ulps(self, x: f64) -> f64 { match self { $(Unary::$V => { let $x = x; let _ = $x; $ulps })+ } }
        fn record(self, x: &Tensor) -> Result<Tensor> { match self { $(Unary::$V => x.$method()),+ } }
    }
} }
unary! {
    Neg neg 0.0, |x| -x;
    Abs abs 0.0, |x| x.abs();
    Sqr sqr 0.0, |x| x * x;
    Relu relu 0.0, |x| x.max(0.0);
    Sign sign 0.0, |x| if x == 0.0 { 0.0 } else { x.signum() };
    Not not 0.0, |x| 1.0 - x;
    Floor floor 0.0, |x| x.floor();
    Ceil ceil 0.0, |x| x.ceil();
    Round round 0.0, |x| x.round_ties_even();
    Trunc trunc 0.0, |x| x.trunc();
    Sqrt sqrt 1.0, |x| x.sqrt();
    Rsqrt rsqrt 4.0, |x| 1.0 / x.sqrt();
    Exp exp 4.0, |x| x.exp();
    Expm1 expm1 4.0, |x| x.exp_m1();
    Ln ln 4.0, |x| x.ln();
    Log1p log1p 4.0, |x| x.ln_1p();
    Sin sin 4.0, |x| x.sin();
    Cos cos 4.0, |x| x.cos();
    Tanh tanh 4.0, |x| x.tanh();
    Sigmoid sigmoid 4.0 + x.abs(), |x| 1.0 / (1.0 + (-x).exp());
    Softplus softplus 6.0, |x| x.max(0.0) + (-x.abs()).exp().ln_1p();
    Silu silu 6.0 + x.abs(), |x| x / (1.0 + (-x).exp());
    Gelu gelu 16.0 + 4.0 * x.abs().powi(3),
        |x| x / (1.0 + (-1.595_769_121_605_730_7 * (x + 0.044_715 * x * x * x)).exp());
}

macro_rules! binary { ($($V:ident $method:ident)+) => {
    /// A row of the op table with two operands.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Binary { $($V),+ }
    impl Binary {
        fn record(self, a: &Tensor, b: &Tensor) -> Result<Tensor> { match self { $(Binary::$V => a.$method(b)),+ } }
        fn record_number(self, a: &Tensor, b: f64) -> Result<Tensor> { match self { $(Binary::$V => a.$method(b)),+ } }
    }
} }
binary! { Add add Sub sub Mul mul Div div Rem rem Maximum maximum Minimum minimum
Eq eq Ne ne Lt lt Le le Gt gt Ge ge And and Or or Xor xor }

impl Binary {
    pub const NUMBERS: [Binary; 7] = {
        use Binary::*;
        [Add, Sub, Mul, Div, Rem, Maximum, Minimum]
    };
    pub const COMPARISONS: [Binary; 6] = {
        use Binary::*;
        [Eq, Ne, Lt, Le, Gt, Ge]
    };
    pub const LOGIC: [Binary; 3] = [Binary::And, Binary::Or, Binary::Xor];

    /// Whether the result is bool.
    pub fn decides(self) -> bool {
        !Binary::NUMBERS.contains(&self)
    }
}

impl Step {
    /// The lines that this one reads.
    pub fn operands(&self) -> Vec<usize> {
        let with = |first: &[usize], arg: &Arg| match arg {
            Arg::Line(b) => [first, &[*b]].concat(),
            Arg::Number(_) => first.to_vec(),
        };
        match self {
            Step::Leaf { .. } | Step::Full { .. } => Vec::new(),
            Step::Unary(_, a) | Step::Clamp(a, ..) | Step::Cast(a, _) => vec![*a],
            Step::Permute(a, _) | Step::Reshape(a, _) | Step::Expand(a, _) => vec![*a],
            Step::Slice { of, .. } | Step::Select { of, .. } => vec![*of],
            Step::Reduce { of, .. } | Step::Softmax { of, .. } => vec![*of],
            Step::Binary(_, a, b) => with(&[*a], b),
            Step::Where(c, a, b) => with(&[*c, *a], b),
            Step::LayerNorm { of, weight, bias } => [*of, *weight].into_iter().chain(*bias).collect(),
            Step::RmsNorm { of: a, weight: b } | Step::Matmul(a, b) => vec![*a, *b],
            Step::IndexSelect { of, index, .. } | Step::Gather { of, index, .. } => vec![*of, *index],
            Step::Cat(parts, _) | Step::Stack(parts, _) => parts.clone(),
        }
    }

    /// Whether floats are summed in an order that fusion may change, or functions of such sums taken.
    pub fn accumulates(&self) -> bool {
        match self {
            Step::Reduce { op, .. } => !matches!(op, Fold::Max | Fold::Min | Fold::ArgMax | Fold::ArgMin),
            Step::Softmax { .. } | Step::LayerNorm { .. } | Step::RmsNorm { .. } | Step::Matmul(..) => true,
            _ => false,
        }
    }

    fn record(&self, lines: &[Tensor], device: &Device) -> Result<Tensor> {
        match self {
            Step::Leaf { shape, dtype, values, seed } => {
                upload(&values.draw(shape, *dtype, *seed), shape, *dtype, device)
            }
            Step::Full { shape, dtype, value } => Tensor::full(&shape[..], *value, *dtype, device),
            Step::Unary(op, a) => op.record(&lines[*a]),
            Step::Binary(op, a, Arg::Line(b)) => op.record(&lines[*a], &lines[*b]),
            Step::Binary(op, a, Arg::Number(b)) => op.record_number(&lines[*a], *b),
            Step::Clamp(a, lo, hi) => lines[*a].clamp(*lo, *hi),
            Step::Where(c, a, Arg::Line(b)) => lines[*c].where_cond(&lines[*a], &lines[*b]),
            Step::Where(c, a, Arg::Number(b)) => lines[*c].where_cond(&lines[*a], *b),
            Step::Cast(a, dtype) => lines[*a].to_dtype(*dtype),
            Step::Permute(a, order) => lines[*a].permute(order),
            Step::Slice { of, dim, start, end, by } => lines[*of].slice(*dim, *start..*end, *by),
            Step::Select { of, dim, index } => lines[*of].select(*dim, *index),
            Step::Reshape(a, shape) => lines[*a].reshape(&shape[..]),
            Step::Expand(a, shape) => lines[*a].expand(&shape[..]),
            Step::Reduce { op, of, dims, keep } => op.record(&lines[*of], dims, *keep),
            Step::Softmax { of, dim } => lines[*of].softmax(*dim),
            Step::LayerNorm { of, weight, bias } => {
                lines[*of].layer_norm(&lines[*weight], bias.map(|b| &lines[b]), super::EPS)
            }
            Step::RmsNorm { of, weight } => lines[*of].rms_norm(&lines[*weight], super::EPS),
            Step::Matmul(a, b) => lines[*a].matmul(&lines[*b]),
            Step::IndexSelect { of, dim, index } => lines[*of].index_select(*dim, &lines[*index]),
            Step::Gather { of, dim, index } => lines[*of].gather(*dim, &lines[*index]),
            Step::Cat(parts, dim) => Tensor::cat(&parts.iter().map(|&p| &lines[p]).collect::<Vec<_>>(), *dim),
            Step::Stack(parts, dim) => {
                Tensor::stack(&parts.iter().map(|&p| &lines[p]).collect::<Vec<_>>(), *dim as isize)
            }
        }
    }
}

impl Fold {
    fn record(self, x: &Tensor, dims: &[usize], keep: bool) -> Result<Tensor> {
        match (self, keep) {
            (Fold::Sum, false) => x.sum(dims),
            (Fold::Sum, true) => x.sum_keepdim(dims),
            (Fold::Mean, false) => x.mean(dims),
            (Fold::Mean, true) => x.mean_keepdim(dims),
            (Fold::Max, false) => x.max(dims),
            (Fold::Max, true) => x.max_keepdim(dims),
            (Fold::Min, false) => x.min(dims),
            (Fold::Min, true) => x.min_keepdim(dims),
            (Fold::Prod, false) => x.prod(dims),
            (Fold::Prod, true) => x.prod_keepdim(dims),
            (Fold::Var, false) => x.var(dims),
            (Fold::Var, true) => x.var_keepdim(dims),
            (Fold::LogSumExp, false) => x.logsumexp(dims[0]),
            (Fold::LogSumExp, true) => x.logsumexp(dims[0])?.unsqueeze(dims[0] as isize),
            (Fold::ArgMax, false) => x.argmax(dims[0]),
            (Fold::ArgMax, true) => x.argmax_keepdim(dims[0]),
            (Fold::ArgMin, false) => x.argmin(dims[0]),
            (Fold::ArgMin, true) => x.argmin_keepdim(dims[0]),
        }
    }
}

impl Values {
    /// The elements, each of which `dtype` holds exactly.
    pub fn draw(self, shape: &[usize], dtype: DType, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        let mut element = || match (dtype, self) {
            (_, Values::Index(limit)) => rng.below(limit) as f64,
            (DType::Bool, _) => rng.below(2) as f64,
            (DType::I32 | DType::I64, _) => rng.below(19) as f64 - 9.0,
            (_, Values::Grid) => (rng.below(33) as f64 - 16.0) / 8.0,
            (_, Values::Rough) => round_to(4.0 * rng.unit() - 2.0, dtype),
            (_, Values::NearOne) => 1.0 + (rng.below(9) as f64 - 4.0) / 64.0,
        };
        (0..shape.iter().product()).map(|_| element()).collect()
    }
}

/// The nearest value of a float dtype.
pub fn round_to(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F32 => x as f32 as f64,
        _ => x,
    }
}

fn upload(values: &[f64], shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    macro_rules! of {
        ($f:expr) => {
            Tensor::from_vec(values.iter().copied().map($f).collect(), shape, device)
        };
    }
    match dtype {
        DType::F16 => of!(f16::from_f64),
        DType::BF16 => of!(bf16::from_f64),
        DType::F32 => of!(|x| x as f32),
        DType::F64 => of!(|x| x),
        DType::I64 => of!(|x| x as i64),
        DType::I32 => of!(|x| x as i32),
        DType::U32 => of!(|x| x as u32),
        DType::U8 => of!(|x| x as u8),
        DType::Bool => of!(|x| x != 0.0),
    }
}

fn download(x: &Tensor) -> Result<Vec<f64>> {
    macro_rules! of {
        ($t:ty) => {
            x.to_vec::<$t>()?.into_iter().map(tensorlogic::Element::to_f64).collect()
        };
    }
    Ok(match x.dtype() {
        DType::F16 => of!(f16),
        DType::BF16 => of!(bf16),
        DType::F32 => of!(f32),
        DType::F64 => of!(f64),
        DType::I64 => of!(i64),
        DType::I32 => of!(i32),
        DType::U32 => of!(u32),
        DType::U8 => of!(u8),
        DType::Bool => of!(bool),
    })
}

/// Lines, and which of them are read.
#[derive(Clone)]
pub struct Program {
    pub device: Device,
    pub steps: Vec<Step>,
    /// Evaluated together.
    pub roots: Vec<usize>,
    /// Held meanwhile, and read one by one afterwards.
    pub late: Vec<usize>,
}

impl Program {
    /// The lines that are read, in order.
    pub fn reads(&self) -> impl Iterator<Item = usize> {
        self.roots.iter().chain(&self.late).copied()
    }

    /// The program that does not read the `at`-th of them.
    pub fn without_read(&self, at: usize) -> Program {
        let mut fewer = self.clone();
        match at.checked_sub(self.roots.len()) {
            Some(at) => fewer.late.remove(at),
            None => fewer.roots.remove(at),
        };
        fewer
    }

    /// Whether each line is needed for those that are read.
    pub fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.steps.len()];
        self.reads().for_each(|line| needed[line] = true);
        for line in (0..self.steps.len()).rev() {
            if needed[line] {
                self.steps[line].operands().into_iter().for_each(|operand| needed[operand] = true);
            }
        }
        needed
    }

    /// What the engine makes of it: the elements of each line that is read.
    pub fn run(&self) -> Result<Vec<Vec<f64>>> {
        let needed = self.needed();
        let mut lines: Vec<Tensor> = Vec::new();
        for (step, needed) in self.steps.iter().zip(needed) {
            let line = if needed { step.record(&lines, &self.device)? } else { Tensor::scalar(0f32, &self.device)? };
            lines.push(line);
        }
        // Only what is read stays held: the engine may overwrite everything else.
        let held: Vec<Tensor> = self.reads().map(|line| lines[line].clone()).collect();
        drop(lines);
        tensorlogic::eval(&held[..self.roots.len()].iter().collect::<Vec<_>>())?;
        held.iter().map(download).collect()
    }
}
