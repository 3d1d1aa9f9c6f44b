//! The ops that are measured: each a name, the shapes of its inputs, and the call.

use super::{Limits, Row, count, measure};
use tensorlogic::testing::no_fusion;
use tensorlogic::{Activation, DType, Device, Result, Tensor};

/// An op over random inputs.
#[derive(Clone)]
pub struct Case {
    pub operation: &'static str,
    pub size: String,
    pub dtype: DType,
    /// Shapes of the inputs.
    pub shapes: Vec<Vec<usize>>,
    pub call: fn(&[Tensor]) -> Result<Tensor>,
}

/// How a case is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As users run it.
    Normal,
    /// Every op a kernel of its own.
    Unfused,
    /// Without reuse of buffers.
    Unpooled,
}

/// Bytes of inputs to rotate through: more than the caches hold, where the inputs are large at all.
const ROTATED_BYTES: usize = 64 << 20;

impl Case {
    fn new(
        operation: &'static str,
        size: String,
        dtype: DType,
        shapes: &[&[usize]],
        call: fn(&[Tensor]) -> Result<Tensor>,
    ) -> Case {
        Case { operation, size, dtype, shapes: shapes.iter().map(|s| s.to_vec()).collect(), call }
    }

    /// What a filter word is looked for in.
    pub fn key(&self) -> String {
        format!("{} {} {}", self.operation, self.size, self.dtype)
    }

    /// Random inputs, computed.
    pub fn inputs(&self, device: &Device) -> Result<Vec<Tensor>> {
        let input = |shape: &Vec<usize>| {
            let tensor = Tensor::randn(shape, self.dtype, device)?;
            tensor.eval()?;
            Ok(tensor)
        };
        self.shapes.iter().map(input).collect()
    }

    /// Bytes of one set of inputs.
    pub fn input_bytes(&self) -> usize {
        self.shapes.iter().map(|s| s.iter().product::<usize>() * self.dtype.size()).sum()
    }

    /// Several sets of inputs, of which each run takes the next: two to eight.
    fn rotation(&self, device: &Device) -> Result<Vec<Vec<Tensor>>> {
        (0..(ROTATED_BYTES / self.input_bytes()).clamp(2, 8)).map(|_| self.inputs(device)).collect()
    }

    /// Measures the case.
    pub fn row(&self, mode: Mode, device: &Device, limits: Limits) -> Result<Row> {
        device.buffer_pool().set_enabled(mode != Mode::Unpooled);
        let row = if mode == Mode::Unfused {
            no_fusion(|| self.measured(" unfused", device, limits))
        } else {
            self.measured(if mode == Mode::Unpooled { " no pool" } else { "" }, device, limits)
        };
        device.buffer_pool().set_enabled(true);
        row
    }

    fn measured(&self, suffix: &str, device: &Device, limits: Limits) -> Result<Row> {
        let sets = self.rotation(device)?;
        let explanation = (self.call)(&sets[0])?.explain()?;
        let times = measure(limits, |run| {
            let result = (self.call)(&sets[run % sets.len()])?;
            result.eval()?;
            device.synchronize()?;
            Ok(result)
        })?;
        Ok(Row {
            operation: format!("{}{suffix}", self.operation),
            size: self.size.clone(),
            dtype: self.dtype,
            times,
            flops: explanation.flops(),
            bytes: explanation.bytes(),
        })
    }
}

/// A product of square matrices.
pub fn matmul(n: usize, dtype: DType) -> Case {
    Case::new("matmul", format!("{n}x{n}"), dtype, &[&[n, n], &[n, n]], |x| x[0].matmul(&x[1]))
}

/// The elementwise ops and the sum of the seed's table.
pub fn elementwise(n: usize, dtype: DType) -> Vec<Case> {
    let case = |operation, shapes: &[&[usize]], call| Case::new(operation, count(n), dtype, shapes, call);
    vec![
        case("add", &[&[n], &[n]], |x| &x[0] + &x[1]),
        case("mul", &[&[n], &[n]], |x| &x[0] * &x[1]),
        case("sum", &[&[n]], |x| x[0].sum_all()),
        case("relu", &[&[n]], |x| x[0].relu()),
        case("gelu", &[&[n]], |x| x[0].gelu()),
    ]
}

