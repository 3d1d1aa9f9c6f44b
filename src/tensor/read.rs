//! Reading elements back: what makes a graph run.

use super::Tensor;
use super::create::host_vec;
use crate::device::cpu;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::shape::{Dims, position};

impl Tensor {
    /// Every element, in row-major order.
    ///
    /// # Errors
    /// `T` is not the dtype's type; what evaluation reports.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.needs_type::<T>("to_vec")?;
        let mut out = host_vec(self.numel())?;
        self.read("to_vec", &mut out)?;
        Ok(out)
    }

    /// Every element, in row-major order, into `out`.
    ///
    /// # Errors
    /// A slice of another length, `T` is not the dtype's type; what evaluation reports.
    pub fn copy_to_slice<T: Element>(&self, out: &mut [T]) -> Result<()> {
        if out.len() != self.numel() {
            let reason = format!("the slice holds {} elements, the tensor {}", out.len(), self.numel());
            return Err(Error::shape("copy_to_slice", self.shape(), reason));
        }
        self.read("copy_to_slice", out)
    }

    /// The only element.
    ///
    /// # Errors
    /// More or fewer elements than one; otherwise as [`Tensor::to_vec`].
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.numel() != 1 {
            return Err(Error::shape("item", self.shape(), format!("{} elements, not one", self.numel())));
        }
        let mut out = [T::default()];
        self.read("item", &mut out)?;
        Ok(out[0])
    }

    /// The element of a scalar.
    ///
    /// # Errors
    /// Rank other than 0; otherwise as [`Tensor::to_vec`].
    pub fn to_vec0<T: Element>(&self) -> Result<T> {
        self.needs_rank("to_vec0", 0)?;
        self.item()
    }

    /// The elements of a vector.
    ///
    /// # Errors
    /// Rank other than 1; otherwise as [`Tensor::to_vec`].
    pub fn to_vec1<T: Element>(&self) -> Result<Vec<T>> {
        self.needs_rank("to_vec1", 1)?;
        self.to_vec()
    }

    /// The rows of a matrix.
    ///
    /// # Errors
    /// Rank other than 2; otherwise as [`Tensor::to_vec`].
    pub fn to_vec2<T: Element>(&self) -> Result<Vec<Vec<T>>> {
        self.needs_rank("to_vec2", 2)?;
        Ok(rows(self.to_vec()?, self.dims()[0], self.dims()[1]))
    }

    /// The matrices of a tensor of rank 3.
    ///
    /// # Errors
    /// Rank other than 3; otherwise as [`Tensor::to_vec`].
    pub fn to_vec3<T: Element>(&self) -> Result<Vec<Vec<Vec<T>>>> {
        self.needs_rank("to_vec3", 3)?;
        let [a, b, c] = [self.dims()[0], self.dims()[1], self.dims()[2]];
        Ok(rows(self.to_vec()?, a, b * c).into_iter().map(|m| rows(m, b, c)).collect())
    }

    /// This tensor on another device.
    ///
    /// # Errors
    /// A device that this version does not know.
    pub fn to_device(&self, device: &crate::device::Device) -> Result<Tensor> {
        if device == self.device() {
            return self.unchanged();
        }
        Err(Error::DeviceUnavailable { device: device.to_string(), reason: "tensors cannot be moved there yet".into() })
    }

    fn needs_rank(&self, op: &'static str, rank: usize) -> Result<()> {
        if self.rank() == rank {
            return Ok(());
        }
        Err(Error::shape(op, self.shape(), format!("rank {} where {rank} is wanted", self.rank())))
    }

    fn needs_type<T: Element>(&self, op: &'static str) -> Result<()> {
        if T::DTYPE == self.dtype() {
            return Ok(());
        }
        let hint = format!("ask for {}, or convert with to_dtype(DType::{:?})", self.dtype(), T::DTYPE);
        Err(Error::dtype(op, self.dtype(), hint))
    }

    fn read<T: Element>(&self, op: &'static str, out: &mut [T]) -> Result<()> {
        self.needs_type::<T>(op)?;
        if out.is_empty() {
            return Ok(());
        }
        let mut layout = self.layout();
        if layout.base.0.depth() > 0 {
            // The view decides what has to be computed at all.
            self.eval()?;
            layout = self.layout();
        }
        let Some(storage) = layout.base.0.storage() else {
            return Err(Error::internal("tensor::read", "an evaluated tensor has no elements"));
        };
        let (mut extents, mut strides) = (Dims::from_slice(self.dims()).unwrap_or_default(), layout.strides);
        crate::schedule::collapse(&mut extents, &mut [&mut strides]);
        let row = extents.last().copied().unwrap_or(1);
        let step = strides.last().copied().unwrap_or(1);
        for (i, chunk) in out.chunks_mut(row).enumerate() {
            let start = layout.offset + position(i * row, &extents, &strides);
            cpu::download(&storage, start, step, chunk);
        }
        Ok(())
    }
}

fn rows<T: Clone>(values: Vec<T>, count: usize, len: usize) -> Vec<Vec<T>> {
    (0..count).map(|i| values[i * len..(i + 1) * len].to_vec()).collect()
}
