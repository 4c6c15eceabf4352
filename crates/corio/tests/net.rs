//! Sockets in coroutines (SPEC E6, C12, H1, H5), on each monitor.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use corio::context::MonitorChoice;
use corio::net::{Stream, TcpListener, TcpStream, UnixListener, UnixStream};
use corio::{IoThread, JoinError, spawn_local, time};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

const MONITORS: [MonitorChoice; 2] = [MonitorChoice::Epoll, MonitorChoice::IoUring];

fn io_thread(monitor: MonitorChoice) -> IoThread {
    IoThread::builder()
        .name("io")
        .monitor(monitor)
        .spawn()
        .unwrap()
}

/// Runs a test in a coroutine on each monitor.
fn on_each_monitor(test: impl Fn() + Clone + Send + 'static) {
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let result = io.context().spawn(test.clone()).join();
        if let Err(error) = result.map_err(JoinError::resume_panic) {
            panic!("{error}");
        }
        io.join();
    }
}

/// Two ends of a TCP connection on loopback.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let wrap = |stream| TcpStream::try_from_std(stream).unwrap();
    (wrap(ours), wrap(theirs))
}

/// Fills the stream until it takes no more; how much that was.
fn fill(stream: &UnixStream) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    let mut total = 0;
    loop {
        match (&*stream).write(&[0; 4096]) {
            Ok(n) => total += n,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                stream.set_write_timeout(None).unwrap();
                return total;
            }
        }
    }
}

/// Reads one byte into a list, in a coroutine of its own.
fn read_one(
    stream: &Rc<UnixStream>,
    who: u32,
    order: &Rc<RefCell<Vec<(u32, u8)>>>,
) -> corio::LocalJoinHandle<()> {
    let (stream, order) = (Rc::clone(stream), Rc::clone(order));
    spawn_local(move || {
        let mut byte = [0];
        (&*stream).read_exact(&mut byte).unwrap();
        order.borrow_mut().push((who, byte[0]));
    })
}

/// Lets every coroutine that can run do so, until it waits.
fn settle() {
    for _ in 0..8 {
        corio::yield_now();
    }
}

fn echo(mut stream: impl Stream) {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf).unwrap() {
            0 => return stream.shutdown(Shutdown::Write).unwrap(),
            n => stream.write_all(&buf[..n]).unwrap(),
        }
    }
}

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
fn waiters_of_a_direction_are_served_in_order() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        let handles: Vec<_> = (0..5).map(|who| read_one(&ours, who, &order)).collect();
        settle();
        for byte in 0..5 {
            theirs.write_all(&[byte]).unwrap();
            settle();
        }
        for handle in handles {
            handle.join().unwrap();
        }
        assert_eq!(*order.borrow(), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]);
    });
}

// SPEC E6
#[test]
fn who_comes_late_queues_behind_who_waits() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        let first = read_one(&ours, 0, &order);
        settle();
        // The bytes are there, and the loop has not told the first one yet.
        theirs.write_all(&[1, 2]).unwrap();
        assert_eq!(
            ours.try_read(&mut [0]).unwrap(),
            None,
            "not past one who waits"
        );
        let mut byte = [0];
        (&*ours).read_exact(&mut byte).unwrap();
        assert_eq!((order.borrow()[0], byte), ((0, 1), [2]));
        first.join().unwrap();
    });
}

