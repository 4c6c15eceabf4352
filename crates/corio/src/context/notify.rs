//! The notify protocol: waking a poll that is about to block, without a system call when nobody
//! blocks (SPEC N1 to N5).
//!
//! ```text
//!   notifier                                   poll (home thread)
//!   ---------------------------------          -------------------------------------------
//!   publish work                               notify_me += 2
//!   notified = true          (1)               fence SeqCst                      (a)
//!   fence SeqCst             (2)               look at notified and at the work  (b)
//!   notify_me != 0 ?         (3)               nothing: block in the monitor
//!     yes: write the eventfd                   notify_me -= 2
//!                                              notified = false; fence SeqCst    (c)
//!                                              run the work
//! ```
//!
//! Invariants
//! - I1 (2) pairs with (a): either the notifier sees `notify_me` and writes the eventfd, or the
//!   poll sees `notified`.
//!   (2) pairs with (d) in the same way, for the foreign loop.
//! - I2 (2) pairs with (c): a notifier whose `notified = true` was overwritten by the accept
//!   published its work before the poll looks at it.
//! - I3 `notified` is always set; only the eventfd is skipped.
//!
//! Bit 0 of `notify_me` stands for a foreign loop that may be waiting for the context's descriptor;
//! polls count in steps of 2. The bit is set from prepare until dispatch and not until check: a loop
//! may prepare, find another source ready and not check at all, and then wait again.
//!
//! ```text
//!   foreign loop (home thread)
//!   ---------------------------------------------------------------
//!   prepare:  notify_me |= 1; fence SeqCst                       (d)
//!             look at notified and at the work: say so, or
//!   wait for the descriptor, in which the eventfd is
//!   dispatch: notify_me &= !1; a turn that does not block
//! ```

use crate::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// A foreign loop may be waiting.
const FOREIGN: u32 = 1;
/// One poll in progress.
const POLL: u32 = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct NotifyState {
    notify_me: AtomicU32,
    notified: AtomicBool,
}

impl NotifyState {
    pub(crate) fn new() -> Self {
        Self {
            notify_me: AtomicU32::new(0),
            notified: AtomicBool::new(false),
        }
    }

    /// After work has been published. True: the caller must write the eventfd. Any thread, and
    /// signal handlers.
    #[must_use]
    pub(crate) fn notify(&self) -> bool {
        // Planted: a poll that accepts this may then overlook what was published before.
        let order = if planted!("notify_relaxed") {
            Ordering::Relaxed
        } else {
            Ordering::Release // Pairs with (c): I2.
        };
        self.notified.store(true, order);
        self.let_loom_switch();
        // Planted: without the fence the two sides can miss each other.
        if !planted!("notify_fence") {
            fence(Ordering::SeqCst); // (2): pairs with `begin_wait` and `accept`.
        }
        self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// After publishing what shortens a wait and is no work yet. True: the caller must write the
    /// eventfd. Not setting `notified` keeps the next wait as long as it may be. Any thread, and
    /// signal handlers.
    #[must_use]
    pub(crate) fn shorten_wait(&self) -> bool {
        self.let_loom_switch();
        // As (2): the poll sees what was published, or we see the poll. Planted: as in `notify`.
        if !planted!("shorten_fence") {
            fence(Ordering::SeqCst);
        }
        self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// loom switches threads at loads and stores and never at a fence, so that a fence would always
    /// take effect together with the store before it: a load that is thrown away lets others in
    /// between.
    #[inline(always)]
    fn let_loom_switch(&self) {
        if cfg!(loom) {
            let _ = self.notify_me.load(Ordering::Relaxed);
        }
    }

    /// Before looking whether there is reason not to block. Home thread.
    pub(crate) fn begin_wait(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls + POLL, Ordering::Relaxed); // Only the home thread writes it.
        self.let_loom_switch();
        fence(Ordering::SeqCst); // (a): pairs with `notify`.
    }

    /// After blocking. Home thread.
    pub(crate) fn end_wait(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls - POLL, Ordering::Release);
    }

