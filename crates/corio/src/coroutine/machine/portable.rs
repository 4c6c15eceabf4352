//! Switching stacks by corosensei.

#![allow(unsafe_code)] // SAFETY comments name the rules of the parent's documentation.

use core::cell::{Cell, UnsafeCell};
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

use corosensei::{CoroutineResult, Yielder};

use crate::stack::{Slot, SlotStack};
use crate::tls::ThreadState;

type Coroutine = corosensei::Coroutine<(), u64, (), SlotStack>;

/// See the parent's documentation for the rules.
pub(crate) struct Machine {
    /// Borrowed mutably by `resume` and `discard` only, while the coroutine does not run (M2).
    coroutine: UnsafeCell<ManuallyDrop<Coroutine>>,
    yielder: Cell<*const Yielder<(), u64>>,
}

impl Machine {
    /// What a resumer gets when the coroutine has ended.
    pub(crate) const ENDED: u64 = u64::MAX;

    /// A machine that runs `body` on the slot's stack when it is first resumed. It will be put at
    /// `at`.
    #[inline]
    pub(crate) fn new<F: FnOnce() + 'static>(
        at: NonNull<Machine>,
        slot: &'static Slot,
        body: F,
    ) -> Machine {
        let run = move |yielder: &Yielder<(), u64>, ()| {
            // SAFETY: the machine is in place (M1) while its coroutine runs.
            unsafe { at.as_ref() }.yielder.set(yielder);
            body();
        };
        let coroutine = Coroutine::with_stack(slot.stack(), run);
        Machine {
            coroutine: UnsafeCell::new(ManuallyDrop::new(coroutine)),
            yielder: Cell::new(ptr::null()),
        }
    }

    /// Runs the coroutine until it suspends or ends, with its address as `current` of `thread`,
    /// which is this one. Returns what [`suspend`](Self::suspend) was given, or
    /// [`ENDED`](Self::ENDED); and `self`.
    ///
    /// # Safety
    /// M1 and M2.
    #[inline(always)]
    pub(crate) unsafe fn resume(&self, thread: &ThreadState) -> (u64, NonNull<Machine>) {
        let outer = thread.current.replace(ptr::from_ref(self).cast());
        // SAFETY: not running, so nobody else is in here (M2).
        let given = match unsafe { &mut *self.coroutine.get() }.resume(()) {
            CoroutineResult::Yield(given) => given,
            CoroutineResult::Return(()) => Self::ENDED,
        };
        thread.current.set(outer);
        (given, NonNull::from(self))
    }

    /// As [`resume`](Self::resume), where no coroutine runs.
    ///
    /// # Safety
    /// M1 and M2.
    #[inline(always)]
    pub(crate) unsafe fn resume_first(&self, thread: &ThreadState) -> (u64, NonNull<Machine>) {
        // SAFETY: the caller's promise.
        unsafe { self.resume(thread) }
    }

    /// Gives control back to the resumer, who gets `given`; returns `self` when the coroutine is
    /// resumed again.
    ///
    /// # Safety
    /// M2.
    #[inline(always)]
    pub(crate) unsafe fn suspend(&self, given: u64) -> NonNull<Machine> {
        // SAFETY: inside the coroutine, so the yielder was set, and lies at the base of this stack.
        unsafe { (*self.yielder.get()).suspend(given) };
        NonNull::from(self)
    }

    /// Drops the body of one that was never resumed.
    ///
    /// # Safety
    /// It was not; and it is not resumed afterwards, nor discarded again.
    pub(crate) unsafe fn discard(&self) {
        // SAFETY: not running (M2), and dropped once.
        unsafe { ManuallyDrop::drop(&mut *self.coroutine.get()) };
    }
}
