//! The job `docs`: what the documents under version control say of the tree is so.
//!
//! - Every C name that the runtime and the block layer carry as `#[doc(alias)]` has a row in
//!   docs/COMPAT.md, and no row names another, unless it says that there is none in Rust. The Rust
//!   names of its rows are declared. Each function of the C headers has a row.
//! - docs/INVARIANTS.md has what the modules have: see `invariants`.
//! - Public types have examples, and the specification's paragraphs have tests: see `sources`.
//! - Every dependency of the workspace has a row in docs/adr/0001-dependencies.md, and no row names
//!   another; and some crate uses it.
//! - Every relative link in a Markdown file leads to something.

mod invariants;
mod sources;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::workspace::{Workspace, entries, files_below, read};

/// What was looked at, and what is not so.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) seen: u64,
    pub(crate) faults: Vec<String>,
}

impl Findings {
    /// Compares what there is with what a document's rows name.
    fn compare(&mut self, document: &str, there: &BTreeSet<String>, rows: &BTreeSet<String>) {
        self.seen += u64::try_from(there.len()).unwrap_or(u64::MAX);
        for name in there.difference(rows) {
            self.faults
                .push(format!("{document} has no row for {name}"));
        }
        for name in rows.difference(there) {
            self.faults.push(format!(
                "{document} has a row for {name}, which is not there"
            ));
        }
    }
}

/// Checks the documents.
pub(crate) fn check(workspace: &Workspace) -> Result<Findings> {
    let root = &workspace.root;
    let mut findings = Findings::default();

    c_names(root, &mut findings)?;
    invariants::check(workspace, &mut findings)?;
    sources::check(workspace, &mut findings)?;

    let dependencies = external(&read(&root.join("Cargo.toml"))?);
    let document = "docs/adr/0001-dependencies.md";
    findings.compare(document, &dependencies, &rows(&read(&root.join(document))?));
    let used = used(&files_below(&root.join("crates"), "toml")?, root)?;
    for name in dependencies.difference(&used) {
        findings
            .faults
            .push(format!("Cargo.toml lists {name}, which no crate uses"));
    }

    for path in markdown(root)? {
        let dir = path.parent().unwrap_or(root);
        for link in links(&read(&path)?) {
            findings.seen += 1;
            if !dir.join(&link).exists() {
                let path = workspace.relative(&path).display();
                findings
                    .faults
                    .push(format!("{path} links to {link}, which is not there"));
            }
        }
    }
    Ok(findings)
}

/// Checks docs/COMPAT.md.
fn c_names(root: &Path, findings: &mut Findings) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for dir in ["corio", "corio-block", "corio-glib"].map(|name| format!("crates/{name}/src")) {
        for path in files_below(&root.join(dir), "rs")? {
            let text = read(&path)?;
            names.extend(aliases(&text));
            sources.push(text);
        }
    }
    let document = "docs/COMPAT.md";
    let text = read(&root.join(document))?;
    let (without, with): (Vec<_>, Vec<_>) = text.lines().partition(|line| is_without(line));
    findings.compare(document, &names, &rows(&with.join("\n")));
    let without = rows(&without.join("\n"));
    for header in ["corio.h", "corio-glib.h"] {
        let header = read(&root.join("crates/corio-capi/include").join(header))?;
        for name in crate::capi::functions(&header) {
            findings.seen += 1;
            if !names.contains(name) && !without.contains(name) {
                findings
                    .faults
                    .push(format!("{document} has no row for {name}, which C has"));
            }
        }
    }
    findings.seen += u64::try_from(without.len()).unwrap_or(u64::MAX);
    for name in without.intersection(&names) {
        findings.faults.push(format!(
            "{document} says that nothing is called {name}, but something is"
        ));
    }
    for name in sources::undeclared(&text, &sources) {
        findings
            .faults
            .push(format!("{document} names {name}, which is not declared"));
    }
    Ok(())
}

/// A row that says there is nothing in Rust by that name.
fn is_without(line: &str) -> bool {
    line.starts_with('|')
        && line
            .split('|')
            .nth(2)
            .is_some_and(|cell| cell.trim() == "none")
}

