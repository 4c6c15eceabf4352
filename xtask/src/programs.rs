//! The test programs of the workspace's packages: which there are, how they are built, and how one
//! is run.
//!
//! All that the chosen jobs need is built by one command. Cargo builds a dependency with the
//! features that the packages named want of it together: package by package, the runtime and much
//! of what it depends on would be built again for each of them. Cargo tells of each program when it
//! is there, so that the first is run while others are built; `cargo test` would run none before
//! all are built, nor beside another build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{Workspace, entries};

/// The packages with the runtime's test programs.
pub(crate) const RUNTIME: &[&str] = &["corio", "corio-tests"];

/// Builds the test programs of these packages.
pub(crate) fn build(workspace: &Workspace, packages: &[&str]) -> Command {
    let mut command = workspace.cargo(["test", "--no-run", "--no-fail-fast", "--tests"]);
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["--package", package]);
    }
    command
}

/// Where the package of this name is.
fn directory(workspace: &Workspace, package: &str) -> PathBuf {
    let dir = workspace.root.join("crates").join(package);
    match dir.is_dir() {
        true => dir,
        false => workspace.root.join(package),
    }
}

/// The source files that a package's test programs are built from, in the order cargo runs them.
pub(crate) fn sources(workspace: &Workspace, package: &str) -> Result<Vec<PathBuf>> {
    let dir = directory(workspace, package);
    let mut sources = vec![dir.join("src/lib.rs"), dir.join("src/main.rs")];
    let tests = dir.join("tests");
    if tests.is_dir() {
        for path in entries(&tests)? {
            sources.push(match path.extension() {
                Some(extension) if extension == "rs" => path,
                _ => path.join("main.rs"),
            });
        }
    }
    sources.retain(|path| path.is_file());
    Ok(sources)
}

/// The name of the program that is built from this file.
pub(crate) fn name(source: &Path) -> &str {
    let is_directory = source.ends_with("main.rs") && !source.ends_with("src/main.rs");
    let named = match is_directory {
        true => source.parent().unwrap_or(source),
        false => source,
    };
    let name = named.file_stem().and_then(|name| name.to_str());
    name.unwrap_or_default()
}

/// The test program that one of cargo's messages tells of: its source and itself.
pub(crate) fn built(line: &str) -> Option<(PathBuf, PathBuf)> {
    let text = |key: &str| {
        let (_, rest) = line.split_once(&format!(r#""{key}":""#))?;
        rest.split_once('"').map(|(text, _)| PathBuf::from(text))
    };
    let (_, profile) = line.split_once(r#""profile":{"#)?;
    let (profile, _) = profile.split_once('}')?;
    let is_test =
        line.starts_with(r#"{"reason":"compiler-artifact""#) && profile.contains(r#""test":true"#);
    is_test.then(|| Some((text("src_path")?, text("executable")?)))?
}

/// Runs a test program as `cargo test` would.
pub(crate) fn command(workspace: &Workspace, package: &str, program: &Path) -> Result<Command> {
    let dir = directory(workspace, package);
    let mut command = Command::new(program);
    // Those of cargo's variables that are of this program's own package.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_BIN_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", &workspace.target)
        .env("CARGO_MANIFEST_DIR", &dir)
        .env("CARGO_MANIFEST_PATH", dir.join("Cargo.toml"))
        .env("CARGO_PKG_NAME", package);
    let relative = program.strip_prefix(&workspace.root).unwrap_or(program);
    let name = program.file_name().context("a program without a name")?;
    println!("     Running {} ({})", name.display(), relative.display());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let message = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/crates/corio#0.1.0","manifest_path":"/w/crates/corio/Cargo.toml","target":{{"kind":["test"],"crate_types":["bin"],"name":"sync","src_path":"/w/crates/corio/tests/sync.rs","edition":"2024","doc":false,"doctest":false,"test":true}},"profile":{{"opt_level":"1","debuginfo":"line-tables-only","test":{test}}},"features":[],"filenames":["/t/sync-1"],"executable":{executable},"fresh":false}}"#
            )
        };
        let paths = (
            PathBuf::from("/w/crates/corio/tests/sync.rs"),
            PathBuf::from("/t/sync-1"),
        );
        assert_eq!(built(&message(true, r#""/t/sync-1""#)), Some(paths));
        // A program or a library that tests use.
        assert_eq!(built(&message(false, r#""/t/sync-1""#)), None);
        assert_eq!(built(&message(true, "null")), None);
        assert_eq!(built(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn each_package_has_its_sources() {
        let workspace = Workspace::find().unwrap();
        let names = |package| -> Vec<String> {
            let sources = sources(&workspace, package).unwrap();
            sources.iter().map(|path| name(path).to_owned()).collect()
        };
        assert_eq!(names("xtask"), ["main"]);
        let corio = names("corio");
        assert_eq!(corio[0], "lib");
        // A file, and a directory with a main file; and one without, whose files are no programs.
        for program in ["compile_fail", "stress"] {
            assert!(corio.iter().any(|name| name == program), "{program}");
        }
        assert!(!names("corio-cli").contains(&"common".to_owned()));
    }
}
