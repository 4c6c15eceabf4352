//! Scopes: children that borrow from the coroutine that starts them.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use corio::sync::{Event, Mutex, Semaphore, channel};
use corio::{AioContext, Coroutine, IoThread, JoinError, scope};

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// What `f` gives, run in a coroutine of a context.
fn in_coroutine<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    io("io").context().spawn(f).join()
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

/// Counts itself when it goes.
struct Ends<'a>(&'a Cell<usize>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A context with its home on this thread, for those who are cancelled step by step.
fn at_home(f: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| f(&context)).unwrap();
}

fn turns(context: &AioContext) {
    (0..4).for_each(|_| _ = context.poll(false).unwrap());
}

// SPEC L8
#[test]
fn children_borrow_from_the_parent_and_have_ended_when_it_returns() {
    let seen = in_coroutine(|| {
        let numbers = vec![1, 2, 3];
        let sum = Cell::new(0);
        let mut own = 0;
        scope(|s| {
            for number in &numbers {
                let sum = &sum;
                s.spawn(move || {
                    corio::yield_now();
                    sum.set(sum.get() + number);
                });
            }
            s.spawn(|| own = 10);
        });
        sum.get() + own
    });
    assert_eq!(seen.unwrap(), 16);
}

// SPEC L8
#[test]
fn joining_gives_what_the_child_returned_which_may_borrow() {
    let text = in_coroutine(|| {
        let text = String::from("borrowed");
        scope(|s| {
            let child = s.spawn(|| &text[..3]);
            let other = s.spawn(|| text.len());
            assert!(!child.is_finished());
            let joined = (other.join().unwrap(), child.join().unwrap());
            let done = s.spawn(|| ());
            corio::yield_now();
            corio::yield_now();
            assert!(done.is_finished());
            format!("{} {}", joined.0, joined.1)
        })
    });
    assert_eq!(text.unwrap(), "8 bor");
}

// SPEC L8
#[test]
fn children_start_siblings_and_have_scopes_of_their_own() {
    let count = in_coroutine(|| {
        let count = Cell::new(0);
        let add = |n| count.set(count.get() + n);
        scope(|s| {
            s.spawn(move || {
                s.spawn(move || {
                    s.spawn(move || add(1));
                    add(10);
                });
                let inner = Cell::new(0);
                scope(|s| {
                    s.spawn(|| inner.set(100));
                });
                add(inner.get());
            });
        });
        count.get()
    });
    assert_eq!(count.unwrap(), 111);
}

// SPEC L8
#[test]
fn forgotten_and_dropped_handles_are_waited_for() {
    let ended = in_coroutine(|| {
        let ended = Cell::new(0);
        scope(|s| {
            let child = || {
                let _ends = Ends(&ended);
                corio::yield_now();
                Ends(&ended)
            };
            drop(s.spawn(child));
            std::mem::forget(s.spawn(child));
        });
        ended.get()
    });
    // Two frames and the dropped handle's result; the forgotten one's is never dropped.
    assert_eq!(ended.unwrap(), 3);
}

// SPEC L8
#[test]
fn a_childs_panic_is_the_scopes_once_all_have_ended() {
    let (payload, ended) = in_coroutine(|| {
        let ended = Cell::new(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                s.spawn(|| panic!("on purpose"));
                s.spawn(|| {
                    let _ends = Ends(&ended);
                    (0..5).for_each(|_| corio::yield_now());
                });
            });
        }));
        (panicked.unwrap_err(), ended.get())
    })
    .unwrap();
    let text = panic_text(&*payload);
    assert!(
        text.contains("1 of the scope's coroutines panicked"),
        "{text}"
    );
    assert_eq!(ended, 1, "the others are waited for, and not cancelled");
}

// SPEC L8
#[test]
fn a_joined_childs_panic_is_the_joiners() {
    let text = in_coroutine(|| {
        scope(|s| {
            let child = s.spawn(|| panic!("on purpose"));
            match child.join() {
                Err(JoinError::Panicked(payload)) => panic_text(&*payload),
                other => format!("{other:?}"),
            }
        })
    });
    assert_eq!(text.unwrap(), "on purpose");
}

