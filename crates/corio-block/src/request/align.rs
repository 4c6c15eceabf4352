//! Alignment: which blocks a request touches, and in which pieces it goes through a bounce buffer.
//! Pure arithmetic on spans.
//!
//! ```text
//! wanted          |-------------------------|
//! blocks     |----.----|----.----|----.----|----.----|      the disk ends here, or later
//! padded     |<-- first piece -->|<--- last piece ------->|  (pieces of at most `piece_max`)
//!            head                                     tail
//! ```
//!
//! The end of the disk counts as aligned: a driver with blocks of 512 bytes takes a request that
//! ends at an odd size, and what is padded never reaches past it.

use super::bounds::Span;
use crate::units::{round_down, round_up};

/// Whether a request of this span can go to the driver as it is.
#[inline]
pub(crate) fn is_aligned(span: Span, alignment: u32, size: u64) -> bool {
    round_down(span.start(), alignment) == span.start()
        && (round_down(span.end(), alignment) == span.end() || span.end() == size)
}

/// The blocks that the span touches.
pub(crate) fn pad(span: Span, alignment: u32, size: u64) -> Span {
    Span::cut(
        round_down(span.start(), alignment),
        round_up(span.end(), alignment, size),
    )
}

/// The blocks that lie within the span whole; `None` if there are none.
pub(crate) fn shrink(span: Span, alignment: u32, size: u64) -> Option<Span> {
    let start = round_up(span.start(), alignment, u64::MAX);
    let end = if span.end() == size {
        size
    } else {
        round_down(span.end(), alignment)
    };
    (start < end).then(|| Span::cut(start, end))
}

/// A part of a request with the blocks around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The blocks.
    pub(crate) padded: Span,
    /// The part of them that the request wants; never empty.
    pub(crate) wanted: Span,
}

impl Piece {
    /// Bytes of the first block before the wanted part.
    pub(crate) fn head(self) -> u64 {
        self.wanted.start() - self.padded.start()
    }

    /// Bytes of the last block behind the wanted part.
    pub(crate) fn tail(self) -> u64 {
        self.padded.end() - self.wanted.end()
    }

    /// What must be read before the piece can be written: its first block, its last, both (as one
    /// where nothing lies between them), or nothing.
    pub(crate) fn to_read(self, alignment: u32) -> [Option<Span>; 2] {
        let first_end = round_up(self.padded.start() + 1, alignment, self.padded.end());
        let last_start = round_down(self.padded.end() - 1, alignment);
        match (self.head() > 0, self.tail() > 0) {
            (true, true) if last_start <= first_end => [Some(self.padded), None],
            (head, tail) => [
                head.then(|| Span::cut(self.padded.start(), first_end)),
                tail.then(|| Span::cut(last_start, self.padded.end())),
            ],
        }
    }
}

/// Cuts a request into pieces of at most `piece_max` bytes, a multiple of the alignment.
pub(crate) fn pieces(
    span: Span,
    alignment: u32,
    size: u64,
    piece_max: u64,
) -> impl Iterator<Item = Piece> {
    let padded = pad(span, alignment, size);
    let mut at = padded.start();
    std::iter::from_fn(move || {
        if at >= padded.end() {
            return None;
        }
        let end = at.saturating_add(piece_max).min(padded.end());
        let piece = Piece {
            padded: Span::cut(at, end),
            wanted: Span::cut(at.max(span.start()), end.min(span.end())),
        };
        at = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 37;
    const ALIGNMENT: u32 = 8;

    fn all_spans() -> impl Iterator<Item = Span> {
        (0..=SIZE).flat_map(|start| (start..=SIZE).map(move |end| Span::cut(start, end)))
    }

    // Every span of a small odd-sized disk: padding covers it, shrinking lies within it, and the
    // pieces cover exactly what was asked, in order.
    #[test]
    fn padding_shrinking_and_pieces_agree_for_every_span() {
        for span in all_spans().filter(|span| !span.is_empty()) {
            let padded = pad(span, ALIGNMENT, SIZE);
            assert!(padded.start() <= span.start() && span.end() <= padded.end());
            assert!(is_aligned(padded, ALIGNMENT, SIZE));
            assert_eq!(is_aligned(span, ALIGNMENT, SIZE), padded == span);
            if let Some(inner) = shrink(span, ALIGNMENT, SIZE) {
                assert!(span.start() <= inner.start() && inner.end() <= span.end());
                assert!(is_aligned(inner, ALIGNMENT, SIZE));
            } else {
                assert!(span.len() < 2 * u64::from(ALIGNMENT));
            }
            for piece_max in [8, 16, 1 << 20] {
                let (mut at, mut wanted) = (padded.start(), span.start());
                for piece in pieces(span, ALIGNMENT, SIZE, piece_max) {
                    assert_eq!(piece.padded.start(), at);
                    assert_eq!(piece.wanted.start(), wanted);
                    assert!(piece.padded.len() <= piece_max && !piece.wanted.is_empty());
                    at = piece.padded.end();
                    wanted = piece.wanted.end();
                }
                assert_eq!((at, wanted), (padded.end(), span.end()));
            }
        }
    }

    // What a piece does not overwrite is read first, and nothing is read past the blocks.
    #[test]
    fn every_byte_of_a_piece_is_either_read_or_wanted() {
        for span in all_spans().filter(|span| !span.is_empty()) {
            for piece in pieces(span, ALIGNMENT, SIZE, 16) {
                let reads = piece.to_read(ALIGNMENT);
                let has = |s: Span, byte: u64| s.start() <= byte && byte < s.end();
                for byte in piece.padded.start()..piece.padded.end() {
                    let read = reads.iter().flatten().any(|&r| has(r, byte));
                    assert!(read || has(piece.wanted, byte), "{piece:?}: {byte}");
                }
                for read in reads.iter().flatten() {
                    assert!(is_aligned(*read, ALIGNMENT, SIZE));
                    assert!(piece.padded.start() <= read.start());
                    assert!(read.end() <= piece.padded.end());
                }
                if piece.padded == piece.wanted {
                    assert_eq!(reads, [None, None]);
                }
            }
        }
    }

    #[test]
    fn head_and_tail_of_adjacent_blocks_are_read_at_once() {
        let piece = pieces(Span::cut(3, 13), 8, 64, 1 << 20).next().unwrap();
        assert_eq!(piece.to_read(8), [Some(Span::cut(0, 16)), None]);
        let piece = pieces(Span::cut(3, 21), 8, 64, 1 << 20).next().unwrap();
        assert_eq!(
            piece.to_read(8),
            [Some(Span::cut(0, 8)), Some(Span::cut(16, 24))]
        );
        let piece = pieces(Span::cut(3, 5), 8, 64, 1 << 20).next().unwrap();
        assert_eq!(piece.to_read(8), [Some(Span::cut(0, 8)), None]);
    }
}