    /// Before a foreign loop waits, and before it is looked whether there is reason not to. Home
    /// thread.
    pub(crate) fn begin_foreign(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls | FOREIGN, Ordering::Relaxed);
        self.let_loom_switch();
        // Planted: without the fence the two sides can miss each other.
        if !planted!("foreign_fence") {
            fence(Ordering::SeqCst); // (d): pairs with `notify`.
        }
    }

    /// Before a foreign loop's turn, and once there is no foreign loop any more. Home thread.
    pub(crate) fn end_foreign(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls & !FOREIGN, Ordering::Release);
    }

    /// True if a notification has not been accepted yet.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed)
    }

    /// Takes the notification; work published before it is seen from here on. Home thread.
    pub(crate) fn accept(&self) {
        if self.notified.load(Ordering::Relaxed) {
            self.notified.store(false, Ordering::Relaxed);
            self.let_loom_switch();
            fence(Ordering::SeqCst); // (c): pairs with `notify`.
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::atomic::AtomicBool as Flag;
    use crate::model;
    use loom::sync::{Arc, Condvar, Mutex};

    struct Model {
        state: NotifyState,
        work: Flag,
        eventfd: Mutex<bool>,
        readable: Condvar,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                state: NotifyState::new(),
                work: Flag::new(false),
                eventfd: Mutex::new(false),
                readable: Condvar::new(),
            })
        }

        fn write_eventfd(&self) {
            *self.eventfd.lock().unwrap() = true;
            self.readable.notify_one();
        }

        /// Blocks as the monitor does; loom reports a wait that nobody ends.
        fn wait_and_read_eventfd(&self) {
            let mut readable = self.eventfd.lock().unwrap();
            while !*readable {
                readable = self.readable.wait(readable).unwrap();
            }
            *readable = false;
        }
    }

    /// Publishes work and tells the poll by `tell`, in a thread of its own.
    fn notifier(
        model: &Arc<Model>,
        published: Ordering,
        tell: fn(&NotifyState) -> bool,
    ) -> loom::thread::JoinHandle<()> {
        let model = Arc::clone(model);
        loom::thread::spawn(move || {
            model.work.store(true, published);
            if tell(&model.state) {
                model.write_eventfd();
            }
        })
    }

    /// One notifier, one poll that blocks if it may: it must never block for ever with work
    /// published.
    fn lost_wakeup() {
        let model = Model::new();
        let notifier = notifier(&model, Ordering::Relaxed, NotifyState::notify);
        // A turn that may find nothing, then one that would block.
        for _ in 0..2 {
            model.state.begin_wait();
            let blocks = !model.state.is_notified() && !model.work.load(Ordering::Relaxed);
            if blocks {
                model.wait_and_read_eventfd();
            }
            model.state.end_wait();
            model.state.accept();
            if model.work.load(Ordering::Relaxed) {
                break;
            }
        }
        notifier.join().unwrap();
        assert!(model.work.load(Ordering::Relaxed));
    }

    // SPEC L7, N1, N4
    #[test]
    fn loom_notify_is_never_lost() {
        model::check(None, lost_wakeup);
    }

    /// A foreign loop prepares, and waits for the descriptor if it may; it may also prepare twice
    /// without a turn in between, as when another source of its was ready first.
    fn foreign() {
        let model = Model::new();
        let notifier = notifier(&model, Ordering::Relaxed, NotifyState::notify);
        model.state.begin_foreign();
        for _ in 0..2 {
            model.state.begin_foreign();
            let waits = !model.state.is_notified() && !model.work.load(Ordering::Relaxed);
            if waits {
                model.wait_and_read_eventfd();
            }
            model.state.end_foreign();
            model.state.accept();
            if model.work.load(Ordering::Relaxed) {
                break;
            }
        }
        notifier.join().unwrap();
        assert!(model.work.load(Ordering::Relaxed));
    }

    // SPEC L7, N1, G3
    #[test]
    fn loom_notify_reaches_a_foreign_loop() {
        model::check(None, foreign);
    }

    /// A flag of the poll's caller, who looks at it between two polls only, as an IoThread does at
    /// `stopping`: whoever sets it and notifies must not be slept over.
    fn kick() {
        let model = Model::new();
        let notifier = notifier(&model, Ordering::Release, NotifyState::notify);
        model.state.accept(); // The turn that is just ending.
        while !model.work.load(Ordering::Acquire) {
            model.state.begin_wait();
            if !model.state.is_notified() {
                model.wait_and_read_eventfd();
            }
            model.state.end_wait();
            model.state.accept();
        }
        notifier.join().unwrap();
    }

    // SPEC L7, N1, W1
    #[test]
    fn loom_notify_a_flag_of_the_callers_is_not_slept_over() {
        model::check(None, kick);
    }

    /// What shortens a wait without being work (an idle bottom half): the poll must not block
    /// without a limit once it is there.
    fn shortened() {
        let model = Model::new();
        let notifier = notifier(&model, Ordering::Relaxed, NotifyState::shorten_wait);
        for _ in 0..2 {
            model.state.begin_wait();
            let has_limit = model.work.load(Ordering::Relaxed);
            if !has_limit {
                model.wait_and_read_eventfd();
            }
            model.state.end_wait();
            model.state.accept();
            if has_limit {
                break;
            }
        }
        notifier.join().unwrap();
    }

    // SPEC L7, N1, B4
    #[test]
    fn loom_notify_a_shortened_wait_is_not_slept_over() {
        model::check(None, shortened);
    }
}
