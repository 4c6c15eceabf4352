//! The control block: what the runtime knows of one coroutine, kept at the top of the coroutine's
//! own stack.
//!
//! ```text
//!              create            enter                end
//!     (free) ---------> CREATED -------> ENTERED ------------> ENDED (free, generation + 1)
//!                        |           ^      |
//!     schedule, by name  |     enter |      | suspend
//!                        v           +- SUSPENDED
//!               CREATED_QUEUED       |      |  schedule, by name
//!                        |           |      v
//!                        +-----------+-- QUEUED <--- yield (from ENTERED)
//!                          taken off |      ^  woken by its home thread
//!                          its queue |      |
//!                                    +-- PARKED <--- park (from ENTERED)
//!
//!   ENTERED ---move_to---> DEPARTING ---arrives in its new home---> QUEUED
//!   any but ENTERED ---leaked; dropped before it began---> ENDED
//! ```
//!
//! The key is one word that holds the coroutine's generation and its state, so that whoever has a
//! handle learns with one comparison whether the coroutine lives and may be entered.
//!
//! Invariants
//! - I1 A block is initialised whole when its coroutine is made, and all but its key is not touched
//!   after the coroutine has ended.
//! - I2 Only the home thread touches a block; while a coroutine moves from one thread to another,
//!   whoever carries it. What other threads may know of a coroutine is its slot (its word, its
//!   inbox). A handle that has outlived its coroutine may read the key while
//!   another thread uses the stack, and so may who looks for a hint: the key is atomic, always at
//!   the same place, and no longer of the handle's generation.
//! - I3 `machine` is resumed only by `switch`, and only while the coroutine is not ENTERED.

#![allow(unsafe_code)] // A block is made in place; see `init`.

use core::cell::Cell;
use core::panic::Location;
use core::ptr::NonNull;
use std::any::Any;
use std::rc::Rc;

use super::home::{Home, Unfinished};
use super::machine::Machine;
use super::wake_queue::WakeQueue;
use crate::atomic::{AtomicU64, Ordering};
use crate::stack::{CONTROL_MAX, CONTROL_SIZE, Slot};
use crate::tls::ThreadState;

/// The states of a key. In the first two a coroutine may be entered by hand. `PARKS`, `QUEUES` and
/// `WOKE` are bits of the suspended states. Of the states that a run may leave, those with the bit
/// `SETTLE` leave something to be done.
pub(super) mod key {
    /// Not running, and nobody but a hand will enter it.
    pub(crate) const SUSPENDED: u64 = 0;
    /// Made, never entered.
    pub(crate) const CREATED: u64 = 1;
    /// Parked, or queued by whoever woke it from there. The slot's word says which.
    pub(crate) const PARKED: u64 = SUSPENDED | PARKS;
    /// Queued by its home thread: by itself, by name, or by a waker beside it.
    pub(crate) const QUEUED: u64 = SUSPENDED | QUEUES;
    /// Made, and queued by name.
    pub(crate) const CREATED_QUEUED: u64 = 5;
    /// QUEUED since a moment ago, with coroutines that it has woken and that run now.
    pub(crate) const QUEUED_WOKE: u64 = QUEUED | WOKE;
    /// Running, or waiting for one that it has entered itself.
    pub(crate) const ENTERED: u64 = 8;
    /// Has suspended to leave for another thread, or is on its way there. One that others move
    /// keeps the state it was in. The states before this one are run from a queue.
    pub(crate) const DEPARTING: u64 = 8 | SETTLE;
    /// Its body has returned.
    pub(crate) const ENDED: u64 = 10 | SETTLE;

    /// Added to a suspended key whose coroutine is parked.
    pub(crate) const PARKS: u64 = 2;
    /// Added to a suspended key whose coroutine is queued.
    pub(crate) const QUEUES: u64 = 3;
    /// Added to a suspended key whose coroutine has woken others.
    pub(crate) const WOKE: u64 = SETTLE;
    /// What a run leaves a key with that has woken others, departs or has ended.
    pub(crate) const SETTLE: u64 = 4;

    /// A key's generation is above this many bits.
    const STATE_BITS: u32 = 32;

    /// The key of a generation in state SUSPENDED; other states are added to it.
    #[inline(always)]
    pub(crate) const fn of(generation: u32) -> u64 {
        (generation as u64) << STATE_BITS
    }

