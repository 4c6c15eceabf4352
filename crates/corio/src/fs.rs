//! Files: read and written at an offset, with borrowed buffers, while the coroutine is parked.
//!
//! From a coroutine every call that may wait parks it; the loop goes on. On a plain thread the
//! calls block. On a loop's thread outside a coroutine they panic: they would stop the loop.
//!
//! Reading, writing, syncing and allocating are cancellation points: who has been asked to end
//! unwinds before the next request. One that is in flight then is asked back, from the kernel or
//! from the queue of an engine or of the workers, and waited for where it cannot be had.

#![allow(unsafe_code)] // AlignedBuf's memory.

use core::alloc::Layout;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, Ordering};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use smallvec::SmallVec;

use crate::context::Local;
use crate::engine::{self, Request};
use crate::sys;

mod on_the_spot;

use on_the_spot::OnTheSpot;

/// How many zero bytes are written at a time where a file system cannot zero a range itself.
const ZERO_CHUNK: usize = 1 << 20;

bitflags::bitflags! {
    /// How [`File::write_zeroes`] may go about it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ZeroFlags: u32 {
        /// The space may be given back to the file system.
        const MAY_UNMAP = 1;
        /// Rather fail with EOPNOTSUPP than write zero bytes.
        const FAST_ONLY = 2;
    }
}

/// What a stretch of a file is.
///
/// ```
/// use corio::fs::{ExtentKind, OpenOptions};
/// let path = std::env::temp_dir().join(format!("corio-doc-kind-{}", std::process::id()));
/// let file = OpenOptions::new().read(true).write(true).create(true).open(&path)?;
/// file.write_all_at(b"data", 0)?;
/// assert_eq!(file.extent_at(0)?.kind, ExtentKind::Data);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Something is stored, or the file system cannot tell.
    Data,
    /// Nothing is stored: it reads as zeroes.
    Hole,
}

/// A stretch of a file.
///
/// ```
/// use corio::fs::{ExtentKind, OpenOptions};
/// let path = std::env::temp_dir().join(format!("corio-doc-extent-{}", std::process::id()));
/// let file = OpenOptions::new().read(true).write(true).create(true).open(&path)?;
/// file.write_all_at(b"data", 1 << 20)?; // What lies before it may be a hole.
/// let (mut at, mut data) = (0, 0);
/// while at < file.size()? {
///     let extent = file.extent_at(at)?;
///     if extent.kind == ExtentKind::Data {
///         data += extent.len;
///     }
///     at += extent.len;
/// }
/// assert!(at == (1 << 20) + 4 && data >= 4);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the offset asked about to the end of the stretch.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// How to open a [`File`], as std's.
///
/// ```
/// let path = std::env::temp_dir().join(format!("corio-doc-{}", std::process::id()));
/// let file = corio::fs::OpenOptions::new().read(true).write(true).create(true).open(&path)?;
/// file.write_all_at(b"disk", 512)?;
/// assert_eq!(file.size()?, 516);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    create: bool,
    create_new: bool,
    truncate: bool,
    direct: bool,
    excl_device: bool,
    custom_flags: i32,
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, yes: bool) -> Self {
            self.$name = yes;
            self
        }
    )*};
}

