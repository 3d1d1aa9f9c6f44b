//! A kernel made ready for the tile interpreter.
//!
//! Every value gets a tile: `lanes` elements that a step computes at once. Which loops the lanes run
//! along decides the mode:
//! - map: no reductions; lanes along all loops.
//! - rows: lanes along the inner loops, a row after another; folds leave one value a row.
//! - columns: lanes along the outer loops, one inner step after another; folds leave one value a
//!   lane. For rows that are short, or whose elements are far apart while their neighbours in the
//!   next row are not.
//!
//! A reduction's result is known only when its row is done, so a kernel runs in phases: phase p + 1 is
//! what depends on folds of phase p. Loads are repeated in each phase that needs them; computed
//! elements that a later phase needs are kept, for a whole row.

use super::isa::Isa;
use super::tile::{ArgFn, ArgMergeFn, TileFn};
use super::walk::Walk;
use crate::dtype::DType;
use crate::schedule::{Attention, Gemm, Level, Scatter};

/// Elements in a tile: 4 KB of f32, a few of which stay in a first-level cache.
pub const TILE: usize = 1024;
/// Elements whose fold is one partial result, whatever the number of threads.
pub const SEGMENT: usize = 16 * TILE;
/// Steps whose fold in a lane is one partial result.
pub const LANE_SEGMENT: usize = 64;
/// Bytes that the kept values of a column tile may take: a share of a third-level cache.
pub const KEPT_BYTES: usize = 2 << 20;
/// Lanes of a tile when memory is read across rows, so that the lines of a block of rows stay in the
/// first-level cache.
pub const BLOCK_LANES: usize = 256;
/// Rows of a block when memory is read across them: an f16 each for a cache line.
pub const BLOCK_ROWS: usize = 32;
/// Elements from one row of a panel to the next; rows a power of two apart would fall on the same few cache lines.
pub const PANEL_STRIDE: usize = BLOCK_LANES + 16;
/// Rows shorter than this run as columns, if there are enough of them.
pub const SHORT_ROW: usize = 64;
/// Rows that make columns worth while.
pub const MANY_ROWS: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Map,
    Rows,
    Columns,
}

/// A compiled kernel.
#[derive(Default)]
pub(crate) struct Program {
    pub mode: Mode,
    pub rows: usize,
    pub row_len: usize,
    pub lanes: usize,
    /// Whether each row is one tile whose folds need no combining.
    pub brief: bool,
    /// Rows that are computed at once, where short ones are brief: a tile holds so many.
    pub batch: usize,
    /// For each value, bytes from one of these rows to the next in its tile.
    pub apart: Vec<isize>,
    /// Lanes that a value repeated over a tile fills.
    pub spread: usize,
    /// For a map that reads or writes across rows: how long these are.
    pub block: Option<usize>,
    pub values: usize,
    /// Nodes whose buffers it binds, in binding order.
    pub buffers: Vec<u32>,
    pub slots: Vec<Slot>,
    pub guards: Vec<Guard>,
    pub gathers: Vec<Gather>,
    /// Slots that a map over blocks of rows reads across: blocks of them are copied to panels.
    pub panels: Vec<Panel>,
    pub outputs: Vec<Target>,
    pub folds: Vec<Fold>,
    pub finishes: Vec<Finish>,
    /// Once a launch and worker.
    pub uniform: Vec<Step>,
    pub phases: Vec<Phase>,
    /// After all rows.
    pub last: Vec<Step>,
    /// Offsets of the values that live as long as their row.
    pub fixed: Vec<(u32, usize)>,
    pub fixed_bytes: usize,
    pub arena_bytes: usize,
    /// Element sizes of the kept values.
    pub kept: Vec<usize>,
    /// Bytes from one kept value to the next.
    pub kept_stride: usize,
    pub gemm: Option<Product>,
    /// The whole program, if it is one; with the buffers of source, index and output.
    pub scatter: Option<(Scatter, [usize; 3])>,
    /// The whole program, if it is one; with the buffers of inputs and outputs, and the instruction set.
    pub attention: Option<(Attention, [Vec<usize>; 2], Isa)>,
    /// Rough instructions an element.
    pub weight: usize,
}

impl Program {
    /// A slot that is read, or that of an output.
    pub fn slot(&self, at: u32, output: bool) -> &Slot {
        if output { &self.outputs[at as usize].slot } else { &self.slots[at as usize] }
    }

    /// Rough instructions of a run.
    pub fn work(&self) -> usize {
        let product = self.gemm.as_ref().map_or(0, |p| p.gemm.m * p.gemm.n * p.gemm.k / 8);
        (self.rows * self.row_len).saturating_mul(self.weight).saturating_add(product)
    }
}

