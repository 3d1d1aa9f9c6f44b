//! Training: how many kernels its parts are, what it leaves behind, and that it can be resumed.

use crate::oracle::{budget, devices, on_every_device};
use crate::process::{child, is_child, resident};
use std::collections::BTreeMap;
use tensorlogic::data::{DataLoader, TensorDataset};
use tensorlogic::nn::{Dropout, Gelu, LayerNorm, Linear, Sequential};
use tensorlogic::nn::{Layer, Module};
use tensorlogic::optim::{Adam, AdamW, MixedPrecision, Optimizer, Sgd};
use tensorlogic::testing::{counters, explain, kernel_count, kernels_of_thread};
use tensorlogic::{DType, Device, Result, Tensor, Var, autocast, eval, grad, grad_with};

on_every_device! {
    many_steps_leave_nothing_behind,
    a_resumed_training_gives_the_same_bits,
}

/// Numbers in no order, computed.
fn numbers(dims: &[usize], seed: usize) -> Result<Tensor> {
    numbers_on(dims, seed, &Device::cpu())
}

/// The same on a device.
fn numbers_on(dims: &[usize], seed: usize, device: &Device) -> Result<Tensor> {
    let count: usize = dims.iter().product();
    let value = |i: usize| ((i + 17 * seed) * 7919 % 1009) as f32 / 1009.0 - 0.5;
    Tensor::from_vec((0..count).map(value).collect(), dims, device)
}

fn variable(dims: &[usize], seed: usize) -> Result<Var> {
    Var::new(&numbers(dims, seed)?)
}

/// How many of the kernels that would compute `of` are products.
fn products(of: &[&Tensor]) -> Result<usize> {
    Ok(explain(of)?.to_string().lines().filter(|line| line.contains(": matmul")).count())
}

#[test]
fn backward_passes_are_few_kernels() -> Result<()> {
    let x = variable(&[64, 48], 0)?.tensor();
    let (scale, shift) = (variable(&[48], 1)?.tensor(), variable(&[48], 2)?.tensor());
    let seed = numbers(&[64, 48], 3)?;
    // Whether the result was computed before or not: gradients beside one another, column sums apart.
    for evaluated in [true, false] {
        let evaluate = |y: &Tensor| if evaluated { y.eval() } else { Ok(()) };
        let y = x.layer_norm(&scale, Some(&shift), 1e-5)?;
        evaluate(&y)?;
        let g = grad_with(&y, &seed, &[&x, &scale, &shift], false)?;
        assert_eq!(kernel_count(&[&g[0]])?, 1, "layer norm: {}", g[0].explain()?);
        assert!(kernel_count(&[&g[0], &g[1], &g[2]])? <= 2 + 2, "layer norm with its column sums");

        let y = x.softmax(-1)?;
        evaluate(&y)?;
        let g = grad_with(&y, &seed, &[&x], false)?;
        assert_eq!(kernel_count(&[&g[0]])?, 1, "softmax: {}", g[0].explain()?);

        let y = x.cross_entropy(&Tensor::zeros(64, DType::I64, &Device::cpu())?)?;
        evaluate(&y)?;
        let g = grad(&y, &[&x], false)?;
        assert_eq!(kernel_count(&[&g[0]])?, 1, "cross entropy: {}", g[0].explain()?);
    }

    let (w, b) = (variable(&[32, 48], 4)?.tensor(), variable(&[32], 5)?.tensor());
    let y = (x.matmul(&w.t()?)? + &b)?.gelu()?;
    assert_eq!(y.explain()?.kernels(), 1, "what the backward pass needs comes out of the same kernel");
    y.eval()?;
    let g = grad_with(&y, &numbers(&[64, 32], 6)?, &[&x, &w, &b], false)?;
    let all = [&g[0], &g[1], &g[2]];
    assert_eq!(products(&all)?, 2);
    assert!(kernel_count(&all)? <= 2 + 2 + 1, "gelu of linear: {}", explain(&all)?);
    Ok(())
}

