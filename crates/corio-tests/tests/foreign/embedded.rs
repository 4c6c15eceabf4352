//! A context in foreign loops: its descriptor and its three phases (SPEC G2, G3). No `poll` of ours
//! is called, except where a test is about that.

#![allow(unsafe_code)] // tokio wants a promise about the descriptor.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{Embedded, Interest, MonitorChoice, PollParams};
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio::track::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[path = "../../../corio/examples/in_mio.rs"]
mod in_mio;
#[path = "../../../corio/examples/in_tokio.rs"]
mod in_tokio;

/// How often a loop had to turn the context.
type Turns = usize;

/// A foreign loop, which turns the context until something is so.
type Drive = fn(Embedded, &dyn Fn() -> bool) -> Turns;

/// Waits for the descriptor and for nothing else, level-triggered.
fn by_descriptor(embedded: Embedded, done: &dyn Fn() -> bool) -> Turns {
    let mut turns = 0;
    while !done() {
        wait(&embedded, None);
        embedded.dispatch().unwrap();
        turns += 1;
    }
    turns
}

/// Prepares, waits no longer than it is told, checks, dispatches.
fn by_phases(embedded: Embedded, done: &dyn Fn() -> bool) -> Turns {
    let mut turns = 0;
    while !done() {
        let timeout = embedded.prepare();
        wait(&embedded, timeout);
        if embedded.check() {
            embedded.dispatch().unwrap();
            turns += 1;
        }
    }
    turns
}

/// Prepares twice and never checks, as when other sources of the loop's are ready first.
fn without_check(embedded: Embedded, done: &dyn Fn() -> bool) -> Turns {
    let mut turns = 0;
    while !done() {
        let _other_source_was_first = embedded.prepare();
        let timeout = embedded.prepare();
        wait(&embedded, timeout);
        embedded.dispatch().unwrap();
        turns += 1;
    }
    turns
}

/// mio, which is edge-triggered.
fn by_mio(embedded: Embedded, done: &dyn Fn() -> bool) -> Turns {
    let mut turns = 0;
    let mut poll = mio::Poll::new().unwrap();
    let mut events = mio::Events::with_capacity(4);
    let fd = embedded.as_raw_fd();
    let mut source = mio::unix::SourceFd(&fd);
    poll.registry()
        .register(&mut source, mio::Token(0), mio::Interest::READABLE)
        .unwrap();
    while !done() {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result.unwrap(),
        }
        while !done() && embedded.check() {
            embedded.dispatch().unwrap();
            turns += 1;
        }
    }
    turns
}

/// tokio, which is edge-triggered and keeps its own readiness.
fn by_tokio(embedded: Embedded, done: &dyn Fn() -> bool) -> Turns {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut turns = 0;
        // SAFETY: an `Embedded` has the same descriptor, open and its own, for as long as it lives.
        let embedded = unsafe { tokio::io::unix::AsyncFd::register(embedded) }.unwrap();
        while !done() {
            let mut ready = embedded.readable().await.unwrap();
            ready.get_inner().dispatch().unwrap();
            turns += 1;
            if !ready.get_inner().check() {
                ready.clear_ready();
            }
        }
        turns
    })
}

const DRIVES: [(&str, Drive); 5] = [
    ("descriptor", by_descriptor),
    ("phases", by_phases),
    ("without check", without_check),
    ("mio", by_mio),
    ("tokio", by_tokio),
];

