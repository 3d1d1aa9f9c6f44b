//! Learning-rate schedules: functions of the step, without state of their own, so that resuming needs
//! nothing but the number of the step.

use std::f64::consts::PI;

/// What a learning rate is multiplied by as training goes on.
///
/// ```
/// use tensorlogic::optim::Schedule;
/// let schedule = Schedule::cosine(110).with_warm_up(10).with_floor(0.1);
/// assert_eq!((schedule.factor(0), schedule.factor(10), schedule.factor(110)), (0.1, 1.0, 0.1));
/// assert!((schedule.factor(60) - 0.55).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps until the floor is reached; `None` never falls.
    total: Option<u64>,
    warm_up: u64,
    floor: f64,
}

impl Schedule {
    /// Always 1.
    pub fn constant() -> Schedule {
        Schedule { total: None, warm_up: 0, floor: 0.0 }
    }

    /// From 1 along half a cosine to the floor, 0 if none is set, in `total` steps, warm-up included
    /// (Loshchilov and Hutter 2017, eq. 5).
    pub fn cosine(total: u64) -> Schedule {
        Schedule { total: Some(total), warm_up: 0, floor: 0.0 }
    }

    /// With a linear rise to 1 over the first `steps` steps, which begins at 1 / `steps`.
    #[must_use]
    pub fn with_warm_up(self, steps: u64) -> Schedule {
        Schedule { warm_up: steps, ..self }
    }

    /// With a lowest factor.
    #[must_use]
    pub fn with_floor(self, floor: f64) -> Schedule {
        Schedule { floor, ..self }
    }

    /// The factor for a step, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return (step + 1) as f64 / self.warm_up as f64;
        }
        let Some(total) = self.total else { return 1.0 };
        let length = total.saturating_sub(self.warm_up).max(1);
        let done = ((step - self.warm_up) as f64 / length as f64).min(1.0);
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * done).cos())
    }
}
