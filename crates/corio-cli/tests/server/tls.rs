//! TLS with the real clients, and with those that must be refused: a wrong CA, no certificate,
//! no TLS, plain text put before it, and handshakes that stall.
//!
//! The lists of the other tests run again through TLS where they are (`again_through_tls!`).

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::data::{self, KIB, MIB};
use crate::common::nbd::{self, Client, Handshake, Headers, Stream, opt, rep};
use crate::common::serve::{Addr, Serve, Server, image_dir, socket_dir};
use crate::common::tls::{self, PKI, Pki, assert_refused};
use crate::common::tool::{SOON, command, run};
use crate::common::{Combo, need, wait_until};

/// A memory disk on both kinds of addresses, for clients with certificates.
fn server() -> Server {
    let serve = Serve::new(Combo::TLS).memory("16M");
    serve.args(["--log", "debug"]).tcp().unix().start()
}

/// A server that asks clients for no certificate.
fn open_server(dir: &Path, more: &[&str]) -> Server {
    PKI.write_to(dir);
    Serve::bare()
        .memory("16M")
        .arg("--tls-cert")
        .arg(dir.join("server-cert.pem"))
        .arg("--tls-key")
        .arg(dir.join("server-key.pem"))
        .args(["--log", "info"])
        .args(more)
        .tcp()
        .unix()
        .start()
}

fn uri_with(uri: &str, dir: &Path) -> String {
    let bare = tls::without_certificates(uri);
    let separator = if bare.contains('?') { '&' } else { '?' };
    format!("{bare}{separator}tls-certificates={}", dir.display())
}

/// Waits for a line in the server's log.
#[track_caller]
fn logged(server: &Server, text: &str) {
    wait_until(&format!("{text:?} in the log"), SOON, || {
        server.stderr().contains(text)
    });
}

// SPEC E6
#[test]
fn libnbds_tools_copy_there_and_back() {
    need!(Combo::TLS, "nbdcopy", "nbdinfo");
    let dir = image_dir();
    let at = |name: &str| dir.path().join(name);
    data::random_file(&at("in"), 16 * MIB, 31);
    let server = server();
    for listening in server.listening() {
        run(command("nbdcopy").arg(at("in")).arg(&listening.uri)).ok();
        run(command("nbdcopy").arg(&listening.uri).arg(at("out"))).ok();
        assert_eq!(data::sha256(&at("in")), data::sha256(&at("out")));
    }
    let text = run(command("nbdinfo").arg(&server.tcp().uri)).ok().stdout;
    assert!(
        text.contains("with TLS, using structured packets"),
        "{text}"
    );
    logged(
        &server,
        "TLS: TLSv1_3, TLS13_AES_256_GCM_SHA384, client \"CN=client\"",
    );
    server.stop();
}

// SPEC E6
#[test]
fn qemus_tools_convert_there_and_back() {
    need!(Combo::TLS, "qemu-img");
    let dir = image_dir();
    let at = |name: &str| dir.path().join(name);
    data::random_file(&at("in"), 16 * MIB, 32);
    let server = server();
    for listening in server.listening() {
        let (object, image) = tls::qemu_words(listening);
        let qemu = |line: &str, words: &[&str]| {
            run(command(line).args(["--object", &object]).args(words)).ok()
        };
        let (source, copy) = (at("in"), at("copy"));
        let (source, copy) = (source.to_str().unwrap(), copy.to_str().unwrap());
        let told = qemu("qemu-img info", &["--image-opts", &image]).stdout;
        assert!(told.contains("16777216 bytes"), "{told}");
        qemu(
            "qemu-img convert -n -f raw --target-image-opts",
            &[source, &image],
        );
        qemu(
            "qemu-img convert -W -m 8 --image-opts -O raw",
            &[&image, copy],
        );
        assert_eq!(data::sha256(&at("in")), data::sha256(&at("copy")));
    }
    server.stop();
}