fn wait(embedded: &Embedded, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().try_into().unwrap(),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(
        &mut [PollFd::new(embedded, PollFlags::IN)],
        timeout.as_ref(),
    ) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Runs a test in the home of a context, once for each foreign loop. What hangs ends by an alarm.
fn in_each_loop(test: impl Fn(&AioContext, &dyn Fn(&dyn Fn() -> bool) -> Turns)) {
    for (name, drive) in DRIVES {
        let context = AioContext::builder().name(name).build().unwrap();
        let run = || {
            let alarm = context.timer(move || panic!("{name}: what is waited for does not come"));
            alarm.arm_after(Duration::from_secs(20));
            test(&context, &|done| {
                drive(context.local().unwrap().embed().unwrap(), done)
            });
        };
        context.enter_home(run).unwrap();
    }
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else {
        panic!("it did not panic");
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().unwrap().to_string(),
    }
}

// SPEC G3
#[test]
fn the_example_in_mio_runs() {
    in_mio::main().unwrap();
}

// SPEC G3, E7
#[test]
fn the_example_in_tokio_runs() {
    in_tokio::main().unwrap();
}

// SPEC G3, T4
#[test]
fn a_timer_is_due_in_time_and_not_before() {
    in_each_loop(|context, drive| {
        let fired = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fired);
        let timer = context.timer(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for delay in [0, 1, 20] {
            fired.store(0, Ordering::Relaxed);
            let began = Instant::now();
            timer.arm_after(Duration::from_millis(delay));
            drive(&|| fired.load(Ordering::Relaxed) == 1);
            assert!(began.elapsed() >= Duration::from_millis(delay));
        }
    });
}

// SPEC G3: what comes nearer while the loop waits already.
#[test]
fn a_timer_that_is_armed_between_two_turns_is_seen() {
    in_each_loop(|context, drive| {
        let fired = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&fired);
        let timer = Rc::new(context.timer(move || tell.store(true, Ordering::Relaxed)));
        timer.arm_after(Duration::from_secs(3600));
        // The loop's own business, after it has prepared and before it waits.
        let armed = Cell::new(false);
        drive(&|| {
            if !armed.replace(true) {
                timer.arm_after(Duration::from_millis(1));
            }
            fired.load(Ordering::Relaxed)
        });
    });
}

// SPEC G3, B1
#[test]
fn a_bottom_half_is_run_whoever_schedules_it() {
    in_each_loop(|context, drive| {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let bottom_half = Arc::new(context.bottom_half("count", move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        bottom_half.schedule(); // Before the loop is there.
        drive(&|| runs.load(Ordering::Relaxed) == 1);
        let scheduled = Cell::new(false);
        drive(&|| {
            // At home, between two turns.
            if !scheduled.replace(true) {
                bottom_half.schedule();
            }
            runs.load(Ordering::Relaxed) == 2
        });
        let theirs = Arc::clone(&bottom_half);
        let thread = std::thread::spawn(move || theirs.schedule());
        drive(&|| runs.load(Ordering::Relaxed) == 3);
        thread.join().unwrap();
    });
}

// SPEC G3, B6: what a bottom half schedules comes in a turn of its own, and is not slept over.
#[test]
fn what_a_callback_leaves_for_the_next_turn_is_told() {
    in_each_loop(|context, drive| {
        let left = Arc::new(AtomicUsize::new(100));
        fn next(context: &AioContext, left: &Arc<AtomicUsize>) {
            if left.fetch_sub(1, Ordering::Relaxed) > 1 {
                let (again, left) = (context.clone(), Arc::clone(left));
                context.schedule_oneshot("next", move || next(&again, &left));
            }
        }
        let (again, count) = (context.clone(), Arc::clone(&left));
        context.schedule_oneshot("first", move || next(&again, &count));
        let turns = drive(&|| left.load(Ordering::Relaxed) == 0);
        assert!(turns >= 100, "{turns}");
    });
}

// SPEC G3, B4
#[test]
fn an_idle_bottom_half_is_run_within_ten_milliseconds() {
    in_each_loop(|context, drive| {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let idle = context.bottom_half("idle", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for round in 1..=3 {
            idle.schedule_idle();
            let turns = drive(&|| runs.load(Ordering::Relaxed) == round);
            assert!(turns <= 3, "{turns}: it does not hurry the loop");
        }
    });
}

// SPEC G3, H1
#[test]
fn a_handler_fires_until_it_is_drained() {
    in_each_loop(|context, drive| {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let got = Rc::new(RefCell::new(Vec::new()));
        let (ours, seen) = (Rc::new(ours), Rc::clone(&got));
        let reading = Rc::clone(&ours);
        let local = context.local().unwrap();
        let _handler = local
            .add_handler(ours, Interest::READ, move |_| {
                // One byte a call: an edge would be lost.
                let mut byte = [0];
                (&*reading).read_exact(&mut byte).unwrap();
                seen.borrow_mut().push(byte[0]);
            })
            .unwrap();
        theirs.write_all(b"level").unwrap();
        drive(&|| got.borrow().len() == 5);
        assert_eq!(*got.borrow(), b"level");
    });
}

// SPEC G3, C1: between two turns a loop may have coroutines begin, and enter them by a wake.
#[test]
fn a_coroutine_that_is_spawned_between_two_turns_runs() {
    in_each_loop(|context, drive| {
        let child = RefCell::new(None);
        drive(&|| {
            let mut child = child.borrow_mut();
            let local = context.local().unwrap();
            let child = child.get_or_insert_with(|| local.spawn(|| corio::yield_now()));
            child.is_finished()
        });
        let event = Rc::new(corio::sync::Event::new());
        let waits = Rc::clone(&event);
        let parked = context.local().unwrap().spawn(move || waits.wait());
        drive(&|| {
            event.set();
            parked.is_finished()
        });
    });
}

// SPEC G3, E1, E3
#[test]
fn a_coroutine_reads_and_writes_a_file_on_each_engine() {
    for (choice, kind) in [
        (EngineChoice::IoUring, EngineKind::IoUring),
        (EngineChoice::Threads, EngineKind::Threads),
    ] {
        in_each_loop(|context, drive| {
            context.set_engine(choice);
            let work = || {
                let file = tempfile::tempfile()?;
                let file = File::from(std::os::fd::OwnedFd::from(file));
                for round in 0..20_u8 {
                    file.write_all_at(&[round; 8192], 4096 * u64::from(round))?;
                    file.sync_data()?;
                }
                let mut block = [0; 4096];
                file.read_exact_at(&mut block, 4096 * 7)?;
                Ok::<_, std::io::Error>(block)
            };
            let child = context.local().unwrap().spawn(work);
            drive(&|| child.is_finished());
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

// SPEC G3, E6
#[test]
fn a_coroutine_echoes_what_a_client_sends() {
    in_each_loop(|context, drive| {
        let listener = corio::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = context.local().unwrap().spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut buf = [0; 512];
            loop {
                match stream.read(&mut buf)? {
                    0 => return Ok::<_, std::io::Error>(()),
                    count => stream.write_all(&buf[..count])?,
                }
            }
        });
        let client = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            for round in 0..200_u8 {
                stream.write_all(&[round; 700]).unwrap();
                let mut back = [0; 700];
                stream.read_exact(&mut back).unwrap();
                assert!(back.iter().all(|&byte| byte == round));
            }
        });
        drive(&|| server.is_finished());
        client.join().unwrap();
    });
}

// SPEC G3, N1, N4: each is scheduled only once the one before has run, so that one lost hangs.
#[test]
fn no_notification_of_another_thread_is_lost() {
    const ROUNDS: usize = 20_000; // In each of five loops.
    in_each_loop(|context, drive| {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let bottom_half = context.bottom_half("ping", move || {
            count.fetch_add(1, Ordering::Release);
        });
        let theirs = Arc::clone(&runs);
        let thread = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                while theirs.load(Ordering::Acquire) != round {
                    std::hint::spin_loop();
                }
                bottom_half.schedule();
            }
            bottom_half // Not deleted before it has run.
        });
        drive(&|| runs.load(Ordering::Relaxed) == ROUNDS);
        drop(thread.join().unwrap());
    });
}

