//! Finds, in a file's tokens, what it names of its own crate.

use std::collections::BTreeSet;
use std::path::Path;

use super::source::{Kind, Token};

/// A path below the crate's root that a file names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) line: usize,
    /// Its first segments, as far as one name each: `crate::a::{b, c}` gives `a::b` and `a::c`.
    pub(super) path: Vec<String>,
}

/// What one file says about the crate's shape.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) imports: Vec<Import>,
    /// Modules declared below `#[cfg(test)]`, from the root.
    pub(super) test_modules: BTreeSet<Vec<String>>,
    /// Macros defined by `macro_rules!`.
    pub(super) macros: BTreeSet<String>,
}

/// The module path of a file, given relative to `src`.
pub(crate) fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// Reads a file's tokens; `module` is where the file stands.
pub(super) fn scan(tokens: &[Token<'_>], module: &[String]) -> Scan {
    let mut reader = Reader {
        tokens,
        at: 0,
        module: module.to_vec(),
        depth: 0,
        open: Vec::new(),
        scan: Scan::default(),
    };
    while reader.at < tokens.len() {
        reader.step();
    }
    reader.scan
}

struct Reader<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    /// The module that the present token stands in, inline ones included.
    module: Vec<String>,
    /// Braces open around it.
    depth: usize,
    /// At which depth each inline module was opened.
    open: Vec<usize>,
    scan: Scan,
}

