//! What the server answers to an option.

use super::bytes::{Cursor, Fields, clipped, len32, put, string};
use super::constants::{ContextId, InfoType, OptionCode, ReplyCode, TransmissionFlags, magic};
use super::{Decoded, WireError};

/// What comes before the payload of a reply to an option: 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// What the answer is.
    pub code: ReplyCode,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Its length.
    pub const LEN: usize = 20;

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, magic::OPTION_REPLY.to_be_bytes());
        put(&mut out, 8, self.option.0.to_be_bytes());
        put(&mut out, 12, self.code.0.to_be_bytes());
        put(&mut out, 16, self.len.to_be_bytes());
        out
    }

    /// Reads one. The length is the server's word: compare it with a limit before making room for
    /// it.
    ///
    /// # Errors
    /// The magic number is wrong.
    pub fn decode(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::LEN }>() else {
            return Ok(Decoded::NeedMore(Self::LEN));
        };
        let found = head.be64(0);
        if found != magic::OPTION_REPLY {
            return Err(WireError::BadMagic {
                what: "a reply to an option",
                found,
            });
        }
        let value = Self {
            option: OptionCode(head.be32(8)),
            code: ReplyCode(head.be32(12)),
            len: head.be32(16),
        };
        Ok(Decoded::Item {
            value,
            consumed: Self::LEN,
        })
    }
}

/// An answer to an option with its payload, borrowed from the input.
///
/// ```
/// use corio_nbd::wire::{OptionCode, OptionReply, OptionReplyHeader, ReplyCode, encode_option_reply};
///
/// let refusal = OptionReply::Error { code: ReplyCode::ERR_UNKNOWN, message: "no such export" };
/// let mut sent = Vec::new();
/// encode_option_reply(OptionCode::GO, &refusal, &mut sent);
/// let payload = &sent[OptionReplyHeader::LEN..];
/// assert_eq!(OptionReply::parse(ReplyCode::ERR_UNKNOWN, payload)?, refusal);
/// # Ok::<(), corio_nbd::wire::WireError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionReply<'a> {
    /// Done.
    Ack,
    /// An export.
    Server {
        /// Its name.
        name: &'a str,
        /// A description for people; may be empty.
        description: &'a str,
    },
    /// An information item.
    Info(Info<'a>),
    /// A metadata context.
    MetaContext {
        /// Its number; zero in the answer to LIST_META_CONTEXT.
        id: ContextId,
        /// Its name.
        name: &'a str,
    },
    /// An error, known or not.
    Error {
        /// Which.
        code: ReplyCode,
        /// A message for people; may be empty.
        message: &'a str,
    },
    /// A type this codec does not know.
    Unknown {
        /// Its number.
        code: ReplyCode,
        /// Its payload.
        data: &'a [u8],
    },
}

impl<'a> OptionReply<'a> {
    /// Parses the payload, all of it, of a reply of type `code`.
    ///
    /// # Errors
    /// The payload breaks the type's rules.
    pub fn parse(code: ReplyCode, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(payload, "a reply to an option");
        match code {
            ReplyCode::ACK => fields.end().map(|()| Self::Ack),
            ReplyCode::SERVER => {
                let name = fields.string32()?;
                Ok(Self::Server {
                    name,
                    description: string(fields.rest())?,
                })
            }
            ReplyCode::INFO => Info::parse(payload).map(Self::Info),
            ReplyCode::META_CONTEXT => {
                let id = ContextId(fields.u32()?);
                Ok(Self::MetaContext {
                    id,
                    name: string(fields.rest())?,
                })
            }
            code if code.is_error() => Ok(Self::Error {
                code,
                message: string(payload)?,
            }),
            code => Ok(Self::Unknown {
                code,
                data: payload,
            }),
        }
    }

