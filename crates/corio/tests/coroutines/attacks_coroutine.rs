//! Programs that try to break coroutines, homes and scheduling from safe code.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use corio::{AioContext, CoWaker, Coroutine, IoThread, JoinError, JoinHandle};

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A panic payload whose destructor panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload's destructor panics, as the test wants");
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("")
}

/// Turns the loop until `done`, for at most 10 s.
fn turn_until(context: &AioContext, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let tick = context.timer(|| ());
    while !done() {
        assert!(
            Instant::now() < deadline,
            "what the test waits for does not come"
        );
        tick.arm_after(Duration::from_millis(5));
        context.poll(true).unwrap();
    }
}

/// Runs the calling test in a process of its own, where [`is_child`] is true.
fn child(test: &str) -> std::process::Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("attacks_coroutine::{test}")])
        .args(["--nocapture", "--test-threads=1"])
        .env("CORIO_ATTACK_CHILD", test)
        .output()
        .unwrap()
}

fn is_child(test: &str) -> bool {
    std::env::var("CORIO_ATTACK_CHILD").is_ok_and(|name| name == test)
}

/// Runs `f` in a process of its own, which must end well: for what aborted or crashed once.
fn survives(test: &str, f: impl FnOnce()) {
    if is_child(test) {
        return f();
    }
    let output = child(test);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

// SPEC C0, S1: the coroutine goes to the context's home, not to the innermost one, which nothing
// could wake.
#[test]
fn spawn_inside_a_raw_home_inside_a_context_s_home() {
    survives("spawn_inside_a_raw_home_inside_a_context_s_home", || {
        let context = AioContext::new().unwrap();
        context
            .enter_home(|| {
                let (local, remote) = corio::home(|| {
                    let local = corio::spawn_local(|| {
                        corio::yield_now();
                        7
                    });
                    let other = context.clone();
                    let remote = std::thread::spawn(move || other.spawn(corio::yield_now));
                    let remote = remote.join().unwrap();
                    context.poll(true).unwrap();
                    (local, remote)
                });
                turn_until(&context, || local.is_finished() && remote.is_finished());
                assert_eq!(local.join().unwrap(), 7, "it outlives the inner home");
                remote.join().unwrap();
            })
            .unwrap();
    });
}

// SPEC C9: the destructor of a closure that never ran suspends the coroutine that drops it, and the
// home ends there.
#[test]
fn a_discard_is_cut_short_by_the_end_of_the_home() {
    survives("a_discard_is_cut_short_by_the_end_of_the_home", || {
        let late = Rc::new(RefCell::new(None::<Coroutine>));
        let after = Rc::new(Cell::new(0));
        corio::home(|| {
            let cell = Rc::new(RefCell::new(None::<Coroutine>));
            let (own, steps) = (Rc::clone(&cell), Rc::clone(&after));
            let dropper = Coroutine::new(move || {
                let _note = OnDrop(|| steps.set(steps.get() + 1));
                drop(own.take());
                unreachable!("the cancellation is not lost in the destructor");
            });
            let out = Rc::clone(&late);
            let suspends = OnDrop(move || {
                let cancelled = catch_unwind(corio::suspend).unwrap_err();
                // Newer than the one that is being dropped.
                let co = Coroutine::new(corio::suspend);
                co.enter();
                *out.borrow_mut() = Some(co);
                std::panic::resume_unwind(cancelled);
            });
            *cell.borrow_mut() = Some(Coroutine::new(move || drop(suspends)));
            dropper.enter();
            std::mem::forget(dropper);
        });
        assert_eq!(after.get(), 1);
        let late = late.take().unwrap();
        assert!(late.is_done(), "the home has ended it");
    });
}

// SPEC C8, C4: the second panic's payload cannot be raised, and its destructor must not lose those
// behind it.
#[test]
fn a_payload_that_panics_when_dropped_loses_nobody_that_is_queued() {
    survives(
        "a_payload_that_panics_when_dropped_loses_nobody_that_is_queued",
        || {
            let context = AioContext::new().unwrap();
            let ran = Rc::new(Cell::new(0));
            context
                .enter_home(|| {
                    let waiters: Vec<_> = (0..4)
                        .map(|i| {
                            let ran = Rc::clone(&ran);
                            let waker = Rc::new(Cell::new(None));
                            let out = Rc::clone(&waker);
                            let co = Coroutine::new(move || {
                                out.set(CoWaker::current());
                                corio::park();
                                ran.set(ran.get() + 1);
                                if i < 2 {
                                    panic_any(Bomb);
                                }
                            });
                            co.enter();
                            (co, waker.get().unwrap())
                        })
                        .collect();
                    for (_, waker) in &waiters {
                        waker.wake();
                    }
                    let payload = catch_unwind(AssertUnwindSafe(|| context.poll(true)));
                    std::mem::forget(payload.expect_err("the first panic reaches poll's caller"));
                    assert_eq!(ran.get(), 4);
                })
                .unwrap();
        },
    );
}

// SPEC C0: whatever a coroutine panics with while it is unwound, the home ends whole.
#[test]
fn a_payload_that_panics_when_dropped_does_not_cut_a_home_short() {
    survives(
        "a_payload_that_panics_when_dropped_does_not_cut_a_home_short",
        || {
            let unwound = Rc::new(Cell::new(false));
            corio::home(|| {
                let unwound = Rc::clone(&unwound);
                let older = Coroutine::new(move || {
                    let _note = OnDrop(|| unwound.set(true));
                    corio::suspend();
                });
                older.enter();
                let bomber = Coroutine::new(|| {
                    let _ = catch_unwind(corio::suspend);
                    panic_any(Bomb);
                });
                bomber.enter();
                std::mem::forget((older, bomber));
            });
            assert!(unwound.get());
            let outside = catch_unwind(|| drop(Coroutine::new(|| ())));
            assert!(text(&*outside.unwrap_err()).contains("outside of any home"));
        },
    );
}

// SPEC A1, C0: one cancelled coroutine ends thousands of others, whose stacks are given back
// meanwhile.
#[test]
fn a_home_ends_with_one_coroutine_that_owns_thousands() {
    survives("a_home_ends_with_one_coroutine_that_owns_thousands", || {
        let context = AioContext::new().unwrap();
        let ended = Rc::new(Cell::new(0));
        context
            .enter_home(|| {
                let many: Vec<_> = (0..6000)
                    .map(|_| {
                        let ended = Rc::clone(&ended);
                        let co = Coroutine::new(move || {
                            let _note = OnDrop(|| ended.set(ended.get() + 1));
                            corio::suspend();
                        });
                        co.enter();
                        co
                    })
                    .collect();
                let owner = Coroutine::new(move || {
                    let _many = many;
                    corio::suspend();
                });
                owner.enter();
                std::mem::forget(owner);
            })
            .unwrap();
        assert_eq!(ended.get(), 6000);
    });
}

// SPEC S7, C12: one that keeps catching its cancellation is leaked; its token is stale from then
// on.
#[test]
fn waking_a_leaked_coroutine_does_nothing() {
    survives("waking_a_leaked_coroutine_does_nothing", || {
        let context = AioContext::new().unwrap();
        let (tx, rx) = mpsc::channel();
        let resumed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&resumed);
        let handle = context
            .enter_home(|| {
                let handle = context.spawn(move || {
                    tx.send(CoWaker::current().unwrap()).unwrap();
                    loop {
                        let _ = catch_unwind(corio::park);
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                });
                context.poll(true).unwrap();
                handle
            })
            .unwrap();
        let before = resumed.load(Ordering::SeqCst);
        assert_ne!(before, 0);
        let waker = rx.recv().unwrap();
        // Something takes the place of what was freed.
        let fill: Vec<_> = (0..20_000).map(|i| vec![0x5a_u8; 16 + i % 80]).collect();
        waker.wake();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        drop(fill);
        // Nor does the context's next home run it.
        context
            .enter_home(|| {
                waker.wake();
                let alive = context.spawn(|| ());
                turn_until(&context, || alive.is_finished());
            })
            .unwrap();
        assert_eq!(resumed.load(Ordering::SeqCst), before);
        drop(handle);
    });
}

// SPEC E7: a task's waker may own anything, and end it: here, what still holds the coroutine.
#[test]
fn a_handle_drops_the_waker_it_replaces_without_its_lock() {
    struct Owner(#[expect(dead_code)] AioContext);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let context = AioContext::new().unwrap();
        let mut handle = context.spawn(|| ());
        let owner = Waker::from(Arc::new(Owner(context)));
        let poll = |handle: &mut JoinHandle<()>, waker: &Waker| {
            std::future::Future::poll(std::pin::Pin::new(handle), &mut Context::from_waker(waker))
        };
        assert!(matches!(poll(&mut handle, &owner), Poll::Pending));
        drop(owner);
        // The handle now has the only waker, which has the context, which has the coroutine.
        let _ = poll(&mut handle, Waker::noop());
        tx.send(handle.join()).unwrap();
    });
    let result = rx.recv_timeout(Duration::from_secs(10)).expect("it hangs");
    assert!(matches!(result, Err(JoinError::Cancelled)));
}

