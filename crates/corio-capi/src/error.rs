//! `CorioError`: why a function has failed, for who wants to know.

use std::ffi::{CString, c_char};
use std::fmt::Display;

/// What `errp` is set to.
pub(crate) struct CorioError {
    message: CString,
}

/// Has `*errp`, if there is one, tell of `error`.
///
/// # Safety
/// `errp` is null or points to a pointer that may be overwritten.
pub(crate) unsafe fn set(errp: *mut *mut CorioError, error: impl Display) {
    if errp.is_null() {
        return;
    }
    let mut text = error.to_string();
    text.retain(|byte| byte != '\0');
    let message = CString::new(text).unwrap_or_default();
    // SAFETY: the caller's promise.
    unsafe { errp.write(Box::into_raw(Box::new(CorioError { message }))) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_error_get_message(error: *const CorioError) -> *const c_char {
    // SAFETY: the header asks for an error that is not freed yet.
    match unsafe { error.as_ref() } {
        Some(error) => error.message.as_ptr(),
        None => c"".as_ptr(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_error_free(error: *mut CorioError) {
    if !error.is_null() {
        // SAFETY: the header asks for an error that is not freed yet; it is of `set`.
        drop(unsafe { Box::from_raw(error) });
    }
}