/// Also where the loss is read before the backward pass, or between it and the step.
#[test]
fn a_loss_that_is_read_costs_no_second_forward_pass() -> Result<()> {
    let model = Sequential::new()
        .with(Linear::new(48, 64, DType::F32, &Device::cpu())?)
        .with(Gelu {})
        .with(LayerNorm::new(64, DType::F32, &Device::cpu())?)
        .with(Linear::new(64, 10, DType::F32, &Device::cpu())?);
    let mut optimizer = Optimizer::new(AdamW::default(), model.parameters(), 1e-3)?;
    let (x, classes) = (numbers(&[32, 48], 0)?, Tensor::zeros(32, DType::I64, &Device::cpu())?);
    let mut counts = Vec::new();
    for read in ["not at all", "before backward", "after backward"] {
        let before = kernels_of_thread();
        let loss = model.forward(&x)?.cross_entropy(&classes)?;
        if read == "before backward" {
            loss.item::<f32>()?;
        }
        let gradients = loss.backward()?;
        if read == "after backward" {
            loss.item::<f32>()?;
        }
        optimizer.step(gradients)?;
        counts.push((read, kernels_of_thread() - before));
    }
    let whole = counts[0].1;
    assert!(counts.iter().all(|&(_, kernels)| kernels <= whole), "{counts:?}");
    Ok(())
}

#[test]
fn a_loss_that_is_read_first_has_the_same_gradients() -> Result<()> {
    let vars = [variable(&[32, 64], 0)?, variable(&[64, 10], 1)?, variable(&[10], 2)?];
    let classes = Tensor::zeros(32, DType::I64, &Device::cpu())?;
    let bits = |read: bool| -> Result<Vec<Vec<f32>>> {
        let [x, w, b] = [0, 1, 2].map(|i| vars[i].tensor());
        let loss = (x.matmul(&w)? + b)?.gelu()?.cross_entropy(&classes)?;
        if read {
            loss.item::<f32>()?;
        }
        let gradients = loss.backward()?;
        let found: Vec<&Tensor> = vars.iter().filter_map(|var| gradients.get(var)).collect();
        assert_eq!(found.len(), 3);
        eval(&found)?;
        found.into_iter().map(Tensor::to_vec).collect()
    };
    assert_eq!(bits(false)?, bits(true)?);
    Ok(())
}

#[test]
fn a_step_over_many_parameters_is_one_launch() -> Result<()> {
    let vars = (1..40).map(|i| variable(&[i, 3 + i % 5], i)).collect::<Result<Vec<Var>>>()?;
    let step = |kernels: &mut dyn FnMut(tensorlogic::Gradients) -> Result<()>| -> Result<u64> {
        let terms = vars.iter().map(|v| v.tensor().sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
        let gradients = Tensor::stack(&terms, 0)?.sum_all()?.backward()?;
        eval(&vars.iter().filter_map(|v| gradients.get(v)).collect::<Vec<_>>())?;
        // The loss belongs to the step, but is not what is counted.
        let before = kernels_of_thread();
        kernels(gradients)?;
        Ok(kernels_of_thread() - before)
    };
    let mut adamw = Optimizer::new(AdamW::default(), vars.clone(), 1e-3)?;
    let mut adam = Optimizer::new(Adam::default(), vars.clone(), 1e-3)?;
    let mut sgd = Optimizer::new(Sgd { momentum: 0.9, ..Sgd::default() }, vars.clone(), 1e-3)?;
    // The loss beside it: its 39 sums in one launch, and the sum of these.
    let loss = 2;
    assert!(step(&mut |g| adamw.step(g))? <= loss + 2);
    assert!(step(&mut |g| adam.step(g))? <= loss + 2);
    assert!(step(&mut |g| sgd.step(g))? <= loss + 2);
    Ok(())
}

/// In f16 with a loss scale: batches of two sizes, dropout, everything that has state.
struct Job {
    model: Sequential,
    optimizer: Optimizer<AdamW>,
    precision: MixedPrecision,
    loader: DataLoader<TensorDataset>,
}

impl Job {
    fn new(dtype: DType, device: &Device) -> Result<Job> {
        device.seed(5);
        let model = Sequential::new()
            .with(Linear::new(20, 32, DType::F32, device)?)
            .with(Gelu {})
            .with(Dropout::new(0.25)?)
            .with(LayerNorm::new(32, DType::F32, device)?)
            .with(Linear::new(32, 5, DType::F32, device)?);
        let optimizer = Optimizer::new(AdamW::default(), model.parameters(), 3e-3)?;
        let labels: Vec<i64> = (0..24).map(|i| i * i % 5).collect();
        let data = TensorDataset::new(vec![numbers_on(&[24, 20], 1, device)?, Tensor::from_vec(labels, 24, device)?])?;
        // 16 and 8.
        let loader = DataLoader::new(data, 16)?.shuffle(3).prefetch(0);
        Ok(Job { model, optimizer, precision: MixedPrecision::new(dtype, device)?, loader })
    }

    fn epoch(&mut self, epoch: u64) -> Result<f32> {
        let mut last = 0.0;
        for batch in self.loader.epoch(epoch) {
            let batch = batch?;
            let forward = || self.model.forward(&batch[0])?.cross_entropy(&batch[1]);
            let (loss, gradients) = self.precision.backward(forward)?;
            self.optimizer.step(gradients)?;
            last = loss.item()?;
        }
        Ok(last)
    }

    fn values(&self) -> Result<Vec<Vec<f32>>> {
        self.model.parameters().iter().map(|var| var.tensor().to_vec()).collect()
    }
}

/// Ten thousand, where the device is not simulated.
fn many_steps_leave_nothing_behind(device: &Device) {
    child("training::many_steps", &[("TL_DEVICES", device.name())]);
}

#[test]
#[ignore = "counts what the whole process does"]
fn many_steps() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = devices().remove(0);
    let mut job = Job::new(DType::F16, &device)?;
    let state = || (counters().plans, counters().plans_cached, device.buffer_pool_stats().bytes_in_use);
    let first = job.epoch(0)?; // two steps: a whole batch and a smaller one
    let warm = state();
    let mut settled = 0;
    let mut last = 0.0;
    let epochs = budget(&device, 5000, 100);
    for epoch in 1..epochs {
        last = job.epoch(epoch)?;
        assert_eq!(state(), warm, "epoch {epoch}");
        if epoch == epochs / 10 {
            settled = resident();
        }
    }
    assert!(last < 0.5 * first, "{first} to {last}");
    let grown = resident().saturating_sub(settled);
    assert!(grown < 1 << 20, "{grown} bytes more resident than {settled}");
    Ok(())
}

