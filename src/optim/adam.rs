//! Adam and AdamW.

use super::{Now, Rule, Taken, check_number, check_share};
use crate::error::Result;
use crate::tensor::Tensor;

/// Adam (Kingma and Ba 2015, algorithm 1). Decay is added to the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// L2 decay.
    pub weight_decay: f64,
}

/// Adam with decay apart from the gradient (Loshchilov and Hutter 2019, algorithm 2): p shrinks by rate
/// times decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay, apart from the gradient.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Adam { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 }
    }
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

const MOMENTS: &[&str] = &["first", "second"];

impl Rule for Adam {
    const NAME: &'static str = "adam";
    const SLOTS: &'static [&'static str] = MOMENTS;

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check(self.betas, self.eps, self.weight_decay)
    }

    fn accumulate(&self, p: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Vec<Tensor>> {
        moments(&(g + &(p * now.number("weight decay", now.weight_decay, p)?)?)?, slots, self.betas, now)
    }

    fn apply(&self, p: &Tensor, _: &Tensor, slots: &[Tensor], now: &Now) -> Result<Tensor> {
        descend(p, slots, self.betas, self.eps, now)
    }
}

impl Rule for AdamW {
    const NAME: &'static str = "adamw";
    const SLOTS: &'static [&'static str] = MOMENTS;

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check(self.betas, self.eps, self.weight_decay)
    }

    fn accumulate(&self, _: &Tensor, g: &Tensor, slots: &[Tensor], now: &Now) -> Result<Vec<Tensor>> {
        moments(g, slots, self.betas, now)
    }

    fn apply(&self, p: &Tensor, _: &Tensor, slots: &[Tensor], now: &Now) -> Result<Tensor> {
        let p = (p * now.number("shrink", 1.0 - now.learning_rate * now.weight_decay, p)?)?;
        descend(&p, slots, self.betas, self.eps, now)
    }
}

fn check(betas: (f64, f64), eps: f64, weight_decay: f64) -> Result<()> {
    check_share("beta 1", betas.0)?;
    check_share("beta 2", betas.1)?;
    check_number("eps", eps)?;
    check_number("weight decay", weight_decay)
}

/// m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2.
fn moments(g: &Tensor, slots: &[Tensor], (b1, b2): (f64, f64), now: &Now) -> Result<Vec<Tensor>> {
    let number = |name: &'static str, number: f64| now.number(name, number, g);
    let first = ((&slots[0] * number("b1", b1)?)? + (g * number("1 - b1", 1.0 - b1)?)?)?;
    let second = ((&slots[1] * number("b2", b2)?)? + (g.sqr()? * number("1 - b2", 1.0 - b2)?)?)?;
    Ok(vec![first, second])
}

/// p - rate (m / c1) / (sqrt(v / c2) + eps), where c is 1 - b^step.
fn descend(p: &Tensor, slots: &[Tensor], (b1, b2): (f64, f64), eps: f64, now: &Now) -> Result<Tensor> {
    let (first, second) = (&slots[0], &slots[1]);
    // Both corrections are numbers of the whole step: they cost nothing an element.
    let (rate, spread) = match now.taken()? {
        Taken::Host(taken) => {
            let (c1, c2) = (1.0 - b1.powf(taken), 1.0 - b2.powf(taken));
            let rate = now.number("rate", now.learning_rate / c1, p)?;
            ((first * rate)?, (second.sqrt()? * now.number("spread", 1.0 / c2.sqrt(), p)?)?)
        }
        Taken::Device(taken) => {
            // expm1 keeps the digits that 1 - b^step would lose in f32.
            let correction = |b: f64| (&taken * b.ln())?.expm1()?.neg()?.to_dtype(p.dtype());
            let rate = now.shared("rate", p.dtype(), || correction(b1)?.recip()? * now.learning_rate)?;
            let spread = now.shared("spread", p.dtype(), || correction(b2)?.rsqrt())?;
            ((first * rate)?, (second.sqrt()? * spread)?)
        }
    };
    p - &(rate / (spread + now.number("eps", eps, p)?)?)?
}
