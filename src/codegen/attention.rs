//! Attention: the templates of `shaders/attention*.metal`.

use super::args::{AttentionShape, Field, Fill};
use super::attention_hopper::Hopper;
use super::emit::{Emitter, memory_type};
use super::{Binding, Machine, Piece};
use crate::graph::AttentionPart;
use crate::schedule::{Attention, Output, Strided};

/// Simdgroups of a group; `TL_ATTENTION_SIDES`.
const SIDES: u32 = 8;

/// The forward pass is one dispatch; gradients are one for queries, and one for keys and values.
pub(super) fn render<'k>(
    attention: &Attention,
    outputs: &[Output],
    emitter: &dyn Fn() -> Emitter<'k>,
) -> (Vec<Piece>, Vec<usize>) {
    let Attention { batch, heads, kv_heads, queries, keys, .. } = *attention;
    let has = |part: AttentionPart| attention.output(part).is_some();
    let (of_queries, of_keys) = (batch * heads * queries, batch * kv_heads * keys);
    let mut pieces = Vec::new();
    if let Some(few) = Few::of(attention, emitter().machine) {
        return few.render(attention, outputs, emitter);
    }
    let hopper = Hopper::of(attention, emitter().machine);
    if attention.backward.is_none() {
        let parts = [AttentionPart::Output, AttentionPart::Sums];
        pieces.push(match (&hopper, Units::of(attention, emitter().machine)) {
            (Some(hopper), _) => hopper.render(emitter(), attention, outputs, "forward", &parts),
            (None, Some(units)) => units.forward(emitter(), attention, outputs),
            (None, None) => piece(emitter(), attention, outputs, "forward", &parts, of_queries),
        });
    }
    let mut gradients = |form: &str, parts: &[AttentionPart], groups: usize| {
        if parts.iter().any(|&part| has(part)) {
            pieces.push(match (&hopper, Units::of_gradients(attention, emitter().machine)) {
                (Some(hopper), _) => hopper.render(emitter(), attention, outputs, form, parts),
                (None, Some(units)) => units.gradients(emitter(), attention, outputs, form, parts),
                (None, None) => piece(emitter(), attention, outputs, form, parts, groups),
            });
        }
    };
    gradients("queries", &[AttentionPart::Query], of_queries);
    let both = [AttentionPart::Key, AttentionPart::Value];
    match Units::of_gradients(attention, emitter().machine) {
        Some(units) if units.width > 128 => both.iter().for_each(|&part| gradients("keys", &[part], of_keys)),
        _ => gradients("keys", &both, of_keys),
    }
    (pieces, Vec::new())
}

/// A kernel by rows: see `shaders/attention.metal`.
fn piece(
    mut e: Emitter,
    attention: &Attention,
    outputs: &[Output],
    form: &str,
    parts: &[AttentionPart],
    groups: usize,
) -> Piece {
    let (operands, shape) = (operands(&mut e, attention), attended(&mut e, attention, outputs, parts));
    let each = attention.width.div_ceil(32);
    e.line(format!("threadgroup float block[TL_ATTENTION_BLOCK({each})];"));
    e.line(format!("tl_attention_{form}<{each}>({operands}, {shape}, block, attended, group, tid);"));
    e.piece(&format!("attention_{form}"), [groups as u32, 1, 1], 32 * SIDES)
}

/// Whether rows of an operand are read in pieces of 16 bytes, of narrow floats.
pub(super) fn is_straight(side: &Strided) -> bool {
    side.strides[3] == 1 && side.strides[..3].iter().chain([&side.offset]).all(|stride| stride % 8 == 0)
}

/// Sizes of a kernel for few queries: see `shaders/attention_few.metal`.
struct Few {
    /// That share a key.
    lanes: usize,
    /// Rows of a group, and groups that have different ones.
    rows: usize,
    chunks: usize,
    /// Groups that share the keys.
    splits: usize,
}

impl Few {
    /// Simdgroups of a group; `TL_FEW_SIDES`.
    const SIDES: usize = 4;
    /// Keys that are worth a group of their own.
    const KEYS: usize = 256;

