//! The counter and lock in one word, from plain threads.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corio::sync::{LockCnt, LockCntGuard, Visit};

#[test]
fn types_go_where_they_may() {
    // SPEC L6
    fn shared<T: Send + Sync>() {}
    shared::<(LockCnt<i32>, Visit<'_, i32>, LockCntGuard<'_, i32>)>();
    fn send<T: Send>() {}
    send::<LockCnt<Cell<i32>>>();
    assert_eq!(size_of::<LockCnt>(), size_of::<u32>(), "one word");
}

#[test]
fn visitors_are_counted() {
    // SPEC L6
    let lock_cnt = LockCnt::new(7);
    assert_eq!(lock_cnt.count(), 0);
    let first = lock_cnt.visit();
    let second = lock_cnt.visit();
    assert_eq!((lock_cnt.count(), *first + *second), (2, 14));
    drop(first);
    assert_eq!(lock_cnt.count(), 1);
    drop(second);
    assert_eq!((lock_cnt.count(), lock_cnt.into_inner()), (0, 7));
}

#[test]
fn lock_excludes_lockers_and_lets_visitors_come_to_others() {
    // SPEC L6
    let lock_cnt = LockCnt::new(1);
    let first = lock_cnt.visit();
    let guard = lock_cnt.lock();
    assert!(lock_cnt.try_lock().is_none());
    let second = lock_cnt.visit();
    assert_eq!((lock_cnt.count(), *guard), (2, 1));
    drop(first);
    drop(second);
    drop(guard);
    assert!(lock_cnt.try_lock().is_some());
}

#[test]
fn value_is_changed_only_with_no_visitor() {
    // SPEC L6
    let mut lock_cnt = LockCnt::new(1);
    let visit = lock_cnt.visit();
    let mut guard = lock_cnt.lock();
    assert!(LockCntGuard::get_mut(&mut guard).is_none());
    drop(visit);
    *LockCntGuard::get_mut(&mut guard).unwrap() = 2;
    assert_eq!(*guard, 2);
    drop(guard);
    *lock_cnt.get_mut() += 1;
    assert_eq!(*lock_cnt.visit(), 3);
}

#[test]
fn last_visitor_leaves_with_the_lock() {
    // SPEC L6
    let lock_cnt = LockCnt::new(1);
    let (first, second) = (lock_cnt.visit(), lock_cnt.visit());
    let first = Visit::leave_if_last(first).unwrap_err();
    assert_eq!(lock_cnt.count(), 2, "it stays");
    assert!(Visit::leave_and_lock(first).is_none());
    assert_eq!(lock_cnt.count(), 1, "it has left");
    assert!(lock_cnt.try_lock().is_some(), "without the lock");
    let mut guard = Visit::leave_if_last(second).unwrap();
    assert_eq!(lock_cnt.count(), 0);
    assert!(lock_cnt.try_lock().is_none());
    *LockCntGuard::get_mut(&mut guard).unwrap() = 2;

    let visit = LockCntGuard::unlock_and_visit(guard);
    assert_eq!((lock_cnt.count(), *visit), (1, 2));
    assert!(lock_cnt.try_lock().is_some());
    let guard = Visit::leave_and_lock(visit).unwrap();
    assert!(lock_cnt.try_lock().is_none());
    drop(guard);
    assert!(lock_cnt.try_lock().is_some());
}

/// Runs `f` on another thread and returns once it sleeps, as the kernel tells.
fn asleep<'scope, R: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    f: impl FnOnce() -> R + Send + 'scope,
) -> std::thread::ScopedJoinHandle<'scope, R> {
    let (tell, told) = std::sync::mpsc::channel();
    let handle = scope.spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        f()
    });
    let id = told.recv().unwrap().as_raw_nonzero();
    let path = format!("/proc/self/task/{id}/stat");
    loop {
        let stat = std::fs::read_to_string(&path).unwrap();
        // Behind the name, which may hold anything, in parentheses.
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        if rest.starts_with('S') {
            return handle;
        }
        std::thread::yield_now();
    }
}

#[test]
fn first_visitor_waits_for_the_lock() {
    // SPEC L6
    let lock_cnt = LockCnt::new(1);
    std::thread::scope(|scope| {
        let mut guard = lock_cnt.lock();
        let visitor = asleep(scope, || *lock_cnt.visit());
        assert_eq!(lock_cnt.count(), 0, "it is not in");
        *LockCntGuard::get_mut(&mut guard).unwrap() = 2;
        drop(guard);
        assert_eq!(visitor.join().unwrap(), 2);
    });
}

