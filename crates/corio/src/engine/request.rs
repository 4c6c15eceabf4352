//! One disk request, whichever engine carries it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FallocateFlags;

use super::linux_aio::{self, Carried};
use super::{EngineKind, HomeEngine, of_home, threads, uring};
use crate::context::Local;
use crate::coroutine::{self, CoRef};
use crate::track::{self, Kind};
use crate::{schedule, sys};

/// How long a worker waits at most before it makes a request again that ended with EAGAIN.
const RETRY_NS: u64 = 10_000_000;

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
    /// has come back undone. `direct`: the file is one that Linux AIO can carry.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine.
    #[track_caller]
    pub(crate) fn run(&mut self, fd: BorrowedFd<'_>, direct: bool) -> io::Result<usize> {
        let Some(local) = Local::current() else {
            return self.block(fd);
        };
        schedule::parkable("a file operation");
        coroutine::cancellation_point();
        if coroutine::current().is_some_and(CoRef::is_unwinding) {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        let engine = of_home(local);
        if let Self::Read { bufs, offset } = self
            && !direct
            && let max @ 1.. = engine.cached_read_max()
            && let Some(count) = engine.cached_reads.read(max, fd, bufs, *offset)
        {
            return Ok(count);
        }
        self.carry(&engine, engine.kind_for(local, direct), local, fd)
    }

    /// As [`run`](Self::run), by an engine that the caller has named; the page cache is not asked
    /// first.
    ///
    /// # Errors
    /// Also why that engine cannot be used here; EINVAL for Linux AIO if the file is not `direct`.
    #[track_caller]
    pub(crate) fn run_by(
        &mut self,
        kind: EngineKind,
        fd: BorrowedFd<'_>,
        direct: bool,
    ) -> io::Result<usize> {
        let Some(local) = Local::current() else {
            return self.block(fd);
        };
        schedule::parkable("a file operation");
        let engine = of_home(local);
        engine.prepare(local, kind, direct)?;
        self.carry(&engine, kind, local, fd)
    }

    #[inline]
    fn carry(
        &mut self,
        engine: &HomeEngine,
        kind: EngineKind,
        local: &Local,
        fd: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let _in_flight = local.note_request();
        match kind {
            EngineKind::IoUring => {
                let gathers = engine.gathering.is_on();
                uring::run(local, fd, self, engine.batch_max(), gathers)
            }
            EngineKind::Threads => self.run_on_worker(local, fd),
            EngineKind::LinuxAio => {
                let carried = engine
                    .aio()
                    .map(|aio| linux_aio::run(local, aio, fd, self, engine.batch_max()));
                match carried {
                    Some(Carried::Done(outcome)) => outcome,
                    Some(Carried::Not) | None => self.run_on_worker(local, fd),
                }
            }
        }
    }

    fn run_on_worker(&mut self, local: &Local, fd: BorrowedFd<'_>) -> io::Result<usize> {
        loop {
            let attempt = || {
                let result = self.block(fd);
                if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EAGAIN)) {
                    wait_for_readiness(fd);
                }
                result
            };
            match threads::run(local, fd, attempt) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    if let Some(outcome) = settle(-i64::from(libc::EAGAIN)) {
                        return outcome;
                    }
                }
                outcome => return outcome,
            }
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

/// On a worker, before a request is made again that would have had to wait: not at full speed, and
/// not for so long that a cancellation of its coroutine goes unseen.
#[cold]
fn wait_for_readiness(fd: BorrowedFd<'_>) {
    let either = u32::from((libc::POLLIN | libc::POLLOUT).cast_unsigned());
    let mut entry = [sys::poll::entry(fd.as_raw_fd(), either)];
    // An error, or an interruption, only makes it come earlier.
    let _ = sys::poll::wait(&mut entry, Some(RETRY_NS));
}

/// What a result of the kernel's, a count or an errno negated, is to the request; None: it was
/// interrupted, or the kernel was short of something, and it is to be made again, now that others
/// had a turn.
#[inline]
pub(super) fn settle(result: i64) -> Option<io::Result<usize>> {
    if result >= 0 {
        return Some(Ok(usize::try_from(result).unwrap_or(usize::MAX)));
    }
    let errno = i32::try_from(-result).unwrap_or(libc::EIO);
    match errno {
        // Cancelled before or in the middle of it: not to be asked again.
        libc::EINTR | libc::EAGAIN | libc::ECANCELED if is_cancelled() => {
            coroutine::cancellation_point();
            Some(Err(io::Error::from_raw_os_error(libc::ECANCELED)))
        }
        libc::EINTR | libc::EAGAIN => {
            schedule::yield_now();
            None
        }
        errno => Some(Err(io::Error::from_raw_os_error(errno))),
    }
}

/// True once the running coroutine has been asked to end, unless it must not be now.
#[inline]
pub(super) fn is_cancelled() -> bool {
    coroutine::current().is_some_and(CoRef::is_cancelled)
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
