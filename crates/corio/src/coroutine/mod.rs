//! Stackful, asymmetric coroutines: create, enter, suspend (SPEC section 1).
//!
//! A coroutine belongs to the home in which it was made and in safe code never leaves that home's
//! thread, so that its locals need not be `Send` and thread-locals stay valid in it (SPEC C10).
//! This layer knows no event loop: `schedule` joins the two.
//!
//! Files: `control` is the control block and its invariants, `machine` what switches stacks,
//! `switch` the hot paths, `home` the scope, `loose` coroutines that no home owns, `mask` what
//! defers cancelling, `wake_queue` in which order the woken run, `overflow` the report of a stack
//! that was too small.

mod cancel;
mod control;
mod home;
pub(crate) mod loose;
mod machine;
mod overflow;
mod switch;
mod wake_queue;

use core::cell::Cell;
use core::hint::cold_path;
use core::marker::PhantomData;
use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

pub use cancel::{CancelMask, mask_cancel};
pub use home::home;

pub(crate) use control::{Cancel, Cancelled, Phase, is_parked_as};
pub(crate) use home::{Home, Unfinished, cancel_now, of_context as context_home, with_home};
pub(crate) use switch::{enter, run_queue};
pub(crate) use wake_queue::WakeQueue;

use control::{ControlBlock, key};

use crate::error::Error;
use crate::stack::{self, Park, Slot};
use crate::tls;

/// A living coroutine of this thread, as the runtime refers to it. Valid while the coroutine lives;
/// the holder knows that it does because it is running in it, has it in its home's list, or has won
/// its wake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoRef(NonNull<ControlBlock>);

impl CoRef {
    #[inline]
    #[allow(unsafe_code)] // The one place that follows the pointer.
    fn block<'a>(self) -> &'a ControlBlock {
        // SAFETY: the coroutine lives (type's contract), so its block is initialised (control I1);
        // only its home thread has a CoRef, as it is not Send.
        unsafe { self.0.as_ref() }
    }

    /// Its key, also after its end, when the place may be another's.
    #[inline(always)]
    #[allow(unsafe_code)] // As `block`.
    fn key(self) -> u64 {
        // SAFETY: it has had a coroutine: this one.
        unsafe { ControlBlock::key_at(self.0) }
    }

