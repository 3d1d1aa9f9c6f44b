//! The planner: which nodes get a buffer, which kernels compute them, in which order, and when each
//! buffer comes and goes.
//!
//! Nodes are visited from the roots down. Each stored node becomes the root of a kernel, which takes
//! in as much of the graph below as it can. What ends an attempt stores one more node further down
//! and tries again; so when a node's turn comes, everyone who reads it is known.

use super::access::strided_base;
use super::explain::Report;
use super::group;
use super::kernel::{Kernel, Shift};
use super::lower::{Context, Loops, Stop, Target, lower};
use super::saved::saved;
use crate::error::{Error, Result};
use crate::graph::{Entry, Op, Snapshot};
use crate::ops::Elementwise;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pending ops below a held node from which on it is stored when it is computed.
const HELD_DEPTH: u32 = 8;

/// Bytes that do not count when a value is computed again: a launch costs more.
const FEW_BYTES: usize = 1024;

/// What a plan depends on beside the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Off: every op is a kernel of its own.
    pub fuse: bool,
}

/// Launches in order, and the memory they need.
pub(crate) struct Plan {
    /// The kernels of each launch: one, or several that are alike and do not depend on one another.
    pub steps: Vec<Vec<Part>>,
    /// Bytes of each piece of memory to allocate. Stored nodes share one when their lives do not meet.
    pub slots: Vec<usize>,
    /// Stored nodes that outlive the plan: roots, and what someone holds.
    pub kept: Vec<u32>,
    /// Roots that are plain reshapes of a stored node share its buffer: (root, node).
    pub shared: Vec<(u32, u32)>,
    pub report: Report,
}

/// One kernel of a plan.
pub(crate) struct Part {
    pub kernel: Kernel,
    /// Where each output goes, the first time that it is written.
    pub outputs: Vec<(u32, Source)>,
    /// Outputs written over an input.
    pub in_place: Vec<u32>,
}

/// Where a stored node's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A slot of the plan.
    Slot(u32),
    /// The buffer of a leaf that nobody will read again.
    Leaf(u32),
}

/// Plans the evaluation of a graph's roots.
///
/// # Errors
/// [`Error::Internal`] if no kernel can be found for a node.
pub(crate) fn plan(graph: &Snapshot, options: &Options) -> Result<Plan> {
    let mut planner = Planner::new(graph, options);
    planner.share_roots();
    for node in (0..graph.entries.len() as u32).rev() {
        if planner.needs_kernel(node) {
            planner.build(node)?;
        }
    }
    let order = planner.order()?;
    Ok(planner.finish(order))
}

struct Planner<'g> {
    graph: &'g Snapshot,
    options: &'g Options,
    stored: Vec<bool>,
    consumers: Vec<Vec<u32>>,
    params: FxHashMap<u32, u32>,
    kernels: Vec<Kernel>,
    /// Kernel that writes each stored node (the last of its parts).
    producer: FxHashMap<u32, Vec<usize>>,
    shared: Vec<(u32, u32)>,
    /// Stored nodes that derivatives will read.
    saved: Vec<bool>,
    report: Report,
}

