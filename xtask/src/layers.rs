//! `cargo xtask layers`: nothing imports from a layer above its own.
//!
//! The order of the runtime's modules and of the crates is the shape of the house
//! (docs/ARCHITECTURE.md). Two checks keep it: in `crates/corio/src`, a file may name `crate::x`
//! (or reach it by `super::`) only if x lies in its own layer or below; and a crate may depend only
//! on crates below it. `lib.rs`, which stands above all layers, and code for tests may name
//! anything.
//!
//! A path through a re-export in the crate's root (`crate::spawn`) hides its layer and is refused;
//! name the module.

mod manifest;
pub(crate) mod paths;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::workspace::{Workspace, entries, files_below, read};

/// The runtime's modules, from the lowest layer up. Those of one row are peers and may name each
/// other.
const LAYERS: &[&[&str]] = &[
    &["error", "planted"],
    &["sys"],
    &["atomic", "recycle"],
    &["tls"],
    &["track"],
    &["stack"],
    &["coroutine"],
    &["context"],
    &["schedule"],
    &["sync"],
    &["engine"],
    &["fs", "net", "time"],
    &["inspect"],
    &["raw"],
];

/// Our crates, and which of ours each may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("corio", &[]),
    ("corio-tests", &["corio"]),
    ("corio-glib", &["corio"]),
    ("corio-capi", &["corio", "corio-glib"]),
    ("corio-block", &["corio"]),
    ("corio-nbd", &["corio", "corio-block"]),
    ("corio-cli", &["corio", "corio-block", "corio-nbd"]),
];

/// Where a module stands in [`LAYERS`].
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// One import that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    file: PathBuf,
    line: usize,
    import: String,
    rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.file.display(),
            self.line,
            self.import,
            self.rule
        )
    }
}

/// What a check looked at and found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) files: u64,
    pub(crate) imports: u64,
    faults: Vec<Fault>,
}

impl Findings {
    /// Prints the faults and the counts; true if there was no fault.
    pub(crate) fn report(&self) -> bool {
        for fault in &self.faults {
            println!("{fault}");
        }
        println!(
            "layers: {} files and {} imports checked, {} go up",
            self.files,
            self.imports,
            self.faults.len()
        );
        self.faults.is_empty()
    }
}

/// Runs both checks; true if no import goes up.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    Ok(check(workspace)?.report())
}

/// Checks the runtime's sources and all manifests below `crates`.
pub(crate) fn check(workspace: &Workspace) -> Result<Findings> {
    let mut findings = Findings::default();
    let source = workspace.root.join("crates/corio/src");
    let mut files = Vec::new();
    for path in files_below(&source, "rs")? {
        let text = read(&path)?;
        let module = paths::module_of(path.strip_prefix(&source).unwrap_or(&path));
        files.push(File {
            path: workspace.relative(&path).to_path_buf(),
            module,
            text,
        });
    }
    ensure!(
        !files.is_empty(),
        "no sources in {}: the check would prove nothing",
        source.display()
    );
    check_sources(&files, &mut findings);

    let crates = workspace.root.join("crates");
    let mut names = entries(&crates)?;
    names.retain(|path| path.join("Cargo.toml").is_file());
    for dir in names {
        let path = dir.join("Cargo.toml");
        let text = read(&path)?;
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        check_manifest(&name, workspace.relative(&path), &text, &mut findings);
    }
    Ok(findings)
}

/// One source file of the runtime.
struct File {
    path: PathBuf,
    /// Its module path below the root: `stack/pool.rs` is `[stack, pool]`, `lib.rs` is empty.
    module: Vec<String>,
    text: String,
}

