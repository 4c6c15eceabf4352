//! A context as its home thread sees it: the door to what need not be `Send`.
//!
//! A [`LocalContext`] holds no reference into the home, whose end no lifetime could be tied to: each
//! call finds the home anew, and says so if it is gone.

use core::any::Any;
use core::marker::PhantomData;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use super::event_notifier::EventNotifier;
use super::handler::{Interest, Readiness};
use super::local::{Local, LocalHandler};
use super::{AioContext, PollStats};

/// A context in its home thread, from [`AioContext::local`]. Not `Send`, and of no use once the home
/// has ended.
///
/// ```
/// use std::{cell::Cell, rc::Rc};
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let local = context.local().expect("this thread is its home");
///     let count = Rc::new(Cell::new(0)); // Need not be `Send`.
///     let child = local.spawn({
///         let count = Rc::clone(&count);
///         move || count.set(count.get() + 1)
///     });
///     while !child.is_finished() {
///         context.poll(true)?;
///     }
///     assert_eq!(count.get(), 1);
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<corio::context::LocalContext<'static>>();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LocalContext<'a> {
    context: &'a AioContext,
    not_send: PhantomData<*const ()>,
}

impl AioContext {
    /// This context as its home thread sees it; None on any other thread.
    #[must_use]
    pub fn local(&self) -> Option<LocalContext<'_>> {
        self.is_home().then_some(LocalContext {
            context: self,
            not_send: PhantomData,
        })
    }
}

impl<'a> LocalContext<'a> {
    /// The context itself.
    #[must_use]
    pub fn context(&self) -> &'a AioContext {
        self.context
    }

    /// What the home keeps, found anew: the last one may have ended since this was made.
    #[track_caller]
    pub(super) fn home(&self) -> &Local {
        let home = Local::current().filter(|local| local.context().id() == self.context.id());
        let Some(home) = home else {
            panic!(
                "a LocalContext of `{}` was used after its home had ended: ask `AioContext::local` again",
                self.context.name()
            )
        };
        home
    }

    /// Has `callback` run in each turn that finds `fd` as `interest` asks, until the handler is
    /// dropped. Level-triggered: what is not drained fires again.
    ///
    /// The handler owns what it watches, so that the descriptor's number cannot be another file's;
    /// an `Rc` or `Arc` of a socket will do. The callback runs on the thread's own stack and outside
    /// any coroutine: it may register and remove handlers, its own included, wake coroutines and
    /// poll the context, but not park. It may be entered again by a nested poll.
    ///
    /// # Errors
    /// It is no open descriptor; no memory. A regular file is always ready: a context that watches
    /// one uses poll from then on, where epoll would refuse it.
    ///
    /// # Panics
    /// After the home has ended.
    ///
    /// ```
    /// use corio::context::Interest;
    /// use std::{cell::Cell, io::Write, os::unix::net::UnixStream, rc::Rc};
    /// let context = corio::AioContext::new()?;
    /// context.enter_home(|| {
    ///     let local = context.local().expect("this thread is its home");
    ///     let (ours, mut theirs) = UnixStream::pair()?;
    ///     let ready = Rc::new(Cell::new(false));
    ///     let seen = Rc::clone(&ready);
    ///     let handler = local.add_handler(ours, Interest::READ, move |why| seen.set(why.read))?;
    ///     theirs.write_all(b"x")?;
    ///     while !ready.get() {
    ///         context.poll(true)?;
    ///     }
    ///     drop(handler); // Never called again, and the descriptor is closed.
    ///     Ok::<_, std::io::Error>(())
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "aio_set_fd_handler")]
    #[track_caller]
    pub fn add_handler<F: AsFd + 'static>(
        &self,
        fd: F,
        interest: Interest,
        callback: impl Fn(Readiness) + 'static,
    ) -> io::Result<Handler<F>> {
        let handler = self.home().add_handler(&fd, callback)?;
        handler.set_interest(interest)?;
        Ok(Handler { handler, fd })
    }

    /// Has `callback` run in each turn that finds the event set, which is cleared before, until the
    /// handler is dropped. It waits for nothing but to be read, so that of the two interests only
    /// [`READ`](Interest::READ) is of use; without, it pauses. Else as
    /// [`add_handler`](Self::add_handler).
    ///
    /// # Errors
    /// No memory.
    ///
    /// # Panics
    /// After the home has ended.
    ///
    /// ```
    /// use corio::context::EventNotifier;
    /// use std::{cell::Cell, rc::Rc, sync::Arc};
    /// let context = corio::AioContext::new()?;
    /// context.enter_home(|| {
    ///     let local = context.local().expect("this thread is its home");
    ///     let kick = Arc::new(EventNotifier::new()?);
    ///     let kicks = Rc::new(Cell::new(0));
    ///     let seen = Rc::clone(&kicks);
    ///     let handler = local.add_notifier(Arc::clone(&kick), move || seen.set(seen.get() + 1))?;
    ///     kick.set();
    ///     context.poll(true)?;
    ///     assert_eq!(kicks.get(), 1);
    ///     assert!(!kick.test_and_clear());
    ///     drop(handler);
    ///     Ok::<_, Box<dyn std::error::Error>>(())
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "aio_set_event_notifier")]
    #[track_caller]
    pub fn add_notifier(
        &self,
        notifier: impl Into<Arc<EventNotifier>>,
        callback: impl Fn() + 'static,
    ) -> io::Result<Handler<Arc<EventNotifier>>> {
        let notifier = notifier.into();
        let handler = self.home().add_notifier(&notifier, callback)?;
        handler.set_interest(Interest::READ)?;
        Ok(Handler {
            handler,
            fd: notifier,
        })
    }

    /// What `T` keeps in this home: made by `make` on first use, dropped with the home. The typed
    /// slot of what belongs to a home thread; [`AioContext::attachment`] is that of all threads.
    ///
    /// # Panics
    /// After the home has ended.
    #[track_caller]
    pub fn attachment<T: Any>(&self, make: impl FnOnce() -> T) -> Rc<T> {
        self.home().attachment(|_| make())
    }
}

