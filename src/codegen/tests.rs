//! Golden texts: what a few graphs become. `TL_GOLDEN=write` writes the files anew.

use super::{Binding, Chip, Choice, Class, Machine, Tile, generated, library, relu_in_place, render};
use crate::device::gpu::cache::keep_source;
use crate::error::Result;
use crate::graph::Snapshot;
use crate::schedule::{Gemm, Operand, Options, plan};
use crate::shape::Dims;
use crate::{AttentionOptions, DType, Device, Tensor};
use std::path::Path;

const MACHINE: Machine = Machine {
    threads: 1024,
    threadgroup_bytes: 32 << 10,
    dispatch_bytes: 0,
    buffers: 31,
    argument_bytes: 4096,
    grid: 65_535,
    parallel_groups: 512,
    matrix_units: true,
    tensor_maps: false,
    chip: Chip::Other,
    product: None,
};

/// The generated text of all kernels that compute `roots`.
fn text(roots: &[&Tensor]) -> Result<String> {
    text_for(roots, &MACHINE)
}

fn text_for(roots: &[&Tensor], machine: &Machine) -> Result<String> {
    let nodes: Vec<_> = roots.iter().map(|t| t.0.clone()).collect();
    let snapshot = Snapshot::of(&nodes, true);
    let plan = plan(&snapshot, &Options { fuse: true })?;
    let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
    let mut text = String::new();
    for step in &plan.steps {
        let kernels: Vec<_> = step.iter().map(|part| &part.kernel).collect();
        for rendered in render(&kernels, machine, &dtype) {
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

/// Causal attention of heads of this width.
fn attended(width: usize, dtype: DType) -> Tensor {
    let [q, k, v] = [0, 1, 2].map(|_| input(&[1, 2, 64, width], dtype));
    let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
    q.scaled_dot_product_attention(&k, &v, &options).unwrap()
}

#[test]
fn attention() {
    golden("attention", &[&attended(64, DType::F16)]);
    golden("attention_rows", &[&attended(64, DType::F32)]);
}

/// Where dispatches bring memory, keys and values have a tile each.
#[test]
fn attention_in_registers() {
    let machine = Machine { dispatch_bytes: 227 << 10, chip: Chip::Nvidia, ..MACHINE };
    for (width, sizes) in [(64, "32, 4, 64, 64, true"), (128, "32, 4, 64, 128, true"), (256, "16, 4, 32, 256, true")] {
        for dtype in [DType::F16, DType::BF16] {
            let text = text_for(&[&attended(width, dtype)], &machine).unwrap();
            assert!(text.contains("TL_DISPATCH_BLOCK") && text.contains(sizes), "{text}");
        }
    }
}

/// The gradients of wide heads, of keys and of values apart.
#[test]
fn gradients_of_wide_heads() {
    let machine = Machine { dispatch_bytes: 227 << 10, chip: Chip::Nvidia, ..MACHINE };
    let [q, k, v] = [0, 1, 2].map(|_| crate::Var::new(&input(&[1, 2, 64, 200], DType::F16)).unwrap());
    let y = q.tensor().scaled_dot_product_attention(&k.tensor(), &v.tensor(), &AttentionOptions::default()).unwrap();
    let gradients = y.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let text = text_for(&[&q, &k, &v].map(|x| gradients.get(x).unwrap()), &machine).unwrap();
    for call in ["tl_attend_queries<16, 4, 32, 208>", "tl_attend_keys<16, 4, 32, 208, true, false>"] {
        assert!(text.contains(call), "{call}: {text}");
    }
    assert!(text.contains("tl_attend_keys<16, 4, 32, 208, false, true>"), "{text}");
}

/// On a Hopper, tensor maps describe operands that rows lie straight in.
#[test]
fn attention_by_tensor_maps() {
    let machine = Machine { dispatch_bytes: 227 << 10, tensor_maps: true, chip: Chip::Nvidia, ..MACHINE };
    for (width, sizes) in [(40, "64, 3, 128, 2, 2"), (128, "128, 2, 128, 1, 2")] {
        for (dtype, name) in [(DType::F16, "half"), (DType::BF16, "bfloat")] {
            let text = text_for(&[&attended(width, dtype)], &machine).unwrap();
            assert!(text.contains(&format!("tl_hopper_forward<{sizes}, {name}>")), "{text}");
            let [q, k, v] = [0, 1, 2].map(|_| crate::Var::new(&input(&[1, 70, 2, width], dtype)).unwrap());
            let [a, b, c] = [&q, &k, &v].map(|x| x.tensor().transpose(1, 2).unwrap());
            let y = a.scaled_dot_product_attention(&b, &c, &AttentionOptions::default()).unwrap();
            let gradients = y.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let roots = [&q, &k, &v].map(|x| gradients.get(x).unwrap());
            let text = text_for(&roots, &machine).unwrap();
            assert!(text.contains("tl_hopper_queries<") && text.contains("tl_hopper_keys<"), "{text}");
            assert!(text.contains("TlTensorMap gradient_map;"), "{text}");
        }
    }
    for (width, dtype) in [(64, DType::F32), (132, DType::F16), (12, DType::F16)] {
        let text = text_for(&[&attended(width, dtype)], &machine).unwrap();
        assert!(!text.contains("tl_hopper"), "{text}");
    }
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
fn sums_of_sorted_terms() {
    let (table, index) = (input(&[50_000, 64], DType::F16), input(&[700], DType::I64));
    let rows = input(&[700, 64], DType::F16);
    golden("sums_of_sorted_terms", &[&table.index_add(0, &index, &rows).unwrap()]);
}

#[test]
fn transposition() {
    let x = input(&[100, 200], DType::F16);
    golden("transposition", &[&(&x.t().unwrap() * 2.0).unwrap()]);
}

#[test]
fn relu_behind_a_library() {
    let (x, w, b) = (input(&[64, 72], DType::F16), input(&[72, 40], DType::F16), input(&[40], DType::F16));
    let product = x.matmul(&w).unwrap();
    for (y, has_bias) in [(product.relu().unwrap(), false), ((&product + &b).unwrap().relu().unwrap(), true)] {
        let snapshot = Snapshot::of(std::slice::from_ref(&y.0), true);
        let plan = plan(&snapshot, &Options { fuse: true }).unwrap();
        let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
        let kernel = &plan.steps[0][0].kernel;
        let epilogue = library(kernel, &dtype).unwrap();
        assert_eq!((epilogue.relu, epilogue.activation, epilogue.bias.is_some()), (true, None, has_bias));
        let rendered = relu_in_place(kernel, &MACHINE, &dtype);
        keep_source(&rendered.source);
        let [call] = &rendered.calls[..] else { panic!("one dispatch") };
        assert_eq!(call.buffers, [Binding::Read(epilogue.output), Binding::Write(epilogue.output)]);
        assert!(rendered.source.contains("tl_load<8>(b0 + (args.v0_at + x0), count, p0)"), "{}", rendered.source);
    }
}

/// A library stores what comes before a GELU if that is wanted, too; with another second output it has no part.
#[test]
fn gelu_of_sums_that_are_kept() {
    let (x, w, b) = (input(&[64, 72], DType::F16), input(&[72, 40], DType::F16), input(&[40], DType::F16));
    let sums = (x.matmul(&w).unwrap() + &b).unwrap();
    let (y, other) = (sums.gelu().unwrap(), (&sums * 2.0).unwrap());
    for (roots, kept) in [([&y, &sums], true), ([&y, &other], false)] {
        let snapshot = Snapshot::of(&roots.map(|root| root.0.clone()), true);
        let plan = plan(&snapshot, &Options { fuse: true }).unwrap();
        let dtype = |node: u32| snapshot.entries[node as usize].node.dtype;
        let kernels = plan.steps.iter().flatten().map(|part| &part.kernel).filter(|kernel| kernel.gemm.is_some());
        let found: Vec<_> = kernels.filter_map(|kernel| library(kernel, &dtype)).collect();
        let all = found.iter().any(|epilogue| epilogue.activation.is_some() && epilogue.before.is_some());
        assert_eq!(all, kept, "{found:?}");
    }
}

/// `[m, k] x [k, n]` of row-major matrices; b is the transpose of one if `transposed`.
fn gemm(dtype: DType, [m, n, k]: [usize; 3], transposed: bool) -> Gemm {
    let operand = |node, row_stride: usize, col_stride: usize| {
        let (row_stride, col_stride) = (row_stride as isize, col_stride as isize);
        Operand { node, row_stride, col_stride, batch: Dims::new(), offset: 0 }
    };
    let b = if transposed { operand(1, 1, k) } else { operand(1, n, 1) };
    Gemm { m, n, k, dtype, batch: Dims::new(), a: operand(0, k, 1), b }
}

#[test]
fn the_table_of_products() {
    const ROOMY: usize = 48 << 10;
    let apple = |family, class| (Chip::Apple { family, class }, 32 << 10);
    let (half, float, long) = (DType::F16, DType::F32, DType::I64);
    let cases = [
        ((Chip::Other, 32 << 10), half, [1024; 3], false, "units 64x64x32 by 2x2 in 1"),
        ((Chip::Nvidia, ROOMY), half, [1024; 3], false, "units 128x128x32 by 2x4 in 2"),
        ((Chip::Nvidia, ROOMY), half, [100, 1024, 1024], false, "units 64x64x32 by 2x2 in 2"),
        ((Chip::Nvidia, ROOMY), float, [1024; 3], false, "simt 128x128x8"),
        ((Chip::Nvidia, ROOMY), float, [300; 3], false, "simt 64x64x16"),
        ((Chip::Nvidia, ROOMY), long, [1024; 3], false, "simt 64x64x8"),
        ((Chip::Other, ROOMY), DType::I32, [3; 3], false, "simt 64x64x16"),
        ((Chip::Nvidia, ROOMY), half, [3, 512, 512], true, "gemv of 3 rows, 1 along k"),
        ((Chip::Nvidia, ROOMY), half, [3, 9000, 512], true, "gemv of 3 rows, 4 along k"),
        ((Chip::Nvidia, ROOMY), half, [3, 512, 512], false, "gemv of 3 rows, across k"),
        ((Chip::Nvidia, ROOMY), half, [512, 1, 512], false, "gemv of 1 columns, 1 along k"),
        (apple(7, Class::Base), half, [2048; 3], true, "units 64x32x32 by 2x2 in 1"),
        (apple(9, Class::Base), half, [2048; 3], false, "units 64x64x16 by 1x2 in 1"),
        (apple(9, Class::Max), DType::BF16, [2048; 3], true, "units 64x64x16 by 2x2 in 1"),
        (apple(8, Class::Max), half, [512; 3], true, "units 48x48x24 by 2x2 in 1"),
        (apple(10, Class::Max), half, [512; 3], true, "units 32x32x16 by 2x2 in 1"),
        (apple(10, Class::Max), float, [2048; 3], true, "simt 128x128x8"),
    ];
    for ((chip, threadgroup_bytes), dtype, size, transposed, want) in cases {
        let machine = Machine { chip, threadgroup_bytes, ..MACHINE };
        let got = Choice::of(&gemm(dtype, size, transposed), &machine);
        assert_eq!(got.to_string(), want, "{chip:?} {dtype} {size:?}");
    }
}

#[test]
fn tiles_fit_the_machine() {
    let chips = [(Chip::Nvidia, 48 << 10), (Chip::Apple { family: 9, class: Class::Base }, 32 << 10)];
    for (chip, threadgroup_bytes) in chips {
        let machine = Machine { chip, threadgroup_bytes, ..MACHINE };
        let by_table = [64, 512, 4096].map(|n| Choice::of(&gemm(DType::F16, [n; 3], false), &machine));
        let candidates = Choice::candidates(&gemm(DType::F16, [64; 3], false), &machine);
        assert!(candidates.len() > 5);
        for choice in candidates.into_iter().chain(by_table) {
            let Choice::Units(tile) = choice else { panic!("{choice}") };
            let Tile { rows, columns, depth, side_m, side_n, .. } = tile;
            let strips = side_m * side_n * 8 * (columns / side_n + 4) * 4;
            assert!((strips..=threadgroup_bytes).contains(&tile.bytes()), "{choice}");
            assert!(depth <= rows.min(columns) && [rows / side_m, columns / side_n, depth].iter().all(|n| n % 8 == 0));
            // Sums that a thread keeps in registers.
            assert!(rows * columns / tile.threads() <= 64, "{choice}");
            let (a, b) = (input(&[72, 80], DType::F16), input(&[80, 88], DType::F16));
            let machine = Machine { product: Some(choice), ..machine };
            // Kept for the compilers, CUDA's alone: the others' are run.
            if chip == Chip::Nvidia {
                let text = text_for(&[&a.matmul(&b).unwrap()], &machine).unwrap();
                assert!(text.contains(&format!("{rows}, {columns}, {depth}, {side_m}, {side_n}, ")), "{text}");
            }
        }
    }
}

#[test]
fn the_slow_kernel_takes_any_epilogue() {
    let machine = Machine { product: Some(Choice::Slow), ..MACHINE };
    for dtype in [DType::F16, DType::I64] {
        let (a, b, bias) = (input(&[7, 9], dtype), input(&[9, 11], dtype), input(&[11], dtype));
        let text = text_for(&[&(a.matmul(&b).unwrap() + bias).unwrap()], &machine).unwrap();
        assert!(text.contains("tl_matmul_slow<") && text.contains("op_add"), "{text}");
    }
}
