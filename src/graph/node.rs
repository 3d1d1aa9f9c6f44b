//! One value of the lazy graph.

use crate::device::{Device, Storage};
use crate::dtype::DType;
use crate::ops::{Elementwise, Reduction};
use crate::scope;
use crate::shape::{Dims, Shape, Strides};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) type NodeRef = Arc<Node>;
pub(crate) type Inputs = SmallVec<[NodeRef; 3]>;

/// A number that an op takes beside its tensors. Its value is an input of a plan, not part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar {
    Float(f64),
    Int(i64),
}

impl Scalar {
    /// As a float and as an integer.
    pub fn both(self) -> (f64, i64) {
        match self {
            Scalar::Float(x) => (x, x as i64),
            Scalar::Int(i) => (i as f64, i),
        }
    }
}

/// A strided reading of the input's row-major elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub strides: Strides,
    pub offset: isize,
}

/// Which distribution random numbers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Random {
    /// Uniform in [0, 1).
    Uniform,
    /// Standard normal.
    Normal,
}

/// A result of scaled dot product attention, `softmax(scale q k^T + mask) v` over the keys.
///
/// Inputs are q `[batch, queries, heads, width]`, k and v `[batch, keys, kv heads, width]`, then, if `masked`, a mask
/// that broadcasts to `[batch, heads, queries, keys]`, then for an output that derivatives are taken of its
/// [`AttentionPart::Sums`], for a gradient that of the output, the sums, and for each query the sum of output times
/// gradient, `[batch, queries, heads]`. Each run of `heads / kv heads` heads shares keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Attention {
    pub part: AttentionPart,
    pub scale: f32,
    /// Query i sees keys up to i + keys - queries.
    pub causal: bool,
    pub masked: bool,
    /// Results, but for the sums, are `[batch, heads, positions, width]`.
    pub heads_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AttentionPart {
    /// The result, `[batch, queries, heads, width]`.
    Output,
    /// For each query the logarithm of what the softmax divides by, `[batch, queries, heads]` in f32.
    Sums,
    /// The gradients of q, k and v, in their shapes.
    Query,
    Key,
    Value,
}

impl AttentionPart {
    /// Whether it is one of the gradients.
    pub fn is_gradient(self) -> bool {
        !matches!(self, AttentionPart::Output | AttentionPart::Sums)
    }
}

impl Attention {
    /// How many inputs the attention itself has.
    pub fn operands(&self) -> usize {
        3 + usize::from(self.masked)
    }

    /// Whether it comes out of the same kernel as another one of the same operands.
    pub fn goes_with(&self, other: &Attention) -> bool {
        Attention { part: other.part, ..*self } == *other && self.part.is_gradient() == other.part.is_gradient()
    }
}

/// What a node is. Operand order is that of the node's inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    /// Data that is there from the start.
    Leaf,
    /// A constant of rank 0.
    Scalar(Scalar),
    /// The row-major index of each element, as i64.
    Iota,
    /// Element i is the i-th number of the Philox stream `key`, from position `offset` on, as f32.
    Random { kind: Random, key: u64, offset: u64 },
    /// A row of the op table; operands broadcast to the node's shape.
    Elementwise(Elementwise),
    /// Conversion to the node's dtype.
    Cast,
    /// A strided reading of the input.
    View(View),
    /// The input in row-major order; what a view needs that cannot be expressed by strides.
    Copy,
    /// A reduction over the axes whose bits are set; the node keeps them as size 1 or drops them.
    Reduce { op: Reduction, axes: u8 },
    /// `[.., m, k] x [.., k, n]`; batch dimensions broadcast.
    Matmul,
    /// `out[.., i, ..] = input0[.., input1[.., i, ..], ..]` along `axis`; the indices broadcast.
    /// `name` is the call's.
    Gather { axis: u8, name: &'static str },
    /// The input, an index; a fault unless it is in `0..limit`.
    /// `name` is the call's.
    Bound { limit: usize, name: &'static str },
    /// The inputs one after another along `axis`.
    Cat { axis: u8 },
    /// The first input, with the second one in the place of its rows from `start` on, along `axis`. Written over the first
    /// where nobody else has that.
    Update { axis: u8, start: usize },
    /// The input in a larger box, from coordinates `before` on; zeros around it.
    Pad { before: Dims<usize> },
    /// Zeros, to which `out[.., input1[.., i, ..], ..] += input0[.., i, ..]` is added along `axis`, in the
    /// order of i; the indices broadcast. `name` is the call's.
    Scatter { axis: u8, name: &'static str },
    /// See there.
    Attention(Attention),
}

impl Op {
    /// The name that messages and plans use.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Leaf => "leaf",
            Op::Scalar(_) => "scalar",
            Op::Iota => "iota",
            Op::Random { kind: Random::Uniform, .. } => "rand",
            Op::Random { kind: Random::Normal, .. } => "randn",
            Op::Elementwise(op) => op.name(),
            Op::Cast => "to_dtype",
            Op::View(_) => "view",
            Op::Copy => "copy",
            Op::Reduce { op, .. } => op.name(),
            Op::Matmul => "matmul",
            Op::Gather { name, .. } | Op::Bound { name, .. } | Op::Scatter { name, .. } => name,
            Op::Cat { .. } => "cat",
            Op::Update { .. } => "update",
            Op::Pad { .. } => "pad",
            Op::Attention(Attention { part: AttentionPart::Output | AttentionPart::Sums, .. }) => "attention",
            Op::Attention(_) => "attention_gradient",
        }
    }
}

