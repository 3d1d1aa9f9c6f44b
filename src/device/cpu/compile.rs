//! From a kernel to a [`Program`]: modes, phases, places, steps.

mod batch;
mod direct;

use super::isa::Isa;
use super::program::{
    BLOCK_LANES, Finish, Fold, Gather, Guard, KEPT_BYTES, LANE_SEGMENT, MANY_ROWS, Mode, Panel, Phase, Product,
    Program, SEGMENT, SHORT_ROW, Slot, Step, TILE, Target,
};
use super::tile::{self, TileFn};
use super::walk::Walk;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Sort;
use crate::schedule::{Kernel, Level, Output, Reach, ValueOp, op_weight};
use crate::shape::{Dims, Strides};
use direct::Direct;

impl Program {
    /// Compiles a kernel. `in_place` says which outputs are written over an input.
    ///
    /// # Errors
    /// [`Error::Internal`] for an op on a dtype that it has no loop for.
    pub fn compile(kernel: &Kernel, in_place: &[u32], node_dtype: &dyn Fn(u32) -> DType, isa: Isa) -> Result<Program> {
        Compiler::new(kernel, node_dtype, isa).compile(in_place)
    }
}

struct Compiler<'k> {
    kernel: &'k Kernel,
    node_dtype: &'k dyn Fn(u32) -> DType,
    isa: Isa,
    mode: Mode,
    /// The value that holds the same tile.
    alias: Vec<u32>,
    /// Phase from which on each value can be computed.
    phase: Vec<usize>,
    /// Depends on a fold over all rows.
    late: Vec<bool>,
    kept: Vec<Option<u32>>,
    needed: Vec<Vec<bool>>,
    buffers: Vec<u32>,
    slots: Vec<Slot>,
    slot_of: Vec<Option<u32>>,
    gathers: Vec<Gather>,
    gather_of: Vec<Option<u32>>,
    panels: Vec<Panel>,
    panel_of: Vec<Option<u32>>,
    direct: Direct,
    lanes: usize,
    cursor: usize,
    fixed: Vec<(u32, usize)>,
}

impl<'k> Compiler<'k> {
    fn new(kernel: &'k Kernel, node_dtype: &'k dyn Fn(u32) -> DType, isa: Isa) -> Self {
        let count = kernel.values.len();
        let mode = mode(kernel);
        let mut buffers = kernel.reads();
        buffers.extend(kernel.outputs.iter().map(|o| o.node));
        buffers.sort_unstable();
        buffers.dedup();
        Compiler {
            kernel,
            node_dtype,
            isa,
            mode,
            alias: (0..count as u32).collect(),
            phase: kernel.phases(),
            late: kernel.late(),
            kept: vec![None; count],
            needed: Vec::new(),
            buffers,
            slots: Vec::new(),
            slot_of: vec![None; count],
            gathers: Vec::new(),
            gather_of: vec![None; count],
            panels: Vec::new(),
            panel_of: vec![None; count],
            direct: Direct::default(),
            lanes: TILE,
            cursor: 0,
            fixed: Vec::new(),
        }
    }

