//! The UCI digits: real 8x8 images of handwritten digits.

use smartcore::dataset::digits;
use tensorlogic::{DType, Device, Result, Tensor};

/// Images that are held out in each shuffle; the others are learnt from.
pub const HELD_OUT: usize = 360;
/// The largest pixel value of the data set.
const WHITE: f32 = 16.0;

/// Images and what they show.
pub struct Digits {
    /// `[images, 64]`, from 0 to 1: sixteenths, which every float dtype holds exactly.
    pub pixels: Tensor,
    /// `[images]`, i64.
    pub labels: Tensor,
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

    /// The images in an order that depends on `seed` alone: those held out, and the others.
    pub fn split(&self, seed: u64) -> Result<(Digits, Digits)> {
        let order = Tensor::from_vec(shuffled(self.len(), seed), self.len(), self.labels.device())?;
        let (pixels, labels) = (self.pixels.index_select(0, &order)?, self.labels.index_select(0, &order)?);
        let part = |start: usize, len: usize| -> Result<Digits> {
            Ok(Digits { pixels: pixels.narrow(0, start, len)?, labels: labels.narrow(0, start, len)? })
        };
        Ok((part(0, HELD_OUT)?, part(HELD_OUT, self.len() - HELD_OUT)?))
    }

    /// How many of these images `predicted` labels rightly, from 0 to 1.
    pub fn accuracy(&self, predicted: &Tensor) -> Result<f32> {
        predicted.eq(&self.labels)?.to_dtype(DType::F32)?.mean_all()?.item()
    }
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
