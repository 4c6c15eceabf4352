//! Bottom halves from everywhere: signal handlers, other threads, their own callbacks (SPEC B1 to
//! B7).

#![allow(unsafe_code)] // Signal handlers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::BottomHalf;

use super::with_each_monitor;

/// How long a test waits for what must come, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts how often it is called, and how often its clones' originals are dropped.
#[derive(Default)]
struct Seen {
    runs: AtomicUsize,
    drops: AtomicUsize,
}

struct CountsDrop(Arc<Seen>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.drops.fetch_add(1, Ordering::SeqCst);
    }
}

impl Seen {
    fn bottom_half(self: &Arc<Self>, context: &AioContext) -> BottomHalf {
        let counter = CountsDrop(Arc::clone(self));
        context.bottom_half("seen", move || {
            counter.0.runs.fetch_add(1, Ordering::SeqCst);
        })
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn drops(&self) -> usize {
        self.drops.load(Ordering::SeqCst)
    }
}

/// Turns until `condition` holds.
fn poll_until(context: &AioContext, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come");
        context.poll(true).unwrap();
    }
}

/// What the handler of SIGUSR1 schedules while there is something, and how often it did.
static OF_HANDLER: AtomicPtr<BottomHalf> = AtomicPtr::new(ptr::null_mut());
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: the thread's own errno; read and written as this handler's first and last.
    let errno = unsafe { *libc::__errno_location() };
    HANDLED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: it is freed once no signal is sent any more.
    if let Some(bottom_half) = unsafe { OF_HANDLER.load(Ordering::SeqCst).as_ref() } {
        bottom_half.schedule();
    }
    // SAFETY: as above.
    let after = unsafe { *libc::__errno_location() };
    if errno != after {
        std::process::abort(); // A handler cannot panic.
    }
}

fn handle_signals() {
    // SAFETY: all-zero bytes are an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler uses atomics and what is documented to be for handlers.
    let done = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(done, 0);
}

// SPEC B1: at any instruction of the home thread, in the midst of a schedule, of a turn, or of
// blocking.
#[test]
fn a_signal_handler_in_the_home_thread_loses_no_schedule() {
    const SIGNALS: u64 = 20_000;
    with_each_monitor(|context| {
        let last_seen = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&last_seen);
        let of_handler = context.bottom_half("of the handler", move || {
            seen.store(HANDLED.load(Ordering::SeqCst), Ordering::SeqCst);
        });
        let of_handler = Box::into_raw(Box::new(of_handler));
        HANDLED.store(0, Ordering::SeqCst);
        OF_HANDLER.store(of_handler, Ordering::SeqCst);
        handle_signals();
        let stop = Arc::new(AtomicBool::new(false));
        // SAFETY: has no conditions.
        let home = unsafe { libc::pthread_self() };
        let sender = thread::spawn({
            let (stop, context) = (Arc::clone(&stop), context.clone());
            move || {
                for _ in 0..SIGNALS {
                    let before = HANDLED.load(Ordering::SeqCst);
                    // SAFETY: the home thread waits for us to end.
                    assert_eq!(unsafe { libc::pthread_kill(home, libc::SIGUSR1) }, 0);
                    while HANDLED.load(Ordering::SeqCst) == before {
                        std::hint::spin_loop();
                    }
                }
                stop.store(true, Ordering::SeqCst);
                context.notify();
            }
        });
        let own: Vec<_> = (0..3).map(|_| Arc::<Seen>::default()).collect();
        context
            .enter_home(|| {
                let halves: Vec<_> = own.iter().map(|seen| seen.bottom_half(&context)).collect();
                let mut rounds = 0;
                while !stop.load(Ordering::SeqCst) {
                    for half in &halves {
                        half.schedule();
                    }
                    rounds += 1;
                    context.poll(true).unwrap();
                    context.poll(rounds % 4 == 0).unwrap(); // Blocks until the next signal.
                }
                poll_until(&context, || last_seen.load(Ordering::SeqCst) == SIGNALS);
                for seen in &own {
                    assert_eq!(seen.runs(), rounds);
                }
            })
            .unwrap();
        sender.join().unwrap();
        assert_eq!(HANDLED.load(Ordering::SeqCst), SIGNALS);
    });
}

