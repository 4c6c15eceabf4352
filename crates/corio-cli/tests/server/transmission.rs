//! Transmission byte by byte, through the small client of `crate::common::nbd`, for each kind of headers:
//! what no finished client sends, or shows.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::common::data::{self, GIB, KIB, MIB, assert_same};
use crate::common::nbd::{self, Client, Handshake, Headers, Reply, cmd, flag};
use crate::common::serve::{Addr, Serve, Server, image_dir};
use crate::common::{Combo, everywhere, need};

everywhere!(
    every_command_works_with_every_kind_of_headers,
    fast_zeroes_are_exact_or_refused,
    requests_past_the_end_are_refused,
    odd_sized_image_is_served_to_the_byte,
    direct_image_serves_unaligned_requests,
    reads_of_holes_come_as_hole_chunks,
    block_status_tells_extents,
    extended_requests_pass_four_gibibytes,
    request_above_the_limit_is_refused,
    pipelined_requests_are_all_answered,
    unknown_commands_and_flags_are_refused,
    read_only_export_refuses_changes,
    connections_see_each_others_writes,
    broken_request_ends_its_connection_only,
    client_that_leaves_in_a_request_leaves_nothing_behind,
);

const ALL_HEADERS: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

/// A directory with an image of random bytes, and the bytes.
fn random_image(len: u64) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, len, data::fresh_seed());
    let bytes = std::fs::read(&image).unwrap();
    (dir, image, bytes)
}

fn serve(combo: Combo, image: &Path) -> Server {
    Serve::new(combo).image(image).unix().start()
}

