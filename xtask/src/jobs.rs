//! The jobs of `cargo xtask test`, in the order they run: what is quick and fails often comes
//! first.
//!
//! A job proves that it ran: it counts what it looked at (tests, files, build targets, executions)
//! and fails below its floor. A floor is about nine tenths of what the job counts today; raise it
//! as tests are added, lower it only with a reason in the commit. Tests that skip themselves (no
//! io_uring, no client) were run and count here, so that a floor holds on every machine; the
//! table shows them as skips.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::ahead::{Ahead, Lane, Step};
use crate::child::{self, Stream};
use crate::tally::Tally;
use crate::tools::{self, Tool};
use crate::workspace::Workspace;
use crate::{capi, docs, fuzz, layers, loom, planted, programs};

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
    /// The packages whose test programs it runs.
    pub(crate) packages: &'static [&'static str],
    /// The lane in which it is done beside the others: it only computes, and looks at no clock.
    pub(crate) lane: Option<usize>,
    pub(crate) work: fn(&mut Runner<'_>) -> Result<()>,
}

/// What of these jobs is done beside those in the foreground, in two lanes: nothing where there is
/// one job only, or none for the foreground.
pub(crate) fn lanes(workspace: &Workspace, jobs: &[&'static Job]) -> Result<Vec<Lane>> {
    let mut lanes = vec![Lane::new(), Lane::new()];
    if !has_foreground(jobs) {
        return Ok(lanes);
    }
    let packages = packages(jobs);
    if !packages.is_empty() {
        lanes[0].push(Step::Programs);
    }
    let mut models = None;
    for job in jobs {
        let (lane, command) = match job.name {
            "power" => (0, shimmed(workspace, &packages)),
            "capi" => {
                let library = c_library_for_tests(workspace, &packages);
                (0, capi::build(workspace, &library))
            }
            "clients" => (1, release(workspace)),
            "fuzz" => (1, fuzz::build(workspace, &workspace.host()?)),
            "loom" | "planted" => {
                models = Some(job.name);
                continue;
            }
            _ => continue,
        };
        lanes[lane].push(Step::Build(job.name, Box::new(command)));
    }
    if let Some(job) = models {
        let mut command = loom::build(workspace);
        command.arg("--no-run");
        lanes[1].push(Step::Build(job, Box::new(command)));
    }
    for &job in jobs {
        if let Some(lane) = job.lane.and_then(|lane| lanes.get_mut(lane)) {
            lane.push(Step::Job(job));
        }
    }
    Ok(lanes)
}

/// Whether these are several jobs, of which some are for the foreground.
pub(crate) fn has_foreground(jobs: &[&Job]) -> bool {
    jobs.len() > 1 && jobs.iter().any(|job| job.lane.is_none())
}

/// The packages whose test programs these jobs run, each once.
pub(crate) fn packages(jobs: &[&Job]) -> Vec<&'static str> {
    let mut packages: Vec<_> = jobs.iter().flat_map(|job| job.packages).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    packages
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
        packages: &[],
        lane: None,
        work,
    }
}

