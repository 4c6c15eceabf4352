//! What the event loop promises, on a context that is driven by `poll` and on one that is driven by
//! a main loop of GLib's (SPEC G1).

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::Interest;
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio_glib::{MainContext, Source};

/// Who turns the context under test.
enum Driver {
    Poll(AioContext),
    Glib(Source),
}

impl Driver {
    fn turn(&self, blocking: bool) -> bool {
        match self {
            Self::Poll(context) => context.poll(blocking).unwrap(),
            Self::Glib(source) => source.iterate(blocking).unwrap(),
        }
    }

    fn turn_until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.turn(true);
        }
    }

    /// Turns that see whatever there is to see.
    fn some_turns(&self) {
        for _ in 0..3 {
            self.turn(false);
        }
    }
}

/// Runs a test with each driver, in the home of a context. What hangs ends by an alarm.
fn with_each_driver(test: impl Fn(&AioContext, Rc<Driver>)) {
    for glib in [false, true] {
        let context = AioContext::new().unwrap();
        let run = || {
            let alarm = context.timer(move || panic!("what is waited for does not come ({glib})"));
            alarm.arm_after(Duration::from_secs(20));
            let driver = if glib {
                let local = context.local().unwrap();
                Driver::Glib(Source::attach(local, &MainContext::new()).unwrap())
            } else {
                Driver::Poll(context.clone())
            };
            test(&context, Rc::new(driver));
        };
        context.enter_home(run).unwrap();
    }
}

type Log = Arc<Mutex<Vec<&'static str>>>;

fn note(log: &Log, what: &'static str) {
    log.lock().unwrap().push(what);
}

fn taken(log: &Log) -> Vec<&'static str> {
    std::mem::take(&mut log.lock().unwrap())
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else {
        panic!("it did not panic");
    };
    (*payload.downcast_ref::<&str>().unwrap()).to_owned()
}

// SPEC G1, B2, B5, B7
#[test]
fn bottom_halves_run_once_in_the_order_scheduled() {
    with_each_driver(|context, driver| {
        let log = Log::default();
        let halves = ["one", "two", "three"].map(|name| {
            let log = Arc::clone(&log);
            context.bottom_half(name, move || note(&log, name))
        });
        for half in &halves {
            half.schedule();
            half.schedule();
        }
        halves[1].cancel();
        driver.some_turns();
        assert_eq!(taken(&log), ["one", "three"]);
        let [one, two, _three] = halves;
        one.schedule();
        two.schedule();
        drop(one); // Deleted while it is scheduled.
        driver.some_turns();
        assert_eq!(taken(&log), ["two"]);
    });
}