// SPEC C12: a destructor may suspend while a panic unwinds; cancelling there must not raise a
// second panic.
#[test]
fn cancelling_a_coroutine_that_suspends_while_it_unwinds_a_panic() {
    survives(
        "cancelling_a_coroutine_that_suspends_while_it_unwinds_a_panic",
        || {
            let finished = Rc::new(Cell::new(0));
            let body = |finished: &Rc<Cell<i32>>| {
                let finished = Rc::clone(finished);
                move || {
                    let _slow = OnDrop(|| {
                        corio::suspend();
                        finished.set(finished.get() + 1);
                    });
                    panic!("expected by the test");
                }
            };
            corio::home(|| {
                // By its handle.
                let co = Coroutine::new(body(&finished));
                co.enter();
                drop(co);
                // By the end of the home, with one beside it that can be unwound at once.
                let co = Coroutine::new(body(&finished));
                co.enter();
                let unwound = Rc::clone(&finished);
                let plain = Coroutine::new(move || {
                    let _note = OnDrop(|| unwound.set(unwound.get() + 1));
                    corio::suspend();
                    corio::suspend();
                });
                plain.enter();
                std::mem::forget((co, plain));
            });
            assert_eq!(finished.get(), 3);
            assert!(!std::thread::panicking());
        },
    );
}

