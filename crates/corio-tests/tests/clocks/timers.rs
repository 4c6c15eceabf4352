//! Timers on all clocks, from outside.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use corio::context::{Clock, MonitorChoice, Timer, VirtualClock};
use corio::{AioContext, IoThread};

use super::CLOCKS;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND_NS: u64 = 1_000_000_000;

/// For a test that uses the clocks as they are.
fn usual_clocks() -> impl Drop {
    CLOCKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that changes them; afterwards they run, and a failed test's traces are gone.
struct OwnClocks {
    _alone: std::sync::RwLockWriteGuard<'static, ()>,
}

impl OwnClocks {
    fn new() -> Self {
        let alone = CLOCKS.write().unwrap_or_else(PoisonError::into_inner);
        VirtualClock::stop();
        // Deadlines in the past need a past.
        VirtualClock::step(HOUR);
        VirtualClock::resume();
        Self { _alone: alone }
    }
}

impl Drop for OwnClocks {
    fn drop(&mut self) {
        VirtualClock::resume();
        Clock::ALL.into_iter().for_each(Clock::enable);
    }
}

/// What callbacks have done, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u32>>>);

impl Log {
    fn push(&self, what: u32) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// A timer that notes `what`.
    fn timer(&self, context: &AioContext, clock: Clock, what: u32) -> Timer {
        let log = self.clone();
        context.timer_on(clock, move || log.push(what))
    }
}

/// Runs a test in a home of each monitor.
fn at_home(test: impl Fn(&AioContext)) {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        context.enter_home(|| test(&context)).unwrap();
    }
}

/// The message of the panic that `f` ends with.
fn panic_text(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it does not panic");
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

// SPEC T1, T4
#[test]
fn what_is_due_runs_by_deadline_then_age_on_every_clock() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        for clock in Clock::ALL {
            VirtualClock::resume();
            while clock.now_ns() < 100 {
                thread::yield_now();
            }
            let log = Log::default();
            let now_ns = clock.now_ns();
            let armed: Vec<_> = [(20, 2), (10, 0), (20, 3), (15, 1), (20, 4)]
                .into_iter()
                .map(|(since_ns, what)| {
                    let timer = log.timer(context, clock, what);
                    timer.arm_at_ns(now_ns - 30 + since_ns);
                    timer
                })
                .collect();
            let later = log.timer(context, clock, 9);
            later.arm_after(HOUR);
            assert!(context.poll(false).unwrap(), "a timer is progress");
            assert_eq!(log.take(), [0, 1, 2, 3, 4], "{clock:?}");
            assert!(!context.poll(false).unwrap());
            assert!(armed.iter().all(|timer| !timer.is_armed()) && later.is_armed());
        }
    });
}

// SPEC T4
#[test]
fn what_a_callback_arms_in_the_past_waits_for_the_next_turn_on_every_clock() {
    let _clocks = usual_clocks();
    at_home(|context| {
        // In the order in which clocks run, and against it.
        for (first, second) in [(0, 3), (3, 0), (1, 1), (2, 1), (1, 2)] {
            let (first, second) = (Clock::ALL[first], Clock::ALL[second]);
            let log = Log::default();
            let armed = Arc::new(log.timer(context, second, 2));
            let arms = context.timer_on(first, {
                let (log, armed) = (log.clone(), Arc::clone(&armed));
                move || {
                    log.push(1);
                    armed.arm_at_ns(0);
                }
            });
            // Something else is due there as well, so that the clock is run in this turn.
            let other = log.timer(context, second, 3);
            other.arm_at_ns(1);
            arms.arm_at_ns(0);
            context.poll(false).unwrap();
            let mut seen = log.take();
            seen.sort_unstable();
            assert_eq!(seen, [1, 3], "{first:?} {second:?}");
            context.poll(false).unwrap();
            assert_eq!(log.take(), [2]);
        }
    });
}

// SPEC T4
#[test]
fn a_nested_poll_runs_what_its_callback_has_armed() {
    let _clocks = usual_clocks();
    at_home(|context| {
        for clock in Clock::ALL {
            let log = Log::default();
            let inner = Arc::new(log.timer(context, clock, 2));
            let outer = context.timer_on(clock, {
                let (log, context) = (log.clone(), context.clone());
                move || {
                    log.push(1);
                    inner.arm_at_ns(0);
                    assert!(context.poll(false).unwrap());
                    log.push(3);
                }
            });
            let last = log.timer(context, clock, 4);
            last.arm_at_ns(2);
            outer.arm_at_ns(0);
            context.poll(false).unwrap();
            // The nested turn has run what was left of the outer one, too.
            assert_eq!(log.take(), [1, 2, 4, 3]);
        }
    });
}

