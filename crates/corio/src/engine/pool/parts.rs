//! What a pool is made of: threads, a lock, what they sleep on, and the clock. Models have loom's,
//! which behave as these do, one processor, and a clock that stands still: what is looked for in
//! them is a job that nobody has, not how soon it is found.

#[cfg(loom)]
pub(super) use self::modelled::*;
#[cfg(not(loom))]
pub(super) use self::real::*;

#[cfg(not(loom))]
mod real {
    pub(in super::super) use std::thread::{Builder, JoinHandle, current};

    pub(in super::super) use parking_lot::{Condvar, Mutex, MutexGuard};

    pub(in super::super) use crate::sys::clock::monotonic_ns;
    pub(in super::super) use crate::sys::thread::{block_signals, processor, processors};
}

#[cfg(loom)]
mod modelled {
    use core::ops::{Deref, DerefMut};
    use core::time::Duration;

    pub(in super::super) use loom::thread::{Builder, JoinHandle, current};

    pub(in super::super) fn monotonic_ns() -> u64 {
        0
    }

    pub(in super::super) fn block_signals() {}

    pub(in super::super) fn processor() -> usize {
        0
    }

    pub(in super::super) fn processors() -> u32 {
        1
    }

    #[derive(Debug)]
    pub(in super::super) struct Mutex<T>(loom::sync::Mutex<T>);

    pub(in super::super) struct MutexGuard<'a, T> {
        of: &'a Mutex<T>,
        // None: unlocked for a while.
        guard: Option<loom::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(in super::super) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                of: self,
                guard: Some(self.0.lock().unwrap()),
            }
        }
    }

    impl<T> MutexGuard<'_, T> {
        pub(in super::super) fn unlocked<R>(this: &mut Self, f: impl FnOnce() -> R) -> R {
            this.guard = None;
            let result = f();
            this.guard = Some(this.of.0.lock().unwrap());
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().unwrap()
        }
    }

    #[derive(Debug)]
    pub(in super::super) struct Condvar(loom::sync::Condvar);

    /// That somebody was woken: no model waits for a time.
    pub(in super::super) struct Woken;

    impl Woken {
        #[allow(clippy::unused_self)] // As the real one.
        pub(in super::super) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(in super::super) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(in super::super) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let locked = guard.guard.take().unwrap();
            guard.guard = Some(self.0.wait(locked).unwrap());
        }

        pub(in super::super) fn wait_for<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            _time: Duration,
        ) -> Woken {
            self.wait(guard);
            Woken
        }

        pub(in super::super) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}
