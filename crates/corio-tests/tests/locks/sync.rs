//! Mutex, queue and semaphore between coroutines of several threads, and plain threads.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};

use corio::sync::{Mutex, MutexGuard, Place, Queue, Semaphore};
use corio::{AioContext, Coroutine, IoThread, JoinError};

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(|| ()).join().unwrap();
}

fn panic_text(error: JoinError) -> String {
    let JoinError::Panicked(payload) = error else {
        panic!("it did not panic: {error}");
    };
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

#[test]
fn types_go_where_they_may() {
    // SPEC C10, L1
    fn shared<T: Send + Sync>() {}
    shared::<Mutex<Cell<i32>>>();
    shared::<(Queue, Semaphore)>();
    fn sync<T: Sync>() {}
    sync::<MutexGuard<'static, i32>>();
}

#[test]
fn mutex_excludes_coroutines_of_several_threads_and_plain_threads() {
    // SPEC L1
    const ROUNDS: usize = 300;
    let (a, b) = (io("a"), io("b"));
    // Not atomic: a lost update or two holders at once would show.
    let shared = Arc::new(Mutex::new((Cell::new(0), false)));
    let work = |yields: bool| {
        let shared = Arc::clone(&shared);
        move || {
            for round in 0..ROUNDS {
                let mut guard = shared.lock();
                assert!(!std::mem::replace(&mut guard.1, true), "two holders");
                let before = guard.0.get();
                if yields && round % 3 == 0 {
                    corio::yield_now();
                }
                guard.0.set(before + 1);
                guard.1 = false;
            }
        }
    };
    let coroutines: Vec<_> = [&a, &b]
        .into_iter()
        .flat_map(|io| (0..4).map(|_| io.context().spawn(work(true))))
        .collect();
    let thread = std::thread::spawn(work(false));
    for coroutine in coroutines {
        coroutine.join().unwrap();
    }
    thread.join().unwrap();
    assert_eq!(shared.lock().0.get(), 9 * ROUNDS);
}

#[test]
fn mutex_goes_to_the_oldest_waiter() {
    // SPEC L1
    let (a, b) = (io("a"), io("b"));
    let order = Arc::new(Mutex::new(Vec::new()));
    let guard = order.lock();
    let waiters: Vec<_> = (0..20)
        .map(|i| {
            let io = if i % 3 == 0 { &a } else { &b };
            let order = Arc::clone(&order);
            let waiter = io.context().spawn(move || order.lock().push(i));
            settle(io);
            waiter
        })
        .collect();
    drop(guard);
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert!(order.lock().iter().copied().eq(0..20));
}

#[test]
fn mutex_that_is_handed_over_cannot_be_taken_in_between() {
    // SPEC L1
    let io = io("io");
    let mutex = Arc::new(Mutex::new(()));
    let guard = mutex.lock();
    assert!(mutex.try_lock().is_none());
    let (done, wait) = (Arc::new(Queue::new()), Arc::clone(&mutex));
    let waiter = io.context().spawn({
        let done = Arc::clone(&done);
        move || {
            let _guard = wait.lock();
            done.wait();
        }
    });
    settle(&io);
    drop(guard);
    // The waiter holds it, whether it has run since or not.
    assert!(mutex.try_lock().is_none());
    settle(&io);
    assert!(done.wake_one());
    waiter.join().unwrap();
    assert!(mutex.try_lock().is_some());
}

#[test]
fn mutex_waiter_that_is_cancelled_leaves_the_line() {
    // SPEC C12
    let (leaving, staying) = (io("leaving"), io("staying"));
    let mutex = Arc::new(Mutex::new(0));
    let guard = mutex.lock();
    let spawn = |io: &IoThread| {
        let mutex = Arc::clone(&mutex);
        let handle = io.context().spawn(move || *mutex.lock() += 1);
        settle(io);
        handle
    };
    let cancelled = [spawn(&leaving), spawn(&leaving)];
    let waiter = spawn(&staying);
    let cancelled_too = spawn(&leaving);
    // While the mutex is held: a waiter that could not leave would keep its home from ending.
    leaving.join();
    for handle in cancelled.into_iter().chain([cancelled_too]) {
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    }
    drop(guard);
    waiter.join().unwrap();
    assert_eq!(*mutex.lock(), 1);
}

#[test]
fn mutex_grants_survive_cancellation_under_load() {
    // SPEC C12: waiters are cancelled while others hand the mutex over to them.
    let staying = io("staying");
    let mutex = Arc::new(Mutex::new(0usize));
    for _ in 0..50 {
        let leaving = io("leaving");
        let spawn = |io: &IoThread| {
            let mutex = Arc::clone(&mutex);
            io.context().spawn(move || {
                for _ in 0..20 {
                    let mut guard = mutex.lock();
                    *guard += 1;
                    corio::yield_now();
                }
            })
        };
        let cancelled: Vec<_> = (0..3).map(|_| spawn(&leaving)).collect();
        let going_on: Vec<_> = (0..3).map(|_| spawn(&staying)).collect();
        leaving.join();
        for handle in going_on {
            handle.join().unwrap();
        }
        drop(cancelled);
    }
    assert!(*mutex.try_lock().unwrap() >= 50 * 3 * 20);
}

#[test]
fn mutex_is_not_poisoned_and_panics_release_it() {
    // SPEC L3
    let io = io("io");
    let mutex = Arc::new(Mutex::new(1));
    let panics = io.context().spawn({
        let mutex = Arc::clone(&mutex);
        move || {
            let mut guard = mutex.lock();
            *guard = 2;
            panic!("on purpose");
        }
    });
    let error = panics.join().map(|(): ()| ()).unwrap_err();
    assert_eq!(panic_text(error), "on purpose");
    assert_eq!(*mutex.lock(), 2);
}

#[test]
fn locking_twice_is_misuse() {
    // SPEC C3
    let io = io("io");
    let twice = io.context().spawn(|| {
        let mutex = Mutex::new(());
        let _first = mutex.lock();
        let _second = mutex.lock();
    });
    let text = panic_text(twice.join().unwrap_err());
    assert!(text.contains("holds already"), "{text}");
    // Having held it is none.
    let again = io.context().spawn(|| {
        let mutex = Mutex::new(());
        drop(mutex.lock());
        drop(mutex.lock());
    });
    again.join().unwrap();
}

#[test]
fn a_guard_belongs_to_who_took_it_until_it_is_handed_on() {
    // SPEC C3
    let io = io("io");
    let give_away = |hands_on: bool| {
        io.context().spawn(move || {
            let mutex: &'static Mutex<i32> = Box::leak(Box::new(Mutex::new(1)));
            let mut guard = mutex.lock();
            if hands_on {
                guard = MutexGuard::hand_on(guard);
            }
            let child = corio::spawn_local(move || {
                corio::yield_now();
                *guard += 1;
            });
            let sum = *mutex.lock();
            child.join().unwrap();
            sum
        })
    };
    assert_eq!(give_away(true).join().unwrap(), 2, "it waits for the child");
    let text = panic_text(give_away(false).join().unwrap_err());
    assert!(text.contains("MutexGuard::hand_on"), "{text}");
    // Who has handed it on may end before it is dropped.
    let ends = io.context().spawn(move || {
        let mutex: &'static Mutex<()> = Box::leak(Box::new(Mutex::new(())));
        let guard = MutexGuard::hand_on(mutex.lock());
        drop(corio::spawn_local(move || {
            corio::yield_now();
            drop(guard);
        }));
    });
    ends.join().unwrap();
}

#[test]
fn waiting_on_a_loop_outside_a_coroutine_is_misuse() {
    // SPEC C3
    let context = AioContext::builder().name("home").build().unwrap();
    let misuse: [fn(); 3] = [
        || drop(Mutex::new(()).lock()),
        || drop(Semaphore::new(1).acquire(1)),
        || Queue::new().wait(),
    ];
    for f in misuse {
        let panicked = context.enter_home(|| std::panic::catch_unwind(f)).unwrap();
        let payload = panicked.unwrap_err();
        let text = payload.downcast_ref::<String>().unwrap();
        assert!(text.contains("outside a coroutine"), "{text}");
    }
    let (tried, acquired) = context
        .enter_home(|| {
            (
                Mutex::new(()).try_lock().is_some(),
                Semaphore::new(1).try_acquire(1).is_some(),
            )
        })
        .unwrap();
    assert!(tried && acquired);
}

#[test]
fn waiting_without_a_loop_is_misuse() {
    // SPEC C3
    corio::home(|| {
        let mutex = Arc::new(Mutex::new(1));
        let take = |mutex: &Arc<Mutex<i32>>| {
            let mutex = Arc::clone(mutex);
            Coroutine::new(move || drop(mutex.lock()))
        };
        take(&mutex).enter();
        let guard = mutex.lock();
        let contended = take(&mutex);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| contended.enter()));
        let payload = panicked.unwrap_err();
        let text = payload.downcast_ref::<String>().unwrap();
        assert!(text.contains("no event loop"), "{text}");
        drop(guard);
        assert!(mutex.try_lock().is_some());
    });
}

