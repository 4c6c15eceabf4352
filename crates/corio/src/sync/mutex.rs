//! The coroutine mutex: fair hand-off, one compare-exchange when nobody else wants it (SPEC L1).
//!
//! `state` is the state machine. Here are the guard, waiting and cancellation, and the spin:
//! whoever finds the mutex held by a coroutine that is running on another thread, or about to, looks
//! a few times before it parks, as parking and being woken across threads costs more than most critical
//! sections take.
//!
//! Invariant
//! - I1. `holder` is the holder's number while a coroutine holds the mutex, has entered its
//!   critical section and has not handed its guard on, else 0. So finding one's own number there
//!   is locking twice.

// The guard gives access to the value, and wait records are pointers into frames.
#![allow(unsafe_code)]

mod state;

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use self::state::State;
use super::holder::Holder;
use super::record::Record;
use super::waiter::{Queued, Waiter};
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::coroutine;
use crate::stack::{self, Slot};

/// How often a locker looks at a mutex at least before it parks, if the holder runs on another
/// thread, or is on its way there.
const SPIN_MIN: u32 = 20;
/// The same at most: some microseconds, about what it costs to be woken from there.
const SPIN_MAX: u32 = 500;

/// A mutex for coroutines of any threads, and for plain threads.
///
/// Unlocking hands it to whoever has waited longest. It is not poisoned by a panic.
///
/// ```
/// use std::sync::Arc;
/// use corio::{IoThread, sync::Mutex};
///
/// let (a, b) = (IoThread::builder().spawn()?, IoThread::builder().spawn()?);
/// let sum = Arc::new(Mutex::new(0));
/// let add = |n| {
///     let sum = Arc::clone(&sum);
///     move || *sum.lock() += n
/// };
/// let (first, second) = (a.context().spawn(add(1)), b.context().spawn(add(2)));
/// first.join().unwrap();
/// second.join().unwrap();
/// assert_eq!(*sum.lock(), 3);
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "CoMutex")]
pub struct Mutex<T: ?Sized> {
    state: State<Waiter>,
    /// How often lockers have had to look lately; a hint.
    looks: AtomicU32,
    holder: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder reaches the value (`State` excludes), on one thread at a time.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above; sharing the mutex moves access to the value between threads, so T is Send.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free mutex.
    #[doc(alias = "qemu_co_mutex_init")]
    pub fn new(value: T) -> Mutex<T> {
        Mutex {
            state: State::new(),
            looks: AtomicU32::new(0),
            holder: AtomicU64::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the mutex. A coroutine that has to wait parks; a plain thread blocks.
    ///
    /// Waiting is a cancellation point; a coroutine that is cancelled there leaves the line.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine, where waiting would stop the loop (use
    /// [`try_lock`](Self::try_lock)); if the coroutine has a guard of the mutex already that was
    /// not [handed on](MutexGuard::hand_on); if it has to wait in a home without a loop.
    #[doc(alias = "qemu_co_mutex_lock")]
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let holder = Holder::current();
        if holder.is_none() {
            Waiter::check("sync::Mutex::lock");
        }
        if !self.state.try_lock() {
            self.lock_held();
        }
        self.guard(holder)
    }

    /// Takes the mutex if it is free and nobody waits for it. Never waits; from anywhere.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.state.try_lock().then(|| self.guard(Holder::current()))
    }

