//! One suite for all disk engines: io_uring, Linux AIO and threads, on each monitor, through the
//! page cache and past it (SPEC E1 to E5). Linux AIO is for files past the page cache only.

#![allow(unsafe_code)] // Limits, mounts and descriptors that others close.

mod contents;
mod device;
mod ends;
mod errors;
mod faults;
mod faulty;
mod files;
mod log;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use corio::IoThread;
use corio::context::MonitorChoice;
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::{AlignedBuf, File, OpenOptions};

/// How long a test waits for what must come, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// One way in which requests reach the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mode {
    monitor: MonitorChoice,
    choice: EngineChoice,
    kind: EngineKind,
    /// Past the page cache.
    direct: bool,
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = if self.direct { "direct" } else { "cached" };
        write!(f, "{:?}, {cache}, {:?} monitor", self.kind, self.monitor)
    }
}

/// The engines, and whether past the page cache.
const ENGINES: [(EngineChoice, EngineKind, bool); 5] = [
    (EngineChoice::IoUring, EngineKind::IoUring, false),
    (EngineChoice::IoUring, EngineKind::IoUring, true),
    (EngineChoice::LinuxAio, EngineKind::LinuxAio, true),
    (EngineChoice::Threads, EngineKind::Threads, false),
    (EngineChoice::Threads, EngineKind::Threads, true),
];

impl Mode {
    /// Those of one monitor that this machine has; what it has not is said once.
    fn on(monitor: MonitorChoice) -> impl Iterator<Item = Self> {
        let all = ENGINES.into_iter().map(move |(choice, kind, direct)| Self {
            monitor,
            choice,
            kind,
            direct,
        });
        all.filter(|mode| !mode.direct || has_direct())
    }

    fn all() -> impl Iterator<Item = Self> {
        MonitorChoice::ALL.into_iter().flat_map(Self::on)
    }

    fn spawn(self) -> IoThread {
        let builder = IoThread::builder().monitor(self.monitor);
        builder.engine(self.choice).spawn().unwrap()
    }

    /// The engine is the one that was asked for, and what was chosen can be read back.
    fn check(self, io: &IoThread) {
        let context = io.context();
        let info = match self.direct {
            true => context.direct_engine(),
            false => context.engine(),
        };
        let info = info.expect("there were requests");
        assert_eq!(info.kind, self.kind, "{self:?}: {}", info.reason);
        assert_eq!(info.reason, "asked for");
    }

    fn open(self, path: impl AsRef<Path>) -> io::Result<File> {
        let options = OpenOptions::new().read(true).write(true);
        options.direct(self.direct).open(path)
    }

    fn scratch(self) -> Scratch {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = self.open(named.path()).unwrap();
        Scratch { file, named }
    }

    /// Runs `test` in a coroutine in a loop of this mode's.
    fn run<T: Send + 'static>(self, test: impl FnOnce() -> T + Send + 'static) -> T {
        let io = self.spawn();
        let value = match io.context().spawn(test).join() {
            Ok(value) => value,
            Err(error) => panic!("{self:?}: {}", error.resume_panic()),
        };
        self.check(&io);
        io.join();
        value
    }
}

/// Runs a test in a coroutine, in each mode.
fn in_each_mode(test: impl Fn(Mode) + Clone + Send + 'static) {
    in_modes(Mode::all(), test);
}

fn in_modes(modes: impl Iterator<Item = Mode>, test: impl Fn(Mode) + Clone + Send + 'static) {
    for mode in modes {
        let test = test.clone();
        mode.run(move || test(mode));
    }
}

/// Whether files can be opened with O_DIRECT where temporary ones are.
fn has_direct() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let named = tempfile::NamedTempFile::new().unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT;
        match rustix::fs::open(named.path(), flags, rustix::fs::Mode::empty()) {
            Ok(_) => true,
            Err(error) => {
                println!("SKIPPED: engines past the page cache: {error}");
                false
            }
        }
    })
}

/// A file of its own for a test.
struct Scratch {
    file: File,
    named: tempfile::NamedTempFile,
}

impl Deref for Scratch {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Scratch {
    /// What offsets and lengths are multiples of.
    fn unit(&self) -> usize {
        self.file
            .direct_alignment()
            .map_or(1, |align| usize::try_from(align).unwrap())
    }
}

/// Memory that may be used past the page cache.
fn buffer(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096).unwrap();
    buf.fill(byte);
    buf
}

fn errno(result: io::Result<()>) -> i32 {
    let error = result.expect_err("it is refused");
    error.raw_os_error().expect("the kernel's own error")
}

/// In a coroutine: lets every other that can run do so, until it waits.
fn settle_here() {
    for _ in 0..8 {
        corio::yield_now();
    }
}

/// The same from a plain thread; what the coroutines ask of the kernel has reached it then.
fn settle(io: &IoThread) {
    io.context().spawn(settle_here).join().unwrap();
}

/// Runs the test `name` again in a process of its own; true in there. What it skips is said here,
/// too.
fn in_child(name: &str) -> bool {
    const CHILD: &str = "CORIO_ENGINES_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("1 passed"), "{said}");
    for line in said.lines().filter(|line| line.starts_with("SKIPPED:")) {
        println!("{line}");
    }
    false
}
