//! mmap(2), madvise(2) and mprotect(2) for stacks.

#![allow(unsafe_code)] // Raw memory calls; each says which range it may touch.

use core::ptr::{self, NonNull};

use crate::error::Error;

/// MADV_GUARD_INSTALL, Linux 6.13.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// The system's page size in bytes.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Reserves `len` bytes of readable and writable memory, no page of which is committed yet, aligned
/// to `align` (a power of two, at least a page).
pub(crate) fn reserve(len: usize, align: usize) -> Result<NonNull<u8>, Error> {
    let total = len.checked_add(align).ok_or_else(|| Error::Parameter {
        name: "stack size",
        value: len.to_string(),
        expected: "a size that fits the address space",
    })?;
    // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
    let raw = unsafe {
        libc::mmap(
            ptr::null_mut(),
            total,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
            -1,
            0,
        )
    };
    if raw == libc::MAP_FAILED {
        return Err(Error::last_os("mmap of coroutine stacks"));
    }
    let start = raw as usize;
    let aligned = start.next_multiple_of(align);
    let (head, tail) = (aligned - start, start + total - (aligned + len));
    // SAFETY: both ranges are parts of the mapping made above that nothing has been told of.
    unsafe {
        if head != 0 {
            libc::munmap(raw, head);
        }
        if tail != 0 {
            libc::munmap((aligned + len) as *mut libc::c_void, tail);
        }
        // Huge pages would commit 2 MiB at a stack's first touch. Refusal (no THP in the kernel) is
        // no loss.
        libc::madvise(aligned as *mut libc::c_void, len, libc::MADV_NOHUGEPAGE);
    }
    NonNull::new(aligned as *mut u8).ok_or(Error::Os {
        op: "mmap of coroutine stacks",
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
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

/// Gives the pages of `[start, start + len)` back; they read as zeroes when next touched.
///
/// # Safety
/// The range lies in a reservation and what it holds is not needed any more.
pub(crate) unsafe fn dont_need(start: NonNull<u8>, len: usize) {
    // Refused on mlocked memory only; the pages then stay, which costs memory and breaks nothing.
    // SAFETY: the caller's promise.
    unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED) };
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
