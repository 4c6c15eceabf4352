//! Reads and writes of the page cache that the calling thread makes itself.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use super::{File, advance};
use crate::sys;

/// The most that is written on the spot: a copy of some 20 microseconds.
const WRITE_MAX: usize = 64 << 10;
/// A write on the spot that takes longer has waited for the file system, and not only for its turn on a
/// processor.
const SLOW_WRITE_NS: u64 = 10_000_000;
/// How many times as long no write is made on the spot: a tenth of the time is waited, or less.
const SLOW_WRITE_PAUSE: u64 = 10;
/// The longest such pause: a process that was stopped in the middle of a write is no slow disk.
const SLOW_WRITE_PAUSE_MAX_NS: u64 = 60_000_000_000;

/// What is known of a file in this respect. All are hints, which order nothing.
#[derive(Debug)]
pub(super) struct OnTheSpot {
    /// RWF_NOWAIT is not known here.
    waits_always: AtomicBool,
    /// Whether writing is a copy as a rule; asked when it is first of interest.
    is_written_by_copy: OnceLock<bool>,
    /// Until when no write is made, in nanoseconds of CLOCK_MONOTONIC.
    slow_until: AtomicU64,
}

impl OnTheSpot {
    pub(super) fn new(direct: bool) -> Self {
        Self {
            waits_always: AtomicBool::new(direct),
            is_written_by_copy: OnceLock::new(),
            slow_until: AtomicU64::new(0),
        }
    }

    fn note_write_took(&self, began: u64, ended: u64) {
        let took = ended.saturating_sub(began);
        if took > SLOW_WRITE_NS {
            let pause = took.saturating_mul(SLOW_WRITE_PAUSE);
            let until = ended.saturating_add(pause.min(SLOW_WRITE_PAUSE_MAX_NS));
            self.slow_until.store(until, Ordering::Relaxed);
        }
    }
}

impl File {
    /// Reads what the page cache holds, without ever waiting; any thread, loop threads outside
    /// coroutines included. None: it would wait, or cannot be known (direct I/O, an old kernel).
    /// May return fewer bytes than asked for.
    ///
    /// # Errors
    /// preadv2(2)'s.
    #[inline]
    pub fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let offset = advance(offset, 0)?;
        if self.on_the_spot.waits_always.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match sys::file::read_at_nowait(self.fd.as_fd(), buf, offset) {
            Ok(n) => Ok(Some(n)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
                    self.on_the_spot.waits_always.store(true, Ordering::Relaxed);
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }

    /// Writes to the page cache on the calling thread, which is a copy as a rule, where an engine would
    /// need a worker for it. Any thread. None: it has to go through the engine: direct I/O, a block
    /// device, a file system that may be elsewhere, more than 64 KiB, or writes were slow lately. May
    /// write fewer bytes than given.
    ///
    /// Unlike [`try_read_at`](Self::try_read_at) it may wait: file systems hold writers up, when too
    /// much is unwritten above all. So it is for threads on which nobody depends but who writes. After
    /// a write that took longer than 10 ms none is made for ten times as long, a minute at
    /// most.
    ///
    /// # Errors
    /// pwritev(2)'s.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("disk");
    /// let file = corio::fs::File::options().write(true).create(true).open(&path)?;
    /// if file.try_write_at(b"data", 0)? != Some(4) {
    ///     file.write_all_at(b"data", 0)?;
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<Option<usize>> {
        let offset = advance(offset, 0)?;
        let spot = &self.on_the_spot;
        let is_copy = || sys::file::is_written_by_copy(self.fd.as_fd());
        if buf.len() > WRITE_MAX || !*spot.is_written_by_copy.get_or_init(is_copy) {
            return Ok(None);
        }
        let began = sys::clock::monotonic_ns();
        if began < spot.slow_until.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let result = sys::file::writev_at(self.fd.as_fd(), &[IoSlice::new(buf)], offset, false);
        spot.note_write_took(began, sys::clock::monotonic_ns());
        result.map(Some)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    // SPEC E1
    #[test]
    fn a_slow_write_is_followed_by_a_pause_ten_times_as_long() {
        let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        let spot = &file.on_the_spot;
        let now = sys::clock::monotonic_ns();
        spot.note_write_took(now, now + SLOW_WRITE_NS);
        assert_eq!(spot.slow_until.load(Ordering::Relaxed), 0);
        assert_eq!(file.try_write_at(b"ab", 0).unwrap(), Some(2));

        let second = 1_000_000_000;
        spot.note_write_took(now, now + second / 2);
        let until = spot.slow_until.load(Ordering::Relaxed);
        assert_eq!(until, now + second / 2 + 5 * second);
        spot.note_write_took(now, now + 3600 * second);
        let until = spot.slow_until.load(Ordering::Relaxed);
        assert_eq!(until, now + 3660 * second);
        assert_eq!(file.try_write_at(b"cd", 0).unwrap(), None);
        spot.slow_until.store(now, Ordering::Relaxed);
        assert_eq!(file.try_write_at(b"ef", 0).unwrap(), Some(2));
        spot.note_write_took(0, u64::MAX); // A clock that jumps makes no number too large.
    }
}
