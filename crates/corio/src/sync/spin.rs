//! A lock for a few instructions, in one word, that costs one locked instruction.
//!
//! Taking it is a compare-exchange; giving it back is a plain store, which is possible because
//! nobody sleeps on the word and has to be looked for. Whoever finds it taken spins, then lets
//! other threads run, then sleeps for some microseconds at a time, so that a holder which was
//! preempted, of however low a priority, gets its turn. What is done under it therefore never
//! waits, allocates, wakes or runs anything of the user's.
//!
//! ```text
//!   word:  hint << 1 | LOCKED         the hint is a number of the holder's choice, for all to read
//! ```
//!
//! Invariant
//! - I1. Only the thread that has changed LOCKED from clear to set touches the value, until it
//!   clears LOCKED.

// The value is reached through a shared reference by whoever has the lock.
#![allow(unsafe_code)]

use crate::atomic::{AtomicUsize, Ordering};

const LOCKED: usize = 1;

/// How often a locker looks again before it lets another thread run.
#[cfg(not(loom))]
const SPIN_ROUNDS: u32 = 64;
/// How often it does that before it sleeps.
#[cfg(not(loom))]
const YIELD_ROUNDS: u32 = 64;
/// How long it sleeps at a time, in ns.
#[cfg(not(loom))]
const SLEEP_NS: u64 = 50_000;

/// What the lock's word tells of a value to who has not got the lock.
pub(super) trait Hint {
    /// Below 2^63 (2^31 where addresses have 32 bits).
    fn hint(&self) -> usize;
}

/// A value behind the lock. Under loom, what is built on it is modelled with a lock of loom's, as
/// spinning has no end there; the lock itself has a model of its own.
#[derive(Debug)]
pub(super) struct Spin<T> {
    #[cfg(not(loom))]
    word: Word,
    #[cfg(not(loom))]
    value: core::cell::UnsafeCell<T>,
    #[cfg(loom)]
    word: AtomicUsize,
    #[cfg(loom)]
    value: loom::sync::Mutex<T>,
}

// SAFETY: the value is reached by one thread at a time (I1).
#[cfg(not(loom))]
unsafe impl<T: Send> Send for Spin<T> {}
// SAFETY: as above.
#[cfg(not(loom))]
unsafe impl<T: Send> Sync for Spin<T> {}

#[cfg(not(loom))]
impl<T: Hint> Spin<T> {
    pub(super) fn new(value: T) -> Spin<T> {
        Spin {
            word: Word::new(value.hint()),
            value: core::cell::UnsafeCell::new(value),
        }
    }

    /// What the value told when it was last let go of. Orders nothing.
    #[inline]
    pub(super) fn hint(&self) -> usize {
        self.word.hint()
    }

    /// Has the value for itself while `f` runs, which keeps to what the module says.
    #[inline]
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut locked = self.word.lock();
        // SAFETY: I1.
        let value = unsafe { &mut *self.value.get() };
        let result = f(value);
        locked.hint = value.hint();
        result
    }
}

#[cfg(loom)]
impl<T: Hint> Spin<T> {
    pub(super) fn new(value: T) -> Spin<T> {
        Spin {
            word: AtomicUsize::new(value.hint()),
            value: loom::sync::Mutex::new(value),
        }
    }

    pub(super) fn hint(&self) -> usize {
        self.word.load(Ordering::Relaxed)
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock().unwrap();
        let result = f(&mut value);
        self.word.store(value.hint(), Ordering::Relaxed);
        result
    }
}

/// The lock by itself.
#[derive(Debug)]
#[cfg_attr(loom, allow(dead_code))]
struct Word(AtomicUsize);

#[cfg_attr(loom, allow(dead_code))]
impl Word {
    fn new(hint: usize) -> Word {
        Word(AtomicUsize::new(hint << 1))
    }

    #[inline]
    fn hint(&self) -> usize {
        self.0.load(Ordering::Relaxed) >> 1
    }

