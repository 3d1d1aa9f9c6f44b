//! Random programs whose values stay tame: finite, of moderate size, and mostly decided.

use super::oracle::{Val, broadcast, interpret};
use super::program::{Arg, Binary, Fold, Program, Step, Unary, Values};
use super::rng::Rng;
use tensorlogic::{DType, Device};

const SIZES: [usize; 9] = [1, 2, 3, 5, 17, 33, 64, 100, 1030];
/// Elements that a line may have.
const MAX_ELEMENTS: usize = 20_000;
/// Multiplications that a product may take.
const MAX_PRODUCTS: usize = 100_000;
/// Numbers that every dtype holds, integers first.
const NUMBERS: [f64; 6] = [1.0, 2.0, 3.0, 0.5, -0.25, 1.5];

struct Generator {
    rng: Rng,
    /// What most leaves are.
    dtype: DType,
    /// What stands in the place of f64.
    widest: DType,
    steps: Vec<Step>,
    vals: Vec<Val>,
}

/// The program of a seed for a device, and what its lines hold.
pub fn generate(seed: u64, device: &Device) -> (Program, Vec<Val>) {
    let mut rng = Rng::new(seed);
    let widest = if device.supports(DType::F64) { DType::F64 } else { DType::F32 };
    let dtype = rng.pick(&[
        DType::F32,
        DType::F32,
        DType::F32,
        DType::F32,
        DType::F16,
        DType::BF16,
        widest,
        DType::I32,
        DType::I64,
    ]);
    let mut generator = Generator { rng, dtype, widest, steps: Vec::new(), vals: Vec::new() };
    let shape = generator.shape();
    generator.leaf(&shape, dtype);
    let lines = 3 + generator.rng.below(16);
    for _ in 0..10 * lines {
        if generator.steps.len() < lines {
            generator.grow();
        }
    }
    generator.finish(device)
}

impl Generator {
    fn finish(mut self, device: &Device) -> (Program, Vec<Val>) {
        let last = self.steps.len() - 1;
        let mut some = |most: usize| (0..self.rng.below(most + 1)).map(|_| self.rng.below(last + 1)).collect();
        let (others, late): (Vec<usize>, Vec<usize>) = (some(2), some(2));
        let roots = [vec![last], others].concat();
        (Program { device: device.clone(), steps: self.steps, roots, late }, self.vals)
    }

    /// Adds a line, if its values are tame.
    fn offer(&mut self, step: Step) -> Option<usize> {
        let val = interpret(&step, &self.vals);
        let limit = if val.dtype.is_float() { 2000.0 } else { 1e6 };
        let doubtful = val.at.iter().filter(|x| x.e > 0.02 * (1.0 + x.v.abs())).count();
        let tame = val.at.iter().all(|x| x.v.abs() + x.e < limit) && 8 * doubtful <= val.at.len();
        tame.then(|| {
            self.steps.push(step);
            self.vals.push(val);
            self.steps.len() - 1
        })
    }

    fn shape(&mut self) -> Vec<usize> {
        loop {
            let shape: Vec<usize> = (0..self.rng.below(5)).map(|_| self.rng.pick(&SIZES)).collect();
            if shape.iter().product::<usize>() <= MAX_ELEMENTS {
                return shape;
            }
        }
    }

    fn leaf_of(&mut self, shape: &[usize], dtype: DType, values: Values) -> usize {
        let seed = self.rng.next();
        self.offer(Step::Leaf { shape: shape.to_vec(), dtype, values, seed }).expect("leaves are tame")
    }

    fn leaf(&mut self, shape: &[usize], dtype: DType) -> usize {
        if self.rng.chance(10) {
            let full = Step::Full { shape: shape.to_vec(), dtype, value: 1.0 };
            return self.offer(full).expect("ones are tame");
        }
        let values = self.rng.pick(&[Values::Grid, Values::Grid, Values::Rough, Values::NearOne]);
        self.leaf_of(shape, dtype, values)
    }

    /// An earlier line, one of the latest more often than not.
    fn line(&mut self) -> usize {
        let count = self.steps.len();
        let back = if self.rng.chance(60) { self.rng.below(count.min(3)) } else { self.rng.below(count) };
        count - 1 - back
    }

