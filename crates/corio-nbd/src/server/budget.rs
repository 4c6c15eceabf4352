//! How much of the server a client, and all clients together, may hold.
//!
//! ```text
//!   a request that cannot be served at once
//!        | the client's own room: the reader waits for it, holding nothing
//!   ClientBudget (one connection, one thread)
//!        | the server's room: taken or not, nobody waits
//!   Budget (all connections)
//!        | taken                              | not taken
//!   Grant: a worker serves it            the reader serves it by itself, in pieces
//! ```
//!
//! Invariants:
//! - I1 A request waits only for requests of its own client, all of which need nothing more to
//!   finish but the disk and the client's reading of their replies. So there is no deadlock, and a
//!   client that does not read its replies holds up nobody else, whatever it holds.
//! - I2 A grant lives until its reply has been written or dropped, and gives back exactly what was
//!   taken.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::signal::Signal;

/// What all connections of a server share.
#[derive(Debug)]
pub(super) struct Budget {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    requests_max: usize,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            requests_max,
            bytes_max,
        }
    }

    /// Takes room for one request of `bytes`, or nothing.
    // Relaxed throughout: two counts, which order nothing.
    fn try_take(&self, bytes: usize) -> bool {
        if !add_within(&self.requests, 1, self.requests_max) {
            return false;
        }
        if !add_within(&self.bytes, bytes, self.bytes_max) {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn give_back(&self, bytes: usize) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Requests and bytes that are held now.
    pub(super) fn held(&self) -> (usize, usize) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// Adds `more` if the sum stays within `max`.
fn add_within(count: &AtomicUsize, more: usize, max: usize) -> bool {
    let sum = |now: usize| now.checked_add(more).filter(|&sum| sum <= max);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum)
        .is_ok()
}

/// What one connection holds. Used by the coroutines of one thread.
#[derive(Debug)]
pub(super) struct ClientBudget {
    server: Arc<Budget>,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    requests_max: usize,
    bytes_max: usize,
    /// Fires whenever a grant comes back. Only the reader waits for it.
    returned: Signal,
}

impl ClientBudget {
    pub(super) fn new(server: Arc<Budget>, requests_max: usize, bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            server,
            requests: Cell::new(0),
            bytes: Cell::new(0),
            requests_max,
            bytes_max,
            returned: Signal::new(),
        })
    }

    /// Whether the client itself has room for one more request of `bytes`. It always has while it
    /// holds nothing.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let (held, held_bytes) = (self.requests.get(), self.bytes.get());
        held == 0 || (held < self.requests_max && held_bytes + bytes <= self.bytes_max)
    }

    /// Parks until [`has_room`](Self::has_room). The caller holds nothing that another request of
    /// this client needs (I1): it has flushed its batch and does not hold the send side.
    pub(super) fn wait_for_room(&self, bytes: usize) {
        self.returned.wait_until(|| self.has_room(bytes));
    }

    /// Parks until no request is held.
    pub(super) fn wait_until_idle(&self) {
        self.returned.wait_until(|| self.requests.get() == 0);
    }

    /// Takes room, if the server as a whole has it.
    pub(super) fn try_take(self: &Rc<Self>, bytes: usize) -> Option<Grant> {
        if !self.server.try_take(bytes) {
            return None;
        }
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Some(Grant {
            client: Rc::clone(self),
            bytes,
        })
    }

    /// Requests that are held now.
    pub(super) fn requests(&self) -> usize {
        self.requests.get()
    }
}

/// Room for one request; given back when dropped.
#[derive(Debug)]
pub(super) struct Grant {
    client: Rc<ClientBudget>,
    bytes: usize,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let client = &self.client;
        client.server.give_back(self.bytes);
        client.requests.set(client.requests.get() - 1);
        client.bytes.set(client.bytes.get() - self.bytes);
        client.returned.fire();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(server: &Arc<Budget>) -> Rc<ClientBudget> {
        ClientBudget::new(Arc::clone(server), 2, 100)
    }

    #[test]
    fn grants_give_back_what_they_took() {
        let server = Arc::new(Budget::new(8, 1000));
        let client = client(&server);
        let (a, b) = (client.try_take(60).unwrap(), client.try_take(0).unwrap());
        assert_eq!((server.held(), client.requests()), ((2, 60), 2));
        drop(a);
        assert_eq!((server.held(), client.requests()), ((1, 0), 1));
        drop(b);
        assert_eq!((server.held(), client.requests()), ((0, 0), 0));
    }

    #[test]
    fn a_client_has_room_up_to_its_own_limits() {
        let server = Arc::new(Budget::new(8, 1000));
        let client = client(&server);
        assert!(client.has_room(500), "the first always fits");
        let first = client.try_take(60).unwrap();
        assert!(client.has_room(40));
        assert!(!client.has_room(41), "bytes");
        let _second = client.try_take(0).unwrap();
        assert!(!client.has_room(0), "requests");
        drop(first);
        assert!(client.has_room(100));
    }

    #[test]
    fn what_the_server_lacks_is_not_granted_and_takes_nothing() {
        let server = Arc::new(Budget::new(2, 100));
        let (one, other) = (client(&server), client(&server));
        let held = one.try_take(80).unwrap();
        assert!(other.try_take(21).is_none(), "bytes");
        assert_eq!(server.held(), (1, 80));
        let small = other.try_take(20).unwrap();
        assert!(other.try_take(0).is_none(), "requests");
        drop((held, small));
        assert_eq!(server.held(), (0, 0));
        assert!(other.try_take(usize::MAX).is_none());
    }
}
