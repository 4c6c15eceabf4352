//! Sockets in coroutines (SPEC E6, C12, H1 to H5).

use std::io::{Read, Write};
use corio::IoThread;
use corio::context::MonitorChoice;
use corio::net::{TcpListener, TcpStream};

fn on_each_monitor(test: impl Fn(&IoThread)) {
    for choice in [MonitorChoice::Epoll, MonitorChoice::IoUring] {
        let io = IoThread::builder().name("io").monitor(choice).spawn().unwrap();
        test(&io);
        io.join();
    }
}

#[test]
fn tcp_echoes() {
    on_each_monitor(|io| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = io.context().spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = [0; 4096];
            loop {
                match stream.read(&mut buf).unwrap() {
                    0 => return,
                    n => stream.write_all(&buf[..n]).unwrap(),
                }
            }
        });
        let client = io.context().spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            for round in 0..1000u32 {
                stream.write_all(&round.to_le_bytes()).unwrap();
                let mut back = [0; 4];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(u32::from_le_bytes(back), round);
            }
        });
        client.join().unwrap();
        server.join().unwrap();
    });
}
