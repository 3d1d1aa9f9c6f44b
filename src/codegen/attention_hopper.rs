//! Attention on a Hopper: the templates of `shaders/attention_hopper.h`.

use super::args::{Field, Fill, TensorMap};
use super::attention::{attended, is_straight};
use super::emit::{Emitter, memory_type};
use super::{Binding, Machine, Piece};
use crate::graph::AttentionPart;
use crate::schedule::{Attention, Output, Strided};

/// Queries from which on a block of them is worth while.
const QUERIES: usize = 16;

/// For heads of half or bfloat up to this wide, which are tiles of 64 or 128 columns.
pub(super) struct Hopper {
    width: usize,
}

/// Sizes of a kernel: see the table in `shaders/attention_hopper.h`.
struct Sizes {
    /// Warpgroups, 64 rows each.
    sides: usize,
    /// Rows of a tile of the other side.
    tile: usize,
    /// Tiles on the way: of the block's own, of the other side.
    stages: [usize; 2],
}

impl Hopper {
    /// For operands that tensor maps describe, without a mask.
    pub fn of(attention: &Attention, machine: &Machine) -> Option<Hopper> {
        let Attention { width, queries, dtype, .. } = *attention;
        let fits = machine.tensor_maps && dtype.is_narrow() && width <= 128 && width % 8 == 0;
        let fits = fits && attention.mask.is_none() && queries >= QUERIES;
        let mapped = |(_, side, sizes): (_, &Strided, _)| is_straight(side) && has_map(side, sizes);
        (fits && operands(attention).all(mapped)).then_some(Hopper { width: if width <= 64 { 64 } else { 128 } })
    }

    fn sizes(&self, form: &str) -> Sizes {
        let (sides, tile, stages) = match (form, self.width) {
            ("forward", 64) => (3, 128, [2, 2]),
            ("forward", _) => (2, 128, [1, 2]),
            ("queries", 64) => (3, 64, [2, 3]),
            (_, 64) => (2, 64, [2, 4]),
            _ => (2, 64, [1, 2]),
        };
        Sizes { sides, tile, stages }
    }

    /// The forward pass, or the gradients of queries, or of keys and values.
    pub fn render(
        &self,
        mut e: Emitter,
        attention: &Attention,
        outputs: &[Output],
        form: &str,
        parts: &[AttentionPart],
    ) -> Piece {
        let Attention { batch, heads, kv_heads, queries, keys, width, dtype, .. } = *attention;
        let mut maps = Vec::new();
        for (name, side, [batches, positions, heads]) in operands(attention) {
            let bytes = |i: usize, size: usize| if size > 1 { side.strides[i] as u64 * 2 } else { 16 };
            let map = TensorMap {
                binding: Binding::Read(side.node),
                dtype,
                offset: side.offset as u64 * 2,
                sizes: [width, heads, positions, batches].map(|size| size as u64),
                strides: [bytes(2, heads), bytes(1, positions), bytes(0, batches)],
            };
            maps.push(e.fields.add(format!("{name}_map"), Field::TensorMap, Fill::TensorMap(Box::new(map))));
        }
        let shape = attended(&mut e, attention, outputs, parts);
        let batches = e.fields.add("batches", Field::Uint, Fill::Known(batch as i64));
        let Sizes { sides, tile, stages: [own, other] } = self.sizes(form);
        e.line("TL_HOPPER_BLOCK(block);");
        e.line(format!(
            "tl_hopper_{form}<{}, {sides}, {tile}, {own}, {other}, {}>({}, {shape}, {batches}, &tl_tickets, block, \
             attended);",
            self.width,
            memory_type(dtype),
            maps.join(", ")
        ));
        let (rows, heads) = if form == "keys" { (keys, kv_heads) } else { (queries, heads) };
        let items = batch * heads * rows.div_ceil(64 * sides);
        // One group a core, which takes most of its memory.
        let groups = items.min(e.machine.parallel_groups / 8);
        let mut piece = e.piece(&format!("attention_hopper_{form}"), [groups as u32, 1, 1], 128 * (sides as u32 + 1));
        piece.block_bytes = self.block_bytes(form) as u32;
        piece
    }

    /// As `TL_HOPPER_FORWARD`, `TL_HOPPER_QUERIES` and `TL_HOPPER_KEYS` have it.
    fn block_bytes(&self, form: &str) -> usize {
        let Sizes { sides, tile, stages: [own, other] } = self.sizes(form);
        let (row, block, flags) = (2 * self.width, 64 * sides, 256);
        match form {
            "forward" => (own * block + other * 2 * tile) * row + flags,
            "queries" => (own * 2 * block + (other * 2 + 1) * tile) * row + flags,
            _ => (own * 2 * block + other * 2 * tile) * row + other * 8 * tile + flags,
        }
    }
}

/// Names and sizes (batches, positions, heads) of the operands that tiles are fetched from.
fn operands(attention: &Attention) -> impl Iterator<Item = (&'static str, &Strided, [usize; 3])> {
    let Attention { batch, heads, kv_heads, queries, keys, .. } = *attention;
    let (of_queries, of_keys) = ([batch, queries, heads], [batch, keys, kv_heads]);
    let gradient = attention.backward.as_ref().map(|backward| ("gradient", &backward.gradient, of_queries));
    let sides = [("q", &attention.q, of_queries), ("k", &attention.k, of_keys), ("v", &attention.v, of_keys)];
    sides.into_iter().chain(gradient)
}

/// Whether a tensor map can describe it: it goes forwards.
fn has_map(side: &Strided, sizes: [usize; 3]) -> bool {
    side.offset >= 0 && side.strides.iter().zip(sizes).all(|(&stride, size)| size == 1 || stride > 0)
}
