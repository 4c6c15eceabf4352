//! Where `corio serve` listens: what it prints is where clients find it, and what is not its own
//! it leaves alone.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use crate::common::nbd::{Client, Handshake, Headers, opt};
use crate::common::serve::{Addr, Serve, Server, socket_dir};
use crate::common::tool::{command, run};
use crate::common::{Combo, need, skip};

fn memory() -> Serve {
    Serve::bare().memory("1M")
}

fn is_served(addr: &Addr) {
    Client::connect(addr, "", Headers::Structured)
        .unwrap()
        .write(0, b"x")
        .unwrap();
}

#[test]
fn without_an_argument_a_gibibyte_is_served_at_the_port_of_nbd() {
    need!(Combo::AUTO, "nbdinfo");
    // It has to be free, for both of localhost's addresses.
    for host in ["127.0.0.1", "::1"] {
        match TcpListener::bind((host, 10809)) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => skip!("port 10809: {e}"),
            _ => {}
        }
    }
    let mut server = Serve::bare().announces(1).start();
    assert_eq!(server.first().uri, "nbd://localhost:10809/");
    let line = server.line();
    let (to_try, clients) = line.split_once("   ").unwrap();
    assert_eq!(to_try, "try: nbdinfo nbd://localhost:10809/");
    for word in ["libnbd-bin", "qemu-img info"] {
        assert!(clients.contains(word), "{line}");
    }
    let size = run(&mut command("nbdinfo --size nbd://localhost"))
        .ok()
        .stdout;
    assert_eq!(size.trim(), "1073741824");
    let rss_kib = server.proc_kib("status", "VmRSS");
    assert!(
        rss_kib < 100 << 10,
        "a sparse disk that takes {rss_kib} KiB"
    );
}

#[test]
fn printed_uris_are_the_ones_that_clients_take() {
    need!(Combo::AUTO, "nbdinfo");
    let dir = socket_dir();
    let odd = dir.path().join("a socket&50%+ü?.sock");
    for name in ["", "vol", "two words", "a/b", "50%", "ü?&#+"] {
        let server = memory()
            .args([
                "--name",
                name,
                "--listen",
                "127.0.0.1:0",
                "--listen",
                "localhost:0",
            ])
            .announces(2)
            .unix_at(&dir.path().join("plain.sock"))
            .unix_at(&odd)
            .start();
        assert_eq!(server.listening().len(), 4);
        assert_eq!(server.listening()[3].addr, Addr::Unix(odd.clone()));
        for at in server.listening() {
            let size = run(command("nbdinfo --size").arg(&at.uri)).ok().stdout;
            assert_eq!(size.trim(), "1048576", "{at}");
            let wrong = Handshake::start(&at.addr)
                .unwrap()
                .info("no such export")
                .unwrap();
            assert!(
                wrong.is_err(),
                "{at}: any name is taken, so the above proves nothing"
            );
        }
        server.stop();
    }
}

#[test]
fn localhost_is_reached_by_both_its_addresses() {
    let server = memory()
        .args(["--listen", "localhost:0"])
        .announces(1)
        .start();
    let Addr::Tcp(addr) = server.first().addr else {
        panic!("not TCP")
    };
    TcpStream::connect(("127.0.0.1", addr.port())).unwrap();
    if TcpListener::bind("[::1]:0").is_err() {
        skip!("no IPv6 here");
    }
    TcpStream::connect(("::1", addr.port())).unwrap();
}

#[test]
fn address_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    memory()
        .args(["--listen", &addr])
        .refused(1, &[&addr, "in use"]);
    // Whatever was bound before is given back: the socket's path is free again.
    let dir = socket_dir();
    let path = dir.path().join("s");
    memory()
        .arg("--unix")
        .arg(&path)
        .args(["--listen", &addr])
        .refused(1, &[&addr]);
    assert!(!path.exists());
}

#[test]
fn impossible_addresses_are_refused() {
    memory()
        .args(["--listen", "no-such-host.invalid:1"])
        .refused(1, &["no-such-host.invalid"]);
    memory()
        .args(["--listen", "192.0.2.1:0"])
        .refused(1, &["192.0.2.1"]);
    memory()
        .args(["--listen", "localhost:99999"])
        .refused(2, &["99999"]);
    memory()
        .args(["--listen", "localhost"])
        .refused(2, &["localhost"]);
    let long = format!("/tmp/{}", "x".repeat(200));
    memory().args(["--unix", &long]).refused(1, &[&long]);
    memory()
        .args(["--unix", "/no/such/dir/s"])
        .refused(1, &["/no/such/dir/s"]);
}

