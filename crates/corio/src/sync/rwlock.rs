//! The coroutine reader-writer lock: readers share, writers are alone, and everyone is served in
//! the order in which they came (SPEC L2).
//!
//! `state` is the state machine: one compare-exchange to take the lock and one to give it up, as
//! long as nobody waits. Here are the guards, waiting and cancellation, and what finds a coroutine
//! that would wait for itself.
//!
//! Invariants, besides those of `state`
//! - I1. A coroutine that finds its own number in `taker` has a guard that it has not handed on:
//!   takers write it once they have the lock, and each takes its own away before it gives the lock
//!   up. Of several readers the last one is there, so that some mistakes are not found, but none is
//!   found that is not there.
//! - I2. A guard stands for the lock taken once as it says, until it is dropped or turned into
//!   another guard; its `holder` has counted it exactly while it is there.

// The guards give access to the value, and wait records are pointers into frames.
#![allow(unsafe_code)]

mod state;

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use self::state::{Access, State};
use super::holder::Holder;
use super::record::Record;
use super::waiter::{Queued, Waiter};
use crate::atomic::{AtomicU64, Ordering};
use crate::coroutine;

/// A lock that many may hold for reading, or one for writing; for coroutines of any threads, and
/// for plain threads.
///
/// Those who wait are served in the order in which they came: a reader does not pass a writer that
/// waits, and readers that stand next to each other in line are let in together. It is not poisoned
/// by a panic.
///
/// ```
/// use std::sync::Arc;
/// use corio::{IoThread, sync::{ReadGuard, RwLock, WriteGuard}};
///
/// let (a, b) = (IoThread::builder().spawn()?, IoThread::builder().spawn()?);
/// let sizes = Arc::new(RwLock::new(vec![512]));
/// let largest = |sizes: &Arc<RwLock<Vec<u32>>>| {
///     let sizes = Arc::clone(sizes);
///     move || sizes.read().iter().copied().max()
/// };
/// sizes.write().push(4096);
/// let (first, second) = (a.context().spawn(largest(&sizes)), b.context().spawn(largest(&sizes)));
/// assert_eq!(first.join().unwrap(), Some(4096));
/// assert_eq!(second.join().unwrap(), Some(4096));
///
/// // From reading to writing and back.
/// let mut sizes = ReadGuard::upgrade(sizes.read());
/// sizes.clear();
/// assert!(WriteGuard::downgrade(sizes).is_empty());
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "CoRwlock")]
pub struct RwLock<T: ?Sized> {
    state: State<Waiter>,
    taker: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: only who holds the lock reaches the value (`State` I1); it moves with the lock.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: as above. Sharing the lock lets several threads read the value at a time, so T is Sync,
// and moves exclusive access between threads, so T is Send.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// A free lock.
    #[doc(alias = "qemu_co_rwlock_init")]
    pub fn new(value: T) -> RwLock<T> {
        RwLock {
            state: State::new(),
            taker: AtomicU64::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock for reading: waits while somebody writes, and until everyone who came earlier
    /// has been served. A coroutine that has to wait parks; a plain thread blocks.
    ///
    /// Waiting is a cancellation point; a coroutine that is cancelled there leaves the line.
    /// Reading in one coroutine twice at a time works only as long as no writer gets in line in
    /// between, so that it had better be left.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, where waiting would stop the loop (use
    /// [`try_read`](Self::try_read)); if the coroutine has to wait for a guard of its own; if it
    /// has to wait in a home without a loop.
    #[doc(alias = "qemu_co_rwlock_rdlock")]
    #[track_caller]
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        let holder = self.take(Access::Read, "sync::RwLock::read");
        self.read_guard(holder)
    }

    /// Takes the lock for writing: waits while anybody reads or writes, and until everyone who came
    /// earlier has been served. A coroutine that has to wait parks; a plain thread blocks.
    ///
    /// Waiting is a cancellation point; a coroutine that is cancelled there leaves the line, and
    /// readers that came after it go on.
    ///
    /// # Panics
    /// As [`read`](Self::read), with [`try_write`](Self::try_write) instead.
    #[doc(alias = "qemu_co_rwlock_wrlock")]
    #[track_caller]
    #[inline]
    pub fn write(&self) -> WriteGuard<'_, T> {
        let holder = self.take(Access::Write, "sync::RwLock::write");
        self.write_guard(holder)
    }

