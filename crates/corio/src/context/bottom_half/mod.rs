//! Bottom halves: callbacks that are scheduled from anywhere and run in the context's home thread
//! (SPEC B1 to B9).
//!
//! A turn runs what is in the queue when it begins; a nested poll runs what the outer turns have
//! left of it first, and then what has come since (B6). Order is first scheduled, first run (B7;
//! differs from QEMU).
//!
//! Files: `queue` the protocol between the home, other threads and signal handlers, `list` what the
//! latter two push on, `once` the nodes that run once. Here are the others, and what runs them.

#![allow(unsafe_code)] // Nodes pass through the queue as raw pointers (queue I1, I2).

mod list;
mod once;
mod queue;

use core::ptr::NonNull;
// A counter and no protocol, so not through `crate::atomic`.
use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::list::Chained;
use self::once::{Once, OnceTable};
use self::queue::{Hurry, Link, Linked, Popped, Queue};
use super::AioContext;
use crate::tls;
use crate::track;

/// How long the loop sleeps at most while an idle bottom half is scheduled.
pub(super) const IDLE_PERIOD_NS: u64 = 10_000_000;

/// What a node runs.
enum Work {
    Shared(Box<dyn Fn() + Send + Sync>),
    Once(&'static OnceTable),
    /// The same, to start a coroutine; see [`BottomHalves::drop_spawns`].
    Spawn(&'static OnceTable),
}

struct Node {
    link: Link<Node>,
    work: Work,
    name: &'static str,
    /// See `number`; 0 if none was given yet.
    number: AtomicU64,
}

impl Node {
    fn new(name: &'static str, work: Work) -> Self {
        Self {
            link: Link::new(),
            work,
            name,
            number: AtomicU64::new(0),
        }
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

    fn note_run(&self) {
        if track::is_enabled() {
            track::emit_bottom_half(self.number(), self.name);
        }
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
        !matches!(self.work, Work::Shared(_))
    }
}

/// Frees a node that belongs to the caller.
///
/// # Safety
/// It does, and nobody else uses it.
unsafe fn free(node: *mut Node) {
    let Some(node) = NonNull::new(node) else {
        return;
    };
    // SAFETY: the caller's promise; made by `Once::make` or `BottomHalf::new`.
    unsafe {
        match node.as_ref().work {
            Work::Once(table) | Work::Spawn(table) => (table.free)(node),
            Work::Shared(_) => drop(Box::from_raw(node.as_ptr())),
        }
    }
}

/// What a context keeps of its bottom halves.
pub(super) struct BottomHalves {
    queue: Queue<Node>,
}

impl Drop for BottomHalves {
    fn drop(&mut self) {
        // Handles hold the context, so that what is left here belongs to the queue.
        self.discard(|_| true);
    }
}

impl BottomHalves {
    pub(super) fn new() -> Self {
        Self {
            queue: Queue::new(),
        }
    }

    /// True if others have pushed something that is not absorbed yet. Home thread.
    pub(super) fn is_pushed(&self) -> bool {
        self.queue.is_pushed()
    }

    /// See [`Queue::look`].
    pub(super) fn look(&self) {
        self.queue.look();
    }

    /// How long the loop may sleep for all that bottom halves care: 0, the idle period, or without
    /// limit. Home thread.
    #[inline]
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        if self.queue.is_empty() {
            return None;
        }
        // Without a section, this is a signal handler that polls: there is nothing it could run.
        let is_urgent = self.queue.section()?.is_urgent()?;
        Some(if is_urgent { 0 } else { IDLE_PERIOD_NS })
    }

    /// Frees what belongs to the queue and is `unwanted`. Who does this is home, or the last.
    fn discard(&self, unwanted: impl Fn(&Node) -> bool) {
        let mut freed = Vec::new();
        if let Some(section) = self.queue.section() {
            section.absorb();
            let limit = section.appended();
            while let Some(popped) = section.pop(limit) {
                match popped {
                    Popped::Once(node) => {
                        // SAFETY: it was just popped, and belongs to us.
                        let node_ref = unsafe { &*node };
                        if unwanted(node_ref) {
                            freed.push(node);
                        } else {
                            section.put_back_once(node_ref);
                        }
                    }
                    // SAFETY: it stays for the run, and then for being in the queue.
                    Popped::Run { node, hurry } => section.put_back(unsafe { &*node }, hurry),
                    Popped::Dead(node) => freed.push(node),
                    Popped::Skip => {}
                }
            }
        }
        for node in freed {
            // SAFETY: it belongs to us. A panic of what it has captured must not keep the others.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| unsafe { free(node) })) {
                core::mem::forget(payload);
            }
        }
    }

    /// Drops the spawns that no home will run. Who does this is home.
    pub(super) fn drop_spawns(&self) {
        self.discard(|node| matches!(node.work, Work::Spawn(_)));
    }

    /// Runs what was scheduled before the call, and what outer turns have not run yet. True:
    /// progress. Home thread.
    #[inline]
    pub(super) fn run(&self) -> bool {
        !self.queue.is_empty() && self.run_queued()
    }

    #[inline(never)] // Out of the way of turns without any.
    fn run_queued(&self) -> bool {
        let Some(mut section) = self.queue.section() else {
            return false;
        };
        section.absorb();
        let limit = section.appended();
        let mut progress = false;
        while let Some(popped) = section.pop(limit) {
            drop(section);
            let running = match popped {
                Popped::Run { node, hurry } => {
                    progress |= hurry == Hurry::Urgent;
                    // SAFETY: it stays until `ran`.
                    Some(self.run_shared(unsafe { &*node }))
                }
                Popped::Once(node) => {
                    progress = true;
                    run_once(node);
                    None
                }
                Popped::Skip => None,
                Popped::Dead(node) => {
                    // SAFETY: it belongs to us.
                    unsafe { free(node) };
                    None
                }
            };
            // In none: no callback leaves a section open.
            let Some(next) = self.queue.section() else {
                return progress;
            };
            section = next;
            if let Some(running) = running {
                section = running.end(section);
            }
        }
        progress
    }

    #[inline]
    fn run_shared<'a>(&'a self, node: &'a Node) -> Running<'a> {
        let running = Running(self, node);
        node.note_run();
        if let Work::Shared(callback) = &node.work {
            callback();
        }
        running
    }
}

#[inline]
fn run_once(node: *mut Node) {
    let Some(node) = NonNull::new(node) else {
        return;
    };
    // SAFETY: it was popped, and belongs to us; its table is of its type.
    unsafe {
        node.as_ref().note_run();
        if let Work::Once(table) | Work::Spawn(table) = node.as_ref().work {
            (table.run)(node);
        }
    }
}

/// A run, which ends also by the callback's panic.
struct Running<'a>(&'a BottomHalves, &'a Node);

impl<'a> Running<'a> {
    /// Without a panic. The section that is returned is the next one if the node was freed.
    #[inline]
    fn end(self, section: queue::Section<'a, Node>) -> queue::Section<'a, Node> {
        let Self(halves, node) = self;
        core::mem::forget(self);
        if !section.ran(node) {
            return section;
        }
        drop(section);
        // SAFETY: `ran` says that it belongs to us.
        unsafe { free(core::ptr::from_ref(node).cast_mut()) };
        loop {
            // What its destructor has done is over.
            if let Some(section) = halves.queue.section() {
                return section;
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Self(halves, node) = self;
        let node = core::ptr::from_ref::<Node>(node).cast_mut();
        // The home thread is in no section while a callback runs.
        let section = halves.queue.section();
        // SAFETY: it stays until `ran`.
        if section.is_some_and(|section| section.ran(unsafe { &*node })) {
            // SAFETY: `ran` says that it belongs to us.
            unsafe { free(node) };
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
#[doc(alias("qemu_bh_new", "aio_bh_new_full", "qemu_bh_delete"))]
#[must_use = "a bottom half is deleted when its handle is dropped"]
pub struct BottomHalf {
    /// Its own, until it is dropped.
    node: NonNull<Node>,
    context: AioContext,
}

// SAFETY: what a node is used for through handles is atomics and a callback that is Send and Sync,
// and its home word's protocol says who frees it (queue I2).
unsafe impl Send for BottomHalf {}
// SAFETY: as above.
unsafe impl Sync for BottomHalf {}

impl BottomHalf {
    pub(super) fn new(
        context: AioContext,
        name: &'static str,
        callback: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let node = Box::new(Node::new(name, Work::Shared(callback)));
        let node = NonNull::from(Box::leak(node));
        Self { node, context }
    }

    fn node(&self) -> &Node {
        // SAFETY: the handle keeps it.
        unsafe { self.node.as_ref() }
    }

    /// Has it run once in the next turn, however often it is scheduled before that. Any thread, and
    /// signal handlers.
    #[doc(alias = "qemu_bh_schedule")]
    #[inline]
    pub fn schedule(&self) {
        let context = self.context.inner();
        let queue = &context.bottom_halves.queue;
        if is_home(&self.context)
            && let Some(section) = queue.section()
        {
            section.schedule(self.node(), Hurry::Urgent);
            drop(section);
            // Between two waits the home thread looks by itself before it blocks.
            if context.notify.is_waiting() {
                self.context.notify();
            }
            return;
        }
        if queue.ask(self.node(), Hurry::Urgent) {
            context.tell_pushed();
        }
    }

    /// Has it run when the loop turns next, at the latest after 10 ms, without hurrying the loop
    /// and without counting as progress. Scheduling it normally makes it urgent. Any thread, and
    /// signal handlers.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        let queue = &self.context.inner().bottom_halves.queue;
        let section = queue.section_at(&self.context);
        match &section {
            Some(section) => section.schedule(self.node(), Hurry::Idle),
            // Whatever else was pushed has not told of an idle one.
            None => _ = queue.ask(self.node(), Hurry::Idle),
        }
        drop(section);
        // A notification would end the next wait at once, and one that schedules itself again would
        // spin.
        self.context.shorten_wait();
    }

    /// Takes a schedule back. Any thread; one that runs already goes on. Its place is
    /// kept: scheduled again before that comes, it runs there, also in the same turn.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        match self
            .context
            .inner()
            .bottom_halves
            .queue
            .section_at(&self.context)
        {
            Some(section) => section.cancel(self.node()),
            None => Queue::ask_to_cancel(self.node()),
        }
    }

    /// The number of its context, for tracking.
    pub(crate) fn context_id(&self) -> u64 {
        self.context.id()
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.node().name
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        let queue = &self.context.inner().bottom_halves.queue;
        let section = queue.section_at(&self.context);
        let is_here = section.is_some();
        let is_ours = match section {
            Some(section) => section.delete(self.node()),
            None => queue.delete(self.node()),
        };
        if is_ours {
            // SAFETY: `delete` says that it is.
            unsafe { free(self.node.as_ptr()) };
        } else if !is_here {
            self.context.notify(); // What it has captured is not to wait for the next event.
        }
    }
}

impl core::fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BottomHalf")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// Whether this thread is the home of `context`. Also in signal handlers.
#[inline]
fn is_home(context: &AioContext) -> bool {
    tls::thread().context_id.get() == context.id()
}

impl Queue<Node> {
    /// A section of the queue of `context`, if this is its home thread and is in none.
    fn section_at(&self, context: &AioContext) -> Option<queue::Section<'_, Node>> {
        is_home(context).then(|| self.section()).flatten()
    }
}

/// Runs `callback` once in the home thread.
pub(super) fn oneshot(
    context: &AioContext,
    name: &'static str,
    callback: impl FnOnce() + Send + 'static,
) {
    if push(context, name, callback, Work::Once) {
        context.inner().notifier.set();
    }
}

/// As [`oneshot`], for what starts a coroutine. True: the caller has to notify.
#[must_use]
pub(super) fn push_spawn(
    context: &AioContext,
    name: &'static str,
    callback: impl FnOnce() + Send + 'static,
) -> bool {
    push(context, name, callback, Work::Spawn)
}

/// Gives the queue a node that runs once. True: the caller has to notify.
#[inline]
fn push<F: FnOnce() + Send + 'static>(
    context: &AioContext,
    name: &'static str,
    callback: F,
    work: fn(&'static OnceTable) -> Work,
) -> bool {
    let inner = context.inner();
    let halves = &inner.bottom_halves;
    let is_home = is_home(context);
    let node = Once::make(name, callback, work);
    // SAFETY: it was just made, and belongs to the queue from here on: what runs it may be faster
    // than we are, and nothing of it is used after it was given.
    let node = unsafe { node.as_ref() };
    if is_home && let Some(section) = halves.queue.section() {
        section.give(node);
        drop(section);
        return inner.notify.is_waiting() && inner.notify.notify();
    }
    halves.queue.give(node) && inner.notify.pushed()
}
