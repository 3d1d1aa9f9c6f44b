//! Which body of `shaders/matmul.metal` computes a product, and in which tiles: a table per family of chips and shape.

use super::Machine;
use crate::schedule::{Gemm, Operand};
use std::fmt;

/// What a device is, as far as the table of products tells devices apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(any(test, target_os = "macos")), allow(dead_code))] // other systems have no driver for Apple's
pub(crate) enum Chip {
    #[cfg_attr(not(any(test, feature = "soft-metal")), allow(dead_code))]
    Other,
    Nvidia,
    /// `family` as Metal counts: 7 for the M1, 8 the M2, 9 the M3 and M4, 10 the M5.
    Apple {
        family: u8,
        class: Class,
    },
}

/// How large a chip of its family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(any(test, target_os = "macos")), allow(dead_code))]
pub(crate) enum Class {
    /// Plain and Pro.
    Base,
    /// Max and Ultra.
    Max,
}

/// How a product is computed. Choices may add up a sum's terms in different orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choice {
    /// By matrix units.
    Units(Tile),
    /// By arithmetic units, in square tiles.
    Simt { side: usize, depth: usize },
    /// A thin operand of exactly `few` rows (else columns); a simdgroup takes `lines` lines of the other.
    GemvDepth { few: usize, few_are_rows: bool, lines: usize },
    /// The same, where the other operand's lines are neighbours.
    GemvLines { few: usize, few_are_rows: bool },
    /// One thread an element: what the others are checked against.
    Slow,
}

/// What a group computes by matrix units: `rows` by `columns` elements, `depth` of k at a time, by `side_m` by `side_n`
/// simdgroups, with `stages` tiles of each operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub side_m: usize,
    pub side_n: usize,
    pub stages: usize,
}

/// How an operand lies, as the templates have it; its lines are rows of a or columns of b.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    Depth,
    Lines,
    Strided,
}

/// Sizes from which on tiles of 128 pay, if there are enough of them.
const LARGE: usize = 512;

const fn tile(rows: usize, columns: usize, depth: usize, side_m: usize, side_n: usize) -> Tile {
    Tile { rows, columns, depth, side_m, side_n, stages: 1 }
}

/// A row of the table for Apple's chips. What is `None` or `false` does not matter.
struct Row {
    newest: u8,
    class: Option<Class>,
    /// Whether b's columns are contiguous, as where a transposed weight is multiplied.
    transposed: bool,
    /// Whether tiles of 64 would leave cores idle.
    few: bool,
    tile: Tile,
}

/// The first row that fits is taken. These are starting points, from what others report of their kernels (MLX for
/// classes and large products, Metal FlashAttention for families); nobody has measured ours on an Apple chip.
const APPLE: [Row; 5] = [
    Row { newest: 8, class: None, transposed: false, few: true, tile: tile(48, 48, 24, 2, 2) },
    Row { newest: u8::MAX, class: None, transposed: false, few: true, tile: tile(32, 32, 16, 2, 2) },
    Row { newest: u8::MAX, class: Some(Class::Max), transposed: false, few: false, tile: tile(64, 64, 16, 2, 2) },
    Row { newest: u8::MAX, class: None, transposed: true, few: false, tile: tile(64, 32, 32, 2, 2) },
    Row { newest: u8::MAX, class: None, transposed: false, few: false, tile: tile(64, 64, 16, 1, 2) },
];

/// Tiles of matrix units that are worth measuring, and those of arithmetic units: side and depth.
const UNITS: [Tile; 8] = [
    tile(64, 64, 32, 2, 2),
    tile(64, 64, 16, 2, 2),
    tile(64, 64, 16, 1, 2),
    tile(64, 32, 32, 2, 2),
    tile(48, 48, 24, 2, 2),
    tile(32, 32, 16, 2, 2),
    tile(128, 128, 32, 2, 4),
    Tile { stages: 2, ..tile(128, 128, 32, 2, 4) },
];
const SIMT: [(usize, usize); 3] = [(64, 16), (64, 8), (128, 8)];

impl Layout {
    /// Of both operands of a product.
    pub fn of(gemm: &Gemm) -> [Layout; 2] {
        let Gemm { a, b, .. } = gemm;
        let size = gemm.dtype.size();
        [layout(a, a.row_stride, a.col_stride, size), layout(b, b.col_stride, b.row_stride, size)]
    }

    /// Its name in the shader.
    pub fn text(self) -> &'static str {
        match self {
            Layout::Depth => "TL_DEPTH_CONTIGUOUS",
            Layout::Lines => "TL_LINES_CONTIGUOUS",
            Layout::Strided => "TL_STRIDED",
        }
    }
}

