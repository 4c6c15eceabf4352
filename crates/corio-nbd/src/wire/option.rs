//! Options: what the client sends between the greeting and the transmission phase.
//!
//! A header frames the payload; the payload is parsed once it is there as a whole. So a payload
//! that makes no sense costs the client an error reply, not the connection.

use super::bytes::{Cursor, Fields, len32, put, string};
use super::constants::{InfoType, OptionCode, magic};
use super::{Decoded, WireError};

/// What comes before an option's payload: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: OptionCode,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Its length.
    pub const LEN: usize = 16;

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, magic::OPTION.to_be_bytes());
        put(&mut out, 8, self.code.0.to_be_bytes());
        put(&mut out, 12, self.len.to_be_bytes());
        out
    }

    /// Reads one. The length is the client's word: compare it with a limit before making room for
    /// it.
    ///
    /// # Errors
    /// The magic number is wrong.
    pub fn decode(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::LEN }>() else {
            return Ok(Decoded::NeedMore(Self::LEN));
        };
        let found = head.be64(0);
        if found != magic::OPTION {
            return Err(WireError::BadMagic {
                what: "an option",
                found,
            });
        }
        let value = Self {
            code: OptionCode(head.be32(8)),
            len: head.be32(12),
        };
        Ok(Decoded::Item {
            value,
            consumed: Self::LEN,
        })
    }
}

/// An option with its payload, borrowed from the input.
///
/// ```
/// use corio_nbd::wire::{InfoType, OptionCode, OptionHeader, OptionRequest, encode_info_option};
///
/// let mut sent = Vec::new();
/// encode_info_option(OptionCode::GO, "disk", &[InfoType::BLOCK_SIZE], &mut sent);
/// let option = OptionRequest::parse(OptionCode::GO, &sent[OptionHeader::LEN..])?;
/// let OptionRequest::Go(query) = option else { unreachable!("it is a GO") };
/// assert_eq!(query.name, "disk");
/// assert!(query.wanted.contains(InfoType::BLOCK_SIZE));
/// # Ok::<(), corio_nbd::wire::WireError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionRequest<'a> {
    /// Choose this export and start.
    ExportName(&'a str),
    /// End the session. Whatever comes with it is ignored.
    Abort(&'a [u8]),
    /// List the exports.
    List,
    /// Upgrade to TLS.
    StartTls,
    /// Describe an export.
    Info(InfoQuery<'a>),
    /// Describe an export and start.
    Go(InfoQuery<'a>),
    /// Agree on structured replies.
    StructuredReply,
    /// List metadata contexts.
    ListMetaContext(MetaQuery<'a>),
    /// Select metadata contexts.
    SetMetaContext(MetaQuery<'a>),
    /// Agree on extended headers.
    ExtendedHeaders,
    /// One this codec does not know.
    Unknown {
        /// Its number.
        code: OptionCode,
        /// Its payload.
        data: &'a [u8],
    },
}

impl<'a> OptionRequest<'a> {
    /// Parses the payload, all of it, of the option `code`.
    ///
    /// # Errors
    /// The payload breaks the option's rules; the frame is whole, so the client can be told.
    pub fn parse(code: OptionCode, payload: &'a [u8]) -> Result<Self, WireError> {
        let empty = |request, what| Cursor::new(payload, what).end().map(|()| request);
        match code {
            OptionCode::EXPORT_NAME => string(payload).map(Self::ExportName),
            OptionCode::ABORT => Ok(Self::Abort(payload)),
            OptionCode::LIST => empty(Self::List, "LIST"),
            OptionCode::STARTTLS => empty(Self::StartTls, "STARTTLS"),
            OptionCode::INFO => InfoQuery::parse(payload).map(Self::Info),
            OptionCode::GO => InfoQuery::parse(payload).map(Self::Go),
            OptionCode::STRUCTURED_REPLY => empty(Self::StructuredReply, "STRUCTURED_REPLY"),
            OptionCode::LIST_META_CONTEXT => MetaQuery::parse(payload).map(Self::ListMetaContext),
            OptionCode::SET_META_CONTEXT => MetaQuery::parse(payload).map(Self::SetMetaContext),
            OptionCode::EXTENDED_HEADERS => empty(Self::ExtendedHeaders, "EXTENDED_HEADERS"),
            code => Ok(Self::Unknown {
                code,
                data: payload,
            }),
        }
    }

    /// Its number.
    pub const fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort(_) => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Appends header and payload to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::ExportName(name) => encode_option(self.code(), name.as_bytes(), out),
            Self::Abort(data) | Self::Unknown { data, .. } => {
                encode_option(self.code(), data, out);
            }
            Self::Info(query) | Self::Go(query) => {
                with_header(self.code(), out, |out| query.encode(out));
            }
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => {
                with_header(self.code(), out, |out| query.encode(out));
            }
            Self::List | Self::StartTls | Self::StructuredReply | Self::ExtendedHeaders => {
                encode_option(self.code(), &[], out);
            }
        }
    }
}

/// The payload of INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    /// The export; empty for the default one.
    pub name: &'a str,
    /// What the client wants to know about it.
    pub wanted: InfoTypes<'a>,
}

impl<'a> InfoQuery<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(payload, "INFO or GO");
        let name = fields.string32()?;
        let count = usize::from(fields.u16()?);
        let wanted = InfoTypes {
            raw: fields.take(count * 2)?,
        };
        fields.end()?;
        Ok(Self { name, wanted })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_string32(self.name, out);
        let count = u16::try_from(self.wanted.raw.len() / 2).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(self.wanted.raw);
    }
}

