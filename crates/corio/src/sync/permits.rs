//! Permits without stacks: a word that counts them, and a list behind a short lock. What the
//! semaphore is, and the reader-writer lock is made of.
//!
//! ```text
//!   word:  taken permits << 1 | AWAITED, as if there were PERMITS_MAX: all zeros is all free
//!
//!   AWAITED clear   acquire and release are one compare-exchange each
//!   AWAITED set     the word changes only under the list's lock; nobody gets in before the oldest
//! ```
//!
//! Invariants
//! - I1. AWAITED is set exactly if the list is not empty, whenever the list's lock is free.
//! - I2. While AWAITED is set, only who has the list's lock writes the word.
//! - I3. The oldest waiter wants more than there are free permits, whenever the lock is free.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use crate::atomic::{AtomicUsize, Ordering};
use crate::sync::record::{Line, List, Record, Short, Wake, grant};
use crate::track::{self, Kind};

const AWAITED: usize = 1;
const SHIFT: u32 = 1;

/// The most permits a semaphore may have.
pub(super) const PERMITS_MAX: usize = usize::MAX >> SHIFT;

/// How many permits a word leaves free.
#[inline]
fn free_in(word: usize) -> usize {
    PERMITS_MAX - (word >> SHIFT)
}

/// The word that leaves so many free, with nobody waiting.
#[inline]
fn word_of(free: usize) -> usize {
    (PERMITS_MAX - free) << SHIFT
}

/// See the module.
#[derive(Debug)]
pub(super) struct Permits<W> {
    word: AtomicUsize,
    waiting: Short<List<W>>,
}

impl<W: Wake> Permits<W> {
    /// With `permits` free ones, at most `PERMITS_MAX`.
    pub(super) fn new(permits: usize) -> Permits<W> {
        Permits {
            word: AtomicUsize::new(word_of(permits)),
            waiting: Short::new(List::new()),
        }
    }

    /// How many are free. Only a hint.
    pub(super) fn free(&self) -> usize {
        free_in(self.word.load(Ordering::Relaxed))
    }

    /// Returns once nobody hands out any more who has begun with it.
    pub(super) fn settle(&self) {
        drop(self.waiting.lock());
    }

    /// Takes `amount` if they are free and nobody waits.
    #[inline]
    #[must_use]
    pub(super) fn try_acquire(&self, amount: usize) -> bool {
        self.try_trade(0, amount)
    }

