//! How many kernels ordinary code becomes, and what the account of a plan says.

use crate::oracle::on_every_device;
use tensorlogic::testing::{counters, dispatches_of_thread, kernel_count, kernels_of_thread, no_fusion};
use tensorlogic::{Activation, DType, Device, IntoShape, Result, Tensor};

on_every_device! {
    plans_are_the_same_on_every_device,
}

const FLOATS: [DType; 2] = [DType::F32, DType::F16];

/// A tensor whose elements are there.
fn data(shape: impl IntoShape, dtype: DType) -> Result<Tensor> {
    let x = Tensor::ones(shape, dtype, &Device::cpu())?.contiguous()?;
    x.eval()?;
    Ok(x)
}

fn f32s(shape: impl IntoShape) -> Result<Tensor> {
    data(shape, DType::F32)
}

#[track_caller]
fn assert_kernels(count: usize, roots: &[&Tensor]) {
    assert_eq!(kernel_count(roots), Ok(count), "{}", roots[0].explain().unwrap());
}

#[track_caller]
fn assert_one(root: Result<Tensor>) {
    assert_kernels(1, &[&root.unwrap()]);
}

#[test]
fn the_fused_calls_are_one_kernel_each() -> Result<()> {
    for dtype in FLOATS {
        let (a, b, bias) = (data((6, 5), dtype)?, data((5, 7), dtype)?, data(7, dtype)?);
        assert_one(a.fused_add_relu(&a));
        assert_one(a.fused_mul_relu(&data(5, dtype)?));
        assert_one(a.fused_affine(&data(5, dtype)?, &data((), dtype)?));
        for activation in [Activation::None, Activation::ReLU, Activation::GELU] {
            assert_one(a.matmul_with_activation(&b, activation));
        }
        assert_one((a.matmul(&b)? + &bias)?.gelu());
        assert_one((a.matmul(&b)? + &data((6, 7), dtype)?)?.to_dtype(DType::F32));
    }
    Ok(())
}

#[test]
fn elementwise_chains_are_one_kernel() -> Result<()> {
    let (a, b) = (f32s((6, 5))?, f32s(5)?);
    assert_one((&a + &b)?.relu());
    let mut chain = a.clone();
    for i in 0..20 {
        chain = if i % 2 == 0 { chain.tanh()? } else { (chain * &b)? };
    }
    assert_one(Ok(chain));
    assert_one(a.lt(&b)?.where_cond(&a, &b)?.to_dtype(DType::I32));
    Ok(())
}

#[test]
fn long_chains_are_cut_into_few_kernels() -> Result<()> {
    let chain = (0..1000).try_fold(f32s((6, 5))?, |x, _| x + 1.0)?;
    let account = chain.explain()?;
    assert!(account.kernels() <= 9, "{}", account.kernels());
    assert!(!account.to_string().contains("[scalar]"), "a number is no kernel");
    Ok(())
}

#[test]
fn softmaxes_are_one_kernel() -> Result<()> {
    for dtype in FLOATS {
        let (x, y) = (data((4, 6, 5), dtype)?, data((8, 9), dtype)?);
        for dim in 0..3 {
            assert_one(x.softmax(dim));
            assert_one(x.log_softmax(dim));
            assert_one((&x * 2.0)?.softmax(dim));
        }
        for dim in 0..2 {
            assert_one(y.softmax(dim));
            assert_one(y.log_softmax(dim));
            assert_one((&y + &y)?.softmax(dim));
        }
    }
    Ok(())
}

#[test]
fn norms_are_one_kernel() -> Result<()> {
    for dtype in FLOATS {
        let (w, b) = (data(16, dtype)?, data(16, dtype)?);
        for x in [data((4, 16), dtype)?, data((3, 4, 16), dtype)?] {
            let sum = (&x + &x)?;
            for input in [&x, &sum] {
                assert_one(input.layer_norm(&w, Some(&b), 1e-5));
                assert_one(input.layer_norm(&w, None, 1e-5));
                assert_one(input.rms_norm(&w, 1e-5));
            }
            assert_kernels(1, &[&sum, &sum.layer_norm(&w, Some(&b), 1e-5)?]);
            assert_kernels(1, &[&sum.rms_norm(&w, 1e-5)?, &sum]);
        }
        let (image, scale) = (data((2, 3, 4), dtype)?, data((3, 4), dtype)?);
        assert_one(image.layer_norm(&scale, Some(&scale), 1e-5));
    }
    Ok(())
}

