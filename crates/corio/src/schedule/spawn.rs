//! Spawning and joining.

use core::future::Future;
use core::marker::PhantomData;
use core::panic::Location;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, Thread};

use super::inbox::Inbox;
use super::{CoWaker, Neighbour, no_context, packet, park};
use crate::context::{AioContext, Local, LocalContext};
use crate::coroutine::{self, Builder, Cancelled, Home, Unfinished};
use crate::error::Error;
use crate::stack::Slot;
use crate::track;

/// Why a coroutine gave no result.
///
/// ```
/// use corio::JoinError;
/// let io = corio::IoThread::builder().spawn()?;
/// let panicked = io.context().spawn(|| { if true { panic!("out of tea") } }).join();
/// let Err(JoinError::Panicked(payload)) = panicked else { unreachable!() };
/// assert_eq!(payload.downcast_ref(), Some(&"out of tea"));
///
/// let parked = io.context().spawn(|| loop { corio::park() });
/// parked.cancel()?;
/// assert!(matches!(parked.join(), Err(JoinError::Cancelled)));
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Its body panicked; the payload is the panic's.
    #[error("the coroutine panicked")]
    Panicked(Box<dyn Any + Send>),
    /// It was cancelled, or its context ended before it could run.
    #[error("the coroutine was cancelled, or its context ended")]
    Cancelled,
    /// It did not end with its home, and never will: it kept catching its cancellation, or what it
    /// had started was still in flight. Unlike one that was cancelled it has not been unwound: what
    /// it owns is never dropped, and locks that it holds stay locked.
    #[error("the coroutine did not end with its home and is leaked")]
    Leaked,
    /// No stack could be had for it.
    #[error("no stack for the coroutine: {0}")]
    NoStack(Box<Error>),
}

impl JoinError {
    /// Goes on with the coroutine's panic, if it was one.
    pub fn resume_panic(self) -> Self {
        match self {
            Self::Panicked(payload) => resume_unwind(payload),
            other => other,
        }
    }
}

type Outcome<T> = Result<T, JoinError>;

/// An outcome on its way to whoever joins. If nobody does, a panic is not swallowed (SPEC C8).
struct Unjoined<T>(Option<Outcome<T>>);

impl<T> Unjoined<T> {
    fn join(mut self) -> Outcome<T> {
        let outcome = self.0.take();
        core::mem::forget(self); // Nothing is in it any more.
        match outcome {
            Some(outcome) => outcome,
            None => Err(JoinError::Cancelled),
        }
    }
}

impl<T> Drop for Unjoined<T> {
    fn drop(&mut self) {
        if matches!(self.0, Some(Err(JoinError::Panicked(_)))) {
            tracing::error!("a coroutine that nobody joins panicked");
        }
    }
}

/// Who waits for the result.
pub(crate) enum Waiter {
    Coroutine(CoWaker),
    /// A coroutine of the same thread, of which no token need have been made.
    Neighbour(Neighbour),
    Thread(Thread),
    Task(Waker),
}

type Packet<T, const LOCAL: bool> = packet::Packet<Unjoined<T>, Waiter, LOCAL>;
type Shared<T, const LOCAL: bool> = packet::Shared<Unjoined<T>, Waiter, LOCAL>;

impl<T, const LOCAL: bool> Packet<T, LOCAL> {
    fn end(&self, outcome: Outcome<T>) {
        match self.finish(Unjoined(Some(outcome))) {
            None => {}
            Some(Waiter::Coroutine(waker)) => waker.wake(),
            Some(Waiter::Neighbour(neighbour)) => neighbour.wake(),
            Some(Waiter::Thread(thread)) => thread.unpark(),
            Some(Waiter::Task(waker)) => wake_task(waker),
        }
    }

    #[inline(always)] // As `park`: each return after a switch is one that the CPU predicts wrong.
    fn join(&self) -> Outcome<T> {
        if self.is_awaited() {
            while !self.is_done() {
                park();
            }
        }
        match self.take() {
            Some(outcome) => outcome.join(),
            None => Err(JoinError::Cancelled),
        }
    }

