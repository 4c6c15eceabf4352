//! The project's own commands: `cargo xtask <command>`.
//!
//! Each command answers one question a contributor or the continuous integration asks: do the tests
//! pass, do the layers hold, how fast is it, does the fuzzer find a crash. `docs/HACKING.md` lists
//! them with examples.

mod ahead;
mod bench;
mod capi;
mod child;
mod docs;
mod fuzz;
mod jobs;
mod layers;
mod loom;
mod planted;
mod programs;
mod sanitize;
mod say;
mod soak;
mod tally;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Corio's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check and test there is, or only the jobs named
    Test(test::Arguments),
    /// Check that no module and no crate imports from a layer above its own
    Layers,
    /// Model-check the runtime's protocols with loom, and check that the models catch planted bugs
    Loom,
    /// Run the runtime's tests under AddressSanitizer, valgrind and ThreadSanitizer
    Sanitize(sanitize::Arguments),
    /// Run what takes longer than the tests may: the storm, a million wakes on each monitor
    Soak(soak::Arguments),
    /// Feed each fuzz target random input for SECONDS
    Fuzz(fuzz::Arguments),
    /// Build the C library and install it, with its header and pkg-config file
    Capi(capi::Arguments),
    /// Measure Corio beside its peers; arguments go to the bench program
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command. `Ok(false)` means that it did its work and found something wrong, which it has
/// reported.
fn run(arguments: Arguments) -> Result<bool> {
    let workspace = Workspace::find()?;
    match arguments.command {
        Command::Test(arguments) => test::run(&workspace, &arguments),
        Command::Layers => layers::run(&workspace),
        Command::Loom => loom::run(&workspace),
        Command::Sanitize(arguments) => sanitize::run(&workspace, &arguments),
        Command::Soak(arguments) => soak::run(&workspace, &arguments),
        Command::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Command::Capi(arguments) => capi::run(&workspace, &arguments),
        Command::Bench(arguments) => bench::run(&workspace, &arguments),
    }
}
