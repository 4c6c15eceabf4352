//! The control block: what the runtime knows of one coroutine, kept at the top of the coroutine's
//! own stack.
//!
//! ```text
//!              create            enter                end
//!     (free) ---------> Created -------> Entered ------------> (free, generation + 1)
//!                                  ^        |
//!                            enter |        | suspend, park
//!                                  +- Suspended
//! ```
//!
//! Invariants
//! - I1 A block is initialised whole when its coroutine is made and is not touched after the
//!   coroutine has ended.
//! - I2 Only the home thread touches a block. What other threads may know of a coroutine is its
//!   slot (its word, its inbox).
//! - I3 `machine` is borrowed mutably only by `switch_into` and `discard`, which run only while the
//!   coroutine is not Entered.
//! - I4 While Entered, `caller` is the coroutine that entered it (or null) and is not freed before
//!   control returns to it.

use core::cell::{Cell, UnsafeCell};
use core::mem::ManuallyDrop;
use core::panic::Location;
use core::ptr::NonNull;
use std::any::Any;

use corosensei::Yielder;

use super::home::{Home, Unfinished};
use super::wake_queue::WakeQueue;
use crate::stack::{CONTROL_SIZE, Slot, SlotStack};
use crate::tls::ThreadState;

/// The switching machine: nothing goes in or out but control itself.
pub(super) type Machine = corosensei::Coroutine<(), (), (), SlotStack>;

/// Where a coroutine is in its life. Those that may be entered come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// See the module's documentation.
pub(crate) struct ControlBlock {
    pub(super) machine: UnsafeCell<ManuallyDrop<Machine>>,
    pub(super) yielder: Cell<*const Yielder<(), ()>>,
    pub(super) caller: Cell<*const ControlBlock>,
    pub(super) phase: Cell<Phase>,
    pub(super) cancel: Cell<Cancel>,
    /// Cancellation is not raised while this is above 0.
    pub(super) cancel_masks: Cell<u32>,
    /// Coroutine locks that it holds (SPEC C3).
    pub(super) locks_held: Cell<u32>,
    pub(super) generation: u32,
    /// The home thread's state (I2).
    pub(super) thread: &'static ThreadState,
    pub(super) slot: &'static Slot,
    pub(super) home: *const Home,
    /// Links of the home's list of the living.
    pub(super) newer: Cell<*const ControlBlock>,
    pub(super) older: Cell<*const ControlBlock>,
    /// Coroutines that it has woken and that run once it yields or ends.
    pub(super) woken: WakeQueue,
    /// What its body panicked with, on its way to whoever entered it.
    pub(super) panic: Cell<Option<Box<dyn Any + Send>>>,
    /// Who is to be told if it never ends. Owns nothing, so that an end need not look at it.
    pub(super) unfinished: Cell<Option<NonNull<dyn Unfinished>>>,
    /// Instruction, stack and frame pointer at its last suspension, for backtraces.
    pub(super) saved: Cell<[usize; 3]>,
    pub(super) name: Option<Box<str>>,
    pub(super) created_at: &'static Location<'static>,
    pub(super) scheduled_at: Cell<Option<&'static Location<'static>>>,
}

const _: () = assert!(size_of::<ControlBlock>() <= CONTROL_SIZE);
const _: () = assert!(align_of::<ControlBlock>() <= 64);
const _: () = assert!(CONTROL_SIZE.is_multiple_of(64));

impl ControlBlock {
    /// How messages name a coroutine.
    pub(crate) fn describe(&self) -> String {
        let name = self.name.as_deref().unwrap_or("unnamed");
        let mut text = format!("coroutine `{name}` (created at {}", self.created_at);
        if let Some(at) = self.scheduled_at.get() {
            text.push_str(&format!(", last scheduled at {at}"));
        }
        text.push(')');
        text
    }
}
