//! What is of a whole process, its stacks above all. Tests run in processes of their own, which some
//! of them end; a test here is the parent that looks on.

mod attacks_stack;
mod overflow;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod raw_switch;
mod stacks;

use std::process::{Command, Output};

/// A command that runs one test of this program, given with its module, in a process of its own.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

/// Runs it, and sees to it that there is such a test.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("running 1 test"), "{said}");
    output
}
