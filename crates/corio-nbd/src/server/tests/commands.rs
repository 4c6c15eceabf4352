//! The transmission phase, command by command, in all three styles.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use corio_block::{Extent, ExtentFlags};

use super::{Client, House, STYLES, TestDisk, memory_disk, pattern};
use crate::server::{Export, ServerConfig};
use crate::wire::{Command, CommandFlags, Errno, HeaderStyle};

const SIZE: usize = 4 << 20;
const NONE: CommandFlags = CommandFlags::empty();

/// In each style of headers, and with writes made by workers and on the spot.
fn each_style(mut test: impl FnMut(&Arc<TestDisk>, &mut Client)) {
    for (style, lone_writes) in STYLES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let disk = TestDisk::new(SIZE);
        let house = House::with(&disk, lone_writes);
        let mut client = house.client(style);
        test(&disk, &mut client);
        client.disconnect();
        house.assert_empty();
    }
}

fn size() -> u64 {
    u64::try_from(SIZE).unwrap()
}

#[test]
fn reads_of_all_lengths_from_the_cache_and_from_the_disk() {
    each_style(|disk, client| {
        for fast in [true, false] {
            disk.fast.store(fast, Ordering::SeqCst);
            for (at, len) in [
                (0, 1),
                (1, 511),
                (4096, 4096),
                (size() - 1, 1),
                (12345, 65536),
                (777, 256 << 10),
                (777, (256 << 10) + 1),
                (3, 2 << 20),
                (0, SIZE),
            ] {
                assert_eq!(
                    client.read(at, len),
                    Ok(pattern(at, len)),
                    "{at} {len} {fast}"
                );
            }
        }
    });
}

#[test]
fn writes_of_all_lengths_are_read_back() {
    each_style(|disk, client| {
        for (at, len) in [(0, 1), (513, 4096), (9, 300_000), (1, SIZE - 1)] {
            let data: Vec<u8> = pattern(at + 99, len);
            assert_eq!(client.write(at, &data), Errno::OK);
            assert_eq!(disk.contents(usize::try_from(at).unwrap(), len), data);
            assert_eq!(client.read(at, len), Ok(data));
        }
    });
}

#[test]
fn fua_is_passed_on() {
    each_style(|disk, client| {
        disk.take_log();
        client.request(Command::WRITE, CommandFlags::FUA, 512, 512, &[1; 512]);
        assert_eq!(client.reply(0).error, Errno::OK);
        assert_eq!(disk.take_log(), ["write 512 512 fua"]);
        assert_eq!(
            client.call(Command::TRIM, CommandFlags::FUA, 0, 512).error,
            Errno::OK
        );
        assert_eq!(disk.take_log(), ["discard 0 512", "flush"]);
        let answered = client.call(Command::WRITE_ZEROES, CommandFlags::FUA, 0, 512);
        assert_eq!(answered.error, Errno::OK);
        assert_eq!(disk.take_log(), ["zero 0 512 unmap", "flush"]);
        // Valid for every command, and without effect on these.
        assert_eq!(
            client.call(Command::CACHE, CommandFlags::FUA, 0, 8).error,
            Errno::OK
        );
        assert!(client.read_with(CommandFlags::FUA, 0, 8).is_ok());
    });
}

#[test]
fn flush_trim_and_cache_reach_the_disk() {
    each_style(|disk, client| {
        disk.take_log();
        assert_eq!(client.call(Command::FLUSH, NONE, 0, 0).error, Errno::OK);
        assert_eq!(
            client.call(Command::TRIM, NONE, 4096, 8192).error,
            Errno::OK
        );
        assert_eq!(client.call(Command::CACHE, NONE, 1, 2).error, Errno::OK);
        assert_eq!(disk.take_log(), ["flush", "discard 4096 8192", "cache 1 2"]);
    });
}

