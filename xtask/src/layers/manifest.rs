//! Reads the names of dependencies out of a `Cargo.toml`.
//!
//! Only the forms this workspace uses need to be understood: a section header a line, a key a line.
//! That gives line numbers without a TOML parser.

/// Line and package of each dependency that is part of the build. Those for tests only
/// (`dev-dependencies`) are left out.
pub(super) fn dependencies(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_table = false;
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split('#').next().unwrap_or_default().trim();
        if let Some(header) = content
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            let (in_section, own_table) = section(header);
            in_table = in_section;
            if let Some(name) = own_table {
                found.push((line, name.to_owned()));
            }
        } else if in_table && let Some((key, value)) = content.split_once('=') {
            let key = key.split('.').next().unwrap_or_default();
            found.push((
                line,
                renamed(value)
                    .unwrap_or(key)
                    .trim()
                    .trim_matches('"')
                    .to_owned(),
            ));
        }
    }
    found
}

/// Whether the keys below a header are dependencies, and the dependency that the header itself
/// names (`[dependencies.corio]`).
fn section(header: &str) -> (bool, Option<&str>) {
    // A target's condition may hold dots; it is quoted.
    let plain = match header.strip_prefix("target.") {
        Some(rest) => match rest.rsplit_once("'.").or_else(|| rest.rsplit_once("\".")) {
            Some((_, section)) => section,
            None => rest.split_once('.').map_or("", |(_, section)| section),
        },
        None => header,
    };
    match plain.split_once('.') {
        None => (is_table(plain), None),
        Some((table, name)) if is_table(table) => (false, Some(name.trim_matches('"'))),
        Some(_) => (false, None),
    }
}

fn is_table(name: &str) -> bool {
    matches!(name, "dependencies" | "build-dependencies")
}

/// The package in `{ package = "name", .. }`.
fn renamed(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("package")?;
    let (_, rest) = rest.split_once('"')?;
    rest.split_once('"').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        dependencies(text)
            .into_iter()
            .map(|(_, name)| name)
            .collect()
    }

    #[test]
    fn every_form_of_a_dependency_is_read() {
        let text = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = \"1\" # c = 2\n\
                    d = { package = \"e\", version = \"1\" }\n[target.'cfg(loom)'.dependencies]\nf = \"1\"\n\
                    [build-dependencies]\ng = \"1\"\n[dependencies.h]\nversion = \"1\"\n\
                    [target.x86_64-unknown-linux-gnu.dependencies]\ni = \"1\"\n[features]\nj = []\n";
        assert_eq!(names(text), ["a", "b", "e", "f", "g", "h", "i"]);
    }

    #[test]
    fn dependencies_for_tests_are_left_out() {
        assert_eq!(
            names("[dev-dependencies]\na = \"1\"\n[dev-dependencies.b]\nversion = \"1\""),
            [""; 0]
        );
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(
            dependencies("[dependencies]\na = \"1\""),
            [(2, "a".to_owned())]
        );
    }
}
