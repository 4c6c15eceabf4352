//! `cargo xtask fuzz SECONDS`: random input for each fuzz target, under AddressSanitizer.
//!
//! The targets are the files of `fuzz/fuzz_targets`. They are built as cargo-fuzz builds them, but
//! on the stable compiler: `RUSTC_BOOTSTRAP` lets it take the flags that are not stable.
//! `fuzz/TARGET.dict` and `fuzz/seeds/TARGET` help a target on if they are there. What a run learns
//! stays in `target/fuzz/corpus/TARGET` and is where the next one starts; an input that breaks
//! something is kept in `target/fuzz/artifacts/TARGET`.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::child::{self, Stream};
use crate::tools;
use crate::workspace::Workspace;

/// The longest input, in bytes: enough for a handshake with some options and a few requests.
const INPUT_MAX: u32 = 4096;
/// An input that takes longer is a finding.
const INPUT_TIME_MAX_S: u32 = 10;
/// An input that needs more memory is a finding: lengths from outside must not be allocated
/// unchecked.
const MEMORY_MAX_MIB: u32 = 1024;
/// How long the build may take.
const BUILD_MAX: Duration = Duration::from_secs(480);
/// How long a target may go on past its time before it counts as hung.
const GRACE: Duration = Duration::from_secs(60);

/// What the compiler is told beside the usual: coverage counters for libFuzzer, and
/// AddressSanitizer.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to run each target
    seconds: u32,
    /// Targets to run; all if none is named
    targets: Vec<String>,
    /// Do not install missing programs
    #[arg(long)]
    no_install: bool,
}

/// Runs the fuzzer for the command line; true if nothing broke.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let absent = tools::provide(tools::COMPILER, !arguments.no_install);
    ensure!(
        absent.is_empty(),
        "libFuzzer cannot be built without a C++ compiler"
    );
    let deadline =
        Instant::now() + BUILD_MAX + GRACE + Duration::from_secs(u64::from(arguments.seconds) * 64);
    let outcome = fuzz(workspace, arguments.seconds, &arguments.targets, deadline)?;
    for reason in &outcome.faults {
        println!("fuzz: {reason}");
    }
    println!(
        "fuzz: {} executions, {} faults",
        outcome.executions,
        outcome.faults.len()
    );
    Ok(outcome.faults.is_empty())
}

/// What a run of all targets found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) executions: u64,
    pub(crate) faults: Vec<String>,
}

/// Builds the targets and runs each for `seconds`.
pub(crate) fn fuzz(
    workspace: &Workspace,
    seconds: u32,
    wanted: &[String],
    deadline: Instant,
) -> Result<Outcome> {
    let mut targets = targets(workspace)?;
    for name in wanted {
        ensure!(
            targets.contains(name),
            "no fuzz target {name}; there are: {}",
            targets.join(" ")
        );
    }
    targets.retain(|name| wanted.is_empty() || wanted.contains(name));
    let triple = workspace.host()?;
    let built = child::watch(
        &mut build(workspace, &triple),
        deadline.min(Instant::now() + BUILD_MAX),
        true,
        &mut |_, _| {},
    )?;
    let mut outcome = Outcome::default();
    if !built.success() {
        outcome.faults.push(built.describe("building the targets"));
        return Ok(outcome);
    }
    for target in targets {
        println!("fuzz: {target} for {seconds} s");
        run_target(workspace, &triple, &target, seconds, deadline, &mut outcome)?;
    }
    Ok(outcome)
}

/// Builds the targets. With the triple given, build scripts and macros go without the sanitizer.
pub(crate) fn build(workspace: &Workspace, triple: &str) -> Command {
    let mut command = workspace.cargo_apart(
        "fuzz",
        ["build", "--release", "--package", "corio-fuzz", "--target"],
    );
    command
        .arg(triple)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        // Link-time optimisation merges the counters' sections away.
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    command
}

fn run_target(
    workspace: &Workspace,
    triple: &str,
    target: &str,
    seconds: u32,
    deadline: Instant,
    outcome: &mut Outcome,
) -> Result<()> {
    let home = workspace.target.join("fuzz");
    let corpus = make(home.join("corpus").join(target))?;
    let artifacts = make(home.join("artifacts").join(target))?;
    let program = home.join(triple).join("release").join(target);
    let mut command = Command::new(&program);
    command
        .current_dir(&workspace.root)
        .arg(&corpus)
        .args(Some(workspace.root.join("fuzz/seeds").join(target)).filter(|seeds| seeds.is_dir()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_MAX}"))
        .arg(format!("-timeout={INPUT_TIME_MAX_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX_MIB}"))
        .arg(format!("-malloc_limit_mb={}", MEMORY_MAX_MIB / 4))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-verbosity=0"]);
    let dictionary = workspace.root.join("fuzz").join(format!("{target}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let limit = Instant::now() + Duration::from_secs(u64::from(seconds)) + GRACE;
    let mut executions = 0;
    let ended = child::watch(
        &mut command,
        deadline.min(limit),
        true,
        &mut |stream, line| {
            if stream == Stream::Err
                && let Some(count) = line.strip_prefix("stat::number_of_executed_units:")
            {
                executions = count.trim().parse().unwrap_or(0);
            }
        },
    )?;
    println!("fuzz: {target}: {executions} executions");
    outcome.executions += executions;
    if !ended.success() {
        outcome.faults.push(format!(
            "{} (inputs that broke it are in {}; run {} with one as its argument)",
            ended.describe(target),
            artifacts.display(),
            program.display()
        ));
    } else if executions == 0 {
        outcome.faults.push(format!("{target} ran nothing"));
    }
    Ok(())
}

/// The names of the fuzz targets.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    ensure!(!names.is_empty(), "no fuzz targets in {}", dir.display());
    names.sort();
    Ok(names)
}

fn make(dir: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
