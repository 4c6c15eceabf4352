//! A file that is read while something else is measured: one read in flight at any time, past the
//! page cache where the file system can.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use corio::fs::{AlignedBuf, File};
use io_uring::{IoUring, opcode, types};

/// Of a file that no drive keeps in its own cache for long.
const SIZE: u64 = 64 << 20;
const BLOCK: usize = 4096;
/// Between two reads: a prime number of blocks.
const STRIDE: u64 = 4099 * BLOCK as u64;

/// The process's file, which has no name any more: where it can be opened anew, and how.
fn file() -> (String, i32) {
    use std::os::unix::fs::OpenOptionsExt;
    static FILE: OnceLock<fs::File> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let name = format!("corio-bench-reads-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = fs::File::create(&path).expect("a file can be made");
        fs::remove_file(&path).expect("it was just made");
        // With data in it: what was never written is not read from the disk.
        let megabyte = vec![0xa5; 1 << 20];
        for _ in 0..SIZE >> 20 {
            file.write_all(&megabyte).expect("there is room for it");
        }
        file.sync_all().expect("it can be synced");
        file
    });
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = fs::OpenOptions::new();
    let direct = options.read(true).custom_flags(libc::O_DIRECT).open(&path);
    (path, direct.map_or(0, |_| libc::O_DIRECT))
}

/// Whoever reads.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    is_finished: Box<dyn Fn() -> bool>,
}

impl Reader {
    /// Does `meanwhile` until the first read has been done.
    pub(super) fn begin(&self, mut meanwhile: impl FnMut()) {
        while self.reads.load(Ordering::Relaxed) == 0 {
            meanwhile();
        }
    }

    /// Stops it, and does `meanwhile` until it has.
    pub(super) fn end(self, mut meanwhile: impl FnMut()) {
        self.stop.store(true, Ordering::Relaxed);
        while !(self.is_finished)() {
            meanwhile();
        }
    }
}

/// Where to read next.
fn next(offset: &mut u64) -> u64 {
    *offset = (*offset + STRIDE) % SIZE;
    *offset
}

/// What [`by_coroutine`] reads. In a coroutine, a worker would open it and be there still while the
/// rounds are measured: descriptors of a process with two threads take longer to look up, which
/// the peer's would not.
pub(super) fn open() -> File {
    let (path, flags) = file();
    File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .expect("it is open")
}

/// Reads by a coroutine of the context whose home this thread is.
pub(super) fn by_coroutine(file: File, reads_max: u32) -> Reader {
    let (stop, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let handle = corio::spawn_local({
        let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
        move || {
            let mut block = AlignedBuf::zeroed(BLOCK, BLOCK).expect("there is memory");
            let mut offset = 0;
            // One beforehand.
            for _ in 0..=reads_max {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.read_exact_at(&mut block, next(&mut offset))
                    .expect("it is that long");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Reader {
        stop,
        reads,
        is_finished: Box::new(move || handle.is_finished()),
    }
}

/// Reads by a ring of the peer's thread, one at a time, as a program on mio would: the ring's
/// descriptor is watched beside the others.
pub(super) struct RingReader {
    ring: IoUring,
    file: fs::File,
    block: AlignedBuf,
    offset: u64,
    reads: u64,
    reads_max: u64,
}

impl RingReader {
    /// The first read is in flight.
    pub(super) fn new(reads_max: u32) -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let (path, flags) = file();
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .expect("it is open");
        let mut reader = Self {
            ring: IoUring::new(8).expect("no ring for the peer"),
            file,
            block: AlignedBuf::zeroed(BLOCK, BLOCK).expect("there is memory"),
            offset: 0,
            reads: 0,
            reads_max: u64::from(reads_max) + 1,
        };
        // The first is done before anything is measured, as on the other side.
        reader.submit();
        reader.wait();
        reader.submit();
        reader
    }

    fn wait(&mut self) {
        while !self.take() {
            self.ring
                .submit_and_wait(1)
                .expect("the ring can be waited for");
        }
    }

    /// What tells that a read has been done.
    pub(super) fn fd(&self) -> i32 {
        self.ring.as_raw_fd()
    }

    #[allow(unsafe_code)] // The block is in place until the read has been done.
    fn submit(&mut self) {
        let at = self.block.as_mut_ptr();
        let length = u32::try_from(BLOCK).expect("it is small");
        let read = opcode::Read::new(types::Fd(self.file.as_raw_fd()), at, length)
            .offset(next(&mut self.offset))
            .build();
        // SAFETY: one read is in flight at a time, and `end` waits for the last one.
        unsafe { self.ring.submission().push(&read) }.expect("there is room for one");
        self.ring.submit().expect("a read can be submitted");
    }

    /// Takes what has been done, and has the next one read.
    pub(super) fn turn(&mut self) {
        while self.take() {
            if self.reads < self.reads_max {
                self.submit();
            }
        }
    }

    fn take(&mut self) -> bool {
        let Some(done) = self.ring.completion().next() else {
            return false;
        };
        assert_eq!(done.result(), i32::try_from(BLOCK).expect("it is small"));
        self.reads += 1;
        true
    }

    /// Waits for the last one.
    pub(super) fn end(mut self) {
        if self.reads < self.reads_max {
            self.wait();
        }
        assert!(self.reads > 1, "the first and the last, at the least");
    }
}
