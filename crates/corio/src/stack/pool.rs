//! Pools of free stacks: two batches a thread without a lock, the rest in one place with a bound.
//!
//! A thread's pool is a stack itself: what came last goes first, as it is warm. It holds
//!
//! ```text
//!   bottom | swept | swept | .. | swept | used | used | .. | used | top
//! ```
//!
//! where `used` ones may hold pages that their last coroutine left where its depth was not noticed
//! (`depth`). About every [`SWEEP`] ends the thread trims those.
//!
//! A stack past the thread's two batches goes to the global pool, trimmed, and from there, past the
//! bound, back to its slab, without any page.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::slab::{Budget, Slabs};
use super::table::SLOTS_MAX;
use super::{SIZE_DEFAULT, Slot, depth};
use crate::error::Error;
use crate::sys;
use crate::tls::{self, ThreadState};

/// Stacks that move between a thread's pool and the global one at a time.
const BATCH: usize = 128;
/// Stacks that a thread keeps for itself at most.
const LOCAL_MAX: usize = 2 * BATCH;
/// Stacks that a thread takes when it first needs one. It doubles each time up to a batch, so that
/// a thread with few coroutines pays for few guards: these have one page of page table in common.
const GRAB_MIN: usize = 8;
/// A thread sweeps its pool when a stack's generation is a multiple of this: as often, in the mean,
/// as so many of its coroutines have ended, without a counter.
const SWEEP: u32 = 16 * 1024;
/// Stacks in the global pool at most, if nobody asks for more.
pub(super) const POOLED_DEFAULT: usize = 1024;
/// What can be asked for: as many as there can be.
pub(super) const POOLED_MAX: usize = SLOTS_MAX;

/// A free stack and what is known of it.
#[derive(Clone, Copy, Debug)]
struct Free(*const Slot);

/// It has no page yet, and no marks.
const COLD: usize = 1;
/// It holds no page that it should not.
const SWEPT: usize = 2;

impl Free {
    fn new(slot: &'static Slot, flags: usize) -> Self {
        Self(core::ptr::from_ref(slot).map_addr(|address| address | flags))
    }

    #[inline]
    fn is(self, flag: usize) -> bool {
        self.0.addr() & flag != 0
    }

    #[inline]
    fn slot(self) -> &'static Slot {
        let slot = self.0.map_addr(|address| address & !(COLD | SWEPT));
        // SAFETY: made from a reference to a slot, whose alignment leaves the flags' bits free.
        unsafe { &*slot }
    }
}

/// A thread's pool.
struct Local {
    free: Vec<Free>,
    grab: usize,
}

/// Free stacks of one size.
struct Class {
    size: usize,
    /// With their top pages. Taken first.
    warm: Vec<&'static Slot>,
    slabs: Slabs,
}

struct Global {
    classes: Vec<Class>,
    budget: Budget,
}

static GLOBAL: Mutex<Global> = Mutex::new(Global {
    classes: Vec::new(),
    budget: Budget::new(),
});
/// How many warm stacks there are, and may be. Changed under the lock.
static POOLED: AtomicUsize = AtomicUsize::new(0);
static POOLED_LIMIT: AtomicUsize = AtomicUsize::new(POOLED_DEFAULT);

fn global() -> MutexGuard<'static, Global> {
    GLOBAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a free stack of `size` bytes (a class size), or makes some. `thread` is this thread's
/// state.
#[inline]
pub(crate) fn acquire(thread: &ThreadState, size: usize) -> Result<&'static Slot, Error> {
    if size == SIZE_DEFAULT
        && let Some(free) = with_local(thread, |local| local.free.pop())
    {
        return Ok(ready(free));
    }
    acquire_slow(thread, size)
}

#[inline]
fn ready(free: Free) -> &'static Slot {
    let slot = free.slot();
    if free.is(COLD) {
        depth::mark(slot);
    }
    slot
}

#[cold]
#[inline(never)]
fn acquire_slow(thread: &ThreadState, size: usize) -> Result<&'static Slot, Error> {
    let is_pooled = size == SIZE_DEFAULT;
    let wanted = if is_pooled {
        with_local(thread, |local| {
            let grab = local.grab;
            local.grab = (2 * grab).min(BATCH);
            grab
        })
    } else {
        1
    };
    let mut taken = take(size, wanted)?;
    let first = taken.pop().ok_or(Error::Os {
        op: "taking a stack",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })?;
    if is_pooled {
        with_local(thread, |local| local.free.extend(taken));
    }
    Ok(ready(first))
}