// SPEC E6
#[test]
fn clients_are_refused_who_do_not_show_the_right_certificate() {
    need!(Combo::TLS, "nbdinfo", "qemu-img");
    let server = server();
    let uri = &server.tcp().uri;
    let none = socket_dir();
    std::fs::write(none.path().join("ca-cert.pem"), &PKI.ca).unwrap();
    // Signed by another CA, whose name the server has never heard.
    let wrong = socket_dir();
    Pki::new("another CA").write_client_to(wrong.path());
    std::fs::write(wrong.path().join("ca-cert.pem"), &PKI.ca).unwrap();
    // GnuTLS shows no certificate that the server's CA has not signed: the server finds none.
    let count = || {
        server
            .stderr()
            .matches("the client showed no certificate")
            .count()
    };
    for (refused, dir) in (1..).zip([none.path(), wrong.path()]) {
        let output = run(command("nbdinfo").arg(uri_with(uri, dir)));
        assert_refused(output, &["certificate required", "gnutls"]);
        wait_until("the refusal in the log", SOON, || count() == refused);
    }
    // qemu looks at its own certificate itself, so that only one without gets that far.
    let (object, image) = tls::qemu_words(server.tcp());
    let known = object.split("dir=").next().unwrap();
    let object = format!("{known}dir={}", none.path().display());
    let words = ["--object", &object, "--image-opts", &image];
    assert_refused(
        run(command("qemu-img info").args(words)),
        &["Could not open"],
    );
    wait_until("the refusal in the log", SOON, || count() == 3);
    // The small client shows what it has, wanted or not.
    for (pki, shows, why) in [
        (&*PKI, false, "the client showed no certificate"),
        (
            &Pki::new("another CA"),
            true,
            "not signed by a CA that is trusted here",
        ),
    ] {
        let mut config = (*PKI.client_config(false)).clone();
        config.client_auth_cert_resolver =
            Arc::clone(&pki.client_config(shows).client_auth_cert_resolver);
        let result = plain(&server.tcp().addr)
            .secured(&Arc::new(config))
            .and_then(|mut handshake| handshake.list());
        assert!(result.is_err(), "{result:?}");
        logged(&server, why);
    }
    assert_eq!(
        Handshake::start(&server.tcp().addr)
            .unwrap()
            .list()
            .unwrap(),
        [""]
    );
    server.stop();
}

// SPEC E6
#[test]
fn servers_that_clients_do_not_trust_are_left() {
    need!(Combo::TLS, "nbdinfo");
    let server = server();
    let wrong = socket_dir();
    Pki::new("another CA").write_client_to(wrong.path());
    let output = run(command("nbdinfo").arg(uri_with(&server.tcp().uri, wrong.path())));
    assert_refused(output, &["certificate", "gnutls"]);
    // It hangs up without an alert.
    logged(&server, "in the middle of the TLS handshake");
    let mine = Pki::new("another CA").client_config(true);
    let result = plain(&server.tcp().addr).secured(&mine).map(drop);
    assert!(result.is_err());
    logged(&server, "does not trust the server's certificate");
    server.stop();
}

/// Behind the greeting of a server with TLS, in plain text still.
fn plain(addr: &Addr) -> Handshake {
    match addr {
        Addr::Tls(below) => Handshake::start(below).unwrap(),
        other => panic!("no TLS: {other:?}"),
    }
}

// SPEC E6
#[test]
fn clients_without_tls_are_refused_where_it_is_required() {
    need!(Combo::TLS, "nbdinfo", "qemu-img");
    let server = server();
    let tcp = server.tcp().uri.replacen("nbds", "nbd", 1);
    let tcp = tcp.split('?').next().unwrap();
    assert_refused(run(command("nbdinfo").arg(tcp)), &["opt_go"]);
    let text = "this server speaks TLS only: STARTTLS comes first";
    assert_refused(run(command("qemu-img info").arg(tcp)), &[text]);
    for at in server.listening() {
        let mut handshake = plain(&at.addr);
        for option in [opt::GO, opt::LIST, opt::STRUCTURED_REPLY, 4711] {
            let replies = handshake.option(option, b"").unwrap();
            assert_eq!(replies, [(rep::ERR_TLS_REQD, text.as_bytes().to_vec())]);
        }
        // It may change its mind.
        let mut handshake = handshake.secured(&PKI.client_config(true)).unwrap();
        assert_eq!(handshake.list().unwrap(), [""]);
        let mut old = plain(&at.addr);
        old.send_option(opt::EXPORT_NAME, b"").unwrap();
        assert!(nbd::is_closed(&mut old.stream));
    }
    logged(&server, "the server speaks TLS only");
    server.stop();
}

