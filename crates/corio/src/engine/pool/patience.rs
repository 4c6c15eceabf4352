//! For how long a worker looks for a job before it sleeps.
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
//! Twice, as `t` has the submitter's own waking in it. Where the next job is late once, the next
//! search is none.

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
}