// SPEC H1
#[test]
fn what_one_waiter_leaves_wakes_the_next() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        let handles: Vec<_> = (0..3).map(|who| read_one(&ours, who, &order)).collect();
        settle();
        theirs.write_all(&[1, 2, 3]).unwrap();
        for handle in handles {
            handle.join().unwrap();
        }
        assert_eq!(*order.borrow(), [(0, 1), (1, 2), (2, 3)]);
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
fn shutdown_wakes_who_waits_on_the_same_stream() {
    on_each_monitor(|| {
        for how in [Shutdown::Write, Shutdown::Both] {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            fill(&ours);
            let ours = Rc::new(ours);
            let writer = spawn_local({
                let ours = Rc::clone(&ours);
                move || (&*ours).write(b"x").unwrap_err().kind()
            });
            settle();
            assert!(!writer.is_finished());
            ours.shutdown(how).unwrap();
            assert_eq!(writer.join().unwrap(), ErrorKind::BrokenPipe);
        }
        let (ours, _theirs) = tcp_pair();
        let ours = Rc::new(ours);
        let reader = spawn_local({
            let ours = Rc::clone(&ours);
            move || (&*ours).read(&mut [0]).unwrap()
        });
        settle();
        ours.shutdown(Shutdown::Both).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
}

// SPEC E6: also where the kernel reports nothing but the hang-up.
#[test]
fn shutdown_by_a_duplicate_wakes_a_writer() {
    on_each_monitor(|| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        fill(&ours);
        let duplicate = ours.try_clone().unwrap();
        let writer = spawn_local(move || (&ours).write(b"x").unwrap_err().kind());
        settle();
        duplicate.shutdown(Shutdown::Both).unwrap();
        assert_eq!(writer.join().unwrap(), ErrorKind::BrokenPipe);
    });
}

// SPEC E6
#[test]
fn a_late_read_times_out_and_the_next_works() {
    on_each_monitor(|| {
        const LIMIT: Duration = Duration::from_millis(20);
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(
            ours.set_read_timeout(Some(Duration::ZERO))
                .unwrap_err()
                .kind(),
            ErrorKind::InvalidInput
        );
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(
            (ours.read_timeout(), ours.write_timeout()),
            (Some(LIMIT), None)
        );
        for _ in 0..3 {
            let begin = Instant::now();
            assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(begin.elapsed() >= LIMIT);
        }
        theirs.write_all(b"x").unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 1);
    });
}

// SPEC E6: the alarm that an earlier read has left armed neither shortens the next one's time nor lengthens it.
#[test]
fn each_read_has_its_own_time() {
    on_each_monitor(|| {
        const LIMIT: Duration = Duration::from_millis(100);
        let wait_for_a_byte = |stream: &UnixStream| {
            let mut duplicate = stream.try_clone().unwrap();
            let peer = spawn_local(move || {
                time::sleep(LIMIT / 2);
                duplicate.write_all(b"x").unwrap();
            });
            peer
        };
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        for _ in 0..2 {
            let peer = wait_for_a_byte(&theirs);
            let _ = ours.read(&mut [0]); // A busy machine may be late, which is not what is tested.
            peer.join().unwrap();
        }
        while ours.try_read(&mut [0]).unwrap().is_some() {}
        let begin = Instant::now();
        assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(begin.elapsed() >= LIMIT);

        ours.set_read_timeout(Some(LIMIT * 1000)).unwrap();
        let peer = wait_for_a_byte(&theirs);
        assert_eq!(ours.read(&mut [0]).unwrap(), 1);
        peer.join().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);

        let other = spawn_local(move || ours.read(&mut [0]).unwrap_err().kind());
        assert_eq!(
            other.join().unwrap(),
            ErrorKind::TimedOut,
            "also in another coroutine"
        );
    });
}

// SPEC E6
#[test]
fn time_outs_of_several_waiters_do_not_mix() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Rc::new(ours);
        let handles: Vec<_> = [60, 20, 40]
            .map(|ms| {
                let ours = Rc::clone(&ours);
                spawn_local(move || {
                    let limit = Duration::from_millis(ms);
                    ours.set_read_timeout(Some(limit)).unwrap();
                    let begin = Instant::now();
                    let kind = (&*ours).read(&mut [0]).unwrap_err().kind();
                    assert!(begin.elapsed() >= limit);
                    kind
                })
            })
            .into_iter()
            .collect();
        for handle in handles {
            assert_eq!(handle.join().unwrap(), ErrorKind::TimedOut);
        }
        theirs.write_all(b"x").unwrap();
        assert_eq!(
            (&*ours).read(&mut [0]).unwrap(),
            1,
            "those who left stand in nobody's way"
        );
    });
}

// SPEC E6
#[test]
fn a_write_times_out_when_the_peer_does_not_read() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let filled = fill(&ours); // Ends by the time-out.
        let reader = spawn_local(move || {
            let mut buf = vec![0; filled];
            theirs.read_exact(&mut buf).unwrap();
            theirs
        });
        assert_eq!((&ours).write(b"x").unwrap(), 1);
        drop(reader.join());
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

