//! What readers, writers, upgrades and downgrades do for and to each other.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};

use corio::sync::{Queue, ReadGuard, RwLock, WriteGuard};
use corio::{AioContext, Coroutine, IoThread, JoinHandle};

use super::{io, settle};

#[test]
fn types_go_where_they_may() {
    // SPEC C10, L2
    fn shared<T: Send + Sync>() {}
    shared::<RwLock<i32>>();
    fn send<T: Send>() {}
    send::<RwLock<Cell<i32>>>();
    fn sync<T: Sync>() {}
    sync::<(ReadGuard<'static, i32>, WriteGuard<'static, i32>)>();
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    // SPEC L2
    let lock = RwLock::new(1);
    let first = lock.read();
    let second = lock.try_read().unwrap();
    assert_eq!(*first + *second, 2);
    assert!(lock.try_write().is_none());
    drop((first, second));
    let mut writer = lock.write();
    *writer = 2;
    assert!(lock.try_read().is_none() && lock.try_write().is_none());
    drop(writer);
    assert_eq!(lock.into_inner(), 2);
}

#[test]
fn coroutines_of_several_threads_and_plain_threads_exclude_each_other() {
    // SPEC L2
    const ROUNDS: usize = 300;
    struct Shared {
        // A lost update would show.
        lock: RwLock<usize>,
        readers: AtomicUsize,
        most_readers: AtomicUsize,
        written: AtomicUsize,
    }
    let (a, b) = (io("a"), io("b"));
    let shared = Arc::new(Shared {
        lock: RwLock::new(0),
        readers: AtomicUsize::new(0),
        most_readers: AtomicUsize::new(0),
        written: AtomicUsize::new(0),
    });
    let work = |seed: usize| {
        let shared = Arc::clone(&shared);
        move || {
            let pause = |round: usize| {
                if corio::in_coroutine() && round.is_multiple_of(3) {
                    corio::yield_now();
                }
            };
            let write = |guard: &mut WriteGuard<'_, usize>, round| {
                assert_eq!(shared.readers.load(Ordering::Relaxed), 0);
                let before = **guard;
                pause(round);
                assert_eq!(shared.readers.load(Ordering::Relaxed), 0);
                **guard = before + 1;
                shared.written.fetch_add(1, Ordering::Relaxed);
            };
            for round in 0..ROUNDS {
                let kind = (round * 7 + seed * 3) % 5;
                if kind == 0 {
                    write(&mut shared.lock.write(), round);
                    continue;
                }
                let guard = shared.lock.read();
                let readers = shared.readers.fetch_add(1, Ordering::Relaxed) + 1;
                shared.most_readers.fetch_max(readers, Ordering::Relaxed);
                let before = *guard;
                pause(round);
                assert_eq!(*guard, before, "somebody wrote beside a reader");
                shared.readers.fetch_sub(1, Ordering::Relaxed);
                if kind == 1 {
                    let mut guard = ReadGuard::upgrade(guard);
                    write(&mut guard, round);
                    let written = *guard;
                    let guard = WriteGuard::downgrade(guard);
                    shared.readers.fetch_add(1, Ordering::Relaxed);
                    pause(round);
                    assert_eq!(*guard, written, "somebody wrote during a downgrade");
                    shared.readers.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    };
    let coroutines: Vec<_> = (0..8)
        .map(|seed| [&a, &b][seed % 2].context().spawn(work(seed)))
        .collect();
    let threads = [8, 9].map(|seed| std::thread::spawn(work(seed)));
    for coroutine in coroutines {
        coroutine.join().unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(
        *shared.lock.try_read().unwrap(),
        shared.written.load(Ordering::Relaxed)
    );
    let most_readers = shared.most_readers.load(Ordering::Relaxed);
    assert!(most_readers > 1, "readers never shared");
}

/// Coroutines that take one lock, note that they have it, and keep it until they are told.
struct Line {
    lock: Arc<RwLock<()>>,
    served: Arc<StdMutex<Vec<&'static str>>>,
    go_on: Arc<Queue>,
}

impl Line {
    fn new() -> Line {
        Line {
            lock: Arc::default(),
            served: Arc::default(),
            go_on: Arc::default(),
        }
    }

    fn spawn(&self, io: &IoThread, name: &'static str, writes: bool) -> JoinHandle<()> {
        let lock = Arc::clone(&self.lock);
        let (served, go_on) = (Arc::clone(&self.served), Arc::clone(&self.go_on));
        let handle = io.context().spawn(move || {
            let guards = if writes {
                (None, Some(lock.write()))
            } else {
                (Some(lock.read()), None)
            };
            served.lock().unwrap().push(name);
            go_on.wait();
            drop(guards);
        });
        settle(io);
        handle
    }

    /// Those that have got it since the last call, once all have run.
    fn served(&self, io: &IoThread) -> Vec<&'static str> {
        settle(io);
        settle(io);
        std::mem::take(&mut *self.served.lock().unwrap())
    }
}

#[test]
fn nobody_passes_a_writer_that_waits() {
    // SPEC L2
    let io = io("io");
    let line = Line::new();
    let reader = line.lock.read();
    let waiters = [
        line.spawn(&io, "writer", true),
        line.spawn(&io, "reader 1", false),
        line.spawn(&io, "reader 2", false),
        line.spawn(&io, "last writer", true),
        line.spawn(&io, "last reader", false),
    ];
    // Readers could share, but the writer came first; for who only tries as well.
    assert!(line.lock.try_read().is_none());
    assert!(line.served(&io).is_empty());
    drop(reader);
    assert_eq!(line.served(&io), ["writer"]);
    line.go_on.wake_all();
    assert_eq!(line.served(&io), ["reader 1", "reader 2"], "together");
    line.go_on.wake_one();
    assert!(line.served(&io).is_empty(), "a reader is there still");
    line.go_on.wake_one();
    assert_eq!(line.served(&io), ["last writer"]);
    line.go_on.wake_all();
    assert_eq!(line.served(&io), ["last reader"]);
    line.go_on.wake_all();
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert!(line.lock.try_write().is_some());
}

#[test]
fn lock_that_is_handed_over_cannot_be_taken_in_between() {
    // SPEC L2
    let io = io("io");
    for writes in [false, true] {
        let line = Line::new();
        let writer = line.lock.write();
        let waiter = line.spawn(&io, "waiter", writes);
        // Its thread does not run meanwhile: it has the lock before it knows.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (started, is_held) = std::sync::mpsc::channel();
        io.context().schedule_oneshot("hold", move || {
            started.send(()).unwrap();
            held.recv().unwrap_err();
        });
        is_held.recv().unwrap();
        drop(writer);
        assert!(line.served.lock().unwrap().is_empty());
        assert!(line.lock.try_write().is_none());
        assert_eq!(line.lock.try_read().is_some(), !writes);
        drop(hold);
        assert_eq!(line.served(&io), ["waiter"]);
        line.go_on.wake_all();
        waiter.join().unwrap();
    }
}

#[test]
fn lone_reader_upgrades_at_once() {
    // SPEC L2
    let lock = RwLock::new(1);
    let mut writer = ReadGuard::upgrade(lock.read());
    *writer += 1;
    assert!(lock.try_read().is_none());
    drop(writer);
    let mut writer = ReadGuard::try_upgrade(lock.read()).unwrap();
    *writer += 1;
    drop(writer);
    assert_eq!(*lock.try_write().unwrap(), 3);
}

#[test]
fn upgrade_is_tried_in_vain_beside_others() {
    // SPEC L2
    let io = io("io");
    let lock = Arc::new(RwLock::new(5));
    let (first, second) = (lock.read(), lock.read());
    let first = ReadGuard::try_upgrade(first).unwrap_err();
    assert_eq!(*first, 5, "it reads still");
    drop(second);
    // Alone, but somebody has waited longer.
    let writer = io.context().spawn({
        let lock = Arc::clone(&lock);
        move || *lock.write() = 6
    });
    settle(&io);
    let first = ReadGuard::try_upgrade(first).unwrap_err();
    assert_eq!(*first, 5);
    drop(first);
    writer.join().unwrap();
    assert_eq!(*lock.read(), 6);
}

#[test]
fn upgrade_waits_its_turn_behind_a_writer() {
    // SPEC L2
    let io = io("io");
    let lock = Arc::new(RwLock::new(String::new()));
    let writing = |name: &'static str| {
        let lock = Arc::clone(&lock);
        let handle = io.context().spawn(move || lock.write().push_str(name));
        settle(&io);
        handle
    };
    let reader = lock.read();
    let first = writing("first ");
    assert!(reader.is_empty());
    let mut upgraded = ReadGuard::upgrade(reader);
    assert_eq!(*upgraded, "first ", "it has been written meanwhile");
    let last = writing("last");
    upgraded.push_str("upgraded ");
    drop(upgraded);
    first.join().unwrap();
    last.join().unwrap();
    assert_eq!(*lock.read(), "first upgraded last");
}

#[test]
fn two_that_upgrade_do_not_wait_for_each_other() {
    // SPEC L2
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let lock = Rc::new(RwLock::new(Vec::new()));
            let upgrading: Vec<_> = (0..3)
                .map(|number| {
                    let lock = Rc::clone(&lock);
                    let co = Coroutine::new(move || {
                        let reader = lock.read();
                        corio::suspend();
                        let before = reader.len();
                        let mut writer = ReadGuard::upgrade(reader);
                        writer.push((number, before));
                    });
                    co.enter();
                    co
                })
                .collect();
            for co in &upgrading {
                assert!(!co.is_done());
                co.enter();
            }
            while context.poll(false).unwrap() {}
            assert!(upgrading.iter().all(Coroutine::is_done));
            // Each began to upgrade before any of them wrote.
            assert_eq!(*lock.try_read().unwrap(), [(0, 0), (1, 0), (2, 0)]);
        })
        .unwrap();
}

