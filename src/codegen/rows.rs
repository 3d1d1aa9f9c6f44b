//! Kernels that fold: rows on chip, rows that are walked, columns, and rows split in segments.

mod columns;

use super::args::{Field, Fill};
use super::emit::{Chunk, Emitter, FoldStep, value_type};
use super::map::packet;
use super::{Binding, Machine, Piece, THREADS};
use crate::dtype::DType;
use crate::ops::Reduction;
use crate::schedule::{Kernel, Level, Output, Value, ValueOp};
use columns::Packets;

/// Elements of one value that a thread keeps in registers.
const KEPT_ELEMENTS: usize = 32;
/// Elements of all values that a thread keeps; of groups of 1,024, which get 64 registers a thread.
const KEPT_REGISTERS: usize = 96;
const KEPT_REGISTERS_1024: usize = 24;
/// Rows from this length on are split where there are too few to keep the device busy.
const LONG_ROW: usize = 1 << 15;
/// Segments of a row, at most: what one team folds at once.
const SEGMENTS: usize = 1024;

/// How threads share the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `threads` of them share a row: a power of two up to 32, or the whole group.
    Team { threads: usize },
    /// Neighbouring threads take neighbouring rows; `slices` of them share each.
    Columns { lanes: usize, slices: usize },
}

/// The form of a kernel that folds.
#[derive(Clone, Copy, Debug)]
struct Form {
    layout: Layout,
    vector: usize,
    /// Chunks that a thread keeps; 0 where it walks the row once a phase.
    chunks: usize,
    /// Segments of a row; 1 if it is not split.
    segments: usize,
    segment_len: usize,
}

/// Which values each phase computes. Phase p + 1 is what depends on folds of phase p.
struct Phases {
    phase: Vec<usize>,
    /// Depends on a fold over all rows.
    late: Vec<bool>,
    count: usize,
    /// For each phase, the element values that it computes.
    computed: Vec<Vec<u32>>,
    /// For each phase, the element values that it finds kept.
    found: Vec<Vec<u32>>,
    kept: Vec<bool>,
}

pub(super) fn render(kernel: &Kernel, machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> (Vec<Piece>, Vec<usize>) {
    let size = |node| dtype(node).size();
    let phases = Phases::of(kernel, true);
    let packets = Packets::of(kernel, machine, &size);
    let form = match &packets {
        Some(packets) => packets.form(kernel, machine),
        None => Form::choose(kernel, machine, &size, &phases),
    };
    let phases = if form.chunks > 0 { phases } else { Phases::of(kernel, false) };
    let mut scratch = Vec::new();
    let rows = Rows { kernel, form, phases, packets };
    let places = rows.places(&mut scratch);
    let mut pieces = Vec::new();
    let dispatches = if form.segments > 1 { rows.phases.count } else { 1 };
    for d in 0..dispatches {
        pieces.push(rows.dispatch(d, Emitter::new(kernel, machine, dtype), &places));
    }
    if rows.phases.late.contains(&true) {
        pieces.push(rows.finish(Emitter::new(kernel, machine, dtype), &places));
    }
    (pieces, scratch)
}

/// Scratch memory: for each value, where its partial folds (or its notes, one a row) stand.
struct Places {
    partial: Vec<Option<usize>>,
    note: Vec<Option<usize>>,
}

/// A fold over the elements of a row.
struct Fold {
    /// The value that it gives, and the one that it folds.
    v: usize,
    source: u32,
    op: Reduction,
    /// As [`fold_types`] has them.
    state: &'static str,
    functor: String,
}

struct Rows<'k> {
    kernel: &'k Kernel,
    form: Form,
    phases: Phases,
    /// How the elements are folded if columns are taken in packets; the form is then that of what comes after.
    packets: Option<Packets>,
}

