//! The contestants: started in the foreground, found by their sockets, ended with the bench.
//!
//! I1: a server is a child of this process, runs no longer than its [`Server`] lives, and is told
//! by the kernel to end (`setpriv --pdeathsig`) should this process be killed without a chance to
//! clean up.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal};

const START_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(6);

/// Programs the suite needs and the Debian packages they are in.
const TOOLS: [(&str, &str); 7] = [
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
    ("strace", "strace"),
    ("setpriv", "util-linux"),
];

/// Fails with what to install when a peer or a client is missing.
pub(crate) fn require_tools() -> anyhow::Result<()> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| !std::env::split_paths(&search).any(|dir| dir.join(tool).is_file()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let tools: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    bail!(
        "missing {}: apt-get install {}",
        tools.join(", "),
        packages.join(" ")
    )
}

/// A command that ends when this process does.
pub(crate) fn bound(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command.stdin(Stdio::null());
    command
}

/// A server that serves; ended on drop.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) uri: String,
    child: Child,
}

impl Server {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!(
                    "bench: {} did not end within {STOP_MAX:?}: killed",
                    self.name
                );
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// How a server is started: over a Unix socket, else with its defaults.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    program: PathBuf,
    options: Vec<String>,
    socket: PathBuf,
}

impl Recipe {
    fn new(name: &'static str, program: &Path, options: &[&str], sockets: &Path) -> Self {
        let socket = sockets.join(format!("{name}.sock"));
        let path = socket.to_string_lossy();
        let options = options
            .iter()
            .map(|option| option.replace("SOCKET", &path))
            .collect();
        Self {
            name,
            program: program.to_owned(),
            options,
            socket,
        }
    }

    /// The command line, for the reader of the figures.
    pub(super) fn line(&self) -> String {
        format!(
            "{}: {} {}",
            self.name,
            self.program.display(),
            self.options.join(" ")
        )
    }

    /// Starts the server and waits until it accepts.
    pub(super) fn start(&self, scratch: &Path) -> anyhow::Result<Server> {
        let log = scratch.join(format!("{}.log", self.name));
        // nbdkit leaves it there when it ends, and does not start where there is one.
        if let Err(error) = fs::remove_file(&self.socket)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            bail!("cannot remove {}: {error}", self.socket.display());
        }
        let mut command = bound(&self.program);
        command
            .args(&self.options)
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let mut child = command.spawn().context("cannot run setpriv")?;
        let stdout = child.stdout.take();
        let uri = format!("nbd+unix:///?socket={}", self.socket.display());
        let mut server = Server {
            name: self.name,
            uri,
            child,
        };
        let said = addresses(stdout.context("the server has no stdout")?);
        let ready = self.wait_ready(&mut server);
        ready.with_context(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            format!("{} does not serve; it says: {}", self.line(), log.trim())
        })?;
        if matches!(self.name, OURS | SLEEPING) {
            // Only ours says its address, which holds the export's name.
            server.uri = said
                .recv_timeout(START_MAX)
                .context("corio said no address")?;
        }
        Ok(server)
    }

    fn wait_ready(&self, server: &mut Server) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("it ended with {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "nobody accepts after {START_MAX:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// The `listening nbd+unix://..` addresses a server prints. Reads to the end, so that it may go on
/// printing.
fn addresses(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(uri) = address(&line) {
                // Nobody listens any more: go on reading all the same.
                let _ = sender.send(uri.to_owned());
            }
        }
    });
    receiver
}

fn address(line: &str) -> Option<&str> {
    let uri = line.strip_prefix("listening ")?.trim();
    uri.starts_with("nbd+unix:").then_some(uri)
}

/// Our name among the servers.
pub(super) const OURS: &str = "corio";
/// Ours that does not poll: what polling takes and gives.
pub(super) const SLEEPING: &str = "sleeping";
/// The name of the least server.
pub(super) const FLOOR: &str = "floor";
/// The name of the peer the floor is held against.
pub(super) const QEMU: &str = "qemu-nbd";

/// The contestants that serve one file read-only, ours first.
pub(super) fn readers(corio: &Path, disk: &Path, sockets: &Path) -> anyhow::Result<[Recipe; 5]> {
    let disk = text(disk)?;
    let floor = ["floor-server", disk, "--unix", "SOCKET"];
    Ok([
        ours(corio, disk, READ_ONLY, sockets),
        sleeping(corio, disk, READ_ONLY, sockets),
        qemu_nbd(disk, READ_ONLY, sockets),
        nbdkit(disk, READ_ONLY, sockets),
        Recipe::new(FLOOR, &std::env::current_exe()?, &floor, sockets),
    ])
}

