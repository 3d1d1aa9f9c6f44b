//! The benchmark in a few seconds, for what must hold on any machine: results, kernel counts, reuse
//! of buffers. The times are printed (`cargo test --test performance_test -- --nocapture`), not judged.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tensorlogic::testing::{kernel_count, no_fusion};
use tensorlogic::{DType, Device, Tensor};
use tensorlogic_bench::cases::{self, Call, Case, Work};
use tensorlogic_bench::measure::{Busy, Limits};

/// The pool and its counters are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_device(&Device::cpu()).unwrap().to_dtype(DType::F64).unwrap().to_vec().unwrap()
}

/// Differences relative to the larger of 1 and the value wanted.
fn assert_close(got: &[f64], want: &[f64], tolerance: f64, case: &Case) {
    assert_eq!(got.len(), want.len(), "{}", case.key());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs() / want.abs().max(1.0);
        assert!(error <= tolerance, "{} at {i}: {got}, not {want}", case.key());
    }
}

/// One unit in the last place of a value near 1, which is what a dtype's results may be off by.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 2f64.powi(-23),
    }
}

/// The op of a case, and one set of inputs.
fn op(case: &Case) -> (Call, Vec<Tensor>) {
    let Work::Op(call) = case.work else { panic!("{} is no op", case.key()) };
    (call, case.inputs(1, &Device::best()).unwrap().remove(0))
}

#[test]
fn every_small_case_runs() {
    let _alone = alone();
    let device = Device::best();
    let busy = (device.name() != "cpu").then(|| Busy::new(&device).unwrap());
    let dtypes = [DType::F32, DType::F16];
    let small = cases::all(&device, &dtypes).into_iter().filter(|case| case.input_bytes() <= 1 << 20);
    for case in small.filter(|case| Limits::QUICK.fit(case, &device)) {
        let measured = case.measure(&device, busy.as_ref(), Limits::QUICK).unwrap();
        println!("{:<50}{:>10.2} us, {} kernels", case.key(), measured.time().unwrap().median, measured.kernels);
        assert!(measured.times.values().all(|time| time.min > 0.0), "{}", case.key());
        assert_eq!(measured.kernels > 0, !matches!(case.work, Work::Upload | Work::Download | Work::Host(_)));
    }
}

/// The ops of the seed's table against the same in f64 on the host.
#[test]
fn results_agree_with_the_host() {
    let _alone = alone();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for case in cases::elementwise(1000, dtype).into_iter().chain([cases::matmul(64, dtype)]) {
            let (call, inputs) = op(&case);
            let got = values(&call(&inputs).unwrap());
            let inputs: Vec<Vec<f64>> = inputs.iter().map(values).collect();
            // A sum of n terms in f32 is off by their magnitudes' sum, about n, times half a unit of f32.
            assert_close(&got, &on_host(case.operation, &inputs), unit(dtype) + 1e-4, &case);
        }
    }
}

fn on_host(operation: &str, inputs: &[Vec<f64>]) -> Vec<f64> {
    let zip = |f: fn(f64, f64) -> f64| inputs[0].iter().zip(&inputs[1]).map(|(&a, &b)| f(a, b)).collect();
    match operation {
        "add" => zip(|a, b| a + b),
        "mul" => zip(|a, b| a * b),
        "sum" => vec![inputs[0].iter().sum()],
        "relu" => inputs[0].iter().map(|x| x.max(0.0)).collect(),
        "gelu" => inputs[0].iter().map(|&x| gelu(x)).collect(),
        "matmul" => product(&inputs[0], &inputs[1]),
        _ => unreachable!("no host form of {operation}"),
    }
}

/// The tanh form (Hendrycks and Gimpel 2016).
fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// The product of two square matrices.
fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    let n = a.len().isqrt();
    let dot = |i: usize| (0..n).map(|k| a[i / n * n + k] * b[k * n + i % n]).sum();
    (0..n * n).map(dot).collect()
}

#[test]
fn fusion_makes_one_kernel_and_the_same_values() {
    let _alone = alone();
    for case in [DType::F32, DType::F16].into_iter().flat_map(|dtype| cases::fusible(10_000, 48, dtype)) {
        let (call, inputs) = op(&case);
        let fused = call(&inputs).unwrap();
        assert_eq!(kernel_count(&[&fused]).unwrap(), 1, "{}", case.key());
        let unfused = no_fusion(|| {
            let result = call(&inputs).unwrap();
            assert!(kernel_count(&[&result]).unwrap() > 1, "{}", case.key());
            values(&result)
        });
        // A fused chain rounds to f16 once, an unfused one after each op.
        assert_close(&values(&fused), &unfused, 32.0 * unit(case.dtype), &case);
    }
}

#[test]
fn a_repeated_op_allocates_nothing_new() {
    let _alone = alone();
    let device = Device::best();
    for case in [DType::F32, DType::F16].into_iter().flat_map(|dtype| cases::fusible(10_000, 48, dtype)) {
        let (call, inputs) = op(&case);
        let fresh_in_ten_runs = || {
            call(&inputs).unwrap().eval().unwrap();
            let before = device.buffer_pool_stats();
            (0..10).for_each(|_| call(&inputs).unwrap().eval().unwrap());
            let after = device.buffer_pool_stats();
            let [asked, reused] =
                [after.allocation_count - before.allocation_count, after.reuse_count - before.reuse_count];
            assert!(asked >= 10, "{}", case.key());
            asked - reused
        };
        assert_eq!(fresh_in_ten_runs(), 0, "{}", case.key());
        device.buffer_pool().set_enabled(false);
        let fresh = fresh_in_ten_runs();
        device.buffer_pool().set_enabled(true);
        assert!(fresh >= 10, "{} without a pool: {fresh}", case.key());
    }
}
