//! A file system whose faults are made to order: FUSE, spoken by a process of its own, so that what
//! it has not answered ends with it, whatever becomes of the test.
//!
//! What happens to a request is decided by the MiB of the file in which it begins.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Answered with what every byte of the file is.
pub(crate) const GOOD: u64 = 0;
/// EIO.
pub(crate) const BAD: u64 = 1 << 20;
/// EAGAIN, each other time.
pub(crate) const BUSY: u64 = 2 << 20;
/// EINTR, each other time.
pub(crate) const INTERRUPTED: u64 = 3 << 20;
/// Not answered.
pub(crate) const HELD: u64 = 4 << 20;

/// What every byte reads as.
pub(crate) const BYTE: u8 = 0x5a;

/// The file, all of whose syncs succeed.
pub(crate) const FILE: &str = "file";
/// The same file but that each other sync fails with EIO, the first one, too.
pub(crate) const LOSSY: &str = "lossy";

const CHILD: &str = "CORIO_FAULTY_DIR";
const SIZE: u64 = 64 << 20;
/// For how long a server lives at most, in seconds: nothing waits for ever for what it holds.
const LIFE_S: u32 = 100;

/// The file system, while it is there.
pub(crate) struct Faulty {
    server: Child,
    said: BufReader<ChildStdout>,
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Faulty {
    /// Starts it for the test `name`, whose first call this is: the test's program is run once more
    /// to be the server, which does not return from here. None: that is not possible here, which is
    /// said.
    pub(crate) fn start(name: &str) -> Option<Self> {
        if let Some(dir) = std::env::var_os(CHILD) {
            serve(Path::new(&dir));
        }
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_owned();
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let line = next_line(&mut said);
        if !line.contains("faulty: ready") {
            let _ = server.wait();
            println!("SKIPPED: {name}: {}", line.trim());
            return None;
        }
        Some(Self {
            server,
            said,
            dir,
            _temp: temp,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits until so many more requests are held.
    pub(crate) fn wait_for_held(&mut self, count: usize) {
        for _ in 0..count {
            let line = next_line(&mut self.said);
            assert!(line.contains("faulty: holds"), "{line}");
        }
    }

    /// Ends all that is held, with ECONNABORTED.
    pub(crate) fn abort(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// What the server says next; the test's harness speaks, too.
fn next_line(said: &mut impl BufRead) -> String {
    let mut line = String::new();
    while !line.contains("faulty: ") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "the server is gone");
    }
    line
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let dir = CString::new(self.dir.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that ends with NUL.
        unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Mounts the file system, says so, and serves it until it is killed.
fn serve(dir: &Path) -> ! {
    match mount(dir) {
        Ok(device) => {
            println!("faulty: ready");
            // SAFETY: without pointers.
            unsafe { libc::alarm(LIFE_S) };
            Server {
                device,
                odd: [false; 3],
            }
            .run();
        }
        Err(error) => println!("faulty: FUSE is refused: {error}"),
    }
    std::process::exit(0)
}

fn mount(dir: &Path) -> std::io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let fd = device.as_raw_fd();
    let options = CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0")).unwrap();
    let target = CString::new(dir.as_os_str().as_bytes()).unwrap();
    // SAFETY: strings that end with NUL.
    let mounted = unsafe {
        libc::mount(
            c"corio-faulty".as_ptr(),
            target.as_ptr(),
            c"fuse".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            options.as_ptr().cast(),
        )
    };
    match mounted {
        0 => Ok(device),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// What is answered.
enum Answer {
    Bytes(Vec<u8>),
    Errno(i32),
    Nothing,
}

struct Server {
    device: File,
    /// Whose turn to succeed it is: [`BUSY`], [`INTERRUPTED`], [`LOSSY`].
    odd: [bool; 3],
}

/// Little pieces of linux/fuse.h's structures, which are native.
#[derive(Default)]
struct Words(Vec<u8>);

impl Words {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// `struct fuse_attr`.
    fn attr(self, node: u64) -> Self {
        let (mode, size) = match node {
            1 => (libc::S_IFDIR | 0o755, 0),
            _ => (libc::S_IFREG | 0o644, SIZE),
        };
        let times = self
            .u64(node)
            .u64(size)
            .u64(size / 512)
            .u64(0)
            .u64(0)
            .u64(0);
        let times = times.u32(0).u32(0).u32(0);
        times.u32(mode).u32(1).u32(0).u32(0).u32(0).u32(4096).u32(0)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Server {
    fn run(&mut self) {
        const HEADER: usize = 40;
        let mut buf = vec![0; 1 << 18];
        loop {
            let Ok(n) = self.device.read(&mut buf) else {
                return; // Unmounted.
            };
            let (header, body) = buf[..n].split_at(HEADER);
            let (opcode, unique, node) = (u32_at(header, 4), &header[8..16], u64_at(header, 16));
            let (errno, payload) = match self.answer(opcode, node, body) {
                Answer::Bytes(bytes) => (0, bytes),
                Answer::Errno(errno) => (errno, Vec::new()),
                Answer::Nothing => continue,
            };
            let len = u32::try_from(16 + payload.len()).unwrap();
            let mut reply = Words::default().u32(len).u32((-errno).cast_unsigned()).0;
            reply.extend(unique);
            reply.extend(payload);
            // Whoever asked may be gone.
            let _ = self.device.write(&reply);
        }
    }

    fn answer(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let words = Words::default();
        Answer::Bytes(match opcode {
            1 => {
                // LOOKUP
                let node = match body.strip_suffix(&[0]) {
                    Some(name) if name == FILE.as_bytes() => 2,
                    Some(name) if name == LOSSY.as_bytes() => 3,
                    _ => return Answer::Errno(libc::ENOENT),
                };
                let entry = words.u64(node).u64(0).u64(1000).u64(1000).u32(0).u32(0);
                entry.attr(node).0
            }
            2 | 36 | 42 => return Answer::Nothing, // FORGET, INTERRUPT, BATCH_FORGET
            3 => words.u64(1000).u32(0).u32(0).attr(node).0, // GETATTR
            14 => words.u64(0).u32(0).u32(0).0,    // OPEN
            15 => return self.read(u64_at(body, 8), u32_at(body, 16)), // READ
            16 => return self.write(u64_at(body, 8), u32_at(body, 16)), // WRITE
            18 | 25 => Vec::new(),                 // RELEASE, FLUSH
            20 if node == 3 => return self.each_other(2, libc::EIO, Vec::new()), // FSYNC
            20 => Vec::new(),
            26 => {
                // INIT: version 7.31; ASYNC_READ, BIG_WRITES, ASYNC_DIO.
                let flags = 1 | 1 << 5 | 1 << 15;
                let words = words.u32(7).u32(31).u32(0).u32(flags).u16(64).u16(48);
                let words = words.u32(128 << 10).u32(1).u16(32).u16(0);
                (0..8).fold(words, |words, _| words.u32(0)).0
            }
            _ => return Answer::Errno(libc::ENOSYS),
        })
    }

    /// Fails at first, then not, and so on.
    fn each_other(&mut self, which: usize, errno: i32, good: Vec<u8>) -> Answer {
        self.odd[which] = !self.odd[which];
        match self.odd[which] {
            true => Answer::Errno(errno),
            false => Answer::Bytes(good),
        }
    }

    fn fault(&mut self, offset: u64, good: Vec<u8>) -> Answer {
        match offset >> 20 << 20 {
            BAD => Answer::Errno(libc::EIO),
            BUSY => self.each_other(0, libc::EAGAIN, good),
            INTERRUPTED => self.each_other(1, libc::EINTR, good),
            HELD => {
                println!("faulty: holds");
                Answer::Nothing
            }
            _ => Answer::Bytes(good),
        }
    }

    fn read(&mut self, offset: u64, size: u32) -> Answer {
        self.fault(offset, vec![BYTE; size as usize])
    }

    fn write(&mut self, offset: u64, size: u32) -> Answer {
        self.fault(offset, Words::default().u32(size).u32(0).0)
    }
}
