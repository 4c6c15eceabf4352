//! Cancelling spawned coroutines by their handles (SPEC C12).

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use corio::{AioContext, IoThread, JoinError, sync};

fn io() -> IoThread {
    IoThread::builder().name("io").spawn().unwrap()
}

/// Counts when it is dropped.
struct Counts(Arc<AtomicUsize>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

const HOUR: Duration = Duration::from_secs(3600);

// SPEC C12: parked in whatever: it unwinds there, destructors and all.
#[test]
fn a_parked_coroutine_unwinds_when_it_is_cancelled() {
    let io = io();
    let locked = Arc::new(sync::Mutex::new(()));
    let queue = Arc::new(sync::Queue::new());
    let semaphore = Arc::new(sync::Semaphore::new(1));
    let permit = semaphore.try_acquire(1);
    let guard = locked.try_lock();
    type Body = Box<dyn FnOnce() + Send>;
    let bodies: [Body; 6] = [
        Box::new(|| corio::time::sleep(HOUR)),
        Box::new(|| corio::park()),
        Box::new({
            let locked = Arc::clone(&locked);
            move || drop(locked.lock())
        }),
        Box::new({
            let queue = Arc::clone(&queue);
            move || queue.wait()
        }),
        Box::new({
            let semaphore = Arc::clone(&semaphore);
            move || drop(semaphore.acquire(1))
        }),
        Box::new(|| {
            let child = corio::spawn(|| corio::time::sleep(HOUR));
            let _ = child.join();
        }),
    ];
    for (i, body) in bodies.into_iter().enumerate() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let (tx, rx) = mpsc::channel();
        let handle = io.context().spawn({
            let counts = Counts(Arc::clone(&dropped));
            move || {
                let _counts = counts;
                tx.send(()).unwrap();
                body();
                corio::park();
                unreachable!("body {i} was not cancelled");
            }
        });
        rx.recv().unwrap();
        handle.cancel().unwrap();
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)), "{i}");
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "{i}");
    }
    drop((permit, guard));
}

// SPEC C12, C9: one that has not begun never does, and drops its closure at home.
#[test]
fn one_that_has_not_begun_never_does() {
    let io = io();
    let dropped = Arc::new(AtomicUsize::new(0));
    let (go, wait) = mpsc::channel::<()>();
    let blocked = io.context().spawn(move || wait.recv().unwrap());
    let make = || {
        let counts = Counts(Arc::clone(&dropped));
        io.context().spawn(move || {
            let _counts = counts;
            unreachable!("it began")
        })
    };
    let handles = [make(), make()];
    for handle in &handles {
        handle.cancel().unwrap();
        handle.cancel().unwrap(); // Again is no more.
    }
    go.send(()).unwrap();
    blocked.join().unwrap();
    for handle in handles {
        let outcome: Result<(), _> = handle.join();
        assert!(matches!(outcome, Err(JoinError::Cancelled)));
    }
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
}

// SPEC C12, C9: the same between coroutines of one context, made and queued already.
#[test]
fn a_queued_sibling_is_cancelled_before_it_begins() {
    let io = io();
    let ran = io.context().spawn(|| {
        let ran = Rc::new(Cell::new(0));
        let make = || {
            let ran = Rc::clone(&ran);
            corio::spawn_local(move || ran.set(ran.get() + 1))
        };
        let (first, second, third) = (make(), make(), make());
        second.cancel().unwrap();
        assert!(matches!(second.join(), Err(JoinError::Cancelled)));
        first.join().unwrap();
        third.join().unwrap();
        ran.get()
    });
    assert_eq!(ran.join().unwrap(), 2);
}

