//! A call that is not waited for longer than it may take (SPEC L4).
//!
//! ```text
//!   caller   ──timeout──┬── parked ──┬── Ok(result)        f ended first, or both are so by the
//!                       │            │                     time the caller runs
//!                       │            └── Err(Elapsed)      the timer ran first
//!   f's own  ───────────┴── f ──────────────────── end     its result is dropped there if nobody
//!                                                           wants it any more
//! ```
//!
//! The two are of one thread, so that "whichever came first" is what the caller finds when it runs:
//! it looks for the result before it looks at the time, and a result that is there is never lost.

use core::time::Duration;
use std::panic::resume_unwind;

use super::{Clock, alarm};
use crate::coroutine;
use crate::schedule::{self, JoinError};

/// The time was up before the result was there.
///
/// ```
/// let error = std::io::Error::from(corio::time::Elapsed);
/// assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time was up before the result was there")]
pub struct Elapsed;

impl From<Elapsed> for std::io::Error {
    fn from(elapsed: Elapsed) -> Self {
        Self::new(std::io::ErrorKind::TimedOut, elapsed)
    }
}

/// Runs `f` in a coroutine of its own, in this home, and parks the running one until `f` has
/// returned, at most for `duration` of real time; `Duration::ZERO` is no limit.
///
/// When the time is up, `f` is not stopped: it goes on to its end by itself, on this thread, and
/// what it returns is dropped there. Hence it must not borrow from the caller. A result that is
/// there when the caller gets to run is returned, also if the time is up by then.
///
/// A cancellation point: a caller that is cancelled waits no longer, and `f` goes on as if the time
/// had been up. A home that ends cancels both.
///
/// # Errors
/// [`Elapsed`]: the time was up. Also while the home ends, where nothing can be started any more,
/// in a destructor and behind a [`CancelMask`](crate::CancelMask).
///
/// # Panics
/// With `f`'s panic, if it comes in time; one that comes later is reported in the log. Outside a
/// coroutine, in one of a home without a context, and where no stack can be had for `f`.
///
/// ```
/// use corio::time::{self, Elapsed};
/// use std::time::Duration;
/// let io = corio::IoThread::builder().spawn()?;
/// let both = io.context().spawn(|| {
///     let quick = time::timeout(Duration::from_secs(3600), || 6 * 7);
///     let hour = || time::sleep(Duration::from_secs(3600));
///     let slow = time::timeout(Duration::from_millis(1), hour);
///     (quick, slow)
/// });
/// assert_eq!(both.join().unwrap(), (Ok(42), Err(Elapsed)));
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "qemu_co_timeout")]
#[track_caller]
pub fn timeout<T, F>(duration: Duration, f: F) -> Result<T, Elapsed>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    let caller = schedule::parkable("time::timeout");
    coroutine::cancellation_point();
    let limited = !duration.is_zero();
    let deadline_ns = Clock::Realtime.after_ns(duration);
    let call = schedule::spawn_local(f);
    let timer = limited
        .then(|| alarm(Clock::Realtime, deadline_ns))
        .flatten();
    let in_time = || timer.as_ref().is_none_or(|timer| timer.is_armed());
    if !call.wait_while(in_time) {
        return Err(Elapsed);
    }
    match call.join() {
        Ok(result) => Ok(result),
        Err(JoinError::Panicked(payload)) => resume_unwind(payload),
        Err(error @ JoinError::NoStack(_)) => panic!("time::timeout: {error}"),
        Err(JoinError::Cancelled | JoinError::Leaked) => {
            // The home ends, as nobody else cancels it, and its caller is next.
            if coroutine::can_cancel().is_ok() {
                caller.request_cancel();
                coroutine::cancellation_point();
            }
            Err(Elapsed) // It unwinds already, or a mask defers that.
        }
    }
}