#[test]
fn ending_with_a_mutex_held_is_misuse() {
    // SPEC C3
    corio::home(|| {
        let mutex = Arc::new(Mutex::new(()));
        let ends = Coroutine::new({
            let mutex = Arc::clone(&mutex);
            move || std::mem::forget(mutex.lock())
        });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ends.enter()));
        let payload = panicked.unwrap_err();
        let text = payload.downcast_ref::<String>().unwrap();
        assert!(text.contains("holding 1 coroutine lock"), "{text}");
    });
}

#[test]
fn queue_wakes_the_oldest_and_the_front_before_it() {
    // SPEC L3
    let io = io("io");
    let shared = Arc::new((Queue::new(), StdMutex::new(Vec::new())));
    let waiters: Vec<_> = [Place::Back, Place::Back, Place::Front, Place::Back]
        .into_iter()
        .enumerate()
        .map(|(i, place)| {
            let shared = Arc::clone(&shared);
            let waiter = io.context().spawn(move || {
                shared.0.wait_after(place, || ());
                shared.1.lock().unwrap().push(i);
            });
            settle(&io);
            waiter
        })
        .collect();
    assert!(!shared.0.is_empty());
    for _ in 0..4 {
        assert!(shared.0.wake_one());
        settle(&io);
    }
    assert!(!shared.0.wake_one() && shared.0.is_empty());
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert_eq!(*shared.1.lock().unwrap(), [2, 0, 1, 3]);
}

