//! Training in less memory: segments that are computed again, batches in parts.

use crate::oracle::on_every_device;
use crate::process::{child, is_child};
use tensorlogic::nn::{Layer, Linear, Module, TransformerBlock, TransformerOptions};
use tensorlogic::optim::{AdamW, MixedPrecision, Optimizer};
use tensorlogic::{DType, Device, Result, Tensor, Var, checkpoint, eval};

on_every_device! {
    checkpoints_change_no_gradient,
    losses_in_parts_are_their_mean,
}

fn input(dims: &[usize], device: &Device) -> Result<Tensor> {
    let values = (0..dims.iter().product::<usize>()).map(|i| ((i * 31 + i * i * 7) % 101) as f32 / 50.0 - 1.0);
    Tensor::from_vec(values.collect(), dims, device)
}

/// The gradients of all parameters, and of the input.
fn gradients_of(blocks: &[TransformerBlock], x: &Var, again: bool) -> Result<Vec<Vec<f32>>> {
    let mut y = x.tensor();
    for block in blocks {
        y = if again { checkpoint(|| block.forward(&y))? } else { block.forward(&y)? };
    }
    let gradients = y.sqr()?.mean_all()?.backward()?;
    gradients.eval()?;
    let vars = blocks.iter().flat_map(Module::parameters).chain([x.clone()]);
    vars.map(|var| gradients.get(&var).expect("a gradient").to_vec::<f32>()).collect()
}

fn checkpoints_change_no_gradient(device: &Device) -> Result<()> {
    let options = TransformerOptions::new(16, 2);
    let blocks = [0, 1].map(|_| TransformerBlock::new(&options, DType::F32, device)).into_iter();
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let x = Var::new(&input(&[2, 4, 16], device)?)?;
    let (again, kept) = (gradients_of(&blocks, &x, true)?, gradients_of(&blocks, &x, false)?);
    // The order of a fold follows from the kernel on a GPU, from the shape alone on the CPU.
    let tolerance = if device.name() == "cpu" { 0.0 } else { 1e-6 };
    for (again, kept) in again.iter().flatten().zip(kept.iter().flatten()) {
        assert!((again - kept).abs() <= tolerance, "{again} {kept}");
    }
    // What is kept anyway is read; a loss that was read keeps all; so do second derivatives.
    let a = Var::new(&input(&[6], device)?)?;
    let segment = || -> Result<Tensor> { checkpoint(|| (a.tensor().exp()? * a.tensor().sin()?)?.tanh()) };
    let [plain, read] = [false, true].map(|read| -> Result<Vec<f32>> {
        let loss = segment()?.sqr()?.sum_all()?;
        if read {
            loss.item::<f32>()?;
        }
        loss.backward()?.get(&a).expect("a gradient").to_vec()
    });
    let at = a.tensor();
    let first = tensorlogic::grad(&checkpoint(|| at.pow(3.0))?.sum_all()?, &[&at], true)?.remove(0);
    let second = tensorlogic::grad(&first.sum_all()?, &[&at], false)?.remove(0).to_vec::<f32>()?;
    let (plain, read) = (plain?, read?);
    for (i, x) in input(&[6], device)?.to_vec::<f32>()?.into_iter().enumerate() {
        let x = x as f64;
        let t = (x.exp() * x.sin()).tanh();
        let want = 2.0 * t * (1.0 - t * t) * x.exp() * (x.sin() + x.cos());
        assert!((plain[i] as f64 - want).abs() < 1e-5 && (read[i] as f64 - want).abs() < 1e-5, "{plain:?} {read:?}");
        assert!((second[i] as f64 - 6.0 * x).abs() < 1e-4, "{second:?}");
    }
    Ok(())
}

