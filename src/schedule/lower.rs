//! One node, and what can be computed with it, as one kernel.
//!
//! Lowering walks from the kernel's root to what is stored, carrying the [`Access`] by which the loops
//! reach each node. Elementwise nodes hand the access on to their operands and views transform it, so
//! a node that is reached twice in the same way is one value, and views cost index arithmetic only. A
//! reduction is computed inside when the loops can be split into rows that it folds.
//!
//! What does not fit ends the attempt with a [`Stop`], which says what to change before the next: a
//! node to store, or a finer loop nest.

use super::access::{Access, Misfit, collapse};
use super::kernel::{Gemm, Kernel, Level, Operand, Output, Reach, Value, ValueOp};
use crate::dtype::DType;
use crate::graph::{Entry, Node, Op, Snapshot, View};
use crate::ops::{Elementwise, Reduction, Rounding};
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
        gemm: None,
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
    gemm: Option<u32>,
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
            let value = self.compute(node, at)?;
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
            Op::Cat { .. } => Err(Stop::Store(node, "its parts are written in place")),
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

    fn reduce(&mut self, node: u32, op: Reduction, axes: u8, input: u32, at: Access) -> Result<u32, Stop> {
        if let Some(product) = self.gemm {
            // Rows of the product itself: their kernel reads it. Anything else is computed before.
            let store = if self.depends(input, product) { product } else { node };
            return Err(Stop::Store(store, "a product's epilogue holds no reduction"));
        }
        let full = self.shape(node).numel() == 1;
        if full && self.loops.nested {
            return self.finish_all(node, op, input, at);
        }
        let single = self.loops.extents.iter().product::<usize>() == 1;
        if full && single && self.loops.inner == 0 && self.holds_reduction(input) {
            return Err(Stop::Reshape(Loops { nested: true, ..Loops::over(&self.shape(input)) }));
        }
        let input_at = self.rows(node, axes, input, &at)?;
        let value = self.operand(input, input_at, node)?;
        let value = if op.decides() { self.rounded(value, node)? } else { value };
        let dtype = self.entry(node).node.dtype;
        self.plain(ValueOp::Reduce { op, value }, dtype, op.decides(), node)
    }

    /// The full reduction around a kernel of rows: a fold of each row, where its input has elements,
    /// then of the rows.
    fn finish_all(&mut self, node: u32, op: Reduction, input: u32, at: Access) -> Result<u32, Stop> {
        let over = self.shape(input).numel();
        let per_element = over != self.loops.extents_outside();
        let fits = !per_element || over == self.loops.extents.iter().product();
        if !fits || op.is_arg() || at.strides.iter().any(|&s| s != 0) || self.finishing || self.has_finish() {
            return Err(Stop::Store(node, "its result is needed before all rows are done"));
        }
        let mut strides = Strides::filled(self.loops.extents.len(), 0);
        let mut step = over as isize;
        for (i, &extent) in self.loops.extents.iter().enumerate() {
            if per_element || self.loops.inner >> i & 1 == 0 {
                step /= extent as isize;
                strides[i] = step;
            }
        }
        self.finishing = true;
        let value = self.operand(input, Access { strides, offset: 0 }, node);
        self.finishing = false;
        let mut value = value?;
        if op.decides() {
            value = self.rounded(value, node)?;
        }
        let dtype = self.entry(node).node.dtype;
        if per_element {
            value = self.plain(ValueOp::Reduce { op, value }, dtype, op.decides(), node)?;
        }
        self.plain(ValueOp::Finish { op, value }, dtype, op.decides(), node)
    }

    fn has_finish(&self) -> bool {
        self.values.iter().any(|v| matches!(v.op, RawOp::Plain(ValueOp::Finish { .. })))
    }

    /// Whether `node` is computed from `target` without anything being stored in between.
    fn depends(&self, node: u32, target: u32) -> bool {
        let (mut list, mut seen) = (vec![node], rustc_hash::FxHashSet::default());
        while let Some(next) = list.pop() {
            if next == target {
                return true;
            }
            if next > target && !self.context.stored[next as usize] && seen.insert(next) {
                list.extend(&self.entry(next).inputs);
            }
        }
        false
    }

    /// Whether a reduction would be computed with `node`.
    fn holds_reduction(&self, node: u32) -> bool {
        let (mut list, mut seen) = (vec![node], 0);
        while let Some(node) = list.pop() {
            let entry = self.entry(node);
            seen += 1;
            if self.context.stored[node as usize] || seen > MAX_VALUES {
                continue;
            }
            match entry.node.op {
                Op::Reduce { .. } => return true,
                Op::Elementwise(_) | Op::Cast | Op::View(_) | Op::Copy | Op::Bound { .. } => list.extend(&entry.inputs),
                _ => {}
            }
        }
        false
    }

    /// The access to a reduction's input that makes the inner loops walk along its axes, or the loops
    /// that would.
    fn rows(&self, node: u32, axes: u8, input: u32, at: &Access) -> Result<Access, Stop> {
        let from = self.shape(input);
        let axes = Node::axes(axes);
        let folded: Vec<usize> = axes.iter().map(|&a| from.dims()[a]).filter(|&d| d > 1).collect();
        let loops = &self.loops;
        let is_inner = |i: usize| loops.inner >> i & 1 == 1;
        if loops.inner == 0 {
            return Err(self.choose_rows(node, &folded, at));
        }
        let inner: Vec<usize> = (0..loops.extents.len()).filter(|&i| is_inner(i)).collect();
        let per_row = inner.iter().all(|&i| at.strides[i] == 0);
        let each_once: usize = (0..loops.extents.len())
            .filter(|&i| !is_inner(i) && at.strides[i] != 0)
            .map(|i| loops.extents[i])
            .product();
        let kept = from.reduced(&axes, false);
        if !per_row || loops.extents_outside() != kept.numel() || each_once != kept.numel() {
            return Err(Stop::Store(node, "it is not one value a row of this kernel"));
        }
        let coordinates = at.decode(&loops.extents, &kept).map_err(|m| self.misfit(m, node))?;
        let steps = from.contiguous_strides();
        let kept_steps: Vec<isize> = (0..from.rank()).filter(|i| !axes.contains(i)).map(|i| steps[i]).collect();
        let mut access = coordinates.access(&kept_steps, 0);
        // Row-major position along the folded axes, walked by the inner loops together.
        let along: Vec<(usize, isize)> =
            axes.iter().map(|&a| (from.dims()[a], steps[a])).filter(|&(d, _)| d > 1).collect();
        match match_loops(&along, &inner, &loops.extents) {
            Some(strides) => strides.into_iter().for_each(|(i, stride)| access.strides[i] = stride),
            None => return Err(Stop::Store(node, "it folds rows of another shape than this kernel")),
        }
        Ok(access)
    }

    /// The first reduction decides what a row is: loops that its result does not depend on, or new ones.
    fn choose_rows(&self, node: u32, folded: &[usize], at: &Access) -> Stop {
        let mut loops = self.loops;
        let free: Vec<usize> =
            (0..loops.extents.len()).filter(|&i| at.strides[i] == 0 && loops.extents[i] > 1).collect();
        if free.is_empty() {
            for &extent in folded {
                let at = loops.extents.len();
                if !loops.extents.insert(at, extent) {
                    return Stop::Store(node, "the kernel would have too many loops");
                }
                loops.inner |= 1 << at;
            }
            return Stop::Reshape(loops);
        }
        let extents: Vec<(usize, isize)> = folded.iter().map(|&d| (d, 1)).collect();
        if match_loops(&extents, &free, &loops.extents).is_none() {
            return Stop::Store(node, "it is repeated over loops that it does not fold");
        }
        free.iter().for_each(|&i| loops.inner |= 1 << i);
        let row: usize = folded.iter().product();
        if row > LONG_ROW && loops.extents_outside() < FEW_ROWS {
            return Stop::Store(node, "its rows are long and few: two kernels use more of the device");
        }
        Stop::Reshape(loops)
    }

    fn matmul(&mut self, node: u32, at: Access) -> Result<u32, Stop> {
        let shape = self.shape(node);
        let here = self.loops.inner == 0 && !self.loops.nested && at.is_identity(&self.loops.extents, shape.numel());
        if !here || self.gemm.is_some_and(|other| other != node) {
            return Err(Stop::Store(node, "a product is computed on its own loops"));
        }
        for &input in &self.entry(node).inputs.clone() {
            let base = self.stored_base(input)?;
            self.touch(base, node)?;
        }
        self.gemm = Some(node);
        let dtype = self.entry(node).node.dtype;
        self.plain(ValueOp::Accumulator, dtype, false, node)
    }

    /// The stored node that `node` is, or is a view of.
    fn stored_base(&self, node: u32) -> Result<u32, Stop> {
        let reason = "a product or a gather reads it from memory";
        if self.context.stored[node as usize] && node != self.root {
            return Ok(node);
        }
        match self.entry(node).node.op {
            Op::View(_) => {
                let base = self.entry(node).inputs[0];
                if self.context.stored[base as usize] {
                    return Ok(base);
                }
                let nested_view = matches!(self.entry(base).node.op, Op::View(_));
                Err(Stop::Store(if nested_view { node } else { base }, reason))
            }
            _ => Err(Stop::Store(node, reason)),
        }
    }

    /// Strides and offset by which `node` reads its stored base.
    fn strided(&self, node: u32, base: u32) -> (Strides, isize) {
        match self.entry(node).node.op {
            Op::View(view) if base != node => (view.strides, view.offset),
            _ => (self.shape(node).contiguous_strides(), 0),
        }
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

    fn finish(mut self, target: &Target, value: u32, at: Access) -> Result<Kernel, Stop> {
        let root_at = Access { strides: self.output_strides(target, &at), offset: target.offset };
        let mut outputs = vec![(target.into, value, root_at)];
        for &(node, value, at) in &self.absorbed {
            if !self.covers(&at, self.shape(node).numel()) {
                return Err(Stop::Separate(node));
            }
            outputs.push((node, value, at));
        }
        for output in &mut outputs {
            output.1 = self.unrounded(output.1);
        }
        self.nodes.sort_unstable();
        self.nodes.dedup();
        Ok(self.build(outputs))
    }

    /// Strides with which the root's elements are written.
    fn output_strides(&self, target: &Target, at: &Access) -> Strides {
        if target.node == target.into {
            return at.strides;
        }
        // The root's loops, mapped onto the part of the buffer that it fills.
        let shape = self.shape(target.node);
        match at.decode(&self.loops.extents, &shape) {
            Ok(coordinates) => coordinates.access(&target.strides, 0).strides,
            Err(_) => at.strides,
        }
    }

    /// Whether `at` stores each of `numel` elements exactly once: one an element, or one a row.
    fn covers(&self, at: &Access, numel: usize) -> bool {
        let loops = &self.loops;
        if loops.nested {
            return false;
        }
        if loops.extents.iter().product::<usize>() == numel {
            return at.offset == 0 && each_once(&loops.extents, &at.strides, numel);
        }
        let (inner, outer): (Vec<usize>, Vec<usize>) =
            (0..loops.extents.len()).partition(|&i| loops.inner >> i & 1 == 1);
        let extents: Vec<usize> = outer.iter().map(|&i| loops.extents[i]).collect();
        let strides: Vec<isize> = outer.iter().map(|&i| at.strides[i]).collect();
        inner.iter().all(|&i| at.strides[i] == 0) && at.offset == 0 && each_once(&extents, &strides, numel)
    }

    /// What to store for `value`: rounding first would round twice to the same dtype.
    fn unrounded(&self, value: u32) -> u32 {
        match self.values[value as usize].op {
            RawOp::Plain(ValueOp::Round { value }) => value,
            _ => value,
        }
    }

    fn build(self, outputs: Vec<(u32, u32, Access)>) -> Kernel {
        let live = self.live(&outputs);
        let reduces =
            self.values.iter().zip(&live).any(|(v, &l)| l && matches!(v.op, RawOp::Plain(ValueOp::Reduce { .. })));
        let inner_mask = if reduces || self.loops.nested { self.loops.inner } else { u8::MAX };
        let split = |at: &Access| {
            let mut reach = Reach { outer: Dims::new(), inner: Dims::new(), offset: at.offset };
            for (i, &stride) in at.strides.iter().enumerate() {
                let side = if inner_mask >> i & 1 == 1 { &mut reach.inner } else { &mut reach.outer };
                let pushed = side.insert(side.len(), stride);
                debug_assert!(pushed);
            }
            reach
        };
        let extents = split(&Access {
            strides: Dims::from_slice(&self.loops.extents.iter().map(|&e| e as isize).collect::<Vec<_>>())
                .unwrap_or_default(),
            offset: 0,
        });
        let sizes = |dims: &Strides| {
            Dims::from_slice(&dims.iter().map(|&e| e as usize).collect::<Vec<_>>()).unwrap_or_default()
        };
        let (mut outer, mut inner) = (sizes(&extents.outer), sizes(&extents.inner));

        let mut renumbered = vec![u32::MAX; self.values.len()];
        let mut values: Vec<Value> = Vec::new();
        for (i, raw) in self.values.iter().enumerate().filter(|&(i, _)| live[i]) {
            let op = match raw.op {
                RawOp::Load { node, at } => ValueOp::Load { node, reach: split(&at) },
                RawOp::Index { at } => ValueOp::Index { reach: split(&at) },
                RawOp::Gather { node, at, index, stride, limit } => {
                    ValueOp::Gather { node, reach: split(&at), index: renumbered[index as usize], stride, limit }
                }
                RawOp::Plain(op) => renumber(op, &renumbered),
            };
            renumbered[i] = values.len() as u32;
            let level = level(&op, &values, reduces || self.loops.nested);
            values.push(Value { op, dtype: raw.dtype, level, node: raw.node });
        }
        let entries = &self.context.graph.entries;
        let mut outputs: Vec<Output> = outputs
            .into_iter()
            .map(|(node, value, at)| {
                let dtype = entries[node as usize].node.dtype;
                Output { value: renumbered[value as usize], node, dtype, reach: split(&at) }
            })
            .collect();
        merge_loops(&mut outer, &mut inner, &mut values, &mut outputs);
        let gemm = self.gemm.map(|node| self.product(node));
        let repeated =
            self.accesses.iter().filter(|(node, at)| self.repeats(*node, at)).map(|&(node, _)| node).collect();
        Kernel { outer, inner, values, outputs, gemm, nodes: self.nodes, repeated }
    }

    /// Which values the outputs need.
    fn live(&self, outputs: &[(u32, u32, Access)]) -> Vec<bool> {
        let mut live = vec![false; self.values.len()];
        outputs.iter().for_each(|&(_, value, _)| live[value as usize] = true);
        for i in (0..self.values.len()).rev() {
            match self.values[i].op {
                RawOp::Gather { index, .. } if live[i] => live[index as usize] = true,
                RawOp::Plain(op) if live[i] => op.operands().for_each(|v| live[v as usize] = true),
                _ => {}
            }
        }
        live
    }

    /// Whether the loops compute some element of `node` more than once.
    fn repeats(&self, node: u32, at: &Access) -> bool {
        let loops = &self.loops;
        if at.strides.iter().all(|&s| s == 0) {
            return false; // once a launch
        }
        let per_row = (0..loops.extents.len()).all(|i| loops.inner >> i & 1 == 0 || at.strides[i] == 0);
        let steps = if per_row { loops.extents_outside() } else { loops.extents.iter().product() };
        steps > self.shape(node).numel()
    }

    fn product(&self, node: u32) -> Gemm {
        let entry = self.entry(node);
        let (a, b) = (entry.inputs[0], entry.inputs[1]);
        let dims = entry.node.shape.dims();
        let rank = dims.len();
        let (m, n) = (dims[rank - 2], dims[rank - 1]);
        let k = self.shape(a).dims()[self.shape(a).rank() - 1];
        let mut extents = Dims::from_slice(&dims[..rank - 1]).unwrap_or_default(); // batch.., m
        let side = |input: u32| -> (u32, Strides, isize) {
            let base = self.stored_base(input).unwrap_or(input);
            let (strides, offset) = self.strided(input, base);
            (base, strides, offset)
        };
        let ((a_node, a_dims, a_offset), (b_node, b_dims, b_offset)) = (side(a), side(b));
        // Strides over the result's batch dimensions: 0 where an operand repeats.
        let batch = |input: u32, strides: &Strides, last: isize| -> Strides {
            let shape = self.shape(input);
            let mut over = Strides::filled(rank - 1, 0);
            let lead = rank - shape.rank();
            for i in 0..shape.rank() - 2 {
                over[lead + i] = if shape.dims()[i] == 1 { 0 } else { strides[i] };
            }
            over[rank - 2] = last;
            over
        };
        let mut a_over = batch(a, &a_dims, a_dims[a_dims.len() - 2]);
        let mut b_over = batch(b, &b_dims, 0);
        let shared = b_over.iter().all(|&s| s == 0);
        if shared {
            // One right-hand side for all: rows of the whole batch are rows of one product.
            merge_batch(&mut extents, &mut a_over, &mut b_over);
        }
        let last = extents.len() - 1;
        let rows = extents.remove(last);
        let row_stride = a_over.remove(last);
        b_over.remove(last);
        debug_assert!(shared || rows == m);
        let a = Operand {
            node: a_node,
            row_stride,
            col_stride: a_dims[a_dims.len() - 1],
            starts: starts(&extents, &a_over, a_offset),
        };
        let b = Operand {
            node: b_node,
            row_stride: b_dims[b_dims.len() - 2],
            col_stride: b_dims[b_dims.len() - 1],
            starts: starts(&extents, &b_over, b_offset),
        };
        Gemm { m: rows, n, k, dtype: entry.node.dtype, a, b }
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

/// Strides for `loops`, which together walk row-major along `axes` (extent and stride each): the
/// loops' extents must be a refinement of the axes' extents.
fn match_loops(axes: &[(usize, isize)], loops: &[usize], extents: &[usize]) -> Option<Vec<(usize, isize)>> {
    let mut strides = Vec::new();
    let mut loops = loops.iter().rev().filter(|&&i| extents[i] > 1).peekable();
    for &(extent, stride) in axes.iter().rev() {
        let mut covered = 1;
        while covered < extent {
            let &i = loops.next()?;
            strides.push((i, stride * covered as isize));
            covered *= extents[i];
        }
        if covered != extent {
            return None;
        }
    }
    loops.next().is_none().then_some(strides)
}

/// Whether loops of `extents` and `strides` visit 0..numel, each once, in any order.
fn each_once(extents: &[usize], strides: &[isize], numel: usize) -> bool {
    let mut list: Vec<(isize, usize)> =
        strides.iter().copied().zip(extents.iter().copied()).filter(|&(_, e)| e > 1).collect();
    list.sort_unstable();
    let mut step = 1isize;
    for (stride, extent) in list {
        if stride != step {
            return false;
        }
        step *= extent as isize;
    }
    step == numel as isize
}

fn level(op: &ValueOp, values: &[Value], rows: bool) -> Level {
    let of_reach = |reach: &Reach| match reach {
        r if r.inner.iter().any(|&s| s != 0) => Level::Element,
        r if r.outer.iter().any(|&s| s != 0) => Level::Row,
        _ => Level::Uniform,
    };
    let below = op.operands().map(|v| values[v as usize].level).max().unwrap_or(Level::Uniform);
    let level = match op {
        ValueOp::Load { reach, .. } | ValueOp::Index { reach } => of_reach(reach),
        ValueOp::Gather { reach, .. } => of_reach(reach).max(below),
        ValueOp::Reduce { .. } => Level::Row,
        ValueOp::Finish { .. } => Level::Uniform,
        ValueOp::Accumulator => Level::Element,
        _ => below,
    };
    if level == Level::Row && !rows { Level::Element } else { level }
}

fn renumber(op: ValueOp, to: &[u32]) -> ValueOp {
    let map = |v: u32| to[v as usize];
    match op {
        ValueOp::Random { kind, index, param } => ValueOp::Random { kind, index: map(index), param },
        ValueOp::Elementwise { op, operands } => {
            let mut mapped = [0; 3];
            mapped.iter_mut().zip(&operands[..op.arity()]).for_each(|(slot, &v)| *slot = map(v));
            ValueOp::Elementwise { op, operands: mapped }
        }
        ValueOp::Cast { value } => ValueOp::Cast { value: map(value) },
        ValueOp::Round { value } => ValueOp::Round { value: map(value) },
        ValueOp::Bound { value, limit } => ValueOp::Bound { value: map(value), limit },
        ValueOp::Reduce { op, value } => ValueOp::Reduce { op, value: map(value) },
        ValueOp::Finish { op, value } => ValueOp::Finish { op, value: map(value) },
        other => other,
    }
}

/// Collapses the outer and the inner loops, each as far as all accesses allow.
fn merge_loops(outer: &mut Dims<usize>, inner: &mut Dims<usize>, values: &mut [Value], outputs: &mut [Output]) {
    let mut reaches: Vec<&mut Reach> = values
        .iter_mut()
        .filter_map(|v| match &mut v.op {
            ValueOp::Load { reach, .. } | ValueOp::Index { reach } | ValueOp::Gather { reach, .. } => Some(reach),
            _ => None,
        })
        .chain(outputs.iter_mut().map(|o| &mut o.reach))
        .collect();
    let mut sides: Vec<&mut Strides> = reaches.iter_mut().map(|r| &mut r.outer).collect();
    collapse(outer, &mut sides);
    let mut sides: Vec<&mut Strides> = reaches.iter_mut().map(|r| &mut r.inner).collect();
    collapse(inner, &mut sides);
}

/// Merges batch dimensions into the rows of the left operand, where its strides allow all of them.
fn merge_batch(extents: &mut Dims<usize>, a: &mut Strides, b: &mut Strides) {
    let (mut merged, mut a_merged, mut b_merged) = (*extents, *a, *b);
    collapse(&mut merged, &mut [&mut a_merged, &mut b_merged]);
    if merged.len() == 1 {
        (*extents, *a, *b) = (merged, a_merged, b_merged);
    }
}

/// Where each matrix of a batch starts.
fn starts(extents: &[usize], strides: &[isize], offset: isize) -> Vec<isize> {
    let mut starts = vec![offset];
    for (&extent, &stride) in extents.iter().zip(strides) {
        starts = starts.iter().flat_map(|&s| (0..extent as isize).map(move |i| s + i * stride)).collect();
    }
    starts
}