fn a_resumed_training_gives_the_same_bits(device: &Device) {
    child("training::resuming", &[("TL_DEVICES", device.name())]);
}

/// In a process of its own: the random stream is one for all.
#[test]
#[ignore = "needs the random stream for itself"]
fn resuming() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let device = devices().remove(0);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut whole = Job::new(dtype, &device)?;
        (0..5).try_for_each(|epoch| whole.epoch(epoch).map(|_| ()))?;
        let (model, (slots, steps)) = (whole.model.state(), whole.optimizer.state());
        let (scale, random) = (whole.precision.state().cloned(), device.random_state());
        // Copies: the optimiser may write over what nobody holds.
        let copy = |list: BTreeMap<String, Tensor>| -> Result<BTreeMap<String, Tensor>> {
            list.into_iter()
                .map(|(name, t)| Ok((name, Tensor::from_vec(t.to_vec::<f32>()?, t.shape(), t.device())?)))
                .collect()
        };
        let (model, slots) = (copy(model)?, copy(slots)?);
        (5..9).try_for_each(|epoch| whole.epoch(epoch).map(|_| ()))?;

        let mut resumed = Job::new(dtype, &device)?;
        resumed.model.load_state(&model)?;
        resumed.optimizer.load_state(&slots, steps)?;
        resumed.precision.load_state(scale.as_ref())?;
        device.set_random_state(random);
        (5..9).try_for_each(|epoch| resumed.epoch(epoch).map(|_| ()))?;
        assert_eq!(whole.values()?, resumed.values()?, "{dtype}");
    }
    Ok(())
}

/// A gradient that is not finite changes nothing but the scale.
#[test]
fn loss_scaling_skips_what_overflows() -> Result<()> {
    let device = Device::cpu();
    let w = Var::new(&Tensor::from_vec(vec![1f32, 2.0], (1, 2), &device)?)?;
    let mut precision = MixedPrecision::new(DType::F16, &device)?;
    let mut optimizer = Optimizer::new(AdamW::default(), vec![w.clone()], 0.1)?;
    let mut step = |x: f32| -> Result<(f32, u64)> {
        let x = Tensor::full((2, 1), x, DType::F32, &device)?;
        let (_, gradients) = precision.backward(|| w.tensor().matmul(&x)?.to_dtype(DType::F32)?.sqr()?.sum_all())?;
        optimizer.step(gradients)?;
        Ok((precision.loss_scale()?, precision.skipped_steps()?))
    };
    let before = w.tensor().to_vec::<f32>()?;
    // 65536 * 2 * 3 * 1 is beyond f16.
    assert_eq!(step(1.0)?, (32768.0, 1));
    assert_eq!(w.tensor().to_vec::<f32>()?, before);
    // A small gradient passes, and moves each parameter by the learning rate, as Adam's first step does:
    // the step that was skipped does not count.
    assert_eq!(step(1e-2)?, (32768.0, 1));
    let after = w.tensor().to_vec::<f32>()?;
    for (b, a) in before.iter().zip(&after) {
        let expected = b * (1.0 - 0.1 * 0.01) - 0.1;
        assert!((a - expected).abs() < 1e-4, "{b} became {a}, not {expected}");
    }
    Ok(())
}

