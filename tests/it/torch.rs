//! Layers, gradients and optimisers against PyTorch: `tools/make_fixtures.py` wrote what it computes.

mod transformers;

use crate::oracle::{dtypes, on_every_device};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tensorlogic::io::load_safetensors;
use tensorlogic::nn::{Layer, LayerNorm, Linear};
use tensorlogic::optim::{Adam, AdamW, Group, Optimizer, Rule, Schedule, Sgd};
use tensorlogic::{ConvOptions, DType, Device, Gradients, Result, Tensor, Var, grad, grad_with};

on_every_device! {
    layers_and_their_gradients,
    second_derivatives,
    layer_structs_agree_with_the_formulas,
    optimisers_follow_the_same_trajectories,
}

type Args<'a> = BTreeMap<&'a str, Tensor>;

fn fixtures(name: &str) -> BTreeMap<String, Tensor> {
    // Cargo runs tests in the package's folder.
    let folder = PathBuf::from("tests/fixtures");
    load_safetensors(folder.join(name), &Device::cpu()).unwrap().tensors
}

/// A tensor of a file on a device: in f32 where there is no f64.
fn put(t: &Tensor, device: &Device) -> Tensor {
    let dtype = if device.supports(t.dtype()) { t.dtype() } else { DType::F32 };
    t.to_dtype(dtype).and_then(|t| t.to_device(device)).unwrap()
}

/// f64, so that the formulas are compared and not the rounding; in f32, where there is no f64, the bound is wider.
fn tolerance(device: &Device, exact: f64) -> f64 {
    if device.supports(DType::F64) { exact } else { 2e-5 }
}

/// The arguments, all variables where they are floats.
fn arguments<'a>(file: &'a BTreeMap<String, Tensor>, case: &str, device: &Device) -> Args<'a> {
    let prefix = format!("{case}/in/");
    let of_case = file.iter().filter_map(|(key, t)| Some((key.strip_prefix(&prefix)?, t)));
    of_case
        .map(|(arg, t)| (arg, put(t, device)))
        .map(|(arg, t)| (arg, if t.dtype().is_float() { Var::new(&t).unwrap().tensor() } else { t }))
        .collect()
}