impl<'g> Planner<'g> {
    fn new(graph: &'g Snapshot, options: &'g Options) -> Self {
        let pending = |i: usize| !graph.entries[i].realized;
        let transparent = |i: usize| matches!(graph.entries[i].node.op, Op::Scalar(_) | Op::View(_));
        let alone = |i: usize| matches!(graph.entries[i].node.op, Op::Attention(_) | Op::Update { .. });
        // What someone holds may be asked for later. A short chain is then computed again; a long one is
        // stored on the way, or a state that is only ever read through a loss would grow for ever.
        let worth_keeping = |i: usize| {
            let entry = &graph.entries[i];
            entry.held && entry.node.depth() > HELD_DEPTH && is_computed(&entry.node.op)
        };
        let mut stored: Vec<bool> = (0..graph.entries.len())
            .map(|i| {
                !pending(i)
                    || graph.entries[i].root
                    || alone(i)
                    || worth_keeping(i)
                    || (!options.fuse && !transparent(i))
            })
            .collect();
        let mut report = Report::default();
        for (node, reader) in operands_in_memory(graph) {
            if !std::mem::replace(&mut stored[node as usize], true) {
                report.edge(graph, node, reader, "a product or a gather reads it from memory");
            }
        }
        for (node, reader) in converted_biases(graph).filter(|_| options.fuse) {
            if !std::mem::replace(&mut stored[node as usize], true) {
                report.edge(graph, node, reader, "a product adds it in its own dtype");
            }
        }
        let saved = saved(graph, &stored);
        stored.iter_mut().zip(&saved).for_each(|(stored, saved)| *stored |= saved);
        let mut consumers = vec![Vec::new(); graph.entries.len()];
        let (mut params, mut count) = (FxHashMap::default(), 0);
        for (i, entry) in graph.entries.iter().enumerate() {
            entry.inputs.iter().for_each(|&input| consumers[input as usize].push(i as u32));
            let taken = match entry.node.op {
                Op::Scalar(_) | Op::Update { .. } => 1,
                Op::Random { .. } => 2,
                _ => 0,
            };
            if pending(i) && taken > 0 {
                params.insert(i as u32, count);
                count += taken;
            }
        }
        let (kernels, producer, shared) = (Vec::new(), FxHashMap::default(), Vec::new());
        Planner { graph, options, stored, consumers, params, kernels, producer, shared, saved, report }
    }

    /// A root that is a reshape of another node needs no kernel of its own: it shares the buffer, and
    /// kernels that read it look through it.
    fn share_roots(&mut self) {
        for &root in &self.graph.roots {
            let mut base = root;
            while let Some(input) = self.reshape_of(base) {
                base = input;
            }
            if base != root {
                self.shared.push((root, base));
            }
        }
        self.shared.iter().for_each(|&(root, _)| self.stored[root as usize] = false);
        self.shared.iter().for_each(|&(_, base)| self.stored[base as usize] = true);
    }

    /// What a pending node is a plain reshape of.
    fn reshape_of(&self, node: u32) -> Option<u32> {
        let entry = &self.graph.entries[node as usize];
        let (Op::View(view), Some(&base)) = (entry.node.op, entry.inputs.first()) else { return None };
        let numel = entry.node.shape.numel();
        let whole = view.offset == 0
            && self.graph.entries[base as usize].node.shape.numel() == numel
            && entry.node.shape.is_contiguous(&view.strides);
        whole.then_some(base)
    }

    fn needs_kernel(&self, node: u32) -> bool {
        let i = node as usize;
        self.stored[i] && !self.graph.entries[i].realized && !self.producer.contains_key(&node)
    }

    /// Builds the kernels that compute `node`: one, one a part of a concatenation, or one behind a copy of what it updates.
    fn build(&mut self, node: u32) -> Result<()> {
        let entry = &self.graph.entries[node as usize];
        let strides = entry.node.shape.contiguous_strides();
        let whole = |node: u32, of: u32| Target { node: of, into: node, strides, offset: 0, shift: None };
        if let (Op::Update { axis, .. }, &[old, new]) = (entry.node.op, &entry.inputs[..]) {
            if !self.takes_over(old) {
                self.build_target(&whole(node, old))?;
            }
            let (stride, rows) = (strides[axis as usize], entry.node.shape.dims()[axis as usize]);
            let shift = self.params.get(&node).map(|&param| Shift { param, stride, rows });
            return self.build_target(&Target { shift, ..whole(node, new) });
        }
        let Op::Cat { axis } = entry.node.op else {
            return self.build_target(&whole(node, node));
        };
        let mut offset = 0;
        for &input in &entry.inputs {
            self.build_target(&Target { offset, ..whole(node, input) })?;
            offset +=
                self.graph.entries[input as usize].node.shape.dims()[axis as usize] as isize * strides[axis as usize];
        }
        Ok(())
    }

    /// Whether the reader of a leaf may write over it: nobody else can ask for it, not even if the evaluation fails, as
    /// rows that were updated once are updated again.
    fn takes_over(&self, leaf: u32) -> bool {
        let entry = &self.graph.entries[leaf as usize];
        self.options.fuse && entry.realized && entry.donatable && self.consumers[leaf as usize].len() == 1
    }

