//! A context's armed timers: for each clock a wheel, and what a turn does with them (SPEC T4, T5).
//!
//! ```text
//!   any thread                     home thread, at the end of a turn
//!   -----------------------        -----------------------------------------------------------
//!   arm, cancel                    look at the earliest deadlines        no lock
//!     lock, change the wheel,      settle for each clock what is due     clock's time, sequence
//!     publish the earliest         run it, clock by clock                lock only to take one out
//!   disable: wait until no
//!     callback runs  ◀──────────   count the end of a run
//! ```
//!
//! What is due on any clock is settled before the first callback runs, so that what callbacks arm
//! waits for the next turn on whichever clock it is (T4).
//!
//! Invariants
//! - I1 `next_ns` is the earliest deadline of the clock's wheel, or before it if `stale` is set;
//!   `NEVER` stands for none. Both are written under its lock. It is only a hint of when to take it.
//! - I2 A timer's place is its wheel's handle exactly while it is armed, written under the lock of
//!   its clock's wheel.
//! - I3 `running` counts the runs in progress, nested ones included, and only the home thread is in
//!   one.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};

use parking_lot::{Condvar, Mutex};

use super::clock::{CLOCKS, Clock};
use super::wheel::{Handle, Wheel};
use crate::context::AioContext;

/// No deadline; no place.
const NEVER: u64 = u64::MAX;

/// What a timer's handle and its wheel share.
pub(super) struct Shared {
    callback: Box<dyn Fn() + Send + Sync>,
    /// See I2; `NEVER`, which no handle packs to, while it is not armed.
    place: AtomicU64,
}

impl Shared {
    pub(super) fn new(callback: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            callback,
            place: AtomicU64::new(NEVER),
        })
    }

    /// Without the lock it is a hint, unless nobody else arms or cancels.
    pub(super) fn is_armed(&self) -> bool {
        self.place.load(Ordering::Relaxed) != NEVER
    }

    fn place(&self) -> Option<Handle> {
        match self.place.load(Ordering::Relaxed) {
            NEVER => None,
            packed => Some(Handle::unpack(packed)),
        }
    }

    /// Under the lock of the wheel.
    fn set_place(&self, place: Option<Handle>) {
        let packed = place.map_or(NEVER, Handle::pack);
        self.place.store(packed, Ordering::Relaxed);
    }
}

/// The timers of one clock.
struct List {
    inner: Mutex<ListInner>,
    /// Notified at the end of each outermost run.
    quiet: Condvar,
    /// The context is in the clock's registry.
    registered: Once,
}

struct ListInner {
    wheel: Wheel<Arc<Shared>>,
    running: u32,
    /// How often `running` has become 0.
    quiet_count: u64,
}

impl List {
    fn new() -> Self {
        Self {
            inner: Mutex::new(ListInner {
                wheel: Wheel::new(),
                running: 0,
                quiet_count: 0,
            }),
            quiet: Condvar::new(),
            registered: Once::new(),
        }
    }
}

/// What is due on a clock in this turn.
#[derive(Clone, Copy)]
struct Due {
    now_ns: u64,
    sequence_limit: u64,
}

/// When to look at a clock's wheel next (I1).
struct Next {
    next_ns: AtomicU64,
    stale: AtomicBool,
}

impl Next {
    fn set(&self, next_ns: u64, stale: bool) {
        self.next_ns.store(next_ns, Ordering::Relaxed);
        self.stale.store(stale, Ordering::Relaxed);
    }

    /// The earliest deadline, or before it.
    #[inline]
    fn hint_ns(&self) -> u64 {
        self.next_ns.load(Ordering::Relaxed)
    }
}

/// A context's timers. Any thread may arm and cancel; the home thread runs them.
pub(in super::super) struct Timers {
    /// All in one place: a turn without timers loads one line.
    next: [Next; CLOCKS],
    lists: [List; CLOCKS],
}

impl Timers {
    pub(in super::super) fn new() -> Self {
        let next = || Next {
            next_ns: AtomicU64::new(NEVER),
            stale: AtomicBool::new(false),
        };
        Self {
            next: core::array::from_fn(|_| next()),
            lists: core::array::from_fn(|_| List::new()),
        }
    }

    /// Before a timer on `clock` is armed.
    pub(super) fn register(&self, clock: Clock, context: &AioContext) {
        let registered = &self.lists[clock.index()].registered;
        registered.call_once(|| clock.register(context));
    }

    /// The earliest deadline on a clock.
    pub(super) fn next_deadline_ns(&self, clock: Clock) -> Option<u64> {
        let next = &self.next[clock.index()];
        if next.stale.load(Ordering::Relaxed) {
            self.settle(clock, &mut self.lists[clock.index()].inner.lock());
        }
        // Relaxed: whoever arms an earlier one notifies, and the home thread accepts that first.
        let next_ns = next.hint_ns();
        (next_ns != NEVER).then_some(next_ns)
    }

    /// Looks for the earliest deadline (I1).
    fn settle(&self, clock: Clock, inner: &mut ListInner) {
        let next_ns = inner.wheel.peek_deadline().unwrap_or(NEVER);
        self.next[clock.index()].set(next_ns, false);
    }

    /// After one with this deadline was taken out: if it may have been the earliest, nobody looks
    /// for the next one until somebody has to know.
    #[inline]
    fn taken_out(&self, clock: Clock, inner: &ListInner, deadline_ns: u64) {
        let next = &self.next[clock.index()];
        if inner.wheel.is_empty() {
            next.set(NEVER, false);
        } else if deadline_ns <= next.hint_ns() {
            next.stale.store(true, Ordering::Relaxed);
        }
    }

