//! Runs a dispatch: group after group, each thread of a group a coroutine where threads wait for one another.

use super::compile::Kernel;
use super::fault::FaultKind;
use super::hooks::{Context, Event, Position, STACK, STATE, Task};
use super::shadow::LANES;
use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, Yielder};
use std::convert::Infallible;

/// Bytes of a thread's stack.
const STACK_BYTES: usize = 64 << 10;

/// A dispatch, with its addresses looked up.
pub(super) struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub groups: [u32; 3],
    pub threads: u32,
    pub buffers: &'a [usize],
    pub args: &'a [u128],
    pub args_bytes: usize,
}

/// What runs one thread after another, or one thread.
struct Fiber {
    coroutine: Coroutine<Task, Event, Infallible>,
    /// The addresses between which its stack lies.
    stack: (usize, usize),
    last: Event,
}

impl Fiber {
    fn new(index: usize) -> Result<Fiber, String> {
        let stack = DefaultStack::new(STACK_BYTES).map_err(|e| format!("a stack of {STACK_BYTES} bytes: {e}"))?;
        let range = (stack.limit().get(), stack.base().get());
        let body = move |yielder: &Yielder<Task, Event>, mut task: Task| loop {
            STATE.with_borrow_mut(|s| s.yielders[index] = yielder);
            for at in 0..task.count {
                // SAFETY: the scheduler keeps the list until the coroutine is done.
                let thread = unsafe { *task.threads.add(at) };
                STATE.with_borrow_mut(|s| s.checker.thread = thread);
                let lane = thread % LANES;
                let context = Context { thread, lane, simdgroup: thread / LANES, ..task.context };
                // SAFETY: the scheduler keeps the kernel and what the context points to until the coroutine is done;
                // the hooks keep the kernel off other memory.
                unsafe { (*task.kernel).run(&context) };
            }
            task = yielder.suspend(Event::Done);
        };
        Ok(Fiber { coroutine: Coroutine::with_stack(stack, body), stack: range, last: Event::Done })
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: on the coroutine's stack there is nothing to drop: the loop above and the hooks hold plain values only
        // where they suspend, and kernels are compiled without exceptions.
        unsafe { self.coroutine.force_reset() };
    }
}

/// What the queue's thread runs dispatches with.
pub(super) struct Runner {
    fibers: Vec<Fiber>,
    random: u64,
}

/// The group cannot be gone on with; the checker knows why.
struct Stopped;

