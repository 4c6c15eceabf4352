//! The C interface as C programs see it: each program in `tests/c` is compiled against the installed
//! library by each compiler that is there, and run.
//!
//! `CORIO_CAPI_PREFIX` says where `cargo xtask capi` has installed it; else it is installed by this
//! program.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

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
            "--glib",
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
    let out = format!("{}-{tag}", name.replace('/', "-"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(out);
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(flags).arg("-o").arg(&out);
    command.arg("-I").arg(here().join("tests/c"));
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
        check(compiler, &name, flags);
    }
}

/// Compiles and runs a program whose tests must pass.
fn check(compiler: &str, name: &str, flags: &[&str]) {
    let said = program(compiler, name, flags);
    let passed = said.lines().filter(|line| line.starts_with("passed: "));
    assert!(passed.count() > 0, "{name}: {said}");
    print!("{name}:\n{said}");
}

fn has_glib() -> bool {
    let has_glib = prefix().join("include/corio-glib.h").exists();
    if !has_glib {
        println!("SKIP: the library is installed without GLib");
    }
    has_glib
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

// SPEC G1: the same tests, with contexts that are sources of main loops of GLib's.
#[test]
fn c_programs_in_main_loops_of_glib() {
    if has_glib() {
        all_with("gcc", &["-std=gnu11", "-include", "glib/poll.h"]);
    }
}

// SPEC G1
#[test]
fn a_context_is_a_source_among_others() {
    if has_glib() {
        check("gcc", "glib/source", &["-std=gnu11"]);
        check("gcc", "glib/source", &["-std=gnu11", "-fsanitize=address"]);
    }
}

#[test]
fn the_headers_are_c11_and_cxx17() {
    let mut headers = vec!["corio.h"];
    if has_glib() {
        headers.push("corio-glib.h");
    }
    let glib = pkg_config(&["--cflags"]);
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
        for header in &headers {
            let mut command = Command::new(compiler);
            command
                .args(language)
                .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"])
                .args(&glib);
            run(command.args(["-include", header, "/dev/null"]));
        }
    }
}

/// Compiles a program that is not linked; what it says there.
fn compiled(compiler: &str, name: &str, flags: &[&str]) -> String {
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(flags).args(["-S", "-o", "-"]);
    command.args(pkg_config(&["--cflags"]));
    run(command.arg(here().join("tests/c").join(name).with_extension("c")))
}

// SPEC C1, C2: the header is of use with fewer registers, and with either notation of assembly.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_header_names_no_register_that_is_not_there() {
    for compiler in ["gcc", "clang"].into_iter().filter(|name| is_there(name)) {
        for flags in [&["-mno-mmx"][..], &["-mno-sse"], &["-mgeneral-regs-only"]] {
            compiled(compiler, "compiled/plain", flags);
        }
        for flag in ["-masm=att", "-masm=intel"] {
            let text = compiled(compiler, "compiled/plain", &[flag]);
            for name in ["corio_enter_by_jump", "corio_yield_by_jump"] {
                assert!(text.contains(&format!("{name}@GOTPCREL")), "{text}");
            }
        }
    }
}

// SPEC C2: what a processor with AVX-512 has is known to be lost, be there one or not.
#[test]
#[cfg(target_arch = "x86_64")]
fn no_mask_stays_in_a_register_while_it_yields() {
    for compiler in ["gcc", "clang"].into_iter().filter(|name| is_there(name)) {
        let text = compiled(compiler, "compiled/mask", &["-mavx512f", "-mavx512dq"]);
        let (before, after) = text.split_once("corio_yield_by_jump").unwrap();
        assert!(before.contains("%k"), "no mask was made: {text}");
        for mask in (0..8).map(|number| format!("%k{number}")) {
            // It is written before it is read.
            if let Some(line) = after.lines().find(|line| line.contains(&mask)) {
                let line = line.split('#').next().unwrap_or_default().trim_end();
                assert!(
                    line.ends_with(&mask) && line.matches(&mask).count() == 1,
                    "{line}"
                );
            }
        }
    }
}

