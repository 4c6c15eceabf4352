//! For how long who waits looks before it sleeps: a worker for a job, a submitter for its job's end.
//!
//! Waking who sleeps takes some microseconds, and tens where its processor has halted and is one of
//! a virtual machine's; it costs whoever wakes about as much. So a worker that looks for as long as
//! waking it would have taken wastes no more than it saves, and a job that comes by then starts at
//! once.
//!
//! ```text
//!   job ends ─▶ its submitter is woken, makes another job ─▶ a worker is woken, begins with it
//!   |───────── t: what a search has to last for ─────────|── what waking takes, measured ──|
//!
//!     t ≤ time           a search meets the job, or would: the time stays
//!     t > the most       none could: 0
//!     else               twice t, at least 5 us, at most the most
//!     the most:          twice what waking takes, at most 100 us
//! ```
//!
//! Twice, as `t` has the submitter's own waking in it. A worker that meets its jobs makes them end
//! while their submitter still looks, so that neither sleeps; where the next job is late once, the
//! next search is none.

use crate::atomic::{AtomicU32, Ordering};

/// For how long a worker searches at most, in ns, whatever waking it takes.
pub(super) const SEARCH_MAX_NS: u64 = 100_000;
/// The shortest search that is one, in ns.
const SEARCH_FIRST_NS: u64 = 5_000;
/// What waking a worker takes until that is known, in ns.
const WAKE_FIRST_NS: u64 = 10_000;
/// How many times what waking a worker takes it is worth searching.
const SEARCH_WAKES: u64 = 2;
/// A measurement counts as one in so many.
const WAKE_WEIGHT: u64 = 4;

/// For how long a submitter looks at most, in ns: what a job that only asks the kernel something
/// takes, there and back. Others of its home wait meanwhile.
const MEET_NS: u64 = 3_000;
/// How many jobs in a row are not looked for after one that was in vain, at most.
const SKIPS_MAX: u32 = 64;

/// For how long an idle worker is worth searching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SearchTime {
    ns: u64,
    /// What waking a worker takes.
    wake_ns: u64,
}

impl SearchTime {
    pub(super) fn new() -> Self {
        Self {
            ns: SEARCH_FIRST_NS,
            wake_ns: WAKE_FIRST_NS,
        }
    }

    pub(super) fn ns(self) -> u64 {
        self.ns
    }

    fn most_ns(self) -> u64 {
        (self.wake_ns * SEARCH_WAKES).clamp(SEARCH_FIRST_NS, SEARCH_MAX_NS)
    }

    /// A worker that was woken had its job after so long.
    pub(super) fn learn_wake(&mut self, wake_ns: u64) {
        // One that took much longer was kept from its processor.
        let wake_ns = wake_ns.min(SEARCH_MAX_NS);
        self.wake_ns = (self.wake_ns * (WAKE_WEIGHT - 1) + wake_ns) / WAKE_WEIGHT;
    }

    /// A job came after `waited_ns` in which a worker had none.
    pub(super) fn adjust(&mut self, waited_ns: u64) {
        let most_ns = self.most_ns();
        self.ns = if waited_ns > most_ns {
            0 // No search could meet it.
        } else if waited_ns <= self.ns {
            self.ns.min(most_ns) // Searching met it, or would have.
        } else {
            (waited_ns * 2).clamp(SEARCH_FIRST_NS, most_ns)
        };
    }
}

/// Whether a submitter looks for its job's end. Any thread: what two make of it at a time is one of
/// both.
#[derive(Debug)]
pub(super) struct MeetTime {
    /// Jobs that are not looked for.
    skips: AtomicU32,
    /// What `skips` was after the last one in vain; 0 after one that was met.
    last_skips: AtomicU32,
}

impl MeetTime {
    pub(super) fn new() -> Self {
        Self {
            skips: AtomicU32::new(0),
            last_skips: AtomicU32::new(0),
        }
    }

    /// For how long the next job is to be looked for, if it is.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let skips = self.skips.load(Ordering::Relaxed);
        if skips > 0 {
            self.skips.store(skips - 1, Ordering::Relaxed);
            return None;
        }
        Some(MEET_NS)
    }

    /// It was met in that time, or was not.
    pub(super) fn adjust(&self, is_met: bool) {
        let last = self.last_skips.load(Ordering::Relaxed);
        let skips = match is_met {
            true if last == 0 => return,
            true => 0,
            false => (last * 2).clamp(1, SKIPS_MAX),
        };
        self.skips.store(skips, Ordering::Relaxed);
        self.last_skips.store(skips, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC E3
    #[test]
    fn a_search_lasts_as_long_as_it_has_paid() {
        let mut time = SearchTime::new();
        let most_ns = time.most_ns();
        assert_eq!(most_ns, SEARCH_WAKES * WAKE_FIRST_NS);
        let mut after = |waited_ns| {
            time.adjust(waited_ns);
            time.ns()
        };
        assert_eq!(after(SEARCH_FIRST_NS), SEARCH_FIRST_NS, "it was met");
        assert_eq!(after(most_ns + 1), 0, "no search would have met it");
        assert_eq!(after(1), SEARCH_FIRST_NS);
        assert_eq!(after(SEARCH_FIRST_NS + 1), 2 * (SEARCH_FIRST_NS + 1));
        assert_eq!(after(most_ns), most_ns);
        assert_eq!(after(1), most_ns, "it was met");
        assert_eq!(after(u64::MAX), 0);
    }

    // SPEC E3
    #[test]
    fn a_search_is_worth_what_waking_takes() {
        let mut time = SearchTime::new();
        let mut learn = |wake_ns| {
            for _ in 0..64 {
                time.learn_wake(wake_ns);
            }
            time.adjust(time.most_ns());
            (time.ns(), time.most_ns())
        };
        let (ns, most_ns) = learn(40_000);
        assert!((79_000..=80_000).contains(&most_ns), "{most_ns}");
        assert_eq!(ns, most_ns);
        assert_eq!(learn(u64::MAX), (SEARCH_MAX_NS, SEARCH_MAX_NS));
        assert_eq!(learn(0), (SEARCH_FIRST_NS, SEARCH_FIRST_NS));
    }

    // SPEC E3
    #[test]
    fn jobs_that_are_not_met_are_soon_hardly_looked_for() {
        let time = MeetTime::new();
        let looked = |is_met: bool, jobs: u32| {
            let looks = |_: &u32| time.next_ns().inspect(|_| time.adjust(is_met)).is_some();
            (0..jobs).filter(looks).count()
        };
        assert_eq!(looked(true, 1000), 1000);
        let in_vain = looked(false, 6500);
        assert!((100..=110).contains(&in_vain), "{in_vain}");
        let met = looked(true, 1000);
        assert!(met >= 1000 - SKIPS_MAX as usize, "{met}");
    }
}
