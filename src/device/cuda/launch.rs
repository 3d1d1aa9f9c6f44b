//! The parameters of a kernel, as the driver takes them: a pointer to the value of each.

use crate::device::gpu::driver::Dispatch;
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Buffers and the arguments.
pub(super) const PARAMETERS: usize = 31;
/// Bytes of arguments that every driver takes.
pub(super) const ARGUMENT_BYTES: usize = 4096 - 8 * PARAMETERS;

/// Has `call` use the parameters of a dispatch, which is within the limits.
pub(super) fn with_parameters<T>(dispatch: &Dispatch, call: impl FnOnce(*const *const c_void) -> T) -> T {
    const PADDING: usize = 16;
    let Dispatch { buffers, args, .. } = dispatch;
    assert!(args.len() <= ARGUMENT_BYTES && buffers.len() + usize::from(!args.is_empty()) <= PARAMETERS);
    // The arguments' struct may end in padding, which the driver reads.
    let mut block = [const { MaybeUninit::<u8>::uninit() }; ARGUMENT_BYTES + PADDING];
    for (to, &byte) in block.iter_mut().zip(args.iter().chain(&[0; PADDING])) {
        to.write(byte);
    }
    let mut parameters = [block.as_ptr().cast::<c_void>(); PARAMETERS];
    for (parameter, address) in parameters.iter_mut().zip(*buffers) {
        *parameter = (&raw const address.0).cast();
    }
    call(parameters.as_ptr())
}
