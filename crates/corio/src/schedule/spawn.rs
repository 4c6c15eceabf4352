//! Spawning and joining.

use core::future::Future;
use core::marker::PhantomData;
use core::panic::Location;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{CoWaker, inbox::Inbox, park};
use crate::context::{AioContext, Local, LocalContext};
use crate::coroutine::{self, Cancelled, Unfinished};
use crate::error::Error;
use crate::track;

/// Why a coroutine gave no result.
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
    NoStack(Error),
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

enum State<T> {
    Running(Waiter),
    Done(Outcome<T>),
    Taken,
}

/// Who waits for the result.
enum Waiter {
    Nobody,
    Coroutine(CoWaker),
    Task(Waker),
}

/// What a coroutine and its handle share.
struct Packet<T> {
    state: Mutex<State<T>>,
    /// For plain threads.
    done: Condvar,
}

impl<T> Packet<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Running(Waiter::Nobody)),
            done: Condvar::new(),
        })
    }

    fn finish(&self, outcome: Outcome<T>) {
        let mut state = self.state.lock();
        // The first outcome stands.
        if !matches!(*state, State::Running(_)) {
            return;
        }
        if let State::Running(waiter) = core::mem::replace(&mut *state, State::Done(outcome)) {
            drop(state);
            self.done.notify_all();
            match waiter {
                Waiter::Nobody => {}
                Waiter::Coroutine(waker) => waker.wake(),
                Waiter::Task(waker) => wake_task(waker),
            }
        }
    }

    fn take(&self) -> Option<Outcome<T>> {
        let mut state = self.state.lock();
        match core::mem::replace(&mut *state, State::Taken) {
            State::Done(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }

    fn is_done(&self) -> bool {
        !matches!(*self.state.lock(), State::Running(_))
    }

    /// Notes who waits; false if there is nothing left to wait for.
    fn wait_as(&self, waiter: Waiter) -> bool {
        let before = match &mut *self.state.lock() {
            State::Running(slot) => core::mem::replace(slot, waiter),
            _ => return false,
        };
        drop(before); // Without the lock: a task's waker may own what ends this very packet.
        true
    }

    fn join(&self) -> Outcome<T> {
        if let Some(waker) = CoWaker::current() {
            while self.wait_as(Waiter::Coroutine(waker)) {
                park();
            }
        } else {
            assert!(
                self.is_done() || Local::current().is_none(),
                "join was called on a loop's thread outside a coroutine, which would stop the loop: join from a coroutine, or poll `is_finished`"
            );
            let mut state = self.state.lock();
            while matches!(*state, State::Running(_)) {
                self.done.wait(&mut state);
            }
        }
        self.take().unwrap_or(Err(JoinError::Cancelled))
    }
}

impl<T> Unfinished for Packet<T> {
    fn leaked(&self) {
        self.finish(Err(JoinError::Leaked));
    }
}

impl<T> Drop for Packet<T> {
    fn drop(&mut self) {
        if matches!(
            self.state.get_mut(),
            State::Done(Err(JoinError::Panicked(_)))
        ) {
            tracing::error!("a coroutine that nobody joins panicked");
        }
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
struct Finisher<T>(Arc<Packet<T>>);

impl<T> Finisher<T> {
    fn run(self, f: impl FnOnce() -> T) {
        let outcome = catch_unwind(AssertUnwindSafe(f));
        coroutine::forget_unfinished(); // The packet goes with this frame.
        match outcome {
            Ok(value) => self.0.finish(Ok(value)),
            // Goes on unwinding, so that the coroutine layer sees its own cancellation.
            Err(payload) if payload.is::<Cancelled>() => resume_unwind(payload),
            Err(payload) => self.0.finish(Err(JoinError::Panicked(payload))),
        }
    }
}

impl<T> Drop for Finisher<T> {
    fn drop(&mut self) {
        self.0.finish(Err(JoinError::Cancelled)); // Does nothing after another outcome.
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
    packet: Arc<Packet<T>>,
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
    pub fn join(self) -> Result<T, JoinError> {
        self.packet.join()
    }

    /// True once the result is there, so that [`join`](Self::join) does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.is_done()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        if self.packet.wait_as(Waiter::Task(task.waker().clone())) {
            return Poll::Pending;
        }
        Poll::Ready(self.packet.take().unwrap_or(Err(JoinError::Cancelled)))
    }
}

impl<T> core::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("JoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// Like [`JoinHandle`] for a coroutine whose result cannot leave its thread. Not `Send`.
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
    packet: Arc<Packet<T>>,
    not_send: PhantomData<*const ()>,
}

impl<T> LocalJoinHandle<T> {
    /// Waits until the coroutine has ended; see [`JoinHandle::join`].
    ///
    /// # Errors
    /// The coroutine panicked, was cancelled or is leaked.
    ///
    /// # Panics
    /// Outside a coroutine.
    pub fn join(self) -> Result<T, JoinError> {
        self.packet.join()
    }

    /// True once the result is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.packet.is_done()
    }

    /// Parks the running coroutine until the result is there, but only while `waits` says so, which
    /// is asked again whenever the coroutine is woken; true if the result is there. A cancellation
    /// point.
    #[track_caller]
    pub(crate) fn wait_while(&self, waits: impl Fn() -> bool) -> bool {
        let waker = CoWaker::of(super::parkable("join"));
        while waits() && self.packet.wait_as(Waiter::Coroutine(waker)) {
            park();
        }
        // Not woken any more if it goes on without the result.
        !self.packet.wait_as(Waiter::Nobody)
    }
}

impl<T> core::fmt::Debug for LocalJoinHandle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LocalJoinHandle")
            .field("finished", &self.is_finished())
            .finish()
    }
}