    fn compile(mut self, in_place: &[u32]) -> Result<Program> {
        if let Some(scatter) = &self.kernel.scatter {
            let buffers = [scatter.source.node, scatter.index.node, self.kernel.outputs[0].node];
            let bound = buffers.map(|node| self.buffer(node));
            let elements = scatter.extents.iter().product();
            let (scatter, buffers) = (Some((scatter.clone(), bound)), self.buffers);
            return Ok(Program { scatter, buffers, rows: 1, row_len: elements, ..Program::default() });
        }
        if let Some(attention) = &self.kernel.attention {
            let inputs = attention.inputs().map(|input| self.buffer(input.node)).collect();
            let outputs = self.kernel.outputs.iter().map(|output| self.buffer(output.node)).collect();
            let elements = attention.operations();
            let attention = Some((attention.clone(), [inputs, outputs], self.isa));
            return Ok(Program { attention, buffers: self.buffers, rows: 1, row_len: elements, ..Program::default() });
        }
        self.find_aliases();
        let phases = self.phase.iter().max().map_or(1, |p| p + 1);
        self.mark_needed(phases);
        self.choose_lanes();
        self.place_fixed();
        let outputs: Vec<Target> = self.kernel.outputs.iter().map(|o| self.target(o)).collect();
        for v in 0..self.kernel.values.len() as u32 {
            self.make_slot(v);
        }
        let block = (self.mode == Mode::Map).then(|| across_rows(self.kernel)).flatten();
        self.find_panels(block.is_some());
        self.find_direct(&outputs, in_place);
        let fixed_bytes = self.cursor;
        let (brief, batch) = (self.is_brief(), self.rows_at_once(&outputs));
        let folds = self.folds();
        let finishes = self.finishes();
        let uniform = self.scalar_steps(&outputs, false)?;
        let last = self.scalar_steps(&outputs, true)?;
        let tiles = self.cursor;
        let mut arena = tiles;
        let mut compiled = Vec::new();
        for p in 0..phases {
            let mut phase = Phase { row: self.row_steps(p, &outputs, &finishes)?, ..Phase::default() };
            phase.folds =
                (0..folds.len() as u32).filter(|&f| self.phase[folds[f as usize].source as usize] == p).collect();
            let bytes = self.element_steps(p, &outputs, in_place, &mut phase, tiles)?;
            arena = arena.max(bytes);
            compiled.push(phase);
        }
        let kernel = self.kernel;
        let apart = match batch {
            1 => vec![0; kernel.values.len()],
            _ => self.lay_out_rows(&mut compiled, &outputs),
        };
        let ahead = touched(&compiled, |output| {
            let (slot, node) = (&outputs[output as usize].slot, kernel.outputs[output as usize].node);
            slot.walk.is_contiguous() && !in_place.contains(&node)
        });
        if brief && kernel.row_len() * batch >= LONG_ROW {
            let moves = |slot: &Slot| match batch {
                1 => slot.other.position(1) != slot.other.position(0),
                _ => slot.other.stride() == Some(kernel.row_len() as isize),
            };
            ask_ahead(&mut compiled, &ahead, |slot, output| {
                moves(if output { &outputs[slot as usize].slot } else { &self.slots[slot as usize] })
            });
        }
        let kept_sizes = self.kept_sizes();
        let guards = kernel.guards.iter().map(|g| self.guard(g)).collect();
        let gemm = kernel.gemm.as_ref().map(|gemm| Product {
            a: self.buffer(gemm.a.node),
            b: self.buffer(gemm.b.node),
            a_starts: gemm.starts(&gemm.a),
            b_starts: gemm.starts(&gemm.b),
            gemm: gemm.clone(),
            accumulator: kernel.values.iter().position(|v| matches!(v.op, ValueOp::Accumulator)).map(|v| v as u32),
            isa: self.isa,
            ahead,
        });
        let kept_stride = match self.mode {
            Mode::Columns => kernel.row_len() * self.lanes * 8,
            _ => (kernel.row_len() * batch).next_multiple_of(8) * 8,
        };
        Ok(Program {
            mode: self.mode,
            brief,
            rows: kernel.rows(),
            row_len: kernel.row_len(),
            lanes: self.lanes,
            batch,
            apart,
            spread: self
                .lanes
                .min(if self.mode == Mode::Columns { kernel.rows() } else { kernel.row_len() * batch })
                .max(1),
            block,
            values: kernel.values.len(),
            buffers: self.buffers,
            slots: self.slots,
            guards,
            gathers: self.gathers,
            panels: self.panels,
            outputs,
            folds,
            finishes,
            uniform,
            phases: compiled,
            last,
            fixed: self.fixed,
            fixed_bytes,
            arena_bytes: arena,
            kept: kept_sizes,
            kept_stride,
            gemm,
            scatter: None,
            attention: None,
            weight: weight(kernel),
        })
    }

