//! One node, and what can be computed with it, as one kernel.
//!
//! Lowering walks from the kernel's root to what is stored, carrying the [`Access`] by which the loops
//! reach each node. Elementwise nodes hand the access on to their operands and views transform it, so
//! a node that is reached twice in the same way is one value, and views cost index arithmetic only. A
//! reduction is computed inside when the loops can be split into rows that it folds.
//!
//! What does not fit ends the attempt with a [`Stop`], which says what to change before the next: a
//! node to store, or a finer loop nest.

mod attention;
mod build;
mod product;
mod rows;

use super::access::{Access, Misfit, strided_base};
use super::kernel::{Attention, Kernel, Scatter, Shift, Strided, ValueOp};
use crate::dtype::DType;
use crate::graph::{Entry, Op, Snapshot, View};
use crate::ops::{Elementwise, Rounding};
use crate::shape::{Dims, Shape, Strides};
use rustc_hash::FxHashMap;

/// Values a kernel may have: keeps programs small enough for registers, and bounds recursion.
pub(crate) const MAX_VALUES: usize = 256;
/// Buffers a kernel may touch: Metal binds 31, of which parameters need some.
pub(crate) const MAX_BUFFERS: usize = 24;

/// Rows longer than this, when there are fewer than [`FEW_ROWS`], are not read again in the kernel
/// that folds them: one group of threads a row would leave most of a GPU idle.
const LONG_ROW: usize = 1 << 17;
const FEW_ROWS: usize = 32;

/// Why an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// The node must be stored, for this reason.
    Store(u32, &'static str),
    /// The loops must change.
    Reshape(Loops),
    /// The stored node cannot be computed here too.
    Separate(u32),
}

/// The loop nest of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Loops {
    pub extents: Dims<usize>,
    /// Bit i: loop i is folded by the reductions inside.
    pub inner: u8,
    /// The loops run over the input of a full reduction whose input holds reductions itself.
    pub nested: bool,
}

/// What a kernel is built for.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// The node to compute.
    pub node: u32,
    /// The node whose buffer takes it, and how: differs from `node` for the parts of a concatenation.
    pub into: u32,
    pub strides: Strides,
    pub offset: isize,
    pub shift: Option<Shift>,
}

/// What lowering needs to know of the plan so far.
pub(crate) struct Context<'g> {
    pub graph: &'g Snapshot,
    /// Nodes that have, or will have, a buffer.
    pub stored: &'g [bool],
    /// Stored nodes that this kernel may compute and store on its way.
    pub absorbable: &'g dyn Fn(u32) -> bool,
    /// Position of each node's first scalar input.
    pub params: &'g FxHashMap<u32, u32>,
}

/// Tries to lower `target` over `loops`.
pub(crate) fn lower(context: &Context, target: &Target, loops: &Loops) -> Result<Kernel, Stop> {
    // A part of a concatenation that has a buffer already is read from there.
    let reads_part = target.node != target.into && context.stored[target.node as usize];
    let mut lowering = Lowering {
        context,
        loops: *loops,
        root: if reads_part { u32::MAX } else { target.node },
        values: Vec::new(),
        known: FxHashMap::default(),
        nodes: Vec::new(),
        accesses: Vec::new(),
        absorbed: Vec::new(),
        buffers: vec![target.into],
        guards: Vec::new(),
        gemm: None,
        gemm_owner: None,
        absorbing: Vec::new(),
        scatter: None,
        attention: None,
        depth: 0,
        finishing: false,
    };
    let at = lowering.root_access(target);
    let value = lowering.node(target.node, at)?;
    lowering.finish(target, value, at)
}

struct Lowering<'c, 'g> {
    context: &'c Context<'g>,
    loops: Loops,
    root: u32,
    values: Vec<Raw>,
    known: FxHashMap<(u32, Access), u32>,
    nodes: Vec<u32>,
    /// The accesses under which each of them is computed.
    accesses: Vec<(u32, Access)>,
    /// Stored nodes computed here: node, value, access.
    absorbed: Vec<(u32, u32, Access)>,
    buffers: Vec<u32>,
    /// Coordinates and limits that padded loads compare.
    guards: Vec<(Access, usize)>,
    gemm: Option<u32>,
    /// The stored node, computed on the way, that the product belongs to.
    gemm_owner: Option<u32>,
    /// Stored nodes that are being computed on the way.
    absorbing: Vec<u32>,
    scatter: Option<Scatter>,
    /// Beside it, the nodes that come out of the same kernel.
    attention: Option<(Attention, Vec<u32>)>,
    depth: usize,
    /// Inside the input of a fold over all rows.
    finishing: bool,
}

