//! Statements for the values of a kernel: what all forms share.

use super::args::{Field, Fields, Fill};
use super::{Binding, Machine, Piece};
use crate::dtype::DType;
use crate::graph::Random;
use crate::ops::{Elementwise, Sort};
use crate::schedule::{Kernel, Level, Operand, Output, Reach, Strided, ValueOp};
use rustc_hash::FxHashMap;
use std::fmt::Write as _;

/// The Metal type of memory of a dtype.
pub(super) fn memory_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        DType::I64 => "long",
        DType::I32 => "int",
        DType::U32 => "uint",
        DType::U8 | DType::Bool => "uchar",
        DType::F32 | DType::F64 => "float",
    }
}

/// The Metal type of a value of a dtype.
pub(super) fn value_type(dtype: DType) -> &'static str {
    memory_type(dtype.held())
}

/// Whether a reach moves along the last inner loop, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stride {
    Zero,
    One,
    Other,
}

/// Where in its loops a chunk of elements stands.
#[derive(Clone, Default)]
pub(super) struct Chunk {
    /// Elements side by side along the last inner loop; 1 if elements come one by one.
    pub vector: usize,
    /// The number of them that there are, as text; for `vector` 1 a condition surrounds the chunk.
    pub count: String,
    /// Names of the inner loops' coordinates, of the first element.
    pub inner: Vec<String>,
    /// Index of the chunk among those that a thread keeps, as text.
    pub kept: String,
}

/// Writes the text of one dispatch.
pub(super) struct Emitter<'k> {
    pub kernel: &'k Kernel,
    pub machine: &'k Machine,
    dtype: &'k dyn Fn(u32) -> DType,
    /// `int`, or `long` where 31 bits do not hold all positions.
    pub index: &'static str,
    pub fields: Fields,
    pub buffers: Vec<(String, String, Binding)>,
    /// Op, operands' dtype, and whether the narrow form will do.
    functors: Vec<(Elementwise, DType, bool)>,
    pub body: String,
    depth: usize,
    /// Threadgroup memory: type, name, length.
    threadgroup: Vec<(String, String, usize)>,
    /// Names of the outer loops' coordinates.
    pub outer: Vec<String>,
    /// Definitions that use `Args`, above the kernel.
    pub after_args: String,
    /// Loads that stand in threadgroup memory already: where their packet begins.
    pub staged: Vec<(u32, String)>,
    /// Kept values, as names of arrays over a thread's chunks.
    pub kept: Vec<bool>,
    /// Values of which nothing is left but what is rounded to f16 or bf16.
    near: Vec<bool>,
}

