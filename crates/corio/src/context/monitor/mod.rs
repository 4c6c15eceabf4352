//! Monitors: how a turn learns which descriptors are ready (SPEC M1 to M5).
//!
//! One interface, `update`, `wait` and `need_wait`, over poll, epoll and io_uring; which one a
//! context has, and why, can be read back with [`AioContext::monitor`](crate::AioContext::monitor).
//!
//! ```text
//!   io_uring ──refused──▶ epoll ──refused, or refuses a descriptor──▶ poll, for good
//!                           ▲
//!                           └──── 64 descriptors are watched ──── poll that was asked for
//! ```

mod beside;
mod epoll;
mod poll;
mod uring;

use core::cell::RefCell;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::handler::Entry;
use super::local::Local;
use crate::error::Error;
use crate::sys::epoll::EDGE;

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
    /// epoll; while disk requests are in flight the loop waits in the ring, and that for the set.
    Epoll,
    /// io_uring: descriptors are polled in the same ring that disk requests go to.
    IoUring,
    /// poll, until 64 descriptors are watched, the context's own among them; then epoll, for good.
    Poll,
}

impl MonitorChoice {
    /// Each that can be asked for by name.
    pub const ALL: [Self; 3] = [Self::Poll, Self::Epoll, Self::IoUring];
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
    /// poll.
    Poll,
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
pub(super) struct Monitor(RefCell<Backend>);

enum Backend {
    Poll(poll::PollMonitor),
    Epoll(epoll::EpollMonitor),
    Uring,
}

impl Monitor {
    /// The chosen monitor, or the next one that works.
    pub(super) fn new(choice: MonitorChoice) -> Result<(Self, MonitorInfo), Error> {
        let (backend, reason) = match choice {
            MonitorChoice::Auto => {
                epoll_or_poll("epoll measures best of those that work".to_owned())?
            }
            MonitorChoice::Epoll => epoll_or_poll("asked for".to_owned())?,
            MonitorChoice::Poll => {
                let poll = poll::PollMonitor::new(false);
                (Backend::Poll(poll), "asked for".to_owned())
            }
            MonitorChoice::IoUring => match uring::try_out() {
                Ok(()) => (Backend::Uring, "asked for".to_owned()),
                Err(error) => {
                    tracing::warn!("io_uring monitoring is refused ({error}): epoll is used");
                    epoll_or_poll(format!("io_uring is refused: {error}"))?
                }
            },
        };
        let kind = backend.kind();
        Ok((Self(RefCell::new(backend)), MonitorInfo { kind, reason }))
    }

    /// True if what the context's own descriptor was written need not be read for the next wait to
    /// block.
    pub(super) fn forgets_notifier(&self) -> bool {
        matches!(&*self.0.borrow(), Backend::Epoll(_))
    }

    /// EBADF for what is no descriptor, where registering it would not tell.
    pub(super) fn check(&self, fd: RawFd) -> io::Result<()> {
        match &*self.0.borrow() {
            Backend::Epoll(_) => Ok(()),
            Backend::Poll(_) | Backend::Uring => crate::sys::poll::check_open(fd),
        }
    }

    /// Tells the monitor what `entry` waits for now; nothing if it has been removed.
    #[inline]
    pub(super) fn update(&self, local: &Local, entry: &Entry) -> io::Result<()> {
        // After most callbacks: what it is armed for, it still waits for.
        if entry.armed.get() & !EDGE == entry.events() {
            return Ok(());
        }
        self.change(local, entry)
    }

    fn change(&self, local: &Local, entry: &Entry) -> io::Result<()> {
        let refused = match &*self.0.borrow() {
            Backend::Uring => return uring::update(local.ring()?, entry),
            Backend::Epoll(monitor) => match monitor.update(entry) {
                // A foreign loop waits for this very set.
                Err(error)
                    if entry.armed.get() == 0
                        && is_for_good(&error)
                        && !local.foreign().is_active() =>
                {
                    Some(error)
                }
                result => return result,
            },
            Backend::Poll(monitor) => {
                monitor.update(entry);
                if !monitor.is_crowded() {
                    return Ok(());
                }
                None
            }
        };
        match refused {
            Some(error) => self.fall_back(local, &error),
            None => self.turn_into_epoll(local),
        }
        Ok(())
    }

    /// Epoll has refused a descriptor that poll takes.
    #[cold]
    fn fall_back(&self, local: &Local, error: &io::Error) {
        self.finish(local); // Or the ring's poll would keep the set.
        let poll = poll::PollMonitor::new(true);
        for entry in local.handlers.all() {
            entry.armed.set(0);
            poll.update(&entry);
        }
        *self.0.borrow_mut() = Backend::Poll(poll);
        local.monitor_changed(MonitorInfo {
            kind: MonitorKind::Poll,
            reason: format!("epoll refuses a descriptor: {error}"),
        });
    }

    /// So many descriptors are watched that poll is the slower one.
    #[cold]
    fn turn_into_epoll(&self, local: &Local) {
        let entries = local.handlers.all();
        let register = |epoll: &epoll::EpollMonitor| {
            entries.iter().try_for_each(|entry| {
                entry.armed.set(0);
                epoll.update(entry)
            })
        };
        let made = epoll::EpollMonitor::new().map_err(|error| error.to_string());
        let registered = made.and_then(|epoll| match register(&epoll) {
            Ok(()) => Ok(epoll),
            Err(error) => Err(error.to_string()),
        });
        let info = match registered {
            Ok(epoll) => {
                *self.0.borrow_mut() = Backend::Epoll(epoll);
                MonitorInfo {
                    kind: MonitorKind::Epoll,
                    reason: format!("poll watched {} descriptors", poll::POLL_MAX),
                }
            }
            Err(error) => {
                // What poll watches is what each waits for.
                entries
                    .iter()
                    .for_each(|entry| entry.armed.set(entry.events()));
                if let Backend::Poll(monitor) = &*self.0.borrow() {
                    monitor.stay();
                }
                MonitorInfo {
                    kind: MonitorKind::Poll,
                    reason: format!("epoll, for many descriptors, is refused: {error}"),
                }
            }
        };
        local.monitor_changed(info);
    }