    /// The generation of a key.
    #[inline(always)]
    pub(crate) const fn generation(key: u64) -> u32 {
        (key >> STATE_BITS) as u32 // 64 bits less 32.
    }

    /// The state that a key is in, seen by a holder of `generation`.
    #[inline(always)]
    pub(crate) fn state(key: u64, generation: u32) -> u64 {
        let state = key.wrapping_sub(of(generation));
        // Of another generation: the coroutine has ended.
        if state > ENDED { ENDED } else { state }
    }
}

/// Where a coroutine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made, never entered.
    Created,
    /// Not running.
    Suspended,
    /// Running, or waiting for one that it has entered itself.
    Entered,
    /// Its body has returned.
    Ended,
}

/// Whether somebody wants the coroutine to end early (SPEC C12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancel {
    /// Nobody does.
    None,
    /// Asked; not yet acted on.
    Requested,
    /// It unwinds: it is not raised again.
    Raised,
}

/// The payload that unwinds a cancelled coroutine.
pub(crate) struct Cancelled;

/// Sends a coroutine to another thread.
pub(super) type Departure = Box<dyn FnOnce(super::CoRef)>;

/// See the module's documentation.
#[repr(C)] // What each switch needs lies in one cache line; the machine first.
pub(crate) struct ControlBlock {
    pub(super) hot: Hot,
    /// Generation and state (I2). All accesses are relaxed: one thread writes.
    key: AtomicU64,
    pub(super) rest: Rest,
}

/// What each switch needs.
#[repr(C)]
pub(crate) struct Hot {
    pub(super) machine: Machine,
    /// The home thread's state (I2).
    pub(super) thread: Cell<&'static ThreadState>,
    /// The key that a suspension leaves: of state SUSPENDED; with QUEUES once it has queued itself,
    /// and with WOKE once it has woken others.
    pub(super) suspended_key: Cell<u64>,
    pub(super) cancel: Cell<Cancel>,
    /// Cancellation is not raised while this is above 0.
    pub(super) cancel_masks: Cell<u32>,
}

/// What else belongs to one coroutine.
pub(crate) struct Rest {
    /// Coroutines that it has woken and that run once it yields or ends.
    pub(super) woken: WakeQueue,
    /// Coroutine locks that it holds (SPEC C3).
    pub(super) locks_held: Cell<u32>,
    pub(super) generation: u32,
    pub(super) slot: &'static Slot,
    pub(super) home: Cell<*const Home>,
    /// Of a loose one: see its I4.
    pub(super) place: Cell<u64>,
    /// Links of the home's list of the living.
    pub(super) newer: Cell<*const ControlBlock>,
    pub(super) older: Cell<*const ControlBlock>,
    /// What its body panicked with, on its way to whoever entered it.
    pub(super) panic: Cell<Option<Box<dyn Any + Send>>>,
    /// What to do with it in state DEPARTING.
    pub(super) departure: Cell<Option<Departure>>,
    /// Who is to be told if it never ends. Owns nothing, so that an end need not look at it.
    pub(super) unfinished: Cell<Option<NonNull<dyn Unfinished>>>,
    pub(super) name: Option<Rc<str>>,
    pub(super) created_at: &'static Location<'static>,
    pub(super) scheduled_at: Cell<Option<&'static Location<'static>>>,
}

const _: () = assert!(size_of::<ControlBlock>() <= CONTROL_MAX);
#[cfg(target_arch = "x86_64")]
#[cfg(not(feature = "asan"))]
const _: () = assert!(core::mem::offset_of!(ControlBlock, rest) <= 64);
const _: () = assert!(core::mem::offset_of!(ControlBlock, hot.machine) == 0);
const _: () = assert!(align_of::<ControlBlock>() <= 64);
const _: () = assert!(CONTROL_SIZE.is_multiple_of(64));

impl core::ops::Deref for ControlBlock {
    type Target = Rest;

    #[inline(always)]
    fn deref(&self) -> &Rest {
        &self.rest
    }
}

impl ControlBlock {
    /// Where the key is, in bytes.
    pub(super) const KEY_AT: usize = core::mem::offset_of!(ControlBlock, key);

