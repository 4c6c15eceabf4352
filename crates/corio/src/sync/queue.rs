//! The coroutine queue: wait until somebody says go on (SPEC L3). `state` is its list.

// Wait records are pointers into frames.
#![allow(unsafe_code)]

mod state;

use self::state::State;
use super::mutex::MutexGuard;
use super::record::{Grant, Line, Record, Wake as _};
use super::select::{InLine, Selectable, Source};
use super::waiter::{Queued, Waiter};

pub use self::state::Place;

/// A line of coroutines that wait to be woken, as with a condition variable.
///
/// A wake with nobody in the line is lost, so waiters check their condition, wait, and check again;
/// [`wait_releasing`](Self::wait_releasing) makes checking and getting in line one step for whoever
/// holds the mutex. There are no spurious wakes, but somebody else may have run in between.
///
/// ```
/// use std::sync::Arc;
/// use corio::{IoThread, sync::{Mutex, Queue}};
///
/// let io = IoThread::builder().spawn()?;
/// let shared = Arc::new((Mutex::new(Vec::new()), Queue::new()));
/// let consumer = io.context().spawn({
///     let shared = Arc::clone(&shared);
///     move || {
///         let (items, filled) = &*shared;
///         let mut items = items.lock();
///         while items.is_empty() {
///             items = filled.wait_releasing(items);
///         }
///         items.pop()
///     }
/// });
/// shared.0.lock().push(7);
/// shared.1.wake_one();
/// assert_eq!(consumer.join().unwrap(), Some(7));
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "CoQueue")]
#[derive(Debug)]
pub struct Queue {
    state: State<Waiter>,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue::new()
    }
}

impl Queue {
    /// An empty line.
    #[doc(alias = "qemu_co_queue_init")]
    pub fn new() -> Queue {
        Queue {
            state: State::new(),
        }
    }

    /// Waits to be woken. A coroutine parks, a plain thread blocks. A cancellation point: a waiter
    /// that is cancelled leaves the line, and passes on a wake that it was just given by
    /// [`wake_one`](Self::wake_one).
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, and in a home without a loop.
    #[doc(alias = "qemu_co_queue_wait")]
    #[track_caller]
    pub fn wait(&self) {
        self.wait_after(Place::Back, || ());
    }

    /// Gets in line, releases the mutex, waits to be woken, and takes the mutex again. Who changes
    /// the condition under the mutex and then wakes cannot be missed.
    ///
    /// A cancellation point, in both waits; the mutex is not held while it unwinds.
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    #[doc(alias = "qemu_co_queue_wait")]
    #[track_caller]
    pub fn wait_releasing<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let mutex = guard.mutex();
        let grant = self.wait_granted(Place::Back, || drop(guard));
        // A waiter that is cancelled while it takes the mutex has used up its turn for nothing.
        let woken = (grant == Grant::Turn).then(|| PassOn(&self.state));
        let guard = mutex.lock();
        core::mem::forget(woken);
        guard
    }

    /// Gets in line at `place`, calls `release`, and waits to be woken. For conditions under an
    /// ordinary mutex: `release` drops its guard.
    ///
    /// # Panics
    /// As [`wait`](Self::wait); with `release`'s panic, out of the line again.
    ///
    /// ```
    /// # let io = corio::IoThread::builder().spawn()?;
    /// use corio::sync::{Place, Queue};
    /// use std::sync::{Arc, Mutex};
    /// let shared = Arc::new((Mutex::new(false), Queue::new()));
    /// let waiter = io.context().spawn({
    ///     let shared = Arc::clone(&shared);
    ///     move || loop {
    ///         let done = shared.0.lock().unwrap();
    ///         if *done {
    ///             break;
    ///         }
    ///         shared.1.wait_after(Place::Back, || drop(done));
    ///     }
    /// });
    /// *shared.0.lock().unwrap() = true;
    /// shared.1.wake_all();
    /// waiter.join().unwrap();
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[track_caller]
    pub fn wait_after(&self, place: Place, release: impl FnOnce()) {
        self.wait_granted(place, release);
    }

    /// As [`Self::wait_after`], and tells what the wake was.
    #[track_caller]
    fn wait_granted(&self, place: Place, release: impl FnOnce()) -> Grant {
        let record = Record::new(Waiter::current("sync::Queue::wait"), 1);
        // SAFETY: `queued` sees to it that the record is granted or withdrawn before it goes.
        unsafe { self.state.queue(&record, place) };
        // SAFETY: queued above.
        let queued = unsafe { Queued::new(&self.state, &record) };
        release();
        queued.wait();
        record.granted().unwrap_or(Grant::Own)
    }

    /// For [`select`](super::select()): to be woken, from the back of the line. What wakes it before
    /// it is in line is lost, as with [`wait`](Self::wait).
    pub fn on_wake(&self) -> impl Selectable<Output = ()> {
        InLine::new(OnWake(&self.state))
    }

    /// Wakes whoever has waited longest. False if nobody waits. From anywhere; runs nobody itself.
    #[doc(alias = "qemu_co_queue_next")]
    #[doc(alias = "qemu_co_enter_next")]
    pub fn wake_one(&self) -> bool {
        self.state.wake_one()
    }

    /// Wakes all that wait at this moment, oldest first, and says how many. From anywhere; runs
    /// nobody itself.
    #[doc(alias = "qemu_co_queue_restart_all")]
    #[doc(alias = "qemu_co_enter_all")]
    pub fn wake_all(&self) -> usize {
        self.state.wake_all()
    }

    /// Takes whoever has waited longest out of the line, to be [woken](Woken::wake): for the C
    /// interface.
    #[doc(hidden)]
    pub fn take_one(&self) -> Option<Woken> {
        self.state.take_one().map(Woken)
    }

    /// The same, of all that wait at this moment.
    #[doc(hidden)]
    pub fn take_all(&self) -> impl Iterator<Item = Woken> + use<> {
        self.state.take_all().into_iter().map(Woken)
    }

    /// Whether nobody waits.
    #[doc(alias = "qemu_co_queue_empty")]
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
    }
}

/// One that has been taken out of the line, and waits to be woken.
#[doc(hidden)]
#[derive(Debug)]
#[must_use = "it waits for ever if it is not woken"]
pub struct Woken(Waiter);

impl Woken {
    /// Gets it going again as `aio_co_wake` does: at once, if this is its home and no coroutine
    /// runs.
    pub fn wake(self) {
        match self.0 {
            Waiter::Coroutine { token, .. } => token.wake_by_name(),
            other => other.wake(),
        }
    }
}

/// Wakes the next one in place of a waiter that will not go on.
struct PassOn<'a>(&'a State<Waiter>);

impl Drop for PassOn<'_> {
    fn drop(&mut self) {
        self.0.wake_one();
    }
}

struct OnWake<'a>(&'a State<Waiter>);

impl Source<Waiter> for OnWake<'_> {
    type Record = Record<Waiter>;
    type Output = ();

    fn look(&self) -> Option<()> {
        None
    }

    fn record(&self, waker: &Waiter) -> Record<Waiter> {
        Record::new(waker.clone(), 1)
    }

    unsafe fn queue(&self, record: &Record<Waiter>) -> Option<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.queue(record, Place::Back) };
        None
    }

    fn granted(&self, record: &Record<Waiter>) -> Option<()> {
        record.is_granted().then_some(())
    }

    unsafe fn abandon(&self, record: &Record<Waiter>) {
        // SAFETY: as the caller promises.
        unsafe { self.0.abandon(record) };
    }
}
