//! Coroutine stacks: slabs of guarded stacks, a type-stable slot for each, and the pools they are
//! reused from.
//!
//! ```text
//!   low                                                                         high
//!   | guard | stack, grows down ......................... | control block | next slot's guard ..
//!   ^ Slot::low                                           ^ Slot::control_block      ^ Slot::top
//! ```
//!
//! A slab is one reservation of up to 64 equal slots. Slabs are never unmapped and a slot's `Slot`
//! never moves, so that a wake token may name a slot by its index for ever; what it names is
//! decided by the slot word's generation.
//!
//! Invariants
//! - I1 A slot is in exactly one place: a thread's pool, the global pool, or a coroutine's hands.
//! - I2 Every slot that was given out has a guard below it that faults.
//! - I3 The pages of a pooled slot hold nothing that anyone reads again.

#![allow(unsafe_code)] // Raw stack memory; SAFETY comments name the invariants above.

mod pool;
mod slab;
mod word;

use core::ptr::NonNull;

use corosensei::stack::{Stack, StackPointer};

pub(crate) use pool::{acquire, flush_local, release};
pub(crate) use slab::slot_at;
pub(crate) use word::{Park, SlotWord, Wake};

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::error::Error;
use crate::sys;

/// Address space of a stack when nothing else is asked for, in bytes, guard and control block
/// included.
pub(crate) const SIZE_DEFAULT: usize = 256 * 1024;
/// The largest stack that can be asked for, in bytes.
pub(crate) const SIZE_MAX: usize = 1 << 30;
/// What a stack keeps for Rust code above what the kernel needs to deliver a signal, in bytes.
const HEADROOM: usize = 16 * 1024;
/// Space for the control block at the top of each slot, in bytes.
pub(crate) const CONTROL_SIZE: usize = 512;

/// Bytes that fault below each stack: a page, or on aarch64, where the compiler probes in larger
/// steps, 64 KiB.
pub(crate) fn guard_size() -> usize {
    if cfg!(target_arch = "aarch64") {
        64 * 1024
    } else {
        sys::mem::page_size()
    }
}

/// Rounds a wanted stack size to the power of two that is given out.
pub(crate) fn class_size(wanted: usize) -> Result<usize, Error> {
    let least = sys::mem::min_signal_stack() + HEADROOM + guard_size() + CONTROL_SIZE;
    if wanted > SIZE_MAX {
        return Err(Error::Parameter {
            name: "stack_size",
            value: wanted.to_string(),
            expected: "at most 1 GiB",
        });
    }
    Ok(wanted.max(least).next_power_of_two())
}

/// One stack's place, for ever. Fields without an atomic are set once, when the slab is made.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Generation and wake state.
    pub(crate) word: SlotWord,
    /// Link in an inbox or a wake queue; owned by whoever won [`Wake::Queue`] until the home thread
    /// takes it off.
    pub(crate) next: AtomicPtr<Slot>,
    /// The latest generation whose coroutine was asked to end with a token. Published by the wake
    /// that follows.
    cancel_wanted: AtomicU32,
    /// Where wakes go. Written by the home thread before the coroutine first parks, read by the
    /// winner of a wake (stack::word I2, and its acquire). Owner: `schedule`.
    pub(crate) inbox: AtomicPtr<()>,
    index: u32,
    size: usize,
    low: NonNull<u8>,
}

