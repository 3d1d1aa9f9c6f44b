//! Running a [`Program`]: the tile interpreter.
//!
//! Results do not depend on the number of threads: lanes, segments and the order in which partial
//! folds are combined follow from the kernel alone; threads only decide who computes which.

use super::faults::{Fault, Faults, read_index};
use super::gemm::{Accumulator, Gemm, Mat, Sink, gemm, prefetch, prefetch_far};
use super::program::{
    BLOCK_LANES, BLOCK_ROWS, Fold, LANE_SEGMENT, Mode, PANEL_STRIDE, Phase, Product, Program, SEGMENT, Slot, Step, TILE,
};
use super::tile::{TileFn, best_layout};
use super::worker::{Worker, spread};
use super::{threads, walk};
use crate::dtype::DType;
use crate::graph::Scalar;
use smallvec::SmallVec;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rough instructions below which a launch stays on the calling thread: waking another takes
/// microseconds.
pub const PARALLEL_WORK: usize = 1 << 16;
/// Rough instructions that make a job of their own.
const JOB_WORK: usize = 1 << 15;

/// Bytes of a panel, of elements of any dtype.
const PANEL_BYTES: usize = 8 * BLOCK_ROWS * PANEL_STRIDE;

/// Memory of one buffer. Which thread touches which part of it follows from the program.
#[derive(Clone, Copy)]
struct Memory(*mut u8);

// SAFETY: jobs of a launch write disjoint parts of the outputs (each element has one job) and only
// read inputs, which nobody writes meanwhile: see `Launch::new`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// One run of a program.
pub(crate) struct Launch<'p> {
    program: &'p Program,
    buffers: Vec<Memory>,
    params: &'p [Scalar],
    /// The integers among the params, where loops read them from memory.
    integers: Vec<i64>,
    faults: Faults,
    /// One array a [`super::program::Finish`]: its value in each row.
    notes: Vec<Memory>,
    id: u64,
}

thread_local! {
    static WORKER: Cell<Option<Box<Worker>>> = const { Cell::new(None) };
}

/// Where a tile lies: `n` lanes from `start`, at step `other` of the loops across and the `rows - 1` after it.
#[derive(Clone, Copy)]
struct Scope {
    other: usize,
    start: usize,
    n: usize,
    rows: usize,
}

impl Scope {
    /// Its rows by themselves, counted from 0.
    fn each(self) -> impl Iterator<Item = (usize, Scope)> {
        (0..self.rows).map(move |r| (r, Scope { other: self.other + r, rows: 1, ..self }))
    }
}

