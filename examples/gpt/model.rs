//! GPT-2 (Radford et al. 2019), built from `nn`.

use tensorlogic::nn::{Embedding, KvCache, Layer, LayerNorm, Module, TransformerBlock, TransformerOptions, init};
use tensorlogic::{DType, Device, Result, Tensor};

/// Standard deviation of the starting weights.
const STD: f64 = 0.02;

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub vocabulary: usize,
    pub context: usize,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
}

/// A decoder whose head is the table of its tokens.
#[derive(Module)]
pub struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    #[module(skip)]
    sizes: Sizes,
}

impl Gpt {
    /// With normal weights of standard deviation 0.02, those that end in a residual sum smaller by the root of how many
    /// there are (section 2.3), and biases of 0.
    pub fn new(sizes: Sizes, dropout: f64, device: &Device) -> Result<Gpt> {
        let Sizes { vocabulary, context, layers, width, heads } = sizes;
        let dtype = DType::F32;
        let options = TransformerOptions::new(width, heads).with_dropout(dropout);
        let gpt = Gpt {
            tokens: Embedding::new(vocabulary, width, dtype, device)?,
            positions: Embedding::new(context, width, dtype, device)?,
            blocks: (0..layers).map(|_| TransformerBlock::new(&options, dtype, device)).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, dtype, device)?,
            sizes,
        };
        for (name, var) in gpt.named_parameters().into_iter().filter(|(name, _)| !name.contains("norm")) {
            let residual = name.ends_with("output.weight") || name.ends_with("down.weight");
            let std = if residual { STD / (2.0 * layers as f64).sqrt() } else { STD };
            let value = match name.ends_with("weight") {
                true => init::normal(var.shape(), std, dtype, device)?,
                false => Tensor::zeros(var.shape(), dtype, device)?.contiguous()?,
            };
            var.set(&value)?;
        }
        Ok(gpt)
    }

    /// An empty cache, of the dtype that products have.
    pub fn cache(&self, batch: usize, dtype: DType, device: &Device) -> Result<KvCache> {
        let Sizes { context, layers, width, heads, .. } = self.sizes;
        KvCache::new(layers, [batch, heads, context, width / heads], dtype, device)
    }

    /// Ids behind those in the cache, `[batch, positions]`, to logits of what follows the last, `[batch, vocabulary]`.
    pub fn next(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        cache.advance(ids.dim(1)?)?;
        let mut x = (self.tokens.forward(ids)? + self.positions.forward(&cache.positions()?)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward_cached(&x, cache, layer)?;
        }
        let logits = self.logits(&x.narrow(1, ids.dim(1)? - 1, 1)?)?.squeeze(1)?;
        cache.eval_with(&[&logits])?;
        Ok(logits)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)?.matmul(&self.tokens.weight.tensor().t()?)
    }

    /// The mean cross entropy of `targets`, which follow the ids.
    pub fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.forward(ids)?.flatten(0, 1)?.cross_entropy(&targets.flatten_all()?)
    }
}

impl Layer for Gpt {
    /// Ids `[batch, positions]`, at most as many as the context, to logits `[batch, positions, vocabulary]`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let positions = ids.dim(1)?;
        let places = self.positions.weight.tensor().narrow(0, 0, positions)?;
        let mut x = (self.tokens.forward(ids)? + places)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.logits(&x)
    }
}
