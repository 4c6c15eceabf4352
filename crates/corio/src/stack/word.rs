//! The slot word: one atomic that holds a stack slot's generation and its coroutine's wake state.
//!
//! ```text
//!            wake: set NOTIFIED             park: consume, go on
//!   RUNNING ------------------> NOTIFIED ---------------------> RUNNING
//!    |   ^                                                         ^
//!    |   | the home thread: wakes it,                              | claim (the home thread,
//!    v   | or enters it by hand (I6)                               | about to enter)
//!   PARKED ---------------------------------> SCHEDULED -----------+
//!             another thread's wake: whoever wins queues it
//!
//!   ALONE, while there is no token (I7): the first one makes it RUNNING, or PARKED if the
//!   coroutine is parked, which the key in its control block tells
//!
//!   from any of them: the coroutine ends, ALONE of the next generation
//! ```
//!
//! Invariants
//! - I1 The high 32 bits are the generation. They change only when the slot's coroutine ends, by
//!   the home thread. A token of an older generation therefore never changes a word again.
//! - I2 Exactly one wins a word that is PARKED: a waker, which queues the slot exactly once, or the
//!   home thread, which enters it or queues it.
//! - I3 Every transition that a token can race with, but the last, is a read-modify-write, so that a
//!   waker that finds SCHEDULED or NOTIFIED and does nothing is ordered before the claim or the park
//!   that follows, which then sees what the waker published. The end of a generation is a plain
//!   store (`retire`): no wake of it is of use any more.
//! - I4 A wake is used up by the park that consumes it or by the entry that it brought about, by
//!   nothing else: yielding keeps it.
//! - I5 RUNNING and ALONE also stand for a coroutine that is suspended without being parked, ALONE
//!   for a free slot. No waker queues either.
//! - I6 What the home thread queues by itself (a yield, by name, a wake beside the waker) is RUNNING,
//!   and the control block's key says that it is queued. One that was parked it wins by PARKED ->
//!   RUNNING. Who is woken meanwhile is found RUNNING, and the wake is left for its next park.
//! - I7 While a word is ALONE there is no token of its generation, and only the home thread looks at
//!   it: the control block's key alone tells whether the coroutine is parked. Whoever makes a token
//!   has the word leave ALONE first (`share`), in the home thread; it does not come back to it in
//!   that generation.
//! - I8 A loose coroutine (`coroutine::loose`) is queued by name by whoever brings its word from
//!   RUNNING or NOTIFIED to SCHEDULED, while it runs or is suspended, and by nobody else. Where it
//!   suspends meanwhile it stays SCHEDULED, and is entered from the queue. One that parks is for its
//!   wakes: of the two that want both, park and who queues it by name, the later one is told. What
//!   I6 says of a wake beside the waker is not so of it: that brings its word to SCHEDULED, too.

use crate::atomic::{AtomicU64, Ordering};

const STATE_BITS: u32 = 32;
const ALONE: u64 = 0;
const RUNNING: u64 = 1;
// More than what a coroutine's key can be, so that key and word are compared at once
// (`coroutine::loose::layout`).
const NOTIFIED: u64 = 16;
const PARKED: u64 = 17;
const SCHEDULED: u64 = 18;

/// What a wake must do next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The waker won: it must queue the slot.
    Queue,
    /// Nothing: it runs, is queued already, or is another coroutine by now.
    Nothing,
}

/// What a coroutine that wants to park must do next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Park {
    /// Suspend: only a wake, or the home thread, gets it going again.
    Suspend,
    /// It is queued by name: it must not wait for anything else (I8).
    Scheduled,
    /// A wake came first and has been consumed: look at the condition again.
    Notified,
}

/// What whoever wants to queue a coroutine by name must do next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByName {
    /// Queue it.
    Queue,
    /// Nothing: somebody has queued it, by name or by a wake.
    Scheduled,
    /// Nothing: it is parked.
    Parked,
    /// Nothing: it has ended.
    Ended,
}

