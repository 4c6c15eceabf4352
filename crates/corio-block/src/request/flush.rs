//! Flushes of one node: one at a time, and what waited shares the next.
//!
//! The kernel reports a failed write-back to one fdatasync of a descriptor and then forgets it. Two
//! flushes at once could therefore end with the one that failed and another that "succeeded" after
//! it, both of which cover the same lost write. One at a time, with the failure remembered before
//! the next one looks, cannot.
//!
//! - I1: syncs are numbered as they start; at most one runs, by its turn in `turns`.
//! - I2: a flush that arrived when `started` was n is covered by any successful sync numbered above
//!   n: that one started after the flush arrived, so after every write the flush must cover.
//! - I3: once `lost` is set no flush succeeds.

use std::io;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{bounds::Span, serialise::Overlaps};
use crate::error::errno_of;

/// The flushes of a node.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    turns: Overlaps,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Syncs started.
    started: u64,
    /// Number of the last sync that succeeded.
    succeeded: u64,
    /// Errno of the sync that failed.
    lost: Option<i32>,
}

/// Why a flush failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An earlier one had failed with this errno.
    Lost(i32),
    /// This one did.
    Now(io::Error),
}

impl Flushes {
    /// Runs `sync`, or shares the run of another that covers this call. Parks a coroutine, blocks a
    /// plain thread.
    pub(crate) fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), Failure> {
        let arrived = self.state.lock().started;
        let _turn = self.turns.begin(Span::cut(0, 1), true);
        let number = {
            let mut state = self.state.lock();
            if let Some(errno) = state.lost {
                return Err(Failure::Lost(errno));
            }
            if state.succeeded > arrived {
                return Ok(());
            }
            state.started += 1;
            state.started
        };
        let result = sync();
        let mut state = self.state.lock();
        match result {
            Ok(()) => {
                state.succeeded = number;
                Ok(())
            }
            Err(error) => {
                if loses_data(&error) {
                    state.lost = Some(errno_of(&error));
                }
                Err(Failure::Now(error))
            }
        }
    }
}

/// Whether a failed sync may have dropped data. Not if it never reached the storage: cancelled,
/// interrupted, or no memory to ask.
fn loses_data(error: &io::Error) -> bool {
    !matches!(
        Errno::from_raw_os_error(errno_of(error)),
        Errno::CANCELED | Errno::INTR | Errno::AGAIN | Errno::NOMEM
    )
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicU32, AtomicU64, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    fn eio() -> io::Error {
        io::Error::from_raw_os_error(Errno::IO.raw_os_error())
    }

    #[test]
    fn a_failed_flush_fails_all_later_ones() {
        let flushes = Flushes::default();
        flushes.run(|| Ok(())).unwrap();
        assert!(matches!(flushes.run(|| Err(eio())), Err(Failure::Now(_))));
        for _ in 0..2 {
            let later = flushes.run(|| panic!("the storage must not be asked again"));
            assert!(matches!(later, Err(Failure::Lost(5))));
        }
    }

    #[test]
    fn a_flush_that_was_never_asked_of_the_storage_may_be_repeated() {
        let flushes = Flushes::default();
        let cancelled = io::Error::from_raw_os_error(Errno::CANCELED.raw_os_error());
        assert!(flushes.run(|| Err(cancelled)).is_err());
        flushes.run(|| Ok(())).unwrap();
    }

    #[test]
    fn one_after_the_other_each_asks_the_storage() {
        let flushes = Flushes::default();
        let syncs = AtomicU32::new(0);
        for _ in 0..3 {
            flushes
                .run(|| {
                    syncs.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(syncs.load(Ordering::Relaxed), 3);
    }

    // The one that runs began before the others arrived, so it does not cover them: they share one
    // more, whatever their number.
    #[test]
    fn flushes_that_wait_share_the_next_sync() {
        let flushes = Flushes::default();
        let syncs = AtomicU32::new(0);
        let (running, is_running) = mpsc::channel();
        let (go, may_end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (flushes, syncs) = (&flushes, &syncs);
            scope.spawn(move || {
                flushes.run(|| {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    running.send(()).unwrap();
                    may_end.recv().unwrap();
                    Ok(())
                })
            });
            is_running.recv().unwrap();
            for _ in 0..5 {
                scope.spawn(move || {
                    flushes.run(|| {
                        syncs.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                });
            }
            // All five are in line, behind the one that runs.
            while flushes.turns.len() < 6 {
                thread::yield_now();
            }
            go.send(()).unwrap();
        });
        assert_eq!(syncs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn those_that_wait_behind_a_failing_flush_fail() {
        let flushes = Flushes::default();
        let (running, is_running) = mpsc::channel();
        let (go, may_end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let flushes = &flushes;
            let first = scope.spawn(move || {
                flushes.run(|| {
                    running.send(()).unwrap();
                    may_end.recv().unwrap();
                    Err(eio())
                })
            });
            is_running.recv().unwrap();
            let second = scope.spawn(move || flushes.run(|| Ok(())));
            while flushes.turns.len() < 2 {
                thread::yield_now();
            }
            go.send(()).unwrap();
            assert!(matches!(first.join().unwrap(), Err(Failure::Now(_))));
            assert!(matches!(second.join().unwrap(), Err(Failure::Lost(5))));
        });
    }

    // A model of write and sync: a sync makes durable what was written when it began. Whoever has
    // flushed finds its write durable.
    #[test]
    fn a_flush_covers_every_write_completed_before_it() {
        let flushes = Flushes::default();
        let (written, durable) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        flushes
                            .run(|| {
                                let begun = written.load(Ordering::SeqCst);
                                thread::yield_now();
                                durable.fetch_max(begun, Ordering::SeqCst);
                                Ok(())
                            })
                            .unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
    }
}
