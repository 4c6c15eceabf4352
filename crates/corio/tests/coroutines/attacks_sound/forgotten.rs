//! `mem::forget` of every kind of handle: what it leaks is harmless, or told.

use std::cell::Cell;
use std::io::Write;
use std::mem::forget;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corio::context::Interest;
use corio::sync::{LockCnt, Mutex, MutexGuard, RwLock, Semaphore, channel};
use corio::{AioContext, Coroutine, JoinError};

use super::{OnDrop, io, park_for_ever, settle, within_patience};

fn turns(context: &AioContext) {
    for _ in 0..10 {
        context.poll(false).unwrap();
    }
}

// SPEC C9: its stack serves nobody else while it is suspended, and its home unwinds it.
#[test]
fn a_forgotten_coroutine_keeps_its_stack() {
    let intact = Rc::new(Cell::new(0));
    corio::home(|| {
        for round in 0..4_u8 {
            let seen = Rc::clone(&intact);
            let co = Coroutine::new(move || {
                let canary = [round; 2048];
                let canary = std::hint::black_box(&canary);
                let _looks = OnDrop(|| {
                    let whole = canary.iter().all(|&byte| byte == round);
                    seen.set(seen.get() + u32::from(whole));
                });
                corio::suspend();
            });
            co.enter();
            forget(co);
            for _ in 0..300 {
                let other = Coroutine::new(|| {
                    let fill = [0xee_u8; 4096];
                    std::hint::black_box(&fill);
                    corio::suspend();
                });
                other.enter();
                other.enter();
            }
        }
        assert_eq!(intact.get(), 0);
    });
    assert_eq!(intact.get(), 4);
}

// SPEC C9, C10: the coroutine goes on by itself, and all that it owns is dropped.
#[test]
fn what_a_forgotten_join_handle_stood_for_goes_on() {
    let io = io();
    let dropped = Arc::new(AtomicUsize::new(0));
    let note = || {
        let dropped = Arc::clone(&dropped);
        OnDrop(move || _ = dropped.fetch_add(1, Ordering::Relaxed))
    };
    let owned = note();
    forget(io.context().spawn(move || {
        corio::yield_now();
        drop(owned);
    }));
    let owned = note();
    let parent = io.context().spawn(move || {
        forget(corio::spawn_local(move || {
            corio::yield_now();
            drop(owned);
        }));
    });
    parent.join().unwrap();
    settle(&io);
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
    // One that waits for ever is ended by its home.
    let owned = note();
    forget(io.context().spawn(move || {
        let _owned = owned;
        park_for_ever();
    }));
    settle(&io);
    io.join();
    assert_eq!(dropped.load(Ordering::Relaxed), 3);
}

// SPEC C12, C0: it can never be cancelled, so its home leaks it and tells who joins it; one that
// ends by itself is none the worse.
#[test]
fn a_coroutine_that_forgets_its_mask_is_leaked_with_its_home() {
    let io = io();
    let ends = io.context().spawn(|| {
        forget(corio::mask_cancel());
        corio::yield_now();
        7
    });
    assert_eq!(ends.join().unwrap(), 7);
    let owned = Arc::new(());
    let theirs = Arc::clone(&owned);
    let never = io.context().spawn(move || {
        let _theirs = theirs;
        forget(corio::mask_cancel());
        park_for_ever();
    });
    settle(&io);
    never.cancel().unwrap();
    settle(&io);
    assert!(!never.is_finished());
    // The mask went with its coroutine: who has the stack now has none.
    let next = io.context().spawn(park_for_ever);
    settle(&io);
    next.cancel().unwrap();
    assert!(matches!(next.join(), Err(JoinError::Cancelled)));
    io.join();
    assert!(matches!(never.join(), Err(JoinError::Leaked)));
    assert_eq!(Arc::strong_count(&owned), 2, "its frame is never dropped");
}

// SPEC L1, C3, C12: the lock stays taken; who waits for it can be cancelled, and its value is
// dropped once, with it.
#[test]
fn forgotten_guards_leave_the_lock_taken_and_its_waiters_cancellable() {
    struct Locks {
        mutex: Mutex<Arc<()>>,
        read: RwLock<Arc<()>>,
        written: RwLock<Arc<()>>,
        semaphore: Semaphore,
    }
    let io = io();
    let value = Arc::new(());
    let locks = Arc::new(Locks {
        mutex: Mutex::new(Arc::clone(&value)),
        read: RwLock::new(Arc::clone(&value)),
        written: RwLock::new(Arc::clone(&value)),
        semaphore: Semaphore::new(2),
    });
    // Given up by its coroutine, it is nobody's when that ends.
    let theirs = Arc::clone(&locks);
    let forgets = io.context().spawn(move || {
        forget(MutexGuard::hand_on(theirs.mutex.lock()));
        forget(corio::sync::ReadGuard::hand_on(theirs.read.read()));
        forget(corio::sync::WriteGuard::hand_on(theirs.written.write()));
        forget(theirs.semaphore.acquire(1));
    });
    forgets.join().unwrap();
    let waits: [fn(&Locks); 4] = [
        |locks| drop(locks.mutex.lock()),
        |locks| drop(locks.read.write()),
        |locks| drop(locks.written.read()),
        |locks| drop(locks.semaphore.acquire(2)),
    ];
    let waiters = waits.map(|wait| {
        let theirs = Arc::clone(&locks);
        io.context().spawn(move || wait(&theirs))
    });
    settle(&io);
    for waiter in waiters {
        assert!(!waiter.is_finished());
        waiter.cancel().unwrap();
        let outcome = within_patience(move || waiter.join());
        assert!(matches!(outcome, Err(JoinError::Cancelled)));
    }
    assert!(locks.mutex.try_lock().is_none());
    assert!(locks.read.try_write().is_none() && locks.read.try_read().is_some());
    assert!(locks.written.try_read().is_none());
    assert_eq!(locks.semaphore.available(), 1);
    assert!(locks.semaphore.try_acquire(1).is_some());
    assert_eq!(Arc::strong_count(&value), 4);
    assert_eq!(Arc::strong_count(&locks), 1);
    drop(locks);
    assert_eq!(Arc::strong_count(&value), 1);
}

