//! Time for coroutines: sleeping, time-outs, and the clocks (SPEC L4, T1).
//!
//! A sleep ends when its timer has run, and for no other reason: a coroutine that is woken by
//! something else sleeps on, and one that sleeps for no time at all gives the loop a turn. Sleepers
//! on one clock wake up in the order of their deadlines.
//!
//! Files: `wakeable` the sleep that others may end, `timeout` the call that is not waited for
//! longer than it may take.

mod timeout;
mod wakeable;

use core::time::Duration;

pub use self::timeout::{Elapsed, timeout};
pub use self::wakeable::{Sleep, Slept};
pub use crate::context::{Clock, VirtualClock};

use crate::context::{Local, Timer, now_ns};
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// Nanoseconds of [`Clock::Realtime`] (CLOCK_MONOTONIC). Any thread, and signal handlers.
#[must_use]
pub fn monotonic_ns() -> u64 {
    now_ns()
}

/// Parks the running coroutine for `duration` of real time; on a thread that is no loop's and
/// outside a coroutine it blocks the thread.
///
/// A cancellation point.
///
/// # Panics
/// On a loop's thread outside a coroutine, where sleeping would stop the loop; in a coroutine of a
/// home without a context.
///
/// ```
/// use std::time::{Duration, Instant};
/// let io = corio::IoThread::builder().spawn()?;
/// let begin = Instant::now();
/// io.context().spawn(|| corio::time::sleep(Duration::from_millis(1))).join().unwrap();
/// assert!(begin.elapsed() >= Duration::from_millis(1));
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "qemu_co_sleep_ns")]
#[track_caller]
pub fn sleep(duration: Duration) {
    if !coroutine::in_coroutine() && Local::current().is_none() {
        return std::thread::sleep(duration);
    }
    schedule::parkable("time::sleep");
    sleep_here(Clock::Realtime, Clock::Realtime.after_ns(duration));
}

/// Parks the running coroutine for `duration` of `clock`.
///
/// A cancellation point. While the clock is stopped or disabled the sleep does not end.
///
/// # Panics
/// Outside a coroutine, and in a coroutine of a home without a context.
///
/// ```
/// use corio::time::{self, Clock};
/// let io = corio::IoThread::builder().spawn()?;
/// let sleeper = io.context().spawn(|| {
///     time::sleep_on(Clock::Virtual, std::time::Duration::from_millis(1));
///     Clock::Virtual.now_ns()
/// });
/// assert!(sleeper.join().unwrap() >= 1_000_000);
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "qemu_co_sleep_ns")]
#[track_caller]
pub fn sleep_on(clock: Clock, duration: Duration) {
    schedule::parkable("time::sleep_on");
    sleep_here(clock, clock.after_ns(duration));
}

/// Parks the running coroutine until `clock` shows `deadline_ns`; if it does already, until the
/// loop has looked at its timers.
///
/// A cancellation point. While the clock is stopped or disabled the sleep does not end.
///
/// # Panics
/// Outside a coroutine, and in a coroutine of a home without a context.
///
/// ```
/// use corio::time::{self, Clock};
/// let io = corio::IoThread::builder().spawn()?;
/// let ticks = io.context().spawn(|| {
///     let begin_ns = Clock::Realtime.now_ns();
///     for tick in 1..=3 {
///         time::sleep_until_ns(Clock::Realtime, begin_ns + tick * 1_000_000);
///     }
///     Clock::Realtime.now_ns() - begin_ns
/// });
/// assert!(ticks.join().unwrap() >= 3_000_000);
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "qemu_co_sleep_ns")]
#[track_caller]
pub fn sleep_until_ns(clock: Clock, deadline_ns: u64) {
    schedule::parkable("time::sleep_until_ns");
    sleep_here(clock, deadline_ns);
}

fn sleep_here(clock: Clock, deadline_ns: u64) {
    if let Some(timer) = alarm(clock, deadline_ns) {
        while timer.is_armed() {
            schedule::park();
        }
    }
}

/// A timer that wakes the running coroutine, armed. It may have run once it is not armed any more:
/// only the home thread runs it, which is this one. None where the caller could not park.
fn alarm(clock: Clock, deadline_ns: u64) -> Option<Timer> {
    let (local, waker) = (Local::current()?, CoWaker::current()?);
    let timer = match clock {
        Clock::Realtime => local.context().timer(move || waker.wake_here()),
        // Queued instead of entered: the coroutine may be about to disable this clock, which must
        // not be done in its callback.
        _ => local.context().timer_on(clock, move || waker.wake()),
    };
    timer.arm_at_ns(deadline_ns);
    Some(timer)
}
