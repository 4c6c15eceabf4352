//! Nodes that run once.

use core::ptr::NonNull;
use std::alloc::Layout;

use super::{Node, Work};
use crate::recycle;

/// How to use a [`Once`] whose closure's type is forgotten. Both end it.
pub(super) struct OnceTable {
    pub(super) run: unsafe fn(NonNull<Node>),
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
    const LAYOUT: Layout = Layout::new::<Self>();

    #[inline]
    pub(super) fn make(
        name: &'static str,
        callback: F,
        work: fn(&'static OnceTable) -> Work,
    ) -> NonNull<Node> {
        let node = Node::new(name, work(&Self::TABLE));
        let place = recycle::allocate(Self::LAYOUT);
        let place = place.cast::<Self>();
        // SAFETY: it is free memory of LAYOUT, which is not of size 0: a node has a size.
        unsafe { place.write(Self { node, callback }) };
        place.cast() // `repr(C)` puts the node first.
    }

    /// # Safety
    /// The node is of a `Once<F>` of `make`'s, and the caller's own. Home thread.
    unsafe fn run(node: NonNull<Node>) {
        let place = node.cast::<Self>();
        // SAFETY: the caller's promise. The memory is free again when the callback runs.
        let Self { callback, .. } = unsafe { place.read() };
        // SAFETY: allocated with that layout, and moved out of.
        unsafe { recycle::free(place.cast(), Self::LAYOUT) };
        callback();
    }

    /// # Safety
    /// The node is of a `Once<F>` of `make`'s, and the caller's own.
    unsafe fn free(node: NonNull<Node>) {
        let place = node.cast::<Self>();
        // SAFETY: the caller's promise.
        let once = unsafe { place.read() };
        // SAFETY: allocated with that layout, and moved out of.
        unsafe { recycle::free(place.cast(), Self::LAYOUT) };
        drop(once);
    }
}
