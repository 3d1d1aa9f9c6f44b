//! Sums by index, without atomics and in the order of the source: a group of threads owns a row of the
//! output and looks for its terms, which are sorted by row before if there are many of both; or, where indices
//! differ from column to column, a thread owns a column and walks all terms.

use super::args::{Field, Fill};
use super::emit::{Emitter, memory_type, value_type};
use super::{Binding, Machine, Piece, THREADS};
use crate::schedule::{Output, Reach, Scatter, collapse};
use crate::shape::{Dims, Strides};

/// Comparisons of rows with terms up to which groups own rows; up to which where terms cannot be sorted.
const COMPARISONS: usize = 1 << 22;
const MOST_COMPARISONS: usize = 1 << 30;
/// Terms of a chunk that is sorted, at most and at least.
const CHUNKS: [usize; 2] = [8192, 256];

/// A scatter without its axis.
struct Shape {
    extents: Dims<usize>,
    terms: usize,
    /// Strides along the axis, and of the other loops, of the source, the index and the output.
    steps: [isize; 3],
    around: [Strides; 3],
}

impl Shape {
    fn of(scatter: &Scatter) -> Shape {
        let (mut extents, mut around) = (scatter.extents, [scatter.source.strides, scatter.index.strides, scatter.out]);
        let terms = extents.remove(scatter.axis);
        let steps = [0, 1, 2].map(|i| around[i].remove(scatter.axis));
        Shape { extents, terms, steps, around }
    }

    fn columns(&self) -> usize {
        self.extents.iter().product()
    }
}

/// The dispatches, and the scratch memory that they need.
pub(super) fn render<'k>(
    scatter: &Scatter,
    output: &Output,
    emitter: &dyn Fn() -> Emitter<'k>,
) -> (Vec<Piece>, Vec<usize>) {
    let mut shape = Shape::of(scatter);
    let whole = shape.columns() * scatter.limit == scatter.out_len;
    let shared = shape.around[1].iter().all(|&s| s == 0);
    let [source, by, out] = &mut shape.around;
    collapse(&mut shape.extents, &mut [source, by, out]);
    if whole && shared && shape.extents.len() <= 1 {
        let comparisons = shape.terms.saturating_mul(scatter.limit);
        if let Some(chunk) = chunk(&shape, scatter.limit, emitter().machine).filter(|_| comparisons > COMPARISONS) {
            let places = shape.terms.next_multiple_of(chunk);
            let sort = sort(emitter(), scatter, &shape, chunk);
            let sums = sorted(emitter(), scatter, &shape, output, chunk, places);
            return (vec![sort, zeros(emitter(), scatter, output), sums], vec![places * size_of::<u32>()]);
        }
        if comparisons <= MOST_COMPARISONS {
            return (vec![rows(emitter(), scatter, &shape, output)], Vec::new());
        }
    }
    (vec![zeros(emitter(), scatter, output), columns(emitter(), scatter, &shape, output)], Vec::new())
}

/// Terms of a chunk, if keys of rows and terms fit in 32 bits.
fn chunk(shape: &Shape, limit: usize, machine: &Machine) -> Option<usize> {
    let [most, least] = CHUNKS;
    let most = most.min(machine.threadgroup_bytes / size_of::<u32>()).min((u32::MAX as usize - 1) / limit.max(1));
    let chunk = shape.terms.next_power_of_two().min(1 << most.max(1).ilog2());
    (chunk >= least).then_some(chunk)
}

/// A field for the limit, and one for the tag under which an index beyond it is reported.
fn check(e: &mut Emitter, scatter: &Scatter) -> (String, String, String) {
    let fault = e.bind("fault".into(), "device atomic_uint*".into(), Binding::Fault);
    let limit = e.fields.add("limit", Field::Long, Fill::Known(scatter.limit as i64));
    let tag = e.fields.add("tag", Field::Uint, Fill::Tag { node: scatter.node, limit: scatter.limit });
    (fault, limit, tag)
}

