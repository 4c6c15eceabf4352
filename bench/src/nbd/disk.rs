//! The file that is served: random bytes, held in the page cache, and the directories of a run.
//!
//! The only unsafe code of the bench: there is no safe way to lock a file's pages, and without the
//! lock the kernel may take them back in the middle of a run, which turns a figure of servers into
//! one of disks.
//!
//! I1: `Pinned` is made only from a successful `mmap` of `len` bytes, keeps the address to itself,
//! never reads or writes through it, and unmaps it once, on drop.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, Rlimit};

/// The directories of a run, gone with it.
///
/// Data lies beside the program, as the temporary directory may be memory, which servers read by
/// other ways than a file; sockets lie in the temporary directory, as their paths must be short.
pub(crate) struct Scratch {
    pub(crate) data: PathBuf,
    pub(crate) sockets: PathBuf,
}

const PREFIX: &str = "corio-bench-";

impl Scratch {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let beside = program.parent().context("the program has no directory")?;
        let name = format!("{PREFIX}{}", std::process::id());
        let scratch = Self {
            data: beside.join(&name),
            sockets: std::env::temp_dir().join(&name),
        };
        for directory in [&scratch.data, &scratch.sockets] {
            if let Some(base) = directory.parent() {
                remove_left_behind(base);
            }
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for directory in [&self.data, &self.sockets] {
            // Nothing can be done about a failure here; the next run tries again.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Removes the directories of runs that were killed.
fn remove_left_behind(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let dead = pid
            .parse::<u32>()
            .is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes `len` bytes that no server can take for a hole or compress.
pub(crate) fn create(path: &Path, len: u64) -> anyhow::Result<()> {
    const CHUNK: usize = 1 << 20;
    let mut file = File::create(path)?;
    let mut chunk = vec![0u8; CHUNK];
    let mut left = len;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while left > 0 {
        for word in chunk.as_chunks_mut::<8>().0 {
            // xorshift64: fast, and the same file in every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let part = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        file.write_all(&chunk[..part])?;
        left -= part as u64;
    }
    // Written back now, not during the first rounds.
    file.sync_all()?;
    Ok(())
}

/// A file whose pages stay in the page cache for as long as this lives.
pub(crate) struct Pinned {
    address: *mut c_void,
    len: usize,
}

impl Pinned {
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len())?;
        // Without the right to raise it the limit may still be large enough: mlock tells.
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        let _ = rustix::process::setrlimit(Resource::Memlock, unlimited);
        // SAFETY: a new mapping at an address of the kernel's choice, of nobody's memory (I1).
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let pinned = Self { address, len };
        // SAFETY: the range is the mapping just made (I1); locking changes no byte of it.
        unsafe { rustix::mm::mlock(pinned.address, pinned.len) }.with_context(|| {
            format!(
                "cannot lock {} MiB in memory, without which cached reads may go to the disk: \
                 run as root or raise `ulimit -l`",
                len >> 20
            )
        })?;
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody else knows and nothing points into (I1).
        let unmapped = unsafe { rustix::mm::munmap(self.address, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
