//! The crate's one error type.

use std::io;

/// What the environment refused, with the operation and its errno kept.
///
/// Mistakes of the caller's are not here: they panic, with a message that says what to do.
///
/// ```
/// use corio::{Builder, Error};
/// corio::home(|| {
///     let error = Builder::new().stack_size(usize::MAX).create(|| ()).unwrap_err();
///     assert!(matches!(error, Error::Parameter { name: "stack_size", .. }));
///     assert_eq!(error.raw_os_error(), Some(22)); // EINVAL
///     assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::InvalidInput);
/// });
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{op}: {source}")]
    Os {
        /// The system call, and what it was for.
        op: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No more stacks may be made with mprotect guards, or the rest of the process would run out of
    /// mappings.
    #[error(
        "{limit} coroutine stacks exist, all that vm.max_map_count={max_map_count} leaves room for with mprotect guards; \
         raise vm.max_map_count or end some coroutines"
    )]
    StackLimit {
        /// How many stacks may exist.
        limit: usize,
        /// The kernel's setting when the limit was computed.
        max_map_count: usize,
    },
    /// A parameter is out of its range.
    #[error("{name} is {value}, which is not {expected}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Nothing can be cancelled in this program.
    #[error(
        "a coroutine cannot be cancelled in a program built with panic=abort, in which nothing \
         unwinds: build it with panic=unwind, or tell the coroutine to end in some other way"
    )]
    CancelRefused,
}

impl Error {
    pub(crate) fn last_os(op: &'static str) -> Self {
        Self::Os {
            op,
            source: io::Error::last_os_error(),
        }
    }

    /// The errno that the system answered with, if one did.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            Self::StackLimit { .. } => Some(libc::ENOMEM),
            Self::Parameter { .. } => Some(libc::EINVAL),
            Self::CancelRefused => Some(libc::ENOTSUP),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Os { source, .. } => source.kind(),
            Error::StackLimit { .. } => io::ErrorKind::OutOfMemory,
            Error::Parameter { .. } => io::ErrorKind::InvalidInput,
            Error::CancelRefused => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error)
    }
}
