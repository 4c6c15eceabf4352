//! The event: set or not; whoever waits goes on once it is set (SPEC L5). `state` is the state
//! machine; here are waiting and cancellation.

// Wait records are pointers into frames.
#![allow(unsafe_code)]

mod state;

use core::fmt;
use std::thread;

pub(super) use self::state::State;
use super::record::{Line, Record, Wake};
use super::select::{InLine, Selectable, Source};
use super::waiter::{Queued, Waiter};
use crate::schedule;

/// Something that has happened, or not yet. Any number may wait for it; it stays set until it is
/// reset.
///
/// For one that happens again and again, whoever waits resets it first, then looks for work, then
/// waits: what was done before a [`set`](Self::set) is then either found by that look, or the wait
/// ends. In another order a set may be lost.
///
/// ```
/// use std::sync::Arc;
/// use corio::{IoThread, sync::Event};
///
/// let io = IoThread::builder().spawn()?;
/// let ready = Arc::new(Event::new());
/// let waiters = [(); 3].map(|()| {
///     let ready = Arc::clone(&ready);
///     io.context().spawn(move || ready.wait())
/// });
/// ready.set();
/// for waiter in waiters {
///     waiter.join().unwrap();
/// }
/// assert!(ready.is_set());
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias("QemuEvent", "qemu_event_destroy"))]
pub struct Event {
    state: State<Waiter>,
}

impl Default for Event {
    fn default() -> Event {
        Event::new()
    }
}

impl Event {
    /// One that is not set.
    #[doc(alias = "qemu_event_init")]
    #[must_use]
    pub fn new() -> Event {
        Event {
            state: State::new(false),
        }
    }

    /// One that is set already.
    #[must_use]
    pub fn new_set() -> Event {
        Event {
            state: State::new(true),
        }
    }

    /// Sets it, and lets all go on that wait. They see what was done before. From anywhere; runs
    /// nobody itself. One that is set already is only looked at.
    #[doc(alias = "qemu_event_set")]
    #[inline]
    pub fn set(&self) {
        self.state.set();
    }

    /// Makes it unset: who waits from now on waits for the next [`set`](Self::set). From anywhere.
    #[doc(alias = "qemu_event_reset")]
    pub fn reset(&self) {
        self.state.reset();
    }

    /// Whether it is set. From anywhere.
    #[must_use]
    #[inline]
    pub fn is_set(&self) -> bool {
        self.state.is_set()
    }

    /// Waits until it is set; returns at once if it is. A coroutine parks, a plain thread blocks. A
    /// cancellation point when it waits. By the time it returns it may have been reset again.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine (use [`is_set`](Self::is_set)); if it has to wait in a
    /// home without a loop.
    #[doc(alias = "qemu_event_wait")]
    #[track_caller]
    #[inline]
    pub fn wait(&self) {
        Waiter::check("sync::Event::wait");
        if !self.state.is_set() {
            self.wait_unset();
        }
    }

    /// Returns once whoever has set it does not look at it any more: false if somebody waits for it.
    pub(crate) fn settle(&self) -> bool {
        self.state.settle()
    }

    /// As [`wait`](Self::wait), but a thread blocks also where it has a loop, and below a coroutine
    /// that cannot park.
    pub(crate) fn wait_or_block(&self) {
        if self.state.is_set() {
            return;
        }
        let waiter = if schedule::has_loop() {
            Waiter::possible()
        } else {
            None
        };
        self.queue_and_wait(waiter.unwrap_or_else(|| Waiter::Thread(thread::current())));
    }

    /// For [`select`](super::select()): that it is set.
    pub fn on_set(&self) -> impl Selectable<Output = ()> {
        InLine::new(OnSet(&self.state))
    }

    #[cold]
    #[track_caller]
    fn wait_unset(&self) {
        self.queue_and_wait(Waiter::current("sync::Event::wait"));
    }

    #[track_caller]
    fn queue_and_wait(&self, waiter: Waiter) {
        let record = Record::new(waiter, 1);
        // SAFETY: `Queued` sees to it that the record is granted or withdrawn before it goes.
        if unsafe { self.state.pass_or_queue(&record) } {
            return;
        }
        // SAFETY: queued above.
        unsafe { Queued::new(&self.state, &record) }.wait();
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("set", &self.is_set())
            .finish()
    }
}

pub(super) struct OnSet<'a, W>(pub(super) &'a State<W>);

impl<W: Wake> Source<W> for OnSet<'_, W> {
    type Record = Record<W>;
    type Output = ();

    fn look(&self) -> Option<()> {
        self.0.is_set().then_some(())
    }

    fn record(&self, waker: &W) -> Record<W> {
        Record::new(waker.clone(), 1)
    }

    unsafe fn queue(&self, record: &Record<W>) -> Option<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.pass_or_queue(record) }.then_some(())
    }

    fn granted(&self, record: &Record<W>) -> Option<()> {
        record.is_granted().then_some(())
    }

    unsafe fn abandon(&self, record: &Record<W>) {
        // SAFETY: as the caller promises.
        unsafe { self.0.abandon(record) };
    }
}
