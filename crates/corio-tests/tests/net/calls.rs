//! What each call does.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use corio::context::MonitorChoice;
use corio::net::{Stream, TcpListener, TcpStream, UnixListener, UnixStream};
use corio::spawn_local;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::{MONITORS, echo, io_thread, on_each_monitor, settle, tcp_pair};

fn talk(mut stream: impl Stream) {
    for round in 0..1000u32 {
        stream.write_all(&round.to_le_bytes()).unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(u32::from_le_bytes(back), round);
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

// SPEC E6
#[test]
fn tcp_echoes() {
    on_each_monitor(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = spawn_local(move || {
            let (stream, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.peer_addr().unwrap());
            assert_eq!(stream.local_addr().unwrap(), address);
            echo(stream);
        });
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), address);
        talk(stream);
        server.join().unwrap();
    });
}

// SPEC E6
#[test]
fn unix_echoes() {
    on_each_monitor(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = spawn_local({
            let path = path.clone();
            move || {
                assert_eq!(
                    listener.local_addr().unwrap().as_pathname(),
                    Some(path.as_path())
                );
                let (stream, peer) = listener.accept().unwrap();
                assert!(peer.is_unnamed());
                echo(stream);
            }
        });
        let stream = UnixStream::connect(&path).unwrap();
        assert_eq!(
            stream.peer_addr().unwrap().as_pathname(),
            Some(path.as_path())
        );
        talk(stream);
        server.join().unwrap();
    });
}

// SPEC E6
#[test]
fn addresses_of_unix_sockets_are_reported_whatever_their_kind() {
    on_each_monitor(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let name = format!(
            "corio-test-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let connect = |from: SocketAddrUnix| {
            let socket =
                rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &from).unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            assert_eq!(
                format!("{peer:?}"),
                format!("{:?}", stream.peer_addr().unwrap())
            );
            peer
        };
        let peer = connect(SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap());
        assert_eq!(peer.as_abstract_name(), Some(name.as_bytes()));
        // The longest path there is has no place for a NUL.
        let mut longest = directory.path().as_os_str().to_owned();
        longest.push("/");
        longest.push("x".repeat(108 - longest.len()));
        let peer = connect(SocketAddrUnix::new(longest.as_os_str()).unwrap());
        assert_eq!(peer.as_pathname().unwrap().as_os_str(), longest);

        let listener = std::os::unix::net::UnixListener::bind_addr(
            &std::os::unix::net::SocketAddr::from_abstract_name(format!("{name}-2")).unwrap(),
        );
        let listener = UnixListener::try_from_std(listener.unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = spawn_local(move || listener.accept().map(drop));
        UnixStream::connect_addr(&address).unwrap();
        accepting.join().unwrap().unwrap();
    });
}

// SPEC E6
#[test]
fn one_coroutine_reads_while_another_writes() {
    on_each_monitor(|| {
        const TOTAL: u64 = 8 << 20;
        let (ours, theirs) = tcp_pair();
        let mut handles = Vec::new();
        for stream in [Rc::new(ours), Rc::new(theirs)] {
            let reader = Rc::clone(&stream);
            handles.push(spawn_local(move || {
                let copied = io::copy(&mut (&*reader).take(TOTAL), &mut io::sink());
                assert_eq!(copied.unwrap(), TOTAL);
            }));
            handles.push(spawn_local(move || {
                io::copy(&mut io::repeat(7).take(TOTAL), &mut &*stream).unwrap();
            }));
        }
        for handle in handles {
            handle.join().unwrap();
        }
    });
}

// SPEC E6
#[test]
fn half_close_ends_one_direction() {
    on_each_monitor(|| {
        let (mut ours, mut theirs) = tcp_pair();
        let peer = spawn_local(move || {
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            theirs.write_all(text.to_uppercase().as_bytes()).unwrap();
        });
        ours.write_all(b"hello").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            ours.write(b"more").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "HELLO");
        peer.join().unwrap();
    });
}