impl<'p> Launch<'p> {
    /// Binds a program to buffers.
    ///
    /// # Safety
    /// `buffers[i]` is the memory of node `program.buffers[i]`: large enough for it and aligned, inputs
    /// initialised, and not written by anyone else until [`Launch::run`] returns. An output may share
    /// an input's memory only if the program was compiled with it in `in_place`.
    pub unsafe fn new(program: &'p Program, buffers: &[*mut u8], params: &'p [Scalar]) -> Self {
        static LAUNCHES: AtomicU64 = AtomicU64::new(1);
        let integers = params.iter().map(|p| if let Scalar::Int(i) = p { *i } else { 0 }).collect();
        Launch {
            program,
            buffers: buffers.iter().map(|&b| Memory(b)).collect(),
            params,
            integers,
            faults: Faults::default(),
            notes: Vec::new(),
            id: LAUNCHES.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Runs it; returns when every output is written.
    ///
    /// # Errors
    /// The first index that was out of range; outputs then hold unspecified values.
    pub fn run(mut self) -> Result<(), Fault> {
        let program = self.program;
        if let Some((scatter, [source, index, out])) = &program.scatter {
            let memory = |buffer: &usize| self.buffers[*buffer].0;
            // SAFETY: the buffers are the kernel's, whose strides the verifier found inside them.
            unsafe { super::scatter::run(scatter, memory(source), memory(index), memory(out), &self.faults) };
            return self.faults.first();
        }
        if let Some((attention, [inputs, outputs], isa)) = &program.attention {
            let inputs = inputs.iter().map(|&i| self.buffers[i].0.cast_const()).collect();
            let outputs = outputs.iter().map(|&i| self.buffers[i].0).collect();
            // SAFETY: the buffers are the kernel's, whose strides the verifier found inside them.
            unsafe { super::attention::run(attention, &super::attention::Buffers { inputs, outputs }, *isa) };
            return Ok(());
        }
        let mut notes: Vec<Vec<u64>> = program.finishes.iter().map(|_| vec![0; program.rows]).collect();
        self.notes = notes.iter_mut().map(|n| Memory(n.as_mut_ptr().cast())).collect();
        match (&program.gemm, program.mode) {
            (Some(product), _) => self.product(product),
            (None, Mode::Map) => self.map(),
            (None, Mode::Rows) if self.is_wide() => self.wide(),
            (None, Mode::Rows) => self.rows(),
            (None, Mode::Columns) => self.columns(),
        }
        self.finish();
        drop(notes);
        self.faults.first()
    }

    /// Runs `work` with this thread's worker, set up for this launch.
    fn with_worker<T>(&self, work: impl FnOnce(&mut Worker) -> T) -> T {
        // Taken, not borrowed: a job that runs on the thread that waits for it gets one of its own.
        let mut worker = WORKER.take().unwrap_or_else(|| Box::new(Worker::new()));
        if worker.launch != self.id {
            worker.prepare(self.program, self.id);
            self.steps(&self.program.uniform, &mut worker, Scope { other: 0, start: 0, n: 1, rows: 1 });
        }
        let result = work(&mut worker);
        WORKER.set(Some(worker));
        result
    }

    fn parallel(&self, elements: usize) -> bool {
        elements.saturating_mul(self.program.weight) > PARALLEL_WORK
    }

    /// How many of `count` equal pieces make a job.
    fn pieces_a_job(&self, count: usize, elements_each: usize) -> usize {
        let work = elements_each.saturating_mul(self.program.weight).max(1);
        let fair = count.div_ceil(8 * threads::count());
        JOB_WORK.div_ceil(work).max(fair).max(1)
    }

    fn map(&self) {
        if let Some(row) = self.program.block {
            return self.map_blocks(row);
        }
        let n = self.program.row_len;
        let tiles = n.div_ceil(TILE);
        let each = self.pieces_a_job(tiles, TILE);
        threads::for_each(tiles.div_ceil(each), self.parallel(n), &|job| {
            self.with_worker(|worker| {
                worker.enter(&self.program.phases[0]);
                let end = ((job + 1) * each * TILE).min(n);
                for start in (job * each * TILE..end).step_by(TILE) {
                    let scope = Scope { other: 0, start, n: TILE.min(end - start), rows: 1 };
                    self.steps(&self.program.phases[0].element, worker, scope);
                }
            });
        });
    }

    /// A map over rows of `row` elements that reads across them: blocks of rows, a stretch at a time.
    fn map_blocks(&self, row: usize) {
        let rows = self.program.row_len / row;
        let blocks = rows.div_ceil(BLOCK_ROWS);
        threads::for_each(blocks, self.parallel(self.program.row_len), &|block| {
            self.with_worker(|worker| {
                worker.enter(&self.program.phases[0]);
                let mut panels: Vec<u64> = Vec::with_capacity(self.program.panels.len() * PANEL_BYTES / 8);
                worker.kept = panels.as_mut_ptr().cast();
                let these = block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(rows);
                for first in (0..row).step_by(BLOCK_LANES) {
                    let n = BLOCK_LANES.min(row - first);
                    let (row, rows, row_len, stride) = (these.start, these.len(), row, PANEL_STRIDE);
                    self.load_panels(worker, walk::Panel { row, rows, row_len, first, n, stride });
                    for r in these.clone() {
                        let scope = Scope { other: 0, start: r * row_len + first, n, rows: 1 };
                        self.steps(&self.program.phases[0].element, worker, scope);
                    }
                }
            });
        });
    }

    /// Copies a block of what is read across rows.
    fn load_panels(&self, worker: &Worker, block: walk::Panel) {
        for (i, panel) in self.program.panels.iter().enumerate() {
            let slot = &self.program.slots[panel.slot as usize];
            // SAFETY: the block is inside the loops and the slot's view inside its buffer; there is room for each
            // panel.
            unsafe {
                let memory = self.memory(slot, Scope { other: 0, start: 0, n: 0, rows: 1 });
                let out = worker.kept.add(i * PANEL_BYTES);
                walk::load_panel(out, memory, slot.dtype.size(), &slot.walk, block);
            }
        }
    }

    fn rows(&self) {
        let (rows, row_len, batch) = (self.program.rows, self.program.row_len, self.program.batch);
        let each = self.pieces_a_job(rows, row_len).next_multiple_of(batch);
        threads::for_each(rows.div_ceil(each), self.parallel(rows * row_len), &|job| {
            self.with_worker(|worker| {
                let mut kept = self.kept_memory();
                worker.kept = kept.as_mut_ptr().cast();
                let end = ((job + 1) * each).min(rows);
                for row in (job * each..end).step_by(batch) {
                    self.row(worker, row, batch.min(end - row));
                }
            });
        });
    }

    /// Room for the values that outlive their phase.
    fn kept_memory(&self) -> Vec<u64> {
        Vec::with_capacity(self.program.kept.len() * self.program.kept_stride / 8)
    }

    /// The folds that end with a phase.
    fn folds<'a>(&'a self, phase: &'a Phase) -> impl Iterator<Item = &'a Fold> {
        phase.folds.iter().map(|&f| &self.program.folds[f as usize])
    }

    /// Runs all phases over `rows` rows, one unless they are brief.
    fn row(&self, worker: &mut Worker, row: usize, rows: usize) {
        for phase in &self.program.phases {
            worker.enter(phase);
            self.steps(&phase.row, worker, Scope { other: row, start: 0, n: 1, rows });
            if phase.element.is_empty() {
                continue;
            }
            if self.program.brief {
                self.steps(&phase.element, worker, Scope { other: row, start: 0, n: self.program.row_len, rows });
                continue;
            }
            let segments = self.program.row_len.div_ceil(SEGMENT);
            for segment in 0..segments {
                self.segment(phase, worker, row, segment);
                for fold in self.folds(phase) {
                    self.take_segment(fold, worker, worker.base().wrapping_add(fold.segment), segment, 1);
                }
            }
            self.end_folds(phase, worker, segments, 1);
        }
    }

    /// Runs a phase over one segment of a row; its folds end in the worker's segment places.
    fn segment(&self, phase: &Phase, worker: &mut Worker, row: usize, segment: usize) {
        let (first, end) = (segment * SEGMENT, ((segment + 1) * SEGMENT).min(self.program.row_len));
        for fold in self.folds(phase) {
            worker.clear(fold, fold.segment, 1);
        }
        for start in (first..end).step_by(TILE) {
            self.steps(&phase.element, worker, Scope { other: row, start, n: TILE.min(end - start), rows: 1 });
        }
    }

    /// Takes in the folds of segment `index`, in `lanes` lanes. Like a binary counter: sums of 2^k segments
    /// are added to one another as soon as there are two, so errors grow with the logarithm of the
    /// length, and the order of additions follows from the positions alone.
    fn take_segment(&self, fold: &Fold, worker: &Worker, segment: *const u8, index: usize, lanes: usize) {
        let carries = index.trailing_ones() as usize;
        // SAFETY: the places are laid out for this many lanes and segments; those that are read hold
        // initialised states, as many as `index` has bits.
        unsafe {
            if carries > 0 {
                merge(fold, worker.power(fold, 0), segment, lanes);
                (1..carries).for_each(|k| merge(fold, worker.power(fold, k), worker.power(fold, k - 1), lanes));
            }
            let sum = if carries > 0 { worker.power(fold, carries - 1) } else { segment };
            std::ptr::copy_nonoverlapping(sum, worker.power(fold, carries), lanes * fold.size);
        }
    }

    /// Adds up what [`Launch::take_segment`] left of `segments`, and turns best values into positions.
    fn end_folds(&self, phase: &Phase, worker: &Worker, segments: usize, lanes: usize) {
        for fold in self.folds(phase) {
            // SAFETY: as above; the total has room for the lanes, and so has the value's tile.
            unsafe {
                let mut sum = worker.power(fold, segments.trailing_zeros() as usize);
                for k in segments.trailing_zeros() as usize + 1..segments.ilog2() as usize + 1 {
                    if segments >> k & 1 == 1 {
                        merge(fold, worker.power(fold, k), sum, lanes);
                        sum = worker.power(fold, k);
                    }
                }
                let total = worker.base().add(fold.total);
                std::ptr::copy_nonoverlapping(sum, total, lanes * fold.size);
                if fold.arg.is_some() {
                    let (step, index_at) = best_layout(fold.class);
                    let positions = worker.tiles[fold.value as usize].cast::<i64>();
                    (0..lanes).for_each(|i| *positions.add(i) = *total.add(i * step + index_at).cast::<i64>());
                }
            }
        }
        // What is read by whole tiles next is spread by the next phase's row steps.
    }

    /// Few long rows: the threads share each.
    fn is_wide(&self) -> bool {
        let (rows, row_len) = (self.program.rows, self.program.row_len);
        rows < 2 * threads::count() && row_len > SEGMENT && self.parallel(row_len)
    }

    fn wide(&self) {
        let segments = self.program.row_len.div_ceil(SEGMENT);
        for row in 0..self.program.rows {
            self.wide_phases(Scope { other: row, start: 0, n: 1, rows: 1 }, segments, 1, |phase, worker, segment| {
                self.segment(phase, worker, row, segment);
            });
        }
    }

    /// Runs all phases over the rows of `scope`, the segments of each phase on all threads, `each` a
    /// job. Folds are combined in the order of the segments, as one thread would.
    fn wide_phases(&self, scope: Scope, segments: usize, each: usize, run: impl Fn(&Phase, &mut Worker, usize) + Sync) {
        let mut kept = self.kept_memory();
        let kept = Memory(kept.as_mut_ptr().cast());
        // Bytes a fold and segment.
        let stride = (scope.n * self.program.folds.iter().map(|f| f.size).max().unwrap_or(0)).next_multiple_of(8);
        let mut partials: Vec<u64> = Vec::with_capacity(self.program.folds.len() * segments * stride / 8);
        let partials = Memory(partials.as_mut_ptr().cast());
        let mut main = self.with_worker(|worker| std::mem::replace(worker, Worker::new()));
        main.kept = kept.0;
        let place = |fold: u32, segment: usize| (fold as usize * segments + segment) * stride;
        for phase in &self.program.phases {
            main.enter(phase);
            self.steps(&phase.row, &mut main, scope);
            if phase.element.is_empty() {
                continue;
            }
            let shared = (Memory(main.base()), kept, partials);
            threads::for_each(segments.div_ceil(each), true, &|job| {
                let (fixed, kept, partials) = shared;
                self.with_worker(|worker| {
                    worker.kept = kept.0;
                    worker.adopt(self.program, fixed.0);
                    worker.enter(phase);
                    for segment in job * each..((job + 1) * each).min(segments) {
                        run(phase, worker, segment);
                        for &f in &phase.folds {
                            let fold = &self.program.folds[f as usize];
                            let from = worker.base().wrapping_add(fold.segment);
                            let bytes = scope.n * fold.size;
                            // SAFETY: room for `n` states in both; this segment's part is this job's.
                            unsafe { std::ptr::copy_nonoverlapping(from, partials.0.add(place(f, segment)), bytes) };
                        }
                    }
                });
            });
            for &f in &phase.folds {
                for segment in 0..segments {
                    let from = partials.0.wrapping_add(place(f, segment));
                    self.take_segment(&self.program.folds[f as usize], &main, from, segment, scope.n);
                }
            }
            self.end_folds(phase, &main, segments, scope.n);
        }
    }

    fn columns(&self) {
        let (rows, lanes) = (self.program.rows, self.program.lanes);
        let tiles = rows.div_ceil(lanes);
        let parallel = self.parallel(rows * self.program.row_len);
        let split = parallel && tiles < 4 * threads::count() && self.program.row_len >= 2 * LANE_SEGMENT;
        if split {
            return (0..tiles).for_each(|tile| self.wide_column_tile(tile * lanes, lanes.min(rows - tile * lanes)));
        }
        threads::for_each(tiles, parallel, &|tile| {
            self.with_worker(|worker| {
                let mut kept = self.kept_memory();
                worker.kept = kept.as_mut_ptr().cast();
                self.column_tile(worker, tile * lanes, lanes.min(rows - tile * lanes));
            });
        });
    }

    fn column_tile(&self, worker: &mut Worker, start: usize, n: usize) {
        for phase in &self.program.phases {
            worker.enter(phase);
            self.steps(&phase.row, worker, Scope { other: 0, start, n, rows: 1 });
            if phase.element.is_empty() {
                continue;
            }
            let segments = self.program.row_len.div_ceil(LANE_SEGMENT);
            for segment in 0..segments {
                self.lane_segment(phase, worker, segment, start, n);
                for fold in self.folds(phase) {
                    self.take_segment(fold, worker, worker.base().wrapping_add(fold.segment), segment, n);
                }
            }
            self.end_folds(phase, worker, segments, n);
        }
    }

    /// Runs a phase over one segment of the inner steps, in `n` lanes from row `start` on.
    fn lane_segment(&self, phase: &Phase, worker: &mut Worker, segment: usize, start: usize, n: usize) {
        for fold in self.folds(phase) {
            worker.clear(fold, fold.segment, n);
        }
        let end = ((segment + 1) * LANE_SEGMENT).min(self.program.row_len);
        for other in segment * LANE_SEGMENT..end {
            self.steps(&phase.element, worker, Scope { other, start, n, rows: 1 });
        }
    }

    /// One tile of lanes, its inner steps shared among the threads.
    fn wide_column_tile(&self, start: usize, n: usize) {
        let segments = self.program.row_len.div_ceil(LANE_SEGMENT);
        let each = segments.div_ceil(8 * threads::count());
        self.wide_phases(Scope { other: 0, start, n, rows: 1 }, segments, each, |phase, worker, segment| {
            self.lane_segment(phase, worker, segment, start, n);
        });
    }

    /// Folds over all rows, and what follows from them.
    fn finish(&self) {
        if self.program.last.is_empty() {
            return;
        }
        self.with_worker(|worker| {
            for (finish, note) in self.program.finishes.iter().zip(&self.notes) {
                let out = worker.tiles[finish.value as usize];
                // SAFETY: `rows` values were noted; the value's tile has room.
                unsafe { fold_array(finish.fold, finish.accumulate, finish.class, note.0, self.program.rows, out) };
            }
            self.steps(&self.program.last, worker, Scope { other: 0, start: 0, n: 1, rows: 1 });
        });
    }

    fn product(&self, product: &Product) {
        match product.gemm.dtype {
            DType::F64 => self.product_of::<f64>(product),
            DType::I64 => self.product_of::<i64>(product),
            DType::I32 => self.product_of::<i32>(product),
            DType::U32 => self.product_of::<u32>(product),
            DType::U8 | DType::Bool => self.product_of::<u8>(product),
            _ => self.product_of::<f32>(product),
        }
    }

    fn product_of<T: Accumulator>(&self, product: &Product) {
        let side = |operand: &crate::schedule::Operand, buffer: usize| Mat {
            ptr: self.buffers[buffer].0,
            dtype: product.gemm.dtype,
            row_stride: operand.row_stride,
            col_stride: operand.col_stride,
        };
        let call = Gemm {
            m: product.gemm.m,
            n: product.gemm.n,
            k: product.gemm.k,
            a: side(&product.gemm.a, product.a),
            b: side(&product.gemm.b, product.b),
            a_offsets: &product.a_starts,
            b_offsets: &product.b_starts,
            isa: product.isa,
            ahead: Some(&|batch, rows, cols| self.ask_ahead(product, batch, rows, cols)),
        };
        let sink: Sink<T> = &|batch, row, col, sums| self.epilogue(product, batch, row, col, sums);
        // SAFETY: T is what the dtype is summed in; offsets and strides come from views that the
        // graph's verifier found inside their buffers; the set is the machine's.
        unsafe { gemm(&call, sink) };
    }

    /// Asks for what is read and written by [`Launch::epilogue`] over these sums.
    fn ask_ahead(&self, product: &Product, batch: usize, rows: Range<usize>, cols: Range<usize>) {
        for &(slot, output) in &product.ahead {
            let slot = self.program.slot(slot, output);
            let size = slot.dtype.size();
            // SAFETY: the start of what the slot walks straight through.
            let memory = unsafe { self.memory(slot, Scope { other: 0, start: 0, n: 0, rows: 1 }) };
            for row in rows.clone() {
                let row = memory.wrapping_add((batch * product.gemm.m + row) * product.gemm.n * size);
                (cols.start * size..cols.end * size).step_by(64).for_each(|at| prefetch_far(row.wrapping_add(at)));
            }
        }
    }

    /// What follows a product, over a stretch of one of its rows.
    fn epilogue<T>(&self, product: &Product, batch: usize, row: usize, col: usize, sums: &mut [T]) {
        let first = (batch * product.gemm.m + row) * product.gemm.n + col;
        self.with_worker(|worker| {
            worker.enter(&self.program.phases[0]);
            for (i, tile) in sums.chunks_mut(TILE).enumerate() {
                if let Some(value) = product.accumulator {
                    worker.tiles[value as usize] = tile.as_mut_ptr().cast();
                }
                let scope = Scope { other: 0, start: first + i * TILE, n: tile.len(), rows: 1 };
                self.steps(&self.program.phases[0].element, worker, scope);
            }
        });
    }

    fn steps(&self, steps: &[Step], worker: &mut Worker, scope: Scope) {
        for step in steps {
            // SAFETY: the program's layout gives every value a tile of its type with room for all
            // lanes, operands are computed before their users, and slots stay inside their buffers
            // (the verifier checked the views they come from).
            unsafe { self.step(step, worker, scope) };
        }
    }

    /// # Safety
    /// `step` is a step of this program, and the steps before it in its list have run in `scope`.
    #[inline]
    unsafe fn step(&self, step: &Step, worker: &mut Worker, scope: Scope) {
        let tiles = &mut worker.tiles;
        // The tile of a value in row `r` of the scope.
        let in_row =
            |tile: *mut u8, value: u32, r: usize| tile.wrapping_offset(self.program.apart[value as usize] * r as isize);
        // SAFETY: the caller's promise, for all that follows.
        unsafe {
            match *step {
                Step::Call { value, f, operands } => {
                    f(tiles[value as usize], operands.map(|o| tiles[o as usize].cast_const()), scope.n * scope.rows);
                }
                Step::Each { value, f, operands } => {
                    let tile = |value: u32, r| in_row(tiles[value as usize], value, r);
                    for r in 0..scope.rows {
                        f(tile(value, r), operands.map(|o| tile(o, r).cast_const()), scope.n);
                    }
                }
                Step::Load { value, slot } => {
                    let slot = &self.program.slots[slot as usize];
                    for (r, row) in scope.each() {
                        walk::load(
                            in_row(tiles[value as usize], value, r),
                            self.memory(slot, row),
                            slot.dtype,
                            slot.convert,
                            &slot.walk,
                            scope.start,
                            scope.n,
                        );
                    }
                }
                Step::Padded { value, slot, first, count } => {
                    let slot = &self.program.slots[slot as usize];
                    let guards = &self.program.guards[first as usize..(first + count) as usize];
                    let guard = |g: &'p super::program::Guard| {
                        let super::program::Guard { offset, walk, other, limit } = g;
                        walk::Guarded { walk, start: offset + other.position(scope.other), limit: *limit }
                    };
                    let guards: SmallVec<[walk::Guarded; 4]> = guards.iter().map(guard).collect();
                    let position = slot.offset + slot.other.position(scope.other);
                    // Where no guard holds, this points outside the buffer and is not read.
                    let memory = self.buffers[slot.buffer].0.wrapping_offset(position * slot.dtype.size() as isize);
                    walk::load_padded(
                        tiles[value as usize],
                        memory,
                        (slot.dtype, slot.convert),
                        &slot.walk,
                        &guards,
                        scope.start,
                        scope.n,
                    );
                }
                Step::Panel { value, panel } => {
                    let from = &self.program.panels[panel as usize];
                    let slot = &self.program.slots[from.slot as usize];
                    let row = scope.start / self.program.block.unwrap_or(1) % BLOCK_ROWS;
                    let at = panel as usize * PANEL_BYTES + row * PANEL_STRIDE * slot.dtype.size();
                    let source = worker.kept.add(at);
                    match slot.convert.filter(|_| !from.direct) {
                        Some(convert) => convert(tiles[value as usize], [source.cast_const(); 3], scope.n),
                        None => tiles[value as usize] = source,
                    }
                }
                Step::Point { value, slot } => {
                    let slot = &self.program.slots[slot as usize];
                    tiles[value as usize] = self.memory(slot, scope).add(scope.start * slot.dtype.size());
                }
                Step::Aim { value, output } => {
                    let slot = &self.program.outputs[output as usize].slot;
                    tiles[value as usize] = self.memory(slot, scope).add(scope.start * slot.dtype.size());
                }
                Step::Ahead { slot, output, part, parts } => {
                    let slot = self.program.slot(slot, output);
                    let next = Scope { other: scope.other + scope.rows, ..scope };
                    if next.other < self.program.rows {
                        let (row, bytes) = (self.memory(slot, next), scope.n * scope.rows * slot.dtype.size());
                        let at = |part: u16| bytes * part as usize / parts as usize / 64 * 64;
                        let end = if part + 1 == parts { bytes } else { at(part + 1) };
                        (at(part)..end).step_by(64).for_each(|at| prefetch(row.wrapping_add(at)));
                    }
                }
                Step::Kept { value, kept } => tiles[value as usize] = self.kept(worker.kept, kept as usize, scope),
                Step::Index { value, slot } => {
                    let slot = &self.program.slots[slot as usize];
                    let offset = slot.offset + slot.other.position(scope.other);
                    walk::positions(tiles[value as usize], offset, &slot.walk, scope.start, scope.n);
                }
                Step::Gather { value, gather } => self.gather(value, gather, tiles, scope),
                Step::Bound { value, source, class, limit, node } => {
                    for i in 0..scope.n {
                        let index = read_index(tiles[source as usize], class, i as isize);
                        if !(0..limit as i64).contains(&index) {
                            self.faults.report(Fault { index, limit, node });
                        }
                    }
                    std::ptr::copy_nonoverlapping(
                        tiles[source as usize],
                        tiles[value as usize],
                        scope.n * class.size(),
                    );
                }
                Step::Param { value, param, class } => {
                    write_param(tiles[value as usize], self.params[param as usize], class)
                }
                Step::Random { value, f, index, param } => {
                    let key = self.integers[param as usize..].as_ptr().cast::<u8>();
                    f(tiles[value as usize], [tiles[index as usize], key, key.add(8)], scope.n);
                }
                Step::Spread { value, size } => spread(tiles[value as usize], size as usize, self.program.spread),
                Step::Fold { fold } => self.fold(&self.program.folds[fold as usize], worker, scope),
                Step::Store { value, output } => {
                    let slot = &self.program.outputs[output as usize].slot;
                    for (r, row) in scope.each() {
                        walk::store(
                            self.memory(slot, row),
                            in_row(tiles[value as usize], value, r),
                            slot.dtype,
                            slot.convert,
                            &slot.walk,
                            scope.start,
                            scope.n,
                        );
                    }
                }
                Step::StoreAll { value, output } => {
                    let slot = &self.program.outputs[output as usize].slot;
                    let (target, source) = (self.memory(slot, scope), tiles[value as usize]);
                    walk::store_straight(target, source, slot.dtype, slot.convert, scope.n * scope.rows);
                }
                Step::Note { value, finish } => {
                    let size = self.program.finishes[finish as usize].class.size();
                    let at = if self.program.mode == Mode::Columns { scope.start } else { scope.other };
                    for r in 0..scope.rows {
                        let note = self.notes[finish as usize].0.add((at + r) * size);
                        std::ptr::copy_nonoverlapping(in_row(tiles[value as usize], value, r), note, scope.n * size);
                    }
                }
            }
        }
    }

    /// Start of a slot's memory at the scope's place in the loops across.
    ///
    /// # Safety
    /// The place is inside the loops.
    #[inline]
    unsafe fn memory(&self, slot: &Slot, scope: Scope) -> *mut u8 {
        let position = slot.offset + slot.other.position(scope.other);
        // SAFETY: the caller's promise, and the slot's view lies inside the buffer.
        unsafe { self.buffers[slot.buffer].0.offset(position * slot.dtype.size() as isize) }
    }

    /// # Safety
    /// `kept` points to memory from [`Launch::kept_memory`].
    unsafe fn kept(&self, memory: *mut u8, kept: usize, scope: Scope) -> *mut u8 {
        let element = match self.program.mode {
            Mode::Columns => scope.other * self.program.lanes,
            _ => scope.start,
        };
        // SAFETY: within the value's `kept_stride` bytes.
        unsafe { memory.add(kept * self.program.kept_stride + element * self.program.kept[kept]) }
    }

    /// # Safety
    /// As for [`Launch::step`].
    unsafe fn fold(&self, fold: &Fold, worker: &Worker, scope: Scope) {
        let source = worker.tiles[fold.source as usize].cast_const();
        let columns = self.program.mode == Mode::Columns;
        // SAFETY: the caller's promise; places are laid out for `lanes` values each.
        unsafe {
            let segment = worker.base().add(fold.segment);
            match fold.arg {
                Some((arg, _)) if columns => {
                    arg(segment, source, scope.n, scope.other as i64, 0, scope.other.is_multiple_of(LANE_SEGMENT));
                }
                Some((arg, _)) => {
                    arg(segment, source, scope.n, scope.start as i64, 1, scope.start.is_multiple_of(SEGMENT))
                }
                None if columns => (fold.take)(segment, [source; 3], scope.n),
                // What it would be taken into is neutral.
                None if self.program.brief => {
                    let apart = self.program.apart[fold.source as usize];
                    for r in 0..scope.rows {
                        let (total, source) = (fold.total + r * fold.size, source.wrapping_offset(apart * r as isize));
                        (fold.fold)(worker.base().add(total), [source; 3], scope.n);
                    }
                }
                None => {
                    let partial = worker.base().add(fold.partial);
                    (fold.fold)(partial, [source; 3], scope.n);
                    (fold.accumulate)(segment, [partial.cast_const(); 3], 1);
                }
            }
        }
    }

    /// # Safety
    /// As for [`Launch::step`].
    unsafe fn gather(&self, value: u32, gather: u32, tiles: &[*mut u8], scope: Scope) {
        let gather = &self.program.gathers[gather as usize];
        let slot = &self.program.slots[gather.slot];
        // SAFETY: the caller's promise; an index is used only after it was found below the limit, and
        // the view reaches that far along the axis.
        unsafe {
            let mut indices = [0; TILE];
            for (i, index) in indices[..scope.n].iter_mut().enumerate() {
                *index = read_index(tiles[gather.index as usize], gather.index_dtype, i as isize);
            }
            let inside = |index: i64| (0..gather.limit as i64).contains(&index);
            if !indices[..scope.n].iter().fold(true, |all, &index| all & inside(index)) {
                for index in indices[..scope.n].iter_mut().filter(|index| !inside(**index)) {
                    self.faults.report(Fault { index: *index, limit: gather.limit, node: gather.node });
                    *index = 0;
                }
            }
            walk::load_indexed(
                tiles[value as usize],
                self.memory(slot, scope),
                (slot.dtype, slot.convert),
                &slot.walk,
                scope.start,
                (&indices[..scope.n], gather.stride),
            );
        }
    }
}

/// Takes `lanes` later states into earlier ones.
///
/// # Safety
/// Both point to as many initialised states of the fold.
unsafe fn merge(fold: &Fold, earlier: *mut u8, later: *const u8, lanes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match fold.arg {
            Some((_, merge)) => (0..lanes).for_each(|i| merge(earlier.add(i * fold.size), later.add(i * fold.size))),
            None => (fold.accumulate)(earlier, [later; 3], lanes),
        }
    }
}

