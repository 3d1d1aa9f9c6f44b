//! What a kernel computes: values over a loop nest, for any device to render or interpret.

use crate::dtype::DType;
use crate::graph::{AttentionPart, Random};
use crate::ops::{Elementwise, Reduction};
use crate::shape::{Dims, Strides, position};

/// A kernel: for each combination of the outer loops, a row of the inner ones.
///
/// Without reductions all loops are inner (a map). [`ValueOp::Reduce`] folds a row; its result can
/// be used by the row's elements again (softmax, norms). [`ValueOp::Finish`] folds one value a row
/// over all rows. With a matrix product, the loops run over its result (batch, row, column), and
/// the values are its epilogue.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub outer: Dims<usize>,
    pub inner: Dims<usize>,
    /// Operands stand before their users.
    pub values: Vec<Value>,
    pub outputs: Vec<Output>,
    /// What [`ValueOp::Padded`] compares.
    pub guards: Vec<Guard>,
    pub gemm: Option<Gemm>,
    /// Scatters into the only output, whose value says nothing then.
    pub scatter: Option<Scatter>,
    /// Computes the outputs, whose value says nothing then.
    pub attention: Option<Attention>,
    /// Where the first output begins, beyond what its reach says.
    pub shift: Option<Shift>,
    /// The nodes computed inside, in graph order.
    pub nodes: Vec<u32>,
    /// Those of them whose elements are computed more than once.
    pub repeated: Vec<u32>,
}

/// One value of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value {
    pub op: ValueOp,
    /// What the value stands for; narrow floats are held in f32.
    pub dtype: DType,
    /// How far into the loops it reaches.
    pub level: Level,
    /// The node that it belongs to.
    pub node: u32,
}

/// How often a value is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Once a launch.
    Uniform,
    /// Once a row.
    Row,
    /// Once an element.
    Element,
}

/// How a value comes about. Numbers are positions in [`Kernel::values`], in the graph (`node`) or
/// among the plan's scalar inputs (`param`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValueOp {
    /// An element of a buffer.
    Load { node: u32, reach: Reach },
    /// An element of a buffer where all `count` guards from `first` on hold, else 0.
    Padded { node: u32, reach: Reach, first: u32, count: u32 },
    /// The row-major index itself.
    Index { reach: Reach },
    /// A scalar input.
    Scalar { param: u32 },
    /// Number `index + offset` of a Philox stream; its key and offset are params `param` and `param + 1`.
    Random { kind: Random, index: u32, param: u32 },
    /// A row of the op table.
    Elementwise { op: Elementwise, operands: [u32; 3] },
    /// Conversion to the value's dtype.
    Cast { value: u32 },
    /// Rounding to the value's (narrow) dtype.
    Round { value: u32 },
    /// The element `index * stride` further than `reach` says; a fault unless `index < limit`.
    Gather { node: u32, reach: Reach, index: u32, stride: isize, limit: usize },
    /// The value itself; a fault unless it is in `0..limit`.
    Bound { value: u32, limit: usize },
    /// Fold over the inner loops.
    Reduce { op: Reduction, value: u32 },
    /// Fold of a row's value over the outer loops.
    Finish { op: Reduction, value: u32 },
    /// The matrix product's sum.
    Accumulator,
}

impl ValueOp {
    /// The values it is computed from.
    pub fn operands(&self) -> impl Iterator<Item = u32> {
        let list: [Option<u32>; 3] = match *self {
            ValueOp::Load { .. }
            | ValueOp::Padded { .. }
            | ValueOp::Index { .. }
            | ValueOp::Scalar { .. }
            | ValueOp::Accumulator => [None; 3],
            ValueOp::Random { index, .. } | ValueOp::Gather { index, .. } => [Some(index), None, None],
            ValueOp::Cast { value }
            | ValueOp::Round { value }
            | ValueOp::Bound { value, .. }
            | ValueOp::Reduce { value, .. }
            | ValueOp::Finish { value, .. } => [Some(value), None, None],
            ValueOp::Elementwise { op, operands } => {
                let mut list = operands.map(Some);
                list[op.arity()..].fill(None);
                list
            }
        };
        list.into_iter().flatten()
    }
}

/// The position in a buffer that the loops stand at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub outer: Strides,
    pub inner: Strides,
    pub offset: isize,
}

impl Reach {
    /// How far into the loops it moves.
    pub fn level(&self) -> Level {
        match self {
            r if r.inner.iter().any(|&s| s != 0) => Level::Element,
            r if r.outer.iter().any(|&s| s != 0) => Level::Row,
            _ => Level::Uniform,
        }
    }

    /// Whether packets of `vector` elements along the last inner loop are aligned in memory.
    pub fn is_aligned(&self, vector: usize) -> bool {
        let vector = vector as isize;
        let around = self.inner.len().saturating_sub(1);
        let mut others = self.outer.iter().chain(&self.inner[..around]);
        self.offset % vector == 0 && others.all(|&s| s % vector == 0)
    }
}

