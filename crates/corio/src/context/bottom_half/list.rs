//! The list that threads other than the home push on, and signal handlers that interrupt it: a
//! Treiber stack, which the home takes as a whole.

use core::ptr;

use crate::atomic::{AtomicPtr, Ordering};

/// A node type, and its pointer to the node pushed before it.
pub(super) trait Chained: Sized {
    fn next(&self) -> &AtomicPtr<Self>;
}

/// Newest first.
#[derive(Debug)]
pub(super) struct List<T> {
    newest: AtomicPtr<T>,
}

impl<T: Chained> List<T> {
    pub(super) fn new() -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Pushes a node that is in no list, and that stays until it is taken. Any thread, and signal
    /// handlers.
    ///
    /// True if it was empty. It was not: whoever has pushed the first of what is in it tells the
    /// home ([`NotifyState::pushed`](super::super::notify::NotifyState::pushed)).
    #[must_use]
    pub(super) fn push(&self, node: &T) -> bool {
        let mut seen = self.newest.load(Ordering::Relaxed);
        loop {
            node.next().store(seen, Ordering::Relaxed);
            // Release: publishes `next` and the node; pairs with `drain`. Acquire: pairs with `look`.
            match self.newest.compare_exchange_weak(
                seen,
                ptr::from_ref(node).cast_mut(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return seen.is_null(),
                Err(now) => seen = now,
            }
        }
    }

    /// An exchange that changes nothing, and has its place among those that do: before the home
    /// waits. Whoever pushes later sees what the home wrote before; what was pushed earlier is seen
    /// from here on.
    pub(super) fn look(&self) {
        let mut seen = self.newest.load(Ordering::Relaxed);
        // AcqRel: pairs with `push`.
        while let Err(now) =
            self.newest
                .compare_exchange_weak(seen, seen, Ordering::AcqRel, Ordering::Relaxed)
        {
            seen = now;
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.newest.load(Ordering::Relaxed).is_null()
    }

    /// Takes everything and hands it over newest first. Home thread.
    pub(super) fn drain(&self, mut each: impl FnMut(&T)) {
        let mut at = self.newest.swap(ptr::null_mut(), Ordering::Acquire); // Pairs with `push`.
        while let Some(node) = resolve(at) {
            at = node.next().load(Ordering::Relaxed);
            each(node); // It may be pushed again from here on.
        }
    }
}

#[allow(unsafe_code)] // Intrusive nodes.
fn resolve<'a, T>(node: *mut T) -> Option<&'a T> {
    // SAFETY: a node stays at its place until the home has taken it off the list (queue I1), and
    // only the home takes nodes off.
    unsafe { node.as_ref() }
}
