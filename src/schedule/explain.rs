//! What a plan says of itself.

use super::kernel::{Kernel, Level, ValueOp};
use super::plan::{Part, op_weight};
use crate::graph::{Op, Snapshot};
use std::fmt::{Display, Formatter};

/// The account of a plan: its kernels, and why their edges did not fuse.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub kernels: Vec<KernelReport>,
    pub edges: Vec<String>,
}

/// One launch of a plan.
#[derive(Clone, Debug)]
pub(crate) struct KernelReport {
    /// `map`, `rows`, `reduce`, `matmul`, `scatter` or `attention`.
    pub kind: &'static str,
    /// How many kernels that are alike it runs.
    pub parts: usize,
    /// The ops inside, in order.
    pub ops: Vec<&'static str>,
    /// Outer and inner loops.
    pub loops: String,
    /// Bytes read, each buffer once.
    pub bytes_read: usize,
    pub bytes_written: usize,
    /// Arithmetic operations, a transcendental function counted as eight.
    pub flops: usize,
    /// Outputs written over an input.
    pub in_place: usize,
    /// Where the first of its ops was called.
    pub site: String,
}

impl Report {
    pub fn launch(&mut self, graph: &Snapshot, parts: &[Part]) {
        let node = |n: u32| &graph.entries[n as usize].node;
        let Some(Part { kernel, .. }) = parts.first() else { return };
        let ops: Vec<&'static str> = kernel
            .nodes
            .iter()
            .filter(|&&n| !matches!(node(n).op, Op::View(_) | Op::Scalar(_)))
            .map(|&n| node(n).op.name())
            .collect();
        let root = node(kernel.outputs[0].node);
        let each = |count: &dyn Fn(&Kernel) -> usize| parts.iter().map(|p| count(&p.kernel)).sum();
        self.kernels.push(KernelReport {
            kind: kind(kernel),
            parts: parts.len(),
            ops: if ops.is_empty() { vec![root.op.name()] } else { ops },
            loops: format!("{:?} x {:?}", kernel.outer, kernel.inner),
            bytes_read: each(&|k| k.reads().iter().map(|&n| node(n).bytes()).sum()),
            bytes_written: each(&|k| match k.shift {
                Some(_) => k.rows() * k.row_len() * root.dtype.size(),
                None => k.outputs.iter().map(|o| node(o.node).bytes()).sum(),
            }),
            flops: each(&Kernel::operations),
            in_place: parts.iter().map(|p| p.in_place.len()).sum(),
            site: root.site.to_string(),
        });
    }

    /// Bytes that are read and written, and operations.
    pub fn cost(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.bytes_read + kernel.bytes_written + kernel.flops).sum()
    }

    pub fn edge(&mut self, graph: &Snapshot, node: u32, reader: u32, reason: &str) {
        let name = |n: u32| {
            let node = &graph.entries[n as usize].node;
            format!("{} {}", node.op.name(), node.shape)
        };
        self.edges.push(format!("{} is stored for {}: {reason}", name(node), name(reader)));
    }
}

fn kind(kernel: &Kernel) -> &'static str {
    let folds = kernel.has_reduce();
    let elements = kernel.outputs.iter().any(|o| kernel.values[o.value as usize].level == Level::Element);
    match kernel.gemm {
        _ if kernel.scatter.is_some() => "scatter",
        _ if kernel.attention.is_some() => "attention",
        Some(_) => "matmul",
        None if folds && elements => "rows",
        None if folds => "reduce",
        None => "map",
    }
}

impl Kernel {
    /// Arithmetic operations, a transcendental function counted as eight.
    pub fn operations(&self) -> usize {
        let (rows, elements) = (self.rows(), self.rows() * self.row_len());
        let of_values: usize = self
            .values
            .iter()
            .map(|v| {
                let (weight, level) = match v.op {
                    ValueOp::Elementwise { op, .. } => (op_weight(op), v.level),
                    ValueOp::Reduce { .. } => (1, Level::Element),
                    ValueOp::Finish { .. } => (1, Level::Row),
                    ValueOp::Random { .. } => (60, v.level),
                    _ => (0, v.level),
                };
                weight * [1, rows, elements][level as usize]
            })
            .sum();
        let of_product = self.gemm.as_ref().map_or(0, |g| 2 * g.m * g.n * g.k * g.products());
        let of_scatter = self.scatter.as_ref().map_or(0, |s| s.extents.iter().product());
        let of_attention = self.attention.as_ref().map_or(0, |a| a.operations());
        of_values + of_product + of_scatter + of_attention
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} kernel{}", self.kernels.len(), if self.kernels.len() == 1 { "" } else { "s" })?;
        for (i, kernel) in self.kernels.iter().enumerate() {
            writeln!(f, "  {i}: {kernel}")?;
        }
        for edge in &self.edges {
            writeln!(f, "  not fused: {edge}")?;
        }
        Ok(())
    }
}

impl Display for KernelReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let place = if self.in_place > 0 { ", in place" } else { "" };
        let parts = if self.parts > 1 { format!(" x{}", self.parts) } else { String::new() };
        write!(
            f,
            "{}{parts} {} [{}]: reads {} B, writes {} B, {} FLOP{place} ({})",
            self.kind,
            self.loops,
            self.ops.join(" "),
            self.bytes_read,
            self.bytes_written,
            self.flops,
            self.site
        )
    }
}
