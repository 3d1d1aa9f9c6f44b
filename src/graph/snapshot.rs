//! A graph as an evaluation sees it: its nodes in order, and the key under which its plan is kept.

use super::node::{Attention, NodeRef, Op, Scalar, Track, release};
use crate::shape::MAX_RANK;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One node of a [`Snapshot`].
pub(crate) struct Entry {
    pub node: NodeRef,
    /// Positions of the inputs; empty for what is realized.
    pub inputs: SmallVec<[u32; 3]>,
    /// Its elements were there when the snapshot was taken.
    pub realized: bool,
    /// Asked for.
    pub root: bool,
    /// Someone outside this graph holds it: it is worth keeping if it is stored anyway.
    pub held: bool,
    /// Nobody but this graph can ever read its buffer again.
    pub donatable: bool,
    /// What gradients have to do with it.
    pub track: Track,
}

/// Nodes up to which a snapshot needs no memory of its own.
const FEW: usize = 8;

/// What a set of roots needs, inputs before consumers.
pub(crate) struct Snapshot {
    pub entries: SmallVec<[Entry; FEW]>,
    pub roots: SmallVec<[u32; 2]>,
    /// Structure: ops, dtypes, shapes, aliasing, roots; no data, no scalar values.
    pub key: Key,
}

/// See [`Snapshot::key`].
pub(crate) type Key = SmallVec<[u64; 8 * FEW]>;

impl Snapshot {
    /// Walks down from `roots` to what is realized, without recursion. `fuse` is part of the key. No other snapshot of
    /// these nodes is taken meanwhile: the engine's lock sees to that.
    pub fn of(roots: &[NodeRef], fuse: bool) -> Snapshot {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed) + 1;
        let mut walk = Walk { number, entries: SmallVec::new(), key: SmallVec::new() };
        // A path has as many nodes as it is long, and there may be more of them.
        let deepest = roots.iter().map(|root| root.depth() as usize).max().unwrap_or(0);
        if deepest > FEW {
            walk.entries.reserve(2 * deepest);
            walk.key.reserve(2 * deepest * 8);
        }
        walk.key.push(fuse as u64);
        let mut positions = SmallVec::new();
        for root in roots {
            positions.push(walk.visit(root));
        }
        let mut snapshot = Snapshot { entries: walk.entries, roots: positions, key: walk.key };
        for &root in &snapshot.roots {
            snapshot.entries[root as usize].root = true;
        }
        snapshot.mark_ownership(roots);
        snapshot.key_ownership();
        snapshot
    }

    /// Values of the scalars that the plan takes as inputs, in order of their nodes.
    pub fn params(&self) -> Vec<Scalar> {
        let mut params = Vec::new();
        for entry in self.entries.iter().filter(|e| !e.realized) {
            match entry.node.op {
                Op::Scalar(value) => params.push(value),
                Op::Update { start, .. } => params.push(Scalar::Int(start as i64)),
                Op::Random { key, offset, .. } => {
                    params.extend([Scalar::Int(key as i64), Scalar::Int(offset as i64)]);
                }
                _ => {}
            }
        }
        params
    }

    /// Sets `held` and `donatable` from the reference counts.
    ///
    /// A leaf may be overwritten only when every pending node that could still read it is known to
    /// this snapshot alone: anything that is held from outside and is not a root could be evaluated
    /// again later, so all that it reads stays.
    fn mark_ownership(&mut self, roots: &[NodeRef]) {
        let mut owned: SmallVec<[usize; FEW]> = SmallVec::from_elem(1, self.entries.len()); // the entry's own reference
        for entry in &self.entries {
            for &input in &entry.inputs {
                owned[input as usize] += 1;
            }
        }
        // The caller's slice holds one more reference to each root.
        for (root, _) in self.roots.iter().zip(roots) {
            owned[*root as usize] += 1;
        }
        let mut tainted: SmallVec<[bool; FEW]> = SmallVec::from_elem(false, self.entries.len());
        for i in (0..self.entries.len()).rev() {
            let entry = &mut self.entries[i];
            entry.held = Arc::strong_count(&entry.node) > owned[i];
            let keeps = tainted[i] || (entry.held && !entry.root) || (entry.track == Track::Tracked && !entry.realized);
            entry.donatable = entry.realized && !keeps && !entry.root && !entry.held && owns_storage(&entry.node);
            if keeps {
                for &input in &self.entries[i].inputs {
                    tainted[input as usize] = true;
                }
            }
        }
    }

    fn key_ownership(&mut self) {
        let mut bits = 0u64;
        for (i, entry) in self.entries.iter().enumerate() {
            let flags = entry.root as u64 | (entry.held as u64) << 1 | (entry.donatable as u64) << 2;
            bits = bits << 3 | flags;
            if i % 21 == 20 {
                self.key.push(std::mem::take(&mut bits));
            }
        }
        self.key.push(bits);
        self.key.extend(self.roots.iter().map(|&r| r as u64));
    }
}