// SPEC T2
#[test]
fn a_timer_tells_whether_and_for_when_it_is_armed() {
    let _clocks = usual_clocks();
    let context = AioContext::new().unwrap();
    for clock in Clock::ALL {
        let timer = Log::default().timer(&context, clock, 0);
        assert_eq!(timer.clock(), clock);
        assert_eq!((timer.is_armed(), timer.expire_time_ns()), (false, None));
        assert!(!timer.is_due_at_ns(u64::MAX) && !timer.cancel());
        timer.arm_at_ns(100);
        assert_eq!(
            (timer.is_armed(), timer.expire_time_ns()),
            (true, Some(100))
        );
        assert!(timer.is_due_at_ns(100) && !timer.is_due_at_ns(99));
        timer.arm_at_ns(200);
        assert_eq!(timer.expire_time_ns(), Some(200), "re-armed for later");
        assert!(timer.cancel());
        assert_eq!((timer.is_armed(), timer.expire_time_ns()), (false, None));
    }
}

// SPEC T2
#[test]
fn arming_earlier_only_never_puts_a_timer_off() {
    let _clocks = usual_clocks();
    at_home(|context| {
        let log = Log::default();
        let timer = log.timer(context, Clock::Realtime, 1);
        for (by_ns, expected_ns) in [(300, 300), (400, 300), (300, 300), (200, 200)] {
            timer.arm_by_ns(by_ns);
            assert_eq!(timer.expire_time_ns(), Some(expected_ns));
        }
        // Kept as it was, it has kept its age, too.
        let younger = log.timer(context, Clock::Realtime, 2);
        younger.arm_at_ns(200);
        timer.arm_by_ns(200);
        context.poll(false).unwrap();
        assert_eq!(log.take(), [1, 2]);
        // Re-armed, it is the youngest.
        timer.arm_at_ns(200);
        younger.arm_at_ns(200);
        timer.arm_at_ns(200);
        context.poll(false).unwrap();
        assert_eq!(log.take(), [2, 1]);
    });
}

// SPEC T2
#[test]
fn any_thread_arms_and_cancels_on_any_clock() {
    let _clocks = usual_clocks();
    let io = IoThread::builder().spawn().unwrap();
    for clock in Clock::ALL {
        let (tx, rx) = mpsc::channel();
        let timer = io.context().timer_on(clock, move || tx.send(()).unwrap());
        // The loop waits already, or is about to, for this much longer.
        timer.arm_after(HOUR);
        io.context().spawn(|| ()).join().unwrap();
        timer.arm_by_ns(clock.after_ns(Duration::from_millis(1)));
        rx.recv().unwrap();
        timer.arm_after(HOUR);
        assert!(timer.cancel() && !timer.cancel());
    }
}

