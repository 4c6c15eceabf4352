//! Programs that try to make a turn run a bottom half or a timer twice, late, never, or after it
//! was freed (SPEC A3, B2 to B7, T1 to T6).

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{BottomHalf, Clock, MonitorChoice, Timer, VirtualClock};

const PATIENCE: Duration = Duration::from_secs(10);

/// The virtual clock is the process's.
static CLOCK: Mutex<()> = Mutex::new(());

fn at_home(test: impl Fn(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| test(&context)).unwrap();
}

fn on_each_monitor(test: impl Fn(&AioContext)) {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        context.enter_home(|| test(&context)).unwrap();
    }
}

/// What is deleted by its own callback, and may only be freed after it.
struct Own<T> {
    handle: Mutex<Option<T>>,
    drops: AtomicUsize,
}

impl<T> Own<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            handle: Mutex::new(None),
            drops: AtomicUsize::new(0),
        })
    }

    fn set(&self, handle: T) {
        *self.handle.lock().unwrap() = Some(handle);
    }

    fn delete(&self) {
        let handle = self.handle.lock().unwrap().take();
        drop(handle);
    }

    fn with(&self, f: impl Fn(&T)) {
        if let Some(handle) = &*self.handle.lock().unwrap() {
            f(handle);
        }
    }

    fn drops(&self) -> usize {
        self.drops.load(SeqCst)
    }

    /// Captured by the callback: tells when it is freed.
    fn captured(self: &Arc<Self>) -> Captured<T> {
        Captured(Arc::clone(self), [0x5a; 64])
    }
}

/// Its bytes are looked at by the callback after whatever may have freed it.
struct Captured<T>(Arc<Own<T>>, [u8; 64]);

impl<T> Captured<T> {
    fn check(&self) {
        assert_eq!(self.1, [0x5a; 64]);
        assert_eq!(self.0.drops(), 0, "freed while it runs");
    }
}

impl<T> Drop for Captured<T> {
    fn drop(&mut self) {
        self.1.fill(0);
        self.0.drops.fetch_add(1, SeqCst);
    }
}

// SPEC A3, B5, B6: scheduled and entered again by nested polls, and deleted by the innermost, which
// may panic besides, and let the panic out or not.
#[test]
fn deleted_at_any_depth_a_bottom_half_is_freed_when_the_outermost_returns() {
    const DEPTH: usize = 4;
    for (panics, elsewhere) in [(false, false), (true, false), (false, true), (true, true)] {
        at_home(|context| {
            let own = Own::<BottomHalf>::new();
            let depth = Arc::new(AtomicUsize::new(0));
            let runs = Arc::new(AtomicUsize::new(0));
            let callback = {
                let (captured, context) = (own.captured(), context.clone());
                let (depth, runs) = (Arc::clone(&depth), Arc::clone(&runs));
                move || {
                    let own = &captured.0;
                    runs.fetch_add(1, SeqCst);
                    let level = depth.fetch_add(1, SeqCst) + 1;
                    if level < DEPTH {
                        own.with(BottomHalf::schedule);
                        let nested = catch_unwind(AssertUnwindSafe(|| context.poll(true)));
                        assert_eq!(nested.is_err(), panics && level == DEPTH - 1);
                    } else {
                        own.with(BottomHalf::schedule); // And it does not run again.
                        if elsewhere {
                            thread::scope(|scope| scope.spawn(|| own.delete()).join().unwrap());
                        } else {
                            own.delete();
                        }
                        context.poll(false).unwrap();
                        captured.check();
                        depth.fetch_sub(1, SeqCst);
                        assert!(!panics, "planned");
                        return;
                    }
                    captured.check();
                    depth.fetch_sub(1, SeqCst);
                }
            };
            own.set(context.bottom_half("own", callback));
            own.with(BottomHalf::schedule);
            context.poll(false).unwrap();
            // Where another thread asked, the home may free it in its next turn.
            context.poll(false).unwrap();
            assert_eq!(own.drops(), 1);
            assert_eq!(runs.load(SeqCst), DEPTH);
            assert!(!context.poll(false).unwrap());
        });
    }
}

// SPEC A3, T3: the same of a timer.
#[test]
fn deleted_at_any_depth_a_timer_is_freed_when_the_outermost_returns() {
    const DEPTH: usize = 4;
    for clock in [Clock::Realtime, Clock::Host] {
        at_home(|context| {
            let own = Own::<Timer>::new();
            let runs = Arc::new(AtomicUsize::new(0));
            let callback = {
                let (captured, context, runs) =
                    (own.captured(), context.clone(), Arc::clone(&runs));
                move || {
                    let run = runs.fetch_add(1, SeqCst) + 1;
                    captured.0.with(|timer| timer.arm_at_ns(0));
                    if run == DEPTH {
                        captured.0.delete();
                    }
                    context.poll(false).unwrap();
                    captured.check();
                }
            };
            own.set(context.timer_on(clock, callback));
            own.with(|timer| timer.arm_at_ns(0));
            assert!(context.poll(true).unwrap());
            assert_eq!((runs.load(SeqCst), own.drops()), (DEPTH, 1));
            assert!(!context.poll(false).unwrap());
        });
    }
}

