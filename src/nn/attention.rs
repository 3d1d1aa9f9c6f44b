//! Attention with its projections.

use super::{KvCache, Layer, Linear, Module, RotaryEmbedding};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{AttentionOptions, Tensor};

/// How a [`MultiHeadAttention`] is built.
#[derive(Clone, Debug)]
pub struct MultiHeadAttentionOptions {
    /// Elements of a position; a head has `width / heads` of them.
    pub width: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, which divide those of the queries (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Whether a position sees only those up to itself.
    pub causal: bool,
    /// Whether the projections add a bias.
    pub bias: bool,
    /// What turns queries and keys by their positions.
    pub rotary: Option<RotaryEmbedding>,
}

impl MultiHeadAttentionOptions {
    /// Causal, with biases, as many heads of keys as of queries, and without rotary positions: as GPT-2 has it.
    pub fn new(width: usize, heads: usize) -> MultiHeadAttentionOptions {
        MultiHeadAttentionOptions { width, heads, kv_heads: heads, causal: true, bias: true, rotary: None }
    }
}

/// Self-attention with learned projections (Vaswani et al. 2017, section 3.2.2): `[batch, positions, width]` to the
/// same.
///
/// Queries, keys and values are views of one product. Rotary positions cost one kernel, which turns queries and keys.
#[derive(Clone, Debug, Module)]
pub struct MultiHeadAttention {
    /// `[(heads + 2 kv_heads) (width / heads), width]`: the rows of all queries, then keys, then values.
    pub qkv: Linear,
    /// `[width, width]`.
    pub output: Linear,
    #[module(skip)]
    options: MultiHeadAttentionOptions,
}

impl MultiHeadAttention {
    /// With weights as [`Linear::new`] has them.
    ///
    /// # Errors
    /// Heads that do not divide the width, or heads of keys that do not divide those of the queries; a dtype that is no
    /// float; out of memory.
    pub fn new(options: &MultiHeadAttentionOptions, dtype: DType, device: &Device) -> Result<MultiHeadAttention> {
        let &MultiHeadAttentionOptions { width, heads, kv_heads, bias, .. } = options;
        let divides = |part: usize, whole: usize| part > 0 && whole > 0 && whole.is_multiple_of(part);
        if !divides(heads, width) || !divides(kv_heads, heads) {
            let reason = format!(
                "width {width}, {heads} heads, {kv_heads} of keys; each must be a multiple of the next, and positive"
            );
            return Err(Error::arg("MultiHeadAttention", reason));
        }
        let linear = |outputs| match bias {
            true => Linear::new(width, outputs, dtype, device),
            false => Linear::without_bias(width, outputs, dtype, device),
        };
        let qkv = linear((heads + 2 * kv_heads) * (width / heads))?;
        Ok(MultiHeadAttention { qkv, output: linear(width)?, options: options.clone() })
    }

    /// How it was built.
    pub fn options(&self) -> &MultiHeadAttentionOptions {
        &self.options
    }

    /// Attention of new positions to those in `cache` and to one another, with the cache's mask; they are appended as
    /// layer number `layer`. [`KvCache::advance`] comes first.
    ///
    /// # Errors
    /// Shapes or dtypes that do not fit the cache; attention that is not causal; as [`Layer::forward`].
    pub fn forward_cached(&self, x: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        if !self.options.causal {
            return Err(Error::arg("forward_cached", "later positions change what earlier ones see: not causal"));
        }
        let [q, k, v] = self.heads(x, cache.start())?;
        let (k, v) = cache.append(layer, &k, &v)?;
        let options = AttentionOptions { mask: Some(cache.mask()?), ..AttentionOptions::default() };
        self.joined(&q.scaled_dot_product_attention(&k, &v, &options)?)
    }

    /// Queries, keys and values `[batch, heads, positions, width of a head]` of positions from `start` on.
    fn heads(&self, x: &Tensor, start: usize) -> Result<[Tensor; 3]> {
        let &MultiHeadAttentionOptions { width, heads, kv_heads, .. } = &self.options;
        let &[batch, positions, features] = x.dims() else {
            return Err(Error::shape("MultiHeadAttention", x.shape(), "[batch, positions, width] is wanted"));
        };
        if features != width {
            return Err(Error::shape("MultiHeadAttention", x.shape(), format!("the last dimension must be {width}")));
        }
        let all = self.qkv.forward(x)?.reshape((batch, positions, heads + 2 * kv_heads, width / heads))?;
        // Queries and keys lie beside each other: they are turned as one.
        let turned = match &self.options.rotary {
            Some(rotary) => rotary.forward(&all.narrow(2, 0, heads + kv_heads)?, 1, start)?,
            None => all.clone(),
        };
        let part = |of: &Tensor, from, count| of.narrow(2, from, count)?.transpose(1, 2);
        Ok([part(&turned, 0, heads)?, part(&turned, heads, kv_heads)?, part(&all, heads + kv_heads, kv_heads)?])
    }

    /// The heads' results side by side, projected.
    fn joined(&self, y: &Tensor) -> Result<Tensor> {
        let y = y.transpose(1, 2)?;
        self.output.forward(&y.flatten(2, 3)?)
    }
}

impl Layer for MultiHeadAttention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [q, k, v] = self.heads(x, 0)?;
        let options = AttentionOptions { causal: self.options.causal, ..AttentionOptions::default() };
        self.joined(&q.scaled_dot_product_attention(&k, &v, &options)?)
    }
}
