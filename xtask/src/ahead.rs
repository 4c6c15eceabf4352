//! What is done beside the jobs that run in the foreground.
//!
//! Many tests wait: for clients that idle, for limits to pass. Builds, checks and models only
//! compute. So the one kind is done beside the other, in lanes:
//!
//! ```text
//! foreground   fmt, ... | each test program as soon as it is built | clients ...  | fuzz
//! lane 1       the test programs, capi's and power's builds, clippy, doctest, rustdoc
//! lane 2       the release build, fuzz's build, the models' build, loom, planted
//! ```
//!
//! A lane does its steps one after the other, at so low a priority that it takes only the time that
//! nobody else wants: tests with a clock in their hand do not notice. What a lane's jobs say is
//! kept until they have ended. A lane builds in directories that no other lane builds in, so that
//! none waits for cargo's lock; in the foreground only `capi` and `power` may have to, for a job of
//! lane 1.
//!
//! A job in the foreground waits for its own build and then makes it again, which finds nothing to
//! do, or shows what is wrong. Of a build of test programs that fails, all words are shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::child::{self, Stream};
use crate::jobs::Job;
use crate::programs;
use crate::say;
use crate::test::{self, Report};
use crate::workspace::Workspace;

/// How long one build may take, at the lowest priority on a machine that has much else to do. It is
/// there to end what hangs.
const BUILD_MAX: Duration = Duration::from_secs(3000);
/// The niceness of each lane: the first has what the foreground waits for soonest.
const NICENESS: [i32; 2] = [16, 19];

/// What a lane does.
pub(crate) enum Step {
    /// Builds the test programs.
    Programs,
    /// Builds what the job of this name needs.
    Build(&'static str, Box<Command>),
    /// Does a whole job.
    Job(&'static Job),
}

/// A lane's steps, in order.
pub(crate) type Lane = Vec<Step>;

/// What the lanes and the foreground have done for each other.
pub(crate) struct Ahead<'w> {
    pub(crate) workspace: &'w Workspace,
    /// Whose test programs are built, all together.
    packages: Vec<&'static str>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The test programs there are, by their sources.
    programs: BTreeMap<PathBuf, PathBuf>,
    making: Making,
    /// What was said by a build of test programs that failed.
    said: Vec<u8>,
    /// The jobs whose builds are in a lane and not done.
    pending: Vec<&'static str>,
    /// Jobs of the lanes that are not done.
    running: usize,
    /// Jobs of the lanes that are done, and what they said.
    done: Vec<(Report, Vec<u8>)>,
}

/// The state of the build of test programs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Making {
    /// No lane does it: who wants one does.
    #[default]
    ByWhoWants,
    InLane,
    Ended,
}

