//! What waits have found ready and no turn has run yet, in the order found. Home thread.
//!
//! A nested poll runs what the outer turn has not come to; what a callback's panic leaves is the
//! next turn's.
//!
//! Invariant
//! - I1 `next` is below the number of `events`, or both are 0.

use core::cell::{Cell, RefCell};

use super::handler::POLLED;

/// How many there is room for from the beginning, so that a home's first events do not allocate.
const ROOM: usize = 16;

/// See the module's documentation.
pub(super) struct Ready {
    /// Tokens of handlers, and what has happened in poll(2)'s bits; those before `next` are taken.
    events: RefCell<Vec<(u64, u32)>>,
    next: Cell<usize>,
}

impl Ready {
    pub(super) fn new() -> Self {
        Self {
            events: RefCell::new(Vec::with_capacity(ROOM)),
            next: Cell::new(0),
        }
    }

    #[inline]
    pub(super) fn note(&self, token: u64, revents: u32) {
        self.events.borrow_mut().push((token, revents));
    }

    /// Notes what polling has found. It is heard before what a wait has found of the same, whose
    /// call may drain both.
    pub(super) fn note_polled(&self, token: u64) {
        let mut events = self.events.borrow_mut();
        let mut left = events.iter_mut().skip(self.next.get());
        match left.find(|(of, _)| *of == token) {
            Some((_, revents)) => *revents |= POLLED,
            None => events.push((token, POLLED)),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.events.borrow().is_empty() // I1
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.events.borrow().len() - self.next.get()
    }

    /// Takes the oldest out.
    #[inline]
    pub(super) fn pop(&self) -> Option<(u64, u32)> {
        let mut events = self.events.borrow_mut();
        let next = self.next.get();
        let event = *events.get(next)?;
        if next + 1 == events.len() {
            events.clear();
            self.next.set(0);
        } else {
            self.next.set(next + 1);
        }
        Some(event)
    }

    /// The tokens of all but the first `left`.
    pub(super) fn tokens_from<C: FromIterator<u64>>(&self, left: usize) -> C {
        let events = self.events.borrow();
        let newer = events.iter().skip(self.next.get() + left);
        newer.map(|(token, _)| *token).collect()
    }

    /// Takes all out.
    pub(super) fn take(&self) -> Vec<(u64, u32)> {
        let mut events = self.events.take();
        events.drain(..self.next.take());
        events
    }

    /// Puts those back that were taken out before a wait, which has found some of them again. Each
    /// is called once: the call may drain what both saw.
    pub(super) fn merge_into(&self, mut events: Vec<(u64, u32)>) {
        let left = events.len();
        for (token, revents) in self.take() {
            let mut before = events.iter_mut().take(left);
            // What polling has found is another callback's.
            match before.find(|(of, before)| *of == token && *before & POLLED == 0) {
                Some((_, before)) => *before |= revents,
                None => events.push((token, revents)),
            }
        }
        self.events.replace(events);
    }
}
