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

    fn update(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<(Tensor, Vec<Tensor>)> {
        let g = if now.weight_decay == 0.0 { g.clone() } else { (g + &(p * now.weight_decay)?)? };
        if self.momentum == 0.0 {
            return Ok(((p - &(g * now.learning_rate)?)?, slots.to_vec()));
        }
        let share = if now.step == 1 { 1.0 } else { 1.0 - self.dampening };
        let buffer = ((&slots[0] * self.momentum)? + (&g * share)?)?;
        let along = if self.nesterov { (g + (&buffer * self.momentum)?)? } else { buffer.clone() };
        Ok(((p - &(along * now.learning_rate)?)?, vec![buffer]))
    }
}
