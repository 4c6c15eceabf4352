//! Locking, unlocking and cancelling, beside a model that says who has the mutex.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::LazyLock;

use corio::sync::{Mutex, MutexGuard};
use corio::{AioContext, Coroutine};

use super::{Ends, Random, pick, play};

const SEQUENCES: u64 = 4000;
const STEPS: usize = 40;
const WAITERS_MAX: usize = 9;

/// For all sequences, so that its guard may lie anywhere; each leaves it free.
static MUTEX: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

/// What the holder holds while it is suspended.
type Kept = Cell<Option<MutexGuard<'static, ()>>>;

struct GivesUp<'a>(&'a Kept);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// The mutex, its lockers, and what they should see.
struct Line<'a> {
    context: &'a AioContext,
    /// Who got it, in order, as the coroutines tell it.
    served: Rc<RefCell<Vec<usize>>>,
    /// The same, as the model has it; the last has it if `held`.
    expected: Vec<usize>,
    held: bool,
    /// Who should get it next, oldest first.
    waiting: VecDeque<usize>,
    coroutines: Vec<Option<Coroutine>>,
    kept: Rc<Kept>,
    unwound: Rc<Cell<usize>>,
}

impl<'a> Line<'a> {
    fn new(context: &'a AioContext) -> Self {
        Self {
            context,
            served: Rc::default(),
            expected: Vec::new(),
            held: false,
            waiting: VecDeque::new(),
            coroutines: Vec::new(),
            kept: Rc::default(),
            unwound: Rc::default(),
        }
    }

    /// One more locker: it has the mutex, or waits, until it is entered by hand or dropped.
    fn lock(&mut self) {
        let number = self.coroutines.len();
        let (kept, served) = (Rc::clone(&self.kept), Rc::clone(&self.served));
        let ends = Ends(Rc::clone(&self.unwound));
        let co = Coroutine::new(move || {
            let _ends = ends;
            let guard = MUTEX.lock();
            let _gives_up = GivesUp(&kept);
            kept.set(Some(guard));
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

    /// The holder goes on and unlocks, if the home does not unlock in its place: then those who
    /// are woken do not run before their turn comes.
    fn unlock(&mut self, at_home: bool) {
        if self.held {
            // It may have been granted the mutex, and not know it yet.
            self.turn();
            let holder = *self.expected.last().unwrap();
            let co = self.coroutines[holder].take().unwrap();
            if at_home {
                drop(self.kept.take());
            }
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

fn sequence(context: &AioContext, random: &mut Random) {
    let mut line = Line::new(context);
    // Some have few that unlock, so that lines get long; some have many that cancel.
    let weights = [1 + random.below(4), random.below(3), random.below(4), 1];
    for _ in 0..STEPS {
        match pick(random, &weights) {
            0 if line.waiting.len() < WAITERS_MAX => line.lock(),
            1 => line.unlock(random.below(2) == 0),
            2 => line.cancel(random),
            _ => line.turn(),
        }
    }
    while line.held {
        line.unlock(false);
    }
    line.turn();
    assert!(MUTEX.try_lock().is_some(), "nobody has it any more");
}

// SPEC L1, C12
#[test]
fn every_waiter_that_is_not_cancelled_gets_the_mutex_in_its_turn() {
    play(SEQUENCES, sequence);
}
