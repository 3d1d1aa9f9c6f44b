//! Several short rows in one tile: a step that computes elements takes them all in one loop, and what is one value a
//! row is a tile of its own.

use super::super::program::{MANY_ROWS, Mode, Phase, Step, TILE, Target};
use super::Compiler;
use crate::schedule::{Level, ValueOp};

impl Compiler<'_> {
    /// Whether each row is one tile whose folds need no combining.
    pub(super) fn is_brief(&self) -> bool {
        let arg = |op: &ValueOp| matches!(op, ValueOp::Reduce { op, .. } if op.is_arg());
        self.mode == Mode::Rows && self.kernel.row_len() <= TILE && !self.kernel.values.iter().any(|v| arg(&v.op))
    }

    /// How many rows a tile holds, where all steps can take several.
    pub(super) fn rows_at_once(&self, outputs: &[Target]) -> usize {
        let takes_rows = |v: u32| {
            let value = &self.kernel.values[v as usize];
            let slot = self.slot_of[v as usize].map(|slot| &self.slots[slot as usize]);
            match value.op {
                ValueOp::Padded { .. }
                | ValueOp::Index { .. }
                | ValueOp::Gather { .. }
                | ValueOp::Bound { .. }
                | ValueOp::Random { .. } => false,
                _ if value.level == Level::Row => self.is(v) != v || !self.spreads(v),
                _ if value.level == Level::Element => slot.is_none_or(|slot| slot.other.stride().is_some()),
                _ => true,
            }
        };
        let fits = self.is_brief()
            && (0..self.kernel.values.len() as u32).all(takes_rows)
            && outputs.iter().all(|o| o.level != Level::Element || o.slot.other.stride().is_some());
        let (rows, row_len) = (self.kernel.rows(), self.kernel.row_len());
        if fits { (TILE / row_len).min(rows / MANY_ROWS).max(1) } else { 1 }
    }

    /// Bytes from one row to the next in each value's tile; steps become those that take several rows.
    pub(super) fn lay_out_rows(&self, phases: &mut [Phase], outputs: &[Target]) -> Vec<isize> {
        let len = self.kernel.row_len() as isize;
        let size = |v: u32| self.size(v) as isize;
        let values = 0..self.kernel.values.len() as u32;
        let mut rows: Vec<Rows> = values
            .map(|v| match self.level(v) {
                Level::Element => Rows { apart: len * size(v), follow: true },
                Level::Row => Rows { apart: size(v), follow: false },
                _ => Rows { apart: 0, follow: true },
            })
            .collect();
        for step in phases.iter().flat_map(|phase| &phase.element) {
            let (value, slot) = match *step {
                Step::Point { value, slot } => (value, &self.slots[slot as usize]),
                Step::Aim { value, output } => (value, &outputs[output as usize].slot),
                _ => continue,
            };
            let stride = slot.other.stride().unwrap_or(0);
            rows[value as usize] = Rows { apart: stride * slot.dtype.size() as isize, follow: stride == len };
        }
        let follows = |v: u32| rows[v as usize].follow;
        for phase in phases {
            for step in &mut phase.element {
                *step = match *step {
                    Step::Call { value, f, operands } if !follows(value) || !operands.into_iter().all(follows) => {
                        Step::Each { value, f, operands }
                    }
                    Step::Store { value, output } if self.level(value) == Level::Element && follows(value) => {
                        let slot = &outputs[output as usize].slot;
                        let whole = slot.walk.is_contiguous() && slot.other.stride() == Some(len);
                        if whole { Step::StoreAll { value, output } } else { *step }
                    }
                    _ => *step,
                };
            }
            for step in &mut phase.row {
                if let Step::Store { value, output } = *step
                    && self.level(value) == Level::Row
                    && outputs[output as usize].slot.other.stride() == Some(1)
                {
                    *step = Step::StoreAll { value, output };
                }
            }
        }
        rows.into_iter().map(|rows| rows.apart).collect()
    }
}

/// How the rows of a value lie in its tile.
struct Rows {
    /// Bytes from one to the next.
    apart: isize,
    /// Whether they can be taken for one long row.
    follow: bool,
}
