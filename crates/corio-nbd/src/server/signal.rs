//! Waiting between coroutines of one connection, all of which run on one thread.
//!
//! Between the look at the condition and the wait nothing else runs, so no wake can be missed; and the
//! condition is looked at again after each wake, so none needs to be exact.

use corio::sync::Queue;

/// Something that coroutines of one thread wait for.
#[derive(Debug)]
pub(super) struct Signal {
    waiters: Queue,
}

impl Signal {
    pub(super) fn new() -> Self {
        Self {
            waiters: Queue::new(),
        }
    }

    /// Parks until `condition` holds. It is looked at once before, and after each [`fire`](Self::fire).
    pub(super) fn wait_until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.waiters.wait();
        }
    }

    /// Has those who wait look again.
    pub(super) fn fire(&self) {
        self.waiters.wake_all();
    }

    /// Has the one who has waited longest look again.
    pub(super) fn fire_one(&self) {
        self.waiters.wake_one();
    }
}
