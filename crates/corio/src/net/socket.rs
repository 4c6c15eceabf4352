//! A socket's calls, and a pipe's: tried first, and parked only where the kernel would have blocked.
//!
//! Calls of one direction are served in the order in which they came: while one waits, or has been
//! woken and is not over, later ones queue behind it (`Lane::ahead`).
//!
//! A read that got less than it asked for has emptied the socket, and a write has filled it. The
//! next one is tried all the same if such tries tend to succeed, because the peer is as fast; if
//! they tend to fail it waits at once, which saves the system call that would have said EAGAIN
//! (`Lane::try_after_short`).

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
/// Calls that a socket serves without waiting before the loop gets a turn: a peer that is always
/// faster than its reader must not keep everyone else on the loop from running.
const CALLS_MAX: u32 = 64;
/// Tries after short calls that failed in a row, after which they are no longer made..
const MISSES_MAX: u8 = 2;
/// ..until so many were left out, when one is made again to see whether the peer has changed.
const SKIPS_MAX: u8 = 16;

/// A non-blocking socket, or end of a pipe, whose calls park the coroutine. `Send`, not `Sync`.
pub(super) struct Socket {
    /// Before `fd`: at home, the descriptor is closed after the monitor has forgotten it.
    registration: RefCell<Option<Registration>>,
    lanes: [Lane; 2],
    /// Calls since one waited.
    streak: Cell<u32>,
    fd: Arc<OwnedFd>,
}

/// One direction of a socket.
#[derive(Default)]
struct Lane {
    /// Calls that have begun to wait and are not over.
    ahead: Cell<u32>,
    timeout_ns: Cell<Option<u64>>,
    /// The latest call got less than it asked for.
    short: Cell<bool>,
    /// Tries after short calls that failed in a row; from MISSES_MAX on, plus those that were left
    /// out.
    misses: Cell<u8>,
}

impl Lane {
    /// Whether a call that follows a short one is tried before it waits.
    fn try_after_short(&self) -> bool {
        let misses = self.misses.get();
        if misses < MISSES_MAX {
            return true;
        }
        let again = misses == MISSES_MAX + SKIPS_MAX;
        self.misses
            .set(if again { MISSES_MAX - 1 } else { misses + 1 });
        again
    }

    fn note_try_after_short(&self, hit: bool) {
        self.misses.set(if hit { 0 } else { self.misses.get() + 1 });
    }
}

