//! The queue without stacks: a list behind a short lock.
//!
//! Being woken is a grant: a waiter that is cancelled after it was woken has used up a wake that
//! was meant for somebody who goes on, and passes it to the next. Unless all were woken: then each
//! got its own, and whoever is in line now came later.
//!
//! Invariants, whenever the lock is free
//! - I1. A record is in the list, or granted, or withdrawn. What was granted as a turn is used by a
//!   waiter that goes on, or passed to the next in line.
//! - I2. Who wakes all grants those, and only those, that are in line at that moment.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use smallvec::SmallVec;

use crate::sync::record::{Grant, Line, List, Record, Short, Wake, grant_as};

/// Where a waiter is put.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use corio::sync::{Place, Queue};
/// let io = corio::IoThread::builder().spawn()?;
/// let (line, order) = (Arc::new(Queue::new()), Arc::new(Mutex::new(Vec::new())));
/// let waiters = [("first", Place::Back), ("urgent", Place::Front)].map(|(name, place)| {
///     let (line, order) = (Arc::clone(&line), Arc::clone(&order));
///     io.context().spawn(move || {
///         line.wait_after(place, || ());
///         order.lock().unwrap().push(name);
///     })
/// });
/// let waker = Arc::clone(&line); // Spawned last, it runs last: both are in line by then.
/// io.context().spawn(move || waker.wake_all()).join().unwrap();
/// waiters.map(|waiter| waiter.join().unwrap());
/// assert_eq!(*order.lock().unwrap(), ["urgent", "first"]);
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Behind all that wait.
    #[default]
    Back,
    /// Before all that wait: it is woken next.
    #[doc(alias = "CO_QUEUE_WAIT_FRONT")]
    Front,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State<W> {
    waiting: Short<List<W>>,
}

impl<W: Wake> State<W> {
    pub(super) fn new() -> State<W> {
        State {
            waiting: Short::new(List::new()),
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Queues the record; the next wake that is its turn grants it.
    ///
    /// # Safety
    /// The record is new, and stays as record.rs I1 says.
    pub(super) unsafe fn queue(&self, record: &Record<W>, place: Place) {
        let waiting = self.waiting.lock();
        // SAFETY: the list is under its lock; the caller keeps the record alive.
        unsafe {
            match place {
                Place::Back => waiting.push_newest(record),
                Place::Front => waiting.push_oldest(record),
            }
        }
    }

    /// Wakes the oldest. False if nobody waits.
    pub(super) fn wake_one(&self) -> bool {
        let waiting = self.waiting.lock();
        wake_oldest(&waiting, Grant::Turn)
    }

    /// Grants the oldest, whom the caller wakes.
    pub(super) fn take_one(&self) -> Option<W> {
        take_oldest(&self.waiting.lock(), Grant::Turn)
    }

    /// Grants all that wait now, oldest first, whom the caller wakes.
    pub(super) fn take_all(&self) -> SmallVec<[W; 8]> {
        let waiting = self.waiting.lock();
        core::iter::from_fn(|| take_oldest(&waiting, Grant::Own)).collect()
    }

    /// Wakes all that wait now, oldest first, and says how many they were.
    pub(super) fn wake_all(&self) -> usize {
        let waiting = self.waiting.lock();
        core::iter::repeat_with(|| wake_oldest(&waiting, Grant::Own))
            .take_while(|&woken| woken)
            .count()
    }
}

impl<W: Wake> Line<W> for State<W> {
    /// Takes the record out or, if it was its turn already, wakes the next one in its place.
    unsafe fn abandon(&self, record: &Record<W>) {
        let waiting = self.waiting.lock();
        match record.granted() {
            // SAFETY: the list is under its lock; not granted, so in it.
            None => unsafe { waiting.unlink(record) },
            Some(Grant::Turn) if planted!("queue_wake_dropped") => {}
            Some(Grant::Own) if !planted!("queue_wake_multiplied") => {}
            Some(_) => {
                wake_oldest(&waiting, Grant::Turn);
            }
        }
    }
}

/// Under the list's lock.
fn wake_oldest<W: Wake>(waiting: &List<W>, grant: Grant) -> bool {
    take_oldest(waiting, grant).map(W::wake).is_some()
}

/// Under the list's lock.
fn take_oldest<W: Wake>(waiting: &List<W>, grant: Grant) -> Option<W> {
    // SAFETY: the list is under its lock, as `waiting` is borrowed from its guard.
    let oldest = unsafe { waiting.pop_oldest() }?;
    // SAFETY: just taken out.
    Some(unsafe { grant_as(oldest, grant) })
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use crate::sync::record::LoomWaker;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    /// SPEC L3, L7, C12. Planted bug: `queue_wake_dropped`.
    #[test]
    fn loom_cancelled_waiter_passes_its_wake_on() {
        model::check(None, || {
            let queue = Arc::new(State::<LoomWaker>::new());
            let cancelled = LoomWaker::record(1);
            let waiter = LoomWaker::record(1);
            // SAFETY: abandoned, and waited for, below.
            unsafe {
                queue.queue(&cancelled, Place::Back);
                queue.queue(&waiter, Place::Back);
            }
            let waking = {
                let queue = Arc::clone(&queue);
                loom::thread::spawn(move || assert!(queue.wake_one()))
            };
            // SAFETY: queued above.
            unsafe { queue.abandon(&cancelled) };
            // One wake, and one waiter that goes on: it has to reach it.
            LoomWaker::wait(&waiter);
            waking.join().unwrap();
            assert!(queue.is_empty());
        });
    }

    /// SPEC L3, L7, C12. Planted bug: `queue_wake_multiplied`.
    #[test]
    fn loom_waking_all_wakes_nobody_that_comes_later() {
        model::check(None, || {
            let queue = Arc::new(State::<LoomWaker>::new());
            let cancelled = LoomWaker::record(1);
            // SAFETY: abandoned below.
            unsafe { queue.queue(&cancelled, Place::Back) };
            let cancelling = {
                let queue = Arc::clone(&queue);
                loom::thread::spawn(move || {
                    // SAFETY: queued above.
                    unsafe { queue.abandon(&cancelled) };
                })
            };
            queue.wake_all();
            let later = LoomWaker::record(1);
            // SAFETY: abandoned below.
            unsafe { queue.queue(&later, Place::Back) };
            cancelling.join().unwrap();
            assert!(!later.is_granted());
            // SAFETY: queued above.
            unsafe { queue.abandon(&later) };
        });
    }

    /// SPEC L3, L7.
    #[test]
    fn loom_all_that_wait_are_woken() {
        model::check(None, || {
            let queue = Arc::new(State::<LoomWaker>::new());
            let records = [(); 2].map(|()| LoomWaker::record(1));
            for record in &records {
                // SAFETY: waited for below.
                unsafe { queue.queue(record, Place::Back) };
            }
            let waking = {
                let queue = Arc::clone(&queue);
                loom::thread::spawn(move || usize::from(queue.wake_one()))
            };
            let woken = queue.wake_all();
            for record in &records {
                LoomWaker::wait(record);
            }
            assert_eq!(woken + waking.join().unwrap(), 2);
        });
    }
}