    fn line_where(&mut self, fits: impl Fn(&Val) -> bool) -> Option<usize> {
        let candidates: Vec<usize> = (0..6).map(|_| self.line()).collect();
        candidates.into_iter().find(|&line| fits(&self.vals[line]))
    }

    fn dtype(&self, line: usize) -> DType {
        self.vals[line].dtype
    }

    fn dims(&self, line: usize) -> Vec<usize> {
        self.vals[line].shape.clone()
    }

    /// A dimension of a line that has some.
    fn dim(&mut self, line: usize) -> Option<usize> {
        let rank = self.vals[line].rank();
        (rank > 0).then(|| self.rng.below(rank))
    }

    /// A line of `dtype` that broadcasts with `like` to a shape of bearable size.
    fn partner(&mut self, like: usize, dtype: DType) -> usize {
        let shape = self.dims(like);
        let fits = |v: &Val| {
            let joint = broadcast(&v.shape, &shape);
            v.dtype == dtype && joint.is_some_and(|s| s.iter().product::<usize>() <= MAX_ELEMENTS)
        };
        let found = if self.rng.chance(70) { self.line_where(fits) } else { None };
        found.unwrap_or_else(|| {
            let smaller = self.smaller(&shape);
            self.leaf(&smaller, dtype)
        })
    }

    /// A shape that broadcasts to `shape`.
    fn smaller(&mut self, shape: &[usize]) -> Vec<usize> {
        let from = if self.rng.chance(30) { self.rng.below(shape.len() + 1) } else { 0 };
        shape[from..].iter().map(|&size| if self.rng.chance(20) { 1 } else { size }).collect()
    }

    fn arg(&mut self, like: usize) -> Arg {
        let numbers = if self.dtype(like).is_float() { NUMBERS.len() } else { 3 };
        match self.rng.chance(35) && self.dtype(like) != DType::Bool {
            true => Arg::Number(NUMBERS[self.rng.below(numbers)]),
            false => Arg::Line(self.partner(like, self.dtype(like))),
        }
    }

    /// Adds a line or a few.
    fn grow(&mut self) -> Option<usize> {
        match self.rng.below(22) {
            0..=3 => self.unary(),
            4..=7 => self.binary(),
            8 => self.decide(),
            9 => self.clamp_or_cast(),
            10..=13 => self.view(),
            14..=15 => self.reduce(),
            16 => self.reduce_and_combine(),
            17 => self.norm(),
            18..=19 => self.product(),
            20 => self.index(),
            _ => self.join(),
        }
    }

    fn unary(&mut self) -> Option<usize> {
        let op = self.rng.pick(Unary::ALL);
        let integers = matches!(op, Unary::Neg | Unary::Abs | Unary::Sqr | Unary::Relu | Unary::Sign);
        let of = self.line_where(|v| match v.dtype {
            DType::Bool => matches!(op, Unary::Not),
            dtype => !matches!(op, Unary::Not) && (integers || dtype.is_float()),
        })?;
        self.offer(Step::Unary(op, of))
    }

    fn binary(&mut self) -> Option<usize> {
        let a = self.line();
        let ops = if self.dtype(a) == DType::Bool { &Binary::LOGIC[..] } else { &Binary::NUMBERS };
        let op = self.rng.pick(ops);
        let b = self.arg(a);
        self.offer(Step::Binary(op, a, b))
    }

    /// A comparison, and a choice by it.
    fn decide(&mut self) -> Option<usize> {
        let a = self.line();
        let op = self.rng.pick(&Binary::COMPARISONS);
        let b = self.arg(a);
        let condition = self.offer(Step::Binary(op, a, b))?;
        let dtype = self.dtype;
        let then = self.partner(condition, dtype);
        let joint = broadcast(&self.dims(condition), &self.dims(then))?;
        let other = self.arg(then);
        match other {
            Arg::Line(o) => broadcast(&joint, &self.dims(o)).filter(|s| s.iter().product::<usize>() <= MAX_ELEMENTS)?,
            Arg::Number(_) => joint,
        };
        self.offer(Step::Where(condition, then, other))
    }

    fn clamp_or_cast(&mut self) -> Option<usize> {
        let of = self.line();
        if self.rng.chance(40) && self.dtype(of) != DType::Bool {
            return self.offer(Step::Clamp(of, -1.0, 2.0));
        }
        let to = [self.dtype, DType::F32, DType::F16, DType::BF16, self.widest, DType::I32, DType::I64, DType::Bool];
        let to = self.rng.pick(&to);
        self.offer(Step::Cast(of, to))
    }