/// Checks the sources of one crate together: which modules are for tests only, and where macros
/// live, is known only once all have been read.
fn check_sources(files: &[File], findings: &mut Findings) {
    let mut test_only = BTreeSet::new();
    let mut macros = BTreeMap::new();
    let mut scanned = Vec::new();
    for file in files {
        let scan = paths::scan(&source::tokens(&file.text), &file.module);
        test_only.extend(scan.test_modules.iter().cloned());
        for name in &scan.macros {
            macros.insert(name.clone(), file.module.clone());
        }
        scanned.push((file, scan));
    }
    for (file, scan) in scanned {
        let for_tests =
            (1..=file.module.len()).any(|depth| test_only.contains(&file.module[..depth]));
        let Some(own) = file.module.first() else {
            continue;
        };
        if for_tests {
            continue;
        }
        findings.files += 1;
        let mut fault = |line, import: String, rule| {
            findings.faults.push(Fault {
                file: file.path.clone(),
                line,
                import,
                rule,
            });
        };
        let Some(own_layer) = layer(own) else {
            fault(
                1,
                format!("module {own}"),
                "has no layer; add it to LAYERS in xtask".into(),
            );
            continue;
        };
        for import in &scan.imports {
            findings.imports += 1;
            let shown = format!("crate::{}", import.path.join("::"));
            let first = import.path.first().map_or("", String::as_str);
            let through_macro = || {
                macros
                    .get(first)
                    .and_then(|m| m.first())
                    .map(String::as_str)
            };
            let target = layer(first).map(|l| (l, first)).or_else(|| {
                let home = through_macro()?;
                layer(home).map(|l| (l, home))
            });
            match target {
                Some((there, module)) if there > own_layer => {
                    fault(import.line, shown, format!("{own} lies below {module}"));
                }
                Some(_) => {}
                None => fault(
                    import.line,
                    shown,
                    "goes through the crate's root, which lies above every layer; name the module"
                        .into(),
                ),
            }
        }
    }
}

