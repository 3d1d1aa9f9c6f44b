//! Columns in packets: a thread folds a few neighbouring columns at once, one packet a row, and in the end each thread
//! gets one of the group's columns.

use super::{Fold, Form, Layout, Phases, Places, Rows};
use crate::codegen::emit::{Chunk, Emitter, FoldStep};
use crate::codegen::map::packet;
use crate::codegen::{Machine, Piece, THREADS};
use crate::schedule::{Kernel, Level, ValueOp};

/// Rows of the matrix that make a thread's walk long enough for the cost of a second dispatch.
const LONG_WALK: usize = 32;
/// Rows whose loads a thread has on their way at once, and packets of all its loads, at most.
const DEPTH: usize = 4;
const PACKETS_AT_ONCE: usize = 8;
/// Threads that combine what segments left: as many as that of them for each of 32 columns, at most.
const COMBINING: usize = 32;

/// How threads share columns in packets.
pub(super) struct Packets {
    /// The kernel with its columns inside, which the walk over the elements follows.
    inside: Kernel,
    /// Columns of a packet.
    vector: usize,
    /// Neighbouring threads of a group take neighbouring packets; `slices` of them share each.
    lanes: usize,
    slices: usize,
    /// Rows whose loads are on their way at once.
    depth: usize,
}

impl Packets {
    /// None where columns are not neighbours in memory, loads are not aligned, or rows are folded more than once.
    pub fn of(kernel: &Kernel, machine: &Machine, size: &dyn Fn(u32) -> usize) -> Option<Packets> {
        if !kernel.reads_across() || kernel.rows() < 32 || kernel.row_len() < 32 {
            return None;
        }
        let phases = kernel.phases();
        let mut again = kernel.outputs.iter().filter(|o| kernel.output_level(o) == Level::Element);
        if phases.iter().max() != Some(&1) || again.any(|o| phases[o.value as usize] > 0) {
            return None;
        }
        let mut inside = kernel.with_columns_inside();
        inside.outputs = kernel
            .outputs
            .iter()
            .zip(inside.outputs)
            .filter(|(o, _)| kernel.output_level(o) == Level::Element)
            .map(|(_, o)| o)
            .collect();
        let columns = *inside.inner.last()?;
        let aligned = |vector: usize| {
            columns.is_multiple_of(vector)
                && inside.values.iter().all(|v| match v.op {
                    ValueOp::Load { reach, .. } => reach.inner.last() != Some(&1) || reach.is_aligned(vector),
                    _ => true,
                })
        };
        let folds = kernel.values.iter().filter_map(|v| match v.op {
            ValueOp::Reduce { op, value } => {
                Some(if op.is_arg() { 16 } else { kernel.values[value as usize].dtype.held().size() })
            }
            _ => None,
        });
        let state: usize = folds.sum();
        let mut vector = packet(&inside, size);
        while vector > 1 && (!aligned(vector) || state * team_len(vector) > machine.threadgroup_bytes) {
            vector /= 2;
        }
        let loads = inside.values.iter().filter(|v| matches!(v.op, ValueOp::Load { .. })).count();
        let depth = (PACKETS_AT_ONCE / loads).clamp(1, DEPTH);
        let packets = kernel.rows() / vector;
        let mut lanes = packets.next_power_of_two().min(THREADS / vector);
        // Narrow groups where threads of wide ones would have nothing to do, but lines of memory whole.
        while lanes > 8 && packets.next_multiple_of(lanes) * 4 > packets * 5 {
            lanes /= 2;
        }
        (vector > 1).then_some(Packets { inside, vector, lanes, slices: THREADS / lanes, depth })
    }

    /// The form of what combines the segments.
    pub fn form(&self, kernel: &Kernel, machine: &Machine) -> Form {
        let n = kernel.row_len();
        let layout = Layout::Columns { lanes: 32, slices: COMBINING };
        let whole = Form { layout, vector: 1, chunks: 0, segments: 1, segment_len: n };
        if n <= LONG_WALK * self.slices {
            return whole;
        }
        // Groups of so few threads are enough if half of what the device runs at once are there.
        let groups = 2 * (kernel.rows() / self.vector).div_ceil(self.lanes);
        let form = whole.split(kernel, groups, n, self.slices * DEPTH / 2, machine);
        let slices = form.segments.next_power_of_two().min(COMBINING);
        Form { layout: Layout::Columns { lanes: 32, slices }, ..form }
    }
}

/// States of a fold over packets that threadgroup memory holds.
fn team_len(vector: usize) -> usize {
    vector * THREADS + 32
}

