//! Layers: what they are called, what they compute, how they are saved.

use std::collections::BTreeMap;
use tensorlogic::nn::{
    Conv2d, Dropout, Embedding, Flatten, Item, Layer, LayerNorm, Linear, MaxPool2d, Module, Path, Relu, RmsNorm,
    Sequential, init,
};
use tensorlogic::{ConvOptions, DType, Device, Result, Tensor};

#[derive(Module)]
struct Block {
    norm: LayerNorm,
    #[module(rename = "proj")]
    linear: Linear,
    gate: Option<RmsNorm>,
    #[module(skip)]
    _note: &'static str,
}

#[derive(Module)]
struct Model<H> {
    embedding: Embedding,
    blocks: Vec<Block>,
    dropout: Dropout,
    head: H,
}

fn model() -> Result<Model<Linear>> {
    let (dtype, device) = (DType::F32, Device::cpu());
    let block = |gated: bool| -> Result<Block> {
        Ok(Block {
            norm: LayerNorm::new(8, dtype, &device)?,
            linear: Linear::without_bias(8, 8, dtype, &device)?,
            gate: gated.then(|| RmsNorm::new(8, dtype, &device)).transpose()?,
            _note: "not a parameter",
        })
    };
    Ok(Model {
        embedding: Embedding::new(5, 8, dtype, &device)?,
        blocks: vec![block(false)?, block(true)?],
        dropout: Dropout::new(0.5)?,
        head: Linear::new(8, 3, dtype, &device)?,
    })
}

#[test]
fn parameters_are_named_by_their_fields() -> Result<()> {
    let model = model()?;
    let names: Vec<String> = model.named_parameters().into_iter().map(|(name, _)| name).collect();
    let expected = [
        "embedding.weight",
        "blocks.0.norm.weight",
        "blocks.0.norm.bias",
        "blocks.0.proj.weight",
        "blocks.1.norm.weight",
        "blocks.1.norm.bias",
        "blocks.1.proj.weight",
        "blocks.1.gate.weight",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(names, expected);
    assert_eq!(model.parameter_count(), 5 * 8 + 2 * (8 + 8 + 64) + 8 + 27);
    // A tied weight is one parameter with two names.
    let tied = Sequential::new().with(model.head.clone()).with(model.head.clone());
    assert_eq!((tied.named_parameters().len(), tied.parameters().len()), (4, 2));
    Ok(())
}

#[test]
fn saved_models_are_loaded_whole_or_not_at_all() -> Result<()> {
    let (first, second) = (model()?, model()?);
    let path = std::env::temp_dir().join(format!("tensorlogic-nn-{}.safetensors", std::process::id()));
    first.save(&path)?;
    second.load(&path)?;
    for ((name, a), (_, b)) in first.named_parameters().iter().zip(&second.named_parameters()) {
        assert_eq!(a.tensor().to_vec::<f32>()?, b.tensor().to_vec::<f32>()?, "{name}");
    }
    std::fs::remove_file(&path).unwrap();

    let third = model()?;
    let before = third.head.weight.tensor().to_vec::<f32>()?;
    let broken = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut state = first.state();
        change(&mut state);
        third.load_state(&state).unwrap_err().to_string()
    };
    let missing = broken(&|state| {
        state.remove("head.bias");
    });
    assert!(missing.contains("head.bias is missing"), "{missing}");
    let narrow = |t: &Tensor| t.narrow(0, 0, 2).unwrap();
    let shape = broken(&|state| {
        let changed = narrow(&state["head.bias"]);
        state.insert("head.bias".into(), changed);
    });
    assert!(shape.contains("f32 [2] and should be f32 [3]"), "{shape}");
    let unknown = broken(&|state| {
        let extra = state["head.bias"].clone();
        state.insert("tail.bias".into(), extra);
    });
    assert!(unknown.contains("no parameter tail.bias"), "{unknown}");
    assert_eq!(third.head.weight.tensor().to_vec::<f32>()?, before);
    assert!(third.load("/nowhere/at.all").unwrap_err().to_string().contains("/nowhere/at.all"));
    Ok(())
}

#[test]
fn modes_reach_every_layer() -> Result<()> {
    let model = model()?;
    let modes = |model: &Model<Linear>| {
        let mut modes = Vec::new();
        model.visit(&mut Path::default(), &mut |path, item| {
            if let Item::Mode(mode) = item {
                modes.push((path.name(), mode.is_training()));
            }
        });
        modes
    };
    assert_eq!(modes(&model), [("dropout.mode".to_string(), true)]);
    model.set_training(false);
    assert_eq!(modes(&model), [("dropout.mode".to_string(), false)]);
    Ok(())
}