impl<'k> Emitter<'k> {
    pub fn new(kernel: &'k Kernel, machine: &'k Machine, dtype: &'k dyn Fn(u32) -> DType) -> Self {
        Emitter {
            kernel,
            machine,
            dtype,
            index: if is_large(kernel) { "long" } else { "int" },
            fields: Fields::default(),
            buffers: Vec::new(),
            functors: Vec::new(),
            body: String::new(),
            depth: 1,
            threadgroup: Vec::new(),
            outer: Vec::new(),
            after_args: String::new(),
            staged: Vec::new(),
            kept: vec![false; kernel.values.len()],
            near: near(kernel),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.depth -= usize::from(text.starts_with('}'));
        let _ = writeln!(self.body, "{:width$}{text}", "", width = 4 * self.depth);
        self.depth += usize::from(text.ends_with('{'));
    }

    /// Indents what follows by so many steps more.
    pub fn nest(&mut self, steps: isize) {
        self.depth = self.depth.saturating_add_signed(steps);
    }

    /// Declares an array in threadgroup memory, if there is none of the name.
    pub fn threadgroup(&mut self, ty: &str, name: &str, len: usize) {
        if !self.threadgroup.iter().any(|(_, n, _)| n == name) {
            self.threadgroup.push((ty.into(), name.into(), len));
        }
    }

    /// A field that the plan knows, of the index type.
    pub fn known(&mut self, name: impl Into<String>, value: i64) -> String {
        let field = if self.index == "long" { Field::Long } else { Field::Int };
        self.fields.add(name, field, Fill::Known(value))
    }

    /// The name of a node's buffer.
    pub fn buffer(&mut self, node: u32, written: bool) -> String {
        let binding = if written { Binding::Write(node) } else { Binding::Read(node) };
        let ty = memory_type((self.dtype)(node));
        let access = if written { "device" } else { "device const" };
        self.bind(format!("b{}", self.buffers.len()), format!("{access} {ty}*"), binding)
    }

    pub fn bind(&mut self, name: String, ty: String, binding: Binding) -> String {
        if let Some((name, ..)) = self.buffers.iter().find(|(.., b)| *b == binding) {
            return name.clone();
        }
        self.buffers.push((name.clone(), ty, binding));
        name
    }

    pub fn node_dtype(&self, node: u32) -> DType {
        (self.dtype)(node)
    }

    /// Splits the row-major index `from` into coordinates `x0`, `x1`, ... of loops; `from` is used up.
    pub fn coordinates(&mut self, from: &str, prefix: &str, extents: &[usize]) -> Vec<String> {
        let index = self.index;
        let names: Vec<String> = (0..extents.len()).map(|d| format!("{prefix}{d}")).collect();
        if let [only] = &names[..] {
            self.line(format!("const {index} {only} = {from};"));
            return names;
        }
        let mut rest = from.to_string();
        for d in (1..extents.len()).rev() {
            let extent = self.known(format!("{prefix}{d}_extent"), extents[d] as i64);
            let name = &names[d];
            self.line(format!("const {index} {name} = {rest} % {extent};"));
            if d > 1 {
                self.line(format!("const {index} {prefix}_above{d} = {rest} / {extent};"));
                rest = format!("{prefix}_above{d}");
            } else {
                self.line(format!("const {index} {} = {rest} / {extent};", names[0]));
            }
        }
        names
    }

    /// The position that a reach stands at; `name` tells its fields apart.
    pub fn position(&mut self, name: &str, reach: &Reach, inner: &[String]) -> String {
        let mut terms = vec![match self.kernel.shift.filter(|_| name == "o0") {
            None => self.known(format!("{name}_at"), reach.offset as i64),
            Some(shift) => {
                let wide = self.index == "long";
                let field = if wide { Field::Long } else { Field::Int };
                self.fields.add(format!("{name}_at"), field, Fill::Shifted { offset: reach.offset as i64, shift, wide })
            }
        }];
        let outer = self.outer.clone();
        let loops = [(&outer[..], &reach.outer[..], "o"), (inner, &reach.inner[..], "i")];
        for (names, strides, side) in loops {
            for (d, (coordinate, &stride)) in names.iter().zip(strides).enumerate() {
                match stride {
                    0 => {}
                    1 => terms.push(coordinate.clone()),
                    _ => {
                        let field = self.known(format!("{name}_{side}{d}"), stride as i64);
                        terms.push(format!("{coordinate} * {field}"));
                    }
                }
            }
        }
        terms.join(" + ")
    }

    /// A functor's name; its definition goes above the kernel.
    fn functor(&mut self, op: Elementwise, on: DType, narrow: bool) -> String {
        let narrow = narrow && op.msl_narrow() != op.msl();
        if !self.functors.contains(&(op, on, narrow)) {
            self.functors.push((op, on, narrow));
        }
        functor_name(op, narrow)
    }

    /// The functors that the text uses, each as its row of the op table has it.
    fn functors_text(&self) -> String {
        let mut text = String::new();
        for &(op, on, narrow) in &self.functors {
            let of = value_type(on);
            let result = if matches!(op.sort(), Sort::Cmp | Sort::Test) { "uchar" } else { of };
            let operand = |(i, name): (usize, &&str)| match (op.sort(), i) {
                (Sort::Select, 0) => format!("uchar {name}"),
                _ => format!("{of} {name}"),
            };
            let operands: Vec<String> = op.operands().iter().enumerate().map(operand).collect();
            let (name, body) = (functor_name(op, narrow), if narrow { op.msl_narrow() } else { op.msl() });
            let _ = writeln!(text, "inline {result} {name}({}) {{ return {body}; }}", operands.join(", "));
        }
        text
    }

    /// What the text computes for value `v`, from its operands' names; loads are not among them.
    fn expression(&mut self, v: u32, active: &str) -> String {
        let value = self.kernel.values[v as usize];
        let dtype_of = |v: u32| self.kernel.values[v as usize].dtype;
        match value.op {
            ValueOp::Scalar { param } => {
                let class = value.dtype.held();
                let name = self.fields.add(format!("s{v}"), Field::of(class), Fill::Param(param, class));
                if class == DType::U8 { format!("uchar({name})") } else { name }
            }
            ValueOp::Random { kind, index, param } => {
                let mut long = |name: &str, param: u32| {
                    self.fields.add(format!("{name}{v}"), Field::Long, Fill::Param(param, DType::I64))
                };
                let (key, offset) = (long("key", param), long("offset", param + 1));
                let function = match kind {
                    Random::Uniform => "tl_random_uniform",
                    Random::Normal => "tl_random_normal",
                };
                format!("{function}(ulong({key}), ulong(v{index}) + ulong({offset}))")
            }
            ValueOp::Elementwise { op, operands } => {
                let on = match op.sort() {
                    Sort::Cmp | Sort::Test => dtype_of(operands[0]),
                    _ => value.dtype,
                };
                let near = self.near[v as usize];
                if near && op == Elementwise::Div && self.kernel.values[operands[1] as usize].level != Level::Element {
                    // One division a row.
                    return format!("v{} * (1.0f / v{})", operands[0], operands[1]);
                }
                let narrow = value.dtype.is_narrow() || (near && op.is_near());
                let name = self.functor(op, on.held(), narrow);
                let operands: Vec<String> = operands[..op.arity()].iter().map(|v| format!("v{v}")).collect();
                format!("{name}({})", operands.join(", "))
            }
            ValueOp::Cast { value: from } => conversion(&format!("v{from}"), dtype_of(from), value.dtype),
            ValueOp::Round { value: from } => format!("float({}(v{from}))", memory_type(value.dtype)),
            ValueOp::Bound { value: from, limit } => {
                let check = self.check(v, &format!("long(v{from})"), value.node, limit, active);
                self.line(format!("{check};"));
                format!("v{from}")
            }
            _ => format!("v{v}"), // its own statement defines it
        }
    }

    /// Whether an index is in range, as text; reports it if not.
    fn check(&mut self, v: u32, index: &str, node: u32, limit: usize, active: &str) -> String {
        let fault = self.bind("fault".into(), "device atomic_uint*".into(), Binding::Fault);
        let limit_field = self.fields.add(format!("limit{v}"), Field::Long, Fill::Known(limit as i64));
        let tag = self.fields.add(format!("tag{v}"), Field::Uint, Fill::Tag { node, limit });
        format!("tl_fault_in_range({index}, {limit_field}, {active}, {fault}, {tag})")
    }

    /// Defines value `v` as one scalar.
    pub fn scalar(&mut self, v: u32, inner: &[String], active: &str) {
        let value = self.kernel.values[v as usize];
        let ty = value_type(value.dtype);
        match value.op {
            ValueOp::Load { node, reach } => {
                let (buffer, at) = (self.buffer(node, false), self.position(&format!("v{v}"), &reach, inner));
                // Where a packet is empty, its coordinates are anywhere.
                if active.contains("count") {
                    self.line(format!("const {ty} v{v} = {active} ? {ty}({buffer}[{at}]) : {ty}(0);"));
                } else {
                    self.line(format!("const {ty} v{v} = {ty}({buffer}[{at}]);"));
                }
            }
            ValueOp::Padded { node, reach, first, count } => {
                let (buffer, at) = (self.buffer(node, false), self.position(&format!("v{v}"), &reach, inner));
                let mut holds: Vec<String> = Some(active.to_string()).filter(|a| a != "true").into_iter().collect();
                for g in first..first + count {
                    let guard = self.kernel.guards[g as usize];
                    let coordinate = self.position(&format!("g{g}"), &guard.coordinate, inner);
                    let limit = self.known(format!("g{g}_limit"), guard.limit as i64);
                    let unsigned = if self.index == "long" { "ulong" } else { "uint" };
                    holds.push(format!("{unsigned}({coordinate}) < {unsigned}({limit})"));
                }
                let holds = if holds.is_empty() { "true".into() } else { holds.join(" && ") };
                self.line(format!("const {ty} v{v} = {holds} ? {ty}({buffer}[{at}]) : {ty}(0);"));
            }
            ValueOp::Index { reach } => {
                let at = self.position(&format!("v{v}"), &reach, inner);
                self.line(format!("const long v{v} = {at};"));
            }
            ValueOp::Gather { node, reach, index, stride, limit } => {
                let check = self.check(v, &format!("long(v{index})"), value.node, limit, active);
                let (buffer, at) = (self.buffer(node, false), self.position(&format!("v{v}"), &reach, inner));
                let (stride, index_type) = (self.known(format!("v{v}_step"), stride as i64), self.index);
                self.line(format!(
                    "const {ty} v{v} = {check} ? {ty}({buffer}[{at} + {index_type}(v{index}) * {stride}]) : {ty}(0);"
                ));
            }
            _ => {
                let text = self.expression(v, active);
                self.line(format!("const {ty} v{v} = {text};"));
            }
        }
    }

    /// How a reach moves along the last inner loop.
    fn stride(&self, reach: &Reach) -> Stride {
        match reach.inner.last().copied().unwrap_or(0) {
            0 => Stride::Zero,
            1 => Stride::One,
            _ => Stride::Other,
        }
    }

    /// Whether value `v` differs between the elements of a packet.
    pub fn varies(&self, v: u32, known: &[bool]) -> bool {
        let value = &self.kernel.values[v as usize];
        let moves = |reach: &Reach| self.stride(reach) != Stride::Zero;
        let below = value.op.operands().any(|o| known[o as usize]);
        match value.op {
            ValueOp::Load { reach, .. } | ValueOp::Index { reach } => moves(&reach),
            ValueOp::Padded { reach, first, count, .. } => {
                let guards = &self.kernel.guards[first as usize..(first + count) as usize];
                moves(&reach) || guards.iter().any(|g| moves(&g.coordinate))
            }
            ValueOp::Gather { reach, .. } => moves(&reach) || below,
            ValueOp::Accumulator => true,
            _ => below,
        }
    }

    /// Computes element values `list` (operands first) for one chunk, folds the `folds` (accumulator,
    /// combining function, value), keeps what is to be kept and stores `outputs`.
    ///
    /// `list` holds nothing that was kept before: that stands in `kept`, and is read from its array.
    pub fn chunk(&mut self, chunk: &Chunk, list: &[u32], before: &[u32], folds: &[FoldStep], outputs: &[Output]) {
        if chunk.vector == 1 {
            return self.single(chunk, list, before, folds, outputs);
        }
        let n = chunk.vector;
        let mut varies = vec![false; self.kernel.values.len()];
        for &v in before {
            varies[v as usize] = true;
        }
        // Packets of memory first, then what is the same in all elements of the packet.
        for &v in list {
            varies[v as usize] = self.kept[v as usize] || self.varies(v, &varies);
            let value = self.kernel.values[v as usize];
            let ValueOp::Load { node, reach } = value.op else { continue };
            if !varies[v as usize] {
                continue;
            }
            self.load_packet(v, node, &reach, chunk);
        }
        for &v in list.iter().filter(|&&v| !varies[v as usize]) {
            self.scalar(v, &chunk.inner, &format!("{} > 0", chunk.count));
        }
        for output in outputs {
            let number = self.output_number(output);
            self.line(format!("{} o{number}[{n}];", value_type(output.dtype)));
        }
        self.line(format!("for (uint u = 0; u < {n}; ++u) {{"));
        let mut inner = chunk.inner.clone();
        if let Some(last) = inner.last_mut() {
            *last = format!("({last} + {}(u))", self.index);
        }
        for &v in before {
            self.line(format!("const {} v{v} = k{v}[{} * {n} + u];", self.type_of(v), chunk.kept));
        }
        let active = format!("u < {}", chunk.count);
        for &v in list.iter().filter(|&&v| varies[v as usize]) {
            if !matches!(self.kernel.values[v as usize].op, ValueOp::Load { .. }) {
                self.scalar(v, &inner, &active);
                if self.kept[v as usize] {
                    self.line(format!("k{v}[{} * {n} + u] = v{v};", chunk.kept));
                }
            } else if self.kept[v as usize] {
                self.line(format!("const {} v{v} = k{v}[{} * {n} + u];", self.type_of(v), chunk.kept));
            } else {
                self.line(format!("const {} v{v} = p{v}[u];", self.type_of(v)));
            }
        }
        for fold in folds {
            self.line(format!("if ({active}) {};", fold.text()));
        }
        for output in outputs {
            let number = self.output_number(output);
            self.line(format!("o{number}[u] = v{};", output.value));
        }
        self.line("}");
        for output in outputs {
            let buffer = self.buffer(output.node, true);
            let name = format!("o{}", self.output_number(output));
            self.transfer("store", &name, &buffer, &output.reach, chunk, &name);
        }
    }

    /// Loads the packets of `list` alone, into the arrays of what is kept.
    pub fn load_packets(&mut self, chunk: &Chunk, list: &[u32]) {
        for &v in list {
            if let ValueOp::Load { node, reach } = self.kernel.values[v as usize].op {
                self.load_packet(v, node, &reach, chunk);
            }
        }
    }

    fn load_packet(&mut self, v: u32, node: u32, reach: &Reach, chunk: &Chunk) {
        let (n, ty) = (chunk.vector, self.type_of(v));
        if let Some((_, place)) = self.staged.iter().find(|(staged, _)| *staged == v) {
            let from =
                format!("for (uint u = 0; u < {n}; ++u) p{v}[u] = u < {} ? {ty}({place}[u]) : {ty}(0);", chunk.count);
            self.line(format!("{ty} p{v}[{n}];"));
            self.line(from);
            return;
        }
        let buffer = self.buffer(node, false);
        let array = if self.kept[v as usize] {
            format!("k{v} + {} * {n}", chunk.kept)
        } else {
            self.line(format!("{ty} p{v}[{n}];"));
            format!("p{v}")
        };
        self.transfer("load", &format!("v{v}"), &buffer, reach, chunk, &array);
    }

    /// Moves a packet between memory and an array; `name` tells the reach's fields apart.
    fn transfer(&mut self, verb: &str, name: &str, buffer: &str, reach: &Reach, chunk: &Chunk, array: &str) {
        let at = self.position(name, reach, &chunk.inner);
        let Chunk { vector, count, .. } = chunk;
        let step = match self.stride(reach) {
            Stride::One if reach.is_aligned(*vector) => {
                self.line(format!("tl_{verb}<{vector}>({buffer} + ({at}), {count}, {array});"));
                return;
            }
            Stride::One => "1".to_string(),
            _ => {
                let last = reach.inner.len() - 1;
                self.known(format!("{name}_i{last}"), reach.inner[last] as i64)
            }
        };
        self.line(format!("tl_{verb}_strided<{vector}>({buffer} + ({at}), {step}, {count}, {array});"));
    }

    /// A chunk of one element.
    fn single(&mut self, chunk: &Chunk, list: &[u32], before: &[u32], folds: &[FoldStep], outputs: &[Output]) {
        for &v in before {
            self.line(format!("const {} v{v} = k{v}[{}];", self.type_of(v), chunk.kept));
        }
        for &v in list {
            self.scalar(v, &chunk.inner, "true");
            if self.kept[v as usize] {
                self.line(format!("k{v}[{}] = v{v};", chunk.kept));
            }
        }
        for fold in folds {
            self.line(format!("{};", fold.text()));
        }
        outputs.iter().for_each(|output| self.store(output, &chunk.inner));
    }

    /// Stores an output's value, a scalar.
    pub fn store(&mut self, output: &Output, inner: &[String]) {
        let buffer = self.buffer(output.node, true);
        let at = self.position(&format!("o{}", self.output_number(output)), &output.reach, inner);
        self.line(format!("{buffer}[{at}] = {}(v{});", memory_type(output.dtype), output.value));
    }

    fn output_number(&self, output: &Output) -> usize {
        self.kernel.outputs.iter().position(|o| o.node == output.node).unwrap_or(0)
    }

    pub fn type_of(&self, v: u32) -> &'static str {
        value_type(self.kernel.values[v as usize].dtype)
    }

