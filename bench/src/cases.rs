//! What is measured: each case a name, a size, and work.

use crate::host::Cost;
use tensorlogic::{Activation, AttentionOptions, DType, Device, Result, Tensor, Var, eval};

/// An op over its inputs.
pub type Call = fn(&[Tensor]) -> Result<Tensor>;

/// What a case does.
#[derive(Clone, Copy)]
pub enum Work {
    /// An op over random inputs.
    Op(Call),
    /// A step of a small network's training, on batches of this size.
    Training(usize),
    /// A tensor of these values, made of the host's vector.
    Upload,
    /// A tensor's values, into a vector that is there already.
    Download,
    /// What the host does for an op.
    Host(Cost),
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

impl Mode {
    /// As results call it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Normal => "normal",
            Mode::Unfused => "unfused",
            Mode::Unpooled => "no pool",
        }
    }
}

/// A row of the table.
#[derive(Clone)]
pub struct Case {
    /// The section of the table.
    pub group: &'static str,
    /// The op.
    pub operation: &'static str,
    /// What it works on, for people.
    pub size: String,
    /// Of the inputs; of a training step, that of its products.
    pub dtype: DType,
    /// Shapes of the inputs.
    pub shapes: Vec<Vec<usize>>,
    /// How it is run.
    pub mode: Mode,
    /// What it does.
    pub work: Work,
}

impl Case {
    /// An op, run as users run it.
    fn op(group: &'static str, operation: &'static str, dtype: DType, shapes: &[&[usize]], call: Call) -> Case {
        let shapes: Vec<Vec<usize>> = shapes.iter().map(|shape| shape.to_vec()).collect();
        Case { group, operation, size: size(&shapes[0]), dtype, shapes, mode: Mode::Normal, work: Work::Op(call) }
    }

    /// The same in another mode.
    fn with(&self, mode: Mode) -> Case {
        Case { mode, ..self.clone() }
    }

    /// What words are looked for in.
    pub fn key(&self) -> String {
        let mode = if self.mode == Mode::Normal { "" } else { self.mode.name() };
        format!("{} {} {} {} {mode}", self.group, self.operation, self.size, self.dtype).trim_end().into()
    }

    /// Bytes of one set of inputs.
    pub fn input_bytes(&self) -> usize {
        self.shapes.iter().map(|shape| shape.iter().product::<usize>() * self.dtype.size()).sum()
    }

    /// `count` sets of random inputs, computed. The sets are multiples of one another, which is quicker to make.
    ///
    /// # Errors
    /// A device that fails, or has too little memory.
    pub fn inputs(&self, count: usize, device: &Device) -> Result<Vec<Vec<Tensor>>> {
        let bases = self.shapes.iter().map(|shape| computed(Tensor::randn(shape, self.dtype, device)?));
        let bases = bases.collect::<Result<Vec<_>>>()?;
        let set = |n: usize| bases.iter().map(move |base| computed((base * (1.0 + n as f64 / 512.0))?)).collect();
        (0..count).map(set).collect()
    }
}

fn computed(tensor: Tensor) -> Result<Tensor> {
    tensor.eval()?;
    Ok(tensor)
}

const M: usize = 1_000_000;

/// Every case of a device, in the order of the table.
pub fn all(device: &Device, dtypes: &[DType]) -> Vec<Case> {
    let gpu = device.name() != "cpu";
    // What a CPU does in a tenth of a second a GPU does in less than a millisecond.
    let pick = |cpu: &'static [usize], more: &'static [usize]| [cpu, if gpu { more } else { &[] }].concat();
    let sides = pick(&[64, 128, 256, 512, 1024, 2048], &[4096, 8192]);
    let large = if gpu { vec![M, 16 * M, 256 * M] } else { vec![M, 32 * M] };
    let mut counts = vec![1000, 100_000];
    counts.extend(&large);

    let mut cases = Vec::new();
    let mut each = |make: &dyn Fn(DType) -> Vec<Case>| dtypes.iter().for_each(|&dtype| cases.extend(make(dtype)));
    each(&|dtype| sides.iter().map(|&n| matmul(n, dtype)).collect());
    each(&|dtype| counts.iter().flat_map(|&n| elementwise(n, dtype)).collect());
    each(&|dtype| large.iter().flat_map(|&n| chains(n, dtype)).collect());
    each(&|dtype| rows(dtype, gpu));
    each(&|dtype| if gpu { [1024, 4096, 8192] } else { [256, 512, 1024] }.map(|n| epilogues(n, dtype)).concat());
    each(&|dtype| [1024, 4096].map(|n| transpose(n, dtype)).into());
    each(&|dtype| attention(dtype, gpu));
    each(&|dtype| trainings(dtype, gpu));
    cases.extend([102_000, M, 16 * M, 32 * M].into_iter().flat_map(transfers));
    let mut each = |make: &dyn Fn(DType) -> Vec<Case>| dtypes.iter().for_each(|&dtype| cases.extend(make(dtype)));
    each(&|dtype| fusible(M, 512, dtype).iter().flat_map(|case| [case.clone(), case.with(Mode::Unfused)]).collect());
    each(&|dtype| pooled(dtype));
    cases.extend(Cost::ALL.map(host));
    cases
}