impl<'a> Reader<'_, 'a> {
    fn kind(&self, ahead: usize) -> Option<Kind<'a>> {
        self.tokens.get(self.at + ahead).map(|token| token.kind)
    }

    fn word(&self, ahead: usize) -> Option<&'a str> {
        match self.kind(ahead)? {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    fn is(&self, ahead: usize, mark: char) -> bool {
        self.kind(ahead) == Some(Kind::Mark(mark))
    }

    /// Takes the token at hand, and what belongs to it.
    fn step(&mut self) {
        match self.kind(0) {
            Some(Kind::Mark('#')) if self.is(1, '[') => self.attribute(),
            Some(Kind::Mark('{')) => {
                self.depth += 1;
                self.at += 1;
            }
            Some(Kind::Mark('}')) => {
                self.depth = self.depth.saturating_sub(1);
                if self.open.last() == Some(&self.depth) {
                    self.open.pop();
                    self.module.pop();
                }
                self.at += 1;
            }
            Some(Kind::Word("mod")) if self.is(2, '{') => {
                if let Some(name) = self.word(1) {
                    self.module.push(name.to_owned());
                    self.open.push(self.depth);
                }
                self.at += 2;
            }
            Some(Kind::Word("macro_rules")) if self.is(1, '!') => {
                if let Some(name) = self.word(2) {
                    self.scan.macros.insert(name.to_owned());
                }
                self.at += 3;
            }
            Some(Kind::Word(word @ ("crate" | "super" | "self")))
                if self.kind(1) == Some(Kind::PathSeparator) && !self.follows_separator() =>
            {
                let base = self.base(word);
                self.at += 2;
                self.tree(base);
            }
            _ => self.at += 1,
        }
    }

    /// `a::self` and the like do not begin a path.
    fn follows_separator(&self) -> bool {
        self.at
            .checked_sub(1)
            .and_then(|before| self.tokens.get(before))
            .map(|token| token.kind)
            == Some(Kind::PathSeparator)
    }

    /// Where a path that begins with `word` starts from.
    fn base(&self, word: &str) -> Vec<String> {
        match word {
            "crate" => Vec::new(),
            "super" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            _ => self.module.clone(),
        }
    }

    /// Reads what follows a `::`: a segment, a group, or a star.
    fn tree(&mut self, mut path: Vec<String>) {
        loop {
            match self.kind(0) {
                Some(Kind::Word("super")) => {
                    path.pop();
                }
                Some(Kind::Word("self")) => {}
                Some(Kind::Word(word)) => path.push(word.to_owned()),
                Some(Kind::Mark('{')) => return self.group(&path),
                Some(Kind::Mark('*')) => path.push("*".to_owned()),
                _ => return self.import(path),
            }
            if self.kind(1) == Some(Kind::PathSeparator) {
                self.at += 2;
            } else {
                self.import(path);
                self.at += 1;
                return;
            }
        }
    }

    /// Reads `{a, b::c, d as e}` below `path`.
    fn group(&mut self, path: &[String]) {
        self.at += 1;
        loop {
            match self.kind(0) {
                None => return,
                Some(Kind::Mark('}')) => {
                    self.at += 1;
                    return;
                }
                Some(Kind::Word("as")) => self.at += 2,
                Some(Kind::Word(_) | Kind::Mark('{' | '*')) => self.tree(path.to_vec()),
                Some(_) => self.at += 1,
            }
        }
    }

    fn import(&mut self, path: Vec<String>) {
        // A path that stays in its own file's module says nothing about layers, and neither does
        // the bare root.
        let Some(token) = self.tokens.get(self.at).or(self.tokens.last()) else {
            return;
        };
        if !path.is_empty() {
            self.scan.imports.push(Import {
                line: token.line,
                path,
            });
        }
    }

    /// Reads `#[..]`; if it says that what follows is for tests only, skips that.
    fn attribute(&mut self) {
        let end = self.matching(self.at + 1);
        let inside = &self.tokens[(self.at + 2).min(end)..end];
        self.at = end + 1;
        if !for_tests(inside) {
            return;
        }
        while self.is(0, '#') && self.is(1, '[') {
            self.at = self.matching(self.at + 1) + 1;
        }
        let item = self.at;
        // The item ends with its block, or with a semicolon outside every bracket.
        while let Some(kind) = self.kind(0) {
            match kind {
                Kind::Word("mod") if self.is(2, ';') => {
                    if let Some(name) = self.word(1) {
                        let mut module = self.module.clone();
                        module.push(name.to_owned());
                        self.scan.test_modules.insert(module);
                    }
                    self.at += 1;
                }
                Kind::Mark('(' | '[') => self.at = self.matching(self.at) + 1,
                Kind::Mark('{') => {
                    self.at = self.matching(self.at) + 1;
                    // A group of imports is followed by its semicolon, a constant's block too.
                    let uses = matches!(
                        self.tokens.get(item).map(|token| token.kind),
                        Some(Kind::Word("use" | "pub" | "const" | "static"))
                    );
                    if !(uses && self.is(0, ';')) {
                        return;
                    }
                }
                Kind::Mark(';') => {
                    self.at += 1;
                    return;
                }
                // The end of the block around it: a field or a statement without its own end.
                Kind::Mark('}' | ',') => return,
                _ => self.at += 1,
            }
        }
    }

    /// The index of the bracket that closes the one at `open`, or of the last token.
    fn matching(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (index, token) in self.tokens.iter().enumerate().skip(open) {
            match token.kind {
                Kind::Mark('(' | '[' | '{') => depth += 1,
                Kind::Mark(')' | ']' | '}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return index;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len().saturating_sub(1)
    }
}

/// Whether an attribute's inside leaves its item to test builds only.
fn for_tests(inside: &[Token<'_>]) -> bool {
    match inside {
        [
            Token {
                kind: Kind::Word("test"),
                ..
            },
        ] => true,
        [
            Token {
                kind: Kind::Word("cfg"),
                ..
            },
            Token {
                kind: Kind::Mark('('),
                ..
            },
            condition @ ..,
            Token {
                kind: Kind::Mark(')'),
                ..
            },
        ] => implies_test(condition),
        _ => false,
    }
}

/// Whether a `cfg` condition can hold only in a test build.
fn implies_test(condition: &[Token<'_>]) -> bool {
    match condition {
        [
            Token {
                kind: Kind::Word("test"),
                ..
            },
        ] => true,
        [
            Token {
                kind: Kind::Word(operator @ ("all" | "any")),
                ..
            },
            Token {
                kind: Kind::Mark('('),
                ..
            },
            list @ ..,
            Token {
                kind: Kind::Mark(')'),
                ..
            },
        ] => {
            let mut items = split(list).into_iter();
            if *operator == "all" {
                items.any(implies_test)
            } else {
                items.all(implies_test)
            }
        }
        _ => false,
    }
}

/// The parts of a list, at its outer commas.
fn split<'l, 'a>(list: &'l [Token<'a>]) -> Vec<&'l [Token<'a>]> {
    let mut depth = 0usize;
    list.split(|token| {
        match token.kind {
            Kind::Mark('(') => depth += 1,
            Kind::Mark(')') => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && token.kind == Kind::Mark(',')
    })
    .filter(|part| !part.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::source::tokens;
    use super::*;

    fn imports(module: &[&str], text: &str) -> Vec<String> {
        let module: Vec<String> = module.iter().map(ToString::to_string).collect();
        scan(&tokens(text), &module)
            .imports
            .iter()
            .map(|i| i.path.join("::"))
            .collect()
    }

    #[test]
    fn a_group_gives_each_of_its_paths() {
        assert_eq!(
            imports(&["a"], "use crate::{b, c::{self, d as e, f::*}, g::h};"),
            ["b", "c", "c::d", "c::f::*", "g::h"]
        );
    }

    #[test]
    fn relative_paths_start_from_their_module() {
        assert_eq!(
            imports(
                &["a", "b"],
                "use super::c; use self::d; use super::super::e;"
            ),
            ["a::c", "a::b::d", "e"]
        );
        assert_eq!(
            imports(
                &["a"],
                "mod b { mod c { use super::d; } use super::e; } use super::f;"
            ),
            ["a::b::d", "a::e", "f"]
        );
    }

    #[test]
    fn generic_arguments_end_a_path() {
        assert_eq!(
            imports(&["a"], "fn f() -> crate::b::C<crate::d::E> {}"),
            ["b::C", "d::E"]
        );
        assert_eq!(imports(&["a"], "crate::b::f::<u8>()"), ["b::f"]);
    }

    #[test]
    fn conditions_are_understood() {
        for (condition, only) in [
            ("cfg(test)", true),
            ("test", true),
            ("cfg(all(loom, test))", true),
            ("cfg(any(test, all(test, unix)))", true),
            ("cfg(any(test, loom))", false),
            ("cfg(not(test))", false),
            ("cfg(feature = \"test\")", false),
            ("derive(test)", false),
        ] {
            assert_eq!(for_tests(&tokens(condition)), only, "{condition}");
        }
    }

    #[test]
    fn what_follows_a_test_item_is_read_again() {
        let text = "#[cfg(test)] use crate::{a, b};\n#[test] fn t(x: [u8; 2]) {}\n#[cfg(test)] const X: u8 = { 1 };\nuse crate::c;";
        assert_eq!(imports(&["m"], text), ["c"]);
        assert_eq!(
            imports(
                &["m"],
                "struct S { #[cfg(test)] x: crate::a::B, y: crate::c::D }"
            ),
            ["c::D"]
        );
    }

    #[test]
    fn files_know_their_module() {
        for (path, module) in [
            ("lib.rs", ""),
            ("sys/mod.rs", "sys"),
            ("stack/pool.rs", "stack::pool"),
            ("fs.rs", "fs"),
        ] {
            assert_eq!(module_of(Path::new(path)).join("::"), module);
        }
    }
}
