//! Coroutines on contexts: homes with a loop, parking and waking, spawning and joining (SPEC
//! section 2).
//!
//! `inbox` is the queue into a home thread, [`CoWaker`] the token that fills it, `park` and its kin
//! what every wait in the runtime is made of: a wake is a hint, so each wait loops on its own
//! condition.
//!
//! Files: `home` is the scope in which a thread runs a context and its coroutines, `io_thread` a
//! thread that does so, `spawn` starts and joins, `packet` is what the two sides share, `scope` is
//! for children that borrow, `named` for coroutines that are scheduled and moved by name, `loose`
//! for those of C programs, `bridge` for futures.

mod bridge;
mod home;
mod inbox;
mod io_thread;
pub(crate) mod loose;
mod named;
mod packet;
mod scope;
mod spawn;

use core::panic::Location;
use core::ptr;
use core::task::{RawWaker, RawWakerVTable, Waker};

pub use bridge::{block_on, block_on_within};
pub use io_thread::{IoThread, IoThreadBuilder, Turn};
pub use named::move_to;
pub use scope::{Scope, ScopedJoinHandle, scope};
pub(crate) use spawn::Waiter as Watcher;
pub use spawn::{JoinError, JoinHandle, LocalJoinHandle, spawn, spawn_local};

use self::inbox::Inbox;
use crate::coroutine::{self, CoRef};
use crate::stack::{self, Slot, Wake};
use crate::track::{self, Kind};

/// Names a parked coroutine to whoever will wake it.
///
/// May be fired any number of times, early or late, from any thread, with locks held: a wake that
/// comes before the park makes the park return at once, one that comes after the coroutine's end
/// does nothing. It never runs the coroutine itself; it queues it in its home thread.
///
/// ```
/// fn shared<T: Send + Sync + Copy>() {}
/// shared::<corio::CoWaker>();
/// ```
#[doc(alias = "aio_co_wake")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoWaker {
    index: u32,
    generation: u32,
}

impl CoWaker {
    /// The one place where a token is made of a coroutine, which is of this thread.
    fn of(co: CoRef) -> Self {
        co.share();
        Self::name(co)
    }

    /// What will be a token once it is [shared](Self::share), and does not leave the thread before:
    /// until then the coroutine parks without locked instructions (stack::word I7).
    fn name(co: CoRef) -> Self {
        Self {
            index: co.slot().index(),
            generation: co.generation(),
        }
    }

    /// Makes a token of a coroutine's name, in its thread. Nothing, if the coroutine is gone.
    fn share(self) {
        if let Some(slot) = stack::slot_at(self.index)
            && slot.word.generation() == self.generation
        {
            coroutine::of_slot(slot).share();
        }
    }

    /// The token in one word, which is not 0.
    fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    #[allow(clippy::cast_possible_truncation)] // Halves of a word.
    fn unpack(word: u64) -> Self {
        Self {
            index: word as u32,
            generation: (word >> 32) as u32,
        }
    }

    /// Asks the coroutine to end, and gets it going so that it does. Any thread.
    fn cancel(self) {
        if let Some(slot) = stack::slot_at(self.index) {
            slot.want_cancel(self.generation);
            self.wake();
        }
    }

    /// The running coroutine's token, if one runs and it has a context to be woken in.
    #[must_use]
    #[inline]
    pub fn current() -> Option<Self> {
        wakeable().map(Self::of)
    }

    /// Gets the coroutine going again if it is parked, or keeps its next park from waiting. Any
    /// thread; neither waits nor runs the coroutine; inside a coroutine of the same home, the woken
    /// one runs when the waker yields or ends.
    pub fn wake(self) {
        let Some(slot) = stack::slot_at(self.index) else {
            return;
        };
        // At home it goes on the running coroutine's wake queue.
        if let Some(running) = coroutine::current()
            && slot.word.is_parked_as(self.generation)
            // Its home cannot change while it is parked, unless somebody else wins the wake.
            && ptr::eq(running.inbox(), inbox_of(slot))
        {
            return self.wake_beside(running, slot);
        }
        if slot.word.wake(self.generation) == Wake::Queue {
            self.deliver(slot);
        }
    }

