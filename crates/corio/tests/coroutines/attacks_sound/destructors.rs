//! Destructors that park, that panic, and that catch, in whatever way their frame ends.

use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corio::sync::{Mutex, Queue};
use corio::{IoThread, JoinError};

use super::{OnDrop, child, io, is_child, park_for_ever, settle, text, within_patience};

/// Counts what has been dropped.
#[derive(Clone, Default)]
struct Dropped(Arc<AtomicUsize>);

impl Dropped {
    fn note(&self) -> OnDrop<impl FnMut() + use<>> {
        let count = Arc::clone(&self.0);
        OnDrop(move || _ = count.fetch_add(1, Ordering::Relaxed))
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn still_runs(io: &IoThread) {
    assert_eq!(io.context().spawn(|| 7).join().unwrap(), 7);
}

// SPEC C12: a destructor may park: each wait runs to its end, and raises nothing again.
#[test]
fn a_destructor_that_parks_runs_to_its_end() {
    let io = io();
    let shared = Arc::new((Mutex::new(false), Queue::new()));
    let (theirs, dropped) = (Arc::clone(&shared), Dropped::default());
    let note = dropped.clone();
    let handle = io.context().spawn(move || {
        let _last = note.note();
        let _waits = OnDrop(|| {
            corio::yield_now();
            corio::time::sleep(Duration::from_micros(50));
            let (mutex, queue) = &*theirs;
            let mut go = mutex.lock();
            while !*go {
                go = queue.wait_releasing(go);
            }
            drop(go);
            corio::spawn(corio::yield_now).join().unwrap();
            drop(note.note());
        });
        park_for_ever();
    });
    settle(&io);
    handle.cancel().unwrap();
    handle.cancel().unwrap(); // It is asked once.
    while shared.1.is_empty() {
        std::thread::yield_now();
    }
    assert!(!handle.is_finished());
    *shared.0.lock() = true;
    shared.1.wake_one();
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    assert_eq!(dropped.get(), 2);
    still_runs(&io);
}

// SPEC C9, C12: of a closure that never ran it parks in no coroutine, which is misuse, and its
// panic goes no further.
#[test]
fn a_destructor_of_what_never_ran_that_parks_or_panics_harms_nobody() {
    let io = io();
    let dropped = Dropped::default();
    let destructors: [fn(); 3] = [corio::park, || panic!("as the test wants"), corio::suspend];
    for destructor in destructors {
        let (go, wait) = mpsc::channel::<()>();
        let busy = io.context().spawn(move || wait.recv().unwrap());
        let (bad, note) = (OnDrop(destructor), dropped.note());
        let never = io.context().spawn(move || drop((bad, note)));
        let next = io.context().spawn(|| 1);
        never.cancel().unwrap();
        go.send(()).unwrap();
        busy.join().unwrap();
        assert!(matches!(never.join(), Err(JoinError::Cancelled)));
        assert_eq!(next.join().unwrap(), 1);
        still_runs(&io);
    }
    assert_eq!(dropped.get(), 3);
}

// SPEC C8: where nothing unwinds it is a panic like any other.
#[test]
fn a_destructor_that_panics_is_the_joiners() {
    let io = io();
    let dropped = Dropped::default();
    let note = dropped.clone();
    let panics = io.context().spawn(move || {
        let _first = note.note();
        let _bad = OnDrop(|| panic!("as the test wants"));
        let _last = note.note();
        corio::yield_now();
    });
    let Err(JoinError::Panicked(payload)) = panics.join() else {
        panic!("it is not told")
    };
    assert_eq!(text(&*payload), "as the test wants");
    assert_eq!(dropped.get(), 2);
    still_runs(&io);
}

// SPEC section 7, C12: while a cancellation unwinds it aborts, as by Rust's own rules: it never
// goes on half unwound.
#[test]
fn a_destructor_that_panics_while_it_is_cancelled_aborts() {
    const NAME: &str =
        "attacks_sound::destructors::a_destructor_that_panics_while_it_is_cancelled_aborts";
    if !is_child(NAME) {
        let output = child(NAME);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
        assert!(said.contains("as the test wants"), "{said}");
        assert!(said.contains("panic in a destructor"), "{said}");
        return;
    }
    let io = io();
    let bad = io.context().spawn(|| {
        let _bad = OnDrop(|| panic!("as the test wants"));
        park_for_ever();
    });
    settle(&io);
    bad.cancel().unwrap();
    let _ = bad.join();
    std::process::exit(0);
}

// SPEC C12: what it catches is its own: the cancellation goes on, and is not raised a second time
// in it.
#[test]
fn a_destructor_that_catches_keeps_no_cancellation() {
    let io = io();
    let (tx, rx) = mpsc::channel();
    let handle = io.context().spawn(move || {
        let _catches = OnDrop(|| {
            let parked = catch_unwind(corio::yield_now).is_ok();
            let slept = catch_unwind(|| corio::time::sleep(Duration::from_micros(50))).is_ok();
            let own = catch_unwind(|| panic!("as the test wants")).unwrap_err();
            tx.send((parked, slept, text(&*own).to_owned())).unwrap();
        });
        park_for_ever();
    });
    settle(&io);
    handle.cancel().unwrap();
    assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    let caught = rx.recv().unwrap();
    assert_eq!(caught, (true, true, "as the test wants".to_owned()));
    let panicking = io.context().spawn(std::thread::panicking);
    assert!(!panicking.join().unwrap(), "the thread's count is even");
}

// SPEC C8, C10: a result that nobody takes is dropped where nothing else suffers from its panic.
#[test]
fn a_result_whose_destructor_panics_harms_nobody() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("as the test wants");
        }
    }
    let io = io();
    let (go, wait) = mpsc::channel::<()>();
    drop(io.context().spawn(move || {
        wait.recv().unwrap();
        Bad
    }));
    go.send(()).unwrap();
    still_runs(&io);
    let late = io.context().spawn(|| Bad);
    while !late.is_finished() {
        std::thread::yield_now();
    }
    catch_unwind(std::panic::AssertUnwindSafe(|| drop(late))).unwrap_err();
    still_runs(&io);
}

