//! The protocol's numbers, each with its name in the text as an alias for searching.
//!
//! Codes are newtypes rather than enums: an unknown one is not an error of framing, it is answered.

use bitflags::bitflags;

/// Longest string the protocol allows, in bytes.
pub const STRING_MAX: usize = 4096;
/// Largest READ or WRITE every implementation must be able to take, 32 MiB: what is advertised.
pub const PAYLOAD_PORTABLE_MAX: u32 = 1 << 25;
/// The one metadata context that the protocol itself defines.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The numbers that open each message.
pub mod magic {
    /// First eight bytes of every server: "NBDMAGIC".
    #[doc(alias = "INIT_PASSWD")]
    pub const INIT: u64 = 0x4e42_444d_4147_4943;
    /// "IHAVEOPT": newstyle handshake, and each option from the client.
    pub const OPTION: u64 = 0x4948_4156_454f_5054;
    /// Each reply to an option.
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// Compact request.
    #[doc(alias = "NBD_REQUEST_MAGIC")]
    pub const REQUEST: u32 = 0x2560_9513;
    /// Extended request.
    #[doc(alias = "NBD_EXTENDED_REQUEST_MAGIC")]
    pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
    /// Simple reply.
    #[doc(alias = "NBD_SIMPLE_REPLY_MAGIC")]
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    /// Structured reply chunk.
    #[doc(alias = "NBD_STRUCTURED_REPLY_MAGIC")]
    pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
    /// Extended reply chunk.
    #[doc(alias = "NBD_EXTENDED_REPLY_MAGIC")]
    pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
}

/// What the client calls a request, opaque to the server; the reply carries it back.
#[doc(alias = "handle")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// The number the server gave a metadata context in this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ContextId(pub u32);

macro_rules! codes {
    (
        $(#[$type_doc:meta])* $name:ident: $repr:ty;
        $($(#[$doc:meta])* $code:ident = $value:expr;)*
    ) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$doc])* pub const $code: Self = Self($value);)*

            /// The name in the protocol's text without its prefix, if it is a known one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$code => Some(stringify!($code)),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{}::{name}", stringify!($name)),
                    None => write!(f, "{}({:#x})", stringify!($name), self.0),
                }
            }
        }
    };
}

codes! {
    /// An option of the handshake.
    #[doc(alias = "NBD_OPT")] OptionCode: u32;
    /// Choose an export and start, without a way to report errors.
    EXPORT_NAME = 1;
    /// End the session in good order.
    ABORT = 2;
    /// List the exports.
    LIST = 3;
    /// Withdrawn.
    PEEK_EXPORT = 4;
    /// Upgrade to TLS.
    STARTTLS = 5;
    /// Describe an export.
    INFO = 6;
    /// Describe an export and start.
    GO = 7;
    /// Agree on structured replies.
    STRUCTURED_REPLY = 8;
    /// List metadata contexts.
    LIST_META_CONTEXT = 9;
    /// Select metadata contexts.
    SET_META_CONTEXT = 10;
    /// Agree on extended headers.
    EXTENDED_HEADERS = 11;
}

codes! {
    /// What a reply to an option is.
    #[doc(alias = "NBD_REP")] ReplyCode: u32;
    /// Done.
    ACK = 1;
    /// An export.
    SERVER = 2;
    /// An information item.
    INFO = 3;
    /// A metadata context.
    META_CONTEXT = 4;
    /// The option is unknown.
    ERR_UNSUP = 0x8000_0001;
    /// The option is forbidden here.
    ERR_POLICY = 0x8000_0002;
    /// The option is malformed, or makes no sense now.
    ERR_INVALID = 0x8000_0003;
    /// The option is not supported on this platform.
    ERR_PLATFORM = 0x8000_0004;
    /// TLS must come first.
    ERR_TLS_REQD = 0x8000_0005;
    /// No such export.
    ERR_UNKNOWN = 0x8000_0006;
    /// The server is stopping.
    ERR_SHUTDOWN = 0x8000_0007;
    /// The client must ask for block sizes first.
    ERR_BLOCK_SIZE_REQD = 0x8000_0008;
    /// The request or its reply is too large.
    ERR_TOO_BIG = 0x8000_0009;
    /// Extended headers must come first, or are in force already.
    ERR_EXT_HEADER_REQD = 0x8000_000a;
}

