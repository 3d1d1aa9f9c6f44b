//! A kernel's `constant Args&`: names, types and values of its fields.

use crate::codegen::Binding;
use crate::dtype::DType;
use crate::schedule::Shift;

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Int,
    Uint,
    Long,
    Float,
    /// An address, of this pointer type.
    Pointer(String),
    /// A `TlMatmul`.
    Matmul,
    /// A `TlScatter`.
    Scatter,
    /// A `TlAttention`.
    Attention,
    /// A `TlTensorMap`.
    TensorMap,
}

/// Bytes of a tensor map, and half of that is what it is aligned to.
pub(crate) const TENSOR_MAP: usize = 128;

impl Field {
    fn size(&self) -> usize {
        match self {
            Field::TensorMap => TENSOR_MAP,
            Field::Long | Field::Pointer(_) => 8,
            Field::Matmul => 48,
            Field::Scatter => 32,
            Field::Attention => 160,
            _ => 4,
        }
    }

    fn align(&self) -> usize {
        match self {
            Field::TensorMap => TENSOR_MAP / 2,
            wide if wide.size() > 4 => 8,
            _ => 4,
        }
    }

    fn text(&self) -> &str {
        match self {
            Field::Int => "int",
            Field::Uint => "uint",
            Field::Long => "long",
            Field::Float => "float",
            Field::Pointer(text) => text,
            Field::Matmul => "TlMatmul",
            Field::Scatter => "TlScatter",
            Field::Attention => "TlAttention",
            Field::TensorMap => "TlTensorMap",
        }
    }

    /// What holds a scalar of a dtype.
    pub fn of(class: DType) -> Field {
        match class {
            DType::F32 => Field::Float,
            DType::I64 => Field::Long,
            DType::I32 => Field::Int,
            _ => Field::Uint,
        }
    }
}

/// A `TlAttention`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttentionShape {
    /// Of q, k, v and the output's gradient: batch, position, head, width.
    pub strides: [[i64; 4]; 4],
    /// Heads, heads that share keys, queries, keys, width.
    pub sizes: [u32; 5],
    pub scale: f32,
    /// Whether it is causal, and whether its results lie head by head.
    pub flags: [bool; 2],
}

/// How tiles of 64 rows and columns are fetched from an operand whose rows lie straight, on a Hopper.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorMap {
    pub binding: Binding,
    /// Half or bfloat.
    pub dtype: DType,
    /// Bytes before the first element.
    pub offset: u64,
    /// Width, heads, positions, batches.
    pub sizes: [u64; 4],
    /// Bytes from head to head, position to position, batch to batch: multiples of 16.
    pub strides: [u64; 3],
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fill {
    /// A number that the plan knows.
    Known(i64),
    /// A scalar input of the plan, as this dtype.
    Param(u32, DType),
    /// A product's strides (of a, then of b: rows, columns) and sizes (m, n, k).
    Product([i64; 4], [u32; 3]),
    /// A scatter's strides (of the source: terms, columns; of the index) and sizes (terms, columns).
    Scatter([i64; 3], [u32; 2]),
    /// What attention is of.
    Attention(Box<AttentionShape>),
    /// The tag under which an index out of `0..limit` is reported; the node asked for it.
    Tag {
        node: u32,
        limit: usize,
    },
    /// The address of a buffer.
    Address(Binding),
    TensorMap(Box<TensorMap>),
    /// Where a buffer's rows begin, in elements: an offset, and where the first row is, a scalar input of the plan;
    /// in eight bytes or in four.
    Shifted {
        offset: i64,
        shift: Shift,
        wide: bool,
    },
}

/// A part of the bytes that is filled in when the kernel runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Patch {
    pub at: usize,
    pub fill: Fill,
}

/// The fields of one kernel, in order of appearance.
#[derive(Default)]
pub(super) struct Fields(Vec<(String, Field, Fill)>);

impl Fields {
    /// Adds a field, if there is none of the name; gives its name in the kernel.
    pub fn add(&mut self, name: impl Into<String>, field: Field, fill: Fill) -> String {
        let name = name.into();
        let text = format!("args.{name}");
        if !self.0.iter().any(|(n, ..)| *n == name) {
            self.0.push((name, field, fill));
        }
        text
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields as they lie: those of most bytes first, so that no compiler pads between them.
    fn sorted(&self) -> impl Iterator<Item = &(String, Field, Fill)> {
        let of = |align: usize| self.0.iter().filter(move |(_, field, _)| field.align() == align);
        of(TENSOR_MAP / 2).chain(of(8)).chain(of(4))
    }

    /// The definition of the struct, of this name.
    pub fn text(&self, args: &str) -> String {
        let mut text = format!("struct {args} {{\n");
        for (name, field, _) in self.sorted() {
            text += &format!("    {} {name};\n", field.text());
        }
        text + "};\n"
    }

    /// Bytes of the struct.
    pub fn size(&self) -> usize {
        let bytes: usize = self.0.iter().map(|(_, field, _)| field.size()).sum();
        bytes.next_multiple_of(self.0.iter().map(|(_, field, _)| field.align()).max().unwrap_or(1))
    }

    /// The struct's bytes, and what is left to fill in.
    pub fn bytes(&self) -> (Vec<u8>, Vec<Patch>) {
        let (mut bytes, mut patches) = (Vec::with_capacity(self.size()), Vec::new());
        for (_, field, fill) in self.sorted() {
            match (fill, field.size()) {
                (Fill::Known(value), 8) => bytes.extend(value.to_le_bytes()),
                (Fill::Known(value), _) => bytes.extend((*value as i32).to_le_bytes()),
                (Fill::Product(strides, sizes), _) => {
                    bytes.extend(strides.iter().flat_map(|s| s.to_le_bytes()));
                    bytes.extend(sizes.iter().chain(&[0]).flat_map(|s| s.to_le_bytes()));
                }
                (Fill::Scatter(strides, sizes), _) => {
                    bytes.extend(strides.iter().flat_map(|s| s.to_le_bytes()));
                    bytes.extend(sizes.iter().flat_map(|s| s.to_le_bytes()));
                }
                (Fill::Attention(parts), _) => {
                    let AttentionShape { strides, sizes, scale, flags } = &**parts;
                    bytes.extend(strides.iter().flatten().flat_map(|s| s.to_le_bytes()));
                    bytes.extend(sizes.iter().flat_map(|s| s.to_le_bytes()));
                    bytes.extend(scale.to_le_bytes());
                    bytes.extend(flags.iter().flat_map(|&flag| u32::from(flag).to_le_bytes()));
                }
                (fill, size) => {
                    patches.push(Patch { at: bytes.len(), fill: fill.clone() });
                    bytes.resize(bytes.len() + size, 0);
                }
            }
        }
        bytes.resize(self.size(), 0);
        (bytes, patches)
    }
}
