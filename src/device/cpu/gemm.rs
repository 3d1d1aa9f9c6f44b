//! Matrix products: blocked for the caches, packed, and handed on while they are still in a cache.
//!
//! The scheme is Goto's. B is packed into panels as wide as the register tile, once, by all threads,
//! in waves that bound the memory; then every block of the result is one piece of work: it walks
//! the whole of k, packs its rows of A as it goes, keeps its sums in scratch, and passes the
//! finished rows to the caller's sink. Where one block has all the rows there is nothing to share,
//! and the block packs its own B. A few rows (or columns) times a matrix are not worth packing at
//! all; see [`thin`].
//!
//! How k is cut follows from the sizes alone, and a block's sums are added in the order of k: results do not depend
//! on the number of threads, though the blocks do.

mod block;
mod kernels;
mod pack;
mod simd;
#[cfg(test)]
mod tests;
mod thin;

use super::isa::Isa;
use super::threads;
use crate::dtype::DType;
use kernels::Kernel;
use pack::View;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::thread::LocalKey;
use thin::Thin;

pub use block::Blocks;
pub use kernels::Accumulator;
pub use simd::{prefetch, prefetch_far};

/// One operand: a matrix of `dtype` at `ptr`, strides in elements (0 and negative allowed).
#[derive(Clone, Copy)]
pub struct Mat {
    /// The element in row 0, column 0, of the matrix at offset 0.
    pub ptr: *const u8,
    /// What the elements are.
    pub dtype: DType,
    /// From one row to the next.
    pub row_stride: isize,
    /// From one column to the next.
    pub col_stride: isize,
}

// SAFETY: a `Mat` is only ever read through by `gemm`, whose caller vouches that nobody writes the
// elements meanwhile.
unsafe impl Send for Mat {}
// SAFETY: as above.
unsafe impl Sync for Mat {}

/// The products of a batch of pairs of matrices, `[m, k]` times `[k, n]`.
pub struct Gemm<'a> {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The length that is summed over; 0 gives zeros.
    pub k: usize,
    /// The left operand.
    pub a: Mat,
    /// The right operand, of the left one's dtype.
    pub b: Mat,
    /// Where the left matrix of each pair starts, in elements after `a.ptr`.
    pub a_offsets: &'a [isize],
    /// Where the right matrix of each pair starts, in elements after `b.ptr`; as many as `a_offsets`.
    pub b_offsets: &'a [isize],
    /// What the machine can do.
    pub isa: Isa,
    /// Told what the sink will soon be called for, a tile at a time.
    pub ahead: Ahead<'a>,
}

/// Asks for memory that belongs to sums which are about to be finished: `(batch element, rows, columns)`.
pub type Ahead<'a> = Option<&'a (dyn Fn(usize, Range<usize>, Range<usize>) + Sync)>;

/// Receives finished sums: `(batch element, row, first column, sums)`.
pub type Sink<'a, T> = &'a (dyn Fn(usize, usize, usize, &mut [T]) + Sync);

/// Rows of a block, at most: with 256 values of k, a quarter of a 512 KB cache.
const BLOCK_ROWS: usize = 96;
/// Columns of a block, at most, and bytes in a row of its sums. Long rows serve what follows the product.
const BLOCK_COLS: usize = 1024;
const BLOCK_ROW_BYTES: usize = 4 * BLOCK_COLS;
/// Bytes of a block's sums, at most; two fifths of a 512 KB cache.
const BLOCK_BYTES: usize = 192 << 10;
/// Columns of a block that packs its own B, at most: half of such a cache.
const OWN_COLS: usize = 256;
/// Multiply-adds that a block should have before a product is cut into more of them.
const BLOCK_WORK: usize = 1 << 19;
/// Blocks for each thread beyond which nothing is gained by cutting a product further.
const BLOCKS_A_THREAD: usize = 4;
/// Bytes of packed B that are held at once.
const WAVE_BYTES: usize = 16 << 20;
/// Multiply-adds below which the other threads are not woken.
const PARALLEL_WORK: usize = 1 << 18;
/// Multiply-adds that are worth a job of their own.
const JOB_WORK: usize = 1 << 16;
/// Multiply-adds that take as long as to pack a slot.
const PACK_WORK: usize = 16;
/// Panels of B that are packed together, row by row.
const PACK_PANELS: usize = 4;