    pub(crate) fn slot(self) -> &'static Slot {
        self.block().slot
    }

    pub(crate) fn generation(self) -> u32 {
        self.block().generation
    }

    pub(crate) fn phase(self) -> Phase {
        self.block().phase()
    }

    /// A wake token of it is about to be made (stack::word I7).
    #[inline]
    pub(crate) fn share(self) {
        self.slot().word.share(self.generation(), self.is_parked());
    }

    /// True if it is parked, or scheduled by whoever woke it from there.
    #[inline]
    pub(crate) fn is_parked(self) -> bool {
        self.key() == key::of(self.generation()) + key::PARKED
    }

    /// A number that no other coroutine has or had, for tracking; not 0.
    pub(crate) fn id(self) -> u64 {
        id(self.slot(), self.generation())
    }

    /// Where its wakes go; null in a home without a context.
    pub(crate) fn inbox(self) -> *const () {
        self.slot().inbox.load(crate::atomic::Ordering::Relaxed)
    }

    pub(crate) fn describe(self) -> String {
        self.block().describe()
    }

    /// True if it will be entered from a queue.
    pub(crate) fn is_queued(self) -> bool {
        self.block().is_queued()
    }

    /// Runs `co`, of this thread, once this one yields or ends (stack::word I6).
    pub(crate) fn queue_wake(self, co: CoRef) {
        co.set_queued();
        self.block().suspend_having_woken();
        self.block().woken.push(co.slot());
    }

    /// As [`queue_wake`](Self::queue_wake), for one whose key says that it is parked.
    #[inline]
    pub(crate) fn queue_parked(self, co: CoRef) {
        debug_assert!(co.is_parked());
        co.block().set_state(key::QUEUED);
        self.block().suspend_having_woken();
        self.block().woken.push(co.slot());
    }

    /// As [`queue_wake`](Self::queue_wake), for one whose word says that it is scheduled.
    #[inline]
    pub(crate) fn queue_scheduled(self, co: CoRef) {
        self.block().suspend_having_woken();
        self.block().woken.push(co.slot());
    }

    /// True if no home owns it (`loose`).
    #[inline]
    pub(crate) fn is_loose(self) -> bool {
        self.block().is_loose()
    }

    pub(crate) fn set_scheduled_at(self, at: &'static Location<'static>) {
        self.block().scheduled_at.set(Some(at));
    }

    /// Takes a coroutine that is not running off its home's list, on its way to another thread.
    pub(crate) fn detach(self) {
        switch::detach(self);
    }

    /// Makes `home`, of this thread, the home of a coroutine that has none.
    pub(crate) fn attach(self, home: &Home) {
        let block = self.block();
        debug_assert!(block.home.get().is_null());
        block.hot.thread.set(tls::thread());
        block.home.set(home);
        // Relaxed: published by the next park's compare-exchange.
        self.slot()
            .inbox
            .store(home.inbox().cast_mut(), crate::atomic::Ordering::Relaxed);
        home.link(block);
    }

    /// Notes that its home thread queues it, to be entered from there only (stack::word I6).
    #[inline]
    pub(crate) fn set_queued(self) {
        let block = self.block();
        match block.state(block.generation) {
            // It suspends soon.
            key::ENTERED => {
                let suspended = &block.hot.suspended_key;
                suspended.set(suspended.get() | key::QUEUES);
            }
            key::CREATED => block.set_state(key::CREATED_QUEUED),
            _ => block.set_state(key::QUEUED),
        }
    }

    /// As [`set_queued`](Self::set_queued), of one that was just made.
    #[inline]
    pub(crate) fn set_queued_as_made(self) {
        debug_assert_eq!(self.phase(), Phase::Created);
        self.block().set_state(key::CREATED_QUEUED);
    }

    /// True if it has queued itself already, and runs still.
    #[inline]
    pub(crate) fn has_queued_itself(self) -> bool {
        self.block().has_queued_itself()
    }

    /// Has `unfinished` told if the coroutine is leaked.
    ///
    /// # Safety
    /// It stays alive until [`forget_unfinished`] is called in the coroutine, or the coroutine has
    /// ended; for ever, if neither happens.
    #[allow(unsafe_code)] // The contract; `home` follows the pointer.
    pub(crate) unsafe fn set_unfinished(self, unfinished: NonNull<dyn Unfinished>) {
        self.block().unfinished.set(Some(unfinished));
    }

    /// How many coroutine locks it holds.
    #[inline]
    pub(crate) fn locks_held(self) -> u32 {
        self.block().locks_held.get()
    }

    /// Counts a coroutine lock taken (+1) or released (-1).
    pub(crate) fn count_lock(self, taken: bool) {
        let held = &self.block().locks_held;
        held.set(if taken {
            held.get() + 1
        } else {
            held.get().saturating_sub(1)
        });
    }
}

fn id(slot: &Slot, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot.index())
}

/// The living coroutine of a slot whose wake the caller has won, or that it has found by other
/// means to live.
pub(crate) fn of_slot(slot: &'static Slot) -> CoRef {
    CoRef(slot.control_block().cast())
}

/// The running coroutine.
#[inline]
pub(crate) fn current() -> Option<CoRef> {
    switch::running().map(switch::reference)
}

/// The running coroutine's number, 0 outside any: who did something, for tracking.
#[inline]
pub(crate) fn running_id() -> u64 {
    current().map_or(0, CoRef::id)
}

/// Nobody need be told any more if the running coroutine is leaked.
pub(crate) fn forget_unfinished() {
    if let Some(block) = switch::running() {
        block.unfinished.set(None);
    }
}

/// Names a coroutine: no other of this process has, or had, the same.
///
/// ```
/// corio::home(|| {
///     assert_eq!(corio::current(), None);
///     let (tx, rx) = std::sync::mpsc::channel();
///     let co = corio::Coroutine::new(move || tx.send(corio::current()).unwrap());
///     co.enter();
///     assert_eq!(rx.recv().unwrap(), Some(co.id()));
/// });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoroutineId(u64);

impl CoroutineId {
    /// The number by which [`track`](crate::track) knows the coroutine; not 0.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl core::fmt::Debug for CoroutineId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "CoroutineId({:#x})", self.0)
    }
}

