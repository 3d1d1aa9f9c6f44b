//! Attention: the templates of `shaders/attention.metal`.

use super::Piece;
use super::args::{Field, Fill};
use super::emit::{Emitter, memory_type};
use crate::graph::AttentionPart;
use crate::schedule::{Attention, Output, Strided};

/// Simdgroups of a group; `TL_ATTENTION_SIDES`.
const SIDES: u32 = 8;

/// The forward pass is one dispatch; gradients are one for queries, and one for keys and values.
pub(super) fn render<'k>(attention: &Attention, outputs: &[Output], emitter: &dyn Fn() -> Emitter<'k>) -> Vec<Piece> {
    let Attention { batch, heads, kv_heads, queries, keys, .. } = *attention;
    let has = |part: AttentionPart| attention.output(part).is_some();
    let (of_queries, of_keys) = (batch * heads * queries, batch * kv_heads * keys);
    let mut pieces = Vec::new();
    if attention.backward.is_none() {
        let parts = [AttentionPart::Output, AttentionPart::Sums];
        pieces.push(piece(emitter(), attention, outputs, "forward", &parts, of_queries));
    }
    if has(AttentionPart::Query) {
        pieces.push(piece(emitter(), attention, outputs, "queries", &[AttentionPart::Query], of_queries));
    }
    let parts = [AttentionPart::Key, AttentionPart::Value];
    if parts.into_iter().any(has) {
        pieces.push(piece(emitter(), attention, outputs, "keys", &parts, of_keys));
    }
    pieces
}

fn piece(
    mut e: Emitter,
    attention: &Attention,
    outputs: &[Output],
    form: &str,
    parts: &[AttentionPart],
    groups: usize,
) -> Piece {
    let operands = [("q", &attention.q), ("k", &attention.k), ("v", &attention.v)].map(|(name, side)| {
        let at = e.fields.add(format!("{name}_at"), Field::Long, Fill::Known(side.offset as i64));
        format!("{} + {at}", e.buffer(side.node, false))
    });
    let strides = [&attention.q, &attention.k, &attention.v].map(|side| [0, 1, 2, 3].map(|i| side.strides[i] as i64));
    let Attention { heads, kv_heads, queries, keys, width, .. } = *attention;
    let sizes = [heads, heads / kv_heads, queries, keys, width].map(|size| size as u32);
    let shape = e.fields.add(
        "attention",
        Field::Attention,
        Fill::Attention(Box::new((strides, sizes, attention.scale, [attention.causal, attention.heads_first]))),
    );
    let functions = functions(&mut e, attention, outputs, parts);
    let mut text = String::from("struct Attended {\n");
    for (name, ty, _) in &e.buffers {
        text += &format!("    {ty} {name};\n");
    }
    text += "    constant Args* arguments;\n";
    for (head, statement) in functions {
        let args = if statement.contains("args.") { "constant Args& args = *arguments; " } else { "" };
        text += &format!("    {head} const {{ {args}{statement} }}\n");
    }
    e.after_args = text + "};\n";
    let each = width.div_ceil(32);
    e.line(format!("threadgroup float block[TL_ATTENTION_BLOCK({each})];"));
    let names: Vec<String> = e.buffers.iter().map(|(name, ..)| name.clone()).collect();
    e.line(format!("const Attended attended = {{{}, &args}};", names.join(", ")));
    e.line(format!("tl_attention_{form}<{each}>({}, {shape}, block, attended, group, tid);", operands.join(", ")));
    e.piece(&format!("attention_{form}"), [groups as u32, 1, 1], 32 * SIDES)
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
        list.push((format!("void {name}(ulong at, float x)"), statement));
    }
    list
}
