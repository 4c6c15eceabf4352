//! The event between coroutines of several threads, and plain threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use corio::sync::Event;
use corio::{AioContext, Coroutine, IoThread, JoinError};

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(|| ()).join().unwrap();
}

/// A context with its home on this thread, where who is woken and who is cancelled can be told
/// apart to the step.
fn at_home(f: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| f(&context)).unwrap();
}

fn waiter(event: &Rc<Event>) -> Coroutine {
    let event = Rc::clone(event);
    let co = Coroutine::new(move || event.wait());
    co.enter();
    co
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload.downcast_ref::<String>().unwrap()
}

// SPEC L5
#[test]
fn set_wakes_all_that_wait_of_all_threads() {
    let (a, b) = (io("a"), io("b"));
    let event = Arc::new(Event::new());
    let passed = Arc::new(AtomicUsize::new(0));
    let wait = || {
        let (event, passed) = (Arc::clone(&event), Arc::clone(&passed));
        move || {
            event.wait();
            passed.fetch_add(1, Ordering::Relaxed)
        }
    };
    let waiters: Vec<_> = (0..10)
        .map(|i| [&a, &b][i % 2].context().spawn(wait()))
        .collect();
    let thread = std::thread::spawn(wait());
    settle(&a);
    settle(&b);
    assert_eq!(passed.load(Ordering::Relaxed), 0);
    event.set();
    waiters
        .into_iter()
        .for_each(|waiter| _ = waiter.join().unwrap());
    thread.join().unwrap();
    assert_eq!(passed.load(Ordering::Relaxed), 11);
}

// SPEC L5
#[test]
fn it_stays_set_until_it_is_reset() {
    let io = io("io");
    let event = Arc::new(Event::new());
    assert!(!event.is_set() && Event::new_set().is_set() && !Event::default().is_set());
    event.set();
    event.set();
    assert!(event.is_set());
    event.wait();
    event.wait();
    event.reset();
    event.reset();
    assert!(!event.is_set());
    let waiter = io.context().spawn({
        let event = Arc::clone(&event);
        move || event.wait()
    });
    settle(&io);
    assert!(!waiter.is_finished());
    event.set();
    waiter.join().unwrap();
}

// SPEC L5
#[test]
fn who_waited_goes_on_even_if_it_is_reset_at_once() {
    at_home(|context| {
        let event = Rc::new(Event::new());
        let waiters = [(); 3].map(|()| waiter(&event));
        event.set();
        event.reset();
        let late = waiter(&event);
        context.poll(false).unwrap();
        assert!(waiters.iter().all(Coroutine::is_done) && !late.is_done());
        assert!(!event.is_set());
    });
}

// SPEC L5
#[test]
fn work_that_is_published_before_a_set_is_never_missed() {
    const ITEMS: usize = 20_000;
    let (a, b) = (io("a"), io("b"));
    let shared = Arc::new((Event::new(), AtomicUsize::new(0)));
    let produce = |io: &IoThread| {
        let shared = Arc::clone(&shared);
        io.context().spawn(move || {
            for _ in 0..ITEMS {
                shared.1.fetch_add(1, Ordering::Relaxed);
                shared.0.set();
            }
        })
    };
    let consumer = a.context().spawn({
        let shared = Arc::clone(&shared);
        move || {
            let mut seen = 0;
            loop {
                shared.0.reset();
                seen += shared.1.swap(0, Ordering::Relaxed);
                if seen == 2 * ITEMS {
                    return seen;
                }
                shared.0.wait();
            }
        }
    });
    let producers = [produce(&a), produce(&b)];
    producers
        .into_iter()
        .for_each(|producer| producer.join().unwrap());
    assert_eq!(consumer.join().unwrap(), 2 * ITEMS);
}

// SPEC L5
#[test]
fn plain_threads_block_until_a_coroutine_sets_it() {
    let io = io("io");
    let event = Arc::new(Event::new());
    let (tx, rx) = mpsc::channel();
    let thread = std::thread::spawn({
        let event = Arc::clone(&event);
        move || {
            event.wait();
            tx.send(event.is_set()).unwrap();
        }
    });
    let setter = io.context().spawn(move || event.set());
    setter.join().unwrap();
    assert_eq!(rx.recv(), Ok(true));
    thread.join().unwrap();
}

// SPEC L5, C12
#[test]
fn waiters_that_are_cancelled_leave_others_and_the_event_as_they_were() {
    let (leaving, staying) = (io("leaving"), io("staying"));
    let event = Arc::new(Event::new());
    let wait = |io: &IoThread| {
        let event = Arc::clone(&event);
        let handle = io.context().spawn(move || event.wait());
        settle(io);
        handle
    };
    let cancelled = [wait(&leaving), wait(&leaving)];
    let waiter = wait(&staying);
    let cancelled_too = wait(&leaving);
    leaving.join();
    for handle in cancelled.into_iter().chain([cancelled_too]) {
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    }
    assert!(!event.is_set() && !waiter.is_finished());
    event.set();
    waiter.join().unwrap();
}

// SPEC L5, C12
#[test]
fn cancelled_at_every_stage_nobody_is_lost() {
    at_home(|context| {
        let event = Rc::new(Event::new());
        // The only one, before it is set.
        drop(waiter(&event));
        assert!(!event.is_set());
        event.set();
        assert!(event.is_set(), "nobody waits any more");
        event.reset();
        // Of two, before and after: the other goes on.
        let (first, second) = (waiter(&event), waiter(&event));
        drop(first);
        let third = waiter(&event);
        event.set();
        drop(third); // Woken, and has not run since.
        context.poll(false).unwrap();
        assert!(second.is_done() && event.is_set());
        // Woken, and reset before it knows.
        event.reset();
        let fourth = waiter(&event);
        event.set();
        event.reset();
        drop(fourth);
        context.poll(false).unwrap();
        assert!(!event.is_set());
        let fifth = waiter(&event);
        event.set();
        context.poll(false).unwrap();
        assert!(fifth.is_done());
    });
}

// SPEC C3
#[test]
fn waiting_where_it_cannot_be_is_misuse() {
    let context = AioContext::builder().name("home").build().unwrap();
    let on_the_loop = context
        .enter_home(|| catch_unwind(|| Event::new().wait()))
        .unwrap();
    let payload = on_the_loop.unwrap_err();
    let text = panic_text(&*payload);
    assert!(
        text.contains("sync::Event::wait") && text.contains("outside a coroutine"),
        "{text}"
    );
    corio::home(|| {
        let event = Rc::new(Event::new_set());
        let co = Coroutine::new({
            let event = Rc::clone(&event);
            move || {
                event.wait();
                event.reset();
                event.wait();
            }
        });
        let payload = catch_unwind(AssertUnwindSafe(|| co.enter())).unwrap_err();
        let text = panic_text(&*payload);
        assert!(text.contains("no event loop"), "{text}");
        assert!(!event.is_set());
    });
}
