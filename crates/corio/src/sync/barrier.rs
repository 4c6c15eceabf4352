//! The barrier: a number of coroutines and threads wait for one another (SPEC L5).
//!
//! `state` is the state machine; here are waiting and cancellation.

// Wait records are pointers into frames.
#![allow(unsafe_code)]

mod state;

use self::state::State;
use super::record::Record;
use super::waiter::{Queued, Waiter};

/// A point that a number of coroutines and plain threads pass together: each waits there until as
/// many have come as it is for. It can be used again at once.
///
/// ```
/// use std::sync::Arc;
/// use corio::{IoThread, sync::Barrier};
///
/// let io = IoThread::builder().spawn()?;
/// let barrier = Arc::new(Barrier::new(3));
/// let workers: Vec<_> = (0..3)
///     .map(|_| {
///         let barrier = Arc::clone(&barrier);
///         io.context().spawn(move || barrier.wait().is_leader())
///     })
///     .collect();
/// let led = workers.into_iter().map(|worker| worker.join().unwrap());
/// assert_eq!(led.filter(|&leads| leads).count(), 1);
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Debug)]
pub struct Barrier {
    state: State<Waiter>,
}

impl Barrier {
    /// A barrier that `count` pass together.
    ///
    /// # Panics
    /// If `count` is 0: there is nobody that could wait at it.
    #[track_caller]
    pub fn new(count: usize) -> Barrier {
        assert!(
            count != 0,
            "a barrier for 0 coroutines: whoever waits at it is one, so make it for 1 or more"
        );
        Barrier {
            state: State::new(count),
        }
    }

    /// Waits until as many as the barrier is for wait here, the caller among them. The last one to
    /// come does not wait; it is the leader. A coroutine parks, a plain thread blocks.
    ///
    /// A cancellation point when it waits: a coroutine that is cancelled before all have come
    /// leaves, and has not come; another has to come in its place.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, and in a home without a loop; also for who comes
    /// last.
    #[track_caller]
    pub fn wait(&self) -> BarrierWaitResult {
        let record = Record::new(Waiter::current("sync::Barrier::wait"), 1);
        // SAFETY: `Queued` sees to it that the record is granted or withdrawn before it goes.
        let is_leader = unsafe { self.state.arrive_or_queue(&record) };
        if !is_leader {
            // SAFETY: queued above.
            unsafe { Queued::new(&self.state, &record) }.wait();
        }
        BarrierWaitResult { is_leader }
    }
}

/// What [`Barrier::wait`] tells whoever has passed.
///
/// ```
/// let alone = corio::sync::Barrier::new(1);
/// assert!(alone.wait().is_leader()); // The last to come, and the first.
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    is_leader: bool,
}

impl BarrierWaitResult {
    /// True for one of those that passed together: who came last.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }
}
