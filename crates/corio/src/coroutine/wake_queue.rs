//! The wake queue: slots linked through themselves, first in, first out (SPEC C4).
//!
//! Invariants
//! - I1 A slot is in one list at most: it is put there by who has won its wake (stack::word I2), by
//!   the home thread if no waker queues it (stack::word I6), or by itself, as it departs.
//! - I2 A queue is of one thread, and so are the homes of all that is in it.

use core::cell::Cell;

use crate::stack::Slot;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct WakeQueue {
    first: Cell<Option<&'static Slot>>,
    last: Cell<Option<&'static Slot>>,
}

impl WakeQueue {
    pub(crate) const fn new() -> Self {
        Self {
            first: Cell::new(None),
            last: Cell::new(None),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.get().is_none()
    }

    /// Adds at the end.
    pub(crate) fn push(&self, slot: &'static Slot) {
        slot.set_next(None);
        match self.last.replace(Some(slot)) {
            Some(last) => last.set_next(Some(slot)),
            None => self.first.set(Some(slot)),
        }
    }

    /// Adds at the front.
    pub(crate) fn push_front(&self, slot: &'static Slot) {
        let first = self.first.replace(Some(slot));
        slot.set_next(first);
        if first.is_none() {
            self.last.set(Some(slot));
        }
    }

    /// Takes the oldest.
    pub(crate) fn pop(&self) -> Option<&'static Slot> {
        let slot = self.first.get()?;
        let next = slot.next();
        self.first.set(next);
        if next.is_none() {
            self.last.set(None);
        }
        Some(slot)
    }

    /// Moves all of `other` before what is here: depth first.
    pub(crate) fn prepend(&self, other: &WakeQueue) {
        let Some(other_last) = other.last.take() else {
            return;
        };
        let first = self.first.replace(other.first.take());
        other_last.set_next(first);
        if first.is_none() {
            self.last.set(Some(other_last));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::stack;

    // SPEC C4
    #[test]
    fn what_a_woken_one_queues_goes_before_its_later_siblings() {
        let slots: Vec<_> = (0..4)
            .map(|_| stack::acquire(crate::tls::thread(), stack::SIZE_DEFAULT).unwrap())
            .collect();
        let (pending, woken) = (WakeQueue::new(), WakeQueue::new());
        pending.push(slots[0]);
        pending.push(slots[1]);
        woken.push(slots[2]);
        woken.push(slots[3]);
        pending.prepend(&woken);
        assert!(woken.is_empty());
        let order: Vec<_> = std::iter::from_fn(|| pending.pop())
            .map(Slot::index)
            .collect();
        let expected: Vec<_> = [2, 3, 0, 1].map(|i: usize| slots[i].index()).to_vec();
        assert_eq!(order, expected);
        for slot in slots {
            // SAFETY: nothing uses the slot.
            #[allow(unsafe_code)]
            unsafe {
                stack::release(crate::tls::thread(), slot, 1);
            }
        }
        stack::flush_local();
    }
}
