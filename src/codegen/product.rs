//! Matrix products: the templates of `shaders/matmul.metal`, with the kernel's other values as epilogue.

use super::args::{Field, Fill};
use super::choice::{Choice, Layout, Tile};
use super::emit::{Chunk, Emitter, memory_type, value_type};
use super::{Machine, Piece, Rendered, THREADS};
use crate::dtype::DType;
use crate::ops::Elementwise;
use crate::schedule::{Gemm, Kernel, Level, Operand, Output, Reach, Value, ValueOp};
use crate::shape::{Dims, contiguous_strides};

/// A body of `shaders/matmul.metal`.
struct Body {
    /// The call up to its arguments.
    call: String,
    /// Type and length of its threadgroup memory.
    block: Option<(&'static str, String)>,
    groups: [usize; 2],
    threads: usize,
}

pub(super) fn render(mut e: Emitter, gemm: &Gemm) -> Piece {
    let body = body(gemm, Choice::of(gemm, e.machine));
    let (a, b) = (e.buffer(gemm.a.node, false), e.buffer(gemm.b.node, false));
    let strides = [gemm.a.row_stride, gemm.a.col_stride, gemm.b.row_stride, gemm.b.col_stride].map(|s| s as i64);
    let sizes = [gemm.m, gemm.n, gemm.k].map(|s| s as u32);
    let shape = e.fields.add("product", Field::Matmul, Fill::Product(strides, sizes));

    epilogue(&mut e, gemm);
    let statements = std::mem::take(&mut e.body);
    e.nest(-1);
    let mut members: Vec<String> = e.buffers.iter().map(|(name, ty, _)| format!("    {ty} {name};\n")).collect();
    members.push("    constant Args* arguments;\n    uint batch;\n".into());
    let sum = value_type(gemm.dtype);
    e.after_args = format!(
        "struct Epilogue {{\n{}    void operator()(uint row, uint column, {sum} sum) const {{\n\
         \x20       constant Args& args = *arguments;\n{statements}    }}\n}};\n",
        members.concat()
    );

    if let Some((ty, len)) = &body.block {
        e.line(format!("threadgroup {ty} block[{len}];"));
    }
    let [mut across, mut down] = body.groups;
    let mut products = gemm.products();
    if products > e.machine.grid || down > e.machine.grid {
        let x = e.fields.add("across", Field::Uint, Fill::Known(across as i64));
        let y = e.fields.add("down", Field::Uint, Fill::Known(down as i64));
        e.line(format!("const uint3 tile = uint3(group.x % {x}, group.x / {x} % {y}, group.x / {x} / {y});"));
        (across, down, products) = (across * down * products, 1, 1);
    } else {
        e.line("const uint3 tile = group;");
    }
    let names: Vec<String> = e.buffers.iter().map(|(name, ..)| name.clone()).collect();
    e.line(format!("const Epilogue epilogue = {{{}, &args, tile.z}};", names.join(", ")));
    let index = e.index;
    let batch = e.coordinates(&format!("{index}(tile.z)"), "z", &gemm.batch);
    let start = |e: &mut Emitter, side: &str, operand: &Operand| {
        let reach = Reach { outer: operand.batch, inner: Dims::new(), offset: operand.offset };
        e.outer.clone_from(&batch);
        let at = e.position(side, &reach, &[]);
        e.outer.clear();
        at
    };
    let (a_at, b_at) = (start(&mut e, "a", &gemm.a), start(&mut e, "b", &gemm.b));
    let block = if body.block.is_some() { "block, " } else { "" };
    e.line(format!("{}({a} + ({a_at}), {b} + ({b_at}), {shape}, {block}epilogue, tile, tid);", body.call));
    e.piece("matmul", [across as u32, down as u32, products as u32], body.threads as u32)
}

/// The statements of one element's epilogue; `row`, `column`, `sum` and `batch` are there.
fn epilogue(e: &mut Emitter, gemm: &Gemm) {
    let kernel = e.kernel;
    e.nest(1);
    let index = e.index;
    let m = gemm.m;
    let extents = kernel.inner;
    let rows = if gemm.batch.is_empty() {
        format!("{index}(row)")
    } else {
        let m = e.known("m", m as i64);
        format!("({index}(batch) * {m} + {index}(row))")
    };
    let split = extents.len() > 1 && extents.last() == Some(&gemm.n);
    let inner = if split {
        let above = extents.len() - 1;
        let mut names = e.coordinates(&rows, "x", &extents[..above]);
        e.line(format!("const {index} x{above} = {index}(column);"));
        names.push(format!("x{above}"));
        names
    } else {
        let n = e.known("n", gemm.n as i64);
        e.coordinates(&format!("({rows} * {n} + {index}(column))"), "x", &extents)
    };
    for (v, value) in kernel.values.iter().enumerate() {
        if matches!(value.op, ValueOp::Accumulator) {
            e.line(format!("const {} v{v} = sum;", value_type(value.dtype)));
        }
    }
    let list: Vec<u32> = (0..kernel.values.len() as u32)
        .filter(|&v| !matches!(kernel.values[v as usize].op, ValueOp::Accumulator))
        .collect();
    let chunk = Chunk { vector: 1, inner, ..Chunk::default() };
    e.chunk(&chunk, &list, &[], &[], &kernel.outputs);
}

/// The body that a choice names.
fn body(gemm: &Gemm, choice: Choice) -> Body {
    let Gemm { m, n, dtype, .. } = gemm;
    let (ty, sum) = (memory_type(*dtype), value_type(*dtype));
    let [a, b] = Layout::of(gemm);
    let tiles = |rows: usize, columns: usize| [m.div_ceil(rows), n.div_ceil(columns)];
    match choice {
        Choice::Units(tile) => {
            let Tile { rows, columns, depth, side_m, side_n, stages } = tile;
            let shape = format!("{rows}, {columns}, {depth}, {side_m}, {side_n}, {stages}");
            Body {
                call: format!("tl_matmul_units<{ty}, {}, {}, {shape}>", a.text(), b.text()),
                block: Some(("float", format!("TL_UNITS_BLOCK({rows}, {columns}, {depth}, {stages})"))),
                groups: tiles(rows, columns),
                threads: tile.threads(),
            }
        }
        Choice::Simt { side, depth } => Body {
            call: format!("tl_matmul_simt<{ty}, {sum}, {side}, {depth}>"),
            block: Some((ty, format!("TL_SIMT_BLOCK({side}, {depth})"))),
            groups: tiles(side, side),
            threads: THREADS,
        },
        Choice::GemvLines { few, few_are_rows } => {
            let (many, layout) = if few_are_rows { (n, b) } else { (m, a) };
            let vectors = layout == Layout::Lines;
            Body {
                call: format!("tl_gemv_lines<{ty}, {few}, {few_are_rows}, {vectors}>"),
                block: Some(("float", format!("TL_GEMV_BLOCK({few})"))),
                groups: [many.div_ceil(32), 1],
                threads: THREADS,
            }
        }
        Choice::GemvDepth { few, few_are_rows, lines } => {
            let (many, vectors) = (if few_are_rows { n } else { m }, [a, b] == [Layout::Depth; 2]);
            Body {
                call: format!("tl_gemv_depth<{ty}, {few}, {few_are_rows}, {lines}, {vectors}>"),
                block: None,
                groups: [many.div_ceil(4 * lines), 1],
                threads: 128,
            }
        }
        Choice::Slow => {
            Body { call: format!("tl_matmul_slow<{ty}, {sum}>"), block: None, groups: tiles(16, 16), threads: THREADS }
        }
    }
}

/// What a vendor's library can do of a kernel: its epilogue is at most a bias along the columns and an
/// activation, and the only outputs are what comes of that, dense, and what came before a GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LibraryEpilogue {
    /// Node and offset of the bias, of the output's dtype.
    pub bias: Option<(u32, usize)>,
    pub activation: Option<Elementwise>,
    pub output: u32,
    pub dtype: DType,
    /// The node of what comes before the activation, if it is stored, too.
    pub before: Option<u32>,
    /// Whether [`relu_in_place`] follows.
    pub relu: bool,
}