/// A value before the loops are final.
struct Raw {
    op: RawOp,
    dtype: DType,
    rounded: bool,
    node: u32,
}

#[derive(Clone, Copy)]
enum RawOp {
    Load {
        node: u32,
        at: Access,
    },
    Padded {
        node: u32,
        at: Access,
        first: u32,
        count: u32,
    },
    Index {
        at: Access,
    },
    Gather {
        node: u32,
        at: Access,
        index: u32,
        stride: isize,
        limit: usize,
    },
    /// Complete already: no access inside.
    Plain(ValueOp),
}

impl Lowering<'_, '_> {
    fn entry(&self, node: u32) -> &Entry {
        &self.context.graph.entries[node as usize]
    }

    fn shape(&self, node: u32) -> Shape {
        self.entry(node).node.shape
    }

    /// How the loops reach the root's elements.
    fn root_access(&self, target: &Target) -> Access {
        let extents = &self.loops.extents;
        if self.loops.nested {
            return Access { strides: Strides::filled(extents.len(), 0), offset: 0 };
        }
        // The root's own loops come first, whatever they were split into; inner ones may follow.
        let mut strides = Strides::filled(extents.len(), 0);
        let mut left = self.shape(target.node).numel();
        for (stride, &extent) in strides.iter_mut().zip(extents.iter()) {
            if left == 1 && extent != 1 {
                break;
            }
            left /= extent;
            *stride = left as isize;
        }
        Access { strides, offset: 0 }
    }

    fn push(&mut self, op: RawOp, dtype: DType, rounded: bool, node: u32) -> Result<u32, Stop> {
        let leaf = matches!(op, RawOp::Load { .. } | RawOp::Index { .. } | RawOp::Plain(ValueOp::Scalar { .. }));
        if self.values.len() >= MAX_VALUES && node != self.root && !leaf {
            return Err(Stop::Store(node, "the kernel would hold too many values"));
        }
        self.values.push(Raw { op, dtype, rounded: rounded || !dtype.is_narrow(), node });
        Ok(self.values.len() as u32 - 1)
    }

    fn plain(&mut self, op: ValueOp, dtype: DType, rounded: bool, node: u32) -> Result<u32, Stop> {
        self.push(RawOp::Plain(op), dtype, rounded, node)
    }

    /// The value of `node` at `at`.
    fn node(&mut self, node: u32, at: Access) -> Result<u32, Stop> {
        if let Some(&value) = self.known.get(&(node, at)) {
            return Ok(value);
        }
        let entry = self.entry(node);
        let dtype = entry.node.dtype;
        let stored = self.context.stored[node as usize] && node != self.root;
        let absorbs = stored && !entry.realized && (self.context.absorbable)(node);
        let value = if stored && !absorbs {
            self.touch(node, node)?;
            self.push(RawOp::Load { node, at }, dtype, true, node)?
        } else {
            let leads_on = !matches!(self.entry(node).node.op, Op::Scalar(_) | Op::Iota | Op::Random { .. });
            if self.depth >= MAX_VALUES && leads_on {
                return Err(Stop::Store(node, "the chain of ops is too long for one kernel"));
            }
            self.depth += 1;
            if absorbs {
                self.absorbing.push(node);
            }
            let computed = self.compute(node, at);
            if absorbs {
                self.absorbing.pop();
            }
            let value = match computed {
                // It has a buffer anyway: to read that costs no kernel, what would be stored here does.
                Err(Stop::Store(below, _)) if absorbs && below != node && self.fits_elsewhere(node, below) => {
                    return Err(Stop::Separate(node));
                }
                value => value?,
            };
            self.depth -= 1;
            self.nodes.push(node);
            self.accesses.push((node, at));
            value
        };
        if absorbs {
            self.touch(node, node)?;
            self.absorbed.push((node, value, at));
        }
        self.known.insert((node, at), value);
        Ok(value)
    }

