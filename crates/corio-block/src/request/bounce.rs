//! Bounce buffers: requests whose offset, length or memory the driver does not take as they are go
//! through aligned memory, piece by piece.

use std::io;

use corio::fs::AlignedBuf;

use super::{
    align::{self, Piece},
    bounds::Span,
};
use crate::{
    Limits, Offset, WriteFlags,
    driver::Driver,
    units::{buffer_len, bytes, round_up},
};

/// The largest bounce buffer. A request of any length takes no more memory than this beyond its
/// own; a multiple of every alignment.
pub(crate) const PIECE_MAX: u64 = 1 << 20;

/// A driver with what is needed to bounce for it.
#[derive(Debug)]
pub(crate) struct Bounce<'a> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) limits: Limits,
    pub(crate) size: u64,
}

impl Bounce<'_> {
    /// Whether the driver takes a request of this span and buffer as it is.
    #[inline]
    pub(crate) fn takes(&self, buf: &[u8], span: Span) -> bool {
        align::is_aligned(span, self.limits.request_alignment, self.size)
            && self.limits.memory_alignment_holds(buf)
    }

    /// Reads the span into `buf`, which has its length.
    pub(crate) fn read(&self, buf: &mut [u8], span: Span) -> io::Result<()> {
        let mut block = self.buffer(span)?;
        let mut rest = buf;
        for piece in self.pieces(span) {
            let padded = &mut block[..buffer_len(piece.padded.len())];
            self.driver.read_at(padded, Offset(piece.padded.start()))?;
            let (now, later) = rest.split_at_mut(buffer_len(piece.wanted.len()));
            now.copy_from_slice(&padded[buffer_len(piece.head())..][..now.len()]);
            rest = later;
        }
        Ok(())
    }

    /// Writes `buf` to the span, which has its length. The caller holds an exclusive turn on the
    /// padded span, or a shared one where padding adds nothing.
    pub(crate) fn write(&self, buf: &[u8], span: Span, flags: WriteFlags) -> io::Result<()> {
        let mut block = self.buffer(span)?;
        let mut rest = buf;
        for piece in self.pieces(span) {
            let (now, later) = rest.split_at(buffer_len(piece.wanted.len()));
            rest = later;
            self.write_piece(&mut block, piece, now, flags)?;
        }
        Ok(())
    }

    fn write_piece(
        &self,
        block: &mut [u8],
        piece: Piece,
        data: &[u8],
        flags: WriteFlags,
    ) -> io::Result<()> {
        let padded = &mut block[..buffer_len(piece.padded.len())];
        for old in piece
            .to_read(self.limits.request_alignment)
            .into_iter()
            .flatten()
        {
            let at = buffer_len(old.start() - piece.padded.start());
            let part = &mut padded[at..][..buffer_len(old.len())];
            self.driver.read_at(part, Offset(old.start()))?;
        }
        padded[buffer_len(piece.head())..][..data.len()].copy_from_slice(data);
        self.driver
            .write_at(padded, Offset(piece.padded.start()), flags)
    }

    fn pieces(&self, span: Span) -> impl Iterator<Item = Piece> + use<> {
        align::pieces(span, self.limits.request_alignment, self.size, PIECE_MAX)
    }

    /// A buffer that holds the longest piece of the span.
    fn buffer(&self, span: Span) -> io::Result<AlignedBuf> {
        let padded = align::pad(span, self.limits.request_alignment, self.size);
        // Whole blocks, so that the memory of a block at an odd end of the disk is whole, too.
        let len = round_up(padded.len(), self.limits.request_alignment, u64::MAX).min(PIECE_MAX);
        aligned_zeroes(len, self.limits)
    }
}

/// Zeroed memory that the driver takes.
pub(crate) fn aligned_zeroes(len: u64, limits: Limits) -> io::Result<AlignedBuf> {
    let alignment = buffer_len(u64::from(limits.memory_alignment));
    AlignedBuf::zeroed(buffer_len(len), alignment)
}

impl Limits {
    /// Whether the driver takes a buffer as it is, as far as memory goes.
    #[inline]
    pub(crate) fn allow_at_once(&self, buf: &[u8]) -> bool {
        self.memory_alignment_holds(buf) && bytes(buf.len()) <= u64::from(self.max_transfer)
    }

    /// Whether a buffer begins where the driver wants it to.
    #[inline]
    pub(crate) fn memory_alignment_holds(&self, buf: &[u8]) -> bool {
        bytes(buf.as_ptr().addr()) & (u64::from(self.memory_alignment) - 1) == 0
    }
}