    fn build_target(&mut self, target: &Target) -> Result<()> {
        let start = Loops::over(&self.graph.entries[target.node as usize].node.shape);
        let (mut loops, mut absorb, mut separate) = (start, true, FxHashSet::default());
        // Each round stores a node, separates one or refines the loops: none can go on for ever.
        for _ in 0..4 * self.graph.entries.len() + 64 {
            let stop = match self.attempt(target, &loops, absorb, &separate) {
                Ok(kernel) => match self.objection(target, &kernel) {
                    Some(stop) => stop,
                    None => {
                        self.accept(kernel);
                        return Ok(());
                    }
                },
                Err(stop) => stop,
            };
            loops = if let Stop::Reshape(next) = stop { next } else { start };
            let progress = match stop {
                Stop::Reshape(_) => true,
                Stop::Separate(n) | Stop::Store(n, _) if n == target.into => self.store_below(target.node),
                Stop::Separate(n) | Stop::Store(n, _) if self.stored[n as usize] => {
                    separate.insert(n) || self.store_below(target.node)
                }
                Stop::Separate(n) => self.store(n, target.node, "the kernel would touch too many buffers"),
                Stop::Store(n, reason) => self.store(self.epilogue_end(n, target.node), target.node, reason),
            };
            // With nothing left to store, it can only be what is computed on the way.
            if !progress && !std::mem::replace(&mut absorb, false) {
                break;
            }
        }
        let node = &self.graph.entries[target.node as usize].node;
        let (op, shape, site) = (node.op.name(), node.shape, node.site);
        Err(Error::internal("schedule::plan", format!("no kernel for {op} {shape}, made at {site}")))
    }

    fn attempt(&self, target: &Target, loops: &Loops, absorb: bool, separate: &FxHashSet<u32>) -> Result<Kernel, Stop> {
        let whole = target.node == target.into;
        let absorbable = |node: u32| {
            let computed = is_computed(&self.graph.entries[node as usize].node.op);
            whole
                && absorb
                && self.options.fuse
                && computed
                && !self.producer.contains_key(&node)
                && !separate.contains(&node)
        };
        let context =
            Context { graph: self.graph, stored: &self.stored, absorbable: &absorbable, params: &self.params };
        lower(&context, target, loops)
    }

    fn store(&mut self, node: u32, reader: u32, reason: &'static str) -> bool {
        self.stored[node as usize] = true;
        self.report.edge(self.graph, node, reader, reason);
        true
    }

    /// What to store for a product that has no place in the kernel of `reader`: a sum with something of its size, or with
    /// what is in memory, that several read, if it comes to that elementwise, since its kernel can compute that on the
    /// way; else the product.
    fn epilogue_end(&self, product: u32, reader: u32) -> u32 {
        let mut end = product;
        if !matches!(self.graph.entries[product as usize].node.op, Op::Matmul) {
            return product;
        }
        let numel = self.graph.entries[product as usize].node.shape.numel();
        while let &[next] = &self.consumers[end as usize][..] {
            let entry = &self.graph.entries[next as usize];
            let goes_on = match entry.node.op {
                Op::Elementwise(_) | Op::Cast => entry.node.shape.numel() == numel,
                Op::View(_) => self.reshape_of(next).is_some(),
                _ => false,
            };
            if !goes_on || next == reader || self.stored[next as usize] {
                return product;
            }
            end = next;
        }
        let whole = |&&input: &&u32| self.graph.entries[input as usize].node.shape.numel() == numel;
        let entry = &self.graph.entries[end as usize];
        let is_sum = matches!(entry.node.op, Op::Elementwise(Elementwise::Add));
        let is_there = |input: &u32| whole(&input) || self.stored[*input as usize];
        if is_sum && entry.inputs.iter().all(is_there) { end } else { product }
    }

    /// Stores an operand of `node`, so that its kernel gets smaller; false if there is none left.
    fn store_below(&mut self, node: u32) -> bool {
        let mut list: Vec<u32> = self.graph.entries[node as usize].inputs.to_vec();
        while let Some(input) = list.pop() {
            if self.stored[input as usize] {
                continue;
            }
            match self.graph.entries[input as usize].node.op {
                Op::Scalar(_) | Op::Iota => {}
                Op::View(_) => list.extend(&self.graph.entries[input as usize].inputs),
                _ => return self.store(input, node, "the kernel would touch too many buffers"),
            }
        }
        false
    }

