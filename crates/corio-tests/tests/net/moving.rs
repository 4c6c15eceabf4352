//! Sockets that change contexts, and descriptor numbers that change sockets.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::mpsc;

use corio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use corio::spawn_local;

use super::{MONITORS, echo, io_thread, on_each_monitor, read_one, settle};

// SPEC E6
#[test]
fn a_stream_moves_between_contexts() {
    for (one, other) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let homes = [io_thread(MONITORS[one]), io_thread(MONITORS[other])];
        let (ours, theirs) = UnixStream::pair().unwrap();
        let echo_home = io_thread(MONITORS[one]);
        let server = echo_home.context().spawn(move || echo(theirs));
        let mut stream = ours;
        for round in 0..100 {
            let home = &homes[round % 2];
            let by_value = round % 3 != 0;
            let std_stream = (!by_value).then(|| stream.try_clone().unwrap());
            let moved = std_stream.map(|stream| stream.into_std().unwrap());
            stream = home
                .context()
                .spawn(move || {
                    let mut stream = match moved {
                        Some(moved) => UnixStream::try_from_std(moved).unwrap(),
                        None => stream,
                    };
                    stream.write_all(b"hello").unwrap();
                    let mut back = [0; 5];
                    stream.read_exact(&mut back).unwrap(); // Waits, so it registers here.
                    assert_eq!(&back, b"hello");
                    stream
                })
                .join()
                .unwrap();
        }
        drop(stream); // On a thread that is no home.
        server.join().unwrap(); // Has seen the end, so no share of the descriptor is left.
    }
}

// SPEC E6: faster than the old home can forget it.
#[test]
fn a_stream_that_comes_back_at_once_is_watched_again() {
    for monitor in MONITORS {
        let (here, there) = (io_thread(monitor), io_thread(monitor));
        let there_context = there.context().clone();
        let (mut stream, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            io::copy(&mut &theirs, &mut &theirs).unwrap();
            theirs.write_all(b"end").unwrap_err()
        });
        let done = here.context().spawn(move || {
            for _ in 0..100 {
                talk_once(&mut stream);
                let (back, returned) = mpsc::channel();
                drop(there_context.spawn(move || {
                    talk_once(&mut stream);
                    back.send(stream).unwrap();
                }));
                // Blocks the loop, which a coroutine should not do, so that the loop has not turned
                // when it is back.
                stream = returned.recv().unwrap();
            }
        });
        done.join().unwrap();
        server.join().unwrap();
    }
}

/// Waits for an answer, so that the stream is registered where this runs.
fn talk_once(stream: &mut UnixStream) {
    for _ in 0..20 {
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
}

// SPEC E6
#[test]
fn a_stream_outlives_the_home_it_waited_in() {
    for monitor in MONITORS {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (first, second) = (io_thread(monitor), io_thread(monitor));
        let server = second.context().spawn(move || echo(theirs));
        let use_it = |mut stream: UnixStream| {
            stream.write_all(b"hello").unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            stream
        };
        let stream = first.context().spawn(move || use_it(ours)).join().unwrap();
        first.join();
        let stream = second
            .context()
            .spawn(move || use_it(stream))
            .join()
            .unwrap();
        drop(stream);
        server.join().unwrap();
    }
}

// SPEC E6
#[test]
fn into_std_at_home_gives_the_same_descriptor() {
    on_each_monitor(|| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let server = spawn_local(move || {
            theirs.write_all(b"x").unwrap();
            theirs
        });
        ours.read_exact(&mut [0]).unwrap();
        let number = ours.as_fd().as_raw_fd();
        let std_stream = ours.into_std().unwrap();
        assert_eq!(std_stream.as_raw_fd(), number);
        drop(std_stream);
        let mut theirs = server.join().unwrap();
        assert_eq!(
            theirs.read(&mut [0]).unwrap(),
            0,
            "nobody holds the other end any more"
        );
    });
}

// SPEC H5
#[test]
fn a_number_that_is_used_again_at_once_is_another_socket() {
    on_each_monitor(|| {
        let mut numbers = Vec::new();
        for round in 0..100u8 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            numbers.push(ours.as_fd().as_raw_fd());
            let (ours, order) = (Rc::new(ours), Rc::default());
            let reader = read_one(&ours, 0, &order);
            settle();
            // Two bytes, of which one is left, so that the old socket has an event to come when it
            // is closed.
            theirs.write_all(&[round, 0]).unwrap();
            reader.join().unwrap();
            assert_eq!(*order.borrow(), [(0, round)]);
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert!(
            numbers.len() < 10,
            "the test is of use only if numbers come again"
        );
    });
}

#[test]
fn streams_can_be_sent() {
    fn send<T: Send>() {}
    send::<TcpStream>();
    send::<UnixStream>();
    send::<TcpListener>();
    send::<UnixListener>();
}
