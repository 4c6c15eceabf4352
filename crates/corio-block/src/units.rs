//! Offsets and lengths of a disk, in bytes. Two types, so that a function cannot be handed one for
//! the other, and checked arithmetic only: both come from clients. And rounding to blocks.

use std::fmt;

/// A position on a disk, in bytes from its start.
///
/// ```
/// use corio_block::{Length, Offset};
///
/// assert_eq!(Offset(4096).checked_add(Length(512)), Some(Offset(4608)));
/// assert_eq!(Offset(u64::MAX).checked_add(Length(1)), None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// A number of bytes on a disk.
///
/// ```
/// use corio_block::Length;
///
/// assert_eq!(Length::of(&[0; 512]), Length(512));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length(pub u64);

impl Offset {
    /// The start of the disk.
    pub const ZERO: Offset = Offset(0);

    /// The offset `len` bytes further on; `None` past the largest number.
    #[must_use]
    pub fn checked_add(self, len: Length) -> Option<Offset> {
        self.0.checked_add(len.0).map(Offset)
    }

    /// How far this offset lies behind `start`; `None` if it lies before it.
    #[must_use]
    pub fn checked_distance_from(self, start: Offset) -> Option<Length> {
        self.0.checked_sub(start.0).map(Length)
    }
}

impl Length {
    /// No bytes.
    pub const ZERO: Length = Length(0);

    /// The length of a buffer.
    #[must_use]
    #[inline]
    pub fn of(buf: &[u8]) -> Length {
        Length(bytes(buf.len()))
    }

    /// The sum; `None` past the largest number.
    #[must_use]
    pub fn checked_add(self, more: Length) -> Option<Length> {
        self.0.checked_add(more.0).map(Length)
    }

    /// Whether this is no bytes at all.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A size in memory as a number of bytes on a disk. Lossless wherever Linux runs.
#[inline]
pub(crate) fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A number of bytes that is known to fit a buffer (it was cut from one, or capped by one).
#[inline]
pub(crate) fn buffer_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The largest multiple of `alignment` (a power of two) that is not above `n`.
#[inline]
pub(crate) fn round_down(n: u64, alignment: u32) -> u64 {
    n & !(u64::from(alignment) - 1)
}

/// The smallest multiple of `alignment` that is not below `n`, but `limit` where that lies past it.
#[inline]
pub(crate) fn round_up(n: u64, alignment: u32, limit: u64) -> u64 {
    match n.checked_next_multiple_of(u64::from(alignment)) {
        Some(up) => up.min(limit),
        None => limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_within_its_limit() {
        assert_eq!(round_down(13, 8), 8);
        assert_eq!(round_down(16, 8), 16);
        assert_eq!(round_up(13, 8, 100), 16);
        assert_eq!(round_up(13, 8, 15), 15);
        assert_eq!(round_up(u64::MAX, 8, u64::MAX), u64::MAX);
        assert_eq!(round_up(13, 1, 100), 13);
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Offset(u64::MAX).checked_add(Length(1)), None);
        assert_eq!(Offset(1).checked_add(Length(2)), Some(Offset(3)));
        assert_eq!(Offset(1).checked_distance_from(Offset(2)), None);
        assert_eq!(Offset(5).checked_distance_from(Offset(2)), Some(Length(3)));
        assert_eq!(Length(u64::MAX).checked_add(Length(1)), None);
        assert_eq!(Length(1).checked_add(Length(1)), Some(Length(2)));
    }

    #[test]
    fn is_zero_answers_both_ways() {
        assert!(Length::ZERO.is_zero());
        assert!(!Length(1).is_zero());
    }
}
