//! A context's armed timers: for each clock a heap, and what a turn does with them (SPEC T4, T5).
//!
//! ```text
//!   any thread                     home thread, at the end of a turn
//!   -----------------------        -----------------------------------------------------------
//!   arm, cancel                    look at the earliest deadlines        no lock
//!     lock, change the heap,       settle for each clock what is due     clock's time, sequence
//!     publish the earliest         run it, clock by clock                lock only to take one out
//!   disable: wait until no
//!     callback runs  ◀──────────   count the end of a run
//! ```
//!
//! What is due on any clock is settled before the first callback runs, so that what callbacks arm
//! waits for the next turn on whichever clock it is (T4).
//!
//! Invariants
//! - I1 `next_ns` is the earliest deadline of the clock's heap, written under its lock; `NEVER`
//!   stands for none. It is only a hint of when to take the lock.
//! - I2 A timer's place is its heap's handle exactly while it is armed, written under the lock of
//!   its clock's heap.
//! - I3 `running` counts the runs in progress, nested ones included, and only the home thread is in
//!   one.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use parking_lot::{Condvar, Mutex};

use super::clock::{CLOCKS, Clock};
use super::heap::{Handle, Heap};
use crate::context::AioContext;

/// No deadline; no place.
const NEVER: u64 = u64::MAX;

/// What a timer's handle and its heap share.
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

    /// Under the lock of the heap.
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
    heap: Heap<Arc<Shared>>,
    running: u32,
    /// How often `running` has become 0.
    quiet_count: u64,
}

impl List {
    fn new() -> Self {
        Self {
            inner: Mutex::new(ListInner {
                heap: Heap::new(),
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

/// A context's timers. Any thread may arm and cancel; the home thread runs them.
pub(in super::super) struct Timers {
    /// See I1. All in one place: a turn without timers loads one line.
    next_ns: [AtomicU64; CLOCKS],
    lists: [List; CLOCKS],
}

impl Timers {
    pub(in super::super) fn new() -> Self {
        Self {
            next_ns: core::array::from_fn(|_| AtomicU64::new(NEVER)),
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
        // Relaxed: whoever arms an earlier one notifies, and the home thread accepts that first.
        let next_ns = self.next_ns[clock.index()].load(Ordering::Relaxed);
        (next_ns != NEVER).then_some(next_ns)
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
        let armed = |clock| self.next_deadline_ns(clock).is_some();
        Clock::ALL.into_iter().any(armed) && self.run_armed()
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
        let next_ns = self.next_deadline_ns(clock)?;
        let now_ns = clock.now_ns();
        (next_ns <= now_ns).then(|| Due {
            now_ns,
            sequence_limit: self.lists[clock.index()].inner.lock().heap.next_sequence(),
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
        let popped = inner.heap.pop_due(due.now_ns, due.sequence_limit);
        let shared = popped.map(|(_, shared)| shared);
        if let Some(shared) = &shared {
            shared.set_place(None);
        }
        self.publish(clock, &inner);
        shared
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
            let armed_ns = inner.heap.deadline_of(handle);
            if only_earlier && armed_ns.is_some_and(|armed_ns| armed_ns <= deadline_ns) {
                return false;
            }
            inner.heap.rearm(handle, deadline_ns);
        } else {
            let handle = inner.heap.insert(deadline_ns, Arc::clone(shared));
            shared.set_place(Some(handle));
        }
        let earlier = self
            .next_deadline_ns(clock)
            .is_none_or(|next_ns| deadline_ns < next_ns);
        self.publish(clock, &inner);
        earlier
    }

    /// True if it was armed.
    pub(super) fn cancel(&self, clock: Clock, shared: &Shared) -> bool {
        let mut inner = self.lists[clock.index()].inner.lock();
        let Some(handle) = shared.place() else {
            return false;
        };
        shared.set_place(None);
        let removed = inner.heap.remove(handle);
        self.publish(clock, &inner);
        drop(inner); // The callback may be freed with it, and free what takes the lock.
        removed.is_some()
    }

    /// When it is due, if it is armed.
    pub(super) fn deadline_of(&self, clock: Clock, shared: &Shared) -> Option<u64> {
        let inner = self.lists[clock.index()].inner.lock();
        inner.heap.deadline_of(shared.place()?)
    }

    fn publish(&self, clock: Clock, inner: &ListInner) {
        let next_ns = inner.heap.peek_deadline().unwrap_or(NEVER);
        self.next_ns[clock.index()].store(next_ns, Ordering::Relaxed);
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
