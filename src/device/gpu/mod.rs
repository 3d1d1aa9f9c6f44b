//! GPUs: the driver's seam, and the runtime above it.
#![allow(dead_code)] // until the runtime stands

pub(crate) mod driver;
pub(crate) mod translate;
