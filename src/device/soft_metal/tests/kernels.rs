//! Mistakes inside a kernel: seeded into right ones by replacing a piece of their text.

use super::*;
use FaultKind::{Divergence, Limit, Misaligned, OutOfBounds, Race, Uninitialised};

const ADD: &str = "
inline float tl_sum(uint2 v) { return as_type<float>(v.x + v.y); }
inline float tl_sum(uint4 v) { return as_type<float>(v.x + v.y + v.z + v.w); }
struct Args { int n; };
kernel void test(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]],
                 device float* c [[buffer(2)]], constant Args& args [[buffer(3)]],
                 uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    const int i = int(group * 64 + t);
    if (i < args.n) c[i] = float(a[i]) + float(b[i]);
}";

const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";

/// Row by row, a group of 128 threads each.
const SOFTMAX: &str = "
struct Args { int n; };
inline float group_sum(float x) {
    for (uint mask = 16; mask > 0; mask /= 2) x += simd_shuffle_xor(x, mask);
    return x;
}
inline float group_max(float x) {
    for (uint mask = 16; mask > 0; mask /= 2) {
        const float y = simd_shuffle_xor(x, mask);
        x = x < y ? y : x;
    }
    return x;
}
kernel void test(device const half* in [[buffer(0)]], device half* out [[buffer(1)]],
                 constant Args& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                 uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup float part[4];
    threadgroup float total;
    const int n = args.n;
    device const half* x = in + group.x * n;
    device half* y = out + group.x * n;
    float m = -INFINITY;
    for (int c = int(t); c < n; c += 128) m = float(x[c]) > m ? float(x[c]) : m;
    m = group_max(m);
    if (lane == 0) part[simdgroup] = m;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 4; i++) m = part[i] > m ? part[i] : m;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float s = 0.0f;
    for (int c = int(t); c < n; c += 128) s += exp(float(x[c]) - m);
    s = group_sum(s);
    if (lane == 0) part[simdgroup] = s;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t == 0) total = part[0] + part[1] + part[2] + part[3];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int c = int(t); c < n; c += 128) y[c] = half(exp(float(x[c]) - m) / total);
}";

/// Tiles of 16 x 16, an element a thread.
const MATMUL: &str = "
struct Args { int m; int n; int k; };
kernel void test(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]],
                 device float* c [[buffer(2)]], constant Args& args [[buffer(3)]],
                 uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    threadgroup half tile_a[256];
    threadgroup half tile_b[256];
    const int tiles = (args.n + 15) / 16, row = int(t) / 16, col = int(t) % 16;
    const int i = int(group) / tiles * 16 + row, j = int(group) % tiles * 16 + col;
    float sum = 0.0f;
    for (int k = 0; k < args.k; k += 16) {
        tile_a[t] = half(0.0f);
        tile_b[t] = half(0.0f);
        if (i < args.m && k + col < args.k) tile_a[t] = a[i * args.k + k + col];
        if (k + row < args.k && j < args.n) tile_b[t] = b[(k + row) * args.n + j];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int l = 0; l < 16; l++) sum = fma(float(tile_a[row * 16 + l]), float(tile_b[l * 16 + col]), sum);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (i < args.m && j < args.n) c[i * args.n + j] = sum;
}";

fn add(bench: &Bench, text: &str) -> (Vec<f32>, Vec<Fault>) {
    let n = 1000;
    let [a, b] = [1.0, 0.5].map(|f| bench.buffer(&halves((0..n).map(|i| f * i as f32))));
    let c = bench.device.alloc(n * 4).unwrap();
    bench.dispatch(bench.load(text, "test"), n.div_ceil(64), 64, &[a, b, c], &[n as i32]);
    let found = bench.found();
    (bench.floats(c, n), found)
}

fn softmax(bench: &Bench, text: &str) -> (Vec<f32>, Vec<Fault>) {
    let (rows, n) = (5, 201);
    let x = bench.buffer(&halves((0..rows * n).map(|i| (i % 17) as f32 * 0.25)));
    let y = bench.device.alloc(rows * n * 2).unwrap();
    bench.dispatch(bench.load(text, "test"), rows, 128, &[x, y], &[n as i32]);
    let found = bench.found();
    (bench.halves(y, rows * n), found)
}

