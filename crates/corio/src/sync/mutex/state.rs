//! The mutex without stacks: one word, and the list of those who wait.
//!
//! ```text
//!   word:  newest pushed record | READY | LISTED | LOCKED
//!
//!   free            0
//!   held            LOCKED                        unlock: one compare-exchange to 0
//!   held, awaited   .. LOCKED, and a pushed record or READY or both
//!   LISTED          somebody has the list for itself: it hands over, or takes a record out
//!
//!   push ──▶ chain in the word (newest first) ──LISTED──▶ `ready` (oldest first) ──▶ grant
//! ```
//!
//! A locker that does not find 0 pushes its record with the same compare-exchange that makes sure
//! the lock is not free, so that there is no moment in which it has announced itself and cannot be
//! found, and no hand-off that needs a token to be passed in that moment.
//!
//! Whoever unlocks and finds waiters clears LOCKED and takes LISTED. While LISTED is there the word
//! is not 0, so that nobody gets in before the oldest. If LISTED is taken already (a cancelled
//! waiter takes its record out), clearing LOCKED is all: whoever has LISTED looks for that before
//! it gives LISTED up, and hands over instead. So `unlock` never waits; only `abandon` does, for
//! some instructions of another thread.
//!
//! Invariants
//! - I1. Only who has LISTED touches `ready`, or takes the chain from the word.
//! - I2. READY is set exactly if `ready` is not empty, whenever LISTED is not set.
//! - I3. Without LISTED, a word that is not 0 has LOCKED.
//! - I4. A record is in the chain or in `ready`, or granted, or withdrawn. It is granted with
//!   LISTED held, so that who has LISTED knows which.

// Pointers to records in other frames: record.rs I1.
#![allow(unsafe_code)]

use core::ptr;

use crate::atomic::{AtomicPtr, Ordering};
use crate::sync::record::{Line, List, Record, Wake, grant};
use crate::track::{self, Kind};

const LOCKED: usize = 1;
const LISTED: usize = 2;
const READY: usize = 4;
const FLAGS: usize = LOCKED | LISTED | READY;

/// How often `abandon` looks for LISTED before it lets another thread run.
#[cfg(not(loom))]
const SPIN_ROUNDS: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct State<W> {
    word: AtomicPtr<Record<W>>,
    ready: List<W>,
}

type Word<W> = *mut Record<W>;

fn has<W>(word: Word<W>, flag: usize) -> bool {
    word.addr() & flag != 0
}

fn with<W>(word: Word<W>, flags: usize) -> Word<W> {
    word.map_addr(|bits| bits | flags)
}

fn without<W>(word: Word<W>, flags: usize) -> Word<W> {
    word.map_addr(|bits| bits & !flags)
}

impl<W: Wake> State<W> {
    /// A free mutex.
    pub(super) fn new() -> State<W> {
        State {
            word: AtomicPtr::new(ptr::null_mut()),
            ready: List::new(),
        }
    }

    /// Whether it is held and nobody waits. Only a hint.
    pub(super) fn is_unawaited(&self) -> bool {
        self.word.load(Ordering::Relaxed).addr() == LOCKED
    }

    /// As [`try_lock`](Self::try_lock), for who tries again and again: what is held is only looked
    /// at.
    #[must_use]
    pub(super) fn try_lock_if_free(&self) -> bool {
        self.word.load(Ordering::Relaxed).is_null() && self.try_lock()
    }

    /// Takes the mutex if it is free and nobody is before the caller.
    #[inline]
    #[must_use]
    pub(super) fn try_lock(&self) -> bool {
        // Acquire: pairs with the release in `unlock` and `serve`.
        self.word
            .compare_exchange(
                ptr::null_mut(),
                ptr::without_provenance_mut(LOCKED),
                Ordering::Acquire,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Takes the mutex (true) or queues the record (false), which will be granted then.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn lock_or_queue(&self, record: &Record<W>) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let locks = word.is_null();
            let next = if locks {
                ptr::without_provenance_mut(LOCKED)
            } else {
                record.set_older(without(word, FLAGS));
                let flags = word.addr() & FLAGS;
                with(ptr::from_ref(record).cast_mut(), flags)
            };
            // Acquire for the lock, as in `try_lock`. Release for the record: pairs with `collect`.
            let order = if planted!("mutex_push_relaxed") {
                Ordering::Acquire
            } else {
                Ordering::AcqRel
            };
            match self
                .word
                .compare_exchange_weak(word, next, order, Ordering::Relaxed)
            {
                Ok(_) => return locks,
                Err(seen) => word = seen,
            }
        }
    }

