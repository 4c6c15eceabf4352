//! How `corio serve` starts and ends: signals, what is in flight then, --run, --pid-file, systemd.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::data::{self, KIB, MIB, assert_same};
use crate::common::ledger::is_gone;
use crate::common::nbd::{self, Client, Headers, cmd};
use crate::common::serve::{Addr, Serve, Server, image_dir, program, socket_dir};
use crate::common::tool::SOON;
use crate::common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, wait_until};
use rustix::process::Signal;

matrix!(
    requests_in_flight_finish_when_stopped,
    slow_clients_get_their_replies_before_a_stop_ends,
    client_that_does_not_read_is_named_and_given_up
);
again_through_tls!(
    requests_in_flight_finish_when_stopped,
    slow_clients_get_their_replies_before_a_stop_ends,
    client_that_does_not_read_is_named_and_given_up
);
again_on_linux_aio!(
    requests_in_flight_finish_when_stopped,
    slow_clients_get_their_replies_before_a_stop_ends,
    client_that_does_not_read_is_named_and_given_up
);

/// The time a stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

fn memory() -> Serve {
    Serve::bare().memory("16M")
}

fn connect(addr: &Addr) -> Client {
    Client::connect(addr, "", Headers::Structured).unwrap()
}

#[test]
fn every_stopping_signal_ends_an_idle_server_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = memory().tcp().unix().start();
        let mut idle = [server.tcp(), server.unix()].map(|at| connect(&at.addr));
        server.signal(signal);
        let began = Instant::now();
        assert_eq!(server.wait(STOP_LIMIT).code(), Some(0));
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "idle clients held it up"
        );
        assert_eq!(server.stderr(), "");
        for client in &mut idle {
            let error = client.read(0, 512).unwrap_err();
            assert!(
                is_gone(&error) || error.to_string().contains("error 108"),
                "{error}"
            );
        }
    }
}

fn requests_in_flight_finish_when_stopped(combo: Combo) {
    need!(combo);
    const COUNT: u64 = 64;
    const LEN: u64 = 256 * KIB;
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, COUNT * LEN);
    let mut server = Serve::new(combo).image(&image).unix().start();
    let mut client = connect(&server.unix().addr);
    let payload = |i: u64| data::Random::new(i).bytes(256 << 10);
    let mut requests = Vec::new();
    let mut cookies = HashMap::new();
    for i in 0..COUNT {
        let (cookie, header) = client.header(cmd::WRITE, 0, i * LEN, LEN);
        cookies.insert(cookie, i);
        requests.extend(header);
        requests.extend(payload(i));
    }
    let mut sender = client.stream().try_clone().unwrap();
    // The server may well close before it has read all.
    let sending = std::thread::spawn(move || drop(sender.write_all(&requests)));
    let mut written = Vec::new();
    let mut refused = 0;
    loop {
        match client.reply() {
            Ok(reply) if reply.error == 0 => written.push(cookies[&reply.cookie]),
            Ok(reply) => {
                assert_eq!(reply.error, nbd::ESHUTDOWN);
                refused += 1;
            }
            Err(error) => {
                assert!(is_gone(&error), "{error}");
                break;
            }
        }
        // With the first reply the rest is under way.
        if written.len() + refused == 1 {
            server.signal(Signal::TERM);
        }
    }
    assert_eq!(
        server.wait(STOP_LIMIT).code(),
        Some(0),
        "{}",
        server.stderr()
    );
    sending.join().unwrap();
    println!(
        "{combo}: {} of {COUNT} were written, {refused} refused",
        written.len()
    );
    assert!(!written.is_empty());
    let bytes = std::fs::read(&image).unwrap();
    for i in written {
        let at = usize::try_from(i * LEN).unwrap();
        assert_same(
            &format!("write {i}"),
            &bytes[at..at + (256 << 10)],
            &payload(i),
        );
    }
}