fn matmul(bench: &Bench, text: &str) -> (Vec<f32>, Vec<Fault>) {
    let (m, n, k) = (20, 37, 41);
    let a = bench.buffer(&halves((0..m * k).map(|i| (i % 7) as f32)));
    let b = bench.buffer(&halves((0..k * n).map(|i| (i % 5) as f32)));
    let c = bench.device.alloc(m * n * 4).unwrap();
    let groups = m.div_ceil(16) * n.div_ceil(16);
    bench.dispatch(bench.load(text, "test"), groups, 256, &[a, b, c], &[m as i32, n as i32, k as i32]);
    let found = bench.found();
    (bench.floats(c, m * n), found)
}

#[test]
fn right_kernels_compute_and_give_no_findings() {
    let bench = Bench::new();
    let (sums, found) = add(&bench, ADD);
    expect("add", &found, None);
    assert_eq!(sums, (0..1000).map(|i| 1.5 * i as f32).collect::<Vec<_>>());

    let (rows, found) = softmax(&bench, SOFTMAX);
    expect("softmax", &found, None);
    for (r, row) in rows.chunks(201).enumerate() {
        let exps: Vec<f32> = (0..201).map(|c| (((r * 201 + c) % 17) as f32 * 0.25).exp()).collect();
        let total: f32 = exps.iter().sum();
        for (got, exp) in row.iter().zip(&exps) {
            assert!((got - exp / total).abs() <= 1e-3 * exp / total, "{got} is not {}", exp / total);
        }
    }

    let (product, found) = matmul(&bench, MATMUL);
    expect("matmul", &found, None);
    for (at, got) in product.iter().enumerate() {
        let (i, j) = (at / 37, at % 37);
        let sum: usize = (0..41).map(|l| (i * 41 + l) % 7 * ((l * 37 + j) % 5)).sum();
        assert_eq!(*got, sum as f32);
    }
}

type Run = fn(&Bench, &str) -> (Vec<f32>, Vec<Fault>);

/// Seeds each mistake of a list: what it is, what replaces the nth piece of text, and what must be found.
fn seed(run: Run, text: &str, mistakes: &[(&str, usize, &str, &str, FaultKind)]) {
    let bench = Bench::new();
    for &(what, n, from, to, kind) in mistakes {
        let (_, found) = run(&bench, &replaced(text, from, n, to));
        expect(what, &found, Some(kind));
    }
}

#[test]
fn mistakes_in_an_addition() {
    seed(
        add,
        ADD,
        &[
            ("no guard", 1, "if (i < args.n) c[i] =", "c[i] =", OutOfBounds),
            ("guard off by one", 1, "i < args.n", "i <= args.n", OutOfBounds),
            ("store one too far", 1, "c[i] =", "c[i + 1] =", OutOfBounds),
            ("load one too early", 1, "float(a[i])", "float(a[i - 1])", OutOfBounds),
            ("groups overlap", 1, "group * 64", "group * 63", Race),
            ("all threads write one", 1, "c[i] =", "c[0] =", Race),
            ("a pair of threads", 1, "float(b[i])", "c[i ^ 1]", Race),
            ("misaligned vector", 1, "float(b[i])", "tl_sum(*(device const uint4*)(b + i % 8))", Misaligned),
            ("misaligned 8 bytes", 1, "float(b[i])", "tl_sum(*(device const uint2*)(b + i % 8))", Misaligned),
            ("arguments overrun", 1, "float(b[i])", "float((&args.n)[400])", FaultKind::Unbound),
            ("a lane too few", 1, "c[i] =", "c[i] = simd_shuffle_xor(1.0f, 1) +", Divergence),
        ],
    );
}

