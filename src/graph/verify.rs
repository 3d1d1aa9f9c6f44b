//! The graph's invariants as code; `mod.rs` lists them as prose.

use super::{Attention, AttentionPart, Entry, Op, Snapshot};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Sort;
use crate::shape::Shape;

/// Checks every invariant of the graph.
///
/// # Errors
/// [`Error::Internal`] naming the first node that breaks one.
pub(crate) fn verify(graph: &Snapshot) -> Result<()> {
    for (i, entry) in graph.entries.iter().enumerate() {
        if let Err(reason) = check(graph, i, entry) {
            let (node, site) = (&entry.node, entry.node.site);
            return Err(Error::internal(
                "graph::verify",
                format!("node {i} ({} {} {}, made at {site}): {reason}", node.op.name(), node.dtype, node.shape),
            ));
        }
    }
    Ok(())
}

fn check(graph: &Snapshot, i: usize, entry: &Entry) -> Result<(), String> {
    let node = &entry.node;
    if entry.inputs.iter().any(|&input| input as usize >= i) {
        return Err("an input does not stand before it".into());
    }
    if entry.realized {
        return Ok(());
    }
    if node.shape.numel() == 0 {
        return Err("it has no elements, yet is pending".into());
    }
    let inputs: Vec<(&Shape, DType)> = entry
        .inputs
        .iter()
        .map(|&at| (&graph.entries[at as usize].node.shape, graph.entries[at as usize].node.dtype))
        .collect();
    let arity = arity(&node.op);
    if arity.is_some_and(|n| n != inputs.len()) {
        return Err(format!("{} inputs, {} wanted", inputs.len(), arity.unwrap_or(0)));
    }
    if entry.inputs.iter().any(|&at| graph.entries[at as usize].node.device != node.device) {
        return Err("an input lives on another device".into());
    }
    check_op(&node.op, &node.shape, node.dtype, &inputs)
}

fn arity(op: &Op) -> Option<usize> {
    match op {
        Op::Leaf | Op::Scalar(_) | Op::Iota | Op::Random { .. } => Some(0),
        Op::Elementwise(op) => Some(op.arity()),
        Op::Cast | Op::View(_) | Op::Copy | Op::Reduce { .. } | Op::Bound { .. } | Op::Pad { .. } => Some(1),
        Op::Matmul | Op::Gather { .. } | Op::Scatter { .. } | Op::Update { .. } => Some(2),
        Op::Cat { .. } | Op::Attention(_) => None,
    }
}

fn check_op(op: &Op, shape: &Shape, dtype: DType, inputs: &[(&Shape, DType)]) -> Result<(), String> {
    match op {
        Op::Elementwise(op) => {
            for (at, (input, input_dtype)) in inputs.iter().enumerate() {
                if Shape::broadcast("verify", input, shape).as_ref() != Ok(shape) {
                    return Err(format!("operand {at} of shape {input} does not broadcast to it"));
                }
                let wanted = match op.sort() {
                    Sort::Float | Sort::Num => dtype,
                    Sort::Cmp => inputs[0].1,
                    Sort::Test => *input_dtype,
                    Sort::Logic => DType::Bool,
                    Sort::Select if at == 0 => DType::Bool,
                    Sort::Select => dtype,
                };
                if *input_dtype != wanted {
                    return Err(format!("operand {at} is {input_dtype}, {wanted} wanted"));
                }
            }
            Ok(())
        }
        Op::View(view) => {
            let (mut least, mut greatest) = (view.offset, view.offset);
            if view.strides.len() != shape.rank() {
                return Err("as many strides as dimensions wanted".into());
            }
            for (&stride, &dim) in view.strides.iter().zip(shape.dims()) {
                let reach = stride * (dim as isize - 1);
                *if reach < 0 { &mut least } else { &mut greatest } += reach;
            }
            let inside = least >= 0 && greatest < inputs[0].0.numel() as isize;
            if inside { Ok(()) } else { Err(format!("it reads {least}..={greatest} of {}", inputs[0].0)) }
        }
        Op::Copy | Op::Bound { .. } if inputs[0] != (shape, dtype) => Err("it changes neither shape nor dtype".into()),
        Op::Reduce { axes, .. } => {
            let axes = super::Node::axes(*axes);
            let input = inputs[0].0;
            if axes.iter().any(|&axis| axis >= input.rank()) {
                return Err(format!("axes {axes:?} of {input}"));
            }
            let fits = [true, false].iter().any(|&keep| input.reduced(&axes, keep) == *shape);
            if fits { Ok(()) } else { Err(format!("{input} over axes {axes:?}")) }
        }
        Op::Matmul => {
            let (a, b) = (inputs[0].0.dims(), inputs[1].0.dims());
            let fits = a.len() >= 2 && b.len() >= 2 && a[a.len() - 1] == b[b.len() - 2];
            if fits { Ok(()) } else { Err(format!("{a:?} x {b:?}")) }
        }
        Op::Gather { axis, .. } if inputs[0].0.rank() != shape.rank() || *axis as usize >= shape.rank() => {
            Err(format!("axis {axis} of {}", inputs[0].0))
        }
        Op::Pad { before } => {
            let input = inputs[0].0.dims();
            let fits = |i: usize| before[i] + input[i] <= shape.dims()[i];
            let all = before.len() == shape.rank() && input.len() == shape.rank() && (0..input.len()).all(fits);
            if all { Ok(()) } else { Err(format!("{input:?} from {before:?} on")) }
        }
        Op::Scatter { axis, .. } => {
            let (source, index, axis) = (inputs[0].0.dims(), inputs[1].0.dims(), *axis as usize);
            let fits =
                |i: usize| (i == axis || source[i] <= shape.dims()[i]) && (index[i] == source[i] || index[i] == 1);
            let ranks = source.len() == shape.rank() && index.len() == shape.rank() && axis < shape.rank();
            let all = ranks && (0..source.len()).all(fits);
            if all { Ok(()) } else { Err(format!("{source:?} by {index:?} along axis {axis}")) }
        }
        Op::Update { axis, start } => {
            let (old, new, axis) = (inputs[0], inputs[1], *axis as usize);
            let mut dims = shape.dims().to_vec();
            let rows =
                dims.get_mut(axis).map(|rows| std::mem::replace(rows, new.0.dims().get(axis).copied().unwrap_or(0)));
            let fits = rows.is_some_and(|rows| start + dims[axis] <= rows) && dims == new.0.dims();
            let all = fits && old == (shape, dtype) && new.1 == dtype;
            if all { Ok(()) } else { Err(format!("{} from row {start} on in {}", new.0, old.0)) }
        }
        Op::Attention(attention) => check_attention(attention, shape, dtype, inputs),
        _ => Ok(()),
    }
}

