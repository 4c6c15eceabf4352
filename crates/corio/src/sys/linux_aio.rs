//! Linux AIO (io_setup(2)): one context, requests handed to it many at a time, and the ring in user
//! space in which their completions appear.
//!
//! ```text
//!   the ring, mapped by the kernel at the address that is the context's number
//!   ┌────────┬─────────┬─────────┬───┬─────────┐
//!   │ header │ event 0 │ event 1 │   │ event n │    head: the next to be taken; ours to write
//!   └────────┴─────────┴─────────┴───┴─────────┘    tail: the next to be filled; the kernel's
//! ```
//!
//! The manual pages do not describe the ring; its header names its own version. A header that is
//! not understood leaves io_getevents(2), which does the same by a system call.
//!
//! Invariants
//! - I1 Only the home thread takes events (`!Sync`), and nothing but this takes any: between a load
//!   of `tail` and the store of `head` the events between the two are ours.
//! - I2 The ring stays mapped until io_destroy(2), which is called once, in `drop`.

#![allow(unsafe_code)] // The calls have no wrapper, and the ring is shared memory.

use core::cell::{RefCell, UnsafeCell};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
// Shared with the kernel, which no model stands in for.
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::valgrind;
use crate::error::Error;

/// What a request does: linux/aio_abi.h's IOCB_CMD_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    SyncData = 3,
    Readv = 7,
    Writev = 8,
}

/// IOCB_FLAG_RESFD: a completion adds to an eventfd.
const NOTIFY: u32 = 1;
/// What a ring says of itself that is understood.
const MAGIC: u32 = 0xa10a_10a1;
/// How many events one io_getevents takes.
const FETCH_MAX: usize = 32;

/// A request: linux/aio_abi.h's `struct iocb`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Iocb {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    flags: i32,
    #[cfg(target_endian = "big")]
    key: u32,
    command: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    aio_flags: u32,
    eventfd: u32,
}

impl Iocb {
    /// `count` bytes, or vectors, at `buf`; nothing of it for a sync.
    pub(crate) fn new(
        command: Command,
        fd: BorrowedFd<'_>,
        buf: *const (),
        count: usize,
        offset: u64,
    ) -> Self {
        Self {
            data: 0,
            key: 0,
            flags: 0,
            command: command as u16,
            priority: 0,
            fd: fd.as_raw_fd().cast_unsigned(),
            buf: buf.expose_provenance() as u64,
            count: count as u64,
            // Larger ones are negative to the kernel, which refuses them.
            offset: offset.cast_signed(),
            reserved: 0,
            aio_flags: 0,
            eventfd: 0,
        }
    }

    /// With RWF_* flags.
    pub(crate) fn flags(mut self, flags: i32) -> Self {
        self.flags = flags;
        self
    }
}

/// linux/aio_abi.h's `struct io_event`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// A completion: the request's name, and a count or an errno negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: u64,
    pub(crate) result: i64,
}

impl From<RawEvent> for Event {
    fn from(raw: RawEvent) -> Self {
        Self {
            name: raw.data,
            result: raw.result,
        }
    }
}

/// What lies before the events.
#[repr(C)]
struct Header {
    id: u32,
    events: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

impl Header {
    /// Whether events can be taken by `head` and `tail`.
    fn is_understood(&self) -> bool {
        self.magic == MAGIC
            && self.incompat_features == 0
            && self.events > 0
            && usize::try_from(self.header_length) == Ok(size_of::<Header>())
    }
}

/// How events are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From the ring, if it is understood.
    Ring,
    /// By io_getevents(2).
    Calls,
}

impl Source {
    /// The ring; valgrind does not see what the kernel writes there.
    pub(crate) fn preferred() -> Self {
        if valgrind::is_watching() {
            Self::Calls
        } else {
            Self::Ring
        }
    }
}

enum Events {
    Ring(Ring),
    Calls(RefCell<VecDeque<Event>>),
}

/// The ring of a context, for as long as that is (I2).
struct Ring {
    header: NonNull<Header>,
    events: NonNull<UnsafeCell<RawEvent>>,
    count: u32,
}

/// A context of Linux AIO.
pub(crate) struct Context {
    number: libc::c_ulong,
    /// Not `Sync` (I1).
    events: Events,
}

/// A call by number; the errno is kept.
fn result_of(answer: libc::c_long) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

