//! Attacks on scopes, time-outs, select and the locks: programs that are safe, and odd.

use std::cell::{Cell, RefCell};
use std::panic::{catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use corio::sync::{Event, OneOf, RwLock, Semaphore, channel, select};
use corio::time::{self, Elapsed};
use corio::{AioContext, Coroutine, IoThread, LocalJoinHandle, scope};

const HOUR: Duration = Duration::from_secs(3600);

fn at_home(f: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| f(&context)).unwrap();
}

fn turns(context: &AioContext) {
    for _ in 0..6 {
        context.poll(false).unwrap();
    }
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

// SPEC L4, C12
#[test]
fn a_masked_caller_of_an_ending_home_gets_its_time_out() {
    let io = IoThread::builder().spawn().unwrap();
    let caller = io.context().spawn(|| {
        let _mask = corio::mask_cancel();
        corio::park(); // Until the home asks it to end.
        time::timeout(HOUR, || ())
    });
    io.context().spawn(|| ()).join().unwrap();
    io.join();
    assert_eq!(caller.join().unwrap(), Err(Elapsed));
}

// SPEC L4, C12
#[test]
fn a_caller_whose_callee_throws_a_cancellation_does_not_wait_for_ever() {
    at_home(|context| {
        let caller = Coroutine::new(|| {
            let _ = time::timeout(HOUR, || resume_unwind(cancellation()));
            unreachable!("it is cancelled as if the home ended");
        });
        caller.enter();
        turns(context);
        assert!(caller.is_done());
    });
}

// SPEC L8, C12
#[test]
fn a_parent_is_entered_and_cancelled_by_its_own_child() {
    at_home(|context| {
        let parent: Rc<RefCell<Option<Rc<Coroutine>>>> = Rc::default();
        let log = Rc::new(RefCell::new(Vec::new()));
        let co = Rc::new(Coroutine::new({
            let (parent, log) = (Rc::clone(&parent), Rc::clone(&log));
            move || {
                struct Ends<'a>(&'a RefCell<Vec<&'static str>>, &'static str);
                impl Drop for Ends<'_> {
                    fn drop(&mut self) {
                        self.0.borrow_mut().push(self.1);
                    }
                }
                let borrowed = String::from("of the parent's frame");
                let _parent = Ends(&log, "parent");
                scope(|s| {
                    for _ in 0..3 {
                        s.spawn(|| {
                            let _child = Ends(&log, "child");
                            let me = parent.borrow().clone().unwrap();
                            if !me.is_entered() {
                                me.enter(); // Too early: it waits on.
                            }
                            corio::yield_now();
                            me.cancel().unwrap();
                            s.spawn(|| unreachable!("{borrowed}"));
                            corio::yield_now();
                            unreachable!("{borrowed}");
                        });
                    }
                });
                unreachable!();
            }
        }));
        *parent.borrow_mut() = Some(Rc::clone(&co));
        co.enter();
        turns(context);
        parent.borrow_mut().take();
        assert!(co.is_done());
        assert_eq!(*log.borrow(), ["child", "child", "child", "parent"]);
    });
}

/// Runs a scope when it is dropped, whose children wait for the event.
struct Scoped {
    children_done: Rc<Cell<u32>>,
    event: Rc<Event>,
}

impl Drop for Scoped {
    fn drop(&mut self) {
        scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    self.event.wait();
                    self.children_done.set(self.children_done.get() + 1);
                });
            }
        });
    }
}

/// A coroutine's handle, where it finds it itself.
type Own = Rc<RefCell<Option<LocalJoinHandle<()>>>>;

fn cancel(own: &Own) {
    own.borrow().as_ref().unwrap().cancel().unwrap();
}

// SPEC L8, C12
#[test]
fn a_scope_of_one_that_unwinds_runs_its_children_to_their_end() {
    at_home(|context| {
        let (children_done, event) = (Rc::new(Cell::new(0)), Rc::new(Event::new()));
        let run = |f: fn(&Own)| {
            let own = Own::default();
            let scoped = Scoped {
                children_done: Rc::clone(&children_done),
                event: Rc::clone(&event),
            };
            let handle = corio::spawn_local({
                let own = Rc::clone(&own);
                move || {
                    let _scoped = scoped;
                    f(&own);
                }
            });
            *own.borrow_mut() = Some(handle);
            own
        };
        let is_finished = |own: &Own| own.borrow().as_ref().unwrap().is_finished();
        let cancelled = run(|own| {
            cancel(own);
            Event::new().wait();
        });
        turns(context);
        // It unwinds for another reason than that it was asked to end.
        let panics = run(|own| {
            cancel(own);
            panic!("on purpose");
        });
        turns(context);
        assert!(!is_finished(&panics) && !is_finished(&cancelled));
        assert_eq!(children_done.get(), 0);
        event.set();
        turns(context);
        assert!(is_finished(&panics) && is_finished(&cancelled));
        assert_eq!(children_done.get(), 6);
    });
}

