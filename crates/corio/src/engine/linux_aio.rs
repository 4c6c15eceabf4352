//! The Linux AIO engine: requests for files opened with O_DIRECT, whose completions add to an
//! eventfd in the home's loop (SPEC E2).
//!
//! ```text
//!   request ──▶ queue (FIFO) ──io_submit──▶ kernel ──▶ ring of completions ──▶ coroutine
//!                 │               ▲                     eventfd: tells the loop
//!      cancel ◀───┘               │
//!          at most `aio_max_batch` at once: when so many are queued, when the loop
//!          is about to wait, when a gather ends, and while completions are taken when
//!          as many are queued as the device has; the rest waits for room in the kernel
//! ```
//!
//! For O_DIRECT only: on a file of the page cache io_submit(2) is the whole system call, which
//! would keep the loop from turning for as long as it takes. What Linux AIO has no command for
//! (fallocate), or this kernel has not (fdatasync, before Linux 4.18), goes to a worker.
//!
//! Invariants
//! - I1 A request's record lies in the frame of the coroutine that made it, which parks
//!   uninterruptibly until `result` is there: record and buffers outlive the kernel's use of them.
//! - I2 A record is in the queue, or in the kernel and counted in `in_kernel`, or has its result;
//!   one after the other. Who moves it from one to the next is in the home thread.
//! - I3 A coroutine that is cancelled meanwhile takes its request out of the queue, or asks the
//!   kernel for it and waits for its completion all the same.
//! - I4 With requests in the kernel the context is never destroyed, which would wait for them: a
//!   frame as in I1 has a share of the home's engine, and is leaked where it does not end.
//! - I5 `in_kernel` is at most what the context was made for: the ring of completions never runs
//!   over.

#![allow(unsafe_code)] // Requests point into the coroutine's frame.

use core::cell::{Cell, RefCell, UnsafeCell};
use core::ptr;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use smallvec::SmallVec;

use super::Request;
use super::request::{is_cancelled, settle, trace_completed, trace_submitted};
use super::uring::batch_beside;
use crate::context::{Drain, Interest, Local, LocalHandler};
use crate::error::Error;
use crate::schedule::{self, CoWaker};
use crate::sys::eventfd::EventFd;
use crate::sys::linux_aio::{Command, Context, Event, Iocb, Source};
use crate::sys::uring;
use crate::track;

/// How many requests the kernel has at once; more wait in the queue. Each context counts so many
/// against fs.aio-max-nr, 65,536 for the whole machine unless it was raised.
const ENTRIES: usize = 256;

/// How many requests are handed over at once at most, unless something else is set (SPEC E2).
const BATCH_DEFAULT: usize = 32;

/// I1, I2.
struct Record {
    iocb: UnsafeCell<Iocb>,
    /// Its place in the order of the queue.
    number: Cell<u64>,
    result: Cell<Option<i64>>,
    waker: CoWaker,
}

/// A home's context of Linux AIO (I4).
pub(super) struct LinuxAio {
    core: Rc<Core>,
    /// The eventfd's; what it calls has a share of `core`.
    _handler: LocalHandler,
}

struct Core {
    context: Context,
    eventfd: EventFd,
    /// Not in the kernel yet, oldest first; numbers ascend.
    queue: RefCell<VecDeque<*const Record>>,
    next_number: Cell<u64>,
    in_kernel: Cell<usize>,
    /// How many go at once if that is set, else 0.
    batch_max: Cell<usize>,
    /// The kernel has no IOCB_CMD_FDSYNC.
    no_sync: Cell<bool>,
    /// That completions cannot be taken has been said.
    has_failed: Cell<bool>,
}

impl LinuxAio {
    /// A context whose completions this home's loop takes.
    ///
    /// # Errors
    /// The kernel has no Linux AIO, refuses it, or fs.aio-max-nr is reached; no descriptor.
    pub(super) fn new(local: &Local) -> Result<Self, Error> {
        Self::with_source(local, Source::preferred())
    }

    fn with_source(local: &Local, source: Source) -> Result<Self, Error> {
        let entries = u32::try_from(ENTRIES).unwrap_or(u32::MAX);
        let core = Rc::new(Core {
            context: Context::new(entries, source)?,
            eventfd: EventFd::new()?,
            queue: RefCell::default(),
            next_number: Cell::new(0),
            in_kernel: Cell::new(0),
            batch_max: Cell::new(0),
            no_sync: Cell::new(false),
            has_failed: Cell::new(false),
        });
        let refused = |source| Error::Os {
            op: "watching Linux AIO's eventfd",
            source,
        };
        let of_handler = Rc::clone(&core);
        let handler = local
            .add_handler(&core.eventfd, move |_| of_handler.reap())
            .map_err(refused)?;
        handler.set_interest(Interest::READ).map_err(refused)?;
        if core.context.is_seen_from_user_space() {
            let (of_poll, of_ready) = (Rc::clone(&core), Rc::clone(&core));
            handler.set_poll(
                Box::new(move || of_poll.context.has_completion()),
                Box::new(move || of_ready.reap()),
            );
        }
        let submit = Drain {
            run: submit_of,
            with: Rc::as_ptr(&core).cast(),
        };
        // SAFETY: `drop` takes it back before `core` goes.
        unsafe { local.set_submit(Some(submit)) };
        Ok(Self {
            core,
            _handler: handler,
        })
    }

