//! What AddressSanitizer and its LeakSanitizer are told of us, in builds with them.

#![allow(unsafe_code)] // Calls into the sanitizer's runtime, which such a build is linked with.

use core::ffi::c_void;
use core::ptr::NonNull;

unsafe extern "C" {
    fn __lsan_register_root_region(start: *const c_void, len: usize);
    fn __asan_unpoison_memory_region(start: *const c_void, len: usize);
}

/// Says that what the stack at `[low, low + len)` points to is not leaked, for ever: what a
/// suspended coroutine holds is known from its stack only, and stacks are mappings of their own.
pub(crate) fn register_stack(low: NonNull<u8>, len: usize) {
    // SAFETY: only notes the range, which stays mapped and readable.
    unsafe { __lsan_register_root_region(low.as_ptr().cast(), len) };
}

/// Says that no frame is left on it. A coroutine's outermost frame switches away and never returns,
/// and so what may not be touched around its objects is still marked.
pub(crate) fn clear_stack(low: NonNull<u8>, len: usize) {
    // SAFETY: only marks the range as one that may be used.
    unsafe { __asan_unpoison_memory_region(low.as_ptr().cast(), len) };
}