#[test]
fn zeroes_are_written_as_the_flags_say() {
    each_style(|disk, client| {
        for (flags, line) in [
            (NONE, "zero 512 512 unmap"),
            (CommandFlags::NO_HOLE, "zero 512 512"),
        ] {
            disk.take_log();
            assert_eq!(
                client.call(Command::WRITE_ZEROES, flags, 512, 512).error,
                Errno::OK
            );
            assert_eq!(disk.take_log(), [line]);
            assert_eq!(client.read(512, 512), Ok(vec![0; 512]));
        }
        let fast = CommandFlags::FAST_ZERO;
        assert_eq!(
            client.call(Command::WRITE_ZEROES, fast, 0, 512).error,
            Errno::ENOTSUP
        );
        disk.fast_zeroes.store(true, Ordering::SeqCst);
        disk.take_log();
        assert_eq!(
            client.call(Command::WRITE_ZEROES, fast, 0, 512).error,
            Errno::OK
        );
        assert_eq!(disk.take_log(), ["zero 0 512 unmap fast"]);
    });
}

#[test]
fn requests_are_refused_with_the_errno_of_the_text() {
    each_style(|disk, client| {
        let payload = [9; 512];
        for (command, flags, at, len, expected) in [
            (Command::READ, NONE, size(), 512, Errno::EINVAL),
            (Command::WRITE, NONE, size(), 512, Errno::ENOSPC),
            (Command::WRITE, NONE, size() - 1, 512, Errno::ENOSPC),
            (Command::TRIM, NONE, size(), 512, Errno::EINVAL),
            (Command::WRITE_ZEROES, NONE, size() - 1, 512, Errno::ENOSPC),
            (Command::CACHE, NONE, size(), 512, Errno::EINVAL),
            (Command::BLOCK_STATUS, NONE, size(), 512, Errno::EINVAL),
            (Command::FLUSH, NONE, 0, 512, Errno::EINVAL),
            (Command(88), NONE, 0, 512, Errno::EINVAL),
            (Command::READ, CommandFlags::NO_HOLE, 0, 512, Errno::EINVAL),
            (Command::WRITE, CommandFlags::DF, 0, 512, Errno::EINVAL),
            (Command::READ, NONE, 0, (32 << 20) + 1, Errno::EINVAL),
        ] {
            let payload = if command == Command::WRITE {
                &payload[..]
            } else {
                &[]
            };
            let cookie = client.request(command, flags, at, len, payload);
            let answered = client.reply(0);
            assert_eq!(
                (answered.cookie, answered.error),
                (cookie, expected),
                "{command:?}"
            );
            assert_eq!(answered.content, []);
        }
        assert!(disk.take_log().is_empty(), "nothing of it reached the disk");
        assert_eq!(
            client.read(5, 5),
            Ok(pattern(5, 5)),
            "the connection goes on"
        );
    });
}

#[test]
fn df_too_long_is_eoverflow() {
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let house = House::of(&TestDisk::new(SIZE));
        let mut client = house.client(style);
        let answered = client.call(Command::READ, CommandFlags::DF, 0, (32 << 20) + 1);
        assert_eq!(answered.error, Errno::EOVERFLOW);
    }
}

