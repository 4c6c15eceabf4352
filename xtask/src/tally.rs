//! Counts tests from what libtest prints.
//!
//! Cargo's tests speak in lines: `test NAME ... ok|FAILED|ignored`, one `test result:` a binary,
//! and, as the jobs run them with `--show-output`, the printed lines of each passing test below a
//! `---- NAME stdout ----`. A test that cannot run here prints `SKIPPED: WHAT: WHY` and returns;
//! libtest calls that a pass, this module does not.

use std::collections::{BTreeMap, BTreeSet};

/// How many lines of a failed test are kept to be told again at the end.
const WORDS_MAX: usize = 30;
/// How many failed tests are kept the words of.
const TESTS_MAX: usize = 16;

/// What a job's output has shown so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that libtest ran and found good, the skipped among them.
    pub(crate) ran: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests marked `#[ignore]`.
    pub(crate) ignored: u64,
    /// `WHAT: WHY` of each skip, in order.
    pub(crate) skips: Vec<String>,
    /// The names of failed tests.
    pub(crate) failures: BTreeSet<String>,
    /// What each failed test printed, its first lines, without the frames of backtraces.
    pub(crate) words: BTreeMap<String, Vec<String>>,
    among_failures: bool,
    in_backtrace: bool,
    skipping: BTreeSet<String>,
    nameless_skips: u64,
    section: Option<String>,
}

impl Tally {
    /// Reads one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        self.keep(line);
        let line = line.trim();
        if let Some(what) = skip(line) {
            self.skips.push(what.to_owned());
            match &self.section {
                Some(test) => _ = self.skipping.insert(test.clone()),
                None => self.nameless_skips += 1,
            }
        } else if let Some(counts) = Counts::parse(line) {
            self.ran += counts.passed;
            self.failed += counts.failed;
            self.ignored += counts.ignored;
            self.section = None;
            self.among_failures = false;
            // The same name may come again in the next binary.
            self.nameless_skips += u64::try_from(self.skipping.len()).unwrap_or(u64::MAX);
            self.skipping.clear();
        } else if let Some(name) = section(line) {
            self.section = Some(name.to_owned());
        } else if matches!(line, "successes:" | "failures:") {
            self.section = None;
            self.among_failures = line == "failures:";
        } else if let Some((name, verdict)) = verdict(line) {
            if verdict.starts_with("FAILED") {
                self.failures.insert(name.to_owned());
            } else if verdict.starts_with("ignored") {
                let why = verdict
                    .strip_prefix("ignored, ")
                    .unwrap_or("marked as ignored");
                self.skips.push(format!("{name}: {why}"));
            }
        }
    }

    /// Keeps a line that a failed test printed.
    fn keep(&mut self, line: &str) {
        self.in_backtrace &= line.starts_with("  ");
        if self.in_backtrace || !self.among_failures || line.trim().is_empty() {
            return;
        }
        self.in_backtrace = line == "stack backtrace:";
        let Some(test) = &self.section else { return };
        if self.words.len() >= TESTS_MAX && !self.words.contains_key(test) {
            return;
        }
        let words = self.words.entry(test.clone()).or_default();
        if words.len() < WORDS_MAX && section(line).is_none() && line != "failures:" {
            words.push(line.to_owned());
        }
    }

    /// Notes that something was skipped which never printed anything, such as a whole job.
    pub(crate) fn skip(&mut self, what: String) {
        self.skips.push(what);
        self.nameless_skips += 1;
    }

    /// Notes that something is not even tried, and so is in no count of what ran.
    pub(crate) fn leave_out(&mut self, what: String) {
        self.skips.push(what);
    }

    /// Tests that ran to a good end: those that printed a skip are none.
    pub(crate) fn passed(&self) -> u64 {
        let skipping = u64::try_from(self.skipping.len()).unwrap_or(u64::MAX);
        self.ran
            .saturating_sub(skipping.saturating_add(self.nameless_skips))
    }

    /// How many skips were announced.
    pub(crate) fn skipped(&self) -> u64 {
        u64::try_from(self.skips.len()).unwrap_or(u64::MAX)
    }
}