fn forward(case: &str, a: &Args) -> Result<Tensor> {
    let x = || &a["x"];
    let options = |stride, padding, dilation| ConvOptions { stride, padding, dilation, groups: 1 };
    let conv = |o: ConvOptions| x().conv2d(&a["weight"], &o)? + a["bias"].reshape((a["bias"].numel(), 1, 1))?;
    match case {
        "linear" => x().matmul(&a["weight"].t()?)? + &a["bias"],
        "matmul_batched" => a["a"].matmul(&a["b"]),
        "conv2d" | "conv2d_5x5" => conv(options(1, 0, 1)),
        "conv2d_padding" => conv(options(1, 1, 1)),
        "conv2d_stride" => conv(options(2, 1, 1)),
        "conv2d_dilation" => conv(options(1, 0, 2)),
        "max_pool2d" | "max_pool2d_odd" => x().max_pool2d(2, 2),
        "avg_pool2d" | "avg_pool2d_odd" => x().avg_pool2d(2, 2),
        "layer_norm" => x().layer_norm(&a["weight"], Some(&a["bias"]), 1e-5),
        "rms_norm" => x().rms_norm(&a["weight"], 1e-6),
        "softmax" => x().softmax(-1),
        "softmax_dim0" => x().softmax(0),
        "log_softmax" => x().log_softmax(-1),
        "logsumexp" => x().logsumexp(-1),
        "cross_entropy" => x().cross_entropy(&a["target"]),
        "cross_entropy_smoothing" => x().cross_entropy_smoothed(&a["target"], 0.1),
        "nll_loss" => x().nll_loss(&a["target"]),
        "mse_loss" => x().mse_loss(&a["target"]),
        "l1_loss" => x().l1_loss(&a["target"]),
        "smooth_l1_loss" => x().smooth_l1_loss(&a["target"], 1.0),
        "bce_with_logits" => x().bce_with_logits(&a["target"]),
        "gelu_tanh" => x().gelu(),
        "gelu_erf" => x().gelu_erf(),
        "silu" => x().silu(),
        "tanh" => x().tanh(),
        "elu" => x().elu(1.0),
        "leaky_relu" => x().leaky_relu(0.01),
        "softplus" => x().softplus(),
        "mish" => x().mish(),
        "hardswish" => x().hardswish(),
        "selu" => x().selu(),
        "var" => x().var(-1),
        "var_population" => x().var_with([0, 2], 0),
        "std" => x().std(1),
        "prod" => x().prod(1),
        "amax" => x().max(1),
        "amin" => x().min(1),
        "embedding" => a["weight"].embedding(&a["ids"]),
        "gather" => x().gather(1, &a["index"]),
        "index_select" => x().index_select(0, &a["index"]),
        "slice_step" => x().slice(0, 1..7, 2)?.slice(1, 0..6, 3),
        "flip" => x().slice(0, .., -1)?.slice(2, .., -1),
        "permute_reshape" => x().permute([2, 0, 1])?.reshape((8, 3)),
        "cat" => Tensor::cat(&[&a["a"], &a["b"], &a["a"]], 1),
        "expand" => x().expand((2, 3, 4)),
        "where" => a["condition"].where_cond(&a["a"], &a["b"]),
        "maximum" => a["a"].maximum(&a["b"]),
        "clamp" => x().clamp(-0.5, 0.75),
        "pow" => a["a"].pow(&a["b"]),
        "mlp" => {
            let hidden = (x().matmul(&a["w1"].t()?)? + &a["b1"])?.gelu()?;
            let normed = hidden.layer_norm(&a["ln_weight"], Some(&a["ln_bias"]), 1e-5)?;
            (normed.matmul(&a["w2"].t()?)? + &a["b2"])?.cross_entropy(&a["target"])
        }
        "convnet" => {
            let bias = a["conv_bias"].reshape((4, 1, 1))?;
            let maps = (x().conv2d(&a["conv_weight"], &options(1, 1, 1))? + bias)?.relu()?.max_pool2d(2, 2)?;
            (maps.flatten(1, -1)?.matmul(&a["fc_weight"].t()?)? + &a["fc_bias"])?.cross_entropy(&a["target"])
        }
        _ => panic!("no such case: {case}"),
    }
}

#[track_caller]
fn assert_close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{name}");
    let got = got.detach().to_device(&Device::cpu()).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let want = want.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let scale = want.iter().fold(1f64, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{name}[{i}]: {g}, PyTorch has {w}");
    }
}

fn cases(file: &BTreeMap<String, Tensor>) -> Vec<String> {
    let mut cases: Vec<String> = file.keys().filter_map(|k| Some(k.split_once("/in/")?.0.to_string())).collect();
    cases.dedup();
    // PyTorch's gradient at the very bounds has changed between versions: ours is 1 there, as it was.
    cases.retain(|case| case != "clamp_at_bounds");
    cases
}

fn layers_and_their_gradients(device: &Device) {
    let file = fixtures("layers.safetensors");
    let cases = cases(&file);
    assert!(cases.len() > 50, "{}", cases.len());
    for case in cases {
        let a = arguments(&file, &case, device);
        let y = forward(&case, &a).unwrap();
        assert_close(&format!("{case}/out"), &y, &file[&format!("{case}/out")], tolerance(device, 1e-12));
        let with: Vec<(&str, &Tensor)> = a.iter().filter(|(_, t)| t.is_tracked()).map(|(n, t)| (*n, t)).collect();
        let targets: Vec<&Tensor> = with.iter().map(|(_, t)| *t).collect();
        let found = grad_with(&y, &put(&file[&format!("{case}/seed")], device), &targets, false).unwrap();
        for ((arg, _), got) in with.iter().zip(&found) {
            let name = format!("{case}/grad/{arg}");
            assert_close(&name, got, &file[&name], tolerance(device, 1e-11));
        }
    }
}