/// A product of square matrices.
pub fn matmul(n: usize, dtype: DType) -> Case {
    Case::op("matmul", "matmul", dtype, &[&[n, n], &[n, n]], |x| x[0].matmul(&x[1]))
}

/// The elementwise ops and the sum of `n` elements.
pub fn elementwise(n: usize, dtype: DType) -> Vec<Case> {
    let case = |operation, shapes: &[&[usize]], call| Case::op("elementwise", operation, dtype, shapes, call);
    vec![
        case("add", &[&[n], &[n]], |x| &x[0] + &x[1]),
        case("mul", &[&[n], &[n]], |x| &x[0] * &x[1]),
        case("sum", &[&[n]], |x| x[0].sum_all()),
        case("relu", &[&[n]], |x| x[0].relu()),
        case("gelu", &[&[n]], |x| x[0].gelu()),
    ]
}

/// Several ops on `n` elements that become one kernel.
pub fn chains(n: usize, dtype: DType) -> Vec<Case> {
    let case = |operation, inputs, call| Case::op("chains", operation, dtype, &vec![&[n][..]; inputs], call);
    vec![
        case("add_relu", 2, |x| x[0].fused_add_relu(&x[1])),
        case("affine", 3, |x| x[0].fused_affine(&x[1], &x[2])),
        case("sum((a-b)^2)", 2, |x| (&x[0] - &x[1])?.sqr()?.sum_all()),
        // Five times tanh(x * b + s) + a.
        case("chain of 20", 4, |x| (0..5).try_fold(x[0].clone(), |y, _| ((y * &x[1])? + &x[2])?.tanh()? + &x[3])),
    ]
}

/// Folds and normalisations of rows, and folds of columns.
fn rows(dtype: DType, gpu: bool) -> Vec<Case> {
    let mut shapes = vec![[4096, 256], [4096, 1024]];
    if gpu {
        shapes.extend([[4096, 4096], [131_072, 1024]]);
    }
    let case = |operation, shape: [usize; 2], call| Case::op("rows", operation, dtype, &[&shape], call);
    let mut cases = Vec::new();
    for [rows, width] in shapes {
        cases.extend(norms(rows, width, dtype));
        cases.push(case("row sum", [rows, width], |x| x[0].sum(1)));
        cases.push(case("column sum", [rows, width], |x| x[0].sum(0)));
    }
    cases.push(case("row sum", [512, 32_768], |x| x[0].sum(1)));
    cases
}

/// Softmax and the normalisations of rows.
fn norms(rows: usize, width: usize, dtype: DType) -> Vec<Case> {
    let case = |operation, weights: usize, call| {
        let shapes = [&[rows, width][..], &[width], &[width]];
        Case::op("rows", operation, dtype, &shapes[..1 + weights], call)
    };
    vec![
        case("softmax", 0, |x| x[0].softmax(1)),
        case("layer norm", 2, |x| x[0].layer_norm(&x[1], Some(&x[2]), 1e-5)),
        case("rms norm", 1, |x| x[0].rms_norm(&x[1], 1e-5)),
    ]
}

/// A product of square matrices and what follows in the same kernel.
fn epilogues(n: usize, dtype: DType) -> Vec<Case> {
    let square = [n, n];
    let shapes = [&square[..], &square, &[n]];
    let case = |operation, inputs, call| Case::op("epilogues", operation, dtype, &shapes[..inputs], call);
    vec![
        case("relu(matmul)", 2, |x| x[0].matmul_with_activation(&x[1], Activation::ReLU)),
        case("gelu(matmul)", 2, |x| x[0].matmul_with_activation(&x[1], Activation::GELU)),
        case("gelu(matmul+bias)", 3, |x| (x[0].matmul(&x[1])? + &x[2])?.gelu()),
    ]
}

fn transpose(n: usize, dtype: DType) -> Case {
    Case::op("transpose", "transpose", dtype, &[&[n, n]], |x| x[0].t()?.contiguous())
}

