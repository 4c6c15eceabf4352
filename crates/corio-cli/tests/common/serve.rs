//! Starts `corio serve`, reads the addresses it prints, and ends it with the test.
//!
//! The program is the one Cargo built for these tests, or the one that `CORIO_BIN` names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::tool::{self, Output};
use super::{Combo, tls, wait_until};

/// How long the server may take until it listens, and to end when asked to.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The program under test.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("CORIO_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_corio")), PathBuf::from)
}

/// A directory for images: in Cargo's target directory, which is on a real file system.
pub(crate) fn image_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A directory for sockets, whose paths are short.
pub(crate) fn socket_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// One of the others, where STARTTLS comes first.
    Tls(Box<Addr>),
}

impl Addr {
    /// What the stream itself is connected to.
    pub(crate) fn below(&self) -> &Addr {
        match self {
            Addr::Tls(below) => below,
            addr => addr,
        }
    }
}

/// An address that the server has printed.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    /// For libnbd's tools; with TLS it says where the client's certificates are.
    pub(crate) uri: String,
    pub(crate) addr: Addr,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A server to be started.
pub(crate) struct Serve {
    program: PathBuf,
    before: Vec<OsString>,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    sockets: Option<TempDir>,
    certificates: Option<TempDir>,
    addresses: usize,
    /// Its images are past the page cache, unless it is told otherwise.
    direct: bool,
}

impl Serve {
    pub(crate) fn new(combo: Combo) -> Serve {
        let mut serve = Serve::bare();
        serve.direct = combo.is_direct();
        if combo != Combo::AUTO {
            serve = serve.args(["--monitor", combo.monitor, "--engine", combo.engine]);
        }
        if combo.tls { serve.tls() } else { serve }
    }

    /// `corio serve` and not a word more.
    pub(crate) fn bare() -> Serve {
        Serve {
            program: program(),
            before: Vec::new(),
            args: vec!["serve".into()],
            envs: Vec::new(),
            sockets: None,
            certificates: None,
            addresses: 0,
            direct: false,
        }
    }

    /// Another program than [`program`].
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Serve {
        self.program = program.into();
        self
    }

