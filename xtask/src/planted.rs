//! Planted bugs: each model of a protocol is shown to fail when the protocol is broken.
//!
//! The runtime's sources hold deliberate mistakes (a barrier or a second look left out) behind
//! `cfg!(corio_planted_bug = "NAME")`. Here each is built in, alone, and the models run: one of them has to fail.
//! Otherwise they prove less than they say.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::child::{self, Stream};
use crate::tally::Tally;
use crate::workspace::{Workspace, files_below, read};

/// What stands before a planted bug's name in the sources.
const MARK: &str = "corio_planted_bug = \"";

/// What the models made of the bugs.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) caught: u64,
    pub(crate) faults: Vec<String>,
}

/// Sets `command` up to build for loom: optimised, as models take millions of steps, and with assertions.
pub(crate) fn for_models(command: &mut Command) -> &mut Command {
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
}

/// Runs the models once for each planted bug.
pub(crate) fn check(workspace: &Workspace, deadline: Instant) -> Result<Outcome> {
    let mut bugs = BTreeSet::new();
    for path in files_below(&workspace.root.join("crates/corio/src"), "rs")? {
        bugs.extend(names(&read(&path)?));
    }
    let mut outcome = Outcome::default();
    for bug in bugs {
        println!("planted: {bug}");
        match run(workspace, &bug, deadline)? {
            Ok(tests) => {
                println!("planted: {bug} is caught by {}", tests.join(", "));
                outcome.caught += 1;
            }
            Err(fault) => outcome.faults.push(format!("{bug}: {fault}")),
        }
    }
    Ok(outcome)
}

/// The tests that caught `bug`, or why none did.
fn run(workspace: &Workspace, bug: &str, deadline: Instant) -> Result<Result<Vec<String>, String>> {
    // Flags given to `cargo rustc` reach only the crate itself, so that its dependencies are built once for all bugs.
    let mut build = workspace.cargo_apart("loom", ["rustc", "-p", "corio", "--lib"]);
    build.args([
        "--profile",
        "test",
        "--message-format=json-render-diagnostics",
        "--",
        "--cfg",
    ]);
    build.arg(format!("{MARK}{bug}\""));
    let mut program = None;
    let built = child::watch(
        for_models(&mut build),
        deadline,
        false,
        &mut |stream, line| {
            if stream == Stream::Out {
                program = executable(line).or(program.take());
            }
        },
    )?;
    let Some(program) = program.filter(|_| built.success()) else {
        return Ok(Err(built.describe("building")));
    };
    let mut tally = Tally::default();
    let mut models = Command::new(program);
    models
        .arg("loom_")
        .current_dir(&workspace.root)
        .env("RUST_BACKTRACE", "0");
    // Many traces of expected failures would hide an unexpected one; cargo's own messages are shown above.
    let ended = child::watch(&mut models, deadline, false, &mut |_, line| {
        tally.line(line)
    })?;
    if tally.failed > 0 {
        return Ok(Ok(tally.failures.into_iter().collect()));
    }
    // A model that aborts, as one that overflows its stack does, has caught it too, but which cannot be told.
    Ok(Err(match ended {
        child::Ended::TimedOut => "the models did not end".to_owned(),
        child::Ended::Exited(status) if status.success() => "no model fails".to_owned(),
        child::Ended::Exited(status) => format!("the models ended with {status}"),
    }))
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
        let text = format!("if !cfg!({MARK}one\") {{}} #[cfg(all(loom, {MARK}two\"))]");
        assert_eq!(names(&text).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(names("corio_planted_bug").count(), 0);
    }

    #[test]
    fn the_test_program_is_read_from_cargos_message() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/deps/corio-1","fresh":true}"#;
        assert_eq!(executable(line), Some(PathBuf::from("/t/deps/corio-1")));
        assert_eq!(executable(r#"{"executable":null}"#), None);
    }
}
