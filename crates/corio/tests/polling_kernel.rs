//! Adaptive polling that asks the kernel, too: sockets that nobody can be asked about otherwise
//! (SPEC P1 to P7, `docs/adr/0021`).

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::{Handler, Interest, MonitorChoice, PollParams};
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::{File, OpenOptions};
use corio::track::{self, Event};
use corio::{AioContext, IoThread};
use rustix::thread::CpuSet;

/// Who measures time has the machine to himself, as far as this program goes.
static ALONE: Mutex<()> = Mutex::new(());

const PATIENCE: Duration = Duration::from_secs(5);
const WIDE: PollParams = PollParams {
    max_ns: 200_000,
    ask_kernel: true,
    ..PollParams::IO_THREAD
};
/// Long enough to see what ends it; reached with the second event.
const SECOND: PollParams = PollParams {
    max_ns: 1_000_000_000,
    grow: u32::MAX,
    ..WIDE
};
/// Soon, beside a second.
const SOON: Duration = Duration::from_millis(500);

/// Runs a test in a home of each monitor and engine, with these parameters.
fn everywhere(params: PollParams, test: impl Fn(&AioContext)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    track::enable();
    for monitor in MonitorChoice::ALL {
        for engine in [EngineChoice::Auto, EngineChoice::Threads] {
            let builder = AioContext::builder().monitor(monitor).poll_params(params);
            let context = builder.build().unwrap();
            context.set_engine(engine);
            context.enter_home(|| test(&context)).unwrap();
        }
    }
}

/// What this thread has tracked of polling in that context: the limits of its polls, and the
/// kernel's times.
fn tracked(context: &AioContext) -> (Vec<u64>, Vec<u64>) {
    let me = i64::from(rustix::thread::gettid().as_raw_nonzero().get());
    let threads = track::snapshot();
    let mine = threads.iter().find(|of| i64::from(of.thread_id) == me);
    let (mut limits, mut times) = (Vec::new(), Vec::new());
    for record in mine.into_iter().flat_map(|mine| &mine.records) {
        match record.event {
            Event::PollBegin {
                context: id,
                limit_ns,
            } if id == context.id() => {
                limits.push(limit_ns);
            }
            Event::PollGrow {
                handler: id,
                new_ns,
                ..
            }
            | Event::PollShrink {
                handler: id,
                new_ns,
                ..
            } if id == context.id() => {
                times.push(new_ns);
            }
            _ => {}
        }
    }
    (limits, times)
}

/// A socket's handler, which drains it.
struct Socket {
    context: AioContext,
    seen: Rc<Cell<u64>>,
    expected: Cell<u64>,
    handler: Handler<Rc<UnixStream>>,
    theirs: UnixStream,
}

impl Socket {
    fn new(context: &AioContext) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (ours, seen) = (Rc::new(ours), Rc::new(Cell::new(0)));
        let (reading, count) = (Rc::clone(&ours), Rc::clone(&seen));
        let callback = move |_| {
            let bytes = (&*reading).read(&mut [0; 64]).unwrap();
            count.set(count.get() + u64::try_from(bytes).unwrap());
        };
        let local = context.local().unwrap();
        Self {
            context: context.clone(),
            seen,
            expected: Cell::new(0),
            handler: local.add_handler(ours, Interest::READ, callback).unwrap(),
            theirs,
        }
    }

    /// One byte that comes after a while; how long it took to be seen.
    fn hear_after(&self, delay: Duration) -> Duration {
        let mut theirs = self.theirs.try_clone().unwrap();
        let begin = Instant::now();
        let writes = thread::spawn(move || {
            thread::sleep(delay);
            theirs.write_all(b"x").unwrap();
        });
        self.wait();
        let took = begin.elapsed();
        writes.join().unwrap();
        took
    }

    /// Until one byte more has been seen.
    fn wait(&self) {
        self.expected.set(self.expected.get() + 1);
        let deadline = Instant::now() + PATIENCE;
        while self.seen.get() < self.expected.get() {
            self.context.poll(true).unwrap();
            assert!(Instant::now() < deadline, "a byte is lost");
        }
        assert_eq!(self.seen.get(), self.expected.get());
    }

    /// Until the kernel's time is as long as [`SECOND`] allows.
    fn warm_up(&self) {
        let deadline = Instant::now() + PATIENCE;
        while tracked(&self.context).1.last() != Some(&SECOND.max_ns) {
            self.hear_after(Duration::from_micros(500));
            assert!(Instant::now() < deadline, "it does not grow");
        }
        self.context.poll(false).unwrap(); // What was on its way.
    }
}

