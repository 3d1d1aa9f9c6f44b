//! Attention, rotary positions, blocks and a whole GPT, with the gradients of all they have, against PyTorch in f64.
//!
//! Every dtype holds the inputs exactly, so what is compared is the arithmetic alone.

use super::{Args, fixtures};
use crate::gpt::model::{Gpt, Sizes};
use crate::oracle::{Array, dtypes, on_every_device};
use std::collections::BTreeMap;
use tensorlogic::nn::{
    Layer, Module, MultiHeadAttention, MultiHeadAttentionOptions, RotaryEmbedding, TransformerBlock, TransformerOptions,
};
use tensorlogic::{AttentionOptions, DType, Device, Result, RotaryLayout, Tensor, Var, autocast, grad_with};

on_every_device! {
    attention,
    rotary_positions,
    attention_with_projections,
    blocks,
    a_whole_gpt,
}

/// A case of the file, on a device and in a dtype.
struct Case<'a> {
    name: &'a str,
    file: &'a BTreeMap<String, Tensor>,
    dtype: DType,
    device: &'a Device,
}

impl Case<'_> {
    /// An input, or the gradient that backward begins with.
    fn get(&self, key: &str) -> Tensor {
        let t = &self.file[&format!("{}/{key}", self.name)];
        let dtype = if t.dtype().is_float() { self.dtype } else { t.dtype() };
        t.to_device(self.device).and_then(|t| t.to_dtype(dtype)).unwrap()
    }

    /// All inputs, floats as variables.
    fn inputs(&self) -> Args<'_> {
        let names = self.file.keys().filter_map(|key| key.strip_prefix(self.name)?.strip_prefix("/in/"));
        let value = |t: Tensor| if t.dtype().is_float() { Var::new(&t).unwrap().tensor() } else { t };
        names.map(|name| (name, value(self.get(&format!("in/{name}"))))).collect()
    }

    /// The inputs as the parameters of a module, and these.
    fn load<M: Module>(&self, module: &M) -> Result<Vec<(String, Tensor)>> {
        let named = module.named_parameters();
        for (name, var) in &named {
            var.set(&self.get(&format!("in/{name}")))?;
        }
        Ok(named.into_iter().map(|(name, var)| (name, var.tensor())).collect())
    }

    /// Within so many roundings of the largest element. f32 has more of them: its sums are of many terms, where those of
    /// f16 and bf16 are sums in f32.
    #[track_caller]
    fn assert_near(&self, key: &str, got: &Tensor) {
        let &Case { name, file, dtype, device } = self;
        let tolerance = match dtype {
            DType::F64 => 1e-14,
            DType::F32 => 2f64.powi(-24) * 16.0,
            DType::F16 => 2f64.powi(-11) * 4.0,
            _ => 2f64.powi(-8) * 4.0,
        };
        let want = &file[&format!("{name}/{key}")];
        assert_eq!(got.dims(), want.dims(), "{name}/{key}");
        let floats = |x: &Tensor| Array::read(x).unwrap().values.into_iter().map(|v| v.float()).collect::<Vec<f64>>();
        let (got, want) = (floats(&got.detach()), floats(want));
        let largest = want.iter().fold(0f64, |most, x| most.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let near = (got - want).abs() <= tolerance * largest;
            assert!(
                near,
                "{name}/{key}[{i}] in {dtype} on {device}: {got}, PyTorch has {want}; the largest is {largest}"
            );
        }
    }

    /// The result, and the gradients of these variables.
    fn check<'t>(
        &self,
        out: &Tensor,
        variables: impl IntoIterator<Item = (impl AsRef<str>, &'t Tensor)>,
    ) -> Result<()> {
        self.assert_near("out", out);
        let (names, variables): (Vec<_>, Vec<&Tensor>) = variables.into_iter().unzip();
        let seed = self.get("seed").to_dtype(out.dtype())?;
        for (name, got) in names.iter().zip(grad_with(out, &seed, &variables, false)?) {
            self.assert_near(&format!("grad/{}", name.as_ref()), &got);
        }
        Ok(())
    }
}

