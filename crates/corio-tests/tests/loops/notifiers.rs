//! Event notifiers, which the loop clears before it calls back (SPEC H4).

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{EventNotifier, Interest, MonitorChoice, MonitorKind};
use rustix::event::{EventfdFlags, eventfd};

use super::on_each_monitor;

const PATIENCE: Duration = Duration::from_secs(5);

fn notifier() -> Arc<EventNotifier> {
    Arc::new(EventNotifier::new().unwrap())
}

/// A counter, and a callback that counts.
fn counter() -> (Rc<Cell<u32>>, impl Fn() + 'static) {
    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    (calls, move || count.set(count.get() + 1))
}

/// Turns that do not block, so many that nothing that is there is left.
fn turns(context: &AioContext) {
    for _ in 0..3 {
        context.poll(false).unwrap();
    }
}

// SPEC H4
#[test]
fn of_what_another_thread_sets_nothing_is_lost() {
    const ROUNDS: u32 = 5_000;
    on_each_monitor(|context| {
        let local = context.local().unwrap();
        let event = notifier();
        let (sent, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (at, last) = (Arc::clone(&sent), Arc::clone(&seen));
        let callback = move || last.store(at.load(Ordering::Acquire), Ordering::Release);
        let _handler = local.add_notifier(Arc::clone(&event), callback).unwrap();
        let deadline = Instant::now() + PATIENCE;
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    sent.store(round, Ordering::Release);
                    event.set();
                    // Every other one is answered before the next is set.
                    while round % 2 == 0 && seen.load(Ordering::Acquire) != round {
                        assert!(Instant::now() < deadline, "round {round} is lost");
                        thread::yield_now();
                    }
                }
            });
            let tick = context.timer(|| ());
            while seen.load(Ordering::Acquire) != ROUNDS {
                assert!(Instant::now() < deadline, "the last one is lost");
                tick.arm_after(Duration::from_millis(20));
                context.poll(true).unwrap();
            }
        });
        assert!(!event.test_and_clear());
    });
}

// SPEC H4
#[test]
fn what_is_set_while_the_handler_pauses_comes_when_it_goes_on() {
    on_each_monitor(|context| {
        let event = notifier();
        let (calls, count) = counter();
        let local = context.local().unwrap();
        let handler = local.add_notifier(Arc::clone(&event), count).unwrap();
        event.set();
        turns(context);
        assert_eq!(calls.get(), 1);
        handler.set_interest(Interest::default()).unwrap();
        event.set();
        turns(context);
        assert_eq!(calls.get(), 1);
        // Back and forth between two waits, too.
        for _ in 0..2 {
            handler.set_interest(Interest::READ).unwrap();
            handler.set_interest(Interest::default()).unwrap();
        }
        handler.set_interest(Interest::READ).unwrap();
        turns(context);
        assert_eq!(calls.get(), 2);
    });
}

// SPEC H4, A3
#[test]
fn a_callback_that_panicked_is_called_again() {
    on_each_monitor(|context| {
        let event = notifier();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let local = context.local().unwrap();
        let callback = move || {
            count.set(count.get() + 1);
            assert!(count.get() != 1, "the first one");
        };
        let _handler = local.add_notifier(Arc::clone(&event), callback).unwrap();
        event.set();
        let turned = catch_unwind(AssertUnwindSafe(|| turns(context)));
        assert!(turned.is_err() && calls.get() == 1);
        event.set();
        turns(context);
        assert_eq!(calls.get(), 2);
    });
}

// SPEC H4, A1
#[test]
fn those_that_one_wait_has_found_are_called_once_though_the_first_polls() {
    on_each_monitor(|context| {
        let local = context.local().unwrap();
        let events: Vec<_> = (0..3).map(|_| notifier()).collect();
        let calls: Rc<[Cell<u32>; 3]> = Rc::default();
        let handlers: Vec<_> = (0..3)
            .map(|number| {
                let (calls, context) = (Rc::clone(&calls), context.clone());
                let callback = move || {
                    calls[number].set(calls[number].get() + 1);
                    context.poll(false).unwrap();
                };
                let event = Arc::clone(&events[number]);
                local.add_notifier(event, callback).unwrap()
            })
            .collect();
        for event in &events {
            event.set();
        }
        turns(context);
        assert_eq!(calls.each_ref().map(Cell::get), [1; 3]);
        drop(handlers);
    });
}

// SPEC H4
#[test]
fn one_that_somebody_else_has_cleared_is_no_call() {
    on_each_monitor(|context| {
        let event = notifier();
        let (calls, count) = counter();
        let local = context.local().unwrap();
        let _handler = local.add_notifier(Arc::clone(&event), count).unwrap();
        turns(context);
        event.set();
        assert!(event.test_and_clear());
        turns(context);
        assert_eq!(calls.get(), 0);
        event.set();
        turns(context);
        assert_eq!(calls.get(), 1);
    });
}

// SPEC H4, H3
#[test]
fn one_may_remove_itself_and_close_its_descriptor() {
    on_each_monitor(|context| {
        let local = context.local().unwrap();
        let handler = Rc::new(Cell::new(None));
        let (calls, count) = counter();
        let removes = Rc::clone(&handler);
        let event = notifier();
        let weak = Arc::downgrade(&event);
        let callback = move || {
            count();
            drop(removes.take());
        };
        event.set();
        handler.set(Some(local.add_notifier(event, callback).unwrap()));
        assert!(weak.upgrade().is_some());
        turns(context);
        assert!(calls.get() == 1 && weak.upgrade().is_none());
    });
}

// SPEC H4, M1
#[test]
fn what_is_set_when_the_monitor_changes_is_not_lost() {
    let context = AioContext::builder().monitor(MonitorChoice::Poll);
    let context = context.build().unwrap();
    context
        .enter_home(|| {
            let local = context.local().unwrap();
            assert_eq!(context.monitor().unwrap().kind, MonitorKind::Poll);
            let (calls, _) = counter();
            let events: Vec<_> = (0..100).map(|_| notifier()).collect();
            let handlers: Vec<_> = events
                .iter()
                .map(|event| {
                    event.set();
                    let count = Rc::clone(&calls);
                    let callback = move || count.set(count.get() + 1);
                    local.add_notifier(Arc::clone(event), callback).unwrap()
                })
                .collect();
            turns(&context);
            assert_eq!(context.monitor().unwrap().kind, MonitorKind::Epoll);
            assert_eq!(calls.get(), 100);
            for event in &events {
                event.set();
            }
            turns(&context);
            assert_eq!(calls.get(), 200);
            drop(handlers);
        })
        .unwrap();
}

// SPEC H4
#[test]
fn one_that_counts_down_is_refused() {
    let flags = EventfdFlags::SEMAPHORE | EventfdFlags::CLOEXEC;
    let error = EventNotifier::from_fd(eventfd(0, flags).unwrap()).unwrap_err();
    assert!(error.to_string().contains("EFD_SEMAPHORE"), "{error}");
    let blocking = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
    let event = EventNotifier::from_fd(blocking).unwrap();
    assert!(event.test_and_clear() && !event.test_and_clear());
}
