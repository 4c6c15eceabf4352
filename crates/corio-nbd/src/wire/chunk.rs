//! The payloads of structured and extended chunks.

use super::bytes::{Cursor, clipped, len32};
use super::constants::{ChunkType, ContextId, Cookie, ReplyFlags};
use super::{ChunkHeader, Errno, HeaderStyle, WireError};

/// A chunk's payload, borrowed from the input.
///
/// ```
/// use corio_nbd::wire::{Chunk, Cookie, Decoded, ReplyFlags, ReplyHeader};
///
/// let data = Chunk::OffsetData { offset: 512, data: b"bytes" };
/// let mut sent = Vec::new();
/// data.encode(ReplyFlags::DONE, Cookie(1), None, &mut sent);
/// let Decoded::Item { value: ReplyHeader::Chunk(header), consumed } =
///     ReplyHeader::decode(&sent, 1 << 20)?
/// else {
///     unreachable!("a whole chunk is there")
/// };
/// assert_eq!(Chunk::parse(&header, &sent[consumed..])?, data);
/// # Ok::<(), corio_nbd::wire::WireError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// The end of a reply.
    None,
    /// Data.
    OffsetData {
        /// Where it belongs, in the export.
        offset: u64,
        /// The data; at least one byte.
        data: &'a [u8],
    },
    /// Zeroes.
    OffsetHole {
        /// Where they belong, in the export.
        offset: u64,
        /// How many; not zero.
        len: u32,
    },
    /// Extents, from the request's offset on.
    BlockStatus {
        /// The metadata context.
        context: ContextId,
        /// Each extent's length and flags.
        extents: Descriptors<'a>,
    },
    /// An error.
    Error {
        /// Which; not zero.
        error: Errno,
        /// A message for people; may be empty.
        message: &'a str,
    },
    /// An error at an offset.
    ErrorOffset {
        /// Which; not zero.
        error: Errno,
        /// A message for people; may be empty.
        message: &'a str,
        /// Where, in the export.
        offset: u64,
    },
    /// An error chunk of an unknown type; the fields that all of them begin with.
    UnknownError {
        /// Its number.
        kind: ChunkType,
        /// Which error.
        error: Errno,
        /// A message for people; may be empty.
        message: &'a str,
        /// The fields after it.
        rest: &'a [u8],
    },
}

impl<'a> Chunk<'a> {
    /// Parses the payload, all of it, of the chunk that `header` began.
    ///
    /// # Errors
    /// The payload breaks the type's rules, or the type is unknown and no error: the client must
    /// then disconnect.
    pub fn parse(header: &ChunkHeader, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(payload, "a chunk");
        match header.kind {
            ChunkType::NONE => {
                if !header.flags.contains(ReplyFlags::DONE) {
                    return Err(WireError::Forbidden {
                        what: "a NONE chunk that is not the last",
                    });
                }
                fields.end().map(|()| Self::None)
            }
            ChunkType::OFFSET_DATA => {
                let offset = fields.u64()?;
                match fields.rest() {
                    [] => Err(WireError::Truncated {
                        what: "OFFSET_DATA",
                    }),
                    data => Ok(Self::OffsetData { offset, data }),
                }
            }
            ChunkType::OFFSET_HOLE => {
                let (offset, len) = (fields.u64()?, fields.u32()?);
                fields.end()?;
                if len == 0 {
                    return Err(WireError::Forbidden {
                        what: "an empty hole",
                    });
                }
                Ok(Self::OffsetHole { offset, len })
            }
            ChunkType::BLOCK_STATUS => {
                let context = ContextId(fields.u32()?);
                let extents = Descriptors::new(fields.rest(), false)?;
                Ok(Self::BlockStatus { context, extents })
            }
            ChunkType::BLOCK_STATUS_EXT => Self::parse_status_ext(header, fields),
            kind if kind.is_error() => Self::parse_error(kind, fields),
            _ => Err(WireError::Forbidden {
                what: "the type of a chunk",
            }),
        }
    }