    /// Finds values held like their operand.
    fn find_aliases(&mut self) {
        for (i, value) in self.kernel.values.iter().enumerate() {
            if let ValueOp::Cast { value: from } = value.op {
                let from_dtype = self.kernel.values[from as usize].dtype;
                if tile::cast(self.isa, from_dtype, value.dtype).is_none() {
                    self.alias[i] = self.alias[from as usize];
                }
            }
        }
    }

    fn level(&self, v: u32) -> Level {
        self.kernel.values[v as usize].level
    }

    fn is(&self, v: u32) -> u32 {
        self.alias[v as usize]
    }

    /// Operands, through aliases.
    fn operands(&self, v: u32) -> Vec<u32> {
        self.kernel.values[v as usize].op.operands().map(|o| self.is(o)).collect()
    }

    /// A load costs no more a second time than keeping its result would.
    fn repeats(&self, v: u32) -> bool {
        matches!(
            self.kernel.values[v as usize].op,
            ValueOp::Load { .. } | ValueOp::Padded { .. } | ValueOp::Index { .. }
        )
    }

    /// For each phase, the element values computed or used in it; what an earlier one computed is kept.
    fn mark_needed(&mut self, phases: usize) {
        let count = self.kernel.values.len();
        self.needed = vec![vec![false; count]; phases];
        for p in (0..phases).rev() {
            let mut list: Vec<u32> = Vec::new();
            for v in 0..count as u32 {
                let op = self.kernel.values[v as usize].op;
                match op {
                    ValueOp::Reduce { value, .. } if self.phase[value as usize] == p => list.push(self.is(value)),
                    _ => {}
                }
                if self.kept[v as usize].is_some() && self.phase[v as usize] == p {
                    list.push(v);
                }
            }
            for output in &self.kernel.outputs {
                let v = self.is(output.value);
                if self.kernel.output_level(output) == Level::Element && self.phase[v as usize] == p {
                    list.push(v);
                }
            }
            while let Some(v) = list.pop() {
                if self.level(v) != Level::Element || std::mem::replace(&mut self.needed[p][v as usize], true) {
                    continue;
                }
                if self.phase[v as usize] < p && !self.repeats(v) {
                    let next = self.kept.iter().flatten().count() as u32;
                    self.kept[v as usize].get_or_insert(next);
                } else {
                    list.extend(self.operands(v));
                }
            }
        }
    }

