//! Matrix products by cuBLASLt.
//!
//! It thinks in columns: a row-major matrix is to it the transposed one. So `out = a b` is asked for as
//! `out' = b' a'`, with `b` as its first operand. The bias, which it adds along the rows of its result,
//! then runs along the columns of ours, as it should.

use super::api::{self, Failure, Heuristic};
use crate::device::gpu::driver::{Activation, Address, LibraryProduct, Matrix};
use crate::dtype::DType;
use rustc_hash::FxHashMap;
use std::ffi::{c_int, c_void};

/// Workspace that products may use: what NVIDIA recommends for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Plans kept; when there are more, all are made anew.
const PLANS: usize = 512;

// Values from cublasLt.h, cublas_api.h and library_types.h.
const COMPUTE_32F: c_int = 68;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
const DESC_AUX_POINTER: c_int = 11;
const DESC_AUX_STRIDE: c_int = 12;
const LAYOUT_BATCH_COUNT: c_int = 5;
const LAYOUT_BATCH_OFFSET: c_int = 6;
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTIONS: c_int = 3;
/// Of the first operand; those of the second, the addend and the result follow.
const PREFERENCE_ALIGNMENT: c_int = 5;
/// Parts of a sum may be added in place or in f32, but not rounded to the result's type before.
const REDUCTIONS_IN_F32: u32 = 1 | 2;
const NOT_SUPPORTED: c_int = 15;

/// `cudaDataType`.
fn data_type(dtype: DType) -> Option<c_int> {
    match dtype {
        DType::F32 => Some(0),
        DType::F16 => Some(2),
        DType::BF16 => Some(14),
        _ => None,
    }
}

/// A row-major matrix as cuBLASLt sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operand {
    /// Whether it has to transpose what it sees.
    transposed: bool,
    rows: usize,
    columns: usize,
    stride: usize,
    batch_stride: usize,
    /// Bytes, a power of two up to 256.
    alignment: u32,
}

/// Everything but addresses, of which the alignment matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    dtype: c_int,
    out_dtype: c_int,
    batch: i32,
    /// Ours: cuBLASLt's second.
    a: Operand,
    /// Ours: cuBLASLt's first.
    b: Operand,
    out: Operand,
    bias_alignment: Option<u32>,
    activation: Activation,
    /// Alignment of what goes before the activation.
    before: Option<u32>,
}

fn alignment(address: Address) -> u32 {
    1 << address.0.trailing_zeros().min(8)
}

/// `None` if cuBLASLt has no words for the strides.
fn operand(matrix: Matrix, rows: usize, columns: usize, batch: usize) -> Option<Operand> {
    let at_least = |stride: isize, length: usize| usize::try_from(stride).ok().filter(|&stride| stride >= length);
    // Of a single row or column the stride says nothing.
    let row = if rows == 1 { Some(columns) } else { at_least(matrix.row_stride, columns) };
    let column = if columns == 1 { Some(rows) } else { at_least(matrix.col_stride, rows) };
    let dense_rows = columns == 1 || matrix.col_stride == 1;
    let dense_columns = rows == 1 || matrix.row_stride == 1;
    let (transposed, seen_rows, seen_columns, stride) = match (row, column) {
        (Some(stride), _) if dense_rows => (false, columns, rows, stride),
        (_, Some(stride)) if dense_columns => (true, rows, columns, stride),
        _ => return None,
    };
    let batch_stride = if batch == 1 { 0 } else { usize::try_from(matrix.batch_stride).ok()? };
    let alignment = alignment(matrix.address);
    Some(Operand { transposed, rows: seen_rows, columns: seen_columns, stride, batch_stride, alignment })
}

impl Key {
    fn of(product: &LibraryProduct) -> Option<Key> {
        let &LibraryProduct { m, n, k, batch, .. } = product;
        if [m, n, k, batch].contains(&0) {
            return None;
        }
        let out = operand(product.out, m, n, batch).filter(|out| !out.transposed)?;
        Some(Key {
            dtype: data_type(product.dtype)?,
            out_dtype: data_type(product.out_dtype)?,
            batch: i32::try_from(batch).ok()?,
            a: operand(product.a, m, k, batch)?,
            b: operand(product.b, k, n, batch)?,
            out,
            bias_alignment: product.bias.map(alignment),
            activation: product.activation,
            before: product.before.map(alignment),
        })
    }

    /// `cublasLtEpilogue_t`. Its GELU is the tanh form.
    fn epilogue(&self) -> u32 {
        let bias = if self.bias_alignment.is_some() { 4 } else { 0 };
        let before = if self.before.is_some() { 128 } else { 0 };
        match self.activation {
            Activation::None if bias == 0 => 1,
            Activation::None => bias,
            Activation::Relu => bias | 2,
            Activation::Gelu => bias | before | 32,
        }
    }
}

/// A handle of cuBLASLt's, with what it takes to set an attribute and to destroy it.
struct Object {
    api: &'static api::CublasLt,
    handle: usize,
    set: Setter,
    destroy: unsafe fn(&api::CublasLt, usize) -> Result<(), Failure>,
}

