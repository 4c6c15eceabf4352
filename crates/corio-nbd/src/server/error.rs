//! Why a connection ended otherwise than in good order.

use std::io;
use std::time::Duration;

use crate::wire::WireError;

/// Why a connection ended otherwise than by the client's DISC, ABORT or closing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The client sent what is no message.
    #[error("the client does not speak the protocol: {0}")]
    Wire(#[from] WireError),
    /// The client closed in the middle of a message.
    #[error("the client closed the connection in the middle of {what}")]
    Incomplete {
        /// The message.
        what: &'static str,
    },
    /// The handshake took too long.
    #[error("the handshake was not finished within {0:?}")]
    HandshakeTimeout(Duration),
    /// Too many options.
    #[error("the client sent more than {0} options")]
    TooManyOptions(u32),
    /// EXPORT_NAME cannot be refused but by closing.
    #[error("the client asked for export {0:?} by EXPORT_NAME, which cannot be answered otherwise")]
    ExportRefused(String),
    /// A payload is too long even to be skipped.
    #[error("the client announced a payload of {len} bytes, {max} are allowed")]
    PayloadTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The disk failed when the header of a reply had already been sent.
    #[error("the disk failed in the middle of a reply: {0}")]
    BrokenReply(corio_block::Error),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

impl Error {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
