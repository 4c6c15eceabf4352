//! Nodes: what every bottom half is to the queue, and the closure behind it.
//!
//! A node and its closure are one allocation, of a type that only its table knows. One that is
//! scheduled again and again has a cache line of its own with most closures in it; one that runs
//! once comes out of memory that is used again.

use core::mem::offset_of;
use core::ptr::NonNull;
// A counter and no protocol, so not through `crate::atomic`.
use core::sync::atomic::{AtomicU64, Ordering};
use std::alloc::Layout;

use super::list::Chained;
use super::queue::{Link, Linked};
use crate::recycle;
use crate::track;

/// See the module's documentation.
pub(super) struct Node {
    link: Link<Node>,
    table: &'static Table,
    pub(super) name: &'static str,
    /// See `number`; 0 if none was given yet.
    number: AtomicU64,
}

/// How to use a node whose closure's type is forgotten.
struct Table {
    kind: Kind,
    run: unsafe fn(NonNull<Node>),
    free: unsafe fn(NonNull<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Scheduled by its handle, any number of times.
    Shared,
    /// Runs once, which ends it.
    Once,
    /// The same, to start a coroutine; see `BottomHalves::drop_spawns`.
    Spawn,
}

impl Node {
    fn new(name: &'static str, table: &'static Table) -> Self {
        Self {
            link: Link::new(),
            table,
            name,
            number: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn kind(&self) -> Kind {
        self.table.kind
    }

    /// A number that no other bottom half has or had, for tracking. It is given when it is first
    /// asked for, so that those that nobody tracks do not meet at the counter. Home thread, so that
    /// nobody else gives one meanwhile.
    fn number(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        match self.number.load(Ordering::Relaxed) {
            0 => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                self.number.store(number, Ordering::Relaxed);
                number
            }
            number => number,
        }
    }

    /// Tells that it is about to run.
    pub(super) fn note_run(&self) {
        track::emit_bottom_half(self.number(), self.name);
    }
}

impl Chained for Node {
    fn next(&self) -> &crate::atomic::AtomicPtr<Self> {
        self.link.next_asked()
    }
}

impl Linked for Node {
    fn link(&self) -> &Link<Self> {
        &self.link
    }

    #[inline]
    fn runs_once(&self) -> bool {
        self.kind() != Kind::Shared
    }
}

/// Runs its closure. One that runs once is gone then.
///
/// # Safety
/// Home thread. The node stays meanwhile; if it runs once, it is the caller's own.
#[inline]
pub(super) unsafe fn run(node: NonNull<Node>) {
    // SAFETY: the caller's promise; the table is of its type.
    unsafe { (node.as_ref().table.run)(node) };
}

/// Frees a node, closure and all.
///
/// # Safety
/// It is the caller's own, and nobody else uses it.
pub(super) unsafe fn free(node: NonNull<Node>) {
    // SAFETY: the caller's promise; the table is of its type.
    unsafe { (node.as_ref().table.free)(node) };
}

/// A node that is scheduled any number of times, and its closure.
#[repr(C, align(64))] // The node first: a pointer to it is one to all. A cache line.
struct Shared<F> {
    node: Node,
    callback: F,
}

// A closure that has captured a reference is in the node's line.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Shared<&()>>() == 64);

impl<F: Fn() + Send + Sync> Shared<F> {
    const TABLE: Table = Table {
        kind: Kind::Shared,
        run: Self::run,
        free: Self::free,
    };

    /// # Safety
    /// The node is of a `Shared<F>`, and stays.
    unsafe fn run(node: NonNull<Node>) {
        // SAFETY: the caller's promise.
        (unsafe { &node.cast::<Self>().as_ref().callback })();
    }

    /// # Safety
    /// The node is of a `Shared<F>` of `shared`'s, and the caller's own.
    unsafe fn free(node: NonNull<Node>) {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(node.cast::<Self>().as_ptr()) });
    }
}

/// Makes a node that is scheduled any number of times.
pub(super) fn shared<F>(name: &'static str, callback: F) -> NonNull<Node>
where
    F: Fn() + Send + Sync + 'static,
{
    const { assert!(offset_of!(Shared<F>, node) == 0) }
    let node = Node::new(name, &Shared::<F>::TABLE);
    NonNull::from(Box::leak(Box::new(Shared { node, callback }))).cast()
}

/// A node that runs once, and its closure: one allocation, or none.
#[repr(C)] // The node first: a pointer to it is one to all.
struct Once<F> {
    node: Node,
    callback: F,
}

impl<F: FnOnce() + Send> Once<F> {
    const ONCE: Table = Self::table(Kind::Once);
    const SPAWN: Table = Self::table(Kind::Spawn);
    const LAYOUT: Layout = Layout::new::<Self>();

    const fn table(kind: Kind) -> Table {
        Table {
            kind,
            run: Self::run,
            free: Self::free,
        }
    }

    #[inline]
    fn make(name: &'static str, callback: F, table: &'static Table) -> NonNull<Node> {
        const { assert!(offset_of!(Self, node) == 0) }
        let node = Node::new(name, table);
        let place = recycle::allocate(Self::LAYOUT);
        let place = place.cast::<Self>();
        // SAFETY: it is free memory of LAYOUT, which is not of size 0: a node has a size.
        unsafe { place.write(Self { node, callback }) };
        place.cast()
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

/// Makes a node that runs once.
#[inline]
pub(super) fn once<F: FnOnce() + Send + 'static>(name: &'static str, callback: F) -> NonNull<Node> {
    Once::make(name, callback, &Once::<F>::ONCE)
}

/// Makes a node that starts a coroutine.
#[inline]
pub(super) fn spawn<F: FnOnce() + Send + 'static>(
    name: &'static str,
    callback: F,
) -> NonNull<Node> {
    Once::make(name, callback, &Once::<F>::SPAWN)
}