    fn parse_status_ext(header: &ChunkHeader, mut fields: Cursor<'a>) -> Result<Self, WireError> {
        if header.offset.is_none() {
            return Err(WireError::Forbidden {
                what: "BLOCK_STATUS_EXT in a structured reply",
            });
        }
        let context = ContextId(fields.u32()?);
        let count = fields.u32()?;
        let extents = Descriptors::new(fields.rest(), true)?;
        // Zero leaves it to the header's length; it encodes as the number that it stands for.
        if count != 0 && usize::try_from(count) != Ok(extents.len()) {
            return Err(WireError::Forbidden {
                what: "the count of extents",
            });
        }
        Ok(Self::BlockStatus { context, extents })
    }

    fn parse_error(kind: ChunkType, mut fields: Cursor<'a>) -> Result<Self, WireError> {
        let error = Errno(fields.u32()?);
        let len = usize::from(fields.u16()?);
        let message = fields.string(len)?;
        if error.is_ok() {
            return Err(WireError::Forbidden {
                what: "an error of zero",
            });
        }
        match kind {
            ChunkType::ERROR => {
                fields.end()?;
                Ok(Self::Error { error, message })
            }
            ChunkType::ERROR_OFFSET => {
                let offset = fields.u64()?;
                fields.end()?;
                Ok(Self::ErrorOffset {
                    error,
                    message,
                    offset,
                })
            }
            kind => Ok(Self::UnknownError {
                kind,
                error,
                message,
                rest: fields.rest(),
            }),
        }
    }

    /// The type that carries it.
    pub const fn kind(&self) -> ChunkType {
        match self {
            Self::None => ChunkType::NONE,
            Self::OffsetData { .. } => ChunkType::OFFSET_DATA,
            Self::OffsetHole { .. } => ChunkType::OFFSET_HOLE,
            Self::BlockStatus { extents, .. } if extents.extended => ChunkType::BLOCK_STATUS_EXT,
            Self::BlockStatus { .. } => ChunkType::BLOCK_STATUS,
            Self::Error { .. } => ChunkType::ERROR,
            Self::ErrorOffset { .. } => ChunkType::ERROR_OFFSET,
            Self::UnknownError { kind, .. } => *kind,
        }
    }

    /// Appends header and payload to `out`. `offset` is the request's, in extended style only.
    pub fn encode(
        &self,
        flags: ReplyFlags,
        cookie: Cookie,
        offset: Option<u64>,
        out: &mut Vec<u8>,
    ) {
        let mut payload = Vec::new();
        self.put_payload(&mut payload);
        let len = u64::from(len32(payload.len()));
        let header = ChunkHeader {
            flags,
            kind: self.kind(),
            cookie,
            offset,
            len,
        };
        out.extend_from_slice(header.encode().as_slice());
        out.extend_from_slice(&payload);
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Self::None => {}
            Self::OffsetData { offset, data } => {
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::OffsetHole { offset, len } => {
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(&len.to_be_bytes());
            }
            Self::BlockStatus { context, extents } => {
                out.extend_from_slice(&context.0.to_be_bytes());
                if extents.extended {
                    out.extend_from_slice(&len32(extents.len()).to_be_bytes());
                }
                out.extend_from_slice(extents.raw);
            }
            Self::Error { error, message } => put_error(error, message, out),
            Self::ErrorOffset {
                error,
                message,
                offset,
            } => {
                put_error(error, message, out);
                out.extend_from_slice(&offset.to_be_bytes());
            }
            Self::UnknownError {
                error,
                message,
                rest,
                ..
            } => {
                put_error(error, message, out);
                out.extend_from_slice(rest);
            }
        }
    }
}

fn put_error(error: Errno, message: &str, out: &mut Vec<u8>) {
    let message = clipped(message);
    out.extend_from_slice(&error.0.to_be_bytes());
    // Clipped to 4096 bytes.
    out.extend_from_slice(&u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its length in bytes; not zero. At most 32 bits of it go into a BLOCK_STATUS chunk.
    pub len: u64,
    /// What the metadata context says of it. At most 32 bits of it go into a BLOCK_STATUS chunk.
    pub status: u64,
}

/// The extents of a block status chunk, at least one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Descriptors<'a> {
    /// A whole number of descriptors.
    raw: &'a [u8],
    extended: bool,
}

