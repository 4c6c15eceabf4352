//! Replies of the transmission phase: their headers, and what precedes the data of a READ.

use super::bytes::{Fields, put};
use super::constants::{ChunkType, Cookie, ReplyFlags, magic};
use super::{Decoded, Errno, HeaderStyle, WireError};

/// A simple reply (section "Simple reply message"): 16 bytes, and after them a READ's data if there
/// was no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// What went wrong, if anything.
    pub error: Errno,
    /// The request's.
    pub cookie: Cookie,
}

impl SimpleReply {
    /// Its length.
    pub const LEN: usize = 16;

    /// Its bytes.
    #[inline]
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, magic::SIMPLE_REPLY.to_be_bytes());
        put(&mut out, 4, self.error.0.to_be_bytes());
        put(&mut out, 8, self.cookie.0.to_be_bytes());
        out
    }
}

/// The header of a structured or extended chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last.
    pub flags: ReplyFlags,
    /// What it carries.
    pub kind: ChunkType,
    /// The request's.
    pub cookie: Cookie,
    /// The request's offset, in an extended header only.
    pub offset: Option<u64>,
    /// Bytes of payload that follow; at most 32 bits of it go into a structured header.
    pub len: u64,
}

impl ChunkHeader {
    /// Length of a structured header.
    pub const STRUCTURED_LEN: usize = 20;
    /// Length of an extended header.
    pub const EXTENDED_LEN: usize = 32;

    /// Its bytes: extended if it has an offset, else structured.
    #[inline]
    pub fn encode(self) -> Prefix {
        let mut prefix = Prefix::default();
        put(&mut prefix.bytes, 4, self.flags.bits().to_be_bytes());
        put(&mut prefix.bytes, 6, self.kind.0.to_be_bytes());
        put(&mut prefix.bytes, 8, self.cookie.0.to_be_bytes());
        if let Some(offset) = self.offset {
            put(&mut prefix.bytes, 0, magic::EXTENDED_REPLY.to_be_bytes());
            put(&mut prefix.bytes, 16, offset.to_be_bytes());
            put(&mut prefix.bytes, 24, self.len.to_be_bytes());
            prefix.len = 32;
        } else {
            // What is sent is far below 4 GiB; a caller's mistake is cut off rather than wrapped.
            let len = u32::try_from(self.len).unwrap_or(u32::MAX);
            put(&mut prefix.bytes, 0, magic::STRUCTURED_REPLY.to_be_bytes());
            put(&mut prefix.bytes, 16, len.to_be_bytes());
            prefix.len = 20;
        }
        prefix
    }
}

/// Longest [`Prefix`]: an extended header, an offset and a hole's size.
pub const PREFIX_MAX: usize = 44;

/// Header and fixed fields of a reply, as bytes on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Prefix {
    bytes: [u8; PREFIX_MAX],
    len: u8,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            bytes: [0; PREFIX_MAX],
            len: 0,
        }
    }
}

impl Prefix {
    /// A reply without data: simple where chunks were not agreed on, else a last chunk of type
    /// NONE.
    ///
    /// `offset` is the request's; only extended headers carry it. In structured style the protocol
    /// allows a simple reply to all but READ; a chunk is valid for all.
    #[inline]
    pub fn done(style: HeaderStyle, cookie: Cookie, offset: u64) -> Self {
        match style {
            HeaderStyle::Simple => Self::simple(cookie, Errno::OK),
            HeaderStyle::Structured | HeaderStyle::Extended => ChunkHeader {
                flags: ReplyFlags::DONE,
                kind: ChunkType::NONE,
                cookie,
                offset: (style == HeaderStyle::Extended).then_some(offset),
                len: 0,
            }
            .encode(),
        }
    }

    /// What comes before the `len` bytes that a READ at `request_offset` found at `data_offset`.
    ///
    /// In simple style these are the same, and `last` means nothing.
    #[inline]
    pub fn data(
        style: HeaderStyle,
        cookie: Cookie,
        request_offset: u64,
        data_offset: u64,
        len: u32,
        last: bool,
    ) -> Self {
        let mut prefix = Self::default();
        let at = [request_offset, data_offset];
        let len = encode_data_prefix(style, cookie, at, len, last, &mut prefix.bytes);
        prefix.len = u8::try_from(len).unwrap_or(u8::MAX);
        prefix
    }

    /// A whole chunk that says that `len` bytes at `hole_offset` are zeroes.
    ///
    /// In simple style there is no such thing, and what comes out is a header with no data after
    /// it.
    #[inline]
    pub fn hole(
        style: HeaderStyle,
        cookie: Cookie,
        request_offset: u64,
        hole_offset: u64,
        len: u32,
        last: bool,
    ) -> Self {
        if style == HeaderStyle::Simple {
            return Self::simple(cookie, Errno::OK);
        }
        Self::content(
            style,
            ChunkType::OFFSET_HOLE,
            cookie,
            request_offset,
            12,
            last,
        )
        .with(hole_offset.to_be_bytes())
        .with(len.to_be_bytes())
    }

