//! Sleeping on any clock, sleeps that others end, and time-outs, from outside.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::time::{self, Clock, Elapsed, Sleep, Slept, VirtualClock};
use corio::{AioContext, CoWaker, Coroutine, IoThread, JoinError, LocalJoinHandle};

use super::CLOCKS;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

/// For a test that uses the clocks as they are.
fn usual_clocks() -> impl Drop {
    CLOCKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that changes them, with the virtual clock stopped to begin with; afterwards they run.
struct OwnClocks {
    _alone: std::sync::RwLockWriteGuard<'static, ()>,
}

impl OwnClocks {
    fn new() -> Self {
        let alone = CLOCKS.write().unwrap_or_else(PoisonError::into_inner);
        VirtualClock::stop();
        Self { _alone: alone }
    }
}

impl Drop for OwnClocks {
    fn drop(&mut self) {
        VirtualClock::resume();
        Clock::ALL.into_iter().for_each(Clock::enable);
    }
}

/// Runs `test` in a home, with turns at its disposal.
fn at_home(test: impl Fn(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| test(&context)).unwrap();
}

/// Turns that run what can be run without waiting.
fn some_turns(context: &AioContext) {
    for _ in 0..5 {
        context.poll(false).unwrap();
    }
}

/// Turns the loop until `child` has ended, and takes its result.
fn finish<T: 'static>(context: &AioContext, child: LocalJoinHandle<T>) -> T {
    let result = Rc::new(RefCell::new(None));
    let ended = corio::spawn_local({
        let result = Rc::clone(&result);
        move || *result.borrow_mut() = Some(child.join().unwrap())
    });
    while !ended.is_finished() {
        context.poll(true).unwrap();
    }
    result.take().unwrap()
}

fn panic_text(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

// SPEC L4, T1
#[test]
fn a_sleep_lasts_as_long_as_its_clock_says() {
    let _clocks = usual_clocks();
    let io = IoThread::builder().spawn().unwrap();
    for clock in Clock::ALL {
        let sleep = move || {
            let begin_ns = clock.now_ns();
            time::sleep_on(clock, 2 * MS);
            let middle_ns = clock.now_ns();
            time::sleep_until_ns(clock, begin_ns + 5_000_000);
            (middle_ns - begin_ns, clock.now_ns() - begin_ns)
        };
        let (middle_ns, end_ns) = io.context().spawn(sleep).join().unwrap();
        assert!(middle_ns >= 2_000_000 && end_ns >= 5_000_000, "{clock:?}");
    }
}

// SPEC L4, T1, T4
#[test]
fn sleepers_wake_in_the_order_of_their_deadlines_when_the_clock_is_stepped() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let sleepers: Vec<_> = [4, 1, 3, 1, 2]
            .into_iter()
            .enumerate()
            .map(|(i, hours)| {
                let order = Rc::clone(&order);
                corio::spawn_local(move || {
                    time::sleep_on(Clock::Virtual, hours * HOUR);
                    order.borrow_mut().push(i);
                })
            })
            .collect();
        some_turns(context);
        VirtualClock::step(HOUR - Duration::from_nanos(1));
        some_turns(context);
        assert_eq!(*order.borrow(), []);
        VirtualClock::step(Duration::from_nanos(1));
        some_turns(context);
        assert_eq!(*order.borrow(), [1, 3]);
        VirtualClock::step(10 * HOUR);
        some_turns(context);
        assert_eq!(*order.borrow(), [1, 3, 4, 2, 0]);
        assert!(sleepers.iter().all(LocalJoinHandle::is_finished));
    });
}

// SPEC L4, S7
#[test]
fn a_sleep_is_not_ended_by_a_wake_that_is_not_its_own() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let token = Rc::new(Cell::new(None));
        let own = Rc::clone(&token);
        let sleeper = corio::spawn_local(move || {
            own.set(CoWaker::current());
            time::sleep_on(Clock::Virtual, HOUR);
        });
        some_turns(context);
        for _ in 0..3 {
            token.get().unwrap().wake();
            some_turns(context);
            assert!(!sleeper.is_finished());
        }
        VirtualClock::step(HOUR);
        some_turns(context);
        assert!(sleeper.is_finished());
    });
}