fn connect(server: &Server, headers: Headers) -> Client {
    Client::connect(&server.first().addr, "", headers).unwrap()
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

/// Commands with the flags that belong to them. FAST_ZERO may be refused: it has its own test.
const COMMANDS: [(u16, u16); 10] = [
    (cmd::WRITE, 0),
    (cmd::WRITE, nbd::FUA),
    (cmd::WRITE_ZEROES, 0),
    (cmd::WRITE_ZEROES, nbd::NO_HOLE),
    (cmd::WRITE_ZEROES, nbd::FUA),
    (cmd::WRITE_ZEROES, nbd::NO_HOLE | nbd::FUA),
    (cmd::TRIM, 0),
    (cmd::TRIM, nbd::FUA),
    (cmd::CACHE, 0),
    (cmd::FLUSH, 0),
];
const DISK_LEN: u64 = 4 * MIB + 512;

/// On an image, past the page cache, and on a memory disk.
fn every_command_works_with_every_kind_of_headers(combo: Combo) {
    need!(combo);
    let (_dir, image, _) = random_image(DISK_LEN);
    let disks = [
        ("image", Serve::new(combo).image(&image)),
        (
            "direct",
            Serve::new(combo).image(&image).args(["--cache", "none"]),
        ),
        ("memory", Serve::new(combo).memory(&DISK_LEN.to_string())),
    ];
    for (disk, serve) in disks {
        let server = serve.tcp().unix().start();
        let mut random = data::Random::new(7);
        let mut bytes = random.bytes(usize::try_from(DISK_LEN).unwrap());
        for at in server.listening() {
            for headers in ALL_HEADERS {
                let mut client = Client::connect(&at.addr, "", headers).unwrap();
                client.write(0, &bytes).unwrap();
                for (command, flags) in COMMANDS {
                    for unit in [4096, 1] {
                        let what = format!("{disk}, {headers:?}: command {command}, flags {flags}");
                        carry_out(&mut client, &mut bytes, &mut random, (command, flags, unit));
                        assert_same(&what, &client.read(0, DISK_LEN).unwrap(), &bytes);
                    }
                }
                client.disconnect().unwrap();
            }
        }
        server.stop();
        if disk != "memory" {
            assert_same("the file", &std::fs::read(&image).unwrap(), &bytes);
        }
    }
}

/// Makes a request of a random range, in multiples of `unit`, and does the same to `bytes`.
fn carry_out(
    client: &mut Client,
    bytes: &mut [u8],
    random: &mut data::Random,
    (command, flags, unit): (u16, u16, u64),
) {
    let mut offset = random.below(3 * MIB) / unit * unit;
    let mut length = (1 + random.below(512 * KIB) / unit) * unit;
    let from = usize::try_from(offset).unwrap();
    let range = &mut bytes[from..from + usize::try_from(length).unwrap()];
    let mut payload = Vec::new();
    match command {
        cmd::WRITE => {
            payload = random.bytes(range.len());
            range.copy_from_slice(&payload);
        }
        cmd::WRITE_ZEROES | cmd::TRIM => range.fill(0),
        cmd::FLUSH => (offset, length) = (0, 0),
        _ => {}
    }
    client
        .call(command, flags, offset, length, &payload)
        .unwrap()
        .good()
        .unwrap();
    if command == cmd::TRIM {
        // What is read after a TRIM is not defined, other than what lies around it: define it.
        client
            .call(cmd::WRITE_ZEROES, 0, offset, length, &[])
            .unwrap()
            .good()
            .unwrap();
    }
}

fn fast_zeroes_are_exact_or_refused(combo: Combo) {
    need!(combo);
    let (_dir, image, mut bytes) = random_image(32 * MIB);
    let server = serve(combo, &image);
    let mut client = connect(&server, Headers::Extended);
    let size = 32 * MIB;
    for (offset, length, no_hole) in [
        (MIB, 16 * MIB, 0),
        (MIB, 16 * MIB, nbd::NO_HOLE),
        (3, 1000, 0),
    ] {
        client.write(0, &bytes).unwrap();
        let flags = nbd::FAST_ZERO | no_hole;
        let reply = client
            .call(cmd::WRITE_ZEROES, flags, offset, length, &[])
            .unwrap();
        let what = format!("{length} at {offset}, flags {flags}: error {}", reply.error);
        assert!([0, nbd::ENOTSUP].contains(&reply.error), "{what}");
        let from = usize::try_from(offset).unwrap();
        let range = from..from + usize::try_from(length).unwrap();
        let kept = bytes[range.clone()].to_vec();
        if reply.error == 0 {
            bytes[range.clone()].fill(0);
        }
        assert_same(&what, &client.read(0, size).unwrap(), &bytes);
        bytes[range].copy_from_slice(&kept);
    }
}

fn requests_past_the_end_are_refused(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(MIB);
    let server = serve(combo, &image);
    for headers in ALL_HEADERS {
        let mut client = connect(&server, headers);
        let mut error = |command, offset: u64, length: u64| {
            let payload = if command == cmd::WRITE {
                vec![9; usize::try_from(length).unwrap()]
            } else {
                Vec::new()
            };
            client
                .call(command, 0, offset, length, &payload)
                .unwrap()
                .error
        };
        // Across the end, from the end, far behind it, and where the sum wraps around.
        let ranges = [
            (MIB - 512, 1024),
            (MIB - 1, 2),
            (MIB, 1),
            (1 << 40, 512),
            (u64::MAX - 511, 512),
            (u64::MAX, 4096),
        ];
        for (offset, length) in ranges {
            let what = format!("{headers:?}: {length} at {offset}");
            assert_eq!(
                error(cmd::WRITE, offset, length),
                nbd::ENOSPC,
                "write, {what}"
            );
            assert_eq!(
                error(cmd::READ, offset, length),
                nbd::EINVAL,
                "read, {what}"
            );
            assert_eq!(
                error(cmd::TRIM, offset, length),
                nbd::EINVAL,
                "trim, {what}"
            );
            let zeroes = error(cmd::WRITE_ZEROES, offset, length);
            assert!(
                [nbd::ENOSPC, nbd::EINVAL].contains(&zeroes),
                "zeroes, {what}: {zeroes}"
            );
            assert_eq!(
                error(cmd::CACHE, offset, length),
                nbd::EINVAL,
                "cache, {what}"
            );
            if headers != Headers::Simple {
                assert_eq!(
                    error(cmd::BLOCK_STATUS, offset, length),
                    nbd::EINVAL,
                    "status, {what}"
                );
            }
        }
        // The connection is as good as before, the last byte can be had, the file has not grown.
        assert_same("all of it", &client.read(0, MIB).unwrap(), &bytes);
        client.write(MIB - 1, &bytes[bytes.len() - 1..]).unwrap();
    }
    server.stop();
    assert_same("the file", &std::fs::read(&image).unwrap(), &bytes);
}

fn odd_sized_image_is_served_to_the_byte(combo: Combo) {
    need!(combo);
    for (size, cache) in [
        (MIB + 1, "writeback"),
        (513, "writeback"),
        (1, "writeback"),
        (MIB + 777, "none"),
    ] {
        let (_dir, image, mut bytes) = random_image(size);
        let cache = if combo.is_direct() { "none" } else { cache };
        let server = Serve::new(combo)
            .image(&image)
            .args(["--cache", cache])
            .unix()
            .start();
        let what = format!("{size} bytes, cache {cache}");
        let mut client = connect(&server, Headers::Structured);
        assert_eq!(client.export.size, size, "{what}");
        assert_same(&what, &client.read(0, size).unwrap(), &bytes);
        client.write(size - 1, b"Z").unwrap();
        *bytes.last_mut().unwrap() = b'Z';
        assert_eq!(client.read(size - 1, 1).unwrap(), b"Z", "{what}");
        for (command, error) in [(cmd::READ, nbd::EINVAL), (cmd::WRITE, nbd::ENOSPC)] {
            let payload: &[u8] = if command == cmd::WRITE { b"ab" } else { b"" };
            let reply = client.call(command, 0, size - 1, 2, payload).unwrap();
            assert_eq!(reply.error, error, "{what}");
        }
        if size > 4096 {
            let reply = client
                .call(cmd::WRITE_ZEROES, nbd::NO_HOLE, size - 600, 600, &[])
                .unwrap();
            reply.good().unwrap();
            let from = bytes.len() - 600;
            bytes[from..].fill(0);
        }
        assert_same(&what, &client.read(0, size).unwrap(), &bytes);
        let extents = client
            .call(cmd::BLOCK_STATUS, 0, 0, size, &[])
            .unwrap()
            .good()
            .unwrap()
            .extents;
        assert_eq!(
            extents.iter().map(|(length, _)| length).sum::<u64>(),
            size,
            "{what}"
        );
        server.stop();
        assert_same(&what, &std::fs::read(&image).unwrap(), &bytes);
    }
}

// SPEC E2: the loops are told of completions whichever way they wait.
#[test]
fn direct_image_serves_unaligned_requests_by_linux_aio() {
    for combo in [Combo::EPOLL_AIO, Combo::URING_AIO] {
        direct_image_serves_unaligned_requests(combo);
    }
}

fn direct_image_serves_unaligned_requests(combo: Combo) {
    need!(combo);
    let (_dir, image, mut bytes) = random_image(2 * MIB);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--cache", "none", "--iothreads", "2"])
        .unix()
        .start();
    let addr = &server.first().addr;
    let export = Handshake::start(addr).unwrap().info("").unwrap().unwrap();
    let (smallest, preferred, _) = export.block_sizes.unwrap();
    assert!(
        smallest.is_power_of_two() && smallest >= 512,
        "the device's block size: {smallest}"
    );
    assert!(preferred >= smallest);
    // Writes of odd lengths side by side share blocks. On two connections, all in flight at
    // once, none may undo another's.
    const PIECE: u64 = 333;
    const PIECES: u64 = 256;
    let mut random = data::Random::new(11);
    for round in 0..4 {
        let start = round * 400_001;
        let mut clients = [(); 2].map(|()| connect(&server, Headers::Structured));
        for piece in 0..PIECES {
            let offset = start + piece * PIECE;
            let payload = random.bytes(usize::try_from(PIECE).unwrap());
            let at = usize::try_from(offset).unwrap();
            bytes[at..at + payload.len()].copy_from_slice(&payload);
            let client = &mut clients[usize::try_from(piece % 2).unwrap()];
            let flags = if piece % 16 == 0 { nbd::FUA } else { 0 };
            client
                .send(cmd::WRITE, flags, offset, PIECE, &payload)
                .unwrap();
        }
        for client in &mut clients {
            while client.in_flight() > 0 {
                client.reply().unwrap().good().unwrap();
            }
        }
    }
    let mut client = connect(&server, Headers::Simple);
    client
        .call(cmd::WRITE_ZEROES, 0, 1_900_001, 10_001, &[])
        .unwrap()
        .good()
        .unwrap();
    bytes[1_900_001..1_910_002].fill(0);
    assert_same("all of it", &client.read(0, 2 * MIB).unwrap(), &bytes);
    for (offset, length) in [(1, 1), (511, 2), (4095, 8194), (MIB - 7, 70_001)] {
        let at = usize::try_from(offset).unwrap();
        let expected = &bytes[at..at + usize::try_from(length).unwrap()];
        assert_same("a piece", &client.read(offset, length).unwrap(), expected);
    }
    server.stop();
    assert_same("the file", &std::fs::read(&image).unwrap(), &bytes);
}

/// An image of 8 MiB: data, a hole, data, a hole, of 2 MiB each.
fn striped_image() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let (dir, image, mut bytes) = random_image(6 * MIB);
    let two = 2 << 20;
    bytes.resize(8 << 20, 0);
    bytes[two..2 * two].fill(0);
    data::sparse_file(&image, 8 * MIB);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap();
    for at in [0, 2 * two] {
        let offset = u64::try_from(at).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..at + two], offset).unwrap();
    }
    file.sync_all().unwrap();
    (dir, image, bytes)
}

