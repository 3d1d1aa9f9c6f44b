//! Captured steps: the same results as without, one evaluation a run, inputs that are checked.

use crate::oracle::{devices, on_every_device};
use crate::process::{self, is_child};
use tensorlogic::nn::{Layer, Linear, Module};
use tensorlogic::optim::{AdamW, Optimizer};
use tensorlogic::testing::{kernel_count, kernels_of_thread};
use tensorlogic::{DType, Device, Error, Result, Tensor, capture, eval};

on_every_device! {
    a_captured_step_of_training_has_the_same_bits,
    results_are_their_owners,
    inputs_are_checked,
    what_is_evaluated_in_a_step_is_one_plan,
    a_step_that_fails_leaves_evaluation_as_it_was,
    steps_inside_steps_are_part_of_them,
    what_is_computed_on_the_way_stays,
}

fn input(n: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = (0..6).map(|i| ((i * 7 + n * 5) % 11) as f32 / 11.0 - 0.4).collect();
    Tensor::from_slice(&values, (2, 3), device)
}

/// Losses of some steps, captured or not.
fn losses(captured: bool, device: &Device) -> Result<Vec<f32>> {
    let weight = Tensor::from_slice(&[0.1f32, -0.2, 0.3, 0.4, -0.5, 0.6, 0.7, -0.8, 0.9], (3, 3), device)?;
    let layer = Linear::from_tensors(&weight, None)?;
    let mut optimizer = Optimizer::new(AdamW::default(), layer.parameters(), 0.05)?;
    let mut steps = 0;
    let mut step = |inputs: &[Tensor]| {
        steps += 1;
        // What the host decides is never stale.
        optimizer.set_rate_factor(1.0 / steps as f64);
        let loss = layer.forward(&inputs[0])?.sqr()?.mean_all()?;
        optimizer.step(loss.backward()?)?;
        Ok(loss)
    };
    let inputs: Vec<Tensor> = (0..12).map(|n| input(n, device)).collect::<Result<_>>()?;
    let results: Vec<Tensor> = if captured {
        let mut step = capture(step);
        inputs.iter().map(|x| step.run(&[x])).collect::<Result<_>>()?
    } else {
        inputs.iter().map(|x| step(std::slice::from_ref(x))).collect::<Result<_>>()?
    };
    results.iter().map(Tensor::item).collect()
}

fn a_captured_step_of_training_has_the_same_bits(device: &Device) -> Result<()> {
    let (with, without) = (losses(true, device)?, losses(false, device)?);
    assert_eq!(with, without);
    assert!(with[11] < with[0], "{with:?}");
    Ok(())
}

fn results_are_their_owners(device: &Device) -> Result<()> {
    let mut step = capture(|x: &[Tensor]| Ok((x[0].exp()?.sum(1)?, vec![(&x[0] * 2.0)?])));
    let inputs: Vec<Tensor> = (0..4).map(|n| input(n, device)).collect::<Result<_>>()?;
    let all = inputs.iter().map(|x| step.run(&[x])).collect::<Result<Vec<_>>>()?;
    drop(step);
    for (x, (sums, twice)) in inputs.iter().zip(all) {
        let x: Vec<f32> = x.to_vec()?;
        assert_eq!(twice[0].to_vec::<f32>()?, x.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        for (sum, row) in sums.to_vec::<f32>()?.iter().zip(x.chunks(3)) {
            let want: f32 = row.iter().map(|x| x.exp()).sum();
            assert!((sum - want).abs() < 1e-5, "{sum} {want}");
        }
    }
    Ok(())
}

fn inputs_are_checked(device: &Device) -> Result<()> {
    let mut step = capture(|x: &[Tensor]| x[0].exp());
    step.run(&[&input(0, device)?])?;
    let reason = |error: Error| error.to_string();
    let other = Tensor::zeros((3, 2), DType::F32, device)?;
    let error = step.run(&[&other]).map_err(reason).unwrap_err();
    assert!(error.contains("input 0 is f32 [3, 2]") && error.contains("it was f32 [2, 3]"), "{error}");
    let error = step.run(&[&input(0, device)?.to_dtype(DType::F16)?]).map_err(reason).unwrap_err();
    assert!(error.contains("input 0 is f16"), "{error}");
    let error = step.run(&[]).map_err(reason).unwrap_err();
    assert!(error.contains("0 inputs; the first run had 1"), "{error}");
    Ok(())
}

fn what_is_evaluated_in_a_step_is_one_plan(device: &Device) -> Result<()> {
    let work = |x: &Tensor| -> Result<[Tensor; 2]> {
        let y = x.exp()?;
        y.eval()?;
        let z = (&y + 1.0)?;
        eval(&[&z])?;
        Ok([y, z])
    };
    let x = input(0, device)?;
    let mut step = capture(|x: &[Tensor]| work(&x[0]));
    for _ in 0..4 {
        let before = kernels_of_thread();
        step.run(&[&x])?;
        assert_eq!(kernels_of_thread() - before, 1);
    }
    let before = kernels_of_thread();
    work(&x)?;
    assert_eq!(kernels_of_thread() - before, 2, "each evaluation is one of its own");
    Ok(())
}

fn a_step_that_fails_leaves_evaluation_as_it_was(device: &Device) -> Result<()> {
    let x = input(0, device)?;
    let mut step = capture(|x: &[Tensor]| x[0].exp()?.reshape(7));
    assert!(step.run(&[&x]).is_err());
    let y = x.exp()?;
    y.eval()?;
    assert_eq!(kernel_count(&[&y])?, 0, "it has been computed");
    Ok(())
}

fn steps_inside_steps_are_part_of_them(device: &Device) -> Result<()> {
    let x = input(0, device)?;
    let mut inner = capture(|x: &[Tensor]| x[0].exp());
    let mut outer = capture(|x: &[Tensor]| inner.run::<Tensor>(&[&x[0]])? + 1.0);
    for _ in 0..3 {
        let before = kernels_of_thread();
        let sum = outer.run(&[&x])?.sum_all()?.item::<f32>()?;
        let want: f32 = x.to_vec::<f32>()?.iter().map(|x| x.exp() + 1.0).sum();
        assert!((sum - want).abs() < 1e-4, "{sum} {want}");
        assert!(kernels_of_thread() - before <= 2);
    }
    Ok(())
}

fn what_is_computed_on_the_way_stays(device: &Device) {
    process::child("capture::memory_of_a_step", &[("TL_DEVICES", device.name())]);
}

#[test]
#[ignore = "counts what the whole process does"]
fn memory_of_a_step() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = devices().remove(0);
    let x = Tensor::randn((64, 64), DType::F32, &device)?;
    x.eval()?;
    // A product, whose memory passes, and rows, whose memory lasts.
    let work = |x: &Tensor| x.matmul(x)?.softmax(1);
    let requests = |mut run: Box<dyn FnMut() -> Result<Tensor> + '_>| -> Result<u64> {
        (0..4).try_for_each(|_| run().map(drop))?;
        let before = device.buffer_pool_stats().allocation_count;
        (0..10).try_for_each(|_| run().map(drop))?;
        Ok(device.buffer_pool_stats().allocation_count - before)
    };
    let mut step = capture(|x: &[Tensor]| work(&x[0]));
    let captured = requests(Box::new(|| step.run(&[&x])))?;
    let apart = requests(Box::new(|| {
        let y = work(&x)?;
        y.eval()?;
        Ok(y)
    }))?;
    assert_eq!(captured + 10, apart, "requests of the pool in ten runs");
    Ok(())
}
