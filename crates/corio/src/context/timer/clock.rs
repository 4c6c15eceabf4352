//! The clocks that timers count by, and the one door to the time (SPEC T1, T5).
//!
//! ```text
//!   Realtime    CLOCK_MONOTONIC     ──────────────────────────────────▶
//!   VirtualRt   while it runs       ─────────▶│ stop     resume │──────▶
//!   Virtual     that, and steps     ─────────▶│    step ──▶     │──────▶
//!   Host        CLOCK_REALTIME      ──────────────────▶ set ──────────▶   forward or back
//! ```
//!
//! The clocks are the process's; each context has a list of timers for each of them. A clock knows
//! the contexts that have, or had, timers on it: whoever resumes, steps or enables it notifies
//! them, and whoever disables it waits for their callbacks.
//!
//! Lock order: a list's lock, then the virtual clock's. The registry's lock is taken with no other
//! and nothing runs under it.
//!
//! Invariants
//! - I1 A context is in a clock's registry from before its first timer on that clock is armed.
//! - I2 `enabled` is cleared before the lists' locks are taken to wait for their callbacks, and is
//!   looked at under a list's lock before each of its callbacks: one that is not waited for sees
//!   that the clock is disabled. A context that comes into the registry later has seen it there.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Mutex, RwLock};

use super::super::{AioContext, Inner};
use crate::context::Local;
use crate::sys;

/// How long a loop sleeps at most while a timer on the host clock is armed: whoever sets that clock
/// tells nobody, so it is looked at again.
const HOST_WAIT_MAX_NS: u64 = 1_000_000_000;

/// Nanoseconds of the real-time clock ([`Clock::Realtime`]).
#[inline]
pub(crate) fn now_ns() -> u64 {
    sys::clock::monotonic_ns()
}

/// How many clocks there are.
pub(super) const CLOCKS: usize = Clock::ALL.len();

/// A clock that timers and sleeps count by. All are the process's, and count nanoseconds.
///
/// ```
/// use corio::context::Clock;
/// let before_ns = Clock::Realtime.now_ns();
/// assert!(Clock::Realtime.now_ns() >= before_ns);
/// assert!(Clock::ALL.iter().all(|clock| clock.is_enabled()));
/// ```
#[doc(alias = "QEMUClockType")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Clock {
    /// Goes on always and evenly, also while the virtual machine is stopped (CLOCK_MONOTONIC).
    #[doc(alias = "QEMU_CLOCK_REALTIME")]
    Realtime,
    /// The guest's time: it can be stopped, resumed and, in tests, stepped; see [`VirtualClock`].
    #[doc(alias = "QEMU_CLOCK_VIRTUAL")]
    Virtual,
    /// The wall clock, since 1970 (CLOCK_REALTIME). It jumps when somebody sets it. A timer on it
    /// is due whenever the clock shows its deadline or later: set forward, the clock makes it due,
    /// at most a second later; set back, it makes it wait longer.
    #[doc(alias = "QEMU_CLOCK_HOST")]
    Host,
    /// Real time for as long as the virtual clock has run: it stops with it, and is not stepped.
    #[doc(alias = "QEMU_CLOCK_VIRTUAL_RT")]
    VirtualRt,
}

impl Clock {
    /// All clocks, in the order in which a turn runs their timers.
    pub const ALL: [Self; 4] = [Self::Realtime, Self::Virtual, Self::Host, Self::VirtualRt];

    /// What it shows, in nanoseconds. The virtual clocks show 0 when they are first looked at in
    /// the process, and run. Any thread; neither yields nor blocks. `Realtime` and `Host` may be
    /// read in signal handlers.
    #[doc(alias = "qemu_clock_get_ns")]
    #[must_use]
    pub fn now_ns(self) -> u64 {
        match self {
            Self::Realtime => now_ns(),
            Self::Host => sys::clock::wall_ns(),
            Self::Virtual | Self::VirtualRt => VIRTUAL.read().at(self),
        }
    }

    /// What it will show `delay` from now, if it goes on.
    #[must_use]
    pub fn after_ns(self, delay: Duration) -> u64 {
        self.now_ns().saturating_add(saturating_ns(delay))
    }

    /// Whether its timers run; see [`disable`](Self::disable).
    #[must_use]
    pub fn is_enabled(self) -> bool {
        self.state().enabled.load(Ordering::Relaxed)
    }

