//! The gradient rule of each kind of op. Those of elementwise ops stand in the op table.

use super::view;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeRef, Op, is_recording, with_recording};
use crate::ops::{Elementwise, Expr, Reduction};
use crate::shape::{Dims, Shape};
use crate::tensor::{Tensor, attention_backward, attention_gradient, composed_attention};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The rule of a node, given the gradient of its result.
pub(super) struct Rule<'a> {
    node: &'a NodeRef,
    inputs: SmallVec<[Tensor; 3]>,
    g: &'a Tensor,
    /// What the gradients of all operands of attention need.
    attention: Option<[Tensor; 2]>,
}

impl<'a> Rule<'a> {
    pub fn new(node: &'a NodeRef, g: &'a Tensor) -> Result<Rule<'a>> {
        let inputs = node.state().inputs.iter().cloned().map(Tensor).collect();
        let attention = match node.op {
            Op::Attention(op) if !is_recording() => Some(attention_backward(&op, &Tensor(node.clone()), g)?),
            _ => None,
        };
        Ok(Rule { node, inputs, g, attention })
    }

    /// The gradient of operand number `operand`.
    pub fn gradient(&self, operand: usize) -> Result<Tensor> {
        let Rule { node, inputs, g, attention } = self;
        let Op::Attention(op) = &node.op else { return gradient(node, inputs, operand, g) };
        match attention {
            Some(backward) => attention_gradient(op, inputs, operand, backward),
            // With derivatives of its own to come.
            None => {
                let whole = composed_attention(op, inputs)?;
                let mut found = super::grad_with(&whole, g, &[&inputs[operand]], true)?;
                found.pop().ok_or_else(|| Error::internal("autograd::attention", "no gradient"))
            }
        }
    }
}

/// Whether an index picks one element of each line along `axis`.
fn is_one_of_each_line(input: &Tensor, index: &Tensor, axis: usize) -> bool {
    let mut dims = input.dims().to_vec();
    dims[axis] = 1;
    index.dims() == dims
}

/// Gradient of operand number `operand` of `node`, given its inputs and the gradient `g` of its result.
fn gradient(node: &NodeRef, inputs: &[Tensor], operand: usize, g: &Tensor) -> Result<Tensor> {
    let input = &inputs[operand];
    match node.op {
        Op::Elementwise(op) => elementwise(op, inputs, &Tensor(node.clone()), g, operand),
        Op::Cast => g.to_dtype(input.dtype()),
        Op::View(view) => view::adjoint(g, &view, input.shape()),
        Op::Copy => Ok(g.clone()),
        Op::Reduce { op, axes } => reduction(op, &Node::axes(axes), input, &Tensor(node.clone()), g),
        Op::Matmul => matmul(&inputs[0], &inputs[1], g, operand),
        // One element of each line: no sums, and nothing that had to be stored.
        Op::Gather { axis, .. } if is_one_of_each_line(&inputs[0], &inputs[1], axis as usize) => {
            let size = input.dims()[axis as usize];
            let mut along = vec![1; input.rank()];
            along[axis as usize] = size;
            let place = Tensor::iota(size, g.device())?.reshape(along)?;
            place.eq(&inputs[1].to_dtype(DType::I64)?)?.where_cond(g, 0.0)
        }
        Op::Gather { axis, .. } => {
            let sums = g.widened()?.scattered("gather", axis as usize, &inputs[1], *input.shape())?;
            sums.to_dtype(input.dtype())
        }
        Op::Scatter { axis, .. } => g.gathered("scatter_add", axis as usize, &inputs[1], *input.shape()),
        Op::Cat { axis } => {
            let before: usize = inputs[..operand].iter().map(|part| part.dims()[axis as usize]).sum();
            g.narrow(axis as usize, before, input.dims()[axis as usize])
        }
        Op::Pad { before } => {
            before.iter().enumerate().try_fold(g.clone(), |g, (i, &start)| g.narrow(i, start, input.dims()[i]))
        }
        Op::Leaf
        | Op::Scalar(_)
        | Op::Iota
        | Op::Random { .. }
        | Op::Bound { .. }
        | Op::Update { .. }
        | Op::Attention(_) => Err(Error::NoGradient { op: node.op.name(), reason: "the op has no gradient".into() }),
    }
}

