//! A power cut, for tests: files opened for writing are served from a volatile copy, and only what
//! was synced reaches the real file. Compiled in with the feature `power-loss-shim` only.
//!
//! `CORIO_POWER_LOSS_DIR` names the directory for the copies; unset, the shim does nothing.
//! `CORIO_POWER_LOSS_NO_SYNC=1` makes it lose syncs too, as a server would that never syncs: a test
//! of durability must then fail.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

/// What names a file, however often it is opened: device and inode.
type Inode = (u64, u64);

/// A file and its volatile copy.
struct Pair {
    real: File,
    volatile: File,
    path: PathBuf,
}

#[derive(Default)]
struct Pairs {
    by_real: HashMap<Inode, usize>,
    by_volatile: HashMap<Inode, usize>,
    all: Vec<Pair>,
}

static PAIRS: LazyLock<Mutex<Pairs>> = LazyLock::new(Mutex::default);

fn directory() -> Option<PathBuf> {
    std::env::var_os("CORIO_POWER_LOSS_DIR").map(PathBuf::from)
}

fn loses_syncs() -> bool {
    std::env::var_os("CORIO_POWER_LOSS_NO_SYNC").is_some_and(|value| value == "1")
}

fn inode(file: &File) -> io::Result<Inode> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// The descriptor to serve instead of `fd`, which has just been opened: one of the copy, if the
/// file is, or has been, opened for writing. All opens of one file share its copy.
pub(crate) fn substitute(fd: OwnedFd, writable: bool) -> io::Result<OwnedFd> {
    let Some(directory) = directory() else {
        return Ok(fd);
    };
    let real = File::from(fd);
    if !real.metadata()?.is_file() {
        return Ok(real.into());
    }
    let flags = rustix::fs::fcntl_getfl(&real)?;
    let key = inode(&real)?;
    let Ok(mut pairs) = PAIRS.lock() else {
        return Err(io::ErrorKind::Other.into());
    };
    let index = match pairs.by_real.get(&key) {
        Some(index) => *index,
        None if !writable => return Ok(real.into()),
        None => {
            let path = directory.join(format!(
                "volatile-{}-{}",
                std::process::id(),
                real.as_raw_fd()
            ));
            let volatile = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)?;
            // Past O_DIRECT, which `copy` does not align for.
            let real = File::options()
                .read(true)
                .write(true)
                .open(format!("/proc/self/fd/{}", real.as_raw_fd()))?;
            copy(&real, &volatile)?;
            let index = pairs.all.len();
            pairs.by_real.insert(key, index);
            pairs.by_volatile.insert(inode(&volatile)?, index);
            pairs.all.push(Pair {
                real,
                volatile,
                path,
            });
            index
        }
    };
    let direct = flags.contains(rustix::fs::OFlags::DIRECT);
    File::options()
        .read(true)
        .write(writable)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(&pairs.all[index].path)
        .map(Into::into)
}

/// All that has been written so far becomes durable.
pub(crate) fn before_sync(fd: BorrowedFd<'_>) {
    with_pair(fd, |pair| copy(&pair.volatile, &pair.real));
}

/// This write becomes durable, and no other.
///
/// It goes to the copy first, where its caller is about to put it again: a sync of another
/// connection that comes in between copies all of the volatile file, and would take what is durable
/// back to what it was.
pub(crate) fn before_durable_write(fd: BorrowedFd<'_>, bufs: &[IoSlice<'_>], offset: u64) {
    with_pair(fd, |pair| {
        for file in [&pair.volatile, &pair.real] {
            let mut at = offset;
            for buf in bufs {
                file.write_all_at(buf, at)?;
                at += buf.len() as u64;
            }
        }
        Ok(())
    });
}

fn with_pair(fd: BorrowedFd<'_>, f: impl FnOnce(&Pair) -> io::Result<()>) {
    if loses_syncs() {
        return;
    }
    let Ok(pairs) = PAIRS.lock() else { return };
    let found = rustix::fs::fstat(fd.as_fd())
        .ok()
        .and_then(|stat| pairs.by_volatile.get(&(stat.st_dev, stat.st_ino)))
        .map(|index| &pairs.all[*index]);
    if let Some(pair) = found
        && let Err(error) = f(pair)
    {
        tracing::error!("the power-loss shim could not copy: {error}");
    }
}

/// Copies a file that others are writing to. A disk does not tear a sector, but a read of the page
/// cache can: a chunk is read until two readings agree.
fn copy(from: &File, to: &File) -> io::Result<()> {
    const CHUNK: usize = 64 << 10;
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let (mut once, mut again) = (vec![0u8; CHUNK], vec![0u8; CHUNK]);
    let mut at = 0;
    while at < len {
        let mut n = from.read_at(&mut once, at)?;
        loop {
            let m = from.read_at(&mut again, at)?;
            if once[..n] == again[..m] {
                break;
            }
            core::mem::swap(&mut once, &mut again);
            n = m;
        }
        if n == 0 {
            break;
        }
        to.write_all_at(&once[..n], at)?;
        at += n as u64;
    }
    Ok(())
}
