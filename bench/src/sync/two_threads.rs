//! Exercise `mutex_2_threads`: two threads lock and unlock one mutex as fast as they can.
//!
//! Both go on until they have done all rounds together, so that neither is alone at the end,
//! whoever does more of them: a round is one lock and unlock of either. The time is from when the
//! first begins to when the last ends. Each is bound to a CPU of its own, as the kernel may else
//! put both on one, where they would take turns and never meet. Where one of them got no CPU and
//! the other did all, nothing was contended: that is done again.
//!
//! Ours is used by a coroutine on each of two IoThreads, parking_lot's by two plain threads,
//! tokio's by the futures of `block_on` on two threads.
//!
//! The figure depends on the machine more than most. As long as whoever finds the mutex held sees
//! it released in time, it costs some nanoseconds; a fair mutex of which somebody waits, ours and
//! tokio's, is handed to a thread that has to be woken first, which costs some microseconds. How
//! often that happens is decided by what else runs on the two CPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use corio::IoThread;
use rustix::thread::CpuSet;

use crate::contest::Lap;
use crate::place;

/// How often one looks whether the other is there before it lets others have its CPU.
const LOOKS: u32 = 1000;
/// A side that did less than this part of the rounds was not there.
const LEAST_PART: u32 = 100;
/// How often a race is run in which one was not there.
const TRIES: u32 = 10;

/// What two sides share.
struct Race<M> {
    /// Protects the number of rounds that are done.
    mutex: M,
    rounds: u32,
    come: AtomicUsize,
    ready: AtomicUsize,
}

/// One side's part.
struct Side {
    start: Instant,
    end: Instant,
    rounds: u32,
}

impl<M> Race<M> {
    fn new(rounds: u32, mutex: M) -> Arc<Self> {
        Arc::new(Self {
            mutex,
            rounds,
            come: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
        })
    }

    /// Binds the thread to a CPU and returns when both sides are here. Looks, rather than waits to
    /// be woken: who is woken is late.
    fn meet(&self) -> Side {
        bind(self.come.fetch_add(1, Ordering::Relaxed));
        // AcqRel and Acquire: pair with each other; both have been bound.
        self.ready.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0;
        while self.ready.load(Ordering::Acquire) < 2 {
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        Side {
            start,
            end: start,
            rounds: 0,
        }
    }

    /// A round of `side`, which has the mutex; false if all are done.
    #[inline(always)]
    fn round(&self, done: &mut u32, side: &mut Side) -> bool {
        let more = *done < self.rounds;
        *done += u32::from(more);
        side.rounds += u32::from(more);
        more
    }
}

impl Side {
    fn ended(mut self) -> Self {
        self.end = Instant::now();
        self
    }
}

/// Binds this thread to the first, or second, CPU that it may use.
fn bind(number: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else {
        return;
    };
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    // Where there is only one, the kernel has nothing to choose either.
    if let Some(cpu) = cpus.nth(number) {
        let mut one = CpuSet::new();
        one.set(cpu);
        // Refused, the kernel chooses.
        let _ = rustix::thread::sched_setaffinity(None, &one);
    }
}

/// Runs a race until both sides were there.
fn contested(rounds: u32, race: impl Fn() -> [Side; 2]) -> Lap {
    let mut tries = 0;
    loop {
        let [first, second] = race();
        assert_eq!(first.rounds + second.rounds, rounds);
        tries += 1;
        if first.rounds.min(second.rounds) >= rounds / LEAST_PART || tries == TRIES {
            let (start, end) = (first.start.min(second.start), first.end.max(second.end));
            return Lap::of_threads(end.duration_since(start));
        }
    }
}

pub(super) fn ours(rounds: u32) -> Lap {
    contested(rounds, || {
        let race = Race::new(rounds, corio::sync::Mutex::new(0));
        let threads = [(); 2].map(|()| IoThread::builder().spawn().expect("no loop for a side"));
        let sides = threads.each_ref().map(|thread| {
            let race = Arc::clone(&race);
            thread.context().spawn(move || {
                let mut side = race.meet();
                while race.round(&mut race.mutex.lock(), &mut side) {}
                side.ended()
            })
        });
        sides.map(|side| side.join().expect("it does not panic"))
    })
}

pub(super) fn parking_lot(rounds: u32) -> Lap {
    contested(rounds, || {
        let race = Race::new(rounds, parking_lot::Mutex::new(0));
        let sides = [(); 2].map(|()| {
            let race = Arc::clone(&race);
            std::thread::spawn(move || {
                let mut side = race.meet();
                while race.round(&mut race.mutex.lock(), &mut side) {}
                side.ended()
            })
        });
        sides.map(|side| side.join().expect("it does not panic"))
    })
}

pub(super) fn tokio(rounds: u32) -> Lap {
    contested(rounds, || {
        let race = Race::new(rounds, tokio::sync::Mutex::new(0));
        let sides = [(); 2].map(|()| {
            let race = Arc::clone(&race);
            std::thread::spawn(move || {
                place::block_on(async {
                    let mut side = race.meet();
                    while race.round(&mut *race.mutex.lock().await, &mut side) {}
                    side.ended()
                })
            })
        });
        sides.map(|side| side.join().expect("it does not panic"))
    })
}
