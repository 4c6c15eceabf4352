//! Planted bugs: each model of a protocol is shown to fail when the protocol is broken.
//!
//! The runtime's sources hold deliberate mistakes (a barrier or a second look left out) behind
//! `planted!("NAME")`. One build of the models has them all, and the environment says which is in
//! force. The models of the module that a bug stands in run with it until one fails, as one has to:
//! otherwise they prove less than they say. And that one must not fail without the bug.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::child::{self, Ended, Stream};
use crate::layers::paths;
use crate::loom;
use crate::say::say;
use crate::tally::Tally;
use crate::workspace::{Workspace, files_below, read};

/// What stands before a planted bug's name in the sources.
const MARK: &str = "planted!(\"";
/// Puts a bug in force.
pub(crate) const VARIABLE: &str = "CORIO_PLANTED_BUG";
/// The module that explains all this, and plants nothing.
const MODULE: &str = "planted";

/// What the models made of the bugs.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) caught: u64,
    pub(crate) faults: Vec<String>,
}

/// Runs, for each planted bug, the models of the module it is planted in.
pub(crate) fn check(workspace: &Workspace, deadline: Instant) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let program = match build(workspace, deadline)? {
        Ok(program) => program,
        Err(fault) => {
            outcome.faults.push(fault);
            return Ok(outcome);
        }
    };
    let run = |filter: &[&str], bug: Option<&str>| run(workspace, &program, filter, bug, deadline);
    // Whether models hold without a bug, by what selects them.
    let mut holds = BTreeMap::new();
    for (module, bugs) in planted(workspace)? {
        for bug in bugs {
            say!("planted: {bug} in {module}");
            let all = format!("{module}::loom_");
            let verdict = run(&[&all], Some(&bug))?;
            // A model that fails anyway catches nothing.
            let select = match &verdict {
                Verdict::Failed(model) => vec!["--exact", model],
                _ => vec![all.as_str()],
            };
            let key = select.join(" ");
            if verdict.is_failure() && !holds.contains_key(&key) {
                holds.insert(key.clone(), run(&select, None)?);
            }
            match (verdict, holds.get(&key)) {
                (Verdict::Failed(by) | Verdict::Aborted(by), Some(Verdict::Held)) => {
                    say!("planted: {bug} is caught by {by}");
                    outcome.caught += 1;
                }
                (Verdict::Failed(by) | Verdict::Aborted(by), without) => {
                    let fault = format!("{bug}: {by}, but without it: {without:?}");
                    outcome.faults.push(fault);
                }
                (Verdict::Held, _) => outcome
                    .faults
                    .push(format!("{bug}: no model fails because of it")),
                (Verdict::Nothing(why), _) => outcome.faults.push(format!("{bug}: {why}")),
            }
        }
    }
    Ok(outcome)
}

/// The bugs, by the module they are planted in.
fn planted(workspace: &Workspace) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let source = workspace.root.join("crates/corio/src");
    let mut planted = BTreeMap::new();
    for path in files_below(&source, "rs")? {
        let module = paths::module_of(path.strip_prefix(&source).unwrap_or(&path)).join("::");
        let bugs: BTreeSet<_> = names(&read(&path)?).collect();
        if !bugs.is_empty() && module != MODULE {
            planted.insert(module, bugs);
        }
    }
    Ok(planted)
}

/// Builds the models, as the job `loom` does: the program, or why there is none.
fn build(workspace: &Workspace, deadline: Instant) -> Result<Result<PathBuf, String>> {
    let mut build = loom::build(workspace);
    build.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut program = None;
    let built = child::watch(&mut build, deadline, false, &mut |stream, line| {
        if stream == Stream::Out {
            program = executable(line).or(program.take());
        }
    })?;
    Ok(program
        .filter(|_| built.success())
        .ok_or_else(|| built.describe("building the models")))
}

/// What became of a run of models.
#[derive(Debug)]
enum Verdict {
    Held,
    /// This one failed; others may have, too.
    Failed(String),
    /// One that panics while it unwinds takes the others along.
    Aborted(String),
    /// It cannot be told.
    Nothing(String),
}

impl Verdict {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Aborted(_))
    }
}

/// Runs the models that `filter` selects until one fails.
fn run(
    workspace: &Workspace,
    program: &Path,
    filter: &[&str],
    bug: Option<&str>,
    deadline: Instant,
) -> Result<Verdict> {
    let mut tally = Tally::default();
    let mut models = Command::new(program);
    loom::for_models(&mut models)
        .args(filter)
        .current_dir(&workspace.root)
        // Traces of expected failures would hide an unexpected one.
        .env("RUST_BACKTRACE", "0");
    if let Some(bug) = bug {
        models.env(VARIABLE, bug);
    }
    let ended = child::watch_until(&mut models, deadline, false, &mut |_, line| {
        tally.line(line);
        match tally.failures.is_empty() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(match (tally.failures.pop_first(), ended) {
        (Some(model), _) => Verdict::Failed(model),
        (None, Ended::TimedOut) => Verdict::Nothing("the models did not end".to_owned()),
        (None, Ended::Exited(status)) if !status.success() => {
            Verdict::Aborted(format!("a model that ended the run with {status}"))
        }
        _ if tally.ran == 0 => Verdict::Nothing("no model ran".to_owned()),
        _ => Verdict::Held,
    })
}

/// The names of the bugs planted in a source file.
fn names(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(MARK)
        .skip(1)
        .filter_map(|rest| rest.split_once('"').map(|(name, _)| name.to_owned()))
}

/// The program that cargo names in the message about a test build.
fn executable(line: &str) -> Option<PathBuf> {
    let (_, rest) = line.split_once(r#""executable":""#)?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bugs_are_found_by_name() {
        let text = format!("if !{MARK}one\") {{}} _ if {MARK}two\") => {{}}");
        assert_eq!(names(&text).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(names("planted!(name)").count(), 0);
    }

    #[test]
    fn the_test_program_is_read_from_cargos_message() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/deps/corio-1","fresh":true}"#;
        assert_eq!(executable(line), Some(PathBuf::from("/t/deps/corio-1")));
        assert_eq!(executable(r#"{"executable":null}"#), None);
    }
}