    /// Waits, at most `timeout_ns`, and notes what is ready with `local`.
    #[inline(always)] // Into the turn's own wait.
    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        match &*self.0.borrow() {
            Backend::Poll(monitor) => monitor.wait(local, timeout_ns),
            Backend::Epoll(monitor) => monitor.wait(local, timeout_ns),
            Backend::Uring => uring::wait(local, timeout_ns),
        }
    }

    /// Whether user space can see that any watched descriptor is ready.
    pub(super) fn is_seen_from_user_space(&self) -> bool {
        matches!(&*self.0.borrow(), Backend::Uring)
    }

    /// Has the kernel know all that user space then looks for with `has_something`.
    pub(super) fn submit(&self, local: &Local) -> io::Result<()> {
        match &*self.0.borrow() {
            Backend::Poll(_) | Backend::Epoll(_) => {
                beside::in_flight(local).map_or(Ok(()), |ring| ring.submit())
            }
            Backend::Uring => {
                let ring = local.ring()?;
                ring.push_backlog()?;
                ring.submit()
            }
        }
    }

    /// True if user space sees that a wait would find something.
    pub(super) fn has_something(&self, local: &Local) -> bool {
        let ring = match &*self.0.borrow() {
            Backend::Poll(_) | Backend::Epoll(_) => beside::in_flight(local),
            Backend::Uring => local.ring_if_made(),
        };
        ring.is_some_and(|ring| ring.has_arrived() || ring.ring().has_task_work())
    }

    /// A descriptor that is readable when a wait would report something, if there is one: not of a
    /// ring, whose completions appear only to who enters it, nor of poll.
    pub(super) fn pollable(&self) -> Option<io::Result<OwnedFd>> {
        match &*self.0.borrow() {
            Backend::Epoll(monitor) => Some(monitor.pollable()),
            Backend::Poll(_) | Backend::Uring => None,
        }
    }

    /// Before somebody else waits for [`pollable`](Self::pollable): hands the kernel what is queued
    /// for it. How long that wait may last before it is to be tried again.
    pub(super) fn submit_for_foreign(&self, local: &Local) -> Option<u64> {
        match &*self.0.borrow() {
            Backend::Epoll(monitor) => monitor.submit_for_foreign(local),
            Backend::Poll(_) | Backend::Uring => None,
        }
    }

    /// True if something is there already that a wait would report.
    pub(super) fn need_wait(&self, local: &Local) -> bool {
        local.ring_if_made().is_some_and(|ring| ring.has_arrived())
    }

    /// After a handler has gone: its descriptor, which the caller may be about to close, is let go
    /// of now and not in the next turn.
    pub(super) fn forget(&self, local: &Local) {
        if let (Backend::Uring, Some(ring)) = (&*self.0.borrow(), local.ring_if_made())
            && ring.pending() > 0
        {
            // A refusal leaves it to the next turn.
            let _ = ring
                .push_backlog()
                .and_then(|_| ring.ring().submit_and_wait(Some(0)));
        }
    }

    /// At the end of a home, once its handlers are removed: lets go of their descriptors. Closing
    /// an epoll set does that by itself; closing a ring does, too, but some time later. The set may
    /// live on in a foreign loop, and a ring that is leaked as well.
    pub(super) fn finish(&self, local: &Local) {
        let Some(ring) = local.ring_if_made() else {
            return;
        };
        match &*self.0.borrow() {
            Backend::Poll(_) => {}
            Backend::Epoll(monitor) => monitor.finish(ring),
            Backend::Uring => uring::finish(ring),
        }
    }

    /// The kind of ring that goes with it.
    pub(super) fn ring_kind(&self) -> crate::sys::uring::Kind {
        match &*self.0.borrow() {
            Backend::Poll(_) | Backend::Epoll(_) => crate::sys::uring::Kind::Cooperative,
            Backend::Uring => crate::sys::uring::Kind::Deferred,
        }
    }
}

impl Backend {
    fn kind(&self) -> MonitorKind {
        match self {
            Self::Poll(_) => MonitorKind::Poll,
            Self::Epoll(_) => MonitorKind::Epoll,
            Self::Uring => MonitorKind::IoUring,
        }
    }
}

/// Epoll, with that reason, or poll where epoll is refused. A want of descriptors is no refusal: it
/// passes, and the choice would not.
fn epoll_or_poll(reason: String) -> Result<(Backend, String), Error> {
    match epoll::EpollMonitor::new() {
        Ok(monitor) => Ok((Backend::Epoll(monitor), reason)),
        Err(Error::Os { source, .. })
            if !matches!(
                source.raw_os_error(),
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
            ) =>
        {
            tracing::warn!("epoll is refused ({source}): poll is used");
            let poll = poll::PollMonitor::new(true);
            Ok((Backend::Poll(poll), format!("epoll is refused: {source}")))
        }
        Err(error) => Err(error),
    }
}

/// Whether epoll fails to add what poll can watch: what is always ready (EPERM), one too many
/// (ENOSPC), or no room for it or for its duplicate.
fn is_for_good(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::ENOSPC | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
    )
}
