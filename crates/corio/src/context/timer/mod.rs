//! Timers, and the one door to the clock (SPEC T1 to T6).
//!
//! A turn runs what was due at its start, in deadline order and then in the order armed; what
//! callbacks arm, even in the past, waits for the next turn. Arm and cancel are O(log n) in a 4-ary
//! heap.

mod heap;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use self::heap::{Handle, Heap};
use super::AioContext;
use crate::sys;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Nanoseconds of the clock that timers use (CLOCK_MONOTONIC).
#[inline]
pub(crate) fn now_ns() -> u64 {
    sys::clock::monotonic_ns()
}

struct Shared {
    callback: Box<dyn Fn() + Send + Sync>,
    /// Where it stands in the heap while armed. Touched under the heap's lock.
    place: Mutex<Option<Handle>>,
}

/// A context's timers. Any thread may arm and cancel; the home thread runs them.
pub(super) struct Timers {
    heap: Mutex<Heap<Arc<Shared>>>,
    /// The earliest deadline, to look at without the lock.
    next_ns: AtomicU64,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            heap: Mutex::new(Heap::new()),
            next_ns: AtomicU64::new(NEVER),
        }
    }

    /// How long the loop may sleep for all that timers care.
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        // Acquire pairs with `publish`; a later change notifies.
        match self.next_ns.load(Ordering::Acquire) {
            NEVER => None,
            deadline => Some(deadline.saturating_sub(now_ns())),
        }
    }

    fn publish(&self, heap: &Heap<Arc<Shared>>) {
        self.next_ns
            .store(heap.peek_deadline().unwrap_or(NEVER), Ordering::Release);
    }

    /// Runs what is due. True: something ran.
    pub(super) fn run(&self) -> bool {
        if self.next_ns.load(Ordering::Acquire) == NEVER {
            return false;
        }
        let now = now_ns();
        if self.next_ns.load(Ordering::Acquire) > now {
            return false;
        }
        let limit = self.heap.lock().next_sequence();
        let mut progress = false;
        loop {
            let due = {
                let mut heap = self.heap.lock();
                let due = heap.pop_due(now, limit).map(|(_, shared)| shared);
                if let Some(shared) = &due {
                    *shared.place.lock() = None;
                }
                self.publish(&heap);
                due
            };
            let Some(shared) = due else { return progress };
            progress = true;
            (shared.callback)();
        }
    }

    /// True if the loop's wait has become too long.
    fn arm(&self, shared: &Arc<Shared>, deadline_ns: u64) -> bool {
        let mut heap = self.heap.lock();
        let mut place = shared.place.lock();
        let moved = place.is_some_and(|handle| heap.rearm(handle, deadline_ns));
        if !moved {
            *place = Some(heap.insert(deadline_ns, Arc::clone(shared)));
        }
        let earlier = deadline_ns < self.next_ns.load(Ordering::Relaxed);
        self.publish(&heap);
        earlier
    }

    fn cancel(&self, shared: &Shared) -> bool {
        let mut heap = self.heap.lock();
        let Some(handle) = shared.place.lock().take() else {
            return false;
        };
        let removed = heap.remove(handle);
        self.publish(&heap);
        drop(heap); // The callback may be freed with it, and free what takes the lock.
        removed.is_some()
    }
}

/// A timer: a callback that runs in its context's home thread once its deadline has passed.
///
/// Any thread may arm and cancel it; the callback may re-arm it or drop it. Dropping the handle
/// cancels it.
///
/// ```
/// use corio::{IoThread, time};
/// use std::{sync::mpsc, time::Duration};
/// let io = IoThread::builder().name("io").spawn()?;
/// let (tx, rx) = mpsc::sync_channel(1);
/// let timer = io.context().timer(move || tx.send("due").unwrap());
/// timer.arm_after(Duration::from_millis(1));
/// assert_eq!(rx.recv().unwrap(), "due");
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "QEMUTimer")]
#[doc(alias = "timer_new_ns")]
#[must_use = "a timer is cancelled when its handle is dropped"]
pub struct Timer {
    shared: Arc<Shared>,
    context: AioContext,
}

impl Timer {
    pub(super) fn new(context: AioContext, callback: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            shared: Arc::new(Shared {
                callback,
                place: Mutex::new(None),
            }),
            context,
        }
    }

    /// Arms or re-arms it for `deadline_ns` of the monotonic clock.
    #[doc(alias = "timer_mod_ns")]
    pub fn arm_at_ns(&self, deadline_ns: u64) {
        // NEVER stands for "none armed".
        let earlier = self
            .context
            .inner()
            .timers
            .arm(&self.shared, deadline_ns.min(NEVER - 1));
        // The home thread looks at the deadlines anew before it waits.
        if earlier && !self.context.is_home() {
            self.context.notify();
        }
    }

    /// Arms or re-arms it for `delay` from now.
    pub fn arm_after(&self, delay: core::time::Duration) {
        let delay_ns = u64::try_from(delay.as_nanos()).unwrap_or(NEVER);
        self.arm_at_ns(now_ns().saturating_add(delay_ns));
    }

    /// Takes it back; true if it was armed. One that runs already goes on.
    #[doc(alias = "timer_del")]
    pub fn cancel(&self) -> bool {
        self.context.inner().timers.cancel(&self.shared)
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
            .field("armed", &self.shared.place.lock().is_some())
            .finish()
    }
}