impl Rows<'_> {
    /// The text of the dispatch that folds the columns; of the only one if they are not split.
    pub(super) fn packets_of_columns<'a>(&'a self, mut e: Emitter<'a>, packets: &'a Packets, places: &Places) -> Piece {
        let Packets { vector, lanes, slices, .. } = *packets;
        let (index, rows, split) = (e.index, self.kernel.rows(), self.form.segments > 1);
        if split {
            e.line("const uint segment = group.y;");
        }
        let folds = self.folds(0);
        for Fold { v, state, functor, .. } in &folds {
            e.line(format!("{state} a{v}[{vector}];"));
            e.line(format!("for (uint u = 0; u < {vector}; ++u) a{v}[u] = {functor}::empty();"));
        }
        e.line("{");
        self.walk_packets(&mut e, packets, &folds);
        e.line("}");
        let (width, count) = (lanes * vector, e.known("rows", rows as i64));
        e.line(format!("const TlTeam<{index}> team = tl_column<{index}>(group.x, tid, {width}, {count});"));
        e.line(format!("const {index} row = team.row;"));
        e.line("const bool live = team.live;");
        e.line("const bool first = team.first;");
        let outer = self.kernel.outer;
        e.outer = e.coordinates("row", "r", &outer);
        for fold in &folds {
            let Fold { v, state, functor, .. } = fold;
            let team = self.team_memory(&mut e, state, team_len(vector));
            e.line(format!(
                "const {state} f{v} = tl_fold_packets<{functor}, {vector}>(a{v}, {team}, tid, {lanes}, {slices});"
            ));
            self.folded(&mut e, fold, places);
        }
        for p in 0..if split { 1 } else { 2 } {
            self.row_values(&mut e, p, places);
            self.store_row(&mut e, p, places);
        }
        e.piece("columns", [rows.div_ceil(width) as u32, self.form.segments as u32, 1], THREADS as u32)
    }

    /// A thread's walk over the elements of its packet of columns.
    fn walk_packets<'k>(&'k self, e: &mut Emitter<'k>, packets: &'k Packets, folds: &[Fold]) {
        let Packets { inside, vector, lanes, slices, depth } = packets;
        let (index, kernel) = (e.index, e.kernel);
        e.kernel = inside;
        let count = e.known("packets", (self.kernel.rows() / vector) as i64);
        e.line(format!("const TlTeam<{index}> team = tl_column<{index}>(group.x, tid, {lanes}, {count});"));
        e.line(format!("const {index} row = team.row * {vector};"));
        e.line("const uint lane = team.lane;");
        e.line("const bool live = team.live;");
        e.outer = e.coordinates("row", "r", &self.kernel.outer);
        let column = e.outer.pop();
        let phases = inside.phases();
        for (v, value) in inside.values.iter().enumerate() {
            if phases[v] == 0 && value.level != Level::Element {
                e.scalar(v as u32, &[], "live");
            }
        }
        let steps: Vec<FoldStep> = folds
            .iter()
            .map(|fold| FoldStep {
                into: format!("a{}[u]", fold.v),
                op: fold.functor.clone(),
                value: fold.source,
                position: fold.op.is_arg().then_some("long(j)"),
            })
            .collect();
        let list = Phases::of(inside, false).computed.swap_remove(0);
        let is_packet = |&v: &u32| matches!(inside.values[v as usize].op, ValueOp::Load { .. }) && e.varies(v, &[]);
        let (loads, others): (Vec<u32>, Vec<u32>) = list.into_iter().partition(is_packet);
        for &v in &loads {
            e.kept[v as usize] = true;
            e.line(format!("{} k{v}[{}];", e.type_of(v), depth * vector));
        }
        let (begin, end) = self.segment(e);
        let chunk = |inner| Chunk { vector: *vector, count: "count".into(), inner, kept: "c".into() };
        let coordinates = |e: &mut Emitter<'k>| {
            let mut inner = e.coordinates("j", "x", &self.kernel.inner);
            inner.extend(column.clone());
            inner
        };
        e.line(format!("const {index} end = live ? {end} : 0;"));
        e.line(format!("for ({index} i = {begin}{index}(lane); i < end; i += {}) {{", slices * depth));
        // All loads are on their way before the first is waited for; beyond the end the last row is loaded again.
        e.line(format!("for (uint c = 0; c < {depth}; ++c) {{"));
        e.line(format!("const uint count = {vector};"));
        e.line(format!("const {index} j = min(i + {index}(c) * {slices}, end - 1);"));
        let inner = coordinates(e);
        e.load_packets(&chunk(inner), &loads);
        e.line("}");
        e.line(format!("for (uint c = 0; c < {depth}; ++c) {{"));
        e.line(format!("const {index} j = i + {index}(c) * {slices};"));
        e.line(format!("const uint count = j < end ? {vector} : 0;"));
        let inner = coordinates(e);
        e.chunk(&chunk(inner), &others, &loads, &steps, &inside.outputs);
        e.line("}");
        e.line("}");
        e.kept.fill(false);
        e.kernel = kernel;
    }
}
