//! Wait records: what a waiter shows of itself to whoever will wake it, and the list they stand in.
//!
//! A record lies in its waiter's frame, so that waiting allocates nothing. This file and the
//! `state` files of the locks know nothing of stacks, so that loom can run them.
//!
//! ```text
//!   new ──▶ queued ──▶ granted          the waker has copied all it needs before it says so
//!               └────▶ withdrawn        the waiter took the record out of the list
//! ```
//!
//! Invariants
//! - I1. A queued record stays where it is, alive, until it is granted or withdrawn. Its waiter
//!   keeps this: it leaves its frame, also by unwinding, only after one of the two.
//! - I2. Links are touched only by who has the list for itself: under the lock that holds it, or
//!   with the bit that stands for it.
//! - I3. A record is granted once, by who has just taken it out of the list, and is not touched by
//!   the waker afterwards.
//!
//! Links are relaxed atomics: ordered by I2, and loom sees it when they are not.

// Links are pointers into other coroutines' frames (I1).
#![allow(unsafe_code)]

use core::ptr;

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};

/// How a waiter is told. Firing one late, or twice, must do no harm.
pub(super) trait Wake: Clone + Send + Sync {
    /// Makes the waiter look at its record again. Runs nothing of the waiter's.
    fn wake(self);

    /// The waiter's number, for tracking.
    fn id(&self) -> u64;

    /// The number of whoever runs, for tracking.
    fn running_id() -> u64;
}

/// Where records wait for their grant: the state machine of a lock.
pub(super) trait Line<W> {
    /// Takes a record out again or, if it has been granted, passes on what it was granted. The
    /// record may go then.
    ///
    /// # Safety
    /// The caller has queued the record here, and does not use it any more.
    unsafe fn abandon(&self, record: &Record<W>);

    /// The lock's number, for tracking.
    fn number(&self) -> u64 {
        ptr::from_ref(self).cast::<()>().addr() as u64
    }
}

/// What a waiter has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// What the next in line gets if it does not go on: it passes that on.
    Turn,
    /// What all that waited were given; nobody else is owed it.
    Own,
}

const WAITING: u32 = 0;
const TURN: u32 = 1;
const OWN: u32 = 2;

/// See the module. Aligned so that a pointer to one has room for three flags. `P` is what the
/// waiter and its granter pass to each other besides.
#[derive(Debug)]
#[repr(align(8))]
pub(super) struct Record<W, P = ()> {
    older: AtomicPtr<Record<W, P>>,
    newer: AtomicPtr<Record<W, P>>,
    granted: AtomicU32,
    amount: usize,
    waker: W,
    payload: P,
}

impl<W: Wake> Record<W> {
    /// A record of someone who waits for `amount` of what is handed out.
    pub(super) fn new(waker: W, amount: usize) -> Record<W> {
        Record::with_payload(waker, amount, ())
    }
}

impl<W: Wake, P> Record<W, P> {
    /// As `new`, with something to pass.
    pub(super) fn with_payload(waker: W, amount: usize, payload: P) -> Record<W, P> {
        Record {
            older: AtomicPtr::new(ptr::null_mut()),
            newer: AtomicPtr::new(ptr::null_mut()),
            granted: AtomicU32::new(WAITING),
            amount,
            waker,
            payload,
        }
    }

    pub(super) fn payload(&self) -> &P {
        &self.payload
    }

    /// Whether the waiter has got what it waits for. Then it may go, and sees what the granter did.
    pub(super) fn is_granted(&self) -> bool {
        self.granted().is_some()
    }

    /// What it has got, once it has: see [`Self::is_granted`].
    pub(super) fn granted(&self) -> Option<Grant> {
        // Pairs with the store in `grant_as`.
        match self.granted.load(Ordering::Acquire) {
            WAITING => None,
            TURN => Some(Grant::Turn),
            _ => Some(Grant::Own),
        }
    }

