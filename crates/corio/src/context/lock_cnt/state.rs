//! A counter of visitors and a lock in one word, without the data (SPEC L6).
//!
//! ```text
//!   word:  visitors << 2 | AWAITED | LOCKED
//!
//!   not LOCKED            visitors come and go; anyone may lock
//!   LOCKED, visitors > 0  visitors come and go; who wants to lock waits
//!   LOCKED, no visitor    nobody comes in: whoever has the lock is alone
//!   AWAITED               with LOCKED only: somebody may sleep until it is unlocked
//! ```
//!
//! Unlocking wakes one of those who sleep. Who was woken and locks, does so with AWAITED, as others
//! may sleep still; who was woken and goes on without locking (a visitor), wakes the next one.
//!
//! Invariants
//! - I1. From no visitor to one the word goes only while it is not LOCKED, or by who has LOCKED. So
//!   who has it and sees no visitor is alone until it unlocks.
//! - I2. AWAITED is set only with LOCKED, and taken away only with it.
//! - I3. If anyone sleeps, then either AWAITED is set, or one that was woken for it has yet to lock
//!   or to wake the next.

use crate::atomic::{AtomicU32, Ordering};

const LOCKED: u32 = 1;
const AWAITED: u32 = 2;
const ONE: u32 = 4;
const FLAGS: u32 = LOCKED | AWAITED;

/// The most visitors at a time.
pub(super) const VISITORS_MAX: u32 = u32::MAX / ONE;

/// How often the lock is looked at before the thread goes to sleep: about a microsecond, longer
/// than it is held as a rule.
const SPIN_ROUNDS: u32 = if cfg!(loom) { 0 } else { 100 };

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    word: AtomicU32,
    sleepers: Sleepers,
}

/// One attempt at waiting for the lock to be free.
#[derive(Default)]
struct Wait {
    rounds: u32,
    slept: bool,
}

impl State {
    /// No visitor, not locked.
    pub(super) fn new() -> State {
        State {
            word: AtomicU32::new(0),
            sleepers: Sleepers::new(),
        }
    }

    /// How many visitors there are. Who has the lock and sees none is alone.
    pub(super) fn count(&self) -> u32 {
        // Acquire: pairs with the release of each visitor that has left.
        self.word.load(Ordering::Acquire) / ONE
    }

