//! Monitors: how a turn learns which descriptors are ready (SPEC M1 to M5).
//!
//! One interface, `update`, `wait` and `need_wait`, over epoll and io_uring; which one a context
//! got, and why, can be read back with [`AioContext::monitor`](crate::AioContext::monitor).

mod epoll;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;

use super::handler::Entry;
use super::local::Local;
use crate::error::Error;

/// Which monitor to use.
///
/// ```
/// use corio::{IoThread, context::{MonitorChoice, MonitorKind}};
/// let io = IoThread::builder().monitor(MonitorChoice::Epoll).spawn()?;
/// assert_eq!(io.context().monitor().expect("it runs").kind, MonitorKind::Epoll);
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MonitorChoice {
    /// The one that measures best here and works: epoll.
    #[default]
    Auto,
    /// epoll, with the ring's descriptor in its set while disk requests are in flight.
    Epoll,
    /// io_uring: descriptors are polled in the same ring that disk requests go to.
    IoUring,
}

/// Which monitor a context uses.
///
/// ```
/// use corio::context::MonitorKind;
/// let io = corio::IoThread::builder().spawn()?;
/// match io.context().monitor().expect("it runs").kind {
///     MonitorKind::Epoll => println!("descriptors are watched by epoll"),
///     MonitorKind::IoUring => println!("descriptors are watched by the context's ring"),
///     other => println!("descriptors are watched by {other:?}"),
/// }
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MonitorKind {
    /// epoll.
    Epoll,
    /// io_uring.
    IoUring,
}

/// What a context's monitor is, and why.
///
/// ```
/// let io = corio::IoThread::builder().name("io0").spawn()?;
/// let monitor = io.context().monitor().expect("it runs");
/// println!("io0 waits by {:?}: {}", monitor.kind, monitor.reason);
/// # assert!(!monitor.reason.is_empty());
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MonitorInfo {
    /// The monitor in use.
    pub kind: MonitorKind,
    /// Why it and no other, in words.
    pub reason: String,
}

/// The monitor of one home.
pub(super) enum Monitor {
    Epoll(epoll::EpollMonitor),
    Uring(uring::UringMonitor),
}

impl Monitor {
    /// The chosen monitor, or the next one that works.
    pub(super) fn new(choice: MonitorChoice) -> Result<(Self, MonitorInfo), Error> {
        let epoll = |reason: String| {
            let info = MonitorInfo {
                kind: MonitorKind::Epoll,
                reason,
            };
            epoll::EpollMonitor::new().map(|monitor| (Self::Epoll(monitor), info))
        };
        match choice {
            MonitorChoice::Auto => epoll("epoll measures best of those that work".into()),
            MonitorChoice::Epoll => epoll("asked for".into()),
            MonitorChoice::IoUring => match uring::UringMonitor::new() {
                Ok(monitor) => {
                    let info = MonitorInfo {
                        kind: MonitorKind::IoUring,
                        reason: "asked for".into(),
                    };
                    Ok((Self::Uring(monitor), info))
                }
                Err(error) => {
                    tracing::warn!("io_uring monitoring is refused ({error}): epoll is used");
                    epoll(format!("io_uring is refused: {error}"))
                }
            },
        }
    }

    /// Tells the monitor what `entry` waits for now; nothing if it has been removed.
    pub(super) fn update(&self, local: &Local, entry: &Entry) -> io::Result<()> {
        match self {
            Self::Epoll(monitor) => monitor.update(entry),
            Self::Uring(_) => uring::UringMonitor::update(local.ring()?, entry),
        }
    }

    /// Waits, at most `timeout_ns`, and notes what is ready with `local`.
    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        match self {
            Self::Epoll(monitor) => monitor.wait(local, timeout_ns),
            Self::Uring(_) => uring::UringMonitor::wait(local, timeout_ns),
        }
    }

    /// The descriptor that is readable when a wait would report something, if there is one: not of
    /// a ring, whose completions appear only to who enters it.
    pub(super) fn pollable(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Epoll(monitor) => Some(monitor.pollable()),
            Self::Uring(_) => None,
        }
    }

    /// Before somebody else waits for [`pollable`](Self::pollable): hands the kernel what is queued
    /// for it. How long that wait may last before it is to be tried again.
    pub(super) fn submit(&self, local: &Local) -> Option<u64> {
        match (self, local.ring_if_made()) {
            (Self::Epoll(monitor), Some(ring)) => monitor.submit_for_others(ring),
            _ => None,
        }
    }

    /// True if something is there already that a wait would report.
    pub(super) fn need_wait(&self, local: &Local) -> bool {
        local.ring_if_made().is_some_and(|ring| ring.has_arrived())
    }

    /// After a handler has gone: its descriptor, which the caller may be about to close, is let go
    /// of now and not in the next turn.
    pub(super) fn forget(&self, local: &Local) {
        if let (Self::Uring(_), Some(ring)) = (self, local.ring_if_made())
            && ring.pending() > 0
        {
            // A refusal leaves it to the next turn.
            let _ = ring
                .push_backlog()
                .and_then(|_| ring.ring().submit_and_wait(Some(0)));
        }
    }

    /// At the end of a home, once its handlers are removed: lets go of their descriptors. Closing
    /// an epoll set does that by itself; closing a ring does, too, but some time later.
    pub(super) fn finish(&self, local: &Local) {
        if let (Self::Uring(_), Some(ring)) = (self, local.ring_if_made()) {
            uring::UringMonitor::finish(ring);
        }
    }

    /// The kind of ring that goes with it.
    pub(super) fn ring_kind(&self) -> crate::sys::uring::Kind {
        match self {
            Self::Epoll(_) => crate::sys::uring::Kind::Cooperative,
            Self::Uring(_) => crate::sys::uring::Kind::Deferred,
        }
    }
}
