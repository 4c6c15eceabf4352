//! Guards that another coroutine of the thread releases: whose lock it is stays with who took it
//! (SPEC L1, C3).

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corio::sync::{Mutex, MutexGuard};
use corio::{Builder, Coroutine};

use super::text;

type Guard = MutexGuard<'static, ()>;

/// Where one coroutine leaves a guard for another.
type Between = Rc<RefCell<Option<Guard>>>;

fn mutex() -> &'static Mutex<()> {
    Box::leak(Box::default())
}

fn named(name: &str, body: impl FnOnce() + 'static) -> Coroutine {
    Builder::new().name(name).create(body).unwrap()
}

/// Takes the mutex, leaves its guard, is suspended, and ends.
fn taker(mutex: &'static Mutex<()>, between: &Between) -> Coroutine {
    let between = Rc::clone(between);
    let taker = named("taker", move || {
        *between.borrow_mut() = Some(mutex.lock());
        corio::suspend();
    });
    taker.enter();
    taker
}

/// What it says when it is entered and ends.
fn complaint(co: &Coroutine) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| co.enter())).expect_err("it is found out");
    assert!(co.is_done());
    text(&*payload).to_owned()
}

#[track_caller]
fn says_that_it_holds_one(message: &str, name: &str) {
    for part in [
        name,
        "charged.rs",
        "ended while holding 1 coroutine lock(s)",
        "drop the guards, do not forget them",
    ] {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

// SPEC L1, C3
#[test]
fn a_guard_released_by_another_coroutine_is_charged_to_its_taker() {
    corio::home(|| {
        // Released before it ends, by whomever: nothing is held.
        let (lock, between) = (mutex(), Between::default());
        let first = taker(lock, &between);
        let theirs = Rc::clone(&between);
        named("releaser", move || drop(theirs.take())).enter();
        assert!(lock.try_lock().is_some());
        first.enter();
        assert!(first.is_done());

        // It ends while another has the guard: it is told, not the other.
        let first = taker(lock, &between);
        let theirs = Rc::clone(&between);
        let keeper = named("keeper", move || {
            let guard = theirs.take();
            corio::suspend();
            *theirs.borrow_mut() = guard;
        });
        keeper.enter();
        says_that_it_holds_one(&complaint(&first), "`taker`");
        keeper.enter();
        assert!(keeper.is_done(), "it never took the lock");
        assert!(lock.try_lock().is_none());
        drop(between.take());
        assert!(lock.try_lock().is_some());
    });
}

// SPEC L1, C3: what a coroutine releases for another is not taken off its own account, nor off that
// of who has the taker's stack by now.
#[test]
fn releasing_anothers_guard_pays_for_no_lock_of_ones_own() {
    corio::home(|| {
        let (lock, own, between) = (mutex(), mutex(), Between::default());
        let first = taker(lock, &between);
        let theirs = Rc::clone(&between);
        let releaser = named("releaser", move || {
            std::mem::forget(own.lock());
            drop(theirs.take());
        });
        says_that_it_holds_one(&complaint(&releaser), "`releaser`");
        first.enter();
        assert!(first.is_done());

        let (lock, own) = (mutex(), mutex());
        let first = taker(lock, &between);
        says_that_it_holds_one(&complaint(&first), "`taker`");
        let theirs = Rc::clone(&between);
        let next = named("next", move || {
            std::mem::forget(own.lock());
            corio::suspend();
            assert!(theirs.borrow().is_none());
        });
        next.enter();
        drop(between.take());
        assert!(lock.try_lock().is_some());
        says_that_it_holds_one(&complaint(&next), "`next`");
    });
}
