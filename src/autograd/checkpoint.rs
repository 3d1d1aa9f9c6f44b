//! Activation checkpointing: what a backward pass computes again rather than reads.

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Inputs, Node, NodeRef, Op, Track, in_segment, is_recording};
use crate::tensor::Tensor;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;

/// Runs `work`, of whose results on the way nothing is kept for derivatives: the backward pass computes them again from
/// what `work` took from outside (Chen et al. 2016). Gradients are the same: on the CPU bit for bit, on a GPU but for the
/// order of folds, which follows from the kernel. Random numbers are drawn once.
///
/// A model of many layers, each of them checkpointed, needs the memory of the layers' inputs and of one layer, and a
/// third more computation. It works where the loss and its gradients are computed together, as
/// [`crate::optim::Optimizer::step`] does: a loss that is read before [`Tensor::backward`] keeps what is on the way.
/// Second derivatives keep it, too.
///
/// ```
/// use tensorlogic::{DType, Device, Tensor, Var, checkpoint};
/// let x = Var::new(&Tensor::ones(8, DType::F32, &Device::cpu())?)?;
/// let y = checkpoint(|| x.tensor().exp()?.sin()?.exp())?;
/// let gradients = y.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&x).unwrap().dims(), [8]);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
///
/// # Errors
/// What `work` returns.
pub fn checkpoint<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    in_segment(work)
}

/// Nodes that a backward pass computes again, by those whose elements they are.
#[derive(Default)]
pub(super) struct Again {
    twins: FxHashMap<usize, NodeRef>,
    /// What each segment takes from outside.
    gated: FxHashMap<(u64, usize), NodeRef>,
    /// For each segment, an element of the first gradient that reaches it.
    gates: FxHashMap<u64, Tensor>,
}

impl Again {
    /// What the rule of `node`, which `gradient` has reached, reads from: the node, or in a segment one like it.
    pub fn of(&mut self, node: &NodeRef, gradient: &Tensor) -> Result<NodeRef> {
        if node.segment == 0 || is_recording() {
            return Ok(node.clone());
        }
        if let Entry::Vacant(gate) = self.gates.entry(node.segment) {
            gate.insert(gradient.flatten_all()?.narrow(0, 0, 1)?.reshape(())?);
        }
        // Inputs first, with a list instead of the stack.
        let mut list = vec![node.clone()];
        while let Some(next) = list.last().cloned() {
            if self.twins.contains_key(&next.id()) {
                list.pop();
                continue;
            }
            let inputs = next.state().inputs.clone();
            let belongs = |input: &NodeRef| input.segment == node.segment && input.track() != Track::Variable;
            let open = |input: &&NodeRef| belongs(input) && !self.twins.contains_key(&input.id());
            let missing: Vec<NodeRef> = inputs.iter().filter(open).cloned().collect();
            if !missing.is_empty() && next.storage().is_none() {
                list.extend(missing);
                continue;
            }
            let twin = self.twin(&next, &inputs, &belongs)?;
            self.twins.insert(next.id(), twin);
            list.pop();
        }
        Ok(self.twins.get(&node.id()).unwrap_or(node).clone())
    }

    /// A node like `node`, whose inputs in the segment have theirs; itself where nothing would be gained.
    fn twin(&mut self, node: &NodeRef, inputs: &Inputs, belongs: &dyn Fn(&NodeRef) -> bool) -> Result<NodeRef> {
        if node.storage().is_some() {
            return Ok(node.clone());
        }
        let mut changed = matches!(node.op, Op::Random { .. });
        let mut twins = Inputs::new();
        for input in inputs {
            let twin = match belongs(input) {
                true => self.twins.get(&input.id()).unwrap_or(input).clone(),
                false => self.behind_the_gate(input, node.segment)?,
            };
            changed |= twin.id() != input.id();
            twins.push(twin);
        }
        if !changed {
            return Ok(node.clone());
        }
        Ok(Node::pending(node.op, twins, &node.shape, node.dtype, &node.device, node.site))
    }

    /// What the segment takes from outside, so that it is not read before a gradient has reached the segment: otherwise all
    /// segments could be computed again at once.
    fn behind_the_gate(&mut self, input: &NodeRef, segment: u64) -> Result<NodeRef> {
        let activation = input.track() != Track::Variable && input.dtype.is_float() && input.shape.rank() > 0;
        let Some(gate) = self.gates.get(&segment).filter(|_| activation) else { return Ok(input.clone()) };
        if let Some(gated) = self.gated.get(&(segment, input.id())) {
            return Ok(gated.clone());
        }
        // Never taken, which the plan does not know: numbers are inputs of it.
        let never = Tensor::full((), 0.0, DType::Bool, &input.device)?;
        let gated = never.where_cond(gate.to_dtype(input.dtype)?, Tensor(input.clone()))?;
        self.gated.insert((segment, input.id()), gated.0.clone());
        Ok(gated.0)
    }
}
