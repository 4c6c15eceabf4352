//! Timers on several clocks, and the one door to the time (SPEC T1 to T6).
//!
//! A turn runs what was due at its start, in deadline order and then in the order armed; what
//! callbacks arm, even in the past, waits for the next turn. Arm and cancel are O(1), or
//! O(log n) for what is past. Between clocks the order is that of [`Clock::ALL`].
//!
//! Files: `clock` the process's clocks, `list` a context's timers on each of them, `wheel` what they
//! are kept in, `heap` those of them that are due. Here is the timer itself.

mod clock;
mod heap;
mod list;
#[cfg(all(test, not(loom)))]
mod tests;
mod wheel;

use core::time::Duration;
use std::sync::Arc;

pub use self::clock::{Clock, VirtualClock};

pub(crate) use self::clock::now_ns;
pub(super) use self::list::Timers;

use self::list::Shared;
use super::{AioContext, Local};

/// A timer: a callback that runs in its context's home thread once its clock shows its deadline or
/// later.
///
/// Any thread may arm and cancel it; the callback may re-arm it or drop it, runs outside any
/// coroutine, and may not park. Dropping the handle cancels it. No method yields.
///
/// ```
/// use corio::IoThread;
/// use std::{sync::mpsc, time::Duration};
/// let io = IoThread::builder().name("io").spawn()?;
/// let (tx, rx) = mpsc::sync_channel(1);
/// let timer = io.context().timer(move || tx.send("due").unwrap());
/// timer.arm_after(Duration::from_secs(3600));
/// timer.arm_by_ns(timer.clock().after_ns(Duration::from_millis(1)));
/// assert_eq!(rx.recv().unwrap(), "due");
/// assert!(!timer.is_armed());
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias("QEMUTimer", "timer_deinit", "timer_free"))]
#[must_use = "a timer is cancelled when its handle is dropped"]
pub struct Timer {
    shared: Arc<Shared>,
    context: AioContext,
    clock: Clock,
}

impl AioContext {
    /// Makes a timer on the real-time clock, not armed; see [`Timer`]. Any thread.
    #[doc(alias = "timer_new_ns")]
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        self.timer_on(Clock::Realtime, callback)
    }

    /// Makes a timer on any clock, not armed; see [`Timer`]. Any thread.
    ///
    /// ```
    /// use corio::{IoThread, context::Clock};
    /// let io = IoThread::builder().spawn()?;
    /// let (tx, rx) = std::sync::mpsc::sync_channel(1);
    /// let timer = io.context().timer_on(Clock::Host, move || tx.send(()).unwrap());
    /// timer.arm_at_ns(0); // 1970
    /// rx.recv().unwrap();
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[doc(alias = "timer_new_full")]
    #[doc(alias = "timer_init_full")]
    #[doc(alias = "timer_init_ns")]
    #[doc(alias = "aio_timer_new")]
    #[doc(alias = "aio_timer_init")]
    pub fn timer_on(&self, clock: Clock, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        self.inner().timers.register(clock, self);
        Timer {
            shared: Shared::new(Box::new(callback)),
            context: self.clone(),
            clock,
        }
    }
}

impl Timer {
    /// Arms or re-arms it for `deadline_ns` of its clock; one that has passed is due in the next
    /// turn.
    #[doc(alias = "timer_mod")]
    #[doc(alias = "timer_mod_ns")]
    pub fn arm_at_ns(&self, deadline_ns: u64) {
        self.arm(deadline_ns, false);
    }

    /// Sees to it that it is due at `deadline_ns` of its clock or before: arms it, or re-arms it if
    /// it is armed for later.
    #[doc(alias = "timer_mod_anticipate")]
    #[doc(alias = "timer_mod_anticipate_ns")]
    pub fn arm_by_ns(&self, deadline_ns: u64) {
        self.arm(deadline_ns, true);
    }

    /// Arms or re-arms it for `delay` from now, by its clock.
    pub fn arm_after(&self, delay: Duration) {
        self.arm_at_ns(self.clock.after_ns(delay));
    }

    fn arm(&self, deadline_ns: u64, only_earlier: bool) {
        let timers = &self.context.inner().timers;
        let earlier = timers.arm(self.clock, &self.shared, deadline_ns, only_earlier);
        // The home thread looks at the deadlines anew before it waits, unless another loop does.
        if earlier {
            match Local::current().filter(|local| local.context().id() == self.context.id()) {
                Some(local) => local.hurry(),
                None => self.context.notify(),
            }
        }
    }

    /// Takes it back; true if it was armed. One that runs already goes on.
    #[doc(alias = "timer_del")]
    pub fn cancel(&self) -> bool {
        self.context.inner().timers.cancel(self.clock, &self.shared)
    }

    /// Whether it is armed, and its callback not begun. Others may arm and cancel it meanwhile.
    #[doc(alias = "timer_pending")]
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.shared.is_armed()
    }

    /// When it is due, by its clock; None if it is not armed.
    #[doc(alias = "timer_expire_time_ns")]
    #[must_use]
    pub fn expire_time_ns(&self) -> Option<u64> {
        let timers = &self.context.inner().timers;
        timers.deadline_of(self.clock, &self.shared)
    }

    /// Whether it is armed, and due when its clock shows `now_ns`.
    #[doc(alias = "timer_expired")]
    #[must_use]
    pub fn is_due_at_ns(&self, now_ns: u64) -> bool {
        self.expire_time_ns()
            .is_some_and(|deadline_ns| deadline_ns <= now_ns)
    }

    /// The clock that it counts by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl core::fmt::Debug for Timer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Timer")
            .field("clock", &self.clock)
            .field("armed", &self.is_armed())
            .finish()
    }
}