fn elementwise(op: Elementwise, inputs: &[Tensor], y: &Tensor, g: &Tensor, operand: usize) -> Result<Tensor> {
    let arena = Arena::default();
    let mut xs = [arena.add(Ok(inputs[0].clone())); 3];
    for (slot, input) in xs.iter_mut().zip(inputs).skip(1) {
        *slot = arena.add(Ok(input.clone()));
    }
    let gy = (arena.add(Ok(g.clone())), arena.add(Ok(y.clone())));
    let rule = op.gradient(xs, gy, operand).ok_or_else(|| {
        let reason = format!("the op table has no rule for it (called at {})", y.0.site);
        Error::NoGradient { op: op.name(), reason }
    })?;
    let gradient = arena.take(rule)?;
    // A rule may leave out what it broadcasts over: a zero is one number.
    let whole = if gradient.shape() == y.shape() { gradient } else { gradient.expand(y.shape())? };
    sum_to(&whole, inputs[operand].shape())
}

/// Sums over what was broadcast from `shape`.
fn sum_to(g: &Tensor, shape: &Shape) -> Result<Tensor> {
    if g.shape() == shape {
        return Ok(g.clone());
    }
    let lead = g.rank() - shape.rank();
    let repeated = |&i: &usize| i < lead || (shape.dims()[i - lead] == 1 && g.dims()[i] != 1);
    let dims: Vec<usize> = (0..g.rank()).filter(repeated).collect();
    g.sum(&dims[..])?.reshape(shape)
}

fn reduction(op: Reduction, axes: &Dims<usize>, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Tensor> {
    let kept = x.shape().reduced(axes, true);
    let g = g.reshape(kept)?;
    match op {
        Reduction::Sum => g.expand(x.shape()),
        Reduction::Max | Reduction::Min => {
            // Ties share it.
            let chosen = x.eq(&y.reshape(kept)?)?.to_dtype(x.dtype().compute())?;
            let share = (g.widened()? / chosen.reduce(Reduction::Sum, axes, true)?)?;
            (chosen * share)?.to_dtype(x.dtype())
        }
        Reduction::Prod => product(axes, x, &g),
        Reduction::ArgMax | Reduction::ArgMin => {
            Err(Error::NoGradient { op: op.name(), reason: "positions have no gradient".into() })
        }
    }
}

/// The gradient of a product over `axes`: that of the same product as a tree of pairs, which is right at
/// zeros, and to any order.
fn product(axes: &Dims<usize>, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let recording = is_recording();
    // Without a second derivative to come, the tree's history ends here.
    let from = if recording { x.clone() } else { super::variable(x, u64::MAX) };
    let order: Vec<usize> = (0..x.rank()).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
    let rows: Vec<usize> = order[..x.rank() - axes.len()].iter().map(|&i| x.dims()[i]).collect();
    let count: usize = axes.iter().map(|&i| x.dims()[i]).product();
    let mut shape = rows.clone();
    shape.push(count);
    let dim = rows.len();
    let tree = with_recording(true, || {
        let mut level = from.permute(&order)?.reshape(shape)?;
        while level.dims()[dim] > 1 {
            let n = level.dims()[dim];
            let pairs = level.slice(dim, 0..n / 2 * 2, 2)?.mul(&level.slice(dim, 1..n, 2)?)?;
            level = match n % 2 {
                0 => pairs,
                _ => Tensor::cat(&[pairs, level.narrow(dim, n - 1, 1)?], dim)?,
            };
        }
        level.reshape(g.shape())
    })?;
    let mut found = super::grad_with(&tree, g, &[&from], recording)?;
    found.pop().ok_or_else(|| Error::internal("autograd::product", "no gradient"))
}

fn matmul(a: &Tensor, b: &Tensor, g: &Tensor, operand: usize) -> Result<Tensor> {
    let x = [a, b][operand];
    // The gradient of a transposed matrix is computed transposed: it ends up where the matrix lies straight.
    let sum = match (operand, is_transposed(x)) {
        (0, false) => g.matmul(&b.t()?)?,
        (0, true) => b.matmul(&g.t()?)?.t()?,
        _ => {
            let one_matrix = b.dims()[..b.rank() - 2].iter().all(|&d| d == 1);
            let (mut a, mut g) = (a.clone(), g.clone());
            if one_matrix && a.dims()[..a.rank() - 1] == g.dims()[..g.rank() - 1] {
                // One product over the rows of the whole batch, instead of a sum of products.
                (a, g) = (a.flatten(0, -2)?, g.flatten(0, -2)?);
            }
            if is_transposed(x) { g.t()?.matmul(&a)?.t()? } else { a.t()?.matmul(&g)? }
        }
    };
    if sum.rank() < x.rank() { sum.reshape(x.shape()) } else { sum_to(&sum, x.shape()) }
}

/// Whether the columns of a matrix lie straight in memory, and not its rows.
fn is_transposed(x: &Tensor) -> bool {
    let Op::View(view) = x.0.op else { return false };
    matches!(view.strides[..], [.., 1, column] if column != 1)
}

/// Tensors that rules compute with, and the first error.
#[derive(Default)]
struct Arena(RefCell<SmallVec<[Result<Tensor>; 8]>>);

/// A tensor of an [`Arena`], small enough to be copied.
#[derive(Clone, Copy)]
struct Handle<'a> {
    arena: &'a Arena,
    at: usize,
}

