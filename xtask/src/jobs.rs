//! The jobs of `cargo xtask test`, in the order they run: what is quick and fails often comes
//! first.
//!
//! A job proves that it ran: it counts what it looked at (tests, files, build targets, executions)
//! and fails below its floor. A floor is about nine tenths of what the job counts today; raise it
//! as tests are added, lower it only with a reason in the commit. Tests that skip themselves (no
//! io_uring, no client) were run and count here, so that a floor holds on every machine; the
//! table shows them as skips.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::ahead::Build;
use crate::child::{self, Stream};
use crate::tally::Tally;
use crate::tools::{self, Tool};
use crate::workspace::{Workspace, entries};
use crate::{capi, docs, fuzz, layers, loom, planted};

/// How long a job may take where nothing else is said, on a slow machine, builds included. It is
/// there to end what hangs.
const LIMIT: Duration = Duration::from_secs(900);
/// How long the fuzz job feeds each target.
const FUZZ_SECONDS: u32 = 10;

/// One job.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The smallest count that proves the job ran.
    pub(crate) floor: u64,
    pub(crate) limit: Duration,
    pub(crate) tools: &'static [&'static [Tool]],
    /// The job is skipped as a whole without its tools; else its tests skip what they cannot do.
    pub(crate) needs_tools: bool,
    /// What it counts.
    pub(crate) unit: Unit,
    pub(crate) work: fn(&mut Runner<'_>) -> Result<()>,
}

/// Those of the jobs' builds that can be made beside other jobs: they go into directories of their
/// own, so that nobody else waits for cargo's lock.
pub(crate) fn builds(workspace: &Workspace, jobs: &[&Job]) -> Result<Vec<Build>> {
    let mut builds = Vec::new();
    for job in jobs {
        let command = match job.name {
            "clients" => release(workspace),
            "loom" => {
                let mut command = loom::build(workspace);
                command.arg("--no-run");
                command
            }
            "fuzz" => fuzz::build(workspace, &workspace.host()?),
            _ => continue,
        };
        let job = job.name;
        builds.push(Build { job, command });
    }
    Ok(builds)
}

/// What a job counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Tests,
    Files,
    Imports,
    Targets,
    Executions,
    Bugs,
    References,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tests => "tests",
            Self::Files => "files",
            Self::Imports => "imports",
            Self::Targets => "targets",
            Self::Executions => "executions",
            Self::References => "references",
            Self::Bugs => "bugs caught",
        }
    }
}

/// A job that counts tests, with the defaults.
pub(crate) const fn job(
    name: &'static str,
    about: &'static str,
    floor: u64,
    work: fn(&mut Runner<'_>) -> Result<()>,
) -> Job {
    Job {
        name,
        about,
        floor,
        limit: LIMIT,
        tools: &[],
        needs_tools: false,
        unit: Unit::Tests,
        work,
    }
}

/// Every job, in order.
pub(crate) const JOBS: &[Job] = &[
    Job {
        unit: Unit::Files,
        ..job("fmt", "rustfmt changes nothing", 440, fmt)
    },
    Job {
        unit: Unit::Imports,
        ..job("layers", "no import goes up a layer", 700, check_layers)
    },
    Job {
        unit: Unit::References,
        ..job("docs", "the documents name what is there", 680, check_docs)
    },
    Job {
        tools: &[tools::GLIB],
        unit: Unit::Targets,
        // Less the two of the fuzz crate, which is left out where there is no C++ compiler, and
        // those of the bridge to GLib, where that is absent.
        ..job("clippy", "clippy has nothing to say", 34, clippy)
    },
    job("xtask", "tests of these commands", 70, |r| {
        r.test(&["-p", "xtask"])
    }),
    job("bench", "tests of the bench program", 53, |r| {
        r.test(&["-p", "bench"])
    }),
    Job {
        tools: &[tools::OBSERVERS],
        ..job("corio", "the runtime's tests", 640, |r| {
            r.test(&["-p", "corio"])
        })
    },
    Job {
        tools: &[tools::PEERS],
        ..job("block", "the block layer's tests", 70, |r| {
            r.test(&["-p", "corio-block"])
        })
    },
    job("nbd", "tests of the codec and the server", 118, |r| {
        r.test(&["-p", "corio-nbd"])
    }),
    Job {
        tools: &[tools::GLIB],
        needs_tools: true,
        ..job("glib", "a context in a main loop of GLib's", 25, glib)
    },
    Job {
        tools: &[tools::C_COMPILERS],
        ..job("capi", "the C library, seen by C programs", 8, c_library)
    },
    job(
        "doctest",
        "examples in the documentation and the README",
        150,
        doctest,
    ),
    Job {
        unit: Unit::Targets,
        // The libraries, twice each, and their own dependencies among each other.
        ..job("rustdoc", "the documentation is whole", 9, rustdoc)
    },
    Job {
        tools: &[tools::PEERS, tools::OBSERVERS],
        limit: LIMIT.saturating_mul(2),
        ..job(
            "clients",
            "the program against real NBD clients",
            297,
            clients,
        )
    },
    job(
        "power",
        "what was flushed survives a loss of power",
        18,
        power,
    ),
    job(
        "loom",
        "model checks of the runtime's protocols",
        59,
        models,
    ),
    Job {
        unit: Unit::Bugs,
        ..job(
            "planted",
            "each bug planted in a protocol is caught by its model",
            41,
            planted_bugs,
        )
    },
    Job {
        unit: Unit::Executions,
        // A quarter of what two slow cores do in the time: the count is a matter of speed.
        tools: &[tools::COMPILER],
        needs_tools: true,
        ..job("fuzz", "each fuzz target for 10 s", 100_000, fuzz_briefly)
    },
];

/// Runs one job's children and keeps its counts.
pub(crate) struct Runner<'w> {
    pub(crate) workspace: &'w Workspace,
    pub(crate) deadline: Instant,
    pub(crate) tally: Tally,
    /// What the job looked at, for jobs that count no tests.
    pub(crate) seen: u64,
    /// Why the job failed, if it did.
    pub(crate) faults: Vec<String>,
    /// Passed to cargo where packages are excluded for want of a tool.
    pub(crate) exclude: Vec<&'static str>,
}

