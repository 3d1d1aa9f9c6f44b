//! Derivatives by reverse accumulation: graph in, graph out.
//!
//! Ops on variables are tracked while they are recorded. [`Tensor::backward`] and [`grad`] walk from a
//! result to what it was computed from and record the gradient of each step by the rule in the op's
//! row. What they return is ordinary pending graph: it fuses with its neighbours and, recorded with
//! `create_graph`, can be differentiated again.

mod checkpoint;
mod rules;
mod view;

use checkpoint::Again;
pub use checkpoint::checkpoint;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Inputs, Node, NodeRef, Track, with_recording};
use crate::shape::Shape;
use crate::tensor::{Tensor, eval, full_precision};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A tensor that gradients are taken for, and that an optimiser changes.
///
/// Cloning is cheap and gives the same variable. Computations use [`Var::tensor`], the value at the time.
///
/// ```
/// use tensorlogic::{DType, Device, Tensor, Var};
/// let x = Var::new(&Tensor::from_vec(vec![1f32, 2.0], 2, &Device::cpu())?)?;
/// let loss = x.tensor().sqr()?.sum_all()?;
/// let gradients = loss.backward()?;
/// assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
#[derive(Clone)]
pub struct Var(Arc<Variable>);

struct Variable {
    id: u64,
    value: RwLock<Tensor>,
}

impl Var {
    /// A variable that starts as `value`, which is computed now.
    ///
    /// # Errors
    /// A dtype that is no float; what evaluation reports.
    pub fn new(value: &Tensor) -> Result<Var> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if !value.dtype().is_float() {
            return Err(Error::dtype("Var::new", value.dtype(), "variables are floats; convert with to_dtype"));
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        value.eval()?;
        Ok(Var(Arc::new(Variable { id, value: RwLock::new(variable(value, id)) })))
    }

    /// The present value, through which gradients flow to this variable.
    pub fn tensor(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the value, which is computed now. Graphs made before keep the old one.
    ///
    /// # Errors
    /// Another shape, dtype or device; what evaluation reports.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        let old = self.tensor();
        if value.shape() != old.shape() {
            return Err(Error::shapes("Var::set", old.shape(), value.shape(), "a variable keeps its shape"));
        }
        old.same_dtype("Var::set", value)?;
        old.same_device("Var::set", value)?;
        value.eval()?;
        self.replace(value);
        Ok(())
    }

    /// Changes the value without computing it.
    pub(crate) fn replace(&self, value: &Tensor) {
        *self.0.value.write().unwrap_or_else(PoisonError::into_inner) = variable(value, self.0.id);
    }

    /// The sizes of the dimensions.
    pub fn shape(&self) -> Shape {
        *self.tensor().shape()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.tensor().dtype()
    }

    /// Where the value lives.
    pub fn device(&self) -> Device {
        self.tensor().device().clone()
    }

    /// Tells variables apart.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }
}

impl PartialEq for Var {
    /// Whether both are the same variable.
    fn eq(&self, other: &Var) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Var {}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.tensor();
        write!(f, "Var({} {})", value.dtype(), value.shape())
    }
}

#[track_caller]
fn variable(value: &Tensor, id: u64) -> Tensor {
    Tensor(Node::alias(&value.0, id, Location::caller()))
}

/// The gradients that [`Tensor::backward`] found.
#[derive(Clone)]
pub struct Gradients {
    by_variable: FxHashMap<u64, Tensor>,
    /// What is computed in the same plan as the step that uses the gradients.
    pub(crate) together: Vec<Tensor>,
    /// Where the loss was scaled: what undoes it, and whether all gradients are finite.
    pub(crate) scaled: Option<Scaled>,
    /// The sum of the squares of each, once somebody asked for it.
    pub(crate) square_sums: Option<Tensor>,
}

/// How gradients of a scaled loss are to be used.
#[derive(Clone)]
pub(crate) struct Scaled {
    /// 1 / scale, a scalar.
    pub inverse: Tensor,
    /// Whether to take the step, a bool scalar.
    pub finite: Tensor,
    /// How many steps have not been taken so far, a scalar.
    pub skipped: Tensor,
}