// SPEC B3, A3: the memory of a one-shot is free when it runs, for those that it, and a poll inside
// it, give; of every size, alignment and thread, in one home after the other.
#[test]
fn one_shots_that_reuse_memory_keep_what_they_captured() {
    #[derive(Clone, Copy)]
    #[repr(align(128))]
    struct Aligned([u8; 128]);
    fn give(context: &AioContext, sum: &Arc<AtomicUsize>, levels: usize) {
        let again = |levels: usize, context: &AioContext, sum: &Arc<AtomicUsize>| {
            if let Some(levels) = levels.checked_sub(1) {
                give(context, sum, levels);
                context.poll(false).unwrap();
            }
        };
        let (own, small) = (context.clone(), Arc::clone(sum));
        context.schedule_oneshot("small", move || {
            again(levels, &own, &small);
            small.fetch_add(1, SeqCst);
        });
        let (fits, word) = (Arc::clone(sum), [7_u8; 48]);
        context.schedule_oneshot("fits", move || {
            assert_eq!(word, [7; 48]);
            fits.fetch_add(1, SeqCst);
        });
        let (large, aligned) = (Arc::clone(sum), Aligned([9; 128]));
        context.schedule_oneshot("large", move || {
            let aligned = aligned;
            assert_eq!(aligned.0, [9; 128]);
            assert_eq!((&raw const aligned).addr() % 128, 0);
            large.fetch_add(1, SeqCst);
        });
    }
    const EACH: usize = 200;
    let context = AioContext::new().unwrap();
    let sum = Arc::new(AtomicUsize::new(0));
    for home in 1..=3 {
        // Each home is another thread; other threads give meanwhile.
        thread::scope(|scope| {
            scope.spawn(|| (0..EACH).for_each(|_| give(&context, &sum, 1)));
            // Each of the small ones may poll inside the one before.
            let deep = thread::Builder::new().stack_size(16 << 20);
            let spawned = deep.spawn_scoped(scope, || {
                context
                    .enter_home(|| {
                        (0..EACH).for_each(|_| give(&context, &sum, 2));
                        let all = home * EACH * (2 * 3 + 3 * 3);
                        let deadline = Instant::now() + PATIENCE;
                        while sum.load(SeqCst) < all {
                            context.poll(true).unwrap();
                            assert!(Instant::now() < deadline, "a one-shot is lost");
                        }
                        assert_eq!(sum.load(SeqCst), all);
                    })
                    .unwrap();
            });
            spawned.unwrap();
        });
    }
    for _ in 0..EACH {
        let captured = (Arc::clone(&sum), [1_u8; 40]); // Without the context, which it would keep.
        context.schedule_oneshot("never", move || unreachable!("{captured:?} has no home"));
    }
    drop(context);
    assert_eq!(Arc::strong_count(&sum), 1, "what was captured is freed");
}

/// Drops what it has captured, then panics.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
        assert!(thread::panicking(), "planned");
    }
}

// SPEC A3: destructors that panic: of a one-shot, of a bottom half that its callback deletes, and of
// a timer. What comes after runs.
#[test]
fn a_destructor_that_panics_leaves_the_rest_to_run() {
    at_home(|context| {
        let drops = Arc::new(AtomicUsize::new(0));
        let bomb = || Bomb(Arc::clone(&drops));
        let own = Own::<BottomHalf>::new();
        let (deleting, captured) = (Arc::clone(&own), bomb());
        own.set(context.bottom_half("own", move || {
            let _captured = &captured;
            deleting.delete();
        }));
        own.with(BottomHalf::schedule);
        let captured = bomb();
        context.schedule_oneshot("once", move || drop(captured));
        let deleted = context.bottom_half("deleted", {
            let captured = bomb();
            move || unreachable!("deleted before it ran: {}", Arc::strong_count(&captured.0))
        });
        deleted.schedule();
        drop(deleted);
        let timers = Own::<Timer>::new();
        let (deleting, captured) = (Arc::clone(&timers), bomb());
        timers.set(context.timer(move || {
            let _captured = &captured;
            deleting.delete();
        }));
        timers.with(|timer| timer.arm_at_ns(0));
        let last = Arc::new(AtomicBool::new(false));
        let ran = Arc::clone(&last);
        context.schedule_oneshot("last", move || ran.store(true, SeqCst));
        let panics = (0..5)
            .filter(|_| catch_unwind(AssertUnwindSafe(|| context.poll(false))).is_err())
            .count();
        assert_eq!((panics, drops.load(SeqCst)), (4, 4));
        assert!(last.load(SeqCst));
        Clock::Realtime.disable(); // Returns: no run is counted any more, whatever has panicked.
        Clock::Realtime.enable();
    });
}