impl Context {
    /// A context with room for `entries` requests in flight.
    ///
    /// # Errors
    /// EAGAIN when fs.aio-max-nr is reached; ENOSYS and EPERM where it is not there, or refused.
    pub(crate) fn new(entries: u32, source: Source) -> Result<Self, Error> {
        let mut number: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number through the pointer.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, entries, &raw mut number) };
        result_of(made).map_err(|source| Error::Os {
            op: match source.raw_os_error() {
                Some(libc::EAGAIN) => "io_setup (is fs.aio-max-nr reached?)",
                _ => "io_setup",
            },
            source,
        })?;
        let mut context = Self {
            number,
            events: Events::Calls(RefCell::default()),
        };
        if source == Source::Ring {
            // SAFETY: the kernel has just made the context, whose number is its ring's address.
            if let Some(ring) = unsafe { Ring::at(number) } {
                context.events = Events::Ring(ring);
            }
        }
        context.try_out()?;
        Ok(context)
    }

    /// A filter may let a context be made and then not be used.
    fn try_out(&self) -> Result<(), Error> {
        // SAFETY: no request is handed over.
        unsafe { self.submit(&[]) }.map_err(|source| Error::Os {
            op: "io_submit",
            source,
        })?;
        if let Events::Calls(fetched) = &self.events {
            self.fetch(&mut fetched.borrow_mut())
                .map_err(|source| Error::Os {
                    op: "io_getevents",
                    source,
                })?;
        }
        Ok(())
    }

    /// Hands requests over; how many from the first on were taken. An error is the first one's, or
    /// of the call.
    ///
    /// # Safety
    /// Each points to an `Iocb` that was made known to this context by [`address`](Self::address)
    /// and stays in place, as does all that it points to, unaliased as the operation demands, until
    /// its event has been taken, or it was not taken by the kernel.
    pub(crate) unsafe fn submit(&self, batch: &[*mut Iocb]) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        result_of(unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.number,
                batch.len(),
                batch.as_ptr(),
            )
        })
    }

    /// Has a request's completion bear `name` and add to `eventfd`.
    pub(crate) fn address(iocb: &mut Iocb, name: u64, eventfd: BorrowedFd<'_>) {
        iocb.data = name;
        iocb.aio_flags |= NOTIFY;
        iocb.eventfd = eventfd.as_raw_fd().cast_unsigned();
    }

    /// Asks for a request back, whose event comes in any case, unless this returns it: so the
    /// manual page has it; since Linux 3.13 none does.
    ///
    /// # Safety
    /// `iocb` has been submitted, and its event not been taken.
    pub(crate) unsafe fn cancel(&self, iocb: *mut Iocb) -> Option<Event> {
        let mut event = MaybeUninit::<RawEvent>::uninit();
        // SAFETY: the kernel looks for the request by its address, and reads its key there; it
        // writes an event, or none.
        let answer =
            unsafe { libc::syscall(libc::SYS_io_cancel, self.number, iocb, event.as_mut_ptr()) };
        // SAFETY: 0 says that it was written.
        (answer == 0).then(|| unsafe { event.assume_init() }.into())
    }

    /// True if a completion can be taken without a system call.
    pub(crate) fn has_completion(&self) -> bool {
        self.completions() > 0
    }

    /// How many can be taken without a system call; there may be more, unless
    /// [all are seen](Self::is_seen_from_user_space).
    pub(crate) fn completions(&self) -> usize {
        match &self.events {
            Events::Ring(ring) => ring.len(),
            Events::Calls(fetched) => fetched.borrow().len(),
        }
    }

    /// Whether [`has_completion`](Self::has_completion) sees all there is.
    pub(crate) fn is_seen_from_user_space(&self) -> bool {
        matches!(self.events, Events::Ring(_))
    }

    /// Takes the oldest completion.
    ///
    /// # Errors
    /// io_getevents(2)'s, where it is used.
    pub(crate) fn take(&self) -> io::Result<Option<Event>> {
        match &self.events {
            Events::Ring(ring) => Ok(ring.take()),
            Events::Calls(fetched) => {
                let mut fetched = fetched.borrow_mut();
                if fetched.is_empty() {
                    self.fetch(&mut fetched)?;
                }
                Ok(fetched.pop_front())
            }
        }
    }

    fn fetch(&self, into: &mut VecDeque<Event>) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<RawEvent>::uninit() }; FETCH_MAX];
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes at most so many events, and reads the time.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.number,
                0 as libc::c_long,
                FETCH_MAX,
                events.as_mut_ptr(),
                &raw const at_once,
            )
        };
        match result_of(answer) {
            Ok(count) => {
                // SAFETY: the kernel has written so many.
                let taken = events[..count]
                    .iter()
                    .map(|event| Event::from(unsafe { event.assume_init() }));
                into.extend(taken);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Context {
    /// Waits for what is in flight: who cannot have that forgets the context.
    fn drop(&mut self) {
        // SAFETY: nothing uses the ring after this (I2).
        unsafe { libc::syscall(libc::SYS_io_destroy, self.number) };
    }
}

impl Ring {
    /// The ring of a context, if it is understood.
    ///
    /// # Safety
    /// `number` is a context's, which stays for as long as this.
    unsafe fn at(number: libc::c_ulong) -> Option<Self> {
        let address = usize::try_from(number).ok()?;
        let header = NonNull::new(core::ptr::with_exposed_provenance_mut::<Header>(address))?;
        if !header.is_aligned() {
            return None;
        }
        // SAFETY: the caller's promise: at least a page is mapped there. The kernel writes nothing
        // but `head` and `tail` after it has made the ring.
        let seen = unsafe { header.as_ref() };
        seen.is_understood().then(|| Self {
            header,
            // SAFETY: the events follow the header in the same mapping.
            events: unsafe { header.add(1) }.cast(),
            count: seen.events,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: I2; as in `at`.
        unsafe { self.header.as_ref() }
    }

    /// How many events there are to take.
    fn len(&self) -> usize {
        let header = self.header();
        // Ours to write.
        let head = header.head.load(Ordering::Relaxed);
        let tail = header.tail.load(Ordering::Relaxed);
        let len = match tail.checked_sub(head) {
            Some(len) => len,
            None => tail.wrapping_add(self.count).wrapping_sub(head), // Round the end.
        };
        len as usize
    }

    fn take(&self) -> Option<Event> {
        let header = self.header();
        // Ours to write (I1).
        let head = header.head.load(Ordering::Relaxed);
        // Acquire pairs with the kernel's write barrier between filling an event and moving `tail`
        // past it.
        if head == header.tail.load(Ordering::Acquire) {
            return None;
        }
        let at = head % self.count;
        // SAFETY: less than the ring's events, which lie there (I2), and filled: the kernel does not
        // write it again before `head` has passed it.
        let event = unsafe { *self.events.as_ptr().add(at as usize).cast::<RawEvent>() };
        // Release pairs with the kernel's load of `head`, after which it may fill the place anew.
        header.head.store((at + 1) % self.count, Ordering::Release);
        Some(event.into())
    }
}

impl core::fmt::Debug for Context {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Context")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
