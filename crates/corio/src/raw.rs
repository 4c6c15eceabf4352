//! What the C interface (the crate `corio-capi`) needs and Rust's own does not offer: coroutines by
//! pointers, which no home owns and any thread may enter, and threads that are home for good.
//!
//! Not for use from Rust: nothing here is checked by types. No version promises that it stays.

#![allow(unsafe_code)] // What was forgotten is taken up; the contracts are the callers'.

use std::io;
use std::os::fd::OwnedFd;

mod disk;

pub use self::disk::Disk;
#[cfg(all(target_arch = "x86_64", not(feature = "asan")))]
pub use crate::coroutine::loose::layout;
pub use crate::coroutine::loose::{Loose, Refused, SETTLE};
pub use crate::schedule::loose::{
    Loop, create, enter, queue_beside_running, token_of_running, wake_token,
};

use crate::context::{AioContext, BottomHalf};
use crate::coroutine;
use crate::engine;
use crate::sync::{Event, LockCnt, LockCntGuard, Semaphore, Visit};
use crate::sys;

/// Runs the bottom halves that are scheduled, and no more. True: progress. The home thread only.
pub fn run_bottom_halves(context: &AioContext) -> bool {
    context.run_bottom_halves()
}

/// Schedules a bottom half where that takes no call, so that who does nothing else saves no register.
/// False: it has to be [scheduled](BottomHalf::schedule). Any thread.
#[inline(always)]
pub fn schedule_plainly(half: &BottomHalf) -> bool {
    half.schedule_plainly()
}

/// Whether a turn would find something to do. The home thread only.
///
/// # Errors
/// The monitor refused something.
pub fn has_work(context: &AioContext) -> io::Result<bool> {
    context.has_work()
}

/// How long a wait may last for all that the context knows but descriptors; None: without limit. The
/// home thread only.
#[must_use]
pub fn wait_ns_max(context: &AioContext) -> Option<u64> {
    context.wait_ns_max()
}

/// Another descriptor of the epoll set that the context's loop waits in; None if it waits by other
/// means. The home thread only.
///
/// # Errors
/// There are no more descriptors.
pub fn descriptor_set(context: &AioContext) -> Option<io::Result<OwnedFd>> {
    context.descriptor_set()
}

/// Has a notification that has come used up, as a turn does. Any thread.
pub fn accept_notification(context: &AioContext) {
    context.accept_notification();
}

/// Prepares the thread that calls it for a loop, as an IoThread is: signals blocked, timers without
/// slack.
pub fn prepare_loop_thread() {
    sys::thread::prepare_loop_thread();
}

/// The end of a gather, when it is dropped; on whichever thread it began.
#[doc(hidden)]
#[derive(Debug)]
#[must_use = "the gather ends when this is dropped"]
pub struct EndOfGather(#[expect(dead_code, reason = "it acts when dropped")] engine::EndOfGather);

/// Begins what [`engine::gather`] does around a closure; ends when the value is dropped. None where
/// there is no loop.
pub fn begin_gather() -> Option<EndOfGather> {
    engine::begin_gather().map(EndOfGather)
}

/// Waits until the event is set: a coroutine that can park parks, anything else blocks its thread.
pub fn wait_or_block(event: &Event) {
    event.wait_or_block();
}

/// How many coroutine locks the running coroutine holds.
#[must_use]
#[inline]
pub fn locks_held() -> u32 {
    coroutine::current().map_or(0, coroutine::CoRef::locks_held)
}

/// Before an event goes: returns once whoever has set it does not look at it any more, though those
/// who waited may have gone on. False: somebody waits for it.
#[must_use]
pub fn settle_event(event: &Event) -> bool {
    event.settle()
}

/// Before a semaphore goes: as [`settle_event`], of those who have given permits back.
pub fn settle_semaphore(semaphore: &Semaphore) {
    semaphore.settle();
}

/// Gives back permits whose [`Permit`](crate::sync::Permit) was forgotten.
pub fn give_back(semaphore: &Semaphore, amount: usize) {
    semaphore.give_back(amount);
}

/// Whether somebody has the lock; only a hint.
#[must_use]
pub fn is_locked(lock_cnt: &LockCnt) -> bool {
    lock_cnt.is_locked()
}

/// A visit that was forgotten.
///
/// # Safety
/// There is one, and nobody else takes it up.
pub unsafe fn forgotten_visit(lock_cnt: &LockCnt) -> Visit<'_> {
    // SAFETY: the caller's promise.
    unsafe { lock_cnt.forgotten_visit() }
}

/// A lock whose guard was forgotten.
///
/// # Safety
/// There is one, and nobody else takes it up.
pub unsafe fn forgotten_guard(lock_cnt: &LockCnt) -> LockCntGuard<'_> {
    // SAFETY: the caller's promise.
    unsafe { lock_cnt.forgotten_guard() }
}
