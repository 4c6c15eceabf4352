//! The queue of what is scheduled: who may touch what, and when a node may be freed.
//!
//! ```text
//!   home thread                               other threads, signal handlers in a section
//!   ----------------------------------        --------------------------------------------
//!   home word, plain                          asked word, one locked operation
//!   queue ◀── absorb ──────────────────────── list, another
//!     │ oldest first
//!     ▼
//!   pop, run, ran
//! ```
//!
//! Scheduling at home takes no locked instruction: it changes the node's `home` word, which only
//! the home thread writes, and appends to a queue that only the home thread has. A signal handler
//! of the home thread does the same, unless it has interrupted it in a *section*, where the queue
//! may be half changed: then, as other threads always do, it marks the node's `asked` word and
//! pushes it on the list.
//!
//! Whenever the home schedules or looks, it first absorbs the list into the queue. So what was
//! scheduled before, by whomever, is queued before (SPEC B7).
//!
//! A node has one owner. That is its handle, until it is deleted: then the node is freed at once if
//! the home has nothing to do with it, and else given to the home, through the list if need be. A
//! node that runs once belongs to the queue from the start, and `asked` and `home` are not used.
//!
//! Invariants
//! - I1 PENDING is set exactly while the node is in the list, or about to be pushed by who has set
//!   it. It stays at its place meanwhile.
//! - I2 QUEUED is set exactly while the node is in the queue, or about to be appended. It is set
//!   before PENDING is cleared, so that one of the two is seen, or a run, by who wants to free it.
//! - I3 What is asked is taken before the callback's work begins, so that a schedule meanwhile
//!   queues it again.
//! - I4 `home`, the queue's ends and its slices are changed in sections only.
//! - I5 A *slice* is what is in the queue when a turn begins. It ends behind its last node; or when
//!   another slice begins, a nested poll's, which takes over what is left. If that one ends early,
//!   by a panic, the next turn runs the rest.

#![allow(unsafe_code)] // Nodes pass through the list and the queue as raw pointers (I1, I2).

use core::hint::cold_path;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use core::sync::atomic::compiler_fence;

use crossbeam_utils::CachePadded;

use super::list::{Chained, List};
use crate::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// In `asked`: it is in the list (I1).
const PENDING: u32 = 1;
/// In both words: it shall run.
const SCHEDULED: u32 = 2;
/// In both words, with SCHEDULED: it has no hurry and makes no progress.
const IDLE: u32 = 4;
/// In both words: its handle is gone, and it belongs to the home.
const DELETED: u32 = 8;
/// In `asked`: what was scheduled before is taken back.
const CANCELLED: u32 = 16;
/// In `home`: it is in the queue (I2).
const QUEUED: u32 = 32;
/// In `home`: one run in progress.
const RUN: u32 = 64;

/// What a node embeds.
#[derive(Debug)]
pub(super) struct Link<T> {
    /// What is asked from elsewhere.
    asked: AtomicU32,
    /// What the home knows; it alone writes it (I4).
    home: AtomicU32,
    next_asked: AtomicPtr<T>,
    next_queued: AtomicPtr<T>,
}

/// How urgent a schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hurry {
    Urgent,
    Idle,
}

/// `flags` with a schedule added: what is scheduled does not become idle by it.
fn scheduled(flags: u32, hurry: Hurry) -> u32 {
    match hurry {
        Hurry::Urgent => flags & !IDLE | SCHEDULED,
        Hurry::Idle if flags & SCHEDULED == 0 => flags | SCHEDULED | IDLE,
        Hurry::Idle => flags,
    }
}

