//! Descriptor handlers (SPEC H1 to H5).
//!
//! The home thread owns the table. A handle names an entry by a token (index and generation), so
//! that an event or an update that arrives after the removal finds nothing, also when the
//! descriptor's number is in use again.
//!
//! Invariants
//! - I1 A handler's callbacks run only while `removed` is false, only in the home thread; those of a
//!   handler that other threads may change, only for what its word says at that moment.
//! - I2 An entry leaves the table in the home thread; whoever is inside its callback keeps it by a
//!   count of its own.

pub(super) mod remote;
mod state;

use core::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

use slab::Slab;

use super::polling::PollState;
use crate::sys::eventfd;

/// poll(2)'s bits for what a read handler sees.
pub(crate) const READ_EVENTS: u32 = 0x001 | 0x010 | 0x008; // POLLIN, POLLHUP, POLLERR
/// poll(2)'s bits for what a write handler sees.
pub(crate) const WRITE_EVENTS: u32 = 0x004 | 0x008; // POLLOUT, POLLERR
/// POLLIN.
pub(crate) const POLLIN: u32 = 0x001;
/// POLLOUT.
pub(crate) const POLLOUT: u32 = 0x004;
/// POLLHUP, POLLERR: reported whether asked for or not.
pub(crate) const ALWAYS: u32 = 0x010 | 0x008;

/// Not poll(2)'s: busy polling has found it.
pub(super) const POLLED: u32 = 1 << 30;

/// Which conditions a handler waits for.
///
/// ```
/// use corio::context::Interest;
/// let both = Interest { read: true, ..Interest::WRITE };
/// assert!(both.read && both.write);
/// assert_eq!(Interest::default(), Interest { read: false, write: false });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Readable, hung up or failed: the read callback runs.
    pub read: bool,
    /// Writable or failed: the write callback runs.
    pub write: bool,
}

impl Interest {
    /// Readable, hung up or failed.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Writable or failed.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };

    /// What a monitor is to watch for it, in poll(2)'s bits.
    pub(super) fn events(self) -> u32 {
        (u32::from(self.read) * POLLIN) | (u32::from(self.write) * POLLOUT)
    }

    /// What the write callback runs for.
    ///
    /// A hang-up is reported whether asked for or not. Without a read handler it is the write
    /// handler's, or a level-triggered monitor would report it for ever, and a full Unix socket that
    /// was shut down would never tell.
    #[inline]
    fn write_answers(self) -> u32 {
        match self {
            Self { write: false, .. } => 0,
            Self { read: true, .. } => WRITE_EVENTS,
            Self { read: false, .. } => WRITE_EVENTS | ALWAYS,
        }
    }

    /// What any callback runs for.
    #[inline]
    fn answers(self) -> u32 {
        (u32::from(self.read) * READ_EVENTS) | self.write_answers()
    }

    /// Which of the two has come.
    #[inline]
    fn met_by(self, revents: u32) -> Readiness {
        Readiness {
            read: self.read && revents & READ_EVENTS != 0,
            write: revents & self.write_answers() != 0,
        }
    }
}

/// What runs when a handler's descriptor is ready.
pub(super) type Callback = Box<dyn Fn(Readiness)>;

/// Why a handler runs.
///
/// ```
/// use corio::context::Interest;
/// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc};
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let (ours, theirs) = UnixStream::pair()?;
///     let why = Rc::new(Cell::new(None));
///     let seen = Rc::clone(&why);
///     let local = context.local().expect("this thread is its home");
///     let _handler = local.add_handler(ours, Interest::READ, move |why| seen.set(Some(why)))?;
///     drop(theirs); // Hung up: reading would not wait.
///     while why.get().is_none() {
///         context.poll(true)?;
///     }
///     let why = why.get().expect("it has run");
///     assert!(why.read && !why.write);
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Readable, hung up or failed.
    pub read: bool,
    /// Writable or failed.
    pub write: bool,
}

pub(super) struct Entry {
    pub(super) fd: RawFd,
    pub(super) token: u64,
    pub(super) interest: Cell<Interest>,
    pub(super) removed: Cell<bool>,
    /// What the monitor has been told to watch; the monitor's own.
    pub(super) armed: Cell<u32>,
    /// What it is busy-polled by, if it ever was to be.
    pub(super) poll: OnceCell<Box<PollState>>,
    /// How it is counted in `Polling`.
    pub(super) obstructs: Cell<bool>,
    pub(super) able: Cell<bool>,
    /// Busy polling has found it in this turn.
    pub(super) poll_found: Cell<bool>,
    call: Call,
}

/// Whose callback it is.
pub(super) enum Call {
    /// The home's own.
    Local(Callback),
    /// The home's own, of an event notifier, which is cleared before.
    Notifier(Box<dyn Fn()>),
    /// One that any thread may change. Boxed, for it is larger than the others: of a thousand
    /// handlers, a cache holds those that are small.
    Remote(Box<remote::Adopted>),
    /// Nobody's: there is nothing to call.
    Own(Own),
}

