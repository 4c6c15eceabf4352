//! Models of the queue: what is scheduled, cancelled and deleted elsewhere meanwhile.

use super::*;
use crate::context::notify::NotifyState;
use crate::model;
use loom::sync::{Arc, Condvar, Mutex};
use std::sync::atomic::{AtomicBool as Mark, AtomicU32 as Count, Ordering::Relaxed};

/// Never unmapped while a model runs, so that a use after the end is seen and is no crash.
struct Node {
    link: Link<Node>,
    freed: Mark,
    runs: Count,
}

impl Chained for Node {
    fn next(&self) -> &AtomicPtr<Self> {
        self.link.next_asked()
    }
}

impl Linked for Node {
    fn link(&self) -> &Link<Self> {
        assert!(!self.freed.load(Relaxed), "used after it was freed");
        &self.link
    }

    fn runs_once(&self) -> bool {
        false
    }
}

struct Model {
    queue: Queue<Node>,
    nodes: [Node; 2],
}

impl Model {
    fn new() -> Arc<Self> {
        let node = || Node {
            link: Link::new(),
            freed: Mark::new(false),
            runs: Count::new(0),
        };
        Arc::new(Self {
            queue: Queue::new(),
            nodes: [node(), node()],
        })
    }

    fn free(&self, node: &Node) {
        assert!(!node.freed.swap(true, Relaxed), "freed twice");
    }

    fn section(&self) -> Section<'_, Node> {
        self.queue.section().unwrap()
    }

    /// A turn: what ran, in order.
    fn turn(&self) -> Vec<usize> {
        let mut slice = self.section().slice();
        let mut ran = Vec::new();
        loop {
            let section = self.section();
            let plain = section.pop_plain(&mut slice).map(|node| Popped::Run {
                node,
                hurry: Hurry::Urgent,
            });
            let Some(popped) = plain.or_else(|| section.pop(&mut slice)) else {
                return ran;
            };
            drop(section);
            match popped {
                Popped::Run { node, .. } => {
                    let node = resolve(node.as_ptr()).unwrap();
                    node.runs.fetch_add(1, Relaxed);
                    ran.push(usize::from(ptr::eq(node, &self.nodes[1])));
                    if self.section().ran(node) {
                        self.free(node);
                    }
                }
                Popped::Dead(node) => self.free(resolve(node.as_ptr()).unwrap()),
                Popped::Skip => {}
                Popped::Once(_) => unreachable!(),
            }
        }
    }

    fn runs(&self, node: usize) -> u32 {
        self.nodes[node].runs.load(Relaxed)
    }
}

fn elsewhere(
    model: &Arc<Model>,
    f: impl FnOnce(&Model) + Send + 'static,
) -> loom::thread::JoinHandle<()> {
    let model = Arc::clone(model);
    loom::thread::spawn(move || f(&model))
}

// SPEC L7, B1, B2: scheduled at home and elsewhere, with turns meanwhile: it runs at least once
// after the last schedule, and not more often than it was scheduled.
#[test]
fn loom_bottom_half_is_never_lost() {
    model::check(None, || {
        let model = Model::new();
        let other = elsewhere(&model, |m| _ = m.queue.ask(&m.nodes[0], Hurry::Urgent));
        model.section().schedule(&model.nodes[0], Hurry::Urgent);
        model.turn();
        assert!(model.runs(0) >= 1);
        other.join().unwrap();
        model.turn();
        assert!((1..=2).contains(&model.runs(0)));
        assert!(model.turn().is_empty());
        assert_eq!(model.nodes[0].link.home.load(Ordering::Relaxed), 0);
        assert_eq!(model.nodes[0].link.asked.load(Ordering::Relaxed), 0);
    });
}

// SPEC L7, B1, B2: two threads that schedule the same two, and the home that runs them.
#[test]
fn loom_bottom_half_of_two_threads_is_never_lost() {
    model::check(3, || {
        let model = Model::new();
        let others = [0, 1].map(|first| {
            elsewhere(&model, move |m| {
                _ = m.queue.ask(&m.nodes[first], Hurry::Urgent);
                _ = m.queue.ask(&m.nodes[1 - first], Hurry::Idle);
            })
        });
        model.turn();
        for other in others {
            other.join().unwrap();
        }
        model.turn();
        for node in [0, 1] {
            assert!((1..=2).contains(&model.runs(node)));
        }
        assert!(model.turn().is_empty());
    });
}

