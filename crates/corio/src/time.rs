//! Time for coroutines: sleeping, and the loop's clock.

use core::time::Duration;

use crate::context::{Local, now_ns};
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// Nanoseconds of the clock that [`Timer::arm_at_ns`](crate::context::Timer::arm_at_ns) counts by
/// (CLOCK_MONOTONIC). Any thread, and signal handlers.
#[doc(alias = "qemu_clock_get_ns")]
#[must_use]
pub fn monotonic_ns() -> u64 {
    now_ns()
}

/// Parks the running coroutine for `duration`; on a thread that is no loop's and outside a
/// coroutine it blocks the thread.
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
    let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let deadline_ns = now_ns().saturating_add(duration_ns);
    let (Some(local), Some(waker)) = (Local::current(), CoWaker::current()) else {
        return;
    };
    let timer = local.context().timer(move || waker.wake_here());
    timer.arm_at_ns(deadline_ns);
    while now_ns() < deadline_ns {
        schedule::park();
    }
}
