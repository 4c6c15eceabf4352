//! The epoll monitor: level-triggered, with the ring's descriptor in the set while disk requests
//! are in flight.

#![allow(unsafe_code)] // Descriptors are borrowed by number; see `borrow`.

use core::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use super::super::handler::Entry;
use super::super::local::Local;
use super::super::ring::ContextRing;
use crate::error::Error;
use crate::sys::epoll::Epoll;

/// What the ring's descriptor is registered as; no handler's token has its top bit set.
const RING: u64 = u64::MAX;

/// How long the loop waits before it submits again what a busy kernel has not taken.
const BUSY_RETRY_NS: u64 = 1_000_000;

pub(in super::super) struct EpollMonitor {
    epoll: Epoll,
    ring_added: Cell<bool>,
}

impl EpollMonitor {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            epoll: Epoll::new()?,
            ring_added: Cell::new(false),
        })
    }

    pub(super) fn update(&self, entry: &Entry) -> io::Result<()> {
        let wanted = if entry.removed.get() {
            0
        } else {
            entry.interest.get().events()
        };
        let armed = entry.armed.replace(wanted);
        let fd = borrow(entry.fd);
        let result = match (armed, wanted) {
            (0, 0) => Ok(()),
            (0, _) => self.epoll.add(fd, entry.token, wanted),
            (_, 0) => match self.epoll.delete(fd) {
                // Closed already: the kernel has taken it out of the set itself.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EBADF)) => {
                    Ok(())
                }
                result => result,
            },
            (before, _) if before == wanted => Ok(()),
            _ => self.epoll.modify(fd, entry.token, wanted),
        };
        if result.is_err() {
            entry.armed.set(armed);
        }
        result
    }

    pub(super) fn pollable(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Hands the ring's requests to the kernel, and has the set tell of their completions.
    fn submit(&self, ring: &ContextRing) -> io::Result<()> {
        if !self.ring_added.get() {
            self.epoll
                .add(ring.ring().as_fd(), RING, crate::context::handler::POLLIN)?;
            self.ring_added.set(true);
        }
        ring.submit()
    }

    /// See [`Monitor::submit`](super::Monitor::submit). A refusal is met again by the turn that
    /// follows, which reports it.
    pub(super) fn submit_for_others(&self, ring: &ContextRing) -> Option<u64> {
        if ring.in_flight() == 0 {
            return None;
        }
        let left = self.submit(ring).is_err() || ring.pending() > 0;
        left.then_some(BUSY_RETRY_NS)
    }

    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        let mut timeout_ns = timeout_ns;
        let ring = local.ring_if_made().filter(|ring| ring.in_flight() > 0);
        if let Some(ring) = ring {
            self.submit(ring)?;
            if ring.has_arrived() {
                timeout_ns = Some(0);
            } else if ring.pending() > 0 {
                // The kernel was too busy for all of them: nothing but the time tells when it is
                // not.
                timeout_ns = Some(timeout_ns.unwrap_or(BUSY_RETRY_NS).min(BUSY_RETRY_NS));
            }
        }
        let result = self.epoll.wait(timeout_ns, |event| {
            if event.data != RING {
                local.note_ready(event.data, event.revents);
            }
        });
        if let Some(ring) = ring {
            ring.ring().flush_completions()?;
            ring.reap(|_, _| ());
        }
        match result {
            // Task work for the ring interrupts the wait: look at the completions, which has just
            // been done.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the number is only handed to epoll_ctl, which answers EBADF if it is not open; -1 is
    // never registered.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
