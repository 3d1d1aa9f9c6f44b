//! Reading through indices.

use crate::oracle::{Array, Value, assert_close, assert_equal, dtypes, on_every_device, position, wrapped};
use tensorlogic::{DType, Device, Result, Tensor};

on_every_device! {
    slices_are_selected,
    elements_are_gathered,
    embeddings,
    terms_are_added_where_indices_say,
    many_terms_are_added_to_many_rows,
    indices_out_of_range_are_errors,
    operands_are_checked,
}

const INDEX_DTYPES: [DType; 4] = [DType::I64, DType::I32, DType::U32, DType::U8];

/// Indices below `size`, with repetitions and in no order.
fn some_indices(dtype: DType, dims: &[usize], size: usize) -> Array {
    let count: usize = dims.iter().product();
    Array::ints(dtype, dims, (0..count).map(|i| (i * 7 + i / 3) as i64 % size as i64))
}

/// The index that `array` holds at `at`.
fn held(array: &Array, at: &[usize]) -> usize {
    array.values[position(&array.dims, at)].int() as usize
}

/// An index with one part replaced.
fn with(index: &[usize], dim: usize, to: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[dim] = to;
    index
}

fn slices_are_selected(device: &Device) {
    const CASES: [(&[usize], usize, usize); 8] = [
        (&[1], 0, 5),
        (&[1500], 0, 1100),
        (&[5, 7], 0, 9),
        (&[5, 7], 1, 3),
        (&[4, 5, 6], 1, 70),
        (&[4, 5, 6], 2, 0),
        (&[40, 0], 0, 3),
        (&[3, 1030], 0, 4),
    ];
    for dtype in dtypes(device, |_| true) {
        for (index_dtype, (dims, dim, count)) in
            INDEX_DTYPES.into_iter().flat_map(|dtype| CASES.map(|case| (dtype, case)))
        {
            let x = Array::wild(dtype, dims, 71);
            let index = some_indices(index_dtype, &[count], dims[dim].min(200));
            let want = x.pick(&with(dims, dim, count), |at| with(at, dim, held(&index, &[at[dim]])));
            let what = format!("{count} of {dtype} {dims:?} along {dim} by {index_dtype}");
            let (tensor, index) = (x.upload(device), index.upload(device));
            assert_equal(&what, tensor.index_select(dim, &index), &want);

            let turned = tensor.t().and_then(|x| x.contiguous()).and_then(|x| x.t());
            assert_equal(format!("{what}, of a view"), turned.and_then(|x| x.index_select(dim, &index)), &want);
            let backwards = index.slice(0, .., -1).and_then(|index| index.contiguous()?.slice(0, .., -1));
            assert_equal(
                format!("{what}, by a view"),
                backwards.and_then(|index| tensor.index_select(dim, &index)),
                &want,
            );
            if dtype.is_float() {
                let computed = tensor.neg().and_then(|x| x.index_select(dim, &index)?.neg());
                assert_equal(format!("{what}, of a result"), computed, &want);
            }
        }
    }
}

fn elements_are_gathered(device: &Device) {
    const CASES: [(&[usize], usize, &[usize]); 7] = [
        (&[5], 0, &[12]),
        (&[5, 7], 0, &[5, 7]),
        (&[5, 7], 0, &[40, 3]),
        (&[5, 7], 1, &[2, 1]),
        (&[33, 65], 1, &[33, 65]),
        (&[3, 4, 5], 1, &[3, 9, 5]),
        (&[3, 4], 1, &[0, 4]),
    ];
    for dtype in dtypes(device, |_| true) {
        for (index_dtype, (dims, dim, shape)) in
            INDEX_DTYPES.into_iter().flat_map(|dtype| CASES.map(|case| (dtype, case)))
        {
            let x = Array::wild(dtype, dims, 72);
            let index = some_indices(index_dtype, shape, dims[dim]);
            let want = x.pick(shape, |at| with(at, dim, held(&index, at)));
            let what = format!("{shape:?} of {dtype} {dims:?} along {dim} by {index_dtype}");
            assert_equal(what, x.upload(device).gather(dim, &index.upload(device)), &want);
        }
    }
}

