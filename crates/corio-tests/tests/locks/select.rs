//! Waiting for whichever comes first.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corio::sync::{
    Event, OneOf, Queue, RecvError, Semaphore, TryRecvError, TrySendError, after, at_ns, channel,
    select,
};
use corio::{AioContext, Coroutine, IoThread, JoinHandle};

const LONG: Duration = Duration::from_secs(600);

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// Spawns, and returns once it has run until it parked.
fn start<T: Send + 'static>(
    io: &IoThread,
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let handle = io.context().spawn(f);
    io.context().spawn(|| ()).join().unwrap();
    handle
}

/// A context with its home on this thread, where who is woken and who is cancelled can be told
/// apart to the step.
fn at_home(f: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| f(&context)).unwrap();
}

/// A coroutine that has run until it parked.
fn entered(f: impl FnOnce() + 'static) -> Coroutine {
    let co = Coroutine::new(f);
    co.enter();
    co
}

// SPEC L5
#[test]
fn each_kind_of_arm_ends_the_wait() {
    let (io, other) = (io("io"), io("other"));
    let (tx, mut rx) = channel(1);
    let (full, mut drained) = channel(1);
    full.send(0).unwrap();
    let event = Arc::new(Event::new());
    let permits = Arc::new(Semaphore::new(1));
    let queue = Arc::new(Queue::new());
    let gate = Arc::new(Event::new());
    let ends = other.context().spawn({
        let gate = Arc::clone(&gate);
        move || gate.wait()
    });
    let seen = Arc::new(AtomicUsize::new(0));
    let waiting = start(&io, {
        let (event, permits, queue) =
            (Arc::clone(&event), Arc::clone(&permits), Arc::clone(&queue));
        let (seen, mut ends) = (Arc::clone(&seen), ends);
        let held = Arc::clone(&permits);
        move || {
            let mut held = Some(held.acquire(1));
            for round in 0..6 {
                let first = select((
                    rx.on_recv(),
                    full.on_room(),
                    event.on_set(),
                    permits.on_permits(1),
                    queue.on_wake(),
                    ends.on_end(),
                    after(LONG),
                ));
                let which = match first {
                    OneOf::First(message) => {
                        assert_eq!(message, Ok(7));
                        0
                    }
                    OneOf::Second(room) => {
                        room.unwrap().send(8).unwrap();
                        1
                    }
                    OneOf::Third(()) => {
                        event.reset();
                        2
                    }
                    OneOf::Fourth(permit) => {
                        assert_eq!(permit.amount(), 1);
                        held.replace(permit);
                        3
                    }
                    OneOf::Fifth(()) => 4,
                    OneOf::Sixth(()) => 5,
                    OneOf::Seventh(()) => unreachable!("it is not that late"),
                };
                assert_eq!(which, round);
                seen.store(round + 1, Ordering::Release);
                if round == 2 {
                    drop(held.take()); // For the next round.
                }
            }
        }
    });
    let reached = |round| {
        while seen.load(Ordering::Acquire) < round {
            std::thread::yield_now();
        }
        io.context().spawn(|| ()).join().unwrap();
    };
    tx.send(7).unwrap();
    reached(1);
    assert_eq!(drained.recv(), Ok(0));
    reached(2);
    event.set();
    reached(4); // The permit was given back by itself.
    assert!(queue.wake_one());
    reached(5);
    gate.set();
    waiting.join().unwrap();
    assert_eq!(drained.recv(), Ok(8));
    assert_eq!(permits.available(), 1);
}

// SPEC L5
#[test]
fn the_first_arm_that_has_something_wins_and_the_rest_stays() {
    let (tx, mut rx) = channel(2);
    tx.send(1).unwrap();
    let (event, permits) = (Event::new_set(), Semaphore::new(1));
    let arms = (event.on_set(), rx.on_recv(), permits.on_permits(1));
    assert!(matches!(select(arms), OneOf::First(())));
    let first = select((rx.on_recv(), event.on_set()));
    assert_eq!(first, OneOf::First(Ok(1)));
    assert_eq!(
        (rx.try_recv(), permits.available()),
        (Err(TryRecvError::Empty), 1)
    );
    let OneOf::Second(permit) = select((rx.on_recv(), permits.on_permits(1))) else {
        panic!("there is no message");
    };
    drop(permit);
    assert_eq!(permits.available(), 1);
}

