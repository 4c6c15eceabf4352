//! One line for every error: what failed, on which path or address, why, what to do.
//!
//! The shape is `corio: WHAT: WHY; ADVICE`. Whatever is in a path or comes back from the kernel, it
//! stays one line: control characters are written as escapes.

use std::error::Error;
use std::fmt;
use std::io;

/// An error ready to be printed: what, on what, why, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: Option<String>,
    advice: Option<String>,
}

impl Failure {
    /// `what` names the operation and the path or address, as in `cannot listen on [::1]:1`.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: None,
            advice: None,
        }
    }

    /// The reason, usually an errno's text.
    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// The reason, from a failed system call.
    pub(crate) fn io(self, error: &io::Error) -> Self {
        self.why(errno_text(error))
    }

    /// What the user can do, in the imperative.
    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl Error for Failure {}

/// The kernel's words for an error, without std's `(os error N)`.
pub(crate) fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(end)) => text[..end].to_owned(),
        _ => text,
    }
}

/// The line to print for `error`: the program's name, then the whole chain of causes.
///
/// A cause that the message above it already tells is left out: most errors end with what the
/// kernel said, so that they are whole wherever they are printed, and give it as their source too.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut text = String::from("corio");
    let mut above = String::new();
    for link in error.chain() {
        let link = link.to_string();
        if !above.contains(&link) {
            text.push_str(": ");
            text.push_str(&link);
            above = link;
        }
    }
    one_line(&without_numbers(&text))
}

/// Leaves out each `(os error N)` that std or another crate has put behind the kernel's words.
fn without_numbers(text: &str) -> String {
    let mut pieces = text.split(" (os error ");
    let mut clean = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once(')') {
            Some((number, rest)) if number.parse::<u32>().is_ok() => clean.push_str(rest),
            _ => {
                clean.push_str(" (os error ");
                clean.push_str(piece);
            }
        }
    }
    clean
}

/// clap's usage error, which fills several lines, as one. `command` is whose help to point at.
pub(crate) fn usage_line(rendered: &str, command: &str) -> String {
    let mut parts = Vec::new();
    for text in rendered.lines().map(str::trim) {
        if text.starts_with("Usage:") || text.starts_with("For more information") {
            break;
        }
        let text = text.strip_prefix("error: ").unwrap_or(text);
        match text.strip_prefix("tip: ") {
            Some(tip) => parts.push(format!("({tip})")),
            None if text.is_empty() => {}
            None => parts.push(text.to_owned()),
        }
    }
    one_line(&format!(
        "corio: {}; see '{command} --help'",
        parts.join(" ")
    ))
}

/// `text` with control characters escaped, so that it prints as one line and drives no terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failure_reads_what_why_advice() {
        let failure = Failure::new("cannot open image /no/disk")
            .io(&io::Error::from_raw_os_error(2))
            .advice("check the path");
        assert_eq!(
            failure.to_string(),
            "cannot open image /no/disk: No such file or directory; check the path"
        );
    }

    #[test]
    fn reason_and_advice_may_be_missing() {
        assert_eq!(Failure::new("a").to_string(), "a");
        assert_eq!(Failure::new("a").why("b").to_string(), "a: b");
        assert_eq!(Failure::new("a").advice("c").to_string(), "a; c");
    }

    #[test]
    fn errno_text_drops_the_number_only_of_system_errors() {
        assert_eq!(
            errno_text(&io::Error::from_raw_os_error(13)),
            "Permission denied"
        );
        assert_eq!(
            errno_text(&io::Error::other("odd (os error 5)")),
            "odd (os error 5)"
        );
    }

    #[test]
    fn a_chain_of_causes_is_one_line_after_the_name() {
        let error = Err::<(), _>(Failure::new("low").why("reason"))
            .context("high")
            .unwrap_err();
        assert_eq!(line(&error), "corio: high: low: reason");
    }

    #[test]
    fn a_cause_is_told_once() {
        let refused = || io::Error::from_raw_os_error(22);
        let flush = corio_block::Error::Flush {
            node: "/d/disk.raw".into(),
            source: refused(),
        };
        assert_eq!(
            line(&flush.into()),
            "corio: /d/disk.raw: flush failed: Invalid argument, what was written before it may \
             be lost; check the storage below (see the kernel log) and the data"
        );
        let runtime = corio::Error::Os {
            op: "epoll_wait",
            source: refused(),
        };
        assert_eq!(
            line(&anyhow::Error::from(runtime).context("cannot wait")),
            "corio: cannot wait: epoll_wait: Invalid argument"
        );
        // Wrapped in an I/O error, which prints as what it wraps.
        let wrapped = io::Error::other(Failure::new("cannot bind").io(&refused()));
        assert_eq!(
            line(&anyhow::Error::from(wrapped).context("high")),
            "corio: high: cannot bind: Invalid argument"
        );
    }

    #[test]
    fn errno_numbers_are_left_out_and_nothing_else() {
        assert_eq!(
            without_numbers("a: No such file (os error 2); b"),
            "a: No such file; b"
        );
        assert_eq!(without_numbers("x (os error 2) y (os error 13)"), "x y");
        for text in [
            "",
            "plain",
            "a (os error x) b",
            "a (os error ",
            "a (os error 5",
            "(os error 1)",
        ] {
            assert_eq!(without_numbers(text), text);
        }
    }

    #[test]
    fn control_characters_never_break_the_line() {
        let error = anyhow::Error::from(Failure::new("cannot open /tmp/a\nb\x1b[2J"));
        assert_eq!(line(&error), "corio: cannot open /tmp/a\\nb\\u{1b}[2J");
    }

    #[test]
    fn clap_errors_fold_into_one_line() {
        let rendered = "error: invalid value 'x' for '--engine <ENGINE>'\n  [possible values: \
                        auto, threads]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered, "corio serve"),
            "corio: invalid value 'x' for '--engine <ENGINE>' [possible values: auto, threads]; \
             see 'corio serve --help'"
        );
        let rendered = "error: unexpected argument '--lisen' found\n\n  tip: a similar argument \
                        exists: '--listen'\n\nUsage: corio serve --listen <HOST:PORT>\n";
        assert_eq!(
            usage_line(rendered, "corio serve"),
            "corio: unexpected argument '--lisen' found (a similar argument exists: '--listen'); \
             see 'corio serve --help'"
        );
    }
}