    /// Takes the lock for reading if nobody writes or waits. Never waits; from anywhere.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        self.state
            .try_take(Access::Read)
            .then(|| self.read_guard(Holder::current()))
    }

    /// Takes the lock for writing if nobody reads, writes or waits. Never waits; from anywhere.
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        self.state
            .try_take(Access::Write)
            .then(|| self.write_guard(Holder::current()))
    }

    /// Makes a guard again in place of one that was forgotten: for the C interface.
    ///
    /// # Safety
    /// The running coroutine holds the lock for reading, and its guard was forgotten.
    #[doc(hidden)]
    pub unsafe fn read_again(&self) -> ReadGuard<'_, T> {
        ReadGuard {
            lock: self,
            holder: Holder::current(),
            not_send: PhantomData,
        }
    }

    /// As [`read_again`](Self::read_again), for writing.
    ///
    /// # Safety
    /// The running coroutine holds the lock for writing, and its guard was forgotten.
    #[doc(hidden)]
    pub unsafe fn write_again(&self) -> WriteGuard<'_, T> {
        WriteGuard {
            lock: self,
            holder: Holder::current(),
            not_send: PhantomData,
        }
    }

    /// How it is held: for reading (Some(false)), for writing (Some(true)), or not. Only a hint,
    /// unless the caller holds it.
    #[doc(hidden)]
    pub fn is_held_for_writing(&self) -> Option<bool> {
        self.state.is_written()
    }

    /// The value, to which the borrow shows that nobody else has access.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[track_caller]
    #[inline]
    fn take(&self, access: Access, what: &str) -> Option<Holder> {
        let holder = Holder::current();
        if holder.is_none() {
            Waiter::check(what);
        }
        if !self.state.try_take(access) {
            self.take_waiting(access, what);
        }
        holder
    }

    #[cold]
    #[track_caller]
    fn take_waiting(&self, access: Access, what: &str) {
        self.check_own(what);
        let record = access.record(Waiter::current(what));
        // SAFETY: `wait` sees to it that the record is granted or withdrawn before it goes.
        if !unsafe { self.state.take_or_queue(&record) } {
            // SAFETY: queued above.
            unsafe { self.wait(&record) };
        }
    }

    /// # Safety
    /// The caller has queued the record, and only looks at it from now on.
    #[track_caller]
    unsafe fn wait(&self, record: &Record<Waiter>) {
        // SAFETY: as the caller promises.
        unsafe { Queued::new(&self.state, record) }.wait();
    }

    /// Finds a coroutine that has a guard and is about to wait for the lock. It would wait for
    /// itself: for its own writing, for its own reading to end, or behind a writer that waits for
    /// that.
    #[track_caller]
    fn check_own(&self, what: &str) {
        let own = coroutine::running_id();
        // Relaxed: its own number was written by its own thread.
        let waits_for_itself = own != 0 && self.taker.load(Ordering::Relaxed) == own;
        assert!(
            !waits_for_itself,
            "{what} was called in a coroutine that holds the lock already: it would wait for \
             itself; drop the first guard before, turn it into the other kind by \
             `ReadGuard::upgrade` or `WriteGuard::downgrade`, or pass it through its `hand_on` if \
             another coroutine is to drop it"
        );
    }

    /// The running coroutine has the lock from now on: I1, I2.
    #[inline]
    fn own(&self, holder: &Option<Holder>) {
        if let Some(holder) = holder {
            holder.count_lock(true);
            // Relaxed: only its own thread makes something of it.
            self.taker.store(holder.id(), Ordering::Relaxed);
        }
    }

    /// Whoever took the lock does not have it any more: I1, I2.
    #[inline]
    fn disown(&self, holder: &mut Option<Holder>) {
        if let Some(holder) = holder.take() {
            holder.count_lock(false);
            // Relaxed, and in two steps: another reader may come in between, whose number is lost
            // then (I1).
            if self.taker.load(Ordering::Relaxed) == holder.id() {
                self.taker.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The caller has taken the lock for reading.
    #[inline]
    fn read_guard(&self, holder: Option<Holder>) -> ReadGuard<'_, T> {
        self.own(&holder);
        ReadGuard {
            lock: self,
            holder,
            not_send: PhantomData,
        }
    }

    /// The caller has taken the lock for writing.
    #[inline]
    fn write_guard(&self, holder: Option<Holder>) -> WriteGuard<'_, T> {
        self.own(&holder);
        WriteGuard {
            lock: self,
            holder,
            not_send: PhantomData,
        }
    }
}