impl Arena {
    fn add(&self, tensor: Result<Tensor>) -> Handle<'_> {
        let mut tensors = self.0.borrow_mut();
        tensors.push(tensor);
        Handle { arena: self, at: tensors.len() - 1 }
    }

    fn take(&self, handle: Handle) -> Result<Tensor> {
        self.0.borrow()[handle.at].clone()
    }
}

impl<'a> Handle<'a> {
    fn get(self) -> Result<Tensor> {
        self.arena.take(self)
    }

    fn with(self, f: impl FnOnce(Tensor) -> Result<Tensor>) -> Handle<'a> {
        self.arena.add(self.get().and_then(f))
    }
}

impl Expr for Handle<'_> {
    fn lit(self, value: f64) -> Self {
        self.with(|x| Tensor::full((), value, x.dtype(), x.device()))
    }
    fn unary(self, op: Elementwise) -> Self {
        self.with(|x| Tensor::elementwise(op, &[&x]))
    }
    fn pow(self, o: Self) -> Self {
        self.with(|x| x.pow(o.get()?))
    }
    fn if_gt(self, o: Self, then: Self, other: Self) -> Self {
        self.with(|x| x.gt(o.get()?)?.where_cond(then.get()?, other.get()?))
    }
    fn if_eq(self, o: Self, then: Self, other: Self) -> Self {
        self.with(|x| x.eq(o.get()?)?.where_cond(then.get()?, other.get()?))
    }
    fn choose(self, then: Self, other: Self) -> Self {
        self.with(|x| x.where_cond(then.get()?, other.get()?))
    }
}

macro_rules! on_tensors {
    ($($Trait:ident $f:ident)+) => {$(
        impl $Trait for Handle<'_> {
            type Output = Self;
            fn $f(self, o: Self) -> Self {
                self.with(|x| Tensor::$f(&x, o.get()?))
            }
        }
    )+};
}
macro_rules! on_numbers {
    ($($Trait:ident $f:ident)+) => {$(
        impl $Trait<f64> for Handle<'_> {
            type Output = Self;
            fn $f(self, o: f64) -> Self {
                self.with(|x| Tensor::$f(&x, o))
            }
        }
    )+};
}
on_tensors!(Add add Sub sub Mul mul Div div);
on_numbers!(Add add Sub sub Mul mul);

impl Neg for Handle<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.with(|x| Tensor::neg(&x))
    }
}