// SPEC L8
#[test]
fn a_result_nobody_takes_may_panic_when_it_is_dropped() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(()); // A payload without memory: it is forgotten.
        }
    }
    let error = in_coroutine(|| {
        scope(|s| drop(s.spawn(|| Bomb)));
    });
    let Err(JoinError::Panicked(payload)) = error else {
        panic!("it is reported");
    };
    assert!(panic_text(&*payload).contains("nobody joined"));
}

// SPEC L8, C8
#[test]
fn a_panic_of_the_parent_cancels_its_children_and_waits_for_them() {
    let (text, ended) = in_coroutine(|| {
        let (ended, began) = (Cell::new(0), Cell::new(0));
        let never = Event::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                for stubborn in [false, true] {
                    let (ended, began, never) = (&ended, &began, &never);
                    s.spawn(move || {
                        let _ends = Ends(ended);
                        began.set(began.get() + 1);
                        if stubborn {
                            let caught = catch_unwind(AssertUnwindSafe(|| never.wait()));
                            assert!(caught.is_err());
                            corio::yield_now(); // Keeps the parent waiting for a turn.
                            return;
                        }
                        never.wait();
                    });
                }
                corio::yield_now();
                assert_eq!(began.get(), 2);
                // One that never begins.
                let ends = Ends(&ended);
                s.spawn(move || {
                    let _ends = &ends;
                    began_too_late();
                });
                panic!("the parent's");
            });
        }));
        (panic_text(&*panicked.unwrap_err()), ended.get())
    })
    .unwrap();
    assert_eq!((text.as_str(), ended), ("the parent's", 3));
}

fn began_too_late() {
    unreachable!("it is cancelled before it begins");
}

// SPEC L8, C12
#[test]
fn a_parent_that_is_cancelled_while_it_waits_unwinds_after_its_children() {
    at_home(|context| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let (log, never) = (Rc::clone(&order), Rc::new(Event::new()));
        let parent = Coroutine::new(move || {
            struct Log<'a>(&'a RefCell<Vec<&'static str>>, &'static str);
            impl Drop for Log<'_> {
                fn drop(&mut self) {
                    self.0.borrow_mut().push(self.1);
                }
            }
            let _parent = Log(&log, "parent");
            let borrowed = String::from("borrowed");
            scope(|s| {
                s.spawn(|| {
                    let _child = Log(&log, "first");
                    never.wait();
                    drop(borrowed.clone());
                });
                s.spawn(|| {
                    let _child = Log(&log, "second");
                    never.wait();
                });
            });
            log.borrow_mut().push("went on");
        });
        parent.enter();
        turns(context);
        assert!(order.borrow().is_empty() && !parent.is_done());
        drop(parent);
        turns(context);
        assert_eq!(*order.borrow(), ["second", "first", "parent"]);
    });
}

// SPEC L8, C12
#[test]
fn a_parent_that_is_cancelled_inside_waits_for_its_children() {
    at_home(|context| {
        let ended = Rc::new(Cell::new(0));
        let seen = Rc::new(Cell::new(0));
        let parent = Coroutine::new({
            let (ended, seen) = (Rc::clone(&ended), Rc::clone(&seen));
            move || {
                let own = Cell::new(0);
                let never = Event::new();
                let result = catch_unwind(AssertUnwindSafe(|| {
                    scope(|s| {
                        s.spawn(|| {
                            let _ends = Ends(&own);
                            never.wait();
                        });
                        never.wait();
                    });
                }));
                seen.set(own.get());
                let _ends = Ends(&ended);
                std::panic::resume_unwind(result.unwrap_err());
            }
        });
        parent.enter();
        turns(context);
        drop(parent);
        turns(context);
        assert_eq!((seen.get(), ended.get()), (1, 1));
    });
}

