//! Scaled dot product attention and its gradients against the formulas in f64: sizes around the blocks, shared heads,
//! masks, causal ones, views, what is not finite; and that it is one kernel whose memory does not grow with the square.

use crate::oracle::{Array, budget, dtypes, on_every_device};
use tensorlogic::{AttentionOptions, DType, Device, Error, Result, Tensor, Var, autocast, eval, grad_with};

on_every_device! {
    sizes,
    gradients,
    masks,
    queries_that_see_nothing,
    what_is_not_finite_stays_in_its_rows,
    views_are_read_in_place,
    one_kernel_each_way,
    runs_agree_to_the_bit,
    operands_are_checked,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    causal: bool,
}

const fn sizes_of(list: [usize; 6], causal: bool) -> Sizes {
    let [batch, heads, kv_heads, queries, keys, width] = list;
    Sizes { batch, heads, kv_heads, queries, keys, width, causal }
}

/// Numbers in no order, rounded to the dtype.
fn numbers(dims: &[usize], seed: u64, dtype: DType) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 * 3.0 - 1.5
    };
    Array::floats(DType::F64, dims, (0..dims.iter().product()).map(next)).stored(dtype)
}

/// The operands, and the gradient of the result.
struct Case {
    sizes: Sizes,
    arrays: [Array; 4],
    mask: Option<Array>,
}

/// Result and gradients, in f64.
struct Exact {
    output: Vec<f64>,
    gradients: [Vec<f64>; 3],
}

impl Case {
    fn new(sizes: Sizes, dtype: DType) -> Case {
        let Sizes { batch, heads, kv_heads, queries, keys, width, .. } = sizes;
        let of = |heads, positions, seed| numbers(&[batch, heads, positions, width], seed, dtype);
        let arrays = [of(heads, queries, 1), of(kv_heads, keys, 2), of(kv_heads, keys, 3), of(heads, queries, 4)];
        Case { sizes, arrays, mask: None }
    }

    fn tensors(&self, device: &Device) -> [Tensor; 4] {
        [0, 1, 2, 3].map(|i| self.arrays[i].upload(device))
    }

    fn options<'a>(&self, mask: Option<&'a Tensor>) -> AttentionOptions<'a> {
        AttentionOptions { mask, causal: self.sizes.causal, scale: None }
    }

    /// By the definition, row by row.
    fn exact(&self) -> Exact {
        let Sizes { batch, heads, kv_heads, queries, keys, width, causal } = self.sizes;
        let [q, k, v, g] = [0, 1, 2, 3].map(|i| self.arrays[i].values.iter().map(|x| x.float()).collect::<Vec<f64>>());
        let scale = 1.0 / (width as f64).sqrt();
        let mut output = vec![0.0; q.len()];
        let mut gradients = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
        for (b, h, i) in (0..batch * heads * queries).map(|r| (r / queries / heads, r / queries % heads, r % queries)) {
            let row = ((b * heads + h) * queries + i) * width;
            let key = |j: usize| ((b * kv_heads + h / (heads / kv_heads)) * keys + j) * width;
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let seen: Vec<usize> = (0..keys).filter(|&j| !causal || j + queries <= i + keys).collect();
            let mask = |j: usize| {
                self.mask.as_ref().map_or(0.0, |m| m.values[((b * heads + h) * queries + i) * keys + j].float())
            };
            let scores: Vec<f64> =
                seen.iter().map(|&j| dot(&q[row..row + width], &k[key(j)..key(j) + width]) * scale + mask(j)).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if most == f64::NEG_INFINITY {
                continue;
            }
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let weights: Vec<f64> = weights.iter().map(|w| w / sum).collect();
            let slopes: Vec<f64> =
                seen.iter().map(|&j| dot(&g[row..row + width], &v[key(j)..key(j) + width])).collect();
            let mean = dot(&weights, &slopes);
            for (at, &j) in seen.iter().enumerate() {
                let slope = weights[at] * (slopes[at] - mean) * scale;
                for w in 0..width {
                    output[row + w] += weights[at] * v[key(j) + w];
                    gradients[0][row + w] += slope * k[key(j) + w];
                    gradients[1][key(j) + w] += slope * q[row + w];
                    gradients[2][key(j) + w] += weights[at] * g[row + w];
                }
            }
        }
        Exact { output, gradients }
    }
}

