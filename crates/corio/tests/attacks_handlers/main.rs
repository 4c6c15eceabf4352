//! Programs that try to break the event loop, handlers, monitors, polling and foreign loops from safe
//! code.

mod context;
mod embedding;
mod random;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::{Handler, Interest, MonitorChoice, PollParams, RemoteHandler};
use corio::{AioContext, IoThread};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PATIENCE: Duration = Duration::from_secs(5);

fn on_each_monitor(test: impl Fn(&AioContext)) {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        context.enter_home(|| test(&context)).unwrap();
    }
}

/// Turns the loop until `done`, for at most 5 s.
fn turn_until(context: &AioContext, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let tick = context.timer(|| ());
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        tick.arm_after(Duration::from_millis(5));
        context.poll(true).unwrap();
    }
}

/// Readable at once.
fn loaded() -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"x").unwrap();
    (ours, theirs)
}

fn is_readable(fd: &impl AsFd, at_most: Duration) -> bool {
    let limit = Timespec::try_from(at_most).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

struct Panics;

impl Drop for Panics {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new("on purpose"));
        }
    }
}

// SPEC A1, A3: whatever a home keeps may panic when it is dropped; the thread is home no more.
#[test]
fn a_destructor_that_panics_ends_the_home_all_the_same() {
    let keep = |context: &AioContext| {
        context.local().unwrap().attachment(|| Panics);
    };
    let remove = |context: &AioContext| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let owned = Panics;
        let removed = context.add_handler(ours, Interest::READ, move |_| {
            let _owned = &owned;
        });
        context.poll(false).unwrap();
        drop(removed); // Which the home learns of when it ends.
    };
    for leave in [keep as fn(&AioContext), remove] {
        for monitor in MonitorChoice::ALL {
            let context = AioContext::builder().monitor(monitor).build().unwrap();
            let calls = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&calls);
            let (ours, _theirs) = loaded();
            let _stays = context.add_handler(ours, Interest::READ, move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let home = || {
                context.poll(false).unwrap();
                leave(&context);
            };
            let home = || context.enter_home(home).unwrap();
            let _ = catch_unwind(AssertUnwindSafe(home));
            assert!(!context.is_home());
            assert!(AioContext::current().is_none());
            let before = calls.load(Ordering::Relaxed);
            let again = || turn_until(&context, || calls.load(Ordering::Relaxed) > before);
            context.enter_home(again).unwrap();
        }
    }
}