    /// Whether `below`, a fold or a product that has no place in this kernel, may have one in a kernel of
    /// `node` alone: a fold as part of its rows, a product if `node` is its epilogue.
    fn fits_elsewhere(&self, node: u32, below: u32) -> bool {
        match self.entry(below).node.op {
            // It is read from memory the next time.
            _ if self.context.stored[below as usize] => false,
            // One number of many elements is no part of their rows.
            Op::Reduce { .. } => self.shape(below).numel() > 1 || self.shape(node).numel() == 1,
            // Of a product that is folded, too, the kernel that folds it reads it.
            Op::Matmul => {
                let folds = |n| matches!(self.entry(n).node.op, Op::Reduce { .. });
                let (straight, folded) = self.ways(node, below, &folds);
                straight && !folded
            }
            _ => false,
        }
    }

    /// Whether `node` is computed from `target` by way of nodes that this kernel may compute, for which `through` holds.
    fn reaches(&self, node: u32, target: u32, through: &dyn Fn(u32) -> bool) -> bool {
        self.ways(node, target, &|n| !through(n)).0
    }

    /// Whether `node` is computed from `target` by way of nodes that this kernel may compute and that are not `special`,
    /// and whether it is by way of some that are.
    fn ways(&self, node: u32, target: u32, special: &dyn Fn(u32) -> bool) -> (bool, bool) {
        let (mut list, mut seen) = (vec![(node, false)], rustc_hash::FxHashSet::default());
        let mut found = (false, false);
        while let Some((next, after)) = list.pop() {
            if next == target {
                *(if after { &mut found.1 } else { &mut found.0 }) = true;
                continue;
            }
            let pending = !self.entry(next).realized && (self.context.absorbable)(next);
            let open = next == node || pending || !self.context.stored[next as usize];
            if next > target && open && seen.insert((next, after)) {
                let after = after || special(next);
                list.extend(self.entry(next).inputs.iter().map(|&input| (input, after)));
            }
        }
        found
    }

    /// Counts a buffer; `node` is what to store when there are too many.
    fn touch(&mut self, buffer: u32, node: u32) -> Result<(), Stop> {
        if !self.buffers.contains(&buffer) {
            if self.buffers.len() == MAX_BUFFERS {
                return Err(Stop::Separate(node));
            }
            self.buffers.push(buffer);
        }
        Ok(())
    }

    fn compute(&mut self, node: u32, at: Access) -> Result<u32, Stop> {
        let (op, dtype) = (self.entry(node).node.op, self.entry(node).node.dtype);
        let inputs = self.entry(node).inputs.clone();
        match op {
            Op::Leaf => Err(Stop::Store(node, "it is data")),
            Op::Scalar(_) => {
                let param = self.context.params[&node];
                self.plain(ValueOp::Scalar { param }, dtype, false, node)
            }
            Op::Iota => self.push(RawOp::Index { at }, dtype, true, node),
            Op::Random { kind, .. } => {
                let index = self.push(RawOp::Index { at }, DType::I64, true, node)?;
                let param = self.context.params[&node];
                self.plain(ValueOp::Random { kind, index, param }, dtype, true, node)
            }
            Op::Elementwise(op) => self.elementwise(node, op, &inputs, at),
            Op::Cast => self.cast(node, inputs[0], at),
            Op::View(view) => {
                let at = self.through(node, &view, at)?;
                self.operand(inputs[0], at, node)
            }
            Op::Copy => self.operand(inputs[0], at, node),
            Op::Reduce { op, axes } => self.reduce(node, op, axes, inputs[0], at),
            Op::Matmul => self.matmul(node, at),
            Op::Gather { axis, .. } => self.gather(node, axis as usize, &inputs, at),
            Op::Bound { limit, .. } => {
                let value = self.operand(inputs[0], at, node)?;
                self.plain(ValueOp::Bound { value, limit }, dtype, true, node)
            }
            Op::Cat { .. } | Op::Update { .. } => Err(Stop::Store(node, "its parts are written in place")),
            Op::Pad { before } => self.pad(node, &before, inputs[0], at),
            Op::Scatter { axis, .. } => self.scatter(node, axis as usize, &inputs),
            Op::Attention(attention) => self.attention(node, attention),
        }
    }

    /// An operand's value; too many buffers below make `user`, unless it is the root, stored.
    fn operand(&mut self, node: u32, at: Access, user: u32) -> Result<u32, Stop> {
        match self.node(node, at) {
            Err(Stop::Separate(n)) if n == node && self.buffers.len() == MAX_BUFFERS && user != self.root => {
                Err(Stop::Store(user, "the kernel would touch too many buffers"))
            }
            other => other,
        }
    }

