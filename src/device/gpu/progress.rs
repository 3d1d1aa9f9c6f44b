//! How far a device has come: told by whoever runs its work, asked and waited for by everyone else.

use super::driver::{DriverResult, Ticket};
use crate::device::lock;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The tickets of one queue.
#[derive(Default)]
pub(crate) struct Progress {
    /// The last ticket that has passed.
    done: AtomicU64,
    /// Why the device failed, if it has.
    failure: Mutex<Option<String>>,
    moved: Condvar,
    /// How long whoever waits looks again and again before it sleeps: to be woken takes longer than small kernels.
    spin: Duration,
}

impl Progress {
    #[cfg(target_os = "macos")]
    pub fn spinning(spin: Duration) -> Progress {
        Progress { spin, ..Progress::default() }
    }

    /// All work up to a ticket has run.
    pub fn pass(&self, ticket: Ticket) {
        // Under the lock, so that nobody goes to sleep between looking and being told.
        let _failure = lock(&self.failure);
        self.done.fetch_max(ticket.0, Ordering::Release);
        self.moved.notify_all();
    }

    /// Notes why work failed; the first reason counts.
    pub fn fail(&self, reason: String) {
        lock(&self.failure).get_or_insert(reason);
    }

    /// Lets everyone go: nothing more will run.
    #[cfg(feature = "soft-metal")]
    pub fn end(&self) {
        self.pass(Ticket(u64::MAX));
    }

    /// Whether all work up to a ticket has run, well or not.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.done.load(Ordering::Acquire) >= ticket.0
    }

    /// Waits for a ticket.
    ///
    /// # Errors
    /// What failed, of any work so far.
    pub fn wait(&self, ticket: Ticket) -> DriverResult<()> {
        let start = Instant::now();
        while !self.is_done(ticket) && start.elapsed() < self.spin {
            spin_loop();
        }
        let mut failure = lock(&self.failure);
        while !self.is_done(ticket) {
            failure = self.moved.wait(failure).unwrap_or_else(PoisonError::into_inner);
        }
        failure.clone().map_or(Ok(()), Err)
    }

    /// Forgets what failed.
    #[cfg(feature = "soft-metal")]
    pub fn take_failure(&self) -> Option<String> {
        lock(&self.failure).take()
    }
}
