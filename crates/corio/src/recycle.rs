//! Memory of what is made in one thread and freed in another all the time (packets, bottom halves
//! that run once), kept for the next ones: with warm pools it allocates nothing.
//!
//! ```text
//!   thread: up to KEPT_MAX blocks  --- BATCH at a time ---  depot: up to DEPOT_MAX batches
//! ```
//!
//! A block goes to the thread that frees it, and from there, if that has too many, by the depot to
//! one that has none. Larger blocks, and more of them, are the allocator's. Nobody waits for the
//! depot: who finds it locked goes to the allocator.

#![allow(unsafe_code)] // Raw memory; the contract is the allocator's.

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;
use std::alloc::{Layout, handle_alloc_error};

use parking_lot::Mutex;

/// Block sizes go by this many bytes.
const STEP: usize = 64;
/// Sizes that are kept: 64 to 512 bytes.
const CLASSES: usize = 8;
/// Blocks of one size that a thread keeps at most.
const KEPT_MAX: usize = 256;
/// Blocks that go to the depot, or come from there, together.
const BATCH: usize = KEPT_MAX / 2;
/// Batches of one size in the depot at most.
const DEPOT_MAX: usize = 64;

/// `BATCH` free blocks, each of which begins with a pointer to the next.
struct Batch(NonNull<u8>);

// SAFETY: free memory, of no thread.
unsafe impl Send for Batch {}

static DEPOT: [Mutex<Vec<Batch>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

/// A thread's free blocks of one size.
struct Kept {
    blocks: UnsafeCell<Vec<NonNull<u8>>>,
    size: Cell<usize>,
}

struct Blocks([Kept; CLASSES]);

thread_local! {
    static BLOCKS: Blocks = const {
        Blocks([const { Kept { blocks: UnsafeCell::new(Vec::new()), size: Cell::new(0) } }; CLASSES])
    };
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for kept in &mut self.0 {
            for block in kept.blocks.get_mut().drain(..) {
                // SAFETY: `free` kept it, so it is of this size, and nobody else has it.
                unsafe { std::alloc::dealloc(block.as_ptr(), class_layout(kept.size.get())) };
            }
        }
    }
}

fn class_layout(size: usize) -> Layout {
    // Of a size and alignment that every machine has.
    Layout::from_size_align(size, STEP).unwrap_or_else(|_| Layout::new::<[u64; 8]>())
}

/// Which size holds this layout: its index, and its bytes.
const fn class_of(layout: Layout) -> Option<(usize, usize)> {
    if layout.align() > STEP || layout.size() == 0 || layout.size() > CLASSES * STEP {
        return None;
    }
    let class = (layout.size() - 1) / STEP;
    Some((class, (class + 1) * STEP))
}

/// The thread's blocks of a size, unless the thread ends. `f` neither switches stacks nor gets here
/// again.
#[inline(never)] // So that no address of a thread-local is kept by a caller that may switch.
fn with_kept<R>(
    class: usize,
    f: impl FnOnce(&Cell<usize>, &mut Vec<NonNull<u8>>) -> R,
) -> Option<R> {
    let with = |blocks: &Blocks| {
        let kept = &blocks.0[class];
        // SAFETY: the blocks are this thread's, and `f` does not get here again.
        f(&kept.size, unsafe { &mut *kept.blocks.get() })
    };
    BLOCKS.try_with(with).ok()
}

/// Memory for `layout`, which is not of size 0.
#[inline]
pub(crate) fn allocate(layout: Layout) -> NonNull<u8> {
    let (class, layout) = match class_of(layout) {
        Some((class, size)) => (Some(class), class_layout(size)),
        None => (None, layout),
    };
    if let Some(block) = class.and_then(|class| with_kept(class, |_, kept| kept.pop()).flatten()) {
        return block;
    }
    if let Some(block) =
        class.and_then(|class| with_kept(class, |_, kept| fetch(class, kept)).flatten())
    {
        return block;
    }
    // SAFETY: not of size 0.
    let block = unsafe { std::alloc::alloc(layout) };
    NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cold]
#[inline(never)]
fn make_room(kept: &mut Vec<NonNull<u8>>) {
    kept.reserve_exact(KEPT_MAX);
}