/// Takes stacks out of the global pool, or new ones; the last is to be used first.
fn take(size: usize, wanted: usize) -> Result<Vec<Free>, Error> {
    let mut global = global();
    let Global { classes, budget } = &mut *global;
    let at = class(classes, size);
    let warm = &mut classes[at].warm;
    if !warm.is_empty() {
        let taken = warm.split_off(warm.len().saturating_sub(wanted));
        POOLED.fetch_sub(taken.len(), Ordering::Relaxed);
        return Ok(taken
            .into_iter()
            .map(|slot| Free::new(slot, SWEPT))
            .collect());
    }
    let mut taken = Vec::with_capacity(wanted);
    let mut result = classes[at].slabs.take(wanted, budget, &mut taken);
    if let Err(Error::StackLimit { .. }) = result {
        // What is free in other sizes, or has been, holds guards still.
        for class in &mut *classes {
            POOLED.fetch_sub(class.warm.len(), Ordering::Relaxed);
            class.slabs.give(&class.warm, budget);
            class.warm.clear();
            class.slabs.give_guards_back(budget);
        }
        result = classes[at].slabs.take(wanted, budget, &mut taken);
    }
    result?;
    // A slab is used from its start.
    let cold = |slot| Free::new(slot, COLD);
    Ok(taken.into_iter().rev().map(cold).collect())
}

/// Gives a stack back. `thread` is this thread's state, and `generation` was the coroutine's.
///
/// # Safety
/// The caller owns the slot and nothing refers to its memory any more (I1, I3), and
/// [`depth::is_settled`] has been asked about it.
#[inline]
pub(crate) unsafe fn release(thread: &ThreadState, slot: &'static Slot, generation: u32) {
    let free = Free::new(slot, 0);
    if !slot.is_default() {
        return release_global(&[free]);
    }
    let is_full = with_local(thread, |local| {
        local.free.push(free);
        local.free.len() > LOCAL_MAX
    });
    if is_full || generation.is_multiple_of(SWEEP) {
        tidy(thread);
    }
}

/// Whether [`release_into_room`] may follow: the thread's pool takes the stack, and has nothing else
/// to do.
#[inline]
pub(crate) fn has_room(thread: &ThreadState, slot: &Slot, generation: u32) -> bool {
    let local = thread.pool.get().cast::<Local>();
    // SAFETY: null or the thread's pool, which nobody else looks at.
    let has_place = unsafe { local.as_ref() }.is_some_and(|local| local.free.len() < LOCAL_MAX);
    has_place && slot.is_default() && !generation.is_multiple_of(SWEEP)
}

/// As [`release`], where [`has_room`] has just said so.
///
/// # Safety
/// As there.
#[inline]
pub(crate) unsafe fn release_into_room(thread: &ThreadState, slot: &'static Slot) {
    let local = thread.pool.get().cast::<Local>();
    // SAFETY: by the caller's promise the pool is there, and has room for `LOCAL_MAX` and one more.
    unsafe {
        let free = &mut (*local).free;
        let len = free.len();
        free.as_mut_ptr().add(len).write(Free::new(slot, 0));
        free.set_len(len + 1);
    }
}

#[cold]
#[inline(never)]
fn tidy(thread: &ThreadState) {
    let batch: Vec<_> = with_local(thread, |local| {
        if local.free.len() <= LOCAL_MAX {
            local.sweep();
            return Vec::new();
        }
        // The oldest go: the newest are the warmest.
        local.free.drain(..BATCH).collect()
    });
    release_global(&batch);
}

impl Local {
    /// Trims what has been used since the last time.
    fn sweep(&mut self) {
        let used = self.free.iter_mut().rev();
        let used = used.take_while(|free| !free.is(COLD) && !free.is(SWEPT));
        let ranges: Vec<_> = used
            .map(|free| {
                *free = Free::new(free.slot(), SWEPT);
                free.slot().below(depth::DEEP)
            })
            .collect();
        // SAFETY: the slots are free and in this pool only (I1, I3).
        _ = unsafe { sys::mem::dont_need_all(&ranges) };
    }
}

/// Gives all of this thread's free stacks to the global pool. Called when a thread's outermost home
/// ends.
pub(crate) fn flush_local() {
    let state = tls::thread();
    let local = state.pool.replace(core::ptr::null_mut());
    if !local.is_null() {
        // SAFETY: `with_local` made it with Box::into_raw, and it has just been taken out of its
        // only place.
        let local = unsafe { Box::from_raw(local.cast::<Local>()) };
        release_global(&local.free);
    }
}

/// Has the stacks of the global pool, and of this thread's, without pages when they are next used.
pub(super) fn discard_warm() {
    flush_local();
    let mut global = global();
    let Global { classes, budget } = &mut *global;
    for class in classes {
        POOLED.fetch_sub(class.warm.len(), Ordering::Relaxed);
        class.slabs.give(&class.warm, budget);
        class.warm.clear();
    }
}

#[inline]
fn with_local<R>(thread: &ThreadState, f: impl FnOnce(&mut Local) -> R) -> R {
    let mut local = thread.pool.get().cast::<Local>();
    if local.is_null() {
        local = make_local(thread);
    }
    // SAFETY: the pool is this thread's, and `f` neither switches stacks nor gets here again.
    f(unsafe { &mut *local })
}

#[cold]
fn make_local(thread: &ThreadState) -> *mut Local {
    let local = Box::into_raw(Box::new(Local {
        // Room for one more than is kept, so that a push never allocates.
        free: Vec::with_capacity(LOCAL_MAX + 1),
        grab: GRAB_MIN,
    }));
    thread.pool.set(local.cast());
    local
}

