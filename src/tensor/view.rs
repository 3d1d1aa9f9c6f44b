//! Views: other readings of the same elements. Nothing is copied; strides compose when a view of a
//! view is made, and what strides cannot say becomes index arithmetic in the kernel that reads it.

use super::{Dim, Tensor};
use crate::error::{Error, Result};
use crate::graph::{Op, Track, View, is_recording};
use crate::shape::{Dims, IntoShape, Shape, Strides};
use std::borrow::Borrow;
use std::ops::{Bound, RangeBounds};

/// How a tensor reads the row-major elements of `base`.
pub(crate) struct Layout {
    pub base: Tensor,
    pub strides: Strides,
    pub offset: isize,
}

impl Tensor {
    /// This tensor as a reading of its base: itself, unless it is a pending view. Views with a history
    /// are bases themselves, or it would pass them by.
    pub(crate) fn layout(&self) -> Layout {
        if let Op::View(view) = self.0.op
            && self.0.depth() > 0
            && self.0.track() == Track::Constant
        {
            let base = self.0.state().inputs.first().cloned();
            if let Some(base) = base.filter(|base| base.track() == Track::Constant) {
                return Layout { base: Tensor(base), strides: view.strides, offset: view.offset };
            }
        }
        Layout { base: self.clone(), strides: self.shape().contiguous_strides(), offset: 0 }
    }

    /// Whether its elements have to be computed: a view of what is there is read in place.
    pub(crate) fn is_pending(&self) -> bool {
        self.layout().base.0.depth() > 0
    }

    /// What an op with nothing to do returns: this tensor, without its history where none is recorded.
    #[track_caller]
    pub(super) fn unchanged(&self) -> Result<Tensor> {
        Ok(if is_recording() { self.clone() } else { self.detach() })
    }

    /// A view of `layout.base`.
    #[track_caller]
    fn view(&self, shape: Shape, layout: Layout) -> Result<Tensor> {
        let Layout { base, strides, offset } = layout;
        let whole = base.shape() == &shape && offset == 0 && shape.is_contiguous(&strides);
        if whole {
            return base.unchanged();
        }
        let view = Op::View(View { strides, offset });
        Tensor::record(view, &[&base], shape, self.dtype(), self.device())
    }