    /// As [`wake`](Self::wake) for a coroutine that was just seen parked in the home that runs
    /// `running`.
    fn wake_beside(self, running: CoRef, slot: &'static Slot) {
        let co = coroutine::of_slot(slot);
        // Others may queue a loose one by its name, and have to see that it is queued (stack::word
        // I8).
        let (won, is_loose) = match co.is_loose() {
            true => (slot.word.wake(self.generation), true),
            false => (slot.word.wake_here(self.generation), false),
        };
        if won == Wake::Queue {
            self.trace(inbox_of(slot));
            match is_loose {
                true => running.queue_scheduled(co),
                false => running.queue_parked(co),
            }
        }
    }

    /// The wake has been won: into the home's inbox.
    fn deliver(self, slot: &'static Slot) {
        let inbox = inbox_of(slot);
        self.trace(inbox);
        Inbox::push_remote(inbox, slot);
    }

    fn trace(self, inbox: *const ()) {
        if track::is_enabled() {
            let id = u64::from(self.generation) << 32 | u64::from(self.index);
            track::emit(
                Kind::Woken,
                id,
                coroutine::running_id(),
                Inbox::context_id(inbox),
            );
        }
    }

    /// For callbacks of the home's own loop: enters the coroutine at once if it is parked and none
    /// runs, as `aio_co_wake` does; else like [`wake`](Self::wake). The caller knows that the
    /// coroutine is of this thread.
    pub(crate) fn wake_here(self) {
        let Some(slot) = stack::slot_at(self.index) else {
            return;
        };
        if coroutine::in_coroutine() || !slot.word.claim_parked(self.generation) {
            return self.wake();
        }
        let co = coroutine::of_slot(slot);
        if track::is_enabled() {
            track::emit(Kind::Woken, co.id(), 0, Inbox::context_id(co.inbox()));
        }
        coroutine::enter(co);
    }
}

/// What a token is for whoever stays in the coroutine's thread: to make it does not share the
/// coroutine's word (stack::word I7).
#[derive(Clone, Copy)]
pub(crate) struct Neighbour {
    slot: &'static Slot,
    generation: u32,
}

impl Neighbour {
    fn of(co: CoRef) -> Self {
        Self {
            slot: co.slot(),
            generation: co.generation(),
        }
    }

    /// As [`CoWaker::wake`]. Its thread only.
    fn wake(self) {
        let Self { slot, generation } = self;
        if slot.word.generation() != generation {
            return; // It is gone.
        }
        let co = coroutine::of_slot(slot);
        // At home it goes on the running coroutine's wake queue.
        match coroutine::current() {
            Some(running) if ptr::eq(running.inbox(), co.inbox()) && co.is_parked() => {
                if slot.word.claim_parked(generation) {
                    CoWaker::name(co).trace(co.inbox());
                    running.queue_parked(co);
                }
            }
            _ => CoWaker::of(co).wake(),
        }
    }
}

/// The running coroutine, if one runs and it has a context to be woken in.
#[inline]
fn wakeable() -> Option<CoRef> {
    coroutine::current().filter(|co| !co.inbox().is_null())
}

/// Whether a loop runs what wakes the running coroutine, if one runs: not in a C program's thread that
/// has no context.
#[allow(unsafe_code)] // Follows the pointer to its inbox.
pub(crate) fn has_loop() -> bool {
    // SAFETY: that of a coroutine that runs is there.
    coroutine::current().is_some_and(|co| unsafe { Inbox::has_loop(co.inbox()) })
}

/// Where the wakes of the slot's coroutine go.
fn inbox_of(slot: &Slot) -> *const () {
    // Relaxed: ordered by the acquire with which its word was read.
    slot.inbox
        .load(crate::atomic::Ordering::Relaxed)
        .cast_const()
}