    /// Has its timers run again, what has become due meanwhile at once. Any thread; neither yields
    /// nor blocks.
    #[doc(alias = "qemu_clock_enable")]
    pub fn enable(self) {
        self.state().enabled.store(true, Ordering::Relaxed);
        self.notify_contexts();
    }

    /// Keeps its timers, in all contexts, from running until it is [enabled](Self::enable) again:
    /// they stay armed, and no loop wakes up for them. What it shows goes on. When this returns,
    /// none of its callbacks runs any more.
    ///
    /// Any thread; never yields. It blocks the thread until callbacks that run at the moment have
    /// returned, so a callback must not wait for who calls this. On `Realtime` are also the
    /// runtime's own waits: [`sleep`](crate::time::sleep), [`timeout`](crate::time::timeout) and
    /// the time-outs of sockets do not come meanwhile.
    ///
    /// # Panics
    /// In a callback of one of its own timers, which would wait for itself. What such a callback
    /// enters counts as well: a coroutine that has slept on `Realtime`, or waited for a socket with
    /// a time-out, may run inside it until it next parks. One that slept on another clock does not.
    ///
    /// ```
    /// use corio::{AioContext, context::Clock};
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering::Relaxed}};
    /// let context = AioContext::new()?;
    /// let ran = Arc::new(AtomicBool::new(false));
    /// let timer = context.timer_on(Clock::Virtual, {
    ///     let ran = Arc::clone(&ran);
    ///     move || ran.store(true, Relaxed)
    /// });
    /// timer.arm_at_ns(0);
    /// context.enter_home(|| {
    ///     Clock::Virtual.disable();
    ///     context.poll(false)?;
    ///     assert!(!ran.load(Relaxed) && timer.is_armed());
    ///     Clock::Virtual.enable();
    ///     context.poll(false)?;
    ///     assert!(ran.load(Relaxed));
    ///     Ok::<_, std::io::Error>(())
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "qemu_clock_enable")]
    #[track_caller]
    pub fn disable(self) {
        if let Some(local) = Local::current() {
            assert!(
                !local.context().inner().timers.is_running(self),
                "the clock {self:?} was disabled in a callback of one of its own timers, which \
                 would wait for itself: do it in a bottom half, or from another thread"
            );
        }
        self.state().enabled.store(false, Ordering::Relaxed); // Before the lists' locks: I2.
        for context in self.contexts() {
            context.inner().timers.wait_until_quiet(self);
        }
    }

    /// The earliest deadline on it in any context, which may have passed; None without one, and
    /// while it is disabled. It may have changed by the time it is known. Any thread.
    ///
    /// Less [`now_ns`](Self::now_ns) it is how far a test has to [step](VirtualClock::step) the
    /// virtual clock for the next timer to run.
    #[doc(alias = "qemu_clock_deadline_ns_all")]
    #[doc(alias = "qemu_clock_has_timers")]
    #[doc(alias = "qemu_clock_expired")]
    #[must_use]
    pub fn next_deadline_ns(self) -> Option<u64> {
        if !self.is_enabled() {
            return None;
        }
        let deadlines = |context: &AioContext| context.inner().timers.next_deadline_ns(self);
        self.contexts().iter().filter_map(deadlines).min()
    }

    pub(super) fn index(self) -> usize {
        match self {
            Self::Realtime => 0,
            Self::Virtual => 1,
            Self::Host => 2,
            Self::VirtualRt => 3,
        }
    }

    /// How long a loop may wait for what is due at `deadline_ns`; None if the clock stands still
    /// before it. Whoever changes that notifies the contexts.
    pub(super) fn wait_ns(self, deadline_ns: u64) -> Option<u64> {
        let left_ns = |now_ns| deadline_ns.saturating_sub(now_ns);
        match self {
            Self::Realtime => Some(left_ns(now_ns())),
            Self::Host => Some(left_ns(self.now_ns()).min(HOST_WAIT_MAX_NS)),
            Self::Virtual | Self::VirtualRt => {
                let virtual_clock = VIRTUAL.read();
                let left_ns = left_ns(virtual_clock.at(self));
                (left_ns == 0 || virtual_clock.is_running()).then_some(left_ns)
            }
        }
    }

    /// Adds a context that is not in the registry yet (I1), and forgets those that are gone.
    pub(super) fn register(self, context: &AioContext) {
        let mut contexts = self.state().contexts.lock();
        contexts.retain(|context| context.strong_count() > 0);
        contexts.push(Arc::downgrade(&context.0));
    }

    /// The contexts that have or had timers on it, held so that they can be used, and dropped, with
    /// no lock held.
    fn contexts(self) -> Vec<AioContext> {
        let contexts = self.state().contexts.lock();
        let living = contexts.iter().filter_map(Weak::upgrade);
        living.map(AioContext).collect()
    }

    /// Has them compute their waits anew.
    fn notify_contexts(self) {
        for context in self.contexts() {
            context.notify();
        }
    }

    fn state(self) -> &'static ClockState {
        &STATES[self.index()]
    }
}