/// The example of docs/C.md is built as that says, and serves.
#[test]
fn the_example_is_built_by_pkg_config_alone() {
    let source = here().join("examples/echo.c");
    let document = std::fs::read_to_string(here().join("../../docs/C.md")).unwrap();
    let text = std::fs::read_to_string(&source).unwrap();
    assert!(document.contains(&text), "docs/C.md shows another example");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("echo");
    let mut command = Command::new("cc");
    command.arg(&source).arg("-o").arg(&out);
    run(command.args(pkg_config(&["--cflags", "--libs"])));

    let disk = here().join("Cargo.toml");
    let mut child = Command::new(out)
        .arg(&disk)
        .env("LD_LIBRARY_PATH", prefix().join("lib"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || said.next().unwrap().unwrap();
    let port = line().strip_prefix("port ").unwrap().parse().unwrap();
    let size = std::fs::metadata(&disk).unwrap().len();
    assert_eq!(line(), format!("{}: {size} bytes, read", disk.display()));
    let clients = [(); 3].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
    for (mut client, text) in clients.iter().zip(["one", "two", "three"]) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(text.as_bytes()).unwrap();
    }
    for (mut client, text) in clients.iter().zip(["one", "two", "three"]) {
        let mut back = vec![0; text.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The functions that the headers declare.
fn declared() -> Vec<String> {
    let mut header = std::fs::read_to_string(here().join("include/corio.h")).unwrap();
    if has_glib() {
        header += &std::fs::read_to_string(here().join("include/corio-glib.h")).unwrap();
    }
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

/// What cannot be misused: it takes nothing, or all that it takes is right.
const NOT_TO_BE_MISUSED: [&str; 14] = [
    "aio_context_new",
    "aio_wait_kick",
    "corio_error_free",
    "corio_error_get_message",
    "corio_iothread_new",
    "defer_call_begin",
    "qemu_coroutine_inc_pool_size",
    "qemu_coroutine_self",
    "qemu_get_aio_context",
    "qemu_get_current_aio_context",
    "qemu_in_coroutine",
    "shres_create",
    "shres_destroy",
    "timer_free",
];

/// What programs name another way: by a macro, or by the function that it is the way of.
const NAMED: [(&str, &str); 3] = [
    ("aio_bh_schedule_oneshot_full", "aio_bh_schedule_oneshot"),
    ("corio_enter_by_jump", "qemu_coroutine_enter"),
    ("corio_yield_by_jump", "qemu_coroutine_yield"),
];

/// The programs' text.
fn sources() -> String {
    let dirs = [here().join("tests/c"), here().join("tests/c/glib")];
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    let texts = paths.filter(|path| path.extension() == Some(OsStr::new("c")));
    texts
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

#[test]
fn every_function_is_called_by_a_program_and_misused_by_one() {
    let sources = sources();
    let mut wanting = Vec::new();
    for name in declared() {
        let named = NAMED.iter().find(|(of, _)| *of == name);
        let named = named.map_or(name.as_str(), |(_, named)| named);
        // In front of it no other name's letters.
        let is_called = [" ", "(", "!", "\t"].iter().any(|before| {
            sources.contains(&format!("{before}{named}("))
                || sources.contains(&format!("{before}{named},"))
        });
        let is_misused = NOT_TO_BE_MISUSED.contains(&named)
            || sources.contains(&format!("MISUSED({name}, "))
            || sources.contains(&format!("\"{named}: "))
            || sources.contains(&format!("CHECK_DIES({named}, "));
        if !is_called {
            wanting.push(format!("{name} is not called"));
        }
        if !is_misused {
            wanting.push(format!("{name} is not misused"));
        }
    }
    assert!(wanting.is_empty(), "{}", wanting.join("\n"));
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
