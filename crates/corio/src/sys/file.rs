//! Calls on files: the blocking ones that worker threads make, and the non-waiting ones that the
//! loop may make.
//!
//! Interrupted calls are retried here; short ones are the caller's to continue.

#![allow(unsafe_code)] // BLKDISCARD, BLKZEROOUT and BLKSSZGET have no wrapper.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(Into::into),
        }
    }
}

/// preadv2(2).
pub(crate) fn readv_at(
    fd: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    offset: u64,
) -> io::Result<usize> {
    retry(|| rustix::io::preadv(fd, bufs, offset))
}

/// preadv2(2) with RWF_NOWAIT: what the page cache holds, or EAGAIN.
#[inline]
pub(crate) fn read_at_nowait(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    readv_at_nowait(fd, &mut [IoSliceMut::new(buf)], offset)
}

/// The same into several buffers in turn.
#[inline]
pub(crate) fn readv_at_nowait(
    fd: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    offset: u64,
) -> io::Result<usize> {
    rustix::io::preadv2(fd, bufs, offset, ReadWriteFlags::NOWAIT).map_err(Into::into)
}

/// pwritev2(2); `durable` asks for RWF_DSYNC.
pub(crate) fn writev_at(
    fd: BorrowedFd<'_>,
    bufs: &[IoSlice<'_>],
    offset: u64,
    durable: bool,
) -> io::Result<usize> {
    #[cfg(feature = "power-loss-shim")]
    if durable {
        super::power_loss::before_durable_write(fd, bufs, offset);
    }
    let flags = if durable {
        ReadWriteFlags::DSYNC
    } else {
        ReadWriteFlags::empty()
    };
    retry(|| rustix::io::pwritev2(fd, bufs, offset, flags))
}

/// Whether a write to this file is a copy into the page cache as a rule: a regular file on this
/// machine, not past the cache, and not to be on the medium when the call returns.
pub(crate) fn is_written_by_copy(fd: BorrowedFd<'_>) -> bool {
    const LOCAL: [i64; 4] = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
    ];
    // Block devices would have to be known by their own: what they lie on says nothing of them.
    let is_file = rustix::fs::fstat(fd)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let waits = OFlags::DIRECT | OFlags::SYNC | OFlags::DSYNC;
    is_file
        && rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| !flags.intersects(waits))
        && rustix::fs::fstatfs(fd).is_ok_and(|system| LOCAL.contains(&system.f_type))
}

/// fdatasync(2).
pub(crate) fn sync_data(fd: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(feature = "power-loss-shim")]
    super::power_loss::before_sync(fd);
    retry(|| rustix::fs::fdatasync(fd))
}

/// fallocate(2).
pub(crate) fn fallocate(
    fd: BorrowedFd<'_>,
    mode: FallocateFlags,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    retry(|| rustix::fs::fallocate(fd, mode, offset, len))
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE; None where there is no more of it (ENXIO).
pub(crate) fn seek_to(fd: BorrowedFd<'_>, offset: u64, data: bool) -> io::Result<Option<u64>> {
    let to = if data {
        rustix::fs::SeekFrom::Data(offset)
    } else {
        rustix::fs::SeekFrom::Hole(offset)
    };
    match rustix::fs::seek(fd, to) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Size in bytes and whether it is a block device. Anything else than a regular file or a block
/// device is refused.
pub(crate) fn size(fd: BorrowedFd<'_>) -> io::Result<(u64, bool)> {
    let stat = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((u64::try_from(stat.st_size).unwrap_or(0), false)),
        FileType::BlockDevice => Ok((device_size(fd)?, true)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a regular file nor a block device",
        )),
    }
}

fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut bytes = 0u64;
    // SAFETY: the request writes one u64 through the pointer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The alignment that direct I/O on this descriptor needs: statx(2)'s DIOALIGN (Linux 6.1), a block
/// device's logical sector, else 4096.
pub(crate) fn direct_alignment(fd: BorrowedFd<'_>) -> u32 {
    const FALLBACK: u32 = 4096;
    const STATX_DIOALIGN: u32 = 0x2000;
    // SAFETY: all-zero bytes are a valid `statx`, an integer structure.
    let mut stat: libc::statx = unsafe { core::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor itself; the kernel fills the
    // structure.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            &raw mut stat,
        )
    };
    let reported = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    if result == 0 && stat.stx_mask & STATX_DIOALIGN != 0 && reported.is_power_of_two() {
        return reported;
    }
    match rustix::fs::ioctl_blksszget(fd) {
        Ok(sector) if sector.is_power_of_two() => sector,
        _ => FALLBACK,
    }
}

/// BLKDISCARD or BLKZEROOUT on a block device.
pub(crate) fn device_range(
    fd: BorrowedFd<'_>,
    zero: bool,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    const BLKDISCARD: libc::c_ulong = 0x1277;
    const BLKZEROOUT: libc::c_ulong = 0x127f;
    let range = [offset, len];
    let request = if zero { BLKZEROOUT } else { BLKDISCARD };
    // SAFETY: both requests read two u64s through the pointer and write nothing.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An open file description lock (fcntl F_OFD_SETLK) on `[start, start + len)`, shared; false if
/// someone holds it exclusively.
pub(crate) fn lock_shared(fd: impl AsFd, start: u64, len: u64) -> io::Result<bool> {
    match ofd(fd.as_fd(), libc::F_OFD_SETLK, libc::F_RDLCK, start, len) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives up this description's locks on the range.
pub(crate) fn unlock(fd: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    ofd(fd.as_fd(), libc::F_OFD_SETLK, libc::F_UNLCK, start, len).map(drop)
}

/// True if another description holds a lock that an exclusive one on the range would conflict with
/// (F_OFD_GETLK).
pub(crate) fn lock_conflict(fd: impl AsFd, start: u64, len: u64) -> io::Result<bool> {
    ofd(fd.as_fd(), libc::F_OFD_GETLK, libc::F_WRLCK, start, len).map(|kind| kind != libc::F_UNLCK)
}

fn ofd(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    start: u64,
    len: u64,
) -> io::Result<libc::c_int> {
    let range = |value: u64| {
        i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
    };
    // SAFETY: all-zero bytes are a valid `flock`, an integer structure; OFD commands want l_pid to
    // be 0.
    let mut lock: libc::flock = unsafe { core::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or(0);
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = range(start)?;
    lock.l_len = range(len)?;
    // SAFETY: the commands read, and F_OFD_GETLK writes, one `flock`.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(libc::c_int::from(lock.l_type)),
        _ => Err(io::Error::last_os_error()),
    }
}