fn check_attention(
    attention: &Attention,
    shape: &Shape,
    dtype: DType,
    inputs: &[(&Shape, DType)],
) -> Result<(), String> {
    let more = match attention.part {
        AttentionPart::Output => inputs.len().saturating_sub(attention.operands()).min(1),
        AttentionPart::Sums => 0,
        _ => 3,
    };
    if inputs.len() != attention.operands() + more {
        return Err(format!("{} inputs of attention", inputs.len()));
    }
    let dims: Vec<&[usize]> = inputs.iter().map(|(shape, _)| shape.dims()).collect();
    let (&[batch, queries, heads, width], &[_, keys, kv_heads, _]) = (dims[0], dims[1]) else {
        return Err("q and k of four dimensions wanted".into());
    };
    let grouped = kv_heads > 0 && heads % kv_heads == 0;
    if dims[1] != [batch, keys, kv_heads, width] || dims[1] != dims[2] || !grouped {
        return Err(format!("attention of {:?}, {:?}, {:?}", dims[0], dims[1], dims[2]));
    }
    if attention.masked
        && !(0..4).all(|i| dims[3].len() == 4 && [1, [batch, heads, queries, keys][i]].contains(&dims[3][i]))
    {
        return Err(format!("a mask {:?}", dims[3]));
    }
    let sums = ([batch, queries, heads], DType::F32);
    let (mut of_q, mut of_k) = ([batch, queries, heads, width], [batch, keys, kv_heads, width]);
    if attention.heads_first {
        of_q.swap(1, 2);
        of_k.swap(1, 2);
    }
    let own = match attention.part {
        AttentionPart::Sums => (&sums.0[..], sums.1),
        AttentionPart::Output | AttentionPart::Query => (&of_q[..], inputs[0].1),
        AttentionPart::Key | AttentionPart::Value => (&of_k[..], inputs[1].1),
    };
    let same = inputs[..attention.operands()].iter().all(|(_, dtype)| *dtype == inputs[0].1);
    if own != (shape.dims(), dtype) || !same {
        return Err(format!("{:?} of {:?} {dtype}", attention.part, shape));
    }
    let rest = &inputs[attention.operands()..];
    let fits = |i: usize, (shape, dtype): &(&Shape, DType)| match (attention.part.is_gradient(), i) {
        (true, 0) => (shape.dims(), *dtype) == (dims[0], inputs[0].1),
        _ => (shape.dims(), *dtype) == (&sums.0[..], sums.1),
    };
    let all = rest.iter().enumerate().all(|(i, input)| fits(i, input));
    if all { Ok(()) } else { Err("inputs of its gradient".into()) }
}
