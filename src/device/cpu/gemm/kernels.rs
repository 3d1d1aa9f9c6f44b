//! The register-tiled micro-kernels, and which one serves which dtype on which machine.

#[cfg(target_arch = "x86_64")]
use super::pack::Paired;
use super::pack::{Storage, View, pack};
#[cfg(target_arch = "x86_64")]
use super::simd::{Bf16Dot, Octet};
use super::simd::{Lanes, Scalar, Simd, prefetch};
use super::thin::{Thin, thin};
use crate::device::cpu::isa::Isa;
use crate::dtype::DType;
use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The functions that compute a product, all for one dtype and instruction set.
#[derive(Clone, Copy)]
pub struct Kernel<T> {
    /// Rows of the register tile, and lanes of an A panel.
    pub mr: usize,
    /// Columns of the register tile, and lanes of a B panel.
    pub nr: usize,
    /// Values of k to a step.
    pub fold: usize,
    /// Multiplies two panels: `(steps, a, b, c, row stride of c, whether to overwrite c)`.
    pub tile: unsafe fn(usize, *const T, *const T, *mut T, usize, bool),
    /// Packs rows of A.
    pub pack_a: unsafe fn(&View, *mut T),
    /// Packs columns of B.
    pub pack_b: unsafe fn(&View, *mut T),
    /// Multiplies a few vectors with a matrix that is not packed.
    pub thin: unsafe fn(&Thin<T>),
}

/// A type that products are summed in, with its kernels.
pub trait Accumulator: Scalar {
    /// The kernel for operands of `dtype`, one that is summed in `Self`, on a machine that has `isa`.
    fn kernel(isa: Isa, dtype: DType) -> Kernel<Self>;
}

/// Adds the product of an A panel and a B panel to the `MR` x `NV * LANES` tile at `c`, or stores it.
///
/// # Safety
///
/// The instruction set of `V`; panels of `steps` steps at `a` and `b`; the tile's rows, `stride`
/// apart, at `c`.
#[inline(always)]
unsafe fn tile<V: Simd, const MR: usize, const NV: usize>(
    steps: usize,
    mut a: *const V::Scalar,
    mut b: *const V::Scalar,
    c: *mut V::Scalar,
    stride: usize,
    overwrite: bool,
) {
    // SAFETY: step by step the panels are read in order; the tile is touched inside its bounds.
    unsafe {
        if !overwrite {
            (0..MR).for_each(|i| prefetch(c.add(i * stride)));
        }
        let mut sums = [[V::zero(); NV]; MR];
        for _ in 0..steps {
            let mut columns = [V::zero(); NV];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = V::load(b.add(j * V::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = V::splat(a.add(i));
                for (sum, &column) in row.iter_mut().zip(&columns) {
                    *sum = x.mul_add(column, *sum);
                }
            }
            a = a.add(MR);
            b = b.add(NV * V::LANES);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let at = c.add(i * stride + j * V::LANES);
                if overwrite { sum.store(at) } else { V::load(at).plus(sum).store(at) }
            }
        }
    }
}

/// Gives [`tile`] entry points that are compiled for an instruction set.
#[cfg(target_arch = "x86_64")]
macro_rules! tile_for {
    ($($name:ident: $features:literal;)+) => {$(
        #[doc = concat!("[`tile`] with ", $features, ".")]
        #[target_feature(enable = $features)]
        unsafe fn $name<V: Simd, const MR: usize, const NV: usize>(
            steps: usize,
            a: *const V::Scalar,
            b: *const V::Scalar,
            c: *mut V::Scalar,
            stride: usize,
            overwrite: bool,
        ) {
            // SAFETY: the same contract.
            unsafe { tile::<V, MR, NV>(steps, a, b, c, stride, overwrite) }
        }
    )+};
}

#[cfg(target_arch = "x86_64")]
tile_for! {
    tile_avx2: "avx2,fma";
    tile_avx512: "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma";
    tile_bf16_dot: "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma";
}

/// [`pack`] with AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_avx2<O: Octet, S: Storage<O>, const W: usize>(view: &View, out: *mut O::Scalar) {
    // SAFETY: the same contract.
    unsafe { pack::<O, S, W>(view, out) }
}

/// [`thin`] with AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn thin_avx2<O: Octet, S: Storage<O>>(args: &Thin<O::Scalar>)
where
    O::Scalar: Storage<O>,
{
    // SAFETY: the same contract.
    unsafe { thin::<O, S>(args) }
}

/// A [`Kernel`]: the tile function with its vector and sizes, the packing and thin functions with
/// theirs, the type packed from and the type that the thin product reads.
macro_rules! kernel {
    ($tile:ident::<$v:ty, $mr:expr, $nv:literal>, $pack:ident, $thin:ident, $o:ty, $packed:ty, $stored:ty) => {
        Kernel {
            mr: $mr,
            nr: $nv * <$v as Simd>::LANES,
            fold: <$packed as Storage<$o>>::FOLD,
            tile: $tile::<$v, { $mr }, $nv>,
            pack_a: $pack::<$o, $packed, { $mr }>,
            pack_b: $pack::<$o, $packed, { $nv * <$v as Simd>::LANES }>,
            thin: $thin::<$o, $stored>,
        }
    };
}

/// Rows of the plain f32 tile, by the number of vector registers: 32 of NEON, 16 of SSE.
const PLAIN_ROWS: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

/// The f32 kernel that converts from `$s`.
macro_rules! f32_kernel {
    ($isa:expr, $s:ty) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => kernel!(tile_avx512::<__m512, 12, 2>, pack_avx2, thin_avx2, __m256, $s, $s),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => kernel!(tile_avx2::<__m256, 6, 2>, pack_avx2, thin_avx2, __m256, $s, $s),
            _ => kernel!(tile::<Lanes<f32>, PLAIN_ROWS, 1>, pack, thin, Lanes<f32>, $s, $s),
        }
    };
}

impl Accumulator for f32 {
    fn kernel(isa: Isa, dtype: DType) -> Kernel<f32> {
        match dtype {
            DType::F16 => f32_kernel!(isa, f16),
            #[cfg(target_arch = "x86_64")]
            DType::BF16 if isa.has_bf16_dot() => {
                kernel!(tile_bf16_dot::<Bf16Dot, 12, 2>, pack_avx2, thin_avx2, __m256, Paired, bf16)
            }
            DType::BF16 => f32_kernel!(isa, bf16),
            _ => f32_kernel!(isa, f32),
        }
    }
}

impl Accumulator for f64 {
    fn kernel(isa: Isa, _dtype: DType) -> Kernel<f64> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => kernel!(tile_avx512::<__m512d, 12, 2>, pack_avx2, thin_avx2, Lanes<f64>, f64, f64),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => kernel!(tile_avx2::<__m256d, 6, 2>, pack_avx2, thin_avx2, Lanes<f64>, f64, f64),
            _ => kernel!(tile::<Lanes<f64>, 4, 1>, pack, thin, Lanes<f64>, f64, f64),
        }
    }
}

macro_rules! int_accumulator {
    ($($t:ident)+) => {$(
        impl Accumulator for $t {
            fn kernel(isa: Isa, _dtype: DType) -> Kernel<$t> {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 | Isa::Avx512 => {
                        kernel!(tile_avx2::<Lanes<$t>, 4, 2>, pack_avx2, thin_avx2, Lanes<$t>, $t, $t)
                    }
                    _ => kernel!(tile::<Lanes<$t>, 4, 1>, pack, thin, Lanes<$t>, $t, $t),
                }
            }
        }
    )+};
}

int_accumulator!(i64 i32 u32 u8);