/// What gradients have to do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Track {
    /// Nothing: a constant, for derivatives.
    Constant,
    /// A variable: gradients end here.
    Variable,
    /// Computed from variables: keeps its inputs once it is realized.
    Tracked,
    /// Was tracked, until a backward pass let its inputs go.
    Released,
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
    static SEGMENT: Cell<u64> = const { Cell::new(0) };
}

/// Whether this thread records ops for derivatives.
pub(crate) fn is_recording() -> bool {
    RECORDING.get()
}

/// Runs `work` with ops recorded for derivatives, or not, on this thread.
pub(crate) fn with_recording<T>(on: bool, work: impl FnOnce() -> T) -> T {
    scope::with(&RECORDING, on, work)
}

/// Runs `work` with nodes recorded as a segment that a backward pass computes again. One inside another is part of it.
pub(crate) fn in_segment<T>(work: impl FnOnce() -> T) -> T {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    match SEGMENT.get() {
        0 => scope::with(&SEGMENT, NEXT.fetch_add(1, Ordering::Relaxed), work),
        _ => work(),
    }
}

/// What changes when a node is evaluated.
pub(crate) struct State {
    pub inputs: Inputs,
    pub storage: Option<Arc<Storage>>,
}

/// A value: an op over other nodes, or, once realized, its elements in row-major order.
pub(crate) struct Node {
    pub op: Op,
    pub shape: Shape,
    pub dtype: DType,
    pub device: Device,
    /// Where the user made it.
    pub site: &'static Location<'static>,
    /// The variable that this is a value of; 0 for none.
    pub variable: u64,
    /// The segment that a backward pass computes again, if it was recorded in one; else 0.
    pub segment: u64,
    /// Where it stands in the snapshot that looked at it last.
    pub mark: Mark,
    track: AtomicU8,
    /// Longest path of pending nodes that ends here; 0 once realized.
    depth: AtomicU32,
    state: Mutex<State>,
}

/// A position in a snapshot. Snapshots are taken one at a time.
#[derive(Default)]
pub(crate) struct Mark {
    snapshot: AtomicU64,
    position: AtomicU32,
}

impl Mark {
    pub fn set(&self, snapshot: u64, position: u32) {
        self.snapshot.store(snapshot, Ordering::Relaxed);
        self.position.store(position, Ordering::Relaxed);
    }

    /// What was set last, if it was for this snapshot.
    pub fn get(&self, snapshot: u64) -> Option<u32> {
        (self.snapshot.load(Ordering::Relaxed) == snapshot).then(|| self.position.load(Ordering::Relaxed))
    }
}

/// Nodes of a thread whose memory waits for the next ones, at most.
const SPARES: usize = 1 << 13;

thread_local! {
    static SPARE: RefCell<Vec<NodeRef>> = const { RefCell::new(Vec::new()) };
}

impl Node {
    /// A node to be computed.
    pub fn pending(
        op: Op,
        inputs: Inputs,
        shape: &Shape,
        dtype: DType,
        device: &Device,
        site: &'static Location<'static>,
    ) -> NodeRef {
        let (mut deepest, mut tracked) = (0, false);
        for input in &inputs {
            deepest = deepest.max(input.depth());
            tracked |= input.track() != Track::Constant;
        }
        let track = if tracked && dtype.is_float() && is_recording() { Track::Tracked } else { Track::Constant };
        Node::made(op, State { inputs, storage: None }, track, deepest + 1, (shape, dtype, device, site))
    }

    /// A node whose elements are there.
    pub fn realized(
        storage: Arc<Storage>,
        shape: &Shape,
        dtype: DType,
        device: &Device,
        site: &'static Location<'static>,
    ) -> NodeRef {
        let state = State { inputs: Inputs::new(), storage: Some(storage) };
        Node::made(Op::Leaf, state, Track::Constant, 0, (shape, dtype, device, site))
    }