/// Many clients, each with more in flight than its socket holds, each in no hurry to read it.
fn slow_clients_get_their_replies_before_a_stop_ends(combo: Combo) {
    need!(combo);
    const LEN: u64 = 2 * MIB;
    const COUNT: u64 = 6;
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, LEN, 52);
    let bytes = std::fs::read(&image).unwrap();
    let serve = Serve::new(combo).image(&image).tcp().unix();
    let mut server = serve.args(["--iothreads", "2"]).start();
    let addrs = [server.tcp().addr.clone(), server.unix().addr.clone()];
    let mut clients: Vec<_> = (0..8).map(|i| connect(&addrs[i % 2])).collect();
    for client in &mut clients {
        for _ in 0..COUNT {
            client.send(cmd::READ, 0, 0, LEN, &[]).unwrap();
        }
        client.send(cmd::WRITE, 0, 0, 512, &bytes[..512]).unwrap();
        // With the first reply the rest is under way, and most of it does not fit.
        assert!(client.reply().unwrap().good().is_ok());
    }
    server.signal(Signal::TERM);
    let began = Instant::now();
    let slow = std::thread::scope(|scope| {
        let readers: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let bytes = &bytes;
                scope.spawn(move || read_slowly(client, bytes))
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect::<Vec<_>>()
    });
    let status = server.wait(STOP_LIMIT.saturating_sub(began.elapsed()));
    let took = began.elapsed();
    println!("{combo}: replies {slow:?}, ended after {took:.1?}");
    assert_eq!(status.code(), Some(0), "{}", server.stderr());
    assert_eq!(server.stderr(), "");
    assert!(took < STOP_LIMIT, "{took:?}");
}

/// Reads replies with a pause before each until the server ends the connection; how many were good.
/// None is half a reply.
fn read_slowly(mut client: Client, bytes: &[u8]) -> usize {
    let mut good = 0;
    loop {
        // The slowness is what is tested.
        std::thread::sleep(Duration::from_millis(150));
        match client.reply() {
            Ok(reply) if reply.error == 0 => {
                good += 1;
                assert!(reply.data.is_empty() || reply.data == bytes);
            }
            Ok(reply) => assert_eq!(reply.error, nbd::ESHUTDOWN),
            Err(error) => {
                assert!(is_gone(&error), "{error}");
                return good;
            }
        }
    }
}

/// A client whose replies fill its socket: requests of its own stay in flight.
fn deaf_client(server: &Server) -> Client {
    let mut client = connect(&server.unix().addr);
    for _ in 0..8 {
        // Data whole (DF): zeroes would come as a hole, which is soon sent.
        client.send(cmd::READ, nbd::DF, 0, 8 * MIB, &[]).unwrap();
    }
    // The first bytes of the first reply are here: the server is at it.
    let mut stream = client.stream().try_clone().unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 4]).unwrap();
    client
}

/// Waits until a stopping server takes no clients any more.
fn wait_until_closed(path: &Path) {
    wait_until(
        "the server takes no new clients",
        Duration::from_secs(3),
        || {
            // Refused, or accepted by nobody and closed.
            !UnixStream::connect(path).is_ok_and(|mut stream| {
                stream
                    .set_read_timeout(Some(Duration::from_secs(1)))
                    .unwrap();
                std::io::Read::read_exact(&mut stream, &mut [0; 18]).is_ok()
            })
        },
    );
}

fn client_that_does_not_read_is_named_and_given_up(combo: Combo) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, 16 * MIB, 51);
    let socket = socket_dir();
    let path = socket.path().join("s");
    let mut server = Serve::new(combo).image(&image).unix_at(&path).start();
    let deaf = deaf_client(&server);
    let mut other = connect(&server.unix().addr);
    other.write(0, &[0x51; 512]).unwrap();
    let began = Instant::now();
    server.signal(Signal::TERM);
    wait_until_closed(&path);
    // While it is held up, it does nothing new for anyone.
    match other.call(cmd::WRITE, 0, 512, 512, &[0x52; 512]) {
        Ok(reply) => assert_eq!(reply.error, nbd::ESHUTDOWN),
        Err(error) => assert!(is_gone(&error), "{error}"),
    }
    assert!(
        server.is_running(),
        "nothing held it up, so nothing is shown"
    );
    let status = server.wait(STOP_LIMIT);
    let took = began.elapsed();
    let text = server.stderr();
    println!("{combo}: given up after {took:.1?}: {}", text.trim_end());
    assert!(took <= STOP_LIMIT, "{took:?}");
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(
        text.lines().any(|line| line.contains("busy")),
        "it names what held it up: {text}"
    );
    assert!(!path.exists());
    drop(deaf);
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(bytes[..512], [0x51; 512]);
    assert_ne!(bytes[512..1024], [0x52; 512]);
}