fn losses_in_parts_are_their_mean(device: &Device) -> Result<()> {
    let layer = Linear::new(6, 3, DType::F32, device)?;
    let x = input(&[8, 6], device)?;
    let loss = |x: &Tensor| layer.forward(x)?.to_dtype(DType::F32)?.sqr()?.mean_all();
    for dtype in [DType::F32, DType::F16] {
        let gradients = |parts: usize| -> Result<(f32, Vec<f32>)> {
            let mut precision = MixedPrecision::new(dtype, device)?;
            let rows = 8 / parts;
            let (loss, gradients) = precision.backward_each(parts, |part| loss(&x.narrow(0, part * rows, rows)?))?;
            let gradient = (gradients.get(&layer.weight).expect("a gradient") / precision.loss_scale()? as f64)?;
            Ok((loss.item()?, gradient.to_vec()?))
        };
        let ((whole, of_whole), (parts, of_parts)) = (gradients(1)?, gradients(4)?);
        let tolerance = if dtype == DType::F32 { 1e-6 } else { 2e-3 };
        assert!((whole - parts).abs() < tolerance, "{dtype}: {whole} {parts}");
        for (a, b) in of_whole.iter().zip(&of_parts) {
            assert!((a - b).abs() < tolerance, "{dtype}: {of_whole:?} {of_parts:?}");
        }
    }
    // An overflow in one part skips the step, and halves the scale.
    let mut precision = MixedPrecision::new(DType::F16, device)?;
    let mut optimizer = Optimizer::new(AdamW::default(), layer.parameters(), 0.1)?;
    let before = layer.weight.tensor().to_vec::<f32>()?;
    let huge = |part| if part == 1 { loss(&(&x * 3e4)?) } else { loss(&x) };
    let (_, gradients) = precision.backward_each(3, huge)?;
    optimizer.step(gradients)?;
    assert_eq!((precision.loss_scale()?, precision.skipped_steps()?), (32768.0, 1));
    assert_eq!(layer.weight.tensor().to_vec::<f32>()?, before);

    assert!(precision.backward_each(0, |_| loss(&x)).is_err());
    let (_, mut scaled) = precision.backward(|| loss(&x))?;
    let message = scaled.add(loss(&x)?.backward()?).unwrap_err().to_string();
    assert!(message.contains("backward_each"), "{message}");
    Ok(())
}

#[test]
fn training_takes_less_memory() {
    child("checkpointing::memory_of_training", &[]);
}

/// In a process of its own: memory and the random stream are those of all tests.
#[test]
#[ignore = "measures what the whole process does"]
fn memory_of_training() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = Device::cpu();
    let options = TransformerOptions::new(32, 2).with_dropout(0.1);
    let blocks = (0..8).map(|_| TransformerBlock::new(&options, DType::F32, &device)).collect::<Result<Vec<_>>>()?;
    let parameters = || blocks.iter().flat_map(Module::parameters).collect::<Vec<_>>();
    let x = input(&[16, 64, 32], &device)?;
    let loss = |x: &Tensor, again: bool| -> Result<Tensor> {
        let mut y = x.clone();
        for block in &blocks {
            y = if again { checkpoint(|| block.forward(&y))? } else { block.forward(&y)? };
        }
        y.sqr()?.mean_all()
    };
    // Dropout draws the same numbers when it is computed again.
    let of_seed = |again: bool| -> Result<Vec<f32>> {
        device.seed(7);
        let gradients = loss(&x, again)?.backward()?;
        gradients.eval()?;
        gradients.get(&blocks[0].up.weight).expect("a gradient").to_vec()
    };
    assert_eq!(of_seed(false)?, of_seed(true)?);

    // Steps that change nothing.
    let mut optimizer = Optimizer::new(AdamW::default(), parameters(), 0.0)?;
    let mut precision = MixedPrecision::new(DType::F32, &device)?;
    let mut peak = |again: bool, parts: usize, clip: bool| -> Result<usize> {
        let before = device.buffer_pool_stats().bytes_in_use;
        device.buffer_pool().reset_peak();
        let rows = 16 / parts;
        let (_, mut gradients) =
            precision.backward_each(parts, |part| loss(&x.narrow(0, part * rows, rows)?, again))?;
        if clip {
            gradients.clip_norm(1.0)?;
        }
        optimizer.step(gradients)?;
        Ok(device.buffer_pool_stats().peak_bytes - before)
    };
    eval(&[&x])?;
    for clip in [false, true] {
        let (whole, again, parts) = (peak(false, 1, clip)?, peak(true, 1, clip)?, peak(false, 8, clip)?);
        println!("clip {clip}: {whole} bytes, {again} with checkpoints, {parts} in parts");
        assert!(again < whole * 2 / 5, "clip {clip}: {whole} bytes, {again} with checkpoints");
        assert!(parts < whole * 2 / 5, "clip {clip}: {whole} bytes, {parts} in parts");
    }
    Ok(())
}