type Setter = unsafe fn(&api::CublasLt, usize, c_int, *const c_void, usize) -> Result<(), Failure>;

impl Object {
    fn product(api: &'static api::CublasLt) -> Result<Object, Failure> {
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { api.cublasLtMatmulDescCreate(&raw mut handle, COMPUTE_32F, 0) }?;
        let set = api::CublasLt::cublasLtMatmulDescSetAttribute;
        Ok(Object { api, handle, set, destroy: api::CublasLt::cublasLtMatmulDescDestroy })
    }

    fn layout(api: &'static api::CublasLt, ty: c_int, operand: &Operand, batch: i32) -> Result<Object, Failure> {
        let mut handle = 0;
        let [rows, columns] = [operand.rows, operand.columns].map(|n| n as u64);
        // SAFETY: a place for a handle.
        unsafe { api.cublasLtMatrixLayoutCreate(&raw mut handle, ty, rows, columns, operand.stride as i64) }?;
        let set = api::CublasLt::cublasLtMatrixLayoutSetAttribute;
        let layout = Object { api, handle, set, destroy: api::CublasLt::cublasLtMatrixLayoutDestroy };
        layout.set(LAYOUT_BATCH_COUNT, batch)?;
        layout.set(LAYOUT_BATCH_OFFSET, operand.batch_stride as i64)?;
        Ok(layout)
    }

    fn preference(api: &'static api::CublasLt) -> Result<Object, Failure> {
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { api.cublasLtMatmulPreferenceCreate(&raw mut handle) }?;
        let set = api::CublasLt::cublasLtMatmulPreferenceSetAttribute;
        Ok(Object { api, handle, set, destroy: api::CublasLt::cublasLtMatmulPreferenceDestroy })
    }

    /// `T` is a number of the size that the attribute has.
    fn set<T: Copy>(&self, attribute: c_int, value: T) -> Result<(), Failure> {
        // SAFETY: the object is alive; `value` is read before this returns.
        unsafe { (self.set)(self.api, self.handle, attribute, (&raw const value).cast(), size_of::<T>()) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and nobody uses it again.
        let _ = unsafe { (self.destroy)(self.api, self.handle) };
    }
}

/// How cuBLASLt computes products of one [`Key`].
struct Plan {
    product: Object,
    a: Object,
    b: Object,
    out: Object,
    algorithm: [u64; 8],
    workspace_bytes: usize,
}

impl Plan {
    /// `None` if the library cannot do it.
    fn new(
        api: &'static api::CublasLt,
        handle: usize,
        key: &Key,
        of: &LibraryProduct,
    ) -> Result<Option<Plan>, Failure> {
        let product = Object::product(api)?;
        product.set(DESC_TRANSA, c_int::from(key.b.transposed))?;
        product.set(DESC_TRANSB, c_int::from(key.a.transposed))?;
        product.set(DESC_EPILOGUE, key.epilogue())?;
        if key.before.is_some() {
            product.set(DESC_AUX_STRIDE, key.out.stride as i64)?;
        }
        point(&product, of)?; // for the alignments
        let a = Object::layout(api, key.dtype, &key.a, key.batch)?;
        let b = Object::layout(api, key.dtype, &key.b, key.batch)?;
        let out = Object::layout(api, key.out_dtype, &key.out, key.batch)?;
        let preference = Object::preference(api)?;
        preference.set(PREFERENCE_WORKSPACE, WORKSPACE as u64)?;
        preference.set(PREFERENCE_REDUCTIONS, REDUCTIONS_IN_F32)?;
        for (attribute, operand) in (PREFERENCE_ALIGNMENT..).zip([&key.b, &key.a, &key.out, &key.out]) {
            preference.set(attribute, operand.alignment)?;
        }
        let (mut best, mut found) = (Heuristic::default(), 0);
        // SAFETY: all objects are alive; a place for one result, and one for their number.
        let asked = unsafe {
            api.cublasLtMatmulAlgoGetHeuristic(
                handle,
                product.handle,
                b.handle,
                a.handle,
                out.handle,
                out.handle,
                preference.handle,
                1,
                &raw mut best,
                &raw mut found,
            )
        };
        match asked {
            Ok(()) if found > 0 && best.state == 0 => {}
            Err(failure) if failure.code != NOT_SUPPORTED => return Err(failure),
            _ => return Ok(None),
        }
        let Heuristic { algorithm, workspace_bytes, .. } = best;
        Ok(Some(Plan { product, a, b, out, algorithm, workspace_bytes }))
    }
}

/// Tells a product where its bias is, and where what comes before the activation goes.
fn point(object: &Object, product: &LibraryProduct) -> Result<(), Failure> {
    for (attribute, address) in [(DESC_BIAS_POINTER, product.bias), (DESC_AUX_POINTER, product.before)] {
        if let Some(Address(address)) = address {
            object.set(attribute, address)?;
        }
    }
    Ok(())
}

/// cuBLASLt for one context.
pub(super) struct CublasLt {
    api: &'static api::CublasLt,
    handle: usize,
    /// [`WORKSPACE`] bytes of the device's; the driver's to give back.
    workspace: Address,
    plans: FxHashMap<Key, Option<Plan>>,
}

impl CublasLt {
    /// For the current context, with [`WORKSPACE`] bytes of its memory.
    pub fn new(api: &'static api::CublasLt, workspace: Address) -> Result<CublasLt, Failure> {
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { api.cublasLtCreate(&raw mut handle) }?;
        Ok(CublasLt { api, handle, workspace, plans: FxHashMap::default() })
    }