// SPEC E6
#[test]
fn connecting_to_nobody_is_refused() {
    on_each_monitor(|| {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let none: &[SocketAddr] = &[];
        assert_eq!(
            TcpStream::connect(none).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(
            UnixStream::connect(&path).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(
            UnixStream::connect(&path).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    });
}

// SPEC E6
#[test]
fn a_connect_that_nobody_answers_times_out() {
    on_each_monitor(|| {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let full = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&full, &any).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let full = std::net::TcpListener::from(full);
        let address = full.local_addr().unwrap();
        let limit = Duration::from_millis(50);
        // What is beyond the listener's queue is dropped, and never answered within the time.
        let mut taken = Vec::new();
        let error = loop {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
            assert!(taken.len() < 100);
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

// SPEC E6
#[test]
fn a_unix_connect_waits_for_a_place_in_the_queue() {
    on_each_monitor(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = UnixListener::try_from_std(socket.into()).unwrap();
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                spawn_local(move || UnixStream::connect(path).unwrap())
            })
            .collect();
        settle();
        assert!(clients.iter().any(|client| !client.is_finished()));
        for _ in 0..8 {
            listener.accept().unwrap();
        }
        for client in clients {
            client.join().unwrap();
        }
    });
}

// SPEC E6
#[test]
fn accepts_many_connections() {
    const CLIENTS: u32 = 400;
    for monitor in MONITORS {
        let (server, client) = (io_thread(monitor), io_thread(monitor));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sum = server.context().spawn(move || {
            let listener = Rc::new(listener);
            let acceptors: Vec<_> = (0..4)
                .map(|_| {
                    let listener = Rc::clone(&listener);
                    spawn_local(move || {
                        let handles: Vec<_> = (0..CLIENTS / 4)
                            .map(|_| {
                                let (mut stream, _) = listener.accept().unwrap();
                                spawn_local(move || {
                                    let mut number = [0; 4];
                                    stream.read_exact(&mut number).unwrap();
                                    u32::from_le_bytes(number)
                                })
                            })
                            .collect();
                        handles
                            .into_iter()
                            .map(|handle| handle.join().unwrap())
                            .sum::<u32>()
                    })
                })
                .collect();
            acceptors
                .into_iter()
                .map(|acceptor| acceptor.join().unwrap())
                .sum::<u32>()
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                client.context().spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(&number.to_le_bytes()).unwrap();
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(sum.join().unwrap(), CLIENTS * (CLIENTS - 1) / 2);
    }
}

// SPEC E6
#[test]
fn try_read_never_waits() {
    on_each_monitor(|| {
        let (ours, mut theirs) = tcp_pair();
        let mut buf = [0; 8];
        assert_eq!(ours.try_read(&mut buf).unwrap(), None);
        assert_eq!(ours.try_read(&mut []).unwrap(), Some(0));
        theirs.write_all(b"abc").unwrap();
        assert_eq!(ours.try_read(&mut buf).unwrap(), Some(3));
        assert_eq!(&buf[..3], b"abc");
        drop(theirs);
        assert_eq!(ours.try_read(&mut buf).unwrap(), Some(0));
    });
}

// SPEC E6
#[test]
fn vectored_calls_take_all_buffers() {
    on_each_monitor(|| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let parts: Vec<[u8; 2]> = (0..1500u16).map(u16::to_le_bytes).collect();
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = ours.write_vectored(&slices).unwrap();
        assert_eq!(written, 2048, "as many as one call takes");
        let (mut head, mut tail) = ([0; 3], [0; 5]);
        let mut bufs = [
            IoSliceMut::new(&mut head),
            IoSliceMut::new(&mut []),
            IoSliceMut::new(&mut tail),
        ];
        assert_eq!(theirs.read_vectored(&mut bufs).unwrap(), 8);
        assert_eq!((head, tail), ([0, 0, 1], [0, 2, 0, 3, 0]));
        assert_eq!(ours.read_vectored(&mut []).unwrap(), 0);
        assert_eq!(ours.read(&mut []).unwrap(), 0);
    });
}

// SPEC E6
#[test]
fn sockets_are_non_blocking_and_not_inherited() {
    on_each_monitor(|| {
        let check = |fd: &dyn AsFd| {
            let fd = fd.as_fd();
            assert!(
                rustix::io::fcntl_getfd(fd)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
            assert!(
                rustix::fs::fcntl_getfl(fd)
                    .unwrap()
                    .contains(rustix::fs::OFlags::NONBLOCK)
            );
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let all: [&dyn AsFd; 6] = [&listener, &ours, &theirs, &a, &b, &a.try_clone().unwrap()];
        all.into_iter().for_each(check);
    });
}

// SPEC E6
#[test]
fn writing_to_a_peer_that_is_gone_is_an_error_and_no_signal() {
    // SAFETY: signal(2) with no handler. All of this process's writes to sockets ask for no signal.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL)
    };
    on_each_monitor(|| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(ours.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let vectored = ours.write_vectored(&[IoSlice::new(b"x")]);
        assert_eq!(vectored.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

// SPEC E6
#[test]
fn a_plain_thread_blocks() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(5)))
        .unwrap();
    assert_eq!(
        (&ours).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    ours.set_read_timeout(None).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        (&ours).read_to_string(&mut text).unwrap();
        text
    });
    theirs.write_all(b"hello").unwrap();
    drop(theirs);
    assert_eq!(reader.join().unwrap(), "hello");
}

// SPEC E6, C3
#[test]
fn a_loops_own_thread_is_refused() {
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let (tx, rx) = mpsc::channel();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap(); // Also where it would not wait: a mistake shows at once.
        io.context().schedule_oneshot("misuse", move || {
            let read = std::panic::AssertUnwindSafe(|| (&ours).read(&mut [0]));
            let payload = std::panic::catch_unwind(read).unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(
                ours.try_read(&mut [0]).unwrap(),
                Some(1),
                "what cannot wait may be called"
            );
            let connect = || TcpStream::connect("127.0.0.1:1");
            assert!(std::panic::catch_unwind(connect).is_err());
            tx.send(message.clone()).unwrap();
        });
        let message = rx.recv().unwrap();
        assert!(
            message.contains("outside a coroutine: start one with `spawn`"),
            "{message}"
        );
    }
}

/// Something that depends on every byte and its place.
fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(sum, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

fn large_transfer<S: Stream>(monitor: MonitorChoice, mut from: S, mut to: S) {
    const TOTAL: usize = 64 << 20;
    const BLOCK: usize = 256 << 10;
    let (sender, receiver) = (io_thread(monitor), io_thread(monitor));
    let sent = sender.context().spawn(move || {
        let mut block = vec![0; BLOCK];
        let mut sum = 0;
        for number in 0..TOTAL / BLOCK {
            for (at, word) in block.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&(number * BLOCK + at).to_le_bytes());
            }
            sum = checksum(sum, &block);
            from.write_all(&block).unwrap();
        }
        from.shutdown(Shutdown::Write).unwrap();
        sum
    });
    let received = receiver.context().spawn(move || {
        let mut block = vec![0; BLOCK];
        let mut sum = 0;
        for _ in 0..TOTAL / BLOCK {
            to.read_exact(&mut block).unwrap();
            sum = checksum(sum, &block);
        }
        assert_eq!(to.read(&mut block).unwrap(), 0);
        sum
    });
    assert_eq!(sent.join().unwrap(), received.join().unwrap());
}

// SPEC E6
#[test]
fn two_hundred_and_fifty_six_mebibytes_arrive_whole() {
    let begin = Instant::now();
    for monitor in MONITORS {
        let (ours, theirs) = tcp_pair();
        large_transfer(monitor, ours, theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        large_transfer(monitor, ours, theirs);
    }
    println!("256 MiB in {:?}", begin.elapsed());
}
