//! `cargo xtask capi --prefix DIR`: the C library, installed.
//!
//! Rust makes `libcorio.a`; the shared library is linked of it by the C compiler, as only so its
//! symbols get a version of ours: the header's functions are `CORIO_1`, and all else is local.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, read};

/// What the libraries need of the system.
const SYSTEM_LIBS: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

/// What of the package is for programs with GLib.
pub(crate) const GLIB: &str = "corio-capi/glib";

/// Arguments of `cargo xtask capi`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to install: DIR/lib, DIR/include
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
    /// Build without optimisation
    #[arg(long)]
    debug: bool,
    /// Build for programs with AddressSanitizer
    #[arg(long)]
    asan: bool,
    /// Add what is for programs with GLib: corio-glib.h
    #[arg(long)]
    glib: bool,
    /// Packages that are named to cargo, too.
    #[arg(skip)]
    beside: Vec<&'static str>,
}

impl Arguments {
    /// What the tests use. With the packages named whose tests are built, what it depends on is
    /// there already.
    pub(crate) fn for_tests(prefix: PathBuf, beside: &[&'static str]) -> Self {
        Self {
            prefix,
            debug: true,
            asan: false,
            // As for the tests of corio-glib, which cannot be built without.
            glib: true,
            beside: beside.to_vec(),
        }
    }

    /// Where it is installed.
    pub(crate) fn prefix(&self) -> &Path {
        &self.prefix
    }
}

/// Builds the library.
pub(crate) fn build(workspace: &Workspace, arguments: &Arguments) -> Command {
    let mut build = match arguments.asan {
        true => workspace.cargo_apart("capi-asan", ["build", "--features", "corio-capi/asan"]),
        false => workspace.cargo(["build"]),
    };
    build.args(["--package", "corio-capi", "--lib"]);
    for package in &arguments.beside {
        build.args(["--package", package]);
    }
    if arguments.glib {
        build.args(["--features", GLIB]);
    }
    if !arguments.debug {
        build.arg("--release");
    }
    build
}

/// Builds and installs; true if that succeeded.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    if !succeeds(&mut build(workspace, arguments))? {
        return Ok(false);
    }
    let target = match arguments.asan {
        true => workspace.target.join("capi-asan"),
        false => workspace.target.clone(),
    };
    let profile = if arguments.debug { "debug" } else { "release" };
    let archive = target.join(profile).join("libcorio_capi.a");
    let prefix = std::path::absolute(&arguments.prefix).context("--prefix")?;
    install(workspace, &archive, &prefix, arguments.glib)
}

/// Builds the C side of the bench's suite `capi` against a library that is installed for it; None if
/// that failed.
pub(crate) fn build_rounds(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let prefix = workspace.target.join("bench-capi");
    let arguments = Arguments {
        prefix: prefix.clone(),
        debug: false,
        asan: false,
        glib: false,
        beside: Vec::new(),
    };
    if !run(workspace, &arguments)? {
        return Ok(None);
    }
    let (lib, rounds) = (prefix.join("lib"), prefix.join("rounds.so"));
    let mut compile = Command::new("cc");
    compile
        .args(["-O2", "-fno-plt", "-shared", "-fPIC", "-o"])
        .arg(&rounds);
    compile.arg(workspace.root.join("bench/src/capi/rounds.c"));
    compile.arg("-I").arg(prefix.join("include"));
    compile.arg("-L").arg(&lib).arg("-lcorio");
    compile.arg(format!("-Wl,-rpath,{}", lib.display()));
    Ok(succeeds(&mut compile)?.then_some(rounds))
}

fn install(workspace: &Workspace, archive: &Path, prefix: &Path, glib: bool) -> Result<bool> {
    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    for dir in [&lib.join("pkgconfig"), &include] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut declarations = String::new();
    for header in headers(glib) {
        let text = read(
            &workspace
                .root
                .join("crates/corio-capi/include")
                .join(header),
        )?;
        write(&include.join(header), &text)?;
        declarations.push_str(&text);
    }
    let installed = lib.join("libcorio.a");
    fs::copy(archive, &installed).with_context(|| format!("cannot copy {}", archive.display()))?;
    let functions = functions(&declarations);
    ensure!(!functions.is_empty(), "the headers declare nothing");
    let map = lib.join("corio.map");
    write(
        &map,
        &format!(
            "CORIO_1 {{\n  global: {};\n  local: *;\n}};\n",
            functions.join("; ")
        ),
    )?;
    let mut link = Command::new("cc");
    link.args(["-shared", "-o"]).arg(lib.join("libcorio.so"));
    link.arg("-Wl,-soname,libcorio.so");
    link.arg(format!("-Wl,--version-script={}", map.display()));
    link.args(["-Wl,--gc-sections", "-Wl,-z,relro,-z,now"]);
    link.arg("-Wl,--whole-archive").arg(&installed);
    link.arg("-Wl,--no-whole-archive");
    link.args(SYSTEM_LIBS.split(' '));
    if glib {
        link.arg("-lglib-2.0");
    }
    if !succeeds(&mut link)? {
        return Ok(false);
    }
    fs::remove_file(&map).with_context(|| format!("cannot remove {}", map.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    write(&lib.join("pkgconfig/corio.pc"), &pc(prefix, version, glib))?;
    Ok(true)
}

/// What is installed of the directory `include`.
fn headers(glib: bool) -> &'static [&'static str] {
    match glib {
        true => &["corio.h", "corio-glib.h"],
        false => &["corio.h"],
    }
}

fn pc(prefix: &Path, version: &str, glib: bool) -> String {
    // Its header includes GLib's.
    let requires = if glib { "Requires: glib-2.0\n" } else { "" };
    format!(
        "prefix={}\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
         Name: corio\nDescription: Coroutines and the AioContext event loop, for C\n\
         Version: {version}\n{requires}Cflags: -I${{includedir}} -pthread\nLibs: -L${{libdir}} -lcorio\n\
         Libs.private: {SYSTEM_LIBS}\n",
        prefix.display()
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(status.success())
}

/// The functions that a header declares: what is followed by a parenthesis on a line that begins a
/// declaration.
pub(crate) fn functions(header: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names: Vec<_> = header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic()))
        .filter(|line| {
            !["typedef", "static", "extern"]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .filter_map(|line| {
            let before = line.split_once('(')?.0;
            let start = before.rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
            before.get(start..).filter(|name| !name.is_empty())
        })
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn functions_are_found_in_a_header() {
        let header = "/* f(x) */\n#define g(x) x\ntypedef int h(void);\nstatic inline int i(int a)\n\
                      extern \"C\" {\nint *j(void);\nvoid k(int a,\n       int (*b)(int));\n";
        assert_eq!(functions(header), ["j", "k"]);
    }
}
