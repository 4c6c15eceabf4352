//! Who waits: a coroutine that parks, or a plain thread that blocks.

// A queued record must not be left (record.rs I1).
#![allow(unsafe_code)]

use std::thread::{self, Thread};

use super::record::{Line, Record, Wake};
use crate::context::Local;
use crate::coroutine;
use crate::schedule::{self, CoWaker};
use crate::track::{self, Kind};

/// Gets a waiter going again. Public only in the bounds of [`Selectable`](super::Selectable), where
/// nobody else can name it.
#[derive(Clone, Debug)]
#[allow(unreachable_pub)]
pub enum Waiter {
    Coroutine {
        token: CoWaker,
        // For tracking.
        id: u64,
    },
    Thread(Thread),
}

impl Waiter {
    /// The running coroutine or thread, which is about to wait in `what`.
    ///
    /// # Panics
    /// In a coroutine whose home has no loop, and on a loop's thread outside a coroutine.
    #[track_caller]
    pub(super) fn current(what: &str) -> Waiter {
        Waiter::possible().unwrap_or_else(|| {
            let co = schedule::parkable(what);
            unreachable!("{} can park but has no token", co.describe())
        })
    }

    /// As `current`; None where that panics.
    #[inline]
    pub(super) fn possible() -> Option<Waiter> {
        match CoWaker::current() {
            Some(token) => Some(Waiter::Coroutine {
                token,
                id: coroutine::running_id(),
            }),
            None if coroutine::in_coroutine() || Local::current().is_some() => None,
            None => Some(Waiter::Thread(thread::current())),
        }
    }

    /// Panics on a loop's thread outside a coroutine, where `what` must not wait; for callers that
    /// may not have to, so that the mistake shows each time.
    #[track_caller]
    #[inline]
    pub(super) fn check(what: &str) {
        if !coroutine::in_coroutine() && Local::current().is_some() {
            schedule::parkable(what);
        }
    }

    /// Parks or blocks until `done` says so. A cancellation point for a coroutine: may unwind.
    #[track_caller]
    #[inline(always)] // As `park`: each return after a switch is one that the CPU predicts wrong.
    pub(super) fn wait_until(&self, done: impl Fn() -> bool) {
        while !done() {
            match self {
                Waiter::Coroutine { .. } => schedule::park(),
                Waiter::Thread(_) => thread::park(),
            }
        }
    }
}

impl Wake for Waiter {
    fn wake(self) {
        match self {
            Waiter::Coroutine { token, .. } => token.wake(),
            Waiter::Thread(thread) => thread.unpark(),
        }
    }

    fn id(&self) -> u64 {
        match self {
            Waiter::Coroutine { id, .. } => *id,
            Waiter::Thread(_) => 0,
        }
    }

    fn running_id() -> u64 {
        coroutine::running_id()
    }
}

/// A queued record whose waiter is about to wait. Who unwinds before it is granted, as when it is
/// cancelled, takes the record out: this keeps record.rs I1.
pub(super) struct Queued<'a, L: Line<Waiter>> {
    line: &'a L,
    record: &'a Record<Waiter>,
}

impl<'a, L: Line<Waiter>> Queued<'a, L> {
    /// # Safety
    /// The caller has queued the record in this line, and only looks at it from now on.
    pub(super) unsafe fn new(line: &'a L, record: &'a Record<Waiter>) -> Queued<'a, L> {
        Queued { line, record }
    }

    /// Waits until the record is granted. A cancellation point for a coroutine: may unwind.
    #[track_caller]
    pub(super) fn wait(self) {
        let record = self.record;
        let number = self.line.number();
        track::emit(Kind::LockWait, number, coroutine::running_id(), 0);
        record.waker().wait_until(|| record.is_granted());
        core::mem::forget(self);
    }
}

impl<L: Line<Waiter>> Drop for Queued<'_, L> {
    fn drop(&mut self) {
        // SAFETY: queued there by who made this, and not used by it any more.
        unsafe { self.line.abandon(self.record) };
    }
}
