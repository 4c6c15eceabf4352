//! What does not end with its home: who is told of it, and what is said in the log.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use corio::{AioContext, Coroutine, IoThread, JoinError, JoinHandle};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn io() -> IoThread {
    IoThread::builder().spawn().unwrap()
}

/// Runs `f`, which may hang, in a thread of its own.
fn within_patience<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || tx.send(f()));
    rx.recv_timeout(PATIENCE).expect("it hangs, or panicked")
}

/// Catches every cancellation.
fn never_ends() {
    loop {
        let _ = catch_unwind(corio::park);
    }
}

/// What was logged on a thread while `f` ran there.
fn logged(f: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), f);
    std::mem::take(&mut *log.lines.lock().unwrap())
}

/// A subscriber that keeps errors, and panics after each if it shall.
#[derive(Clone, Default)]
pub(super) struct Log {
    pub(super) lines: Arc<Mutex<Vec<String>>>,
    panics: bool,
}

struct Message<'a>(&'a mut String);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").unwrap();
        }
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
        let mut line = String::new();
        event.record(&mut Message(&mut line));
        self.lines.lock().unwrap().push(line);
        assert!(!self.panics, "the subscriber panics, as the test wants");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A task's waker that counts, and panics if it shall.
struct Task {
    woken: AtomicUsize,
    panics: bool,
}

impl Task {
    fn new(panics: bool) -> Arc<Self> {
        let woken = AtomicUsize::new(0);
        Arc::new(Self { woken, panics })
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "the waker panics, as the test wants");
    }
}

fn poll<T>(handle: &mut JoinHandle<T>, task: &Arc<Task>) -> Poll<Result<T, JoinError>> {
    let waker = Waker::from(Arc::clone(task));
    Pin::new(handle).poll(&mut Context::from_waker(&waker))
}

// SPEC C0, C12: a thread, a coroutine of another home, and a task.
#[test]
fn whoever_joins_a_coroutine_that_is_leaked_is_told() {
    let (io, other) = (io(), io());
    let spawn = || io.context().spawn(never_ends);
    let by_thread = spawn();
    let (by_coroutine, mut by_task) = (spawn(), spawn());
    let task = Task::new(false);
    assert!(poll(&mut by_task, &task).is_pending());
    let joiner = other.context().spawn(move || by_coroutine.join());
    let thread = std::thread::spawn(move || by_thread.join());
    io.join();
    let leaked = |joined| matches!(joined, Err(JoinError::Leaked));
    assert!(leaked(within_patience(move || thread.join().unwrap())));
    assert!(leaked(within_patience(move || joiner.join().unwrap())));
    assert_eq!(task.woken.load(Ordering::SeqCst), 1);
    let Poll::Ready(joined) = poll(&mut by_task, &task) else {
        panic!("it was woken and there is no result");
    };
    assert!(leaked(joined));
}

// SPEC C0: the end of a home tells who joins first, runs no users' code half-way, and lets none of
// its panics out.
#[test]
fn a_home_that_leaks_ends_although_the_log_and_a_waker_panic() {
    let context = AioContext::new().unwrap();
    let log = Log {
        panics: true,
        ..Log::default()
    };
    let (first, second) = (Task::new(true), Task::new(false));
    let mut handles = Vec::new();
    let ended = tracing::subscriber::with_default(log.clone(), || {
        context.enter_home(|| {
            for task in [&first, &second] {
                let mut handle = context.spawn(never_ends);
                assert!(poll(&mut handle, task).is_pending());
                handles.push(handle);
            }
            context.poll(true).unwrap();
            5
        })
    });
    assert_eq!(ended.unwrap(), 5);
    assert_eq!(log.lines.lock().unwrap().len(), 2, "both are named");
    for task in [first, second] {
        assert_eq!(task.woken.load(Ordering::SeqCst), 1);
    }
    for handle in handles {
        assert!(matches!(handle.join(), Err(JoinError::Leaked)));
    }
    // The thread is nobody's home, and the context can have another.
    assert!(catch_unwind(|| std::mem::forget(Coroutine::new(|| ()))).is_err());
    let again = std::thread::spawn(move || {
        context.enter_home(|| {
            let handle = context.spawn(|| 7);
            while !handle.is_finished() {
                context.poll(true).unwrap();
            }
            handle.join().unwrap()
        })
    });
    assert_eq!(again.join().unwrap().unwrap(), 7);
}

// SPEC C0, C12: the thread's count of panics cannot be taken back, so it is said.
#[test]
fn a_leak_in_the_middle_of_a_panic_is_named_as_what_ends_cancellation() {
    // A thread of its own, as it is not good for much afterwards.
    let (first, second) = within_patience(|| {
        let first = logged(|| {
            corio::home(|| {
                let co = Coroutine::new(|| {
                    let _slow = OnDrop(|| {
                        loop {
                            corio::suspend();
                        }
                    });
                    panic!("as the test wants");
                });
                co.enter();
                std::mem::forget(co);
            });
        });
        let second = logged(|| {
            corio::home(|| {
                let co = Coroutine::new(|| {
                    loop {
                        corio::suspend();
                    }
                });
                co.enter();
                std::mem::forget(co);
            });
        });
        (first, second)
    });
    let [leak, panicking] = &first[..] else {
        panic!("{first:?}");
    };
    assert!(leak.contains("did not end with its home"), "{leak}");
    assert!(panicking.contains("in the middle of unwinding a panic"));
    assert!(panicking.contains("leaks.rs"), "it is named: {panicking}");
    let [leak] = &second[..] else {
        panic!("{second:?}");
    };
    assert!(leak.contains("its thread unwinds a panic"), "{leak}");
}

