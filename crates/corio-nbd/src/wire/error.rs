//! Why bytes are not a message.

/// Why bytes can never become a message, however many more arrive.
///
/// In a header this ends the connection, as the stream has lost its frame. In an option's payload
/// the frame is whole, and the answer is [`ReplyCode::ERR_INVALID`](super::ReplyCode::ERR_INVALID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A message starts with the wrong magic number.
    #[error("bad magic {found:#x} where {what} must begin")]
    BadMagic {
        /// The message that was expected.
        what: &'static str,
        /// The number found.
        found: u64,
    },
    /// The peer set flags that this side does not know and must not ignore.
    #[error("unknown client flags {0:#x}")]
    UnknownFlags(u32),
    /// A length in a header is larger than the receiver allows.
    #[error("{what} of {len} bytes is longer than the {max} allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// The length the header gives.
        len: u64,
        /// The receiver's limit.
        max: u64,
    },
    /// A payload ends before its fields do.
    #[error("{what} ends before its fields do")]
    Truncated {
        /// The message.
        what: &'static str,
    },
    /// A payload goes on after its last field.
    #[error("{what} has {len} bytes after its last field")]
    TrailingBytes {
        /// The message.
        what: &'static str,
        /// How many.
        len: usize,
    },
    /// A string is longer than the protocol's 4096 bytes.
    #[error("string of {len} bytes, 4096 are allowed")]
    StringTooLong {
        /// Its length.
        len: usize,
    },
    /// A string is not UTF-8, or holds a NUL.
    #[error("string is not text")]
    StringNotText,
    /// A field has a value that the protocol forbids there.
    #[error("{what} has a forbidden value")]
    Forbidden {
        /// The field.
        what: &'static str,
    },
}