/// Causal attention of `[batch, heads, positions, width]`, its gradients, and that of one query to a cache; in f32 on a
/// CPU, in narrow dtypes on GPUs.
fn attention(dtype: DType, gpu: bool) -> Vec<Case> {
    let case = |operation, shapes: &[&[usize]], call| Case::op("attention", operation, dtype, shapes, call);
    let whole = |shape: [usize; 4]| {
        [case("attention", &[&shape[..]; 3], attended), case("attention, gradients", &[&shape[..]; 4], gradients)]
    };
    match (gpu, dtype) {
        (false, DType::F32) => whole([8, 6, 256, 64]).into(),
        (true, DType::F16 | DType::BF16) => {
            let mut cases =
                [[4, 32, 4096, 128], [8, 16, 1024, 64], [8, 12, 1024, 64], [2, 8, 2048, 256]].map(whole).concat();
            let (one, cache) = ([32, 32, 1, 128], [32, 32, 4096, 128]);
            cases.push(case("attention to 4096", &[&one, &cache, &cache], attended));
            cases
        }
        _ => Vec::new(),
    }
}

fn attended(x: &[Tensor]) -> Result<Tensor> {
    // A lone query sees all keys.
    let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
    x[0].scaled_dot_product_attention(&x[1], &x[2], &options)
}

/// The forward pass, and the gradients of all three for the one of the output, the last of `x`.
fn gradients(x: &[Tensor]) -> Result<Tensor> {
    let vars = [0, 1, 2].map(|i| Var::new(&x[i]));
    let vars = vars.into_iter().collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(Var::tensor).collect();
    let gradients = attended(&tensors)?.backward_with(&x[3])?;
    let all: Vec<&Tensor> = vars.iter().filter_map(|var| gradients.get(var)).collect();
    eval(&all)?;
    Ok(all[0].clone())
}

/// Steps of a perceptron with AdamW: in f32 on a CPU, mixed with f16 on GPUs.
fn trainings(dtype: DType, gpu: bool) -> Vec<Case> {
    let batches: &[usize] = match (gpu, dtype) {
        (false, DType::F32) => &[64, 1024],
        (true, DType::F16) => &[128, 8192],
        _ => &[],
    };
    batches.iter().map(|&batch| training(batch, dtype)).collect()
}

/// A step of training on `batch` rows.
pub fn training(batch: usize, dtype: DType) -> Case {
    Case {
        group: "training",
        operation: "mlp step",
        size: format!("batch {batch}"),
        dtype,
        shapes: vec![vec![batch, 784]],
        mode: Mode::Normal,
        work: Work::Training(batch),
    }
}

/// Both directions, `n` elements of f32.
pub fn transfers(n: usize) -> Vec<Case> {
    let case = |operation, work| Case {
        group: "transfers",
        operation,
        size: size(&[n]),
        dtype: DType::F32,
        shapes: vec![vec![n]],
        mode: Mode::Normal,
        work,
    };
    vec![case("host to device", Work::Upload), case("device to host", Work::Download)]
}

/// Ops that fuse into one kernel, of `n` elements, rows of 1,000, and products of `side`.
pub fn fusible(n: usize, side: usize, dtype: DType) -> Vec<Case> {
    let mut cases = vec![Case::op("fusion", "mul_relu", dtype, &[&[n], &[n]], |x| x[0].fused_mul_relu(&x[1]))];
    cases.extend(chains(n, dtype));
    cases.extend(norms(n / 1000, 1000, dtype));
    cases.extend(epilogues(side, dtype));
    cases.iter_mut().for_each(|case| case.group = "fusion");
    cases
}

/// Additions with and without the buffer pool.
fn pooled(dtype: DType) -> Vec<Case> {
    let additions = [1000, 100_000, M].map(|n| Case { group: "pool", ..elementwise(n, dtype)[0].clone() });
    additions.iter().flat_map(|case| [case.clone(), case.with(Mode::Unpooled)]).collect()
}

fn host(cost: Cost) -> Case {
    Case {
        group: "host",
        operation: cost.name(),
        size: "16".into(),
        dtype: DType::F32,
        shapes: vec![vec![16]],
        mode: Mode::Normal,
        work: Work::Host(cost),
    }
}

/// A shape as people write it: `1K`, `1M`, `64x64`.
pub fn size(shape: &[usize]) -> String {
    match shape {
        [n] if n.is_multiple_of(M) => format!("{}M", n / M),
        [n] if n.is_multiple_of(1000) => format!("{}K", n / 1000),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
    }
}
