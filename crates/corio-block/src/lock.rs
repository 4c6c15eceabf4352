//! Image locks, understood by QEMU's tools: who uses an image how, told to other processes by locks
//! on single bytes of the file (nothing is written there, and the bytes need not exist).
//!
//! ```text
//! byte 100 + n, shared lock    permission n is in use
//! byte 200 + n, shared lock    permission n is not left to others
//! n    0 consistent read   1 write   2 write of what is there already   3 resize
//! ```
//!
//! All locks are shared, so any number may say the same. Whoever opens an image first takes its
//! own, then asks (as if for an exclusive lock, which never is taken) whether anybody else denies
//! what it uses or uses what it denies. Both sides take before they ask, so of two that open at
//! once at least one sees the other; both may, and then both give up.
//!
//! The locks belong to the open file description (fcntl(2), F_OFD_SETLK): they end when it is
//! closed, however the process ends, and other descriptors of this process count as others.
//!
//! What others hold was observed with strace: `qemu-io -f raw` uses 0 and 1 and denies nothing (two
//! of them coexist); `qemu-io -r` uses 0; `qemu-img convert` denies 1 and 3 on its source. Ours
//! deny 1 and 3, also for reading, as a disk that is served read-only should not change.

use std::io;

use bitflags::bitflags;
use corio::fs::File;
use rustix::io::Errno;

/// First of the bytes that say what is in use.
const USES_FROM: u64 = 100;
/// First of the bytes that say what is denied to others.
const DENIES_FROM: u64 = 200;

bitflags! {
    /// What one may do with an image. The bit is the byte.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Permissions: u8 {
        const CONSISTENT_READ = 1 << 0;
        const WRITE = 1 << 1;
        const WRITE_UNCHANGED = 1 << 2;
        const RESIZE = 1 << 3;
    }
}

/// What a user of an image does and what it denies to others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    uses: Permissions,
    denies: Permissions,
}

/// Reads and writes; nobody else may write or resize, readers may look on.
pub(crate) const WRITER: Claim = Claim {
    uses: Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    denies: Permissions::WRITE.union(Permissions::RESIZE),
};

/// Reads; nobody may write or resize.
pub(crate) const READER: Claim = Claim {
    uses: Permissions::CONSISTENT_READ,
    denies: Permissions::WRITE.union(Permissions::RESIZE),
};

/// Why a claim was not granted.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another user's claim excludes it; what that one does, to follow "another process".
    Held(&'static str),
    /// The filesystem has no locks (ENOLCK and the like).
    Unsupported(io::Error),
    /// Asking failed.
    Failed(io::Error),
}

/// Takes the claim's locks on the file, for as long as it is open. After a refusal some may be
/// held: close the file. Never waits.
pub(crate) fn acquire(file: &File, claim: Claim) -> Result<(), Refusal> {
    for byte in bytes(USES_FROM, claim.uses).chain(bytes(DENIES_FROM, claim.denies)) {
        file.try_lock_range_shared(byte, 1).map_err(refusal)?;
    }
    // Users first: "has it open for writing" says more than what that one denies.
    for n in each(claim.denies) {
        if file
            .lock_conflict(USES_FROM + u64::from(n), 1)
            .map_err(refusal)?
        {
            return Err(Refusal::Held(match n {
                1 => "has it open for writing",
                3 => "may resize it",
                _ => "uses it",
            }));
        }
    }
    for n in each(claim.uses) {
        if file
            .lock_conflict(DENIES_FROM + u64::from(n), 1)
            .map_err(refusal)?
        {
            return Err(Refusal::Held(match n {
                0 => "has it for itself",
                1 => "wants nobody else to write it",
                _ => "does not share it",
            }));
        }
    }
    Ok(())
}

fn each(permissions: Permissions) -> impl Iterator<Item = u8> {
    (0..8).filter(move |n| permissions.bits() & (1 << n) != 0)
}

fn bytes(from: u64, permissions: Permissions) -> impl Iterator<Item = u64> {
    each(permissions).map(move |n| from + u64::from(n))
}

fn refusal(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::WouldBlock {
        return Refusal::Held("holds it exclusively");
    }
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
            Refusal::Unsupported(error)
        }
        _ => Refusal::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_lock_the_bytes_the_tools_look_at() {
        let all = |claim: Claim| -> Vec<u64> {
            bytes(USES_FROM, claim.uses)
                .chain(bytes(DENIES_FROM, claim.denies))
                .collect()
        };
        assert_eq!(all(WRITER), [100, 101, 201, 203]);
        assert_eq!(all(READER), [100, 201, 203]);
    }

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn writers_exclude_writers_and_readers_and_readers_coexist() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = |claim| {
            let other = open(file.path());
            match acquire(&other, claim) {
                Ok(()) => None,
                Err(Refusal::Held(who)) => Some(who),
                Err(other) => panic!("{other:?}"),
            }
        };
        let writer = open(file.path());
        acquire(&writer, WRITER).unwrap();
        assert_eq!(held(WRITER), Some("has it open for writing"));
        assert_eq!(held(READER), Some("has it open for writing"));
        drop(writer);
        let reader = open(file.path());
        acquire(&reader, READER).unwrap();
        assert_eq!(held(READER), None);
        assert_eq!(held(WRITER), Some("wants nobody else to write it"));
        drop(reader);
        assert_eq!(held(WRITER), None);
    }

    #[test]
    fn an_exclusive_lock_of_a_stranger_is_a_refusal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stranger = open(file.path());
        // A POSIX lock of the whole file: to OFD locks this process is a stranger, too.
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::fcntl_lock(&stranger, exclusive).unwrap();
        let ours = open(file.path());
        assert!(matches!(
            acquire(&ours, READER),
            Err(Refusal::Held("holds it exclusively"))
        ));
    }
}