/// A descriptor that its home watches, and what is watched. Dropping it removes it: its callback is
/// not called again, and the descriptor may be closed. After the home's end it watches nothing.
///
/// ```
/// use corio::context::Interest;
/// use std::{io::Write, os::unix::net::UnixStream};
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let (ours, theirs) = UnixStream::pair()?;
///     let local = context.local().expect("this thread is its home");
///     let handler = local.add_handler(ours, Interest::READ, |_| unreachable!("nothing is sent"))?;
///     handler.get_ref().write_all(b"the descriptor is used through the handler")?;
///     drop(handler);
///     drop(theirs);
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a handler is removed when it is dropped"]
pub struct Handler<F> {
    // First: the descriptor is let go of before it is closed.
    handler: LocalHandler,
    fd: F,
}

impl<F: AsFd> Handler<F> {
    /// Changes what it waits for. Nothing: it stays, and is not called.
    ///
    /// # Errors
    /// The monitor refuses; it then waits for what it waited for before.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        self.handler.set_interest(interest)
    }

    /// What it waits for.
    #[must_use]
    pub fn interest(&self) -> Interest {
        self.handler.interest()
    }

    /// Has `poll` asked whether there is something, before the loop waits: a look at memory that
    /// the partner writes, without a system call. Where it says so, `ready` runs in place of the
    /// handler's callback. For how long it is asked follows from when events came in the past, see
    /// [`PollParams`](super::PollParams); it begins with the first event of the descriptor, and
    /// only while the handler waits for something.
    ///
    /// On poll and epoll, one handler without this keeps its context from polling, as it would be
    /// overlooked meanwhile. `poll` may be called at any time before the loop waits; it may wake
    /// and schedule, but neither turn the loop nor park. Replaces what was set before.
    ///
    /// ```
    /// use corio::context::{Interest, PollParams};
    /// use std::{cell::Cell, io::Write, os::unix::net::UnixStream, rc::Rc};
    /// let context = corio::AioContext::new()?;
    /// context.set_poll_params(PollParams { max_ns: 1_000_000_000, ..PollParams::IO_THREAD })?;
    /// context.enter_home(|| {
    ///     let (ours, mut theirs) = UnixStream::pair()?;
    ///     let local = context.local().expect("this thread is its home");
    ///     let handler = local.add_handler(ours, Interest::READ, |_| ())?;
    ///     let (ring, polled) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    ///     let (asked, seen) = (Rc::clone(&ring), Rc::clone(&polled));
    ///     let poll = move || asked.replace(asked.get() + 1) >= 3; // Stands for shared memory.
    ///     handler.set_poll(poll, move || seen.set(true));
    ///     theirs.write_all(b"x")?; // The first event comes by the descriptor.
    ///     while !polled.get() {
    ///         context.poll(true)?;
    ///     }
    ///     assert!(handler.poll_stats().hits > 0);
    ///     Ok::<_, std::io::Error>(())
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_poll(&self, poll: impl Fn() -> bool + 'static, ready: impl Fn() + 'static) {
        self.handler.set_poll(Box::new(poll), Box::new(ready));
    }

    /// Has `begin` called before the first round of polling and `end` after the last, always in
    /// pairs: in between the partner may leave out its notifications. After `end` it is asked once
    /// more. Replaces what was set before.
    #[doc(alias = "aio_set_event_notifier_poll")]
    pub fn set_poll_notify(&self, begin: impl Fn() + 'static, end: impl Fn() + 'static) {
        self.handler.set_poll_notify(Box::new(begin), Box::new(end));
    }

    /// What polling has made of it.
    #[must_use]
    pub fn poll_stats(&self) -> PollStats {
        self.handler.poll_stats()
    }

    /// What it watches.
    pub fn get_ref(&self) -> &F {
        &self.fd
    }

    /// Removes it and gives back what it watched.
    pub fn into_inner(self) -> F {
        let Self { handler, fd } = self;
        drop(handler);
        fd
    }
}

impl<F: core::fmt::Debug> core::fmt::Debug for Handler<F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handler")
            .field("fd", &self.fd)
            .field("interest", &self.handler.interest())
            .finish()
    }
}