    /// Why a kernel that could be built should not be.
    fn objection(&self, target: &Target, kernel: &Kernel) -> Option<Stop> {
        if !self.options.fuse {
            return None;
        }
        let outputs: Vec<u32> = kernel.outputs.iter().map(|o| o.node).collect();
        if let Some(&absorbed) = outputs[1..].iter().find(|&&node| self.would_wait_for(kernel, node)) {
            return Some(Stop::Separate(absorbed));
        }
        // Elements of padded operands are stored by rows, and folded across them afterwards.
        let padded = kernel.values.iter().any(|v| matches!(v.op, super::ValueOp::Padded { .. }));
        if padded && kernel.reads_across() {
            let by_element = |o: &&super::Output| kernel.output_level(o) == super::Level::Element;
            if let Some(output) = kernel.outputs[1..].iter().find(by_element) {
                return Some(Stop::Separate(output.node));
            }
        }
        let mut outside: FxHashMap<u32, bool> = FxHashMap::default();
        for &node in kernel.nodes.iter().rev() {
            let used = self.consumers[node as usize].iter().any(|c| match kernel.nodes.binary_search(c) {
                Ok(_) => {
                    matches!(self.graph.entries[*c as usize].node.op, Op::View(_)) && outside.get(c) == Some(&true)
                }
                Err(_) => *c != target.into,
            });
            outside.insert(node, used);
            let transparent =
                matches!(self.graph.entries[node as usize].node.op, Op::View(_) | Op::Scalar(_) | Op::Iota);
            if transparent || outputs.contains(&node) {
                continue;
            }
            let repeated = kernel.repeated.contains(&node);
            if (used || repeated) && self.recomputed(node, repeated && !used, false).is_none() {
                let reason = if used { "several kernels read it" } else { "it would be computed more than once" };
                // Elements that are cheap but for a fold of their row: the fold takes less memory than they do.
                let fold = self.recomputed(node, false, true).and_then(|recomputed| recomputed.fold);
                return Some(Stop::Store(fold.unwrap_or_else(|| self.before_widening(node)), reason));
            }
        }
        None
    }

    /// What to store for `node`: of a conversion to a wider dtype, what is converted.
    fn before_widening(&self, node: u32) -> u32 {
        let entry = &self.graph.entries[node as usize];
        let (Op::Cast, Some(&input)) = (entry.node.op, entry.inputs.first()) else { return node };
        let from = &self.graph.entries[input as usize].node;
        let widens = from.dtype.is_narrow() && entry.node.dtype.is_float() && is_computed(&from.op);
        if widens && !self.stored[input as usize] { input } else { node }
    }

    /// Whether something that `kernel` reads needs `node`, which it would write.
    fn would_wait_for(&self, kernel: &Kernel, node: u32) -> bool {
        let mut list = kernel.reads();
        let mut seen = FxHashSet::default();
        while let Some(next) = list.pop() {
            if !seen.insert(next) || self.graph.entries[next as usize].realized {
                continue;
            }
            if next == node {
                return true;
            }
            match self.producer.get(&next) {
                Some(kernels) => kernels.iter().for_each(|&k| list.extend(self.kernels[k].reads())),
                None => list.extend(&self.graph.entries[next as usize].inputs),
            }
        }
        false
    }