/// The information types of an [`InfoQuery`], in the client's order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InfoTypes<'a> {
    /// A whole number of big-endian 16-bit numbers.
    raw: &'a [u8],
}

impl<'a> InfoTypes<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = InfoType> + 'a {
        self.raw
            .chunks_exact(2)
            .map(|pair| InfoType(u16::from_be_bytes([pair[0], pair[1]])))
    }

    /// Whether `wanted` is among them.
    pub fn contains(&self, wanted: InfoType) -> bool {
        self.iter().any(|it| it == wanted)
    }
}

impl std::fmt::Debug for InfoTypes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The payload of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// The export; empty for the default one.
    pub export: &'a str,
    /// Which contexts.
    pub queries: Queries<'a>,
}

impl<'a> MetaQuery<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(payload, "a metadata context query");
        let export = fields.string32()?;
        let count = fields.u32()?;
        let raw = fields.rest();
        // Each query takes at least the four bytes of its length, so this ends with the payload
        // whatever the count says.
        for _ in 0..count {
            fields.string32()?;
        }
        fields.end()?;
        Ok(Self {
            export,
            queries: Queries { count, raw },
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_string32(self.export, out);
        out.extend_from_slice(&self.queries.count.to_be_bytes());
        out.extend_from_slice(self.queries.raw);
    }
}

/// The query strings of a [`MetaQuery`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Queries<'a> {
    count: u32,
    /// `count` strings, each with its length before it: checked when it was parsed.
    raw: &'a [u8],
}

impl<'a> Queries<'a> {
    /// How many.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none, which means all contexts to LIST and no context to SET.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        let mut fields = Cursor::new(self.raw, "a metadata context query");
        (0..self.count).map_while(move |_| fields.string32().ok())
    }
}

impl std::fmt::Debug for Queries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Appends an option with this payload to `out`.
pub fn encode_option(code: OptionCode, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(
        &OptionHeader {
            code,
            len: len32(payload.len()),
        }
        .encode(),
    );
    out.extend_from_slice(payload);
}

/// Appends an INFO or GO to `out`.
pub fn encode_info_option(code: OptionCode, name: &str, wanted: &[InfoType], out: &mut Vec<u8>) {
    with_header(code, out, |out| {
        put_string32(name, out);
        let count = u16::try_from(wanted.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for info in wanted.iter().take(usize::from(count)) {
            out.extend_from_slice(&info.0.to_be_bytes());
        }
    });
}

/// Appends a LIST_META_CONTEXT or SET_META_CONTEXT to `out`.
pub fn encode_meta_option(code: OptionCode, export: &str, queries: &[&str], out: &mut Vec<u8>) {
    with_header(code, out, |out| {
        put_string32(export, out);
        out.extend_from_slice(&len32(queries.len()).to_be_bytes());
        for query in queries {
            put_string32(query, out);
        }
    });
}

fn put_string32(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&len32(text.len()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends the header, then what `body` appends, and puts the length of that into the header.
fn with_header(code: OptionCode, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; OptionHeader::LEN]);
    body(out);
    let len = len32(out.len() - start - OptionHeader::LEN);
    out[start..start + OptionHeader::LEN].copy_from_slice(&OptionHeader { code, len }.encode());
}
