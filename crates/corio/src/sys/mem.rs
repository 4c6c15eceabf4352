//! mmap(2), madvise(2), process_madvise(2), mincore(2) and mprotect(2) for stacks.

#![allow(unsafe_code)] // Raw memory calls; each says which range it may touch.

use core::ptr::{self, NonNull};

use crate::error::Error;

/// MADV_GUARD_INSTALL, Linux 6.13.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// The system's page size in bytes.
pub(crate) fn page_size() -> usize {
    // Not rustix's, which reads what valgrind does not show.
    // SAFETY: getauxval reads the process's own auxiliary vector.
    let size = unsafe { libc::getauxval(libc::AT_PAGESZ) };
    usize::try_from(size).unwrap_or(4096)
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading, as zeroes: it counts for no commit limit.
    Read,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    fn protection(self) -> libc::c_int {
        match self {
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A range of memory, as the calls that take many want it.
#[repr(transparent)]
pub(crate) struct Range(libc::iovec);

impl Range {
    pub(crate) fn new(start: NonNull<u8>, len: usize) -> Self {
        Self(libc::iovec {
            iov_base: start.as_ptr().cast(),
            iov_len: len,
        })
    }
}

/// A private mapping without pages, at `at` if that is not null.
///
/// # Safety
/// What is mapped at `at` is the caller's, and nothing refers to it any more.
unsafe fn map(at: *mut libc::c_void, len: usize, access: Access) -> Result<usize, Error> {
    // NORESERVE: what is counted against a commit limit is what is used, where the kernel allows.
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    if !at.is_null() {
        flags |= libc::MAP_FIXED;
    }
    // SAFETY: at an address of the kernel's choice it overlaps nothing; else the caller's promise.
    let raw = unsafe { libc::mmap(at, len, access.protection(), flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(Error::last_os("mmap of coroutine stacks"));
    }
    // Huge pages would commit 2 MiB at a stack's first touch. Refusal (no THP in the kernel) is no
    // loss.
    // SAFETY: the mapping made above.
    unsafe { libc::madvise(raw, len, libc::MADV_NOHUGEPAGE) };
    Ok(raw.expose_provenance())
}

/// Reserves `len` bytes of memory, no page of which is committed yet, aligned to `align` (a power
/// of two, at least a page).
pub(crate) fn reserve(len: usize, align: usize, access: Access) -> Result<NonNull<u8>, Error> {
    // SAFETY: at no address of ours.
    let mut start = unsafe { map(ptr::null_mut(), len, access) }?;
    if !start.is_multiple_of(align) {
        // The kernel does align by itself what may hold huge pages. Elsewhere, holes between
        // reservations would keep the kernel from joining them.
        // SAFETY: the mapping made above, which nothing knows of.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(start), len) };
        start = reserve_within(len, align, access)?;
    }
    NonNull::new(ptr::with_exposed_provenance_mut(start)).ok_or(Error::Os {
        op: "mmap of coroutine stacks",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
}

/// The aligned part of a larger reservation.
fn reserve_within(len: usize, align: usize, access: Access) -> Result<usize, Error> {
    let total = len.checked_add(align).ok_or_else(|| Error::Parameter {
        name: "stack size",
        value: len.to_string(),
        expected: "a size that fits the address space",
    })?;
    // SAFETY: at no address of ours.
    let start = unsafe { map(ptr::null_mut(), total, access) }?;
    let aligned = start.next_multiple_of(align);
    for (from, to) in [(start, aligned), (aligned + len, start + total)] {
        if from != to {
            // SAFETY: a part of the mapping made above that nothing has been told of.
            unsafe { libc::munmap(ptr::with_exposed_provenance_mut(from), to - from) };
        }
    }
    Ok(aligned)
}

/// Puts a fresh mapping in the place of `[start, start + len)`: pages, page tables and guards of
/// the old one are gone.
///
/// # Safety
/// The range lies in a reservation, and nothing refers to what it holds any more.
pub(crate) unsafe fn renew(start: NonNull<u8>, len: usize, access: Access) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe { map(start.as_ptr().cast(), len, access) }.map(drop)
}

/// Makes `[start, start + len)` accessible.
///
/// # Safety
/// The range lies in a reservation.
pub(crate) unsafe fn allow(start: NonNull<u8>, len: usize) -> Result<(), Error> {
    let protection = Access::ReadWrite.protection();
    // SAFETY: the caller's promise.
    match unsafe { libc::mprotect(start.as_ptr().cast(), len, protection) } {
        0 => Ok(()),
        _ => Err(Error::last_os("mprotect of a coroutine stack")),
    }
}

/// Gives back a whole reservation.
///
/// # Safety
/// `[start, start + len)` was returned by [`reserve`] and nothing refers to it any more.
pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

/// Makes every access to `[start, start + len)` a fault, without a mapping of its own.
///
/// # Safety
/// The range lies in a reservation and holds nothing.
pub(crate) unsafe fn guard_install(start: NonNull<u8>, len: usize) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    match unsafe { libc::madvise(start.as_ptr().cast(), len, MADV_GUARD_INSTALL) } {
        0 => Ok(()),
        _ => Err(Error::last_os("madvise(MADV_GUARD_INSTALL)")),
    }
}

/// Makes every access to `[start, start + len)` a fault, splitting the mapping.
///
/// # Safety
/// The range lies in a reservation and holds nothing.
pub(crate) unsafe fn protect_none(start: NonNull<u8>, len: usize) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    match unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_NONE) } {
        0 => Ok(()),
        _ => Err(Error::last_os("mprotect of a stack's guard page")),
    }
}

/// Makes every access to the ranges a fault, as [`guard_install`] does.
///
/// # Safety
/// As there, for each.
pub(crate) unsafe fn guard_install_all(ranges: &[Range]) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe { advise_all(ranges, MADV_GUARD_INSTALL, "madvise(MADV_GUARD_INSTALL)") }
}