// SPEC G1, B1, B3: from another thread, while the loop waits.
#[test]
fn a_oneshot_of_another_thread_ends_the_wait() {
    with_each_driver(|context, driver| {
        let runs = Arc::new(AtomicUsize::new(0));
        for round in 1..=100 {
            let (theirs, count) = (context.clone(), Arc::clone(&runs));
            let thread = std::thread::spawn(move || {
                theirs.schedule_oneshot("count", move || {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
            driver.turn_until(|| runs.load(Ordering::Relaxed) == round);
            thread.join().unwrap();
        }
    });
}

// SPEC G1, B6: a callback that turns the loop finds what the outer turn has not run yet, first.
#[test]
fn a_nested_turn_runs_the_outer_turns_bottom_halves() {
    with_each_driver(|context, driver| {
        // Not Send: the handler that nests is local.
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let log = Log::default();
        let ours = Rc::new(ours);
        let nested = Rc::new(Cell::new(false));
        let (reading, inner, again) = (Rc::clone(&ours), Rc::downgrade(&driver), log.clone());
        let (context_in, has_nested) = (context.clone(), Rc::clone(&nested));
        let local = context.local().unwrap();
        let _handler = local
            .add_handler(ours, Interest::READ, move |_| {
                (&*reading).read_exact(&mut [0]).unwrap();
                note(&again, "outer");
                let log = again.clone();
                context_in.schedule_oneshot("inner", move || note(&log, "inner"));
                inner.upgrade().unwrap().turn(false);
                note(&again, "outer ends");
                has_nested.set(true);
            })
            .unwrap();
        theirs.write_all(b"x").unwrap();
        driver.turn_until(|| nested.get());
        assert_eq!(taken(&log), ["outer", "inner", "outer ends"]);
    });
}

// SPEC G1, T2, T3, T4
#[test]
fn timers_fire_in_order_of_their_deadlines_and_not_before() {
    with_each_driver(|context, driver| {
        let log = Log::default();
        let began = Instant::now();
        let timers = [("late", 4), ("early", 2), ("cancelled", 3)].map(|(name, delay)| {
            let log = Arc::clone(&log);
            let timer = context.timer(move || {
                assert!(began.elapsed() >= Duration::from_millis(delay));
                note(&log, name);
            });
            timer.arm_after(Duration::from_millis(delay));
            timer
        });
        assert!(timers[2].cancel());
        driver.turn_until(|| log.lock().unwrap().len() == 2);
        assert_eq!(taken(&log), ["early", "late"]);
        timers[0].arm_at_ns(0);
        driver.turn_until(|| !log.lock().unwrap().is_empty());
        assert_eq!(taken(&log), ["late"]);
    });
}

// SPEC G1, M4: GLib counts in milliseconds, the context in nanoseconds.
#[test]
fn a_short_sleep_is_not_rounded_up_to_milliseconds() {
    with_each_driver(|context, driver| {
        let shortest = Rc::new(Cell::new(Duration::MAX));
        for _ in 0..20 {
            let least = Rc::clone(&shortest);
            let child = context.local().unwrap().spawn(move || {
                let began = Instant::now();
                corio::time::sleep(Duration::from_micros(100));
                least.set(least.get().min(began.elapsed()));
            });
            driver.turn_until(|| child.is_finished());
        }
        let shortest = shortest.get();
        assert!(shortest >= Duration::from_micros(100), "{shortest:?}");
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    });
}

// SPEC G1, H1, H3
#[test]
fn a_handler_is_level_triggered_and_may_remove_itself() {
    with_each_driver(|context, driver| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let local = context.local().unwrap();
        let own = Rc::new(RefCell::new(None));
        let (slot, calls) = (Rc::clone(&own), Rc::new(Cell::new(0)));
        let count = Rc::clone(&calls);
        let handler = local
            .add_handler(ours, Interest::READ, move |_| {
                count.set(count.get() + 1);
                if count.get() == 3 {
                    drop(slot.borrow_mut().take());
                }
            })
            .unwrap();
        *own.borrow_mut() = Some(handler);
        theirs.write_all(b"x").unwrap();
        driver.turn_until(|| calls.get() == 3);
        driver.some_turns();
        assert_eq!(calls.get(), 3);
    });
}

// SPEC G1, S4, S7, L4
#[test]
fn coroutines_park_and_are_woken() {
    with_each_driver(|context, driver| {
        let local = context.local().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = corio::net::UnixStream::try_from_std(ours).unwrap();
        let echo = local.spawn(move || {
            let mut buf = [0; 3];
            ours.read_exact(&mut buf)?;
            corio::time::sleep(Duration::from_millis(1));
            corio::yield_now();
            ours.write_all(&buf)
        });
        theirs.write_all(b"abc").unwrap();
        driver.turn_until(|| echo.is_finished());
        let mut back = [0; 3];
        theirs.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"abc");
        let sum = Arc::new(AtomicUsize::new(0));
        let (theirs, told) = (context.clone(), Arc::clone(&sum));
        let remote = std::thread::spawn(move || {
            told.store(theirs.spawn(|| 1 + 2).join().unwrap(), Ordering::Relaxed);
            theirs.notify();
        });
        driver.turn_until(|| sum.load(Ordering::Relaxed) == 3);
        remote.join().unwrap();
    });
}

// SPEC G1, E1, E3
#[test]
fn a_coroutine_reads_and_writes_a_file_on_each_engine() {
    for (choice, kind) in [
        (EngineChoice::IoUring, EngineKind::IoUring),
        (EngineChoice::Threads, EngineKind::Threads),
    ] {
        with_each_driver(|context, driver| {
            context.set_engine(choice);
            let child = context.local().unwrap().spawn(|| {
                let file = File::from(std::os::fd::OwnedFd::from(tempfile::tempfile()?));
                for round in 0..10_u8 {
                    file.write_all_at(&[round; 4096], 4096 * u64::from(round))?;
                    file.sync_data()?;
                }
                let mut block = [0; 4096];
                file.read_exact_at(&mut block, 4096 * 7)?;
                Ok::<_, std::io::Error>(block)
            });
            driver.turn_until(|| child.is_finished());
            assert_eq!(child.join().unwrap().unwrap(), [7; 4096]);
            let engine = context.engine().unwrap();
            match (engine.kind, kind) {
                (EngineKind::Threads, EngineKind::IoUring) => {
                    println!("SKIPPED: the io_uring engine: {}", engine.reason);
                }
                (is, asked) => assert_eq!(is, asked),
            }
        });
    }
}

// SPEC G1, A3: the panic reaches who turns the loop, GLib's frames or not, and the rest goes on.
#[test]
fn a_callbacks_panic_reaches_who_turns_the_loop() {
    with_each_driver(|context, driver| {
        let log = Log::default();
        let after = Arc::clone(&log);
        context.schedule_oneshot("fails", || panic!("this one fails"));
        context.schedule_oneshot("after", move || note(&after, "after"));
        let text = panic_of(|| driver.turn_until(|| !log.lock().unwrap().is_empty()));
        assert_eq!(text, "this one fails");
        driver.turn_until(|| !log.lock().unwrap().is_empty());
        assert_eq!(taken(&log), ["after"]);
    });
}

// SPEC G1, N4
#[test]
fn an_idle_context_costs_no_iterations() {
    with_each_driver(|context, driver| {
        let fired = Arc::new(AtomicUsize::new(0));
        let tell = Arc::clone(&fired);
        let timer = context.timer(move || {
            tell.store(1, Ordering::Relaxed);
        });
        timer.arm_after(Duration::from_millis(50));
        let turns = Cell::new(0);
        driver.turn_until(|| {
            turns.set(turns.get() + 1);
            fired.load(Ordering::Relaxed) == 1
        });
        assert!(turns.get() <= 5, "{} turns", turns.get());
    });
}
