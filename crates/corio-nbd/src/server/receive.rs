//! The receiving side: one large buffer that one read may fill with many requests.
//!
//! ```text
//!   0        start                    end                 capacity
//!   | used   | arrived, not yet used  | room for the next read |
//! ```

use std::io;

use super::Error;
use super::buffers::Buffer;
use super::transport::Transport;

/// Size of the buffer. Large enough for what a client with many requests in flight sends at once,
/// small enough to stay in a core's cache.
pub(super) const RECEIVE_BYTES: usize = 256 << 10;
/// With less room than this what has arrived is moved to the front before the next read.
const ROOM_BYTES_MIN: usize = 64 << 10;

/// What has arrived and is not used yet.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Receiver {
    /// `buffer` is of [`RECEIVE_BYTES`].
    pub(super) fn new(buffer: Buffer) -> Self {
        Self {
            buffer,
            start: 0,
            end: 0,
        }
    }

    /// The bytes that have arrived.
    #[inline]
    pub(super) fn arrived(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Marks the first `n` of them as used.
    #[inline]
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once behind what has arrived; zero at the end of the stream. Parks until there is
    /// something.
    pub(super) fn fill(&mut self, stream: &impl Transport) -> io::Result<usize> {
        if self.start > 0 && self.buffer.len() - self.end < ROOM_BYTES_MIN {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = retry(|buf| stream.read(buf), &mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n)
    }

    /// Fills `out` with what has arrived and then straight from the stream.
    pub(super) fn read_exact(
        &mut self,
        stream: &impl Transport,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let here = self.arrived().len().min(out.len());
        let (head, mut tail) = out.split_at_mut(here);
        head.copy_from_slice(&self.arrived()[..here]);
        self.consume(here);
        while !tail.is_empty() {
            let n = retry(|buf| stream.read(buf), tail).map_err(Error::io(READING))?;
            if n == 0 {
                return Err(Error::Incomplete { what: "a payload" });
            }
            tail = &mut tail[n..];
        }
        Ok(())
    }

    /// Lets `len` bytes pass unused.
    pub(super) fn skip(&mut self, stream: &impl Transport, mut len: u64) -> Result<(), Error> {
        loop {
            let here = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(self.arrived().len());
            self.consume(here);
            len -= u64::try_from(here).unwrap_or(len);
            if len == 0 {
                return Ok(());
            }
            if self.fill(stream).map_err(Error::io(READING))? == 0 {
                return Err(Error::Incomplete { what: "a payload" });
            }
        }
    }
}

pub(super) const READING: &str = "reading from the client";

/// A read that a signal did not interrupt.
fn retry(
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    buf: &mut [u8],
) -> io::Result<usize> {
    loop {
        match read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
