//! Optimisers: updates of variables from gradients, all of them in one plan.
//!
//! ```
//! use tensorlogic::optim::{AdamW, Optimizer, Schedule};
//! use tensorlogic::{Device, Tensor, Var};
//! let x = Var::new(&Tensor::scalar(3f32, &Device::cpu())?)?;
//! let mut optimizer = Optimizer::new(AdamW::default(), vec![x.clone()], 0.1)?;
//! let schedule = Schedule::cosine(200).with_warm_up(10);
//! for step in 0..200 {
//!     optimizer.set_rate_factor(schedule.factor(step));
//!     let loss = (x.tensor() - 1.0)?.sqr()?;
//!     optimizer.step(loss.backward()?)?;
//! }
//! assert!((x.tensor().item::<f32>()? - 1.0).abs() < 0.01);
//! # Ok::<(), tensorlogic::Error>(())
//! ```

mod adam;
mod clip;
mod precision;
mod schedule;
mod sgd;

pub use adam::{Adam, AdamW};
pub use precision::MixedPrecision;
pub use schedule::Schedule;
pub use sgd::Sgd;

use crate::autograd::{Gradients, Var, no_grad};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::io::matching;
use crate::tensor::{Tensor, eval};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Parameters with a learning rate of their own.
#[derive(Clone, Debug)]
pub struct Group {
    /// What is updated.
    pub parameters: Vec<Var>,
    /// The step size, before the schedule's factor.
    pub learning_rate: f64,
    /// Decay of the parameters; `None` takes the rule's.
    pub weight_decay: Option<f64>,
}

