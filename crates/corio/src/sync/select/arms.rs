//! Deadlines and ends of coroutines, to be waited for together with others.

use core::time::Duration;

use super::arm::Arm;
use super::{Selectable, Waiter};
use crate::context::now_ns;
use crate::schedule::{JoinHandle, LocalJoinHandle, Watcher};

struct Deadline {
    at_ns: u64,
}

/// For [`select`](super::select()): the time when `delay` has passed from this call on.
///
/// ```
/// use corio::sync::{Event, OneOf, after, select};
/// use std::time::Duration;
/// let never = Event::new();
/// let first = select((never.on_set(), after(Duration::from_millis(1))));
/// assert_eq!(first, OneOf::Second(()));
/// ```
pub fn after(delay: Duration) -> impl Selectable<Output = ()> {
    let delay_ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    at_ns(now_ns().saturating_add(delay_ns))
}

/// For [`select`](super::select()): a time of [`time::monotonic_ns`](crate::time::monotonic_ns),
/// which stays the same over any number of calls. `u64::MAX` never comes.
///
/// ```
/// use corio::sync::{at_ns, select};
/// let deadline = corio::time::monotonic_ns() + 1_000_000;
/// select(at_ns(deadline));
/// assert!(corio::time::monotonic_ns() >= deadline);
/// ```
pub fn at_ns(deadline_ns: u64) -> impl Selectable<Output = ()> {
    Deadline { at_ns: deadline_ns }
}

#[allow(unsafe_code)] // The trait's.
impl Arm<Waiter> for Deadline {
    type Output = ();

    fn look(&self) -> Option<()> {
        (self.at_ns != u64::MAX && now_ns() >= self.at_ns).then_some(())
    }

    unsafe fn register(&self, _: &Waiter) -> Option<()> {
        None
    }

    fn take(&self) -> Option<()> {
        self.look()
    }

    fn withdraw(&self) {}

    fn deadline_ns(&self) -> u64 {
        self.at_ns
    }
}

/// The end of a coroutine. Mutably borrowed: one waits for it at a time.
struct End<'a, H>(&'a mut H);

/// A handle whose coroutine's end can be watched.
trait Ends {
    fn is_finished(&self) -> bool;
    fn watch(&self, watcher: Watcher) -> bool;
}

macro_rules! on_end {
    ($handle:ident) => {
        impl<T> Ends for $handle<T> {
            fn is_finished(&self) -> bool {
                $handle::is_finished(self)
            }

            fn watch(&self, watcher: Watcher) -> bool {
                $handle::watch(self, watcher)
            }
        }

        impl<T> $handle<T> {
            /// For [`sync::select`](crate::sync::select()): the end of the coroutine, in whatever
            /// way. Joining does not wait then.
            ///
            /// ```
            /// use corio::sync::{OneOf, after, select};
            /// use std::time::Duration;
            /// let io = corio::IoThread::builder().spawn()?;
            /// let mut handle = io.context().spawn(|| 6 * 7);
            /// let first = select((handle.on_end(), after(Duration::from_secs(60))));
            /// assert_eq!(first, OneOf::First(()));
            /// assert_eq!(handle.join().unwrap(), 42);
            /// # Ok::<(), corio::Error>(())
            /// ```
            pub fn on_end(&mut self) -> impl Selectable<Output = ()> {
                End(self)
            }
        }
    };
}

on_end!(JoinHandle);
on_end!(LocalJoinHandle);

#[allow(unsafe_code)] // The trait's.
impl<H: Ends> Arm<Waiter> for End<'_, H> {
    type Output = ();

    fn look(&self) -> Option<()> {
        self.0.is_finished().then_some(())
    }

    unsafe fn register(&self, waiter: &Waiter) -> Option<()> {
        let watcher = match waiter {
            Waiter::Coroutine { token, .. } => Watcher::Coroutine(*token),
            Waiter::Thread(thread) => Watcher::Thread(thread.clone()),
        };
        (!self.0.watch(watcher)).then_some(())
    }

    fn take(&self) -> Option<()> {
        self.look()
    }

    /// It stays noted, until another is: waking it late does no harm.
    fn withdraw(&self) {}
}
