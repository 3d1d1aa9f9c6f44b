//! What macOS says of the machine.

use std::ffi::{CStr, c_char, c_int, c_void};

unsafe extern "C" {
    fn sysctlbyname(
        name: *const c_char,
        old: *mut c_void,
        old_len: *mut usize,
        new: *mut c_void,
        new_len: usize,
    ) -> c_int;
}

/// The value of a name, of at most 256 bytes.
fn value(name: &CStr) -> Option<Vec<u8>> {
    let mut bytes = vec![0u8; 256];
    let mut len = bytes.len();
    // SAFETY: the name ends in NUL, there are `len` writable bytes, and nothing is set.
    let status = unsafe { sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &mut len, std::ptr::null_mut(), 0) };
    bytes.truncate(len);
    (status == 0).then_some(bytes)
}

/// A number, of 32 or 64 bits.
pub(crate) fn number(name: &CStr) -> Option<u64> {
    let bytes = value(name)?;
    match bytes.len() {
        4 => bytes.try_into().ok().map(u32::from_ne_bytes).map(u64::from),
        8 => bytes.try_into().ok().map(u64::from_ne_bytes),
        _ => None,
    }
}

/// A text.
pub(crate) fn text(name: &CStr) -> Option<String> {
    let bytes = value(name)?;
    let text = CStr::from_bytes_until_nul(&bytes).ok()?;
    Some(text.to_string_lossy().into_owned())
}