    /// True if the running coroutine is to be woken at the end, and so has to park until then.
    /// Blocks outside a coroutine.
    fn is_awaited(&self) -> bool {
        if self.is_done() {
            return false;
        }
        if let Some(co) = super::wakeable() {
            let waiter = if LOCAL {
                Waiter::Neighbour(Neighbour::of(co))
            } else {
                Waiter::Coroutine(CoWaker::of(co))
            };
            return self.wait_first_as(waiter);
        }
        if Local::current().is_some() {
            join_on_loop();
        }
        if self.wait_as(Waiter::Thread(thread::current())).is_ok() {
            while !self.is_done() {
                thread::park();
            }
        }
        false
    }

    fn poll(&self, task: &mut Context<'_>) -> Poll<Outcome<T>> {
        // Who waited before is dropped here, where nothing is half done: it is the user's.
        if self.wait_as(Waiter::Task(task.waker().clone())).is_ok() {
            return Poll::Pending;
        }
        Poll::Ready(self.join())
    }

    /// Asks the coroutine to end; see [`JoinHandle::cancel`].
    fn ask_to_end(&self) -> Result<(), Error> {
        coroutine::can_cancel()?;
        if let Some(token) = self.cancel() {
            let token = CoWaker::unpack(token);
            if LOCAL {
                token.share();
            }
            token.cancel();
        }
        Ok(())
    }
}

#[cold]
fn join_on_loop() -> ! {
    if let Some(co) = coroutine::current() {
        no_context("join", co);
    }
    panic!(
        "join was called on a loop's thread outside a coroutine, which would stop the loop: join from a coroutine, or poll `is_finished`"
    )
}

impl<T, const LOCAL: bool> Unfinished for Packet<T, LOCAL> {
    fn leaked(&self) {
        self.end(Err(JoinError::Leaked));
    }
}

/// A task's waker is the user's, and a coroutine may be unwinding when it is fired: a panic that
/// left the destructor which does so would abort the process.
fn wake_task(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        core::mem::forget(payload); // The hook has reported it; its destructor could panic again.
    }
}

/// The coroutine's side: however it ends, and also if it never begins, the handle learns of it.
struct Finisher<T, const LOCAL: bool>(Shared<T, LOCAL>);

impl<T, const LOCAL: bool> Finisher<T, LOCAL> {
    fn run(self, f: impl FnOnce() -> T) {
        let outcome = catch_unwind(AssertUnwindSafe(f));
        coroutine::forget_unfinished(); // The packet goes with this frame.
        match outcome {
            Ok(value) => self.0.end(Ok(value)),
            // Goes on unwinding, so that the coroutine layer sees its own cancellation.
            Err(payload) if payload.is::<Cancelled>() => resume_unwind(payload),
            Err(payload) => self.0.end(Err(JoinError::Panicked(payload))),
        }
    }
}

impl<T, const LOCAL: bool> Drop for Finisher<T, LOCAL> {
    fn drop(&mut self) {
        if !self.0.is_done() {
            self.0.end(Err(JoinError::Cancelled));
        }
    }
}

/// Waits for a spawned coroutine and takes its result. `Send`, and a `Future`.
///
/// Dropping it lets the coroutine go on by itself.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let handle = io.context().spawn(|| 6 * 7);
/// assert_eq!(handle.join().unwrap(), 42);
/// # Ok::<(), corio::Error>(())
/// ```
#[must_use = "dropping the handle lets the coroutine go on by itself"]
pub struct JoinHandle<T> {
    packet: Shared<T, false>,
}

impl<T> JoinHandle<T> {
    /// Waits until the coroutine has ended. In a coroutine it parks and is a cancellation point; on
    /// a plain thread it blocks.
    ///
    /// # Errors
    /// The coroutine panicked, was cancelled or is leaked.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, where waiting would stop the loop.
    #[inline(always)]
    pub fn join(self) -> Result<T, JoinError> {
        self.packet.join()
    }

