//! Cuts Rust source into the few kinds of token that paths are made of.
//!
//! Comments, documentation, strings and characters fall out. What remains keeps its line. No
//! grammar is needed beyond that: see the Rust Reference, "Tokens" and "Comments".

/// A token and the line it stands on, from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) line: usize,
    pub(super) kind: Kind<'a>,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// An identifier or keyword, raw ones without their `r#`.
    Word(&'a str),
    /// `::`
    PathSeparator,
    /// Any other single character.
    Mark(char),
}

/// The tokens of `text`. Text that is not Rust gives some tokens too, never a panic.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    Scanner {
        text,
        at: 0,
        line: 1,
        tokens: Vec::new(),
    }
    .run()
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<Token<'a>>,
}

impl<'a> Scanner<'a> {
    fn run(mut self) -> Vec<Token<'a>> {
        while let Some(next) = self.rest().chars().next() {
            let rest = self.rest();
            if rest.starts_with("//") {
                self.skip(rest.find('\n').unwrap_or(rest.len()));
            } else if rest.starts_with("/*") {
                self.skip(block_comment(rest));
            } else if let Some(length) = literal(rest) {
                self.skip(length);
            } else if let Some(name) = rest.strip_prefix("r#").and_then(word) {
                self.push(Kind::Word(name), name.len() + 2);
            } else if let Some(name) = word(rest) {
                self.push(Kind::Word(name), name.len());
            } else if next == '\'' {
                // A lifetime: its name must not be taken for a path's.
                self.skip(1 + word(&rest[1..]).map_or(0, str::len));
            } else if rest.starts_with("::") {
                self.push(Kind::PathSeparator, 2);
            } else if next.is_whitespace() {
                self.skip(next.len_utf8());
            } else {
                self.push(Kind::Mark(next), next.len_utf8());
            }
        }
        self.tokens
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn push(&mut self, kind: Kind<'a>, length: usize) {
        self.tokens.push(Token {
            line: self.line,
            kind,
        });
        self.skip(length);
    }

    fn skip(&mut self, length: usize) {
        self.line += self.rest()[..length].matches('\n').count();
        self.at += length;
    }
}

/// The identifier, keyword or number that `text` begins with.
fn word(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

/// The length of the nesting block comment that `text` begins with.
fn block_comment(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string or character that `text` begins with, prefix included.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r"].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['"', '#', '\'']))
    });
    let prefix = prefix.unwrap_or("");
    let body = &text[prefix.len()..];
    let length = if prefix.ends_with('r') {
        raw_string(body)?
    } else if body.starts_with('"') {
        quoted(body, '"')
    } else if body.starts_with('\'') && matches!(prefix, "" | "b") {
        character(body)?
    } else {
        return None;
    };
    Some(prefix.len() + length)
}

/// `"..."` or `#"..."#` with as many `#` as there are.
fn raw_string(body: &str) -> Option<usize> {
    let hashes = body.find(|c| c != '#')?;
    let inner = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &body[..hashes]);
    let length = inner.find(&end).map_or(inner.len(), |at| at + end.len());
    Some(hashes + 1 + length)
}

/// From one `quote` to the next that is not escaped.
fn quoted(body: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    body.len()
}

/// A character, if it is not a lifetime: those have no closing quote.
fn character(body: &str) -> Option<usize> {
    let mut chars = body.char_indices().skip(1);
    match chars.next()? {
        (_, '\\') => Some(quoted(body, '\'')),
        _ => chars
            .next()
            .filter(|(_, c)| *c == '\'')
            .map(|(at, _)| at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        tokens(text)
            .into_iter()
            .filter_map(|token| match token.kind {
                Kind::Word(word) => Some(word),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn literals_and_comments_fall_out() {
        assert_eq!(
            words(r#"a "b \" c" d '\'' e 'f' g b'h' i b"j" k c"l""#),
            ["a", "d", "e", "g", "i", "k"]
        );
        assert_eq!(
            words(r###"a r"b\" c r#"d"e"# f br##"g"#"## h"###),
            ["a", "c", "f", "h"]
        );
        assert_eq!(words("a /* b /* c */ d */ e // f\ng"), ["a", "e", "g"]);
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_told_apart() {
        assert_eq!(
            words("&'a T, r#type, 'x', 'loop: loop"),
            ["T", "type", "loop"]
        );
    }

    #[test]
    fn lines_are_counted_through_everything() {
        let last = tokens("a\n\"b\nc\"\n/* d\n */ e").pop();
        assert_eq!(
            last,
            Some(Token {
                line: 5,
                kind: Kind::Word("e")
            })
        );
    }

    #[test]
    fn unfinished_text_ends() {
        for text in ["\"a", "r#\"a", "/* a", "'", "b'", "r#", "é'é", "'\\"] {
            let _ = tokens(text);
        }
    }
}
