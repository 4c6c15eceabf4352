//! Why a connection ended otherwise than in good order.

use std::io;
use std::time::Duration;

use super::deadline::Deadline;

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
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(String),
    /// The client does without TLS, which this server does not allow.
    #[error("the client does not begin with STARTTLS, and the server speaks TLS only")]
    TlsRequired,
    /// Bytes that came before TLS and would be taken for what is protected by it.
    #[error(
        "{0} bytes came in plain text behind STARTTLS: the client does not speak the protocol, or \
         somebody has put them there"
    )]
    PlaintextBehindStartTls(usize),
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

    /// Tells a time-out in the handshake from one elsewhere.
    pub(super) fn in_handshake(self, deadline: &Deadline) -> Self {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                Self::HandshakeTimeout(deadline.limit())
            }
            error => error,
        }
    }
}