// SPEC L4
#[test]
fn a_sleep_of_no_time_gives_the_loop_a_turn() {
    let _clocks = usual_clocks();
    at_home(|context| {
        for clock in Clock::ALL {
            let turned = Rc::new(Cell::new(false));
            let sleeper = corio::spawn_local({
                let turned = Rc::clone(&turned);
                move || {
                    drop(corio::spawn_local(move || turned.set(true)));
                    time::sleep_on(clock, Duration::ZERO);
                    time::sleep_until_ns(clock, 0);
                }
            });
            finish(context, sleeper);
            assert!(turned.get(), "{clock:?}");
        }
    });
}

// SPEC L4, T5
#[test]
fn who_wakes_up_on_a_clock_other_than_realtime_may_disable_it() {
    let _clocks = OwnClocks::new();
    VirtualClock::resume();
    at_home(|context| {
        for clock in [Clock::Virtual, Clock::Host, Clock::VirtualRt] {
            let sleeper = corio::spawn_local(move || {
                time::sleep_on(clock, MS);
                clock.disable();
            });
            finish(context, sleeper);
            assert!(!clock.is_enabled());
        }
    });
}

// SPEC L4, C12
#[test]
fn a_sleeper_that_is_cancelled_takes_its_timer_with_it() {
    let _clocks = OwnClocks::new();
    let sleep = Arc::new(Sleep::new());
    let io = IoThread::builder().spawn().unwrap();
    let sleepers = [
        io.context().spawn(|| {
            time::sleep_on(Clock::Virtual, HOUR);
            Slept::TimeUp
        }),
        io.context().spawn({
            let sleep = Arc::clone(&sleep);
            move || sleep.sleep_on(Clock::Virtual, HOUR)
        }),
    ];
    io.context().spawn(|| ()).join().unwrap();
    assert!(sleep.is_sleeping());
    assert_eq!(
        Clock::Virtual.next_deadline_ns(),
        Some(Clock::Virtual.after_ns(HOUR))
    );
    io.join();
    for sleeper in sleepers {
        assert!(matches!(sleeper.join(), Err(JoinError::Cancelled)));
    }
    assert!(!sleep.is_sleeping());
    assert_eq!(Clock::Virtual.next_deadline_ns(), None);
}

// SPEC L4, C3
#[test]
fn sleeping_where_nothing_can_wake_is_misuse() {
    let sleep = || time::sleep_on(Clock::Host, MS);
    let text = panic_text(catch_unwind(sleep).unwrap_err());
    assert!(
        text.contains("sleep_on was called outside a coroutine"),
        "{text}"
    );
    let text = panic_text(catch_unwind(|| time::timeout(MS, || ())).unwrap_err());
    assert!(
        text.contains("timeout was called outside a coroutine"),
        "{text}"
    );
    corio::home(|| {
        let co = Coroutine::new(|| Sleep::new().sleep());
        let payload = catch_unwind(AssertUnwindSafe(|| co.enter())).unwrap_err();
        let text = panic_text(payload);
        assert!(text.contains("no event loop to wake it"), "{text}");
    });
}

// SPEC L4
#[test]
fn a_wakeable_sleep_tells_whether_the_time_was_up() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let sleep = Rc::new(Sleep::new());
        let doze = || {
            let own = Rc::clone(&sleep);
            let child = corio::spawn_local(move || own.sleep_on(Clock::Virtual, HOUR));
            some_turns(context);
            assert!(!child.is_finished() && sleep.is_sleeping());
            child
        };
        let sleeper = doze();
        VirtualClock::step(HOUR);
        assert_eq!(finish(context, sleeper), Slept::TimeUp);
        let sleeper = doze();
        sleep.wake();
        sleep.wake(); // Once is as good as twice.
        assert_eq!(finish(context, sleeper), Slept::Woken);
        assert!(!sleep.is_sleeping());
        let sleeper = doze(); // Nothing is left of the wakes.
        drop(corio::spawn_local({
            let sleep = Rc::clone(&sleep);
            move || sleep.wake()
        }));
        assert_eq!(finish(context, sleeper), Slept::Woken);
        assert_eq!(Clock::Virtual.next_deadline_ns(), None);
    });
}

