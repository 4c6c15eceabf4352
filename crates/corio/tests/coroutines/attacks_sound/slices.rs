//! Bottom halves at random, against a model of the queue: callbacks that schedule, cancel, delete
//! and poll, at home and by another thread, and that panic through nested polls (SPEC A3, B2 to B7).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use corio::AioContext;
use corio::context::{BottomHalf, MonitorChoice};

/// Bottom halves at a time.
const HALVES: usize = 5;
/// Nested polls at most.
const DEPTH_MAX: usize = 4;
const ROUNDS: usize = 400;

/// What the queue is to know of one, which keeps its number when it is deleted.
#[derive(Clone, Copy, Default)]
struct Known {
    queued: bool,
    scheduled: bool,
    idle: bool,
    running: usize,
    dropped: bool,
}

/// A turn: its number, and how many had ever been queued when it began.
#[derive(Clone, Copy)]
struct Slice {
    number: usize,
    limit: usize,
}

#[derive(Default)]
struct Model {
    known: Vec<Known>,
    /// Who is queued, oldest first, and as the how manieth.
    queue: VecDeque<(usize, usize)>,
    appended: usize,
    slices: usize,
    turns: Vec<Slice>,
    handles: Vec<Option<(usize, Arc<BottomHalf>)>>,
    /// Actions left in this round.
    budget: usize,
    /// State of a xorshift generator.
    random: u64,
    panics: usize,
    cut: usize,
}

impl Model {
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % limit as u64).unwrap()
    }

    fn queue(&mut self, number: usize) {
        if !std::mem::replace(&mut self.known[number].queued, true) {
            self.queue.push_back((number, self.appended));
            self.appended += 1;
        }
    }

    fn schedule(&mut self, number: usize, idle: bool) {
        let known = &mut self.known[number];
        known.idle = idle && (known.idle || !known.scheduled);
        known.scheduled = true;
        self.queue(number);
    }

    fn is_cut(&self) -> bool {
        self.turns
            .last()
            .is_none_or(|turn| turn.number != self.slices)
    }

    /// Whether a turn has something to run, and something that has a hurry.
    fn is_due(&self, urgent: bool) -> bool {
        let mut queued = self.queue.iter().map(|(number, _)| self.known[*number]);
        queued.any(|known| known.scheduled && !(urgent && known.idle))
    }

    /// The next that the innermost turn runs.
    fn pop(&mut self) -> Option<usize> {
        let limit = self.turns.last().unwrap().limit;
        while !self.is_cut() && self.queue.front().is_some_and(|(_, at)| *at < limit) {
            let (number, _) = self.queue.pop_front().unwrap();
            let known = &mut self.known[number];
            known.queued = false;
            if std::mem::take(&mut known.scheduled) {
                return Some(number);
            }
        }
        None
    }
}

/// Tells when the callback that has captured it is freed.
struct Captured(usize, Arc<Scene>, [u8; 40]);

