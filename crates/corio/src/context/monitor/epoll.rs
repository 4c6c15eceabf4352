//! The epoll monitor: level-triggered. Event notifiers are edge-triggered, as their handlers read
//! them: the kernel need not look at one again in the wait that follows. So is the context's own
//! descriptor: each write ends one wait, and none has to be read.
//!
//! While several disk requests are in flight the loop waits in the ring, which is one system call
//! where waiting in the set would be three: it hands over requests, waits, and makes completions
//! appear. What a descriptor tells takes longer then, so with one request it waits in the set.
//! The ring has a one-shot poll of the set then, and the set is asked only once that has told of
//! something. In a foreign loop it is the other way round: that waits for the set, which has the
//! ring's descriptor in it.
//!
//! The set knows a descriptor once. A second handler of the same number is registered under a
//! number of its own, a duplicate that is closed with the registration.

#![allow(unsafe_code)] // Descriptors are borrowed by number; see `borrow`.

use core::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::super::handler::{Entry, POLLIN};
use super::super::local::Local;
use super::super::ring::ContextRing;
use super::beside;
use crate::error::Error;
use crate::sys::epoll::{EDGE, Epoll};

/// What the ring's descriptor is registered as; no handler's token has its top bit set.
const RING: u64 = u64::MAX;
/// From so many requests in flight on the loop waits in the ring,
const RING_WAIT_MIN: usize = 2;
/// and for so many waits after them, so that it does not change to and fro.
const RING_WAITS: u32 = 16;
/// What the ring's poll of the set is reported as.
const SET: u64 = u64::MAX >> 1;

pub(in super::super) struct EpollMonitor {
    epoll: Epoll,
    /// The ring is in the set.
    ring_added: Cell<bool>,
    /// The ring has a poll of the set, whose completion has not been taken.
    set_polled: Cell<bool>,
    /// Such a poll was refused once: the loop waits in the set.
    poll_refused: Cell<bool>,
    /// How many of [`RING_WAITS`] are left.
    ring_waits: Cell<u32>,
    /// The duplicates, by their handlers' tokens; there is hardly ever one.
    duplicates: RefCell<Vec<(u64, OwnedFd)>>,
}

