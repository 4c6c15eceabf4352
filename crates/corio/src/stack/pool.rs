//! Pools of free stacks: two batches a thread without a lock, the rest in one place with a bound.

use std::sync::Mutex;

use super::{SIZE_DEFAULT, Slot, slab};
use crate::error::Error;
use crate::sys;
use crate::tls::{self, ThreadState};

/// Stacks that move between a thread's pool and the global one at a time.
const BATCH: usize = 128;
/// Stacks that a thread keeps for itself at most.
const LOCAL_MAX: usize = 2 * BATCH;
/// Free stacks in the global pool that keep their top pages; those past it cost address space only.
const WARM_MAX: usize = 4096;
/// What a stack keeps when it moves to the global pool, in bytes: it is what most coroutines touch.
const KEEP: usize = 16 * 1024;

/// Free stacks of one size.
struct Class {
    size: usize,
    /// With their top pages: taken first.
    warm: Vec<&'static Slot>,
    /// Without any page.
    cold: Vec<&'static Slot>,
}

static GLOBAL: Mutex<Vec<Class>> = Mutex::new(Vec::new());

/// Takes a free stack of `size` bytes (a class size), or makes some. `thread` is this thread's
/// state.
#[inline]
pub(crate) fn acquire(thread: &ThreadState, size: usize) -> Result<&'static Slot, Error> {
    if size == SIZE_DEFAULT
        && let Some(slot) = with_local(thread, |local| local.pop())
    {
        return Ok(slot);
    }
    acquire_slow(thread, size)
}

#[cold]
#[inline(never)]
fn acquire_slow(thread: &ThreadState, size: usize) -> Result<&'static Slot, Error> {
    let mut global = GLOBAL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let class = class(&mut global, size);
    if class.warm.is_empty() && class.cold.is_empty() {
        let slots = slab::create(size)?;
        // In reverse, so that the slab is used from its start.
        class.cold.extend(slots.iter().rev());
    }
    let from = if class.warm.is_empty() {
        &mut class.cold
    } else {
        &mut class.warm
    };
    let slot = from.pop();
    if size == SIZE_DEFAULT {
        let rest = from.len().saturating_sub(BATCH - 1);
        let batch = from.split_off(rest);
        drop(global);
        with_local(thread, |local| local.extend(batch));
    }
    slot.ok_or(Error::Os {
        op: "taking a stack",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
}

/// Gives a stack back. `thread` is this thread's state.
///
/// # Safety
/// The caller owns the slot and nothing refers to its memory any more (I1, I3).
#[inline]
pub(crate) unsafe fn release(thread: &ThreadState, slot: &'static Slot) {
    if slot.size() != SIZE_DEFAULT {
        return release_global(&[slot]);
    }
    let full = with_local(thread, |local| {
        local.push(slot);
        local.len() > LOCAL_MAX
    });
    if full {
        release_batch(thread);
    }
}

/// The oldest go: the newest are the warmest.
#[cold]
#[inline(never)]
fn release_batch(thread: &ThreadState) {
    let batch = with_local(thread, |local| local.drain(..BATCH).collect::<Vec<_>>());
    release_global(&batch);
}

/// Gives all of this thread's free stacks to the global pool. Called when a thread's outermost home
/// ends.
pub(crate) fn flush_local() {
    let state = tls::thread();
    let local = state.pool.replace(core::ptr::null_mut());
    if !local.is_null() {
        // SAFETY: `with_local` made it with Box::into_raw, and it has just been taken out of its
        // only place.
        let local = unsafe { Box::from_raw(local.cast::<Vec<&'static Slot>>()) };
        release_global(&local);
    }
}

#[inline]
fn with_local<R>(thread: &ThreadState, f: impl FnOnce(&mut Vec<&'static Slot>) -> R) -> R {
    let mut local = thread.pool.get().cast::<Vec<&'static Slot>>();
    if local.is_null() {
        local = make_local(thread);
    }
    // SAFETY: the pool is this thread's, and `f` neither switches stacks nor gets here again.
    f(unsafe { &mut *local })
}

#[cold]
fn make_local(thread: &ThreadState) -> *mut Vec<&'static Slot> {
    // Room for one more than is kept, so that a push never allocates.
    let local = Box::into_raw(Box::new(Vec::with_capacity(LOCAL_MAX + 1)));
    thread.pool.set(local.cast());
    local
}

#[cold]
fn release_global(slots: &[&'static Slot]) {
    // The system calls come before the lock. What is trimmed deeper is decided once the count is
    // known.
    for slot in slots {
        // SAFETY: the slots are free and in nobody else's hands (I1, I3).
        unsafe { slot.trim(KEEP.max(sys::mem::page_size()).min(slot.size() / 2)) };
    }
    let mut global = GLOBAL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for &slot in slots {
        let class = class(&mut global, slot.size());
        if class.warm.len() >= WARM_MAX {
            // SAFETY: as above; a control block is written before it is read again.
            unsafe { slot.trim(0) };
            class.cold.push(slot);
        } else {
            class.warm.push(slot);
        }
    }
}

fn class(global: &mut Vec<Class>, size: usize) -> &mut Class {
    let at = global
        .iter()
        .position(|class| class.size == size)
        .unwrap_or_else(|| {
            global.push(Class {
                size,
                warm: Vec::new(),
                cold: Vec::new(),
            });
            global.len() - 1
        });
    &mut global[at]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC C5
    #[test]
    fn a_thread_keeps_two_batches_and_passes_the_rest_on() {
        let slots: Vec<_> = (0..LOCAL_MAX + 1)
            .map(|_| acquire(tls::thread(), SIZE_DEFAULT).unwrap())
            .collect();
        flush_local();
        for slot in slots {
            // SAFETY: nothing uses the slot.
            unsafe { release(tls::thread(), slot) };
        }
        assert_eq!(
            with_local(tls::thread(), |local| local.len()),
            LOCAL_MAX + 1 - BATCH
        );
        flush_local();
    }
}