impl Gradients {
    /// The gradient for a variable, of its shape and dtype; `None` if the loss does not depend on it,
    /// which is not the same as a gradient of zeros, or if it has no elements. Of a scaled loss, still
    /// scaled.
    pub fn get(&self, var: &Var) -> Option<&Tensor> {
        self.by_variable.get(&var.id())
    }

    /// Puts another gradient in the place of a variable's.
    ///
    /// # Errors
    /// Another shape or dtype than the variable's.
    pub fn insert(&mut self, var: &Var, gradient: Tensor) -> Result<()> {
        if gradient.shape() != &var.shape() {
            let reason = "a gradient has the shape of its variable";
            return Err(Error::shapes("Gradients::insert", gradient.shape(), &var.shape(), reason));
        }
        var.tensor().same_dtype("Gradients::insert", &gradient)?;
        self.by_variable.insert(var.id(), gradient);
        self.square_sums = None;
        Ok(())
    }

    /// Adds the gradients of another loss, which makes them those of the sum of both.
    ///
    /// ```
    /// use tensorlogic::{Device, Tensor, Var};
    /// let x = Var::new(&Tensor::scalar(3f32, &Device::cpu())?)?;
    /// let mut gradients = x.tensor().sqr()?.backward()?;
    /// gradients.eval()?; // what the first loss needed is free before the second is computed
    /// gradients.add((x.tensor() * 2.0)?.backward()?)?;
    /// assert_eq!(gradients.get(&x).unwrap().item::<f32>()?, 8.0);
    /// # Ok::<(), tensorlogic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Gradients of a scaled loss, of which [`crate::optim::MixedPrecision::backward_each`] takes several.
    pub fn add(&mut self, other: Gradients) -> Result<()> {
        if self.scaled.is_some() || other.scaled.is_some() {
            let reason = "scaled losses have scales of their own; use MixedPrecision::backward_each";
            return Err(Error::arg("Gradients::add", reason));
        }
        for (variable, gradient) in other.by_variable {
            let sum = match self.by_variable.remove(&variable) {
                Some(own) => no_grad(|| own + gradient)?,
                None => gradient,
            };
            self.by_variable.insert(variable, sum);
        }
        self.together.extend(other.together);
        self.square_sums = None;
        Ok(())
    }

    /// Computes the gradients now, and the losses that they came from.
    ///
    /// # Errors
    /// What evaluation reports.
    pub fn eval(&self) -> Result<()> {
        let mut list: Vec<(&u64, &Tensor)> = self.by_variable.iter().collect();
        list.sort_unstable_by_key(|(id, _)| Reverse(**id));
        eval(&self.together.iter().chain(list.into_iter().map(|(_, gradient)| gradient)).collect::<Vec<_>>())
    }

    /// How many variables have a gradient.
    pub fn len(&self) -> usize {
        self.by_variable.len()
    }

    /// Whether no variable has one.
    pub fn is_empty(&self) -> bool {
        self.by_variable.is_empty()
    }

    /// The gradients in a fixed order: last those of the variables made first, which a backward pass reaches last.
    pub(crate) fn ordered_mut(&mut self) -> Vec<&mut Tensor> {
        let mut list: Vec<(&u64, &mut Tensor)> = self.by_variable.iter_mut().collect();
        list.sort_unstable_by_key(|(id, _)| Reverse(**id));
        list.into_iter().map(|(_, gradient)| gradient).collect()
    }
}

/// Runs `work` without recording for derivatives, on this thread: for evaluation and updates by hand.
pub fn no_grad<T>(work: impl FnOnce() -> T) -> T {
    with_recording(false, work)
}

/// The gradients of a scalar with respect to tensors that it was computed from: values of variables, or
/// results on the way. With `create_graph` they can be differentiated again. The graph stays.
///
/// ```
/// use tensorlogic::{Device, Tensor, Var, grad};
/// let x = Var::new(&Tensor::scalar(2f64, &Device::cpu())?)?.tensor();
/// let y = x.pow(3.0)?;
/// let first = &grad(&y, &[&x], true)?[0]; // 3 x^2
/// let second = &grad(first, &[&x], false)?[0]; // 6 x
/// assert_eq!((first.item::<f64>()?, second.item::<f64>()?), (12.0, 12.0));
/// # Ok::<(), tensorlogic::Error>(())
/// ```
///
/// # Errors
/// A result that is no scalar, a tensor that it does not depend on.
#[track_caller]
pub fn grad(of: &Tensor, with_respect_to: &[&Tensor], create_graph: bool) -> Result<Vec<Tensor>> {
    grad_with(of, &seed_of(of, "grad")?, with_respect_to, create_graph)
}

