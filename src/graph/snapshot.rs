//! A graph as an evaluation sees it: its nodes in order, and the key under which its plan is kept.

use super::node::{NodeRef, Op, Scalar, Track};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::Arc;

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

/// Nodes up to which a snapshot needs no memory of its own, and finds nodes by looking at all of them.
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
    /// Walks down from `roots` to what is realized, without recursion. `fuse` is part of the key.
    pub fn of(roots: &[NodeRef], fuse: bool) -> Snapshot {
        let mut walk = Walk::default();
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

/// Whether no other node shares the buffer (a reshaped twin would), and nobody else its memory.
fn owns_storage(node: &NodeRef) -> bool {
    node.state().storage.as_ref().is_some_and(|storage| Arc::strong_count(storage) == 1 && !storage.is_shared())
}

#[derive(Default)]
struct Walk {
    entries: SmallVec<[Entry; FEW]>,
    /// By identity, once there are more than [`FEW`].
    positions: FxHashMap<usize, u32>,
    key: Key,
}

/// A node whose inputs are being visited.
struct Frame {
    node: NodeRef,
    realized: bool,
    /// Positions of the inputs seen so far.
    inputs: SmallVec<[u32; 3]>,
}

impl Frame {
    fn open(node: NodeRef) -> Frame {
        let realized = node.depth() == 0;
        Frame { node, realized, inputs: SmallVec::new() }
    }
}

impl Walk {
    fn visit(&mut self, root: &NodeRef) -> u32 {
        if let Some(at) = self.position(root) {
            return at;
        }
        let mut stack: SmallVec<[Frame; 4]> = SmallVec::new();
        stack.push(Frame::open(root.clone()));
        loop {
            let Some(frame) = stack.last_mut() else { return self.entries.len() as u32 - 1 };
            match self.next_input(frame) {
                Some(input) => stack.push(Frame::open(input)),
                None => {
                    stack.pop().into_iter().for_each(|frame| self.close(frame));
                }
            }
        }
    }

    /// Notes the inputs that have a position, up to the first that has none: that one.
    fn next_input(&self, frame: &mut Frame) -> Option<NodeRef> {
        if frame.realized {
            return None;
        }
        let state = frame.node.state();
        while let Some(input) = state.inputs.get(frame.inputs.len()) {
            match self.position(input) {
                Some(at) => frame.inputs.push(at),
                None => return Some(input.clone()),
            }
        }
        None
    }

    fn close(&mut self, frame: Frame) {
        let Frame { node, realized, inputs } = frame;
        let track = node.track();
        self.push_key(&node, realized, track, &inputs);
        let at = self.entries.len();
        if at == FEW {
            self.positions.extend(self.entries.iter().enumerate().map(|(at, entry)| (entry.node.id(), at as u32)));
        }
        if at >= FEW {
            self.positions.insert(node.id(), at as u32);
        }
        self.entries.push(Entry { node, inputs, realized, root: false, held: false, donatable: false, track });
    }

    /// Where a node is, if it is in already.
    fn position(&self, node: &NodeRef) -> Option<u32> {
        if self.entries.len() > FEW {
            return self.positions.get(&node.id()).copied();
        }
        self.entries.iter().position(|entry| Arc::ptr_eq(&entry.node, node)).map(|at| at as u32)
    }

    fn push_key(&mut self, node: &NodeRef, realized: bool, track: Track, inputs: &[u32]) {
        let (tag, words): (u64, SmallVec<[u64; 9]>) = match node.op {
            _ if realized => (0, SmallVec::new()),
            Op::Leaf => (0, SmallVec::new()),
            Op::Scalar(_) => (1, SmallVec::new()),
            Op::Iota => (2, SmallVec::new()),
            Op::Random { kind, .. } => (3 + ((kind as u64) << 8), SmallVec::new()),
            Op::Elementwise(op) => (4 + ((op as u64) << 8), SmallVec::new()),
            Op::Cast => (5, SmallVec::new()),
            Op::View(view) => {
                let strides = view.strides.iter().map(|&s| s as u64);
                (6, strides.chain([view.offset as u64]).collect())
            }
            Op::Copy => (7, SmallVec::new()),
            Op::Reduce { op, axes } => (8 + ((op as u64) << 8) + ((axes as u64) << 16), SmallVec::new()),
            Op::Matmul => (9, SmallVec::new()),
            Op::Gather { axis, .. } => (10 + ((axis as u64) << 8), SmallVec::new()),
            Op::Bound { limit, .. } => (12, [limit as u64].into_iter().collect()),
            Op::Cat { axis } => (11 + ((axis as u64) << 8), SmallVec::new()),
            Op::Pad { before } => (13, before.iter().map(|&b| b as u64).collect()),
            Op::Scatter { axis, .. } => (14 + ((axis as u64) << 8), SmallVec::new()),
        };
        let head = tag
            | (track as u64) << 28
            | (node.dtype as u64) << 32
            | (node.shape.rank() as u64) << 40
            | (inputs.len() as u64) << 44;
        self.key.push(head);
        self.key.extend(node.shape.dims().iter().map(|&d| d as u64));
        self.key.extend(words);
        self.key.extend(inputs.iter().map(|&i| i as u64));
    }
}
