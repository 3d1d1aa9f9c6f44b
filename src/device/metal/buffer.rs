//! Devices and raw buffers under Metal's names.

use crate::device::gpu::Gpu;
use crate::device::{BufferPool, Device, DeviceAlloc, Kind, Storage};
use crate::error::{Error, Result};
use std::ops::Deref;
use std::sync::Arc;

/// A [`Device`] that shares its memory with the host: an Apple GPU (or soft Metal, in tests).
///
/// ```
/// # fn main() -> tensorlogic::Result<()> {
/// use tensorlogic::device::{MetalBuffer, MetalDevice};
/// # let size = 1 << 20;
/// let Ok(device) = MetalDevice::new(0) else { return Ok(()) }; // no Apple GPU
///
/// let buffer = MetalBuffer::new_uninit_pooled(device.buffer_pool(), size)?; // recycled where possible
/// let buffer = MetalBuffer::new_uninit(device.metal_device(), size)?;       // always fresh
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetalDevice(Device);

impl MetalDevice {
    /// As [`Device::metal`].
    ///
    /// # Errors
    /// As there.
    pub fn new(ordinal: usize) -> Result<MetalDevice> {
        Device::metal(ordinal).map(MetalDevice)
    }

    /// The device as others know it.
    pub fn metal_device(&self) -> &Device {
        &self.0
    }
}

impl TryFrom<Device> for MetalDevice {
    type Error = Error;

    fn try_from(device: Device) -> Result<MetalDevice> {
        gpu(&device)?;
        Ok(MetalDevice(device))
    }
}

impl Deref for MetalDevice {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.0
    }
}

fn gpu(device: &Device) -> Result<&Arc<Gpu>> {
    match &device.0 {
        Kind::Gpu(gpu) if gpu.queue().unified().is_some() => Ok(gpu),
        _ => Err(Error::arg("MetalDevice", format!("{device} is no Metal device; use Device::metal(0)"))),
    }
}

/// Bytes in memory that a Metal device shares with the host.
///
/// Tensors allocate for themselves, always from the pool. A buffer is for bytes that come from elsewhere: the host
/// writes them in place, and [`Tensor::from_buffer`](crate::Tensor::from_buffer) computes with them without a copy.
#[derive(Debug)]
pub struct MetalBuffer(pub(crate) Storage);

impl MetalBuffer {
    /// `bytes` bytes with unspecified contents, from the pool of a [`MetalDevice`].
    ///
    /// # Errors
    /// Out of memory; the pool of another kind of device.
    pub fn new_uninit_pooled(pool: &BufferPool<DeviceAlloc>, bytes: usize) -> Result<MetalBuffer> {
        MetalBuffer(Storage::idle(pool, bytes)?).checked()
    }

    /// `bytes` zeros, from the pool of a [`MetalDevice`].
    ///
    /// # Errors
    /// As [`MetalBuffer::new_uninit_pooled`].
    pub fn new_zeros_pooled(pool: &BufferPool<DeviceAlloc>, bytes: usize) -> Result<MetalBuffer> {
        MetalBuffer(Storage::zeroed(pool, bytes)?).checked()
    }

    /// `bytes` bytes with unspecified contents, fresh from the system, and given back to it. Costs more than
    /// [`MetalBuffer::new_uninit_pooled`], mostly by the pages that are touched for the first time.
    ///
    /// # Errors
    /// Out of memory; another kind of device.
    pub fn new_uninit(device: &Device, bytes: usize) -> Result<MetalBuffer> {
        MetalBuffer(Storage::unpooled(device.buffer_pool(), bytes, false)?).checked()
    }

    /// `bytes` zeros, fresh from the system, and given back to it.
    ///
    /// # Errors
    /// As [`MetalBuffer::new_uninit`].
    pub fn new_zeros(device: &Device, bytes: usize) -> Result<MetalBuffer> {
        MetalBuffer(Storage::unpooled(device.buffer_pool(), bytes, true)?).checked()
    }

    fn checked(self) -> Result<MetalBuffer> {
        match self.0.unified() {
            Some(_) => Ok(self),
            None => Err(Error::arg("MetalBuffer", "the memory is no Metal device's; use that of Device::metal(0)")),
        }
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it was asked for with 0 bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, where they lie.
    ///
    /// # Errors
    /// A device that fails.
    pub fn contents(&self) -> Result<&[u8]> {
        self.0.bytes()
    }

    /// The bytes, where they lie, to be changed.
    ///
    /// # Errors
    /// A device that fails.
    pub fn contents_mut(&mut self) -> Result<&mut [u8]> {
        self.0.bytes_mut()
    }
}