    /// In the memory of a node that has ended, if there is one.
    fn made(
        op: Op,
        state: State,
        track: Track,
        depth: u32,
        (shape, dtype, device, site): (&Shape, DType, &Device, &'static Location<'static>),
    ) -> NodeRef {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).unwrap_or_default();
        let Some(mut spare) = spare else {
            let (track, depth, state) = (AtomicU8::new(track as u8), AtomicU32::new(depth), Mutex::new(state));
            let (shape, device, mark) = (*shape, device.clone(), Mark::default());
            let segment = SEGMENT.get();
            return Arc::new(Node { op, shape, dtype, device, site, variable: 0, segment, mark, track, depth, state });
        };
        if let Some(node) = Arc::get_mut(&mut spare) {
            (node.op, node.shape, node.dtype, node.site, node.variable) = (op, *shape, dtype, site, 0);
            node.segment = SEGMENT.get();
            if node.device != *device {
                node.device = device.clone();
            }
            (*node.track.get_mut(), *node.depth.get_mut()) = (track as u8, depth);
            *node.state.get_mut().unwrap_or_else(PoisonError::into_inner) = state;
        }
        spare
    }

    /// The same elements as `of`, as a value of a variable, or (0) as a constant.
    pub fn alias(of: &NodeRef, variable: u64, site: &'static Location<'static>) -> NodeRef {
        let track = if variable == 0 { Track::Constant } else { Track::Variable };
        let (shape, dtype, device) = (of.shape, of.dtype, &of.device);
        let mut alias = match of.storage() {
            Some(storage) => Node::realized(storage, &shape, dtype, device, site),
            None => {
                let view = View { strides: shape.contiguous_strides(), offset: 0 };
                Node::pending(Op::View(view), [of.clone()].into_iter().collect(), &shape, dtype, device, site)
            }
        };
        if let Some(node) = Arc::get_mut(&mut alias) {
            node.variable = variable;
            *node.track.get_mut() = track as u8;
        }
        alias
    }

    /// What gradients have to do with it.
    pub fn track(&self) -> Track {
        match self.track.load(Ordering::Acquire) {
            0 => Track::Constant,
            1 => Track::Variable,
            2 => Track::Tracked,
            _ => Track::Released,
        }
    }

    /// Ends the tracking of a tracked node, which needs its inputs no longer if it is realized.
    pub fn release(&self) {
        let changed = self.track.compare_exchange(
            Track::Tracked as u8,
            Track::Released as u8,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        let inputs = {
            let mut state = self.state();
            if changed.is_err() || state.storage.is_none() {
                return;
            }
            std::mem::take(&mut state.inputs)
        };
        release(inputs);
    }

    /// Longest path of pending nodes that ends here.
    pub fn depth(&self) -> u32 {
        self.depth.load(Ordering::Acquire)
    }

    /// Inputs and storage. Never held while another node's state is taken.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The elements, if they have been computed.
    pub fn storage(&self) -> Option<Arc<Storage>> {
        self.state().storage.clone()
    }

    /// Makes `storage` the node's elements and lets go of what it was computed from, unless derivatives
    /// may ask for it.
    pub fn realize(&self, storage: Arc<Storage>) {
        let inputs = {
            let mut state = self.state();
            state.storage = Some(storage);
            if self.track() == Track::Tracked { Inputs::new() } else { std::mem::take(&mut state.inputs) }
        };
        // Whoever reads 0 finds the storage.
        self.depth.store(0, Ordering::Release);
        release(inputs);
    }

    /// Tells nodes apart.
    pub fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Row-major elements in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.numel() * self.dtype.size()
    }

    /// The axes of a reduction.
    pub fn axes(axes: u8) -> Dims<usize> {
        let mut list = Dims::new();
        for axis in (0..8).filter(|axis| axes >> axis & 1 == 1) {
            let pushed = list.insert(list.len(), axis);
            debug_assert!(pushed);
        }
        list
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.inputs.is_empty() {
            release(std::mem::take(&mut state.inputs));
        }
    }
}

/// Lets go of nodes, and of what nobody holds but they, with a list instead of the stack: a chain of a million nodes is
/// one call deep. Those that end here are spare.
pub(super) fn release(nodes: impl IntoIterator<Item = NodeRef>) {
    let mut dying: SmallVec<[NodeRef; 8]> = SmallVec::new();
    for node in nodes {
        let mut next = Some(node);
        while let Some(mut node) = next {
            if let Some(last) = Arc::get_mut(&mut node) {
                dying.extend(last.empty());
                // Beyond what is kept, and when the thread ends, it is freed.
                let _ = SPARE.try_with(|spare| {
                    let mut spare = spare.borrow_mut();
                    if spare.len() < SPARES {
                        spare.push(node);
                    }
                });
            } else if let Some(mut last) = Arc::into_inner(node) {
                // Another thread let go of it at the same time.
                dying.extend(last.empty());
            }
            next = dying.pop();
        }
    }
}

impl Node {
    /// What it holds of others: gone, but for the inputs, which are the caller's.
    fn empty(&mut self) -> Inputs {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.storage = None;
        std::mem::take(&mut state.inputs)
    }
}