#[test]
fn queue_wakes_all_that_wait_at_the_call_once() {
    // SPEC L3
    let (a, b) = (io("a"), io("b"));
    let shared = Arc::new((Queue::new(), AtomicUsize::new(0)));
    let waiters: Vec<_> = (0..10)
        .map(|i| {
            let shared = Arc::clone(&shared);
            let body = move || {
                for _ in 0..2 {
                    shared.0.wait();
                    shared.1.fetch_add(1, Ordering::Relaxed);
                }
            };
            let io = if i % 2 == 0 { &a } else { &b };
            let waiter = io.context().spawn(body);
            settle(io);
            waiter
        })
        .collect();
    for woken in [10, 20] {
        assert_eq!(shared.0.wake_all(), 10);
        // Twice: the first may run before those that the wake has queued.
        for io in [&a, &b, &a, &b] {
            settle(io);
        }
        assert_eq!(shared.1.load(Ordering::Relaxed), woken);
    }
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert_eq!(shared.0.wake_all(), 0);
}

#[test]
fn no_wake_is_missed_by_who_waits_with_the_mutex() {
    // SPEC L3
    const ITEMS: usize = 2000;
    struct Channel {
        items: Mutex<Vec<usize>>,
        changed: Queue,
    }
    let (a, b) = (io("a"), io("b"));
    let channel = Arc::new(Channel {
        items: Mutex::new(Vec::new()),
        changed: Queue::new(),
    });
    let consume = |count| {
        let channel = Arc::clone(&channel);
        move || {
            (0..count)
                .map(|_| {
                    let mut items = channel.items.lock();
                    loop {
                        if let Some(item) = items.pop() {
                            return item;
                        }
                        items = channel.changed.wait_releasing(items);
                    }
                })
                .sum::<usize>()
        }
    };
    let consumers = [
        a.context().spawn(consume(ITEMS / 4)),
        b.context().spawn(consume(ITEMS / 4)),
    ];
    let thread = std::thread::spawn(consume(ITEMS / 2));
    let producers = [&a, &b].map(|io| {
        let channel = Arc::clone(&channel);
        io.context().spawn(move || {
            for i in 0..ITEMS / 2 {
                channel.items.lock().push(i);
                channel.changed.wake_one();
                if i % 50 == 0 {
                    corio::yield_now();
                }
            }
        })
    });
    for producer in producers {
        producer.join().unwrap();
    }
    let sum: usize = consumers
        .into_iter()
        .map(|consumer| consumer.join().unwrap())
        .sum();
    assert_eq!(
        sum + thread.join().unwrap(),
        (0..ITEMS / 2).sum::<usize>() * 2
    );
    assert!(channel.changed.is_empty());
}