fn layout(operand: &Operand, line: isize, depth: isize, size: usize) -> Layout {
    let per_load = (16 / size) as isize;
    let aligned = |s: isize| s % per_load == 0;
    if !aligned(operand.offset) || !operand.batch.iter().all(|&s| aligned(s)) {
        return Layout::Strided;
    }
    match (depth, line) {
        (1, line) if aligned(line) => Layout::Depth,
        (depth, 1) if aligned(depth) => Layout::Lines,
        _ => Layout::Strided,
    }
}

impl Choice {
    /// The machine's own, or what the table says.
    pub fn of(gemm: &Gemm, machine: &Machine) -> Choice {
        machine.product.unwrap_or_else(|| Choice::by_table(gemm, machine))
    }

    fn by_table(gemm: &Gemm, machine: &Machine) -> Choice {
        let Gemm { m, n, dtype, a, b, .. } = gemm;
        let (m, n) = (*m, *n);
        let few = m.min(n);
        if few <= 4 && dtype.is_float() {
            let few_are_rows = m <= n;
            let (many, line, depth) =
                if few_are_rows { (n, b.col_stride, b.row_stride) } else { (m, a.row_stride, a.col_stride) };
            if line == 1 && depth != 1 {
                return Choice::GemvLines { few, few_are_rows };
            }
            let lines = if many.div_ceil(16) * gemm.products() >= machine.parallel_groups { 4 } else { 1 };
            return Choice::GemvDepth { few, few_are_rows, lines };
        }
        let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side) * gemm.products();
        let large = few >= LARGE && tiles(128) * 8 >= machine.parallel_groups;
        if dtype.is_narrow() && machine.matrix_units {
            let roomy = machine.threadgroup_bytes > 32 << 10;
            return Choice::Units(match machine.chip {
                Chip::Apple { family, class } => {
                    let few = tiles(64) < machine.parallel_groups;
                    let transposed = Layout::of(gemm)[1] == Layout::Depth;
                    let fits = |row: &&Row| {
                        family <= row.newest
                            && row.class.is_none_or(|of| of == class)
                            && (transposed || !row.transposed)
                            && (few || !row.few)
                    };
                    APPLE.iter().find(fits).map_or(tile(64, 64, 32, 2, 2), |row| row.tile)
                }
                _ if large && roomy => Tile { stages: 2, ..tile(128, 128, 32, 2, 4) },
                _ => Tile { stages: 1 + usize::from(roomy), ..tile(64, 64, 32, 2, 2) },
            });
        }
        let (side, depth) = match dtype.size() {
            ..=4 if large => (128, 8),
            8 => (64, 8),
            _ => (64, 16),
        };
        Choice::Simt { side, depth }
    }

    /// What a product may be measured with, in a fixed order; empty where there is nothing to choose.
    pub fn candidates(gemm: &Gemm, machine: &Machine) -> Vec<Choice> {
        match Choice::by_table(gemm, machine) {
            Choice::Units(_) => UNITS.into_iter().filter(|tile| tile.fits(machine)).map(Choice::Units).collect(),
            Choice::Simt { .. } if gemm.dtype.size() <= 4 => {
                SIMT.into_iter().map(|(side, depth)| Choice::Simt { side, depth }).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Tile {
    pub fn threads(&self) -> usize {
        32 * self.side_m * self.side_n
    }

    /// Bytes of threadgroup memory, as TL_UNITS_BLOCK has them.
    pub fn bytes(&self) -> usize {
        (self.depth + 8) * 2 * (self.rows + self.columns) * self.stages
    }

    fn fits(&self, machine: &Machine) -> bool {
        // mma.sync multiplies larger matrices than simdgroup_matrix; copies that run on their own are CUDA's.
        let cuda = machine.chip == Chip::Nvidia;
        let whole = [self.rows / self.side_m, self.columns / self.side_n, self.depth].iter().all(|x| x % 16 == 0);
        self.bytes() <= machine.threadgroup_bytes
            && self.threads() <= machine.threads
            && (whole || !cuda)
            && (self.stages == 1 || cuda)
    }
}

/// As files and messages have it.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |few_are_rows: bool| if few_are_rows { "rows" } else { "columns" };
        match *self {
            Choice::Units(Tile { rows, columns, depth, side_m, side_n, stages }) => {
                write!(f, "units {rows}x{columns}x{depth} by {side_m}x{side_n} in {stages}")
            }
            Choice::Simt { side, depth } => write!(f, "simt {side}x{side}x{depth}"),
            Choice::GemvDepth { few, few_are_rows, lines } => {
                write!(f, "gemv of {few} {}, {lines} along k", side(few_are_rows))
            }
            Choice::GemvLines { few, few_are_rows } => write!(f, "gemv of {few} {}, across k", side(few_are_rows)),
            Choice::Slow => f.write_str("slow"),
        }
    }
}
