//! What ends while something else does: homes with requests in flight, sockets that outlive their
//! home, descriptors that are dropped while a monitor knows them.

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corio::engine::EngineChoice;
use corio::fs::File;
use corio::net::{TcpListener, TcpStream, UnixStream};
use corio::{AioContext, Coroutine, IoThread};

use super::{MONITORS, PATIENCE, eventually, io_thread, settle, settle_here};

/// Less than the grace that a home's end has.
const PROMPT: Duration = Duration::from_secs(4);

/// Tells when it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn pipe() -> (File, io::PipeWriter) {
    let (read, write) = io::pipe().unwrap();
    (File::from(OwnedFd::from(read)), write)
}

/// Parks until it is cancelled.
fn park_for_ever() -> ! {
    loop {
        corio::park();
    }
}

// SPEC E5: what may never complete is asked back from the kernel, and unwinds.
#[test]
fn a_home_that_ends_cancels_its_requests() {
    for monitor in MONITORS {
        let io = IoThread::builder()
            .monitor(monitor)
            .engine(EngineChoice::IoUring)
            .spawn()
            .unwrap();
        let (read, _write) = pipe();
        let (tx, rx) = mpsc::channel();
        let reader = io.context().spawn(move || {
            let _told = Told(tx);
            let result = read.read_at(&mut [0; 8], 0);
            unreachable!("it unwinds instead of {result:?}");
        });
        settle(&io);
        assert!(!reader.is_finished());
        let begin = Instant::now();
        io.join();
        assert!(begin.elapsed() < PROMPT, "{monitor:?}: the home waited");
        rx.try_recv().expect("the reader's frame is unwound");
        reader.join().unwrap_err();
    }
}

// SPEC C12, E5: the same for one coroutine; what comes after it in the ring is another's.
#[test]
fn a_cancelled_coroutine_takes_its_request_back_and_no_other() {
    for monitor in MONITORS {
        let io = IoThread::builder()
            .monitor(monitor)
            .engine(EngineChoice::IoUring)
            .spawn()
            .unwrap();
        let test = || {
            let (read, write) = pipe();
            let (other, mut other_write) = pipe();
            let (tx, rx) = mpsc::channel();
            let reader = Coroutine::new(move || {
                let _told = Told(tx);
                let _ = read.read_at(&mut [0; 8], 0);
            });
            reader.enter();
            let other = corio::spawn(move || {
                let mut buf = [0; 3];
                let n = other.read_at(&mut buf, 0).unwrap();
                (n, buf)
            });
            settle_here();
            drop(reader);
            while rx.try_recv().is_err() {
                corio::yield_now();
            }
            assert!(!other.is_finished());
            io::Write::write_all(&mut other_write, b"abc").unwrap();
            drop((other_write, write));
            other.join().unwrap()
        };
        assert_eq!(io.context().spawn(test).join().unwrap(), (3, *b"abc"));
    }
}

// SPEC C12: one that never waits for anything but files ends, too.
#[test]
fn a_coroutine_that_only_reads_files_is_cancelled() {
    for engine in [EngineChoice::IoUring, EngineChoice::Threads] {
        let io = IoThread::builder().engine(engine).spawn().unwrap();
        let (tx, rx) = mpsc::channel();
        let reader = io.context().spawn(move || {
            let _told = Told(tx);
            let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
            loop {
                file.read_at(&mut [0; 8], 0).unwrap();
            }
        });
        settle(&io);
        assert!(!reader.is_finished());
        let begin = Instant::now();
        io.join();
        assert!(begin.elapsed() < PROMPT, "{engine:?}: the home waited");
        rx.try_recv().expect("it is unwound");
    }
}

// SPEC S6: a socket that ends elsewhere while its home ends leaves a request in the home's context,
// and must not be what keeps that.
#[test]
fn a_socket_that_ends_elsewhere_while_its_home_ends_keeps_no_context() {
    struct Last {
        stream: Option<UnixStream>,
        to: mpsc::Sender<UnixStream>,
        done: mpsc::Receiver<()>,
    }
    impl Drop for Last {
        fn drop(&mut self) {
            self.to.send(self.stream.take().unwrap()).unwrap();
            self.done.recv().unwrap();
        }
    }
    let context = AioContext::new().unwrap();
    let (to, streams) = mpsc::channel::<UnixStream>();
    let (ack, done) = mpsc::channel();
    let dropper = std::thread::spawn(move || {
        for stream in streams {
            drop(stream);
            ack.send(()).unwrap();
        }
    });
    let (tx, waits) = mpsc::channel();
    let home = || {
        let _waits = context.spawn(move || {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let _last = Last {
                stream: Some(timed_out(ours)),
                to,
                done,
            };
            tx.send(()).unwrap();
            park_for_ever();
        });
        while waits.try_recv().is_err() {
            context.poll(true).unwrap();
        }
    };
    context.enter_home(home).unwrap();
    dropper.join().unwrap();
    let token = Arc::new(());
    let kept = Arc::downgrade(&token);
    // What is queued goes with the context.
    context.schedule_oneshot("never runs", move || drop(token));
    drop(context);
    assert!(
        kept.upgrade().is_none(),
        "what is queued in the context keeps it"
    );
}