/// The running coroutine; None outside any. Any thread. To be woken, hand out
/// [`CoWaker::current`](crate::CoWaker::current).
#[doc(alias = "qemu_coroutine_self")]
#[must_use]
#[inline]
pub fn current_id() -> Option<CoroutineId> {
    current().map(|co| CoroutineId(co.id()))
}

/// True inside a coroutine. Any thread.
#[doc(alias = "qemu_in_coroutine")]
#[must_use]
#[inline]
pub fn in_coroutine() -> bool {
    switch::running().is_some()
}

/// Suspends the running coroutine and returns to whoever entered it last; returns when it is
/// entered again.
///
/// This is the raw yield: nothing wakes the coroutine but an [`enter`](Coroutine::enter), or a
/// schedule by name. It is a cancellation point.
///
/// # Panics
/// Outside a coroutine.
///
/// ```
/// corio::home(|| {
///     let co = corio::Coroutine::new(|| corio::suspend());
///     co.enter();
///     assert!(!co.is_done());
///     co.enter();
///     assert!(co.is_done());
/// });
/// ```
#[doc(alias = "qemu_coroutine_yield")]
#[track_caller]
#[inline(always)]
pub fn suspend() {
    let Some(block) = switch::running() else {
        yield_outside()
    };
    suspend_block(block);
}

/// As [`suspend`], for who has the running coroutine at hand.
#[inline(always)]
pub(crate) fn suspend_running(co: CoRef) {
    suspend_block(co.block());
}

/// As [`suspend_running`], but no cancellation point.
pub(crate) fn suspend_uninterruptible(co: CoRef) {
    let block = co.block();
    switch::switch_out(block, block.hot.suspended_key.get());
}

#[inline(always)]
fn suspend_block(block: &ControlBlock) {
    let block = switch::switch_out(block, block.hot.suspended_key.get());
    if block.hot.cancel.get() == Cancel::Requested {
        take_cancel(block, false, true);
    }
}

/// Parks the running coroutine until a wake token of it is fired. May return early: the caller
/// loops on its own condition. A cancellation point unless `uninterruptible`, which whoever has
/// something in flight must ask for.
///
/// False: it has not, and [`park_slow`] must follow, if there is a context to park in. In a home
/// without one it is always so.
#[inline(always)]
pub(crate) fn try_park(co: CoRef, uninterruptible: bool) -> bool {
    let block = co.block();
    // One that has woken others parks all the same. One that has queued itself does not: with that
    // in the key it fails.
    let packed = block.hot.suspended_key.get() & !key::WOKE;
    let parked = block.hot.cancel.get() == Cancel::None && block.slot.word.park_now(packed);
    if parked {
        suspend_parked(block, uninterruptible);
    }
    parked
}

/// The coroutine is wakeable from here on.
#[inline(always)]
fn suspend_parked(block: &ControlBlock, uninterruptible: bool) {
    // One that unwinds now does so still when it is woken; while it does not, others of the thread
    // may, and wait for this one to end.
    let may_unwind = std::thread::panicking();
    let block = switch::switch_out(block, block.hot.suspended_key.get() | key::PARKS);
    if block.hot.cancel.get() == Cancel::Requested {
        take_cancel(block, uninterruptible, may_unwind);
    }
}

/// As [`try_park`], for one that is asked to end, or that need not wait, or is queued already. The
/// caller has made sure that there is a context to park in.
pub(crate) fn park_slow(co: CoRef, uninterruptible: bool) {
    let block = co.block();
    take_cancel(block, uninterruptible, true);
    if block.has_queued_itself() {
        return suspend_parked(block, uninterruptible); // It will be entered from there.
    }
    match block.slot.word.park(block.generation) {
        Park::Suspend => suspend_parked(block, uninterruptible),
        Park::Scheduled => loose::waits_scheduled(),
        Park::Notified => {
            co.accept_cancel();
            take_cancel(block, uninterruptible, true);
        }
    }
}

/// Unwinds the running coroutine if it has been asked to end and nothing speaks against it.
#[cold]
fn take_cancel(block: &ControlBlock, uninterruptible: bool, may_unwind: bool) {
    if block.hot.cancel.get() == Cancel::Requested
        && !uninterruptible
        && block.hot.cancel_masks.get() == 0
    {
        switch::raise_cancel(block, may_unwind);
    }
}

