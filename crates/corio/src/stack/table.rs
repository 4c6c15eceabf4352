//! The table that finds a slot by its index. Its memory is never freed, so that a wake token may
//! name a slot for ever.

use core::alloc::Layout;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use super::Slot;

/// Slots that can exist, for an index of 26 bits.
pub(super) const SLOTS_MAX: usize = 1 << super::INDEX_BITS;
/// Slots whose memory is allocated together; it is touched only as they are made.
const LEAF: usize = 1 << 12;

static LEAVES: [AtomicPtr<Slot>; SLOTS_MAX / LEAF] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; SLOTS_MAX / LEAF];
/// Slots that have been made. Grows under the global pool's lock.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Makes `count` slots with consecutive indices, each by its index and its place among them; the
/// first index. None: there can be no more. The
/// caller holds the global pool's lock.
pub(super) fn extend(count: u32, make: impl Fn(u32, usize) -> Slot) -> Option<u32> {
    let first = COUNT.load(Ordering::Relaxed);
    let end = first.checked_add(count)?;
    if position(end) > SLOTS_MAX {
        return None;
    }
    for (index, nth) in (first..end).zip(0..) {
        let at = position(index);
        // SAFETY: a leaf holds LEAF slots, and nobody reads this one while COUNT does not reach it.
        unsafe { leaf(at / LEAF).add(at % LEAF).write(make(index, nth)) };
    }
    // Release: pairs with the load in `slot_at`.
    COUNT.store(end, Ordering::Release);
    Some(first)
}

fn leaf(number: usize) -> *mut Slot {
    let entry = &LEAVES[number];
    let mut leaf = entry.load(Ordering::Relaxed);
    if leaf.is_null() {
        let layout = const {
            match Layout::array::<Slot>(LEAF) {
                Ok(layout) => layout,
                Err(_) => panic!("a leaf is smaller than the address space"),
            }
        };
        // SAFETY: the layout is not of size 0.
        leaf = unsafe { std::alloc::alloc_zeroed(layout) }.cast();
        if leaf.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // Relaxed: published by COUNT.
        entry.store(leaf, Ordering::Relaxed);
    }
    leaf
}

#[inline]
fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// The slot of this index, if there ever was one. Any thread.
#[inline]
pub(crate) fn slot_at(index: u32) -> Option<&'static Slot> {
    // Acquire: pairs with the store in `extend`, for readers that have the index from elsewhere.
    if index >= COUNT.load(Ordering::Acquire) {
        return None;
    }
    let at = position(index);
    let leaf = LEAVES.get(at / LEAF)?.load(Ordering::Relaxed);
    // SAFETY: the slot has been made, and leaves are never freed.
    Some(unsafe { &*leaf.add(at % LEAF) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_was_never_given_out_names_no_slot() {
        assert!(slot_at(u32::MAX).is_none());
        assert!(slot_at(u32::try_from(SLOTS_MAX - 1).unwrap()).is_none());
    }
}
