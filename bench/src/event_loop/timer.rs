//! Figures `timer_*`: among as many armed timers as the name says, some are cancelled and armed
//! anew, and in the end all expire. Beside a `BTreeMap` of (deadline, number), which inserts,
//! removes by that key, and pops its first.
//!
//! Deadlines are random. Those that are cancelled were made one after the other, from one taken at
//! random on, as requests are that have time-outs. Both sides get the same. Ours are used by their
//! handles, in their home thread. They are on the virtual clock, which is stopped, so that a step
//! makes all of them due at once: one turn then runs a million callbacks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{Clock, Timer, VirtualClock};

use super::SUITE;
use crate::Plan;
use crate::contest::NS;
use crate::report::{Figure, Report};
use crate::stats::Samples;
use crate::tally::Tally;

/// Cancelled and armed anew, a measurement.
const SOME: usize = 2_000;
/// The longest a timer is armed for.
const LONGEST_NS: u64 = 60_000_000_000;
/// Measurements of each side a round of the plan.
const REPEATS: usize = 6;
/// The same of what empties all.
const EXPIRIES: usize = 3;

/// Numbers that look random and are the same in each run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn deadline_ns(&mut self, now_ns: u64) -> u64 {
        now_ns + 1_000 + self.below(LONGEST_NS)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn ns_each(elapsed: Duration, count: usize) -> f64 {
    elapsed.as_secs_f64() * 1e9 / count as f64
}

/// One side's times, in ns each.
#[derive(Default)]
struct Times {
    arm: Samples,
    cancel: Samples,
    expire: Samples,
}

/// What both sides can do.
trait Side {
    fn arm(&mut self, number: usize, deadline_ns: u64);
    fn cancel(&mut self, number: usize);
    /// All become due and expire.
    fn expire(&mut self) -> Duration;
}

struct Ours<'a> {
    context: &'a AioContext,
    timers: Vec<Timer>,
    tally: &'static Tally,
}

impl<'a> Ours<'a> {
    fn new(context: &'a AioContext, count: usize) -> Self {
        let tally = Tally::leak();
        let make = |_| context.timer_on(Clock::Virtual, move || tally.work());
        let timers = (0..count).map(make).collect();
        Self {
            context,
            timers,
            tally,
        }
    }
}

impl Side for Ours<'_> {
    #[inline]
    fn arm(&mut self, number: usize, deadline_ns: u64) {
        self.timers[number].arm_at_ns(deadline_ns);
    }

    #[inline]
    fn cancel(&mut self, number: usize) {
        assert!(self.timers[number].cancel());
    }

    fn expire(&mut self) -> Duration {
        let before = self.tally.count();
        VirtualClock::step(Duration::from_nanos(LONGEST_NS + 1_000));
        let start = Instant::now();
        self.context.poll(false).expect("the loop's wait failed");
        let elapsed = start.elapsed();
        let ran = u32::try_from(self.timers.len()).expect("it is a million");
        assert_eq!(self.tally.count() - before, ran);
        elapsed
    }
}

struct Theirs {
    map: BTreeMap<(u64, usize), ()>,
    deadlines_ns: Vec<u64>,
    tally: &'static Tally,
}

impl Theirs {
    fn new(count: usize) -> Self {
        Self {
            map: BTreeMap::new(),
            deadlines_ns: vec![0; count],
            tally: Tally::leak(),
        }
    }
}

impl Side for Theirs {
    #[inline]
    fn arm(&mut self, number: usize, deadline_ns: u64) {
        self.deadlines_ns[number] = deadline_ns;
        self.map.insert((deadline_ns, number), ());
    }

    #[inline]
    fn cancel(&mut self, number: usize) {
        let removed = self.map.remove(&(self.deadlines_ns[number], number));
        assert!(removed.is_some());
    }

    fn expire(&mut self) -> Duration {
        let start = Instant::now();
        let mut last_ns = 0;
        while let Some(((deadline_ns, _), ())) = self.map.pop_first() {
            assert!(last_ns <= deadline_ns);
            last_ns = deadline_ns;
            self.tally.work();
        }
        start.elapsed()
    }
}

/// Picks timers out of `count`, and their new deadlines.
fn picks(random: &mut Random, count: usize, now_ns: u64) -> Vec<(usize, u64)> {
    let some = SOME.min(count / 2);
    let others = u64::try_from(count - some).expect("it is below a million");
    let first = usize::try_from(random.below(others)).expect("it is below a million");
    let pick = |number| (number, random.deadline_ns(now_ns));
    (first..first + some).map(pick).collect()
}

fn measure(side: &mut impl Side, picks: &[(usize, u64)], times: &mut Times) {
    let start = Instant::now();
    for &(number, _) in picks {
        side.cancel(number);
    }
    times.cancel.push(ns_each(start.elapsed(), picks.len()));
    let start = Instant::now();
    for &(number, deadline_ns) in picks {
        side.arm(number, deadline_ns);
    }
    times.arm.push(ns_each(start.elapsed(), picks.len()));
}

/// Measures both sides with `count` timers, `repeats` times filled and emptied, and in between
/// `changes` times changed.
fn contest(count: usize, repeats: usize, changes: usize) -> (Times, Times) {
    let context = AioContext::new().expect("no descriptors for a context");
    let exercise = || {
        let mut random = Random(0x005e_ed0f_0c0e_1110);
        let (mut ours, mut theirs) = (Ours::new(&context, count), Theirs::new(count));
        let (mut our_times, mut their_times) = (Times::default(), Times::default());
        for _ in 0..repeats {
            let now_ns = Clock::Virtual.now_ns();
            for number in 0..count {
                let deadline_ns = random.deadline_ns(now_ns);
                ours.arm(number, deadline_ns);
                theirs.arm(number, deadline_ns);
            }
            for _ in 0..changes.div_ceil(repeats) {
                let picks = picks(&mut random, count, now_ns);
                measure(&mut ours, &picks, &mut our_times);
                measure(&mut theirs, &picks, &mut their_times);
            }
            our_times.expire.push(ns_each(ours.expire(), count));
            their_times.expire.push(ns_each(theirs.expire(), count));
        }
        (our_times, their_times)
    };
    VirtualClock::stop();
    let times = context.enter_home(exercise).expect("no monitor");
    VirtualClock::resume();
    times
}

/// Measures the figures of 20,000 and of a million.
pub(super) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let million = if plan.quick { 100_000 } else { 1_000_000 };
    for (size, count) in [("20k", 20_000), ("1m", million)] {
        let names = ["arm", "cancel", "expire"].map(|what| format!("timer_{what}_{size}"));
        if !names.iter().any(|name| plan.asks_for(name)) {
            continue;
        }
        let (ours, theirs) = contest(count, EXPIRIES, plan.rounds * REPEATS);
        let times = [
            (&ours.arm, &theirs.arm),
            (&ours.cancel, &theirs.cancel),
            (&ours.expire, &theirs.expire),
        ];
        for (name, (ours, theirs)) in names.iter().zip(times) {
            report.push(Figure::new(SUITE, name, NS, ours, "BTreeMap", theirs))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Random, contest, picks};

    #[test]
    fn both_sides_are_measured_as_often_as_asked() {
        let (ours, theirs) = contest(200, 2, 6);
        for times in [ours, theirs] {
            for samples in [&times.arm, &times.cancel, &times.expire] {
                assert!(samples.median() > 0.0);
            }
        }
    }

    #[test]
    fn no_timer_is_picked_twice() {
        let picks = picks(&mut Random(1), 1000, 0);
        let mut numbers: Vec<_> = picks.iter().map(|pick| pick.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 500);
    }
}
