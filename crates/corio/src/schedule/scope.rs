//! Scopes: children that may borrow from the frame of the coroutine that starts them (SPEC L8).
//!
//! ```text
//!   scope ── f runs ──▶ returned ──▶ parks until none runs ──▶ returns, or panics for one that did
//!              │                          │ asked to end meanwhile: children are cancelled
//!              └──▶ unwound ──▶ children are cancelled ──▶ parks until none runs ──▶ unwinds on
//! ```
//!
//! Parent and children live in one home, on one thread, so all of this is plain cells. If the home
//! has to leak a child, the parent waits still and is leaked with it: its frame stays.
//!
//! Invariants
//! - I1 `scope` does not leave its frame, in whatever way, before `running` is 0. Nothing in its
//!   wait raises, and a parked frame is never unwound from outside.
//! - I2 A child counts as running from before its coroutine is made until nothing of it is left
//!   that may refer to the scope: its closure, its frame, and its result unless a handle has it. It
//!   does not touch the scope after it has stopped counting.
//! - I3 A handle's lifetime is the scope's, so whatever has one (another child, the parent's
//!   closure) is over when the scope is.
//! - I4 `newest` leads to the children that have a coroutine and have not been asked to end. A node
//!   in that list is in a packet which the child's coroutine has a share of.

#![allow(unsafe_code)] // Closures and results that borrow, in coroutines that know no lifetimes.

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::panic::Location;
use core::ptr::{self, NonNull};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread::panicking;

use super::inbox::Inbox;
use super::spawn::no_stack;
use super::{CoWaker, JoinError, park, park_uninterruptible, parkable};
use crate::coroutine::{self, Builder, Cancelled, CoRef, Home};
use crate::stack::Slot;
use crate::track;

/// Runs `f`, which may start coroutines on this thread that borrow from the caller's frame, and
/// waits until all of them have ended.
///
/// In a coroutine of a context. The wait is a cancellation point in its own way: when the caller is
/// cancelled in it, the children are, and the caller unwinds once they have ended. If `f` panics, or
/// is cancelled, the children are cancelled, too, and waited for before it unwinds on. A child that
/// catches its cancellation keeps the caller waiting.
///
/// # Panics
/// Outside a coroutine, and in a home without a context. When all have ended, if a child panicked
/// and was not joined; with `f`'s panic. A child that was cancelled because the home
/// ends, and was not joined, takes the caller with it: it unwinds as if it had been cancelled.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let sum = io.context().spawn(|| {
///     let numbers = vec![1, 2, 3];
///     let mut largest = 0;
///     corio::scope(|s| {
///         s.spawn(|| largest = *numbers.iter().max().unwrap());
///         let sum = s.spawn(|| numbers.iter().sum::<i32>());
///         sum.join().unwrap()
///     }) + largest
/// });
/// assert_eq!(sum.join().unwrap(), 9);
/// # Ok::<(), corio::Error>(())
/// ```
///
/// A child cannot outlive what it borrows:
///
/// ```compile_fail,E0373
/// corio::scope(|s| {
///     let number = 1; // Gone when the closure returns, while the child runs.
///     s.spawn(|| println!("{number}"));
/// });
/// ```
///
/// and neither a handle nor what a child borrowed gets out of the scope:
///
/// ```compile_fail
/// let mut kept = None;
/// corio::scope(|s| kept = Some(s.spawn(|| 1)));
/// ```
///
/// ```compile_fail,E0502
/// let mut numbers = vec![1];
/// corio::scope(|s| {
///     s.spawn(|| println!("{}", numbers[0]));
///     numbers.push(2); // The child has borrowed them.
/// });
/// ```
#[track_caller]
pub fn scope<'env, F, R>(f: F) -> R
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R,
{
    let parent = parkable("scope");
    let scope = Scope {
        state: State {
            running: Cell::new(0),
            failed: Cell::new(0),
            lost: Cell::new(0),
            closed: Cell::new(false),
            waiting: Cell::new(false),
            parent: CoWaker::of(parent),
            newest: Cell::new(ptr::null()),
        },
        scope: PhantomData,
        env: PhantomData,
    };
    // Caught, so that the children are waited for; and so that they can be cancelled, which nothing
    // can be while a thread unwinds.
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    if result.is_err() {
        scope.state.cancel();
    }
    let Waited {
        mut cancelled,
        may_unwind,
    } = scope.state.wait(parent);
    let result = result.unwrap_or_else(|payload| resume_unwind(payload));
    if scope.state.lost.get() != 0 {
        // The home ends. Its next victim must not go on as if its children had done their work.
        parent.request_cancel();
        cancelled = true;
    }
    if cancelled {
        coroutine::cancellation_point_if(may_unwind);
    }
    let (failed, lost) = (scope.state.failed.get(), scope.state.lost.get());
    assert!(
        failed == 0,
        "{failed} of the scope's coroutines panicked, and nobody joined them"
    );
    assert!(
        lost == 0 || may_unwind, // Else a mask defers what was to unwind it.
        "{lost} of the scope's coroutines were cancelled as their home ends, and nobody joined them"
    );
    result
}

