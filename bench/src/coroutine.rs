//! Suite `coroutine`: what a switch costs, beside corosensei used raw.
//!
//! A round is one `enter` and the suspension, or the end, that follows it. Both sides do the same
//! in the body: add one to a counter, which is checked. The depth at which a coroutine suspends
//! matters more than the switch itself, because the CPU predicts returns by the calls it saw on the
//! other stack; so the switch is measured once in the body and once three calls deep.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine as Raw, Yielder};

use crate::Plan;
use crate::report::{Figure, Metric, Report};
use crate::stats::{Better, Samples};

const SUITE: &str = "coroutine";
const PEER: &str = "corosensei";
const NS: Metric = Metric {
    unit: "ns",
    better: Better::Lower,
};

/// Rounds a measurement. Few, so that ours and theirs take turns faster than other work comes and
/// goes on the machine: both then see the same of it.
const SWITCHES: u32 = 20_000;
/// Measurements a round of the plan.
const REPEATS: usize = 100;
const RAW_STACK: usize = 256 << 10;

/// The same exercise for both: given a number of rounds, how long they took.
struct Contest {
    name: &'static str,
    ours: fn(u32) -> Duration,
    theirs: fn(u32) -> Duration,
}

const CONTESTS: [Contest; 3] = [
    Contest {
        name: "enter_yield",
        ours: |rounds| ours_suspending(rounds, corio::suspend),
        theirs: |rounds| theirs_suspending(rounds, |yielder| yielder.suspend(())),
    },
    Contest {
        name: "enter_yield_deep",
        ours: |rounds| ours_suspending(rounds, ours_deep),
        theirs: |rounds| theirs_suspending(rounds, theirs_deep),
    },
    Contest {
        name: "create_run_end",
        ours: ours_created,
        theirs: theirs_created,
    },
];

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for contest in &CONTESTS {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for _ in 0..plan.rounds * REPEATS {
            ours.push(ns_a_round((contest.ours)(SWITCHES), SWITCHES));
            theirs.push(ns_a_round((contest.theirs)(SWITCHES), SWITCHES));
        }
        report.push(Figure::new(SUITE, contest.name, NS, &ours, PEER, &theirs))?;
    }
    Ok(())
}

fn ns_a_round(elapsed: Duration, rounds: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(rounds)
}

/// What a body shares with its maker. Leaked, so that neither side pays for sharing it.
#[derive(Default)]
struct Shared {
    count: Cell<u32>,
    stop: Cell<bool>,
}

impl Shared {
    fn leak() -> &'static Self {
        Box::leak(Box::default())
    }

    #[inline(always)]
    fn work(&self) {
        self.count.set(self.count.get() + 1);
    }
}

#[inline(always)]
fn ours_suspending(rounds: u32, suspend: impl Fn() + 'static) -> Duration {
    corio::home(|| {
        let shared = Shared::leak();
        let coroutine = corio::Coroutine::new(move || {
            suspend();
            while !shared.stop.get() {
                shared.work();
                suspend();
            }
        });
        // Started outside the time, so that the first use of the stack is not in it.
        coroutine.enter();
        let start = Instant::now();
        for _ in 0..rounds {
            coroutine.enter();
        }
        let elapsed = start.elapsed();
        shared.stop.set(true);
        coroutine.enter();
        assert!(coroutine.is_done());
        assert_eq!(shared.count.get(), rounds);
        elapsed
    })
}

#[inline(always)]
fn theirs_suspending(rounds: u32, suspend: impl Fn(&Yielder<(), ()>) + 'static) -> Duration {
    let shared = Shared::leak();
    let mut coroutine = Raw::with_stack(raw_stack(), move |yielder: &Yielder<(), ()>, ()| {
        suspend(yielder);
        while !shared.stop.get() {
            shared.work();
            suspend(yielder);
        }
    });
    coroutine.resume(());
    let start = Instant::now();
    for _ in 0..rounds {
        coroutine.resume(());
    }
    let elapsed = start.elapsed();
    shared.stop.set(true);
    coroutine.resume(());
    assert!(coroutine.done());
    assert_eq!(shared.count.get(), rounds);
    elapsed
}

/// Three calls, none inlined, none turned into a jump: each has something to do after the next.
macro_rules! deep {
    ($first:ident, $second:ident, $third:ident, ($($arg:ident: $ty:ty)?), $suspend:expr) => {
        #[inline(never)]
        fn $first($($arg: $ty)?) {
            $second($($arg)?);
            black_box(1);
        }

        #[inline(never)]
        fn $second($($arg: $ty)?) {
            $third($($arg)?);
            black_box(2);
        }

        #[inline(never)]
        fn $third($($arg: $ty)?) {
            $suspend;
            black_box(3);
        }
    };
}

deep!(ours_deep, ours_deeper, ours_deepest, (), corio::suspend());
deep!(
    theirs_deep,
    theirs_deeper,
    theirs_deepest,
    (yielder: &Yielder<(), ()>),
    yielder.suspend(())
);

fn ours_created(rounds: u32) -> Duration {
    corio::home(|| {
        let shared = Shared::leak();
        let create_run_end = || corio::Coroutine::new(move || shared.work()).enter();
        // The first makes the stack that all others reuse.
        create_run_end();
        let start = Instant::now();
        for _ in 0..rounds {
            create_run_end();
        }
        let elapsed = start.elapsed();
        assert_eq!(shared.count.get(), rounds + 1);
        elapsed
    })
}

fn theirs_created(rounds: u32) -> Duration {
    let shared = Shared::leak();
    let create_run_end = |stack| {
        let mut coroutine = Raw::with_stack(stack, move |_: &Yielder<(), ()>, ()| shared.work());
        coroutine.resume(());
        coroutine.into_stack()
    };
    let mut stack = create_run_end(raw_stack());
    let start = Instant::now();
    for _ in 0..rounds {
        stack = create_run_end(stack);
    }
    let elapsed = start.elapsed();
    assert_eq!(shared.count.get(), rounds + 1);
    elapsed
}

fn raw_stack() -> DefaultStack {
    DefaultStack::new(RAW_STACK).expect("no memory for a stack of the peer's")
}

#[cfg(test)]
mod tests {
    use super::{CONTESTS, ns_a_round};
    use std::time::Duration;

    #[test]
    fn both_sides_do_as_many_rounds_as_asked() {
        for contest in &CONTESTS {
            // Each asserts its own count.
            (contest.ours)(100);
            (contest.theirs)(100);
        }
    }

    #[test]
    fn time_is_a_round() {
        assert_eq!(ns_a_round(Duration::from_micros(3), 1000), 3.0);
    }
}