    fn view(&mut self) -> Option<usize> {
        let of = self.line();
        let shape = self.dims(of);
        match self.rng.below(6) {
            0 => {
                let mut order: Vec<usize> = (0..shape.len()).collect();
                (1..shape.len()).for_each(|i| order.swap(i, self.rng.below(i + 1)));
                self.offer(Step::Permute(of, order))
            }
            1..=2 => self.slice(of),
            3 => {
                let shape = self.refactored(shape.iter().product());
                self.offer(Step::Reshape(of, shape))
            }
            4 => {
                let dim = self.dim(of)?;
                let index = self.rng.below(shape[dim]);
                self.offer(Step::Select { of, dim, index })
            }
            _ => self.expand(of),
        }
    }

    fn slice(&mut self, of: usize) -> Option<usize> {
        let dim = self.dim(of)?;
        let size = self.dims(of)[dim];
        let start = self.rng.below(size) * self.rng.below(2);
        let end = size - self.rng.below(size - start) * self.rng.below(2);
        let by = self.rng.pick(&[1, 1, -1, 2, -2, 3]);
        self.offer(Step::Slice { of, dim, start, end, by })
    }

    /// A shape of as many elements.
    fn refactored(&mut self, numel: usize) -> Vec<usize> {
        let (mut left, mut shape) = (numel, Vec::new());
        while shape.len() < 3 && self.rng.chance(70) {
            let divisors: Vec<usize> = (1..=left).filter(|d| left.is_multiple_of(*d)).collect();
            let size = self.rng.pick(&divisors);
            shape.push(size);
            left /= size;
        }
        if left > 1 || self.rng.chance(20) {
            shape.push(left);
        }
        shape
    }

    fn expand(&mut self, of: usize) -> Option<usize> {
        let mut shape = self.dims(of);
        for size in shape.iter_mut().filter(|size| **size == 1) {
            *size = self.rng.pick(&[1, 3, 17]);
        }
        if shape.len() < 4 {
            shape.insert(0, self.rng.pick(&[1, 2, 5]));
        }
        (shape.iter().product::<usize>() <= MAX_ELEMENTS).then(|| self.offer(Step::Expand(of, shape)))?
    }

    /// A reduction of a line: its step.
    fn fold(&mut self, keep: bool) -> Option<Step> {
        let of = self.line_where(|v| v.dtype != DType::Bool && v.rank() > 0)?;
        let folds = [Fold::Sum, Fold::Max, Fold::Min, Fold::ArgMax, Fold::ArgMin];
        let of_floats = [Fold::Sum, Fold::Mean, Fold::Max, Fold::Prod, Fold::Var, Fold::LogSumExp, Fold::ArgMax];
        let op = if self.dtype(of).is_float() { self.rng.pick(&of_floats) } else { self.rng.pick(&folds) };
        let single = matches!(op, Fold::LogSumExp | Fold::ArgMax | Fold::ArgMin);
        let rank = self.vals[of].rank();
        let mut dims: Vec<usize> = (0..rank).filter(|_| !single && self.rng.chance(50)).collect();
        if dims.is_empty() {
            dims.push(self.rng.below(rank));
        }
        Some(Step::Reduce { op, of, dims, keep })
    }

    fn reduce(&mut self) -> Option<usize> {
        let keep = self.rng.chance(50);
        let fold = self.fold(keep)?;
        self.offer(fold)
    }

    /// A reduction that meets its input again.
    fn reduce_and_combine(&mut self) -> Option<usize> {
        let fold = self.fold(true)?;
        let of = fold.operands()[0];
        let folded = self.offer(fold)?;
        let op = self.rng.pick(&[Binary::Sub, Binary::Div, Binary::Mul, Binary::Maximum, Binary::Eq]);
        (self.dtype(of) == self.dtype(folded)).then(|| self.offer(Step::Binary(op, of, Arg::Line(folded))))?
    }

