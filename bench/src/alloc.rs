//! The allocator of this program: the system's, which counts what a thread asks of it while
//! somebody wants to know.
//!
//! Timed passes run with the counting off, so that an allocation costs both sides one branch on a
//! flag that does not change. Each thread counts its own, so that a passer-by does not count.
#![allow(unsafe_code)] // An allocator is unsafe to write; this one adds a number and passes on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many want to know.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Neither allocated on first use nor dropped at the thread's end, so that the allocator may
    /// use it at any time.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts one request.
#[inline]
fn note() {
    // Relaxed: whoever listens does so on its own thread.
    if LISTENERS.load(Ordering::Relaxed) != 0 {
        COUNT.with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, and what it
// returns goes back unchanged. `note` neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; all blocks are the system allocator's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Runs `f` with the counting on.
pub(crate) fn counting<R>(f: impl FnOnce() -> R) -> R {
    struct Listener;
    impl Drop for Listener {
        fn drop(&mut self) {
            LISTENERS.fetch_sub(1, Ordering::Relaxed);
        }
    }
    LISTENERS.fetch_add(1, Ordering::Relaxed);
    let _listener = Listener;
    f()
}

/// What this thread has asked for so far while the counting was on: blocks, and changes of their
/// sizes.
pub(crate) fn count() -> u64 {
    COUNT.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::{count, counting};
    use std::hint::black_box;

    #[test]
    fn a_box_is_one_and_growing_is_another() {
        counting(|| {
            let before = count();
            drop(black_box(Box::new(1)));
            assert_eq!(count() - before, 1);
            let mut list = black_box(Vec::<u8>::with_capacity(1));
            list.reserve(100);
            drop(black_box(list));
            assert_eq!(count() - before, 3);
        });
    }

    #[test]
    fn other_threads_count_their_own() {
        counting(|| {
            let elsewhere = std::thread::spawn(|| {
                let before = count();
                drop(black_box(Box::new(1)));
                count() - before
            });
            let elsewhere = elsewhere.join().unwrap();
            assert_eq!(elsewhere, 1);
            let before = count();
            assert_eq!(count(), before);
        });
    }
}
