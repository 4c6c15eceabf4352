//! Loose coroutines: those that no home owns (for the C interface).
//!
//! C has no scope that a coroutine could belong to. A loose one is made on any thread, is entered
//! from whatever thread its program says, and is neither cancelled nor unwound: one that never ends
//! is leaked, as in C. All else is the same machine, block and slot.
//!
//! ```text
//!   made ── word RUNNING ── schedule, any thread ──▶ word SCHEDULED ── its queue is run ──▶ entered
//!                 └──────────── enter, by hand ──────────────────────────────────────────────▲
//!           word PARKED ──── its own wake ──────────▶ word SCHEDULED, or at once ────────────┘
//! ```
//!
//! Invariants
//! - I1 The block of a loose coroutine is touched by the thread that runs it, or, while it does not
//!   run, by the one that its program has enter it: the program orders the two, or the queue does.
//!   Its word, its inbox and its link are what any thread may touch.
//! - I2 Its word leaves ALONE when it is made, as any thread may schedule it by its pointer.
//! - I3 Whoever enters it says in which thread and where its wakes go from then on.
//! - I4 A place is the number of a thread that is not traced, with its innermost home and the inbox of
//!   that. No two have the same, and none has it again once one of these has changed. A coroutine whose
//!   place is that of the thread that enters it need not be told what I3 says.

#![allow(unsafe_code)] // Coroutines by pointers; the contracts are the callers'.

use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

use super::control::{ControlBlock, key};
use super::home::{self, Home};
use super::{CoRef, overflow, switch};
use crate::atomic::Ordering;
use crate::error::Error;
use crate::stack::{self, ByName, Slot};
use crate::sys::signal::AlternateStack;
use crate::tls::{self, ThreadState};

/// Why a coroutine cannot be entered.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It runs, or waits for one that it has entered.
    Entered,
    /// It is queued, and will be entered from there.
    Scheduled,
    /// It is parked: it will be entered by what it waits for.
    Waits,
    /// It has ended.
    Ended,
}

/// A loose coroutine, which may have ended.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Loose(NonNull<()>);

impl Loose {
    /// Makes one on a stack of the default size. It runs nothing. Its thread has a home, if only an
    /// [`Unscoped`] one.
    #[inline]
    pub(crate) fn new(
        thread: &'static ThreadState,
        body: impl FnOnce() + 'static,
        at: &'static Location<'static>,
    ) -> Result<Self, Error> {
        let slot = stack::acquire(thread, stack::SIZE_DEFAULT)?;
        let co = switch::create(thread, None, slot, None::<Rc<str>>, at, body);
        slot.inbox
            .store(inbox_of(thread).cast_mut(), Ordering::Relaxed);
        Ok(Self(co.0.cast()))
    }

    /// The running coroutine.
    #[inline(always)]
    pub fn running() -> Option<Self> {
        NonNull::new(tls::current().cast_mut()).map(Self)
    }