impl<'a> Descriptors<'a> {
    fn new(raw: &'a [u8], extended: bool) -> Result<Self, WireError> {
        let extents = Self { raw, extended };
        if raw.is_empty() || !raw.len().is_multiple_of(extents.width()) {
            return Err(WireError::Truncated {
                what: "a block status",
            });
        }
        if extents.iter().any(|extent| extent.len == 0) {
            return Err(WireError::Forbidden {
                what: "an empty extent",
            });
        }
        Ok(extents)
    }

    const fn width(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.raw.len() / self.width()
    }

    /// Always false: a block status has at least one extent.
    pub const fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Descriptor> + 'a {
        let extended = self.extended;
        self.raw.chunks_exact(self.width()).map_while(move |raw| {
            let mut fields = Cursor::new(raw, "an extent");
            Some(if extended {
                Descriptor {
                    len: fields.u64().ok()?,
                    status: fields.u64().ok()?,
                }
            } else {
                let (len, status) = (fields.u32().ok()?, fields.u32().ok()?);
                Descriptor {
                    len: u64::from(len),
                    status: u64::from(status),
                }
            })
        })
    }
}

impl std::fmt::Debug for Descriptors<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Appends a BLOCK_STATUS chunk, the last of its reply, to `out`.
///
/// Lengths above 32 bits are cut off at the largest multiple of 64 KiB below: the protocol lets a
/// server say less than was asked. What follows such an extent is left out, as it would be
/// misplaced.
pub fn encode_block_status(
    cookie: Cookie,
    offset: Option<u64>,
    context: ContextId,
    extents: &[Descriptor],
    out: &mut Vec<u8>,
) {
    const CUT: u32 = 0xffff_0000;
    let whole = extents
        .iter()
        .take_while(|extent| extent.len <= u64::from(CUT))
        .count();
    let shown = &extents[..(whole + 1).min(extents.len())];
    let header = ChunkHeader {
        flags: ReplyFlags::DONE,
        kind: ChunkType::BLOCK_STATUS,
        cookie,
        offset,
        len: 4 + 8 * u64::from(len32(shown.len())),
    };
    out.extend_from_slice(header.encode().as_slice());
    out.extend_from_slice(&context.0.to_be_bytes());
    for extent in shown {
        let len = u32::try_from(extent.len).unwrap_or(CUT).min(CUT);
        out.extend_from_slice(&len.to_be_bytes());
        let status = u32::try_from(extent.status).unwrap_or(0);
        out.extend_from_slice(&status.to_be_bytes());
    }
}

/// Appends a BLOCK_STATUS_EXT chunk, the last of its reply, to `out`. Extended headers only.
pub fn encode_block_status_ext(
    cookie: Cookie,
    offset: u64,
    context: ContextId,
    extents: &[Descriptor],
    out: &mut Vec<u8>,
) {
    let count = len32(extents.len());
    let header = ChunkHeader {
        flags: ReplyFlags::DONE,
        kind: ChunkType::BLOCK_STATUS_EXT,
        cookie,
        offset: Some(offset),
        len: 8 + 16 * u64::from(count),
    };
    out.extend_from_slice(header.encode().as_slice());
    out.extend_from_slice(&context.0.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.len.to_be_bytes());
        out.extend_from_slice(&extent.status.to_be_bytes());
    }
}

/// Appends a failed reply to `out`: a simple one, or an ERROR chunk with a message for people.
pub fn encode_error(
    style: HeaderStyle,
    cookie: Cookie,
    offset: u64,
    error: Errno,
    message: &str,
    out: &mut Vec<u8>,
) {
    if style == HeaderStyle::Simple {
        out.extend_from_slice(&super::SimpleReply { error, cookie }.encode());
        return;
    }
    let offset = (style == HeaderStyle::Extended).then_some(offset);
    Chunk::Error { error, message }.encode(ReplyFlags::DONE, cookie, offset, out);
}

/// Appends an ERROR_OFFSET chunk, the last of its reply, to `out`. Not for simple replies.
///
/// `request_offset` goes into an extended header; `at` says where the error lies.
pub fn encode_error_offset(
    style: HeaderStyle,
    cookie: Cookie,
    request_offset: u64,
    error: Errno,
    at: u64,
    out: &mut Vec<u8>,
) {
    let offset = (style == HeaderStyle::Extended).then_some(request_offset);
    Chunk::ErrorOffset {
        error,
        message: "",
        offset: at,
    }
    .encode(ReplyFlags::DONE, cookie, offset, out);
}