    /// Runs the server through another program, which is to exec its last arguments.
    pub(crate) fn through(mut self, words: &[&str]) -> Serve {
        self.before = words.iter().map(OsString::from).collect();
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Serve {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Serve {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Serve {
        self.envs.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// A raw image.
    pub(crate) fn image(self, path: &Path) -> Serve {
        self.arg(path).args(["--format", "raw"])
    }

    /// A memory disk; Linux AIO is not for it.
    pub(crate) fn memory(mut self, size: &str) -> Serve {
        if self.direct {
            self.direct = false;
            self.args
                .retain(|arg| arg != "--engine" && arg != "linux-aio");
        }
        self.args(["--memory", size])
    }

    /// Listens on a free port of the loopback.
    pub(crate) fn tcp(mut self) -> Serve {
        self.addresses += 1;
        self.args(["--listen", "127.0.0.1:0"])
    }

    /// Listens on a Unix socket in a directory of its own.
    pub(crate) fn unix(mut self) -> Serve {
        let dir = socket_dir();
        let path = dir.path().join("nbd.sock");
        self.sockets = Some(dir);
        self.unix_at(&path)
    }

    /// Demands TLS, and certificates of the tests' CA from clients.
    pub(crate) fn tls(mut self) -> Serve {
        let dir = socket_dir();
        tls::PKI.write_to(dir.path());
        let file = |name| dir.path().join(name);
        self = self
            .arg("--tls-cert")
            .arg(file("server-cert.pem"))
            .arg("--tls-key")
            .arg(file("server-key.pem"))
            .arg("--tls-client-ca")
            .arg(file("ca-cert.pem"));
        self.certificates = Some(dir);
        self
    }

    pub(crate) fn unix_at(mut self, path: &Path) -> Serve {
        self.addresses += 1;
        self.arg("--unix").arg(path)
    }

    /// Expects that many addresses to be announced which no argument names.
    pub(crate) fn announces(mut self, addresses: usize) -> Serve {
        self.addresses = addresses;
        self
    }

    pub(crate) fn command(&self) -> Command {
        let direct = ["--cache".into(), "none".into()];
        let is_direct = self.direct && !self.args.iter().any(|arg| arg == "--cache");
        let mut words = self
            .before
            .iter()
            .chain([self.program.as_os_str().to_owned()].iter())
            .chain(&self.args)
            .chain(is_direct.then_some(&direct).into_iter().flatten())
            .cloned()
            .collect::<Vec<_>>()
            .into_iter();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).envs(self.envs.iter().cloned());
        // A socket or a log level meant for whoever runs the tests is not meant for the server.
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "RUST_LOG"] {
            if !self.envs.iter().any(|(set, _)| set == name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Starts the server and waits until it has announced all its addresses.
    #[track_caller]
    pub(crate) fn start(self) -> Server {
        self.start_with(Stdio::null())
    }

    /// [`Serve::start`] with something on the standard input.
    #[track_caller]
    pub(crate) fn start_with(self, stdin: Stdio) -> Server {
        let mut command = self.command();
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let stderr = Collected::of(child.stderr.take().unwrap());
        let (lines, stdout) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            // A receiver that is gone does not stop the pipe from being emptied.
            for line in out.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut server = Server {
            child,
            listening: Vec::new(),
            stdout,
            stderr,
            command: format!("{command:?}"),
            ended: None,
            _sockets: self.sockets,
            certificates: self.certificates,
        };
        server.read_addresses(self.addresses);
        server
    }

    /// Runs a server that is to end by itself.
    #[track_caller]
    pub(crate) fn run(self) -> Output {
        tool::run_for(START_LIMIT, &mut self.command())
    }

    /// Runs a server that is to end with `status` and one line that holds all `words`.
    #[track_caller]
    pub(crate) fn refused(self, status: i32, words: &[&str]) {
        let output = self.run();
        let text = &output.stderr;
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(output.stdout, "", "nothing is announced");
        assert!(
            text.ends_with('\n') && text.lines().count() == 1,
            "not one line:\n{text}"
        );
        for word in words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    }
}

/// A running server. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    listening: Vec<Listening>,
    stdout: Receiver<String>,
    stderr: Collected,
    command: String,
    ended: Option<ExitStatus>,
    _sockets: Option<TempDir>,
    certificates: Option<TempDir>,
}

impl Server {
    fn read_addresses(&mut self, addresses: usize) {
        let deadline = Instant::now() + START_LIMIT;
        while self.listening.len() < addresses {
            let line = self.line_before(deadline);
            if let Some(uri) = line.strip_prefix("listening ") {
                let addr = address(uri);
                let uri = self.client_uri(uri);
                self.listening.push(Listening { uri, addr });
            }
        }
    }

    fn client_uri(&self, uri: &str) -> String {
        let Some(dir) = &self.certificates else {
            return uri.to_owned();
        };
        let separator = if uri.contains('?') { '&' } else { '?' };
        // A temporary directory's name has nothing in it that would have to be encoded.
        format!("{uri}{separator}tls-certificates={}", dir.path().display())
    }

    /// Where the certificates are that clients of a server with TLS need.
    #[track_caller]
    pub(crate) fn certificates(&self) -> &Path {
        let dir = self.certificates.as_ref();
        dir.expect("the server speaks TLS").path()
    }

    fn line_before(&mut self, deadline: Instant) -> String {
        match self
            .stdout
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("said too little within {START_LIMIT:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("ended: {:?}", tool::wait(&mut self.child, START_LIMIT))
            }
        }
    }

    /// The next line of the server's stdout.
    pub(crate) fn line(&mut self) -> String {
        self.line_before(Instant::now() + START_LIMIT)
    }

    /// All that the server printed to stdout and that was not asked for yet. It has ended.
    pub(crate) fn rest_of_stdout(&self) -> Vec<String> {
        self.stdout.iter().collect()
    }

    /// What the server has written to stderr: so far, or all of it if it has ended.
    pub(crate) fn stderr(&self) -> String {
        if self.ended.is_some() {
            wait_until("the end of stderr", START_LIMIT, || self.stderr.ended());
        }
        self.stderr.text()
    }

    /// The first address that the server announced.
    #[track_caller]
    pub(crate) fn first(&self) -> &Listening {
        self.listening
            .first()
            .expect("the server listens somewhere")
    }

    /// Its first TCP address.
    #[track_caller]
    pub(crate) fn tcp(&self) -> &Listening {
        let tcp = |l: &&Listening| matches!(l.addr.below(), Addr::Tcp(_));
        self.listening.iter().find(tcp).expect("a TCP address")
    }

    /// Its first Unix address.
    #[track_caller]
    pub(crate) fn unix(&self) -> &Listening {
        let unix = |l: &&Listening| matches!(l.addr.below(), Addr::Unix(_));
        self.listening.iter().find(unix).expect("a Unix address")
    }

    /// All addresses, in the order announced.
    pub(crate) fn listening(&self) -> &[Listening] {
        &self.listening
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// True while the server has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().unwrap().is_none()
    }

    /// Kills the server as a crash would, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.ended = Some(self.child.wait().unwrap());
    }

    /// Waits for the server to end by itself.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = tool::wait(&mut self.child, limit);
        let status = status.unwrap_or_else(|| panic!("the server has not ended in {limit:?}"));
        self.ended = Some(status);
        status
    }

    /// Asks the server to end and asserts that it does so, well and in time.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(Duration::from_secs(10));
        assert!(status.success(), "stopped with {status}");
    }

