//! The channel without stacks: a ring of messages, and who waits for one or for a place.
//!
//! ```text
//!   send ──▶ a place is free? ──yes──▶ the receiver waits? ──yes──▶ into its record, granted
//!                 │                          └──no──▶ into the ring
//!                 └──no──▶ record in line, with its message ──place──▶ into the ring, granted
//!
//!   receive ──▶ oldest of the ring, and its place to the oldest in line
//!                 └──none──▶ record, granted with a message in it, or because nobody sends any more
//! ```
//!
//! Whoever is granted need not come back for it: the message has changed hands already. So a
//! message costs one locked instruction on either side, besides parking and waking.
//!
//! A record is granted as `Turn` with what its waiter waited for, and as `Own` when the other side
//! has gone.
//!
//! Invariants
//! - I1. All but `capacity` is touched under the short lock. Nothing is woken, allocated or dropped
//!   of the user's under it.
//! - I2. A place is a message in the ring or a reservation; at most `capacity` are taken, and one
//!   more by a message that a cancelled receiver has put back: one at a time, as there is one
//!   receiver. The ring is made for that many.
//! - I3. Somebody is in line only while no place is free, whenever the lock is free.
//! - I4. The receiver waits only while the ring is empty and there are senders, whenever the lock
//!   is free.
//! - I5. A record's parcel belongs to its waiter before it is queued and after it is granted or
//!   withdrawn, and in between to who has the lock.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ptr;
use std::collections::VecDeque;

use crate::sync::record::{Grant, List, Record, Wake, grant_as};
use crate::sync::spin::{Hint, Spin};

/// What a record carries.
#[derive(Debug)]
pub(super) struct Parcel<T> {
    /// The waiter wants a place of its own, for later, and has no message.
    reserves: bool,
    message: UnsafeCell<Option<T>>,
}

/// The record of who waits to send, to reserve, or to receive.
pub(super) type Waiting<W, T> = Record<W, Parcel<T>>;

/// A record for the receiver.
pub(super) fn receiving<W: Wake, T>(waker: W) -> Waiting<W, T> {
    Record::with_payload(waker, 1, Parcel::new(false, None))
}

/// A record for someone who sends the message.
pub(super) fn sending<W: Wake, T>(waker: W, message: T) -> Waiting<W, T> {
    Record::with_payload(waker, 1, Parcel::new(false, Some(message)))
}

/// A record for someone who wants a place.
pub(super) fn reserving<W: Wake, T>(waker: W) -> Waiting<W, T> {
    Record::with_payload(waker, 1, Parcel::new(true, None))
}

impl<T> Parcel<T> {
    fn new(reserves: bool, message: Option<T>) -> Parcel<T> {
        Parcel {
            reserves,
            message: UnsafeCell::new(message),
        }
    }

    /// What is in it.
    ///
    /// # Safety
    /// It is the caller's (I5).
    pub(super) unsafe fn take(&self) -> Option<T> {
        // SAFETY: the caller's alone (I5).
        unsafe { (*self.message.get()).take() }
    }

    /// # Safety
    /// As `take`.
    unsafe fn put(&self, message: T) {
        // SAFETY: as above. There is nothing in it that this drops: only a receiver's is filled,
        // once.
        unsafe { *self.message.get() = Some(message) };
    }
}

/// How an attempt went.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is done.
    Done,
    /// It has to wait; or, where a record was given, it is queued.
    Waits,
    /// The other side has gone.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State<W, T> {
    inner: Spin<Inner<W, T>>,
    capacity: usize,
}

#[derive(Debug)]
struct Inner<W, T> {
    ring: VecDeque<T>,
    reserved: usize,
    capacity: usize,
    senders: usize,
    receiver_gone: bool,
    /// The receiver's record while it waits, else null.
    receiver: *const Waiting<W, T>,
    /// Who waits for a place.
    line: List<W, Parcel<T>>,
}

// SAFETY: what the pointers lead to is touched under the lock only (I1, I5), and messages and
// wakers may change threads.
unsafe impl<W: Send + Sync, T: Send> Send for Inner<W, T> {}

impl<W, T> Hint for Inner<W, T> {
    #[inline]
    fn hint(&self) -> usize {
        self.ring.len()
    }
}

impl<W: Wake, T> Inner<W, T> {
    fn has_place(&self) -> bool {
        self.ring.len() + self.reserved < self.capacity
    }

    /// Passes a message on that has a place. Gives whom to wake; then its place is free again.
    #[inline]
    fn deliver(&mut self, message: T) -> Option<W> {
        // SAFETY: null or the waiting receiver's record, which is alive (record.rs I1).
        let Some(record) = (unsafe { self.receiver.as_ref() }) else {
            self.ring.push_back(message); // There is room: I2.
            return None;
        };
        self.receiver = ptr::null();
        // SAFETY: under the lock, not granted yet (I5); just taken out.
        unsafe {
            record.payload().put(message);
            Some(grant_as(record, Grant::Turn))
        }
    }

