//! Making tensors: constants, sequences, random numbers.

use crate::oracle::{Array, Value, assert_close, assert_equal, dtypes, limits, on_every_device, round};
use tensorlogic::{DType, Device, Tensor};

on_every_device! {
    constants,
    identities,
    ranges,
    evenly_spaced,
    host_values,
    random_numbers,
}

/// Shapes of constants and random tensors.
const SHAPES: [&[usize]; 6] = [&[], &[0], &[33], &[2, 0, 3], &[5, 7], &[3, 1025]];

fn constants(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        for dims in SHAPES {
            let count = dims.iter().product();
            let same = |n: f64| {
                let value = if dtype.is_float() { Value::Float(round(n, dtype)) } else { Value::Int(n as i64) };
                Array::new(dtype, dims, vec![value; count])
            };
            let what = |name: &str| format!("{name} {dtype} {dims:?}");
            assert_equal(what("zeros"), Tensor::zeros(dims, dtype, device), &same(0.0));
            assert_equal(what("ones"), Tensor::ones(dims, dtype, device), &same(1.0));
            let like = Array::wild(dtype, dims, 81).upload(device);
            assert_equal(what("zeros_like"), like.zeros_like(), &same(0.0));
            assert_equal(what("ones_like"), like.ones_like(), &same(1.0));
            let held: &[f64] = if dtype.is_float() {
                &[0.1, -2.5, 1e30, 1e-30, f64::INFINITY, f64::NAN]
            } else {
                &[0.0, 1.0, limits(dtype).1.min(1 << 50) as f64, limits(dtype).0.max(-1 << 50) as f64]
            };
            for &n in held {
                assert_equal(what(&format!("full of {n}")), Tensor::full(dims, n, dtype, device), &same(n));
            }
        }
        if !dtype.is_float() {
            assert!(Tensor::full(2, 0.5, dtype, device).is_err() && Tensor::full(2, 1e20, dtype, device).is_err());
        }
    }
}

fn identities(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        for n in [0, 1, 2, 33] {
            let ones = Array::ints(DType::Bool, &[n, n], (0..n * n).map(|at| (at / n == at % n) as i64));
            let want = match dtype.is_float() {
                true => Array::floats(dtype, &[n, n], ones.values.iter().map(|v| v.float())),
                false => Array::new(dtype, &[n, n], ones.values),
            };
            assert_equal(format!("{dtype} {n}"), Tensor::eye(n, dtype, device), &want);
        }
    }
}

fn ranges(device: &Device) {
    let ints = |values: &[i64]| Array::ints(DType::I64, &[values.len()], values.iter().copied());
    for (start, end, step, want) in [
        (0, 5, 1, &[0, 1, 2, 3, 4][..]),
        (-3, 4, 3, &[-3, 0, 3]),
        (5, 0, -2, &[5, 3, 1]),
        (3, 3, 1, &[]),
        (3, 1, 1, &[]),
    ] {
        let got = Tensor::arange_step::<i64>(start, end, step, device);
        assert_equal(format!("{start} to {end} by {step}"), got, &ints(want));
    }
    assert_equal("u8", Tensor::arange(250u8, 255, device), &Array::ints(DType::U8, &[5], 250..255));
    let long = Tensor::arange(0i32, 70_000, device);
    assert_equal("long", long, &Array::ints(DType::I32, &[70_000], 0..70_000));
    let tenths = Array::floats(DType::F32, &[10], (0..10).map(|i| f64::from(0.1f32) * i as f64));
    assert_close("tenths", Tensor::arange_step(0f32, 1.0, 0.1, device), &tenths, |_| 0.0);
    // Beyond 2^53, where f64 skips integers.
    let large = i64::MAX - 3;
    assert_equal("large", Tensor::arange(large, i64::MAX, device), &ints(&[large, large + 1, large + 2]));
    assert!(Tensor::arange_step(0i64, 5, 0, device).is_err());
    assert!(Tensor::arange(0f32, f32::INFINITY, device).is_err());
}

