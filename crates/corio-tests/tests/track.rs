//! What tracking tells of coroutines, contexts, locks, bottom halves and requests.
//!
//! Tracking is a matter of the whole process, so every test switches it on and none switches it
//! off. A test finds its own events by its threads' names and its contexts' numbers, which no other
//! has, and its coroutines by the line that spawned them.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corio::context::{MonitorChoice, MonitorKind};
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio::sync::{Mutex, Queue, ReadGuard, RwLock, Semaphore, WriteGuard};
use corio::track::{self, Event};
use corio::{AioContext, CoWaker, Coroutine, IoThread, JoinHandle};

const MONITORS: [MonitorChoice; 3] = MonitorChoice::ALL;

/// Where a coroutine was spawned: by this `Told::id_at` finds it.
type Place = &'static Location<'static>;

#[track_caller]
fn spawn_on<T: Send + 'static>(
    context: &AioContext,
    f: impl FnOnce() -> T + Send + 'static,
) -> (JoinHandle<T>, Place) {
    (context.spawn(f), Location::caller())
}

/// As `spawn_on`, in the home that this thread is.
#[track_caller]
fn spawn_here<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> (JoinHandle<T>, Place) {
    (corio::spawn(f), Location::caller())
}

/// A name for a thread that no other has.
fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("tracked{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// False, and said aloud in the form that `cargo xtask test` counts, if the context did not get
/// the monitor that it asked for.
fn has_monitor(context: &AioContext, choice: MonitorChoice) -> bool {
    let info = context.monitor().unwrap();
    let got = choice != MonitorChoice::IoUring || info.kind == MonitorKind::IoUring;
    if !got {
        println!("SKIPPED: tracking on the io_uring monitor: {}", info.reason);
    }
    got
}

/// An IoThread that is tracked.
struct Tracked {
    io: IoThread,
    name: String,
}

impl Tracked {
    fn with(monitor: MonitorChoice, engine: EngineChoice) -> Option<Tracked> {
        track::enable();
        let name = fresh_name();
        let builder = IoThread::builder().name(&name).monitor(monitor);
        let io = builder.engine(engine).spawn().unwrap();
        has_monitor(io.context(), monitor).then_some(Tracked { io, name })
    }

    fn context(&self) -> &AioContext {
        self.io.context()
    }

    /// Returns when all that was queued before has run until it parked.
    fn settle(&self) {
        self.context().spawn(|| ()).join().unwrap();
    }

    /// Ends the thread, so that nothing is on its way any more, and gives what it has told.
    fn end(self) -> Told {
        let context = self.context().id();
        self.io.join();
        Told {
            context,
            events: told_by(&self.name),
            name: self.name,
        }
    }
}

/// Runs a test on each monitor.
fn on_each_monitor(test: impl Fn(Tracked)) {
    for monitor in MONITORS {
        if let Some(tracked) = Tracked::with(monitor, EngineChoice::Auto) {
            test(tracked);
        }
    }
}

/// What the thread of that name has told, oldest first.
fn told_by(name: &str) -> Vec<Event> {
    let mut threads = track::snapshot();
    threads.retain(|thread| thread.thread_name == name);
    let [thread] = threads.as_slice() else {
        panic!("{} threads `{name}` have told something", threads.len());
    };
    assert_eq!(thread.lost, 0, "the test tells more than a ring holds");
    assert!(thread.records.is_sorted_by_key(|record| record.time_ns));
    thread.records.iter().map(|record| record.event).collect()
}

/// What a context's home thread has told.
struct Told {
    name: String,
    context: u64,
    events: Vec<Event>,
}

impl Told {
    /// The coroutine that was spawned at `place`, and who spawned it.
    fn spawned_at(&self, place: Place) -> (u64, u64) {
        let scheduled = self.events.iter().filter_map(|event| match *event {
            Event::Scheduled { coroutine, by, at } if at == Some(place) => Some((coroutine, by)),
            _ => None,
        });
        let [one] = scheduled.collect::<Vec<_>>()[..] else {
            panic!("not one was spawned at {place}: {:#?}", self.events);
        };
        one
    }

    fn id_at(&self, place: Place) -> u64 {
        self.spawned_at(place).0
    }

    /// What was done to any of `coroutines`, and what they waited for.
    fn about(&self, coroutines: &[u64]) -> Vec<Event> {
        let mut events = self.events.clone();
        events.retain(|event| subject(event).is_some_and(|co| coroutines.contains(&co)));
        events
    }

    /// As `about`, without what makes and leaves a coroutine.
    fn course_of(&self, coroutines: &[u64]) -> Vec<Event> {
        let mut events = self.about(coroutines);
        events.retain(|event| {
            !matches!(
                event,
                Event::Created { .. }
                    | Event::Scheduled { .. }
                    | Event::Yielded { .. }
                    | Event::Ended { .. }
            )
        });
        events
    }

    /// What other threads have told of one of this context's coroutines.
    fn elsewhere_about(&self, coroutine: u64) -> Vec<Event> {
        let threads = track::snapshot().into_iter();
        let others = threads.filter(|thread| thread.thread_name != self.name);
        let events = others.flat_map(|thread| thread.records).map(|r| r.event);
        events
            .filter(|event| subject(event) == Some(coroutine))
            .collect()
    }

    /// The loop enters the coroutine.
    fn entered(&self, to: u64) -> Event {
        Event::Entered {
            from: 0,
            to,
            context: self.context,
        }
    }

    fn woken(&self, coroutine: u64, by: u64) -> Event {
        Event::Woken {
            coroutine,
            by,
            context: self.context,
        }
    }
}

/// The coroutine that it happens to.
fn subject(event: &Event) -> Option<u64> {
    match *event {
        Event::Created { coroutine, .. }
        | Event::Scheduled { coroutine, .. }
        | Event::Yielded { coroutine, .. }
        | Event::Ended { coroutine, .. }
        | Event::Woken { coroutine, .. }
        | Event::RequestSubmitted { coroutine, .. }
        | Event::RequestCompleted { coroutine, .. }
        | Event::LockWait { coroutine, .. }
        | Event::Entered { to: coroutine, .. }
        | Event::LockHandOff { to: coroutine, .. } => Some(coroutine),
        _ => None,
    }
}

// SPEC K1
#[test]
fn a_spawned_coroutine_is_followed_from_its_creation_to_its_end() {
    on_each_monitor(|tracked| {
        let (parent, parent_place) = spawn_on(tracked.context(), || {
            let (child, place) = spawn_here(|| ());
            child.join().unwrap();
            place
        });
        let child_place = parent.join().unwrap();
        let told = tracked.end();
        let (parent, child) = (told.id_at(parent_place), told.id_at(child_place));
        assert!(parent != 0 && child != 0 && parent != child);
        let created = |coroutine, by| Event::Created {
            coroutine,
            by,
            stack_bytes: 256 << 10,
        };
        let scheduled = |coroutine, by, place| Event::Scheduled {
            coroutine,
            by,
            at: Some(place),
        };
        let yielded = |coroutine| Event::Yielded { coroutine, to: 0 };
        let ended = |coroutine| Event::Ended { coroutine, to: 0 };
        let expected = [
            created(parent, 0),
            scheduled(parent, 0, parent_place),
            told.entered(parent),
            created(child, parent),
            scheduled(child, parent, child_place),
            yielded(parent), // In `join`.
            told.entered(child),
            told.woken(parent, child),
            ended(child),
            told.entered(parent),
            ended(parent),
        ];
        assert_eq!(told.about(&[parent, child]), expected);
    });
}

/// Asserts that each coroutine that was entered gave control back to whoever had entered it, with
/// only whole runs of others in between.
fn assert_runs_nest(events: &[Event]) {
    let mut running = vec![0]; // The thread itself.
    for event in events {
        match *event {
            Event::Entered { from, to, .. } => {
                assert_eq!(running.last(), Some(&from), "{event:?} in {events:#?}");
                running.push(to);
            }
            Event::Yielded { coroutine, to } | Event::Ended { coroutine, to } => {
                assert_eq!(running.pop(), Some(coroutine), "{event:?} in {events:#?}");
                assert_eq!(running.last(), Some(&to), "{event:?} in {events:#?}");
            }
            _ => {}
        }
    }
    assert_eq!(running, [0], "somebody did not come back: {events:#?}");
}

// SPEC K1
#[test]
fn every_run_ends_with_a_yield_or_an_end_that_names_who_goes_on() {
    on_each_monitor(|tracked| {
        let (main, main_place) = spawn_on(tracked.context(), || {
            let nested = Coroutine::new(|| {
                corio::suspend();
                Coroutine::new(|| ()).enter();
            });
            nested.enter();
            nested.enter();
            let panics = Coroutine::new(|| panic!("expected by the test"));
            assert!(catch_unwind(AssertUnwindSafe(|| panics.enter())).is_err());
            drop(Coroutine::new(corio::suspend)); // Never entered.
            let unwound = Coroutine::new(corio::suspend);
            unwound.enter();
            drop(unwound); // Entered once more, and unwinds.
            let sleeper = corio::spawn(|| corio::time::sleep(Duration::from_millis(1)));
            corio::yield_now();
            sleeper.join().unwrap();
            // Unwinds when the home ends.
            let (_, stays) = spawn_here(|| corio::time::sleep(Duration::from_secs(3600)));
            corio::yield_now();
            stays
        });
        let stays = main.join().unwrap();
        let told = tracked.end();
        assert_runs_nest(&told.events);
        let entered_by = |who| {
            let entered = told.events.iter();
            entered
                .filter(|event| matches!(event, Event::Entered { from, .. } if *from == who))
                .count()
        };
        assert_eq!(entered_by(told.id_at(main_place)), 5);
        let stays = told.id_at(stays);
        let runs = told.about(&[stays]);
        let entered = runs.iter().filter(|&&event| event == told.entered(stays));
        assert_eq!(entered.count(), 2, "it begins, and unwinds: {runs:#?}");
    });
}

// SPEC K1
#[test]
fn spawning_from_another_thread_names_the_spawner() {
    on_each_monitor(|tracked| {
        let other = Tracked::with(MonitorChoice::Epoll, EngineChoice::Auto).unwrap();
        let context = other.context().clone();
        let (spawner, spawner_place) = spawn_on(tracked.context(), move || {
            let (child, place) = spawn_on(&context, corio::yield_now);
            child.join().unwrap();
            place
        });
        let child_place = spawner.join().unwrap();
        let (told, told_other) = (tracked.end(), other.end());
        let (spawner, by) = told.spawned_at(spawner_place);
        assert_eq!(by, 0, "a plain thread spawned it");
        let (child, by) = told_other.spawned_at(child_place);
        assert_eq!(by, spawner);
        assert!(
            told_other
                .about(&[child])
                .contains(&told_other.entered(child))
        );
    });
}

// SPEC K1
#[test]
fn a_wake_is_told_with_the_waker_and_the_context_of_the_woken() {
    on_each_monitor(|tracked| {
        let (tx, rx) = mpsc::channel();
        let (parked, parked_place) = spawn_on(tracked.context(), move || {
            tx.send(CoWaker::current().unwrap()).unwrap();
            (0..3).for_each(|_| corio::park());
        });
        let waker = rx.recv().unwrap();
        tracked.settle();
        waker.wake(); // From a plain thread.
        tracked.settle();
        // From a coroutine of the same home.
        let (near, near_place) = spawn_on(tracked.context(), move || waker.wake());
        near.join().unwrap();
        tracked.settle();
        // From a coroutine of another.
        let other = Tracked::with(MonitorChoice::Epoll, EngineChoice::Auto).unwrap();
        let (far, far_place) = spawn_on(other.context(), move || waker.wake());
        far.join().unwrap();
        parked.join().unwrap();

        let (told, told_other) = (tracked.end(), other.end());
        let (parked, near) = (told.id_at(parked_place), told.id_at(near_place));
        let far = told_other.id_at(far_place);
        let expected = [
            told.entered(parked),
            told.entered(parked), // Woken from the plain thread.
            told.entered(near),
            told.woken(parked, near),
            told.entered(parked),
            told.entered(parked), // Woken from the other home.
        ];
        assert_eq!(told.course_of(&[parked, near]), expected);
        let elsewhere: HashSet<_> = told
            .elsewhere_about(parked)
            .iter()
            .map(|event| format!("{event:?}"))
            .collect();
        let expected = [0, far].map(|by| format!("{:?}", told.woken(parked, by)));
        assert_eq!(elsewhere, HashSet::from(expected));
    });
}

// SPEC K1
#[test]
fn a_timer_wakes_in_the_name_of_nobody() {
    on_each_monitor(|tracked| {
        let (sleeper, place) = spawn_on(tracked.context(), || {
            let waker = CoWaker::current().unwrap();
            let context = AioContext::current().unwrap();
            let timer = context.timer(move || waker.wake());
            timer.arm_after(Duration::ZERO);
            corio::park();
        });
        sleeper.join().unwrap();
        let told = tracked.end();
        let sleeper = told.id_at(place);
        let entered = told.entered(sleeper);
        let expected = [entered, told.woken(sleeper, 0), entered];
        assert_eq!(told.course_of(&[sleeper]), expected);
    });
}

// SPEC K1
#[test]
fn a_run_names_the_context_whose_home_the_thread_is() {
    track::enable();
    let name = fresh_name();
    let body = || {
        let contexts = [(), ()].map(|()| {
            let context = AioContext::new().unwrap();
            context
                .enter_home(|| Coroutine::new(|| ()).enter())
                .unwrap();
            context.id()
        });
        corio::home(|| Coroutine::new(|| ()).enter());
        contexts
    };
    let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
    let [one, two] = thread.unwrap().join().unwrap();
    let contexts = told_by(&name).into_iter().filter_map(|event| match event {
        Event::Entered { context, .. } => Some(context),
        _ => None,
    });
    assert_eq!(contexts.collect::<Vec<_>>(), [one, two, 0]);
    assert!(one != 0 && two != 0 && one != two, "{one} and {two}");
}

// SPEC K1, B8
#[test]
fn each_bottom_half_has_a_number_of_its_own_and_its_name() {
    track::enable();
    for monitor in MONITORS {
        let builder = AioContext::builder().monitor(monitor);
        let context = builder.build().unwrap();
        let [one, two] = [(), ()].map(|()| context.bottom_half("same name", || ()));
        context
            .enter_home(|| {
                let turn = || context.poll(false).unwrap();
                one.schedule();
                two.schedule();
                turn();
                one.schedule();
                turn();
                for _ in 0..2 {
                    context.schedule_oneshot("same name", || ());
                    turn();
                }
            })
            .unwrap();
        if !has_monitor(&context, monitor) {
            continue;
        }
        let events = track::snapshot().into_iter().flat_map(|t| t.records);
        let runs = events.filter_map(|record| match record.event {
            Event::BottomHalfRun {
                bottom_half,
                context: of,
                name,
            } if of == context.id() => {
                assert_eq!(name, "same name");
                Some(bottom_half)
            }
            _ => None,
        });
        let runs: Vec<u64> = runs.collect();
        let [one, two, again, once, another] = runs[..] else {
            panic!("five runs were due: {runs:?}");
        };
        assert_eq!(one, again);
        let distinct = HashSet::from([0, one, two, once, another]);
        assert_eq!(distinct.len(), 5, "{runs:?}");
    }
}

// SPEC K1
#[test]
fn requests_are_told_with_descriptor_and_result_on_each_engine() {
    for monitor in MONITORS {
        for (engine, kind) in [
            (EngineChoice::IoUring, EngineKind::IoUring),
            (EngineChoice::Threads, EngineKind::Threads),
        ] {
            let Some(tracked) = Tracked::with(monitor, engine) else {
                continue;
            };
            let mut scratch = tempfile::tempfile().unwrap();
            scratch.write_all(&[7; 100]).unwrap();
            let unreadable = std::fs::OpenOptions::new().write(true).open("/dev/null");
            let files = [scratch, unreadable.unwrap()].map(|f| File::from(OwnedFd::from(f)));
            let descriptors = files.each_ref().map(|file| {
                let descriptor = file.as_fd().as_raw_fd();
                u64::try_from(descriptor).unwrap()
            });
            let (requests, place) = spawn_on(tracked.context(), move || {
                let mut buf = [0; 64];
                assert_eq!(files[0].read_at(&mut buf, 0).unwrap(), 64);
                files[0].sync_data().unwrap();
                let refused = files[1].read_at(&mut buf, 0).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
            });
            requests.join().unwrap();
            let info = tracked.context().engine().unwrap();
            if info.kind != kind {
                println!("SKIPPED: tracking on the io_uring engine: {}", info.reason);
                continue;
            }
            let told = tracked.end();
            let expected = [
                (descriptors[0], 64),
                (descriptors[0], 0),
                (descriptors[1], -i64::from(libc::EBADF)),
            ];
            assert_requests(&told, told.id_at(place), kind, &expected);
        }
    }
}

/// Asserts that the coroutine's requests were these, each a descriptor and a result.
fn assert_requests(told: &Told, coroutine: u64, kind: EngineKind, expected: &[(u64, i64)]) {
    let course = told.course_of(&[coroutine]);
    let mut requests = course.clone();
    requests.retain(|event| {
        matches!(
            event,
            Event::RequestSubmitted { .. } | Event::RequestCompleted { .. }
        )
    });
    assert_eq!(requests.len(), 2 * expected.len(), "{requests:#?}");
    for (pair, &(descriptor, result)) in requests.chunks(2).zip(expected) {
        let Event::RequestSubmitted { request, .. } = pair[0] else {
            panic!("a completion comes first: {requests:#?}");
        };
        let submitted = Event::RequestSubmitted {
            request,
            coroutine,
            descriptor,
        };
        let completed = Event::RequestCompleted {
            request,
            coroutine,
            result,
        };
        assert_eq!(pair, [submitted, completed]);
        assert_ne!(request, 0);
    }
    let woken = told.woken(coroutine, 0);
    if kind == EngineKind::IoUring {
        // A completion enters the coroutine at once.
        let wakes: Vec<_> = course.split(|&event| event == woken).skip(1).collect();
        assert_eq!(wakes.len(), expected.len(), "{course:#?}");
        assert!(wakes.iter().all(|then| then[0] == told.entered(coroutine)));
    } else {
        // A worker may be done before the coroutine has parked; then there is nobody to wake.
        let wakes = told.elsewhere_about(coroutine);
        assert!(wakes.iter().all(|&event| event == woken), "{wakes:#?}");
        assert!(wakes.len() <= expected.len(), "{wakes:#?}");
    }
}

/// Calls what it is given while it holds a lock.
type Hold = dyn Fn(&dyn Fn()) + Send + Sync;

/// Asserts what is told when a coroutine gives a lock up for which another of its home waits.
fn assert_hand_off_is_told(lock: impl Fn() -> Arc<Hold>) {
    on_each_monitor(|tracked| {
        let hold = lock();
        let (holder, holder_place) = spawn_on(tracked.context(), move || {
            let waiting = Cell::new(None);
            hold(&|| {
                let hold = Arc::clone(&hold);
                waiting.set(Some(spawn_here(move || hold(&|| ()))));
                corio::yield_now(); // It comes to its wait.
            });
            let (waiter, place) = waiting.take().unwrap();
            waiter.join().unwrap();
            place
        });
        let waiter_place = holder.join().unwrap();
        let told = tracked.end();
        let (holder, waiter) = (told.id_at(holder_place), told.id_at(waiter_place));
        let course = told.course_of(&[waiter]);
        let lock = course.iter().find_map(|event| match event {
            Event::LockWait { lock, .. } => Some(*lock),
            _ => None,
        });
        let lock = lock.unwrap_or_default();
        assert_ne!(lock, 0, "{course:#?}");
        let expected = [
            told.entered(waiter),
            Event::LockWait {
                lock,
                coroutine: waiter,
            },
            Event::LockHandOff {
                lock,
                from: holder,
                to: waiter,
            },
            told.woken(waiter, holder),
            told.entered(waiter),
        ];
        assert_eq!(course, expected);
    });
}

// SPEC K1
#[test]
fn a_mutex_tells_who_waits_and_who_hands_it_to_whom() {
    assert_hand_off_is_told(|| {
        let mutex = Mutex::new(());
        Arc::new(move |body| {
            let _guard = mutex.lock();
            body();
        })
    });
}

// SPEC K1
#[test]
fn a_semaphore_tells_who_waits_and_who_hands_permits_to_whom() {
    assert_hand_off_is_told(|| {
        let semaphore = Semaphore::new(2);
        Arc::new(move |body| {
            let _permit = semaphore.acquire(2);
            body();
        })
    });
}

// SPEC K1
#[test]
fn a_reader_writer_lock_tells_who_waits_and_who_hands_it_to_whom() {
    assert_hand_off_is_told(|| {
        let lock = RwLock::new(());
        Arc::new(move |body| {
            let _guard = lock.write();
            body();
        })
    });
    assert_hand_off_is_told(|| {
        let lock = RwLock::new(());
        Arc::new(move |body| {
            let guard = ReadGuard::upgrade(lock.read());
            body();
            drop(WriteGuard::downgrade(guard));
        })
    });
}

// SPEC K1
#[test]
fn permits_handed_to_several_are_told_for_each() {
    on_each_monitor(|tracked| {
        let semaphore = Arc::new(Semaphore::new(3));
        let permit = semaphore.acquire(3); // A plain thread's.
        let waiters = [1, 2, 3].map(|amount| {
            let semaphore = Arc::clone(&semaphore);
            let wait = move || drop(semaphore.acquire(amount));
            (tracked.context().spawn(wait), amount)
        });
        tracked.settle();
        drop(permit);
        for (waiter, _) in waiters {
            waiter.join().unwrap();
        }
        let told = tracked.end();
        let waits = told.events.iter().filter_map(|event| match *event {
            Event::LockWait { lock, coroutine } => Some((lock, coroutine)),
            _ => None,
        });
        let [(lock, one), (_, two), (_, three)] = waits.collect::<Vec<_>>()[..] else {
            panic!("three coroutines wait: {:#?}", told.events);
        };
        let hand_off = |from, to| Event::LockHandOff { lock, from, to };
        for waiter in [one, two] {
            let expected = [hand_off(0, waiter), told.woken(waiter, 0)];
            assert_eq!(told.elsewhere_about(waiter), expected);
        }
        // The third wants all, which the second is the last to give back.
        assert!(told.about(&[three]).contains(&hand_off(two, three)));
    });
}

// SPEC K1
#[test]
fn a_queue_tells_who_waits_and_hands_nothing_on() {
    on_each_monitor(|tracked| {
        let queue = Arc::new(Queue::new());
        let (waiter, waiter_place) = spawn_on(tracked.context(), {
            let queue = Arc::clone(&queue);
            move || queue.wait()
        });
        let (waker, waker_place) = spawn_on(tracked.context(), move || queue.wake_one());
        assert!(waker.join().unwrap());
        waiter.join().unwrap();
        let told = tracked.end();
        let (waiter, waker) = (told.id_at(waiter_place), told.id_at(waker_place));
        let course = told.course_of(&[waiter]);
        let Some(&wait @ Event::LockWait { lock, coroutine }) = course.get(1) else {
            panic!("no wait is told: {course:#?}");
        };
        assert!(lock != 0 && coroutine == waiter);
        let entered = told.entered(waiter);
        assert_eq!(course, [entered, wait, told.woken(waiter, waker), entered]);
    });
}
