//! A power cut, for tests: files opened for writing are served from a volatile copy, and only what was synced reaches the
//! real file. Compiled in with the feature `power-loss-shim` only.
//!
//! `CORIO_POWER_LOSS_DIR` names the directory for the copies; unset, the shim does nothing. `CORIO_POWER_LOSS_NO_SYNC=1`
//! makes it lose syncs too, as a server would that never syncs: a test of durability must then fail.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

/// The real file behind each volatile descriptor.
static REAL: LazyLock<Mutex<HashMap<RawFd, (File, File)>>> = LazyLock::new(Mutex::default);

fn directory() -> Option<PathBuf> {
    std::env::var_os("CORIO_POWER_LOSS_DIR").map(PathBuf::from)
}

fn loses_syncs() -> bool {
    std::env::var_os("CORIO_POWER_LOSS_NO_SYNC").is_some_and(|value| value == "1")
}

/// The descriptor to serve instead of `fd`, which was opened for writing.
pub(crate) fn substitute(fd: OwnedFd) -> io::Result<OwnedFd> {
    let Some(directory) = directory() else {
        return Ok(fd);
    };
    let real = File::from(fd);
    let volatile = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(directory.join(format!(
            "volatile-{}-{}",
            std::process::id(),
            real.as_raw_fd()
        )))?;
    copy(&real, &volatile)?;
    let keep = volatile.try_clone()?;
    let served = OwnedFd::from(volatile);
    if let Ok(mut map) = REAL.lock() {
        map.insert(served.as_raw_fd(), (real, keep));
    }
    Ok(served)
}

/// All that has been written so far becomes durable.
pub(crate) fn before_sync(fd: BorrowedFd<'_>) {
    with_real(fd, |real, volatile| copy(volatile, real));
}

/// This write becomes durable, and no other.
pub(crate) fn before_durable_write(fd: BorrowedFd<'_>, bufs: &[IoSlice<'_>], offset: u64) {
    with_real(fd, |real, _| {
        let mut at = offset;
        for buf in bufs {
            real.write_all_at(buf, at)?;
            at += buf.len() as u64;
        }
        Ok(())
    });
}

fn with_real(fd: BorrowedFd<'_>, f: impl FnOnce(&File, &File) -> io::Result<()>) {
    if loses_syncs() {
        return;
    }
    let Ok(map) = REAL.lock() else { return };
    if let Some((real, volatile)) = map.get(&fd.as_raw_fd())
        && let Err(error) = f(real, volatile)
    {
        tracing::error!("the power-loss shim could not copy: {error}");
    }
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = from.read_at(&mut buffer, at)?;
        if n == 0 {
            break;
        }
        to.write_all_at(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}
