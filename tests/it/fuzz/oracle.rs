//! What a program means: every line in f64, with a bound on how far the engine may be off.

use super::EPS;
use super::program::{Arg, Binary, Fold, Step, Unary, round_to};
use tensorlogic::DType;

/// A number, and how far from it a right answer may lie. Decisions (comparisons, floor, argmax) that
/// the bound leaves open make it as large as what hangs on them.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    pub v: f64,
    pub e: f64,
}

/// A line's elements.
#[derive(Clone, Debug)]
pub struct Val {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub at: Vec<Near>,
}

/// Errors of f32 functions whose results are stored narrow, for normal results and for subnormal ones.
const NARROW_STEP: f64 = 1.0 / 4096.0;
const NARROW_TINY: f64 = 1.0 / 33_554_432.0;

/// Half a unit in the last place of 1, the least positive rounding step, and the greatest value.
fn format(dtype: DType) -> (f64, f64, f64) {
    match dtype {
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25), 65504.0),
        DType::BF16 => (2f64.powi(-8), 2f64.powi(-126), 3e38),
        DType::F32 => (2f64.powi(-24), 2f64.powi(-126), 3e38),
        DType::F64 => (2f64.powi(-52), 2f64.powi(-1000), 1e300),
        DType::I64 => (0.0, 0.0, 2f64.powi(52)),
        DType::I32 => (0.0, 0.0, 2f64.powi(31) - 1.0),
        DType::U32 => (0.0, 0.0, 2f64.powi(32) - 1.0),
        DType::U8 => (0.0, 0.0, 255.0),
        DType::Bool => (0.0, 0.0, 1.0),
    }
}

impl Near {
    fn exact(v: f64) -> Near {
        Near { v, e: 0.0 }
    }

    /// The value as an op of `dtype` gives it that misses it by `ulps` before rounding.
    fn settle(self, dtype: DType, ulps: f64) -> Near {
        let (half, tiny, limit) = format(dtype);
        let size = self.v.abs() + self.e;
        let exact = self.e == 0.0 && ulps == 0.0 && round_to(self.v, dtype) == self.v;
        let e = match () {
            _ if size.is_nan() || size > limit => f64::INFINITY,
            _ if exact || !dtype.is_float() => self.e,
            // Functions of narrow numbers are as exact as f16 shows: see `ops::math`.
            _ if dtype.is_narrow() && ulps > 0.0 => self.e + 2.0 * NARROW_TINY + size * (half + NARROW_STEP),
            _ => self.e + tiny + size * (half + (ulps + 1.0) * format(dtype.compute()).0),
        };
        Near { v: self.v, e }
    }

    /// A function's value, from samples over the range that the argument may lie in.
    fn map(self, f: impl Fn(f64) -> f64) -> Near {
        let v = f(self.v);
        if self.e == 0.0 {
            return Near::exact(v);
        }
        let misses = [-1.0, -0.5, 0.5, 1.0].map(|t| (f(self.v + t * self.e) - v).abs());
        let worst = misses.into_iter().fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
        Near { v, e: 1.1 * worst }
    }

    /// 0 or 1, when the sign of `self` is what decides; ties are decided by exact numbers only.
    fn decide(self, f: impl Fn(f64) -> bool) -> Near {
        let sure = self.e == 0.0 || self.v.abs() > self.e;
        Near { v: f(self.v) as u8 as f64, e: if sure { 0.0 } else { 1.0 } }
    }

    fn binary(self, o: Near, op: Binary, dtype: DType) -> Near {
        let e = self.e + o.e;
        let difference = Near { v: self.v - o.v, e };
        let logic = |v: f64| Near { v, e: if e > 0.0 { 1.0 } else { 0.0 } };
        match op {
            Binary::Add => Near { v: self.v + o.v, e },
            Binary::Sub => difference,
            Binary::Mul => self.times(o),
            Binary::Div if !dtype.is_float() => self.quotient(o, |a, b| if b == 0.0 { 0.0 } else { (a / b).trunc() }),
            Binary::Div => self.over(o),
            Binary::Rem if !dtype.is_float() => self.quotient(o, |a, b| if b == 0.0 { 0.0 } else { a % b }),
            Binary::Rem => self.quotient(o, |a, b| a % b),
            Binary::Maximum => Near { v: self.v.max(o.v), e: self.e.max(o.e) },
            Binary::Minimum => Near { v: self.v.min(o.v), e: self.e.max(o.e) },
            Binary::Eq => difference.decide(|d| d == 0.0),
            Binary::Ne => difference.decide(|d| d != 0.0),
            Binary::Lt => difference.decide(|d| d < 0.0),
            Binary::Le => difference.decide(|d| d <= 0.0),
            Binary::Gt => difference.decide(|d| d > 0.0),
            Binary::Ge => difference.decide(|d| d >= 0.0),
            Binary::And => logic(self.v * o.v),
            Binary::Or => logic(self.v.max(o.v)),
            Binary::Xor => logic((self.v - o.v).abs()),
        }
    }

