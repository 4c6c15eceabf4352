//! Coroutines on contexts: order, waking, joining, ending (SPEC sections 1, 2 and 4).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::MonitorChoice;
use corio::{AioContext, CoWaker, Coroutine, IoThread, JoinError};

use super::leaks::Log;

/// Runs a test on each monitor.
fn on_each_monitor(test: impl Fn(&IoThread)) {
    for choice in MonitorChoice::ALL {
        let io = IoThread::builder()
            .name("io")
            .monitor(choice)
            .spawn()
            .unwrap();
        test(&io);
        io.join();
    }
}

// SPEC S1, S2
#[test]
fn first_spawned_runs_first() {
    on_each_monitor(|io| {
        let order = io.context().spawn(|| {
            let order = Rc::new(RefCell::new(Vec::new()));
            let handles: Vec<_> = (0..100)
                .map(|i| {
                    let order = Rc::clone(&order);
                    corio::spawn_local(move || order.borrow_mut().push(i))
                })
                .collect();
            for handle in handles {
                handle.join().unwrap();
            }
            Rc::try_unwrap(order).unwrap().into_inner()
        });
        assert_eq!(order.join().unwrap(), (0..100).collect::<Vec<_>>());
    });
}

// SPEC S1: whoever pushes, the home thread or another, and in whatever order.
#[test]
fn home_and_others_queue_in_one_order() {
    const COUNT: usize = 6;
    let context = AioContext::new().unwrap();
    let test = || {
        for pattern in 0..1 << COUNT {
            let order = Rc::new(RefCell::new(Vec::new()));
            let parked: Vec<_> = (0..COUNT)
                .map(|i| {
                    let order = Rc::clone(&order);
                    let token = Rc::new(RefCell::new(None));
                    let co = Coroutine::new({
                        let token = Rc::clone(&token);
                        move || {
                            *token.borrow_mut() = CoWaker::current();
                            corio::park();
                            order.borrow_mut().push(i);
                        }
                    });
                    co.enter();
                    let token = token.borrow().unwrap();
                    (co, token)
                })
                .collect();
            for (i, (co, token)) in parked.iter().enumerate() {
                if pattern >> i & 1 == 0 {
                    co.schedule();
                } else {
                    let token = *token;
                    std::thread::spawn(move || token.wake()).join().unwrap();
                }
            }
            context.poll(false).unwrap();
            let expected: Vec<_> = (0..COUNT).collect();
            assert_eq!(*order.borrow(), expected, "pattern {pattern:#b}");
        }
    };
    context.enter_home(test).unwrap();
}

// SPEC S7
#[test]
fn a_wake_from_another_thread_is_never_lost() {
    on_each_monitor(|io| {
        const ROUNDS: usize = 20_000;
        let turn = Arc::new(AtomicUsize::new(0));
        let (tx, rx) = mpsc::channel();
        let handle = io.context().spawn({
            let turn = Arc::clone(&turn);
            move || {
                tx.send(CoWaker::current().unwrap()).unwrap();
                for round in 1..=ROUNDS {
                    while turn.load(Ordering::Acquire) < 2 * round - 1 {
                        corio::park();
                    }
                    turn.store(2 * round, Ordering::Release);
                }
            }
        });
        let waker = rx.recv().unwrap();
        for round in 1..=ROUNDS {
            turn.store(2 * round - 1, Ordering::Release);
            waker.wake();
            while turn.load(Ordering::Acquire) != 2 * round {
                std::thread::yield_now();
            }
        }
        handle.join().unwrap();
        waker.wake(); // Stale: nothing happens.
    });
}

// SPEC C8
#[test]
fn a_panic_reaches_whoever_joins() {
    on_each_monitor(|io| {
        let handle = io.context().spawn(|| panic!("expected by the test"));
        assert!(matches!(handle.join(), Err(JoinError::Panicked(_))));
        assert_eq!(
            io.context().spawn(|| 1).join().unwrap(),
            1,
            "the loop goes on"
        );
    });
}

