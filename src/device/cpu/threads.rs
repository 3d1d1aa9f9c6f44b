//! The interpreter's own threads.
//!
//! They are not rayon's: a worker of a rayon pool that waits there steals other tasks, and a stolen task that
//! evaluates a tensor would wait for a lock that its own stack holds. And a launch takes some microseconds, in which a
//! thread that sleeps does not even wake: here the caller takes jobs itself, and workers look for the next call for
//! a while before they sleep. A caller that is itself a rayon worker (of any pool), a job that has jobs of its own,
//! and whoever comes while others use the threads run their jobs alone: their surroundings are parallel already.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps: about what waking it takes.
const LOOK_OUT: Duration = Duration::from_micros(50);

/// Set in [`Team::state`] while workers may come in.
const OPEN: usize = 1;
/// A worker that is in, in [`Team::state`].
const WORKER: usize = 2;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// A call of [`for_each`] that workers help with.
struct Call {
    job: *const Job<'static>,
    jobs: usize,
    caller: Thread,
}

// SAFETY: the job is `Sync`, and the rest is a number and a handle.
unsafe impl Send for Call {}

/// The workers and the call that they help with.
struct Team {
    workers: usize,
    /// Whether somebody's call is under way.
    taken: AtomicBool,
    /// [`OPEN`], and how many workers are in: they alone, and the caller, may touch `call`.
    state: AtomicUsize,
    call: UnsafeCell<Option<Call>>,
    /// Jobs of the call that nobody has taken; negative when some were asked for in vain.
    left: AtomicIsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `call` is written while `state` is 0 by the one caller that has `taken`, and read by workers that are
// counted in `state`, which a caller waits to become 0 again.
unsafe impl Sync for Team {}

static TEAM: LazyLock<Team> = LazyLock::new(|| {
    let asked = std::env::var("TL_NUM_THREADS").ok().and_then(|v| v.parse().ok()).filter(|&threads| threads > 0);
    let threads = asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let named = |i| thread::Builder::new().name(format!("tensorlogic-{i}"));
    // A worker waits for this to be there.
    let workers = (1..threads).map_while(|i| named(i).spawn(|| TEAM.work()).ok()).count();
    Team {
        workers,
        taken: AtomicBool::new(false),
        state: AtomicUsize::new(0),
        call: UnsafeCell::new(None),
        left: AtomicIsize::new(0),
        panic: Mutex::new(None),
        asleep: AtomicUsize::new(0),
        sleep: Mutex::new(()),
        wake: Condvar::new(),
    }
});

/// How many threads [`for_each`] uses (`TL_NUM_THREADS`, else the cores).
pub fn count() -> usize {
    TEAM.workers + 1
}

/// Runs `job(0..jobs)`, in parallel when `parallel` is set; returns when all have run.
pub fn for_each(jobs: usize, parallel: bool, job: &(dyn Fn(usize) + Sync)) {
    let alone = !parallel || jobs < 2 || TEAM.workers == 0 || rayon::current_thread_index().is_some();
    if alone || TEAM.taken.swap(true, Ordering::Acquire) {
        return (0..jobs).for_each(job);
    }
    let panic = TEAM.run(jobs, job);
    TEAM.taken.store(false, Ordering::Release);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

impl Team {
    /// Runs the jobs with the workers' help, `taken` being the caller's. What a job panicked with is returned.
    fn run(&self, jobs: usize, job: &Job<'_>) -> Option<Box<dyn Any + Send>> {
        // SAFETY: this returns when no worker is in any more, so nobody has the job beyond its life.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: `state` is 0, so nobody else touches the call.
        unsafe { *self.call.get() = Some(Call { job, jobs, caller: thread::current() }) };
        self.left.store(jobs as isize, Ordering::Relaxed);
        self.state.store(OPEN, Ordering::SeqCst);
        let asleep = self.asleep.load(Ordering::SeqCst);
        if asleep > 0 {
            drop(self.sleep.lock());
            (0..asleep.min(jobs - 1)).for_each(|_| self.wake.notify_one());
        }
        self.take_jobs();
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        if !look_out(|| self.state.load(Ordering::Acquire) == 0) {
            while self.state.load(Ordering::Acquire) != 0 {
                thread::park();
            }
        }
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes jobs of the call until there are none; the caller of this is the call's, or a worker that is in.
    fn take_jobs(&self) {
        // SAFETY: the call stays as it is while a worker is in, or its caller here.
        let Some(Call { job, jobs, .. }) = (unsafe { &*self.call.get() }) else { return };
        let run = || {
            while let left @ 1.. = self.left.fetch_sub(1, Ordering::Relaxed) {
                // SAFETY: the job lives until the call has returned.
                unsafe { (**job)(jobs - left as usize) };
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.left.store(0, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Whether a worker has something to do.
    fn is_open(&self) -> bool {
        self.state.load(Ordering::SeqCst) & OPEN != 0 && self.left.load(Ordering::Relaxed) > 0
    }

    /// What a worker does all its life.
    fn work(&self) {
        loop {
            if !look_out(|| self.is_open()) {
                let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
                self.asleep.fetch_add(1, Ordering::SeqCst);
                while !self.is_open() {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.fetch_sub(1, Ordering::SeqCst);
            }
            let enter = |state| (state & OPEN != 0).then_some(state + WORKER);
            if self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
                continue;
            }
            self.take_jobs();
            // SAFETY: this worker is in.
            let caller = unsafe { &*self.call.get() }.as_ref().map(|call| call.caller.clone());
            if self.state.fetch_sub(WORKER, Ordering::Release) == WORKER
                && let Some(caller) = caller
            {
                caller.unpark();
            }
        }
    }
}

/// Asks again and again for [`LOOK_OUT`]; whether the answer was yes.
fn look_out(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if ready() {
                return true;
            }
            spin_loop();
        }
        if start.elapsed() > LOOK_OUT {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_runs_once() {
        for jobs in [0, 1, 2, 3, 100] {
            for _ in 0..200 {
                let runs: Vec<AtomicUsize> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
                for_each(jobs, true, &|job| _ = runs[job].fetch_add(1, Ordering::Relaxed));
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn jobs_have_jobs_and_callers_come_at_once() {
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for_each(50, true, &|_| for_each(10, true, &|job| _ = sum.fetch_add(job, Ordering::Relaxed)))
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 45);
    }

    #[test]
    fn a_sleeping_team_wakes() {
        for _ in 0..20 {
            thread::sleep(2 * LOOK_OUT);
            let sum = AtomicUsize::new(0);
            for_each(8, true, &|job| {
                thread::sleep(LOOK_OUT / 8);
                sum.fetch_add(job, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 28);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_works_on() {
        for at in [0, 7, 49] {
            let caught = catch_unwind(|| for_each(50, true, &|job| assert!(job != at, "job {at}")));
            assert_eq!(caught.unwrap_err().downcast_ref::<String>(), Some(&format!("job {at}")));
            let sum = AtomicUsize::new(0);
            for_each(10, true, &|job| _ = sum.fetch_add(job, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
