//! What C++ calls: the functions that shaders/prelude/host.h and host_hooks.cpp reach through `TlRuntime`.
//!
//! Kernels run on the queue's thread only, so that what they need is thread-local.

use super::check::{Abandoned, Access, Checker};
use super::shadow::LANES;
use corosensei::Yielder;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;

/// `uint3` of the prelude.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Position(pub [u32; 3]);

/// `TlContext` of the prelude.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Context {
    pub buffers: *const usize,
    pub args: *const c_void,
    pub group: Position,
    pub groups: Position,
    pub thread: u32,
    pub lane: u32,
    pub simdgroup: u32,
}

/// Why a coroutine gives control back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Its threads have run to their ends.
    Done,
    /// At a barrier of the threadgroup (scope 0) or the simdgroup (1).
    Barrier { scope: u32, flags: u32, line: i32 },
    /// At an exchange between the lanes of its simdgroup.
    Exchange { bytes: u32, line: i32 },
    /// Can go no further; never resumed.
    Abandoned,
}

/// What a coroutine is given to do: run a kernel for some threads.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub kernel: *const super::compile::Kernel,
    pub context: Context,
    pub threads: *const u32,
    pub count: usize,
}

/// 16 bytes of each lane.
type Slots = [[u8; 16]; LANES as usize];

/// What hooks work on.
pub(super) struct State {
    pub checker: Checker,
    /// The coroutine that runs.
    pub coroutine: usize,
    /// What each coroutine gives control back with, once it has started.
    pub yielders: Vec<*const Yielder<Task, Event>>,
    /// The exchanges that each thread has taken part in.
    pub exchanges: Vec<usize>,
    /// Of each simdgroup twice, as fast lanes may be at the next exchange while slow ones still read the last.
    pub slots: Vec<[Slots; 2]>,
}

thread_local! {
    /// The addresses between which the stack of the running coroutine lies: nobody else's business.
    pub(super) static STACK: Cell<(usize, usize)> = const { Cell::new((0, 0)) };

    pub(super) static STATE: RefCell<State> = RefCell::new(State {
        checker: Checker::new(),
        coroutine: 0,
        yielders: Vec::new(),
        exchanges: Vec::new(),
        slots: Vec::new(),
    });
}

/// `TlRuntime` of the prelude.
#[repr(C)]
pub(super) struct Runtime {
    access: extern "C" fn(usize, u32, u32, usize),
    atomic: extern "C" fn(*mut u32, u32, u32, usize) -> u32,
    barrier: extern "C" fn(u32, u32, i32),
    exchange: extern "C" fn(*const u8, u32, i32) -> *const c_void,
    threadgroup: extern "C" fn(u32, u32) -> *mut u8,
    lane: extern "C" fn() -> u32,
}

pub(super) static RUNTIME: Runtime = Runtime { access, atomic, barrier, exchange, threadgroup, lane };

/// Gives control back to the scheduler, until it resumes this coroutine.
fn suspend(event: Event) {
    let yielder = STATE.with_borrow(|s| s.yielders[s.coroutine]);
    // SAFETY: the coroutine that runs put its yielder there, and hooks run on its stack.
    unsafe { (*yielder).suspend(event) };
}

/// Ends the work of this coroutine.
fn abandon() -> ! {
    suspend(Event::Abandoned);
    unreachable!("an abandoned coroutine is not resumed")
}

fn allow<T>(checked: Result<T, Abandoned>) -> T {
    checked.unwrap_or_else(|Abandoned| abandon())
}

extern "C" fn access(address: usize, bytes: u32, flags: u32, caller: usize) {
    let (limit, base) = STACK.get();
    if limit <= address && address + bytes as usize <= base {
        return;
    }
    let access = Access {
        address,
        bytes: bytes as usize,
        writes: flags & 1 != 0,
        atomic: false,
        aligned: flags & 2 != 0,
        caller,
    };
    allow(STATE.with_borrow_mut(|s| s.checker.access(access)));
}

extern "C" fn atomic(at: *mut u32, operation: u32, operand: u32, caller: usize) -> u32 {
    let access = Access { address: at.addr(), bytes: 4, writes: operation != 0, atomic: true, aligned: true, caller };
    allow(STATE.with_borrow_mut(|s| s.checker.access(access)));
    // SAFETY: the checker has found the address in bound memory. No other thread touches that.
    unsafe {
        let before = at.read_unaligned();
        match operation {
            0 => {}
            1 => at.write_unaligned(operand),
            _ => at.write_unaligned(before.wrapping_add(operand)),
        }
        before
    }
}

extern "C" fn barrier(scope: u32, flags: u32, line: i32) {
    suspend(Event::Barrier { scope, flags, line });
}

extern "C" fn exchange(value: *const u8, bytes: u32, line: i32) -> *const c_void {
    let results = STATE.with_borrow_mut(|s| {
        let thread = s.checker.thread;
        let turn = s.exchanges[thread as usize];
        s.exchanges[thread as usize] += 1;
        let slots = &mut s.slots[(thread / LANES) as usize][turn % 2];
        // SAFETY: the prelude gives at most 16 bytes of its own stack.
        unsafe {
            slots[(thread % LANES) as usize].as_mut_ptr().copy_from_nonoverlapping(value, bytes.min(16) as usize)
        };
        slots.as_ptr().cast()
    });
    suspend(Event::Exchange { bytes, line });
    results
}

extern "C" fn threadgroup(index: u32, bytes: u32) -> *mut u8 {
    allow(STATE.with_borrow_mut(|s| s.checker.declare(index as usize, bytes as usize)))
}

extern "C" fn lane() -> u32 {
    STATE.with_borrow(|s| s.checker.thread % LANES)
}