// SPEC M3, H1, H3: handlers come and go in a turn in which poll turns into epoll, and back.
#[test]
fn a_monitor_that_changes_in_the_middle_of_a_turn_loses_nothing() {
    on_each_monitor(|context| {
        type Handlers = Rc<RefCell<Vec<Option<Handler<UnixStream>>>>>;
        let local = context.local().unwrap();
        let handlers: Handlers = Rc::default();
        let refused: Rc<RefCell<Option<Handler<std::fs::File>>>> = Rc::default();
        let calls = Rc::new(RefCell::new(vec![0u32; 300]));
        let removed = Rc::new(RefCell::new(vec![false; 300]));
        let mut partners = Vec::new();
        let crowd = Rc::new(Cell::new(true));
        for index in 0..40 {
            let (ours, theirs) = loaded();
            partners.push(theirs);
            let (handlers_too, refused_too, calls, removed, crowd, context) = (
                Rc::clone(&handlers),
                Rc::clone(&refused),
                Rc::clone(&calls),
                Rc::clone(&removed),
                Rc::clone(&crowd),
                context.clone(),
            );
            let callback = move |_| {
                assert!(!removed.borrow()[index], "called after its removal");
                calls.borrow_mut()[index] += 1;
                if crowd.replace(false) {
                    // Its neighbour goes, a crowd comes, and then what epoll refuses.
                    let next = (index + 1) % 40;
                    removed.borrow_mut()[next] = true;
                    handlers_too.borrow_mut()[next] = None;
                    let local = context.local().unwrap();
                    for more in 40..140 {
                        let (ours, theirs) = loaded();
                        std::mem::forget(theirs);
                        let calls = Rc::clone(&calls);
                        let count = move |_| calls.borrow_mut()[more] += 1;
                        let added = local.add_handler(ours, Interest::READ, count).unwrap();
                        handlers_too.borrow_mut().push(Some(added));
                    }
                    let file = tempfile::tempfile().unwrap();
                    let calls = Rc::clone(&calls);
                    let count = move |_| calls.borrow_mut()[140] += 1;
                    let added = local.add_handler(file, Interest::READ, count).unwrap();
                    *refused_too.borrow_mut() = Some(added);
                    context.poll(false).unwrap();
                }
            };
            let added = local.add_handler(ours, Interest::READ, callback).unwrap();
            handlers.borrow_mut().push(Some(added));
        }
        turn_until(context, || {
            let (calls, removed) = (calls.borrow(), removed.borrow());
            (0..141).all(|index| calls[index] > 1 || removed[index])
        });
        // Each drained: they are not told of again, and the next byte is.
        let live = handlers.borrow();
        for handler in live.iter().flatten() {
            handler.get_ref().set_nonblocking(true).unwrap();
            let mut stream: &UnixStream = handler.get_ref();
            let _ = stream.read(&mut [0; 8]);
            handler.set_interest(Interest::default()).unwrap();
        }
        drop(live);
        context.poll(false).unwrap();
        let before = calls.borrow().clone();
        for _ in 0..3 {
            context.poll(false).unwrap();
        }
        assert_eq!(before[..140], calls.borrow()[..140]);
        handlers.take();
    });
}

// SPEC M3, H5: the same descriptor several times, over every change of the monitor.
#[test]
fn one_descriptor_with_many_handlers_survives_every_change_of_the_monitor() {
    on_each_monitor(|context| {
        let local = context.local().unwrap();
        let (ours, _theirs) = loaded();
        let ours = Rc::new(ours);
        let calls: Rc<RefCell<Vec<u32>>> = Rc::new(RefCell::new(vec![0; 100]));
        let mut handlers: Vec<_> = (0..100)
            .map(|index| {
                let calls = Rc::clone(&calls);
                let count = move |_| calls.borrow_mut()[index] += 1;
                local
                    .add_handler(Rc::clone(&ours), Interest::READ, count)
                    .unwrap()
            })
            .map(Some)
            .collect();
        turn_until(context, || calls.borrow().iter().all(|count| *count > 0));
        for index in (0..100).step_by(2) {
            handlers[index] = None;
        }
        let file = tempfile::tempfile().unwrap();
        let _file = local.add_handler(file, Interest::READ, |_| ()).unwrap();
        let before = calls.borrow().clone();
        turn_until(context, || {
            let calls = calls.borrow();
            (1..100)
                .step_by(2)
                .all(|index| calls[index] > before[index])
        });
        for index in (0..100).step_by(2) {
            assert_eq!(calls.borrow()[index], before[index]);
        }
    });
}