    fn of(attention: &Attention, machine: &Machine) -> Option<Few> {
        let Attention { batch, heads, kv_heads, queries, keys, width, dtype, .. } = *attention;
        let fits = dtype.is_narrow() && width % 8 == 0 && [&attention.k, &attention.v].into_iter().all(is_straight);
        if attention.backward.is_some() || !fits || Units::fit(attention, machine) {
            return None;
        }
        let all = queries * (heads / kv_heads);
        let rows = all.next_power_of_two().min(4);
        let chunks = all.div_ceil(rows);
        let splits = machine.parallel_groups.div_ceil(batch * kv_heads * chunks).min(keys.div_ceil(Few::KEYS));
        Some(Few { lanes: (width / 8).next_power_of_two(), rows, chunks, splits })
    }

    fn render<'k>(
        &self,
        attention: &Attention,
        outputs: &[Output],
        emitter: &dyn Fn() -> Emitter<'k>,
    ) -> (Vec<Piece>, Vec<usize>) {
        let Few { lanes, rows, chunks, splits } = *self;
        let parts = [AttentionPart::Output, AttentionPart::Sums];
        let split = splits > 1;
        let mut e = emitter();
        let scratch = split.then(|| e.bind("parts".into(), "device float*".into(), Binding::Scratch(0, true)));
        let operands = operands(&mut e, attention);
        let shape = attended(&mut e, attention, outputs, if split { &[] } else { &parts });
        let count = e.fields.add("splits", Field::Uint, Fill::Known(splits as i64));
        e.line(format!("threadgroup float block[TL_FEW_BLOCK({lanes})];"));
        e.line(format!(
            "tl_attention_few<{lanes}, {rows}, {split}>({operands}, {shape}, {count}, block, attended, group, tid);"
        ));
        let groups = attention.batch * attention.kv_heads * chunks * splits;
        let threads = 32 * Few::SIDES as u32;
        let few = e.piece("attention_few", [groups as u32, 1, 1], threads);
        let Some(scratch) = scratch else { return (vec![few], Vec::new()) };
        let mut e = emitter();
        let from = e.bind(scratch, "device const float*".into(), Binding::Scratch(0, false));
        let all = attention.batch * attention.heads * attention.queries;
        let shape = attended(&mut e, attention, outputs, &parts);
        let count = e.fields.add("splits", Field::Uint, Fill::Known(splits as i64));
        let rows = e.fields.add("rows", Field::Uint, Fill::Known(all as i64));
        e.line(format!("tl_attention_merge({from}, {shape}, {count}, {rows}, attended, group, tid);"));
        let merge = e.piece("attention_merge", [all.div_ceil(Few::SIDES) as u32, 1, 1], threads);
        (vec![few, merge], vec![all * splits * (attention.width + 2) * size_of::<f32>()])
    }
}

/// Sizes of a kernel by matrix units: see `shaders/attention_units.metal`.
struct Units {
    rows: usize,
    sides: usize,
    keys: usize,
    width: usize,
    /// Whether the dispatch brings the memory, and keys and values have a tile each.
    apart: bool,
}

impl Units {
    /// Queries from which on a block of them is worth while.
    const QUERIES: usize = 16;

    /// For operands that products read in pieces of 16 bytes.
    fn of(attention: &Attention, machine: &Machine) -> Option<Units> {
        if !Units::fit(attention, machine) {
            return None;
        }
        let width = attention.width.next_multiple_of(16);
        let large = width > 128;
        Some(match machine.dispatch_bytes {
            0 => Units { rows: 16, sides: 2, keys: if large { 16 } else { 32 }, width, apart: false },
            _ if large => Units { rows: 16, sides: 4, keys: 32, width, apart: true },
            _ => Units { rows: 32, sides: 4, keys: 64, width, apart: true },
        })
    }

    /// For gradients: there are two sums of the head's width, or four tiles, so wide heads take memory that the dispatch
    /// brings, and keys and values a dispatch each. `keys` are the rows of the other side.
    fn of_gradients(attention: &Attention, machine: &Machine) -> Option<Units> {
        let wide = attention.width > 128;
        if !Units::fit(attention, machine) || (wide && machine.dispatch_bytes == 0) {
            return None;
        }
        let width = attention.width.next_multiple_of(16);
        Some(match machine.dispatch_bytes {
            _ if wide => Units { rows: 16, sides: 4, keys: 32, width, apart: true },
            0 => Units { rows: 16, sides: if width > 64 { 1 } else { 2 }, keys: 32, width, apart: false },
            _ => Units { rows: 16, sides: 4, keys: 64, width, apart: true },
        })
    }

    fn fit(attention: &Attention, machine: &Machine) -> bool {
        let gradient = attention.backward.as_ref().map(|backward| &backward.gradient);
        let fits = [&attention.q, &attention.k, &attention.v].into_iter().chain(gradient).all(is_straight);
        machine.matrix_units && attention.dtype.is_narrow() && fits && attention.queries >= Units::QUERIES
    }

