//! What an evaluation stores for the derivatives that may be asked of its nodes later.
//!
//! Gradient rules read operands and results (the table says which). Each such value must then be had
//! from memory by elementwise ops alone: what it takes a product, a fold or a scatter to compute is
//! stored now, so that a backward pass never runs the forward pass again. Everything else is computed
//! again where it is read.

use crate::graph::{Op, Snapshot, Track};
use crate::ops::Reduction;

/// Whether each node has to outlive the plan: those that are `stored` anyway, and those that have to be
/// for this.
pub(super) fn saved(graph: &Snapshot, stored: &[bool]) -> Vec<bool> {
    let count = graph.entries.len();
    let mut search = Search { graph, stored, seen: vec![false; count], saved: vec![false; count] };
    let has_history = |track| matches!(track, Track::Tracked | Track::Released);
    if graph.entries.iter().any(|e| !e.realized && has_history(e.track)) {
        (0..count as u32).for_each(|node| search.rule(node));
    }
    search.saved
}

struct Search<'g> {
    graph: &'g Snapshot,
    stored: &'g [bool],
    seen: Vec<bool>,
    saved: Vec<bool>,
}

impl Search<'_> {
    /// Notes what the gradient rule of `node` reads.
    fn rule(&mut self, node: u32) {
        let graph = self.graph;
        let entry = &graph.entries[node as usize];
        match entry.track {
            // Gradients that are recorded but not computed hold what they read.
            Track::Released if entry.held && !entry.root && !entry.realized => return self.need(node),
            Track::Tracked if !entry.realized => {}
            _ => return,
        }
        let follows = |i: usize| graph.entries[entry.inputs[i] as usize].track != Track::Constant;
        match entry.node.op {
            Op::Elementwise(op) => {
                let reads =
                    (0..entry.inputs.len()).filter(|&i| follows(i)).fold(0, |bits, i| bits | op.gradient_reads(i));
                entry.inputs.iter().enumerate().filter(|(i, _)| reads >> i & 1 == 1).for_each(|(_, &v)| self.need(v));
                if reads >> 3 & 1 == 1 {
                    self.need(node);
                }
            }
            Op::Matmul => (0..2).filter(|&i| follows(i)).for_each(|i| self.need(entry.inputs[1 - i])),
            Op::Reduce { op: Reduction::Max | Reduction::Min, .. } => {
                self.need(entry.inputs[0]);
                self.need(node);
            }
            Op::Reduce { op: Reduction::Prod, .. } => self.need(entry.inputs[0]),
            Op::Gather { .. } | Op::Scatter { .. } => self.need(entry.inputs[1]),
            Op::Attention(_) => {
                entry.inputs.iter().for_each(|&input| self.need(input));
                self.need(node);
            }
            _ => {}
        }
    }

    /// Sees to it that `node` can be had from memory without more than elementwise work.
    fn need(&mut self, node: u32) {
        let mut list = vec![node];
        while let Some(node) = list.pop() {
            if std::mem::replace(&mut self.seen[node as usize], true) {
                continue;
            }
            let entry = &self.graph.entries[node as usize];
            if entry.realized {
                continue;
            }
            match entry.node.op {
                _ if self.stored[node as usize] => self.saved[node as usize] = true,
                Op::Matmul
                | Op::Reduce { .. }
                | Op::Scatter { .. }
                | Op::Attention(_)
                | Op::Update { .. }
                | Op::Cat { .. } => self.saved[node as usize] = true,
                _ => list.extend(&entry.inputs),
            }
        }
    }
}
