//! Reading elements back: what makes a graph run.

use super::Tensor;
use super::create::host_vec;
use crate::device::gpu::readback::Pending;
use crate::device::{Device, Kind, Storage, cpu, read_bytes};
use crate::dtype::Element;
use crate::engine::{self, Purpose};
use crate::error::{Error, Result};
use crate::graph::{Node, Track, is_recording};
use crate::shape::{Dims, Strides, position};
use std::panic::Location;
use std::sync::Arc;

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

    /// Every element, in row-major order, to be waited for: the device works on meanwhile.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn to_vec_async<T: Element>(&self) -> Result<Readback<T>> {
        self.needs_type::<T>("to_vec_async")?;
        let Kind::Gpu(gpu) = &self.device().0 else { return Ok(Readback(State::Ready(self.to_vec()?))) };
        if self.numel() == 0 {
            return Ok(Readback(State::Ready(Vec::new())));
        }
        let (storage, start) = self.stretch(Purpose::Later)?;
        let pending = Pending::new(gpu, storage, start * size_of::<T>(), self.numel() * size_of::<T>())?;
        Ok(Readback(State::Pending(pending, host_vec(self.numel())?)))
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

    /// This tensor on another device. Evaluates it, and copies the elements by way of the host.
    ///
    /// Between the CPU and a GPU that shares its memory (Apple's) nothing is copied where whole pages are concerned, from
    /// 256 KiB on: both tensors are the same memory, which stays until both are gone, and counts where it was allocated.
    ///
    /// # Errors
    /// A dtype that the device does not have; derivatives, which do not cross devices; what evaluation
    /// reports.
    #[track_caller]
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        if device == self.device() {
            return self.unchanged();
        }
        device.needs_support("to_device", self.dtype())?;
        if is_recording() && self.0.track() != Track::Constant {
            let reason = format!("gradients do not flow from {device} back to {}; detach() first", self.device());
            return Err(Error::NoGradient { op: "to_device", reason });
        }
        if self.numel() == 0 {
            return Tensor::empty(*self.shape(), self.dtype(), device);
        }
        let (storage, start) = self.stretch(Purpose::Reading)?;
        let size = self.dtype().size();
        let moved = device.bring(self.device(), &storage, start * size, self.numel() * size)?;
        let node = Node::realized(moved, self.shape(), self.dtype(), device, Location::caller());
        Ok(Tensor(node))
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
        if let Kind::Gpu(gpu) = &self.device().0 {
            let (storage, start) = self.stretch(Purpose::Reading)?;
            return read_bytes(out, |bytes| gpu.download(&storage, start * size_of::<T>(), bytes));
        }
        let Strided { storage, extents, strides, offset } = self.evaluated(Purpose::Reading)?;
        let row = extents.last().copied().unwrap_or(1);
        let step = strides.last().copied().unwrap_or(1);
        for (i, chunk) in out.chunks_mut(row).enumerate() {
            let start = offset + position(i * row, &extents, &strides);
            cpu::download(&storage, start, step, chunk)?;
        }
        Ok(())
    }

    /// The elements, evaluated: where they lie, with as few loops as can be.
    fn evaluated(&self, purpose: Purpose) -> Result<Strided> {
        let mut layout = self.layout();
        if layout.base.0.depth() > 0 {
            // The view decides what has to be computed at all.
            engine::evaluate(std::slice::from_ref(&self.0), purpose)?;
            layout = self.layout();
        }
        let Some(storage) = layout.base.0.storage() else {
            return Err(Error::internal("tensor::read", "an evaluated tensor has no elements"));
        };
        let (mut extents, mut strides) = (Dims::from_slice(self.dims()).unwrap_or_default(), layout.strides);
        crate::schedule::collapse(&mut extents, &mut [&mut strides]);
        Ok(Strided { storage, extents, strides, offset: layout.offset })
    }

    /// The elements, evaluated, in one stretch of memory in row-major order: copied where they are not. And
    /// where it starts, in elements.
    fn stretch(&self, purpose: Purpose) -> Result<(Arc<Storage>, usize)> {
        let Strided { storage, extents, strides, offset } = self.evaluated(purpose)?;
        if extents.is_empty() || (extents.len() == 1 && (strides[0] == 1 || extents[0] == 1)) {
            return Ok((storage, offset as usize));
        }
        let copy = self.detach().contiguous()?.evaluated(purpose)?;
        Ok((copy.storage, copy.offset as usize))
    }
}