#[test]
fn mistakes_in_a_softmax() {
    let store = "c < n; c += 128) y[c]";
    seed(
        softmax,
        SOFTMAX,
        &[
            ("no barrier 1", 1, BARRIER, "", Race),
            ("no barrier 2, where only a write follows reads", 2, BARRIER, "", Race),
            ("no barrier 3", 3, BARRIER, "", Race),
            ("no barrier 4", 4, BARRIER, "", Uninitialised),
            ("barrier that orders no memory", 1, BARRIER, "threadgroup_barrier(mem_flags::mem_none);", Race),
            ("barrier that orders other memory", 1, BARRIER, "threadgroup_barrier(mem_flags::mem_device);", Race),
            ("barrier of the simdgroup", 1, BARRIER, "simdgroup_barrier(mem_flags::mem_threadgroup);", Race),
            ("barrier for half the group", 1, BARRIER, &format!("if (t < 64) {BARRIER}"), Divergence),
            ("barrier for some lanes", 1, BARRIER, &format!("if (lane < 8) {BARRIER}"), Divergence),
            (
                "one of two barriers",
                1,
                BARRIER,
                &format!("if (t < 64) {{ {BARRIER} }}\nelse {{ {BARRIER} }}"),
                Divergence,
            ),
            ("early return", 1, "float m =", "if (int(t) >= n - 100) return; float m =", Divergence),
            ("shuffle under if", 1, "m = group_max(m);", "if (lane < 16) m = group_max(m);", Divergence),
            ("rows overlap", 1, store, "c < n + int(group.x < 4); c += 128) y[c]", Race),
            ("last row too long", 1, "c < n; c += 128) m", "c <= n; c += 128) m", OutOfBounds),
            ("a part not written", 1, "if (lane == 0) part", "if (t == 0) part", Uninitialised),
            ("a part too far", 1, "i < 4", "i < 5", OutOfBounds),
            ("a part written too far", 1, "part[simdgroup]", "part[simdgroup + 1]", OutOfBounds),
            ("too much threadgroup memory", 1, "part[4]", "part[10000]", Limit),
        ],
    );
}

#[test]
fn mistakes_in_a_product() {
    seed(
        matmul,
        MATMUL,
        &[
            ("no barrier behind loads", 1, BARRIER, "", Race),
            ("no barrier at the loop's end", 2, BARRIER, "", Race),
            ("no guard of rows", 1, "i < args.m && k + col", "k + col", OutOfBounds),
            ("no guard of stores", 1, "if (i < args.m && j < args.n) c", "c", OutOfBounds),
            ("a column too many", 1, "j < args.n) c", "j < args.n + int(i + 1 < args.m)) c", Race),
            ("wrong pitch", 1, "tile_a[row * 16 + l]", "tile_a[row * 17 + l]", OutOfBounds),
            ("other tile's pitch", 1, "tile_a[t] = half(0.0f);", "", Uninitialised),
            ("tile of one element too few", 1, "tile_b[256]", "tile_b[255]", OutOfBounds),
        ],
    );
}

#[test]
fn messages_name_the_line() {
    let bench = Bench::new();
    let (_, found) = add(&bench, &replaced(ADD, "i < args.n", 1, "true"));
    let text = found[0].to_string();
    // The text starts with an include, a using and an empty line.
    assert!(text.contains("kernel.metal:11") && text.contains("buffer "), "{text}");
}

#[test]
fn narrow_floats_round_as_on_the_cpu() {
    let text = "
kernel void test(device const uint* words [[buffer(0)]], device uint2* out [[buffer(1)]],
                 uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    const uint i = group * 256 + t;
    const float x = as_type<float>(words[i]);
    const ushort h = as_type<ushort>(half(x)), b = as_type<ushort>(bfloat(x));
    out[i] = uint2(uint(h) | uint(b) << 16, as_type<uint>(float(as_type<half>(ushort(i)))));
}";
    let bench = Bench::new();
    // Over all exponents, with bits at both ends of the mantissa; halfway cases of both types among them.
    let words: Vec<u32> =
        (0..1 << 16).map(|i: u32| (i << 16) ^ [0, 1, 0x8000, 0x1000, 0x1001, 0xffff][i as usize % 6]).collect();
    let from = bench.buffer(&words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>());
    let to = bench.buffer(&vec![0; 8 << 16]);
    bench.dispatch(bench.load(text, "test"), 256, 256, &[from, to], &[]);
    expect("conversions", &bench.found(), None);
    let out: Vec<u32> = bench.bytes(to, 8 << 16).chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
    for (i, (&word, pair)) in words.iter().zip(out.chunks(2)).enumerate() {
        let x = f32::from_bits(word);
        let narrow = u32::from(half::f16::from_f32(x).to_bits()) | u32::from(half::bf16::from_f32(x).to_bits()) << 16;
        assert_eq!(pair[0], narrow, "{x} ({word:#x})");
        assert_eq!(pair[1], half::f16::from_bits(i as u16).to_f32().to_bits(), "half {i:#x}");
    }
}
