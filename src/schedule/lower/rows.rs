//! Reductions inside a kernel: what its rows are.

use super::{FEW_ROWS, LONG_ROW, Loops, Lowering, MAX_VALUES, RawOp, Stop};
use crate::graph::{Node, Op};
use crate::ops::Reduction;
use crate::schedule::access::Access;
use crate::schedule::kernel::ValueOp;
use crate::shape::Strides;

impl Lowering<'_, '_> {
    pub(super) fn reduce(&mut self, node: u32, op: Reduction, axes: u8, input: u32, at: Access) -> Result<u32, Stop> {
        if let Some(product) = self.gemm {
            // One that was only computed on the way gives way to rows of what it was computed for.
            let folds = |&owner: &u32| self.shape(node).numel() > 1 && self.reaches(input, owner, &|_| true);
            if let Some(owner) = self.gemm_owner.filter(folds) {
                return Err(Stop::Separate(owner));
            }
            // Rows of the product itself: their kernel reads it. Anything else is computed before.
            let store = if self.reaches(input, product, &|_| true) { product } else { node };
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
        let fits = !per_element || over == self.loops.extents.iter().product::<usize>();
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
