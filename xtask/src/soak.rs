//! `cargo xtask soak`: what takes longer than a test command may, or more of the machine.
//!
//! The same test programs as in `cargo xtask test`, told by `CORIO_SOAK` to take their time: the
//! storm blows for 60 s on each monitor, a loop is woken a million times on each and watched for
//! 10 s while it has nothing to do, and rings are switched off for the whole machine, for a moment.
//! Nothing else should run beside it.

use std::time::Duration;

use anyhow::Result;

use crate::jobs::{Job, Runner, job};
use crate::test;
use crate::workspace::Workspace;

/// Of one run, its build included.
const LIMIT: Duration = Duration::from_secs(1800);

const RUNS: &[Job] = &[
    Job {
        limit: LIMIT,
        ..job("storm", "a storm on four loops, on each monitor", 1, |r| {
            soak(r, "storm")
        })
    },
    Job {
        limit: LIMIT,
        ..job("wakes", "wakes by the million, and idle loops", 2, |r| {
            soak(r, "wakes")
        })
    },
    Job {
        limit: LIMIT,
        ..job("timers", "a million timers", 2, |r| {
            soak(r, "timers_million")
        })
    },
    Job {
        limit: LIMIT,
        ..job("fallbacks", "what the environment refuses", 9, |r| {
            soak(r, "fallbacks")
        })
    },
];

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Runs to make: storm, wakes, timers, fallbacks; all if none is named
    runs: Vec<String>,
}

/// Makes the runs; true if none found anything.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let runs = test::select(RUNS, &arguments.runs)?;
    test::run_jobs(workspace, &runs, false)
}

/// Runs a test program in an optimised build, one test at a time.
fn soak(runner: &mut Runner<'_>, program: &str) -> Result<()> {
    let mut command = runner.workspace.cargo(["test", "--release", "-p", "corio"]);
    command
        .args(["--test", program, "--", "--nocapture", "--test-threads=1"])
        .env("CORIO_SOAK", "1");
    runner.tests(&mut command)
}

#[cfg(test)]
mod tests {
    use super::{Arguments, RUNS};
    use crate::test;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn runs_are_named_or_all() {
        let selected = |line: &[&str]| {
            let arguments = Line::try_parse_from(line).unwrap().arguments;
            test::select(RUNS, &arguments.runs).map(|runs| runs.len())
        };
        assert_eq!(selected(&["soak"]).unwrap(), RUNS.len());
        assert_eq!(selected(&["soak", "storm", "wakes"]).unwrap(), 2);
        assert!(selected(&["soak", "drizzle"]).is_err());
    }
}