// SPEC L8, C12
#[test]
fn the_wait_of_a_parent_that_unwinds_cannot_be_cancelled() {
    at_home(|context| {
        let (held, ended) = (Rc::new(Semaphore::new(1)), Rc::new(Cell::new(0)));
        let permit = held.try_acquire(1).unwrap();
        let parent = Coroutine::new({
            let (held, ended) = (Rc::clone(&held), Rc::clone(&ended));
            move || {
                let _parent = Ends(&ended);
                let borrowed = String::from("borrowed");
                let in_scope = || {
                    scope(|s| {
                        s.spawn(|| {
                            let caught = catch_unwind(AssertUnwindSafe(|| Event::new().wait()));
                            assert!(caught.is_err());
                            // It unwinds, so this is no cancellation point any more.
                            let _permit = held.acquire(1);
                            assert_eq!(borrowed, "borrowed");
                            ended.set(ended.get() + 10);
                        });
                        corio::yield_now();
                        panic!("on purpose");
                    })
                };
                let panicked = catch_unwind(AssertUnwindSafe(in_scope)).unwrap_err();
                assert_eq!(panic_text(&*panicked), "on purpose");
            }
        });
        parent.enter();
        turns(context);
        drop(parent); // It has been asked to end, and waits.
        turns(context);
        assert_eq!(ended.get(), 0);
        drop(permit);
        turns(context);
        assert_eq!(ended.get(), 11);
    });
}

// SPEC L8, C12
#[test]
fn a_home_that_ends_ends_parents_after_children() {
    let leaving = io("leaving");
    let (tell, told) = std::sync::mpsc::channel();
    let parent = leaving.context().spawn(move || {
        struct Tell(std::sync::mpsc::Sender<&'static str>, &'static str);
        impl Drop for Tell {
            fn drop(&mut self) {
                self.0.send(self.1).unwrap();
            }
        }
        let _parent = Tell(tell.clone(), "parent");
        let never = Event::new();
        scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    let _child = Tell(tell.clone(), "child");
                    never.wait();
                });
            }
        });
    });
    leaving.context().spawn(|| ()).join().unwrap();
    leaving.join();
    assert!(matches!(parent.join(), Err(JoinError::Cancelled)));
    assert_eq!(
        told.iter().collect::<Vec<_>>(),
        ["child", "child", "child", "parent"]
    );
}

// SPEC L8, C12
#[test]
fn a_parent_whose_child_was_cancelled_by_others_does_not_go_on_as_if_it_had_ended() {
    at_home(|context| {
        let (began, went_on) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let parent = Coroutine::new({
            let (began, went_on) = (Rc::clone(&began), Rc::clone(&went_on));
            move || {
                let joined = scope(|s| {
                    let child = s.spawn(|| {
                        began.set(true);
                        // As the home does it when it ends.
                        std::panic::resume_unwind(cancellation());
                    });
                    child.join().map(|(): ()| ())
                });
                assert!(
                    matches!(joined, Err(JoinError::Cancelled)),
                    "who joins is told"
                );
                went_on.set(1);
                let _ends = Ends(&went_on);
                scope(|s| {
                    s.spawn(|| std::panic::resume_unwind(cancellation()));
                });
                went_on.set(10);
            }
        });
        parent.enter();
        turns(context);
        assert!(began.get() && parent.is_done());
        assert_eq!(went_on.get(), 2, "it was cancelled in the second scope");
    });
}

/// What unwinds a coroutine that is cancelled.
fn cancellation() -> Box<dyn std::any::Any + Send> {
    let payload = Rc::new(Cell::new(None));
    let co = Coroutine::new({
        let payload = Rc::clone(&payload);
        move || payload.set(catch_unwind(corio::suspend).err())
    });
    co.enter();
    drop(co);
    payload.take().unwrap()
}