    fn kept_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.kept.iter().flatten().count()];
        for (v, kept) in self.kept.iter().enumerate() {
            if let Some(kept) = kept {
                sizes[*kept as usize] = self.size(v as u32);
            }
        }
        sizes
    }

    fn choose_lanes(&mut self) {
        if self.mode == Mode::Columns {
            let kept: usize = self.kept_sizes().iter().sum();
            let fit = KEPT_BYTES / (kept * self.kernel.row_len()).max(1);
            let rows = self.kernel.rows().next_multiple_of(16);
            self.lanes = fit.next_multiple_of(16).min(rows).clamp(16, TILE);
        }
    }

    fn size(&self, v: u32) -> usize {
        self.kernel.values[v as usize].dtype.held().size()
    }

    fn reserve(&mut self, bytes: usize) -> usize {
        let at = self.cursor;
        self.cursor += bytes.next_multiple_of(64);
        at
    }

    /// Places values that outlive a tile: all that are not elements.
    fn place_fixed(&mut self) {
        for v in 0..self.kernel.values.len() as u32 {
            if self.level(v) != Level::Element && self.is(v) == v {
                let at = self.reserve(self.lanes * self.size(v).max(8));
                self.fixed.push((v, at));
            }
        }
    }

    fn fixed_place(&self, v: u32) -> usize {
        self.fixed.iter().find(|&&(value, _)| value == v).map_or(0, |&(_, at)| at)
    }

    fn buffer(&self, node: u32) -> usize {
        self.buffers.binary_search(&node).unwrap_or(0)
    }

    /// How a reach walks the loops of the lanes, and the other loops.
    fn walks(&self, reach: &Reach, walk: fn(&Dims<usize>, &Strides) -> Walk) -> (Walk, Walk) {
        let (outer, inner) = (walk(&self.kernel.outer, &reach.outer), walk(&self.kernel.inner, &reach.inner));
        if self.mode == Mode::Columns { (outer, inner) } else { (inner, outer) }
    }

    fn slot(&self, node: Option<u32>, dtype: DType, reach: &Reach, convert: Option<TileFn>) -> Slot {
        let (walk, other) = self.walks(reach, Walk::new);
        Slot { buffer: node.map_or(0, |n| self.buffer(n)), dtype, convert, offset: reach.offset, walk, other }
    }

    fn guard(&self, guard: &crate::schedule::Guard) -> Guard {
        let (walk, other) = self.walks(&guard.coordinate, Walk::plain);
        Guard { offset: guard.coordinate.offset, walk, other, limit: guard.limit }
    }

    fn make_slot(&mut self, v: u32) {
        let value = &self.kernel.values[v as usize];
        let (node, reach) = match value.op {
            ValueOp::Load { node, reach }
            | ValueOp::Padded { node, reach, .. }
            | ValueOp::Gather { node, reach, .. } => (Some(node), reach),
            ValueOp::Index { reach } => (None, reach),
            _ => return,
        };
        let dtype = node.map_or(DType::I64, |n| (self.node_dtype)(n));
        let mut slot = self.slot(node, dtype, &reach, tile::load(self.isa, dtype));
        if let ValueOp::Padded { .. } = value.op {
            // Its guards walk the same loops.
            slot.walk = self.walks(&reach, Walk::plain).0;
        }
        self.slot_of[v as usize] = Some(self.slots.len() as u32);
        if let ValueOp::Gather { index, stride, limit, .. } = value.op {
            let index_dtype = self.kernel.values[index as usize].dtype.held();
            self.gather_of[v as usize] = Some(self.gathers.len() as u32);
            let (slot, index, node) = (self.slots.len(), self.is(index), value.node);
            self.gathers.push(Gather { slot, index, index_dtype, stride, limit, node });
        }
        self.slots.push(slot);
    }

    /// Gives what is read across rows a panel.
    fn find_panels(&mut self, in_blocks: bool) {
        for (v, value) in self.kernel.values.iter().enumerate().filter(|_| in_blocks) {
            if let (ValueOp::Load { reach, .. }, Some(slot)) = (value.op, self.slot_of[v])
                && reads_across(&reach)
            {
                self.panel_of[v] = Some(self.panels.len() as u32);
                self.panels.push(Panel { slot, direct: self.slots[slot as usize].convert.is_none() });
            }
        }
    }

    fn target(&self, output: &Output) -> Target {
        let convert = tile::store(self.isa, output.dtype);
        Target {
            slot: self.slot(Some(output.node), output.dtype, &output.reach, convert),
            level: self.kernel.output_level(output),
        }
    }

    fn folds(&mut self) -> Vec<Fold> {
        let mut folds = Vec::new();
        let (lanes, segment) = if self.mode == Mode::Columns { (self.lanes, LANE_SEGMENT) } else { (1, SEGMENT) };
        let segments = self.kernel.row_len().div_ceil(segment);
        let powers = (usize::BITS - segments.leading_zeros()) as usize;
        for (v, value) in self.kernel.values.iter().enumerate() {
            let ValueOp::Reduce { op, value: source } = value.op else { continue };
            let class = self.kernel.values[source as usize].dtype.held();
            let (fold, accumulate) = tile::fold(self.isa, op, class);
            let (fold, take) = self.narrow_fold(self.is(source), op).unwrap_or((fold, accumulate));
            let arg = op.is_arg().then(|| tile::arg_fns(op, class));
            let size = if op.is_arg() { tile::best_layout(class).0 } else { class.size() };
            let power_stride = (size * lanes).next_multiple_of(64);
            let (partial, segment) = (self.reserve(64), self.reserve(power_stride));
            let powers = self.reserve(power_stride * powers);
            let total = if op.is_arg() { self.reserve(power_stride) } else { self.fixed_place(v as u32) };
            let source = self.is(source);
            let neutral = tile::neutral(fold);
            folds.push(Fold {
                value: v as u32,
                source,
                class,
                fold,
                take,
                accumulate,
                neutral,
                arg,
                size,
                partial,
                segment,
                total,
                powers,
                power_stride,
            });
        }
        folds
    }

    fn finishes(&self) -> Vec<Finish> {
        let finish = |(v, value): (usize, &crate::schedule::Value)| {
            let ValueOp::Finish { op, .. } = value.op else { return None };
            let class = value.dtype.held();
            let (fold, accumulate) = tile::fold(self.isa, op, class);
            Some(Finish { value: v as u32, class, fold, accumulate })
        };
        self.kernel.values.iter().enumerate().filter_map(finish).collect()
    }

    /// The step that computes a value; `None` for what others provide.
    fn step(&self, v: u32) -> Result<Option<Step>> {
        let value = &self.kernel.values[v as usize];
        let slot = self.slot_of[v as usize].unwrap_or(0);
        let call = |f: TileFn, operands: &[u32]| {
            let mut list = [self.is(operands[0]); 3];
            list.iter_mut().zip(operands).for_each(|(slot, &o)| *slot = self.is(o));
            Some(Step::Call { value: v, f, operands: list })
        };
        let dtype_of = |v: u32| self.kernel.values[v as usize].dtype;
        Ok(match value.op {
            ValueOp::Load { .. } => {
                let s = &self.slots[slot as usize];
                if let Some(panel) = self.panel_of[v as usize] {
                    return Ok(Some(Step::Panel { value: v, panel }));
                }
                let point = s.convert.is_none() && s.walk.is_contiguous() && value.level == Level::Element;
                Some(if point || self.direct.is_loaded(v) {
                    Step::Point { value: v, slot }
                } else {
                    Step::Load { value: v, slot }
                })
            }
            ValueOp::Padded { first, count, .. } => Some(Step::Padded { value: v, slot, first, count }),
            ValueOp::Index { .. } => Some(Step::Index { value: v, slot }),
            ValueOp::Scalar { param } => Some(Step::Param { value: v, param, class: value.dtype.held() }),
            ValueOp::Random { kind, index, param } => {
                Some(Step::Random { value: v, f: tile::random(self.isa, kind), index: self.is(index), param })
            }
            ValueOp::Elementwise { op, operands } => {
                let on = match op.sort() {
                    Sort::Cmp | Sort::Test => dtype_of(operands[0]),
                    _ => value.dtype,
                };
                let f = self
                    .narrow_loop(v, self.direct.stored(v).is_some())
                    .or_else(|| self.by_one(v, self.is(operands[1])))
                    .or_else(|| tile::elementwise(self.isa, op, on))
                    .ok_or_else(|| Error::internal("cpu::program", format!("{} has no loop for {on}", op.name())))?;
                call(f, &operands[..op.arity()])
            }
            ValueOp::Cast { value: from } => {
                tile::cast(self.isa, dtype_of(from), value.dtype).and_then(|f| call(f, &[from]))
            }
            ValueOp::Round { value: from } => call(tile::round(self.isa, value.dtype), &[from]),
            ValueOp::Bound { value: from, limit } => Some(Step::Bound {
                value: v,
                source: self.is(from),
                class: value.dtype.held(),
                limit,
                node: value.node,
            }),
            ValueOp::Gather { .. } => Some(Step::Gather { value: v, gather: self.gather_of[v as usize].unwrap_or(0) }),
            ValueOp::Reduce { .. } | ValueOp::Finish { .. } | ValueOp::Accumulator => None,
        })
    }

    /// The loop in which value `u` reads its second operand `v` as one element, repeated for the tile.
    fn by_one(&self, u: u32, v: u32) -> Option<TileFn> {
        let ValueOp::Elementwise { op, operands } = self.kernel.values[u as usize].op else { return None };
        let second = op.arity() == 2 && self.is(operands[1]) == v && self.is(operands[0]) != v;
        let dtype = self.kernel.values[u as usize].dtype;
        if second && self.repeats_for(v, self.level(u)) { tile::elementwise_by_one(self.isa, op, dtype) } else { None }
    }

    /// Whether a reader of this level sees one element of `v` in all its lanes.
    fn repeats_for(&self, v: u32, reader: Level) -> bool {
        match self.mode {
            Mode::Columns => self.level(v) == Level::Uniform && reader != Level::Uniform,
            _ => match reader {
                Level::Element => self.level(v) != Level::Element,
                Level::Row => self.level(v) == Level::Uniform,
                _ => false,
            },
        }
    }

    /// Whether a value that is not an element is read by whole tiles.
    fn spreads(&self, v: u32) -> bool {
        let wide = |level: Level| self.repeats_for(v, level);
        // A fold reads elements, whatever its operand's level.
        let reader = |u: u32| if folds_element(self.kernel, u) { Level::Element } else { self.level(u) };
        let reads = |u: u32| self.operands(u).contains(&v) && wide(reader(u)) && self.by_one(u, v).is_none();
        let read = (0..self.kernel.values.len() as u32).any(reads);
        read || self.kernel.outputs.iter().any(|o| self.is(o.value) == v && wide(self.kernel.output_level(o)))
    }

    fn push_scalar(&self, v: u32, steps: &mut Vec<Step>) -> Result<()> {
        if self.is(v) == v {
            steps.extend(self.step(v)?);
            if self.spreads(v) {
                steps.push(Step::Spread { value: v, size: self.size(v) as u32 });
            }
        }
        Ok(())
    }

    /// Steps for what is computed once: before the rows, or (`late`) after them.
    fn scalar_steps(&self, outputs: &[Target], late: bool) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for v in 0..self.kernel.values.len() as u32 {
            if self.level(v) == Level::Uniform && self.late[v as usize] == late {
                self.push_scalar(v, &mut steps)?;
            }
        }
        // Nothing but this stores uniform values: they may depend on all rows.
        if late {
            for (o, output) in self.kernel.outputs.iter().enumerate() {
                if outputs[o].level == Level::Uniform {
                    steps.push(Step::Store { value: self.is(output.value), output: o as u32 });
                }
            }
        }
        Ok(steps)
    }

    fn row_steps(&self, p: usize, outputs: &[Target], finishes: &[Finish]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for v in 0..self.kernel.values.len() as u32 {
            if self.level(v) == Level::Row && self.phase[v as usize] == p {
                self.push_scalar(v, &mut steps)?;
            }
        }
        for (o, output) in self.kernel.outputs.iter().enumerate() {
            let v = self.is(output.value);
            if outputs[o].level == Level::Row && self.phase[v as usize] == p {
                steps.push(Step::Store { value: v, output: o as u32 });
            }
        }
        for (f, finish) in finishes.iter().enumerate() {
            let ValueOp::Finish { value, .. } = self.kernel.values[finish.value as usize].op else { continue };
            if self.phase[value as usize] == p {
                steps.push(Step::Note { value: self.is(value), finish: f as u32 });
            }
        }
        Ok(steps)
    }

    /// Steps over the elements of phase `p`, and the arena bytes they need.
    fn element_steps(
        &self,
        p: usize,
        outputs: &[Target],
        in_place: &[u32],
        phase: &mut Phase,
        from: usize,
    ) -> Result<usize> {
        let here: Vec<u32> = (0..self.kernel.values.len() as u32).filter(|&v| self.needed[p][v as usize]).collect();
        let stores: Vec<(usize, u32)> = self
            .kernel
            .outputs
            .iter()
            .enumerate()
            .filter(|&(o, output)| {
                outputs[o].level == Level::Element && self.phase[self.is(output.value) as usize] == p
            })
            .map(|(o, output)| (o, self.is(output.value)))
            .collect();
        let mut last_use = vec![0usize; self.kernel.values.len()];
        for (i, &v) in here.iter().enumerate() {
            self.operands(v).into_iter().for_each(|o| last_use[o as usize] = i);
        }
        for &v in stores.iter().map(|(_, v)| v) {
            last_use[v as usize] = usize::MAX;
        }
        let mut tiles = Tiles { lanes: self.lanes, next: from, free: Vec::new() };
        for (i, &v) in here.iter().enumerate() {
            let kept = self.kept[v as usize];
            if let Some(kept) = kept {
                phase.element.push(Step::Kept { value: v, kept });
            }
            if kept.is_none() || self.phase[v as usize] == p {
                let step = self.step(v)?;
                let aim = self.aims(v, &stores, outputs, in_place, step.as_ref());
                if let Some(output) = aim {
                    phase.element.push(Step::Aim { value: v, output });
                } else if kept.is_none() && !self.points(step.as_ref()) {
                    phase.places.push((v, tiles.take(self.size(v))));
                }
                phase.element.extend(step);
            }
            self.push_folds(v, p, &mut phase.element);
            for o in self.operands(v).into_iter().chain([v]) {
                if last_use[o as usize] <= i && !self.folded(o, p) {
                    tiles.give(o, &phase.places, self.size(o));
                }
            }
        }
        // Folds of what is the same in every step of the row.
        for v in (0..self.kernel.values.len() as u32).filter(|&v| self.level(v) != Level::Element) {
            self.push_folds(v, p, &mut phase.element);
        }
        for &(o, v) in &stores {
            let aimed = phase.element.iter().any(|s| matches!(s, Step::Aim { output, .. } if *output == o as u32));
            if !aimed {
                phase.element.push(Step::Store { value: v, output: o as u32 });
            }
        }
        Ok(tiles.next)
    }

    /// Whether a step uses other memory as its tile.
    fn points(&self, step: Option<&Step>) -> bool {
        match step {
            Some(Step::Panel { panel, .. }) => self.panels[*panel as usize].direct,
            Some(Step::Point { .. }) | None => true,
            _ => false,
        }
    }

    fn folded(&self, v: u32, p: usize) -> bool {
        self.kernel.values.iter().any(|u| {
            matches!(u.op, ValueOp::Reduce { value, .. } if self.is(value) == v) && self.phase[v as usize] == p
        })
    }

    fn push_folds(&self, v: u32, p: usize, steps: &mut Vec<Step>) {
        let mut fold = 0;
        for value in &self.kernel.values {
            if let ValueOp::Reduce { value: source, .. } = value.op {
                if self.is(source) == v && self.phase[v as usize] == p {
                    steps.push(Step::Fold { fold });
                }
                fold += 1;
            }
        }
    }

    /// The output whose memory can serve as the value's tile.
    fn aims(
        &self,
        v: u32,
        stores: &[(usize, u32)],
        outputs: &[Target],
        in_place: &[u32],
        step: Option<&Step>,
    ) -> Option<u32> {
        let computed = matches!(step, Some(Step::Call { .. } | Step::Random { .. } | Step::Index { .. }));
        let fits = |o: usize| {
            let slot = &outputs[o].slot;
            slot.convert.is_none() && slot.walk.is_contiguous() && !in_place.contains(&self.kernel.outputs[o].node)
        };
        if let Some(output) = self.direct.stored(v) {
            return Some(output);
        }
        let (o, _) = *stores.iter().find(|&&(o, value)| value == v && fits(o))?;
        (computed && self.kept[v as usize].is_none()).then_some(o as u32)
    }
}

