//! Products of a few vectors with a matrix: bound by the reading of the matrix, which is therefore
//! not packed, but read once, converted and multiplied in one go.

use super::pack::{PREFETCH, Storage, View};
use super::simd::{Octet, Scalar, prefetch};

/// The most vectors that count as few.
pub const MAX_VECTORS: usize = 4;

/// Values of k that are worked on at once; the vectors' part of them stays in the cache.
const DEPTH: usize = 4096;

/// Slots of scratch that [`thin`] needs: a part of each vector, and of one lane of the matrix.
pub const SCRATCH: usize = (MAX_VECTORS + 1) * DEPTH;

/// `out[v][lane] = sum over k of x[v][k] * y[lane][k]`.
pub struct Thin<T> {
    /// The vectors, at most [`MAX_VECTORS`].
    pub x: View,
    /// The matrix; its `k` is that of the vectors.
    pub y: View,
    /// Room for all sums.
    pub out: *mut T,
    /// [`SCRATCH`] slots.
    pub scratch: *mut T,
}

/// Computes a [`Thin`] product.
///
/// # Safety
///
/// The instruction set of `O`; every element of the operands readable as `S`; `out` and `scratch`
/// as large as they are said to be and used by nobody else.
#[inline(always)]
pub unsafe fn thin<O: Octet, S: Storage<O>>(args: &Thin<O::Scalar>)
where
    O::Scalar: Storage<O>,
{
    // SAFETY: all offsets are those of vectors below `vectors`, lanes below `lanes` and values of k
    // below `k`; a part has at most DEPTH values, which is what each piece of the scratch holds.
    unsafe {
        for i in 0..args.x.lanes * args.y.lanes {
            args.out.add(i).write(O::Scalar::default());
        }
        for start in (0..args.y.k).step_by(DEPTH) {
            let depth = DEPTH.min(args.y.k - start);
            for v in 0..args.x.lanes {
                let x =
                    args.x.ptr.cast::<S>().offset(v as isize * args.x.lane_stride + start as isize * args.x.k_stride);
                widen::<O, S>(x, args.x.k_stride, depth, args.scratch.add(v * DEPTH));
            }
            let y = args.y.ptr.cast::<S>().offset(start as isize * args.y.k_stride);
            if args.y.lane_stride == 1 {
                by_lanes::<O, S>(args, y, depth);
            } else {
                by_dots::<O, S>(args, y, depth);
            }
        }
    }
}

/// Copies `n` elements, `stride` apart, to `out` as scalars.
#[inline(always)]
unsafe fn widen<O: Octet, S: Storage<O>>(p: *const S, stride: isize, n: usize, out: *mut O::Scalar) {
    let octets = if stride == 1 { n / 8 * 8 } else { 0 };
    // SAFETY: the caller vouches for `n` elements and `n` slots, and no index reaches `n`.
    unsafe {
        for i in (0..octets).step_by(8) {
            S::steps(p.add(i)).store(out.add(i));
        }
        for i in octets..n {
            out.add(i).write(S::slot(p.offset(i as isize * stride), 0, 1));
        }
    }
}

/// Lanes are neighbours in memory: rows of the matrix, four at a time, are added to the sums.
#[inline(always)]
unsafe fn by_lanes<O: Octet, S: Storage<O>>(args: &Thin<O::Scalar>, y: *const S, depth: usize) {
    let fours = depth / 4 * 4;
    // SAFETY: the steps passed on are below `depth`.
    unsafe {
        for step in (0..fours).step_by(4) {
            add_rows::<O, S, 4>(args, y, step);
        }
        for step in fours..depth {
            add_rows::<O, S, 1>(args, y, step);
        }
    }
}

/// Adds `R` rows of the matrix, from `step` on, times the vectors' values to the sums.
#[inline(always)]
unsafe fn add_rows<O: Octet, S: Storage<O>, const R: usize>(args: &Thin<O::Scalar>, y: *const S, step: usize) {
    let octets = args.y.lanes / 8 * 8;
    // SAFETY: row `step + r` is inside the matrix, and is read at lanes below `lanes`; the vectors'
    // values lie DEPTH apart in the scratch and the sums `lanes` apart in `out`.
    unsafe {
        let mut rows = [y; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = y.offset((step + r) as isize * args.y.k_stride);
        }
        for lane in (0..octets).step_by(8) {
            let mut values = [O::zero(); R];
            for (value, row) in values.iter_mut().zip(&rows) {
                prefetch(row.add(lane).wrapping_offset(args.y.k_stride.wrapping_mul(PREFETCH)));
                *value = S::steps(row.add(lane));
            }
            for v in 0..args.x.lanes {
                let (x, out) = (args.scratch.add(v * DEPTH + step), args.out.add(v * args.y.lanes + lane));
                let mut sum = O::load(out);
                for (r, &value) in values.iter().enumerate() {
                    sum = O::splat(x.add(r)).mul_add(value, sum);
                }
                sum.store(out);
            }
        }
        for lane in octets..args.y.lanes {
            for v in 0..args.x.lanes {
                let (x, out) = (args.scratch.add(v * DEPTH + step), args.out.add(v * args.y.lanes + lane));
                for (r, row) in rows.iter().enumerate() {
                    out.write(x.add(r).read().mul_add(S::slot(row.add(lane), 0, 1), out.read()));
                }
            }
        }
    }
}

/// Any other layout: each lane's dot products with the vectors.
#[inline(always)]
unsafe fn by_dots<O: Octet, S: Storage<O>>(args: &Thin<O::Scalar>, y: *const S, depth: usize)
where
    O::Scalar: Storage<O>,
{
    // SAFETY: lanes are below `lanes`; the last piece of the scratch holds DEPTH slots.
    unsafe {
        let gathered = args.scratch.add(MAX_VECTORS * DEPTH);
        for lane in 0..args.y.lanes {
            let row = y.offset(lane as isize * args.y.lane_stride);
            if args.y.k_stride != 1 {
                widen::<O, S>(row, args.y.k_stride, depth, gathered);
            }
            for v in 0..args.x.lanes {
                let (x, out) = (args.scratch.add(v * DEPTH), args.out.add(v * args.y.lanes + lane));
                let sum = match args.y.k_stride {
                    1 => dot::<O, S>(x, row, depth),
                    _ => dot::<O, O::Scalar>(x, gathered, depth),
                };
                out.write(out.read().plus(sum));
            }
        }
    }
}

/// The dot product of `n` scalars and `n` neighbouring elements, over 32 interleaved sums.
#[inline(always)]
unsafe fn dot<O: Octet, S: Storage<O>>(x: *const O::Scalar, y: *const S, n: usize) -> O::Scalar {
    let (wide, octets) = (n / 32 * 32, n / 8 * 8);
    // SAFETY: both runs have `n` values, and no index reaches `n`.
    unsafe {
        let mut sums = [O::zero(); 4];
        for i in (0..wide).step_by(32) {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = O::load(x.add(i + j * 8)).mul_add(S::steps(y.add(i + j * 8)), *sum);
            }
        }
        for i in (wide..octets).step_by(8) {
            sums[0] = O::load(x.add(i)).mul_add(S::steps(y.add(i)), sums[0]);
        }
        let mut lanes = [O::Scalar::default(); 8];
        sums[0].plus(sums[1]).plus(sums[2].plus(sums[3])).store(lanes.as_mut_ptr());
        let mut total = lanes.into_iter().fold(O::Scalar::default(), O::Scalar::plus);
        for i in octets..n {
            total = x.add(i).read().mul_add(S::slot(y.add(i), 0, 1), total);
        }
        total
    }
}
