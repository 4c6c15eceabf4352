//! Clients that share a loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corio_block::{Driver, Length, Limits, Node, Offset, WriteFlags};

use super::{Client, Export, House, ServerConfig, await_that};
use crate::wire::HeaderStyle;

const LEN: usize = 512;
/// Where the client with one request at a time reads; the other one reads elsewhere.
const SHALLOW_AT: u64 = 4096;
const DEPTH: usize = 64;
/// How many of the deep client's requests are served at most while one of the shallow one's waits:
/// the loop may turn 8 times before it looks at the sockets, is in the middle of a turn before
/// that, and may run the deep client's reader first after it. In a turn that takes in 256 at most.
const AHEAD_MAX: usize = 10 * 256;

/// Counts the reads elsewhere, and how many there were at the last one of the shallow client's.
#[derive(Debug, Default)]
struct Counted {
    /// Whether reads are served on the spot, or by workers.
    fast: AtomicBool,
    deep: AtomicUsize,
    deep_at_shallow: AtomicUsize,
}

impl Counted {
    fn note(&self, offset: Offset) {
        if offset.0 == SHALLOW_AT {
            let deep = self.deep.load(Ordering::SeqCst);
            self.deep_at_shallow.store(deep, Ordering::SeqCst);
        } else {
            self.deep.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What the node owns.
#[derive(Debug)]
struct Handle(Arc<Counted>);

impl Driver for Handle {
    fn name(&self) -> &'static str {
        "counted"
    }

    fn size(&self) -> Length {
        Length(1 << 20)
    }

    fn limits(&self) -> Limits {
        Limits::bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        self.0.note(offset);
        buf.fill(1);
        Ok(())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<bool> {
        let is_fast = self.0.fast.load(Ordering::SeqCst);
        if is_fast {
            self.read_at(buf, offset)?;
        }
        Ok(is_fast)
    }

    fn write_at(&self, _: &[u8], _: Offset, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the deep client to end, however the test does.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Keeps `DEPTH` reads in flight until told to end.
fn read_deeply(mut client: Client, ends: &AtomicBool) {
    for _ in 0..DEPTH {
        client.read_request(0, LEN);
    }
    while !ends.load(Ordering::SeqCst) {
        client.reply(LEN);
        client.read_request(0, LEN);
    }
    for _ in 0..DEPTH {
        client.reply(LEN);
    }
    client.disconnect();
}

#[test]
fn a_client_with_many_requests_does_not_hold_up_one_that_makes_one_at_a_time() {
    for is_fast in [true, false] {
        let disk = Arc::new(Counted::default());
        disk.fast.store(is_fast, Ordering::SeqCst);
        let node = Node::new("counted", Box::new(Handle(Arc::clone(&disk))), false).unwrap();
        let house = House::new(ServerConfig::default(), vec![Export::new("", node)]);
        let (deep, mut shallow) = (
            house.client(HeaderStyle::Simple),
            house.client(HeaderStyle::Simple),
        );
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ends = Ends(&ends);
            scope.spawn(|| read_deeply(deep, ends.0));
            let served = || disk.deep.load(Ordering::SeqCst);
            await_that("the deep client", || served() > DEPTH);
            let mut ahead = Vec::new();
            while ahead.len() < 200 || served() < 4 * AHEAD_MAX {
                let cookie = shallow.read_request(SHALLOW_AT, LEN);
                // It is in the socket by now.
                let before = served();
                assert_eq!(shallow.reply(LEN).cookie, cookie);
                let at = disk.deep_at_shallow.load(Ordering::SeqCst);
                ahead.push(at.saturating_sub(before));
            }
            drop(ends);
            let most = ahead.iter().max().unwrap();
            assert!(*most <= AHEAD_MAX, "{most} were first, fast: {is_fast}");
        });
        shallow.disconnect();
        house.assert_empty();
    }
}
