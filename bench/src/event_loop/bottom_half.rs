//! Exercises `bh_*`: bottom halves are scheduled, and run in a turn; a round is one of them.
//!
//! `bh_schedule_dispatch` schedules a hundred at home and has a turn run them, `bh_poll` one for
//! each turn, which does not block; `bh_oneshot` is a hundred closures, each new. Once in 50 us, or
//! in 61 turns, a turn looks at the descriptors, which is a system call and in the figures.
//! `bh_remote_schedule` schedules a thousand on a context whose home this thread is not, and is
//! then home for the turn that runs them: the way of other threads, with nobody in it. Becoming
//! home, which makes a monitor, is outside its time.
//!
//! The queue is given as many numbers, and they are taken out again.

use std::hint::black_box;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::BottomHalf;
use crossbeam_queue::SegQueue;

use crate::contest::{Lap, Stopwatch};
use crate::tally::Tally;

/// Scheduled before a turn.
const HUNDRED: u32 = 100;
const THOUSAND: u32 = 1000;

fn context() -> AioContext {
    AioContext::new().expect("no descriptors for a context")
}

fn turn(context: &AioContext) {
    assert!(context.poll(false).expect("the loop's wait failed"));
}

fn counting(context: &AioContext, tally: &'static Tally, count: u32) -> Vec<BottomHalf> {
    let make = |_| context.bottom_half("bench", move || tally.work());
    (0..count).map(make).collect()
}

/// How many batches make up the rounds.
fn batches(rounds: u32, batch: u32) -> u32 {
    assert!(
        rounds.is_multiple_of(batch),
        "rounds are done in whole batches"
    );
    rounds / batch
}

fn at_home(rounds: u32, batch: u32) -> Lap {
    let tally = Tally::leak();
    let context = context();
    let halves = counting(&context, tally, batch);
    let exercise = || {
        turn_once(&context);
        let watch = Stopwatch::start();
        for _ in 0..batches(rounds, batch) {
            for half in &halves {
                half.schedule();
            }
            turn(&context);
        }
        watch.stop()
    };
    let lap = context.enter_home(exercise).expect("no monitor");
    assert_eq!(tally.count(), rounds);
    lap
}

/// The first turn of a home has things to set up.
fn turn_once(context: &AioContext) {
    context.poll(false).expect("the loop's wait failed");
}

pub(crate) fn ours_schedule_dispatch(rounds: u32) -> Lap {
    at_home(rounds, HUNDRED)
}

pub(super) fn ours_poll(rounds: u32) -> Lap {
    at_home(rounds, 1)
}

pub(super) fn ours_oneshot(rounds: u32) -> Lap {
    let tally = Tally::leak();
    let context = context();
    let exercise = || {
        turn_once(&context);
        let watch = Stopwatch::start();
        for _ in 0..batches(rounds, HUNDRED) {
            for _ in 0..HUNDRED {
                context.schedule_oneshot("bench", move || tally.work());
            }
            turn(&context);
        }
        watch.stop()
    };
    let lap = context.enter_home(exercise).expect("no monitor");
    assert_eq!(tally.count(), rounds);
    lap
}

pub(super) fn ours_remote(rounds: u32) -> Lap {
    let tally = Tally::leak();
    let context = context();
    let batch = THOUSAND.min(rounds);
    let halves = counting(&context, tally, batch);
    let mut elapsed = Duration::ZERO;
    for _ in 0..batches(rounds, batch) {
        let start = Instant::now();
        for half in &halves {
            half.schedule();
        }
        elapsed += start.elapsed();
        let dispatch = || {
            let start = Instant::now();
            turn(&context);
            start.elapsed()
        };
        elapsed += context.enter_home(dispatch).expect("no monitor");
    }
    assert_eq!(tally.count(), rounds);
    Lap::of_threads(elapsed)
}

/// Puts `batch` numbers in and takes them out, until there were `rounds`.
fn theirs(rounds: u32, batch: u32) -> Lap {
    let tally = Tally::leak();
    let queue = black_box(SegQueue::new());
    let watch = Stopwatch::start();
    for _ in 0..batches(rounds, batch) {
        for number in 0..batch {
            queue.push(number);
        }
        while let Some(number) = queue.pop() {
            black_box(number);
            tally.work();
        }
    }
    let lap = watch.stop();
    assert_eq!(tally.count(), rounds);
    lap
}

pub(super) fn theirs_one_by_one(rounds: u32) -> Lap {
    theirs(rounds, 1)
}

pub(super) fn theirs_in_hundreds(rounds: u32) -> Lap {
    theirs(rounds, HUNDRED)
}

pub(super) fn theirs_in_thousands(rounds: u32) -> Lap {
    theirs(rounds, THOUSAND.min(rounds))
}