// SPEC L8, C12
#[test]
fn a_parent_whose_children_were_cancelled_does_not_go_on_while_another_unwinds() {
    at_home(|context| {
        let event = Rc::new(Event::new());
        let went_on = Rc::new(Cell::new(false));
        let parent = corio::spawn_local({
            let went_on = Rc::clone(&went_on);
            move || {
                scope(|s| {
                    s.spawn(|| Event::new().wait());
                });
                went_on.set(true);
            }
        });
        turns(context);
        let scoped = Scoped {
            children_done: Rc::default(),
            event: Rc::clone(&event),
        };
        let panics = corio::spawn_local(move || {
            let _scoped = scoped;
            panic!("on purpose");
        });
        turns(context);
        assert!(!panics.is_finished());
        parent.cancel().unwrap();
        turns(context);
        assert!(parent.is_finished() && !went_on.get());
        event.set();
        turns(context);
        assert!(panics.is_finished());
    });
}

// SPEC L8
#[test]
fn results_and_handles_in_a_circle_touch_nothing_that_is_gone() {
    at_home(|context| {
        let done = Rc::new(Cell::new(false));
        let co = Coroutine::new({
            let done = Rc::clone(&done);
            move || {
                let frame = [7u8; 64];
                let total = scope(|s| {
                    let cell = Rc::new(RefCell::new(None));
                    // A child's result has the child's own handle in it.
                    let child = s.spawn({
                        let (cell, frame) = (Rc::clone(&cell), &frame);
                        move || (cell, frame)
                    });
                    *cell.borrow_mut() = Some(Box::new(child) as Box<dyn std::fmt::Debug>);
                    // A child that outlives the closure, with a handle of one that does, too.
                    let slow = s.spawn({
                        let frame = &frame;
                        move || {
                            corio::yield_now();
                            corio::yield_now();
                            drop(cell.take()); // The circle, which nobody else holds any more.
                            frame[0]
                        }
                    });
                    s.spawn(move || assert_eq!(slow.join().unwrap(), 7));
                    frame[1]
                });
                assert_eq!(total, 7);
                done.set(true);
            }
        });
        co.enter();
        turns(context);
        assert!(done.get());
    });
}

// SPEC L5
#[test]
fn messages_whose_destructors_use_their_own_channel_find_it_free() {
    struct Loops(Option<corio::sync::Sender<Loops>>, Rc<Cell<u32>>);
    impl Drop for Loops {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
            if let Some(tx) = self.0.take() {
                let again = tx.try_send(Loops(None, Rc::clone(&self.1)));
                assert!(again.is_err() && tx.is_closed());
            }
        }
    }
    let dropped = Rc::new(Cell::new(0));
    let (tx, rx) = channel(4);
    for _ in 0..3 {
        let looped = Loops(Some(tx.clone()), Rc::clone(&dropped));
        assert!(tx.try_send(looped).is_ok());
    }
    drop(rx);
    assert_eq!(dropped.get(), 6);
}

// SPEC L5, L2
#[test]
fn guards_and_permits_of_a_home_that_has_ended_go_back_wherever_they_are_dropped() {
    static LOCK: LazyLock<RwLock<u32>> = LazyLock::new(|| RwLock::new(1));
    static PERMITS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(2));
    let (lock, permits) = (&*LOCK, &*PERMITS);
    let kept = Rc::new(RefCell::new(None));
    at_home(|context| {
        let kept = Rc::clone(&kept);
        let co = Coroutine::new(move || {
            let guard = corio::sync::WriteGuard::hand_on(lock.write());
            *kept.borrow_mut() = Some((guard, permits.acquire(2)));
            let never = Event::new();
            let _ = select((never.on_set(), permits.on_permits(1)));
        });
        co.enter();
        turns(context);
        assert!(!co.is_done());
    });
    let (guard, permit) = kept.borrow_mut().take().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(permit));
    });
    assert!(lock.try_read().is_none());
    drop(guard);
    assert!(lock.try_write().is_some());
    assert_eq!(
        permits.available(),
        2,
        "who waited at the end is not in line"
    );
}

// SPEC L5, L8
#[test]
fn one_select_of_two_arms_of_one_semaphore_takes_one() {
    let io = IoThread::builder().spawn().unwrap();
    let permits = Arc::new(Semaphore::new(3));
    let (tell, told) = mpsc::channel();
    let held = permits.try_acquire(3).unwrap();
    let waiter = io.context().spawn({
        let permits = Arc::clone(&permits);
        move || {
            tell.send(()).unwrap();
            match select((permits.on_permits(2), permits.on_permits(1))) {
                OneOf::First(permit) | OneOf::Second(permit) => permit.amount(),
                _ => unreachable!(),
            }
        }
    });
    told.recv().unwrap();
    io.context().spawn(|| ()).join().unwrap();
    drop(held);
    assert_eq!(waiter.join().unwrap(), 2);
    assert_eq!(permits.available(), 3);
}