/// Where [`scope`]'s closure starts children. Stays on its thread.
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<&corio::Scope<'static, 'static>>();
/// ```
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let halves = io.context().spawn(|| {
///     let mut blocks = [[0u8; 4]; 2];
///     corio::scope(|s| {
///         for (number, block) in (1..).zip(&mut blocks) {
///             s.spawn(move || block.fill(number));
///         }
///     });
///     blocks
/// });
/// assert_eq!(halves.join().unwrap(), [[1; 4], [2; 4]]);
/// # Ok::<(), corio::Error>(())
/// ```
pub struct Scope<'scope, 'env: 'scope> {
    state: State,
    // Invariant in both: a shorter 'scope would let children borrow what is gone before they end.
    scope: PhantomData<Cell<&'scope ()>>,
    env: PhantomData<Cell<&'env ()>>,
}

/// What children know of the scope.
struct State {
    /// Children that have not ended (I2).
    running: Cell<usize>,
    /// Those that panicked, and were not joined.
    failed: Cell<usize>,
    /// Those that were cancelled, though not by the scope, and were not joined.
    lost: Cell<usize>,
    /// Children are cancelled: none begins any more.
    closed: Cell<bool>,
    /// The parent is to be woken when the last child ends.
    waiting: Cell<bool>,
    parent: CoWaker,
    newest: Cell<*const Node>,
}

/// What came of a parent's wait.
struct Waited {
    /// Its children were cancelled with it, so it is to unwind.
    cancelled: bool,
    /// The thread unwinds, perhaps the parent. If not, others of the thread do not matter.
    may_unwind: bool,
}

impl State {
    /// Parks the parent until no child runs. Raises nothing itself (I1).
    fn wait(&self, parent: CoRef) -> Waited {
        let mut cancelled = false;
        let mut may_unwind = panicking();
        while self.running.get() != 0 {
            may_unwind &= panicking();
            // Not while it unwinds already: then its children run to their end, as all that it
            // waits for.
            if !cancelled && parent.is_cancelled() && !parent.is_unwinding() && !may_unwind {
                cancelled = true;
                self.cancel();
                continue; // They may have ended.
            }
            self.waiting.set(true);
            park_uninterruptible();
            self.waiting.set(false);
        }
        Waited {
            cancelled,
            may_unwind: may_unwind && panicking(),
        }
    }

    /// Asks every child to end, newest first, those that have begun at once.
    fn cancel(&self) {
        self.closed.set(true);
        // SAFETY: null or a living child's node (I4); not used after the child has run.
        while let Some(node) = unsafe { self.newest.get().as_ref() } {
            self.unlink(node);
            if let Some(co) = node.coroutine.get() {
                co.request_cancel(); // Also for one that never began, or runs below us.
                coroutine::cancel_now(co);
            }
        }
    }

    fn link(&self, node: &Node) {
        let older = self.newest.replace(node);
        node.older.set(older);
        node.linked.set(true);
        // SAFETY: null or a node in the list (I4).
        if let Some(older) = unsafe { older.as_ref() } {
            older.newer.set(node);
        }
    }

    fn unlink(&self, node: &Node) {
        if !node.linked.replace(false) {
            return;
        }
        let (newer, older) = (node.newer.get(), node.older.get());
        // SAFETY: null or nodes in the list (I4).
        let (newer_node, older_node) = unsafe { (newer.as_ref(), older.as_ref()) };
        match newer_node {
            Some(newer) => newer.older.set(older),
            None => self.newest.set(older),
        }
        if let Some(older) = older_node {
            older.newer.set(newer);
        }
    }
}

/// A child in its scope's list.
struct Node {
    newer: Cell<*const Node>,
    older: Cell<*const Node>,
    linked: Cell<bool>,
    coroutine: Cell<Option<CoRef>>,
}

type Outcome<T> = Result<T, JoinError>;

/// How the scope has counted a child's end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// It need not know.
    Not,
    /// In `failed`.
    Failed,
    /// In `lost`.
    Lost,
}