fn rows(mut e: Emitter, scatter: &Scatter, shape: &Shape, output: &Output) -> Piece {
    let (source, by) = (e.buffer(scatter.source.node, false), e.buffer(scatter.index.node, false));
    let (memory, ty) = (memory_type(scatter.source.dtype), value_type(scatter.source.dtype));
    let index_type = memory_type(scatter.index.dtype);
    let each = each(shape);
    let args = arguments(&mut e, shape);
    let source_at = e.fields.add("source_at", Field::Long, Fill::Known(scatter.source.offset as i64));
    e.line("threadgroup uint matches[TL_SCATTER_WORDS];");
    e.line("if (group.x == 0 && group.y == 0) {");
    let by = checked(&mut e, scatter, by, &format!("uint t = tid; t < {args}.terms; t += {THREADS}"), &args);
    e.line("}");
    epilogue(&mut e, scatter, shape, output);
    e.line(format!(
        "tl_scatter_rows<{memory}, {ty}, {index_type}, {each}>({source} + {source_at}, {by}, {args}, matches, epilogue, \
         group, tid);"
    ));
    let groups = [scatter.limit as u32, shape.columns().div_ceil(THREADS * each) as u32, 1];
    e.piece("scatter_rows", groups, THREADS as u32)
}

/// Sorts the terms of each chunk by their rows.
fn sort(mut e: Emitter, scatter: &Scatter, shape: &Shape, chunk: usize) -> Piece {
    let threads = 1 << e.machine.threads.min(1024).min(chunk / 2).ilog2();
    let keys = e.bind("sorted".into(), "device uint*".into(), Binding::Scratch(0, true));
    let by = e.buffer(scatter.index.node, false);
    let index_type = memory_type(scatter.index.dtype);
    let args = arguments(&mut e, shape);
    e.line(format!("threadgroup uint keys[{chunk}];"));
    e.line(format!("const uint end = min({args}.terms, (group.x + 1) * {chunk});"));
    let by = checked(&mut e, scatter, by, &format!("uint t = group.x * {chunk} + tid; t < end; t += {threads}"), &args);
    let limit = e.fields.add("rows", Field::Uint, Fill::Known(scatter.limit as i64));
    e.line(format!(
        "tl_scatter_sort<{chunk}, {threads}, {index_type}>({by}, {args}, {limit}, {keys}, keys, group, tid);"
    ));
    e.piece("scatter_sort", [shape.terms.div_ceil(chunk) as u32, 1, 1], threads as u32)
}

/// Sums of sorted terms.
fn sorted(mut e: Emitter, scatter: &Scatter, shape: &Shape, output: &Output, chunk: usize, places: usize) -> Piece {
    let keys = e.bind("sorted".into(), "device const uint*".into(), Binding::Scratch(0, false));
    let source = e.buffer(scatter.source.node, false);
    let (memory, ty) = (memory_type(scatter.source.dtype), value_type(scatter.source.dtype));
    let each = each(shape);
    let args = arguments(&mut e, shape);
    let at = e.fields.add("source_at", Field::Long, Fill::Known(scatter.source.offset as i64));
    epilogue(&mut e, scatter, shape, output);
    e.line(format!(
        "tl_scatter_sorted<{chunk}, {memory}, {ty}, {each}>({source} + {at}, {keys}, {args}, epilogue, group, tid);"
    ));
    let groups = [places as u32, shape.columns().div_ceil(THREADS * each) as u32, 1];
    e.piece("scatter_sorted", groups, THREADS as u32)
}

/// Columns of a thread.
fn each(shape: &Shape) -> usize {
    if shape.columns() >= 1024 { 4 } else { 1 }
}

/// A field of strides and sizes.
fn arguments(e: &mut Emitter, shape: &Shape) -> String {
    let along = shape.around[0].first().copied().unwrap_or(1) as i64;
    let numbers = [shape.steps[0] as i64, along, shape.steps[1] as i64];
    let fill = Fill::Scatter(numbers, [shape.terms as u32, shape.columns() as u32]);
    e.fields.add("scatter", Field::Scatter, fill)
}

/// Reports indices that are no rows, of the terms `t` of a loop; where the indices begin.
fn checked(e: &mut Emitter, scatter: &Scatter, by: String, terms: &str, args: &str) -> String {
    let (fault, limit, tag) = check(e, scatter);
    let at = e.fields.add("index_at", Field::Long, Fill::Known(scatter.index.offset as i64));
    e.line(format!("for ({terms}) {{"));
    e.line(format!(
        "tl_fault_in_range(long({by}[{at} + long(t) * {args}.index_term]), {limit}, true, {fault}, {tag});"
    ));
    e.line("}");
    format!("{by} + {at}")
}