// SPEC C12
#[test]
fn ending_a_home_whose_coroutine_parks_while_it_unwinds_a_panic() {
    survives(
        "ending_a_home_whose_coroutine_parks_while_it_unwinds_a_panic",
        || {
            let io = IoThread::builder().spawn().unwrap();
            let slept = Arc::new(AtomicBool::new(false));
            let note = Arc::clone(&slept);
            let (tx, rx) = mpsc::channel();
            let handle = io.context().spawn(move || {
                let _slow = OnDrop(|| {
                    tx.send(()).unwrap();
                    corio::time::sleep(Duration::from_millis(50));
                    corio::yield_now();
                    note.store(true, Ordering::SeqCst);
                });
                panic!("expected by the test");
            });
            let other = io
                .context()
                .spawn(|| corio::time::sleep(Duration::from_secs(3600)));
            rx.recv().unwrap();
            io.join();
            assert!(slept.load(Ordering::SeqCst));
            assert!(matches!(handle.join(), Err(JoinError::Panicked(_))));
            assert!(matches!(other.join(), Err(JoinError::Cancelled)));
        },
    );
}

// SPEC C0: also when it is a panic that ends the home.
#[test]
fn a_panic_that_ends_a_home_still_unwinds_what_is_suspended() {
    let unwound = Rc::new(Cell::new(0));
    let result = catch_unwind(AssertUnwindSafe(|| {
        corio::home(|| {
            let body = || {
                let unwound = Rc::clone(&unwound);
                move || {
                    let _note = OnDrop(|| unwound.set(unwound.get() + 1));
                    corio::suspend();
                    unreachable!("it is unwound");
                }
            };
            let (kept, forgotten) = (Coroutine::new(body()), Coroutine::new(body()));
            kept.enter();
            forgotten.enter();
            std::mem::forget(forgotten);
            panic!("expected by the test");
        })
    }));
    assert_eq!(text(&*result.unwrap_err()), "expected by the test");
    assert_eq!(unwound.get(), 2);
}

// SPEC C1: what a closure captures may be of any size and alignment.
#[test]
fn a_closure_may_be_large_or_oddly_aligned() {
    #[repr(align(256))]
    struct Aligned([u8; 256]);
    #[repr(align(4096))]
    struct Page([u8; 8192]);
    fn sum(bytes: &[u8]) -> usize {
        bytes.iter().map(|&b| usize::from(b)).sum()
    }
    corio::home(|| {
        let total = Rc::new(Cell::new(0));
        let (aligned, page, large) = (Aligned([1; 256]), Page([1; 8192]), [1_u8; 100_000]);
        let out = Rc::clone(&total);
        let co = Coroutine::new(move || {
            let aligned = aligned;
            assert_eq!((&raw const aligned).addr() % 256, 0);
            out.set(out.get() + sum(&aligned.0));
        });
        co.enter();
        let out = Rc::clone(&total);
        let co = Coroutine::new(move || {
            let page = &page;
            assert_eq!(core::ptr::from_ref(page).addr() % 4096, 0);
            out.set(out.get() + sum(&page.0));
        });
        co.enter();
        let out = Rc::clone(&total);
        let co = Coroutine::new(move || out.set(out.get() + sum(&large)));
        co.enter();
        assert_eq!(total.get(), 256 + 8192 + 100_000);
        // Never entered: dropped where it lies.
        let dropped = Rc::clone(&total);
        let (note, large) = (OnDrop(move || dropped.set(0)), [0_u8; 4000]);
        drop(Coroutine::new(move || drop((note, large))));
        assert_eq!(total.get(), 0);
    });
}

