//! Writes of a client that its loop serves alone: on the spot, unless others would wait with them.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::disk::TestDisk;
use super::{House, pattern};
use crate::wire::{Command, CommandFlags, Errno, HeaderStyle};

const SIZE: usize = 1 << 20;

#[test]
fn only_small_writes_that_need_not_be_durable_are_made_on_the_spot() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut client = house.client(HeaderStyle::Structured);
    assert_eq!(client.write(0, &[1; 512]), Errno::OK);
    assert_eq!(client.write(4096, &[2; 64 << 10]), Errno::OK);
    assert_eq!(client.write(0, &[3; (64 << 10) + 1]), Errno::OK);
    let (request, _) = client.request_bytes(Command::WRITE, CommandFlags::FUA, 7, 3);
    client.send(&[&request[..], b"fua"].concat());
    assert_eq!(client.reply(0).error, Errno::OK);
    disk.fast.store(false, Ordering::SeqCst); // As a file whose last write was slow.
    assert_eq!(client.write(10, &[4; 5]), Errno::OK);
    assert_eq!(
        disk.take_log(),
        [
            "write 0 512 on the spot",
            "write 4096 65536 on the spot",
            "write 0 65537",
            "write 7 3 fua",
            "write 10 5",
        ]
    );
    assert_eq!(disk.contents(6, 8), *b"\x03fua\x04\x04\x04\x04");
}

#[test]
fn none_is_made_on_the_spot_while_the_loop_has_another_client() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut one = house.client(HeaderStyle::Simple);
    assert_eq!(one.write(0, &[1; 10]), Errno::OK);
    // It has said nothing yet, and its handshake would have to wait.
    let other = house.connect();
    house.await_connections(2);
    assert_eq!(one.write(0, &[1; 11]), Errno::OK);
    drop(other);
    house.await_connections(1);
    assert_eq!(one.write(0, &[1; 12]), Errno::OK);
    assert_eq!(
        disk.take_log(),
        [
            "write 0 10 on the spot",
            "write 0 11",
            "write 0 12 on the spot"
        ]
    );
}

// The other one comes while the first one's request is half there.
#[test]
fn a_write_whose_payload_is_awaited_is_made_on_the_spot_only_if_the_client_is_alone_still() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut one = house.client(HeaderStyle::Simple);
    let (first, _) = one.request_bytes(Command::WRITE, CommandFlags::empty(), 0, 2);
    let (second, _) = one.request_bytes(Command::WRITE, CommandFlags::empty(), 2, 3);
    one.send(&[&first[..], b"ab", &second, b"c"].concat());
    // With this the reader has begun with the second.
    assert_eq!(one.reply(0).error, Errno::OK);
    let mut other = house.connect();
    other.hello();
    one.send(b"de");
    assert_eq!(one.reply(0).error, Errno::OK);
    assert_eq!(disk.take_log(), ["write 0 2 on the spot", "write 2 3"]);
    assert_eq!(disk.contents(0, 5), *b"abcde");
}

#[test]
fn clients_of_two_servers_in_one_loop_are_not_alone() {
    let disk = TestDisk::new(SIZE);
    let mut house = House::with(&disk, true);
    let mut one = house.client(HeaderStyle::Simple);
    let first = std::mem::replace(&mut house.server, House::with(&disk, true).server);
    let mut other = house.client(HeaderStyle::Simple);
    assert_eq!(one.write(0, &[1; 10]), Errno::OK);
    assert_eq!(other.write(0, &[1; 11]), Errno::OK);
    // Each is reached by the stop of its own server.
    first.shutdown();
    one.assert_closed();
    assert_eq!(first.wait_idle(super::PATIENCE), []);
    assert_eq!(other.write(0, &[1; 12]), Errno::OK);
    assert_eq!(
        disk.take_log(),
        ["write 0 10", "write 0 11", "write 0 12 on the spot"]
    );
}

#[test]
fn a_server_that_is_not_told_to_makes_none_on_the_spot() {
    let disk = TestDisk::new(SIZE);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Simple);
    assert_eq!(client.write(0, &[1; 10]), Errno::OK);
    assert_eq!(disk.take_log(), ["write 0 10"]);
}

// The replies of what is made on the spot do not wait for a payload that is still to come.
#[test]
fn a_payload_that_comes_in_pieces_is_written_whole_and_holds_up_no_reply() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut client = house.client(HeaderStyle::Extended);
    let data = pattern(5, 10_000);
    let (first, _) = client.request_bytes(Command::WRITE, CommandFlags::empty(), 0, 3);
    let (second, _) = client.request_bytes(Command::WRITE, CommandFlags::empty(), 100, 10_000);
    client.send(&[&first[..], b"one", &second, &data[..1]].concat());
    assert_eq!(client.reply(0).error, Errno::OK);
    for piece in data[1..].chunks(999) {
        client.send(piece);
    }
    assert_eq!(client.reply(0).error, Errno::OK);
    assert_eq!(disk.contents(100, 10_000), data);
    assert_eq!(disk.contents(0, 3), *b"one");

    // One that leaves in the middle has written nothing of it.
    let (third, _) = client.request_bytes(Command::WRITE, CommandFlags::empty(), 0, 100);
    client.send(&[&third[..], &[9; 99]].concat());
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client.assert_closed();
    house.assert_empty();
    assert_eq!(disk.contents(0, 3), *b"one");
}

#[test]
fn a_stop_ends_the_wait_for_a_payload_and_nothing_of_it_is_written() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut client = house.client(HeaderStyle::Simple);
    let (first, _) = client.request_bytes(Command::WRITE, CommandFlags::empty(), 0, 2);
    let (second, _) = client.request_bytes(Command::WRITE, CommandFlags::empty(), 2, 9);
    let before = disk.contents(2, 9);
    client.send(&[&first[..], b"ab", &second, b"cdefghij"].concat());
    assert_eq!(client.reply(0).error, Errno::OK);
    house.server.shutdown();
    client.assert_closed();
    assert_eq!(house.server.wait_idle(super::PATIENCE), []);
    assert_eq!(disk.contents(0, 2), *b"ab");
    assert_eq!(disk.contents(2, 9), before);
}

// Its requests arrive faster than they are served: the reader never waits for one.
#[test]
fn a_client_that_writes_without_end_lets_others_in_and_a_stop() {
    let disk = TestDisk::new(SIZE);
    let house = House::with(&disk, true);
    let mut flood = house.client(HeaderStyle::Simple);
    let (request, _) = flood.request_bytes(Command::WRITE, CommandFlags::empty(), 0, 512);
    let one = [&request[..], &[7; 512]].concat();
    let mut input = flood.stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        std::io::copy(&mut input, &mut std::io::sink()).ok();
    });
    let many = one.repeat(500);
    let writing = std::thread::spawn(move || while flood.stream.write_all(&many).is_ok() {});
    super::await_that("a write", || !disk.take_log().is_empty());
    let mut other = house.client(HeaderStyle::Simple);
    assert_eq!(other.write(1024, &[1; 10]), Errno::OK);
    drop(other);
    house.server.shutdown();
    assert_eq!(house.server.wait_idle(super::PATIENCE), []);
    writing.join().unwrap();
    reading.join().unwrap();
}