    /// Ends the text.
    pub fn piece(self, form: &str, groups: [u32; 3], threads: u32) -> Piece {
        let (name, helpers) = (name(form, self.kernel), self.functors_text());
        let shared = |(ty, name, len): &(String, String, usize)| format!("    threadgroup {ty} {name}[{len}];\n");
        let body = self.threadgroup.iter().map(shared).collect::<String>() + &without_unused(&self.body);
        let Emitter { buffers, fields, after_args, .. } = self;
        Piece { name, helpers, buffers, fields, after_args, body, groups, threads, block_bytes: 0 }
    }
}

/// A fold of the elements of a chunk into an accumulator.
pub(super) struct FoldStep {
    /// The accumulator's name.
    pub into: String,
    /// `TlSum<float>`, for example.
    pub op: String,
    pub value: u32,
    /// Text of element `u`'s position among the row's elements, if the fold wants positions.
    pub position: Option<&'static str>,
}

impl FoldStep {
    /// The statement for one element, `u` of a packet.
    fn text(&self) -> String {
        let FoldStep { into, op, value, position } = self;
        match position {
            Some(position) => format!("{into} = {op}::both({into}, {op}::at(v{value}, {position}))"),
            None => format!("{into} = {op}::both({into}, v{value})"),
        }
    }
}

