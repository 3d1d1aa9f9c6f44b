//! Classification by the nearest neighbour: one matrix product, a fused expression over it, an argmin
//! and a gather.

use super::data::Digits;
use tensorlogic::{DType, Result, Tensor};

/// How many of the images held out in a shuffle have the label of their nearest neighbour among the
/// others, from 0 to 1.
pub fn accuracy(digits: &Digits, seed: u64) -> Result<f32> {
    let (held_out, known) = digits.split(seed)?;
    let nearest = nearest(&held_out.pixels, &known.pixels)?;
    held_out.accuracy(&known.labels.index_select(0, &nearest)?)
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
