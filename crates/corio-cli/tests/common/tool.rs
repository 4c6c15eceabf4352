//! Runs programs under a deadline.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a client may take for anything short of a large copy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Output {
    /// Asserts that the program ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Output {
        assert!(
            self.status.success(),
            "{}\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Asserts that the program ended with an error.
    #[track_caller]
    pub(crate) fn fails(self) -> Output {
        assert!(
            !self.status.success(),
            "it went well:\n{}{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a program to its end. Kills it and panics when `limit` has passed.
#[track_caller]
pub(crate) fn run_for(limit: Duration, command: &mut Command) -> Output {
    let start = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => panic!("cannot start {command:?}: {e}"),
    };
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let Some(status) = wait(&mut child, limit) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!(
            "still running after {limit:?}: {command:?}\n{}",
            stderr.join().unwrap()
        );
    };
    let took = start.elapsed();
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
        took,
    }
}

/// [`run_for`] with the usual limit.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    run_for(SOON, command)
}

/// A command with its arguments, as a line: words are split at spaces, so a path goes through
/// `arg`.
pub(crate) fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// Waits for a child to end, by its descriptor. None when `limit` has passed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let pid = Pid::from_child(child);
    let deadline = Instant::now() + limit;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let timeout = Timespec::try_from(left).unwrap();
        // An interrupted wait is looked at again, like any other.
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)],
            Some(&timeout),
        );
    }
}

/// Collects what a pipe brings until its writers are gone.
fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// True if a program of this name is in the search path.
pub(crate) fn exists(tool: &str) -> bool {
    find(tool).is_some()
}

/// Where a program of this name is. The superuser's directories are looked at too.
pub(crate) fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

/// True if a program other than ours gets a ring from this kernel. Asking our own server would
/// turn its bugs into skips.
pub(crate) fn io_uring_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        if !exists("fio") {
            return true;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut fio = command("fio --name=probe --ioengine=io_uring --size=64k --filename=probe");
        run(fio.current_dir(dir.path())).status.success()
    })
}

/// True if the tests run as the superuser.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