/// Declares `epilogue`, which writes sums.
fn epilogue(e: &mut Emitter, scatter: &Scatter, shape: &Shape, output: &Output) {
    let (out, ty) = (e.buffer(output.node, true), value_type(scatter.source.dtype));
    let column_step = shape.around[2].first().copied().unwrap_or(1) as i64;
    let (row_step, column_step) = (
        e.fields.add("row_step", Field::Long, Fill::Known(shape.steps[2] as i64)),
        e.fields.add("column_step", Field::Long, Fill::Known(column_step)),
    );
    let written = memory_type(output.dtype);
    e.after_args = format!(
        "struct Epilogue {{\n    device {written}* out;\n    constant Args* arguments;\n    \
         void operator()(uint row, uint column, {ty} sum) const {{\n        constant Args& args = *arguments;\n        \
         out[long(row) * {row_step} + long(column) * {column_step}] = {written}(sum);\n    }}\n}};\n"
    );
    e.line(format!("const Epilogue epilogue = {{{out}, &args}};"));
}

/// Sets the whole output to zero.
fn zeros(mut e: Emitter, scatter: &Scatter, output: &Output) -> Piece {
    const EACH: usize = 4;
    let (index, out) = (e.index, e.buffer(output.node, true));
    let n = e.known("n", scatter.out_len as i64);
    let (memory, ty) = (memory_type(output.dtype), value_type(output.dtype));
    e.line(format!("for (uint u = 0; u < {EACH}; ++u) {{"));
    e.line(format!("const {index} i = ({index}(group.x) * {EACH} + u) * {THREADS} + {index}(tid);"));
    e.line(format!("if (i < {n}) {out}[i] = {memory}({ty}(0));"));
    e.line("}");
    e.piece("scatter_zero", [scatter.out_len.div_ceil(THREADS * EACH) as u32, 1, 1], THREADS as u32)
}

fn columns(mut e: Emitter, scatter: &Scatter, shape: &Shape, output: &Output) -> Piece {
    let (index, ty) = (e.index, value_type(scatter.source.dtype));
    let (source, by) = (e.buffer(scatter.source.node, false), e.buffer(scatter.index.node, false));
    let out = e.buffer(output.node, true);
    let (fault, limit, tag) = check(&mut e, scatter);
    let all = e.known("columns", shape.columns() as i64);
    e.line(format!("const {index} column = {index}(group.x) * {THREADS} + {index}(tid);"));
    e.line(format!("if (column >= {all}) return;"));
    let names = if shape.extents.is_empty() { Vec::new() } else { e.coordinates("column", "x", &shape.extents) };
    let mut side = |name: &str, i: usize, offset: isize| {
        let reach = Reach { outer: Dims::new(), inner: shape.around[i], offset };
        (e.position(name, &reach, &names), e.known(format!("{name}_step"), shape.steps[i] as i64))
    };
    let (from, from_step) = side("source", 0, scatter.source.offset);
    let (at, at_step) = side("index", 1, scatter.index.offset);
    let (to, to_step) = side("out", 2, 0);
    let terms = e.known("terms", shape.terms as i64);
    e.line(format!("const {index} to = {to};"));
    e.line(format!("for ({index} term = 0; term < {terms}; ++term) {{"));
    e.line(format!("const long i = long({by}[{at} + term * {at_step}]);"));
    e.line(format!("if (!tl_fault_in_range(i, {limit}, true, {fault}, {tag})) continue;"));
    e.line(format!("const {index} place = to + {index}(i) * {to_step};"));
    let (sum, term) = (format!("{ty}({out}[place])"), format!("{ty}({source}[{from} + term * {from_step}])"));
    e.line(format!("{out}[place] = {}(tl_add({sum}, {term}));", memory_type(output.dtype)));
    e.line("}");
    e.piece("scatter_columns", [shape.columns().div_ceil(THREADS) as u32, 1, 1], THREADS as u32)
}