fn embeddings(device: &Device) {
    for dtype in dtypes(device, |_| true) {
        for shape in [&[][..], &[6], &[2, 9], &[2, 0], &[3, 2, 4]] {
            let (table, ids) = (Array::wild(dtype, &[11, 70], 73), some_indices(DType::I64, shape, 11));
            let want = table.pick(&[shape, &[70]].concat(), |at| vec![held(&ids, &at[..shape.len()]), at[shape.len()]]);
            let got = table.upload(device).embedding(&ids.upload(device));
            assert_equal(format!("{shape:?} of {dtype}"), got, &want);
        }
    }
}

/// `scatter_add` and, where the indices are the same in every slice, `index_add`: against a loop over the
/// terms. Narrow floats are summed in f32 and rounded once.
fn terms_are_added_where_indices_say(device: &Device) {
    const CASES: [(&[usize], usize, &[usize]); 7] = [
        (&[5], 0, &[33]),
        (&[4, 3], 0, &[31, 3]),
        (&[4, 3], 1, &[2, 7]),
        (&[6, 130], 0, &[300, 130]),
        (&[3, 4, 65], 1, &[2, 9, 33]),
        (&[70, 2, 3], 2, &[70, 1, 40]),
        (&[4, 3], 0, &[0, 3]),
    ];
    for dtype in dtypes(device, |dtype| dtype != DType::Bool) {
        for (index_dtype, (dims, dim, shape)) in
            INDEX_DTYPES.into_iter().flat_map(|dtype| CASES.map(|case| (dtype, case)))
        {
            let (x, terms) = (Array::tame(dtype, dims, 74), Array::tame(dtype, shape, 75));
            let added = |index: &Array| {
                let mut sums = x.values.clone();
                let mut sizes: Vec<f64> = sums.iter().map(|v| v.float().abs()).collect();
                for at in crate::oracle::indices(shape) {
                    let (from, to) = (position(shape, &at), position(dims, &with(&at, dim, held(index, &at))));
                    sizes[to] += terms.values[from].float().abs();
                    sums[to] = match (sums[to], terms.values[from]) {
                        (Value::Float(a), Value::Float(b)) => Value::Float(a + b),
                        (a, b) => wrapped(a.int() + b.int(), dtype),
                    };
                }
                (Array::new(dtype, dims, sums), sizes)
            };
            let what = |name| format!("{name} of {shape:?} to {dtype} {dims:?} along {dim} by {index_dtype}");
            let (tensor, source) = (x.upload(device), terms.upload(device));

            let index = some_indices(index_dtype, shape, dims[dim]);
            let (want, sizes) = added(&index);
            let slack = |i: usize| crate::oracle::sum_slack(sizes[i], dtype);
            let got = tensor.scatter_add(dim, &index.upload(device), &source);
            assert_close(what("scatter_add"), got, &want, slack);
            let turned = source.t().and_then(|x| x.contiguous()?.t());
            let got = turned.and_then(|source| tensor.scatter_add(dim, &index.upload(device), &source));
            assert_close(what("scatter_add of a view"), got, &want, slack);

            // One index a slice, as an array of the shape of the terms.
            let line = some_indices(index_dtype, &[shape[dim]], dims[dim]);
            let fits = (0..dims.len()).all(|i| i == dim || shape[i] == dims[i]);
            if fits {
                let (want, sizes) = added(&line.pick(shape, |at| vec![at[dim]]));
                let got = tensor.index_add(dim, &line.upload(device), &source);
                assert_close(what("index_add"), got, &want, |i| crate::oracle::sum_slack(sizes[i], dtype));
            } else {
                assert!(tensor.index_add(dim, &line.upload(device), &source).is_err());
            }
        }
    }
}