impl State {
    fn count(&self, how: Counted, up: bool) {
        let counter = match how {
            Counted::Not => return,
            Counted::Failed => &self.failed,
            Counted::Lost => &self.lost,
        };
        counter.set(if up {
            counter.get() + 1
        } else {
            counter.get() - 1
        });
    }
}

/// What a child and its handle share. `F` holds the closure until it runs; last, so that the handle
/// need not know it.
struct Packet<T, F: ?Sized> {
    node: Node,
    /// Whose child it is. Alive while the child runs (I1), and while there is a handle (I3).
    scope: NonNull<State>,
    outcome: Cell<Option<Outcome<T>>>,
    /// How the scope counts its end, until it is joined.
    counted: Cell<Counted>,
    joiner: Cell<Option<CoWaker>>,
    closure: F,
}

/// The closure of a child, of which its handle knows nothing.
trait Held {}

impl<F> Held for Cell<Option<F>> {}

impl<T, F: ?Sized> Packet<T, F> {
    fn scope(&self) -> &State {
        // SAFETY: as the field says; callers are the child while it runs, and the handle.
        unsafe { self.scope.as_ref() }
    }
}

/// The child's share of its packet, without its lifetimes: what its coroutine is made of. However
/// it goes, run or not, the child has ended then.
struct Body {
    packet: *const (),
    run: unsafe fn(*const ()),
    end: unsafe fn(*const ()),
}

impl Body {
    fn new<T, F: FnOnce() -> T>(packet: Rc<Packet<T, Cell<Option<F>>>>) -> Body {
        Body {
            packet: Rc::into_raw(packet).cast(),
            run: run_child::<T, F>,
            end: end_child::<T, F>,
        }
    }

    fn run(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the packet is of the type that `run` is for, and the share is given up here once.
        unsafe { (this.run)(this.packet) }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // SAFETY: as above; `run` forgets the body.
        unsafe { (self.end)(self.packet) }
    }
}

/// # Safety
/// `packet` is a share of a `Packet<T, Cell<Option<F>>>`, which it gives up. In the child's
/// coroutine, whose scope is there (I1).
unsafe fn run_child<T, F: FnOnce() -> T>(packet: *const ()) {
    // SAFETY: as the caller promises.
    let packet = unsafe { Rc::from_raw(packet.cast::<Packet<T, Cell<Option<F>>>>()) };
    let closure = packet.closure.take();
    let body = move || {
        coroutine::cancellation_point(); // It may have been asked to end before it began.
        closure.map(|closure| closure())
    };
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Some(value)) => finish(packet, Ok(value)),
        Ok(None) => finish(packet, Err(JoinError::Cancelled)), // It has only one share.
        Err(payload) if payload.is::<Cancelled>() => {
            finish(packet, Err(JoinError::Cancelled));
            // So that the coroutine layer sees its own cancellation.
            resume_unwind(payload);
        }
        Err(payload) => finish(packet, Err(JoinError::Panicked(payload))),
    }
}

/// # Safety
/// As [`run_child`], but not in the child's coroutine.
unsafe fn end_child<T, F: FnOnce() -> T>(packet: *const ()) {
    // SAFETY: as the caller promises.
    let packet = unsafe { Rc::from_raw(packet.cast::<Packet<T, Cell<Option<F>>>>()) };
    let closure = packet.closure.take();
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(closure)));
    let why = dropped.map_or_else(JoinError::Panicked, |()| JoinError::Cancelled);
    finish(packet, Err(why));
}

