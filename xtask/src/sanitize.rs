//! `cargo xtask sanitize`: the runtime's tests under tools that watch every access to memory.
//!
//! | run | sees | does not see |
//! |---|---|---|
//! | `asan` | accesses beside an object, after its scope and after it is freed; memory that nothing points to any more | what the standard library does inside itself; what the kernel writes; a frame that has returned, as its fake stacks leak at switches |
//! | `valgrind` | use of undefined values and of freed memory, in the standard library too | overruns on a stack; io_uring, which the runtime refuses there; two threads at the very same time |
//! | `tsan` | accesses of several threads that nothing orders | fences, which are exchanges there; the inside of the standard library, which is not instrumented; switches of stacks, so only what runs without one is run |
//!
//! Each is a job as those of `cargo xtask test` are, with a floor, a limit, and its skips counted.
//! What a tool is told to overlook stands, with the reason, in `xtask/suppressions`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::jobs::{Job, Runner, job};
use crate::programs;
use crate::test;
use crate::tools;
use crate::workspace::Workspace;

/// They build all anew, and run many times slower than usual.
const LIMIT: Duration = Duration::from_secs(2400);
/// How many different reports a job's verdict names.
const REPORTS_MAX: usize = 4;

/// Test programs that no tool is given: what must not compile does not run.
const NOT_RUN: &[&str] = &["compile_fail"];
/// Test programs that valgrind is not given, and why.
const NOT_UNDER_VALGRIND: &[(&str, &str)] = &[
    ("engines", "most of it would go by io_uring"),
    ("net", "most of it would go by io_uring"),
    ("attacks_loop", "its loads take very long there"),
    (
        "timers_million",
        "its deadlines have passed there before anything runs",
    ),
    ("storm", "it would blow at a hundredth of its force"),
    ("wakes", "a million wakes take very long there"),
    (
        "fallbacks",
        "its processes are not followed, and rings are refused",
    ),
];
/// Tests that AddressSanitizer is not given, and why.
const SKIPPED_UNDER_ASAN: &[(&str, &str)] = &[
    (
        "the_pool_is_bounded_and_the_bound_moves",
        "it measures memory, of which the sanitizer has its own",
    ),
    (
        "no_wake_is_lost_and_nothing_leaks_where_all_hop_wait_and_are_cancelled",
        "it measures memory, of which the sanitizer has its own",
    ),
    (
        "a_slab_is_made_anew_when_its_last_stack_comes_back",
        "it touches stacks by their marks, which are not made where memory is watched",
    ),
];
/// Tests that valgrind is not given, by what is in their names, and why.
const SKIPPED_UNDER_VALGRIND: &[(&str, &str)] = &[
    (
        "time::",
        "its deadlines have passed there before anything runs",
    ),
    (
        "an_alternate_stack_is_used_if_it_is_large_enough_and_put_back_if_not",
        "valgrind tells of the last alternate stack where none is set",
    ),
    (
        "a_regular_file_is_always_ready",
        "valgrind refuses rings, and it looks at one",
    ),
    (
        "for_a_partner_that_answers_after_20_us_the_time_grows_and_the_latency_drops",
        "threads take turns there: none answers while another polls",
    ),
];
/// What is in the names of unit tests that need no stack, for ThreadSanitizer.
const STACKLESS: &str = "plain_threads";

const RUNS: &[Job] = &[
    Job {
        limit: LIMIT,
        tools: &[tools::SYMBOLIZER],
        ..job(
            "asan",
            "the runtime's tests under AddressSanitizer",
            450,
            asan,
        )
    },
    Job {
        limit: LIMIT,
        tools: &[tools::VALGRIND],
        needs_tools: true,
        ..job(
            "valgrind",
            "tests of coroutines under memcheck",
            250,
            valgrind,
        )
    },
    Job {
        limit: LIMIT,
        tools: &[tools::SYMBOLIZER],
        needs_tools: true,
        ..job(
            "tsan",
            "the protocols between threads under ThreadSanitizer",
            7,
            tsan,
        )
    },
];