#[test]
fn downgrade_lets_following_readers_in_and_no_writer() {
    // SPEC L2
    let io = io("io");
    let line = Line::new();
    let writer = line.lock.write();
    let waiters = [
        line.spawn(&io, "reader 1", false),
        line.spawn(&io, "reader 2", false),
        line.spawn(&io, "writer", true),
        line.spawn(&io, "reader 3", false),
    ];
    let reader = WriteGuard::downgrade(writer);
    assert_eq!(line.served(&io), ["reader 1", "reader 2"]);
    line.go_on.wake_all();
    assert!(line.served(&io).is_empty(), "who downgraded reads still");
    drop(reader);
    for served in ["writer", "reader 3"] {
        assert_eq!(line.served(&io), [served]);
        line.go_on.wake_all();
    }
    for waiter in waiters {
        waiter.join().unwrap();
    }
}

#[test]
fn downgrade_alone_lets_who_comes_later_read() {
    // SPEC L2
    let lock = RwLock::new(1);
    let mut writer = lock.write();
    *writer = 2;
    let reader = WriteGuard::downgrade(writer);
    assert_eq!(*lock.try_read().unwrap() + *reader, 4);
    assert!(lock.try_write().is_none());
    drop(reader);
    assert!(lock.try_write().is_some());
}

