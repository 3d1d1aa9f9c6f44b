//! Mistakes in how kernels are dispatched, memory in general, and what is counted.

use super::*;
use crate::device::gpu::driver::AllocationTraffic;
use FaultKind::{Limit, Race, Unbound};

/// Doubles into `b`; the fault record counts.
const DOUBLE: &str = "
struct Args { int n; };
kernel void test(device const float* a [[buffer(0)]], device float* b [[buffer(1)]],
                 device atomic_uint* record [[buffer(2)]], constant Args& args [[buffer(3)]],
                 uint group [[threadgroup_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
    const int i = int(group * 32 + t);
    if (i < args.n) b[i] = 2.0f * a[i];
    if (i % 2 == 0) atomic_fetch_add_explicit(record, 1, memory_order_relaxed);
}";

/// Reads through an address in its arguments.
const INDIRECT: &str = "
struct Args { device const float* from; };
kernel void test(device float* to [[buffer(0)]], constant Args& args [[buffer(1)]],
                 uint t [[thread_index_in_threadgroup]]) {
    to[t] = args.from[t];
}";

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_ne_bytes()).collect()
}

/// A device, the doubling kernel, three buffers of 64 floats and a record.
fn doubling() -> (Bench, Function, [Address; 3], Address) {
    let bench = Bench::new();
    let function = bench.load(DOUBLE, "test");
    let buffers = std::array::from_fn(|_| bench.buffer(&floats(64)));
    let record = bench.buffer(&[0; 16]);
    (bench, function, buffers, record)
}

#[test]
fn dispatches_that_depend_need_a_barrier() {
    let (bench, function, [a, b, c], record) = doubling();
    let run = |from, to| bench.dispatch(function, 2, 32, &[from, to, record], &[64]);
    let pairs =
        [("write, then read", (a, b), (b, c)), ("read, then write", (b, c), (a, b)), ("writes", (a, c), (b, c))];
    for (what, first, second) in pairs {
        for barrier in [true, false] {
            run(first.0, first.1);
            if barrier {
                bench.device.barrier();
            }
            run(second.0, second.1);
            expect(what, &bench.found(), (!barrier).then_some(Race));
            bench.device.barrier();
        }
    }
    run(a, b);
    run(a, c);
    expect("two readers", &bench.found(), None);
    // Each of the 14 dispatches counted 32 threads, none of them in the way of another.
    assert_eq!(bench.bytes(record, 4), (14 * 32u32).to_ne_bytes());
}

#[test]
fn the_host_has_to_wait() {
    let (bench, function, [a, b, c], record) = doubling();
    let uses = |address, bytes, writes| assert!(bench.device.host(address, bytes, writes).is_ok());
    let cases: [(&str, Address, bool, bool); 6] = [
        ("reads what is read", a, false, false),
        ("reads what is written", b, false, true),
        ("writes what is read", a, true, true),
        ("writes what is written", b, true, true),
        ("writes something else", c, true, false),
        ("reads a part of what is written", Address(b.0 + 128), false, true),
    ];
    for (what, address, writes, wrong) in cases {
        for waits in [false, true] {
            // Long enough to be under way when the host comes.
            (0..200).for_each(|_| bench.dispatch(function, 2, 32, &[a, b, record], &[64]));
            bench.device.barrier();
            bench.dispatch(function, 2, 32, &[a, b, record], &[64]);
            if waits {
                bench.wait();
            }
            uses(address, 64, writes);
            let races: Vec<Fault> =
                bench.found().into_iter().filter(|fault| fault.detail.contains("the host")).collect();
            expect(what, &races, (wrong && !waits).then_some(Race));
            bench.device.barrier();
        }
    }
}

#[test]
fn imported_memory_is_used_in_place() {
    let (bench, function, [a, ..], record) = doubling();
    let mut host = vec![0f32; 64];
    let start = NonNull::new(host.as_mut_ptr().cast()).unwrap();
    let imported = bench.device.import(start, 256).unwrap();
    assert!(bench.device.import(start, 128).is_none(), "twice");
    bench.dispatch(function, 2, 32, &[a, imported, record], &[64]);
    expect("imported", &bench.found(), None);
    bench.device.free(imported, 256);
    expect("freed", &bench.found(), None);
    assert_eq!(host[..4], [0.0, 2.0, 4.0, 6.0]);
}

#[test]
fn plain_accesses_race_atomic_ones() {
    let (bench, _, [a, b, _], record) = doubling();
    let store = "record[0].value = 1;";
    let mixed = replaced(DOUBLE, "atomic_fetch_add_explicit(record, 1, memory_order_relaxed);", 1, store);
    let mixed =
        replaced(&mixed, "if (i % 2 == 0)", 1, "atomic_load_explicit(record, memory_order_relaxed); if (i == 0)");
    bench.dispatch(bench.load(&mixed, "test"), 2, 32, &[a, b, record], &[64]);
    expect("a plain store beside atomic loads", &bench.found(), Some(Race));
}

