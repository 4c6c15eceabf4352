//! What the runtime's sources themselves must say.
//!
//! - Each public type has an example that runs.
//! - Each paragraph of the specification that is built has a test that is tagged with it.
//! - Each Rust name in docs/COMPAT.md is declared.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use anyhow::Result;

use super::Findings;
use crate::workspace::{Workspace, files_below, read};

/// The paragraphs that are built whole: a letter, and the numbers of the first and the last.
const BUILT: &[(char, u32, u32)] = &[('C', 0, 12), ('S', 1, 8), ('L', 1, 8)];

/// Checks the runtime's sources and tests.
pub(super) fn check(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    let root = &workspace.root;
    let mut tags = BTreeSet::new();
    let mut sources = Vec::new();
    let mut shown = Shown::default();
    let mut files = files_below(&root.join("crates/corio"), "rs")?;
    files.extend(files_below(&root.join("crates/corio-tests"), "rs")?);
    for path in files {
        let text = read(&path)?;
        tags.extend(tagged(&text));
        if path.starts_with(root.join("crates/corio/src")) {
            shown.look(&text);
            sources.push((path, text));
        }
    }
    for (path, text) in &sources {
        for public in public_types(text)
            .iter()
            .filter(|public| shown.shows(path, public.name))
        {
            findings.seen += 1;
            if !public.has_example {
                let path = workspace.relative(path).display();
                findings.faults.push(format!(
                    "{path}: {} is public and has no example that runs",
                    public.name
                ));
            }
        }
    }
    for &(letter, first, last) in BUILT {
        for number in first..=last {
            findings.seen += 1;
            let paragraph = format!("{letter}{number}");
            if !tags.contains(&paragraph) {
                findings
                    .faults
                    .push(format!("no test is tagged `// SPEC {paragraph}`"));
            }
        }
    }
    Ok(())
}

/// What users can get at.
#[derive(Default)]
struct Shown {
    /// Modules that are public.
    modules: BTreeSet<String>,
    /// What `pub use` names.
    names: BTreeSet<String>,
}

impl Shown {
    fn look(&mut self, text: &str) {
        let lines = text.lines();
        let module =
            |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
        self.modules.extend(lines.filter_map(module));
        for part in text.split("\npub use ").skip(1) {
            let names = part.split(';').next().unwrap_or_default();
            let names = names.split(|c: char| !c.is_alphanumeric() && c != '_');
            self.names.extend(names.map(str::to_owned));
        }
    }

    /// Whether a type that is declared `pub` in this file is public: named by `pub use`, or in the
    /// file of a public module.
    fn shows(&self, path: &Path, name: &str) -> bool {
        let own = path.file_stem().filter(|stem| *stem != "mod");
        let module = own.or_else(|| path.parent()?.file_name());
        let is_public = |module: &OsStr| self.modules.contains(&*module.to_string_lossy());
        self.names.contains(name) || module.is_some_and(is_public)
    }
}

/// A type that is declared `pub` at the top of a module, and not hidden.
#[derive(Debug, PartialEq, Eq)]
struct Public<'a> {
    name: &'a str,
    has_example: bool,
}

fn public_types(text: &str) -> Vec<Public<'_>> {
    let mut types = Vec::new();
    let (mut has_example, mut in_example) = (false, false);
    let mut is_hidden = false;
    for line in text.lines() {
        is_hidden |= line == "#[doc(hidden)]";
        if let Some(fence) = line.strip_prefix("/// ```") {
            // What is opened without a word is a program that is run.
            has_example |= !in_example && fence.is_empty();
            in_example = !in_example;
        } else if !line.starts_with("///") && !is_within_attributes(line) {
            let words = ["struct ", "enum ", "trait ", "union ", "type "];
            let declared = line.strip_prefix("pub ").and_then(|rest| {
                let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
                words.iter().find_map(|word| rest.strip_prefix(word))
            });
            if let Some(rest) = declared.filter(|_| !is_hidden) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                types.push(Public { name, has_example });
            }
            (has_example, in_example, is_hidden) = (false, false, false);
        }
    }
    types
}

/// Attributes stand between a type's documentation and the type, some over several lines.
fn is_within_attributes(line: &str) -> bool {
    line.starts_with("#[") || line.starts_with("    \"") || line == "))]"
}

