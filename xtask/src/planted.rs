//! Planted bugs: each model of a protocol is shown to fail when the protocol is broken.
//!
//! The runtime's sources hold deliberate mistakes (a barrier or a second look left out) behind
//! `cfg!(corio_planted_bug = "NAME")`. Here each is built in, alone, and the models of the module
//! it stands in run: one of them has to fail. Otherwise they prove less than they say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::child::{self, Stream};
use crate::layers::paths;
use crate::loom;
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

/// Runs, for each planted bug, the models of the module it is planted in.
pub(crate) fn check(workspace: &Workspace, deadline: Instant) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let planted = planted(workspace)?;
    // Whole, the models are built once for all modules, and before any bug is: each build takes
    // the place of the one before.
    let mut anyway = BTreeMap::new();
    println!("planted: nothing");
    match models(workspace, None, deadline)? {
        Ok(program) => {
            for module in planted.keys() {
                match failures(workspace, &program, module, deadline)? {
                    // A model that fails anyway catches nothing.
                    Ok(failed) => _ = anyway.insert(module, failed),
                    Err(fault) => {
                        let fault = format!("{module} without a planted bug: {fault}");
                        outcome.faults.push(fault);
                    }
                }
            }
        }
        Err(fault) => outcome.faults.push(format!("no planted bug: {fault}")),
    }
    for (module, bugs) in &planted {
        let Some(anyway) = anyway.get(module) else {
            continue;
        };
        for bug in bugs {
            println!("planted: {bug} in {module}");
            let failed = match models(workspace, Some(bug), deadline)? {
                Ok(program) => failures(workspace, &program, module, deadline)?,
                Err(fault) => Err(fault),
            };
            match failed {
                Ok(failed) => {
                    let caught: Vec<_> = failed.difference(anyway).map(String::as_str).collect();
                    if caught.is_empty() {
                        outcome
                            .faults
                            .push(format!("{bug}: no model fails because of it"));
                    } else {
                        println!("planted: {bug} is caught by {}", caught.join(", "));
                        outcome.caught += 1;
                    }
                }
                Err(fault) => outcome.faults.push(format!("{bug}: {fault}")),
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
        let bugs: BTreeSet<_> = names(&read(&path)?).collect();
        if !bugs.is_empty() {
            let module = paths::module_of(path.strip_prefix(&source).unwrap_or(&path)).join("::");
            planted.insert(module, bugs);
        }
    }
    Ok(planted)
}

/// Builds the models, with `bug` in them: the program, or why there is none.
fn models(
    workspace: &Workspace,
    bug: Option<&str>,
    deadline: Instant,
) -> Result<Result<PathBuf, String>> {
    // Flags given to `cargo rustc` reach only the crate itself, so that its dependencies are built
    // once for all bugs.
    let mut build = workspace.cargo_apart("loom", ["rustc", "--quiet", "-p", "corio", "--lib"]);
    build.args([
        "--profile",
        "test",
        "--message-format=json-render-diagnostics",
        "--",
    ]);
    // Without a bug it is the build of the job `loom`, which cargo need not repeat.
    if let Some(bug) = bug {
        // What a mistake leaves unused is no news.
        build
            .arg("-Awarnings")
            .arg("--cfg")
            .arg(format!("{MARK}{bug}\""));
    }
    let mut program = None;
    let built = child::watch(
        loom::for_models(&mut build),
        deadline,
        false,
        &mut |stream, line| {
            if stream == Stream::Out {
                program = executable(line).or(program.take());
            }
        },
    )?;
    Ok(program
        .filter(|_| built.success())
        .ok_or_else(|| built.describe("building")))
}

/// The models of `module` that fail, or why that cannot be told.
fn failures(
    workspace: &Workspace,
    program: &Path,
    module: &str,
    deadline: Instant,
) -> Result<Result<BTreeSet<String>, String>> {
    let mut tally = Tally::default();
    let mut models = Command::new(program);
    loom::for_models(&mut models)
        .arg(format!("{module}::loom_"))
        .current_dir(&workspace.root);
    // Traces of expected failures would hide an unexpected one.
    models.env("RUST_BACKTRACE", "0");
    let ended = child::watch(&mut models, deadline, false, &mut |_, line| {
        tally.line(line)
    })?;
    match ended {
        child::Ended::TimedOut => return Ok(Err("the models did not end".to_owned())),
        // Aborted: a model that panics while it unwinds takes the others along.
        child::Ended::Exited(status) if !status.success() && tally.failures.is_empty() => {
            tally
                .failures
                .insert(format!("a model that ended the run with {status}"));
        }
        child::Ended::Exited(_) if tally.ran + tally.failed == 0 => {
            return Ok(Err("no model ran".to_owned()));
        }
        child::Ended::Exited(_) => {}
    }
    Ok(Ok(tally.failures))
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