// SPEC C12: what tells a task that its coroutine was cancelled runs while the coroutine unwinds.
#[test]
fn a_waker_that_panics_does_not_abort_a_cancellation() {
    let context = AioContext::new().unwrap();
    let task = Task::new(true);
    let unwound = Rc::new(Cell::new(false));
    let mut parked = context.spawn(corio::park);
    assert!(poll(&mut parked, &task).is_pending());
    context
        .enter_home(|| {
            let note = Rc::clone(&unwound);
            drop(corio::spawn_local(move || {
                let _note = OnDrop(|| note.set(true));
                corio::park();
            }));
            context.poll(true).unwrap();
            assert!(!parked.is_finished());
        })
        .unwrap();
    assert_eq!(task.woken.load(Ordering::SeqCst), 1);
    assert!(unwound.get());
    assert!(matches!(parked.join(), Err(JoinError::Cancelled)));
    // One that never begins, whose context goes.
    let mut queued = context.spawn(|| ());
    assert!(poll(&mut queued, &task).is_pending());
    drop(context);
    assert_eq!(task.woken.load(Ordering::SeqCst), 2);
    assert!(matches!(queued.join(), Err(JoinError::Cancelled)));
}

// SPEC C8
#[test]
fn a_panic_is_reported_exactly_if_nobody_takes_it() {
    let context = AioContext::new().unwrap();
    let in_home = |f: &dyn Fn()| logged(|| context.enter_home(f).unwrap());
    let turn = || {
        for _ in 0..3 {
            context.poll(false).unwrap();
        }
    };
    let panics = || corio::spawn(|| panic!("as the test wants"));
    let before = in_home(&|| {
        drop(panics());
        turn();
    });
    let after = in_home(&|| {
        let handle = panics();
        turn();
        assert!(handle.is_finished());
        drop(handle);
    });
    for lines in [before, after] {
        assert_eq!(lines, ["a coroutine that nobody joins panicked"]);
    }
    let taken = in_home(&|| {
        let handle = panics();
        turn();
        let joined = handle.join();
        assert!(matches!(joined, Err(JoinError::Panicked(_))));
        drop(corio::spawn(|| ()));
        turn();
    });
    assert_eq!(taken, [""; 0]);
}

// SPEC C10, I1
#[test]
fn what_is_spawned_on_the_context_of_an_io_thread_that_has_ended_is_cancelled() {
    let io = io();
    let context = io.context().clone();
    io.join();
    let dropped = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&dropped);
    let captured = OnDrop(move || note.store(true, Ordering::SeqCst));
    let handle = context.spawn(move || drop(captured));
    assert!(handle.is_finished() && dropped.load(Ordering::SeqCst));
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    let other = context.clone();
    let run = within_patience(move || catch_unwind(AssertUnwindSafe(|| other.run(|| 1))));
    let text = run.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("its context ended"), "{text}");
    // A oneshot is no spawn: it waits, and runs if somebody makes himself home.
    let (tx, rx) = mpsc::channel();
    context.schedule_oneshot("late", move || tx.send(()).unwrap());
    let other = context.clone();
    let ran = context.enter_home(|| {
        let remote = std::thread::spawn(move || other.spawn(|| 2));
        let remote = remote.join().unwrap();
        while !remote.is_finished() {
            context.poll(true).unwrap();
        }
        remote.join().unwrap()
    });
    assert_eq!(ran.unwrap(), 2);
    rx.try_recv().unwrap();
}

// SPEC C10, I1: whoever spawns at any moment of an IoThread's end learns what became of it.
#[test]
fn no_spawn_is_forgotten_when_an_io_thread_ends() {
    for _ in 0..50 {
        let io = io();
        let context = io.context().clone();
        let (started, start) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let spawner = std::thread::spawn(move || {
            // Some on their way at any time, and not more than the thread can follow.
            let mut handles = VecDeque::new();
            while !over.load(Ordering::SeqCst) {
                handles.push_back(context.spawn(|| ()));
                if handles.len() > 16 {
                    let _ = handles.pop_front().unwrap().join();
                    let _ = started.send(());
                }
            }
            for handle in handles {
                let _ = handle.join();
            }
            context.spawn(|| ()).join()
        });
        start.recv().unwrap();
        io.join();
        ended.store(true, Ordering::SeqCst);
        let last = within_patience(move || spawner.join().unwrap());
        assert!(matches!(last, Err(JoinError::Cancelled)));
    }
}
