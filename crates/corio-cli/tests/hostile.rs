//! Clients that are too many, that stall, that talk nonsense or do not listen: they hurt
//! themselves.

mod common;

use std::io::Write;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::data::{self, KIB, MIB, Random};
use common::ledger::is_gone;
use common::nbd::{self, Client, Handshake, Headers, Stream, cmd, opt, rep};
use common::serve::{Addr, Serve, Server, image_dir};
use common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, tool, wait_until};
use rustix::process::Signal;

matrix!(
    five_hundred_at_once_are_served_or_refused,
    client_that_is_one_too_many_is_told_so,
    hostile_clients_do_not_slow_a_good_one,
    unfinished_handshakes_are_dropped_and_idle_clients_are_not,
);
// What is wrong with a handshake is, for TLS, in `tls`.
again_through_tls!(
    five_hundred_at_once_are_served_or_refused,
    hostile_clients_do_not_slow_a_good_one,
);
again_on_linux_aio!(
    five_hundred_at_once_are_served_or_refused,
    hostile_clients_do_not_slow_a_good_one,
);

/// What became of one of many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Served,
    /// Closed without a word.
    Refused,
    /// Told why.
    Told,
}

fn five_hundred_at_once_are_served_or_refused(combo: Combo) {
    need!(combo);
    let _alone = common::alone();
    const CAP: usize = 100;
    const CLIENTS: usize = 500;
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::sparse_file(&image, 4 * MIB);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    for at in server.listening() {
        let (start, settled) = (Barrier::new(CLIENTS), Barrier::new(CLIENTS));
        let began = Instant::now();
        let fates: Vec<Fate> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CLIENTS)
                .map(|i| {
                    let (start, settled, addr) = (&start, &settled, &at.addr);
                    scope.spawn(move || one_of_many(i, addr, start, settled))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let served = fates.iter().filter(|&&fate| fate == Fate::Served).count();
        let told = fates.iter().filter(|&&fate| fate == Fate::Told).count();
        println!(
            "{combo}: {at}: {served} of {CLIENTS} served, {told} told why not, {:?}",
            began.elapsed()
        );
        assert_eq!(served, CAP, "{at}");
        assert!(told > 0, "{at}");
        // Those that were served are gone: as many again get in.
        let mut again = Vec::new();
        wait_until("the room is free again", Duration::from_secs(20), || {
            again.extend(Client::connect(&at.addr, "", Headers::Structured).ok());
            again.len() == CAP
        });
        again[CAP - 1].write(0, b"x").unwrap();
    }
}

/// As many as are told at a time; those beyond are closed without a word.
const TOLD_AT_ONCE_MAX: usize = 16;

fn client_that_is_one_too_many_is_told_so(combo: Combo) {
    need!(combo, "nbdinfo", "qemu-img");
    const TEXT: &str = "the server serves its maximum of 2 connections";
    let serve = Serve::new(combo).memory("1M").tcp().unix();
    let mut server = serve.args(["--connections", "2"]).start();
    let first = Client::connect(&server.tcp().addr, "", Headers::Structured).unwrap();
    let second = Client::connect(&server.unix().addr, "", Headers::Simple).unwrap();
    for at in server.listening() {
        // Every option says why, not only the first, which clients make light of.
        let mut third = Handshake::start(&at.addr).unwrap();
        for option in [opt::STRUCTURED_REPLY, opt::LIST, opt::EXTENDED_HEADERS] {
            let replies = third.option(option, &[]).unwrap();
            assert_eq!(replies, [(rep::ERR_POLICY, TEXT.as_bytes().to_vec())]);
        }
        let error = third.go("").map(drop).unwrap_err();
        assert!(error.to_string().contains(TEXT), "{error}");
        let mut old = Handshake::start(&at.addr).unwrap();
        old.send_option(opt::EXPORT_NAME, b"").unwrap();
        assert!(nbd::is_closed(&mut old.stream));
        for client in [["nbdinfo", &at.uri], ["qemu-img info", &at.uri]] {
            let mut words = client.join(" ");
            words.push_str(" 2>&1");
            let output = tool::run(Command::new("sh").args(["-c", &words]));
            assert!(!output.status.success(), "{words}");
            println!("{words}: {}", output.stdout.trim());
            if client[0].starts_with("qemu") {
                assert!(output.stdout.contains(TEXT), "{}", output.stdout);
            }
        }
    }
    // More than are told at a time, all of them silent: the rest are closed, and a stop does not
    // wait for any.
    let addr = server.tcp().addr.clone();
    let mut silent: Vec<Stream> = (0..3 * TOLD_AT_ONCE_MAX)
        .map(|_| Stream::connect(&addr).unwrap())
        .collect();
    let greeted = silent.iter_mut().filter_map(|stream| {
        let mut greeting = [0; 18];
        std::io::Read::read_exact(stream, &mut greeting).ok()
    });
    // Those told earlier may have left places, or hold them still.
    let greeted = greeted.count();
    assert!((1..=2 * TOLD_AT_ONCE_MAX).contains(&greeted), "{greeted}");
    let began = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2));
    drop((first, second));
}

