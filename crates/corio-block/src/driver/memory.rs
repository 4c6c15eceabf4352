//! The memory driver: a sparse disk in the process's memory, gone with it.
//!
//! The bytes are in a memfd: the kernel keeps them sparse up to the largest file, reports holes,
//! takes them back on discard, and counts them to the process. It has no page cache to miss, so a
//! request up to 256 KiB is one system call made right here, also on a loop's thread: it
//! copies and does not wait (short of swapping). Longer ones go through [`corio::fs`], as those of
//! any file, and leave the loop turning. (A table of chunks in our own memory would save the system
//! call, some 0.5 us a request, but needs locks, allocation and hole keeping of its own.)

use std::io;

use corio::fs::File;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, SeekFrom},
    io::Errno,
};

use super::Driver;
use crate::{
    Error, Extent, ExtentFlags, Length, Limits, Node, Offset, WriteFlags, ZeroFlags,
    units::{bytes, round_up},
};

/// The most that one call copies on a loop's thread: 30 us, cold and on a busy machine 170.
const SYNC_MAX: usize = 256 << 10;

/// The longest discard carried out on a loop's thread: freeing 1,024 pages takes 100 us.
const SYNC_DISCARD_MAX: u64 = 4 << 20;

/// What is given back at once. Where pages are larger, discards that fill none free nothing.
const PAGE: u32 = 4096;

/// What a memory disk is to be.
///
/// ```
/// use corio_block::{Length, memory};
///
/// // Sparse: only what is written takes memory.
/// let disk = memory::Options::new(Length(1 << 50)).open()?;
/// assert_eq!(disk.size(), 1 << 50);
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    size: Length,
    read_only: bool,
}

impl Options {
    /// A disk of `size` bytes, all zero, to the byte.
    #[must_use]
    pub fn new(size: Length) -> Options {
        Options {
            size,
            read_only: false,
        }
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Options {
        self.read_only = yes;
        self
    }

    /// Makes the disk. Never waits.
    ///
    /// # Errors
    ///
    /// [`Error::BadSize`] for no bytes or more than a file can have (8 EiB less one);
    /// [`Error::Open`] if the kernel refuses the file.
    pub fn open(self) -> Result<std::sync::Arc<Node>, Error> {
        const NAME: &str = "memory disk";
        let bad_size = |advice| Error::BadSize {
            what: NAME.into(),
            size: self.size.0,
            advice,
        };
        if self.size.is_zero() {
            return Err(bad_size("use at least 1 byte"));
        }
        if i64::try_from(self.size.0).is_err() {
            return Err(bad_size("use less than 8 EiB"));
        }
        let failed = |step| {
            move |e: Errno| Error::Open {
                what: NAME.into(),
                step,
                source: e.into(),
            }
        };
        let fd = rustix::fs::memfd_create("corio", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
            .or_else(|error| match error {
                // NOEXEC_SEAL is unknown before Linux 6.3.
                Errno::INVAL => rustix::fs::memfd_create("corio", MemfdFlags::CLOEXEC),
                error => Err(error),
            })
            .map_err(failed("make a file in memory"))?;
        rustix::fs::ftruncate(&fd, self.size.0).map_err(failed("size the file in memory"))?;
        let driver = Memory {
            file: File::from(fd),
            size: self.size,
        };
        Node::new(NAME, Box::new(driver), self.read_only)
    }
}

#[derive(Debug)]
struct Memory {
    file: File,
    size: Length,
}

impl Memory {
    fn read_now(&self, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pread(&self.file, &mut *buf, at) {
                // The file is ours alone and does not shrink.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    at += bytes(n);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write_now(&self, mut buf: &[u8], mut at: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pwrite(&self.file, buf, at) {
                Ok(0) => return Err(Errno::NOSPC.into()),
                Ok(n) => {
                    buf = &buf[n..];
                    at += bytes(n);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn punch(&self, offset: Offset, len: Length) -> io::Result<()> {
        let mut end = offset.0 + len.0;
        if end == self.size.0 {
            // To the end of the last page, or it would be zeroed in part and kept.
            end = round_up(end, PAGE, i64::MAX.unsigned_abs());
        }
        let len = end - offset.0;
        if len > SYNC_DISCARD_MAX {
            return self.file.discard(offset.0, len);
        }
        loop {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.file, mode, offset.0, len) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

impl Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn size(&self) -> Length {
        self.size
    }

    fn limits(&self) -> Limits {
        // Whole pages are given back; the edges are kept rather than zeroed.
        Limits {
            discard_alignment: 4096,
            ..Limits::bytes()
        }
    }

    fn write_flags(&self) -> WriteFlags {
        // There is nothing more stable than this memory.
        WriteFlags::FUA
    }

    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        if buf.len() <= SYNC_MAX {
            return self.read_now(buf, offset.0);
        }
        self.file.read_exact_at(buf, offset.0)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<bool> {
        if buf.len() > SYNC_MAX {
            return Ok(false);
        }
        self.read_now(buf, offset.0).map(|()| true)
    }

    fn try_write_at(&self, buf: &[u8], offset: Offset) -> io::Result<bool> {
        if buf.len() > SYNC_MAX {
            return Ok(false);
        }
        self.write_now(buf, offset.0).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: Offset, _flags: WriteFlags) -> io::Result<()> {
        if buf.len() <= SYNC_MAX {
            return self.write_now(buf, offset.0);
        }
        self.file.write_all_at(buf, offset.0)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: Offset, len: Length) -> io::Result<()> {
        self.punch(offset, len)
    }

    fn write_zeroes(&self, offset: Offset, len: Length, flags: ZeroFlags) -> io::Result<()> {
        if !flags.contains(ZeroFlags::MAY_UNMAP) {
            // Memory that must stay allocated has to be written: tmpfs has no FALLOC_FL_ZERO_RANGE.
            return Err(Errno::OPNOTSUPP.into());
        }
        self.punch(offset, len)
    }

    fn block_status(&self, offset: Offset, len: Length) -> io::Result<Extent> {
        let data = Extent {
            len: len.0,
            flags: ExtentFlags::empty(),
        };
        let hole = Extent {
            len: len.0,
            flags: ExtentFlags::HOLE | ExtentFlags::ZERO,
        };
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset.0)) {
            // No data up to the end.
            Err(Errno::NXIO) => Ok(hole),
            Err(errno) => Err(errno.into()),
            Ok(at) if at > offset.0 => Ok(Extent {
                len: at - offset.0,
                ..hole
            }),
            Ok(_) => {
                let end = rustix::fs::seek(&self.file, SeekFrom::Hole(offset.0))?;
                // Punched between the two calls it is a hole by now; to call a page of it data is
                // never wrong.
                let run = end.saturating_sub(offset.0);
                Ok(Extent {
                    len: if run == 0 {
                        len.0.min(u64::from(PAGE))
                    } else {
                        run
                    },
                    ..data
                })
            }
        }
    }
}