    /// How much it waits for.
    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    pub(super) fn waker(&self) -> &W {
        &self.waker
    }

    /// For a chain of records that each know the one before.
    pub(super) fn set_older(&self, older: *mut Record<W, P>) {
        self.older.store(older, Ordering::Relaxed);
    }
}

/// Lets the record's waiter go, as it is its turn, and gives back how to wake it.
///
/// # Safety
/// As [`grant_as`].
pub(super) unsafe fn grant<W: Wake, P>(record: *const Record<W, P>) -> W {
    // SAFETY: the caller promises the same.
    unsafe { grant_as(record, Grant::Turn) }
}

/// Lets the record's waiter go, and gives back how to wake it.
///
/// # Safety
/// The caller has just taken `record` out of its list (I3), so that it is alive (I1).
pub(super) unsafe fn grant_as<W: Wake, P>(record: *const Record<W, P>, grant: Grant) -> W {
    let granted = match grant {
        Grant::Turn => TURN,
        Grant::Own => OWN,
    };
    // SAFETY: alive until the store below (I1): before it, the waiter does not leave its frame.
    let waker = unsafe { (*record).waker.clone() };
    // SAFETY: as above. Pairs with the load in `granted`; the record may be gone after this.
    unsafe { (*record).granted.store(granted, Ordering::Release) };
    waker
}

/// Records, oldest first. Whoever calls its methods has it for itself (I2).
#[derive(Debug)]
pub(super) struct List<W, P = ()> {
    oldest: AtomicPtr<Record<W, P>>,
    newest: AtomicPtr<Record<W, P>>,
}

