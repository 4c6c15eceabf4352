//! Drivers: what holds a disk's bytes.
//!
//! A driver sees requests that the node has checked and aligned, so it holds no arithmetic on what
//! clients send. It returns bare errnos; the node adds which disk, what and where.

pub mod memory;
pub mod raw;

use std::{fmt, io};

use crate::{Extent, ExtentFlags, Length, Limits, Offset, WriteFlags, ZeroFlags};

/// Holds the bytes of a disk. Used by any number of coroutines on any number of threads at once.
///
/// Promised by the node to every method: the range lies within `size()` and is not empty; its
/// offset and length are multiples of `request_alignment` (`zero_alignment`, `discard_alignment`),
/// but it may end at the end of the disk; buffers begin at multiples of `memory_alignment` and are
/// at most `max_transfer` long; and writes that are not aligned are not running on the same blocks.
///
/// Methods other than `try_read_at` and `try_write_at` may park the calling coroutine, and block a
/// plain thread.
///
/// ```
/// use std::{io, sync::Mutex};
/// use corio_block::{Driver, Length, Limits, Node, Offset, WriteFlags, ZeroFlags};
///
/// #[derive(Debug)]
/// struct Tiny(Mutex<[u8; 512]>);
///
/// impl Driver for Tiny {
///     fn name(&self) -> &'static str { "tiny" }
///     fn size(&self) -> Length { Length(512) }
///     fn limits(&self) -> Limits { Limits::bytes() }
///     fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
///         let at = offset.0 as usize;
///         buf.copy_from_slice(&self.0.lock().unwrap()[at..at + buf.len()]);
///         Ok(())
///     }
///     fn write_at(&self, buf: &[u8], offset: Offset, _: WriteFlags) -> io::Result<()> {
///         let at = offset.0 as usize;
///         self.0.lock().unwrap()[at..at + buf.len()].copy_from_slice(buf);
///         Ok(())
///     }
///     fn flush(&self) -> io::Result<()> { Ok(()) }
/// }
///
/// let disk = Node::new("tiny", Box::new(Tiny(Mutex::new([7; 512]))), false)?;
/// // The node zeroes by writing where the driver cannot do better.
/// disk.write_zeroes(Offset(1), Length(511), ZeroFlags::empty())?;
/// let mut buf = [1; 3];
/// disk.read_at(&mut buf, Offset(0))?;
/// assert_eq!(buf, [7, 0, 0]);
/// # Ok::<(), corio_block::Error>(())
/// ```
pub trait Driver: fmt::Debug + Send + Sync {
    /// What it is called: "raw", "memory".
    fn name(&self) -> &'static str;

    /// The disk's size. It does not change while the driver lives.
    fn size(&self) -> Length;

    /// What it wants of requests. Asked once.
    fn limits(&self) -> Limits;

    /// The write flags it carries out itself; the node makes up for the others (FUA: by a flush).
    fn write_flags(&self) -> WriteFlags {
        WriteFlags::empty()
    }

    /// Fills `buf` from the disk.
    ///
    /// # Errors
    ///
    /// The storage's; what `buf` then holds is undefined.
    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()>;

    /// Fills `buf` if that needs no waiting: true, and it holds the data; false, and what it holds
    /// is undefined. Alone in that it never parks and may be called outside coroutines on a loop.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` on the calling thread, if that is a copy as a rule: true, and it is written;
    /// false, and the range holds old bytes, new bytes or some of each. Never parks; storage may
    /// hold the thread up all the same.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn try_write_at(&self, buf: &[u8], offset: Offset) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` to the disk. `flags` are among `write_flags()`.
    ///
    /// # Errors
    ///
    /// The storage's; the range then holds old bytes, new bytes or some of each.
    fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> io::Result<()>;

    /// Makes durable every write, zeroing and discard that was completed before the call, whoever
    /// made it. The node calls it one at a time and not again after it has failed.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn flush(&self) -> io::Result<()>;

    /// Gives space back; what the range then reads as is undefined, and doing nothing is right.
    ///
    /// # Errors
    ///
    /// The storage's; EOPNOTSUPP counts as done.
    fn discard(&self, offset: Offset, len: Length) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Zeroes without being handed the zeroes. With `NO_FALLBACK` only if that is fast. `FUA` is
    /// never set: the node flushes.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP: it cannot, and has changed nothing. Others: the storage's.
    fn write_zeroes(&self, offset: Offset, len: Length, flags: ZeroFlags) -> io::Result<()> {
        let _ = (offset, len, flags);
        Err(io::Error::from_raw_os_error(
            rustix::io::Errno::OPNOTSUPP.raw_os_error(),
        ))
    }

    /// The kind of the run of bytes that begins at `offset`. It may be cut to `len` or be longer.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn block_status(&self, offset: Offset, len: Length) -> io::Result<Extent> {
        let _ = offset;
        Ok(Extent {
            len: len.0,
            flags: ExtentFlags::empty(),
        })
    }

    /// Brings the range near; a hint.
    ///
    /// # Errors
    ///
    /// The storage's.
    fn cache(&self, offset: Offset, len: Length) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
}