/// Holds where the coordinate that the loops stand at is in `0..limit`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub coordinate: Reach,
    pub limit: usize,
}

/// Adds each element of a source to the place in the output that an index names along one axis.
#[derive(Clone, Debug)]
pub(crate) struct Scatter {
    /// Loops over the source's elements; the axis is `axis`.
    pub extents: Dims<usize>,
    pub axis: usize,
    pub source: Strided,
    pub index: Strided,
    /// Strides of the output, whose dimensions but `axis` the loops walk.
    pub out: Strides,
    /// Elements of the output.
    pub out_len: usize,
    /// The output's size along the axis.
    pub limit: usize,
    /// The node that asked for it.
    pub node: u32,
}

/// Scaled dot product attention, or its gradients: see [`crate::graph::Attention`].
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub dtype: DType,
    pub scale: f32,
    pub causal: bool,
    /// Strides along batch, position, head, width.
    pub q: Strided,
    pub k: Strided,
    pub v: Strided,
    /// Strides along batch, head, query, key; 0 where it broadcasts.
    pub mask: Option<Strided>,
    /// For gradients.
    pub backward: Option<Backward>,
    /// Whether results, but for the sums, lie head by head.
    pub heads_first: bool,
    /// What each output of the kernel is; outputs lie straight.
    pub parts: Vec<AttentionPart>,
}

/// What gradients of attention are computed from, beside its operands.
#[derive(Clone, Debug)]
pub(crate) struct Backward {
    /// The gradient of the output; strides as of q.
    pub gradient: Strided,
    /// Strides along batch, query, head.
    pub sums: Strided,
    pub products: Strided,
}

impl Attention {
    /// What it reads.
    pub fn inputs(&self) -> impl Iterator<Item = &Strided> {
        let backward = self.backward.iter().flat_map(|b| [&b.gradient, &b.sums, &b.products]);
        [&self.q, &self.k, &self.v].into_iter().chain(&self.mask).chain(backward)
    }

    /// The output that is this part.
    pub fn output(&self, part: AttentionPart) -> Option<usize> {
        self.parts.iter().position(|&other| other == part)
    }

    /// The row of a result, of so many positions and heads, that belongs to these.
    pub fn row(&self, [batch, position, head]: [usize; 3], positions: usize, heads: usize) -> usize {
        match self.heads_first {
            true => (batch * heads + head) * positions + position,
            false => (batch * positions + position) * heads + head,
        }
    }

    /// Multiplications and additions: two products, or for gradients seven, of queries and keys.
    pub fn operations(&self) -> usize {
        let products = if self.backward.is_some() { 14 } else { 4 };
        let pairs = self.queries.saturating_mul(self.keys) / if self.causal { 2 } else { 1 };
        pairs.saturating_mul(products * self.batch * self.heads * self.width)
    }
}

/// How loops read a stored node.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    pub node: u32,
    pub dtype: DType,
    pub strides: Strides,
    pub offset: isize,
}

/// A value that is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub value: u32,
    /// The node whose buffer is written.
    pub node: u32,
    pub dtype: DType,
    pub reach: Reach,
}

/// Rows of a buffer that are known when the plan runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shift {
    /// Number of the first row, among the plan's scalar inputs.
    pub param: u32,
    /// Elements from row to row.
    pub stride: isize,
    /// Rows there are.
    pub rows: usize,
}

/// A batch of matrix products `[m, k] x [k, n]`.
#[derive(Clone, Debug)]
pub(crate) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub dtype: DType,
    /// Loops over the batch.
    pub batch: Dims<usize>,
    pub a: Operand,
    pub b: Operand,
}

/// One side of a product; strides in elements.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub node: u32,
    pub row_stride: isize,
    pub col_stride: isize,
    /// Along the loops over the batch.
    pub batch: Strides,
    pub offset: isize,
}

impl Gemm {
    /// The number of products.
    pub fn products(&self) -> usize {
        self.batch.iter().product()
    }

    /// Where each matrix of an operand starts.
    pub fn starts(&self, operand: &Operand) -> Vec<isize> {
        (0..self.products()).map(|i| operand.offset + position(i, &self.batch, &operand.batch)).collect()
    }
}

impl Kernel {
    /// Steps of the outer loops together.
    pub fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    /// Steps of the inner loops together.
    pub fn row_len(&self) -> usize {
        self.inner.iter().product()
    }

