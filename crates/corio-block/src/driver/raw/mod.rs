//! The raw driver: a disk that is a regular file or a block device, byte by byte.
//!
//! Up to three descriptors of the one inode, each for one thing:
//!
//! ```text
//! data    reads, writes, zeroing, discards, extents; O_DIRECT with cache mode none; has the locks
//! flush   fdatasync and nothing else (not opened for a read-only disk)
//! tail    the end of an odd-sized file with cache mode none, through the page cache
//! ```
//!
//! **Why a descriptor for flushing.** Linux reports a failed write-back once to each open file
//! description. A FUA write (RWF_DSYNC) is told of, and so uses up, failures that have nothing to
//! do with its own range; the flush after it on the same description would then succeed although
//! earlier writes are lost. On a description of its own the flush sees every failure itself.
//! fdatasync is of the inode, so it covers what was written through the others.
//!
//! **Why a descriptor for the tail.** With O_DIRECT a write is whole blocks, so the bytes behind
//! the last whole block of an odd-sized file cannot be written without growing it (growing and
//! truncating again would show others, or leave after a crash, a wrong size). They go through the
//! page cache. Mixing both on one page is what must not happen: a page dirtied through the cache
//! would be written back over what O_DIRECT has just written next to it; where the kernel notices,
//! the next fdatasync fails with EIO (the tests show it on ext4 with io_uring). So the tail begins
//! at a boundary of pages and of filesystem blocks, everything from there on goes only through the
//! cache, everything before it only past it, and no page is touched both ways. The tail's
//! description is advised POSIX_FADV_RANDOM, so that reading it fills single pages and no larger
//! folio that would reach over the boundary; writes of at most a page make no larger ones either.

mod io;
mod open;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Error, Node};

/// Whether requests go through the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Through it; durable after a flush. Any byte can be read and written.
    #[default]
    Writeback,
    /// Past it (O_DIRECT). What is not aligned is read, modified and written back.
    None,
}

/// What becomes of discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Space is given back to the filesystem or device, by zeroing too where a hole may be made.
    #[default]
    Unmap,
    /// Nothing: space once used stays allocated.
    Ignore,
}

/// How to open a raw image.
///
/// ```no_run
/// use corio_block::raw::{Cache, Options};
///
/// let disk = Options::new("disk.raw").cache(Cache::None).open()?;
/// println!("{} bytes in blocks of {}", disk.size(), disk.limits().request_alignment);
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    path: PathBuf,
    read_only: bool,
    cache: Cache,
    discard: Discard,
    lock: bool,
}

impl Options {
    /// Opens `path` for reading and writing, through the page cache, with discards carried out and
    /// the image locked, unless told otherwise.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Options {
        Options {
            path: path.as_ref().to_owned(),
            read_only: false,
            cache: Cache::default(),
            discard: Discard::default(),
            lock: true,
        }
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Options {
        self.read_only = yes;
        self
    }

    /// Through the page cache or past it.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Options {
        self.cache = cache;
        self
    }

    /// What becomes of discards.
    #[must_use]
    pub fn discard(mut self, discard: Discard) -> Options {
        self.discard = discard;
        self
    }

    /// Whether to keep other processes (QEMU's tools, another one of these) from writing the image
    /// meanwhile, and to refuse one that they write. A block device is also opened O_EXCL, by a
    /// reader too, so that it is refused while it is mounted or served by anybody else.
    #[must_use]
    pub fn lock(mut self, yes: bool) -> Options {
        self.lock = yes;
        self
    }

    /// Opens the image and takes its size, which stays. Blocks a plain thread, may park a
    /// coroutine.
    ///
    /// # Errors
    ///
    /// One for each thing that can be wrong: [`Error::NotFound`], [`Error::PermissionDenied`],
    /// [`Error::ReadOnlyFilesystem`], [`Error::NotADisk`], [`Error::Locked`],
    /// [`Error::DeviceBusy`], [`Error::DirectUnsupported`], [`Error::BadSize`] (a device without
    /// medium), [`Error::Replaced`], and [`Error::Open`] with the errno for the rest.
    pub fn open(self) -> Result<Arc<Node>, Error> {
        let name = self.path.display().to_string();
        let read_only = self.read_only;
        Node::new(name, Box::new(open::open(&self)?), read_only)
    }
}