// SPEC G3, N4: with nothing to do the loop is not woken.
#[test]
fn an_idle_context_is_not_turned() {
    in_each_loop(|context, drive| {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let local = context.local().unwrap();
        let _quiet = local
            .add_handler(ours, Interest::READ, |_| unreachable!("nothing is sent"))
            .unwrap();
        let fired = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&fired);
        let timer = context.timer(move || tell.store(true, Ordering::Relaxed));
        timer.arm_after(Duration::from_millis(100));
        let turns = drive(&|| fired.load(Ordering::Relaxed));
        // The one that it is due in, and what embedding itself may cost.
        assert!(turns <= 3, "{turns} turns");
    });
}

// SPEC G3, A3
#[test]
fn a_callbacks_panic_reaches_the_loop_and_leaves_the_rest_to_be_done() {
    let context = AioContext::new().unwrap();
    let test = || {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let fails = context.bottom_half("fails", || panic!("this one fails"));
        let runs_on = context.bottom_half("runs on", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        fails.schedule();
        runs_on.schedule();
        let embedded = context.local().unwrap().embed().unwrap();
        wait(&embedded, None);
        assert_eq!(panic_of(|| embedded.dispatch()), "this one fails");
        assert!(embedded.check());
        by_descriptor(embedded, &|| runs.load(Ordering::Relaxed) == 1);
    };
    context.enter_home(test).unwrap();
}

// SPEC G3, B1, T2, A3: what the home asks for after a nested poll has ended, or between two turns,
// makes the descriptor of an embedded context readable; also where a panic ends the outer turn.
#[test]
fn a_foreign_loop_is_told_of_what_a_callback_asks_after_a_nested_poll() {
    type Kept = Box<dyn Any + Send>;
    type Way = fn(&AioContext, Arc<AtomicUsize>) -> Kept;
    fn count(ran: Arc<AtomicUsize>) -> impl Fn() + Send + Sync {
        move || {
            ran.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ways: [Way; 4] = [
        |context, ran| {
            let half = context.bottom_half("urgent", count(ran));
            half.schedule();
            Box::new(half)
        },
        |context, ran| {
            let half = context.bottom_half("idle", count(ran));
            half.schedule_idle();
            Box::new(half)
        },
        |context, ran| {
            context.schedule_oneshot("once", count(ran));
            Box::new(())
        },
        |context, ran| {
            let timer = context.timer(count(ran));
            timer.arm_after(Duration::from_micros(300));
            Box::new(timer)
        },
    ];
    for way in ways {
        for (polls, panics) in [(0, false), (1, false), (2, false), (1, true), (0, true)] {
            let builder = AioContext::builder().monitor(MonitorChoice::Epoll);
            let context = builder.build().unwrap();
            let test = || {
                let local = context.local().unwrap();
                let embedded = local.embed().unwrap();
                let ran = Arc::new(AtomicUsize::new(0));
                let kept: Arc<Mutex<Vec<Kept>>> = Arc::default();
                let callback = {
                    let (context, ran, kept) =
                        (context.clone(), Arc::clone(&ran), Arc::clone(&kept));
                    move || {
                        for _ in 0..polls {
                            context.poll(false).unwrap();
                        }
                        kept.lock().unwrap().push(way(&context, Arc::clone(&ran)));
                        assert!(!panics, "planned");
                    }
                };
                let turn = || {
                    let limit = Timespec {
                        tv_sec: 10,
                        tv_nsec: 0,
                    };
                    let mut fds = [PollFd::new(&embedded, PollFlags::IN)];
                    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "it is not told");
                    embedded.dispatch()
                };
                context.schedule_oneshot("outer", callback);
                let outer = catch_unwind(AssertUnwindSafe(&turn));
                assert_eq!(outer.is_err(), panics);
                while ran.load(Ordering::SeqCst) == 0 {
                    turn().unwrap();
                }
                kept.lock().unwrap().push(way(&context, Arc::clone(&ran))); // Between two turns.
                while ran.load(Ordering::SeqCst) == 1 {
                    turn().unwrap();
                }
                kept.lock().unwrap().clear();
                assert_eq!(ran.load(Ordering::SeqCst), 2);
            };
            context.enter_home(test).unwrap();
        }
    }
}

// SPEC G3, W1: turns of our own between the foreign loop's.
#[test]
fn a_poll_between_two_turns_leaves_nothing_untold() {
    in_each_loop(|context, drive| {
        let runs = Arc::new(AtomicUsize::new(0));
        let polled = Cell::new(0);
        drive(&|| {
            if polled.get() < 100 {
                polled.set(polled.get() + 1);
                let (again, count) = (context.clone(), Arc::clone(&runs));
                context.schedule_oneshot("outer", move || {
                    again.schedule_oneshot("inner", move || {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                });
                context.poll(true).unwrap(); // Runs the outer one, and takes the notification.
            }
            runs.load(Ordering::Relaxed) == 100
        });
    });
}

// SPEC G2
#[test]
fn io_uring_monitoring_is_refused_in_a_foreign_loop() {
    let context = AioContext::builder()
        .monitor(MonitorChoice::IoUring)
        .build()
        .unwrap();
    let test = || {
        if context.monitor().unwrap().kind == corio::context::MonitorKind::Epoll {
            println!("SKIPPED: io_uring in a foreign loop: no io_uring here");
            return;
        }
        let refused = context.local().unwrap().embed().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
        assert!(refused.to_string().contains("IoUring"), "{refused}");
        context.poll(false).unwrap(); // It goes on as it was.
    };
    context.enter_home(test).unwrap();
}

// SPEC G2: before and after it, the loop's own turns ask the same handler.
#[test]
fn polling_is_off_in_a_foreign_loop() {
    in_each_loop(|context, drive| {
        context.set_poll_params(PollParams::IO_THREAD).unwrap();
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (got, asked) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (ours, seen, count) = (Rc::new(ours), Rc::clone(&got), Rc::clone(&asked));
        let reading = Rc::clone(&ours);
        let local = context.local().unwrap();
        let callback = move |_| {
            (&*reading).read_exact(&mut [0]).unwrap();
            seen.set(seen.get() + 1);
        };
        let handler = local.add_handler(ours, Interest::READ, callback).unwrap();
        let poll = move || {
            count.set(count.get() + 1);
            false
        };
        handler.set_poll(poll, || ());
        let mut event = || {
            theirs.write_all(b"x").unwrap();
            got.get() + 1
        };
        for _ in 0..2 {
            let before = asked.get();
            while asked.get() == before {
                event();
                context.poll(true).unwrap();
            }
            let before = asked.get();
            for _ in 0..5 {
                let expected = event();
                drive(&|| got.get() >= expected);
            }
            assert!(handler.poll_stats().is_polled, "it would be asked");
            assert_eq!(asked.get(), before);
        }
    });
}

// SPEC G2: nor do turns of its own that wait while it is in one, whoever could be asked.
#[test]
fn a_turn_of_an_embedded_context_does_not_poll() {
    let params = PollParams {
        max_ns: 1_000_000_000,
        grow: u32::MAX,
        ask_kernel: true,
        ..PollParams::IO_THREAD
    };
    corio::track::enable();
    let context = AioContext::builder().poll_params(params).build().unwrap();
    let polls = || {
        let threads = corio::track::snapshot();
        let records = threads.iter().flat_map(|thread| &thread.records);
        let is_ours =
            |event| matches!(event, Event::PollBegin { context: id, .. } if id == context.id());
        records.filter(|record| is_ours(record.event)).count()
    };
    let test = || {
        let wait_for_a_timer = || {
            let timer = context.timer(|| ());
            timer.arm_after(Duration::from_millis(1));
            context.poll(true).unwrap();
        };
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let local = context.local().unwrap();
        let reading = ours.try_clone().unwrap();
        let callback = move |_| (&reading).read_exact(&mut [0]).unwrap();
        let _handler = local.add_handler(ours, Interest::READ, callback).unwrap();
        for _ in 0..3 {
            theirs.write_all(b"x").unwrap();
            context.poll(true).unwrap(); // Its times grow.
        }
        wait_for_a_timer();
        let before = polls();
        assert!(before > 0);
        let embedded = local.embed().unwrap();
        wait_for_a_timer();
        assert_eq!(polls(), before);
        drop(embedded);
        wait_for_a_timer();
        assert_eq!(polls(), before + 1);
    };
    context.enter_home(test).unwrap();
}

// SPEC G3
#[test]
fn a_context_is_in_one_foreign_loop_at_a_time() {
    let context = AioContext::new().unwrap();
    let test = || {
        let local = context.local().unwrap();
        let first = local.embed().unwrap();
        assert!(panic_of(|| local.embed()).contains("embedded in a foreign loop already"));
        drop(first);
        // Out of it, the context's own turns go on, and it may be embedded again.
        let ran = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&ran);
        let timer = context.timer(move || tell.store(true, Ordering::Relaxed));
        timer.arm_after(Duration::from_millis(1));
        while !ran.load(Ordering::Relaxed) {
            context.poll(true).unwrap();
        }
        ran.store(false, Ordering::Relaxed);
        timer.arm_after(Duration::from_millis(1));
        by_descriptor(local.embed().unwrap(), &|| ran.load(Ordering::Relaxed));
    };
    context.enter_home(test).unwrap();
}

// SPEC G3
#[test]
fn after_its_home_an_embedded_context_is_inert() {
    let context = AioContext::new().unwrap();
    let embed = || context.local().unwrap().embed().unwrap();
    let late = context.enter_home(embed).unwrap();
    assert!(!late.is_live());
    assert!(panic_of(|| late.prepare()).contains("after its home had ended"));
    context
        .enter_home(|| {
            assert!(!late.is_live(), "that is another home");
            let next = context.local().unwrap().embed().unwrap();
            drop(late);
            context.notify();
            wait(&next, None);
            next.dispatch().unwrap();
        })
        .unwrap();
}
