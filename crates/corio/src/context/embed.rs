//! A context in somebody else's loop (SPEC G2, G3).
//!
//! ```text
//!   foreign loop, in the context's home thread
//!   ------------------------------------------------------------------
//!   prepare    how long may the loop wait? arms the descriptor for it
//!   wait       for the descriptor, among whatever else the loop has
//!   check      is there anything to do?
//!   dispatch   one turn that does not block; arms the descriptor
//! ```
//!
//! The descriptor is the context's epoll set, in which there are the handlers' descriptors, the
//! context's eventfd, the ring while requests are in flight, and a timerfd for the next deadline.
//! What is work without any of these (a bottom half, a coroutine that was queued) writes the
//! eventfd, from the home thread, too, as nobody looks at flags before the loop waits.
//!
//! Nothing here polls busily, and the ring is never what is waited in: with the io_uring monitor
//! there is no descriptor that tells.
//!
//! Invariants
//! - I1 From the end of one turn to the begin of the next, whoever makes it, the descriptor is
//!   readable if the context has work, and will be when it gets some: whatever of the phases the
//!   foreign loop leaves out. So every turn of an embedded context ends by arming, also one that a
//!   callback's panic ends.
//! - I2 The timerfd is set for the next deadline or for one before it: an early one costs a turn
//!   that finds nothing, and saves a system call for every timer that is armed and cancelled.

use core::cell::{Cell, OnceCell};
use core::marker::PhantomData;
use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::handler::{Interest, Own};
use super::here::LocalContext;
use super::local::{Local, LocalHandler};
use super::{AioContext, now_ns};
use crate::error::Error;
use crate::sys::epoll::is_readable;
use crate::sys::timerfd::TimerFd;

/// How much later than a deadline the timerfd may be set without being set anew: less than the
/// kernel itself is late by.
const DEADLINE_SLACK_NS: u64 = 1_000;

/// What a home keeps of its foreign loop.
#[derive(Default)]
pub(super) struct Foreign {
    /// Made for the first one, and kept for others.
    timer: OnceCell<Rc<TimerFd>>,
    /// What the timerfd is set for; None: it is not.
    armed_ns: Cell<Option<u64>>,
    /// The token of the timerfd's handler, while there is a foreign loop.
    token: Cell<Option<u64>>,
    /// From the end of a turn to the begin of the next, while there is a foreign loop.
    waits: Cell<bool>,
}

impl Foreign {
    /// Whether there is a foreign loop.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.token.get().is_some()
    }

    /// After something has become work that no descriptor tells of, or a deadline has come nearer:
    /// if a foreign loop waits, or will without looking, it is told.
    #[inline]
    pub(super) fn tell(&self, context: &AioContext) {
        if self.waits.get() {
            context.inner().notifier.set();
        }
    }

    /// At a turn's begin, where there is a foreign loop. The guard arms the descriptor at its end
    /// (I1).
    pub(super) fn begin_turn<'a>(&self, local: &'a Local) -> ArmAfterTurn<'a> {
        self.waits.set(false);
        local.context().inner().notify.end_foreign();
        ArmAfterTurn(local)
    }

    /// At the end of a home.
    pub(super) fn end(&self, context: &AioContext) {
        self.token.set(None);
        self.waits.set(false);
        context.inner().notify.end_foreign();
    }

    /// See I1. How long the loop may wait for all that the context cares.
    fn arm(&self, local: &Local) -> Option<u64> {
        let inner = local.context().inner();
        inner.notify.begin_foreign();
        inner.bottom_halves.look();
        self.waits.set(true);
        let ring_ns = local.submit_for_foreign();
        let timeout_ns = match (ring_ns, local.timeout_ns()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match timeout_ns {
            Some(0) => inner.notifier.set(),
            _ => self.set_timer(local, timeout_ns),
        }
        timeout_ns
    }

    fn set_timer(&self, local: &Local, timeout_ns: Option<u64>) {
        let Some(timer) = self.timer.get() else {
            return;
        };
        let now_ns = now_ns();
        let deadline_ns = timeout_ns.map(|ns| now_ns.saturating_add(ns));
        let armed_ns = self.armed_ns.get();
        let stands = match (armed_ns, deadline_ns) {
            (None, None) => true,
            (None, Some(_)) => false,
            // What has gone off is readable until it is set anew.
            (Some(armed_ns), _) if armed_ns <= now_ns => false,
            (Some(_), None) => true,
            (Some(armed_ns), Some(deadline_ns)) => {
                armed_ns <= deadline_ns.saturating_add(DEADLINE_SLACK_NS)
            }
        };
        if stands {
            return;
        }
        match timer.set(deadline_ns) {
            Ok(()) => self.armed_ns.set(deadline_ns),
            Err(error) => tracing::error!(
                context = local.context().name(),
                "a deadline cannot be told to the loop that the context is in: {error}"
            ),
        }
    }
}

/// The end of a turn, however it ends, in an embedded context.
#[must_use]
pub(super) struct ArmAfterTurn<'a>(&'a Local);

impl Drop for ArmAfterTurn<'_> {
    fn drop(&mut self) {
        let foreign = self.0.foreign();
        if foreign.token.get().is_some() {
            foreign.arm(self.0);
        }
    }
}