impl Phases {
    /// `keep` says whether threads keep elements from phase to phase, or compute them again.
    fn of(kernel: &Kernel, keep: bool) -> Phases {
        let count = kernel.values.len();
        let (phase, late) = (kernel.phases(), kernel.late());
        let phases = phase.iter().max().map_or(1, |p| p + 1);
        let mut needed = vec![vec![false; count]; phases];
        let mut kept = vec![false; count];
        for p in (0..phases).rev() {
            let mut list: Vec<u32> = Vec::new();
            for (i, value) in kernel.values.iter().enumerate() {
                if let ValueOp::Reduce { value, .. } = value.op
                    && phase[value as usize] == p
                {
                    list.push(value);
                }
                if kept[i] && phase[i] == p {
                    list.push(i as u32);
                }
            }
            let stored = kernel.outputs.iter().filter(|o| kernel.output_level(o) == Level::Element);
            list.extend(stored.filter(|o| phase[o.value as usize] == p).map(|o| o.value));
            while let Some(v) = list.pop() {
                let value = &kernel.values[v as usize];
                if value.level != Level::Element || std::mem::replace(&mut needed[p][v as usize], true) {
                    continue;
                }
                if phase[v as usize] < p && keep && !is_read(kernel, v) {
                    kept[v as usize] = true;
                } else {
                    list.extend(value.op.operands());
                }
            }
        }
        // What is read in several phases is kept, too.
        let first = |v: usize| (0..phases).find(|&p| needed[p][v]).unwrap_or(0);
        for v in 0..count {
            let times = (0..phases).filter(|&p| needed[p][v]).count();
            kept[v] |= keep && times > 1 && matches!(kernel.values[v].op, ValueOp::Load { .. });
        }
        let is_found =
            |p: usize, v: usize| kept[v] && p > first(v).max(if is_read(kernel, v as u32) { 0 } else { phase[v] });
        let list = |p: usize, found: bool| -> Vec<u32> {
            (0..count).filter(|&v| needed[p][v] && is_found(p, v) == found).map(|v| v as u32).collect()
        };
        let computed = (0..phases).map(|p| list(p, false)).collect();
        let found = (0..phases).map(|p| list(p, true)).collect();
        Phases { phase, late, count: phases, computed, found, kept }
    }
}

/// Whether a value costs no more to read again than to keep, but for the traffic.
fn is_read(kernel: &Kernel, v: u32) -> bool {
    match kernel.values[v as usize].op {
        ValueOp::Load { .. } | ValueOp::Padded { .. } | ValueOp::Index { .. } => true,
        ValueOp::Cast { value } => is_read(kernel, value),
        _ => false,
    }
}

impl Form {
    fn choose(kernel: &Kernel, machine: &Machine, size: &dyn Fn(u32) -> usize, phases: &Phases) -> Form {
        let (rows, n) = (kernel.rows(), kernel.row_len());
        let whole = Form { layout: Layout::Team { threads: 1 }, vector: 1, chunks: 0, segments: 1, segment_len: n };
        if kernel.reads_across() && rows >= 32 {
            let (lanes, slices) = match n {
                ..32 => (THREADS, 1),
                32..1024 => (32, 8),
                _ => (32, machine.threads.min(1024) / 32),
            };
            let form = Form { layout: Layout::Columns { lanes, slices }, ..whole };
            return form.split(kernel, rows.div_ceil(lanes), n, slices * 4, machine);
        }
        let mut vector = packet(kernel, size);
        while kernel.inner.len() > 1 && kernel.inner.last().is_some_and(|e| e % vector != 0) {
            vector /= 2;
        }
        let packets = n.div_ceil(vector);
        let kept = phases.kept.iter().filter(|&&k| k).count();
        let each = (KEPT_ELEMENTS / vector).max(1);
        let fits = |threads: usize| {
            // Whole rows need no conditions; others share texts by powers of two.
            let whole = n.is_multiple_of(threads * vector);
            let chunks = if whole { packets / threads } else { packets.div_ceil(threads).next_power_of_two() };
            let room = if threads < 1024 { KEPT_REGISTERS } else { KEPT_REGISTERS_1024 };
            (chunks <= each && kept * chunks * vector <= room).then_some(chunks)
        };
        let small = packets.next_power_of_two().min(32);
        let sizes = [small, 128, 256, 512, 1024];
        let mut allowed = sizes.into_iter().filter(|&t| t <= machine.threads);
        if n < LONG_ROW || rows >= machine.parallel_groups / 4 {
            if let Some(threads) = allowed.find(|&t| fits(t).is_some()) {
                let chunks = if phases.count > 1 && kept > 0 { fits(threads).unwrap_or(0) } else { 0 };
                return Form { layout: Layout::Team { threads }, vector, chunks, ..whole };
            }
            let threads = machine.threads.min(1024);
            return Form { layout: Layout::Team { threads }, vector, ..whole };
        }
        let form = Form { layout: Layout::Team { threads: THREADS }, vector, ..whole };
        form.split(kernel, rows, n, THREADS * vector, machine)
    }

