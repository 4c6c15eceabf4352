//! Waiters of the reader-writer lock that are cancelled, at every step of their way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corio::sync::{ReadGuard, RwLock, WriteGuard};
use corio::{AioContext, Coroutine, IoThread, JoinError};

use super::{io, settle};

/// What a coroutine wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Read,
    Write,
    /// It reads already.
    Upgrade,
}

/// How far it has come when it is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    InLine,
    /// It has the lock and has not run since.
    ServedUnawares,
    Holds,
}

const WISHES: [Wish; 3] = [Wish::Read, Wish::Write, Wish::Upgrade];

type Served = Rc<RefCell<Vec<usize>>>;

/// Waits for what it wants, notes when it has it, and keeps it until it is entered again.
fn start(lock: &'static RwLock<()>, served: &Served, number: usize, wish: Wish) -> Coroutine {
    let served = Rc::clone(served);
    let co = Coroutine::new(move || {
        let _guards = match wish {
            Wish::Read => (Some(lock.read()), None),
            Wish::Write => (None, Some(lock.write())),
            Wish::Upgrade => {
                let reader = lock.read();
                corio::suspend();
                (None, Some(ReadGuard::upgrade(reader)))
            }
        };
        served.borrow_mut().push(number);
        corio::suspend();
    });
    co.enter();
    co
}

/// Two in line, of which the first is cancelled at a step: the second gets what it wants.
fn cancel_first(context: &AioContext, wishes: [Wish; 2], step: Step) {
    let turns = || while context.poll(false).unwrap() {};
    let lock: &'static RwLock<()> = Box::leak(Box::default());
    let served = Served::default();
    let start = |number: usize| start(lock, &served, number, wishes[number]);
    // Who will upgrade reads before the others come. One more reads, so that all of them wait.
    let reader = lock.try_read().unwrap();
    let early = [0, 1].map(|number| (wishes[number] == Wish::Upgrade).then(|| start(number)));
    // A writer is before them, so that readers wait, too. It leaves its guard to the home, as what
    // is woken in no coroutine does not run at once.
    let kept = Rc::new(Cell::new(None));
    let writer = Coroutine::new({
        let kept = Rc::clone(&kept);
        move || kept.set(Some(WriteGuard::hand_on(lock.write())))
    });
    writer.enter();
    let mut number = 0..;
    let [first, second] = early.map(|early| {
        let number = number.next().unwrap();
        early
            .inspect(Coroutine::enter)
            .unwrap_or_else(|| start(number))
    });
    drop(reader);
    turns();
    assert!(writer.is_done() && served.borrow().is_empty());

    let mut first = Some(first);
    if step == Step::InLine {
        first = None;
    }
    drop(kept.take());
    if step == Step::Holds {
        turns();
        assert_eq!(served.borrow().first(), Some(&0));
    }
    drop(first);
    turns();
    let served = served.take();
    assert_eq!(served.contains(&0), step == Step::Holds);
    assert!(served.contains(&1), "the other one never got it");
    second.enter();
    assert!(second.is_done());
    assert!(lock.try_write().is_some(), "something is held still");
}

// SPEC L2, C12
#[test]
fn whoever_is_cancelled_in_front_lets_the_next_one_through() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            for first in WISHES {
                for second in WISHES {
                    for step in [Step::InLine, Step::ServedUnawares, Step::Holds] {
                        let run = || cancel_first(&context, [first, second], step);
                        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                        assert!(run.is_ok(), "{first:?} before {second:?}, {step:?}");
                    }
                }
            }
        })
        .unwrap();
}

// SPEC L2, C12
#[test]
fn cancelled_writer_lets_all_readers_behind_it_in() {
    let (leaving, staying) = (io("leaving"), io("staying"));
    let lock = Arc::new(RwLock::new(0));
    let reader = lock.read();
    let spawn = |io: &IoThread, writes: bool| {
        let lock = Arc::clone(&lock);
        let handle = io.context().spawn(move || {
            if writes {
                *lock.write() += 1;
            } else {
                assert_eq!(*lock.read(), 0);
            }
        });
        settle(io);
        handle
    };
    let cancelled = [spawn(&leaving, true), spawn(&leaving, true)];
    let readers = [(); 3].map(|()| spawn(&staying, false));
    // Although the first reader has not gone.
    leaving.join();
    for handle in readers {
        handle.join().unwrap();
    }
    for handle in cancelled {
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    }
    drop(reader);
    assert!(lock.try_write().is_some());
}