#[test]
fn queue_works_with_an_ordinary_mutex() {
    // SPEC L3
    let io = io("io");
    let shared = Arc::new((StdMutex::new(0), Queue::new()));
    let waiter = io.context().spawn({
        let shared = Arc::clone(&shared);
        move || {
            loop {
                let value = shared.0.lock().unwrap();
                if *value == 3 {
                    break;
                }
                shared.1.wait_after(Place::Back, || drop(value));
            }
        }
    });
    for value in 1..=3 {
        *shared.0.lock().unwrap() = value;
        shared.1.wake_all();
    }
    waiter.join().unwrap();
}

#[test]
fn queue_waiter_whose_release_panics_is_out_of_the_line() {
    // SPEC L3
    let io = io("io");
    let queue = Arc::new(Queue::new());
    let panics = io.context().spawn({
        let queue = Arc::clone(&queue);
        move || queue.wait_after(Place::Back, || panic!("on purpose"))
    });
    assert_eq!(panic_text(panics.join().unwrap_err()), "on purpose");
    assert!(queue.is_empty());
}

#[test]
fn queue_waiter_that_is_cancelled_leaves_the_line() {
    // SPEC C12
    let (leaving, staying) = (io("leaving"), io("staying"));
    let queue = Arc::new(Queue::new());
    let spawn = |io: &IoThread| {
        let queue = Arc::clone(&queue);
        let handle = io.context().spawn(move || queue.wait());
        settle(io);
        handle
    };
    let cancelled = spawn(&leaving);
    let waiter = spawn(&staying);
    leaving.join();
    assert!(matches!(cancelled.join(), Err(JoinError::Cancelled)));
    assert!(queue.wake_one());
    waiter.join().unwrap();
    assert!(!queue.wake_one());
}

#[test]
fn waiter_cancelled_while_it_takes_the_mutex_again_passes_its_wake_on() {
    // SPEC C12, L3
    let (leaving, staying) = (io("leaving"), io("staying"));
    let shared = Arc::new((Mutex::new(()), Queue::new()));
    let spawn = |io: &IoThread| {
        let shared = Arc::clone(&shared);
        let handle = io
            .context()
            .spawn(move || drop(shared.1.wait_releasing(shared.0.lock())));
        settle(io);
        handle
    };
    let cancelled = spawn(&leaving);
    let waiter = spawn(&staying);
    let guard = shared.0.lock();
    assert!(shared.1.wake_one());
    // The first is woken, and waits for the mutex now.
    settle(&leaving);
    leaving.join();
    assert!(matches!(cancelled.join(), Err(JoinError::Cancelled)));
    drop(guard);
    waiter.join().unwrap();
}

#[test]
fn wake_all_wakes_nobody_in_place_of_one_that_is_cancelled() {
    // SPEC L3, C12
    let context = AioContext::new().unwrap();
    let turns = || {
        for _ in 0..5 {
            context.poll(false).unwrap();
        }
    };
    context
        .enter_home(|| {
            let shared = Rc::new((Mutex::new(()), Queue::new()));
            let woken = Rc::new(Cell::new(0));
            let start = |releasing: bool| {
                let (shared, woken) = (Rc::clone(&shared), Rc::clone(&woken));
                let waiter = Coroutine::new(move || {
                    let (mutex, queue) = &*shared;
                    if releasing {
                        drop(queue.wait_releasing(mutex.lock()));
                    } else {
                        queue.wait();
                    }
                    woken.set(woken.get() + 1);
                });
                waiter.enter();
                waiter
            };
            // It was woken and has not run; or takes the mutex again.
            for releasing in [false, true] {
                let cancelled = start(releasing);
                let guard = shared.0.try_lock();
                assert_eq!(shared.1.wake_all(), 1);
                if releasing {
                    turns();
                }
                let later = start(false);
                drop(cancelled);
                turns();
                drop(guard);
                turns();
                assert_eq!(woken.get(), 0, "it began to wait after wake_all");
                // Its turn is passed on, as ever.
                let last = start(false);
                assert!(shared.1.wake_one());
                drop(later);
                turns();
                assert!(last.is_done() && woken.take() == 1);
            }
        })
        .unwrap();
}