// SPEC S7: a wake that comes before or during a yield_now keeps the next park from waiting.
#[test]
fn yielding_does_not_swallow_a_wake() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let before = corio::spawn_local(|| {
                CoWaker::current().unwrap().wake();
                corio::yield_now();
                corio::park();
            });
            let waker = Rc::new(Cell::new(None));
            let out = Rc::clone(&waker);
            let during = corio::spawn_local(move || {
                out.set(CoWaker::current());
                corio::yield_now();
                corio::park();
            });
            turn_until(&context, || {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
                before.is_finished() && during.is_finished()
            });
        })
        .unwrap();
}

// SPEC I1: the last handle of an IoThread may go while one of its own coroutines unwinds.
#[test]
fn an_io_thread_dropped_on_itself_while_unwinding() {
    survives("an_io_thread_dropped_on_itself_while_unwinding", || {
        let io = Arc::new(IoThread::builder().spawn().unwrap());
        let (tx, rx) = mpsc::channel();
        let own = Arc::clone(&io);
        let handle = io.context().spawn(move || {
            let _own = own;
            tx.send(()).unwrap();
            corio::time::sleep(Duration::from_secs(3600));
        });
        rx.recv().unwrap();
        io.stop();
        drop(io);
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    });
}

// SPEC C0: a destructor that makes a new coroutine for each one that ends does not hold the home
// for ever.
#[test]
fn a_home_ends_although_each_coroutine_leaves_another() {
    fn phoenix() {
        let _again = OnDrop(|| {
            let next = Coroutine::new(phoenix);
            next.enter();
            std::mem::forget(next);
        });
        corio::suspend();
    }
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        corio::home(|| {
            let co = Coroutine::new(phoenix);
            co.enter();
            std::mem::forget(co);
        });
        tx.send(()).unwrap();
    });
    rx.recv_timeout(Duration::from_secs(10))
        .expect("the home does not end");
}

// SPEC A1: the same with coroutines that spawn, and with a thread that goes on spawning.
#[test]
fn a_home_ends_although_each_spawned_coroutine_spawns_another() {
    fn again() {
        drop(corio::spawn(again));
    }
    let context = AioContext::new().unwrap();
    let handle = context
        .enter_home(|| {
            let handle = context.spawn(again);
            context.poll(true).unwrap();
            handle
        })
        .unwrap();
    let begin = Instant::now();
    context.enter_home(|| drop(context.spawn(again))).unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "it waited for the grace to be over"
    );
    handle.join().unwrap();
}

// SPEC C9: dropping the handle of a coroutine that is parked unwinds it, as of one that is
// suspended.
#[test]
fn dropping_the_handle_of_a_parked_coroutine_unwinds_it() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let unwound = Rc::new(Cell::new(false));
            let note = Rc::clone(&unwound);
            let co = Coroutine::new(move || {
                let _note = OnDrop(|| note.set(true));
                loop {
                    corio::park();
                }
            });
            co.enter();
            drop(co);
            assert!(unwound.get());
        })
        .unwrap();
}

// SPEC C0, C2: homes nest on a thread; a coroutine belongs to the one in which it was made.
#[test]
fn a_coroutine_is_entered_from_an_inner_home_and_outlives_it() {
    corio::home(|| {
        let log = Rc::new(RefCell::new(Vec::new()));
        let out = Rc::clone(&log);
        let outer = Coroutine::new(move || {
            // Made in the inner home, by a coroutine of the outer one.
            let child = Coroutine::new(corio::suspend);
            child.enter();
            out.borrow_mut().push("outer 1");
            corio::suspend();
            assert!(child.is_done(), "the inner home unwound it");
            out.borrow_mut().push("outer 2");
        });
        corio::home(|| {
            outer.enter();
            let (note, inner_log) = (Rc::clone(&log), Rc::clone(&log));
            let inner = Coroutine::new(move || {
                let _note = OnDrop(|| note.borrow_mut().push("inner unwound"));
                corio::suspend();
            });
            inner.enter();
            inner_log.borrow_mut().push("inner home ends");
            std::mem::forget(inner);
        });
        outer.enter();
        assert!(outer.is_done());
        assert_eq!(
            *log.borrow(),
            ["outer 1", "inner home ends", "inner unwound", "outer 2"]
        );
        let refused = Coroutine::new(|| corio::home(|| ()));
        let payload = catch_unwind(AssertUnwindSafe(|| refused.enter())).unwrap_err();
        assert!(text(&*payload).contains("a home was opened inside a coroutine"));
    });
}