#[test]
fn write_too_long_is_consumed_or_closes() {
    let config = ServerConfig {
        request_bytes_max: 64 << 10,
        ..ServerConfig::default()
    };
    let export = || vec![Export::new("", memory_disk(size()))];
    let house = House::new(config.clone(), export());
    for style in [HeaderStyle::Simple, HeaderStyle::Structured] {
        let mut client = house.client(style);
        assert_eq!(client.write(0, &vec![1; 128 << 10]), Errno::EINVAL);
        assert_eq!(client.write(0, &vec![1; 64 << 10]), Errno::OK);
        client.request(Command::WRITE, NONE, 0, (128 << 10) + 1, &[]);
        client.assert_closed();
    }
    let mut client = house.client(HeaderStyle::Extended);
    assert_eq!(client.write(0, &vec![1; 64 << 10]), Errno::OK);
    client.request(Command::WRITE, NONE, 0, (64 << 10) + 1, &[]);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn extended_write_that_does_not_say_payload_has_one() {
    let house = House::of(&TestDisk::new(SIZE));
    let mut client = house.client(HeaderStyle::Extended);
    let (mut bytes, _) = client.request_bytes(Command::WRITE, NONE, 100, 512);
    bytes[4..6].fill(0);
    bytes.extend_from_slice(&[0x55; 512]);
    client.send(&bytes);
    assert_eq!(client.reply(0).error, Errno::OK);
    assert_eq!(client.read(100, 512), Ok(vec![0x55; 512]));
}

#[test]
fn payload_of_a_command_that_takes_none_is_consumed() {
    let house = House::of(&TestDisk::new(SIZE));
    let mut client = house.client(HeaderStyle::Extended);
    for command in [
        Command::READ,
        Command::TRIM,
        Command::BLOCK_STATUS,
        Command(99),
    ] {
        let cookie = client.request(command, CommandFlags::PAYLOAD_LEN, 0, 1000, &[7; 1000]);
        let answered = client.reply(0);
        assert_eq!(
            (answered.cookie, answered.error),
            (cookie, Errno::EINVAL),
            "{command:?}"
        );
    }
    assert_eq!(client.read(0, 8), Ok(pattern(0, 8)));
}

#[test]
fn read_only_export_refuses_what_modifies() {
    let disk = TestDisk::new(SIZE);
    let export = Export {
        read_only: true,
        ..Export::new("", disk.node())
    };
    let house = House::new(ServerConfig::default(), vec![export]);
    for style in STYLES {
        let mut client = house.client(style);
        assert_eq!(client.write(0, &[1; 300_000]), Errno::EPERM);
        assert_eq!(client.call(Command::TRIM, NONE, 0, 8).error, Errno::EPERM);
        assert_eq!(
            client.call(Command::WRITE_ZEROES, NONE, 0, 8).error,
            Errno::EPERM
        );
        assert_eq!(client.call(Command::FLUSH, NONE, 0, 0).error, Errno::OK);
        assert_eq!(client.read(0, 8), Ok(pattern(0, 8)));
    }
}

#[test]
fn requests_of_no_bytes_are_answered() {
    each_style(|disk, client| {
        disk.take_log();
        for command in [
            Command::READ,
            Command::WRITE,
            Command::TRIM,
            Command::WRITE_ZEROES,
            Command::CACHE,
        ] {
            let answered = client.call(command, NONE, 1, 0);
            assert_eq!(
                (answered.error, answered.content.len()),
                (Errno::OK, 0),
                "{command:?}"
            );
        }
        assert_eq!(
            client.call(Command::BLOCK_STATUS, NONE, 1, 0).error,
            Errno::EINVAL
        );
        assert!(disk.take_log().is_empty());
    });
}

#[test]
fn failure_of_the_disk_is_told_and_the_connection_goes_on() {
    each_style(|disk, client| {
        disk.broken_from.store(1 << 20, Ordering::SeqCst);
        for fast in [true, false] {
            disk.fast.store(fast, Ordering::SeqCst);
            assert_eq!(client.read(1 << 20, 4096), Err(Errno::EIO));
            assert_eq!(client.read((1 << 20) - 10, 400_000), Err(Errno::EIO));
            assert_eq!(client.write(1 << 20, &[1; 10]), Errno::EIO);
            assert_eq!(client.read(0, 4096), Ok(pattern(0, 4096)));
        }
    });
}

fn sparse(disk: &TestDisk) {
    let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
    *disk.extents.lock() = vec![
        Extent {
            len: 64 << 10,
            flags: ExtentFlags::empty(),
        },
        Extent {
            len: 128 << 10,
            flags: hole,
        },
        Extent {
            len: 4096,
            flags: ExtentFlags::ZERO,
        },
        Extent {
            len: 1 << 20,
            flags: ExtentFlags::empty(),
        },
        Extent {
            len: 2 << 20,
            flags: hole,
        },
    ];
}

/// The disk's bytes with its holes as zeroes.
fn with_holes(at: u64, len: usize) -> Vec<u8> {
    let mut data = pattern(at, len);
    for (offset, byte) in (at..).zip(&mut data) {
        let hole = (64 << 10..(192 << 10) + 4096).contains(&offset)
            || offset >= (192 << 10) + 4096 + (1 << 20);
        if hole {
            *byte = 0;
        }
    }
    data
}

#[test]
fn holes_of_a_large_read_from_the_disk_come_as_holes() {
    each_style(|disk, client| {
        sparse(disk);
        disk.fast.store(false, Ordering::SeqCst);
        let (at, len) = (1000, 512 << 10);
        if client.style == HeaderStyle::Simple {
            assert_eq!(client.read(at, len), Ok(pattern(at, len)));
            return;
        }
        let (data, chunks) = client.read_with(NONE, at, len).unwrap();
        assert_eq!(data, with_holes(at, len));
        assert_eq!(chunks, (2, 2), "data, hole, zeroes, data");
        let (data, chunks) = client.read_with(CommandFlags::DF, at, len).unwrap();
        assert_eq!(
            (data, chunks),
            (pattern(at, len), (1, 0)),
            "DF: in one piece"
        );
        let (data, chunks) = client.read_with(NONE, 80 << 10, 4096).unwrap();
        assert_eq!(
            (data, chunks),
            (pattern(80 << 10, 4096), (1, 0)),
            "too small to ask"
        );
        let (data, chunks) = client.read_with(NONE, 70 << 10, 64 << 10).unwrap();
        assert_eq!((data, chunks), (vec![0; 64 << 10], (0, 1)), "all hole");
    });
}

#[test]
fn zeroes_come_as_a_hole_whatever_their_length_and_way() {
    each_style(|disk, client| {
        assert_eq!(client.write(0, &vec![0; 1 << 20]), Errno::OK);
        let chunked = client.style.has_chunks();
        for fast in [true, false] {
            disk.fast.store(fast, Ordering::SeqCst);
            for len in [1, 7, 512, 4096, 4097, 64 << 10, 256 << 10, 1 << 20] {
                let way = (client.style, fast, len);
                let (data, chunks) = client.read_with(NONE, 0, len).unwrap();
                assert!(data == vec![0; len], "{way:?}");
                assert_eq!(chunks, if chunked { (0, 1) } else { (1, 0) }, "{way:?}");
                if chunked {
                    let df = client.read_with(CommandFlags::DF, 0, len).unwrap();
                    assert!(df == (vec![0; len], (1, 0)), "{way:?}: DF");
                }
            }
        }
    });
}

#[test]
fn zeroes_beside_data_do_not_hide_it() {
    each_style(|disk, client| {
        for fast in [true, false] {
            disk.fast.store(fast, Ordering::SeqCst);
            for len in [8, 4096, 64 << 10, 256 << 10] {
                // Zeroes first, zeroes last, and a single byte of data at either end.
                for data in [0..len / 2, len / 2..len, 0..1, len - 1..len] {
                    let mut bytes = vec![0; len];
                    bytes[data].fill(0xa5);
                    assert_eq!(client.write(4096, &bytes), Errno::OK);
                    assert!(client.read(4096, len) == Ok(bytes), "{len} bytes");
                }
            }
        }
    });
}

#[test]
fn holes_and_data_of_one_burst_keep_their_frames() {
    each_style(|_, client| {
        assert_eq!(client.write(4096, &[0; 4096]), Errno::OK);
        let mut burst = Vec::new();
        let mut expected = std::collections::HashMap::new();
        for i in 0..200 {
            let (bytes, cookie) = client.request_bytes(Command::READ, NONE, i % 3 * 4096, 4096);
            burst.extend_from_slice(&bytes);
            expected.insert(cookie, i % 3);
        }
        client.send(&burst);
        for _ in 0..200 {
            let reply = client.reply(4096);
            let block = expected.remove(&reply.cookie).unwrap();
            let zero = block == 1;
            let bytes = if zero {
                vec![0; 4096]
            } else {
                pattern(block * 4096, 4096)
            };
            let is_hole = zero && client.style.has_chunks();
            assert_eq!(reply.content.len(), 1);
            assert_eq!(reply.content[0].1, bytes);
            assert_eq!(reply.content[0].2, is_hole, "block {block}");
        }
    });
}

#[test]
fn many_holes_are_cut_short_and_the_rest_comes_as_data() {
    let disk = TestDisk::new(SIZE);
    disk.fast.store(false, Ordering::SeqCst);
    let kinds = [ExtentFlags::HOLE | ExtentFlags::ZERO, ExtentFlags::empty()];
    *disk.extents.lock() = (0..1024)
        .map(|i| Extent {
            len: 4096,
            flags: kinds[i % 2],
        })
        .collect();
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Structured);
    let (data, (data_chunks, holes)) = client.read_with(NONE, 0, 1 << 20).unwrap();
    assert_eq!(holes, 16);
    assert_eq!(data_chunks, 17);
    let mut expected = pattern(0, 1 << 20);
    for hole in 0..16 {
        expected[hole * 8192..][..4096].fill(0);
    }
    assert_eq!(data, expected);
}

