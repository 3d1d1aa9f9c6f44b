//! Layer 4: from kernels to Metal Shading Language. Deterministic and without any I/O: the same kernel
//! gives the same text, whatever the sizes, so that a smaller last batch compiles nothing.
//!
//! A kernel takes one of a few forms:
//! - map: each thread computes a packet of elements that lie side by side (`map`).
//! - rows: a team of threads shares a row, which stays on chip if it is short enough; or, where
//!   neighbours in memory belong to different rows, each thread walks a row of its own (`rows`).
//! - few long rows are split in segments; every fold then ends a dispatch, and the next one begins by
//!   folding what the segments left in scratch memory (`rows`).
//! - products and scatters fill in the templates of `shaders/` (`product`, in tiles that `choice` picks; `scatter`).

mod args;
mod attention;
mod attention_hopper;
mod choice;
mod emit;
mod map;
mod product;
mod rows;
mod scatter;
#[cfg(test)]
mod tests;

pub(crate) use args::{Fill, TENSOR_MAP, TensorMap};
#[cfg(any(test, target_os = "macos"))]
pub(crate) use choice::Class;
pub(crate) use choice::{Chip, Choice, Layout, Tile};
pub(crate) use product::{LibraryEpilogue, SUMS, epilogue_alone, library, relu_in_place};

use crate::dtype::DType;
use crate::schedule::{Kernel, ValueOp};
use args::{Fields, Patch};
use emit::Emitter;

/// What a device can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Threads of a group.
    pub threads: usize,
    /// Bytes of threadgroup memory that a kernel may declare.
    pub threadgroup_bytes: usize,
    /// The same of memory that a dispatch asks for, where it can: `TL_DISPATCH_BLOCK` declares it.
    pub dispatch_bytes: usize,
    /// Buffers that a dispatch may bind, its arguments among them.
    pub buffers: usize,
    /// Bytes of arguments that a dispatch may carry.
    pub argument_bytes: usize,
    /// Groups along the second and third dimension of a dispatch.
    pub grid: usize,
    /// Groups that run at once, about: cores times the groups of a core.
    pub parallel_groups: usize,
    /// Whether the matrix units multiply f16 and bf16.
    pub matrix_units: bool,
    /// Whether it is a Hopper, whose matrix units read tiles that tensor maps bring.
    pub tensor_maps: bool,
    pub chip: Chip,
    /// What computes every product; where it is `None` the table of `choice` decides.
    pub product: Option<Choice>,
}

/// Threads of a group, where nothing asks for another number.
const THREADS: usize = 256;

/// A buffer of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// A node's, which is read.
    Read(u32),
    /// A node's, which is written.
    Write(u32),
    /// Scratch memory of the launch; whether it is written.
    Scratch(usize, bool),
    /// The record of indices out of range.
    Fault,
}

/// Dispatches that run a launch, one after another, and the text they come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rendered {
    pub source: String,
    pub calls: Vec<Call>,
    /// Bytes of each piece of scratch memory.
    pub scratch: Vec<usize>,
}

/// One dispatch.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The kernel's name in the source.
    pub name: String,
    pub groups: [u32; 3],
    pub threads: u32,
    /// Bytes of threadgroup memory beyond what the kernel declares.
    pub block_bytes: u32,
    pub buffers: Vec<Binding>,
    pub args: Vec<u8>,
    pub patches: Vec<Patch>,
}

/// A kernel's text before it becomes a source: one dispatch.
struct Piece {
    /// What the kernel is called: its form and first ops.
    name: String,
    /// Functions that it needs, above it.
    helpers: String,
    /// Names, C types and bindings of its buffers, in order.
    buffers: Vec<(String, String, Binding)>,
    fields: Fields,
    /// Definitions that use `Args`.
    after_args: String,
    /// Statements; they use `group`, `tid`, `args` and the buffers' names.
    body: String,
    groups: [u32; 3],
    threads: u32,
    /// See [`Call`].
    block_bytes: u32,
}