#[test]
fn reductions_take_in_what_stands_around_them() -> Result<()> {
    let (a, b) = (f32s((6, 5))?, f32s((6, 5))?);
    let distance = (&a - &b)?.sqr()?;
    for dims in [&[0][..], &[1], &[0, 1]] {
        assert_one(distance.sum(dims));
        assert_one(distance.mean(dims));
        assert_one(distance.max_keepdim(dims));
        assert_one(a.var(dims));
        assert_one(a.std(dims));
        assert_one(distance.sum(dims)?.sqrt());
    }
    assert_one(a.logsumexp(1));
    assert_one(a.logsumexp(0));
    assert_one((&a * 2.0)?.argmax(1));
    assert_one(&a - &a.mean_keepdim(0)?);
    assert_one(&a - &a.mean(0)?);
    assert_one(&a / &a.sum_keepdim(1)?);
    assert_one((&a / &a.max_keepdim(1)?)?.sum(1));
    Ok(())
}

#[test]
fn losses_are_one_kernel() -> Result<()> {
    let targets = Tensor::from_vec(vec![0i64, 3, 2, 1], 4, &Device::cpu())?;
    for dtype in FLOATS {
        let logits = data((4, 8), dtype)?;
        assert_one(logits.cross_entropy(&targets));
        assert_one((&logits * 0.5)?.cross_entropy(&targets));
        assert_one(logits.mse_loss(&data((4, 8), dtype)?));
        assert_one(logits.mse_loss(&data(8, dtype)?));
    }
    Ok(())
}

#[test]
fn large_reductions() -> Result<()> {
    let long = f32s(1 << 21)?;
    assert_one(long.sum(0));
    assert_one(long.sqr()?.mean(0));
    assert_one((&long - 1.0)?.max(0));
    let tall = f32s((1 << 14, 40))?;
    assert_one(tall.sum(0));
    assert_one(tall.sum(1));
    assert_one(tall.sum(()));
    assert_one(tall.softmax(1));
    // Few and long rows: the fold and what follows it are spread over the device separately.
    assert_kernels(2, &[&(&long / &long.sum_keepdim(0)?)?]);
    Ok(())
}

#[test]
fn random_numbers_are_made_where_they_are_used() -> Result<()> {
    let device = Device::cpu();
    let x = f32s((8, 8))?;
    let noise = Tensor::randn((8, 8), DType::F32, &device)?;
    assert_one((&noise * 0.1)? + &x);
    assert_one(Tensor::rand((8, 8), DType::F16, &device));
    let keep = Tensor::rand((8, 8), DType::F32, &device)?.lt(0.9)?;
    assert_one(keep.where_cond(&x, 0.0));
    assert_one(Tensor::eye(8, DType::F32, &device)? + &x);
    Ok(())
}

/// The views of a tensor [6, 8] that these tests put everywhere.
fn views(x: &Tensor) -> Result<Vec<Tensor>> {
    Ok(vec![
        x.t()?,
        x.narrow(0, 1, 3)?,
        x.slice(1, .., -1)?,
        x.slice(1, 1..7, 2)?,
        x.reshape((3, 16))?,
        x.reshape((2, 3, 8))?.permute([2, 0, 1])?,
        x.unsqueeze(1)?.expand((6, 4, 8))?,
        x.select(0, 2)?,
    ])
}

#[test]
fn views_cost_no_kernel() -> Result<()> {
    let x = f32s((6, 8))?;
    for view in views(&x)? {
        assert_kernels(1, &[&view.relu()?]);
    }
    for view in views(&(&x + 1.0)?)? {
        assert_kernels(1, &[&view.relu()?]);
        assert_kernels(1, &[&view.exp()?.sum(())?]);
    }
    assert_one(x.t()? + &f32s((8, 6))?);
    assert_one(x.relu()?.t()?.softmax(0));
    assert_one((x.relu()?.reshape((2, 24))? + 1.0)?.reshape((8, 6))?.tanh());
    Ok(())
}