    /// Its address, which is its name.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut () {
        self.0.as_ptr()
    }

    /// The one of this name.
    ///
    /// # Safety
    /// `at` is what [`as_ptr`](Self::as_ptr) has given.
    #[inline(always)]
    pub unsafe fn from_ptr(at: NonNull<()>) -> Self {
        Self(at)
    }

    /// The one that lives in a slot, if it is a loose one.
    pub(crate) fn of_slot(slot: &'static Slot) -> Option<Self> {
        let co = super::of_slot(slot);
        co.is_loose().then_some(Self(co.0.cast()))
    }

    #[inline(always)]
    pub(crate) fn co(self) -> CoRef {
        CoRef(self.0.cast::<ControlBlock>())
    }

    /// True from being entered until it next suspends or ends. Of use where it cannot change
    /// meanwhile.
    ///
    /// # Safety
    /// It was made as a loose coroutine.
    #[inline]
    pub unsafe fn is_entered(self) -> bool {
        #[allow(clippy::cast_possible_truncation)] // The state alone.
        let state = self.co().key() as u32;
        u64::from(state) == key::ENTERED
    }

    /// Where its wakes go.
    ///
    /// # Safety
    /// It has not ended.
    #[inline]
    pub(crate) unsafe fn inbox(self) -> *const () {
        self.co().inbox()
    }

    /// Enters it on this thread, with its wakes going to `inbox` from then on. True: it has
    /// suspended, and that is all; else [`settle`](Self::settle) must follow.
    ///
    /// # Safety
    /// It was made as a loose coroutine, and nobody else enters it meanwhile (I1). `thread` is this
    /// one.
    #[inline(always)]
    pub(crate) unsafe fn enter(
        self,
        thread: &'static ThreadState,
        inbox: *const (),
    ) -> Result<bool, Refused> {
        let co = self.co();
        let seen = co.key();
        let base = seen & !STATE_MASK;
        if seen - base > key::CREATED || !co.block().slot.word.is_quiet(base) {
            check(co, seen, base)?;
        }
        // SAFETY: the caller's promise, and it is neither entered nor queued.
        Ok(unsafe { self.enter_claimed(thread, inbox, base) })
    }

    /// As [`enter`](Self::enter), of one that whoever calls has won; `base` is the key of its
    /// generation.
    ///
    /// # Safety
    /// As there; and its word is RUNNING or NOTIFIED, and its key says that it is suspended.
    #[inline(always)]
    pub(crate) unsafe fn enter_claimed(
        self,
        thread: &'static ThreadState,
        inbox: *const (),
        base: u64,
    ) -> bool {
        let block = self.co().block();
        entered_at(block, thread, inbox);
        let (left, _) = switch::switch_into(block, base);
        left & key::SETTLE == 0
    }

    /// Wins one that is parked in this thread, and enters it; see [`enter`](Self::enter). None:
    /// somebody else has won it.
    ///
    /// # Safety
    /// It is of this generation and was seen parked, with its wakes going to `inbox`, which is
    /// this thread's; `thread` is this one.
    pub(crate) unsafe fn enter_parked(
        self,
        thread: &'static ThreadState,
        inbox: *const (),
        generation: u32,
    ) -> Option<bool> {
        let won = self.co().slot().word.claim_parked(generation);
        // SAFETY: whoever wins the word of one that is parked has it (I1).
        won.then(|| unsafe { self.enter_claimed(thread, inbox, key::of(generation)) })
    }

    /// What is to be done after a run that left something to be done: ends the coroutine, runs what
    /// it woke. A panic of any of them passes through.
    ///
    /// # Safety
    /// [`enter`](Self::enter) has just returned false.
    #[inline]
    pub unsafe fn settle(self) {
        switch::after_run(self.co());
    }

    /// Brings its word to SCHEDULED; the caller queues it.
    ///
    /// # Safety
    /// It has not ended. (That it has is found out by chance.)
    #[inline]
    pub(crate) unsafe fn claim_for_queue(self) -> Result<(), Refused> {
        let slot = self.co().block().slot;
        match slot.word.schedule(slot.word.generation()) {
            ByName::Queue => Ok(()),
            ByName::Scheduled => Err(Refused::Scheduled),
            ByName::Parked => Err(Refused::Waits),
            ByName::Ended => Err(Refused::Ended),
        }
    }

    /// As [`claim_for_queue`](Self::claim_for_queue), and has it run once the running coroutine
    /// suspends or ends.
    ///
    /// # Safety
    /// It has not ended, and does not run on another thread.
    pub(crate) unsafe fn queue_beside(self, running: CoRef) -> Result<(), Refused> {
        // SAFETY: the caller's promise.
        unsafe { self.claim_for_queue()? };
        running.queue_scheduled(self.co());
        Ok(())
    }

    /// Suspends the running coroutine, and has `then` done with it once it does not run any more.
    /// Returns when it is entered again, perhaps on another thread.
    pub(crate) fn leave_by(co: CoRef, then: impl FnOnce(Loose) + 'static) {
        let departure = move |co: CoRef| {
            let block = co.block();
            block.set_state(key::SUSPENDED);
            block.suspend_plainly();
            then(Loose(co.0.cast()));
        };
        super::leave_by(co, Box::new(departure));
    }
}

/// Where assembly finds what a switch needs, in bytes from an object's address; the numbers that it
/// knows them by. What is done with them is what
/// `switch::switch` and `switch::switch_out` do.
#[doc(hidden)]
#[cfg(all(target_arch = "x86_64", not(feature = "asan")))]
pub mod layout {
    use core::mem::offset_of;

    use super::super::control::{ControlBlock, key};
    use crate::stack::Slot;
    use crate::tls::ThreadState;

    /// In a coroutine: see its control block.
    pub const PLACE: usize = offset_of!(ControlBlock, rest.place);
    /// See [`PLACE`].
    pub const SUSPENDED_KEY: usize = offset_of!(ControlBlock, hot.suspended_key);
    /// See [`PLACE`].
    pub const KEY: usize = ControlBlock::KEY_AT;
    /// See [`PLACE`].
    pub const SLOT: usize = offset_of!(ControlBlock, rest.slot);
    /// In a slot.
    pub const WORD: usize = offset_of!(Slot, word);
    /// In a thread's state, whose first word is the running coroutine: its place, which is a
    /// coroutine's that has nothing to be told (I4).
    pub const THREAD_PLACE: usize = offset_of!(ThreadState, place);
    /// What is added to the key of one that is suspended, whose lower half is 0.
    pub const ENTERED: u64 = key::ENTERED;
    /// What is added to such a key to make the word of one that may be entered by hand. Of no other
    /// key and word of a loose one is that so.
    pub const RUNNING: u64 = crate::stack::SlotWord::QUIET;

