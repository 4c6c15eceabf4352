//! What a client can hold, and what it cannot do to others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Client, House, STYLES, TestDisk, await_that, pattern};
use crate::server::{Export, ServerConfig};
use crate::wire::{Command, CommandFlags, Errno, HeaderStyle};

const SIZE: usize = 4 << 20;
const NONE: CommandFlags = CommandFlags::empty();

fn house(disk: &Arc<TestDisk>, config: ServerConfig) -> House {
    House::new(config, vec![Export::new("", disk.node())])
}

#[test]
fn requests_of_a_client_are_capped_and_wait() {
    let disk = TestDisk::gated(SIZE);
    let config = ServerConfig {
        client_requests_max: 4,
        ..ServerConfig::default()
    };
    let house = house(&disk, config);
    let mut client = house.client(HeaderStyle::Structured);
    let mut sent: Vec<_> = (0..10)
        .map(|i| client.read_request(i * 4096, 4096))
        .collect();
    disk.await_arrived(4);
    assert_eq!(house.server.in_flight(), (4, 4 * 4096));
    for done in 1..=10 {
        disk.open_gate(1);
        let cookie = client.reply(0).cookie;
        let place = sent.iter().position(|sent| *sent == cookie).unwrap();
        sent.swap_remove(place);
        disk.await_arrived((4 + done).min(10));
        assert!(house.server.in_flight().0 <= 4);
    }
    client.disconnect();
    house.assert_empty();
}

#[test]
fn bytes_of_a_client_are_capped_and_wait() {
    let disk = TestDisk::gated(SIZE);
    let config = ServerConfig {
        client_bytes_max: 100_000,
        ..ServerConfig::default()
    };
    let house = house(&disk, config);
    let mut client = house.client(HeaderStyle::Extended);
    for _ in 0..2 {
        client.read_request(0, 40_000);
    }
    let write = client.write_request(0, &[1; 40_000]);
    disk.await_arrived(2);
    assert_eq!(house.server.in_flight(), (2, 80_000));
    disk.open_gate(3);
    let mut cookies = Vec::new();
    for _ in 0..3 {
        cookies.push(client.reply(0).cookie);
    }
    assert!(cookies.contains(&write));
    // One that is larger than the limit is served when it is alone.
    disk.open_gate(1);
    assert_eq!(client.read(0, 200_000).map(|data| data.len()), Ok(200_000));
    client.disconnect();
    house.assert_empty();
}

/// Fills the server's budget with a READ that does not finish.
fn hog(house: &House, disk: &TestDisk, len: usize) -> Client {
    let mut client = house.client(HeaderStyle::Structured);
    let before = disk.arrived.load(Ordering::SeqCst);
    client.read_request(0, len);
    disk.await_arrived(before + 1);
    disk.gated.store(false, Ordering::SeqCst);
    client
}

#[test]
fn client_that_finds_the_budget_taken_is_served_in_pieces() {
    for bytes in [true, false] {
        let disk = TestDisk::gated(SIZE);
        let config = if bytes {
            ServerConfig {
                server_bytes_max: 1 << 20,
                ..ServerConfig::default()
            }
        } else {
            ServerConfig {
                server_requests_max: 1,
                ..ServerConfig::default()
            }
        };
        let house = house(&disk, config);
        let hog = hog(&house, &disk, 1 << 20);
        let held = house.server.in_flight();
        for style in STYLES {
            let mut client = house.client(style);
            let (at, len) = (12_345, 3_000_000);
            assert_eq!(client.read(at, len), Ok(pattern(at, len)));
            assert_eq!(client.read(at, 1), Ok(pattern(at, 1)));
            if style.has_chunks() {
                let df = client.read_with(CommandFlags::DF, at, len).unwrap();
                assert_eq!(df, (pattern(at, len), (1, 0)));
                let extents = client.call(Command::BLOCK_STATUS, NONE, 0, 4096).extents;
                assert_eq!(extents, [(4096, 0)]);
            }
            // A piece of zeroes is a hole where there are chunks.
            assert_eq!(client.write(at, &vec![0; len]), Errno::OK);
            let (data, (_, holes)) = client.read_with(NONE, at, len).unwrap();
            assert!(data == vec![0; len]);
            assert_eq!(holes > 0, style.has_chunks());
            assert_eq!(client.write(at, &pattern(at, len)), Errno::OK);
            let data = pattern(5, 1_000_001);
            assert_eq!(client.write(7, &data), Errno::OK);
            assert_eq!(disk.contents(7, data.len()), data);
            assert_eq!(client.write(7, &pattern(7, data.len())), Errno::OK);
            assert_eq!(client.call(Command::FLUSH, NONE, 0, 0).error, Errno::OK);
            assert_eq!(client.call(Command::TRIM, NONE, 0, 512).error, Errno::OK);
            await_that("the end of its grants", || house.server.in_flight() == held);
            client.disconnect();
        }
        drop(hog);
        disk.open_gate(1);
        house.assert_empty();
    }
}

