//! What must not be done with the reader-writer lock is found, and the message says what to do.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use corio::sync::{ReadGuard, RwLock, WriteGuard};
use corio::{Coroutine, JoinError};

use super::{io, panic_on_a_loop, panic_text, settle, text};

/// What the coroutine panics with that does this to a new lock.
fn in_coroutine(f: impl FnOnce(&'static RwLock<i32>) + Send + 'static) -> Result<(), JoinError> {
    let io = io("io");
    let lock: &'static RwLock<i32> = Box::leak(Box::new(RwLock::new(0)));
    io.context().spawn(move || f(lock)).join()
}

#[test]
fn waiting_for_oneself_is_misuse() {
    // SPEC C3
    let misuse: [fn(&'static RwLock<i32>); 4] = [
        |lock| {
            let _first = lock.write();
            let _second = lock.write();
        },
        |lock| {
            let _first = lock.write();
            let _second = lock.read();
        },
        |lock| {
            let _first = lock.read();
            let _second = lock.write();
        },
        |lock| {
            // Behind a writer that waits for the first guard.
            let first = lock.read();
            let _writer = corio::spawn_local(|| *lock.write() = 1);
            corio::yield_now();
            let _second = lock.read();
            drop(first);
        },
    ];
    for (i, f) in misuse.into_iter().enumerate() {
        let text = panic_text(in_coroutine(f).unwrap_err());
        assert!(text.contains("it would wait for itself"), "{i}: {text}");
        assert!(text.contains("ReadGuard::upgrade"), "{i}: {text}");
    }
}

#[test]
fn what_does_not_wait_for_oneself_is_no_misuse() {
    // SPEC C3
    let fine: [fn(&'static RwLock<i32>); 4] = [
        |lock| {
            drop(lock.write());
            drop(lock.read());
            drop(lock.write());
        },
        |lock| {
            let _both = (lock.read(), lock.read());
        },
        |lock| {
            // Another one reads longer.
            let first = lock.read();
            let other = corio::spawn_local(|| {
                let _guard = lock.read();
                corio::yield_now();
                corio::yield_now();
            });
            corio::yield_now();
            drop(first);
            *lock.write() = 1;
            other.join().unwrap();
        },
        |lock| {
            // Another one came and went since.
            let reader = lock.read();
            let other = corio::spawn_local(|| drop(lock.read()));
            other.join().unwrap();
            drop(reader);
            *lock.write() = 1;
        },
    ];
    for f in fine {
        in_coroutine(f).unwrap();
    }
}

#[test]
fn guards_belong_to_who_took_them_until_they_are_handed_on() {
    // SPEC C3
    let give_away = |hands_on: bool, writes: bool| {
        in_coroutine(move |lock| {
            let (mut reader, mut writer) = (None, None);
            if writes {
                writer = Some(lock.write());
            } else {
                reader = Some(lock.read());
            }
            if hands_on {
                reader = reader.map(ReadGuard::hand_on);
                writer = writer.map(WriteGuard::hand_on);
            }
            let child = corio::spawn_local(move || {
                corio::yield_now();
                drop((reader, writer));
            });
            *lock.write() += 1;
            child.join().unwrap();
        })
    };
    for writes in [false, true] {
        give_away(true, writes).unwrap();
        let text = panic_text(give_away(false, writes).unwrap_err());
        assert!(text.contains("`hand_on`"), "{text}");
    }
}

#[test]
fn ending_with_a_guard_is_misuse_unless_it_was_handed_on() {
    // SPEC C3
    let forget: [fn(&RwLock<()>); 4] = [
        |lock| std::mem::forget(lock.read()),
        |lock| std::mem::forget(lock.write()),
        |lock| std::mem::forget(ReadGuard::upgrade(lock.read())),
        |lock| std::mem::forget(WriteGuard::downgrade(lock.write())),
    ];
    let hand_on: [fn(&RwLock<()>); 2] = [
        |lock| std::mem::forget(ReadGuard::hand_on(lock.read())),
        |lock| std::mem::forget(WriteGuard::hand_on(lock.write())),
    ];
    corio::home(|| {
        let run = |f: fn(&RwLock<()>)| {
            let ends = Coroutine::new(move || f(&RwLock::new(())));
            std::panic::catch_unwind(AssertUnwindSafe(|| ends.enter()))
        };
        for f in forget {
            let text = text(&*run(f).unwrap_err());
            assert!(text.contains("holding 1 coroutine lock"), "{text}");
        }
        for f in hand_on {
            run(f).unwrap();
        }
    });
}

#[test]
fn turning_a_guard_into_another_keeps_count_of_the_locks() {
    // SPEC C3
    in_coroutine(|lock| {
        let reader = WriteGuard::downgrade(ReadGuard::upgrade(lock.read()));
        let reader = WriteGuard::downgrade(ReadGuard::try_upgrade(reader).unwrap());
        drop(reader);
    })
    .unwrap();
}

#[test]
fn waiting_on_a_loop_outside_a_coroutine_is_misuse() {
    // SPEC C3: also where it would not have had to wait.
    let misuse: [fn(); 3] = [
        || drop(RwLock::new(()).read()),
        || drop(RwLock::new(()).write()),
        || {
            let lock = RwLock::new(());
            drop(ReadGuard::upgrade(lock.try_read().unwrap()));
        },
    ];
    for f in misuse {
        let text = panic_on_a_loop(f);
        assert!(text.contains("outside a coroutine"), "{text}");
    }
    let context = corio::AioContext::new().unwrap();
    let tries = || {
        let lock = RwLock::new(());
        let upgraded = ReadGuard::try_upgrade(lock.try_read().unwrap()).unwrap();
        drop(WriteGuard::downgrade(upgraded));
        lock.try_write().is_some()
    };
    assert!(context.enter_home(tries).unwrap());
}

#[test]
fn waiting_without_a_loop_is_misuse_and_leaves_the_lock_whole() {
    // SPEC C3
    corio::home(|| {
        let lock = Arc::new(RwLock::new(()));
        let run = |f: fn(&RwLock<()>)| {
            let lock = Arc::clone(&lock);
            let co = Coroutine::new(move || f(&lock));
            std::panic::catch_unwind(AssertUnwindSafe(|| co.enter()))
        };
        let other = lock.read();
        run(|lock| drop(lock.read())).unwrap();
        let misuse: [fn(&RwLock<()>); 2] = [
            |lock| drop(lock.write()),
            |lock| drop(ReadGuard::upgrade(lock.read())),
        ];
        for f in misuse {
            let text = text(&*run(f).unwrap_err());
            assert!(text.contains("no event loop"), "{text}");
        }
        drop(other);
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn a_coroutine_that_was_found_out_leaves_the_lock_to_others() {
    // SPEC C3
    let io = io("io");
    let lock = Arc::new(RwLock::new(0));
    let twice = io.context().spawn({
        let lock = Arc::clone(&lock);
        move || {
            let _first = lock.write();
            let _second = lock.write();
        }
    });
    let waits = io.context().spawn({
        let lock = Arc::clone(&lock);
        move || *lock.write() += 1
    });
    settle(&io);
    assert!(twice.join().is_err());
    waits.join().unwrap();
    assert_eq!(*lock.read(), 1);
}
