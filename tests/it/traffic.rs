//! What kernels move, counted by soft Metal: every load and store of device memory, not only the first of an address.
//!
//! The compulsory traffic of a kernel is its full-size operands: each input read once, each output written once. What
//! is moved from and to these allocations is held against it. Small operands (weights, one number a row, partial
//! sums: less than an eighth of the largest) are on neither side; the table shows what they move as well. So that
//! operands are told apart by their allocations, no two of them share one.
//!
//! `cargo test --features soft-metal --test it traffic -- --nocapture` prints the table.

use crate::process::{child, is_child};
use tensorlogic::testing::traffic;
use tensorlogic::{DType, Device, Result, Tensor, eval};

/// Moved bytes over compulsory ones.
const MOST: f64 = 1.05;

/// A computation to measure.
struct Case {
    name: String,
    result: Tensor,
    /// Bytes of its full-size inputs and outputs.
    compulsory: usize,
}

fn data(dims: &[usize], dtype: DType) -> Result<Tensor> {
    let x = Tensor::randn(dims, dtype, &Device::soft_metal()?)?.contiguous()?;
    x.eval()?;
    Ok(x)
}

fn bytes(tensors: &[&Tensor]) -> usize {
    tensors.iter().map(|x| x.numel() * x.dtype().size()).sum()
}

/// One that reads `inputs` and writes a result of full size.
fn whole(name: &str, inputs: &[&Tensor], result: Result<Tensor>) -> Result<Case> {
    let result = result?;
    let (dtype, dims) = (inputs[0].dtype(), inputs[0].dims());
    let name = format!("{name} {dtype} {dims:?}");
    Ok(Case { name, compulsory: bytes(inputs) + bytes(&[&result]), result })
}

/// One whose result is small.
fn folded(name: &str, inputs: &[&Tensor], result: Result<Tensor>) -> Result<Case> {
    let small = whole(name, inputs, result)?;
    Ok(Case { compulsory: bytes(inputs), ..small })
}

fn maps(dtype: DType) -> Result<Vec<Case>> {
    let [a, b, c, d] = [0; 4].map(|_| data(&[256, 1000], dtype));
    let (a, b, c, d) = (a?, b?, c?, d?);
    let (row, scalar) = (data(&[1000], dtype)?, data(&[], dtype)?);
    let chain = (((&a * &b)?.tanh()? + &c)?.sigmoid()? - &d)?.sqr();
    let odd = a.reshape(256_000)?.narrow(0, 0, 255_999)?.contiguous()?;
    odd.eval()?;
    Ok(vec![
        whole("add relu", &[&a, &b], (&a + &b)?.relu())?,
        whole("add relu, odd", &[&odd], (&odd + 1.0)?.relu())?,
        whole("fused_affine", &[&a], a.fused_affine(&row, &scalar))?,
        whole("chain of 4 inputs", &[&a, &b, &c, &d], chain)?,
        whole("where", &[&a, &b, &c], a.gt(&b)?.where_cond(&a, &c))?,
        whole("x + x tanh x", &[&a], &a + (&a * a.tanh()?)?)?,
    ])
}

fn rows(dtype: DType, columns: usize) -> Result<Vec<Case>> {
    let x = data(&[64, columns], dtype)?;
    let (weight, bias) = (data(&[columns], dtype)?, data(&[columns], dtype)?);
    let classes = Tensor::zeros(64, DType::I64, x.device())?.contiguous()?;
    classes.eval()?;
    Ok(vec![
        whole("softmax", &[&x], x.softmax(1))?,
        whole("layer norm", &[&x], x.layer_norm(&weight, Some(&bias), 1e-5))?,
        whole("rms norm", &[&x], x.rms_norm(&weight, 1e-5))?,
        folded("cross entropy", &[&x], x.cross_entropy(&classes))?,
    ])
}

fn reductions(dtype: DType) -> Result<Vec<Case>> {
    let long = data(&[1 << 20], dtype)?;
    let (a, b) = (data(&[512, 512], dtype)?, data(&[512, 512], dtype)?);
    Ok(vec![
        folded("sum", &[&long], long.sum(()))?,
        folded("row sums", &[&a], a.sum(1))?,
        folded("column sums", &[&a], a.sum(0))?,
        folded("sum of (a - b)^2", &[&a, &b], (&a - &b)?.sqr()?.sum(()))?,
    ])
}

#[test]
fn kernels_move_little_more_than_they_must() {
    child("traffic::table", &[]).iter().for_each(|line| println!("{line}"));
}

/// In a process of its own: what other tests run would count.
#[test]
#[ignore = "counts what the whole process does"]
fn table() -> Result<()> {
    if !is_child() {
        return Ok(());
    }
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        cases.extend(maps(dtype)?);
        for columns in [1000, 1024, 4096] {
            cases.extend(rows(dtype, columns)?);
        }
        cases.extend(reductions(dtype)?);
    }
    let device = Device::soft_metal()?;
    println!("value: | kernel | compulsory | moved | ratio | small operands |");
    println!("value: | --- | --- | --- | --- | --- |");
    let mut failures = Vec::new();
    for Case { name, result, compulsory } in cases {
        let (done, dispatches) = traffic(&device, || eval(&[&result]))?;
        done?;
        let allocations = || dispatches.iter().flat_map(|dispatch| &dispatch.allocations);
        let largest = allocations().map(|a| a.bytes).max().unwrap_or(0);
        let moved = |full: bool| -> u64 {
            let counted = allocations().filter(|a| (8 * a.bytes >= largest) == full);
            counted.map(|a| a.loaded + a.stored).sum()
        };
        let ratio = moved(true) as f64 / compulsory as f64;
        let line = format!("| {name} | {compulsory} | {} | {ratio:.3} | {} |", moved(true), moved(false));
        println!("value: {line}");
        if !(1.0..=MOST).contains(&ratio) {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "more than {MOST} times what they must:\n{}", failures.join("\n"));
    Ok(())
}
