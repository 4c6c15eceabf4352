//! The one error of this crate. A message is one line: what, where, and what to do. The errno is
//! kept, as that is what a client gets over the wire.

use std::{fmt, io, path::PathBuf};

use rustix::io::Errno;

use crate::{Length, Offset};

/// What was asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making completed writes durable.
    Flush,
    /// Giving space back.
    Discard,
    /// Zeroing.
    WriteZeroes,
    /// Asking which parts are allocated.
    BlockStatus,
    /// Prefetching.
    Cache,
}

impl Operation {
    /// Whether it changes the disk, so that a read-only node refuses it.
    #[must_use]
    pub fn modifies(self) -> bool {
        matches!(
            self,
            Operation::Write | Operation::Discard | Operation::WriteZeroes
        )
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write of zeroes",
            Operation::BlockStatus => "block status",
            Operation::Cache => "prefetch",
        })
    }
}

/// What went wrong, on which image, and what to do about it.
///
/// ```
/// use corio_block::raw;
///
/// let error = raw::Options::new("/no/such/disk.raw").open().unwrap_err();
/// assert!(error.to_string().contains("/no/such/disk.raw"));
/// assert_eq!(error.errno(), 2); // ENOENT
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such file.
    #[error("{path}: no such image; check the path, or make one: truncate -s 1G {path}")]
    NotFound {
        /// The image.
        path: PathBuf,
    },
    /// The process may not open it.
    #[error(
        "{path}: no permission to {access} this image; run as its owner or change its mode{hint}"
    )]
    PermissionDenied {
        /// The image.
        path: PathBuf,
        /// "read" or "read and write".
        access: &'static str,
        /// More advice, or nothing.
        hint: &'static str,
    },
    /// The filesystem (or the device) is read-only.
    #[error("{path}: the filesystem or device is read-only; open the image read-only")]
    ReadOnlyFilesystem {
        /// The image.
        path: PathBuf,
    },
    /// It is no regular file and no block device.
    #[error("{path}: is {kind}, not a disk; give a regular file or a block device")]
    NotADisk {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// Another process uses the image in a way that excludes ours.
    #[error(
        "{path}: the image is locked: another process {holder}; stop it (fuser -v {path} names \
         it), or open both read-only"
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// What the other one does.
        holder: &'static str,
    },
    /// Another process, or a mount, holds the block device exclusively.
    #[error(
        "{path}: the device is in use: mounted, part of an array, or opened by another \
             process; release it (lsblk {path} and fuser -v {path} tell)"
    )]
    DeviceBusy {
        /// The device.
        path: PathBuf,
    },
    /// The filesystem takes no O_DIRECT.
    #[error("{path}: this filesystem refuses O_DIRECT; use the page cache (cache mode writeback)")]
    DirectUnsupported {
        /// The image.
        path: PathBuf,
    },
    /// The path led to another file the second time.
    #[error("{path}: was replaced while it was being opened; try again")]
    Replaced {
        /// The image.
        path: PathBuf,
    },
    /// No disk can have this size.
    #[error("{what}: a disk of {size} bytes cannot be made; {advice}")]
    BadSize {
        /// Which disk.
        what: String,
        /// The size asked for or found, in bytes.
        size: u64,
        /// What would do.
        advice: &'static str,
    },
    /// A step of opening failed in another way.
    #[error("{what}: cannot {step}: {source}; {}", advice(.source, CHECK_PATH))]
    Open {
        /// Which image or disk.
        what: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The request reaches past the end of the disk.
    #[error(
        "{node}: {operation} of {len} bytes at {offset} reaches past the end of the disk at \
         {size}; ask within the size"
    )]
    OutOfBounds {
        /// Which node.
        node: String,
        /// What was asked.
        operation: Operation,
        /// Where.
        offset: Offset,
        /// How much.
        len: Length,
        /// The disk's size in bytes.
        size: u64,
    },
    /// The node is read-only.
    #[error("{node}: {operation} on a read-only disk; open it for writing")]
    ReadOnly {
        /// Which node.
        node: String,
        /// What was asked.
        operation: Operation,
    },
    /// Zeroing would mean to write every byte, and the caller wanted it fast or not at all.
    #[error("{node}: no fast way to zero {len} bytes at {offset}; write zeroes instead")]
    NoFastZero {
        /// Which node.
        node: String,
        /// Where.
        offset: Offset,
        /// How much.
        len: Length,
    },
    /// A flush failed; what was written before it may be lost.
    #[error(
        "{node}: flush failed: {source}, what was written before it may be lost; {}",
        advice(.source, CHECK_DATA)
    )]
    Flush {
        /// Which node.
        node: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An earlier flush failed; the kernel reports that once and may have dropped the data.
    #[error(
        "{node}: an earlier flush failed ({cause}), what was written before it may be lost; check \
         the storage below and the data, then open the image again"
    )]
    FlushLost {
        /// Which node.
        node: String,
        /// The errno of the flush that failed.
        errno: i32,
        /// The same in words.
        cause: String,
    },
    /// The storage failed a request.
    #[error(
        "{node}: {operation} of {len} bytes at {offset} failed: {source}; {}",
        advice(.source, CHECK_STORAGE)
    )]
    Io {
        /// Which node.
        node: String,
        /// What was asked.
        operation: Operation,
        /// Where.
        offset: Offset,
        /// How much.
        len: Length,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The Linux errno a client should get. A write past the end is ENOSPC, any other request past
    /// the end EINVAL, as the NBD protocol has it.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound { .. } => Errno::NOENT.raw_os_error(),
            Error::PermissionDenied { .. } => Errno::ACCESS.raw_os_error(),
            Error::ReadOnlyFilesystem { .. } => Errno::ROFS.raw_os_error(),
            Error::NotADisk { .. } | Error::DirectUnsupported { .. } | Error::BadSize { .. } => {
                Errno::INVAL.raw_os_error()
            }
            Error::Locked { .. } | Error::Replaced { .. } => Errno::AGAIN.raw_os_error(),
            Error::DeviceBusy { .. } => Errno::BUSY.raw_os_error(),
            Error::OutOfBounds { operation, .. } => match operation {
                Operation::Write | Operation::WriteZeroes => Errno::NOSPC.raw_os_error(),
                _ => Errno::INVAL.raw_os_error(),
            },
            Error::ReadOnly { .. } => Errno::PERM.raw_os_error(),
            Error::NoFastZero { .. } => Errno::OPNOTSUPP.raw_os_error(),
            Error::FlushLost { errno, .. } => *errno,
            Error::Open { source, .. } | Error::Flush { source, .. } | Error::Io { source, .. } => {
                errno_of(source)
            }
        }
    }
}