/// Arguments of `cargo xtask sanitize`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Runs to make: asan, valgrind, tsan; all if none is named
    runs: Vec<String>,
    /// Do not install missing programs
    #[arg(long)]
    no_install: bool,
}

/// Makes the runs; true if none found anything.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let runs = test::select(RUNS, &arguments.runs)?;
    test::run_jobs(workspace, &runs, !arguments.no_install)
}

fn asan(runner: &mut Runner<'_>) -> Result<()> {
    let mut options = "detect_stack_use_after_return=0".to_owned();
    if !tools::absent(tools::SYMBOLIZER).is_empty() {
        println!("SKIPPED: leaks: without llvm-symbolizer those that are meant cannot be told");
        runner.tally.skip("leaks: no llvm-symbolizer".to_owned());
        options.push_str(",detect_leaks=0");
    }
    let mut command = sanitized(runner.workspace, "asan", &["-Zsanitizer=address"])?;
    command.args(["--features", "corio/asan", "--lib"]);
    name_programs(runner.workspace, NOT_RUN, &mut command)?;
    leave_out(runner, SKIPPED_UNDER_ASAN);
    command
        .args(["--", "--show-output"])
        .args(skips(SKIPPED_UNDER_ASAN))
        .env("ASAN_OPTIONS", options)
        .env("LSAN_OPTIONS", suppressions(runner.workspace, "lsan"));
    watched(runner, &mut command)
}

/// All optimised, which the ordinary build is not: calls between what is and what is not pass values
/// whose padding is not written, and compare them as a whole, which valgrind reports; and its tests
/// take several times as long.
const OPTIMISED: &[&str] = &[
    "--config",
    "profile.dev.package.\"*\".opt-level=1",
    "--config",
    "profile.dev.package.corio-tests.opt-level=1",
];

fn valgrind(runner: &mut Runner<'_>) -> Result<()> {
    let workspace = runner.workspace;
    let mut command = workspace.cargo(["test", "--no-fail-fast"]);
    let mut without = NOT_RUN.to_vec();
    without.extend(NOT_UNDER_VALGRIND.iter().map(|(program, _)| program));
    name_programs(workspace, &without, &mut command)?;
    leave_out(runner, NOT_UNDER_VALGRIND);
    leave_out(runner, SKIPPED_UNDER_VALGRIND);
    let memcheck = format!(
        "valgrind --quiet --error-exitcode=99 --fair-sched=yes --num-callers=25 {}",
        suppressions(workspace, "valgrind").replace("suppressions=", "--suppressions=")
    );
    let triple = workspace.host()?.to_uppercase().replace('-', "_");
    command
        .args(OPTIMISED)
        .args(["--", "--show-output", "--test-threads=1"])
        .args(skips(SKIPPED_UNDER_VALGRIND))
        .env(format!("CARGO_TARGET_{triple}_RUNNER"), memcheck);
    watched(runner, &mut command)
}

fn tsan(runner: &mut Runner<'_>) -> Result<()> {
    // The standard library comes without instrumentation, and to build it anew its source would
    // have to be there.
    let flags = [
        "-Zsanitizer=thread",
        "-Cunsafe-allow-abi-mismatch=sanitizer",
        "--cfg=corio_tsan",
    ];
    for what in [&["--test", "threads"][..], &["--lib", STACKLESS]] {
        let mut command = sanitized(runner.workspace, "tsan", &flags)?;
        command
            .args(["--package", "corio"])
            .args(what)
            .args(["--", "--show-output"])
            .env("TSAN_OPTIONS", suppressions(runner.workspace, "tsan"));
        watched(runner, &mut command)?;
    }
    Ok(())
}

/// `cargo test` of the runtime with a sanitizer, which the stable compiler takes from who says that
/// it is known not to be stable. With the target given, build scripts and macros go without it.
fn sanitized(workspace: &Workspace, name: &str, flags: &[&str]) -> Result<Command> {
    let mut command = workspace.cargo_apart(name, ["test", "--no-fail-fast"]);
    command
        .args(["--target", &workspace.host()?])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(command)
}

