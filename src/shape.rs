//! Shapes, strides and NumPy broadcasting.

use crate::error::{Error, Result};

/// The most dimensions that a tensor can have.
pub const MAX_RANK: usize = 8;

/// Up to [`MAX_RANK`] values of `T`, one a dimension, held inline.
#[derive(Clone, Copy)]
pub struct Dims<T> {
    len: u8,
    values: [T; MAX_RANK],
}

impl<T: Copy + Default> Dims<T> {
    /// No dimensions.
    pub fn new() -> Self {
        Dims { len: 0, values: [T::default(); MAX_RANK] }
    }

    /// The values of a slice; `None` when there are more than [`MAX_RANK`].
    pub fn from_slice(values: &[T]) -> Option<Self> {
        let mut dims = Self::new();
        dims.values.get_mut(..values.len())?.copy_from_slice(values);
        dims.len = values.len() as u8;
        Some(dims)
    }

    /// `len` copies of `value`; `len` is at most [`MAX_RANK`].
    pub(crate) fn filled(len: usize, value: T) -> Self {
        let mut dims = Self::new();
        dims.len = len as u8;
        dims.fill(value);
        dims
    }

    /// Inserts `value` before position `at`; false when there is no room.
    #[must_use]
    pub(crate) fn insert(&mut self, at: usize, value: T) -> bool {
        let len = self.len as usize;
        if len == MAX_RANK {
            return false;
        }
        self.values.copy_within(at..len, at + 1);
        self.values[at] = value;
        self.len += 1;
        true
    }

    /// Removes the value at `at`.
    pub(crate) fn delete(&mut self, at: usize) {
        self.remove(at);
    }

    /// Removes and returns the value at `at`.
    pub(crate) fn remove(&mut self, at: usize) -> T {
        let value = self[at];
        self.values.copy_within(at + 1..self.len as usize, at);
        self.len -= 1;
        self.values[self.len as usize] = T::default();
        value
    }
}

impl<T: Copy + Default> Default for Dims<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> std::ops::Deref for Dims<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[..self.len as usize]
    }
}

impl<T> std::ops::DerefMut for Dims<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len as usize]
    }
}

impl<T: PartialEq> PartialEq for Dims<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Dims<T> {}

impl<T: std::hash::Hash> std::hash::Hash for Dims<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Dims<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

/// Elements to step for one step along each dimension; 0 repeats, negative walks backwards.
pub type Strides = Dims<isize>;

/// Strides that walk loops of these extents straight on, in row-major order.
pub(crate) fn contiguous_strides(extents: &[usize]) -> Strides {
    let mut strides = Strides::filled(extents.len(), 0);
    let mut step = 1isize;
    for (stride, &extent) in strides.iter_mut().zip(extents).rev() {
        *stride = step;
        step *= extent.max(1) as isize;
    }
    strides
}

/// Where step `at` of loops over `extents`, counted in row-major order, lies in memory walked by `strides`.
pub(crate) fn position(at: usize, extents: &[usize], strides: &[isize]) -> isize {
    let mut rest = at;
    let mut position = 0;
    for (&extent, &stride) in extents.iter().zip(strides).rev() {
        position += (rest % extent) as isize * stride;
        rest /= extent;
    }
    position
}