fn reads_of_holes_come_as_hole_chunks(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = striped_image();
    let server = serve(combo, &image);
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = connect(&server, headers);
        let whole = client
            .call(cmd::READ, 0, 0, 8 * MIB, &[])
            .unwrap()
            .good()
            .unwrap();
        assert_same("whole", &whole.data, &bytes);
        assert!(
            whole.hole_chunks >= 2 && whole.data_chunks >= 2,
            "{headers:?}: {}",
            chunks(&whole)
        );
        let hole = client
            .call(cmd::READ, 0, 2 * MIB + 1, MIB, &[])
            .unwrap()
            .good()
            .unwrap();
        assert_eq!(
            (hole.data_chunks, hole.hole_chunks),
            (0, 1),
            "{headers:?}: in a hole"
        );
        // Whatever the length, and so whichever way it is served.
        for len in [4 * KIB, 64 * KIB, 256 * KIB, MIB] {
            let read = |client: &mut Client, flags, at| {
                let reply = client.call(cmd::READ, flags, at, len, &[]).unwrap();
                reply.good().unwrap()
            };
            let hole = read(&mut client, 0, 2 * MIB);
            let got = (hole.data_chunks, hole.hole_chunks);
            assert_eq!(got, (0, 1), "{headers:?}: {len} bytes of a hole");
            assert!(hole.data.iter().all(|&byte| byte == 0));
            let df = read(&mut client, nbd::DF, 2 * MIB);
            let got = (df.data_chunks, df.hole_chunks);
            assert_eq!(got, (1, 0), "{headers:?}: {len} bytes of a hole with DF");
            let half = read(&mut client, 0, 2 * MIB - len / 2);
            let at = usize::try_from(2 * MIB - len / 2).unwrap();
            assert_same("half a hole", &half.data, &bytes[at..at + half.data.len()]);
        }
        // DF: in one piece.
        let df = client
            .call(cmd::READ, nbd::DF, MIB, 2 * MIB, &[])
            .unwrap()
            .good()
            .unwrap();
        assert_eq!(
            df.data_chunks + df.hole_chunks,
            1,
            "{headers:?}: {}",
            chunks(&df)
        );
        assert_same("with DF", &df.data, &bytes[1 << 20..3 << 20]);
    }
}

