//! A thread's memory for the interpreter.

use super::program::{Fold, Phase, Program};
use std::mem::MaybeUninit;

/// A thread's tiles.
pub struct Worker {
    memory: Vec<u64>,
    /// Address of each value's tile.
    pub tiles: Vec<*mut u8>,
    pub kept: *mut u8,
    /// The launch that the uniform values belong to.
    pub launch: u64,
}

impl Worker {
    pub fn new() -> Self {
        Worker { memory: Vec::new(), tiles: Vec::new(), kept: std::ptr::null_mut(), launch: 0 }
    }

    /// Start of the arena, on a cache line.
    pub fn base(&self) -> *mut u8 {
        let start = self.memory.as_ptr().cast::<u8>().cast_mut();
        start.wrapping_add(start.align_offset(64))
    }

    /// Where a fold keeps the states of 2^k segments.
    pub fn power(&self, fold: &Fold, k: usize) -> *mut u8 {
        self.base().wrapping_add(fold.powers + k * fold.power_stride)
    }

    /// Makes room for a program's tiles.
    pub fn prepare(&mut self, program: &Program, launch: u64) {
        let words = program.arena_bytes / 8 + 16;
        if self.memory.capacity() < words {
            self.memory = Vec::with_capacity(words);
        }
        self.tiles.clear();
        self.tiles.resize(program.values, std::ptr::null_mut());
        for &(value, at) in &program.fixed {
            self.tiles[value as usize] = self.base().wrapping_add(at);
        }
        self.launch = launch;
    }

    /// Points the phase's values at their tiles.
    pub fn enter(&mut self, phase: &Phase) {
        let base = self.base();
        for &(value, at) in &phase.places {
            self.tiles[value as usize] = base.wrapping_add(at);
        }
    }

    /// Copies another worker's values that outlive a tile.
    pub fn adopt(&mut self, program: &Program, fixed: *const u8) {
        // SAFETY: both arenas begin with the program's `fixed_bytes`; the other one's owner waits.
        unsafe { std::ptr::copy_nonoverlapping(fixed, self.base(), program.fixed_bytes) };
    }

    /// Sets `lanes` values at arena offset `at` to the fold's neutral element.
    pub fn clear(&mut self, fold: &Fold, at: usize, lanes: usize) {
        if fold.arg.is_some() {
            return;
        }
        // SAFETY: the place has room for the lanes, at least one.
        unsafe {
            let place = self.base().add(at);
            std::ptr::copy_nonoverlapping(fold.neutral.as_ptr(), place, fold.class.size());
            if lanes > 1 {
                spread(place, fold.class.size(), lanes);
            }
        }
    }
}

/// Repeats the first of `lanes` elements.
///
/// # Safety
/// `tile` has room for the lanes, the first of which is initialised.
pub unsafe fn spread(tile: *mut u8, size: usize, lanes: usize) {
    /// # Safety
    /// As above, for elements of T.
    unsafe fn of<T: Copy>(tile: *mut u8, lanes: usize) {
        // SAFETY: the caller's promise: the first element is there, the others are only written.
        unsafe {
            let first = *tile.cast::<T>();
            let rest = tile.cast::<MaybeUninit<T>>().add(1);
            std::slice::from_raw_parts_mut(rest, lanes - 1).fill(MaybeUninit::new(first));
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            8 => of::<u64>(tile, lanes),
            4 => of::<u32>(tile, lanes),
            _ => of::<u8>(tile, lanes),
        }
    }
}