/// How one parameter changes: the formula of an optimiser.
pub trait Rule {
    /// The optimiser's name, in saved states.
    const NAME: &'static str;
    /// Names of the tensors that it keeps for each parameter.
    const SLOTS: &'static [&'static str];

    /// Decay where a group names none.
    fn weight_decay(&self) -> f64;

    /// Checks its numbers.
    ///
    /// # Errors
    /// A number that makes no sense.
    fn check(&self) -> Result<()>;

    /// What it keeps of parameter `p`, after taking in the gradient `g`; all in the compute dtype.
    ///
    /// # Errors
    /// None that is not a bug.
    fn accumulate(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Vec<Tensor>>;

    /// The parameter after a step along gradient `g`, which `slots` have taken in already.
    ///
    /// # Errors
    /// None that is not a bug.
    fn apply(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Tensor>;
}

/// The numbers of one step.
#[derive(Clone, Debug)]
pub struct Now {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the parameter.
    pub weight_decay: f64,
    /// Which step it is, from 1 on, counting steps that were skipped.
    pub step: u64,
    /// How many steps were skipped, where that is known on the device only.
    skipped: Option<Tensor>,
    /// See [`Now::shared`].
    shared: RefCell<Vec<((&'static str, DType), Tensor)>>,
}

/// How many steps were taken: known, or computed on the device.
pub(crate) enum Taken {
    Host(f64),
    Device(Tensor),
}

impl Now {
    /// Steps taken, with this one.
    pub(crate) fn taken(&self) -> Result<Taken> {
        Ok(match &self.skipped {
            None => Taken::Host(self.step as f64),
            Some(skipped) => {
                Taken::Device(self.shared("taken", skipped.dtype(), || skipped.neg()? + self.step as f64)?)
            }
        })
    }

    /// A number of the step, as a scalar of `like`'s dtype; recorded once for all parameters of that dtype. What is
    /// named differently is apart, whatever it is, so that the plan stays the same.
    pub(crate) fn number(&self, name: &'static str, number: f64, like: &Tensor) -> Result<Tensor> {
        self.shared(name, like.dtype(), || Tensor::full((), number, like.dtype(), like.device()))
    }

    /// The same for a number that is computed.
    pub(crate) fn shared(
        &self,
        name: &'static str,
        dtype: DType,
        number: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let known =
            |list: &Vec<(_, Tensor)>| list.iter().find(|(key, _)| *key == (name, dtype)).map(|(_, x)| x.clone());
        if let Some(number) = known(&self.shared.borrow()) {
            return Ok(number);
        }
        let number = number()?.to_dtype(dtype)?;
        self.shared.borrow_mut().push(((name, dtype), number.clone()));
        Ok(number)
    }
}

/// An optimiser: a rule, the parameters that it updates, and its state.
pub struct Optimizer<R> {
    rule: R,
    groups: Vec<Group>,
    /// For each variable, what the rule keeps; in the compute dtype.
    slots: FxHashMap<u64, Vec<Tensor>>,
    rate_factor: f64,
    steps: u64,
}

impl<R: Rule> Optimizer<R> {
    /// One group of parameters.
    ///
    /// # Errors
    /// A negative or infinite learning rate or a number of the rule that makes no sense; out of memory.
    pub fn new(rule: R, parameters: Vec<Var>, learning_rate: f64) -> Result<Self> {
        Optimizer::with_groups(rule, vec![Group { parameters, learning_rate, weight_decay: None }])
    }

    /// Several groups of parameters.
    ///
    /// # Errors
    /// As [`Optimizer::new`]; a parameter in two places.
    pub fn with_groups(rule: R, groups: Vec<Group>) -> Result<Self> {
        rule.check()?;
        let mut slots = FxHashMap::default();
        for group in &groups {
            check_number("learning rate", group.learning_rate)?;
            group.weight_decay.map_or(Ok(()), |decay| check_number("weight decay", decay))?;
            for var in &group.parameters {
                let (shape, dtype, device) = (var.shape(), var.dtype().compute(), var.device());
                let zeros = || Tensor::zeros(shape, dtype, &device)?.contiguous();
                let fresh = R::SLOTS.iter().map(|_| zeros()).collect::<Result<Vec<Tensor>>>()?;
                if slots.insert(var.id(), fresh).is_some() {
                    return Err(Error::arg("Optimizer", format!("{var:?} is given twice")));
                }
            }
        }
        eval(&slots.values().flatten().collect::<Vec<_>>())?;
        Ok(Optimizer { rule, groups, slots, rate_factor: 1.0, steps: 0 })
    }

    /// Takes a step: updates every parameter that has a gradient, and computes its new value, the state,
    /// and the loss that the gradients came from, in one plan. Gradients of a scaled loss
    /// ([`MixedPrecision`]) are unscaled; if they are not finite, the step changes nothing.
    ///
    /// # Errors
    /// A gradient of another device; what evaluation reports.
    pub fn step(&mut self, gradients: Gradients) -> Result<()> {
        let changed = no_grad(|| self.record(&gradients))?;
        self.steps += 1;
        let mut roots = gradients.together.clone();
        // What is updated may now be written over its old value: nothing here holds that.
        drop(gradients);
        // Last layers first, as gradients come: what a layer's need is free before the next one's is computed.
        roots.extend(changed.into_iter().rev().flat_map(|(var, slots)| slots.into_iter().chain([var.tensor()])));
        eval(&roots.iter().collect::<Vec<_>>())
    }

    /// Records the new values. The variables and slots that changed.
    fn record(&mut self, gradients: &Gradients) -> Result<Vec<(Var, Vec<Tensor>)>> {
        let scaled = gradients.scaled.as_ref();
        let mut changed = Vec::new();
        for group in &self.groups {
            let now = Now {
                learning_rate: group.learning_rate * self.rate_factor,
                weight_decay: group.weight_decay.unwrap_or(self.rule.weight_decay()),
                step: self.steps + 1,
                skipped: scaled.map(|s| s.skipped.clone()),
                shared: RefCell::default(),
            };
            for var in &group.parameters {
                let Some(g) = gradients.get(var) else { continue };
                let old = var.tensor().detach();
                let (p, mut g) = (old.widened()?, g.to_dtype(old.dtype().compute())?);
                let slots = &self.slots[&var.id()];
                if let Some(scaled) = scaled {
                    g = (g * scaled.inverse.to_dtype(p.dtype())?)?;
                }
                let keep = |new: &Tensor, old: &Tensor| match scaled {
                    Some(scaled) => scaled.finite.where_cond(new, old),
                    None => Ok(new.clone()),
                };
                // The parameter follows from the slots as they are kept: all come out of one kernel.
                let mut new_slots = self.rule.accumulate(&p, &g, slots, &now)?;
                for (new, old) in new_slots.iter_mut().zip(slots) {
                    *new = keep(new, old)?;
                }
                let new = keep(&self.rule.apply(&p, &g, &new_slots, &now)?, &p)?;
                changed.push((var.clone(), new.to_dtype(old.dtype())?, new_slots));
            }
        }
        Ok(changed
            .into_iter()
            .map(|(var, new, slots)| {
                var.replace(&new);
                self.slots.insert(var.id(), slots.clone());
                (var, slots)
            })
            .collect())
    }

    /// The groups, whose learning rates and decays may be changed.
    pub fn groups_mut(&mut self) -> &mut [Group] {
        &mut self.groups
    }

    /// What every learning rate is multiplied by: what a [`Schedule`] gives.
    pub fn set_rate_factor(&mut self, factor: f64) {
        self.rate_factor = factor;
    }

    /// How many steps were taken, or skipped for gradients that were not finite.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What has to be saved, beside the parameters, to go on later: tensors by name (`group.parameter.slot`)
    /// and the number of steps.
    pub fn state(&self) -> (BTreeMap<String, Tensor>, u64) {
        let tensors = self.named_slots().into_iter().map(|(name, id, i)| (name, self.slots[&id][i].clone())).collect();
        (tensors, self.steps)
    }

    /// Goes on from a state of an optimiser with the same rule and groups. Either all is taken over or
    /// nothing.
    ///
    /// # Errors
    /// Names that are missing or unknown; another shape or dtype.
    pub fn load_state(&mut self, tensors: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let names = self.named_slots();
        let slot = |(name, id, i): &(String, u64, usize)| (name.clone(), self.slots[id][*i].clone());
        let whose = format!("{} with these groups", R::NAME);
        let values = matching((&whose, "state"), &names.iter().map(slot).collect::<Vec<_>>(), tensors)?;
        let mut loaded = self.slots.clone();
        for ((_, id, i), value) in names.iter().zip(values) {
            if let Some(slots) = loaded.get_mut(id) {
                slots[*i] = value;
            }
        }
        (self.slots, self.steps) = (loaded, steps);
        Ok(())
    }

    /// Every slot: its name, its variable, its position.
    fn named_slots(&self) -> Vec<(String, u64, usize)> {
        let mut list = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            for (p, var) in group.parameters.iter().enumerate() {
                let slots = R::SLOTS.iter().enumerate();
                list.extend(slots.map(|(i, slot)| (format!("{g}.{p}.{slot}"), var.id(), i)));
            }
        }
        list
    }
}

/// Checks that a number is finite and not negative.
fn check_number(name: &str, x: f64) -> Result<()> {
    let fine = x.is_finite() && x >= 0.0;
    if fine { Ok(()) } else { Err(Error::arg("Optimizer", format!("{name} {x}; it must be finite and not negative"))) }
}

/// Checks that a number is at least 0 and less than 1.
fn check_share(name: &str, x: f64) -> Result<()> {
    let fine = (0.0..1.0).contains(&x);
    if fine {
        Ok(())
    } else {
        Err(Error::arg("Optimizer", format!("{name} {x}; it must be at least 0 and less than 1")))
    }
}
