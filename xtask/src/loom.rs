//! `cargo xtask loom`: the models of the runtime's protocols, and that none of them proves less
//! than it says.
//!
//! A model is a unit test named `loom_*` that goes through `crate::model::check`, which fails when
//! the model is cut short and prints `MODEL NAME: BOUND, N executions in S s` when it is not. Here
//! that line is insisted on for each test that passed; loom is not to be called past that door; and
//! what the environment says to loom is kept from it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::child::{self, Ended};
use crate::layers::paths;
use crate::planted;
use crate::say::say;
use crate::tally::{self, Tally};
use crate::test;
use crate::workspace::{Workspace, files_below, read};

/// What of loom only the runtime's module `model` may name.
const BEHIND_THE_DOOR: &[&str] = &["loom::model", "loom::Builder", "model::Builder"];

/// Runs the models and what shows that they find mistakes; true if all is well.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    test::run(workspace, &test::Arguments::only(&["loom", "planted"]))
}

/// Sets `command` up to build and run models: optimised, as models take millions of steps, but no
/// more than saves time in all; and with assertions.
pub(crate) fn for_models(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if weakens(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
}

/// Builds and runs the models; more arguments may follow.
pub(crate) fn build(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo_apart("loom", ["test", "-p", "corio", "--lib"]);
    // What else loom brings is not where models spend their time.
    command.args(["--config", r#"profile.dev.package."*".opt-level=0"#]);
    for busy in ["loom", "generator"] {
        let optimised = format!("profile.dev.package.{busy}.opt-level=3");
        command.args(["--config", &optimised]);
    }
    for_models(&mut command);
    command
}

/// Whether loom takes a limit, or a place to begin, from this variable of the environment, or the
/// protocols a mistake.
fn weakens(variable: &str) -> bool {
    variable.starts_with("LOOM_MAX_")
        || variable.starts_with("LOOM_CHECKPOINT_")
        || variable == planted::VARIABLE
}

/// Runs all models, and adds their tests to `tally`. What is wrong beside a failed test.
pub(crate) fn check(
    workspace: &Workspace,
    deadline: Instant,
    tally: &mut Tally,
) -> Result<Vec<String>> {
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if weakens(&name) {
            let value = value.to_string_lossy();
            say!("xtask: {name}={value} is kept from the models: each sets its own limits");
        }
    }
    let mut faults = strays(workspace)?;
    let mut command = build(workspace);
    command.args(["loom_", "--", "--show-output"]);
    let mut models = Models::default();
    let ended = child::watch(&mut command, deadline, true, &mut |_, line| {
        tally.line(line);
        models.line(line);
    })?;
    if !ended.success() && (tally.failed == 0 || matches!(ended, Ended::TimedOut)) {
        faults.push(ended.describe("cargo test"));
    }
    models.report();
    faults.extend(models.faults());
    Ok(faults)
}

/// Where the runtime's sources call loom's models past the door.
fn strays(workspace: &Workspace) -> Result<Vec<String>> {
    let source = workspace.root.join("crates/corio/src");
    let mut faults = Vec::new();
    for path in files_below(&source, "rs")? {
        if paths::module_of(path.strip_prefix(&source).unwrap_or(&path)) == ["model"] {
            continue;
        }
        for line in past_the_door(&read(&path)?) {
            let path = workspace.relative(&path).display();
            faults.push(format!(
                "{path}:{line}: models go through crate::model::check"
            ));
        }
    }
    Ok(faults)
}

/// The numbers of the lines that name what only the door may.
fn past_the_door(text: &str) -> Vec<usize> {
    let names = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        BEHIND_THE_DOOR.iter().any(|name| code.contains(name))
    };
    let lines = text.lines().zip(1..);
    lines
        .filter(|(line, _)| names(line))
        .map(|(_, n)| n)
        .collect()
}

/// What the models have said of themselves.
#[derive(Debug, Default)]
struct Models {
    section: Option<String>,
    passed: BTreeSet<String>,
    /// What each printed when it was done, by the name of its test.
    done: BTreeMap<String, Vec<String>>,
}

impl Models {
    fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(name) = tally::section(line) {
            self.section = Some(name.to_owned());
        } else if let Some((name, "ok")) = tally::verdict(line) {
            self.passed.insert(name.to_owned());
        } else if let Some((_, how)) = line.strip_prefix("MODEL ").and_then(|m| m.split_once(": "))
            && let Some(test) = &self.section
        {
            let done = self.done.entry(test.clone()).or_default();
            done.push(how.to_owned());
        }
    }

    /// The tests that passed and in which no model went to its end.
    fn faults(&self) -> impl Iterator<Item = String> + '_ {
        self.passed
            .iter()
            .filter(|name| !self.done.contains_key(*name))
            .map(|name| format!("{name}: passed, and no model says that it went to its end"))
    }

    /// Prints each model with its bound and its time.
    fn report(&self) {
        say!("models:");
        for (test, done) in &self.done {
            for how in done {
                say!("  {}: {how}", test.replace("::loom_tests::loom_", "::"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(text: &str) -> Models {
        let mut models = Models::default();
        text.lines().for_each(|line| models.line(line));
        models
    }

    #[test]
    fn a_model_that_went_to_its_end_is_known_with_its_bound() {
        let models = models(
            "test a::loom_x ... ok\n\nsuccesses:\n\n---- a::loom_x stdout ----\n\
             MODEL a::loom_x: preemption bound 3, 12 executions in 0.01 s\n\n",
        );
        assert_eq!(models.faults().count(), 0);
        assert_eq!(
            models.done["a::loom_x"],
            ["preemption bound 3, 12 executions in 0.01 s"]
        );
    }

    /// As a call of loom's own `model` would, cut short by `LOOM_MAX_PERMUTATIONS`.
    #[test]
    fn a_model_that_does_not_say_it_went_to_its_end_is_a_fault() {
        let models = models(
            "test a::loom_x ... ok\ntest a::loom_y ... ok\ntest a::loom_z ... FAILED\n\
             ---- a::loom_x stdout ----\nMODEL a::loom_x: exhaustive, 5 executions in 0.00 s\n\
             ---- a::loom_z stdout ----\nthe model was cut short: 255 executions took 3 s of 2 s\n",
        );
        assert_eq!(
            models.faults().collect::<Vec<_>>(),
            ["a::loom_y: passed, and no model says that it went to its end"]
        );
    }

    #[test]
    fn looms_own_entry_points_are_refused_in_code() {
        let text = "// loom::model is not for here\nmodel::check(3, f);\nloom::model(f);\n\
                    use loom::model::Builder; // why\nlet b = loom::model::Builder::new();";
        assert_eq!(past_the_door(text), [3, 4, 5]);
    }

    #[test]
    fn only_what_cuts_models_short_is_kept_from_them() {
        assert!(weakens("LOOM_MAX_PERMUTATIONS") && weakens("LOOM_CHECKPOINT_FILE"));
        assert!(!weakens("LOOM_LOG") && !weakens("PATH"));
    }
}