/// Tiles of one phase, given out and taken back.
struct Tiles {
    lanes: usize,
    next: usize,
    free: Vec<(usize, usize)>,
}

impl Tiles {
    fn take(&mut self, size: usize) -> usize {
        if let Some(i) = self.free.iter().position(|&(_, s)| s == size) {
            return self.free.swap_remove(i).0;
        }
        let at = self.next;
        self.next += (self.lanes * size).next_multiple_of(64);
        at
    }

    fn give(&mut self, v: u32, places: &[(u32, usize)], size: usize) {
        if let Some(&(_, at)) = places.iter().find(|&&(value, _)| value == v)
            && !self.free.iter().any(|&(free, _)| free == at)
        {
            self.free.push((at, size));
        }
    }
}

/// Elements of a row from which on the next one is asked for ahead.
const LONG_ROW: usize = 256;

/// Memory that elements are read from and written to where it lies: slots, and (`true`) outputs; of those that tiles
/// are stored to the ones that are `fresh`, others being written where they were read.
fn touched(phases: &[Phase], fresh: impl Fn(u32) -> bool) -> Vec<(u32, bool)> {
    let mut slots: Vec<(u32, bool)> = Vec::new();
    for step in phases.iter().flat_map(|phase| &phase.element) {
        match *step {
            Step::Point { slot, .. } if !slots.contains(&(slot, false)) => slots.push((slot, false)),
            Step::Aim { output, .. } => slots.push((output, true)),
            Step::Store { output, .. } | Step::StoreAll { output, .. } if fresh(output) => slots.push((output, true)),
            _ => {}
        }
    }
    slots
}