/// The home's core and its partner's; None, said out loud, where there is one only.
fn two_cores(test: &str) -> Option<[usize; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    let both = cores.next().zip(cores.next());
    if both.is_none() {
        println!("SKIPPED: {test}: there is one core only");
    }
    both.map(|(ours, theirs)| [ours, theirs])
}

/// Keeps this thread on one core.
fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

// SPEC P1, P2
#[test]
fn a_peer_that_answers_after_20_us_is_heard_sooner() {
    let Some([ours, theirs]) = two_cores("polling the kernel for a quick peer") else {
        return;
    };
    everywhere(PollParams::default(), |context| {
        stay_on(ours);
        let socket = Socket::new(context);
        let ended = Arc::new(AtomicBool::new(false));
        let (mut answering, stop) = (socket.theirs.try_clone().unwrap(), Arc::clone(&ended));
        answering.set_nonblocking(true).unwrap();
        let peer = thread::spawn(move || {
            stay_on(theirs);
            while !stop.load(Ordering::Relaxed) {
                match answering.read(&mut [0]) {
                    Ok(count) => {
                        assert_eq!(count, 1);
                        let begin = Instant::now();
                        while begin.elapsed() < Duration::from_micros(20) {
                            std::hint::spin_loop();
                        }
                        answering.write_all(b"x").unwrap();
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        });
        let ask = || {
            let begin = Instant::now();
            (&**socket.handler.get_ref()).write_all(b"?").unwrap();
            socket.wait();
            begin.elapsed()
        };
        let median_with = |params| {
            context.set_poll_params(params).unwrap();
            for _ in 0..100 {
                ask();
            }
            let mut times: Vec<_> = (0..300).map(|_| ask()).collect();
            times.sort_unstable();
            times[150]
        };
        // Others' work on a machine can make any one measurement say anything.
        let is_sooner = (1..=10).any(|attempt| {
            let waiting = median_with(PollParams { max_ns: 0, ..WIDE });
            let polling = median_with(WIDE);
            println!("attempt {attempt}: waiting {waiting:?}, polling {polling:?}");
            polling < waiting
        });
        ended.store(true, Ordering::Relaxed);
        peer.join().unwrap();
        assert!(is_sooner);
        let longest = tracked(context).0.into_iter().max();
        assert!(longest >= Some(20_000), "{longest:?}");
    });
}

// SPEC P2, P6
#[test]
fn for_a_slow_peer_the_kernel_is_not_asked() {
    everywhere(WIDE, |context| {
        let socket = Socket::new(context);
        for _ in 0..10 {
            socket.hear_after(Duration::from_millis(3));
        }
        assert!(tracked(context).0.is_empty());
        // Nor by who has polled before.
        context.set_poll_params(SECOND).unwrap();
        socket.warm_up();
        let ten_ms = PollParams {
            max_ns: 10_000_000,
            ..SECOND
        };
        context.set_poll_params(ten_ms).unwrap();
        for _ in 0..2 {
            socket.hear_after(Duration::from_millis(2));
        }
        let before = tracked(context).0.len();
        socket.hear_after(Duration::from_millis(20)); // Asked for, in vain.
        assert_eq!(tracked(context).1.last(), Some(&0));
        socket.hear_after(Duration::from_millis(20));
        assert!(tracked(context).0.len() <= before + 1);
    });
}

// SPEC P4: unless it is asked for, on an IoThread as well.
#[test]
fn without_being_told_to_nobody_asks_the_kernel() {
    everywhere(PollParams::IO_THREAD, |context| {
        let socket = Socket::new(context);
        for _ in 0..20 {
            socket.hear_after(Duration::ZERO);
        }
        assert_eq!(tracked(context), (vec![], vec![]));
    });
    let io = IoThread::builder().spawn().unwrap();
    assert!(!io.context().poll_params().ask_kernel);
}

// SPEC P1, P4, N5, T1, B1, M5: nothing waits for the time to be up.
#[test]
fn whatever_comes_ends_the_asking() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [7; 4096]).unwrap();
    everywhere(SECOND, |context| {
        let (socket, other) = (Socket::new(context), Socket::new(context));
        socket.warm_up();
        let in_a_while = Duration::from_millis(20);
        assert!(other.hear_after(in_a_while) < SOON, "a descriptor");

        let ran = Arc::new(AtomicBool::new(false));
        let until_it_ran = |what| {
            let begin = Instant::now();
            while !ran.swap(false, Ordering::SeqCst) {
                context.poll(true).unwrap();
            }
            assert!(begin.elapsed() < SOON, "{what}");
        };
        let tell = Arc::clone(&ran);
        let timer = context.timer(move || tell.store(true, Ordering::SeqCst));
        timer.arm_after(in_a_while);
        until_it_ran("a timer");

        let (tell, there) = (Arc::clone(&ran), context.clone());
        let schedules = thread::spawn(move || {
            thread::sleep(in_a_while);
            there.schedule_oneshot("from elsewhere", move || tell.store(true, Ordering::SeqCst));
        });
        until_it_ran("a bottom half of another thread");
        schedules.join().unwrap();

        let (tell, path) = (Arc::clone(&ran), file.path().to_owned());
        let reads = context.spawn(move || {
            let file = File::open(path).unwrap();
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [7; 4096]);
            tell.store(true, Ordering::SeqCst);
        });
        until_it_ran("a request");
        drop(reads);

        let remote = {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (tell, there) = (Arc::clone(&ran), context.clone());
            let adds = thread::spawn(move || {
                thread::sleep(in_a_while);
                theirs.write_all(b"x").unwrap();
                let callback = move |_| tell.store(true, Ordering::SeqCst);
                (there.add_handler(ours, Interest::READ, callback), theirs)
            });
            until_it_ran("a handler of another thread");
            adds.join().unwrap()
        };
        drop(remote);
        assert!(tracked(context).0.len() > 4, "nothing was polled");
    });
}

