//! Maps: each thread computes a packet of elements that lie side by side. Memory that is walked across (a
//! transposed operand) comes by way of a tile in threadgroup memory, read along its own neighbours.

use super::emit::{Chunk, Emitter, memory_type};
use super::{Machine, Piece, THREADS};
use crate::schedule::{Kernel, Level, ValueOp};

/// Side of a tile.
const TILE: usize = 64;
/// Elements from one row of a tile to the next: an odd number of words of four bytes, so that columns spread over
/// the banks.
const PITCH: usize = 66;

pub(super) fn render(e: Emitter) -> Piece {
    match across(e.kernel, e.machine, &|node| e.node_dtype(node).size()) {
        Some((d, loads)) => tiles(e, d, &loads),
        None => packets(e),
    }
}

/// The loop along which loads are contiguous that the last loop walks across, and these loads.
fn across(kernel: &Kernel, machine: &Machine, size: &dyn Fn(u32) -> usize) -> Option<(usize, Vec<u32>)> {
    let last = kernel.inner.len().checked_sub(1).filter(|&last| last > 0)?;
    let mut found: Option<(usize, Vec<u32>)> = None;
    let mut bytes = 0;
    for (v, value) in kernel.values.iter().enumerate() {
        let ValueOp::Load { node, reach } = value.op else { continue };
        if matches!(reach.inner[last], 0 | 1) {
            continue;
        }
        let Some(d) = reach.inner[..last].iter().position(|&s| s == 1) else { continue };
        match &mut found {
            None => found = Some((d, vec![v as u32])),
            Some((other, loads)) if *other == d => loads.push(v as u32),
            _ => continue,
        }
        bytes += PITCH * TILE * size(node);
    }
    let (d, loads) = found?;
    let straight = kernel.outputs.iter().all(|o| o.reach.inner[last] == 1);
    let rest: usize = (0..last).filter(|&i| i != d).map(|i| kernel.inner[i]).product();
    let large = kernel.inner[d] >= TILE / 2 && kernel.inner[last] >= TILE / 2;
    let fits =
        kernel.inner[d].div_ceil(TILE) <= machine.grid && rest <= machine.grid && bytes <= machine.threadgroup_bytes;
    (straight && large && fits && kernel.values.len() <= 64).then_some((d, loads))
}

fn tiles(mut e: Emitter, d: usize, loads: &[u32]) -> Piece {
    let kernel = e.kernel;
    let index = e.index;
    let last = kernel.inner.len() - 1;
    let vector = packet(kernel, &|node| e.node_dtype(node).size()).max(2);
    let (rows, columns) = (e.known("rows", kernel.inner[d] as i64), e.known("n", kernel.inner[last] as i64));
    let others: Vec<usize> = (0..last).filter(|&i| i != d).collect();
    let extents: Vec<usize> = others.iter().map(|&i| kernel.inner[i]).collect();
    let outside =
        if others.is_empty() { Vec::new() } else { e.coordinates(&format!("{index}(group.z)"), "z", &extents) };
    let coordinates = |row: &str, column: &str| -> Vec<String> {
        let mut names = vec![String::new(); last + 1];
        others.iter().zip(&outside).for_each(|(&i, name)| names[i].clone_from(name));
        (names[d], names[last]) = (row.into(), column.into());
        names
    };
    e.line(format!("const {index} row0 = {index}(group.y) * {TILE}, column0 = {index}(group.x) * {TILE};"));
    // Neighbouring threads read along the operands' neighbours, ...
    e.line(format!("for (uint k = tid; k < {TILE} * {TILE}; k += {THREADS}) {{"));
    e.line(format!("const uint i = k % {TILE}, j = k / {TILE};"));
    e.line(format!("const {index} row = row0 + {index}(i), column = column0 + {index}(j);"));
    e.line(format!("if (row < {rows} && column < {columns}) {{"));
    for &v in loads {
        let ValueOp::Load { node, reach } = kernel.values[v as usize].op else { continue };
        let (ty, tile) = (memory_type(e.node_dtype(node)), format!("tile{v}"));
        e.threadgroup(ty, &tile, TILE * PITCH);
        let buffer = e.buffer(node, false);
        let at = e.position(&format!("v{v}"), &reach, &coordinates("row", "column"));
        e.line(format!("{tile}[i * {PITCH} + j] = {buffer}[{at}];"));
        e.staged.push((v, format!("({tile} + i * {PITCH} + j)")));
    }
    e.line("}");
    e.line("}");
    e.line("threadgroup_barrier(mem_flags::mem_threadgroup);");
    // ... and write along the result's.
    e.line(format!("for (uint k = tid; k < {TILE} * {TILE} / {vector}; k += {THREADS}) {{"));
    e.line(format!("const uint i = k / ({TILE} / {vector}), j = k % ({TILE} / {vector}) * {vector};"));
    e.line(format!("const {index} row = row0 + {index}(i), column = column0 + {index}(j);"));
    e.line(format!("if (row >= {rows} || column >= {columns}) continue;"));
    e.line(format!("const uint count = min({index}({vector}), {columns} - column);"));
    let inner = coordinates("row", "column");
    let values: Vec<u32> = (0..kernel.values.len() as u32).collect();
    let chunk = Chunk { vector, count: "count".into(), inner, ..Chunk::default() };
    e.chunk(&chunk, &values, &[], &[], &kernel.outputs);
    e.line("}");
    let groups = [kernel.inner[last].div_ceil(TILE), kernel.inner[d].div_ceil(TILE), extents.iter().product()];
    e.piece("tiles", groups.map(|g| g as u32), THREADS as u32)
}

fn packets(mut e: Emitter) -> Piece {
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
        // Without a condition all loads are on their way at once.
        if extents[last].is_multiple_of(vector) {
            e.line(format!("const uint count = {vector};"));
        } else {
            e.line(format!("const uint count = min({index}({vector}), {row_end} - {first});"));
        }
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
    let chunk = Chunk { vector, count, inner, ..Chunk::default() };
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
