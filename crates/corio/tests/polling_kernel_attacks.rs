//! What could be lost, or come late, when busy polling asks the kernel, too: with a time of a
//! second, so that what does not end it shows (SPEC P1 to P7, ADR 0021).

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{
    EventNotifier, Handler, Interest, MonitorChoice, MonitorKind, PollParams, RemoteHandler,
};
use corio::engine::EngineChoice;
use corio::fs::{AlignedBuf, OpenOptions};

/// Who measures time has the machine to himself, as far as this program goes.
static ALONE: Mutex<()> = Mutex::new(());

const SECOND: PollParams = PollParams {
    max_ns: 1_000_000_000,
    grow: u32::MAX,
    ask_kernel: true,
    ..PollParams::IO_THREAD
};
/// What ends polling at once takes less.
const SOON: Duration = Duration::from_millis(500);
/// Ends polling, and is not over before it begins.
const A_WHILE: Duration = Duration::from_millis(10);

/// A home of each monitor in which the kernel is asked for a second, and each turn's rounds are
/// counted.
fn on_each_monitor(test: impl Fn(&Home<'_>)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for monitor in MonitorChoice::ALL {
        let builder = AioContext::builder().monitor(monitor).poll_params(SECOND);
        let context = builder.build().unwrap();
        context
            .enter_home(|| {
                let home = Home::warmed(&context);
                println!("{:?}", context.monitor().unwrap().kind);
                test(&home);
            })
            .unwrap();
    }
}

struct Home<'a> {
    context: &'a AioContext,
    /// What is polled; it is never ready.
    counter: Handler<UnixStream>,
    rounds: Rc<Cell<u32>>,
    _theirs: (UnixStream, Handler<UnixStream>, UnixStream),
}

impl<'a> Home<'a> {
    fn warmed(context: &'a AioContext) -> Self {
        let local = context.local().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let counter = local.add_handler(ours, Interest::READ, |_| ()).unwrap();
        let rounds = Rc::new(Cell::new(0));
        counter.set_poll(|| false, || ());
        theirs.write_all(b"x").unwrap();
        while !counter.poll_stats().is_polled {
            context.poll(true).unwrap();
        }
        counter.get_ref().read_exact(&mut [0]).unwrap();
        (0..3).for_each(|_| _ = context.poll(false).unwrap()); // What was on its way.
        // An event at once gives the kernel some time, and one a little later all of it.
        let (ours, other) = UnixStream::pair().unwrap();
        let (reader, told) = (ours.try_clone().unwrap(), Rc::new(Cell::new(0)));
        let tells = Rc::clone(&told);
        let kernels = local
            .add_handler(ours, Interest::READ, move |_| {
                (&reader).read_exact(&mut [0]).unwrap();
                tells.set(tells.get() + 1);
            })
            .unwrap();
        for event in 1..=4 {
            let mut partner = other.try_clone().unwrap();
            let writes = thread::spawn(move || {
                thread::sleep(Duration::from_millis(1));
                partner.write_all(b"x").unwrap();
            });
            while told.get() < event {
                context.poll(true).unwrap();
            }
            writes.join().unwrap();
        }
        let home = Self {
            context,
            counter,
            rounds,
            _theirs: (theirs, kernels, other),
        };
        home.in_round(0, || ());
        home.wait_for_limit();
        assert!(home.rounds.get() > 2, "it does not poll");
        home
    }

    /// Has `act` run in that round of the next turn.
    fn in_round(&self, number: u32, act: impl Fn() + 'static) {
        self.rounds.set(0);
        let rounds = Rc::clone(&self.rounds);
        let poll = move || {
            rounds.set(rounds.get() + 1);
            if rounds.get() == number {
                act();
            }
            false
        };
        self.counter
            .set_poll(poll, || unreachable!("it is never ready"));
    }

    /// One turn, which is not to take long.
    fn turn(&self) -> bool {
        let begin = Instant::now();
        let progress = self.context.poll(true).unwrap();
        assert!(begin.elapsed() < SOON, "it came late");
        progress
    }

    /// One turn that only a timer ends.
    fn wait_for_limit(&self) {
        let (begin, came) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let comes = Arc::clone(&came);
        let limit = self.context.timer(move || {
            comes.fetch_add(1, Ordering::Relaxed);
        });
        limit.arm_after(A_WHILE);
        while came.load(Ordering::Relaxed) == 0 {
            self.context.poll(true).unwrap();
        }
        assert!(begin.elapsed() >= A_WHILE && begin.elapsed() < SOON);
    }
}