/// What the context itself watches. That it comes is no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// Its notifier.
    Notifier,
    /// The timerfd of a foreign loop, which is set anew by what sets it.
    Deadline,
}

impl Entry {
    /// Whether it outlives the home.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.call, Call::Remote(_))
    }

    /// Which of those it is that the context itself watches, if it is one.
    #[inline]
    pub(super) fn own(&self) -> Option<Own> {
        match self.call {
            Call::Own(own) => Some(own),
            _ => None,
        }
    }

    /// Whether it is enough to be told of what comes: what is there is taken in by each call, or
    /// each wait that it ends.
    ///
    /// Whoever changes what it waits for has the monitor updated at once, which asks what is there.
    pub(super) fn is_notifier(&self) -> bool {
        matches!(self.call, Call::Notifier(_) | Call::Own(Own::Notifier))
    }

    #[allow(unsafe_code)] // A number that is known to be open.
    fn borrow_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: called while `removed` is false (I1): until it is set, the handler keeps it open.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// What the monitor is to watch, in poll(2)'s bits.
    pub(super) fn events(&self) -> u32 {
        if self.removed.get() {
            0
        } else {
            self.interest.get().events()
        }
    }

    /// What it is to be called for now; None if it is removed.
    fn wanted(&self) -> Option<Interest> {
        match &self.call {
            _ if self.removed.get() => None,
            Call::Local(_) | Call::Notifier(_) | Call::Own(_) => Some(self.interest.get()),
            Call::Remote(adopted) => adopted.shared.state.wanted(),
        }
    }

    /// Runs the callback if what happened is what it waits for. True: it ran.
    #[inline(always)] // As `Local::wait_in_monitor`.
    pub(super) fn dispatch(&self, revents: u32) -> bool {
        let was_polled = revents & POLLED != 0 && self.dispatch_polled();
        // What has just run may have removed it (I1).
        let Some(interest) = self.wanted() else {
            return was_polled;
        };
        if revents & interest.answers() == 0 {
            return was_polled;
        }
        if let Call::Notifier(callback) = &self.call {
            if !eventfd::clear(self.borrow_fd()) {
                return was_polled; // Somebody else has cleared it.
            }
            callback();
            return true;
        }
        let readiness = interest.met_by(revents);
        match &self.call {
            Call::Local(callback) => callback(readiness),
            Call::Remote(adopted) => (adopted.payload.callback)(readiness),
            Call::Notifier(_) | Call::Own(_) => return was_polled, // There is nothing to call.
        }
        true
    }

    /// Runs what takes an event that polling has found. True: it ran.
    #[cold]
    fn dispatch_polled(&self) -> bool {
        self.wanted()
            .is_some_and(|interest| interest != Interest::default())
            && self.poll.get().is_some_and(|state| state.run_ready())
    }
}

/// Where in the table the entry of a token is.
pub(super) fn index_of(token: u64) -> usize {
    usize::try_from(token & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

/// The home thread's handlers.
#[derive(Default)]
pub(super) struct Table {
    entries: RefCell<Slab<Rc<Entry>>>,
    generation: Cell<u32>,
}

impl Table {
    /// Adds an entry; its token.
    pub(super) fn insert(&self, fd: RawFd, call: Call) -> io::Result<Rc<Entry>> {
        let mut entries = self.entries.borrow_mut();
        let vacant = entries.vacant_entry();
        // 31 bits each: a token must leave its top bit free for the ring's mark.
        let generation = self.generation.get().wrapping_add(1) & 0x7fff_ffff;
        self.generation.set(generation);
        let index = u32::try_from(vacant.key()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let entry = Rc::new(Entry {
            fd,
            token: u64::from(generation) << 32 | u64::from(index),
            interest: Cell::new(Interest::default()),
            removed: Cell::new(false),
            armed: Cell::new(0),
            poll: OnceCell::new(),
            obstructs: Cell::new(false),
            able: Cell::new(false),
            poll_found: Cell::new(false),
            call,
        });
        vacant.insert(Rc::clone(&entry));
        Ok(entry)
    }

    /// The entry of a token, if it is still there.
    pub(super) fn get(&self, token: u64) -> Option<Rc<Entry>> {
        self.entries
            .borrow()
            .get(index_of(token))
            .filter(|entry| entry.token == token)
            .cloned()
    }

    /// Takes an entry out. The caller drops it outside of the table's borrow.
    pub(super) fn remove(&self, token: u64) -> Option<Rc<Entry>> {
        let entry = self.get(token)?;
        entry.removed.set(true);
        self.entries.borrow_mut().try_remove(index_of(token))
    }

    /// All entries.
    pub(super) fn all(&self) -> Vec<Rc<Entry>> {
        let entries = self.entries.borrow();
        entries.iter().map(|(_, entry)| Rc::clone(entry)).collect()
    }

    /// All entries, taken out: at the end of a home.
    #[must_use]
    pub(super) fn clear(&self) -> Vec<Rc<Entry>> {
        let entries = core::mem::take(&mut *self.entries.borrow_mut());
        let all = entries.into_iter().map(|(_, entry)| entry);
        all.inspect(|entry| entry.removed.set(true)).collect()
    }
}
