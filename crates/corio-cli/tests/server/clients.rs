//! The real clients, other than nbdcopy, against `corio serve`: what nbdinfo is told, what
//! qemu-io and qemu-img write and read back, and fio's verified random writes.

use std::path::Path;
use std::process::Command;

use crate::common::data::{self, KIB, MIB};
use crate::common::serve::{Addr, Listening, Serve, Server, image_dir};
use crate::common::tls;
use crate::common::tool::{self, command, run};
use crate::common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, skip};
use serde_json::Value;

matrix!(
    server_uses_the_monitor_and_engine_asked_for,
    nbdinfo_describes_the_export,
    nbdinfo_lists_exports,
    nbdinfo_map_shows_the_holes,
    qemu_io_reads_back_what_it_wrote,
    qemu_io_reads_back_unaligned_pieces,
    qemu_io_zeroes_and_discards,
    qemu_io_is_refused_writes_to_a_read_only_export,
    qemu_img_converts_both_ways,
    fio_verifies_random_writes,
);
// All but qemu-img: its way of naming images with TLS is in `tls`.
again_through_tls!(
    nbdinfo_describes_the_export,
    nbdinfo_lists_exports,
    nbdinfo_map_shows_the_holes,
    qemu_io_reads_back_what_it_wrote,
    qemu_io_reads_back_unaligned_pieces,
    qemu_io_zeroes_and_discards,
    qemu_io_is_refused_writes_to_a_read_only_export,
    fio_verifies_random_writes,
);

again_on_linux_aio!(
    server_uses_the_monitor_and_engine_asked_for,
    nbdinfo_describes_the_export,
    nbdinfo_lists_exports,
    nbdinfo_map_shows_the_holes,
    qemu_io_reads_back_what_it_wrote,
    qemu_io_reads_back_unaligned_pieces,
    qemu_io_zeroes_and_discards,
    qemu_io_is_refused_writes_to_a_read_only_export,
    qemu_img_converts_both_ways,
    fio_verifies_random_writes,
);

/// Every other test here proves what its name says only if the parameters mean something.
fn server_uses_the_monitor_and_engine_asked_for(combo: Combo) {
    need!(combo, "qemu-io");
    if combo.engine == "linux-aio" && !Path::new("/proc/sys/fs/aio-max-nr").exists() {
        skip!("a kernel without Linux AIO");
    }
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, MIB);
    let server = Serve::new(combo).image(&image).unix().start();
    qemu_io(&server, &["write -P 1 0 64k", "flush", "read -P 1 0 64k"]).ok();
    let descriptors = server.descriptors();
    let holds = |kind: &str| descriptors.iter().any(|d| d.contains(kind));
    assert_eq!(
        holds("io_uring"),
        combo.uses_io_uring(),
        "{combo}: {descriptors:?}"
    );
    assert_eq!(
        holds("eventpoll"),
        combo.monitor == "epoll",
        "{combo}: {descriptors:?}"
    );
    // The kernel's ring of completions.
    let maps = server.proc_text("maps");
    let uses_aio = combo.engine == "linux-aio";
    assert_eq!(maps.contains("/[aio]"), uses_aio, "{combo}: {maps}");
}

/// The third monitor, with what shows that a server lives.
#[test]
fn server_works_on_poll() {
    server_uses_the_monitor_and_engine_asked_for(Combo::POLL_URING);
    nbdinfo_describes_the_export(Combo::POLL_URING);
    qemu_io_reads_back_what_it_wrote(Combo::POLL_URING);
}

fn nbdinfo_describes_the_export(combo: Combo) {
    need!(combo, "nbdinfo");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    // 64 MiB and an odd sector.
    data::random_file(&image, MIB, 1);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(64 * MIB + 512)
        .unwrap();
    let server = Serve::new(combo)
        .image(&image)
        .args(["--name", "vol", "--description", "a small disk"])
        .tcp()
        .unix()
        .start();
    for at in server.listening() {
        assert_export_described(combo, at);
        let text = run(command("nbdinfo").arg(&at.uri)).ok().stdout;
        for line in [
            "export=\"vol\":",
            "description: a small disk",
            "export-size: 67109376",
            "base:allocation",
            "can_multi_conn: true",
            "is_read_only: false",
            "block_size_maximum: 33554432",
        ] {
            assert!(text.contains(line), "{at}: no {line:?} in\n{text}");
        }
        let size = run(command("nbdinfo --size").arg(&at.uri)).ok().stdout;
        assert_eq!(size.trim(), "67109376", "{at}");
    }
}