/// A conversion between the types that registers hold, as the CPU does it.
fn conversion(x: &str, from: DType, to: DType) -> String {
    if to == DType::Bool {
        return if from == DType::Bool { x.into() } else { format!("uchar({x} != 0)") };
    }
    if to.is_narrow() && matches!(from, DType::I64 | DType::I32 | DType::U32) {
        // Rounded to odd on the way, so that the store does not round a second time.
        return format!("tl_odd(long({x}))");
    }
    let (source, target) = (from.held(), to.held());
    if source == target {
        return x.into();
    }
    let ty = value_type(to);
    if source == DType::F32 { format!("tl_to_{ty}({x})") } else { format!("{ty}({x})") }
}

/// Which f32 values of a kernel that folds end in results of f16 or bf16 alone. Functions that are off by a few of f32's
/// last bits will do for these. Maps stay as they are: they have the same bits fused and unfused.
fn near(kernel: &Kernel) -> Vec<bool> {
    let count = kernel.values.len();
    let folds = kernel.values.iter().any(|v| matches!(v.op, ValueOp::Reduce { .. }));
    let mut near = vec![folds && kernel.gemm.is_none(); count];
    for output in kernel.outputs.iter().filter(|output| !output.dtype.is_narrow()) {
        near[output.value as usize] = false;
    }
    for v in (0..count).rev() {
        let value = &kernel.values[v];
        if !near[v] || !value.dtype.is_float() {
            near[v] = false;
            value.op.operands().for_each(|operand| near[operand as usize] = false);
        }
    }
    near
}

