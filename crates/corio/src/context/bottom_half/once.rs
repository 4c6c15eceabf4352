//! Nodes that run once, and the memory they are kept in.

use core::ptr::NonNull;
// What only the home uses, no protocol, so not through `crate::atomic`.
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use super::{Node, Work};

/// How to use a [`Once`] whose closure's type is forgotten. Both end it.
pub(super) struct OnceTable {
    pub(super) run: unsafe fn(NonNull<Node>, &Spare),
    pub(super) free: unsafe fn(NonNull<Node>),
}

/// A node that runs once, and its closure: one allocation, or none.
#[repr(C)] // The node first: a pointer to it is one to all.
pub(super) struct Once<F> {
    node: Node,
    callback: F,
}

impl<F: FnOnce() + Send> Once<F> {
    const TABLE: OnceTable = OnceTable {
        run: Self::run,
        free: Self::free,
    };
    /// Whether it is kept in a block of [`Spare`]'s.
    const FITS: bool = size_of::<Self>() <= BLOCK.size() && align_of::<Self>() <= BLOCK.align();
    const LAYOUT: Layout = if Self::FITS {
        BLOCK
    } else {
        Layout::new::<Self>()
    };

    /// In memory of `spare`'s if there is some; without it, on a thread that is not home.
    #[inline]
    pub(super) fn make(
        name: &'static str,
        callback: F,
        work: fn(&'static OnceTable) -> Work,
        spare: Option<&Spare>,
    ) -> NonNull<Node> {
        let node = Node::new(name, work(&Self::TABLE));
        let found = spare.filter(|_| Self::FITS).and_then(Spare::take);
        let place = found.unwrap_or_else(|| {
            // SAFETY: a node has a size.
            NonNull::new(unsafe { alloc(Self::LAYOUT) })
                .unwrap_or_else(|| handle_alloc_error(Self::LAYOUT))
        });
        let place = place.cast::<Self>();
        // SAFETY: it is free memory of LAYOUT, which is large enough.
        unsafe { place.write(Self { node, callback }) };
        place.cast() // `repr(C)` puts the node first.
    }

    /// # Safety
    /// The node is of a `Once<F>` of `make`'s, and the caller's own. Home thread, whose `spare` it
    /// is.
    unsafe fn run(node: NonNull<Node>, spare: &Spare) {
        let place = node.cast::<Self>();
        // SAFETY: the caller's promise. The memory is free again when the callback runs.
        let Self { callback, .. } = unsafe { place.read() };
        if !Self::FITS || !spare.put(place.cast()) {
            // SAFETY: allocated with that layout, and moved out of.
            unsafe { dealloc(place.cast().as_ptr(), Self::LAYOUT) };
        }
        callback();
    }

    /// # Safety
    /// The node is of a `Once<F>` of `make`'s, and the caller's own.
    unsafe fn free(node: NonNull<Node>) {
        let place = node.cast::<Self>();
        // SAFETY: the caller's promise.
        let once = unsafe { place.read() };
        // SAFETY: allocated with that layout, and moved out of.
        unsafe { dealloc(place.cast().as_ptr(), Self::LAYOUT) };
        drop(once);
    }
}

/// Memory that a home keeps for one-shots to come: what the allocator asks for twice costs more
/// than all else of a one-shot.
pub(super) struct Spare {
    /// The first word of each is the address of the next.
    first: AtomicPtr<u8>,
    count: AtomicU32,
}

/// Of most one-shots.
const BLOCK: Layout = match Layout::from_size_align(size_of::<Node>() + 64, align_of::<Node>()) {
    Ok(layout) => layout,
    Err(_) => panic!("it is a small power of two"),
};
/// How many are kept.
const SPARE_MAX: u32 = 256;

impl Spare {
    pub(super) fn new() -> Self {
        Self {
            first: AtomicPtr::new(core::ptr::null_mut()),
            count: AtomicU32::new(0),
        }
    }

    /// Home thread, not in a signal handler.
    #[inline]
    fn take(&self) -> Option<NonNull<u8>> {
        let first = NonNull::new(self.first.load(Ordering::Relaxed))?;
        // SAFETY: a free block of ours, whose first word is `put`'s.
        let next = unsafe { first.cast::<*mut u8>().read() };
        self.first.store(next, Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count - 1, Ordering::Relaxed);
        Some(first)
    }

    /// False if there are enough. Home thread, not in a signal handler.
    #[inline]
    fn put(&self, block: NonNull<u8>) -> bool {
        let count = self.count.load(Ordering::Relaxed);
        if count >= SPARE_MAX {
            return false;
        }
        // SAFETY: of the size and alignment of BLOCK, and nobody's any more.
        unsafe {
            block
                .cast::<*mut u8>()
                .write(self.first.load(Ordering::Relaxed));
        }
        self.first.store(block.as_ptr(), Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Relaxed);
        true
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        while let Some(block) = self.take() {
            // SAFETY: allocated with that layout.
            unsafe { dealloc(block.as_ptr(), BLOCK) };
        }
    }
}