impl Drop for Captured {
    fn drop(&mut self) {
        self.2.fill(0);
        let known = &mut self.1.model.lock().unwrap().known[self.0];
        assert_eq!(known.running, 0, "freed while it runs");
        assert!(!std::mem::replace(&mut known.dropped, true));
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Scene {
    context: AioContext,
    model: Mutex<Model>,
    other: mpsc::Sender<(Job, mpsc::Sender<()>)>,
}

impl Scene {
    /// Has it done at home or by the other thread, and waits for it.
    fn done(&self, elsewhere: bool, job: impl FnOnce() + Send + 'static) {
        if !elsewhere {
            return job();
        }
        let (done, told) = mpsc::channel();
        self.other.send((Box::new(job), done)).unwrap();
        told.recv().unwrap();
    }

    fn known(self: &Arc<Self>) -> (usize, Captured) {
        let mut model = self.model.lock().unwrap();
        model.known.push(Known::default());
        let number = model.known.len() - 1;
        (number, Captured(number, Arc::clone(self), [0x5a; 40]))
    }

    fn half(self: &Arc<Self>, place: usize) -> (usize, Arc<BottomHalf>) {
        if let Some(half) = &self.model.lock().unwrap().handles[place] {
            return half.clone();
        }
        let (number, captured) = self.known();
        let half = self
            .context
            .bottom_half("at random", move || captured.1.ran(&captured));
        let half = (number, Arc::new(half));
        self.model.lock().unwrap().handles[place] = Some(half.clone());
        half
    }

    /// One thing or another.
    fn act(self: &Arc<Self>) {
        let (what, place, elsewhere, idle) = {
            let mut model = self.model.lock().unwrap();
            let what = model.below(12);
            (
                what,
                model.below(HALVES),
                model.below(3) == 0,
                model.below(4) == 0,
            )
        };
        match what {
            0..=4 => {
                let (number, half) = self.half(place);
                let mut model = self.model.lock().unwrap();
                // Asked elsewhere while it is queued, it may get a second, empty place, in which a
                // later schedule runs: the model has none of those.
                let elsewhere = elsewhere && !model.known[number].queued;
                model.schedule(number, idle);
                drop(model);
                self.done(elsewhere, move || {
                    if idle {
                        half.schedule_idle()
                    } else {
                        half.schedule()
                    }
                });
            }
            5 => {
                let (number, half) = self.half(place);
                self.model.lock().unwrap().known[number].scheduled = false;
                self.done(elsewhere, move || half.cancel());
            }
            6 => {
                let (number, half) = self.half(place);
                {
                    let mut model = self.model.lock().unwrap();
                    model.known[number].scheduled = false;
                    model.handles[place] = None;
                }
                self.done(elsewhere, move || drop(half));
            }
            7 | 8 => {
                let (number, captured) = self.known();
                self.model.lock().unwrap().schedule(number, false);
                let own = self.context.clone();
                let run = move || captured.1.ran(&captured);
                self.done(elsewhere, move || own.schedule_oneshot("at random", run));
            }
            _ => self.turn(),
        }
    }

    /// A callback runs.
    fn ran(self: &Arc<Self>, captured: &Captured) {
        let number = captured.0;
        let actions = {
            let mut model = self.model.lock().unwrap();
            assert_eq!(model.pop(), Some(number), "another one's turn");
            model.known[number].running += 1;
            model.below(4)
        };
        for _ in 0..actions {
            {
                let mut model = self.model.lock().unwrap();
                let Some(budget) = model.budget.checked_sub(1) else {
                    break;
                };
                model.budget = budget;
            }
            self.act();
        }
        assert_eq!(captured.2, [0x5a; 40]);
        let mut model = self.model.lock().unwrap();
        model.known[number].running -= 1;
        if model.below(8) == 0 {
            model.panics += 1;
            drop(model);
            resume_unwind(Box::new("planned"));
        }
    }

    /// A turn, perhaps in another one, which blocks if it has no reason to.
    fn turn(self: &Arc<Self>) {
        let blocking = {
            let mut model = self.model.lock().unwrap();
            if model.turns.len() > DEPTH_MAX {
                return;
            }
            model.slices += 1;
            let turn = Slice {
                number: model.slices,
                limit: model.appended,
            };
            model.turns.push(turn);
            model.is_due(true)
        };
        let polled = catch_unwind(AssertUnwindSafe(|| self.context.poll(blocking)));
        let mut model = self.model.lock().unwrap();
        match polled {
            Ok(progress) => {
                if model.is_cut() {
                    model.cut += 1;
                }
                assert_eq!(model.pop(), None, "a turn has left one");
                progress.unwrap(); // An inner turn may have run what there was to run.
            }
            Err(payload) if payload.is::<&str>() => {
                // What it has left, or the turns around it, is the next turn's.
                assert_eq!(payload.downcast_ref(), Some(&"planned"));
            }
            Err(payload) => resume_unwind(payload),
        }
        model.turns.pop();
    }
}

// SPEC A3, B2, B3, B4, B5, B6, B7: each runs in its place, in whichever turn that is; none is lost,
// none runs twice, none is slept over, and each is freed once, when its last run is over.
#[test]
fn bottom_halves_of_nested_turns_that_panic_are_those_of_the_model() {
    for monitor in MonitorChoice::ALL {
        is_as_modelled(monitor);
    }
}

fn is_as_modelled(monitor: MonitorChoice) {
    let (other, work) = mpsc::channel::<(Job, mpsc::Sender<()>)>();
    let thread = thread::spawn(move || {
        for (job, done) in work {
            job();
            done.send(()).unwrap();
        }
    });
    let context = AioContext::builder().monitor(monitor).build().unwrap();
    let scene = Arc::new(Scene {
        context: context.clone(),
        model: Mutex::new(Model {
            handles: vec![None; HALVES],
            random: 0x9e37_79b9_7f4a_7c15,
            ..Model::default()
        }),
        other,
    });
    for _ in 0..ROUNDS / 100 {
        let rounds = || {
            for _ in 0..100 {
                scene.model.lock().unwrap().budget = 60;
                for _ in 0..6 {
                    scene.act();
                }
                scene.turn();
            }
            scene.model.lock().unwrap().budget = 0;
            for _ in 0..1000 {
                scene.turn();
                if scene.model.lock().unwrap().queue.is_empty() {
                    break;
                }
            }
            assert!(!context.poll(false).unwrap());
        };
        context.enter_home(rounds).unwrap();
        // The next home runs what this one's end has left, if anything.
    }
    let handles = std::mem::take(&mut scene.model.lock().unwrap().handles);
    drop(handles);
    let turns = || (0..2).for_each(|_| _ = context.poll(false).unwrap());
    context.enter_home(turns).unwrap();
    {
        let model = scene.model.lock().unwrap();
        let kept = model.known.iter().filter(|known| !known.dropped).count();
        assert_eq!(kept, 0, "of {} are not freed", model.known.len());
        assert!(
            model.cut > 100 && model.panics > 100,
            "{} {}",
            model.cut,
            model.panics
        );
    }
    drop(scene);
    thread.join().unwrap();
}