// SPEC B5, B7: schedules, cancels and turns of two threads in turn, against a model.
#[test]
fn schedules_and_cancels_of_two_threads_in_turn_are_those_of_one() {
    type Job = Box<dyn FnOnce() + Send>;
    let (jobs, work) = mpsc::channel::<(Job, Arc<Barrier>)>();
    let other = thread::spawn(move || {
        for (job, done) in work {
            job();
            done.wait();
        }
    });
    at_home(|context| {
        let ran: Arc<Mutex<Vec<usize>>> = Arc::default();
        let halves: Vec<_> = (0..4)
            .map(|index| {
                let ran = Arc::clone(&ran);
                Arc::new(context.bottom_half("model", move || ran.lock().unwrap().push(index)))
            })
            .collect();
        let mut seed = 0x1234_5678_u32;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            usize::try_from((seed >> 16) % below).unwrap()
        };
        let mut model = Vec::new();
        for _ in 0..4_000 {
            let (index, what, is_here) = (random(4), random(5), random(2) == 0);
            let half = Arc::clone(&halves[index]);
            let job: Job = match what {
                0 => {
                    context.poll(false).unwrap();
                    let mut ran = core::mem::take(&mut *ran.lock().unwrap());
                    ran.sort_unstable(); // See `BottomHalf::cancel` on their order.
                    model.sort_unstable();
                    assert_eq!(ran, model);
                    model.clear();
                    continue;
                }
                1 => {
                    model.retain(|other| *other != index);
                    Box::new(move || half.cancel())
                }
                2 => {
                    model.retain(|other| *other != index);
                    model.push(index);
                    Box::new(move || half.schedule_idle())
                }
                _ => {
                    model.retain(|other| *other != index);
                    model.push(index);
                    Box::new(move || half.schedule())
                }
            };
            if is_here {
                job();
            } else {
                let done = Arc::new(Barrier::new(2));
                jobs.send((job, Arc::clone(&done))).unwrap();
                done.wait();
            }
        }
    });
    drop(jobs);
    other.join().unwrap();
}

// SPEC T2, T6: for the end of time it comes never, and keeps no loop busy: another thread is what
// ends each wait.
#[test]
fn a_timer_for_the_end_of_time_keeps_no_loop_busy() {
    on_each_monitor(|context| {
        let timers: Vec<_> = [Clock::Realtime, Clock::VirtualRt]
            .into_iter()
            .flat_map(|clock| {
                [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 60) + 1].map(|at| (clock, at))
            })
            .map(|(clock, deadline_ns)| {
                let timer = context.timer_on(clock, || unreachable!("in the year 2262 or later"));
                timer.arm_at_ns(deadline_ns);
                timer.arm_by_ns(u64::MAX);
                assert_eq!(timer.expire_time_ns(), Some(deadline_ns.min(u64::MAX - 1)));
                timer
            })
            .collect();
        let turns = Rc::new(Cell::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let timer = context.timer({
            let ended = Arc::clone(&ended);
            move || ended.store(true, SeqCst)
        });
        timer.arm_after(Duration::from_millis(5));
        while !ended.load(SeqCst) {
            context.poll(true).unwrap();
            turns.set(turns.get() + 1);
        }
        assert!(turns.get() <= 3, "{} turns in 5 ms", turns.get());
        assert!(timers.iter().all(Timer::is_armed));
    });
}