    fn times(self, o: Near) -> Near {
        Near { v: self.v * o.v, e: self.v.abs() * o.e + o.v.abs() * self.e + self.e * o.e }
    }

    fn over(self, o: Near) -> Near {
        let v = self.v / o.v;
        let room = o.v.abs() - o.e;
        Near { v, e: if room > 0.0 { (self.e + v.abs() * o.e) / room } else { f64::INFINITY } }
    }

    /// A discontinuous function of exact numbers.
    fn quotient(self, o: Near, f: impl Fn(f64, f64) -> f64) -> Near {
        Near { v: f(self.v, o.v), e: if self.e + o.e > 0.0 { f64::INFINITY } else { 0.0 } }
    }

    /// `then` where this holds, else `other`.
    fn choose(self, then: Near, other: Near) -> Near {
        let (taken, left) = if self.v != 0.0 { (then, other) } else { (other, then) };
        let open = if self.e > 0.0 { (then.v - other.v).abs() + left.e } else { 0.0 };
        Near { v: taken.v, e: taken.e + open }
    }

    fn cast(self, from: DType, to: DType) -> Near {
        match to {
            DType::Bool => self.decide(|v| v != 0.0),
            _ if from.is_float() && !to.is_float() => self.map(f64::trunc).settle(to, 0.0),
            _ => self.settle(to, 0.0),
        }
    }
}

/// The coordinates of element `at` of a shape.
fn coordinates(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut list = vec![0; shape.len()];
    for (c, &size) in list.iter_mut().zip(shape).rev() {
        *c = at % size;
        at /= size;
    }
    list
}

/// The element of `shape` that these coordinates, of a shape that it broadcasts to, reach.
fn position(coordinates: &[usize], shape: &[usize]) -> usize {
    let lead = coordinates.len() - shape.len();
    shape.iter().zip(&coordinates[lead..]).fold(0, |at, (&size, &c)| at * size + if size == 1 { 0 } else { c })
}

/// The shape that both broadcast to, if there is one.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    let join = |i| match (size(a, i), size(b, i)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    };
    (0..rank).map(join).collect()
}

impl Val {
    fn exact(shape: &[usize], dtype: DType, values: Vec<f64>) -> Val {
        Val { shape: shape.to_vec(), dtype, at: values.into_iter().map(Near::exact).collect() }
    }

