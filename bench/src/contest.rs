//! Contests: an exercise that Corio and its peers do in turn.
//!
//! An exercise is told how many rounds to do, sets itself up, does them under a [`Stopwatch`], and
//! asserts that it did as many. Measurements are short and many, so that the sides take turns
//! faster than other work comes and goes on the machine: all then see the same of it.

use std::time::{Duration, Instant};

use crate::Plan;
use crate::alloc;
use crate::report::{Figure, Metric, Report};
use crate::stats::{Better, Samples};

/// Nanoseconds a round.
pub(crate) const NS: Metric = Metric {
    unit: "ns",
    better: Better::Lower,
};
/// Allocations a round.
const ALLOCATIONS: Metric = Metric {
    unit: "/op",
    better: Better::Lower,
};

/// Rounds of a pass that counts allocations. Allocations that come every now and then, as when a
/// list grows, show as a fraction.
const COUNTED_ROUNDS: u32 = 10_000;

/// Given a number of rounds, what they took.
pub(crate) type Exercise = fn(u32) -> Lap;

/// The same exercise, done by Corio and by each peer.
pub(crate) struct Contest {
    pub(crate) name: &'static str,
    pub(crate) size: Size,
    pub(crate) ours: Exercise,
    pub(crate) theirs: &'static [(&'static str, Exercise)],
}

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Rounds a measurement.
    pub(crate) rounds: u32,
    /// Measurements of each side a round of the plan.
    pub(crate) repeats: usize,
}

impl Size {
    /// A tenth of both.
    fn quick(self) -> Self {
        Self {
            rounds: self.rounds / 10,
            repeats: self.repeats.div_ceil(10),
        }
    }
}

/// For rounds of a few nanoseconds.
pub(crate) const SWITCHES: Size = Size {
    rounds: 20_000,
    repeats: 100,
};
/// For rounds of a hundred nanoseconds.
pub(crate) const TURNS: Size = Size {
    rounds: 10_000,
    repeats: 20,
};

/// What the rounds of an exercise took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lap {
    pub(crate) elapsed: Duration,
    /// Of the thread that held the watch; 0 unless counted.
    pub(crate) allocations: u64,
}

impl Lap {
    /// Of an exercise on threads of its own, none of which can count for all.
    pub(crate) fn of_threads(elapsed: Duration) -> Self {
        Self {
            elapsed,
            allocations: 0,
        }
    }

    fn ns_a_round(self, rounds: u32) -> f64 {
        self.elapsed.as_secs_f64() * 1e9 / f64::from(rounds)
    }

    fn allocations_a_round(self, rounds: u32) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let allocations = self.allocations as f64;
        allocations / f64::from(rounds)
    }
}

/// Measures on one thread.
pub(crate) struct Stopwatch {
    allocations: u64,
    start: Instant,
}

impl Stopwatch {
    #[inline(always)]
    pub(crate) fn start() -> Self {
        Self {
            allocations: alloc::count(),
            start: Instant::now(),
        }
    }

    #[inline(always)]
    pub(crate) fn stop(self) -> Lap {
        let elapsed = self.start.elapsed();
        Lap {
            elapsed,
            allocations: alloc::count() - self.allocations,
        }
    }
}

/// Measures the times of all contests, each against each of its peers.
pub(crate) fn run(
    suite: &'static str,
    contests: &[Contest],
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    for contest in contests.iter().filter(|it| plan.asks_for(it.name)) {
        let size = if plan.quick {
            contest.size.quick()
        } else {
            contest.size
        };
        let mut ours = Samples::default();
        let mut theirs = vec![Samples::default(); contest.theirs.len()];
        for _ in 0..plan.rounds * size.repeats {
            ours.push((contest.ours)(size.rounds).ns_a_round(size.rounds));
            for ((_, exercise), samples) in contest.theirs.iter().zip(&mut theirs) {
                samples.push(exercise(size.rounds).ns_a_round(size.rounds));
            }
        }
        for ((peer, _), samples) in contest.theirs.iter().zip(&theirs) {
            report.push(Figure::new(suite, contest.name, NS, &ours, peer, samples))?;
        }
    }
    Ok(())
}

/// Counts the allocations of an exercise, in a pass of its own beside a peer's.
pub(crate) fn count_allocations(
    suite: &'static str,
    name: &str,
    ours: Exercise,
    (peer, theirs): (&'static str, Exercise),
    report: &mut Report,
) -> anyhow::Result<()> {
    let one = |exercise| -> Samples { std::iter::once(allocations(exercise)).collect() };
    let (ours, theirs) = (one(ours), one(theirs));
    report.push(Figure::new(suite, name, ALLOCATIONS, &ours, peer, &theirs))
}

/// Allocations a round.
fn allocations(exercise: Exercise) -> f64 {
    alloc::counting(|| exercise(COUNTED_ROUNDS)).allocations_a_round(COUNTED_ROUNDS)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Contest, Lap, Size, Stopwatch, allocations};
    use std::hint::black_box;
    use std::time::Duration;

    /// Has every side do a few rounds; each asserts its own count.
    pub(crate) fn all_do_as_many_rounds_as_asked(contests: &[Contest]) {
        for contest in contests {
            (contest.ours)(100);
            for (_, exercise) in contest.theirs {
                exercise(100);
            }
        }
    }

    #[test]
    fn time_is_a_round() {
        let lap = Lap::of_threads(Duration::from_micros(3));
        assert_eq!(lap.ns_a_round(1000), 3.0);
    }

    #[test]
    fn only_what_is_allocated_under_the_watch_counts() {
        let counted = allocations(|rounds| {
            let setup = black_box(vec![1, 2, 3]);
            let watch = Stopwatch::start();
            for _ in 0..rounds {
                drop(black_box(Box::new(1)));
                drop(black_box(Box::new(2)));
            }
            let lap = watch.stop();
            drop(black_box(setup.clone()));
            lap
        });
        assert_eq!(counted, 2.0);
    }

    #[test]
    fn quick_measures_at_least_once() {
        let size = Size {
            rounds: 100,
            repeats: 3,
        };
        assert_eq!((size.quick().rounds, size.quick().repeats), (10, 1));
    }
}
