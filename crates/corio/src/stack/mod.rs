//! Coroutine stacks: slabs of guarded stacks, a type-stable slot for each, and the pools they are
//! reused from.
//!
//! ```text
//!   low                                                                         high
//!   | guard | stack, grows down ......................... | control block | next slot's guard ..
//!   ^ Slot::low                                           ^ Slot::control_block      ^ top
//! ```
//!
//! A coroutine that does little touches the top page and no other: the control block and its first
//! frames are in it. The guard costs an entry in the page table, and a page of page table has room
//! for the entries of a slab, several stacks.
//!
//! What a stack is in, from making it to giving its memory back:
//!
//! ```text
//!        guard       create      end             two batches are full    too many, or not
//!        installed                                                        wanted any more
//!   bare ------> out ------> used ------> thread's pool ------> warm, global ------> cold
//!    ^            ^                            |                      |               |
//!    |            +----------------------------+----------------------+---------------+
//!    |                               taken again                                      |
//!    +---------------- all of its slab are free: the slab is mapped anew -------------+
//! ```
//!
//! Files: `slab` is the memory, `table` finds slots by their index, `pool` keeps free ones, `depth`
//! knows how far down a stack has been used, `stack_pool` and `stack_usage` are the public side.
//!
//! Invariants
//! - I1 A slot is in exactly one place: a thread's pool, the global pool, its slab's sets of free
//!   ones, or a coroutine's hands.
//! - I2 Every slot that was given out has a guard below it that faults.
//! - I3 The pages of a free slot hold nothing that anyone reads again, but for the marks (`depth`),
//!   and the key in the control block, at which a stale handle may look: they stay readable.
//! - I4 Slots are never freed: a wake token may name one by its index for ever, and what it names
//!   is decided by the generation. Address space that held a stack holds nothing else, ever.

#![allow(unsafe_code)] // Raw stack memory; SAFETY comments name the invariants above.

mod depth;
mod pool;
mod slab;
pub mod stack_pool;
pub mod stack_usage;
mod table;
mod word;

use core::ptr::NonNull;

use corosensei::stack::{Stack, StackPointer};

pub(crate) use depth::{is_settled, settle};
pub(crate) use pool::{acquire, flush_local, has_room, release, release_into_room};
pub(crate) use table::slot_at;
pub(crate) use word::{ByName, Park, SlotWord, Wake};

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
/// The smallest class, and the unit in which slots note their address.
const SIZE_MIN: usize = 64 * 1024;
/// Bits of a slot's index; the rest of a 32-bit word holds the size.
const INDEX_BITS: u32 = 26;
/// What part of a stack its guard is, and how many bytes at most.
const GUARD_SHARE: usize = 16;
const GUARD_MAX: usize = 64 * 1024;
/// Space for the control block at the top of each slot, in bytes.
pub(crate) const CONTROL_SIZE: usize = 512;
/// What of it the control block may take: the rest is `depth`'s.
pub(crate) const CONTROL_MAX: usize = CONTROL_SIZE - size_of::<u64>();

/// Bytes that fault at the low end of a stack of `size` bytes: a sixteenth of it, as far as C code
/// that touches no page of a large frame is concerned, but at least a page. On aarch64, where the
/// compiler probes in larger steps, it is 64 KiB.
pub(crate) fn guard_size(size: usize) -> usize {
    let least = if cfg!(target_arch = "aarch64") {
        GUARD_MAX
    } else {
        sys::mem::page_size()
    };
    (size / GUARD_SHARE).clamp(least, GUARD_MAX.max(least))
}

/// Rounds a wanted stack size to the power of two that is given out.
pub(crate) fn class_size(wanted: usize) -> Result<usize, Error> {
    if wanted > SIZE_MAX {
        return Err(Error::Parameter {
            name: "stack_size",
            value: wanted.to_string(),
            expected: "at most 1 GiB",
        });
    }
    let least = sys::mem::min_signal_stack() + HEADROOM + CONTROL_SIZE;
    let mut size = wanted.max(least).max(SIZE_MIN).next_power_of_two();
    while size - guard_size(size).min(size) < least {
        size *= 2;
    }
    Ok(size)
}

/// One stack's place, for ever (I4). Fields without an atomic are set once, when the slot is made.
/// There is one for each stack that ever was, so it is kept small.
#[derive(Debug)]
#[repr(align(8))] // The pools keep flags in the low bits of its address.
pub(crate) struct Slot {
    /// Generation and wake state.
    pub(crate) word: SlotWord,
    /// Link in an inbox or a wake queue; owned by whoever won [`Wake::Queue`], or by the home
    /// thread for what it queues by itself (word I6), until the home thread takes it off.
    pub(crate) next: AtomicPtr<Slot>,
    /// The latest generation whose coroutine was asked to end with a token. Published by the wake
    /// that follows.
    cancel_wanted: AtomicU32,
    /// Where wakes go. Written by the home thread before the coroutine first parks there, read by
    /// the winner of a wake (stack::word I2, and its acquire), and by others as a hint of where it
    /// runs. Owner: `schedule`.
    pub(crate) inbox: AtomicPtr<()>,
    /// The address above the highest, in units of [`SIZE_MIN`]: 48 bits of address.
    top: u32,
    /// The index, and above [`INDEX_BITS`] the size's logarithm.
    number: u32,
}

