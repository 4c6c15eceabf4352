//! Requests: what the client sends in the transmission phase.

use super::bytes::{Fields, put};
use super::constants::{Command, CommandFlags, Cookie, magic};
use super::{Decoded, WireError};

/// Which headers the two sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Compact requests, simple replies only.
    Simple,
    /// Compact requests, simple replies and structured chunks.
    Structured,
    /// Extended requests and extended chunks.
    Extended,
}

impl HeaderStyle {
    /// Length of a request's header.
    #[inline]
    pub const fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => Request::COMPACT_LEN,
            Self::Extended => Request::EXTENDED_LEN,
        }
    }

    /// Whether replies may consist of chunks.
    #[inline]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// A request's header, compact or extended (section "Request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is to be done.
    pub command: Command,
    /// What the reply must carry.
    pub cookie: Cookie,
    /// Where in the export.
    pub offset: u64,
    /// How many bytes of the export, or of payload: see [`payload_len`](Self::payload_len). At most
    /// 32 bits of it go into a compact header.
    pub length: u64,
}

impl Request {
    /// Length of a compact header.
    pub const COMPACT_LEN: usize = 28;
    /// Length of an extended header.
    pub const EXTENDED_LEN: usize = 32;

    /// Reads one in the agreed style; the payload, if any, comes after `consumed`.
    ///
    /// # Errors
    /// The magic number is wrong: the stream has lost its frame.
    #[inline]
    pub fn decode(input: &[u8], style: HeaderStyle) -> Result<Decoded<Self>, WireError> {
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => Self::decode_compact(input),
            HeaderStyle::Extended => Self::decode_extended(input),
        }
    }

    /// Reads a compact one.
    ///
    /// # Errors
    /// The magic number is wrong.
    #[inline]
    pub fn decode_compact(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::COMPACT_LEN }>() else {
            return Ok(Decoded::NeedMore(Self::COMPACT_LEN));
        };
        if head.be32(0) != magic::REQUEST {
            return Err(bad_magic(head.be32(0)));
        }
        let value = Self {
            flags: CommandFlags::from_bits_retain(head.be16(4)),
            command: Command(head.be16(6)),
            cookie: Cookie(head.be64(8)),
            offset: head.be64(16),
            length: u64::from(head.be32(24)),
        };
        Ok(Decoded::Item {
            value,
            consumed: Self::COMPACT_LEN,
        })
    }

    /// Reads an extended one.
    ///
    /// # Errors
    /// The magic number is wrong.
    #[inline]
    pub fn decode_extended(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::EXTENDED_LEN }>() else {
            return Ok(Decoded::NeedMore(Self::EXTENDED_LEN));
        };
        if head.be32(0) != magic::EXTENDED_REQUEST {
            return Err(bad_magic(head.be32(0)));
        }
        let value = Self {
            flags: CommandFlags::from_bits_retain(head.be16(4)),
            command: Command(head.be16(6)),
            cookie: Cookie(head.be64(8)),
            offset: head.be64(16),
            length: head.be64(24),
        };
        Ok(Decoded::Item {
            value,
            consumed: Self::EXTENDED_LEN,
        })
    }

    /// How many bytes of payload follow the header.
    ///
    /// A WRITE's length; and in extended headers the length wherever PAYLOAD_LEN is set, whatever
    /// the command. The text has an extended WRITE always set it, so one without it is not a WRITE
    /// without a payload but a client that forgot: qemu 10.0 sends them so, and the payload
    /// follows.
    #[inline]
    pub fn payload_len(&self, style: HeaderStyle) -> u64 {
        let carries = self.command == Command::WRITE
            || (style == HeaderStyle::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN));
        if carries { self.length } else { 0 }
    }

    /// Appends the header to `out`.
    ///
    /// # Errors
    /// The length does not fit the style's header.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut head = [0; Self::EXTENDED_LEN];
        put(&mut head, 4, self.flags.bits().to_be_bytes());
        put(&mut head, 6, self.command.0.to_be_bytes());
        put(&mut head, 8, self.cookie.0.to_be_bytes());
        put(&mut head, 16, self.offset.to_be_bytes());
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                let length = u32::try_from(self.length).map_err(|_| WireError::TooLong {
                    what: "a request",
                    len: self.length,
                    max: u64::from(u32::MAX),
                })?;
                put(&mut head, 0, magic::REQUEST.to_be_bytes());
                put(&mut head, 24, length.to_be_bytes());
            }
            HeaderStyle::Extended => {
                put(&mut head, 0, magic::EXTENDED_REQUEST.to_be_bytes());
                put(&mut head, 24, self.length.to_be_bytes());
            }
        }
        out.extend_from_slice(&head[..style.request_len()]);
        Ok(())
    }
}

#[cold]
fn bad_magic(found: u32) -> WireError {
    WireError::BadMagic {
        what: "a request",
        found: u64::from(found),
    }
}