impl Runner<'_> {
    /// Runs a command whose output holds test results.
    pub(crate) fn tests(&mut self, command: &mut Command) -> Result<()> {
        let tally = &mut self.tally;
        let ended = child::watch(command, self.deadline, true, &mut |_, line| {
            tally.line(line)
        })?;
        if !ended.success() && (tally.failed == 0 || matches!(ended, child::Ended::TimedOut)) {
            self.faults.push(ended.describe("cargo test"));
        }
        Ok(())
    }

    /// `cargo test` of everything but the doctests, which are a job of their own.
    fn test(&mut self, packages: &[&str]) -> Result<()> {
        let mut command = self.workspace.cargo(["test", "--no-fail-fast", "--tests"]);
        self.tests(command.args(packages).args(["--", "--show-output"]))
    }

    /// Runs a command that must succeed, and counts the lines that `counts` picks.
    fn check(
        &mut self,
        what: &str,
        command: &mut Command,
        show_stdout: bool,
        counts: fn(&str) -> bool,
    ) -> Result<()> {
        let mut seen = 0;
        let ended = child::watch(command, self.deadline, show_stdout, &mut |stream, line| {
            if stream == Stream::Out && counts(line) {
                seen += 1;
            }
        })?;
        self.seen += seen;
        if !ended.success() {
            self.faults.push(ended.describe(what));
        }
        Ok(())
    }
}

/// Each file's name comes with `--verbose`; what is shown is only what is wrong with it.
fn fmt(runner: &mut Runner<'_>) -> Result<()> {
    let mut command = runner
        .workspace
        .cargo(["fmt", "--all", "--check", "--", "--verbose"]);
    command.args(["--color", "never"]);
    let mut files = 0;
    let ended = child::watch(&mut command, runner.deadline, false, &mut |stream, line| {
        if line.starts_with("Formatting ") {
            files += 1;
        } else if stream == Stream::Out
            && !line.starts_with("Using rustfmt config")
            && !line.starts_with("Spent ")
        {
            println!("{line}");
        }
    })?;
    runner.seen = files;
    if !ended.success() {
        runner
            .faults
            .push("files differ from what `cargo fmt --all` makes of them".to_owned());
    }
    Ok(())
}

fn check_layers(runner: &mut Runner<'_>) -> Result<()> {
    let findings = layers::check(runner.workspace)?;
    if !findings.report() {
        runner.faults.push("imports go up".to_owned());
    }
    runner.seen = findings.imports;
    Ok(())
}

fn check_docs(runner: &mut Runner<'_>) -> Result<()> {
    let findings = docs::check(runner.workspace)?;
    for fault in &findings.faults {
        println!("docs: {fault}");
    }
    runner.seen = findings.seen;
    if !findings.faults.is_empty() {
        runner
            .faults
            .push(format!("{} statements are not so", findings.faults.len()));
    }
    Ok(())
}

/// Cargo names each target that it checked, fresh or not, in a line of JSON.
fn is_our_target(line: &str) -> bool {
    line.starts_with(r#"{"reason":"compiler-artifact""#)
        && line.contains("\"package_id\":\"path+file://")
}

fn clippy(runner: &mut Runner<'_>) -> Result<()> {
    let mut command = runner.workspace.cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--keep-going",
        "--message-format=json-render-diagnostics",
    ]);
    for package in &runner.exclude {
        command.args(["--exclude", package]);
    }
    command.args(["--", "-D", "warnings"]);
    runner.check("cargo clippy", &mut command, false, is_our_target)
}

fn doctest(runner: &mut Runner<'_>) -> Result<()> {
    let mut command = runner.workspace.cargo(["test", "--no-fail-fast", "--doc"]);
    command.args(["-p", "corio", "-p", "corio-block", "-p", "corio-nbd"]);
    runner.tests(&mut command)
}