// SPEC A3, H4, M1: what a look has taken from an edge-triggered notifier is not lost with its turn.
#[test]
fn what_the_kernel_told_before_a_callback_of_polling_panicked_is_the_next_turns() {
    on_each_monitor(|home| {
        let local = home.context.local().unwrap();
        let (event, calls) = (
            Arc::new(EventNotifier::new().unwrap()),
            Rc::new(Cell::new(0)),
        );
        let count = Rc::clone(&calls);
        let _watch = local
            .add_notifier(Arc::clone(&event), move || count.set(count.get() + 1))
            .unwrap();
        for turn in 1..=3 {
            let sets = Arc::clone(&event);
            home.in_round(3, move || sets.set());
            let end = || resume_unwind(Box::new("on purpose"));
            home.counter.set_poll_notify(|| (), end);
            catch_unwind(AssertUnwindSafe(|| home.turn())).unwrap_err();
            assert_eq!((calls.get(), home.rounds.get()), (turn - 1, 3));
            home.counter.set_poll_notify(|| (), || ());
            assert!(home.turn());
            assert_eq!(calls.get(), turn);
            home.wait_for_limit();
            assert_eq!(calls.get(), turn, "it was called for nothing");
        }
    });
}

// SPEC H3: a handler that goes between the look and its call is not called, nor waited for.
#[test]
fn what_the_kernel_told_of_a_handler_that_end_removes_is_dropped() {
    on_each_monitor(|home| {
        let local = home.context.local().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let call = |_| panic!("it was removed");
        let handler = local.add_handler(ours, Interest::READ, call).unwrap();
        let handler = Rc::new(Cell::new(Some(handler)));
        let removed = Rc::clone(&handler);
        home.counter
            .set_poll_notify(|| (), move || drop(removed.take()));
        home.in_round(3, move || (&theirs).write_all(b"x").unwrap());
        assert!(!home.turn());
        assert_eq!(home.rounds.get(), 4, "three, and one after the end");
        assert!(handler.take().is_none());
        home.wait_for_limit();
    });
}

// SPEC H1, N1: from another thread, in the middle of polling.
#[test]
fn a_handler_that_another_thread_adds_while_the_kernel_is_asked_is_taken_up_at_once() {
    on_each_monitor(|home| {
        let (told, called) = mpsc::channel();
        let (tell, added) = mpsc::channel::<RemoteHandler>();
        let context = home.context.clone();
        home.in_round(3, move || {
            let (context, told, tell) = (context.clone(), told.clone(), tell.clone());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(1));
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                theirs.write_all(b"x").unwrap();
                let call = move |_| told.send(()).unwrap();
                let handler = context.add_handler(ours, Interest::READ, call);
                tell.send(handler).unwrap();
            });
        });
        let begin = Instant::now();
        while called.try_recv().is_err() {
            home.turn();
        }
        assert!(begin.elapsed() < SOON);
        drop(added.recv().unwrap());
    });
}

// SPEC N1, N5, T2: what another thread asks for ends polling, whatever it is.
#[test]
fn bottom_halves_timers_and_coroutines_of_other_threads_end_it() {
    type Way = fn(&AioContext, mpsc::Sender<()>) -> Box<dyn Fn() + Send>;
    let ways: [Way; 3] = [
        |context, tell| {
            let context = context.clone();
            Box::new(move || {
                let tell = tell.clone();
                context.schedule_oneshot("told", move || tell.send(()).unwrap());
            })
        },
        |context, tell| {
            let tell = Mutex::new(tell);
            let timer = context.timer(move || tell.lock().unwrap().send(()).unwrap());
            Box::new(move || timer.arm_after(Duration::from_millis(1)))
        },
        |context, tell| {
            let context = context.clone();
            Box::new(move || {
                let tell = tell.clone();
                drop(context.spawn(move || tell.send(()).unwrap()));
            })
        },
    ];
    on_each_monitor(|home| {
        for way in ways {
            let (tell, told) = mpsc::channel();
            let act = Arc::new(Mutex::new(way(home.context, tell)));
            let acts = Arc::clone(&act);
            home.in_round(3, move || {
                let acts = Arc::clone(&acts);
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(1));
                    acts.lock().unwrap()();
                });
            });
            let begin = Instant::now();
            while told.try_recv().is_err() {
                home.turn();
            }
            assert!(begin.elapsed() < SOON);
        }
    });
}

