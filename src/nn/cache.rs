//! Keys and values of earlier positions, for decoding.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, eval};

/// Keys and values of the positions that a decoder has seen, for each of its layers, with room for a fixed number of
/// positions: however many are filled, a step has the same plan.
///
/// A pass over new positions begins with [`KvCache::advance`]; then each layer appends its keys and values.
///
/// ```
/// use tensorlogic::nn::{KvCache, Module, TransformerBlock, TransformerOptions};
/// use tensorlogic::{DType, Device, Tensor};
/// let (dtype, device) = (DType::F32, Device::cpu());
/// let block = TransformerBlock::new(&TransformerOptions::new(32, 4), dtype, &device)?;
/// block.set_training(false);
/// let mut cache = KvCache::new(1, [1, 4, 16, 8], dtype, &device)?;
/// for count in [5, 1, 1] {
///     let x = Tensor::randn((1, count, 32), dtype, &device)?;
///     cache.advance(count)?;
///     let y = block.forward_cached(&x, &mut cache, 0)?;
///     assert_eq!(y.dims(), [1, count, 32]);
///     cache.eval_with(&[&y])?;
/// }
/// assert_eq!(cache.len(), 7);
/// # Ok::<(), tensorlogic::Error>(())
/// ```
pub struct KvCache {
    /// Keys and values, `[batch, kv heads, capacity, width]`.
    layers: Vec<[Tensor; 2]>,
    capacity: usize,
    /// Positions that are filled, with those of the present pass.
    length: usize,
    /// What the present pass adds, and what its queries see.
    pass: Option<Pass>,
}

struct Pass {
    count: usize,
    /// The first new position, i64: an input of the plan.
    start: Tensor,
    /// `[count, capacity]`, added to the scores.
    mask: Tensor,
}

impl KvCache {
    /// An empty cache of `layers` layers, each of `[batch, kv heads, capacity, width]`. Keys and values are kept as
    /// `dtype`: under [`crate::autocast`] its type.
    ///
    /// # Errors
    /// A dtype that is no float; a capacity of 0; out of memory.
    pub fn new(layers: usize, shape: [usize; 4], dtype: DType, device: &Device) -> Result<KvCache> {
        if !dtype.is_float() {
            return Err(Error::dtype("KvCache", dtype, "keys and values are floats"));
        }
        if shape[2] == 0 {
            return Err(Error::arg("KvCache", "a capacity of 0 positions"));
        }
        // Each of its own: a step writes over them.
        let zeros = || Tensor::zeros(shape, dtype, device)?.contiguous();
        let layers = (0..layers).map(|_| Ok([zeros()?, zeros()?])).collect::<Result<Vec<_>>>()?;
        eval(&layers.iter().flatten().collect::<Vec<_>>())?;
        Ok(KvCache { layers, capacity: shape[2], length: 0, pass: None })
    }

    /// How many positions are filled, with those of the present pass.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions from `length` on: 0 makes the cache as good as new.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.pass = None;
    }

    /// Begins a pass over `count` new positions.
    ///
    /// # Errors
    /// No room for them; a cache without layers.
    pub fn advance(&mut self, count: usize) -> Result<()> {
        let start = self.length;
        let Some([keys, _]) = self.layers.first().filter(|_| count > 0 && start + count <= self.capacity) else {
            let reason = format!("{count} new positions behind {start}; there is room for {}", self.capacity);
            return Err(Error::arg("KvCache::advance", reason));
        };
        let (device, dtype) = (keys.device().clone(), keys.dtype());
        let start = Tensor::full((), start as f64, DType::I64, &device)?;
        // A new position sees all up to itself.
        let own = (Tensor::iota(count, &device)?.unsqueeze(1)? + &start)?;
        let seen = Tensor::iota(self.capacity, &device)?.le(&own)?;
        let mask = seen.where_cond(Tensor::zeros((), dtype, &device)?, f64::NEG_INFINITY)?;
        self.length += count;
        self.pass = Some(Pass { count, start, mask });
        Ok(())
    }

    /// The first position of the present pass; 0 before any.
    pub fn start(&self) -> usize {
        self.length - self.pass.as_ref().map_or(0, |pass| pass.count)
    }

    /// The positions of the present pass, i64 `[count]`: inputs of the plan.
    ///
    /// # Errors
    /// No pass has begun.
    pub fn positions(&self) -> Result<Tensor> {
        let pass = self.pass()?;
        Tensor::iota(pass.count, pass.start.device())? + &pass.start
    }

    /// What the queries of the present pass see, `[count, capacity]`: 0, or minus infinity, in the cache's dtype.
    ///
    /// # Errors
    /// No pass has begun.
    pub fn mask(&self) -> Result<&Tensor> {
        Ok(&self.pass()?.mask)
    }

    /// Puts keys and values of the present pass, `[batch, kv heads, count, width]`, behind those that `layer` holds; all
    /// keys and all values, `[batch, kv heads, capacity, width]`. Old ones are written over where nobody else holds them.
    ///
    /// # Errors
    /// No pass has begun; no such layer; shapes or dtypes that do not fit.
    pub fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        const OP: &str = "KvCache::append";
        let layers = self.layers.len();
        let Some([old_keys, old_values]) = self.layers.get(layer) else {
            return Err(Error::arg(OP, format!("layer {layer} of {layers}")));
        };
        let (pass, start) = (self.pass()?, self.start());
        let keys = appended(OP, old_keys, keys, pass, start)?;
        let values = appended(OP, old_values, values, pass, start)?;
        self.layers[layer] = [keys.clone(), values.clone()];
        Ok((keys, values))
    }

    /// Computes the keys and values of the present pass, together with `others`, in one plan.
    ///
    /// # Errors
    /// What evaluation reports.
    pub fn eval_with(&self, others: &[&Tensor]) -> Result<()> {
        eval(&others.iter().copied().chain(self.layers.iter().flatten()).collect::<Vec<_>>())
    }

    fn pass(&self) -> Result<&Pass> {
        self.pass.as_ref().ok_or_else(|| Error::arg("KvCache", "no pass has begun; call advance() first"))
    }
}

/// `old` with `new` in the place of the rows from the pass's start on.
fn appended(op: &'static str, old: &Tensor, new: &Tensor, pass: &Pass, start: usize) -> Result<Tensor> {
    let mut dims = old.dims().to_vec();
    let capacity = std::mem::replace(&mut dims[2], pass.count);
    if new.dims() != dims {
        let reason = format!("the pass adds {} positions", pass.count);
        return Err(Error::shapes(op, old.shape(), new.shape(), reason));
    }
    old.same_dtype(op, new)?;
    old.same_device(op, new)?;
    if let Some(updated) = old.updated(new, 2, start)? {
        return Ok(updated);
    }
    // For each place, which of the new rows it gets.
    let row = (Tensor::iota(capacity, old.device())? - &pass.start)?;
    let (first, last) = (row.ge(0)?, row.lt(pass.count as i64)?);
    let is_new = first.and(&last)?.reshape((capacity, 1))?;
    let new = match pass.count {
        1 => new.clone(),
        count => new.index_select(2, &row.clamp(0, count as i64 - 1)?)?,
    };
    is_new.where_cond(new, old)
}
