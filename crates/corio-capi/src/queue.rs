//! `CoQueue`: the Rust queue where it lies.

use std::ffi::{c_int, c_void};
use std::mem::offset_of;

use corio::sync::{Place, Queue};

use crate::abort;
use crate::layout::words;

/// A queue, allocated by C.
#[repr(transparent)]
pub(crate) struct CoQueue(Queue);

words!(CoQueue, 3);

type LockFunction = unsafe extern "C" fn(*mut c_void);

/// A lock of any kind: what to call to take it, and to give it up.
#[repr(C)]
pub(crate) struct QemuLockable {
    object: *mut c_void,
    lock: Option<LockFunction>,
    unlock: Option<LockFunction>,
}

words!(QemuLockable, 3);
const _: () = assert!(
    offset_of!(QemuLockable, object) == 0
        && offset_of!(QemuLockable, lock) == 8
        && offset_of!(QemuLockable, unlock) == 16,
    "the header says otherwise"
);

/// One of the bits of `CoQueueWaitFlags`.
const FRONT: c_int = 1;

/// # Safety
/// `function` may be called with the lockable's object.
unsafe fn call(lock: Option<&QemuLockable>, which: fn(&QemuLockable) -> Option<LockFunction>) {
    if let Some(lock) = lock
        && let Some(function) = which(lock)
    {
        // SAFETY: the caller's promise.
        unsafe { function(lock.object) };
    }
}

/// The queue at `queue`; dies if it is null.
///
/// # Safety
/// `queue` is null or a queue.
#[inline]
unsafe fn at<'a>(queue: *mut CoQueue, function: &str) -> &'a Queue {
    // SAFETY: the caller's promise.
    match unsafe { queue.as_ref() } {
        Some(queue) => &queue.0,
        None => die!("{function}: the queue is NULL"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_init(queue: *mut CoQueue) {
    abort::on_panic();
    // SAFETY: the header asks for room for one.
    unsafe {
        at(queue, "qemu_co_queue_init");
        queue.write(CoQueue(Queue::new()));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_wait(queue: *mut CoQueue, lock: *mut QemuLockable) {
    // SAFETY: as there.
    unsafe { qemu_co_queue_wait_flags(queue, lock, 0) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_wait_flags(
    queue: *mut CoQueue,
    lock: *mut QemuLockable,
    flags: c_int,
) {
    if !corio::in_coroutine() {
        die!("qemu_co_queue_wait: called outside a coroutine");
    }
    // SAFETY: the header asks for a queue, and for NULL or a lock that the caller holds.
    unsafe {
        let lock = lock.as_ref();
        let place = match flags {
            0 => Place::Back,
            FRONT => Place::Front,
            _ => die!("qemu_co_queue_wait: there are no flags {flags:#x}"),
        };
        let queue = at(queue, "qemu_co_queue_wait");
        queue.wait_after(place, || call(lock, |lock| lock.unlock));
        call(lock, |lock| lock.lock);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_next(queue: *mut CoQueue) -> bool {
    // SAFETY: the header asks for a queue.
    let next = unsafe { at(queue, "qemu_co_queue_next") }.take_one();
    next.map(corio::sync::Woken::wake).is_some()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_restart_all(queue: *mut CoQueue) {
    // SAFETY: the header asks for a queue.
    for next in unsafe { at(queue, "qemu_co_queue_restart_all") }.take_all() {
        next.wake();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_queue_empty(queue: *mut CoQueue) -> bool {
    // SAFETY: the header asks for a queue.
    unsafe { at(queue, "qemu_co_queue_empty") }.is_empty()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_enter_next(queue: *mut CoQueue, lock: *mut QemuLockable) -> bool {
    // SAFETY: the header asks for a queue, and for NULL or a lock that the caller holds.
    unsafe {
        let Some(next) = at(queue, "qemu_co_enter_next").take_one() else {
            return false;
        };
        let lock = lock.as_ref();
        call(lock, |lock| lock.unlock);
        next.wake();
        call(lock, |lock| lock.lock);
        true
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_enter_all(queue: *mut CoQueue, lock: *mut QemuLockable) {
    // SAFETY: the header asks for a queue, and for NULL or a lock that the caller holds.
    unsafe {
        let all = at(queue, "qemu_co_enter_all").take_all();
        let lock = lock.as_ref();
        call(lock, |lock| lock.unlock);
        for next in all {
            next.wake();
        }
        call(lock, |lock| lock.lock);
    }
}
