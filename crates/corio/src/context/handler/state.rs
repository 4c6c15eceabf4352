//! What any thread may do to a handler, and how its home learns of it: one word a handler, and the
//! context's mailbox.
//!
//! ```text
//!   any thread                                     home thread, at the start of a turn
//!   -------------------------------------          -------------------------------------------
//!   word: wanted interest, or REMOVED, + QUEUED    takes the mailbox
//!   QUEUED was clear: push onto the mailbox        word: QUEUED cleared, the rest read   (1)
//!   notify the context                             applies it to table and monitor
//!                                                  ..
//!                                                  ready: looks at the word, calls       (2)
//! ```
//!
//! Invariants
//! - I1 A handler is in the mailbox, or taken from it and not looked at yet, exactly while QUEUED
//!   is set. Who sets it pushes.
//! - I2 What is wanted is read in (1) no earlier than QUEUED is cleared: a change that finds it set
//!   is seen by that read, and one that comes later pushes again.
//! - I3 REMOVED is never cleared, and nothing is wanted after it. It is looked at in (2), after all
//!   that ran before in the same turn.

use super::Interest;
use crate::atomic::{AtomicU32, Ordering};

const READ: u32 = 1;
const WRITE: u32 = 2;
/// See I1.
const QUEUED: u32 = 4;
/// See I3.
const REMOVED: u32 = 8;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct State(AtomicU32);

impl State {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Changes what is wanted. True: the caller pushes (I1). Any thread.
    #[must_use]
    pub(super) fn want(&self, interest: Interest) -> bool {
        let wanted = bits(interest) | QUEUED;
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen & REMOVED == 0 {
            // Release: pairs with `take`, for who pushed is not who wanted.
            match self
                .0
                .compare_exchange_weak(seen, wanted, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return seen & QUEUED == 0,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// It is not to be called any more. True: the caller pushes (I1). Any thread.
    #[must_use]
    pub(super) fn remove(&self) -> bool {
        // Release: pairs with `take`.
        self.0.fetch_or(REMOVED | QUEUED, Ordering::Release) & QUEUED == 0
    }

    /// Between two homes: the next one is to take it up. True: the caller pushes (I1).
    #[must_use]
    pub(super) fn requeue(&self) -> bool {
        self.0.fetch_or(QUEUED, Ordering::Release) & QUEUED == 0
    }

    /// Taken from the mailbox: what is wanted, None if it is removed (I2). Home thread.
    pub(super) fn take(&self) -> Option<Interest> {
        // Planted: what comes between the two is overlooked for ever.
        let before = planted!("handler_read_before_clear").then(|| self.wanted());
        // Acquire: pairs with `want` and `remove`.
        let seen = self.0.fetch_and(!QUEUED, Ordering::Acquire);
        before.unwrap_or_else(|| interest(seen))
    }

    /// What is wanted, None if it is removed. Any thread; right before a call, the home thread
    /// (I3).
    pub(super) fn wanted(&self) -> Option<Interest> {
        let mut seen = self.0.load(Ordering::Relaxed);
        if planted!("handler_called_after_removal") {
            seen &= !REMOVED; // Planted: as if it had been looked at before the turn.
        }
        interest(seen)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.0.load(Ordering::Relaxed) & REMOVED != 0
    }
}

fn bits(interest: Interest) -> u32 {
    (u32::from(interest.read) * READ) | (u32::from(interest.write) * WRITE)
}

fn interest(word: u32) -> Option<Interest> {
    (word & REMOVED == 0).then_some(Interest {
        read: word & READ != 0,
        write: word & WRITE != 0,
    })
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::atomic::{AtomicBool, AtomicPtr};
    use crate::context::list::{Linked, List};
    use crate::model;
    use std::sync::Arc;

    struct Node {
        state: State,
        next: AtomicPtr<Node>,
    }

    impl Linked for Node {
        fn next(&self) -> &AtomicPtr<Self> {
            &self.next
        }
    }

    struct Model {
        mailbox: List<Node>,
        node: Arc<Node>,
        told: AtomicBool,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                mailbox: List::new(),
                node: Arc::new(Node {
                    state: State::new(),
                    next: AtomicPtr::new(core::ptr::null_mut()),
                }),
                told: AtomicBool::new(false),
            })
        }

        fn want(&self, interest: Interest) {
            if self.node.state.want(interest) {
                self.mailbox.push(Arc::clone(&self.node));
            }
        }

        fn remove(&self) {
            if self.node.state.remove() {
                self.mailbox.push(Arc::clone(&self.node));
            }
        }

        /// A turn's start: `applied` becomes what is wanted.
        fn drain(&self, applied: &mut Option<Interest>) {
            self.mailbox.drain(|node| *applied = node.state.take());
        }
    }

    // SPEC L7, H1: what two threads want last is what the home has applied once both have told it.
    #[test]
    fn loom_handler_change_is_never_lost() {
        model::check(None, || {
            let model = Model::new();
            let threads = [Interest::READ, Interest::WRITE].map(|interest| {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || model.want(interest))
            });
            let mut applied = Some(Interest::default());
            model.drain(&mut applied);
            for thread in threads {
                thread.join().unwrap();
            }
            model.drain(&mut applied);
            assert_eq!(applied, model.node.state.wanted());
            assert_ne!(applied, Some(Interest::default()));
        });
    }

    // SPEC L7, H3: a removal is applied, whatever was wanted before it and is wanted beside it.
    #[test]
    fn loom_handler_removal_is_never_lost() {
        model::check(None, || {
            let model = Model::new();
            model.want(Interest::READ);
            let other = {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || {
                    model.want(Interest::WRITE);
                    model.remove();
                })
            };
            let mut applied = Some(Interest::default());
            model.drain(&mut applied);
            model.drain(&mut applied);
            other.join().unwrap();
            model.drain(&mut applied);
            assert_eq!(applied, None);
            assert!(model.mailbox.is_empty());
        });
    }

    // SPEC L7, H3: a walk whose earlier callback has learnt of the removal does not call it.
    #[test]
    fn loom_handler_removed_is_not_called_later_in_the_walk() {
        model::check(None, || {
            let model = Model::new();
            model.want(Interest::READ);
            let mut applied = None;
            model.drain(&mut applied);
            let other = {
                let model = Arc::clone(&model);
                loom::thread::spawn(move || {
                    model.remove();
                    model.told.store(true, Ordering::Release);
                })
            };
            // What runs before it in the walk.
            let has_learnt = model.told.load(Ordering::Acquire);
            let is_called = model.node.state.wanted() == Some(Interest::READ);
            assert!(!(has_learnt && is_called));
            other.join().unwrap();
        });
    }
}