// SPEC B7: whoever was told of another's schedule comes after it, whichever threads they are.
#[test]
fn order_is_that_of_the_schedules_also_between_threads() {
    const ROUNDS: usize = 2_000;
    with_each_monitor(|context| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let numbered = |number: usize| {
            let order = Arc::clone(&order);
            context.bottom_half("numbered", move || order.lock().unwrap().push(number))
        };
        let halves: Arc<Vec<_>> = Arc::new((0..6).map(numbered).collect());
        let (to_other, asked) = mpsc::channel::<usize>();
        let (done, told) = mpsc::channel();
        let other = thread::spawn({
            let halves = Arc::clone(&halves);
            move || {
                for number in asked {
                    halves[number].schedule();
                    done.send(()).unwrap();
                }
            }
        });
        context
            .enter_home(|| {
                for _ in 0..ROUNDS {
                    for number in 0..halves.len() {
                        if number % 2 == 0 {
                            to_other.send(number).unwrap();
                            told.recv().unwrap();
                        } else {
                            halves[number].schedule();
                        }
                    }
                    context.poll(false).unwrap();
                    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
                    order.lock().unwrap().clear();
                }
            })
            .unwrap();
        drop(to_other);
        other.join().unwrap();
    });
}

// SPEC B2: by the home and by another thread before it runs.
#[test]
fn scheduled_at_home_and_elsewhere_it_runs_once() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let half = seen.bottom_half(&context);
        context
            .enter_home(|| {
                for _ in 0..100 {
                    half.schedule();
                    thread::scope(|scope| {
                        scope.spawn(|| half.schedule());
                    });
                    assert!(context.poll(false).unwrap());
                    assert!(!context.poll(false).unwrap());
                }
            })
            .unwrap();
        assert_eq!(seen.runs(), 100);
    });
}

// SPEC B5
#[test]
fn another_thread_takes_a_schedule_back() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let half = seen.bottom_half(&context);
        let elsewhere = |f: &(dyn Fn() + Sync)| thread::scope(|scope| _ = scope.spawn(f));
        context
            .enter_home(|| {
                half.schedule();
                elsewhere(&|| half.cancel());
                context.poll(false).unwrap();
                assert_eq!(seen.runs(), 0);
                elsewhere(&|| half.schedule());
                half.cancel();
                context.poll(false).unwrap();
                assert_eq!(seen.runs(), 0);
                half.schedule();
                elsewhere(&|| {
                    half.cancel();
                    half.schedule();
                });
                context.poll(false).unwrap();
                assert_eq!(seen.runs(), 1);
                elsewhere(&|| half.cancel());
                half.schedule(); // A later one is another one.
                context.poll(false).unwrap();
                assert_eq!(seen.runs(), 2);
            })
            .unwrap();
    });
}

// SPEC B4: scheduled normally, at home or elsewhere, an idle one becomes urgent.
#[test]
fn an_idle_one_becomes_urgent() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let half = seen.bottom_half(&context);
        context
            .enter_home(|| {
                half.schedule_idle();
                assert!(!context.poll(false).unwrap(), "it makes no progress");
                assert_eq!(seen.runs(), 1);
                half.schedule_idle();
                half.schedule();
                assert!(context.poll(false).unwrap());
                half.schedule_idle();
                thread::scope(|scope| _ = scope.spawn(|| half.schedule()));
                assert!(context.poll(true).unwrap());
                assert_eq!(seen.runs(), 3);
                half.schedule();
                half.schedule_idle();
                assert!(context.poll(true).unwrap(), "it stays urgent");
            })
            .unwrap();
    });
}

// SPEC B5, A3
#[test]
fn a_callback_that_deletes_its_own_bottom_half_is_freed_when_it_returns() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let slot: Arc<Mutex<Option<BottomHalf>>> = Arc::default();
        let half = context.bottom_half("deletes itself", {
            let (slot, counter) = (Arc::clone(&slot), CountsDrop(Arc::clone(&seen)));
            let again = context.clone();
            move || {
                if counter.0.runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    slot.lock().unwrap().as_ref().unwrap().schedule();
                    again.poll(false).unwrap(); // Runs it within itself.
                    assert_eq!(counter.0.runs(), 2);
                    drop(slot.lock().unwrap().take());
                    assert_eq!(counter.0.drops(), 0, "it still runs");
                }
            }
        });
        half.schedule();
        *slot.lock().unwrap() = Some(half);
        context
            .enter_home(|| {
                assert!(context.poll(false).unwrap());
                assert_eq!((seen.runs(), seen.drops()), (2, 1));
            })
            .unwrap();
    });
}

