//! The reader's replies, one after the other in one buffer that one write sends.

use super::buffers::Buffer;
use crate::wire::PREFIX_MAX;

/// Longest READ that is served straight into the batch.
pub(super) const FAST_READ_BYTES_MAX: usize = 256 << 10;
/// Room for one such READ behind a batch of smaller replies.
pub(super) const BATCH_BYTES: usize = FAST_READ_BYTES_MAX + (64 << 10);
/// Bytes left free before the first reply. Some CPUs (AMD's Zen 3, seen) copy 6 to 12 times as
/// slowly to an address that lies 1 to 31 bytes further into its page than the source does, which
/// is where data of the page cache goes behind a header that begins a page.
const LEAD: usize = 64;

/// Replies that have not been sent.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Buffer,
    /// Where the next one begins; from [`LEAD`] on.
    end: usize,
}

impl Batch {
    /// `buffer` is of [`BATCH_BYTES`].
    pub(super) fn new(buffer: Buffer) -> Self {
        Self { buffer, end: LEAD }
    }

    /// Whether a reply with `len` bytes of data fits behind what is there.
    #[inline]
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.buffer.len() - self.end >= PREFIX_MAX + len
    }

    /// Appends the header that `head` writes, which says how long it is, and the `len` bytes that
    /// `fill` puts behind it, if that answers true; else nothing. There is room.
    #[inline]
    pub(super) fn try_push<E>(
        &mut self,
        len: usize,
        head: impl FnOnce(&mut [u8; PREFIX_MAX]) -> usize,
        fill: impl FnOnce(&mut [u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let free = &mut self.buffer[self.end..];
        let Some(room) = free.first_chunk_mut() else {
            return Ok(false);
        };
        let used = head(room) + len;
        let filled = fill(&mut free[used - len..used])?;
        if filled {
            self.end += used;
        }
        Ok(filled)
    }

    /// Appends bytes. There is room.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// What is to be sent.
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.buffer[LEAD..self.end]
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.end = LEAD;
    }

    /// The buffer itself, while nothing is in it: for a request that is served in pieces.
    pub(super) fn scratch(&mut self) -> &mut [u8] {
        debug_assert_eq!(self.end, LEAD);
        &mut self.buffer
    }
}