    /// Gives a free place to the oldest in line: whom to wake, which may be the receiver, too.
    #[inline]
    fn serve_one(&mut self) -> Option<(W, Option<W>)> {
        if !self.has_place() {
            return None;
        }
        // SAFETY: under the lock.
        let oldest = unsafe { self.line.pop_oldest() }?;
        // SAFETY: just taken out, so alive until it is granted; under the lock (I5).
        let message = unsafe {
            let parcel = (*oldest).payload();
            self.reserved += usize::from(parcel.reserves);
            parcel.take()
        };
        let receiver = message.and_then(|message| self.deliver(message));
        // SAFETY: just taken out.
        Some((unsafe { grant_as(oldest, Grant::Turn) }, receiver))
    }

    /// Sends what is in `message`, which is left there unless it is `Done`. And whom to wake.
    #[inline]
    fn offer(&mut self, message: &mut Option<T>) -> (Attempt, Option<W>) {
        if self.receiver_gone {
            return (Attempt::Closed, None);
        }
        if !self.has_place() {
            return (Attempt::Waits, None); // I3: with a place, nobody is in line.
        }
        let receiver = message.take().and_then(|message| self.deliver(message));
        (Attempt::Done, receiver)
    }

    fn reserve(&mut self) -> Attempt {
        if self.receiver_gone {
            return Attempt::Closed;
        }
        if !self.has_place() {
            return Attempt::Waits;
        }
        self.reserved += 1;
        Attempt::Done
    }

    /// The oldest message, and whom to wake as its place is free.
    #[inline]
    fn take(&mut self, into: &mut Option<T>) -> (Attempt, Option<W>) {
        *into = self.ring.pop_front();
        if into.is_some() {
            // One place, if any, became free, so that one has to be served; and the receiver does
            // not wait.
            return (Attempt::Done, self.serve_one().map(|(sender, _)| sender));
        }
        if self.senders == 0 {
            return (Attempt::Closed, None);
        }
        (Attempt::Waits, None)
    }
}