/// Checks the dependencies of one crate of ours on others of ours. Those for tests are free.
fn check_manifest(name: &str, path: &Path, text: &str, findings: &mut Findings) {
    findings.files += 1;
    let mut fault = |line, import: &str, rule: String| {
        let import = import.to_owned();
        findings.faults.push(Fault {
            file: path.to_path_buf(),
            line,
            import,
            rule,
        });
    };
    let Some((_, allowed)) = CRATES.iter().find(|(krate, _)| *krate == name) else {
        fault(
            1,
            name,
            "this crate has no place; add it to CRATES in xtask".into(),
        );
        return;
    };
    for (line, dependency) in manifest::dependencies(text) {
        findings.imports += 1;
        let ours = dependency == "corio" || dependency.starts_with("corio-");
        if ours && !allowed.contains(&dependency.as_str()) {
            let rule = if allowed.is_empty() {
                format!("{name} is the lowest crate and depends on none of ours")
            } else {
                format!("{name} may depend only on {}", allowed.join(", "))
            };
            fault(line, &dependency, rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        let module = paths::module_of(Path::new(path));
        File {
            path: PathBuf::from(path),
            module,
            text: text.to_owned(),
        }
    }

    fn faults(files: &[File]) -> Vec<String> {
        let mut findings = Findings::default();
        check_sources(files, &mut findings);
        findings.faults.iter().map(ToString::to_string).collect()
    }

    fn one(path: &str, text: &str) -> Vec<String> {
        faults(&[file(path, text)])
    }

    #[test]
    fn a_planted_upward_import_is_found_with_its_line() {
        let found = one(
            "stack/pool.rs",
            "//! Doc.\n\nuse crate::context::Context;\n",
        );
        assert_eq!(
            found,
            ["stack/pool.rs:3: crate::context::Context: stack lies below context"]
        );
    }

    #[test]
    fn upward_imports_hide_in_no_form() {
        for text in [
            "use crate::{sys, engine};",
            "use crate::{atomic::{self}, engine::{self as e}};",
            "pub(crate) use crate::engine as e;",
            "fn f() { let x = crate::engine::start(); }",
            "fn f<T: crate::engine::Job>() {}",
            "use super::super::engine;",
            "use super::{super::engine::{x as y}, pool};",
            "mod inner { use super::super::super::engine; }",
            "macro_rules! m { () => { $crate::engine::go() } }",
            "use ::std::mem; use crate :: engine;",
            "#[cfg(not(test))] mod x { use crate::engine; }",
            "#[cfg(any(test, loom))] mod x { use crate::engine; }",
            "#[cfg(test)] fn f() {} use crate::engine;",
        ] {
            let found = one("stack/pool.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("crate::engine"), "{text}: {found:?}");
        }
    }

    #[test]
    fn downward_and_level_imports_pass() {
        for text in [
            "use crate::{sys::{mmap, Fd}, track};",
            "use super::guard; use self::inner::x; use crate::stack::slab;",
            "use std::{io, mem}; use corosensei::stack::Stack; use rustix::engine;",
        ] {
            assert_eq!(one("stack/pool.rs", text), [""; 0], "{text}");
        }
        assert_eq!(one("net/tcp.rs", "use crate::{fs::File, time};"), [""; 0]);
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        for text in [
            "// use crate::engine;\n/* crate::engine /* crate::engine */ crate::engine */",
            "//! crate::engine\n/// [`crate::engine::File`]\nfn f() {}",
            r###"const A: &str = "crate::engine"; const B: &str = r#"" crate::engine "#;"###,
            "const C: char = '\"'; const D: &[u8] = b\"crate::engine\";",
            "#[cfg(test)]\nmod tests { use crate::engine::File; fn f() { { } } }",
            "#[cfg(all(test, loom))] mod tests { use crate::engine; }",
            "#[test]\nfn f() { crate::engine::x() }",
            "#[cfg(test)] use crate::engine;",
        ] {
            assert_eq!(one("stack/pool.rs", text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_lifetime_does_not_open_a_character() {
        let found = one(
            "stack/pool.rs",
            "fn f<'a>(x: &'a u8) {}\nuse crate::engine; // 'x'",
        );
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_file_of_tests_is_free() {
        let files = [
            file("stack.rs", "#[cfg(test)]\nmod proofs;\nmod pool;"),
            file("stack/proofs.rs", "use crate::engine;"),
            file("stack/proofs/more.rs", "use crate::engine;"),
            file("stack/pool.rs", "use crate::engine;"),
        ];
        let found = faults(&files);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("stack/pool.rs:1"));
    }

    #[test]
    fn the_root_may_name_all_and_be_named_by_none() {
        assert_eq!(
            one("lib.rs", "pub use crate::engine::File; mod sys;"),
            [""; 0]
        );
        let found = one("inspect/dump.rs", "use crate::spawn;");
        assert!(found[0].contains("name the module"), "{found:?}");
    }

    #[test]
    fn a_macro_counts_as_the_module_it_is_written_in() {
        let track = file(
            "track/mod.rs",
            "macro_rules! event { () => {} }\npub(crate) use event;",
        );
        let above = file("stack/mod.rs", "fn f() { crate::event!() }");
        let below = file("sys/mod.rs", "fn f() { crate::event!() }");
        let found = faults(&[track, above, below]);
        assert_eq!(found, ["sys/mod.rs:1: crate::event: sys lies below track"]);
    }

    #[test]
    fn a_module_without_a_place_is_reported() {
        assert!(one("gadget.rs", "")[0].contains("has no layer"));
    }

    #[test]
    fn a_planted_upward_dependency_is_found_with_its_line() {
        let mut findings = Findings::default();
        let text = "[package]\nname = \"corio-block\"\n[dependencies]\ncorio.workspace = true\n\
                    corio-nbd.workspace = true\n[dev-dependencies]\ncorio-cli.workspace = true\n";
        check_manifest(
            "corio-block",
            Path::new("crates/corio-block/Cargo.toml"),
            text,
            &mut findings,
        );
        let found: Vec<_> = findings.faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["crates/corio-block/Cargo.toml:5: corio-nbd: corio-block may depend only on corio"]
        );
    }

    #[test]
    fn crates_are_checked_against_their_own_row() {
        for (name, dependency, faults) in [
            ("corio", "corio-block", 1),
            ("corio-nbd", "corio-block", 0),
            ("corio-capi", "corio", 0),
            ("corio-capi", "corio-block", 1),
            ("corio-cli", "corio-nbd", 0),
            ("corio-new", "corio", 1),
        ] {
            let mut findings = Findings::default();
            let text = format!("[dependencies]\n{dependency}.workspace = true\nlibc = \"1\"\n");
            check_manifest(name, Path::new("Cargo.toml"), &text, &mut findings);
            assert_eq!(findings.faults.len(), faults, "{name} on {dependency}");
        }
    }

    #[test]
    fn this_work_tree_is_looked_at() {
        let findings = check(&Workspace::find().unwrap()).unwrap();
        assert!(findings.files > 4, "{findings:?}");
    }
}
