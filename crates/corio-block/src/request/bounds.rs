//! Bounds: the one place where a client's numbers are compared with the disk's size.

use crate::Offset;

/// A range of bytes, `start..end`, inside a disk whose size fits a signed 64-bit number.
///
/// I1: `start <= end <= size`, so that differences and sums of spans cannot overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The range if it lies within a disk of `size` bytes. An empty range may lie at its end.
    #[inline]
    pub(crate) fn within(offset: Offset, len: u64, size: u64) -> Option<Span> {
        let end = offset.0.checked_add(len)?;
        (end <= size).then_some(Span {
            start: offset.0,
            end,
        })
    }

    /// A part of a span, by its ends.
    ///
    /// # Panics
    ///
    /// In debug builds, if the ends are not in order.
    #[inline]
    pub(crate) fn cut(start: u64, end: u64) -> Span {
        debug_assert!(start <= end);
        Span { start, end }
    }

    #[inline]
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    #[inline]
    pub(crate) fn end(self) -> u64 {
        self.end
    }

    #[inline]
    pub(crate) fn len(self) -> u64 {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    #[inline]
    pub(crate) fn overlaps(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_within_the_disk_becomes_a_span() {
        assert_eq!(
            Span::within(Offset(0), 10, 10),
            Some(Span { start: 0, end: 10 })
        );
        assert_eq!(
            Span::within(Offset(10), 0, 10),
            Some(Span { start: 10, end: 10 })
        );
        assert_eq!(Span::within(Offset(11), 0, 10), None);
        assert_eq!(Span::within(Offset(9), 2, 10), None);
        assert_eq!(Span::within(Offset(u64::MAX), 1, 10), None);
        assert_eq!(Span::within(Offset(1), u64::MAX, 10), None);
    }

    #[test]
    fn overlap_is_of_bytes_not_of_ends() {
        let a = Span::cut(0, 10);
        assert!(a.overlaps(Span::cut(9, 11)));
        assert!(Span::cut(9, 11).overlaps(a));
        assert!(a.overlaps(Span::cut(3, 4)));
        assert!(!a.overlaps(Span::cut(10, 20)));
        assert!(!Span::cut(10, 20).overlaps(a));
    }
}
