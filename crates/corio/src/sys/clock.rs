//! clock_gettime(2): the one place that reads the time.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    read_ns(ClockId::Monotonic)
}

/// Nanoseconds of CLOCK_REALTIME since 1970; 0 before. It jumps when somebody sets the clock.
#[inline]
pub(crate) fn wall_ns() -> u64 {
    let now_ns = read_ns(ClockId::Realtime);
    #[cfg(all(test, not(loom)))]
    let now_ns = now_ns.saturating_add_signed(wall::SHIFT_NS.load(wall::Ordering::Relaxed));
    now_ns
}

/// A moment, for who asks no more than whether a short time has passed since.
///
/// On x86-64 it is read from the time stamp counter, which runs at 500 MHz or more and takes a third
/// of the time that a clock does. Processors need not agree on it: a thread may find that more time
/// has passed than has, or less, if it is moved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment(u64);

impl Moment {
    #[inline(always)]
    pub(crate) fn now() -> Self {
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        {
            // SAFETY: an instruction that every x86-64 has.
            Self(unsafe { core::arch::x86_64::_rdtsc() })
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self(monotonic_ns())
    }

    /// No less than the nanoseconds that have passed since.
    #[inline(always)]
    pub(crate) fn passed_ns_at_most(self) -> u64 {
        let passed = Self::now().0.wrapping_sub(self.0);
        if cfg!(target_arch = "x86_64") {
            passed.saturating_mul(2)
        } else {
            passed
        }
    }
}

#[inline]
fn read_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // The monotonic clock starts at boot and is never negative, the other one before 1970 only.
    u64::try_from(now.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// A wall clock that unit tests can set, as the machine's is not theirs.
#[cfg(all(test, not(loom)))]
pub(crate) mod wall {
    use core::sync::atomic::AtomicI64;
    pub(super) use core::sync::atomic::Ordering;

    pub(super) static SHIFT_NS: AtomicI64 = AtomicI64::new(0);

    /// Sets it forward, or back, of what the machine's shows.
    pub(crate) fn set_off_by_ns(shift_ns: i64) {
        SHIFT_NS.store(shift_ns, Ordering::Relaxed);
    }
}
