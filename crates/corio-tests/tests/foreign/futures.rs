//! `block_on` without any runtime: who waits and how, what wakes, what ends it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use corio::{AioContext, IoThread, JoinError, block_on};

/// A value that comes from elsewhere, for one future.
struct Slot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    polls: Cell<u32>,
}

impl<T> Slot<T> {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            value: RefCell::new(None),
            waker: RefCell::new(None),
            polls: Cell::new(0),
        })
    }

    fn put(&self, value: T) {
        *self.value.borrow_mut() = Some(value);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(&self, task: &mut Context<'_>) -> Poll<T> {
        self.polls.set(self.polls.get() + 1);
        if let Some(value) = self.value.take() {
            return Poll::Ready(value);
        }
        *self.waker.borrow_mut() = Some(task.waker().clone());
        Poll::Pending
    }
}

/// Tells when it is dropped.
struct Told<'a>(&'a Cell<bool>);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

fn in_a_coroutine<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let io = IoThread::builder().name("io").spawn().unwrap();
    let result = io.context().spawn(f).join();
    io.join();
    result.unwrap_or_else(|error| panic!("{:?}", error.resume_panic()))
}

fn message(run: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

// SPEC E7: the coroutine parks and not the thread, on which the other runs; neither is `Send`, and
// a future borrows from the frame.
#[test]
fn a_future_that_waits_parks_its_coroutine_alone() {
    in_a_coroutine(|| {
        let slot = Slot::new();
        let there = Rc::clone(&slot);
        let waits = corio::spawn_local(move || {
            let on_the_stack = 40;
            let sum = block_on(async { on_the_stack + poll_fn(|task| there.poll(task)).await });
            (sum, there.polls.get())
        });
        while slot.polls.get() == 0 {
            corio::yield_now();
        }
        assert!(!waits.is_finished());
        slot.put(2);
        assert_eq!(waits.join().unwrap(), (42, 2)); // Polled at first, and when it was woken.
    });
}

// SPEC E7: wakes of the coroutine that are not of the future's waker do not poll it.
#[test]
fn a_future_is_polled_for_its_own_wakes_only() {
    in_a_coroutine(|| {
        let slot = Slot::new();
        let there = Rc::clone(&slot);
        let token = Rc::new(Cell::new(None));
        let tell = Rc::clone(&token);
        let waits = corio::spawn_local(move || {
            tell.set(corio::CoWaker::current());
            block_on(poll_fn(|task| there.poll(task)))
        });
        while slot.polls.get() == 0 {
            corio::yield_now();
        }
        for _ in 0..10 {
            token.get().unwrap().wake();
            corio::yield_now();
        }
        assert_eq!(slot.polls.get(), 1);
        slot.put(());
        waits.join().unwrap();
    });
}

// SPEC E7: a poll may park for reasons of its own; a wake that comes then is kept for the future.
#[test]
fn a_wake_during_a_poll_that_parks_is_not_lost() {
    in_a_coroutine(|| {
        let (outer, inner) = (Slot::new(), Slot::new());
        let (outer_there, inner_there) = (Rc::clone(&outer), Rc::clone(&inner));
        let waits = corio::spawn_local(move || {
            block_on(poll_fn(|task| {
                let polled = outer_there.poll(task);
                if inner_there.polls.get() == 0 {
                    block_on(poll_fn(|task| inner_there.poll(task)));
                }
                polled
            }))
        });
        while inner.polls.get() == 0 {
            corio::yield_now();
        }
        outer.put("outer");
        corio::yield_now(); // The coroutine wakes, finds the inner one pending, and parks again.
        assert_eq!((outer.polls.get(), inner.polls.get()), (1, 1));
        inner.put(());
        assert_eq!(waits.join().unwrap(), "outer");
    });
}

// SPEC E7
#[test]
fn wakes_come_from_other_threads() {
    let io = IoThread::builder().name("io").spawn().unwrap();
    let other = IoThread::builder().name("other").spawn().unwrap();
    let context = other.context().clone();
    let sum = io.context().spawn(move || {
        let mut sum = 0;
        for i in 0..1000 {
            sum += block_on(context.spawn(move || i)).unwrap();
        }
        sum
    });
    assert_eq!(block_on(sum).unwrap(), 499_500); // A plain thread blocks.
}

// SPEC E7, C10: also by a handle that does not leave its thread.
#[test]
fn local_handles_are_futures() {
    let parts = in_a_coroutine(|| {
        let children = [1, 2, 3].map(|i| {
            corio::spawn_local(move || {
                corio::yield_now();
                Rc::new(i)
            })
        });
        block_on(async {
            let mut parts = Vec::new();
            for child in children {
                parts.push(*child.await.unwrap());
            }
            parts
        })
    });
    assert_eq!(parts, [1, 2, 3]);
}

// SPEC E7: who wakes itself keeps neither the loop from others nor itself from a cancellation.
#[test]
fn a_future_that_keeps_waking_itself_gives_others_a_turn() {
    in_a_coroutine(|| {
        let polls = Rc::new(Cell::new(0_u32));
        let counted = Rc::clone(&polls);
        let busy = corio::spawn_local(move || {
            block_on(poll_fn(|task| {
                counted.set(counted.get() + 1);
                task.waker().wake_by_ref();
                Poll::<()>::Pending
            }));
        });
        while polls.get() < 100 {
            corio::yield_now();
        }
        busy.cancel().unwrap();
        assert!(matches!(busy.join(), Err(JoinError::Cancelled)));
    });
}

// SPEC E7, C12
#[test]
fn cancelling_drops_the_future() {
    in_a_coroutine(|| {
        let (dropped, polled) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (told, seen) = (Rc::clone(&dropped), Rc::clone(&polled));
        let waits = corio::spawn_local(move || {
            block_on(async {
                let _told = Told(&told);
                seen.set(true);
                std::future::pending::<()>().await;
            });
        });
        while !polled.get() {
            corio::yield_now();
        }
        assert!(!dropped.get());
        waits.cancel().unwrap();
        assert!(matches!(waits.join(), Err(JoinError::Cancelled)));
        assert!(dropped.get());
    });
}

// SPEC E7, C8: also within something entered, which is left on the way.
#[test]
fn a_panic_of_a_future_goes_on() {
    let panicked = in_a_coroutine(|| {
        let entered = Rc::new(Cell::new(0));
        let (counted, inner) = (Rc::clone(&entered), Rc::clone(&entered));
        let handle = corio::spawn_local(move || {
            let enter = || Depth::enter(&counted);
            corio::block_on_within(enter, async {
                assert_eq!(inner.get(), 1);
                panic!("spoilt");
            })
        });
        let outcome: Result<(), _> = handle.join();
        assert_eq!(entered.get(), 0);
        match outcome {
            Err(JoinError::Panicked(payload)) => *payload.downcast::<&str>().unwrap(),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(panicked, "spoilt");
}

/// Something entered.
struct Depth<'a>(&'a Cell<u32>);

impl<'a> Depth<'a> {
    fn enter(depth: &'a Cell<u32>) -> Self {
        depth.set(depth.get() + 1);
        Self(depth)
    }
}

impl Drop for Depth<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

// SPEC E7: entered in each poll and in the drop, at its end and when it is cancelled, and never
// while it is parked.
#[test]
fn what_is_entered_is_left_across_parks() {
    struct Inside(Rc<Cell<u32>>, Rc<Cell<u32>>, Rc<Slot<()>>);
    impl Future for Inside {
        type Output = ();
        fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
            assert_eq!(self.0.get(), 1);
            self.2.poll(task)
        }
    }
    impl Drop for Inside {
        fn drop(&mut self) {
            self.1.set(self.0.get());
        }
    }
    in_a_coroutine(|| {
        for cancelled in [false, true] {
            let (depth, at_drop, slot) = (Rc::default(), Rc::new(Cell::new(7)), Slot::new());
            let future = Inside(Rc::clone(&depth), Rc::clone(&at_drop), Rc::clone(&slot));
            let entered: Rc<Cell<u32>> = Rc::clone(&depth);
            let waits = corio::spawn_local(move || {
                corio::block_on_within(|| Depth::enter(&entered), future);
            });
            while slot.polls.get() == 0 {
                assert_eq!(depth.get(), 0);
                corio::yield_now();
            }
            assert_eq!((depth.get(), at_drop.get()), (0, 7));
            if cancelled {
                waits.cancel().unwrap();
            } else {
                slot.put(());
            }
            assert_eq!(waits.join().is_err(), cancelled);
            assert_eq!((depth.get(), at_drop.get()), (0, 1));
        }
    });
}

// SPEC E7: wakers outlive the call and the coroutine, and then do nothing.
#[test]
fn a_late_waker_does_nothing() {
    let (sender, receiver) = mpsc::channel();
    in_a_coroutine(move || {
        block_on(poll_fn(|task| {
            sender.send(task.waker().clone()).unwrap();
            Poll::Ready(())
        }));
    });
    for waker in receiver {
        waker.wake_by_ref();
        waker.wake();
    }
}

// SPEC E7, C3: on a loop's thread outside a coroutine, whether or not it would have to wait; and
// where no loop could wake it.
#[test]
fn blocking_on_a_future_would_stop_the_loop_and_is_misuse() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let text = message(|| block_on(std::future::ready(())));
            assert!(
                text.starts_with("block_on was called outside a coroutine"),
                "{text}"
            );
        })
        .unwrap();
    let text = message(|| {
        corio::home(|| corio::Coroutine::new(|| block_on(std::future::ready(()))).enter());
    });
    assert!(text.contains("whose home has no event loop"), "{text}");
}

// SPEC E7: without a coroutine or a loop the thread blocks, and futures of ours are polled there.
#[test]
fn a_plain_thread_blocks() {
    let io = IoThread::builder().name("io").spawn().unwrap();
    let (begin, begins) = mpsc::channel();
    let handle = io.context().spawn(move || {
        let token = corio::CoWaker::current().unwrap();
        let told = std::thread::spawn(move || {
            begins.recv().unwrap();
            token.wake();
        });
        while !told.is_finished() {
            corio::yield_now();
        }
        told.join().unwrap();
        "done"
    });
    let mut handle = pin!(handle);
    let polls = Cell::new(0);
    let outcome = block_on(poll_fn(|task| {
        polls.set(polls.get() + 1);
        let polled = handle.as_mut().poll(task);
        let _ = begin.send(()); // Only now it may end.
        polled
    }));
    assert_eq!(outcome.unwrap(), "done");
    assert!(polls.get() >= 2);
}