// SPEC E6
#[test]
fn clients_choose_where_tls_is_allowed() {
    need!(Combo::TLS, "nbdinfo", "nbdcopy");
    let dir = socket_dir();
    let server = open_server(dir.path(), &["--tls", "allowed"]);
    for at in server.listening() {
        let secure = uri_with(&at.uri, dir.path());
        let text = run(command("nbdinfo").arg(&secure)).ok().stdout;
        assert!(text.contains("with TLS"), "{text}");
        let bare = at.uri.replacen("nbds", "nbd", 1);
        let text = run(command("nbdinfo").arg(&bare)).ok().stdout;
        assert!(text.contains("without TLS"), "{text}");
    }
    // What was agreed on before the change is forgotten.
    let mut handshake = plain(&server.tcp().addr);
    handshake.ask_for(Headers::Structured).unwrap();
    handshake.select_allocation("").unwrap();
    let mut handshake = handshake.secured(&PKI.client_config(false)).unwrap();
    let context = Handshake::context_data("", &["base:allocation"]);
    let replies = handshake.option(opt::SET_META_CONTEXT, &context).unwrap();
    assert_eq!(replies.last().unwrap().0, rep::ERR_INVALID, "{replies:x?}");
    let replies = handshake.option(opt::STARTTLS, &[]).unwrap();
    assert_eq!(replies.last().unwrap().0, rep::ERR_INVALID, "{replies:x?}");
    server.stop();
}

// SPEC E6
#[test]
fn client_that_is_one_too_many_is_told_so_before_tls() {
    need!(Combo::TLS, "qemu-img");
    let serve = Serve::new(Combo::TLS).memory("1M").tcp();
    let server = serve.args(["--connections", "1"]).start();
    let only = Client::connect(&server.tcp().addr, "", Headers::Structured).unwrap();
    let (object, image) = tls::qemu_words(server.tcp());
    let words = ["--object", &object, "--image-opts", &image];
    let text = "the server serves its maximum of 1 connections";
    assert_refused(run(command("qemu-img info").args(words)), &[text]);
    drop(only);
}

// SPEC E6
#[test]
fn starttls_is_refused_where_there_is_none() {
    let server = Serve::bare().memory("1M").tcp().start();
    let mut handshake = Handshake::start(&server.tcp().addr).unwrap();
    let replies = handshake.option(opt::STARTTLS, &[]).unwrap();
    let text = b"this server was set up without TLS".to_vec();
    assert_eq!(replies, [(rep::ERR_POLICY, text)]);
    assert_eq!(handshake.list().unwrap(), [""]);
}

// SPEC E6
#[test]
fn plain_text_put_before_the_handshakes_end_closes_the_connection() {
    let server = server();
    let list: Vec<u8> = [b"IHAVEOPT".as_slice(), &opt::LIST.to_be_bytes(), &[0; 4]].concat();
    // Behind STARTTLS, in the same breath: answered with nothing at all.
    let mut early = plain(&server.tcp().addr);
    let starttls = [
        b"IHAVEOPT".as_slice(),
        &opt::STARTTLS.to_be_bytes(),
        &[0; 4],
    ]
    .concat();
    let both = [starttls, list.clone()].concat();
    early.stream.write_all(&both).unwrap();
    let mut rest = Vec::new();
    let read = std::io::Read::read_to_end(&mut early.stream, &mut rest);
    assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    logged(&server, "16 bytes came in plain text behind STARTTLS");
    // Behind its answer, in place of the client's hello.
    let mut late = plain(&server.tcp().addr);
    assert_eq!(
        late.option(opt::STARTTLS, &[]).unwrap(),
        [(rep::ACK, vec![])]
    );
    late.stream.write_all(&list).unwrap();
    assert!(nbd::is_closed(&mut late.stream));
    logged(
        &server,
        "the client sent what is not TLS where TLS must begin",
    );
    // Between the client's messages.
    let mut between = plain(&server.tcp().addr);
    assert_eq!(
        between.option(opt::STARTTLS, &[]).unwrap(),
        [(rep::ACK, vec![])]
    );
    let before = server.stderr().matches("not TLS where TLS must").count();
    let mut hello = Vec::new();
    let mut client = tls::connection(&PKI.client_config(true));
    client.write_tls(&mut hello).unwrap();
    hello.extend_from_slice(&list);
    between.stream.write_all(&hello).unwrap();
    assert!(nbd::is_closed(&mut between.stream));
    wait_until("the third refusal in the log", SOON, || {
        server.stderr().matches("not TLS where TLS must").count() > before
    });
    server.stop();
}