    /// True once the result is there, so that [`join`](Self::join) does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.is_done()
    }

    /// Has `waiter` woken at the end, in place of another; false if it has come. Waking one that does
    /// not wait any more does no harm. The caller has the handle for itself.
    pub(crate) fn watch(&self, waiter: Waiter) -> bool {
        self.packet.wait_as(waiter).is_ok()
    }

    /// Asks the coroutine to end: where it is parked, or next parks, it unwinds, destructors and
    /// all, once nothing of it is in flight and no [`CancelMask`](crate::CancelMask) defers it.
    /// One that has not begun never does. Joining it then gives [`JoinError::Cancelled`], or its
    /// result, if it ended first. Any thread; waits for nothing and runs nothing.
    ///
    /// # Errors
    /// In a program built with `panic = "abort"`, where nothing can unwind.
    ///
    /// ```
    /// # use corio::JoinError;
    /// # let io = corio::IoThread::builder().spawn()?;
    /// let handle = io.context().spawn(|| {
    ///     loop {
    ///         corio::time::sleep(std::time::Duration::from_secs(3600));
    ///     }
    /// });
    /// handle.cancel()?;
    /// assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    /// # Ok::<(), corio::Error>(())
    /// ```
    pub fn cancel(&self) -> Result<(), Error> {
        self.packet.ask_to_end()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        self.packet.poll(task)
    }
}

impl<T> core::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("JoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// Like [`JoinHandle`] for a coroutine whose result cannot leave its thread. Not `Send`; a `Future`
/// too.
///
/// ```
/// use std::rc::Rc;
/// let io = corio::IoThread::builder().spawn()?;
/// let handle = io.context().spawn(|| {
///     let shared = Rc::new(1);
///     let child = corio::spawn_local({
///         let shared = Rc::clone(&shared);
///         move || *shared + 1
///     });
///     child.join().unwrap()
/// });
/// assert_eq!(handle.join().unwrap(), 2);
/// # Ok::<(), corio::Error>(())
/// ```
#[must_use = "dropping the handle lets the coroutine go on by itself"]
pub struct LocalJoinHandle<T> {
    packet: Shared<T, true>,
    not_send: PhantomData<*const ()>, // packet P5.
}

impl<T> LocalJoinHandle<T> {
    /// Waits until the coroutine has ended; see [`JoinHandle::join`].
    ///
    /// # Errors
    /// The coroutine panicked, was cancelled or is leaked.
    ///
    /// # Panics
    /// Outside a coroutine.
    #[inline(always)]
    pub fn join(self) -> Result<T, JoinError> {
        self.packet.join()
    }

    /// True once the result is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.is_done()
    }

    /// As [`JoinHandle::watch`].
    pub(crate) fn watch(&self, waiter: Waiter) -> bool {
        self.packet.wait_as(waiter).is_ok()
    }

    /// Asks the coroutine to end; see [`JoinHandle::cancel`].
    ///
    /// # Errors
    /// In a program built with `panic = "abort"`, where nothing can unwind.
    pub fn cancel(&self) -> Result<(), Error> {
        self.packet.ask_to_end()
    }

    /// Parks the running coroutine until the result is there, but only while `waits` says so, which
    /// is asked again whenever the coroutine is woken; true if the result is there. A cancellation
    /// point. If it goes on without the result it may be woken by it later.
    #[track_caller]
    pub(crate) fn wait_while(&self, waits: impl Fn() -> bool) -> bool {
        let waiter = Waiter::Neighbour(Neighbour::of(super::parkable("join")));
        if !self.packet.is_done() && self.packet.wait_as(waiter).is_ok() {
            while waits() && !self.packet.is_done() {
                park();
            }
        }
        self.packet.is_done()
    }
}

impl<T> Future for LocalJoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        self.packet.poll(task)
    }
}

impl<T> core::fmt::Debug for LocalJoinHandle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LocalJoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// What a coroutine runs, and who is told of it. If it never begins, `f` is dropped first: whoever
/// has joined a coroutine finds that all it had captured is dropped.
struct Work<T, F, const LOCAL: bool> {
    f: F,
    finisher: Finisher<T, LOCAL>,
}

impl<T, F: FnOnce() -> T, const LOCAL: bool> Work<T, F, LOCAL> {
    fn run(self) {
        self.finisher.run(self.f);
    }
}

