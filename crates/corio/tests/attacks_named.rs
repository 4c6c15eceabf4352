//! Programs that try to break what is scheduled, woken, moved and cancelled by name.

#![allow(unsafe_code)] // Moving coroutines.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use corio::{AioContext, Builder, CoWaker, Coroutine, IoThread};

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The size of a name that nothing else has.
const NAME_SIZE: usize = 54_321;
static NAMES: AtomicUsize = AtomicUsize::new(0);

/// Counts the names that are allocated.
struct Counts;

impl Counts {
    fn is_name(layout: Layout) -> bool {
        (NAME_SIZE..NAME_SIZE + 64).contains(&layout.size())
    }
}

// SAFETY: the system's allocator.
unsafe impl GlobalAlloc for Counts {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NAMES.fetch_add(usize::from(Self::is_name(layout)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NAMES.fetch_sub(usize::from(Self::is_name(layout)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counts = Counts;

/// Runs a test in the home of a context.
fn in_home(test: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| test(&context)).unwrap();
}

// SPEC B6, S1: a nested poll runs also what was scheduled by name before the outer turn began.
#[test]
fn a_nested_poll_runs_what_is_scheduled() {
    in_home(|context| {
        let ran = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicBool::new(false));
        let nested = context.bottom_half("nested", {
            let (context, ran, seen) = (context.clone(), Arc::clone(&ran), Arc::clone(&seen));
            move || {
                context.poll(false).unwrap();
                seen.store(ran.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        });
        let co = Coroutine::new({
            let ran = Arc::clone(&ran);
            move || ran.store(true, Ordering::Relaxed)
        });
        co.schedule();
        nested.schedule();
        context.poll(false).unwrap();
        assert!(ran.load(Ordering::Relaxed));
        assert!(
            seen.load(Ordering::Relaxed),
            "a blocking poll would have waited for ever"
        );
    });
}

// SPEC C9, C12: a mask that outlives its coroutine is nobody's: the next one in its place can be
// cancelled.
#[test]
fn a_mask_that_outlives_its_coroutine_masks_nobody() {
    corio::home(|| {
        let kept: Rc<RefCell<Vec<corio::CancelMask>>> = Rc::default();
        let theirs = Rc::clone(&kept);
        let first = Coroutine::new(move || theirs.borrow_mut().push(corio::mask_cancel()));
        first.enter();
        assert!(first.is_done());
        let dropped = Rc::new(Cell::new(false));
        let theirs = Rc::clone(&dropped);
        // On the same stack.
        let second = Coroutine::new(move || {
            let _flag = OnDrop(|| theirs.set(true));
            corio::suspend();
        });
        second.enter();
        kept.borrow_mut().clear();
        drop(second);
        assert!(dropped.get(), "it was not unwound");
    });
}

// SPEC C0, S5: one that leaves for another home while the old one cancels the others is not touched
// any more.
#[test]
fn a_home_that_ends_leaves_those_alone_that_have_moved_away() {
    let there = IoThread::builder().name("there").spawn().unwrap();
    let (arrived, has_arrived) = mpsc::channel();
    let go = Arc::new(AtomicBool::new(false));
    let finish = Arc::new(AtomicBool::new(false));
    let (ended, has_ended) = mpsc::channel();
    let mut waker = None;
    in_home(|context| {
        let (tx, rx) = mpsc::channel();
        // The oldest, so that it comes last.
        let mover = context.spawn({
            let (target, go, finish) = (
                there.context().clone(),
                Arc::clone(&go),
                Arc::clone(&finish),
            );
            move || {
                tx.send(CoWaker::current().unwrap()).unwrap();
                while !go.load(Ordering::Acquire) {
                    corio::park();
                }
                // SAFETY: nothing on the stack is tied to a thread.
                unsafe { corio::move_to(&target) };
                arrived.send(()).unwrap();
                while !finish.load(Ordering::Acquire) {
                    corio::park();
                }
                ended
                    .send(std::thread::current().name().map(str::to_owned))
                    .unwrap();
            }
        });
        drop(mover);
        context.poll(false).unwrap();
        let wakes_mover = rx.recv().unwrap();
        waker = Some(wakes_mover);
        let blocker_waker = Rc::new(Cell::new(None));
        let there = there.context().clone();
        drop(corio::spawn_local({
            let blocker_waker = Rc::clone(&blocker_waker);
            move || {
                blocker_waker.set(CoWaker::current());
                let _ = catch_unwind(AssertUnwindSafe(corio::park));
                has_arrived.recv().unwrap();
                // The mover parks before this runs; nothing else may run here meanwhile.
                let (tx, rx) = mpsc::channel();
                drop(there.spawn(move || tx.send(())));
                rx.recv().unwrap();
            }
        }));
        drop(corio::spawn_local(move || {
            let _wakes = OnDrop(|| {
                go.store(true, Ordering::Release);
                wakes_mover.wake();
                blocker_waker.get().unwrap().wake();
            });
            corio::park();
        }));
        context.poll(false).unwrap();
    });
    finish.store(true, Ordering::Release);
    waker.unwrap().wake();
    assert_eq!(has_ended.recv().unwrap().as_deref(), Some("there"));
}

// SPEC C12: a coroutine that is cancelled in the destructor of another's closure, which its own
// queue drops, ends.
#[test]
fn a_cancellation_is_not_lost_in_a_queue_that_drops_a_closure() {
    corio::home(|| {
        let went_on = Rc::new(Cell::new(false));
        let unwound = Rc::new(Cell::new(false));
        let outer = Coroutine::new({
            let (went_on, unwound) = (Rc::clone(&went_on), Rc::clone(&unwound));
            move || {
                let _flag = OnDrop(|| unwound.set(true));
                let waker = Coroutine::new(|| {
                    let suspends = OnDrop(corio::suspend);
                    let never = Coroutine::new(move || drop(suspends));
                    never.wake();
                    // Dropped here: it is cancelled when its turn comes.
                });
                waker.enter();
                went_on.set(true);
            }
        });
        outer.enter();
        assert!(
            !unwound.get() && !went_on.get(),
            "the destructor suspends it"
        );
        drop(outer);
        assert!(unwound.get());
        assert!(!went_on.get(), "it was cancelled, and went on");
    });
}

// SPEC C12, C3: one that has scheduled itself and is cancelled before it yields has done nothing
// wrong.
#[test]
fn one_that_is_cancelled_while_it_is_scheduled_is_no_misuse() {
    in_home(|context| {
        let own: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let co = Coroutine::new({
            let own = Rc::clone(&own);
            move || {
                let own = own.borrow();
                let own = own.as_ref().unwrap();
                own.schedule();
                own.cancel().unwrap();
                corio::park();
                unreachable!("it was cancelled");
            }
        });
        *own.borrow_mut() = Some(co);
        own.borrow().as_ref().unwrap().enter();
        context.poll(false).unwrap();
        assert!(own.borrow().as_ref().unwrap().is_done());
    });
}

// SPEC C3: what a coroutine did wrong at its end is said on standard error like any other panic.
#[test]
fn misuse_at_the_end_runs_the_panic_hook() {
    in_home(|_| {
        let seen = Arc::new(std::sync::Mutex::new(String::new()));
        let theirs = Arc::clone(&seen);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            theirs
                .lock()
                .unwrap()
                .push_str(info.payload_as_str().unwrap_or(""));
        }));
        let lock = Rc::new(corio::sync::Mutex::new(()));
        let co = Coroutine::new(move || std::mem::forget(lock.lock()));
        let _ = catch_unwind(AssertUnwindSafe(|| co.enter()));
        std::panic::set_hook(before);
        let seen = seen.lock().unwrap();
        assert!(seen.contains("ended while holding"), "{seen:?}");
    });
}

// SPEC S1, S4: what has a name and is moved leaves nothing behind.
#[test]
fn a_coroutine_that_is_moved_frees_its_name() {
    let there = IoThread::builder().name("there").spawn().unwrap();
    let name = "n".repeat(NAME_SIZE);
    let before = NAMES.load(Ordering::Relaxed);
    in_home(|context| {
        let named = || Builder::new().name(name.clone());
        let (tx, rx) = mpsc::channel();
        for target in [context, there.context()] {
            let (one, other) = (tx.clone(), tx.clone());
            let scheduled = named().create(move || one.send(()).unwrap()).unwrap();
            let entered = named().create(move || other.send(()).unwrap()).unwrap();
            // SAFETY: nothing of them is tied to a thread.
            unsafe {
                scheduled.schedule_on(target);
                entered.enter_on(target);
            }
            context.poll(false).unwrap();
            rx.recv().unwrap();
            rx.recv().unwrap();
        }
    });
    there.join();
    assert_eq!(NAMES.load(Ordering::Relaxed), before);
}

// SPEC C10, S5, S7: a coroutine that went on without the result it was waiting for, and then left, is
// not woken by what is left behind as if it were still there.
#[test]
fn who_has_stopped_waiting_and_moved_is_left_alone() {
    const ROUNDS: usize = 1_000;
    let there = IoThread::builder().name("there").spawn().unwrap();
    let (ended, has_ended) = mpsc::channel();
    in_home(|context| {
        for round in 0..ROUNDS {
            let gate = Rc::new(Cell::new(false));
            let waits = Rc::clone(&gate);
            let child = corio::spawn_local(move || {
                while !waits.get() {
                    corio::yield_now();
                }
            });
            let (ended, arrived) = (ended.clone(), Arc::new(AtomicBool::new(false)));
            let has_arrived = Arc::clone(&arrived);
            let mover = Coroutine::new(move || {
                let joins = AssertUnwindSafe(|| drop(child.join()));
                catch_unwind(joins).expect_err("it is cancelled");
                corio::suspend();
                arrived.store(true, Ordering::Release);
                for _ in 0..200 {
                    corio::spawn_local(|| ()).join().unwrap();
                }
                ended.send(round).unwrap();
            });
            mover.enter();
            mover.cancel().unwrap();
            // SAFETY: nothing of it is tied to a thread any more.
            unsafe { mover.schedule_on(there.context()) };
            gate.set(true);
            while !has_arrived.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            context.poll(false).unwrap();
            let ended = has_ended.recv_timeout(std::time::Duration::from_secs(20));
            assert_eq!(ended, Ok(round), "it is woken for each of its own");
        }
    });
}