// SPEC M3: poll turns into epoll between two looks.
#[test]
fn handlers_that_a_round_adds_are_seen_by_the_monitor_that_they_bring() {
    on_each_monitor(|home| {
        let before = home.context.monitor().unwrap().kind;
        let (all, calls) = (Rc::new(Cell::new(Vec::new())), Rc::new(Cell::new(0)));
        let (adds, count) = (Rc::clone(&all), Rc::clone(&calls));
        let context = home.context.clone();
        home.in_round(3, move || {
            let local = context.local().unwrap();
            let added = (0..70).map(|number| {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                let count = Rc::clone(&count);
                let call = move |_| count.set(count.get() + 1);
                if number % 10 == 0 {
                    theirs.write_all(b"x").unwrap();
                }
                (
                    local.add_handler(ours, Interest::READ, call).unwrap(),
                    theirs,
                )
            });
            adds.set(added.collect());
        });
        assert!(home.turn());
        assert_eq!(calls.get(), 7, "each once");
        let after = home.context.monitor().unwrap().kind;
        match before {
            MonitorKind::Poll => assert_eq!(after, MonitorKind::Epoll),
            _ => assert_eq!(after, before),
        }
        // Level-triggered still.
        assert!(home.turn());
        assert_eq!(calls.get(), 14);
        let handlers = all.take();
        for (handler, _) in handlers.iter().step_by(10) {
            handler.get_ref().read_exact(&mut [0]).unwrap();
        }
        home.wait_for_limit();
        let calls_before = calls.get();
        home.wait_for_limit();
        assert_eq!(calls.get(), calls_before);
    });
}

// SPEC A3: the outer turn's events are the nested one's, which does not poll beside them; once
// they are gone it does.
#[test]
fn nested_turns_of_handlers_lose_nothing_and_call_nobody_twice() {
    on_each_monitor(|home| {
        let local = home.context.local().unwrap();
        let calls = Rc::new(Cell::new(0));
        let events = [(); 3].map(|()| Arc::new(EventNotifier::new().unwrap()));
        let _watches = events.each_ref().map(|event| {
            let (count, context) = (Rc::clone(&calls), home.context.clone());
            let call = move || {
                count.set(count.get() + 1);
                if count.get() % 3 != 0 {
                    let begin = Instant::now();
                    assert!(context.poll(true).unwrap());
                    assert!(begin.elapsed() < SOON);
                }
            };
            local.add_notifier(Arc::clone(event), call).unwrap()
        });
        for turn in 1..=10 {
            let sets = events.clone();
            home.in_round(2, move || sets.iter().for_each(|event| event.set()));
            while calls.get() < 3 * turn {
                home.turn();
            }
            assert_eq!(calls.get(), 3 * turn);
        }
        home.wait_for_limit();
        assert_eq!(calls.get(), 30);
    });
}

