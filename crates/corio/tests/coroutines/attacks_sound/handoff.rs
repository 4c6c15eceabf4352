//! A waiter for a mutex that is cancelled at every step of the hand-off, by the same and by another
//! thread (SPEC L1, C12).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use corio::sync::Mutex;
use corio::{Builder, Coroutine, IoThread, JoinError, JoinHandle};

use super::{OnDrop, io, park_for_ever, settle, settle_here, within_patience};

/// How far the one that is cancelled has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Behind another.
    Queued,
    /// The next to get it.
    Front,
    /// Unlocked in its favour, and not run since.
    Granted,
    /// It has it, and is parked.
    Holds,
}

const STEPS: [Step; 4] = [Step::Queued, Step::Front, Step::Granted, Step::Holds];

/// How it takes its cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Unwinds,
    /// A destructor locks the mutex again.
    LocksAgain,
    /// Not before it has had the mutex.
    Masked,
}

const MANNERS: [Manner; 3] = [Manner::Unwinds, Manner::LocksAgain, Manner::Masked];

/// A mutex, who had it, and whether anyone has.
#[derive(Default)]
struct Scene {
    mutex: Mutex<()>,
    taken: AtomicBool,
    order: std::sync::Mutex<Vec<&'static str>>,
}

impl Scene {
    /// Has the mutex while `f` runs.
    fn hold(&self, who: &'static str, f: impl FnOnce()) {
        let _guard = self.mutex.lock();
        self.alone(who, f);
    }

    fn alone(&self, who: &'static str, f: impl FnOnce()) {
        assert!(!self.taken.swap(true, Ordering::Relaxed), "two have it");
        let _free = OnDrop(|| self.taken.store(false, Ordering::Relaxed));
        self.order.lock().unwrap().push(who);
        f();
    }
}

fn spawn(
    io: &IoThread,
    scene: &Arc<Scene>,
    who: &'static str,
    body: impl FnOnce(&Scene) + Send + 'static,
) -> JoinHandle<()> {
    let scene = Arc::clone(scene);
    let handle = Builder::new()
        .name(who)
        .spawn_on(io.context(), move || body(&scene));
    settle(io);
    handle
}

/// The one that is cancelled.
fn victim(io: &IoThread, scene: &Arc<Scene>, step: Step, manner: Manner) -> JoinHandle<()> {
    spawn(io, scene, "victim", move |scene| {
        let _again = OnDrop(|| {
            if manner == Manner::LocksAgain {
                scene.hold("destructor", || ());
            }
        });
        let mask = (manner == Manner::Masked).then(corio::mask_cancel);
        scene.hold("victim", || {
            if step == Step::Holds {
                drop(mask);
                park_for_ever();
            }
        });
        park_for_ever();
    })
}

/// Who should have had it, in order.
fn expected(step: Step, manner: Manner) -> Vec<&'static str> {
    let mut order = vec!["holder"];
    if step == Step::Queued {
        order.push("first");
    }
    if manner == Manner::Masked || step == Step::Holds {
        order.push("victim");
    }
    order.push("last");
    if manner == Manner::LocksAgain {
        order.push("destructor"); // It queues behind who waits already.
    }
    order
}

fn check(scene: &Arc<Scene>, handles: Vec<JoinHandle<()>>, step: Step, manner: Manner) {
    let what = format!("{step:?} {manner:?}");
    let outcomes = within_patience(move || {
        handles
            .into_iter()
            .map(JoinHandle::join)
            .collect::<Vec<_>>()
    });
    for (i, outcome) in outcomes.into_iter().enumerate() {
        match (i, outcome) {
            (0, Err(JoinError::Cancelled)) | (1.., Ok(())) => {}
            (_, other) => panic!("{what}: number {i}: {other:?}"),
        }
    }
    assert_eq!(
        *scene.order.lock().unwrap(),
        expected(step, manner),
        "{what}"
    );
    assert!(scene.mutex.try_lock().is_some(), "{what}: nobody has it");
}

// SPEC L1, C12: by another thread, which also unlocks; the victim's own thread is busy meanwhile,
// so that it is granted the mutex and does not know.
#[test]
fn a_waiter_cancelled_by_another_thread_passes_the_mutex_on() {
    let ios = [io(), io()];
    for (step, manner) in STEPS.into_iter().flat_map(|s| MANNERS.map(|m| (s, m))) {
        let scene = Arc::new(Scene::default());
        let guard = scene.mutex.lock();
        scene.alone("holder", || ());
        let first = (step == Step::Queued)
            .then(|| spawn(&ios[1], &scene, "first", |scene| scene.hold("first", || ())));
        let victim = victim(&ios[0], &scene, step, manner);
        let last = spawn(&ios[1], &scene, "last", |scene| scene.hold("last", || ()));
        match step {
            Step::Queued | Step::Front => {
                victim.cancel().unwrap();
                settle(&ios[0]);
                drop(guard);
            }
            Step::Granted => {
                let (go, wait) = mpsc::channel::<()>();
                let (begun, begin) = mpsc::channel();
                let busy = ios[0].context().spawn(move || {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                });
                begin.recv().unwrap();
                drop(guard);
                victim.cancel().unwrap();
                go.send(()).unwrap();
                busy.join().unwrap();
            }
            Step::Holds => {
                drop(guard);
                settle(&ios[0]);
                victim.cancel().unwrap();
            }
        }
        let handles = [Some(victim), first, Some(last)].into_iter().flatten();
        check(&scene, handles.collect(), step, manner);
    }
}

