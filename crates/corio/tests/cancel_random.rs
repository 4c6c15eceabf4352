//! Random sequences of locking, unlocking and cancelling, beside a model that says who has the
//! mutex. The seed is printed; `CORIO_TEST_SEED=N` plays one again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use corio::sync::Mutex;
use corio::{AioContext, Coroutine};

const SEQUENCES: u64 = 4000;
const STEPS: usize = 40;
const WAITERS_MAX: usize = 9;

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }
}

fn seed() -> u64 {
    let given = std::env::var("CORIO_TEST_SEED").ok();
    given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::try_from(now.as_nanos() & u128::from(u32::MAX)).unwrap()
        },
        |text| text.parse().expect("CORIO_TEST_SEED is a number"),
    )
}

/// The mutex, its lockers, and what they should see.
struct Line<'a> {
    context: &'a AioContext,
    mutex: Rc<Mutex<()>>,
    /// Who got it, in order, as the coroutines tell it.
    served: Rc<RefCell<Vec<usize>>>,
    /// The same, as the model has it; the last has it if `held`.
    expected: Vec<usize>,
    held: bool,
    /// Who should get it next, oldest first.
    waiting: VecDeque<usize>,
    coroutines: Vec<Option<Coroutine>>,
    unwound: Rc<Cell<usize>>,
}

impl<'a> Line<'a> {
    fn new(context: &'a AioContext) -> Self {
        Self {
            context,
            mutex: Rc::new(Mutex::new(())),
            served: Rc::default(),
            expected: Vec::new(),
            held: false,
            waiting: VecDeque::new(),
            coroutines: Vec::new(),
            unwound: Rc::default(),
        }
    }

    /// One more locker: it has the mutex, or waits, until it is entered by hand or dropped.
    fn lock(&mut self) {
        let number = self.coroutines.len();
        let (mutex, served) = (Rc::clone(&self.mutex), Rc::clone(&self.served));
        let ends = Ends(Rc::clone(&self.unwound));
        let co = Coroutine::new(move || {
            let _ends = ends;
            let _guard = mutex.lock();
            served.borrow_mut().push(number);
            corio::suspend();
        });
        co.enter();
        self.coroutines.push(Some(co));
        self.waiting.push_back(number);
        if !self.held {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        let next = self.waiting.pop_front();
        self.held = next.is_some();
        self.expected.extend(next);
    }

    /// The holder goes on and unlocks.
    fn unlock(&mut self) {
        if self.held {
            // It may have been granted the mutex, and not know it yet.
            self.turn();
            let holder = *self.expected.last().unwrap();
            let co = self.coroutines[holder].take().unwrap();
            co.enter();
            assert!(co.is_done());
            self.pass_on();
        }
    }

    /// Cancels the waiter, or the holder: whether it knows that it is, or has just been served.
    fn cancel(&mut self, random: &mut Random) {
        let all = self.waiting.len() + usize::from(self.held);
        if all == 0 {
            return;
        }
        match self.waiting.remove(random.below(all)) {
            Some(number) => self.coroutines[number] = None,
            None => {
                let holder = *self.expected.last().unwrap();
                let knows = self.served.borrow().contains(&holder);
                self.coroutines[holder] = None;
                if !knows {
                    self.expected.pop(); // It leaves at its next turn without having been served.
                }
                self.pass_on();
            }
        }
    }

    /// Everyone who was served runs; then what was seen is what the model says.
    fn turn(&mut self) {
        self.context.poll(false).unwrap();
        self.context.poll(false).unwrap();
        assert_eq!(*self.served.borrow(), self.expected);
        let gone = self.coroutines.len() - self.waiting.len() - usize::from(self.held);
        assert_eq!(self.unwound.get(), gone, "frames that have ended");
    }
}

/// Counts those whose frame is gone, however it went.
struct Ends(Rc<Cell<usize>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

fn sequence(context: &AioContext, random: &mut Random) {
    let mut line = Line::new(context);
    // Some have few that unlock, so that lines get long; some have many that cancel.
    let weights = [1 + random.below(4), random.below(3), random.below(4), 1];
    for _ in 0..STEPS {
        let mut pick = random.below(weights.iter().sum());
        let step = weights.iter().position(|&weight| {
            let hit = pick < weight;
            pick = pick.wrapping_sub(weight);
            hit
        });
        match step {
            Some(0) if line.waiting.len() < WAITERS_MAX => line.lock(),
            Some(1) => line.unlock(),
            Some(2) => line.cancel(random),
            _ => line.turn(),
        }
    }
    while line.held {
        line.unlock();
    }
    line.turn();
    assert!(line.mutex.try_lock().is_some(), "nobody has it any more");
}

// SPEC L1, C12
#[test]
fn every_waiter_that_is_not_cancelled_gets_the_mutex_in_its_turn() {
    let first = seed();
    println!("CORIO_TEST_SEED={first}");
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            for seed in first..first + SEQUENCES {
                let run = || sequence(&context, &mut Random(seed));
                let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                assert!(run.is_ok(), "the sequence of CORIO_TEST_SEED={seed}");
            }
        })
        .unwrap();
}
