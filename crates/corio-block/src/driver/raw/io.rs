//! A raw image, open: requests on its descriptors. See the module above for which does what.

use std::io;

use corio::fs::{self, ExtentKind, File};

use crate::{
    Extent, ExtentFlags, Length, Limits, Offset, WriteFlags, ZeroFlags,
    driver::Driver,
    units::{buffer_len, bytes, round_up},
};

/// How much is read at once to prefetch.
const PREFETCH_STEP: u64 = 256 << 10;

/// An open raw image.
///
/// - I1: `tail` is there exactly if `tail_from` lies within the disk; bytes from `tail_from` on are
///   read and written through it alone, those before it through `data` alone.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) data: File,
    pub(super) flush: Option<File>,
    pub(super) tail: Option<File>,
    pub(super) tail_from: u64,
    pub(super) size: u64,
    pub(super) limits: Limits,
    pub(super) device: bool,
    pub(super) unmap: bool,
}

impl Raw {
    /// How many of `len` bytes from `offset` on are for `data`; the rest is for the tail.
    fn before_tail(&self, offset: u64, len: u64) -> u64 {
        len.min(self.tail_from.saturating_sub(offset))
    }

    /// The descriptor for the tail. There is one wherever a range reaches it (I1).
    fn tail(&self) -> &File {
        self.tail.as_ref().unwrap_or(&self.data)
    }
}

impl Driver for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn size(&self) -> Length {
        Length(self.size)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn write_flags(&self) -> WriteFlags {
        WriteFlags::FUA
    }

    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        let split = self.before_tail(offset.0, bytes(buf.len()));
        let (front, tail) = buf.split_at_mut(buffer_len(split));
        if !front.is_empty() {
            read_padded(&self.data, front, offset.0)?;
        }
        if !tail.is_empty() {
            read_padded(self.tail(), tail, offset.0 + split)?;
        }
        Ok(())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<bool> {
        // Only asked where there are no blocks, and so no tail.
        Ok(self.data.try_read_at(buf, offset.0)? == Some(buf.len()))
    }

    fn try_write_at(&self, buf: &[u8], offset: Offset) -> io::Result<bool> {
        // As that.
        Ok(self.data.try_write_at(buf, offset.0)? == Some(buf.len()))
    }

    fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> io::Result<()> {
        let split = self.before_tail(offset.0, bytes(buf.len()));
        let (front, tail) = buf.split_at(buffer_len(split));
        let parts = [
            (&self.data, front, offset.0),
            (self.tail(), tail, offset.0 + split),
        ];
        for (file, part, at) in parts {
            if part.is_empty() {
                continue;
            }
            if flags.contains(WriteFlags::FUA) {
                file.write_all_at_durable(part, at)?;
            } else {
                file.write_all_at(part, at)?;
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        match &self.flush {
            Some(file) => file.sync_data(),
            // Read-only: nothing of ours to make durable.
            None => Ok(()),
        }
    }

    fn discard(&self, offset: Offset, len: Length) -> io::Result<()> {
        if !self.unmap {
            return Ok(());
        }
        let mut end = offset.0 + len.0;
        if end == self.size && !self.device {
            // To the end of the last block, or it would be zeroed in part and stay allocated. The
            // file does not grow by it.
            end = round_up(end, self.limits.discard_alignment, i64::MAX.unsigned_abs());
        }
        self.data.discard(offset.0, end - offset.0)
    }

    fn write_zeroes(&self, offset: Offset, len: Length, flags: ZeroFlags) -> io::Result<()> {
        let mut how = fs::ZeroFlags::empty();
        how.set(
            fs::ZeroFlags::MAY_UNMAP,
            self.unmap && flags.contains(ZeroFlags::MAY_UNMAP),
        );
        how.set(
            fs::ZeroFlags::FAST_ONLY,
            flags.contains(ZeroFlags::NO_FALLBACK),
        );
        let split = self.before_tail(offset.0, len.0);
        if split > 0 {
            self.data.write_zeroes(offset.0, split, how)?;
        }
        // A filesystem that zeroed the front fast does the same here, so the promise to change
        // nothing on EOPNOTSUPP holds.
        if split < len.0 {
            self.tail()
                .write_zeroes(offset.0 + split, len.0 - split, how)?;
        }
        Ok(())
    }

    fn block_status(&self, offset: Offset, len: Length) -> io::Result<Extent> {
        if self.device {
            // Devices do not tell what is allocated.
            return Ok(Extent {
                len: len.0,
                flags: ExtentFlags::empty(),
            });
        }
        let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
        match self.data.extent_at(offset.0) {
            Ok(found) => Ok(Extent {
                len: found.len,
                flags: if found.kind == ExtentKind::Hole {
                    hole
                } else {
                    ExtentFlags::empty()
                },
            }),
            // Past the end of a file that was cut off meanwhile; it reads as zeroes.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Extent {
                len: len.0,
                flags: hole,
            }),
            Err(error) => Err(error),
        }
    }

    fn cache(&self, offset: Offset, len: Length) -> io::Result<()> {
        if self.limits.request_alignment > 1 {
            // There is no cache to fill.
            return Ok(());
        }
        // Read it: posix_fadvise(WILLNEED) takes about 1 MiB at most, and waits for metadata.
        let mut buf = vec![0; buffer_len(len.0.min(PREFETCH_STEP))];
        let (mut at, end) = (offset.0, offset.0 + len.0);
        while at < end {
            // A hole has nothing to fetch; where the file cannot tell, it is read.
            if let Ok(found) = self.data.extent_at(at)
                && found.kind == ExtentKind::Hole
            {
                at = at.saturating_add(found.len);
                continue;
            }
            let step = (end - at).min(PREFETCH_STEP);
            if self.data.read_at(&mut buf[..buffer_len(step)], at)? == 0 {
                break;
            }
            at += step;
        }
        Ok(())
    }
}

/// Fills the buffer; what lies behind the end of a file that was cut off reads as zeroes.
fn read_padded(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let read = file.read_at(buf, offset)?;
    buf[read..].fill(0);
    Ok(())
}