// SPEC L1, C12: by a coroutine of its own thread, which also unlocks: the victim is on its wake
// queue.
#[test]
fn a_waiter_cancelled_by_its_own_thread_passes_the_mutex_on() {
    let io = Arc::new(io());
    for (step, manner) in STEPS.into_iter().flat_map(|s| MANNERS.map(|m| (s, m))) {
        let scene = Arc::new(Scene::default());
        let (tx, rx) = mpsc::channel::<JoinHandle<()>>();
        let (theirs, begun) = (Arc::clone(&scene), mpsc::channel());
        let (told, begin) = begun;
        let holder = io.context().spawn(move || {
            let guard = theirs.mutex.lock();
            theirs.alone("holder", || ());
            told.send(()).unwrap();
            let victim = loop {
                match rx.try_recv() {
                    Ok(victim) => break victim,
                    Err(_) => corio::yield_now(),
                }
            };
            if matches!(step, Step::Queued | Step::Front) {
                victim.cancel().unwrap();
                settle_here();
            }
            drop(guard);
            if step == Step::Holds {
                settle_here();
            }
            victim.cancel().unwrap(); // A second time is no more.
            victim
        });
        begin.recv().unwrap();
        let first = (step == Step::Queued)
            .then(|| spawn(&io, &scene, "first", |scene| scene.hold("first", || ())));
        let victim = victim(&io, &scene, step, manner);
        let last = spawn(&io, &scene, "last", |scene| scene.hold("last", || ()));
        tx.send(victim).unwrap();
        let victim = within_patience(move || holder.join().unwrap());
        let handles = [Some(victim), first, Some(last)].into_iter().flatten();
        check(&scene, handles.collect(), step, manner);
    }
}

// SPEC L1, C12, C9: the same by the handle of a raw coroutine, which unwinds it at once.
#[test]
fn a_waiter_whose_handle_is_dropped_passes_the_mutex_on() {
    let io = io();
    let done = io.context().spawn(|| {
        for granted in [false, true] {
            let scene = std::rc::Rc::new(Scene::default());
            let guard = scene.mutex.lock();
            let waiter = |who| {
                let scene = std::rc::Rc::clone(&scene);
                let co = Coroutine::new(move || scene.hold(who, || ()));
                co.enter();
                co
            };
            let (victim, last) = (waiter("victim"), waiter("last"));
            if granted {
                drop(guard);
                drop(victim);
            } else {
                drop(victim);
                drop(guard);
            }
            settle_here();
            assert!(last.is_done());
            assert_eq!(*scene.order.lock().unwrap(), ["last"], "{granted}");
            assert!(scene.mutex.try_lock().is_some());
        }
    });
    done.join().unwrap();
}

// SPEC L1, C12: at the very moment of the grant, as near as threads can get: one unlocks while
// another cancels.
#[test]
fn a_waiter_cancelled_while_it_is_granted_the_mutex_loses_it_for_nobody() {
    const ROUNDS: usize = 2000;
    let ios = [io(), io()];
    let start = Arc::new(Barrier::new(2));
    let (tx, rx) = mpsc::channel::<JoinHandle<()>>();
    let (back, given_back) = mpsc::channel();
    let canceller = thread::spawn({
        let start = Arc::clone(&start);
        move || {
            for (round, victim) in rx.into_iter().enumerate() {
                start.wait();
                for _ in 0..round % 64 * 4 {
                    std::hint::spin_loop();
                }
                victim.cancel().unwrap();
                back.send(victim).unwrap();
            }
        }
    });
    let (mut served, mut cancelled) = (0, 0);
    let had = Arc::new(AtomicUsize::new(0));
    for round in 0..ROUNDS {
        let scene = Arc::new(Scene::default());
        let guard = scene.mutex.lock();
        let count = Arc::clone(&had);
        let victim = spawn(&ios[0], &scene, "victim", move |scene| {
            scene.hold("victim", || _ = count.fetch_add(1, Ordering::Relaxed));
        });
        let last = spawn(&ios[round % 2], &scene, "last", |scene| {
            scene.hold("last", || ());
        });
        tx.send(victim).unwrap();
        start.wait();
        drop(guard);
        let victim = given_back.recv().unwrap();
        let (victim, last) = within_patience(move || (victim.join(), last.join()));
        last.unwrap();
        match victim {
            Ok(()) => served += 1,
            Err(JoinError::Cancelled) => cancelled += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(scene.mutex.try_lock().is_some());
    }
    drop(tx);
    canceller.join().unwrap();
    println!("{served} served, {cancelled} cancelled");
    assert_eq!(had.load(Ordering::Relaxed), served);
}
