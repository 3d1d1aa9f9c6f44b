//! Scaled dot product attention.

use super::{Tensor, autocast, full_precision};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Attention, AttentionPart, Op, Track};
use crate::shape::Shape;

/// Elements of a head up to which one kernel computes attention.
const WIDEST: usize = 256;

/// What queries see, and how scores are scaled.
///
/// ```
/// use tensorlogic::AttentionOptions;
/// let decoder = AttentionOptions { causal: true, ..AttentionOptions::default() };
/// assert!(decoder.mask.is_none() && decoder.scale.is_none());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Broadcasts to `[.., heads, queries, keys]`: bool, true where a query sees a key; or floats, which are added to
    /// the scaled scores.
    pub mask: Option<&'a Tensor>,
    /// Query i sees keys 0 to i + keys - queries: the last query sees all, as a decoder wants that holds earlier keys.
    pub causal: bool,
    /// What products of queries and keys are multiplied by; 1 / sqrt(width) if not given.
    pub scale: Option<f64>,
}

impl Tensor {
    /// `softmax(scale q k^T + mask) v` over the keys, with `self` as the queries (Vaswani et al. 2017, section 3.2.1).
    ///
    /// Queries are `[.., heads, queries, width]`, keys and values `[.., kv heads, keys, width]`; `heads` is a multiple of
    /// `kv heads`, and each run of heads shares keys and values (Ainslie et al. 2023). The result has the shape of the
    /// queries. Scores are f32 and never stored, so memory grows with the length, not with its square. Queries that see
    /// no key give zeros.
    ///
    /// ```
    /// use tensorlogic::{AttentionOptions, DType, Device, Tensor};
    /// let device = Device::cpu();
    /// let [q, k, v] = [0, 1, 2].map(|_| Tensor::randn((2, 4, 16, 32), DType::F32, &device));
    /// let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
    /// let y = q?.scaled_dot_product_attention(&k?, &v?, &options)?;
    /// assert_eq!(y.dims(), [2, 4, 16, 32]);
    /// # Ok::<(), tensorlogic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Shapes that do not fit, ranks other than 2 to 4, integers, dtypes or devices that differ.
    #[track_caller]
    pub fn scaled_dot_product_attention(&self, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
        const OP: &str = "scaled_dot_product_attention";
        if autocast::is_on() {
            let [q, k, v] = [self, k, v].map(autocast::operand);
            return full_precision(|| q?.scaled_dot_product_attention(&k?, &v?, options));
        }
        self.needs_float(OP)?;
        for other in [k, v] {
            self.same_device(OP, other)?;
            self.same_dtype(OP, other)?;
        }
        if !(2..=4).contains(&self.rank()) || k.rank() != self.rank() {
            let reason = "queries and keys have the same two to four dimensions: [batch, heads, positions, width]";
            return Err(Error::shapes(OP, self.shape(), k.shape(), reason));
        }
        if self.rank() < 4 {
            let lift = |x: &Tensor| x.unsqueeze(0);
            let mask = options.mask.filter(|mask| mask.rank() > 2).map(lift).transpose()?;
            let options = AttentionOptions { mask: mask.as_ref().or(options.mask), ..*options };
            return lift(self)?.scaled_dot_product_attention(&lift(k)?, &lift(v)?, &options)?.squeeze(0);
        }
        let (&[batch, heads, _, width], &[_, kv_heads, keys, _]) = (self.dims(), k.dims()) else {
            return Err(Error::internal(OP, "not of rank 4"));
        };
        if *k.dims() != [batch, kv_heads, keys, width] || k.shape() != v.shape() {
            let (lhs, rhs) = if k.shape() == v.shape() { (self.shape(), k.shape()) } else { (k.shape(), v.shape()) };
            return Err(Error::shapes(OP, lhs, rhs, "batch, width, and positions of keys and values must agree"));
        }
        if kv_heads == 0 || heads % kv_heads != 0 {
            let reason = "the heads of the queries must be a multiple of those of the keys";
            return Err(Error::shapes(OP, self.shape(), k.shape(), reason));
        }
        if keys == 0 || self.numel() == 0 {
            return Tensor::zeros(*self.shape(), self.dtype(), self.device());
        }
        let scale = options.scale.unwrap_or(1.0 / (width as f64).sqrt());
        let mask = options.mask.map(|mask| self.attention_mask(mask, keys)).transpose()?;
        let tracked_mask = mask.as_ref().is_some_and(Tensor::is_tracked);
        let whole = Whole { mask, causal: options.causal, scale };
        if self.dtype() == DType::F64 || width > WIDEST || tracked_mask {
            return whole.composed(self, k, v);
        }
        // What a model attends to it has computed, and what comes out goes into a product of all heads. Data as it
        // stands comes out as it stands.
        let heads_first = self.0.op == Op::Leaf;
        let [q, k, v] = [self, k, v].map(|x| x.transpose(1, 2));
        let y = whole.fused(&q?, &k?, &v?, heads_first)?;
        if heads_first { Ok(y) } else { y.transpose(1, 2) }
    }

    /// A mask as numbers of this tensor's dtype that are added to the scores, of rank 4.
    #[track_caller]
    fn attention_mask(&self, mask: &Tensor, keys: usize) -> Result<Tensor> {
        const OP: &str = "scaled_dot_product_attention";
        self.same_device(OP, mask)?;
        let scores = Shape::new(&[self.dims()[0], self.dims()[1], self.dims()[2], keys])?;
        if mask.rank() > 4 || Shape::broadcast(OP, mask.shape(), &scores)? != scores {
            return Err(Error::shapes(OP, mask.shape(), &scores, "the mask does not broadcast to the scores"));
        }
        let mask = match mask.dtype() {
            DType::Bool => mask.where_cond(0.0, Tensor::full((), f64::NEG_INFINITY, self.dtype(), self.device())?)?,
            dtype if dtype.is_float() => mask.to_dtype(self.dtype())?,
            dtype => return Err(Error::dtype(OP, dtype, "a mask is bool, or floats that are added to the scores")),
        };
        let mut dims = [1; 4];
        dims[4 - mask.rank()..].copy_from_slice(mask.dims());
        mask.reshape(dims)
    }
}