impl OpenOptions {
    /// Nothing is asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    options! {
        /// For reading.
        read,
        /// For writing.
        write,
        /// Made if it is not there, with mode 0666 less the umask.
        create,
        /// Made; an error if it is there.
        create_new,
        /// Emptied.
        truncate,
        /// O_DIRECT: past the page cache. Offsets, lengths and memory must be aligned, see
        /// [`File::direct_alignment`].
        direct,
        /// O_EXCL: a block device is opened only if nobody else (a mount, another such open) uses
        /// it.
        excl_device,
    }

    /// More open(2) flags.
    #[must_use]
    pub fn custom_flags(mut self, flags: i32) -> Self {
        self.custom_flags = flags;
        self
    }

    /// Opens the file. May park.
    ///
    /// # Errors
    /// open(2)'s; EINVAL where the file system knows no O_DIRECT.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        if !self.write && (self.truncate || self.create || self.create_new) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL)); // As std's.
        }
        let mut flags =
            OFlags::CLOEXEC | OFlags::from_bits_retain(self.custom_flags.cast_unsigned());
        flags |= match (self.read, self.write) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        for (wanted, flag) in [
            (self.create || self.create_new, OFlags::CREATE),
            (self.create_new || self.excl_device, OFlags::EXCL),
            (self.truncate, OFlags::TRUNC),
            (self.direct, OFlags::DIRECT),
        ] {
            flags.set(flag, flags.contains(flag) || wanted);
        }
        let path = path.as_ref();
        let mode = Mode::from_raw_mode(0o666);
        let fd = off_loop(|| rustix::fs::open(path, flags, mode).map_err(io::Error::from))??;
        #[cfg(feature = "power-loss-shim")]
        let fd = sys::power_loss::substitute(fd, self.write)?;
        Ok(File::new(fd, flags.contains(OFlags::DIRECT)))
    }
}

/// An open file or block device.
///
/// `Send` and `Sync`: coroutines of any contexts may use one at the same time; each request goes to
/// the engine of the context whose coroutine makes it.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let read = io.context().spawn(|| {
///     let file = corio::fs::File::open("/etc/passwd")?;
///     let mut block = [0u8; 4];              // borrowed, on the coroutine's own stack
///     file.read_exact_at(&mut block, 0)?;    // parks the coroutine; the loop goes on
///     Ok::<_, std::io::Error>(block)
/// });
/// assert_eq!(&read.join().unwrap()?, b"root");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct File {
    fd: OwnedFd,
    /// Alignment for direct I/O; 0 if it goes through the page cache.
    direct_alignment: u32,
    /// Opened with O_DIRECT, and a file or a block device: Linux AIO can carry its requests. A pipe
    /// has that flag in another sense, and would block.
    is_direct_disk: bool,
    on_the_spot: OnTheSpot,
    /// The errno with which a flush failed: data may be lost, so every later one fails too.
    flush_errno: AtomicI32,
    /// Where data was found last.
    data_run: Mutex<DataRun>,
}

/// A stretch of data that was found, so that reading along a file does not ask the file system each
/// time. It is forgotten when this `File` gives space back; where somebody else does, "data" stays
/// a true answer, only not the best one, as long as the file reaches that far.
#[derive(Debug, Default)]
struct DataRun {
    start: u64,
    end: u64,
    /// How often space has been given back: what was found before that is not kept.
    epoch: u64,
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap_or(OFlags::empty());
        Self::new(fd, flags.contains(OFlags::DIRECT))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File {
    fn new(fd: OwnedFd, direct: bool) -> Self {
        let direct_alignment = if direct {
            sys::file::direct_alignment(fd.as_fd())
        } else {
            0
        };
        let is_direct_disk = direct && sys::file::size(fd.as_fd()).is_ok();
        Self {
            fd,
            direct_alignment,
            is_direct_disk,
            on_the_spot: OnTheSpot::new(direct),
            flush_errno: AtomicI32::new(0),
            data_run: Mutex::default(),
        }
    }

    /// Opens a file for reading. May park.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new().read(true).open(path)
    }

