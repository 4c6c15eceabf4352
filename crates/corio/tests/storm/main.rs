//! A storm on four loops (SPEC A3, B1, H1, H3, H5, T4): 2,000 descriptors, whose handlers are
//! added, changed and removed by other threads and by their own callbacks, and whose numbers are
//! reused at once; bottom halves from four threads and a signal handler; timers by the thousand;
//! nested polls. On each monitor.
//!
//! Every write is accounted for: whenever the storm pauses, each descriptor that is watched has
//! been read as often as it was written, and of one that was closed the rest is read by who closes
//! it; and each thread's own bottom half has run since it was scheduled last. No callback comes
//! after its handler's removal. In the end nothing is left.
//!
//! The inputs follow from a seed, which is printed; `CORIO_STORM_SEED` sets it. It takes 5 s for
//! all three monitors together; `CORIO_SOAK=1`, which `cargo xtask soak` sets, makes it 60 s on
//! each.

#![allow(unsafe_code)] // A signal handler.

mod channel;
mod random;
mod signal;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::{BottomHalf, Clock, Interest, MonitorChoice, RemoteHandler, Timer};
use corio::{AioContext, IoThread};

use channel::{Channel, Watched};
use random::Random;

const LOOPS: usize = 4;
const DESCRIPTORS: usize = 2_000;
const THREADS: usize = 4;
const TIMERS: usize = 1_000;
/// How long a pause waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two pauses.
const GUST: Duration = Duration::from_millis(500);
/// Polls within polls, at most.
const NESTED_MAX: u32 = 3;

thread_local! {
    static NESTED: Cell<u32> = const { Cell::new(0) };
}

/// A descriptor's place: who watches what is in it now.
struct Slot {
    channel: Arc<Channel>,
    /// Dropped before its channel is let go.
    handler: Option<RemoteHandler>,
    home: usize,
}

/// How often a thread has scheduled its own bottom half, and what that has seen of it.
#[derive(Default)]
struct Own {
    scheduled: AtomicUsize,
    seen: AtomicUsize,
}

/// What all threads share.
struct Storm {
    contexts: Vec<AioContext>,
    slots: Vec<Mutex<Slot>>,
    /// Nobody writes, adds or removes.
    calm: AtomicBool,
    stop: AtomicBool,
    /// Threads that hold still.
    still: AtomicUsize,
    totals: Arc<channel::Totals>,
    oneshots: [AtomicUsize; 2],
    own: [Own; THREADS],
    timers_ran: AtomicUsize,
    replaced: AtomicUsize,
    nested: AtomicUsize,
}

impl Storm {
    fn new(loops: &[IoThread], random: &mut Random) -> Arc<Self> {
        let totals = Arc::<channel::Totals>::default();
        let slot = |home| {
            Mutex::new(Slot {
                channel: Channel::new(&totals),
                handler: None,
                home,
            })
        };
        let storm = Arc::new(Self {
            contexts: loops.iter().map(|io| io.context().clone()).collect(),
            slots: (0..DESCRIPTORS).map(|i| slot(i % LOOPS)).collect(),
            calm: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            still: AtomicUsize::new(0),
            totals,
            oneshots: Default::default(),
            own: Default::default(),
            timers_ran: AtomicUsize::new(0),
            replaced: AtomicUsize::new(0),
            nested: AtomicUsize::new(0),
        });
        for number in 0..DESCRIPTORS {
            storm.replace(number, random);
        }
        storm
    }