/// Whether some position, or a number of elements, needs more than 31 bits.
fn is_large(kernel: &Kernel) -> bool {
    const LIMIT: i128 = i32::MAX as i128 - (1 << 22);
    let span = |extents: &[usize], strides: &[isize]| -> i128 {
        extents.iter().zip(strides).map(|(&e, &s)| e as i128 * (s as i128).abs()).sum()
    };
    let extent = |reach: &Reach| {
        (reach.offset as i128).abs() + span(&kernel.outer, &reach.outer) + span(&kernel.inner, &reach.inner)
    };
    let far = |reach: &Reach| extent(reach) > LIMIT;
    let of_product = kernel.gemm.as_ref().is_some_and(|g| {
        let side = |o: &Operand, lines: usize, line: isize, depth: isize| {
            let inside = span(&[lines, g.k], &[line, depth]) + span(&g.batch, &o.batch);
            (o.offset as i128).abs() + inside > LIMIT
        };
        side(&g.a, g.m, g.a.row_stride, g.a.col_stride) || side(&g.b, g.n, g.b.col_stride, g.b.row_stride)
    });
    let of_scatter = kernel.scatter.as_ref().is_some_and(|s| {
        let side = |o: &Strided| (o.offset as i128).abs() + span(&s.extents, &o.strides) > LIMIT;
        side(&s.source) || side(&s.index) || s.out_len as i128 > LIMIT
    });
    let elements = kernel.rows() as i128 * kernel.row_len() as i128;
    elements > LIMIT
        || of_product
        || of_scatter
        || kernel.outputs.iter().any(|o| far(&o.reach))
        || kernel.shift.is_some_and(|shift| shift.rows as i128 * shift.stride as i128 > LIMIT)
        || kernel.guards.iter().any(|g| far(&g.coordinate))
        || kernel.values.iter().any(|v| match &v.op {
            ValueOp::Load { reach, .. } | ValueOp::Padded { reach, .. } | ValueOp::Index { reach } => far(reach),
            ValueOp::Gather { reach, stride, limit, .. } => {
                extent(reach) + (*stride as i128).abs() * *limit as i128 > LIMIT
            }
            _ => false,
        })
}

