//! Right kernels run and give no findings; wrong ones are found out, each for what is wrong with it.

use super::*;

/// A device, and what a test does with it over and over.
struct Bench {
    device: Arc<SoftMetal>,
}

impl Bench {
    fn new() -> Bench {
        Bench { device: SoftMetal::new().unwrap() }
    }

    fn load(&self, body: &str, name: &str) -> Function {
        let source = format!("#include <metal_stdlib>\nusing namespace metal;\n{body}");
        let binary = self.device.compile(&source).unwrap();
        self.device.load(&binary, name).unwrap()
    }

    fn buffer(&self, bytes: &[u8]) -> Address {
        let address = self.device.alloc(bytes.len()).unwrap();
        self.device.write(address, bytes).unwrap();
        address
    }

    fn floats(&self, address: Address, n: usize) -> Vec<f32> {
        let mut bytes = vec![0; n * 4];
        self.device.read(address, &mut bytes).unwrap();
        bytes.chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }
}

fn halves(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|v| half::f16::from_f32(v).to_ne_bytes()).collect()
}

const ADD: &str = "
struct Args { int n; };
kernel void add(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]],
                device float* c [[buffer(2)]], constant Args& args [[buffer(3)]],
                uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    const int i = int(group * 64 + t);
    if (i < args.n) c[i] = float(a[i]) + float(b[i]);
}";

#[test]
fn a_vector_addition_runs() {
    let bench = Bench::new();
    let n = 1000;
    let a = bench.buffer(&halves((0..n).map(|i| i as f32)));
    let b = bench.buffer(&halves((0..n).map(|i| 0.5 * i as f32)));
    let c = bench.device.alloc(n * 4).unwrap();
    let function = bench.load(ADD, "add");
    let args = (n as i32).to_ne_bytes();
    let dispatch = Dispatch {
        function,
        name: "add",
        groups: [n.div_ceil(64) as u32, 1, 1],
        threads: 64,
        buffers: &[a, b, c],
        args: &args,
        indirect: &[],
    };
    bench.device.start_traffic();
    bench.device.dispatch(&dispatch).unwrap();
    let expected: Vec<f32> = (0..n).map(|i| 1.5 * i as f32).collect();
    assert_eq!(bench.floats(c, n), expected);
    let traffic = bench.device.take_traffic();
    assert_eq!(traffic[0].per_buffer, [(2000, 0), (2000, 0), (0, 4000)]);
    assert_eq!((traffic[0].loaded, traffic[0].stored), (4000, 4000));
}