    fn elementwise(&mut self, node: u32, op: Elementwise, inputs: &[u32], at: Access) -> Result<u32, Stop> {
        let mut operands = [0; 3];
        for (slot, &input) in operands.iter_mut().zip(inputs) {
            let input_at = self.broadcast(node, input, at)?;
            *slot = self.operand(input, input_at, node)?;
        }
        let used = &mut operands[..inputs.len()];
        if op.rounding() == Rounding::Decides {
            for operand in used.iter_mut() {
                *operand = self.rounded(*operand, node)?;
            }
        }
        let rounded = match op.rounding() {
            Rounding::Rounds => false,
            Rounding::Exact => used.iter().all(|&v| self.values[v as usize].rounded),
            Rounding::Decides => true,
        };
        let dtype = self.entry(node).node.dtype;
        self.plain(ValueOp::Elementwise { op, operands }, dtype, rounded, node)
    }

    /// `at`, which reaches `node`, as an access to an input that broadcasts to it.
    fn broadcast(&mut self, node: u32, input: u32, at: Access) -> Result<Access, Stop> {
        let (shape, from) = (self.shape(node), self.shape(input));
        if from == shape {
            return Ok(at);
        }
        if from.numel() == 1 {
            return Ok(Access { strides: Strides::filled(at.strides.len(), 0), offset: 0 });
        }
        let through = at.through(&self.loops.extents, &shape, &from.broadcast_strides(&shape), 0);
        through.map_err(|misfit| self.misfit(misfit, node))
    }

    fn through(&mut self, node: u32, view: &View, at: Access) -> Result<Access, Stop> {
        let shape = self.shape(node);
        let through = at.through(&self.loops.extents, &shape, &view.strides, view.offset);
        through.map_err(|misfit| self.misfit(misfit, node))
    }

    /// Splits a loop, or has `node` stored.
    fn misfit(&self, misfit: Misfit, node: u32) -> Stop {
        let reason = "its view is no index arithmetic over the kernel's loops";
        let Misfit::Split { dim, inner } = misfit else { return Stop::Store(node, reason) };
        let mut loops = self.loops;
        let outer = loops.extents[dim] / inner;
        if !loops.extents.insert(dim + 1, inner) {
            return Stop::Store(node, reason);
        }
        loops.extents[dim] = outer;
        let low = loops.inner & ((1 << dim) - 1);
        let own = loops.inner >> dim & 1;
        let high = loops.inner >> (dim + 1);
        loops.inner = low | own << dim | own << (dim + 1) | high << (dim + 2);
        Stop::Reshape(loops)
    }

    fn rounded(&mut self, value: u32, node: u32) -> Result<u32, Stop> {
        let Raw { dtype, rounded, .. } = self.values[value as usize];
        if rounded {
            return Ok(value);
        }
        self.plain(ValueOp::Round { value }, dtype, true, node)
    }

    fn cast(&mut self, node: u32, input: u32, at: Access) -> Result<u32, Stop> {
        let value = self.operand(input, at, node)?;
        let (from, to) = (self.entry(input).node.dtype, self.entry(node).node.dtype);
        let discontinuous = !to.is_float() || !from.is_float();
        let value = if discontinuous { self.rounded(value, node)? } else { value };
        // An explicit conversion to a narrow dtype rounds, so that a round trip does what it says.
        let value = self.plain(ValueOp::Cast { value }, to, false, node)?;
        self.rounded(value, node)
    }

    fn matmul(&mut self, node: u32, at: Access) -> Result<u32, Stop> {
        let shape = self.shape(node);
        let here = self.loops.inner == 0 && !self.loops.nested && at.is_identity(&self.loops.extents, shape.numel());
        let reason = "a product is computed on its own loops";
        match self.gemm.filter(|&other| other != node) {
            _ if !here => return Err(Stop::Store(node, reason)),
            None => {}
            // Of two, the one that was only computed on the way gives way, else the one further from the root.
            Some(other) => match self.gemm_owner {
                Some(owner) => return Err(Stop::Separate(owner)),
                None => return Err(Stop::Store(node.min(other), reason)),
            },
        }
        for &input in &self.entry(node).inputs.clone() {
            let base = self.stored_base(input)?;
            self.touch(base, node)?;
        }
        self.gemm = Some(node);
        self.gemm_owner = self.absorbing.last().copied();
        let dtype = self.entry(node).node.dtype;
        self.plain(ValueOp::Accumulator, dtype, false, node)
    }