// SPEC L5
#[test]
fn what_was_granted_in_the_same_moment_goes_back() {
    at_home(|context| {
        let (tx, rx) = channel(1);
        let (full, full_rx) = channel(1);
        full.try_send(0).unwrap();
        let full_rx = Rc::new(RefCell::new(full_rx));
        let (event, queue) = (Rc::new(Event::new()), Rc::new(Queue::new()));
        let permits = Rc::new(Semaphore::new(1));
        let held = permits.try_acquire(1).unwrap();
        let rx = Rc::new(RefCell::new(rx));
        let chosen = Rc::new(Cell::new(0));
        let waiting = entered({
            let (event, permits, queue) =
                (Rc::clone(&event), Rc::clone(&permits), Rc::clone(&queue));
            let (rx, full, chosen) = (Rc::clone(&rx), full.clone(), Rc::clone(&chosen));
            move || {
                let mut rx = rx.borrow_mut();
                let arms = (
                    event.on_set(),
                    rx.on_recv(),
                    permits.on_permits(1),
                    queue.on_wake(),
                    full.on_room(),
                );
                chosen.set(match select(arms) {
                    OneOf::First(()) => 1,
                    _ => 2,
                });
            }
        });
        // Others in the same lines, behind it.
        let woken = entered({
            let queue = Rc::clone(&queue);
            move || queue.wait()
        });
        let permitted = entered({
            let permits = Rc::clone(&permits);
            move || drop(permits.acquire(1))
        });
        let sending = entered({
            let full = full.clone();
            move || full.send(1).unwrap()
        });
        // All of it is granted before the waiter runs.
        tx.try_send(7).unwrap();
        drop(held);
        assert!(queue.wake_one());
        assert_eq!(full_rx.borrow_mut().try_recv(), Ok(0));
        event.set();
        (0..3).for_each(|_| _ = context.poll(false).unwrap());
        assert_eq!(chosen.get(), 1, "the first in order");
        assert!(waiting.is_done() && woken.is_done() && permitted.is_done() && sending.is_done());
        assert_eq!(rx.borrow_mut().try_recv(), Ok(7));
        assert_eq!(full_rx.borrow_mut().try_recv(), Ok(1));
        assert_eq!(permits.available(), 1);
        assert!(queue.is_empty());
    });
}

// SPEC L5, C12
#[test]
fn cancelled_before_or_after_it_was_granted_nothing_is_lost() {
    at_home(|context| {
        let (tx, rx) = channel(1);
        let rx = Rc::new(RefCell::new(rx));
        let permits = Rc::new(Semaphore::new(1));
        let queue = Rc::new(Queue::new());
        for granted in [false, true] {
            let held = permits.try_acquire(1).unwrap();
            let waiting = entered({
                let (rx, permits, queue) = (Rc::clone(&rx), Rc::clone(&permits), Rc::clone(&queue));
                move || {
                    let mut rx = rx.borrow_mut();
                    select((
                        rx.on_recv(),
                        permits.on_permits(1),
                        queue.on_wake(),
                        after(LONG),
                    ));
                    unreachable!("it is cancelled");
                }
            });
            if granted {
                tx.try_send(1).unwrap();
                drop(held);
                assert!(queue.wake_one());
                drop(waiting);
            } else {
                drop(waiting);
                tx.try_send(1).unwrap();
                drop(held);
                assert!(!queue.wake_one(), "nobody is in line");
            }
            context.poll(false).unwrap();
            assert_eq!(rx.borrow_mut().try_recv(), Ok(1));
            assert_eq!(permits.available(), 1);
            assert!(queue.is_empty());
        }
    });
}

// SPEC L5
#[test]
fn the_end_of_a_channel_is_something_that_comes() {
    let io = io("io");
    let (tx, mut rx) = channel::<()>(1);
    let receiving = start(&io, move || select((rx.on_recv(), after(LONG))));
    drop(tx);
    assert_eq!(receiving.join().unwrap(), OneOf::First(Err(RecvError)));
    let (tx, rx) = channel(1);
    tx.send(()).unwrap();
    let sending = start(&io, move || {
        let first = select((tx.on_room(), after(LONG)));
        matches!(first, OneOf::First(Err(_)))
    });
    drop(rx);
    assert!(sending.join().unwrap());
}

// SPEC L5, L4
#[test]
fn deadlines_end_the_wait_of_coroutines_and_threads() {
    let wait = || {
        let (event, begin) = (Event::new(), Instant::now());
        let delay = Duration::from_millis(5);
        let first = select((event.on_set(), after(delay), after(LONG)));
        assert_eq!(first, OneOf::Second(()));
        assert!(begin.elapsed() >= delay);
        // One that has passed needs no wait; one at the end of time never comes.
        assert_eq!(select((at_ns(u64::MAX), at_ns(0))), OneOf::Second(()));
    };
    wait();
    io("io").context().spawn(wait).join().unwrap();
}

// SPEC L5
#[test]
fn plain_threads_wait_for_coroutines_and_their_ends() {
    let io = io("io");
    let (tx, mut rx) = channel(1);
    let gate = Arc::new(Event::new());
    let mut handle = io.context().spawn({
        let gate = Arc::clone(&gate);
        move || {
            tx.send(1).unwrap();
            gate.wait();
            2
        }
    });
    assert_eq!(
        select((handle.on_end(), rx.on_recv())),
        OneOf::Second(Ok(1))
    );
    gate.set();
    assert_eq!(select((handle.on_end(), after(LONG))), OneOf::First(()));
    assert_eq!(handle.join().unwrap(), 2);
}

