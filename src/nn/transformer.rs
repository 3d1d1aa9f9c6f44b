//! The block of a transformer.

use super::{
    Dropout, KvCache, Layer, LayerNorm, Linear, Module, MultiHeadAttention, MultiHeadAttentionOptions, RotaryEmbedding,
};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// How a [`TransformerBlock`] is built.
#[derive(Clone, Debug)]
pub struct TransformerOptions {
    /// The attention.
    pub attention: MultiHeadAttentionOptions,
    /// Elements of the hidden layer.
    pub hidden: usize,
    /// Probability with which elements of what is added to a position are dropped in training; 0 drops nothing.
    pub dropout: f64,
}

impl TransformerOptions {
    /// As GPT-2 has it: causal, biases, a hidden layer four times as wide; without dropout.
    pub fn new(width: usize, heads: usize) -> TransformerOptions {
        let attention = MultiHeadAttentionOptions::new(width, heads);
        TransformerOptions { attention, hidden: 4 * width, dropout: 0.0 }
    }

    /// With rotary positions.
    #[must_use]
    pub fn with_rotary(mut self, rotary: RotaryEmbedding) -> TransformerOptions {
        self.attention.rotary = Some(rotary);
        self
    }

    /// With dropout.
    #[must_use]
    pub fn with_dropout(self, dropout: f64) -> TransformerOptions {
        TransformerOptions { dropout, ..self }
    }
}

/// x + attention(norm(x)), then x + mlp(norm(x)), where the MLP is linear, GELU in its tanh form, linear (Radford et al.
/// 2019, section 2.3): `[batch, positions, width]` to the same.
#[derive(Debug, Module)]
pub struct TransformerBlock {
    /// Before the attention.
    pub attention_norm: LayerNorm,
    /// See there.
    pub attention: MultiHeadAttention,
    /// Before the MLP.
    pub mlp_norm: LayerNorm,
    /// `[hidden, width]`.
    pub up: Linear,
    /// `[width, hidden]`.
    pub down: Linear,
    dropout: Dropout,
}

impl TransformerBlock {
    /// With weights as [`Linear::new`] and [`LayerNorm::new`] have them.
    ///
    /// # Errors
    /// What [`MultiHeadAttention::new`] and [`Dropout::new`] report.
    pub fn new(options: &TransformerOptions, dtype: DType, device: &Device) -> Result<TransformerBlock> {
        let &TransformerOptions { hidden, dropout, .. } = options;
        let &MultiHeadAttentionOptions { width, bias, .. } = &options.attention;
        let linear = |inputs, outputs| match bias {
            true => Linear::new(inputs, outputs, dtype, device),
            false => Linear::without_bias(inputs, outputs, dtype, device),
        };
        Ok(TransformerBlock {
            attention_norm: LayerNorm::new(width, dtype, device)?,
            attention: MultiHeadAttention::new(&options.attention, dtype, device)?,
            mlp_norm: LayerNorm::new(width, dtype, device)?,
            up: linear(width, hidden)?,
            down: linear(hidden, width)?,
            dropout: Dropout::new(dropout)?,
        })
    }

    /// The block over new positions, whose keys and values become those of layer number `layer`: see
    /// [`MultiHeadAttention::forward_cached`].
    ///
    /// # Errors
    /// As there.
    pub fn forward_cached(&self, x: &Tensor, cache: &mut KvCache, layer: usize) -> Result<Tensor> {
        let attended = self.attention.forward_cached(&self.attention_norm.forward(x)?, cache, layer)?;
        self.after_attention(x, &attended)
    }

    fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let x = (x + self.dropout.forward(attended)?)?;
        let hidden = self.up.forward(&self.mlp_norm.forward(&x)?)?.gelu()?;
        x + self.dropout.forward(&self.down.forward(&hidden)?)?
    }
}

impl Layer for TransformerBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let attended = self.attention.forward(&self.attention_norm.forward(x)?)?;
        self.after_attention(x, &attended)
    }
}
