//! Settings of a thread that hold while some work is done.

use std::cell::Cell;
use std::thread::LocalKey;

/// Runs `work` with `setting` at `value`, and sets it back, also when `work` panics.
pub(crate) fn with<S: Copy + 'static, T>(setting: &'static LocalKey<Cell<S>>, value: S, work: impl FnOnce() -> T) -> T {
    struct Restore<S: Copy + 'static>(&'static LocalKey<Cell<S>>, S);
    impl<S: Copy> Drop for Restore<S> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(setting, setting.replace(value));
    work()
}