/// Stacks of one size.
#[cold]
fn release_global(free: &[Free]) {
    let Some(first) = free.first() else { return };
    let (cold, used): (Vec<Free>, Vec<Free>) = free.iter().partition(|free| free.is(COLD));
    // The system call comes before the lock, for as many as there seems to be room for.
    let room = POOLED_LIMIT
        .load(Ordering::Relaxed)
        .saturating_sub(POOLED.load(Ordering::Relaxed));
    let (warm, rest) = used.split_at(room.min(used.len()));
    let untrimmed = warm.iter().filter(|free| !free.is(SWEPT));
    let ranges: Vec<_> = untrimmed
        .map(|free| free.slot().below(depth::DEEP))
        .collect();
    // SAFETY: the slots are free and in nobody else's hands (I1, I3).
    _ = unsafe { sys::mem::dont_need_all(&ranges) };

    let mut global = global();
    let Global { classes, budget } = &mut *global;
    let at = class(classes, first.slot().size());
    let class = &mut classes[at];
    let room = POOLED_LIMIT
        .load(Ordering::Relaxed)
        .saturating_sub(POOLED.load(Ordering::Relaxed));
    let (warm, late) = warm.split_at(room.min(warm.len()));
    class.warm.extend(warm.iter().map(|free| free.slot()));
    POOLED.fetch_add(warm.len(), Ordering::Relaxed);
    let given = late.iter().chain(rest).chain(&cold);
    let given: Vec<_> = given.map(|free| free.slot()).collect();
    class.slabs.give(&given, budget);
}

fn class(classes: &mut Vec<Class>, size: usize) -> usize {
    classes
        .iter()
        .position(|class| class.size == size)
        .unwrap_or_else(|| {
            classes.push(Class {
                size,
                warm: Vec::new(),
                slabs: Slabs::new(size),
            });
            classes.len() - 1
        })
}

/// How many warm stacks there are.
pub(super) fn pooled() -> usize {
    POOLED.load(Ordering::Relaxed)
}

/// How many there may be.
pub(super) fn pooled_limit() -> usize {
    POOLED_LIMIT.load(Ordering::Relaxed)
}

/// Changes how many warm stacks there may be, and gives back what is too many.
/// False if `change` finds that it cannot be done.
pub(super) fn change_limit(change: impl Fn(usize) -> Option<usize>) -> bool {
    let mut global = global();
    let Global { classes, budget } = &mut *global;
    let Some(limit) = change(pooled_limit()) else {
        return false;
    };
    POOLED_LIMIT.store(limit, Ordering::Relaxed);
    let mut excess = pooled().saturating_sub(limit);
    for class in classes {
        let count = excess.min(class.warm.len());
        // The oldest.
        let given: Vec<_> = class.warm.drain(..count).collect();
        class.slabs.give(&given, budget);
        POOLED.fetch_sub(count, Ordering::Relaxed);
        excess -= count;
    }
    true
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
            unsafe { release(tls::thread(), slot, 1) };
        }
        assert_eq!(
            with_local(tls::thread(), |local| local.free.len()),
            LOCAL_MAX + 1 - BATCH
        );
        flush_local();
    }

    // SPEC C5: what no mark tells of is found by the sweep.
    #[test]
    fn a_sweep_trims_what_was_used_since_the_last() {
        let slots: Vec<_> = (0..3)
            .map(|_| acquire(tls::thread(), SIZE_DEFAULT).unwrap())
            .collect();
        let touch = |slot: &Slot| {
            // SAFETY: far below the marks of a slot of ours.
            unsafe { slot.low().add(SIZE_DEFAULT / 2).write(1) };
        };
        let is_touched = |slot: &Slot| {
            // SAFETY: as above.
            unsafe { slot.low().add(SIZE_DEFAULT / 2).read() == 1 }
        };
        flush_local();
        let local = || with_local(tls::thread(), |local| local.free.clone());
        for &slot in &slots {
            touch(slot);
            // SAFETY: nothing uses the slot.
            unsafe { release(tls::thread(), slot, 1) };
        }
        assert!(local().iter().all(|free| !free.is(SWEPT)));
        let again = acquire(tls::thread(), SIZE_DEFAULT).unwrap();
        // SAFETY: nothing uses the slot.
        unsafe { release(tls::thread(), again, SWEEP) };
        assert!(
            local()
                .iter()
                .all(|free| free.is(SWEPT) && !is_touched(free.slot()))
        );
        // Only what was taken since is looked at the next time.
        let again = acquire(tls::thread(), SIZE_DEFAULT).unwrap();
        slots.iter().for_each(|slot| touch(slot));
        // SAFETY: nothing uses the slot.
        unsafe { release(tls::thread(), again, SWEEP) };
        let touched = local()
            .iter()
            .filter(|free| is_touched(free.slot()))
            .count();
        assert_eq!(touched, 2);
        flush_local();
    }
}