    /// Bytes that a dispatch brings: tiles of queries, keys and values. Where it does, scores are in registers.
    fn block_bytes(&self) -> usize {
        if self.apart { (self.rows * self.sides + 2 * self.keys) * (self.width + 8) * 2 } else { 0 }
    }

    fn forward(&self, mut e: Emitter, attention: &Attention, outputs: &[Output]) -> Piece {
        let operands = operands(&mut e, attention);
        let shape = attended(&mut e, attention, outputs, &[AttentionPart::Output, AttentionPart::Sums]);
        let Units { rows, sides, keys, width, apart } = *self;
        match apart {
            true => e.line("TL_DISPATCH_BLOCK(block);"),
            false => {
                e.line(format!("threadgroup float block[TL_ATTEND_BLOCK({rows}, {sides}, {keys}, {width}, false)];"))
            }
        }
        e.line(format!(
            "tl_attend_forward<{rows}, {sides}, {keys}, {width}, {apart}>({operands}, {shape}, block, attended, group, \
             tid);"
        ));
        let groups = attention.batch * attention.heads * attention.queries.div_ceil(rows * sides);
        let mut piece = e.piece("attention_units", [groups as u32, 1, 1], 32 * sides as u32);
        piece.block_bytes = self.block_bytes() as u32;
        piece
    }
}

impl Units {
    fn gradients(
        &self,
        mut e: Emitter,
        attention: &Attention,
        outputs: &[Output],
        form: &str,
        parts: &[AttentionPart],
    ) -> Piece {
        let (operands, shape) = (operands(&mut e, attention), attended(&mut e, attention, outputs, parts));
        let gradient = attention.backward.as_ref().map_or_else(String::new, |backward| {
            let at = e.fields.add("gradient_at", Field::Long, Fill::Known(backward.gradient.offset as i64));
            format!("{} + {at}", e.buffer(backward.gradient.node, false))
        });
        let Units { rows, sides, keys, width, apart } = *self;
        let queries = if form == "keys" { keys } else { rows * sides };
        match apart {
            true => e.line("TL_DISPATCH_BLOCK(block);"),
            false => e.line(format!(
                "threadgroup float block[TL_SLOPES_BLOCK({rows}, {sides}, {keys}, {width}, {queries})];"
            )),
        }
        let of = match form {
            "keys" => format!(", {}, {}", parts.contains(&AttentionPart::Key), parts.contains(&AttentionPart::Value)),
            _ => String::new(),
        };
        e.line(format!(
            "tl_attend_{form}<{rows}, {sides}, {keys}, {width}{of}>({operands}, {gradient}, {shape}, block, attended, \
             group, tid);"
        ));
        let of_keys = attention.kv_heads * attention.keys.div_ceil(rows * sides);
        let of_queries = attention.heads * attention.queries.div_ceil(rows * sides);
        let groups = attention.batch * if form == "keys" { of_keys } else { of_queries };
        let mut piece = e.piece(&format!("attention_units_{form}"), [groups as u32, 1, 1], 32 * sides as u32);
        let bytes = (rows * sides + keys) * (width + 8) * 4 + 8 * queries;
        piece.block_bytes = if apart { bytes as u32 } else { 0 };
        piece
    }
}

/// The text of the operands' addresses.
fn operands(e: &mut Emitter, attention: &Attention) -> String {
    let operands = [("q", &attention.q), ("k", &attention.k), ("v", &attention.v)].map(|(name, side)| {
        let at = e.fields.add(format!("{name}_at"), Field::Long, Fill::Known(side.offset as i64));
        format!("{} + {at}", e.buffer(side.node, false))
    });
    operands.join(", ")
}