/// What nbdinfo tells in JSON.
fn assert_export_described(combo: Combo, at: &Listening) {
    let json: Value = nbdinfo_json(&["--json"], &at.uri);
    assert_eq!(json["protocol"], "newstyle-fixed", "{at}");
    assert_eq!(json["TLS"], matches!(at.addr, Addr::Tls(_)), "{at}");
    assert_eq!(json["structured"], true, "{at}");
    let export = &json["exports"][0];
    assert_eq!(export["export-name"], "vol", "{at}");
    assert_eq!(export["description"], "a small disk", "{at}");
    assert_eq!(export["export-size"], 64 * MIB + 512, "{at}");
    assert_eq!(
        export["contexts"],
        serde_json::json!(["base:allocation"]),
        "{at}"
    );
    for is in ["is_rotational", "is_read_only"] {
        assert_eq!(export[is], false, "{at}: {is}");
    }
    let can = [
        "cache",
        "df",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ];
    for can in can.map(|can| format!("can_{can}")) {
        assert_eq!(export[&can], true, "{at}: {can}");
    }
    let minimum = export["block_size_minimum"].as_u64().unwrap();
    let expected = if combo.is_direct() { 512..=4096 } else { 1..=1 };
    assert!(expected.contains(&minimum), "{at}: {minimum}");
    assert_eq!(export["block_size_maximum"], 32 * MIB, "{at}");
    let preferred = export["block_size_preferred"].as_u64().unwrap();
    assert!(
        preferred.is_power_of_two() && preferred >= 512,
        "{at}: {preferred}"
    );
}

fn nbdinfo_lists_exports(combo: Combo) {
    need!(combo, "nbdinfo");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 8 * MIB);
    let serve = Serve::new(combo);
    let server = match combo.is_direct() {
        true => serve.image(&image),
        false => serve.memory("8M"),
    };
    let server = server
        .args(["--name", "mem", "--description", "words"])
        .tcp()
        .start();
    let json = nbdinfo_json(&["--list", "--json"], &server.tcp().uri);
    let exports = json["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 1);
    assert_eq!(exports[0]["export-name"], "mem");
    assert_eq!(exports[0]["export-size"], 8 * MIB);
    assert_eq!(exports[0]["description"], "words");
}

fn nbdinfo_map_shows_the_holes(combo: Combo) {
    need!(combo, "nbdinfo");
    let dir = image_dir();
    let image = dir.path().join("sparse.raw");
    data::sparse_file(&image, 6 << 30);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap();
    let block = data::Random::new(2).bytes(64 << 10);
    // Data at both ends of the first mebibyte, beyond 4 GiB, and in the last block.
    let data_at = [0, MIB - 64 * KIB, 5 << 30, (6 << 30) - 64 * KIB];
    for at in data_at {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, at).unwrap();
    }
    file.sync_all().unwrap();
    let server = Serve::new(combo).image(&image).unix().start();
    let map = nbdinfo_json(&["--map", "--json"], &server.unix().uri);
    let mut expected = Vec::new();
    let mut end = 0;
    for at in data_at {
        if at > end {
            expected.push((end, at - end, "hole,zero"));
        }
        expected.push((at, 64 * KIB, "data"));
        end = at + 64 * KIB;
    }
    assert_eq!(extents(&map), expected);

    let totals = nbdinfo_json(&["--map", "--totals", "--json"], &server.unix().uri);
    let total = |kind: u64| {
        let found = totals
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["type"] == kind);
        found.map_or(0, |entry| entry["size"].as_u64().unwrap())
    };
    assert_eq!(
        (total(0), total(3)),
        (256 * KIB, (6 << 30) - 256 * KIB),
        "{totals}"
    );
}