impl Drop for Snapshot {
    /// Consumers first: what nobody else holds goes with its consumers, not before.
    fn drop(&mut self) {
        release(self.entries.drain(..).rev().map(|entry| entry.node));
    }
}

/// Whether no other node shares the buffer (a reshaped twin would), and nobody else its memory.
fn owns_storage(node: &NodeRef) -> bool {
    node.state().storage.as_ref().is_some_and(|storage| Arc::strong_count(storage) == 1 && !storage.is_shared())
}

struct Walk {
    /// The snapshot's.
    number: u64,
    entries: SmallVec<[Entry; FEW]>,
    key: Key,
}

/// The mark of a node whose inputs are being visited.
const OPEN: u32 = u32::MAX;

impl Walk {
    /// The position of a root, which has one then, as has all that it is computed from.
    fn visit(&mut self, root: &NodeRef) -> u32 {
        let mut stack: SmallVec<[NodeRef; 8]> = SmallVec::new();
        stack.push(root.clone());
        while let Some(node) = stack.pop() {
            match node.mark.get(self.number) {
                Some(OPEN) => self.close(node, false),
                Some(_) => {}
                None if node.depth() == 0 => self.close(node, true),
                None => {
                    node.mark.set(self.number, OPEN);
                    let (state, at) = (node.state(), stack.len());
                    stack.push(node.clone());
                    for input in state.inputs.iter().rev() {
                        if input.mark.get(self.number).is_none() {
                            stack.push(input.clone());
                        }
                    }
                    drop(state);
                    if stack.len() == at + 1 {
                        stack.pop();
                        self.close(node, false);
                    }
                }
            }
        }
        root.mark.get(self.number).unwrap_or(OPEN)
    }

    /// Adds a node whose inputs have positions.
    fn close(&mut self, node: NodeRef, realized: bool) {
        let mut inputs = SmallVec::new();
        if !realized {
            for input in &node.state().inputs {
                inputs.push(input.mark.get(self.number).unwrap_or(OPEN));
            }
        }
        let track = node.track();
        self.push_key(&node, realized, track, &inputs);
        node.mark.set(self.number, self.entries.len() as u32);
        self.entries.push(Entry { node, inputs, realized, root: false, held: false, donatable: false, track });
    }

    fn push_key(&mut self, node: &NodeRef, realized: bool, track: Track, inputs: &[u32]) {
        let mut words = Words::default();
        let tag: u64 = match node.op {
            _ if realized => 0,
            Op::Leaf => 0,
            Op::Scalar(_) => 1,
            Op::Iota => 2,
            Op::Random { kind, .. } => 3 + ((kind as u64) << 8),
            Op::Elementwise(op) => 4 + ((op as u64) << 8),
            Op::Cast => 5,
            Op::View(view) => {
                view.strides.iter().for_each(|&stride| words.push(stride as u64));
                words.push(view.offset as u64);
                6
            }
            Op::Copy => 7,
            Op::Reduce { op, axes } => 8 + ((op as u64) << 8) + ((axes as u64) << 16),
            Op::Matmul => 9,
            Op::Gather { axis, .. } => 10 + ((axis as u64) << 8),
            Op::Bound { limit, .. } => {
                words.push(limit as u64);
                12
            }
            Op::Cat { axis } => 11 + ((axis as u64) << 8),
            Op::Update { axis, .. } => 16 + ((axis as u64) << 8),
            Op::Pad { before } => {
                before.iter().for_each(|&count| words.push(count as u64));
                13
            }
            Op::Scatter { axis, .. } => 14 + ((axis as u64) << 8),
            Op::Attention(Attention { part, scale, causal, masked, heads_first }) => {
                words.push(scale.to_bits() as u64);
                let flags = causal as u64 | (masked as u64) << 1 | (heads_first as u64) << 2;
                15 + ((part as u64) << 8) + (flags << 16)
            }
        };
        node.shape.dims().iter().for_each(|&dim| words.push(dim as u64));
        let head = tag
            | (track as u64) << 28
            | (node.dtype as u64) << 32
            | (node.shape.rank() as u64) << 40
            | (inputs.len() as u64) << 44;
        self.key.push(head);
        self.key.extend_from_slice(words.as_slice());
        inputs.iter().for_each(|&input| self.key.push(input as u64));
    }
}

/// What a node's op and shape add to the key, at most: extents, strides and an offset.
#[derive(Default)]
struct Words {
    list: [u64; 2 * MAX_RANK + 1],
    count: usize,
}

impl Words {
    fn push(&mut self, word: u64) {
        self.list[self.count] = word;
        self.count += 1;
    }

    fn as_slice(&self) -> &[u64] {
        &self.list[..self.count]
    }
}