// SPEC C0: a handle in a thread-local is dropped after the home, and in a destructor of the
// thread's end.
#[test]
fn handles_outlive_their_home_in_thread_locals() {
    thread_local! {
        static KEPT: RefCell<Vec<Coroutine>> = const { RefCell::new(Vec::new()) };
    }
    std::thread::spawn(|| {
        corio::home(|| {
            for _ in 0..3 {
                let co = Coroutine::new(corio::suspend);
                co.enter();
                KEPT.with_borrow_mut(|kept| kept.push(co));
            }
            KEPT.with_borrow_mut(|kept| kept.push(Coroutine::new(|| ())));
        });
        // Their stacks serve others now.
        corio::home(|| {
            let new: Vec<_> = (0..10).map(|_| Coroutine::new(corio::suspend)).collect();
            new.iter().for_each(Coroutine::enter);
            KEPT.with_borrow(|kept| {
                assert!(kept.iter().all(Coroutine::is_done));
                assert!(catch_unwind(AssertUnwindSafe(|| kept[0].enter())).is_err());
            });
            assert!(!new.iter().any(Coroutine::is_done));
        });
    })
    .join()
    .unwrap();
}

// SPEC C3, C12: a coroutine that drops its own handle goes on, and is cancelled where it next
// waits.
#[test]
fn a_coroutine_drops_its_own_handle() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let cell = Rc::new(RefCell::new(None::<Coroutine>));
            let (own, steps) = (Rc::clone(&cell), Rc::new(Cell::new(0)));
            let (count, waker) = (Rc::clone(&steps), Rc::new(Cell::new(None)));
            let out = Rc::clone(&waker);
            let co = Coroutine::new(move || {
                out.set(CoWaker::current());
                corio::park();
                drop(own.take()); // Nobody borrows it: the loop has entered.
                count.set(1);
                corio::park();
                count.set(2);
            });
            co.enter();
            *cell.borrow_mut() = Some(co);
            waker.get().unwrap().wake();
            turn_until(&context, || steps.get() != 0);
            assert_eq!(steps.get(), 1);
            waker.get().unwrap().wake();
            context.poll(false).unwrap();
            assert_eq!(steps.get(), 1, "it was cancelled at its park");
        })
        .unwrap();
}

// SPEC S6, A1: spawns from another thread race with the end of the home; none is lost and none
// hangs.
#[test]
fn spawns_race_with_the_end_of_an_io_thread() {
    for round in 0..50 {
        let io = IoThread::builder().spawn().unwrap();
        let context = io.context().clone();
        let ended = Arc::new(AtomicBool::new(false));
        let spawner = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut handles = Vec::new();
                while !ended.load(Ordering::Acquire) {
                    handles.push(context.spawn(|| {
                        corio::yield_now();
                        let _ = corio::spawn(corio::yield_now).join();
                    }));
                    std::thread::yield_now();
                }
                handles
            }
        });
        std::thread::sleep(Duration::from_micros(100 * round));
        io.join();
        ended.store(true, Ordering::Release);
        for handle in spawner.join().unwrap() {
            match handle.join() {
                Ok(()) | Err(JoinError::Cancelled | JoinError::Panicked(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

// SPEC S7: tokens are fired from other threads while their coroutines are cancelled and their
// stacks reused.
#[test]
fn wakes_race_with_cancellation_and_reuse() {
    let stop = Arc::new(AtomicBool::new(false));
    let wakers = Arc::new(Mutex::new(Vec::<CoWaker>::new()));
    let firing = std::thread::spawn({
        let (stop, wakers) = (Arc::clone(&stop), Arc::clone(&wakers));
        move || {
            while !stop.load(Ordering::Acquire) {
                let some: Vec<_> = wakers
                    .lock()
                    .unwrap()
                    .iter()
                    .rev()
                    .take(64)
                    .copied()
                    .collect();
                some.into_iter().for_each(CoWaker::wake);
            }
        }
    });
    for _ in 0..100 {
        let io = IoThread::builder().spawn().unwrap();
        for _ in 0..16 {
            let wakers = Arc::clone(&wakers);
            drop(io.context().spawn(move || {
                wakers.lock().unwrap().push(CoWaker::current().unwrap());
                loop {
                    corio::park();
                    corio::yield_now();
                }
            }));
        }
        io.context().spawn(corio::yield_now).join().unwrap();
        io.join();
    }
    stop.store(true, Ordering::Release);
    firing.join().unwrap();
}
