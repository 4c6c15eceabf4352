//! The packet: what a spawned coroutine and its handle share.
//!
//! ```text
//!                 the handle notes who waits            the coroutine ends
//!   EMPTY ------------------------------------> WAITING -------------------+
//!     |                                          |   ^                     v
//!     |                          another waiter  v   |          wakes  +------+
//!     |                                        CHANGING ------------> | DONE |
//!     +--------------------------------------------------------------> +------+
//! ```
//!
//! Invariants
//! - P1 The outcome is written by the coroutine's side before DONE, once, and is the handle's from
//!   then on.
//! - P2 The waiter is the handle's in EMPTY and CHANGING, and nobody's to change in WAITING: who
//!   turns WAITING into DONE takes it. The handle is in one hand at a time (`&mut`, or by value). With
//!   `LOCAL` a handle that goes takes its waiter along: that one may be good for this thread only,
//!   and either coroutine may leave it afterwards.
//! - P3 Who finds that CHANGING has become DONE is the handle, which then does not wait; nobody
//!   else wakes it.
//! - P4 `target` is 0 until the coroutine is made; then its token; or `CANCELLED`, if it was
//!   cancelled before it was made, which it is then not.
//! - P5 A packet with `LOCAL` stays on one thread: neither the handle nor who starts the coroutine is
//!   sent, and whoever moves the coroutine away promises not to use its handle again (`move_to`).
//!   Nothing is locked for it.

#![allow(unsafe_code)] // A shared cell and a count of its own; SAFETY comments name P1 and P2.

use core::ops::Deref;
use core::ptr::NonNull;
use std::alloc::Layout;

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::recycle;

#[cfg(not(loom))]
use core::cell::UnsafeCell;
#[cfg(loom)]
use loom::cell::UnsafeCell;

const EMPTY: u32 = 0;
const WAITING: u32 = 1;
const CHANGING: u32 = 2;
const DONE: u32 = 3;

/// No token: tokens of generation 0 do not exist.
const CANCELLED: u64 = 1;

/// See the module's documentation. `O` is the outcome, `W` who waits; for `LOCAL` see P5.
pub(super) struct Packet<O, W, const LOCAL: bool> {
    state: AtomicU32,
    references: AtomicU32,
    target: AtomicU64,
    outcome: UnsafeCell<Option<O>>,
    waiter: UnsafeCell<Option<W>>,
}

// SAFETY: outcome and waiter go from one thread to another, one has each at a time (P1, P2).
unsafe impl<O: Send, W: Send> Sync for Packet<O, W, false> {}
// SAFETY: as above.
unsafe impl<O: Send, W: Send> Send for Packet<O, W, false> {}

/// A word that one thread or two change.
macro_rules! word {
    ($type:ty, $int:ty) => {
        impl Word<$int> for $type {
            #[inline(always)]
            fn change<const LOCAL: bool>(
                &self,
                [from, to]: [$int; 2],
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                if !LOCAL {
                    return self.compare_exchange(from, to, success, failure);
                }
                let now = self.load(Ordering::Relaxed);
                if now != from {
                    return Err(now);
                }
                self.store(to, Ordering::Relaxed);
                Ok(now)
            }
        }
    };
}

/// As `compare_exchange`, without a locked instruction if `LOCAL`.
trait Word<I> {
    fn change<const LOCAL: bool>(
        &self,
        from_to: [I; 2],
        success: Ordering,
        failure: Ordering,
    ) -> Result<I, I>;
}

word!(AtomicU32, u32);
word!(AtomicU64, u64);

