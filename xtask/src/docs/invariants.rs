//! docs/INVARIANTS.md against the modules that it is about.
//!
//! - Each numbered invariant of a module's documentation (`//! - I1 ..`) has a row whose first cell
//!   links to the file and whose second is the number; no row names another.
//! - A heading with a struct's name and a link has tables whose first cells are that struct's
//!   fields, all of them and no others; several structs share a heading.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::Findings;
use crate::workspace::{Workspace, files_below, read};

const DOCUMENT: &str = "docs/INVARIANTS.md";

/// Checks the document.
pub(super) fn check(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    let root = &workspace.root;
    let text = read(&root.join(DOCUMENT))?;
    let mut there = BTreeSet::new();
    for path in files_below(&root.join("crates/corio/src"), "rs")? {
        let file = workspace.relative(&path).display().to_string();
        there.extend(
            numbers(&read(&path)?)
                .iter()
                .map(|number| format!("{number} of {file}")),
        );
    }
    findings.compare(DOCUMENT, &there, &numbered_rows(&text));
    for table in tables(&text) {
        fields_agree(root, &table, findings)?;
    }
    Ok(())
}

/// The tables below one heading.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    file: String,
    structs: Vec<String>,
    rows: BTreeSet<String>,
}

fn fields_agree(root: &Path, table: &Table, findings: &mut Findings) -> Result<()> {
    let path = root.join(&table.file);
    if !path.exists() {
        return Ok(()); // Said by who looks at links.
    }
    let text = read(&path)?;
    let mut there = BTreeSet::new();
    for name in &table.structs {
        match fields(&text, name) {
            Some(fields) => there.extend(fields),
            None => findings.faults.push(format!(
                "{DOCUMENT} has a table for {name}, which is not in {}",
                table.file
            )),
        }
    }
    let document = format!("{DOCUMENT}, {} of {}", table.structs.join(", "), table.file);
    findings.compare(&document, &there, &table.rows);
    Ok(())
}

/// The numbers of the invariants and rules in a module's documentation.
fn numbers(text: &str) -> Vec<&str> {
    let number = |line: &str| -> Option<usize> {
        let digits = line.strip_prefix(['I', 'M', 'P', 'R'])?;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        let is_item = end > 0 && digits[end..].starts_with([' ', '.']);
        is_item.then_some(1 + end)
    };
    text.lines()
        .filter_map(|line| line.strip_prefix("//! - "))
        .filter_map(|line| number(line).map(|end| &line[..end]))
        .collect()
}

/// The file below the root that a link of this document leads to.
fn linked(cell: &str) -> Option<&str> {
    let target = cell.split("](../").nth(1)?;
    target
        .split(')')
        .next()
        .filter(|file| file.ends_with(".rs"))
}

/// "I1 of file" for each row of that kind.
fn numbered_rows(text: &str) -> BTreeSet<String> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let file = linked(cells.next()?)?;
        let number = cells.next()?;
        Some(format!("{number} of {file}"))
    };
    text.lines().filter_map(row).collect()
}

/// The tables of fields: those below a heading that names structs and links to their file.
fn tables(text: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            let before_link = heading.split('[').next().unwrap_or_default();
            let structs: Vec<_> = ticked(before_link).collect();
            let file = linked(heading).map(str::to_owned);
            open = !structs.is_empty() && file.is_some();
            if let Some(file) = file.filter(|_| open) {
                let rows = BTreeSet::new();
                tables.push(Table {
                    file,
                    structs,
                    rows,
                });
            }
        } else if line.starts_with("## ") {
            open = false;
        } else if open
            && let Some(table) = tables.last_mut()
            && let Some(cell) = line
                .strip_prefix('|')
                .and_then(|rest| rest.split('|').next())
        {
            table.rows.extend(ticked(cell));
        }
    }
    tables
}

/// What stands between backticks.
fn ticked(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The named fields of a struct. None: there is none of that name with fields.
fn fields(text: &str, name: &str) -> Option<Vec<String>> {
    let is_head = |line: &str| {
        line.split_once("struct ")
            .and_then(|(before, rest)| {
                let after = rest.strip_prefix(name)?;
                Some(!before.contains("//") && after.starts_with([' ', '<']))
            })
            .unwrap_or(false)
            && line.ends_with('{')
    };
    let mut lines = text.lines().skip_while(|line| !is_head(line));
    lines.next()?;
    let field = |line: &str| {
        let line = line.strip_prefix("    ")?;
        let (before, _) = line.split_once(": ")?;
        let word = before.rsplit(' ').next()?;
        let is_name = word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit());
        (is_name && !before.starts_with(['/', '#', ' '])).then(|| word.to_owned())
    };
    let body = lines.take_while(|line| *line != "}");
    Some(body.filter_map(field).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_with_and_without_a_full_stop() {
        let text = "//! - I1 One.\n//! - I12. Twelve.\n//!   I3 no item\n//! - If not\n//! - R2 Rule\n- I4 x";
        assert_eq!(numbers(text), ["I1", "I12", "R2"]);
    }

    #[test]
    fn fields_are_read_without_what_is_about_them() {
        let text = "/// struct A {\npub(super) struct A<T> {\n    /// b: not one\n    pub(crate) c: u8,\n    \
                    #[x(y: z)]\n    d_1: Cell<(e: u8)>,\n}\nstruct F { }";
        assert_eq!(fields(text, "A").unwrap(), ["c", "d_1"]);
        assert_eq!(fields(text, "G"), None);
    }

    #[test]
    fn rows_and_tables_are_found_by_their_links() {
        let text = "| [a](../x/a.rs) | I1 | gist |\n### `S`, `T`, [a](../x/a.rs)\n\n| field | by |\n|---|---|\n\
                    | `b`, `c` | `d` |\n## Next\n| `e` | f |\n### `g` without a link\n| `h` |";
        assert_eq!(
            numbered_rows(text),
            BTreeSet::from(["I1 of x/a.rs".to_owned()])
        );
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let table = Table {
            file: "x/a.rs".to_owned(),
            structs: names(&["S", "T"]),
            rows: names(&["b", "c"]).into_iter().collect(),
        };
        assert_eq!(tables(text), [table]);
    }
}