    /// Whether any is armed, on whatever clock.
    #[inline]
    pub(in super::super) fn any_armed(&self) -> bool {
        const { assert!(NEVER == u64::MAX) } // All of its bits are set.
        let hints = self.next.iter().map(Next::hint_ns);
        hints.fold(NEVER, |all, hint| all & hint) != NEVER
    }

    /// How long the loop may sleep for all that timers care.
    pub(in super::super) fn timeout_ns(&self) -> Option<u64> {
        let mut timeout_ns = None;
        for clock in Clock::ALL {
            if let Some(next_ns) = self.next_deadline_ns(clock)
                && clock.is_enabled()
                && let Some(wait_ns) = clock.wait_ns(next_ns)
            {
                timeout_ns = Some(timeout_ns.map_or(wait_ns, |other_ns| wait_ns.min(other_ns)));
            }
        }
        timeout_ns
    }

    /// Runs what is due. True: something ran.
    #[inline]
    pub(in super::super) fn run(&self) -> bool {
        self.any_armed() && self.run_armed()
    }

    #[inline(never)]
    fn run_armed(&self) -> bool {
        let due = Clock::ALL.map(|clock| self.due(clock));
        let mut progress = false;
        for (clock, due) in Clock::ALL.into_iter().zip(due) {
            if let Some(due) = due {
                progress |= self.run_clock(clock, due);
            }
        }
        progress
    }

    /// What is due on a clock, if anything is.
    #[inline]
    fn due(&self, clock: Clock) -> Option<Due> {
        let next_ns = self.next[clock.index()].hint_ns();
        if next_ns == NEVER {
            return None;
        }
        let now_ns = clock.now_ns();
        (next_ns <= now_ns).then(|| Due {
            now_ns,
            sequence_limit: self.lists[clock.index()].inner.lock().wheel.next_sequence(),
        })
    }

    fn run_clock(&self, clock: Clock, due: Due) -> bool {
        let list = &self.lists[clock.index()];
        {
            let mut inner = list.inner.lock();
            if !clock.is_enabled() {
                return false; // Whoever disables it need not wait for us: clock I2.
            }
            inner.running += 1;
        }
        let _running = Running(list);
        let mut progress = false;
        while let Some(shared) = self.take_due(clock, due) {
            progress = true;
            (shared.callback)();
        }
        progress
    }

    /// Takes the next one out; None also if the clock has been disabled meanwhile.
    fn take_due(&self, clock: Clock, due: Due) -> Option<Arc<Shared>> {
        let mut inner = self.lists[clock.index()].inner.lock();
        if !clock.is_enabled() {
            return None;
        }
        let Some((deadline_ns, shared)) = inner.wheel.pop_due(due.now_ns, due.sequence_limit)
        else {
            self.settle(clock, &mut inner);
            return None;
        };
        shared.set_place(None);
        self.taken_out(clock, &inner, deadline_ns);
        Some(shared)
    }

    /// True if the loop's wait has become too long. With `only_earlier` one that is armed for that
    /// time or earlier stays as it is.
    pub(super) fn arm(
        &self,
        clock: Clock,
        shared: &Arc<Shared>,
        deadline_ns: u64,
        only_earlier: bool,
    ) -> bool {
        let deadline_ns = deadline_ns.min(NEVER - 1);
        let mut inner = self.lists[clock.index()].inner.lock();
        if let Some(handle) = shared.place() {
            let armed_ns = inner.wheel.deadline_of(handle).unwrap_or(NEVER);
            if only_earlier && armed_ns <= deadline_ns {
                return false;
            }
            let handle = inner.wheel.rearm(handle, deadline_ns);
            shared.set_place(handle);
            if armed_ns < deadline_ns {
                self.taken_out(clock, &inner, armed_ns);
            }
        } else {
            let handle = inner.wheel.insert(deadline_ns, Arc::clone(shared));
            shared.set_place(Some(handle));
        }
        let next = &self.next[clock.index()];
        let earlier = deadline_ns < next.hint_ns();
        if earlier {
            next.set(deadline_ns, false);
        }
        earlier
    }

    /// True if it was armed.
    pub(super) fn cancel(&self, clock: Clock, shared: &Shared) -> bool {
        let mut inner = self.lists[clock.index()].inner.lock();
        let Some(handle) = shared.place() else {
            return false;
        };
        shared.set_place(None);
        let removed = inner.wheel.remove(handle);
        if let Some((deadline_ns, _)) = &removed {
            self.taken_out(clock, &inner, *deadline_ns);
        }
        drop(inner); // The callback may be freed with it, and free what takes the lock.
        removed.is_some()
    }

    /// When it is due, if it is armed.
    pub(super) fn deadline_of(&self, clock: Clock, shared: &Shared) -> Option<u64> {
        let inner = self.lists[clock.index()].inner.lock();
        inner.wheel.deadline_of(shared.place()?)
    }

    /// Whether a callback of the clock's runs here. In the home thread: whether this is in one.
    pub(super) fn is_running(&self, clock: Clock) -> bool {
        self.lists[clock.index()].inner.lock().running > 0
    }

    /// Returns once each callback that runs at the call has returned. Not in the home thread while
    /// it is in one. New runs, which there can be if the clock is enabled again, are not waited
    /// for.
    pub(super) fn wait_until_quiet(&self, clock: Clock) {
        let list = &self.lists[clock.index()];
        let mut inner = list.inner.lock();
        let before = inner.quiet_count;
        while inner.running > 0 && inner.quiet_count == before {
            list.quiet.wait(&mut inner);
        }
    }
}

/// A run of a clock's timers, which ends also by a callback's panic (I3).
struct Running<'a>(&'a List);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.running -= 1;
        if inner.running == 0 {
            inner.quiet_count += 1;
            self.0.quiet.notify_all();
        }
    }
}