// SPEC C3, L1: whoever took the lock ends with it, and is told; whoever comes later on that stack
// has none.
#[test]
fn a_forgotten_guard_is_charged_to_nobody_else() {
    corio::home(|| {
        let mutex = Rc::new(Mutex::new(()));
        let theirs = Rc::clone(&mutex);
        let forgets = Coroutine::new(move || forget(theirs.lock()));
        let payload =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forgets.enter())).unwrap_err();
        let message = super::text(&*payload);
        assert!(message.contains("holding 1 coroutine lock"), "{message}");
        assert!(message.contains("forgotten.rs"), "it is named: {message}");
        assert!(mutex.try_lock().is_none());
        let other = Rc::new(Mutex::new(()));
        let theirs = Rc::clone(&other);
        let next = Coroutine::new(move || drop(theirs.lock()));
        next.enter();
        assert!(next.is_done() && other.try_lock().is_some());
    });
}

// SPEC L5, C12: an end of a channel that is forgotten never closes it, and a place that is
// forgotten is never filled; who waits for them can be cancelled.
#[test]
fn forgotten_ends_and_places_of_a_channel_leave_its_waiters_cancellable() {
    let io = io();
    let message = Arc::new(());
    let (sender, mut receiver) = channel::<Arc<()>>(2);
    forget(sender.clone());
    forget(sender.reserve().unwrap());
    sender.send(Arc::clone(&message)).unwrap();
    assert!(sender.try_send(Arc::clone(&message)).is_err(), "one place");
    assert!(receiver.recv().is_ok());
    drop(sender);
    let receives = io.context().spawn(move || _ = receiver.recv());
    let (sender, receiver) = channel(1);
    sender.send(Arc::clone(&message)).unwrap();
    forget(receiver);
    let last = Arc::clone(&message);
    let sends = io.context().spawn(move || _ = sender.send(last));
    settle(&io);
    for waiter in [receives, sends] {
        assert!(!waiter.is_finished());
        waiter.cancel().unwrap();
        let outcome = within_patience(move || waiter.join());
        assert!(matches!(outcome, Err(JoinError::Cancelled)));
    }
    assert_eq!(
        Arc::strong_count(&message),
        2,
        "what is in the channel stays"
    );
}

// SPEC L6
#[test]
fn a_forgotten_visit_or_lock_of_a_counter_stays() {
    let value = Arc::new(());
    let visited = LockCnt::new(Arc::clone(&value));
    forget(visited.visit());
    assert_eq!(visited.count(), 1);
    let mut guard = visited.lock();
    assert!(corio::sync::LockCntGuard::get_mut(&mut guard).is_none());
    forget(guard);
    assert!(visited.try_lock().is_none());
    drop(visited);
    assert_eq!(Arc::strong_count(&value), 1);
}

// SPEC A3, H1, H3, A1: its callback runs on, for as long as the home lasts.
#[test]
fn a_forgotten_handler_runs_until_its_home_ends() {
    let context = AioContext::new().unwrap();
    let calls = Rc::new(Cell::new(0));
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    theirs.write_all(b"level-triggered").unwrap();
    context
        .enter_home(|| {
            let local = context.local().unwrap();
            let count = Rc::clone(&calls);
            let handler = local
                .add_handler(ours, Interest::READ, move |_| count.set(count.get() + 1))
                .unwrap();
            forget(handler);
            turns(&context);
            assert_ne!(calls.get(), 0);
        })
        .unwrap();
    let before = calls.get();
    context.enter_home(|| turns(&context)).unwrap();
    assert_eq!(calls.get(), before);
}

// SPEC A2, A3, T2, B1: they run once more, if they were to, in this home or the next, and keep
// their context.
#[test]
fn forgotten_timers_and_bottom_halves_keep_their_context() {
    let context = AioContext::new().unwrap();
    let (tx, rx) = mpsc::channel();
    let sends = |what| {
        let tx = tx.clone();
        move || tx.send(what).unwrap()
    };
    for (half, timer) in [("half 1", "timer 1"), ("half 2", "timer 2")] {
        let bottom_half = context.bottom_half("forgotten", sends(half));
        bottom_half.schedule();
        forget(bottom_half);
        let due = context.timer(sends(timer));
        due.arm_after(Duration::ZERO);
        forget(due);
        let never = context.timer(sends("an hour later"));
        never.arm_after(Duration::from_secs(3600));
        forget(never);
        if half == "half 1" {
            context.enter_home(|| turns(&context)).unwrap();
        }
    }
    let other = context.clone();
    drop(context);
    std::thread::spawn(move || other.enter_home(|| turns(&other)).unwrap())
        .join()
        .unwrap();
    let mut ran: Vec<_> = rx.try_iter().collect();
    ran.sort_unstable();
    assert_eq!(ran, ["half 1", "half 2", "timer 1", "timer 2"]);
}

// SPEC I1
#[test]
fn a_forgotten_io_thread_goes_on() {
    let io = io();
    let context = io.context().clone();
    forget(io);
    assert_eq!(context.spawn(|| 7).join().unwrap(), 7);
    forget(context.clone());
    assert_eq!(context.run(|| 8), 8);
}