#[test]
fn block_status_describes_the_disk() {
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let disk = TestDisk::new(SIZE);
        sparse(&disk);
        let house = House::of(&disk);
        let mut client = house.client(style);
        let answered = client.call(Command::BLOCK_STATUS, NONE, 0, 1 << 20);
        let extents = [
            (64 << 10, 0),
            (128 << 10, 3),
            (4096, 2),
            ((1 << 20) - (196 << 10), 0),
        ];
        assert_eq!(
            (answered.error, &answered.extents[..]),
            (Errno::OK, &extents[..])
        );
        let answered = client.call(
            Command::BLOCK_STATUS,
            CommandFlags::REQ_ONE,
            70 << 10,
            1 << 20,
        );
        assert_eq!(answered.extents, [(122 << 10, 3)]);
        let answered = client.call(Command::BLOCK_STATUS, CommandFlags::REQ_ONE, 70 << 10, 100);
        assert_eq!(answered.extents, [(100, 3)]);
    }
}

#[test]
fn block_status_needs_a_context_of_the_same_export() {
    let house = House::new(
        ServerConfig::default(),
        vec![
            Export::new("a", memory_disk(4096)),
            Export::new("b", memory_disk(4096)),
        ],
    );
    for (selected, expected) in [("a", Errno::OK), ("", Errno::OK), ("b", Errno::EINVAL)] {
        let mut client = house.connect();
        client
            .hello()
            .option(crate::wire::OptionCode::STRUCTURED_REPLY, &[]);
        let set = crate::wire::OptionCode::SET_META_CONTEXT;
        client.contexts(set, selected, &["base:allocation"]);
        client.info(crate::wire::OptionCode::GO, "a", &[]);
        client.style = HeaderStyle::Structured;
        assert_eq!(
            client.call(Command::BLOCK_STATUS, NONE, 0, 4096).error,
            expected
        );
    }
}