// SPEC T1, T2, T4: each timer fires at the step that reaches it, on either side of each border of
// the wheel, however it was armed, re-armed and cancelled before.
#[test]
fn on_the_borders_of_the_wheel_no_timer_is_a_nanosecond_early_or_late() {
    let _clock = CLOCK.lock().unwrap();
    VirtualClock::stop();
    at_home(|context| {
        let base_ns = Clock::Virtual.now_ns();
        let borders = (1..9).map(|level| ((base_ns >> (6 * level)) + 1) << (6 * level));
        let deadlines: std::collections::BTreeSet<u64> = borders
            .flat_map(|border_ns| [border_ns - 1, border_ns, border_ns + 1])
            .filter(|deadline_ns| *deadline_ns > base_ns)
            .collect();
        let fired: Arc<Mutex<Vec<u64>>> = Arc::default();
        let timers: Vec<_> = deadlines
            .iter()
            .flat_map(|&deadline_ns| (0..4).map(move |way| (way, deadline_ns)))
            .map(|(way, deadline_ns)| {
                let fired = Arc::clone(&fired);
                let push = move || fired.lock().unwrap().push(deadline_ns);
                let timer = context.timer_on(Clock::Virtual, push);
                match way {
                    0 => timer.arm_at_ns(deadline_ns),
                    1 => {
                        timer.arm_at_ns(base_ns);
                        timer.arm_at_ns(deadline_ns);
                    }
                    2 => {
                        timer.arm_at_ns(u64::MAX);
                        timer.arm_by_ns(deadline_ns);
                        timer.arm_by_ns(deadline_ns + 1);
                    }
                    _ => {
                        timer.arm_at_ns(deadline_ns);
                        assert!(timer.cancel() && !timer.cancel());
                        timer.arm_by_ns(deadline_ns);
                    }
                }
                timer
            })
            .collect();
        for &deadline_ns in &deadlines {
            let before_ns = deadline_ns - 1 - Clock::Virtual.now_ns().min(deadline_ns - 1);
            VirtualClock::step(Duration::from_nanos(before_ns));
            if Clock::Virtual.now_ns() < deadline_ns {
                assert!(!context.poll(false).unwrap(), "{deadline_ns} came early");
            }
            assert_eq!(Clock::Virtual.next_deadline_ns(), Some(deadline_ns));
            VirtualClock::step(Duration::from_nanos(deadline_ns - Clock::Virtual.now_ns()));
            assert!(context.poll(false).unwrap(), "{deadline_ns} is late");
            assert_eq!(
                core::mem::take(&mut *fired.lock().unwrap()),
                [deadline_ns; 4]
            );
        }
        assert!(!timers.iter().any(Timer::is_armed));
    });
    VirtualClock::resume();
}

// SPEC T3, T4, T6: callbacks that cancel and re-arm others that are due in the same turn; each fires
// as often as it was armed, and in the turn that it was armed for.
#[test]
fn callbacks_that_cancel_and_rearm_what_is_due_with_them_are_heeded() {
    at_home(|context| {
        let fired: Arc<Mutex<Vec<usize>>> = Arc::default();
        let timers: Arc<Mutex<Vec<Timer>>> = Arc::default();
        for index in 0..64 {
            let (fired, all) = (Arc::clone(&fired), Arc::clone(&timers));
            let timer = context.timer(move || {
                fired.lock().unwrap().push(index);
                let timers = all.lock().unwrap();
                if index % 4 == 0 && fired.lock().unwrap().len() <= 64 {
                    assert!(timers[index + 1].cancel());
                    timers[index + 2].arm_at_ns(0); // The next turn's, and its first.
                    timers[index + 3].arm_by_ns(u64::MAX); // Stays.
                }
            });
            timer.arm_at_ns(1 + u64::try_from(index).unwrap());
            timers.lock().unwrap().push(timer);
        }
        assert!(context.poll(false).unwrap());
        let of_four = |rest: &[usize]| -> Vec<usize> {
            (0..64)
                .filter(|index| rest.contains(&(index % 4)))
                .collect()
        };
        assert_eq!(
            core::mem::take(&mut *fired.lock().unwrap()),
            of_four(&[0, 3])
        );
        assert!(context.poll(false).unwrap());
        assert_eq!(core::mem::take(&mut *fired.lock().unwrap()), of_four(&[2]));
        assert!(!context.poll(false).unwrap());
        timers.lock().unwrap().clear();
    });
}

// SPEC T6: a timer that is put off all the time, as a time-out is, among others; each turn looks at
// when the next is due.
#[test]
fn a_timer_that_is_put_off_again_and_again_costs_no_turn_more() {
    const TIMES: u32 = 100_000;
    at_home(|context| {
        let hour_ns = Clock::Realtime.after_ns(Duration::from_secs(3600));
        let timer = || context.timer(|| unreachable!("in an hour"));
        let others: Vec<_> = (0..1_000_u64)
            .map(|index| {
                let timer = timer();
                timer.arm_at_ns(hour_ns + index);
                timer
            })
            .collect();
        let put_off = timer();
        put_off.arm_at_ns(hour_ns - 1);
        let begin = Instant::now();
        for index in 0..TIMES {
            put_off.arm_at_ns(hour_ns - 1 - u64::from(index % 7));
            if index % 2 == 0 {
                put_off.cancel();
            }
            context.schedule_oneshot("turn", || ());
            context.poll(true).unwrap();
        }
        // Looking at a thousand cancelled ones in each turn would take many times as long.
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
        assert!(others.iter().all(Timer::is_armed));
    });
}