/// Declares `attended`; the text of the shape.
pub(super) fn attended(e: &mut Emitter, attention: &Attention, outputs: &[Output], parts: &[AttentionPart]) -> String {
    let strides = |side: &Strided| [0, 1, 2, 3].map(|i| side.strides[i] as i64);
    let gradient = attention.backward.as_ref().map_or([0; 4], |backward| strides(&backward.gradient));
    let strides = [strides(&attention.q), strides(&attention.k), strides(&attention.v), gradient];
    let Attention { heads, kv_heads, queries, keys, width, .. } = *attention;
    let sizes = [heads, heads / kv_heads, queries, keys, width].map(|size| size as u32);
    let flags = [attention.causal, attention.heads_first];
    let scale = attention.scale;
    let fill = Fill::Attention(Box::new(AttentionShape { strides, sizes, scale, flags }));
    let shape = e.fields.add("attention", Field::Attention, fill);
    let functions = functions(e, attention, outputs, parts);
    // Some of them may share a source.
    let name = match parts {
        [] => "AttendedParts",
        [AttentionPart::Key, ..] => "AttendedKeys",
        [AttentionPart::Value] => "AttendedValues",
        _ => "Attended",
    };
    let mut text = format!("struct {name} {{\n");
    for (name, ty, _) in &e.buffers {
        text += &format!("    {ty} {name};\n");
    }
    text += "    constant Args* arguments;\n";
    text += &format!("    enum : uint {{ MASKED = {} }};\n", u32::from(attention.mask.is_some()));
    for (head, statement) in functions {
        let args = if statement.contains("args.") { "constant Args& args = *arguments; " } else { "" };
        text += &format!("    {head} const {{ {args}{statement} }}\n");
    }
    e.after_args = text + "};\n";
    let names: Vec<String> = e.buffers.iter().map(|(name, ..)| name.clone()).collect();
    e.line(format!("const {name} attended = {{{}, &args}};", names.join(", ")));
    shape
}

/// The heads and statements of `Attended`: what there is not reads as zero, and is not written.
fn functions(
    e: &mut Emitter,
    attention: &Attention,
    outputs: &[Output],
    parts: &[AttentionPart],
) -> Vec<(String, String)> {
    let mut read = |name: &str, names: [&str; 4], side: Option<&Strided>| -> String {
        let Some(side) = side else { return "return 0.0f;".into() };
        let at = e.fields.add(format!("{name}_at"), Field::Long, Fill::Known(side.offset as i64));
        let from = e.buffer(side.node, false);
        let steps = side.strides.iter().zip(names).enumerate().map(|(i, (&stride, index))| {
            let stride = e.fields.add(format!("{name}_{i}"), Field::Long, Fill::Known(stride as i64));
            format!(" + long({index}) * {stride}")
        });
        let steps: String = steps.collect();
        format!("return float({from}[{at}{steps}]);")
    };
    let backward = attention.backward.as_ref();
    let mut list = vec![(
        "float mask(uint batch, uint head, uint query, uint key)".to_string(),
        read("mask", ["batch", "head", "query", "key"], attention.mask.as_ref()),
    )];
    let (position, number) = (["batch", "query", "head", "w"], ["batch", "query", "head", ""]);
    if let Some(backward) = backward {
        let gradient = read("gradient", position, Some(&backward.gradient));
        list.push(("float gradient(uint batch, uint head, uint query, uint w)".into(), gradient));
        for (name, side) in [("sum", &backward.sums), ("product", &backward.products)] {
            list.push((format!("float {name}(uint batch, uint head, uint query)"), read(name, number, Some(side))));
        }
    }
    if parts.is_empty() {
        // What becomes of these stands in scratch memory until it is merged.
        list.push(("void part(ulong at, float x)".into(), "parts[at] = x;".into()));
        list.extend(["output", "sums"].map(|name| (format!("void {name}(ulong at, float x)"), String::new())));
    } else if parts.contains(&AttentionPart::Output) {
        list.push(("void part(ulong at, float x)".into(), String::new()));
    }
    // One of two has a name for the other.
    match parts {
        [AttentionPart::Key] => list.push(("void value(ulong at, float x)".into(), String::new())),
        [AttentionPart::Value] => list.push(("void key(ulong at, float x)".into(), String::new())),
        _ => {}
    }
    for &part in parts {
        let name = match part {
            AttentionPart::Output => "output",
            AttentionPart::Sums => "sums",
            AttentionPart::Query => "query",
            AttentionPart::Key => "key",
            AttentionPart::Value => "value",
        };
        let statement = attention.output(part).map_or_else(String::new, |at| {
            let output = &outputs[at];
            format!("{}[at] = {}(x);", e.buffer(output.node, true), memory_type(output.dtype))
        });
        if e.machine.tensor_maps && part != AttentionPart::Sums {
            let eights = attention.output(part).map_or_else(String::new, |at| {
                format!("*(device uint4*)({} + at) = eight;", e.buffer(outputs[at].node, true))
            });
            list.push((format!("void {name}(ulong at, uint4 eight)"), eights));
        }
        list.push((format!("void {name}(ulong at, float x)"), statement));
    }
    list
}