const _: () = assert!(cfg!(loom) || size_of::<Slot>() == 40);

impl Slot {
    /// `low` and `size` are multiples of [`SIZE_MIN`], the latter a power of two.
    fn new(index: u32, low: NonNull<u8>, size: usize) -> Self {
        debug_assert!(index >> INDEX_BITS == 0 && low.addr().get().is_multiple_of(SIZE_MIN));
        Self {
            word: SlotWord::new(),
            next: AtomicPtr::new(core::ptr::null_mut()),
            cancel_wanted: AtomicU32::new(0),
            inbox: AtomicPtr::new(core::ptr::null_mut()),
            top: u32::try_from((low.expose_provenance().get() + size) / SIZE_MIN)
                .expect("user space has at most 48 bits of address, unless more is asked for"),
            number: size.ilog2() << INDEX_BITS | index,
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
        self.number & ((1 << INDEX_BITS) - 1)
    }

    /// Address space in bytes, guard and control block included.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        1 << (self.number >> INDEX_BITS)
    }

    /// True if it is of the default size.
    #[inline]
    fn is_default(&self) -> bool {
        self.number >> INDEX_BITS == SIZE_DEFAULT.ilog2()
    }

    /// The lowest address.
    #[inline]
    fn low(&self) -> NonNull<u8> {
        self.below_top(self.size())
    }

    /// So many bytes below the top; at most the size.
    #[inline]
    fn below_top(&self, bytes: usize) -> NonNull<u8> {
        let top = usize::try_from(self.top).unwrap_or_default() * SIZE_MIN;
        // SAFETY: within a reservation, which is not at 0.
        unsafe { NonNull::new_unchecked(core::ptr::with_exposed_provenance_mut(top - bytes)) }
    }

    /// Where the control block lies: aligned for it, and the initial stack pointer.
    pub(crate) fn control_block(&self) -> NonNull<u8> {
        self.below_top(CONTROL_SIZE)
    }

    /// True if `address` lies in the guard below the stack.
    pub(crate) fn is_guard(&self, address: usize) -> bool {
        let low = self.low().addr().get();
        (low..low + guard_size(self.size())).contains(&address)
    }

    /// True if below `stack_pointer`, which is of this stack, a signal has no room.
    pub(crate) fn is_full(&self, stack_pointer: usize) -> bool {
        let low = self.low().addr().get();
        let needed = guard_size(self.size()) + sys::mem::min_signal_stack();
        (low..low + needed).contains(&stack_pointer)
    }

    /// The stack, without its guard and its top `keep` bytes.
    fn below(&self, keep: usize) -> sys::mem::Range {
        let guard = guard_size(self.size());
        // SAFETY: the guard lies within the slot.
        sys::mem::Range::new(unsafe { self.low().add(guard) }, self.size() - guard - keep)
    }

    /// The part that frames use: above the guard, below the control block.
    fn frames(&self) -> (NonNull<u8>, usize) {
        let guard = guard_size(self.size());
        // SAFETY: a slot is larger than its guard.
        let low = unsafe { self.low().add(guard) };
        (low, self.size() - guard - CONTROL_SIZE)
    }

    /// Tells who watches memory that this is a stack.
    fn register(&self) {
        let (low, len) = self.frames();
        sys::valgrind::register_stack(low, len);
        // The control block holds things, too.
        #[cfg(feature = "asan")]
        sys::asan::register_stack(low, len + CONTROL_SIZE);
    }

    /// Whether [`clear`](Self::clear) has anybody to tell.
    #[inline]
    #[allow(clippy::unused_self)]
    pub(crate) fn is_watched(&self) -> bool {
        cfg!(feature = "asan") || sys::valgrind::knows_stacks()
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
            limit: self.low().addr(),
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
        unsafe { release(crate::tls::thread(), first, 1) };
        let second = acquire(crate::tls::thread(), SIZE_DEFAULT).unwrap();
        assert!(core::ptr::eq(first, second));
        assert!(core::ptr::eq(slot_at(second.index()).unwrap(), second));
        // SAFETY: nothing uses the slot.
        unsafe { release(crate::tls::thread(), second, 1) };
        flush_local();
    }
}