// SPEC A3: of a bottom half, which nobody joins.
#[test]
fn an_io_thread_reports_a_callbacks_panic_and_goes_on() {
    on_each_monitor(|io| {
        let log = Log::default();
        let theirs = log.clone();
        let listen = move || std::mem::forget(tracing::subscriber::set_default(theirs));
        io.context().run_in_bottom_half("listen", listen).unwrap();
        let fails = || panic!("expected by the test");
        io.context().schedule_oneshot("fails", fails);
        let next = || thread::current().name().map(str::to_owned);
        let ran = io.context().run_in_bottom_half("next", next).unwrap();
        assert_eq!(ran.as_deref(), Some("io"));
        let lines = std::mem::take(&mut *log.lines.lock().unwrap());
        let expected = "a callback panicked; the loop goes on without what it was doing";
        assert_eq!(lines, [expected]);
    });
}

// SPEC A1, C0, C12
#[test]
fn ending_a_home_unwinds_what_is_parked() {
    on_each_monitor(|_| ());
    for choice in MonitorChoice::ALL {
        struct Note(Arc<AtomicUsize>);
        impl Drop for Note {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let io = IoThread::builder().monitor(choice).spawn().unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let handles: Vec<_> = (0..10)
            .map(|_| {
                let note = Note(Arc::clone(&dropped));
                io.context().spawn(move || {
                    let _note = note;
                    corio::time::sleep(Duration::from_secs(3600));
                })
            })
            .collect();
        io.context().spawn(corio::yield_now).join().unwrap();
        io.join();
        assert_eq!(dropped.load(Ordering::SeqCst), 10);
        for handle in handles {
            assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
        }
    }
}

// SPEC C4
#[test]
fn the_woken_run_when_the_waker_yields_in_order_and_depth_first() {
    on_each_monitor(|io| {
        let order = io.context().spawn(|| {
            let order = Rc::new(RefCell::new(Vec::new()));
            let wakers = Rc::new(RefCell::new(Vec::new()));
            let spawn = |name: &'static str, wakes: &'static [usize]| {
                let (order, wakers) = (Rc::clone(&order), Rc::clone(&wakers));
                corio::spawn_local(move || {
                    wakers.borrow_mut().push(CoWaker::current().unwrap());
                    corio::park();
                    order.borrow_mut().push(name);
                    for &i in wakes {
                        wakers.borrow()[i].wake();
                    }
                })
            };
            let handles = [spawn("a", &[2]), spawn("b", &[]), spawn("c", &[])];
            corio::yield_now();
            assert_eq!(wakers.borrow().len(), 3);
            wakers.borrow()[0].wake();
            wakers.borrow()[1].wake();
            assert!(order.borrow().is_empty(), "waking does not switch");
            for handle in handles {
                handle.join().unwrap();
            }
            order.take()
        });
        // `a` runs before `b`; what `a` woke runs before `b`.
        assert_eq!(order.join().unwrap(), ["a", "c", "b"]);
    });
}

// SPEC C4: a million wakes, constant native stack.
#[test]
fn a_chain_of_a_million_wakes_does_not_recurse() {
    let context = AioContext::new().unwrap();
    let count = context
        .enter_home(|| {
            let handle = context.spawn(|| {
                for _ in 0..1_000_000 {
                    CoWaker::current().unwrap().wake();
                    corio::park();
                }
                1_000_000
            });
            while !handle.is_finished() {
                context.poll(true).unwrap();
            }
            handle.join().unwrap()
        })
        .unwrap();
    assert_eq!(count, 1_000_000);
}

// SPEC B3, B6, B7
#[test]
fn bottom_halves_run_in_the_order_scheduled_and_new_ones_wait_for_the_next_turn() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        context
            .enter_home(|| {
                for i in 0..3 {
                    let (order, again) = (Arc::clone(&order), context.clone());
                    context.schedule_oneshot("outer", move || {
                        order.lock().unwrap().push(i);
                        let order = Arc::clone(&order);
                        again.schedule_oneshot("inner", move || order.lock().unwrap().push(i + 10));
                    });
                }
                assert!(context.poll(false).unwrap());
                assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
                assert!(context.poll(false).unwrap());
                assert_eq!(*order.lock().unwrap(), [0, 1, 2, 10, 11, 12]);
                assert!(!context.poll(false).unwrap());
            })
            .unwrap();
    }
}

// SPEC B2, B5
#[test]
fn a_bottom_half_runs_once_however_often_it_is_scheduled_and_not_when_cancelled() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let runs = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&runs);
        let bh = context.bottom_half("count", move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        context
            .enter_home(|| {
                bh.schedule();
                bh.schedule();
                context.poll(true).unwrap();
                assert_eq!(runs.load(Ordering::SeqCst), 1);
                bh.schedule();
                bh.cancel();
                context.poll(false).unwrap();
                assert_eq!(runs.load(Ordering::SeqCst), 1);
                bh.schedule();
                drop(bh);
                context.poll(false).unwrap();
                assert_eq!(runs.load(Ordering::SeqCst), 1);
            })
            .unwrap();
    }
}