/// How long a handshake may take, TLS's included.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The ways to hold up a handshake from STARTTLS on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    Silent,
    HalfAHello,
    /// The hello, byte by byte.
    Drip,
    /// The hello, and nothing after the server's answer.
    HelloOnly,
    /// Past TLS's handshake, then silent.
    Secured,
    /// A record that is announced longer than any may be.
    HugeRecord,
    Garbage,
    /// Handshake records of a byte each, for ever.
    Crumbs,
    /// Records of no bytes, for ever.
    Nothings,
}

impl Stall {
    const ALL: [Stall; 9] = [
        Stall::Silent,
        Stall::HalfAHello,
        Stall::Drip,
        Stall::HelloOnly,
        Stall::Secured,
        Stall::HugeRecord,
        Stall::Garbage,
        Stall::Crumbs,
        Stall::Nothings,
    ];

    /// True for what a server may cut short before the time is over.
    fn is_abuse(self) -> bool {
        matches!(
            self,
            Stall::HugeRecord | Stall::Garbage | Stall::Crumbs | Stall::Nothings
        )
    }
}

// SPEC E6
#[test]
fn stalled_and_hostile_handshakes_are_dropped_and_hold_up_nobody() {
    let server = server();
    let addr = &server.tcp().addr;
    let mut good = Client::connect(addr, "", Headers::Structured).unwrap();
    std::thread::scope(|scope| {
        let stalls = Stall::ALL.map(|stall| {
            let began = Instant::now();
            scope.spawn(move || (stall, drag(addr, stall), began.elapsed()))
        });
        // Meanwhile somebody else is served.
        let began = Instant::now();
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            good.write(0, &[9; 64 << 10]).unwrap();
            assert_eq!(good.read(0, 64 * KIB).unwrap(), [9; 64 << 10]);
            slowest = slowest.max(asked.elapsed());
        }
        println!("slowest round trip: {slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        for stalled in stalls {
            let (stall, (), took) = stalled.join().unwrap();
            let earliest = if stall.is_abuse() {
                Duration::ZERO
            } else {
                HANDSHAKE_LIMIT
            };
            let range = earliest.mul_f64(0.8)..HANDSHAKE_LIMIT.mul_f64(1.8);
            assert!(range.contains(&took), "{stall:?}: dropped after {took:?}");
        }
    });
    // Idle all the while, and no worse for it.
    assert_eq!(good.read(0, 4 * KIB).unwrap(), [9; 4096]);
    assert!(server.proc_kib("status", "VmRSS") < 200 << 10);
    server.stop();
}

/// Begins with TLS, does not finish, and returns when the server has had enough.
fn drag(addr: &Addr, stall: Stall) {
    const GIVE_UP: Duration = Duration::from_secs(30);
    let mut handshake = plain(addr);
    assert_eq!(
        handshake.option(opt::STARTTLS, &[]).unwrap(),
        [(rep::ACK, vec![])]
    );
    let mut hello = Vec::new();
    let config = PKI.client_config(true);
    tls::connection(&config).write_tls(&mut hello).unwrap();
    if stall == Stall::Secured {
        let mut stream = tls::secured(handshake.stream, &config).unwrap();
        stream.set_patience(GIVE_UP).unwrap();
        assert!(nbd::is_closed(&mut stream));
        return;
    }
    let stream = &mut handshake.stream;
    stream.set_patience(GIVE_UP).unwrap();
    let half = hello.len() / 2;
    match stall {
        Stall::Silent | Stall::Secured => {}
        Stall::HalfAHello => stream.write_all(&hello[..half]).unwrap(),
        Stall::HelloOnly => stream.write_all(&hello).unwrap(),
        Stall::Drip => return drip(stream, &hello[..half]),
        Stall::HugeRecord => {
            let _ = stream.write_all(&[0x16, 3, 1, 0xff, 0xff]);
            flood(stream, &[0; 1 << 16], GIVE_UP);
        }
        Stall::Garbage => flood(stream, &data::Random::new(33).bytes(1 << 16), GIVE_UP),
        // The first byte of a message each: of one of 16 MiB, all of them together.
        Stall::Crumbs => {
            let _ = stream.write_all(&[0x16, 3, 1, 0, 4, 1, 0, 0xff, 0xff]);
            flood(stream, &[0x16, 3, 1, 0, 1, 0].repeat(10_000), GIVE_UP);
        }
        Stall::Nothings => flood(stream, &[0x16, 3, 1, 0, 0].repeat(10_000), GIVE_UP),
    }
    assert!(nbd::is_closed(stream));
}