// SPEC P1: a disk takes longer than polling would, which would only be in its way.
#[test]
fn while_requests_are_in_flight_the_kernel_is_not_asked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    everywhere(SECOND, |context| {
        let socket = Socket::new(context);
        socket.warm_up();
        let before = tracked(context).0.len();
        let path = file.path().to_owned();
        let syncs = context.spawn(move || {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            for n in 0..10 {
                file.write_all_at(&[n; 512], 0).unwrap();
                file.sync_data().unwrap();
            }
        });
        while !syncs.is_finished() {
            context.poll(true).unwrap();
        }
        let (limits, times) = tracked(context);
        assert_eq!(times.last(), Some(&0), "{times:?}");
        // Workers are asked by a callback of their own.
        if context.engine().unwrap().kind != EngineKind::Threads {
            // To open the file was none's, and may have been polled for.
            assert!(limits.len() <= before + 2, "{limits:?}");
        }
        // It begins anew with the next event.
        let grown = times.len();
        socket.hear_after(Duration::from_micros(500));
        assert_eq!(tracked(context).1[grown..], [4_000]);
    });
}

// SPEC P1, P4: one without a callback is in nobody's way, and both are seen.
#[test]
fn those_with_a_callback_are_asked_beside_it() {
    everywhere(SECOND, |context| {
        let (polled, plain) = (Socket::new(context), Socket::new(context));
        let (asked, found) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (count, takes) = (Rc::clone(&asked), Rc::clone(&found));
        let poll = move || {
            count.set(count.get() + 1);
            count.get() == 100
        };
        polled.warm_up();
        polled
            .handler
            .set_poll(poll, move || takes.set(takes.get() + 1));
        let begin = Instant::now();
        while found.get() == 0 {
            polled.hear_after(Duration::from_micros(500)); // It joins with its first event.
            context.poll(false).unwrap();
            plain.hear_after(Duration::from_micros(500));
        }
        assert_eq!(found.get(), 1);
        assert!(asked.get() >= 100);
        assert!(polled.handler.poll_stats().hits == 1);
        assert!(begin.elapsed() < PATIENCE);
        assert_eq!(plain.handler.poll_stats().hits, 0);
    });
}