    #[inline(always)]
    pub(super) fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }

    /// The key in a control block's space, whoever uses that by now: of the handle's generation
    /// only while the coroutine lives (I2).
    ///
    /// # Safety
    /// `at` is the space of a slot that has had a coroutine.
    #[inline(always)]
    pub(super) unsafe fn key_at(at: NonNull<ControlBlock>) -> u64 {
        // SAFETY: the space stays for ever (stack I4); a reference to the key alone, which is only
        // ever accessed atomically.
        let key: &AtomicU64 = unsafe { &(*at.as_ptr()).key };
        key.load(Ordering::Relaxed)
    }

    /// `state` is one of [`key`]'s.
    #[inline(always)]
    pub(super) fn set_state(&self, state: u64) {
        self.set_key(key::of(self.generation) + state);
    }

    #[inline(always)]
    pub(super) fn set_key(&self, key: u64) {
        self.key.store(key, Ordering::Relaxed);
    }

    /// The state, seen by a holder of `generation`.
    #[inline]
    pub(super) fn state(&self, generation: u32) -> u64 {
        key::state(self.key(), generation)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.state(self.generation) {
            key::CREATED | key::CREATED_QUEUED => Phase::Created,
            key::ENTERED => Phase::Entered,
            key::ENDED => Phase::Ended,
            _ => Phase::Suspended,
        }
    }

    /// True if no home owns it (`super::loose`).
    #[inline(always)]
    pub(super) fn is_loose(&self) -> bool {
        self.home.get().is_null()
    }

    /// Its next suspension is a plain one.
    #[inline]
    pub(super) fn suspend_plainly(&self) {
        let suspended = key::of(self.generation) + key::SUSPENDED;
        self.hot.suspended_key.set(suspended);
    }

    /// True if it is in a queue before it has even suspended.
    #[inline]
    pub(super) fn has_queued_itself(&self) -> bool {
        self.hot.suspended_key.get() & key::QUEUES == key::QUEUES
    }

    /// Its next suspension has something to settle.
    #[inline]
    pub(super) fn suspend_having_woken(&self) {
        let key = self.hot.suspended_key.get();
        self.hot.suspended_key.set(key | key::WOKE);
    }

    /// True if it will be entered from a queue.
    pub(super) fn is_queued(&self) -> bool {
        let state = self.state(self.generation);
        let queued = [
            key::QUEUED,
            key::QUEUED_WOKE,
            key::CREATED_QUEUED,
            key::DEPARTING,
        ];
        queued.contains(&state)
            || state == key::ENTERED && self.has_queued_itself()
            || self.slot.word.is_scheduled()
    }

    /// Makes a block of the memory at `at`, in state CREATED.
    ///
    /// # Safety
    /// `at` is the control block's space of a slot that is the caller's own.
    #[inline]
    pub(super) unsafe fn init(at: NonNull<ControlBlock>, hot: Hot, rest: Rest) {
        let created = key::of(rest.generation) + key::CREATED;
        // SAFETY: the caller's promise; the key is a part of that space which is only ever
        // accessed atomically (I2).
        unsafe {
            (&raw mut (*at.as_ptr()).hot).write(hot);
            (&raw mut (*at.as_ptr()).rest).write(rest);
            (*at.as_ptr()).key.store(created, Ordering::Relaxed);
        }
    }

    /// How messages name a coroutine.
    pub(crate) fn describe(&self) -> String {
        let name = self.name.as_deref().unwrap_or("unnamed");
        describe(name, self.created_at, self.scheduled_at.get())
    }
}

/// Whether the slot's coroutine is of this generation, and parked or woken from there: no more than a
/// hint to another thread. Any thread (I2).
#[inline]
pub(crate) fn is_parked_as(slot: &Slot, generation: u32) -> bool {
    slot.word.generation() == generation && {
        // SAFETY: the space is the slot's; of this generation, it has had a coroutine.
        let key = unsafe { ControlBlock::key_at(slot.control_block().cast()) };
        key == key::of(generation) + key::PARKED
    }
}

/// How messages name a coroutine.
pub(super) fn describe(
    name: &str,
    created_at: &Location<'_>,
    scheduled_at: Option<&Location<'_>>,
) -> String {
    let mut text = format!("coroutine `{name}` (created at {created_at}");
    if let Some(at) = scheduled_at {
        text.push_str(&format!(", last scheduled at {at}"));
    }
    text.push(')');
    text
}