// SPEC B5, A3: while it runs, and without another event that would make the loop turn.
#[test]
fn one_that_another_thread_deletes_is_freed_soon_after_it_returns() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let (running, both) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let half = context.bottom_half("is deleted", {
            let counter = CountsDrop(Arc::clone(&seen));
            let (running, both) = (Arc::clone(&running), Arc::clone(&both));
            move || {
                running.wait();
                both.wait();
                assert_eq!(counter.0.drops(), 0, "it still runs");
            }
        });
        half.schedule();
        let other = thread::spawn(move || {
            running.wait();
            drop(half);
            both.wait();
        });
        context
            .enter_home(|| poll_until(&context, || seen.drops() == 1))
            .unwrap();
        other.join().unwrap();
    });
}

// SPEC B5: nothing of it is left to the loop, which may not turn for long.
#[test]
fn one_that_is_not_scheduled_is_freed_at_once_on_any_thread() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        drop(seen.bottom_half(&context));
        assert_eq!(seen.drops(), 1, "without a home");
        context
            .enter_home(|| {
                drop(seen.bottom_half(&context));
                assert_eq!(seen.drops(), 2, "at home");
                let half = seen.bottom_half(&context);
                half.schedule();
                context.poll(false).unwrap();
                thread::spawn(move || drop(half)).join().unwrap();
                assert_eq!(seen.drops(), 3, "elsewhere");
            })
            .unwrap();
        assert_eq!(seen.runs(), 1);
    });
}

// SPEC B5: what is scheduled and deleted goes with the context at the latest.
#[test]
fn what_no_home_runs_goes_with_the_context() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let half = seen.bottom_half(&context);
        half.schedule();
        drop(half);
        let counter = CountsDrop(Arc::clone(&seen));
        context.schedule_oneshot("never runs", move || {
            counter.0.runs.fetch_add(1, Ordering::SeqCst);
        });
        drop(context);
        assert_eq!((seen.runs(), seen.drops()), (0, 2));
    });
}

// SPEC A3, A1: a panic leaves the rest to the next turn, be it one of the next home.
#[test]
fn what_a_panic_keeps_from_running_runs_later() {
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let half = seen.bottom_half(&context);
        let home = catch_unwind(AssertUnwindSafe(|| {
            context.enter_home(|| {
                context.schedule_oneshot("panics", || panic!("as it should"));
                half.schedule();
                context.poll(false)
            })
        }));
        assert!(home.is_err());
        thread::spawn({
            let context = context.clone();
            move || {
                let turn = || _ = context.poll(false).unwrap();
                context.enter_home(turn).unwrap();
            }
        })
        .join()
        .unwrap();
        assert_eq!(seen.runs(), 1);
        drop(half);
        assert_eq!(seen.drops(), 1);
    });
}

// SPEC B1, B5: deleted by other threads while the home runs them, over and over.
#[test]
fn threads_that_schedule_and_delete_at_once_lose_and_leak_nothing() {
    const ROUNDS: usize = 20_000;
    with_each_monitor(|context| {
        let seen = Arc::<Seen>::default();
        let ended = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        let half = seen.bottom_half(&context);
                        half.schedule();
                        if round % 3 == 0 {
                            half.cancel();
                            half.schedule_idle();
                        }
                        if round % 5 == 0 {
                            thread::yield_now();
                        }
                        drop(half);
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                    context.notify();
                });
            }
            context
                .enter_home(|| {
                    poll_until(&context, || {
                        ended.load(Ordering::SeqCst) == 2 && seen.drops() == 2 * ROUNDS
                    });
                })
                .unwrap();
        });
        assert!(seen.runs() <= 2 * (ROUNDS + ROUNDS / 3 + 1)); // Every third is scheduled twice.
    });
}
