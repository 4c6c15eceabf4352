//! Bottom halves: callbacks that are scheduled from anywhere and run in the context's home thread
//! (SPEC B1 to B9).
//!
//! A turn runs what is in the queue when it begins; a nested poll runs what the outer turns have
//! left of it first, and then what has come since (B6). Order is first scheduled, first run (B7;
//! differs from QEMU).
//!
//! Files: `queue` the protocol between the home, other threads and signal handlers, `list` what the
//! latter two push on, `node` what they push. Here is what runs them, and the handle.

#![allow(unsafe_code)] // Nodes pass through the queue as raw pointers (queue I1, I2).

mod list;
mod node;
mod queue;

use core::hint::cold_path;
use core::ptr::NonNull;
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::node::{Kind, Node, free};
use self::queue::{Hurry, Popped, Queue};
use super::AioContext;
use crate::tls;
use crate::track;

/// How long the loop sleeps at most while an idle bottom half is scheduled.
pub(super) const IDLE_PERIOD_NS: u64 = 10_000_000;

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

    /// True if none is scheduled, idle ones included. Home thread.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How long the loop may sleep for all that bottom halves care: 0, the idle period, or without
    /// limit. Home thread.
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        if self.queue.is_empty() {
            return None;
        }
        // Without a section, this is a signal handler that polls: there is nothing it could run.
        let is_urgent = self.queue.section()?.is_urgent()?;
        Some(if is_urgent { 0 } else { IDLE_PERIOD_NS })
    }

    /// True if the loop must not sleep. Home thread.
    #[inline]
    pub(super) fn is_urgent(&self) -> bool {
        self.queue.begins_urgent() || !self.is_empty() && self.timeout_ns() == Some(0)
    }

    /// Frees what belongs to the queue and is `unwanted`. Who does this is home, or the last.
    fn discard(&self, unwanted: impl Fn(&Node) -> bool) {
        let mut freed = Vec::new();
        if let Some(section) = self.queue.section() {
            let mut slice = section.slice();
            while let Some(popped) = section.pop(&mut slice) {
                match popped {
                    Popped::Once(node) => {
                        // SAFETY: it was just popped, and belongs to us.
                        let node_ref = unsafe { node.as_ref() };
                        if unwanted(node_ref) {
                            freed.push(node);
                        } else {
                            section.put_back_once(node_ref);
                        }
                    }
                    Popped::Run { node, hurry } => {
                        // SAFETY: it stays for the run, and then for being in the queue.
                        section.put_back(unsafe { node.as_ref() }, hurry);
                    }
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
        self.discard(|node| node.kind() == Kind::Spawn);
    }

    /// Runs what was scheduled before the call, and what outer turns have not run yet. True:
    /// progress. Home thread.
    #[inline]
    pub(super) fn run(&self) -> bool {
        !self.is_empty() && self.run_queued()
    }

    #[inline(never)] // Out of the way of turns without any.
    fn run_queued(&self) -> bool {
        let Some(mut section) = self.queue.section() else {
            return false;
        };
        let mut slice = section.slice();
        let is_tracked = track::is_enabled();
        let mut progress = false;
        loop {
            while let Some(node) = section.pop_plain(&mut slice) {
                progress = true;
                drop(section);
                section = match self.run_shared(node, is_tracked) {
                    Some(next) => next,
                    None => return progress,
                };
            }
            let Some(popped) = section.pop(&mut slice) else {
                return progress;
            };
            drop(section);
            let next = if let Popped::Run { node, hurry } = popped {
                progress |= hurry == Hurry::Urgent;
                self.run_shared(node, is_tracked)
            } else {
                progress |= run_or_free(popped, is_tracked);
                self.queue.section()
            };
            // There is one: no callback leaves a section open.
            match next {
                Some(next) => section = next,
                None => return progress,
            }
        }
    }

    /// Runs what was popped to be run, in no section. The section that follows.
    #[inline(always)] // The callback's own call is enough for each.
    fn run_shared(
        &self,
        node: NonNull<Node>,
        is_tracked: bool,
    ) -> Option<queue::Section<'_, Node>> {
        // SAFETY: it stays until `ran`.
        let shared = unsafe { node.as_ref() };
        let running = Running(self, shared);
        if is_tracked {
            cold_path();
            shared.note_run();
        }
        // SAFETY: as above.
        unsafe { node::run(node) };
        Some(running.end(self.queue.section()?))
    }
}

/// What is no run of a shared callback. True: progress. In no section.
#[inline]
fn run_or_free(popped: Popped<Node>, is_tracked: bool) -> bool {
    match popped {
        // SAFETY: it was popped, and belongs to us.
        Popped::Once(node) => unsafe {
            if is_tracked {
                node.as_ref().note_run();
            }
            node::run(node);
            return true;
        },
        // SAFETY: it belongs to us.
        Popped::Dead(node) => unsafe { free(node) },
        Popped::Run { .. } | Popped::Skip => {}
    }
    false
}

/// A run of a shared callback, which ends also by its panic.
struct Running<'a>(&'a BottomHalves, &'a Node);

impl<'a> Running<'a> {
    /// Without a panic. The section that is returned is the next one if the node was freed.
    #[inline]
    fn end(self, section: queue::Section<'a, Node>) -> queue::Section<'a, Node> {
        let Self(halves, node) = self;
        core::mem::forget(self);
        if section.ran(node) {
            drop(section);
            return halves.free_in_turn(node);
        }
        section
    }
}

impl Drop for Running<'_> {
    #[inline(always)] // Else it must be in memory, for unwinding.
    fn drop(&mut self) {
        self.0.end_by_panic(self.1);
    }
}

impl BottomHalves {
    #[cold]
    fn free_in_turn(&self, node: &Node) -> queue::Section<'_, Node> {
        // SAFETY: `ran` says that it belongs to us.
        unsafe { free(NonNull::from(node)) };
        loop {
            // What its destructor has done is over.
            if let Some(section) = self.queue.section() {
                return section;
            }
        }
    }

    #[cold]
    fn end_by_panic(&self, node: &Node) {
        // The home thread is in no section while a callback runs.
        let section = self.queue.section();
        if section.is_some_and(|section| section.ran(node)) {
            // SAFETY: `ran` says that it belongs to us.
            unsafe { free(NonNull::from(node)) };
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
        callback: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let node = node::shared(name, callback);
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
        if is_home(&self.context) {
            if !self.schedule_at_home() {
                self.schedule_otherwise();
            }
            return;
        }
        cold_path(); // A jump more is nothing beside locked instructions.
        self.ask();
    }

    /// The same where it can be done without a call. False: it has to be [scheduled](Self::schedule).
    #[inline(always)]
    pub(crate) fn schedule_plainly(&self) -> bool {
        is_home(&self.context) && self.schedule_at_home()
    }

    #[inline(always)] // Without a call.
    fn schedule_at_home(&self) -> bool {
        let context = self.context.inner();
        let section = context.bottom_halves.queue.section();
        // Between two waits the home thread looks by itself before it blocks.
        section.is_some_and(|section| section.schedule_plainly(self.node()))
            && !context.notify.is_waiting()
    }

    /// The same where something is in the way, if only that the loop waits. Home thread.
    #[cold]
    #[inline(never)]
    fn schedule_otherwise(&self) {
        let context = self.context.inner();
        let Some(section) = context.bottom_halves.queue.section() else {
            return self.ask();
        };
        section.schedule(self.node(), Hurry::Urgent);
        drop(section);
        if context.notify.is_waiting() {
            self.context.notify();
        }
    }

    #[inline]
    fn ask(&self) {
        let context = self.context.inner();
        if context.bottom_halves.queue.ask(self.node(), Hurry::Urgent) {
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
    /// kept: scheduled again before that comes, it runs there, also in the same turn. (A place is
    /// also left by another thread's schedule that was one with a run already queued.)
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
            unsafe { free(self.node) };
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
    if push(context, node::once(name, callback)) {
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
    push(context, node::spawn(name, callback))
}

/// Gives the queue a node that runs once. True: the caller has to notify.
#[inline]
fn push(context: &AioContext, node: NonNull<Node>) -> bool {
    let inner = context.inner();
    let halves = &inner.bottom_halves;
    let is_home = is_home(context);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::AioContext;
    use crate::context::Local;

    // SPEC B4
    #[test]
    fn an_idle_one_limits_the_wait_to_10_ms_and_an_urgent_one_to_nothing() {
        let context = AioContext::new().unwrap();
        let half = context.bottom_half("half", || ());
        let test = || {
            let local = Local::current().unwrap();
            let timer = context.timer(|| ());
            assert_eq!(local.timeout_ns(), None);
            half.schedule_idle();
            assert_eq!(local.timeout_ns(), Some(10_000_000));
            timer.arm_after(core::time::Duration::from_secs(3600));
            assert_eq!(local.timeout_ns(), Some(10_000_000));
            half.cancel();
            context.poll(false).unwrap();
            assert!(local.timeout_ns().unwrap() > 10_000_000, "the timer's");
            std::thread::scope(|scope| _ = scope.spawn(|| half.schedule_idle()));
            assert_eq!(local.timeout_ns(), Some(10_000_000), "another thread's");
            half.schedule();
            assert_eq!(local.timeout_ns(), Some(0));
            context.poll(false).unwrap();
            assert!(local.timeout_ns().unwrap() > 10_000_000, "it has run");
        };
        context.enter_home(test).unwrap();
    }
}
