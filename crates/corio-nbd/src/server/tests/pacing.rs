//! A client that is slower than the server, and one that reads nothing for a while.

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

/// A stream that counts how often a client was waited for.
struct Counting {
    stream: corio::net::UnixStream,
    paced: Arc<AtomicUsize>,
}

impl Transport for Counting {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Transport::read(&self.stream, buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        Transport::write(&self.stream, buf)
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Transport::write_vectored(&self.stream, bufs)
    }

    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        Transport::set_timeout(&self.stream, limit)
    }

    fn pace(&self, limit: Duration) -> io::Result<()> {
        self.paced.fetch_add(1, Ordering::SeqCst);
        Transport::pace(&self.stream, limit)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }
}

/// How often a client was waited for that makes so many reads, one at a time.
fn paced_by(disk: &Arc<TestDisk>, reads: usize, len: usize) -> usize {
    let house = House::of(disk);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (server, paced) = (house.server.clone(), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&paced);
    let serve = move || {
        let stream = corio::net::UnixStream::try_from_std(theirs).unwrap();
        let stream = Counting {
            stream,
            paced: counted,
        };
        server.serve(stream, "client".to_owned())
    };
    let served = house.io.context().spawn(serve);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::of(ours);
    client.start(HeaderStyle::Structured, "");
    for _ in 0..reads {
        assert_eq!(client.read(0, len), Ok(pattern(0, len)));
    }
    client.disconnect();
    served.join().unwrap().unwrap();
    paced.load(Ordering::SeqCst)
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
