//! STARTTLS and what follows it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::tls_peer::{Authority, connection, upgrade};
use super::{Answer, Client, House, PATIENCE, STYLES, TestDisk, memory_disk, pattern};
use crate::server::{Error, Export, ServerConfig, TlsConfig, TlsConfigError, TlsPolicy};
use crate::wire::{
    ClientFlags, ClientHello, Command, CommandFlags, Greeting, HeaderStyle, OptionCode as Opt,
    OptionReplyHeader, ReplyCode, encode_option,
};

const SIZE: usize = 4 << 20;

fn config(tls: TlsConfig) -> ServerConfig {
    ServerConfig {
        tls: Some(tls),
        ..ServerConfig::default()
    }
}

/// A house that demands TLS, and the CA of its certificate.
fn house() -> (House, Authority) {
    let authority = Authority::new();
    let exports = vec![Export::new("", memory_disk(1 << 20))];
    (
        House::new(config(authority.server(None)), exports),
        authority,
    )
}

fn lenient(authority: &Authority) -> House {
    let tls = authority.server(None).with_policy(TlsPolicy::Allowed);
    House::new(config(tls), vec![Export::new("", memory_disk(1 << 20))])
}

fn refused(code: ReplyCode) -> Answer {
    Answer {
        error: Some(code),
        ..Answer::default()
    }
}

/// A client, and where the reason for the end of its connection arrives.
fn watched(house: &House) -> (Client, Receiver<Result<(), Error>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = house.server.clone();
    let (sender, reason) = channel();
    drop(house.io.context().spawn(move || {
        let stream = corio::net::UnixStream::try_from_std(theirs).unwrap();
        // A test that does not ask is not told.
        let _ = sender.send(server.serve_unix(stream, "client".to_owned()));
    }));
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = Client {
        stream: ours,
        input: Vec::new(),
        style: HeaderStyle::Simple,
        last_cookie: 0,
    };
    (client, reason)
}

/// Why the connection ended, in the words of the log.
fn why(reason: &Receiver<Result<(), Error>>) -> String {
    let ended = reason.recv_timeout(PATIENCE).expect("the connection ends");
    ended.expect_err("it ends with an error").to_string()
}

#[test]
fn required_tls_comes_before_every_other_option() {
    let (house, authority) = house();
    let mut client = house.connect();
    client.hello();
    let codes = (3..=11).filter(|&code| code != Opt::STARTTLS.0);
    for code in codes.chain([0, 4711, u32::MAX]) {
        // Well-formed or not.
        for payload in [&b""[..], b"\0\0\0\0\0\0", b"nonsense"] {
            let answer = client.option(Opt(code), payload);
            assert_eq!(answer, refused(ReplyCode::ERR_TLS_REQD), "option {code}");
        }
    }
    let long = vec![0; 100 << 10];
    let answer = client.option(Opt::GO, &long);
    assert_eq!(answer, refused(ReplyCode::ERR_TLS_REQD), "a long one");
    upgrade(&mut client, &authority.client(None)).unwrap();
    assert_eq!(client.option(Opt::LIST, &[]).exports.len(), 1);
    assert_eq!(client.option(Opt::ABORT, &[]), Answer::default());
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn abort_needs_no_tls() {
    let (house, _) = house();
    let mut client = house.connect();
    assert_eq!(client.hello().option(Opt::ABORT, &[]), Answer::default());
    client.assert_closed();
}

#[test]
fn export_name_without_tls_closes_the_connection() {
    let (house, _) = house();
    let (mut client, reason) = watched(&house);
    client.hello();
    let mut bytes = Vec::new();
    encode_option(Opt::EXPORT_NAME, b"", &mut bytes);
    client.send(&bytes);
    client.assert_closed();
    assert!(why(&reason).contains("the server speaks TLS only"));
    house.assert_empty();
}

#[test]
fn client_without_fixed_newstyle_gets_no_tls() {
    let flags = ClientHello {
        flags: ClientFlags::NO_ZEROES,
    };
    let (house, authority) = house();
    let (mut client, reason) = watched(&house);
    client.take(|input| Greeting::decode(input).unwrap());
    client.send(&flags.encode());
    client.assert_closed();
    assert!(why(&reason).contains("the server speaks TLS only"));
    let lenient = lenient(&authority);
    let mut client = lenient.connect();
    client.take(|input| Greeting::decode(input).unwrap());
    client.send(&flags.encode());
    let answer = client.option(Opt::STARTTLS, &[]);
    assert_eq!(answer, refused(ReplyCode::ERR_POLICY));
    assert_eq!(client.option(Opt::LIST, &[]).exports.len(), 1);
}

#[test]
fn starttls_is_refused_where_it_makes_no_sense() {
    let (house, authority) = house();
    let mut client = house.connect();
    client.hello();
    let answer = client.option(Opt::STARTTLS, b"x");
    assert_eq!(answer, refused(ReplyCode::ERR_INVALID), "with data");
    upgrade(&mut client, &authority.client(None)).unwrap();
    for payload in [&b""[..], b"x"] {
        let answer = client.option(Opt::STARTTLS, payload);
        assert_eq!(answer, refused(ReplyCode::ERR_INVALID), "twice");
    }
    assert_eq!(client.option(Opt::LIST, &[]).exports.len(), 1);
    let without = House::of(&TestDisk::new(SIZE));
    let answer = without.connect().hello().option(Opt::STARTTLS, &[]);
    assert_eq!(answer, refused(ReplyCode::ERR_POLICY), "not offered");
}

#[test]
fn every_style_works_over_each_version() {
    let disk = TestDisk::new(SIZE);
    let authority = Authority::new();
    let exports = vec![Export::new("", disk.node())];
    let house = House::new(config(authority.server(None)), exports);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for style in STYLES {
            let mut client = house.connect();
            client.hello();
            upgrade(&mut client, &authority.client_of(None, &[version])).unwrap();
            start_secured(&mut client, style);
            // Less than a record, more than one, more than all buffers.
            for len in [1, 4096, 16 << 10, (16 << 10) + 1, 300 << 10, 3 << 20] {
                let data = pattern(u64::try_from(len).unwrap(), len);
                assert!(client.write(512, &data).is_ok());
                assert!(client.read(512, len) == Ok(data), "{style:?}: {len}");
            }
            client.disconnect();
        }
    }
    house.assert_empty();
}

