//! Steps that are run again and again: a training step with its optimiser, a forward pass, a step of decoding.
//!
//! ```
//! use tensorlogic::optim::{AdamW, Optimizer};
//! use tensorlogic::{Device, Tensor, Var, capture};
//! let device = Device::cpu();
//! let weight = Var::new(&Tensor::from_slice(&[0.5f32, -1.0], 2, &device)?)?;
//! let mut optimizer = Optimizer::new(AdamW::default(), vec![weight.clone()], 0.01)?;
//! let mut step = capture(|inputs: &[Tensor]| {
//!     let loss = ((&weight.tensor() * &inputs[0])? - &inputs[1])?.sqr()?.mean_all()?;
//!     optimizer.step(loss.backward()?)?;
//!     Ok(loss)
//! });
//! let x = Tensor::from_slice(&[1f32, 2.0], 2, &device)?;
//! let y = Tensor::from_slice(&[3f32, 4.0], 2, &device)?;
//! let first = step.run(&[&x, &y])?.item::<f32>()?;
//! let second = step.run(&[&x, &y])?.item::<f32>()?;
//! assert!(second < first);
//! # Ok::<(), tensorlogic::Error>(())
//! ```

use crate::device::Device;
use crate::dtype::DType;
use crate::engine::{self, Purpose, Workspace};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::{Tensor, eval};

/// Makes a step replayable: see [`Captured`].
pub fn capture<T: Outputs, F: FnMut(&[Tensor]) -> Result<T>>(step: F) -> Captured<F> {
    Captured { step, inputs: None, workspace: Workspace::default() }
}

/// A step that is one plan, whose memory stays where it is, and that a GPU runs as one prepared list of work.
///
/// The closure is called each time, so nothing that it reads is ever stale: learning rates, step counts, random numbers,
/// branches; what it records is only compared with the plan that is there. All that the closure evaluates (an optimiser's
/// step, [`Tensor::eval`]) and all that it returns is computed together when it ends; reading elements in it works, and
/// divides the step.
///
/// Inputs are used where they are, and have to have the shapes, dtypes and devices of the first run. Results have memory
/// of their own. What is computed on the way stays allocated until the step is dropped.
pub struct Captured<F> {
    step: F,
    /// What the inputs of the first run were.
    inputs: Option<Vec<(Shape, DType, Device)>>,
    workspace: Workspace,
}

impl<F> Captured<F> {
    /// Runs the step on these inputs. On a GPU the results are there for whatever is asked of it later.
    ///
    /// # Errors
    /// Inputs unlike those of the first run; what the closure returns; what evaluation reports.
    pub fn run<T: Outputs>(&mut self, inputs: &[&Tensor]) -> Result<T>
    where
        F: FnMut(&[Tensor]) -> Result<T>,
    {
        self.check(inputs)?;
        eval(inputs)?;
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        let (result, roots) = engine::gather(|| {
            let outputs = (self.step)(&inputs)?;
            // Inside another captured step these are that step's.
            outputs.visit(&mut |tensor| tensor.eval())?;
            Ok(outputs)
        });
        drop(inputs);
        let outputs = result?;
        engine::evaluate_in(&roots, Purpose::Later, Some(&mut self.workspace))?;
        Ok(outputs)
    }

    fn check(&mut self, inputs: &[&Tensor]) -> Result<()> {
        let kind = |x: &&Tensor| (*x.shape(), x.dtype(), x.device().clone());
        let known = self.inputs.get_or_insert_with(|| inputs.iter().map(kind).collect());
        if known.len() != inputs.len() {
            let reason = format!("{} inputs; the first run had {}", inputs.len(), known.len());
            return Err(Error::arg("Captured::run", reason));
        }
        for (i, (input, known)) in inputs.iter().zip(known).enumerate() {
            let given = kind(input);
            if given != *known {
                let say = |(shape, dtype, device): &(Shape, DType, Device)| format!("{dtype} {shape} on {device}");
                let reason = format!("input {i} is {}; in the first run it was {}", say(&given), say(known));
                return Err(Error::arg("Captured::run", reason));
            }
        }
        Ok(())
    }
}

/// What a captured step may return: tensors, and tuples, lists and options of what it may return.
pub trait Outputs {
    /// Calls `visit` with each tensor.
    ///
    /// # Errors
    /// What `visit` returns.
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()>;
}

impl Outputs for Tensor {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        visit(self)
    }
}

impl Outputs for () {
    fn visit(&self, _visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

impl<T: Outputs> Outputs for Vec<T> {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.iter().try_for_each(|outputs| outputs.visit(visit))
    }
}

impl<T: Outputs, const N: usize> Outputs for [T; N] {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.iter().try_for_each(|outputs| outputs.visit(visit))
    }
}

impl<T: Outputs> Outputs for Option<T> {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.iter().try_for_each(|outputs| outputs.visit(visit))
    }
}

impl<A: Outputs, B: Outputs> Outputs for (A, B) {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.0.visit(visit)?;
        self.1.visit(visit)
    }
}

impl<A: Outputs, B: Outputs, C: Outputs> Outputs for (A, B, C) {
    fn visit(&self, visit: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        self.0.visit(visit)?;
        self.1.visit(visit)?;
        self.2.visit(visit)
    }
}