/// Shared access to the value of an [`RwLock`], given up when this is dropped.
///
/// It stays on its thread:
///
/// ```compile_fail
/// fn send<T: Send>(_: T) {}
/// send(corio::sync::RwLock::new(0).read());
/// ```
///
/// It belongs to the coroutine that took it, wherever it is moved: that coroutine must not end
/// while the guard is there (forgotten, say), which is a panic. Waiting for the lock again in it is
/// reported where it is seen, as it would wait for itself. A guard that another coroutine is to
/// drop is taken out of this by [`hand_on`](Self::hand_on).
///
/// ```
/// let lock = corio::sync::RwLock::new(1);
/// let (first, second) = (lock.read(), lock.read());
/// assert_eq!(*first + *second, 2);
/// assert!(lock.try_write().is_none());
/// ```
#[must_use = "the lock is given up when the guard is dropped"]
pub struct ReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    holder: Option<Holder>,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for ReadGuard<'_, T> {}

impl<'a, T: ?Sized> ReadGuard<'a, T> {
    /// Goes on to writing: at once if nobody else reads or waits. Else the caller stops reading,
    /// waits its turn behind those who wait already, and **somebody may have written meanwhile**:
    /// look again at what was read. Two that upgrade do not wait for each other.
    ///
    /// Waiting is a cancellation point; a coroutine that is cancelled there holds nothing any more.
    /// The new guard belongs to the calling coroutine.
    ///
    /// # Panics
    /// As [`RwLock::write`], with [`try_upgrade`](Self::try_upgrade) instead; the lock is given up
    /// then.
    ///
    /// ```
    /// use corio::sync::{ReadGuard, RwLock};
    /// let cache = RwLock::new(None);
    /// let mut entry = cache.read();
    /// if entry.is_none() {
    ///     let mut writable = ReadGuard::upgrade(entry);
    ///     writable.get_or_insert(7); // Somebody else may have come first.
    ///     entry = corio::sync::WriteGuard::downgrade(writable);
    /// }
    /// assert_eq!(*entry, Some(7));
    /// ```
    #[doc(alias = "qemu_co_rwlock_upgrade")]
    #[track_caller]
    pub fn upgrade(guard: Self) -> WriteGuard<'a, T> {
        const WHAT: &str = "sync::ReadGuard::upgrade";
        Waiter::check(WHAT);
        Self::try_upgrade(guard).unwrap_or_else(|guard| guard.upgrade_waiting(WHAT))
    }

    /// Goes on to writing if nobody else reads or waits: then nobody has written meanwhile. Never
    /// waits; from anywhere. The new guard belongs to the calling coroutine.
    ///
    /// # Errors
    /// The guard, unchanged, if there is anybody else.
    pub fn try_upgrade(guard: Self) -> Result<WriteGuard<'a, T>, Self> {
        if guard.lock.state.try_upgrade() {
            Ok(guard.into_lock().write_guard(Holder::current()))
        } else {
            Err(guard)
        }
    }

    /// Makes it a guard of no particular coroutine, to be given to another one of this thread.
    ///
    /// Whoever took it may end, or wait for the lock again; nobody is told any more if it would
    /// wait for itself.
    pub fn hand_on(mut guard: Self) -> Self {
        guard.lock.disown(&mut guard.holder);
        guard
    }

    #[cold]
    #[track_caller]
    fn upgrade_waiting(self, what: &str) -> WriteGuard<'a, T> {
        let record = Access::Write.record(Waiter::current(what));
        let lock = self.into_lock();
        // SAFETY: `wait` sees to it that the record is granted or withdrawn before it goes.
        if !unsafe { lock.state.upgrade_or_queue(&record) } {
            // SAFETY: queued above.
            unsafe { lock.wait(&record) };
        }
        lock.write_guard(Holder::current())
    }

    /// The lock, which the caller has still, in place of the guard.
    fn into_lock(self) -> &'a RwLock<T> {
        let mut guard = ManuallyDrop::new(self);
        guard.lock.disown(&mut guard.holder);
        guard.lock
    }
}

