//! Nothing piles up: after a warm-up, 10,000 connections and 1,000,000 requests leave the server's
//! memory where it was. Through TLS and past the page cache, where each takes longer, it is a tenth
//! of that: what piles up there is a connection's state of TLS, and what a request has of its own.
//!
//! Stacks, pools and the heap keep the size of the busiest moment so far, which may still come after
//! the warm-up. So a round that grew is done again: what piles up grows in each, a peak does not.

mod common;

use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::data::{self, KIB, MIB, Random};
use common::nbd::{Client, Handshake, Headers, Stream, cmd};
use common::serve::{Addr, Serve, Server, image_dir};
use common::{Combo, need, wait_until};

// Each monitor and each engine once: what could pile up is either's, and a run takes 20 s.
#[test]
fn memory_stays_where_it_was_on_epoll_with_io_uring() {
    memory_stays_where_it_was(Combo::EPOLL_URING);
}

#[test]
fn memory_stays_where_it_was_on_io_uring_with_threads() {
    memory_stays_where_it_was(Combo::URING_THREADS);
}

#[test]
fn memory_stays_where_it_was_through_tls() {
    memory_stays_where_it_was(Combo::TLS);
}

#[test]
fn memory_stays_where_it_was_on_linux_aio() {
    memory_stays_where_it_was(Combo::EPOLL_AIO);
}

const WARM_UP: u64 = 1_000;
const CYCLES: u64 = 10_000;
const REQUESTS: u64 = 1_000_000;
/// What a round may grow by: a hundred bytes a connection and one a request.
const GROWTH_MAX_KIB: u64 = 1 << 10;
const ROUNDS_MAX: usize = 4;
/// Requests of a cycle that keeps many in flight, and how many.
const BURST: u64 = 512;
const DEPTH: usize = 32;
/// Connections at the same time.
const THREADS: u64 = 4;
const IMAGE_LEN: u64 = 16 * MIB;

fn memory_stays_where_it_was(combo: Combo) {
    need!(combo);
    let _alone = common::alone();
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, IMAGE_LEN, 31);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    let idle = sockets(&server);
    let slowness = if combo.tls || combo == Combo::EPOLL_AIO {
        10
    } else {
        1
    };
    let (cycles_due, requests_due) = (CYCLES / slowness, REQUESTS / slowness);
    // Cycles do what is measured, so that after these each path, buffer and stack has been used.
    cycles(&server, WARM_UP);
    let mut seen = vec![settled_rss_kib(&server, idle)];
    for round in 1..=ROUNDS_MAX {
        let before = seen[seen.len() - 1];
        let start = Instant::now();
        cycles(&server, cycles_due);
        let cycled = settled_rss_kib(&server, idle);
        let cycling = start.elapsed();
        requests(&server, requests_due);
        let after = settled_rss_kib(&server, idle);
        println!(
            "{combo}, round {round}: RSS {before} KiB, after {cycles_due} connections {cycled} KiB \
             ({cycling:.1?}), after {requests_due} requests {after} KiB ({:.1?})",
            start.elapsed() - cycling
        );
        if cycled.max(after) < before + GROWTH_MAX_KIB {
            return;
        }
        seen.extend([cycled, after]);
    }
    panic!("the server's memory grows and grows: {seen:?} KiB");
}

/// The server's resident memory once it holds no more sockets than when nobody was there.
fn settled_rss_kib(server: &Server, idle: usize) -> u64 {
    wait_until(
        "all connections are closed",
        Duration::from_secs(20),
        || sockets(server) <= idle,
    );
    server.proc_kib("smaps_rollup", "Rss")
}

fn sockets(server: &Server) -> usize {
    server
        .descriptors()
        .iter()
        .filter(|d| d.starts_with("socket:"))
        .count()
}

/// Connects and leaves `count` times, over both addresses, in each of the ways there are to leave.
fn cycles(server: &Server, count: u64) {
    in_threads(server, |addr, share| {
        for i in (share..count).step_by(usize::try_from(THREADS).unwrap()) {
            cycle(addr, i);
        }
    });
}

fn cycle(addr: &Addr, i: u64) {
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended];
    let headers = headers[usize::try_from(i % 3).unwrap()];
    match i / THREADS % 8 {
        0 => drop(Stream::connect(addr).unwrap()),
        1 => drop(Handshake::start(addr).unwrap()),
        2 => {
            // A request is under way when the client goes.
            let mut client = Client::connect(addr, "", headers).unwrap();
            client.send(cmd::READ, 0, 0, 64 * KIB, &[]).unwrap();
            client.stream().shutdown(Shutdown::Both).unwrap();
        }
        3 => {
            let mut client = Client::connect(addr, "", headers).unwrap();
            client.send(cmd::WRITE, 0, 0, 8 * KIB, &[0; 4096]).unwrap();
        }
        // Real clients keep many requests in flight, and then go.
        4 if i / THREADS % 16 == 4 => mixed_requests(addr, i, BURST),
        _ => {
            let mut client = Client::connect(addr, "", headers).unwrap();
            let mut random = Random::new(i);
            let offset = random.below(IMAGE_LEN - 64 * KIB);
            client.read(offset, 1 + random.below(64 * KIB)).unwrap();
            client.write(offset, &random.bytes(4096)).unwrap();
            client.disconnect().unwrap();
        }
    }
}

/// Makes `count` requests.
fn requests(server: &Server, count: u64) {
    in_threads(server, |addr, share| {
        mixed_requests(addr, share, count / THREADS);
    });
}

/// One client's reads and writes of several sizes, zeroes and flushes, [`DEPTH`] in flight.
fn mixed_requests(addr: &Addr, seed: u64, count: u64) {
    let mut client = Client::connect(addr, "", Headers::Structured).unwrap();
    let mut random = Random::new(seed);
    let payload = random.bytes(4096);
    let mut left = count;
    while left > 0 || client.in_flight() > 0 {
        while left > 0 && client.in_flight() < DEPTH {
            left -= 1;
            let offset = random.below(IMAGE_LEN - 64 * KIB);
            let sent = match random.below(1000) {
                0 => client.send(cmd::FLUSH, 0, 0, 0, &[]),
                1..20 => client.send(cmd::READ, 0, offset, 64 * KIB, &[]),
                20..40 => client.send(cmd::WRITE_ZEROES, 0, offset, 4 * KIB, &[]),
                40..300 => client.send(cmd::WRITE, 0, offset, 4 * KIB, &payload),
                _ => client.send(cmd::READ, 0, offset, 4 * KIB, &[]),
            };
            sent.unwrap();
        }
        client.reply().unwrap().good().unwrap();
    }
    client.disconnect().unwrap();
}

fn in_threads(server: &Server, work: impl Fn(&Addr, u64) + Sync) {
    let addrs = [&server.tcp().addr, &server.unix().addr];
    std::thread::scope(|scope| {
        for (share, addr) in (0..THREADS).zip(addrs.into_iter().cycle()) {
            let work = &work;
            scope.spawn(move || work(addr, share));
        }
    });
}
