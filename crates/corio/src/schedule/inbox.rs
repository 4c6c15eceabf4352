//! The inbox: coroutines that are to be entered in a context's home thread, first scheduled, first
//! run (SPEC S1).
//!
//! Pushed from any thread without a lock, newest first; one bottom half takes the list as it
//! stands, turns it round and runs it (S2). What its own thread pushes while that list is empty goes
//! into one of its own, which needs no locked instruction and no bottom half, and is older than all
//! that is in the other when both are taken.
//!
//! Invariants
//! - I1 A slot is pushed once for each wake that was won (stack::word I2), and by its home thread
//!   once while no waker queues it (stack::word I6), so `Slot::next` has one writer.
//! - I2 Whoever turns a list from empty to not empty sees to it that it is run: the home thread by
//!   a flag of its loop, everyone else by the bottom half, which notifies.
//! - I3 An inbox outlives every waker that has won one of its slots: its home does not end while
//!   one is scheduled and not entered, and if the home has to leak one, it leaks the inbox as well.
//! - I4 A closed inbox runs nothing: what is queued in it then is leaked, or was dropped before it
//!   began.
//! - I5 `own` is touched in the home thread only. It is pushed to only while the home sees `pushed`
//!   empty: who was pushed there before, as far as anybody can tell, is not overtaken.

#![allow(unsafe_code)] // The list's links.

use core::ptr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::atomic::{AtomicBool, AtomicPtr, Ordering};
use crate::context::{AioContext, BottomHalf, Drain, Local};
use crate::coroutine::{self, WakeQueue};
use crate::stack::Slot;

/// What can be pushed: it lives for ever, and I1 holds for its link.
trait Linked: Sized + 'static {
    fn next(&self) -> &AtomicPtr<Self>;
}

impl Linked for Slot {
    fn next(&self) -> &AtomicPtr<Self> {
        &self.next
    }
}

/// The lock-free list by itself, as loom runs it.
#[derive(Debug)]
struct Pushed<T> {
    newest: AtomicPtr<T>,
}

impl<T: Linked> Pushed<T> {
    fn new() -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// False if anything is in it that the caller knows to have been pushed.
    #[inline]
    fn is_empty(&self) -> bool {
        self.newest.load(Ordering::Relaxed).is_null()
    }

    /// True if the list was empty (I2).
    fn push(&self, node: &'static T) -> bool {
        let raw = ptr::from_ref(node).cast_mut();
        let mut seen = self.newest.load(Ordering::Relaxed);
        // Planted: what the list was before somebody else changed it.
        let stale = seen;
        loop {
            node.next().store(seen, Ordering::Relaxed);
            // Release: publishes `next`, and what the waker did before; pairs with `take`.
            match self
                .newest
                .compare_exchange_weak(seen, raw, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) if planted!("inbox_stale") => return stale.is_null(),
                Ok(_) => return seen.is_null(),
                Err(now) => seen = now,
            }
        }
    }

    /// Takes everything and hands it over newest first.
    fn take(&self, mut each: impl FnMut(&'static T)) {
        let mut at = self
            .newest
            .swap(ptr::null_mut(), Ordering::Acquire)
            .cast_const();
        // SAFETY: the list holds nodes, which live for ever.
        while let Some(node) = unsafe { at.as_ref() } {
            at = node.next().load(Ordering::Relaxed); // `each` may link it elsewhere.
            each(node);
        }
    }
}

/// The list of the home thread.
struct Own(WakeQueue);

// SAFETY: only the home thread touches it (I5), and the slots in it live for ever.
unsafe impl Send for Own {}
// SAFETY: as above.
unsafe impl Sync for Own {}

/// Those [without a loop](Inbox::without_loop) that no thread has at present. Never more than there
/// were such threads at a time.
static WITHOUT_LOOP: Mutex<Vec<Arc<Inbox>>> = Mutex::new(Vec::new());

/// Nobody would ever enter it.
#[cold]
fn woken_without_loop() -> ! {
    panic!(
        "a coroutine that waits in a thread without a context was woken from elsewhere, and there \
         is no loop that would enter it: have it wait in the home of a context"
    )
}

