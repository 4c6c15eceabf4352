//! The poll monitor: the watched descriptors in an array that each wait hands to the kernel, with
//! the ring's at its end while disk requests are in flight.
//!
//! It needs nothing of the kernel and takes any descriptor, at a price that grows with their
//! number.
//!
//! Invariant
//! - I1 The first `tokens.len()` entries of the array are the handlers' with something armed, each
//!   beside its token; `places` tells where those of a token's index are.

use core::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::super::handler::{Entry, POLLIN, index_of};
use super::super::local::Local;
use super::beside;
use crate::sys::poll::{self, POLLNVAL, PollFd};

/// From how many descriptors on epoll is asked to take them.
pub(super) const POLL_MAX: usize = 64;

pub(in super::super) struct PollMonitor {
    watched: RefCell<Watched>,
    /// Epoll would refuse one of them, or is refused itself.
    stays: Cell<bool>,
}

#[derive(Default)]
struct Watched {
    entries: Vec<PollFd>,
    tokens: Vec<u64>,
    places: Vec<usize>,
}

impl PollMonitor {
    /// One that turns into epoll when it watches many descriptors, unless it `stays`.
    pub(super) fn new(stays: bool) -> Self {
        Self {
            watched: RefCell::default(),
            stays: Cell::new(stays),
        }
    }

    /// True if epoll should take over.
    pub(super) fn is_crowded(&self) -> bool {
        !self.stays.get() && self.watched.borrow().tokens.len() >= POLL_MAX
    }

    /// Epoll has failed to.
    pub(super) fn stay(&self) {
        self.stays.set(true);
    }

    pub(super) fn update(&self, entry: &Entry) {
        let wanted = entry.events();
        let armed = entry.armed.replace(wanted);
        let mut watched = self.watched.borrow_mut();
        match (armed, wanted) {
            (before, now) if before == now => {}
            (0, _) => watched.insert(entry, wanted),
            (_, 0) => watched.remove(entry.token),
            _ => {
                if let Some(place) = watched.place(entry.token) {
                    watched.entries[place].events = poll::bits(wanted);
                }
            }
        }
    }

    #[inline(never)] // Out of the way of the others.
    pub(super) fn wait(&self, local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
        let mut timeout_ns = timeout_ns;
        let ring = beside::in_flight(local);
        let mut watched = self.watched.borrow_mut();
        let count = watched.tokens.len();
        let mut refused = Ok(());
        if let Some(ring) = ring {
            match beside::before_wait(ring, timeout_ns) {
                Ok(at_most_ns) => timeout_ns = at_most_ns,
                // Returned in the end: descriptors must not starve of it.
                Err(error) => (timeout_ns, refused) = (Some(0), Err(error)),
            }
            let descriptor = ring.ring().as_fd().as_raw_fd();
            watched.entries.push(poll::entry(descriptor, POLLIN));
        }
        let waited = poll::wait(&mut watched.entries, timeout_ns);
        watched.entries.truncate(count);
        let mut found = *waited.as_ref().unwrap_or(&0);
        let mut closed = Vec::new();
        for (entry, token) in watched.entries.iter().zip(&watched.tokens) {
            if found == 0 {
                break; // Most often the array's end is not reached.
            }
            let revents = poll::revents(entry);
            if revents == 0 {
                continue;
            }
            found -= 1;
            if revents & POLLNVAL != 0 {
                closed.push(*token);
            } else {
                local.ready.note(*token, revents);
            }
        }
        for token in closed {
            watched.remove(token);
            local.note_closed(token);
        }
        drop(watched);
        refused.and(beside::after_wait(local, ring, waited.map(drop), |_, _| ()))
    }
}

impl Watched {
    fn place(&self, token: u64) -> Option<usize> {
        let place = *self.places.get(index_of(token))?;
        (self.tokens.get(place) == Some(&token)).then_some(place)
    }

    fn insert(&mut self, entry: &Entry, wanted: u32) {
        let index = index_of(entry.token);
        if self.places.len() <= index {
            self.places.resize(index + 1, usize::MAX);
        }
        self.places[index] = self.tokens.len();
        self.tokens.push(entry.token);
        self.entries.push(poll::entry(entry.fd, wanted));
    }

    fn remove(&mut self, token: u64) {
        let Some(place) = self.place(token) else {
            return;
        };
        self.tokens.swap_remove(place);
        self.entries.swap_remove(place);
        self.places[index_of(token)] = usize::MAX;
        if let Some(moved) = self.tokens.get(place) {
            self.places[index_of(*moved)] = place;
        }
    }
}