impl<W: Wake, P> List<W, P> {
    pub(super) fn new() -> List<W, P> {
        List {
            oldest: AtomicPtr::new(ptr::null_mut()),
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.oldest.load(Ordering::Relaxed).is_null()
    }

    /// What the oldest waits for.
    pub(super) fn oldest_amount(&self) -> Option<usize> {
        let oldest = self.oldest.load(Ordering::Relaxed);
        // SAFETY: null or a queued record, which is alive (I1).
        unsafe { oldest.as_ref() }.map(Record::amount)
    }

    /// Adds a record as the newest.
    ///
    /// # Safety
    /// The list is the caller's own (I2); the record is in no list and stays alive (I1).
    pub(super) unsafe fn push_newest(&self, record: &Record<W, P>) {
        let raw = ptr::from_ref(record).cast_mut();
        let older = self.newest.load(Ordering::Relaxed);
        record.older.store(older, Ordering::Relaxed);
        record.newer.store(ptr::null_mut(), Ordering::Relaxed);
        self.newest.store(raw, Ordering::Relaxed);
        // SAFETY: null or a queued record (I1).
        match unsafe { older.as_ref() } {
            Some(older) => older.newer.store(raw, Ordering::Relaxed),
            None => self.oldest.store(raw, Ordering::Relaxed),
        }
    }

    /// Adds a record as if it had waited longest.
    ///
    /// # Safety
    /// As `push_newest`.
    pub(super) unsafe fn push_oldest(&self, record: &Record<W, P>) {
        let raw = ptr::from_ref(record).cast_mut();
        let newer = self.oldest.load(Ordering::Relaxed);
        record.newer.store(newer, Ordering::Relaxed);
        record.older.store(ptr::null_mut(), Ordering::Relaxed);
        self.oldest.store(raw, Ordering::Relaxed);
        // SAFETY: null or a queued record (I1).
        match unsafe { newer.as_ref() } {
            Some(newer) => newer.older.store(raw, Ordering::Relaxed),
            None => self.newest.store(raw, Ordering::Relaxed),
        }
    }

    /// Adds a chain whose first is the newest and in which each knows the one older than itself.
    ///
    /// # Safety
    /// As `push_newest`, for each of them.
    pub(super) unsafe fn append_chain(&self, newest: *mut Record<W, P>) {
        if newest.is_null() {
            return; // Else an empty chain would cut off what is queued.
        }
        let before = self.newest.load(Ordering::Relaxed);
        let mut newer = ptr::null_mut();
        let mut at = newest;
        // SAFETY: the chain's records are alive (I1).
        while let Some(record) = unsafe { at.as_ref() } {
            record.newer.store(newer, Ordering::Relaxed);
            newer = at;
            at = record.older.load(Ordering::Relaxed);
            if at.is_null() {
                record.older.store(before, Ordering::Relaxed);
            }
        }
        // SAFETY: null or a queued record (I1).
        match unsafe { before.as_ref() } {
            Some(before) => before.newer.store(newer, Ordering::Relaxed),
            None => self.oldest.store(newer, Ordering::Relaxed),
        }
        self.newest.store(newest, Ordering::Relaxed);
    }

    /// Takes out the oldest, to be granted at once.
    ///
    /// # Safety
    /// The list is the caller's own (I2).
    pub(super) unsafe fn pop_oldest(&self) -> Option<*const Record<W, P>> {
        let oldest = self.oldest.load(Ordering::Relaxed);
        // SAFETY: null or a queued record (I1).
        let record = unsafe { oldest.as_ref() }?;
        // SAFETY: it is in this list, which is the caller's own.
        unsafe { self.unlink(record) };
        Some(oldest)
    }

    /// Takes a record out.
    ///
    /// # Safety
    /// The list is the caller's own (I2), and the record is in it.
    pub(super) unsafe fn unlink(&self, record: &Record<W, P>) {
        let older = record.older.load(Ordering::Relaxed);
        let newer = record.newer.load(Ordering::Relaxed);
        // SAFETY: null or a queued record (I1).
        match unsafe { older.as_ref() } {
            Some(older) => older.newer.store(newer, Ordering::Relaxed),
            None => self.oldest.store(newer, Ordering::Relaxed),
        }
        // SAFETY: as above.
        match unsafe { newer.as_ref() } {
            Some(newer) => newer.older.store(older, Ordering::Relaxed),
            None => self.newest.store(older, Ordering::Relaxed),
        }
    }
}

/// A lock for a few instructions, or loom's.
#[derive(Debug)]
pub(super) struct Short<T>(
    #[cfg(not(loom))] parking_lot::Mutex<T>,
    #[cfg(loom)] loom::sync::Mutex<T>,
);

impl<T> Short<T> {
    #[cfg(not(loom))]
    pub(super) fn new(value: T) -> Short<T> {
        Short(parking_lot::Mutex::new(value))
    }

    #[cfg(not(loom))]
    pub(super) fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
        self.0.lock()
    }

    #[cfg(loom)]
    pub(super) fn new(value: T) -> Short<T> {
        Short(loom::sync::Mutex::new(value))
    }