/// Unwinds the running coroutine if it has been asked to end, without suspending it otherwise.
/// Outside a coroutine it does nothing.
pub(crate) fn cancellation_point() {
    cancellation_point_if(true);
}

/// The same; without `may_unwind` the caller knows that the running coroutine does not unwind,
/// though others of the thread may.
pub(crate) fn cancellation_point_if(may_unwind: bool) {
    if let Some(block) = switch::running() {
        take_cancel(block, false, may_unwind);
    }
}

#[cold]
#[track_caller]
fn yield_outside() -> ! {
    panic!(
        "suspend was called outside a coroutine: there is nothing to suspend; call it from a coroutine's body"
    )
}

/// Makes a coroutine on a stack from [`Builder::reserve_stack`], in a home of this thread.
pub(crate) fn create_on<F: FnOnce() + 'static>(
    home: &Home,
    stack: &'static Slot,
    how: Builder,
    at: &'static Location<'static>,
    body: F,
) -> CoRef {
    let name = how.name.map(Rc::from);
    switch::create(tls::thread(), Some(home), stack, name, at, body)
}

/// Suspends the running coroutine and has `departure` done with it once it does not run any more.
/// Returns when it is entered again, perhaps on another thread. A cancellation point.
#[inline(never)] // Nothing that the compiler knows of this thread is kept across it.
pub(crate) fn leave_by(co: CoRef, departure: Box<dyn FnOnce(CoRef)>) {
    let block = co.block();
    block.departure.set(Some(departure));
    block.woken.push_front(block.slot);
    switch::switch_out(block, key::of(block.generation) + key::DEPARTING);
    take_cancel(block, false, true);
}

/// A coroutine that is in no home, and not to have one any more, is leaked, and named. Any thread:
/// nobody else refers to it.
pub(crate) fn leak_detached(co: CoRef) {
    home::leak_detached(co);
}

#[cold]
#[track_caller]
pub(crate) fn scheduled_twice(co: CoRef, at: &'static Location<'static>) -> ! {
    panic!(
        "{} was scheduled again at {at}: it is queued already, and will be entered from there",
        co.describe()
    )
}

/// Drops a coroutine of this thread that has never started, closure and all.
pub(crate) fn discard(co: CoRef) {
    switch::discard(co);
}

/// Whether anything can be cancelled in this program.
pub(crate) fn can_cancel() -> Result<(), Error> {
    if cfg!(panic = "abort") {
        return Err(Error::CancelRefused);
    }
    Ok(())
}

/// Makes coroutines with a name or a stack of another size.
///
/// ```
/// # fn main() -> Result<(), corio::Error> {
/// corio::home(|| {
///     let co = corio::Builder::new().name("worker").stack_size(64 * 1024).create(|| ())?;
///     co.enter();
///     Ok(())
/// })
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Builder {
    name: Option<String>,
    stack_size: Option<usize>,
}

impl Builder {
    /// A nameless coroutine with a stack of the default size, 256 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The name that messages and traces use.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Address space for the stack in bytes, guard and control block included; rounded up to a
    /// power of two and to what a signal handler needs. At most 1 GiB. Memory is used only where
    /// the stack is touched.
    ///
    /// The lowest sixteenth, but at least a page and at most 64 KiB, is the guard: a coroutine that
    /// runs into it ends the process by SIGSEGV, after a line on standard error that names it. Rust
    /// code touches every page of a large frame and cannot miss the guard; C code does so only if it
    /// was built with `-fstack-clash-protection`, and without it a frame larger than the guard may
    /// reach past it. A handler of SIGSEGV that is installed after the first home and does not pass
    /// on what is not its own replaces the report.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Makes the coroutine in this thread's innermost home. It runs nothing.
    ///
    /// # Errors
    /// No memory for the stack, or no room for its guard ([`Error::StackLimit`]); a size out of
    /// range.
    ///
    /// # Panics
    /// Outside a home.
    #[track_caller]
    pub fn create<F: FnOnce() + 'static>(self, body: F) -> Result<Coroutine, Error> {
        self.create_ref(body, Location::caller())
            .map(Coroutine::from_ref)
    }

    fn create_ref<F: FnOnce() + 'static>(
        self,
        body: F,
        at: &'static Location<'static>,
    ) -> Result<CoRef, Error> {
        let Some(home) = home::of_thread(tls::thread()) else {
            switch::no_home(at)
        };
        let stack = self.reserve_stack()?;
        Ok(create_on(home, stack, self, at, body))
    }

    /// A stack for [`create_on`]. The caller uses it at once.
    #[inline]
    pub(crate) fn reserve_stack(&self) -> Result<&'static Slot, Error> {
        let size = match self.stack_size {
            None => stack::SIZE_DEFAULT,
            Some(wanted) => stack::class_size(wanted)?,
        };
        stack::acquire(tls::thread(), size)
    }
}

