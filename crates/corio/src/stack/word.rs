//! The slot word: one atomic that holds a stack slot's generation and its coroutine's wake state.
//!
//! ```text
//!            wake: set NOTIFIED             park: consume, go on
//!   RUNNING ------------------> NOTIFIED ---------------------> RUNNING
//!      |                                                           ^
//!      | park                                                      | claim (the home thread, about to enter)
//!      v        wake: whoever wins queues it                       |
//!   PARKED ---------------------------------> SCHEDULED -----------+
//! ```
//!
//! Invariants
//! - I1 The high 32 bits are the generation. They change only when the slot's coroutine ends, by the home thread.
//!   A token of an older generation therefore never changes a word again.
//! - I2 Exactly one wake wins PARKED -> SCHEDULED, and the winner queues the slot exactly once.
//! - I3 Every transition is a read-modify-write, so that a waker that finds SCHEDULED or NOTIFIED and does nothing is
//!   ordered before the claim or the park that follows, which then sees what the waker published.
//! - I4 RUNNING also stands for a coroutine that is suspended without being parked, and for a free slot: neither may
//!   be queued.

use crate::atomic::{AtomicU64, Ordering};

const STATE_BITS: u32 = 32;
const RUNNING: u64 = 0;
const NOTIFIED: u64 = 1;
const PARKED: u64 = 2;
const SCHEDULED: u64 = 3;

/// What a wake must do next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The waker won: it must queue the slot.
    Queue,
    /// Nothing: it runs, is queued already, or is another coroutine by now.
    Nothing,
}

/// What a coroutine that wants to park must do next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Park {
    /// Suspend: only a wake, or the home thread, gets it going again.
    Suspend,
    /// A wake came first and has been consumed: look at the condition again.
    Notified,
}

/// The word. See the module's documentation.
#[derive(Debug)]
pub(crate) struct SlotWord(AtomicU64);

impl SlotWord {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(pack(1, RUNNING)))
    }

    /// The generation that a coroutine made now in this slot has. Home thread only.
    pub(crate) fn generation(&self) -> u32 {
        u32::try_from(self.0.load(Ordering::Relaxed) >> STATE_BITS).unwrap_or(0)
    }

    /// A wake with a token of `generation`. Any thread.
    pub(crate) fn wake(&self, generation: u32) -> Wake {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen >> STATE_BITS != u64::from(generation) {
                return Wake::Nothing;
            }
            let state = seen & (1 << STATE_BITS) - 1;
            let next = match state {
                RUNNING => NOTIFIED,
                PARKED => SCHEDULED,
                other => other, // Written all the same: I3.
            };
            // AcqRel: releases what the waker published to the claim or park that reads this; acquires PARKED's
            // publication, so that the winner may read the slot's inbox.
            match self.0.compare_exchange_weak(
                seen,
                pack(generation, next),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) if state == PARKED => return Wake::Queue,
                Ok(_) => return Wake::Nothing,
                Err(now) => seen = now,
            }
        }
    }

    /// The running coroutine is about to park. Its own thread.
    pub(crate) fn park(&self, generation: u32) -> Park {
        // AcqRel: pairs with `wake` both ways.
        match self.0.compare_exchange(
            pack(generation, RUNNING),
            pack(generation, PARKED),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Park::Suspend,
            // Scheduled by its own thread before it yielded (S1): it is in the queue and will be entered.
            Err(seen) if seen & 3 == SCHEDULED => Park::Suspend,
            Err(_) => {
                let _ = self.0.swap(pack(generation, RUNNING), Ordering::AcqRel);
                Park::Notified
            }
        }
    }

    /// The home thread is about to enter a coroutine that it took from the queue.
    pub(crate) fn claim(&self, generation: u32) {
        // AcqRel: pairs with `wake`, I3.
        let seen = self.0.swap(pack(generation, RUNNING), Ordering::AcqRel);
        debug_assert_eq!(seen, pack(generation, SCHEDULED), "claimed a coroutine that was not scheduled");
    }

    /// The home thread wants to enter a parked coroutine without a queue (to cancel it, or for `aio_co_wake`). False:
    /// it is not parked; if it is scheduled it will come out of the queue.
    pub(crate) fn claim_parked(&self, generation: u32) -> bool {
        self.0
            .compare_exchange(
                pack(generation, PARKED),
                pack(generation, RUNNING),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Puts a coroutine that is suspended, or that runs and will yield, on the queue by name (`aio_co_schedule`).
    /// Err: it is scheduled already. Home thread.
    pub(crate) fn schedule(&self, generation: u32) -> Result<(), ()> {
        let seen = self.0.swap(pack(generation, SCHEDULED), Ordering::AcqRel);
        if seen & 3 == SCHEDULED { Err(()) } else { Ok(()) }
    }

    /// True if the slot is of this generation and in state RUNNING.
    #[inline]
    pub(crate) fn is_plainly_running(&self, generation: u32) -> bool {
        self.0.load(Ordering::Relaxed) == pack(generation, RUNNING)
    }

    /// True if it is neither parked nor scheduled, so that it may be entered by hand.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 3 < PARKED
    }

    /// True if it is queued.
    pub(crate) fn is_scheduled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 3 == SCHEDULED
    }

    /// True if it waits in `park`.
    pub(crate) fn is_parked(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 3 == PARKED
    }

    /// The slot's coroutine has ended: every token of it is stale from here on. False: the generation is used up, and
    /// the slot must never be given out again.
    #[must_use]
    pub(crate) fn retire(&self, generation: u32) -> bool {
        // A plain store: a wake that its compare-exchange puts before it is overwritten, one after it fails (I1).
        // Release: pairs with `wake`'s load only to keep the old coroutine's accesses before it.
        match generation.checked_add(1) {
            Some(next) => {
                self.0.store(pack(next, RUNNING), Ordering::Release);
                true
            }
            None => {
                self.0.store(pack(0, RUNNING), Ordering::Release);
                false
            }
        }
    }
}

#[inline]
fn pack(generation: u32, state: u64) -> u64 {
    u64::from(generation) << STATE_BITS | state
}
