//! A node: a disk as requests see it. It validates a request whole, before anything is done, and
//! then hands it to the driver in the form the driver takes.
//!
//! - I1: `size`, `limits` and the driver do not change while the node lives.
//! - I2: a request that may wait is counted in `in_flight` from before it first touches the driver
//!   until after it last does. `try_read_at` is not: it cannot wait, so whoever runs on its thread
//!   next finds it done; `try_write_at` is.
//! - I3: where the driver has blocks (`request_alignment > 1`), everything that modifies holds a
//!   turn in `overlaps` on the blocks it touches.

use std::{fmt, io, sync::Arc};

use rustix::io::Errno;

use crate::{
    Error, Extent, ExtentFlags, Length, Limits, Offset, Operation, WriteFlags, ZeroFlags,
    driver::Driver,
    request::{
        align,
        bounce::{self, Bounce},
        bounds::Span,
        flush::{Failure, Flushes},
        in_flight::InFlight,
        serialise::{Overlaps, Turn},
    },
    units::{buffer_len, bytes, round_down, round_up},
};

/// The most that `try_read_at` copies: what a loop may spend on one request before others get
/// their turn (30 us, cold and on a busy machine 170).
const TRY_READ_MAX: usize = 256 << 10;

/// The largest disk: the kernel's offsets are signed.
const SIZE_MAX: u64 = i64::MAX.unsigned_abs();

/// A disk, shared by all who use it as an `Arc<Node>`.
///
/// Any thread may call any method. In a coroutine they park it, in a plain thread they block,
/// except [`try_read_at`](Node::try_read_at), which never waits, and
/// [`try_write_at`](Node::try_write_at), which does not park. No callback runs.
///
/// Requests are not ordered among each other: of two writes that overlap and run at once either
/// may win, block by block. None loses bytes of a third.
///
/// ```
/// use corio_block::{Length, Offset, WriteFlags, memory};
///
/// let disk = memory::Options::new(Length(1 << 20)).open()?;
/// disk.write_at(&[1; 100], Offset(1000), WriteFlags::empty())?;
/// disk.flush()?;
/// assert!(disk.read_at(&mut [0; 1], Offset(1 << 20)).is_err());
/// # Ok::<(), corio_block::Error>(())
/// ```
pub struct Node {
    name: Box<str>,
    driver: Box<dyn Driver>,
    size: u64,
    limits: Limits,
    read_only: bool,
    fua: bool,
    in_flight: InFlight,
    overlaps: Overlaps,
    flushes: Flushes,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("driver", &self.driver)
            .field("read_only", &self.read_only)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// A node over a driver. `name` (a path, say) is how messages call it.
    ///
    /// # Errors
    ///
    /// [`Error::BadSize`] if the disk is larger than the kernel's signed offsets reach.
    ///
    /// # Panics
    ///
    /// If the driver's limits break the rules of [`Limits`]; the message says which.
    pub fn new(
        name: impl Into<String>,
        driver: Box<dyn Driver>,
        read_only: bool,
    ) -> Result<Arc<Node>, Error> {
        let name: String = name.into();
        let limits = driver.limits();
        if let Some(rule) = limits.broken_rule() {
            panic!("{name}: driver {} has {limits:?}: {rule}", driver.name());
        }
        let size = driver.size().0;
        if size > SIZE_MAX {
            return Err(Error::BadSize {
                what: name,
                size,
                advice: "use less than 8 EiB",
            });
        }
        let fua = driver.write_flags().contains(WriteFlags::FUA);
        Ok(Arc::new(Node {
            name: name.into(),
            driver,
            size,
            limits,
            read_only,
            fua,
            in_flight: InFlight::default(),
            overlaps: Overlaps::default(),
            flushes: Flushes::default(),
        }))
    }