impl Runner {
    /// Threads and groups run in an order that follows from `seed`.
    pub fn new(seed: u64) -> Runner {
        Runner { fibers: Vec::new(), random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn shuffle(&mut self, list: &mut [u32]) {
        for n in (1..list.len()).rev() {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            list.swap(n, (self.random % (n as u64 + 1)) as usize);
        }
    }

    /// Runs all groups, or those up to the first that cannot be gone on with.
    pub fn run(&mut self, launch: &Launch) -> Result<(), String> {
        let threads = launch.threads as usize;
        let fibers = if launch.kernel.cooperative { threads } else { 1 };
        STATE.with_borrow_mut(|s| {
            s.yielders.resize(s.yielders.len().max(fibers), std::ptr::null());
            s.exchanges.resize(s.exchanges.len().max(threads), 0);
            s.slots.resize(threads.div_ceil(LANES as usize), [[[0; 16]; LANES as usize]; 2]);
            let slots = s.slots.as_ptr_range();
            let args = launch.args.as_ptr().addr();
            s.checker.quiet =
                [launch.kernel.image, (args, args + launch.args_bytes), (slots.start.addr(), slots.end.addr())];
        });
        while self.fibers.len() < fibers {
            self.fibers.push(Fiber::new(self.fibers.len())?);
        }
        let [x, y, _] = launch.groups;
        let groups = launch.groups.iter().map(|&n| u64::from(n)).product::<u64>();
        let groups = u32::try_from(groups).map_err(|_| format!("{groups} groups are too many"))?;
        let mut order: Vec<u32> = (0..groups).collect();
        self.shuffle(&mut order);
        for group in order {
            let context = Context {
                buffers: launch.buffers.as_ptr(),
                args: launch.args.as_ptr().cast(),
                group: Position([group % x, group / x % y, group / x / y]),
                groups: Position(launch.groups),
                thread: 0,
                lane: 0,
                simdgroup: 0,
            };
            STATE.with_borrow_mut(|s| s.checker.start_group(group));
            let mut threads: Vec<u32> = (0..launch.threads).collect();
            let done = if launch.kernel.cooperative {
                self.together(launch.kernel, context, &threads)
            } else {
                self.shuffle(&mut threads);
                let task = Task { kernel: launch.kernel, context, threads: threads.as_ptr(), count: threads.len() };
                self.resume(0, task)
            };
            if let Err(Stopped) = done {
                // Coroutines in the middle of the kernel cannot be used again.
                self.fibers.clear();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Goes on with a coroutine until it gives control back.
    fn resume(&mut self, index: usize, task: Task) -> Result<(), Stopped> {
        let fiber = &mut self.fibers[index];
        STATE.with_borrow_mut(|s| s.coroutine = index);
        STACK.set(fiber.stack);
        let corosensei::CoroutineResult::Yield(event) = fiber.coroutine.resume(task);
        fiber.last = event;
        if event == Event::Abandoned { Err(Stopped) } else { Ok(()) }
    }

    /// Runs a group whose threads wait for one another.
    fn together(&mut self, kernel: &Kernel, context: Context, threads: &[u32]) -> Result<(), Stopped> {
        STATE.with_borrow_mut(|s| s.exchanges.fill(0));
        let count = threads.len();
        let mut simdgroups: Vec<u32> = (0..count as u32 / LANES).collect();
        loop {
            self.shuffle(&mut simdgroups);
            for &simdgroup in &simdgroups {
                self.simdgroup(kernel, context, threads, simdgroup)?;
            }
            // Each thread is at its end or at a barrier of the group: the same one.
            let first = self.fibers[0].last;
            if let Some(other) = self.fibers[..count].iter().position(|f| f.last != first) {
                return Err(diverged(0, first, other, self.fibers[other].last));
            }
            match first {
                Event::Barrier { flags, .. } => STATE.with_borrow_mut(|s| s.checker.pass_barrier(flags)),
                _ => return Ok(()),
            }
        }
    }

    /// Runs a simdgroup until each of its threads is at its end or at a barrier of the group.
    fn simdgroup(&mut self, kernel: &Kernel, context: Context, threads: &[u32], simdgroup: u32) -> Result<(), Stopped> {
        let first = (simdgroup * LANES) as usize;
        let mut lanes: Vec<u32> = (simdgroup * LANES..(simdgroup + 1) * LANES).collect();
        loop {
            self.shuffle(&mut lanes);
            for &thread in &lanes {
                STATE.with_borrow_mut(|s| s.checker.thread = thread);
                let threads = &raw const threads[thread as usize];
                self.resume(thread as usize, Task { kernel, context, threads, count: 1 })?;
            }
            let event = self.fibers[first].last;
            if let Some(&other) = lanes.iter().find(|&&l| self.fibers[l as usize].last != event) {
                return Err(diverged(first, event, other as usize, self.fibers[other as usize].last));
            }
            match event {
                Event::Barrier { scope: 1, flags, .. } => {
                    STATE.with_borrow_mut(|s| s.checker.pass_simdgroup_barrier(simdgroup as usize, flags));
                }
                Event::Exchange { .. } => {}
                _ => return Ok(()),
            }
        }
    }
}

fn diverged(thread: usize, event: Event, other: usize, other_event: Event) -> Stopped {
    let place = |event| match event {
        Event::Done | Event::Abandoned => "at its end".to_string(),
        Event::Barrier { scope, line, .. } => {
            format!("at the {} of line {line}", if scope == 0 { "threadgroup_barrier" } else { "simdgroup_barrier" })
        }
        Event::Exchange { line, .. } => format!("at the simdgroup operation of line {line}"),
    };
    let detail = format!("thread {thread} is {}, thread {other} {}", place(event), place(other_event));
    STATE.with_borrow_mut(|s| s.checker.fault(FaultKind::Divergence, detail));
    Stopped
}