    /// Whether computing `node` again moves no more bytes than storing it and reading it back, at little
    /// arithmetic. With `free`, bytes do not count: it is computed again in the same kernel. With `folds`, those that are
    /// far smaller than the node count as stored.
    fn recomputed(&self, node: u32, free: bool, folds: bool) -> Option<Recomputed> {
        const SMALLER: usize = 16;
        let mut fold = None;
        let numel = |node: u32| self.graph.entries[node as usize].node.shape.numel();
        let (mut weight, mut once, mut bytes) = (0, 0, 0);
        let (mut list, mut seen) = (vec![node], FxHashSet::default());
        while let Some(next) = list.pop() {
            if !seen.insert(next) {
                continue;
            }
            let entry = &self.graph.entries[next as usize];
            if self.stored[next as usize] && next != node {
                bytes += entry.node.bytes();
                continue;
            }
            if folds && matches!(entry.node.op, Op::Reduce { .. }) && numel(next) * SMALLER <= numel(node) {
                bytes += entry.node.bytes();
                fold = Some(next);
                continue;
            }
            let of_op = match entry.node.op {
                Op::Elementwise(op) => op_weight(op),
                Op::Scalar(_) | Op::View(_) | Op::Iota => 0,
                Op::Cast | Op::Copy | Op::Bound { .. } => 1,
                Op::Gather { .. } => 3,
                Op::Pad { .. } => 2,
                Op::Random { .. } if free => 0,
                _ => return None,
            };
            // What is computed once a launch costs less than a launch of its own.
            let sum = if entry.node.shape.numel() == 1 { &mut once } else { &mut weight };
            *sum += of_op;
            list.extend(&entry.inputs);
        }
        let budget = if free { 3 } else { 10 };
        let few = free || bytes <= (2 * self.graph.entries[node as usize].node.bytes()).max(FEW_BYTES);
        (weight <= budget && once <= 64 && few).then_some(Recomputed { fold })
    }

    fn accept(&mut self, kernel: Kernel) {
        let at = self.kernels.len();
        for output in &kernel.outputs {
            self.producer.entry(output.node).or_default().push(at);
            self.stored[output.node as usize] = true;
        }
        self.kernels.push(kernel);
    }

    /// Launches so that each kernel stands behind those it reads from; among equals, in graph order.
    /// Small kernels that are alike wait for one another, to go in one launch.
    fn order(&self) -> Result<Vec<Vec<usize>>> {
        let mut waits = vec![0usize; self.kernels.len()];
        let mut wakes = vec![Vec::new(); self.kernels.len()];
        for (k, kernel) in self.kernels.iter().enumerate() {
            // An update comes behind the copy of what it updates.
            let copies = self.producer.get(&kernel.outputs[0].node).filter(|_| kernel.shift.is_some());
            for &before in copies.into_iter().flatten().filter(|&&before| before < k) {
                waits[k] += 1;
                wakes[before].push(k);
            }
            for before in kernel.reads().iter().filter_map(|node| self.producer.get(node)).flatten() {
                debug_assert_ne!(*before, k, "a kernel reads what it writes");
                waits[k] += 1;
                wakes[*before].push(k);
            }
        }
        let groups = self.groups();
        let rank = |k: usize| (groups[k].is_some_and(|g| g.patient), self.kernels[k].outputs[0].node, k);
        let mut ready: BinaryHeap<_> =
            (0..self.kernels.len()).filter(|&k| waits[k] == 0).map(|k| Reverse(rank(k))).collect();
        let mut order = Vec::with_capacity(self.kernels.len());
        let mut done = 0;
        while let Some(Reverse((.., first))) = ready.pop() {
            let mut step = vec![first];
            if let Some(group) = groups[first] {
                let alike =
                    |&Reverse((.., k)): &Reverse<(bool, u32, usize)>| groups[k].is_some_and(|g| g.id == group.id);
                let (mates, rest): (Vec<_>, Vec<_>) = ready.into_vec().into_iter().partition(alike);
                ready = rest.into();
                step.extend(mates.into_iter().map(|Reverse((.., k))| k));
                step.sort_unstable_by_key(|&k| rank(k));
            }
            for &next in step.iter().flat_map(|&k| &wakes[k]) {
                waits[next] -= 1;
                if waits[next] == 0 {
                    ready.push(Reverse(rank(next)));
                }
            }
            done += step.len();
            order.push(step);
        }
        let complete = done == self.kernels.len();
        if complete { Ok(order) } else { Err(Error::internal("schedule::plan", "kernels wait for each other")) }
    }

    /// Which kernels may share a launch.
    fn groups(&self) -> Vec<Option<group::Membership>> {
        if !self.options.fuse {
            return vec![None; self.kernels.len()];
        }
        let temporary = |node: u32| match self.graph.entries[node as usize].realized {
            true => 0,
            false => self.graph.entries[node as usize].node.bytes(),
        };
        group::memberships(&self.kernels, &temporary, &|node| self.graph.entries[node as usize].node.dtype)
    }

