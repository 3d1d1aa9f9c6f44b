//! Printing, as PyTorch prints: numbers in columns, large tensors with their edges only.

use super::Tensor;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use std::fmt::{Display, Formatter, Write};

/// Elements above which only the edges are printed.
const THRESHOLD: usize = 1000;
/// Elements printed at each edge.
const EDGE: usize = 3;

impl Display for Tensor {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self.shown() {
            Ok(cells) => {
                let width = cells.iter().map(|c| c.chars().count()).max().unwrap_or(0);
                let mut text = String::from("tensor(");
                write_level(self.dims(), self.numel() > THRESHOLD, &mut cells.iter(), width, 8, &mut text)?;
                write!(f, "{text}, dtype={}", self.dtype())?;
                if self.numel() == 0 && self.rank() != 1 {
                    write!(f, ", shape={}", self.shape())?;
                }
                f.write_char(')')
            }
            Err(error) => write!(f, "tensor(<{error}>, shape={}, dtype={})", self.shape(), self.dtype()),
        }
    }
}

impl std::fmt::Debug for Tensor {
    /// Shape, dtype and device; the elements are not computed.
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({}, {}, {})", self.shape(), self.dtype(), self.device())
    }
}

impl Tensor {
    /// The printed form of the elements that are shown, in order.
    fn shown(&self) -> Result<Vec<String>> {
        let edges = self.numel() > THRESHOLD;
        let mut shown = self.detach();
        for dim in 0..self.rank() {
            let size = self.dims()[dim];
            if edges && size > 2 * EDGE {
                let parts = [shown.narrow(dim, 0, EDGE)?, shown.narrow(dim, size - EDGE, EDGE)?];
                shown = Tensor::cat(&parts, dim)?;
            }
        }
        match self.dtype() {
            DType::Bool => Ok(shown.to_vec::<bool>()?.iter().map(bool::to_string).collect()),
            dtype if dtype.is_float() => {
                let exact = shown.to_device(&Device::cpu())?.to_dtype(DType::F64)?;
                Ok(float_cells(&exact.to_vec::<f64>()?))
            }
            _ => Ok(shown.to_dtype(DType::I64)?.to_vec::<i64>()?.iter().map(i64::to_string).collect()),
        }
    }
}

/// Four decimals; scientific where the magnitudes do not fit them; `1.` where all are whole.
fn float_cells(values: &[f64]) -> Vec<String> {
    let finite = || values.iter().map(|v| v.abs()).filter(|v| v.is_finite() && *v > 0.0);
    let (largest, least) = (finite().fold(0.0, f64::max), finite().fold(f64::INFINITY, f64::min));
    let whole = values.iter().filter(|v| v.is_finite()).all(|v| v.fract() == 0.0);
    let scientific = largest >= 1e8 || (!whole && (largest / least > 1e3 || least < 1e-4));
    let cell = |&v: &f64| match v {
        v if v.is_nan() => "nan".to_string(),
        v if v.is_infinite() => if v > 0.0 { "inf" } else { "-inf" }.to_string(),
        v if scientific => scientific_cell(v),
        v if whole => format!("{v:.0}."),
        v => format!("{v:.4}"),
    };
    values.iter().map(cell).collect()
}

/// `1.2346e-05`, as C prints it.
fn scientific_cell(v: f64) -> String {
    let text = format!("{v:.4e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn write_level(
    dims: &[usize],
    edges: bool,
    cells: &mut std::slice::Iter<String>,
    width: usize,
    indent: usize,
    out: &mut String,
) -> std::fmt::Result {
    let Some((&size, inner)) = dims.split_first() else {
        return out.write_str(cells.next().map_or("", |c| c));
    };
    out.write_char('[')?;
    let cut = edges && size > 2 * EDGE;
    let shown = if cut { 2 * EDGE } else { size };
    for i in 0..shown {
        if i > 0 {
            separate(inner.len(), indent, out)?;
        }
        if cut && i == EDGE {
            out.write_str("...")?;
            separate(inner.len(), indent, out)?;
        }
        if inner.is_empty() {
            write!(out, "{:>width$}", cells.next().map_or("", |c| c))?;
        } else if !inner.contains(&0) {
            write_level(inner, edges, cells, width, indent + 1, out)?;
        } else {
            out.write_str("[]")?;
        }
    }
    out.write_char(']')
}

/// A comma, and for anything but numbers as many line ends as dimensions follow.
fn separate(inner: usize, indent: usize, out: &mut String) -> std::fmt::Result {
    out.write_char(',')?;
    if inner == 0 {
        return out.write_char(' ');
    }
    (0..inner).try_for_each(|_| out.write_char('\n'))?;
    write!(out, "{:indent$}", "")
}