    #[cfg(loom)]
    pub(super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// A waker for models. Not loom's `unpark`, which also frees threads that wait for a lock.
#[cfg(all(test, loom))]
#[derive(Clone, Debug)]
pub(super) struct LoomWaker(std::sync::Arc<loom::sync::Notify>);

#[cfg(all(test, loom))]
impl LoomWaker {
    pub(super) fn new() -> LoomWaker {
        LoomWaker(std::sync::Arc::new(loom::sync::Notify::new()))
    }

    /// A record for the running thread.
    pub(super) fn record(amount: usize) -> Record<LoomWaker> {
        Record::new(LoomWaker::new(), amount)
    }

    /// Blocks the thread until it is woken.
    pub(super) fn block(&self) {
        self.0.wait();
    }

    /// Blocks the thread until the record is granted.
    pub(super) fn wait<P>(record: &Record<LoomWaker, P>) {
        while !record.is_granted() {
            record.waker.0.wait();
        }
    }
}

#[cfg(all(test, loom))]
impl Wake for LoomWaker {
    fn wake(self) {
        self.0.notify();
    }

    fn id(&self) -> u64 {
        0
    }

    fn running_id() -> u64 {
        0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    struct Nobody;

    impl Wake for Nobody {
        fn wake(self) {}

        fn id(&self) -> u64 {
            0
        }

        fn running_id() -> u64 {
            0
        }
    }

    fn records() -> [Record<Nobody>; 5] {
        core::array::from_fn(|i| Record::new(Nobody, i))
    }

    /// Takes all out and gives their amounts.
    fn drain(list: &List<Nobody>) -> Vec<usize> {
        // SAFETY: one thread has list and records, which outlive it.
        let pop = || unsafe { list.pop_oldest() };
        // SAFETY: as above.
        let order = core::iter::from_fn(pop).map(|record| unsafe { (*record).amount() });
        let order = order.collect();
        assert!(list.is_empty() && list.newest.load(Ordering::Relaxed).is_null());
        order
    }

    #[test]
    fn oldest_comes_out_first_unless_another_was_put_before_it() {
        let records = records();
        let list = List::new();
        for record in &records[..4] {
            // SAFETY: one thread has list and records, which outlive it.
            unsafe { list.push_newest(record) };
        }
        // SAFETY: as above.
        unsafe { list.push_oldest(&records[4]) };
        assert_eq!(list.oldest_amount(), Some(4));
        assert_eq!(drain(&list), [4, 0, 1, 2, 3]);
    }

    #[test]
    fn a_chain_follows_what_was_there() {
        let records = records();
        let list = List::new();
        for (first, expected) in [(0, vec![0, 1, 2, 3, 4]), (2, vec![2, 3, 4])] {
            // SAFETY: one thread has list and records, which outlive it.
            unsafe {
                if first == 0 {
                    list.push_newest(&records[0]);
                    list.push_newest(&records[1]);
                }
                records[2].set_older(ptr::null_mut());
                records[3].set_older(ptr::from_ref(&records[2]).cast_mut());
                records[4].set_older(ptr::from_ref(&records[3]).cast_mut());
                list.append_chain(ptr::from_ref(&records[4]).cast_mut());
            }
            assert_eq!(drain(&list), expected);
        }
    }

    // SPEC L1: who finds nothing pushed leaves those alone who are in line already.
    #[test]
    fn an_empty_chain_changes_nothing() {
        let records = records();
        let list = List::new();
        for record in &records {
            // SAFETY: one thread has list and records, which outlive it.
            unsafe { list.append_chain(ptr::null_mut()) };
            // SAFETY: as above.
            unsafe { list.push_newest(record) };
        }
        // SAFETY: as above.
        unsafe { list.append_chain(ptr::null_mut()) };
        assert_eq!(drain(&list), [0, 1, 2, 3, 4]);
        // SAFETY: as above.
        unsafe { list.append_chain(ptr::null_mut()) };
        assert!(list.is_empty());
    }

    #[test]
    fn any_record_can_be_taken_out() {
        for out in 0..5 {
            let records = records();
            let list = List::new();
            for record in &records {
                // SAFETY: one thread has list and records, which outlive it.
                unsafe { list.push_newest(record) };
            }
            // SAFETY: as above.
            unsafe { list.unlink(&records[out]) };
            let expected: Vec<usize> = (0..5).filter(|&i| i != out).collect();
            assert_eq!(drain(&list), expected);
        }
    }

    #[test]
    fn granted_is_seen_by_the_waiter() {
        let record = Record::new(Nobody, 1);
        assert!(!record.is_granted());
        // SAFETY: alive, and in no list.
        unsafe { grant(&raw const record) };
        assert!(record.is_granted() && record.granted() == Some(Grant::Turn));
        let record = Record::new(Nobody, 1);
        // SAFETY: as above.
        unsafe { grant_as(&raw const record, Grant::Own) };
        assert!(record.is_granted() && record.granted() == Some(Grant::Own));
    }
}
