//! Products that run alone, over memory of their own: what the self-check compares and tuning times.

use super::faults::FaultSite;
use super::program::{Bindings, Kernels};
use super::runtime::Gpu;
use crate::codegen::{self, Choice, Layout, Machine};
use crate::device::memory::Storage;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::schedule::{Gemm, Kernel, Level, Operand, Output, Reach, Value, ValueOp};
use crate::shape::{Dims, contiguous_strides};
use std::panic::Location;
use std::sync::Arc;

/// A batch of products, none empty, whose sums are stored as they are: f32, or the integers of the operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub dtype: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    /// Of a and b.
    pub layouts: [Layout; 2],
    /// Whether the neighbours in memory of a strided operand are lines, rather than nothing of the matrix.
    pub by_line: [bool; 2],
}

/// What nodes 0, 1 and 2 of a sample's kernel hold: a, b and the result.
pub(super) struct Memory([Arc<Storage>; 3]);

/// Strides of an operand from line to line and along k, and the elements of a matrix with them.
struct Place {
    line: usize,
    depth: usize,
    len: usize,
}

impl Sample {
    pub fn out_dtype(&self) -> DType {
        if self.dtype.is_float() { DType::F32 } else { self.dtype }
    }

    /// Elements of the result.
    pub fn len(&self) -> usize {
        self.batch * self.m * self.n
    }

    fn lines(&self, side: usize) -> usize {
        [self.m, self.n][side]
    }

    fn place(&self, side: usize) -> Place {
        let per_load = 16 / self.dtype.size();
        let lines = self.lines(side);
        let (line, depth) = match self.layouts[side] {
            Layout::Depth => (self.k.next_multiple_of(per_load), 1),
            Layout::Lines => (1, lines.next_multiple_of(per_load)),
            Layout::Strided if self.by_line[side] => (1, lines | 1),
            Layout::Strided => (2 * self.k + 1, 2),
        };
        // The next matrix is aligned, too.
        let len = (lines - 1) * line + (self.k - 1) * depth + 1;
        Place { line, depth, len: len.next_multiple_of(per_load) }
    }

    pub fn gemm(&self) -> Gemm {
        let batched = self.batch > 1;
        let operand = |side: usize| {
            let Place { line, depth, len } = self.place(side);
            let (line, depth) = (line as isize, depth as isize);
            let (row_stride, col_stride) = if side == 0 { (line, depth) } else { (depth, line) };
            let batch = Dims::filled(usize::from(batched), len as isize);
            Operand { node: side as u32, row_stride, col_stride, batch, offset: 0 }
        };
        let Sample { dtype, m, n, k, batch, .. } = *self;
        Gemm { m, n, k, dtype, batch: Dims::filled(usize::from(batched), batch), a: operand(0), b: operand(1) }
    }

    /// The product as a kernel, computed in a certain way.
    pub fn kernels(&self, machine: &Machine, choice: Choice) -> Kernels {
        let inner = [&[self.batch][usize::from(self.batch == 1)..], &[self.m, self.n]].concat();
        let inner = Dims::from_slice(&inner).unwrap_or_default();
        let reach = Reach { outer: Dims::new(), inner: contiguous_strides(&inner), offset: 0 };
        let kernel = Kernel {
            outer: Dims::new(),
            inner,
            values: vec![Value { op: ValueOp::Accumulator, dtype: self.dtype, level: Level::Element, node: 2 }],
            outputs: vec![Output { value: 0, node: 2, dtype: self.out_dtype(), reach }],
            guards: Vec::new(),
            gemm: Some(self.gemm()),
            scatter: None,
            shift: None,
            attention: None,
            nodes: vec![2],
            repeated: Vec::new(),
        };
        let machine = Machine { product: Some(choice), ..*machine };
        let dtype = |node: u32| if node == 2 { self.out_dtype() } else { self.dtype };
        let rendered = codegen::render(&[&kernel], &machine, &dtype).pop().unwrap_or_default();
        Kernels::new(rendered, kernel.operations() as f64)
    }

    /// An operand's bytes: pseudo-random numbers from 0.5 to 1 with signs (integers: any odd ones), and NaN (-1) in
    /// between.
    pub fn operand(&self, side: usize) -> Vec<u8> {
        let Place { line, depth, len } = self.place(side);
        let size = self.dtype.size();
        let mut bytes = vec![0xFF; self.batch * len * size];
        let mut state = 1 + side as u64;
        for matrix in bytes.chunks_exact_mut(len * size) {
            for l in 0..self.lines(side) {
                for d in 0..self.k {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let bits = state >> 32;
                    let number = match self.dtype {
                        DType::F16 => bits & 0x83FF | 0x3800,
                        DType::BF16 => bits & 0x807F | 0x3F00,
                        DType::F32 => bits & 0x807F_FFFF | 0x3F00_0000,
                        _ => bits | 1,
                    };
                    matrix[(l * line + d * depth) * size..][..size].copy_from_slice(&number.to_le_bytes()[..size]);
                }
            }
        }
        bytes
    }

    /// The operands on the device, and a result of NaN (-1).
    ///
    /// # Errors
    /// Out of memory; a device that fails.
    pub fn upload(&self, gpu: &Gpu) -> Result<Memory> {
        let out = vec![0xFF; self.len() * self.out_dtype().size()];
        let upload = |bytes: &[u8]| gpu.upload(bytes).map(Arc::new);
        Ok(Memory([upload(&self.operand(0))?, upload(&self.operand(1))?, upload(&out)?]))
    }
}

impl Memory {
    /// Submits a sample's kernel, which is loaded.
    ///
    /// # Errors
    /// A device that fails.
    pub fn run(&self, gpu: &Gpu, kernels: &Kernels) -> Result<()> {
        let missing = || Error::internal("gpu::sample", "a product of more than two operands");
        let storage = |node: u32| self.0.get(node as usize).ok_or_else(missing);
        let site = |_, limit| FaultSite { op: "matmul", site: Location::caller(), limit };
        kernels.run(gpu, &Bindings { storage: &storage, params: &[], site: &site, watch: None, list: None }, None)
    }

    /// The result's bytes.
    ///
    /// # Errors
    /// A device that fails.
    pub fn result(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.0[2].len()];
        gpu.download(&self.0[2], 0, &mut bytes)?;
        Ok(bytes)
    }
}