/// A token is a task's waker as it is: futures that a coroutine polls wake the coroutine. It fits in
/// the waker's one word, so that it counts and allocates nothing.
///
/// ```
/// # let io = corio::IoThread::builder().spawn()?;
/// use std::{future::Future, pin::pin, task::{Context, Poll, Waker}};
/// let sum = io.context().spawn(|| {
///     let mut other = pin!(corio::spawn(|| 1 + 2));
///     let waker = Waker::from(corio::CoWaker::current().expect("in a coroutine of a context"));
///     loop {
///         match other.as_mut().poll(&mut Context::from_waker(&waker)) {
///             Poll::Ready(sum) => break sum.unwrap(),
///             Poll::Pending => corio::park(),
///         }
///     }
/// });
/// assert_eq!(sum.join().unwrap(), 3);
/// # Ok::<(), corio::Error>(())
/// ```
#[cfg(target_pointer_width = "64")]
impl From<CoWaker> for Waker {
    #[allow(unsafe_code)] // The word is all there is: any copy of it is a waker.
    #[allow(clippy::cast_possible_truncation)] // Of 64 bits to a usize of as many.
    fn from(token: CoWaker) -> Waker {
        const VTABLE: RawWakerVTable = RawWakerVTable::new(copy, fire, fire, |_| ());

        fn copy(word: *const ()) -> RawWaker {
            RawWaker::new(word, &VTABLE)
        }

        fn fire(word: *const ()) {
            CoWaker::unpack(word.addr() as u64).wake();
        }

        let word = ptr::without_provenance(token.pack() as usize);
        // SAFETY: the functions take the word for a token and nothing else, from any thread, and
        // own nothing.
        unsafe { Waker::from_raw(copy(word)) }
    }
}

/// The running coroutine, which has a context to park in. Panics with advice otherwise.
#[track_caller]
#[inline]
pub(crate) fn parkable(what: &str) -> CoRef {
    match coroutine::current() {
        Some(co) if !co.inbox().is_null() => co,
        Some(co) => no_context(what, co),
        None => no_coroutine(what),
    }
}

/// Parks the running coroutine until its token is fired. May return early: loop on your own
/// condition. A cancellation point.
///
/// # Panics
/// Outside a coroutine, and in a home without a context.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering::*};
/// static READY: AtomicBool = AtomicBool::new(false);
/// let io = corio::IoThread::builder().spawn()?;
/// let (tx, rx) = std::sync::mpsc::channel();
/// let handle = io.context().spawn(move || {
///     tx.send(corio::CoWaker::current().unwrap()).unwrap();
///     while !READY.load(Acquire) {
///         corio::park();
///     }
/// });
/// READY.store(true, Release);
/// rx.recv().unwrap().wake();
/// handle.join().unwrap();
/// # Ok::<(), corio::Error>(())
/// ```
#[inline(always)] // As `suspend`.
#[track_caller]
pub fn park() {
    park_as(false);
}

/// Parks like [`park`], but is no cancellation point: for whoever has something in flight that
/// refers to its frame.
#[inline]
#[track_caller]
pub(crate) fn park_uninterruptible() {
    park_as(true);
}

#[inline(always)]
#[track_caller]
fn park_as(uninterruptible: bool) {
    match coroutine::current() {
        Some(co) if coroutine::try_park(co, uninterruptible) => {}
        _ => park_slow(uninterruptible),
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn park_slow(uninterruptible: bool) {
    coroutine::park_slow(parkable("park"), uninterruptible);
}

/// Gives the loop and everyone that is queued a turn, then goes on. Inside a coroutine; a
/// cancellation point.
///
/// # Panics
/// Outside a coroutine, and in a home without a context.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| corio::yield_now()).join().expect("it does not panic");
/// # Ok::<(), corio::Error>(())
/// ```
#[track_caller]
#[inline(always)] // As `suspend`.
pub fn yield_now() {
    coroutine::suspend_running(queue_running());
}

/// As [`yield_now`], but no cancellation point: for whoever has a result to hand out.
#[track_caller]
pub(crate) fn yield_uninterruptible() {
    coroutine::suspend_uninterruptible(queue_running());
}

/// Puts the running coroutine at the end of its context's queue.
#[inline(never)]
#[track_caller]
fn queue_running() -> CoRef {
    let co = parkable("yield_now");
    co.set_scheduled_at(Location::caller());
    if co.is_loose() {
        loose::queue_running(co);
    } else if !co.has_queued_itself() {
        co.set_queued();
        if track::is_enabled() {
            track::emit_scheduled(co.id(), co.id(), Some(Location::caller()));
        }
        // The inbox, not the wake queue: the loop gets a turn.
        Inbox::push_here(co.inbox(), co.slot());
    }
    co
}

#[cold]
#[track_caller]
fn no_coroutine(what: &str) -> ! {
    panic!(
        "{what} was called outside a coroutine: start one with `spawn` on an AioContext and call it there"
    )
}

#[cold]
#[track_caller]
fn no_context(what: &str, co: CoRef) -> ! {
    panic!(
        "{what} was called in {}, whose home has no event loop to wake it: spawn it on an AioContext instead of `home`",
        co.describe()
    )
}
