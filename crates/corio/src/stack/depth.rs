//! How far down a stack has been used, as cheaply as an end of a coroutine allows: a deep recursion
//! must not pin its pages in a pool (SPEC C5), and asking the kernel costs more than a coroutine.
//!
//! ```text
//!   | guard | ............... |m........|..............|m.......|.. frames | control block |
//!                              ^ DEEP from the top       ^ SHALLOW from the top
//! ```
//!
//! A line of marks lies at the low end of the top page, which every coroutine touches. One that
//! stays in it leaves the marks alone, and its end costs a look at them. One that goes further runs
//! over them. Whether it also went below DEEP, which a second line tells that lies there once the
//! stack has been that far, decides whether the stack is trimmed to DEEP.
//!
//! A frame may jump over a line: a large buffer of which only a part was written. Such a stack
//! keeps its pages until it moves to the global pool, or its thread next sweeps its own (`pool`).

use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{CONTROL_SIZE, Slot, guard_size, stack_usage};
use crate::sys;

/// Where the two lines begin, in bytes below the slot's top. The first is in the top page, however
/// small pages are; DEEP is what most coroutines touch, and what a pooled stack keeps.
const SHALLOW: usize = 4 * 1024;
pub(super) const DEEP: usize = 16 * 1024;

/// A line of marks, and what it holds: no address, no small number, not all the same.
type Line = [u64; 4];
const MARKS: Line = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
];

/// Why marks are not looked at; 0 when they are.
static MODE: AtomicU8 = AtomicU8::new(0);
/// Valgrind and AddressSanitizer take a look at what lies below a stack's frames for a mistake.
const WATCHED: u8 = 1;
/// High-water marks are kept: every end is looked at, and leaves no page but the top one.
const MEASURED: u8 = 2;
/// How often measuring has begun. A slot that bears this number began its use without any page but
/// the top one.
static MEASUREMENT: AtomicU64 = AtomicU64::new(0);

/// Called before the first slab is made.
pub(super) fn prepare() {
    let is_valgrind = std::env::var_os("LD_PRELOAD")
        .is_some_and(|preloaded| preloaded.to_string_lossy().contains("/vgpreload_"));
    if is_valgrind || cfg!(feature = "asan") {
        MODE.fetch_or(WATCHED, Ordering::Relaxed);
    }
}

/// Has high-water marks kept from now on, or no longer.
pub(super) fn measure(is_on: bool) {
    if !is_on {
        MODE.fetch_and(!MEASURED, Ordering::Relaxed);
    } else if MODE.load(Ordering::Relaxed) & MEASURED == 0 {
        // Release: pairs with `measurement`, so that who finds it on has its number.
        MEASUREMENT.fetch_add(1, Ordering::Relaxed);
        MODE.fetch_or(MEASURED, Ordering::Release);
    }
}

/// The number of the measurement that goes on; None if none does.
fn measurement() -> Option<u64> {
    // Acquire: pairs with `measure`.
    let is_on = MODE.load(Ordering::Acquire) & MEASURED != 0;
    is_on.then(|| MEASUREMENT.load(Ordering::Relaxed))
}

/// Where a slot bears the number of a measurement: above the control block. It reads as 0 once the
/// page was given back.
fn stamp(slot: &Slot) -> *mut u64 {
    slot.below_top(size_of::<u64>()).cast().as_ptr()
}

#[inline]
fn line(slot: &Slot, below_top: usize) -> *mut Line {
    slot.below_top(below_top).cast().as_ptr()
}

/// True if the coroutine that ends has left nothing to be done about its stack: see [`settle`].
///
/// # Safety
/// `control_block` is the coroutine's, which does not run any more and has the slot still.
#[inline]
pub(crate) unsafe fn is_settled(control_block: NonNull<u8>) -> bool {
    // Relaxed: who changes it does not wait for those that end.
    MODE.load(Ordering::Relaxed) == 0
        // SAFETY: aligned memory of the slot, by the caller's promise.
        && unsafe { control_block.sub(SHALLOW - CONTROL_SIZE).cast::<Line>().read() } == MARKS
}

/// Trims the stack if it was used deeply, so that it may be pooled. `created_at` and `name` are the
/// coroutine's.
///
/// # Safety
/// Nothing runs on the stack any more, and the slot is the caller's.
#[cold]
#[inline(never)]
pub(crate) unsafe fn settle(
    slot: &Slot,
    created_at: &'static Location<'static>,
    name: Option<&str>,
) {
    if let Some(measurement) = measurement() {
        // SAFETY: the caller's promise.
        return unsafe { take_measure(slot, measurement, created_at, name) };
    }
    let is_watched = MODE.load(Ordering::Relaxed) & WATCHED != 0;
    // SAFETY: as in `is_settled`.
    if is_watched || unsafe { line(slot, DEEP).read() } != MARKS {
        // SAFETY: the caller's promise.
        _ = unsafe { sys::mem::dont_need_all(&[slot.below(DEEP)]) };
        write(slot, DEEP);
    }
    write(slot, SHALLOW);
}

/// # Safety
/// As for [`settle`].
unsafe fn take_measure(
    slot: &Slot,
    measurement: u64,
    created_at: &'static Location<'static>,
    name: Option<&str>,
) {
    let page = sys::mem::page_size();
    // SAFETY: the top of the slot; the control block ends below.
    if unsafe { stamp(slot).read() } == measurement {
        let lowest = sys::mem::lowest_resident(&slot.below(page));
        let used = lowest.map_or(page, |at| slot.size() - guard_size(slot.size()) - at);
        stack_usage::record(created_at, name, used, slot.size());
    }
    // SAFETY: the caller's promise, and as above.
    unsafe {
        _ = sys::mem::dont_need_all(&[slot.below(page)]);
        stamp(slot).write(measurement);
    }
}

/// Readies a stack without pages for its first coroutine.
pub(super) fn mark(slot: &Slot) {
    match measurement() {
        // SAFETY: the slot is free, and only its owner looks there.
        Some(measurement) => unsafe { stamp(slot).write(measurement) },
        None => write(slot, SHALLOW),
    }
}

fn write(slot: &Slot, below_top: usize) {
    if MODE.load(Ordering::Relaxed) & WATCHED == 0 {
        // SAFETY: aligned memory of the slot, in which nothing runs.
        unsafe { line(slot, below_top).write(MARKS) };
    }
}