// SPEC H1, H4: in lockstep with threads of their own, at all distances from the look.
#[test]
fn events_of_many_partners_are_each_seen_once() {
    const EVENTS: u64 = 3_000;
    on_each_monitor(|home| {
        let local = home.context.local().unwrap();
        let partners = [(); 2].map(|()| {
            let event = Arc::new(EventNotifier::new().unwrap());
            let (sent, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let (asks, sees) = (Arc::clone(&sent), Arc::clone(&seen));
            let call = move || {
                let number = asks.load(Ordering::SeqCst);
                assert_eq!(sees.swap(number, Ordering::SeqCst) + 1, number);
            };
            let watch = local.add_notifier(Arc::clone(&event), call).unwrap();
            let of_thread = (event, sent, Arc::clone(&seen));
            let thread = thread::spawn(move || {
                let (event, sent, seen) = of_thread;
                for number in 1..=EVENTS {
                    for _ in 0..number % 97 {
                        std::hint::spin_loop();
                    }
                    sent.store(number, Ordering::SeqCst);
                    event.set();
                    while seen.load(Ordering::SeqCst) < number {
                        thread::yield_now();
                    }
                }
            });
            (watch, seen, thread)
        });
        while !partners
            .iter()
            .all(|(_, seen, _)| seen.load(Ordering::SeqCst) == EVENTS)
        {
            home.turn();
        }
        for (_, _, thread) in partners {
            thread.join().unwrap();
        }
        home.wait_for_limit();
    });
}

// SPEC E1, E2, E3: completions end polling, of whatever engine.
#[test]
fn requests_in_flight_are_not_late() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&named, [7; 1 << 16]).unwrap();
    for engine in [
        EngineChoice::IoUring,
        EngineChoice::LinuxAio,
        EngineChoice::Threads,
    ] {
        on_each_monitor(|home| {
            home.context.set_engine(engine);
            home.context.set_cached_read_max(0).unwrap();
            for beside in [1, 2, 5] {
                let readers: Vec<_> = (0..beside)
                    .map(|_| {
                        let path = named.path().to_owned();
                        home.context.spawn(move || {
                            let direct = OpenOptions::new().read(true).direct(true).open(&path);
                            let file = match direct {
                                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                                    OpenOptions::new().read(true).open(&path)
                                }
                                result => result,
                            };
                            let mut block = AlignedBuf::zeroed(4096, 4096).unwrap();
                            let file = file.unwrap();
                            for number in 0..16 {
                                file.read_exact_at(&mut block, number * 4096).unwrap();
                                assert_eq!(block[4095], 7);
                            }
                        })
                    })
                    .collect();
                let begin = Instant::now();
                while !readers.iter().all(|reader| reader.is_finished()) {
                    home.turn();
                }
                assert!(
                    begin.elapsed() < SOON,
                    "{engine:?}, {beside} beside one another"
                );
            }
            home.wait_for_limit();
        });
    }
}

// SPEC I1, P6: in the middle.
#[test]
fn parameters_that_forbid_it_end_it() {
    on_each_monitor(|home| {
        let context = home.context.clone();
        home.in_round(3, move || {
            let context = context.clone();
            thread::spawn(move || context.set_poll_params(PollParams::default()).unwrap());
        });
        while home.counter.poll_stats().time_ns != 0 {
            home.turn();
        }
        let before = home.rounds.get();
        home.wait_for_limit();
        assert_eq!(home.rounds.get(), before, "it is polled still");
    });
}

// SPEC G2
#[test]
fn in_a_foreign_loop_nobody_asks_the_kernel() {
    on_each_monitor(|home| {
        if home.context.monitor().unwrap().kind != MonitorKind::Epoll {
            return; // It cannot be embedded.
        }
        let embedded = home.context.local().unwrap().embed().unwrap();
        home.in_round(0, || ());
        home.wait_for_limit();
        assert_eq!(home.rounds.get(), 0);
        drop(embedded);
        home.wait_for_limit();
        assert!(home.rounds.get() > 2, "after it, it polls again");
    });
}

// SPEC P5, H1: what both the kernel and the look after it tell of. Polling is heard first, as what
// it has seen is gone once the handler's own callback has run.
#[test]
fn what_polling_found_is_there_still_when_the_kernel_told_of_it_before() {
    on_each_monitor(|home| {
        let local = home.context.local().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (ours, theirs) = (Rc::new(ours), Rc::new(theirs));
        let (queued, taken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let take = {
            let (queued, taken) = (Rc::clone(&queued), Rc::clone(&taken));
            move || taken.set(taken.get() + queued.take())
        };
        let (reader, takes) = (Rc::clone(&ours), take.clone());
        let call = move |_| {
            _ = (&*reader).read(&mut [0; 8]);
            takes();
        };
        let handler = local.add_handler(ours, Interest::READ, call).unwrap();
        handler.set_poll(|| false, || ());
        (&*theirs).write_all(b"x").unwrap();
        while !handler.poll_stats().is_polled {
            home.turn();
        }
        (0..3).for_each(|_| _ = home.context.poll(false).unwrap()); // What was on its way.
        // The partner is quick: it acts right after it was asked the third time.
        let (asked, sends, is_there) = (Cell::new(0), Rc::clone(&queued), Rc::clone(&queued));
        let poll = move || {
            let found = sends.get() > 0;
            asked.set(asked.get() + 1);
            if asked.get() == 3 {
                sends.set(1);
                (&*theirs).write_all(b"x").unwrap();
            }
            found
        };
        let ready = move || {
            assert_eq!(is_there.get(), 1, "what was found is gone");
            take();
        };
        handler.set_poll(poll, ready);
        assert!(home.turn());
        assert_eq!((queued.get(), taken.get()), (0, 1));
        home.wait_for_limit();
    });
}