    /// How messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its driver is called.
    #[must_use]
    pub fn driver_name(&self) -> &'static str {
        self.driver.name()
    }

    /// Its size in bytes, to the byte; it does not change.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What it serves best. It serves everything.
    #[must_use]
    #[inline]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether it refuses what modifies.
    #[must_use]
    #[inline]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Requests in flight on it, as a hint unless new ones are kept away.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.count()
    }

    /// Fills `buf` from the disk.
    ///
    /// # Errors
    ///
    /// Past the end (EINVAL), or the storage's; what `buf` then holds is undefined.
    #[doc(alias = "bdrv_co_pread")]
    pub fn read_at(&self, buf: &mut [u8], offset: Offset) -> Result<(), Error> {
        let span = self.span(Operation::Read, offset, bytes(buf.len()))?;
        let _request = self.in_flight.begin();
        self.read_span(buf, span)
            .map_err(|e| self.failed(Operation::Read, span, e))
    }

    /// Fills `buf` if that takes no waiting. True: served. False: use [`read_at`](Node::read_at);
    /// what `buf` holds is undefined. Never parks, takes no lock and allocates nothing.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Node::read_at).
    #[inline]
    pub fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> Result<bool, Error> {
        let span = self.span(Operation::Read, offset, bytes(buf.len()))?;
        if self.limits.request_alignment > 1 || buf.len() > TRY_READ_MAX {
            return Ok(false);
        }
        if buf.is_empty() || !self.limits.allow_at_once(buf) {
            return Ok(buf.is_empty());
        }
        self.driver
            .try_read_at(buf, offset)
            .map_err(|error| self.failed(Operation::Read, span, error))
    }

    /// Writes `buf` on the calling thread, where that is a copy into memory as a rule. True: written.
    /// False: use [`write_at`](Node::write_at); the range holds old bytes, new bytes or some of each
    /// until then. Never parks; but a file system may hold its writers up, and then the thread waits
    /// (see [`File::try_write_at`](corio::fs::File::try_write_at)), so that it is for threads on which
    /// nobody depends but who writes.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Node::write_at).
    pub fn try_write_at(&self, buf: &[u8], offset: Offset) -> Result<bool, Error> {
        let span = self.span(Operation::Write, offset, bytes(buf.len()))?;
        if buf.is_empty() {
            return Ok(true);
        }
        if self.limits.request_alignment > 1 || !self.limits.allow_at_once(buf) {
            return Ok(false);
        }
        let _request = self.in_flight.begin();
        self.driver
            .try_write_at(buf, offset)
            .map_err(|error| self.failed(Operation::Write, span, error))
    }

    /// Writes `buf` to the disk; with [`WriteFlags::FUA`] it is durable on return.
    ///
    /// # Errors
    ///
    /// Past the end (ENOSPC), read-only (EPERM), or the storage's; the range then holds old bytes,
    /// new bytes or some of each.
    #[doc(alias = "bdrv_co_pwrite")]
    pub fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> Result<(), Error> {
        let span = self.span(Operation::Write, offset, bytes(buf.len()))?;
        if span.is_empty() {
            return Ok(());
        }
        let _request = self.in_flight.begin();
        let driver_flags = if self.fua {
            flags
        } else {
            flags - WriteFlags::FUA
        };
        {
            let _turn = self.turn(span);
            self.write_span(buf, span, driver_flags)
                .map_err(|error| self.failed(Operation::Write, span, error))?;
        }
        if flags.contains(WriteFlags::FUA) && !self.fua {
            self.run_flush()
        } else {
            Ok(())
        }
    }

    /// Makes durable every write that was completed before the call, on whatever connection or
    /// thread. Flushes that come together share one sync of the storage.
    ///
    /// # Errors
    ///
    /// The storage's; after that every flush fails with [`Error::FlushLost`] until the image is
    /// opened again, as the kernel forgets a failed write-back once it has been reported.
    #[doc(alias = "bdrv_co_flush")]
    pub fn flush(&self) -> Result<(), Error> {
        let _request = self.in_flight.begin();
        self.run_flush()
    }

    /// Gives space back. What the range reads as afterwards is undefined; bytes at its edges that
    /// do not fill a block are kept.
    ///
    /// # Errors
    ///
    /// Past the end (EINVAL), read-only (EPERM), or the storage's.
    #[doc(alias = "bdrv_co_pdiscard")]
    pub fn discard(&self, offset: Offset, len: Length) -> Result<(), Error> {
        let span = self.span(Operation::Discard, offset, len.0)?;
        let Some(blocks) = align::shrink(span, self.limits.discard_alignment, self.size) else {
            return Ok(());
        };
        let _request = self.in_flight.begin();
        let _turn = self.turn(blocks);
        match self
            .driver
            .discard(Offset(blocks.start()), Length(blocks.len()))
        {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result.map_err(|error| self.failed(Operation::Discard, span, error)),
        }
    }

    /// Zeroes a range.
    ///
    /// # Errors
    ///
    /// Past the end (ENOSPC), read-only (EPERM), [`Error::NoFastZero`] (EOPNOTSUPP; nothing has
    /// changed), or the storage's.
    #[doc(alias = "bdrv_co_pwrite_zeroes")]
    pub fn write_zeroes(&self, offset: Offset, len: Length, flags: ZeroFlags) -> Result<(), Error> {
        let span = self.span(Operation::WriteZeroes, offset, len.0)?;
        if span.is_empty() {
            return Ok(());
        }
        let _request = self.in_flight.begin();
        {
            let _turn = self.turn(span);
            self.zero_span(span, flags - ZeroFlags::FUA)
                .map_err(|error| {
                    if flags.contains(ZeroFlags::NO_FALLBACK) && is_unsupported(&error) {
                        Error::NoFastZero {
                            node: self.name.to_string(),
                            offset,
                            len,
                        }
                    } else {
                        self.failed(Operation::WriteZeroes, span, error)
                    }
                })?;
        }
        if flags.contains(ZeroFlags::FUA) {
            self.run_flush()
        } else {
            Ok(())
        }
    }

    /// Appends to `out` what the range consists of: extents in order from `offset`, neighbours of
    /// different kinds, at most `max_extents`. They cover the range, or a part of it where there
    /// are more. Their lengths are multiples of `request_alignment` if `offset` is.
    ///
    /// # Errors
    ///
    /// Past the end (EINVAL), or the storage's; `out` is then as it was.
    #[doc(alias = "bdrv_co_block_status")]
    pub fn block_status(
        &self,
        offset: Offset,
        len: Length,
        max_extents: usize,
        out: &mut Vec<Extent>,
    ) -> Result<(), Error> {
        let span = self.span(Operation::BlockStatus, offset, len.0)?;
        let _request = self.in_flight.begin();
        let before = out.len();
        self.append_extents(span, max_extents, out)
            .map_err(|error| {
                out.truncate(before);
                self.failed(Operation::BlockStatus, span, error)
            })
    }

    /// Brings a range near, so that reading it is fast; a hint.
    ///
    /// # Errors
    ///
    /// Past the end (EINVAL), or the storage's.
    pub fn cache(&self, offset: Offset, len: Length) -> Result<(), Error> {
        let span = self.span(Operation::Cache, offset, len.0)?;
        if span.is_empty() {
            return Ok(());
        }
        let _request = self.in_flight.begin();
        let blocks = align::pad(span, self.limits.request_alignment, self.size);
        self.driver
            .cache(Offset(blocks.start()), Length(blocks.len()))
            .map_err(|error| self.failed(Operation::Cache, span, error))
    }

    /// Validates a request.
    #[inline]
    fn span(&self, operation: Operation, offset: Offset, len: u64) -> Result<Span, Error> {
        if self.read_only && operation.modifies() {
            return Err(Error::ReadOnly {
                node: self.name.to_string(),
                operation,
            });
        }
        match Span::within(offset, len, self.size) {
            Some(span) => Ok(span),
            None => Err(self.out_of_bounds(operation, offset, len)),
        }
    }

    /// Waits until a modifying request may run; see [`Overlaps`]. Costs nothing where there are no
    /// blocks.
    #[inline]
    fn turn(&self, span: Span) -> Option<Turn<'_>> {
        let alignment = self.limits.request_alignment;
        if alignment == 1 {
            return None;
        }
        let padded = align::pad(span, alignment, self.size);
        Some(self.overlaps.begin(padded, padded != span))
    }

    fn bounce(&self) -> Bounce<'_> {
        Bounce {
            driver: &*self.driver,
            limits: self.limits,
            size: self.size,
        }
    }

    fn read_span(&self, buf: &mut [u8], span: Span) -> io::Result<()> {
        if span.is_empty() {
            return Ok(());
        }
        let bounce = self.bounce();
        if !bounce.takes(buf, span) {
            return bounce.read(buf, span);
        }
        let mut at = span.start();
        for part in buf.chunks_mut(buffer_len(u64::from(self.limits.max_transfer))) {
            self.driver.read_at(part, Offset(at))?;
            at += bytes(part.len());
        }
        Ok(())
    }

    fn write_span(&self, buf: &[u8], span: Span, flags: WriteFlags) -> io::Result<()> {
        let bounce = self.bounce();
        if !bounce.takes(buf, span) {
            return bounce.write(buf, span, flags);
        }
        let mut at = span.start();
        for part in buf.chunks(buffer_len(u64::from(self.limits.max_transfer))) {
            self.driver.write_at(part, Offset(at), flags)?;
            at += bytes(part.len());
        }
        Ok(())
    }

    /// Zeroes the whole blocks of a span by the driver's means, and its edges by writing. The
    /// middle goes first: where it fails for want of a fast way nothing has changed.
    fn zero_span(&self, span: Span, flags: ZeroFlags) -> io::Result<()> {
        let Some(middle) = align::shrink(span, self.limits.zero_alignment, self.size) else {
            return self.write_zero_bytes(span);
        };
        match self
            .driver
            .write_zeroes(Offset(middle.start()), Length(middle.len()), flags)
        {
            Err(error) if is_unsupported(&error) && !flags.contains(ZeroFlags::NO_FALLBACK) => {
                return self.write_zero_bytes(span);
            }
            result => result?,
        }
        self.write_zero_bytes(Span::cut(span.start(), middle.start()))?;
        self.write_zero_bytes(Span::cut(middle.end(), span.end()))
    }

    fn write_zero_bytes(&self, span: Span) -> io::Result<()> {
        if span.is_empty() {
            return Ok(());
        }
        let zeroes = bounce::aligned_zeroes(span.len().min(bounce::PIECE_MAX), self.limits)?;
        let mut at = span.start();
        while at < span.end() {
            // Up to a multiple of the piece, so that only the first and last part have edges.
            let end = (at - at % bounce::PIECE_MAX + bounce::PIECE_MAX).min(span.end());
            let part = Span::cut(at, end);
            self.write_span(&zeroes[..buffer_len(part.len())], part, WriteFlags::empty())?;
            at = end;
        }
        Ok(())
    }

    fn append_extents(
        &self,
        span: Span,
        max_extents: usize,
        out: &mut Vec<Extent>,
    ) -> io::Result<()> {
        let (before, mut at) = (out.len(), span.start());
        while at < span.end() {
            let left = span.end() - at;
            let found = self.driver.block_status(Offset(at), Length(left))?;
            let extent = self.whole_blocks(at, left, found);
            let count = out.len() - before;
            match out[before..].last_mut() {
                Some(last) if last.flags == extent.flags => last.len += extent.len,
                _ if count == max_extents => break,
                _ => out.push(extent),
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Cuts an extent to the range, and moves its end to a block boundary: a block that is a hole
    /// in part counts as data. Never empty.
    fn whole_blocks(&self, at: u64, left: u64, found: Extent) -> Extent {
        let alignment = self.limits.request_alignment;
        let end = at.saturating_add(found.len);
        if end >= at + left {
            return Extent { len: left, ..found };
        }
        let down = round_down(end, alignment);
        if !found.flags.is_empty() && down > at {
            return Extent {
                len: down - at,
                ..found
            };
        }
        let end = round_up(end.max(at + 1), alignment, at + left);
        Extent {
            len: end - at,
            flags: ExtentFlags::empty(),
        }
    }

    fn run_flush(&self) -> Result<(), Error> {
        self.flushes
            .run(|| self.driver.flush())
            .map_err(|failure| match failure {
                Failure::Lost(errno) => Error::FlushLost {
                    node: self.name.to_string(),
                    errno,
                    cause: io::Error::from_raw_os_error(errno).to_string(),
                },
                Failure::Now(source) => Error::Flush {
                    node: self.name.to_string(),
                    source,
                },
            })
    }

    #[cold]
    fn out_of_bounds(&self, operation: Operation, offset: Offset, len: u64) -> Error {
        Error::OutOfBounds {
            node: self.name.to_string(),
            operation,
            offset,
            len: Length(len),
            size: self.size,
        }
    }

    #[cold]
    fn failed(&self, operation: Operation, span: Span, source: io::Error) -> Error {
        Error::Io {
            node: self.name.to_string(),
            operation,
            offset: Offset(span.start()),
            len: Length(span.len()),
            source,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error())
}