/// Computes the products of `g`.
///
/// `sink` is called for segments of rows that are disjoint and cover the result, from several
/// threads at once. f16, bf16 and f32 are summed in f32 (`T = f32`), all others in themselves.
///
/// # Safety
///
/// `T` is what `g.a.dtype` is summed in, and `g.b.dtype` is the same dtype. For each pair of
/// offsets, every element of both matrices lies in memory that is readable, aligned and not written
/// to during the call. The machine has `g.isa`.
pub unsafe fn gemm<T: Accumulator>(g: &Gemm, sink: Sink<T>) {
    let batch = g.a_offsets.len().min(g.b_offsets.len());
    if g.m == 0 || g.n == 0 || batch == 0 {
        return;
    }
    let kernel = T::kernel(g.isa, g.a.dtype);
    let work = batch.saturating_mul(g.m).saturating_mul(g.n).saturating_mul(g.k.max(1));
    let run = Run { g, kernel, sink, batch, work };
    if g.k == 0 {
        run.zeros();
    } else if g.m.min(g.n) <= thin::MAX_VECTORS {
        run.thin();
    } else {
        run.blocked();
    }
}

/// A call of [`gemm`].
struct Run<'a, T> {
    g: &'a Gemm<'a>,
    kernel: Kernel<T>,
    sink: Sink<'a, T>,
    batch: usize,
    /// Multiply-adds in all.
    work: usize,
}

/// How a product is cut into blocks.
#[derive(Clone, Copy)]
struct Grid {
    /// Columns of a block at most, a multiple of the tile's.
    cols: usize,
    /// Blocks above each other.
    down: usize,
    /// Steps of k that are packed at once.
    steps: usize,
    /// Whether B is packed ahead, for all blocks above each other.
    shared: bool,
}

/// The sums of a block, in whole tiles.
#[derive(Clone, Copy)]
struct Area {
    height: usize,
    width: usize,
    /// From one row to the next.
    stride: usize,
}

/// A part of the result: some columns of some batch elements, whose B is packed at once.
struct Wave<'a> {
    /// The batch elements, in groups that have the same B.
    groups: &'a [Range<usize>],
    cols: Range<usize>,
}

/// Packed panels of B, group by group; in each, for each part of k, panel by panel.
#[derive(Clone, Copy)]
struct Panels<T>(*mut T);

// SAFETY: jobs write disjoint panels, and read them only after all have been written.
unsafe impl<T: Send> Sync for Panels<T> {}