/// The answer of `nbdinfo --map --json`, with what is alike and adjacent put together: a server
/// may tell of one run in two extents.
fn extents(map: &Value) -> Vec<(u64, u64, &str)> {
    let mut found: Vec<(u64, u64, &str)> = Vec::new();
    for entry in map.as_array().unwrap() {
        let offset = entry["offset"].as_u64().unwrap();
        let length = entry["length"].as_u64().unwrap();
        let kind = entry["description"].as_str().unwrap();
        match found.last_mut() {
            Some(last) if last.2 == kind && last.0 + last.1 == offset => last.1 += length,
            _ => found.push((offset, length, kind)),
        }
    }
    found
}

fn qemu_io_reads_back_what_it_wrote(combo: Combo) {
    need!(combo, "qemu-io");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 64 * MIB);
    let server = Serve::new(combo).image(&image).tcp().unix().start();
    for (at, pattern) in server.listening().iter().zip([0x11, 0x51]) {
        let written = format!("write -P {pattern} 0 4k");
        let durable = format!("write -f -P {} 1M 64k", pattern + 1);
        let large = format!("write -P {} 8M 40M", pattern + 2);
        // The last sector of all.
        let last = format!("write -f -P {} 67108352 512", pattern + 3);
        let reads = [
            format!("read -P {pattern} 0 4k"),
            format!("read -P {} 1M 64k", pattern + 1),
            format!("read -P {} 8M 40M", pattern + 2),
            format!("read -P {} 67108352 512", pattern + 3),
        ];
        qemu_io_at(at, &[&written, &durable, &large, &last, "flush"]).ok();
        // Another connection sees it, and so does whoever looks at the file.
        qemu_io_at(at, &reads.iter().map(String::as_str).collect::<Vec<_>>()).ok();
        for (offset, len, byte) in [
            (0, 4 * KIB, pattern),
            (4 * KIB, MIB - 4 * KIB, 0),
            (MIB, 64 * KIB, pattern + 1),
            (8 * MIB, 40 * MIB, pattern + 2),
            (64 * MIB - 512, 512, pattern + 3),
        ] {
            assert_filled(&image, offset, len, byte);
        }
    }
    // The check can fail.
    qemu_io(&server, &["read -P 0x99 0 4k"]).fails();
}

