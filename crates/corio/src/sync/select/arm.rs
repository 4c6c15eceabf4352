//! What one can wait for, in a form that can be waited for together; and the wait.
//!
//! ```text
//!   look at each ──one has it──▶ taken
//!       │ none
//!   register each ──one has it──▶ taken, and those before it withdrawn
//!       │ none
//!   wait until one is granted ──▶ taken, all others withdrawn
//! ```
//!
//! Invariants
//! - I1. An arm that is registered stays where it is, and is taken or withdrawn before the wait
//!   leaves its frame, also by unwinding: [`Registered`] sees to it.
//! - I2. One arm is taken. What another has been granted meanwhile is given back by withdrawing it,
//!   as a cancelled waiter gives it back.
//! - I3. Arms are reached through shared references only: a granter on another thread may be
//!   writing to a record in one.

// Records are pointers into frames.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;

use super::OneOf;

/// See the module. `W` is how the waiter is woken.
pub trait Arm<W> {
    /// What one gets.
    type Output;

    /// Takes it if it is there.
    fn look(&self) -> Option<Self::Output>;

    /// Takes it, or has `waker` woken when it may be there.
    ///
    /// # Safety
    /// If it is not taken, the arm is not moved, and [`take`](Self::take) or
    /// [`withdraw`](Self::withdraw) gives up the registration before it is dropped (I1).
    unsafe fn register(&self, waker: &W) -> Option<Self::Output>;

    /// Takes it if it is registered, and granted by now; then it is not registered any more.
    fn take(&self) -> Option<Self::Output>;

    /// Gives up the registration, if there is one, and what it was granted.
    fn withdraw(&self);

    /// When `take` is worth trying without a wake, in ns of the monotonic clock.
    fn deadline_ns(&self) -> u64 {
        u64::MAX
    }
}

/// Where records wait in a line for something.
pub(in crate::sync) trait Source<W> {
    type Record;
    type Output;

    /// Takes it if it is there.
    fn look(&self) -> Option<Self::Output>;

    fn record(&self, waker: &W) -> Self::Record;

    /// Takes it, or queues the record.
    ///
    /// # Safety
    /// The record is new; if queued, it stays as record.rs I1 says.
    unsafe fn queue(&self, record: &Self::Record) -> Option<Self::Output>;

    /// What the record, which was queued here and is the caller's, is granted, if it is.
    fn granted(&self, record: &Self::Record) -> Option<Self::Output>;

    /// # Safety
    /// The record was queued here by the caller, and is not used any more.
    unsafe fn abandon(&self, record: &Self::Record);
}

/// An arm that stands in a line.
pub(in crate::sync) struct InLine<W, L: Source<W>> {
    line: L,
    /// There while it is queued.
    record: UnsafeCell<Option<L::Record>>,
}

impl<W, L: Source<W>> InLine<W, L> {
    pub(in crate::sync) fn new(line: L) -> Self {
        InLine {
            line,
            record: UnsafeCell::new(None),
        }
    }

    fn record(&self) -> Option<&L::Record> {
        // SAFETY: it is put in and out by the thread that waits, in `register`, `take` and
        // `withdraw`, which keep no reference.
        unsafe { (*self.record.get()).as_ref() }
    }

    /// It is granted or withdrawn.
    fn forget_record(&self) {
        // SAFETY: as above; and nobody else knows the record any more (record.rs I1).
        unsafe { *self.record.get() = None };
    }
}

impl<W, L: Source<W>> Arm<W> for InLine<W, L> {
    type Output = L::Output;

    fn look(&self) -> Option<L::Output> {
        self.line.look()
    }

    unsafe fn register(&self, waker: &W) -> Option<L::Output> {
        self.withdraw(); // There is none, unless we made a mistake.
        // SAFETY: as in `record`.
        unsafe { *self.record.get() = Some(self.line.record(waker)) };
        let record = self.record()?; // It is there.
        // SAFETY: it stays until it is given up, as the caller promises.
        let taken = unsafe { self.line.queue(record) };
        if taken.is_some() {
            self.forget_record();
        }
        taken
    }

    fn take(&self) -> Option<L::Output> {
        let taken = self.line.granted(self.record()?)?;
        self.forget_record();
        Some(taken)
    }

    fn withdraw(&self) {
        if let Some(record) = self.record() {
            if !planted!("select_grant_dropped") || self.take().is_none() {
                // SAFETY: queued by `register`, and forgotten below.
                unsafe { self.line.abandon(record) };
            }
            self.forget_record();
        }
    }
}

