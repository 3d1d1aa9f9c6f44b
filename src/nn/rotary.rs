//! Positions as angles.

use super::{Item, Module, Path};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{RotaryLayout, Tensor};

/// [`Tensor::rotary`] by positions: pair i of position p turns by p / base^(2 i / width) (Su et al. 2021, eq. 15).
///
/// Cosines and sines stand in tables, f32, computed in f64. Nothing in it is learned; a clone shares the tables, so that
/// all layers of a model read the same ones.
///
/// ```
/// use tensorlogic::nn::RotaryEmbedding;
/// use tensorlogic::{DType, Device, RotaryLayout, Tensor};
/// let device = Device::cpu();
/// let rotary = RotaryEmbedding::new(64, 128, 10_000.0, RotaryLayout::Halves, &device)?;
/// let x = Tensor::ones((2, 16, 4, 64), DType::F32, &device)?; // [batch, positions, heads, width]
/// assert_eq!(rotary.forward(&x, 1, 0)?.dims(), [2, 16, 4, 64]);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    /// `[positions, width / 2]`.
    cos: Tensor,
    sin: Tensor,
    layout: RotaryLayout,
}

impl RotaryEmbedding {
    /// For heads of `width` elements and the positions `0 .. positions`; `base` is 10,000 in the original.
    ///
    /// # Errors
    /// An odd width; a base that is not positive; no positions; out of memory.
    pub fn new(
        width: usize,
        positions: usize,
        base: f64,
        layout: RotaryLayout,
        device: &Device,
    ) -> Result<RotaryEmbedding> {
        if width == 0 || width % 2 == 1 || positions == 0 || !base.is_finite() || base <= 0.0 {
            let reason = format!(
                "width {width}, {positions} positions, base {base}; the width must be even, and all of them positive"
            );
            return Err(Error::arg("RotaryEmbedding", reason));
        }
        let pairs = width / 2;
        let angle = |i: usize| (i / pairs) as f64 / base.powf((i % pairs) as f64 / pairs as f64);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions * pairs).map(|i| f(angle(i)) as f32).collect();
            Tensor::from_vec(values, (positions, pairs), device)
        };
        Ok(RotaryEmbedding { cos: table(f64::cos)?, sin: table(f64::sin)?, layout })
    }

    /// Turns `x`, of which dimension `dim` runs over positions from `start` on, and the last over the width. `start` is
    /// an input of the plan: to go on from another position plans nothing anew.
    ///
    /// # Errors
    /// Positions beyond the tables; no such dimension; what [`Tensor::rotary`] reports.
    pub fn forward(&self, x: &Tensor, dim: usize, start: usize) -> Result<Tensor> {
        const OP: &str = "RotaryEmbedding";
        let (count, known) = (x.dim(dim as isize)?, self.cos.dims()[0]);
        if dim + 1 >= x.rank() {
            return Err(Error::shape(OP, x.shape(), "positions need a dimension before the last"));
        }
        if start + count > known {
            let reason = format!("positions {start} .. {}, and there are {known}", start + count);
            return Err(Error::shape(OP, x.shape(), reason));
        }
        // A view costs less than a gather, and a single index less than several.
        let rows = |table: &Tensor| match (start, count) {
            (0, _) => table.narrow(0, 0, count),
            (_, 1) => table.index_select(0, &Tensor::full(1, start as f64, DType::I64, x.device())?),
            _ => table.index_select(0, &(Tensor::iota(count, x.device())? + start as i64)?),
        };
        let mut dims = vec![1; x.rank() - dim];
        (dims[0], dims[x.rank() - dim - 1]) = (count, self.cos.dims()[1]);
        x.rotary(&rows(&self.cos)?.reshape(&dims[..])?, &rows(&self.sin)?.reshape(&dims[..])?, self.layout)
    }
}

impl Module for RotaryEmbedding {
    fn visit<'a>(&'a self, _: &mut Path, _: &mut dyn FnMut(&Path, Item<'a>)) {}
}
