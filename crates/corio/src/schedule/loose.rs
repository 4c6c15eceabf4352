//! Loose coroutines on contexts, and threads that are home without a scope (for the C interface).
//!
//! ```text
//!   any thread ── schedule(to, co) ──▶ inbox of `to` ── its drain, in its home ──▶ entered
//!
//!   a thread ── its first coroutine ──▶ adopted: a home whose inbox nobody runs
//!            ── Loop::enter_thread  ──▶ a home whose inbox its loop runs, until the thread ends
//! ```
//!
//! Invariants
//! - I1 A `Loop`'s inbox is made with it and lasts as long as it, home or not: what is scheduled
//!   before it has a home is run by the first one.
//! - I2 An adopted thread's state lives until its thread-locals are destroyed; what uses it later
//!   is leaked.

#![allow(unsafe_code)] // Coroutines by pointers; the contracts are the callers'.

use core::cell::RefCell;
use core::panic::Location;
use core::ptr;
use std::sync::Arc;

use super::CoWaker;
use super::inbox::Inbox;
use crate::context::{AioContext, OpenLocal};
use crate::coroutine::loose::{Loose, Refused, Unscoped, inbox_of};
use crate::coroutine::{self, CoRef};
use crate::error::Error;
use crate::stack::{self, ByName};
use crate::tls;

/// A context whose home is a thread of a C program, and on which loose coroutines are scheduled.
#[doc(hidden)]
pub struct Loop {
    context: AioContext,
    inbox: Arc<Inbox>,
}

impl Loop {
    /// Has `context` run what is scheduled on the loop. `owner` is what
    /// [`owner_of_thread`](Self::owner_of_thread) and its like tell of it.
    #[must_use]
    pub fn new(context: AioContext, owner: *const ()) -> Self {
        let inbox = Inbox::new(&context);
        inbox.set_owner(owner);
        Self { context, inbox }
    }

    /// The context.
    #[inline]
    #[must_use]
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    #[inline]
    fn as_inbox(&self) -> *const () {
        Arc::as_ptr(&self.inbox).cast()
    }

    /// Makes this thread its home until the thread ends.
    ///
    /// # Errors
    /// The monitor cannot be made.
    ///
    /// # Panics
    /// If this thread is a home already, or the context has one.
    pub fn enter_thread(&self) -> Result<(), Error> {
        let open = self.context.open_local()?;
        let inbox = Arc::clone(&self.inbox);
        // SAFETY: `Adopted` keeps the inbox until it has closed the home.
        unsafe { open.local().set_drain(Some(inbox.run_by_home())) };
        if inbox.has_own() {
            open.local().drain_soon(); // Another home has left it.
        }
        with_adopted(|adopted| {
            // SAFETY: as above.
            unsafe { adopted.home.set_inbox(Arc::as_ptr(&inbox).cast()) };
            adopted.open = Some(open);
            adopted.inbox.pass_on_to(&inbox);
            adopted
                .old_inboxes
                .push(core::mem::replace(&mut adopted.inbox, inbox));
        });
        Ok(())
    }

    /// Ends what [`enter_thread`](Self::enter_thread) has begun, if this thread is its home. False:
    /// it is not.
    pub fn leave_thread(&self) -> bool {
        self.context.is_home() && with_adopted(Adopted::close)
    }

    /// Whether coroutines are queued here that no turn has run. To be called where nobody uses it any
    /// more.
    #[must_use]
    pub fn has_scheduled(&self) -> bool {
        self.inbox.has_any()
    }

    /// Its owner is no more.
    pub fn disown(&self) {
        self.inbox.set_owner(ptr::null());
    }

    /// The owner of the loop whose home this thread is; null if there is none.
    #[inline]
    #[must_use]
    pub fn owner_of_thread() -> *const () {
        // SAFETY: the thread's inbox is there while it is its home.
        unsafe { Inbox::owner(inbox_of(tls::thread())) }
    }

    /// The owner of the loop on which a coroutine was entered last; null if that was none.
    ///
    /// # Safety
    /// The coroutine has not ended.
    #[inline]
    #[must_use]
    pub unsafe fn owner_of(co: Loose) -> *const () {
        // SAFETY: the caller's promise; the loop is the C program's to keep.
        unsafe { Inbox::owner(co.inbox()) }
    }

    /// Queues a coroutine here. Any thread.
    ///
    /// # Errors
    /// Why it cannot be: it is queued already, or parked.
    ///
    /// # Safety
    /// The coroutine has not ended, and suspends, if it runs, without doing anything else first.
    pub unsafe fn schedule(&self, co: Loose) -> Result<(), Refused> {
        // SAFETY: the caller's promise.
        unsafe { co.claim_for_queue()? };
        if crate::track::is_enabled() {
            let id = co.co().id();
            crate::track::emit_scheduled(id, coroutine::running_id(), None);
        }
        self.push(co);
        Ok(())
    }

