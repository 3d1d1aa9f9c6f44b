//! Rotary positions, attention with projections, transformer blocks, decoding with a cache.

use crate::oracle::{budget, on_every_device};
use crate::process::{child, is_child};
use tensorlogic::nn::{
    KvCache, Layer, Module, MultiHeadAttention, MultiHeadAttentionOptions, RotaryEmbedding, TransformerBlock,
    TransformerOptions,
};
use tensorlogic::testing::{counters, explain, kernel_count};
use tensorlogic::{DType, Device, Result, RotaryLayout, Tensor, autocast, capture, no_grad};

on_every_device! {
    rotary_positions_turn_pairs,
    rotary_positions_cost_one_kernel,
    attention_is_that_of_its_heads,
    a_block_takes_seven_kernels,
    decoding_is_the_whole_pass,
    appending_is_in_place,
}

const LAYOUTS: [RotaryLayout; 2] = [RotaryLayout::Halves, RotaryLayout::Pairs];

/// Numbers from -1 to 1 that follow no simple pattern.
fn values(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let count = dims.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919 + 13 * i * i) % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, dims, device)?.to_dtype(dtype)?.contiguous()
}

fn rotary_positions_turn_pairs(device: &Device) -> Result<()> {
    let (positions, heads, width, base, start) = (5, 2, 8, 100.0, 3);
    let x = values(&[positions, heads, width], DType::F32, device)?;
    let numbers = x.to_vec3::<f32>()?;
    for layout in LAYOUTS {
        let rotary = RotaryEmbedding::new(width, 16, base, layout, device)?;
        let got = rotary.forward(&x, 0, start)?.to_vec3::<f32>()?;
        for (p, (got, x)) in got.iter().zip(&numbers).enumerate() {
            for (got, x) in got.iter().zip(x) {
                for pair in 0..width / 2 {
                    let (i, j) = match layout {
                        RotaryLayout::Halves => (pair, pair + width / 2),
                        RotaryLayout::Pairs => (2 * pair, 2 * pair + 1),
                    };
                    let angle = (start + p) as f64 * base.powf(-2.0 * pair as f64 / width as f64);
                    let (a, b, cos, sin) = (x[i] as f64, x[j] as f64, angle.cos(), angle.sin());
                    for (got, want) in [(got[i], a * cos - b * sin), (got[j], a * sin + b * cos)] {
                        assert!((got as f64 - want).abs() < 1e-6, "{layout:?}, position {p}: {got}, not {want}");
                    }
                }
            }
        }
    }
    let rotary = RotaryEmbedding::new(width, 16, base, RotaryLayout::Halves, device)?;
    let message = rotary.forward(&x, 0, 12).unwrap_err().to_string();
    assert!(message.contains("positions 12 .. 17, and there are 16"), "{message}");
    assert!(rotary.forward(&x, 2, 0).is_err() && rotary.forward(&x.narrow(2, 0, 7)?, 0, 0).is_err());
    assert!(RotaryEmbedding::new(7, 16, base, RotaryLayout::Pairs, device).is_err());
    Ok(())
}

/// It is turned where it is read; positions are inputs of the plan.
fn rotary_positions_cost_one_kernel(device: &Device) -> Result<()> {
    let x = values(&[2, 5, 3, 8], DType::F16, device)?;
    x.eval()?;
    for layout in LAYOUTS {
        let rotary = RotaryEmbedding::new(8, 16, 1e4, layout, device)?;
        let one = x.narrow(1, 2, 1)?;
        for (x, start) in [(&x, 0), (&one, 4)] {
            let y = (rotary.forward(x, 1, start)?.to_dtype(DType::F32)? * 2.0)?;
            assert_eq!(kernel_count(&[&y])?, 1, "{layout:?}\n{}", y.explain()?);
        }
    }
    Ok(())
}