// SPEC C12: one that is asked to end while another of its thread is parked in a destructor is not
// forgotten, whenever it began to wait.
#[test]
fn a_cancellation_that_comes_while_another_unwinds_is_not_lost() {
    let io = io();
    let go = Arc::new((Mutex::new(false), Queue::new()));
    let before = io.context().spawn(park_for_ever);
    settle(&io);
    let theirs = Arc::clone(&go);
    let unwinds = io.context().spawn(move || {
        let _waits = OnDrop(|| {
            let mut go = theirs.0.lock();
            while !*go {
                go = theirs.1.wait_releasing(go);
            }
        });
        park_for_ever();
    });
    settle(&io);
    unwinds.cancel().unwrap();
    while go.1.is_empty() {
        std::thread::yield_now();
    }
    let after = io.context().spawn(park_for_ever);
    settle(&io);
    before.cancel().unwrap();
    after.cancel().unwrap();
    settle(&io);
    *go.0.lock() = true;
    go.1.wake_one();
    let outcomes = within_patience(move || [unwinds.join(), before.join(), after.join()]);
    for outcome in outcomes {
        assert!(matches!(outcome, Err(JoinError::Cancelled)));
    }
}

// SPEC C8, C9: whoever has joined it finds that all it owned is dropped, also if it never began.
#[test]
fn what_a_coroutine_captured_is_dropped_before_it_counts_as_ended() {
    let io = io();
    for begins in [false, true] {
        let (go, wait) = mpsc::channel::<()>();
        let (dropping, held) = (mpsc::channel(), mpsc::channel::<()>());
        let busy = io.context().spawn(move || wait.recv().unwrap());
        let (told, hold) = (dropping.0, held.1);
        let slow = OnDrop(move || {
            told.send(()).unwrap();
            hold.recv().unwrap();
        });
        let handle = io.context().spawn(move || {
            let _slow = slow;
            park_for_ever();
        });
        if begins {
            go.send(()).unwrap();
            settle(&io);
            handle.cancel().unwrap();
        } else {
            handle.cancel().unwrap();
            go.send(()).unwrap();
        }
        dropping.1.recv().unwrap();
        assert!(!handle.is_finished(), "it owns something still");
        held.0.send(()).unwrap();
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
        busy.join().unwrap();
    }
}
