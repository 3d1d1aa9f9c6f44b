//! Golden texts: what a few graphs become. `TL_GOLDEN=write` writes the files anew.

use super::{Machine, generated, render};
use crate::device::gpu::cache::keep_source;
use crate::error::Result;
use crate::graph::Snapshot;
use crate::schedule::{Options, plan};
use crate::{DType, Device, Tensor};
use std::path::Path;

const MACHINE: Machine = Machine {
    threads: 1024,
    threadgroup_bytes: 32 << 10,
    buffers: 31,
    argument_bytes: 4096,
    grid: 65_535,
    parallel_groups: 512,
    matrix_units: true,
};

/// The generated text of all kernels that compute `roots`.
fn text(roots: &[&Tensor]) -> Result<String> {
    let nodes: Vec<_> = roots.iter().map(|t| t.0.clone()).collect();
    let snapshot = Snapshot::of(&nodes, true);
    let plan = plan(&snapshot, &Options { fuse: true })?;
    let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
    let mut text = String::new();
    for step in &plan.steps {
        let kernels: Vec<_> = step.iter().map(|part| &part.kernel).collect();
        for rendered in render(&kernels, &MACHINE, &dtype) {
            keep_source(&rendered.source);
            text += generated(&rendered.source);
            for call in rendered.calls {
                text += &format!("// {}: {:?} groups of {} threads\n", call.name, call.groups, call.threads);
            }
            text += "\n";
        }
    }
    Ok(text)
}

fn golden(name: &str, roots: &[&Tensor]) {
    let text = text(roots).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.metal"));
    if std::env::var("TL_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{name}: if the new text is right, write it with TL_GOLDEN=write");
}

fn input(shape: &[usize], dtype: DType) -> Tensor {
    let tensor = Tensor::zeros(shape, dtype, &Device::cpu()).unwrap();
    tensor.eval().unwrap();
    tensor
}

#[test]
fn add_relu() {
    let (a, b) = (input(&[1000], DType::F16), input(&[1000], DType::F16));
    golden("add_relu", &[&(&a + &b).unwrap().relu().unwrap()]);
}

#[test]
fn bias_of_rows() {
    let (a, b) = (input(&[6, 40], DType::F32), input(&[40], DType::F32));
    golden("bias_of_rows", &[&(&a + &b).unwrap().gelu().unwrap()]);
}

#[test]
fn softmax() {
    golden("softmax", &[&input(&[4096, 1024], DType::F16).softmax(-1).unwrap()]);
}

#[test]
fn sum_of_squares() {
    let (a, b) = (input(&[1 << 20], DType::F32), input(&[1 << 20], DType::F32));
    golden("sum_of_squares", &[&(&a - &b).unwrap().sqr().unwrap().sum(()).unwrap()]);
}

#[test]
fn column_sum() {
    golden("column_sum", &[&input(&[4096, 1024], DType::F16).sum(0).unwrap()]);
}

#[test]
fn layer_norm() {
    let x = input(&[64, 768], DType::BF16);
    let (gamma, beta) = (input(&[768], DType::BF16), input(&[768], DType::BF16));
    golden("layer_norm", &[&x.layer_norm(&gamma, Some(&beta), 1e-5).unwrap()]);
}

#[test]
fn cross_entropy() {
    let (x, y) = (input(&[32, 10], DType::F32), input(&[32], DType::I64));
    golden("cross_entropy", &[&x.cross_entropy(&y).unwrap()]);
}

#[test]
fn gathered_rows() {
    let (table, index) = (input(&[50, 64], DType::F16), input(&[8], DType::I64));
    golden("gathered_rows", &[&table.index_select(0, &index).unwrap()]);
}

#[test]
fn several_sums_in_one_launch() {
    let list: Vec<Tensor> = [5usize, 70].map(|n| input(&[n], DType::F32).sqr().unwrap()).into();
    golden("several_maps", &[&list[0], &list[1]]);
}

#[test]
fn argmax_of_columns() {
    golden("argmax_of_columns", &[&input(&[100, 64], DType::I32).argmax(0).unwrap()]);
}

#[test]
fn linear_gelu() {
    let (x, w, b) = (input(&[128, 256], DType::F16), input(&[512, 256], DType::F16), input(&[512], DType::F16));
    let product = x.matmul(&w.t().unwrap()).unwrap();
    golden("linear_gelu", &[&(&product + &b).unwrap().gelu().unwrap()]);
}

#[test]
fn product_of_one_row() {
    golden("product_of_one_row", &[&input(&[1, 256], DType::F32).matmul(&input(&[256, 100], DType::F32)).unwrap()]);
}

#[test]
fn sums_by_index() {
    let (table, index) = (input(&[50, 64], DType::F32), input(&[8], DType::I64));
    let rows = input(&[8, 64], DType::F32);
    golden("sums_by_index", &[&table.index_add(0, &index, &rows).unwrap()]);
}

#[test]
fn transposition() {
    let x = input(&[100, 200], DType::F16);
    golden("transposition", &[&(&x.t().unwrap() * 2.0).unwrap()]);
}