    /// How to open otherwise.
    #[must_use]
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// Reads until `buf` is full or the file ends; how many bytes came. May park.
    ///
    /// # Errors
    /// preadv(2)'s; ECANCELED while the coroutine unwinds.
    #[doc(alias = "bdrv_co_pread")]
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = advance(offset, done)?;
            let n = Request::Read {
                bufs: &mut [IoSliceMut::new(&mut buf[done..])],
                offset: at,
            }
            .run(self.fd.as_fd(), self.is_direct_disk)?;
            done += n;
            if self.is_end(n) {
                break;
            }
        }
        Ok(done)
    }

    /// Fills `buf`. May park.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); UnexpectedEof if the file ends first.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? == buf.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Reads into several buffers in turn until all are full or the file ends. May park.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let mut rest = bufs;
        IoSliceMut::advance_slices(&mut rest, 0); // Skips empty ones: nothing read into nothing is not the end.
        let mut done = 0;
        while !rest.is_empty() {
            let at = advance(offset, done)?;
            let n = Request::Read {
                bufs: &mut *rest,
                offset: at,
            }
            .run(self.fd.as_fd(), self.is_direct_disk)?;
            done += n;
            if self.is_end(n) {
                break;
            }
            IoSliceMut::advance_slices(&mut rest, n);
        }
        Ok(done)
    }

    /// Writes all of `buf`. May park.
    ///
    /// # Errors
    /// pwritev(2)'s; ENOSPC where the system writes nothing.
    #[doc(alias = "bdrv_co_pwrite")]
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&[IoSlice::new(buf)], offset, false)
    }

    /// Writes all of `buf` so that it is on the medium when the call returns (FUA). May park.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    pub fn write_all_at_durable(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&[IoSlice::new(buf)], offset, true)
    }

    /// Writes all of several buffers in turn; `durable` as in
    /// [`write_all_at_durable`](Self::write_all_at_durable). May park.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    pub fn write_all_vectored_at(
        &self,
        bufs: &[IoSlice<'_>],
        offset: u64,
        durable: bool,
    ) -> io::Result<()> {
        let mut own: SmallVec<[IoSlice<'_>; 8]> = SmallVec::from_iter(bufs.iter().copied());
        let mut rest = &mut own[..];
        IoSlice::advance_slices(&mut rest, 0); // Skips empty ones.
        let mut done = 0;
        while !rest.is_empty() {
            let at = advance(offset, done)?;
            let written = Request::Write {
                bufs: rest,
                offset: at,
                durable,
            }
            .run(self.fd.as_fd(), self.is_direct_disk);
            if durable && let Err(error) = &written {
                self.note_failed_durable(error);
            }
            match written? {
                0 => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                n => {
                    done += n;
                    IoSlice::advance_slices(&mut rest, n);
                }
            }
        }
        Ok(())
    }

    /// On a cached file a durable write ends as a flush does, and is told of pages that were lost
    /// before, too; a flush is then not told any more. EIO alone: that the disk is full may have
    /// been said of this very write.
    fn note_failed_durable(&self, error: &io::Error) {
        if self.direct_alignment == 0 && error.raw_os_error() == Some(libc::EIO) {
            self.flush_errno.store(libc::EIO, Ordering::Release);
        }
    }

    /// Waits until everything written before is on the medium (fdatasync). May park.
    ///
    /// # Errors
    /// fdatasync(2)'s. Once it has failed, or a durable write to the page cache has with EIO, every
    /// later call fails the same way until the file is opened anew: the kernel reports a lost page
    /// once, and what it was is gone.
    #[doc(alias = "bdrv_co_flush")]
    pub fn sync_data(&self) -> io::Result<()> {
        let sticky = || match self.flush_errno.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
        sticky()?;
        if let Err(error) = Request::SyncData.run(self.fd.as_fd(), self.is_direct_disk) {
            // ECANCELED, and what has no errno of the kernel's, is our own: it was not asked.
            if let Some(errno) = error.raw_os_error()
                && errno != libc::ECANCELED
            {
                self.flush_errno.store(errno, Ordering::Release);
            }
            return Err(error);
        }
        // One that failed meanwhile may have taken the report of what this one covers.
        sticky()
    }

    /// Gives `[offset, offset + len)` back: it reads as zeroes afterwards, on a block device
    /// perhaps as before. May park.
    ///
    /// # Errors
    /// fallocate(2)'s or the device's; EOPNOTSUPP where it cannot be done.
    #[doc(alias = "bdrv_co_pdiscard")]
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let _forget = ForgetData(self);
        if self.is_block_device() {
            return off_loop(|| sys::file::device_range(self.fd.as_fd(), false, offset, len))?;
        }
        self.allocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )
    }

    /// Makes `[offset, offset + len)` read as zeroes. May park.
    ///
    /// # Errors
    /// fallocate(2)'s, the device's or pwrite(2)'s; EOPNOTSUPP with `FAST_ONLY` where zero bytes
    /// would have to be written, and on a block device always, unless with `MAY_UNMAP`.
    #[doc(alias = "bdrv_co_pwrite_zeroes")]
    pub fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let _forget = ForgetData(self);
        let result = if self.is_block_device() {
            self.zero_device(offset, len, flags)
        } else {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            let within = self.size()? >= offset.saturating_add(len);
            match within {
                // KEEP_SIZE would leave what lies past the end of the file unwritten.
                false => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
                true if flags.contains(ZeroFlags::MAY_UNMAP) => {
                    self.allocate(punch, offset, len).or_else(|error| {
                        if is_unsupported(&error) {
                            self.allocate(zero, offset, len)
                        } else {
                            Err(error)
                        }
                    })
                }
                true => self.allocate(zero, offset, len),
            }
        };
        match result {
            Err(error) if is_unsupported(&error) && !flags.contains(ZeroFlags::FAST_ONLY) => {
                self.write_zero_bytes(offset, len)
            }
            Err(error) if is_unsupported(&error) => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            result => result,
        }
    }

    fn zero_device(&self, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        if !flags.contains(ZeroFlags::FAST_ONLY) {
            // The kernel writes zero bytes itself where the device cannot zero.
            return off_loop(|| sys::file::device_range(self.fd.as_fd(), true, offset, len))?;
        }
        if !flags.contains(ZeroFlags::MAY_UNMAP) {
            // No call keeps the space, zeroes it fast, and refuses where it cannot.
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.allocate(punch, offset, len)
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let chunk = usize::try_from(len).unwrap_or(ZERO_CHUNK).min(ZERO_CHUNK);
        let align = usize::try_from(self.direct_alignment.max(512)).unwrap_or(512);
        let zeroes = AlignedBuf::zeroed(chunk, align)?;
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(chunk).min(chunk);
            self.write_all_at(&zeroes[..n], at)?;
            at = advance(at, n)?;
        }
        Ok(())
    }

    fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        Request::Allocate { mode, offset, len }
            .run(self.fd.as_fd(), self.is_direct_disk)
            .map(drop)
    }

    /// What lies at `offset`, and how far it goes. May park.
    ///
    /// # Errors
    /// lseek(2)'s; past the end of the file UnexpectedEof.
    #[doc(alias = "bdrv_co_block_status")]
    pub fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        if let Some(extent) = self.known_data_at(offset) {
            // Somebody else may have cut the file off meanwhile.
            let left = self.size()?.saturating_sub(offset);
            if left >= extent.len {
                return Ok(extent);
            }
            drop(ForgetData(self));
        }
        let epoch = self.data_run.lock().epoch;
        let extent = off_loop(|| self.find_extent(offset))??;
        let mut run = self.data_run.lock();
        if extent.kind == ExtentKind::Data && run.epoch == epoch {
            (run.start, run.end) = (offset, offset.saturating_add(extent.len));
        }
        Ok(extent)
    }

    /// The stretch of data at `offset`, if it is known without asking the system: somebody else may
    /// have cut the file off since it was found. Never waits; any thread.
    #[must_use]
    pub fn known_data_at(&self, offset: u64) -> Option<Extent> {
        let run = self.data_run.lock();
        (run.start..run.end).contains(&offset).then(|| Extent {
            len: run.end - offset,
            kind: ExtentKind::Data,
        })
    }

    fn find_extent(&self, offset: u64) -> io::Result<Extent> {
        let (size, device) = sys::file::size(self.fd.as_fd())?;
        let Some(left) = size.checked_sub(offset).filter(|left| *left > 0) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if device {
            return Ok(Extent {
                len: left,
                kind: ExtentKind::Data,
            });
        }
        let (kind, end) = match sys::file::seek_to(self.fd.as_fd(), offset, true) {
            Ok(Some(data)) if data > offset => (ExtentKind::Hole, Some(data)),
            Ok(Some(_)) => (
                ExtentKind::Data,
                sys::file::seek_to(self.fd.as_fd(), offset, false)?,
            ),
            Ok(None) => (ExtentKind::Hole, None),
            // A file system that knows no holes.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (ExtentKind::Data, None),
            Err(error) => return Err(error),
        };
        // A hole may have been filled between the two questions.
        let len = end
            .map_or(left, |end| end.saturating_sub(offset).min(left))
            .max(1);
        Ok(Extent { len, kind })
    }

    /// Size in bytes, of a regular file or a block device. Does not wait.
    ///
    /// # Errors
    /// fstat(2)'s; InvalidInput if it is neither.
    pub fn size(&self) -> io::Result<u64> {
        sys::file::size(self.fd.as_fd()).map(|(size, _)| size)
    }

    /// True for a block device. Does not wait.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        sys::file::size(self.fd.as_fd()).is_ok_and(|(_, device)| device)
    }

    /// Opened with O_DIRECT: what offsets, lengths and addresses must be multiples of, in bytes.
    #[must_use]
    pub fn direct_alignment(&self) -> Option<u32> {
        (self.direct_alignment > 0).then_some(self.direct_alignment)
    }

    /// Takes a shared open file description lock on bytes `[start, start + len)` (fcntl
    /// F_OFD_SETLK). Never waits; any thread. It goes when the file is closed; other descriptions
    /// of this process conflict like strangers'.
    ///
    /// # Errors
    /// WouldBlock if another description holds an exclusive lock there.
    pub fn try_lock_range_shared(&self, start: u64, len: u64) -> io::Result<()> {
        match sys::file::lock_shared(&self.fd, start, len)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Gives locks on the range up. Never waits; any thread.
    ///
    /// # Errors
    /// fcntl(2)'s.
    pub fn unlock_range(&self, start: u64, len: u64) -> io::Result<()> {
        sys::file::unlock(&self.fd, start, len)
    }

    /// True if another description holds any lock in the range (fcntl F_OFD_GETLK for an exclusive
    /// one). Never waits; any thread.
    ///
    /// # Errors
    /// fcntl(2)'s.
    pub fn lock_conflict(&self, start: u64, len: u64) -> io::Result<bool> {
        sys::file::lock_conflict(&self.fd, start, len)
    }

    /// True if a read of `n` bytes was the last: nothing came, or with direct I/O less than whole
    /// blocks.
    fn is_end(&self, n: usize) -> bool {
        n == 0
            || self.direct_alignment > 0
                && usize::try_from(self.direct_alignment)
                    .is_ok_and(|block| !n.is_multiple_of(block))
    }
}