/// Connects together with all others, and stays connected until each of them has its answer.
fn one_of_many(i: usize, addr: &Addr, start: &Barrier, settled: &Barrier) -> Fate {
    start.wait();
    let connected = Stream::connect(addr).and_then(|stream| {
        stream.set_patience(Duration::from_secs(20))?;
        Handshake::start_on(stream, addr, 3)?.go("")
    });
    settled.wait();
    let mut client = match connected {
        Ok(client) => client,
        // Told so in an option's reply, or closed without a word. All else, a time-out above
        // all, is no clean answer.
        Err(e) if e.to_string().contains("maximum of 100 connections") => return Fate::Told,
        Err(e) if is_gone(&e) => return Fate::Refused,
        Err(e) => panic!("client {i}: {e}"),
    };
    let offset = u64::try_from(i).unwrap() * 4 * KIB;
    let data = Random::new(offset).bytes(4096);
    client.write(offset, &data).unwrap();
    assert!(
        client.read(offset, 4 * KIB).unwrap() == data,
        "client {i} reads what it wrote"
    );
    client.disconnect().unwrap();
    Fate::Served
}

const HALF_HANDSHAKES: usize = 100;
const TALKERS: usize = 100;
const DEAF: usize = 50;
const ALTERNATIONS: usize = 5;
/// How long the good client's throughput is taken each time.
const WINDOW: Duration = Duration::from_millis(500);

fn hostile_clients_do_not_slow_a_good_one(combo: Combo) {
    need!(combo);
    let _alone = common::alone();
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, 64 * MIB, 21);
    let server = Serve::new(combo)
        .image(&image)
        .args(["--connections", "400"])
        .tcp()
        .unix()
        .start();
    let mut good = Client::connect(&server.unix().addr, "", Headers::Structured).unwrap();
    throughput(&mut good);
    let before = sockets(&server);
    let mut ratios = Vec::new();
    let mut rss_kib = 0;
    for _ in 0..ALTERNATIONS {
        let quiet = throughput(&mut good);
        let attack = Attack::begin(&server);
        let attacked = attack.during(|| throughput(&mut good));
        rss_kib = rss_kib.max(server.proc_kib("status", "VmRSS"));
        drop(attack);
        wait_until("the attackers are gone", Duration::from_secs(20), || {
            sockets(&server) <= before
        });
        println!("{combo}: quiet {quiet:.0}/s, attacked {attacked:.0}/s, server {rss_kib} KiB");
        ratios.push(attacked / quiet);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ALTERNATIONS / 2];
    println!("{combo}: median of attacked / quiet: {median:.2}");
    assert!(median > 0.5, "{ratios:?}");
    // 25 of the deaf have asked for 4 GiB each.
    assert!(
        rss_kib < 1 << 20,
        "{rss_kib} KiB for clients that do not listen"
    );
}

/// Sockets that a server holds.
fn sockets(server: &Server) -> usize {
    server
        .descriptors()
        .iter()
        .filter(|d| d.starts_with("socket:"))
        .count()
}

/// Reads a second that a good client gets, of 4 KiB each, 32 in flight.
fn throughput(client: &mut Client) -> f64 {
    let mut random = Random::new(22);
    let start = Instant::now();
    let mut done = 0_u32;
    loop {
        let goes_on = start.elapsed() < WINDOW;
        while goes_on && client.in_flight() < 32 {
            let offset = random.below(64 * MIB - 4 * KIB);
            client.send(cmd::READ, 0, offset, 4 * KIB, &[]).unwrap();
        }
        if client.in_flight() == 0 {
            return f64::from(done) / start.elapsed().as_secs_f64();
        }
        assert_eq!(client.reply().unwrap().good().unwrap().data.len(), 4096);
        done += 1;
    }
}