// SPEC T2, T4
#[test]
fn timers_run_in_deadline_order_and_not_early() {
    on_each_monitor(|io| {
        let (tx, rx) = mpsc::channel();
        let begin = Instant::now();
        let context = io.context().clone();
        // At home, so that no turn comes in between, however slow this is.
        let arming = io.context().spawn(move || {
            [30, 10, 20].map(|ms| {
                let tx = tx.clone();
                let timer = context.timer(move || tx.send(ms).unwrap());
                timer.arm_after(Duration::from_millis(ms));
                timer
            })
        });
        let timers = arming.join().unwrap();
        for expected in [10, 20, 30] {
            assert_eq!(rx.recv().unwrap(), expected);
            assert!(begin.elapsed() >= Duration::from_millis(expected));
        }
        assert!(!timers[0].cancel(), "it has run");
    });
}

// SPEC N1
#[test]
fn notify_makes_a_blocked_poll_return() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let other = context.clone();
        let (tx, rx) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            other
                .enter_home(|| {
                    tx.send(()).unwrap();
                    assert!(
                        !other.poll(true).unwrap(),
                        "its own notifier is no progress"
                    );
                })
                .unwrap();
        });
        rx.recv().unwrap();
        context.notify();
        thread.join().unwrap();
    }
}

// SPEC C0, C3
#[test]
#[should_panic(expected = "outside of any home")]
fn creating_a_coroutine_outside_a_home_is_misuse() {
    let _ = Coroutine::new(|| ());
}

// SPEC C3
#[test]
fn entering_an_entered_or_ended_coroutine_is_misuse() {
    corio::home(|| {
        let own = Rc::new(RefCell::new(None::<Coroutine>));
        let inner = Rc::clone(&own);
        let co = Coroutine::new(move || {
            let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                inner.borrow().as_ref().unwrap().enter();
            }))
            .unwrap_err();
            let text = message.downcast_ref::<String>().unwrap();
            assert!(
                text.contains("entered already") && text.contains("schedule.rs"),
                "{text}"
            );
        });
        *own.borrow_mut() = Some(co);
        own.borrow().as_ref().unwrap().enter();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            own.borrow().as_ref().unwrap().enter();
        }));
        assert!(ended.is_err());
    });
}

// SPEC C0, C9
#[test]
fn a_home_unwinds_the_suspended_and_drops_what_never_ran() {
    let dropped = Rc::new(RefCell::new(Vec::new()));
    struct Note(&'static str, Rc<RefCell<Vec<&'static str>>>);
    impl Drop for Note {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
        }
    }
    let inert = corio::home(|| {
        let (never, local) = (
            Note("closure", dropped.clone()),
            Note("local", dropped.clone()),
        );
        let unstarted = Coroutine::new(move || drop(never));
        let suspended = Coroutine::new(move || {
            let _local = local;
            corio::suspend();
            unreachable!("it is unwound");
        });
        suspended.enter();
        std::mem::forget(unstarted);
        suspended
    });
    let mut seen = dropped.take();
    seen.sort_unstable();
    assert_eq!(seen, ["closure", "local"]);
    assert!(inert.is_done());
}

// SPEC S7: a token as a task's waker: cloned, fired by value and by reference, late and from another
// thread.
#[test]
fn a_token_is_a_tasks_waker() {
    on_each_monitor(|io| {
        let ready = Arc::new(AtomicUsize::new(0));
        let (tx, rx) = mpsc::channel::<std::task::Waker>();
        let handle = io.context().spawn({
            let ready = Arc::clone(&ready);
            move || {
                tx.send(CoWaker::current().unwrap().into()).unwrap();
                for step in 1..=2 {
                    while ready.load(Ordering::Acquire) < step {
                        corio::park();
                    }
                }
            }
        });
        let waker = rx.recv().unwrap();
        let other = waker.clone();
        assert!(waker.will_wake(&other));
        ready.store(1, Ordering::Release);
        waker.wake_by_ref();
        ready.store(2, Ordering::Release);
        waker.wake();
        handle.join().unwrap();
        other.wake(); // Nobody is there any more.
    });
}
