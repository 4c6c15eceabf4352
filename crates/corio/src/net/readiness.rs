//! Waiting for a socket to become readable or writable.
//!
//! ```text
//!   Socket (moves between threads)         home thread
//!   ------------------------------         ------------------------------------------------------------
//!   fd ----------------------------------> Registry: Watch by descriptor number
//!   Registration {home, fd, serial} - - ->    handler (interest left armed between waits)
//!                                             queues[Read], queues[Write]: tickets of parked coroutines
//! ```
//!
//! A call is tried first. Only when it would block does the coroutine take a place in its direction's queue, arm the
//! interest if it is not, and park. The interest stays armed when the wait is over: an event that finds nobody waiting takes
//! it back then. A connection whose reader comes back before the next bytes do therefore costs no epoll_ctl at all, and one
//! whose reader is busy elsewhere costs one event.
//!
//! A `LocalHandler` cannot leave its thread, a socket can. So the handler stays in the home's [`Registry`], and the socket
//! has a [`Registration`] that names it. When the socket turns up in another home, or ends there, the registration asks the
//! old home to forget the watch.
//!
//! Invariants
//! - I1 A watch owns a share of the descriptor until its handler is gone. The number is therefore not given to another file
//!   while a monitor still knows it, wherever the socket ends.
//! - I2 While a queue is not empty, its direction's interest is armed. As handlers are level-triggered, a waiter that was
//!   woken and leaves something behind, or is cancelled, need not pass anything on: the next turn wakes the next.
//! - I3 Tickets grow, and a queue is sorted by them: who was woken for nothing goes back to where it was. A waiter whose
//!   ticket is not in the queue any more has been woken.
//! - I4 Waiters borrow the socket, so a socket that moves, or is dropped, has none.

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::context::{AioContext, Interest, Local, LocalHandler, Readiness, Timer, now_ns};
use crate::coroutine;
use crate::schedule::{self, CoWaker};

/// What misuse is called in messages.
const WHAT: &str = "a call of corio::net that may wait";

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Bytes, a connection to accept, the end, or an error.
    Read = 0,
    /// Room, a connection made, or an error.
    Write = 1,
}

impl Direction {
    fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    fn of(self, interest: &mut Interest) -> &mut bool {
        match self {
            Self::Read => &mut interest.read,
            Self::Write => &mut interest.write,
        }
    }
}

/// A non-blocking socket whose calls park the coroutine. `Send`, not `Sync`.
pub(super) struct Socket {
    /// Before `fd`: at home, the descriptor is closed after the monitor has forgotten it.
    registration: RefCell<Option<Registration>>,
    /// Calls in each direction that have begun to wait and are not over: whoever comes later queues behind them.
    ahead: [Cell<u32>; 2],
    timeout_ns: [Cell<Option<u64>>; 2],
    fd: Arc<OwnedFd>,
}