/// See the module's documentation.
pub(crate) struct Inbox {
    own: Own,
    pushed: Pushed<Slot>,
    /// None where no loop runs it.
    drain: Option<BottomHalf>,
    /// Where what is pushed goes if no loop runs this one, but its thread has had one since.
    successor: Mutex<Option<Arc<Inbox>>>,
    /// What the C interface knows its loop by; null otherwise.
    owner: AtomicPtr<()>,
    /// Read and written in home threads only, one after the other.
    closed: AtomicBool,
}

impl Inbox {
    pub(super) fn new(context: &AioContext) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = Weak::clone(this);
            let drain = context.bottom_half("schedule", move || {
                if let Some(this) = this.upgrade() {
                    this.run();
                }
            });
            Self {
                own: Own(WakeQueue::new()),
                pushed: Pushed::new(),
                drain: Some(drain),
                successor: Mutex::new(None),
                owner: AtomicPtr::new(ptr::null_mut()),
                closed: AtomicBool::new(false),
            }
        })
    }

    /// One that nobody runs: of a thread that has coroutines and no loop. Theirs wake each other by
    /// their wake queues.
    pub(super) fn without_loop() -> Arc<Self> {
        if let Some(inbox) = WITHOUT_LOOP.lock().pop() {
            return inbox;
        }
        Arc::new(Self {
            own: Own(WakeQueue::new()),
            pushed: Pushed::new(),
            drain: None,
            successor: Mutex::new(None),
            owner: AtomicPtr::new(ptr::null_mut()),
            closed: AtomicBool::new(false),
        })
    }

    /// Gives up one [without a loop](Self::without_loop), as its thread ends. It stays, for another
    /// thread to have: coroutines that were entered last in this one know it.
    pub(super) fn let_go(inbox: Arc<Self>) {
        if inbox.drain.is_none() {
            inbox.successor.lock().take();
            WITHOUT_LOOP.lock().push(inbox);
        }
    }

    /// The thread of one [without a loop](Self::without_loop) has one now: coroutines that wait since
    /// before go on there.
    pub(super) fn pass_on_to(&self, successor: &Arc<Self>) {
        if self.drain.is_none() {
            *self.successor.lock() = Some(Arc::clone(successor));
        }
    }

    /// Whether a loop runs the inbox at `inbox`.
    ///
    /// # Safety
    /// As [`owner`](Self::owner)'s.
    pub(super) unsafe fn has_loop(inbox: *const ()) -> bool {
        // SAFETY: the caller's promise.
        let inbox = unsafe { inbox.cast::<Self>().as_ref() };
        inbox.is_some_and(|inbox| inbox.drain.is_some())
    }

    /// Has [`owner`](Self::owner) tell `owner`.
    pub(super) fn set_owner(&self, owner: *const ()) {
        // Relaxed: published with the inbox.
        self.owner.store(owner.cast_mut(), Ordering::Relaxed);
    }

    /// Who owns the inbox at `inbox`; null if nobody does, or there is none.
    ///
    /// # Safety
    /// It is null or an inbox that is there.
    #[inline]
    pub(super) unsafe fn owner(inbox: *const ()) -> *const () {
        // SAFETY: the caller's promise.
        match unsafe { inbox.cast::<Self>().as_ref() } {
            Some(inbox) => inbox.owner.load(Ordering::Relaxed).cast_const(),
            None => ptr::null(),
        }
    }

    /// True if its home has queued something that no turn has run. Home thread.
    pub(super) fn has_own(&self) -> bool {
        !self.own.0.is_empty()
    }

    /// True if anything is queued. While nobody else uses it.
    pub(super) fn has_any(&self) -> bool {
        self.has_own() || !self.pushed.is_empty()
    }

    /// Runs what is queued, oldest first.
    fn run(&self) {
        if self.closed.load(Ordering::Relaxed) {
            return; // The links are not ours any more: slots that were dropped are used elsewhere.
        }
        let queue = WakeQueue::new();
        if !self.pushed.is_empty() {
            self.pushed.take(|slot| queue.push_front(slot));
        }
        queue.prepend(&self.own.0);
        coroutine::run_queue(&queue, None);
    }

    /// The home is about to end with whatever is still in it (I4).
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Queues a slot whose wake has been won. Any thread.
    fn push(&self, slot: &'static Slot) {
        let Some(drain) = &self.drain else {
            let successor = self.successor.lock().clone();
            return match successor {
                Some(inbox) => inbox.push(slot),
                None => woken_without_loop(),
            };
        };
        if self.pushed.push(slot) {
            drain.schedule();
        }
    }

    /// Queues from a coroutine that runs in this very home, which therefore outlives the call and
    /// does not block meanwhile: it is neither held nor notified.
    #[inline]
    pub(super) fn push_here(inbox: *const (), slot: &'static Slot) {
        // SAFETY: the pointer comes from Arc::as_ptr of the home's inbox, which the home holds for
        // as long as its coroutines run.
        let inbox = unsafe { &*inbox.cast::<Inbox>() };
        let was_empty = if inbox.pushed.is_empty() {
            let own = &inbox.own.0;
            let was_empty = own.is_empty();
            own.push(slot);
            was_empty
        } else {
            inbox.pushed.push(slot)
        };
        if was_empty && let Some(local) = Local::current() {
            local.drain_soon();
        }
    }

    /// What the home's loop runs for [`push_here`](Self::push_here), while the inbox is there.
    pub(super) fn run_by_home(&self) -> Drain {
        Drain {
            // SAFETY: the inbox is there.
            run: |inbox| unsafe { (*inbox.cast::<Inbox>()).run() },
            with: ptr::from_ref(self).cast(),
        }
    }

    /// Queues from another thread: the home may be gone as soon as the slot is in the list, so the
    /// inbox, and with it the context, is held until it has been notified (SPEC S6).
    pub(super) fn push_remote(inbox: *const (), slot: &'static Slot) {
        let inbox = inbox.cast::<Inbox>();
        // SAFETY: the pointer comes from Arc::as_ptr of the home's inbox. The caller has won the
        // slot's wake and not pushed yet, so it is alive (I3).
        let inbox = unsafe {
            Arc::increment_strong_count(inbox);
            Arc::from_raw(inbox)
        };
        inbox.push(slot);
    }

    /// The number of its context, for tracking. As for `push_remote`, the caller has won the wake
    /// of one of its slots and not pushed it yet.
    pub(super) fn context_id(inbox: *const ()) -> u64 {
        // SAFETY: the pointer comes from Arc::as_ptr of the home's inbox, which is alive until the
        // caller pushes what it has won (I3).
        let inbox = unsafe { &*inbox.cast::<Inbox>() };
        inbox.drain.as_ref().map_or(0, BottomHalf::context_id)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::stack::{Park, SlotWord, Wake};
    use core::cell::UnsafeCell;

    const NODES: usize = 600;
    const WAKERS: usize = 3;

    /// What a coroutine's slot is to those who wake it.
    struct Node {
        word: SlotWord,
        next: AtomicPtr<Node>,
        /// What its waker brings. Only the wake orders it.
        gift: UnsafeCell<usize>,
    }

    // SAFETY: a node's one waker writes the gift before it fires, and the home reads it after.
    unsafe impl Sync for Node {}

    impl Linked for Node {
        fn next(&self) -> &AtomicPtr<Self> {
            &self.next
        }
    }

    // SPEC C11, S1, S7: wake tokens fired by plain threads, without a stack to switch to: the home
    // comes to see what each of them did before it fired, and one that fires again wakes nobody.
    #[test]
    fn wakes_of_plain_threads_bring_along_what_was_done_before() {
        let pushed: &'static Pushed<Node> = Box::leak(Box::new(Pushed::new()));
        let node = |_| {
            let word = SlotWord::new();
            word.share(1, false);
            Node {
                word,
                next: AtomicPtr::new(ptr::null_mut()),
                gift: UnsafeCell::new(0),
            }
        };
        let nodes: &'static [Node] = (0..NODES).map(node).collect::<Vec<_>>().leak();
        let wakers: [_; WAKERS] = core::array::from_fn(|first| {
            std::thread::spawn(move || {
                for node in nodes.iter().skip(first).step_by(WAKERS) {
                    // SAFETY: the home has not been woken yet.
                    unsafe { *node.gift.get() = 1 };
                    if node.word.wake(1) == Wake::Queue {
                        pushed.push(node);
                    }
                    assert_eq!(node.word.wake(1), Wake::Nothing);
                }
            })
        });

        let mut gifts = 0;
        let mut take = |node: &Node| {
            // SAFETY: it has been woken.
            gifts += unsafe { *node.gift.get() };
            assert!(node.word.retire(1));
        };
        let mut parked = 0;
        for node in nodes {
            match node.word.park(1) {
                Park::Suspend => parked += 1,
                Park::Notified => take(node),
                Park::Scheduled => unreachable!("nobody knows its name"),
            }
        }
        while parked > 0 {
            pushed.take(|node| {
                node.word.claim(1);
                take(node);
                parked -= 1;
            });
            std::thread::yield_now();
        }
        for waker in wakers {
            waker.join().unwrap();
        }
        assert_eq!(gifts, NODES);
        assert!(nodes.iter().all(|node| node.word.generation() == 2));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use loom::cell::UnsafeCell;
    use loom::sync::{Condvar, Mutex};

    struct Node {
        next: AtomicPtr<Node>,
        /// What its waker published.
        payload: UnsafeCell<u32>,
    }

    impl Linked for Node {
        fn next(&self) -> &AtomicPtr<Self> {
            &self.next
        }
    }

    /// An inbox with a flag for its bottom half, and one for the notification.
    struct Model {
        pushed: Pushed<Node>,
        scheduled: AtomicBool,
        notified: Mutex<bool>,
        notification: Condvar,
        nodes: [Node; 3],
    }

    impl Model {
        fn new() -> &'static Self {
            let node = || Node {
                next: AtomicPtr::new(ptr::null_mut()),
                payload: UnsafeCell::new(0),
            };
            Box::leak(Box::new(Self {
                pushed: Pushed::new(),
                scheduled: AtomicBool::new(false),
                notified: Mutex::new(false),
                notification: Condvar::new(),
                nodes: [node(), node(), node()],
            }))
        }

        fn notify(&self) {
            *self.notified.lock().unwrap() = true;
            self.notification.notify_one();
        }

        /// Blocks as a turn does that has nothing to do; loom reports it if nobody ends that.
        fn wait(&self) {
            let mut notified = self.notified.lock().unwrap();
            while !*notified {
                notified = self.notification.wait(notified).unwrap();
            }
            *notified = false;
        }

        fn push(&'static self, i: usize) {
            // SAFETY: the node is not in the list yet, so it is this thread's.
            self.nodes[i]
                .payload
                .with_mut(|payload| unsafe { *payload = 1 });
            if self.pushed.push(&self.nodes[i]) {
                // Read-modify-write, as a bottom half's mark is.
                self.scheduled.swap(true, Ordering::AcqRel);
            }
        }

        /// A turn: runs the bottom half if it is scheduled; how many were taken, oldest first.
        fn turn(&self, order: &mut Vec<usize>) {
            if !self.scheduled.swap(false, Ordering::AcqRel) {
                return;
            }
            let at = order.len();
            self.pushed.take(|node| {
                // SAFETY: taken off the list, it is this thread's.
                assert_eq!(node.payload.with(|payload| unsafe { *payload }), 1);
                let i = self
                    .nodes
                    .iter()
                    .position(|other| ptr::eq(other, node))
                    .unwrap();
                order.insert(at, i);
            });
        }
    }

    // SPEC L7, S1: two that push and one that drains: each comes out once, in the order in which
    // its pusher pushed.
    #[test]
    fn loom_inbox_loses_nobody() {
        model::check(None, || {
            let model = Model::new();
            let first = loom::thread::spawn(|| {
                model.push(0);
                model.push(1);
            });
            let second = loom::thread::spawn(|| model.push(2));
            let mut order = Vec::new();
            model.turn(&mut order);
            first.join().unwrap();
            second.join().unwrap();
            model.turn(&mut order);
            let place = |i: usize| order.iter().position(|&other| other == i);
            assert_eq!(order.len(), 3, "nobody is lost or doubled");
            assert!(place(2).is_some() && place(0).unwrap() < place(1).unwrap());
        });
    }

    // SPEC L7, S1: the home pushes without notifying while another thread pushes and notifies: the
    // home never blocks with its own in the list, nor for ever with the other's.
    #[test]
    fn loom_inbox_a_push_at_home_needs_no_notification() {
        model::check(None, || {
            let model = Model::new();
            let other = loom::thread::spawn(|| {
                model.push(0);
                model.notify();
            });
            let mut order = Vec::new();
            for own in [1, 2] {
                model.push(own);
                model.turn(&mut order);
                while !order.contains(&own) {
                    // The other has made the list not empty, and has yet to schedule.
                    model.wait();
                    model.turn(&mut order);
                }
            }
            while !order.contains(&0) {
                model.wait();
                model.turn(&mut order);
            }
            assert_eq!(order.len(), 3, "nobody is lost or doubled");
            other.join().unwrap();
        });
    }
}