    /// Buffers that are read: node and dtype, each once.
    pub fn reads(&self) -> Vec<u32> {
        let mut nodes: Vec<u32> = self
            .values
            .iter()
            .filter_map(|v| match v.op {
                ValueOp::Load { node, .. } | ValueOp::Padded { node, .. } | ValueOp::Gather { node, .. } => Some(node),
                _ => None,
            })
            .chain(self.gemm.iter().flat_map(|g| [g.a.node, g.b.node]))
            .chain(self.scatter.iter().flat_map(|s| [s.source.node, s.index.node]))
            .chain(self.attention.iter().flat_map(|a| a.inputs().map(|input| input.node)))
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// How often an output is written.
    pub fn output_level(&self, output: &Output) -> Level {
        output.reach.level().max(self.values[output.value as usize].level)
    }

    /// The phase from which on each value can be computed: a fold of values of phase p is known in phase p + 1.
    pub fn phases(&self) -> Vec<usize> {
        let mut phases = vec![0; self.values.len()];
        for (i, value) in self.values.iter().enumerate() {
            let below = value.op.operands().map(|v| phases[v as usize]).max().unwrap_or(0);
            phases[i] = below + usize::from(matches!(value.op, ValueOp::Reduce { .. }));
        }
        phases
    }

    /// Whether each value depends on a fold over all rows.
    pub fn late(&self) -> Vec<bool> {
        let mut late = vec![false; self.values.len()];
        for (i, value) in self.values.iter().enumerate() {
            late[i] = matches!(value.op, ValueOp::Finish { .. }) || value.op.operands().any(|v| late[v as usize]);
        }
        late
    }

    /// Whether some memory is walked in larger steps along the innermost loop than from row to row.
    pub fn reads_across(&self) -> bool {
        let step = |side: &Strides| side.last().copied().unwrap_or(0);
        self.values.iter().any(|v| match v.op {
            ValueOp::Load { reach, .. } | ValueOp::Padded { reach, .. } => {
                step(&reach.inner).abs() > 1 && step(&reach.outer) == 1
            }
            _ => false,
        })
    }

    /// The same elements with the last outer loop as the last inner one.
    ///
    /// It is no kernel that could run: its reductions fold the loops that were inner before.
    pub fn with_columns_inside(&self) -> Kernel {
        let mut kernel = self.clone();
        fn inwards<T: Copy + Default>(outer: &mut Dims<T>, inner: &mut Dims<T>) {
            let moved = outer.remove(outer.len() - 1);
            let has_room = inner.insert(inner.len(), moved);
            debug_assert!(has_room, "a kernel has as many loops as a tensor has dimensions");
        }
        inwards(&mut kernel.outer, &mut kernel.inner);
        for reach in kernel.reaches() {
            inwards(&mut reach.outer, &mut reach.inner);
        }
        for v in 0..kernel.values.len() {
            kernel.values[v].level = level(&kernel.values[v].op, &kernel.values, &kernel.guards);
        }
        kernel
    }

    /// Every reach of values, guards and outputs.
    pub fn reaches(&mut self) -> impl Iterator<Item = &mut Reach> {
        let of_values = self.values.iter_mut().filter_map(|v| match &mut v.op {
            ValueOp::Load { reach, .. }
            | ValueOp::Padded { reach, .. }
            | ValueOp::Index { reach }
            | ValueOp::Gather { reach, .. } => Some(reach),
            _ => None,
        });
        let of_guards = self.guards.iter_mut().map(|g| &mut g.coordinate);
        of_values.chain(of_guards).chain(self.outputs.iter_mut().map(|o| &mut o.reach))
    }

    /// Whether any value folds a row.
    pub fn has_reduce(&self) -> bool {
        self.values.iter().any(|v| matches!(v.op, ValueOp::Reduce { .. }))
    }

    /// Whether it is a product, a scatter or attention, whose values say at most what follows.
    pub fn is_apart(&self) -> bool {
        self.gemm.is_some() || self.scatter.is_some() || self.attention.is_some()
    }

    /// Whether running it can find an index out of range.
    pub fn can_fault(&self) -> bool {
        let checks = |v: &Value| matches!(v.op, ValueOp::Gather { .. } | ValueOp::Bound { .. });
        self.scatter.is_some() || self.values.iter().any(checks)
    }
}

/// How far into the loops a value reaches whose operands are among `values`.
pub(super) fn level(op: &ValueOp, values: &[Value], guards: &[Guard]) -> Level {
    let below = op.operands().map(|v| values[v as usize].level).max().unwrap_or(Level::Uniform);
    match op {
        ValueOp::Load { reach, .. } | ValueOp::Index { reach } => reach.level(),
        ValueOp::Padded { reach, first, count, .. } => {
            let guards = &guards[*first as usize..(first + count) as usize];
            guards.iter().map(|g| g.coordinate.level()).fold(reach.level(), Level::max)
        }
        ValueOp::Gather { reach, .. } => reach.level().max(below),
        ValueOp::Reduce { .. } => Level::Row,
        ValueOp::Finish { .. } => Level::Uniform,
        ValueOp::Accumulator => Level::Element,
        _ => below,
    }
}
