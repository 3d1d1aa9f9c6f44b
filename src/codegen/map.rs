//! Maps: each thread computes a packet of elements that lie side by side.

use super::Piece;
use super::emit::{Chunk, Emitter};
use crate::schedule::{Kernel, Level, ValueOp};

/// Threads of a group.
const THREADS: usize = 256;

pub(super) fn render(mut e: Emitter) -> Piece {
    let kernel = e.kernel;
    let vector = packet(kernel, &|node| e.node_dtype(node).size());
    let index = e.index;
    let extents: Vec<usize> = if kernel.inner.is_empty() { vec![1] } else { kernel.inner.to_vec() };
    let last = extents.len() - 1;
    let packets_a_row = extents[last].div_ceil(vector);
    let packets = extents[..last].iter().product::<usize>() * packets_a_row;

    e.line(format!("const {index} packet = {index}(group.x) * {THREADS} + {index}(tid);"));
    let row_end = e.known("n", extents[last] as i64);
    let mut inner;
    if last == 0 {
        let start = if vector == 1 { "packet".to_string() } else { format!("packet * {vector}") };
        e.line(format!("const {index} x0 = {start};"));
        e.line(format!("if (x0 >= {row_end}) return;"));
        inner = vec!["x0".to_string()];
    } else {
        let mut counts = extents.clone();
        counts[last] = packets_a_row;
        let all = e.known("packets", packets as i64);
        e.line(format!("if (packet >= {all}) return;"));
        inner = e.coordinates("packet", "x", &counts);
        if vector > 1 {
            e.line(format!("const {index} first = x{last} * {vector};"));
            inner[last] = "first".into();
        }
    }
    let first = &inner[last];
    let count = if vector > 1 {
        e.line(format!("const uint count = min({index}({vector}), {row_end} - {first});"));
        "count".to_string()
    } else {
        String::new()
    };
    if kernel.inner.is_empty() {
        inner.clear();
    }
    let values = 0..kernel.values.len() as u32;
    let (once, elements): (Vec<u32>, Vec<u32>) =
        values.partition(|&v| kernel.values[v as usize].level == Level::Uniform && vector > 1);
    once.iter().for_each(|&v| e.scalar(v, &inner, "true"));
    let chunk = Chunk { vector, count, inner, kept: String::new() };
    e.chunk(&chunk, &elements, &[], &[], &kernel.outputs);
    let groups = packets.div_ceil(THREADS) as u32;
    e.piece("map", [groups, 1, 1], THREADS as u32)
}

/// Elements of a packet: 16 bytes of the narrowest type that is read or written straight on, as far as
/// rows are that long.
pub(super) fn packet(kernel: &Kernel, size: &dyn Fn(u32) -> usize) -> usize {
    let straight = |inner: &[isize]| inner.last() == Some(&1);
    let loads = kernel.values.iter().filter_map(|v| match v.op {
        ValueOp::Load { node, reach } if straight(&reach.inner) => Some(size(node)),
        _ => None,
    });
    let stores = kernel.outputs.iter().filter(|o| straight(&o.reach.inner)).map(|o| o.dtype.size());
    let vector = match loads.chain(stores).min() {
        Some(1 | 2) => 8,
        Some(4) => 4,
        Some(_) => 2,
        None => 1,
    };
    let row = kernel.inner.last().copied().unwrap_or(1);
    if kernel.values.len() > 64 { 1 } else { vector.min(row.next_power_of_two()) }
}