// SPEC H1, H3, A3: dropped by another thread while its callback runs, and in its own callback.
#[test]
fn a_remote_handler_is_dropped_in_the_middle_of_its_call() {
    for monitor in MonitorChoice::ALL {
        let io = IoThread::builder().monitor(monitor).spawn().unwrap();
        for own in [false, true] {
            let slot: Arc<Mutex<Option<RemoteHandler>>> = Arc::default();
            let (ours, _theirs) = loaded();
            let calls = Arc::new(AtomicUsize::new(0));
            let (count, taken) = (Arc::clone(&calls), Arc::clone(&slot));
            let (entered, gone) = (
                Arc::new(AtomicBool::new(false)),
                Arc::new(AtomicBool::new(false)),
            );
            let (enters, is_gone) = (Arc::clone(&entered), Arc::clone(&gone));
            let context = io.context().clone();
            let alive = Arc::new(());
            let owned = Arc::clone(&alive);
            let mut guard = slot.lock().unwrap();
            *guard = Some(io.context().add_handler(ours, Interest::READ, move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                enters.store(true, Ordering::Release);
                if own {
                    drop(taken.lock().unwrap().take());
                } else {
                    let until = Instant::now() + PATIENCE;
                    while !is_gone.load(Ordering::Acquire) {
                        assert!(Instant::now() < until);
                        thread::yield_now();
                    }
                }
                for _ in 0..3 {
                    context.poll(false).unwrap();
                }
                assert!(Arc::strong_count(&owned) > 1, "what runs is kept");
            }));
            drop(guard);
            let until = Instant::now() + PATIENCE;
            while !entered.load(Ordering::Acquire) {
                assert!(Instant::now() < until);
                thread::yield_now();
            }
            if !own {
                drop(slot.lock().unwrap().take());
                gone.store(true, Ordering::Release);
            }
            while Arc::strong_count(&alive) > 1 {
                assert!(Instant::now() < until, "it is not let go of");
                thread::yield_now();
            }
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        }
        io.join();
    }
}

