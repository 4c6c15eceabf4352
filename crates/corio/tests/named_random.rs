//! Random programs of coroutines that enter, schedule, wake, cancel and drop one another, while
//! another thread fires their tokens: whatever they do, none runs twice at a time, and each ends.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use corio::{AioContext, CoWaker, Coroutine, LocalJoinHandle};

const PLACES: u64 = 12;
const STEPS: u64 = 400;
const PROGRAMS: u64 = 150;

/// What all coroutines of a program see.
struct World {
    random: Cell<u64>,
    handles: RefCell<Vec<Option<Rc<Coroutine>>>>,
    spawned: RefCell<Vec<Spawned>>,
    /// Closures and frames that are not dropped yet.
    alive: Cell<usize>,
    made: Cell<usize>,
    /// How often bodies were gone on with.
    steps: Cell<u64>,
    tokens: Arc<Mutex<Vec<CoWaker>>>,
}

struct Spawned {
    handle: LocalJoinHandle<()>,
    has_begun: Rc<Cell<bool>>,
}

/// Dropped with a closure that never ran, or with the frame of one that did.
struct Alive {
    world: Rc<World>,
    acts_when_dropped: bool,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.world.alive.set(self.world.alive.get() - 1);
        if self.acts_when_dropped {
            for _ in 0..3 {
                let _ = catch_unwind(AssertUnwindSafe(|| self.world.act_on_another()));
            }
        }
    }
}

/// A body is gone on with by one at a time.
#[derive(Default)]
struct Inside(Cell<bool>);

impl Inside {
    fn leave(&self, how: impl FnOnce()) {
        check(self.0.replace(false));
        let back = Back(self);
        how();
        drop(back);
    }
}

/// No panic, which somebody would catch.
fn check(alone: bool) {
    if !alone {
        eprintln!("a coroutine is run twice at a time");
        std::process::abort();
    }
}

struct Back<'a>(&'a Inside);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        check(!self.0.0.replace(true));
    }
}

impl World {
    fn next(&self, below: u64) -> u64 {
        // xorshift64*
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn place(&self) -> usize {
        usize::try_from(self.next(PLACES)).unwrap()
    }

    fn another(&self) -> Option<Rc<Coroutine>> {
        self.handles.borrow()[self.place()].clone()
    }

    fn body(self: &Rc<Self>) -> impl FnOnce() + 'static + use<> {
        self.alive.set(self.alive.get() + 1);
        self.made.set(self.made.get() + 1);
        let alive = Alive {
            world: Rc::clone(self),
            acts_when_dropped: self.next(8) == 0,
        };
        move || alive.world.run()
    }

    fn create(self: &Rc<Self>) {
        let co = Rc::new(Coroutine::new(self.body()));
        let place = self.place();
        let before = self.handles.borrow_mut()[place].replace(co);
        drop(before);
    }

    fn run(self: &Rc<Self>) {
        let inside = Inside::default();
        inside.0.set(true);
        if let Some(token) = CoWaker::current() {
            self.tokens.lock().unwrap().push(token);
        }
        for _ in 0..self.next(30) {
            self.steps.set(self.steps.get() + 1);
            match self.next(16) {
                0 | 1 => inside.leave(corio::suspend),
                2 | 3 => inside.leave(corio::park),
                4 => inside.leave(corio::yield_now),
                5 => {
                    let _mask = corio::mask_cancel();
                    inside.leave(corio::park);
                    self.act();
                }
                6 => {
                    // It catches a cancellation.
                    let _ = catch_unwind(AssertUnwindSafe(|| inside.leave(corio::park)));
                }
                7 if self.next(4) == 0 => resume_unwind(Box::new("at random")),
                8 if self.next(4) == 0 => return,
                _ => self.act(),
            }
        }
    }

    fn act(self: &Rc<Self>) {
        match self.next(12) {
            0 | 1 => self.create(),
            2 => {
                let (body, has_begun) = (self.body(), Rc::new(Cell::new(false)));
                let begins = Rc::clone(&has_begun);
                let handle = corio::spawn_local(move || {
                    begins.set(true);
                    body();
                });
                self.spawned
                    .borrow_mut()
                    .push(Spawned { handle, has_begun });
            }
            3 => {
                let spawned = self.spawned.borrow_mut().pop();
                if self.next(2) == 0
                    && let Some(spawned) = &spawned
                {
                    spawned.handle.cancel().unwrap();
                }
                drop(spawned);
            }
            4 if corio::in_coroutine() => {
                // Not in a circle.
                let last = self.spawned.borrow_mut().pop();
                if let Some(last) = last.filter(|last| !last.has_begun.get()) {
                    let _ = last.handle.join();
                }
            }
            _ => self.act_on_another(),
        }
    }