// SPEC L4
#[test]
fn a_wake_that_comes_before_the_sleep_is_kept() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let sleep = Rc::new(Sleep::new());
        sleep.wake();
        let sleeper = corio::spawn_local({
            let sleep = Rc::clone(&sleep);
            move || {
                sleep.sleep();
                sleep.sleep_until_ns(Clock::Virtual, u64::MAX)
            }
        });
        some_turns(context);
        assert!(!sleeper.is_finished(), "one wake ends one sleep");
        sleep.wake();
        assert_eq!(finish(context, sleeper), Slept::Woken);
    });
}

// SPEC L4, C12
#[test]
fn a_sleeper_that_is_cancelled_when_it_was_woken_leaves_the_wake() {
    at_home(|context| {
        let sleep = Rc::new(Sleep::new());
        let sleeper = Coroutine::new({
            let sleep = Rc::clone(&sleep);
            move || sleep.sleep()
        });
        sleeper.enter();
        assert!(sleep.is_sleeping());
        sleep.wake();
        drop(sleeper); // Queued already, it is cancelled when it runs.
        some_turns(context);
        assert!(!sleep.is_sleeping());
        let next = corio::spawn_local({
            let sleep = Rc::clone(&sleep);
            move || sleep.sleep()
        });
        finish(context, next);
    });
}

// SPEC L4, C3
#[test]
fn a_second_sleeper_is_misuse() {
    at_home(|context| {
        let sleep = Rc::new(Sleep::new());
        let first = corio::spawn_local({
            let sleep = Rc::clone(&sleep);
            move || sleep.sleep()
        });
        let second = corio::spawn_local({
            let sleep = Rc::clone(&sleep);
            move || catch_unwind(AssertUnwindSafe(|| sleep.sleep()))
        });
        let text = panic_text(finish(context, second).unwrap_err());
        assert!(
            text.contains("each sleeper needs a Sleep of its own"),
            "{text}"
        );
        assert!(sleep.is_sleeping(), "the first one is left in peace");
        sleep.wake();
        finish(context, first);
    });
}

// SPEC L4
#[test]
fn wakes_from_another_thread_are_never_lost() {
    let _clocks = usual_clocks();
    const ROUNDS: usize = 5_000;
    let io = IoThread::builder().spawn().unwrap();
    let sleep = Arc::new(Sleep::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let sleeper = io.context().spawn({
        let (sleep, asked, served) = (Arc::clone(&sleep), Arc::clone(&asked), Arc::clone(&served));
        move || {
            let mut woken = 0;
            while served.load(Ordering::Relaxed) < ROUNDS {
                // No time: only the wake tells.
                woken += usize::from(sleep.sleep_on(Clock::Realtime, HOUR) == Slept::Woken);
                served.store(asked.load(Ordering::Acquire), Ordering::Release);
            }
            woken
        }
    });
    for round in 1..=ROUNDS {
        asked.store(round, Ordering::Release);
        sleep.wake();
        while served.load(Ordering::Acquire) < round {
            thread::yield_now();
        }
    }
    assert!(sleeper.join().unwrap() >= ROUNDS);
}

/// Says that it was dropped, and where.
#[derive(Debug)]
struct Dropped(mpsc::Sender<thread::ThreadId>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

// SPEC L4
#[test]
fn a_result_in_time_is_the_callers_and_need_not_be_send() {
    let _clocks = usual_clocks();
    at_home(|context| {
        let shared = Rc::new(1);
        let own = Rc::clone(&shared);
        let call = corio::spawn_local(move || {
            let caller = corio::current();
            time::timeout(HOUR, move || {
                assert_ne!(corio::current(), caller, "f has a coroutine of its own");
                time::sleep(MS);
                own
            })
        });
        let result = finish(context, call).unwrap();
        assert!(Rc::ptr_eq(&result, &shared));
        let at_once = corio::spawn_local(|| time::timeout(Duration::MAX, || 7));
        assert_eq!(finish(context, at_once), Ok(7));
    });
}

// SPEC L4
#[test]
fn zero_is_no_limit() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let call = corio::spawn_local(|| {
            time::timeout(Duration::ZERO, || {
                time::sleep(5 * MS);
                time::sleep_on(Clock::Virtual, HOUR);
                7
            })
        });
        let until = Instant::now() + 10 * MS;
        while Instant::now() < until {
            some_turns(context);
        }
        assert!(!call.is_finished());
        VirtualClock::step(HOUR);
        assert_eq!(finish(context, call), Ok(7));
    });
}