/// Names the runtime's packages and their test programs to cargo, less those left out.
fn name_programs(workspace: &Workspace, without: &[&str], command: &mut Command) -> Result<()> {
    for package in programs::RUNTIME {
        command.args(["--package", package]);
        for source in programs::sources(workspace, package)? {
            let name = programs::name(&source);
            if name != "lib" && !without.contains(&name) {
                command.arg("--test").arg(name);
            }
        }
    }
    Ok(())
}

/// Says what is not run, and why.
fn leave_out(runner: &mut Runner<'_>, what: &[(&str, &str)]) {
    for (name, why) in what {
        println!("SKIPPED: {name}: {why}");
        runner.tally.leave_out(format!("{name}: {why}"));
    }
}

/// What libtest is told to leave out.
fn skips<'a>(tests: &'a [(&str, &str)]) -> impl Iterator<Item = String> + 'a {
    tests.iter().map(|(test, _)| format!("--skip={test}"))
}

fn suppressions(workspace: &Workspace, tool: &str) -> String {
    let file: PathBuf = workspace.root.join("xtask/suppressions");
    format!(
        "suppressions={}",
        file.join(format!("{tool}.supp")).display()
    )
}

/// Runs the tests, and takes a report of the tool for a fault even where all tests passed.
fn watched(runner: &mut Runner<'_>, command: &mut Command) -> Result<()> {
    let mut reports = Vec::new();
    let tally = &mut runner.tally;
    let ended = child::watch(command, runner.deadline, true, &mut |_, line| {
        tally.line(line);
        if let Some(report) = report(line)
            && !reports.iter().any(|known| known == report)
        {
            reports.push(report.to_owned());
        }
    })?;
    if !ended.success() {
        runner.faults.push(ended.describe("cargo test"));
    }
    let more = reports.len().saturating_sub(REPORTS_MAX);
    reports.truncate(REPORTS_MAX);
    runner.faults.extend(reports);
    if more != 0 {
        runner.faults.push(format!("{more} more reports"));
    }
    Ok(())
}

/// What a line says that begins or sums up a tool's report.
fn report(line: &str) -> Option<&str> {
    if let Some(summary) = line.strip_prefix("SUMMARY: ") {
        return Some(summary);
    }
    // Valgrind's lines; those of a trace are indented.
    let (process, text) = line.strip_prefix("==")?.split_once("== ")?;
    let is_report = process.bytes().all(|b| b.is_ascii_digit())
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && !text.starts_with("Thread ");
    is_report.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_each_tool_are_known() {
        let summary = "SUMMARY: AddressSanitizer: 32 byte(s) leaked in 2 allocation(s).";
        assert_eq!(
            report(summary),
            Some("AddressSanitizer: 32 byte(s) leaked in 2 allocation(s).")
        );
        assert_eq!(
            report("==17== Invalid write of size 8"),
            Some("Invalid write of size 8")
        );
        assert_eq!(report("==17==    at 0x1: main (a.rs:1)"), None);
        assert_eq!(report("==17== Thread 2 io:"), None);
        assert_eq!(report("== asan: ok in 3 s"), None);
        assert_eq!(report("test a ... ok"), None);
    }

    #[test]
    fn programs_are_named_but_those_left_out() {
        let workspace = Workspace::find().unwrap();
        let mut command = Command::new("cargo");
        name_programs(&workspace, NOT_RUN, &mut command).unwrap();
        let named: Vec<_> = command.get_args().map(|arg| arg.to_owned()).collect();
        assert!(named.contains(&"net".into()) && named.contains(&"locks".into()));
        assert!(!named.contains(&"compile_fail".into()));
    }

    #[test]
    fn suppressions_are_there() {
        let workspace = Workspace::find().unwrap();
        for tool in ["lsan", "tsan", "valgrind"] {
            let option = suppressions(&workspace, tool);
            let file = option.strip_prefix("suppressions=").unwrap();
            assert!(std::path::Path::new(file).is_file(), "{file}");
        }
    }
}
