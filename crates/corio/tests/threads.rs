//! The protocols between threads, used by plain threads that block, and by a loop that runs no
//! coroutine: what ThreadSanitizer can follow (SPEC C11). Quick enough for every run.
//!
//! What is shared is a plain number behind a cell, so that a lock which excludes but orders nothing
//! is found. Every thread is joined by its handle: std is not instrumented in those builds, but
//! pthread_join is seen.

#![allow(unsafe_code)] // The cell that the protocols under test guard.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use corio::AioContext;
use corio::context::MonitorChoice;
use corio::sync::{Mutex, Queue, Semaphore};

const THREADS: usize = 4;
const ROUNDS: usize = 200;

/// A number without any protection of its own.
#[derive(Default)]
struct Plain(UnsafeCell<usize>);

// SAFETY: each test keeps its accesses apart by what it is about.
unsafe impl Sync for Plain {}

impl Plain {
    /// Adds, and gives the sum.
    fn add(&self, n: usize) -> usize {
        // SAFETY: the caller has it for itself, if what is tested holds.
        unsafe {
            *self.0.get() += n;
            *self.0.get()
        }
    }

    fn get(&self) -> usize {
        // SAFETY: nobody writes it meanwhile, if what is tested holds.
        unsafe { *self.0.get() }
    }
}

/// Runs `body` with its number in some threads at once, and gives what they return.
fn in_threads<R: Send + 'static>(body: impl Fn(usize) -> R + Send + Sync + 'static) -> Vec<R> {
    let body = Arc::new(body);
    let threads: Vec<_> = (0..THREADS)
        .map(|i| {
            let body = Arc::clone(&body);
            thread::spawn(move || body(i))
        })
        .collect();
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect()
}

// SPEC C11, L1
#[test]
fn mutex_orders_what_plain_threads_do_under_it() {
    let shared = Arc::new((Mutex::new(()), Plain::default()));
    let theirs = Arc::clone(&shared);
    in_threads(move |_| {
        let mut added = 0;
        while added < ROUNDS {
            // Now and then without waiting, which is another way in.
            let guard = match added % 4 {
                0 => theirs.0.try_lock(),
                _ => Some(theirs.0.lock()),
            };
            if guard.is_some() {
                theirs.1.add(1);
                added += 1;
            } else {
                thread::yield_now();
            }
        }
    });
    assert_eq!(shared.1.get(), THREADS * ROUNDS);
}

// SPEC C11, L5
#[test]
fn semaphore_orders_who_takes_all_of_it() {
    let shared = Arc::new((Semaphore::new(THREADS), Plain::default()));
    let theirs = Arc::clone(&shared);
    in_threads(move |i| {
        for round in 0..ROUNDS {
            if (i + round).is_multiple_of(3) {
                let _some = theirs.0.acquire(1);
                assert!(theirs.1.get() <= THREADS * ROUNDS);
            } else {
                let _all = theirs.0.acquire(THREADS);
                theirs.1.add(1);
            }
        }
    });
    let writers = (0..THREADS * ROUNDS).filter(|n| !(n / ROUNDS + n % ROUNDS).is_multiple_of(3));
    assert_eq!(shared.1.get(), writers.count());
    assert_eq!(shared.0.available(), THREADS);
}

// SPEC C11, L3: with the mutex released and taken again by the wait.
#[test]
fn queue_hands_over_what_was_done_before_the_wake() {
    struct Channel {
        /// How many are there to be taken.
        filled: Mutex<usize>,
        changed: Queue,
        taken: Plain,
    }
    let channel = Arc::new(Channel {
        filled: Mutex::new(0),
        changed: Queue::new(),
        taken: Plain::default(),
    });
    let theirs = Arc::clone(&channel);
    in_threads(move |i| {
        for _ in 0..ROUNDS {
            let mut filled = theirs.filled.lock();
            if i % 2 == 0 {
                *filled += 1;
                drop(filled);
                theirs.changed.wake_one();
            } else {
                while *filled == 0 {
                    filled = theirs.changed.wait_releasing(filled);
                }
                *filled -= 1;
                theirs.taken.add(1);
            }
        }
    });
    assert_eq!(channel.taken.get(), THREADS / 2 * ROUNDS);
    assert_eq!(*channel.filled.lock(), 0);
}

/// Turns a loop in this thread, on each monitor, while others do `theirs` to its context, until the
/// sum that they have it add up is `all`. What `theirs` returns is kept until then.
fn with_a_loop<R: Send + 'static>(
    theirs: impl Fn(&AioContext, usize, &Arc<Plain>) -> R + Send + Sync + Copy + 'static,
    all: usize,
) {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let sum = Arc::new(Plain::default());
        let others = {
            let (context, sum) = (context.clone(), Arc::clone(&sum));
            thread::spawn(move || in_threads(move |i| theirs(&context, i, &sum)))
        };
        let turned = context.enter_home(|| {
            while sum.get() < all {
                context.poll(true).unwrap();
            }
        });
        turned.unwrap();
        others.join().unwrap();
        assert_eq!(sum.get(), all);
    }
}

// SPEC C11, B1, N1: what was published before a bottom half is scheduled is there when it runs, and
// the loop does not sleep over it.
#[test]
fn bottom_halves_of_other_threads_all_run_at_home() {
    with_a_loop(
        |context, i, sum| {
            for round in 0..ROUNDS {
                let mine = Plain::default();
                mine.add(1);
                let sum = Arc::clone(sum);
                let add = move || _ = sum.add(mine.get());
                context.schedule_oneshot("add", add);
                if (i + round).is_multiple_of(16) {
                    thread::yield_now();
                }
            }
        },
        THREADS * ROUNDS,
    );
}

// SPEC C11, B2, N1: one bottom half, scheduled by all, runs after the last schedule.
#[test]
fn a_bottom_half_that_all_schedule_runs_after_the_last() {
    for _ in 0..10 {
        let context = AioContext::new().unwrap();
        let work = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(Plain::default());
        let half = {
            let (work, seen) = (Arc::clone(&work), Arc::clone(&seen));
            context.bottom_half("take", move || {
                seen.add(work.swap(0, Ordering::Relaxed));
            })
        };
        let half = Arc::new(half);
        let others = {
            let half = Arc::clone(&half);
            thread::spawn(move || {
                in_threads(move |_| {
                    for _ in 0..ROUNDS {
                        work.fetch_add(1, Ordering::Relaxed);
                        half.schedule();
                    }
                });
            })
        };
        let turned = context.enter_home(|| {
            while seen.get() < THREADS * ROUNDS {
                context.poll(true).unwrap();
            }
        });
        turned.unwrap();
        others.join().unwrap();
        assert_eq!(seen.get(), THREADS * ROUNDS);
    }
}

// SPEC C11, T2
#[test]
fn timers_armed_by_other_threads_fire_at_home() {
    const TIMERS: u32 = 20;
    with_a_loop(
        |context, _, sum| {
            let arm = |n| {
                let sum = Arc::clone(sum);
                let timer = context.timer(move || _ = sum.add(1));
                timer.arm_after(Duration::from_micros(100) * (n % 7));
                let gone = context.timer(|| unreachable!("it was cancelled long before"));
                gone.arm_after(Duration::from_secs(3600));
                assert!(gone.cancel());
                timer
            };
            (0..TIMERS).map(arm).collect::<Vec<_>>()
        },
        THREADS * TIMERS as usize,
    );
}