    /// Gives the mutex up, to the oldest waiter if there is one. Never waits. Only the holder.
    #[inline]
    pub(super) fn unlock(&self) {
        let held = ptr::without_provenance_mut(LOCKED);
        // Release: pairs with the acquire of who locks next.
        let free =
            self.word
                .compare_exchange(held, ptr::null_mut(), Ordering::Release, Ordering::Relaxed);
        if let Err(word) = free {
            self.unlock_awaited(word);
        }
    }

    #[cold]
    fn unlock_awaited(&self, mut word: Word<W>) {
        loop {
            let next = with(without(word, LOCKED), LISTED);
            // Release: what the holder did, to who hands over and so to the next holder. Acquire:
            // the list as the last owner of LISTED left it.
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if has(word, LISTED) => return,
                Ok(_) => return self.serve(next),
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes a record out again. False: it is granted, and the mutex its waiter's.
    ///
    /// # Safety
    /// As [`Line::abandon`].
    unsafe fn withdraw(&self, record: &Record<W>) -> bool {
        let mut rounds = 0;
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if record.is_granted() {
                return false;
            }
            if has(word, LISTED) {
                relax(&mut rounds);
                word = self.word.load(Ordering::Relaxed);
                continue;
            }
            let next = with(word, LISTED);
            // Acquire: the list as the last owner of LISTED left it.
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => word = next,
                Err(seen) => {
                    word = seen;
                    continue;
                }
            }
            break;
        }
        let queued = !record.is_granted();
        if queued {
            word = self.collect();
            // SAFETY: LISTED is ours (I1); not granted, so in the chain or in `ready` (I4), and the
            // chain has just been moved there.
            unsafe { self.ready.unlink(record) };
        }
        self.serve(word);
        queued
    }

    /// Moves what was pushed to `ready`. With LISTED held; gives the word after it.
    fn collect(&self) -> Word<W> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let next = ptr::without_provenance_mut(word.addr() & FLAGS);
            // Acquire: pairs with the release of each push, whose chain of read-modify-writes this
            // one ends.
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    // SAFETY: LISTED is ours (I1); the records are queued, so alive.
                    unsafe { self.ready.append_chain(without(word, FLAGS)) };
                    return next;
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Gives LISTED up, and hands the mutex over as often as it is found given up meanwhile.
    fn serve(&self, mut word: Word<W>) {
        let mut woken: Option<W> = None;
        loop {
            let awaited = !self.ready.is_empty() || !without(word, FLAGS).is_null();
            if awaited && !has(word, LOCKED) {
                // Acquire: pairs with the release of who cleared LOCKED.
                let taken = self.word.compare_exchange_weak(
                    word,
                    with(word, LOCKED),
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                match taken {
                    Ok(_) => {
                        if let Some(earlier) = woken.replace(self.hand_over()) {
                            earlier.wake();
                        }
                        word = self.word.load(Ordering::Relaxed);
                    }
                    Err(seen) => word = seen,
                }
                continue;
            }
            let ready = if self.ready.is_empty() { 0 } else { READY };
            let next = with(without(word, LISTED | READY), ready);
            // Release: the list, to the next owner of LISTED; and what the last holder did, if this
            // frees the mutex (its release is in this word's release sequence).
            if planted!("mutex_no_look_back") {
                self.word.store(next, Ordering::Release);
                break;
            }
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(seen) => word = seen,
            }
        }
        if let Some(woken) = woken {
            woken.wake();
        }
    }

    /// Grants the oldest; somebody waits, and LISTED and LOCKED are the caller's.
    fn hand_over(&self) -> W {
        if self.ready.is_empty() {
            self.collect();
        }
        // SAFETY: LISTED is ours (I1).
        let oldest = unsafe { self.ready.pop_oldest() };
        let oldest = oldest.expect("a record was pushed, and only who has LISTED takes any out");
        // SAFETY: just taken out of the list.
        let waker = unsafe { grant(oldest) };
        if track::is_enabled() {
            track::emit(
                Kind::LockHandOff,
                self.number(),
                W::running_id(),
                waker.id(),
            );
        }
        waker
    }
}

