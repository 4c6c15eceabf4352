//! What a bottom half has in the list that it is scheduled on: pushed from any thread and from
//! signal handlers, drained at home.
//!
//! Invariants
//! - I1 A node is in the list, or in the home's run queue, exactly while PENDING is set; the list
//!   owns a reference to it.
//! - I2 Only the winner of "PENDING was clear" pushes, so that `next` has one writer.
//! - I3 The drain clears PENDING before the callback's work begins, so that a schedule meanwhile
//!   queues it again.

use core::ptr;

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};

/// It is in the list (I1).
pub(super) const PENDING: u32 = 1;
/// It shall run.
pub(super) const SCHEDULED: u32 = 2;
/// It has no hurry and makes no progress.
pub(super) const IDLE: u32 = 4;
/// It shall never run again.
pub(super) const DELETED: u32 = 8;

/// What a node embeds.
#[derive(Debug)]
pub(super) struct Link<T> {
    flags: AtomicU32,
    next: AtomicPtr<T>,
}

impl<T> Link<T> {
    pub(super) fn new() -> Self {
        Self {
            flags: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Adds flags; true if the caller must push (I2). What is scheduled already does not become
    /// idle.
    #[must_use]
    pub(super) fn mark(&self, add: u32, remove: u32) -> bool {
        let mut seen = self.flags.load(Ordering::Relaxed);
        loop {
            // A schedule of what is deleted does nothing.
            if seen & DELETED != 0 || add & IDLE != 0 && seen & SCHEDULED != 0 {
                return false;
            }
            let next = seen & !remove | add | PENDING;
            // AcqRel: releases what the scheduler wrote to the drain's take; acquires for the
            // winner's push.
            match self
                .flags
                .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return seen & PENDING == 0,
                Err(now) => seen = now,
            }
        }
    }

    /// Clears flags without queueing.
    pub(super) fn clear(&self, flags: u32) {
        self.flags.fetch_and(!flags, Ordering::AcqRel);
    }

    /// Sets DELETED: a node that is pending falls out at the next drain.
    pub(super) fn delete(&self) {
        self.flags.fetch_or(DELETED, Ordering::AcqRel);
    }

    /// Home thread, taking the node off the list: what was asked (I3). Acquire pairs with `mark`.
    pub(super) fn take(&self) -> u32 {
        self.flags
            .fetch_and(!(PENDING | SCHEDULED | IDLE), Ordering::AcqRel)
    }

    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// The list's.
    pub(super) fn next(&self) -> &AtomicPtr<T> {
        &self.next
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::context::list::{Linked, List};
    use crate::model;
    use std::sync::Arc;

    struct Node(Link<Node>);
    impl Linked for Node {
        fn next(&self) -> &AtomicPtr<Node> {
            self.0.next()
        }
    }

    fn schedule(list: &List<Node>, node: &Arc<Node>) {
        if node.0.mark(SCHEDULED, 0) {
            list.push(Arc::clone(node));
        }
    }

    // SPEC L7, B2: scheduled from two threads, drained meanwhile: it runs at least once after the
    // last schedule.
    #[test]
    fn loom_bottom_half_is_never_lost() {
        model::check(None, || {
            let list = Arc::new(List::<Node>::new());
            let node = Arc::new(Node(Link::new()));
            let other = {
                let (list, node) = (Arc::clone(&list), Arc::clone(&node));
                loom::thread::spawn(move || schedule(&list, &node))
            };
            schedule(&list, &node);
            let mut runs = 0;
            list.drain(|_| runs += u32::from(node.0.take() & SCHEDULED != 0));
            other.join().unwrap();
            list.drain(|_| runs += u32::from(node.0.take() & SCHEDULED != 0));
            assert!((1..=2).contains(&runs));
            assert_eq!(node.0.flags(), 0);
            assert!(list.is_empty());
        });
    }
}
