//! A counter of visitors and a lock in one (SPEC L6), for what is walked often and changed rarely:
//! visitors count, writers lock, and what was taken out is freed when the count reaches zero.
//!
//! `state` is the word and its transitions; here are the types that say who may do what.
//!
//! Invariants, besides those of `state`
//! - I1. There is a [`Visit`] for each visitor that is counted, and a [`LockCntGuard`] while it is
//!   locked (or they were forgotten, and it stays so for ever).
//! - I2. The value is borrowed mutably only through the guard, while it is locked with no visitor:
//!   nobody comes in until the guard is gone (`state` I1).
//!
//! It lies in this layer as the event loop's lists are what it is made for; `sync` shows it.

// Visits and guards give access to the value.
#![allow(unsafe_code)]

mod state;

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;

use self::state::State;

/// A counter of visitors and a lock, in one word, around something that visitors look at.
///
/// Visitors do not wait for a writer, nor a writer for visitors, unless there are none: then
/// visitors wait until it is unlocked. So whoever has the lock and sees no visitor is alone, and
/// may do what nobody must see: free what has been taken out of a list, say. With visitors about
/// it only changes what they can see change (atomics), and leaves the rest to the last of them.
///
/// **It blocks the thread**, coroutines or not, as it is for critical sections of some
/// instructions, inside of loops and between them: the lock must not be held across anything that
/// parks, and a thread that has it must not visit. Neither fair nor poisoned by a panic.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
/// use corio::sync::{LockCnt, LockCntGuard, Visit};
///
/// struct Handler { name: &'static str, is_removed: AtomicBool }
/// let handler = |name| Handler { name, is_removed: AtomicBool::new(false) };
/// let handlers = LockCnt::new(vec![handler("a"), handler("b")]);
///
/// let walk = handlers.visit();
/// for handler in walk.iter() {
///     if handler.name == "a" {
///         // Removed while the list is walked: only marked.
///         let mut guard = handlers.lock();
///         guard[0].is_removed.store(true, Relaxed);
///         assert!(LockCntGuard::get_mut(&mut guard).is_none());
///     }
/// }
/// // The last visitor sweeps.
/// let mut guard = Visit::leave_and_lock(walk).expect("nobody else walks");
/// let handlers = LockCntGuard::get_mut(&mut guard).expect("nobody can have come in");
/// handlers.retain(|handler| !handler.is_removed.load(Relaxed));
/// assert_eq!(handlers.len(), 1);
/// ```
#[doc(alias = "QemuLockCnt")]
pub struct LockCnt<T: ?Sized = ()> {
    state: State,
    value: UnsafeCell<T>,
}

// SAFETY: the value moves with it.
unsafe impl<T: ?Sized + Send> Send for LockCnt<T> {}
// SAFETY: several visitors see the value at a time, so T is Sync; whoever is alone may take it
// along (I2), so T is Send.
unsafe impl<T: ?Sized + Send + Sync> Sync for LockCnt<T> {}

impl<T> LockCnt<T> {
    /// With no visitor, and not locked.
    #[doc(alias = "qemu_lockcnt_init")]
    pub fn new(value: T) -> LockCnt<T> {
        LockCnt {
            state: State::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the value out.
    #[doc(alias = "qemu_lockcnt_destroy")]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> LockCnt<T> {
    /// Comes in as a visitor. Blocks the thread while somebody has the lock and there is no other
    /// visitor. Any thread, but not one that has the lock: it would wait for itself (see
    /// [`LockCntGuard::unlock_and_visit`]).
    ///
    /// # Panics
    /// With 2^30 - 1 visitors there already.
    #[doc(alias = "qemu_lockcnt_inc")]
    #[track_caller]
    #[inline]
    pub fn visit(&self) -> Visit<'_, T> {
        self.state.inc();
        Visit { lock_cnt: self }
    }

    /// Takes the lock, with visitors or without. Blocks the thread while another has it. Any
    /// thread, visitors too, but not one that has the lock.
    #[doc(alias = "qemu_lockcnt_lock")]
    #[inline]
    pub fn lock(&self) -> LockCntGuard<'_, T> {
        self.state.lock();
        LockCntGuard { lock_cnt: self }
    }

    /// Takes the lock if it is free. Never waits; any thread.
    #[must_use]
    pub fn try_lock(&self) -> Option<LockCntGuard<'_, T>> {
        self.state
            .try_lock()
            .then(|| LockCntGuard { lock_cnt: self })
    }

    /// How many visitors there are. It may have changed by the time it is known; but while the
    /// caller has the lock, 0 stays 0. Any thread.
    #[doc(alias = "qemu_lockcnt_count")]
    #[must_use]
    pub fn count(&self) -> u32 {
        self.state.count()
    }

    /// Whether somebody has the lock. Only a hint.
    pub(crate) fn is_locked(&self) -> bool {
        self.state.is_locked()
    }

    /// A visit whose [`Visit`] was forgotten, as one that ends when it is dropped.
    ///
    /// # Safety
    /// There is such a visit, and nobody else takes it up (I1).
    pub(crate) unsafe fn forgotten_visit(&self) -> Visit<'_, T> {
        Visit { lock_cnt: self }
    }

    /// The lock, whose guard was forgotten, as one that is given up when it is dropped.
    ///
    /// # Safety
    /// As of [`forgotten_visit`](Self::forgotten_visit).
    pub(crate) unsafe fn forgotten_guard(&self) -> LockCntGuard<'_, T> {
        LockCntGuard { lock_cnt: self }
    }

    /// The value, to which the borrow shows that nobody else has access.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// A visitor of a [`LockCnt`], which looks at its value, perhaps beside others and beside whoever