fn attention_is_that_of_its_heads(device: &Device) -> Result<()> {
    let (width, heads, kv_heads) = (24, 6, 2);
    let rotary = RotaryEmbedding::new(4, 8, 1e4, RotaryLayout::Pairs, device)?;
    let options = MultiHeadAttentionOptions {
        kv_heads,
        causal: false,
        rotary: Some(rotary.clone()),
        ..MultiHeadAttentionOptions::new(width, heads)
    };
    let attention = MultiHeadAttention::new(&options, DType::F32, device)?;
    assert_eq!(attention.qkv.weight.shape().dims(), [(6 + 2 + 2) * 4, 24]);
    let x = values(&[2, 7, width], DType::F32, device)?;
    let got = attention.forward(&x)?;
    // Head by head, as the formula stands.
    let projected = attention.qkv.forward(&x)?.detach();
    let head = |i: usize| projected.narrow(2, 4 * i, 4);
    let turned = |i: usize| rotary.forward(&head(i)?, 1, 0);
    let one = |h: usize| -> Result<Tensor> {
        let group = h / (heads / kv_heads);
        let scores = (turned(h)?.matmul(&turned(heads + group)?.transpose(1, 2)?)? / 2.0)?;
        scores.softmax(-1)?.matmul(&head(heads + kv_heads + group)?)
    };
    let all = (0..heads).map(one).collect::<Result<Vec<_>>>()?;
    let want = attention.output.forward(&Tensor::cat(&all, 2)?)?;
    let error = (got - want)?.abs()?.max_all()?.item::<f32>()?;
    assert!(error < 1e-5, "{error}");

    let built = |options| MultiHeadAttention::new(&options, DType::F32, device);
    assert!(built(MultiHeadAttentionOptions::new(10, 3)).is_err());
    assert!(built(MultiHeadAttentionOptions { kv_heads: 4, ..MultiHeadAttentionOptions::new(24, 6) }).is_err());
    assert!(attention.forward(&x.narrow(2, 0, 20)?).is_err() && attention.forward(&x.select(0, 0)?).is_err());
    Ok(())
}

/// Norm, queries with keys and values, attention, projection; norm, up, down.
fn a_block_takes_seven_kernels(device: &Device) -> Result<()> {
    let block = TransformerBlock::new(&TransformerOptions::new(64, 4), DType::F32, device)?;
    let x = values(&[2, 16, 64], DType::F32, device)?;
    x.eval()?;
    for (dtype, kernels) in [(DType::F32, 7), (DType::F16, 7)] {
        let x = x.to_dtype(dtype)?.contiguous()?;
        x.eval()?;
        let half = TransformerBlock::new(&TransformerOptions::new(64, 4), dtype, device)?;
        let y = no_grad(|| half.forward(&x))?;
        assert_eq!(kernel_count(&[&y])?, kernels, "{}", y.explain()?);
    }
    // Rotary positions turn queries and keys in one more.
    let rotary = RotaryEmbedding::new(16, 16, 1e4, RotaryLayout::Halves, device)?;
    let turned = TransformerBlock::new(&TransformerOptions::new(64, 4).with_rotary(rotary), DType::F32, device)?;
    let y = no_grad(|| turned.forward(&x))?;
    assert_eq!(kernel_count(&[&y])?, 8, "{}", y.explain()?);
    assert_eq!(block.parameters().len(), 12);
    Ok(())
}

/// Two blocks, with grouped heads and rotary positions.
fn blocks(dtype: DType, device: &Device) -> Result<Vec<TransformerBlock>> {
    let mut options = TransformerOptions::new(32, 4).with_dropout(0.1).with_rotary(RotaryEmbedding::new(
        8,
        32,
        1e4,
        RotaryLayout::Halves,
        device,
    )?);
    options.attention.kv_heads = 2;
    let blocks = (0..2).map(|_| TransformerBlock::new(&options, dtype, device)).collect::<Result<Vec<_>>>()?;
    blocks.iter().for_each(|block| block.set_training(false));
    Ok(blocks)
}

fn pass(blocks: &[TransformerBlock], x: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
    cache.advance(x.dims()[1])?;
    let mut x = x.clone();
    for (layer, block) in blocks.iter().enumerate() {
        x = block.forward_cached(&x, cache, layer)?;
    }
    cache.eval_with(&[&x])?;
    Ok(x)
}