    /// The same elements in another shape of as many. One size may be left to be found: see
    /// [`Tensor::reshape_infer`].
    ///
    /// # Errors
    /// Another number of elements.
    #[track_caller]
    pub fn reshape(&self, shape: impl IntoShape) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if shape.numel() != self.numel() {
            let reason = format!("{} elements cannot become {}", self.numel(), shape.numel());
            return Err(Error::shapes("reshape", self.shape(), &shape, reason));
        }
        if shape == *self.shape() {
            return self.unchanged();
        }
        let layout = self.layout();
        match reshaped(self.dims(), &layout.strides, shape.dims()) {
            Some(strides) => self.view(shape, Layout { strides, ..layout }),
            None => {
                let strides = shape.contiguous_strides();
                self.view(shape, Layout { base: self.clone(), strides, offset: 0 })
            }
        }
    }

    /// [`Tensor::reshape`] with sizes of which one may be -1: what is left.
    ///
    /// # Errors
    /// Several -1, other negative sizes, sizes that do not divide the number of elements.
    #[track_caller]
    pub fn reshape_infer(&self, sizes: &[isize]) -> Result<Tensor> {
        let bad = |reason: String| Err(Error::shape("reshape", self.shape(), reason));
        let unknown = sizes.iter().filter(|&&s| s == -1).count();
        if unknown > 1 || sizes.iter().any(|&s| s < -1) {
            return bad(format!("sizes {sizes:?}: at most one may be -1, and none less"));
        }
        let known = sizes.iter().filter(|&&s| s >= 0).try_fold(1usize, |n, &s| n.checked_mul(s as usize));
        let rest = match known {
            Some(known) if known > 0 && self.numel().is_multiple_of(known) => self.numel() / known,
            _ if unknown == 0 => 0,
            Some(0) => return bad(format!("sizes {sizes:?}: anything could stand for -1 beside a 0")),
            _ => return bad(format!("sizes {sizes:?} do not divide {} elements", self.numel())),
        };
        let sizes: Vec<usize> = sizes.iter().map(|&s| if s == -1 { rest } else { s as usize }).collect();
        self.reshape(sizes)
    }

    /// All dimensions in one.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn flatten_all(&self) -> Result<Tensor> {
        self.reshape(self.numel())
    }

    /// Dimensions `first ..= last` in one.
    ///
    /// # Errors
    /// No such dimensions, or `last` before `first`.
    #[track_caller]
    pub fn flatten(&self, first: impl Dim, last: impl Dim) -> Result<Tensor> {
        let (first, last) = (first.of(self.shape(), "flatten")?, last.of(self.shape(), "flatten")?);
        if last < first {
            return Err(Error::shape("flatten", self.shape(), format!("dimension {last} stands before {first}")));
        }
        let dims = self.dims();
        let mut sizes = dims[..first].to_vec();
        sizes.push(dims[first..=last].iter().product());
        sizes.extend(&dims[last + 1..]);
        self.reshape(sizes)
    }

    /// `len` elements of a dimension, from `start` on.
    ///
    /// # Errors
    /// No such dimension, or a range that reaches beyond it.
    #[track_caller]
    pub fn narrow(&self, dim: impl Dim, start: usize, len: usize) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "narrow")?;
        let size = self.dims()[dim];
        if start.checked_add(len).is_none_or(|end| end > size) {
            let reason = format!("{len} elements from {start} do not fit dimension {dim} of size {size}");
            return Err(Error::shape("narrow", self.shape(), reason));
        }
        self.steps(dim, start, 1, len)
    }

    /// The elements `range` of a dimension, every `step`-th of them; a negative step walks backwards
    /// from the range's end. `x.slice(0, .., -1)` reverses.
    ///
    /// # Errors
    /// No such dimension, a range that reaches beyond it, a step of 0.
    #[track_caller]
    pub fn slice(&self, dim: impl Dim, range: impl RangeBounds<usize>, step: isize) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "slice")?;
        let size = self.dims()[dim];
        let start = match range.start_bound() {
            Bound::Included(&s) => Some(s),
            Bound::Excluded(&s) => s.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let end = match range.end_bound() {
            Bound::Included(&e) => e.checked_add(1),
            Bound::Excluded(&e) => Some(e),
            Bound::Unbounded => Some(size),
        };
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::shape("slice", self.shape(), "the range overflows"));
        };
        if step == 0 || start > end || end > size {
            let reason = format!("range {start}..{end} with step {step} does not fit dimension {dim} of size {size}");
            return Err(Error::shape("slice", self.shape(), reason));
        }
        let len = (end - start).div_ceil(step.unsigned_abs());
        let first = if step > 0 || len == 0 { start } else { end - 1 };
        self.steps(dim, first, step, len)
    }

    #[track_caller]
    fn steps(&self, dim: usize, first: usize, step: isize, len: usize) -> Result<Tensor> {
        let mut sizes: Dims<usize> = Dims::from_slice(self.dims()).unwrap_or_default();
        sizes[dim] = len;
        let mut layout = self.layout();
        layout.offset += first as isize * layout.strides[dim];
        layout.strides[dim] *= step;
        self.view(Shape::new(&sizes)?, layout)
    }

    /// One element of a dimension, which is dropped.
    ///
    /// # Errors
    /// No such dimension or element.
    #[track_caller]
    pub fn select(&self, dim: impl Dim, index: usize) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "select")?;
        if index >= self.dims()[dim] {
            let reason = format!("index {index} is out of range for dimension {dim} of size {}", self.dims()[dim]);
            return Err(Error::shape("select", self.shape(), reason));
        }
        self.narrow(dim, index, 1)?.squeeze(dim)
    }

    /// The dimensions in another order.
    ///
    /// # Errors
    /// An order that does not name every dimension once.
    #[track_caller]
    pub fn permute<D: Dim + Copy>(&self, order: impl AsRef<[D]>) -> Result<Tensor> {
        let order = order.as_ref().iter().map(|d| d.of(self.shape(), "permute")).collect::<Result<Vec<usize>>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.rank()) {
            return Err(Error::shape(
                "permute",
                self.shape(),
                format!("order {order:?} must name every dimension once"),
            ));
        }
        let mut layout = self.layout();
        let sizes: Vec<usize> = order.iter().map(|&d| self.dims()[d]).collect();
        let strides: Vec<isize> = order.iter().map(|&d| layout.strides[d]).collect();
        layout.strides = Dims::from_slice(&strides).unwrap_or_default();
        self.view(Shape::new(&sizes)?, layout)
    }

    /// Two dimensions exchanged.
    ///
    /// # Errors
    /// No such dimension.
    #[track_caller]
    pub fn transpose(&self, a: impl Dim, b: impl Dim) -> Result<Tensor> {
        let (a, b) = (a.of(self.shape(), "transpose")?, b.of(self.shape(), "transpose")?);
        let mut order: Vec<usize> = (0..self.rank()).collect();
        order.swap(a, b);
        self.permute(order)
    }

    /// The last two dimensions exchanged; a tensor of fewer dimensions as it is.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn t(&self) -> Result<Tensor> {
        if self.rank() < 2 { self.unchanged() } else { self.transpose(-2, -1) }
    }

    /// Without a dimension of size 1; a dimension of another size stays.
    ///
    /// # Errors
    /// No such dimension.
    #[track_caller]
    pub fn squeeze(&self, dim: impl Dim) -> Result<Tensor> {
        let dim = dim.of(self.shape(), "squeeze")?;
        if self.dims()[dim] != 1 {
            return self.unchanged();
        }
        self.reshape(self.shape().reduced(&[dim], false))
    }

    /// With a dimension of size 1 before `dim`; -1 appends one.
    ///
    /// # Errors
    /// No such place, or too many dimensions.
    #[track_caller]
    pub fn unsqueeze(&self, dim: isize) -> Result<Tensor> {
        let rank = self.rank() as isize;
        let at = if dim < 0 { dim + rank + 1 } else { dim };
        if !(0..=rank).contains(&at) {
            return Err(Error::DimOutOfRange {
                op: "unsqueeze",
                dim,
                rank: self.rank(),
                shape: Box::new(*self.shape()),
            });
        }
        let mut sizes = self.dims().to_vec();
        sizes.insert(at as usize, 1);
        self.reshape(sizes)
    }

    /// Repeated, without copying, to a shape that this one broadcasts to.
    ///
    /// # Errors
    /// A shape that this one does not broadcast to.
    #[track_caller]
    pub fn expand(&self, shape: impl IntoShape) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        if Shape::broadcast("expand", self.shape(), &shape)? != shape {
            return Err(Error::shapes("expand", self.shape(), &shape, "the first does not broadcast to the second"));
        }
        let mut layout = self.layout();
        let lead = shape.rank() - self.rank();
        let mut strides = Strides::filled(shape.rank(), 0);
        for (i, &stride) in layout.strides.iter().enumerate() {
            strides[lead + i] = if self.dims()[i] == shape.dims()[lead + i] { stride } else { 0 };
        }
        layout.strides = strides;
        self.view(shape, layout)
    }

    /// [`Tensor::expand`], by its NumPy name.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl IntoShape) -> Result<Tensor> {
        self.expand(shape)
    }

    /// A tensor whose elements lie in row-major order when it is evaluated: a view becomes a copy.
    ///
    /// # Errors
    /// None at present.
    #[track_caller]
    pub fn contiguous(&self) -> Result<Tensor> {
        let layout = self.layout();
        if layout.base.0.id() == self.0.id() {
            return self.unchanged();
        }
        Tensor::record(Op::Copy, &[self], *self.shape(), self.dtype(), self.device())
    }

    /// In a box of zeros: `padding` has, for each dimension, how many come before and how many after.
    ///
    /// # Errors
    /// Not one pair a dimension; too many elements.
    #[track_caller]
    pub fn pad(&self, padding: &[(usize, usize)]) -> Result<Tensor> {
        if padding.len() != self.rank() {
            let reason = format!("{} pairs of padding; give one a dimension", padding.len());
            return Err(Error::shape("pad", self.shape(), reason));
        }
        let sum =
            |(&size, &(before, after)): (&usize, &(usize, usize))| size.saturating_add(before).saturating_add(after);
        let sizes: Vec<usize> = self.dims().iter().zip(padding).map(sum).collect();
        let before: Vec<usize> = padding.iter().map(|&(before, _)| before).collect();
        self.pad_to(&before, Shape::new(&sizes)?)
    }

    /// In a box of zeros of `shape`, from coordinates `before` on.
    #[track_caller]
    pub(crate) fn pad_to(&self, before: &[usize], shape: Shape) -> Result<Tensor> {
        if shape == *self.shape() {
            return self.unchanged();
        }
        if self.numel() == 0 {
            return Tensor::zeros(shape, self.dtype(), self.device());
        }
        let before = Dims::from_slice(before).unwrap_or_default();
        Tensor::record(Op::Pad { before }, &[self], shape, self.dtype(), self.device())
    }

    /// Sliding windows of `size` elements along a dimension, one every `step` elements; the elements of
    /// a window become a new last dimension. Nothing is copied.
    ///
    /// # Errors
    /// No such dimension, or fewer elements than a window has; a size or step of 0; too many dimensions.
    #[track_caller]
    pub fn unfold(&self, dim: impl Dim, size: usize, step: usize) -> Result<Tensor> {
        self.windows("unfold", dim, size, step, 1)
    }

    /// [`Tensor::unfold`] with elements of a window `dilation` apart.
    #[track_caller]
    pub(crate) fn windows(
        &self,
        op: &'static str,
        dim: impl Dim,
        size: usize,
        step: usize,
        dilation: usize,
    ) -> Result<Tensor> {
        let dim = dim.of(self.shape(), op)?;
        let n = self.dims()[dim];
        if size == 0 || step == 0 || dilation == 0 {
            return Err(Error::arg(op, format!("size {size}, step {step} and dilation {dilation} must be positive")));
        }
        let span = (size - 1).saturating_mul(dilation).saturating_add(1);
        if span > n {
            let reason = format!("a window of {span} elements does not fit dimension {dim} of size {n}");
            return Err(Error::shape(op, self.shape(), reason));
        }
        let mut sizes = self.dims().to_vec();
        sizes[dim] = (n - span) / step + 1;
        sizes.push(size);
        let shape = Shape::new(&sizes)?;
        let mut layout = self.layout();
        let stride = layout.strides[dim];
        layout.strides[dim] = stride * step as isize;
        if !layout.strides.insert(sizes.len() - 1, stride * dilation as isize) {
            return Err(Error::shape(op, self.shape(), "too many dimensions"));
        }
        self.view(shape, layout)
    }

    /// Pieces of `size` along a dimension; the last may be smaller.
    ///
    /// # Errors
    /// No such dimension, a size of 0.
    #[track_caller]
    pub fn split(&self, size: usize, dim: impl Dim) -> Result<Vec<Tensor>> {
        let dim = dim.of(self.shape(), "split")?;
        if size == 0 {
            return Err(Error::arg("split", "pieces of size 0"));
        }
        let len = self.dims()[dim];
        (0..len.max(1)).step_by(size).map(|start| self.narrow(dim, start, size.min(len - start))).collect()
    }

    /// At most `count` pieces of equal size (but the last) along a dimension.
    ///
    /// # Errors
    /// No such dimension, no pieces.
    #[track_caller]
    pub fn chunk(&self, count: usize, dim: impl Dim) -> Result<Vec<Tensor>> {
        let dim = dim.of(self.shape(), "chunk")?;
        if count == 0 {
            return Err(Error::arg("chunk", "0 pieces"));
        }
        self.split(self.dims()[dim].div_ceil(count).max(1), dim)
    }

    /// The tensors one after another along a dimension.
    ///
    /// # Errors
    /// No tensors, dtypes or devices that differ, sizes that differ in another dimension.
    #[track_caller]
    pub fn cat<T: Borrow<Tensor>>(tensors: &[T], dim: impl Dim) -> Result<Tensor> {
        let Some(first) = tensors.first().map(Borrow::borrow) else {
            return Err(Error::arg("cat", "an empty list of tensors"));
        };
        let dim = dim.of(first.shape(), "cat")?;
        let mut sizes = first.dims().to_vec();
        sizes[dim] = 0;
        for tensor in tensors.iter().map(Borrow::borrow) {
            first.same_device("cat", tensor)?;
            first.same_dtype("cat", tensor)?;
            let same = |i: usize| i == dim || tensor.dims()[i] == first.dims()[i];
            if tensor.rank() != first.rank() || !(0..first.rank()).all(same) {
                let reason = format!("sizes must agree outside dimension {dim}");
                return Err(Error::shapes("cat", first.shape(), tensor.shape(), reason));
            }
            sizes[dim] = sizes[dim].saturating_add(tensor.dims()[dim]);
        }
        let parts: Vec<&Tensor> = tensors.iter().map(Borrow::borrow).filter(|t| t.numel() > 0).collect();
        let shape = Shape::new(&sizes)?;
        match parts[..] {
            [only] => only.unchanged(),
            _ => Tensor::record(Op::Cat { axis: dim as u8 }, &parts, shape, first.dtype(), first.device()),
        }
    }

    /// Tensors of one shape along a new dimension.
    ///
    /// # Errors
    /// No tensors, shapes, dtypes or devices that differ, no such dimension.
    #[track_caller]
    pub fn stack<T: Borrow<Tensor>>(tensors: &[T], dim: isize) -> Result<Tensor> {
        let Some(first) = tensors.first().map(Borrow::borrow) else {
            return Err(Error::arg("stack", "an empty list of tensors"));
        };
        if let Some(other) = tensors.iter().map(Borrow::borrow).find(|t| t.shape() != first.shape()) {
            return Err(Error::shapes("stack", first.shape(), other.shape(), "shapes must be equal"));
        }
        let rank = first.rank() as isize;
        let at = if dim < 0 { dim + rank + 1 } else { dim };
        if !(0..=rank).contains(&at) {
            return Err(Error::DimOutOfRange { op: "stack", dim, rank: first.rank(), shape: Box::new(*first.shape()) });
        }
        let parts = tensors.iter().map(|t| t.borrow().unsqueeze(at)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, at)
    }
}

