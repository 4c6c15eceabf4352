//! Waiting by turning a loop, from the home thread and from the main thread (SPEC A4, W1, W2).

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError, mpsc};

use corio::context::{MonitorChoice, kick};
use corio::{AioContext, IoThread};

use super::{beside_each_monitor, on_each_monitor, panic_of};

/// Runs a test in the main thread. There is one main context, and its tests take turns.
fn in_main<R>(test: impl FnOnce(&AioContext) -> R) -> R {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let main = AioContext::init_main().unwrap();
    main.enter_home(|| test(&main)).unwrap()
}

// SPEC A4
#[test]
fn a_process_has_one_main_context_whoever_makes_it() {
    let together = Barrier::new(4);
    let ids: Vec<_> = std::thread::scope(|scope| {
        let make = || {
            together.wait();
            AioContext::init_main().unwrap().id()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let main = AioContext::main().expect("it was made");
    assert!(ids.iter().all(|&id| id == main.id()));
    assert_eq!(main.name(), "main");
}

// SPEC W1
#[test]
fn a_home_thread_waits_for_what_its_own_callbacks_change() {
    on_each_monitor(|context| {
        let left = Arc::new(AtomicUsize::new(3));
        let theirs = Arc::clone(&left);
        let bottom_half = context.bottom_half("count down", move || {
            theirs.fetch_sub(1, Ordering::Relaxed);
        });
        let waited = context.wait_while(|| {
            bottom_half.schedule();
            left.load(Ordering::Relaxed) > 0
        });
        assert!(waited.unwrap());
        assert_eq!(left.load(Ordering::Relaxed), 0);
        assert!(
            !context.wait_while(|| false).unwrap(),
            "nothing to wait for"
        );
    });
}

// SPEC W1: none of the kicks is lost.
#[test]
fn a_kick_makes_a_waiter_look_again() {
    const ROUNDS: usize = 2_000;
    on_each_monitor(|context| {
        let reached = Arc::new(AtomicUsize::new(0));
        let (next, rounds) = mpsc::channel();
        let theirs = Arc::clone(&reached);
        let other = std::thread::spawn(move || {
            for round in rounds {
                theirs.store(round, Ordering::Release);
                kick();
            }
        });
        for round in 1..=ROUNDS {
            next.send(round).unwrap();
            context
                .wait_while(|| reached.load(Ordering::Acquire) != round)
                .unwrap();
        }
        drop(next);
        other.join().unwrap();
    });
}

// SPEC W1: everybody who waits looks again, not only who waits first.
#[test]
fn a_kick_reaches_all_waiters() {
    let busy = Arc::new(AtomicBool::new(true));
    let waiting = Arc::new(Barrier::new(4));
    let threads = MonitorChoice::ALL.map(|monitor| {
        let (busy, waiting) = (Arc::clone(&busy), Arc::clone(&waiting));
        std::thread::spawn(move || {
            let context = AioContext::builder().monitor(monitor).build().unwrap();
            let looked = Cell::new(0);
            let wait = || {
                context.wait_while(|| {
                    looked.set(looked.get() + 1);
                    if looked.get() == 2 {
                        waiting.wait(); // Counted as a waiter by now.
                    }
                    busy.load(Ordering::Acquire)
                })
            };
            context.enter_home(wait).unwrap().unwrap();
            looked.get()
        })
    });
    waiting.wait();
    busy.store(false, Ordering::Release);
    kick();
    for thread in threads {
        assert!(thread.join().unwrap() >= 2);
    }
}

// SPEC W1
#[test]
fn the_main_thread_turns_the_main_loop_while_it_waits_for_another() {
    in_main(|main| {
        let io = IoThread::builder().name("io0").spawn().unwrap();
        // The other thread goes on only once the main loop has run something for it.
        let busy = Arc::new(AtomicBool::new(true));
        let (theirs, main) = (Arc::clone(&busy), main.clone());
        let context = io.context().clone();
        io.context().schedule_oneshot("there", move || {
            main.schedule_oneshot("here", move || {
                context.schedule_oneshot("there again", move || {
                    theirs.store(false, Ordering::Release);
                    kick();
                });
            });
        });
        let waited = io.context().wait_while(|| busy.load(Ordering::Acquire));
        assert!(waited.is_ok());
        assert!(!busy.load(Ordering::Acquire));
    });
}

// SPEC W1
#[test]
fn waiting_elsewhere_is_misuse() {
    let text = "home neither of it nor of the main context";
    let other = AioContext::builder().name("other").build().unwrap();
    let plain = panic_of(|| other.wait_while(|| true));
    assert!(plain.contains(text) && plain.contains("`other`"), "{plain}");
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            assert!(panic_of(|| other.wait_while(|| true)).contains(text));
            assert!(panic_of(|| other.run_in_bottom_half("no", || ())).contains(text));
        })
        .unwrap();
    other
        .enter_home(|| other.poll(false).unwrap())
        .expect("what was refused has left nothing behind");
}

// SPEC W1, C3
#[test]
fn waiting_in_a_coroutine_is_misuse() {
    let io = IoThread::builder().spawn().unwrap();
    let context = io.context().clone();
    let texts = io.context().spawn(move || {
        let wait = panic_of(|| context.wait_while(|| true));
        let run = panic_of(|| context.run_in_bottom_half("no", || ()));
        [wait, run]
    });
    for text in texts.join().unwrap() {
        assert!(text.contains("inside a coroutine"), "{text}");
    }
}

// SPEC W2
#[test]
fn a_bottom_half_is_run_in_its_context_and_waited_for() {
    let io = IoThread::builder().name("io0").spawn().unwrap();
    let ask = |context: &AioContext| {
        let asked = context.clone();
        let name = context.run_in_bottom_half("ask", move || {
            assert!(asked.is_home() && !corio::in_coroutine());
            std::thread::current().name().map(str::to_owned)
        });
        name.unwrap()
    };
    assert_eq!(ask(io.context()).as_deref(), Some("io0"), "a plain thread");
    in_main(|main| {
        assert_eq!(ask(io.context()).as_deref(), Some("io0"), "the main thread");
        let here = std::thread::current().name().map(str::to_owned);
        assert_eq!(ask(main), here, "the home thread itself");
    });
}

// SPEC W2, A3
#[test]
fn a_bottom_halfs_panic_reaches_who_waits_and_not_the_loop() {
    beside_each_monitor(|io| {
        let fail = || panic!("this one fails");
        let text = panic_of(|| io.context().run_in_bottom_half("fail", fail));
        assert_eq!(text, "this one fails");
        assert_eq!(io.context().run_in_bottom_half("next", || 7).unwrap(), 7);
    });
}

// SPEC W2
#[test]
fn a_context_that_has_ended_refuses() {
    let io = IoThread::builder().spawn().unwrap();
    let context = io.context().clone();
    io.join();
    let refused = context.run_in_bottom_half("late", || ()).unwrap_err();
    let error = refused.downcast::<corio::Error>().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ESHUTDOWN));
}