/// Within a few roundings of the largest element, or of the operands, which are about one: weights may be rounded to the
/// dtype before they are summed with, and gradients depend on the rounded output.
fn assert_near(what: &str, got: &Tensor, want: &[f64]) {
    let got: Vec<f64> = match got.device().supports(DType::F64) {
        true => got.to_dtype(DType::F64).unwrap().flatten(0, -1).unwrap().to_vec1().unwrap(),
        false => {
            let wide: Vec<f32> = got.to_dtype(DType::F32).unwrap().flatten(0, -1).unwrap().to_vec1().unwrap();
            wide.into_iter().map(f64::from).collect()
        }
    };
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.5f64, |most, x| most.max(x.abs()));
    let unit = unit_of(what);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 4.0 * unit * largest, "{what}: element {i} is {got}, {want} wanted");
    }
}

/// The rounding unit of the dtype that a message begins with.
fn unit_of(what: &str) -> f64 {
    match what.split(' ').next() {
        Some("f16") => 2f64.powi(-11),
        Some("bf16") => 2f64.powi(-8),
        Some("f32") => 2f64.powi(-21),
        _ => 1e-14,
    }
}

const SIZES: [Sizes; 14] = [
    sizes_of([1, 1, 1, 1, 1, 1], false),
    sizes_of([1, 1, 1, 1, 1, 32], true),
    sizes_of([2, 3, 3, 5, 7, 8], false),
    sizes_of([1, 2, 1, 31, 33, 32], false),
    sizes_of([1, 4, 2, 33, 33, 40], true),
    sizes_of([2, 2, 2, 63, 64, 64], true),
    sizes_of([1, 2, 2, 64, 63, 64], true),
    sizes_of([1, 1, 1, 65, 65, 65], true),
    sizes_of([1, 6, 2, 1, 100, 128], true),
    sizes_of([1, 1, 1, 16, 200, 256], false),
    sizes_of([1, 2, 1, 7, 130, 96], true),
    sizes_of([3, 1, 1, 130, 4, 16], false),
    sizes_of([1, 1, 1, 20, 20, 257], true),
    sizes_of([1, 8, 1, 2, 3, 33], false),
];

fn sizes(device: &Device) -> Result<()> {
    for dtype in dtypes(device, DType::is_float) {
        for sizes in SIZES.into_iter().take(budget(device, SIZES.len(), 12)) {
            let case = Case::new(sizes, dtype);
            let [q, k, v, _] = case.tensors(device);
            let y = q.scaled_dot_product_attention(&k, &v, &case.options(None))?;
            assert_eq!((y.dims(), y.dtype()), (q.dims(), dtype));
            assert_near(&format!("{dtype} {sizes:?}"), &y, &case.exact().output);
        }
    }
    Ok(())
}

fn gradients(device: &Device) -> Result<()> {
    for dtype in dtypes(device, DType::is_float) {
        for sizes in SIZES.into_iter().take(budget(device, SIZES.len(), 9)) {
            let case = Case::new(sizes, dtype);
            let [q, k, v, g] = case.tensors(device);
            let vars = [&q, &k, &v].map(|x| Var::new(x).unwrap().tensor());
            let y = vars[0].scaled_dot_product_attention(&vars[1], &vars[2], &case.options(None))?;
            let found = grad_with(&y, &g, &[&vars[0], &vars[1], &vars[2]], false)?;
            let exact = case.exact();
            for ((name, found), exact) in ["q", "k", "v"].iter().zip(&found).zip(&exact.gradients) {
                assert_eq!(found.dtype(), dtype);
                assert_near(&format!("{dtype} gradient of {name}, {sizes:?}"), found, exact);
            }
        }
    }
    Ok(())
}

/// Numbers, bools, and such that broadcast; with gradients.
fn masks(device: &Device) -> Result<()> {
    for dtype in dtypes(device, DType::is_float) {
        for causal in [false, true] {
            let sizes = sizes_of([2, 2, 1, 9, 37, 24], causal);
            let mut case = Case::new(sizes, dtype);
            let dims = [2, 2, 9, 37];
            let whole = numbers(&dims, 9, dtype);
            let [q, k, v, g] = case.tensors(device);
            let mut check = |what: &str, mask: Tensor, array: Array| -> Result<()> {
                case.mask = Some(array);
                let vars = [&q, &k, &v].map(|x| Var::new(x).unwrap().tensor());
                let y = vars[0].scaled_dot_product_attention(&vars[1], &vars[2], &case.options(Some(&mask)))?;
                let exact = case.exact();
                assert_near(&format!("{dtype} {what}"), &y, &exact.output);
                let found = grad_with(&y, &g, &[&vars[0], &vars[1], &vars[2]], false)?;
                for (found, exact) in found.iter().zip(&exact.gradients) {
                    assert_near(&format!("{dtype} gradient with {what}"), found, exact);
                }
                Ok(())
            };
            check("a mask", whole.upload(device), whole.clone())?;
            // Every third key is out of sight, but never the first.
            let hidden = |i: usize| i % 37 % 3 == 1;
            let numbers = (0..2 * 2 * 9 * 37).map(|i| if hidden(i) { f64::NEG_INFINITY } else { 0.0 });
            let array = Array::floats(dtype, &dims, numbers);
            let seen: Vec<bool> = (0..37).map(|i| !hidden(i)).collect();
            check("a row of bools", Tensor::from_slice(&seen, 37, device)?, array)?;
        }
    }
    Ok(())
}

