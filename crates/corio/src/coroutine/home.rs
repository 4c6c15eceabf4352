//! Homes: the scope on a thread in which coroutines live (SPEC C0).
//!
//! A home keeps a list of its living coroutines. When the scope ends, each is discarded if it never started, or
//! cancelled: resumed so that it unwinds. One that keeps catching its cancellation, or still has something in
//! flight, is leaked (its stack is never reused) and named.
//!
//! Invariants
//! - I1 A home lives on the native stack of its thread, at one address, from before its first coroutine is made until
//!   its list is empty.
//! - I2 `ThreadState::home` points to the innermost live home of the thread.

use core::cell::Cell;
use core::ptr;

use super::control::{Cancel, ControlBlock, Phase};
use super::{CoRef, enter, switch};
use crate::{stack, tls};

/// How often a coroutine that catches its cancellation is asked again before it is leaked.
const UNWIND_TRIES_MAX: u32 = 64;

/// A scope for coroutines. See the module's documentation.
pub(crate) struct Home {
    newest: Cell<*const ControlBlock>,
    living: Cell<usize>,
    outer: *const (),
    /// Where wakes of these coroutines go; null in a home without a context. Owner: `schedule`.
    inbox: *const (),
}

impl Home {
    pub(super) fn link(&self, block: &ControlBlock) {
        let older = self.newest.replace(block);
        block.older.set(older);
        block.newer.set(ptr::null());
        if let Some(older) = resolve(older) {
            older.newer.set(block);
        }
        self.living.set(self.living.get() + 1);
    }

    pub(super) fn unlink(&self, block: &ControlBlock) {
        match resolve(block.newer.get()) {
            Some(newer) => newer.older.set(block.older.get()),
            None => self.newest.set(block.older.get()),
        }
        if let Some(older) = resolve(block.older.get()) {
            older.newer.set(block.newer.get());
        }
        self.living.set(self.living.get() - 1);
    }

    /// Where wakes of its coroutines go; null without a context.
    #[inline]
    pub(crate) fn inbox(&self) -> *const () {
        self.inbox
    }

    /// How many coroutines live here.
    pub(crate) fn living(&self) -> usize {
        self.living.get()
    }

    /// All that live here, newest first, each with its generation: whoever runs one must check that it still lives.
    pub(crate) fn snapshot(&self) -> Vec<(CoRef, u32)> {
        let mut all = Vec::with_capacity(self.living());
        let mut at = resolve(self.newest.get());
        while let Some(block) = at {
            all.push((CoRef::new(block), block.generation));
            at = resolve(block.older.get());
        }
        all
    }

    /// Ends what can be ended without a loop: see the module's documentation.
    fn unwind_all(&self) {
        while let Some(block) = resolve(self.newest.get()) {
            let co = CoRef::new(block);
            if block.phase.get() == Phase::Created {
                switch::discard(co);
                continue;
            }
            let mut tries = 0;
            while tries < UNWIND_TRIES_MAX && resolve(self.newest.get()).is_some_and(|now| co.is(now)) {
                tries += 1;
                if !cancel_now(co) {
                    break;
                }
            }
            if resolve(self.newest.get()).is_some_and(|now| co.is(now)) {
                leak(self, block);
            }
        }
    }
}

/// Asks a coroutine that is not running to unwind, and runs it. False: it cannot be run now, because it is queued
/// somewhere, or because nothing can unwind here. A panic of its own is reported by the panic hook and goes no further.
pub(crate) fn cancel_now(co: CoRef) -> bool {
    if cfg!(panic = "abort") || co.phase() != Phase::Suspended {
        return false;
    }
    if co.block().cancel.get() == Cancel::None {
        co.block().cancel.set(Cancel::Requested);
    }
    let word = &co.slot().word;
    if word.is_parked() && !word.claim_parked(co.generation()) || word.is_scheduled() {
        return false;
    }
    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| enter(co))));
    true
}

fn leak(home: &Home, block: &ControlBlock) {
    tracing::error!(
        "{} did not end with its home and is leaked: its stack is never used again; it catches its cancellation, \
         or something it started is still in flight",
        block.describe()
    );
    home.unlink(block);
    block.phase.set(Phase::Entered); // So that nobody enters or frees it: a handle to it is inert.
}

#[allow(unsafe_code)] // The list's links.
fn resolve<'a>(block: *const ControlBlock) -> Option<&'a ControlBlock> {
    // SAFETY: links are null or point to living coroutines' blocks: `unlink` runs before a block is given up
    // (control I1). Only the home thread gets here (control I2), and no caller keeps the reference past the
    // coroutine's end.
    unsafe { block.as_ref() }
}

/// The innermost home of this thread.
#[inline]
pub(crate) fn current() -> Option<&'static Home> {
    of_thread(tls::thread())
}

/// The innermost home of the thread whose state this is, which is the running one.
#[inline]
#[allow(unsafe_code)] // ThreadState::home is untyped.
pub(super) fn of_thread(thread: &tls::ThreadState) -> Option<&'static Home> {
    // SAFETY: I2; the reference is used within the scope of the home, by code that runs inside it.
    unsafe { thread.home.get().cast::<Home>().as_ref() }
}

/// Runs `f` in a home whose coroutines' wakes go to `inbox`; `leave` runs after `f`, before what is left is unwound.
pub(crate) fn with_home<R>(inbox: *const (), f: impl FnOnce() -> R, leave: impl FnOnce(&Home)) -> R {
    assert!(
        !super::in_coroutine(),
        "a home was opened inside a coroutine: open it on the thread's own stack, and use `spawn` inside it"
    );
    struct Scope<'a, L: FnOnce(&Home)> {
        home: &'a Home,
        leave: Option<L>,
    }
    impl<L: FnOnce(&Home)> Drop for Scope<'_, L> {
        fn drop(&mut self) {
            if let Some(leave) = self.leave.take() {
                leave(self.home);
            }
            self.home.unwind_all();
            let outer = self.home.outer;
            tls::thread().home.set(outer);
            if outer.is_null() {
                stack::flush_local();
            }
        }
    }
    let state = tls::thread();
    let home =
        Home { newest: Cell::new(ptr::null()), living: Cell::new(0), outer: state.home.get(), inbox };
    state.home.set(ptr::from_ref(&home).cast());
    let _scope = Scope { home: &home, leave: Some(leave) };
    f()
}

/// Runs `f` in a home for raw coroutines: a scope on this thread, without an event loop (SPEC C0).
///
/// Inside, coroutines can be made, entered and suspended; parking (sleeping, I/O, locks) needs a context, see
/// [`AioContext`](crate::AioContext). When `f` returns, what is still suspended is unwound, destructors and all; what
/// cannot be is leaked and named in the log. Handles that outlive the home are inert. Any thread; not inside a coroutine.
///
/// # Panics
/// Inside a coroutine. A panic of `f` passes through, after the unwinding.
///
/// ```
/// use corio::Coroutine;
/// let mut steps = Vec::new();
/// corio::home(|| {
///     let (tx, rx) = std::sync::mpsc::channel();
///     let co = Coroutine::new(move || {
///         tx.send(1).unwrap();
///         corio::suspend();
///         tx.send(2).unwrap();
///     });
///     co.enter();
///     co.enter();
///     steps.extend(rx.try_iter());
/// });
/// assert_eq!(steps, [1, 2]);
/// ```
pub fn home<R>(f: impl FnOnce() -> R) -> R {
    with_home(ptr::null(), f, |_| ())
}
