//! The inbox: coroutines that are to be entered in a context's home thread, first scheduled, first run (SPEC S1).
//!
//! Pushed from any thread without a lock, newest first; one bottom half takes the list as it stands, turns it round and
//! runs it (S2).
//!
//! Invariants
//! - I1 A slot is pushed once for each wake that was won (stack::word I2), so `Slot::next` has one writer.
//! - I2 Whoever turns the list from empty to not empty schedules the bottom half.

#![allow(unsafe_code)] // The list's links.

use core::ptr;
use std::sync::{Arc, Weak};

use crate::atomic::{AtomicPtr, Ordering};
use crate::context::{AioContext, BottomHalf};
use crate::coroutine::{self, WakeQueue};
use crate::stack::Slot;

/// The lock-free list by itself, as loom runs it.
#[derive(Debug)]
struct Pushed {
    newest: AtomicPtr<Slot>,
}

impl Pushed {
    fn new() -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()) }
    }

    /// True if the list was empty (I2).
    fn push(&self, slot: &'static Slot) -> bool {
        let raw = ptr::from_ref(slot).cast_mut();
        let mut seen = self.newest.load(Ordering::Relaxed);
        loop {
            slot.next.store(seen, Ordering::Relaxed);
            // Release: publishes `next`, and what the waker did before; pairs with `take`.
            match self.newest.compare_exchange_weak(seen, raw, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return seen.is_null(),
                Err(now) => seen = now,
            }
        }
    }

    /// Everything, oldest first.
    fn take(&self) -> WakeQueue {
        let queue = WakeQueue::new();
        let mut at = self.newest.swap(ptr::null_mut(), Ordering::Acquire).cast_const();
        // SAFETY: the list holds slots, which live for ever.
        while let Some(slot) = unsafe { at.as_ref() } {
            at = slot.next.load(Ordering::Relaxed);
            queue.push_front(slot);
        }
        queue
    }
}

/// See the module's documentation.
pub(crate) struct Inbox {
    pushed: Pushed,
    drain: BottomHalf,
}

impl Inbox {
    pub(super) fn new(context: &AioContext) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = Weak::clone(this);
            let drain = context.bottom_half("schedule", move || {
                if let Some(this) = this.upgrade() {
                    coroutine::run_queue(&this.pushed.take(), None);
                }
            });
            Self { pushed: Pushed::new(), drain }
        })
    }

    /// Queues a slot whose wake has been won. Any thread.
    pub(super) fn push(&self, slot: &'static Slot) {
        if self.pushed.push(slot) {
            self.drain.schedule();
        }
    }

    /// Queues from another thread: the home may be gone as soon as the slot is in the list, so the inbox, and with it the
    /// context, is held until it has been notified (SPEC S6).
    pub(super) fn push_remote(inbox: *const (), slot: &'static Slot) {
        let inbox = inbox.cast::<Inbox>();
        // SAFETY: the pointer comes from Arc::as_ptr of the home's inbox. The caller has won the slot's wake and not pushed
        // yet, and a home does not end while one of its coroutines is scheduled and not entered, so it is alive here.
        let inbox = unsafe {
            Arc::increment_strong_count(inbox);
            Arc::from_raw(inbox)
        };
        inbox.push(slot);
    }
}
