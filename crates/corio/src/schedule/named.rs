//! Scheduling a coroutine by name, and moving one to another context (SPEC S1, S4, S5).
//!
//! ```text
//!   old thread                                            new thread
//!   ----------                                            ----------
//!   key: DEPARTING; has yielded; off its home's list
//!     └── Arrival ── queued on the new context ─────────▶ on its home's list; entered
//!                └── dropped, if no home is to come: leaked and named
//! ```
//!
//! Between the two nobody runs it, and its word is RUNNING, so that wakes are kept.

// Moving is unsafe; the contracts are the public functions'.
#![allow(unsafe_code)]

use core::panic::Location;

use super::inbox::Inbox;
use super::no_context;
use crate::context::{AioContext, Local};
use crate::coroutine::{self, CoRef, Coroutine, WakeQueue};
use crate::stack::Slot;
use crate::track::{self, Kind};

impl Coroutine {
    /// Queues the coroutine on its context, where the loop's next turn enters it. First scheduled,
    /// first run. Its thread only; neither suspends nor runs anything.
    ///
    /// A coroutine may schedule itself so, and must then yield before it ends.
    ///
    /// # Panics
    /// If it has ended, or is scheduled already; if its home has no event loop.
    ///
    /// ```
    /// let context = corio::AioContext::new()?;
    /// context.enter_home(|| {
    ///     let co = corio::Coroutine::new(|| corio::suspend());
    ///     co.schedule();
    ///     context.poll(false)?;
    ///     assert!(!co.is_done()); // It has run as far as its suspension.
    ///     co.schedule();
    ///     context.poll(false)?;
    ///     assert!(co.is_done());
    ///     Ok::<_, std::io::Error>(())
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "aio_co_schedule")]
    #[track_caller]
    pub fn schedule(&self) {
        let co = self.living_or_panic("scheduled");
        if co.inbox().is_null() {
            no_context("Coroutine::schedule", co);
        }
        claim_for_queue(co);
        self.note_scheduled(Location::caller());
        co.set_queued();
        Inbox::push_here(co.inbox(), co.slot());
    }

    /// Gets the coroutine going again, whatever it waits for: outside any coroutine it is entered at
    /// once, inside one it runs when that yields or ends. Its thread only.
    ///
    /// # Panics
    /// If it has ended, is entered (except by itself) or is scheduled already; with what its body
    /// panics with, if it is entered.
    ///
    /// ```
    /// corio::home(|| {
    ///     let co = std::rc::Rc::new(corio::Coroutine::new(|| corio::suspend()));
    ///     let woken = std::rc::Rc::clone(&co);
    ///     corio::Coroutine::new(move || {
    ///         woken.wake(); // Not yet: this one runs.
    ///         assert!(!woken.is_done());
    ///     })
    ///     .enter();
    ///     co.wake(); // At once.
    ///     assert!(co.is_done());
    /// });
    /// ```
    #[doc(alias = "aio_co_wake")]
    #[track_caller]
    #[inline(always)] // As `enter`.
    pub fn wake(&self) {
        if !self.enter_parked() {
            self.wake_slow();
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn wake_slow(&self) {
        let co = self.living_or_panic("woken");
        let Some(running) = coroutine::current() else {
            if track::is_enabled() {
                track::emit(Kind::Woken, co.id(), 0, 0);
            }
            return self.enter();
        };
        if co.phase() == coroutine::Phase::Entered && co.id() != running.id() {
            return self.enter(); // Says what is wrong.
        }
        claim_for_queue(co);
        self.note_scheduled(Location::caller());
        running.queue_wake(co);
    }

    /// Moves the coroutine, which is not running, to another context, whose thread enters it. On its
    /// own context it is [`schedule`](Self::schedule). Its thread only; the handle is given up.
    ///
    /// If the context never has a home again the coroutine is leaked and named in the log.
    ///
    /// # Safety
    /// From this call on the coroutine's stack is another thread's. What lies on it, and what its
    /// body has captured, must bear that: no reference to a thread-local, nothing that is not
    /// `Send` and that code outside the coroutine still uses, no guard that is tied to this thread;
    /// no library that it has called keeps a thread-local's address. Nothing of it is in flight in
    /// this thread's ring, and no handler or handle of this thread's loop lies on the stack. It has
    /// not suspended in a destructor that a panic runs: a thread counts its panics.
    ///
    /// # Panics
    /// If it has ended, is entered, or is scheduled already.
    #[doc(alias = "aio_co_schedule")]
    #[track_caller]
    pub unsafe fn schedule_on(mut self, context: &AioContext) {
        let co = self.living_or_panic("scheduled");
        if is_at_home_in(co, context) {
            self.schedule();
            self.forget_name();
        } else {
            if co.phase() == coroutine::Phase::Entered {
                self.enter(); // Says what is wrong.
            }
            claim_for_queue(co);
            self.forget_name(); // Not after: its count is another thread's then.
            depart(co, context);
        }
        core::mem::forget(self); // It is nobody's, and must not be cancelled.
    }

    /// [`wake`](Self::wake) on its own context, [`schedule_on`](Self::schedule_on) on another.
    ///
    /// # Safety
    /// As for [`schedule_on`](Self::schedule_on), if the context is another.
    ///
    /// # Panics
    /// As those two.
    #[doc(alias = "aio_co_enter")]
    #[track_caller]
    pub unsafe fn enter_on(mut self, context: &AioContext) {
        if is_at_home_in(self.living_or_panic("entered"), context) {
            self.forget_name(); // Not after: it may have moved meanwhile.
            self.wake();
            core::mem::forget(self);
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.schedule_on(context) };
        }
    }
}

