//! The UCI digits, and their classification by the nearest neighbour, in tensor operations.

use smartcore::dataset::digits;
use tensorlogic::{DType, Device, Result, Tensor};

/// Images that are classified in each shuffle; the others are what they are compared with.
pub const HELD_OUT: usize = 360;
/// The largest pixel value of the data set.
const WHITE: f32 = 16.0;

/// Real 8x8 images of handwritten digits, and what they show.
pub struct Digits {
    /// `[images, 64]`, from 0 to 1: sixteenths, which every float dtype holds exactly.
    pixels: Tensor,
    /// `[images]`, i64.
    labels: Tensor,
}

impl Digits {
    /// All 1,797 images, stored as `dtype`.
    pub fn load(dtype: DType, device: &Device) -> Result<Digits> {
        let data = digits::load_dataset();
        let pixels: Vec<f32> = data.data.iter().map(|p| p / WHITE).collect();
        let labels: Vec<i64> = data.target.iter().map(|&label| label as i64).collect();
        Ok(Digits {
            pixels: Tensor::from_vec(pixels, (data.num_samples, data.num_features), device)?.to_dtype(dtype)?,
            labels: Tensor::from_vec(labels, data.num_samples, device)?,
        })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.numel()
    }

    /// How many of the first [`HELD_OUT`] images of a shuffle have the label of their nearest neighbour
    /// among the others, from 0 to 1.
    pub fn accuracy(&self, seed: u64) -> Result<f32> {
        let order = Tensor::from_vec(shuffled(self.len(), seed), self.len(), self.labels.device())?;
        let pixels = self.pixels.index_select(0, &order)?;
        let labels = self.labels.index_select(0, &order)?;
        let known = self.len() - HELD_OUT;
        let nearest = nearest(&pixels.narrow(0, 0, HELD_OUT)?, &pixels.narrow(0, HELD_OUT, known)?)?;
        let predicted = labels.narrow(0, HELD_OUT, known)?.index_select(0, &nearest)?;
        predicted.eq(&labels.narrow(0, 0, HELD_OUT)?)?.to_dtype(DType::F32)?.mean_all()?.item()
    }
}

/// For each row of `queries` `[m, width]`, the position of the nearest row of `known` `[n, width]`: the
/// least |q|^2 - 2 q.k + |k|^2, of which |q|^2 is left out, as it is the same for every k.
///
/// The product runs in the dtype of the data. Around the mean of `known` the products are small, so
/// that rounding them to bf16 costs little; the squares of the very same rounded values are summed in
/// f32, where they do not swallow the differences that decide.
fn nearest(queries: &Tensor, known: &Tensor) -> Result<Tensor> {
    let mean = known.mean(0)?;
    let (queries, known) = ((queries - &mean)?, (known - &mean)?);
    let squares = known.to_dtype(DType::F32)?.sqr()?.sum(1)?;
    let products = queries.matmul(&known.t()?)?.to_dtype(DType::F32)?;
    (squares - (products * 2.0)?)?.argmin(1)
}

/// `0 .. n` in an order that depends on `seed` alone (Fisher and Yates 1938).
fn shuffled(n: usize, seed: u64) -> Vec<i64> {
    let mut order: Vec<i64> = (0..n as i64).collect();
    let mut state = seed;
    for last in (1..n).rev() {
        order.swap(last, (split_mix(&mut state) % (last as u64 + 1)) as usize);
    }
    order
}

/// The next number of SplitMix64 (Steele, Lea and Flood 2014, figure 17).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
