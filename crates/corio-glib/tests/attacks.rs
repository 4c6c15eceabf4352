//! Programs that try to break the source of GLib's from safe code.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corio::context::Interest;
use corio::{AioContext, IoThread};
use corio_glib::{IoThreadExt, MainContext, Source};

type Slot = Rc<RefCell<Option<Source>>>;

// SPEC G1, A3: by a callback of its own dispatch, or of a nested one, which then panics.
#[test]
fn a_source_is_dropped_in_its_own_dispatch_and_comes_back() {
    for nests in [false, true] {
        for panics in [false, true] {
            let context = AioContext::new().unwrap();
            let main = MainContext::new();
            let home = || {
                let local = context.local().unwrap();
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                let reader = ours.try_clone().unwrap();
                let slot: Slot = Rc::default();
                let calls = Rc::new(Cell::new(0));
                let (taken, count, loops) = (Rc::clone(&slot), Rc::clone(&calls), main.clone());
                let depth = Cell::new(0);
                let callback = move |_| {
                    count.set(count.get() + 1);
                    depth.set(depth.get() + 1);
                    if nests && depth.get() == 1 {
                        loops.iterate(false);
                    } else {
                        (&reader).read_exact(&mut [0]).unwrap();
                        drop(taken.borrow_mut().take());
                        assert!(!loops.iterate(false), "it is out of the loop");
                    }
                    depth.set(depth.get() - 1);
                    if panics {
                        resume_unwind(Box::new("on purpose"));
                    }
                };
                let handler = local.add_handler(ours, Interest::READ, callback).unwrap();
                for round in 1..=3 {
                    *slot.borrow_mut() = Some(Source::attach(local, &main).unwrap());
                    theirs.write_all(b"x").unwrap();
                    while slot.borrow().is_some() {
                        main.iterate(true);
                    }
                    assert_eq!(calls.get(), round * if nests { 2 } else { 1 });
                    assert!(!main.iterate(false));
                }
                drop(handler);
                // Without GLib it goes on.
                let ran = Arc::new(AtomicBool::new(false));
                let sets = Arc::clone(&ran);
                context.schedule_oneshot("on", move || sets.store(true, Ordering::Relaxed));
                context.poll(true).unwrap();
                assert!(ran.load(Ordering::Relaxed));
            };
            context.enter_home(home).unwrap();
        }
    }
}

// SPEC G1, A1: a source whose home has ended, with something that was ready then.
#[test]
fn a_source_after_its_home_does_not_make_the_loop_spin() {
    let context = AioContext::new().unwrap();
    let main = MainContext::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"x").unwrap();
    let home = || {
        let local = context.local().unwrap();
        let source = Source::attach(local, &main).unwrap();
        let handler = local.add_handler(ours, Interest::READ, |_| ()).unwrap();
        let timer = context.timer(|| ());
        timer.arm_after(Duration::from_millis(1));
        assert!(source.iterate(true).unwrap());
        (source, handler)
    };
    let (source, handler) = context.enter_home(home).unwrap();
    context.notify();
    let waker = main.clone();
    let done = Arc::new(AtomicBool::new(false));
    let sets = Arc::clone(&done);
    let wakes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        sets.store(true, Ordering::Release);
        waker.wake();
    });
    let mut iterations = 0;
    while !done.load(Ordering::Acquire) {
        assert!(!source.iterate(true).unwrap());
        iterations += 1;
    }
    wakes.join().unwrap();
    assert!(iterations <= 3, "{iterations} iterations in 20 ms");
    drop((source, handler));
}

// SPEC G1: two threads run the main context by turns; whatever comes when it is the home's turn, or
// came in the other's, is done in the home thread.
#[test]
fn a_main_context_that_two_threads_run_loses_nothing_of_the_homes() {
    let context = AioContext::new().unwrap();
    let main = MainContext::new();
    let home = || {
        let source = Source::attach(context.local().unwrap(), &main).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ran = Arc::new(AtomicUsize::new(0));
        let (stops, loops, asks, counts) = (
            Arc::clone(&stop),
            main.clone(),
            context.clone(),
            Arc::clone(&ran),
        );
        let here = std::thread::current().id();
        let other = std::thread::spawn(move || {
            let mut asked = 0;
            while !stops.load(Ordering::Acquire) {
                loops.iterate(false);
                if counts.load(Ordering::Relaxed) == asked {
                    asked += 1;
                    let count = Arc::clone(&counts);
                    asks.schedule_oneshot("asked", move || {
                        assert_eq!(std::thread::current().id(), here);
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        });
        let until = Instant::now() + Duration::from_secs(5);
        while ran.load(Ordering::Relaxed) < 200 {
            assert!(Instant::now() < until, "it does not come");
            let turn = || source.iterate(true).unwrap();
            catch_unwind(AssertUnwindSafe(turn)).unwrap();
        }
        stop.store(true, Ordering::Release);
        other.join().unwrap();
    };
    context.enter_home(home).unwrap();
}

// SPEC I2, H1: handlers of other threads, and the stop, reach a loop of GLib's at any time.
#[test]
fn an_io_thread_of_glibs_hears_of_everything_between_its_turns() {
    for _ in 0..200 {
        let io = IoThread::builder().glib().spawn().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = ours.try_clone().unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let handler = io.context().add_handler(ours, Interest::READ, move |_| {
            (&reader).read_exact(&mut [0]).unwrap();
            tx.send(()).unwrap();
        });
        for _ in 0..20 {
            theirs.write_all(b"x").unwrap();
            rx.recv_timeout(Duration::from_secs(5)).unwrap();
            handler.set_interest(Interest::default());
            handler.set_interest(Interest::READ);
        }
        drop(handler);
        // The home has learnt of it: it has dropped the callback.
        let ended = rx.recv_timeout(Duration::from_secs(5)).unwrap_err();
        assert_eq!(ended, std::sync::mpsc::RecvTimeoutError::Disconnected);
        io.join();
    }
}
