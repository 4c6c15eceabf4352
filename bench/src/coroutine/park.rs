//! Exercises `park_wake` and `park_wake_beside`: a coroutine parks, and is woken from its own
//! thread.
//!
//! - `park_wake`: two coroutines of one context park; the thread wakes them in turn, from its own
//!   stack and by name (`Coroutine::wake`, QEMU's `aio_co_wake`), which enters them at once
//!   (SPEC S4). A round is one wake, the run, and the park that ends it.
//! - `park_wake_beside`: two coroutines of one context wake each other by token and park:
//!
//!   ```text
//!   first   wake second, park ------------------------> wake second, park ---->
//!   second                   \-> wake first, park ---->/                  \-> ..
//!   ```
//!
//!   A round is one wake, one park and the one run between. The woken one is queued on its waker
//!   and entered when that parks (SPEC C4); the loop does not get a turn before the end.
//!
//! The peer is what neither can be had without: two raw coroutines, entered in turn, as the CPU
//! predicts two stacks otherwise than one; and for each switch in and out two compare-exchanges on
//! a word of the coroutine's own, as a park has to be published and a wake has to be won where
//! anybody may wake. Neither is ever contended. What ours has on top is the looks at cancellation,
//! panics and tracking; beside a waker also the queue, and finding the coroutine of a token.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use corio::{AioContext, CoWaker, Coroutine};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine as Raw, Yielder};

use super::switch::raw_stack;
use crate::contest::{Lap, Stopwatch};
use crate::place;
use crate::tally::Tally;

pub(super) fn ours(rounds: u32) -> Lap {
    let each = half(rounds);
    let context = AioContext::new().expect("no descriptor for a context");
    let exercise = || {
        let parking = || {
            let tally = Tally::leak();
            let body = move || {
                corio::park();
                while !tally.stopped() {
                    tally.work();
                    corio::park();
                }
            };
            let coroutine = Coroutine::new(body);
            // Parked already, so that the first use of the stack is outside the time.
            coroutine.enter();
            (coroutine, tally)
        };
        let (first, second) = (parking(), parking());
        let watch = Stopwatch::start();
        for _ in 0..each {
            first.0.wake();
            second.0.wake();
        }
        let lap = watch.stop();
        for (coroutine, tally) in [first, second] {
            assert_eq!(tally.count(), each);
            tally.stop();
            coroutine.wake();
            assert!(coroutine.is_done());
        }
        lap
    };
    context.enter_home(exercise).expect("no home for a context")
}

pub(super) fn ours_beside(rounds: u32) -> Lap {
    let each = half(rounds);
    place::coroutine(move || {
        let (mine, others) = (Tally::leak(), Tally::leak());
        let first = token();
        let second: &'static Cell<Option<CoWaker>> = Box::leak(Box::default());
        let child = corio::spawn_local(move || {
            second.set(Some(token()));
            first.wake();
            corio::park();
            while !others.stopped() {
                others.work();
                first.wake();
                corio::park();
            }
        });
        let second = loop {
            match second.get() {
                Some(second) => break second,
                None => corio::park(),
            }
        };
        let watch = Stopwatch::start();
        while mine.count() < each {
            mine.work();
            second.wake();
            corio::park();
        }
        let lap = watch.stop();
        // A park that had returned early would have left the other behind.
        assert_eq!((mine.count(), others.count()), (each, each));
        others.stop();
        second.wake();
        child.join().expect("it does not panic");
        lap
    })
}

fn token() -> CoWaker {
    CoWaker::current().expect("an exercise runs in a coroutine of a context")
}

const RUNNING: u32 = 0;
const PARKED: u32 = 1;

/// One of the peer's coroutines, and the word that says whether it is parked.
struct Parking {
    coroutine: Raw<(), (), (), DefaultStack>,
    word: &'static AtomicU32,
    tally: &'static Tally,
}

impl Parking {
    /// Parked already, so that the first use of the stack is outside the time.
    fn new() -> Self {
        let tally = Tally::leak();
        let word: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(PARKED)));
        let body = move |yielder: &Yielder<(), ()>, ()| {
            yielder.suspend(());
            while !tally.stopped() {
                tally.work();
                change(word, RUNNING, PARKED);
                yielder.suspend(());
            }
        };
        let mut coroutine = Raw::with_stack(raw_stack(), body);
        coroutine.resume(());
        Self {
            coroutine,
            word,
            tally,
        }
    }

    #[inline(always)]
    fn wake(&mut self) {
        change(self.word, PARKED, RUNNING);
        self.coroutine.resume(());
    }
}

#[inline(always)]
fn change(word: &AtomicU32, from: u32, to: u32) {
    // AcqRel, as ours are, though nobody is at the other end of it here.
    let changed = word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    assert!(changed.is_ok(), "nobody else changes it");
}

pub(super) fn theirs(rounds: u32) -> Lap {
    let each = half(rounds);
    let (mut first, mut second) = (Parking::new(), Parking::new());
    let watch = Stopwatch::start();
    for _ in 0..each {
        first.wake();
        second.wake();
    }
    let lap = watch.stop();
    for mut parking in [first, second] {
        assert_eq!(parking.tally.count(), each);
        parking.tally.stop();
        parking.wake();
        assert!(parking.coroutine.done());
    }
    lap
}

/// Each of two does half.
fn half(rounds: u32) -> u32 {
    assert!(rounds.is_multiple_of(2), "two do the same number of rounds");
    rounds / 2
}
