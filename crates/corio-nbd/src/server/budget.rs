//! How much of the server a client, and all clients together, may hold.
//!
//! ```text
//!   a request that cannot be served at once
//!        | the client's own room: the reader waits for it, holding nothing
//!   ClientBudget (one connection, one thread)
//!        | the server's room: taken or not, nobody waits
//!   Budget (all connections)
//!        | taken                              | not taken
//!        | <------- as little as is its own --+
//!        |                                    | more than that
//!   Grant: a worker serves it            the reader serves it by itself, in pieces
//! ```
//!
//! Clients that take no replies may hold all of the server's room for as long as they like. What is
//! each client's own beyond it is there so that the others' small requests overlap still.
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

/// Requests that a client may hold when the server has no room: enough to keep a disk busy.
const OWN_REQUESTS: usize = 32;
/// Bytes of data that these hold; less than the buffers that a connection has anyway.
const OWN_BYTES: usize = 256 << 10;

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

    /// Counts one request of `bytes` that needs no room.
    fn take(&self, bytes: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
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
    /// Of these, those for which the server had no room.
    own_requests: Cell<usize>,
    own_bytes: Cell<usize>,
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
            own_requests: Cell::new(0),
            own_bytes: Cell::new(0),
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

    /// Takes room, if the server as a whole has it, or of the client's own.
    pub(super) fn try_take(self: &Rc<Self>, bytes: usize) -> Option<Grant> {
        let is_own = !self.server.try_take(bytes);
        if is_own {
            self.take_own(bytes)?;
        }
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Some(Grant {
            client: Rc::clone(self),
            bytes,
            is_own,
        })
    }

    #[cold]
    fn take_own(&self, bytes: usize) -> Option<()> {
        let own_bytes = self.own_bytes.get().checked_add(bytes)?;
        if self.own_requests.get() == OWN_REQUESTS || own_bytes > OWN_BYTES {
            return None;
        }
        self.server.take(bytes);
        self.own_requests.set(self.own_requests.get() + 1);
        self.own_bytes.set(own_bytes);
        Some(())
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
    is_own: bool,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let client = &self.client;
        client.server.give_back(self.bytes);
        client.requests.set(client.requests.get() - 1);
        client.bytes.set(client.bytes.get() - self.bytes);
        if self.is_own {
            client.own_requests.set(client.own_requests.get() - 1);
            client.own_bytes.set(client.own_bytes.get() - self.bytes);
        }
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
    fn what_the_server_lacks_is_granted_as_far_as_it_is_the_clients_own() {
        let server = Arc::new(Budget::new(2, 2 * OWN_BYTES));
        let client = || ClientBudget::new(Arc::clone(&server), 1000, usize::MAX);
        let (one, other) = (client(), client());
        let held = one.try_take(2 * OWN_BYTES).unwrap();
        assert!(other.try_take(OWN_BYTES + 1).is_none());
        assert!(other.try_take(usize::MAX).is_none());
        assert_eq!(server.held(), (1, 2 * OWN_BYTES), "nothing is taken");
        let own = other.try_take(OWN_BYTES).unwrap();
        assert_eq!(server.held(), (2, 3 * OWN_BYTES));
        assert!(other.try_take(1).is_none(), "bytes");
        assert!(one.try_take(OWN_BYTES).is_some(), "everybody's own");
        drop(own);
        let own: Vec<_> = std::iter::from_fn(|| other.try_take(1)).collect();
        assert_eq!(own.len(), OWN_REQUESTS, "requests");
        drop(held);
        // While the server has room again, it is the server's that is taken.
        drop(own);
        let shared = other.try_take(2 * OWN_BYTES).unwrap();
        assert_eq!(server.held(), (1, 2 * OWN_BYTES));
        drop(shared);
        assert_eq!(server.held(), (0, 0));
        assert_eq!((other.own_requests.get(), other.own_bytes.get()), (0, 0));
    }
}
