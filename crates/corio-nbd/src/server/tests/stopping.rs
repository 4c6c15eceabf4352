//! Shutdown: what still happens, what does not, and who is said to hold it up.

use std::time::Duration;

use super::{Client, House, STYLES, TestDisk, pattern};
use crate::server::{Export, ServerConfig};
use crate::wire::{Errno, HeaderStyle, OptionCode, ReplyCode};

const SIZE: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

#[test]
fn idle_connections_end() {
    let house = House::of(&TestDisk::new(SIZE));
    let mut clients: Vec<Client> = STYLES
        .into_iter()
        .map(|style| house.client(style))
        .collect();
    let mut shaking = house.connect();
    shaking.hello();
    house.server.shutdown();
    assert_eq!(house.server.wait_idle(LONG), []);
    for client in &mut clients {
        client.assert_closed();
    }
    shaking.assert_closed();
    house.assert_empty();
}

#[test]
fn new_connections_are_closed_at_once() {
    let house = House::of(&TestDisk::new(SIZE));
    house.server.shutdown();
    house.connect().assert_closed();
    house.assert_empty();
}

#[test]
fn requests_in_flight_finish_and_later_ones_are_refused() {
    for style in STYLES {
        let disk = TestDisk::gated(SIZE);
        // With room for one request the reader waits with the second in its hands.
        let config = ServerConfig {
            client_requests_max: 1,
            ..ServerConfig::default()
        };
        let house = House::new(config, vec![Export::new("", disk.node())]);
        let mut client = house.connect_as("the client");
        client.start(style, "");
        let first = client.write_request(0, &[3; 4096]);
        disk.await_arrived(1);
        let mut both = client.request_bytes(crate::wire::Command::FLUSH, none(), 0, 0);
        let (third, third_cookie) =
            client.request_bytes(crate::wire::Command::READ, none(), 0, 512);
        both.0.extend_from_slice(&third);
        client.send(&both.0);
        // The loop has read them once it has served somebody else after they were sent.
        let other_disk_read = || drop(house.connect().hello().option(OptionCode::LIST, &[]));
        other_disk_read();
        other_disk_read();
        house.server.shutdown();
        let busy = house.server.wait_idle(Duration::from_millis(50));
        assert_eq!(busy.len(), 1);
        assert_eq!((busy[0].peer.as_str(), busy[0].requests), ("the client", 1));
        disk.open_gate(2);
        let answered = client.reply(0);
        assert_eq!((answered.cookie, answered.error), (first, Errno::OK));
        let second = client.reply(0);
        let third = client.reply(0);
        let replies = [(second.cookie, second.error), (third.cookie, third.error)];
        assert!(replies.contains(&(both.1, Errno::OK)), "{replies:?}");
        assert!(
            replies.contains(&(third_cookie, Errno::ESHUTDOWN)),
            "{replies:?}"
        );
        client.assert_closed();
        assert_eq!(house.server.wait_idle(LONG), []);
        house.assert_empty();
        assert_eq!(disk.contents(0, 4096), [3; 4096]);
    }
}

fn none() -> crate::wire::CommandFlags {
    crate::wire::CommandFlags::empty()
}

#[test]
fn options_are_refused_while_stopping() {
    let disk = TestDisk::new(SIZE);
    let house = House::of(&disk);
    let mut client = house.connect();
    client.hello();
    client.option(OptionCode::LIST, &[]);
    // Both are on the loop's queue before it runs again or not; either answer is right, a hang is
    // not.
    let mut bytes = Vec::new();
    crate::wire::encode_option(OptionCode::LIST, &[], &mut bytes);
    client.send(&bytes);
    house.server.shutdown();
    let answer = client.answer(OptionCode::LIST);
    assert!(
        answer
            .error
            .is_none_or(|error| error == ReplyCode::ERR_SHUTDOWN),
        "{answer:?}"
    );
    client.assert_closed();
}

#[test]
fn waiting_for_the_end_works_from_a_coroutine() {
    let disk = TestDisk::gated(SIZE);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Structured);
    client.read_request(0, 4096);
    disk.await_arrived(1);
    house.server.shutdown();
    let server = house.server.clone();
    let waiter = house.io.context().spawn(move || server.wait_idle(LONG));
    disk.open_gate(1);
    let (data, _) = super::assemble(&client.reply(0), client.style, 0, 4096);
    assert_eq!(data, pattern(0, 4096));
    match waiter.join() {
        Ok(busy) => assert_eq!(busy, []),
        Err(_) => panic!("the waiter panicked"),
    }
}
