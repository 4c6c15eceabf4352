//! The event without stacks: a word, and a list behind a short lock.
//!
//! ```text
//!                 set                 reset
//!      CLEAR ------------> SET ------------------> CLEAR
//!        |                  ^
//!        | wait             | set: all that wait are granted
//!        +---> AWAITED -----+
//!                 |
//!                 +---> CLEAR     the last one that waited was cancelled
//! ```
//!
//! Setting an event that is set writes nothing, so that many threads may do it to one event without
//! passing its cache line around. It has to look at the word, though, and only after what the
//! setter did before has become visible: else it finds the event set, and whoever resets it then,
//! and looks for what the setter did, finds nothing and waits for ever. Each side writes one thing
//! and then reads the other, which no machine orders without a full barrier on both sides (Attiya
//! and others: Laws of order, POPL 2011). So one barrier is what it costs, and all that it costs.
//!
//! Invariants
//! - I1. The word is AWAITED exactly if the list is not empty, whenever the list's lock is free.
//! - I2. From AWAITED, and to it, the word changes only under the list's lock.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use crate::atomic::{AtomicU32, Ordering, fence};
use crate::sync::record::{Grant, Line, List, Record, Short, Wake, grant_as};

const CLEAR: u32 = 0;
const SET: u32 = 1;
const AWAITED: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(in crate::sync) struct State<W> {
    word: AtomicU32,
    waiting: Short<List<W>>,
}

impl<W: Wake> State<W> {
    pub(in crate::sync) fn new(set: bool) -> State<W> {
        State {
            word: AtomicU32::new(if set { SET } else { CLEAR }),
            waiting: Short::new(List::new()),
        }
    }

    /// Whether it is set. Then the caller sees what was done before it was.
    #[inline]
    pub(in crate::sync) fn is_set(&self) -> bool {
        // Acquire: pairs with the releases in `set`.
        self.word.load(Ordering::Acquire) == SET
    }

