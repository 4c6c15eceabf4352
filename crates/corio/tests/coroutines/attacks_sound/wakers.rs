//! Wakers that are fired while their coroutine ends, while it reads from a disk, and long after its
//! stack has become others'.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use corio::context::MonitorChoice;
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio::{AioContext, CoWaker, Coroutine, IoThread, JoinError};

use super::{io, settle};

/// What a pool's thread does: fires a token some times.
type Fire = (CoWaker, usize);

/// Threads that fire tokens.
struct Pool {
    send: mpsc::Sender<Fire>,
    threads: Vec<thread::JoinHandle<usize>>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let (send, receive) = mpsc::channel::<Fire>();
        let receive = Arc::new(Mutex::new(receive));
        let work = |_| {
            let receive = Arc::clone(&receive);
            thread::spawn(move || {
                let mut fired = 0;
                loop {
                    let next = receive.lock().unwrap().recv();
                    let Ok((waker, times)) = next else {
                        return fired;
                    };
                    for _ in 0..times {
                        waker.wake();
                        fired += 1;
                    }
                }
            })
        };
        let threads = (0..threads).map(work).collect();
        Self { send, threads }
    }

    /// How often tokens were fired.
    fn end(self) -> usize {
        drop(self.send);
        let threads = self.threads.into_iter();
        threads.map(|thread| thread.join().unwrap()).sum()
    }
}

// SPEC S7: fired by a pool's threads before, while and after their coroutines end; whoever gets the
// stack next is woken by its own token alone.
#[test]
fn tokens_that_a_pool_fires_while_their_coroutines_end_wake_nobody_else() {
    const ROUNDS: usize = 20_000;
    let pool = Pool::new(3);
    let io = io();
    let send = pool.send.clone();
    let parked = io.context().spawn(move || {
        let mut parked = 0;
        for round in 0..ROUNDS {
            // One that is fired at and ends, now or when it is hit.
            let fire = send.clone();
            let ends = corio::spawn_local(move || {
                fire.send((CoWaker::current().unwrap(), 1 + round % 4))
                    .unwrap();
                if round % 2 == 0 {
                    corio::park();
                }
            });
            ends.join().unwrap();
            // One that takes its stack, and waits for this one only.
            let told = Arc::new(AtomicBool::new(false));
            let (tell, (tx, rx)) = (Arc::clone(&told), mpsc::channel());
            let waits = corio::spawn_local(move || {
                tx.send(CoWaker::current().unwrap()).unwrap();
                corio::park();
                assert!(tell.load(Ordering::Relaxed), "woken by who meant another");
            });
            corio::yield_now();
            corio::yield_now();
            let waker = rx.recv().unwrap();
            told.store(true, Ordering::Relaxed);
            waker.wake();
            waits.join().unwrap();
            parked += 1;
        }
        parked
    });
    assert_eq!(parked.join().unwrap(), ROUNDS);
    assert!(pool.end() >= ROUNDS);
}

// SPEC S7: a stack that a million others have had since.
#[test]
fn a_token_is_stale_after_its_stack_was_used_a_million_times() {
    const TIMES: usize = 1_000_000;
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let (tx, rx) = mpsc::channel();
            let keep = tx.clone();
            let first = Coroutine::new(move || keep.send(CoWaker::current().unwrap()).unwrap());
            first.enter();
            let old = rx.recv().unwrap();
            let reuses = std::rc::Rc::new(std::cell::Cell::new(0));
            let mut seen = Vec::new();
            for i in 0..TIMES {
                let (reuses, tx) = (std::rc::Rc::clone(&reuses), tx.clone());
                let asks = i % 100_000 == 0;
                let co = Coroutine::new(move || {
                    reuses.set(reuses.get() + 1);
                    if asks {
                        tx.send(CoWaker::current().unwrap()).unwrap();
                        corio::park();
                        corio::park();
                    }
                });
                co.enter();
                if !asks {
                    continue;
                }
                let own = rx.recv().unwrap();
                // It is the same stack: the debug form shows where and which.
                let place = |waker: &CoWaker| {
                    let text = format!("{waker:?}");
                    let generation = text.find("generation").unwrap();
                    text[..generation].to_owned()
                };
                assert_eq!(place(&own), place(&old));
                assert_ne!(own, old);
                seen.push(own);
                // None of those before it wakes it, from here or from elsewhere.
                let before: Vec<_> = seen.iter().rev().skip(1).copied().chain([old]).collect();
                let remote = before.clone();
                thread::spawn(move || remote.into_iter().for_each(CoWaker::wake))
                    .join()
                    .unwrap();
                before.into_iter().for_each(CoWaker::wake);
                own.wake();
                context.poll(false).unwrap();
                assert!(!co.is_done(), "woken twice");
                own.wake();
                context.poll(false).unwrap();
                assert!(co.is_done());
            }
            assert_eq!(reuses.get(), TIMES);
        })
        .unwrap();
}