    /// Misuse among it, which is told and does nothing.
    fn act_on_another(&self) {
        let Some(co) = self.another() else { return };
        let what = self.next(8);
        let done = catch_unwind(AssertUnwindSafe(|| match what {
            0 | 1 => co.enter(),
            2 | 3 => co.schedule(),
            4 | 5 => co.wake(),
            6 => co.cancel().unwrap(),
            _ => {
                let place = self.place();
                let before = self.handles.borrow_mut()[place].take();
                drop(before);
            }
        }));
        if let Err(payload) = done
            && !payload.is::<String>()
            && !payload.is::<&str>()
        {
            resume_unwind(payload); // The caller's own cancellation.
        }
    }
}

/// Fires tokens at random, as long as it is not stopped.
fn fire(tokens: &Mutex<Vec<CoWaker>>, stop: &AtomicBool) {
    let mut at = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let token = {
            let tokens = tokens.lock().unwrap();
            let recent = tokens.len().saturating_sub(20);
            tokens.get(recent + (at >> 40) % 20).copied()
        };
        if let Some(token) = token {
            token.wake();
        }
        std::thread::yield_now();
    }
}

fn program(seed: u64, tokens: &Arc<Mutex<Vec<CoWaker>>>) -> (u64, usize) {
    let world = Rc::new(World {
        random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        handles: RefCell::new((0..PLACES).map(|_| None).collect()),
        spawned: RefCell::default(),
        alive: Cell::new(0),
        made: Cell::new(0),
        steps: Cell::new(0),
        tokens: Arc::clone(tokens),
    });
    let context = AioContext::new().unwrap();
    let run = || {
        for _ in 0..STEPS {
            let step = || match world.next(3) {
                0 => drop(context.poll(false).unwrap()),
                _ => world.act(),
            };
            // What a body panics with comes to whoever entered it.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(step)) {
                assert!(
                    payload.downcast_ref::<&str>() == Some(&"at random")
                        || payload
                            .downcast_ref::<String>()
                            .is_some_and(|text| text.contains("ended while it was scheduled")),
                    "seed {seed}: {:?} {:?} {:?}",
                    payload.type_id(),
                    payload.downcast_ref::<String>(),
                    payload.downcast_ref::<&str>()
                );
            }
        }
    };
    context.enter_home(run).unwrap();
    assert!(!std::thread::panicking());
    assert_eq!(world.alive.get(), 0, "seed {seed}: some did not end");
    world.handles.borrow_mut().clear();
    (world.steps.get(), world.made.get())
}

// SPEC S3, S4, S7, C2, C3, C4, C8, C9, C12
#[test]
fn random_programs_end() {
    std::panic::set_hook(Box::new(|_| ()));
    let first: u64 = std::env::var("CORIO_SEED").map_or(1, |seed| seed.parse().unwrap());
    let tokens = Arc::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| fire(&tokens, &stop));
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut total = (0, 0);
            for seed in first..first + PROGRAMS {
                let (steps, made) = program(seed, &tokens);
                total = (total.0 + steps, total.1 + made);
                tokens.lock().unwrap().clear();
            }
            println!("{} coroutines, {} steps", total.1, total.0);
            assert!(total.0 > PROGRAMS * STEPS / 2);
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(payload) = ran {
            println!("{:?}", payload.downcast_ref::<String>());
            resume_unwind(payload);
        }
    });
}

// SPEC S3, S7: scheduled by name in the moment in which another thread wakes it, it is queued once,
// by one of the two. Queued by both it would follow itself in the queue, which then has no end.
#[test]
fn a_schedule_races_with_a_token() {
    const ROUNDS: usize = 200_000;
    std::panic::set_hook(Box::new(|_| ()));
    let (ended, has_ended) = mpsc::channel();
    std::thread::spawn(move || {
        let context = AioContext::new().unwrap();
        let races = || {
            let runs = Rc::new(Cell::new(0));
            let (hands_out, token) = mpsc::channel();
            let co = Coroutine::new({
                let runs = Rc::clone(&runs);
                move || {
                    hands_out.send(CoWaker::current().unwrap()).unwrap();
                    loop {
                        runs.set(runs.get() + 1);
                        corio::park();
                    }
                }
            });
            co.enter();
            let token = token.recv().unwrap();
            let (stop, round) = (AtomicBool::new(false), AtomicUsize::new(0));
            let mut won = 0;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let this = round.load(Ordering::Relaxed);
                        if this != last {
                            last = this;
                            token.wake();
                        }
                    }
                });
                for this in 1..=ROUNDS {
                    round.store(this, Ordering::Relaxed);
                    for _ in 0..this % 64 {
                        std::hint::spin_loop();
                    }
                    let is_ok = catch_unwind(AssertUnwindSafe(|| co.schedule())).is_ok();
                    won += usize::from(is_ok);
                    context.poll(false).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            println!("{won} of {ROUNDS} won by name");
            assert!(runs.get() >= ROUNDS);
        };
        context.enter_home(races).unwrap();
        ended.send(()).unwrap();
    });
    has_ended
        .recv_timeout(Duration::from_secs(60))
        .expect("the queue has no end, or it panicked");
}