/// Attention of operands that were checked.
struct Whole {
    mask: Option<Tensor>,
    causal: bool,
    scale: f64,
}

impl Whole {
    /// As one kernel, of `[batch, positions, heads, width]`.
    #[track_caller]
    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor, heads_first: bool) -> Result<Tensor> {
        let (scale, causal, masked) = (self.scale as f32, self.causal, self.mask.is_some());
        let part = |part| Attention { part, scale, causal, masked, heads_first };
        let mut inputs = vec![q, k, v];
        inputs.extend(&self.mask);
        let tracked = inputs.iter().any(|x| x.0.track() != Track::Constant) && crate::graph::is_recording();
        // What derivatives need comes out of the same kernel.
        let sums = || {
            let shape = Shape::new(&q.dims()[..3])?;
            crate::graph::with_recording(false, || {
                Tensor::record(Op::Attention(part(AttentionPart::Sums)), &inputs, shape, DType::F32, q.device())
            })
        };
        let sums = if tracked { Some(sums()?) } else { None };
        inputs.extend(&sums);
        let shape = lying(q, heads_first)?;
        Tensor::record(Op::Attention(part(AttentionPart::Output)), &inputs, shape, q.dtype(), q.device())
    }

    /// As ordinary ops, of `[batch, heads, positions, width]`.
    #[track_caller]
    fn composed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (&[batch, heads, queries, width], &[_, kv_heads, keys, _]) = (q.dims(), k.dims()) else {
            return Err(Error::internal("scaled_dot_product_attention", "not of rank 4"));
        };
        let dtype = q.dtype();
        let grouped = |x: &Tensor, rows: usize| x.reshape((batch, kv_heads, heads / kv_heads, rows, width));
        let (q, k, v) = (grouped(q, queries)?.widened()?, k.unsqueeze(2)?.widened()?, v.unsqueeze(2)?.widened()?);
        let mut scores = (q.matmul(&k.t()?)? * self.scale)?.reshape((batch, heads, queries, keys))?;
        if let Some(mask) = &self.mask {
            scores = (scores + mask.widened()?)?;
        }
        if self.causal {
            let at = |n: usize| Tensor::iota(n, q.device());
            let seen = at(keys)?.le((at(queries)?.unsqueeze(1)? + (keys as i64 - queries as i64))?)?;
            scores = seen.where_cond(&scores, f64::NEG_INFINITY)?;
        }
        // As a softmax, but for queries that see no key.
        let most = scores.detach().max_keepdim(-1)?;
        let most = most.eq(f64::NEG_INFINITY)?.where_cond(0.0, &most)?;
        let weights = (scores - most)?.exp()?;
        let sum = weights.sum_keepdim(-1)?;
        let sum = sum.eq(0.0)?.where_cond(1.0, &sum)?;
        let weights = (weights / sum)?.reshape((batch, kv_heads, heads / kv_heads, queries, keys))?;
        weights.matmul(&v)?.reshape((batch, heads, queries, width))?.to_dtype(dtype)
    }
}

/// Attention as ordinary ops, of the operands that the node has.
#[track_caller]
pub(crate) fn composed(op: &Attention, operands: &[Tensor]) -> Result<Tensor> {
    let [q, k, v] = [0, 1, 2].map(|i| operands[i].transpose(1, 2));
    let mask = op.masked.then(|| operands[3].clone());
    let y = Whole { mask, causal: op.causal, scale: op.scale.into() }.composed(&q?, &k?, &v?)?;
    if op.heads_first { Ok(y) } else { y.transpose(1, 2) }
}

/// The shape of a result for an operand `[batch, positions, heads, width]`.
fn lying(x: &Tensor, heads_first: bool) -> Result<Shape> {
    let mut dims = x.dims().to_vec();
    if heads_first {
        dims.swap(1, 2);
    }
    Shape::new(&dims)
}

/// From one order of positions and heads to the other, if results lie head by head.
#[track_caller]
fn turned(op: &Attention, x: &Tensor) -> Result<Tensor> {
    if op.heads_first { x.transpose(1, 2) } else { Ok(x.clone()) }
}

/// What the gradients of all operands are computed from: that of the output, and for each query the sum of output times
/// gradient.
#[track_caller]
pub(crate) fn backward(op: &Attention, output: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
    let products = (output.widened()? * gradient.widened()?)?.sum(-1)?;
    Ok([turned(op, gradient)?, turned(op, &products)?])
}

/// The gradient of operand number `operand` of an attention node with these inputs.
#[track_caller]
pub(crate) fn gradient(
    op: &Attention,
    inputs: &[Tensor],
    operand: usize,
    [gradient, products]: &[Tensor; 2],
) -> Result<Tensor> {
    let part = [AttentionPart::Query, AttentionPart::Key, AttentionPart::Value][operand.min(2)];
    let mut all: Vec<&Tensor> = inputs[..op.operands()].iter().collect();
    all.extend([gradient, &inputs[op.operands()], products]);
    let (shape, of) = (lying(&inputs[operand], op.heads_first)?, &inputs[operand]);
    turned(op, &Tensor::record(Op::Attention(Attention { part, ..*op }), &all, shape, of.dtype(), of.device())?)
}