#[test]
fn whoever_sleeps_is_woken_however_the_lock_is_given_up() {
    // SPEC L6
    let lock_cnt = LockCnt::new(AtomicUsize::new(0));
    let count = |value: &AtomicUsize| value.fetch_add(1, Ordering::Relaxed);
    for stays in [false, true] {
        std::thread::scope(|scope| {
            let guard = lock_cnt.lock();
            // Visitors and lockers, in turn: the one that is woken has to pass it on.
            for _ in 0..3 {
                asleep(scope, || count(&lock_cnt.visit()));
                asleep(scope, || count(&lock_cnt.lock()));
            }
            if stays {
                drop(LockCntGuard::unlock_and_visit(guard));
            } else {
                drop(guard);
            }
        });
    }
    assert_eq!(lock_cnt.into_inner().into_inner(), 12);
}

#[test]
fn last_visitor_waits_for_the_lock_before_it_leaves() {
    // SPEC L6
    let lock_cnt = LockCnt::new(1);
    for in_any_case in [false, true] {
        std::thread::scope(|scope| {
            let visit = lock_cnt.visit();
            let guard = lock_cnt.lock();
            let leaves = asleep(scope, move || {
                let left = if in_any_case {
                    Visit::leave_and_lock(visit)
                } else {
                    Visit::leave_if_last(visit).ok()
                };
                left.is_some()
            });
            assert_eq!(lock_cnt.count(), 1);
            drop(guard);
            assert!(leaves.join().unwrap());
        });
        assert!(lock_cnt.try_lock().is_some() && lock_cnt.count() == 0);
    }
}

#[test]
fn visitor_that_waited_to_be_the_last_and_is_not_wakes_the_next() {
    // SPEC L6
    let lock_cnt = LockCnt::new(());
    for in_any_case in [false, true] {
        std::thread::scope(|scope| {
            let visit = lock_cnt.visit();
            let guard = lock_cnt.lock();
            let leaves = asleep(scope, move || {
                if in_any_case {
                    drop(Visit::leave_and_lock(visit));
                    return None;
                }
                Visit::leave_if_last(visit).err()
            });
            let locks = asleep(scope, || drop(lock_cnt.lock()));
            // The first one is the only visitor no more.
            let another = lock_cnt.visit();
            drop(guard);
            assert_eq!(leaves.join().unwrap().is_some(), !in_any_case);
            locks.join().unwrap();
            drop(another);
        });
        assert_eq!(lock_cnt.count(), 0);
    }
}

/// Something in a list that is walked: marked when it is taken out, and freed later.
#[derive(Debug)]
struct Entry {
    is_removed: AtomicBool,
    number: Box<usize>,
    freed: Arc<AtomicUsize>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn list_is_walked_while_it_changes_and_swept_by_who_is_alone() {
    // SPEC L6
    const CHANGES: usize = 500;
    const ENTRIES_MAX: usize = 20;
    let freed = Arc::new(AtomicUsize::new(0));
    let entry = |number| Entry {
        is_removed: AtomicBool::new(false),
        number: Box::new(number),
        freed: Arc::clone(&freed),
    };
    let is_there = |entry: &&Entry| !entry.is_removed.load(Ordering::Relaxed);
    let mut made = ENTRIES_MAX;
    let list = LockCnt::new((0..made).map(entry).collect::<Vec<_>>());
    let sweep = |guard: &mut LockCntGuard<'_, Vec<Entry>>| {
        let entries = LockCntGuard::get_mut(guard).expect("whoever leaves as the last is alone");
        entries.retain(|entry| is_there(&entry));
    };
    let is_over = AtomicBool::new(false);
    let walk = || {
        while !is_over.load(Ordering::Relaxed) {
            let visit = list.visit();
            for pair in visit.windows(2) {
                assert!(pair[0].number < pair[1].number);
            }
            if let Some(mut guard) = Visit::leave_and_lock(visit) {
                sweep(&mut guard);
            }
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(walk);
        }
        for _ in 0..CHANGES {
            let mut guard = list.lock();
            match LockCntGuard::get_mut(&mut guard) {
                Some(entries) if entries.len() < ENTRIES_MAX => {
                    entries.push(entry(made));
                    made += 1;
                }
                _ => {
                    if let Some(entry) = guard.iter().find(is_there) {
                        entry.is_removed.store(true, Ordering::Relaxed);
                    }
                }
            }
            drop(guard);
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    sweep(&mut Visit::leave_if_last(list.visit()).unwrap());
    let left = list.into_inner();
    assert!(left.iter().all(|entry| is_there(&entry)));
    assert_eq!(freed.load(Ordering::Relaxed) + left.len(), made);
    assert!(made > left.len(), "nothing was ever freed");
}