/// A job that runs all test programs of one package.
const fn tests_of(
    name: &'static str,
    about: &'static str,
    floor: u64,
    packages: &'static [&'static str],
) -> Job {
    Job {
        packages,
        ..job(name, about, floor, |runner| runner.test(|_| true, &[]))
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
        lane: Some(0),
        // Less the three of the fuzz crate, which is left out where there is no C++ compiler, and
        // those of the bridge to GLib, where that is absent.
        ..job("clippy", "clippy has nothing to say", 34, clippy)
    },
    tests_of("xtask", "tests of these commands", 70, &["xtask"]),
    tests_of("bench", "tests of the bench program", 53, &["bench"]),
    Job {
        tools: &[tools::OBSERVERS],
        ..tests_of("corio", "the runtime's tests", 647, programs::RUNTIME)
    },
    Job {
        tools: &[tools::PEERS],
        ..tests_of("block", "the block layer's tests", 70, &["corio-block"])
    },
    tests_of(
        "nbd",
        "tests of the codec and the server",
        118,
        &["corio-nbd"],
    ),
    Job {
        tools: &[tools::GLIB],
        needs_tools: true,
        ..tests_of(
            "glib",
            "a context in a main loop of GLib's",
            21,
            &["corio-glib"],
        )
    },
    Job {
        lane: Some(0),
        // Less those of the bridge to GLib, where that is absent.
        ..job(
            "doctest",
            "examples in the documentation and the README",
            158,
            doctest,
        )
    },
    Job {
        unit: Unit::Targets,
        lane: Some(0),
        // The libraries, twice each, and their own dependencies among each other.
        ..job("rustdoc", "the documentation is whole", 9, rustdoc)
    },
    Job {
        tools: &[tools::PEERS, tools::OBSERVERS],
        packages: &["corio-cli"],
        limit: LIMIT.saturating_mul(2),
        ..job(
            "clients",
            "the program against real NBD clients",
            380,
            clients,
        )
    },
    Job {
        // Late: it builds where lane 1 does.
        tools: &[tools::C_COMPILERS],
        ..job("capi", "the C library, seen by C programs", 7, c_library)
    },
    Job {
        packages: &["corio-cli"],
        ..job(
            "power",
            "what was flushed survives a loss of power",
            28,
            power,
        )
    },
    Job {
        lane: Some(1),
        ..job(
            "loom",
            "model checks of the runtime's protocols",
            59,
            models,
        )
    },
    Job {
        unit: Unit::Bugs,
        lane: Some(1),
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
    pub(crate) ahead: &'w Ahead<'w>,
    /// The packages whose test programs it runs.
    pub(crate) packages: &'static [&'static str],
    pub(crate) deadline: Instant,
    /// How long it has waited for builds, which is not of its time.
    pub(crate) waited: Duration,
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
        let failed_before = tally.failed;
        let ended = child::watch(command, self.deadline, true, &mut |_, line| {
            tally.line(line)
        })?;
        let is_told = tally.failed > failed_before && !matches!(ended, child::Ended::TimedOut);
        if !ended.success() && !is_told {
            let program = Path::new(command.get_program());
            let what = match program.file_name() {
                Some(name) if name != "cargo" => name.to_string_lossy(),
                _ => "cargo test".into(),
            };
            self.faults.push(ended.describe(&what));
        }
        Ok(())
    }

    /// Runs the test programs of the job's packages, or those whose name `select` picks, each as
    /// soon as it is built. The wait for that is not of the job's time.
    fn test(&mut self, select: fn(&str) -> bool, envs: &[(&str, &Path)]) -> Result<()> {
        let mut packages = BTreeMap::new();
        for package in self.packages {
            for source in programs::sources(self.workspace, package)? {
                if select(programs::name(&source)) {
                    packages.insert(source, package);
                }
            }
        }
        let mut wanted: Vec<_> = packages.keys().cloned().collect();
        while !wanted.is_empty() {
            let waits = Instant::now();
            let Some((source, program)) = self.ahead.program(&mut wanted) else {
                break;
            };
            self.deadline += waits.elapsed();
            self.waited += waits.elapsed();
            let package = packages.get(&source).context("a program of nobody's")?;
            let mut command = programs::command(self.workspace, package, &program)?;
            command.envs(envs.iter().copied()).arg("--show-output");
            self.tests(&mut command)?;
        }
        let missing = wanted.iter().map(|source| self.workspace.relative(source));
        let missing = missing.map(|source| format!("{}: was not built", source.display()));
        self.faults.extend(missing);
        Ok(())
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

/// The libraries that are documented; the bridge to GLib only where that is.
fn libraries(runner: &Runner<'_>) -> Vec<&'static str> {
    let mut libraries = vec!["corio", "corio-block", "corio-nbd", "corio-glib"];
    libraries.retain(|library| !runner.exclude.contains(library));
    libraries
}

/// Names packages to cargo.
fn name<'a>(command: &mut Command, packages: impl IntoIterator<Item = &'a &'static str>) {
    for package in packages {
        command.args(["--package", package]);
    }
}

/// Names the libraries to cargo, and those packages whose tests are built: so what the libraries
/// depend on is as it is there, and is not built or checked again.
fn name_with_libraries(command: &mut Command, runner: &Runner<'_>) {
    let mut packages = libraries(runner);
    packages.extend(runner.ahead.packages());
    packages.sort_unstable();
    packages.dedup();
    name(command, &packages);
}

fn doctest(runner: &mut Runner<'_>) -> Result<()> {
    let mut command = runner.workspace.cargo(["test", "--no-fail-fast", "--doc"]);
    name_with_libraries(&mut command, runner);
    runner.tests(&mut command)
}

/// The C library is installed as for its users, and C programs are compiled against that.
fn c_library(runner: &mut Runner<'_>) -> Result<()> {
    let packages = runner.ahead.packages();
    let library = c_library_for_tests(runner.workspace, packages);
    if !capi::run(runner.workspace, &library)? {
        runner
            .faults
            .push("the C library is not installed".to_owned());
        return Ok(());
    }
    let mut command = runner.workspace.cargo(["test", "--no-fail-fast"]);
    // As the library was built, which cargo takes them to need.
    command.args(["--test", "c", "--features", capi::GLIB]);
    name(&mut command, packages.iter().chain(&["corio-capi"]));
    command.args(["--", "--show-output"]);
    runner.tests(command.env("CORIO_CAPI_PREFIX", library.prefix()))
}

fn c_library_for_tests(workspace: &Workspace, beside: &[&'static str]) -> capi::Arguments {
    capi::Arguments::for_tests(workspace.target.join("capi"), beside)
}

/// Twice: for users, where a link to a private item is broken, and for contributors, private items
/// included.
fn rustdoc(runner: &mut Runner<'_>) -> Result<()> {
    for items in [&[][..], &["--document-private-items"]] {
        let mut command = runner.workspace.cargo(["doc", "--no-deps", "--lib"]);
        command
            .args(["--message-format=json-render-diagnostics"])
            .args(items);
        name_with_libraries(&mut command, runner);
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

/// A debug build that loses what was not flushed: what is asked is whether data is lost, not how
/// fast. With the packages named whose tests are built, what it depends on is there already.
fn shimmed(workspace: &Workspace, packages: &[&'static str]) -> Command {
    let mut command = workspace.cargo(["build", "--features", "corio/power-loss-shim"]);
    command.args(PROGRAM);
    name(&mut command, packages);
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
    let program = runner.workspace.corio();
    runner.test(|name| name != POWER_TEST, &[("CORIO_BIN", &program)])
}

fn power(runner: &mut Runner<'_>) -> Result<()> {
    let packages = runner.ahead.packages();
    if !build(runner, shimmed(runner.workspace, packages))? {
        return Ok(());
    }
    // The tests' own build takes its place, so it is put aside.
    let shim = runner.workspace.target.join("shim/corio");
    put_aside(&runner.workspace.target.join("debug/corio"), &shim)?;
    runner.test(|name| name == POWER_TEST, &[("CORIO_SHIM_BIN", &shim)])
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
