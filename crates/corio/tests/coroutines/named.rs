//! Coroutines that are scheduled, woken and moved by name (SPEC S1, S3, S4, S5), and what misuse of
//! them says (SPEC C3).

#![allow(unsafe_code)] // Moving coroutines.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use corio::{AioContext, Builder, CoWaker, Coroutine, IoThread, JoinError};

/// What `f` panics with.
fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it panics");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().expect("a message")).to_owned(),
    }
}

/// Fails unless the message says all of that.
#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// Runs a test in the home of a context.
fn in_home(test: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| test(&context)).unwrap();
}

fn named(name: &str, body: impl FnOnce() + 'static) -> Coroutine {
    Builder::new().name(name).create(body).unwrap()
}

type Log = Rc<RefCell<Vec<&'static str>>>;

fn log(log: &Log, what: &'static str) -> impl FnOnce() + 'static {
    let log = Rc::clone(log);
    move || log.borrow_mut().push(what)
}

// SPEC S1, S2: in the order scheduled; what is scheduled while the queue is run waits for the next
// turn.
#[test]
fn scheduled_by_name_first_scheduled_runs_first() {
    in_home(|context| {
        let order: Log = Rc::default();
        let [a, b, late] = ["a", "b", "late"].map(|name| Coroutine::new(log(&order, name)));
        let schedules_late = Coroutine::new({
            let record = log(&order, "schedules");
            move || {
                record();
                late.schedule();
                std::mem::forget(late); // It goes on by itself.
            }
        });
        b.schedule();
        schedules_late.schedule();
        a.schedule();
        assert!(order.borrow().is_empty(), "scheduling runs nothing");
        context.poll(false).unwrap();
        assert_eq!(*order.borrow(), ["b", "schedules", "a"]);
        context.poll(false).unwrap();
        assert_eq!(order.borrow().last(), Some(&"late"));
    });
}

// SPEC S1: a coroutine may schedule itself and then yield.
#[test]
fn a_coroutine_schedules_itself_and_yields() {
    in_home(|context| {
        let own: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let rounds = Rc::new(Cell::new(0));
        let co = Coroutine::new({
            let (own, rounds) = (Rc::clone(&own), Rc::clone(&rounds));
            move || {
                for _ in 0..3 {
                    own.borrow().as_ref().unwrap().schedule();
                    corio::suspend();
                    rounds.set(rounds.get() + 1);
                }
            }
        });
        *own.borrow_mut() = Some(co);
        own.borrow().as_ref().unwrap().enter();
        for turn in 1..=3 {
            context.poll(false).unwrap();
            assert_eq!(rounds.get(), turn);
        }
        assert!(own.borrow().as_ref().unwrap().is_done());
    });
}

// SPEC C3, S1: one that ends instead is told so, and the queue that it is in stays whole.
#[test]
fn one_that_ends_while_it_is_scheduled_is_caught() {
    in_home(|context| {
        let own: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let order: Log = Rc::default();
        let co = named("hasty", {
            let own = Rc::clone(&own);
            move || own.borrow().as_ref().unwrap().schedule()
        });
        *own.borrow_mut() = Some(co);
        let (before, after) = (
            Coroutine::new(log(&order, "before")),
            Coroutine::new(log(&order, "after")),
        );
        before.schedule();
        let message = panic_of(|| own.borrow().as_ref().unwrap().enter());
        says(
            &message,
            &[
                "`hasty`",
                "ended while it was scheduled",
                "yield before it ends",
            ],
        );
        assert!(own.borrow().as_ref().unwrap().is_done());
        after.schedule();
        // Its slot is in the list still, and is not given to these.
        let others: Vec<_> = (0..300).map(|_| Coroutine::new(|| ())).collect();
        context.poll(false).unwrap();
        assert_eq!(*order.borrow(), ["before", "after"]);
        others.iter().for_each(Coroutine::enter);
    });
}

// SPEC S3, C3: the message names the coroutine, where it was made, where it was scheduled first, and
// where it was scheduled again.
#[test]
fn scheduling_what_is_scheduled_is_caught() {
    in_home(|context| {
        let co = named("twice", || corio::suspend());
        let first = line!() + 1;
        co.schedule();
        let again = line!() + 1;
        let message = panic_of(|| co.schedule());
        let at = |line: u32| format!("{}:{line}:", file!());
        says(
            &message,
            &[
                "`twice`",
                "created at",
                &at(first),
                &at(again),
                "queued already",
            ],
        );
        // Entering it is refused as well, and what was scheduled is still there.
        says(
            &panic_of(|| co.enter()),
            &["`twice`", &at(first), "is scheduled on a context already"],
        );
        says(
            &panic_of(|| co.wake()),
            &["`twice`", &at(first), "is scheduled on a context already"],
        );
        context.poll(false).unwrap();
        co.enter();
        assert!(co.is_done());
    });
}

// SPEC C3
#[test]
fn misuse_is_caught_and_names_the_coroutine() {
    in_home(|context| {
        let ended = named("queued", || ());
        let line = line!() + 1;
        ended.schedule();
        context.poll(false).unwrap();
        says(
            &panic_of(|| ended.enter()),
            &[
                "`queued`",
                &format!("last scheduled at {}:{line}", file!()),
                "has ended",
            ],
        );
        let done = named("over", || ());
        done.enter();
        says(
            &panic_of(|| done.enter()),
            &["`over`", "created at", file!(), "was entered", "has ended"],
        );
        says(
            &panic_of(|| done.schedule()),
            &["`over`", "was scheduled", "has ended"],
        );
        says(
            &panic_of(|| done.wake()),
            &["`over`", "was woken", "has ended"],
        );

        let own: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let co = named("nested", {
            let own = Rc::clone(&own);
            move || {
                let inner = Coroutine::new(move || {
                    let message = panic_of(|| own.borrow().as_ref().unwrap().enter());
                    says(&message, &["`nested`", "created at", "is entered already"]);
                    let message = panic_of(|| own.borrow().as_ref().unwrap().wake());
                    says(&message, &["`nested`", "is entered already"]);
                });
                inner.enter();
            }
        });
        *own.borrow_mut() = Some(co);
        own.borrow().as_ref().unwrap().enter();
    });
    says(
        &panic_of(corio::suspend),
        &["outside a coroutine", "call it from a coroutine's body"],
    );
    corio::home(|| {
        let co = named("raw", || corio::suspend());
        says(
            &panic_of(|| co.schedule()),
            &["Coroutine::schedule", "`raw`", "no event loop"],
        );
    });
    // In a home of its own within a context's.
    in_home(|_| {
        let child = corio::spawn_local(|| ());
        corio::home(|| {
            let joins = move || {
                let message = panic_of(|| drop(child.join()));
                says(&message, &["join", "`raw`", "no event loop"]);
            };
            named("raw", joins).enter();
        });
    });
}

// SPEC S4: in the home thread outside any coroutine at once; inside one when it yields or ends, in
// the order woken.
#[test]
fn waking_by_name_enters_or_queues() {
    in_home(|_| {
        let order: Log = Rc::default();
        let waiting = |name| {
            let record = log(&order, name);
            let co = Rc::new(Coroutine::new(move || {
                corio::suspend();
                record();
            }));
            co.enter();
            co
        };
        let [a, b, c] = ["a", "b", "c"].map(waiting);
        a.wake();
        assert_eq!(*order.borrow(), ["a"]);
        let waker = Coroutine::new({
            let (b, c, order) = (Rc::clone(&b), Rc::clone(&c), Rc::clone(&order));
            move || {
                c.wake();
                b.wake();
                order.borrow_mut().push("waker");
            }
        });
        waker.enter();
        assert_eq!(*order.borrow(), ["a", "waker", "c", "b"]);
        assert!(a.is_done() && b.is_done() && c.is_done());
    });
}

// SPEC S4, C4: also one that is parked, which then looks at its condition again.
#[test]
fn a_parked_one_is_woken_by_name() {
    in_home(|_| {
        let rounds = Rc::new(Cell::new(0));
        let co = Coroutine::new({
            let rounds = Rc::clone(&rounds);
            move || {
                while rounds.get() < 3 {
                    rounds.set(rounds.get() + 1);
                    corio::park();
                }
            }
        });
        co.enter();
        for _ in 0..3 {
            co.wake();
        }
        assert!(co.is_done());
    });
}

/// Two IoThreads.
fn two() -> [IoThread; 2] {
    ["here", "there"].map(|name| IoThread::builder().name(name).spawn().unwrap())
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

// SPEC S5, C10: it continues in the other thread, never before it has yielded in the old one, and
// stays joinable, wakeable and cancellable.
#[test]
fn a_coroutine_moves_itself() {
    let [here, there] = two();
    let contexts = [here.context().clone(), there.context().clone()];
    let handle = here.context().spawn(move || {
        let shared = [0_u8; 64]; // Borrowed across the moves.
        let mut names = Vec::new();
        for round in 0..1000 {
            // SAFETY: nothing on the stack is tied to a thread.
            unsafe { corio::move_to(&contexts[round % 2]) };
            assert!(contexts[round % 2].is_home());
            corio::time::sleep(std::time::Duration::from_nanos(1));
            names.push(thread_name());
        }
        assert_eq!(shared, [0; 64]);
        names
    });
    let names = handle.join().unwrap();
    for (round, name) in names.iter().enumerate() {
        assert_eq!(name, ["here", "there"][round % 2]);
    }
}

// SPEC S5: the old thread runs on while the new one has it.
#[test]
fn a_mover_is_gone_from_its_old_thread() {
    let [here, there] = two();
    let inside = Arc::new(AtomicBool::new(false));
    let (go, wait) = mpsc::channel::<()>();
    let mover = here.context().spawn({
        let (there, inside) = (there.context().clone(), Arc::clone(&inside));
        move || {
            // SAFETY: nothing on the stack is tied to a thread.
            unsafe { corio::move_to(&there) };
            inside.store(true, Ordering::Release);
            wait.recv().unwrap(); // Blocks the new thread.
            thread_name()
        }
    });
    while !inside.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    assert_eq!(here.context().spawn(thread_name).join().unwrap(), "here");
    here.join(); // Its home ends without the one that has left.
    go.send(()).unwrap();
    assert_eq!(mover.join().unwrap(), "there");
}

// SPEC S5: already there, it does not even yield.
#[test]
fn moving_to_where_one_is_does_nothing() {
    let [here, _] = two();
    let context = here.context().clone();
    let turns = here.context().spawn(move || {
        let other = Rc::new(Cell::new(false));
        let flag = Rc::clone(&other);
        let child = corio::spawn_local(move || flag.set(true));
        // SAFETY: it does not move.
        unsafe { corio::move_to(&context) };
        let ran = other.get();
        child.join().unwrap();
        ran
    });
    assert!(!turns.join().unwrap(), "others ran in between");
}

// SPEC S1, S5, S6: moved by somebody else, suspended or never begun.
#[test]
fn a_suspended_coroutine_is_moved() {
    let there = IoThread::builder().name("there").spawn().unwrap();
    for begun in [false, true] {
        let (tx, rx) = mpsc::channel();
        in_home(|_| {
            let co = Coroutine::new(move || {
                if begun {
                    corio::suspend();
                }
                tx.send(thread_name()).unwrap();
            });
            if begun {
                co.enter();
            }
            // SAFETY: nothing on its stack is tied to a thread.
            unsafe { co.schedule_on(there.context()) };
        });
        assert_eq!(rx.recv().unwrap(), "there");
    }
}

// SPEC S4: aio_co_enter at home is a wake, elsewhere a move.
#[test]
fn entering_on_a_context_runs_it_there() {
    let there = IoThread::builder().name("there").spawn().unwrap();
    let (tx, rx) = mpsc::channel();
    in_home(|context| {
        for target in [context, there.context()] {
            let tx = tx.clone();
            let co = named("visitor", move || tx.send(thread_name()).unwrap());
            // SAFETY: nothing on its stack is tied to a thread.
            unsafe { co.enter_on(target) };
        }
        assert_eq!(rx.recv().unwrap(), thread_name());
        assert_eq!(rx.recv().unwrap(), "there");
    });
}

// SPEC S5, C0: one that moves to where nobody will ever be home is leaked, and whoever joins it is
// told.
#[test]
fn moving_to_a_context_that_has_ended_leaks() {
    let [here, there] = two();
    let ended = there.context().clone();
    there.join();
    let held = Arc::new(());
    let handle = here.context().spawn({
        let held = Arc::clone(&held);
        move || {
            // SAFETY: nothing on the stack is tied to a thread.
            unsafe { corio::move_to(&ended) };
            drop(held);
        }
    });
    assert!(matches!(handle.join(), Err(JoinError::Leaked)));
    here.join();
    assert_eq!(Arc::strong_count(&held), 2, "its frame is never dropped");
}

// SPEC S5, S7: wakes that come while it is on its way are kept.
#[test]
fn a_mover_keeps_its_wakes() {
    const ROUNDS: usize = 2000;
    let [here, there] = two();
    let contexts = [here.context().clone(), there.context().clone()];
    let count = Arc::new(AtomicUsize::new(0));
    let (tx, rx) = mpsc::channel();
    let mover = here.context().spawn({
        let count = Arc::clone(&count);
        move || {
            tx.send(CoWaker::current().unwrap()).unwrap();
            for round in 1..=ROUNDS {
                // SAFETY: nothing on the stack is tied to a thread.
                unsafe { corio::move_to(&contexts[round % 2]) };
                while count.load(Ordering::Acquire) < round {
                    corio::park();
                }
                count.store(1 << 40 | round, Ordering::Release);
                while count.load(Ordering::Acquire) >= 1 << 40 {
                    corio::park();
                }
            }
        }
    });
    let waker = rx.recv().unwrap();
    for round in 1..=ROUNDS {
        count.store(round, Ordering::Release);
        waker.wake();
        while count.load(Ordering::Acquire) != 1 << 40 | round {
            std::hint::spin_loop();
        }
        count.store(round, Ordering::Release);
        waker.wake();
    }
    mover.join().unwrap();
}

// SPEC C10, C12: a cancellation finds one that has moved.
#[test]
fn a_mover_is_cancelled_where_it_is() {
    let [here, there] = two();
    let target = there.context().clone();
    let (tx, rx) = mpsc::channel();
    let handle = here.context().spawn(move || {
        struct Says(mpsc::Sender<String>);
        impl Drop for Says {
            fn drop(&mut self) {
                self.0.send(thread_name()).unwrap();
            }
        }
        let says = Says(tx.clone());
        // SAFETY: nothing on the stack is tied to a thread.
        unsafe { corio::move_to(&target) };
        tx.send("arrived".to_owned()).unwrap();
        loop {
            corio::park();
            let _ = &says;
        }
    });
    assert_eq!(rx.recv().unwrap(), "arrived");
    handle.cancel().unwrap();
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    assert_eq!(rx.recv().unwrap(), "there");
}

// SPEC C10: a Send closure runs there and its result comes back; the caller is not cancelled
// meanwhile; a panic is the caller's.
#[test]
fn running_elsewhere_borrows_nothing_and_brings_its_result_back() {
    let [here, there] = two();
    let target = there.context().clone();
    let begun = Arc::new(Mutex::new(()));
    let hold = begun.lock().unwrap();
    let (tx, rx) = mpsc::channel();
    let caller = here.context().spawn({
        let begun = Arc::clone(&begun);
        move || {
            let name = target.run(move || {
                tx.send(()).unwrap();
                drop(begun.lock().unwrap());
                thread_name()
            });
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                target.run(|| -> () { panic!("over there") });
            }));
            let message = panicked.unwrap_err().downcast_ref::<&str>().copied();
            (name, message, thread_name())
        }
    });
    rx.recv().unwrap();
    caller.cancel().unwrap(); // Deferred: it is waiting for what it lent.
    drop(hold);
    let ended = caller.join();
    // It may end at its next park, or get through without one.
    if let Ok(found) = ended {
        assert_eq!(found, ("there".into(), Some("over there"), "here".into()));
    }
}
