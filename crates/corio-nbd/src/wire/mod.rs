//! The NBD messages as Rust types, and their bytes.
//!
//! Everything here is a pure function of its input. A decoder gets the bytes that have arrived so
//! far and answers with the message and how many bytes it took, or with how many bytes it needs to
//! say more, or with the reason why these bytes can never be a message. Payloads are borrowed from
//! the input, never copied.
//!
//! ```text
//!   phase          from the client                    from the server
//!   handshake      ClientHello                        Greeting
//!   options        OptionHeader + OptionRequest       OptionReplyHeader + OptionReply, ExportNameReply
//!   transmission   Request (+ payload)                SimpleReply, ChunkHeader + Chunk
//! ```
//!
//! ```
//! use corio_nbd::wire::{
//!     Command, CommandFlags, Cookie, Decoded, HeaderStyle, Prefix, ReplyHeader, Request,
//! };
//!
//! // A client asks ..
//! let flags = CommandFlags::empty();
//! let (command, cookie) = (Command::READ, Cookie(7));
//! let request = Request { flags, command, cookie, offset: 4096, length: 512 };
//! let mut sent = Vec::new();
//! request.encode(HeaderStyle::Structured, &mut sent)?;
//!
//! // .. a server reads what has arrived, all of it or not ..
//! assert_eq!(Request::decode(&sent[..5], HeaderStyle::Structured)?, Decoded::NeedMore(28));
//! let Decoded::Item { value, consumed } = Request::decode(&sent, HeaderStyle::Structured)? else {
//!     unreachable!("the whole request is there")
//! };
//! assert_eq!((value, consumed), (request, sent.len()));
//!
//! // .. and answers.
//! let head = Prefix::data(HeaderStyle::Structured, value.cookie, 4096, 4096, 512, true);
//! let reply = ReplyHeader::decode(head.as_slice(), 1 << 20)?;
//! assert!(matches!(
//!     reply,
//!     Decoded::Item { value: ReplyHeader::Chunk(chunk), consumed: 20 } if chunk.cookie == cookie
//! ));
//! # Ok::<(), corio_nbd::wire::WireError>(())
//! ```
//!
//! Invariants, which the fuzz target checks:
//! - I1 `consumed` is at most the length of the input; `NeedMore(n)` has `n` greater than it.
//! - I2 Decoding never reads a length and allocates from it: whatever is counted is a borrowed
//!   slice that exists.
//! - I3 A message that was decoded encodes to the bytes it was decoded from, unless the protocol
//!   tells receivers to ignore some of them (each such place is named where it occurs).

mod bytes;
mod chunk;
mod constants;
mod errno;
mod error;
mod handshake;
mod option;
mod option_reply;
mod reply;
mod transmission;

pub use chunk::{
    Chunk, Descriptor, Descriptors, encode_block_status, encode_block_status_ext, encode_error,
    encode_error_offset,
};
pub use constants::{
    BASE_ALLOCATION, ChunkType, ClientFlags, Command, CommandFlags, ContextId, Cookie,
    HandshakeFlags, InfoType, OptionCode, PAYLOAD_PORTABLE_MAX, ReplyCode, ReplyFlags, STRING_MAX,
    StateFlags, TransmissionFlags, magic,
};
pub use errno::Errno;
pub use error::WireError;
pub use handshake::{ClientHello, ExportNameReply, Greeting};
pub use option::{
    InfoQuery, InfoTypes, MetaQuery, OptionHeader, OptionRequest, Queries, encode_info_option,
    encode_meta_option, encode_option,
};
pub use option_reply::{BlockSizes, Info, OptionReply, OptionReplyHeader, encode_option_reply};
pub use reply::{ChunkHeader, PREFIX_MAX, Prefix, ReplyHeader, SimpleReply, encode_data_prefix};
pub use transmission::{HeaderStyle, Request};

/// What a decoder found in the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// A whole message, and how many bytes of the input it took.
    Item {
        /// The message.
        value: T,
        /// Bytes of the input that belong to it.
        consumed: usize,
    },
    /// Not enough yet: the input must hold at least this many bytes in all before it is worth
    /// asking again.
    NeedMore(usize),
}

impl<T> Decoded<T> {
    /// The same answer with the message converted.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Decoded<U> {
        match self {
            Self::Item { value, consumed } => Decoded::Item {
                value: f(value),
                consumed,
            },
            Self::NeedMore(n) => Decoded::NeedMore(n),
        }
    }
}

#[cfg(test)]
mod tests;