    /// Its number.
    pub const fn code(&self) -> ReplyCode {
        match self {
            Self::Ack => ReplyCode::ACK,
            Self::Server { .. } => ReplyCode::SERVER,
            Self::Info(_) => ReplyCode::INFO,
            Self::MetaContext { .. } => ReplyCode::META_CONTEXT,
            Self::Error { code, .. } | Self::Unknown { code, .. } => *code,
        }
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Ack => {}
            Self::Server { name, description } => {
                let name = clipped(name);
                out.extend_from_slice(&len32(name.len()).to_be_bytes());
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(clipped(description).as_bytes());
            }
            Self::Info(info) => info.encode(out),
            Self::MetaContext { id, name } => {
                out.extend_from_slice(&id.0.to_be_bytes());
                out.extend_from_slice(clipped(name).as_bytes());
            }
            Self::Error { message, .. } => out.extend_from_slice(clipped(message).as_bytes()),
            Self::Unknown { data, .. } => out.extend_from_slice(data),
        }
    }
}

/// Appends a reply to `option` to `out`. Strings longer than the protocol allows are cut.
pub fn encode_option_reply(option: OptionCode, reply: &OptionReply<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; OptionReplyHeader::LEN]);
    reply.put_payload(out);
    let len = len32(out.len() - start - OptionReplyHeader::LEN);
    let header = OptionReplyHeader {
        option,
        code: reply.code(),
        len,
    };
    out[start..start + OptionReplyHeader::LEN].copy_from_slice(&header.encode());
}

/// An information item of the answer to INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info<'a> {
    /// Size and flags.
    Export {
        /// Size in bytes.
        size: u64,
        /// What the export can do.
        flags: TransmissionFlags,
    },
    /// The export's own name.
    Name(&'a str),
    /// A description for people.
    Description(&'a str),
    /// Block size constraints.
    BlockSize(BlockSizes),
    /// A type this codec does not know, which clients ignore.
    Unknown {
        /// Its number.
        info: InfoType,
        /// Its payload.
        data: &'a [u8],
    },
}

/// What sizes of requests an export likes (section "Block size constraints"), in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two.
    pub min: u32,
    /// Requests of this size and alignment are efficient.
    pub preferred: u32,
    /// The largest payload.
    pub max: u32,
}

impl<'a> Info<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(payload, "an information item");
        match InfoType(fields.u16()?) {
            InfoType::EXPORT => {
                let size = fields.u64()?;
                let flags = TransmissionFlags::from_bits_retain(fields.u16()?);
                fields.end()?;
                Ok(Self::Export { size, flags })
            }
            InfoType::NAME => string(fields.rest()).map(Self::Name),
            InfoType::DESCRIPTION => string(fields.rest()).map(Self::Description),
            InfoType::BLOCK_SIZE => {
                let (min, preferred, max) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.end()?;
                Ok(Self::BlockSize(BlockSizes {
                    min,
                    preferred,
                    max,
                }))
            }
            info => Ok(Self::Unknown {
                info,
                data: fields.rest(),
            }),
        }
    }

    fn encode(self, out: &mut Vec<u8>) {
        let mut begin = |info: InfoType| out.extend_from_slice(&info.0.to_be_bytes());
        match self {
            Self::Export { size, flags } => {
                begin(InfoType::EXPORT);
                out.extend_from_slice(&size.to_be_bytes());
                out.extend_from_slice(&flags.bits().to_be_bytes());
            }
            Self::Name(name) => {
                begin(InfoType::NAME);
                out.extend_from_slice(clipped(name).as_bytes());
            }
            Self::Description(text) => {
                begin(InfoType::DESCRIPTION);
                out.extend_from_slice(clipped(text).as_bytes());
            }
            Self::BlockSize(BlockSizes {
                min,
                preferred,
                max,
            }) => {
                begin(InfoType::BLOCK_SIZE);
                for size in [min, preferred, max] {
                    out.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Unknown { info, data } => {
                begin(info);
                out.extend_from_slice(data);
            }
        }
    }
}