/// A matrix product with its buffers' binding positions.
pub struct Product {
    pub gemm: Gemm,
    pub a: usize,
    pub b: usize,
    /// Where the matrices of the batch start.
    pub a_starts: Vec<isize>,
    pub b_starts: Vec<isize>,
    /// The value that stands for the sums.
    pub accumulator: Option<u32>,
    /// Slots, or outputs where `true`, whose memory lies as the sums do.
    pub ahead: Vec<(u32, bool)>,
    pub isa: Isa,
}

/// What happens between two folds.
#[derive(Default)]
pub struct Phase {
    /// Once a row (or a tile of lanes).
    pub row: Vec<Step>,
    /// Once a tile.
    pub element: Vec<Step>,
    /// Where element values live in this phase.
    pub places: Vec<(u32, usize)>,
    /// Folds that end with it.
    pub folds: Vec<u32>,
}

/// One step over a tile; numbers are values, or positions in the program's lists.
#[derive(Clone, Copy)]
pub enum Step {
    /// Fill a tile from memory.
    Load { value: u32, slot: u32 },
    /// Fill a tile from memory where guards hold, else with zeros.
    Padded { value: u32, slot: u32, first: u32, count: u32 },
    /// Use a row of a panel as the tile, or convert it.
    Panel { value: u32, panel: u32 },
    /// Use memory as the tile.
    Point { value: u32, slot: u32 },
    /// Ask for part `part` of `parts` of what the next rows read, or write (an output's memory).
    Ahead { slot: u32, output: bool, part: u16, parts: u16 },
    /// Use the kept row as the tile.
    Kept { value: u32, kept: u32 },
    /// Use the output's memory as the tile.
    Aim { value: u32, output: u32 },
    /// Fill a tile with positions.
    Index { value: u32, slot: u32 },
    /// Fill a tile through indices.
    Gather { value: u32, gather: u32 },
    /// A scalar input.
    Param { value: u32, param: u32, class: DType },
    /// Copy a tile of indices of this class, each below the limit.
    Bound { value: u32, source: u32, class: DType, limit: usize, node: u32 },
    /// Compute a tile.
    Call { value: u32, f: TileFn, operands: [u32; 3] },
    /// Compute a tile row by row: some operand has one element a row, or the same row for all.
    Each { value: u32, f: TileFn, operands: [u32; 3] },
    /// Compute a tile of random numbers; key and position are scalar inputs `param` and `param + 1`.
    Random { value: u32, f: TileFn, index: u32, param: u32 },
    /// Repeat a tile's first element, of this many bytes, over its lanes.
    Spread { value: u32, size: u32 },
    /// Take a tile into a fold.
    Fold { fold: u32 },
    /// Write a tile to memory.
    Store { value: u32, output: u32 },
    /// Write rows that follow one another to memory where they follow one another, too.
    StoreAll { value: u32, output: u32 },
    /// Note a row's value for the fold over all rows.
    Note { value: u32, finish: u32 },
}

/// Strided memory that is read, or positions.
pub struct Slot {
    pub buffer: usize,
    pub dtype: DType,
    pub convert: Option<TileFn>,
    pub offset: isize,
    /// Along the lanes.
    pub walk: Walk,
    /// Along the other loops.
    pub other: Walk,
}

/// Memory of which blocks are copied to a panel.
pub struct Panel {
    pub slot: u32,
    /// Whether it is used as it is, else converted as the slot says.
    pub direct: bool,
}

/// A coordinate that must be below a limit.
pub struct Guard {
    pub offset: isize,
    /// Along the lanes.
    pub walk: Walk,
    /// Along the other loops.
    pub other: Walk,
    pub limit: usize,
}

/// Memory that is read through indices.
pub struct Gather {
    pub slot: usize,
    pub index: u32,
    pub index_dtype: DType,
    pub stride: isize,
    pub limit: usize,
    /// The node that asked for it.
    pub node: u32,
}

/// Memory that is written.
pub struct Target {
    pub slot: Slot,
    pub level: Level,
}

/// A fold over the inner loops.
pub struct Fold {
    pub value: u32,
    pub source: u32,
    pub class: DType,
    /// From elements to one state.
    pub fold: TileFn,
    /// Elements into as many states.
    pub take: TileFn,
    /// States into as many states.
    pub accumulate: TileFn,
    /// What folding nothing gives.
    pub neutral: [u8; 8],
    pub arg: Option<(ArgFn, ArgMergeFn)>,
    /// Bytes of one lane's state.
    pub size: usize,
    /// Arena offsets: a tile's fold, the segment's, the row's, and those of 2^k segments for each k, a
    /// stride apart.
    pub partial: usize,
    pub segment: usize,
    pub total: usize,
    pub powers: usize,
    pub power_stride: usize,
}

/// A fold over the rows.
pub struct Finish {
    pub value: u32,
    pub class: DType,
    pub fold: TileFn,
    pub accumulate: TileFn,
}