fn second_derivatives(device: &Device) {
    let file = fixtures("layers.safetensors");
    let with_hvp: Vec<String> = cases(&file).into_iter().filter(|c| file.contains_key(&format!("{c}/hvp"))).collect();
    assert_eq!(with_hvp.len(), 10, "{with_hvp:?}");
    for case in with_hvp {
        let a = arguments(&file, &case, device);
        let y = forward(&case, &a).unwrap();
        let first = grad_with(&y, &put(&file[&format!("{case}/seed")], device), &[&a["x"]], true).unwrap();
        let along = first[0].mul(put(&file[&format!("{case}/v")], device)).unwrap().sum_all().unwrap();
        let second = grad(&along, &[&a["x"]], false).unwrap();
        assert_close(&format!("{case}/hvp"), &second[0], &file[&format!("{case}/hvp")], tolerance(device, 1e-11));
    }
}

/// The layers compute what the formulas above do.
fn layer_structs_agree_with_the_formulas(device: &Device) {
    let file = fixtures("layers.safetensors");
    let get = |name: &str| put(&file[name], device);
    let tolerance = tolerance(device, 1e-12);
    let linear = Linear::from_tensors(&get("linear/in/weight"), Some(&get("linear/in/bias"))).unwrap();
    assert_close("Linear", &linear.forward(&get("linear/in/x")).unwrap(), &file["linear/out"], tolerance);
    let norm = LayerNorm::new(8, get("layer_norm/in/x").dtype(), device).unwrap();
    norm.weight.set(&get("layer_norm/in/weight")).unwrap();
    norm.bias.as_ref().unwrap().set(&get("layer_norm/in/bias")).unwrap();
    assert_close("LayerNorm", &norm.forward(&get("layer_norm/in/x")).unwrap(), &file["layer_norm/out"], tolerance);
}

struct Problem {
    file: BTreeMap<String, Tensor>,
    dtype: DType,
    a: Var,
    b: Var,
}

impl Problem {
    fn new(dtype: DType, device: &Device) -> Problem {
        let mut file = fixtures("optimisers.safetensors");
        for (_, t) in file.iter_mut().filter(|(name, _)| name.starts_with("problem/")) {
            *t = t.to_dtype(dtype).and_then(|t| t.to_device(device)).unwrap();
        }
        let var = |name: &str| Var::new(&file[&format!("problem/{name}")]).unwrap();
        let (a, b) = (var("a"), var("b"));
        Problem { file, dtype, a, b }
    }

    fn constant(&self, name: &str) -> &Tensor {
        &self.file[&format!("problem/{name}")]
    }

    /// sum(c1 a^2) + sum(c2 (b - t)^4) + sum((a[:, :1] b[:3])^2)
    fn loss(&self) -> Result<Tensor> {
        let (a, b) = (self.a.tensor(), self.b.tensor());
        let first = (self.constant("c1") * a.sqr()?)?.sum_all()?;
        let second = (self.constant("c2") * (&b - self.constant("t"))?.sqr()?.sqr()?)?.sum_all()?;
        let third = (a.narrow(1, 0, 1)? * b.narrow(0, 0, 3)?.unsqueeze(1)?)?.sqr()?.sum_all()?;
        (first + second)? + third
    }

