//! Apple GPUs, by Metal: the driver, and names for their devices and buffers.
//!
//! The driver is small: all that can lives in `gpu/`, where soft Metal has it run on other systems. It has not run on
//! Apple hardware; `docs/testing.md` says what was checked instead.

mod buffer;
#[cfg(target_os = "macos")]
mod driver;
#[cfg(target_os = "macos")]
mod queue;

pub use buffer::{MetalBuffer, MetalDevice};
#[cfg(target_os = "macos")]
pub(crate) use driver::Metal;