#[test]
fn memory_must_be_bound_and_alive() {
    let bench = Bench::new();
    let function = bench.load(INDIRECT, "test");
    let (from, to, other) = (bench.buffer(&floats(32)), bench.buffer(&floats(32)), bench.buffer(&floats(32)));
    let run = |indirect: &[Address]| {
        let (groups, args) = ([1, 1, 1], from.0.to_ne_bytes());
        let dispatch = Dispatch {
            function,
            name: "test",
            groups,
            threads: 32,
            block_bytes: 0,
            buffers: &[to],
            args: &args,
            indirect,
        };
        bench.device.barrier();
        bench.device.dispatch(&dispatch).unwrap();
        bench.found()
    };
    expect("bound", &run(&[from]), None);
    assert_eq!(bench.floats(to, 32)[31], 31.0);
    expect("not bound", &run(&[]), Some(Unbound));
    expect("another bound", &run(&[other]), Some(Unbound));
    bench.device.free(from, 128);
    expect("freed, and bound", &run(&[from]), Some(Unbound));
    expect("freed", &run(&[]), Some(Unbound));
    bench.device.free(to, 128);
    expect("freed, written to", &run(&[]), Some(Unbound));
}

#[test]
fn memory_that_is_in_use_is_not_freed() {
    let (bench, function, [a, b, c], record) = doubling();
    bench.dispatch(function, 2, 32, &[a, b, record], &[64]);
    bench.wait();
    bench.device.free(a, 256);
    expect("used, then freed", &bench.found(), None);
    bench.device.free(a, 256);
    expect("freed twice", &bench.found(), Some(Unbound));
    (0..200).for_each(|_| bench.dispatch(function, 2, 32, &[b, c, record], &[64]));
    bench.device.free(b, 256);
    assert!(bench.found().iter().any(|fault| fault.detail.contains("the host Frees")), "freed while in use");
    assert!(bench.device.host(c, 257, true).is_err() && bench.device.host(a, 4, false).is_err());
}