/// What [`Client::start`] does after the hello.
fn start_secured(client: &mut Client, style: HeaderStyle) {
    let option = match style {
        HeaderStyle::Simple => None,
        HeaderStyle::Structured => Some(Opt::STRUCTURED_REPLY),
        HeaderStyle::Extended => Some(Opt::EXTENDED_HEADERS),
    };
    if let Some(option) = option {
        assert_eq!(client.option(option, &[]), Answer::default());
        let answer = client.contexts(Opt::SET_META_CONTEXT, "", &["base:allocation"]);
        assert_eq!(answer.contexts.len(), 1);
    }
    assert_eq!(client.info(Opt::GO, "", &[]).error, None);
    client.style = style;
}

#[test]
fn requests_and_replies_pass_each_other() {
    let disk = TestDisk::new(SIZE);
    let authority = Authority::new();
    let exports = vec![Export::new("", disk.node())];
    let house = House::new(config(authority.server(None)), exports);
    let mut client = house.connect();
    client.hello();
    let far = upgrade(&mut client, &authority.client(None)).unwrap();
    start_secured(&mut client, HeaderStyle::Simple);
    let data = pattern(0, SIZE);
    assert!(client.write(0, &data).is_ok());
    // Replies of 32 MiB are on their way while as much is written. The keys change meanwhile.
    let mut cookies = Vec::new();
    for i in 0..32 {
        cookies.push((client.read_request(0, 1 << 20), 1 << 20));
        cookies.push((client.write_request(1 << 20, &data[1 << 20..2 << 20]), 0));
        if i % 8 == 0 {
            far.refresh_keys();
        }
        // As many as the client's half of the pipe has room for.
        if cookies.len() >= 8 {
            take_replies(&mut client, &mut cookies, &data[..1 << 20]);
        }
    }
    take_replies(&mut client, &mut cookies, &data[..1 << 20]);
    client.disconnect();
    house.assert_empty();
}

/// Reads as many replies as there are cookies. In simple style a reply does not say whether data
/// follows: its cookie does.
fn take_replies(client: &mut Client, cookies: &mut Vec<(crate::wire::Cookie, usize)>, data: &[u8]) {
    while !cookies.is_empty() {
        let head = client.take_bytes(16);
        assert_eq!(head[4..8], [0; 4], "no error");
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        let at = cookies.iter().position(|(known, _)| known.0 == cookie);
        let (_, len) = cookies.swap_remove(at.expect("a cookie of ours"));
        if len > 0 {
            assert!(client.take_bytes(len) == data, "the data");
        }
    }
}

