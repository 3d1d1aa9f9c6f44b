//! Indices that are read from memory, and those of them that are out of range.

use crate::dtype::DType;
use std::sync::{Mutex, PoisonError};

/// An index that was out of range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub index: i64,
    pub limit: usize,
    /// The node that read it.
    pub node: u32,
}

/// What all threads of a launch have found.
#[derive(Default)]
pub struct Faults(Mutex<Option<Fault>>);

impl Faults {
    /// Notes a fault, if it is the first.
    pub fn report(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    /// The first fault, as an error.
    ///
    /// # Errors
    /// There was one.
    pub fn first(self) -> Result<(), Fault> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// The integer at position `at`.
///
/// # Safety
/// `memory` holds an integer of `dtype` there.
pub unsafe fn read_index(memory: *const u8, dtype: DType, at: isize) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::I64 => *memory.cast::<i64>().offset(at),
            DType::I32 => *memory.cast::<i32>().offset(at) as i64,
            DType::U32 => *memory.cast::<u32>().offset(at) as i64,
            _ => *memory.offset(at) as i64,
        }
    }
}
