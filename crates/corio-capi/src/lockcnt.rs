//! `QemuLockCnt`: a counter of visitors and a lock.
//!
//! C takes visits and the lock as numbers, so each is forgotten here when it begins, and taken up
//! again when it ends.

use std::ffi::c_uint;
use std::mem;

use corio::raw;
use corio::sync::{LockCnt, Visit};

use crate::{abort, layout};

/// What C allocates; all zeros: no visitor, not locked.
#[repr(C, align(8))]
pub(crate) struct QemuLockCnt(LockCnt);
layout::words!(QemuLockCnt, 1);

/// The one at `lockcnt`; dies if it is null.
///
/// # Safety
/// `lockcnt` is null or one, zeroed or initialised.
#[inline]
unsafe fn at<'a>(lockcnt: *mut QemuLockCnt, function: &str) -> &'a LockCnt {
    // SAFETY: the caller's promise.
    match unsafe { lockcnt.as_ref() } {
        Some(lockcnt) => &lockcnt.0,
        None => die!("{function}: the lockcnt is NULL"),
    }
}

/// As [`at`], with a visitor, whose visit is the caller's.
///
/// # Safety
/// As [`at`]'s.
unsafe fn visit<'a>(lockcnt: *mut QemuLockCnt, function: &str) -> Visit<'a> {
    // SAFETY: the caller's promise.
    let lockcnt = unsafe { at(lockcnt, function) };
    if lockcnt.count() == 0 {
        die!("{function}: there is no visitor");
    }
    // SAFETY: one is counted, and C says that it is the caller's.
    unsafe { raw::forgotten_visit(lockcnt) }
}

/// As [`at`]; dies if it is not locked.
///
/// # Safety
/// As [`at`]'s.
unsafe fn locked<'a>(lockcnt: *mut QemuLockCnt, function: &str) -> &'a LockCnt {
    // SAFETY: the caller's promise.
    let lockcnt = unsafe { at(lockcnt, function) };
    if !raw::is_locked(lockcnt) {
        die!("{function}: it is not locked");
    }
    lockcnt
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_init(lockcnt: *mut QemuLockCnt) {
    abort::on_panic();
    // SAFETY: the header asks for room for one.
    unsafe {
        at(lockcnt, "qemu_lockcnt_init");
        lockcnt.write(QemuLockCnt(LockCnt::new(())));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_destroy(lockcnt: *mut QemuLockCnt) {
    const NAME: &str = "qemu_lockcnt_destroy";
    // SAFETY: the header asks for one that nobody uses any more.
    let lockcnt = unsafe { at(lockcnt, NAME) };
    if lockcnt.count() > 0 || raw::is_locked(lockcnt) {
        die!("{NAME}: it is in use");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_inc(lockcnt: *mut QemuLockCnt) {
    // SAFETY: the header asks for one.
    mem::forget(unsafe { at(lockcnt, "qemu_lockcnt_inc") }.visit());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_dec(lockcnt: *mut QemuLockCnt) {
    // SAFETY: the header asks for one of which the caller is a visitor.
    drop(unsafe { visit(lockcnt, "qemu_lockcnt_dec") });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_dec_and_lock(lockcnt: *mut QemuLockCnt) -> bool {
    // SAFETY: the header asks for one of which the caller is a visitor.
    let visit = unsafe { visit(lockcnt, "qemu_lockcnt_dec_and_lock") };
    Visit::leave_and_lock(visit).map(mem::forget).is_some()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_dec_if_lock(lockcnt: *mut QemuLockCnt) -> bool {
    // SAFETY: the header asks for one of which the caller is a visitor.
    let visit = unsafe { visit(lockcnt, "qemu_lockcnt_dec_if_lock") };
    match Visit::leave_if_last(visit) {
        Ok(guard) => {
            mem::forget(guard);
            true
        }
        Err(visit) => {
            mem::forget(visit);
            false
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_lock(lockcnt: *mut QemuLockCnt) {
    // SAFETY: the header asks for one.
    mem::forget(unsafe { at(lockcnt, "qemu_lockcnt_lock") }.lock());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_unlock(lockcnt: *mut QemuLockCnt) {
    // SAFETY: the header asks for one whose lock the caller has.
    unsafe {
        let lockcnt = locked(lockcnt, "qemu_lockcnt_unlock");
        drop(raw::forgotten_guard(lockcnt));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_inc_and_unlock(lockcnt: *mut QemuLockCnt) {
    // SAFETY: the header asks for one whose lock the caller has.
    unsafe {
        let lockcnt = locked(lockcnt, "qemu_lockcnt_inc_and_unlock");
        let guard = raw::forgotten_guard(lockcnt);
        mem::forget(corio::sync::LockCntGuard::unlock_and_visit(guard));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_lockcnt_count(lockcnt: *mut QemuLockCnt) -> c_uint {
    // SAFETY: the header asks for one.
    unsafe { at(lockcnt, "qemu_lockcnt_count") }.count()
}
