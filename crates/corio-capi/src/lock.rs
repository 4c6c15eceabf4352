//! `CoMutex` and `CoRwlock`: the Rust locks where they lie, whose guards are forgotten and made
//! again.

use std::mem;

use corio::raw;
use corio::sync::{Mutex, ReadGuard, RwLock, WriteGuard};

use crate::abort;
use crate::layout::words;

/// A mutex, allocated by C.
#[repr(transparent)]
pub(crate) struct CoMutex(Mutex<()>);

/// A reader-writer lock, allocated by C.
#[repr(transparent)]
pub(crate) struct CoRwlock(RwLock<()>);

words!(CoMutex, 5);
words!(CoRwlock, 5);

impl CoMutex {
    /// The mutex at `mutex`; dies if it is null, or outside a coroutine.
    ///
    /// # Safety
    /// `mutex` is null or a mutex.
    #[inline]
    unsafe fn at<'a>(mutex: *mut CoMutex, function: &str) -> &'a Mutex<()> {
        // SAFETY: the caller's promise.
        match unsafe { mutex.as_ref() } {
            Some(mutex) if corio::in_coroutine() => &mutex.0,
            mutex => refuse(mutex.is_none(), function),
        }
    }
}

impl CoRwlock {
    /// As [`CoMutex::at`].
    ///
    /// # Safety
    /// `lock` is null or a lock.
    #[inline]
    unsafe fn at<'a>(lock: *mut CoRwlock, function: &str) -> &'a RwLock<()> {
        // SAFETY: the caller's promise.
        match unsafe { lock.as_ref() } {
            Some(lock) if corio::in_coroutine() => &lock.0,
            lock => refuse(lock.is_none(), function),
        }
    }
}

#[cold]
#[inline(never)]
fn refuse(is_null: bool, function: &str) -> ! {
    if is_null {
        die!("{function}: the lock is NULL");
    }
    die!("{function}: called outside a coroutine")
}

/// Dies if the running coroutine holds no lock at all. (Which readers a lock has is not kept.)
#[inline]
fn check_holder(function: &str) {
    if raw::locks_held() == 0 {
        die!("{function}: the coroutine does not hold the lock");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_mutex_init(mutex: *mut CoMutex) {
    abort::on_panic();
    if mutex.is_null() {
        refuse(true, "qemu_co_mutex_init");
    }
    // SAFETY: the header asks for room for one.
    unsafe { mutex.write(CoMutex(Mutex::new(()))) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_mutex_lock(mutex: *mut CoMutex) {
    // SAFETY: the header asks for a mutex.
    let mutex = unsafe { CoMutex::at(mutex, "qemu_co_mutex_lock") };
    if mutex.is_held_here() {
        die!("qemu_co_mutex_lock: the coroutine holds the mutex already");
    }
    mem::forget(mutex.lock());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_mutex_unlock(mutex: *mut CoMutex) {
    // SAFETY: the header asks for a mutex.
    let mutex = unsafe { CoMutex::at(mutex, "qemu_co_mutex_unlock") };
    if !mutex.is_held_here() {
        die!("qemu_co_mutex_unlock: the coroutine does not hold the mutex");
    }
    // SAFETY: it holds it, and `qemu_co_mutex_lock` forgets guards.
    drop(unsafe { mutex.guard_again() });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_mutex_assert_locked(mutex: *mut CoMutex) {
    // SAFETY: the header asks for a mutex.
    let mutex = unsafe { CoMutex::at(mutex, "qemu_co_mutex_assert_locked") };
    if !mutex.is_held_here() {
        die!("qemu_co_mutex_assert_locked: the coroutine does not hold the mutex");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_init(lock: *mut CoRwlock) {
    abort::on_panic();
    if lock.is_null() {
        refuse(true, "qemu_co_rwlock_init");
    }
    // SAFETY: the header asks for room for one.
    unsafe { lock.write(CoRwlock(RwLock::new(()))) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_rdlock(lock: *mut CoRwlock) {
    // SAFETY: the header asks for a lock.
    mem::forget(unsafe { CoRwlock::at(lock, "qemu_co_rwlock_rdlock") }.read());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_wrlock(lock: *mut CoRwlock) {
    // SAFETY: the header asks for a lock.
    mem::forget(unsafe { CoRwlock::at(lock, "qemu_co_rwlock_wrlock") }.write());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_upgrade(lock: *mut CoRwlock) {
    const NAME: &str = "qemu_co_rwlock_upgrade";
    // SAFETY: the header asks for a lock.
    let lock = unsafe { CoRwlock::at(lock, NAME) };
    if lock.is_held_for_writing() != Some(false) {
        die!("{NAME}: the lock is not held for reading");
    }
    check_holder(NAME);
    // SAFETY: the caller reads, and `qemu_co_rwlock_rdlock` forgets guards.
    mem::forget(ReadGuard::upgrade(unsafe { lock.read_again() }));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_downgrade(lock: *mut CoRwlock) {
    const NAME: &str = "qemu_co_rwlock_downgrade";
    // SAFETY: the header asks for a lock.
    let lock = unsafe { CoRwlock::at(lock, NAME) };
    if lock.is_held_for_writing() != Some(true) {
        die!("{NAME}: the lock is not held for writing");
    }
    check_holder(NAME);
    // SAFETY: the caller writes, and `qemu_co_rwlock_wrlock` forgets guards.
    mem::forget(WriteGuard::downgrade(unsafe { lock.write_again() }));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_rwlock_unlock(lock: *mut CoRwlock) {
    // SAFETY: the header asks for a lock.
    let lock = unsafe { CoRwlock::at(lock, "qemu_co_rwlock_unlock") };
    let Some(is_written) = lock.is_held_for_writing() else {
        die!("qemu_co_rwlock_unlock: nobody holds the lock")
    };
    check_holder("qemu_co_rwlock_unlock");
    // SAFETY: the caller holds it so, and its guard was forgotten.
    unsafe {
        match is_written {
            true => drop(lock.write_again()),
            false => drop(lock.read_again()),
        }
    }
}