// SPEC W2: a home that ends runs what is queued or drops it, and who waits is told which.
#[test]
fn who_waits_is_told_when_the_home_ends_meanwhile() {
    let io = IoThread::builder().spawn().unwrap();
    let context = io.context().clone();
    let inner = context.clone();
    let thread = context.run_in_bottom_half("outer", move || {
        drop(io); // On its own thread it is only asked to stop.
        std::thread::spawn(move || {
            let ran = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&ran);
            let told =
                inner.run_in_bottom_half("inner", move || theirs.store(true, Ordering::Relaxed));
            (ran.load(Ordering::Relaxed), told)
        })
    });
    let (ran, told) = thread.unwrap().join().unwrap();
    assert_eq!(ran, told.is_ok(), "{told:?}");
}

// SPEC W2: a callback of the home thread may wait, too; nested turns run what it waits for.
#[test]
fn a_callback_may_wait_for_a_bottom_half_of_its_own_context() {
    on_each_monitor(|context| {
        let answer = Arc::new(AtomicUsize::new(0));
        let (theirs, inner) = (Arc::clone(&answer), context.clone());
        let timer = context.timer(move || {
            let value = inner.run_in_bottom_half("nested", || 5).unwrap();
            theirs.store(value, Ordering::Relaxed);
        });
        timer.arm_at_ns(0);
        context
            .wait_while(|| answer.load(Ordering::Relaxed) == 0)
            .unwrap();
        assert_eq!(answer.load(Ordering::Relaxed), 5);
    });
}
