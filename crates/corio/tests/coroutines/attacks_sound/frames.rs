//! Frames that borrow thread-locals, and what outlives its home in them.

use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use corio::{AioContext, CoWaker, Coroutine, JoinError};

use super::{OnDrop, io, park_for_ever, settle, within_patience};

/// A thread-local's value, which says if it is looked at after its destructor.
struct Local {
    alive: Cell<bool>,
    seen: Arc<AtomicUsize>,
}

impl Local {
    fn look(&self) {
        assert!(self.alive.get(), "the thread-local is gone");
        self.seen.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.alive.set(false);
    }
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
    static KEPT: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
}

fn set_local(seen: &Arc<AtomicUsize>) {
    let local = Local {
        alive: Cell::new(true),
        seen: Arc::clone(seen),
    };
    LOCAL.set(Some(local));
}

/// Borrows the thread-local across `wait`, and looks at it when it is unwound.
fn borrow_across(wait: impl FnOnce()) {
    LOCAL.with_borrow(|local| {
        let local = local.as_ref().unwrap();
        let _looks = OnDrop(|| local.look());
        wait();
    });
}

// SPEC C0, C9, C10: the frame is unwound in its home, with the thread-local still there, although
// the handle is dropped by the thread's end, after it or before it.
#[test]
fn a_frame_that_borrows_a_thread_local_is_unwound_before_it_goes() {
    for kept_first in [false, true] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        std::thread::spawn(move || {
            // The order of first use is the order of the destructors.
            if kept_first {
                KEPT.with_borrow_mut(Vec::clear);
            }
            set_local(&counter);
            corio::home(|| {
                let co = Coroutine::new(|| borrow_across(corio::suspend));
                co.enter();
                KEPT.with_borrow_mut(|kept| kept.push(Box::new(co)));
            });
            assert_eq!(counter.load(Ordering::Relaxed), 1, "by the home");
        })
        .join()
        .unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 1, "once");
    }
}

// SPEC C0, A1, C10, S7: the same on a context whose thread ends; tokens and handles are used by
// others after that.
#[test]
fn a_parked_frame_that_borrows_a_thread_local_ends_with_its_thread() {
    let io = io();
    let seen = Arc::new(AtomicUsize::new(0));
    let (tx, rx) = mpsc::channel();
    let counter = Arc::clone(&seen);
    let handle = io.context().spawn(move || {
        set_local(&counter);
        tx.send(CoWaker::current().unwrap()).unwrap();
        borrow_across(park_for_ever);
    });
    let waker = rx.recv().unwrap();
    settle(&io);
    io.join();
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    waker.wake();
    handle.cancel().unwrap();
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}

// SPEC C0, C12, S7: one that cannot be unwound is never entered again, by whatever means: it would
// find the thread-local gone.
#[test]
fn a_leaked_frame_that_borrows_a_thread_local_never_runs_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    std::thread::spawn(move || {
        set_local(&counter);
        corio::home(|| {
            let co = Coroutine::new(|| {
                borrow_across(|| {
                    loop {
                        let _ = catch_unwind(corio::suspend);
                    }
                });
            });
            co.enter();
            KEPT.with_borrow_mut(|kept| kept.push(Box::new(co)));
        });
        // In another home, from outside any, and by the thread's end.
        corio::home(|| {
            KEPT.with_borrow(|kept| {
                let co: &Coroutine = kept[0].downcast_ref().unwrap();
                assert!(co.is_done());
                assert!(catch_unwind(std::panic::AssertUnwindSafe(|| co.enter())).is_err());
                co.cancel().unwrap();
            });
        });
    })
    .join()
    .unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 0, "it is leaked");
}

// SPEC C0, C1: a thread-local's destructor is a place like any other: coroutines can live there.
#[test]
fn a_home_in_a_thread_locals_destructor_works() {
    let (tx, rx) = mpsc::channel();
    within_patience(move || {
        let last = OnDrop(move || {
            let tx = tx.clone();
            let context = AioContext::new().unwrap();
            context
                .enter_home(|| {
                    let ran = corio::spawn_local(corio::yield_now);
                    let parked = corio::spawn_local(park_for_ever);
                    while !ran.is_finished() {
                        context.poll(true).unwrap();
                    }
                    assert!(!parked.is_finished());
                    tx.send("ran").unwrap();
                })
                .unwrap();
        });
        KEPT.with_borrow_mut(|kept| kept.push(Box::new(last)));
    });
    assert_eq!(rx.recv_timeout(super::PATIENCE), Ok("ran"));
}

// SPEC C3, C9: what a coroutine hands out may be dropped when it is over and somebody else has its
// stack, and does nothing to that one.
#[test]
fn a_mask_that_outlives_its_coroutine_masks_nobody() {
    corio::home(|| {
        let kept = Rc::new(Cell::new(None));
        let out = Rc::clone(&kept);
        let old = Coroutine::new(move || out.set(Some(corio::mask_cancel())));
        old.enter();
        assert!(old.is_done());
        // On the same stack: the newest that was given back.
        let unwound = Rc::new(Cell::new(false));
        let note = Rc::clone(&unwound);
        let new = Coroutine::new(move || {
            let _note = OnDrop(|| note.set(true));
            corio::suspend();
            unreachable!("it is cancelled");
        });
        new.enter();
        drop(kept.take());
        new.cancel().unwrap();
        assert!(unwound.get() && new.is_done());
        // And one that has a mask of its own keeps it.
        let out = Rc::clone(&kept);
        Coroutine::new(move || out.set(Some(corio::mask_cancel()))).enter();
        let steps = Rc::new(Cell::new(0));
        let count = Rc::clone(&steps);
        let masked = Coroutine::new(move || {
            let mask = corio::mask_cancel();
            corio::suspend();
            count.set(1);
            drop(mask);
            corio::suspend();
            count.set(2);
        });
        masked.enter();
        drop(kept.take());
        masked.cancel().unwrap();
        assert_eq!(
            (steps.get(), masked.is_done()),
            (1, false),
            "it has its own mask"
        );
        masked.enter();
        assert_eq!((steps.get(), masked.is_done()), (1, true));
    });
}

// SPEC C0, C12: also after the home, and by the thread's end.
#[test]
fn a_mask_may_be_dropped_after_its_home() {
    std::thread::spawn(|| {
        let kept = Rc::new(Cell::new(None));
        corio::home(|| {
            let out = Rc::clone(&kept);
            Coroutine::new(move || out.set(Some(corio::mask_cancel()))).enter();
            Coroutine::new(|| {
                let mask = corio::mask_cancel();
                KEPT.with_borrow_mut(|kept| kept.push(Box::new(mask)));
            })
            .enter();
        });
        drop(kept.take());
    })
    .join()
    .unwrap();
}