/// The bridge to GLib, which nothing else needs: its tests, its examples and its documentation.
fn glib(runner: &mut Runner<'_>) -> Result<()> {
    let mut command = runner.workspace.cargo(["test", "--no-fail-fast"]);
    command.args(["-p", "corio-glib", "--", "--show-output"]);
    runner.tests(&mut command)?;
    let mut command = runner.workspace.cargo(["doc", "--no-deps"]);
    command.args(["-p", "corio-glib"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    runner.check("cargo doc", &mut command, false, |_| false)
}

/// The C library is installed as for its users, and C programs are compiled against that.
fn c_library(runner: &mut Runner<'_>) -> Result<()> {
    let prefix = runner.workspace.target.join("capi");
    let installed = capi::run(
        runner.workspace,
        &capi::Arguments::for_tests(prefix.clone()),
    )?;
    if !installed {
        runner
            .faults
            .push("the C library is not installed".to_owned());
        return Ok(());
    }
    let mut command =
        runner
            .workspace
            .cargo(["test", "--no-fail-fast", "-p", "corio-capi", "--tests"]);
    command.args(["--", "--show-output"]);
    runner.tests(command.env("CORIO_CAPI_PREFIX", prefix))
}

/// Twice: for users, where a link to a private item is broken, and for contributors, private items
/// included.
fn rustdoc(runner: &mut Runner<'_>) -> Result<()> {
    for items in [&[][..], &["--document-private-items"]] {
        let mut command = runner.workspace.cargo(["doc", "--no-deps"]);
        command
            .args(["--message-format=json-render-diagnostics"])
            .args(items);
        command.args(["-p", "corio", "-p", "corio-block", "-p", "corio-nbd"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        runner.check("cargo doc", &mut command, false, is_our_target)?;
    }
    Ok(())
}

/// What is to be built of the program.
const PROGRAM: &[&str] = &["--package", "corio-cli", "--bin", "corio"];

fn release(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo(["build", "--release"]);
    command.args(PROGRAM);
    command
}

/// Builds the program; false if that failed.
fn build(runner: &mut Runner<'_>, mut command: Command) -> Result<bool> {
    runner.check("building corio", &mut command, true, |_| false)?;
    Ok(runner.faults.is_empty())
}

/// The test that needs a build of its own is a job of its own.
const POWER_TEST: &str = "power_loss";

/// The program's unit tests, and all it does seen from outside.
fn clients(runner: &mut Runner<'_>) -> Result<()> {
    if !build(runner, release(runner.workspace))? {
        return Ok(());
    }
    let mut command = runner
        .workspace
        .cargo(["test", "--no-fail-fast", "-p", "corio-cli"]);
    command
        .arg("--bins")
        .env("CORIO_BIN", runner.workspace.corio());
    for path in entries(&runner.workspace.root.join("crates/corio-cli/tests"))? {
        let name = path.file_stem().unwrap_or_default();
        let is_program = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").is_file();
        if is_program && name != POWER_TEST {
            command.arg("--test").arg(name);
        }
    }
    runner.tests(command.args(["--", "--show-output"]))
}

fn power(runner: &mut Runner<'_>) -> Result<()> {
    // A debug build: what is asked is whether data is lost, not how fast, and what it depends on
    // is there already. The tests' own build takes its place, so it is put aside.
    let shimmed = ["build", "--features", "corio/power-loss-shim"];
    let mut command = runner.workspace.cargo(shimmed);
    command.args(PROGRAM);
    if !build(runner, command)? {
        return Ok(());
    }
    let shim = runner.workspace.target.join("shim/corio");
    put_aside(&runner.workspace.target.join("debug/corio"), &shim)?;
    let mut command = runner
        .workspace
        .cargo(["test", "-p", "corio-cli", "--test", POWER_TEST]);
    command
        .args(["--", "--show-output"])
        .env("CORIO_SHIM_BIN", shim);
    runner.tests(&mut command)
}

/// Copies a program. Not by a link: what is built over the old one would be seen through it.
fn put_aside(program: &Path, copy: &Path) -> Result<()> {
    if let Some(dir) = copy.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::copy(program, copy).with_context(|| format!("cannot copy to {}", copy.display()))?;
    Ok(())
}

fn models(runner: &mut Runner<'_>) -> Result<()> {
    let faults = loom::check(runner.workspace, runner.deadline, &mut runner.tally)?;
    runner.faults.extend(faults);
    Ok(())
}

fn planted_bugs(runner: &mut Runner<'_>) -> Result<()> {
    let outcome = planted::check(runner.workspace, runner.deadline)?;
    runner.seen = outcome.caught;
    runner.faults.extend(outcome.faults);
    Ok(())
}

fn fuzz_briefly(runner: &mut Runner<'_>) -> Result<()> {
    let outcome = fuzz::fuzz(runner.workspace, FUZZ_SECONDS, &[], runner.deadline)?;
    runner.seen = outcome.executions;
    runner.faults.extend(outcome.faults);
    Ok(())
}