    const _: () = assert!(offset_of!(ThreadState, current) == 0 && key::SUSPENDED == 0);
    const _: () = {
        let mut other = key::SUSPENDED + 1;
        while other <= key::ENDED {
            assert!(!crate::stack::SlotWord::is_state(other + RUNNING));
            other += 1;
        }
    };
}

/// The bit of what a resumer is given by which [`Loose::settle`] must follow.
pub const SETTLE: u64 = key::SETTLE;

/// The bits of a key that hold the state.
const STATE_MASK: u64 = u32::MAX as u64;

/// Whether one that is not simply suspended may be entered by hand.
#[cold]
#[inline(never)]
fn check(co: CoRef, seen: u64, base: u64) -> Result<(), Refused> {
    let word = &co.block().slot.word;
    match seen - base {
        // Perhaps with a wake that is kept for its next park.
        key::SUSPENDED | key::CREATED if word.is_running() => Ok(()),
        key::PARKED if !word.is_scheduled() => Err(Refused::Waits),
        key::ENTERED => Err(Refused::Entered),
        key::ENDED => Err(Refused::Ended),
        _ => Err(Refused::Scheduled),
    }
}

/// It would be entered from the queue, and take that for what it waits for.
#[cold]
pub(crate) fn waits_scheduled() -> ! {
    panic!(
        "Co-routine was already scheduled in 'aio_co_schedule': it must yield before it waits for \
         anything else"
    )
}

/// What follows when one that was in state `state` is taken off a queue to be entered (I3).
#[inline]
pub(super) fn taken_off_queue(block: &ControlBlock, state: u64) {
    assert!(state != key::ENTERED, "Co-routine re-entered recursively");
    let thread = tls::thread();
    entered_at(block, thread, inbox_of(thread));
}

/// The place of a coroutine that is to be told where it is entered.
pub(super) const NOWHERE: u64 = 1;

/// Tells a coroutine where it is entered (I3, I4).
#[inline]
fn entered_at(block: &ControlBlock, thread: &'static ThreadState, inbox: *const ()) {
    block.slot.inbox.store(inbox.cast_mut(), Ordering::Relaxed);
    block.hot.thread.set(thread);
    let place = match inbox == inbox_of(thread) {
        true => thread.place.get(),
        false => NOWHERE,
    };
    block
        .place
        .set(if place == 0 { new_place(thread) } else { place });
}

/// Numbers the thread as it is now, if it may be.
#[cold]
#[inline(never)]
fn new_place(thread: &ThreadState) -> u64 {
    // A number and no protocol, so not through `crate::atomic`.
    use core::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(NOWHERE);
    if thread.traced.get() != 0 || thread.home.get().is_null() {
        return NOWHERE;
    }
    let place = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    thread.place.set(place);
    place
}

/// Panics if it must not end now.
#[inline]
pub(super) fn check_end(block: &ControlBlock) {
    let locks = block.locks_held.get();
    assert!(
        locks == 0,
        "Co-routine ended while it holds {locks} lock(s)"
    );
    assert!(
        !block.slot.word.is_scheduled(),
        "Co-routine ended while it was scheduled: it must yield before it ends"
    );
}

/// Where wakes of coroutines go that are entered on this thread; null without a home.
#[inline(always)]
pub(crate) fn inbox_of(thread: &ThreadState) -> *const () {
    home::of_thread(thread).map_or(core::ptr::null(), Home::inbox)
}

/// The home of a thread that is not a scope of ours: from when it first has to do with coroutines
/// until its end.
pub(crate) struct Unscoped {
    home: Box<Home>,
    _overflows: Option<AlternateStack>,
}

impl Unscoped {
    /// Makes this thread a home, inside of the one that it may be.
    ///
    /// # Safety
    /// The value stays on its thread, where it is dropped outside of homes that are opened after
    /// it; `inbox` stays as long.
    pub(crate) unsafe fn open(inbox: *const ()) -> Self {
        let state = tls::thread();
        let overflows = state.home.get().is_null().then(overflow::watch);
        let home = Box::new(Home::inside(state.home.get(), inbox));
        state.set_home((&raw const *home).cast());
        crate::track::notice(state);
        Self {
            home,
            _overflows: overflows,
        }
    }

    /// Has wakes go elsewhere from now on.
    ///
    /// # Safety
    /// `inbox` stays as long as this does.
    pub(crate) unsafe fn set_inbox(&self, inbox: *const ()) {
        self.home.set_inbox(inbox);
    }
}

impl Drop for Unscoped {
    fn drop(&mut self) {
        self.home.end_unscoped();
    }
}