impl<T> Link<T> {
    pub(super) fn new() -> Self {
        Self {
            asked: AtomicU32::new(0),
            home: AtomicU32::new(0),
            next_asked: AtomicPtr::new(ptr::null_mut()),
            next_queued: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Of the list.
    pub(super) fn next_asked(&self) -> &AtomicPtr<T> {
        &self.next_asked
    }

    /// Asks for a run from elsewhere; true if the caller must push (I1).
    #[must_use]
    fn ask(&self, hurry: Hurry) -> bool {
        let mut seen = self.asked.load(Ordering::Relaxed);
        loop {
            let next = scheduled(seen, hurry) | PENDING;
            // AcqRel: releases what the scheduler wrote to the home's `take`, also if nothing
            // changes; acquires for the push what the home did before it cleared PENDING.
            match self
                .asked
                .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if planted!("bottom_half_pushed_twice") => return true,
                Ok(_) => return seen & PENDING == 0,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes `taken` out of `asked`, and adds what was there to `home`. Home thread, in a section.
    #[must_use]
    fn take(&self, home: u32, taken: u32) -> (u32, u32) {
        let asked = self.asked.fetch_and(!taken, Ordering::AcqRel); // Pairs with `ask`, `delete`.
        let mut home = home;
        if asked & CANCELLED != 0 {
            home &= !(SCHEDULED | IDLE);
        }
        if asked & SCHEDULED != 0 {
            let hurry = if asked & IDLE == 0 {
                Hurry::Urgent
            } else {
                Hurry::Idle
            };
            home = scheduled(home, hurry);
        }
        (home, asked)
    }
}

/// A node type that embeds a [`Link`].
pub(super) trait Linked: Chained {
    fn link(&self) -> &Link<Self>;
    /// Whether it runs once and belongs to the queue.
    fn runs_once(&self) -> bool;
}

/// What is next.
#[must_use]
#[derive(Debug)]
pub(super) enum Popped<T> {
    /// It belongs to the caller.
    Once(NonNull<T>),
    /// Its callback is to run; [`Section::ran`] has to follow. It stays until then.
    Run { node: NonNull<T>, hurry: Hurry },
    /// Nothing: it was cancelled, or waits for a run of its own to end.
    Skip,
    /// It belongs to the caller, who frees it.
    Dead(NonNull<T>),
}

/// What a turn runs (I5).
#[derive(Debug)]
pub(super) struct Slice<T> {
    number: u64,
    /// Null behind its last. While no other slice begins, it is the queue's oldest: nobody else
    /// takes anything out.
    next: *mut T,
    last: *mut T,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue<T> {
    list: CachePadded<List<T>>,
    /// The home thread is in a section.
    in_section: AtomicBool,
    oldest: AtomicPtr<T>,
    newest: AtomicPtr<T>,
    /// The number of the slice that began last (I5).
    slices: AtomicU64,
}

impl<T: Linked> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            list: CachePadded::new(List::new()),
            in_section: AtomicBool::new(false),
            oldest: AtomicPtr::new(ptr::null_mut()),
            newest: AtomicPtr::new(ptr::null_mut()),
            slices: AtomicU64::new(0),
        }
    }

    /// Begins a section. None in a signal handler that has interrupted one. Home thread.
    #[inline]
    pub(super) fn section(&self) -> Option<Section<'_, T>> {
        if self.in_section.load(Ordering::Relaxed) {
            return None;
        }
        self.in_section.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst); // Before all that a handler must not interrupt.
        Some(Section(self))
    }