/// Moves a batch from the thread to the depot; false if that has no room.
#[cold]
#[inline(never)]
fn give_away(class: usize, kept: &mut Vec<NonNull<u8>>) -> bool {
    let Some(mut depot) = DEPOT.get(class).and_then(Mutex::try_lock) else {
        return false;
    };
    if depot.len() >= DEPOT_MAX {
        return false;
    }
    let mut next: *mut u8 = core::ptr::null_mut();
    for block in kept.drain(KEPT_MAX - BATCH..) {
        // SAFETY: free memory, larger than a pointer and aligned for one.
        unsafe { block.cast::<*mut u8>().write(next) };
        next = block.as_ptr();
    }
    depot.extend(NonNull::new(next).map(Batch));
    true
}

/// Moves a batch from the depot to the thread, which has none, and takes a block out of it.
#[cold]
#[inline(never)]
fn fetch(class: usize, kept: &mut Vec<NonNull<u8>>) -> Option<NonNull<u8>> {
    let Batch(first) = DEPOT.get(class)?.try_lock()?.pop()?;
    make_room(kept);
    let mut at = Some(first);
    while let Some(block) = at {
        kept.push(block);
        // SAFETY: a free block of the batch, in which `give_away` has written it.
        at = NonNull::new(unsafe { block.cast::<*mut u8>().read() });
    }
    kept.pop()
}

/// Takes memory back.
///
/// # Safety
/// [`allocate`] gave it for this very layout, and nobody uses it any more.
#[inline]
pub(crate) unsafe fn free(block: NonNull<u8>, layout: Layout) {
    let Some((class, size)) = class_of(layout) else {
        // SAFETY: `allocate` had it from the allocator for this layout.
        return unsafe { std::alloc::dealloc(block.as_ptr(), layout) };
    };
    let keep = |size_kept: &Cell<usize>, kept: &mut Vec<NonNull<u8>>| {
        if kept.capacity() < KEPT_MAX {
            make_room(kept);
        } else if kept.len() >= KEPT_MAX && !give_away(class, kept) {
            return false;
        }
        size_kept.set(size);
        let len = kept.len();
        // SAFETY: there is room for KEPT_MAX. `push` would have a way to grow, whose cost in saved
        // registers is half of all this.
        unsafe {
            kept.as_mut_ptr().add(len).write(block);
            kept.set_len(len + 1);
        }
        true
    };
    if with_kept(class, keep) != Some(true) {
        // SAFETY: `allocate` had it from the allocator, in its size's layout.
        unsafe { std::alloc::dealloc(block.as_ptr(), class_layout(size)) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_given_out_again() {
        let layout = Layout::new::<[u64; 20]>();
        let first = allocate(layout);
        // SAFETY: from `allocate`, for this layout.
        unsafe { free(first, layout) };
        assert_eq!(allocate(layout), first);
        // SAFETY: as above.
        unsafe { free(first, layout) };
    }

    #[test]
    fn what_no_size_holds_is_the_allocators() {
        let large = Layout::new::<[u8; CLASSES * STEP + 1]>();
        assert_eq!(class_of(large), None);
        let aligned = Layout::from_size_align(64, 2 * STEP).unwrap();
        assert_eq!(class_of(aligned), None);
        for layout in [large, aligned] {
            let block = allocate(layout);
            assert!(block.addr().get().is_multiple_of(layout.align()));
            // SAFETY: from `allocate`, for this layout.
            unsafe { free(block, layout) };
        }
    }

    /// Of a size that nothing else in this program's tests has, as the depot is everybody's.
    type Large = [u64; 63];

    #[test]
    fn what_a_thread_has_too_many_of_goes_to_one_that_has_none() {
        let layout = Layout::new::<Large>();
        let (class, _) = class_of(layout).unwrap();
        let blocks: Vec<_> = (0..KEPT_MAX + 10).map(|_| allocate(layout)).collect();
        let addresses: Vec<_> = blocks.iter().map(|block| block.addr()).collect();
        for block in blocks {
            // SAFETY: from `allocate`, for this layout.
            unsafe { free(block, layout) };
        }
        let kept = move || with_kept(class, |_, kept| kept.len());
        assert_eq!(kept(), Some(KEPT_MAX - BATCH + 10));
        let elsewhere = move || {
            let block = allocate(layout);
            assert!(addresses.contains(&block.addr()), "it came by the depot");
            assert_eq!(kept(), Some(BATCH - 1), "with all of its batch");
            // SAFETY: from `allocate`, for this layout.
            unsafe { free(block, layout) };
        };
        std::thread::spawn(elsewhere).join().unwrap();
    }
}