// SAFETY: `low` is an address that only the coroutine layer turns into accesses, under its own
// rules; all else is atomic or never written after construction.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    fn new(index: u32, low: NonNull<u8>, size: usize) -> Self {
        Self {
            word: SlotWord::new(),
            next: AtomicPtr::new(core::ptr::null_mut()),
            cancel_wanted: AtomicU32::new(0),
            inbox: AtomicPtr::new(core::ptr::null_mut()),
            index,
            size,
            low,
        }
    }

    /// The coroutine of this generation shall end. Any thread; a wake must follow, which orders it.
    pub(crate) fn want_cancel(&self, generation: u32) {
        // The larger stands: a late token must not take back what a later coroutine was asked.
        self.cancel_wanted.fetch_max(generation, Ordering::Relaxed);
    }

    /// Whether the coroutine of this generation was asked to end. Its home, after a claim or a park
    /// that was notified.
    #[inline]
    pub(crate) fn is_cancel_wanted(&self, generation: u32) -> bool {
        self.cancel_wanted.load(Ordering::Relaxed) == generation
    }

    /// The number that a wake token carries.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Address space in bytes, guard and control block included.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Where the control block lies: aligned for it, and the initial stack pointer.
    pub(crate) fn control_block(&self) -> NonNull<u8> {
        // SAFETY: `size` bytes from `low` on are this slot's, and CONTROL_SIZE is less than the
        // smallest class.
        unsafe { self.low.add(self.size - CONTROL_SIZE) }
    }

    /// Gives back the pages of the stack but those of its top `keep` bytes.
    ///
    /// # Safety
    /// The slot is free (I3).
    unsafe fn trim(&self, keep: usize) {
        let guard = guard_size();
        let len = self.size - guard - keep;
        // SAFETY: the range is this slot's stack above its guard; it is free by the caller's
        // promise.
        unsafe { sys::mem::dont_need(self.low.add(guard), len) };
    }

    /// The part that frames use: above the guard, below the control block.
    fn frames(&self) -> (NonNull<u8>, usize) {
        let guard = guard_size();
        // SAFETY: a slot is larger than its guard.
        let low = unsafe { self.low.add(guard) };
        (low, self.size - guard - CONTROL_SIZE)
    }

    /// Tells who watches memory that this is a stack.
    fn register(&self) {
        let (low, len) = self.frames();
        sys::valgrind::register_stack(low, len);
        #[cfg(feature = "asan")]
        sys::asan::register_stack(low, len);
    }

    /// Tells who watches memory that no frame is left on it: its coroutine has ended.
    #[inline]
    pub(crate) fn clear(&self) {
        if sys::valgrind::knows_stacks() {
            let (low, len) = self.frames();
            sys::valgrind::clear_stack(low, len);
        }
        #[cfg(feature = "asan")]
        {
            let (low, len) = self.frames();
            sys::asan::clear_stack(low, len);
        }
    }

    /// What corosensei runs on, where it does.
    #[allow(dead_code)]
    pub(crate) fn stack(&'static self) -> SlotStack {
        SlotStack {
            base: self.control_block().addr(),
            limit: self.low.addr(),
        }
    }

    /// Pushes a link: the slot that follows this one.
    pub(crate) fn set_next(&self, next: Option<&'static Slot>) {
        let next = next.map_or(core::ptr::null_mut(), |slot| {
            core::ptr::from_ref(slot).cast_mut()
        });
        // Relaxed: published by whatever publishes the list's head.
        self.next.store(next, Ordering::Relaxed);
    }

    /// The slot that follows this one.
    pub(crate) fn next(&self) -> Option<&'static Slot> {
        let next = self.next.load(Ordering::Relaxed);
        // SAFETY: only `set_next` and the inbox write it, with slots, which live for ever.
        unsafe { next.cast_const().as_ref() }
    }
}

/// A slot's stack as corosensei wants to see it.
#[allow(dead_code)]
pub(crate) struct SlotStack {
    base: StackPointer,
    limit: StackPointer,
}

// SAFETY: the slot has at least 4 KiB between its guard (I2) and its control block, and whoever
// holds the SlotStack owns the slot (I1).
unsafe impl Stack for SlotStack {
    #[inline]
    fn base(&self) -> StackPointer {
        self.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        self.limit
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC C6
    #[test]
    fn sizes_are_rounded_up_to_powers_of_two() {
        assert_eq!(class_size(SIZE_DEFAULT).unwrap(), SIZE_DEFAULT);
        assert_eq!(class_size(SIZE_DEFAULT + 1).unwrap(), 2 * SIZE_DEFAULT);
        assert!(class_size(0).unwrap() >= sys::mem::min_signal_stack() + HEADROOM);
        assert!(class_size(SIZE_MAX + 1).is_err());
    }

    // SPEC C5
    #[test]
    fn a_released_slot_is_given_out_again() {
        let first = acquire(crate::tls::thread(), SIZE_DEFAULT).unwrap();
        // SAFETY: nothing uses the slot.
        unsafe { release(crate::tls::thread(), first) };
        let second = acquire(crate::tls::thread(), SIZE_DEFAULT).unwrap();
        assert!(core::ptr::eq(first, second));
        assert!(core::ptr::eq(slot_at(second.index()).unwrap(), second));
        // SAFETY: nothing uses the slot.
        unsafe { release(crate::tls::thread(), second) };
        flush_local();
    }
}