/// Forgets where data was, once space has been given back, or may have been.
struct ForgetData<'a>(&'a File);

impl Drop for ForgetData<'_> {
    fn drop(&mut self) {
        let mut run = self.0.data_run.lock();
        *run = DataRun {
            start: 0,
            end: 0,
            epoch: run.epoch + 1,
        };
    }
}

/// Runs a call that may wait for metadata where it does not stop the loop.
fn off_loop<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    if Local::current().is_none() {
        Ok(f())
    } else {
        engine::unblock(f).map_err(Into::into)
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
    )
}

/// `offset + done`, if any file can reach that far. Larger offsets are negative to the kernel, and
/// -1 is worse than refused: preadv2(2), pwritev2(2) and io_uring take it for the descriptor's own
/// position.
#[inline]
pub(crate) fn advance(offset: u64, done: usize) -> io::Result<u64> {
    u64::try_from(done)
        .ok()
        .and_then(|done| offset.checked_add(done))
        .filter(|at| i64::try_from(*at).is_ok())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Bytes on the heap whose address is a multiple of a power of two, for direct I/O.
///
/// ```
/// let buf = corio::fs::AlignedBuf::zeroed(8192, 4096)?;
/// assert_eq!(buf.as_ptr().addr() % 4096, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: it owns its bytes as a Box would.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes at a multiple of `align`, a power of two.
    ///
    /// # Errors
    /// No memory, or an alignment that is no power of two.
    pub fn zeroed(len: usize, align: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a layout"))?;
        // SAFETY: the layout's size is at least 1.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, layout, len })
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes from `start` on are ours.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl core::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
