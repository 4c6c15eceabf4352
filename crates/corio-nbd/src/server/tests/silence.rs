//! TCP clients that do not read for longer than a peer may be silent.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Client, House, PATIENCE, TestDisk, pattern};
use crate::server::{Export, ServerConfig};
use crate::wire::HeaderStyle;

const SIZE: usize = 4 << 20;
/// As short as the tests need it; the kernel ends a connection up to twice as late.
const SILENCE_MAX: Duration = Duration::from_millis(800);

/// A client over TCP, in transmission.
fn tcp_client(house: &House) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let server = house.server.clone();
    drop(house.io.context().spawn(move || {
        let stream = corio::net::TcpStream::try_from_std(theirs).unwrap();
        // How a connection ends is seen from the other side.
        let _ = server.serve_tcp(stream, "client".to_owned());
    }));
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client {
        // std's types of stream differ in their addresses only, which nobody asks for here.
        stream: UnixStream::from(OwnedFd::from(ours)),
        input: Vec::new(),
        style: HeaderStyle::Simple,
        last_cookie: 0,
    };
    client.start(HeaderStyle::Structured, "");
    client
}

#[test]
fn client_that_is_paused_is_served_when_it_goes_on() {
    let disk = TestDisk::new(SIZE);
    let config = ServerConfig {
        silence_max: SILENCE_MAX,
        ..ServerConfig::default()
    };
    let house = House::new(config, vec![Export::new("", disk.node())]);
    // Some that leave no writer parked, as the socket takes all, and one that does.
    let mut clients: Vec<_> = [(2, 200 << 10), (10, 200 << 10), (200, 1 << 20)]
        .into_iter()
        .map(|(count, len)| {
            let mut client = tcp_client(&house);
            for i in 0..count {
                client.read_request(i, len);
            }
            (client, count, len)
        })
        .collect();
    // The silence itself is what is tested: nothing happens that could be waited for.
    std::thread::sleep(4 * SILENCE_MAX);
    for (mut client, count, len) in clients.drain(..) {
        for _ in 0..count {
            let reply = client.reply(len);
            assert_eq!(reply.content.len(), 1);
            let (at, data, _) = &reply.content[0];
            assert!(*data == pattern(*at, len), "at {at}");
        }
        assert_eq!(client.read(7, 512), Ok(pattern(7, 512)));
        client.disconnect();
    }
    house.assert_empty();
}
