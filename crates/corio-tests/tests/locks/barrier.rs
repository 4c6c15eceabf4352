//! Coroutines and threads that wait for one another.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corio::sync::Barrier;
use corio::{AioContext, Coroutine, JoinError};

use super::{io, panic_on_a_loop, settle};

#[test]
fn all_wait_for_one_another_and_one_leads_each_time() {
    // SPEC L5
    const ROUNDS: usize = 200;
    const EACH: usize = 3;
    let (a, b) = (io("a"), io("b"));
    let count = 2 * EACH + 1;
    let shared = Arc::new((
        Barrier::new(count),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    ));
    let work = || {
        let shared = Arc::clone(&shared);
        move || {
            let (barrier, arrived, led) = &*shared;
            for round in 1..=ROUNDS {
                arrived.fetch_add(1, Ordering::Relaxed);
                if barrier.wait().is_leader() {
                    led.fetch_add(1, Ordering::Relaxed);
                }
                // Nobody has come to the next round before all have passed this second wait.
                assert_eq!(arrived.load(Ordering::Relaxed), round * count);
                barrier.wait();
            }
        }
    };
    let coroutines: Vec<_> = [&a, &b]
        .into_iter()
        .flat_map(|io| (0..EACH).map(|_| io.context().spawn(work())))
        .collect();
    let thread = std::thread::spawn(work());
    for coroutine in coroutines {
        coroutine.join().unwrap();
    }
    thread.join().unwrap();
    assert_eq!(shared.2.load(Ordering::Relaxed), ROUNDS);
}

#[test]
fn last_to_come_leads_and_does_not_wait() {
    // SPEC L5
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let barrier = Rc::new(Barrier::new(3));
            let led = Rc::new(Cell::new(None));
            let come = |number: usize| {
                let (barrier, led) = (Rc::clone(&barrier), Rc::clone(&led));
                let co = Coroutine::new(move || {
                    if barrier.wait().is_leader() {
                        led.set(Some(number));
                    }
                });
                co.enter();
                co
            };
            for round in [0, 3] {
                let waiters = [come(round), come(round + 1)];
                while context.poll(false).unwrap() {}
                assert!(waiters.iter().all(|waiter| !waiter.is_done()));
                assert!(come(round + 2).is_done());
                assert_eq!(led.take(), Some(round + 2));
                while context.poll(false).unwrap() {}
                assert!(waiters.iter().all(Coroutine::is_done));
            }
        })
        .unwrap();
}

#[test]
fn alone_nobody_waits() {
    // SPEC L5
    let barrier = Barrier::new(1);
    assert!(barrier.wait().is_leader() && barrier.wait().is_leader());
}

#[test]
fn whoever_is_cancelled_has_not_come() {
    // SPEC L5, C12
    let (leaving, staying) = (io("leaving"), io("staying"));
    let barrier = Arc::new(Barrier::new(3));
    let come = |io: &corio::IoThread| {
        let barrier = Arc::clone(&barrier);
        let handle = io.context().spawn(move || barrier.wait().is_leader());
        settle(io);
        handle
    };
    let cancelled = come(&leaving);
    let waiter = come(&staying);
    leaving.join();
    assert!(matches!(cancelled.join(), Err(JoinError::Cancelled)));
    let second = come(&staying);
    settle(&staying);
    assert!(
        !waiter.is_finished() && !second.is_finished(),
        "two of three"
    );
    assert!(barrier.wait().is_leader());
    assert!(!waiter.join().unwrap() && !second.join().unwrap());
}

#[test]
fn whoever_is_cancelled_after_all_have_come_holds_nobody_up() {
    // SPEC L5, C12
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let barrier = Rc::new(Barrier::new(3));
            let come = || {
                let barrier = Rc::clone(&barrier);
                let co = Coroutine::new(move || _ = barrier.wait());
                co.enter();
                co
            };
            let [first, second] = [come(), come()];
            assert!(come().is_done());
            // It has been let go and has not run since.
            drop(first);
            while context.poll(false).unwrap() {}
            assert!(second.is_done());
            // The next round begins with nobody.
            let next = [come(), come()];
            while context.poll(false).unwrap() {}
            assert!(next.iter().all(|waiter| !waiter.is_done()));
            assert!(come().is_done());
            while context.poll(false).unwrap() {}
            assert!(next.iter().all(Coroutine::is_done));
        })
        .unwrap();
}

#[test]
fn waiting_on_a_loop_outside_a_coroutine_is_misuse() {
    // SPEC C3
    let text = panic_on_a_loop(|| _ = Barrier::new(1).wait());
    assert!(text.contains("outside a coroutine"), "{text}");
}

#[test]
#[should_panic(expected = "make it for 1 or more")]
fn barrier_for_nobody_is_misuse() {
    // SPEC L5, C3
    let _ = Barrier::new(0);
}