fn qemu_io_reads_back_unaligned_pieces(combo: Combo) {
    need!(combo, "qemu-io");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    // Neither the size nor anything below is a multiple of 512.
    data::sparse_file(&image, 4 * MIB + 77);
    let server = Serve::new(combo).image(&image).unix().start();
    qemu_io(
        &server,
        &[
            "write -P 0xaa 0 2M",
            "write -P 1 1 1",
            "write -P 2 511 2",
            "write -P 3 4095 4099",
            "write -f -P 4 65535 131075",
            "write -z 1048577 65537",
            "write -P 5 4194304 77",
            "discard 262145 65537",
        ],
    )
    .ok();
    let pieces: [(u64, u64, u8); 13] = [
        (0, 1, 0xaa),
        (1, 1, 1),
        (2, 509, 0xaa),
        (511, 2, 2),
        (513, 3582, 0xaa),
        (4095, 4099, 3),
        (8194, 57341, 0xaa),
        (65535, 131_075, 4),
        (196_610, 65535, 0xaa),
        (327_682, 720_895, 0xaa),
        (1_048_577, 65537, 0),
        (1_114_114, 983_038, 0xaa),
        (4 * MIB, 77, 5),
    ];
    let reads: Vec<String> = pieces
        .iter()
        .map(|(at, len, byte)| format!("read -P {byte} {at} {len}"))
        .collect();
    qemu_io(
        &server,
        &reads.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .ok();
    for (at, len, byte) in pieces {
        assert_filled(&image, at, len, byte);
    }
    assert_eq!(
        std::fs::metadata(&image).unwrap().len(),
        4 * MIB + 77,
        "the size stays"
    );
}

fn qemu_io_zeroes_and_discards(combo: Combo) {
    need!(combo, "qemu-io", "nbdinfo");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 16 * MIB);
    let server = Serve::new(combo).image(&image).unix().start();
    qemu_io(
        &server,
        &[
            "write -P 0xee 0 16M",
            "write -z 1M 1M",
            "write -z -u 3M 1M",
            "write -z -n 5M 1M",
            "write -z -u -n 7M 1M",
            "write -z -f 9M 1M",
            "discard 11M 1M",
            "flush",
            "read -P 0 1M 1M",
            "read -P 0 3M 1M",
            "read -P 0 5M 1M",
            "read -P 0 7M 1M",
            "read -P 0 9M 1M",
            "read -P 0 11M 1M",
            "read -P 0xee 0 1M",
            "read -P 0xee 2M 1M",
            "read -P 0xee 4M 1M",
            "read -P 0xee 12M 4M",
        ],
    )
    .ok();
    assert_filled(&image, MIB, MIB, 0);
    assert_filled(&image, 2 * MIB, MIB, 0xee);
    // What was discarded and the zeroes that may unmap are holes.
    let map = nbdinfo_json(&["--map", "--json"], &server.unix().uri);
    let at = |offset: u64| {
        let found = extents(&map)
            .into_iter()
            .find(|(o, len, _)| (*o..o + len).contains(&offset));
        found.unwrap().2
    };
    for hole in [3, 7, 11] {
        assert_eq!(
            at(hole * MIB + MIB / 2),
            "hole,zero",
            "at {hole} MiB: {map}"
        );
    }
    assert_eq!(at(2 * MIB + MIB / 2), "data");
    // The other zeroes keep their blocks. A file system may show such blocks as a hole too, so
    // they are counted, with some room for its own.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap());
    assert!(
        (13 * MIB..14 * MIB).contains(&(blocks * 512)),
        "{} bytes are allocated",
        blocks * 512
    );
}

fn qemu_io_is_refused_writes_to_a_read_only_export(combo: Combo) {
    need!(combo, "qemu-io", "nbdinfo");
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, MIB, 3);
    let sum = data::sha256(&image);
    let server = Serve::new(combo)
        .image(&image)
        .arg("--read-only")
        .unix()
        .start();
    run(command("nbdinfo --is read-only").arg(&server.unix().uri)).ok();
    qemu_io(&server, &["write -P 1 0 4k"]).fails();
    qemu_io_with(&["-r"], server.first(), &["read 0 1M"]).ok();
    drop(server);
    assert_eq!(data::sha256(&image), sum);
}

fn qemu_img_converts_both_ways(combo: Combo) {
    need!(combo, "qemu-img");
    let dir = image_dir();
    let at = |name: &str| dir.path().join(name);
    // Data, a hole, data.
    data::random_file(&at("source.raw"), 8 * MIB, 4);
    let source = std::fs::OpenOptions::new()
        .write(true)
        .open(at("source.raw"))
        .unwrap();
    source.set_len(96 * MIB).unwrap();
    let tail = data::Random::new(5).bytes(1 << 20);
    std::os::unix::fs::FileExt::write_all_at(&source, &tail, 95 * MIB).unwrap();
    data::random_file(&at("disk.raw"), 96 * MIB, 6);

    let server = Serve::new(combo)
        .image(&at("disk.raw"))
        .tcp()
        .unix()
        .start();
    let (tcp, unix) = (&server.tcp().uri, &server.unix().uri);
    let convert = |line: &str, from: &Path, to: &Path| {
        run(command(line).arg(from).arg(to)).ok();
    };
    convert(
        "qemu-img convert -n -f raw -O raw",
        &at("source.raw"),
        Path::new(tcp),
    );
    let compare = |line: &str, left: &Path, right: &Path| run(command(line).arg(left).arg(right));
    compare(
        "qemu-img compare -f raw -F raw",
        &at("source.raw"),
        Path::new(unix),
    )
    .ok();
    convert(
        "qemu-img convert -f raw -O qcow2",
        Path::new(unix),
        &at("copy.qcow2"),
    );
    compare(
        "qemu-img compare -f raw -F qcow2",
        &at("source.raw"),
        &at("copy.qcow2"),
    )
    .ok();
    // Parallel and out of order, back into the export.
    convert(
        "qemu-img convert -n -W -m 8 -f qcow2 -O raw",
        &at("copy.qcow2"),
        Path::new(unix),
    );
    server.stop();
    compare(
        "qemu-img compare -f raw -F raw",
        &at("source.raw"),
        &at("disk.raw"),
    )
    .ok();
    assert_eq!(
        data::sha256(&at("source.raw")),
        data::sha256(&at("disk.raw"))
    );
}