impl<T: ?Sized> Drop for ReadGuard<'_, T> {
    #[doc(alias = "qemu_co_rwlock_unlock")]
    #[inline]
    fn drop(&mut self) {
        self.lock.disown(&mut self.holder);
        self.lock.state.release(Access::Read);
    }
}

/// Exclusive access to the value of an [`RwLock`], given up when this is dropped.
///
/// It stays on its thread, and belongs to the coroutine that took it, as a [`ReadGuard`] does:
///
/// ```compile_fail
/// fn send<T: Send>(_: T) {}
/// send(corio::sync::RwLock::new(0).write());
/// ```
///
/// ```
/// use corio::sync::{RwLock, WriteGuard};
/// let lock = RwLock::new(1);
/// let mut guard = lock.write();
/// *guard += 1;
/// assert!(lock.try_read().is_none());
/// let guard = WriteGuard::downgrade(guard); // Nobody can have written in between.
/// assert_eq!((*guard, lock.try_read().as_deref()), (2, Some(&2)));
/// ```
#[must_use = "the lock is given up when the guard is dropped"]
pub struct WriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    holder: Option<Holder>,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for WriteGuard<'_, T> {}

impl<'a, T: ?Sized> WriteGuard<'a, T> {
    /// Goes on to reading, and lets those readers in who are next in line; nobody writes in
    /// between. Never waits; from wherever the guard is. The new guard belongs to the calling
    /// coroutine.
    #[doc(alias = "qemu_co_rwlock_downgrade")]
    pub fn downgrade(guard: Self) -> ReadGuard<'a, T> {
        let mut guard = ManuallyDrop::new(guard);
        guard.lock.disown(&mut guard.holder);
        guard.lock.state.downgrade();
        guard.lock.read_guard(Holder::current())
    }

    /// Makes it a guard of no particular coroutine: as [`ReadGuard::hand_on`].
    pub fn hand_on(mut guard: Self) -> Self {
        guard.lock.disown(&mut guard.holder);
        guard
    }
}

impl<T: ?Sized> Drop for WriteGuard<'_, T> {
    #[doc(alias = "qemu_co_rwlock_unlock")]
    #[inline]
    fn drop(&mut self) {
        self.lock.disown(&mut self.holder);
        self.lock.state.release(Access::Write);
    }
}

impl<T: ?Sized> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock for reading (I2), and nobody writes meanwhile.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock for writing (I2), so nobody else has access.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> RwLock<T> {
        RwLock::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> RwLock<T> {
        RwLock::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("RwLock");
        match self.try_read() {
            Some(value) => text.field("value", &&*value),
            None => text.field("value", &format_args!("<locked>")),
        };
        text.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
