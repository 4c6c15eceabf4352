//! Families of coroutines on one thread that start, join and cancel each other at random, by their
//! handles, by name and by tokens, some of which another thread fires.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use corio::sync::{after, select};
use corio::{AioContext, CoWaker, Coroutine, JoinError, LocalJoinHandle, time};

use super::{Ends, Random, pick, play};

/// At most so many in a family.
const FAMILY: usize = 60;
/// How long a family may take to end once nobody is kept.
const PATIENCE: Duration = Duration::from_secs(20);

/// A handle that may be joined by who is older, and cancelled by anybody.
struct Held {
    number: usize,
    handle: RefCell<Option<LocalJoinHandle<usize>>>,
}

/// What opens it, and who is to be woken then.
type Gate = (Rc<Cell<bool>>, Option<CoWaker>);

struct Family {
    random: RefCell<Random>,
    held: RefCell<Vec<Rc<Held>>>,
    tokens: RefCell<Vec<CoWaker>>,
    gates: RefCell<Vec<Gate>>,
    named: RefCell<Vec<Rc<Coroutine>>>,
    made: Cell<usize>,
    ended: Rc<Cell<usize>>,
    failed: Cell<bool>,
    far: mpsc::Sender<CoWaker>,
}

impl Family {
    fn below(&self, limit: usize) -> usize {
        self.random.borrow_mut().below(limit)
    }

    /// One of the list, if there is one.
    fn any<T: Clone>(&self, list: &RefCell<Vec<T>>) -> Option<T> {
        let len = list.borrow().len();
        (len > 0).then(|| list.borrow()[self.below(len)].clone())
    }