// SPEC L4
#[test]
fn when_the_time_is_up_the_callee_goes_on_and_its_result_is_dropped_at_home() {
    let _clocks = usual_clocks();
    let io = IoThread::builder().spawn().unwrap();
    let (tx, rx) = mpsc::channel();
    let sleep = Arc::new(Sleep::new());
    let call = io.context().spawn({
        let sleep = Arc::clone(&sleep);
        move || {
            let begin = Instant::now();
            let result = time::timeout(2 * MS, move || {
                sleep.sleep();
                Dropped(tx)
            });
            assert!(begin.elapsed() >= 2 * MS);
            (result.map(|_| ()), thread::current().id())
        }
    });
    let (result, home) = call.join().unwrap();
    assert_eq!(result, Err(Elapsed));
    assert_eq!(rx.try_recv(), Err(mpsc::TryRecvError::Empty));
    assert!(sleep.is_sleeping(), "it is not stopped");
    sleep.wake();
    assert_eq!(rx.recv(), Ok(home));
}

// SPEC L4
#[test]
fn a_result_that_is_there_when_the_caller_runs_is_not_lost_to_the_deadline() {
    let _clocks = usual_clocks();
    at_home(|context| {
        // The callee keeps the thread until long after the deadline: neither the timer nor the
        // caller has run when the result comes.
        let call = corio::spawn_local(|| {
            time::timeout(MS, || {
                let begin = Instant::now();
                while begin.elapsed() < 3 * MS {
                    std::hint::spin_loop();
                }
                7
            })
        });
        assert_eq!(finish(context, call), Ok(7));
    });
}

// SPEC L4
#[test]
fn each_result_is_returned_or_dropped_when_ends_and_deadlines_meet() {
    let _clocks = usual_clocks();
    const CALLS: usize = 500;
    at_home(|context| {
        let (tx, rx) = mpsc::channel();
        let calls: Vec<_> = (0..CALLS as u64)
            .map(|i| {
                let tx = tx.clone();
                corio::spawn_local(move || {
                    // Long enough for all to have begun.
                    let limit = 100 * MS + Duration::from_micros(7 * (i % 100));
                    let work = 100 * MS + Duration::from_micros(11 * (i % 61));
                    let end_ns = Clock::Realtime.after_ns(work);
                    time::timeout(limit, move || {
                        time::sleep_until_ns(Clock::Realtime, end_ns);
                        Dropped(tx)
                    })
                })
            })
            .collect();
        let in_time: Vec<_> = calls
            .into_iter()
            .filter_map(|call| finish(context, call).ok())
            .collect();
        // The late ones come by themselves.
        let mut late = rx.try_iter().count();
        while in_time.len() + late < CALLS {
            context.poll(true).unwrap();
            late += rx.try_iter().count();
        }
        assert_eq!(in_time.len() + late, CALLS);
        assert!(late > 0 && !in_time.is_empty(), "{late} were late");
        drop(in_time);
        assert_eq!(rx.try_iter().count() + late, CALLS);
    });
}

