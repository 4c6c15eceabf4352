//! A list that any thread pushes onto, and signal handlers, and that the home thread empties.
//!
//! It owns what is on it. Whether something is on it already is its protocol's business: what is
//! pushed twice breaks the list, so each has a bit in its own word whose winner pushes.

#![allow(unsafe_code)] // Nodes pass through the list as raw pointers that own a reference.

use core::ptr;
use std::sync::Arc;

use crate::atomic::{AtomicPtr, Ordering};

/// What can be on a [`List`]. `next` is the list's own while it is.
pub(super) trait Linked: Send + Sync + Sized {
    fn next(&self) -> &AtomicPtr<Self>;
}

/// A Treiber stack, newest first; the drain turns it round.
#[derive(Debug)]
pub(super) struct List<T: Linked> {
    newest: AtomicPtr<T>,
}

impl<T: Linked> List<T> {
    pub(super) fn new() -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Pushes a node that is on no list. No allocation.
    pub(super) fn push(&self, node: Arc<T>) {
        let raw = Arc::into_raw(node).cast_mut();
        let Some(node) = resolve(raw) else { return };
        let mut seen = self.newest.load(Ordering::Relaxed);
        loop {
            node.next().store(seen, Ordering::Relaxed);
            // Release: publishes `next` and the node; pairs with `drain`.
            match self
                .newest
                .compare_exchange_weak(seen, raw, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.newest.load(Ordering::Relaxed).is_null()
    }

    /// Takes everything and hands it over oldest first. `each` must not panic.
    pub(super) fn drain(&self, mut each: impl FnMut(Arc<T>)) {
        if self.is_empty() {
            return;
        }
        let mut at = self.newest.swap(ptr::null_mut(), Ordering::Acquire);
        // Turned round in place.
        let mut oldest: *mut T = ptr::null_mut();
        while let Some(node) = resolve(at) {
            let next = node.next().load(Ordering::Relaxed);
            node.next().store(oldest, Ordering::Relaxed);
            oldest = at;
            at = next;
        }
        while let Some(node) = resolve(oldest) {
            let next = node.next().load(Ordering::Relaxed);
            // SAFETY: the reference that `push` gave to the list, which has let go of the node.
            each(unsafe { Arc::from_raw(oldest) });
            oldest = next;
        }
    }
}

impl<T: Linked> Drop for List<T> {
    fn drop(&mut self) {
        self.drain(drop);
    }
}

fn resolve<'a, T>(node: *mut T) -> Option<&'a T> {
    // SAFETY: a node on the list is kept alive by the list's reference, and only the home thread
    // takes nodes off; one that is being pushed, by its pusher's.
    unsafe { node.as_ref() }
}
