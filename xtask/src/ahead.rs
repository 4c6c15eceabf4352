//! Builds for later jobs, made beside the earlier ones.
//!
//! Some jobs mostly wait: for clients that idle, for limits to pass. Meanwhile what later jobs need
//! is built here at the lowest priority, so that it takes only the time that nobody else wants. A job waits for its own build and then makes it again, which finds
//! nothing to do, or shows what is wrong. What the builds print here is thrown away.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::child;

/// How often a waiting job looks whether its build has ended.
const TICK: Duration = Duration::from_millis(50);

/// A build that is wanted, and the job that it is for.
pub(crate) struct Build {
    pub(crate) job: &'static str,
    pub(crate) command: Command,
}

/// The builds that are being made.
#[derive(Default)]
pub(crate) struct Ahead(Vec<(&'static str, Child)>);

impl Ahead {
    /// Begins with all of these.
    pub(crate) fn new(builds: Vec<Build>) -> Ahead {
        // One that does not start is left to its job.
        let start = |Build { job, command }| Some((job, at_leisure(&command).spawn().ok()?));
        Ahead(builds.into_iter().filter_map(start).collect())
    }

    /// Waits for the builds for `job`. One that takes longer than the job may is ended.
    pub(crate) fn finish(&mut self, job: &str, deadline: Instant) {
        for (_, mut child) in self.0.extract_if(.., |(other, _)| *other == job) {
            // One that cannot be waited for is left to itself.
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    child::kill_tree(Pid::from_child(&child));
                }
                std::thread::sleep(TICK);
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            child::kill_tree(Pid::from_child(child));
            // It is killed: this only takes its status.
            let _ = child.wait();
        }
    }
}

/// The same command at the lowest priority and unheard.
fn at_leisure(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"])
        .env("CARGO_BUILD_JOBS", "1")
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        nice.current_dir(dir);
    }
    nice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(job: &'static str, script: &str) -> Build {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Build { job, command }
    }

    #[test]
    fn a_job_waits_for_its_own_build_only() {
        let dir = std::env::temp_dir().join(format!("xtask-ahead-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut first = build("first", "echo \"$WHAT\" > made");
        first.command.current_dir(&dir).env("WHAT", "a thing");
        let mut ahead = Ahead::new(vec![first, build("second", "sleep 600")]);
        ahead.finish("first", Instant::now() + Duration::from_secs(20));
        let made = std::fs::read_to_string(dir.join("made")).unwrap();
        assert_eq!(made, "a thing\n");
        assert_eq!(ahead.0.len(), 1, "the other goes on");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_build_that_does_not_end_is_ended_at_its_jobs_limit() {
        let mut ahead = Ahead::new(vec![build("one", "sleep 600")]);
        ahead.finish("one", Instant::now());
        assert!(ahead.0.is_empty());
    }
}