/// The paragraphs that tests name in the comment right above them: `// SPEC S7, C12: what it is`.
fn tagged(text: &str) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    let mut pending = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line == "#[test]" {
            tags.extend(pending.drain(..));
        } else if let Some(comment) = line.strip_prefix("//") {
            let comment = comment.trim_start_matches('/').trim_start();
            if let Some(list) = comment.strip_prefix("SPEC ") {
                let list = list.split([':', '.']).next().unwrap_or_default();
                pending.extend(list.split(", ").map(|tag| tag.trim().to_owned()));
            }
        } else if !line.starts_with("#[") {
            pending.clear();
        }
    }
    tags
}

/// The parts of the Rust names in the second cells of docs/COMPAT.md that no source declares.
pub(super) fn undeclared(document: &str, sources: &[String]) -> BTreeSet<String> {
    let is_name = |name: &&str| {
        !name.starts_with("std::") && !name.starts_with("corio-") && !name.contains(' ')
    };
    let mut missing = BTreeSet::new();
    for line in document.lines().filter(|line| line.starts_with('|')) {
        let cell = line.split('|').nth(2).unwrap_or_default();
        for name in cell.split('`').skip(1).step_by(2).filter(is_name) {
            let parts = name.split("::").filter(|part| *part != "corio");
            let is_missing = |part: &str| !sources.iter().any(|text| declares(text, part));
            if parts.clone().any(is_missing) {
                missing.insert(name.to_owned());
            }
        }
    }
    missing
}

/// Whether a source declares a name: an item, a variant, or a name that an item is shown by.
fn declares(text: &str, name: &str) -> bool {
    let kinds = ["fn ", "struct ", "enum ", "trait ", "mod ", "const ", "as "];
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    text.match_indices(name).any(|(at, _)| {
        let (before, rest) = (&text[..at], &text[at + name.len()..]);
        let is_variant = before.ends_with("\n    ") && rest.starts_with([',', ' ', '(']);
        ends(rest) && (is_variant || kinds.iter().any(|kind| before.ends_with(kind)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_that_run_are_examples() {
        let text = "/// ```\n/// a\n/// ```\n#[doc(alias(\n    \"b\",\n))]\npub struct C<T>;\n\
                    /// ```compile_fail\n/// d\n/// ```\npub enum E {}\n/// ```\n/// f\n/// ```\n\npub trait G {}\n\
                    pub(crate) struct H;\n    pub struct I;";
        let types = [("C", true), ("E", false), ("G", false)];
        let types = types.map(|(name, has_example)| Public { name, has_example });
        assert_eq!(public_types(text), types);
    }

    #[test]
    fn public_are_a_public_module_s_types_and_what_is_named() {
        let mut shown = Shown::default();
        shown.look("mod a;\npub mod b;\npub use a::{\n    C, D as E,\n};\npub(crate) use a::F;");
        for (path, name, is_public) in [
            ("src/a.rs", "C", true),
            ("src/a/mod.rs", "F", false),
            ("src/a.rs", "G", false),
            ("src/b/mod.rs", "G", true),
            ("src/b.rs", "G", true),
        ] {
            assert_eq!(
                shown.shows(Path::new(path), name),
                is_public,
                "{name} of {path}"
            );
        }
    }

    #[test]
    fn tags_stand_right_above_their_test() {
        let text = "// SPEC C1, S2: x\n// y.\n#[test]\nfn a() {}\n    /// SPEC L7. z\n    #[test]\n\
                    // SPEC C3\nfn b() {}\n#[test]\n// no SPEC C4\n#[test]";
        let tags = ["C1", "L7", "S2"].map(str::to_owned);
        assert_eq!(tagged(text), BTreeSet::from(tags));
    }

    #[test]
    fn names_are_declared_as_items_variants_and_other_names() {
        let source =
            ["pub fn ab() {}\nenum C {\n    D,\n}\npub use x as e;\nlet f = 1;".to_owned()];
        let text = "| `x` | `ab`, `C::D`, `corio::e`, `std::io::Read` and `a`, `C::f` | |";
        let missing = ["C::f", "a"].map(str::to_owned);
        assert_eq!(undeclared(text, &source), BTreeSet::from(missing));
    }
}
