//! Serialisation: requests that modify a disk padded to blocks wait for those they overlap.
//!
//! A read-modify-write reads a block, changes a part of it and writes it all back. Whatever else
//! was written to that block in between would be lost, so it is *exclusive*: it waits for every
//! earlier request that overlaps its blocks, and every later one that overlaps waits for it.
//! Aligned writes are *shared*: they pass each other (their order is the client's business) but not
//! an exclusive one. Reads do not take part.
//!
//! Every request is entered in one list in the order of arrival and counts the earlier ones that it
//! must wait for; one that ends takes itself off the counts of the later ones. So
//!
//! - I1: a request waits only for requests that came before it: no deadlock, and none is passed for
//!   ever, as whoever comes later and overlaps waits in turn;
//! - I2: `blockers` of an entry is the number of earlier entries in the list that conflict with it;
//! - I3: an entry with blockers has a waiter, which is told once, when they reach 0.
//!
//! The list is as long as there are modifying requests in flight on the node; whoever sends them
//! (the NBD server) limits those, so there is no limit here. Nodes whose driver takes any byte have
//! no list. The lock guards the list only and is never held while waiting.

use std::{collections::VecDeque, sync::Arc};

use corio::sync::{Place, Queue};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::bounds::Span;

/// The requests in flight that may have to wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Overlaps {
    ledger: Mutex<Ledger<Arc<Gate>>>,
}

/// A request's place in the list; dropping it lets those that waited for it go on.
#[derive(Debug)]
#[must_use = "dropping it ends the turn at once"]
pub(crate) struct Turn<'a> {
    overlaps: &'a Overlaps,
    id: u64,
}

impl Overlaps {
    /// Enters a request and waits until it may go on: parks a coroutine, blocks a plain thread.
    /// A cancelled waiter leaves the list as it unwinds.
    pub(crate) fn begin(&self, span: Span, exclusive: bool) -> Turn<'_> {
        let admitted = self.ledger.lock().admit(span, exclusive, Gate::closed);
        let turn = Turn {
            overlaps: self,
            id: admitted.id,
        };
        if let Some(gate) = admitted.waiter {
            gate.pass();
        }
        turn
    }

    /// How many requests run or wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ledger.lock().entries.len()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let free = self.overlaps.ledger.lock().retire(self.id);
        for gate in free {
            gate.open();
        }
    }
}

/// What a waiting request waits at: opened once, by another thread or coroutine, and passed once.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    line: Queue,
}

impl Gate {
    fn closed() -> Arc<Gate> {
        Arc::default()
    }

    fn open(&self) {
        *self.is_open.lock() = true;
        self.line.wake_all();
    }

    fn pass(&self) {
        loop {
            let is_open = self.is_open.lock();
            if *is_open {
                return;
            }
            // In line before the lock is given up, so that `open` cannot be missed.
            self.line.wait_after(Place::Back, || drop(is_open));
        }
    }
}

/// The list itself, without threads: `W` is what waits.
#[derive(Debug)]
struct Ledger<W> {
    entries: VecDeque<Entry<W>>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry<W> {
    id: u64,
    span: Span,
    exclusive: bool,
    blockers: usize,
    waiter: Option<W>,
}

#[derive(Debug)]
struct Admitted<W> {
    id: u64,
    /// What to wait at; `None`: go on at once.
    waiter: Option<W>,
}

impl<W> Default for Ledger<W> {
    fn default() -> Self {
        Ledger {
            entries: VecDeque::new(),
            next_id: 0,
        }
    }
}

impl<W> Entry<W> {
    fn conflicts_with(&self, span: Span, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.span.overlaps(span)
    }
}

impl<W: Clone> Ledger<W> {
    fn admit(
        &mut self,
        span: Span,
        exclusive: bool,
        make_waiter: impl FnOnce() -> W,
    ) -> Admitted<W> {
        let id = self.next_id;
        self.next_id += 1;
        let blockers = self
            .entries
            .iter()
            .filter(|e| e.conflicts_with(span, exclusive))
            .count();
        let waiter = (blockers > 0).then(make_waiter);
        self.entries.push_back(Entry {
            id,
            span,
            exclusive,
            blockers,
            waiter: waiter.clone(),
        });
        Admitted { id, waiter }
    }

