//! The context's io_uring, shared by descriptor monitoring and disk requests (SPEC M5).
//!
//! A request is named by the address of a [`Completion`] that its owner keeps in place until the
//! completion has been dispatched. Descriptor polls are named by their handler's token with bit 0
//! set, which no address has.
//!
//! Invariants
//! - I1 Every pushed request and cancellation has exactly one final completion, and `in_flight`
//!   counts those that have not been taken: without any in flight the epoll monitor neither submits
//!   nor looks.
//! - I2 A completion's record is touched once, by `dispatch`, and never after its callback
//!   returned.

#![allow(unsafe_code)] // User data is turned back into the record's address.

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use crate::error::Error;
use crate::sys::uring::{self, Kind, opcode, squeue};

/// User data of requests whose completion says nothing.
const IGNORED: u64 = 0;
/// User data of cancellations, whose completion only counts; no address.
const CANCELLATION: u64 = 2;
/// Marks user data that is a handler's token.
const TOKEN_BIT: u64 = 1;

/// What a request's owner keeps in place until the callback has run; the first field of the owner's
/// own record.
#[repr(C)]
pub(crate) struct Completion {
    /// Called in the home thread, outside any coroutine, with this record and the kernel's result.
    callback: unsafe fn(*const Completion, i32),
}

impl Completion {
    /// # Safety
    /// `callback` may be called once with the address of this record, as [`ContextRing::push`]
    /// promises.
    pub(crate) const unsafe fn new(callback: unsafe fn(*const Completion, i32)) -> Self {
        Self { callback }
    }
}

/// A context's ring. Home thread.
pub(crate) struct ContextRing {
    ring: uring::Ring,
    in_flight: Cell<usize>,
    /// Polls and removals for which the kernel had no room, oldest first. They point to nothing.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    arrived: RefCell<VecDeque<(*const Completion, i32)>>,
}

impl ContextRing {
    pub(crate) fn new(kind: Kind) -> Result<Self, Error> {
        let ring = uring::Ring::new(kind)?;
        Ok(Self {
            ring,
            in_flight: Cell::new(0),
            backlog: RefCell::default(),
            arrived: RefCell::new(VecDeque::new()),
        })
    }

    /// Queues a disk request. EAGAIN: the kernel takes no more at present.
    ///
    /// # Safety
    /// `completion` and all that the request points to stay in place, unaliased as the operation
    /// demands, until the callback has been called.
    pub(crate) unsafe fn push(
        &self,
        entry: squeue::Entry,
        completion: *const Completion,
    ) -> io::Result<()> {
        let entry = entry.user_data(completion.addr() as u64);
        completion.expose_provenance();
        // SAFETY: the caller's promise.
        unsafe { self.ring.push(&entry) }?;
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(())
    }

    /// Queues the cancellation of a disk request that is in flight, which completes in any case: as
    /// if nothing had happened, or with ECANCELED or EINTR. EAGAIN: the kernel takes no more at
    /// present.
    pub(crate) fn cancel(&self, completion: *const Completion) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(completion.addr() as u64)
            .build()
            .user_data(CANCELLATION);
        // SAFETY: the request points to nothing: the address is only a name.
        unsafe { self.ring.push(&entry) }?;
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(())
    }

    /// Queues a one-shot poll of a descriptor, reported as `token`.
    pub(super) fn poll_add(
        &self,
        fd: std::os::fd::RawFd,
        events: u32,
        token: u64,
    ) -> io::Result<()> {
        let entry = opcode::PollAdd::new(uring::types::Fd(fd), events)
            .build()
            .user_data(token << 1 | TOKEN_BIT);
        self.push_poll(entry)
    }

    /// A full queue of a busy kernel is no failure of a poll: it waits for the next turn.
    fn push_poll(&self, entry: squeue::Entry) -> io::Result<()> {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            // SAFETY: the request points to nothing.
            match unsafe { self.ring.push(&entry) } {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
        backlog.push_back(entry);
        Ok(())
    }

    /// Queues what has waited. False: some of it still does.
    pub(super) fn push_backlog(&self) -> io::Result<bool> {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(entry) = backlog.front() {
            // SAFETY: the request points to nothing.
            match unsafe { self.ring.push(entry) } {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(false),
                result => result?,
            }
            backlog.pop_front();
        }
        Ok(true)
    }

    /// Queues the removal of a poll.
    pub(super) fn poll_remove(&self, token: u64) -> io::Result<()> {
        let entry = opcode::PollRemove::new(token << 1 | TOKEN_BIT)
            .build()
            .user_data(IGNORED);
        self.push_poll(entry)
    }

    /// Disk requests and cancellations that have not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Hands queued requests to the kernel.
    pub(crate) fn submit(&self) -> io::Result<()> {
        if self.ring.pending() == 0 {
            Ok(())
        } else {
            self.ring.submit()
        }
    }

    /// Requests queued and not submitted.
    pub(crate) fn pending(&self) -> usize {
        self.ring.pending()
    }

    /// Requests that the kernel has, or whose completions have not been taken, as far as is known
    /// without asking.
    pub(crate) fn in_kernel(&self) -> usize {
        let elsewhere = self.pending() + self.arrived.borrow().len();
        self.in_flight.get().saturating_sub(elsewhere)
    }

    pub(super) fn ring(&self) -> &uring::Ring {
        &self.ring
    }

    /// Takes all completions: polls go to `ready` as (token, result), disk requests wait for
    /// [`Self::dispatch`].
    pub(super) fn reap(&self, mut ready: impl FnMut(u64, i32)) {
        loop {
            while let Some(entry) = self.ring.pop() {
                let data = entry.user_data();
                if data & TOKEN_BIT != 0 {
                    ready(data >> 1, entry.result());
                } else if data == CANCELLATION {
                    self.in_flight.set(self.in_flight.get() - 1);
                } else if data != IGNORED {
                    let address = usize::try_from(data).unwrap_or(0);
                    let record = core::ptr::with_exposed_provenance(address);
                    self.arrived
                        .borrow_mut()
                        .push_back((record, entry.result()));
                }
            }
            if !self.ring.overflowed() || self.ring.submit().is_err() || !self.ring.has_completion()
            {
                return;
            }
        }
    }

    /// True if completions wait for [`Self::dispatch`], or can be taken without a system call.
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.borrow().is_empty() || self.ring.has_completion()
    }

    /// Runs the callbacks of the disk requests that have been taken. True: there were some.
    pub(super) fn dispatch(&self) -> bool {
        let mut any = false;
        loop {
            let Some((record, result)) = self.arrived.borrow_mut().pop_front() else {
                return any;
            };
            any = true;
            self.in_flight.set(self.in_flight.get() - 1);
            // SAFETY: I1 and `push`'s promise: the record is in place until this call.
            unsafe { ((*record).callback)(record, result) };
        }
    }
}
