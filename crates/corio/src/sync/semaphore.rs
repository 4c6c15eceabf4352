//! The semaphore: counted permits, all or wait, first come first served (SPEC L5).
//!
//! `permits` is the state machine; here are waiting, cancellation and the permit.

// Wait records are pointers into frames.
#![allow(unsafe_code)]

use super::permits::{PERMITS_MAX, Permits};
use super::record::{Line, Record, Wake};
use super::select::{InLine, Selectable, Source};
use super::waiter::{Queued, Waiter};

/// A number of permits that coroutines take, use and give back.
///
/// Whoever wants several gets them all at once or waits, and nobody overtakes: a large wish is not
/// starved by small ones. That differs from QEMU's shared resource, which wakes all to try again.
///
/// ```
/// use corio::sync::Semaphore;
///
/// let bytes_in_flight = Semaphore::new(4096);
/// let permit = bytes_in_flight.try_acquire(4000).unwrap();
/// assert!(bytes_in_flight.try_acquire(100).is_none());
/// drop(permit);
/// assert_eq!(bytes_in_flight.available(), 4096);
/// ```
#[doc(alias("SharedResource", "shres_destroy"))]
#[derive(Debug)]
pub struct Semaphore {
    permits: Permits<Waiter>,
    total: usize,
}

impl Semaphore {
    /// A semaphore of `total` free permits.
    ///
    /// # Panics
    /// With more than 2^63 - 1 (2^31 - 1 where addresses have 32 bits).
    #[doc(alias = "shres_create")]
    #[track_caller]
    pub fn new(total: usize) -> Semaphore {
        assert!(
            total <= PERMITS_MAX,
            "a semaphore of {total} permits: at most {PERMITS_MAX} can be counted"
        );
        Semaphore {
            permits: Permits::new(total),
            total,
        }
    }

    /// Takes `amount` permits, and waits until so many are free and everyone who came earlier has
    /// been served. A coroutine parks, a plain thread blocks. A cancellation point when it waits: a
    /// waiter that is cancelled leaves the line, and gives back what it was just given.
    ///
    /// # Panics
    /// If `amount` is more than there are in all: it would wait for ever. On a loop's thread
    /// outside a coroutine (use [`try_acquire`](Self::try_acquire)). If it has to wait in a home
    /// without a loop.
    #[doc(alias = "co_get_from_shres")]
    #[track_caller]
    pub fn acquire(&self, amount: usize) -> Permit<'_> {
        self.assert_possible(amount);
        Waiter::check("sync::Semaphore::acquire");
        if !self.permits.try_acquire(amount) {
            self.acquire_waiting(amount);
        }
        Permit {
            semaphore: self,
            amount,
        }
    }

    /// Takes `amount` permits if they are free and nobody waits. Never waits; from anywhere.
    #[doc(alias = "co_try_get_from_shres")]
    #[must_use = "the permits are given back when the permit is dropped"]
    pub fn try_acquire(&self, amount: usize) -> Option<Permit<'_>> {
        // Not `then_some`: a permit that is made and dropped gives back what was not taken.
        self.permits.try_acquire(amount).then(|| Permit {
            semaphore: self,
            amount,
        })
    }

    /// For [`select`](super::select()): `amount` permits, first come, first served.
    ///
    /// # Panics
    /// If `amount` is more than there are in all.
    #[track_caller]
    pub fn on_permits(&self, amount: usize) -> impl Selectable<Output = Permit<'_>> {
        self.assert_possible(amount);
        InLine::new(OnPermits {
            permits: &self.permits,
            amount,
            taken: move || Permit {
                semaphore: self,
                amount,
            },
        })
    }

    #[track_caller]
    fn assert_possible(&self, amount: usize) {
        assert!(
            amount <= self.total,
            "{amount} permits of a semaphore that has {} in all: it would wait for ever; ask for \
             fewer",
            self.total
        );
    }

    /// How many permits are free. It may have changed by the time it is known.
    pub fn available(&self) -> usize {
        self.permits.free()
    }

    /// Returns once nobody looks at it any more on behalf of permits that were given back.
    pub(crate) fn settle(&self) {
        self.permits.settle();
    }

    /// Gives back permits whose [`Permit`] was forgotten.
    pub(crate) fn give_back(&self, amount: usize) {
        self.permits.release(amount);
    }

    /// How many permits there are in all.
    pub fn total(&self) -> usize {
        self.total
    }

    #[cold]
    #[track_caller]
    fn acquire_waiting(&self, amount: usize) {
        let record = Record::new(Waiter::current("sync::Semaphore::acquire"), amount);
        // SAFETY: `Queued` sees to it that the record is granted or withdrawn before it goes.
        if unsafe { self.permits.acquire_or_queue(&record) } {
            return;
        }
        // SAFETY: queued above.
        unsafe { Queued::new(&self.permits, &record) }.wait();
    }
}

/// Permits of a [`Semaphore`], given back when this is dropped; by any thread.
///
/// ```
/// let semaphore = corio::sync::Semaphore::new(8);
/// let permit = semaphore.acquire(3);
/// assert_eq!((permit.amount(), semaphore.available()), (3, 5));
/// drop(permit);
/// assert_eq!(semaphore.available(), 8);
/// ```
#[derive(Debug)]
#[must_use = "the permits are given back when the permit is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    amount: usize,
}

impl Permit<'_> {
    /// How many permits it stands for.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Permit<'_> {
    #[doc(alias = "co_put_to_shres")]
    fn drop(&mut self) {
        self.semaphore.permits.release(self.amount);
    }
}

/// `taken` is how what was taken is to be held.
pub(super) struct OnPermits<'a, W, F> {
    pub(super) permits: &'a Permits<W>,
    pub(super) amount: usize,
    pub(super) taken: F,
}

impl<W: Wake, P, F: Fn() -> P> Source<W> for OnPermits<'_, W, F> {
    type Record = Record<W>;
    type Output = P;

    fn look(&self) -> Option<P> {
        self.permits.try_acquire(self.amount).then(&self.taken)
    }

    fn record(&self, waker: &W) -> Record<W> {
        Record::new(waker.clone(), self.amount)
    }

    unsafe fn queue(&self, record: &Record<W>) -> Option<P> {
        // SAFETY: as the caller promises.
        unsafe { self.permits.acquire_or_queue(record) }.then(&self.taken)
    }

    fn granted(&self, record: &Record<W>) -> Option<P> {
        record.is_granted().then(&self.taken)
    }

    unsafe fn abandon(&self, record: &Record<W>) {
        // SAFETY: as the caller promises.
        unsafe { self.permits.abandon(record) };
    }
}
