//! From an attempt's values to a kernel: outputs, levels, merged loops.

use super::{Lowering, RawOp, Stop, Target};
use crate::schedule::access::{Access, collapse};
use crate::schedule::kernel::{Guard, Kernel, Level, Output, Reach, Value, ValueOp, level};
use crate::shape::{Dims, Strides};

impl Lowering<'_, '_> {
    pub(super) fn finish(mut self, target: &Target, value: u32, at: Access) -> Result<Kernel, Stop> {
        let root_at = Access { strides: self.output_strides(target, &at), offset: target.offset };
        let mut outputs = vec![(target.into, value, root_at)];
        for &(node, value, at) in &self.absorbed {
            if !self.covers(&at, self.shape(node).numel()) {
                return Err(Stop::Separate(node));
            }
            outputs.push((node, value, at));
        }
        // Parts that come out of the same kernel lie straight, whatever the loops.
        let siblings = self.attention.iter().flat_map(|(_, siblings)| siblings);
        outputs.extend(siblings.map(|&node| (node, value, root_at)));
        for output in &mut outputs {
            output.1 = self.unrounded(output.1);
        }
        self.nodes.sort_unstable();
        self.nodes.dedup();
        Ok(Kernel { shift: target.shift, ..self.build(outputs) })
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
        let (outer, inner) = (sizes(&extents.outer), sizes(&extents.inner));

        let guard = |&(at, limit): &(Access, usize)| Guard { coordinate: split(&at), limit };
        let guards: Vec<Guard> = self.guards.iter().map(guard).collect();
        let mut renumbered = vec![u32::MAX; self.values.len()];
        let mut values: Vec<Value> = Vec::new();
        for (i, raw) in self.values.iter().enumerate().filter(|&(i, _)| live[i]) {
            let op = match raw.op {
                RawOp::Load { node, at } => ValueOp::Load { node, reach: split(&at) },
                RawOp::Padded { node, at, first, count } => ValueOp::Padded { node, reach: split(&at), first, count },
                RawOp::Index { at } => ValueOp::Index { reach: split(&at) },
                RawOp::Gather { node, at, index, stride, limit } => {
                    ValueOp::Gather { node, reach: split(&at), index: renumbered[index as usize], stride, limit }
                }
                RawOp::Plain(op) => renumber(op, &renumbered),
            };
            renumbered[i] = values.len() as u32;
            let level = match level(&op, &values, &guards) {
                Level::Row if !reduces && !self.loops.nested => Level::Element,
                level => level,
            };
            values.push(Value { op, dtype: raw.dtype, level, node: raw.node });
        }
        let entries = &self.context.graph.entries;
        let outputs: Vec<Output> = outputs
            .into_iter()
            .map(|(node, value, at)| {
                let dtype = entries[node as usize].node.dtype;
                Output { value: renumbered[value as usize], node, dtype, reach: split(&at) }
            })
            .collect();
        let gemm = self.gemm.map(|node| self.product(node));
        let repeated =
            self.accesses.iter().filter(|(node, at)| self.repeats(*node, at)).map(|&(node, _)| node).collect();
        let (scatter, attention) = (self.scatter, self.attention.map(|(attention, _)| attention));
        let nodes = self.nodes;
        let shift = None;
        let mut kernel =
            Kernel { outer, inner, values, outputs, guards, gemm, scatter, attention, shift, nodes, repeated };
        merge_loops(&mut kernel);
        kernel
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
fn merge_loops(kernel: &mut Kernel) {
    let (mut outer, mut inner) = (kernel.outer, kernel.inner);
    let mut reaches: Vec<&mut Reach> = kernel.reaches().collect();
    let mut sides: Vec<&mut Strides> = reaches.iter_mut().map(|r| &mut r.outer).collect();
    collapse(&mut outer, &mut sides);
    let mut sides: Vec<&mut Strides> = reaches.iter_mut().map(|r| &mut r.inner).collect();
    collapse(&mut inner, &mut sides);
    (kernel.outer, kernel.inner) = (outer, inner);
}