impl ReplyCode {
    /// Whether this is one of the errors, known or not.
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

codes! {
    /// An information item of INFO and GO.
    #[doc(alias = "NBD_INFO")] InfoType: u16;
    /// Size and flags; always sent.
    EXPORT = 0;
    /// The export's own name.
    NAME = 1;
    /// A description for people.
    DESCRIPTION = 2;
    /// Block size constraints.
    BLOCK_SIZE = 3;
}

codes! {
    /// A request of the transmission phase.
    #[doc(alias = "NBD_CMD")] Command: u16;
    /// Read.
    READ = 0;
    /// Write; the payload follows.
    WRITE = 1;
    /// Disconnect; no reply.
    DISC = 2;
    /// Make completed writes durable.
    FLUSH = 3;
    /// Forget a range.
    TRIM = 4;
    /// Prefetch a range.
    CACHE = 5;
    /// Make a range read as zeroes.
    WRITE_ZEROES = 6;
    /// Describe a range in each selected metadata context.
    BLOCK_STATUS = 7;
    /// Reserved for an experimental extension.
    RESIZE = 8;
}

codes! {
    /// What a chunk of a structured or extended reply carries.
    #[doc(alias = "NBD_REPLY_TYPE")] ChunkType: u16;
    /// Nothing: the end of the reply.
    NONE = 0;
    /// Data at an offset.
    OFFSET_DATA = 1;
    /// Zeroes at an offset.
    OFFSET_HOLE = 2;
    /// Extents with 32-bit lengths.
    BLOCK_STATUS = 5;
    /// Extents with 64-bit lengths.
    BLOCK_STATUS_EXT = 6;
    /// An error.
    ERROR = 0x8001;
    /// An error at an offset.
    ERROR_OFFSET = 0x8002;
}

impl ChunkType {
    /// Whether this is an error chunk, of a known type or not.
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

bitflags! {
    /// What the server can do in the handshake.
    #[doc(alias = "NBD_FLAG_FIXED_NEWSTYLE")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options are answered.
        const FIXED_NEWSTYLE = 1;
        /// The 124 zero bytes after EXPORT_NAME can be left out.
        const NO_ZEROES = 1 << 1;
        /// Whatever else a server sets is ignored.
        const _ = !0;
    }

    /// What the client wants of [`HandshakeFlags`].
    #[doc(alias = "NBD_FLAG_C_FIXED_NEWSTYLE")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// Options are answered.
        const FIXED_NEWSTYLE = 1;
        /// Leave the zeroes out.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do.
    #[doc(alias = "NBD_FLAG")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Writes are refused.
        const READ_ONLY = 1 << 1;
        /// FLUSH is known.
        const SEND_FLUSH = 1 << 2;
        /// FUA is known.
        const SEND_FUA = 1 << 3;
        /// A rotating disk.
        const ROTATIONAL = 1 << 4;
        /// TRIM is known.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES and NO_HOLE are known.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// DF is known.
        const SEND_DF = 1 << 7;
        /// A FLUSH on any connection covers all of them.
        const CAN_MULTI_CONN = 1 << 8;
        /// RESIZE is known (experimental).
        const SEND_RESIZE = 1 << 9;
        /// CACHE is known.
        const SEND_CACHE = 1 << 10;
        /// FAST_ZERO is known.
        const SEND_FAST_ZERO = 1 << 11;
        /// BLOCK_STATUS may carry a payload.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
        /// Whatever else a server sets is ignored.
        const _ = !0;
    }

    /// How a request is to be done.
    #[doc(alias = "NBD_CMD_FLAG")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Reply only once what was written is durable.
        const FUA = 1;
        /// WRITE_ZEROES: leave no hole.
        const NO_HOLE = 1 << 1;
        /// READ: one content chunk at most.
        const DF = 1 << 2;
        /// BLOCK_STATUS: one extent only.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES: fail rather than write zeroes.
        const FAST_ZERO = 1 << 4;
        /// Extended headers: the length is the payload's.
        const PAYLOAD_LEN = 1 << 5;
        /// Unknown ones are kept, to be answered with EINVAL.
        const _ = !0;
    }

    /// Flags of a chunk.
    #[doc(alias = "NBD_REPLY_FLAG_DONE")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReplyFlags: u16 {
        /// The last chunk of the reply.
        const DONE = 1;
        /// Unknown ones are ignored.
        const _ = !0;
    }

    /// An extent's state in `base:allocation`.
    #[doc(alias = "NBD_STATE_HOLE")]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct StateFlags: u32 {
        /// Not allocated.
        const HOLE = 1;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}
