//! A socket's calls: tried first, and parked only where the kernel would have blocked.
//!
//! Calls of one direction are served in the order in which they came: while one waits, or has been woken and is not over,
//! later ones queue behind it (`ahead`).

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::readiness::{Alarm, Direction, Registration, Watch};
use crate::context::{Local, now_ns};
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// What misuse is called in messages.
const WHAT: &str = "a call of corio::net that may wait";
/// Calls that a socket serves without waiting before the loop gets a turn: a peer that is always faster than its reader
/// must not keep everyone else on the loop from running.
const CALLS_MAX: u32 = 64;

/// A non-blocking socket whose calls park the coroutine. `Send`, not `Sync`.
pub(super) struct Socket {
    /// Before `fd`: at home, the descriptor is closed after the monitor has forgotten it.
    registration: RefCell<Option<Registration>>,
    /// Calls in each direction that have begun to wait and are not over.
    ahead: [Cell<u32>; 2],
    /// Calls since one waited.
    streak: Cell<u32>,
    timeout_ns: [Cell<Option<u64>>; 2],
    fd: Arc<OwnedFd>,
}

impl Socket {
    /// A socket that is non-blocking already.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            registration: RefCell::new(None),
            ahead: Default::default(),
            streak: Cell::new(0),
            timeout_ns: Default::default(),
            fd: Arc::new(fd),
        }
    }

    /// A socket from elsewhere.
    pub(super) fn try_new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self::new(fd))
    }

    /// The descriptor alone: itself at home, a duplicate where another home has yet to forget its share (readiness I1).
    pub(super) fn into_fd(self) -> io::Result<OwnedFd> {
        let Self {
            registration, fd, ..
        } = self;
        drop(registration);
        Arc::try_unwrap(fd).or_else(|shared| shared.try_clone())
    }

    /// Another socket over a duplicate of the descriptor, with the same time-outs.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let clone = Self::new(self.fd.try_clone()?);
        for (copy, own) in clone.timeout_ns.iter().zip(&self.timeout_ns) {
            copy.set(own.get());
        }
        Ok(clone)
    }

    pub(super) fn timeout(&self, direction: Direction) -> Option<Duration> {
        let limit_ns = self.timeout_ns[direction.index()].get();
        limit_ns.map(Duration::from_nanos)
    }

    pub(super) fn set_timeout(
        &self,
        direction: Direction,
        limit: Option<Duration>,
    ) -> io::Result<()> {
        if limit == Some(Duration::ZERO) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let limit_ns = limit.map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        self.timeout_ns[direction.index()].set(limit_ns);
        Ok(())
    }

    /// Repeats `op` until it does not answer EAGAIN, and waits for the direction in between. A cancellation point only if
    /// it waits.
    #[inline]
    pub(super) fn call<T>(
        &self,
        direction: Direction,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        refuse_on_loop();
        if self.streak.get() >= CALLS_MAX {
            self.let_others_run();
        }
        if self.ahead[direction.index()].get() == 0 {
            match op(self.fd.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => {
                    self.streak.set(self.streak.get() + 1);
                    return result.map_err(Into::into);
                }
            }
        }
        self.wait_and_call(direction, &mut op)
    }

    /// Like [`call`](Self::call) for an `op` that is known to have no answer yet.
    #[inline(never)]
    pub(super) fn wait_and_call<T>(
        &self,
        direction: Direction,
        op: &mut dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let limit_ns = self.timeout_ns[direction.index()].get();
        let deadline_ns = limit_ns.map(|limit_ns| now_ns().saturating_add(limit_ns));
        let mut taken = None;
        loop {
            if coroutine::current().is_none() {
                self.block(direction, deadline_ns)?;
            } else {
                let place = match &mut taken {
                    Some(place) => place,
                    none => none.insert(Place::take(self, direction, deadline_ns)?),
                };
                place.wait()?;
            }
            self.streak.set(0);
            loop {
                match op(self.fd.as_fd()) {
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    result => return result.map_err(Into::into),
                }
            }
        }
    }

    /// One try, which never waits; None also while others wait for the same.
    #[inline]
    pub(super) fn try_call<T>(
        &self,
        direction: Direction,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<Option<T>> {
        if self.ahead[direction.index()].get() != 0 {
            return Ok(None);
        }
        loop {
            match op(self.fd.as_fd()) {
                Ok(value) => return Ok(Some(value)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes whoever waits look again, where the kernel's readiness does not tell: a Unix stream that is shut down for
    /// writing while its buffer is full does not become writable, but its writer must learn of it.
    pub(super) fn wake_waiters(&self, direction: Direction) {
        if self.ahead[direction.index()].get() == 0 {
            return;
        }
        let found = self.registration.borrow();
        let found = found.as_ref().and_then(Registration::watch_here);
        if let Some(watch) = found {
            watch.wake_all(direction);
        }
    }

    /// This home's watch for the socket, made on first use.
    fn watch(&self) -> io::Result<Rc<Watch>> {
        let mut registration = self.registration.borrow_mut();
        let found = registration.as_ref().and_then(Registration::watch_here);
        if let Some(watch) = found {
            return Ok(watch);
        }
        *registration = None; // Of another home, or of one that has ended.
        let (made, watch) = Registration::new(&self.fd)?;
        *registration = Some(made);
        Ok(watch)
    }

    #[cold]
    fn let_others_run(&self) {
        self.streak.set(0);
        let co = coroutine::current();
        if co.is_some_and(|co| !co.is_unwinding() && !co.inbox().is_null()) {
            schedule::yield_now();
        }
    }

    /// Waits on a thread that is no loop's.
    fn block(&self, direction: Direction, deadline_ns: Option<u64>) -> io::Result<()> {
        refuse_on_loop();
        let flags = match direction {
            Direction::Read => PollFlags::IN,
            Direction::Write => PollFlags::OUT,
        };
        loop {
            let left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(now_ns()));
            if left_ns == Some(0) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = left_ns.map(|ns| Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
            });
            match rustix::event::poll(&mut [PollFd::new(&self.fd, flags)], left.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Socket {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Panics with advice on a loop's thread outside a coroutine.
#[inline]
pub(super) fn refuse_on_loop() {
    if coroutine::current().is_none() && Local::current().is_some() {
        schedule::parkable(WHAT);
    }
}

/// ECANCELED while the running coroutine unwinds: it must not wait for a peer then, which may never answer (SPEC C12).
pub(super) fn refuse_unwinding() -> io::Result<()> {
    match coroutine::current() {
        Some(co) if co.is_unwinding() => Err(Errno::CANCELED.into()),
        _ => Ok(()),
    }
}

/// A call's place in its direction's queue. Dropping it, also when the coroutine is cancelled, withdraws it.
struct Place<'a> {
    socket: &'a Socket,
    direction: Direction,
    watch: Rc<Watch>,
    ticket: u64,
    deadline_ns: Option<u64>,
    alarm: Option<Alarm>,
}

impl<'a> Place<'a> {
    fn take(
        socket: &'a Socket,
        direction: Direction,
        deadline_ns: Option<u64>,
    ) -> io::Result<Self> {
        schedule::parkable(WHAT);
        refuse_unwinding()?;
        let watch = socket.watch()?;
        let ticket = watch.draw_ticket();
        let ahead = &socket.ahead[direction.index()];
        ahead.set(ahead.get() + 1);
        Ok(Self {
            socket,
            direction,
            watch,
            ticket,
            deadline_ns,
            alarm: None,
        })
    }

    /// Parks until the direction is ready. A cancellation point.
    fn wait(&mut self) -> io::Result<()> {
        refuse_unwinding()?;
        let Some(waker) = CoWaker::current() else {
            unreachable!("`take` has asked for a coroutine with a context")
        };
        self.watch.queue_up(self.direction, self.ticket, waker);
        self.watch.arm(self.direction)?;
        while self.watch.is_queued(self.direction, self.ticket) {
            if let Some(deadline_ns) = self.deadline_ns {
                let now_ns = now_ns();
                if now_ns >= deadline_ns {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let (watch, direction) = (&self.watch, self.direction);
                let alarm = self
                    .alarm
                    .get_or_insert_with(|| watch.take_alarm(direction, waker));
                alarm.ring_by(now_ns, deadline_ns);
            }
            schedule::park();
        }
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.watch.withdraw(self.direction, self.ticket);
        if let Some(alarm) = self.alarm.take() {
            self.watch.keep_alarm(self.direction, alarm);
        }
        let ahead = &self.socket.ahead[self.direction.index()];
        ahead.set(ahead.get() - 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::IoThread;
    use crate::net::UnixStream;

    // SPEC C12
    #[test]
    fn who_leaves_the_queue_leaves_no_record() {
        let io = IoThread::builder().spawn().unwrap();
        let left = io.context().spawn(|| {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let socket = Socket::new(ours.into_std().unwrap().into());
            socket
                .set_timeout(Direction::Read, Some(Duration::from_millis(1)))
                .unwrap();
            let late = socket.read(&mut [0]).unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
            let waiting = socket.watch().unwrap().waiting(Direction::Read);
            (waiting, socket.ahead[Direction::Read.index()].get())
        });
        assert_eq!(left.join().unwrap(), (0, 0));
    }
}