/// The names in `#[doc(alias = "x")]` and `#[doc(alias("x", "y"))]`.
fn aliases(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in text.split("#[doc(alias").skip(1) {
        let inside = part.split(")]").next().unwrap_or_default();
        names.extend(inside.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    names
}

/// The first cells of a Markdown file's table rows, each cell perhaps with several names in
/// backticks. Heads and rules are left out.
fn rows(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_head = lines.peek().is_some_and(|next| next.starts_with("|---"));
        let cell = line
            .strip_prefix('|')
            .and_then(|rest| rest.split('|').next());
        if let Some(cell) = cell
            .map(str::trim)
            .filter(|cell| !is_head && !cell.starts_with("---"))
        {
            names.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    names
}

/// The dependencies of the workspace that are not its own crates.
fn external(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[workspace.dependencies]";
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && !line.starts_with('#')
            && !value.contains("path =")
        {
            names.insert(name.trim().to_owned());
        }
    }
    names
}

/// The dependencies that these manifests, and those of the tools, take from the workspace.
fn used(manifests: &[PathBuf], root: &Path) -> Result<BTreeSet<String>> {
    let tools = ["bench", "fuzz", "xtask"].map(|tool| root.join(tool).join("Cargo.toml"));
    let mut names = BTreeSet::new();
    for path in manifests.iter().chain(&tools) {
        names.extend(inherited(&read(path)?));
    }
    Ok(names)
}

/// The names that a manifest takes from the workspace, as `x.workspace = true` or as
/// `x = { workspace = true, ... }`.
fn inherited(manifest: &str) -> Vec<String> {
    let name = |line: &str| {
        let (name, rest) = line.split_once(['.', ' ', '='])?;
        let rest = rest.trim_start_matches([' ', '=', '{']);
        rest.starts_with("workspace").then(|| name.to_owned())
    };
    manifest.lines().filter_map(name).collect()
}

/// Where a Markdown file's links lead, as far as they lead to files. Code blocks hold none.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target.to_owned());
            }
        }
    }
    links
}

/// The Markdown files at the root, and those below `docs`.
fn markdown(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = files_below(&root.join("docs"), "md")?;
    let is_markdown = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    files.extend(entries(root)?.into_iter().filter(is_markdown));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn aliases_are_read_in_both_forms() {
        let text = "#[doc(alias = \"a\")]\n#[doc(alias(\"b\", \"c\"))]\n/// #[doc(hidden)] \"d\"";
        assert_eq!(aliases(text), ["a", "b", "c"]);
    }

    #[test]
    fn rows_are_read_without_their_heads() {
        let text = "| `head` | x |\n|---|---|\n| `a`, `b` | `c` |\n|`d`|\ntext `e` | `f`";
        assert_eq!(rows(text), set(&["a", "b", "d"]));
    }

    #[test]
    fn dependencies_are_inherited_in_both_forms() {
        let text = "a.workspace = true\nb = { workspace = true, features = [] }\nc = \"1\"\n\
                    # d.workspace\ne={workspace=true}";
        assert_eq!(inherited(text), ["a", "b", "e"]);
    }

    #[test]
    fn own_crates_are_no_dependencies() {
        let text = "[workspace.dependencies]\n# x = 1\na = \"1\"\nb = { path = \"b\" }\n\n[profile.dev]\nc = 1";
        assert_eq!(external(text), set(&["a"]));
    }

    #[test]
    fn links_into_the_tree_are_found() {
        let text = "[a](b.md) [c](d/e.md#f) [g](https://h) [i](#j)\n```\n[k](l)\n```\n[m](n)";
        assert_eq!(links(text), ["b.md", "d/e.md", "n"]);
    }

    #[test]
    fn both_a_missing_and_a_surplus_row_are_faults() {
        let mut findings = Findings::default();
        findings.compare("x.md", &set(&["a", "b"]), &set(&["b", "c"]));
        assert_eq!(
            findings.faults,
            [
                "x.md has no row for a",
                "x.md has a row for c, which is not there"
            ]
        );
        assert_eq!(findings.seen, 2);
    }
}