#[test]
fn what_was_agreed_on_before_tls_is_forgotten() {
    let authority = Authority::new();
    let house = lenient(&authority);
    let mut client = house.connect();
    client.hello();
    assert_eq!(client.option(Opt::STRUCTURED_REPLY, &[]), Answer::default());
    let answer = client.contexts(Opt::SET_META_CONTEXT, "", &["base:allocation"]);
    assert_eq!(answer.contexts.len(), 1);
    upgrade(&mut client, &authority.client(None)).unwrap();
    let answer = client.contexts(Opt::SET_META_CONTEXT, "", &["base:allocation"]);
    assert_eq!(
        answer,
        refused(ReplyCode::ERR_INVALID),
        "structured replies"
    );
    assert_eq!(client.info(Opt::GO, "", &[]).error, None);
    // The reply is a simple one, and says so to `read`.
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let cookie = client.request(Command::BLOCK_STATUS, CommandFlags::empty(), 0, 512, &[]);
    let answered = client.reply(0);
    assert_eq!((answered.cookie, answered.error.0), (cookie, 22));
    client.disconnect();
}

#[test]
fn allowed_tls_may_be_left_alone() {
    let authority = Authority::new();
    let house = lenient(&authority);
    let mut client = house.client(HeaderStyle::Structured);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    client.disconnect();
}

#[test]
fn bytes_behind_starttls_end_the_connection() {
    let (house, _) = house();
    let mut injected = Vec::new();
    encode_option(Opt::LIST, &[], &mut injected);
    for behind in [&injected[..], b"\x16\x03\x01", b"x"] {
        let (mut client, reason) = watched(&house);
        client.hello();
        let mut bytes = Vec::new();
        encode_option(Opt::STARTTLS, &[], &mut bytes);
        bytes.extend_from_slice(behind);
        client.send(&bytes);
        // Not even the acknowledgement is sent.
        client.assert_closed();
        let why = why(&reason);
        let expected = format!("{} bytes came in plain text behind STARTTLS", behind.len());
        assert!(why.contains(&expected), "{why}");
    }
    house.assert_empty();
}

#[test]
fn plain_text_in_place_of_the_handshake_ends_the_connection() {
    let (house, _) = house();
    let mut option = Vec::new();
    encode_option(Opt::LIST, &[], &mut option);
    let record_of = |len: u16, kind: u8| {
        let mut record = vec![kind, 3, 1];
        record.extend_from_slice(&len.to_be_bytes());
        record.resize(5 + usize::from(len), 0);
        record
    };
    for junk in [
        option,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        record_of(u16::MAX, 0x16),
        record_of(100, 0x17),
        record_of(0, 0x16),
        record_of(16384, 0x16),
        vec![0; 100_000],
    ] {
        let (mut client, reason) = watched(&house);
        client.hello();
        assert_eq!(client.option(Opt::STARTTLS, &[]), Answer::default());
        // The server may hang up before the end.
        let _ = client.stream.write_all(&junk);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let why = why(&reason);
        assert!(why.contains("TLS"), "{why}");
        // At most an alert comes back.
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
        assert!(rest.len() < 64, "{rest:?}");
    }
    house.assert_empty();
}

#[test]
fn plain_text_after_the_handshake_ends_the_connection() {
    let (house, authority) = house();
    let (mut client, reason) = watched(&house);
    client.hello();
    assert_eq!(client.option(Opt::STARTTLS, &[]), Answer::default());
    let mut tls = connection(&authority.client(None));
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut client.stream).unwrap();
    }
    let mut option = Vec::new();
    encode_option(Opt::LIST, &[], &mut option);
    client.send(&option);
    let why = why(&reason);
    assert!(why.contains("what is not TLS"), "{why}");
    house.assert_empty();
}

