//! Points in the stream: what has been reached, and when.

use super::api::{Driver, Failure, NOT_READY};
use crate::device::gpu::driver::Ticket;
use crate::device::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// An event of the driver's; gone when dropped.
pub(super) struct Event {
    driver: &'static Driver,
    handle: usize,
}

impl Event {
    /// An event of the current context. Only `timed` ones note the time, which costs a little.
    pub fn new(driver: &'static Driver, timed: bool) -> Result<Event, Failure> {
        const DISABLE_TIMING: u32 = 2;
        let mut handle = 0;
        // SAFETY: a place for a handle.
        unsafe { driver.cuEventCreate(&raw mut handle, if timed { 0 } else { DISABLE_TIMING }) }?;
        Ok(Event { driver, handle })
    }

    /// Moves the event to this point of the stream.
    pub fn record(&self, stream: usize) -> Result<(), Failure> {
        // SAFETY: event and stream are alive, and of one context.
        unsafe { self.driver.cuEventRecord(self.handle, stream) }
    }

    /// Whether the point has been reached.
    pub fn is_reached(&self) -> Result<bool, Failure> {
        // SAFETY: the event is alive.
        match unsafe { self.driver.cuEventQuery(self.handle) } {
            Ok(()) => Ok(true),
            Err(failure) if failure.code == NOT_READY => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Waits until the point has been reached.
    pub fn wait(&self) -> Result<(), Failure> {
        // SAFETY: the event is alive.
        unsafe { self.driver.cuEventSynchronize(self.handle) }
    }

    /// Milliseconds from this event to a later one; both are timed and reached.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32, Failure> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive; a place for a number.
        unsafe { self.driver.cuEventElapsedTime(&raw mut milliseconds, self.handle, later.handle) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is alive, and nobody uses it again; the driver waits for pending uses itself.
        let _ = unsafe { self.driver.cuEventDestroy_v2(self.handle) };
    }
}

/// The commits of a stream.
#[derive(Default)]
pub(super) struct Tickets(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    last: u64,
    done: u64,
    /// In the order of their tickets. Whoever waits for one shares it.
    events: VecDeque<(u64, Arc<Event>)>,
    spare: Vec<Event>,
}

/// Commits in flight from which on a commit looks which of them are done.
const MANY: usize = 64;

impl Tickets {
    pub fn commit(&self, driver: &'static Driver, stream: usize) -> Result<Ticket, Failure> {
        let mut pending = lock(&self.0);
        if pending.events.len() >= MANY {
            pending.collect()?;
        }
        let event = match pending.spare.pop() {
            Some(event) => event,
            None => Event::new(driver, false)?,
        };
        event.record(stream)?;
        pending.last += 1;
        let ticket = pending.last;
        pending.events.push_back((ticket, Arc::new(event)));
        Ok(Ticket(ticket))
    }

    /// Whether the ticket's work has run.
    pub fn is_done(&self, ticket: Ticket) -> Result<bool, Failure> {
        let mut pending = lock(&self.0);
        if ticket.0 > pending.done {
            pending.collect()?;
        }
        Ok(ticket.0 <= pending.done)
    }

    pub fn wait(&self, ticket: Ticket) -> Result<(), String> {
        let pending = lock(&self.0);
        if ticket.0 <= pending.done {
            return Ok(());
        }
        let Some((ticket, event)) = pending.events.iter().find(|(t, _)| *t >= ticket.0).cloned() else {
            return Err(format!("ticket {} was never given out", ticket.0));
        };
        drop(pending);
        event.wait()?;
        drop(event);
        lock(&self.0).finish(ticket);
        Ok(())
    }
}

impl Pending {
    /// Finds out what is done.
    fn collect(&mut self) -> Result<(), Failure> {
        while let Some((ticket, event)) = self.events.front() {
            let ticket = *ticket;
            if !event.is_reached()? {
                break;
            }
            self.finish(ticket);
        }
        Ok(())
    }

    /// Notes that everything up to a ticket is done.
    fn finish(&mut self, ticket: u64) {
        self.done = self.done.max(ticket);
        while self.events.front().is_some_and(|(t, _)| *t <= ticket) {
            let (_, event) = self.events.pop_front().expect("just seen");
            self.spare.extend(Arc::into_inner(event));
        }
    }
}
