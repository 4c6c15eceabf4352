//! Bottom halves: callbacks that are scheduled from anywhere and run in the context's home thread
//! (SPEC B1 to B9).
//!
//! A turn drains the list into the context's run queue and runs that empty; a nested poll drains
//! what has come since and runs the older rest first (B6). Order is first scheduled, first run (B7;
//! differs from QEMU).

#![allow(unsafe_code)] // Nodes pass through the list as raw pointers that own a reference (list I1).

mod list;

use core::cell::RefCell;
// A counter and no protocol, so not through `crate::atomic`.
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

use self::list::{DELETED, IDLE, Link, Linked, List, SCHEDULED};
use super::AioContext;
use crate::track;

/// How long the loop sleeps at most while an idle bottom half is scheduled.
pub(super) const IDLE_PERIOD_NS: u64 = 10_000_000;

enum Callback {
    Shared(Arc<dyn Fn() + Send + Sync>),
    Once(Mutex<Option<Box<dyn FnOnce() + Send>>>),
    /// The same, to start a coroutine; see [`BottomHalves::drop_spawns`].
    Spawn(Mutex<Option<Box<dyn FnOnce() + Send>>>),
}

pub(super) struct Node {
    link: Link<Node>,
    callback: Callback,
    name: &'static str,
    /// See `number`; 0 if none was given yet.
    number: AtomicU64,
}

impl Node {
    fn new(name: &'static str, callback: Callback) -> Arc<Self> {
        Arc::new(Self {
            link: Link::new(),
            callback,
            name,
            number: AtomicU64::new(0),
        })
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
}

impl Linked for Node {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

/// What a context keeps of its bottom halves that any thread may touch.
pub(super) struct BottomHalves {
    list: List<Node>,
}

impl Drop for BottomHalves {
    fn drop(&mut self) {
        self.list.drain(|node| {
            // SAFETY: list I1.
            drop(unsafe { Arc::from_raw(node) });
        });
    }
}

/// What is due in this and the outer turns. Home thread.
#[derive(Default)]
pub(super) struct RunQueue(RefCell<VecDeque<Arc<Node>>>);

impl RunQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl BottomHalves {
    pub(super) fn new() -> Self {
        Self { list: List::new() }
    }

    fn push(&self, node: &Arc<Node>) {
        let raw = Arc::into_raw(Arc::clone(node)).cast_mut();
        self.list.push(raw, &node.link);
    }

    /// How long the loop may sleep for all that bottom halves care: 0, the idle period, or without
    /// limit.
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        if self.list.is_empty() {
            return None;
        }
        let urgent = |node: &Node| {
            let flags = node.link.flags();
            flags & SCHEDULED != 0 && flags & (IDLE | DELETED) == 0
        };
        Some(if self.list.any(urgent) {
            0
        } else {
            IDLE_PERIOD_NS
        })
    }

    fn take(&self, queue: &RunQueue) {
        self.list.drain(|node| {
            // SAFETY: list I1: the reference that the list owned passes to the queue.
            let node = unsafe { Arc::from_raw(node) };
            queue.0.borrow_mut().push_back(node);
        });
    }

    /// At the end of a home: what panics have kept from running waits for the next home, in its
    /// order (list I1).
    pub(super) fn put_back(&self, queue: &RunQueue) {
        if queue.is_empty() {
            return;
        }
        self.take(queue);
        for node in queue.0.take() {
            self.push(&node);
        }
    }

    /// Drops the spawns that no home will run. Who does this is home, without a run queue.
    pub(super) fn drop_spawns(&self) {
        let taken = RunQueue::default();
        self.take(&taken);
        let mut spawns = Vec::new();
        for node in taken.0.take() {
            match &node.callback {
                Callback::Spawn(callback) => spawns.extend(callback.lock().take()),
                Callback::Shared(_) | Callback::Once(_) => self.push(&node), // Still PENDING.
            }
        }
        for spawn in spawns {
            // A panic of what it has captured must not keep the others.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(spawn))) {
                core::mem::forget(payload);
            }
        }
    }