/// A coroutine that is to be spawned: how, for whom, and from where.
struct Spawn<T, F, const LOCAL: bool> {
    how: Builder,
    work: Work<T, F, LOCAL>,
    at: &'static Location<'static>,
    /// Who asked for it on another thread, for tracking; 0: whoever runs on this one.
    by: u64,
}

impl<T: 'static, F: FnOnce() -> T + 'static, const LOCAL: bool> Spawn<T, F, LOCAL> {
    #[track_caller]
    fn new(how: Builder, f: F) -> (Self, Shared<T, LOCAL>) {
        let (ours, theirs) = Shared::pair();
        let spawn = Self {
            how,
            work: Work {
                f,
                finisher: Finisher(ours),
            },
            at: Location::caller(),
            by: 0,
        };
        (spawn, theirs)
    }

    /// Makes the coroutine in this thread's context home and queues it. In a home that ends, it is
    /// cancelled before it begins.
    fn start(self) -> Result<(), Error> {
        let Some(home) = coroutine::context_home().filter(|home| !home.is_closing()) else {
            return Ok(());
        };
        let stack = self.how.reserve_stack()?;
        self.start_on(home, stack);
        Ok(())
    }

    /// The same, for who is not there to be told of an error: it is the outcome.
    fn start_unseen(self) {
        let Some(home) = coroutine::context_home().filter(|home| !home.is_closing()) else {
            return;
        };
        match self.how.reserve_stack() {
            Ok(stack) => self.start_on(home, stack),
            Err(error) => {
                let Work { f, finisher } = self.work;
                drop(f);
                finisher.0.end(Err(JoinError::NoStack(Box::new(error))));
            }
        }
    }

    fn start_on(self, home: &Home, stack: &'static Slot) {
        let Self { how, work, at, by } = self;
        let packet = work.finisher.0.as_ptr();
        let co = coroutine::create_on(home, stack, how, at, move || work.run());
        #[allow(unsafe_code)] // Pointers to what the coroutine's own frame keeps.
        // SAFETY: the finisher, which is in the coroutine's closure or frame, has a share of the
        // packet until `run` has forgotten it or the coroutine has ended; a frame that is leaked
        // stays.
        let made = unsafe {
            co.set_unfinished(packet);
            let token = if LOCAL {
                CoWaker::name(co)
            } else {
                CoWaker::of(co)
            };
            packet.as_ref().set_target(token.pack())
        };
        if !made {
            return coroutine::discard(co); // Cancelled before it was made.
        }
        co.set_scheduled_at(at);
        co.set_queued_as_made();
        if track::is_enabled() {
            let by = if by == 0 { coroutine::running_id() } else { by };
            track::emit_scheduled(co.id(), by, Some(at));
        }
        Inbox::push_here(co.inbox(), co.slot());
    }
}

/// Starts a coroutine on the context whose home this thread is; see [`AioContext::spawn`].
///
/// # Panics
/// On a thread that is no context's home; if no stack can be had.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let sum = io.context().spawn(|| corio::spawn(|| 1).join().unwrap() + 1);
/// assert_eq!(sum.join().unwrap(), 2);
/// # Ok::<(), corio::Error>(())
/// ```
#[track_caller]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    assert_home("spawn");
    let (spawn, packet) = Spawn::new(Builder::new(), f);
    spawn.start().unwrap_or_else(|error| no_stack(&error));
    JoinHandle { packet }
}

/// Like [`spawn`] for a closure and a result that need not be `Send`; the handle stays on this
/// thread.
///
/// # Panics
/// On a thread that is no context's home; if no stack can be had.
#[track_caller]
pub fn spawn_local<F, T>(f: F) -> LocalJoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    assert_home("spawn_local");
    let (spawn, packet) = Spawn::new(Builder::new(), f);
    spawn.start().unwrap_or_else(|error| no_stack(&error));
    LocalJoinHandle {
        packet,
        not_send: PhantomData,
    }
}

#[cold]
#[track_caller]
pub(super) fn no_stack(error: &Error) -> ! {
    panic!("no stack for a coroutine: {error}; `Builder` returns this as an error")
}

