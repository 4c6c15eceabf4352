//! What the coroutines of all rounds share: locks whose values tell if they exclude, and threads
//! that wake.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, mpsc};
use std::thread::{self, JoinHandle};

use corio::sync::{Mutex, Permit, Queue, ReadGuard, RwLock, Semaphore, WriteGuard};
use corio::{AioContext, CoWaker};

use super::Random;
use super::body::Round;

const LOCKS: usize = 3;
const RINGERS: usize = 2;
/// Fewer than the coroutines that want one.
const UNITS: usize = 8;
const PERMITS: usize = 8;
/// How many tokens of coroutines that have ended are kept, to be fired again.
const STALE_MAX: usize = 256;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Ended,
    Cancelled,
    CancelsAsked,
    Hops,
    RunsElsewhere,
    MutexLocks,
    MutexWaits,
    Reads,
    Writes,
    Units,
    QueueWaits,
    Permits,
    Messages,
    Parks,
    Wakes,
    StaleWakes,
    Sleeps,
    Yields,
    Children,
}

const COUNTS: [Count; 19] = [
    Count::Ended,
    Count::Cancelled,
    Count::CancelsAsked,
    Count::Hops,
    Count::RunsElsewhere,
    Count::MutexLocks,
    Count::MutexWaits,
    Count::Reads,
    Count::Writes,
    Count::Units,
    Count::QueueWaits,
    Count::Permits,
    Count::Messages,
    Count::Parks,
    Count::Wakes,
    Count::StaleWakes,
    Count::Sleeps,
    Count::Yields,
    Count::Children,
];

/// What a plain thread does for a coroutine.
pub(super) enum Errand {
    Ring(Bell),
    Cancel(Arc<Round>, usize),
    End,
}

/// Gets a parked coroutine going.
pub(super) struct Bell {
    pub(super) waker: CoWaker,
    pub(super) rung: Arc<AtomicBool>,
    /// The coroutine is over: its token may be fired for nothing.
    pub(super) over: Arc<AtomicBool>,
    /// How often to fire.
    pub(super) times: usize,
}

impl Bell {
    pub(super) fn ring(&self, shared: &Shared) {
        self.rung.store(true, Ordering::Release);
        for _ in 0..self.times {
            self.waker.wake();
            shared.count(Count::Wakes);
        }
    }
}

/// A number that is changed in two steps, and who changes it.
#[derive(Default)]
struct Guarded {
    value: u64,
    inside: AtomicBool,
}

/// Somebody changes a number, until this is dropped.
struct Inside<'a>(&'a AtomicBool);

impl<'a> Inside<'a> {
    fn enter(inside: &'a AtomicBool) -> Self {
        assert!(!inside.swap(true, Ordering::Relaxed), "two have the lock");
        Self(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Guarded {
    /// Adds one; what is read before `pause` is still so after it, or somebody else was there.
    fn add(&mut self, pause: impl FnOnce()) {
        let _inside = Inside::enter(&self.inside);
        let before = self.value;
        pause();
        self.value = before + 1;
    }
}

/// See the module.
pub(super) struct Shared {
    pub(super) contexts: Vec<AioContext>,
    pub(super) errands: mpsc::Sender<Errand>,
    /// What the coroutines own, on whatever stack it lies.
    pub(super) live: AtomicIsize,
    counts: [AtomicU64; COUNTS.len()],
    mutexes: [Mutex<Guarded>; LOCKS],
    rwlocks: [RwLock<Guarded>; LOCKS],
    added: AtomicU64,
    stock: Mutex<usize>,
    given_back: Queue,
    permits: Semaphore,
    permits_out: AtomicUsize,
}

/// Makes it, and starts the threads that wake.
pub(super) fn start(
    contexts: impl Iterator<Item = AioContext>,
) -> (Arc<Shared>, Vec<JoinHandle<()>>) {
    let (errands, inbox) = mpsc::channel();
    let shared = Arc::new(Shared {
        contexts: contexts.collect(),
        errands,
        live: AtomicIsize::new(0),
        counts: Default::default(),
        mutexes: Default::default(),
        rwlocks: Default::default(),
        added: AtomicU64::new(0),
        stock: Mutex::new(UNITS),
        given_back: Queue::new(),
        permits: Semaphore::new(PERMITS),
        permits_out: AtomicUsize::new(0),
    });
    let inbox = Arc::new(StdMutex::new(inbox));
    let ringer = |_| {
        let (shared, inbox) = (Arc::clone(&shared), Arc::clone(&inbox));
        thread::spawn(move || run_errands(&shared, &inbox))
    };
    let ringers = (0..RINGERS).map(ringer).collect();
    (shared, ringers)
}

fn run_errands(shared: &Shared, inbox: &StdMutex<mpsc::Receiver<Errand>>) {
    let mut stale = Vec::new();
    loop {
        let errand = inbox.lock().unwrap().recv().unwrap();
        match errand {
            Errand::Ring(bell) => {
                bell.ring(shared);
                if stale.len() == STALE_MAX {
                    stale.clear();
                }
                stale.push(bell);
            }
            Errand::Cancel(round, i) => round.cancel(i),
            Errand::End => return,
        }
        // Of one that lives it could make up for a wake that was lost.
        for bell in stale.iter().rev().take(8) {
            if bell.over.load(Ordering::Acquire) {
                bell.waker.wake();
                shared.count(Count::StaleWakes);
            }
        }
    }
}

/// One of the units; given back when it is dropped, also by who is cancelled.
pub(super) struct Unit<'a>(&'a Shared);

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        // Who is cancelled while it waits here would keep the unit.
        let _mask = corio::mask_cancel();
        let mut stock = self.0.stock.lock();
        *stock += 1;
        assert!(*stock <= UNITS, "more than there are");
        drop(stock);
        self.0.given_back.wake_one();
    }
}