impl EpollMonitor {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            epoll: Epoll::new()?,
            ring_added: Cell::new(false),
            set_polled: Cell::new(false),
            poll_refused: Cell::new(false),
            ring_waits: Cell::new(0),
            duplicates: RefCell::default(),
        })
    }

    pub(super) fn update(&self, entry: &Entry) -> io::Result<()> {
        let mut wanted = entry.events();
        if wanted != 0 && entry.is_notifier() {
            wanted |= EDGE;
        }
        let armed = entry.armed.replace(wanted);
        if armed == wanted {
            return Ok(());
        }
        let fd = borrow(self.duplicate_of(entry.token).unwrap_or(entry.fd));
        let result = match (armed, wanted) {
            (0, _) => match self.epoll.add(fd, entry.token, wanted) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.add_duplicate(fd, entry.token, wanted)
                }
                result => result,
            },
            (_, 0) => {
                let result = self.epoll.delete(fd);
                self.duplicates
                    .borrow_mut()
                    .retain(|(token, _)| *token != entry.token);
                match result.as_ref().map_err(io::Error::raw_os_error) {
                    // Closed already: the kernel has taken it out of the set itself.
                    Err(Some(libc::ENOENT | libc::EBADF)) => Ok(()),
                    _ => result,
                }
            }
            _ => self.epoll.modify(fd, entry.token, wanted),
        };
        if result.is_err() {
            entry.armed.set(armed);
        }
        result
    }

    fn duplicate_of(&self, token: u64) -> Option<RawFd> {
        let duplicates = self.duplicates.borrow();
        let found = duplicates.iter().find(|(of, _)| *of == token);
        found.map(|(_, fd)| fd.as_raw_fd())
    }

    fn add_duplicate(&self, fd: BorrowedFd<'_>, token: u64, wanted: u32) -> io::Result<()> {
        let duplicate = fd.try_clone_to_owned()?;
        self.epoll.add(duplicate.as_fd(), token, wanted)?;
        self.duplicates.borrow_mut().push((token, duplicate));
        Ok(())
    }

    /// See [`Monitor::pollable`](super::Monitor::pollable).
    pub(super) fn pollable(&self) -> io::Result<OwnedFd> {
        self.epoll.as_fd().try_clone_to_owned()
    }

    /// Has the set tell of the ring's completions.
    fn add_ring(&self, ring: &ContextRing) -> io::Result<()> {
        if !self.ring_added.get() {
            self.epoll.add(ring.ring().as_fd(), RING, POLLIN)?;
            self.ring_added.set(true);
        }
        Ok(())
    }

    fn remove_ring(&self, ring: &ContextRing) {
        if self.ring_added.replace(false) {
            // A refusal leaves it to the ring's own end.
            let _ = self.epoll.delete(ring.ring().as_fd());
        }
    }

    /// See [`Monitor::finish`](super::Monitor::finish).
    pub(super) fn finish(&self, ring: &ContextRing) {
        self.remove_ring(ring);
        if self.set_polled.replace(false) {
            // A refusal leaves it to the ring's own end.
            let _ = ring
                .poll_remove(SET)
                .and_then(|()| ring.push_backlog())
                .and_then(|_| ring.ring().submit_and_wait(Some(0)));
            ring.reap(|_, _| ());
        }
    }

    /// See [`Monitor::submit_for_foreign`](super::Monitor::submit_for_foreign). A refusal is met
    /// again by the turn that follows, which reports it.
    pub(super) fn submit_for_foreign(&self, local: &Local) -> Option<u64> {
        let ring = beside::in_flight(local)?;
        let before = |()| beside::before_wait(ring, None);
        self.add_ring(ring)
            .and_then(before)
            .unwrap_or(Some(beside::BUSY_RETRY_NS))
    }

    #[inline(always)] // As `Epoll::wait`.
    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        let ring = local.ring_if_made();
        let wait = match ring {
            Some(_) => match self.before_wait(local, timeout_ns) {
                Ok(wait) => wait,
                Err(waited) => return waited,
            },
            None => SetWait::alone(timeout_ns),
        };
        let waited = self.wait_in_set(local, wait.timeout_ns);
        match ring {
            Some(_) => self.after_wait(local, wait, waited),
            None => beside::unless_interrupted(waited),
        }
    }

    /// How to wait in the set, or what became of the wait in the ring.
    #[inline(never)] // Out of the way of those without a ring.
    fn before_wait<'a>(
        &self,
        local: &'a Local,
        timeout_ns: Option<u64>,
    ) -> Result<SetWait<'a>, io::Result<()>> {
        let Some(ring) = beside::in_flight(local) else {
            return Ok(SetWait::alone(timeout_ns));
        };
        let ring_waits = if ring.in_flight() >= RING_WAIT_MIN {
            RING_WAITS
        } else {
            self.ring_waits.get().saturating_sub(1)
        };
        self.ring_waits.set(ring_waits);
        let may_wait_in_ring = !local.foreign().is_active() && !self.poll_refused.get();
        if ring_waits > 0 && may_wait_in_ring {
            self.remove_ring(ring);
            return Err(self.wait_in_ring(local, ring, timeout_ns));
        }
        let handed_over = match self.add_ring(ring) {
            // One descriptor too many for the set, which the ring has room for.
            Err(_) if may_wait_in_ring => return Err(self.wait_in_ring(local, ring, timeout_ns)),
            Err(error) => Err(error),
            Ok(()) => beside::before_wait(ring, timeout_ns),
        };
        let (timeout_ns, refused) = match handed_over {
            Ok(at_most_ns) => (at_most_ns, Ok(())),
            Err(error) => (Some(0), Err(error)),
        };
        Ok(SetWait {
            timeout_ns,
            ring: Some(ring),
            refused,
        })
    }

    #[inline(never)] // As `before_wait`.
    fn after_wait(
        &self,
        local: &Local,
        wait: SetWait<'_>,
        waited: io::Result<()>,
    ) -> io::Result<()> {
        let taken = beside::after_wait(local, wait.ring, waited, |token, result| {
            self.note_told(token, result);
        });
        wait.refused.and(taken)
    }

    #[inline(always)] // As `Epoll::wait`.
    fn wait_in_set(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        self.epoll.wait(timeout_ns, |event| {
            if event.data != RING {
                local.ready.note(event.data, event.revents);
            }
        })
    }

    /// As [`wait`](Self::wait).
    fn wait_in_ring(
        &self,
        local: &Local,
        ring: &ContextRing,
        timeout_ns: Option<u64>,
    ) -> io::Result<()> {
        let entered = self.enter_ring(ring, timeout_ns);
        let mut look = entered.is_err(); // The ring would not tell.
        ring.reap(|token, result| look |= self.note_told(token, result));
        let set_timeout_ns = if look || ring.has_arrived() && ring.pending() > 0 {
            0
        } else if ring.pending() > 0 {
            // The kernel was too busy for all requests, the poll of the set perhaps among them, and
            // has not waited: nothing but the time tells when it is not.
            timeout_ns.map_or(beside::BUSY_RETRY_NS, |ns| ns.min(beside::BUSY_RETRY_NS))
        } else {
            return entered;
        };
        let looked = self.wait_in_set(local, Some(set_timeout_ns));
        entered.and(beside::unless_interrupted(looked))
    }

    /// Hands requests over, the poll of the set among them, and waits for completions unless some
    /// are there.
    fn enter_ring(&self, ring: &ContextRing, timeout_ns: Option<u64>) -> io::Result<()> {
        if !self.set_polled.get() {
            ring.poll_add(self.epoll.as_fd().as_raw_fd(), POLLIN, SET)?;
            self.set_polled.set(true);
        }
        let has_room = ring.push_backlog()?;
        let may_block = !ring.has_arrived() && has_room;
        ring.ring()
            .submit_and_wait(if may_block { timeout_ns } else { Some(0) })
    }

    /// The ring has told of a poll. True: the set has something, or that it has not is not known.
    fn note_told(&self, token: u64, result: i32) -> bool {
        if token != SET {
            return false; // Of a monitor before this one.
        }
        self.set_polled.set(false);
        if result < 0 {
            // This kernel does not poll sets; it would say so again and again.
            self.poll_refused.set(true);
        }
        true
    }
}

/// A wait in the set.
struct SetWait<'a> {
    timeout_ns: Option<u64>,
    /// The ring, if the set tells of it.
    ring: Option<&'a ContextRing>,
    /// What the ring has refused, which is returned in the end: it may refuse for ever, and
    /// descriptors must not starve of it.
    refused: io::Result<()>,
}

impl SetWait<'_> {
    fn alone(timeout_ns: Option<u64>) -> Self {
        Self {
            timeout_ns,
            ring: None,
            refused: Ok(()),
        }
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the number is only handed to epoll_ctl and fcntl, which answer EBADF if it is not
    // open; -1 is never registered.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(all(test, not(loom)))]
mod tests;