    /// Makes a guard again in place of one that was forgotten: for the C interface.
    ///
    /// # Safety
    /// The running coroutine holds the mutex, and its guard was forgotten.
    #[doc(hidden)]
    #[inline]
    pub unsafe fn guard_again(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            holder: Holder::current(),
            not_send: PhantomData,
        }
    }

    /// Whether the running coroutine holds it.
    #[doc(hidden)]
    #[inline]
    pub fn is_held_here(&self) -> bool {
        let own = coroutine::running_id();
        // Relaxed: its own number was written by itself.
        own != 0 && self.holder.load(Ordering::Relaxed) == own
    }

    /// The value, to which the borrow shows that nobody else has access.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[inline]
    fn guard(&self, holder: Option<Holder>) -> MutexGuard<'_, T> {
        if let Some(holder) = &holder {
            holder.count_lock(true);
            // Relaxed: read by others as a hint, and by its own thread.
            self.holder.store(holder.id(), Ordering::Relaxed);
        }
        MutexGuard {
            mutex: self,
            holder,
            not_send: PhantomData,
        }
    }

    #[cold]
    #[track_caller]
    fn lock_held(&self) {
        let own = coroutine::running_id();
        let holder = self.holder.load(Ordering::Relaxed);
        assert!(
            own == 0 || holder != own,
            "a coroutine locked a sync::Mutex that it holds already: it would wait for itself; \
             drop the first guard before, or pass it through `MutexGuard::hand_on` if another \
             coroutine is to drop it"
        );
        if self.spin() {
            return;
        }
        let record = Record::new(Waiter::current("sync::Mutex::lock"), 1);
        // SAFETY: `Queued` sees to it that the record is granted or withdrawn before it goes.
        if unsafe { self.state.lock_or_queue(&record) } {
            return;
        }
        // SAFETY: queued above.
        unsafe { Queued::new(&self.state, &record) }.wait();
    }

    /// Tries for a while, as long as nobody waits and the holder may let go meanwhile: true if it
    /// took it.
    ///
    /// How long adapts: to what was enough, where it was; else it grows until the most there is has
    /// been in vain, too. It has to be worth as much as a hand-over takes, or two who have once
    /// waited for each other would do so for ever, each too late for the other's release.
    fn spin(&self) -> bool {
        let Some(home) = home_of(coroutine_slot()) else {
            return false;
        };
        let looks = self.looks.load(Ordering::Relaxed);
        let most = (2 * looks + SPIN_MIN).min(SPIN_MAX);
        for look in 0..most {
            if self.state.try_lock_if_free() {
                let looks = (7 * looks + look) / 8;
                self.looks.store(looks, Ordering::Relaxed);
                return true;
            }
            if !self.state.is_unawaited() || !self.may_end_soon(home) {
                return false;
            }
            core::hint::spin_loop();
        }
        let looks = if most < SPIN_MAX { most } else { 0 };
        self.looks.store(looks, Ordering::Relaxed);
        false
    }

    /// Whether the holder is not known to need this very thread, or a wake, to go on.
    fn may_end_soon(&self, home: *const ()) -> bool {
        // Relaxed: a hint. Nobody: it has been handed over, or is a plain thread's. A slot lives for
        // ever, so that a holder that is gone does no harm.
        let holder = self.holder.load(Ordering::Relaxed);
        slot_of(holder).is_none_or(|slot| {
            let may_run = || {
                // One of which there is no token parks without a word (stack::word I7).
                slot.word.is_running() && !coroutine::is_parked_as(slot, generation_of(holder))
            };
            home_of(Some(slot)) != Some(home) && (slot.word.is_scheduled() || may_run())
        })
    }
}

/// The running coroutine's slot.
fn coroutine_slot() -> Option<&'static Slot> {
    coroutine::current().map(coroutine::CoRef::slot)
}

/// The slot of a coroutine with this number; some slot if it is none's.
fn slot_of(id: u64) -> Option<&'static Slot> {
    let index = u32::try_from(id & u64::from(u32::MAX)).ok()?;
    (id != 0).then(|| stack::slot_at(index)).flatten()
}

/// The generation in a coroutine's number.
fn generation_of(id: u64) -> u32 {
    (id >> 32) as u32 // 64 bits less 32.
}

/// What tells homes with a loop apart.
fn home_of(slot: Option<&'static Slot>) -> Option<*const ()> {
    let home = slot?.inbox.load(Ordering::Relaxed).cast_const();
    (!home.is_null()).then_some(home)
}

