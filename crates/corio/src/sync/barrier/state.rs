//! The barrier without stacks: a list of those who have come, behind a short lock.
//!
//! Invariants, whenever the lock is free
//! - I1. The list holds `arrived` records, fewer than `count`: who comes as the last takes them all
//!   out in one go, so that the next round begins with an empty list, whether those of this one
//!   have gone on yet or not.
//! - I2. A record is in the list, or granted, or withdrawn. A withdrawn one does not count; a
//!   granted one is owed to nobody, as all of its round have been granted with it.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use crate::sync::record::{Grant, Line, List, Record, Short, Wake, grant_as};

/// See the module.
#[derive(Debug)]
pub(super) struct State<W> {
    count: usize,
    waiting: Short<Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    arrived: usize,
    list: List<W>,
}

impl<W: Wake> State<W> {
    /// For `count`, at least 1.
    pub(super) fn new(count: usize) -> State<W> {
        State {
            count,
            waiting: Short::new(Waiting {
                arrived: 0,
                list: List::new(),
            }),
        }
    }

    /// Lets all go, if the caller is the last to come (true); else queues the record (false), which
    /// will be granted by the last.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn arrive_or_queue(&self, record: &Record<W>) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.arrived + 1 < self.count {
            waiting.arrived += 1;
            // SAFETY: the list is under its lock; the caller keeps the record alive.
            unsafe { waiting.list.push_newest(record) };
            return false;
        }
        waiting.arrived = 0;
        // SAFETY: the list is under its lock.
        while let Some(oldest) = unsafe { waiting.list.pop_oldest() } {
            // SAFETY: just taken out.
            unsafe { grant_as(oldest, Grant::Own) }.wake();
        }
        true
    }
}

impl<W: Wake> Line<W> for State<W> {
    /// Takes the record out, if it has not been granted: then its waiter has not come.
    unsafe fn abandon(&self, record: &Record<W>) {
        let mut waiting = self.waiting.lock();
        if !record.is_granted() {
            if !planted!("barrier_cancelled_counts") {
                waiting.arrived -= 1;
            }
            // SAFETY: the list is under its lock; not granted, so in it (I2).
            unsafe { waiting.list.unlink(record) };
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use crate::sync::record::LoomWaker;
    use loom::cell::UnsafeCell;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    type LoomState = State<LoomWaker>;

    fn pass(barrier: &LoomState) -> bool {
        let record = LoomWaker::record(1);
        // SAFETY: waits until the record is granted.
        let leads = unsafe { barrier.arrive_or_queue(&record) };
        if !leads {
            LoomWaker::wait(&record);
        }
        leads
    }

    /// SPEC L5, L7: twice in a row, and each sees what the others did before.
    #[test]
    fn loom_all_pass_together_and_one_leads() {
        model::check(None, || {
            let shared = Arc::new((LoomState::new(2), [(); 2].map(|()| UnsafeCell::new(0))));
            let work = |shared: &(LoomState, [UnsafeCell<u32>; 2]), own: usize| {
                let (barrier, cells) = shared;
                // SAFETY: between two passings, a cell is its thread's own or is read only.
                cells[own].with_mut(|cell| unsafe { *cell = 1 });
                let first = pass(barrier);
                // SAFETY: as above.
                cells[1 - own].with(|cell| assert_eq!(unsafe { *cell }, 1));
                let second = pass(barrier);
                // SAFETY: as above.
                cells[own].with_mut(|cell| unsafe { *cell = 2 });
                [first, second]
            };
            let other = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || work(&shared, 1))
            };
            let ours = work(&shared, 0);
            assert_eq!(ours.map(|leads| !leads), other.join().unwrap());
        });
    }

    /// SPEC L5, L7, C12. Planted bug: `barrier_cancelled_counts`.
    #[test]
    fn loom_cancelled_waiter_has_not_come() {
        model::check(3, || {
            let barrier = Arc::new(LoomState::new(2));
            let cancelled = {
                let barrier = Arc::clone(&barrier);
                loom::thread::spawn(move || {
                    let record = LoomWaker::record(1);
                    // SAFETY: abandoned below if it is queued.
                    let leads = unsafe { barrier.arrive_or_queue(&record) };
                    if !leads {
                        // SAFETY: queued above.
                        unsafe { barrier.abandon(&record) };
                    }
                    leads || record.is_granted()
                })
            };
            let waiter = {
                let barrier = Arc::clone(&barrier);
                loom::thread::spawn(move || pass(&barrier))
            };
            // The one that waits passes with the cancelled one, or with us.
            if !cancelled.join().unwrap() {
                let leads = pass(&barrier);
                assert_ne!(leads, waiter.join().unwrap());
            } else {
                waiter.join().unwrap();
            }
        });
    }
}