    /// Hands over what has gathered.
    pub(super) fn submit(&self) {
        self.core.submit();
    }

    /// How many requests wait to be handed over.
    #[cfg(all(test, not(loom)))]
    pub(super) fn queued(&self) -> usize {
        self.core.queue.borrow().len()
    }
}

/// # Safety
/// `core` is a living `Core`'s.
unsafe fn submit_of(core: *const ()) {
    // SAFETY: the caller's promise.
    let _ = unsafe { &*core.cast::<Core>() }.submit(); // Refused, it is tried again soon.
}

impl Drop for LinuxAio {
    fn drop(&mut self) {
        if let Some(local) = Local::current() {
            // SAFETY: nothing is run any more.
            unsafe { local.set_submit(None) };
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        debug_assert_eq!(self.in_kernel.get(), 0, "I4");
    }
}

/// What there is no command for.
pub(super) enum Carried {
    Done(io::Result<usize>),
    /// Another engine has to do it.
    Not,
}

/// Runs a request; the caller has checked that there is a coroutine to park.
pub(super) fn run(
    local: &Local,
    aio: &LinuxAio,
    fd: BorrowedFd<'_>,
    request: &mut Request<'_, '_>,
    batch_max: usize,
) -> Carried {
    let core = &*aio.core;
    core.batch_max.set(batch_max);
    loop {
        let is_sync = matches!(request, Request::SyncData);
        let Some(iocb) = iocb(fd, request).filter(|_| !(is_sync && core.no_sync.get())) else {
            return Carried::Not;
        };
        let result = match core.run_once(local, fd, iocb) {
            Ok(result) => result,
            Err(error) => return Carried::Done(Err(error)),
        };
        // An old kernel, or a file system that cannot be synced; fdatasync(2) knows which.
        if is_sync && result == -i64::from(libc::EINVAL) {
            core.no_sync.set(true);
            return Carried::Not;
        }
        if let Some(outcome) = settle(result) {
            return Carried::Done(outcome);
        }
    }
}

impl Core {
    fn run_once(&self, local: &Local, fd: BorrowedFd<'_>, iocb: Iocb) -> io::Result<i64> {
        let Some(waker) = CoWaker::current() else {
            return Err(io::Error::other("a disk request outside a coroutine"));
        };
        let record = Record {
            iocb: UnsafeCell::new(iocb),
            number: Cell::new(0),
            result: Cell::new(None),
            waker,
        };
        let id = ptr::from_ref(&record).addr() as u64;
        if track::is_enabled() {
            trace_submitted(id, fd);
        }
        // SAFETY: I1: this frame, with the record, and the buffers that the request borrows stay
        // until the loop below has seen the result.
        unsafe { self.push(&record) };
        local.submit_soon();
        local.hurry();
        let mut asked = false;
        loop {
            if let Some(result) = record.result.get() {
                if track::is_enabled() {
                    trace_completed(id, result);
                }
                return Ok(result);
            }
            if !asked && is_cancelled() {
                asked = true;
                self.cancel(&record);
                continue;
            }
            schedule::park_uninterruptible();
        }
    }

    /// Queues a request, and hands the batch over if it is full.
    ///
    /// # Safety
    /// The record and all that its request points to stay in place, unaliased as the operation
    /// demands, until it has its result.
    unsafe fn push(&self, record: &Record) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        record.number.set(number);
        let address = ptr::from_ref(record);
        // SAFETY: nobody else has the record yet.
        let iocb = unsafe { &mut *record.iocb.get() };
        let name = address.expose_provenance() as u64;
        Context::address(iocb, name, self.eventfd.as_fd());
        let queued = {
            let mut queue = self.queue.borrow_mut();
            queue.push_back(address);
            queue.len()
        };
        if queued.min(self.room()) >= self.batch_max() {
            self.submit();
        }
    }

    fn batch_max(&self) -> usize {
        match self.batch_max.get() {
            0 => BATCH_DEFAULT,
            set => set,
        }
    }

    /// How many more the kernel may have (I5).
    fn room(&self) -> usize {
        ENTRIES.saturating_sub(self.in_kernel.get())
    }