    /// The stored node that `node` is, or is a view of.
    fn stored_base(&self, node: u32) -> Result<u32, Stop> {
        let stored = |n: u32| self.context.stored[n as usize] && n != self.root;
        let base = strided_base(self.context.graph, node, &stored).0;
        if stored(base) { Ok(base) } else { Err(Stop::Store(base, "a product or a gather reads it from memory")) }
    }

    /// Strides and offset by which `node` reads its stored base.
    fn strided(&self, node: u32, base: u32) -> (Strides, isize) {
        let (_, access) = strided_base(self.context.graph, node, &|n| n == base);
        (access.strides, access.offset)
    }

    fn gather(&mut self, node: u32, axis: usize, inputs: &[u32], at: Access) -> Result<u32, Stop> {
        let shape = self.shape(node);
        let base = self.stored_base(inputs[0])?;
        self.touch(base, node)?;
        let index_at = self.broadcast(node, inputs[1], at)?;
        let index = self.operand(inputs[1], index_at, node)?;
        let (mut strides, offset) = self.strided(inputs[0], base);
        let stride = std::mem::replace(&mut strides[axis], 0);
        let coordinates = at.decode(&self.loops.extents, &shape).map_err(|m| self.misfit(m, node))?;
        let at = coordinates.access(&strides, offset);
        let limit = self.shape(inputs[0]).dims()[axis];
        let dtype = self.entry(node).node.dtype;
        self.push(RawOp::Gather { node: base, at, index, stride, limit }, dtype, true, node)
    }

    fn pad(&mut self, node: u32, before: &[usize], input: u32, at: Access) -> Result<u32, Stop> {
        let (shape, inside) = (self.shape(node), self.shape(input));
        let base = self.stored_base(input)?;
        self.touch(base, node)?;
        let (strides, offset) = self.strided(input, base);
        let mut coordinates = at.decode(&self.loops.extents, &shape).map_err(|m| self.misfit(m, node))?;
        let first = self.guards.len();
        for (i, (start, along)) in coordinates.dims.iter_mut().enumerate() {
            *start -= before[i] as isize;
            if inside.dims()[i] < shape.dims()[i] {
                self.guards.push((Access { strides: *along, offset: *start }, inside.dims()[i]));
            }
        }
        let at = coordinates.access(&strides, offset);
        let count = (self.guards.len() - first) as u32;
        let dtype = self.entry(node).node.dtype;
        self.push(RawOp::Padded { node: base, at, first: first as u32, count }, dtype, true, node)
    }

    fn scatter(&mut self, node: u32, axis: usize, inputs: &[u32]) -> Result<u32, Stop> {
        if node != self.root || self.buffers[0] != node {
            return Err(Stop::Store(node, "sums by index are a kernel of their own"));
        }
        let mut side = |input: u32| -> Result<Strided, Stop> {
            let base = self.stored_base(input)?;
            self.touch(base, node)?;
            let (strides, offset) = self.strided(input, base);
            Ok(Strided { node: base, dtype: self.entry(input).node.dtype, strides, offset })
        };
        let (source, mut index) = (side(inputs[0])?, side(inputs[1])?);
        let (from, repeats) = (self.shape(inputs[0]), self.shape(inputs[1]));
        for (i, stride) in index.strides.iter_mut().enumerate() {
            if repeats.dims()[i] == 1 {
                *stride = 0;
            }
        }
        let shape = self.shape(node);
        let extents = Dims::from_slice(from.dims()).unwrap_or_default();
        let (out, limit) = (shape.contiguous_strides(), shape.dims()[axis]);
        self.scatter = Some(Scatter { extents, axis, source, index, out, out_len: shape.numel(), limit, node });
        // Its result stands in memory; no value is computed.
        self.plain(ValueOp::Accumulator, self.entry(node).node.dtype, true, node)
    }
}

impl Loops {
    /// Loops over `shape`, all outer.
    pub fn over(shape: &Shape) -> Loops {
        let extents: Vec<usize> = shape.dims().iter().copied().filter(|&d| d > 1).collect();
        Loops { extents: Dims::from_slice(&extents).unwrap_or_default(), inner: 0, nested: false }
    }

    /// Steps of the loops that are not inner.
    fn extents_outside(&self) -> usize {
        (0..self.extents.len()).filter(|i| self.inner >> i & 1 == 0).map(|i| self.extents[i]).product()
    }
}
