//! Who is connected, and how they are told to stop.
//!
//! A connection belongs to the thread whose coroutine serves it; another thread reaches it by
//! spawning on its context, where a thread-local list says which stream it is. (Rejected: a
//! duplicate of each socket's descriptor, which doubles what a server needs of them; a coroutine a
//! connection that waits for the stop, which costs a stack each.)

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::Shutdown;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corio::AioContext;
use parking_lot::{Condvar, Mutex};

use super::Error;
use super::transport::Transport;

/// How often a coroutine looks whether everybody is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The last connection's number. Of all servers: a thread may serve for several.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The streams of this thread's connections.
    static STREAMS: RefCell<HashMap<u64, Weak<dyn Transport>>> = RefCell::default();
}

/// A connection that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// Its client, as it was announced to the server.
    pub peer: String,
    /// Requests that wait for the disk, or for their replies to be taken.
    pub requests: usize,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} requests not finished", self.peer, self.requests)
    }
}

/// The connections of one server.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: Mutex<Entries>,
    left: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Entries {
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<str>,
    requests: Arc<AtomicUsize>,
    context: Option<AioContext>,
}

impl Registry {
    /// Whether the server is stopping.
    #[inline]
    pub(super) fn is_stopping(&self) -> bool {
        // Relaxed: a request read at the same time may go either way.
        self.stopping.load(Ordering::Relaxed)
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.entries.lock().open.len()
    }

    /// Adds a connection of the calling thread.
    ///
    /// # Errors
    /// The server is stopping.
    pub(super) fn enter<S: Transport>(
        self: &Arc<Self>,
        peer: &str,
        stream: &Rc<S>,
    ) -> Result<Presence, Error> {
        let requests = Arc::new(AtomicUsize::new(0));
        let entry = Entry {
            peer: peer.into(),
            requests: Arc::clone(&requests),
            context: AioContext::current(),
        };
        let id = {
            let mut entries = self.entries.lock();
            // Looked at under the lock: whoever stops sets it before it walks the list.
            if self.is_stopping() {
                return Err(Error::Stopping);
            }
            let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
            entries.open.insert(id, entry);
            id
        };
        let presence = Presence {
            registry: Arc::clone(self),
            id,
            requests,
        };
        presence.reach_by(stream);
        Ok(presence)
    }

    /// Has every connection read to the end of what its client has sent and then end.
    pub(super) fn stop(&self) {
        let contexts: Vec<_> = {
            let entries = self.entries.lock();
            self.stopping.store(true, Ordering::Relaxed);
            let context = |(&id, entry): (&u64, &Entry)| Some((id, entry.context.clone()?));
            entries.open.iter().filter_map(context).collect()
        };
        for (id, context) in contexts {
            // Nobody waits for it: whether it worked shows in the connection's end.
            drop(context.spawn(move || stop_reading(id)));
        }
    }

    /// Waits until no connection is left, and says which are if that takes too long. Parks a
    /// coroutine, blocks a thread.
    pub(super) fn wait_idle(&self, timeout: Duration) -> Vec<Busy> {
        let deadline = Instant::now() + timeout;
        let mut entries = self.entries.lock();
        while !entries.open.is_empty() {
            if Instant::now() >= deadline {
                return entries.open.values().map(Entry::busy).collect();
            }
            if corio::in_coroutine() {
                drop(entries);
                corio::time::sleep(LOOK_AGAIN);
                entries = self.entries.lock();
            } else {
                self.left.wait_until(&mut entries, deadline);
            }
        }
        Vec::new()
    }
}

impl Entry {
    fn busy(&self) -> Busy {
        let requests = self.requests.load(Ordering::Relaxed);
        Busy {
            peer: self.peer.to_string(),
            requests,
        }
    }
}

/// Whether the calling thread has a single connection, of whatever server.
#[inline]
pub(super) fn is_alone() -> bool {
    STREAMS.with_borrow(|streams| streams.len() == 1)
}

/// On the connection's thread: its reader finds the end of the stream behind what has arrived.
fn stop_reading(id: u64) {
    let stream = STREAMS.with_borrow(|streams| streams.get(&id).and_then(Weak::upgrade));
    if let Some(stream) = stream {
        // An error only says that the peer is gone already.
        let _ = stream.shutdown(Shutdown::Read);
    }
}

/// A connection's place in the registry; left when dropped.
#[derive(Debug)]
pub(super) struct Presence {
    registry: Arc<Registry>,
    id: u64,
    requests: Arc<AtomicUsize>,
}

impl Presence {
    /// Has a stop go to this stream from now on.
    pub(super) fn reach_by<S: Transport>(&self, stream: &Rc<S>) {
        let stream: Rc<dyn Transport> = stream.clone();
        STREAMS.with_borrow_mut(|streams| streams.insert(self.id, Rc::downgrade(&stream)));
    }

    /// Says how many requests are unfinished, for [`Busy`].
    pub(super) fn set_requests(&self, requests: usize) {
        self.requests.store(requests, Ordering::Relaxed);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The list may be gone already if the thread ends under a leaked coroutine.
        let _ = STREAMS.try_with(|streams| streams.borrow_mut().remove(&self.id));
        self.registry.entries.lock().open.remove(&self.id);
        self.registry.left.notify_all();
    }
}