fn fio_verifies_random_writes(combo: Combo) {
    need!(combo, "fio");
    // A URI that names certificates is refused to fio.
    let home = combo.tls.then(tls::Home::new);
    if let Some(home) = home.as_ref().filter(|_| tool::is_root()) {
        need!(combo, "setpriv");
        let tried = run(&mut home.command("true"));
        if !tried.status.success() {
            skip!("fio as somebody else than root: {}", tried.stderr.trim());
        }
    }
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 64 * MIB);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    for (at, sizes) in server
        .listening()
        .iter()
        .zip(["--bs=4k", "--bsrange=512-64k"])
    {
        let line = "fio --name=verify --ioengine=nbd --rw=randwrite --verify=crc32c \
                    --verify_fatal=1 --iodepth=32 --numjobs=2 --size=32m --offset_increment=32m \
                    --group_reporting --output-format=json";
        let (mut fio, uri) = match &home {
            Some(home) => (home.command(line), home.uri(at)),
            None => (command(line), at.uri.clone()),
        };
        if home.is_none() {
            fio.current_dir(dir.path());
        }
        fio.arg(sizes).arg(format!("--uri={uri}"));
        let output = run(&mut fio).ok();
        // Its engine says a word of its own before the figures.
        let json = &output.stdout[output.stdout.find("{\n").unwrap()..];
        let json: Value = serde_json::from_str(json).unwrap();
        let job = &json["jobs"][0];
        assert_eq!(job["error"], 0, "{at}: {}", output.stderr);
        assert_eq!(job["write"]["io_bytes"], 64 * MIB, "{at}");
        // The verifying pass reads it all again.
        assert_eq!(job["read"]["io_bytes"], 64 * MIB, "{at}");
    }
}

/// Runs commands of qemu-io against the server's first address.
fn qemu_io(server: &Server, commands: &[&str]) -> tool::Output {
    qemu_io_at(server.first(), commands)
}

fn qemu_io_at(at: &Listening, commands: &[&str]) -> tool::Output {
    qemu_io_with(&["--discard=unmap"], at, commands)
}

fn qemu_io_with(words: &[&str], at: &Listening, commands: &[&str]) -> tool::Output {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(words);
    for line in commands {
        qemu_io.args(["-c", line]);
    }
    match at.addr {
        Addr::Tls(_) => {
            let (object, image) = tls::qemu_words(at);
            qemu_io.args(["--object", &object, "--image-opts", &image])
        }
        _ => qemu_io.args(["-f", "raw", &at.uri]),
    };
    run(&mut qemu_io)
}

fn nbdinfo_json(args: &[&str], uri: &str) -> Value {
    let output = run(Command::new("nbdinfo").args(args).arg(uri)).ok();
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", output.stdout))
}

/// Asserts that a part of a file is one byte repeated.
#[track_caller]
fn assert_filled(image: &Path, offset: u64, len: u64, byte: u8) {
    let mut bytes = vec![!byte; usize::try_from(len).unwrap()];
    let file = std::fs::File::open(image).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
    let other = bytes.iter().position(|&found| found != byte);
    assert_eq!(
        other, None,
        "{len} bytes at {offset} of the file should be {byte:#x}"
    );
}