    /// Whether somebody has the lock. Only a hint.
    pub(super) fn is_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & LOCKED != 0
    }

    /// One visitor more. Blocks while there is none and somebody has the lock.
    ///
    /// # Panics
    /// With more visitors than can be counted.
    #[track_caller]
    #[inline]
    pub(super) fn inc(&self) {
        let mut wait = Wait::default();
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word < ONE && word & LOCKED != 0 {
                word = self.wait(&mut wait, word);
                continue;
            }
            check_count(word);
            // Acquire: pairs with the release of who unlocked.
            match self.word.compare_exchange_weak(
                word,
                word + ONE,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return self.go_on_unlocked(&wait),
                Err(seen) => word = seen,
            }
        }
    }

    /// One visitor less. The caller is one. Never waits.
    #[inline]
    pub(super) fn dec(&self) {
        let order = if planted!("lock_cnt_leave_relaxed") {
            Ordering::Relaxed
        } else {
            // Release: pairs with the acquire of who finds no visitor, in `count` or by locking.
            Ordering::Release
        };
        self.word.fetch_sub(ONE, order);
    }

    /// One visitor less, and if it was the last one, takes the lock (true). The caller is a
    /// visitor. Blocks while it is the last one and somebody has the lock.
    #[must_use]
    pub(super) fn dec_and_lock(&self) -> bool {
        self.leave(true)
    }

    /// If the caller is the only visitor, as `dec_and_lock`; else nothing (false).
    #[must_use]
    pub(super) fn dec_if_lock(&self) -> bool {
        self.leave(false)
    }

    /// True: the last visitor has left, and its thread has the lock.
    fn leave(&self, in_any_case: bool) -> bool {
        let mut wait = Wait::default();
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let is_last = word / ONE == 1;
            if !is_last && !in_any_case {
                self.go_on_unlocked(&wait);
                return false;
            }
            if is_last && word & LOCKED != 0 {
                word = self.wait(&mut wait, word);
                continue;
            }
            let next = word - ONE + if is_last { wait.lock_bits() } else { 0 };
            // Release: as in `dec`. Acquire: what others did that have left or unlocked before.
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    if !is_last {
                        self.go_on_unlocked(&wait);
                    }
                    return is_last;
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes the lock if it is free. Never waits.
    #[inline]
    #[must_use]
    pub(super) fn try_lock(&self) -> bool {
        self.try_lock_with(self.word.load(Ordering::Relaxed), LOCKED)
            .is_ok()
    }

    /// Takes the lock. Blocks while another has it.
    #[inline]
    pub(super) fn lock(&self) {
        if !self.try_lock() {
            self.lock_waiting();
        }
    }

    #[cold]
    fn lock_waiting(&self) {
        let mut wait = Wait::default();
        let mut word = self.word.load(Ordering::Relaxed);
        while let Err(seen) = self.try_lock_with(word, wait.lock_bits()) {
            word = self.wait(&mut wait, seen);
        }
    }

    /// Err: the word, which is LOCKED.
    #[inline]
    fn try_lock_with(&self, mut word: u32, bits: u32) -> Result<(), u32> {
        while word & LOCKED == 0 {
            // Acquire: pairs with the release of who unlocked, and of visitors that have left.
            match self.word.compare_exchange_weak(
                word,
                word | bits,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
        Err(word)
    }

    /// Gives the lock up. The caller has it. Never waits.
    #[inline]
    pub(super) fn unlock(&self) {
        // Release: pairs with the acquire of who comes in or locks next.
        let before = self.word.fetch_and(!FLAGS, Ordering::Release);
        self.wake_after(before);
    }

    /// Gives the lock up and becomes a visitor, in one step. The caller has it. Never waits.
    ///
    /// # Panics
    /// With more visitors than can be counted.
    #[track_caller]
    pub(super) fn inc_and_unlock(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            check_count(word);
            // Release: as in `unlock`. Acquire: as a visitor.
            match self.word.compare_exchange_weak(
                word,
                (word & !FLAGS) + ONE,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return self.wake_after(word),
                Err(seen) => word = seen,
            }
        }
    }

    /// Unlocked, and the word was `before`.
    #[inline]
    fn wake_after(&self, before: u32) {
        debug_assert!(before & LOCKED != 0, "unlocked by one that had no lock");
        if before & AWAITED != 0 {
            self.sleepers.wake_one(&self.word);
        }
    }

    /// The caller does not lock: whoever else sleeps has nobody to wake it (I3).
    #[inline]
    fn go_on_unlocked(&self, wait: &Wait) {
        if wait.slept && !planted!("lock_cnt_wake_kept") {
            self.sleepers.wake_one(&self.word);
        }
    }

    /// Waits for a while, as the word is LOCKED, and gives the word as it is then.
    #[cold]
    fn wait(&self, wait: &mut Wait, word: u32) -> u32 {
        debug_assert!(word & LOCKED != 0, "waits for a lock that is free");
        if wait.rounds < SPIN_ROUNDS {
            wait.rounds += 1;
            core::hint::spin_loop();
            return self.word.load(Ordering::Relaxed);
        }
        let awaited = if planted!("lock_cnt_sleeps_unsaid") {
            word
        } else {
            word | AWAITED
        };
        // Relaxed: it orders nothing, and whoever unlocks finds it in the word that it changes.
        let said = self
            .word
            .compare_exchange(word, awaited, Ordering::Relaxed, Ordering::Relaxed);
        if let Err(seen) = said {
            return seen;
        }
        // Before, so that a wake that comes at once is not kept.
        wait.slept = true;
        self.sleepers.wait(&self.word, awaited);
        self.word.load(Ordering::Relaxed)
    }
}

impl Wait {
    /// What whoever locks after waiting sets: others may have slept beside it (I3).
    fn lock_bits(&self) -> u32 {
        if self.slept { FLAGS } else { LOCKED }
    }
}

#[track_caller]
fn check_count(word: u32) {
    assert!(
        word / ONE < VISITORS_MAX,
        "a LockCnt counts at most {VISITORS_MAX} visits at a time: end them, do not forget them"
    );
}

/// Those who sleep for the word to change: the kernel's, which has a list for any word.
#[cfg(not(loom))]
#[derive(Debug)]
struct Sleepers;

#[cfg(not(loom))]
impl Sleepers {
    fn new() -> Sleepers {
        Sleepers
    }

    fn wait(&self, word: &AtomicU32, expected: u32) {
        crate::sys::futex::wait(word, expected);
    }

    fn wake_one(&self, word: &AtomicU32) {
        crate::sys::futex::wake_one(word);
    }
}

/// The same in models: looking at the word and going to sleep are one step, as in the kernel.
#[cfg(loom)]
#[derive(Debug)]
struct Sleepers {
    list: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

#[cfg(loom)]
impl Sleepers {
    fn new() -> Sleepers {
        Sleepers {
            list: loom::sync::Mutex::new(()),
            woken: loom::sync::Condvar::new(),
        }
    }

    fn wait(&self, word: &AtomicU32, expected: u32) {
        let list = self.list.lock().unwrap();
        if word.load(Ordering::Relaxed) == expected {
            drop(self.woken.wait(list).unwrap());
        }
    }

    fn wake_one(&self, _word: &AtomicU32) {
        let _list = self.list.lock().unwrap();
        self.woken.notify_one();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use loom::cell::UnsafeCell;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    struct Shared {
        state: State,
        /// What visitors look at, and who is alone changes.
        value: UnsafeCell<usize>,
        /// What whoever has the lock changes.
        locked: UnsafeCell<usize>,
    }

    impl Shared {
        fn new() -> Arc<Shared> {
            Arc::new(Shared {
                state: State::new(),
                value: UnsafeCell::new(0),
                locked: UnsafeCell::new(0),
            })
        }

        /// The caller is a visitor. loom's cell finds a writer that is not alone.
        fn look(&self) {
            // SAFETY: as above.
            self.value.with(|value| unsafe { *value });
        }

        fn visit(&self) {
            self.state.inc();
            self.look();
            self.state.dec();
        }

        /// The caller has the lock. How often it was alone.
        fn change_if_alone(&self) -> usize {
            // SAFETY: as above.
            self.locked.with_mut(|locked| unsafe { *locked += 1 });
            let alone = self.state.count() == 0;
            if alone {
                // SAFETY: nobody else is there, which the model checks.
                self.value.with_mut(|value| unsafe { *value += 1 });
            }
            usize::from(alone)
        }

        fn lock_and_change(&self) -> usize {
            self.state.lock();
            let changed = self.change_if_alone();
            self.state.unlock();
            changed
        }

        /// As the last visitor frees what was taken out of a list meanwhile.
        fn visit_and_change_if_last(&self) -> usize {
            self.state.inc();
            self.look();
            if !self.state.dec_and_lock() {
                return 0;
            }
            let changed = self.change_if_alone();
            assert_eq!(changed, 1, "whoever leaves as the last is alone");
            self.state.unlock();
            changed
        }

        fn check(&self, changed: usize) {
            assert_eq!(self.state.word.load(Ordering::Relaxed), 0);
            // SAFETY: the other threads are joined.
            self.value
                .with(|value| assert_eq!(unsafe { *value }, changed));
        }
    }

    fn spawn<R: 'static>(
        shared: &Arc<Shared>,
        work: impl FnOnce(&Shared) -> R + 'static,
    ) -> loom::thread::JoinHandle<R> {
        let shared = Arc::clone(shared);
        loom::thread::spawn(move || work(&shared))
    }

    /// SPEC L6, L7. Planted bug: `lock_cnt_leave_relaxed`.
    #[test]
    fn loom_nothing_is_changed_while_a_visitor_looks() {
        model::check(3, || {
            let shared = Shared::new();
            let visitor = spawn(&shared, Shared::visit);
            let writer = spawn(&shared, Shared::lock_and_change);
            let changed = shared.lock_and_change();
            visitor.join().unwrap();
            shared.check(changed + writer.join().unwrap());
        });
    }

    /// SPEC L6, L7. Planted bug: `lock_cnt_leave_relaxed`.
    #[test]
    fn loom_last_visitor_is_alone() {
        model::check(3, || {
            let shared = Shared::new();
            let visitor = spawn(&shared, Shared::visit_and_change_if_last);
            let writer = spawn(&shared, Shared::lock_and_change);
            let changed = shared.visit_and_change_if_last();
            shared.check(changed + visitor.join().unwrap() + writer.join().unwrap());
        });
    }

    /// SPEC L6, L7. Planted bugs: `lock_cnt_sleeps_unsaid`, `lock_cnt_wake_kept`.
    #[test]
    fn loom_nobody_sleeps_for_ever() {
        model::check(3, || {
            let shared = Shared::new();
            shared.state.lock();
            let visitor = spawn(&shared, Shared::visit);
            let writer = spawn(&shared, Shared::lock_and_change);
            let changed = shared.change_if_alone();
            shared.state.unlock();
            visitor.join().unwrap();
            shared.check(changed + writer.join().unwrap());
        });
    }

    /// SPEC L6, L7: the lock passes into a visit with nobody in between.
    #[test]
    fn loom_visit_follows_the_lock_in_one_step() {
        model::check(3, || {
            let shared = Shared::new();
            shared.state.lock();
            let writer = spawn(&shared, Shared::lock_and_change);
            let before = shared.change_if_alone();
            shared.state.inc_and_unlock();
            // SPEC L6: a visitor of its own keeps what it has changed as it is.
            // SAFETY: a visitor.
            shared
                .value
                .with(|value| assert_eq!(unsafe { *value }, before));
            let changed = if shared.state.dec_if_lock() {
                let changed = shared.change_if_alone();
                assert_eq!(changed, 1);
                shared.state.unlock();
                changed
            } else {
                unreachable!("there was no other visitor")
            };
            shared.check(before + changed + writer.join().unwrap());
        });
    }

    /// SPEC L6, L7: two visitors, both of which want to be the last.
    #[test]
    fn loom_one_of_two_visitors_leaves_as_the_last() {
        model::check(3, || {
            let shared = Shared::new();
            shared.state.inc();
            shared.state.inc();
            let leave = |shared: &Shared| {
                shared.look();
                if !shared.state.dec_if_lock() && !shared.state.dec_and_lock() {
                    return 0;
                }
                let changed = shared.change_if_alone();
                assert_eq!(changed, 1);
                shared.state.unlock();
                1
            };
            let other = spawn(&shared, leave);
            let changed = leave(&shared);
            assert_eq!(changed + other.join().unwrap(), 1);
            shared.check(1);
        });
    }
}
