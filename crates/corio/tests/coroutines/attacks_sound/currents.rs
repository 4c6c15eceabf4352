//! Who is running, whatever happens in between (SPEC C2, C8, C12, S5): nested enters, panics,
//! cancellations, bottom halves of nested polls, and coroutines that go on in another thread.

#![allow(unsafe_code)] // Moves between threads.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corio::{AioContext, Coroutine, CoroutineId, IoThread};

/// That this one, or none, runs.
#[track_caller]
fn runs(id: Option<CoroutineId>) {
    assert_eq!(corio::current(), id);
    assert_eq!(corio::in_coroutine(), id.is_some());
}

/// Enters others that suspend, end, panic, unwind and are cancelled, down to a depth.
fn enters_all_kinds(depth: usize) {
    let me = corio::current();
    let planned = || resume_unwind(Box::new("planned"));
    let suspends = Coroutine::new(move || {
        let own = corio::current();
        assert_ne!(own, me);
        if depth > 0 {
            enters_all_kinds(depth - 1);
        }
        runs(own);
        corio::suspend();
        runs(own);
        planned();
    });
    suspends.enter();
    runs(me);
    let caught = catch_unwind(AssertUnwindSafe(|| suspends.enter()));
    runs(me);
    assert!(caught.is_err() && suspends.is_done());
    let in_destructor = Rc::new(Cell::new(None));
    let seen = Rc::clone(&in_destructor);
    let cancelled = Coroutine::new(move || {
        let _tells = super::OnDrop(|| seen.set(corio::current()));
        corio::suspend();
    });
    cancelled.enter();
    let id = cancelled.id();
    cancelled.cancel().unwrap();
    runs(me);
    assert_eq!(in_destructor.get(), Some(id));
    Coroutine::new(|| ()).enter();
    runs(me);
    drop(Coroutine::new(|| unreachable!()));
    runs(me);
}

// SPEC C2, C8, C12, B6
#[test]
fn current_is_right_after_all_that_a_nested_coroutine_may_do() {
    corio::home(|| enters_all_kinds(3));
    runs(None);
    let context = AioContext::new().unwrap();
    let test = || {
        // Entered here and in the bottom halves of two nested polls, suspended in between.
        let log: Rc<RefCell<Vec<Option<CoroutineId>>>> = Rc::default();
        let seen = Rc::clone(&log);
        let co = Coroutine::new(move || {
            for _ in 0..3 {
                seen.borrow_mut().push(corio::current());
                enters_all_kinds(1);
                seen.borrow_mut().push(corio::current());
                corio::suspend();
            }
        });
        let id = Some(co.id());
        co.enter();
        let due = Arc::new(AtomicUsize::new(0));
        nested(&context, &due, 2);
        context.poll(false).unwrap();
        runs(None);
        while due.swap(0, Ordering::Relaxed) > 0 {
            co.enter();
        }
        co.enter();
        assert_eq!(*log.borrow(), [id; 6]);
    };
    context.enter_home(test).unwrap();
    runs(None);
}

/// A one-shot that polls for another, and that enters coroutines before and afterwards.
fn nested(context: &AioContext, due: &Arc<AtomicUsize>, depth: usize) {
    let (own, due) = (context.clone(), Arc::clone(due));
    context.schedule_oneshot("nested", move || {
        enters_all_kinds(1);
        if depth > 0 {
            nested(&own, &due, depth - 1);
            let inner = catch_unwind(AssertUnwindSafe(|| own.poll(false)));
            assert_eq!(inner.is_err(), depth == 1);
            runs(None);
            enters_all_kinds(1);
        } else {
            due.fetch_add(1, Ordering::Relaxed);
            Coroutine::new(|| resume_unwind(Box::new("planned"))).enter();
        }
    });
}

// SPEC S5, C2, C8: from thread to thread in the midst of nested enters, with an end, a panic and a
// catch there.
#[test]
fn current_follows_a_coroutine_to_another_thread() {
    let (a, b) = (super::io(), super::io());
    let contexts = [a.context().clone(), b.context().clone()];
    for panics in [false, true] {
        let contexts = contexts.clone();
        let handle = a.context().spawn(move || {
            let me = corio::current();
            for round in 0..200 {
                let there = &contexts[(round + 1) % 2];
                // SAFETY: the stack holds what is Send, and nothing of a thread's.
                unsafe { corio::move_to(there) };
                assert!(there.is_home());
                runs(me);
                enters_all_kinds(1);
                // A panic that is caught between two moves.
                let caught = catch_unwind(|| resume_unwind(Box::new("planned")));
                assert!(caught.is_err());
                corio::yield_now();
                runs(me);
            }
            // SAFETY: as above.
            unsafe { corio::move_to(&contexts[1]) };
            assert!(!panics, "planned");
        });
        assert_eq!(handle.join().is_err(), panics);
        for io in [&a, &b] {
            let (tx, rx) = std::sync::mpsc::channel();
            let told = move || tx.send(corio::current()).unwrap();
            io.context().schedule_oneshot("who runs", told);
            assert_eq!(rx.recv().unwrap(), None);
        }
    }
}

// SPEC S5: one that was entered by another one, by hand, is suspended and sent to another thread.
#[test]
fn current_is_the_entering_one_s_after_its_own_was_sent_away() {
    let (a, b): (IoThread, IoThread) = (super::io(), super::io());
    let there = b.context().clone();
    let handle = a.context().spawn(move || {
        let me = corio::current();
        let (tx, rx) = std::sync::mpsc::channel();
        for _ in 0..100 {
            let tx = tx.clone();
            let co = Coroutine::new(move || {
                let own = corio::current();
                corio::suspend();
                runs(own);
                enters_all_kinds(1);
                runs(own);
                tx.send(std::thread::current().id()).unwrap();
            });
            co.enter();
            runs(me);
            // SAFETY: the stack holds a number and a sender.
            unsafe { co.schedule_on(&there) };
            runs(me);
            assert_ne!(rx.recv().unwrap(), std::thread::current().id());
        }
    });
    handle.join().unwrap();
}