impl Default for LibraryEpilogue {
    /// None, of f32 sums in [`SUMS`].
    fn default() -> LibraryEpilogue {
        LibraryEpilogue { bias: None, activation: None, output: SUMS, dtype: DType::F32, before: None, relu: false }
    }
}

/// The epilogue of a product as a library has it.
pub(crate) fn library(kernel: &Kernel, dtype: &dyn Fn(u32) -> DType) -> Option<LibraryEpilogue> {
    let gemm = kernel.gemm.as_ref()?;
    let (output, before) = match &kernel.outputs[..] {
        [output] => (output, None),
        [output, before] if gemm.products() == 1 => (output, Some(before)),
        _ => return None,
    };
    let is_dense =
        |o: &Output| o.reach.inner == contiguous_strides(&kernel.inner) && o.reach.offset == 0 && o.dtype == gemm.dtype;
    if !is_dense(output) || before.is_some_and(|before| !is_dense(before)) {
        return None;
    }
    let value = |v: u32| &kernel.values[v as usize];
    let through = |mut v: u32| {
        // What rounds to the product's dtype, since the ops were written apart, or widens.
        while let ValueOp::Cast { value: from } | ValueOp::Round { value: from } = value(v).op
            && (value(v).dtype == gemm.dtype || value(v).dtype == DType::F32)
        {
            v = from;
        }
        v
    };
    let mut at = through(output.value);
    let mut epilogue = LibraryEpilogue { output: output.node, dtype: output.dtype, ..LibraryEpilogue::default() };
    // Libraries may drop a NaN in their relu. Behind the rounding it gives the same but for the sign of a zero.
    if let ValueOp::Elementwise { op: Elementwise::Relu, operands } = value(at).op {
        epilogue.relu = true;
        at = through(operands[0]);
    }
    if let ValueOp::Elementwise { op: op @ Elementwise::Gelu, operands } = value(at).op {
        epilogue.activation = Some(op);
        at = through(operands[0]);
        epilogue.before =
            before.filter(|before| !epilogue.relu && through(before.value) == at).map(|before| before.node);
    }
    if before.is_some() != epilogue.before.is_some() {
        return None;
    }
    if let ValueOp::Elementwise { op: Elementwise::Add, operands } = value(at).op {
        let [x, y] = [through(operands[0]), through(operands[1])];
        let (sum, bias) = if matches!(value(x).op, ValueOp::Accumulator) { (x, y) } else { (y, x) };
        let ValueOp::Load { node, reach } = value(bias).op else { return None };
        let last = reach.inner.len().checked_sub(1)?;
        let along =
            kernel.inner[last] == gemm.n && reach.inner[last] == 1 && reach.inner[..last].iter().all(|&s| s == 0);
        if !along || dtype(node) != output.dtype || kernel.inner.len() < 2 {
            return None;
        }
        epilogue.bias = Some((node, usize::try_from(reach.offset).ok()?));
        at = sum;
    }
    matches!(value(at).op, ValueOp::Accumulator).then_some(epilogue)
}