/// Runs the `count` cases whose names begin with `prefix`, in every dtype that is `wanted`.
fn each(
    prefix: &str,
    count: usize,
    device: &Device,
    wanted: impl Fn(DType) -> bool,
    check: impl Fn(&Case) -> Result<()>,
) -> Result<()> {
    let file = fixtures("transformers.safetensors");
    let names: Vec<&str> = file.keys().filter_map(|key| key.strip_suffix("/out")).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    assert_eq!(names.len(), count, "{names:?}");
    for dtype in dtypes(device, wanted) {
        names.iter().try_for_each(|name| check(&Case { name, file: &file, dtype, device }))?;
    }
    Ok(())
}

fn attention(device: &Device) -> Result<()> {
    each("attention_", 9, device, DType::is_float, |case| {
        let a = case.inputs();
        let causal = case.name.contains("causal");
        let scale = case.name.ends_with("scale").then_some(0.5);
        // A mask with a history takes ordinary ops, any other the kernels.
        for tracked in [true, false] {
            let mask = a.get("mask").map(|mask| if tracked { mask.clone() } else { mask.detach() });
            let options = AttentionOptions { mask: mask.as_ref(), causal, scale };
            let y = a["q"].scaled_dot_product_attention(&a["k"], &a["v"], &options)?;
            let variables = a.iter().filter(|(name, x)| x.is_tracked() && (tracked || **name != "mask"));
            case.check(&y, variables)?;
        }
        Ok(())
    })
}

fn rotary_positions(device: &Device) -> Result<()> {
    each("rotary_", 2, device, DType::is_float, |case| {
        let a = case.inputs();
        let layout = if case.name.ends_with("pairs") { RotaryLayout::Pairs } else { RotaryLayout::Halves };
        case.check(&a["x"].rotary(&a["cos"], &a["sin"], layout)?, &a)
    })
}

/// A layer over the input x, in its own dtype: its result, and the gradients of x and of all parameters.
fn check_layer(case: &Case, layer: &impl Layer) -> Result<()> {
    let x = Var::new(&case.get("in/x"))?.tensor();
    let mut variables = case.load(layer)?;
    let y = layer.forward(&x)?;
    variables.push(("x".into(), x));
    case.check(&y, variables.iter().map(|(name, x)| (name, x)))
}

fn attention_with_projections(device: &Device) -> Result<()> {
    each("mha_", 3, device, DType::is_float, |case| {
        let (width, heads, kv_heads, layout) = match case.name {
            "mha_gpt2" => (16, 4, 4, None),
            "mha_shared_halves" => (16, 4, 2, Some(RotaryLayout::Halves)),
            _ => (8, 2, 2, Some(RotaryLayout::Pairs)),
        };
        let rotary = layout.map(|layout| RotaryEmbedding::new(width / heads, 8, 1e4, layout, device)).transpose()?;
        let (causal, bias) = (case.name != "mha_pairs", case.name == "mha_gpt2");
        let options = MultiHeadAttentionOptions { width, heads, kv_heads, causal, bias, rotary };
        check_layer(case, &MultiHeadAttention::new(&options, case.dtype, device)?)
    })
}

fn blocks(device: &Device) -> Result<()> {
    each("block", 1, device, DType::is_float, |case| {
        check_layer(case, &TransformerBlock::new(&TransformerOptions::new(16, 2), case.dtype, device)?)
    })
}

/// Parameters are f32, as in the example, and products in `dtype`.
fn a_whole_gpt(device: &Device) -> Result<()> {
    let wanted = |dtype: DType| dtype.is_float() && dtype != DType::F64;
    each("gpt", 1, device, wanted, |case| {
        let gpt = Gpt::new(Sizes { vocabulary: 17, context: 12, layers: 2, width: 24, heads: 3 }, 0.0, device)?;
        let parameters = Case { dtype: DType::F32, ..*case }.load(&gpt)?;
        let (ids, targets) = (case.get("in/ids"), case.get("in/targets"));
        autocast(case.dtype, || {
            case.assert_near("logits", &gpt.forward(&ids)?);
            case.check(&gpt.loss(&ids, &targets)?, parameters.iter().map(|(name, x)| (name, x)))
        })
    })
}