impl<W, A: Arm<W> + ?Sized> Arm<W> for &mut A {
    type Output = A::Output;

    fn look(&self) -> Option<A::Output> {
        (**self).look()
    }

    unsafe fn register(&self, waker: &W) -> Option<A::Output> {
        // SAFETY: what it refers to does not move while it is borrowed; as the caller promises.
        unsafe { (**self).register(waker) }
    }

    fn take(&self) -> Option<A::Output> {
        (**self).take()
    }

    fn withdraw(&self) {
        (**self).withdraw();
    }

    fn deadline_ns(&self) -> u64 {
        (**self).deadline_ns()
    }
}

/// Arms of one kind, however many: which it was, and what it gave.
impl<W, A: Arm<W>> Arm<W> for [A] {
    type Output = (usize, A::Output);

    fn look(&self) -> Option<Self::Output> {
        let mut arms = self.iter().enumerate();
        arms.find_map(|(index, arm)| Some((index, arm.look()?)))
    }

    unsafe fn register(&self, waker: &W) -> Option<Self::Output> {
        let mut arms = self.iter().enumerate();
        // SAFETY: they are parts of this one, for which the caller promises it.
        arms.find_map(|(index, arm)| Some((index, unsafe { arm.register(waker) }?)))
    }

    fn take(&self) -> Option<Self::Output> {
        let mut arms = self.iter().enumerate();
        arms.find_map(|(index, arm)| Some((index, arm.take()?)))
    }

    fn withdraw(&self) {
        self.iter().for_each(Arm::withdraw);
    }

    fn deadline_ns(&self) -> u64 {
        let deadlines = self.iter().map(Arm::deadline_ns);
        deadlines.min().unwrap_or(u64::MAX)
    }
}

macro_rules! tuple {
    ($($arm:ident $field:tt $variant:ident),+) => {
        impl<W, $($arm: Arm<W>),+> Arm<W> for ($($arm,)+) {
            type Output = OneOf<$($arm::Output),+>;

            fn look(&self) -> Option<Self::Output> {
                $(if let Some(taken) = self.$field.look() {
                    return Some(OneOf::$variant(taken));
                })+
                None
            }

            unsafe fn register(&self, waker: &W) -> Option<Self::Output> {
                // SAFETY: they are parts of this one, for which the caller promises it.
                $(if let Some(taken) = unsafe { self.$field.register(waker) } {
                    return Some(OneOf::$variant(taken));
                })+
                None
            }

            fn take(&self) -> Option<Self::Output> {
                $(if let Some(taken) = self.$field.take() {
                    return Some(OneOf::$variant(taken));
                })+
                None
            }

            fn withdraw(&self) {
                $(self.$field.withdraw();)+
            }

            fn deadline_ns(&self) -> u64 {
                u64::MAX$(.min(self.$field.deadline_ns()))+
            }
        }
    };
}

tuple!(A 0 First, B 1 Second);
tuple!(A 0 First, B 1 Second, C 2 Third);
tuple!(A 0 First, B 1 Second, C 2 Third, D 3 Fourth);
tuple!(A 0 First, B 1 Second, C 2 Third, D 3 Fourth, E 4 Fifth);
tuple!(A 0 First, B 1 Second, C 2 Third, D 3 Fourth, E 4 Fifth, F 5 Sixth);
tuple!(A 0 First, B 1 Second, C 2 Third, D 3 Fourth, E 4 Fifth, F 5 Sixth, G 6 Seventh);
tuple!(A 0 First, B 1 Second, C 2 Third, D 3 Fourth, E 4 Fifth, F 5 Sixth, G 6 Seventh, H 7 Eighth);

/// Withdraws the arms however the wait ends (I1).
struct Registered<'a, W, A: Arm<W> + ?Sized>(&'a A, core::marker::PhantomData<fn(W)>);

impl<W, A: Arm<W> + ?Sized> Drop for Registered<'_, W, A> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// Waits for one of the arms. `wait` returns after each wake, perhaps more often, and may unwind.
pub(super) fn wait_for_one<W, A: Arm<W> + ?Sized>(
    arms: &A,
    waker: &W,
    mut wait: impl FnMut(),
) -> A::Output {
    let _registered = Registered(arms, core::marker::PhantomData);
    // SAFETY: borrowed, so not moved, until `_registered` has withdrawn them.
    if let Some(taken) = unsafe { arms.register(waker) } {
        return taken;
    }
    loop {
        if let Some(taken) = arms.take() {
            return taken;
        }
        wait();
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