/// The sizes of a tensor's dimensions, outermost first. Rank 0 is a scalar.
///
/// Build one from an integer, a tuple, an array, a slice or a `Vec` of `usize`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape(Dims<usize>);

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Self {
        Self::default()
    }

    /// A shape of these sizes.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or more elements than `isize::MAX / 8`.
    pub fn new(dims: &[usize]) -> Result<Self> {
        let inline = Dims::from_slice(dims).ok_or_else(|| {
            Error::arg("shape", format!("{} dimensions; at most {MAX_RANK} are supported", dims.len()))
        })?;
        let shape = Shape(inline);
        // Zero-sized dimensions are left out, so that no view of the shape can overflow either.
        let elements = dims.iter().filter(|&&d| d != 0).try_fold(1usize, |n, &d| n.checked_mul(d));
        match elements {
            Some(n) if n <= isize::MAX as usize / 8 => Ok(shape),
            _ => Err(Error::shape("shape", &shape, "too many elements")),
        }
    }

    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The number of elements: the product of the sizes, 1 for a scalar.
    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// Strides of the row-major layout.
    pub fn contiguous_strides(&self) -> Strides {
        contiguous_strides(self.dims())
    }

    /// Whether `strides` walk this shape's elements in row-major order.
    pub(crate) fn is_contiguous(&self, strides: &[isize]) -> bool {
        let own = self.contiguous_strides();
        self.0.iter().zip(own.iter().zip(strides)).all(|(&dim, (own, stride))| dim == 1 || own == stride)
    }

    /// The shape that two operands broadcast to, by NumPy's rule: aligned at the right, sizes equal
    /// or one of them 1.
    ///
    /// # Errors
    /// Sizes that differ and are not 1.
    pub fn broadcast(op: &'static str, lhs: &Shape, rhs: &Shape) -> Result<Shape> {
        if lhs == rhs {
            return Ok(*lhs);
        }
        let rank = lhs.rank().max(rhs.rank());
        let mut out = Dims::filled(rank, 1);
        for i in 0..rank {
            let (l, r) = (lhs.size_from_right(i), rhs.size_from_right(i));
            out[rank - 1 - i] = match (l, r) {
                (l, r) if l == r => l,
                (1, r) => r,
                (l, 1) => l,
                (l, r) => {
                    let reason = format!("sizes {l} and {r} in dimension {} do not broadcast", rank - 1 - i);
                    return Err(Error::shapes(op, lhs, rhs, reason));
                }
            };
        }
        Shape::new(&out)
    }

    /// Strides with which a contiguous tensor of this shape is read as `target`: 0 where it repeats.
    /// `self` must broadcast to `target`.
    pub(crate) fn broadcast_strides(&self, target: &Shape) -> Strides {
        let own = self.contiguous_strides();
        let lead = target.rank() - self.rank();
        let mut strides = Strides::filled(target.rank(), 0);
        for (i, &stride) in own.iter().enumerate() {
            strides[lead + i] = if self.dims()[i] == 1 { 0 } else { stride };
        }
        strides
    }

    /// The dimension meant by `dim`, which counts from the end when negative.
    ///
    /// # Errors
    /// No such dimension.
    pub fn dim(&self, op: &'static str, dim: isize) -> Result<usize> {
        let rank = self.rank() as isize;
        let at = if dim < 0 { dim + rank } else { dim };
        if (0..rank).contains(&at) {
            return Ok(at as usize);
        }
        Err(Error::DimOutOfRange { op, dim, rank: self.rank(), shape: Box::new(*self) })
    }

    /// This shape with the given axes set to 1 (`keep`) or left out.
    pub(crate) fn reduced(&self, axes: &[usize], keep: bool) -> Shape {
        let mut dims = Dims::new();
        for (i, &d) in self.dims().iter().enumerate() {
            let reduced = axes.contains(&i);
            if !reduced || keep {
                let pushed = dims.insert(dims.len(), if reduced { 1 } else { d });
                debug_assert!(pushed);
            }
        }
        Shape(dims)
    }

    fn size_from_right(&self, i: usize) -> usize {
        self.rank().checked_sub(i + 1).map_or(1, |at| self.dims()[at])
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, f)
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, f)
    }
}

/// What can be given where a shape is wanted: `4`, `(2, 3)`, `[2, 3]`, `&[2, 3][..]`, a `Vec`.
pub trait IntoShape {
    /// The shape.
    ///
    /// # Errors
    /// As [`Shape::new`].
    fn into_shape(self) -> Result<Shape>;
}

impl IntoShape for Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(self)
    }
}

impl IntoShape for &Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(*self)
    }
}

impl IntoShape for usize {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&[self])
    }
}

impl IntoShape for () {
    fn into_shape(self) -> Result<Shape> {
        Ok(Shape::scalar())
    }
}

impl IntoShape for &[usize] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}

impl IntoShape for Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}

impl IntoShape for &Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}

impl<const N: usize> IntoShape for [usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}

impl<const N: usize> IntoShape for &[usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}

macro_rules! tuple_shape {
    ($($t:ident $n:ident),+) => {
        impl IntoShape for ($($t,)+) {
            fn into_shape(self) -> Result<Shape> {
                let ($($n,)+) = self;
                Shape::new(&[$($n),+])
            }
        }
    };
}
type U = usize;
tuple_shape!(U a);
tuple_shape!(U a, U b);
tuple_shape!(U a, U b, U c);
tuple_shape!(U a, U b, U c, U d);
tuple_shape!(U a, U b, U c, U d, U e);
tuple_shape!(U a, U b, U c, U d, U e, U f);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_walk_strides() {
        let at: Vec<isize> = (0..6).map(|i| position(i, &[2, 3], &[1, 2])).collect();
        assert_eq!(at, [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn broadcasting_follows_numpy() {
        let shape = |d: &[usize]| Shape::new(d).unwrap();
        let both = |a: &[usize], b: &[usize]| Shape::broadcast("t", &shape(a), &shape(b));
        assert_eq!(both(&[4, 1, 3], &[5, 1]).unwrap(), shape(&[4, 5, 3]));
        assert_eq!(both(&[], &[2]).unwrap(), shape(&[2]));
        assert_eq!(both(&[0, 3], &[1]).unwrap(), shape(&[0, 3]));
        assert!(both(&[2], &[3]).is_err());
        assert_eq!(&*shape(&[3, 1]).broadcast_strides(&shape(&[2, 3, 5])), &[0, 1, 0]);
    }

    #[test]
    fn shapes_that_overflow_are_errors() {
        assert!(Shape::new(&[usize::MAX, 2]).is_err());
        assert!(Shape::new(&[usize::MAX, 0, 2]).is_err());
        assert!(Shape::new(&[1; 9]).is_err());
        assert_eq!(Shape::new(&[3, 0]).unwrap().numel(), 0);
    }
}
