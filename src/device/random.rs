//! Where a device's random numbers come from.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seed of a process that sets none.
const DEFAULT_SEED: u64 = 0x7465_6e73_6f72;

/// Key and position of a Philox stream.
pub(crate) struct RandomStream(Mutex<(u64, u64)>);

impl RandomStream {
    pub fn new() -> Self {
        RandomStream(Mutex::new((DEFAULT_SEED, 0)))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> (u64, u64) {
        *self.lock()
    }

    pub fn set_state(&self, state: (u64, u64)) {
        *self.lock() = state;
    }

    /// A stretch for `n` numbers: key and offset.
    pub fn reserve(&self, n: usize) -> (u64, u64) {
        let mut random = self.lock();
        let at = *random;
        random.1 = random.1.wrapping_add(n.next_multiple_of(4) as u64);
        at
    }
}