/// The numbers of one `test result:` line.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        let (_, numbers) = rest.split_once(". ")?;
        let mut counts = Self {
            passed: 0,
            failed: 0,
            ignored: 0,
        };
        for part in numbers.split(';') {
            match part.trim().split_once(' ') {
                Some((n, "passed")) => counts.passed = n.parse().ok()?,
                Some((n, "failed")) => counts.failed = n.parse().ok()?,
                Some((n, "ignored")) => counts.ignored = n.parse().ok()?,
                _ => {}
            }
        }
        Some(counts)
    }
}

fn skip(line: &str) -> Option<&str> {
    line.strip_prefix("SKIPPED: ")
        .map(str::trim)
        .filter(|what| !what.is_empty())
}

/// The test whose output begins with this line.
pub(crate) fn section(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// The test whose end this line tells, and how it ended.
pub(crate) fn verdict(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let t = tally(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.20s\n",
        );
        assert_eq!((t.ran, t.failed, t.ignored), (5, 1, 2));
        assert_eq!(t.passed(), 5);
    }

    #[test]
    fn failures_are_named() {
        let t = tally("test wire::round_trip ... FAILED\ntest x ... ok\n");
        assert_eq!(t.failures.iter().collect::<Vec<_>>(), ["wire::round_trip"]);
    }

    #[test]
    fn what_failed_tests_printed_is_kept_without_their_frames() {
        let t = tally(
            "successes:\n\n---- fine stdout ----\nnothing\n\nfailures:\n\n---- a stdout ----\nRSS 7\n\n\
             thread 'a' panicked at x.rs:1:\n7 is too much\nstack backtrace:\n   0: begin\n             at x.rs:1\n\
             note: Some details are omitted\n\n---- b stdout ----\ngone\n\nfailures:\n    a\n    b\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n---- c stdout ----\nnot of these\n",
        );
        assert_eq!(t.words.len(), 2);
        assert_eq!(
            t.words["a"],
            [
                "RSS 7",
                "thread 'a' panicked at x.rs:1:",
                "7 is too much",
                "stack backtrace:",
                "note: Some details are omitted"
            ]
        );
        assert_eq!(t.words["b"], ["gone"]);
    }

    #[test]
    fn what_is_kept_of_failed_tests_is_bounded() {
        let long = "x\n".repeat(2 * WORDS_MAX);
        let many: String = (0..2 * TESTS_MAX)
            .map(|n| format!("---- t{n} stdout ----\n{long}"))
            .collect();
        let t = tally(&format!("failures:\n{many}"));
        assert_eq!(t.words.len(), TESTS_MAX);
        assert!(t.words.values().all(|words| words.len() == WORDS_MAX));
    }

    #[test]
    fn a_skipping_test_is_no_pass_however_often_it_says_so() {
        let t = tally(
            "successes:\n\n---- fio_verify stdout ----\nSKIPPED: fio: not installed\nSKIPPED: fio again: no\n\n\
             ---- other stdout ----\nhello\n\nsuccesses:\n    fio_verify\n    other\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((t.ran, t.passed(), t.skipped()), (2, 1, 2));
        assert_eq!(t.skips[0], "fio: not installed");
    }

    #[test]
    fn skips_of_two_binaries_with_one_name_both_count() {
        let one = "---- same stdout ----\nSKIPPED: a: b\n\
                   test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let t = tally(&format!("{one}{one}"));
        assert_eq!((t.ran, t.passed(), t.skipped()), (2, 0, 2));
    }

    #[test]
    fn a_skip_outside_any_section_takes_one_pass() {
        let t = tally(
            "SKIPPED: io_uring: refused\n\
             test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((t.ran, t.passed(), t.skipped()), (4, 3, 1));
    }

    #[test]
    fn ignored_tests_are_skips_with_their_reason() {
        let t = tally(
            "test big ... ignored, needs 64 GiB\ntest crates/corio/src/lib.rs - (line 9) ... ignored\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(t.skips[0], "big: needs 64 GiB");
        assert_eq!(
            t.skips[1],
            "crates/corio/src/lib.rs - (line 9): marked as ignored"
        );
        assert_eq!((t.skipped(), t.passed()), (2, 0));
    }

    #[test]
    fn other_text_counts_nothing() {
        let t = tally("test result: nonsense\nSKIPPED:\nthe test passed ... well\n---- broken\n");
        assert_eq!(t, Tally::default());
    }
}
