//! The `corio` program: serves disks to other programs and machines.
//!
//! ```text
//! main     exit codes: 0 well, 1 an error (one line on stderr), 2 a wrong command line
//! args     the command line, and the manual
//! report   errors as one line
//! serve/   everything `corio serve` does
//! ```

#![forbid(unsafe_code)]

mod args;
mod report;
mod serve;
mod size;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};

/// The command line cannot be understood.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let Command::Serve(args) = cli.command;
    match serve::run(&args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{}", report::line(&error));
            ExitCode::FAILURE
        }
    }
}

/// Help and version are asked for and go to standard output; the rest is an error in one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nothing is left to do if standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            eprintln!("corio: no command is given; try 'corio serve', or see 'corio --help'");
            ExitCode::from(EXIT_USAGE)
        }
        _ => {
            let serve = std::env::args_os()
                .nth(1)
                .is_some_and(|word| word == "serve");
            let command = if serve { "corio serve" } else { "corio" };
            eprintln!("{}", report::usage_line(&error.to_string(), command));
            ExitCode::from(EXIT_USAGE)
        }
    }
}
