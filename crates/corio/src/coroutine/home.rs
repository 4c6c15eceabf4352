//! Homes: the scope on a thread in which coroutines live (SPEC C0).
//!
//! A home keeps a list of its living coroutines. When the scope ends, each is discarded if it never
//! started, or cancelled: resumed so that it unwinds. One that keeps catching its cancellation, or
//! still has something in flight, is leaked (its stack is never reused, its tokens are stale) and
//! named; whoever joins it is told.
//!
//! Two things that a home cannot do anything about:
//! - A thread counts its panics, and a coroutine that is leaked in the middle of unwinding one
//!   never takes its own back: `std::thread::panicking` stays true there. Nothing can be cancelled on
//!   that thread from then on, so its later homes leak what is suspended. The log says when this
//!   happens.
//! - `std::process::exit`, called inside a home, runs the thread's thread-local destructors below a
//!   home that is still there. A handle that lies in a thread-local then unwinds its coroutine,
//!   whose frame may have borrowed a thread-local that is destroyed already; that is the one way to
//!   such a frame that a home's end does not close. Leave the home first, or call `libc::_exit`.
//!
//! Invariants
//! - I1 A home lives on the native stack of its thread, at one address, from before its first
//!   coroutine is made until its list is empty. Nothing that a coroutine does, and no panic, ends
//!   it earlier.
//! - I2 `ThreadState::home` points to the innermost live home of the thread; each points to the
//!   next outer one.
//! - I3 A thread has at most one home with an inbox, as it is the home of one context at most.

use core::cell::{Cell, RefCell};
use core::ptr::{self, NonNull};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use super::control::{Cancelled, ControlBlock, Phase, key};
use super::{CoRef, enter, of_slot, overflow, switch};
use crate::stack::{self, Slot};
use crate::{tls, track};

/// How often a coroutine that catches its cancellation is asked again before it is leaked; also,
/// how many generations of coroutines that others leave behind while they unwind are ended.
const UNWIND_PASSES_MAX: u32 = 64;

