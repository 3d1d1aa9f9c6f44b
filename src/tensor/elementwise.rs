//! A method a row of the op table, conversion, and compositions of elementwise ops.

use super::{Operand, Tensor, autocast};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::for_each_elementwise;
use crate::graph::Op;
use crate::ops::{Elementwise, Sort};
use crate::shape::Shape;

macro_rules! methods { ($(
    $(#[doc = $doc:literal])* $V:ident $f:ident($($a:ident),+) $sort:ident $rounding:ident { $($rest:tt)* }
)+) => { $(method!($sort [$($doc)*] $V $f($($a),+));)+ } }

macro_rules! method {
    (Select [$($doc:literal)*] $V:ident $f:ident($($a:ident),+)) => {};
    ($sort:ident [$($doc:literal)*] $V:ident $f:ident($first:ident $(, $a:ident)*)) => {
        impl Tensor {
            $(#[doc = $doc])*
            ///
            /// Elementwise; operands broadcast.
            ///
            /// # Errors
            /// Shapes that do not broadcast, dtypes that differ or that the op is not defined for.
            #[allow(clippy::should_implement_trait)]
            #[track_caller]
            pub fn $f(&self $(, $a: impl Operand)*) -> Result<Tensor> {
                $(let $a = $a.operand(stringify!($f), self)?;)*
                Tensor::elementwise(Elementwise::$V, &[self $(, &$a)*])
            }
        }
    };
}
for_each_elementwise!(methods);

impl Tensor {
    /// Records an elementwise op.
    #[track_caller]
    pub(crate) fn elementwise(op: Elementwise, operands: &[&Tensor]) -> Result<Tensor> {
        let name = op.name();
        let typed = if op.sort() == Sort::Select { &operands[1..] } else { operands };
        if let Some(dtype) = autocast::common(typed.iter().map(|t| t.dtype())) {
            let untyped = operands.len() - typed.len();
            let cast = typed.iter().map(|t| t.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
            let all: Vec<&Tensor> = operands[..untyped].iter().copied().chain(&cast).collect();
            return Tensor::elementwise(op, &all);
        }
        for other in &operands[1..] {
            operands[0].same_device(name, other)?;
        }
        for other in &typed[1..] {
            typed[0].same_dtype(name, other)?;
        }
        let dtype = result_dtype(op, operands[0], typed[0].dtype())?;
        let mut shape = *operands[0].shape();
        for other in &operands[1..] {
            shape = Shape::broadcast(name, &shape, other.shape())?;
        }
        Tensor::record(Op::Elementwise(op), operands, shape, dtype, operands[0].device())
    }

    /// `then` where this bool tensor holds, else `other`; all three broadcast. Numbers take the dtype of
    /// the branch that is a tensor.
    ///
    /// # Errors
    /// This tensor is not bool, branches of different dtypes, two numbers, shapes that do not broadcast.
    #[track_caller]
    pub fn where_cond(&self, then: impl Operand, other: impl Operand) -> Result<Tensor> {
        let like = then.as_tensor().or(other.as_tensor()).cloned();
        let like = like.ok_or_else(|| {
            Error::arg("where_cond", "both branches are numbers; make one a tensor, with Tensor::full for example")
        })?;
        let (then, other) = (then.operand("where_cond", &like)?, other.operand("where_cond", &like)?);
        Tensor::elementwise(Elementwise::Select, &[self, &then, &other])
    }

    /// The elements converted to `dtype`: floats round to nearest even, floats to integers truncate and
    /// saturate (NaN gives 0), integers wrap, and anything but 0 is true.
    ///
    /// A narrow value that is converted to a wider float in the kernel that computes it is not rounded
    /// in between, as no intermediate value of a fused kernel is.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return self.unchanged();
        }
        Tensor::record(Op::Cast, &[self], *self.shape(), dtype, self.device())
    }

    /// `self` in the dtype that it is computed in.
    #[track_caller]
    pub(crate) fn widened(&self) -> Result<Tensor> {
        self.to_dtype(self.dtype().compute())
    }

    /// min(max(x, 0), 6).
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn relu6(&self) -> Result<Tensor> {
        self.clamp(0.0, 6.0)
    }

    /// clamp(x / 6 + 1/2, 0, 1).
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn hardsigmoid(&self) -> Result<Tensor> {
        self.needs_float("hardsigmoid")?;
        (((self / 6.0)? + 0.5)?).clamp(0.0, 1.0)
    }

    /// x hardsigmoid(x).
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn hardswish(&self) -> Result<Tensor> {
        self * &self.hardsigmoid()?
    }

    /// x tanh(softplus(x)).
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn mish(&self) -> Result<Tensor> {
        self * &self.softplus()?.tanh()?
    }

    /// x / (1 + |x|).
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn softsign(&self) -> Result<Tensor> {
        self.needs_float("softsign")?;
        self / &(self.abs()? + 1.0)?
    }

    /// The scaled ELU of Klambauer et al. 2017.
    ///
    /// # Errors
    /// As the elementwise ops.
    #[track_caller]
    pub fn selu(&self) -> Result<Tensor> {
        self.elu(1.673_263_242_354_377_2)? * 1.050_700_987_355_480_5
    }
}

/// The dtype of the result, for operands that agree.
fn result_dtype(op: Elementwise, first: &Tensor, dtype: DType) -> Result<DType> {
    let name = op.name();
    match op.sort() {
        Sort::Float if !dtype.is_float() => Err(Error::dtype(name, dtype, "convert with to_dtype(DType::F32)")),
        Sort::Num if dtype == DType::Bool => Err(Error::dtype(name, dtype, "convert with to_dtype(DType::U8)")),
        Sort::Test if !dtype.is_float() => Err(Error::dtype(name, dtype, "integers are always finite")),
        Sort::Logic if dtype != DType::Bool => {
            Err(Error::dtype(name, dtype, "make a bool first, with ne(0) for example"))
        }
        Sort::Select if first.dtype() != DType::Bool => {
            Err(Error::dtype(name, first.dtype(), "the condition must be bool; make one with ne(0)"))
        }
        Sort::Float | Sort::Num | Sort::Select => Ok(dtype),
        Sort::Cmp | Sort::Test | Sort::Logic => Ok(DType::Bool),
    }
}
