//! Waiting for a socket to become readable or writable.
//!
//! ```text
//!   Socket (moves between threads)       home thread
//!   ------------------------------       ----------------------------------------------------------
//!   fd --------------------------------> Registry: Watch by descriptor number
//!   Registration {home, fd, serial} - ->   handler (its interest stays armed between waits)
//!                                          queues[Read], queues[Write]: tickets of parked coroutines
//! ```
//!
//! A waiter queues up, arms its direction's interest if it is not, and parks. The interest stays
//! armed when the wait is over; an event that finds nobody waiting takes it back. A connection
//! whose reader comes back before the next bytes do therefore costs no epoll_ctl at all, and one
//! whose reader is busy elsewhere costs one event.
//!
//! A `LocalHandler` cannot leave its thread, a socket can. So the handler stays in the home's
//! [`Registry`], and the socket has a [`Registration`] that names it, without keeping it. When the
//! socket turns up in another home, or ends there, the registration asks the old home to forget the
//! watch.
//!
//! Invariants
//! - I1 A watch owns a share of the descriptor until its handler is gone. The number is therefore
//!   not given to another file while a monitor still knows it, wherever the socket ends.
//! - I2 While a queue is not empty, its direction's interest is armed. As handlers are
//!   level-triggered, a waiter that was woken and leaves something behind, or is cancelled, need
//!   not pass anything on: the next turn wakes the next.
//! - I3 Tickets grow, and a queue is sorted by them: who was woken for nothing goes back to where
//!   it was. A waiter whose ticket is not in the queue any more has been woken.
//! - I4 Waiters borrow the socket, so a socket that moves, or is dropped, has none.

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use crate::context::{AioContext, Interest, Local, LocalHandler, Readiness, Timer};
use crate::schedule::CoWaker;

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Bytes, a connection to accept, the end, or an error.
    Read = 0,
    /// Room, a connection made, or an error.
    Write = 1,
}