#[test]
fn disk_that_fails_in_the_middle_of_pieces_is_told_as_the_style_allows() {
    for style in STYLES {
        let disk = TestDisk::gated(SIZE);
        let config = ServerConfig {
            server_bytes_max: 1 << 20,
            ..ServerConfig::default()
        };
        let house = house(&disk, config);
        let hog = hog(&house, &disk, 1 << 20);
        disk.broken_from.store(1 << 20, Ordering::SeqCst);
        let mut client = house.client(style);
        assert_eq!(
            client.write(1 << 19, &[1; 1 << 20]),
            Errno::EIO,
            "and consumed"
        );
        assert_eq!(
            client.read(1 << 20, 1 << 20),
            Err(Errno::EIO),
            "before the first byte"
        );
        if style.has_chunks() {
            assert_eq!(client.read(0, 2 << 20), Err(Errno::EIO));
            let df = client.read_with(CommandFlags::DF, 0, 2 << 20);
            assert_eq!(df, Err(Errno::EIO), "after zeroes in its place");
            assert_eq!(client.read(0, 8).map(|data| data.len()), Ok(8));
        } else {
            client.read_request(0, 2 << 20);
            let mut sent = Vec::new();
            std::io::Read::read_to_end(&mut client.stream, &mut sent).unwrap();
            assert!(sent.len() < 2 << 20, "closed in the middle: {}", sent.len());
        }
        drop((client, hog));
        disk.open_gate(1);
        house.assert_empty();
    }
}

#[test]
fn client_that_does_not_read_is_not_read_from() {
    for fast in [true, false] {
        let disk = TestDisk::new(SIZE);
        disk.fast.store(fast, Ordering::SeqCst);
        let config = ServerConfig {
            client_bytes_max: 1 << 20,
            ..ServerConfig::default()
        };
        let house = house(&disk, config);
        let mut deaf = house.client(HeaderStyle::Simple);
        deaf.stream.set_nonblocking(true).unwrap();
        let (request, _) = deaf.request_bytes(Command::READ, NONE, 0, 65536);
        let mut sent = 0usize;
        // Until nothing more is taken for as long as another client needs for a round trip.
        let mut other = house.client(HeaderStyle::Extended);
        let mut idle_rounds = 0;
        while idle_rounds < 20 {
            match std::io::Write::write(&mut deaf.stream, &request) {
                Ok(n) => {
                    assert_eq!(n, request.len());
                    sent += 1;
                    idle_rounds = 0;
                    assert!(sent < 1_000_000, "the server reads on and on");
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    idle_rounds += 1;
                    assert_eq!(other.read(0, 512), Ok(pattern(0, 512)));
                }
            }
        }
        // The other one's last READ may not have been counted out yet.
        assert!(house.server.in_flight().1 <= (1 << 20) + 512);
        deaf.stream.set_nonblocking(false).unwrap();
        for _ in 0..sent {
            assert_eq!(deaf.reply(65536).content[0].1.len(), 65536);
        }
        deaf.disconnect();
        other.disconnect();
        house.assert_empty();
    }
}

#[test]
fn client_killed_in_the_middle_leaves_nothing_behind() {
    let disk = TestDisk::gated(SIZE);
    let house = House::of(&disk);
    for style in STYLES {
        // Requests at the disk, replies nobody takes, half a payload, half a header.
        let mut at_disk = house.client(style);
        let before = disk.arrived.load(Ordering::SeqCst);
        for i in 0..20 {
            at_disk.read_request(i * 4096, 100_000);
        }
        let mut half_payload = house.client(style);
        half_payload.request(Command::WRITE, NONE, 0, 1 << 20, &[1; 100_000]);
        let mut half_header = house.client(style);
        half_header.send(&[0x25, 0x60]);
        disk.await_arrived(before + 20);
        await_that("the payload's room", || house.server.in_flight().0 == 21);
        drop((at_disk, half_payload, half_header));
        disk.open_gate(20);
        house.assert_empty();
    }
}

#[test]
fn client_killed_while_its_replies_wait_leaves_nothing_behind() {
    let disk = TestDisk::new(SIZE);
    disk.fast.store(false, Ordering::SeqCst);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Structured);
    for _ in 0..30 {
        client.read_request(0, 1 << 20);
    }
    // More than a socket holds, so replies are queued.
    disk.await_arrived(1);
    assert!(house.server.in_flight().0 > 0);
    drop(client);
    house.assert_empty();
}