// SPEC T2
#[test]
fn threads_that_arm_and_cancel_at_once_lose_no_timer() {
    let _clocks = usual_clocks();
    const ROUNDS: usize = 2_000;
    let io = IoThread::builder().spawn().unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = Clock::ALL
        .into_iter()
        .map(|clock| {
            let count = Arc::clone(&ran);
            let timer = io.context().timer_on(clock, move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            thread::spawn(move || {
                let mut cancelled = 0;
                for _ in 0..ROUNDS {
                    timer.arm_at_ns(0);
                    cancelled += usize::from(timer.cancel());
                }
                cancelled
            })
        })
        .collect();
    let cancelled: usize = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    io.join();
    // Each arming has either run or been cancelled, and not both.
    assert_eq!(
        cancelled + ran.load(Ordering::Relaxed),
        ROUNDS * Clock::ALL.len()
    );
}

// SPEC T3
#[test]
fn a_callback_may_rearm_its_own_timer() {
    let _clocks = usual_clocks();
    at_home(|context| {
        for clock in Clock::ALL {
            let own: Arc<OnceLock<Timer>> = Arc::default();
            let runs = Arc::new(AtomicUsize::new(0));
            let timer = context.timer_on(clock, {
                let (own, runs) = (Arc::downgrade(&own), Arc::clone(&runs));
                move || {
                    let own = own.upgrade().unwrap();
                    let own = own.get().unwrap();
                    assert!(!own.is_armed(), "it has begun");
                    if runs.fetch_add(1, Ordering::Relaxed) < 2 {
                        own.arm_at_ns(0);
                    }
                }
            });
            timer.arm_at_ns(0);
            own.set(timer).unwrap();
            for expected in [1, 2, 3, 3] {
                context.poll(false).unwrap();
                assert_eq!(runs.load(Ordering::Relaxed), expected);
            }
        }
    });
}

// SPEC T3, A3
#[test]
fn a_callback_may_free_its_own_timer_and_is_freed_when_it_returns() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _clocks = usual_clocks();
    at_home(|context| {
        for clock in Clock::ALL {
            let own: Arc<Mutex<Option<Timer>>> = Arc::default();
            let freed = Arc::new(AtomicBool::new(false));
            let flag = Flag(Arc::clone(&freed));
            let timer = context.timer_on(clock, {
                let own = Arc::clone(&own);
                move || {
                    drop(own.lock().unwrap().take());
                    assert!(!flag.0.load(Ordering::Relaxed), "it still runs");
                }
            });
            timer.arm_at_ns(0);
            *own.lock().unwrap() = Some(timer);
            context.poll(false).unwrap();
            assert!(freed.load(Ordering::Relaxed));
        }
    });
}

// SPEC A3, T5
#[test]
fn a_callback_that_panics_leaves_the_rest_for_the_next_turn_and_its_clock_whole() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        let log = Log::default();
        let panics = context.timer_on(Clock::Virtual, || panic!("as it should"));
        let rest = [
            log.timer(context, Clock::Virtual, 1),
            log.timer(context, Clock::Host, 2),
        ];
        panics.arm_at_ns(0);
        rest.iter().for_each(|timer| timer.arm_at_ns(1));
        let text = panic_text(|| drop(context.poll(false)));
        assert_eq!((text.as_str(), log.take()), ("as it should", vec![]));
        context.poll(false).unwrap();
        assert_eq!(log.take(), [1, 2]);
        Clock::Virtual.disable(); // Would wait for ever for a run that had not been counted down.
        Clock::Virtual.enable();
    });
}

// SPEC T1
#[test]
fn the_clocks_show_what_they_are_named_after() {
    let _clocks = OwnClocks::new();
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let host = Duration::from_nanos(Clock::Host.now_ns());
    assert!(host.abs_diff(wall) < Duration::from_secs(60));
    let realtime_ns = Clock::Realtime.now_ns();
    assert!(corio::time::monotonic_ns() >= realtime_ns);

    VirtualClock::stop();
    assert!(!VirtualClock::is_running());
    let show = || (Clock::Virtual.now_ns(), Clock::VirtualRt.now_ns());
    let (virtual_ns, virtual_rt_ns) = show();
    while Clock::Realtime.now_ns() < realtime_ns + 1_000_000 {
        thread::yield_now();
    }
    assert_eq!(show(), (virtual_ns, virtual_rt_ns), "they stand still");
    VirtualClock::step(Duration::from_secs(1));
    assert_eq!(show(), (virtual_ns + SECOND_NS, virtual_rt_ns));
    VirtualClock::stop();
    assert_eq!(show(), (virtual_ns + SECOND_NS, virtual_rt_ns));
    let resumed_ns = Clock::Realtime.now_ns();
    VirtualClock::resume();
    VirtualClock::resume();
    assert!(VirtualClock::is_running());
    while Clock::VirtualRt.now_ns() == virtual_rt_ns {
        thread::yield_now();
    }
    // They go on from where they were, not from where they would be.
    let (now_ns, now_rt_ns) = show();
    let ran_ns = Clock::Realtime.now_ns() - resumed_ns;
    let since = |before_ns| before_ns..=before_ns + ran_ns;
    assert!(since(virtual_ns + SECOND_NS).contains(&now_ns));
    assert!(since(virtual_rt_ns).contains(&now_rt_ns));
}