/// [`grad`] of a tensor of any shape, contracted with `seed`, which has its shape and dtype: a
/// vector-Jacobian product.
///
/// # Errors
/// A seed of another shape or dtype; otherwise as [`grad`].
#[track_caller]
pub fn grad_with(of: &Tensor, seed: &Tensor, with_respect_to: &[&Tensor], create_graph: bool) -> Result<Vec<Tensor>> {
    check_seed("grad", of, seed)?;
    let targets: Vec<usize> = with_respect_to.iter().map(|t| t.0.id()).collect();
    let trace = Trace::of("grad", &of.0, Some(&targets))?;
    let found = with_recording(create_graph, || trace.gradients(seed))?;
    let gradient = |(i, target): (usize, &usize)| {
        let missing = || {
            let reason = format!("the result does not depend on tensor {i}; ask for what it was computed from");
            Error::NoGradient { op: "grad", reason }
        };
        found.get(target).cloned().ok_or_else(missing)
    };
    targets.iter().enumerate().map(gradient).collect()
}

impl Tensor {
    /// The gradients of this scalar for all variables that it was computed from.
    ///
    /// The graph behind it is let go of: what only derivatives would need is freed as soon as the
    /// gradients are computed. Use [`grad`] to keep it.
    ///
    /// # Errors
    /// No scalar; no variable behind it; a graph that an earlier call has let go of.
    #[track_caller]
    pub fn backward(&self) -> Result<Gradients> {
        self.backward_with(&seed_of(self, "backward")?)
    }

    /// [`Tensor::backward`] of a tensor of any shape, contracted with `seed`, which has its shape and
    /// dtype.
    ///
    /// # Errors
    /// A seed of another shape or dtype; otherwise as [`Tensor::backward`].
    #[track_caller]
    pub fn backward_with(&self, seed: &Tensor) -> Result<Gradients> {
        check_seed("backward", self, seed)?;
        let trace = Trace::of("backward", &self.0, None)?;
        let mut found = no_grad(|| trace.gradients(seed))?;
        let mut by_variable: FxHashMap<u64, Tensor> = FxHashMap::default();
        for node in trace.steps.iter().map(|step| &step.node).filter(|node| node.variable != 0) {
            let Some(gradient) = found.remove(&node.id()) else { continue };
            // Several values of one variable may be in play; their gradients add up.
            let sum = match by_variable.remove(&node.variable) {
                Some(other) => no_grad(|| other + gradient)?,
                None => gradient,
            };
            by_variable.insert(node.variable, sum);
        }
        if by_variable.is_empty() {
            let reason = "the tensor does not depend on any Var; compute it from Var::tensor(), outside no_grad";
            return Err(Error::NoGradient { op: "backward", reason: reason.into() });
        }
        trace.release();
        Ok(Gradients { by_variable, together: vec![self.clone()], scaled: None, square_sums: None })
    }

    /// The same elements without their history: no gradient flows through.
    #[track_caller]
    pub fn detach(&self) -> Tensor {
        match self.0.track() {
            Track::Constant => self.clone(),
            _ => Tensor(Node::alias(&self.0, 0, Location::caller())),
        }
    }

    /// Whether gradients flow through this tensor: it is a variable's value, or was computed from one.
    pub fn is_tracked(&self) -> bool {
        self.0.track() != Track::Constant
    }
}

#[track_caller]
fn seed_of(of: &Tensor, op: &'static str) -> Result<Tensor> {
    if of.numel() != 1 {
        let reason = "only a scalar has a gradient; reduce it, with mean_all() for example, or give a seed";
        return Err(Error::shape(op, of.shape(), reason));
    }
    Tensor::ones(of.shape(), of.dtype(), of.device())
}