/// 250 clients that mean no good.
struct Attack {
    addrs: [Addr; 2],
    /// Held, not used: half-done handshakes, and connections whose replies nobody reads.
    _stalled: Vec<Stream>,
}

impl Attack {
    fn begin(server: &Server) -> Attack {
        let addrs = [server.tcp().addr.clone(), server.unix().addr.clone()];
        let mut stalled = Vec::new();
        for i in 0..HALF_HANDSHAKES {
            let mut stream = Stream::connect(&addrs[i % 2]).unwrap();
            stream.write_all(half_a_handshake(i)).unwrap();
            stalled.push(stream);
        }
        for i in 0..DEAF {
            stalled.push(deaf_client(&addrs[i % 2], i));
        }
        Attack {
            addrs,
            _stalled: stalled,
        }
    }

    /// Runs `f` while 100 connections talk nonsense: each as soon as its predecessor is replaced,
    /// 500 a second.
    fn during<T>(&self, f: impl FnOnce() -> T) -> T {
        let (sent, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let talkers = scope.spawn(|| {
                let mut random = Random::new(23);
                let mut held: Vec<Option<Stream>> = (0..TALKERS).map(|_| None).collect();
                let began = Instant::now();
                for i in (0..).take_while(|_| !over.load(Ordering::Relaxed)) {
                    let slot = i % TALKERS;
                    held[slot] = Some(talk_nonsense(&self.addrs[slot % 2], i, &mut random));
                    sent.store(i + 1, Ordering::Relaxed);
                    // The first hundred at once, then at a pace: the attackers' own hunger for
                    // the processor is not what is measured.
                    let due = u64::try_from(i.saturating_sub(TALKERS)).unwrap() * 2;
                    let due = Duration::from_millis(due);
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                }
            });
            wait_until("all attackers are there", Duration::from_secs(20), || {
                sent.load(Ordering::Relaxed) >= TALKERS || talkers.is_finished()
            });
            let result = f();
            over.store(true, Ordering::Relaxed);
            talkers.join().unwrap();
            result
        })
    }
}

/// The client flags alone, part of an option's header, an option without its data, or nothing.
fn half_a_handshake(i: usize) -> &'static [u8] {
    let whole = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x10\0half of the data";
    &whole[..[0, 4, 9, 20, whole.len()][i % 5]]
}

/// Asks for more than any socket holds and never reads: every other client in large pieces, which
/// tie up memory, the rest in small ones.
fn deaf_client(addr: &Addr, i: usize) -> Stream {
    let mut client = Client::connect(addr, "", Headers::Structured).unwrap();
    let (count, length) = if i.is_multiple_of(2) {
        (128, 32 * MIB)
    } else {
        (2000, 4 * KIB)
    };
    let requests: Vec<u8> = (0..count)
        .flat_map(|_| client.header(cmd::READ, 0, 0, length).1)
        .collect();
    let mut stream = client.stream().try_clone().unwrap();
    // As many as the server takes, no longer than it takes them.
    stream.set_nonblocking(true).unwrap();
    let mut rest = &requests[..];
    while let Ok(n @ 1..) = stream.write(rest) {
        rest = &rest[n..];
    }
    assert!(rest.len() < requests.len(), "the server took no request");
    stream
}

/// Sends garbage where a greeting, an option or a request belongs.
fn talk_nonsense(addr: &Addr, i: usize, random: &mut Random) -> Stream {
    let mut stream = Stream::connect(addr).unwrap();
    let mut junk = random.bytes(4096);
    match i % 5 {
        0 => {}
        1 => junk = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        2 => junk.splice(..0, 3_u32.to_be_bytes()).for_each(drop),
        3 => junk.splice(..0, *b"\0\0\0\x03IHAVEOPT").for_each(drop),
        _ => {
            // GO for the default export, then noise instead of requests.
            junk.splice(..0, *b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0")
                .for_each(drop);
        }
    }
    // The server may have hung up before the end.
    let _ = stream.write_all(&junk);
    stream
}

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The ways not to finish a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    Silent,
    FlagsOnly,
    HalfAnOption,
    /// An option's data, byte by byte.
    Drip,
    /// One good option after the other, at leisure.
    Chat,
    /// Options as fast as they are sent, and no reply is read.
    Flood,
    /// An option that announces 4 GiB and sends them.
    Endless,
}