/// The errno of an I/O error; EIO for one that has none.
pub(crate) fn errno_of(error: &io::Error) -> i32 {
    if let Some(errno) = error.raw_os_error() {
        return errno;
    }
    match error.kind() {
        io::ErrorKind::OutOfMemory => Errno::NOMEM.raw_os_error(),
        io::ErrorKind::InvalidInput => Errno::INVAL.raw_os_error(),
        io::ErrorKind::StorageFull => Errno::NOSPC.raw_os_error(),
        io::ErrorKind::Unsupported => Errno::OPNOTSUPP.raw_os_error(),
        _ => Errno::IO.raw_os_error(),
    }
}

/// Where no errno says it better: what to do when an image cannot be opened, ...
const CHECK_PATH: &str = "check the path and the filesystem it is on";
/// ... when a flush has failed, ...
const CHECK_DATA: &str = "check the storage below (see the kernel log) and the data";
/// ... and when another request has.
const CHECK_STORAGE: &str = "check the storage below (see the kernel log)";

/// What to do about an errno, as the tail of a message; `otherwise` where it tells nothing.
fn advice(error: &io::Error, otherwise: &'static str) -> &'static str {
    match Errno::from_raw_os_error(errno_of(error)) {
        Errno::NOSPC => "free space on the filesystem that holds the image",
        Errno::DQUOT => "raise the quota or free space",
        Errno::FBIG => {
            "raise the file size limit (ulimit -f), or use a filesystem for larger files"
        }
        Errno::IO => "the storage below fails: see the kernel log",
        Errno::NOMEM => "free memory or lower what runs at once",
        Errno::MFILE => "raise the limit of open files (ulimit -n)",
        Errno::NFILE => "raise fs.file-max",
        Errno::STALE => "the network filesystem lost the file: open it again",
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_bounds(operation: Operation) -> Error {
        Error::OutOfBounds {
            node: "disk.raw".into(),
            operation,
            offset: Offset(4096),
            len: Length(1),
            size: 4096,
        }
    }

    #[test]
    fn writes_past_the_end_have_no_space_and_other_requests_are_invalid() {
        for (operation, errno) in [
            (Operation::Write, Errno::NOSPC),
            (Operation::WriteZeroes, Errno::NOSPC),
            (Operation::Read, Errno::INVAL),
            (Operation::Discard, Errno::INVAL),
            (Operation::BlockStatus, Errno::INVAL),
            (Operation::Cache, Errno::INVAL),
        ] {
            assert_eq!(
                out_of_bounds(operation).errno(),
                errno.raw_os_error(),
                "{operation}"
            );
        }
    }

    #[test]
    fn message_says_what_where_and_what_to_do() {
        assert_eq!(
            out_of_bounds(Operation::Read).to_string(),
            "disk.raw: read of 1 bytes at 4096 reaches past the end of the disk at 4096; ask \
             within the size"
        );
        let full = Error::Io {
            node: "disk.raw".into(),
            operation: Operation::Write,
            offset: Offset(0),
            len: Length(512),
            source: io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()),
        };
        assert_eq!(full.errno(), Errno::NOSPC.raw_os_error());
        assert!(
            full.to_string()
                .ends_with("free space on the filesystem that holds the image")
        );
        assert!(!full.to_string().contains('\n'));
    }

    #[test]
    fn every_errno_is_named_once_in_one_line_with_advice() {
        let node = || "disk.raw".to_owned();
        for errno in 1..134 {
            let source = || io::Error::from_raw_os_error(errno);
            for error in [
                Error::Open {
                    what: node(),
                    step: "open it",
                    source: source(),
                },
                Error::Flush {
                    node: node(),
                    source: source(),
                },
                Error::FlushLost {
                    node: node(),
                    errno,
                    cause: source().to_string(),
                },
                Error::Io {
                    node: node(),
                    operation: Operation::Read,
                    offset: Offset(0),
                    len: Length(512),
                    source: source(),
                },
            ] {
                let text = error.to_string();
                let (what, advice) = text.split_once("; ").unwrap();
                assert!(what.starts_with("disk.raw: "), "{text}");
                assert!(advice.len() > 10 && !advice.contains("; "), "{text}");
                assert_eq!(text.matches(&source().to_string()).count(), 1, "{text}");
                assert!(!text.contains('\n'), "{text}");
            }
        }
    }

    #[test]
    fn an_error_without_errno_is_an_io_error() {
        assert_eq!(errno_of(&io::Error::other("x")), Errno::IO.raw_os_error());
        assert_eq!(
            errno_of(&io::ErrorKind::OutOfMemory.into()),
            Errno::NOMEM.raw_os_error()
        );
    }

    #[test]
    fn modifies_answers_both_ways() {
        assert!(Operation::Write.modifies());
        assert!(Operation::Discard.modifies());
        assert!(Operation::WriteZeroes.modifies());
        assert!(!Operation::Flush.modifies());
        assert!(!Operation::Read.modifies());
    }
}