#[test]
fn trace_shows_every_request() {
    let said = |level: &str| {
        let mut server = memory().tcp().args(["--log", level]).start();
        let mut client = connect(&server.tcp().addr);
        client.write(8192, &[1; 512]).unwrap();
        client.read(8192, 4096).unwrap();
        client.call(cmd::FLUSH, 0, 0, 0, &[]).unwrap();
        client.disconnect().unwrap();
        server.signal(Signal::TERM);
        assert_eq!(server.wait(STOP_LIMIT).code(), Some(0));
        let text = server.stderr();
        let requests = text.lines().filter(|line| line.contains("TRACE request "));
        requests.map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = said("trace");
    for (line, words) in lines.iter().zip([
        ["command=\"WRITE\"", "offset=8192", "length=512"],
        ["command=\"READ\"", "offset=8192", "length=4096"],
        ["command=\"FLUSH\"", "offset=0", "length=0"],
        ["command=\"DISC\"", "offset=0", "length=0"],
    ]) {
        for word in words.iter().chain(&["peer=127.0.0.1:", "flags=0"]) {
            assert!(line.contains(word), "no {word} in: {line}");
        }
    }
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(said("debug"), [""; 0]);
}

#[test]
fn second_signal_ends_at_once() {
    let socket = socket_dir();
    let path = socket.path().join("s");
    let mut server = memory().unix_at(&path).start();
    let deaf = deaf_client(&server);
    server.signal(Signal::TERM);
    wait_until_closed(&path);
    assert!(
        server.is_running(),
        "nothing held it up, so nothing is shown"
    );
    server.signal(Signal::TERM);
    let began = Instant::now();
    let status = server.wait(STOP_LIMIT);
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(status.code(), Some(128 + 15), "{status}");
    drop(deaf);
}

#[test]
fn run_gets_the_uri_and_ends_the_server() {
    need!(Combo::AUTO, "nbdinfo");
    for serve in [memory().tcp(), memory().unix().args(["--name", "vol 1"])] {
        let output = serve
            .args(["--run", "nbdinfo --size \"$uri\"; exit 7"])
            .run();
        assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
        assert_eq!(output.stdout.trim(), "16777216");
    }
    let listens = ["--listen", "127.0.0.1:0"];
    let status = |line: &str| {
        memory()
            .args(listens)
            .args(["--run", line])
            .run()
            .status
            .code()
    };
    assert_eq!(status("true"), Some(0));
    assert_eq!(status("kill -9 $$"), Some(128 + 9));
    assert_eq!(status("/no/such/program 2>/dev/null"), Some(127));
}

/// What --run's command has written is flushed and in the file when the program ends.
#[test]
fn run_leaves_a_whole_image() {
    need!(Combo::AUTO, "qemu-io");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, MIB);
    let line = "qemu-io -f raw -c 'write -P 0x77 4k 8k' \"$uri\" >/dev/null";
    let output = Serve::bare()
        .image(&image)
        .unix()
        .args(["--run", line])
        .run();
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr);
    let bytes = std::fs::read(&image).unwrap();
    assert!(bytes[4096..12288].iter().all(|&b| b == 0x77));
}

#[test]
fn signal_ends_the_command_of_run_too() {
    let dir = socket_dir();
    let mark = dir.path().join("pid");
    let line = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
        mark.display()
    );
    let mut server = memory().unix().args(["--run", &line]).announces(0).start();
    wait_until("the command runs", SOON, || mark.exists());
    let command = std::fs::read_to_string(&mark).unwrap().trim().to_owned();
    let alive = || Path::new("/proc").join(&command).exists();
    assert!(alive());
    server.signal(Signal::TERM);
    assert_eq!(
        server.wait(STOP_LIMIT).code(),
        Some(0),
        "{}",
        server.stderr()
    );
    assert!(!alive(), "the command outlives the server");
}

