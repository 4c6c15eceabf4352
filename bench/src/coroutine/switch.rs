//! Exercises `enter_yield`, `enter_yield_deep` and `create_run_end`: what a switch costs, beside
//! corosensei used raw.
//!
//! A round is one `enter` and the suspension, or the end, that follows it. Both sides do the same
//! in the body: add one to a counter, which is checked. The depth at which a coroutine suspends
//! matters more than the switch itself, because the CPU predicts returns by the calls it saw on the
//! other stack; so the switch is measured once in the body and once three calls deep.

use std::hint::black_box;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine as Raw, Yielder};

use crate::contest::{Lap, Stopwatch};
use crate::tally::Tally;

const RAW_STACK: usize = 256 << 10;

pub(crate) fn ours_in_body(rounds: u32) -> Lap {
    ours_suspending(rounds, corio::suspend)
}

pub(super) fn theirs_in_body(rounds: u32) -> Lap {
    theirs_suspending(rounds, |yielder| yielder.suspend(()))
}

pub(super) fn ours_deep(rounds: u32) -> Lap {
    ours_suspending(rounds, ours_first)
}

pub(super) fn theirs_deep(rounds: u32) -> Lap {
    theirs_suspending(rounds, theirs_first)
}

#[inline(always)]
fn ours_suspending(rounds: u32, suspend: impl Fn() + 'static) -> Lap {
    corio::home(|| {
        let tally = Tally::leak();
        let coroutine = corio::Coroutine::new(move || {
            suspend();
            while !tally.stopped() {
                tally.work();
                suspend();
            }
        });
        // Started outside the time, so that the first use of the stack is not in it.
        coroutine.enter();
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            coroutine.enter();
        }
        let lap = watch.stop();
        tally.stop();
        coroutine.enter();
        assert!(coroutine.is_done());
        assert_eq!(tally.count(), rounds);
        lap
    })
}

#[inline(always)]
fn theirs_suspending(rounds: u32, suspend: impl Fn(&Yielder<(), ()>) + 'static) -> Lap {
    let tally = Tally::leak();
    let mut coroutine = Raw::with_stack(raw_stack(), move |yielder: &Yielder<(), ()>, ()| {
        suspend(yielder);
        while !tally.stopped() {
            tally.work();
            suspend(yielder);
        }
    });
    coroutine.resume(());
    let watch = Stopwatch::start();
    for _ in 0..rounds {
        coroutine.resume(());
    }
    let lap = watch.stop();
    tally.stop();
    coroutine.resume(());
    assert!(coroutine.done());
    assert_eq!(tally.count(), rounds);
    lap
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

deep!(ours_first, ours_second, ours_third, (), corio::suspend());
deep!(
    theirs_first,
    theirs_second,
    theirs_third,
    (yielder: &Yielder<(), ()>),
    yielder.suspend(())
);

pub(crate) fn ours_created(rounds: u32) -> Lap {
    corio::home(|| {
        let tally = Tally::leak();
        let create_run_end = || corio::Coroutine::new(move || tally.work()).enter();
        // The first makes the stack that all others reuse.
        create_run_end();
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            create_run_end();
        }
        let lap = watch.stop();
        assert_eq!(tally.count(), rounds + 1);
        lap
    })
}

pub(super) fn theirs_created(rounds: u32) -> Lap {
    let tally = Tally::leak();
    let create_run_end = |stack| {
        let mut coroutine = Raw::with_stack(stack, move |_: &Yielder<(), ()>, ()| tally.work());
        coroutine.resume(());
        coroutine.into_stack()
    };
    let mut stack = create_run_end(raw_stack());
    let watch = Stopwatch::start();
    for _ in 0..rounds {
        stack = create_run_end(stack);
    }
    let lap = watch.stop();
    assert_eq!(tally.count(), rounds + 1);
    lap
}

pub(super) fn raw_stack() -> DefaultStack {
    DefaultStack::new(RAW_STACK).expect("no memory for a stack of the peer's")
}
