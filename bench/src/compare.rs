//! Two runs side by side: what became slower or faster by more than noise.

use crate::results::{Measured, Results, Spread};
use std::fmt::{Display, Formatter};

/// Differences that say nothing, whatever the spreads.
const LEAST: f64 = 0.05;

/// A clock of a case, in both runs.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    old: Spread,
    new: Spread,
}

/// How a case fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Regression,
    Improvement,
    Same,
}

/// Every case that both runs have.
#[derive(Clone, Debug)]
pub struct Comparison {
    changes: Vec<Change>,
    /// Cases of one run only, or that failed in one.
    unmatched: Vec<String>,
    /// Why the runs may not be comparable.
    warning: Option<String>,
}

/// Compares medians. A difference counts if it is more than 5 per cent and half the spread (from a tenth to nine
/// tenths) of either run together.
pub fn compare(old: &Results, new: &Results) -> Comparison {
    let mut comparison = Comparison { changes: Vec::new(), unmatched: Vec::new(), warning: None };
    if old.machine.model != new.machine.model || old.machine.threads != new.machine.threads {
        comparison.warning = Some(format!("{} then, {} now", old.machine.describe(), new.machine.describe()));
    }
    for case in &new.cases {
        let Some(before) = old.cases.iter().find(|before| before.key() == case.key()) else {
            comparison.unmatched.push(format!("{}: not in the saved run", name(case)));
            continue;
        };
        if let (None, Some(error)) = (&before.error, &case.error) {
            comparison.unmatched.push(format!("{}: {error}", name(case)));
        }
        for (clock, spread) in &case.times {
            if let Some(&old) = before.times.get(clock) {
                comparison.changes.push(Change {
                    name: format!("{}, {}", name(case), clock.name()),
                    old,
                    new: *spread,
                });
            }
        }
    }
    comparison
}

fn name(case: &Measured) -> String {
    case.key().join(" ").replace(" normal", "")
}

impl Change {
    fn ratio(&self) -> f64 {
        self.new.median / self.old.median
    }

    fn noise(&self) -> f64 {
        LEAST.max(self.old.noise() + self.new.noise())
    }

    fn verdict(&self) -> Verdict {
        match self.ratio() {
            ratio if ratio > 1.0 + self.noise() => Verdict::Regression,
            ratio if ratio < 1.0 / (1.0 + self.noise()) => Verdict::Improvement,
            _ => Verdict::Same,
        }
    }
}

impl Comparison {
    /// Times that became longer.
    pub fn regressions(&self) -> usize {
        self.count(Verdict::Regression)
    }

    /// Times that became shorter.
    pub fn improvements(&self) -> usize {
        self.count(Verdict::Improvement)
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.changes.iter().filter(|change| change.verdict() == verdict).count()
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        if let Some(warning) = &self.warning {
            writeln!(f, "another machine: {warning}")?;
        }
        writeln!(f, "{:<60}{:>12}{:>12}{:>8}{:>8}", "case", "before us", "now us", "ratio", "noise")?;
        for change in &self.changes {
            let verdict = match change.verdict() {
                Verdict::Regression => "  REGRESSION",
                Verdict::Improvement => "  improvement",
                Verdict::Same => "",
            };
            let Change { name, old, new } = change;
            let [ratio, noise] = [change.ratio(), 100.0 * change.noise()];
            writeln!(f, "{name:<60}{:>12.2}{:>12.2}{ratio:>8.2}{noise:>7.0}%{verdict}", old.median, new.median)?;
        }
        self.unmatched.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let same = self.count(Verdict::Same);
        writeln!(f, "{} regressions, {} improvements, {same} within noise", self.regressions(), self.improvements())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(old: [f64; 3], new: [f64; 3]) -> Change {
        let spread = |[p10, median, p90]: [f64; 3]| Spread { min: p10, p10, median, p90, runs: 10 };
        Change { name: "add".into(), old: spread(old), new: spread(new) }
    }

    #[test]
    fn what_is_within_the_spread_of_both_runs_says_nothing() {
        assert_eq!(change([99.0, 100.0, 101.0], [102.0, 104.0, 105.0]).verdict(), Verdict::Same);
        assert_eq!(change([99.0, 100.0, 101.0], [107.0, 108.0, 109.0]).verdict(), Verdict::Regression);
        assert_eq!(change([90.0, 100.0, 110.0], [98.0, 108.0, 118.0]).verdict(), Verdict::Same);
        assert_eq!(change([107.0, 108.0, 109.0], [99.0, 100.0, 101.0]).verdict(), Verdict::Improvement);
    }
}
