//! The coroutine that took a lock: for the count of locks that it holds (SPEC C3), and to tell one
//! that would wait for itself.

use crate::coroutine;
use crate::stack::Slot;

/// The coroutine that took a lock, as its own thread names it.
pub(super) struct Holder {
    slot: &'static Slot,
    generation: u32,
}

impl Holder {
    /// The running coroutine; None outside any.
    #[inline]
    pub(super) fn current() -> Option<Holder> {
        coroutine::current().map(|co| Holder {
            slot: co.slot(),
            generation: co.generation(),
        })
    }

    /// The coroutine's number; not 0.
    #[inline]
    pub(super) fn id(&self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot.index())
    }

    /// Counts the lock for the coroutine, if it lives still: a guard may outlive it in another one.
    #[inline]
    pub(super) fn count_lock(&self, taken: bool) {
        if self.slot.word.generation() == self.generation {
            coroutine::of_slot(self.slot).count_lock(taken);
        }
    }
}