fn chunks(reply: &Reply) -> String {
    format!(
        "{} chunks of data, {} of holes",
        reply.data_chunks, reply.hole_chunks
    )
}

fn block_status_tells_extents(combo: Combo) {
    need!(combo);
    let (_dir, image, _) = striped_image();
    let server = serve(combo, &image);
    const DATA: u64 = 0;
    const HOLE: u64 = 3;
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = connect(&server, headers);
        let mut status = |flags, offset, length| {
            let reply = client
                .call(cmd::BLOCK_STATUS, flags, offset, length, &[])
                .unwrap();
            reply.good().unwrap().extents
        };
        let two = 2 * MIB;
        let all = status(0, 0, 8 * MIB);
        assert_eq!(
            all,
            [(two, DATA), (two, HOLE), (two, DATA), (two, HOLE)],
            "{headers:?}"
        );
        assert_eq!(
            status(0, MIB + 1, two),
            [(MIB - 1, DATA), (MIB + 1, HOLE)],
            "{headers:?}"
        );
        // One extent may tell more than was asked about, unless there can be only one.
        assert_eq!(status(nbd::REQ_ONE, MIB, two), [(MIB, DATA)], "{headers:?}");
        assert_eq!(status(nbd::REQ_ONE, 0, 4096), [(4096, DATA)], "{headers:?}");
        assert_eq!(status(nbd::REQ_ONE, two, 1), [(1, HOLE)], "{headers:?}");
    }
}