/// Reads twice when it is dropped, and reports both.
struct ReadOnDrop(UnixStream, mpsc::Sender<[Result<usize, Option<i32>>; 2]>);

impl Drop for ReadOnDrop {
    fn drop(&mut self) {
        let mut read = || {
            self.0
                .read(&mut [0; 8])
                .map_err(|error| error.raw_os_error())
        };
        let results = [read(), read()];
        self.1.send(results).unwrap();
    }
}

// SPEC C12
#[test]
fn a_home_that_ends_cancels_who_waits() {
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let (tx, rx) = mpsc::channel();
        let (waits, waiting) = mpsc::channel();
        let handle = io.context().spawn(move || {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let (kept, mut peer) = UnixStream::pair().unwrap();
            let mut kept = ReadOnDrop(kept, tx);
            // Teaches the stream that tries after short reads fail: they are made all the same while unwinding.
            for _ in 0..4 {
                let answer = spawn_local(move || {
                    settle();
                    peer.write_all(b"x").unwrap();
                    peer
                });
                kept.0.read(&mut [0; 8]).unwrap();
                peer = answer.join().unwrap();
            }
            peer.write_all(b"abc").unwrap();
            waits.send(()).unwrap();
            let _ = (&ours).read(&mut [0]);
            unreachable!("nobody writes");
        });
        waiting.recv().unwrap();
        io.join();
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
        let [there, absent] = rx.recv().unwrap();
        assert_eq!((there, absent), (Ok(3), Err(Some(libc::ECANCELED))));
    }
}

// SPEC C12
#[test]
fn a_waiter_that_is_cancelled_passes_its_event_on() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        let reached = Rc::new(Cell::new(false));
        let first = corio::Coroutine::new({
            let (ours, reached) = (Rc::clone(&ours), Rc::clone(&reached));
            move || {
                let _ = (&*ours).read(&mut [0]);
                reached.set(true);
            }
        });
        first.enter();
        let second = read_one(&ours, 2, &order);
        settle();
        drop(first); // Cancels it; it learns when it is woken.
        theirs.write_all(&[9]).unwrap();
        second.join().unwrap();
        assert_eq!(*order.borrow(), [(2, 9)]);
        assert!(!reached.get());
    });
}

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
                // Blocks the loop, which a coroutine should not do, so that the loop has not turned when it is back.
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

/// This thread's CPU time.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.try_into().unwrap(),
        now.tv_nsec.try_into().unwrap(),
    )
}

// SPEC H1, E6: lazy disarm.
#[test]
fn readable_data_that_nobody_waits_for_does_not_spin_the_loop() {
    on_each_monitor(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        let first = read_one(&ours, 0, &order);
        settle();
        (&theirs).write_all(&[1, 2]).unwrap();
        first.join().unwrap();
        fill(&theirs);
        let begin = cpu_time();
        time::sleep(Duration::from_millis(200));
        let used = cpu_time() - begin;
        assert!(used < Duration::from_millis(20), "the loop used {used:?}");
        let mut rest = [0; 1];
        (&*ours).read_exact(&mut rest).unwrap();
        assert_eq!(rest, [2], "and what was left is still seen");
        let waiting = read_one(&ours, 1, &order);
        waiting.join().unwrap();
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
            // Two bytes, of which one is left, so that the old socket has an event to come when it is closed.
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

// SPEC E6: nobody starves for a peer that is always faster.
#[test]
fn a_stream_that_never_waits_lets_others_run() {
    on_each_monitor(|| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let filled = fill(&theirs);
        let (read, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let other = spawn_local({
            let (read, seen) = (Rc::clone(&read), Rc::clone(&seen));
            move || seen.set(read.get())
        });
        while read.get() < filled {
            ours.read_exact(&mut [0]).unwrap();
            read.set(read.get() + 1);
        }
        assert!(other.is_finished());
        assert!(
            seen.get() < 1000,
            "the other one ran after {} calls",
            seen.get()
        );
    });
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

#[test]
fn streams_can_be_sent() {
    fn send<T: Send>() {}
    send::<TcpStream>();
    send::<UnixStream>();
    send::<TcpListener>();
    send::<UnixListener>();
}