fn check_seed(op: &'static str, of: &Tensor, seed: &Tensor) -> Result<()> {
    if of.shape() != seed.shape() {
        return Err(Error::shapes(op, of.shape(), seed.shape(), "the seed must have the tensor's shape"));
    }
    of.same_dtype(op, seed)?;
    of.same_device(op, seed)
}

/// A node that gradients flow through.
struct Step {
    node: NodeRef,
    /// Positions of the inputs; `None` for those that no gradient is wanted for.
    inputs: SmallVec<[Option<usize>; 3]>,
    /// Its gradient is asked for.
    target: bool,
    /// It is a target, or leads to one.
    wanted: bool,
}

/// What gradients flow through, inputs before consumers.
struct Trace {
    steps: Vec<Step>,
}

impl Trace {
    /// Walks from `root` to the targets: the nodes of these ids, or all variables.
    fn of(op: &'static str, root: &NodeRef, targets: Option<&[usize]>) -> Result<Trace> {
        let mut steps: Vec<Step> = Vec::with_capacity(64);
        let mut positions: FxHashMap<usize, usize> = FxHashMap::with_capacity_and_hasher(64, Default::default());
        let is_target = |node: &NodeRef| match targets {
            Some(ids) => ids.contains(&node.id()),
            None => node.track() == Track::Variable,
        };
        // A node, its inputs, and how many of them have been seen.
        let mut stack: Vec<(NodeRef, Inputs, usize)> = Vec::with_capacity(64);
        let open = |node: NodeRef| -> Result<_> {
            let inputs = match node.track() {
                Track::Tracked => node.state().inputs.clone(),
                Track::Released => return Err(released(op, &node)),
                Track::Constant | Track::Variable => SmallVec::new(),
            };
            Ok((node, inputs, 0))
        };
        stack.push(open(root.clone())?);
        while let Some((node, inputs, seen)) = stack.last_mut() {
            if let Some(input) = inputs.get(*seen) {
                *seen += 1;
                if input.track() != Track::Constant && !positions.contains_key(&input.id()) {
                    let frame = open(input.clone())?;
                    stack.push(frame);
                }
                continue;
            }
            let at = |input: &NodeRef| positions.get(&input.id()).copied().filter(|&at: &usize| steps[at].wanted);
            let inputs: SmallVec<[Option<usize>; 3]> = inputs.iter().map(at).collect();
            let target = is_target(node);
            let wanted = target || inputs.iter().any(Option::is_some);
            positions.insert(node.id(), steps.len());
            steps.push(Step { node: node.clone(), inputs, target, wanted });
            stack.pop();
        }
        Ok(Trace { steps })
    }

    /// The gradient of every target that the seed reaches, by id.
    fn gradients(&self, seed: &Tensor) -> Result<FxHashMap<usize, Tensor>> {
        // Rules say themselves in which dtype they compute.
        full_precision(|| {
            let mut gradients: Vec<Option<Tensor>> = vec![None; self.steps.len()];
            let mut found = FxHashMap::default();
            if let Some(root) = gradients.last_mut() {
                *root = Some(seed.clone());
            }
            let mut again = Again::default();
            for (i, step) in self.steps.iter().enumerate().rev().filter(|(_, step)| step.wanted) {
                let Some(gradient) = gradients[i].take() else { continue };
                let node = again.of(&step.node, &gradient)?;
                let rule = rules::Rule::new(&node, &gradient)?;
                for (operand, at) in step.inputs.iter().enumerate().filter_map(|(j, at)| Some((j, (*at)?))) {
                    let term = rule.gradient(operand)?;
                    gradients[at] = Some(match gradients[at].take() {
                        Some(sum) => (sum + term)?,
                        None => term,
                    });
                }
                if step.target {
                    found.insert(step.node.id(), gradient);
                }
            }
            Ok(found)
        })
    }

    /// Lets go of the graph.
    fn release(&self) {
        self.steps.iter().for_each(|step| step.node.release());
    }
}

fn released(op: &'static str, node: &Node) -> Error {
    let reason = format!(
        "the graph of {} (made at {}) was let go of by an earlier backward(); \
         add the losses up first, or use grad(), which keeps it",
        node.op.name(),
        node.site
    );
    Error::NoGradient { op, reason }
}