// SPEC T1
#[test]
fn the_virtual_clock_never_goes_back_while_it_is_stopped_and_resumed() {
    let _clocks = OwnClocks::new();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = [Clock::Virtual, Clock::VirtualRt]
        .into_iter()
        .map(|clock| {
            let done = Arc::clone(&done);
            thread::spawn(move || {
                let mut last_ns = 0;
                while !done.load(Ordering::Relaxed) {
                    let now_ns = clock.now_ns();
                    assert!(now_ns >= last_ns, "{clock:?} went back");
                    last_ns = now_ns;
                }
            })
        })
        .collect();
    for _ in 0..5_000 {
        VirtualClock::stop();
        VirtualClock::step(Duration::from_nanos(1));
        VirtualClock::resume();
    }
    done.store(true, Ordering::Relaxed);
    readers
        .into_iter()
        .for_each(|reader| reader.join().unwrap());
}

// SPEC T1
#[test]
fn stepping_runs_exactly_what_becomes_due() {
    let _clocks = OwnClocks::new();
    VirtualClock::stop();
    at_home(|context| {
        let log = Log::default();
        let start_ns = Clock::Virtual.now_ns();
        let timers: Vec<_> = [3, 1, 2]
            .map(|seconds| {
                let timer = log.timer(context, Clock::Virtual, seconds);
                timer.arm_after(Duration::from_secs(seconds.into()));
                timer
            })
            .into();
        let real = log.timer(context, Clock::VirtualRt, 9);
        real.arm_after(Duration::from_nanos(1));
        context.poll(false).unwrap();
        assert_eq!(log.take(), []);
        for seconds in 1..=3 {
            let next_ns = Clock::Virtual.next_deadline_ns().unwrap();
            assert_eq!(next_ns, start_ns + u64::from(seconds) * SECOND_NS);
            let left_ns = next_ns - Clock::Virtual.now_ns();
            VirtualClock::step(Duration::from_nanos(left_ns - 1));
            context.poll(false).unwrap();
            assert_eq!(log.take(), []);
            VirtualClock::step(Duration::from_nanos(1));
            context.poll(false).unwrap();
            assert_eq!(log.take(), [seconds]);
        }
        assert_eq!(Clock::Virtual.next_deadline_ns(), None);
        assert!(real.is_armed() && timers.iter().all(|timer| !timer.is_armed()));
    });
}

// SPEC T1
#[test]
fn stepping_a_clock_that_runs_is_misuse() {
    let _clocks = OwnClocks::new();
    let text = panic_text(|| VirtualClock::step(Duration::from_secs(1)));
    assert!(text.contains("stop it first"), "{text}");
}

// SPEC T1
#[test]
fn a_stopped_clock_keeps_no_loop_awake_and_resuming_it_wakes_the_loop() {
    let _clocks = OwnClocks::new();
    for clock in [Clock::Virtual, Clock::VirtualRt] {
        at_home(|context| {
            VirtualClock::stop();
            let log = Log::default();
            let timer = log.timer(context, clock, 1);
            timer.arm_after(Duration::from_millis(1));
            let tick = log.timer(context, Clock::Realtime, 2);
            tick.arm_after(Duration::from_millis(30));
            let mut turns = 0;
            while tick.is_armed() {
                context.poll(true).unwrap();
                turns += 1;
            }
            assert_eq!(log.take(), [2]);
            assert!(turns < 10, "it turned {turns} times for nothing");
            let resumer = thread::spawn(VirtualClock::resume);
            while timer.is_armed() {
                context.poll(true).unwrap();
            }
            resumer.join().unwrap();
            assert_eq!(log.take(), [1]);
        });
    }
}

// SPEC T1
#[test]
fn a_step_wakes_every_loop_with_timers_on_the_clock() {
    let _clocks = OwnClocks::new();
    VirtualClock::stop();
    let threads: Vec<_> = (0..3)
        .map(|_| IoThread::builder().spawn().unwrap())
        .collect();
    let (tx, rx) = mpsc::channel();
    let timers: Vec<_> = threads
        .iter()
        .map(|io| {
            let tx = tx.clone();
            let timer = io
                .context()
                .timer_on(Clock::Virtual, move || tx.send(()).unwrap());
            timer.arm_after(HOUR);
            timer
        })
        .collect();
    VirtualClock::step(HOUR - Duration::from_nanos(1));
    assert!(timers.iter().all(Timer::is_armed));
    VirtualClock::step(Duration::from_nanos(1));
    for _ in &threads {
        rx.recv().unwrap();
    }
}

