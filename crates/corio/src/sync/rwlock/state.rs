//! The reader-writer lock without stacks: permits, of which a reader takes one and a writer all.
//!
//! ```text
//!                    read                          upgrade (alone, nobody waits)
//!       free  ─────────────────▶  readers  ──────────────────────────▶  writer
//!      all free ◀─────────────── all - n free ◀────────────────────────  0 free
//!                 release_read                       downgrade
//!
//!   in line:  R R W R ◀── newest        granted from the oldest on, as far as the permits go:
//!                                       two readers, then nobody passes the writer
//! ```
//!
//! An upgrade that does not find its reader alone, and first in line, gives its share back as it
//! gets in line: of two that upgrade each would else wait for the other one's share.
//!
//! Invariants
//! - I1. Whoever holds the lock for writing has all permits, whoever holds it for reading has one:
//!   so a writer is alone.
//! - I2. Those who wait are served in the order in which they came, upgrades among them
//!   (`permits`, I2 and I3): a reader that comes after a waiting writer waits behind it.
//! - I3. From writer to reader by `downgrade`, and from reader to writer by `try_upgrade`, the lock
//!   is never free in between; by `upgrade_or_queue` it may be.

// Queued records are pointers into other frames: record.rs I1.
#![allow(unsafe_code)]

use crate::sync::permits::{PERMITS_MAX, Permits};
use crate::sync::record::{Line, Record, Wake};

/// What a reader takes.
const READ: usize = 1;
/// What a writer takes: all there are, and more than readers could ever be.
const WRITE: usize = PERMITS_MAX;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    fn permits(self) -> usize {
        match self {
            Access::Read => READ,
            Access::Write => WRITE,
        }
    }

    /// The record of one that waits for it.
    pub(super) fn record<W: Wake>(self, waker: W) -> Record<W> {
        Record::new(waker, self.permits())
    }
}

/// See the module.
#[derive(Debug)]
#[repr(transparent)] // It has the number of its permits, for tracking.
pub(super) struct State<W>(Permits<W>);

impl<W: Wake> State<W> {
    /// A free lock.
    pub(super) fn new() -> State<W> {
        State(Permits::new(WRITE))
    }

    /// Whether the one who holds it writes; None if nobody does. Only a hint to others.
    pub(super) fn is_written(&self) -> Option<bool> {
        match self.0.free() {
            WRITE => None,
            free => Some(free == 0),
        }
    }

    /// Takes the lock if nobody is in the way and nobody waits.
    #[inline]
    #[must_use]
    pub(super) fn try_take(&self, access: Access) -> bool {
        self.0.try_acquire(access.permits())
    }

    /// Takes the lock (true) or queues the record (false), which will be granted then.
    ///
    /// # Safety
    /// The record is a new one of [`Access::record`]; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn take_or_queue(&self, record: &Record<W>) -> bool {
        // SAFETY: as the caller promises.
        unsafe { self.0.acquire_or_queue(record) }
    }

    /// Gives the lock up, and to those who are next. Never waits. Only who has taken it so.
    #[inline]
    pub(super) fn release(&self, access: Access) {
        self.0.release(access.permits());
    }

    /// Makes the caller, a reader, the writer, if it is the only reader and nobody waits.
    #[inline]
    #[must_use]
    pub(super) fn try_upgrade(&self) -> bool {
        self.0.try_trade(READ, WRITE)
    }

    /// Makes the caller, a reader, the writer (true); or lets it be no reader any more and queues
    /// the record (false), which will be granted when it may write.
    ///
    /// # Safety
    /// The record is a new one of [`Access::Write`]; if queued, it stays as record.rs I1 says.
    #[must_use]
    pub(super) unsafe fn upgrade_or_queue(&self, record: &Record<W>) -> bool {
        let given = if planted!("rwlock_upgrade_waits_as_reader") {
            0
        } else {
            READ
        };
        // SAFETY: as the caller promises.
        unsafe { self.0.trade_or_queue(given, record) }
    }

    /// Makes the caller, the writer, a reader, and lets those readers in who are next. Never waits.
    pub(super) fn downgrade(&self) {
        let kept = if planted!("rwlock_downgrade_keeps_nothing") {
            0
        } else {
            READ
        };
        self.0.release(WRITE - kept);
    }
}

