//! Which narrow floats loops read and write where they lie, instead of by way of a tile of f32.

use super::super::program::Target;
use super::super::tile::TileFn;
use super::super::tile::narrow::{self, Source};
use super::Compiler;
use crate::dtype::DType;
use crate::schedule::{Level, ValueOp};

/// Values that never have a tile of f32.
#[derive(Default)]
pub(super) struct Direct {
    /// The narrow dtype that this is about; a kernel with both has it for one.
    memory: Option<DType>,
    /// For each value, whether its readers read it in memory.
    loaded: Vec<bool>,
    /// For each value, the output that its loop writes.
    stored: Vec<Option<u32>>,
}

impl Direct {
    pub fn is_loaded(&self, v: u32) -> bool {
        self.loaded.get(v as usize).is_some_and(|&direct| direct)
    }

    pub fn stored(&self, v: u32) -> Option<u32> {
        self.stored.get(v as usize).copied().flatten()
    }
}

impl Compiler<'_> {
    /// Chooses them; slots and aliases are known.
    pub(super) fn find_direct(&mut self, outputs: &[Target], in_place: &[u32]) {
        let loads = self.slots.iter().map(|slot| slot.dtype);
        let memory = loads.chain(outputs.iter().map(|o| o.slot.dtype)).find(|dtype| dtype.is_narrow());
        let count = self.kernel.values.len() as u32;
        self.direct = Direct { memory, ..Direct::default() };
        let Some(memory) = memory else { return };
        self.direct.loaded = (0..count).map(|v| self.reads_directly(v, memory)).collect();
        for v in (0..count).filter(|&v| self.direct.is_loaded(v)) {
            if let Some(panel) = self.panel_of[v as usize] {
                self.panels[panel as usize].direct = true;
            }
        }
        self.direct.stored = (0..count).map(|v| self.writes_directly(v, memory, outputs, in_place)).collect();
    }

    /// Whether all readers of `v` can read it in memory.
    fn reads_directly(&self, v: u32, memory: DType) -> bool {
        let value = &self.kernel.values[v as usize];
        let ValueOp::Load { .. } = value.op else { return false };
        let slot = &self.slots[self.slot_of[v as usize].unwrap_or(0) as usize];
        let reads = |u: u32| match self.kernel.values[u as usize].op {
            ValueOp::Elementwise { op, .. } => narrow::reads_memory(self.isa, op, self.kernel.values[u as usize].dtype),
            ValueOp::Reduce { op, .. } => narrow::fold(self.isa, op, memory).is_some(),
            _ => false,
        };
        value.level == Level::Element
            && slot.dtype == memory
            && (slot.walk.is_contiguous() || self.panel_of[v as usize].is_some())
            && self.readers(v).all(reads)
            && !self.kernel.outputs.iter().any(|o| self.is(o.value) == v)
    }

    /// The output of `memory` that the loop of `v` can write, if that is all that is done with `v`.
    fn writes_directly(&self, v: u32, memory: DType, outputs: &[Target], in_place: &[u32]) -> Option<u32> {
        let mut stores = (0..outputs.len()).filter(|&o| self.is(self.kernel.outputs[o].value) == v);
        let (Some(o), None) = (stores.next(), stores.next()) else { return None };
        let (slot, node) = (&outputs[o].slot, self.kernel.outputs[o].node);
        let fits = slot.dtype == memory && slot.walk.is_contiguous() && !in_place.contains(&node);
        let alone = self.level(v) == Level::Element && self.readers(v).next().is_none();
        (fits && alone && self.narrow_loop(v, true).is_some()).then_some(o as u32)
    }

    /// Values that read `v` itself.
    fn readers(&self, v: u32) -> impl Iterator<Item = u32> {
        let count = self.kernel.values.len() as u32;
        (0..count).filter(move |&u| self.is(u) == u && self.operands(u).contains(&v))
    }

    /// The loop of `v` if it reads memory, or writes it.
    pub(super) fn narrow_loop(&self, v: u32, to_memory: bool) -> Option<TileFn> {
        let ValueOp::Elementwise { op, operands } = self.kernel.values[v as usize].op else { return None };
        let [a, b] = [operands[0], operands[1]].map(|o| self.is(o));
        let source = |o: u32| if self.direct.is_loaded(o) { Source::Memory } else { Source::Tile };
        let second = if self.by_one(v, b).is_some() { Source::One } else { source(b) };
        narrow::elementwise(
            self.isa,
            op,
            self.kernel.values[v as usize].dtype,
            self.direct.memory?,
            [source(a), second],
            to_memory,
        )
    }

    /// The loops of fold `op` over `v`, if that is in memory.
    pub(super) fn narrow_fold(&self, v: u32, op: crate::ops::Reduction) -> Option<(TileFn, TileFn)> {
        let memory = self.direct.memory.filter(|_| self.direct.is_loaded(v))?;
        narrow::fold(self.isa, op, memory)
    }
}
