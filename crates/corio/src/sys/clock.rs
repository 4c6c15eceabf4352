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

/// A count that goes up by [`TICKS_PER_US_MIN`] a microsecond or more, and is read in a third of the
/// time that a clock takes; None where there is none. Processors need not agree on it, so a thread
/// may see it jump either way.
///
/// On x86-64 it is the time stamp counter, which runs at 1 GHz or more.
#[inline(always)]
pub(crate) fn ticks() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    {
        // SAFETY: an instruction that every x86-64 has.
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// See [`ticks`]: half of what the slowest counters do.
pub(crate) const TICKS_PER_US_MIN: u64 = 500;

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
