//! A context in a foreign loop, and those who wait for a bottom half.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use corio::context::{Interest, MonitorChoice, MonitorKind};
use corio::{AioContext, IoThread};

use super::{PATIENCE, is_readable, loaded};

fn embeddable() -> AioContext {
    AioContext::builder()
        .monitor(MonitorChoice::Epoll)
        .build()
        .unwrap()
}

// SPEC G3, A1: after the home's end a loop that still has the descriptor is not woken for ever.
#[test]
fn a_descriptor_that_outlives_its_home_is_quiet() {
    let context = embeddable();
    let (ours, _theirs) = loaded();
    let home = || {
        let local = context.local().unwrap();
        let embedded = local.embed().unwrap();
        let handler = local.add_handler(ours, Interest::READ, |_| ()).unwrap();
        embedded.dispatch().unwrap();
        context.schedule_oneshot("left", || ());
        (embedded, handler)
    };
    let (embedded, handler) = context.enter_home(home).unwrap();
    assert!(!embedded.is_live());
    context.notify();
    assert!(!is_readable(&embedded, Duration::ZERO), "it would spin");
    drop(handler);
}

// SPEC G3: dropped and made again, in and between turns, with a deadline that stays.
#[test]
fn an_embedded_context_that_is_taken_out_and_put_back_sleeps_over_nothing() {
    let context = embeddable();
    let home = || {
        let local = context.local().unwrap();
        let fired = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fired);
        let timer = context.timer(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for round in 1..=5 {
            let embedded = local.embed().unwrap();
            timer.arm_after(Duration::from_millis(1));
            embedded.dispatch().unwrap();
            drop(embedded);
            if round % 2 == 0 {
                thread::sleep(Duration::from_millis(2)); // The timerfd has gone off meanwhile.
            }
            let embedded = local.embed().unwrap();
            while fired.load(Ordering::Relaxed) < round {
                assert!(is_readable(&embedded, PATIENCE), "it sleeps over the timer");
                embedded.dispatch().unwrap();
            }
            embedded.dispatch().unwrap();
            assert!(!is_readable(&embedded, Duration::ZERO), "it would spin");
            // A remote handler between two turns, and one that goes.
            let (ours, _theirs) = loaded();
            let called = Arc::new(AtomicBool::new(false));
            let sets = Arc::clone(&called);
            let added = context.add_handler(ours, Interest::READ, move |_| {
                sets.store(true, Ordering::Relaxed);
            });
            while !called.load(Ordering::Relaxed) {
                assert!(
                    is_readable(&embedded, PATIENCE),
                    "it sleeps over the handler"
                );
                embedded.dispatch().unwrap();
            }
            drop(added);
            for _ in 0..3 {
                embedded.dispatch().unwrap();
            }
            assert!(!is_readable(&embedded, Duration::ZERO), "it would spin");
        }
    };
    context.enter_home(home).unwrap();
}

// SPEC G3: taken out and put back by a callback of a turn, its own or a nested one.
#[test]
fn a_callback_may_take_the_context_out_of_its_loop_and_put_it_back() {
    let context = embeddable();
    let home = || {
        let slot = Rc::new(RefCell::new(None));
        let local = context.local().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = ours.try_clone().unwrap();
        let (taken, context_too) = (Rc::clone(&slot), context.clone());
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let handler = local.add_handler(ours, Interest::READ, move |_| {
            (&reader).read_exact(&mut [0]).unwrap();
            drop(taken.borrow_mut().take());
            let embedded = context_too.local().unwrap().embed().unwrap();
            *taken.borrow_mut() = Some(embedded);
            let count = Arc::clone(&count);
            context_too.schedule_oneshot("after", move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            resume_unwind(Box::new("on purpose"));
        });
        let handler = handler.unwrap();
        *slot.borrow_mut() = Some(local.embed().unwrap());
        for round in 1..=5 {
            theirs.write_all(b"x").unwrap();
            while ran.load(Ordering::Relaxed) < round {
                let embedded = slot.borrow_mut().take().unwrap();
                assert!(
                    is_readable(&embedded, PATIENCE),
                    "it sleeps over what is left"
                );
                *slot.borrow_mut() = Some(embedded);
                let _ = catch_unwind(AssertUnwindSafe(|| context.poll(false)));
            }
        }
        drop(handler);
        slot.take();
    };
    context.enter_home(home).unwrap();
}

// SPEC G3, M3: a regular file is refused while a foreign loop waits for the set, by whoever comes.
#[test]
fn a_regular_file_leaves_an_embedded_context_in_its_loop() {
    let context = embeddable();
    let home = || {
        let local = context.local().unwrap();
        let embedded = local.embed().unwrap();
        let file = tempfile::tempfile().unwrap();
        local.add_handler(file, Interest::READ, |_| ()).unwrap_err();
        let file = tempfile::tempfile().unwrap();
        let remote = context.add_handler(file, Interest::READ, |_| ());
        for _ in 0..3 {
            embedded.dispatch().unwrap();
        }
        assert_eq!(context.monitor().unwrap().kind, MonitorKind::Epoll);
        assert!(!is_readable(&embedded, Duration::ZERO), "it would spin");
        drop(remote);
        embedded.dispatch().unwrap();
    };
    context.enter_home(home).unwrap();
}

// SPEC W2: the home ends, or its thread, while others wait for a bottom half of it.
#[test]
fn who_waits_for_a_bottom_half_hears_of_every_end() {
    for monitor in MonitorChoice::ALL {
        for _ in 0..20 {
            let io = IoThread::builder().monitor(monitor).spawn().unwrap();
            let context = io.context().clone();
            let waits = thread::spawn(move || {
                let mut ran = 0u32;
                while context.run_in_bottom_half("asked", || ()).is_ok() {
                    ran += 1;
                }
                ran
            });
            thread::yield_now();
            io.join();
            waits.join().unwrap();
        }
    }
}
