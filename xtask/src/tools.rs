//! Programs from the distribution that tests and figures use, and how to get them.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::child;

/// How long the package manager may take.
const INSTALL_MAX: Duration = Duration::from_secs(300);

/// A program, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Real NBD clients and servers, which the tests and the figures meet.
pub(crate) const PEERS: &[Tool] = &[
    tool("qemu-img", "qemu-utils"),
    tool("qemu-io", "qemu-utils"),
    tool("qemu-nbd", "qemu-utils"),
    tool("nbdinfo", "libnbd-bin"),
    tool("nbdcopy", "libnbd-bin"),
    tool("nbdkit", "nbdkit"),
    tool("fio", "fio"),
];

/// What building the bridge to GLib needs: its headers, which come with this program.
pub(crate) const GLIB: &[Tool] = &[
    tool("glib-genmarshal", "libglib2.0-dev"),
    tool("pkg-config", "pkg-config"),
];

/// Programs that look into a running one.
pub(crate) const OBSERVERS: &[Tool] = &[tool("strace", "strace"), tool("valgrind", "valgrind")];

/// Watches each access of a program.
pub(crate) const VALGRIND: &[Tool] = &[tool("valgrind", "valgrind")];

/// Gives the sanitizers the names of functions, by which they suppress.
pub(crate) const SYMBOLIZER: &[Tool] = &[tool("llvm-symbolizer", "llvm")];

/// What building the fuzz targets needs beside Rust: libFuzzer is C++.
pub(crate) const COMPILER: &[Tool] = &[tool("c++", "g++")];

/// What the tests of the C library are compiled with, beside the compiler that Rust links with.
pub(crate) const C_COMPILERS: &[Tool] = &[
    tool("clang", "clang"),
    tool("c++", "g++"),
    tool("pkg-config", "pkg-config"),
];

/// Whether `program` is on the path.
pub(crate) fn present(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The tools of `wanted` that are not there.
pub(crate) fn absent(wanted: &[Tool]) -> Vec<Tool> {
    wanted
        .iter()
        .copied()
        .filter(|tool| !present(tool.program))
        .collect()
}

/// The packages of `tools`, each once.
fn packages(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs what is missing of `wanted` if that is allowed here, and returns what is missing
/// afterwards. Says what it does; never fails, as a machine without these programs can still run
/// the rest.
pub(crate) fn provide(wanted: &[Tool], allow_install: bool) -> Vec<Tool> {
    let missing = absent(wanted);
    if missing.is_empty() {
        return missing;
    }
    let packages = packages(&missing);
    let refusal = if !allow_install {
        Some("--no-install was given")
    } else if !rustix::process::geteuid().is_root() {
        Some("not root")
    } else if !present("apt-get") {
        Some("no apt-get here")
    } else {
        None
    };
    match refusal {
        Some(why) => println!("xtask: not installing {}: {why}", packages.join(" ")),
        None => {
            println!("xtask: installing {}", packages.join(" "));
            // An index that cannot be refreshed may still do.
            let _ = apt(&["update"]);
            let _ = apt(&[
                &["install", "--yes", "--no-install-recommends"],
                &packages[..],
            ]
            .concat());
        }
    }
    let missing = absent(wanted);
    for Tool { program, package } in &missing {
        println!("xtask: {program} is absent (Debian package {package}): what needs it is skipped");
    }
    missing
}

fn apt(args: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "--quiet"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive");
    child::watch(
        &mut command,
        Instant::now() + INSTALL_MAX,
        true,
        &mut |_, _| {},
    )
    .is_ok_and(|ended| ended.success())
}

/// Adds rustfmt and clippy to a toolchain that came without them, and says which are still missing.
pub(crate) fn provide_components() -> Vec<&'static str> {
    let absent = absent_components();
    if absent.is_empty() || !present("rustup") {
        return absent;
    }
    let mut command = Command::new("rustup");
    command.args(["component", "add"]).args(&absent);
    // Judged by its effect, just below.
    let _ = child::watch(
        &mut command,
        Instant::now() + INSTALL_MAX,
        true,
        &mut |_, _| {},
    );
    absent_components()
}

/// A component counts as present if its program starts: rustup puts stand-ins where none is
/// installed.
fn absent_components() -> Vec<&'static str> {
    let starts = |program: &str| {
        Command::new(program)
            .arg("--version")
            .output()
            .is_ok_and(|out| out.status.success())
    };
    [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")]
        .into_iter()
        .filter(|(_, program)| !starts(program))
        .map(|(component, _)| component)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_asked_for_once() {
        assert_eq!(
            packages(PEERS),
            ["fio", "libnbd-bin", "nbdkit", "qemu-utils"]
        );
    }

    #[test]
    fn presence_is_seen_both_ways() {
        assert!(present("sh"));
        assert!(!present("no-such-program-as-this"));
        assert_eq!(
            absent(&[tool("sh", "dash"), tool("no-such-program", "none")]).len(),
            1
        );
    }

    #[test]
    fn refused_installation_still_names_what_is_missing() {
        let wanted = [tool("no-such-program", "none")];
        assert_eq!(provide(&wanted, false), wanted);
    }
}
