//! Every figure of Corio beside its peers, one program.
//!
//! ```text
//! cargo run --release -p bench -- [SUITE..] [--json FILE] [--svg FILE] [--rounds N] [--quick] [--check]
//! ```
//!
//! A suite measures Corio and its peers in the same call, in interleaved rounds, and takes medians;
//! a stored time is never compared with. Each figure leaves as one JSON line ([`report`]), all of
//! them as a table and as one SVG of ratios, and the limits of [`targets`] are held against them.
//!
//! Exit codes: 0 measured (whatever the targets say), 1 a suite failed, the floor is no floor, or
//! `--check` and a target was missed; 2 usage.

mod alloc;
mod capi;
mod contest;
mod coroutine;
mod disk;
mod event_loop;
mod nbd;
mod place;
mod report;
mod stats;
mod sync;
mod tally;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use coroutine::cold::Alone;

/// Rounds below which a median is no figure.
const ROUNDS_MIN: usize = 5;
/// Rounds of a run that only shows that the bench works.
const ROUNDS_QUICK: usize = 3;

#[derive(Parser)]
#[command(name = "bench", about = "Every figure of Corio beside its peers")]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Suites to run, all by default
    #[arg(value_name = "SUITE")]
    suites: Vec<Suite>,
    /// Write the JSON lines here and the table to stdout, instead of the lines to stdout and the
    /// table to stderr
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the picture of all ratios goes
    #[arg(long, value_name = "FILE", default_value = "target/bench.svg")]
    svg: PathBuf,
    /// Interleaved rounds a median is taken of
    #[arg(long, value_name = "N", default_value_t = ROUNDS_MIN)]
    rounds: usize,
    /// Show that the bench works: fewer, shorter rounds on less data; not figures to quote
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Of the exercises that are done in this process, only those with figures of these names
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// The corio program to measure; else that of the variable CORIO_BIN, else the workspace's own
    /// (built first when run by cargo)
    #[arg(long, value_name = "PATH")]
    corio: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// The least an NBD server can do; a peer of the nbd suite
    #[command(hide = true)]
    FloorServer {
        /// The raw file to serve
        file: PathBuf,
        /// The Unix socket to listen on
        #[arg(long)]
        unix: PathBuf,
        /// Take writes, too
        #[arg(long)]
        writable: bool,
    },
    /// Our side of the disk suite, in a process of its own
    #[command(hide = true)]
    DiskLoad(disk::load::Load),
    /// One measurement in this process, which must not have seen a coroutine before; part of the
    /// coroutine suite
    #[command(hide = true)]
    Alone {
        what: Alone,
        /// Of how many coroutines or stacks
        count: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    Coroutine,
    Sync,
    Loop,
    Capi,
    Disk,
    Nbd,
}

/// What every suite needs to know.
struct Plan {
    rounds: usize,
    quick: bool,
    /// See [`Args`].
    only: Vec<String>,
    corio: Option<PathBuf>,
}

impl Plan {
    fn asks_for(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.command {
        Some(Command::FloorServer {
            file,
            unix,
            writable,
        }) => nbd::floor::serve(file, unix, *writable).map(|()| true),
        Some(Command::Alone { what, count }) => what.measure(*count).map(|value| {
            println!("{value}");
            true
        }),
        Some(Command::DiskLoad(load)) => load.run().and_then(|done| {
            println!("{}", serde_json::to_string(&done)?);
            Ok(true)
        }),
        None => measure(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the suites; false when `--check` was given and a target was missed.
fn measure(args: &Args) -> anyhow::Result<bool> {
    if !args.quick {
        ensure!(
            args.rounds >= ROUNDS_MIN,
            "--rounds must be at least {ROUNDS_MIN}"
        );
        if cfg!(debug_assertions) {
            bail!(
                "this is a debug build, whose figures mean nothing: run it with --release (or --quick)"
            );
        }
    }
    let plan = Plan {
        rounds: if args.quick {
            ROUNDS_QUICK
        } else {
            args.rounds
        },
        quick: args.quick,
        only: args.only.clone(),
        corio: args
            .corio
            .clone()
            .or_else(|| std::env::var_os("CORIO_BIN").map(PathBuf::from)),
    };
    let mut report = report::Report::new(args.json.as_deref())?;
    let suites = match args.suites.as_slice() {
        [] => Suite::value_variants(),
        named => named,
    };
    // A suite that fails must not take the figures of those before it along.
    let outcome = suites.iter().try_for_each(|suite| match suite {
        Suite::Coroutine => coroutine::run(&plan, &mut report),
        Suite::Sync => sync::run(&plan, &mut report),
        Suite::Loop => event_loop::run(&plan, &mut report),
        Suite::Capi => capi::run(&plan, &mut report),
        Suite::Disk => disk::run(&plan, &mut report),
        Suite::Nbd => nbd::run(&plan, &mut report),
    });
    report.print_table()?;
    let missed = report.print_targets()?;
    report
        .draw(&args.svg)
        .with_context(|| format!("cannot draw {}", args.svg.display()))?;
    if args.quick && outcome.is_ok() {
        report.note("--quick: these show that the bench works and are not figures to quote")?;
    }
    outcome?;
    Ok(missed == 0 || !args.check)
}

#[cfg(test)]
mod tests {
    use super::{Alone, Args, Command, Suite};
    use clap::Parser as _;

    #[test]
    fn suites_and_options_parse() {
        let args =
            Args::try_parse_from(["bench", "nbd", "loop", "coroutine", "--rounds", "7"]).unwrap();
        assert_eq!(args.suites, [Suite::Nbd, Suite::Loop, Suite::Coroutine]);
        assert_eq!(args.rounds, 7);
        assert!(args.command.is_none());
    }

    #[test]
    fn floor_server_is_a_command_and_not_a_suite() {
        let args =
            Args::try_parse_from(["bench", "floor-server", "disk", "--unix", "sock"]).unwrap();
        assert!(matches!(args.command, Some(Command::FloorServer { .. })));
        assert!(Args::try_parse_from(["bench", "floor"]).is_err());
    }

    #[test]
    fn alone_is_a_command_and_not_a_suite() {
        let args = Args::try_parse_from(["bench", "alone", "bare", "20000"]).unwrap();
        let Some(Command::Alone { what, count }) = args.command else {
            panic!("it is a command");
        };
        assert_eq!((what, count), (Alone::Bare, 20_000));
        assert!(Args::try_parse_from(["bench", "alone", "nothing", "1"]).is_err());
    }

    #[test]
    fn quick_has_its_own_rounds() {
        assert!(Args::try_parse_from(["bench", "--quick", "--rounds", "9"]).is_err());
    }
}
