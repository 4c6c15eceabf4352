//! ppoll(2): waiting for descriptors that no object in the kernel keeps, with nanosecond time-outs.

#![allow(unsafe_code)] // The array is the caller's own, and holds numbers and not borrows.

use std::io;
use std::os::fd::RawFd;

pub(crate) use libc::pollfd as PollFd;

/// The descriptor is not open.
pub(crate) const POLLNVAL: u32 = 0x20;

/// What to wait for; `events` are poll(2)'s bits, of which the upper half means nothing here.
pub(crate) fn entry(fd: RawFd, events: u32) -> PollFd {
    PollFd {
        fd,
        events: bits(events),
        revents: 0,
    }
}

/// What a wait has found, in poll(2)'s bits.
pub(crate) fn revents(entry: &PollFd) -> u32 {
    u32::from(entry.revents.cast_unsigned())
}

/// Sixteen bits of poll(2)'s.
pub(crate) fn bits(events: u32) -> i16 {
    i16::try_from(events & 0x7fff).unwrap_or(i16::MAX)
}

/// Waits for at most `timeout_ns` (None: without limit) and fills in what was found; how many
/// entries have something.
pub(crate) fn wait(entries: &mut [PollFd], timeout_ns: Option<u64>) -> io::Result<usize> {
    let timeout = timeout_ns.map(|ns| libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    });
    let timeout = timeout
        .as_ref()
        .map_or(core::ptr::null(), core::ptr::from_ref);
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: the kernel reads and writes `entries.len()` entries and reads the time-out, all of
    // which outlive the call; numbers that are not open are answered with POLLNVAL.
    let found = unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout, core::ptr::null()) };
    usize::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// EBADF unless the number is an open descriptor's.
pub(crate) fn check_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD reads a flag of the number, whatever it is.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