#[test]
fn products_read_views_in_place() -> Result<()> {
    let (a, b) = (f32s((4, 6, 8))?, f32s((10, 8))?);
    assert_one(a.matmul(&b.t()?));
    assert_one(a.transpose(0, 1)?.matmul(&b.t()?));
    assert_one(a.narrow(1, 2, 3)?.matmul(&b.t()?)?.relu());
    assert_one(a.matmul(&a.transpose(1, 2)?)? * 0.5);
    // Heads: [2, 5, 12] -> [2, 3, 5, 4].
    let x = f32s((2, 5, 12))?;
    let heads = x.reshape((2, 5, 3, 4))?.transpose(1, 2)?;
    assert_one(heads.matmul(&heads.transpose(2, 3)?)? * 0.5);
    Ok(())
}

/// Had a read evaluated its view, the view would no longer be pending.
#[test]
fn reading_a_view_of_data_launches_nothing() -> Result<()> {
    let x = f32s((6, 8))?;
    for view in views(&x)? {
        let pending = kernel_count(&[&view])?;
        assert_eq!(view.to_vec::<f32>()?, vec![1.0; view.numel()]);
        assert_kernels(pending, &[&view]);
    }
    assert_kernels(1, &[&x.t()?]); // evaluated by name, a view becomes a copy
    assert_kernels(0, &[&x.reshape((8, 6))?]);
    assert_kernels(0, &[&x]);
    Ok(())
}

#[test]
fn parts_are_written_in_place() -> Result<()> {
    let x = f32s((6, 8))?;
    let parts = [x.relu()?, (&x + 1.0)?, x.sum_keepdim(0)?];
    assert_kernels(3, &[&Tensor::cat(&parts, 0)?]);
    assert_kernels(2, &[&Tensor::cat(&parts[..2], 1)?]);
    assert_kernels(2, &[&Tensor::stack(&parts[..2], 0)?]);
    // Alike, so one launch.
    assert_kernels(1, &[&Tensor::cat(&[&x, &x], 0)?]);
    Ok(())
}

#[test]
fn roots_share_a_chain() -> Result<()> {
    let x = f32s((6, 8))?;
    let chain = x.exp()?.tanh()?.sin()?;
    assert_kernels(1, &[&chain, &(&chain + 1.0)?]);
    assert_kernels(1, &[&chain, &chain.sum(1)?]);
    // Neither root lies above the other: the chain, too dear to compute twice, is stored on one's way.
    assert_kernels(2, &[&(&chain + 1.0)?, &(&chain * 2.0)?]);
    // Cheap: computed twice.
    let cheap = (&x + 1.0)?;
    assert_kernels(2, &[&cheap.relu()?, &cheap.sqr()?]);
    Ok(())
}

#[test]
fn reductions_of_products_store_the_product_only() -> Result<()> {
    let (x, w) = (f32s((4, 16))?, f32s((16, 16))?);
    let y = x.matmul(&w)?;
    assert_kernels(2, &[&y.softmax(1)?]);
    assert_kernels(2, &[&(&y + &x)?.rms_norm(&f32s(16)?, 1e-5)?]);
    assert_kernels(2, &[&(&y + &x)?.layer_norm(&f32s(16)?, None, 1e-5)?]);
    assert_kernels(2, &[&y.gelu()?.sum(0)?]);
    Ok(())
}

#[test]
fn attention_is_three_kernels() -> Result<()> {
    let (q, k, v) = (f32s((2, 3, 5, 4))?, f32s((2, 3, 5, 4))?, f32s((2, 3, 5, 4))?);
    let weights = (q.matmul(&k.transpose(2, 3)?)? * 0.5)?.softmax(3)?;
    assert_kernels(3, &[&weights.matmul(&v)?]);
    Ok(())
}

#[test]
fn without_fusion_every_op_is_a_kernel() -> Result<()> {
    let x = f32s((6, 8))?;
    let y = x.relu()?.t()?.exp()?.sum(0)?.reshape((2, 3))?.neg()?;
    assert_kernels(1, &[&y]);
    no_fusion(|| assert_kernels(4, &[&y]));
    no_fusion(|| assert_kernels(5, &[&x.softmax(1).unwrap()]));
    assert_kernels(1, &[&y]);
    Ok(())
}

