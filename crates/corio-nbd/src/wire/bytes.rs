//! Reading big-endian fields out of slices without a chance of running past their end.

use super::error::WireError;

/// Field readers on a header of fixed size. The size is a constant, so the checks fold away where
/// the position is one too.
pub(super) trait Fields {
    fn be16(&self, at: usize) -> u16;
    fn be32(&self, at: usize) -> u32;
    fn be64(&self, at: usize) -> u64;
}

impl<const N: usize> Fields for [u8; N] {
    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self[at], self[at + 1]])
    }

    #[inline(always)]
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }

    #[inline(always)]
    fn be64(&self, at: usize) -> u64 {
        (u64::from(self.be32(at)) << 32) | u64::from(self.be32(at + 4))
    }
}

/// Puts `bytes` into `header` at `at`; both sizes are constants of the caller.
#[inline(always)]
pub(super) fn put<const N: usize, const M: usize>(header: &mut [u8; N], at: usize, bytes: [u8; M]) {
    header[at..at + M].copy_from_slice(&bytes);
}

/// Takes fields off the front of a payload whose end is known.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// `what` names the message in errors.
    pub(super) fn new(payload: &'a [u8], what: &'static str) -> Self {
        Self {
            rest: payload,
            what,
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(WireError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(head)
    }

    /// A string with a 32-bit length before it.
    pub(super) fn string32(&mut self) -> Result<&'a str, WireError> {
        let len = self.u32()?;
        self.string(usize::try_from(len).unwrap_or(usize::MAX))
    }

    pub(super) fn string(&mut self, len: usize) -> Result<&'a str, WireError> {
        string(self.take(len)?)
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::TrailingBytes {
                what: self.what,
                len: self.rest.len(),
            })
        }
    }
}

/// A string as section "Conventions" defines it: UTF-8, no NUL, at most 4096 bytes.
pub(super) fn string(bytes: &[u8]) -> Result<&str, WireError> {
    if bytes.len() > super::STRING_MAX {
        return Err(WireError::StringTooLong { len: bytes.len() });
    }
    if bytes.contains(&0) {
        return Err(WireError::StringNotText);
    }
    std::str::from_utf8(bytes).map_err(|_| WireError::StringNotText)
}

/// The bytes of `text` up to the protocol's limit, cut between characters.
pub(super) fn clipped(text: &str) -> &str {
    let mut end = text.len().min(super::STRING_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A length that is known to be far below 4 GiB because everything here is capped; saturates rather
/// than panics should a caller hand in more.
pub(super) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
