//! io_uring(7): one ring, its two queues and the calls that move them.
//!
//! The ring is used by its context's home thread only (`!Sync`). Two kinds are made:
//! [`Kind::Deferred`] for a ring that is itself what the loop waits on, whose completions appear
//! only on entering the kernel while a flag in the ring tells of them before, and
//! [`Kind::Cooperative`] for a ring whose descriptor may sit in an epoll set.

#![allow(unsafe_code)] // The queues are shared memory; see each SAFETY comment.

use core::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub(crate) use io_uring::{cqueue, opcode, squeue, types};

use super::valgrind;
use crate::error::Error;

/// How many requests fit between two submissions; more flush the queue by themselves.
const ENTRIES: u32 = 256;
/// How many completions fit before the kernel keeps the rest in a list of its own
/// (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 4096;
/// How often a new ring is entered for its first completion before it is given up.
const TRIES_MAX: usize = 100;

/// IORING_ENTER_GETEVENTS.
const GETEVENTS: u32 = 1;

/// What the ring is tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SINGLE_ISSUER, DEFER_TASKRUN and TASKRUN_FLAG: the loop waits in the ring.
    Deferred,
    /// COOP_TASKRUN and TASKRUN_FLAG: the loop may wait elsewhere, with the ring's descriptor in the
    /// set.
    Cooperative,
}

/// An io_uring instance.
pub(crate) struct Ring {
    // Only the home thread gets here, one call at a time, and no reference leaves a method.
    inner: UnsafeCell<io_uring::IoUring>,
    kind: Kind,
}

impl Ring {
    /// Makes a ring, without the flags that an older kernel does not know if it must be.
    pub(crate) fn new(kind: Kind) -> Result<Self, Error> {
        // Valgrind stops all threads while one waits in a ring, and does not see what the kernel
        // writes through one.
        if valgrind::is_watching() {
            return Err(Error::Os {
                op: "io_uring_setup under valgrind",
                source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            });
        }
        let build = |tuned: bool| {
            let mut builder = io_uring::IoUring::builder();
            builder.dontfork().setup_cqsize(COMPLETIONS).setup_clamp();
            if tuned {
                builder.setup_submit_all();
                match kind {
                    Kind::Deferred => builder
                        .setup_single_issuer()
                        .setup_defer_taskrun()
                        .setup_taskrun_flag(),
                    Kind::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag(),
                };
            }
            builder.build(ENTRIES)
        };
        let inner = match build(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            result => result,
        }
        .map_err(|source| Error::Os {
            op: "io_uring_setup",
            source,
        })?;
        if !inner.params().is_feature_nodrop() || !inner.params().is_feature_ext_arg() {
            return Err(Error::Os {
                op: "io_uring_setup: NODROP and EXT_ARG (Linux 5.11)",
                source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            });
        }
        let ring = Self {
            inner: UnsafeCell::new(inner),
            kind,
        };
        ring.try_out().map_err(|source| Error::Os {
            op: "io_uring_enter",
            source,
        })?;
        Ok(ring)
    }