// SPEC L4, C8
#[test]
fn a_panic_in_time_is_the_callers() {
    let _clocks = usual_clocks();
    at_home(|context| {
        for limit in [HOUR, Duration::ZERO] {
            let call = corio::spawn_local(move || {
                catch_unwind(|| time::timeout(limit, || -> () { panic!("on purpose") }))
            });
            let payload = finish(context, call).unwrap_err();
            assert_eq!(panic_text(payload), "on purpose");
        }
    });
}

/// Keeps the errors that are logged on the thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{value:?}\n"));
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

// SPEC L4, C8
#[test]
fn a_panic_that_comes_late_is_reported() {
    let _clocks = usual_clocks();
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        at_home(|context| {
            let sleep = Rc::new(Sleep::new());
            let call = corio::spawn_local({
                let sleep = Rc::clone(&sleep);
                move || {
                    time::timeout(MS, move || {
                        sleep.sleep();
                        panic!("too late");
                    })
                }
            });
            assert_eq!(finish(context, call), Err(Elapsed));
            assert_eq!(*log.0.lock().unwrap(), "");
            sleep.wake();
            some_turns(context);
        });
    });
    let log = log.0.lock().unwrap();
    assert!(log.contains("that nobody joins panicked"), "{log}");
}

// SPEC L4, C12
#[test]
fn a_caller_that_is_cancelled_leaves_the_callee_going_on() {
    let _clocks = usual_clocks();
    at_home(|context| {
        let sleep = Rc::new(Sleep::new());
        let (tx, rx) = mpsc::channel();
        let unwound = Rc::new(Cell::new(false));
        struct Unwound(Rc<Cell<bool>>);
        impl Drop for Unwound {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let caller = Coroutine::new({
            let (sleep, mark) = (Rc::clone(&sleep), Unwound(Rc::clone(&unwound)));
            move || {
                let _mark = mark;
                let _ = time::timeout(HOUR, move || {
                    sleep.sleep();
                    Dropped(tx)
                });
                unreachable!("it is cancelled");
            }
        });
        caller.enter();
        some_turns(context);
        assert!(sleep.is_sleeping() && !unwound.get());
        drop(caller);
        assert!(unwound.get());
        some_turns(context);
        assert!(sleep.is_sleeping(), "the callee is not cancelled with it");
        sleep.wake();
        some_turns(context);
        assert!(rx.try_recv().is_ok());
    });
}

// SPEC L4, C12
#[test]
fn a_home_that_ends_cancels_caller_and_callee() {
    let _clocks = usual_clocks();
    let io = IoThread::builder().spawn().unwrap();
    let (tx, rx) = mpsc::channel();
    let (begins, has_begun) = mpsc::channel();
    let call = io.context().spawn(|| {
        time::timeout(HOUR, move || {
            let _dropped = Dropped(tx);
            begins.send(()).unwrap();
            time::sleep(HOUR);
        })
    });
    has_begun.recv().unwrap();
    io.join();
    assert!(matches!(call.join(), Err(JoinError::Cancelled)));
    assert!(rx.try_recv().is_ok());
}

// SPEC L4, C12
#[test]
fn a_destructor_of_an_ending_home_gets_its_time_out() {
    static TIMED_OUT: AtomicBool = AtomicBool::new(false);
    struct Parting;
    impl Drop for Parting {
        fn drop(&mut self) {
            let result = time::timeout(HOUR, || ());
            TIMED_OUT.store(result == Err(Elapsed), Ordering::Relaxed);
        }
    }
    let _clocks = usual_clocks();
    let io = IoThread::builder().spawn().unwrap();
    let sleeper = io.context().spawn(|| {
        let _parting = Parting;
        time::sleep(HOUR);
    });
    io.context().spawn(|| ()).join().unwrap();
    io.join();
    assert!(matches!(sleeper.join(), Err(JoinError::Cancelled)));
    assert!(TIMED_OUT.load(Ordering::Relaxed));
}
