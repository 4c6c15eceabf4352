//! Waiting: order, time-outs, cancelling, and leaving the loop alone.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use corio::net::UnixStream;
use corio::{JoinError, spawn_local, time};

use super::{MONITORS, fill, io_thread, on_each_monitor, read_one, settle, tcp_pair};

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
fn who_waits_for_a_peer_to_catch_up_goes_on_when_it_has_or_the_time_is_over() {
    on_each_monitor(|| {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.set_send_buffer(100_000).unwrap();
        let ms = Duration::from_millis;
        assert!(ours.wait_writable(ms(0)).unwrap(), "nothing is unread");
        // Until more than a quarter is unread.
        let piece = [1; 1000];
        let mut sent = 0;
        while ours.wait_writable(ms(0)).unwrap() {
            ours.write_all(&piece).unwrap();
            sent += piece.len();
        }
        ours.write_all(&piece).unwrap(); // It has room still.
        sent += piece.len();
        let begin = Instant::now();
        assert!(!ours.wait_writable(ms(20)).unwrap());
        assert!(begin.elapsed() >= ms(20));
        let reads = spawn_local(move || {
            let mut theirs = theirs;
            theirs.read_exact(&mut vec![0; sent]).unwrap();
            theirs
        });
        assert!(ours.wait_writable(Duration::from_secs(60)).unwrap());
        drop(reads.join().unwrap());
        assert!(ours.wait_writable(ms(0)).unwrap(), "the peer is gone");
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

// SPEC E6: the alarm that an earlier read has left armed neither shortens the next one's time nor
// lengthens it.
#[test]
fn each_read_has_its_own_time() {
    on_each_monitor(|| {
        const LIMIT: Duration = Duration::from_millis(100);
        let wait_for_a_byte = |stream: &UnixStream| {
            let mut duplicate = stream.try_clone().unwrap();
            spawn_local(move || {
                time::sleep(LIMIT / 2);
                duplicate.write_all(b"x").unwrap();
            })
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
            // Teaches the stream that tries after short reads fail: they are made all the same
            // while unwinding.
            for _ in 0..4 {
                let answer = spawn_local(move || {
                    settle();
                    peer.write_all(b"x").unwrap();
                    peer
                });
                assert_eq!(kept.0.read(&mut [0; 8]).unwrap(), 1);
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

// SPEC A3
#[test]
fn a_waiter_that_panics_strands_nobody() {
    on_each_monitor(|| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, order) = (Rc::new(ours), Rc::default());
        // A raw coroutine's panic goes to whoever enters it: here the loop, which reports it and
        // goes on.
        let first = corio::Coroutine::new({
            let ours = Rc::clone(&ours);
            move || {
                (&*ours).read_exact(&mut [0]).unwrap();
                panic!("expected by the test");
            }
        });
        first.enter();
        let second = read_one(&ours, 2, &order);
        settle();
        theirs.write_all(&[8, 9]).unwrap();
        second.join().unwrap();
        assert_eq!(*order.borrow(), [(2, 9)]);
    });
}