// SPEC L7, B7: whoever has seen another's schedule comes after it.
#[test]
fn loom_bottom_half_order_is_that_of_the_schedules() {
    model::check(None, || {
        let model = Model::new();
        let told = Arc::new(AtomicBool::new(false));
        let other = elsewhere(&model, {
            let told = Arc::clone(&told);
            move |m| {
                _ = m.queue.ask(&m.nodes[0], Hurry::Urgent);
                told.store(true, Ordering::Release); // Pairs with the home's look.
            }
        });
        let was_told = told.load(Ordering::Acquire);
        model.section().schedule(&model.nodes[1], Hurry::Urgent);
        other.join().unwrap();
        let ran = model.turn();
        assert_eq!(ran.len(), 2);
        if was_told {
            assert_eq!(ran, [0, 1]);
        }
    });
}

// SPEC L7, B5: what was cancelled elsewhere after its schedule does not run, unless it ran before.
#[test]
fn loom_bottom_half_cancelled_elsewhere_does_not_run() {
    model::check(None, || {
        let model = Model::new();
        model.section().schedule(&model.nodes[0], Hurry::Urgent);
        let other = elsewhere(&model, |m| {
            _ = m.queue.ask(&m.nodes[0], Hurry::Urgent);
            Queue::ask_to_cancel(&m.nodes[0]);
        });
        model.turn();
        let before = model.runs(0);
        assert!(before <= 1);
        other.join().unwrap();
        model.turn();
        assert_eq!(model.runs(0), before, "it ran after it was cancelled");
        model.section().schedule(&model.nodes[0], Hurry::Urgent);
        assert_eq!(model.turn(), [0], "a later schedule is another one");
    });
}

/// Two threads schedule one each while the home is about to wait: it does not sleep over either,
/// though the second to push need not tell it.
// SPEC L7, B1, N1
#[test]
fn loom_bottom_half_is_not_slept_over() {
    model::check(3, || {
        let model = Model::new();
        let bell = Arc::new((Mutex::new(false), Condvar::new()));
        let notify = Arc::new(NotifyState::new());
        let others = [0, 1].map(|node| {
            let (bell, notify) = (Arc::clone(&bell), Arc::clone(&notify));
            elsewhere(&model, move |m| {
                if m.queue.ask(&m.nodes[node], Hurry::Urgent) && notify.pushed() {
                    *bell.0.lock().unwrap() = true;
                    bell.1.notify_one();
                }
            })
        });
        while model.runs(0) + model.runs(1) < 2 {
            notify.begin_wait();
            model.queue.look();
            if !notify.is_notified() && model.section().is_urgent().is_none() {
                let mut rung = bell.0.lock().unwrap();
                while !*rung {
                    rung = bell.1.wait(rung).unwrap();
                }
                *rung = false;
            }
            notify.end_wait();
            notify.accept();
            model.turn();
        }
        for other in others {
            other.join().unwrap();
        }
    });
}

/// Deletes it elsewhere, scheduled there before or not, while the home runs it.
fn deleted_elsewhere(scheduled: bool) {
    model::check(None, move || {
        let model = Model::new();
        if !scheduled {
            _ = model.queue.ask(&model.nodes[0], Hurry::Urgent);
        }
        let other = elsewhere(&model, move |m| {
            if scheduled {
                _ = m.queue.ask(&m.nodes[0], Hurry::Urgent);
            }
            if m.queue.delete(&m.nodes[0]) {
                m.free(&m.nodes[0]);
            }
        });
        model.turn();
        let before = model.runs(0);
        other.join().unwrap();
        model.turn();
        assert!(model.nodes[0].freed.load(Relaxed), "it leaks");
        assert_eq!(model.runs(0), before, "it ran after it was deleted");
        assert!(model.turn().is_empty());
    });
}

// SPEC L7, B5, A3
#[test]
fn loom_bottom_half_deleted_elsewhere_is_freed_once_and_not_used_after() {
    deleted_elsewhere(false);
}

// SPEC L7, B5, A3
#[test]
fn loom_bottom_half_scheduled_and_deleted_elsewhere_is_freed_once() {
    deleted_elsewhere(true);
}
