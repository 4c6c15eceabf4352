//! Slabs: one reservation that holds many guarded stacks, and the table that finds a slot by its
//! index.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::OnceLock;

use super::{Slot, guard_size};
use crate::error::Error;
use crate::sys;

/// Stacks in a slab at most, and the step of slot indices from slab to slab.
const SLOTS: usize = 64;
/// A slab's reservation is not made larger than this, in bytes, unless one stack needs more.
const SLAB_BYTES: usize = 16 * 1024 * 1024;
/// Mappings left to the rest of the process when guards are made by mprotect.
const MAPPINGS_RESERVED: usize = 5000;
/// Slabs that can exist: 2^20, for 2^26 stacks.
const TABLE_WIDTH: usize = 1024;

type Leaf = [AtomicPtr<Slab>; TABLE_WIDTH];

static TABLE: [AtomicPtr<Leaf>; TABLE_WIDTH] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; TABLE_WIDTH];
/// Slabs in the table. Grows under the global pool's lock.
static SLABS: AtomicUsize = AtomicUsize::new(0);
/// Stacks whose guard is a mapping of its own.
static MPROTECTED: AtomicUsize = AtomicUsize::new(0);

/// A reservation's slots. Never freed.
pub(super) struct Slab {
    slots: Box<[Slot]>,
}

/// How the page below a stack is made to fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// MADV_GUARD_INSTALL: no mapping of its own.
    Install,
    /// mprotect(PROT_NONE): splits the mapping.
    Mprotect,
}

/// `CORIO_STACK_GUARD=mprotect` forces the fallback.
fn preferred_guard() -> Guard {
    static PREFERRED: OnceLock<Guard> = OnceLock::new();
    *PREFERRED.get_or_init(|| match std::env::var_os("CORIO_STACK_GUARD") {
        Some(value) if value == "mprotect" => Guard::Mprotect,
        _ => Guard::Install,
    })
}

/// How many stacks may have mprotect guards: two mappings each, and malloc must not starve (SPEC
/// C6).
fn mprotect_limit() -> (usize, usize) {
    static LIMIT: OnceLock<(usize, usize)> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let max_map_count = sys::mem::max_map_count();
        (
            max_map_count.saturating_sub(MAPPINGS_RESERVED) / 2,
            max_map_count,
        )
    })
}

/// Makes a slab of stacks of `size` bytes (a class size) and enters it in the table. The caller
/// holds the global pool's lock.
pub(super) fn create(size: usize) -> Result<&'static [Slot], Error> {
    let mut count = (SLAB_BYTES / size).clamp(1, SLOTS);
    if preferred_guard() == Guard::Mprotect {
        count = mprotect_room(count)?;
    }
    let number = SLABS.load(Ordering::Relaxed);
    if number >= TABLE_WIDTH * TABLE_WIDTH {
        return Err(Error::StackLimit {
            limit: number * SLOTS,
            max_map_count: mprotect_limit().1,
        });
    }
    let len = count * size;
    let start = sys::mem::reserve(len, sys::mem::page_size())?;
    let count = match guard_all(start, size, count) {
        Ok(guarded) => guarded,
        Err(error) => {
            // SAFETY: nothing knows of the reservation yet.
            unsafe { sys::mem::release(start, len) };
            return Err(error);
        }
    };
    let slots: Box<[Slot]> = (0..count)
        .map(|i| {
            let index = u32::try_from(number * SLOTS + i).unwrap_or(u32::MAX);
            // SAFETY: `i * size` lies within the reservation.
            let slot = Slot::new(index, unsafe { start.add(i * size) }, size);
            slot.register();
            slot
        })
        .collect();
    let slab: &'static Slab = Box::leak(Box::new(Slab { slots }));
    leaf(number / TABLE_WIDTH)[number % TABLE_WIDTH]
        // Release: pairs with the acquire in `slot_at`, for readers that got the index from
        // elsewhere.
        .store(core::ptr::from_ref(slab).cast_mut(), Ordering::Release);
    SLABS.store(number + 1, Ordering::Release);
    Ok(&slab.slots)
}

/// Guards the low end of each stack; how many are usable, at least one. An error leaves nothing
/// counted.
fn guard_all(start: NonNull<u8>, size: usize, count: usize) -> Result<usize, Error> {
    let guard = guard_size();
    let mut kind = preferred_guard();
    let mut usable = count;
    for i in 0..count {
        // SAFETY: `i * size` lies within the reservation, whose pages hold nothing yet.
        let low = unsafe { start.add(i * size) };
        if kind == Guard::Install {
            // SAFETY: as above.
            match unsafe { sys::mem::guard_install(low, guard) } {
                Ok(()) => continue,
                // EINVAL: an older kernel, or memory that is locked (mlockall).
                Err(_) => {
                    kind = Guard::Mprotect;
                    match mprotect_room(count - i) {
                        Ok(room) => usable = i + room,
                        Err(error) if i == 0 => return Err(error),
                        Err(_) => usable = i,
                    }
                }
            }
        }
        if i >= usable {
            break;
        }
        // SAFETY: as above.
        match unsafe { sys::mem::protect_none(low, guard) } {
            Ok(()) => MPROTECTED.fetch_add(1, Ordering::Relaxed),
            Err(error) if i == 0 => return Err(error),
            Err(_) => return Ok(i),
        };
    }
    Ok(usable)
}

/// How many of `wanted` more stacks may have mprotect guards; an error if none.
fn mprotect_room(wanted: usize) -> Result<usize, Error> {
    let (limit, max_map_count) = mprotect_limit();
    match limit.saturating_sub(MPROTECTED.load(Ordering::Relaxed)) {
        0 => Err(Error::StackLimit {
            limit,
            max_map_count,
        }),
        room => Ok(room.min(wanted)),
    }
}

fn leaf(number: usize) -> &'static Leaf {
    let entry = &TABLE[number];
    let present = entry.load(Ordering::Acquire);
    if !present.is_null() {
        // SAFETY: leaves are leaked boxes.
        return unsafe { &*present };
    }
    let fresh: &'static Leaf = Box::leak(Box::new(
        [const { AtomicPtr::new(core::ptr::null_mut()) }; TABLE_WIDTH],
    ));
    // Only the holder of the global pool's lock gets here; Release pairs with `slot_at`.
    entry.store(core::ptr::from_ref(fresh).cast_mut(), Ordering::Release);
    fresh
}

/// The slot of this index, if there ever was one. Any thread.
#[inline]
pub(crate) fn slot_at(index: u32) -> Option<&'static Slot> {
    let index = usize::try_from(index).ok()?;
    let number = index / SLOTS;
    // SAFETY: leaves and slabs are leaked boxes, or null.
    let leaf = unsafe {
        TABLE
            .get(number / TABLE_WIDTH)?
            .load(Ordering::Acquire)
            .as_ref()
    }?;
    // SAFETY: as above.
    let slab = unsafe { leaf[number % TABLE_WIDTH].load(Ordering::Acquire).as_ref() }?;
    slab.slots.get(index % SLOTS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC C6
    #[test]
    fn the_mprotect_budget_is_half_of_what_is_left_of_max_map_count() {
        let (limit, max_map_count) = mprotect_limit();
        assert_eq!(limit, (max_map_count - MAPPINGS_RESERVED) / 2);
    }

    #[test]
    fn an_index_that_was_never_given_out_names_no_slot() {
        assert!(slot_at(u32::MAX).is_none());
    }
}