    /// What is in /proc/PID/FILE.
    pub(crate) fn proc_text(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// A line of /proc/PID/FILE whose first word is `key:`, in KiB.
    pub(crate) fn proc_kib(&self, file: &str, key: &str) -> u64 {
        let text = self.proc_text(file);
        let line = text
            .lines()
            .find(|line| line.split(':').next() == Some(key));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value
            .unwrap_or_else(|| panic!("no {key} in {file}"))
            .parse()
            .unwrap()
    }

    /// The names of what the server's descriptors refer to.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let dir = format!("/proc/{}/fd", self.child.id());
        let links = std::fs::read_dir(dir).unwrap().flatten();
        // One that is closed meanwhile is none.
        links
            .filter_map(|link| std::fs::read_link(link.path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "the server was {}\nand wrote:\n{}",
                self.command,
                self.stderr.text()
            );
        }
    }
}

/// What a pipe has brought so far.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collected {
    fn of(mut pipe: impl std::io::Read + Send + 'static) -> Collected {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n) = pipe.read(&mut part) {
                if n == 0 {
                    break;
                }
                sink.lock().unwrap().extend_from_slice(&part[..n]);
            }
        });
        Collected { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// True once all writers are gone.
    fn ended(&self) -> bool {
        self.reader.is_finished()
    }
}

/// Reads an address back out of a printed URI.
fn address(uri: &str) -> Addr {
    if let Some(rest) = uri.strip_prefix("nbds") {
        return Addr::Tls(Box::new(address(&format!("nbd{rest}"))));
    }
    if let Some(rest) = uri.strip_prefix("nbd+unix://") {
        let (_, path) = rest
            .split_once("?socket=")
            .unwrap_or_else(|| panic!("no socket: {uri}"));
        return Addr::Unix(PathBuf::from(OsString::from_vec(percent_decoded(path))));
    }
    let rest = uri
        .strip_prefix("nbd://")
        .unwrap_or_else(|| panic!("not an NBD URI: {uri}"));
    let host = rest.split('/').next().unwrap_or_default();
    let mut found = host
        .to_socket_addrs()
        .unwrap_or_else(|e| panic!("{uri}: {e}"));
    Addr::Tcp(found.next().unwrap())
}

/// Undoes the percent-encoding of a URI (RFC 3986, section 2.1).
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex: String = bytes.by_ref().take(2).map(char::from).collect();
            decoded.push(u8::from_str_radix(&hex, 16).unwrap());
        } else {
            decoded.push(byte);
        }
    }
    decoded
}
