//! The parameters of a kernel, as the driver takes them: a pointer to the value of each.

use crate::device::gpu::driver::Dispatch;
use smallvec::SmallVec;
use std::ffi::c_void;

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
    let mut block: SmallVec<[u8; 1024]> = SmallVec::with_capacity(args.len() + PADDING);
    block.extend_from_slice(args);
    block.resize(args.len() + PADDING, 0);
    let mut parameters = [block.as_ptr().cast::<c_void>(); PARAMETERS];
    for (parameter, address) in parameters.iter_mut().zip(*buffers) {
        *parameter = (&raw const address.0).cast();
    }
    call(parameters.as_ptr())
}