impl<'w> Ahead<'w> {
    /// Nothing has been done; these lanes are to be [walked](Ahead::walk).
    pub(crate) fn new(
        workspace: &'w Workspace,
        packages: Vec<&'static str>,
        lanes: &[Lane],
    ) -> Ahead<'w> {
        let mut state = State::default();
        for step in lanes.iter().flatten() {
            match step {
                Step::Programs => state.making = Making::InLane,
                Step::Build(job, _) => state.pending.push(job),
                Step::Job(_) => state.running += 1,
            }
        }
        Ahead {
            workspace,
            packages,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Whose test programs are built together.
    pub(crate) fn packages(&self) -> &[&'static str] {
        &self.packages
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until `ready` has something to give.
    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.state();
        loop {
            if let Some(ready) = ready(&mut state) {
                return ready;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does a lane's steps in the calling thread, whose priority is lowered for good.
    pub(crate) fn walk(&self, number: usize, lane: Lane) {
        let nice = NICENESS[number.min(NICENESS.len() - 1)];
        // Of this thread alone, and of what it starts (setpriority(2)). Refused, all goes on.
        let _ = rustix::process::setpriority_process(None, nice);
        for step in lane {
            match step {
                Step::Programs => self.build_programs(),
                Step::Build(job, mut command) => {
                    let until = Instant::now() + BUILD_MAX;
                    // The job makes it again, and finds what is wrong.
                    let _ = say::kept(|| child::watch(&mut command, until, false, &mut |_, _| ()));
                    self.change(|state| state.pending.retain(|pending| *pending != job));
                }
                Step::Job(job) => {
                    let done = say::kept(|| test::execute(job, self));
                    self.change(|state| {
                        state.running -= 1;
                        state.done.push(done);
                    });
                }
            }
        }
    }

    /// Builds the test programs in the calling thread, and tells of each.
    fn build_programs(&self) {
        let mut command = programs::build(self.workspace, &self.packages);
        let until = Instant::now() + BUILD_MAX;
        let (built, said) = say::kept(|| {
            child::watch(&mut command, until, false, &mut |stream, line| {
                if stream == Stream::Out
                    && let Some((source, program)) = programs::built(line)
                {
                    self.change(|state| _ = state.programs.insert(source, program));
                }
            })
        });
        let fault = match &built {
            Ok(ended) if ended.success() => None,
            Ok(ended) => Some(ended.describe("building the tests")),
            Err(error) => Some(format!("building the tests: {error:#}")),
        };
        self.change(|state| {
            state.making = Making::Ended;
            if let Some(fault) = fault {
                state.said = said;
                state
                    .said
                    .extend_from_slice(format!("xtask: {fault}\n").as_bytes());
            }
        });
    }

    /// Takes the first of `wanted` whose program is there, and waits for one; none once the build
    /// has ended and made none of them.
    pub(crate) fn program(&self, wanted: &mut Vec<PathBuf>) -> Option<(PathBuf, PathBuf)> {
        if self.state().making == Making::ByWhoWants {
            self.build_programs();
        }
        let found = self.wait(|state| {
            let at = wanted
                .iter()
                .position(|source| state.programs.contains_key(source));
            match at {
                Some(at) => {
                    let source = wanted.remove(at);
                    let program = state.programs.get(&source).cloned();
                    Some(program.map(|program| (source, program)))
                }
                None => (state.making == Making::Ended).then_some(None),
            }
        });
        if found.is_none() {
            let said = std::mem::take(&mut self.state().said);
            say::Voice::own().pass_on(Stream::Err, &said);
        }
        found
    }

    /// Waits for the builds for `job`.
    pub(crate) fn finish(&self, job: &str) {
        self.wait(|state| (!state.pending.contains(&job)).then_some(()));
    }

    /// Those jobs of the lanes that have ended since the last call, and what they said; waits for
    /// one if `wait`. None when there will be no more.
    pub(crate) fn ended(&self, wait: bool) -> Option<Vec<(Report, Vec<u8>)>> {
        self.wait(|state| {
            let done = std::mem::take(&mut state.done);
            match (done.is_empty(), state.running) {
                (true, 0) => Some(None),
                (true, _) if wait => None,
                _ => Some(Some(done)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::job;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn workspace() -> Workspace {
        Workspace::find().unwrap()
    }

    #[test]
    fn a_job_waits_for_its_own_build_and_no_other() {
        let dir = std::env::temp_dir().join(format!("xtask-ahead-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut first = shell("echo \"$WHAT\" > made");
        first.current_dir(&dir).env("WHAT", "a thing");
        // The second goes on until the first has been seen to be done.
        let mut second = shell("until [ -e seen ]; do sleep 0.01; done");
        second.current_dir(&dir);
        let workspace = workspace();
        let lanes = [
            vec![Step::Build("first", Box::new(first))],
            vec![Step::Build("second", Box::new(second))],
        ];
        let ahead = Ahead::new(&workspace, Vec::new(), &lanes);
        std::thread::scope(|scope| {
            for (number, lane) in lanes.into_iter().enumerate() {
                let ahead = &ahead;
                scope.spawn(move || ahead.walk(number, lane));
            }
            ahead.finish("third");
            ahead.finish("first");
            let made = std::fs::read_to_string(dir.join("made")).unwrap();
            assert_eq!(made, "a thing\n");
            assert_eq!(ahead.state().pending, ["second"]);
            std::fs::write(dir.join("seen"), "").unwrap();
            ahead.finish("second");
        });
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_jobs_of_a_lane_say_comes_when_they_have_ended() {
        let fine = job("fine", "", 1, |runner| {
            say::say!("all is well");
            runner.seen = 1;
            runner.tally.ran = 1;
            Ok(())
        });
        let broken = job("broken", "", 1, |_| anyhow::bail!("it broke"));
        let (fine, broken) = (&*Box::leak(Box::new(fine)), &*Box::leak(Box::new(broken)));
        let workspace = workspace();
        let lane = vec![Step::Job(fine), Step::Job(broken)];
        let ahead = Ahead::new(&workspace, Vec::new(), std::slice::from_ref(&lane));
        let mut said = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.walk(0, lane));
            while let Some(ended) = ahead.ended(true) {
                said.extend(ended.into_iter().map(|(report, said)| {
                    let said = String::from_utf8(said).unwrap();
                    (report.name, report.ok(), said)
                }));
            }
        });
        let fine = ("fine", true, "all is well\n".to_owned());
        assert_eq!(said, [fine, ("broken", false, String::new())]);
    }

    #[test]
    fn a_program_is_taken_once_it_is_built_and_is_missed_once_the_build_has_ended() {
        let workspace = workspace();
        let lanes = [vec![Step::Programs]];
        let ahead = Ahead::new(&workspace, vec!["corio"], &lanes);
        let mut wanted: Vec<PathBuf> = ["a.rs", "b.rs"].map(PathBuf::from).into();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let paths = ["b.rs", "b"].map(PathBuf::from);
                let [source, program] = paths;
                ahead.change(|state| _ = state.programs.insert(source, program));
            });
            let taken = ahead.program(&mut wanted).unwrap();
            assert_eq!(taken, ("b.rs".into(), "b".into()));
            scope.spawn(|| ahead.change(|state| state.making = Making::Ended));
            assert_eq!(ahead.program(&mut wanted), None);
        });
        assert_eq!(wanted, [PathBuf::from("a.rs")], "and it is known which");
    }
}