impl Builder {
    /// Starts a coroutine on the context whose home this thread is, as [`spawn`] does.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    ///
    /// # Panics
    /// On a thread that is no context's home.
    ///
    /// ```
    /// # let io = corio::IoThread::builder().spawn()?;
    /// let reader = corio::Builder::new().name("reader").stack_size(64 * 1024);
    /// let handle = reader.spawn_on(io.context(), || {
    ///     corio::Builder::new().name("worker").spawn(|| 7)?.join().map_err(|_| unreachable!())
    /// });
    /// assert_eq!(handle.join().unwrap()?, 7);
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[track_caller]
    pub fn spawn<F, T>(self, f: F) -> Result<JoinHandle<T>, Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        assert_home("Builder::spawn");
        let (spawn, packet) = Spawn::new(self, f);
        spawn.start()?;
        Ok(JoinHandle { packet })
    }

    /// The same as [`spawn_local`] does.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    ///
    /// # Panics
    /// On a thread that is no context's home.
    #[track_caller]
    pub fn spawn_local<F, T>(self, f: F) -> Result<LocalJoinHandle<T>, Error>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        assert_home("Builder::spawn_local");
        let (spawn, packet) = Spawn::new(self, f);
        spawn.start()?;
        Ok(LocalJoinHandle {
            packet,
            not_send: PhantomData,
        })
    }

    /// Starts a coroutine in a context's home thread, as [`AioContext::spawn`] does. Any thread. If
    /// there is no stack for it, that is what joining it gives.
    #[track_caller]
    pub fn spawn_on<F, T>(self, context: &AioContext, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (mut spawn, packet) = Spawn::new(self, f);
        // If the context never runs again the closure is dropped with it, and the finisher tells
        // the handle.
        if context.is_home() {
            spawn.start_unseen();
        } else {
            if track::is_enabled() {
                spawn.by = coroutine::running_id();
            }
            context.schedule_spawn(move || spawn.start_unseen());
        }
        JoinHandle { packet }
    }
}

#[track_caller]
#[inline]
fn assert_home(what: &str) {
    if Local::current().is_none() {
        not_home(what);
    }
}

#[cold]
#[track_caller]
fn not_home(what: &str) -> ! {
    panic!(
        "{what} was called on a thread that is no context's home: use `AioContext::spawn`, or call it inside `enter_home`"
    )
}

impl LocalContext<'_> {
    /// Starts a coroutine in this home, like [`spawn_local`].
    ///
    /// # Panics
    /// After the home has ended.
    #[track_caller]
    pub fn spawn<F, T>(&self, f: F) -> LocalJoinHandle<T>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        assert!(
            self.context().is_home(),
            "a LocalContext of `{}` was used after its home had ended: ask `AioContext::local` again",
            self.context().name()
        );
        spawn_local(f)
    }
}

impl AioContext {
    /// Starts a coroutine in this context's home thread. It is queued and runs in the loop's next
    /// turn. Any thread.
    ///
    /// A context that has no home keeps it until it has one; when the last clone of the context
    /// goes, it is cancelled. The context of an [`IoThread`](crate::IoThread) that has ended does
    /// not wait for another home: what is spawned is cancelled at once, before it begins, unless
    /// [`enter_home`](Self::enter_home) makes some thread its home again.
    #[track_caller]
    pub fn spawn<F, T>(&self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Builder::new().spawn_on(self, f)
    }

    /// Runs `f` in this context's home thread, in a coroutine, and parks the caller until its
    /// result is back; with a context that is already the caller's it just calls `f`. Not cancelled
    /// while it waits.
    ///
    /// # Panics
    /// With `f`'s panic; if the context ends before `f` does, or was an
    /// [`IoThread`](crate::IoThread)'s that has ended. On a context that never gets a home it waits
    /// for ever.
    #[track_caller]
    pub fn run<F, T>(&self, f: F) -> T
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if self.is_home() && coroutine::in_coroutine() {
            return f();
        }
        let _mask = coroutine::mask_cancel();
        match self.spawn(f).join().map_err(JoinError::resume_panic) {
            Ok(value) => value,
            Err(error) => panic!("AioContext::run on `{}`: {error}", self.name()),
        }
    }
}