    /// Runs what was scheduled before the call, and what outer turns have not run yet. True:
    /// progress.
    pub(super) fn run(&self, queue: &RunQueue) -> bool {
        self.take(queue);
        let mut progress = false;
        loop {
            let Some(node) = queue.0.borrow_mut().pop_front() else {
                return progress;
            };
            let asked = node.link.take();
            if asked & SCHEDULED == 0 || asked & DELETED != 0 {
                continue;
            }
            progress |= asked & IDLE == 0;
            if track::is_enabled() {
                track::emit_bottom_half(node.number(), node.name);
            }
            match &node.callback {
                Callback::Shared(callback) => callback(),
                Callback::Once(callback) | Callback::Spawn(callback) => {
                    let callback = callback.lock().take();
                    if let Some(callback) = callback {
                        callback();
                    }
                }
            }
        }
    }
}

/// A bottom half: a callback that is scheduled from any thread, or a signal handler, and runs in
/// its context's home thread, outside any coroutine.
///
/// Dropping the handle deletes it: it does not run again, also if it is scheduled.
///
/// ```
/// use corio::IoThread;
/// use std::sync::mpsc;
/// let io = IoThread::builder().name("io").spawn()?;
/// let (tx, rx) = mpsc::sync_channel(1);
/// let bh = io.context().bottom_half("hello", move || tx.send("ran").unwrap());
/// bh.schedule();
/// assert_eq!(rx.recv().unwrap(), "ran");
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "QEMUBH")]
#[doc(alias = "qemu_bh_new")]
#[must_use = "a bottom half is deleted when its handle is dropped"]
pub struct BottomHalf {
    node: Arc<Node>,
    context: AioContext,
}

impl BottomHalf {
    pub(super) fn new(
        context: AioContext,
        name: &'static str,
        callback: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let node = Node::new(name, Callback::Shared(callback));
        Self { node, context }
    }

    /// Has it run once in the next turn, however often it is scheduled before that. Any thread, and
    /// signal handlers.
    #[doc(alias = "qemu_bh_schedule")]
    pub fn schedule(&self) {
        if self.node.link.mark(SCHEDULED, IDLE) {
            self.context.inner().bottom_halves.push(&self.node);
        }
        self.context.notify();
    }

    /// Has it run when the loop turns next, at the latest after 10 ms, without hurrying the loop
    /// and without counting as progress. Scheduling it normally makes it urgent. Any thread, and
    /// signal handlers.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        if self.node.link.mark(SCHEDULED | IDLE, 0) {
            self.context.inner().bottom_halves.push(&self.node);
        }
        // A notification would end the next wait at once, and one that schedules itself again would
        // spin.
        self.context.shorten_wait();
    }

    /// Takes a schedule back. Any thread; one that runs already goes on.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        self.node.link.clear(SCHEDULED | IDLE);
    }

    /// The number of its context, for tracking.
    pub(crate) fn context_id(&self) -> u64 {
        self.context.id()
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.node.name
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        self.node.link.delete();
    }
}

impl core::fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BottomHalf")
            .field("name", &self.node.name)
            .finish_non_exhaustive()
    }
}

/// Runs `callback` once in the home thread.
pub(super) fn oneshot(
    context: &AioContext,
    name: &'static str,
    callback: Box<dyn FnOnce() + Send>,
) {
    push_new(
        context,
        &Node::new(name, Callback::Once(Mutex::new(Some(callback)))),
    );
    context.notify();
}

/// As [`oneshot`], for what starts a coroutine; the caller notifies.
pub(super) fn push_spawn(
    context: &AioContext,
    name: &'static str,
    callback: Box<dyn FnOnce() + Send>,
) {
    push_new(
        context,
        &Node::new(name, Callback::Spawn(Mutex::new(Some(callback)))),
    );
}

fn push_new(context: &AioContext, node: &Arc<Node>) {
    if node.link.mark(SCHEDULED, 0) {
        context.inner().bottom_halves.push(node);
    }
}
