//! Programs that cancel, leak and unwind coroutines where it hurts: in a lock's line, in one
//! another's destructors, and while their home ends.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corio::sync::{Mutex, Queue};
use corio::{AioContext, Coroutine, IoThread, JoinError, JoinHandle};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// For those who are cancelled long before.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

type Saved = Rc<RefCell<Option<Box<dyn Any + Send>>>>;

/// Throws a payload that was caught elsewhere, when it is dropped.
fn throws_again(saved: &Saved) -> OnDrop<impl FnMut() + 'static> {
    let saved = Rc::clone(saved);
    OnDrop(move || {
        if let Some(payload) = saved.take() {
            resume_unwind(payload);
        }
    })
}

/// Turns the loop as often as anything that was woken can need.
fn turns(context: &AioContext) {
    for _ in 0..10 {
        context.poll(false).unwrap();
    }
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(|| ()).join().unwrap();
}

/// Waits for the result of `f`, which runs in a thread of its own as it may hang.
fn within_patience<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || tx.send(f()));
    rx.recv_timeout(PATIENCE).ok()
}

/// A mutex that is held, and `waiters` coroutines that wait for it and count when they get it.
fn line(
    mutex: &Arc<Mutex<()>>,
    served: &Rc<Cell<usize>>,
    waiters: usize,
) -> Vec<Option<Coroutine>> {
    let waiter = || {
        let (mutex, served) = (Arc::clone(mutex), Rc::clone(served));
        let waiter = Coroutine::new(move || {
            let _guard = mutex.lock();
            served.set(served.get() + 1);
        });
        waiter.enter();
        Some(waiter)
    };
    std::iter::repeat_with(waiter).take(waiters).collect()
}

// SPEC L1, C12: the second withdrawal finds nothing pushed, and a line that is not empty.
#[test]
fn a_mutex_waiter_stays_in_line_when_several_others_are_cancelled() {
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            let (mutex, served) = (Arc::new(Mutex::new(())), Rc::default());
            let guard = mutex.try_lock().unwrap();
            let mut waiters = line(&mutex, &served, 4);
            for i in [1, 2, 3] {
                waiters[i] = None;
            }
            drop(guard);
            turns(&context);
            assert_eq!(served.get(), 1, "the one that is left gets the mutex");
            assert!(mutex.try_lock().is_some());
        })
        .unwrap();
}

// SPEC L1, C12
#[test]
fn unlocking_finds_who_came_after_several_were_cancelled() {
    let served = within_patience(|| {
        let context = AioContext::new().unwrap();
        let home = context.enter_home(|| {
            let (mutex, served) = (Arc::new(Mutex::new(())), Rc::default());
            let guard = mutex.try_lock().unwrap();
            let mut waiters = line(&mutex, &served, 4);
            for i in [1, 0, 3] {
                waiters[i] = None;
            }
            let _late = line(&mutex, &served, 1);
            drop(guard);
            turns(&context);
            served.get()
        });
        home.unwrap()
    });
    assert_eq!(served, Some(2));
}

// SPEC L1, C12
#[test]
fn mutex_waiters_of_one_thread_get_it_when_another_threads_are_cancelled() {
    let io = || IoThread::builder().spawn().unwrap();
    let (staying, leaving) = (io(), io());
    let mutex = Arc::new(Mutex::new(0));
    let guard = mutex.lock();
    let mut kept = Vec::new();
    for i in 0..7 {
        let io = if i % 2 == 0 { &staying } else { &leaving };
        let mutex = Arc::clone(&mutex);
        let handle = io.context().spawn(move || *mutex.lock() += 1);
        settle(io);
        if i % 2 == 0 {
            kept.push(handle);
        }
    }
    leaving.join();
    drop(guard);
    let joined = within_patience(|| kept.into_iter().map(JoinHandle::join).collect::<Vec<_>>());
    let Some(joined) = joined else {
        std::mem::forget(staying); // Its end would wait for who is lost in the line.
        panic!("a waiter of the other thread is lost");
    };
    assert!(joined.iter().all(Result::is_ok));
    assert_eq!(*mutex.lock(), 4);
}

// SPEC C0: nothing ends a home early, or its thread would have a pointer to one that is gone.
#[test]
fn a_cancellation_that_is_thrown_again_does_not_cut_a_home_short() {
    let unwound = Rc::new(Cell::new(false));
    let saved = Saved::default();
    let (note, keep) = (Rc::clone(&unwound), Rc::clone(&saved));
    corio::home(|| {
        let older = Coroutine::new(move || {
            let _note = OnDrop(|| note.set(true));
            corio::suspend();
        });
        older.enter();
        let throws = throws_again(&saved);
        let never = Coroutine::new(move || drop(throws));
        let catcher = Coroutine::new(move || {
            *keep.borrow_mut() = Some(catch_unwind(corio::suspend).unwrap_err());
        });
        catcher.enter();
        std::mem::forget((older, never, catcher));
    });
    assert!(saved.borrow().is_none(), "it was thrown");
    assert!(unwound.get(), "what is older is unwound all the same");
    let outside = catch_unwind(|| std::mem::forget(Coroutine::new(|| ())));
    assert!(outside.is_err(), "the thread has no home any more");
}