fn wake<W: Wake>(waker: Option<W>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<W: Wake, T> State<W, T> {
    /// With one sender and the receiver. `capacity` is at least 1.
    pub(super) fn new(capacity: usize) -> State<W, T> {
        State {
            inner: Spin::new(Inner {
                ring: VecDeque::with_capacity(capacity.saturating_add(1)),
                reserved: 0,
                capacity,
                senders: 1,
                receiver_gone: false,
                receiver: ptr::null(),
                line: List::new(),
            }),
            capacity,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many messages are in it. Only a hint.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.inner.hint()
    }

    /// Its number, for tracking.
    pub(super) fn number(&self) -> u64 {
        ptr::from_ref(self).addr() as u64
    }

    /// Sends what is in `message` if there is a place; else it is left there.
    #[inline]
    pub(super) fn try_send(&self, message: &mut Option<T>) -> Attempt {
        let (attempt, receiver) = self.inner.with(|inner| inner.offer(message));
        wake(receiver);
        attempt
    }

    /// Sends or reserves as the record says, or queues it (`Waits`). If `Closed`, the message is in
    /// the record.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    pub(super) unsafe fn place_or_queue(&self, record: &Waiting<W, T>) -> Attempt {
        let (attempt, receiver) = self.inner.with(|inner| {
            let (attempt, receiver) = if record.payload().reserves {
                (inner.reserve(), None)
            } else {
                // SAFETY: not queued yet, so the caller's (I5).
                inner.offer(unsafe { &mut *record.payload().message.get() })
            };
            if attempt == Attempt::Waits {
                // SAFETY: under the lock; the caller keeps the record alive.
                unsafe { inner.line.push_newest(record) };
            }
            (attempt, receiver)
        });
        wake(receiver);
        attempt
    }

    /// Takes a record out again; or gives the place back that it was granted. A message that was
    /// in a granted one is sent. The record may go then.
    ///
    /// # Safety
    /// The record was queued by `place_or_queue`, by the caller, and is not used any more.
    pub(super) unsafe fn abandon_place(&self, record: &Waiting<W, T>) {
        let given_back = self.inner.with(|inner| match record.granted() {
            None => {
                // SAFETY: under the lock; not granted, so in the line.
                unsafe { inner.line.unlink(record) };
                false
            }
            Some(grant) => grant == Grant::Turn && record.payload().reserves,
        });
        if given_back && !planted!("channel_place_dropped") {
            self.unreserve();
        }
    }

    /// Reserves a place if there is one.
    pub(super) fn try_reserve(&self) -> Attempt {
        self.inner.with(|inner| inner.reserve())
    }

    /// Gives a reserved place back, and to who waits for it.
    pub(super) fn unreserve(&self) {
        // In one go: else one that comes now takes the place from who is in line (I3).
        let served = self.inner.with(|inner| {
            inner.reserved -= 1;
            // A message that is sent now would stay for as long as there are senders.
            let (first, receiver) = (!inner.receiver_gone).then(|| inner.serve_one())??;
            // If it went to the receiver, its place is the next one's.
            let next = receiver.is_some().then(|| inner.serve_one()).flatten();
            Some((first, receiver, next.map(|(sender, _)| sender)))
        });
        if let Some((first, receiver, next)) = served {
            first.wake();
            wake(receiver);
            wake(next);
        }
    }

    /// Sends into a reserved place, which is used up. `Closed`: the message is left there.
    pub(super) fn send_reserved(&self, message: &mut Option<T>) -> Attempt {
        let (attempt, receiver, next) = self.inner.with(|inner| {
            inner.reserved -= 1;
            if inner.receiver_gone {
                return (Attempt::Closed, None, None);
            }
            // Not `offer`: the place is there, though one more may be taken than there are (I2).
            let receiver = message.take().and_then(|message| inner.deliver(message));
            // If it went to the receiver, the place was not needed.
            let next = receiver.is_some().then(|| inner.serve_one()).flatten();
            (Attempt::Done, receiver, next.map(|(sender, _)| sender))
        });
        wake(receiver);
        wake(next);
        attempt
    }

    /// Takes the oldest message. Only the receiver.
    #[inline]
    pub(super) fn try_receive(&self, into: &mut Option<T>) -> Attempt {
        let (attempt, sender) = self.inner.with(|inner| inner.take(into));
        wake(sender);
        attempt
    }

    /// As `try_receive`; if it has to wait, the record is queued.
    ///
    /// # Safety
    /// The record is new and its waiter the receiver; if queued, it stays as record.rs I1 says.
    #[inline]
    pub(super) unsafe fn receive_or_queue(
        &self,
        record: &Waiting<W, T>,
        into: &mut Option<T>,
    ) -> Attempt {
        let (attempt, sender) = self.inner.with(|inner| {
            let outcome = if planted!("channel_no_second_look") {
                (Attempt::Waits, None)
            } else {
                inner.take(into)
            };
            if outcome.0 == Attempt::Waits {
                inner.receiver = record;
            }
            outcome
        });
        wake(sender);
        attempt
    }

    /// Takes the receiver's record out again, and puts the message back that was in it already, as
    /// the oldest. The record may go then.
    ///
    /// # Safety
    /// The record was queued by `receive_or_queue`, by the caller, and is not used any more.
    pub(super) unsafe fn abandon_receive(&self, record: &Waiting<W, T>) {
        self.inner.with(|inner| {
            if !record.is_granted() {
                inner.receiver = ptr::null();
            // SAFETY: granted, so the caller's (I5).
            } else if let Some(message) = unsafe { record.payload().take() } {
                if planted!("channel_message_dropped") {
                    return;
                }
                inner.ring.push_front(message); // There is room: I2.
            }
        });
    }

    /// One sender more.
    pub(super) fn add_sender(&self) {
        self.inner.with(|inner| inner.senders += 1);
    }

    /// One sender less; the last one tells the receiver.
    pub(super) fn remove_sender(&self) {
        let receiver = self.inner.with(|inner| {
            inner.senders -= 1;
            if inner.senders != 0 || inner.receiver.is_null() {
                return None;
            }
            let record = core::mem::replace(&mut inner.receiver, ptr::null());
            if planted!("channel_end_untold") {
                return None;
            }
            // SAFETY: the waiting receiver's, just taken out.
            Some(unsafe { grant_as(record, Grant::Own) })
        });
        wake(receiver);
    }

    /// The receiver goes: all who wait to send are told, and what was not received is dropped.
    pub(super) fn close(&self) {
        let unreceived = self.inner.with(|inner| {
            inner.receiver_gone = true;
            core::mem::take(&mut inner.ring)
        });
        let next = |inner: &mut Inner<W, T>| {
            // SAFETY: under the lock; granted as soon as it is taken out.
            let oldest = unsafe { inner.line.pop_oldest() }?;
            // SAFETY: just taken out.
            Some(unsafe { grant_as(oldest, Grant::Own) })
        };
        while let Some(sender) = self.inner.with(next) {
            sender.wake();
        }
        drop(unreceived); // Users' destructors: last, and without the lock.
    }

    /// Whether the receiver has gone.
    pub(super) fn is_receiver_gone(&self) -> bool {
        self.inner.with(|inner| inner.receiver_gone)
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