// SPEC L2, C12
#[test]
fn cancelled_upgrade_reads_no_more() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let lock = Rc::new(RwLock::new(()));
            let other = lock.try_read().unwrap();
            let upgrades = Coroutine::new({
                let lock = Rc::clone(&lock);
                move || drop(ReadGuard::upgrade(lock.read()))
            });
            upgrades.enter();
            assert!(lock.try_read().is_none(), "it is in line");
            drop(upgrades);
            assert!(lock.try_read().is_some(), "it is not any more");
            drop(other);
            assert!(lock.try_write().is_some(), "and holds nothing");
        })
        .unwrap();
}

// SPEC L2, C12
#[test]
fn destructor_that_takes_the_lock_while_it_unwinds_gets_it() {
    struct Counts(Rc<RwLock<Cell<i32>>>);
    impl Drop for Counts {
        fn drop(&mut self) {
            let mut guard = self.0.write();
            *guard.get_mut() += 1;
            let guard = WriteGuard::downgrade(guard);
            assert_eq!(guard.get(), 1);
        }
    }
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let lock = Rc::new(RwLock::new(Cell::new(0)));
            let reader = lock.try_read().unwrap();
            let waits = Coroutine::new({
                let counts = Counts(Rc::clone(&lock));
                move || {
                    drop(counts.0.write());
                }
            });
            waits.enter();
            // It leaves the line, and its destructor gets in line again and waits to the end.
            drop(waits);
            assert_eq!(reader.get(), 0);
            drop(reader);
            while context.poll(false).unwrap() {}
            assert_eq!(lock.try_read().unwrap().get(), 1);
        })
        .unwrap();
}

// SPEC L2, C12: waiters are cancelled while others hand the lock over to them.
#[test]
fn grants_survive_cancellation_under_load() {
    let staying = io("staying");
    let lock = Arc::new(RwLock::new(0usize));
    for _ in 0..40 {
        let leaving = io("leaving");
        let spawn = |io: &IoThread, seed: usize| {
            let lock = Arc::clone(&lock);
            io.context().spawn(move || {
                for round in 0..20 {
                    let guard = lock.read();
                    corio::yield_now();
                    if (round + seed).is_multiple_of(2) {
                        drop(guard);
                        *lock.write() += 1;
                    } else {
                        let mut guard = ReadGuard::upgrade(guard);
                        *guard += 1;
                        let guard = WriteGuard::downgrade(guard);
                        corio::yield_now();
                        drop(guard);
                    }
                }
            })
        };
        let cancelled: Vec<_> = (0..3).map(|seed| spawn(&leaving, seed)).collect();
        let going_on: Vec<_> = (0..3).map(|seed| spawn(&staying, seed)).collect();
        leaving.join();
        for handle in going_on {
            handle.join().unwrap();
        }
        drop(cancelled);
    }
    assert!(*lock.try_write().unwrap() >= 40 * 3 * 20);
}

// SPEC L2, C12: cancelled from another thread, at any moment of the hand-off.
#[test]
fn lock_is_free_and_whole_after_waiters_were_cancelled_by_their_handles() {
    let contexts = [io("a"), io("b")];
    let shared = Arc::new((RwLock::new(0), AtomicUsize::new(0)));
    let mut cancelled = 0;
    for round in 0..100 {
        let spawn = |seed: usize| {
            let shared = Arc::clone(&shared);
            contexts[seed % 2].context().spawn(move || {
                let (lock, written) = &*shared;
                for turn in 0..10 {
                    let reader = lock.read();
                    corio::yield_now();
                    let mut writer = if (turn + seed).is_multiple_of(2) {
                        ReadGuard::upgrade(reader)
                    } else {
                        drop(reader);
                        lock.write()
                    };
                    *writer += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let workers: Vec<_> = (0..6).map(spawn).collect();
        for worker in workers.iter().skip(round % 3).step_by(2) {
            worker.cancel().unwrap();
        }
        for worker in workers {
            match worker.join() {
                Ok(()) => {}
                Err(JoinError::Cancelled) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let free = shared.0.try_write().expect("nobody holds it any more");
        assert_eq!(*free, shared.1.load(Ordering::Relaxed));
    }
    assert!(cancelled > 0, "all ended before they were cancelled");
}