#[test]
fn device_memory_of_a_group_is_ordered_by_its_barrier() {
    let text = "
kernel void test(device uint* a [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {
    a[t] = t;
    threadgroup_barrier(mem_flags::mem_device);
    const uint other = a[63 - t];
    threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
    a[t] = other;
}";
    let bench = Bench::new();
    let a = bench.buffer(&[0; 256]);
    let run = |text: &str| {
        bench.dispatch(bench.load(text, "test"), 1, 64, &[a], &[]);
        bench.device.barrier();
        bench.found()
    };
    expect("ordered", &run(text), None);
    assert_eq!(bench.bytes(a, 4), 63u32.to_ne_bytes());
    expect("no flag", &run(&replaced(text, "mem_device", 1, "mem_threadgroup")), Some(Race));
    expect("no barrier", &run(&replaced(text, "threadgroup_barrier(mem_flags::mem_device);", 1, "")), Some(Race));
    expect(
        "two groups",
        &{
            bench.dispatch(bench.load(text, "test"), 2, 64, &[a], &[]);
            bench.found()
        },
        Some(Race),
    );
}

#[test]
fn simdgroups_are_ordered_by_their_barrier() {
    let text = "
kernel void test(device uint* a [[buffer(0)]], uint t [[thread_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint tile[64];
    tile[t] = lane + simd_broadcast(lane, 5) + simd_shuffle_down(lane, 0) + simd_shuffle(lane, 31 - lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    a[t] = tile[t ^ 1] + tl_ballot(lane < 2);
}";
    let bench = Bench::new();
    let a = bench.buffer(&[0; 256]);
    bench.dispatch(bench.load(text, "test"), 1, 64, &[a], &[]);
    expect("within a simdgroup", &bench.found(), None);
    let words: Vec<u32> = bench.bytes(a, 256).chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
    assert_eq!(words, (0..64).map(|t| (t ^ 1) % 32 + 5 + 31 + 3).collect::<Vec<u32>>());
    let across = replaced(text, "tile[t ^ 1]", 1, "tile[t ^ 32]");
    bench.device.barrier();
    bench.dispatch(bench.load(&across, "test"), 1, 64, &[a], &[]);
    expect("across simdgroups", &bench.found(), Some(Race));
}

#[test]
fn limits_hold() {
    let (bench, function, [a, b, _], record) = doubling();
    let runs = [
        ("threads", 48, vec![a, b, record], 1),
        ("many threads", 2048, vec![a, b, record], 1),
        ("buffers", 32, vec![a; 31], 1),
        ("arguments", 32, vec![a, b, record], 1025),
    ];
    for (what, threads, buffers, args) in runs {
        let result = bench.try_dispatch(function, 1, threads, &buffers, &vec![64; args]);
        expect(what, &bench.found(), Some(Limit));
        assert!(result.unwrap_err().contains("Limit"), "{what}");
    }
}

#[test]
fn findings_come_out_of_wait_once() {
    let (bench, function, [a, b, _], record) = doubling();
    bench.dispatch(function, 3, 32, &[a, b, record], &[96]);
    let ticket = bench.device.commit().unwrap();
    let error = bench.device.wait(ticket).unwrap_err();
    assert!(error.starts_with("kernel test: OutOfBounds: ") && error.contains("of 256 bytes"), "{error}");
    assert!(bench.device.is_done(ticket) && bench.device.wait(ticket).is_ok());
}

#[test]
fn traffic_and_time_are_counted() {
    let (bench, function, [a, b, _], record) = doubling();
    bench.device.start_traffic();
    let start = bench.device.mark().unwrap();
    bench.dispatch(function, 2, 32, &[a, b, record], &[50]);
    let end = bench.device.mark().unwrap();
    expect("traffic", &bench.found(), None);
    let moved = |(bytes, loaded, stored)| AllocationTraffic { bytes, loaded, stored };
    let allocations = [(256, 200, 0), (256, 0, 200), (16, 0, 32 * 4)].map(moved).to_vec();
    assert_eq!(bench.device.take_traffic(), [Traffic { name: "test".into(), allocations }]);
    assert!(bench.device.elapsed(start, end).unwrap() > Duration::ZERO);
}

#[test]
fn errors_of_the_compiler_come_back() {
    let bench = Bench::new();
    let broken = bench.device.compile("kernel void f(device float* a [[buffer(0)]]) {\n  a[0] = nonsense;\n}");
    let error = broken.unwrap_err();
    assert!(error.contains("kernel.metal:2") && error.contains("nonsense"), "{error}");
    let binary = bench.device.compile("kernel void f() {}").unwrap();
    assert!(bench.device.load(&binary, "g").unwrap_err().contains("kernel g"));
}

#[test]
fn simdgroups_multiply_matrices() {
    let text = "
kernel void test(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]],
                 device float* c [[buffer(2)]], uint t [[thread_index_in_threadgroup]]) {
    threadgroup half left[64];
    threadgroup half right[64];
    threadgroup float sums[64];
    for (uint i = t; i < 64; i += 32) { left[i] = a[i]; right[i] = b[i]; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_half8x8 x;
    simdgroup_half8x8 y;
    simdgroup_float8x8 z = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(x, left, 8);
    simdgroup_load(y, right, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(z, x, y, z);
    simdgroup_store(z, sums, 8);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = t; i < 64; i += 32) c[i] = sums[i];
}";
    let bench = Bench::new();
    let (a, b) = (0..64).map(|i| ((i % 7) as f32, (i % 5) as f32)).unzip::<f32, f32, Vec<_>, Vec<_>>();
    let buffers = [bench.buffer(&halves(a.clone())), bench.buffer(&halves(b.clone())), bench.buffer(&floats(64))];
    bench.dispatch(bench.load(text, "test"), 1, 32, &buffers, &[]);
    expect("a product", &bench.found(), None);
    let product = |at: usize| 1.0 + (0..8).map(|k| a[at / 8 * 8 + k] * b[at % 8 * 8 + k]).sum::<f32>();
    assert_eq!(bench.floats(buffers[2], 64), (0..64).map(product).collect::<Vec<_>>());
    let overrun = replaced(text, "sums[64]", 1, "sums[63]").replace("c[i] = sums[i]", "c[i] = sums[0]");
    bench.device.barrier();
    bench.dispatch(bench.load(&overrun, "test"), 1, 32, &buffers, &[]);
    expect("a store beyond the tile", &bench.found(), Some(FaultKind::OutOfBounds));
}

#[test]
fn constants_and_local_arrays_are_a_kernels_own() {
    let text = "
constant constexpr uint TABLE[4] = {1, 10, 100, 1000};
struct Args { int n; int digits[3]; };
kernel void test(device uint* to [[buffer(0)]], constant Args& args [[buffer(1)]],
                 uint t [[thread_index_in_threadgroup]]) {
    uint local[5] = {};
    for (int i = 0; i < args.n; i++) local[(t + uint(i)) % 4] = TABLE[(t * uint(i)) % 4] * uint(args.digits[i]);
    uint sum = 0;
    for (uint i = 0; i < 4; i++) sum += local[i];
    to[t] = sum;
}";
    let bench = Bench::new();
    let (to, function) = (bench.buffer(&[0; 128]), bench.load(text, "test"));
    bench.dispatch(function, 1, 32, &[to], &[3, 4, 5, 6]);
    expect("its own", &bench.found(), None);
    assert_eq!(bench.bytes(to, 8), [15u32, 654].map(u32::to_ne_bytes).concat());
    bench.device.barrier();
    bench.dispatch(function, 1, 32, &[to], &[3, 4, 5]);
    expect("fewer arguments than the kernel reads", &bench.found(), Some(Unbound));
}