/// A context that a foreign loop turns: what that loop needs, from [`LocalContext::embed`].
///
/// The loop waits for the descriptor ([`AsFd`]) to be readable, level-triggered or not, and then
/// calls [`dispatch`](Self::dispatch). A loop that knows time-outs calls [`prepare`](Self::prepare)
/// before it waits. Nothing else is needed: the descriptor tells of handlers, notifications,
/// timers, disk completions and coroutines to be run, whichever thread they come from. An
/// edge-triggered loop goes on dispatching until [`check`](Self::check) says that there is no more.
///
/// For the home thread (it is not `Send`), outside coroutines. [`AioContext::poll`] may be called
/// besides. Dropping it takes the context out of the loop; after the home's end it does nothing.
///
/// ```
/// use rustix::event::{PollFd, PollFlags, poll};
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let local = context.local().expect("this thread is its home");
///     let child = local.spawn(|| corio::time::sleep(std::time::Duration::from_millis(1)));
///     let embedded = local.embed()?;
///     while !child.is_finished() {
///         // The foreign loop: it waits for the descriptor and nothing else.
///         poll(&mut [PollFd::new(&embedded, PollFlags::IN)], None)?;
///         embedded.dispatch()?;
///     }
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it takes the context out of the loop"]
pub struct Embedded {
    context: AioContext,
    /// The epoll set, under a number that is open for as long as this is.
    fd: OwnedFd,
    /// The timerfd's; it also tells whether the home is the one that this was made in.
    handler: LocalHandler,
    not_send: PhantomData<*const ()>,
}

impl LocalContext<'_> {
    /// Has a foreign loop turn the context from now on: a main loop of GLib's, tokio, mio.
    ///
    /// # Errors
    /// The monitor is not epoll (it was chosen so, or watches a regular file): no descriptor would
    /// tell of all that it watches. No descriptors. While the context is embedded a handler of a
    /// regular file is refused.
    ///
    /// # Panics
    /// If the context is in a foreign loop already; after the home has ended.
    #[doc(alias = "aio_get_g_source")]
    #[track_caller]
    pub fn embed(&self) -> io::Result<Embedded> {
        let local = self.home();
        let foreign = local.foreign();
        assert!(
            foreign.token.get().is_none(),
            "context `{}` is embedded in a foreign loop already: drop that `Embedded` first",
            self.context().name()
        );
        let Some(set) = local.pollable() else {
            let kind = self.context().monitor().map(|info| info.kind);
            return Err(Error::Parameter {
                name: "monitor",
                value: kind.map_or_else(String::new, |kind| format!("{kind:?}")),
                expected: "Epoll, which a context in a foreign loop needs",
            }
            .into());
        };
        let fd = set?;
        let timer = match foreign.timer.get() {
            Some(timer) => Rc::clone(timer),
            None => {
                let made = Rc::new(TimerFd::new()?);
                Rc::clone(foreign.timer.get_or_init(|| made))
            }
        };
        // It is set anew by `arm`, which makes it unreadable.
        let handler = local.add_own(&*timer, Own::Deadline)?;
        handler.set_interest(Interest::READ)?;
        foreign.token.set(Some(handler.token()));
        foreign.arm(local);
        Ok(Embedded {
            context: self.context().clone(),
            fd,
            handler,
            not_send: PhantomData,
        })
    }
}

impl Embedded {
    /// The context.
    #[must_use]
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// Whether the home in which it was made still is.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.handler.home().is_some()
    }

    #[track_caller]
    fn home(&self) -> &Local {
        self.handler.home().unwrap_or_else(|| {
            panic!(
                "an Embedded of `{}` was used after its home had ended, or in another thread: drop it \
                 before the home ends",
                self.context.name()
            )
        })
    }

    /// Before the loop waits: hands disk requests to the kernel, and says how long the wait may
    /// last (None: without limit; zero: there is something to do). A loop that does not heed the
    /// time is woken by the descriptor. May be called again without a wait, a check or a dispatch
    /// in between.
    ///
    /// # Panics
    /// After the home has ended.
    #[doc(alias = "aio_context_prepare")]
    #[doc(alias = "aio_compute_timeout")]
    #[must_use]
    #[track_caller]
    pub fn prepare(&self) -> Option<Duration> {
        let local = self.home();
        local.foreign().arm(local).map(Duration::from_nanos)
    }

    /// Whether there is something to do: a descriptor is ready, a timer due, a bottom half
    /// scheduled, a coroutine or a disk completion waits. Does none of it.
    ///
    /// # Panics
    /// After the home has ended.
    #[doc(alias = "aio_pending")]
    #[must_use]
    #[track_caller]
    pub fn check(&self) -> bool {
        self.home().timeout_ns() == Some(0) || is_readable(&self.fd)
    }

    /// One turn that does not block: bottom halves, handlers, disk completions, timers, coroutines.
    /// True: progress, as [`AioContext::poll`] tells it. A callback's panic passes through; the
    /// descriptor then tells of what is left.
    ///
    /// # Errors
    /// The monitor refused something. What does not depend on it has run all the same.
    ///
    /// # Panics
    /// Inside a coroutine; after the home has ended.
    #[doc(alias = "aio_dispatch")]
    #[track_caller]
    pub fn dispatch(&self) -> io::Result<bool> {
        self.home();
        self.context.poll(false)
    }
}

impl AsFd for Embedded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Embedded {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(local) = self.handler.home() {
            local.foreign().end(&self.context);
        }
    }
}

impl core::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Embedded")
            .field("context", &self.context.name())
            .field("fd", &self.fd)
            .field("is_live", &self.is_live())
            .finish()
    }
}