/// Both engines, on both monitors.
fn engines() -> impl Iterator<Item = IoThread> {
    let choices = [EngineChoice::IoUring, EngineChoice::Threads];
    choices.into_iter().flat_map(|engine| {
        MonitorChoice::ALL.map(|monitor| {
            let builder = IoThread::builder().monitor(monitor).engine(engine);
            builder.spawn().unwrap()
        })
    })
}

// SPEC E5, S7: a wake is a hint: the frame and its buffer stay until the read is done, whoever
// wakes the reader meanwhile.
#[test]
fn a_reader_that_is_woken_stays_until_its_read_is_done() {
    for io in engines() {
        let stop = Arc::new(AtomicBool::new(false));
        let (tx, rx) = mpsc::channel::<CoWaker>();
        let firing = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut fired = 0_usize;
                for waker in rx {
                    stop.store(false, Ordering::Release);
                    while !stop.load(Ordering::Acquire) {
                        waker.wake();
                        fired += 1;
                    }
                }
                fired
            }
        });
        let reads = io.context().spawn(move || {
            let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
            let data: Vec<u8> = (0..=250_u8).cycle().take(1 << 20).collect();
            file.write_all_at(&data, 0).unwrap();
            tx.send(CoWaker::current().unwrap()).unwrap();
            for round in 0..200 {
                let mut back = vec![0; 1 << 20];
                file.read_exact_at(&mut back, 0).unwrap();
                assert!(back == data, "round {round}");
                file.sync_data().unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        reads.join().unwrap();
        assert_ne!(firing.join().unwrap(), 0);
    }
}

/// Whether a context that was to use a ring does.
fn has_ring(io: &IoThread) -> bool {
    let chooses = io.context().spawn(|| {
        let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        file.read_at(&mut [0; 1], 0).unwrap()
    });
    chooses.join().unwrap();
    io.context().engine().unwrap().kind == EngineKind::IoUring
}

// SPEC E5, S7: in the middle of it for sure: a read from a pipe that has nothing.
#[test]
fn a_buffer_that_the_kernel_has_stays_while_its_owner_is_woken() {
    for monitor in MonitorChoice::ALL {
        let io = IoThread::builder()
            .monitor(monitor)
            .engine(EngineChoice::IoUring)
            .spawn()
            .unwrap();
        if !has_ring(&io) {
            return println!("SKIPPED: a read in flight while its reader is woken: no io_uring");
        }
        let (read, mut write) = io::pipe().unwrap();
        let file = File::from(OwnedFd::from(read));
        let (tx, rx) = mpsc::channel();
        let reader = io.context().spawn(move || {
            tx.send(CoWaker::current().unwrap()).unwrap();
            let mut buf = [0; 4];
            let n = file.read_at(&mut buf, 0).unwrap();
            (n, buf)
        });
        let waker = rx.recv().unwrap();
        for _ in 0..100 {
            waker.wake();
            settle(&io);
            assert!(!reader.is_finished(), "{monitor:?}");
        }
        write.write_all(b"disk").unwrap();
        assert_eq!(reader.join().unwrap(), (4, *b"disk"));
    }
}

// SPEC E5, S7, C12: the same on a worker, which has the buffer and waits; cancelled, too.
#[test]
fn a_buffer_that_a_worker_has_stays_while_its_owner_is_woken_and_cancelled() {
    let io = io();
    let (tx, rx) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let filled = Arc::new(AtomicUsize::new(0));
    let note = Arc::clone(&filled);
    let owner = io.context().spawn(move || {
        let mut buf = [0_u8; 4096];
        let waker = CoWaker::current().unwrap();
        let borrowed = &mut buf;
        corio::engine::unblock(move || {
            tx.send(waker).unwrap();
            wait.recv().unwrap();
            borrowed.fill(0x5a);
        })
        .unwrap();
        let whole = buf.iter().filter(|&&byte| byte == 0x5a).count();
        note.store(whole, Ordering::Relaxed);
        corio::park();
        unreachable!("it is cancelled");
    });
    let waker = rx.recv().unwrap();
    owner.cancel().unwrap();
    for _ in 0..100 {
        waker.wake();
        settle(&io);
        assert!(!owner.is_finished(), "a worker writes to its frame");
    }
    go.send(()).unwrap();
    let outcome: Result<(), _> = owner.join();
    assert!(matches!(outcome, Err(JoinError::Cancelled)));
    assert_eq!(filled.load(Ordering::Relaxed), 4096);
}