    /// A simple reply.
    #[inline]
    pub fn simple(cookie: Cookie, error: Errno) -> Self {
        Self::default().with(SimpleReply { error, cookie }.encode())
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    #[inline]
    fn content(
        style: HeaderStyle,
        kind: ChunkType,
        cookie: Cookie,
        request_offset: u64,
        len: u64,
        last: bool,
    ) -> Self {
        ChunkHeader {
            flags: if last {
                ReplyFlags::DONE
            } else {
                ReplyFlags::empty()
            },
            kind,
            cookie,
            offset: (style == HeaderStyle::Extended).then_some(request_offset),
            len,
        }
        .encode()
    }

    /// Appends fields. The sums that occur are constants of this module, at most `PREFIX_MAX`.
    #[inline(always)]
    fn with<const N: usize>(mut self, fields: [u8; N]) -> Self {
        let at = usize::from(self.len);
        self.bytes[at..at + N].copy_from_slice(&fields);
        self.len = u8::try_from(at + N).unwrap_or(u8::MAX);
        self
    }
}

/// Puts what [`Prefix::data`] is straight to where it is needed; how many bytes it takes. `at` is
/// the request's offset and the data's.
///
/// For the path of a cached READ: a copy right behind the stores would wait for them (some 15 ns).
#[inline]
pub fn encode_data_prefix(
    style: HeaderStyle,
    cookie: Cookie,
    at: [u64; 2],
    len: u32,
    last: bool,
    out: &mut [u8; PREFIX_MAX],
) -> usize {
    let [request_offset, data_offset] = at;
    if style == HeaderStyle::Simple {
        put(out, 0, magic::SIMPLE_REPLY.to_be_bytes());
        put(out, 4, Errno::OK.0.to_be_bytes());
        put(out, 8, cookie.0.to_be_bytes());
        return SimpleReply::LEN;
    }
    let flags = if last {
        ReplyFlags::DONE
    } else {
        ReplyFlags::empty()
    };
    put(out, 4, flags.bits().to_be_bytes());
    put(out, 6, ChunkType::OFFSET_DATA.0.to_be_bytes());
    put(out, 8, cookie.0.to_be_bytes());
    if style == HeaderStyle::Extended {
        put(out, 0, magic::EXTENDED_REPLY.to_be_bytes());
        put(out, 16, request_offset.to_be_bytes());
        put(out, 24, (u64::from(len) + 8).to_be_bytes());
        put(out, 32, data_offset.to_be_bytes());
        40
    } else {
        put(out, 0, magic::STRUCTURED_REPLY.to_be_bytes());
        put(out, 16, len.saturating_add(8).to_be_bytes());
        put(out, 20, data_offset.to_be_bytes());
        28
    }
}

/// Any reply's header, told apart by its magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply. Whether data follows depends on the request.
    Simple(SimpleReply),
    /// A chunk, whose payload follows.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Reads one. `payload_max` is the most that the client has room for in one chunk.
    ///
    /// # Errors
    /// The magic number is none of a reply's, or a chunk is longer than `payload_max`.
    pub fn decode(input: &[u8], payload_max: u64) -> Result<Decoded<Self>, WireError> {
        let Some(start) = input.first_chunk::<4>() else {
            return Ok(Decoded::NeedMore(SimpleReply::LEN));
        };
        let (value, consumed) = match start.be32(0) {
            magic::SIMPLE_REPLY => {
                let Some(head) = input.first_chunk::<{ SimpleReply::LEN }>() else {
                    return Ok(Decoded::NeedMore(SimpleReply::LEN));
                };
                let reply = SimpleReply {
                    error: Errno(head.be32(4)),
                    cookie: Cookie(head.be64(8)),
                };
                return Ok(Decoded::Item {
                    value: Self::Simple(reply),
                    consumed: SimpleReply::LEN,
                });
            }
            magic::STRUCTURED_REPLY => {
                let Some(head) = input.first_chunk::<{ ChunkHeader::STRUCTURED_LEN }>() else {
                    return Ok(Decoded::NeedMore(ChunkHeader::STRUCTURED_LEN));
                };
                (
                    chunk_header(head, None, u64::from(head.be32(16))),
                    head.len(),
                )
            }
            magic::EXTENDED_REPLY => {
                let Some(head) = input.first_chunk::<{ ChunkHeader::EXTENDED_LEN }>() else {
                    return Ok(Decoded::NeedMore(ChunkHeader::EXTENDED_LEN));
                };
                (
                    chunk_header(head, Some(head.be64(16)), head.be64(24)),
                    head.len(),
                )
            }
            found => {
                return Err(WireError::BadMagic {
                    what: "a reply",
                    found: u64::from(found),
                });
            }
        };
        if value.len > payload_max {
            return Err(WireError::TooLong {
                what: "a chunk",
                len: value.len,
                max: payload_max,
            });
        }
        Ok(Decoded::Item {
            value: Self::Chunk(value),
            consumed,
        })
    }
}

fn chunk_header<const N: usize>(head: &[u8; N], offset: Option<u64>, len: u64) -> ChunkHeader {
    ChunkHeader {
        flags: ReplyFlags::from_bits_retain(head.be16(4)),
        kind: ChunkType(head.be16(6)),
        cookie: Cookie(head.be64(8)),
        offset,
        len,
    }
}