/// The statements without constants that nothing reads.
fn without_unused(body: &str) -> String {
    let words = |line| str::split(line, |c: char| !c.is_ascii_alphanumeric() && c != '_');
    fn constant(line: &str) -> Option<&str> {
        let (declared, value) = line.trim_start().strip_prefix("const ")?.split_once(" = ")?;
        if value.contains("tl_fault") { None } else { declared.rsplit(' ').next() }
    }
    let mut lines: Vec<&str> = body.lines().collect();
    loop {
        // Reads of each name: its appearances, but for those that define it.
        let mut reads: FxHashMap<&str, isize> = FxHashMap::default();
        for &line in &lines {
            words(line).for_each(|word| *reads.entry(word).or_default() += 1);
        }
        for name in lines.iter().filter_map(|line| constant(line)) {
            *reads.entry(name).or_default() -= 1;
        }
        let unused = |line: &str| constant(line).is_some_and(|name| reads.get(name).is_none_or(|&n| n <= 0));
        let kept: Vec<&str> = lines.iter().copied().filter(|line| !unused(line)).collect();
        if kept.len() == lines.len() {
            return lines.iter().map(|line| format!("{line}\n")).collect();
        }
        lines = kept;
    }
}

/// `map_add_relu`: the form, and the first ops.
fn name(form: &str, kernel: &Kernel) -> String {
    let mut name = form.to_string();
    let ops = kernel.values.iter().filter_map(|v| match v.op {
        ValueOp::Elementwise { op, .. } => Some(op.name()),
        ValueOp::Reduce { op, .. } | ValueOp::Finish { op, .. } => Some(op.name()),
        ValueOp::Random { .. } => Some("random"),
        ValueOp::Gather { .. } => Some("gather"),
        ValueOp::Padded { .. } => Some("pad"),
        _ => None,
    });
    for op in ops.take(4) {
        let _ = write!(name, "_{op}");
    }
    name
}

fn functor_name(op: Elementwise, narrow: bool) -> String {
    format!("op_{}{}", op.name(), if narrow { "_narrow" } else { "" })
}