/// Nanoseconds, as far as they can be counted: 584 years.
pub(super) fn saturating_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the process keeps of a clock.
struct ClockState {
    enabled: AtomicBool,
    contexts: Mutex<Vec<Weak<Inner>>>,
}

static STATES: [ClockState; CLOCKS] = [const {
    ClockState {
        enabled: AtomicBool::new(true),
        contexts: Mutex::new(Vec::new()),
    }
}; CLOCKS];

static VIRTUAL: LazyLock<RwLock<Progress>> = LazyLock::new(|| {
    RwLock::new(Progress {
        running_since_ns: Some(now_ns()),
        ran_ns: 0,
        stepped_ns: 0,
    })
});

/// How far the virtual clocks have come.
struct Progress {
    /// Of the real-time clock; None while they are stopped.
    running_since_ns: Option<u64>,
    /// How long they had run before.
    ran_ns: u64,
    /// How far `Virtual` has been stepped in all.
    stepped_ns: u64,
}

impl Progress {
    fn is_running(&self) -> bool {
        self.running_since_ns.is_some()
    }

    /// What one of the two shows now.
    fn at(&self, clock: Clock) -> u64 {
        let running_ns = self
            .running_since_ns
            .map_or(0, |since_ns| now_ns().saturating_sub(since_ns));
        let ran_ns = self.ran_ns.saturating_add(running_ns);
        match clock {
            Clock::Virtual => ran_ns.saturating_add(self.stepped_ns),
            _ => ran_ns,
        }
    }
}

/// The process's virtual clock: [`Clock::Virtual`], and [`Clock::VirtualRt`] beside it.
///
/// Stopped, it stands still, and no loop wakes up for what is later; what was due by then still
/// runs. To keep also that from running, [disable](Clock::disable) the clock: pausing a virtual
/// machine takes both.
///
/// ```
/// use corio::{AioContext, context::{Clock, VirtualClock}};
/// use std::{sync::mpsc, time::Duration};
/// let context = AioContext::new()?;
/// let (tx, rx) = mpsc::channel();
/// let timer = context.timer_on(Clock::Virtual, move || tx.send("an hour later").unwrap());
/// context.enter_home(|| {
///     VirtualClock::stop();
///     timer.arm_after(Duration::from_secs(3600));
///     VirtualClock::step(Duration::from_secs(3600));
///     context.poll(false)?;
///     assert_eq!(rx.try_recv(), Ok("an hour later"));
///     VirtualClock::resume();
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VirtualClock(());

impl VirtualClock {
    /// Stops it; nothing if it is stopped. Any thread, also in its own callbacks; neither yields
    /// nor waits for callbacks.
    #[doc(alias = "cpu_disable_ticks")]
    pub fn stop() {
        let mut progress = VIRTUAL.write();
        progress.ran_ns = progress.at(Clock::VirtualRt);
        progress.running_since_ns = None;
    }

    /// Has it go on from where it was stopped; nothing if it runs. Any thread; does not yield.
    #[doc(alias = "cpu_enable_ticks")]
    pub fn resume() {
        VIRTUAL.write().running_since_ns.get_or_insert_with(now_ns);
        Clock::Virtual.notify_contexts();
        Clock::VirtualRt.notify_contexts();
    }

    /// Whether it is not stopped.
    #[must_use]
    pub fn is_running() -> bool {
        VIRTUAL.read().is_running()
    }

    /// Puts it forward while it is stopped: what becomes due runs in its context's next turn. For
    /// tests, which then need no real time to pass. [`Clock::VirtualRt`] stays where it is. Any
    /// thread; neither yields nor waits for callbacks.
    ///
    /// # Panics
    /// While it runs.
    #[doc(alias = "clock_step")]
    #[track_caller]
    pub fn step(by: Duration) {
        let mut progress = VIRTUAL.write();
        assert!(
            !progress.is_running(),
            "VirtualClock::step was called while the virtual clock runs: stop it first"
        );
        progress.stepped_ns = progress.stepped_ns.saturating_add(saturating_ns(by));
        drop(progress);
        Clock::Virtual.notify_contexts();
    }
}