/// Folds `n` values, a segment after another.
///
/// # Safety
/// `values` points to `n` initialised values of `class`, `out` to room for one.
unsafe fn fold_array(fold: TileFn, accumulate: TileFn, class: DType, values: *const u8, n: usize, out: *mut u8) {
    let (mut partial, mut segment) = (0u64, 0u64);
    let (partial, segment) = ((&raw mut partial).cast::<u8>(), (&raw mut segment).cast::<u8>());
    // SAFETY: the caller's promise; the locals have room for any class.
    unsafe {
        fold(out, [values; 3], 0);
        for first in (0..n).step_by(SEGMENT) {
            fold(segment, [values; 3], 0);
            for start in (first..(first + SEGMENT).min(n)).step_by(TILE) {
                fold(partial, [values.add(start * class.size()); 3], TILE.min(n - start));
                accumulate(segment, [partial.cast_const(); 3], 1);
            }
            accumulate(out, [segment.cast_const(); 3], 1);
        }
    }
}

/// # Safety
/// `tile` has room for one element of `class`.
unsafe fn write_param(tile: *mut u8, param: Scalar, class: DType) {
    let (float, int) = param.both();
    // SAFETY: the caller's promise; tiles are aligned.
    unsafe {
        match class {
            DType::F64 => *tile.cast() = float,
            DType::I64 => *tile.cast() = int,
            DType::I32 => *tile.cast() = int as i32,
            DType::U32 => *tile.cast() = int as u32,
            DType::U8 | DType::Bool => *tile = int as u8,
            _ => *tile.cast() = float as f32,
        }
    }
}