impl<W: Wake> Line<W> for State<W> {
    /// Takes the record out or, if it has been granted, gives up what it was granted. Readers that
    /// stood behind a writer go on.
    unsafe fn abandon(&self, record: &Record<W>) {
        if !record.is_granted() || !planted!("rwlock_grant_dropped") {
            // SAFETY: as the caller promises.
            unsafe { self.0.abandon(record) };
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use crate::sync::record::LoomWaker;
    use loom::cell::UnsafeCell;
    // Not loom's Arc: its destructor would panic again when a model has found a deadlock.
    use std::sync::Arc;

    struct Guarded {
        state: State<LoomWaker>,
        value: UnsafeCell<usize>,
    }

    impl Guarded {
        fn new() -> Arc<Guarded> {
            Arc::new(Guarded {
                state: State::new(),
                value: UnsafeCell::new(0),
            })
        }

        fn take(&self, access: Access) {
            let record = access.record(LoomWaker::new());
            // SAFETY: waits until the record is granted.
            if !unsafe { self.state.take_or_queue(&record) } {
                LoomWaker::wait(&record);
            }
        }

        /// The caller has the lock. loom's cell finds a writer that is not alone.
        fn get(&self) -> usize {
            // SAFETY: as above.
            self.value.with(|value| unsafe { *value })
        }

        /// The caller has the lock for writing.
        fn add(&self) {
            // SAFETY: as above.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }

        fn read(&self) -> usize {
            self.take(Access::Read);
            let value = self.get();
            self.state.release(Access::Read);
            value
        }

        fn write(&self) {
            self.take(Access::Write);
            self.add();
            self.state.release(Access::Write);
        }

        /// As a reader: writes once it may.
        fn upgrade_and_add(&self) {
            let record = Access::Write.record(LoomWaker::new());
            // SAFETY: waits until the record is granted.
            if !self.state.try_upgrade() && !unsafe { self.state.upgrade_or_queue(&record) } {
                LoomWaker::wait(&record);
            }
            self.add();
            self.state.release(Access::Write);
        }

        /// Like a waiter that is cancelled at once.
        fn take_and_cancel(&self, access: Access) {
            let record = access.record(LoomWaker::new());
            // SAFETY: abandoned below if it is queued.
            if unsafe { self.state.take_or_queue(&record) } {
                self.state.release(access);
            } else {
                // SAFETY: queued above.
                unsafe { self.state.abandon(&record) };
            }
        }

        /// It is free, and so many have written.
        fn check(&self, written: usize) {
            assert!(self.state.try_take(Access::Write));
            assert_eq!(self.get(), written);
        }
    }

    fn spawn(
        guarded: &Arc<Guarded>,
        work: impl FnOnce(&Guarded) + 'static,
    ) -> loom::thread::JoinHandle<()> {
        let guarded = Arc::clone(guarded);
        loom::thread::spawn(move || work(&guarded))
    }

    /// SPEC L2, L7.
    #[test]
    fn loom_writers_are_alone_and_nobody_is_forgotten() {
        model::check(2, || {
            let guarded = Guarded::new();
            let writer = spawn(&guarded, Guarded::write);
            let reader = spawn(&guarded, |guarded| assert!(guarded.read() <= 2));
            guarded.write();
            writer.join().unwrap();
            assert!((1..=2).contains(&guarded.read()));
            reader.join().unwrap();
            guarded.check(2);
        });
    }

    /// SPEC L2, L7. Planted bug: `rwlock_upgrade_waits_as_reader`.
    #[test]
    fn loom_two_that_upgrade_do_not_wait_for_each_other() {
        model::check(3, || {
            let guarded = Guarded::new();
            guarded.take(Access::Read);
            guarded.take(Access::Read);
            let other = spawn(&guarded, Guarded::upgrade_and_add);
            guarded.upgrade_and_add();
            other.join().unwrap();
            guarded.check(2);
        });
    }

    /// SPEC L2, L7: a reader that is alone upgrades without letting a writer in.
    #[test]
    fn loom_nobody_writes_during_an_upgrade_at_once() {
        model::check(3, || {
            let guarded = Guarded::new();
            let writer = spawn(&guarded, Guarded::write);
            guarded.take(Access::Read);
            let read = guarded.get();
            if guarded.state.try_upgrade() {
                assert_eq!(guarded.get(), read);
                guarded.state.release(Access::Write);
            } else {
                guarded.state.release(Access::Read);
            }
            writer.join().unwrap();
            guarded.check(1);
        });
    }

    /// SPEC L2, L7. Planted bug: `rwlock_downgrade_keeps_nothing`.
    #[test]
    fn loom_downgrade_lets_readers_in_and_no_writer() {
        model::check(2, || {
            let guarded = Guarded::new();
            guarded.take(Access::Write);
            let reader = spawn(&guarded, |guarded| assert!(guarded.read() >= 1));
            let writer = spawn(&guarded, Guarded::write);
            guarded.add();
            guarded.state.downgrade();
            assert_eq!(guarded.get(), 1);
            guarded.state.release(Access::Read);
            reader.join().unwrap();
            writer.join().unwrap();
            guarded.check(2);
        });
    }

    /// SPEC L2, L7, C12. Planted bug: `rwlock_grant_dropped`.
    #[test]
    fn loom_cancelled_writer_lets_the_readers_behind_it_in() {
        model::check(3, || {
            let guarded = Guarded::new();
            guarded.take(Access::Read);
            let cancelled = spawn(&guarded, |guarded| guarded.take_and_cancel(Access::Write));
            let reader = spawn(&guarded, |guarded| assert_eq!(guarded.read(), 0));
            // It gets in although nothing has been given back.
            reader.join().unwrap();
            guarded.state.release(Access::Read);
            cancelled.join().unwrap();
            guarded.check(0);
        });
    }

    /// SPEC L2, L7, C12. Planted bug: `rwlock_grant_dropped`.
    #[test]
    fn loom_cancelled_waiters_pass_the_lock_on() {
        model::check(3, || {
            let guarded = Guarded::new();
            guarded.take(Access::Write);
            let reader = spawn(&guarded, |guarded| guarded.take_and_cancel(Access::Read));
            let writer = spawn(&guarded, Guarded::write);
            guarded.add();
            guarded.state.release(Access::Write);
            reader.join().unwrap();
            writer.join().unwrap();
            guarded.check(2);
        });
    }

    /// SPEC L2, L7, C12: who is cancelled while it upgrades is a reader no more.
    #[test]
    fn loom_cancelled_upgrade_holds_nothing() {
        model::check(3, || {
            let guarded = Guarded::new();
            guarded.take(Access::Read);
            guarded.take(Access::Read);
            let cancelled = spawn(&guarded, |guarded| {
                let record = Access::Write.record(LoomWaker::new());
                // SAFETY: abandoned below if it is queued.
                if unsafe { guarded.state.upgrade_or_queue(&record) } {
                    guarded.state.release(Access::Write);
                } else {
                    // SAFETY: queued above.
                    unsafe { guarded.state.abandon(&record) };
                }
            });
            guarded.upgrade_and_add();
            cancelled.join().unwrap();
            guarded.check(1);
        });
    }
}