#[test]
fn semaphore_gives_all_or_waits_and_nobody_overtakes() {
    // SPEC L5
    let io = io("io");
    let shared = Arc::new((Semaphore::new(10), StdMutex::new(Vec::new())));
    let held = shared.0.acquire(6);
    assert_eq!(
        (held.amount(), shared.0.available(), shared.0.total()),
        (6, 4, 10)
    );
    let waiters: Vec<_> = [8, 3, 2]
        .into_iter()
        .map(|amount| {
            let shared = Arc::clone(&shared);
            let waiter = io.context().spawn(move || {
                let _permit = shared.0.acquire(amount);
                shared.1.lock().unwrap().push(amount);
            });
            settle(&io);
            waiter
        })
        .collect();
    // Enough for the later two, one by one, but the first comes first; for who only tries as well.
    assert!(shared.0.try_acquire(1).is_none());
    assert!(shared.1.lock().unwrap().is_empty());
    drop(held);
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert_eq!(*shared.1.lock().unwrap(), [8, 3, 2]);
    assert_eq!(shared.0.available(), 10);
}

#[test]
fn semaphore_try_gives_back_only_what_it_took() {
    // SPEC L5
    let semaphore = Semaphore::new(3);
    let held = semaphore.try_acquire(2).unwrap();
    assert!(semaphore.try_acquire(2).is_none());
    assert_eq!(semaphore.available(), 1);
    drop(held);
    assert_eq!(semaphore.available(), 3);
}

#[test]
fn semaphore_never_gives_more_than_it_has() {
    // SPEC L5
    const TOTAL: usize = 7;
    let (a, b) = (io("a"), io("b"));
    let shared = Arc::new((Semaphore::new(TOTAL), AtomicUsize::new(0)));
    let work = |seed: usize| {
        let shared = Arc::clone(&shared);
        move || {
            for i in 0..500 {
                let amount = (seed * 31 + i * 17) % TOTAL + 1;
                let permit = shared.0.acquire(amount);
                let used = shared.1.fetch_add(amount, Ordering::Relaxed) + amount;
                assert!(used <= TOTAL, "{used} of {TOTAL}");
                if corio::in_coroutine() && i % 5 == 0 {
                    corio::yield_now();
                }
                shared.1.fetch_sub(amount, Ordering::Relaxed);
                drop(permit);
            }
        }
    };
    let coroutines: Vec<_> = (0..6)
        .map(|seed| {
            if seed % 2 == 0 { &a } else { &b }
                .context()
                .spawn(work(seed))
        })
        .collect();
    let thread = std::thread::spawn(work(6));
    for coroutine in coroutines {
        coroutine.join().unwrap();
    }
    thread.join().unwrap();
    assert_eq!(shared.0.available(), TOTAL);
}

#[test]
fn semaphore_waiter_that_is_cancelled_lets_the_next_through() {
    // SPEC C12, L5
    let (leaving, staying) = (io("leaving"), io("staying"));
    let semaphore = Arc::new(Semaphore::new(4));
    let held = semaphore.acquire(2);
    let spawn = |io: &IoThread, amount| {
        let semaphore = Arc::clone(&semaphore);
        let handle = io
            .context()
            .spawn(move || semaphore.acquire(amount).amount());
        settle(io);
        handle
    };
    let cancelled = spawn(&leaving, 3);
    let behind = spawn(&staying, 2);
    leaving.join();
    assert!(matches!(cancelled.join(), Err(JoinError::Cancelled)));
    // Although nothing was given back.
    assert_eq!(behind.join().unwrap(), 2);
    drop(held);
    assert_eq!(semaphore.available(), 4);
}

#[test]
#[should_panic(expected = "5 permits of a semaphore that has 4 in all")]
fn semaphore_refuses_what_it_can_never_give() {
    // SPEC L5, C3
    let _ = Semaphore::new(4).acquire(5);
}

#[test]
fn debug_shows_the_value_or_that_it_is_locked() {
    let mutex = Mutex::new(5);
    assert_eq!(format!("{mutex:?}"), "Mutex { value: 5 }");
    let guard = mutex.lock();
    assert_eq!(
        format!("{mutex:?} {guard:?} {guard}"),
        "Mutex { value: <locked> } 5 5"
    );
    drop(guard);
    assert_eq!(mutex.into_inner(), 5);
}
