//! The notify protocol: waking a poll that is about to block, without a system call when nobody
//! blocks (SPEC N1 to N5).
//!
//! ```text
//!   notifier                                   poll (home thread)
//!   ---------------------------------          -------------------------------------------
//!   publish work                               notify_me += 2
//!   exchange notified for true   (1)           look at notified by an exchange       (a)
//!   notify_me != 0 ?             (2)           nothing, and no work: block in the monitor
//!     yes: write the eventfd                   notify_me -= 2
//!                                              exchange notified for false           (b)
//!                                              run the work
//! ```
//!
//! Exchanges of one word have one order, and each sees what came before those before it. So they are
//! all the ordering that is needed; a fence on either side would cost the same.
//!
//! Invariants
//! - I1 (1) pairs with (a): either (1) comes first and the poll sees `notified`, or (a) does, and
//!   the notifier sees `notify_me` and writes the eventfd. (d) is to a foreign loop what (a) is to
//!   a poll.
//! - I2 (1) pairs with (b): a notifier whose `notified = true` was taken by the accept published its
//!   work before the poll looks at it. Storing `false` would not do: it may overwrite a `true` that
//!   was not looked at, after an earlier one that was.
//! - I3 `notified` is always set by a notification; only the eventfd is skipped. What the home
//!   thread publishes itself between two polls needs neither: it looks before it blocks.
//! - I4 Of those whose exchanges follow one another without an accept in between, the first decides
//!   for all: (a) came before it, and it writes the eventfd, or comes after all of them, or sees the
//!   first one's `true`. Only an exchange can tell; who loads `notified` and finds it set may be too
//!   late for the accept.
//! - I5 A list of work has exchanges of its own, which take the place of those of `notified`: of
//!   pushes, of the look at its head (after (a), or (d)), and of who takes all of it. A push onto an
//!   empty list is (1), and decides for those that follow until the list is taken.
//!
//! Bit 0 of `notify_me` stands for a foreign loop that may be waiting for the context's descriptor;
//! polls count in steps of 2. The bit is set from prepare until dispatch and not until check: a loop
//! may prepare, find another source ready and not check at all, and then wait again.
//!
//! ```text
//!   foreign loop (home thread)
//!   ---------------------------------------------------------------
//!   prepare:  notify_me |= 1; look at notified by an exchange    (d)
//!             nothing, and no work, or say so
//!   wait for the descriptor, in which the eventfd is
//!   dispatch: notify_me &= !1; a turn that does not block
//! ```

use core::sync::atomic::compiler_fence;