    fn is_kept(&self, node: u32) -> bool {
        let entry = &self.graph.entries[node as usize];
        entry.root || entry.held || self.saved[node as usize] || self.shared.iter().any(|&(_, base)| base == node)
    }

    fn finish(mut self, order: Vec<Vec<usize>>) -> Plan {
        let mut kernels: Vec<Option<Kernel>> = std::mem::take(&mut self.kernels).into_iter().map(Some).collect();
        let ordered: Vec<Vec<Kernel>> =
            order.into_iter().map(|step| step.into_iter().filter_map(|k| kernels[k].take()).collect()).collect();
        let mut last_use: FxHashMap<u32, usize> = FxHashMap::default();
        for (at, kernel) in ordered.iter().enumerate().flat_map(|(at, step)| step.iter().map(move |k| (at, k))) {
            last_use.extend(kernel.reads().into_iter().map(|node| (node, at)));
            last_use.extend(kernel.outputs.iter().map(|o| (o.node, at)));
        }
        // An evaluation that fails for an index leaves the graph as it was: nothing is written over before all were read.
        let last_fault = ordered.iter().rposition(|step| step.iter().any(Kernel::can_fault));
        let mut memory = Memory::default();
        let mut kept = Vec::new();
        let mut steps = Vec::with_capacity(ordered.len());
        for (at, step) in ordered.into_iter().enumerate() {
            let dies = |node: u32| last_use.get(&node) == Some(&at) && !self.is_kept(node);
            // What several parts read is nobody's to take.
            let mut readers: FxHashMap<u32, usize> = FxHashMap::default();
            step.iter().flat_map(Kernel::reads).for_each(|node| *readers.entry(node).or_default() += 1);
            let mut taken = Vec::new();
            let mut parts = Vec::with_capacity(step.len());
            for kernel in step {
                let (mut outputs, mut in_place) = (Vec::new(), Vec::new());
                for output in &kernel.outputs {
                    if memory.home.contains_key(&output.node) {
                        continue;
                    }
                    let may_take = |node: u32| {
                        let entry = &self.graph.entries[node as usize];
                        let free = !entry.realized || (entry.donatable && Some(at) > last_fault);
                        dies(node) && readers[&node] == 1 && !taken.contains(&node) && free
                    };
                    let updated = kernel.shift.map(|_| self.graph.entries[output.node as usize].inputs[0]);
                    let donor = updated.or_else(|| donor(&kernel, output, self.graph, &may_take));
                    let bytes = self.graph.entries[output.node as usize].node.bytes();
                    let source = match donor {
                        Some(node) => memory.home.get(&node).copied().unwrap_or(Source::Leaf(node)),
                        None => memory.take(bytes, self.is_kept(output.node)),
                    };
                    if let Some(node) = donor {
                        taken.push(node);
                        if updated.is_none() {
                            in_place.push(output.node);
                        }
                    }
                    memory.home.insert(output.node, source);
                    outputs.push((output.node, source));
                    if self.is_kept(output.node) {
                        kept.push(output.node);
                    }
                }
                parts.push(Part { kernel, outputs, in_place });
            }
            let mut used: Vec<u32> = parts.iter().flat_map(|p| p.kernel.reads()).collect();
            used.extend(parts.iter().flat_map(|p| p.kernel.outputs.iter().map(|o| o.node)));
            used.sort_unstable();
            used.dedup();
            used.into_iter().filter(|&node| dies(node) && !taken.contains(&node)).for_each(|node| memory.give(node));
            self.report.launch(self.graph, &parts);
            steps.push(parts);
        }
        Plan { steps, slots: memory.slots, kept, shared: self.shared, report: self.report }
    }
}

/// A node that is computed again where it is read.
struct Recomputed {
    /// A fold that has to be stored for that.
    fold: Option<u32>,
}

/// Memory that plan nodes take and give back.
#[derive(Default)]
struct Memory {
    slots: Vec<usize>,
    free: Vec<u32>,
    home: FxHashMap<u32, Source>,
}

