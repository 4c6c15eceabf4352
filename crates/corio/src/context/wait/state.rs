//! Who waits, counted, so that a kick that nobody waits for costs a fence and a load.
//!
//! ```text
//!   kicker                                     waiter
//!   ---------------------------------          -------------------------------------------
//!   change the condition                       waiters += 1
//!   fence SeqCst                (1)            fence SeqCst                      (a)
//!   waiters != 0 ?                             look at the condition
//!     yes: notify those who poll               still so: poll
//! ```
//!
//! Invariants
//! - I1 (1) pairs with (a): either the kicker sees the waiter, or the waiter sees the condition
//!   changed.
//! - I2 Who is counted is listed: a waiter is put in the list before it is counted, and taken out
//!   after.

use crate::atomic::{AtomicU32, Ordering, fence};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct WaiterCount {
    waiters: AtomicU32,
}

impl WaiterCount {
    pub(super) fn new() -> Self {
        Self {
            waiters: AtomicU32::new(0),
        }
    }

    /// Before the waiter looks at its condition. Any thread.
    pub(super) fn enter(&self) {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        self.let_loom_switch();
        // Planted: without the fence the two sides can miss each other.
        if !planted!("wait_fence") {
            fence(Ordering::SeqCst); // (a): pairs with `is_awaited`.
        }
    }

    /// Once it waits no more. Any thread.
    pub(super) fn leave(&self) {
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }

    /// After a condition has changed. True: somebody may be polling for it. Any thread, and signal
    /// handlers.
    #[must_use]
    pub(super) fn is_awaited(&self) -> bool {
        self.let_loom_switch();
        // Planted: as in `enter`.
        if !planted!("kick_fence") {
            fence(Ordering::SeqCst); // (1): pairs with `enter`.
        }
        self.waiters.load(Ordering::Relaxed) != 0
    }

    /// As in `notify`: loom does not switch at a fence.
    #[inline(always)]
    fn let_loom_switch(&self) {
        if cfg!(loom) {
            let _ = self.waiters.load(Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::atomic::AtomicBool;
    use crate::model;
    use loom::sync::{Arc, Condvar, Mutex};

    struct Model {
        count: WaiterCount,
        condition: AtomicBool,
        notified: Mutex<bool>,
        changed: Condvar,
    }

    /// The condition changes once, and once only is kicked: the waiter must not sleep over it. The
    /// poll is a wait that a notification ends, also one that came before.
    fn kicked() {
        let model = Arc::new(Model {
            count: WaiterCount::new(),
            condition: AtomicBool::new(true),
            notified: Mutex::new(false),
            changed: Condvar::new(),
        });
        let kicker = {
            let model = Arc::clone(&model);
            loom::thread::spawn(move || {
                model.condition.store(false, Ordering::Relaxed);
                if model.count.is_awaited() {
                    *model.notified.lock().unwrap() = true;
                    model.changed.notify_one();
                }
            })
        };
        model.count.enter();
        while model.condition.load(Ordering::Relaxed) {
            let mut notified = model.notified.lock().unwrap();
            while !*notified {
                notified = model.changed.wait(notified).unwrap();
            }
            *notified = false;
        }
        model.count.leave();
        kicker.join().unwrap();
    }

    // SPEC L7, W1
    #[test]
    fn loom_wait_is_not_slept_over() {
        model::check(None, kicked);
    }
}