impl<T: Accumulator> Run<'_, T> {
    fn for_each(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        threads::for_each(jobs, self.work > PARALLEL_WORK, job);
    }

    /// Runs `f(0..count)`, several to a job when each is less than [`JOB_WORK`].
    fn for_chunks(&self, count: usize, work_each: usize, f: &(dyn Fn(usize) + Sync)) {
        let per_job = (JOB_WORK / work_each.max(1)).max(1);
        self.for_each(count.div_ceil(per_job), &|job| (job * per_job..count.min((job + 1) * per_job)).for_each(f));
    }

    fn zeros(&self) {
        let mut row = [T::default(); 256];
        for (batch, i) in (0..self.batch).flat_map(|batch| (0..self.g.m).map(move |i| (batch, i))) {
            for col in (0..self.g.n).step_by(row.len()) {
                let n = row.len().min(self.g.n - col);
                row.fill(T::default());
                (self.sink)(batch, i, col, &mut row[..n]);
            }
        }
    }

    fn blocked(&self) {
        let grid = self.grid();
        let batches = 0..self.batch;
        if !grid.shared {
            return self.blocks(&grid, &Wave { groups: &[batches], cols: 0..self.g.n }, None);
        }
        let groups = same_offset(&self.g.b_offsets[batches]);
        let panel = self.g.k.div_ceil(self.kernel.fold) * self.kernel.nr;
        let panels = self.g.n.div_ceil(self.kernel.nr);
        let room = WAVE_BYTES / size_of::<T>() / panel;
        let (at_once, cols) = ((room / panels).max(1), room.clamp(1, panels) * self.kernel.nr);
        with_scratch(&SHARED, at_once.min(groups.len()) * (cols * panel / self.kernel.nr), |packed| {
            for groups in groups.chunks(at_once) {
                for start in (0..self.g.n).step_by(cols) {
                    let wave = Wave { groups, cols: start..self.g.n.min(start + cols) };
                    self.pack_wave(&grid, &wave, Panels(packed));
                    self.blocks(&grid, &wave, Some(Panels(packed)));
                }
            }
        });
    }

    /// Cuts the product so that many threads can share it, if it is large enough, and no further.
    fn grid(&self) -> Grid {
        let (mr, nr, fold) = (self.kernel.mr, self.kernel.nr, self.kernel.fold);
        let (row_panels, col_panels) = (self.g.m.div_ceil(mr), self.g.n.div_ceil(nr));
        // A panel of B stays in the L1 cache while the rows pass over it.
        let steps = if nr * size_of::<T>() <= 64 { 256 } else { 192 };
        let shareable = self.g.k.div_ceil(fold).saturating_mul(nr * size_of::<T>()) <= WAVE_BYTES;
        let mut cols = (BLOCK_ROW_BYTES / size_of::<T>()).min(BLOCK_COLS).div_ceil(nr).min(col_panels);
        let mut rows = (BLOCK_BYTES / size_of::<T>() / (cols * nr)).min(BLOCK_ROWS).div_ceil(mr).min(row_panels);
        let threads = threads::count();
        let mut wanted = (self.work / BLOCK_WORK).min(BLOCKS_A_THREAD * threads);
        if rows == row_panels {
            cols = cols.min(OWN_COLS / nr);
            // Each packs all of A.
            wanted = wanted.min(2 * threads);
        }
        while self.batch.saturating_mul(row_panels.div_ceil(rows)).saturating_mul(col_panels.div_ceil(cols)) < wanted {
            // Few rows read B too often, few columns pack A too often.
            if rows > 4 && rows < row_panels {
                rows = rows.div_ceil(2);
            } else if cols > 4 {
                cols = cols.div_ceil(2);
            } else if rows > 2 {
                rows = rows.div_ceil(2);
            } else {
                break;
            }
        }
        let mut down = row_panels.div_ceil(rows);
        if down > 1 {
            // The same for each thread.
            down = down.next_multiple_of(threads).min(row_panels);
        }
        Grid { cols: cols * nr, down, steps, shared: down > 1 && shareable }
    }

    /// Packs the B of `wave`.
    fn pack_wave(&self, grid: &Grid, wave: &Wave, packed: Panels<T>) {
        let (nr, fold, k) = (self.kernel.nr, self.kernel.fold, self.g.k);
        let width = PACK_PANELS * nr;
        let across = wave.cols.len().div_ceil(width);
        let parts = k.div_ceil(grid.steps * fold);
        let slots = grid.steps.min(k.div_ceil(fold)) * width;
        self.for_chunks(wave.groups.len() * parts * across, slots * PACK_WORK, &|i| {
            let (group, part, first) = (i / across / parts, i / across % parts, i % across * width);
            let ks = part * grid.steps * fold..k.min((part + 1) * grid.steps * fold);
            let cols = wave.cols.start + first..wave.cols.end.min(wave.cols.start + first + width);
            let out = self.panel(grid, wave, packed, group, part, first);
            // SAFETY: the columns and values of k are inside the matrix, and the panels at `out` are
            // those of the same columns and part, which no other job writes.
            unsafe { (self.kernel.pack_b)(&self.b_view(wave.groups[group].start, cols, ks), out) }
        });
    }

    /// Where the panels of column `wave.cols.start + col` are, for one group and part of k.
    fn panel(&self, grid: &Grid, wave: &Wave, packed: Panels<T>, group: usize, part: usize, col: usize) -> *mut T {
        let (nr, fold) = (self.kernel.nr, self.kernel.fold);
        let width = wave.cols.len().next_multiple_of(nr);
        let steps = self.g.k.div_ceil(fold);
        let these = grid.steps.min(steps - part * grid.steps);
        packed.0.wrapping_add(group * steps * width + part * grid.steps * width + col * these)
    }

    /// Computes the blocks of `wave`.
    fn blocks(&self, grid: &Grid, wave: &Wave, packed: Option<Panels<T>>) {
        let (Some(first), Some(last)) = (wave.groups.first(), wave.groups.last()) else { return };
        let (mr, nr) = (self.kernel.mr, self.kernel.nr);
        let across = wave.cols.len().div_ceil(grid.cols);
        let count = (last.end - first.start) * across * grid.down;
        let work_each = self.g.m.div_ceil(grid.down) * grid.cols;
        self.for_chunks(count, work_each.saturating_mul(self.g.k), &|i| {
            let (batch, col, row) = (first.start + i / grid.down / across, i / grid.down % across, i % grid.down);
            let rows = share(self.g.m, mr, row, grid.down);
            let cols = share(wave.cols.len(), nr, col, across);
            let start = wave.cols.start + cols.start;
            let cols = start..wave.cols.start + cols.end;
            let group = wave.groups.partition_point(|group| group.end <= batch);
            let panels = |part| packed.map(|p| self.panel(grid, wave, p, group, part, start - wave.cols.start));
            self.block(grid, batch, rows, cols, &panels);
        });
    }

    /// Computes one block; `panels(part)` is its packed B, if that has been packed.
    fn block(
        &self,
        grid: &Grid,
        batch: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        panels: &dyn Fn(usize) -> Option<*mut T>,
    ) {
        let Kernel { mr, nr, fold, pack_a, pack_b, .. } = self.kernel;
        let (height, width) = (rows.len().next_multiple_of(mr), cols.len().next_multiple_of(nr));
        // Rows of sums a power of two apart would fall on the same few cache lines.
        let area = Area { height, width, stride: width + 64 / size_of::<T>() };
        let (sums_size, a_size) = (height * area.stride, height * grid.steps);
        let own_b = if grid.shared { 0 } else { width * grid.steps };
        with_scratch(&LOCAL, sums_size + a_size + own_b, |sums: *mut T| {
            let (a, own_b) = (sums.wrapping_add(sums_size), sums.wrapping_add(sums_size + a_size));
            for (part, start) in (0..self.g.k).step_by(grid.steps * fold).enumerate() {
                let ks = start..self.g.k.min(start + grid.steps * fold);
                // SAFETY: rows, columns and values of k are inside the matrices, and each piece of
                // the scratch was sized for as many panels of `grid.steps` steps.
                unsafe {
                    pack_a(&self.a_view(batch, rows.clone(), ks.clone()), a);
                    let b = panels(part).unwrap_or_else(|| {
                        pack_b(&self.b_view(batch, cols.clone(), ks.clone()), own_b);
                        own_b
                    });
                    self.tiles(area, ks.len().div_ceil(fold), a, b, sums, part == 0, &|row, col| {
                        if let Some(ahead) = self.g.ahead.filter(|_| ks.end == self.g.k) {
                            let (row, col) = (rows.start + row, cols.start + col);
                            ahead(batch, row..rows.end.min(row + mr), col..cols.end.min(col + nr));
                        }
                    });
                }
            }
            for row in 0..rows.len() {
                // SAFETY: the tiles have written every sum of this row, and nobody else has the scratch.
                let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(row * area.stride), cols.len()) };
                (self.sink)(batch, rows.start + row, cols.start, sums);
            }
        });
    }

    /// Multiplies the panels at `a` with those at `b`: every A panel passes over a B panel in turn. `before` is told
    /// where each tile starts.
    ///
    /// # Safety
    ///
    /// `area.height` lanes of `steps` steps at `a`, `area.width` at `b`; the area's sums at `sums`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tiles(
        &self,
        area: Area,
        steps: usize,
        a: *const T,
        b: *const T,
        sums: *mut T,
        overwrite: bool,
        before: &impl Fn(usize, usize),
    ) {
        for col in (0..area.width).step_by(self.kernel.nr) {
            for row in (0..area.height).step_by(self.kernel.mr) {
                before(row, col);
                // SAFETY: the panels that start at these lanes are whole, and so is the tile of sums.
                unsafe {
                    let (a, b, sums) = (a.add(row * steps), b.add(col * steps), sums.add(row * area.stride + col));
                    (self.kernel.tile)(steps, a, b, sums, area.stride, overwrite);
                }
            }
        }
    }

    /// Some rows and values of k of a left matrix.
    fn a_view(&self, batch: usize, rows: Range<usize>, ks: Range<usize>) -> View {
        let Mat { row_stride, col_stride, .. } = self.g.a;
        let ptr = self.g.a.at(self.g.a_offsets[batch], rows.start, ks.start);
        View { ptr, lanes: rows.len(), lane_stride: row_stride, k: ks.len(), k_stride: col_stride }
    }

    /// Some columns and values of k of a right matrix.
    fn b_view(&self, batch: usize, cols: Range<usize>, ks: Range<usize>) -> View {
        let Mat { row_stride, col_stride, .. } = self.g.b;
        let ptr = self.g.b.at(self.g.b_offsets[batch], ks.start, cols.start);
        View { ptr, lanes: cols.len(), lane_stride: col_stride, k: ks.len(), k_stride: row_stride }
    }

    /// A product with few rows, or few columns: the operand that has few is the vectors, the other
    /// one the matrix.
    fn thin(&self) {
        let few_rows = self.g.m <= thin::MAX_VECTORS;
        let (lanes, lane_stride) =
            if few_rows { (self.g.n, self.g.b.col_stride) } else { (self.g.m, self.g.a.row_stride) };
        // Rows of memory are read in long runs; lanes that are read one by one just fill a job.
        let per_job = match lane_stride {
            1 => (lanes / 8).next_multiple_of(64).clamp(64, 1024),
            _ => (JOB_WORK / self.g.k).clamp(16, 512),
        };
        let across = lanes.div_ceil(per_job);
        self.for_chunks(self.batch * across, per_job.saturating_mul(self.g.k), &|i| {
            let (batch, start) = (i / across, i % across * per_job);
            let lanes = start..lanes.min(start + per_job);
            if few_rows { self.few_rows(batch, lanes) } else { self.few_cols(batch, lanes) }
        });
    }

    fn few_rows(&self, batch: usize, cols: Range<usize>) {
        let (x, y) = (self.a_view(batch, 0..self.g.m, 0..self.g.k), self.b_view(batch, cols.clone(), 0..self.g.k));
        self.thin_product(&x, &y, |sums| {
            for (row, sums) in sums.chunks_exact_mut(cols.len()).enumerate() {
                (self.sink)(batch, row, cols.start, sums);
            }
        });
    }

    fn few_cols(&self, batch: usize, rows: Range<usize>) {
        let (x, y) = (self.b_view(batch, 0..self.g.n, 0..self.g.k), self.a_view(batch, rows.clone(), 0..self.g.k));
        self.thin_product(&x, &y, |sums| {
            for i in 0..rows.len() {
                let mut row = [T::default(); thin::MAX_VECTORS];
                for (slot, sums) in row.iter_mut().zip(sums.chunks_exact(rows.len())) {
                    *slot = sums[i];
                }
                (self.sink)(batch, rows.start + i, 0, &mut row[..self.g.n]);
            }
        });
    }

    /// Passes the sums `[vector][lane]` of vectors `x` and matrix `y` to `then`.
    fn thin_product(&self, x: &View, y: &View, then: impl FnOnce(&mut [T])) {
        let size = x.lanes * y.lanes;
        with_scratch(&LOCAL, thin::SCRATCH + size, |scratch: *mut T| {
            let out = scratch.wrapping_add(thin::SCRATCH);
            // SAFETY: both views are inside the operands, and the scratch has the room; afterwards
            // every sum has been written.
            let sums = unsafe {
                (self.kernel.thin)(&Thin { x: *x, y: *y, out, scratch });
                std::slice::from_raw_parts_mut(out, size)
            };
            then(sums);
        });
    }
}

