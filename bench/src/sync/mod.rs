//! Suite `sync`: what waiting for one another costs, and what is allocated for it.
//!
//! Uncontended locks are beside parking_lot's, which has no coroutines to think of, and the
//! semaphore is beside tokio's, as parking_lot has none; with two threads there is tokio's mutex
//! too.
//!
//! Allocations are counted in passes of their own, of the thread that does the exercise, once the
//! stacks are warm: `spawn_allocs` of starting a coroutine and joining it, `wake_allocs` of waking
//! one and of its park, `lock_allocs` of an uncontended lock and unlock, and `lock_wait_allocs` of
//! a lock that has to wait and is handed over, `channel_allocs` of a message there and back.
//!
//! Files: `locks` takes and releases what is free, `two_threads` what is not, `wake` is the million
//! wakes.

mod locks;
mod two_threads;
mod wake;

use crate::Plan;
use crate::contest::{self, Contest, Exercise, SWITCHES, Size};
use crate::coroutine::{pingpong, tasks};
use crate::report::Report;

const SUITE: &str = "sync";

/// Long enough that two threads which begin and end at slightly different times are contending for
/// nearly all of it.
const RACE: Size = Size {
    rounds: 20_000,
    repeats: 4,
};
const MILLION: Size = Size {
    rounds: 1_000_000,
    repeats: 4,
};

const CONTESTS: [Contest; 6] = [
    Contest {
        name: "mutex_uncontended",
        size: SWITCHES,
        ours: locks::ours_mutex,
        theirs: &[("parking_lot", locks::parking_lot_mutex)],
    },
    Contest {
        name: "rwlock_read_uncontended",
        size: SWITCHES,
        ours: locks::ours_read,
        theirs: &[("parking_lot", locks::parking_lot_read)],
    },
    Contest {
        name: "rwlock_write_uncontended",
        size: SWITCHES,
        ours: locks::ours_write,
        theirs: &[("parking_lot", locks::parking_lot_write)],
    },
    Contest {
        name: "semaphore_uncontended",
        size: SWITCHES,
        ours: locks::ours_semaphore,
        theirs: &[("tokio", locks::tokio_semaphore)],
    },
    Contest {
        name: "mutex_2_threads",
        size: RACE,
        ours: two_threads::ours,
        theirs: &[
            ("parking_lot", two_threads::parking_lot),
            ("tokio", two_threads::tokio),
        ],
    },
    Contest {
        name: "wake_1m",
        size: MILLION,
        ours: wake::ours,
        theirs: &[("tokio", wake::tokio)],
    },
];

/// What is counted, of ours and of a peer's.
const COUNTED: [(&str, Exercise, (&str, Exercise)); 5] = [
    (
        "spawn_allocs",
        tasks::ours_spawn_join,
        ("tokio", tasks::tokio_spawn_join),
    ),
    ("wake_allocs", wake::ours, ("tokio", wake::tokio)),
    (
        "lock_allocs",
        locks::ours_mutex,
        ("parking_lot", locks::parking_lot_mutex),
    ),
    (
        "lock_wait_allocs",
        locks::ours_handed_over,
        ("tokio", locks::tokio_handed_over),
    ),
    ("channel_allocs", pingpong::ours, ("tokio", pingpong::tokio)),
];

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    contest::run(SUITE, &CONTESTS, plan, report)?;
    for (name, ours, theirs) in COUNTED {
        contest::count_allocations(SUITE, name, ours, theirs, report)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CONTESTS, COUNTED};

    #[test]
    fn all_sides_do_as_many_rounds_as_asked() {
        crate::contest::tests::all_do_as_many_rounds_as_asked(&CONTESTS);
    }

    #[test]
    fn counted_exercises_do_as_many_rounds_as_asked() {
        for (_, ours, (_, theirs)) in COUNTED {
            ours(100);
            theirs(100);
        }
    }
}