#[test]
fn the_account_names_kinds_and_ops() -> Result<()> {
    let x = f32s((6, 8))?;
    let kinds = [
        ("map", "[add relu]", (&x + 1.0)?.relu()?),
        ("reduce", "[sqr sum]", x.sqr()?.sum(1)?),
        ("rows", "[max sub exp sum div]", x.softmax(1)?),
        ("matmul", "[matmul gelu]", x.matmul(&x.t()?)?.gelu()?),
    ];
    for (kind, ops, y) in kinds {
        let text = y.explain()?.to_string();
        assert!(text.starts_with("1 kernel\n"), "{text}");
        assert!(text.contains(&format!("0: {kind} ")) && text.contains(ops), "{kind} {ops}: {text}");
        assert!(text.contains("fusion.rs:"), "{text}");
    }
    Ok(())
}

#[test]
fn the_account_says_why_edges_did_not_fuse() -> Result<()> {
    let (x, long) = (f32s((6, 6))?, f32s(1 << 18)?);
    let dear = x.exp()?.tanh()?.sin()?;
    let reasons = [
        ("a product or a gather reads it from memory", x.exp()?.matmul(&x)?),
        ("its rows are long and few", (&long / &long.sum(0)?)?),
        ("several kernels read it", Tensor::cat(&[&dear.relu()?, &dear.neg()?], 0)?),
        ("a product is computed on its own loops", x.matmul(&x)?.sum(0)?),
    ];
    for (reason, y) in reasons {
        let account = y.explain()?;
        assert!(account.kernels() > 1 && account.to_string().contains(reason), "{reason}: {account}");
    }
    Ok(())
}

#[test]
fn the_account_counts_bytes_and_operations() -> Result<()> {
    let account = (&f32s((6, 8))? + &f32s(8)?)?.explain()?;
    assert_eq!((account.bytes(), account.flops()), (4 * (48 + 8 + 48), 48));
    let account = f32s((6, 8))?.matmul(&f32s((8, 5))?)?.explain()?;
    assert_eq!((account.bytes(), account.flops()), (4 * (48 + 40 + 30), 2 * 6 * 8 * 5));
    Ok(())
}

/// Graphs of several kinds of kernels, of which some take two dispatches on a GPU.
fn graphs(device: &Device) -> Result<Vec<Tensor>> {
    let x = Tensor::randn((48, 64), DType::F32, device)?.contiguous()?;
    let (w, long) = (x.slice(0, 0..24, 1)?.contiguous()?, Tensor::ones(1 << 18, DType::F32, device)?.contiguous()?);
    tensorlogic::eval(&[&x, &w, &long])?;
    let hidden = x.matmul(&w.t()?)?.gelu()?;
    Ok(vec![
        ((&x + 1.0)?.relu()? * &x)?,
        x.softmax(1)?,
        hidden.softmax(1)?.matmul(&w)?,
        (hidden.sum(0)? + hidden.matmul(&w)?.sum(1)?.sum(0)?)?,
        Tensor::cat(&[x.relu()?, (&x + 1.0)?, x.sum_keepdim(0)?], 0)?,
        (&long - long.mean_keepdim(0)?)?.sqr()?.sum(0)?,
    ])
}

fn plans_are_the_same_on_every_device(device: &Device) {
    let run = || -> Result<()> {
        for (graph, on_cpu) in graphs(device)?.iter().zip(graphs(&Device::cpu())?) {
            let want = kernel_count(&[&on_cpu])?;
            assert_kernels(want, &[graph]);
            let (kernels, dispatches) = (kernels_of_thread(), dispatches_of_thread());
            graph.eval()?;
            assert_eq!(kernels_of_thread() - kernels, want as u64);
            let dispatches = (dispatches_of_thread() - dispatches) as usize;
            // A kernel may take several.
            let expected = if *device == Device::cpu() { 0..=0 } else { want..=3 * want };
            assert!(expected.contains(&dispatches), "{dispatches} dispatches: {}", graph.explain()?);
            assert!(counters().dispatches >= dispatches as u64);
        }
        Ok(())
    };
    run().unwrap();
}