impl Mat {
    /// The element at `row`, `col` of the matrix at `offset`.
    fn at(&self, offset: isize, row: usize, col: usize) -> *const u8 {
        let elements = offset + row as isize * self.row_stride + col as isize * self.col_stride;
        self.ptr.wrapping_offset(elements * self.dtype.size() as isize)
    }
}

/// Part `i` of `parts` of `n` lanes in panels of `width`, all of nearly the same size.
fn share(n: usize, width: usize, i: usize, parts: usize) -> Range<usize> {
    let panels = n.div_ceil(width);
    panels * i / parts * width..n.min(panels * (i + 1) / parts * width)
}

/// Runs of equal offsets, as ranges of indices.
fn same_offset(offsets: &[isize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let group = |run: &[isize]| {
        end += run.len();
        end - run.len()..end
    };
    offsets.chunk_by(|x, y| x == y).map(group).collect()
}

/// A cache line of scratch memory.
#[repr(align(64))]
struct Line {
    _bytes: MaybeUninit<[u8; 64]>,
}

thread_local! {
    /// Packed B, in the thread that called; up to [`WAVE_BYTES`].
    static SHARED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// What a job needs, in the thread that runs it; less than a megabyte.
    static LOCAL: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with room for `slots` values, aligned to 64 bytes, that the thread keeps for next time.
///
/// The room is taken out of `key` meanwhile: a sink that calls [`gemm`] gets other room.
fn with_scratch<T, R>(key: &'static LocalKey<Cell<Vec<Line>>>, slots: usize, f: impl FnOnce(*mut T) -> R) -> R {
    let lines = (slots * size_of::<T>()).div_ceil(size_of::<Line>());
    // The key is gone while a thread ends; then the room is not kept.
    let mut room = key.try_with(Cell::take).unwrap_or_default();
    if room.capacity() < lines {
        drop(room);
        room = Vec::with_capacity(lines);
    }
    let result = f(room.as_mut_ptr().cast());
    let _ = key.try_with(|cell| cell.set(room));
    result
}