/// A coroutine of this thread that is entered by hand.
///
/// Not `Send`: it is made, entered and dropped on one thread. Dropping the handle drops a closure
/// that never ran, and unwinds a coroutine that is suspended or parked; one that runs is unwound
/// where it next parks, or when it is next entered, at the latest by its home's end. A coroutine
/// that is meant to park on a context is better made with [`spawn`](crate::spawn).
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<corio::Coroutine>();
/// ```
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// corio::home(|| {
///     let lines = Rc::new(RefCell::new(Vec::new()));
///     let writer = corio::Coroutine::new({
///         let lines = Rc::clone(&lines);
///         move || {
///             for line in ["one", "two"] {
///                 lines.borrow_mut().push(line);
///                 corio::suspend();
///             }
///         }
///     });
///     writer.enter();
///     assert_eq!(*lines.borrow(), ["one"]);
///     writer.enter();
///     assert_eq!(*lines.borrow(), ["one", "two"]);
///     assert!(!writer.is_done() && !writer.is_entered());
///     drop(writer); // Unwinds its stack, which lets go of the lines.
///     assert_eq!(Rc::strong_count(&lines), 1);
/// });
/// ```
#[derive(Debug)]
pub struct Coroutine {
    slot: &'static Slot,
    /// Its block, of which only the key is looked at once it has ended (control I2).
    co: CoRef,
    /// The key of its generation.
    base: u64,
    /// For messages about one that has ended.
    name: Option<Rc<str>>,
    created_at: &'static Location<'static>,
    /// Where the handle has scheduled it last.
    scheduled_at: Cell<Option<&'static Location<'static>>>,
    /// Tied to its thread.
    not_send: PhantomData<*const ()>,
}