    /// One request that does nothing: a filter may let a ring be made and then not be entered.
    fn try_out(&self) -> io::Result<()> {
        // SAFETY: the request points to nothing, and its completion is taken here.
        unsafe { self.push(&opcode::Nop::new().build()) }?;
        for _ in 0..TRIES_MAX {
            self.submit_and_wait(None)?;
            if self.pop().is_some() {
                return Ok(());
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the cell is private and no two of these are alive at once"
    )]
    fn inner(&self) -> &mut io_uring::IoUring {
        // SAFETY: `Ring` is not Sync, every use below ends before its method returns, and none
        // calls back out while it holds the reference.
        unsafe { &mut *self.inner.get() }
    }

    /// Puts a request in the queue, submitting what is there first if it is full. EAGAIN: the
    /// kernel takes no more before some completions are reaped.
    ///
    /// # Safety
    /// Everything the request points to stays valid and unaliased as the operation demands until
    /// its completion has been reaped, and its user data is what the context's dispatch expects.
    pub(crate) unsafe fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { self.inner().submission().push(entry) }.is_ok() {
            return Ok(());
        }
        self.submit()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner().submission().push(entry) }
            .map_err(|_| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Requests queued and not yet submitted.
    pub(crate) fn pending(&self) -> usize {
        self.inner().submission().len()
    }

    /// Hands the queued requests to the kernel. A busy kernel (EAGAIN, EBUSY) is not an error: they
    /// stay queued.
    pub(crate) fn submit(&self) -> io::Result<()> {
        tolerate(self.inner().submit().map(drop))
    }

    /// Runs completions that wait for the task to enter the kernel, without waiting.
    pub(crate) fn flush_completions(&self) -> io::Result<()> {
        if self.kind == Kind::Cooperative && !self.inner().submission().taskrun() {
            return Ok(());
        }
        // SAFETY: IORING_ENTER_GETEVENTS with no argument reads and writes no memory of ours but
        // the rings.
        tolerate(unsafe {
            self.inner()
                .submitter()
                .enter::<libc::sigset_t>(0, 0, GETEVENTS, None)
                .map(drop)
        })
    }

    /// Submits what is queued and waits for a completion, at most `timeout_ns` (None: without
    /// limit).
    pub(crate) fn submit_and_wait(&self, timeout_ns: Option<u64>) -> io::Result<()> {
        let ring = self.inner();
        let result = match timeout_ns {
            None => ring.submitter().submit_and_wait(1),
            Some(0) => {
                let pending = u32::try_from(ring.submission().len()).unwrap_or(ENTRIES);
                // SAFETY: no argument is passed; the queued entries' pointers were promised valid
                // to `push`.
                unsafe {
                    ring.submitter()
                        .enter::<libc::sigset_t>(pending, 0, GETEVENTS, None)
                }
            }
            Some(ns) => {
                let timeout = types::Timespec::new()
                    .sec(ns / 1_000_000_000)
                    .nsec(u32::try_from(ns % 1_000_000_000).unwrap_or(0));
                let args = types::SubmitArgs::new().timespec(&timeout);
                ring.submitter().submit_with_args(1, &args)
            }
        };
        tolerate(result.map(drop))
    }

    /// True if a completion can be taken without a system call.
    pub(crate) fn has_completion(&self) -> bool {
        !self.inner().completion().is_empty()
    }

    /// True if the kernel has completions that appear when it is entered; seen without doing so.
    pub(crate) fn has_task_work(&self) -> bool {
        self.inner().submission().taskrun()
    }

    /// Takes the oldest completion.
    pub(crate) fn pop(&self) -> Option<cqueue::Entry> {
        self.inner().completion().next()
    }

    /// True if the kernel keeps completions that did not fit.
    pub(crate) fn overflowed(&self) -> bool {
        self.inner().submission().cq_overflow()
    }
}

/// Where the power-loss shim sees a flush that goes to a ring.
#[cfg_attr(not(feature = "power-loss-shim"), inline(always))]
pub(crate) fn before_sync(_fd: BorrowedFd<'_>) {
    #[cfg(feature = "power-loss-shim")]
    super::power_loss::before_sync(_fd);
}

/// Where the power-loss shim sees a durable write that goes to a ring.
#[cfg_attr(not(feature = "power-loss-shim"), inline(always))]
pub(crate) fn before_durable_write(_fd: BorrowedFd<'_>, _bufs: &[io::IoSlice<'_>], _offset: u64) {
    #[cfg(feature = "power-loss-shim")]
    super::power_loss::before_durable_write(_fd, _bufs, _offset);
}

/// What only says "look at the completions" or "try again later" is not a failure.
fn tolerate(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns its descriptor for as long as the borrow of it lasts.
        unsafe { BorrowedFd::borrow_raw(self.inner().as_raw_fd()) }
    }
}

impl core::fmt::Debug for Ring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ring")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
