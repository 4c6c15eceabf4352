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
//!
//! Who meets all its jobs wakes nobody, and would not learn that waking takes less than it did once:
//! from time to time a search is left out, so that a wake is measured.
//!
//! A worker that takes longer to wake than any search lasts had no processor to run on. More want to
//! run than there are, and a search would keep one of them from it, perhaps the very one that is to
//! make the next job: some are left out, and more of them each time that this is seen again.

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

/// After so much time spent searching a wake is measured, in ns, which takes some thousandths of that
/// at most.
const MEASURE_AFTER_NS: u64 = 20_000_000;

/// How many searches are left out when there was no processor for the first time, and at most.
const REST_FIRST: u32 = 4;
const REST_MAX: u32 = 256;
/// So many searches halve what the next time costs.
const REST_SEARCHES: u32 = 16;

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
    /// How long jobs were searched for since a wake was measured.
    searched_ns: u64,
    /// Searches that are still to be left out.
    rest: u32,
    /// How many were to be when there was no processor last, or half of it for each so many since.
    last_rest: u32,
    /// Searches since it was halved.
    searches: u32,
}

impl SearchTime {
    pub(super) fn new() -> Self {
        Self {
            ns: SEARCH_FIRST_NS,
            wake_ns: WAKE_FIRST_NS,
            searched_ns: 0,
            rest: 0,
            last_rest: 0,
            searches: 0,
        }
    }

    /// For how long a search is to last, if it is not left out.
    #[cfg(all(test, not(loom)))]
    pub(super) fn ns(self) -> u64 {
        self.ns
    }

    /// How many searches there were.
    #[cfg(all(test, not(loom)))]
    pub(super) fn searches(self) -> u32 {
        self.searches
    }

    /// For how long the worker that asks is to search; none if it is not.
    pub(super) fn next_ns(&mut self) -> Option<u64> {
        if self.ns == 0 {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        self.searches += 1;
        if self.searches == REST_SEARCHES {
            self.searches = 0;
            self.last_rest /= 2;
        }
        Some(self.ns)
    }

    fn most_ns(self) -> u64 {
        (self.wake_ns * SEARCH_WAKES).clamp(SEARCH_FIRST_NS, SEARCH_MAX_NS)
    }

    /// A worker that was woken had its job after so long.
    pub(super) fn learn_wake(&mut self, wake_ns: u64) {
        self.searched_ns = 0;
        if wake_ns > SEARCH_MAX_NS {
            self.last_rest = (self.last_rest * 2).clamp(REST_FIRST, REST_MAX);
            self.rest = self.last_rest;
            self.searches = 0;
            return;
        }
        self.wake_ns = (self.wake_ns * (WAKE_WEIGHT - 1) + wake_ns) / WAKE_WEIGHT;
    }

    /// A job came after `waited_ns` in which a worker had none.
    pub(super) fn adjust(&mut self, waited_ns: u64) {
        let most_ns = self.most_ns();
        self.ns = if waited_ns > most_ns {
            0 // No search could meet it.
        } else if waited_ns > self.ns {
            (waited_ns * 2).clamp(SEARCH_FIRST_NS, most_ns)
        } else {
            // Searching met it, or would have.
            self.searched_ns = self.searched_ns.saturating_add(waited_ns);
            match self.searched_ns < MEASURE_AFTER_NS {
                true => self.ns.min(most_ns),
                false => 0, // The next one is woken, and measured.
            }
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
        assert_eq!(learn(SEARCH_MAX_NS), (SEARCH_MAX_NS, SEARCH_MAX_NS));
        assert_eq!(learn(0), (SEARCH_FIRST_NS, SEARCH_FIRST_NS));
    }

    // SPEC E3: one wake that took long does not have workers search for ever for what is not worth it.
    #[test]
    fn what_waking_takes_is_measured_again() {
        let mut time = SearchTime::new();
        time.learn_wake(SEARCH_MAX_NS);
        let waited_ns = time.most_ns() / 2;
        assert!(waited_ns > SEARCH_WAKES * WAKE_FIRST_NS);
        time.adjust(waited_ns);
        let mut searched_ns = 0;
        while searched_ns < 20 * MEASURE_AFTER_NS {
            match time.next_ns() {
                Some(ns) if ns >= waited_ns => searched_ns += waited_ns,
                Some(ns) => panic!("a search of {ns} ns is in vain"),
                None => time.learn_wake(WAKE_FIRST_NS),
            }
            time.adjust(waited_ns);
            if time.most_ns() < waited_ns {
                assert_eq!(time.next_ns(), None, "none is worth it any more");
                return;
            }
        }
        panic!(
            "jobs were searched for as if waking took {} ns",
            time.wake_ns
        );
    }

    // SPEC E3
    #[test]
    fn hardly_any_search_is_made_where_processors_are_short() {
        let mut time = SearchTime::new();
        let most_ns = time.most_ns();
        // Until it searches again.
        let left_out = |time: &mut SearchTime| {
            time.learn_wake(SEARCH_MAX_NS + 1);
            (0..).take_while(|_| time.next_ns().is_none()).count()
        };
        let rests = [(); 8].map(|()| left_out(&mut time));
        assert_eq!(rests, [4, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(time.most_ns(), most_ns, "that is not what waking takes");
        for _ in 0..9 * REST_SEARCHES {
            assert_eq!(time.next_ns(), Some(SEARCH_FIRST_NS));
        }
        assert_eq!(left_out(&mut time), REST_FIRST as usize, "it is over");
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
