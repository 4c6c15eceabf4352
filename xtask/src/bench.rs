//! `cargo xtask bench`: builds what is measured, then runs the bench program.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools;
use crate::workspace::Workspace;

/// Arguments of `cargo xtask bench`, all of them the bench program's.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// [SUITE..] [--json FILE] [--svg FILE] and whatever else the bench program's --help lists
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds the program and the benches in release and runs the latter; true if it succeeded.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let asks = arguments
        .rest
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    if !asks {
        tools::provide(&[tools::PEERS, tools::OBSERVERS].concat(), true);
        if !succeeds(&mut workspace.cargo(["build", "--release", "--package", "corio-cli"]))? {
            return Ok(false);
        }
    }
    let mut bench = workspace.cargo(["run", "--release", "--package", "bench", "--"]);
    succeeds(
        bench
            .args(&arguments.rest)
            .env("CORIO_BIN", workspace.corio()),
    )
}

/// Runs a command on the caller's own terminal: figures are taken with nothing in between.
fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(status.success())
}