impl Memory {
    /// A free slot that fits, or a new one. What outlives the plan does not keep more than it needs.
    fn take(&mut self, bytes: usize, kept: bool) -> Source {
        let fits = |&slot: &u32| {
            let size = self.slots[slot as usize];
            size == bytes || (!kept && size > bytes && size <= 2 * bytes)
        };
        let best = self.free.iter().copied().filter(fits).min_by_key(|&slot| self.slots[slot as usize]);
        if let Some(slot) = best {
            self.free.retain(|&free| free != slot);
            return Source::Slot(slot);
        }
        self.slots.push(bytes);
        Source::Slot(self.slots.len() as u32 - 1)
    }

    fn give(&mut self, node: u32) {
        if let Some(Source::Slot(slot)) = self.home.get(&node) {
            self.free.push(*slot);
        }
    }
}

/// What products, gathers, pads and scatters read: the node that gets a buffer for it, and the reader.
fn operands_in_memory(graph: &Snapshot) -> Vec<(u32, u32)> {
    let base = |node: u32| strided_base(graph, node, &|n| graph.entries[n as usize].root).0;
    let mut list = Vec::new();
    for (reader, entry) in graph.entries.iter().enumerate().filter(|(_, e)| !e.realized) {
        let operands = match entry.node.op {
            Op::Matmul | Op::Scatter { .. } | Op::Attention(_) => &entry.inputs[..],
            Op::Gather { .. } | Op::Pad { .. } => &entry.inputs[..1],
            _ => &[],
        };
        list.extend(operands.iter().map(|&node| (base(node), reader as u32)));
    }
    list
}

/// Conversions of vectors that are added to the rows of products, which libraries want in the product's dtype, and their
/// readers. They are as cheap to store as to compute.
fn converted_biases(graph: &Snapshot) -> impl Iterator<Item = (u32, u32)> {
    let is_product = |node: u32| matches!(graph.entries[node as usize].node.op, Op::Matmul);
    let bias = move |(reader, entry): (usize, &Entry)| {
        let (Op::Elementwise(Elementwise::Add), &[x, y]) = (entry.node.op, &entry.inputs[..]) else { return None };
        let (product, bias) = if is_product(x) { (x, y) } else { (y, x) };
        let of = &graph.entries[bias as usize];
        let converted = matches!(of.node.op, Op::Cast) && of.node.shape.rank() == 1 && of.node.dtype.is_narrow();
        let pending = !entry.realized && !of.realized;
        let along = of.node.shape.dims().last() == entry.node.shape.dims().last();
        (pending && is_product(product) && converted && along).then_some((bias, reader as u32))
    };
    graph.entries.iter().enumerate().filter_map(bias)
}

/// Ops that a kernel can compute and store on its way to another value.
fn is_computed(op: &Op) -> bool {
    matches!(op, Op::Elementwise(_) | Op::Cast | Op::Reduce { .. } | Op::Matmul)
}

/// A dying buffer that an output may be written over: a map that reads it exactly where it writes.
fn donor(kernel: &Kernel, output: &super::Output, graph: &Snapshot, may_take: &dyn Fn(u32) -> bool) -> Option<u32> {
    use super::ValueOp;
    if kernel.is_apart() || kernel.has_reduce() || !kernel.outer.is_empty() {
        return None;
    }
    let bytes = graph.entries[output.node as usize].node.bytes();
    kernel.reads().into_iter().find(|&node| {
        let entry = &graph.entries[node as usize];
        let in_place = kernel.values.iter().all(|v| match v.op {
            ValueOp::Load { node: n, reach } if n == node => reach == output.reach,
            ValueOp::Gather { node: n, .. } | ValueOp::Padded { node: n, .. } => n != node,
            _ => true,
        });
        entry.node.bytes() == bytes && entry.node.dtype.size() == output.dtype.size() && in_place && may_take(node)
    })
}

/// Rough cost of an op in simple instructions.
pub(crate) fn op_weight(op: Elementwise) -> usize {
    use Elementwise::*;
    match op {
        Exp | Exp2 | Expm1 | Ln | Log2 | Log10 | Log1p | Sin | Cos | Tan | Tanh | Erf | Sigmoid | Softplus | Silu
        | Gelu | GeluErf | Elu | Pow | Rem => 8,
        Div | Recip | Sqrt | Rsqrt => 2,
        _ => 1,
    }
}