fn extended_requests_pass_four_gibibytes(combo: Combo) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 12 * GIB);
    let server = serve(combo, &image);
    let mut client = connect(&server, Headers::Extended);
    let block = data::Random::new(12).bytes(64 << 10);
    for at in [0, 5 * GIB, 12 * GIB - 64 * KIB] {
        client.write(at, &block).unwrap();
    }
    client.flush().unwrap();
    let extents = client
        .call(cmd::BLOCK_STATUS, 0, 0, 12 * GIB, &[])
        .unwrap()
        .good()
        .unwrap()
        .extents;
    let expected = [
        (64 * KIB, 0),
        (5 * GIB - 64 * KIB, 3),
        (64 * KIB, 0),
        (7 * GIB - 128 * KIB, 3),
        (64 * KIB, 0),
    ];
    assert_eq!(extents, expected);
    // Zeroes of more than 4 GiB in one request, from within the first block on.
    client
        .call(cmd::WRITE_ZEROES, 0, 4096, 6 * GIB, &[])
        .unwrap()
        .good()
        .unwrap();
    assert_same("before", &client.read(0, 4096).unwrap(), &block[..4096]);
    assert!(client.read(4096, MIB).unwrap().iter().all(|&b| b == 0));
    assert!(
        client
            .read(5 * GIB, 64 * KIB)
            .unwrap()
            .iter()
            .all(|&b| b == 0)
    );
    assert_same(
        "behind",
        &client.read(12 * GIB - 64 * KIB, 64 * KIB).unwrap(),
        &block,
    );
    client
        .call(cmd::TRIM, 0, 0, 12 * GIB, &[])
        .unwrap()
        .good()
        .unwrap();
    client.call(cmd::CACHE, 0, 0, 5 * GIB, &[]).unwrap();
    // A read of that length cannot be had, and is no reason to go.
    let reply = client.call(cmd::READ, 0, 0, 5 * GIB, &[]).unwrap();
    assert!(
        [nbd::EINVAL, nbd::EOVERFLOW].contains(&reply.error),
        "{}",
        reply.error
    );
    client.write(0, b"still here").unwrap();
}