// SPEC T5
#[test]
fn a_disabled_clock_runs_nothing_and_keeps_no_loop_awake() {
    let _clocks = OwnClocks::new();
    for clock in Clock::ALL {
        at_home(|context| {
            let log = Log::default();
            let timer = log.timer(context, clock, 1);
            clock.disable();
            assert!(!clock.is_enabled());
            timer.arm_at_ns(1);
            assert_eq!(clock.next_deadline_ns(), None, "it is hidden");
            let other = Clock::ALL.into_iter().find(|&other| other != clock);
            let tick = log.timer(context, other.unwrap(), 2);
            tick.arm_after(Duration::from_millis(20));
            let mut turns = 0;
            while tick.is_armed() {
                context.poll(true).unwrap();
                turns += 1;
            }
            assert_eq!(log.take(), [2], "{clock:?}");
            assert!(turns < 10, "it turned {turns} times for nothing");
            assert!(timer.is_armed());
            // Enabling notifies.
            let enabler = thread::spawn(move || clock.enable());
            while timer.is_armed() {
                context.poll(true).unwrap();
            }
            enabler.join().unwrap();
            assert_eq!(log.take(), [1], "{clock:?}");
        });
    }
}

// SPEC T5
#[test]
fn disabling_waits_for_the_callback_that_runs_and_keeps_the_next_one() {
    let _clocks = OwnClocks::new();
    let io = IoThread::builder().spawn().unwrap();
    for clock in Clock::ALL {
        let (entered, has_entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let released = Mutex::new(released);
        let done = Arc::new(AtomicBool::new(false));
        let timer = io.context().timer_on(clock, {
            let done = Arc::clone(&done);
            move || {
                entered.send(()).unwrap();
                released.lock().unwrap().recv().unwrap();
                done.store(true, Ordering::Relaxed);
            }
        });
        let log = Log::default();
        let next = log.timer(io.context(), clock, 1);
        // Both are due in one turn.
        let (timer, next) = io.context().run(move || {
            timer.arm_at_ns(0);
            next.arm_at_ns(1);
            (timer, next)
        });
        has_entered.recv().unwrap();
        let disabler = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                clock.disable();
                done.load(Ordering::Relaxed)
            }
        });
        while clock.is_enabled() {
            thread::yield_now();
        }
        release.send(()).unwrap();
        assert!(disabler.join().unwrap(), "{clock:?}: it did not wait");
        io.context().spawn(|| ()).join().unwrap();
        assert!(next.is_armed() && !timer.is_armed());
        assert_eq!(log.take(), []);
        clock.enable();
        while next.is_armed() {
            thread::yield_now();
        }
    }
}

// SPEC T5, C3
#[test]
fn disabling_a_clock_in_its_own_callback_is_misuse() {
    let _clocks = OwnClocks::new();
    at_home(|context| {
        for clock in Clock::ALL {
            let timer = context.timer_on(clock, move || clock.disable());
            timer.arm_at_ns(0);
            let text = panic_text(|| drop(context.poll(false)));
            let expected = format!("the clock {clock:?} was disabled in a callback of one of its");
            assert!(
                text.contains(&expected) && text.contains("bottom half"),
                "{text}"
            );
            assert!(clock.is_enabled());
            // From another clock's it may.
            let other = Clock::ALL.into_iter().find(|&other| other != clock);
            let timer = context.timer_on(other.unwrap(), move || clock.disable());
            timer.arm_at_ns(0);
            context.poll(false).unwrap();
            assert!(!clock.is_enabled());
            clock.enable();
        }
    });
}

// SPEC T5, A1
#[test]
fn a_home_ends_while_the_real_time_clock_is_disabled() {
    let _clocks = OwnClocks::new();
    let io = IoThread::builder().spawn().unwrap();
    let sleeper = io.context().spawn(|| {
        Clock::Realtime.disable();
        let _stubborn = Stubborn;
        corio::time::sleep(HOUR);
    });
    /// Has to be asked again, and nothing but the home's patience makes the loop turn.
    struct Stubborn;
    impl Drop for Stubborn {
        fn drop(&mut self) {
            for _ in 0..3 {
                corio::park();
            }
        }
    }
    while Clock::Realtime.is_enabled() {
        thread::yield_now();
    }
    io.join();
    assert!(matches!(sleeper.join(), Err(corio::JoinError::Cancelled)));
}
