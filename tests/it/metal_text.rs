//! The Metal text of the op table, compiled as C++ and held to the CPU's results: without an Apple GPU,
//! the one check that the two columns of a row say the same.

use crate::ops::apply;
use crate::oracle::{Array, Value, assert_close, assert_equal, gives, takes};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tensorlogic::testing::{Elementwise, Sort};
use tensorlogic::{DType, Device, Tensor};

/// Values tried of each operand.
const COUNT: usize = 4096;

/// The dtypes that have a Metal type of their own, which is also C++'s. A bool is a byte.
const TYPES: [(DType, &str); 6] = [
    (DType::F32, "float"),
    (DType::I32, "int"),
    (DType::U32, "uint"),
    (DType::I64, "long"),
    (DType::U8, "uchar"),
    (DType::Bool, "uchar"),
];

/// Units in the last place by which a function in Metal's text and the CPU's may differ: each is within
/// three or four of the exact value.
const ULPS: f64 = 5.0;

/// A row of the table for one dtype; in its narrow form, that for results of f16 and bf16, or the precise one.
struct Instance {
    op: Elementwise,
    dtype: DType,
    narrow: bool,
    operands: Vec<Array>,
}

#[test]
fn metal_text_computes_what_the_cpu_does() {
    let instances = instances();
    let output = run(&build("metal_text", &program(&instances)), &input(&instances));
    let mut rest = &output[..];
    for instance in &instances {
        let (bytes, after) = rest.split_at(COUNT * gives(instance.op, instance.dtype).size());
        instance.check(bytes);
        rest = after;
    }
    assert!(rest.is_empty());
}

/// Random numbers are the same on every device, to the bit.
#[test]
fn metal_random_numbers_are_those_of_the_cpu() {
    // Positions on both sides of 2^34, where a block's counter leaves its low word.
    let (key, offset) = (0x9e37_79b9_7f4a_7c15_u64, (1_u64 << 34) - 2001);
    let call = |name: &str| format!("write<float>([](auto i) {{ return {name}({key}ul, {offset}ul + i); }});\n");
    let (shim, random) = (include_str!("metal_shim.h"), include_str!("../../shaders/random.metal"));
    let calls = call("tl_random_uniform") + &call("tl_random_normal");
    let text = format!("#define COUNT {COUNT}u\n{shim}\n{random}\nint main() {{\n{calls}}}\n");
    let output = run(&build("metal_random", &text), &[]);
    let device = Device::cpu();
    let make = |normal: bool| match normal {
        false => Tensor::rand(COUNT, DType::F32, &device),
        true => Tensor::randn(COUNT, DType::F32, &device),
    };
    for (bytes, normal) in output.chunks_exact(COUNT * 4).zip([false, true]) {
        device.set_random_state((key, offset));
        let want = make(normal).and_then(|tensor| tensor.to_vec::<f32>()).unwrap();
        let got = bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().expect("four bytes")));
        assert!(got.map(f32::to_bits).eq(want.into_iter().map(f32::to_bits)));
    }
    assert_eq!(output.len(), 2 * COUNT * 4);
}

fn instances() -> Vec<Instance> {
    let rows = Elementwise::ALL.iter().flat_map(|&op| TYPES.map(|(dtype, _)| (op, dtype)));
    let rows = rows.filter(|&(op, dtype)| takes(op, dtype)).map(|(op, dtype)| (op, dtype, false));
    let narrow = Elementwise::ALL.iter().filter(|op| op.msl_narrow() != op.msl()).map(|&op| (op, DType::F32, true));
    rows.chain(narrow).map(|(op, dtype, narrow)| Instance::new(op, dtype, narrow)).collect()
}

impl Instance {
    fn new(op: Elementwise, dtype: DType, narrow: bool) -> Instance {
        let dtype_of = |i: usize| if op.sort() == Sort::Select && i == 0 { DType::Bool } else { dtype };
        let operand = |i: usize| Array::wild(dtype_of(i), &[COUNT], i as u64);
        Instance { op, dtype, narrow, operands: (0..op.arity()).map(operand).collect() }
    }

