//! Gradient descent with momentum.

use super::{Now, Rule, check_number, check_share};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Stochastic gradient descent: b = momentum b + (1 - dampening) g, p = p - rate b, or with Nesterov's
/// momentum p - rate (g + momentum b) (Sutskever et al. 2013); b is g in the first step. Decay is added to
/// the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// How much of the last step is kept.
    pub momentum: f64,
    /// How much of the gradient is left out of it.
    pub dampening: f64,
    /// Whether to look ahead along the momentum.
    pub nesterov: bool,
    /// L2 decay.
    pub weight_decay: f64,
}

impl Default for Sgd {
    /// Plain descent.
    fn default() -> Self {
        Sgd { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

impl Rule for Sgd {
    const NAME: &'static str = "sgd";
    const SLOTS: &'static [&'static str] = &["momentum"];

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check_share("momentum", self.momentum)?;
        check_number("dampening", self.dampening)?;
        check_number("weight decay", self.weight_decay)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            return Err(Error::arg("Optimizer", "Nesterov's momentum needs a momentum and no dampening"));
        }
        Ok(())
    }

    fn accumulate(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Vec<Tensor>> {
        if self.momentum == 0.0 {
            return Ok(slots.to_vec());
        }
        let share = if now.step == 1 { 1.0 } else { 1.0 - self.dampening };
        Ok(vec![((&slots[0] * self.momentum)? + (decayed(p, g, now)? * share)?)?])
    }

    fn apply(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Tensor> {
        let along = match (self.momentum == 0.0, self.nesterov) {
            (true, _) => decayed(p, g, now)?,
            (false, true) => (decayed(p, g, now)? + (&slots[0] * self.momentum)?)?,
            (false, false) => slots[0].clone(),
        };
        p - &(along * now.learning_rate)?
    }
}

fn decayed(p: &Tensor, g: &Tensor, now: &Now) -> Result<Tensor> {
    if now.weight_decay == 0.0 { Ok(g.clone()) } else { g + &(p * now.weight_decay)? }
}