/// Strides for `to` that read what `strides` read over `from`, if there are any: each run of new
/// dimensions must cover a run of old ones that memory walks as one.
fn reshaped(from: &[usize], strides: &[isize], to: &[usize]) -> Option<Strides> {
    if from.contains(&0) {
        return None;
    }
    let old: Vec<(usize, isize)> = from.iter().copied().zip(strides.iter().copied()).filter(|&(d, _)| d != 1).collect();
    let mut out = Strides::filled(to.len(), 0);
    let (mut o, mut n) = (0, 0);
    while n < to.len() {
        if to[n] == 1 {
            n += 1;
            continue;
        }
        // Grow both runs until they hold as many elements.
        let (first_old, first_new) = (o, n);
        let (mut old_count, mut new_count) = (old.get(o)?.0, to[n]);
        (o, n) = (o + 1, n + 1);
        while old_count != new_count {
            if old_count < new_count {
                let (dim, stride) = *old.get(o)?;
                if old[o - 1].1 != stride * dim as isize {
                    return None;
                }
                old_count *= dim;
                o += 1;
            } else {
                new_count *= to.get(n)?;
                n += 1;
            }
        }
        debug_assert!(first_old < o);
        let mut stride = old[o - 1].1;
        for i in (first_new..n).rev() {
            out[i] = if to[i] == 1 { 0 } else { stride };
            stride *= to[i] as isize;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::reshaped;

    #[test]
    fn reshaping_strides() {
        let r = |from: &[usize], strides: &[isize], to: &[usize]| reshaped(from, strides, to).map(|s| s.to_vec());
        assert_eq!(r(&[2, 3, 4], &[12, 4, 1], &[6, 4]), Some(vec![4, 1]));
        assert_eq!(r(&[2, 3, 4], &[12, 4, 1], &[24]), Some(vec![1]));
        assert_eq!(r(&[6, 4], &[4, 1], &[2, 1, 3, 4]), Some(vec![12, 0, 4, 1]));
        assert_eq!(r(&[3, 2], &[1, 3], &[6]), None);
        assert_eq!(r(&[3, 4], &[0, 1], &[3, 2, 2]), Some(vec![0, 2, 1]));
        assert_eq!(r(&[4], &[-1], &[2, 2]), Some(vec![-2, -1]));
    }
}
