//! Handlers that are added, changed and removed by any thread (SPEC H1, H3, H5).

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use corio::context::{Interest, RemoteHandler};
use corio::{AioContext, IoThread};

use super::{beside_each_monitor, with_each_monitor};

const PATIENCE: Duration = Duration::from_secs(5);

/// Turns the loop until `done`, for at most 5 s.
fn turn_until(context: &AioContext, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let tick = context.timer(|| ());
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        tick.arm_after(Duration::from_millis(5));
        context.poll(true).unwrap();
    }
}

/// Some whole turns of a loop that another thread runs.
fn settle(io: &IoThread) {
    for _ in 0..3 {
        let (tx, rx) = mpsc::channel();
        io.context()
            .schedule_oneshot("settle", move || tx.send(()).unwrap());
        rx.recv_timeout(PATIENCE).unwrap();
    }
}

/// What tells on which thread it goes.
struct Tells(mpsc::Sender<ThreadId>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap_or_default();
    }
}

fn counting(
    context: &AioContext,
    ours: UnixStream,
    interest: Interest,
) -> (RemoteHandler, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let handler = context.add_handler(ours, interest, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (handler, calls)
}

fn eventually(done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        thread::yield_now();
    }
}

// SPEC H1, H3
#[test]
fn another_thread_adds_changes_and_removes() {
    beside_each_monitor(|io| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (handler, calls) = counting(io.context(), ours, Interest::READ);
        settle(io);
        assert_eq!(calls.load(Ordering::Relaxed), 0, "nothing is sent");
        theirs.write_all(b"x").unwrap();
        eventually(|| calls.load(Ordering::Relaxed) >= 2); // It is not drained.
        handler.set_interest(Interest::default());
        assert_eq!(handler.interest(), Interest::default());
        settle(io);
        let still = calls.load(Ordering::Relaxed);
        settle(io);
        assert_eq!(calls.load(Ordering::Relaxed), still);
        handler.set_interest(Interest::WRITE);
        eventually(|| calls.load(Ordering::Relaxed) > still);
        drop(handler);
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
        let at_end = calls.load(Ordering::Relaxed);
        settle(io);
        assert_eq!(calls.load(Ordering::Relaxed), at_end);
    });
}

// SPEC H1
#[test]
fn it_waits_for_a_home_and_outlives_each() {
    with_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (handler, calls) = counting(&context, ours, Interest::READ);
        theirs.write_all(b"x").unwrap();
        for home in 1..=3 {
            let before = calls.load(Ordering::Relaxed);
            let called = || calls.load(Ordering::Relaxed) > before;
            context
                .enter_home(|| turn_until(&context, called))
                .unwrap_or_else(|error| panic!("home {home}: {error}"));
        }
        // Between homes it is changed, and then removed.
        handler.set_interest(Interest::default());
        let before = calls.load(Ordering::Relaxed);
        let some_turns = || (0..3).for_each(|_| _ = context.poll(false).unwrap());
        context.enter_home(some_turns).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), before);
        drop(handler);
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
        context.enter_home(some_turns).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), before);
    });
}

// SPEC H1, H3: the home is held up, so that it has not seen the one before it learns of the other.
#[test]
fn one_that_is_removed_before_the_home_saw_it_is_never_called() {
    beside_each_monitor(|io| {
        let (go_on, wait) = mpsc::channel::<()>();
        io.context()
            .schedule_oneshot("hold up", move || wait.recv().unwrap_or_default());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let (handler, calls) = counting(io.context(), ours, Interest::READ);
        handler.set_interest(Interest::WRITE);
        drop(handler);
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
        drop(go_on);
        settle(io);
        assert_eq!(calls.load(Ordering::Relaxed), 0);
    });
}

// SPEC H3: both are ready in the same turn, and whichever runs first removes the other.
#[test]
fn one_that_is_removed_by_another_in_the_same_turn_is_not_called() {
    with_each_monitor(|context| {
        let both: Arc<Mutex<Vec<RemoteHandler>>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let mut peers = Vec::new();
        for _ in 0..2 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(b"x").unwrap();
            let (all, count) = (Arc::clone(&both), Arc::clone(&calls));
            let handler = context.add_handler(ours, Interest::READ, move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                let removed = std::mem::take(&mut *all.lock().unwrap());
                drop(removed); // Itself, too.
            });
            both.lock().unwrap().push(handler);
            peers.push(theirs);
        }
        let called = || calls.load(Ordering::Relaxed) > 0;
        context
            .enter_home(|| {
                turn_until(&context, called);
                for _ in 0..3 {
                    context.poll(false).unwrap();
                }
            })
            .unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        for mut peer in peers {
            assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
        }
    });
}