/// Starts a server at `path`, looks whether it serves, and that it takes its socket with it.
fn serves_at(path: &Path) {
    let server = memory().unix_at(path).start();
    is_served(&Addr::Unix(path.to_owned()));
    server.stop();
    assert!(!path.exists(), "the socket is removed at exit");
}

#[test]
fn stale_unix_socket_is_replaced() {
    let dir = socket_dir();
    let path = dir.path().join("s");
    // The standard library leaves the path behind, as a killed server does.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    serves_at(&path);
    // Our own, killed.
    let mut server = memory().unix_at(&path).start();
    server.kill();
    assert!(path.exists(), "a killed server cleans nothing up");
    serves_at(&path);
}

#[test]
fn live_unix_socket_is_left_alone() {
    let dir = socket_dir();
    let path = dir.path().join("s");
    let text = path.to_str().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    memory().args(["--unix", text]).refused(1, &[text]);
    UnixStream::connect(&path).expect("it is still there");
    drop(listener);
    std::fs::remove_file(&path).unwrap();

    // A server of our own that is alive, busy or not.
    let server = memory().unix_at(&path).args(["--connections", "1"]).start();
    let busy = Client::connect(&server.unix().addr, "", Headers::Simple).unwrap();
    memory().args(["--unix", text]).refused(1, &[text]);
    drop(busy);
    server.stop();
    serves_at(&path);
}

#[test]
fn other_things_at_the_path_of_a_socket_are_left_alone() {
    let dir = socket_dir();
    let path = dir.path().join("s");
    let text = path.to_str().unwrap();
    std::fs::write(&path, "precious").unwrap();
    memory().args(["--unix", text]).refused(1, &[text]);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    memory().args(["--unix", text]).refused(1, &[text]);
    std::fs::remove_dir(&path).unwrap();
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    memory().args(["--unix", text]).refused(1, &[text]);
    assert!(
        std::fs::symlink_metadata(&path)
            .unwrap()
            .file_type()
            .is_socket()
    );
}

#[test]
fn unix_mode_is_the_mode_of_the_socket() {
    let dir = socket_dir();
    let path = dir.path().join("s");
    for mode in [0o600, 0o660, 0o666, 0o777] {
        let octal = format!("{mode:o}");
        let server = memory()
            .unix_at(&path)
            .args(["--unix-mode", &octal])
            .start();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        is_served(&server.unix().addr);
        server.stop();
    }
    memory()
        .arg("--unix")
        .arg(&path)
        .args(["--unix-mode", "888"])
        .refused(2, &["888"]);
}

#[test]
fn unix_mode_keeps_others_out() {
    need!(Combo::AUTO, "setpriv", "nbdinfo");
    if !crate::common::tool::is_root() {
        skip!("only root can become somebody else");
    }
    let dir = socket_dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let nobody = |server: &Server| {
        let mut nbdinfo =
            command("setpriv --reuid=65534 --regid=65534 --clear-groups nbdinfo --size");
        run(nbdinfo.arg(&server.unix().uri))
    };
    let path = dir.path().join("s");
    let server = memory().unix_at(&path).args(["--unix-mode", "600"]).start();
    assert!(nobody(&server).fails().stderr.contains("Permission denied"));
    server.stop();
    let server = memory().unix_at(&path).args(["--unix-mode", "666"]).start();
    nobody(&server).ok();
}

#[test]
fn connection_above_the_limit_is_refused_and_room_is_given_back() {
    let server = memory().tcp().unix().args(["--connections", "2"]).start();
    let sockets = || {
        server
            .descriptors()
            .iter()
            .filter(|d| d.starts_with("socket:"))
            .count()
    };
    let listening = sockets();
    for round in 0..20 {
        let at = &server.listening()[round % 2];
        let both = [(); 2].map(|()| Client::connect(&at.addr, "", Headers::Structured).unwrap());
        match Handshake::start(&at.addr) {
            Err(e) => assert!(crate::common::ledger::is_gone(&e), "{at}: {e}"),
            // Or it is told so, when it asks for an export.
            Ok(mut handshake) => {
                let go = handshake.option(opt::GO, &Handshake::info_data("", &[]));
                assert!(
                    go.map_or(true, |replies| replies.last().unwrap().0 >> 31 == 1),
                    "{at}"
                );
            }
        }
        for client in both {
            client.disconnect().unwrap();
        }
        crate::common::wait_until("room", crate::common::tool::SOON, || {
            let clients = [(); 2].map(|()| Client::connect(&at.addr, "", Headers::Simple));
            clients
                .into_iter()
                .all(|client| client.and_then(Client::disconnect).is_ok())
        });
        crate::common::wait_until("both have left", crate::common::tool::SOON, || {
            sockets() == listening
        });
    }
}
