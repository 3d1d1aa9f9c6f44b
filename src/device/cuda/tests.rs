//! Kernels are compiled wherever there is NVRTC (`TL_NVRTC` can name it), and run wherever there is a GPU.

use super::compile::Compiler;
use super::driver::Cuda;
use crate::DType;
use crate::device::gpu::driver::{Activation, Address, Copies, Dispatch, Driver, LibraryProduct, Matrix, Transfer};
use half::f16;
use std::sync::Arc;

const HEAD: &str = "#include <metal_stdlib>\nusing namespace metal;\n";

fn source() -> String {
    [HEAD, include_str!("../../../shaders/functors.metal"), include_str!("tests.metal")].concat()
}

/// The compiler, or a note that there is none.
fn compiler() -> Option<Compiler> {
    Compiler::open(13).map_err(|reason| eprintln!("skipped: {reason}")).ok()
}

/// The first GPU, or a note that there is none.
fn gpu() -> Option<Arc<dyn Driver>> {
    Cuda::new(0).map_err(|reason| eprintln!("skipped: {reason}")).ok()
}

#[test]
fn a_device_that_is_not_there_is_an_error_with_words() {
    let error = Cuda::new(1_000_000).err().unwrap();
    assert!(error.contains("CUDA device 1000000") || error.contains("driver was not found"), "{error}");
}

#[test]
fn all_names_compile() {
    let Some(compiler) = compiler() else { return };
    for chip in ["sm_80", "sm_90a"] {
        let cubin = compiler.compile_for(&source(), chip).unwrap();
        assert!(cubin.starts_with(b"\x7fELF"), "{chip}");
    }
}

/// Those in the folder that the environment's `TL_SOURCES` names, where the golden tests of code generation put them.
/// Their binaries stand beside them then, for nvdisasm.
#[test]
fn generated_kernels_compile() {
    let (Some(compiler), Some(folder)) = (compiler(), std::env::var_os("TL_SOURCES")) else { return };
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "metal") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let compiled = compiler.compile_for(&source, "sm_90a");
        let cubin = compiled.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        std::fs::write(path.with_extension("cubin"), cubin).unwrap();
    }
}

#[test]
fn the_compilers_words_come_back() {
    let Some(compiler) = compiler() else { return };
    let source = format!("{HEAD}kernel void wrong(device float* b0 [[buffer(0)]]) {{\n    b0[0] = no_such_name;\n}}");
    let error = compiler.compile_for(&source, "sm_90a").unwrap_err();
    assert!(error.contains("kernel.metal(4)") && error.contains("no_such_name"), "{error}");
    let error = compiler.compile_for(HEAD, "sm_1").unwrap_err();
    assert!(error.contains("sm_1") && error.contains("nvrtc"), "{error}");
}

