//! What a model writes.

use super::model::Gpt;
use tensorlogic::nn::Module;
use tensorlogic::{DType, Device, Result, Tensor, autocast, no_grad};

/// How the next token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely ones; 0 for all.
    pub top_k: usize,
    /// Only the most likely ones, up to this probability in all (Holtzman et al. 2020, section 3.1).
    pub top_p: f64,
}

impl Sampling {
    /// The token that a number in 0 .. 1 draws.
    pub fn draw(&self, logits: &[f32], number: f64) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if self.temperature <= 0.0 {
            return order.first().map_or(0, |&i| i as u32);
        }
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let Some(most) = order.first().map(|&i| logits[i]) else { return 0 };
        let weight = |&i: &usize| ((logits[i] - most) as f64 / self.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let limit = self.top_p * weights.iter().sum::<f64>();
        // Sums up to each of them; the one that reaches the limit still counts.
        let sums: Vec<f64> = weights.iter().scan(0.0, |sum, w| Some((*sum += w, *sum).1)).collect();
        let last = sums.iter().position(|&sum| sum >= limit).unwrap_or(sums.len() - 1);
        let at = sums[..last].iter().position(|&sum| sum > number * sums[last]).unwrap_or(last);
        order[at] as u32
    }
}

/// Up to `count` tokens behind `prompt`, one by one, with a cache; where that is full, half of it is read again.
pub fn generate(
    gpt: &Gpt,
    prompt: &[u32],
    count: usize,
    sampling: &Sampling,
    (dtype, seed): (DType, u64),
    device: &Device,
) -> Result<Vec<u32>> {
    gpt.set_training(false);
    let mut ids = prompt.to_vec();
    let mut state = seed;
    let mut cache = gpt.cache(1, dtype, device)?;
    let capacity = cache.capacity();
    let mut read = 0;
    let result = no_grad(|| {
        autocast(dtype, || {
            while ids.len() < prompt.len() + count {
                if cache.len() == capacity || ids.len() - read > capacity {
                    cache.truncate(0);
                    read = ids.len() - ids.len().min(capacity / 2);
                }
                let new = &ids[read..];
                let logits = gpt.next(&Tensor::from_slice(new, (1, new.len()), device)?, &mut cache)?;
                read = ids.len();
                let logits = logits.to_dtype(DType::F32)?.to_vec::<f32>()?;
                ids.push(sampling.draw(&logits, split_mix(&mut state)));
            }
            Ok(())
        })
    });
    gpt.set_training(true);
    result.map(|()| ids.split_off(prompt.len()))
}

/// The next number of SplitMix64 (Steele, Lea and Flood 2014, figure 17), in 0 .. 1.
fn split_mix(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