fn evenly_spaced(device: &Device) {
    for dtype in dtypes(device, DType::is_float) {
        for (start, end, count) in [(0.0, 1.0, 11), (-3.0, 7.0, 33), (2.0, -2.0, 5), (1.5, 9.0, 1), (0.0, 1.0, 0)] {
            let last = count.max(2) as f64 - 1.0;
            let want = (0..count).map(|i| Value::Float(start + (end - start) * i as f64 / last)).collect();
            let want = Array::new(dtype, &[count], want);
            let got = Tensor::linspace(start, end, count, dtype, device);
            assert_close(format!("{dtype} {start} to {end} in {count}"), got, &want, |_| 1e-15);
        }
    }
    assert!(Tensor::linspace(0.0, 1.0, 3, DType::I64, device).is_err());
    assert!(Tensor::linspace(0.0, f64::INFINITY, 3, DType::F32, device).is_err());
}

fn host_values(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        for dims in SHAPES {
            let x = Array::wild(dtype, dims, 82);
            assert_equal(format!("{dtype} {dims:?}"), Ok(x.upload(device)), &x);
        }
    }
    assert_equal("scalar", Tensor::scalar(7u8, device), &Array::ints(DType::U8, &[], [7]));
    assert!(Tensor::from_slice(&[1f32, 2.0], 3, device).is_err());
    assert!(Tensor::from_slice(&[1f32], [1; 9], device).is_err(), "rank 9");
    assert!(Tensor::zeros([usize::MAX, 2], DType::U8, device).is_err());
}

/// One test: the stream of random numbers is the device's, which tests share.
fn random_numbers(device: &Device) {
    device.seed(1);
    random_numbers_have_their_moments(device);
    seeds_repeat_random_numbers(device);
    assert!(Tensor::rand(3, DType::I32, device).is_err() && Tensor::randn(3, DType::Bool, device).is_err());
}

fn random_numbers_have_their_moments(device: &Device) {
    const COUNT: usize = 200_000;
    for dtype in dtypes(device, DType::is_float) {
        let floats = |x: Tensor| x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
        let uniform = floats(Tensor::rand(COUNT, dtype, device).unwrap());
        let normal = floats(Tensor::randn([COUNT / 2, 2], dtype, device).unwrap());
        assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)), "{dtype}");
        assert!(normal.iter().all(|x| x.abs() < 6.0), "{dtype}");
        // Within five standard errors, and half of what a step of a narrow type is.
        let step = match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            _ => 0.0,
        };
        for (values, want) in [(uniform, [0.5, 1.0 / 3.0, 0.25, 0.2]), (normal, [0.0, 1.0, 0.0, 3.0])] {
            for (power, want) in (1..).zip(want) {
                let power_of = |x: &f32| f64::from(*x).powi(power);
                let (mean, square) = moments(values.iter().map(power_of));
                let error = ((square - mean * mean) / COUNT as f64).sqrt();
                assert!(
                    (mean - want).abs() < 5.0 * error + 4.0 * step,
                    "{dtype}: moment {power} is {mean}, not {want}"
                );
            }
            let (mean, _) = moments(values.iter().map(|&x| x.into()));
            let centred: Vec<f64> = values.iter().map(|&x| f64::from(x) - mean).collect();
            let (together, _) = moments(centred.windows(2).map(|pair| pair[0] * pair[1]));
            assert!(together.abs() < 5.0 / (COUNT as f64).sqrt(), "{dtype}: neighbours correlate, {together}");
        }
        assert_eq!(Tensor::rand([0, 3], dtype, device).unwrap().dims(), [0, 3]);
    }
}

fn seeds_repeat_random_numbers(device: &Device) {
    let draw = |seed: Option<u64>| {
        seed.into_iter().for_each(|seed| device.seed(seed));
        let (x, y) = (Tensor::rand(1001, DType::F32, device).unwrap(), Tensor::randn(7, DType::F32, device).unwrap());
        [x.to_vec::<f32>().unwrap(), y.to_vec::<f32>().unwrap()].concat()
    };
    // Another test may draw between seed and number; hardly twice.
    let repeats = || draw(Some(7)) == draw(Some(7));
    assert!(repeats() || repeats(), "the same seed");
    let (first, next, other) = (draw(Some(7)), draw(None), draw(Some(8)));
    assert!(first != next && first != other, "numbers go on, and differ by seed");
    let bits = Tensor::rand(64, DType::F32, device).unwrap();
    assert_eq!(bits.to_vec::<f32>().unwrap(), (&bits + 0.0).unwrap().to_vec::<f32>().unwrap(), "read twice");
}

/// The means of the values and of their squares.
fn moments(values: impl ExactSizeIterator<Item = f64>) -> (f64, f64) {
    let count = values.len() as f64;
    let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    (sum / count, squares / count)
}