fn bytes_of<T: Copy>(values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

fn halves(values: &[f32]) -> Vec<u8> {
    bytes_of(values, |&x| f16::from_f32(x).to_le_bytes().to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn copies(gpu: &dyn Driver) -> &dyn Copies {
    let Transfer::Copies(copies) = gpu.transfer() else { panic!("CUDA has memory of its own") };
    copies
}

/// Device memory with these bytes.
fn upload(gpu: &dyn Driver, bytes: &[u8]) -> Address {
    let address = gpu.alloc(bytes.len()).unwrap();
    copies(gpu).write(address, bytes).unwrap();
    address
}

fn download(gpu: &dyn Driver, from: Address, bytes: usize) -> Vec<u8> {
    let mut out = vec![0xaa; bytes];
    copies(gpu).read(from, &mut out).unwrap();
    out
}

fn noise(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn copies_come_back_as_they_were() {
    let Some(gpu) = gpu() else { return };
    let sizes = [1, 255, 4096, 65_537, 4 << 20, (4 << 20) + 1, (100 << 20) + 3];
    let there: Vec<_> = sizes.iter().map(|&size| (upload(&*gpu, &noise(size)), size)).collect();
    for &(address, size) in &there {
        assert!(download(&*gpu, address, size) == noise(size), "{size} bytes");
    }
    // Many small ones share chunks and go around the ring.
    let many = gpu.alloc(30_000 * 2048).unwrap();
    let data = noise(30_000 * 2048);
    for (i, piece) in data.chunks(2048).enumerate() {
        copies(&*gpu).write(Address(many.0 + 2048 * i as u64), piece).unwrap();
    }
    assert!(download(&*gpu, many, data.len()) == data);
    let (from, size) = there[4];
    copies(&*gpu).copy(from, many, size).unwrap();
    copies(&*gpu).zero(Address(many.0 + 5), 100).unwrap();
    let mut expected = noise(size);
    expected[5..105].fill(0);
    assert!(download(&*gpu, many, size) == expected);
    for (address, size) in there {
        gpu.free(address, size);
    }
}

#[test]
fn kernels_run() {
    let Some(gpu) = gpu() else { return };
    let binary = gpu.compile(&source()).unwrap();
    let [twice, sums, pointers] =
        ["twice", "group_sums", "twice_by_pointers"].map(|name| gpu.load(&binary, name).unwrap());
    let count = 100_003;
    let values: Vec<f32> = (0..count).map(|i| (i % 1000) as f32 / 8.0).collect();
    let (input, output) = (upload(&*gpu, &halves(&values)), gpu.alloc(2 * count).unwrap());
    let mut args = (count as i64).to_le_bytes().to_vec();
    args.extend(0i32.to_le_bytes());
    args.extend(2f32.to_le_bytes());
    let groups = [count.div_ceil(8 * 256) as u32, 1, 1];
    let buffers = [input, output];
    let dispatch = Dispatch {
        function: twice,
        name: "twice",
        groups,
        threads: 256,
        block_bytes: 0,
        buffers: &buffers,
        args: &args,
        indirect: &[],
    };
    let start = gpu.mark().unwrap();
    gpu.dispatch(&dispatch).unwrap();
    let end = gpu.mark().unwrap();
    let ticket = gpu.commit().unwrap();
    gpu.wait(ticket).unwrap();
    assert!(gpu.is_done(ticket));
    assert!(gpu.elapsed(start, end).unwrap().as_secs_f64() < 1.0);
    let doubled: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
    assert!(download(&*gpu, output, 2 * count) == halves(&doubled));

    copies(&*gpu).zero(output, 2 * count).unwrap();
    // The struct's last four bytes are padding.
    let args = [input.0.to_le_bytes(), output.0.to_le_bytes()].concat();
    let args = [&args[..], &(count as i32).to_le_bytes()].concat();
    let dispatch = Dispatch {
        function: pointers,
        name: "twice_by_pointers",
        groups: [7, 1, 1],
        buffers: &[],
        args: &args,
        indirect: &buffers,
        ..dispatch
    };
    gpu.dispatch(&dispatch).unwrap();
    assert!(download(&*gpu, output, 2 * count) == halves(&doubled));

    let values: Vec<f32> = (0..64 * 256).map(|i| (i % 97) as f32).collect();
    let input = upload(&*gpu, &bytes_of(&values, |x| x.to_le_bytes().to_vec()));
    let (output, fault) = (gpu.alloc(64 * 4).unwrap(), upload(&*gpu, &[0; 16]));
    let dispatch = Dispatch {
        function: sums,
        name: "group_sums",
        groups: [64, 1, 1],
        buffers: &[input, output, fault],
        args: &[],
        indirect: &[],
        ..dispatch
    };
    gpu.dispatch(&dispatch).unwrap();
    let expected: Vec<f32> = values.chunks(256).map(|group| group.iter().sum()).collect();
    assert_eq!(floats(&download(&*gpu, output, 64 * 4)), expected);
    let words: Vec<u32> = download(&*gpu, fault, 16).as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    assert_eq!(words, [7, 8, 64, 0]);

    let error = gpu.dispatch(&Dispatch { threads: 2048, ..dispatch }).unwrap_err();
    assert!(error.contains("group_sums") && error.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
    let error = gpu.load(&binary, "no_such_kernel").unwrap_err();
    assert!(error.contains("no_such_kernel") && error.contains("CUDA_ERROR_NOT_FOUND"), "{error}");
    gpu.wait(gpu.commit().unwrap()).unwrap(); // the context has survived
}

#[test]
fn tickets_can_be_waited_for_anywhere() {
    let Some(gpu) = gpu() else { return };
    let memory = gpu.alloc(1 << 20).unwrap();
    let tickets: Vec<_> = (0..300)
        .map(|_| {
            copies(&*gpu).zero(memory, 1 << 20).unwrap();
            gpu.commit().unwrap()
        })
        .collect();
    assert!(tickets.is_sorted());
    std::thread::scope(|scope| {
        for ticket in tickets.iter().rev().step_by(50) {
            scope.spawn(|| gpu.wait(*ticket).unwrap());
        }
    });
    assert!(tickets.iter().all(|&ticket| gpu.is_done(ticket)));
}

#[test]
fn all_of_the_memory_is_too_much() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(gpu.alloc(1 << 50), None);
    assert!(gpu.alloc(0).is_some());
}

/// `activation(a b + bias)` with f64 sums, for a batch.
fn product_on_the_host(p: &LibraryProduct, a: &[f32], b: &[f32], bias: &[f32]) -> Vec<f32> {
    let at = |m: &Matrix, batch: usize, i: usize, j: usize| {
        batch * m.batch_stride as usize + i * m.row_stride as usize + j * m.col_stride as usize
    };
    let mut out = vec![];
    for (batch, i, j) in (0..p.batch * p.m * p.n).map(|x| (x / (p.m * p.n), x / p.n % p.m, x % p.n)) {
        let terms = (0..p.k).map(|k| f64::from(a[at(&p.a, batch, i, k)]) * f64::from(b[at(&p.b, batch, k, j)]));
        let x = terms.sum::<f64>() + p.bias.map_or(0.0, |_| f64::from(bias[j]));
        out.push(match p.activation {
            Activation::None => x,
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh()),
        } as f32);
    }
    out
}

#[test]
fn library_products_agree_with_the_host() {
    let Some(gpu) = gpu() else { return };
    if let [reason, ..] = &gpu.info().missing[..] {
        return eprintln!("skipped: {reason}");
    }
    let (m, n, k, batch) = (24, 40, 16, 3);
    let value = |i: usize, seed: usize| ((i * 37 + seed) % 41) as f32 / 16.0 - 1.25;
    let [a, b]: [Vec<f32>; 2] = [m * k, k * n].map(|size| (0..batch * size).map(|i| value(i, size)).collect());
    let bias: Vec<f32> = (0..n).map(|i| value(i, 3)).collect();
    let mut done = 0;
    for dtype in [DType::F16, DType::F32] {
        let encode = |values: &[f32]| match dtype {
            DType::F16 => halves(values),
            _ => bytes_of(values, |x| x.to_le_bytes().to_vec()),
        };
        let [at_a, at_b, at_bias] = [&a, &b, &bias].map(|values| upload(&*gpu, &encode(values)));
        let out = gpu.alloc(batch * m * n * dtype.size()).unwrap();
        let matrix = |address, rows: usize, columns: usize, transposed: bool| Matrix {
            address,
            row_stride: if transposed { 1 } else { columns as isize },
            col_stride: if transposed { rows as isize } else { 1 },
            batch_stride: (rows * columns) as isize,
        };
        let sums = gpu.alloc(m * n * dtype.size()).unwrap();
        for case in 0..32 {
            let keeps_sums = case >= 24;
            let product = LibraryProduct {
                dtype,
                out_dtype: dtype,
                m,
                n,
                k,
                batch: if case & 8 == 0 || keeps_sums { 1 } else { batch },
                a: matrix(at_a, m, k, case & 1 != 0),
                b: matrix(at_b, k, n, case & 2 != 0),
                out: matrix(out, m, n, false),
                bias: (case & 4 != 0).then_some(at_bias),
                activation: [Activation::None, Activation::Relu, Activation::Gelu, Activation::Gelu][case / 8],
                before: keeps_sums.then_some(sums),
            };
            copies(&*gpu).zero(out, batch * m * n * dtype.size()).unwrap();
            if !gpu.library_product(&product).unwrap() {
                eprintln!("{dtype:?} not done: {product:?}");
                continue;
            }
            done += 1;
            let sums = LibraryProduct { activation: Activation::None, ..product };
            for (address, product) in [(Some(out), product), (product.before, sums)] {
                let Some(address) = address else { continue };
                let expected = product_on_the_host(&product, &a, &b, &bias);
                let bytes = download(&*gpu, address, expected.len() * dtype.size());
                let found: Vec<f32> = match dtype {
                    DType::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
                    _ => floats(&bytes),
                };
                // A rounding to f16, or some of f32 and the device's tanh.
                let tolerance = if dtype == DType::F16 { 2e-3 } else { 1e-5 };
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let off = (found - expected).abs();
                    assert!(off <= tolerance * (1.0 + expected.abs()), "{i}: {found}, not {expected}: {product:?}");
                }
            }
        }
    }
    assert!(done >= 32, "only {done} of 64 products");
    let strange = Matrix { address: Address(256), row_stride: 3, col_stride: 2, batch_stride: 0 };
    let product = LibraryProduct {
        dtype: DType::F16,
        out_dtype: DType::F16,
        m: 4,
        n: 4,
        k: 4,
        batch: 1,
        a: strange,
        b: strange,
        out: Matrix { row_stride: 4, col_stride: 1, ..strange },
        bias: None,
        activation: Activation::None,
        before: None,
    };
    assert!(!gpu.library_product(&product).unwrap());
}