#[test]
fn clients_without_the_right_certificate_are_refused() {
    let (authority, other) = (Authority::new(), Authority::named("other CA"));
    let exports = || vec![Export::new("", memory_disk(1 << 20))];
    let house = House::new(config(authority.server(Some(&authority))), exports());
    let (good, wrong) = (authority.sign("good client"), other.sign("other client"));
    // By a CA that has only the right one's name.
    let forged = Authority::new().sign("forged client");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (identity, expected) in [
            (None, "the client showed no certificate"),
            (Some(&wrong), "is not signed by a CA that is trusted here"),
            (Some(&forged), "is not signed by a CA that is trusted here"),
        ] {
            let (mut client, reason) = watched(&house);
            client.hello();
            // With TLS 1.3 the client is done before the server has looked.
            let _ = upgrade(&mut client, &authority.client_of(identity, &[version]));
            let why = why(&reason);
            assert!(why.contains(expected), "{why}");
        }
        let mut client = house.connect();
        client.hello();
        upgrade(&mut client, &authority.client_of(Some(&good), &[version])).unwrap();
        start_secured(&mut client, HeaderStyle::Structured);
        client.disconnect();
    }
    // A client that does not trust the server.
    let (mut client, reason) = watched(&house);
    client.hello();
    assert!(upgrade(&mut client, &other.client(Some(&good))).is_err());
    let why = why(&reason);
    assert!(
        why.contains("does not trust the server's certificate"),
        "{why}"
    );
    house.assert_empty();
}

#[test]
fn stalled_tls_handshakes_time_out() {
    let authority = Authority::new();
    let config = ServerConfig {
        handshake_timeout: Duration::from_millis(300),
        ..config(authority.server(None))
    };
    let house = House::new(config, vec![Export::new("", memory_disk(1 << 20))]);
    let mut hello = Vec::new();
    connection(&authority.client(None))
        .write_tls(&mut hello)
        .unwrap();
    let half = &hello[..hello.len() / 2];
    for sent in [&b""[..], &hello[..3], half, &hello] {
        let (mut client, reason) = watched(&house);
        client.hello();
        assert_eq!(client.option(Opt::STARTTLS, &[]), Answer::default());
        client.send(sent);
        let why = why(&reason);
        assert_eq!(why, "the handshake was not finished within 300ms");
    }
    // Byte by byte, so that no single wait is too long; then the same inside of TLS.
    let (mut client, reason) = watched(&house);
    client.hello();
    assert_eq!(client.option(Opt::STARTTLS, &[]), Answer::default());
    drip(&mut client.stream, half, &reason);
    let (mut client, reason) = watched(&house);
    client.hello();
    assert_eq!(client.option(Opt::STARTTLS, &[]), Answer::default());
    let mut tls = connection(&authority.client(None));
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut client.stream).unwrap();
    }
    let mut option = Vec::new();
    encode_option(Opt(4711), &[0; 4000], &mut option);
    tls.writer().write_all(&option).unwrap();
    let mut record = Vec::new();
    tls.write_tls(&mut record).unwrap();
    drip(&mut client.stream, &record, &reason);
    house.assert_empty();
}

/// Sends a byte now and then until the server has had enough.
fn drip(stream: &mut UnixStream, bytes: &[u8], reason: &Receiver<Result<(), Error>>) {
    let began = Instant::now();
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        if let Ok(ended) = reason.recv_timeout(Duration::from_millis(20)) {
            assert!(
                matches!(ended, Err(Error::HandshakeTimeout(_))),
                "{ended:?}"
            );
            assert!(
                began.elapsed() < Duration::from_secs(3),
                "{:?}",
                began.elapsed()
            );
            return;
        }
    }
    panic!("the server did not give up within {:?}", began.elapsed());
}

#[test]
fn goodbye_ends_in_order_and_a_cut_does_not() {
    let disk = TestDisk::gated(SIZE);
    let authority = Authority::new();
    let exports = vec![Export::new("", disk.node())];
    let house = House::new(config(authority.server(None)), exports);
    let start = |reason| {
        let (mut client, ended): (Client, Receiver<_>) = reason;
        client.hello();
        let far = upgrade(&mut client, &authority.client(None)).unwrap();
        start_secured(&mut client, HeaderStyle::Structured);
        (client, far, ended)
    };
    // The client has said all it has to say, and gets its reply still.
    let (mut client, far, ended) = start(watched(&house));
    let cookie = client.write_request(0, &[7; 4096]);
    disk.await_arrived(1);
    far.say_goodbye();
    disk.open_gate(100);
    assert_eq!(client.reply(0).cookie, cookie);
    assert!(ended.recv_timeout(PATIENCE).unwrap().is_ok());
    client.assert_closed();
    // The same connection, cut.
    let (mut client, far, ended) = start(watched(&house));
    assert!(client.write(0, &[7; 4096]).is_ok());
    far.cut();
    let why = why(&ended);
    assert!(why.contains("without TLS's close_notify"), "{why}");
    house.assert_empty();
}

