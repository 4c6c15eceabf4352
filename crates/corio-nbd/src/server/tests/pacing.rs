//! A client that is slower than the server, one that reads nothing for a while, and how few calls
//! many requests take.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Client, House, PATIENCE, STYLES, TestDisk, pattern};
use crate::server::transport::Transport;
use crate::wire::{Command, CommandFlags, HeaderStyle};

const SIZE: usize = 4 << 20;
const BLOCK: usize = 4096;

/// A stream that counts what is asked of it.
struct Counting {
    stream: corio::net::UnixStream,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// How often the client was waited for.
    paced: AtomicUsize,
}

impl Transport for Counting {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        Transport::read(&self.stream, buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.counts.writes.fetch_add(1, Ordering::SeqCst);
        Transport::write(&self.stream, buf)
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.counts.writes.fetch_add(1, Ordering::SeqCst);
        Transport::write_vectored(&self.stream, bufs)
    }

    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        Transport::set_timeout(&self.stream, limit)
    }

    fn pace(&self, limit: Duration) -> io::Result<()> {
        self.counts.paced.fetch_add(1, Ordering::SeqCst);
        Transport::pace(&self.stream, limit)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }
}

/// Has a client served over a stream that counts.
fn counted<T>(disk: &Arc<TestDisk>, test: impl FnOnce(&mut Client, &Counts) -> T) -> T {
    let house = House::of(disk);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (server, counts) = (house.server.clone(), Arc::<Counts>::default());
    let counted = Arc::clone(&counts);
    let serve = move || {
        let stream = corio::net::UnixStream::try_from_std(theirs).unwrap();
        let stream = Counting {
            stream,
            counts: counted,
        };
        server.serve(stream, "client".to_owned())
    };
    let served = house.io.context().spawn(serve);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::of(ours);
    client.start(HeaderStyle::Structured, "");
    let value = test(&mut client, &counts);
    client.disconnect();
    served.join().unwrap().unwrap();
    value
}

/// How often a client was waited for that makes so many reads, one at a time.
fn paced_by(disk: &Arc<TestDisk>, reads: usize, len: usize) -> usize {
    counted(disk, |client, counts| {
        for _ in 0..reads {
            assert_eq!(client.read(0, len), Ok(pattern(0, len)));
        }
        counts.paced.load(Ordering::SeqCst)
    })
}

#[test]
fn many_requests_take_few_reads_and_their_replies_few_writes() {
    const MANY: u64 = 100;
    for is_fast in [true, false] {
        let disk = TestDisk::new(SIZE);
        disk.fast.store(is_fast, Ordering::SeqCst);
        counted(&disk, |client, counts| {
            let request = |at| {
                let read = Command::READ;
                client.request_bytes(read, CommandFlags::empty(), at * 512, 512)
            };
            let (bytes, sent): (Vec<_>, Vec<_>) = (0..MANY).map(request).unzip();
            let calls = || {
                let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
                (of(&counts.reads), of(&counts.writes))
            };
            let before = calls();
            client.send(&bytes.concat());
            for _ in 0..MANY {
                let answered = client.reply(512);
                let at = sent.iter().position(|sent| *sent == answered.cookie);
                let at = u64::try_from(at.unwrap()).unwrap() * 512;
                assert_eq!(answered.content[0].1, pattern(at, 512));
            }
            let after = calls();
            // The one that waited for them, which may be counted or not, and the next.
            let reads = after.0 - before.0;
            assert!(reads <= 2, "{reads} reads, fast: {is_fast}");
            // As many slices as one write takes are half of them, where workers reply.
            let writes = after.1 - before.1;
            assert!(writes <= 4, "{writes} writes, fast: {is_fast}");
        });
    }
}

#[test]
fn small_replies_from_the_cache_are_paced_and_no_others() {
    let disk = TestDisk::new(SIZE);
    // A reply's header is 28 bytes; each 16th read is seen to.
    assert_eq!(paced_by(&disk, 100, BLOCK), 100 / 16);
    assert_eq!(paced_by(&disk, 100, 4 * BLOCK), 0);
    disk.fast.store(false, Ordering::SeqCst);
    assert_eq!(paced_by(&disk, 100, BLOCK), 0);
}

#[test]
fn a_client_that_writes_before_it_reads_is_not_waited_for_in_vain() {
    for style in STYLES {
        let disk = TestDisk::new(SIZE);
        let house = House::of(&disk);
        let mut client = house.client(style);
        // Less than its replies' room, more than a client has left that has caught up.
        let mut sent: Vec<_> = (0..25)
            .map(|at| (client.read_request(at * 512, BLOCK), at * 512))
            .collect();
        let last = client.write_request(0, &vec![7; SIZE]); // Does not fit into the socket.
        let mut written = false;
        for _ in 0..26 {
            let answered = client.next_reply(|cookie| if cookie == last { 0 } else { BLOCK });
            if answered.cookie == last {
                written = true;
                continue;
            }
            let place = sent.iter().position(|(sent, _)| *sent == answered.cookie);
            let (_, at) = sent.swap_remove(place.expect("a request that was sent"));
            assert_eq!(answered.content[0].1, pattern(at, BLOCK));
        }
        assert!(written && sent.is_empty());
        let done = client.call(Command::FLUSH, CommandFlags::empty(), 0, 0);
        assert!(done.error.is_ok());
        client.disconnect();
        house.assert_empty();
    }
}
