//! Adaptive polling, with partners that answer after a while (SPEC P1 to P7).

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::{Handler, Interest, MonitorChoice, MonitorKind, PollParams};
use corio::track::{self, Event};
use corio::{AioContext, IoThread};
use rustix::thread::CpuSet;

/// Who measures time has the machine to himself, as far as this program goes.
static ALONE: Mutex<()> = Mutex::new(());

const PATIENCE: Duration = Duration::from_secs(5);
/// Ends polling, and is not over before it begins.
const A_WHILE: Duration = Duration::from_millis(20);

/// The home's core and its partner's: who polls while the other waits for his core finds nothing.
/// None, said out loud, where there is one only.
fn two_cores(test: &str) -> Option<[usize; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    if let (Some(ours), Some(theirs)) = (cores.next(), cores.next()) {
        return Some([ours, theirs]);
    }
    println!("SKIPPED: {test}: there is one core only");
    None
}

/// Keeps this thread on one core.
fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// A device that answers each request after a while, and tells of it by a byte unless it was asked
/// to be quiet.
struct Partner {
    asked: AtomicU64,
    answered: AtomicU64,
    quiet: AtomicBool,
    delay_ns: AtomicU64,
    ended: AtomicBool,
}

impl Partner {
    fn start(
        delay: Duration,
        bell: UnixStream,
        core: usize,
    ) -> (Arc<Self>, thread::JoinHandle<()>) {
        let partner = Arc::new(Self {
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            delay_ns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        partner.set_delay(delay);
        let serving = Arc::clone(&partner);
        let thread = thread::spawn(move || {
            stay_on(core);
            serving.serve(bell);
        });
        (partner, thread)
    }

    fn set_delay(&self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap();
        self.delay_ns.store(ns, Ordering::Relaxed);
    }

    fn serve(&self, mut bell: UnixStream) {
        while !self.ended.load(Ordering::Relaxed) {
            let asked = self.asked.load(Ordering::SeqCst);
            if asked == self.answered.load(Ordering::Relaxed) {
                std::hint::spin_loop();
                continue;
            }
            let delay = Duration::from_nanos(self.delay_ns.load(Ordering::Relaxed));
            let begin = Instant::now();
            if delay > Duration::from_millis(1) {
                thread::sleep(delay);
            }
            while begin.elapsed() < delay {
                std::hint::spin_loop();
            }
            self.answered.store(asked, Ordering::SeqCst);
            if !self.quiet.load(Ordering::SeqCst) {
                bell.write_all(b"x").unwrap();
            }
        }
    }
}

/// A home's end of it.
struct Device {
    context: AioContext,
    partner: Arc<Partner>,
    thread: Option<thread::JoinHandle<()>>,
    seen: Rc<Cell<u64>>,
    handler: Handler<Rc<UnixStream>>,
}

impl Device {
    /// In its home thread.
    fn new(context: &AioContext, delay: Duration, [ours, theirs]: [usize; 2]) -> Self {
        let their_core = theirs;
        stay_on(ours);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (ours, seen) = (Rc::new(ours), Rc::new(Cell::new(0)));
        let (partner, thread) = Partner::start(delay, theirs, their_core);
        let take = {
            let (partner, seen) = (Arc::clone(&partner), Rc::clone(&seen));
            move || seen.set(partner.answered.load(Ordering::SeqCst))
        };
        let (reader, by_bell) = (Rc::clone(&ours), take.clone());
        let local = context.local().unwrap();
        let handler = local
            .add_handler(ours, Interest::READ, move |_| {
                let _ = (&*reader).read(&mut [0; 64]); // What polling has drained is not there.
                by_bell();
            })
            .unwrap();
        let (asking, last) = (Arc::clone(&partner), Rc::clone(&seen));
        handler.set_poll(
            move || asking.answered.load(Ordering::SeqCst) != last.get(),
            take,
        );
        let (begin, end) = (Arc::clone(&partner), Arc::clone(&partner));
        handler.set_poll_notify(
            move || begin.quiet.store(true, Ordering::SeqCst),
            move || end.quiet.store(false, Ordering::SeqCst),
        );
        Self {
            context: context.clone(),
            partner,
            thread: Some(thread),
            seen,
            handler,
        }
    }

    /// One request; how long its answer took.
    fn ask(&self) -> Duration {
        let begin = Instant::now();
        let request = self.partner.asked.load(Ordering::Relaxed) + 1;
        self.partner.asked.store(request, Ordering::SeqCst);
        while self.seen.get() != request {
            self.context.poll(true).unwrap();
            assert!(begin.elapsed() < PATIENCE, "an answer is lost");
        }
        begin.elapsed()
    }

    fn median_of(&self, requests: usize) -> Duration {
        let mut times: Vec<_> = (0..requests).map(|_| self.ask()).collect();
        times.sort_unstable();
        times[requests / 2]
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.partner.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Runs a test in a home of each monitor, with these parameters.
fn on_each_monitor(params: PollParams, test: impl Fn(&AioContext)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for monitor in MonitorChoice::ALL {
        let builder = AioContext::builder().monitor(monitor).poll_params(params);
        let context = builder.build().unwrap();
        context.enter_home(|| test(&context)).unwrap();
    }
}

/// Others' work on a machine can make any one measurement say anything: the test asks again.
fn in_one_of(attempts: u32, shows: impl Fn() -> Result<(), String>) {
    for attempt in 1..=attempts {
        match shows() {
            Ok(()) => return,
            Err(why) if attempt == attempts => panic!("{why}"),
            Err(why) => println!("attempt {attempt}: {why}"),
        }
    }
}

const WIDE: PollParams = PollParams {
    max_ns: 200_000,
    ..PollParams::IO_THREAD
};

// SPEC P1, P2, P5
#[test]
fn for_a_partner_that_answers_after_20_us_the_time_grows_and_the_latency_drops() {
    let Some(cores) = two_cores("polling for a quick partner") else {
        return;
    };
    on_each_monitor(PollParams::default(), |context| {
        let device = Device::new(context, Duration::from_micros(20), cores);
        in_one_of(10, || {
            context.set_poll_params(PollParams::default()).unwrap();
            let waiting = device.median_of(300);
            let before = device.handler.poll_stats();
            context.set_poll_params(WIDE).unwrap();
            device.median_of(100);
            let polling = device.median_of(300);
            let after = device.handler.poll_stats();
            let hits = after.hits - before.hits;
            println!("waiting {waiting:?}, polling {polling:?}, {hits} hits, {after:?}");
            if after.time_ns < 20_000 || hits < 200 || polling >= waiting {
                return Err(format!(
                    "{waiting:?} to {polling:?}, {hits} hits, {after:?}"
                ));
            }
            Ok(())
        });
    });
}

// SPEC P2
#[test]
fn for_a_partner_that_answers_after_10_ms_the_time_shrinks_to_zero() {
    let Some(cores) = two_cores("polling for a slow partner") else {
        return;
    };
    on_each_monitor(WIDE, |context| {
        let device = Device::new(context, Duration::from_micros(20), cores);
        let deadline = Instant::now() + PATIENCE;
        while device.handler.poll_stats().time_ns == 0 {
            device.ask();
            assert!(Instant::now() < deadline, "it does not grow");
        }
        device.partner.set_delay(Duration::from_millis(10));
        assert!(device.ask() >= Duration::from_millis(10));
        assert_eq!(device.handler.poll_stats().time_ns, 0);
        let hits = device.handler.poll_stats().hits;
        assert!(device.ask() >= Duration::from_millis(10));
        assert_eq!(device.handler.poll_stats().hits, hits, "nothing is polled");
    });
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap())
}

// SPEC P7: over 5 s on one monitor, over one on each of the others.
#[test]
fn a_budget_of_10_percent_holds() {
    let params = PollParams {
        max_ns: 1_000_000,
        grow: 1000,
        shrink: 1,
        budget_percent: 10,
        ..PollParams::IO_THREAD
    };
    let Some(cores) = two_cores("a polling budget") else {
        return;
    };
    on_each_monitor(params, |context| {
        let time = match context.monitor().unwrap().kind {
            MonitorKind::Epoll => Duration::from_secs(5),
            _ => Duration::from_secs(1),
        };
        let device = Device::new(context, Duration::from_micros(500), cores);
        // Requests, and the CPU time that they took.
        let measure = |params: PollParams, time: Duration| {
            context.set_poll_params(params).unwrap();
            device.ask();
            let (begin, before) = (Instant::now(), cpu_time());
            let mut requests = 0;
            while begin.elapsed() < time {
                device.ask();
                requests += 1;
            }
            let cpu = cpu_time().saturating_sub(before);
            println!(
                "{requests} requests, {cpu:?}, {:?}",
                device.handler.poll_stats()
            );
            (requests, cpu)
        };
        let off = PollParams {
            max_ns: 0,
            ..params
        };
        // What a request takes by itself, which depends on what else the machine does.
        let by_itself = || {
            let (requests, cpu) = measure(off, Duration::from_millis(250));
            cpu / requests.max(1)
        };
        in_one_of(3, || {
            let earlier = by_itself();
            let wasted_before = device.handler.poll_stats().wasted_ns;
            let (polled, cpu) = measure(params, time);
            let wasted_ns = device.handler.poll_stats().wasted_ns - wasted_before;
            let wasted = Duration::from_nanos(wasted_ns);
            let share = time / 10 + Duration::from_millis(11); // A window's share, and one round.
            assert!(wasted <= share, "{wasted:?} of {time:?}");
            assert!(wasted_ns > 0, "it has not polled at all");
            // A tenth of the time and of a window, and half more than the requests take.
            let own = earlier.max(by_itself()) * polled;
            let limit = time / 10 + Duration::from_millis(20) + own * 3 / 2;
            if cpu > limit {
                return Err(format!("{cpu:?} of {time:?}, {own:?} without polling"));
            }
            Ok(())
        });
    });
}

/// A handler whose time is as long as `params` allow.
fn warmed(
    context: &AioContext,
    params: PollParams,
    poll: impl Fn() -> bool + 'static,
    ready: impl Fn() + 'static,
) -> (Handler<UnixStream>, UnixStream) {
    context
        .set_poll_params(PollParams {
            grow: u32::MAX,
            ..params
        })
        .unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    let local = context.local().unwrap();
    let callback = move |_| count.set(count.get() + 1);
    let handler = local.add_handler(ours, Interest::READ, callback).unwrap();
    handler.set_poll(|| false, || ());
    let deadline = Instant::now() + PATIENCE;
    while handler.poll_stats().time_ns < params.max_ns {
        assert!(Instant::now() < deadline, "it does not grow");
        let before = calls.get();
        let mut partner = theirs.try_clone().unwrap();
        let writes = thread::spawn(move || {
            thread::sleep(Duration::from_micros(100));
            partner.write_all(b"x").unwrap();
        });
        while calls.get() == before {
            context.poll(true).unwrap();
        }
        writes.join().unwrap();
        handler.get_ref().read_exact(&mut [0]).unwrap();
        context.poll(false).unwrap(); // One that was on its way.
    }
    handler.set_poll(poll, ready);
    (handler, theirs)
}

/// Long enough to see what ends it.
const SECOND: PollParams = PollParams {
    max_ns: 1_000_000_000,
    ..PollParams::IO_THREAD
};

// SPEC H4, P5
#[test]
fn begin_comes_before_the_first_round_and_end_before_the_last_look() {
    on_each_monitor(SECOND, |context| {
        let log: Rc<RefCell<Vec<&str>>> = Rc::default();
        let note = |what: &'static str| {
            let log = Rc::clone(&log);
            move || log.borrow_mut().push(what)
        };
        let (asked, polls) = (Cell::new(0), note("poll"));
        let poll = move || {
            polls();
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let (handler, _theirs) = warmed(context, SECOND, poll, note("ready"));
        handler.set_poll_notify(note("begin"), note("end"));
        assert!(context.poll(true).unwrap());
        // What was found is not asked once more.
        let expected = ["begin", "poll", "poll", "poll", "end", "ready"];
        assert_eq!(*log.borrow(), expected);
        assert_eq!(handler.poll_stats().hits, 1);
    });
}

// SPEC P5: what comes after the last round, when the partner is quiet still.
#[test]
fn what_comes_between_the_last_round_and_the_end_is_not_lost() {
    on_each_monitor(SECOND, |context| {
        let (arrived, ran) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let (seen, count) = (Rc::clone(&arrived), Rc::clone(&ran));
        let ready = move || count.set(count.get() + 1);
        let poll = move || seen.replace(false);
        let (handler, _theirs) = warmed(context, SECOND, poll, ready);
        let sent = Rc::clone(&arrived);
        handler.set_poll_notify(|| (), move || sent.set(true));
        let limit = context.timer(|| ());
        limit.arm_after(A_WHILE);
        assert!(context.poll(true).unwrap());
        assert_eq!(ran.get(), 1);
    });
}

// SPEC N5, P5, B1: what is asked for, and may schedule, has its bottom half run without waiting for
// the time to be up; so has a coroutine that it wakes and a timer that it arms.
#[test]
fn what_a_poll_callback_schedules_and_arms_ends_polling() {
    type Way = fn(&AioContext) -> Box<dyn Fn()>;
    let ways: [(&str, Way); 4] = [
        ("bottom half", |context| {
            let half = context.bottom_half("polled", || ());
            Box::new(move || half.schedule())
        }),
        ("one-shot", |context| {
            let context = context.clone();
            Box::new(move || context.schedule_oneshot("polled", || ()))
        }),
        ("timer", |context| {
            let timer = context.timer(|| ());
            Box::new(move || timer.arm_at_ns(0))
        }),
        ("coroutine", |context| {
            let context = context.clone();
            Box::new(move || drop(context.spawn(|| ())))
        }),
    ];
    for (what, way) in ways {
        on_each_monitor(SECOND, |context| {
            let asked = Rc::new(Cell::new(0));
            let act = way(context);
            let count = Rc::clone(&asked);
            let poll = move || {
                count.set(count.get() + 1);
                if count.get() == 3 {
                    act();
                }
                false
            };
            let (_handler, _theirs) = warmed(context, SECOND, poll, || ());
            assert!(context.poll(true).unwrap(), "{what}");
            // Once more after the last round.
            assert_eq!(asked.get(), 4, "{what} was seen late");
        });
    }
}

// SPEC B4: polling for longer than the idle period, whoever schedules it.
#[test]
fn an_idle_bottom_half_is_not_late_for_polling() {
    for is_here in [true, false] {
        on_each_monitor(SECOND, |context| {
            let (ran, begun) = (Arc::new(AtomicBool::new(false)), Cell::new(false));
            let told = Arc::clone(&ran);
            let idle = context.bottom_half("idle", move || told.store(true, Ordering::SeqCst));
            let poll = move || {
                if begun.replace(true) {
                    return false;
                }
                if is_here {
                    idle.schedule_idle();
                } else {
                    thread::scope(|scope| scope.spawn(|| idle.schedule_idle()).join().unwrap());
                }
                false
            };
            let (_handler, _theirs) = warmed(context, SECOND, poll, || ());
            let begin = Instant::now();
            assert!(!context.poll(true).unwrap(), "an idle one is no progress");
            assert!(ran.load(Ordering::SeqCst));
            assert!(begin.elapsed() < Duration::from_millis(500));
        });
    }
}

// SPEC P5, A3
#[test]
fn a_poll_that_panics_owes_no_end() {
    on_each_monitor(SECOND, |context| {
        let begun = Rc::new(Cell::new(0));
        let panics = || std::panic::resume_unwind(Box::new("on purpose"));
        let (handler, _theirs) = warmed(context, SECOND, panics, || ());
        let (begins, ends) = (Rc::clone(&begun), Rc::clone(&begun));
        handler.set_poll_notify(
            move || begins.set(begins.get() + 1),
            move || ends.set(ends.get() - 10),
        );
        for turn in 1..=3 {
            catch_unwind(AssertUnwindSafe(|| context.poll(true))).unwrap_err();
            assert_eq!(begun.get(), -9 * turn);
        }
    });
}

// SPEC P6
#[test]
fn a_maximum_of_0_asks_nobody() {
    on_each_monitor(SECOND, |context| {
        let (handler, mut theirs) = warmed(context, SECOND, || unreachable!(), || ());
        context.set_poll_params(PollParams::default()).unwrap();
        // The parameters take effect in the turn that has nothing else to wait for.
        assert!(context.poll(true).unwrap());
        theirs.write_all(b"x").unwrap();
        assert!(context.poll(true).unwrap());
        assert_eq!(handler.poll_stats().time_ns, 0, "it begins anew");
    });
}

// SPEC P4
#[test]
fn one_that_cannot_be_polled_keeps_those_that_can_unless_user_space_sees_it() {
    on_each_monitor(SECOND, |context| {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let poll = move || {
            count.set(count.get() + 1);
            false
        };
        let (_handler, _theirs) = warmed(context, SECOND, poll, || ());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let local = context.local().unwrap();
        let called = Rc::new(Cell::new(false));
        let note = Rc::clone(&called);
        let plain = local.add_handler(ours, Interest::READ, move |_| note.set(true));
        let plain = plain.unwrap();
        let mut partner = theirs.try_clone().unwrap();
        let writes = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            partner.write_all(b"x").unwrap();
        });
        let begin = Instant::now();
        while !called.get() {
            context.poll(true).unwrap();
        }
        writes.join().unwrap();
        if context.monitor().unwrap().kind == MonitorKind::IoUring {
            assert!(asked.get() > 0, "nothing was polled");
            let took = begin.elapsed();
            assert!(
                took < Duration::from_millis(800),
                "the event ended it not: {took:?}"
            );
        } else {
            assert_eq!(asked.get(), 0, "it was polled while one could not be");
            // One that waits for nothing is not in the way.
            plain.set_interest(Interest::default()).unwrap();
            context.notify();
            let limit = context.timer(|| ());
            while asked.get() == 0 {
                limit.arm_after(A_WHILE); // A turn that finds it due does not poll.
                context.poll(true).unwrap();
            }
        }
    });
}

// SPEC P1, A1: polling that always finds something keeps no descriptor from being looked at.
#[test]
fn one_that_is_always_found_starves_nobody_who_has_not_joined() {
    on_each_monitor(SECOND, |context| {
        let (_handler, _theirs) = warmed(context, SECOND, || true, || ());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let called = Rc::new(Cell::new(false));
        let note = Rc::clone(&called);
        let local = context.local().unwrap();
        let other = local.add_handler(ours, Interest::READ, move |_| note.set(true));
        other.as_ref().unwrap().set_poll(|| false, || ());
        for _ in 0..100 {
            context.poll(true).unwrap();
        }
        assert!(called.get());
        assert!(other.unwrap().poll_stats().is_polled, "it has joined");
    });
}

// SPEC I1
#[test]
fn parameters_change_while_the_loop_runs_and_times_begin_anew() {
    let io = IoThread::builder().spawn().unwrap();
    assert_eq!(io.context().poll_params(), PollParams::IO_THREAD);
    let refused = IoThread::builder()
        .poll_params(PollParams {
            grow: 0,
            ..PollParams::IO_THREAD
        })
        .spawn();
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let refused = io.context().set_poll_params(PollParams {
        budget_percent: 0,
        ..WIDE
    });
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(io.context().poll_params(), PollParams::IO_THREAD);
    io.context().set_poll_params(WIDE).unwrap();
    assert_eq!(io.context().poll_params(), WIDE);
    assert_eq!(AioContext::new().unwrap().poll_params().max_ns, 0);
    on_each_monitor(SECOND, |context| {
        let (handler, _theirs) = warmed(context, SECOND, || false, || ());
        assert_eq!(handler.poll_stats().time_ns, SECOND.max_ns);
        context.set_poll_params(WIDE).unwrap();
        context.poll(true).unwrap();
        assert_eq!(handler.poll_stats().time_ns, 0);
    });
}

// SPEC K1
#[test]
fn polling_is_tracked() {
    track::enable();
    let me = i64::from(rustix::thread::gettid().as_raw_nonzero().get());
    on_each_monitor(SECOND, |context| {
        let (handler, mut theirs) = warmed(context, SECOND, || false, || ());
        context
            .set_poll_params(PollParams {
                max_ns: 1,
                ..SECOND
            })
            .unwrap();
        context.poll(true).unwrap();
        // From 0 it grows to all there may be, 1 ns, and the next event takes it away.
        let mut deadline = 100;
        while deadline > 0 {
            theirs.write_all(b"x").unwrap();
            context.poll(true).unwrap();
            handler.get_ref().read_exact(&mut [0]).unwrap();
            deadline -= 1;
        }
        drop(handler);
        let threads = track::snapshot();
        let mine = threads
            .iter()
            .find(|of| i64::from(of.thread_id) == me)
            .unwrap();
        let events: Vec<_> = mine.records.iter().map(|record| record.event).collect();
        let id = context.id();
        let added = events.iter().find_map(|event| match event {
            Event::PollAdd { handler, context } if *context == id => Some(*handler),
            _ => None,
        });
        let added = added.expect("it joined");
        let has = |wanted: &dyn Fn(&Event) -> bool| events.iter().any(wanted);
        assert!(has(&|event| matches!(event,
            Event::PollGrow { handler, old_ns: 4_000, new_ns: 1_000_000_000 } if *handler == added)));
        assert!(has(&|event| matches!(event,
            Event::PollBegin { context, limit_ns } if *context == id && *limit_ns > 0)));
        assert!(has(&|event| matches!(event,
            Event::PollRemove { handler, context } if *handler == added && *context == id)));
    });
}
