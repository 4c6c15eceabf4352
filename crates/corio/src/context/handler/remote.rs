//! Handlers that any thread adds, changes and removes (SPEC H1).
//!
//! They belong to the context and not to a home. What is added, changed or removed goes through the
//! context's mailbox (see `state`); the home takes it up at the start of its next turn. Between two
//! homes they wait in the mailbox, where a home that ends puts them back.
//!
//! ```text
//!   RemoteHandler ─────▶ Shared {state, payload} ◀───── mailbox, or the entry in the home's table
//!                                   │                                   ▲
//!                                   └── callback and descriptor ────────┘  while a home has it
//! ```
//!
//! Invariant
//! - I1 The payload is in `Shared` or in an entry of a home's table. In the entry it is the home
//!   thread's alone, which lets go of the descriptor's registration before it drops it.

use core::any::Any;
use core::ptr;
// The token is no protocol's, so not through `crate::atomic`.
use core::sync::atomic::AtomicU64;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::super::list::{Linked, List};
use super::super::local::Local;
use super::super::{AioContext, Inner, guarded};
use super::state::State;
use super::{Call, Entry, Interest, Readiness};
use crate::atomic::{AtomicPtr, Ordering};

/// No entry of a home's table.
const NO_TOKEN: u64 = u64::MAX;

/// What is dropped at home once a home has taken it up.
pub(in super::super) struct Payload {
    pub(super) callback: Box<dyn Fn(Readiness) + Send>,
    /// Kept open until the monitor has let go of it.
    _fd: Box<dyn Any + Send>,
}

/// A handler, as every thread sees it.
pub(in super::super) struct Shared {
    pub(super) state: State,
    next: AtomicPtr<Shared>,
    fd: RawFd,
    /// Its entry's, in the home that has taken it up; written and read by the home thread.
    token: AtomicU64,
    payload: Mutex<Option<Payload>>,
}

impl Linked for Shared {
    fn next(&self) -> &AtomicPtr<Self> {
        &self.next
    }
}

/// A handler that a home has taken up: what its entry holds.
pub(in super::super) struct Adopted {
    pub(super) shared: Arc<Shared>,
    pub(super) payload: Payload,
}

/// What has changed since the home last looked.
pub(in super::super) struct Mailbox(List<Shared>);

impl Mailbox {
    pub(in super::super) fn new() -> Self {
        Self(List::new())
    }

    #[inline]
    pub(in super::super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // Their handles may live on, but no home will come.
        self.0.drain(|shared| {
            let payload = shared.payload.lock().take();
            // A destructor that panics must not keep the others.
            guarded(|| drop(payload));
        });
    }
}

impl AioContext {
    /// Has `callback` run in the home thread, in each turn that finds `fd` as `interest` asks,
    /// until the handler is dropped. Level-triggered: what is not drained fires again.
    ///
    /// Any thread, and from any callback. The home takes it up in its next turn; while the context
    /// has no home it waits for one, and it stays when a home ends. The callback runs as that of
    /// [`LocalContext::add_handler`](crate::context::LocalContext::add_handler) does. The handler
    /// owns the descriptor; to go on using it, share it by an `Arc`.
    ///
    /// What the monitor refuses, which is only for want of memory, is reported in the log.
    #[doc(alias = "aio_set_fd_handler")]
    #[doc(alias = "aio_set_event_notifier")]
    pub fn add_handler<F: AsFd + Send + 'static>(
        &self,
        fd: F,
        interest: Interest,
        callback: impl Fn(Readiness) + Send + 'static,
    ) -> RemoteHandler {
        let number = fd.as_fd().as_raw_fd();
        let payload = Payload {
            callback: Box::new(callback),
            _fd: Box::new(fd),
        };
        let shared = Arc::new(Shared {
            state: State::new(),
            next: AtomicPtr::new(ptr::null_mut()),
            fd: number,
            token: AtomicU64::new(NO_TOKEN),
            payload: Mutex::new(Some(payload)),
        });
        let handler = RemoteHandler {
            shared,
            context: Arc::downgrade(&self.0),
        };
        handler.set_interest(interest);
        handler
    }
}

/// A descriptor that a context watches, from whatever thread. Dropping it removes it.
///
/// Once the drop has returned, no call begins in the home thread; on another thread, one that is
/// just beginning may still run. The home then lets go of the descriptor, and drops it and the
/// callback; what no home has taken up is dropped by whoever drops the handle. A context that is
/// gone watches nothing.
///
/// ```
/// use corio::{IoThread, context::Interest};
/// use std::{io::{Read, Write}, os::unix::net::UnixStream, sync::{Arc, mpsc}};
/// let io = IoThread::builder().spawn()?;
/// let (ours, mut theirs) = UnixStream::pair()?;
/// let (ours, (tx, rx)) = (Arc::new(ours), mpsc::channel());
/// let reader = Arc::clone(&ours);
/// let handler = io.context().add_handler(ours, Interest::READ, move |_| {
///     let mut byte = [0];
///     (&*reader).read_exact(&mut byte).expect("it is readable");
///     tx.send(byte[0]).expect("somebody listens");
/// });
/// theirs.write_all(b"x")?;
/// assert_eq!(rx.recv()?, b'x');
/// handler.set_interest(Interest::default()); // It stays, and is not called.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a handler is removed when it is dropped"]
pub struct RemoteHandler {
    shared: Arc<Shared>,
    /// Not kept: the callback may own the handler, and is kept by the context.
    context: Weak<Inner>,
}