    /// Hands over what is queued, for as long as there is room for it. False: the kernel takes no
    /// more at present.
    fn submit(&self) -> bool {
        loop {
            let room = self.room();
            let batch: SmallVec<[*mut Iocb; BATCH_DEFAULT]> = {
                let queue = self.queue.borrow();
                let some = queue.iter().take(room.min(self.batch_max()));
                // SAFETY: I1, I2: the record is in place.
                some.map(|record| unsafe { (**record).iocb.get() })
                    .collect()
            };
            if batch.is_empty() {
                return true;
            }
            // SAFETY: I1.
            match unsafe { self.context.submit(&batch) } {
                Ok(taken) => {
                    self.queue.borrow_mut().drain(..taken);
                    self.in_kernel.set(self.in_kernel.get() + taken);
                }
                // The kernel is short of something: what is in it has to complete, or time to pass.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                    if let Some(local) = Local::current() {
                        local.submit_soon();
                    }
                    return false;
                }
                // The first one's fault; what follows is tried without it.
                Err(error) => self.refuse_first(&error),
            }
        }
    }

    /// The kernel does not take the oldest request.
    #[cold]
    fn refuse_first(&self, error: &io::Error) {
        let Some(record) = self.queue.borrow_mut().pop_front() else {
            return;
        };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // SAFETY: I1, I2.
        let record = unsafe { &*record };
        let waker = record.waker;
        record.result.set(Some(-i64::from(errno)));
        // Not entered here: whoever submits may be in the middle of something.
        waker.wake();
    }

    /// See I3.
    fn cancel(&self, record: &Record) {
        let mut queue = self.queue.borrow_mut();
        // SAFETY: I1, I2: what is queued is in place.
        let number = |queued: &*const Record| unsafe { (**queued).number.get() };
        if let Ok(at) = queue.binary_search_by_key(&record.number.get(), number) {
            queue.remove(at);
            record.result.set(Some(-i64::from(libc::ECANCELED)));
            return;
        }
        drop(queue);
        // SAFETY: I2: it is in the kernel, or its event waits to be taken.
        if let Some(event) = unsafe { self.context.cancel(record.iocb.get()) } {
            self.complete(event);
        }
    }

    /// Takes what has completed. Outside any coroutine.
    fn reap(&self) {
        // Before the look: what completes after it adds to the eventfd again.
        self.eventfd.clear();
        let again = Again(&self.eventfd);
        let mut feeds = true;
        // What is handed over and completes meanwhile waits for the next turn, so that it comes; one
        // more look finds the end.
        for _ in 0..=self.in_kernel.get() {
            match self.context.take() {
                Ok(Some(event)) => {
                    self.complete(event);
                    feeds = feeds && self.feed();
                }
                Ok(None) => {
                    core::mem::forget(again);
                    break;
                }
                // They are there all the same: it is tried again in each turn.
                Err(error) => {
                    if !self.has_failed.replace(true) {
                        tracing::error!("completions of Linux AIO cannot be taken: {error}");
                    }
                    break;
                }
            }
        }
        if !self.queue.borrow().is_empty()
            && let Some(local) = Local::current()
        {
            local.submit_soon();
        }
    }

    /// Hands over what is queued once it is as much as the device has, unless it is set how many go
    /// at once. All together after the last completion is taken, the device would have nothing to do
    /// until then, complete all together as well, and so on for ever. False: the kernel takes no more
    /// at present.
    fn feed(&self) -> bool {
        let in_kernel = self.in_kernel.get();
        let in_device = in_kernel.saturating_sub(self.context.completions());
        let enough = match self.batch_max.get() {
            0 => batch_beside(in_device),
            set => set,
        };
        let ready = self.queue.borrow().len().min(self.room());
        ready < enough || self.submit()
    }

    fn complete(&self, event: Event) {
        self.in_kernel.set(self.in_kernel.get() - 1);
        let address = usize::try_from(event.name).unwrap_or(0);
        let record = ptr::with_exposed_provenance::<Record>(address);
        // SAFETY: I1: it is in place until it has its result.
        let record = unsafe { &*record };
        let waker = record.waker;
        record.result.set(Some(event.result));
        // The coroutine may return from its frame in here: `record` is not touched again.
        waker.wake_here();
    }
}

/// Has the loop look again, unless it is forgotten: completions are left.
struct Again<'a>(&'a EventFd);

impl Drop for Again<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// The request as Linux AIO has it, if it does.
fn iocb(fd: BorrowedFd<'_>, request: &mut Request<'_, '_>) -> Option<Iocb> {
    // The kernel takes at most IOV_MAX vectors: the rest is continued by the caller.
    let vectors = |count: usize| count.min(1024);
    Some(match request {
        Request::Read { bufs, offset } => match &mut **bufs {
            [one] => {
                let buf = one.as_mut_ptr().cast_const().cast();
                Iocb::new(Command::Read, fd, buf, one.len(), *offset)
            }
            many => {
                let buf = many.as_mut_ptr().cast_const().cast();
                Iocb::new(Command::Readv, fd, buf, vectors(many.len()), *offset)
            }
        },
        Request::Write {
            bufs,
            offset,
            durable,
        } => {
            if *durable {
                uring::before_durable_write(fd, bufs, *offset);
            }
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match &**bufs {
                [one] => {
                    let buf = one.as_ptr().cast();
                    Iocb::new(Command::Write, fd, buf, one.len(), *offset).flags(flags)
                }
                many => {
                    let count = vectors(many.len());
                    Iocb::new(Command::Writev, fd, many.as_ptr().cast(), count, *offset)
                        .flags(flags)
                }
            }
        }
        Request::SyncData => {
            uring::before_sync(fd);
            Iocb::new(Command::SyncData, fd, ptr::null(), 0, 0)
        }
        Request::Allocate { .. } => return None,
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