    fn norm(&mut self) -> Option<usize> {
        let of = self.line_where(|v| v.dtype.is_float() && v.rank() > 0)?;
        let dim = self.dim(of)?;
        if self.rng.chance(50) {
            return self.offer(Step::Softmax { of, dim });
        }
        let (shape, dtype) = (self.dims(of), self.dtype(of));
        let weight = self.leaf(&shape[dim..], dtype);
        let bias = self.rng.chance(50).then(|| self.leaf(&shape[dim..], dtype));
        match self.rng.chance(60) {
            true => self.offer(Step::LayerNorm { of, weight, bias }),
            false => self.offer(Step::RmsNorm { of, weight }),
        }
    }

    /// A matrix product, and what often follows one.
    fn product(&mut self) -> Option<usize> {
        let a = self.line_where(|v| v.rank() >= 2 && v.dtype != DType::Bool)?;
        let shape = self.dims(a);
        let k = shape[shape.len() - 1];
        let n = self.rng.pick(&SIZES[..7]);
        let batch = if self.rng.chance(30) { shape[..shape.len() - 2].to_vec() } else { Vec::new() };
        if self.vals[a].at.len() * n > MAX_PRODUCTS || batch.iter().product::<usize>() * k * n > MAX_ELEMENTS {
            return None;
        }
        let b = self.right_hand_side(batch, k, n, self.dtype(a))?;
        let product = self.offer(Step::Matmul(a, b))?;
        if self.rng.chance(40) {
            return Some(product);
        }
        let bias = self.leaf(&[n], self.dtype(product));
        let sum = self.offer(Step::Binary(Binary::Add, product, Arg::Line(bias)))?;
        let op = self.rng.pick(&[Unary::Relu, Unary::Gelu, Unary::Tanh, Unary::Neg]);
        (self.dtype(sum).is_float()).then(|| self.offer(Step::Unary(op, sum)))?
    }

    /// `[batch.., k, n]`, sometimes a transposed view.
    fn right_hand_side(&mut self, batch: Vec<usize>, k: usize, n: usize, dtype: DType) -> Option<usize> {
        if self.rng.chance(50) {
            return Some(self.leaf(&[&batch[..], &[k, n]].concat(), dtype));
        }
        let of = self.leaf(&[&batch[..], &[n, k]].concat(), dtype);
        let mut order: Vec<usize> = (0..batch.len() + 2).collect();
        order.swap(batch.len(), batch.len() + 1);
        self.offer(Step::Permute(of, order))
    }

    fn index(&mut self) -> Option<usize> {
        let of = self.line();
        let dim = self.dim(of)?;
        let mut shape = self.dims(of);
        let limit = shape[dim];
        let fits = |v: &Val| {
            let within = |i: usize| i == dim || v.shape[i] <= shape[i];
            v.indexes(limit) && v.rank() == shape.len() && (0..v.rank()).all(within)
        };
        if let Some(index) = self.line_where(fits) {
            return self.offer(Step::Gather { of, dim, index });
        }
        shape[dim] = self.rng.pick(&SIZES[..6]);
        if shape.iter().product::<usize>() > MAX_ELEMENTS {
            return None;
        }
        let dtype = self.rng.pick(&[DType::I64, DType::I32]);
        if self.rng.chance(50) {
            let index = self.leaf_of(&shape[dim..=dim], dtype, Values::Index(limit));
            return self.offer(Step::IndexSelect { of, dim, index });
        }
        let index = self.leaf_of(&shape, dtype, Values::Index(limit));
        self.offer(Step::Gather { of, dim, index })
    }

    /// A concatenation of lines and leaves.
    fn join(&mut self) -> Option<usize> {
        let first = self.line();
        let (shape, dtype) = (self.dims(first), self.dtype(first));
        let stack = shape.len() < 4 && self.rng.chance(40);
        let dim = if stack { self.rng.below(shape.len() + 1) } else { self.dim(first)? };
        let count = 1 + self.rng.below(3);
        if (count + 1) * self.vals[first].at.len() > MAX_ELEMENTS {
            return None;
        }
        let fits = |v: &Val| v.dtype == dtype && v.shape == shape;
        let other = |s: &mut Self| s.line_where(fits).unwrap_or_else(|| s.leaf(&shape, dtype));
        let parts: Vec<usize> = [first].into_iter().chain((0..count).map(|_| other(self))).collect();
        self.offer(if stack { Step::Stack(parts, dim) } else { Step::Cat(parts, dim) })
    }
}