impl RemoteHandler {
    /// Changes what it waits for. Nothing: it stays, and is not called. Any thread; the home
    /// follows in its next turn, and does not call it for what is not wanted any more.
    pub fn set_interest(&self, interest: Interest) {
        self.post(self.shared.state.want(interest));
    }

    /// What it waits for. Any thread.
    #[must_use]
    pub fn interest(&self) -> Interest {
        self.shared.state.wanted().unwrap_or_default()
    }

    fn post(&self, pushes: bool) {
        if !pushes {
            return; // Who pushed has notified, or will.
        }
        if let Some(inner) = self.context.upgrade() {
            let context = AioContext(inner);
            context.0.mailbox.0.push(Arc::clone(&self.shared));
            context.notify();
        }
    }
}

impl Drop for RemoteHandler {
    fn drop(&mut self) {
        self.post(self.shared.state.remove());
        // Before a home has it, or after the last one: nobody watches the descriptor.
        let payload = self.shared.payload.lock().take();
        drop(payload);
    }
}

impl core::fmt::Debug for RemoteHandler {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RemoteHandler")
            .field("fd", &self.shared.fd)
            .field("interest", &self.interest())
            .finish()
    }
}

impl Local {
    /// Takes up what the mailbox holds. A nested poll goes on with what an outer turn has taken
    /// from it and not looked at yet.
    #[cold] // Its frame is not to be every turn's.
    #[inline(never)]
    pub(in super::super) fn take_up_remote(&self) {
        let mailbox = &self.context.inner().mailbox.0;
        mailbox.drain(|shared| self.arrivals.borrow_mut().push_back(shared));
        loop {
            let Some(shared) = self.arrivals.borrow_mut().pop_front() else {
                return;
            };
            let wanted = shared.state.take();
            let token = shared.token.load(Ordering::Relaxed);
            match (self.handlers.get(token), wanted) {
                (Some(entry), Some(interest)) => self.apply(&entry, interest),
                (Some(entry), None) => self.drop_entry(&entry),
                (None, Some(interest)) => self.adopt(shared, interest),
                (None, None) => {
                    let payload = shared.payload.lock().take();
                    drop(payload); // Not under the lock: it may own the handle.
                }
            }
        }
    }

    fn adopt(&self, shared: Arc<Shared>, interest: Interest) {
        let Some(payload) = shared.payload.lock().take() else {
            return; // Its handle has just been dropped.
        };
        let (fd, shared_too) = (shared.fd, Arc::clone(&shared));
        let call = Call::Remote(Box::new(Adopted { shared, payload }));
        let checked = self.monitor.check(fd);
        match checked.and_then(|()| self.handlers.insert(fd, call)) {
            Ok(entry) => {
                shared_too.token.store(entry.token, Ordering::Relaxed);
                self.apply(&entry, interest);
            }
            Err(error) => tracing::error!(
                context = self.context.name(),
                fd,
                "a handler is not taken up: {error}"
            ),
        }
    }

    fn apply(&self, entry: &Entry, interest: Interest) {
        let before = entry.interest.replace(interest);
        if before != interest
            && let Err(error) = self.monitor.update(self, entry)
        {
            // What is watched still is called only for what is wanted.
            entry.interest.set(before);
            tracing::error!(
                context = self.context.name(),
                fd = entry.fd,
                "the monitor refuses what a handler waits for: {error}"
            );
        }
        self.recount(entry);
    }

    /// At the home's end, when no callback is on the stack: the next home takes them up.
    pub(in super::super) fn put_back_remote(&self, entries: Vec<Rc<Entry>>) {
        for entry in entries {
            // A destructor that panics must not keep the others.
            guarded(|| self.put_back(entry));
        }
        let mailbox = &self.context.inner().mailbox.0;
        // QUEUED still (state I1).
        for shared in self.arrivals.take() {
            mailbox.push(shared);
        }
    }

    fn put_back(&self, entry: Rc<Entry>) {
        let Some(Entry {
            call: Call::Remote(adopted),
            ..
        }) = Rc::into_inner(entry)
        else {
            return;
        };
        let Adopted { shared, payload } = *adopted;
        shared.token.store(NO_TOKEN, Ordering::Relaxed);
        *shared.payload.lock() = Some(payload);
        if shared.state.is_removed() {
            // Its handle may have looked for the payload before it was there.
            let payload = shared.payload.lock().take();
            drop(payload);
        } else if shared.state.requeue() {
            self.context.inner().mailbox.0.push(shared);
        }
    }
}