/// has the lock. It leaves when this is dropped, and never waits for that. May be sent.
///
/// ```
/// use corio::sync::{LockCnt, Visit};
/// let list = LockCnt::new(vec![1, 2]);
/// let (first, second) = (list.visit(), list.visit());
/// assert_eq!(first.iter().sum::<i32>(), 3);
/// assert!(Visit::leave_and_lock(first).is_none(), "the second one is there still");
/// assert!(Visit::leave_and_lock(second).is_some());
/// ```
#[must_use = "the visit ends when this is dropped"]
pub struct Visit<'a, T: ?Sized = ()> {
    lock_cnt: &'a LockCnt<T>,
}

impl<'a, T: ?Sized> Visit<'a, T> {
    /// Leaves, and takes the lock if no visitor is left: then there is none until the lock is given
    /// up. Blocks the thread while this is the last visitor and another has the lock.
    #[doc(alias = "qemu_lockcnt_dec_and_lock")]
    pub fn leave_and_lock(visit: Self) -> Option<LockCntGuard<'a, T>> {
        let lock_cnt = ManuallyDrop::new(visit).lock_cnt;
        lock_cnt
            .state
            .dec_and_lock()
            .then(|| LockCntGuard { lock_cnt })
    }

    /// Leaves and takes the lock, as [`leave_and_lock`](Self::leave_and_lock) does, if there is no
    /// other visitor; else stays.
    ///
    /// # Errors
    /// The visit, which goes on.
    #[doc(alias = "qemu_lockcnt_dec_if_lock")]
    pub fn leave_if_last(visit: Self) -> Result<LockCntGuard<'a, T>, Self> {
        if visit.lock_cnt.state.dec_if_lock() {
            let lock_cnt = ManuallyDrop::new(visit).lock_cnt;
            Ok(LockCntGuard { lock_cnt })
        } else {
            Err(visit)
        }
    }
}

impl<T: ?Sized> Drop for Visit<'_, T> {
    #[doc(alias = "qemu_lockcnt_dec")]
    #[inline]
    fn drop(&mut self) {
        self.lock_cnt.state.dec();
    }
}

impl<T: ?Sized> Deref for Visit<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: I2, and this is a visitor.
        unsafe { &*self.lock_cnt.value.get() }
    }
}

/// The lock of a [`LockCnt`], given up when this is dropped. Visitors may look at the value beside
/// it. May be sent.
///
/// ```
/// use corio::sync::{LockCnt, LockCntGuard};
/// let list = LockCnt::new(vec![1]);
/// let mut guard = list.lock();
/// LockCntGuard::get_mut(&mut guard).expect("there is no visitor").push(2);
/// let visit = LockCntGuard::unlock_and_visit(guard);
/// assert_eq!((visit.len(), list.count()), (2, 1));
/// ```
#[must_use = "the lock is given up when the guard is dropped"]
pub struct LockCntGuard<'a, T: ?Sized = ()> {
    lock_cnt: &'a LockCnt<T>,
}

impl<'a, T: ?Sized> LockCntGuard<'a, T> {
    /// The value, if there is no visitor. Never waits.
    pub fn get_mut(guard: &mut Self) -> Option<&mut T> {
        // SAFETY: locked, with no visitor, and the guard is borrowed mutably: I2. What visitors did
        // before they left is seen (`State::count`).
        (guard.lock_cnt.count() == 0).then(|| unsafe { &mut *guard.lock_cnt.value.get() })
    }

    /// Gives the lock up and stays as a visitor, with nobody alone in between. Never waits.
    ///
    /// # Panics
    /// With 2^30 - 1 visitors there already; the lock is given up then.
    #[doc(alias = "qemu_lockcnt_inc_and_unlock")]
    #[track_caller]
    pub fn unlock_and_visit(guard: Self) -> Visit<'a, T> {
        guard.lock_cnt.state.inc_and_unlock();
        let lock_cnt = ManuallyDrop::new(guard).lock_cnt;
        Visit { lock_cnt }
    }
}

impl<T: ?Sized> Drop for LockCntGuard<'_, T> {
    #[doc(alias = "qemu_lockcnt_unlock")]
    #[inline]
    fn drop(&mut self) {
        self.lock_cnt.state.unlock();
    }
}

impl<T: ?Sized> Deref for LockCntGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: I2: only this guard borrows it mutably, and it is borrowed itself.
        unsafe { &*self.lock_cnt.value.get() }
    }
}

impl<T: Default> Default for LockCnt<T> {
    fn default() -> LockCnt<T> {
        LockCnt::new(T::default())
    }
}

impl<T> From<T> for LockCnt<T> {
    fn from(value: T) -> LockCnt<T> {
        LockCnt::new(value)
    }
}

// Not the value: to look at it, one would have to come in, which may block.
impl<T: ?Sized> fmt::Debug for LockCnt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockCnt")
            .field("visitors", &self.state.count())
            .field("is_locked", &self.state.is_locked())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Visit<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for LockCntGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