impl Socket {
    /// A socket that is non-blocking already.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            registration: RefCell::new(None),
            ahead: Default::default(),
            timeout_ns: Default::default(),
            fd: Arc::new(fd),
        }
    }

    /// A socket from elsewhere.
    pub(super) fn try_new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self::new(fd))
    }

    /// The descriptor alone; at home without a copy.
    pub(super) fn into_fd(self) -> io::Result<OwnedFd> {
        let Self { registration, fd, .. } = self;
        drop(registration);
        // Another home has yet to forget its share: I1.
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
        self.timeout_ns[direction.index()].get().map(Duration::from_nanos)
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

    /// Repeats `op` until it does not answer EAGAIN, and waits for the direction in between.
    #[inline]
    pub(super) fn call<T>(
        &self,
        direction: Direction,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        if coroutine::current().is_none() && Local::current().is_some() {
            schedule::parkable(WHAT); // Panics.
        }
        if self.ahead[direction.index()].get() == 0 {
            match op(self.fd.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result.map_err(Into::into),
            }
        }
        self.wait_and_call(direction, op)
    }

    /// Like [`call`](Self::call) for an `op` that is known to have no answer yet.
    pub(super) fn wait_and_call<T>(
        &self,
        direction: Direction,
        mut op: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let limit_ns = self.timeout_ns[direction.index()].get();
        let deadline_ns = limit_ns.map(|limit_ns| now_ns().saturating_add(limit_ns));
        let mut waiting = None;
        loop {
            if coroutine::current().is_none() {
                self.block(direction, deadline_ns)?;
            } else {
                let place = match &mut waiting {
                    Some(place) => place,
                    none => none.insert(Place::take(self, direction, deadline_ns)?),
                };
                place.wait()?;
            }
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
    /// writing while its buffer is full never becomes writable, but its writer must learn of it.
    pub(super) fn wake_waiters(&self, direction: Direction) {
        if self.ahead[direction.index()].get() == 0 {
            return;
        }
        let registration = self.registration.borrow();
        let Some(watch) = registration.as_ref().and_then(Registration::watch_here) else { return };
        drop(registration);
        while let Some(waker) = watch.pop(direction) {
            waker.wake();
        }
    }

    /// This home's watch for the socket, made on first use.
    fn watch(&self) -> io::Result<Rc<Watch>> {
        let registry = Registry::here().ok_or(io::ErrorKind::Unsupported)?;
        let mut registration = self.registration.borrow_mut();
        if let Some(watch) = registration.as_ref().and_then(|at| registry.find(at)) {
            return Ok(watch);
        }
        // Of another home, or of one that has ended.
        *registration = None;
        let watch = registry.add(&self.fd)?;
        *registration = Some(Registration {
            home: Arc::clone(&registry.home),
            fd: self.fd.as_raw_fd(),
            serial: watch.serial,
        });
        Ok(watch)
    }

    /// Waits on a thread that is no loop's.
    fn block(&self, direction: Direction, deadline_ns: Option<u64>) -> io::Result<()> {
        let flags = match direction {
            Direction::Read => PollFlags::IN,
            Direction::Write => PollFlags::OUT,
        };
        loop {
            let left_ns = match deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(now_ns())) {
                Some(0) => return Err(io::ErrorKind::TimedOut.into()),
                left_ns => left_ns,
            };
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
        let watch = socket.watch()?;
        let ahead = &socket.ahead[direction.index()];
        ahead.set(ahead.get() + 1);
        let ticket = watch.next_ticket.get();
        watch.next_ticket.set(ticket + 1);
        Ok(Self { socket, direction, watch, ticket, deadline_ns, alarm: None })
    }

    /// Parks until the direction is ready. A cancellation point.
    fn wait(&mut self) -> io::Result<()> {
        let co = schedule::parkable(WHAT);
        let waker = match CoWaker::current() {
            // A stack that unwinds must not wait for a peer, which may never answer.
            Some(waker) if !co.is_unwinding() => waker,
            _ => return Err(Errno::CANCELED.into()),
        };
        self.watch.queue_up(self.direction, self.ticket, waker);
        self.watch.arm(self.direction)?;
        while self.watch.is_queued(self.direction, self.ticket) {
            if let Some(deadline_ns) = self.deadline_ns {
                let now_ns = now_ns();
                if now_ns >= deadline_ns {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.set_alarm(waker, now_ns, deadline_ns);
            }
            schedule::park();
        }
        Ok(())
    }

    /// Sees to it that the coroutine is woken at its deadline at the latest.
    fn set_alarm(&mut self, waker: CoWaker, now_ns: u64, deadline_ns: u64) {
        let alarm = self.alarm.get_or_insert_with(|| {
            let kept = self.watch.alarms[self.direction.index()].take();
            kept.filter(|alarm| alarm.waker == waker).unwrap_or_else(|| Alarm::new(waker))
        });
        alarm.ring_by(now_ns, deadline_ns);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.watch.withdraw(self.direction, self.ticket);
        if let Some(alarm) = self.alarm.take() {
            self.watch.alarms[self.direction.index()].set(Some(alarm));
        }
        let ahead = &self.socket.ahead[self.direction.index()];
        ahead.set(ahead.get() - 1);
    }
}

/// A timer that wakes one coroutine. It stays armed when a wait is over: if the next wait's deadline is later, as with a
/// constant time-out it is, arming costs nothing, and the timer rings once a time-out, not once a wait.
struct Alarm {
    waker: CoWaker,
    timer: Timer,
    armed_ns: u64,
}

impl Alarm {
    fn new(waker: CoWaker) -> Self {
        let context = AioContext::current();
        let context = context.unwrap_or_else(|| unreachable!("{WHAT} has a context: `parkable`"));
        Self { waker, timer: context.timer(move || waker.wake_here()), armed_ns: 0 }
    }

    fn ring_by(&mut self, now_ns: u64, deadline_ns: u64) {
        if self.armed_ns <= now_ns || self.armed_ns > deadline_ns {
            self.armed_ns = deadline_ns;
            self.timer.arm_at_ns(deadline_ns);
        }
    }
}

/// A waiting call.
struct Waiter {
    ticket: u64,
    waker: CoWaker,
}

/// What a home keeps for a socket.
struct Watch {
    serial: u64,
    handler: RefCell<Option<LocalHandler>>,
    fd: Cell<Option<Arc<OwnedFd>>>,
    queues: [RefCell<VecDeque<Waiter>>; 2],
    next_ticket: Cell<u64>,
    /// The latest waiter's, for its next wait.
    alarms: [Cell<Option<Alarm>>; 2],
}

impl Watch {
    fn queue_up(&self, direction: Direction, ticket: u64, waker: CoWaker) {
        let mut queue = self.queues[direction.index()].borrow_mut();
        let at = queue.partition_point(|waiter| waiter.ticket < ticket);
        queue.insert(at, Waiter { ticket, waker });
    }

    fn is_queued(&self, direction: Direction, ticket: u64) -> bool {
        let queue = self.queues[direction.index()].borrow();
        queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).is_ok()
    }

    fn withdraw(&self, direction: Direction, ticket: u64) {
        let mut queue = self.queues[direction.index()].borrow_mut();
        if let Ok(at) = queue.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            queue.remove(at);
        }
    }

    /// Takes the oldest waiter out.
    fn pop(&self, direction: Direction) -> Option<CoWaker> {
        self.queues[direction.index()].borrow_mut().pop_front().map(|waiter| waiter.waker)
    }

    fn arm(&self, direction: Direction) -> io::Result<()> {
        self.set_interest(direction, true)
    }

    fn set_interest(&self, direction: Direction, wanted: bool) -> io::Result<()> {
        let handler = self.handler.borrow();
        let Some(handler) = handler.as_ref() else { return Ok(()) };
        let before = handler.interest();
        let mut interest = before;
        *direction.of(&mut interest) = wanted;
        if interest == before {
            return Ok(());
        }
        handler.set_interest(interest).inspect_err(|_| {
            let _ = handler.set_interest(before); // What the monitor still has: cannot fail.
        })
    }

    /// The handler's callback: wakes one waiter a direction, which runs at once.
    fn on_ready(&self, readiness: Readiness) {
        for (ready, direction) in
            [(readiness.read, Direction::Read), (readiness.write, Direction::Write)]
        {
            if !ready {
                continue;
            }
            match self.pop(direction) {
                Some(waker) => waker.wake_here(),
                // Lazy disarm. A refusal leaves a report that comes again, and this with it.
                None => drop(self.set_interest(direction, false)),
            }
        }
    }

    /// Lets go of the handler, then of the descriptor (I1). The watch itself may still be in use further up the stack.
    fn close(&self) {
        let handler = self.handler.take();
        drop(handler);
        self.fd.take();
    }
}

/// Names a home: of a context, which may have another one later.
struct HomeId {
    context: AioContext,
    /// False once the home has ended, and forgotten all its watches.
    open: AtomicBool,
}

/// A home's watches.
struct Registry {
    home: Arc<HomeId>,
    /// By descriptor number; I1 makes it unique.
    watches: RefCell<Vec<Option<Rc<Watch>>>>,
    next_serial: Cell<u64>,
}

impl Registry {
    /// This thread's, if it is a context's home.
    fn here() -> Option<Rc<Self>> {
        let make = |local: &Local| {
            Ok(Self {
                home: Arc::new(HomeId {
                    context: local.context().clone(),
                    open: AtomicBool::new(true),
                }),
                watches: RefCell::default(),
                next_serial: Cell::new(0),
            })
        };
        Local::current()?.attachment(make).ok()
    }

    fn find(&self, registration: &Registration) -> Option<Rc<Watch>> {
        if !Arc::ptr_eq(&registration.home, &self.home) {
            return None;
        }
        let watches = self.watches.borrow();
        let watch = watches.get(usize::try_from(registration.fd).ok()?)?.as_ref()?;
        (watch.serial == registration.serial).then(|| Rc::clone(watch))
    }

    fn add(&self, fd: &Arc<OwnedFd>) -> io::Result<Rc<Watch>> {
        let local = Local::current().ok_or(io::ErrorKind::Unsupported)?;
        let index =
            usize::try_from(fd.as_raw_fd()).map_err(|_| io::Error::from(Errno::BADF))?;
        // The socket has been here before, and came back before its request to be forgotten did.
        let stale = self.watches.borrow_mut().get_mut(index).and_then(Option::take);
        if let Some(stale) = stale {
            stale.close();
        }
        let serial = self.next_serial.get();
        self.next_serial.set(serial + 1);
        let watch = Rc::new(Watch {
            serial,
            handler: RefCell::new(None),
            fd: Cell::new(Some(Arc::clone(fd))),
            queues: Default::default(),
            next_ticket: Cell::new(0),
            alarms: Default::default(),
        });
        let weak: Weak<Watch> = Rc::downgrade(&watch);
        let handler = local.add_handler(fd, move |readiness| {
            if let Some(watch) = weak.upgrade() {
                watch.on_ready(readiness);
            }
        })?;
        *watch.handler.borrow_mut() = Some(handler);
        let mut watches = self.watches.borrow_mut();
        if watches.len() <= index {
            watches.resize_with(index + 1, || None);
        }
        watches[index] = Some(Rc::clone(&watch));
        Ok(watch)
    }

    fn remove(&self, fd: RawFd, serial: u64) {
        let Ok(index) = usize::try_from(fd) else { return };
        let mut watches = self.watches.borrow_mut();
        let Some(slot) = watches.get_mut(index) else { return };
        let Some(watch) = slot.take_if(|watch| watch.serial == serial) else { return };
        drop(watches);
        watch.close();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Release: pairs with the load in `Registration::drop` only for tidiness; what comes late finds nothing.
        self.home.open.store(false, Ordering::Release);
    }
}

/// A socket's claim on a watch, which may be another thread's.
struct Registration {
    home: Arc<HomeId>,
    fd: RawFd,
    serial: u64,
}

impl Registration {
    fn watch_here(&self) -> Option<Rc<Watch>> {
        Registry::here()?.find(self)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (fd, serial) = (self.fd, self.serial);
        if let Some(registry) = here_as(&self.home) {
            return registry.remove(fd, serial);
        }
        if self.home.open.load(Ordering::Acquire) {
            let home = Arc::clone(&self.home);
            self.home.context.schedule_oneshot("forget a socket", move || {
                if let Some(registry) = here_as(&home) {
                    registry.remove(fd, serial);
                }
            });
        }
    }
}

/// This thread's registry, if it is that home's.
fn here_as(home: &Arc<HomeId>) -> Option<Rc<Registry>> {
    Registry::here().filter(|registry| Arc::ptr_eq(&registry.home, home))
}
