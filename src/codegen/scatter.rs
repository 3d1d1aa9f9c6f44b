//! Sums by index: each thread owns a column of the output and adds its terms in the order of the source.

use super::args::{Field, Fill};
use super::emit::{Emitter, value_type};
use super::{Binding, Piece};
use crate::schedule::Reach;
use crate::shape::Dims;

/// Threads of a group.
const THREADS: usize = 256;

pub(super) fn render(mut e: Emitter) -> Piece {
    let kernel = e.kernel;
    let (Some(scatter), Some(output)) = (&kernel.scatter, kernel.outputs.first()) else {
        return e.piece("scatter", [1, 1, 1], THREADS as u32);
    };
    let (index, ty) = (e.index, value_type(scatter.source.dtype));
    let (source, by) = (e.buffer(scatter.source.node, false), e.buffer(scatter.index.node, false));
    let fault = e.bind("fault".into(), "device atomic_uint*".into(), Binding::Fault);
    let out = e.buffer(output.node, true);
    let mut extents = scatter.extents;
    let terms = extents.remove(scatter.axis);
    let columns: usize = extents.iter().product();
    let side = |e: &mut Emitter, name: &str, strides: &Dims<isize>, offset: isize| {
        let mut around = *strides;
        let step = around.remove(scatter.axis);
        let reach = Reach { outer: Dims::new(), inner: around, offset };
        let names: Vec<String> = (0..extents.len()).map(|d| format!("x{d}")).collect();
        (e.position(name, &reach, &names), e.known(format!("{name}_step"), step as i64))
    };
    let all = e.known("columns", columns as i64);
    e.line(format!("const {index} column = {index}(group.x) * {THREADS} + {index}(tid);"));
    e.line(format!("if (column >= {all}) return;"));
    if !extents.is_empty() {
        e.coordinates("column", "x", &extents);
    }
    let (from, from_step) = side(&mut e, "source", &scatter.source.strides, scatter.source.offset);
    let (at, at_step) = side(&mut e, "index", &scatter.index.strides, scatter.index.offset);
    let (to, to_step) = side(&mut e, "out", &scatter.out, 0);
    let limit = e.fields.add("limit", Field::Long, Fill::Known(scatter.limit as i64));
    let tag = e.fields.add("tag", Field::Uint, Fill::Tag { node: scatter.node, limit: scatter.limit });
    let terms = e.known("terms", terms as i64);
    e.line(format!("const {index} to = {to};"));
    e.line(format!("for ({index} i = 0; i < {index}({limit}); ++i) {out}[to + i * {to_step}] = {ty}(0);"));
    e.line(format!("for ({index} term = 0; term < {terms}; ++term) {{"));
    e.line(format!("const long i = long({by}[{at} + term * {at_step}]);"));
    e.line(format!("if (!tl_fault_in_range(i, {limit}, true, {fault}, {tag})) continue;"));
    e.line(format!("const {index} place = to + {index}(i) * {to_step};"));
    e.line(format!("{out}[place] = tl_add({out}[place], {ty}({source}[{from} + term * {from_step}]));"));
    e.line("}");
    e.piece("scatter", [columns.div_ceil(THREADS) as u32, 1, 1], THREADS as u32)
}