/// Elements in memory, walked by loops.
struct Strided {
    storage: Arc<Storage>,
    extents: Dims<usize>,
    strides: Strides,
    offset: isize,
}

/// Elements on their way from a device: see [`Tensor::to_vec_async`].
pub struct Readback<T>(State<T>);

enum State<T> {
    Ready(Vec<T>),
    /// And where they will go.
    Pending(Pending, Vec<T>),
}

impl<T: Element> Readback<T> {
    /// Whether [`Readback::wait`] would return at once.
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            State::Ready(_) => true,
            State::Pending(pending, _) => pending.is_ready(),
        }
    }

    /// The elements.
    ///
    /// # Errors
    /// An index that was out of range; a device that fails.
    pub fn wait(self) -> Result<Vec<T>> {
        match self.0 {
            State::Ready(values) => Ok(values),
            State::Pending(pending, mut values) => {
                read_bytes(&mut values, |bytes| pending.wait(bytes))?;
                Ok(values)
            }
        }
    }
}

fn rows<T: Clone>(values: Vec<T>, count: usize, len: usize) -> Vec<Vec<T>> {
    (0..count).map(|i| values[i * len..(i + 1) * len].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::fake::Fake;
    use crate::dtype::DType;

    #[test]
    fn elements_come_and_go() -> Result<()> {
        let (driver, cpu) = (Fake::new(), Device::cpu());
        let device = driver.device();
        let x = Tensor::arange(0i32, 12, &cpu)?.reshape((3, 4))?;
        let moved = x.to_device(&device)?;
        assert_eq!((moved.device(), driver.log()), (&device, "write".into()));
        assert_eq!(moved.to_vec2::<i32>()?, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]);
        // What lies in one stretch is read where it is.
        assert_eq!(moved.narrow(0, 1, 2)?.to_vec::<i32>()?, [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(moved.narrow(0, 2, 1)?.to_device(&cpu)?.to_vec::<i32>()?, [8, 9, 10, 11]);
        let columns = x.transpose(0, 1)?.to_device(&device)?;
        assert_eq!(columns.to_device(&Fake::new().device())?.to_vec::<i32>()?, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(Tensor::zeros((0, 3), DType::F16, &cpu)?.to_device(&device)?.dims(), [0, 3]);
        let halves = Tensor::linspace(0.0, 1.0, 3, DType::F16, &device)?;
        assert_eq!(halves.to_vec::<half::f16>()?, [0.0, 0.5, 1.0].map(half::f16::from_f32));
        Ok(())
    }

    #[test]
    fn a_readback_is_waited_for() -> Result<()> {
        let driver = Fake::new();
        let x = Tensor::from_slice(&[true, false, true], 3, &driver.device())?;
        let readback = x.narrow(0, 1, 2)?.to_vec_async::<bool>()?;
        drop(x);
        assert!(!readback.is_ready());
        assert_eq!(driver.log(), "write | copies commit");
        assert_eq!(readback.wait()?, [false, true]);
        let here = Tensor::from_slice(&[1f32, 2.0], 2, &Device::cpu())?.to_vec_async::<f32>()?;
        assert!(here.is_ready());
        assert_eq!(here.wait()?, [1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn f64_stays_on_the_cpu() -> Result<()> {
        let device = Fake::new().device();
        let here = Tensor::scalar(1f64, &Device::cpu())?;
        let there = Tensor::scalar(1f32, &device)?;
        assert!(!device.supports(DType::F64) && Device::cpu().supports(DType::F64));
        let refused = [
            Tensor::scalar(1f64, &device),
            Tensor::zeros(3, DType::F64, &device),
            Tensor::zeros(0, DType::F64, &device),
            Tensor::randn(3, DType::F64, &device),
            here.to_device(&device),
            there.to_dtype(DType::F64),
        ];
        for result in refused {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("not defined for f64; fake has no f64; use DType::F32"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn derivatives_do_not_cross() -> Result<()> {
        let device = Fake::new().device();
        let x = crate::graph::Node::alias(&Tensor::scalar(1f32, &Device::cpu())?.0, 1, Location::caller());
        let x = Tensor(x);
        assert!(matches!(x.to_device(&device), Err(Error::NoGradient { op: "to_device", .. })));
        assert_eq!(x.detach().to_device(&device)?.item::<f32>()?, 1.0);
        Ok(())
    }
}