/// The node that stands for the sums in [`epilogue_alone`].
pub(crate) const SUMS: u32 = u32::MAX;

/// The rest of a product's kernel, over sums in memory of the product's dtype: what follows a library's product.
pub(crate) fn epilogue_alone(kernel: &Kernel, machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> Rendered {
    let mut map = Kernel { gemm: None, ..kernel.clone() };
    let reach = Reach { outer: Dims::new(), inner: contiguous_strides(&kernel.inner), offset: 0 };
    for value in map.values.iter_mut().filter(|v| matches!(v.op, ValueOp::Accumulator)) {
        value.op = ValueOp::Load { node: SUMS, reach };
        value.level = Level::Element;
    }
    let of_sums = kernel.gemm.as_ref().map_or(DType::F32, |gemm| gemm.dtype);
    let dtype = |node: u32| if node == SUMS { of_sums } else { dtype(node) };
    super::render(&[&map], machine, &dtype).pop().unwrap_or_default()
}

/// A relu over the dense output of a product's kernel.
pub(crate) fn relu_in_place(kernel: &Kernel, machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> Rendered {
    let Some(&output) = kernel.outputs.first() else { return Rendered::default() };
    let Output { node, dtype: of, .. } = output;
    let reach = Reach { outer: Dims::new(), inner: Dims::filled(1, 1), offset: 0 };
    let value = |op| Value { op, dtype: of, level: Level::Element, node };
    let relu = ValueOp::Elementwise { op: Elementwise::Relu, operands: [0; 3] };
    let map = Kernel {
        inner: Dims::filled(1, kernel.row_len()),
        values: vec![value(ValueOp::Load { node, reach }), value(relu)],
        outputs: vec![Output { value: 1, reach, ..output }],
        gemm: None,
        ..kernel.clone()
    };
    super::render(&[&map], machine, dtype).pop().unwrap_or_default()
}