/// Makes a coroutine in this thread's context home and queues it. In a home that ends, it is
/// cancelled before it begins; its own failure to get a stack is the outcome. `by` is, for
/// tracking, who asked for it on another thread; 0: whoever runs on this one.
fn start<T: 'static>(
    finisher: Finisher<T>,
    f: impl FnOnce() -> T + 'static,
    at: &'static Location<'static>,
    by: u64,
) {
    let Some(home) = coroutine::context_home().filter(|home| !home.is_closing()) else {
        return;
    };
    let stack = match coroutine::reserve_stack() {
        Ok(stack) => stack,
        Err(error) => return finisher.0.finish(Err(JoinError::NoStack(error))),
    };
    let packet = NonNull::from(&*finisher.0);
    let co = coroutine::create_on(home, stack, at, move || finisher.run(f));
    #[allow(unsafe_code)] // A pointer to what the coroutine's own frame keeps.
    // SAFETY: the finisher, which is in the coroutine's closure or frame, has a share of the packet
    // until `run` has forgotten it or the coroutine has ended; a frame that is leaked stays.
    unsafe {
        co.set_unfinished(packet);
    }
    co.set_scheduled_at(at);
    if co.slot().word.schedule(co.generation()).is_ok() {
        co.set_queued();
        if track::is_enabled() {
            let by = if by == 0 { coroutine::running_id() } else { by };
            track::emit_scheduled(co.id(), by, Some(at));
        }
        Inbox::push_remote(co.inbox(), co.slot());
    }
}

/// Starts a coroutine on the context whose home this thread is; see [`AioContext::spawn`].
///
/// # Panics
/// On a thread that is no context's home.
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
    let packet = Packet::new();
    let handle = JoinHandle {
        packet: Arc::clone(&packet),
    };
    assert_home("spawn");
    start(Finisher(packet), f, Location::caller(), 0);
    handle
}

/// Like [`spawn`] for a closure and a result that need not be `Send`; the handle stays on this
/// thread.
///
/// # Panics
/// On a thread that is no context's home.
#[track_caller]
pub fn spawn_local<F, T>(f: F) -> LocalJoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    let packet = Packet::new();
    let handle = LocalJoinHandle {
        packet: Arc::clone(&packet),
        not_send: PhantomData,
    };
    assert_home("spawn_local");
    start(Finisher(packet), f, Location::caller(), 0);
    handle
}

#[track_caller]
fn assert_home(what: &str) {
    assert!(
        Local::current().is_some(),
        "{what} was called on a thread that is no context's home: use `AioContext::spawn`, or call it inside `enter_home`"
    );
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
        let at = Location::caller();
        let packet = Packet::new();
        let handle = JoinHandle {
            packet: Arc::clone(&packet),
        };
        // If the context never runs again the closure is dropped with it, and the finisher tells
        // the handle.
        let finisher = Finisher(packet);
        if self.is_home() {
            start(finisher, f, at, 0);
        } else if track::is_enabled() {
            let by = coroutine::running_id();
            self.schedule_spawn(move || start(finisher, f, at, by));
        } else {
            self.schedule_spawn(move || start(finisher, f, at, 0));
        }
        handle
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
        let _mask = coroutine::MaskCancel::new();
        match self.spawn(f).join().map_err(JoinError::resume_panic) {
            Ok(value) => value,
            Err(error) => panic!("AioContext::run on `{}`: {error}", self.name()),
        }
    }
}