// SPEC C10, A1: the same in a context's home, whose next home is another thread.
#[test]
fn what_a_home_leaves_behind_does_not_run_in_the_next_one() {
    let context = AioContext::new().unwrap();
    let threads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (other, note) = (context.clone(), Arc::clone(&threads));
    let first = std::thread::spawn(move || {
        let saved = Saved::default();
        let throws = throws_again(&saved);
        other.enter_home(|| {
            std::mem::forget(Coroutine::new(move || drop(throws)));
            drop(corio::spawn_local(move || {
                note.lock().unwrap().push(std::thread::current().id());
                *saved.borrow_mut() = Some(catch_unwind(corio::park).unwrap_err());
                let _ = catch_unwind(corio::yield_now);
                note.lock().unwrap().push(std::thread::current().id());
            }));
            other.poll(true).unwrap();
        })
    });
    first.join().unwrap().unwrap();
    context.enter_home(|| turns(&context)).unwrap();
    let threads = threads.lock().unwrap();
    assert!(!threads.is_empty());
    assert!(
        threads.windows(2).all(|pair| pair[0] == pair[1]),
        "it changed threads: {threads:?}"
    );
}

// SPEC S1: the inbox of a home that has ended does not touch what the next one queues.
#[test]
fn what_is_spawned_in_a_home_runs_although_the_last_one_left_its_queue_full() {
    let context = AioContext::new().unwrap();
    let slow = context.bottom_half("slow", || {
        // It takes more time than the home's end has, and keeps what is behind it from running.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(5200) {
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("as the test wants");
    });
    context
        .enter_home(|| {
            drop(corio::spawn_local(|| {
                loop {
                    let _ = catch_unwind(corio::park);
                }
            }));
            context.poll(true).unwrap();
            slow.schedule();
            drop(corio::spawn_local(|| ())); // Queued behind it.
        })
        .unwrap();
    context
        .enter_home(|| {
            // They get the stacks, and so the links, of those that were queued.
            let place = Coroutine::new(|| ());
            let first = corio::spawn_local(|| ());
            drop(place);
            let later = [corio::spawn_local(|| ()), corio::spawn_local(|| ())];
            turns(&context);
            assert!(first.is_finished());
            assert!(later.iter().all(|handle| handle.is_finished()));
        })
        .unwrap();
}

// SPEC C1
#[test]
fn a_closure_without_size_keeps_its_alignment() {
    #[repr(align(4096))]
    struct Page;
    corio::home(|| {
        let page = Page;
        let co = Coroutine::new(move || {
            let page = page;
            assert!((&raw const page).addr().is_multiple_of(4096));
        });
        co.enter();
        assert!(co.is_done());
    });
}

// SPEC C12: a destructor may park, and waits for others that are to end as well.
#[test]
fn a_destructor_that_waits_for_a_lock_does_not_keep_its_holder_from_being_cancelled() {
    let io = IoThread::builder().spawn().unwrap();
    let mutex = Arc::new(Mutex::new(()));
    let own = Arc::clone(&mutex);
    let holder = io.context().spawn(move || {
        let _guard = own.lock();
        corio::time::sleep(FOR_EVER);
    });
    settle(&io);
    let locks = io.context().spawn(move || {
        let _deregisters = OnDrop(|| drop(mutex.lock()));
        corio::time::sleep(FOR_EVER);
    });
    settle(&io);
    io.join();
    assert!(holder.is_finished() && locks.is_finished(), "they leaked");
    for handle in [holder, locks] {
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    }
}

// SPEC C12
#[test]
fn a_destructor_that_joins_an_older_coroutine_sees_it_cancelled() {
    let io = IoThread::builder().spawn().unwrap();
    let child = io.context().spawn(|| corio::time::sleep(FOR_EVER));
    settle(&io);
    let (tx, rx) = mpsc::channel();
    let parent = io.context().spawn(move || {
        let mut child = Some(child);
        let _joins = OnDrop(|| {
            let child = child.take().unwrap();
            tx.send(child.join()).unwrap();
        });
        corio::time::sleep(FOR_EVER);
    });
    settle(&io);
    io.join();
    assert!(parent.is_finished());
    let joined = rx.try_recv().expect("the parent leaked");
    assert!(matches!(joined, Err(JoinError::Cancelled)));
}

// SPEC S6: a waker that still holds the inbox of a home that has ended would drop the context, and
// with it what is queued there, under the lock under which it wakes.
#[test]
fn a_wake_never_drops_the_context_under_its_own_lock() {
    let rounds = within_patience(|| {
        let begin = Instant::now();
        let mut rounds = 0;
        while rounds < 3000 && begin.elapsed() < PATIENCE / 4 {
            wake_as_the_home_ends();
            rounds += 1;
        }
        rounds
    });
    assert!(rounds.is_some(), "a wake waits for itself");
}

fn wake_as_the_home_ends() {
    let queue = Arc::new(Queue::new());
    let (tx, rx) = mpsc::channel();
    let waits = Arc::clone(&queue);
    let home = std::thread::spawn(move || {
        let context = AioContext::new().unwrap();
        let queue = Arc::clone(&waits);
        context
            .enter_home(|| {
                let co = Coroutine::new(move || waits.wait());
                co.enter();
                tx.send(()).unwrap();
                while !co.is_done() {
                    context.poll(true).unwrap();
                }
            })
            .unwrap();
        let wakes = OnDrop(move || {
            queue.wake_one();
        });
        context.schedule_oneshot("late", move || drop(wakes));
    });
    rx.recv().unwrap();
    queue.wake_one();
    home.join().unwrap();
}