/// The child has ended; its closure and frame hold nothing of the scope's any more.
fn finish<T, F>(packet: Rc<Packet<T, F>>, outcome: Outcome<T>) {
    let state = packet.scope;
    // SAFETY: the child counts as running until the end of this function (I1).
    let state = unsafe { state.as_ref() };
    state.unlink(&packet.node);
    packet.node.coroutine.set(None);
    let counted = match &outcome {
        Err(JoinError::Panicked(_)) => Counted::Failed,
        Err(_) if !state.closed.get() => Counted::Lost,
        _ => Counted::Not,
    };
    state.count(counted, true);
    packet.counted.set(counted);
    packet.outcome.set(Some(outcome));
    if let Some(joiner) = packet.joiner.take() {
        joiner.wake();
    }
    // Without a handle the result goes here, and its destructor is the user's.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(packet))) {
        core::mem::forget(payload); // The hook has reported it; its destructor could panic again.
        if counted == Counted::Not {
            state.count(Counted::Failed, true);
        }
    }
    state.running.set(state.running.get() - 1);
    if state.running.get() == 0 && state.waiting.get() {
        state.parent.wake(); // Queued, and run when this one has ended.
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// Starts a coroutine in this thread's context home. It may borrow what outlives the scope. It
    /// is queued and runs in the loop's next turn, or when the loop has one: not before the caller
    /// parks. In the scope's own coroutine, or a child.
    ///
    /// What is started after the scope has been cancelled, or while its home ends, is cancelled
    /// before it begins.
    ///
    /// # Panics
    /// If no stack can be had.
    #[track_caller]
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        let at = Location::caller();
        let place = self.state.place();
        let packet = Rc::new(Packet {
            node: Node {
                newer: Cell::new(ptr::null()),
                older: Cell::new(ptr::null()),
                linked: Cell::new(false),
                coroutine: Cell::new(None),
            },
            scope: NonNull::from(&self.state),
            outcome: Cell::new(None),
            counted: Cell::new(Counted::Not),
            joiner: Cell::new(None),
            closure: Cell::new(Some(f)),
        });
        let handle = ScopedJoinHandle {
            packet: Rc::clone(&packet) as Rc<Packet<T, dyn Held + 'scope>>,
        };
        self.state.running.set(self.state.running.get() + 1);
        let node = NonNull::from(&packet.node);
        let body = Body::new(packet);
        if let Some((home, stack)) = place {
            let how = Builder::new();
            let co = coroutine::create_on(home, stack, how, at, move || body.run());
            // SAFETY: the handle has a share of the packet.
            let node = unsafe { node.as_ref() };
            node.coroutine.set(Some(co));
            self.state.link(node);
            queue(co, at);
        }
        handle
    }
}

impl State {
    /// Where a child is to be made, and its stack; None if none is to be made any more.
    #[track_caller]
    fn place(&self) -> Option<(&'static Home, &'static Slot)> {
        if self.closed.get() {
            return None;
        }
        let home = coroutine::context_home().filter(|home| !home.is_closing())?;
        match Builder::new().reserve_stack() {
            Ok(stack) => Some((home, stack)),
            Err(error) => no_stack(&error),
        }
    }
}

/// Has a new coroutine run in the loop's next turn.
fn queue(co: CoRef, at: &'static Location<'static>) {
    co.set_scheduled_at(at);
    co.set_queued();
    if track::is_enabled() {
        track::emit_scheduled(co.id(), coroutine::running_id(), Some(at));
    }
    Inbox::push_here(co.inbox(), co.slot());
}

impl core::fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scope")
            .field("running", &self.state.running.get())
            .finish_non_exhaustive()
    }
}

/// Waits for a child of a [`scope`] and takes its result. Stays on its thread, and in its scope.
///
/// Dropping it lets the child go on; the scope waits for it all the same.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let text = io.context().spawn(|| {
///     let name = String::from("corio");
///     corio::scope(|s| {
///         let first = s.spawn(|| &name[..2]); // The result may borrow, too.
///         first.join().unwrap().to_owned()
///     })
/// });
/// assert_eq!(text.join().unwrap(), "co");
/// # Ok::<(), corio::Error>(())
/// ```
pub struct ScopedJoinHandle<'scope, T> {
    packet: Rc<Packet<T, dyn Held + 'scope>>,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits until the child has ended. Parks; a cancellation point. In a coroutine of the scope.
    ///
    /// # Errors
    /// It panicked, which the scope does not report then; it was cancelled.
    #[track_caller]
    pub fn join(self) -> Result<T, JoinError> {
        loop {
            if let Some(outcome) = self.packet.outcome.take() {
                let counted = self.packet.counted.replace(Counted::Not);
                self.packet.scope().count(counted, false);
                return outcome;
            }
            let joiner = CoWaker::of(parkable("ScopedJoinHandle::join"));
            self.packet.joiner.set(Some(joiner));
            park();
        }
    }

    /// True once the result is there, so that [`join`](Self::join) does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let outcome = self.packet.outcome.take();
        let finished = outcome.is_some();
        self.packet.outcome.set(outcome);
        finished
    }
}

impl<T> core::fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ScopedJoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}
