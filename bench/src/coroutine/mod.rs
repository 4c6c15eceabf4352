//! Suite `coroutine`: what coroutines cost, beside corosensei used raw, the kernel and tokio.
//!
//! The event points of [`corio::track`] are compiled in and off: each is a branch, which is in all
//! of these figures.
//!
//! Files: `switch` enters and suspends, `park` parks and wakes, `tasks` and `pingpong` are what
//! tokio can do too, `cold` is coroutines that nobody had before.

pub(crate) mod cold;
mod park;
pub(crate) mod pingpong;
pub(crate) mod switch;
pub(crate) mod tasks;

use crate::Plan;
use crate::contest::{self, Contest, SWITCHES, TURNS};
use crate::report::Report;

const SUITE: &str = "coroutine";

const CONTESTS: [Contest; 8] = [
    Contest {
        name: "enter_yield",
        size: SWITCHES,
        ours: switch::ours_in_body,
        theirs: &[("corosensei", switch::theirs_in_body)],
    },
    Contest {
        name: "enter_yield_deep",
        size: SWITCHES,
        ours: switch::ours_deep,
        theirs: &[("corosensei", switch::theirs_deep)],
    },
    Contest {
        name: "create_run_end",
        size: SWITCHES,
        ours: switch::ours_created,
        theirs: &[("corosensei", switch::theirs_created)],
    },
    Contest {
        name: "park_wake",
        size: SWITCHES,
        ours: park::ours,
        theirs: &[("corosensei+2cas", park::theirs)],
    },
    Contest {
        name: "park_wake_beside",
        size: SWITCHES,
        ours: park::ours_beside,
        theirs: &[("corosensei+2cas", park::theirs)],
    },
    Contest {
        name: "spawn_join",
        size: TURNS,
        ours: tasks::ours_spawn_join,
        theirs: &[("tokio", tasks::tokio_spawn_join)],
    },
    Contest {
        name: "yield_loop",
        size: TURNS,
        ours: tasks::ours_yield_loop,
        theirs: &[("tokio", tasks::tokio_yield_loop)],
    },
    Contest {
        name: "channel_pingpong",
        size: TURNS,
        ours: pingpong::ours,
        theirs: &[("tokio", pingpong::tokio)],
    },
];

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    contest::run(SUITE, &CONTESTS, plan, report)?;
    cold::run(plan, report)
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_sides_do_as_many_rounds_as_asked() {
        crate::contest::tests::all_do_as_many_rounds_as_asked(&super::CONTESTS);
    }
}