fn request_above_the_limit_is_refused(combo: Combo) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 64 * MIB);
    let server = Serve::new(combo).image(&image).tcp().start();
    let limit = data::Random::new(13).bytes(32 << 20);
    for headers in ALL_HEADERS {
        let mut client = connect(&server, headers);
        client.write(MIB, &limit).unwrap();
        assert_same("32 MiB", &client.read(MIB, 32 * MIB).unwrap(), &limit);
        for over in [32 * MIB + 1, 33 * MIB] {
            let reply = client.call(cmd::READ, 0, 0, over, &[]).unwrap();
            assert!(
                [nbd::EINVAL, nbd::EOVERFLOW].contains(&reply.error),
                "{}",
                reply.error
            );
        }
        assert_same("32 MiB", &client.read(MIB, 32 * MIB).unwrap(), &limit);
        // For a write the server may answer, having read the payload or not wanting it, or hang
        // up; what it may not do is to write it.
        let payload = vec![0x33; 33 << 20];
        match client.call(cmd::WRITE, 0, MIB, 33 * MIB, &payload) {
            Ok(reply) => assert!(
                [nbd::EINVAL, nbd::EOVERFLOW].contains(&reply.error),
                "{}",
                reply.error
            ),
            Err(error) => assert!(crate::common::ledger::is_gone(&error), "{error}"),
        }
        let mut other = connect(&server, headers);
        assert_same("untouched", &other.read(MIB, 32 * MIB).unwrap(), &limit);
    }
}

fn pipelined_requests_are_all_answered(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(8 * MIB);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    for (at, headers) in server.listening().iter().cycle().zip(ALL_HEADERS) {
        let mut client = Client::connect(&at.addr, "", headers).unwrap();
        let mut random = data::Random::new(14);
        let mut asked = std::collections::HashMap::new();
        // More than any sane queue, in one go. The replies fit the sockets' buffers or not: a
        // second thread takes them in.
        let mut requests = Vec::new();
        for _ in 0..2000 {
            let (offset, length) = (random.below(7 * MIB), 1 + random.below(8 * KIB));
            let (cookie, header) = client.header(cmd::READ, 0, offset, length);
            requests.extend(header);
            asked.insert(cookie, (offset, length));
        }
        let mut sender = client.stream().try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || std::io::Write::write_all(&mut sender, &requests).unwrap());
            let mut answered = HashSet::new();
            while client.in_flight() > 0 {
                let reply = client.reply().unwrap().good().unwrap();
                let (offset, _) = asked[&reply.cookie];
                let from = usize::try_from(offset).unwrap();
                assert_same("a read", &reply.data, &bytes[from..from + reply.data.len()]);
                assert!(answered.insert(reply.cookie), "answered twice");
            }
            assert_eq!(answered.len(), asked.len());
        });
    }
}

fn unknown_commands_and_flags_are_refused(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(MIB);
    let server = serve(combo, &image);
    for headers in ALL_HEADERS {
        let mut client = connect(&server, headers);
        for command in [8, 100, u16::MAX] {
            let error = client.call(command, 0, 0, 512, &[]).unwrap().error;
            assert!(
                [nbd::EINVAL, nbd::ENOTSUP].contains(&error),
                "command {command}: {error}"
            );
        }
        // Flags that do not belong to their command, and some that nobody knows.
        for (command, flags) in [
            (cmd::READ, nbd::NO_HOLE),
            (cmd::READ, 1 << 14),
            (cmd::TRIM, nbd::FAST_ZERO),
            (cmd::WRITE_ZEROES, nbd::REQ_ONE),
            (cmd::FLUSH, nbd::DF),
        ] {
            let error = client.call(command, flags, 0, 512, &[]).unwrap().error;
            assert_eq!(
                error,
                nbd::EINVAL,
                "{headers:?}: command {command}, flags {flags}"
            );
        }
        // An empty read or write is not defined by the protocol; it must not end the connection.
        client.call(cmd::READ, 0, 0, 0, &[]).unwrap();
        client.call(cmd::WRITE, 0, 0, 0, &[]).unwrap();
        assert_same("all of it", &client.read(0, MIB).unwrap(), &bytes);
    }
}

fn read_only_export_refuses_changes(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(MIB);
    let server = Serve::new(combo)
        .image(&image)
        .arg("--read-only")
        .unix()
        .start();
    for headers in ALL_HEADERS {
        let mut client = connect(&server, headers);
        assert!(client.export.has(flag::READ_ONLY));
        for (command, payload) in [
            (cmd::WRITE, &[1; 512][..]),
            (cmd::WRITE_ZEROES, &[]),
            (cmd::TRIM, &[]),
        ] {
            let reply = client.call(command, 0, 0, 512, payload).unwrap();
            assert_eq!(reply.error, nbd::EPERM, "{headers:?}: command {command}");
        }
        client.flush().unwrap();
        assert_same("all of it", &client.read(0, MIB).unwrap(), &bytes);
    }
    server.stop();
    assert_same("the file", &std::fs::read(&image).unwrap(), &bytes);
}