#[test]
fn lengths_of_64_bits_work_with_extended_headers() {
    let len = 6u64 << 30;
    let house = House::new(
        ServerConfig::default(),
        vec![Export::new("", memory_disk(len))],
    );
    let mut client = house.client(HeaderStyle::Extended);
    let answered = client.call(Command::BLOCK_STATUS, NONE, 0, len);
    assert_eq!(answered.extents, [(len, 3)]);
    assert_eq!(client.write(len - 1, &[1]), Errno::OK);
    assert_eq!(
        client.call(Command::WRITE_ZEROES, NONE, 0, len).error,
        Errno::OK
    );
    assert_eq!(client.read(len - 1, 1), Ok(vec![0]));
    assert_eq!(client.call(Command::TRIM, NONE, 0, len).error, Errno::OK);
    assert_eq!(
        client.call(Command::CACHE, NONE, 0, 1 << 20).error,
        Errno::OK
    );
}

#[test]
fn replies_overtake_slow_requests() {
    each_style(|disk, client| {
        disk.fast.store(false, Ordering::SeqCst);
        disk.gated.store(true, Ordering::SeqCst);
        let before = disk.arrived.load(Ordering::SeqCst);
        let flush = client.request(Command::FLUSH, NONE, 0, 0, &[]);
        let write = client.write_request(8192, &[5; 4096]);
        disk.await_arrived(before + 2);
        disk.fast.store(true, Ordering::SeqCst);
        assert_eq!(
            client.read(4096, 4096),
            Ok(pattern(4096, 4096)),
            "not held up"
        );
        disk.open_gate(2);
        let mut cookies = [client.reply(0).cookie.0, client.reply(0).cookie.0];
        let mut sent = [flush.0, write.0];
        cookies.sort_unstable();
        sent.sort_unstable();
        assert_eq!(cookies, sent);
        disk.gated.store(false, Ordering::SeqCst);
    });
}