    /// True if there is nothing in it. Home thread.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.oldest.load(Ordering::Relaxed).is_null()
    }

    /// True if the oldest is urgent. Home thread, also where a section is open: it only looks.
    #[inline]
    pub(super) fn begins_urgent(&self) -> bool {
        resolve(self.oldest.load(Ordering::Relaxed)).is_some_and(Self::is_urgent)
    }

    #[inline]
    fn is_urgent(queued: &T) -> bool {
        let home = queued.link().home.load(Ordering::Relaxed);
        home & (SCHEDULED | IDLE | DELETED) == SCHEDULED || queued.runs_once()
    }

    /// True if others have pushed something that is not absorbed yet.
    pub(super) fn is_pushed(&self) -> bool {
        !self.list.is_empty()
    }

    /// Schedules it from another thread, or where there is no section to be had. True: the caller
    /// has to tell the home, as nobody else has who pushed and is not seen yet.
    #[must_use]
    pub(super) fn ask(&self, node: &T, hurry: Hurry) -> bool {
        node.link().ask(hurry) && self.list.push(node)
    }

    /// Gives the queue a node that runs once. True: as for [`ask`](Self::ask).
    #[must_use]
    pub(super) fn give(&self, node: &T) -> bool {
        self.list.push(node)
    }

    /// Before the home thread waits, once it has said that it will: see [`List::look`].
    pub(super) fn look(&self) {
        // Planted: who pushes in this very moment takes the home for awake.
        if !planted!("bottom_half_unlooked") {
            self.list.look();
        }
    }

    /// Takes back what was scheduled before, from another thread.
    pub(super) fn ask_to_cancel(node: &T) {
        let asked = &node.link().asked;
        let mut seen = asked.load(Ordering::Relaxed);
        loop {
            let next = seen & !(SCHEDULED | IDLE) | CANCELLED;
            // As in `Link::ask`.
            match asked.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Deletes a node whose handle goes, from another thread. True: it belongs to the caller, who
    /// frees it; else to the home, which is to be notified.
    #[must_use]
    pub(super) fn delete(&self, node: &T) -> bool {
        let link = node.link();
        // Acquire, and in this order: pairs with `take`, which clears PENDING after QUEUED was set
        // (I2), and with the ends of runs.
        let [asked, home] = if planted!("bottom_half_freed_early") {
            let home = link.home.load(Ordering::Acquire);
            [link.asked.load(Ordering::Acquire), home]
        } else {
            let asked = link.asked.load(Ordering::Acquire);
            [asked, link.home.load(Ordering::Acquire)]
        };
        if asked & PENDING == 0 && home == 0 {
            return true; // And nobody is left who could schedule it.
        }
        // AcqRel: as in `Link::ask`.
        let asked = link.asked.fetch_or(DELETED | PENDING, Ordering::AcqRel);
        if asked & PENDING == 0 {
            // Whoever deletes notifies.
            let _ = self.list.push(node);
        }
        false
    }
}

/// The home thread, not to be interrupted.
#[derive(Debug)]
pub(super) struct Section<'a, T>(&'a Queue<T>);

impl<T> Drop for Section<'_, T> {
    #[inline(always)] // Else it must be in memory, for unwinding.
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        self.0.in_section.store(false, Ordering::Relaxed);
    }
}