/// The shaders that a text may use; each is added where one of its names appears.
const SHADERS: [(&str, &[&str], &str); 11] = [
    ("fused_ops.metal", &["TlTeam"], include_str!("../../shaders/fused_ops.metal")),
    (
        "elementwise.metal",
        &["tl_load", "tl_store", "tl_to_", "tl_odd"],
        include_str!("../../shaders/elementwise.metal"),
    ),
    ("gather.metal", &["tl_fault"], include_str!("../../shaders/gather.metal")),
    ("random.metal", &["tl_random"], include_str!("../../shaders/random.metal")),
    (
        "reductions.metal",
        &["tl_fold", "TlSum", "TlProd", "TlMax", "TlMin", "TlArg", "TlBest"],
        include_str!("../../shaders/reductions.metal"),
    ),
    ("gradients.metal", &["tl_scatter"], include_str!("../../shaders/gradients.metal")),
    ("matmul.metal", &["tl_matmul", "tl_gemv", "tl_units"], include_str!("../../shaders/matmul.metal")),
    ("attention.metal", &["tl_attention", "TlAttention"], include_str!("../../shaders/attention.metal")),
    (
        "attention_few.metal",
        &["tl_attention_few", "tl_attention_merge"],
        include_str!("../../shaders/attention_few.metal"),
    ),
    ("attention_units.metal", &["tl_attend_"], include_str!("../../shaders/attention_units.metal")),
    ("attention_hopper.h", &["tl_hopper_"], include_str!("../../shaders/attention_hopper.h")),
];

const FUNCTORS: &str = include_str!("../../shaders/functors.metal");