// SPEC L5
#[test]
fn any_number_of_arms_of_a_kind_can_be_waited_for_again_and_again() {
    let io = io("io");
    let (txs, rxs): (Vec<_>, Vec<_>) = (0..20).map(|_| channel(1)).unzip();
    let sum = io.context().spawn(move || {
        let mut rxs = rxs;
        let mut arms: Vec<_> = rxs.iter_mut().map(|rx| rx.on_recv()).collect();
        let (mut sum, mut seen) = (0, Vec::new());
        while sum < (0..20).sum::<usize>() {
            let (index, message) = select(&mut arms[..]);
            assert_eq!(message, Ok(index));
            sum += index;
            seen.push(index);
        }
        seen.sort_unstable();
        seen
    });
    for (number, tx) in txs.iter().enumerate().skip(1) {
        tx.send(number).unwrap();
    }
    assert!(sum.join().unwrap().into_iter().eq(1..20));
}

// SPEC L5
#[test]
fn under_load_from_other_threads_nothing_is_lost() {
    const EACH: usize = 2000;
    let (a, b, home) = (io("a"), io("b"), io("home"));
    let (left, mut left_rx) = channel(1);
    let (right, mut right_rx) = channel(2);
    let permits = Arc::new(Semaphore::new(2));
    let stop = Arc::new(Event::new());
    let feed = |io: &IoThread, tx: corio::sync::Sender<usize>| {
        io.context()
            .spawn(move || (0..EACH).for_each(|n| tx.send(n).unwrap()))
    };
    let feeding = [feed(&a, left), feed(&b, right)];
    let taking = a.context().spawn({
        let (permits, stop) = (Arc::clone(&permits), Arc::clone(&stop));
        move || {
            let mut rounds = 0;
            while !stop.is_set() {
                let _both = permits.acquire(2);
                rounds += 1;
                corio::yield_now();
            }
            rounds
        }
    });
    let consuming = home.context().spawn({
        let (permits, stop) = (Arc::clone(&permits), Arc::clone(&stop));
        move || {
            let (mut next, mut granted) = ([0; 2], 0);
            while next != [EACH; 2] {
                // Turns, so that none starves.
                let first = select((left_rx.on_recv(), permits.on_permits(1), right_rx.on_recv()));
                match first {
                    OneOf::First(Ok(number)) => {
                        assert_eq!(number, next[0]);
                        next[0] += 1;
                    }
                    OneOf::Second(_permit) => granted += 1,
                    OneOf::Third(Ok(number)) => {
                        assert_eq!(number, next[1]);
                        next[1] += 1;
                    }
                    // One has ended: the other is all that is left.
                    OneOf::First(Err(_)) => {
                        for number in right_rx.iter() {
                            assert_eq!(number, next[1]);
                            next[1] += 1;
                        }
                    }
                    OneOf::Third(Err(_)) => {
                        for number in left_rx.iter() {
                            assert_eq!(number, next[0]);
                            next[0] += 1;
                        }
                    }
                }
            }
            stop.set();
            granted
        }
    });
    feeding
        .into_iter()
        .for_each(|handle| handle.join().unwrap());
    let _ = (consuming.join().unwrap(), taking.join().unwrap());
    assert_eq!(permits.available(), 2);
}

// SPEC C3
#[test]
fn waiting_where_it_cannot_be_is_misuse() {
    let context = AioContext::builder().name("home").build().unwrap();
    let wait = || select(Event::new_set().on_set());
    let payload = context
        .enter_home(|| catch_unwind(wait))
        .unwrap()
        .unwrap_err();
    let text = payload.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("sync::select was called outside a coroutine"),
        "{text}"
    );
    corio::home(|| {
        let co = Coroutine::new(|| {
            select(Event::new_set().on_set());
            select(Event::new().on_set());
        });
        let payload = catch_unwind(AssertUnwindSafe(|| co.enter())).unwrap_err();
        let text = payload.downcast_ref::<String>().unwrap();
        assert!(text.contains("no event loop"), "{text}");
    });
    let payload = catch_unwind(|| drop(Semaphore::new(1).on_permits(2))).unwrap_err();
    let text = payload.downcast_ref::<String>().unwrap();
    assert!(text.contains("it would wait for ever"), "{text}");
}

// SPEC L5
#[test]
fn room_that_is_not_used_is_given_back() {
    let (tx, mut rx) = channel(1);
    let OneOf::First(room) = select((tx.on_room(), after(LONG))) else {
        panic!("there is room");
    };
    assert_eq!(tx.try_send(1), Err(TrySendError::Full(1)));
    drop(room);
    tx.try_send(1).unwrap();
    assert_eq!(rx.recv(), Ok(1));
}