fn drip(stream: &mut Stream, bytes: &[u8]) {
    stream.set_patience(Duration::from_millis(200)).unwrap();
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).is_err() || nbd::is_closed(stream) {
            return;
        }
    }
}

/// Sends until the server hangs up.
fn flood(stream: &mut Stream, bytes: &[u8], limit: Duration) {
    let began = Instant::now();
    while stream.write_all(bytes).is_ok() {
        assert!(began.elapsed() < limit, "the server takes it all");
    }
}

// SPEC E6
#[test]
fn announced_commands_work() {
    need!(Combo::TLS, "nbdinfo");
    // All that the clients need is where the server's certificate is.
    let mut server = Serve::new(Combo::TLS).memory("16M").tcp().start();
    let line = server.line();
    let (command, _) = line.split_once("   ").unwrap();
    let tried = command.strip_prefix("try: ").unwrap();
    let output = run(Command::new("sh").args(["-c", tried])).ok();
    assert!(output.stdout.contains("with TLS"), "{}", output.stdout);
    server.stop();
    // And the command of --run finds it in its environment.
    let serve = Serve::new(Combo::TLS).memory("16M").tcp();
    let output = serve.args(["--run", "nbdinfo --size \"$uri\""]).run();
    let output = output.ok();
    assert!(output.stdout.contains("16777216"), "{output:?}");
    // Where it is not known what clients have, they are told what they need.
    let dir = socket_dir();
    let mut server = open_server(dir.path(), &[]);
    std::fs::remove_file(dir.path().join("ca-cert.pem")).unwrap();
    drop(server.line());
    drop(server);
    let mut server = Serve::bare()
        .memory("1M")
        .arg("--tls-cert")
        .arg(dir.path().join("server-cert.pem"))
        .arg("--tls-key")
        .arg(dir.path().join("server-key.pem"))
        .tcp()
        .start();
    assert!(server.line().contains("tls-certificates=DIR"));
    assert!(server.line().contains("DIR: a directory with ca-cert.pem"));
}

// SPEC E6
#[test]
fn certificates_that_do_not_work_are_refused_in_one_line() {
    let dir = socket_dir();
    PKI.write_to(dir.path());
    let at = |name: &str| dir.path().join(name);
    let other = Pki::new("another CA");
    std::fs::write(at("other-key.pem"), &other.server.key).unwrap();
    std::fs::write(at("text"), "no PEM at all\n").unwrap();
    let serve = |cert: &str, key: &str, ca: Option<&str>| {
        let serve = Serve::bare().memory("1M");
        let serve = serve.arg("--tls-cert").arg(at(cert));
        let serve = serve.arg("--tls-key").arg(at(key));
        match ca {
            Some(ca) => serve.arg("--tls-client-ca").arg(at(ca)),
            None => serve,
        }
    };
    let (cert, key) = ("server-cert.pem", "server-key.pem");
    serve("missing", key, None).refused(1, &["missing: No such file or directory; check the path"]);
    serve(cert, ".", None).refused(
        1,
        &["cannot use TLS private key", "Is a directory; give the"],
    );
    serve("text", key, None).refused(1, &["it holds no certificate in PEM form; give a PEM file"]);
    serve(cert, "text", None).refused(1, &["it holds no private key in PEM form", "openssl pkey"]);
    serve(cert, "other-key.pem", None).refused(
        1,
        &["other-key.pem: the private key is not that of the certificate; give the key that"],
    );
    serve(cert, key, Some("text")).refused(1, &["it holds no CA certificate in PEM form"]);
    // On the command line.
    for words in [
        &["--tls-cert", "c"][..],
        &["--tls-key", "k"],
        &["--tls-client-ca", "a"],
        &["--tls", "required"],
    ] {
        let text = "the following required arguments were not provided";
        Serve::bare().args(words).refused(2, &[text, "--tls-"]);
    }
    // A key for everybody is used, and the mistake named.
    std::fs::set_permissions(at(key), PermissionsExt::from_mode(0o644)).unwrap();
    let server = serve(cert, key, None).tcp().start();
    logged(&server, "can be read by everybody; chmod o-r");
}
