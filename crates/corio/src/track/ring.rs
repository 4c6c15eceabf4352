//! A thread's ring of records: one writer, any number of readers, nobody waits.
//!
//! ```text
//!   begun      number of records whose writing has begun     stored before the words
//!   committed  number of records written whole               stored after them
//!   record i   lies in slot i % capacity; it is overwritten by record i + capacity
//! ```
//!
//! A reader takes `committed`, copies the slots, then takes `begun`: record i was whole while it
//! was copied if record i + capacity had not begun by then. That is a seqlock with one pair of
//! counters for all slots. The words are atomics, so a copy that raced is garbage to be thrown
//! away, not undefined behaviour.
//!
//! Invariant
//! - I1. One thread at a time calls `push`, and never from inside a `push` (a signal handler).

use super::event::{WORDS, Words};
use crate::atomic::{AtomicU64, Ordering, fence};

/// See the module.
pub(super) struct Ring {
    begun: AtomicU64,
    committed: AtomicU64,
    slots: Box<[[AtomicU64; WORDS]]>,
}

/// What a reader got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// How many records came before the first of `records` and are overwritten.
    pub(super) lost: u64,
    /// Whole records, oldest first.
    pub(super) records: Vec<Words>,
}

impl Ring {
    /// A ring of `capacity` records, which must be a power of two.
    pub(super) fn new(capacity: usize) -> Ring {
        assert!(
            capacity.is_power_of_two(),
            "a ring's capacity must be a power of two"
        );
        let slot = || core::array::from_fn(|_| AtomicU64::new(0));
        Ring {
            begun: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            slots: (0..capacity).map(|_| slot()).collect(),
        }
    }

    fn slot(&self, index: u64) -> &[AtomicU64; WORDS] {
        // The low bits are all that counts, so that a 32-bit usize would lose nothing.
        #[allow(clippy::cast_possible_truncation)]
        let index = index as usize;
        &self.slots[index & (self.slots.len() - 1)]
    }

    /// Writes a record over the oldest. Only the ring's own thread (I1). Never waits, never
    /// allocates.
    pub(super) fn push(&self, words: Words) {
        // Equal to `committed` here (I1). Loom looks at one earlier load only for each store, so
        // that reading `committed` would hide the reader's load of it from the model.
        let index = self.begun.load(Ordering::Relaxed);
        self.begun.store(index + 1, Ordering::Relaxed);
        if !planted!("track_ring_no_fence") {
            // Orders `begun` before the words: pairs with the fence in `copy`. A reader that sees
            // one of the new words sees that the slot's old record is gone.
            fence(Ordering::Release);
        }
        for (to, word) in self.slot(index).iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        // Pairs with the load in `copy`: who counts this record sees its words.
        self.committed.store(index + 1, Ordering::Release);
    }

    /// Copies what is there. Any thread; the writer goes on meanwhile.
    pub(super) fn copy(&self) -> Copied {
        let capacity = self.slots.len() as u64;
        // Pairs with the store in `push`.
        let end = self.committed.load(Ordering::Acquire);
        let start = end.saturating_sub(capacity);
        let mut records: Vec<Words> = (start..end)
            .map(|index| {
                let slot = self.slot(index);
                core::array::from_fn(|i| slot[i].load(Ordering::Relaxed))
            })
            .collect();
        // Pairs with the fence in `push`.
        fence(Ordering::Acquire);
        let first_whole = self
            .begun
            .load(Ordering::Relaxed)
            .saturating_sub(capacity)
            .min(end);
        if first_whole > start {
            let torn = usize::try_from(first_whole - start).unwrap_or(usize::MAX);
            records.drain(..torn.min(records.len()));
        }
        Copied {
            lost: first_whole.max(start),
            records,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn record(i: u64) -> Words {
        [i, i ^ 0xff, i.wrapping_mul(3), !i]
    }

    #[test]
    fn oldest_records_are_overwritten_and_counted() {
        // SPEC K1
        let ring = Ring::new(4);
        assert_eq!(
            ring.copy(),
            Copied {
                lost: 0,
                records: vec![]
            }
        );
        for i in 0..3 {
            ring.push(record(i));
        }
        assert_eq!(
            ring.copy(),
            Copied {
                lost: 0,
                records: (0..3).map(record).collect()
            }
        );
        for i in 3..11 {
            ring.push(record(i));
        }
        assert_eq!(
            ring.copy(),
            Copied {
                lost: 7,
                records: (7..11).map(record).collect()
            }
        );
    }

    #[test]
    fn copy_under_writing_gives_whole_records_in_order() {
        // SPEC K1
        let ring = Ring::new(8);
        let stop = AtomicBool::new(false);
        let mut seen = 0usize;
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut i = 0;
                while !stop.load(Ordering::Relaxed) {
                    ring.push(record(i));
                    i += 1;
                }
            });
            while seen < 10_000 {
                let copied = ring.copy();
                for (i, words) in (copied.lost..).zip(&copied.records) {
                    assert_eq!(*words, record(i));
                }
                seen += copied.records.len();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use loom::sync::Arc;

    fn record(i: u64) -> Words {
        [i + 1; WORDS]
    }

    /// SPEC K1, L7. Planted bug: `track_ring_no_fence`.
    #[test]
    fn loom_copied_records_are_whole() {
        model::check(None, || {
            let ring = Arc::new(Ring::new(1));
            let writer = {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || (0..2).for_each(|i| ring.push(record(i))))
            };
            let copied = ring.copy();
            for (i, words) in (copied.lost..).zip(&copied.records) {
                assert_eq!(*words, record(i));
            }
            writer.join().unwrap();
        });
    }
}