    /// Splits the rows in segments if `groups` of threads are too few; each a multiple of `step` long.
    fn split(self, kernel: &Kernel, groups: usize, n: usize, step: usize, machine: &Machine) -> Form {
        let folds = kernel.values.iter().filter(|v| matches!(v.op, ValueOp::Reduce { .. })).count();
        // A buffer each for partial folds, and for the record of faults and the arguments.
        if kernel.reads().len() + kernel.outputs.len() + folds + 2 > machine.buffers {
            return self;
        }
        let wanted = (machine.parallel_groups / groups.max(1)).min(SEGMENTS).min(n.div_ceil(2 * step));
        if wanted < 2 {
            return self;
        }
        let segment_len = n.div_ceil(wanted).next_multiple_of(step);
        Form { segments: n.div_ceil(segment_len), segment_len, ..self }
    }
}

impl Rows<'_> {
    fn places(&self, scratch: &mut Vec<usize>) -> Places {
        let rows = self.kernel.rows();
        let mut take = |bytes: usize| {
            scratch.push(bytes);
            Some(scratch.len() - 1)
        };
        let values = &self.kernel.values;
        let mut places = Places { partial: vec![None; values.len()], note: vec![None; values.len()] };
        for (v, value) in values.iter().enumerate() {
            match value.op {
                ValueOp::Reduce { op, value } if self.form.segments > 1 => {
                    let state = if op.is_arg() { 16 } else { values[value as usize].dtype.held().size() };
                    places.partial[v] = take(state * rows * self.form.segments);
                }
                ValueOp::Finish { .. } => places.note[v] = take(value.dtype.held().size() * rows),
                _ => {}
            }
        }
        places
    }

    /// The text of one dispatch: all phases, or phase `d` of a split row.
    fn dispatch(&self, d: usize, mut e: Emitter, places: &Places) -> Piece {
        let (form, phases) = (self.form, &self.phases);
        let split = form.segments > 1;
        if let Some(packets) = self.packets.as_ref().filter(|_| d == 0) {
            return self.packets_of_columns(e, packets, places);
        }
        let (groups, threads) = self.opening(&mut e);
        let outer = self.kernel.outer;
        e.outer = if outer.is_empty() { Vec::new() } else { e.coordinates("row", "r", &outer) };
        e.kept.clone_from(&phases.kept);
        if form.chunks > 0 {
            for v in (0..phases.kept.len()).filter(|&v| phases.kept[v]) {
                let ty = value_type(self.kernel.values[v].dtype);
                e.line(format!("{ty} k{v}[{}];", form.chunks * form.vector));
            }
        }
        let run = if split { d..d + 1 } else { 0..phases.count };
        for p in run {
            self.row_values(&mut e, p, places);
            self.store_row(&mut e, p, places);
            self.elements(&mut e, p, places);
        }
        // What comes after the last fold may be one number a row.
        let segments = if split && !self.walks(d) { 1 } else { form.segments };
        e.piece("rows", [groups as u32, segments as u32, 1], threads as u32)
    }

    /// What is one number a row: of phase `p`, or, where each phase begins anew, of all before, too.
    fn row_values(&self, e: &mut Emitter, p: usize, places: &Places) {
        let (phases, split) = (&self.phases, self.form.segments > 1);
        for (v, value) in self.kernel.values.iter().enumerate() {
            let here = if split { phases.phase[v] <= p } else { phases.phase[v] == p };
            match value.op {
                ValueOp::Reduce { op, value: source } if here && split => {
                    self.gather_partials(e, v, op, source, places);
                }
                ValueOp::Reduce { .. } => {}
                _ if here && value.level != Level::Element && !phases.late[v] => e.scalar(v as u32, &[], "live"),
                _ => {}
            }
        }
    }

    /// Whether phase `p` goes over the elements.
    fn walks(&self, p: usize) -> bool {
        !self.folds(p).is_empty() || !self.element_outputs(p).is_empty()
    }

    /// Who takes which row. Gives the number of groups and the threads of each.
    fn opening(&self, e: &mut Emitter) -> (usize, usize) {
        let rows = self.kernel.rows();
        let (index, count) = (e.index, e.known("rows", rows as i64));
        let (place, groups, threads) = match self.form.layout {
            Layout::Team { threads } if threads <= 32 => {
                let width = match threads {
                    32 => "32".to_string(),
                    _ => e.fields.add("width", Field::Uint, Fill::Known(threads as i64)),
                };
                e.line(format!("const uint width = {width};"));
                let place = format!("tl_team<{index}>(group.x, tid, width, {THREADS}, {count})");
                (place, rows.div_ceil(THREADS / threads), THREADS)
            }
            Layout::Team { threads } => {
                (format!("tl_team<{index}>(group.x, tid, {threads}, {threads}, {count})"), rows, threads)
            }
            Layout::Columns { lanes, slices } => {
                let place = format!("tl_column<{index}>(group.x, tid, {lanes}, {count})");
                (place, rows.div_ceil(lanes), lanes * slices)
            }
        };
        e.line(format!("const TlTeam<{index}> team = {place};"));
        e.line(format!("const {index} row = team.row;"));
        e.line("const uint lane = team.lane;");
        e.line("const bool live = team.live;");
        e.line("const bool first = team.first;");
        if self.has_whole_packets() && self.form.layout == (Layout::Team { threads: 32 }) {
            e.line("if (!live) return;");
        }
        if self.form.segments > 1 {
            e.line("const uint segment = group.y;");
        }
        (groups, threads)
    }

    /// Text that combines what the team's threads hold in `name`.
    fn combine(&self, e: &mut Emitter, name: &str, state: &str, op: &str) {
        match self.form.layout {
            Layout::Columns { slices: 1, .. } => {}
            Layout::Team { threads } if threads <= 32 => {
                e.line(format!("{name} = tl_fold_lanes<{op}>({name}, width);"));
            }
            Layout::Team { threads } => {
                let team = self.team_memory(e, state, 32);
                e.line(format!("{name} = tl_fold_group<{op}>({name}, {team}, tid, {});", threads / 32));
            }
            Layout::Columns { lanes, slices } => {
                let team = self.team_memory(e, state, lanes * slices);
                e.line(format!("{name} = tl_fold_slices<{op}>({name}, {team}, tid, {lanes}, {slices});"));
            }
        }
    }

    /// Threadgroup memory for states of a fold; all folds of one type share it.
    fn team_memory(&self, e: &mut Emitter, state: &str, len: usize) -> String {
        let name = format!("team_{state}");
        e.threadgroup(state, &name, len);
        name
    }

    /// Folds what the segments of the row left of value `v`.
    fn gather_partials(&self, e: &mut Emitter, v: usize, op: Reduction, source: u32, places: &Places) {
        let (state, functor) = fold_types(op, self.kernel.values[source as usize].dtype);
        let Some(place) = places.partial[v] else { return };
        let scratch = e.bind(format!("partial{v}"), format!("device const {state}*"), Binding::Scratch(place, false));
        let segments = e.fields.add("segments", Field::Uint, Fill::Known(self.form.segments as i64));
        let rows = e.known("rows", self.kernel.rows() as i64);
        let step = match self.form.layout {
            Layout::Team { threads } => threads,
            Layout::Columns { slices, .. } => slices,
        };
        e.line(format!("{state} f{v} = {functor}::empty();"));
        e.line(format!("for (uint s = lane; s < {segments}; s += {step}) {{"));
        let index = e.index;
        e.line(format!("f{v} = {functor}::both(f{v}, {scratch}[{index}(s) * {rows} + row]);"));
        e.line("}");
        self.combine(e, &format!("f{v}"), state, &functor);
        self.fold_result(e, v, op);
    }

    fn fold_result(&self, e: &mut Emitter, v: usize, op: Reduction) {
        let ty = value_type(self.kernel.values[v].dtype);
        let result = if op.is_arg() { format!("f{v}.index") } else { format!("f{v}") };
        e.line(format!("const {ty} v{v} = {result};"));
    }

    /// Stores what is one number a row and known from phase `p` on.
    fn store_row(&self, e: &mut Emitter, p: usize, places: &Places) {
        let phases = &self.phases;
        let here = |v: u32| phases.phase[v as usize] == p && !phases.late[v as usize];
        let kernel = self.kernel;
        let rows: Vec<Output> = kernel
            .outputs
            .iter()
            .filter(|o| kernel.output_level(o) != Level::Element && here(o.value))
            .copied()
            .collect();
        let notes: Vec<(usize, u32)> = kernel
            .values
            .iter()
            .enumerate()
            .filter_map(|(v, value)| match value.op {
                ValueOp::Finish { value, .. } if here(value) => Some((v, value)),
                _ => None,
            })
            .collect();
        if rows.is_empty() && notes.is_empty() {
            return;
        }
        e.line(if self.form.segments > 1 { "if (first && segment == 0) {" } else { "if (first) {" });
        for output in &rows {
            if kernel.output_level(output) == Level::Uniform && kernel.rows() > 1 {
                e.line("if (row == 0) {");
                e.store(output, &[]);
                e.line("}");
            } else {
                e.store(output, &[]);
            }
        }
        for (v, value) in notes {
            let Some(place) = places.note[v] else { continue };
            let ty = value_type(kernel.values[value as usize].dtype);
            let note = e.bind(format!("note{v}"), format!("device {ty}*"), Binding::Scratch(place, true));
            e.line(format!("{note}[row] = v{value};"));
        }
        e.line("}");
    }

    /// The walk over the row's elements in phase `p`, and the folds that end it.
    fn elements(&self, e: &mut Emitter, p: usize, places: &Places) {
        if !self.walks(p) {
            return;
        }
        let phases = &self.phases;
        let (folds, outputs) = (self.folds(p), self.element_outputs(p));
        let mut steps = Vec::new();
        for Fold { v, state, functor, source, op } in &folds {
            e.line(format!("{state} f{v} = {functor}::empty();"));
            let position = if self.form.vector > 1 { "long(j) + long(u)" } else { "long(j)" };
            let position = op.is_arg().then_some(position);
            steps.push(FoldStep { into: format!("f{v}"), op: functor.clone(), value: *source, position });
        }
        self.walk(e, p, |e, chunk| e.chunk(chunk, &phases.computed[p], &phases.found[p], &steps, &outputs));
        for fold in &folds {
            self.combine(e, &format!("f{}", fold.v), fold.state, &fold.functor);
            self.folded(e, fold, places);
        }
    }

    /// The folds of phase `p`.
    fn folds(&self, p: usize) -> Vec<Fold> {
        let values = &self.kernel.values;
        let fold = |(v, value): (usize, &Value)| match value.op {
            ValueOp::Reduce { op, value: source } if self.phases.phase[source as usize] == p => {
                let (state, functor) = fold_types(op, values[source as usize].dtype);
                Some(Fold { v, op, source, state, functor })
            }
            _ => None,
        };
        values.iter().enumerate().filter_map(fold).collect()
    }

    /// The outputs of phase `p` that are written once an element.
    fn element_outputs(&self, p: usize) -> Vec<Output> {
        let of_elements = |o: &&Output| self.kernel.output_level(o) == Level::Element;
        let here = |o: &&Output| self.phases.phase[o.value as usize] == p;
        self.kernel.outputs.iter().filter(of_elements).filter(here).copied().collect()
    }

    /// What becomes of a fold, `f1` for example: the value, or a note of the segment's.
    fn folded(&self, e: &mut Emitter, fold: &Fold, places: &Places) {
        let Fold { v, op, state, .. } = *fold;
        let Some(place) = places.partial[v] else { return self.fold_result(e, v, op) };
        let scratch = e.bind(format!("partial{v}"), format!("device {state}*"), Binding::Scratch(place, true));
        let (index, rows) = (e.index, e.known("rows", self.kernel.rows() as i64));
        e.line(format!("if (first) {scratch}[{index}(segment) * {rows} + row] = f{v};"));
    }

    /// Whether every packet that a thread takes is there in full; teams of whole SIMD-groups that have no row leave.
    fn has_whole_packets(&self) -> bool {
        let Form { vector, chunks, layout, .. } = self.form;
        let Layout::Team { threads: threads @ 32.. } = layout else { return false };
        let step = if chunks > 0 { threads * vector * chunks } else { vector };
        vector > 1 && self.kernel.row_len().is_multiple_of(step)
    }

    /// What the row's first element of the segment is added to, and the end of the segment.
    fn segment(&self, e: &mut Emitter) -> (String, String) {
        let (index, n) = (e.index, e.known("n", self.kernel.row_len() as i64));
        if self.form.segments == 1 {
            return (String::new(), n);
        }
        let len = e.known("segment_len", self.form.segment_len as i64);
        (format!("{index}(segment) * {len} + "), format!("min({n}, ({index}(segment) + 1) * {len})"))
    }

    /// The loop over a thread's chunks of its row, in phase `p`.
    fn walk(&self, e: &mut Emitter, p: usize, body: impl FnOnce(&mut Emitter, &Chunk)) {
        let (form, index) = (self.form, e.index);
        let vector = form.vector;
        let n = e.known("n", self.kernel.row_len() as i64);
        let (begin, end) = self.segment(e);
        let step = match form.layout {
            Layout::Team { threads } if threads < 32 => format!("{index}(width) * {vector}"),
            Layout::Team { threads } => (threads * vector).to_string(),
            Layout::Columns { slices, .. } => slices.to_string(),
        };
        let lane = if vector == 1 { format!("{index}(lane)") } else { format!("{index}(lane) * {vector}") };
        let columns = matches!(form.layout, Layout::Columns { .. });
        let end = if columns { format!("live ? {end} : 0") } else { end };
        let mut chunk = Chunk { vector, kept: "c".into(), ..Chunk::default() };
        if form.chunks > 0 {
            e.line(format!("for (uint c = 0; c < {}; ++c) {{", form.chunks));
            e.line(format!("const {index} j = {index}(c) * {step} + {lane};"));
        } else {
            let name = format!("end{}", p + 1);
            e.line(format!("const {index} {name} = {end};"));
            e.line(format!("for ({index} j = {begin}{lane}; j < {name}; j += {step}) {{"));
        }
        let inside = if form.chunks > 0 { format!("live && j < {n}") } else { "live".into() };
        if self.has_whole_packets() {
            e.line(format!("const uint count = {vector};"));
            chunk.count = "count".into();
        } else if vector > 1 {
            e.line(format!("const uint count = {inside} ? min({index}({vector}), {n} - j) : 0;"));
            chunk.count = "count".into();
        } else if !columns {
            e.line(format!("if ({inside}) {{"));
        }
        chunk.inner = if self.kernel.inner.is_empty() {
            Vec::new()
        } else {
            let extents = self.kernel.inner;
            e.coordinates("j", "x", &extents)
        };
        body(e, &chunk);
        if vector == 1 && !columns {
            e.line("}");
        }
        e.line("}");
    }

    /// The dispatch that folds over all rows.
    fn finish(&self, mut e: Emitter, places: &Places) -> Piece {
        let kernel = self.kernel;
        let threads = e.machine.threads.min(1024);
        let rows = e.known("rows", kernel.rows() as i64);
        let (index, behind) = (e.index, self.behind_folds());
        for (v, &value) in kernel.values.iter().enumerate() {
            if let (ValueOp::Finish { op, value: source }, Some(place)) = (value.op, places.note[v]) {
                let (state, functor) = fold_types(op, kernel.values[source as usize].dtype);
                let note = e.bind(format!("note{v}"), format!("device const {state}*"), Binding::Scratch(place, false));
                e.line(format!("{state} f{v} = {functor}::empty();"));
                e.line(format!("for ({index} r = {index}(tid); r < {rows}; r += {threads}) {{"));
                e.line(format!("f{v} = {functor}::both(f{v}, {note}[r]);"));
                e.line("}");
                let team = self.team_memory(&mut e, state, 32);
                e.line(format!("f{v} = tl_fold_group<{functor}>(f{v}, {team}, tid, {});", threads / 32));
                self.fold_result(&mut e, v, op);
            } else if value.level == Level::Uniform && behind[v] {
                e.scalar(v as u32, &[], "tid == 0");
            }
        }
        e.line("if (tid == 0) {");
        for output in kernel.outputs.iter().filter(|o| self.phases.late[o.value as usize]) {
            e.store(output, &[]);
        }
        e.line("}");
        e.piece("rows", [1, 1, 1], threads as u32)
    }

    /// Which values are computed behind a fold over all rows: those that depend on one, and what these read beside it.
    fn behind_folds(&self) -> Vec<bool> {
        let values = &self.kernel.values;
        let mut behind = self.phases.late.clone();
        for v in (0..values.len()).rev().filter(|&v| values[v].level == Level::Uniform) {
            if behind[v] && !matches!(values[v].op, ValueOp::Finish { .. }) {
                values[v].op.operands().for_each(|o| behind[o as usize] = true);
            }
        }
        behind
    }
}

/// The type of a fold's state and its functor, for values of `dtype`.
fn fold_types(op: Reduction, dtype: DType) -> (&'static str, String) {
    let ty = value_type(dtype);
    let best = match ty {
        "float" => "TlBestFloat",
        "long" => "TlBestLong",
        "int" => "TlBestInt",
        "uint" => "TlBestUint",
        _ => "TlBestUchar",
    };
    let name = match op {
        Reduction::Sum => "TlSum",
        Reduction::Prod => "TlProd",
        Reduction::Max => "TlMax",
        Reduction::Min => "TlMin",
        Reduction::ArgMax => "TlArgMax",
        Reduction::ArgMin => "TlArgMin",
    };
    (if op.is_arg() { best } else { ty }, format!("{name}<{ty}>"))
}