    /// Takes `amount` for `given` if with these they are free and nobody waits; nobody sees them
    /// free in between. `given` are the caller's.
    #[inline]
    #[must_use]
    pub(super) fn try_trade(&self, given: usize, amount: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & AWAITED == 0 && free_in(word) + given >= amount {
            let left = free_in(word) + given - amount;
            // Acquire: pairs with the releases in `release`.
            let order = if planted!("permits_taken_relaxed") {
                Ordering::Relaxed
            } else {
                Ordering::Acquire
            };
            match self
                .word
                .compare_exchange_weak(word, word_of(left), order, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
        false
    }

    /// Takes the permits (true) or queues the record (false), which will be granted then.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn acquire_or_queue(&self, record: &Record<W>) -> bool {
        // SAFETY: as the caller promises.
        self.try_acquire(record.amount()) || unsafe { self.trade_or_queue(0, record) }
    }

    /// Takes what the record wants for `given`, which are the caller's (true); or gives `given`
    /// back and queues the record (false), which will be granted when it is its turn.
    ///
    /// # Safety
    /// As `acquire_or_queue`.
    #[must_use]
    pub(super) unsafe fn trade_or_queue(&self, given: usize, record: &Record<W>) -> bool {
        let waiting = self.waiting.lock();
        let mut word = self.word.load(Ordering::Relaxed);
        while word & AWAITED == 0 {
            let free = free_in(word) + given;
            let enough = free >= record.amount() && !planted!("permits_no_second_look");
            let next = if enough {
                word_of(free - record.amount())
            } else {
                word | AWAITED
            };
            // Acquire: as in `try_trade`. From here on a release comes to the lock (I2).
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) if enough => return true,
                Ok(_) => break,
                Err(seen) => word = seen,
            }
        }
        // SAFETY: the list is under its lock; the caller keeps the record alive.
        unsafe { waiting.push_newest(record) };
        if given != 0 {
            self.hand_out(&waiting, given);
        }
        false
    }

    /// Gives permits back, and to the oldest waiters as far as they go.
    pub(super) fn release(&self, amount: usize) {
        if !self.release_unawaited(amount) {
            let waiting = self.waiting.lock();
            if !self.release_unawaited(amount) {
                self.hand_out(&waiting, amount);
            }
        }
    }

    /// Gives permits back if nobody waits.
    #[inline]
    fn release_unawaited(&self, amount: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & AWAITED == 0 {
            // Release: pairs with the acquire of who takes them.
            match self.word.compare_exchange_weak(
                word,
                word - (amount << SHIFT),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
        false
    }

    /// Takes a record out again. False: it is granted, and the permits its waiter's.
    ///
    /// # Safety
    /// As [`Line::abandon`].
    unsafe fn withdraw(&self, record: &Record<W>) -> bool {
        let waiting = self.waiting.lock();
        if record.is_granted() {
            return false;
        }
        // SAFETY: the list is under its lock; not granted, so in it.
        unsafe { waiting.unlink(record) };
        // Those behind it may want less.
        self.hand_out(&waiting, 0);
        true
    }

    /// Adds permits and grants from the oldest on. Under the list's lock, with AWAITED set.
    fn hand_out(&self, waiting: &List<W>, amount: usize) {
        // Acquire, and release below: who is granted sees what all who released did. No other
        // thread writes meanwhile (I2).
        let mut free = free_in(self.word.load(Ordering::Acquire)) + amount;
        while waiting.oldest_amount().is_some_and(|wanted| wanted <= free) {
            // SAFETY: the list is under its lock.
            let Some(oldest) = (unsafe { waiting.pop_oldest() }) else {
                break;
            };
            // SAFETY: just taken out, so alive until it is granted.
            free -= unsafe { (*oldest).amount() };
            if !planted!("permits_granted_uncounted") {
                // Before it goes on: it, too, may look at what is free.
                self.word.store(word_of(free) | AWAITED, Ordering::Release);
            }
            // SAFETY: as above.
            let waker = unsafe { grant(oldest) };
            if track::is_enabled() {
                let (from, to) = (W::running_id(), waker.id());
                track::emit(Kind::LockHandOff, self.number(), from, to);
            }
            waker.wake();
        }
        let awaited = if waiting.is_empty() { 0 } else { AWAITED };
        self.word.store(word_of(free) | awaited, Ordering::Release);
    }
}

impl<W: Wake> Line<W> for Permits<W> {
    /// Takes the record out or, if it has been granted, gives its permits back.
    unsafe fn abandon(&self, record: &Record<W>) {
        // SAFETY: as the caller promises.
        let withdrawn = unsafe { self.withdraw(record) };
        if !withdrawn && !planted!("permits_grant_dropped") {
            self.release(record.amount());
        }
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

    type LoomPermits = Permits<LoomWaker>;

    fn acquire(semaphore: &LoomPermits, amount: usize) {
        let record = LoomWaker::record(amount);
        // SAFETY: waits until the record is granted.
        if !unsafe { semaphore.acquire_or_queue(&record) } {
            LoomWaker::wait(&record);
        }
    }

    /// Like a waiter that is cancelled at once.
    fn acquire_and_cancel(semaphore: &LoomPermits, amount: usize) {
        let record = LoomWaker::record(amount);
        // SAFETY: abandoned below if it is queued.
        if unsafe { semaphore.acquire_or_queue(&record) } {
            semaphore.release(amount);
        } else {
            // SAFETY: queued above.
            unsafe { semaphore.abandon(&record) };
        }
    }

    /// SPEC L5, L7. Planted bug: `permits_taken_relaxed`.
    #[test]
    fn loom_who_takes_permits_sees_what_was_done_with_them() {
        model::check(3, || {
            let permits = Arc::new((LoomPermits::new(2), UnsafeCell::new(0)));
            let add = |permits: &(LoomPermits, UnsafeCell<usize>), tries: bool| {
                if !tries || permits.0.try_acquire(2) {
                    if !tries {
                        acquire(&permits.0, 2);
                    }
                    // SAFETY: who has both permits is alone, which the model checks.
                    permits.1.with_mut(|value| unsafe { *value += 1 });
                    permits.0.release(2);
                }
            };
            let others = [false, true].map(|tries| {
                let permits = Arc::clone(&permits);
                loom::thread::spawn(move || add(&permits, tries))
            });
            add(&permits, false);
            for other in others {
                other.join().unwrap();
            }
        });
    }

    /// SPEC L5, L7. Planted bugs: `permits_no_second_look`, `permits_granted_uncounted`.
    #[test]
    fn loom_waiter_and_release_do_not_miss_each_other() {
        model::check(3, || {
            let semaphore = Arc::new(LoomPermits::new(2));
            let other = {
                let semaphore = Arc::clone(&semaphore);
                loom::thread::spawn(move || {
                    acquire(&semaphore, 1);
                    semaphore.release(1);
                })
            };
            acquire(&semaphore, 2);
            assert_eq!(semaphore.free(), 0, "what was granted is not counted");
            semaphore.release(2);
            other.join().unwrap();
            assert_eq!(semaphore.word.load(Ordering::Relaxed), word_of(2));
        });
    }

    /// SPEC L5, L7, C12. Planted bug: `permits_grant_dropped`.
    #[test]
    fn loom_cancelled_waiter_loses_no_permit_and_blocks_nobody() {
        model::check(3, || {
            let semaphore = Arc::new(LoomPermits::new(2));
            assert!(semaphore.try_acquire(1));
            let cancelled = {
                let semaphore = Arc::clone(&semaphore);
                loom::thread::spawn(move || acquire_and_cancel(&semaphore, 2))
            };
            let behind = {
                let semaphore = Arc::clone(&semaphore);
                loom::thread::spawn(move || acquire(&semaphore, 1))
            };
            // The one behind gets its permit although the first one's is not given back before.
            behind.join().unwrap();
            semaphore.release(2);
            cancelled.join().unwrap();
            assert_eq!(semaphore.word.load(Ordering::Relaxed), word_of(2));
        });
    }
}
