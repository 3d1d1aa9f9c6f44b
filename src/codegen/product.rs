//! Matrix products: the templates of `shaders/matmul.metal`, with the kernel's other values as epilogue.

use super::args::{Field, Fill};
use super::emit::{Chunk, Emitter, memory_type, value_type};
use super::{Machine, Piece, Rendered, THREADS};
use crate::dtype::DType;
use crate::ops::Elementwise;
use crate::schedule::{Gemm, Kernel, Level, Operand, Reach, ValueOp};
use crate::shape::{Dims, contiguous_strides};

/// Sizes from which on tiles of 128 pay, if there are enough of them.
const LARGE: usize = 512;

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
    let body = choose(gemm, e.machine);
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

/// How an operand lies, as the templates have it; its lines are rows of a or columns of b.
fn layout(operand: &Operand, line: isize, depth: isize, size: usize) -> &'static str {
    let per_load = (16 / size) as isize;
    let aligned = |s: isize| s % per_load == 0;
    if !aligned(operand.offset) || !operand.batch.iter().all(|&s| aligned(s)) {
        return "TL_STRIDED";
    }
    match (depth, line) {
        (1, line) if aligned(line) => "TL_DEPTH_CONTIGUOUS",
        (depth, 1) if aligned(depth) => "TL_LINES_CONTIGUOUS",
        _ => "TL_STRIDED",
    }
}

fn choose(gemm: &Gemm, machine: &Machine) -> Body {
    let Gemm { m, n, dtype, a, b, .. } = gemm;
    let (m, n) = (*m, *n);
    let ty = memory_type(*dtype);
    let a_layout = layout(a, a.row_stride, a.col_stride, dtype.size());
    let b_layout = layout(b, b.col_stride, b.row_stride, dtype.size());
    let few = m.min(n);
    if few <= 4 && dtype.is_float() {
        let few_are_rows = m <= n;
        let (many, line, depth) =
            if few_are_rows { (n, b.col_stride, b.row_stride) } else { (m, a.row_stride, a.col_stride) };
        let layout = if few_are_rows { b_layout } else { a_layout };
        if line == 1 && depth != 1 {
            let vectors = layout == "TL_LINES_CONTIGUOUS";
            return Body {
                call: format!("tl_gemv_lines<{ty}, {few}, {few_are_rows}, {vectors}>"),
                block: Some(("float", format!("TL_GEMV_BLOCK({few})"))),
                groups: [many.div_ceil(32), 1],
                threads: THREADS,
            };
        }
        let vectors = a_layout == "TL_DEPTH_CONTIGUOUS" && b_layout == "TL_DEPTH_CONTIGUOUS";
        let lines = if many.div_ceil(16) * gemm.products() >= machine.parallel_groups { 4 } else { 1 };
        return Body {
            call: format!("tl_gemv_depth<{ty}, {few}, {few_are_rows}, {lines}, {vectors}>"),
            block: None,
            groups: [many.div_ceil(4 * lines), 1],
            threads: 128,
        };
    }
    let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side) * gemm.products();
    let large = few >= LARGE && tiles(128) * 8 >= machine.parallel_groups;
    if dtype.is_narrow() && machine.matrix_units {
        let roomy = machine.threadgroup_bytes > 32 << 10;
        let (side, simds, stages) =
            if large && roomy { (128, "2, 4", 2) } else { (64, "2, 2", 1 + usize::from(roomy)) };
        return Body {
            call: format!("tl_matmul_units<{ty}, {a_layout}, {b_layout}, {side}, {side}, {simds}, {stages}>"),
            block: Some(("float", format!("TL_UNITS_BLOCK({side}, {side}, {stages})"))),
            groups: [m.div_ceil(side), n.div_ceil(side)],
            threads: if side == 128 { 256 } else { 128 },
        };
    }
    let (side, depth) = match dtype.size() {
        ..=4 if large => (128, 8),
        8 => (64, 8),
        _ => (64, 16),
    };
    Body {
        call: format!("tl_matmul_simt<{ty}, {}, {side}, {depth}>", value_type(*dtype)),
        block: Some((ty, format!("TL_SIMT_BLOCK({side}, {depth})"))),
        groups: [m.div_ceil(side), n.div_ceil(side)],
        threads: THREADS,
    }
}

/// What a vendor's library can do of a kernel: its epilogue is at most a bias along the columns and an
/// activation, and the only output is dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LibraryEpilogue {
    /// Node and offset of the bias, of the output's dtype.
    pub bias: Option<(u32, usize)>,
    pub activation: Option<Elementwise>,
    pub output: u32,
    pub dtype: DType,
}

/// The epilogue of a product as a library has it.
pub(crate) fn library(kernel: &Kernel, dtype: &dyn Fn(u32) -> DType) -> Option<LibraryEpilogue> {
    let gemm = kernel.gemm.as_ref()?;
    let [output] = &kernel.outputs[..] else { return None };
    if output.reach.inner != contiguous_strides(&kernel.inner) || output.reach.offset != 0 || output.dtype != gemm.dtype
    {
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
    let mut epilogue = LibraryEpilogue { bias: None, activation: None, output: output.node, dtype: output.dtype };
    // Libraries may drop a NaN in their relu.
    if let ValueOp::Elementwise { op: op @ Elementwise::Gelu, operands } = value(at).op {
        epilogue.activation = Some(op);
        at = through(operands[0]);
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

/// The rest of a product's kernel, over sums in memory: what follows a library's product.
pub(crate) fn epilogue_alone(kernel: &Kernel, machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> Rendered {
    let mut map = Kernel { gemm: None, ..kernel.clone() };
    let reach = Reach { outer: Dims::new(), inner: contiguous_strides(&kernel.inner), offset: 0 };
    for value in map.values.iter_mut().filter(|v| matches!(v.op, ValueOp::Accumulator)) {
        value.op = ValueOp::Load { node: SUMS, reach };
        value.level = Level::Element;
    }
    let dtype = |node: u32| if node == SUMS { DType::F32 } else { dtype(node) };
    super::render(&[&map], machine, &dtype).pop().unwrap_or_default()
}
