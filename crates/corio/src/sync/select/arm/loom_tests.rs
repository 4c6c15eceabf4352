//! Models of waiting for one of several, over the locks' own protocols.

use super::{InLine, wait_for_one};
use crate::model;
use crate::sync::event::{self, OnSet};
use crate::sync::permits::Permits;
use crate::sync::record::LoomWaker;
use crate::sync::select::OneOf;
use crate::sync::semaphore::OnPermits;
// Not loom's Arc: its destructor would panic again when a model has found a deadlock.
use std::sync::Arc;

struct Shared {
    event: event::State<LoomWaker>,
    semaphore: Permits<LoomWaker>,
}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared {
            event: event::State::new(false),
            semaphore: Permits::new(0),
        })
    }

    /// Waits for a permit or the event; true: it has the permit.
    fn either(&self) -> bool {
        let waker = LoomWaker::new();
        let permit = InLine::new(OnPermits {
            permits: &self.semaphore,
            amount: 1,
            taken: || (),
        });
        let arms = (InLine::new(OnSet(&self.event)), permit);
        let taken = wait_for_one(&arms, &waker, || waker.block());
        matches!(taken, OneOf::Second(()))
    }
}

/// SPEC L5, L7, C12. Planted bug: `select_grant_dropped`.
#[test]
fn loom_what_was_granted_and_not_chosen_is_given_back() {
    model::check(3, || {
        let shared = Shared::new();
        let releasing = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                shared.semaphore.release(1);
                shared.event.set();
            })
        };
        let has_permit = shared.either();
        releasing.join().unwrap();
        assert_eq!(shared.semaphore.free(), usize::from(!has_permit));
        assert_eq!(shared.semaphore.try_acquire(1), !has_permit);
        assert!(shared.event.is_set());
    });
}

/// SPEC L5, L7. Planted bug: `select_grant_dropped`.
#[test]
fn loom_who_stands_behind_gets_what_was_not_chosen() {
    model::check(2, || {
        let shared = Shared::new();
        let behind = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                let waker = LoomWaker::new();
                let permit = InLine::new(OnPermits {
                    permits: &shared.semaphore,
                    amount: 1,
                    taken: || (),
                });
                wait_for_one(&permit, &waker, || waker.block());
            })
        };
        let other = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                shared.event.set();
                shared.semaphore.release(1);
            })
        };
        if shared.either() {
            shared.semaphore.release(1);
        }
        behind.join().unwrap();
        other.join().unwrap();
        assert_eq!(shared.semaphore.free(), 0);
    });
}

/// SPEC L5, L7.
#[test]
fn loom_one_arm_is_enough_to_go_on() {
    model::check(3, || {
        let shared = Shared::new();
        let setting = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || shared.event.set())
        };
        assert!(!shared.either(), "there is no permit");
        setting.join().unwrap();
        // Nobody is in line any more.
        shared.semaphore.release(1);
        assert!(shared.semaphore.try_acquire(1));
    });
}