/// Asks for the memory of the next row all along the steps of a row. Else memory idles while they compute, and the
/// first one that reads a row waits for it. All at once would not help: that many requests keep others waiting.
fn ask_ahead(phases: &mut [Phase], slots: &[(u32, bool)], moves: impl Fn(u32, bool) -> bool) {
    let slots: Vec<(u32, bool)> = slots.iter().copied().filter(|&(slot, output)| moves(slot, output)).collect();
    let works = |step: &Step| matches!(step, Step::Call { .. } | Step::Each { .. } | Step::Fold { .. });
    let parts = phases.iter().flat_map(|phase| &phase.element).filter(|step| works(step)).count() as u16;
    let mut part = 0;
    for phase in phases {
        let steps = std::mem::take(&mut phase.element);
        for step in steps {
            phase.element.push(step);
            if works(&step) {
                phase.element.extend(slots.iter().map(|&(slot, output)| Step::Ahead { slot, output, part, parts }));
                part += 1;
            }
        }
    }
}

/// Whether value `u` folds elements.
fn folds_element(kernel: &Kernel, u: u32) -> bool {
    matches!(kernel.values[u as usize].op, ValueOp::Reduce { .. })
}

fn mode(kernel: &Kernel) -> Mode {
    if !kernel.has_reduce() && kernel.outer.is_empty() {
        return Mode::Map;
    }
    let (rows, row_len) = (kernel.rows(), kernel.row_len());
    if rows < MANY_ROWS {
        return Mode::Rows;
    }
    if kernel.reads_across() || row_len < SHORT_ROW { Mode::Columns } else { Mode::Rows }
}

/// The innermost extent of a map, if some memory is walked in larger steps along it than along the
/// loops around: then lines are read again for each of many rows.
fn across_rows(kernel: &Kernel) -> Option<usize> {
    let row = *kernel.inner.last().filter(|&&row| row >= 2 * BLOCK_LANES && kernel.inner.len() > 1)?;
    let loads = kernel.values.iter().any(|v| matches!(&v.op, ValueOp::Load { reach, .. } if reads_across(reach)));
    (loads || kernel.outputs.iter().any(|o| reads_across(&o.reach))).then_some(row)
}

/// Whether the innermost loop walks memory in larger steps than one.
fn reads_across(reach: &Reach) -> bool {
    reach.inner.last().is_some_and(|s| s.abs() > 1)
}

fn weight(kernel: &Kernel) -> usize {
    let of = |v: &crate::schedule::Value| match v.op {
        ValueOp::Elementwise { op, .. } if v.level == Level::Element => op_weight(op),
        ValueOp::Random { .. } => 40,
        ValueOp::Gather { .. } => 8,
        ValueOp::Padded { .. } => 2,
        _ => 1,
    };
    kernel.values.iter().map(of).sum()
}