#[test]
fn pid_file_is_there_while_the_server_is() {
    let dir = socket_dir();
    let path = dir.path().join("corio.pid");
    let text = path.to_str().unwrap();
    let server = memory().unix().args(["--pid-file", text]).start();
    wait_until("the pid file", SOON, || path.exists());
    let pid: i32 = std::fs::read_to_string(&path)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(pid, server.pid().as_raw_nonzero().get());
    server.stop();
    assert!(!path.exists(), "it is removed at exit");
    memory()
        .unix()
        .args(["--pid-file", "/no/such/dir/pid"])
        .refused(1, &["/no/such/dir/pid"]);
}

#[test]
fn systemd_is_told_when_clients_can_connect() {
    let dir = socket_dir();
    let [notify, path] = ["notify", "s"].map(|name| dir.path().join(name));
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let told = |what: &str| {
        let mut message = [0; 4096];
        loop {
            let n = manager
                .recv(&mut message)
                .unwrap_or_else(|e| panic!("not told {what}: {e}"));
            let text = String::from_utf8_lossy(&message[..n]).into_owned();
            if text.lines().any(|line| line == what) {
                return;
            }
        }
    };
    let serve = memory().unix_at(&path).env("NOTIFY_SOCKET", &notify);
    let mut server = std::thread::scope(|scope| {
        let starting = scope.spawn(|| serve.start());
        told("READY=1");
        // Not a moment later: the first try has to succeed.
        let mut client = connect(&Addr::Unix(path.clone()));
        client.write(0, b"ready").unwrap();
        starting.join().unwrap()
    });
    server.signal(Signal::TERM);
    told("STOPPING=1");
    assert_eq!(server.wait(STOP_LIMIT).code(), Some(0));
}

/// Has a listening socket as descriptor 3, as systemd's socket units pass them.
const ACTIVATE: &str =
    "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nbd exec \"$@\"";

fn activated(socket: impl Into<OwnedFd>) -> Server {
    let serve = memory().through(&["sh", "-c", ACTIVATE, "sh"]).announces(1);
    serve.start_with(Stdio::from(socket.into()))
}

#[test]
fn sockets_of_systemd_are_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = Addr::Tcp(listener.local_addr().unwrap());
    let mut server = activated(listener);
    connect(&addr).write(0, b"tcp").unwrap();
    assert_eq!(server.first().addr, addr);
    assert!(
        server.line().starts_with("try: "),
        "it listens nowhere else"
    );
    server.stop();

    let dir = socket_dir();
    let path = dir.path().join("s");
    let mut server = activated(UnixListener::bind(&path).unwrap());
    connect(&Addr::Unix(path.clone()))
        .write(0, b"unix")
        .unwrap();
    assert!(
        server.line().starts_with("try: "),
        "it listens nowhere else"
    );
    server.stop();
    assert!(path.exists(), "the socket is systemd's to remove");
}

#[test]
fn systemd_socket_activate_starts_it() {
    need!(Combo::AUTO, "systemd-socket-activate");
    let dir = socket_dir();
    let path = dir.path().join("s");
    let mut activate = Command::new("systemd-socket-activate");
    activate
        .arg("-l")
        .arg(&path)
        .arg(program())
        .args(["serve", "--memory", "1M"]);
    activate
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = Killed(activate.spawn().unwrap());
    wait_until("the socket", SOON, || path.exists());
    // It is the first client that has the program started.
    let mut client = connect(&Addr::Unix(path));
    client.write(0, b"activated").unwrap();
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = crate::common::tool::wait(&mut child.0, STOP_LIMIT).unwrap();
    assert_eq!(status.code(), Some(0));
}

/// A child that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn descriptors_that_are_no_listening_sockets_are_refused() {
    let serve = || memory().through(&["sh", "-c", ACTIVATE, "sh"]);
    let mut command = serve().command();
    let (one, _other) = UnixStream::pair().unwrap();
    for stdin in [Stdio::null(), Stdio::from(OwnedFd::from(one))] {
        // `run` has a standard input of its own.
        let mut child = Killed(
            command
                .stdin(stdin)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let status = crate::common::tool::wait(&mut child.0, SOON).unwrap();
        let mut text = String::new();
        let mut stderr = child.0.stderr.take().unwrap();
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    // Sockets that are meant for another process are not ours.
    let mut other = memory()
        .unix()
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .start();
    assert!(other.line().starts_with("try: "));
}