/// For an image and for a memory disk.
fn connections_see_each_others_writes(combo: Combo) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, MIB);
    for serve in [
        Serve::new(combo).image(&image),
        Serve::new(combo).memory("1M"),
    ] {
        let server = serve.args(["--iothreads", "2"]).tcp().unix().start();
        let addrs: Vec<&Addr> = server.listening().iter().map(|at| &at.addr).collect();
        let mut clients: Vec<Client> = (0..6)
            .map(|i| Client::connect(addrs[i % 2], "", ALL_HEADERS[i % 3]).unwrap())
            .collect();
        for writer in 0..clients.len() {
            let text = format!("from {writer}");
            clients[writer].write(4095, text.as_bytes()).unwrap();
            for reader in &mut clients {
                let found = reader.read(4095, len(text.as_bytes())).unwrap();
                assert_eq!(found, text.as_bytes());
            }
        }
    }
}

fn broken_request_ends_its_connection_only(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(MIB);
    let server = serve(combo, &image);
    let mut good = connect(&server, Headers::Structured);
    for headers in ALL_HEADERS {
        let mut bad = connect(&server, headers);
        bad.send_raw(&[0x77; 64]).unwrap();
        let error = bad.reply().unwrap_err();
        assert!(
            crate::common::ledger::is_gone(&error),
            "{headers:?}: {error}"
        );
        assert_same("the other's", &good.read(0, MIB).unwrap(), &bytes);
    }
    // The headers of the other kind are as broken as any.
    let mut simple = connect(&server, Headers::Simple);
    let mut extended = connect(&server, Headers::Extended);
    let (short, long) = (
        simple.header(cmd::READ, 0, 0, 512).1,
        extended.header(cmd::READ, 0, 0, 512).1,
    );
    for (client, header) in [
        (&mut simple, long),
        (&mut extended, [short.as_slice(); 2].concat()),
    ] {
        client.send_raw(&header).unwrap();
        assert!(crate::common::ledger::is_gone(&client.reply().unwrap_err()));
    }
    assert_same("the other's", &good.read(0, MIB).unwrap(), &bytes);
}

fn client_that_leaves_in_a_request_leaves_nothing_behind(combo: Combo) {
    need!(combo);
    let (_dir, image, bytes) = random_image(MIB);
    let serve = Serve::new(combo).image(&image).args(["--iothreads", "2"]);
    let server = serve.tcp().unix().start();
    // The first connection of a thread makes what that keeps for all that follow.
    let mut good = connect(&server, Headers::Structured);
    let mut other = connect(&server, Headers::Structured);
    good.read(0, MIB).unwrap();
    other.read(0, MIB).unwrap();
    let before = server.descriptors().len();
    for at in server.listening() {
        for round in 0..30 {
            let mut client = Client::connect(&at.addr, "", ALL_HEADERS[round % 3]).unwrap();
            match round / 3 % 4 {
                // Half a header.
                0 => {
                    let (_, header) = client.header(cmd::READ, 0, 0, 512);
                    client.send_raw(&header[..13]).unwrap();
                }
                // Half a payload.
                1 => {
                    client
                        .send(cmd::WRITE, 0, 0, 256 * KIB, &bytes[..128 << 10])
                        .unwrap();
                }
                // Replies that nobody takes.
                2 => {
                    for _ in 0..20 {
                        client.send(cmd::READ, 0, 0, MIB, &[]).unwrap();
                    }
                }
                // Nothing at all.
                _ => {}
            }
        }
    }
    crate::common::wait_until(
        "the connections are gone",
        std::time::Duration::from_secs(20),
        || server.descriptors().len() <= before,
    );
    // Half a write is none, or wrote what the image had.
    assert_same("all of it", &good.read(0, MIB).unwrap(), &bytes);
}