    fn follow<R: Rule>(
        self,
        case: &str,
        mut optimizer: Optimizer<R>,
        mut before: impl FnMut(u64, &mut Optimizer<R>, &mut Gradients),
    ) {
        let of = if self.dtype == DType::F64 { "f64" } else { "f32" };
        let (tolerance, losses_tolerance) = if self.dtype == DType::F64 { (1e-12, 1e-12) } else { (5e-6, 5e-5) };
        let mut losses = Vec::new();
        for step in 0..50u64 {
            let loss = self.loss().unwrap();
            let mut gradients = loss.backward().unwrap();
            before(step, &mut optimizer, &mut gradients);
            optimizer.step(gradients).unwrap();
            losses.push(loss);
            for (name, var) in [("a", &self.a), ("b", &self.b)] {
                let key = format!("{case}/{of}/{name}/{}", step + 1);
                if let Some(want) = self.file.get(&key) {
                    assert_close(&key, &var.tensor(), want, tolerance);
                }
            }
        }
        let losses = Tensor::stack(&losses, 0).unwrap();
        assert_close(&format!("{case} loss"), &losses, &self.file[&format!("{case}/{of}/loss")], losses_tolerance);
    }
}

/// 50 steps of every optimiser, in f32 and f64.
fn optimisers_follow_the_same_trajectories(device: &Device) {
    let sgd = Sgd::default();
    let (adam, adamw) = (Adam::default(), AdamW { weight_decay: 0.1, ..AdamW::default() });
    for dtype in dtypes(device, |d| matches!(d, DType::F64 | DType::F32)) {
        let plain = |case: &str, rule: Sgd, rate: f64| {
            let p = Problem::new(dtype, device);
            let optimizer = Optimizer::new(rule, vec![p.a.clone(), p.b.clone()], rate).unwrap();
            p.follow(case, optimizer, |_, _, _| {});
        };
        plain("sgd", sgd, 0.02);
        plain("sgd_momentum", Sgd { momentum: 0.9, ..sgd }, 0.01);
        plain("sgd_nesterov", Sgd { momentum: 0.9, nesterov: true, ..sgd }, 0.01);
        let damped = Sgd { momentum: 0.8, dampening: 0.3, weight_decay: 0.05, nesterov: false };
        plain("sgd_momentum_dampening_wd", damped, 0.02);

        for (case, rule) in [("adam", adam), ("adam_wd", Adam { weight_decay: 0.1, ..adam })] {
            let p = Problem::new(dtype, device);
            let optimizer = Optimizer::new(rule, vec![p.a.clone(), p.b.clone()], 0.05).unwrap();
            p.follow(case, optimizer, |_, _, _| {});
        }
        let p = Problem::new(dtype, device);
        let norms = p.file[&format!("adam_clip/{}/norm", if dtype == DType::F64 { "f64" } else { "f32" })].clone();
        let optimizer = Optimizer::new(adam, vec![p.a.clone(), p.b.clone()], 0.05).unwrap();
        p.follow("adam_clip", optimizer, |step, _, gradients| {
            let norm = gradients.clip_norm(0.5).unwrap();
            assert_close("norm", &norm, &norms.select(0, step as usize).unwrap(), 1e-4);
        });
        let p = Problem::new(dtype, device);
        let optimizer = Optimizer::new(adamw, vec![p.a.clone(), p.b.clone()], 0.05).unwrap();
        p.follow("adamw", optimizer, |_, _, _| {});
        let p = Problem::new(dtype, device);
        let group = |var: &Var, learning_rate, decay| Group {
            parameters: vec![var.clone()],
            learning_rate,
            weight_decay: Some(decay),
        };
        let optimizer = Optimizer::with_groups(adamw, vec![group(&p.a, 0.02, 0.2), group(&p.b, 0.06, 0.0)]).unwrap();
        p.follow("adamw_groups", optimizer, |_, _, _| {});
        let p = Problem::new(dtype, device);
        let rates = p.file["adamw_cosine/lr"].to_vec1::<f64>().unwrap();
        let optimizer = Optimizer::new(adamw, vec![p.a.clone(), p.b.clone()], 0.05).unwrap();
        let schedule = Schedule::cosine(50).with_warm_up(5).with_floor(0.1);
        p.follow("adamw_cosine", optimizer, |step, optimizer, _| {
            assert!((schedule.factor(step) * 0.05 - rates[step as usize]).abs() < 1e-15);
            optimizer.set_rate_factor(schedule.factor(step));
        });
    }
}
