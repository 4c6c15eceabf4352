//! Clients that are refused in words.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Client, House, PATIENCE, TestDisk};
use crate::server::TURN_AWAY_TIME;
use crate::wire::{ClientFlags, ClientHello, HeaderStyle, OptionCode, ReplyCode, encode_option};

const WHY: &str = "there is no room";

/// A client that the server turns away.
fn turned_away(house: &House) -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = house.server.clone();
    drop(house.io.context().spawn(move || {
        let stream = corio::net::UnixStream::try_from_std(theirs).unwrap();
        // How a connection ends is seen from the other side.
        let _ = server.turn_away(stream, "refused", WHY);
    }));
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    Client {
        stream: ours,
        input: Vec::new(),
        style: HeaderStyle::Simple,
        last_cookie: 0,
    }
}

fn house() -> House {
    House::of(&TestDisk::new(1 << 20))
}

#[test]
fn every_option_is_answered_with_the_reason() {
    let house = house();
    let mut client = turned_away(&house);
    client.hello();
    for code in [
        OptionCode::EXTENDED_HEADERS,
        OptionCode::STRUCTURED_REPLY,
        OptionCode::LIST,
        OptionCode(4711),
    ] {
        let answer = client.option(code, &[]);
        assert_eq!(answer.error, Some(ReplyCode::ERR_POLICY), "{code:?}");
        assert!(answer.exports.is_empty());
    }
    let mut bytes = Vec::new();
    crate::wire::encode_info_option(OptionCode::GO, "", &[], &mut bytes);
    client.send(&bytes);
    // Header and text, byte by byte.
    let reply = client.take_bytes(20 + WHY.len());
    assert_eq!(reply[12..16], ReplyCode::ERR_POLICY.0.to_be_bytes());
    assert_eq!(reply[20..], *WHY.as_bytes());
    assert_eq!(client.option(OptionCode::ABORT, &[]).error, None);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn export_name_closes() {
    let house = house();
    let mut client = turned_away(&house);
    client.hello();
    let mut bytes = Vec::new();
    encode_option(OptionCode::EXPORT_NAME, b"", &mut bytes);
    client.send(&bytes);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn client_that_says_nothing_or_goes_on_and_on_is_dropped() {
    let house = house();
    let began = Instant::now();
    let mut silent = turned_away(&house);
    let mut drip = turned_away(&house);
    let mut talker = turned_away(&house);
    let flags = ClientFlags::FIXED_NEWSTYLE;
    drip.send(&ClientHello { flags }.encode());
    talker.hello();
    for _ in 0..16 {
        let answer = talker.option(OptionCode::LIST, &[]);
        assert_eq!(answer.error, Some(ReplyCode::ERR_POLICY));
    }
    talker.assert_closed();
    silent.hello();
    silent.assert_closed();
    drip.input.clear();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut drip.stream, &mut rest);
    let took = began.elapsed();
    assert!(took >= TURN_AWAY_TIME / 2, "{took:?}");
    assert!(took < TURN_AWAY_TIME + Duration::from_secs(5), "{took:?}");
    house.assert_empty();
}

#[test]
fn stop_ends_it_at_once() {
    let house = house();
    let mut client = turned_away(&house);
    client.hello();
    assert_eq!(
        client.option(OptionCode::LIST, &[]).error,
        Some(ReplyCode::ERR_POLICY)
    );
    assert_eq!(house.server.connections(), 1);
    house.server.shutdown();
    assert_eq!(house.server.wait_idle(PATIENCE), []);
    client.assert_closed();
    turned_away(&house).assert_closed();
}
