//! More work than a loop likes, and events that nobody waits for.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use corio::context::BottomHalf;
use corio::engine::EngineChoice;
use corio::fs::File;
use corio::net::{TcpStream, UnixStream};
use corio::{AioContext, Coroutine, IoThread};

use super::{MONITORS, PATIENCE, io_thread, settle, settle_here};

/// How much of its time this context's home computes while nothing is to be done.
fn share_used_at_rest(context: &AioContext) -> f64 {
    let measure = || {
        let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let (before, begin) = (cpu(), Instant::now());
        corio::time::sleep(Duration::from_millis(200));
        let used = Duration::try_from(cpu() - before).unwrap();
        used.as_secs_f64() / begin.elapsed().as_secs_f64()
    };
    context.spawn(measure).join().unwrap()
}

// SPEC E1, M5
#[test]
fn a_descriptor_that_is_not_ready_is_not_asked_at_full_speed() {
    for monitor in MONITORS {
        let io = IoThread::builder()
            .monitor(monitor)
            .engine(EngineChoice::IoUring)
            .spawn()
            .unwrap();
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let ours = fd.try_clone().unwrap();
        let reader = io.context().spawn(move || {
            let mut value = [0; 8];
            let n = File::from(ours).read_at(&mut value, 0).unwrap();
            (n, u64::from_ne_bytes(value))
        });
        settle(&io);
        let share = share_used_at_rest(io.context());
        assert!(share < 0.3, "{monitor:?}: {share} of the time");
        rustix::io::write(&fd, &7u64.to_ne_bytes()).unwrap();
        assert_eq!(reader.join().unwrap(), (8, 7));
    }
}

// SPEC C12, E5: what says that a cancellation came too late is taken, too.
#[test]
fn a_cancellation_that_comes_too_late_does_not_spin_the_loop() {
    for monitor in MONITORS {
        let io = IoThread::builder()
            .monitor(monitor)
            .engine(EngineChoice::IoUring)
            .spawn()
            .unwrap();
        let cancel = io.context().spawn(|| {
            let (read, mut write) = std::io::pipe().unwrap();
            let read = File::from(OwnedFd::from(read));
            let reader = Coroutine::new(move || drop(read.read_at(&mut [0; 8], 0)));
            reader.enter();
            settle_here();
            write.write_all(b"x").unwrap();
            // Long enough for the next turn to look at the ring, which it does before this goes on.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(1) {}
            corio::yield_now();
            drop(reader);
            corio::yield_now();
        });
        cancel.join().unwrap();
        let share = share_used_at_rest(io.context());
        assert!(share < 0.3, "{monitor:?}: {share} of the time");
    }
}

/// Sends a byte of urgent data.
fn send_urgent(fd: impl AsFd) -> bool {
    let flags = rustix::net::SendFlags::OOB | rustix::net::SendFlags::NOSIGNAL;
    rustix::net::send(fd, b"!", flags).is_ok()
}

// SPEC H2: what a peer can send must not keep the loop busy while nobody can read it.
#[test]
fn urgent_data_does_not_spin_the_loop() {
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let (unix, mut unix_peer) = StdUnixStream::pair().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp_peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (tcp, _) = listener.accept().unwrap();
        let mut unix = UnixStream::try_from_std(unix).unwrap();
        let mut tcp = TcpStream::try_from_std(tcp).unwrap();
        let readers = [
            io.context().spawn(move || unix.read(&mut [0; 8]).map(drop)),
            io.context().spawn(move || tcp.read(&mut [0; 8]).map(drop)),
        ];
        settle(&io);
        for _ in 0..3 {
            send_urgent(&unix_peer); // Kernels may be built without it.
            assert!(send_urgent(&tcp_peer));
            let share = share_used_at_rest(io.context());
            assert!(share < 0.3, "{monitor:?}: {share} of the time");
        }
        unix_peer.write_all(b"x").unwrap();
        tcp_peer.write_all(b"x").unwrap();
        for reader in readers {
            reader.join().unwrap().unwrap();
        }
    }
}

// SPEC A1: while work is pending, turns skip the monitor for at most 50 us.
#[test]
fn long_bottom_halves_do_not_hide_the_descriptors() {
    let io = IoThread::builder().spawn().unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let own: Arc<Mutex<Option<BottomHalf>>> = Arc::default();
    let long = io.context().bottom_half("long", {
        let (turns, own) = (Arc::clone(&turns), Arc::clone(&own));
        move || {
            turns.fetch_add(1, Ordering::Relaxed);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(5) {}
            let own = own.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(own) = own.as_ref() {
                own.schedule();
            }
        }
    });
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    let (tx, rx) = mpsc::channel();
    let reader = io.context().spawn({
        let turns = Arc::clone(&turns);
        move || {
            let mut stream = UnixStream::try_from_std(ours).unwrap();
            for _ in 0..20 {
                stream.read_exact(&mut [0]).unwrap();
                tx.send(turns.load(Ordering::Relaxed)).unwrap();
            }
        }
    });
    long.schedule();
    *own.lock().unwrap() = Some(long);
    settle(&io);
    let mut worst = 0;
    for _ in 0..20 {
        let before = turns.load(Ordering::Relaxed);
        theirs.write_all(b"x").unwrap();
        worst = worst.max(rx.recv_timeout(PATIENCE).unwrap() - before);
    }
    *own.lock().unwrap() = None;
    reader.join().unwrap();
    // One that ran already when the byte came, and a machine that had other things to do.
    assert!(
        worst <= 4,
        "{worst} turns of 5 ms before the descriptor is looked at"
    );
}