// SPEC C12: at its next park, if it runs.
#[test]
fn one_that_runs_is_cancelled_where_it_next_parks() {
    let io = io();
    let (begun, wait_begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let reached = Arc::new(AtomicBool::new(false));
    let handle = io.context().spawn({
        let reached = Arc::clone(&reached);
        move || {
            begun.send(()).unwrap();
            wait.recv().unwrap(); // Blocks the thread: it runs.
            reached.store(true, Ordering::Relaxed);
            corio::park();
            unreachable!("it was not cancelled")
        }
    });
    wait_begun.recv().unwrap();
    handle.cancel().unwrap();
    go.send(()).unwrap();
    let outcome: Result<(), _> = handle.join();
    assert!(matches!(outcome, Err(JoinError::Cancelled)));
    assert!(reached.load(Ordering::Relaxed), "not before");
}

// SPEC C12: masks nest, and a cancellation that came meanwhile is not forgotten.
#[test]
fn a_mask_defers_a_cancellation() {
    let io = io();
    let (begun, wait_begun) = mpsc::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let steps = Arc::new(AtomicUsize::new(0));
    let handle = io.context().spawn({
        let (cancelled, steps) = (Arc::clone(&cancelled), Arc::clone(&steps));
        move || {
            let outer = corio::mask_cancel();
            let inner = corio::mask_cancel();
            begun.send(()).unwrap();
            while !cancelled.load(Ordering::Acquire) {
                corio::time::sleep(Duration::from_micros(100));
            }
            steps.fetch_add(1, Ordering::Relaxed);
            drop(inner);
            corio::yield_now();
            steps.fetch_add(1, Ordering::Relaxed);
            drop(outer);
            corio::yield_now();
            unreachable!("it was not cancelled")
        }
    });
    wait_begun.recv().unwrap();
    handle.cancel().unwrap();
    cancelled.store(true, Ordering::Release);
    let outcome: Result<(), _> = handle.join();
    assert!(matches!(outcome, Err(JoinError::Cancelled)));
    assert_eq!(steps.load(Ordering::Relaxed), 2);
}

// SPEC C12: joining tells cancelled from panicked, and from having ended in time.
#[test]
fn joining_tells_how_it_ended() {
    let io = io();
    let ended = io.context().spawn(|| 5);
    while !ended.is_finished() {
        std::thread::yield_now();
    }
    ended.cancel().unwrap(); // Too late.
    assert_eq!(ended.join().unwrap(), 5);

    struct PanicsToo;
    impl Drop for PanicsToo {
        fn drop(&mut self) {
            assert!(!std::thread::panicking());
        }
    }
    let (tx, rx) = mpsc::channel();
    let catches = io.context().spawn(move || {
        let _no_panic = PanicsToo;
        tx.send(()).unwrap();
        let parked = std::panic::catch_unwind(corio::park);
        if parked.is_err() {
            return "caught";
        }
        "woken"
    });
    rx.recv().unwrap();
    catches.cancel().unwrap();
    assert_eq!(catches.join().unwrap(), "caught", "its own decision stands");

    let (tx, rx) = mpsc::channel();
    let panics = io.context().spawn(move || {
        tx.send(()).unwrap();
        let _ = std::panic::catch_unwind(corio::park);
        panic!("on its own")
    });
    rx.recv().unwrap();
    panics.cancel().unwrap();
    let outcome: Result<(), _> = panics.join();
    let Err(JoinError::Panicked(payload)) = outcome else {
        panic!("not told")
    };
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"on its own"));
}

// SPEC C12: a late cancellation does nothing to who has the stack now, and does not take back what
// that one was asked.
#[test]
fn a_late_cancellation_hits_nobody_else() {
    let io = io();
    let old = io.context().spawn(|| ());
    while !old.is_finished() {
        std::thread::yield_now();
    }
    // On the same stack: the newest that was given back.
    let (tx, rx) = mpsc::channel();
    let new = io.context().spawn(move || {
        tx.send(()).unwrap();
        for _ in 0..100 {
            corio::yield_now();
        }
        7
    });
    rx.recv().unwrap();
    old.cancel().unwrap();
    assert_eq!(new.join().unwrap(), 7);

    let (tx, rx) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let asked = io.context().spawn(move || {
        tx.send(()).unwrap();
        wait.recv().unwrap();
        corio::park();
    });
    rx.recv().unwrap();
    asked.cancel().unwrap();
    old.cancel().unwrap();
    go.send(()).unwrap();
    assert!(matches!(asked.join(), Err(JoinError::Cancelled)));
}

// SPEC C12, A1: on a context that never gets a home.
#[test]
fn what_waits_for_a_home_is_cancelled_too() {
    let context = AioContext::new().unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let handle = context.spawn({
        let ran = Arc::clone(&ran);
        move || ran.store(true, Ordering::Relaxed)
    });
    handle.cancel().unwrap();
    context
        .enter_home(|| {
            while !handle.is_finished() {
                context.poll(false).unwrap();
            }
        })
        .unwrap();
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    assert!(!ran.load(Ordering::Relaxed));
}

/// A task's waker that counts.
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// SPEC E7, C12: a handle that is polled tells the last task that polled it, once.
#[test]
fn a_polled_handle_wakes_the_last_task() {
    let io = io();
    let (go, wait) = mpsc::channel::<()>();
    let mut handle = pin!(io.context().spawn(move || wait.recv().unwrap()));
    let bells = [(); 3].map(|()| Arc::new(Bell(AtomicUsize::new(0))));
    for bell in &bells {
        let waker = Waker::from(Arc::clone(bell));
        let polled = handle.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    go.send(()).unwrap();
    while bells[2].0.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let rung: Vec<_> = bells
        .iter()
        .map(|bell| bell.0.load(Ordering::Relaxed))
        .collect();
    assert_eq!(rung, [0, 0, 1]);
    let polled = handle
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Ok(()))));
}