/// Some permits, counted beside the semaphore.
pub(super) struct Permits<'a> {
    shared: &'a Shared,
    permit: Permit<'a>,
}

impl Drop for Permits<'_> {
    fn drop(&mut self) {
        let amount = self.permit.amount();
        self.shared.permits_out.fetch_sub(amount, Ordering::Relaxed);
    }
}

impl Shared {
    pub(super) fn count(&self, what: Count) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> String {
        let mut text = String::new();
        for what in COUNTS {
            let n = self.counts[what as usize].load(Ordering::Relaxed);
            write!(text, "{what:?} {n} ").unwrap();
        }
        text
    }

    /// What never happened was not tested.
    pub(super) fn check_all_happened(&self) {
        for what in COUNTS {
            let n = self.counts[what as usize].load(Ordering::Relaxed);
            assert_ne!(n, 0, "{what:?}");
        }
    }

    /// Adds under a mutex, with a pause in between.
    pub(super) fn lock(&self, random: &mut Random, pause: impl FnOnce()) {
        let mutex = &self.mutexes[random.below(LOCKS)];
        let mut guard = mutex.try_lock().unwrap_or_else(|| {
            self.count(Count::MutexWaits);
            mutex.lock()
        });
        guard.add(pause);
        self.added.fetch_add(1, Ordering::Relaxed);
        self.count(Count::MutexLocks);
    }

    /// Reads, and writes now and then, with pauses in between.
    pub(super) fn read_or_write(&self, random: &mut Random, pause: impl Fn()) {
        let lock = &self.rwlocks[random.below(LOCKS)];
        match random.below(8) {
            0 => self.write(&mut lock.write(), pause),
            1 => {
                let guard = lock.read();
                self.read(&guard, &pause);
                self.write(&mut ReadGuard::upgrade(guard), pause);
            }
            2 => {
                let mut guard = lock.write();
                self.write(&mut guard, &pause);
                self.read(&WriteGuard::downgrade(guard), pause);
            }
            _ => self.read(&lock.read(), pause),
        }
    }

    fn write(&self, guarded: &mut Guarded, pause: impl FnOnce()) {
        guarded.add(pause);
        self.added.fetch_add(1, Ordering::Relaxed);
        self.count(Count::Writes);
    }

    fn read(&self, guarded: &Guarded, pause: impl FnOnce()) {
        let before = guarded.value;
        pause();
        assert!(!guarded.inside.load(Ordering::Relaxed) && guarded.value == before);
        self.count(Count::Reads);
    }

    /// Waits for a unit in the queue.
    pub(super) fn unit(&self) -> Unit<'_> {
        let mut stock = self.stock.lock();
        while *stock == 0 {
            self.count(Count::QueueWaits);
            stock = self.given_back.wait_releasing(stock);
        }
        *stock -= 1;
        self.count(Count::Units);
        Unit(self)
    }

    pub(super) fn permits(&self, amount: usize) -> Permits<'_> {
        let permit = self.permits.acquire(amount);
        let out = self.permits_out.fetch_add(amount, Ordering::Relaxed) + amount;
        assert!(out <= PERMITS, "more than there are");
        self.count(Count::Permits);
        Permits {
            shared: self,
            permit,
        }
    }

    /// With no coroutine about: nothing is held, and nothing was lost.
    pub(super) fn check_at_rest(&self) {
        assert_eq!(self.live.load(Ordering::Acquire), 0, "what they own leaks");
        let mutexes = self.mutexes.iter().map(|mutex| {
            let guard = mutex.try_lock().expect("a mutex is held by nobody");
            guard.value
        });
        let rwlocks = self.rwlocks.iter().map(|lock| {
            let guard = lock.try_write().expect("a lock is held by nobody");
            guard.value
        });
        let sum: u64 = mutexes.chain(rwlocks).sum();
        assert_eq!(sum, self.added.load(Ordering::Relaxed), "two wrote at once");
        assert_eq!(*self.stock.try_lock().expect("free"), UNITS);
        assert!(self.given_back.is_empty());
        assert_eq!(self.permits.available(), PERMITS);
        assert_eq!(self.permits_out.load(Ordering::Relaxed), 0);
    }
}