/// Several ops that fuse into one kernel.
pub fn fusible(n: usize, side: usize, dtype: DType) -> Vec<Case> {
    let vectors = |operation, shapes: &[&[usize]], call| Case::new(operation, count(n), dtype, shapes, call);
    let square: &[&[usize]] = &[&[side, side], &[side, side]];
    let product = |operation, call| Case::new(operation, format!("{side}x{side}"), dtype, square, call);
    vec![
        vectors("add+relu", &[&[n], &[n]], |x| x[0].fused_add_relu(&x[1])),
        vectors("mul+relu", &[&[n], &[n]], |x| x[0].fused_mul_relu(&x[1])),
        vectors("affine", &[&[n], &[n], &[n]], |x| x[0].fused_affine(&x[1], &x[2])),
        chain(n, dtype),
        product("matmul+relu", |x| x[0].matmul_with_activation(&x[1], Activation::ReLU)),
        product("matmul+gelu", |x| x[0].matmul_with_activation(&x[1], Activation::GELU)),
        softmax(n / 1000, 1000, dtype),
        layer_norm(n / 1000, 1000, dtype),
    ]
}

/// Twenty ops: five times tanh(x * b + s) + a.
pub fn chain(n: usize, dtype: DType) -> Case {
    Case::new("chain of 20", count(n), dtype, &[&[n], &[n], &[n], &[n]], |x| {
        (0..5).try_fold(x[0].clone(), |y, _| ((y * &x[1])? + &x[2])?.tanh()? + &x[3])
    })
}

/// Softmax of rows.
pub fn softmax(rows: usize, width: usize, dtype: DType) -> Case {
    Case::new("softmax", format!("{rows}x{width}"), dtype, &[&[rows, width]], |x| x[0].softmax(1))
}

/// Layer normalisation of rows.
pub fn layer_norm(rows: usize, width: usize, dtype: DType) -> Case {
    let shapes: &[&[usize]] = &[&[rows, width], &[width], &[width]];
    Case::new("layer norm", format!("{rows}x{width}"), dtype, shapes, |x| x[0].layer_norm(&x[1], Some(&x[2]), 1e-5))
}

/// Normalisation of rows by their root mean square.
fn rms_norm(rows: usize, width: usize, dtype: DType) -> Case {
    let shapes: &[&[usize]] = &[&[rows, width], &[width]];
    Case::new("rms norm", format!("{rows}x{width}"), dtype, shapes, |x| x[0].rms_norm(&x[1], 1e-5))
}

/// What `tools/compare_torch.py` compares on a GPU: f16, small to large.
pub fn gpu_anchors() -> Vec<Case> {
    const M: usize = 1_000_000;
    let dtype = DType::F16;
    let mut cases = Vec::new();
    for n in [1000, M, 16 * M, 256 * M] {
        cases.extend(elementwise(n, dtype).into_iter().filter(|case| matches!(case.operation, "add" | "sum")));
    }
    for [rows, width] in [[4096, 1024], [4096, 4096], [131_072, 1024]] {
        cases.extend([softmax, layer_norm, rms_norm].map(|case| case(rows, width, dtype)));
        if width == 1024 {
            let size = format!("{rows}x{width}");
            cases.push(Case::new("column sum", size, dtype, &[&[rows, width]], |x| x[0].sum(0)));
        }
    }
    cases.extend([64, 512, 1024, 2048, 4096, 8192].map(|n| matmul(n, dtype)));
    for n in [1024, 4096, 8192] {
        let case = |operation, call| Case::new(operation, format!("{n}x{n}"), dtype, &[&[n, n], &[n, n]], call);
        cases.push(case("gelu(matmul)", |x| x[0].matmul(&x[1])?.gelu()));
        cases.push(case("relu(matmul)", |x| x[0].matmul(&x[1])?.relu()));
    }
    for n in [M, 16 * M, 256 * M] {
        let case = |operation, inputs, call| Case::new(operation, count(n), dtype, &vec![&[n][..]; inputs], call);
        cases.push(case("relu(a+b)", 2, |x| (&x[0] + &x[1])?.relu()));
        cases.push(case("a*s+b", 3, |x| (&x[0] * &x[1])? + &x[2]));
        cases.push(case("sum((a-b)^2)", 2, |x| (&x[0] - &x[1])?.sqr()?.sum_all()));
        cases.push(chain(n, dtype));
    }
    cases.push(Case::new("transpose", "4096x4096".into(), dtype, &[&[4096, 4096]], |x| x[0].t()?.contiguous()));
    cases
}

/// What `tools/compare_torch.py` compares on a CPU.
pub fn anchors() -> Vec<Case> {
    const M: usize = 1 << 20;
    let (f16, f32, bf16) = (DType::F16, DType::F32, DType::BF16);
    let mut cases: Vec<Case> = [256, 512, 1024, 2048].map(|n| matmul(n, f32)).into();
    cases.extend([256, 512, 1024, 2048].map(|n| matmul(n, bf16)));
    cases.extend([256, 1024].map(|n| matmul(n, f16)));
    for n in [M, 32 * M] {
        cases.extend(elementwise(n, f16).into_iter().filter(|case| case.operation != "mul"));
    }
    cases.extend([chain(M, f16), chain(32 * M, f32), softmax(4096, 1024, f32), layer_norm(4096, 1024, f32)]);
    cases
}