/// A scope for coroutines. See the module's documentation.
pub(crate) struct Home {
    newest: Cell<*const ControlBlock>,
    living: Cell<usize>,
    /// Who is still to be asked by [`cancel_all`](Self::cancel_all), the newest last.
    to_ask: RefCell<Vec<(&'static Slot, u32)>>,
    outer: *const (),
    /// Where wakes of these coroutines go; null in a home without a context. Owner: `schedule`.
    inbox: Cell<*const ()>,
    /// True once nothing shall be spawned here any more.
    closing: Cell<bool>,
    /// True once somebody here was asked to end and could not, because the thread unwound.
    refused: Cell<bool>,
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

    /// As [`unlink`](Self::unlink) for one that goes on elsewhere, perhaps on another thread: it is
    /// not touched here any more.
    pub(super) fn let_go(&self, block: &ControlBlock) {
        self.unlink(block);
        self.to_ask
            .borrow_mut()
            .retain(|(slot, _)| !ptr::eq(*slot, block.slot));
    }

    /// Where wakes of its coroutines go; null without a context.
    #[inline]
    pub(crate) fn inbox(&self) -> *const () {
        self.inbox.get()
    }

    /// A home inside of another one, if there is one.
    pub(super) fn inside(outer: *const (), inbox: *const ()) -> Self {
        Self {
            newest: Cell::new(ptr::null()),
            living: Cell::new(0),
            to_ask: RefCell::default(),
            outer,
            inbox: Cell::new(inbox),
            closing: Cell::new(false),
            refused: Cell::new(false),
        }
    }

    /// Has wakes of coroutines that are made or entered from now on go elsewhere. Its thread.
    pub(super) fn set_inbox(&self, inbox: *const ()) {
        self.inbox.set(inbox);
        tls::thread().place.set(0);
    }

    /// The end of a home that is no scope: what lives in it is unwound, or leaked.
    pub(super) fn end_unscoped(&self) {
        self.close();
        let leaked = self.unwind_all();
        tls::thread().set_home(self.outer);
        if self.outer.is_null() {
            stack::flush_local();
        }
        leaked.report();
    }

    /// How many coroutines live here.
    pub(crate) fn living(&self) -> usize {
        self.living.get()
    }

    /// True once nothing shall be spawned here any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Refuses spawns from here on: what comes in while a home ends could keep it for ever.
    pub(crate) fn close(&self) {
        self.closing.set(true);
    }

    /// All that live here, newest first. Whoever runs one must check first that the generation is
    /// still the slot's: a block must not even be looked at when its coroutine has ended.
    fn snapshot(&self) -> Vec<(&'static Slot, u32)> {
        let mut all = Vec::with_capacity(self.living());
        let mut at = resolve(self.newest.get());
        while let Some(block) = at {
            all.push((block.slot, block.generation));
            at = resolve(block.older.get());
        }
        all
    }

    /// Asks everyone that lives here to end, newest first, and drops what never started. Those that
    /// are queued are asked but not run; with `queued_too`, which is for when the queue will never
    /// be run, they are dropped if they never started.
    pub(crate) fn cancel_all(&self, queued_too: bool) {
        let mut all = self.snapshot();
        all.reverse();
        self.to_ask.replace(all);
        loop {
            let next = self.to_ask.borrow_mut().pop();
            let Some((slot, generation)) = next else {
                break;
            };
            if slot.word.generation() != generation {
                continue;
            }
            let co = of_slot(slot);
            match co.phase() {
                Phase::Created if queued_too || !co.is_queued() => switch::discard(co),
                Phase::Suspended => cancel_now(co),
                Phase::Created | Phase::Entered | Phase::Ended => {}
            }
        }
    }

    /// One that lives here was asked to end while the thread unwound.
    pub(super) fn note_refusal(&self) {
        self.refused.set(true);
    }

    /// Asks those again that were asked to end while the thread unwound, once it does not: nobody
    /// else would wake them. Its thread, outside any coroutine.
    #[inline]
    pub(crate) fn ask_refused(&self) {
        if self.refused.get() && !thread::panicking() {
            self.ask_refused_now();
        }
    }

    #[cold]
    fn ask_refused_now(&self) {
        self.refused.set(false);
        for (slot, generation) in self.snapshot() {
            // Here it may have been retired by those before it.
            if slot.word.generation() == generation && of_slot(slot).is_cancel_due() {
                cancel_now(of_slot(slot));
            }
        }
    }

    /// Ends what can be ended without a loop, leaks the rest, and tells who that was.
    fn unwind_all(&self) -> Leaked {
        for _ in 0..UNWIND_PASSES_MAX {
            if self.living() == 0 {
                break;
            }
            self.cancel_all(true);
        }
        let mut leaked = Leaked::default();
        while let Some(block) = resolve(self.newest.get()) {
            self.unlink(block);
            leaked.add(block);
        }
        leaked
    }
}

/// See the function of this name in the parent.
pub(super) fn leak_detached(co: CoRef) {
    let block = co.block();
    let mut leaked = Leaked::default();
    leaked.add(block);
    leaked.why = "its context had ended, or never had a home, when it was to move there";
    leaked.report();
}

/// Asks a coroutine that is not running to unwind, and runs it unless it is queued somewhere, or
/// nothing can unwind here. A panic of its own is reported by the panic hook and goes no further.
pub(crate) fn cancel_now(co: CoRef) {
    if cfg!(panic = "abort") || co.phase() != Phase::Suspended {
        return;
    }
    co.request_cancel();
    if !co.slot().word.claim_by_name(co.generation()) || co.is_queued() {
        return;
    }
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| enter(co))) {
        // Not its own cancellation, which ends with it: that of the coroutine that runs here.
        if payload.is::<Cancelled>() {
            resume_unwind(payload);
        }
        core::mem::forget(payload); // Its destructor could panic again.
    }
}

#[allow(unsafe_code)] // The list's links.
fn resolve<'a>(block: *const ControlBlock) -> Option<&'a ControlBlock> {
    // SAFETY: links are null or point to living coroutines' blocks: `unlink` runs before a block is
    // given up (control I1). Only the home thread gets here (control I2), and no caller keeps the
    // reference past the coroutine's end.
    unsafe { block.as_ref() }
}

/// The innermost home of the thread whose state this is, which is the running one.
#[inline]
pub(super) fn of_thread(thread: &tls::ThreadState) -> Option<&'static Home> {
    of_pointer(thread.home.get())
}

/// The home of this thread that has a loop, if there is one: what is spawned lives there, also
/// inside a raw home.
pub(crate) fn of_context() -> Option<&'static Home> {
    let mut at = of_thread(tls::thread());
    while let Some(home) = at {
        if !home.inbox().is_null() {
            return at; // The only one: I3.
        }
        at = of_pointer(home.outer);
    }
    None
}

#[inline]
#[allow(unsafe_code)] // Homes are linked by untyped pointers.
fn of_pointer(home: *const ()) -> Option<&'static Home> {
    // SAFETY: I2; the reference is used within the scope of the home, by code that runs inside it.
    unsafe { home.cast::<Home>().as_ref() }
}

/// What somebody waits for, and a coroutine's end brings about.
pub(crate) trait Unfinished {
    /// The coroutine is leaked and will never end. In its home thread, which has no home any more;
    /// may panic.
    fn leaked(&self);
}

