//! What is exchanged before the first option, and the answer to EXPORT_NAME.

use super::bytes::{Fields, put};
use super::constants::{ClientFlags, HandshakeFlags, TransmissionFlags, magic};
use super::{Decoded, WireError};

/// The server's first message (section "Newstyle negotiation"): 18 bytes.
///
/// ```
/// use corio_nbd::wire::{Decoded, Greeting, HandshakeFlags};
///
/// let greeting = Greeting { flags: HandshakeFlags::FIXED_NEWSTYLE };
/// let bytes = greeting.encode();
/// assert_eq!(&bytes[..16], b"NBDMAGICIHAVEOPT");
/// assert_eq!(Greeting::decode(&bytes)?, Decoded::Item { value: greeting, consumed: 18 });
/// # Ok::<(), corio_nbd::wire::WireError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Its length.
    pub const LEN: usize = 18;

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, magic::INIT.to_be_bytes());
        put(&mut out, 8, magic::OPTION.to_be_bytes());
        put(&mut out, 16, self.flags.bits().to_be_bytes());
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// A magic number is wrong: not an NBD server, or one that only speaks oldstyle.
    pub fn decode(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::LEN }>() else {
            return Ok(Decoded::NeedMore(Self::LEN));
        };
        for (at, expected) in [(0, magic::INIT), (8, magic::OPTION)] {
            let found = head.be64(at);
            if found != expected {
                return Err(WireError::BadMagic {
                    what: "the greeting",
                    found,
                });
            }
        }
        let flags = HandshakeFlags::from_bits_retain(head.be16(16));
        Ok(Decoded::Item {
            value: Self { flags },
            consumed: Self::LEN,
        })
    }
}

/// The client's answer to the [`Greeting`]: 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// What the client wants.
    pub flags: ClientFlags,
}

impl ClientHello {
    /// Its length.
    pub const LEN: usize = 4;

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        self.flags.bits().to_be_bytes()
    }

    /// Reads one.
    ///
    /// # Errors
    /// A flag is unknown: the protocol has the server end the connection then.
    pub fn decode(input: &[u8]) -> Result<Decoded<Self>, WireError> {
        let Some(head) = input.first_chunk::<{ Self::LEN }>() else {
            return Ok(Decoded::NeedMore(Self::LEN));
        };
        let bits = head.be32(0);
        let flags = ClientFlags::from_bits(bits).ok_or(WireError::UnknownFlags(bits))?;
        Ok(Decoded::Item {
            value: Self { flags },
            consumed: Self::LEN,
        })
    }
}

/// The answer to EXPORT_NAME, which has no reply header: 10 bytes, and 124 zeroes after them unless
/// both sides agreed on NO_ZEROES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Its length with the zeroes.
    pub const LEN_MAX: usize = 134;
    /// Its length without them.
    pub const LEN_MIN: usize = 10;

    /// How many bytes it is.
    pub const fn len(no_zeroes: bool) -> usize {
        if no_zeroes {
            Self::LEN_MIN
        } else {
            Self::LEN_MAX
        }
    }

    /// Its bytes, of which the first [`len`](Self::len) are to be sent.
    pub fn encode(self) -> [u8; Self::LEN_MAX] {
        let mut out = [0; Self::LEN_MAX];
        put(&mut out, 0, self.size.to_be_bytes());
        put(&mut out, 8, self.flags.bits().to_be_bytes());
        out
    }

    /// Reads one. The zeroes are reserved and not looked at.
    pub fn decode(input: &[u8], no_zeroes: bool) -> Decoded<Self> {
        let consumed = Self::len(no_zeroes);
        let Some(head) = input.first_chunk::<{ Self::LEN_MIN }>() else {
            return Decoded::NeedMore(consumed);
        };
        if input.len() < consumed {
            return Decoded::NeedMore(consumed);
        }
        let flags = TransmissionFlags::from_bits_retain(head.be16(8));
        Decoded::Item {
            value: Self {
                size: head.be64(0),
                flags,
            },
            consumed,
        }
    }
}