    /// Sets LOCKED, which is cleared when what this gives is dropped.
    #[inline]
    fn lock(&self) -> Locked<'_> {
        let free = self.0.load(Ordering::Relaxed) & !LOCKED;
        // Acquire: pairs with the release of `Locked`.
        let before =
            self.0
                .compare_exchange(free, free | LOCKED, Ordering::Acquire, Ordering::Relaxed);
        Locked {
            word: &self.0,
            hint: before.unwrap_or_else(|_| self.lock_contended()) >> 1,
        }
    }

    /// Gives the word as it was when it was free.
    #[cold]
    fn lock_contended(&self) -> usize {
        let mut rounds = 0;
        loop {
            let word = self.0.load(Ordering::Relaxed);
            // Acquire: as in `lock`.
            let locks = word & LOCKED == 0
                && self
                    .0
                    .compare_exchange_weak(
                        word,
                        word | LOCKED,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    )
                    .is_ok();
            if locks {
                return word;
            }
            relax(&mut rounds);
        }
    }
}

/// Gives the lock back, also when what is done under it panics, which is a bug of ours.
struct Locked<'a> {
    word: &'a AtomicUsize,
    hint: usize,
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        let order = if planted!("spin_unlock_relaxed") {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        // Release: pairs with the acquire of who locks next. A store will do: nobody else writes
        // the word while LOCKED is set.
        self.word.store(self.hint << 1, order);
    }
}

#[cfg(not(loom))]
fn relax(rounds: &mut u32) {
    *rounds = rounds.saturating_add(1);
    if *rounds <= SPIN_ROUNDS {
        core::hint::spin_loop();
    } else if *rounds <= SPIN_ROUNDS + YIELD_ROUNDS {
        std::thread::yield_now();
    } else {
        std::thread::sleep(core::time::Duration::from_nanos(SLEEP_NS));
    }
}

#[cfg(loom)]
fn relax(_: &mut u32) {
    loom::thread::yield_now();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Sum(usize);

    impl Hint for Sum {
        fn hint(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn one_thread_at_a_time_and_the_hint_follows() {
        const ROUNDS: usize = 20_000;
        let sum = Arc::new(Spin::new(Sum(3)));
        assert_eq!(sum.hint(), 3);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let sum = Arc::clone(&sum);
                std::thread::spawn(move || {
                    for _ in 0..ROUNDS {
                        sum.with(|sum| sum.0 += 1);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(sum.hint(), 3 + 3 * ROUNDS);
        assert_eq!(sum.with(|sum| sum.0), 3 + 3 * ROUNDS);
    }

    #[test]
    fn a_holder_that_stays_long_is_waited_for() {
        let sum = Arc::new(Spin::new(Sum(0)));
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = sum.with(|held| {
            let other = Arc::clone(&sum);
            let waiting = std::thread::spawn(move || {
                tell.send(()).unwrap();
                other.with(|sum| sum.0)
            });
            told.recv().unwrap();
            // Long enough for all three ways of waiting.
            std::thread::sleep(core::time::Duration::from_millis(2));
            held.0 = 7;
            waiting
        });
        assert_eq!(waiting.join().unwrap(), 7);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    struct Sum {
        word: Word,
        value: loom::cell::UnsafeCell<u32>,
    }

    impl Sum {
        fn add_one(&self) {
            let _locked = self.word.lock();
            // SAFETY: what the model is to show; loom sees it if not.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
    }

    /// SPEC L7. Planted bug: `spin_unlock_relaxed`.
    #[test]
    fn loom_spin_excludes_and_publishes() {
        model::check(None, || {
            let sum = Arc::new(Sum {
                word: Word::new(5),
                value: loom::cell::UnsafeCell::new(0),
            });
            let other = {
                let sum = Arc::clone(&sum);
                loom::thread::spawn(move || sum.add_one())
            };
            sum.add_one();
            other.join().unwrap();
            // SAFETY: one thread is left.
            assert_eq!(sum.value.with(|value| unsafe { *value }), 2);
            assert_eq!(sum.word.hint(), 5);
        });
    }
}