    fn push(&self, co: Loose) {
        let slot = co.co().slot();
        if self.context.is_home() {
            Inbox::push_here(self.as_inbox(), slot);
            // It may block in a wait of an outer turn, or a foreign loop may.
        } else {
            Inbox::push_remote(self.as_inbox(), slot);
        }
    }

    /// Enters a coroutine on this thread, with its wakes coming here from now on. See
    /// [`Loose::enter`] for the rest.
    ///
    /// # Safety
    /// As [`enter`].
    #[inline]
    pub unsafe fn enter(&self, co: Loose) -> Result<bool, Refused> {
        adopt();
        // SAFETY: the caller's promise.
        unsafe { co.enter(tls::thread(), self.as_inbox()) }
    }

    /// Moves the running coroutine here; returns in the home of this loop.
    ///
    /// # Panics
    /// Outside a coroutine.
    pub fn move_here(this: &Arc<Self>) {
        let Some(co) = coroutine::current() else {
            super::no_coroutine("moving a coroutine")
        };
        let to = Arc::clone(this);
        Loose::leave_by(co, move |co| {
            // SAFETY: it has just suspended, and nobody has it but us.
            let scheduled = unsafe { to.schedule(co) };
            assert!(
                scheduled.is_ok(),
                "Co-routine was already scheduled in 'aio_co_schedule'"
            );
        });
    }
}

/// Makes a loose coroutine with a stack of the default size. Any thread; it runs nothing.
///
/// # Errors
/// No memory for the stack, or no room for its guard.
#[inline]
pub fn create(
    body: impl FnOnce() + 'static,
    at: &'static Location<'static>,
) -> Result<Loose, Error> {
    adopt();
    Loose::new(tls::thread(), body, at)
}

/// Enters a coroutine on this thread. True: it has suspended, and that is all; else
/// [`Loose::settle`] must follow.
///
/// # Errors
/// Why it cannot be entered.
///
/// # Safety
/// It is a loose coroutine, nobody else enters it meanwhile, and what it did last in another thread
/// happened before.
#[inline(always)]
pub unsafe fn enter(co: Loose) -> Result<bool, Refused> {
    let mut thread = tls::thread();
    if thread.home.get().is_null() {
        adopt_now();
        thread = tls::thread();
    }
    // SAFETY: the caller's promise.
    unsafe { co.enter(thread, inbox_of(thread)) }
}

impl CoWaker {
    /// Gets the coroutine going again as `aio_co_wake` does: a loose one that is parked in this
    /// thread's home is entered at once if no coroutine runs. All else as [`wake`](Self::wake).
    pub(crate) fn wake_by_name(self) {
        let thread = tls::thread();
        if thread.current.get().is_null()
            && let Some(slot) = stack::slot_at(self.index)
            && slot.word.is_parked_as(self.generation)
            && ptr::eq(super::inbox_of(slot), inbox_of(thread))
            && let Some(co) = Loose::of_slot(slot)
        {
            // SAFETY: it was seen parked, and its wakes go to this thread.
            match unsafe { co.enter_parked(thread, inbox_of(thread), self.generation) } {
                Some(true) => return,
                // SAFETY: it has just been entered.
                Some(false) => return unsafe { co.settle() },
                None => {} // Somebody else was faster.
            }
        }
        self.wake();
    }
}

/// The running coroutine's wake token as a number, which is not 0; 0 if none runs.
#[must_use]
pub fn token_of_running() -> u64 {
    CoWaker::current().map_or(0, CoWaker::pack)
}

/// Wakes the coroutine of a token, as `aio_co_wake` would, once it is parked. Any thread; a token is
/// good for any number of wakes, and does nothing once its coroutine has ended.
pub fn wake_token(token: u64) {
    if token != 0 {
        CoWaker::unpack(token).wake_by_name();
    }
}

/// Has a coroutine entered once the one that runs on this thread suspends or ends.
///
/// # Errors
/// Why it cannot be: it is queued already, or parked.
///
/// # Panics
/// If no coroutine runs here.
///
/// # Safety
/// `co` has not ended and does not run on another thread.
pub unsafe fn queue_beside_running(co: Loose) -> Result<(), Refused> {
    let Some(running) = coroutine::current() else {
        super::no_coroutine("queueing a coroutine")
    };
    // SAFETY: the caller's promise.
    unsafe { co.queue_beside(running) }
}

/// Puts the running coroutine at the end of its thread's queue. Others know it by its name, and have
/// to see that it is queued (stack::word I8).
#[cold]
pub(super) fn queue_running(co: CoRef) {
    if co.slot().word.schedule(co.generation()) != ByName::Queue {
        coroutine::loose::waits_scheduled();
    }
    if crate::track::is_enabled() {
        crate::track::emit_scheduled(co.id(), co.id(), None);
    }
    if super::has_loop() {
        Inbox::push_here(co.inbox(), co.slot());
    } else {
        Inbox::push_remote(co.inbox(), co.slot()); // Its thread may have a loop by now.
    }
}

