//! What the parts of an exercise share: how much was done, and whether to stop.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Shared on one thread. Its atomics are used with plain loads and stores, which cost what a
/// `Cell`'s do; they are there because some of the peers want what is shared to be `Sync`.
#[derive(Default)]
pub(crate) struct Tally {
    count: AtomicU32,
    stop: AtomicBool,
}

impl Tally {
    /// Leaked, so that neither side pays for sharing it.
    pub(crate) fn leak() -> &'static Self {
        Box::leak(Box::default())
    }

    /// A round's work.
    #[inline(always)]
    pub(crate) fn work(&self) {
        self.count.store(self.count() + 1, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Asks whoever looks at [`stopped`](Self::stopped) to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