/// Coroutines that did not end with their home: what they may refer to has to stay for ever.
#[derive(Default)]
#[must_use = "whoever waits for them learns of it by `report`"]
pub(crate) struct Leaked {
    names: Vec<String>,
    unfinished: Vec<NonNull<dyn Unfinished>>,
    /// If it is not one of the usual reasons.
    why: &'static str,
    /// Whether the thread unwound a panic when the home began, and when it ended.
    was_panicking: bool,
    is_panicking: bool,
}

impl Leaked {
    /// A coroutine that is in no home's list any more: nobody enters or frees it from here on.
    fn add(&mut self, block: &ControlBlock) {
        self.names.push(block.describe());
        self.unfinished.extend(block.unfinished.take());
        let _ = block.slot.word.retire(block.generation); // Tokens are stale.
        block.set_state(key::ENDED); // And handles inert.
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Tells whoever waits for them, and the log. To be called once nothing is half-done: this runs
    /// users' wakers and subscribers, whose panics go no further.
    pub(crate) fn report(self) {
        #[allow(unsafe_code)] // Pointers into frames that stay for ever.
        for unfinished in self.unfinished {
            // SAFETY: as `CoRef::set_unfinished` asks: the coroutine has not ended, and will not.
            let unfinished = unsafe { unfinished.as_ref() };
            guarded(|| unfinished.leaked());
        }
        let why = if !self.why.is_empty() {
            self.why
        } else if self.was_panicking {
            "its thread unwinds a panic, and nothing can be cancelled meanwhile"
        } else {
            "it catches its cancellation, or something it started is still in flight"
        };
        for name in &self.names {
            guarded(|| {
                tracing::error!(
                    "{name} did not end with its home and is leaked: its stack is never used \
                     again; {why}"
                );
            });
        }
        if self.is_panicking && !self.was_panicking && !self.names.is_empty() {
            guarded(|| {
                tracing::error!(
                    "{} leaked in the middle of unwinding a panic: this thread counts as panicking \
                     from now on, and its later homes cannot cancel anything",
                    match &self.names[..] {
                        [name] => format!("{name} was"),
                        names => format!("one of {} coroutines was", names.len()),
                    }
                );
            });
        }
    }
}

/// Runs what is not the runtime's own, and keeps its panic here: the hook has reported it.
fn guarded(f: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
        core::mem::forget(payload); // Its destructor could panic again.
    }
}

/// How a home ended.
pub(crate) struct End<R> {
    /// What the closure returned, or panicked with.
    pub(crate) result: thread::Result<R>,
    pub(crate) leaked: Leaked,
}

/// Runs `f` in a home whose coroutines' wakes go to `inbox`; `leave` runs after `f`, before what is
/// left is unwound. From when `leave` returns on, the inbox's queue must not be run any more.
pub(crate) fn with_home<R>(
    inbox: *const (),
    f: impl FnOnce() -> R,
    leave: impl FnOnce(&Home),
) -> End<R> {
    assert!(
        !super::in_coroutine(),
        "a home was opened inside a coroutine: open it on the thread's own stack, and use `spawn` inside it"
    );
    let was_panicking = thread::panicking();
    let state = tls::thread();
    let home = Home::inside(state.home.get(), inbox);
    let _overflows = home.outer.is_null().then(overflow::watch);
    state.set_home(ptr::from_ref(&home).cast());
    track::notice(state);
    // Caught, as nothing can be cancelled while a panic unwinds (`switch::raise_cancel`).
    let result = catch_unwind(AssertUnwindSafe(f));
    home.close();
    // `leave` is the runtime's own and runs the users' code caught; should it fail, what is left is
    // unwound all the same.
    let left = catch_unwind(AssertUnwindSafe(|| leave(&home)));
    let mut leaked = home.unwind_all();
    leaked.was_panicking = was_panicking;
    leaked.is_panicking = thread::panicking();
    tls::thread().set_home(home.outer);
    if home.outer.is_null() {
        stack::flush_local();
    }
    core::mem::forget(left);
    End { result, leaked }
}

/// Runs `f` in a home for raw coroutines: a scope on this thread, without an event loop (SPEC C0).
///
/// Inside, coroutines can be made, entered and suspended; parking (sleeping, I/O, locks) needs a
/// context, see [`AioContext`](crate::AioContext). When `f` returns, what is still suspended is
/// unwound, destructors and all; what cannot be is leaked and named in the log. Handles that
/// outlive the home are inert. Any thread; not inside a coroutine.
///
/// While a thread has a home it has an alternate signal stack, its own one if that is large enough;
/// the process's first home installs a handler for SIGSEGV and SIGBUS, which reports stacks that
/// overflow and passes everything else on to the handler that was there.
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
    let end = with_home(ptr::null(), f, |_| ());
    end.leaked.report();
    end.result.unwrap_or_else(|payload| resume_unwind(payload))
}