#[test]
fn many_requests_at_once_are_all_answered() {
    each_style(|disk, client| {
        for fast in [true, false] {
            disk.fast.store(fast, Ordering::SeqCst);
            let mut bytes = Vec::new();
            let mut sent = Vec::new();
            for i in 0..1000 {
                let (request, cookie) = client.request_bytes(Command::READ, NONE, i * 512, 64);
                bytes.extend_from_slice(&request);
                sent.push((cookie, i * 512));
            }
            client.send(&bytes);
            for _ in 0..1000 {
                let answered = client.reply(64);
                let place = sent
                    .iter()
                    .position(|(cookie, _)| *cookie == answered.cookie);
                let (_, at) = sent.swap_remove(place.expect("a request that was sent"));
                assert_eq!(answered.content[0].1, pattern(at, 64));
            }
            assert_eq!(sent, []);
        }
    });
}

#[test]
fn writes_and_reads_in_one_burst_arrive_whole() {
    each_style(|_, client| {
        let mut bytes = Vec::new();
        for i in 0..100u64 {
            let len = 1000 + usize::try_from(i * 77).unwrap();
            let data = vec![u8::try_from(i).unwrap(); len];
            let (request, _) =
                client.request_bytes(Command::WRITE, NONE, i << 14, u64::try_from(len).unwrap());
            bytes.extend_from_slice(&request);
            bytes.extend_from_slice(&data);
        }
        // Cut at odd places, so that headers and payloads are split over reads.
        for part in bytes.chunks(33_333) {
            client.send(part);
        }
        for _ in 0..100 {
            assert_eq!(client.reply(0).error, Errno::OK);
        }
        for i in 0..100u64 {
            let len = 1000 + usize::try_from(i * 77).unwrap();
            assert_eq!(
                client.read(i << 14, len),
                Ok(vec![u8::try_from(i).unwrap(); len])
            );
        }
    });
}

#[test]
fn garbage_in_the_transmission_phase_closes_the_connection() {
    for style in STYLES {
        let house = House::of(&TestDisk::new(SIZE));
        let mut client = house.client(style);
        client.send(&[0xaa; 100]);
        client.assert_closed();
        house.assert_empty();
    }
}

#[test]
fn flush_covers_writes_of_another_connection() {
    let disk = TestDisk::new(SIZE);
    let house = House::of(&disk);
    let mut one = house.client(HeaderStyle::Simple);
    let mut other = house.client(HeaderStyle::Extended);
    disk.take_log();
    assert_eq!(one.write(0, &[1; 512]), Errno::OK);
    assert_eq!(other.call(Command::FLUSH, NONE, 0, 0).error, Errno::OK);
    assert_eq!(
        disk.take_log(),
        ["write 0 512", "flush"],
        "one node, one flush"
    );
}

#[test]
fn client_that_closes_its_half_still_gets_its_replies() {
    let disk = TestDisk::gated(SIZE);
    let house = House::of(&disk);
    let mut client = house.client(HeaderStyle::Structured);
    let cookie = client.read_request(0, 4096);
    disk.await_arrived(1);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    disk.open_gate(1);
    assert_eq!(client.reply(0).cookie, cookie);
    client.assert_closed();
    house.assert_empty();
}