/// Scaled and unscaled, clipped and not: the same steps, as far as f16 goes.
#[test]
fn mixed_precision_follows_f32() -> Result<()> {
    let run = |dtype: DType, clip: bool| -> Result<f32> {
        let (w, x) = (variable(&[6, 10], 1)?, numbers(&[20, 10], 2)?);
        let mut precision = MixedPrecision::new(dtype, &Device::cpu())?;
        let mut optimizer = Optimizer::new(Sgd::default(), vec![w.clone()], 0.5)?;
        let target = Tensor::from_vec((0..20).map(|i| i % 6).collect::<Vec<i64>>(), 20, &Device::cpu())?;
        let mut last = 0.0;
        for _ in 0..30 {
            let (loss, mut gradients) = precision.backward(|| x.matmul(&w.tensor().t()?)?.cross_entropy(&target))?;
            if clip {
                let norm = gradients.clip_norm(0.1)?.item::<f32>()?;
                assert!((0.0..1.0).contains(&norm), "{norm}");
            }
            optimizer.step(gradients)?;
            last = loss.item()?;
        }
        Ok(last)
    };
    for clip in [false, true] {
        let exact = run(DType::F32, clip)?;
        for dtype in [DType::F16, DType::BF16] {
            let narrow = run(dtype, clip)?;
            assert!((narrow - exact).abs() < 5e-3, "{dtype}, clip {clip}: {narrow}, {exact} in f32");
        }
    }
    Ok(())
}

#[test]
fn autocast_narrows_products_alone() -> Result<()> {
    let (x, w) = (numbers(&[4, 6], 0)?, numbers(&[6, 3], 1)?);
    let wide = numbers(&[4, 6], 2)?.to_dtype(DType::F64)?;
    let (product, sum, double, norm) = autocast(DType::F16, || {
        let product = x.matmul(&w)?;
        let scale = Tensor::ones(3, DType::F32, &Device::cpu())?;
        let norm = product.layer_norm(&scale, None, 1e-5)?;
        let sum = (&product + &numbers(&[4, 3], 3)?)?;
        Ok((product, sum, wide.matmul(&wide.t()?)?, norm))
    })?;
    let dtypes = [&product, &sum, &double, &norm].map(Tensor::dtype);
    assert_eq!(dtypes, [DType::F16, DType::F32, DType::F64, DType::F16]);
    assert!((&product + &sum).is_err(), "outside, dtypes do not mix");
    assert!(autocast(DType::I32, || Ok(())).is_err());
    Ok(())
}

#[test]
fn optimisers_say_what_is_wrong() -> Result<()> {
    let var = variable(&[3], 0)?;
    let message = |result: Result<Optimizer<AdamW>>| result.err().unwrap().to_string();
    let both = vec![var.clone(), var.clone()];
    assert!(message(Optimizer::new(AdamW::default(), both, 0.1)).contains("given twice"));
    assert!(message(Optimizer::new(AdamW::default(), vec![var.clone()], -0.1)).contains("learning rate -0.1"));
    let rule = AdamW { betas: (0.9, 1.0), ..AdamW::default() };
    assert!(message(Optimizer::new(rule, vec![var.clone()], 0.1)).contains("beta 2 1"));
    let nesterov = Sgd { nesterov: true, ..Sgd::default() };
    assert!(Optimizer::new(nesterov, vec![var.clone()], 0.1).is_err());

    let mut optimizer = Optimizer::new(AdamW::default(), vec![var.clone()], 0.1)?;
    let (mut state, _) = optimizer.state();
    assert_eq!(state.keys().collect::<Vec<_>>(), ["0.0.first", "0.0.second"]);
    state.insert("0.1.first".into(), numbers(&[3], 1)?);
    assert!(optimizer.load_state(&state, 3).unwrap_err().to_string().contains("no state 0.1.first"));
    state.remove("0.1.first");
    state.insert("0.0.first".into(), numbers(&[4], 1)?);
    assert!(optimizer.load_state(&state, 3).unwrap_err().to_string().contains("should be f32 [3]"));
    assert_eq!(optimizer.steps(), 0);

    let mut gradients = var.tensor().sum_all()?.backward()?;
    assert!(gradients.clip_norm(0.0).is_err());
    assert!(gradients.insert(&var, numbers(&[4], 0)?).is_err());
    assert!(MixedPrecision::new(DType::F64, &Device::cpu()).is_err());
    Ok(())
}
