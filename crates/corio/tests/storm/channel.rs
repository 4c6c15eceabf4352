//! An eventfd whose writes are accounted for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use corio::AioContext;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Of all channels there ever were.
#[derive(Default)]
pub(crate) struct Totals {
    written: AtomicU64,
    read: AtomicU64,
    alive: AtomicU64,
    after_removal: AtomicU64,
}

impl Totals {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Once all are gone.
    pub(crate) fn check(&self) {
        let [alive, written, read, after] =
            [&self.alive, &self.written, &self.read, &self.after_removal]
                .map(|count| count.load(Ordering::SeqCst));
        assert_eq!(alive, 0, "descriptors are left open");
        assert_eq!(written, read, "writes are lost");
        assert_eq!(after, 0, "callbacks came after their handlers' removal");
    }
}

/// A descriptor, closed when nobody uses it any more.
pub(crate) struct Channel {
    fd: OwnedFd,
    written: AtomicU64,
    read: AtomicU64,
    /// Its callback may not come any more.
    removed: AtomicBool,
    totals: Arc<Totals>,
}

impl Channel {
    pub(crate) fn new(totals: &Arc<Totals>) -> Arc<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        totals.alive.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self {
            fd: eventfd(0, flags).expect("no descriptor for an eventfd"),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            totals: Arc::clone(totals),
        })
    }

    /// Writes a small number.
    pub(crate) fn write(&self, random: u64) {
        let number = random % 7 + 1;
        // Before the write: who reads it must find it counted.
        self.written.fetch_add(number, Ordering::SeqCst);
        rustix::io::write(&self.fd, &number.to_ne_bytes()).expect("an eventfd takes a write");
    }

    /// The callback's part.
    pub(crate) fn read(&self) {
        if self.removed.load(Ordering::SeqCst) {
            self.totals.after_removal.fetch_add(1, Ordering::SeqCst);
        }
        self.drain();
    }

    fn drain(&self) {
        let mut number = [0; 8];
        match rustix::io::read(&self.fd, &mut number) {
            Ok(8) => {
                let number = u64::from_ne_bytes(number);
                self.read.fetch_add(number, Ordering::SeqCst);
            }
            // A nested poll, or a report that it is writable.
            Err(Errno::AGAIN) => {}
            other => panic!("an eventfd answers {other:?}"),
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.written.load(Ordering::SeqCst) == self.read.load(Ordering::SeqCst)
    }

    /// Its handler was dropped: in the home's own thread no call comes from now on, elsewhere none
    /// once the home has turned.
    pub(crate) fn removed(self: &Arc<Self>, home: &AioContext) {
        if home.is_home() {
            self.removed.store(true, Ordering::SeqCst);
        } else {
            let channel = Arc::clone(self);
            home.schedule_oneshot("it has turned", move || {
                channel.removed.store(true, Ordering::SeqCst);
            });
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.drain(); // What came too late for its handler.
        let counts = [&self.written, &self.read].map(|count| count.load(Ordering::SeqCst));
        self.totals.written.fetch_add(counts[0], Ordering::SeqCst);
        self.totals.read.fetch_add(counts[1], Ordering::SeqCst);
        self.totals.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a handler owns.
pub(crate) struct Watched(pub(crate) Arc<Channel>);

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}