// SPEC H1, A1: homes come and go on different monitors while others add, change and drop.
#[test]
fn remote_handlers_stay_while_homes_come_and_go() {
    let contexts =
        MonitorChoice::ALL.map(|monitor| AioContext::builder().monitor(monitor).build().unwrap());
    for context in contexts {
        let stop = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(());
        let (ours, _theirs) = loaded();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let stays = context.add_handler(ours, Interest::READ, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let churns = {
            let (context, stop, alive) = (context.clone(), Arc::clone(&stop), Arc::clone(&alive));
            thread::spawn(move || {
                let mut kept = std::collections::VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    let (ours, theirs) = loaded();
                    let owned = Arc::clone(&alive);
                    let added = context.add_handler(ours, Interest::WRITE, move |_| {
                        let _owned = &owned;
                    });
                    added.set_interest(Interest::READ);
                    kept.push_back((added, theirs));
                    if kept.len() > 80 {
                        kept.pop_front();
                    }
                }
            })
        };
        for _ in 0..40 {
            let before = calls.load(Ordering::Relaxed);
            let home = || turn_until(&context, || calls.load(Ordering::Relaxed) > before);
            context.enter_home(home).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        churns.join().unwrap();
        drop(stays);
        context.enter_home(|| context.poll(false).unwrap()).unwrap();
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}

/// As long as it may, and at once.
const SECOND: PollParams = PollParams {
    max_ns: 1_000_000_000,
    grow: u32::MAX,
    ..PollParams::IO_THREAD
};

/// A handler that is polled for up to a second.
fn polled(context: &AioContext) -> (Handler<UnixStream>, UnixStream) {
    context.set_poll_params(SECOND).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let drains = ours.try_clone().unwrap();
    let callback = move |_| {
        let _ = (&drains).read(&mut [0; 8]);
    };
    let local = context.local().unwrap();
    let handler = local.add_handler(ours, Interest::READ, callback).unwrap();
    handler.set_poll(|| false, || ());
    context.poll(false).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while handler.poll_stats().time_ns < SECOND.max_ns {
        assert!(Instant::now() < deadline, "it does not grow");
        let mut partner = theirs.try_clone().unwrap();
        let writes = thread::spawn(move || {
            thread::sleep(Duration::from_micros(200));
            partner.write_all(b"x").unwrap();
        });
        context.poll(true).unwrap();
        writes.join().unwrap();
        while context.poll(false).unwrap() {}
    }
    (handler, theirs)
}

// SPEC P1, A1: what a callback of polling schedules or arms is not slept over until the time is up.
#[test]
fn polling_starves_nothing_that_its_own_callbacks_ask_for() {
    type Asks = fn(&AioContext, &Arc<AtomicBool>) -> Box<dyn Fn()>;
    let bottom_half: Asks = |context, ran| {
        let (context, ran) = (context.clone(), Arc::clone(ran));
        Box::new(move || {
            let ran = Arc::clone(&ran);
            context.schedule_oneshot("asked for", move || ran.store(true, Ordering::Relaxed));
        })
    };
    let timer: Asks = |context, ran| {
        let ran = Arc::clone(ran);
        let timer = context.timer(move || ran.store(true, Ordering::Relaxed));
        Box::new(move || timer.arm_after(Duration::from_millis(2)))
    };
    let idle: Asks = |context, ran| {
        let ran = Arc::clone(ran);
        let half = context.bottom_half("idle", move || ran.store(true, Ordering::Relaxed));
        Box::new(move || half.schedule_idle())
    };
    let handler: Asks = |context, ran| {
        let (context, ran) = (context.clone(), Arc::clone(ran));
        let kept = RefCell::new(None);
        Box::new(move || {
            let ran = Arc::clone(&ran);
            let (ours, theirs) = loaded();
            let local = context.local().unwrap();
            let sets = move |_| ran.store(true, Ordering::Relaxed);
            let added = local.add_handler(ours, Interest::READ, sets).unwrap();
            *kept.borrow_mut() = Some((added, theirs));
        })
    };
    for asks in [bottom_half, timer, idle, handler] {
        on_each_monitor(|context| {
            let (handler, _theirs) = polled(context);
            let ran = Arc::new(AtomicBool::new(false));
            let (ask, asked) = (asks(context, &ran), Cell::new(false));
            let poll = move || {
                if !asked.replace(true) {
                    ask();
                }
                false
            };
            handler.set_poll(poll, || ());
            let began = Instant::now();
            turn_until_plain(context, || ran.load(Ordering::Relaxed));
            let took = began.elapsed();
            assert!(took < Duration::from_millis(500), "it took {took:?}");
        });
    }
}

/// Without a timer that would end the polling.
fn turn_until_plain(context: &AioContext, done: impl Fn() -> bool) {
    while !done() {
        context.poll(true).unwrap();
    }
}

// SPEC P1, B4: an idle bottom half of another thread's.
#[test]
fn polling_starves_no_idle_bottom_half_of_another_threads() {
    on_each_monitor(|context| {
        let (handler, _theirs) = polled(context);
        let ran = Arc::new(AtomicBool::new(false));
        let sets = Arc::clone(&ran);
        let half = context.bottom_half("idle", move || sets.store(true, Ordering::Relaxed));
        let polls = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&polls);
        let poll = move || {
            seen.store(true, Ordering::Release);
            false
        };
        handler.set_poll(poll, || ());
        let other = thread::spawn(move || {
            while !polls.load(Ordering::Acquire) {
                thread::yield_now();
            }
            half.schedule_idle();
            half
        });
        let began = Instant::now();
        turn_until_plain(context, || ran.load(Ordering::Relaxed));
        let took = began.elapsed();
        drop(other.join().unwrap());
        assert!(took < Duration::from_millis(500), "it took {took:?}");
    });
}

// SPEC P5, H3, A3: begin and end remove, add, change parameters and panic.
#[test]
fn callbacks_around_polling_may_change_everything() {
    on_each_monitor(|context| {
        let (handler, _theirs) = polled(context);
        let slot = Rc::new(RefCell::new(None));
        let count = Rc::new(Cell::new(0));
        let (taken, begins, ends) = (Rc::clone(&slot), Rc::clone(&count), Rc::clone(&count));
        let context_too = context.clone();
        handler.set_poll_notify(
            move || {
                begins.set(begins.get() + 1);
                context_too
                    .set_poll_params(PollParams {
                        max_ns: 0,
                        ..SECOND
                    })
                    .unwrap();
                context_too.set_poll_params(SECOND).unwrap();
                resume_unwind(Box::new("on purpose"));
            },
            move || {
                ends.set(ends.get() - 10);
                drop(taken.borrow_mut().take());
            },
        );
        *slot.borrow_mut() = Some(handler);
        let turn = || context.poll(true);
        catch_unwind(AssertUnwindSafe(turn)).unwrap_err();
        assert_eq!(count.get(), -9);
        assert!(slot.borrow().is_none(), "removed by its own end");
        turn_until(context, || true);
        context.poll(false).unwrap();
        // It obstructs nobody, and nothing is counted twice: another one is polled as before.
        let (handler, _theirs) = polled(context);
        assert!(handler.poll_stats().is_polled);
    });
}

/// Waits, when it is dropped, for what another thread does.
struct Waits(AioContext);

impl Drop for Waits {
    fn drop(&mut self) {
        let (done, looked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (sets, sees) = (Arc::clone(&done), Arc::clone(&looked));
        let other = thread::spawn(move || {
            while sees.load(Ordering::Acquire) < 2 {
                thread::yield_now();
            }
            (0..1_000).for_each(|_| thread::yield_now()); // It blocks by now, most likely.
            sets.store(true, Ordering::Release);
            corio::context::kick();
        });
        let guard = self.0.timer(|| ());
        guard.arm_after(PATIENCE);
        let began = Instant::now();
        let waiting = || {
            looked.fetch_add(1, Ordering::Release);
            !done.load(Ordering::Acquire)
        };
        self.0.wait_while(waiting).unwrap();
        other.join().unwrap();
        if began.elapsed() >= PATIENCE {
            println!("the kick was lost");
            std::process::abort();
        }
    }
}

// SPEC A1, W1: what a home keeps may wait for others when the home ends.
#[test]
fn a_destructor_at_the_homes_end_is_kicked() {
    for _ in 0..5 {
        on_each_monitor(|context| {
            let local = context.local().unwrap();
            local.attachment(|| Waits(context.clone()));
        });
    }
}

// SPEC M1, H5: far more handlers than a kernel's queue holds, all ready, come and go in one turn.
#[test]
fn thousands_of_handlers_come_fire_and_go_in_a_turn() {
    const COUNT: usize = 1_500;
    on_each_monitor(|context| {
        let (ours, theirs) = loaded();
        let ours = Arc::new(ours);
        let calls: Arc<Vec<AtomicUsize>> =
            Arc::new((0..COUNT).map(|_| AtomicUsize::new(0)).collect());
        let mut handlers: Vec<_> = (0..COUNT)
            .map(|index| {
                let calls = Arc::clone(&calls);
                Some(
                    context.add_handler(Arc::clone(&ours), Interest::READ, move |_| {
                        calls[index].fetch_add(1, Ordering::Relaxed);
                    }),
                )
            })
            .collect();
        drop(ours);
        let sum = |from: usize| -> Vec<usize> {
            let each = calls.iter().skip(from).step_by(2);
            each.map(|count| count.load(Ordering::Relaxed)).collect()
        };
        turn_until(context, || {
            sum(0).iter().chain(&sum(1)).all(|count| *count > 0)
        });
        handlers
            .iter_mut()
            .step_by(2)
            .for_each(|handler| *handler = None);
        let (gone, stay) = (sum(0), sum(1));
        turn_until(context, || {
            sum(1).iter().zip(&stay).all(|(now, then)| now > then)
        });
        assert_eq!(gone, sum(0));
        handlers.clear();
        context.poll(false).unwrap();
        context.poll(false).unwrap();
        // The last share of the descriptor is gone, whichever monitor had it.
        theirs.set_nonblocking(true).unwrap();
        assert!(is_readable(&theirs, PATIENCE), "it is open still");
    });
}

// SPEC A1, T4, B6: what is due together is not slept over by a nested poll that waits for it.
#[test]
fn a_nested_poll_finds_all_that_the_outer_turn_has_not_run() {
    on_each_monitor(|context| {
        let ran = Arc::new(AtomicUsize::new(0));
        let nested = |what: &'static str| {
            let (ran, context) = (Arc::clone(&ran), context.clone());
            move || {
                let nth = ran.fetch_add(1, Ordering::Relaxed);
                if nth % 2 == 0 {
                    let until = Instant::now() + PATIENCE;
                    let guard = context.timer(|| ());
                    guard.arm_after(PATIENCE);
                    while ran.load(Ordering::Relaxed) == nth + 1 {
                        context.poll(true).unwrap();
                        assert!(Instant::now() < until, "a nested poll sleeps over a {what}");
                    }
                }
            }
        };
        let timers = [
            context.timer(nested("timer")),
            context.timer(nested("timer")),
        ];
        timers.iter().for_each(|timer| timer.arm_at_ns(1));
        turn_until(context, || ran.load(Ordering::Relaxed) >= 2);
        context.schedule_oneshot("first", nested("bottom half"));
        context.schedule_oneshot("second", nested("bottom half"));
        turn_until(context, || ran.load(Ordering::Relaxed) >= 4);
        let (a, b) = (loaded(), loaded());
        let handlers = [a.0, b.0].map(|ours| {
            let (run, reader) = (nested("handler"), ours.try_clone().unwrap());
            reader.set_nonblocking(true).unwrap();
            context.add_handler(ours, Interest::READ, move |_| {
                (&reader)
                    .read_exact(&mut [0])
                    .expect("it is called once for each");
                run();
            })
        });
        turn_until(context, || ran.load(Ordering::Relaxed) >= 6);
        drop(handlers);
        context.poll(false).unwrap();
    });
}

thread_local! {
    static KEPT: RefCell<Vec<Handler<UnixStream>>> = const { RefCell::new(Vec::new()) };
}

/// Adds handlers when it is dropped, and keeps them for whoever comes.
struct Adds(AioContext);

impl Drop for Adds {
    fn drop(&mut self) {
        let Some(local) = self.0.local() else {
            return;
        };
        let add = |_| {
            let (ours, _) = UnixStream::pair().unwrap();
            local.add_handler(ours, Interest::READ, |_| ()).unwrap()
        };
        KEPT.set((0..8).map(add).collect());
    }
}

// SPEC A1, H3: a handler that was added while its home ended is nobody's in the next one.
#[test]
fn a_handler_of_the_last_home_takes_nothing_from_the_next() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        for by_remote in [false, true] {
            let home = || {
                let adds = Adds(context.clone());
                if !by_remote {
                    context.local().unwrap().attachment(|| adds);
                    return;
                }
                let (ours, theirs) = loaded();
                let slot: Arc<Mutex<Option<RemoteHandler>>> = Arc::default();
                let own = Arc::clone(&slot);
                let added = context.add_handler(ours, Interest::READ, move |_| {
                    let _adds = &adds;
                    drop(own.lock().unwrap().take());
                });
                *slot.lock().unwrap() = Some(added);
                std::mem::forget(theirs);
            };
            context.enter_home(home).unwrap();
            let home = || {
                let calls = Rc::new(Cell::new(0));
                let local = context.local().unwrap();
                let add = |_| {
                    let (ours, theirs) = loaded();
                    let calls = Rc::clone(&calls);
                    let count = move |_| calls.set(calls.get() + 1);
                    let added = local.add_handler(ours, Interest::READ, count);
                    (added.unwrap(), theirs)
                };
                (0..2).for_each(|index| drop(add(index))); // The next ones' tokens were others'.
                let added: Vec<_> = (0..8).map(add).collect();
                drop(KEPT.take());
                context.poll(false).unwrap();
                assert_eq!(calls.get(), added.len());
            };
            context.enter_home(home).unwrap();
        }
    }
}

// SPEC I1: a number that no processor can have is an error, and no panic.
#[test]
fn a_processor_that_cannot_be_is_refused() {
    let hook = std::panic::take_hook();
    let panicked = Arc::new(AtomicBool::new(false));
    let sets = Arc::clone(&panicked);
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some("nowhere") {
            sets.store(true, Ordering::Relaxed);
        } else {
            hook(info);
        }
    }));
    for cpus in [vec![usize::MAX], vec![1 << 20], vec![]] {
        let builder = IoThread::builder().name("nowhere").cpus(cpus);
        builder.spawn().unwrap_err();
    }
    assert!(!panicked.load(Ordering::Relaxed));
}