    fn number(x: f64, dtype: DType) -> Val {
        Val::exact(&[], dtype, vec![x])
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    fn map(&self, dtype: DType, f: impl Fn(Near) -> Near) -> Val {
        Val { shape: self.shape.clone(), dtype, at: self.at.iter().map(|&x| f(x)).collect() }
    }

    /// A tensor whose element at each coordinate is the one of `self` that `f` names.
    fn pick(&self, shape: &[usize], f: impl Fn(Vec<usize>) -> Vec<usize>) -> Val {
        let at = (0..shape.iter().product()).map(|i| self.at[position(&f(coordinates(i, shape)), &self.shape)]);
        Val { shape: shape.to_vec(), dtype: self.dtype, at: at.collect() }
    }

    fn expand(&self, shape: &[usize]) -> Val {
        self.pick(shape, |at| at)
    }

    fn zip(&self, o: &Val, dtype: DType, f: impl Fn(Near, Near) -> Near) -> Val {
        let shape = broadcast(&self.shape, &o.shape).expect("the generator matches shapes");
        let (a, b) = (self.expand(&shape), o.expand(&shape));
        Val { shape, dtype, at: a.at.iter().zip(&b.at).map(|(&a, &b)| f(a, b)).collect() }
    }

    fn unary(&self, op: Unary) -> Val {
        self.map(self.dtype, |x| x.map(|x| op.call(x)).settle(self.dtype, op.ulps(x.v)))
    }

    fn binary(&self, op: Binary, o: &Val) -> Val {
        let dtype = if op.decides() { DType::Bool } else { self.dtype };
        self.zip(o, dtype, |a, b| a.binary(b, op, self.dtype).settle(dtype, 0.0))
    }

    fn cast(&self, dtype: DType) -> Val {
        if dtype == self.dtype { self.clone() } else { self.map(dtype, |x| x.cast(self.dtype, dtype)) }
    }

    /// The reduced dimensions have size 1 in the result.
    fn fold(&self, dims: &[usize], dtype: DType, f: impl Fn(&[Near]) -> Near) -> Val {
        let kept = |i: usize, size: usize| if dims.contains(&i) { 1 } else { size };
        let shape: Vec<usize> = self.shape.iter().enumerate().map(|(i, &size)| kept(i, size)).collect();
        let mut rows = vec![Vec::new(); shape.iter().product()];
        for (i, &x) in self.at.iter().enumerate() {
            rows[position(&coordinates(i, &self.shape), &shape)].push(x);
        }
        Val { shape, dtype, at: rows.iter().map(|row| f(row)).collect() }
    }

    fn sum(&self, dims: &[usize]) -> Val {
        let dtype = self.dtype.sum();
        self.fold(dims, dtype, |row| sum(row, dtype).settle(dtype, 0.0))
    }

    fn mean(&self, dims: &[usize]) -> Val {
        let sum = self.sum(dims);
        let count = self.at.len() / sum.at.len();
        sum.binary(Binary::Div, &Val::number(count as f64, self.dtype))
    }

    fn max(&self, dims: &[usize]) -> Val {
        self.fold(dims, self.dtype, |row| {
            row.iter().copied().reduce(|a, b| a.binary(b, Binary::Maximum, self.dtype)).unwrap()
        })
    }

    fn variance(&self, dims: &[usize], correction: f64) -> Val {
        let squares = self.binary(Binary::Sub, &self.mean(dims)).unary(Unary::Sqr).sum(dims);
        let count = (self.at.len() / squares.at.len()) as f64;
        squares.binary(Binary::Div, &Val::number(count - correction, self.dtype))
    }

    fn reduce(&self, op: Fold, dims: &[usize]) -> Val {
        let wide = || self.cast(self.dtype.compute());
        match op {
            Fold::Sum => self.sum(dims),
            Fold::Mean => wide().mean(dims).cast(self.dtype),
            Fold::Max => self.max(dims),
            Fold::Min => self.unary(Unary::Neg).max(dims).unary(Unary::Neg),
            Fold::Prod => {
                let dtype = self.dtype.sum();
                self.fold(dims, dtype, |row| product(row, dtype).settle(dtype, 0.0))
            }
            Fold::Var => wide().variance(dims, 1.0).cast(self.dtype),
            Fold::LogSumExp => {
                let (x, largest) = (wide(), wide().max(dims));
                let total = x.binary(Binary::Sub, &largest).unary(Unary::Exp).sum(dims).unary(Unary::Ln);
                total.binary(Binary::Add, &largest).cast(self.dtype)
            }
            Fold::ArgMax => self.fold(dims, DType::I64, first_largest),
            Fold::ArgMin => self.unary(Unary::Neg).fold(dims, DType::I64, first_largest),
        }
    }

    fn softmax(&self, dim: usize) -> Val {
        let x = self.cast(self.dtype.compute());
        let exps = x.binary(Binary::Sub, &x.max(&[dim])).unary(Unary::Exp);
        exps.binary(Binary::Div, &exps.sum(&[dim])).cast(self.dtype)
    }

    /// Times weight over the root of the mean square (plus epsilon), plus bias.
    fn scaled(&self, weight: &Val, bias: Option<&Val>, dtype: DType) -> Val {
        let dims: Vec<usize> = (self.rank() - weight.rank()..self.rank()).collect();
        let eps = Val::number(EPS, self.dtype);
        let scale = self.unary(Unary::Sqr).mean(&dims).binary(Binary::Add, &eps).unary(Unary::Rsqrt);
        let scaled = self.binary(Binary::Mul, &scale).binary(Binary::Mul, &weight.cast(self.dtype));
        let y = bias.map(|bias| scaled.binary(Binary::Add, &bias.cast(self.dtype))).unwrap_or(scaled);
        y.cast(dtype)
    }

    fn layer_norm(&self, weight: &Val, bias: Option<&Val>) -> Val {
        let x = self.cast(self.dtype.compute());
        let dims: Vec<usize> = (self.rank() - weight.rank()..self.rank()).collect();
        x.binary(Binary::Sub, &x.mean(&dims)).scaled(weight, bias, self.dtype)
    }

    fn matmul(&self, o: &Val) -> Val {
        let (m, k) = (self.shape[self.rank() - 2], self.shape[self.rank() - 1]);
        let n = o.shape[o.rank() - 1];
        let batch = broadcast(&self.shape[..self.rank() - 2], &o.shape[..o.rank() - 2]).expect("batches match");
        let shape = [&batch[..], &[m, n]].concat();
        let element = |i: usize| {
            let at = coordinates(i, &shape);
            let (batch, i, j) = (&at[..batch.len()], at[at.len() - 2], at[at.len() - 1]);
            let a = |l: usize| self.at[aligned(batch, [i, l], &self.shape)];
            let b = |l: usize| o.at[aligned(batch, [l, j], &o.shape)];
            let products: Vec<Near> = (0..k).map(|l| a(l).times(b(l))).collect();
            sum(&products, self.dtype).settle(self.dtype, 0.0)
        };
        Val { at: (0..shape.iter().product()).map(element).collect(), shape, dtype: self.dtype }
    }

    /// Whether the elements can index a dimension of size `limit`.
    pub fn indexes(&self, limit: usize) -> bool {
        let sure = |x: &Near| x.e == 0.0 && x.v >= 0.0 && x.v < limit as f64;
        matches!(self.dtype, DType::I32 | DType::I64) && self.at.iter().all(sure)
    }

    fn index(&self, at: &[usize]) -> usize {
        self.at[position(at, &self.shape)].v as usize
    }

    fn cat(parts: &[&Val], dim: usize) -> Val {
        let first = parts[0];
        let mut shape = first.shape.clone();
        shape[dim] = parts.iter().map(|p| p.shape[dim]).sum();
        let element = |i: usize| {
            let mut at = coordinates(i, &shape);
            let mut part = parts.iter();
            loop {
                let val = part.next().expect("sizes add up");
                if at[dim] < val.shape[dim] {
                    return val.at[position(&at, &val.shape)];
                }
                at[dim] -= val.shape[dim];
            }
        };
        Val { at: (0..shape.iter().product()).map(element).collect(), shape, dtype: first.dtype }
    }

    fn reshape(&self, shape: &[usize]) -> Val {
        Val { shape: shape.to_vec(), ..self.clone() }
    }

    fn unsqueeze(&self, dim: usize) -> Val {
        self.reshape(&[&self.shape[..dim], &[1], &self.shape[dim..]].concat())
    }

    fn without(&self, dims: &[usize]) -> Val {
        let kept: Vec<usize> = (0..self.rank()).filter(|i| !dims.contains(i)).map(|i| self.shape[i]).collect();
        self.reshape(&kept)
    }

    fn slice(&self, dim: usize, start: usize, end: usize, by: isize) -> Val {
        let mut shape = self.shape.clone();
        shape[dim] = (end - start).div_ceil(by.unsigned_abs());
        self.pick(&shape, |mut at| {
            let steps = at[dim] * by.unsigned_abs();
            at[dim] = if by > 0 { start + steps } else { end - 1 - steps };
            at
        })
    }
}

/// The element at `batch.., i, j` of a shape whose leading dimensions broadcast.
fn aligned(batch: &[usize], [i, j]: [usize; 2], shape: &[usize]) -> usize {
    let (lead, matrix) = shape.split_at(shape.len() - 2);
    (position(batch, lead) * matrix[0] + i) * matrix[1] + j
}

/// A sum in any order, before rounding to a narrow dtype.
fn sum(row: &[Near], dtype: DType) -> Near {
    let (v, e) = row.iter().fold((0.0, 0.0), |(v, e), x| (v + x.v, e + x.e));
    let size: f64 = row.iter().map(|x| x.v.abs() + x.e).sum();
    // Multiples of 2^-12 add without rounding while they stay below 2^12.
    let exact = e == 0.0 && size < 4096.0 && row.iter().all(|x| (x.v * 4096.0).fract() == 0.0);
    let slack = if exact { 0.0 } else { (8.0 + row.len() as f64 / 2.0) * format(dtype.compute()).0 * size };
    Near { v, e: e + slack }
}

/// A product in any order, before rounding to a narrow dtype.
fn product(row: &[Near], dtype: DType) -> Near {
    let Near { v, e } = row.iter().fold(Near::exact(1.0), |p, &x| p.times(x));
    // The least and the greatest product of some of the factors.
    let factors = || row.iter().map(|x| x.v.abs()).filter(|&size| size > 0.0);
    let least: f64 = factors().map(|f| f.min(1.0)).product();
    let greatest: f64 = factors().map(|f| f.max(1.0)).product();
    let slack = match () {
        _ if least < 1e-30 || greatest > 1e30 => f64::INFINITY,
        _ if !dtype.is_float() || round_to(v, DType::F32) == v => 0.0,
        _ => row.len() as f64 * format(dtype.compute()).0 * (v.abs() + e),
    };
    Near { v, e: e + slack }
}

/// The position of the first largest; any position where several may be it.
fn first_largest(row: &[Near]) -> Near {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if x.v > row[best].v {
            best = i;
        }
    }
    let open = |x: &Near| x.e + row[best].e > 0.0 && x.v + x.e >= row[best].v - row[best].e;
    let rivals = row.iter().enumerate().filter(|&(i, x)| i != best && open(x)).count();
    Near { v: best as f64, e: if rivals > 0 { row.len() as f64 } else { 0.0 } }
}

