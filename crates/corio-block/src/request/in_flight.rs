//! How many requests are in flight on a node, counted without a shared cache line: each thread has
//! its shard (threads beyond the number of shards share them).

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

/// Enough for the loops of one process; more threads share shards and stay right.
const SHARDS: usize = 16;

/// The counter.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    shards: [CachePadded<AtomicU64>; SHARDS],
}

/// One request in flight, until dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub(crate) struct Request<'a>(&'a AtomicU64);

impl InFlight {
    /// Counts a request in.
    #[inline]
    pub(crate) fn begin(&self) -> Request<'_> {
        let shard = &self.shards[shard()];
        shard.fetch_add(1, Ordering::Relaxed);
        Request(shard)
    }

    /// The requests in flight. Each began and ended on one shard, so no shard falls below zero; 0
    /// means that every shard was seen idle, which is all of them once no new request can begin.
    pub(crate) fn count(&self) -> u64 {
        // Acquire pairs with the Release in `Request::drop`: what a request did is seen by whoever
        // finds it gone.
        self.shards
            .iter()
            .map(|shard| shard.load(Ordering::Acquire))
            .sum()
    }
}

impl Drop for Request<'_> {
    #[inline]
    fn drop(&mut self) {
        // Pairs with the Acquire in `InFlight::count`.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// This thread's shard. Read before anything parks, and remembered by the request itself.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_requests_of_several_threads() {
        let in_flight = InFlight::default();
        let here = in_flight.begin();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let there = in_flight.begin();
                assert_eq!(in_flight.count(), 2);
                drop(there);
            });
        });
        assert_eq!(in_flight.count(), 1);
        drop(here);
        assert_eq!(in_flight.count(), 0);
    }
}