impl Socket {
    /// A socket that is non-blocking already.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            registration: RefCell::new(None),
            lanes: Default::default(),
            streak: Cell::new(0),
            fd: Arc::new(fd),
        }
    }

    /// A socket from elsewhere.
    pub(super) fn try_new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self::new(fd))
    }

    /// The descriptor alone: itself at home, a duplicate where another home has yet to forget its
    /// share (readiness I1).
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
        for (copy, own) in clone.lanes.iter().zip(&self.lanes) {
            copy.timeout_ns.set(own.timeout_ns.get());
        }
        Ok(clone)
    }

    pub(super) fn timeout(&self, direction: Direction) -> Option<Duration> {
        let limit_ns = self.lane(direction).timeout_ns.get();
        limit_ns.map(Duration::from_nanos)
    }

    #[inline]
    fn lane(&self, direction: Direction) -> &Lane {
        &self.lanes[direction.index()]
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
        self.lane(direction).timeout_ns.set(limit_ns);
        if limit_ns.is_none() {
            // One that stays armed would have the loop look at the clock in each of its turns.
            let registration = self.registration.borrow();
            if let Some(watch) = registration.as_ref().and_then(Registration::watch_here) {
                watch.drop_alarm(direction);
            }
        }
        Ok(())
    }

    /// Repeats `op` until it does not answer EAGAIN, and waits for the direction in between. A
    /// cancellation point only if it waits.
    pub(super) fn call<T>(
        &self,
        direction: Direction,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        self.begin();
        match self.attempt(direction, &mut op) {
            Some(result) => result,
            None => self.wait_and_call(direction, &mut op),
        }
    }

    /// Like [`call`](Self::call) for an `op` that moves at most `wanted` bytes.
    #[inline]
    pub(super) fn transfer(
        &self,
        direction: Direction,
        wanted: usize,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        self.begin();
        let lane = self.lane(direction);
        let after_short = lane.short.replace(false);
        // What unwinds must not wait, and so cannot leave the try out.
        let tried = if !after_short || lane.try_after_short() || refuse_unwinding().is_err() {
            let tried = self.attempt(direction, &mut op);
            if after_short {
                lane.note_try_after_short(tried.is_some());
            }
            tried
        } else {
            None
        };
        let result = match tried {
            Some(result) => result,
            None => self.wait_and_call(direction, &mut op),
        };
        if let Ok(moved @ 1..) = &result {
            lane.short.set(*moved < wanted);
        }
        result
    }

    /// What every call begins with.
    #[inline]
    fn begin(&self) {
        refuse_on_loop();
        if self.streak.get() >= CALLS_MAX {
            self.let_others_run();
        }
    }

    /// One try. None: it would wait, or others wait for the same.
    #[inline]
    fn attempt<T>(
        &self,
        direction: Direction,
        op: &mut impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Option<io::Result<T>> {
        if self.lane(direction).ahead.get() != 0 {
            return None;
        }
        loop {
            match op(self.fd.as_fd()) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                result => {
                    self.streak.set(self.streak.get().saturating_add(1));
                    return Some(result.map_err(Into::into));
                }
            }
        }
    }

    /// Parks until the kernel calls the stream writable, for `limit` at most. True: it does.
    pub(super) fn wait_writable(&self, limit: Duration) -> io::Result<bool> {
        self.begin();
        let mut look = |fd: BorrowedFd<'_>| {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&now))? {
                0 => Err(Errno::AGAIN),
                _ => Ok(true),
            }
        };
        if let Some(result) = self.attempt(Direction::Write, &mut look) {
            return result;
        }
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        match self.wait_within(Direction::Write, Some(limit_ns), &mut look) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            result => result,
        }
    }

    /// Like [`call`](Self::call) for an `op` that is known to have no answer yet.
    #[inline(never)]
    pub(super) fn wait_and_call<T>(
        &self,
        direction: Direction,
        op: &mut dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        self.wait_within(direction, self.lane(direction).timeout_ns.get(), op)
    }

    fn wait_within<T>(
        &self,
        direction: Direction,
        limit_ns: Option<u64>,
        op: &mut dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
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
        self.attempt(direction, &mut op).transpose()
    }

    /// Makes whoever waits look again, where the kernel's readiness does not tell: a Unix stream
    /// that is shut down for writing while its buffer is full does not become writable, but its
    /// writer must learn of it.
    pub(super) fn wake_waiters(&self, direction: Direction) {
        if self.lane(direction).ahead.get() == 0 {
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

/// ECANCELED while the running coroutine unwinds: it must not wait for a peer then, which may never
/// answer (SPEC C12).
pub(super) fn refuse_unwinding() -> io::Result<()> {
    match coroutine::current() {
        Some(co) if co.must_not_wait() => Err(Errno::CANCELED.into()),
        _ => Ok(()),
    }
}

/// A call's place in its direction's queue. Dropping it, also when the coroutine is cancelled,
/// withdraws it.
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
        let ahead = &socket.lane(direction).ahead;
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
            refuse_unwinding()?;
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
        let ahead = &self.socket.lane(self.direction).ahead;
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
            (waiting, socket.lane(Direction::Read).ahead.get())
        });
        assert_eq!(left.join().unwrap(), (0, 0));
    }

    // SPEC E6: who lifts a time-out has no timer run on.
    #[test]
    fn a_time_out_that_is_lifted_leaves_no_alarm() {
        let io = IoThread::builder().spawn().unwrap();
        let alarms = io.context().spawn(|| {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let socket = Socket::new(ours.into_std().unwrap().into());
            let limits = [Some(Duration::from_millis(1)), None];
            limits.map(|limit| {
                socket.set_timeout(Direction::Read, limit).unwrap();
                if limit.is_some() {
                    socket.read(&mut [0]).unwrap_err();
                }
                socket.watch().unwrap().has_alarm(Direction::Read)
            })
        });
        assert_eq!(alarms.join().unwrap(), [true, false]);
    }
}