/// The value of a line whose operands are in `lines`.
pub fn interpret(step: &Step, lines: &[Val]) -> Val {
    let arg = |arg: Arg, like: usize| match arg {
        Arg::Line(b) => lines[b].clone(),
        Arg::Number(x) => Val::number(x, lines[like].dtype),
    };
    let list = |parts: &[usize]| parts.iter().map(|&p| &lines[p]).collect::<Vec<_>>();
    match step {
        Step::Leaf { shape, dtype, values, seed } => Val::exact(shape, *dtype, values.draw(shape, *dtype, *seed)),
        Step::Full { shape, dtype, value } => Val::number(*value, *dtype).expand(shape),
        Step::Unary(op, a) => lines[*a].unary(*op),
        Step::Binary(op, a, b) => lines[*a].binary(*op, &arg(*b, *a)),
        Step::Clamp(a, lo, hi) => lines[*a].map(lines[*a].dtype, |x| Near { v: x.v.max(*lo).min(*hi), e: x.e }),
        Step::Where(c, a, b) => {
            let (then, other) = (&lines[*a], arg(*b, *a));
            let shape =
                broadcast(&then.shape, &other.shape).and_then(|s| broadcast(&s, &lines[*c].shape)).expect("match");
            let (c, then, other) = (lines[*c].expand(&shape), then.expand(&shape), other.expand(&shape));
            let at = (0..c.at.len()).map(|i| c.at[i].choose(then.at[i], other.at[i])).collect();
            Val { at, ..then }
        }
        Step::Cast(a, dtype) => lines[*a].cast(*dtype),
        Step::Permute(a, order) => {
            let shape: Vec<usize> = order.iter().map(|&d| lines[*a].shape[d]).collect();
            lines[*a].pick(&shape, |at| {
                let mut from = at.clone();
                order.iter().zip(&at).for_each(|(&d, &c)| from[d] = c);
                from
            })
        }
        Step::Slice { of, dim, start, end, by } => lines[*of].slice(*dim, *start, *end, *by),
        Step::Select { of, dim, index } => lines[*of].slice(*dim, *index, index + 1, 1).without(&[*dim]),
        Step::Reshape(a, shape) => lines[*a].reshape(shape),
        Step::Expand(a, shape) => lines[*a].expand(shape),
        Step::Reduce { op, of, dims, keep } => {
            let folded = lines[*of].reduce(*op, dims);
            if *keep { folded } else { folded.without(dims) }
        }
        Step::Softmax { of, dim } => lines[*of].softmax(*dim),
        Step::LayerNorm { of, weight, bias } => lines[*of].layer_norm(&lines[*weight], bias.map(|b| &lines[b])),
        Step::RmsNorm { of, weight } => {
            let x = &lines[*of];
            x.cast(x.dtype.compute()).scaled(&lines[*weight], None, x.dtype)
        }
        Step::Matmul(a, b) => lines[*a].matmul(&lines[*b]),
        Step::IndexSelect { of, dim, index } => {
            assert!(lines[*index].indexes(lines[*of].shape[*dim]));
            let mut shape = lines[*of].shape.clone();
            shape[*dim] = lines[*index].at.len();
            lines[*of].pick(&shape, |mut at| {
                at[*dim] = lines[*index].index(&[at[*dim]]);
                at
            })
        }
        Step::Gather { of, dim, index } => {
            assert!(lines[*index].indexes(lines[*of].shape[*dim]));
            lines[*of].pick(&lines[*index].shape, |mut at| {
                at[*dim] = lines[*index].index(&at);
                at
            })
        }
        Step::Cat(parts, dim) => Val::cat(&list(parts), *dim),
        Step::Stack(parts, dim) => {
            let parts: Vec<Val> = parts.iter().map(|&p| lines[p].unsqueeze(*dim)).collect();
            Val::cat(&parts.iter().collect::<Vec<_>>(), *dim)
        }
    }
}