fn queries_that_see_nothing(device: &Device) -> Result<()> {
    for dtype in dtypes(device, DType::is_float) {
        // Of five queries and three keys the first two come before all keys.
        let case = Case::new(sizes_of([1, 1, 1, 5, 3, 8], true), dtype);
        let [q, k, v, g] = case.tensors(device);
        let vars = [&q, &k, &v].map(|x| Var::new(x).unwrap().tensor());
        let y = vars[0].scaled_dot_product_attention(&vars[1], &vars[2], &case.options(None))?;
        let found = grad_with(&y, &g, &[&vars[0], &vars[1], &vars[2]], false)?;
        let exact = case.exact();
        assert!(exact.output[..16].iter().all(|&x| x == 0.0));
        assert_near(&format!("{dtype} output"), &y, &exact.output);
        for (found, exact) in found.iter().zip(&exact.gradients) {
            assert_near(&format!("{dtype} gradient"), found, exact);
        }
    }
    let none = Tensor::zeros((1, 1, 0, 8), DType::F32, device)?;
    let q = Tensor::ones((1, 1, 2, 8), DType::F32, device)?;
    let y = q.scaled_dot_product_attention(&none, &none, &AttentionOptions::default())?;
    assert_eq!(y.flatten(0, -1)?.to_vec1::<f32>()?, [0.0; 16]);
    Ok(())
}

fn what_is_not_finite_stays_in_its_rows(device: &Device) -> Result<()> {
    for dtype in dtypes(device, DType::is_float) {
        let case = Case::new(sizes_of([1, 1, 1, 70, 70, 16], true), dtype);
        let [q, k, v, _] = case.tensors(device);
        let poison = |x: &Tensor, row: i64, with: f64| -> Result<Tensor> {
            let at = Tensor::from_slice(&(0..70i64).collect::<Vec<_>>(), (70, 1), device)?;
            at.eq(row)?.where_cond(Tensor::full((), with, dtype, device)?, x)
        };
        let whole = case.exact().output;
        let rows = |y: &Tensor| -> Result<Vec<f32>> { y.to_dtype(DType::F32)?.flatten(0, -1)?.to_vec1() };
        // A query that is not a number is one row of the result.
        let y = poison(&q, 3, f64::NAN)?.scaled_dot_product_attention(&k, &v, &case.options(None))?;
        for (i, x) in rows(&y)?.chunks(16).enumerate() {
            assert_eq!(x.iter().all(|x| x.is_nan()), i == 3, "{dtype} row {i}");
        }
        // A key that is not a number concerns the queries from it on.
        let y = q.scaled_dot_product_attention(&poison(&k, 66, f64::NAN)?, &v, &case.options(None))?;
        for (i, x) in rows(&y)?.iter().enumerate() {
            assert_eq!(x.is_nan(), i / 16 >= 66, "{dtype} element {i}");
            assert!(x.is_nan() || (f64::from(*x) - whole[i]).abs() < 0.05, "{dtype} element {i}");
        }
    }
    Ok(())
}

/// Heads out of one projection, as models have them.
fn views_are_read_in_place(device: &Device) -> Result<()> {
    let (batch, positions, heads, width) = (2, 20, 3, 16);
    for dtype in dtypes(device, |dtype| dtype.is_float() && dtype != DType::F64) {
        let all = numbers(&[batch, positions, 3, heads, width], 7, dtype).upload(device);
        let parts = [0, 1, 2].map(|i| all.select(2, i).unwrap().transpose(1, 2).unwrap());
        let copies = [0, 1, 2].map(|i| parts[i].contiguous().unwrap());
        eval(&[&copies[0], &copies[1], &copies[2]])?;
        let options = AttentionOptions { causal: true, ..AttentionOptions::default() };
        let y = parts[0].scaled_dot_product_attention(&parts[1], &parts[2], &options)?;
        let merged = y.transpose(1, 2)?.reshape((batch, positions, heads * width))?;
        assert_eq!(merged.explain()?.kernels(), 1, "{}", merged.explain()?);
        let want = copies[0].scaled_dot_product_attention(&copies[1], &copies[2], &options)?;
        let want = want.transpose(1, 2)?.reshape((batch, positions, heads * width))?;
        let bits = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten(0, -1).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&merged), bits(&want), "{dtype}");
    }
    Ok(())
}