impl Direction {
    pub(super) fn index(self) -> usize {
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

/// A timer that wakes one coroutine. It stays armed when a wait is over: if the next wait's
/// deadline is later, as with a constant time-out it is, arming costs nothing, and the timer rings
/// once a time-out instead of once a wait.
pub(super) struct Alarm {
    waker: CoWaker,
    timer: Timer,
    armed_ns: u64,
}

impl Alarm {
    fn new(context: &AioContext, waker: CoWaker) -> Self {
        Self {
            waker,
            timer: context.timer(move || waker.wake_here()),
            armed_ns: 0,
        }
    }

    /// Sees to it that it rings at `deadline_ns` or before; whoever is woken early asks again.
    pub(super) fn ring_by(&mut self, now_ns: u64, deadline_ns: u64) {
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
pub(super) struct Watch {
    home: Arc<HomeId>,
    serial: u64,
    handler: RefCell<Option<LocalHandler>>,
    fd: Cell<Option<Arc<OwnedFd>>>,
    queues: [RefCell<VecDeque<Waiter>>; 2],
    next_ticket: Cell<u64>,
    /// The latest waiter's, for its next wait.
    alarms: [Cell<Option<Alarm>>; 2],
}

impl Watch {
    /// A number that grows: whose is lower is served first.
    pub(super) fn draw_ticket(&self) -> u64 {
        self.next_ticket.replace(self.next_ticket.get() + 1)
    }

    pub(super) fn queue_up(&self, direction: Direction, ticket: u64, waker: CoWaker) {
        let mut queue = self.queues[direction.index()].borrow_mut();
        let at = queue.partition_point(|waiter| waiter.ticket < ticket);
        queue.insert(at, Waiter { ticket, waker });
    }

    /// False: the waiter has been woken.
    pub(super) fn is_queued(&self, direction: Direction, ticket: u64) -> bool {
        let queue = self.queues[direction.index()].borrow();
        queue
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .is_ok()
    }

    pub(super) fn withdraw(&self, direction: Direction, ticket: u64) {
        let mut queue = self.queues[direction.index()].borrow_mut();
        if let Ok(at) = queue.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            queue.remove(at);
        }
    }

    pub(super) fn wake_all(&self, direction: Direction) {
        while let Some(waker) = self.pop(direction) {
            waker.wake();
        }
    }

    /// Takes the oldest waiter out.
    fn pop(&self, direction: Direction) -> Option<CoWaker> {
        let mut queue = self.queues[direction.index()].borrow_mut();
        queue.pop_front().map(|waiter| waiter.waker)
    }

    #[cfg(test)]
    pub(super) fn has_alarm(&self, direction: Direction) -> bool {
        let alarm = self.alarms[direction.index()].take();
        let has = alarm.is_some();
        self.alarms[direction.index()].set(alarm);
        has
    }

    #[cfg(test)]
    pub(super) fn waiting(&self, direction: Direction) -> usize {
        self.queues[direction.index()].borrow().len()
    }

    /// The alarm that the same coroutine has left here, or a new one.
    pub(super) fn take_alarm(&self, direction: Direction, waker: CoWaker) -> Alarm {
        let kept = self.alarms[direction.index()].take();
        kept.filter(|alarm| alarm.waker == waker)
            .unwrap_or_else(|| Alarm::new(&self.home.context, waker))
    }

    pub(super) fn keep_alarm(&self, direction: Direction, alarm: Alarm) {
        self.alarms[direction.index()].set(Some(alarm));
    }

    /// No wait will have a deadline.
    pub(super) fn drop_alarm(&self, direction: Direction) {
        self.alarms[direction.index()].take();
    }

    /// Waits for the direction, if it does not yet.
    pub(super) fn arm(&self, direction: Direction) -> io::Result<()> {
        self.set_interest(direction, true)
    }

    fn set_interest(&self, direction: Direction, wanted: bool) -> io::Result<()> {
        let handler = self.handler.borrow();
        let Some(handler) = handler.as_ref() else {
            return Ok(());
        };
        let before = handler.interest();
        let mut interest = before;
        *direction.of(&mut interest) = wanted;
        if interest == before {
            return Ok(());
        }
        handler.set_interest(interest).inspect_err(|_| {
            let _ = handler.set_interest(before); // What the monitor still has, so that it is not asked.
        })
    }

    /// The handler's callback: wakes one waiter a direction, which runs at once.
    fn on_ready(&self, readiness: Readiness) {
        let directions = [
            (Direction::Read, readiness.read),
            (Direction::Write, readiness.write),
        ];
        for (direction, ready) in directions {
            if !ready {
                continue;
            }
            match self.pop(direction) {
                Some(waker) => waker.wake_here(),
                // A refusal leaves an event that comes again, and this with it.
                None => drop(self.set_interest(direction, false)),
            }
        }
    }

    /// Lets go of the handler, then of the descriptor (I1). The watch itself may still be in use
    /// further up the stack.
    fn close(&self) {
        let handler = self.handler.take();
        drop(handler);
        self.fd.take();
    }
}

/// Names a home; its context may have another one later.
struct HomeId {
    context: AioContext,
}

/// A home's watches.
struct Registry {
    home: Arc<HomeId>,
    /// By descriptor number, which I1 makes unique.
    watches: RefCell<Vec<Option<Rc<Watch>>>>,
    next_serial: Cell<u64>,
}

impl Registry {
    /// This thread's, if it is a context's home.
    fn here() -> Option<Rc<Self>> {
        let make = |local: &Local| {
            let context = local.context().clone();
            Self {
                home: Arc::new(HomeId { context }),
                watches: RefCell::default(),
                next_serial: Cell::new(0),
            }
        };
        Some(Local::current()?.attachment(make))
    }

    fn find(&self, fd: RawFd, serial: u64) -> Option<Rc<Watch>> {
        let watches = self.watches.borrow();
        let watch = watches.get(usize::try_from(fd).ok()?)?.as_ref()?;
        (watch.serial == serial).then(|| Rc::clone(watch))
    }

    fn add(&self, fd: &Arc<OwnedFd>) -> io::Result<Rc<Watch>> {
        let local = Local::current().ok_or(Errno::OPNOTSUPP)?;
        let index = usize::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)?;
        // The socket has been here before, and came back before its request to be forgotten did.
        let stale = self
            .watches
            .borrow_mut()
            .get_mut(index)
            .and_then(Option::take);
        if let Some(stale) = stale {
            stale.close();
        }
        let serial = self.next_serial.replace(self.next_serial.get() + 1);
        let watch = Rc::new(Watch {
            home: Arc::clone(&self.home),
            serial,
            handler: RefCell::new(None),
            fd: Cell::new(Some(Arc::clone(fd))),
            queues: Default::default(),
            next_ticket: Cell::new(0),
            alarms: Default::default(),
        });
        let weak = Rc::downgrade(&watch);
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
        let Ok(index) = usize::try_from(fd) else {
            return;
        };
        let mut watches = self.watches.borrow_mut();
        let Some(slot) = watches.get_mut(index) else {
            return;
        };
        let Some(watch) = slot.take_if(|watch| watch.serial == serial) else {
            return;
        };
        drop(watches);
        watch.close();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for watch in self.watches.take().into_iter().flatten() {
            watch.close(); // A leaked coroutine may hold the watch, not the descriptor.
        }
    }
}

/// A socket's claim on a watch, which may be another thread's.
pub(super) struct Registration {
    /// Not kept: what is queued in a context may own sockets, and must not keep it by them.
    home: Weak<HomeId>,
    fd: RawFd,
    serial: u64,
}

impl Registration {
    /// Registers with this thread's home.
    pub(super) fn new(fd: &Arc<OwnedFd>) -> io::Result<(Self, Rc<Watch>)> {
        let registry = Registry::here().ok_or(Errno::OPNOTSUPP)?;
        let watch = registry.add(fd)?;
        let registration = Self {
            home: Arc::downgrade(&registry.home),
            fd: fd.as_raw_fd(),
            serial: watch.serial,
        };
        Ok((registration, watch))
    }

    /// The watch, if it is of this thread's home.
    pub(super) fn watch_here(&self) -> Option<Rc<Watch>> {
        here_as(&self.home)?.find(self.fd, self.serial)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let (fd, serial) = (self.fd, self.serial);
        if let Some(registry) = here_as(&self.home) {
            return registry.remove(fd, serial);
        }
        if let Some(there) = self.home.upgrade() {
            let home = Weak::clone(&self.home);
            there.context.schedule_oneshot("forget a socket", move || {
                if let Some(registry) = here_as(&home) {
                    registry.remove(fd, serial);
                }
            });
        }
    }
}

/// This thread's registry, if it is that home's.
fn here_as(home: &Weak<HomeId>) -> Option<Rc<Registry>> {
    Registry::here().filter(|registry| Arc::as_ptr(&registry.home) == home.as_ptr())
}
