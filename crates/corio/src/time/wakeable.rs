//! A sleep that somebody else may end early (SPEC L4).
//!
//! ```text
//!              sleep                        the deadline
//!   awake ───────────────────▶ asleep ───────────────────────▶ awake, TimeUp
//!     │                          │
//!     │ wake                     │ wake
//!     ▼            sleep         ▼            runs again
//!   awake, woken ──────────▶  asleep, woken ─────────────────▶ awake, Woken
//! ```
//!
//! Invariants
//! - I1 `sleeper` is set exactly while a coroutine is in a sleep of this handle, by that coroutine.
//! - I2 `woken` is set by a wake and cleared by the sleep that returns [`Slept::Woken`]; a sleeper
//!   that is cancelled leaves it set. So no wake is lost.

use core::time::Duration;

use parking_lot::Mutex;

use super::{Clock, alarm};
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// Why a wakeable sleep ended.
///
/// ```
/// use corio::{context::Clock, time::{Sleep, Slept}};
/// use std::time::Duration;
/// let io = corio::IoThread::builder().spawn()?;
/// let slept = io.context().spawn(|| {
///     let sleep = Sleep::new();
///     sleep.wake(); // Kept for the sleep that follows.
///     let on = |duration| sleep.sleep_on(Clock::Realtime, duration);
///     [on(Duration::from_secs(3600)), on(Duration::from_millis(1))]
/// });
/// assert_eq!(slept.join().unwrap(), [Slept::Woken, Slept::TimeUp]);
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// The clock has reached the deadline.
    TimeUp,
    /// [`Sleep::wake`] ended it, before the deadline or at the same time.
    Woken,
}

#[derive(Debug)]
struct State {
    sleeper: Option<CoWaker>,
    woken: bool,
}

/// A place for one coroutine to sleep and for anyone to wake it.
///
/// A wake that finds nobody asleep is kept for the next sleep, which returns at once. That differs
/// from QEMU, where it is lost; here it may come from another thread between the sleeper's look at
/// its condition and its sleep. Therefore a sleeper looks again when it was woken: the wake may be
/// an old one.
///
/// ```
/// use corio::time::{Clock, Sleep, Slept};
/// use std::{sync::Arc, time::Duration};
/// let io = corio::IoThread::builder().spawn()?;
/// let sleep = Arc::new(Sleep::new());
/// let sleeper = io.context().spawn({
///     let sleep = Arc::clone(&sleep);
///     move || sleep.sleep_on(Clock::Realtime, Duration::from_secs(3600))
/// });
/// sleep.wake();
/// assert_eq!(sleeper.join().unwrap(), Slept::Woken);
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "QemuCoSleep")]
#[derive(Debug)]
pub struct Sleep {
    state: Mutex<State>,
}

impl Default for Sleep {
    fn default() -> Self {
        Self::new()
    }
}

impl Sleep {
    /// Nobody sleeps.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                sleeper: None,
                woken: false,
            }),
        }
    }

    /// Parks the running coroutine until it is woken, however long that takes. A cancellation
    /// point.
    ///
    /// # Panics
    /// If another coroutine sleeps here; outside a coroutine, and in one of a home without a
    /// context.
    #[doc(alias = "qemu_co_sleep")]
    #[track_caller]
    pub fn sleep(&self) {
        let asleep = self.fall_asleep("time::Sleep::sleep");
        while !asleep.is_woken() {
            schedule::park();
        }
        let _ = asleep.end();
    }

    /// Parks the running coroutine for `duration` of `clock`, or until it is woken. A cancellation
    /// point.
    ///
    /// # Panics
    /// As [`sleep`](Self::sleep).
    #[doc(alias = "qemu_co_sleep_ns_wakeable")]
    #[track_caller]
    pub fn sleep_on(&self, clock: Clock, duration: Duration) -> Slept {
        let asleep = self.fall_asleep("time::Sleep::sleep_on");
        asleep.until(clock, clock.after_ns(duration))
    }

    /// Parks the running coroutine until `clock` shows `deadline_ns`, or until it is woken. A
    /// cancellation point.
    ///
    /// # Panics
    /// As [`sleep`](Self::sleep).
    #[doc(alias = "qemu_co_sleep_ns_wakeable")]
    #[track_caller]
    pub fn sleep_until_ns(&self, clock: Clock, deadline_ns: u64) -> Slept {
        let asleep = self.fall_asleep("time::Sleep::sleep_until_ns");
        asleep.until(clock, deadline_ns)
    }

    /// Ends the sleep, or the next one if nobody sleeps. Waking twice is waking once. Any thread,
    /// coroutine or not; neither yields nor runs the sleeper.
    #[doc(alias = "qemu_co_sleep_wake")]
    pub fn wake(&self) {
        let sleeper = {
            let mut state = self.state.lock();
            state.woken = true;
            state.sleeper
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// Whether a coroutine is in a sleep here, be it that it has been woken and not run since.
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        self.state.lock().sleeper.is_some()
    }

    #[track_caller]
    fn fall_asleep(&self, what: &str) -> Asleep<'_> {
        schedule::parkable(what);
        coroutine::cancellation_point();
        let mut state = self.state.lock();
        let taken = state.sleeper.is_some();
        if !taken {
            state.sleeper = CoWaker::current();
        }
        drop(state);
        assert!(
            !taken,
            "{what} was called while another coroutine sleeps there: each sleeper needs a Sleep of \
             its own"
        );
        Asleep(self)
    }
}

/// The running coroutine's sleep, also if it is cancelled (I1).
struct Asleep<'a>(&'a Sleep);

impl Asleep<'_> {
    fn is_woken(&self) -> bool {
        self.0.state.lock().woken
    }

    fn until(self, clock: Clock, deadline_ns: u64) -> Slept {
        if !self.is_woken()
            && let Some(timer) = alarm(clock, deadline_ns)
        {
            while !self.is_woken() && timer.is_armed() {
                schedule::park();
            }
        }
        self.end()
    }

    /// Takes the wake, if there was one (I2).
    fn end(self) -> Slept {
        if core::mem::take(&mut self.0.state.lock().woken) {
            Slept::Woken
        } else {
            Slept::TimeUp
        }
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.state.lock().sleeper = None;
    }
}
