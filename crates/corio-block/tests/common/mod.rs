//! What the tests of this crate share: disks of every kind, and saying aloud what is skipped.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use corio::{
    IoThread,
    engine::{EngineChoice, EngineKind},
};
use corio_block::{Driver, Error, Length, Limits, Node, Offset, WriteFlags, memory, raw};
use tempfile::TempDir;

/// Says that something was not tested, in the form that `cargo xtask test` counts.
pub fn skipped(what: &str, why: impl fmt::Display) {
    println!("SKIPPED: {what}: {}", why.to_string().replace('\n', " "));
}

/// A directory for images, on the filesystem of the target directory: /tmp may be a tmpfs.
pub fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the program can be run.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// Runs a program to its end; its output if it failed.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}{}", text(&output.stdout), text(&output.stderr)))
    }
}

/// The engines that disk requests may use. Linux AIO leaves what is not opened with O_DIRECT to
/// threads.
pub const ENGINES: [EngineChoice; 3] = [
    EngineChoice::IoUring,
    EngineChoice::LinuxAio,
    EngineChoice::Threads,
];

/// A loop whose disk requests use this engine.
pub fn io_thread(engine: EngineChoice) -> IoThread {
    IoThread::builder()
        .name("test")
        .engine(engine)
        .spawn()
        .unwrap()
}

/// Runs `f` in a coroutine on a loop of its own.
pub fn in_coroutine<T: Send + 'static>(
    engine: EngineChoice,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let io = io_thread(engine);
    let value = match io.context().spawn(f).join() {
        Ok(value) => value,
        Err(_) => panic!("the coroutine panicked"),
    };
    if let Some(used) = io.context().engine()
        && engine == EngineChoice::IoUring
        && used.kind != EngineKind::IoUring
    {
        skipped("disks on the io_uring engine", used.reason);
    }
    value
}

/// A kind of disk to run a test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Writeback,
    Direct,
    /// A driver in memory that takes blocks only and checks that it gets nothing else.
    Blocks(u32),
}

pub const KINDS: [Kind; 5] = [
    Kind::Memory,
    Kind::Writeback,
    Kind::Direct,
    Kind::Blocks(512),
    Kind::Blocks(4096),
];

/// A disk to test, with the file below it if there is one.
pub struct Disk {
    pub node: Arc<Node>,
    pub path: Option<PathBuf>,
    _directory: Option<TempDir>,
}

impl Disk {
    /// A new disk of this size; `None`, said aloud, if this machine has no such disk.
    pub fn new(kind: Kind, size: u64) -> Option<Disk> {
        let cache = match kind {
            Kind::Memory => {
                let node = memory::Options::new(Length(size)).open().unwrap();
                return Some(Disk {
                    node,
                    path: None,
                    _directory: None,
                });
            }
            Kind::Blocks(alignment) => {
                let node = Node::new("blocks", Box::new(Blocks::new(size, alignment)), false);
                return Some(Disk {
                    node: node.unwrap(),
                    path: None,
                    _directory: None,
                });
            }
            Kind::Writeback => raw::Cache::Writeback,
            Kind::Direct => raw::Cache::None,
        };
        let directory = directory();
        let path = directory.path().join("disk.raw");
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        match raw::Options::new(&path).cache(cache).open() {
            Ok(node) => Some(Disk {
                node,
                path: Some(path),
                _directory: Some(directory),
            }),
            Err(error @ Error::DirectUnsupported { .. }) => {
                skipped("a disk with O_DIRECT", error);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Takes whole blocks from aligned memory only, and lets others go on between any two of its steps.
#[derive(Debug)]
pub struct Blocks {
    bytes: Mutex<Vec<u8>>,
    limits: Limits,
}

impl Blocks {
    pub fn new(size: u64, alignment: u32) -> Blocks {
        Blocks {
            bytes: Mutex::new(vec![0; usize::try_from(size).unwrap()]),
            limits: Limits::blocks(alignment),
        }
    }

    fn check(&self, buf: &[u8], offset: Offset) -> usize {
        let alignment = u64::from(self.limits.request_alignment);
        let (len, size) = (Length::of(buf).0, self.size().0);
        assert!(len > 0, "an empty request");
        assert_eq!(offset.0 % alignment, 0, "an unaligned offset");
        assert!(offset.0 + len <= size, "past the end");
        assert!(
            len % alignment == 0 || offset.0 + len == size,
            "an unaligned length"
        );
        assert_eq!(
            buf.as_ptr().addr() as u64 % alignment,
            0,
            "unaligned memory"
        );
        assert!(len <= u64::from(self.limits.max_transfer), "too long");
        give_way();
        usize::try_from(offset.0).unwrap()
    }
}

impl Driver for Blocks {
    fn name(&self) -> &'static str {
        "blocks"
    }

    fn size(&self) -> Length {
        Length::of(&self.bytes.lock().unwrap())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        let at = self.check(buf, offset);
        buf.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buf.len()]);
        give_way();
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> io::Result<()> {
        assert!(flags.is_empty(), "a flag that it does not have");
        let at = self.check(buf, offset);
        self.bytes.lock().unwrap()[at..at + buf.len()].copy_from_slice(buf);
        give_way();
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets other coroutines of this loop, or other threads, go on.
fn give_way() {
    if corio::in_coroutine() {
        corio::yield_now();
    } else {
        std::thread::yield_now();
    }
}

/// Reads the whole disk.
pub fn contents(node: &Node) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(node.size()).unwrap()];
    node.read_at(&mut all, Offset::ZERO).unwrap();
    all
}

/// A device that has a file's bytes, until dropped; root only.
pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    pub fn new(file: &Path, more: &[&str]) -> Result<LoopDevice, String> {
        let mut args = vec!["--find", "--show"];
        args.extend(more);
        args.push(file.to_str().unwrap());
        let path = PathBuf::from(run("losetup", &args)?);
        if path.exists() {
            Ok(LoopDevice { path })
        } else {
            Err("no device node".into())
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}