    /// Removes what is in a slot and puts another in its place, on any loop. Any thread, and the
    /// slot's own callback.
    fn replace(self: &Arc<Self>, number: usize, random: &mut Random) {
        let mut slot = self.slots[number].lock().unwrap();
        let home = slot.home;
        if let Some(handler) = slot.handler.take() {
            drop(handler);
            slot.channel.removed(&self.contexts[home]);
        }
        let channel = Channel::new(&self.totals);
        // The old one is closed here, unless somebody still writes to it.
        slot.channel = Arc::clone(&channel);
        slot.home = random.below(LOOPS);
        let (storm, watched) = (Arc::downgrade(self), Arc::clone(&channel));
        let seed = random.next();
        let own = Mutex::new(Random::new(seed));
        let callback = move |_| {
            watched.read();
            if let Some(storm) = storm.upgrade() {
                let choice = own.lock().unwrap().below(64);
                storm.after_read(number, &watched, choice, &own);
            }
        };
        let context = &self.contexts[slot.home];
        let handler = context.add_handler(Watched(channel), Interest::READ, callback);
        slot.handler = Some(handler);
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    /// What a handler's callback does besides.
    fn after_read(
        self: &Arc<Self>,
        number: usize,
        watched: &Arc<Channel>,
        choice: usize,
        own: &Mutex<Random>,
    ) {
        if self.calm.load(Ordering::Relaxed) {
            return;
        }
        let mut random = own.lock().unwrap().clone();
        match choice {
            // Replaces itself, or whoever came into its place.
            0..4 => self.replace(number, &mut random),
            4..8 => self.replace(random.below(DESCRIPTORS), &mut random),
            8..12 => self.change(number, Interest::WRITE),
            12..14 => self.nest(),
            14..20 => self.oneshot(random.below(LOOPS)),
            20 => watched.write(random.next()), // It fires again.
            _ => {}
        }
    }

    /// Changes what a slot's handler waits for. An eventfd is always writable: the loop that is
    /// told of it changes it back.
    fn change(self: &Arc<Self>, number: usize, interest: Interest) {
        let slot = self.slots[number].lock().unwrap();
        if let Some(handler) = &slot.handler {
            handler.set_interest(interest);
        }
        let storm = Arc::downgrade(self);
        self.contexts[slot.home].schedule_oneshot("changes back", move || {
            if let Some(storm) = storm.upgrade() {
                let slot = storm.slots[number].lock().unwrap();
                if let Some(handler) = &slot.handler {
                    handler.set_interest(Interest::READ);
                }
            }
        });
    }

    /// A turn within a turn.
    fn nest(&self) {
        let depth = NESTED.get();
        if depth < NESTED_MAX
            && let Some(context) = AioContext::current()
        {
            NESTED.set(depth + 1);
            self.nested.fetch_add(1, Ordering::Relaxed);
            let _ = context.poll(false).expect("the loop's wait failed");
            NESTED.set(depth);
        }
    }

    fn oneshot(self: &Arc<Self>, home: usize) {
        let storm = Arc::downgrade(self);
        self.oneshots[0].fetch_add(1, Ordering::SeqCst);
        self.contexts[home].schedule_oneshot("counts", move || {
            if let Some(storm) = storm.upgrade() {
                storm.oneshots[1].fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    /// A thread's own bottom half, on the loop of its number.
    fn own_half(self: &Arc<Self>, thread: usize) -> BottomHalf {
        let storm = Arc::downgrade(self);
        self.contexts[thread % LOOPS].bottom_half("a thread's own", move || {
            if let Some(storm) = storm.upgrade() {
                let own = &storm.own[thread];
                let scheduled = own.scheduled.load(Ordering::SeqCst);
                own.seen.store(scheduled, Ordering::SeqCst);
            }
        })
    }

    /// What the thread of this number does until the storm is over.
    fn blow(
        self: &Arc<Self>,
        thread: usize,
        mut random: Random,
        halves: &[BottomHalf],
        timers: &[Timer],
    ) {
        let own_half = self.own_half(thread);
        while !self.stop.load(Ordering::SeqCst) {
            if self.calm.load(Ordering::SeqCst) {
                self.still.fetch_add(1, Ordering::SeqCst);
                while self.calm.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                self.still.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let number = random.below(DESCRIPTORS);
            match random.below(32) {
                0..20 => {
                    let channel = Arc::clone(&self.slots[number].lock().unwrap().channel);
                    channel.write(random.next()); // It may have been removed meanwhile.
                }
                20..23 => self.replace(number, &mut random),
                23 => self.change(number, Interest::default()),
                24..26 => halves[random.below(LOOPS)].schedule(),
                26 => {
                    self.own[thread].scheduled.fetch_add(1, Ordering::SeqCst);
                    own_half.schedule();
                }
                27 => self.oneshot(random.below(LOOPS)),
                28 => halves[random.below(LOOPS)].schedule_idle(),
                29 => drop(timers[random.below(timers.len())].cancel()),
                30 => {
                    let delay = Duration::from_micros(random.next() % 5_000);
                    timers[random.below(timers.len())].arm_after(delay);
                }
                _ => self.contexts[random.below(LOOPS)].notify(),
            }
        }
    }

    /// Waits for `done`, and says what did not come.
    fn await_that(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(1)); // Between two looks.
        }
    }

    /// Has all hold still, and looks whether each write was read.
    fn pause(self: &Arc<Self>) {
        self.calm.store(true, Ordering::SeqCst);
        self.await_that("a thread does not hold still", || {
            self.still.load(Ordering::SeqCst) == THREADS
        });
        // What was queued meanwhile, and what that changes back.
        for _ in 0..3 {
            for context in &self.contexts {
                let (tx, rx) = mpsc::channel();
                context.schedule_oneshot("settles", move || tx.send(()).unwrap());
                rx.recv_timeout(PATIENCE).expect("a loop does not turn");
            }
        }
        for slot in &self.slots {
            self.await_that("an event is missed", || {
                slot.lock().unwrap().channel.is_drained()
            });
        }
        let [given, ran] = &self.oneshots;
        self.await_that("a oneshot is lost", || {
            given.load(Ordering::SeqCst) == ran.load(Ordering::SeqCst)
        });
        for own in &self.own {
            self.await_that("a thread's last schedule is lost", || {
                own.seen.load(Ordering::SeqCst) == own.scheduled.load(Ordering::SeqCst)
            });
        }
    }
}

/// Has the threads end, also if what is waited for does not come.
struct Stops<'a>(&'a Storm);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Timers on each loop, not armed yet.
fn timers(storm: &Arc<Storm>, random: &mut Random) -> Vec<Timer> {
    let make = |number: usize| {
        let (weak, own) = (
            Arc::downgrade(storm),
            Mutex::new(Random::new(random.next())),
        );
        storm.contexts[number % LOOPS].timer(move || {
            let Some(storm) = weak.upgrade() else { return };
            storm.timers_ran.fetch_add(1, Ordering::Relaxed);
            if own.lock().unwrap().below(64) == 0 {
                storm.nest();
            }
        })
    };
    (0..TIMERS * LOOPS).map(make).collect()
}

/// The storm, on loops of one monitor.
fn storm(monitor: MonitorChoice, seed: u64, duration: Duration) {
    let mut random = Random::new(seed);
    let loops: Vec<_> = (0..LOOPS)
        .map(|_| IoThread::builder().monitor(monitor).spawn().unwrap())
        .collect();
    let storm = Storm::new(&loops, &mut random);
    let ran: Arc<Vec<AtomicUsize>> = Arc::new((0..LOOPS).map(|_| AtomicUsize::new(0)).collect());
    let half = |home: usize| {
        let (ran, storm) = (Arc::clone(&ran), Arc::downgrade(&storm));
        storm.upgrade().unwrap().contexts[home].bottom_half("counts, and polls", move || {
            ran[home].fetch_add(1, Ordering::SeqCst);
            if let Some(storm) = storm.upgrade() {
                storm.nest();
            }
        })
    };
    let halves: Vec<_> = (0..LOOPS).map(half).collect();
    let timers = timers(&storm, &mut random);
    let of_signals = signal::Signals::new(&storm.contexts[0]);
    let started = Instant::now();
    let mut pauses = 0;
    thread::scope(|scope| {
        let _stops = Stops(&storm);
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (storm, random) = (&storm, Random::new(random.next()));
                let (halves, timers) = (&halves, &timers);
                signal::spawn(scope, move || storm.blow(number, random, halves, timers))
            })
            .collect();
        while started.elapsed() < duration {
            for timer in &timers {
                timer.arm_at_ns(Clock::Realtime.now_ns() + random.next() % 500_000_000);
            }
            storm.calm.store(false, Ordering::SeqCst);
            let gust = Instant::now();
            while gust.elapsed() < GUST {
                of_signals.send(&threads);
            }
            storm.pause();
            of_signals.check();
            pauses += 1;
        }
    });
    for timer in &timers {
        timer.cancel();
    }
    drop(of_signals);
    drop((timers, halves));
    for slot in &storm.slots {
        let mut slot = slot.lock().unwrap();
        drop(slot.handler.take());
    }
    let replaced = storm.replaced.load(Ordering::Relaxed);
    let (timers_ran, nested) = (
        storm.timers_ran.load(Ordering::Relaxed),
        storm.nested.load(Ordering::Relaxed),
    );
    let totals = Arc::clone(&storm.totals);
    let scheduled = |own: &Own| own.scheduled.load(Ordering::SeqCst);
    let own = storm.own.each_ref().map(scheduled);
    drop(storm);
    for io in loops {
        io.join();
    }
    totals.check();
    println!(
        "{monitor:?}: {} writes, {replaced} handlers, {} bottom halves, {timers_ran} timers, \
         {nested} nested polls, {pauses} pauses",
        totals.written(),
        ran.iter()
            .map(|ran| ran.load(Ordering::SeqCst))
            .sum::<usize>(),
    );
    assert!(timers_ran > 0 && nested > 0 && replaced > DESCRIPTORS);
    assert!(own.iter().all(|&scheduled| scheduled > 0), "{own:?}");
}

// SPEC A3, B1, H1, H3, H5, M1, T4
#[test]
fn a_storm_on_four_loops_misses_no_event() {
    let seed = std::env::var("CORIO_STORM_SEED").map_or_else(
        |_| Clock::Host.now_ns(),
        |seed| seed.parse().expect("a seed is a number"),
    );
    println!("CORIO_STORM_SEED={seed}");
    let total = if std::env::var_os("CORIO_SOAK").is_some() {
        Duration::from_secs(180)
    } else {
        Duration::from_secs(5)
    };
    for monitor in MonitorChoice::ALL {
        storm(monitor, seed, total / 3);
    }
}