#[test]
fn plain_threads_block_until_it_is_their_turn() {
    // SPEC L2
    let io = io("io");
    let lock = Arc::new(RwLock::new(0));
    let (told, is_held) = std::sync::mpsc::channel();
    let writer = io.context().spawn({
        let lock = Arc::clone(&lock);
        move || {
            let mut guard = lock.write();
            told.send(()).unwrap();
            corio::yield_now();
            *guard = 1;
        }
    });
    is_held.recv().unwrap();
    assert_eq!(*lock.read(), 1);
    writer.join().unwrap();
}

#[test]
fn it_is_not_poisoned_and_panics_release_it() {
    // SPEC L3
    let io = io("io");
    let lock = Arc::new(RwLock::new(1));
    for writes in [false, true] {
        let lock = Arc::clone(&lock);
        let panics = io.context().spawn(move || {
            let _guards = if writes {
                (None, Some(lock.write()))
            } else {
                (Some(lock.read()), None)
            };
            panic!("on purpose");
        });
        let error = panics.join().map(|(): ()| ()).unwrap_err();
        assert_eq!(super::panic_text(error), "on purpose");
    }
    assert!(lock.try_write().is_some());
}

#[test]
fn values_have_methods_of_their_own() {
    // What the guards can do is called on their types, so that it hides nothing of the value's.
    let strong = Rc::new(3);
    let lock = RwLock::new(Rc::downgrade(&strong));
    assert_eq!(Weak::upgrade(&lock.read()).as_deref(), Some(&3));
    assert_eq!(lock.write().upgrade().as_deref(), Some(&3));
}

#[test]
fn debug_shows_the_value_or_that_it_is_locked() {
    let mut lock = RwLock::from(5);
    let reader = lock.read();
    assert_eq!(
        format!("{lock:?} {reader:?} {reader}"),
        "RwLock { value: 5 } 5 5"
    );
    drop(reader);
    let writer = lock.write();
    assert_eq!(
        format!("{lock:?} {writer:?} {writer}"),
        "RwLock { value: <locked> } 5 5"
    );
    drop(writer);
    *lock.get_mut() = 6;
    assert_eq!(format!("{lock:?}"), "RwLock { value: 6 }");
}
