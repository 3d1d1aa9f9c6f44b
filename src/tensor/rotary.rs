//! Rotary position embedding.

use super::Tensor;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// Which elements of a head [`Tensor::rotary`] turns together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RotaryLayout {
    /// Element i and element i + width / 2, as GPT-NeoX and Llama do.
    #[default]
    Halves,
    /// Elements 2 i and 2 i + 1, as GPT-J and the original do.
    Pairs,
}

impl Tensor {
    /// Turns the elements of the last dimension two by two: (a, b) becomes (a cos - b sin, a sin + b cos), in f32 for
    /// f16 and bf16 (Su et al. 2021, eq. 34).
    ///
    /// `[.., width]`, with cosines and sines `[.., width / 2]` that broadcast to its pairs;
    /// [`crate::nn::RotaryEmbedding`] makes them from positions. Nothing is copied: both elements of a pair are read
    /// through views.
    ///
    /// ```
    /// use tensorlogic::{Device, RotaryLayout, Tensor};
    /// let device = Device::cpu();
    /// let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0], (1, 4), &device)?;
    /// let (cos, sin) = (Tensor::zeros_like(&x.narrow(1, 0, 2)?)?, Tensor::ones_like(&x.narrow(1, 0, 2)?)?);
    /// assert_eq!(x.rotary(&cos, &sin, RotaryLayout::Halves)?.to_vec2::<f32>()?, [[-3.0, -4.0, 1.0, 2.0]]);
    /// assert_eq!(x.rotary(&cos, &sin, RotaryLayout::Pairs)?.to_vec2::<f32>()?, [[-2.0, 1.0, -4.0, 3.0]]);
    /// # Ok::<(), tensorlogic::Error>(())
    /// ```
    ///
    /// # Errors
    /// An odd width; cosines or sines that do not broadcast to the pairs; dtypes that are no floats.
    #[track_caller]
    pub fn rotary(&self, cos: &Tensor, sin: &Tensor, layout: RotaryLayout) -> Result<Tensor> {
        const OP: &str = "rotary";
        [self, cos, sin].iter().try_for_each(|x| x.needs_float(OP))?;
        let width = self.dims().last().copied().unwrap_or(1);
        if width % 2 == 1 {
            return Err(Error::shape(OP, self.shape(), "the last dimension must be even: it is turned two by two"));
        }
        let mut dims = self.dims().to_vec();
        dims.pop();
        let with = |last: &[usize]| Shape::new(&[&dims[..], last].concat());
        let pairs = with(&[width / 2])?;
        for table in [cos, sin] {
            self.same_device(OP, table)?;
            if Shape::broadcast(OP, table.shape(), &pairs)? != pairs {
                return Err(Error::shapes(OP, table.shape(), &pairs, "it does not broadcast to the pairs"));
            }
        }
        // The dimension of the two elements of a pair: before that of the pairs, or behind it.
        let (split, along) = match layout {
            RotaryLayout::Halves => (with(&[2, width / 2])?, -2),
            RotaryLayout::Pairs => (with(&[width / 2, 2])?, -1),
        };
        let wide = self.reshape(split)?.widened()?;
        let dtype = wide.dtype();
        let table = |x: &Tensor| x.unsqueeze(along)?.to_dtype(dtype);
        let other = wide.slice(along, .., -1)?;
        let place = Tensor::iota(2, self.device())?.to_dtype(dtype)?;
        let place = if along == -2 { place.unsqueeze(1)? } else { place };
        // The first of a pair loses what the second gains.
        let turned = (other * ((place * 2.0)? - 1.0)?)?;
        ((wide * table(cos)?)? + (turned * table(sin)?)?)?.to_dtype(self.dtype())?.reshape(*self.shape())
    }
}
