//! The eight error numbers that may go over the wire.

use std::fmt;

/// An error number of the protocol (section "Error values").
///
/// Zero stands for success in a simple reply. An unexpected value is kept as it came;
/// [`to_os`](Self::to_os) treats it as `EINVAL`, as clients should.
///
/// ```
/// use corio_nbd::wire::Errno;
///
/// let quota_exceeded = 122;
/// assert_eq!(Errno::from_os(quota_exceeded), Errno::ENOSPC);
/// assert_eq!(Errno::ENOSPC.to_os(), 28);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// No error.
    pub const OK: Self = Self(0);
    /// Not permitted: a write to a read-only export.
    pub const EPERM: Self = Self(1);
    /// The device failed.
    pub const EIO: Self = Self(5);
    /// No memory.
    pub const ENOMEM: Self = Self(12);
    /// The request makes no sense.
    pub const EINVAL: Self = Self(22);
    /// No space, or a write past the end.
    pub const ENOSPC: Self = Self(28);
    /// Too large to be answered in one piece.
    pub const EOVERFLOW: Self = Self(75);
    /// Not faster than writing zeroes.
    pub const ENOTSUP: Self = Self(95);
    /// The server is stopping.
    pub const ESHUTDOWN: Self = Self(108);

    /// The protocol's number for an operating system's `errno`.
    ///
    /// Negative, zero and unlisted ones become `EIO`: something failed, and which host error it was
    /// means nothing to the client.
    pub const fn from_os(errno: i32) -> Self {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => Self::EPERM,
            libc::ENOMEM => Self::ENOMEM,
            libc::EINVAL => Self::EINVAL,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::ENOSPC,
            libc::EOVERFLOW => Self::EOVERFLOW,
            libc::EOPNOTSUPP => Self::ENOTSUP,
            libc::ESHUTDOWN => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }

    /// The `errno` a client's caller understands; unknown numbers are `EINVAL`, success is zero.
    pub const fn to_os(self) -> i32 {
        match self {
            Self::OK => 0,
            Self::EPERM => libc::EPERM,
            Self::EIO => libc::EIO,
            Self::ENOMEM => libc::ENOMEM,
            Self::ENOSPC => libc::ENOSPC,
            Self::EOVERFLOW => libc::EOVERFLOW,
            Self::ENOTSUP => libc::EOPNOTSUPP,
            Self::ESHUTDOWN => libc::ESHUTDOWN,
            _ => libc::EINVAL,
        }
    }

    /// Whether it stands for success.
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OK => "OK",
            Self::EPERM => "EPERM",
            Self::EIO => "EIO",
            Self::ENOMEM => "ENOMEM",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            Self(other) => return write!(f, "Errno({other})"),
        };
        f.write_str(name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