/// Gives the pages of the ranges back; they read as zeroes when next touched. An error is of no
/// consequence where memory is locked: the pages then stay, as their owner wanted.
///
/// # Safety
/// The ranges lie in reservations and what they hold is not needed any more.
pub(crate) unsafe fn dont_need_all(ranges: &[Range]) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe { advise_all(ranges, libc::MADV_DONTNEED, "madvise(MADV_DONTNEED)") }
}

/// The same advice for many ranges: one system call, where process_madvise(2) takes this very
/// process (Linux 6.14, and the advice that it allows), else one each. All are tried; the first
/// error is returned.
///
/// # Safety
/// The advice may be given for each range.
unsafe fn advise_all(ranges: &[Range], advice: libc::c_int, op: &'static str) -> Result<(), Error> {
    /// The process itself, in place of a descriptor; one of ours would be of the parent in a child.
    const PIDFD_SELF_THREAD_GROUP: libc::c_long = -10_001;
    const RANGES_MAX: usize = 1024;
    let mut result = Ok(());
    for ranges in ranges.chunks(RANGES_MAX) {
        let total: usize = ranges.iter().map(|range| range.0.iov_len).sum();
        let done = if let [_] = ranges {
            -1
        } else {
            // SAFETY: `Range` is an iovec; the advice is the caller's.
            unsafe {
                libc::syscall(
                    libc::SYS_process_madvise,
                    PIDFD_SELF_THREAD_GROUP,
                    ranges.as_ptr(),
                    ranges.len(),
                    advice,
                    0,
                )
            }
        };
        if usize::try_from(done) == Ok(total) {
            continue;
        }
        for Range(range) in ranges {
            // SAFETY: the caller's promise.
            let done = unsafe { libc::madvise(range.iov_base, range.iov_len, advice) };
            if done != 0 && result.is_ok() {
                result = Err(Error::last_os(op));
            }
        }
    }
    result
}

/// How far into `range`, which is of whole pages, the first page is that is in memory.
pub(crate) fn lowest_resident(range: &Range) -> Option<usize> {
    let page = page_size();
    let mut resident = vec![0; range.0.iov_len / page];
    // SAFETY: fills a byte for each page of the range.
    let done = unsafe { libc::mincore(range.0.iov_base, range.0.iov_len, resident.as_mut_ptr()) };
    // Refused only where nothing is mapped.
    let is_resident = |state: &u8| done == 0 && state & 1 == 1;
    resident.iter().position(is_resident).map(|at| at * page)
}

/// vm.max_map_count, or the kernel's default where it cannot be read.
pub(crate) fn max_map_count() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65_530)
}

/// The smallest stack on which the kernel can deliver a signal, in bytes (AT_MINSIGSTKSZ).
pub(crate) fn min_signal_stack() -> usize {
    // SAFETY: getauxval reads the process's own auxiliary vector.
    let size = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
    usize::try_from(size).unwrap_or(0).max(libc::MINSIGSTKSZ)
}