#[test]
fn disk_that_panics_costs_the_connection_and_nothing_else() {
    let disk = TestDisk::new(SIZE);
    disk.fast.store(false, Ordering::SeqCst);
    let house = House::of(&disk);
    let mut good = house.client(HeaderStyle::Simple);
    let mut client = house.client(HeaderStyle::Simple);
    disk.panics.store(true, Ordering::SeqCst);
    client.read_request(0, 512);
    client.assert_closed();
    disk.panics.store(false, Ordering::SeqCst);
    assert_eq!(good.read(0, 512), Ok(pattern(0, 512)));
    good.disconnect();
    house.assert_empty();
}

#[test]
fn long_run_of_fast_requests_gives_others_their_turn() {
    let disk = TestDisk::new(SIZE);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Structured);
    let mut bytes = Vec::new();
    for _ in 0..4000 {
        bytes.extend_from_slice(&client.request_bytes(Command::READ, NONE, 0, 8).0);
    }
    let ticker = Arc::clone(&disk);
    drop(house.io.context().spawn(move || {
        while ticker.ticks_seen.lock().len() < 4000 {
            ticker.tick.fetch_add(1, Ordering::SeqCst);
            crate::server::turn::pass();
        }
    }));
    client.send(&bytes);
    for _ in 0..4000 {
        client.reply(0);
    }
    let mut ticks = disk.ticks_seen.lock().clone();
    ticks.dedup();
    assert!(
        ticks.len() >= 4000 / 256,
        "others had {} turns",
        ticks.len()
    );
}

#[test]
fn clients_of_all_threads_share_the_budget() {
    let disk = TestDisk::gated(SIZE);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Simple);
    let another = House {
        server: house.server.clone(),
        io: corio::IoThread::builder()
            .name("nbd-other")
            .spawn()
            .unwrap(),
    };
    let mut other = another.client(HeaderStyle::Simple);
    client.read_request(0, 1000);
    other.read_request(0, 2000);
    disk.await_arrived(2);
    assert_eq!(house.server.in_flight(), (2, 3000));
    assert_eq!(house.server.connections(), 2);
    disk.open_gate(2);
    client.reply(1000);
    other.reply(2000);
    drop((client, other));
    house.assert_empty();
}

#[test]
fn requests_of_a_client_that_is_gone_are_not_begun() {
    for style in STYLES {
        let disk = TestDisk::gated(SIZE);
        let house = House::of(&disk);
        let mut client = house.client(style);
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            bytes.extend_from_slice(&client.request_bytes(Command::READ, NONE, 0, 1 << 20).0);
        }
        client.send(&bytes);
        // As many as the client's bytes allow; the others have arrived and wait.
        disk.await_arrived(64);
        drop(client);
        disk.open_gate(1000);
        house.assert_empty();
        // The first reply finds the client gone; what was at the disk by then ends there.
        assert!(
            disk.arrived.load(Ordering::SeqCst) < 1000 / 2,
            "served for nobody"
        );
    }
}

#[test]
fn nothing_is_read_ahead_for_a_client_that_is_gone() {
    for style in STYLES {
        let disk = TestDisk::gated(9 << 20);
        disk.fast.store(true, Ordering::SeqCst);
        let house = House::of(&disk);
        let mut other = house.client(style);
        let mut client = house.client(style);
        client.request(Command::CACHE, NONE, 0, 9 << 20, &[]);
        disk.await_arrived(1);
        // What it takes to read is counted, and is less than what is read.
        assert_eq!(house.server.in_flight(), (1, 256 << 10));
        drop(client);
        // Its end is seen no later than what comes after it.
        for _ in 0..3 {
            assert_eq!(other.read(0, 512), Ok(pattern(0, 512)));
        }
        disk.open_gate(1);
        other.disconnect();
        house.assert_empty();
        assert_eq!(disk.arrived.load(Ordering::SeqCst), 1, "read for nobody");
    }
}

#[test]
fn clients_that_hold_all_there_is_do_not_keep_others_from_overlapping() {
    for style in STYLES {
        let disk = TestDisk::gated(SIZE);
        let config = ServerConfig {
            server_bytes_max: 1 << 20,
            ..ServerConfig::default()
        };
        let house = house(&disk, config);
        let mut hog = house.client(style);
        hog.read_request(0, 1 << 20);
        disk.await_arrived(1);
        let mut client = house.client(style);
        for at in 0..32 {
            client.write_request(4096 * at, &[1; 4096]);
        }
        // All at once; the next one waits for them.
        disk.await_arrived(1 + 32);
        disk.open_gate(1 + 32);
        for _ in 0..32 {
            assert_eq!(client.reply(0).error, Errno::OK);
        }
        hog.reply(1 << 20);
        drop((client, hog));
        house.assert_empty();
    }
}