/// A kernel forward, with what the backward pass needs; there a fold of output times gradient, and one for the rest.
fn one_kernel_each_way(device: &Device) -> Result<()> {
    let case = Case::new(sizes_of([1, 2, 2, 40, 40, 32], true), DType::F16);
    let [q, k, v, g] = case.tensors(device);
    let vars = [&q, &k, &v].map(|x| Var::new(x).unwrap());
    let of = |i: usize| vars[i].tensor();
    let y = of(0).scaled_dot_product_attention(&of(1), &of(2), &case.options(None))?;
    assert_eq!(y.explain()?.kernels(), 1, "{}", y.explain()?);
    y.eval()?;
    let gradients = (&y * &g)?.sum_all()?.backward()?;
    let found = [0, 1, 2].map(|i| gradients.get(&vars[i]).unwrap().clone());
    let before = tensorlogic::testing::kernels_of_thread();
    eval(&[&found[0], &found[1], &found[2]])?;
    assert_eq!(tensorlogic::testing::kernels_of_thread() - before, 2);
    Ok(())
}

fn runs_agree_to_the_bit(device: &Device) -> Result<()> {
    let case = Case::new(sizes_of([2, 4, 2, 70, 90, 48], true), DType::F16);
    let run = || -> Result<Vec<Vec<f32>>> {
        let [q, k, v, g] = case.tensors(device);
        let vars = [&q, &k, &v].map(|x| Var::new(x).unwrap().tensor());
        let y = vars[0].scaled_dot_product_attention(&vars[1], &vars[2], &case.options(None))?;
        let mut all = grad_with(&y, &g, &[&vars[0], &vars[1], &vars[2]], false)?;
        all.push(y);
        all.iter().map(|x| x.to_dtype(DType::F32)?.flatten(0, -1)?.to_vec1()).collect()
    };
    assert_eq!(run()?, run()?);
    Ok(())
}

fn operands_are_checked(device: &Device) -> Result<()> {
    let of = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, device).unwrap();
    let q = of(&[2, 4, 8, 16], DType::F32);
    let options = AttentionOptions::default();
    let fails = |k: &[usize], v: &[usize], dtype| {
        q.scaled_dot_product_attention(&of(k, dtype), &of(v, dtype), &options).unwrap_err()
    };
    let right = [2, 4, 8, 16];
    for wrong in [[1, 4, 8, 16], [2, 3, 8, 16], [2, 4, 8, 15]] {
        assert!(matches!(fails(&wrong, &wrong, DType::F32), Error::ShapeMismatch { .. }), "{wrong:?}");
    }
    assert!(matches!(fails(&right, &[2, 4, 9, 16], DType::F32), Error::ShapeMismatch { .. }));
    assert!(matches!(fails(&[4, 8, 16], &[4, 8, 16], DType::F32), Error::ShapeMismatch { .. }));
    assert!(matches!(fails(&right, &right, DType::F16), Error::DTypeMismatch { .. }));
    let whole = of(&right, DType::I32);
    assert!(whole.scaled_dot_product_attention(&whole, &whole, &options).is_err());
    for mask in [of(&[2, 4, 8, 7], DType::F32), of(&[1, 1, 1, 1, 8], DType::F32), of(&[8], DType::I32)] {
        let options = AttentionOptions { mask: Some(&mask), ..options };
        assert!(q.scaled_dot_product_attention(&q, &q, &options).is_err());
    }
    // Fewer dimensions are one batch, and one head.
    for dims in [&[4, 8, 16][..], &[8, 16]] {
        let x = of(dims, DType::F32);
        assert_eq!(x.scaled_dot_product_attention(&x, &x, &options)?.dims(), dims);
    }
    let y = autocast(DType::F16, || q.scaled_dot_product_attention(&q, &q, &options))?;
    assert_eq!(y.dtype(), DType::F16);
    Ok(())
}