impl Coroutine {
    /// Makes a coroutine in this thread's innermost home. It runs nothing.
    ///
    /// # Panics
    /// Outside a home, and where [`Builder::create`] returns an error.
    #[doc(alias = "qemu_coroutine_create")]
    #[track_caller]
    #[inline]
    pub fn new<F: FnOnce() + 'static>(body: F) -> Self {
        let at = Location::caller();
        let thread = tls::thread();
        let Some(home) = home::of_thread(thread) else {
            switch::no_home(at)
        };
        match stack::acquire(thread, stack::SIZE_DEFAULT) {
            Ok(slot) => Self::from_ref(switch::create(thread, Some(home), slot, None, at, body)),
            Err(error) => no_stack(&error),
        }
    }

    fn from_ref(co: CoRef) -> Self {
        Self {
            slot: co.slot(),
            co,
            base: key::of(co.generation()),
            name: co.block().name.clone(),
            created_at: co.block().created_at,
            scheduled_at: Cell::new(None),
            not_send: PhantomData,
        }
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        key::generation(self.base)
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn ended(&self, done: &str) -> ! {
        let name = self.name.as_deref().unwrap_or("unnamed");
        let described = control::describe(name, self.created_at, self.scheduled_at.get());
        panic!("{described} was {done}, but has ended, or its home has: make a new one")
    }

    pub(crate) fn note_scheduled(&self, at: &'static Location<'static>) {
        self.scheduled_at.set(Some(at));
    }

    /// Enters it if it is parked, no coroutine runs and nothing is traced; false if any is not so.
    #[inline(always)]
    pub(crate) fn enter_parked(&self) -> bool {
        let thread = tls::thread();
        // The key first: what has ended, or moves, may not be looked at otherwise.
        let parked = thread.current.get().is_null()
            && thread.traced.get() == 0
            && self.co.key() == self.base + key::PARKED
            && self.slot.word.claim_parked_now(self.base);
        if parked {
            switch::enter_first(thread, self.co, self.base);
        }
        parked
    }

    /// The coroutine; a panic if it has ended.
    #[track_caller]
    pub(crate) fn living_or_panic(&self, done: &str) -> CoRef {
        match self.living() {
            Some(co) => co,
            None => self.ended(done),
        }
    }

    /// The coroutine, if it has not ended.
    #[inline]
    fn living(&self) -> Option<CoRef> {
        // The slot first: where the coroutine has ended, to look at its block could bring back a
        // page, and a page of page table, that have been given to the system.
        (self.slot.word.generation() == self.generation()
            && key::state(self.co.key(), self.generation()) != key::ENDED)
            .then_some(self.co)
    }

    /// Runs the coroutine on this thread, nested in the caller, until it suspends or ends; then
    /// whatever it woke.
    ///
    /// # Panics
    /// If it has ended, is running already, or is queued on a context; and with whatever its body
    /// panics with.
    #[doc(alias = "qemu_coroutine_enter")]
    #[track_caller]
    #[inline(always)] // A call more would cost a return that the CPU predicts wrong.
    pub fn enter(&self) {
        let thread = tls::thread();
        let key = self.co.key();
        // One branch for all that speaks against it: each would be felt.
        let other = key ^ (self.base + key::SUSPENDED);
        if other | thread.traced.get() | thread.current.get().addr() as u64 == 0 {
            return switch::enter_first(thread, self.co, self.base);
        }
        cold_path(); // Or it is what the shortest way is laid out for.
        if key.wrapping_sub(self.base) <= key::CREATED {
            return switch::enter_as(self.co, self.base);
        }
        self.enter_slow();
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn enter_slow(&self) {
        match key::state(self.co.key(), self.generation()) {
            key::SUSPENDED | key::CREATED => enter(self.co),
            key::PARKED if self.slot.word.claim_parked(self.generation()) => enter(self.co),
            key::ENDED => self.ended("entered"),
            _ => enter_refused(self.co),
        }
    }

    /// Its name for good: it stays the same when the coroutine has ended.
    #[must_use]
    pub fn id(&self) -> CoroutineId {
        CoroutineId(id(self.slot, self.generation()))
    }

    /// True once its body has returned, panicked or been unwound.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.living().is_none()
    }

    /// Asks it to end, as dropping the handle does: one that never started is dropped, one that is
    /// suspended or parked unwinds now, one that runs where it next parks or suspends.
    ///
    /// # Errors
    /// In a program built with `panic = "abort"`, where nothing can unwind.
    pub fn cancel(&self) -> Result<(), Error> {
        can_cancel()?;
        self.end();
        Ok(())
    }

    /// What the handle owns, before it is forgotten.
    pub(crate) fn forget_name(&mut self) {
        self.name = None;
    }

    fn end(&self) {
        let Some(co) = self.living() else { return };
        match co.phase() {
            Phase::Created if !co.is_queued() => switch::discard(co),
            // While something unwinds nothing can be cancelled (`raise_cancel`): the home sees to
            // it later.
            Phase::Suspended if !std::thread::panicking() => {
                home::cancel_now(co);
            }
            // One that runs or is queued goes on to where its cancellation is taken.
            _ => co.request_cancel(),
        }
    }

    /// True from being entered until it next suspends or ends, also while it has itself entered
    /// another.
    #[doc(alias("qemu_coroutine_entered", "qemu_coroutine_enter_if_inactive"))]
    #[must_use]
    pub fn is_entered(&self) -> bool {
        self.living().is_some_and(|co| co.phase() == Phase::Entered)
    }
}

impl Drop for Coroutine {
    #[inline]
    fn drop(&mut self) {
        if self.living().is_some() {
            self.end();
        }
    }
}

#[cold]
#[track_caller]
fn no_stack(error: &Error) -> ! {
    panic!("no stack for a coroutine: {error}")
}

#[cold]
#[track_caller]
fn enter_refused(co: CoRef) -> ! {
    let why = if co.phase() == Phase::Entered {
        "is entered already: it must suspend before it can be entered again"
    } else {
        "is scheduled on a context already: it will be entered from there"
    };
    panic!("{} {why}", co.describe())
}
