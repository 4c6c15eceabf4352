//! `cargo xtask bench`: builds what is measured, then runs the bench program.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{capi, tools};

/// Arguments of `cargo xtask bench`, all of them the bench program's.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// [SUITE..] [--json FILE] [--svg FILE] and whatever else the bench program's --help lists
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds the benches in release, and the program if it is measured; runs the former; true if they
/// succeeded.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let asks = arguments
        .rest
        .iter()
        .any(|argument| argument == "--help" || argument == "-h");
    let serves = !asks && runs("nbd", &arguments.rest);
    if serves {
        tools::provide(&[tools::PEERS, tools::OBSERVERS].concat(), true);
        if !succeeds(&mut workspace.cargo(["build", "--release", "--package", "corio-cli"]))? {
            return Ok(false);
        }
    }
    let mut bench = workspace.cargo(["run", "--release", "--package", "bench", "--"]);
    bench.args(&arguments.rest);
    if !asks && runs("capi", &arguments.rest) {
        match capi::build_rounds(workspace)? {
            Some(library) => bench.env("CORIO_CAPI_ROUNDS", library),
            None => return Ok(false),
        };
    }
    if serves {
        bench.env("CORIO_BIN", workspace.corio());
    }
    succeeds(&mut bench)
}

/// Whether a suite runs that needs something to be built: it is named, or no suite is.
fn runs(suite: &str, arguments: &[OsString]) -> bool {
    let named = |suite| arguments.iter().any(|argument| argument == suite);
    named(suite)
        || !["coroutine", "sync", "loop", "capi", "disk", "nbd"]
            .into_iter()
            .any(named)
}

/// Runs a command on the caller's own terminal: figures are taken with nothing in between.
fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::runs;
    use std::ffi::OsString;

    #[test]
    fn peers_are_provided_only_for_the_suite_that_has_them() {
        let runs = |text: &str| {
            let arguments: Vec<_> = text.split_whitespace().map(OsString::from).collect();
            runs("nbd", &arguments)
        };
        assert!(runs("") && runs("--quick") && runs("--json nowhere"));
        assert!(runs("nbd") && runs("coroutine nbd"));
        assert!(
            !runs("capi") && !runs("coroutine") && !runs("coroutine sync --quick") && !runs("loop")
        );
    }
}
