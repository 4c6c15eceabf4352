//! Disk requests on a bare descriptor, by an engine that is named for each.
//!
//! What `fs::File` finds out when it is opened is found out at each request here: a C program's
//! descriptor has no object of ours beside it. So a failed fdatasync is not remembered.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, OFlags};
use smallvec::SmallVec;

use crate::context::Local;
use crate::engine::{EngineKind, Request, unblock};
use crate::fs::advance;
use crate::sys;

/// Below this no direct I/O is aligned.
const SECTOR: usize = 512;

/// A descriptor, and what carries its requests: None is what its context would choose.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// A regular file or a block device, unless no engine is named.
    pub fd: BorrowedFd<'a>,
    /// How its requests are made in a coroutine; elsewhere they are system calls that block.
    pub engine: Option<EngineKind>,
}

impl Disk<'_> {
    /// Opened with O_DIRECT, and no pipe, whose flag means another thing.
    fn is_direct(self) -> bool {
        rustix::fs::fcntl_getfl(self.fd).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
            && sys::file::size(self.fd).is_ok()
    }

    #[track_caller]
    fn run(self, request: &mut Request<'_, '_>, direct: bool) -> io::Result<usize> {
        match self.engine {
            None => request.run(self.fd, direct),
            Some(kind) => request.run_by(kind, self.fd, direct),
        }
    }

    /// Reads until all buffers are full or the file ends.
    ///
    /// # Errors
    /// preadv(2)'s, and why the engine cannot be used.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, as all of these.
    #[track_caller]
    pub fn read(self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let direct = self.is_direct();
        let mut rest = bufs;
        IoSliceMut::advance_slices(&mut rest, 0); // Skips empty ones.
        let mut done = 0;
        while !rest.is_empty() {
            let mut request = Request::Read {
                bufs: &mut *rest,
                offset: advance(offset, done)?,
            };
            let n = self.run(&mut request, direct)?;
            done += n;
            if n == 0 || direct && !n.is_multiple_of(SECTOR) {
                break; // The file's end; a direct read could not go on from there.
            }
            IoSliceMut::advance_slices(&mut rest, n);
        }
        Ok(done)
    }

    /// Writes all buffers.
    ///
    /// # Errors
    /// pwritev(2)'s, and why the engine cannot be used; ENOSPC where the system writes nothing.
    #[track_caller]
    pub fn write(self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let direct = self.is_direct();
        let mut own: SmallVec<[IoSlice<'_>; 8]> = SmallVec::from_iter(bufs.iter().copied());
        let mut rest = &mut own[..];
        IoSlice::advance_slices(&mut rest, 0);
        let mut done = 0;
        while !rest.is_empty() {
            let mut request = Request::Write {
                bufs: rest,
                offset: advance(offset, done)?,
                durable: false,
            };
            match self.run(&mut request, direct)? {
                0 => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                n => {
                    done += n;
                    IoSlice::advance_slices(&mut rest, n);
                }
            }
        }
        Ok(done)
    }

    /// Waits until everything written before is on the medium.
    ///
    /// # Errors
    /// fdatasync(2)'s, and why the engine cannot be used.
    #[track_caller]
    pub fn sync_data(self) -> io::Result<()> {
        let direct = self.is_direct();
        self.run(&mut Request::SyncData, direct).map(drop)
    }

    /// Gives a range back; it reads as zeroes then, on a block device perhaps as before.
    ///
    /// # Errors
    /// fallocate(2)'s or the device's, and why the engine cannot be used.
    #[track_caller]
    pub fn discard(self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if sys::file::size(self.fd).is_ok_and(|(_, is_device)| is_device) {
            let fd = self.fd;
            let discard = move || sys::file::device_range(fd, false, offset, len);
            return match Local::current() {
                None => discard(),
                Some(_) => unblock(discard)?,
            };
        }
        let mut request = Request::Allocate {
            mode: FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        };
        // Linux AIO has no such request: a worker makes it, whatever the file is.
        let engine = self.engine.filter(|kind| *kind != EngineKind::LinuxAio);
        Disk { engine, ..self }
            .run(&mut request, self.is_direct())
            .map(drop)
    }
}
