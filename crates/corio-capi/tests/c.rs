//! The C interface as C programs see it: each program in `tests/c` is compiled against the installed
//! library by each compiler that is there, and run.
//!
//! `CORIO_CAPI_PREFIX` says where `cargo xtask capi` has installed it; else it is installed by this
//! program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What every program is compiled with.
const FLAGS: &[&str] = &["-Wall", "-Wextra", "-Werror", "-g", "-O1", "-pthread"];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the library is installed.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        if let Some(prefix) = std::env::var_os("CORIO_CAPI_PREFIX") {
            return prefix.into();
        }
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--",
            "capi",
            "--debug",
        ]);
        run(command.arg("--prefix").arg(&prefix));
        prefix
    })
}

fn output(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Runs what must succeed; its standard output.
fn run(command: &mut Command) -> String {
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn is_there(compiler: &str) -> bool {
    Command::new(compiler).arg("--version").output().is_ok()
}

/// What pkg-config has to say of the library.
fn pkg_config(asked: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let flags = run(command.args(asked).arg("corio"));
    flags.split_whitespace().map(str::to_owned).collect()
}

/// Compiles a program, and runs it.
fn program(compiler: &str, name: &str, flags: &[&str]) -> String {
    let tag = [&[compiler], flags]
        .concat()
        .join("")
        .replace(['=', '/'], "-");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{tag}"));
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(flags).arg("-o").arg(&out);
    command.arg(here().join("tests/c").join(name).with_extension("c"));
    command.args(pkg_config(&["--cflags", "--libs"]));
    run(command.arg(format!("-Wl,-rpath,{}", prefix().join("lib").display())));
    run(&mut Command::new(out))
}

fn programs() -> Vec<String> {
    let dir = here().join("tests/c");
    let entries = std::fs::read_dir(&dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = paths
        .filter(|path| path.extension() == Some(OsStr::new("c")))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Compiles and runs each program with `flags`.
fn all_with(compiler: &str, flags: &[&str]) {
    if !is_there(compiler) {
        println!("SKIP: {compiler} is absent");
        return;
    }
    for name in programs() {
        let said = program(compiler, &name, flags);
        let passed = said.lines().filter(|line| line.starts_with("passed: "));
        assert!(passed.count() > 0, "{name}: {said}");
        print!("{name}:\n{said}");
    }
}

// SPEC C1, C2, C3, A1, A2: the tests are named in the programs.
#[test]
fn c_programs_by_gcc() {
    all_with("gcc", &["-std=gnu11"]);
}

// SPEC C1, C2, C3, A1, A2: as by gcc.
#[test]
fn c_programs_by_clang() {
    all_with("clang", &["-std=gnu11"]);
}

// SPEC C11
#[test]
fn c_programs_under_address_sanitizer() {
    all_with("gcc", &["-std=gnu11", "-fsanitize=address"]);
}

#[test]
fn the_header_is_c11_and_cxx17() {
    let header = prefix().join("include/corio.h");
    for (compiler, language) in [
        ("gcc", ["-xc", "-std=c11"]),
        ("clang", ["-xc", "-std=c11"]),
        ("g++", ["-xc++", "-std=c++17"]),
        ("clang++", ["-xc++", "-std=c++17"]),
    ] {
        if !is_there(compiler) {
            println!("SKIP: {compiler} is absent");
            continue;
        }
        let mut command = Command::new(compiler);
        command
            .args(language)
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]);
        run(command.arg(&header));
    }
}

/// The functions that the header declares.
fn declared() -> Vec<String> {
    let header = std::fs::read_to_string(here().join("include/corio.h")).unwrap();
    let mut names: Vec<_> = functions(&header).map(str::to_owned).collect();
    names.sort();
    names
}

/// What is followed by a parenthesis on a line that begins a declaration.
fn functions(header: &str) -> impl Iterator<Item = &str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic()))
        .filter(|line| {
            !["typedef", "static", "extern"]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .filter_map(move |line| {
            let before = line.split_once('(')?.0;
            let start = before.rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
            before.get(start..).filter(|name| !name.is_empty())
        })
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let library = prefix().join("lib/libcorio.so");
    let symbols = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library));
    let mut exported: Vec<_> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .filter(|name| *name != "CORIO_1")
        .map(|name| match name.split_once("@@") {
            Some((name, "CORIO_1")) => name.to_owned(),
            _ => panic!("{name} has no version"),
        })
        .collect();
    exported.sort();
    assert_eq!(exported, declared());
}