/// Renders the kernels of a launch: several sources where they have not the same text.
pub(crate) fn render(kernels: &[&Kernel], machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> Vec<Rendered> {
    let mut rendered: Vec<Rendered> = Vec::new();
    let mut alike: Vec<(String, Vec<Piece>)> = Vec::new();
    for kernel in kernels {
        let (mut pieces, scratch) = pieces(kernel, machine, dtype);
        match pieces.pop() {
            Some(piece) if pieces.is_empty() && scratch.is_empty() && kernels.len() > 1 && piece.fits_table() => {
                let text = piece.helpers.clone() + &piece.definition("Args");
                match alike.iter_mut().find(|(other, _)| *other == text) {
                    Some((_, list)) => list.push(piece),
                    None => alike.push((text, vec![piece])),
                }
            }
            Some(last) => {
                pieces.push(last);
                rendered.push(separate(pieces, scratch));
            }
            None => {}
        }
    }
    for (_, mut list) in alike {
        let room = list[0].table_room(machine);
        if list.len() == 1 || room < 2 {
            rendered.extend(list.into_iter().map(|piece| separate(vec![piece], Vec::new())));
            continue;
        }
        while !list.is_empty() {
            let rest = list.split_off(room.min(list.len()));
            rendered.push(table(list, room));
            list = rest;
        }
    }
    rendered
}

/// The dispatches of one kernel, and its scratch memory.
fn pieces(kernel: &Kernel, machine: &Machine, dtype: &dyn Fn(u32) -> DType) -> (Vec<Piece>, Vec<usize>) {
    let emitter = || Emitter::new(kernel, machine, dtype);
    if let (Some(scatter), Some(output)) = (&kernel.scatter, kernel.outputs.first()) {
        return scatter::render(scatter, output, &emitter);
    }
    if let Some(attention) = &kernel.attention {
        return attention::render(attention, &kernel.outputs, &emitter);
    }
    if let Some(gemm) = &kernel.gemm {
        return (vec![product::render(emitter(), gemm)], Vec::new());
    }
    if kernel.has_reduce()
        || !kernel.outer.is_empty()
        || kernel.values.iter().any(|v| matches!(v.op, ValueOp::Finish { .. }))
    {
        return rows::render(kernel, machine, dtype);
    }
    (vec![map::render(emitter())], Vec::new())
}

/// A source of kernels that run one after another.
fn separate(pieces: Vec<Piece>, scratch: Vec<usize>) -> Rendered {
    let mut text = String::new();
    let mut calls = Vec::new();
    for (i, mut piece) in pieces.into_iter().enumerate() {
        let mut number = String::new();
        if i > 0 {
            number = i.to_string();
            piece.name += &format!("_{i}");
        }
        let known = text.clone();
        text.extend(piece.helpers.split_inclusive('\n').filter(|line| !known.contains(line)));
        text += &piece.definition(&format!("Args{number}"));
        let (args, patches) = piece.fields.bytes();
        calls.push(Call {
            name: piece.name.clone(),
            groups: piece.groups,
            threads: piece.threads,
            block_bytes: piece.block_bytes,
            buffers: piece.buffers.iter().map(|&(_, _, binding)| binding).collect(),
            args,
            patches,
        });
    }
    Rendered { source: source(&text), calls, scratch }
}

/// A source of one kernel that runs over a table of parts.
fn table(pieces: Vec<Piece>, room: usize) -> Rendered {
    let mut pieces = pieces;
    let mut text = String::new();
    let (mut args, mut patches) = (Vec::new(), Vec::new());
    let mut first = vec![0u32];
    let count = pieces.len();
    for (i, piece) in pieces.iter_mut().enumerate() {
        for (name, ty, binding) in &piece.buffers {
            piece.fields.add(name.clone(), args::Field::Pointer(ty.clone()), Fill::Address(*binding));
        }
        if i == 0 {
            text = piece.table_definition(room);
        }
        let (bytes, mut list) = piece.fields.bytes();
        list.iter_mut().for_each(|patch| patch.at += args.len());
        args.extend(bytes);
        patches.extend(list);
        first.push(first[i] + piece.groups[0]);
    }
    let piece = &pieces[0];
    args.resize(room * piece.fields.size(), 0);
    args.extend((count as u32).to_le_bytes());
    first.resize(room + 1, 0);
    args.extend(first.iter().flat_map(|f| f.to_le_bytes()));
    args.resize(args.len().next_multiple_of(8), 0);
    let call = Call {
        name: piece.name.clone() + "_table",
        groups: [first[count], 1, 1],
        threads: piece.threads,
        block_bytes: piece.block_bytes,
        buffers: Vec::new(),
        args,
        patches,
    };
    Rendered { source: source(&text), calls: vec![call], scratch: Vec::new() }
}

impl Piece {
    fn entry(&self, name: &str, mut parameters: Vec<String>, group: &str, opening: &str) -> String {
        parameters.push(format!("uint3 {group} [[threadgroup_position_in_grid]]"));
        parameters.push("uint tid [[thread_index_in_threadgroup]]".into());
        let bound = format!("[[max_total_threads_per_threadgroup({})]]\n", self.threads);
        let open = format!("kernel void {name}(");
        let joint = format!(",\n{:width$}", "", width = open.len());
        bound + &open + &parameters.join(&joint) + ") {\n" + opening + &self.body + "}\n"
    }

    /// The text behind its helpers; the struct of arguments has this name.
    fn definition(&self, args: &str) -> String {
        let fields = if self.fields.is_empty() { String::new() } else { self.fields.text(args) };
        let mut parameters: Vec<String> = Vec::new();
        for (i, (name, ty, _)) in self.buffers.iter().enumerate() {
            parameters.push(format!("{ty} {name} [[buffer({i})]]"));
        }
        if !self.fields.is_empty() {
            parameters.push(format!("constant {args}& args [[buffer({})]]", self.buffers.len()));
        }
        let after = self.after_args.replace("constant Args", &format!("constant {args}"));
        fields + &after + &self.entry(&self.name, parameters, "group", "")
    }

    /// Whether it can be a part of a table: its groups count along one dimension.
    fn fits_table(&self) -> bool {
        self.groups[1] == 1 && self.groups[2] == 1 && self.after_args.is_empty()
    }

    /// Parts that the arguments of one dispatch have room for.
    fn table_room(&self, machine: &Machine) -> usize {
        let part = self.fields.size().next_multiple_of(8) + 8 * self.buffers.len();
        (machine.argument_bytes - 24) / (part + 4)
    }

    fn table_definition(&self, room: usize) -> String {
        let mut text = self.helpers.clone() + &self.fields.text("Args");
        text +=
            &format!("struct Parts {{\n    Args part[{room}];\n    uint count;\n    uint first[{}];\n}};\n", room + 1);
        let mut opening = String::from("    uint part = 0;\n");
        opening += "    while (part + 1 < parts.count && place.x >= parts.first[part + 1]) ++part;\n";
        opening += "    const uint3 group = uint3(place.x - parts.first[part], 0, 0);\n";
        opening += "    constant Args& args = parts.part[part];\n";
        for (name, ty, _) in &self.buffers {
            opening += &format!("    {ty} {name} = args.{name};\n");
        }
        let parameters = vec!["constant Parts& parts [[buffer(0)]]".into()];
        text + &self.entry(&(self.name.clone() + "_table"), parameters, "place", &opening)
    }
}

/// The whole text: what the kernels use of the shaders, then the kernels.
fn source(kernels: &str) -> String {
    let mut text = String::from("#include <metal_stdlib>\nusing namespace metal;\n\n");
    text += FUNCTORS;
    let mut used = vec![false; SHADERS.len()];
    let mut all = kernels.to_string();
    for (i, (_, names, shader)) in SHADERS.iter().enumerate().rev() {
        used[i] = names.iter().any(|name| all.contains(name));
        if used[i] {
            all += shader;
        }
    }
    for (i, (_, _, shader)) in SHADERS.iter().enumerate() {
        if used[i] {
            text += "\n";
            text += shader;
        }
    }
    text + "\n" + MARK + kernels
}

/// The part of a source that was generated for it.
#[cfg(test)]
fn generated(source: &str) -> &str {
    source.rsplit_once(MARK).map_or(source, |(_, kernels)| kernels)
}

const MARK: &str = "// ---- generated ----\n";