/// Access to the value of a [`Mutex`], which is unlocked when this is dropped.
///
/// It stays on its thread:
///
/// ```compile_fail
/// fn send<T: Send>(_: T) {}
/// send(corio::sync::Mutex::new(0).lock());
/// ```
///
/// It belongs to the coroutine that took it, wherever it is moved: that coroutine must not end
/// while the guard is there (forgotten, say), and locking the mutex again in it is reported, as it
/// would wait for itself. Both are panics. A guard that another coroutine is to drop is taken out
/// of this by [`hand_on`](Self::hand_on).
///
/// ```
/// let mutex = corio::sync::Mutex::new(vec![1]);
/// let mut guard = mutex.lock();
/// guard.push(2);
/// assert!(mutex.try_lock().is_none());
/// drop(guard);
/// assert_eq!(mutex.try_lock().as_deref(), Some(&vec![1, 2]));
/// ```
#[must_use = "the mutex is unlocked when the guard is dropped"]
#[doc(alias("QEMU_LOCK_GUARD", "WITH_QEMU_LOCK_GUARD"))]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    holder: Option<Holder>,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// Makes it a guard of no particular coroutine, to be given to another one of this thread.
    ///
    /// Whoever took it may end, or wait for the mutex again; nobody is told any more if it would
    /// wait for itself.
    ///
    /// ```
    /// # let io = corio::IoThread::builder().spawn()?;
    /// use corio::sync::{Mutex, MutexGuard};
    /// # let handle = io.context().spawn(|| {
    /// let mutex: &'static Mutex<i32> = Box::leak(Box::new(Mutex::new(1)));
    /// let mut guard = MutexGuard::hand_on(mutex.lock());
    /// let child = corio::spawn_local(move || *guard += 1);
    /// assert_eq!(*mutex.lock(), 2); // Once the child has dropped it.
    /// # child.join().unwrap();
    /// # });
    /// # handle.join().unwrap();
    /// # Ok::<(), corio::Error>(())
    /// ```
    pub fn hand_on(mut guard: Self) -> Self {
        guard.disown();
        guard
    }

    /// The mutex, to lock it again after the guard is gone.
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T: ?Sized> MutexGuard<'_, T> {
    #[inline]
    fn disown(&mut self) {
        if let Some(holder) = self.holder.take() {
            holder.count_lock(false);
            // Relaxed, before the unlock: nobody who locks later sees it (I1).
            self.mutex.holder.store(0, Ordering::Relaxed);
        }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[doc(alias = "qemu_co_mutex_unlock")]
    #[inline]
    fn drop(&mut self) {
        self.disown();
        self.mutex.state.unlock();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the mutex, and `State` lets one hold it at a time.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Mutex<T> {
        Mutex::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Mutex");
        match self.try_lock() {
            Some(value) => text.field("value", &&*value),
            None => text.field("value", &format_args!("<locked>")),
        };
        text.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{IoThread, spawn_local};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    // SPEC L1: nobody spins for a holder that is parked, also if nobody has a token of it.
    #[test]
    fn a_holder_that_waits_for_its_child_is_known_to_be_parked() {
        let io = IoThread::builder().spawn().unwrap();
        let (mutex, gate) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
        let (held, opened) = (Arc::clone(&mutex), Arc::clone(&gate));
        // Spawned on its thread, so that it has no token; nobody waits for it with one.
        let parent = io.context().spawn(move || {
            let holder = spawn_local(move || {
                let _guard = held.lock();
                let child = spawn_local(move || {
                    while !opened.load(Ordering::Acquire) {
                        crate::yield_now();
                    }
                });
                child.join().unwrap();
            });
            holder.join().unwrap();
        });
        let elsewhere = core::ptr::from_ref(&mutex).cast();
        let deadline = Instant::now() + Duration::from_secs(20);
        while mutex.may_end_soon(elsewhere) {
            assert!(Instant::now() < deadline, "it looks as if it ran");
            std::thread::yield_now();
        }
        gate.store(true, Ordering::Release);
        parent.join().unwrap();
    }
}