/// Continues the running coroutine in another context's thread; returns there. At once if it is
/// there already. A cancellation point.
///
/// To run something elsewhere and come back, [`AioContext::run`] needs no promise.
///
/// # Safety
/// What [`Coroutine::schedule_on`] asks for, of the whole stack, from the body to the caller. No
/// [`Coroutine`] or [`LocalJoinHandle`](crate::LocalJoinHandle) of it is used on the old thread
/// afterwards, not even dropped: so it is no child of a [`scope`](crate::scope()), and not what a
/// [`time::timeout`](crate::time::timeout()) waits for.
///
/// # Panics
/// Outside a coroutine; while the thread unwinds.
///
/// ```
/// let (a, b) = (corio::IoThread::builder().name("a").spawn()?, corio::IoThread::builder().name("b").spawn()?);
/// let there = b.context().clone();
/// let names = a.context().spawn(move || {
///     let name = || std::thread::current().name().map(str::to_owned).unwrap_or_default();
///     let before = name();
///     // SAFETY: the stack holds a context and a string, and the handle is Send.
///     #[allow(unsafe_code)]
///     unsafe {
///         corio::move_to(&there);
///     }
///     (before, name())
/// });
/// assert_eq!(names.join().unwrap(), ("a".to_owned(), "b".to_owned()));
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "aio_co_reschedule_self")]
#[track_caller]
pub unsafe fn move_to(context: &AioContext) {
    let Some(co) = coroutine::current() else {
        super::no_coroutine("move_to")
    };
    if is_at_home_in(co, context) {
        return;
    }
    assert!(
        !std::thread::panicking(),
        "move_to was called while its thread unwinds, which counts its panics: move before or after"
    );
    claim_for_queue(co);
    let context = context.clone();
    coroutine::leave_by(co, Box::new(move |co| depart(co, &context)));
}

/// Whether the coroutine lives in the home of `context`, which is this thread.
fn is_at_home_in(co: CoRef, context: &AioContext) -> bool {
    context.is_home()
        && coroutine::context_home().is_some_and(|home| core::ptr::eq(home.inbox(), co.inbox()))
}

/// Its word is RUNNING from here on, and no waker queues it: the caller does.
#[track_caller]
fn claim_for_queue(co: CoRef) {
    let at = Location::caller();
    if !co.slot().word.claim_by_name(co.generation()) || co.is_queued() {
        coroutine::scheduled_twice(co, at);
    }
    co.set_scheduled_at(at);
    if track::is_enabled() {
        track::emit_scheduled(co.id(), coroutine::running_id(), Some(at));
    }
}

/// Sends a coroutine that is not running, and that no waker queues, to another context.
fn depart(co: CoRef, context: &AioContext) {
    co.detach();
    let arrival = Arrival(co.slot());
    context.schedule_spawn(move || arrival.arrive());
}

/// A coroutine between two homes. Dropped on the way, it is leaked.
struct Arrival(&'static Slot);

impl Arrival {
    /// In the new home's thread, outside any coroutine.
    fn arrive(self) {
        let Some(home) = coroutine::context_home().filter(|_| Local::current().is_some()) else {
            return; // Dropped.
        };
        let slot = self.0;
        core::mem::forget(self);
        let co = coroutine::of_slot(slot);
        co.attach(home);
        co.set_queued();
        let queue = WakeQueue::new();
        queue.push(slot);
        coroutine::run_queue(&queue, None);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        coroutine::leak_detached(coroutine::of_slot(self.0));
    }
}