impl<T: Linked> Section<'_, T> {
    /// Moves the list into the queue.
    #[inline]
    pub(super) fn absorb(&self) {
        if !self.0.list.is_empty() {
            Self::absorb_list(self.0); // Not by `self`, which were in memory for it.
        }
    }

    /// Newest first, each before the one that was taken last: what comes of it is oldest first.
    #[cold]
    #[inline(never)]
    fn absorb_list(queue: &Queue<T>) {
        let this = ManuallyDrop::new(Section(queue));
        let mut oldest: *mut T = ptr::null_mut();
        let mut newest: *mut T = ptr::null_mut();
        queue.list.drain(|node| {
            if node.runs_once() || this.take_asked(node) {
                node.link().next_queued.store(oldest, Ordering::Relaxed);
                oldest = ptr::from_ref(node).cast_mut();
                if newest.is_null() {
                    newest = oldest;
                }
            }
        });
        this.append_all(oldest, newest);
    }

    /// Takes what is asked of a node that has come off the list. True: it is to be queued.
    #[inline]
    fn take_asked(&self, node: &T) -> bool {
        let link = node.link();
        let before = link.home.load(Ordering::Relaxed);
        // Planted: who deletes it may then see neither PENDING nor QUEUED.
        if !planted!("bottom_half_queued_late") {
            link.home.store(before | QUEUED, Ordering::Relaxed); // Before `take`: I2.
        }
        let all = PENDING | SCHEDULED | IDLE | CANCELLED;
        let (home, asked) = link.take(before | QUEUED, all);
        link.home.store(home | asked & DELETED, Ordering::Relaxed);
        before & QUEUED == 0
    }

    #[inline]
    fn append(&self, node: &T) {
        let raw = ptr::from_ref(node).cast_mut();
        node.link()
            .next_queued
            .store(ptr::null_mut(), Ordering::Relaxed);
        self.append_all(raw, raw);
    }

    /// Appends a chain that ends with `newest`; null if there is none.
    #[inline]
    fn append_all(&self, oldest: *mut T, newest: *mut T) {
        if oldest.is_null() {
            return;
        }
        let queue = self.0;
        match resolve(queue.newest.load(Ordering::Relaxed)) {
            Some(before) => before.link().next_queued.store(oldest, Ordering::Relaxed),
            None => queue.oldest.store(oldest, Ordering::Relaxed),
        }
        queue.newest.store(newest, Ordering::Relaxed);
    }

    /// Begins a slice with all that is in the queue.
    #[inline]
    pub(super) fn slice(&self) -> Slice<T> {
        self.absorb();
        let queue = self.0;
        let number = queue.slices.load(Ordering::Relaxed) + 1;
        queue.slices.store(number, Ordering::Relaxed);
        Slice {
            number,
            next: queue.oldest.load(Ordering::Relaxed),
            last: queue.newest.load(Ordering::Relaxed),
        }
    }

    /// Schedules it.
    #[inline]
    pub(super) fn schedule(&self, node: &T, hurry: Hurry) {
        self.absorb();
        if hurry == Hurry::Idle || !self.schedule_plainly(node) {
            self.schedule_again(node, hurry);
        }
    }

    /// The same as urgent, if nobody has asked for anything and it is not queued. False: nothing was
    /// done.
    #[inline(always)] // Without a call, and so without a register saved where it is all there is.
    pub(super) fn schedule_plainly(&self, node: &T) -> bool {
        let link = node.link();
        let known = link.home.load(Ordering::Relaxed) | link.asked.load(Ordering::Relaxed);
        let is_plain = known == 0 && self.0.list.is_empty();
        if is_plain {
            link.home.store(SCHEDULED | QUEUED, Ordering::Relaxed); // As below.
            self.append(node);
        }
        is_plain
    }

    /// The same, for what is queued or asked of already, or has no hurry.
    #[cold]
    fn schedule_again(&self, node: &T, hurry: Hurry) {
        let link = node.link();
        let before = self.cancelled(link, link.home.load(Ordering::Relaxed));
        let home = scheduled(before, hurry) | QUEUED;
        link.home.store(home, Ordering::Relaxed);
        if before & QUEUED == 0 {
            self.append(node);
        }
    }

    /// Queues a node that runs once.
    #[inline]
    pub(super) fn give(&self, node: &T) {
        self.absorb();
        self.append(node);
    }

    /// `home` without what was cancelled from elsewhere, which is taken note of.
    #[inline]
    fn cancelled(&self, link: &Link<T>, home: u32) -> u32 {
        if link.asked.load(Ordering::Relaxed) & CANCELLED == 0 {
            return home;
        }
        // Acquire: pairs with `ask_to_cancel`.
        link.asked.fetch_and(!CANCELLED, Ordering::Acquire);
        home & !(SCHEDULED | IDLE)
    }

    /// Takes back what was scheduled before.
    pub(super) fn cancel(&self, node: &T) {
        self.absorb();
        let link = node.link();
        // What is asked, but not in the list yet, comes at the same time: it may be cancelled.
        if link.asked.load(Ordering::Relaxed) & (SCHEDULED | CANCELLED) != 0 {
            let taken = SCHEDULED | IDLE | CANCELLED;
            link.asked.fetch_and(!taken, Ordering::AcqRel);
        }
        let home = link.home.load(Ordering::Relaxed);
        link.home
            .store(home & !(SCHEDULED | IDLE), Ordering::Relaxed);
    }

    /// Deletes a node whose handle goes. True: it belongs to the caller, who frees it.
    #[must_use]
    pub(super) fn delete(&self, node: &T) -> bool {
        self.absorb();
        let link = node.link();
        let home = link.home.load(Ordering::Relaxed);
        if home == 0 {
            return true;
        }
        link.home.store(home | DELETED, Ordering::Relaxed);
        false
    }

    /// The next of a slice, if there is one and no other slice has begun since.
    #[inline]
    fn next(&self, slice: &Slice<T>) -> Option<&T> {
        if self.0.slices.load(Ordering::Relaxed) != slice.number {
            return None;
        }
        resolve(slice.next)
    }

    /// Takes the next of a slice, which is the oldest, out.
    #[inline]
    fn unlink(&self, oldest: &T, slice: &mut Slice<T>) {
        let next = oldest.link().next_queued.load(Ordering::Relaxed);
        self.0.oldest.store(next, Ordering::Relaxed);
        if next.is_null() {
            self.0.newest.store(next, Ordering::Relaxed);
        }
        slice.next = if ptr::eq(oldest, slice.last) {
            ptr::null_mut()
        } else {
            next
        };
    }

    /// As [`pop`](Self::pop), for most: what was scheduled at home and is to run, and no more.
    /// [`ran`](Self::ran) has to follow; it stays until then.
    #[inline]
    pub(super) fn pop_plain(&self, slice: &mut Slice<T>) -> Option<NonNull<T>> {
        let node = self.next(slice)?;
        let link = node.link();
        let is_plain = link.home.load(Ordering::Relaxed) == SCHEDULED | QUEUED
            && link.asked.load(Ordering::Relaxed) == 0;
        if !is_plain {
            return None;
        }
        self.unlink(node, slice);
        link.home.store(RUN, Ordering::Release); // As in `pop`.
        Some(NonNull::from(node))
    }

    /// Takes the next of a slice out; None at its end.
    #[inline]
    pub(super) fn pop(&self, slice: &mut Slice<T>) -> Option<Popped<T>> {
        let node = self.next(slice)?;
        self.unlink(node, slice);
        let raw = NonNull::from(node);
        if node.runs_once() {
            return Some(Popped::Once(raw));
        }
        let link = node.link();
        let mut home = link.home.load(Ordering::Relaxed) & !QUEUED;
        let mut asked = link.asked.load(Ordering::Relaxed);
        if asked & (SCHEDULED | CANCELLED) != 0 {
            // Scheduled again since it was queued: that is this run, too (SPEC B2).
            (home, asked) = link.take(home, SCHEDULED | IDLE | CANCELLED);
        }
        let hurry = if home & IDLE == 0 {
            Hurry::Urgent
        } else {
            Hurry::Idle
        };
        let runs = home & SCHEDULED != 0 && (home | asked) & DELETED == 0;
        home &= !(SCHEDULED | IDLE);
        if home == DELETED {
            return Some(Popped::Dead(raw));
        }
        home += if runs { RUN } else { 0 };
        // Release: pairs with `delete`; nothing of the node is used after it if it is 0.
        link.home.store(home, Ordering::Release);
        Some(if runs {
            Popped::Run { node: raw, hurry }
        } else {
            Popped::Skip
        })
    }

    /// In place of a run that was popped in this section: it is in the queue again, with what has
    /// been asked since still to come. Scheduling it would take a cancel for an earlier one.
    pub(super) fn put_back(&self, node: &T, hurry: Hurry) {
        let link = node.link();
        let home = link.home.load(Ordering::Relaxed) - RUN;
        link.home
            .store(scheduled(home, hurry) | QUEUED, Ordering::Relaxed);
        self.append(node);
    }

    /// The same with a node that runs once. Giving it would put what is in the list before it.
    pub(super) fn put_back_once(&self, node: &T) {
        self.append(node);
    }

    /// After a run. True: the node belongs to the caller, who frees it.
    #[must_use]
    #[inline]
    pub(super) fn ran(&self, node: &T) -> bool {
        let link = node.link();
        let is_plain = link.home.load(Ordering::Relaxed) == RUN
            && link.asked.load(Ordering::Relaxed) & DELETED == 0;
        if is_plain {
            link.home.store(0, Ordering::Release); // As below, for most.
            return false;
        }
        cold_path();
        if link.asked.load(Ordering::Relaxed) & DELETED != 0 {
            self.absorb(); // It is in the list, or will be soon: then the next turn frees it.
        }
        let home = link.home.load(Ordering::Relaxed) - RUN;
        if home == DELETED {
            return true;
        }
        // Release: as in `pop`.
        link.home.store(home, Ordering::Release);
        false
    }

    /// Whether a node in the queue is urgent, or None if there is none at all.
    #[inline]
    pub(super) fn is_urgent(&self) -> Option<bool> {
        self.absorb();
        let mut at = self.0.oldest.load(Ordering::Relaxed);
        if at.is_null() {
            return None;
        }
        while let Some(node) = resolve(at) {
            if Queue::is_urgent(node) {
                return Some(true);
            }
            at = node.link().next_queued.load(Ordering::Relaxed);
        }
        Some(false)
    }
}

fn resolve<'a, T>(node: *mut T) -> Option<&'a T> {
    // SAFETY: a node in the queue stays at its place until it is popped (I2), and only the home
    // pops.
    unsafe { node.as_ref() }
}

#[cfg(all(test, not(loom)))]
#[path = "queue_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