use crate::atomic::{AtomicBool, AtomicU32, Ordering};

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
        // Planted: it was set for what came before, and may be about to be accepted.
        if planted!("notify_skipped") && self.notified.load(Ordering::Relaxed) {
            return false;
        }
        // AcqRel (1): pairs with (a) and (b). Planted: a poll that accepts this may then overlook
        // what was published before; a store has no place among the exchanges, so that the two sides
        // can miss each other.
        let before = if planted!("notify_stored") {
            self.notified.store(true, Ordering::Release);
            false
        } else {
            let is_planted = planted!("notify_relaxed");
            let order = if is_planted {
                Ordering::Relaxed
            } else {
                Ordering::AcqRel
            };
            self.notified.swap(true, order)
        };
        // Who set it before us, and is not accepted yet, writes the eventfd if that is to be: I4.
        !before && self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// After work was pushed onto an empty list, at whose head the home looks by an exchange once it
    /// has begun to wait (I5). True: the caller must write the eventfd. Any thread, and signal
    /// handlers.
    #[must_use]
    pub(crate) fn pushed(&self) -> bool {
        // Not `notified`: who finds it set relies on whoever set it (I4), which only an exchange
        // may do.
        self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// After publishing what shortens a wait and is no work yet. True: the caller must write the
    /// eventfd. Not setting `notified` keeps the next wait as long as it may be. Any thread, and
    /// signal handlers.
    #[must_use]
    pub(crate) fn shorten_wait(&self) -> bool {
        // As (1), without setting it. Planted: as in `notify`.
        if !planted!("shorten_nothing") {
            self.look();
        }
        self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// Before looking whether there is reason not to block. Home thread.
    pub(crate) fn begin_wait(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls + POLL, Ordering::Relaxed); // Only the home thread writes it.
        // (a). Planted: as in `notify`.
        if !planted!("wait_looks_only") {
            self.look();
        }
    }

    /// An exchange that changes nothing, and has its place among those that do. Not `fetch_or(false)`:
    /// on x86-64 the compiler makes nothing of that.
    fn look(&self) {
        let mut seen = self.notified.load(Ordering::Relaxed);
        // AcqRel: pairs with `notify`, and each with the other.
        while let Err(now) =
            self.notified
                .compare_exchange_weak(seen, seen, Ordering::AcqRel, Ordering::Relaxed)
        {
            seen = now;
        }
    }

    /// After blocking. Home thread.
    pub(crate) fn end_wait(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls - POLL, Ordering::Release);
    }

    /// Whether a poll is in progress, or a foreign loop may be waiting. Home thread and
    /// its signal handlers, for whom that is all there is to know: with none, the next one looks at
    /// what they have published before.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        // Not before what was published: a handler may come in between.
        compiler_fence(Ordering::SeqCst);
        self.notify_me.load(Ordering::Relaxed) != 0
    }

    /// Before a foreign loop waits, and before it is looked whether there is reason not to. Home
    /// thread.
    pub(crate) fn begin_foreign(&self) {
        let polls = self.notify_me.load(Ordering::Relaxed);
        self.notify_me.store(polls | FOREIGN, Ordering::Relaxed);
        // (d). Planted: as in `begin_wait`.
        if !planted!("foreign_looks_only") {
            self.look();
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
        if !self.is_notified() || planted!("accept_nothing") {
            return; // Planted: each wait from here on ends at once.
        }
        self.notified.swap(false, Ordering::Acquire); // (b): pairs with `notify`.
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC N2, N3
    #[test]
    fn only_who_may_be_blocked_costs_a_system_call() {
        let state = NotifyState::new();
        assert!(!state.notify(), "nobody waits");
        assert!(state.is_notified(), "set all the same");
        state.accept();
        state.begin_wait();
        state.begin_wait(); // A nested poll.
        assert!(state.notify(), "two polls may be blocked");
        state.end_wait();
        state.accept();
        assert!(state.notify(), "the outer one goes on");
        state.end_wait();
        state.accept();
        state.begin_foreign();
        assert!(state.notify(), "a foreign loop may wait");
        state.end_foreign();
        state.accept();
        assert!(!state.notify() && !state.shorten_wait());
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
        other_work: Flag,
        eventfd: Mutex<bool>,
        readable: Condvar,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                state: NotifyState::new(),
                work: Flag::new(false),
                other_work: Flag::new(false),
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

    /// Two notifications, one after the other, the first of which may still be there when the
    /// second comes: neither is slept over.
    fn again() {
        // Not dropped when loom reports a deadlock: it could not say so any more.
        let model = core::mem::ManuallyDrop::new(Model::new());
        let other = {
            let model = Arc::clone(&*model);
            loom::thread::spawn(move || {
                if model.state.notify() {
                    model.write_eventfd();
                }
                model.work.store(true, Ordering::Release);
                if model.state.notify() {
                    model.write_eventfd();
                }
            })
        };
        while !model.work.load(Ordering::Acquire) {
            model.state.begin_wait();
            if !model.state.is_notified() {
                model.wait_and_read_eventfd();
            }
            model.state.end_wait();
            model.state.accept();
        }
        other.join().unwrap();
        drop(core::mem::ManuallyDrop::into_inner(model));
    }

    // SPEC L7, N1, N3
    #[test]
    fn loom_notify_again_is_not_skipped() {
        model::check(3, again);
    }

    /// Two notifiers, each with work of its own: whichever's notification is taken, no poll blocks
    /// while there is work of the other.
    fn two() {
        // As in `again`.
        let model = core::mem::ManuallyDrop::new(Model::new());
        let both = [&model.work, &model.other_work];
        let other = |published: fn(&Model) -> &Flag| {
            let model = Arc::clone(&*model);
            loom::thread::spawn(move || {
                published(&model).store(true, Ordering::Relaxed);
                if model.state.notify() {
                    model.write_eventfd();
                }
            })
        };
        let notifiers = [other(|model| &model.work), other(|model| &model.other_work)];
        let mut taken = 0;
        while taken < 2 {
            model.state.begin_wait();
            let has_work = both.iter().any(|work| work.load(Ordering::Relaxed));
            if !model.state.is_notified() && !has_work {
                model.wait_and_read_eventfd();
            }
            model.state.end_wait();
            model.state.accept();
            for work in both {
                if work.load(Ordering::Relaxed) {
                    work.store(false, Ordering::Relaxed);
                    taken += 1;
                }
            }
        }
        notifiers.into_iter().for_each(|it| it.join().unwrap());
        drop(core::mem::ManuallyDrop::into_inner(model));
    }

    // SPEC L7, N1, N4
    #[test]
    fn loom_notify_of_two_neither_is_lost() {
        model::check(3, two);
    }

    /// One notification ends at most two waits: by the flag, and by the eventfd that was written
    /// for it. Then the poll blocks.
    fn taken_once() {
        let model = Model::new();
        let notifier = notifier(&model, Ordering::Release, NotifyState::notify);
        let mut ended = 0;
        let mut turn = |model: &Model| {
            model.state.begin_wait();
            let notified = model.state.is_notified();
            let readable = core::mem::take(&mut *model.eventfd.lock().unwrap());
            model.state.end_wait();
            model.state.accept();
            if notified || readable {
                ended += 1;
            }
            notified || readable
        };
        turn(&model);
        notifier.join().unwrap();
        // As often as there could be a reason.
        for _ in 0..3 {
            turn(&model);
        }
        assert!(!turn(&model), "the loop is busy with nothing");
        assert!(ended <= 2, "{ended} waits ended");
    }

    // SPEC L7, N4
    #[test]
    fn loom_notify_keeps_no_loop_busy() {
        model::check(None, taken_once);
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
