//! The epoll monitor: level-triggered, with the ring's descriptor in the set while disk requests
//! are in flight. The context's own descriptor is edge-triggered: each write ends one wait, and none
//! has to be read.
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

pub(in super::super) struct EpollMonitor {
    epoll: Epoll,
    ring_added: Cell<bool>,
    /// The duplicates, by their handlers' tokens; there is hardly ever one.
    duplicates: RefCell<Vec<(u64, OwnedFd)>>,
}

impl EpollMonitor {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            epoll: Epoll::new()?,
            ring_added: Cell::new(false),
            duplicates: RefCell::default(),
        })
    }

    pub(super) fn update(&self, local: &Local, entry: &Entry) -> io::Result<()> {
        let mut wanted = entry.events();
        if wanted != 0 && local.is_notifier(entry.token) {
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

    /// See [`Monitor::finish`](super::Monitor::finish).
    pub(super) fn remove_ring(&self, ring: &ContextRing) {
        if self.ring_added.replace(false) {
            // A refusal leaves it to the ring's own end.
            let _ = self.epoll.delete(ring.ring().as_fd());
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

    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        let mut timeout_ns = timeout_ns;
        let ring = beside::in_flight(local);
        if let Some(ring) = ring {
            self.add_ring(ring)?;
            timeout_ns = beside::before_wait(ring, timeout_ns)?;
        }
        let waited = self.epoll.wait(timeout_ns, |event| {
            if event.data != RING {
                local.note_ready(event.data, event.revents);
            }
        });
        beside::after_wait(ring, waited)
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the number is only handed to epoll_ctl and fcntl, which answer EBADF if it is not
    // open; -1 is never registered.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
