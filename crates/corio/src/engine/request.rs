//! One disk request, whichever engine carries it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FallocateFlags;

use super::{EngineKind, of_home, threads, uring};
use crate::context::Local;
use crate::track::{self, Kind};
use crate::{coroutine, schedule, sys};

/// What is to be done to a file. Short results are the caller's to continue.
pub(crate) enum Request<'a, 'b> {
    Read {
        bufs: &'a mut [IoSliceMut<'b>],
        offset: u64,
    },
    Write {
        bufs: &'a [IoSlice<'b>],
        offset: u64,
        durable: bool,
    },
    SyncData,
    Allocate {
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
}

impl Request<'_, '_> {
    /// Carries the request out: parks the coroutine, or blocks a plain thread. The result is a
    /// count of bytes, or 0. A cancellation point before the request is made, and after it where it
    /// has come back undone.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine.
    #[track_caller]
    pub(crate) fn run(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let Some(local) = Local::current() else {
            return self.block(fd);
        };
        schedule::parkable("a file operation");
        coroutine::cancellation_point();
        if coroutine::current().is_some_and(coroutine::CoRef::is_unwinding) {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        match of_home(local) {
            (EngineKind::IoUring, batch_max) => uring::run(local, fd, self, batch_max),
            (EngineKind::Threads, _) => threads::run(local, fd, || self.block(fd)),
        }
    }

    /// The same as a system call.
    fn block(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        match self {
            Self::Read { bufs, offset } => sys::file::readv_at(fd, bufs, *offset),
            Self::Write {
                bufs,
                offset,
                durable,
            } => sys::file::writev_at(fd, bufs, *offset, *durable),
            Self::SyncData => sys::file::sync_data(fd).map(|()| 0),
            Self::Allocate { mode, offset, len } => {
                sys::file::fallocate(fd, *mode, *offset, *len).map(|()| 0)
            }
        }
    }
}

/// Tells that the running coroutine hands a request on; tracking is on.
#[cold]
pub(super) fn trace_submitted(request: u64, fd: BorrowedFd<'_>) {
    let co = coroutine::running_id();
    let descriptor = u64::from(fd.as_raw_fd().unsigned_abs());
    track::emit(Kind::RequestSubmitted, request, co, descriptor);
}

/// Tells that the running coroutine has got its request's result, a count or an errno negated;
/// tracking is on.
#[cold]
pub(super) fn trace_completed(request: u64, result: i64) {
    let co = coroutine::running_id();
    track::emit(Kind::RequestCompleted, request, co, result.cast_unsigned());
}
