//! Waiting between coroutines of one connection, all of which run on one thread.
//!
//! Between the look at the condition and the park nothing else runs, so no wake can be missed; and
//! the condition is looked at again after each park, so a wake need not be exact. (Rejected:
//! `corio::sync`, whose locks work between threads and cost what that costs.)

use std::cell::RefCell;
use std::collections::VecDeque;

use corio::CoWaker;

/// Something that coroutines of one thread wait for.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// Those who are parked here, the one who has waited longest first.
    waiting: RefCell<VecDeque<CoWaker>>,
}

impl Signal {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Parks until `condition` holds. It is looked at once before, and after each
    /// [`fire`](Self::fire).
    #[inline]
    pub(super) fn wait_until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.park();
        }
    }

    #[cold]
    fn park(&self) {
        let Some(me) = CoWaker::current() else {
            // Says what is wrong.
            return corio::park();
        };
        let withdraw = Withdraw { signal: self, me };
        self.waiting.borrow_mut().push_back(withdraw.me);
        corio::park();
    }

    /// Has those who wait look again.
    pub(super) fn fire(&self) {
        // As many as there are now: who looks and waits again is not of them.
        let now = self.waiting.borrow().len();
        for _ in 0..now {
            self.fire_one();
        }
    }

    /// Has the one who has waited longest look again.
    pub(super) fn fire_one(&self) {
        let waiter = self.waiting.borrow_mut().pop_front();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// Takes the entry back if the park ended without it, early or by unwinding.
struct Withdraw<'a> {
    signal: &'a Signal,
    me: CoWaker,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.signal
            .waiting
            .borrow_mut()
            .retain(|waiter| *waiter != self.me);
    }
}