/// Tables so long that GPUs sort the terms: in one chunk, and in several, where rows appear in some of them.
fn many_terms_are_added_to_many_rows(device: &Device) {
    for (rows, terms, columns) in [(9000, 600, 3), (40_000, 1025, 2), (1 << 21, 2050, 1)] {
        for dtype in [DType::F32, DType::F16] {
            let row = |t: usize| if t.is_multiple_of(3) { 7 * (t % 12) } else { t * 7919 % rows };
            let values: Vec<f32> = (0..terms * columns).map(|i| (i % 13) as f32 - 6.0).collect();
            let mut want = vec![0.0; rows * columns];
            for (i, value) in values.iter().enumerate() {
                want[row(i / columns) * columns + i % columns] += value;
            }
            let index: Vec<u32> = (0..terms).map(|t| row(t) as u32).collect();
            let sums = || -> Result<Vec<f32>> {
                let index = Tensor::from_vec(index, terms, device)?;
                let values = Tensor::from_vec(values, (terms, columns), device)?.to_dtype(dtype)?;
                Tensor::zeros((rows, columns), dtype, device)?
                    .index_add(0, &index, &values)?
                    .to_dtype(DType::F32)?
                    .to_vec()
            };
            // Small integers: sums are exact.
            assert!(sums().unwrap() == want, "{terms} terms to {rows} rows of {columns} {dtype} on {device}");
        }
    }
    let index = Tensor::from_vec((0..600).map(|t| t * 100).collect::<Vec<i64>>(), 600, device).unwrap();
    let sums = Tensor::zeros((9000, 3), DType::F32, device)
        .and_then(|x| x.index_add(0, &index, &Tensor::ones((600, 3), DType::F32, device)?));
    assert!(sums.and_then(|x| x.to_vec::<f32>()).is_err(), "index 9000 of 9000 rows");
}

fn indices_out_of_range_are_errors(device: &Device) {
    let x = Tensor::arange(0f32, 12.0, device).unwrap().reshape([4, 3]).unwrap();
    for bad in [4, -1, i64::MAX, i64::MIN] {
        let index = Tensor::from_vec(vec![0, bad, 1], 3, device).unwrap();
        let table = index.unsqueeze(1).unwrap();
        for (name, result) in [
            ("index_select", x.index_select(0, &index)),
            ("gather", x.gather(0, &table)),
            ("embedding", x.embedding(&index)),
            ("scatter_add", x.scatter_add(0, &table.expand([3, 3]).unwrap(), &x.narrow(0, 0, 3).unwrap())),
            ("index_add", x.index_add(0, &index, &x.narrow(0, 0, 3).unwrap())),
        ] {
            let error = result.unwrap().to_vec::<f32>().unwrap_err().to_string();
            let (found, size) = (format!("index {bad} "), "size 4");
            assert!(error.contains(name) && error.contains(&found) && error.contains(size), "{error}");
            assert!(error.contains(file!()), "{error} does not say where the op was called");
        }
    }
}

fn operands_are_checked(device: &Device) {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, device).unwrap();
    let (x, vector, matrix) = (zeros(&[4, 3], DType::F32), zeros(&[2], DType::I64), zeros(&[2, 2], DType::I64));
    assert!(x.index_select(2, &vector).is_err() && x.index_select(0, &matrix).is_err());
    assert!(
        x.index_select(0, &zeros(&[2], DType::F32)).is_err() && x.index_select(0, &zeros(&[2], DType::Bool)).is_err()
    );
    assert!(x.gather(0, &vector).is_err() && x.gather(0, &zeros(&[2, 4], DType::I64)).is_err());
    assert!(zeros(&[4], DType::F32).embedding(&vector).is_err());
    assert!(zeros(&[0, 3], DType::F32).index_select(0, &vector).is_err(), "nothing to index");
    let terms = zeros(&[2, 3], DType::F32);
    assert!(x.scatter_add(0, &matrix, &terms).is_err(), "an index for each term");
    assert!(x.scatter_add(0, &terms, &terms).is_err() && x.index_add(0, &matrix, &terms).is_err());
    assert!(x.index_add(0, &vector, &zeros(&[2, 3], DType::F16)).is_err(), "dtypes differ");
}
