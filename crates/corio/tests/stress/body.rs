//! What one coroutine does.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use corio::sync::Sender;
use corio::{AioContext, CoWaker, JoinError, JoinHandle, LocalJoinHandle};

use super::Random;
use super::shared::{Bell, Count, Errand, Shared};

const STEPS: usize = 30;

/// What a coroutine is doing, for who finds that it hangs.
const DOING: [&str; 15] = [
    "has not begun",
    "yields",
    "sleeps",
    "moves",
    "runs something elsewhere",
    "locks a mutex",
    "reads or writes",
    "waits for a unit in a queue",
    "acquires permits",
    "is parked",
    "cancels another",
    "is masked",
    "sends a message",
    "joins a child",
    "has ended",
];

struct Seat {
    handle: StdMutex<Option<JoinHandle<()>>>,
    doing: AtomicUsize,
}

/// The coroutines that must end before the next round.
pub(super) struct Round(Vec<Seat>);

impl Round {
    pub(super) fn new(coroutines: usize) -> Self {
        let seat = || Seat {
            handle: StdMutex::new(None),
            doing: AtomicUsize::new(0),
        };
        Self(std::iter::repeat_with(seat).take(coroutines).collect())
    }

    pub(super) fn set_handle(&self, i: usize, handle: JoinHandle<()>) {
        *self.0[i].handle.lock().unwrap() = Some(handle);
    }

    /// Asks one to end, unless it is joined already, or not spawned yet.
    pub(super) fn cancel(&self, i: usize) {
        if let Some(handle) = &*self.0[i].handle.lock().unwrap() {
            handle.cancel().unwrap();
        }
    }

    /// Waits for one on a plain thread; others may cancel it meanwhile.
    pub(super) fn join(&self, i: usize) -> Result<(), JoinError> {
        let waker = Waker::from(Arc::new(Unparks(thread::current())));
        loop {
            let mut handle = self.0[i].handle.lock().unwrap();
            let polled = Pin::new(handle.as_mut().unwrap()).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(outcome) = polled {
                *handle = None;
                return outcome;
            }
            drop(handle);
            thread::park();
        }
    }

    /// Which have not ended, and what they do.
    pub(super) fn hanging(&self) -> Vec<String> {
        let seats = self.0.iter().enumerate();
        let living = seats.filter(|(_, seat)| {
            let handle = seat.handle.try_lock();
            handle.is_ok_and(|handle| handle.as_ref().is_some_and(|handle| !handle.is_finished()))
        });
        living
            .map(|(i, seat)| format!("{i}: {}", DOING[seat.doing.load(Ordering::Relaxed)]))
            .collect()
    }
}

struct Unparks(Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Something that a coroutine owns, here or there on its stack.
struct Owned(Arc<Shared>);

impl Owned {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Release);
    }
}

/// Has a child end with its parent, also if that is cancelled.
struct Ends(Option<LocalJoinHandle<u64>>);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            let _mask = corio::mask_cancel();
            child.cancel().unwrap();
            let _ = child.join();
        }
    }
}

/// What happens in the middle of something.
#[derive(Clone, Copy)]
enum Pause {
    None,
    Yield,
    Sleep(Duration),
}

impl Pause {
    fn draw(random: &mut Random) -> Self {
        match random.below(8) {
            0..4 => Self::None,
            4..7 => Self::Yield,
            _ => Self::Sleep(Duration::from_micros(random.next() % 200)),
        }
    }

    fn take(self, shared: &Shared) {
        match self {
            Self::None => {}
            Self::Yield => {
                shared.count(Count::Yields);
                corio::yield_now();
            }
            Self::Sleep(duration) => {
                shared.count(Count::Sleeps);
                corio::time::sleep(duration);
            }
        }
    }
}

/// One coroutine of a round.
pub(super) struct Member {
    owned: Owned,
    round: Arc<Round>,
    number: usize,
    random: Random,
    /// To who answers in this round.
    asks: Sender<Bell>,
    over: Arc<AtomicBool>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.does(DOING.len() - 1);
    }
}

impl Member {
    pub(super) fn new(
        shared: &Arc<Shared>,
        round: &Arc<Round>,
        asks: Sender<Bell>,
        number: usize,
        random: Random,
    ) -> Self {
        Self {
            owned: Owned::new(shared),
            round: Arc::clone(round),
            number,
            random,
            asks,
            over: Arc::default(),
        }
    }

    fn shared(&self) -> &Shared {
        &self.owned.0
    }

    fn does(&self, what: usize) {
        self.round.0[self.number]
            .doing
            .store(what, Ordering::Relaxed);
    }

    pub(super) fn run(mut self) {
        for _ in 0..STEPS {
            let _owned = Owned::new(&self.owned.0);
            match self.random.below(100) {
                0..10 => self.hold_unit(),
                10..20 => self.hold_permits(),
                20..24 => self.cancel_somebody(),
                24..30 => self.mask(),
                30..36 => self.have_child(),
                36..42 => self.run_elsewhere(),
                _ => self.inner_step(),
            }
        }
    }

