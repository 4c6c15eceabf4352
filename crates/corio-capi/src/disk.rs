//! Disk requests on descriptors, in coroutines.

use std::ffi::c_int;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::slice;

use corio::engine::EngineKind;
use corio::raw::Disk;

use crate::abort;

/// How many buffers a request may have, as the kernel's own may.
const BUFFERS_MAX: usize = 1024;

/// The descriptor, and the engine of a number of `CorioEngine`.
///
/// # Safety
/// The descriptor stays open for `'a`.
unsafe fn disk<'a>(fd: c_int, engine: c_int, function: &str) -> io::Result<Disk<'a>> {
    abort::on_panic();
    if !corio::in_coroutine() {
        die!("{function}: called outside a coroutine");
    }
    let engine = match engine {
        0 => None,
        1 => Some(EngineKind::IoUring),
        2 => Some(EngineKind::LinuxAio),
        3 => Some(EngineKind::Threads),
        _ => die!("{function}: there is no engine {engine}"),
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(Disk {
        // SAFETY: not -1; the caller's promise for the rest.
        fd: unsafe { BorrowedFd::borrow_raw(fd) },
        engine,
    })
}

/// An offset or a length.
fn unsigned(number: i64) -> io::Result<u64> {
    u64::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// C's buffers.
///
/// # Safety
/// `iov` are `count` buffers, which stay for `'a`, and nobody changes meanwhile.
unsafe fn buffers<'a>(iov: *const libc::iovec, count: c_int) -> io::Result<&'a [libc::iovec]> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let count = usize::try_from(count).map_err(|_| invalid())?;
    match count {
        0 => Ok(&[]),
        _ if count > BUFFERS_MAX || iov.is_null() => Err(invalid()),
        _ => {
            // SAFETY: the caller's promise.
            let buffers: &[libc::iovec] = unsafe { slice::from_raw_parts(iov, count) };
            let is_there = |it: &libc::iovec| !it.iov_base.is_null() || it.iov_len == 0;
            match buffers.iter().all(is_there) {
                true => Ok(buffers),
                false => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            }
        }
    }
}

/// The bytes of a buffer, of which an empty one may be anywhere.
fn bytes(buffer: &libc::iovec) -> (*mut u8, usize) {
    match buffer.iov_len {
        0 => (std::ptr::dangling_mut(), 0),
        len => (buffer.iov_base.cast(), len),
    }
}

/// As C has it: a count, or an errno negated.
fn answer(outcome: io::Result<usize>) -> isize {
    match outcome {
        Ok(count) => isize::try_from(count).unwrap_or(isize::MAX),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            -isize::try_from(errno).unwrap_or(1)
        }
    }
}

fn status(outcome: io::Result<()>) -> c_int {
    match outcome {
        Ok(()) => 0,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_preadv(
    fd: c_int,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: i64,
    engine: c_int,
) -> libc::ssize_t {
    // SAFETY: the header asks for buffers and a descriptor that stay until it returns.
    let read = || unsafe {
        let disk = disk(fd, engine, "corio_co_preadv")?;
        let mut own: Vec<_> = buffers(iov, iovcnt)?
            .iter()
            .map(|buffer| {
                let (at, len) = bytes(buffer);
                IoSliceMut::new(slice::from_raw_parts_mut(at, len))
            })
            .collect();
        disk.read(&mut own, unsigned(offset)?)
    };
    answer(read())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_pwritev(
    fd: c_int,
    iov: *const libc::iovec,
    iovcnt: c_int,
    offset: i64,
    engine: c_int,
) -> libc::ssize_t {
    // SAFETY: the header asks for buffers and a descriptor that stay until it returns.
    let write = || unsafe {
        let disk = disk(fd, engine, "corio_co_pwritev")?;
        let own: Vec<_> = buffers(iov, iovcnt)?
            .iter()
            .map(|buffer| {
                let (at, len) = bytes(buffer);
                IoSlice::new(slice::from_raw_parts(at, len))
            })
            .collect();
        disk.write(&own, unsigned(offset)?)
    };
    answer(write())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_fdatasync(fd: c_int, engine: c_int) -> c_int {
    // SAFETY: the header asks for a descriptor that stays until it returns.
    status(unsafe { disk(fd, engine, "corio_co_fdatasync") }.and_then(Disk::sync_data))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_discard(fd: c_int, offset: i64, bytes: i64, engine: c_int) -> c_int {
    // SAFETY: the header asks for a descriptor that stays until it returns.
    let disk = unsafe { disk(fd, engine, "corio_co_discard") };
    let discard = |disk: Disk<'_>| disk.discard(unsigned(offset)?, unsigned(bytes)?);
    status(disk.and_then(discard))
}