    /// Takes a request off the list and returns the waiters that may now go on, oldest first.
    fn retire(&mut self, id: u64) -> SmallVec<[W; 4]> {
        let mut free = SmallVec::new();
        let Ok(at) = self.entries.binary_search_by_key(&id, |e| e.id) else {
            debug_assert!(false, "a turn ends once");
            return free;
        };
        let Some(gone) = self.entries.remove(at) else {
            return free;
        };
        for later in self.entries.range_mut(at..) {
            if gone.conflicts_with(later.span, later.exclusive) {
                later.blockers -= 1;
                if later.blockers == 0 {
                    free.extend(later.waiter.take());
                }
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use proptest::prelude::*;

    use super::*;

    const SHARED: bool = false;
    const EXCLUSIVE: bool = true;

    fn admit(ledger: &mut Ledger<u64>, span: (u64, u64), exclusive: bool) -> (u64, bool) {
        let name = ledger.next_id;
        let admitted = ledger.admit(Span::cut(span.0, span.1), exclusive, || name);
        (admitted.id, admitted.waiter.is_none())
    }

    #[test]
    fn aligned_writes_pass_each_other() {
        let mut ledger = Ledger::default();
        assert!(admit(&mut ledger, (0, 8), SHARED).1);
        assert!(admit(&mut ledger, (0, 8), SHARED).1);
    }

    #[test]
    fn a_read_modify_write_waits_for_what_overlaps_and_is_waited_for() {
        let mut ledger = Ledger::default();
        let (write, goes) = admit(&mut ledger, (0, 8), SHARED);
        assert!(goes);
        let (rmw, goes) = admit(&mut ledger, (4, 12), EXCLUSIVE);
        assert!(!goes);
        let (far, goes) = admit(&mut ledger, (12, 16), EXCLUSIVE);
        assert!(goes);
        let (late, goes) = admit(&mut ledger, (8, 16), SHARED);
        assert!(!goes);
        assert_eq!(ledger.retire(write).as_slice(), [rmw]);
        assert!(
            ledger.retire(rmw).is_empty(),
            "the late write waits for the far one, too"
        );
        assert_eq!(ledger.retire(far).as_slice(), [late]);
        assert!(ledger.retire(late).is_empty());
        assert!(ledger.entries.is_empty());
    }

    #[test]
    fn a_waiter_that_gives_up_is_no_longer_waited_for() {
        let mut ledger = Ledger::default();
        let (first, _) = admit(&mut ledger, (0, 8), SHARED);
        let (given_up, goes) = admit(&mut ledger, (0, 8), EXCLUSIVE);
        assert!(!goes);
        let (third, goes) = admit(&mut ledger, (0, 8), SHARED);
        assert!(!goes, "it must not pass the older exclusive one");
        assert_eq!(ledger.retire(given_up).as_slice(), [third]);
        assert!(ledger.retire(first).is_empty());
    }

    /// An arrival at an offset, of a length, exclusive or not; or an end of whichever runs.
    fn arrival_or_end() -> impl Strategy<Value = (bool, u64, u64, bool)> {
        (any::<bool>(), 0u64..40, 1u64..12, any::<bool>())
    }

    proptest! {
        // SPEC Q4. Random arrivals and ends: two conflicting requests never run together, nobody
        // runs before an earlier one that conflicts, and all run in the end.
        #[test]
        fn conflicting_requests_never_run_together(
            steps in prop::collection::vec(arrival_or_end(), 1..80),
        ) {
            let mut ledger: Ledger<u64> = Ledger::default();
            let mut running: Vec<(u64, Span, bool)> = Vec::new();
            let mut waiting: Vec<(u64, Span, bool)> = Vec::new();
            let conflict = |a: &(u64, Span, bool), b: &(u64, Span, bool)| {
                (a.2 || b.2) && a.1.overlaps(b.1)
            };
            let mut steps = steps.into_iter();
            loop {
                match steps.next() {
                    Some((true, start, len, exclusive)) => {
                        let span = Span::cut(start, start + len);
                        let (id, goes) = admit(&mut ledger, (start, start + len), exclusive);
                        if goes { &mut running } else { &mut waiting }.push((id, span, exclusive));
                    }
                    Some((false, pick, ..)) if !running.is_empty() => {
                        let at = usize::try_from(pick).unwrap() % running.len();
                        let (id, ..) = running.swap_remove(at);
                        for free in ledger.retire(id) {
                            let at = waiting.iter().position(|w| w.0 == free).unwrap();
                            running.push(waiting.remove(at));
                        }
                    }
                    Some(_) => {}
                    None => {
                        let Some((id, ..)) = running.pop() else { break };
                        for free in ledger.retire(id) {
                            let at = waiting.iter().position(|w| w.0 == free).unwrap();
                            running.push(waiting.remove(at));
                        }
                    }
                }
                for (i, a) in running.iter().enumerate() {
                    for b in &running[i + 1..] {
                        prop_assert!(!conflict(a, b));
                    }
                    for w in waiting.iter().filter(|w| w.0 < a.0) {
                        prop_assert!(!conflict(a, w));
                    }
                }
                // Whoever waits has a reason.
                for w in &waiting {
                    let mut older = running.iter().chain(&waiting).filter(|o| o.0 < w.0);
                    prop_assert!(older.any(|o| conflict(o, w)));
                }
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(ledger.entries.is_empty());
        }
    }

    #[test]
    fn threads_take_exclusive_turns_one_at_a_time() {
        let overlaps = Overlaps::default();
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let turn = overlaps.begin(Span::cut(0, 1), EXCLUSIVE);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(turn);
                    }
                });
            }
        });
        assert!(overlaps.ledger.lock().entries.is_empty());
    }
}