    /// What may be done while a unit or permits are held: waits for neither.
    fn inner_step(&mut self) {
        let pause = Pause::draw(&mut self.random);
        match self.random.below(6) {
            0 => self.hop(),
            1 => self.park(),
            2 => {
                self.does(6);
                let mut random = Random(self.random.next());
                let shared = self.shared();
                shared.read_or_write(&mut random, || pause.take(shared));
            }
            3 => {
                self.does(if matches!(pause, Pause::Sleep(_)) {
                    2
                } else {
                    1
                });
                pause.take(self.shared());
            }
            _ => {
                self.does(5);
                let mut random = Random(self.random.next());
                let shared = self.shared();
                shared.lock(&mut random, || pause.take(shared));
            }
        }
    }

    fn somewhere(&mut self) -> AioContext {
        let all = self.owned.0.contexts.len();
        self.owned.0.contexts[self.random.below(all)].clone()
    }

    /// Goes on in another thread. No lock's guard is on the stack.
    #[inline(never)] // Nothing of this thread is kept across the move.
    fn hop(&mut self) {
        let context = self.somewhere();
        if thread::panicking() {
            return; // Another one of this thread is parked in a destructor.
        }
        self.does(3);
        self.shared().count(Count::Hops);
        // SAFETY: the stack holds references to what all share, and counts; the handles of
        // children are gone.
        unsafe { corio::move_to(&context) };
        assert!(context.is_home());
    }

    /// Until somebody else has said go on, on a thread of its own or in a coroutine.
    fn park(&mut self) {
        let rung = Arc::new(AtomicBool::new(false));
        let bell = Bell {
            waker: CoWaker::current().unwrap(),
            rung: Arc::clone(&rung),
            over: Arc::clone(&self.over),
            times: if self.random.one_in(4) { 3 } else { 1 },
        };
        self.does(9);
        match self.random.below(3) {
            0 => {
                let shared = Arc::clone(&self.owned.0);
                drop(self.somewhere().spawn(move || bell.ring(&shared)));
            }
            1 => {
                self.does(12);
                self.asks.send(bell).unwrap();
                self.does(9);
                self.shared().count(Count::Messages);
            }
            _ => self.shared().errands.send(Errand::Ring(bell)).unwrap(),
        }
        while !rung.load(Ordering::Acquire) {
            self.shared().count(Count::Parks);
            corio::park();
        }
    }

    fn hold_unit(&mut self) {
        self.does(7);
        let shared = Arc::clone(&self.owned.0);
        let _unit = shared.unit();
        self.inner_step();
        self.inner_step();
    }

    fn hold_permits(&mut self) {
        self.does(8);
        let shared = Arc::clone(&self.owned.0);
        let _permits = shared.permits(1 + self.random.below(3));
        self.inner_step();
        self.inner_step();
    }

    /// Perhaps itself.
    fn cancel_somebody(&mut self) {
        if !self.random.one_in(4) {
            return self.inner_step();
        }
        self.does(10);
        let whom = self.random.below(self.round.0.len());
        self.shared().count(Count::CancelsAsked);
        if self.random.one_in(2) {
            return self.round.cancel(whom);
        }
        let errand = Errand::Cancel(Arc::clone(&self.round), whom);
        self.shared().errands.send(errand).unwrap();
    }

    fn mask(&mut self) {
        self.does(11);
        let _mask = corio::mask_cancel();
        for _ in 0..2 {
            Pause::draw(&mut self.random).take(self.shared());
        }
    }

    fn have_child(&mut self) {
        self.does(13);
        let shared = Arc::clone(&self.owned.0);
        shared.count(Count::Children);
        let (owned, seed) = (Owned::new(&shared), self.random.next());
        let mut child = Ends(Some(corio::spawn_local(move || {
            let _owned = owned;
            let mut random = Random(seed);
            let pause = Pause::draw(&mut random);
            shared.lock(&mut random, || pause.take(&shared));
            seed
        })));
        Pause::draw(&mut self.random).take(self.shared());
        if self.random.one_in(2) {
            let handle = child.0.take().unwrap();
            if handle.is_finished() {
                assert_eq!(handle.join().unwrap(), seed);
            } else {
                child.0 = Some(handle);
            }
        }
    }

    fn run_elsewhere(&mut self) {
        self.does(4);
        let (context, shared) = (self.somewhere(), Arc::clone(&self.owned.0));
        let (owned, seed) = (Owned::new(&shared), self.random.next());
        shared.count(Count::RunsElsewhere);
        let there = context.clone();
        let result = context.run(move || {
            let _owned = owned;
            assert!(there.is_home());
            let mut random = Random(seed);
            let pause = Pause::draw(&mut random);
            shared.lock(&mut random, || pause.take(&shared));
            seed
        });
        assert_eq!(result, seed);
    }
}