#[test]
fn dropout_keeps_the_mean() -> Result<()> {
    let device = Device::cpu();
    for dtype in [DType::F32, DType::F16, DType::F64] {
        let dropout = Dropout::new(0.25)?;
        let x = Tensor::ones((200, 300), dtype, &device)?;
        let y = dropout.forward(&x)?.to_dtype(DType::F64)?;
        let (mean, zeros) = (y.mean_all()?.item::<f64>()?, y.eq(0.0)?.to_dtype(DType::F64)?.mean_all()?.item::<f64>()?);
        assert!((mean - 1.0).abs() < 0.02 && (zeros - 0.25).abs() < 0.02, "{dtype}: mean {mean}, zeros {zeros}");
        dropout.set_training(false);
        assert_eq!(dropout.forward(&x)?.sum_all()?.to_dtype(DType::F64)?.item::<f64>()?.min(60000.0), 60000.0);
    }
    for p in [1.0, -0.1, f64::NAN] {
        assert!(Dropout::new(p).is_err(), "{p}");
    }
    // A gradient passes where an element did, and is scaled like it.
    let x = tensorlogic::Var::new(&Tensor::ones(1000, DType::F32, &device)?)?;
    let y = Dropout::new(0.5)?.forward(&x.tensor())?;
    let kept = y.to_vec::<f32>()?;
    let gradients = y.sum_all()?.backward()?;
    assert_eq!(gradients.get(&x).unwrap().to_vec::<f32>()?, kept);
    Ok(())
}

#[test]
fn initial_values_have_the_variance_they_promise() -> Result<()> {
    let (dtype, device) = (DType::F32, Device::cpu());
    let dims = (400, 250);
    let cases: [(&str, Tensor, f64); 6] = [
        ("uniform", init::uniform(dims, 0.3, dtype, &device)?, 0.3 * 0.3 / 3.0),
        ("normal", init::normal(dims, 0.2, dtype, &device)?, 0.04),
        ("xavier_uniform", init::xavier_uniform(dims, dtype, &device)?, 2.0 / 650.0),
        ("xavier_normal", init::xavier_normal(dims, dtype, &device)?, 2.0 / 650.0),
        ("kaiming_uniform", init::kaiming_uniform(dims, dtype, &device)?, 2.0 / 250.0),
        ("kaiming_normal", init::kaiming_normal(dims, dtype, &device)?, 2.0 / 250.0),
    ];
    for (name, values, variance) in cases {
        let (mean, got) = (values.mean_all()?.item::<f32>()? as f64, values.var_all()?.item::<f32>()? as f64);
        assert!(mean.abs() < 0.03 * variance.sqrt().max(0.1), "{name}: mean {mean}");
        assert!((got / variance - 1.0).abs() < 0.03, "{name}: variance {got}, not {variance}");
    }
    assert!(init::kaiming_normal(7, dtype, &device).is_err());
    Ok(())
}

#[test]
fn images_go_through_a_network() -> Result<()> {
    let (dtype, device) = (DType::F32, Device::cpu());
    let same = ConvOptions { padding: 1, ..ConvOptions::default() };
    let model = Sequential::new()
        .with(Conv2d::new(3, 8, 3, same, dtype, &device)?)
        .with(Relu {})
        .with(MaxPool2d { size: 2 })
        .with(Conv2d::new(8, 8, 3, ConvOptions { groups: 4, stride: 2, ..same }, dtype, &device)?)
        .with(Flatten {})
        .with(Linear::new(8 * 2 * 2, 10, dtype, &device)?);
    assert_eq!(model.forward(&Tensor::zeros((5, 3, 8, 8), dtype, &device)?)?.dims(), [5, 10]);
    assert_eq!(model.len(), 6);
    assert!(model.forward(&Tensor::zeros((5, 2, 8, 8), dtype, &device)?).is_err());
    let groups = |groups| Conv2d::new(6, 8, 3, ConvOptions { groups, ..same }, dtype, &device);
    assert!(groups(2).is_ok() && groups(0).is_err() && groups(4).is_err());
    let large = Conv2d::new(3, 1, 9, ConvOptions::default(), dtype, &device)?;
    let message = large.forward(&Tensor::zeros((1, 3, 8, 8), dtype, &device)?).unwrap_err().to_string();
    assert!(message.contains("a window of 9 elements does not fit"), "{message}");
    Ok(())
}

/// A convolution in groups is one convolution a group.
#[test]
fn grouped_convolution_divides_the_channels() -> Result<()> {
    let device = Device::cpu();
    let x = Tensor::randn((2, 4, 6, 5), DType::F64, &device)?;
    let w = Tensor::randn((6, 2, 3, 2), DType::F64, &device)?;
    tensorlogic::eval(&[&x, &w])?;
    let options = ConvOptions { groups: 2, stride: 2, padding: 1, dilation: 1 };
    let whole = x.conv2d(&w, &options)?;
    let alone = ConvOptions { groups: 1, ..options };
    let part = |i: usize| x.narrow(1, 2 * i, 2)?.conv2d(&w.narrow(0, 3 * i, 3)?, &alone);
    let parts = Tensor::cat(&[part(0)?, part(1)?], 1)?;
    assert_eq!(whole.to_vec::<f64>()?, parts.to_vec::<f64>()?);
    Ok(())
}
