//! Locks that are free, taken and released by one; and one that is handed over between two.
//!
//! Ours run in a coroutine of a context, where a lock has to find out who takes it. parking_lot's
//! run on a plain thread, tokio's in the future of `block_on`. A round is a lock, adding one to
//! what it protects (for readers and the semaphore, to a counter), and an unlock.

use std::cell::Cell;
use std::hint::black_box;

use crate::contest::{Lap, Stopwatch};
use crate::place;
use crate::tally::Tally;

pub(super) fn ours_mutex(rounds: u32) -> Lap {
    place::coroutine(move || {
        let mutex = black_box(corio::sync::Mutex::new(0));
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            *mutex.lock() += 1;
        }
        let lap = watch.stop();
        assert_eq!(mutex.into_inner(), rounds);
        lap
    })
}

pub(super) fn parking_lot_mutex(rounds: u32) -> Lap {
    let mutex = black_box(parking_lot::Mutex::new(0));
    let watch = Stopwatch::start();
    for _ in 0..rounds {
        *mutex.lock() += 1;
    }
    let lap = watch.stop();
    assert_eq!(mutex.into_inner(), rounds);
    lap
}

pub(super) fn ours_read(rounds: u32) -> Lap {
    place::coroutine(move || {
        let lock = black_box(corio::sync::RwLock::new(Tally::leak()));
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            lock.read().work();
        }
        let lap = watch.stop();
        assert_eq!(lock.into_inner().count(), rounds);
        lap
    })
}

pub(super) fn parking_lot_read(rounds: u32) -> Lap {
    let lock = black_box(parking_lot::RwLock::new(Tally::leak()));
    let watch = Stopwatch::start();
    for _ in 0..rounds {
        lock.read().work();
    }
    let lap = watch.stop();
    assert_eq!(lock.into_inner().count(), rounds);
    lap
}

pub(super) fn ours_write(rounds: u32) -> Lap {
    place::coroutine(move || {
        let lock = black_box(corio::sync::RwLock::new(0));
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            *lock.write() += 1;
        }
        let lap = watch.stop();
        assert_eq!(lock.into_inner(), rounds);
        lap
    })
}

pub(super) fn parking_lot_write(rounds: u32) -> Lap {
    let lock = black_box(parking_lot::RwLock::new(0));
    let watch = Stopwatch::start();
    for _ in 0..rounds {
        *lock.write() += 1;
    }
    let lap = watch.stop();
    assert_eq!(lock.into_inner(), rounds);
    lap
}

pub(super) fn ours_semaphore(rounds: u32) -> Lap {
    place::coroutine(move || {
        let semaphore = black_box(corio::sync::Semaphore::new(1));
        let tally = Tally::leak();
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            let permit = semaphore.acquire(1);
            tally.work();
            drop(permit);
        }
        let lap = watch.stop();
        assert_eq!((tally.count(), semaphore.available()), (rounds, 1));
        lap
    })
}

pub(super) fn tokio_semaphore(rounds: u32) -> Lap {
    place::block_on(async move {
        let semaphore = black_box(tokio::sync::Semaphore::new(1));
        let tally = Tally::leak();
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            let permit = semaphore.acquire().await.expect("it is not closed");
            tally.work();
            drop(permit);
        }
        let lap = watch.stop();
        assert_eq!((tally.count(), semaphore.available_permits()), (rounds, 1));
        lap
    })
}

/// Two coroutines of one thread, each of which yields while it holds the mutex, so that the other
/// has to wait for it and is handed it over.
pub(super) fn ours_handed_over(rounds: u32) -> Lap {
    place::coroutine(move || {
        let mutex: &'static _ = Box::leak(Box::new(corio::sync::Mutex::new(0)));
        let waits: &'static Cell<u32> = Box::leak(Box::default());
        let take_turns = move || {
            loop {
                if mutex.try_lock().is_none() {
                    waits.set(waits.get() + 1);
                }
                let mut done = mutex.lock();
                if *done >= rounds {
                    break;
                }
                *done += 1;
                corio::yield_now();
            }
        };
        let other = corio::spawn_local(take_turns);
        corio::yield_now();
        let watch = Stopwatch::start();
        take_turns();
        let lap = watch.stop();
        other.join().expect("it does not panic");
        assert_eq!(*mutex.lock(), rounds);
        assert!(waits.get() >= rounds - 1, "{} waits", waits.get());
        lap
    })
}

/// The same with two tasks.
pub(super) fn tokio_handed_over(rounds: u32) -> Lap {
    place::local_task(async move {
        let mutex: &'static _ = Box::leak(Box::new(tokio::sync::Mutex::new(0)));
        let waits: &'static Cell<u32> = Box::leak(Box::default());
        let take_turns = move || async move {
            loop {
                if mutex.try_lock().is_err() {
                    waits.set(waits.get() + 1);
                }
                let mut done = mutex.lock().await;
                if *done >= rounds {
                    break;
                }
                *done += 1;
                tokio::task::yield_now().await;
            }
        };
        let other = tokio::task::spawn_local(take_turns());
        tokio::task::yield_now().await;
        let watch = Stopwatch::start();
        take_turns().await;
        let lap = watch.stop();
        other.await.expect("it does not panic");
        assert_eq!(*mutex.lock().await, rounds);
        assert!(waits.get() >= rounds - 1, "{} waits", waits.get());
        lap
    })
}