/// What a thread has that is not one of ours.
struct Adopted {
    // In the order in which they go.
    open: Option<OpenLocal>,
    home: Unscoped,
    /// What the home sends wakes to.
    inbox: Arc<Inbox>,
    /// What it sent them to before: coroutines that have parked since know it.
    old_inboxes: Vec<Arc<Inbox>>,
}

impl Adopted {
    fn new() -> Self {
        let inbox = Inbox::without_loop();
        // SAFETY: it is kept beside, and dropped later.
        let home = unsafe { Unscoped::open(Arc::as_ptr(&inbox).cast()) };
        Self {
            open: None,
            home,
            inbox,
            old_inboxes: Vec::new(),
        }
    }

    /// Is home no more, if it was.
    fn close(&mut self) -> bool {
        let Some(open) = self.open.take() else {
            return false;
        };
        let inbox = Inbox::without_loop();
        // SAFETY: it is kept from here on.
        unsafe { self.home.set_inbox(Arc::as_ptr(&inbox).cast()) };
        let clean = !open.local().has_requests_in_flight();
        open.close(clean);
        self.old_inboxes
            .push(core::mem::replace(&mut self.inbox, inbox));
        true
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        self.close();
        Inbox::let_go(Arc::clone(&self.inbox));
        for inbox in self.old_inboxes.drain(..) {
            Inbox::let_go(inbox);
        }
    }
}

thread_local! {
    static ADOPTED: RefCell<Option<Box<Adopted>>> = const { RefCell::new(None) };
}

/// Makes this thread a home if it is none.
#[inline]
fn adopt() {
    if tls::thread().home.get().is_null() {
        adopt_now();
    }
}

#[cold]
#[inline(never)]
fn adopt_now() {
    with_adopted(|_| ());
}

/// This thread's state, made if need be.
fn with_adopted<R>(f: impl FnOnce(&mut Adopted) -> R) -> R {
    let mut f = Some(f);
    let mut run = |adopted: &mut Adopted| f.take().map(|f| f(adopted));
    let kept = ADOPTED.try_with(|adopted| {
        let mut adopted = adopted.borrow_mut();
        run(adopted.get_or_insert_with(|| Box::new(Adopted::new())))
    });
    let result = match kept {
        Ok(result) => result,
        // The thread is ending: I2.
        Err(_) => run(Box::leak(Box::new(Adopted::new()))),
    };
    match result {
        Some(result) => result,
        None => unreachable!("one of the two has run it"),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;
    use crate::schedule::yield_uninterruptible;

    /// Enters a coroutine of `body` in the home of a loop, and calls `then` with both.
    fn in_loop(body: fn(&Loop, &Cell<u32>), then: fn(&Loop, Loose, &Cell<u32>)) {
        let thread = std::thread::spawn(move || {
            let home = Rc::new(Loop::new(AioContext::new().unwrap(), ptr::null()));
            home.enter_thread().unwrap();
            let steps = Rc::new(Cell::new(0));
            let run = {
                let (home, steps) = (Rc::clone(&home), Rc::clone(&steps));
                move || body(&home, &steps)
            };
            let co = create(run, Location::caller()).unwrap();
            // SAFETY: it is a loose coroutine that has not ended, of this thread.
            assert_eq!(unsafe { home.enter(co) }, Ok(true));
            then(&home, co, &steps);
            assert!(home.leave_thread());
        });
        thread.join().unwrap();
    }

    // SPEC C3, S3: one that gives the loop a turn is in the queue, and in no other one as well.
    #[test]
    fn one_that_yields_is_scheduled() {
        let body = |_: &Loop, steps: &Cell<u32>| {
            yield_uninterruptible();
            steps.set(steps.get() + 1);
        };
        in_loop(body, |home, co, steps| {
            // SAFETY: it has not ended, and is of this thread.
            unsafe {
                assert_eq!(home.schedule(co), Err(Refused::Scheduled));
                assert_eq!(home.enter(co), Err(Refused::Scheduled));
            }
            assert_eq!(steps.get(), 0);
            assert!(home.context().poll(false).unwrap());
            assert_eq!(steps.get(), 1);
        });
    }

    // SPEC C3, S3: one that has had itself scheduled cannot be queued a second time.
    #[test]
    fn one_that_is_scheduled_does_not_yield() {
        let body = |home: &Loop, steps: &Cell<u32>| {
            let running = Loose::running().unwrap();
            // SAFETY: it runs, and suspends below.
            unsafe { home.schedule(running) }.unwrap();
            let yielded = catch_unwind(AssertUnwindSafe(yield_uninterruptible));
            steps.set(if yielded.is_err() { 1 } else { 100 });
            coroutine::suspend();
            steps.set(steps.get() + 1);
        };
        in_loop(body, |home, _, steps| {
            assert_eq!(steps.get(), 1, "it was refused");
            assert!(home.context().poll(false).unwrap());
            assert_eq!(steps.get(), 2);
        });
    }
}
