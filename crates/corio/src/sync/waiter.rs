//! Who waits: a coroutine that parks, or a plain thread that blocks.

use std::thread::{self, Thread};

use super::record::Wake;
use crate::context::Local;
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// Refuses a wait where it would stop a loop, whether there is something to wait for or not.
#[track_caller]
#[inline]
pub(super) fn may_wait(what: &str) {
    if !coroutine::in_coroutine() && Local::current().is_some() {
        schedule::parkable(what);
    }
}

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

    /// Parks or blocks until `done` says so. A cancellation point for a coroutine: may unwind.
    #[track_caller]
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