    /// What the next member is to run.
    fn member(self: &Rc<Self>) -> (usize, impl FnOnce() -> usize + use<>) {
        let number = self.made.get();
        self.made.set(number + 1);
        let (family, ends) = (Rc::clone(self), Ends(Rc::clone(&self.ended)));
        (number, move || {
            let _ends = ends;
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| family.live(number))) {
                family.note(&*payload);
                resume_unwind(payload);
            }
            number
        })
    }

    fn child(self: &Rc<Self>) -> (usize, LocalJoinHandle<usize>) {
        let (number, body) = self.member();
        (number, corio::spawn_local(body))
    }

    /// A panic, which is not to be taken for a cancellation.
    fn note(&self, payload: &(dyn Any + Send)) {
        self.failed
            .set(self.failed.get() || payload.is::<String>() || payload.is::<&str>());
    }

    fn is_full(&self) -> bool {
        self.made.get() >= FAMILY
    }

    fn joined(number: usize, outcome: Result<usize, JoinError>) {
        match outcome {
            Ok(result) => assert_eq!(result, number),
            Err(JoinError::Cancelled) => {}
            Err(error) => panic!("{number}: {error:?}"),
        }
    }

    /// Joins somebody younger.
    fn join_held(&self, own: usize) {
        let Some(held) = self.any(&self.held) else {
            return;
        };
        let handle = if held.number > own {
            held.handle.borrow_mut().take()
        } else {
            None
        };
        if let Some(handle) = handle {
            Self::joined(held.number, handle.join());
        }
    }

    fn cancel_held(&self) {
        if let Some(held) = self.any(&self.held)
            && let Some(handle) = &*held.handle.borrow()
        {
            handle.cancel().unwrap();
        }
    }

    fn hold(&self, number: usize, handle: LocalJoinHandle<usize>) {
        self.held.borrow_mut().push(Rc::new(Held {
            number,
            handle: RefCell::new(Some(handle)),
        }));
    }

    /// Parks until the gate is opened.
    fn wait_at_gate(&self) {
        let gate = Rc::new(Cell::new(false));
        self.gates
            .borrow_mut()
            .push((Rc::clone(&gate), CoWaker::current()));
        while !gate.get() {
            corio::park();
        }
    }

    fn open_gate(&self) {
        let len = self.gates.borrow().len();
        if len > 0 {
            let at = self.below(len);
            let (gate, token) = self.gates.borrow_mut().swap_remove(at);
            gate.set(true);
            if let Some(token) = token {
                self.fire(token);
            }
        }
    }

    fn fire(&self, token: CoWaker) {
        if self.below(3) == 0 {
            self.far.send(token).unwrap();
        } else {
            token.wake();
        }
    }

    fn live(self: &Rc<Self>, number: usize) {
        for _ in 0..self.below(6) {
            if self.is_full() {
                corio::yield_now();
                self.join_held(number);
                return;
            }
            let step = pick(
                &mut self.random.borrow_mut(),
                &[4, 6, 4, 4, 4, 4, 2, 3, 2, 3, 2, 2, 2, 3],
            );
            match step {
                0 => {
                    let (number, handle) = self.child();
                    self.hold(number, handle);
                }
                1 => {
                    let (number, handle) = self.child();
                    Self::joined(number, handle.join());
                }
                2 => {
                    let (number, handle) = self.child();
                    for _ in 0..self.below(3) {
                        corio::yield_now();
                    }
                    handle.cancel().unwrap();
                    Self::joined(number, handle.join());
                }
                3 => self.join_held(number),
                4 => self.cancel_held(),
                5 => corio::yield_now(),
                6 => self.tokens.borrow_mut().extend(CoWaker::current()),
                7 => {
                    if let Some(token) = self.any(&self.tokens) {
                        self.fire(token);
                    }
                }
                8 => self.wait_at_gate(),
                9 => {
                    // Goes on though it was cancelled there.
                    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.join_held(number)))
                    {
                        self.note(&*payload);
                    }
                }
                10 => {
                    let (_, body) = self.member();
                    let limit = Duration::from_micros([0, 1, 20][self.below(3)]);
                    let _ = time::timeout(limit, body);
                }
                11 => {
                    let (number, mut handle) = self.child();
                    let _ = select((handle.on_end(), after(Duration::from_micros(5))));
                    match self.below(3) {
                        0 => Self::joined(number, handle.join()),
                        1 => self.hold(number, handle),
                        _ => drop(handle),
                    }
                }
                12 => corio::scope(|s| {
                    for _ in 0..self.below(3) {
                        let (_, body) = self.member();
                        s.spawn(body);
                    }
                }),
                _ => {
                    let (_, body) = self.member();
                    let co = Rc::new(Coroutine::new(move || assert!(body() < FAMILY * 2)));
                    if self.below(2) == 0 {
                        co.schedule();
                    } else {
                        co.enter();
                    }
                    self.named.borrow_mut().push(co);
                }
            }
        }
    }

    /// What happens outside of all coroutines.
    fn nudge(&self) {
        match self.below(6) {
            0 => self.cancel_held(),
            1 => self.open_gate(),
            2 => {
                if let Some(token) = self.any(&self.tokens) {
                    self.fire(token);
                }
            }
            3 => {
                let co = self.named.borrow_mut().pop();
                drop(co); // Cancels it.
            }
            4 => {
                if let Some(co) = self.any(&self.named) {
                    co.cancel().unwrap();
                }
            }
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        self.ended.get() == self.made.get()
    }
}

fn sequence(context: &AioContext, random: &mut Random, far: &mpsc::Sender<CoWaker>) {
    let family = Rc::new(Family {
        random: RefCell::new(Random(random.0)),
        held: RefCell::default(),
        tokens: RefCell::default(),
        gates: RefCell::default(),
        named: RefCell::default(),
        made: Cell::new(0),
        ended: Rc::default(),
        failed: Cell::new(false),
        far: far.clone(),
    });
    for _ in 0..5 {
        let (number, handle) = family.child();
        family.hold(number, handle);
    }
    for _ in 0..family.below(60) {
        context.poll(false).unwrap();
        family.nudge();
    }
    let began = Instant::now();
    while !family.is_over() {
        family.open_gate();
        // A raw suspension is nobody's here, so whoever is named still goes on by itself.
        context.poll(false).unwrap();
        assert!(
            began.elapsed() < PATIENCE,
            "{} of {} have ended",
            family.ended.get(),
            family.made.get()
        );
    }
    assert!(!family.failed.get(), "one of them has panicked");
}

// SPEC C12, S7, L8: whoever joins within a thread goes on, whatever state the joined one was in when
// it was cancelled, and whichever of the two had a token out.
#[test]
fn families_that_join_and_cancel_each_other_end() {
    let (far, near) = mpsc::channel::<CoWaker>();
    let thread = std::thread::spawn(move || near.iter().for_each(CoWaker::wake));
    play(1_000, |context, random| sequence(context, random, &far));
    drop(far);
    thread.join().unwrap();
}
