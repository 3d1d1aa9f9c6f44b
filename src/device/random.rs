//! Where a device's random numbers come from.

use super::lock;
use std::sync::Mutex;

/// Seed of a process that sets none.
const DEFAULT_SEED: u64 = 0x7465_6e73_6f72;

/// Key and position of a Philox stream.
pub(crate) struct RandomStream(Mutex<(u64, u64)>);

impl RandomStream {
    pub fn new() -> Self {
        RandomStream(Mutex::new((DEFAULT_SEED, 0)))
    }

    pub fn state(&self) -> (u64, u64) {
        *lock(&self.0)
    }

    pub fn set_state(&self, state: (u64, u64)) {
        *lock(&self.0) = state;
    }

    /// A stretch for `n` numbers: key and offset.
    pub fn reserve(&self, n: usize) -> (u64, u64) {
        let mut random = lock(&self.0);
        let at = *random;
        random.1 = random.1.wrapping_add(n.next_multiple_of(4) as u64);
        at
    }
}