#[test]
fn a_stop_says_goodbye() {
    let (house, authority) = house();
    let (mut client, ended) = watched(&house);
    client.hello();
    upgrade(&mut client, &authority.client(None)).unwrap();
    start_secured(&mut client, HeaderStyle::Structured);
    let (mut shaking, shaking_ended) = watched(&house);
    shaking.hello();
    upgrade(&mut shaking, &authority.client(None)).unwrap();
    house.server.shutdown();
    assert_eq!(house.server.wait_idle(PATIENCE), []);
    // Not "cut off": this side has ended it.
    assert!(ended.recv_timeout(PATIENCE).unwrap().is_ok());
    assert!(shaking_ended.recv_timeout(PATIENCE).unwrap().is_ok());
    client.assert_closed();
    shaking.assert_closed();
}

#[test]
fn options_before_and_in_tls_count_together() {
    let authority = Authority::new();
    let config = ServerConfig {
        options_max: 8,
        ..config(authority.server(None).with_policy(TlsPolicy::Allowed))
    };
    let house = House::new(config, vec![Export::new("", memory_disk(1 << 20))]);
    let (mut client, reason) = watched(&house);
    client.hello();
    for _ in 0..4 {
        client.option(Opt::LIST, &[]);
    }
    upgrade(&mut client, &authority.client(None)).unwrap();
    for _ in 0..3 {
        client.option(Opt::LIST, &[]);
    }
    client.assert_closed();
    assert_eq!(why(&reason), "the client sent more than 8 options");
}

#[test]
fn certificates_that_do_not_work_are_named() {
    let authority = Authority::new();
    let (one, other) = (authority.sign("localhost"), authority.sign("localhost"));
    let (certificate, key) = (one.certificate.pem(), one.key.serialize_pem());
    let refused = |certificate: &str, key: &str, ca: Option<&str>| {
        TlsConfig::from_pem(
            certificate.as_bytes(),
            key.as_bytes(),
            ca.map(str::as_bytes),
        )
        .unwrap_err()
    };
    assert_eq!(refused("", &key, None), TlsConfigError::NoCertificate);
    assert_eq!(refused(&key, &key, None), TlsConfigError::NoCertificate);
    assert_eq!(refused(&certificate, "", None), TlsConfigError::NoKey);
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    assert_eq!(
        refused(&certificate, &encrypted, None),
        TlsConfigError::NoKey
    );
    let mismatch = refused(&certificate, &other.key.serialize_pem(), None);
    assert_eq!(mismatch, TlsConfigError::KeyMismatch);
    let ca = refused(&certificate, &key, Some(&key));
    assert_eq!(ca, TlsConfigError::NoClientCa);
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let is_bad = |error| matches!(error, TlsConfigError::BadCertificate(_));
    assert!(is_bad(refused(hollow, &key, None)));
    assert!(is_bad(refused(
        &certificate[..certificate.len() / 2],
        &key,
        None
    )));
    let hollow_key = hollow.replace("CERTIFICATE", "PRIVATE KEY");
    let error = refused(&certificate, &hollow_key, None);
    assert!(matches!(error, TlsConfigError::BadKey(_)), "{error:?}");
    let error = refused(&certificate, &key, Some(hollow));
    assert!(matches!(error, TlsConfigError::BadClientCa(_)), "{error:?}");
}

// SPEC E6
#[test]
fn rustls_made_for_blocking_sockets_runs_unchanged_in_a_coroutine() {
    let (house, authority) = house();
    let (server, config) = (house.server.clone(), authority.client(None));
    // Client and server on one loop: a call that blocked the thread would never return.
    let done = house.io.context().spawn(move || {
        let (mut ours, theirs) = corio::net::UnixStream::pair().unwrap();
        let serving = corio::spawn_local(move || server.serve_unix(theirs, "client".to_owned()));
        ours.read_exact(&mut [0; Greeting::LEN]).unwrap();
        let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        ours.write_all(&ClientHello { flags }.encode()).unwrap();
        let mut option = Vec::new();
        encode_option(Opt::STARTTLS, &[], &mut option);
        ours.write_all(&option).unwrap();
        ours.read_exact(&mut [0; OptionReplyHeader::LEN]).unwrap();
        let mut stream = rustls::StreamOwned::new(connection(&config), ours);
        option.clear();
        encode_option(Opt::EXPORT_NAME, b"", &mut option);
        stream.write_all(&option).unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        // The server's close_notify: the end, and not a connection that was cut.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        serving.join().unwrap().unwrap();
        u64::from_be_bytes(reply[..8].try_into().unwrap())
    });
    assert_eq!(done.join().ok(), Some(1 << 20));
}