    /// Returns once nobody is in `set` any more whose setting the caller has seen. False: somebody
    /// waits.
    pub(super) fn settle(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Sets it, and grants all that wait.
    #[inline]
    pub(in crate::sync) fn set(&self) {
        if !planted!("event_set_unfenced") {
            // SeqCst: what the caller did before comes before the look at the word. Pairs with the
            // fence in `reset`: who has reset it then sees that, or this sees that it was reset.
            fence(Ordering::SeqCst);
        }
        if self.word.load(Ordering::Relaxed) != SET {
            self.set_clear();
        }
    }

    #[cold]
    fn set_clear(&self) {
        // Release: pairs with the acquire of who finds it set.
        let word = self
            .word
            .compare_exchange(CLEAR, SET, Ordering::Release, Ordering::Relaxed);
        if word != Err(AWAITED) {
            return; // Or another has set it in this moment.
        }
        let waiting = self.waiting.lock();
        // Under the lock it is not AWAITED any more if another has set it meanwhile, or the last
        // one that waited has gone. Release: as above; and what sets it, too, for them.
        let _ = self.word.swap(SET, Ordering::Release);
        // SAFETY: the list is under its lock.
        while let Some(oldest) = unsafe { waiting.pop_oldest() } {
            // SAFETY: just taken out.
            unsafe { grant_as(oldest, Grant::Own) }.wake();
        }
    }

    /// Makes it unset, so that who waits from now on waits for the next `set`. What the caller
    /// looks at afterwards, it sees as whoever has set it left it.
    pub(super) fn reset(&self) {
        // Acquire: as in `is_set`. A word that is not SET is left alone: nothing to do.
        let _ = self
            .word
            .compare_exchange(SET, CLEAR, Ordering::Acquire, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `set`.
        fence(Ordering::SeqCst);
    }

    /// True: it is set. Else the record is queued, and granted when it is.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn pass_or_queue(&self, record: &Record<W>) -> bool {
        let waiting = self.waiting.lock();
        // Acquire: as in `is_set`. After this a `set` comes to the lock (I2).
        let word = self
            .word
            .compare_exchange(CLEAR, AWAITED, Ordering::Relaxed, Ordering::Acquire);
        if word == Err(SET) && !planted!("event_no_second_look") {
            return true;
        }
        // SAFETY: the list is under its lock; the caller keeps the record alive.
        unsafe { waiting.push_newest(record) };
        false
    }
}

impl<W: Wake> Line<W> for State<W> {
    unsafe fn abandon(&self, record: &Record<W>) {
        let waiting = self.waiting.lock();
        if record.is_granted() {
            return; // As were all others: nobody is owed anything.
        }
        // SAFETY: the list is under its lock; not granted, so in it.
        unsafe { waiting.unlink(record) };
        if waiting.is_empty() && !planted!("event_awaited_by_nobody") {
            self.word.store(CLEAR, Ordering::Relaxed); // I2: nobody else writes it now.
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use crate::sync::record::LoomWaker;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    type LoomState = State<LoomWaker>;

    fn wait(event: &LoomState) {
        if event.is_set() {
            return;
        }
        let record = LoomWaker::record(1);
        // SAFETY: waits until the record is granted.
        if !unsafe { event.pass_or_queue(&record) } {
            LoomWaker::wait(&record);
        }
    }

    /// SPEC L5, L7. Planted bug: `event_set_unfenced`.
    #[test]
    fn loom_who_resets_and_looks_misses_nothing_that_came_before_a_set() {
        model::check(None, || {
            let event = Arc::new((LoomState::new(true), AtomicU32::new(0)));
            let setter = {
                let event = Arc::clone(&event);
                loom::thread::spawn(move || {
                    event.1.store(1, Ordering::Relaxed);
                    event.0.set();
                })
            };
            event.0.reset();
            if event.1.load(Ordering::Relaxed) == 0 {
                wait(&event.0);
                assert_eq!(event.1.load(Ordering::Relaxed), 1);
            }
            setter.join().unwrap();
        });
    }

    /// SPEC L5, L7. Planted bug: `event_no_second_look`.
    #[test]
    fn loom_all_that_wait_get_past_a_set_and_see_what_came_before() {
        model::check(2, || {
            let event = Arc::new((LoomState::new(false), AtomicU32::new(0)));
            let waiters = [(); 2].map(|()| {
                let event = Arc::clone(&event);
                loom::thread::spawn(move || {
                    wait(&event.0);
                    assert_eq!(event.1.load(Ordering::Relaxed), 1);
                })
            });
            event.1.store(1, Ordering::Relaxed);
            event.0.set();
            for waiter in waiters {
                waiter.join().unwrap();
            }
            assert!(event.0.is_set());
        });
    }

    /// SPEC L5, L7, C12. Planted bug: `event_awaited_by_nobody`.
    #[test]
    fn loom_a_cancelled_waiter_leaves_the_event_as_it_was() {
        model::check(None, || {
            let event = Arc::new(LoomState::new(false));
            let cancelled = LoomWaker::record(1);
            // SAFETY: abandoned below.
            assert!(!unsafe { event.pass_or_queue(&cancelled) });
            let setter = {
                let event = Arc::clone(&event);
                loom::thread::spawn(move || event.set())
            };
            // SAFETY: queued above.
            unsafe { event.abandon(&cancelled) };
            wait(&event);
            setter.join().unwrap();
            event.reset();
            assert_eq!(event.word.load(Ordering::Relaxed), CLEAR);
            assert!(event.waiting.lock().is_empty());
            // One that comes when nobody waits is not taken for one that does.
            let late = LoomWaker::record(1);
            // SAFETY: abandoned at once.
            unsafe {
                assert!(!event.pass_or_queue(&late));
                event.abandon(&late);
            }
            assert_eq!(event.word.load(Ordering::Relaxed), CLEAR);
        });
    }
}
