//! Attention: which buffers, by which strides, and which results come out of the same kernel.

use super::{Lowering, Stop};
use crate::graph::{self, AttentionPart, Op};
use crate::schedule::kernel::{Attention, Backward, Strided, ValueOp};

impl Lowering<'_, '_> {
    pub(super) fn attention(&mut self, node: u32, op: graph::Attention) -> Result<u32, Stop> {
        if node != self.root || self.buffers[0] != node {
            return Err(Stop::Store(node, "attention is a kernel of its own"));
        }
        let inputs = self.entry(node).inputs.clone();
        let operands: Vec<Strided> =
            inputs.iter().map(|&input| self.attended(input, node)).collect::<Result<_, _>>()?;
        let [q, k, v] = [0, 1, 2].map(|i| operands[i].clone());
        let mut mask = op.masked.then(|| operands[3].clone());
        if let Some(mask) = &mut mask {
            let dims = self.shape(inputs[3]);
            mask.strides.iter_mut().zip(dims.dims()).filter(|(_, dim)| **dim == 1).for_each(|(stride, _)| *stride = 0);
        }
        let backward = op.part.is_gradient().then(|| {
            let [gradient, sums, products] = [0, 1, 2].map(|i| operands[op.operands() + i].clone());
            Backward { gradient, sums, products }
        });
        let siblings = self.attention_siblings(node, &op);
        let part = |node: &u32| match self.entry(*node).node.op {
            Op::Attention(attention) => attention.part,
            _ => AttentionPart::Output,
        };
        let parts = [node].iter().chain(&siblings).map(part).collect();
        let (of_q, of_k) = (self.shape(inputs[0]), self.shape(inputs[1]));
        let (&[batch, queries, heads, width], &[_, keys, kv_heads, _]) = (of_q.dims(), of_k.dims()) else {
            return Err(Stop::Store(node, "attention of four dimensions"));
        };
        let dtype = self.entry(inputs[0]).node.dtype;
        let graph::Attention { scale, causal, heads_first, .. } = op;
        for &sibling in &siblings {
            self.touch(sibling, node)?;
            self.nodes.push(sibling);
        }
        let attention = Attention {
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            width,
            dtype,
            scale,
            causal,
            q,
            k,
            v,
            mask,
            backward,
            heads_first,
            parts,
        };
        self.attention = Some((attention, siblings));
        // The results stand in memory; no value is computed.
        self.plain(ValueOp::Accumulator, self.entry(node).node.dtype, true, node)
    }

    /// How a stored operand is read.
    fn attended(&mut self, input: u32, node: u32) -> Result<Strided, Stop> {
        let base = self.stored_base(input)?;
        self.touch(base, node)?;
        let (strides, offset) = self.strided(input, base);
        Ok(Strided { node: base, dtype: self.entry(input).node.dtype, strides, offset })
    }

    /// The other pending results of the same operands: of an output its sums, of a gradient the others.
    fn attention_siblings(&self, node: u32, op: &graph::Attention) -> Vec<u32> {
        let inputs = &self.entry(node).inputs;
        if op.part == AttentionPart::Output {
            let sums = inputs.get(op.operands()).filter(|&&sums| !self.entry(sums).realized);
            return sums.copied().into_iter().collect();
        }
        let goes = |&other: &u32| {
            let entry = self.entry(other);
            let Op::Attention(attention) = entry.node.op else { return false };
            other != node && !entry.realized && op.goes_with(&attention) && entry.inputs == *inputs
        };
        let all = 0..self.context.graph.entries.len() as u32;
        if op.part.is_gradient() { all.filter(goes).collect() } else { Vec::new() }
    }
}