/// A stream that has waited for its reader, so that its home's monitor knows it.
fn timed_out(stream: UnixStream) -> UnixStream {
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    let late = (&stream).read(&mut [0]).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    stream
}

// SPEC S6: when the last clone of a context goes, what was spawned on it is cancelled; a socket is
// no clone of its home's context.
#[test]
fn a_socket_is_no_clone_of_its_context() {
    let io = IoThread::builder().spawn().unwrap();
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    let wait = move || timed_out(UnixStream::try_from_std(ours).unwrap());
    let stream = io.context().spawn(wait).join().unwrap();
    let context = io.context().clone();
    io.join();
    let late = context.spawn(move || drop(stream));
    drop(context);
    assert!(late.is_finished(), "it waits for a home that never comes");
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

// SPEC H5, M5
#[test]
fn an_address_is_free_once_its_listener_is_dropped() {
    for monitor in MONITORS {
        let again = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = corio::spawn(move || TcpStream::connect(address).map(drop));
            drop(listener.accept().unwrap());
            client.join().unwrap().unwrap();
            settle_here(); // Its interest stays armed.
            drop(listener);
            TcpListener::bind(address).map(drop)
        };
        let result = io_thread(monitor).context().spawn(again).join().unwrap();
        assert!(result.is_ok(), "{monitor:?}: {result:?}");
    }
}

// SPEC H5, M5
#[test]
fn the_peer_of_a_dropped_stream_sees_the_end_at_once() {
    for monitor in MONITORS {
        let seen = || {
            let (ours, theirs) = StdUnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let ours = timed_out(UnixStream::try_from_std(ours).unwrap());
            settle_here();
            drop(ours);
            (&theirs).read(&mut [0]).map_err(|error| error.kind())
        };
        let seen = io_thread(monitor).context().spawn(seen).join().unwrap();
        assert_eq!(seen, Ok(0), "{monitor:?}");
    }
}

// SPEC C12: while a stack unwinds, I/O that would wait returns ECANCELED, also where what unwinds
// it is another panic than the cancellation.
#[test]
fn a_destructor_that_waits_for_a_peer_while_it_panics_keeps_no_home() {
    struct Talks(UnixStream, mpsc::Sender<()>);
    impl Drop for Talks {
        fn drop(&mut self) {
            self.1.send(()).unwrap();
            let _ = (&self.0).read(&mut [0]); // The peer says nothing.
        }
    }
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let (ours, _theirs) = StdUnixStream::pair().unwrap();
        let (tx, rx) = mpsc::channel();
        let _bystander = io.context().spawn(move || {
            let _told = Told(tx);
            park_for_ever();
        });
        let (tx, talks) = mpsc::channel();
        let _panics = io.context().spawn(move || {
            let _talks = Talks(UnixStream::try_from_std(ours).unwrap(), tx);
            panic!("as the test wants");
        });
        talks.recv_timeout(PATIENCE).unwrap();
        let begin = Instant::now();
        io.join();
        assert!(begin.elapsed() < PROMPT, "{monitor:?}: the home waited");
        rx.try_recv()
            .expect("a coroutine that only parks is unwound");
    }
}

// SPEC A1: counted in a process of its own, where no other test opens any.
#[test]
fn homes_leak_no_descriptors() {
    const CHILD: &str = "CORIO_ATTACK_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "endings::homes_leak_no_descriptors",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for monitor in MONITORS {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let home = || {
            let _reads = context.spawn(|| {
                let (ours, _theirs) = UnixStream::pair().unwrap();
                let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
                let _ = file.read_at(&mut [0; 4], 0);
                let _ = (&ours).read(&mut [0]);
            });
            for _ in 0..4 {
                context.poll(false).unwrap();
            }
        };
        let before = count();
        for _ in 0..200 {
            context.enter_home(home).unwrap();
        }
        assert!(eventually(|| count() == before), "{monitor:?}");
    }
}