// SPEC H1, A3: from inside a callback, whose nested poll runs the new one, and removes the old one
// while it is on the stack.
#[test]
fn a_callback_adds_one_and_a_nested_poll_runs_it() {
    with_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let slot: Arc<Mutex<Option<RemoteHandler>>> = Arc::default();
        let (dropped, drops) = mpsc::channel();
        let nested_ran = Arc::new(AtomicBool::new(false));
        let outer = context.add_handler(ours, Interest::READ, {
            let (inside, slot, ran) = (context.clone(), Arc::clone(&slot), Arc::clone(&nested_ran));
            let tells = Tells(dropped);
            move |_| {
                let own = slot.lock().unwrap().take();
                drop(own);
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                theirs.write_all(b"x").unwrap();
                let (_nested, calls) = counting(&inside, ours, Interest::READ);
                turn_until(&inside, || calls.load(Ordering::Relaxed) > 0);
                ran.store(true, Ordering::Relaxed);
                let _ = &tells; // Alive until the callback has returned.
            }
        });
        *slot.lock().unwrap() = Some(outer);
        context
            .enter_home(|| turn_until(&context, || nested_ran.load(Ordering::Relaxed)))
            .unwrap();
        assert_eq!(drops.recv().unwrap(), thread::current().id());
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
    });
}

// SPEC A3
#[test]
fn what_a_home_has_taken_up_is_dropped_there() {
    beside_each_monitor(|io| {
        let home = io
            .context()
            .spawn(|| thread::current().id())
            .join()
            .unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ((tx, rx), (called, calls)) = (mpsc::channel(), mpsc::sync_channel(1));
        let tells = Tells(tx);
        let handler = io.context().add_handler(ours, Interest::READ, move |_| {
            called.try_send(()).unwrap_or_default();
            let _ = &tells;
        });
        theirs.write_all(b"x").unwrap();
        calls.recv_timeout(PATIENCE).unwrap();
        drop(handler);
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), home);
    });
}

// SPEC H5: numbers are reused at once, and each handler sees what was sent to its own descriptor.
#[test]
fn a_number_that_is_used_again_is_another_handlers() {
    beside_each_monitor(|io| {
        let mut numbers = std::collections::HashSet::new();
        for round in 0..300u32 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            numbers.insert(std::os::fd::AsRawFd::as_raw_fd(&ours));
            ours.set_nonblocking(true).unwrap();
            let (tx, rx) = mpsc::channel();
            let ours = Arc::new(ours);
            let reader = Arc::clone(&ours);
            let handler = io.context().add_handler(ours, Interest::READ, move |_| {
                let mut word = [0; 4];
                (&*reader).read_exact(&mut word).unwrap();
                tx.send(u32::from_le_bytes(word)).unwrap();
            });
            theirs.write_all(&round.to_le_bytes()).unwrap();
            assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), round);
            // A byte more: one that was not let go of would be called for it.
            theirs.write_all(b"left").unwrap();
            drop(handler);
        }
        assert!(numbers.len() < 300, "no number was used twice");
    });
}

// SPEC H1
#[test]
fn what_many_threads_change_at_once_ends_as_the_last_one_wants() {
    beside_each_monitor(|io| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (handler, calls) = counting(io.context(), ours, Interest::default());
        theirs.write_all(b"x").unwrap();
        for last in [Interest::default(), Interest::READ] {
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for turn in 0..500 {
                            let read = turn % 2 == 0;
                            handler.set_interest(Interest { read, write: false });
                        }
                    });
                }
            });
            handler.set_interest(last);
            settle(io);
            let before = calls.load(Ordering::Relaxed);
            match last.read {
                true => eventually(|| calls.load(Ordering::Relaxed) > before),
                false => {
                    settle(io);
                    assert_eq!(calls.load(Ordering::Relaxed), before);
                }
            }
        }
    });
}

// SPEC A3: it owns itself and, by its context, is nobody's any more.
#[test]
fn a_context_that_ends_drops_what_waits() {
    with_each_monitor(|context| {
        let ((ours, mut theirs), (tx, rx)) = (UnixStream::pair().unwrap(), mpsc::channel());
        let own: Arc<Mutex<Option<RemoteHandler>>> = Arc::default();
        let (slot, tells) = (Arc::clone(&own), Tells(tx));
        let handler = context.add_handler(ours, Interest::READ, move |_| {
            let _ = (&slot, &tells);
        });
        *own.lock().unwrap() = Some(handler);
        drop(own);
        context.enter_home(|| context.poll(false).unwrap()).unwrap();
        assert!(rx.try_recv().is_err());
        drop(context);
        assert_eq!(rx.try_recv().unwrap(), thread::current().id());
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
    });
}

// SPEC A3: a callback that panics reaches poll's caller, and is called again.
#[test]
fn a_panic_leaves_it_watched() {
    with_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let _handler = context.add_handler(ours, Interest::READ, |_| {
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        let test = || {
            let panics = Rc::new(RefCell::new(0));
            turn_until_panics(&context, &panics);
            assert_eq!(*panics.borrow(), 3);
        };
        context.enter_home(test).unwrap();
    });
}

fn turn_until_panics(context: &AioContext, panics: &RefCell<u32>) {
    let deadline = Instant::now() + PATIENCE;
    while *panics.borrow() < 3 {
        assert!(Instant::now() < deadline, "it does not come");
        let turn = std::panic::AssertUnwindSafe(|| context.poll(false));
        if std::panic::catch_unwind(turn).is_err() {
            *panics.borrow_mut() += 1;
        }
    }
}