impl Stall {
    const ALL: [Stall; 7] = [
        Stall::Silent,
        Stall::FlagsOnly,
        Stall::HalfAnOption,
        Stall::Drip,
        Stall::Chat,
        Stall::Flood,
        Stall::Endless,
    ];

    /// True for what a server may cut short before the time is over.
    fn is_abuse(self) -> bool {
        matches!(self, Stall::Flood | Stall::Endless)
    }
}

fn unfinished_handshakes_are_dropped_and_idle_clients_are_not(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo).memory("1M").tcp().unix().start();
    for at in server.listening() {
        let mut idle = Client::connect(&at.addr, "", Headers::Structured).unwrap();
        // One whose request is under way is no stalled handshake either.
        let mut slow = Client::connect(&at.addr, "", Headers::Simple).unwrap();
        let (_, header) = slow.header(cmd::WRITE, 0, 0, 4);
        slow.send_raw(&header[..11]).unwrap();
        std::thread::scope(|scope| {
            let stalls =
                Stall::ALL.map(|stall| scope.spawn(move || (stall, drag(&at.addr, stall))));
            for stalled in stalls {
                let (stall, took) = stalled.join().unwrap();
                let earliest = if stall.is_abuse() {
                    Duration::ZERO
                } else {
                    HANDSHAKE_LIMIT
                };
                let range = earliest.mul_f64(0.8)..HANDSHAKE_LIMIT.mul_f64(1.8);
                assert!(
                    range.contains(&took),
                    "{at}: {stall:?}: dropped after {took:?}"
                );
            }
        });
        idle.write(0, b"idle").unwrap();
        slow.send_raw(&header[11..]).unwrap();
        slow.send_raw(b"slow").unwrap();
        slow.reply().unwrap().good().unwrap();
        assert_eq!(idle.read(0, 4).unwrap(), b"slow");
    }
}

/// Connects, does not finish, and tells how long the server let it.
fn drag(addr: &Addr, stall: Stall) -> Duration {
    const GIVE_UP: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(300);
    let start = Instant::now();
    let late = || {
        let took = start.elapsed();
        assert!(took < GIVE_UP, "{stall:?}: not dropped after {took:?}");
        false
    };
    let mut stream = Stream::connect(addr).unwrap();
    stream.set_patience(GIVE_UP).unwrap();
    let flags = 3_u32.to_be_bytes();
    match stall {
        Stall::Silent => assert!(nbd::is_closed(&mut stream)),
        Stall::FlagsOnly => {
            stream.write_all(&flags).unwrap();
            assert!(nbd::is_closed(&mut stream));
        }
        Stall::HalfAnOption => {
            stream.write_all(half_a_handshake(3)).unwrap();
            assert!(nbd::is_closed(&mut stream));
        }
        Stall::Drip => {
            stream.write_all(half_a_handshake(3)).unwrap();
            stream.set_patience(PAUSE).unwrap();
            while !(stream.write_all(b"x").is_err() || nbd::is_closed(&mut stream) || late()) {}
        }
        Stall::Chat => {
            let mut handshake = Handshake::greeted(stream).unwrap();
            handshake.stream.write_all(&flags).unwrap();
            while handshake.list().is_ok() && !late() {
                // Waits for what must not come as long as the server waits for the client.
                handshake.stream.set_patience(PAUSE).unwrap();
                if nbd::is_closed(&mut handshake.stream) {
                    break;
                }
                handshake.stream.set_patience(GIVE_UP).unwrap();
            }
        }
        Stall::Flood => {
            let list: Vec<u8> =
                [b"IHAVEOPT".as_slice(), &opt::LIST.to_be_bytes(), &[0; 4]].concat();
            stream.write_all(&flags).unwrap();
            while stream.write_all(&list.repeat(1000)).is_ok() && !late() {}
        }
        Stall::Endless => {
            stream
                .write_all(b"\0\0\0\x03IHAVEOPT\0\0\x12\x34\xff\xff\xff\xff")
                .unwrap();
            let zeroes = vec![0; 1 << 20];
            while stream.write_all(&zeroes).is_ok() && !late() {}
        }
    }
    start.elapsed()
}