    /// The memory that [`CublasLt::new`] got.
    pub fn workspace(&self) -> Address {
        self.workspace
    }

    /// Whether the library can compute a product.
    pub fn takes(&mut self, product: &LibraryProduct) -> Result<bool, Failure> {
        Ok(self.plan(product)?.is_some())
    }

    fn plan(&mut self, product: &LibraryProduct) -> Result<Option<&Plan>, Failure> {
        let Some(key) = Key::of(product) else { return Ok(None) };
        if self.plans.len() >= PLANS && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Plan::new(self.api, self.handle, &key, product)?)
            }
        };
        Ok(plan.as_ref())
    }

    /// Multiplies, in stream order; `false` if the library cannot do it.
    pub fn run(&mut self, product: &LibraryProduct, stream: usize) -> Result<bool, Failure> {
        let (api, handle, workspace) = (self.api, self.handle, self.workspace.0);
        let Some(plan) = self.plan(product)? else { return Ok(false) };
        point(&plan.product, product)?;
        let (one, zero) = (1f32, 0f32);
        let out = product.out.address.0;
        // SAFETY: all objects are alive and describe the operands, whose memory is the caller's; the two
        // factors are read before this returns; the workspace is used by one product after the other.
        unsafe {
            api.cublasLtMatmul(
                handle,
                plan.product.handle,
                (&raw const one).cast(),
                product.b.address.0,
                plan.b.handle,
                product.a.address.0,
                plan.a.handle,
                (&raw const zero).cast(),
                out,
                plan.out.handle,
                out,
                plan.out.handle,
                &raw const plan.algorithm,
                workspace,
                plan.workspace_bytes,
                stream,
            )
        }?;
        Ok(true)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: the handle is alive, and nobody uses it again.
        let _ = unsafe { self.api.cublasLtDestroy(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(row_stride: isize, col_stride: isize) -> Matrix {
        Matrix { address: Address(512), row_stride, col_stride, batch_stride: 0 }
    }

    #[test]
    fn strides_become_operands() {
        // (strides, shape) to (transposed, rows, columns, stride), as columns are counted first.
        let cases = [
            ((5, 1), (3, 5), Some((false, 5, 3, 5))),
            ((8, 1), (3, 5), Some((false, 5, 3, 8))),
            ((1, 3), (3, 5), Some((true, 3, 5, 3))),
            ((1, 7), (3, 5), Some((true, 3, 5, 7))),
            ((0, 1), (3, 5), None), // one row, repeated
            ((10, 2), (3, 5), None),
            ((-5, 1), (3, 5), None),
            ((0, 1), (1, 5), Some((false, 5, 1, 5))),
            ((9, 2), (1, 5), Some((true, 1, 5, 2))),
            ((2, 9), (3, 1), Some((false, 1, 3, 2))),
            ((1, 0), (3, 1), Some((false, 1, 3, 1))),
            ((0, 0), (1, 1), Some((false, 1, 1, 1))),
        ];
        for ((row, column), (rows, columns), expected) in cases {
            let seen = operand(matrix(row, column), rows, columns, 1);
            let seen = seen.map(|o| (o.transposed, o.rows, o.columns, o.stride));
            assert_eq!(seen, expected, "strides {row}, {column} of {rows} x {columns}");
        }
    }

    #[test]
    fn keys_of_products() {
        let product = LibraryProduct {
            dtype: DType::F16,
            out_dtype: DType::F16,
            m: 3,
            n: 4,
            k: 5,
            batch: 1,
            a: matrix(5, 1),
            b: matrix(1, 5),
            out: matrix(4, 1),
            bias: Some(Address(24)),
            activation: Activation::Gelu,
            before: None,
        };
        let key = Key::of(&product).unwrap();
        assert_eq!((key.b.transposed, key.b.rows, key.b.columns), (true, 5, 4));
        assert_eq!((key.a.transposed, key.a.rows, key.a.columns), (false, 5, 3));
        assert_eq!((key.out.rows, key.out.columns, key.bias_alignment, key.epilogue()), (4, 3, Some(8), 36));
        let kept = LibraryProduct { before: Some(Address(256)), ..product };
        assert_eq!(Key::of(&kept).unwrap().epilogue(), 164);
        assert_eq!(Key::of(&LibraryProduct { dtype: DType::I32, ..product }), None);
        assert_eq!(Key::of(&LibraryProduct { k: 0, ..product }), None);
        assert_eq!(Key::of(&LibraryProduct { out: matrix(1, 3), ..product }), None);
        assert_eq!(size_of::<Heuristic>(), 96);
    }
}