    /// `uchar`, for example.
    fn result(&self) -> &'static str {
        type_name(gives(self.op, self.dtype))
    }

    /// The row as a C++ function.
    fn function(&self) -> String {
        let parameter = |(array, name): (&Array, &&str)| format!("{} {name}", type_name(array.dtype));
        let parameters: Vec<String> = self.operands.iter().zip(self.op.operands()).map(parameter).collect();
        let (result, name, parameters) = (self.result(), self.name(), parameters.join(", "));
        let body = if self.narrow { self.op.msl_narrow() } else { self.op.msl() };
        format!("static {result} {name}({parameters}) {{ return {body}; }}\n")
    }

    /// The statements that read the operands' columns and write the result's.
    fn call(&self) -> String {
        let mut text = String::from("    {");
        for (array, name) in self.operands.iter().zip(self.op.operands()) {
            let _ = write!(text, " Column<{}> {name};", type_name(array.dtype));
        }
        let values: Vec<String> = self.op.operands().iter().map(|name| format!("{name}[i]")).collect();
        let call = format!("{}({})", self.name(), values.join(", "));
        text + &format!(" write<{}>([&](auto i) {{ return {call}; }}); }}\n", self.result())
    }

    fn name(&self) -> String {
        format!("{}_{}{}", self.op.name(), self.dtype, if self.narrow { "_narrow" } else { "" })
    }

    /// Compares what the program wrote with what the library computes.
    fn check(&self, bytes: &[u8]) {
        let device = Device::cpu();
        let operands: Vec<Tensor> = self.operands.iter().map(|array| array.upload(&device)).collect();
        let want = apply(self.op, &operands).and_then(|tensor| Array::read(&tensor)).unwrap();
        let got = Ok(tensor_of(bytes, want.dtype, &device));
        if self.is_exact() {
            assert_equal(self.name(), got, &want);
        } else {
            assert_close(self.name(), got, &want, |i| self.slack(i, want.values[i].float()));
        }
    }

    /// Whether no function is involved that an implementation may approximate.
    fn is_exact(&self) -> bool {
        use Elementwise::*;
        match self.op.sort() {
            Sort::Float => matches!(self.op, Recip | Sqrt | Rsqrt | LeakyRelu | Floor | Ceil | Round | Trunc),
            _ => self.dtype != DType::F32 || self.op != Pow,
        }
    }

    /// How far element `i` may lie from the CPU's `y`: relative to `y`, but for the two forms of GELU.
    fn slack(&self, i: usize, y: f64) -> f64 {
        let (x, y) = (self.operands[0].values[i].float().abs(), y.abs());
        let magnitude = match self.op {
            // The sigmoid's relative error is the absolute one of its argument.
            Elementwise::Gelu => y * (1.0 + 1.6 * x + 0.0714 * x.powi(3)),
            // 1 + erf cancels for negative operands.
            Elementwise::GeluErf => y.max(x),
            _ => y,
        };
        // Half a unit of f16, whatever the exponent; below 2^-126 a quotient may be 0.
        let narrow =
            if self.narrow && y > 0.0 { y.log2().floor().exp2() * 2f64.powi(-11) + 2f64.powi(-119) } else { 0.0 };
        // A sigmoid may be subnormal, and is then multiplied by an x of up to 100.
        ULPS * 2f64.powi(-23) * magnitude + 2f64.powi(-141) + narrow
    }
}

fn type_name(dtype: DType) -> &'static str {
    TYPES.iter().find(|(d, _)| *d == dtype).map(|(_, name)| name).expect("a dtype of the list")
}

/// The C++ program: shim, functors, a function a row, and their calls in order.
fn program(instances: &[Instance]) -> String {
    let functions: String = instances.iter().map(Instance::function).collect();
    let calls: String = instances.iter().map(Instance::call).collect();
    let (shim, functors) = (include_str!("metal_shim.h"), include_str!("../../shaders/functors.metal"));
    format!("#define COUNT {COUNT}u\n{shim}\n{functors}\n{functions}\nint main() {{\n{calls}}}\n")
}

/// Compiles the program; overflow wraps, as it does on the GPU, and nothing is contracted.
fn build(name: &str, program: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, binary) = (folder.join(format!("{name}.cpp")), folder.join(name));
    std::fs::write(&source, program).unwrap();
    let options = ["-std=c++17", "-O1", "-ffp-contract=off", "-o"];
    let compiler = Command::new("c++").args(options).args([&binary, &source]).output();
    let output = compiler.expect("this test needs a C++ compiler named c++: install g++ or clang");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    binary
}

fn run(binary: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap().stdout
    })
}

/// The operands' columns, in the order of the calls.
fn input(instances: &[Instance]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for array in instances.iter().flat_map(|instance| &instance.operands) {
        array.values.iter().for_each(|&value| push(value, array.dtype, &mut bytes));
    }
    bytes
}

fn push(value: Value, dtype: DType, bytes: &mut Vec<u8>) {
    match dtype {
        DType::F32 => bytes.extend((value.float() as f32).to_ne_bytes()),
        DType::I64 => bytes.extend((value.int() as i64).to_ne_bytes()),
        DType::I32 | DType::U32 => bytes.extend((value.int() as u32).to_ne_bytes()),
        _ => bytes.push(value.int() as u8),
    }
}

/// The values that the program wrote, as a tensor.
fn tensor_of(bytes: &[u8], dtype: DType, device: &Device) -> Tensor {
    let value = |bytes: &[u8]| match *bytes {
        [byte] => Value::Int(byte.into()),
        [a, b, c, d] if dtype == DType::F32 => Value::Float(f32::from_ne_bytes([a, b, c, d]).into()),
        [a, b, c, d] if dtype == DType::I32 => Value::Int(i32::from_ne_bytes([a, b, c, d]).into()),
        [a, b, c, d] => Value::Int(u32::from_ne_bytes([a, b, c, d]).into()),
        _ => Value::Int(i64::from_ne_bytes(bytes.try_into().expect("eight bytes"))),
    };
    Array::new(dtype, &[COUNT], bytes.chunks_exact(dtype.size()).map(value).collect()).upload(device)
}