impl<O, W, const LOCAL: bool> Packet<O, W, LOCAL> {
    fn new() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            references: AtomicU32::new(2),
            target: AtomicU64::new(0),
            outcome: UnsafeCell::new(None),
            waiter: UnsafeCell::new(None),
        }
    }

    /// The coroutine's side: this is how it ended; the first time stands. Returns whom to wake.
    pub(super) fn finish(&self, outcome: O) -> Option<W> {
        // Relaxed: only this side writes DONE.
        if self.state.load(Ordering::Relaxed) == DONE {
            return None;
        }
        put(&self.outcome, outcome); // P1.
        // AcqRel: publishes the outcome, pairs with the loads of DONE; and acquires the waiter,
        // published by `wait_as`.
        let before = if LOCAL {
            let before = self.state.load(Ordering::Relaxed);
            self.state.store(DONE, Ordering::Relaxed);
            before
        } else {
            self.state.swap(DONE, Ordering::AcqRel)
        };
        match before {
            WAITING => take(&self.waiter), // P2.
            _ => None,
        }
    }

    /// True once the outcome is there.
    pub(super) fn is_done(&self) -> bool {
        // Acquire: pairs with `finish`.
        self.state.load(Ordering::Acquire) == DONE
    }

    /// The handle's side: notes who waits, in place of who did. Err: there is nothing left to wait
    /// for. In either case the one that does not wait any more is given back, to be dropped outside
    /// of all this.
    #[inline(always)] // Makes the waiter in place: to copy what has just been written in parts stalls.
    pub(super) fn wait_as(&self, waiter: W) -> Result<Option<W>, Option<W>> {
        let mut seen = self.state.load(Ordering::Acquire);
        let mut before = None;
        if seen == WAITING {
            // Acquire on failure: as `is_done`. The finisher leaves the waiter alone from here on.
            let change = [WAITING, CHANGING];
            match self
                .state
                .change::<LOCAL>(change, Ordering::Relaxed, Ordering::Acquire)
            {
                Ok(_) => {
                    before = take(&self.waiter);
                    seen = CHANGING;
                }
                Err(now) => seen = now,
            }
        }
        if seen == DONE {
            return Err(Some(waiter));
        }
        put(&self.waiter, waiter); // P2.
        // Planted: whoever ends in this very moment wakes nobody.
        if planted!("packet_unseen") {
            self.state.store(WAITING, Ordering::Release);
            return Ok(before);
        }
        // Release: publishes the waiter to `finish`. Acquire on failure: as `is_done`.
        match self
            .state
            .change::<LOCAL>([seen, WAITING], Ordering::Release, Ordering::Acquire)
        {
            Ok(_) => Ok(before),
            Err(_) => {
                drop(before);
                Err(take(&self.waiter)) // P3: it was not WAITING, so it is ours still.
            }
        }
    }

    /// As [`wait_as`](Self::wait_as), for who mostly is the first to wait; true if it is to wait.
    #[inline(always)]
    pub(super) fn wait_first_as(&self, waiter: W) -> bool {
        if self.state.load(Ordering::Relaxed) != EMPTY {
            return self.wait_as(waiter).is_ok();
        }
        put(&self.waiter, waiter); // P2.
        // Release and acquire: as in `wait_as`.
        let waits = self
            .state
            .change::<LOCAL>([EMPTY, WAITING], Ordering::Release, Ordering::Acquire)
            .is_ok();
        if !waits {
            drop(take(&self.waiter)); // P3.
        }
        waits
    }

    /// The handle's side: the outcome, once it is there, and once only.
    pub(super) fn take(&self) -> Option<O> {
        self.is_done().then(|| take(&self.outcome)).flatten()
    }

    /// The coroutine is made, and this is its token. False: it was cancelled before.
    pub(super) fn set_target(&self, token: u64) -> bool {
        // Release: who cancels may look at the coroutine's slot. Pairs with `cancel`.
        self.target
            .change::<LOCAL>([0, token], Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// Asks for the coroutine to be cancelled: gives the token of the one that is to be told, if it
    /// is made already.
    pub(super) fn cancel(&self) -> Option<u64> {
        // Acquire: pairs with `set_target`.
        match self
            .target
            .change::<LOCAL>([0, CANCELLED], Ordering::Acquire, Ordering::Acquire)
        {
            Ok(_) | Err(CANCELLED) => None,
            Err(token) => Some(token),
        }
    }
}

/// The caller has the cell for itself (P1, P2), and it is empty.
#[inline(always)]
fn put<T>(cell: &UnsafeCell<Option<T>>, value: T) {
    // SAFETY: the caller's promise. Nothing is there to be dropped.
    let put = |cell: *mut Option<T>| unsafe { cell.write(Some(value)) };
    #[cfg(not(loom))]
    put(cell.get());
    #[cfg(loom)]
    cell.with_mut(put);
}

/// Whether something is in the cell, which is the caller's: see [`take`].
#[inline(always)]
fn is_some<T>(cell: &UnsafeCell<Option<T>>) -> bool {
    // SAFETY: the caller's promise.
    let is_some = |cell: *const Option<T>| unsafe { (*cell).is_some() };
    #[cfg(not(loom))]
    return is_some(cell.get());
    #[cfg(loom)]
    cell.with(is_some)
}

/// As [`put`].
#[inline(always)]
fn take<T>(cell: &UnsafeCell<Option<T>>) -> Option<T> {
    // SAFETY: the caller's promise.
    let take = |cell: *mut Option<T>| unsafe { (*cell).take() };
    #[cfg(not(loom))]
    return take(cell.get());
    #[cfg(loom)]
    cell.with_mut(take)
}

/// One of the two references to a packet.
pub(super) struct Shared<O, W, const LOCAL: bool>(NonNull<Packet<O, W, LOCAL>>);

// SAFETY: as for the packet. With LOCAL it is its owners that do not leave their thread (P5), so
// that the compiler's message is of them and not of this.
unsafe impl<O: Send, W: Send, const LOCAL: bool> Send for Shared<O, W, LOCAL> {}
// SAFETY: as above.
unsafe impl<O: Send, W: Send, const LOCAL: bool> Sync for Shared<O, W, LOCAL> {}

impl<O, W, const LOCAL: bool> Shared<O, W, LOCAL> {
    /// A packet, and its two references.
    #[inline]
    pub(super) fn pair() -> (Self, Self) {
        let packet = recycle::allocate(Layout::new::<Packet<O, W, LOCAL>>());
        let packet = packet.cast::<Packet<O, W, LOCAL>>();
        // SAFETY: fresh memory of the packet's layout.
        unsafe { packet.write(Packet::new()) };
        (Self(packet), Self(packet))
    }

    /// Where it is, for as long as one of the two is there.
    pub(super) fn as_ptr(&self) -> NonNull<Packet<O, W, LOCAL>> {
        self.0
    }

    /// Frees it with what nobody has asked for.
    #[cold]
    #[inline(never)]
    fn free_with_rest(&self) {
        let left = (take(&self.outcome), take(&self.waiter));
        // SAFETY: nobody refers to it any more, and nothing is left in it; it was made by `pair`.
        // Freed before the rest is dropped, so that a panic in a destructor does not keep it.
        unsafe { recycle::free(self.0.cast(), Layout::new::<Packet<O, W, LOCAL>>()) };
        drop(left);
    }
}

impl<O, W, const LOCAL: bool> Deref for Shared<O, W, LOCAL> {
    type Target = Packet<O, W, LOCAL>;

    #[inline]
    fn deref(&self) -> &Packet<O, W, LOCAL> {
        // SAFETY: there as long as one of the two references is.
        unsafe { self.0.as_ref() }
    }
}

impl<O, W, const LOCAL: bool> Drop for Shared<O, W, LOCAL> {
    fn drop(&mut self) {
        // Acquire and release: what the other did to the packet is before it is freed. The last one
        // need not lock.
        if self.references.load(Ordering::Acquire) != 1 {
            if LOCAL {
                self.references.store(1, Ordering::Relaxed);
                // The coroutine's side does not go before DONE, so this is the handle (P2).
                if self.state.load(Ordering::Relaxed) == WAITING {
                    self.state.store(EMPTY, Ordering::Relaxed);
                    drop(take(&self.waiter));
                }
                return;
            }
            if self.references.fetch_sub(1, Ordering::AcqRel) != 1 {
                return;
            }
        }
        if is_some(&self.outcome) || is_some(&self.waiter) {
            return self.free_with_rest();
        }
        // SAFETY: nobody refers to it any more, and nothing is left in it; it was made by `pair`.
        unsafe { recycle::free(self.0.cast(), Layout::new::<Packet<O, W, LOCAL>>()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::rc::Rc;

    // SPEC C10: a coroutine that went on without the result may be anywhere when that comes.
    #[test]
    fn a_handle_that_stays_on_its_thread_takes_its_waiter_along() {
        let (coroutine, handle) = Shared::<u32, Rc<()>, true>::pair();
        let waiter = Rc::new(());
        assert!(handle.wait_first_as(Rc::clone(&waiter)));
        assert_eq!(Rc::strong_count(&waiter), 2);
        drop(handle);
        assert_eq!(Rc::strong_count(&waiter), 1);
        assert!(coroutine.finish(7).is_none() && coroutine.is_done());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::model;
    use loom::sync::{Arc, Condvar, Mutex};

    /// A waiter that a waking is counted of.
    #[derive(Clone)]
    struct Bell(Arc<(Mutex<bool>, Condvar)>);

    impl Bell {
        fn new() -> Self {
            Self(Arc::new((Mutex::new(false), Condvar::new())))
        }

        fn ring(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_one();
        }

        /// loom reports it if nobody rings.
        fn wait(&self) {
            let mut rung = self.0.0.lock().unwrap();
            while !*rung {
                rung = self.0.1.wait(rung).unwrap();
            }
            *rung = false;
        }
    }

    // SPEC L7, C10: whoever waits learns of the end, also when it changes its mind about who it is
    // while the end comes.
    #[test]
    fn loom_packet_an_end_is_not_missed() {
        model::check(None, || {
            let (coroutine, handle) = Shared::<u32, Bell, false>::pair();
            let ended = loom::thread::spawn(move || {
                if let Some(bell) = coroutine.finish(7) {
                    bell.ring();
                }
            });
            let bells = [Bell::new(), Bell::new()];
            for bell in &bells {
                if handle.wait_as(bell.clone()).is_err() {
                    break;
                }
            }
            if !handle.is_done() {
                bells[1].wait();
            }
            assert_eq!(handle.take(), Some(7));
            ended.join().unwrap();
        });
    }

    // SPEC L7, C10: so does who waits once.
    #[test]
    fn loom_packet_an_end_is_not_missed_by_who_waits_first() {
        model::check(None, || {
            let (coroutine, handle) = Shared::<u32, Bell, false>::pair();
            let ended = loom::thread::spawn(move || {
                if let Some(bell) = coroutine.finish(7) {
                    bell.ring();
                }
            });
            let bell = Bell::new();
            if handle.wait_first_as(bell.clone()) {
                bell.wait();
            }
            assert_eq!(handle.take(), Some(7));
            ended.join().unwrap();
        });
    }

    // SPEC L7, C12: a coroutine that is being made while it is cancelled is not made, or told.
    #[test]
    fn loom_packet_a_cancellation_is_not_lost() {
        model::check(None, || {
            let (coroutine, handle) = Shared::<u32, Bell, false>::pair();
            let made = loom::thread::spawn(move || coroutine.set_target(5 << 32));
            let told = handle.cancel();
            assert_eq!(made.join().unwrap(), told == Some(5 << 32));
        });
    }
}