/// The word. See the module's documentation.
#[derive(Debug)]
pub(crate) struct SlotWord(AtomicU64);

impl SlotWord {
    /// What a word is besides its generation when [`is_quiet`](Self::is_quiet) is true.
    pub(crate) const QUIET: u64 = RUNNING;

    /// Whether a word may be this besides its generation.
    pub(crate) const fn is_state(state: u64) -> bool {
        matches!(state, ALONE | RUNNING | NOTIFIED | PARKED | SCHEDULED)
    }

    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(pack(1, ALONE)))
    }

    /// A token of the living coroutine is about to be made: from here on others may wake it (I7).
    /// Home thread only.
    #[inline]
    pub(crate) fn share(&self, generation: u32, is_parked: bool) {
        if self.0.load(Ordering::Relaxed) == pack(generation, ALONE) {
            // Planted: a wake finds it running, and leaves it parked.
            let is_parked = is_parked && !planted!("word_shared_parked");
            let next = if is_parked { PARKED } else { RUNNING };
            // Relaxed: published with the token.
            self.0.store(pack(generation, next), Ordering::Relaxed);
        }
    }

    /// The generation that a coroutine made now in this slot has. Home thread only.
    pub(crate) fn generation(&self) -> u32 {
        u32::try_from(self.0.load(Ordering::Relaxed) >> STATE_BITS).unwrap_or(0)
    }

    /// Has the next park of a coroutine that is just being made look twice, as if it had been woken.
    /// Its own thread; there is no token yet.
    #[inline]
    pub(crate) fn notify_new(&self, generation: u32) {
        self.0.store(pack(generation, NOTIFIED), Ordering::Relaxed);
    }

    /// A wake with a token of `generation`. Any thread.
    pub(crate) fn wake(&self, generation: u32) -> Wake {
        self.wake_to(generation, SCHEDULED)
    }

    /// The same by the home thread, which queues the winner in a list of its own: no claim follows
    /// (I6).
    #[inline]
    pub(crate) fn wake_here(&self, generation: u32) -> Wake {
        self.wake_to(generation, RUNNING)
    }

    /// A wake that leaves a parked coroutine in state `woken`.
    #[inline(always)]
    fn wake_to(&self, generation: u32, woken: u64) -> Wake {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            // Planted: the slot may be another coroutine's by now.
            let is_stale = seen >> STATE_BITS != u64::from(generation);
            if is_stale && !planted!("word_stale") {
                return Wake::Nothing;
            }
            let state = state(seen);
            debug_assert!(
                state != ALONE,
                "a token was made without a word to the slot"
            );
            let next = match state {
                RUNNING => NOTIFIED,
                PARKED => woken,
                // Planted: the publication of this waker is then ordered before nothing.
                _ if planted!("word_unwritten") => return Wake::Nothing,
                other => other, // Written all the same: I3.
            };
            // AcqRel: releases what the waker published to the claim or park that reads this;
            // acquires PARKED's publication, so that the winner may read the slot's inbox.
            match self.0.compare_exchange_weak(
                seen,
                pack(generation, next),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) if state == PARKED => return Wake::Queue,
                Ok(_) => return Wake::Nothing,
                Err(now) => seen = now,
            }
        }
    }

    /// The running coroutine parks, if it was not woken or queued since it last did; `packed` is its
    /// generation, in place. Its own thread.
    #[inline(always)]
    pub(crate) fn park_now(&self, packed: u64) -> bool {
        if self.is_alone(packed) {
            return true; // I7.
        }
        core::hint::cold_path(); // Longer anyway.
        // AcqRel: pairs with `wake` both ways.
        self.0
            .compare_exchange(
                packed | RUNNING,
                packed | PARKED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// True if there is no token of the generation, `packed` in place (I7). Home thread only.
    #[inline(always)]
    pub(crate) fn is_alone(&self, packed: u64) -> bool {
        self.0.load(Ordering::Relaxed) == packed | ALONE
    }

    /// The running coroutine is about to park. Its own thread.
    pub(crate) fn park(&self, generation: u32) -> Park {
        if self.park_now(pack(generation, 0)) {
            return Park::Suspend;
        }
        // AcqRel: pairs with `wake`, as does a park.
        let used_up = self.0.compare_exchange(
            pack(generation, NOTIFIED),
            pack(generation, RUNNING),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        match used_up {
            Err(seen) if state(seen) == SCHEDULED => {
                // Planted: whoever has queued it goes for the wake that it waits for.
                if planted!("word_park_scheduled") {
                    return Park::Suspend;
                }
                Park::Scheduled
            }
            _ => Park::Notified,
        }
    }

    /// Somebody wants to queue a loose coroutine by name, whether it runs or is suspended (I8). Any
    /// thread.
    pub(crate) fn schedule(&self, generation: u32) -> ByName {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen >> STATE_BITS != u64::from(generation) {
                return ByName::Ended;
            }
            match state(seen) {
                ALONE => return ByName::Ended, // No loose one that lives.
                PARKED => return ByName::Parked,
                SCHEDULED => return ByName::Scheduled,
                _ => {}
            }
            // Planted: it may have been queued, or have parked, since.
            if planted!("word_schedule_unchecked") {
                self.0.swap(pack(generation, SCHEDULED), Ordering::AcqRel);
                return ByName::Queue;
            }
            // AcqRel: as in `wake`. A wake that was kept is as good as the entry that follows,
            // which is ordered after it.
            match self.0.compare_exchange_weak(
                seen,
                pack(generation, SCHEDULED),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return ByName::Queue,
                Err(now) => seen = now,
            }
        }
    }

    /// True if it may be entered by hand, and no wake of it is kept; `packed` is its generation, in
    /// place. For one that has left ALONE.
    #[inline(always)]
    pub(crate) fn is_quiet(&self, packed: u64) -> bool {
        // Relaxed: whoever enters it by hand is ordered after its last run by other means.
        self.0.load(Ordering::Relaxed) == packed | Self::QUIET
    }

    /// The home thread is about to enter a coroutine that it took from the queue.
    pub(crate) fn claim(&self, generation: u32) {
        // AcqRel: pairs with `wake`, I3.
        let seen = self.0.swap(pack(generation, RUNNING), Ordering::AcqRel);
        debug_assert!(
            seen == pack(generation, SCHEDULED),
            "claimed a coroutine that was not scheduled"
        );
    }

    /// The home thread wants to enter a coroutine whose key says that it is parked, without a queue
    /// (to cancel it, or for `aio_co_wake`). False: it is scheduled, and will come out of the queue.
    pub(crate) fn claim_parked(&self, generation: u32) -> bool {
        self.claim_parked_now(pack(generation, 0))
    }

    /// The same; `packed` is the generation, in place.
    #[inline(always)]
    pub(crate) fn claim_parked_now(&self, packed: u64) -> bool {
        if self.is_alone(packed) {
            return true; // I7.
        }
        core::hint::cold_path(); // Longer anyway.
        // AcqRel: pairs with `wake` both ways.
        self.0
            .compare_exchange(
                packed | PARKED,
                packed | RUNNING,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// The home thread wants to queue a coroutine by name, or to enter it. False: a waker has queued
    /// it. Otherwise none does from here on: it is not parked.
    #[inline]
    pub(crate) fn claim_by_name(&self, generation: u32) -> bool {
        if self.is_running() {
            return true; // Only its own thread parks it.
        }
        // Planted: it was parked a moment ago, and a waker that came since has queued it as well.
        self.claim_parked(generation) || planted!("word_claim_unchecked")
    }

    /// True if the slot is of this generation and parked. What was written before the park is seen.
    #[inline]
    pub(crate) fn is_parked_as(&self, generation: u32) -> bool {
        // Acquire: pairs with `park`.
        self.0.load(Ordering::Acquire) == pack(generation, PARKED)
    }

    /// True if it is neither parked nor scheduled, so that it may be entered by hand; or ALONE.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        state(self.0.load(Ordering::Relaxed)) < PARKED
    }

    /// True if a waker has queued it.
    pub(crate) fn is_scheduled(&self) -> bool {
        state(self.0.load(Ordering::Relaxed)) == SCHEDULED
    }

    /// True if it waits in `park`.
    #[cfg(test)]
    pub(crate) fn is_parked(&self) -> bool {
        state(self.0.load(Ordering::Relaxed)) == PARKED
    }

    /// The slot's coroutine has ended, or is leaked: every token of it is stale from here on.
    /// False: the generation is used up, and the slot must never be given out again.
    #[must_use]
    pub(crate) fn retire(&self, generation: u32) -> bool {
        // A plain store: a wake that its compare-exchange puts before it is overwritten, one after
        // it fails (I1). Release: pairs with `wake`'s load only to keep the old coroutine's
        // accesses before it. loom takes a compare-exchange that read what was there before a store
        // for newer than that store, which the order of modifications rules out: it gets an
        // exchange.
        let set = |word| {
            if cfg!(loom) {
                self.0.swap(word, Ordering::AcqRel);
            } else {
                self.0.store(word, Ordering::Release);
            }
        };
        match generation.checked_add(1) {
            Some(next) => {
                set(pack(next, ALONE));
                true
            }
            None => {
                set(pack(0, ALONE));
                false
            }
        }
    }
}

#[inline]
fn state(word: u64) -> u64 {
    word & ((1 << STATE_BITS) - 1)
}

#[inline]
fn pack(generation: u32, state: u64) -> u64 {
    u64::from(generation) << STATE_BITS | state
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC S7: a slot whose generation would wrap is never used again, and no token of it is good.
    #[test]
    fn the_last_generation_retires_the_slot() {
        let word = SlotWord(AtomicU64::new(pack(u32::MAX, RUNNING)));
        assert_eq!(word.park(u32::MAX), Park::Suspend);
        assert!(word.claim_parked(u32::MAX));
        assert!(!word.retire(u32::MAX));
        assert_eq!(word.wake(u32::MAX), Wake::Nothing);
        assert_eq!(word.generation(), 0, "no token has generation 0");
        assert!(word.is_running());
    }

    // SPEC S7: the home thread queues what it has won as RUNNING; a wake that comes meanwhile is
    // there for the next park.
    #[test]
    fn a_wake_while_it_is_queued_at_home_is_kept() {
        let word = SlotWord::new();
        word.share(1, false);
        assert_eq!(word.park(1), Park::Suspend);
        assert_eq!(word.wake_here(1), Wake::Queue);
        assert!(word.is_running() && !word.is_scheduled() && !word.is_parked());
        assert_eq!(word.wake_here(1), Wake::Nothing);
        assert_eq!(word.wake(1), Wake::Nothing);
        assert_eq!(word.park(1), Park::Notified);
        assert!(word.park_now(pack(1, 0)));
        assert!(word.is_parked());
    }

    // SPEC S7: without a token the key tells all; the first token may be made at any time.
    #[test]
    fn a_word_is_shared_when_the_first_token_is_made() {
        let word = SlotWord::new();
        assert!(word.park_now(pack(1, 0)) && word.is_alone(pack(1, 0)) && !word.is_parked());
        assert!(word.claim_parked(1) && word.is_alone(pack(1, 0)));
        assert!(word.park_now(pack(1, 0)));
        word.share(1, true);
        assert!(word.is_parked() && word.is_parked_as(1) && !word.is_alone(pack(1, 0)));
        assert_eq!(word.wake(1), Wake::Queue);
        word.share(1, true);
        assert!(word.is_scheduled(), "a second token changes nothing");
        word.claim(1);
        word.share(1, false);
        assert_eq!(word.wake(1), Wake::Nothing);
        assert_eq!(word.park(1), Park::Notified);
        assert!(word.retire(1));
        word.share(1, false);
        assert!(word.is_alone(pack(2, 0)), "it is another's");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::atomic::AtomicBool;
    use crate::model;
    use loom::sync::{Arc, Condvar, Mutex};

    /// A slot's word, and the queue that winners put it on.
    struct Model {
        word: SlotWord,
        queued: Mutex<u32>,
        queue: Condvar,
        work: [AtomicBool; 2],
    }

    impl Model {
        fn new() -> Arc<Self> {
            let model = Self::idle();
            model.word.share(1, false);
            Arc::new(model)
        }

        fn idle() -> Self {
            Self {
                word: SlotWord::new(),
                queued: Mutex::new(0),
                queue: Condvar::new(),
                work: [AtomicBool::new(false), AtomicBool::new(false)],
            }
        }

        fn wake(&self, generation: u32) {
            if self.word.wake(generation) == Wake::Queue {
                *self.queued.lock().unwrap() += 1;
                self.queue.notify_one();
            }
        }

        /// The home thread's loop: takes the slot off the queue once it is on it.
        fn claim(&self) {
            self.claim_as(1);
        }

        /// Whether this thread is to have queued the slot by name, and has.
        fn schedule(&self) -> ByName {
            let outcome = self.word.schedule(1);
            if outcome == ByName::Queue {
                *self.queued.lock().unwrap() += 1;
                self.queue.notify_one();
            }
            outcome
        }

        fn claim_as(&self, generation: u32) {
            let mut queued = self.queued.lock().unwrap();
            while *queued == 0 {
                queued = self.queue.wait(queued).unwrap();
            }
            assert_eq!(*queued, 1, "one wake wins, and queues once");
            *queued = 0;
            drop(queued);
            self.word.claim(generation);
        }

        /// A coroutine that waits for its work, the way every wait in the runtime does.
        fn wait_for_work(&self) {
            while !self.work.iter().all(|work| work.load(Ordering::Relaxed)) {
                match self.word.park(1) {
                    Park::Suspend => self.claim(),
                    Park::Notified => {}
                    Park::Scheduled => unreachable!("nobody knows its name"),
                }
            }
        }
    }

    fn work_and_wake(model: &Arc<Model>, i: usize) -> loom::thread::JoinHandle<()> {
        let model = Arc::clone(model);
        loom::thread::spawn(move || {
            model.work[i].store(true, Ordering::Relaxed);
            model.wake(1);
        })
    }

    fn schedule_with_work(model: &Arc<Model>, i: usize) -> loom::thread::JoinHandle<ByName> {
        let model = Arc::clone(model);
        loom::thread::spawn(move || {
            model.work[i].store(true, Ordering::Relaxed);
            model.schedule()
        })
    }

    // SPEC L7, S7: two wakers against park and claim: the work of neither is overlooked.
    #[test]
    fn loom_wake_is_never_lost() {
        model::check(3, || {
            let model = Model::new();
            let wakers = [work_and_wake(&model, 0), work_and_wake(&model, 1)];
            model.wait_for_work();
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }

    // SPEC L7, S7: the home thread wakes it beside itself while another thread wakes it too: it is
    // queued once, and whoever does nothing has its work seen.
    #[test]
    fn loom_wake_at_home_and_from_elsewhere() {
        model::check(None, || {
            let model = Model::new();
            assert_eq!(model.word.park(1), Park::Suspend);
            let waker = work_and_wake(&model, 0);
            let queued_here = model.word.wake_here(1) == Wake::Queue;
            if !queued_here {
                model.claim(); // The other one has won it.
            }
            while !model.work[0].load(Ordering::Relaxed) {
                if model.word.park(1) == Park::Suspend {
                    model.claim();
                }
            }
            waker.join().unwrap();
            assert_eq!(*model.queued.lock().unwrap(), 0);
        });
    }

    // SPEC L7, S3: queued by name at home while a waker queues it: one of the two does.
    #[test]
    fn loom_claim_by_name_and_wake() {
        model::check(None, || {
            let model = Model::new();
            assert_eq!(model.word.park(1), Park::Suspend);
            let waker = work_and_wake(&model, 0);
            let queued_here = model.word.claim_by_name(1);
            waker.join().unwrap();
            let queued_there = *model.queued.lock().unwrap() == 1;
            assert_ne!(queued_here, queued_there);
        });
    }

    // SPEC L7, S1, S3: two schedule a suspended one by name while a late wake of it comes: one of
    // them queues it, the other is told, and what all three have published is there when it runs.
    #[test]
    fn loom_scheduled_by_name_once() {
        model::check(None, || {
            let model = Model::new();
            let (other, late) = (schedule_with_work(&model, 0), work_and_wake(&model, 1));
            let own = model.schedule();
            let other = other.join().unwrap();
            late.join().unwrap();
            assert_ne!(own == ByName::Queue, other == ByName::Queue);
            assert!(own == ByName::Scheduled || other == ByName::Scheduled);
            model.claim(); // Asserts that it is queued once.
            assert!(model.work.iter().all(|work| work.load(Ordering::Relaxed)));
        });
    }

    // SPEC L7, C3: one parks while another thread schedules it by name, and a third wakes it: park
    // or schedule finds out, so that nobody takes the entry for the other's, and it is queued once.
    #[test]
    fn loom_scheduled_by_name_or_parked() {
        model::check(3, || {
            let model = Model::new();
            let other = schedule_with_work(&model, 0);
            let waker = work_and_wake(&model, 1);
            let mut was_told = false;
            while !model.work[1].load(Ordering::Relaxed) && !was_told {
                match model.word.park(1) {
                    Park::Suspend => model.claim(),
                    Park::Notified => {}
                    Park::Scheduled => was_told = true,
                }
            }
            waker.join().unwrap();
            match other.join().unwrap() {
                ByName::Parked | ByName::Scheduled => assert!(!was_told),
                // It has not parked since, or has been told.
                outcome => {
                    assert_eq!(outcome, ByName::Queue);
                    let queued = *model.queued.lock().unwrap();
                    assert_eq!(queued, 1, "its entry was taken for the wake's");
                    model.claim();
                    assert!(model.work[0].load(Ordering::Relaxed));
                }
            }
            assert_eq!(*model.queued.lock().unwrap(), 0);
        });
    }

    // SPEC L7, S7: one that has parked without a token gets its first one then: a wake with it, in
    // another thread, is not lost, nor one with a token of the generation before a wake of this one.
    #[test]
    fn loom_first_token_of_a_parked_one() {
        model::check(None, || {
            let model = Arc::new(Model::idle());
            model.word.share(1, false);
            let stale = {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || model.wake(1))
            };
            assert!(model.word.retire(1));
            assert!(model.word.park_now(pack(2, 0)));
            model.word.share(2, true);
            model.work[1].store(true, Ordering::Relaxed);
            let waker = {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || {
                    model.work[0].store(true, Ordering::Relaxed);
                    model.wake(2);
                })
            };
            model.claim_as(2);
            assert!(model.work[0].load(Ordering::Relaxed));
            waker.join().unwrap();
            stale.join().unwrap();
        });
    }

    // SPEC L7, S7: a token of a coroutine that has ended never queues the one that has its slot
    // now.
    #[test]
    fn loom_stale_token_wakes_nobody() {
        model::check(None, || {
            let model = Model::new();
            let waker = {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || model.wake(1))
            };
            // The first ends, claimed by hand if it was parked; the next one takes the slot and
            // parks.
            if model.word.park(1) == Park::Suspend && !model.word.claim_parked(1) {
                model.claim();
            }
            assert!(model.word.retire(1));
            assert_eq!(model.word.generation(), 2);
            model.word.share(2, false);
            assert_eq!(model.word.park(2), Park::Suspend, "no wake of its own came");
            waker.join().unwrap();
            assert!(model.word.is_parked());
            assert_eq!(*model.queued.lock().unwrap(), 0);
        });
    }
}
