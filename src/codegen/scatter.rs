//! Sums by index, without atomics and in the order of the source: a group of threads owns a row of the
//! output and looks for its terms; or, where indices differ from column to column, a thread owns a column
//! and walks all terms.

use super::args::{Field, Fill};
use super::emit::{Emitter, memory_type, value_type};
use super::{Binding, Piece, THREADS};
use crate::schedule::{Output, Reach, Scatter, collapse};
use crate::shape::{Dims, Strides};

/// Comparisons of rows with terms up to which groups own rows.
const COMPARISONS: usize = 1 << 30;

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

pub(super) fn render<'k>(scatter: &Scatter, output: &Output, emitter: &dyn Fn() -> Emitter<'k>) -> Vec<Piece> {
    let mut shape = Shape::of(scatter);
    let whole = shape.columns() * scatter.limit == scatter.out_len;
    let shared = shape.around[1].iter().all(|&s| s == 0);
    let [source, by, out] = &mut shape.around;
    collapse(&mut shape.extents, &mut [source, by, out]);
    if whole && shared && shape.extents.len() <= 1 && shape.terms.saturating_mul(scatter.limit) <= COMPARISONS {
        return vec![rows(emitter(), scatter, &shape, output)];
    }
    vec![zeros(emitter(), scatter, output), columns(emitter(), scatter, &shape, output)]
}

/// A field for the limit, and one for the tag under which an index beyond it is reported.
fn check(e: &mut Emitter, scatter: &Scatter) -> (String, String, String) {
    let fault = e.bind("fault".into(), "device atomic_uint*".into(), Binding::Fault);
    let limit = e.fields.add("limit", Field::Long, Fill::Known(scatter.limit as i64));
    let tag = e.fields.add("tag", Field::Uint, Fill::Tag { node: scatter.node, limit: scatter.limit });
    (fault, limit, tag)
}

fn rows(mut e: Emitter, scatter: &Scatter, shape: &Shape, output: &Output) -> Piece {
    let (source, by, out) =
        (e.buffer(scatter.source.node, false), e.buffer(scatter.index.node, false), e.buffer(output.node, true));
    let (fault, limit, tag) = check(&mut e, scatter);
    let (memory, ty) = (memory_type(scatter.source.dtype), value_type(scatter.source.dtype));
    let index_type = memory_type(scatter.index.dtype);
    let columns = shape.columns();
    let along = |side: usize| shape.around[side].first().copied().unwrap_or(1) as i64;
    let numbers = [shape.steps[0] as i64, along(0), shape.steps[1] as i64];
    let fill = Fill::Scatter(numbers, [shape.terms as u32, columns as u32]);
    let scatter_args = e.fields.add("scatter", Field::Scatter, fill);
    let (row_step, column_step) = (
        e.fields.add("row_step", Field::Long, Fill::Known(shape.steps[2] as i64)),
        e.fields.add("column_step", Field::Long, Fill::Known(along(2))),
    );
    let source_at = e.fields.add("source_at", Field::Long, Fill::Known(scatter.source.offset as i64));
    let index_at = e.fields.add("index_at", Field::Long, Fill::Known(scatter.index.offset as i64));
    let written = memory_type(output.dtype);
    e.after_args = format!(
        "struct Epilogue {{\n    device {written}* out;\n    constant Args* arguments;\n    \
         void operator()(uint row, uint column, {ty} sum) const {{\n        constant Args& args = *arguments;\n        \
         out[long(row) * {row_step} + long(column) * {column_step}] = {written}(sum);\n    }}\n}};\n"
    );
    let each = if columns >= 1024 { 4 } else { 1 };
    e.line("threadgroup uint matches[TL_SCATTER_WORDS];");
    e.line("if (group.x == 0 && group.y == 0) {");
    e.line(format!("for (uint t = tid; t < {scatter_args}.terms; t += {THREADS}) {{"));
    e.line(format!(
        "tl_fault_in_range(long({by}[{index_at} + long(t) * {scatter_args}.index_term]), {limit}, true, {fault}, {tag});"
    ));
    e.line("}");
    e.line("}");
    e.line(format!("const Epilogue epilogue = {{{out}, &args}};"));
    e.line(format!(
        "tl_scatter_rows<{memory}, {ty}, {index_type}, {each}>({source} + {source_at}, {by} + {index_at}, {scatter_args}, \
         matches, epilogue, group, tid);"
    ));
    let groups = [scatter.limit as u32, columns.div_ceil(THREADS * each) as u32, 1];
    e.piece("scatter_rows", groups, THREADS as u32)
}

/// Sets the whole output to zero.
fn zeros(mut e: Emitter, scatter: &Scatter, output: &Output) -> Piece {
    let (index, out) = (e.index, e.buffer(output.node, true));
    let n = e.known("n", scatter.out_len as i64);
    e.line(format!("const {index} i = {index}(group.x) * {THREADS} + {index}(tid);"));
    e.line(format!("if (i < {n}) {out}[i] = {}({}(0));", memory_type(output.dtype), value_type(output.dtype)));
    e.piece("scatter_zero", [scatter.out_len.div_ceil(THREADS) as u32, 1, 1], THREADS as u32)
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