// SPEC L8, C12
#[test]
fn what_is_started_in_a_scope_that_is_cancelled_never_begins() {
    let begun = in_coroutine(|| {
        let (begun, ended) = (Cell::new(0), Cell::new(0));
        let never = Event::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                s.spawn(|| {
                    let caught = catch_unwind(AssertUnwindSafe(|| never.wait()));
                    assert!(caught.is_err());
                    let ends = Ends(&ended);
                    let late = s.spawn(|| {
                        begun.set(1);
                        drop(ends);
                    });
                    assert!(matches!(late.join(), Err(JoinError::Cancelled)));
                });
                corio::yield_now();
                panic!("on purpose");
            });
        }));
        assert_eq!(panic_text(&*panicked.unwrap_err()), "on purpose");
        (begun.get(), ended.get())
    });
    assert_eq!(begun.unwrap(), (0, 1));
}

// SPEC L8
#[test]
fn children_of_one_scope_work_together() {
    let sum = in_coroutine(|| {
        let (tx, mut rx) = channel(1);
        let total = Mutex::new(0);
        scope(|s| {
            for part in 0..4 {
                let tx = tx.clone();
                s.spawn(move || (0..100).for_each(|n| tx.send(part * 100 + n).unwrap()));
            }
            drop(tx);
            s.spawn(|| rx.iter().for_each(|n| *total.lock() += n));
        });
        total.into_inner()
    });
    assert_eq!(sum.unwrap(), 399 * 200);
}

// SPEC L8
#[test]
fn many_children_come_and_go() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    in_coroutine(move || {
        scope(|s| {
            for round in 0..2000usize {
                let child = s.spawn(|| {
                    corio::yield_now();
                    counted.fetch_add(1, Ordering::Relaxed)
                });
                if round.is_multiple_of(7) {
                    child.join().unwrap();
                }
            }
        });
        assert_eq!(counted.load(Ordering::Relaxed), 2000);
    })
    .unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 2000);
}

// SPEC L8, C12
#[test]
fn a_parent_that_is_cancelled_by_its_handle_takes_its_children_along() {
    let io = io("io");
    let (tell, told) = std::sync::mpsc::channel();
    let parent = io.context().spawn(move || {
        let (never, ended) = (Event::new(), Cell::new(0));
        let result = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        let _ends = Ends(&ended);
                        never.wait();
                    });
                }
            });
        }));
        tell.send(ended.get()).unwrap();
        std::panic::resume_unwind(result.unwrap_err());
    });
    io.context().spawn(|| ()).join().unwrap();
    parent.cancel().unwrap();
    assert!(matches!(
        parent.join().map(|(): ()| ()),
        Err(JoinError::Cancelled)
    ));
    assert_eq!(told.recv(), Ok(3));
}

// SPEC L8, C12
#[test]
fn a_mask_of_the_parent_keeps_its_children_from_being_cancelled_with_it() {
    let io = io("io");
    let gate = Arc::new(Event::new());
    let (tell, told) = std::sync::mpsc::channel();
    let parent = io.context().spawn({
        let gate = Arc::clone(&gate);
        move || {
            let mask = corio::mask_cancel();
            let done = Cell::new(0);
            scope(|s| {
                s.spawn(|| {
                    gate.wait();
                    done.set(1);
                });
            });
            tell.send(done.get()).unwrap();
            drop(mask);
            corio::yield_now();
            tell.send(100).unwrap();
        }
    });
    io.context().spawn(|| ()).join().unwrap();
    parent.cancel().unwrap();
    io.context().spawn(|| ()).join().unwrap();
    gate.set();
    assert!(matches!(parent.join(), Err(JoinError::Cancelled)));
    assert_eq!(told.iter().collect::<Vec<_>>(), [1]);
}

// SPEC C3
#[test]
fn a_scope_where_nothing_can_park_is_misuse() {
    let payload = catch_unwind(|| scope(|_| ())).unwrap_err();
    let text = panic_text(&*payload);
    assert!(
        text.contains("scope was called outside a coroutine"),
        "{text}"
    );
    corio::home(|| {
        let co = Coroutine::new(|| scope(|_| ()));
        let payload = catch_unwind(AssertUnwindSafe(|| co.enter())).unwrap_err();
        let text = panic_text(&*payload);
        assert!(text.contains("no event loop"), "{text}");
    });
}