impl<W: Wake> Line<W> for State<W> {
    /// Takes the record out or, if it has been granted, passes the mutex on.
    unsafe fn abandon(&self, record: &Record<W>) {
        // SAFETY: as the caller promises.
        let withdrawn = unsafe { self.withdraw(record) };
        if !withdrawn && !planted!("mutex_grant_dropped") {
            self.unlock();
        }
    }
}

/// Lets whoever has LISTED go on.
fn relax(rounds: &mut u32) {
    *rounds += 1;
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    if *rounds < SPIN_ROUNDS {
        core::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use crate::sync::record::LoomWaker;
    use loom::cell::UnsafeCell;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    struct Guarded {
        state: State<LoomWaker>,
        value: UnsafeCell<usize>,
    }

    impl Guarded {
        fn new() -> Arc<Guarded> {
            Arc::new(Guarded {
                state: State::new(),
                value: UnsafeCell::new(0),
            })
        }

        /// Adds one, which loom's cell finds racing if the mutex does not exclude.
        fn add_and_unlock(&self) {
            // SAFETY: the caller holds the mutex.
            self.value.with_mut(|value| unsafe { *value += 1 });
            self.state.unlock();
        }

        fn lock_and_add(&self) {
            let record = LoomWaker::record(1);
            // SAFETY: waits until the record is granted.
            if !unsafe { self.state.lock_or_queue(&record) } {
                LoomWaker::wait(&record);
            }
            self.add_and_unlock();
        }

        /// Like a waiter that is cancelled at once: how much it added.
        fn lock_and_cancel(&self) -> usize {
            let record = LoomWaker::record(1);
            // SAFETY: abandoned below if it is queued.
            if unsafe { self.state.lock_or_queue(&record) } {
                self.add_and_unlock();
                return 1;
            }
            // SAFETY: queued above.
            unsafe { self.state.abandon(&record) };
            0
        }

        fn check(&self, added: usize) {
            assert!(self.state.word.load(Ordering::Relaxed).is_null());
            // SAFETY: the other threads are joined.
            self.value
                .with(|value| assert_eq!(unsafe { *value }, added));
        }
    }

    /// SPEC L1, L7. Planted bug: `mutex_push_relaxed`.
    #[test]
    fn loom_lockers_exclude_each_other_and_none_is_forgotten() {
        model::check(3, || {
            let guarded = Guarded::new();
            let others = [(); 2].map(|()| {
                let guarded = Arc::clone(&guarded);
                loom::thread::spawn(move || guarded.lock_and_add())
            });
            guarded.lock_and_add();
            for other in others {
                other.join().unwrap();
            }
            guarded.check(3);
        });
    }

    /// SPEC L1, L7, C12. Planted bugs: `mutex_no_look_back`, `mutex_grant_dropped`.
    #[test]
    fn loom_cancelled_waiter_loses_no_grant() {
        model::check(3, || {
            let guarded = Guarded::new();
            assert!(guarded.state.try_lock());
            let cancelled = {
                let guarded = Arc::clone(&guarded);
                loom::thread::spawn(move || guarded.lock_and_cancel())
            };
            let waiter = {
                let guarded = Arc::clone(&guarded);
                loom::thread::spawn(move || guarded.lock_and_add())
            };
            guarded.add_and_unlock();
            let added = cancelled.join().unwrap();
            waiter.join().unwrap();
            guarded.check(2 + added);
        });
    }

    /// SPEC L1, L7, C12.
    #[test]
    fn loom_two_cancelled_waiters_leave_the_mutex_free() {
        model::check(3, || {
            let guarded = Guarded::new();
            assert!(guarded.state.try_lock());
            let cancelled = [(); 2].map(|()| {
                let guarded = Arc::clone(&guarded);
                loom::thread::spawn(move || guarded.lock_and_cancel())
            });
            guarded.add_and_unlock();
            let added: usize = cancelled.map(|thread| thread.join().unwrap()).iter().sum();
            guarded.check(1 + added);
        });
    }
}