/// Piece by piece, with the cache, as all at once.
fn decoding_is_the_whole_pass(device: &Device) -> Result<()> {
    let (kinds, pieces): (&[DType], &[usize]) =
        budget(device, (&[DType::F32, DType::BF16], &[5, 1, 1, 4, 1, 1]), (&[DType::F32], &[3, 1, 1]));
    for &narrow in kinds {
        no_grad(|| {
            autocast(narrow, || {
                let blocks = blocks(DType::F32, device)?;
                let length = pieces.iter().sum();
                let x = values(&[2, length, 32], DType::F32, device)?;
                let mut whole = x.clone();
                for block in &blocks {
                    whole = block.forward(&whole)?;
                }
                let mut cache = KvCache::new(2, [2, 2, 16, 8], narrow, device)?;
                for _ in 0..2 {
                    let mut parts = Vec::new();
                    for &count in pieces {
                        parts.push(pass(&blocks, &x.narrow(1, cache.len(), count)?, &mut cache)?);
                    }
                    let error = (Tensor::cat(&parts, 1)? - &whole)?.to_dtype(DType::F32)?.abs()?.max_all()?;
                    let error = error.item::<f32>()?;
                    // Keys and values are rounded alike, results of products may differ in their last bit.
                    let tolerance = if narrow == DType::F32 { 2e-6 } else { 0.03 };
                    assert!(error < tolerance, "{narrow} on {device}: {error}");
                    assert_eq!(cache.len(), length);
                    // What was there before is not seen.
                    cache.truncate(0);
                }
                assert!(cache.advance(17).is_err() && cache.mask().is_err());
                cache.advance(1)?;
                assert!(blocks[0].forward_cached(&x.narrow(1, 0, 2)?, &mut cache, 0).is_err());
                assert!(blocks[0].forward_cached(&x.narrow(1, 0, 1)?, &mut cache, 2).is_err());
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// New rows are written where the old ones are, unless somebody else holds those.
fn appending_is_in_place(device: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::F16] {
        let mut cache = KvCache::new(1, [2, 3, 8, 8], dtype, device)?;
        let (mut held, mut all) = (None, Vec::new());
        for pass in 0..4 {
            let count = 1 + pass % 2;
            let row = (values(&[2, 3, count, 8], dtype, device)? + pass as f64)?;
            row.eval()?;
            cache.advance(count)?;
            let (k, v) = cache.append(0, &row, &(&row * 2.0)?)?;
            let plan = explain(&[&k, &v])?.to_string();
            let written: usize = plan.split("writes ").skip(1).map(number).sum();
            let fresh = 2 * 2 * 3 * count * 8 * dtype.size();
            assert_eq!(written == fresh, held.is_none(), "{dtype}, pass {pass} on {device}: {plan}");
            cache.eval_with(&[])?;
            all.push(row);
            let want = Tensor::cat(&all, 2)?;
            let got = k.narrow(2, 0, cache.len())?;
            assert_eq!(got.to_dtype(DType::F32)?.to_vec::<f32>()?, want.to_dtype(DType::F32)?.to_vec::<f32>()?);
            let got = v.narrow(2, 0, cache.len())?;
            let twice = (want * 2.0)?.to_dtype(DType::F32)?;
            assert_eq!(got.to_dtype(DType::F32)?.to_vec::<f32>()?, twice.to_vec::<f32>()?);
            if let Some(held) = held.take() {
                let held: Tensor = held;
                let rest = held.narrow(2, 3, 5)?.to_dtype(DType::F32)?;
                assert!(rest.to_vec::<f32>()?.iter().all(|&x| x == 0.0), "what was held has changed");
            }
            held = (pass == 1).then_some(k);
        }
    }
    Ok(())
}

/// The number at the start of a text.
fn number(text: &str) -> usize {
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn decoding_plans_once() {
    child("transformers::plans_of_decoding", &[]);
}

/// In a process of its own: plans are counted for all of it.
#[test]
#[ignore = "counts what the whole process does"]
fn plans_of_decoding() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = Device::cpu();
    let blocks = blocks(DType::F32, &device)?;
    let row = |i: usize| Tensor::from_vec(vec![i as f32 / 10.0; 32], (1, 1, 32), &device);
    let mut cache = KvCache::new(2, [1, 2, 16, 8], DType::F32, &device)?;
    let mut apart = |x: &Tensor| no_grad(|| pass(&blocks, x, &mut cache));
    steady(&mut |i| apart(&row(i)?))?;
    let mut cache = KvCache::new(2, [1, 2, 16, 8], DType::F32, &device)?;
    let mut step = capture(|x: &[Tensor]| no_grad(|| pass(&blocks, &x[0], &mut cache)));
    steady(&mut |i| step.run(&[&row(i)?]))
}

/// Runs steps, of which those behind the third plan nothing.
fn steady(step: &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<()> {
    (0..3).try_for_each(|i| step(i).map(drop))?;
    let before = counters();
    (3..12).try_for_each(|i| step(i).map(drop))?;
    let after = counters();
    assert!(after.evaluations > before.evaluations);
    assert_eq!(after.plans, before.plans);
    Ok(())
}