/// Those that are written to, of which one at a time serves the file; ours first.
pub(super) fn writers(corio: &Path, disk: &Path, sockets: &Path) -> anyhow::Result<[Recipe; 5]> {
    let disk = text(disk)?;
    let floor = ["floor-server", disk, "--writable", "--unix", "SOCKET"];
    Ok([
        ours(corio, disk, WRITABLE, sockets),
        sleeping(corio, disk, WRITABLE, sockets),
        qemu_nbd(disk, WRITABLE, sockets),
        nbdkit(disk, WRITABLE, sockets),
        Recipe::new(FLOOR, &std::env::current_exe()?, &floor, sockets),
    ])
}

const READ_ONLY: bool = true;
const WRITABLE: bool = false;

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the path of the program is no text")
}

fn ours(corio: &Path, disk: &str, read_only: bool, sockets: &Path) -> Recipe {
    ours_with(OURS, &[], corio, disk, read_only, sockets)
}

fn sleeping(corio: &Path, disk: &str, read_only: bool, sockets: &Path) -> Recipe {
    let more = ["--poll-max-ns", "0"];
    ours_with(SLEEPING, &more, corio, disk, read_only, sockets)
}

fn ours_with(
    name: &'static str,
    more: &[&str],
    corio: &Path,
    disk: &str,
    read_only: bool,
    sockets: &Path,
) -> Recipe {
    let mut options = vec!["serve", disk, "--unix", "SOCKET"];
    options.extend(read_only.then_some("--read-only"));
    options.extend(more);
    Recipe::new(name, corio, &options, sockets)
}

fn qemu_nbd(disk: &str, read_only: bool, sockets: &Path) -> Recipe {
    let mut options = vec![
        "--persistent",
        "--format=raw",
        "--aio=io_uring",
        "--cache=writeback",
        "--shared=16",
        "--socket=SOCKET",
    ];
    options.extend(read_only.then_some("--read-only"));
    options.push(disk);
    Recipe::new(QEMU, Path::new("qemu-nbd"), &options, sockets)
}

fn nbdkit(disk: &str, read_only: bool, sockets: &Path) -> Recipe {
    let mut options = vec!["--foreground", "--unix", "SOCKET"];
    options.extend(read_only.then_some("--readonly"));
    options.extend(["file", disk]);
    Recipe::new("nbdkit", Path::new("nbdkit"), &options, sockets)
}

/// The program to measure: the one given, or the workspace's own. Run by cargo, that is built
/// first, so that no figure is yesterday's program's.
pub(super) fn corio_program(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.is_file(), "{} is no program", path.display());
        return Ok(path.canonicalize()?);
    }
    let profile = if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    };
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--package",
            "corio-cli",
            "--bin",
            "corio",
            "--profile",
            profile,
        ]);
        build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(Stdio::null());
        ensure!(build.status()?.success(), "cannot build the corio program");
    }
    let beside = std::env::current_exe()?.with_file_name("corio");
    ensure!(
        beside.is_file(),
        "{} is missing: cargo build --release -p corio-cli, or name the program with --corio",
        beside.display()
    );
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use super::{Recipe, address, bound};
    use std::path::Path;

    #[test]
    fn only_the_unix_address_is_taken() {
        let uri = "nbd+unix:///disk?socket=/tmp/x.sock";
        assert_eq!(address(&format!("listening {uri}")), Some(uri));
        assert_eq!(address("listening nbd://localhost:10809/"), None);
        assert_eq!(address(&format!("try: nbdinfo {uri}")), None);
    }

    #[test]
    fn the_socket_is_put_where_the_recipe_says() {
        let recipe = Recipe::new(
            "x",
            Path::new("prog"),
            &["--unix=SOCKET", "f"],
            Path::new("/s"),
        );
        assert_eq!(recipe.line(), "x: prog --unix=/s/x.sock f");
    }

    #[test]
    fn a_server_that_ends_at_once_is_an_error_that_says_so() {
        let scratch = std::env::temp_dir();
        let recipe = Recipe::new(
            "bench-no-server",
            Path::new("false"),
            &[],
            Path::new("/nowhere"),
        );
        let error = recipe.start(&scratch).err().unwrap();
        std::fs::remove_file(scratch.join("bench-no-server.log")).unwrap();
        assert!(format!("{error:#}").contains("it ended with exit status: 1"));
    }

    #[test]
    fn bound_runs_the_program_itself() {
        assert!(bound("true").status().unwrap().success());
        assert!(!bound("false").status().unwrap().success());
    }
}
